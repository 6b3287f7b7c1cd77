// The gradient of SwiGLU with quantisers behind it: from dy [rows, columns] and gate_up [rows, 2 *
// columns], BF16, to all that the gradients of the two products around it read, in FP8.
//
//   s        = sigmoid(gate), silu = gate * s                            in FP32 (swiglu.cuh)
//   d_gate   = bf16(((dy * row_weight) * up) * (s + silu * (1 - s)))
//   d_up     = bf16((dy * row_weight) * silu)
//   h        = bf16((silu * up) * row_weight)      what swiglu_quantize gave forward, computed anew
//
//   of d_gate_up = [d_gate, d_up]: codes and scales in 1x128 tiles, and transposed in 128x1 tiles
//   of h: transposed in 128x1 tiles
//   d_row_weight[row] = sum over columns of dy * (silu * up), FP32
//
// The results are those of swiglu_backward and quantize_1x128_both one after the other
// (abyssal.reference.fused), bit for bit. Source: DeepSeek-V3 report, sections 3.2.3 (SwiGLU is
// recomputed) and 3.5.2 (both tilings). Rows of no group are neither read nor written.
//
// Threads
//   block     128 rows of a group x 128 columns, 256 threads, 8 rows x 16 bytes each (square.cuh):
//             the three results are computed row by row, the next row's inputs on their way, and
//             then quantised one after the other (both.cuh)
//   cluster   with weights, up to 8 blocks share 128 rows: each takes every 8th of their squares,
//             and the first block adds up the sums of rows
//
// The order of a row's sum: the 8 columns of a thread one after the other; the row's 16 threads in
// pairs of neighbours, neighbouring pairs, and so on; the squares of a block one after the other;
// the blocks of the cluster one after the other.
//
// 6 bytes in and 5 + 5 * 4/128 out for each value of h, and about 77 instructions: which of the two
// is the bound depends on the GPU.

#include "hopper/cluster.cuh"
#include "quant/both.cuh"
#include "quant/swiglu.cuh"
#include "quant/swiglu_quantize_backward.hpp"

namespace abyssal::swiglu_quantize_backward {
namespace {

using quant::kTile;
using Bf16 = quant::Bf16;
using Piece = quant::Piece<Bf16>;
using Part = quant::Part<Bf16>;
using Square = Part::Square;

struct SharedMemory {
  quant::SquareMemory<Bf16> square;
  // What waits here while d_gate is quantised: they do not fit in registers beside it.
  uint4 d_up[Square::kRows][kThreads];
  uint4 h[Square::kRows][kThreads];
  float of_rows[kTile];
};
static_assert(sizeof(SharedMemory) == kSharedBytes);

// A thread's pieces of a row.
struct Inputs {
  Piece dy;
  Piece gate;
  Piece up;

  __device__ Inputs(const SwigluQuantizeBackwardParams& params, const quant::RowBlock& block,
                    int tile, int row) {
    const int column = tile * kTile + Square::piece() * Piece::kValues;
    const int row_of_block = Square::group() * Square::kRows + row;
    const int64_t row_of_all = int64_t{block.first} + row_of_block;
    const int columns = row_of_block < block.rows ? params.columns : 0;
    const auto* gates =
        static_cast<const Bf16::Bits*>(params.gate_up) + row_of_all * params.gate_up_row_stride;
    dy = quant::load_piece<Bf16, true>(
        static_cast<const Bf16::Bits*>(params.dy) + row_of_all * params.dy_row_stride, column,
        columns);
    gate = quant::load_piece<Bf16, true>(gates, column, columns);
    up = quant::load_piece<Bf16, true>(gates + params.columns, column, columns);
  }
};

// The results of a piece, and its part of d_row_weight.
struct Gradient {
  Piece d_gate;
  Piece d_up;
  Piece h;
  float d_row_weight = 0;

  __device__ Gradient(const Inputs& inputs, float row_weight) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const uint32_t clamped = quant::clamp_gates(inputs.gate.word[word]);
      float d_gates[2], d_ups[2], hs[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float dy = inputs.dy.value(2 * word + i);
        const float up = inputs.up.value(2 * word + i);
        const quant::Silu silu(inputs.gate.value(2 * word + i), Bf16::widen(clamped, i));
        const float weighted = __fmul_rn(dy, row_weight);
        const float product = __fmul_rn(silu.value, up);
        d_gates[i] = __fmul_rn(__fmul_rn(weighted, up), silu.slope());
        d_ups[i] = __fmul_rn(weighted, silu.value);
        hs[i] = __fmul_rn(product, row_weight);
        d_row_weight = __fadd_rn(d_row_weight, __fmul_rn(dy, product));
      }
      d_gate.word[word] = hopper::to_bf16x2(d_gates[0], d_gates[1]);
      d_up.word[word] = hopper::to_bf16x2(d_ups[0], d_ups[1]);
      h.word[word] = hopper::to_bf16x2(hs[0], hs[1]);
    }
  }
};

// A square of 128 rows and of 128 columns of dy, of gates and of ups.
__device__ void run_square(const SwigluQuantizeBackwardParams& params, const quant::RowBlock& block,
                           int number, int tile, bool is_first, SharedMemory& shared) {
  const int row_of_block = Square::group() * Square::kRows;
  Part d_gate;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    const bool weighted = params.row_weight != nullptr and row_of_block + row < block.rows;
    const float row_weight = weighted ? params.row_weight[block.first + row_of_block + row] : 1.0f;
    const Gradient gradient(Inputs(params, block, tile, row), row_weight);
    d_gate.x[row] = gradient.d_gate;
    shared.d_up[row][threadIdx.x] = gradient.d_up.words;
    shared.h[row][threadIdx.x] = gradient.h.words;
    float d_row_weight = gradient.d_row_weight;
#pragma unroll
    for (int distance = 1; distance < Square::kPieces; distance *= 2) {
      d_row_weight = __fadd_rn(d_row_weight, __shfl_xor_sync(0xFFFFFFFF, d_row_weight, distance));
    }
    // Of a row's threads, the one with the row's number writes.
    if (Square::piece() == row) {
      float& sum = shared.of_rows[row_of_block + row];
      sum = is_first ? d_row_weight : __fadd_rn(sum, d_row_weight);
    }
  }

  const int columns = 2 * params.columns;
  const quant::Rowwise rowwise{params.codes, params.scale, params.scale_pitch, columns};
  const quant::Transposed transposed{params.transposed, params.transposed_scale,
                                     params.transposed_pitch, params.transposed_scale_pitch,
                                     columns};
  const quant::Transposed h_transposed{params.h_transposed, params.h_transposed_scale,
                                       params.transposed_pitch, params.h_transposed_scale_pitch,
                                       params.columns};
  const auto quantize_both = [&](Part& part, int tile) {
    quant::scale_columns(part, shared.square, number, tile, transposed, params.options);
    quant::unlearn(part.x);
    quant::quantize_rows<true>(part, block, tile, rowwise, params.options);
    quant::quantize_columns(part, shared.square, number, tile, transposed);
  };
  quantize_both(d_gate, tile);
  Part d_up, h;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    d_up.x[row].words = shared.d_up[row][threadIdx.x];
  }
  quantize_both(d_up, tile + params.columns / kTile);
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) h.x[row].words = shared.h[row][threadIdx.x];
  quant::scale_columns(h, shared.square, number, tile, h_transposed, params.options);
  quant::quantize_columns(h, shared.square, number, tile, h_transposed);
}

// Adds up what the blocks of the cluster have summed for each row.
__device__ void sum_cluster(const SwigluQuantizeBackwardParams& params,
                            const quant::RowBlock& block, SharedMemory& shared) {
  hopper::cluster_sync();
  if (hopper::cluster_rank() == 0 and threadIdx.x < block.rows) {
    float sum = 0;
#pragma unroll 1
    for (int rank = 0; rank < params.blocks_per_row_block; ++rank) {
      const uint32_t peer = hopper::peer_address(&shared.of_rows[threadIdx.x], rank);
      sum = __fadd_rn(sum, __uint_as_float(hopper::load_peer(peer)));
    }
    params.d_row_weight[block.first + threadIdx.x] = sum;
  }
  // No block ends before its sums have been read.
  hopper::cluster_meet();
}

__device__ void run(const SwigluQuantizeBackwardParams& params, SharedMemory& shared) {
  int number = blockIdx.x / params.blocks_per_row_block;
  const int first_tile = blockIdx.x % params.blocks_per_row_block;
  quant::RowBlock block = quant::find_row_block(params.offsets, params.groups, params.rows, number);
  // The same for all blocks of a cluster.
  if (not block.in_group) return;

  for (int tile = first_tile; tile < params.columns / kTile; tile += params.blocks_per_row_block) {
    // Or addresses of all rows would be kept over the loop, in registers that are not there.
    hopper::unlearn(block.first);
    hopper::unlearn(block.rows);
    hopper::unlearn(number);
    run_square(params, block, number, tile, tile == first_tile, shared);
  }
  if (params.row_weight != nullptr) sum_cluster(params, block, shared);
}

}  // namespace
}  // namespace abyssal::swiglu_quantize_backward

// 128 registers: two blocks on a multiprocessor, one computing while the other waits.
extern "C" __global__ void __launch_bounds__(abyssal::swiglu_quantize_backward::kThreads, 2)
    swiglu_quantize_backward(const __grid_constant__ abyssal::SwigluQuantizeBackwardParams params) {
  extern __shared__ uint4 memory[];
  abyssal::swiglu_quantize_backward::run(
      params, *reinterpret_cast<abyssal::swiglu_quantize_backward::SharedMemory*>(memory));
}

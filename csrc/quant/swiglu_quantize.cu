// SwiGLU of gate_up [rows, 2 * columns], BF16, times a weight of each row, quantised to E4M3 with
// one FP32 scale for each 1x128 tile: the input of the down-projection from the output of the
// product before it, without a BF16 tensor between them.
//
//   h     = bf16((silu(gate) * up) * row_weight), in FP32 up to there (swiglu.cuh)
//   scale, codes     of h, as quantize_1x128
//
// The results are those of swiglu and quantize_1x128 one after the other
// (abyssal.reference.fused), bit for bit. Source: DeepSeek-V3 report, sections 2.1.2 and 3.3.2.
//
// Rows from offsets[groups] on belong to no expert (a buffer for the worst case has many): they are
// neither read nor written.
//
// Threads: as quantize_1x128. A block is 256 threads, 32 rows x 2 tiles; a tile is 8 neighbouring
// threads with 16 values each, in pieces of 16 bytes.
//
// 4 bytes in and 1 + 4/128 out for each value of h, and about 37 instructions: which of the two is
// the bound depends on the GPU.

#include "quant/row_tile.cuh"
#include "quant/swiglu.cuh"
#include "quant/swiglu_quantize.hpp"

namespace abyssal::swiglu_quantize {
namespace {

using Bf16 = quant::Bf16;
using Piece = quant::Piece<Bf16>;

constexpr int kPieces = kTile / kThreadsPerTile / Piece::kValues;

// h of a piece.
__device__ Piece swiglu(const Piece& gate, const Piece& up, float row_weight) {
  Piece clamped;
#pragma unroll
  for (int word = 0; word < 4; ++word) clamped.word[word] = quant::clamp_gates(gate.word[word]);
  float h[Piece::kValues];
#pragma unroll
  for (int i = 0; i < Piece::kValues; ++i) {
    const quant::Silu silu(gate.value(i), clamped.value(i));
    h[i] = __fmul_rn(__fmul_rn(silu.value, up.value(i)), row_weight);
  }
  return quant::to_piece<Bf16>(h);
}

template <bool kAligned>
__device__ void run(const SwigluQuantizeParams& params) {
  // Which row and tiles are mine. Neighbouring blocks share rows.
  const int tiles_in_row = (params.columns + kTile - 1) / kTile;
  const int blocks_in_row = (tiles_in_row + kTilesPerThread - 1) / kTilesPerThread;
  const int lane = threadIdx.x % kThreadsPerTile;
  const int64_t first_row = int64_t{blockIdx.x / blocks_in_row} * kRowsPerBlock;
  const int64_t row = first_row + threadIdx.x / kThreadsPerTile;
  const int first_tile = blockIdx.x % blocks_in_row * kTilesPerThread;
  const int rows = params.offsets == nullptr ? params.rows : params.offsets[params.groups];
  if (first_row >= rows) return;
  // Threads beyond the last row or tile stay for the warp's shuffles, with zeros, and store
  // nothing.
  const int columns = row < rows ? params.columns : 0;
  const auto column_of = [&](int tile, int piece) {
    return (first_tile + tile) * kTile + (piece * kThreadsPerTile + lane) * Piece::kValues;
  };

  // Load.
  const auto* gates =
      static_cast<const Bf16::Bits*>(params.gate_up) + row * params.gate_up_row_stride;
  const Bf16::Bits* ups = gates + params.columns;
  Piece gate[kTilesPerThread][kPieces], up[kTilesPerThread][kPieces];
#pragma unroll
  for (int tile = 0; tile < kTilesPerThread; ++tile) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = column_of(tile, piece);
      gate[tile][piece] = quant::load_piece<Bf16, kAligned>(gates, column, columns);
      up[tile][piece] = quant::load_piece<Bf16, kAligned>(ups, column, columns);
    }
  }
  const float row_weight =
      params.row_weight != nullptr and row < rows ? params.row_weight[row] : 1.0f;

#pragma unroll
  for (int tile = 0; tile < kTilesPerThread; ++tile) {
    Piece h[kPieces];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      h[piece] = swiglu(gate[tile][piece], up[tile][piece], row_weight);
    }
    const float scale = quant::quantize_row_tile<kThreadsPerTile, kAligned>(
        h, params.codes + row * params.columns, columns,
        [&](int piece) { return column_of(tile, piece); }, params.options);
    if (lane == 0 and (first_tile + tile) * kTile < columns) {
      params.scale[(first_tile + tile) * params.scale_pitch + row] = scale;
    }
  }
}

}  // namespace
}  // namespace abyssal::swiglu_quantize

// Aligned: rows of gates and of ups start at multiples of 16 bytes and rows of codes of 8, as every
// tensor of the model does. Unaligned: any shape, one value at a time.
#define ABYSSAL_ENTRY(name, kAligned)                                                      \
  extern "C" __global__ void __launch_bounds__(abyssal::swiglu_quantize::kThreadsPerBlock) \
      name(const __grid_constant__ abyssal::SwigluQuantizeParams params) {                 \
    abyssal::swiglu_quantize::run<kAligned>(params);                                       \
  }

ABYSSAL_ENTRY(swiglu_quantize, true)
ABYSSAL_ENTRY(swiglu_quantize_unaligned, false)

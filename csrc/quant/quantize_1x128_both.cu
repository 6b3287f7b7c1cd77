// Quantise x [rows, columns], BF16 or FP32, to E4M3 twice from one read: in 1x128 tiles as
// quantize_1x128, for products that sum over columns, and transposed in 128x1 tiles of each group
// of rows, for weight gradients, which sum over rows.
//
//   amax, scale, code   as quantize_1x128, bit for bit, of either kind of tile; rows that a group's
//                       last tile lacks count as 0, and so do their codes
//
// Layout
//   codes, scale        as quantize_1x128
//   transposed          [columns, transposed_pitch]: group g begins at a multiple of 128 that
//                       follows from offsets[g] and g alone (groups.cuh)
//   transposed_scale    stored [tiles, transposed_scale_pitch]: neighbouring columns of x are
//                       neighbours
//   Rows of no group get the first kind only; parts of `transposed` between groups are not written.
//
// Threads
//   block        a 128x128 square: 128 rows of a group, 256 threads for BF16 and 512 for FP32, each
//                8 rows x 16 bytes (square.cuh). Neighbouring blocks share rows.
//   rows         a row's maximum goes by shuffles; its codes leave from registers
//   columns      a column's maximum goes by shuffles in a warp, then by shared memory; its codes
//                go through shared memory, so that 128 bytes of a column leave together
//
// The kernel is bound by memory: 2 (BF16) or 4 bytes in, 2 + 8/128 bytes out for each value. All
// loads of a thread (128 bytes) are issued before the first is used.

#include "quant/groups.cuh"
#include "quant/quantize_1x128_both.hpp"
#include "quant/square.cuh"

namespace abyssal::quantize_1x128_both {
namespace {

using quant::kTile;

template <typename Value>
using Square = quant::Square<quant::Piece<Value>::kValues>;

template <typename Value>
struct SharedMemory {
  typename Square<Value>::PartialAmax partial;
  typename Square<Value>::Columns inverse;
  typename Square<Value>::Codes codes;
};

// A thread's part of the square.
template <typename Value>
struct Part {
  quant::Piece<Value> x[Square<Value>::kRows];

  __device__ float value(int row, int i) const { return Value::widen(x[row].bits[i]); }
};

// Scales and codes of the rows, of 1x128 tiles.
template <typename Value, bool kAligned>
__device__ void quantize_rows(const Quantize1x128BothParams& params, Part<Value>& part,
                              const quant::RowBlock& block, int tile) {
  using Square = Square<Value>;
  constexpr int kValues = quant::Piece<Value>::kValues;
  float amax[Square::kRows] = {};
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      amax[row] = hopper::max_or_nan(amax[row], fabsf(part.value(row, i)));
    }
  }
  quant::unlearn(part.x);
  const quant::TileScale scale(Square::reduce_rows(amax), params.amax_floor, params.pow2);

  const int64_t first_row = block.first + Square::group() * Square::kRows;
  const int rows = block.end - first_row;
  const int my_row = threadIdx.x % Square::kRows;
  if (Square::piece() < Square::kRows and my_row < rows) {
    params.scale[tile * params.scale_pitch + first_row + my_row] = scale.stored();
  }
  uint8_t* codes_of_rows = params.codes + first_row * params.columns;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    const float inverse = __shfl_sync(0xFFFFFFFF, scale.inverse(), row, Square::kPieces);
    uint32_t codes[kValues / 4];
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      codes[i / 4] =
          hopper::to_e4m3x4(part.value(row, i) * inverse, part.value(row, i + 1) * inverse,
                            part.value(row, i + 2) * inverse, part.value(row, i + 3) * inverse);
    }
    if (row < rows) {
      quant::store_codes<kAligned>(codes_of_rows + int64_t{row} * params.columns,
                                   tile * kTile + Square::piece() * kValues, params.columns, codes);
    }
  }
}

// The codes of the columns, of 128x1 tiles, to shared memory.
template <typename Value>
__device__ void quantize_columns(const Part<Value>& part, SharedMemory<Value>& shared) {
#pragma unroll
  for (int four = 0; four < quant::Piece<Value>::kValues / 4; ++four) {
    const float4 inverses = shared.inverse.four(Square<Value>::piece(), four);
    const float inverse[4] = {inverses.x, inverses.y, inverses.z, inverses.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * four + j;
      auto scaled = [&](int row) { return part.value(row, i) * inverse[j]; };
      shared.codes.set(i,
                       make_uint2(hopper::to_e4m3x4(scaled(0), scaled(1), scaled(2), scaled(3)),
                                  hopper::to_e4m3x4(scaled(4), scaled(5), scaled(6), scaled(7))));
    }
  }
}

template <typename Value, bool kAligned>
__device__ void quantize(const Quantize1x128BothParams& params, SharedMemory<Value>& shared) {
  using Square = Square<Value>;
  constexpr int kValues = quant::Piece<Value>::kValues;

  // Which square is mine.
  const int tiles_in_row = (params.columns + kTile - 1) / kTile;
  const int number = blockIdx.x / tiles_in_row;
  const int tile = blockIdx.x % tiles_in_row;
  const quant::RowBlock block =
      quant::find_row_block(params.offsets, params.groups, params.rows, number);
  if (block.first >= block.end) return;

  // Load. What is outside is 0.
  const int column = tile * kTile + Square::piece() * kValues;
  const int64_t first_row = block.first + Square::group() * Square::kRows;
  const auto* x = static_cast<const typename Value::Bits*>(params.x);
  Part<Value> part;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    part.x[row] =
        quant::load_piece<Value, kAligned>(x + (first_row + row) * params.x_row_stride, column,
                                           first_row + row < block.end ? params.columns : 0);
  }

  // The columns' scales, by one thread each. The rows need no other warp: they fill the wait.
  if (block.in_group) {
    float amax[kValues] = {};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
#pragma unroll
      for (int row = 0; row < Square::kRows; ++row) {
        amax[i] = hopper::max_or_nan(amax[i], fabsf(part.value(row, i)));
      }
    }
    Square::reduce_columns(amax, shared.partial);
    __syncthreads();
    if (threadIdx.x < kTile) {
      const int mine = threadIdx.x;
      const quant::TileScale scale(Square::column_amax(shared.partial, mine), params.amax_floor,
                                   params.pow2);
      shared.inverse[mine] = scale.inverse();
      if (tile * kTile + mine < params.columns) {
        params.transposed_scale[number * params.transposed_scale_pitch + tile * kTile + mine] =
            scale.stored();
      }
    }
  }
  quant::unlearn(part.x);
  quantize_rows<Value, kAligned>(params, part, block, tile);
  if (not block.in_group) return;

  __syncthreads();
  quant::unlearn(part.x);
  quantize_columns(part, shared);
  __syncthreads();
  Square::template store_transposed<true>(
      shared.codes,
      params.transposed + int64_t{tile} * kTile * params.transposed_pitch + int64_t{number} * kTile,
      params.transposed_pitch, kTile, params.columns - tile * kTile);
}

}  // namespace
}  // namespace abyssal::quantize_1x128_both

// Aligned: rows of x start at multiples of 16 bytes and rows of codes at multiples of 8 (BF16) or
// 4, as every tensor of the model does. Unaligned: any shape, one value at a time. The second
// bound: 64 registers, so that 128 KB of loads are in flight on a multiprocessor.
#define ABYSSAL_ENTRY(name, Value, kAligned)                                       \
  extern "C" __global__ void __launch_bounds__(                                    \
      abyssal::quantize_1x128_both::Square<Value>::kThreads,                       \
      kAligned ? 1024 / abyssal::quantize_1x128_both::Square<Value>::kThreads : 1) \
      name(const __grid_constant__ abyssal::Quantize1x128BothParams params) {      \
    __shared__ abyssal::quantize_1x128_both::SharedMemory<Value> shared;           \
    abyssal::quantize_1x128_both::quantize<Value, kAligned>(params, shared);       \
  }

ABYSSAL_ENTRY(quantize_1x128_both_bf16, abyssal::quant::Bf16, true)
ABYSSAL_ENTRY(quantize_1x128_both_bf16_unaligned, abyssal::quant::Bf16, false)
ABYSSAL_ENTRY(quantize_1x128_both_fp32, abyssal::quant::Fp32, true)
ABYSSAL_ENTRY(quantize_1x128_both_fp32_unaligned, abyssal::quant::Fp32, false)

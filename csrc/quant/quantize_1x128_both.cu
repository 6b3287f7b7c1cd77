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
//   columns      a column's maximum and its codes go through shared memory (both.cuh)
//
// The kernel is bound by memory: 2 (BF16) or 4 bytes in, 2 + 8/128 bytes out for each value. All
// loads of a thread (128 bytes) are issued before the first is used.

#include "quant/both.cuh"
#include "quant/quantize_1x128_both.hpp"

namespace abyssal::quantize_1x128_both {
namespace {

using quant::kTile;

template <typename Value, bool kAligned>
__device__ void quantize(const Quantize1x128BothParams& params,
                         quant::SquareMemory<Value>& shared) {
  using Square = quant::Part<Value>::Square;
  constexpr int kValues = quant::Piece<Value>::kValues;

  // Which square is mine.
  const int tiles_in_row = (params.columns + kTile - 1) / kTile;
  const int number = blockIdx.x / tiles_in_row;
  const int tile = blockIdx.x % tiles_in_row;
  const quant::RowBlock block =
      quant::find_row_block(params.offsets, params.groups, params.rows, number);
  if (block.rows == 0) return;

  // Load. What is outside is 0.
  const int column = tile * kTile + Square::piece() * kValues;
  const int row_of_block = Square::group() * Square::kRows;
  const int64_t first_row = int64_t{block.first} + row_of_block;
  const auto* x = static_cast<const typename Value::Bits*>(params.x);
  quant::Part<Value> part;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    part.x[row] =
        quant::load_piece<Value, kAligned>(x + (first_row + row) * params.x_row_stride, column,
                                           row_of_block + row < block.rows ? params.columns : 0);
  }

  // The rows need no other warp: they fill the wait for the columns' scales.
  const quant::Rowwise rowwise{params.codes, params.scale, params.scale_pitch, params.columns};
  const quant::Transposed transposed{params.transposed, params.transposed_scale,
                                     params.transposed_pitch, params.transposed_scale_pitch,
                                     params.columns};
  if (block.in_group) {
    quant::scale_columns(part, shared, number, tile, transposed, params.options);
  }
  quant::unlearn(part.x);
  quant::quantize_rows<kAligned>(part, block, tile, rowwise, params.options);
  if (block.in_group) quant::quantize_columns(part, shared, number, tile, transposed);
}

}  // namespace
}  // namespace abyssal::quantize_1x128_both

// Aligned: rows of x start at multiples of 16 bytes and rows of codes at multiples of 8 (BF16) or
// 4, as every tensor of the model does. Unaligned: any shape, one value at a time. The second
// bound: 64 registers, so that 128 KB of loads are in flight on a multiprocessor.
#define ABYSSAL_ENTRY(name, Value, kAligned)                                  \
  extern "C" __global__ void __launch_bounds__(                               \
      abyssal::quant::Part<Value>::Square::kThreads,                          \
      kAligned ? 1024 / abyssal::quant::Part<Value>::Square::kThreads : 1)    \
      name(const __grid_constant__ abyssal::Quantize1x128BothParams params) { \
    __shared__ abyssal::quant::SquareMemory<Value> shared;                    \
    abyssal::quantize_1x128_both::quantize<Value, kAligned>(params, shared);  \
  }

ABYSSAL_ENTRY(quantize_1x128_both_bf16, abyssal::quant::Bf16, true)
ABYSSAL_ENTRY(quantize_1x128_both_bf16_unaligned, abyssal::quant::Bf16, false)
ABYSSAL_ENTRY(quantize_1x128_both_fp32, abyssal::quant::Fp32, true)
ABYSSAL_ENTRY(quantize_1x128_both_fp32_unaligned, abyssal::quant::Fp32, false)

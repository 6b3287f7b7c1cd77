// Quantise weights w [groups, rows, columns], BF16 or FP32, to E4M3 with one FP32 scale for each
// 128x128 tile: as they are, transposed, or both from one read.
//
//   amax, scale, code   as quantize_1x128, bit for bit, of a 128x128 tile; rows and columns beyond
//                       the last count as 0
//
// Layout
//   codes        [groups, rows, columns], as w;  transposed  [groups, columns, rows]: the same
//   codes scale        [groups, row tiles, column tiles], for both
//
// Threads
//   block        a tile: 256 threads for BF16 and 512 for FP32, each 8 rows x 16 bytes
//   (square.cuh).
//                Neighbouring blocks share rows.
//   amax         by shuffles in a warp, then by shared memory; every thread computes the scale
//   transposed   through shared memory, so that 128 bytes of a column leave together
//
// The kernel is bound by memory: 2 (BF16) or 4 bytes in, 1 or 2 bytes out for each value. All loads
// of a thread (128 bytes) are issued before the first is used.

#include "quant/quantize_128x128.hpp"
#include "quant/square.cuh"

namespace abyssal::quantize_128x128 {
namespace {

using quant::kTile;

template <typename Value>
using Square = quant::Square<quant::Piece<Value>::kValues>;

template <typename Value>
struct SharedMemory {
  float amax[Square<Value>::kWarps];
  typename Square<Value>::Codes codes;
};

// The largest magnitude of the whole tile, from each thread's.
template <int kWarps>
__device__ float reduce(float amax, float (&of_warps)[kWarps]) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    amax = hopper::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFF, amax, distance));
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = amax;
  __syncthreads();
#pragma unroll
  for (float of_warp : of_warps) amax = hopper::max_or_nan(amax, of_warp);
  return amax;
}

template <typename Value, bool kAligned>
__device__ void quantize(const Quantize128x128Params& params, SharedMemory<Value>& shared) {
  using Square = Square<Value>;
  using Piece = quant::Piece<Value>;
  constexpr int kValues = Piece::kValues;

  // Which tile is mine.
  const int row_tiles = (params.rows + kTile - 1) / kTile;
  const int column_tiles = (params.columns + kTile - 1) / kTile;
  const int64_t group = blockIdx.x / column_tiles / row_tiles;
  const int row_tile = blockIdx.x / column_tiles % row_tiles;
  const int column_tile = blockIdx.x % column_tiles;
  const int64_t first_row = int64_t{row_tile} * kTile + Square::group() * Square::kRows;
  const int column = column_tile * kTile + Square::piece() * kValues;

  // Load. What is outside is 0.
  const auto* w = static_cast<const typename Value::Bits*>(params.w) +
                  group * params.w_group_stride + first_row * params.w_row_stride;
  Piece x[Square::kRows];
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    x[row] = quant::load_piece<Value, kAligned>(w + row * params.w_row_stride, column,
                                                first_row + row < params.rows ? params.columns : 0);
  }

  // The tile's scale.
  const quant::TileScale scale(reduce(quant::largest_magnitude(x), shared.amax), params.options);
  if (threadIdx.x == 0) params.scale[blockIdx.x] = scale.stored();
  const float inverse = scale.inverse();
  quant::unlearn(x);
  auto scaled = [&](int row, int i) { return x[row].value(i) * inverse; };

  // Codes as they lie.
  if (params.codes != nullptr) {
    uint8_t* codes_of_row = params.codes + (group * params.rows + first_row) * params.columns;
#pragma unroll
    for (int row = 0; row < Square::kRows; ++row) {
      uint32_t codes[kValues / 4];
#pragma unroll
      for (int i = 0; i < kValues; i += 4) {
        codes[i / 4] = hopper::to_e4m3x4(scaled(row, i), scaled(row, i + 1), scaled(row, i + 2),
                                         scaled(row, i + 3));
      }
      if (first_row + row < params.rows) {
        quant::store_codes<kAligned>(codes_of_row + int64_t{row} * params.columns, column,
                                     params.columns, codes);
      }
    }
  }

  // Codes transposed.
  if (params.transposed == nullptr) return;
  quant::unlearn(x);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    shared.codes.set(
        i, make_uint2(hopper::to_e4m3x4(scaled(0, i), scaled(1, i), scaled(2, i), scaled(3, i)),
                      hopper::to_e4m3x4(scaled(4, i), scaled(5, i), scaled(6, i), scaled(7, i))));
  }
  __syncthreads();
  const int64_t corner = (group * params.columns + int64_t{column_tile} * kTile) * params.rows +
                         int64_t{row_tile} * kTile;
  Square::template store_transposed<kAligned>(shared.codes, params.transposed + corner, params.rows,
                                              params.rows - row_tile * kTile,
                                              params.columns - column_tile * kTile);
}

}  // namespace
}  // namespace abyssal::quantize_128x128

// Aligned: rows of w start at multiples of 16 bytes, rows of codes at multiples of 8 (BF16) or 4,
// and those of the transposed codes, if asked for, at multiples of 16. Unaligned: any shape, one
// value at a time. The second bound: 64 registers, so that 128 KB of loads are in flight on a
// multiprocessor.
#define ABYSSAL_ENTRY(name, Value, kAligned)                                    \
  extern "C" __global__ void __launch_bounds__(                                 \
      abyssal::quantize_128x128::Square<Value>::kThreads,                       \
      kAligned ? 1024 / abyssal::quantize_128x128::Square<Value>::kThreads : 1) \
      name(const __grid_constant__ abyssal::Quantize128x128Params params) {     \
    __shared__ abyssal::quantize_128x128::SharedMemory<Value> shared;           \
    abyssal::quantize_128x128::quantize<Value, kAligned>(params, shared);       \
  }

ABYSSAL_ENTRY(quantize_128x128_bf16, abyssal::quant::Bf16, true)
ABYSSAL_ENTRY(quantize_128x128_bf16_unaligned, abyssal::quant::Bf16, false)
ABYSSAL_ENTRY(quantize_128x128_fp32, abyssal::quant::Fp32, true)
ABYSSAL_ENTRY(quantize_128x128_fp32_unaligned, abyssal::quant::Fp32, false)

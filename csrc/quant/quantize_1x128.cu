// Quantise x [rows, columns], BF16 or FP32, to E4M3 with one FP32 scale for each 1x128 tile.
//
//   amax  = max |x| over the tile; columns beyond the last count as 0
//   scale = max(amax, amax_floor) / 448, 1 where amax is 0; with pow2 the smallest power of two
//           that is not below it
//   code  = round to nearest even of clamp(x * (1 / scale), +-448)
//
// A tile that holds Inf or NaN: scale NaN and all codes NaN, so that nothing that reads it looks
// healthy. Every operation is rounded as IEEE 754 says: the results equal
// abyssal.reference.quantize bit for bit. Source: DeepSeek-V3 report, section 3.3.2.
//
// Layout
//   codes  [rows, columns], as x
//   scale  stored [tiles of a row, scale_pitch]: the scales of neighbouring rows are neighbours,
//          which is how the GEMM's TMA fetches them for a block of rows
//
// Threads
//   block        256 threads: 32 rows x kTilesPerThread tiles (4 of BF16, 2 of FP32)
//   tile         8 neighbouring threads; thread t holds 16 of its 128 values, in pieces of 16
//                bytes, so that one load of the 8 threads is 128 contiguous bytes:
//
//                  BF16   t0 t1 ... t7 | t0 t1 ... t7            8 values a piece
//                  FP32   t0 ... t7 | t0 ... t7 | t0 ... t7 | t0 ... t7    4 values a piece
//
// The kernel is bound by memory: 2 (BF16) or 4 bytes in, 1 + 4/128 bytes out for each value. All
// loads of a thread (128 bytes) are issued before the first is used; nothing is in shared memory.

#include "quant/quantize_1x128.hpp"
#include "quant/row_tile.cuh"

namespace abyssal::quantize_1x128 {
namespace {

using quant::kTile;

constexpr int kValuesPerThread = kTile / kThreadsPerTile;

template <typename Value, bool kAligned>
__device__ void quantize(const Quantize1x128Params& params) {
  using Tile = quant::Piece<Value>;
  constexpr int kPieces = kValuesPerThread / Tile::kValues;
  constexpr int kTiles = kTilesPerThread<sizeof(typename Value::Bits)>;

  // Which row and tiles are mine. Neighbouring blocks share rows.
  const int tiles_in_row = (params.columns + kTile - 1) / kTile;
  const int blocks_in_row = (tiles_in_row + kTiles - 1) / kTiles;
  const int lane = threadIdx.x % kThreadsPerTile;
  const int64_t row =
      int64_t{blockIdx.x / blocks_in_row} * kRowsPerBlock + threadIdx.x / kThreadsPerTile;
  const int first_tile = blockIdx.x % blocks_in_row * kTiles;
  // Threads beyond the last row or tile stay for the warp's shuffles, with zeros, and store
  // nothing.
  const int columns = row < params.rows ? params.columns : 0;
  auto column_of = [&](int tile, int piece) {
    return (first_tile + tile) * kTile + (piece * kThreadsPerTile + lane) * Tile::kValues;
  };

  // Load.
  const auto* x_row =
      static_cast<const typename Value::Bits*>(params.x) + row * params.x_row_stride;
  Tile x[kTiles][kPieces];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      x[tile][piece] = quant::load_piece<Value, kAligned>(x_row, column_of(tile, piece), columns);
    }
  }

  uint8_t* codes_row = params.codes + row * params.columns;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const float scale = quant::quantize_row_tile<kThreadsPerTile, kAligned>(
        x[tile], codes_row, columns, [&](int piece) { return column_of(tile, piece); },
        params.options);
    if (lane == 0 and (first_tile + tile) * kTile < columns) {
      params.scale[(first_tile + tile) * params.scale_pitch + row] = scale;
    }
  }
}

}  // namespace
}  // namespace abyssal::quantize_1x128

// Aligned: rows of x start at multiples of 16 bytes and rows of codes at multiples of 8, as every
// tensor of the model does. Unaligned: any shape, one value at a time.
#define ABYSSAL_ENTRY(name, Value, kAligned)                                              \
  extern "C" __global__ void __launch_bounds__(abyssal::quantize_1x128::kThreadsPerBlock) \
      name(const __grid_constant__ abyssal::Quantize1x128Params params) {                 \
    abyssal::quantize_1x128::quantize<Value, kAligned>(params);                           \
  }

ABYSSAL_ENTRY(quantize_1x128_bf16, abyssal::quant::Bf16, true)
ABYSSAL_ENTRY(quantize_1x128_bf16_unaligned, abyssal::quant::Bf16, false)
ABYSSAL_ENTRY(quantize_1x128_fp32, abyssal::quant::Fp32, true)
ABYSSAL_ENTRY(quantize_1x128_fp32_unaligned, abyssal::quant::Fp32, false)

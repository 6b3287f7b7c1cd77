// What host and device agree on for the 1x128 quantiser.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct Quantize1x128Params {
  const void* x;         // [rows, columns] BF16 or FP32, rows `x_row_stride` values apart
  uint8_t* codes;        // [rows, columns] E4M3, contiguous
  float* scale;          // [ceil(columns / 128), scale_pitch] FP32, column i of it is row i of x
  int64_t x_row_stride;  // values
  int64_t scale_pitch;   // values, >= rows
  int32_t rows;
  int32_t columns;
  quant::TileOptions options;
};

namespace quantize_1x128 {

using quant::kTile;
inline constexpr int kThreadsPerBlock = 256;
inline constexpr int kThreadsPerTile = 8;
inline constexpr int kRowsPerBlock = kThreadsPerBlock / kThreadsPerTile;
inline constexpr int kBytesPerThread = 128;  // in flight: enough to cover memory's latency

// Tiles of its row that a thread works on.
template <int kValueBytes>
inline constexpr int kTilesPerThread = kBytesPerThread * kThreadsPerTile / (kTile * kValueBytes);

}  // namespace quantize_1x128
}  // namespace abyssal

// What host and device agree on for SwiGLU with a 1x128 quantiser behind it.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct SwigluQuantizeParams {
  const void* gate_up;         // [rows, 2 * columns] BF16: gates, then ups; rows apart as below
  const float* row_weight;     // [rows], or null
  const int32_t* offsets;      // [groups + 1], or null: rows from offsets[groups] on are left out
  uint8_t* codes;              // [rows, columns] E4M3, contiguous
  float* scale;                // [ceil(columns / 128), scale_pitch] FP32
  int64_t gate_up_row_stride;  // values
  int64_t scale_pitch;         // values, >= rows
  int32_t rows;
  int32_t columns;
  int32_t groups;
  quant::TileOptions options;
};

namespace swiglu_quantize {

using quant::kTile;
inline constexpr int kThreadsPerBlock = 256;
inline constexpr int kThreadsPerTile = 8;
inline constexpr int kRowsPerBlock = kThreadsPerBlock / kThreadsPerTile;
inline constexpr int kTilesPerThread = 2;  // 128 bytes in flight, as quantize_1x128

}  // namespace swiglu_quantize
}  // namespace abyssal

// What host and device agree on for RMSNorm with a 1x128 quantiser behind it.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct RmsNormQuantizeParams {
  const void* x;         // [rows, columns] BF16 or FP32, rows `x_row_stride` values apart
  const void* weight;    // [columns] of x's type or FP32
  uint8_t* codes;        // [rows, columns] E4M3, contiguous
  float* scale;          // [ceil(columns / 128), scale_pitch] FP32
  void* normalized;      // [rows, columns] of x's type, contiguous, or null
  float* inverse_rms;    // [rows], or null
  int64_t x_row_stride;  // values
  int64_t scale_pitch;   // values, >= rows
  int32_t rows;
  int32_t columns;
  float eps;
  uint32_t weight_is_fp32;
  quant::TileOptions options;
};

namespace rms_norm_quantize {

using quant::kTile;

// Sums that a row's squares are added to, one for each column modulo this many.
inline constexpr int kFewLanes = 256;
inline constexpr int kManyLanes = 1024;
inline constexpr int kSteps = 8;  // 16 bytes a thread, of a row that is kept in registers
inline constexpr int kFewLanesColumns = kFewLanes * kSteps;
inline constexpr int kManyLanesColumns = kManyLanes * kSteps;

template <int kLanes, int kValueBytes>
struct Layout {
  static constexpr int kRowThreads = kLanes * kValueBytes / 16;  // 16 bytes each at a time
  static constexpr int kBlockThreads = kRowThreads < 128 ? 128 : kRowThreads;
  static constexpr int kBlockRows = kBlockThreads / kRowThreads;
};

}  // namespace rms_norm_quantize
}  // namespace abyssal

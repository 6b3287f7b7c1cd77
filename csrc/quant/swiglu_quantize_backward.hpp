// What host and device agree on for the gradient of SwiGLU with quantisers behind it.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct SwigluQuantizeBackwardParams {
  const void* dy;             // [rows, columns] BF16
  const void* gate_up;        // [rows, 2 * columns] BF16: gates, then ups
  const float* row_weight;    // [rows], or null
  const int32_t* offsets;     // [groups + 1], or null: all rows are one group
  uint8_t* codes;             // d_gate_up, [rows, 2 * columns] E4M3, contiguous
  float* scale;               // [2 * columns / 128, scale_pitch] FP32
  uint8_t* transposed;        // d_gate_up, [2 * columns, transposed_pitch] E4M3
  float* transposed_scale;    // [transposed_pitch / 128, transposed_scale_pitch] FP32
  uint8_t* h_transposed;      // h, [columns, transposed_pitch] E4M3
  float* h_transposed_scale;  // [transposed_pitch / 128, h_transposed_scale_pitch] FP32
  float* d_row_weight;        // [rows]; if row_weight is not null
  int64_t dy_row_stride;      // values
  int64_t gate_up_row_stride;
  int64_t scale_pitch;       // values, >= rows
  int64_t transposed_pitch;  // values, a multiple of 128
  int64_t transposed_scale_pitch;
  int64_t h_transposed_scale_pitch;
  int32_t rows;
  int32_t columns;  // a multiple of 128
  int32_t groups;
  int32_t blocks_per_row_block;  // a cluster, if row_weight is not null
  quant::TileOptions options;
};

namespace swiglu_quantize_backward {

inline constexpr int kThreads = quant::square_threads(2);
inline constexpr int kSharedBytes = 22080 + 2 * 32768;
inline constexpr int kMostBlocksPerCluster = 8;  // what every sm_90 GPU takes

}  // namespace swiglu_quantize_backward
}  // namespace abyssal

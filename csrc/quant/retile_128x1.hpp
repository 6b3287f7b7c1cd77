// What host and device agree on for the change of tiles from 1x128 to 128x1.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct Retile128x1Params {
  const uint8_t* codes;      // [rows, columns] E4M3, rows `row_stride` values apart
  const float* scale;        // [ceil(columns / 128), scale_pitch] FP32, column i of it is row i
  uint8_t* transposed;       // [columns, transposed_pitch] E4M3, 16-byte aligned
  float* transposed_scale;   // [transposed_pitch / 128, transposed_scale_pitch] FP32
  const int32_t* offsets;    // [groups + 1], or null: all rows are one group
  int64_t row_stride;        // values
  int64_t scale_pitch;       // values
  int64_t transposed_pitch;  // values, a multiple of 128
  int64_t transposed_scale_pitch;  // values, >= columns
  int32_t rows;
  int32_t columns;
  int32_t groups;
};

}  // namespace abyssal

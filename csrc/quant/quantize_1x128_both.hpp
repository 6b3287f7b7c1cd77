// What host and device agree on for the quantiser of both orientations.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct Quantize1x128BothParams {
  const void* x;            // [rows, columns] BF16 or FP32, rows `x_row_stride` values apart
  uint8_t* codes;           // [rows, columns] E4M3, contiguous
  float* scale;             // [ceil(columns / 128), scale_pitch] FP32, column i of it is row i of x
  uint8_t* transposed;      // [columns, transposed_pitch] E4M3, 16-byte aligned
  float* transposed_scale;  // [transposed_pitch / 128, transposed_scale_pitch] FP32
  const int32_t* offsets;   // [groups + 1], or null: all rows are one group
  int64_t x_row_stride;     // values
  int64_t scale_pitch;      // values, >= rows
  int64_t transposed_pitch;        // values, a multiple of 128
  int64_t transposed_scale_pitch;  // values, >= columns
  int32_t rows;
  int32_t columns;
  int32_t groups;
  quant::TileOptions options;
};

}  // namespace abyssal

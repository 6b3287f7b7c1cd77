// What host and device agree on for the 128x128 quantiser.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal {

struct Quantize128x128Params {
  const void* w;           // [groups, rows, columns] BF16 or FP32
  uint8_t* codes;          // [groups, rows, columns] E4M3, contiguous; or null
  uint8_t* transposed;     // [groups, columns, rows] E4M3, contiguous; or null
  float* scale;            // [groups, ceil(rows / 128), ceil(columns / 128)] FP32, contiguous
  int64_t w_group_stride;  // values
  int64_t w_row_stride;    // values
  int32_t groups;
  int32_t rows;
  int32_t columns;
  quant::TileOptions options;
};

}  // namespace abyssal

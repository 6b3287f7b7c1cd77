// Sizes of tensors and grids.
#pragma once

#include <cstddef>
#include <cstdint>

namespace abyssal {

constexpr int64_t ceil_divide(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// Bytes from the first value to the last of `rows` rows that are `stride` values apart.
constexpr size_t extent_bytes(int64_t rows, int64_t stride, int64_t columns, size_t value_bytes) {
  return rows == 0 ? 0 : ((rows - 1) * stride + columns) * value_bytes;
}

}  // namespace abyssal

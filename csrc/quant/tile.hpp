// What host and device agree on for all quantisers.
#pragma once

#include <cstdint>

namespace abyssal::quant {

inline constexpr int kTile = 128;  // values that share a scale, along each tiled dimension

// How a tile's scale follows from its largest magnitude.
struct TileOptions {
  float amax_floor;  // the least that counts
  uint32_t pow2;     // 1: scales are powers of two
};

// Threads of a block that holds a 128x128 square of values of this size: 8 rows x 16 bytes each.
constexpr int square_threads(int value_bytes) { return kTile / 8 * (kTile * value_bytes / 16); }

}  // namespace abyssal::quant

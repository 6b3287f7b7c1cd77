// Groups of rows (the tokens of an expert), and the blocks of 128 rows that each is cut into.
//
// Group g is rows offsets[g] to offsets[g + 1]; rows from offsets[groups] on are in none. A group's
// blocks begin at its first row, wherever that is, and the last may be short. The blocks of group g
// have the numbers offsets[g] / 128 + g and on: since floor((a + n) / 128) + 1 >= floor(a / 128) +
// ceil(n / 128), no two groups share a number, and how many there are at most follows from shapes
// alone. So a grid needs neither the offsets on the host nor a prefix sum of padded lengths.
#pragma once

#include <cstdint>

#include "quant/tile.hpp"

namespace abyssal::quant {

struct RowBlock {
  int first;  // row
  int rows;   // 1 to 128, or 0 where the number is unused
  bool in_group;
};

// The block of this number; without offsets, all rows are one group. For whole warps. Numbers go
// to rows / 128 + groups, and rows of no group come after the last group, cut as if they were one.
__device__ inline RowBlock find_row_block(const int32_t* offsets, int groups, int rows,
                                          int number) {
  if (offsets == nullptr) {
    const int first = number * kTile;  // below `rows`, or this is no number
    return {first, min(kTile, rows - first), true};
  }
  // Every warp counts the groups that begin up to here, 32 at a time.
  int begun = 0;
  for (int first = 0; first <= groups; first += 32) {
    const int group = first + threadIdx.x % 32;
    const bool begins = group <= groups and offsets[group] / kTile + group <= number;
    const uint32_t all = __ballot_sync(0xFFFFFFFF, begins);
    begun += __popc(all);
    if (all != 0xFFFFFFFF) break;
  }
  const int group = begun - 1;
  const int begin = offsets[group];
  const int end = group < groups ? offsets[group + 1] : rows;
  const int64_t first = begin + int64_t{number - (begin / kTile + group)} * kTile;
  if (first >= end) return {0, 0, false};
  return {static_cast<int>(first), static_cast<int>(min(int64_t{kTile}, end - first)),
          group < groups};
}

}  // namespace abyssal::quant

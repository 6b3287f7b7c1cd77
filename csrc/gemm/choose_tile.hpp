// Which kernel computes a product, and how: a pure function of the product's shape.
//
// Every candidate (a tile, what the blocks of a cluster share, a division of K) is given a modelled
// time, and the shortest wins. The model counts cycles of a multiprocessor for a block of K
//
//   tensor     products of the tile at 4096 a cycle
//   promotion  a warpgroup's own products, then its FP32 operations and the wait between them: what
//              the other warpgroup cannot hide
//   shared     bytes that TMA writes and WGMMA reads, at 128 a cycle
//   l2         bytes that TMA fetches, at the multiprocessor's share of L2
//
// takes the largest, and adds to the tile's blocks an epilogue. Tiles of one multiprocessor add up;
// the whole is not shorter than memory needs for what is read and written once (hbm). Its constants
// and how far to trust them: docs/kernels/fp8_gemm.md.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/fp8_gemm.hpp"
#include "runtime/launch.hpp"

namespace abyssal::gemm {

// A compiled kernel's tile. Its name says the same: fp8_gemm_256x128_rows has 256x128 of d and a
// scale for each row of b.
struct Variant {
  Kernel<Params> kernel;
  int32_t m, n;
  int32_t stages;
  bool square_scales;     // b has 128x128 blocks, else 1x128
  uint32_t shared_bytes;  // of a block
};

// All of them.
const std::vector<Variant>& variants();

struct Shape {
  int64_t m, n, k;  // of all groups; with Groups::masked, m is the room of one group
  Groups groups_are = Groups::none;
  int32_t groups = 1;
  bool square_scales = true;
  bool d_is_fp32 = false;
  bool accumulate = false;
  int32_t multiprocessors = 132;
};

struct Choice {
  const Variant* variant;
  Share share;
  int32_t split_k;
  int32_t strip_n;  // units along N that are worked on together
  int32_t blocks;   // of the grid: clusters times their size
};

// What the model says of a choice. Cycles are of a multiprocessor, for one block of K or one tile.
struct Cost {
  Choice choice;
  double tensor, promotion, shared, l2;  // cycles for a block of K
  double epilogue;                       // cycles for a tile
  int64_t tiles;                         // of the product
  int64_t tiles_in_turn;                 // on the busiest multiprocessor
  double hbm;                            // cycles for the product
  double cycles;                         // for the product
};

// All candidates, the best first. Never empty for m, n, k > 0.
std::vector<Cost> rank_choices(const Shape& shape);

}  // namespace abyssal::gemm

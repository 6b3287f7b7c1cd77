// Which tiles a block works on, and in which order.
//
// The work of all groups is one list of *units*: tiles, or pairs of neighbouring tiles whose two
// blocks form a cluster and share an operand. Cluster c of C takes the units c, c + C, c + 2C, ...
// Every role walks the same list by itself, so no role waits for another to learn what is next.
//
// Within a group, units come in strips of `strip_n` along N; in a strip, M is the outer dimension:
// what runs at one time touches few rows of a and of b, which then stay in L2.
#pragma once

#include "gemm/fp8_gemm.hpp"
#include "hopper/cluster.cuh"

namespace abyssal::gemm {

struct Tile {
  int group;
  int m, n;         // of the tile's first value in its group's matrix
  int rows;         // of the group
  int row_begin;    // of the group in a and d: not 0 with Groups::rows alone
  int block_begin;  // of K, and how many of them
  int blocks;
};

// All 32 threads of a warp use it together.
template <int kTileM, int kTileN>
class Scheduler {
 public:
  __device__ explicit Scheduler(const Params& params)
      : params_(params),
        rank_(static_cast<int>(hopper::cluster_rank())),
        clusters_(static_cast<int>(gridDim.x / hopper::cluster_size())),
        unit_(static_cast<int>(blockIdx.x / hopper::cluster_size())),
        units_n_(divide_up(divide_up(params.n, kTileN), params.share == Share::a ? 2 : 1)) {
    if (divides_rows()) load_groups(0);
  }

  // The next tile; false if there is none.
  __device__ bool next(Tile& tile) {
    const int unit = unit_;
    unit_ += clusters_;
    return divides_rows() ? find_in_rows(unit, tile) : find_in_equal_groups(unit, tile);
  }

 private:
  static constexpr uint32_t kWarp = 0xFFFFFFFF;

  static __device__ int divide_up(int value, int divisor) {
    return (value + divisor - 1) / divisor;
  }

  __device__ bool divides_rows() const {
    return params_.groups_are == Groups::rows or params_.groups_are == Groups::masked;
  }

  // Units of a group along M.
  __device__ int units_m(int rows) const {
    return divide_up(divide_up(rows, kTileM), params_.share == Share::b ? 2 : 1);
  }

  __device__ bool find_in_equal_groups(int unit, Tile& tile) const {
    const int units = units_m(params_.m) * units_n_;
    const int group = unit / units;
    if (group >= params_.groups) return false;
    tile.rows = params_.m;
    tile.row_begin = 0;
    place(group, unit - group * units, tile);
    return true;
  }

  // Groups of different size: 32 of them are looked at in one step.
  __device__ bool find_in_rows(int unit, Tile& tile) {
    while (unit >= __shfl_sync(kWarp, units_until_, 31)) {
      if (first_group_ + 32 >= params_.groups) return false;
      load_groups(first_group_ + 32);
    }
    const int lane = __popc(__ballot_sync(kWarp, units_until_ <= unit));
    const int before = __shfl_sync(kWarp, units_before_, lane);
    tile.rows = __shfl_sync(kWarp, rows_, lane);
    tile.row_begin = __shfl_sync(kWarp, row_begin_, lane);
    place(first_group_ + lane, unit - before, tile);
    return true;
  }

  // The groups from `first` on, one a thread: their rows, and the units up to them. What offsets
  // or counts say beyond the tensor is cut off.
  __device__ void load_groups(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int units_so_far = first == 0 ? 0 : __shfl_sync(kWarp, units_until_, 31);
    const int group = first + lane;
    int begin = 0, end = 0;
    if (group < params_.groups) {
      const bool masked = params_.groups_are == Groups::masked;
      begin = masked ? 0 : min(max(params_.offsets[group], 0), params_.m);
      end = min(max(params_.offsets[masked ? group : group + 1], begin), params_.m);
    }
    first_group_ = first;
    rows_ = end - begin;
    row_begin_ = begin;
    const int units = units_m(rows_) * units_n_;
    units_until_ = units;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int others = __shfl_up_sync(kWarp, units_until_, distance);
      if (lane >= distance) units_until_ += others;
    }
    units_until_ += units_so_far;
    units_before_ = units_until_ - units;
  }

  // From a unit of a group to this block's tile, and to its share of K.
  __device__ void place(int group, int unit, Tile& tile) const {
    const int in_strip = params_.strip_n * units_m(tile.rows);
    const int strip = unit / in_strip * params_.strip_n;
    const int width = min(params_.strip_n, units_n_ - strip);
    const int m = unit % in_strip / width;
    const int n = strip + unit % in_strip % width;
    tile.group = group;
    tile.m = (params_.share == Share::b ? 2 * m + rank_ : m) * kTileM;
    tile.n = (params_.share == Share::a ? 2 * n + rank_ : n) * kTileN;
    tile.block_begin = 0;
    tile.blocks = params_.k_blocks;
    if (params_.groups_are == Groups::depth) {
      const int begin = params_.offsets[group], end = params_.offsets[group + 1];
      tile.block_begin = begin / kBlockK + group;
      tile.blocks = min(divide_up(end - begin, kBlockK), params_.k_blocks - tile.block_begin);
    }
    if (params_.split_k > 1) {
      const int share = divide_up(params_.k_blocks, params_.split_k);
      tile.block_begin = rank_ * share;
      tile.blocks = max(0, min(share, params_.k_blocks - tile.block_begin));
    }
  }

  const Params& params_;
  const int rank_, clusters_;
  int unit_;
  const int units_n_;
  // Of the group of this thread.
  int first_group_ = 0, rows_ = 0, row_begin_ = 0, units_before_ = 0, units_until_ = 0;
};

}  // namespace abyssal::gemm

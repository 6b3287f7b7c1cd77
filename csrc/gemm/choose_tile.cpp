#include "gemm/choose_tile.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/sizes.hpp"

namespace abyssal::gemm {
namespace {

// Cycles and bytes a cycle of a multiprocessor; the sources are in docs/kernels/fp8_gemm.md.
constexpr double kProductsPerCycle = 4096;
constexpr double kSharedBytesPerCycle = 128;
constexpr double kL2BytesPerCycle = 46.6;      // the multiprocessor's share
constexpr double kMemoryBytesPerCycle = 2500;  // of all
constexpr double kTrafficWeight = 0.03;        // of equal times, the less fetched: it costs power
constexpr double kWaveOverhead = 110;          // waiting for WGMMA, barriers, scales
constexpr double kTileOverhead = 1500;         // filling the pipeline, the epilogue's latencies
constexpr double kStoreBytesPerCycle = 64;     // of d
constexpr double kDivisionOverhead = 1200;     // two meetings of a cluster
constexpr double kPeerBytesPerCycle = 20;      // read from another block's shared memory

constexpr int kMostBlocksInCluster = 8;  // that every GPU can place

int blocks_in_cluster(Share share, int split_k) { return share == Share::none ? split_k : 2; }

// Tiles along M of all groups. How rows divide among groups is not known here: each is taken to
// end in a tile that is half full.
int64_t tiles_m(const Shape& shape, int64_t tile) {
  switch (shape.groups_are) {
    case Groups::rows:
      return std::min<int64_t>(shape.m, shape.m / tile + (shape.groups + 1) / 2 + 1);
    case Groups::masked:
    case Groups::depth:
      return shape.groups * ceil_divide(shape.m, tile);
    case Groups::none:
      break;
  }
  return ceil_divide(shape.m, tile);
}

// The width that touches the fewest rows of a and b while all clusters work.
int32_t choose_strip(const Shape& shape, const Variant& variant, Share share, int64_t clusters) {
  const int64_t unit_m = variant.m * (share == Share::b ? 2 : 1);
  const int64_t unit_n = variant.n * (share == Share::a ? 2 : 1);
  const int64_t rows =
      shape.groups_are == Groups::rows ? ceil_divide(shape.m, shape.groups) : shape.m;
  const int64_t units_m = std::max<int64_t>(1, ceil_divide(rows, unit_m));
  const int64_t units_n = ceil_divide(shape.n, unit_n);
  int64_t best = 1, least = INT64_MAX;
  for (int64_t width = 1; width <= std::min<int64_t>(units_n, clusters); ++width) {
    const int64_t height = std::min(units_m, ceil_divide(clusters, width));
    const int64_t touched = height * unit_m + width * unit_n;
    if (touched < least) least = touched, best = width;
  }
  return static_cast<int32_t>(best);
}

// Bytes that must come from memory and go there once.
double bytes_in_memory(const Shape& shape) {
  const double planes_a = shape.groups_are == Groups::masked ? shape.groups : 1;
  const bool many_b = shape.groups_are == Groups::masked or shape.groups_are == Groups::rows;
  const double planes_b = many_b ? shape.groups : 1;
  const bool many_d = shape.groups_are == Groups::masked or shape.groups_are == Groups::depth;
  const double d_bytes = (shape.d_is_fp32 ? 4 : 2) * (shape.accumulate ? 2 : 1);
  return planes_a * shape.m * shape.k + planes_b * shape.n * shape.k +
         (many_d ? shape.groups : 1) * d_bytes * shape.m * shape.n;
}

Cost estimate(const Shape& shape, const Variant& variant, Share share, int split_k) {
  const double m = variant.m, n = variant.n;
  const int64_t k_blocks = ceil_divide(shape.k, kBlockK);
  Cost cost = {};
  cost.choice = {&variant, share, split_k, 1, 0};

  cost.tensor = m * n * kBlockK / kProductsPerCycle;
  const double waves = std::max(1.0, m / 128);
  const double operations = m * n / (2 * 128) * (variant.square_scales ? 1 : 2);
  cost.promotion = cost.tensor / 2 + operations + waves * kWaveOverhead;
  const bool divides_n = variant.m == 64;
  const double read = divides_n ? 2 * m + n : m + n * m / 64;
  cost.shared = (m + n + read) * kBlockK / kSharedBytesPerCycle;
  const double fetched = (share == Share::a ? m / 2 : m) + (share == Share::b ? n / 2 : n);
  cost.l2 = fetched * kBlockK / kL2BytesPerCycle;

  const double d_bytes = m * n * (shape.d_is_fp32 ? 4 : 2) * (shape.accumulate ? 2 : 1);
  cost.epilogue = kTileOverhead + d_bytes / kStoreBytesPerCycle;
  if (split_k > 1) cost.epilogue += kDivisionOverhead + 4 * m * n / kPeerBytesPerCycle;

  const int blocks = blocks_in_cluster(share, split_k);
  const int64_t along_n = ceil_divide(shape.n, variant.n);
  const int64_t along_m = tiles_m(shape, variant.m);
  const int64_t units = ceil_divide(along_m, share == Share::b ? 2 : 1) *
                        ceil_divide(along_n, share == Share::a ? 2 : 1);
  cost.tiles = along_m * along_n;
  const int64_t most_clusters = std::max(1, shape.multiprocessors / blocks);
  cost.tiles_in_turn = ceil_divide(units, most_clusters);
  // Where K is divided, each cluster has one tile and the hardware follows with the next cluster.
  const int64_t clusters = split_k > 1 ? units : std::min(units, most_clusters);
  cost.choice.blocks = static_cast<int32_t>(clusters * blocks);
  cost.choice.strip_n = choose_strip(shape, variant, share, std::min(units, most_clusters));

  const double blocks_of_tile = shape.groups_are == Groups::depth
                                    ? static_cast<double>(k_blocks) / shape.groups
                                    : static_cast<double>(ceil_divide(k_blocks, split_k));
  const double block =
      std::max({cost.tensor, cost.promotion, cost.shared, cost.l2}) + kTrafficWeight * cost.l2;
  cost.hbm = bytes_in_memory(shape) / kMemoryBytesPerCycle;
  cost.cycles = std::max(cost.tiles_in_turn * (blocks_of_tile * block + cost.epilogue), cost.hbm);
  return cost;
}

bool fits(const Shape& shape, const Variant& variant, Share share, int split_k) {
  if (variant.square_scales != shape.square_scales) return false;
  if (share != Share::none and split_k > 1) return false;
  // A pair of tiles side by side, in a product that has such pairs.
  if (share == Share::a and shape.n <= variant.n) return false;
  if (share == Share::b and (shape.m <= variant.m or variant.m == 64)) return false;
  if (split_k == 1) return true;
  return variant.m == 64 and shape.groups_are == Groups::none and
         split_k <= ceil_divide(shape.k, kBlockK);
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
#define X(name, m, n, stages, scale_b) \
  {{"fp8_gemm", #name},                \
   m,                                  \
   n,                                  \
   stages,                             \
   ScaleB::scale_b == ScaleB::square,  \
   shared_bytes(m, n, stages, ScaleB::scale_b)},
      ABYSSAL_FP8_GEMMS(X)
#undef X
  };
  return all;
}

std::vector<Cost> rank_choices(const Shape& shape) {
  std::vector<Cost> costs;
  for (const Variant& variant : variants()) {
    for (const Share share : {Share::none, Share::a, Share::b}) {
      for (int split_k = 1; split_k <= kMostBlocksInCluster; split_k *= 2) {
        if (fits(shape, variant, share, split_k)) {
          costs.push_back(estimate(shape, variant, share, split_k));
        }
      }
    }
  }
  std::stable_sort(costs.begin(), costs.end(),
                   [](const Cost& a, const Cost& b) { return a.cycles < b.cycles; });
  return costs;
}

}  // namespace abyssal::gemm

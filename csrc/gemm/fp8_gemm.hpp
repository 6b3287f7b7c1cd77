// What host and device agree on for the FP8 GEMMs.
#pragma once

#include <cstdint>

#include "hopper/tensor_map.hpp"

namespace abyssal::gemm {

inline constexpr int kBlockK = 128;  // of K that share a scale, and are added up by tensor cores
inline constexpr int kThreads = 384;

// The kernels: name, rows and columns of d in a tile, stages, which blocks of b share a scale.
//
//   256x128   most products: the least traffic for each product
//   128x192   where N has 192s and M has few 256s
//   128x128   what remains of large ones
//   128x64    M up to 128: b is the traffic, and every multiprocessor should have some of it
//   64xN      few rows: narrow tiles so that every multiprocessor has one, and K may be divided
//
// `row` (1x128 blocks) promotes with twice the operations, and is for weight gradients. Stages fill
// what shared memory d leaves.
#define ABYSSAL_FP8_GEMMS(X)                 \
  X(fp8_gemm_256x128, 256, 128, 3, square)   \
  X(fp8_gemm_128x192, 128, 192, 4, square)   \
  X(fp8_gemm_128x128, 128, 128, 5, square)   \
  X(fp8_gemm_128x64, 128, 64, 8, square)     \
  X(fp8_gemm_64x128, 64, 128, 7, square)     \
  X(fp8_gemm_64x64, 64, 64, 10, square)      \
  X(fp8_gemm_64x32, 64, 32, 12, square)      \
  X(fp8_gemm_256x128_rows, 256, 128, 3, row) \
  X(fp8_gemm_128x128_rows, 128, 128, 5, row) \
  X(fp8_gemm_64x64_rows, 64, 64, 10, row)

// Which blocks of b share a scale: 128x128, or 1x128.
enum class ScaleB { square, row };

// Scales of b in a stage: of each column, or of each 64 columns, which all tiles begin at a
// multiple of and no 128x128 block divides.
inline constexpr int kScaleColumns = 64;
constexpr int scales_of_b(int n, ScaleB scale_b) {
  return scale_b == ScaleB::row ? n : (n + kScaleColumns - 1) / kScaleColumns;
}

// A block's shared memory: plan.cuh.
constexpr uint32_t shared_bytes(int m, int n, int stages, ScaleB scale_b) {
  const auto round_up = [](uint32_t value) { return (value + 1023) / 1024 * 1024; };
  const uint32_t d = 2 * m * n, partials = m == 64 ? 4 * m * (n + 8) : 0;
  const uint32_t codes = stages * (m + n) * kBlockK;
  const uint32_t scales = 4 * stages * (m + scales_of_b(n, scale_b));
  const uint32_t barriers = 2 * 8 * stages;
  return round_up(codes + round_up(d > partials ? d : partials) + scales + barriers);
}

// How the work falls into groups, as experts of a mixture do.
enum class Groups : int32_t {
  none,    // one product
  rows,    // group g has rows offsets[g] .. offsets[g + 1] of a and d, and matrix g of b
  masked,  // group g has the first counts[g] rows of matrix g of a and d, and matrix g of b
  depth,   // group g has a range of K, of offsets[g + 1] - offsets[g] rows padded to blocks of
           // 128 from block offsets[g] / 128 + g on, and matrix g of d: weight gradients
};

// What the two blocks of a cluster read once for both: they work on neighbouring tiles.
enum class Share : int32_t { none, a, b };

struct Params {
  // Codes: a [planes, M, K], b [planes, N, K]. Scales: a [planes, M, blocks of K], stored M
  // innermost; b the same if its blocks are 1x128. Planes are the groups where they have matrices
  // of their own, else 1.
  hopper::TensorMap a;
  hopper::TensorMap b;
  hopper::TensorMap scale_a;
  hopper::TensorMap scale_b;
  hopper::TensorMap d;  // [planes, M, N], BF16 with beta 0

  const float* square_scale_b;  // [planes, ceil(N / 128), ceil(K / 128)] of b's 128x128 blocks
  int64_t square_scale_plane;   // values from one plane to the next, ...
  int64_t square_scale_n;
  int64_t square_scale_k;

  void* d_values;    // [planes, M, N] BF16 or FP32
  int64_t d_plane;   // values from one plane to the next
  int64_t d_stride;  // values from one row to the next, >= N

  const int32_t* offsets;  // [groups + 1], or counts [groups] of Groups::masked; else null
  Groups groups_are;
  int32_t groups;
  int32_t m;  // rows; with Groups::rows of all groups, with Groups::masked room for them
  int32_t n;
  int32_t k_blocks;  // of 128; with Groups::depth of all groups

  Share share;
  int32_t split_k;      // blocks of a cluster that divide K among them; 1: none do
  int32_t strip_n;      // tiles (pairs, if a is shared) along N that are worked on together
  uint32_t d_is_fp32;   // else BF16
  uint32_t accumulate;  // beta: 0 or 1
};

}  // namespace abyssal::gemm

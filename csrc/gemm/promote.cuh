// The products of one block of K, scaled and added to FP32 sums on CUDA cores.
//
//   sums[m, n] = fma(partial[m, n], fl32(scale_a[m] * scale_b[n]), sums[m, n])
//
// partial is what tensor cores added up over 128 of K, with 14 bits (docs/emulator.md); sums keep
// 24. A thread has rows r and r + 8 of its warp's 16, in each 8 columns two neighbouring ones.
#pragma once

#include "gemm/plan.cuh"
#include "hopper/wgmma.cuh"

namespace abyssal::gemm {

// The scales of a that a thread needs for a wave.
struct RowScales {
  float upper, lower;  // of rows r and r + 8
};

__device__ __forceinline__ RowScales load_row_scales(const float* scale_a) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  return {scale_a[hopper::accumulator_row(thread, 0)], scale_a[hopper::accumulator_row(thread, 2)]};
}

// Scales of b whose blocks are 128x128: one for 64 columns of the tile.
template <typename Plan>
struct SquareScales {
  static constexpr int kColumns = kScaleColumns;
  static constexpr int kScales = (Plan::kPartN + kColumns - 1) / kColumns;
  float values[kScales];

  // `column`: of the tile, where the warpgroup's part begins.
  __device__ __forceinline__ SquareScales(const float* scale_b, int column) {
#pragma unroll
    for (int i = 0; i < kScales; ++i) values[i] = scale_b[column / kColumns + i];
  }

  __device__ __forceinline__ void promote(const float (&partial)[Plan::kSums], RowScales scale_a,
                                          float (&sums)[Plan::kSums]) const {
    constexpr int kSumsOfScale = Plan::kSums / kScales;
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const float upper = __fmul_rn(scale_a.upper, values[i]);
      const float lower = __fmul_rn(scale_a.lower, values[i]);
#pragma unroll
      for (int j = i * kSumsOfScale; j < (i + 1) * kSumsOfScale; ++j) {
        sums[j] = __fmaf_rn(partial[j], j / 2 % 2 ? lower : upper, sums[j]);
      }
    }
  }
};

// Scales of b whose blocks are 1x128: one a column, read where they are used.
template <typename Plan>
struct ColumnScales {
  const float* scale_b;

  __device__ __forceinline__ ColumnScales(const float* scale_b, int column)
      : scale_b(scale_b + column) {}

  __device__ __forceinline__ void promote(const float (&partial)[Plan::kSums], RowScales scale_a,
                                          float (&sums)[Plan::kSums]) const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int j = 0; j < Plan::kSums; j += 4) {
      const float2 scale =
          *reinterpret_cast<const float2*>(scale_b + hopper::accumulator_column(thread, j));
      sums[j] = __fmaf_rn(partial[j], __fmul_rn(scale_a.upper, scale.x), sums[j]);
      sums[j + 1] = __fmaf_rn(partial[j + 1], __fmul_rn(scale_a.upper, scale.y), sums[j + 1]);
      sums[j + 2] = __fmaf_rn(partial[j + 2], __fmul_rn(scale_a.lower, scale.x), sums[j + 2]);
      sums[j + 3] = __fmaf_rn(partial[j + 3], __fmul_rn(scale_a.lower, scale.y), sums[j + 3]);
    }
  }
};

}  // namespace abyssal::gemm

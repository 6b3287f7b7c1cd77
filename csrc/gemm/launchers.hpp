// The FP8 GEMMs, as host code calls them.
#pragma once

#include <vector>

#include "gemm/choose_tile.hpp"

namespace abyssal {

// Every entry point of the family, to load them ahead of a launch.
std::vector<EntryPoint> gemm_kernels();

namespace gemm {

// Matrices [planes, rows, columns] in memory; strides are in values.
struct Matrices {
  const void* values;
  int64_t planes, rows, columns;
  int64_t plane_stride, row_stride, column_stride;
};

// d [planes, M, N] = d * accumulate + a [planes, M, K] b [planes, N, K]^T, as fp8_gemm.cu says.
struct Product {
  Matrices a, scale_a;  // scale_a [planes, M, blocks of K], M contiguous
  Matrices b, scale_b;  // scale_b [planes, ceil(N / 128) or N, blocks of K]; of N, N contiguous
  Matrices d;
  bool square_scales;
  bool d_is_fp32;
  bool accumulate;
  Groups groups_are;
  int32_t groups;
  const int32_t* offsets;  // or counts, or null
};

Shape shape_of(const Product& product, int32_t multiprocessors);

// What a launch consists of, besides its buffers.
struct Prepared {
  const Kernel<Params>* kernel;
  Grid grid;
  Params params;
};

// Of `choice`, or of the best one if it is null. Throws DeviceError.
Prepared prepare(const Stream& stream, const Product& product, const Choice* choice);

// Queues the product; of `choice`, or of the best one if it is null. Throws DeviceError.
void launch(const Stream& stream, const Product& product, const Choice* choice);

}  // namespace gemm
}  // namespace abyssal

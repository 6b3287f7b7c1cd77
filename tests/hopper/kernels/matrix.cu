// ldmatrix and stmatrix, one warp. Row r of the matrices lies at 16 * place[r] in shared memory.

#include "hopper/matrix.cuh"

using namespace abyssal::hopper;

namespace {

// image [32 places, 16 bytes] -> registers [32 threads, kMatrices]
template <int kMatrices, Transpose kTranspose>
__device__ void load(const uint32_t* image, const int* place, uint32_t* registers) {
  __shared__ alignas(16) uint32_t shared[128];
  for (int i = threadIdx.x; i < 128; i += 32) shared[i] = image[i];
  __syncwarp();
  uint32_t values[kMatrices];
  load_matrix<kTranspose>(values, shared + 4 * place[threadIdx.x]);
#pragma unroll
  for (int i = 0; i < kMatrices; ++i) registers[threadIdx.x * kMatrices + i] = values[i];
}

// registers [32 threads, kMatrices] -> image [32 places, 16 bytes]; other places keep `image`.
template <int kMatrices, Transpose kTranspose>
__device__ void store(const uint32_t* registers, const int* place, uint32_t* image) {
  __shared__ alignas(16) uint32_t shared[128];
  for (int i = threadIdx.x; i < 128; i += 32) shared[i] = image[i];
  __syncwarp();
  uint32_t values[kMatrices];
#pragma unroll
  for (int i = 0; i < kMatrices; ++i) values[i] = registers[threadIdx.x * kMatrices + i];
  store_matrix<kTranspose>(shared + 4 * place[threadIdx.x], values);
  __syncwarp();
  for (int i = threadIdx.x; i < 128; i += 32) image[i] = shared[i];
}

}  // namespace

#define ENTRIES(n, suffix, transpose)                                                          \
  extern "C" __global__ void load_matrix_x##n##suffix(const uint32_t* image, const int* place, \
                                                      uint32_t* registers) {                   \
    load<n, Transpose::transpose>(image, place, registers);                                    \
  }                                                                                            \
  extern "C" __global__ void store_matrix_x##n##suffix(const uint32_t* registers,              \
                                                       const int* place, uint32_t* image) {    \
    store<n, Transpose::transpose>(registers, place, image);                                   \
  }

ENTRIES(1, , no)
ENTRIES(2, , no)
ENTRIES(4, , no)
ENTRIES(1, _transposed, yes)
ENTRIES(2, _transposed, yes)
ENTRIES(4, _transposed, yes)

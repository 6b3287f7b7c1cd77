// WGMMA over tiles of 4 instructions along K, in every layout of its operands; d = a b^T.
//
// a and b come as bytes in the panels of OperandTile. d: [64, N].

#include "hopper/fence.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

namespace {

template <int kN, typename Type, Major kMajorA, Swizzle kSwizzleA, Major kMajorB, Swizzle kSwizzleB>
__device__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
  constexpr int kK = 4 * kWgmmaK<Type>;
  using TileA = OperandTile<kMajorA, kSwizzleA, 64, kK, Type::kBytes>;
  using TileB = OperandTile<kMajorB, kSwizzleB, kN, kK, Type::kBytes>;
  extern __shared__ __align__(1024) uint32_t tiles[];
  uint32_t* shared_a = tiles;
  uint32_t* shared_b = tiles + TileA::kBytes / 4;
  for (int i = threadIdx.x; i < TileA::kBytes / 4; i += 128) shared_a[i] = a[i];
  for (int i = threadIdx.x; i < TileB::kBytes / 4; i += 128) shared_b[i] = b[i];
  fence_proxy_async_shared();
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x);
  float sums[kN / 2];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kK; k += kWgmmaK<Type>) {
    wgmma<kN, Type, Type, kMajorA, kMajorB>(sums, TileA::descriptor(shared_a, 0, k),
                                            TileB::descriptor(shared_b, 0, k), k != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[accumulator_row(thread, i) * kN + accumulator_column(thread, i)] = sums[i];
  }
}

}  // namespace

#define ENTRY(type, Type, n, major_a, swizzle_a, major_b, swizzle_b)                           \
  extern "C" __global__ void __launch_bounds__(128)                                            \
      wgmma_##type##_n##n##_##major_a##_##swizzle_a##_##major_b##_##swizzle_b(                 \
          const uint32_t* a, const uint32_t* b, float* d) {                                    \
    multiply<n, Type, Major::major_a, Swizzle::swizzle_a, Major::major_b, Swizzle::swizzle_b>( \
        a, b, d);                                                                              \
  }
#define MAJORS(type, Type, n, swizzle)          \
  ENTRY(type, Type, n, k, swizzle, k, swizzle)  \
  ENTRY(type, Type, n, k, swizzle, mn, swizzle) \
  ENTRY(type, Type, n, mn, swizzle, k, swizzle) \
  ENTRY(type, Type, n, mn, swizzle, mn, swizzle)

MAJORS(bf16, Bf16, 64, none)
MAJORS(bf16, Bf16, 64, b32)
MAJORS(bf16, Bf16, 64, b64)
MAJORS(bf16, Bf16, 64, b128)
// Several panels of B along N; 256 values of a head beside 64 rows.
ENTRY(bf16, Bf16, 256, k, b128, mn, b128)
ENTRY(bf16, Bf16, 256, k, b128, k, b128)
// Operands that differ in their swizzle.
ENTRY(bf16, Bf16, 64, k, b128, mn, b64)
ENTRY(bf16, Bf16, 64, mn, none, k, b32)
ENTRY(f16, Fp16, 128, k, b128, mn, b128)
ENTRY(f16, Fp16, 128, mn, b64, k, b64)
ENTRY(e4m3, E4m3, 128, k, none, k, none)
ENTRY(e4m3, E4m3, 128, k, b32, k, b32)
ENTRY(e4m3, E4m3, 128, k, b64, k, b64)
ENTRY(e4m3, E4m3, 128, k, b128, k, b128)
ENTRY(tf32, Tf32, 64, k, none, k, none)
ENTRY(tf32, Tf32, 64, k, b32, k, b32)
ENTRY(tf32, Tf32, 64, k, b64, k, b64)
ENTRY(tf32, Tf32, 64, k, b128, k, b128)

// One WGMMA of every shape and type: d = a b^T + (accumulate ? c : 0), 32 bytes of K.
//
// a [64, 32 bytes] and b [N, 32 bytes] come as bytes that lie as a 32-byte swizzle lays them.
// c and d: [64, N].

#include "hopper/fence.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

namespace {

template <int kN, typename A, typename B>
__device__ void multiply(const uint32_t* a, const uint32_t* b, const float* c, int accumulate,
                         float* d) {
  using TileA = OperandTile<Major::k, Swizzle::b32, 64, kWgmmaK<A>, A::kBytes>;
  using TileB = OperandTile<Major::k, Swizzle::b32, kN, kWgmmaK<B>, B::kBytes>;
  __shared__ alignas(1024) uint32_t shared_a[TileA::kBytes / 4];
  __shared__ alignas(1024) uint32_t shared_b[TileB::kBytes / 4];
  for (int i = threadIdx.x; i < TileA::kBytes / 4; i += 128) shared_a[i] = a[i];
  for (int i = threadIdx.x; i < TileB::kBytes / 4; i += 128) shared_b[i] = b[i];
  fence_proxy_async_shared();
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x);
  float sums[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    sums[i] = c[accumulator_row(thread, i) * kN + accumulator_column(thread, i)];
  }
  wgmma_fence();
  wgmma<kN, A, B>(sums, TileA::descriptor(shared_a), TileB::descriptor(shared_b), accumulate != 0);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[accumulator_row(thread, i) * kN + accumulator_column(thread, i)] = sums[i];
  }
}

}  // namespace

#define ENTRY(name, n, A, B)                                                            \
  extern "C" __global__ void __launch_bounds__(128) wgmma_##name##_n##n(                \
      const uint32_t* a, const uint32_t* b, const float* c, int accumulate, float* d) { \
    multiply<n, A, B>(a, b, c, accumulate, d);                                          \
  }
#define ENTRIES(name, A, B) \
  ENTRY(name, 8, A, B)      \
  ENTRY(name, 16, A, B)     \
  ENTRY(name, 32, A, B)     \
  ENTRY(name, 64, A, B)     \
  ENTRY(name, 96, A, B)     \
  ENTRY(name, 128, A, B)    \
  ENTRY(name, 160, A, B)    \
  ENTRY(name, 192, A, B)    \
  ENTRY(name, 256, A, B)

ENTRIES(e4m3, E4m3, E4m3)
ENTRIES(bf16, Bf16, Bf16)
ENTRY(e5m2, 64, E5m2, E5m2)
ENTRY(e4m3_e5m2, 64, E4m3, E5m2)
ENTRY(e5m2_e4m3, 64, E5m2, E4m3)
ENTRY(f16, 64, Fp16, Fp16)
ENTRY(f16, 256, Fp16, Fp16)
ENTRY(tf32, 64, Tf32, Tf32)
ENTRY(tf32, 256, Tf32, Tf32)

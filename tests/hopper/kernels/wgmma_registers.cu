// WGMMA with A in registers, and with several groups in flight.

#include "hopper/fence.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

namespace {

template <typename Tile>
__device__ void copy_tile(uint32_t* shared, const uint32_t* tile) {
  for (int i = threadIdx.x; i < Tile::kBytes / 4; i += 128) shared[i] = tile[i];
}

template <int kN>
__device__ void store(const float (&sums)[kN / 2], float* d) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[accumulator_row(thread, i) * kN + accumulator_column(thread, i)] = sums[i];
  }
}

// d = a b^T over 4 instructions along K. a [64, 128 bytes], rows one behind the other; b in panels
// with the 128-byte swizzle.
template <int kN, typename Type, Major kMajorB>
__device__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
  constexpr int kK = 4 * kWgmmaK<Type>;
  using TileB = OperandTile<kMajorB, Swizzle::b128, kN, kK, Type::kBytes>;
  extern __shared__ __align__(1024) uint32_t shared_b[];
  copy_tile<TileB>(shared_b, b);
  fence_proxy_async_shared();
  __syncthreads();

  // Word (row, column) of an instruction's 64 x 8 words; the same for all types.
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t fragments[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (q % 2);
      fragments[step][q] = a[row * 32 + step * 8 + thread % 4 + q / 2 * 4];
    }
  }
  float sums[kN / 2];
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma<kN, Type, Type, kMajorB>(sums, fragments[step],
                                   TileB::descriptor(shared_b, 0, step * kWgmmaK<Type>), step != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  store<kN>(sums, d);
}

}  // namespace

#define ENTRY(type, Type, n, major)                                                             \
  extern "C" __global__ void __launch_bounds__(128)                                             \
      wgmma_registers_##type##_n##n##_##major(const uint32_t* a, const uint32_t* b, float* d) { \
    multiply<n, Type, Major::major>(a, b, d);                                                   \
  }

ENTRY(bf16, Bf16, 64, k)
ENTRY(bf16, Bf16, 256, mn)
ENTRY(f16, Fp16, 64, mn)
ENTRY(e4m3, E4m3, 128, k)
ENTRY(tf32, Tf32, 64, k)

// Two groups in flight: the first product is used while the second runs.
//   d0 = a b0^T,  d1 = a b1^T, K = 128 of E4M3; then d0 is doubled before d1 is complete.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_two_groups(const uint32_t* a, const uint32_t* b0, const uint32_t* b1, float* d0,
                     float* d1) {
  using TileA = OperandTile<Major::k, Swizzle::b128, 64, 128, 1>;
  using TileB = OperandTile<Major::k, Swizzle::b128, 64, 128, 1>;
  __shared__ alignas(1024) uint32_t tiles[3][TileB::kBytes / 4];
  copy_tile<TileA>(tiles[0], a);
  copy_tile<TileB>(tiles[1], b0);
  copy_tile<TileB>(tiles[2], b1);
  fence_proxy_async_shared();
  __syncthreads();
  float first[32], second[32];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 128; k += 32) {
    wgmma<64, E4m3>(first, TileA::descriptor(tiles[0], 0, k), TileB::descriptor(tiles[1], 0, k),
                    k != 0);
  }
  wgmma_commit();
#pragma unroll
  for (int k = 0; k < 128; k += 32) {
    wgmma<64, E4m3>(second, TileA::descriptor(tiles[0], 0, k), TileB::descriptor(tiles[2], 0, k),
                    k != 0);
  }
  wgmma_commit();
  wgmma_wait<1>();
  pin_registers(first);
#pragma unroll
  for (int i = 0; i < 32; ++i) first[i] *= 2;
  store<64>(first, d0);
  wgmma_wait<0>();
  pin_registers(second);
  store<64>(second, d1);
}

// Promotion: every 128 of K a fresh sum, added in FP32. a [blocks][64, 128], b [blocks][64, 128].
extern "C" __global__ void __launch_bounds__(128)
    wgmma_promote(const uint32_t* a, const uint32_t* b, int blocks, float* d) {
  using Tile = OperandTile<Major::k, Swizzle::b128, 64, 128, 1>;
  __shared__ alignas(1024) uint32_t tiles[2][Tile::kBytes / 4];
  float total[32] = {};
  for (int block = 0; block < blocks; ++block) {
    copy_tile<Tile>(tiles[0], a + block * Tile::kBytes / 4);
    copy_tile<Tile>(tiles[1], b + block * Tile::kBytes / 4);
    fence_proxy_async_shared();
    __syncthreads();
    float sums[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 128; k += 32) {
      wgmma<64, E4m3>(sums, Tile::descriptor(tiles[0], 0, k), Tile::descriptor(tiles[1], 0, k),
                      k != 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 32; ++i) total[i] += sums[i];
    __syncthreads();  // all warps are done with the tiles
  }
  store<64>(total, d);
}

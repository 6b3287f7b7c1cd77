// Bugs around WGMMA. d [64, 16] = a [64, 64] b [16, 64]^T in BF16 with the 128-byte swizzle.

#include "planted.cuh"

namespace {

using TileA = OperandTile<Major::k, Swizzle::b128, 64, 64, 2>;
using TileB = OperandTile<Major::k, Swizzle::b128, 16, 64, 2>;
constexpr int kN = 16;

struct Shared {
  alignas(1024) uint32_t a[TileA::kBytes / 4];
  alignas(1024) uint32_t b[2][TileB::kBytes / 4];
  Mbarrier full, empty;
};

__device__ __forceinline__ void copy(uint32_t* to, const uint32_t* from, int words) {
  for (int i = thread_index(); i < words; i += 128) to[i] = from[i];
}

// What is wrong, if anything.
enum class Wrong {
  nothing,
  no_proxy_fence,
  no_register_fence,
  no_wait,
  wait_for_one_less,
  no_commit,
  overwrites_b,
  b_uninitialised,
  descriptor_per_warp,
  beyond_shared_memory,
  scale_per_warp,
  accumulator_between,
};

template <Wrong kWrong>
__device__ __forceinline__ void product(const uint32_t* a, const uint32_t* b, float* d) {
  constexpr bool kBeyond = kWrong == Wrong::beyond_shared_memory;
  __shared__ Shared shared;
  const int thread = thread_index();
  copy(shared.a, a, TileA::kBytes / 4);
  if constexpr (kWrong == Wrong::b_uninitialised) {
    copy(shared.b[0], b, TileB::kBytes / 8);
  } else {
    copy(shared.b[0], b, TileB::kBytes / 4);
  }
  copy(shared.b[1], b, TileB::kBytes / 4);
  if constexpr (kWrong != Wrong::no_proxy_fence) fence_proxy_async_shared();
  __syncthreads();

  // Of the place of the tiles no compiler knows anything.
  const uint32_t* tile_a = shared.a;
  const uint32_t* tile_b = shared.b[0];
  if constexpr (kWrong == Wrong::descriptor_per_warp) tile_b = shared.b[thread / 32 % 2];
  float sums[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sums[i] = static_cast<float>(i);
  pin_registers(sums);  // or the compiler writes them behind the fence
  if constexpr (kWrong != Wrong::no_register_fence) wgmma_fence();
#pragma unroll
  for (int k = 0; k < 64; k += 16) {
    const uint64_t of_a = TileA::descriptor(tile_a, 0, k) + (kBeyond ? 0x3800 : 0);
    bool accumulates = true;
    if constexpr (kWrong == Wrong::scale_per_warp) accumulates = thread < 64;
    wgmma<kN, Bf16>(sums, of_a, TileB::descriptor(tile_b, 0, k), accumulates);  // FAULT product
    if constexpr (kWrong == Wrong::accumulator_between) {
      if (k == 16) {
        pin_registers(sums);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) sums[i] += 1;  // FAULT product
        pin_registers(sums);
      }
    }
  }
  if constexpr (kWrong != Wrong::no_commit) wgmma_commit();
  if constexpr (kWrong == Wrong::overwrites_b) shared.b[0][thread] = 0;  // FAULT product
  if constexpr (kWrong == Wrong::wait_for_one_less) {
    wgmma_wait<1>();
  } else if constexpr (kWrong != Wrong::no_wait) {
    wgmma_wait<0>();
  }
  pin_registers(sums);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[accumulator_row(thread, i) * kN + accumulator_column(thread, i)] = sums[i];  // FAULT product
  }
  if constexpr (kWrong == Wrong::no_wait or kWrong == Wrong::no_commit) {
    wgmma_commit();
    wgmma_wait<0>();
  }
}

#define PRODUCT(name)                                                         \
  template <bool kPlanted>                                                    \
  __device__ void name##_of(const uint32_t* a, const uint32_t* b, float* d) { \
    product<kPlanted ? Wrong::name : Wrong::nothing>(a, b, d);                \
  }
PRODUCT(no_proxy_fence)
PRODUCT(no_register_fence)
PRODUCT(no_wait)
PRODUCT(wait_for_one_less)
PRODUCT(no_commit)
PRODUCT(overwrites_b)
PRODUCT(b_uninitialised)
PRODUCT(descriptor_per_warp)
PRODUCT(beyond_shared_memory)
PRODUCT(scale_per_warp)
PRODUCT(accumulator_between)

// A in registers, for 16 of K. Planted: the registers change before the wait.
template <bool kPlanted>
__device__ void operand_changed_of(const uint32_t* a, const uint32_t* b, float* d) {
  __shared__ Shared shared;
  const int thread = thread_index();
  copy(shared.b[0], b, TileB::kBytes / 4);
  fence_proxy_async_shared();
  __syncthreads();
  uint32_t fragment[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) fragment[i] = a[4 * thread + i];
  float sums[kN / 2];
  wgmma_fence();
  wgmma<kN, Bf16>(sums, fragment, TileB::descriptor(shared.b[0]), false);  // FAULT operand_changed
  wgmma_commit();
  if constexpr (kPlanted) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      asm volatile("xor.b32 %0, %0, 1;" : "+r"(fragment[i])::"memory");  // FAULT operand_changed
    }
  }
  wgmma_wait<0>();
  pin_registers(sums);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[accumulator_row(thread, i) * kN + accumulator_column(thread, i)] =
        sums[i] + (kPlanted ? static_cast<float>(fragment[0] & 0) : 0);
  }
}

// Tiles of B by bulk copies into one buffer, one warpgroup of consumers and a warp of a producer.
// Planted: the buffer is given back before the products have read it.
template <bool kPlanted>
__device__ void gives_back_too_early_of(const uint32_t* a, const uint32_t* b, int tiles, float* d) {
  __shared__ Shared shared;
  const int thread = thread_index();
  make_barrier(&shared.full, 1);
  make_barrier(&shared.empty, 128);
  if (thread < 128) copy(shared.a, a, TileA::kBytes / 4);
  fence_proxy_async_shared();
  __syncthreads();
  if (thread >= 128) {
    if (thread > 128) return;
    for (int tile = 0; tile < tiles; ++tile) {
      mbarrier_wait(&shared.empty, (tile % 2) ^ 1);
      mbarrier_arrive_expect_tx(&shared.full, TileB::kBytes);
      // FAULT gives_back_too_early
      bulk_load(shared.b[0], b + tile * TileB::kBytes / 4, TileB::kBytes, &shared.full);
    }
    return;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    float sums[kN / 2];
    mbarrier_wait(&shared.full, tile % 2);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
      // FAULT gives_back_too_early
      wgmma<kN, Bf16>(sums, TileA::descriptor(shared.a, 0, k), TileB::descriptor(shared.b[0], 0, k),
                      k != 0);
    }
    wgmma_commit();
    if constexpr (kPlanted) mbarrier_arrive(&shared.empty);
    wgmma_wait<0>();
    if constexpr (not kPlanted) mbarrier_arrive(&shared.empty);
    pin_registers(sums);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      d[(tile * 64 + accumulator_row(thread, i)) * kN + accumulator_column(thread, i)] = sums[i];
    }
  }
}

}  // namespace

#define WGMMA(name) PAIR(name, (const uint32_t* a, const uint32_t* b, float* d), a, b, d)

WGMMA(no_proxy_fence)
WGMMA(no_register_fence)
WGMMA(no_wait)
WGMMA(wait_for_one_less)
WGMMA(no_commit)
WGMMA(overwrites_b)
WGMMA(b_uninitialised)
WGMMA(descriptor_per_warp)
WGMMA(beyond_shared_memory)
WGMMA(scale_per_warp)
WGMMA(accumulator_between)
WGMMA(operand_changed)
PAIR(gives_back_too_early, (const uint32_t* a, const uint32_t* b, int tiles, float* d), a, b, tiles,
     d)

// How many cycles WGMMA takes: alone, beside copies, beside FFMA, and two warpgroups in turn.
//
// Cycles are clock64 of the multiprocessor. The operands' values do not matter to them.

#include "hopper/bulk.cuh"
#include "hopper/fence.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kStages = 4, kStageBytes = 16384;

template <int kN, typename Type>
struct Shared {
  using TileA = OperandTile<Major::k, Swizzle::b128, 64, 128 / Type::kBytes, Type::kBytes>;
  using TileB = OperandTile<Major::k, Swizzle::b128, kN, 128 / Type::kBytes, Type::kBytes>;
  alignas(1024) uint32_t a[TileA::kBytes / 4];
  alignas(1024) uint32_t b[TileB::kBytes / 4];
  alignas(128) uint8_t stage[kStages][kStageBytes];
  Mbarrier full[kStages], done;
};

// Numbers of both signs and some octaves, no NaN in any type.
template <typename S>
__device__ void prepare(S& shared) {
  for (uint32_t i = threadIdx.x; i < sizeof(shared.a) / 4; i += blockDim.x) {
    shared.a[i] = i * 2654435761u & 0xBFBFBFBF;
  }
  for (uint32_t i = threadIdx.x; i < sizeof(shared.b) / 4; i += blockDim.x) {
    shared.b[i] = i * 2246822519u & 0xBFBFBFBF;
  }
  if (threadIdx.x == 0) {
    for (Mbarrier& barrier : shared.full) mbarrier_init(&barrier, 1);
    mbarrier_init(&shared.done, 1);
    fence_mbarrier_init();
  }
  fence_proxy_async_shared();
  __syncthreads();
}

// One group: 4 instructions, 128 bytes of K.
template <int kN, typename Type>
__device__ __forceinline__ void multiply(Shared<kN, Type>& shared, float (&sums)[kN / 2]) {
  using S = Shared<kN, Type>;
#pragma unroll
  for (int k = 0; k < 128 / Type::kBytes; k += kWgmmaK<Type>) {
    wgmma<kN, Type>(sums, S::TileA::descriptor(shared.a, 0, k),
                    S::TileB::descriptor(shared.b, 0, k), true);
  }
  wgmma_commit();
}

// Loads 16 KB again and again, 4 in flight, until the products are done. Returns the bytes.
template <typename S>
__device__ int64_t load_until_done(S& shared, const uint8_t* source) {
  int64_t copies = 0;
  while (not mbarrier_test_wait(&shared.done, 0)) {
    const int stage = static_cast<int>(copies % kStages);
    const auto round = static_cast<uint32_t>(copies / kStages);
    if (round > 0) mbarrier_wait(&shared.full[stage], (round - 1) & 1);
    mbarrier_arrive_expect_tx(&shared.full[stage], kStageBytes);
    bulk_load(shared.stage[stage], source + copies % 64 * kStageBytes, kStageBytes,
              &shared.full[stage]);
    ++copies;
  }
  for (int64_t copy = copies < kStages ? 0 : copies - kStages; copy < copies; ++copy) {
    mbarrier_wait(&shared.full[copy % kStages], static_cast<uint32_t>(copy / kStages) & 1);
  }
  return copies * kStageBytes;
}

// FFMA with kChains chains a thread until the products are done: with a latency of 4 cycles, a
// warp offers kChains / 4 of a sub-partition's rate. Returns the FFMAs of a thread.
template <int kChains>
__device__ int64_t fma_until_done(Mbarrier* done, float& sink) {
  float values[kChains] = {};
  int64_t count = 0;
  do {
#pragma unroll
    for (int i = 0; i < 64 / kChains; ++i) {
#pragma unroll
      for (float& value : values) value = __fmaf_rn(value, 0.5f, 1.0f);
    }
    count += 64;
  } while (not mbarrier_test_wait(done, 0));
  for (float value : values) sink += value;
  return count;
}

// Warpgroup 0 multiplies; warpgroup 1 keeps it company: 0 not at all, 1 by loads, 2, 3, 4 by FFMA
// at full, half and a quarter of the rate. out: cycles of all products, bytes loaded and FFMAs of
// a thread meanwhile. source: 1 MB.
template <int kN, typename Type>
__device__ void rate(const uint8_t* source, int groups, int company, int64_t* out, float* sink) {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kN, Type>*>(memory);
  prepare(shared);
  float total = 0;
  if (threadIdx.x < 128) {
    float sums[kN / 2] = {};
    const int64_t begin = clock64();
    for (int group = 0; group < groups; ++group) {
      wgmma_fence();  // once a group, or ptxas puts one in (C7519)
      multiply<kN, Type>(shared, sums);
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    const int64_t end = clock64();
    pin_registers(sums);
    if (threadIdx.x == 0) {
      out[blockIdx.x * 3] = end - begin;
      mbarrier_arrive(&shared.done);
    }
    for (float sum : sums) total += sum;
  } else {
    int64_t bytes = 0, fmas = 0;
    if (company == 1 and threadIdx.x == 128) bytes = load_until_done(shared, source);
    if (company == 2) fmas = fma_until_done<4>(&shared.done, total);
    if (company == 3) fmas = fma_until_done<2>(&shared.done, total);
    if (company == 4) fmas = fma_until_done<1>(&shared.done, total);
    if (threadIdx.x == 128) {
      out[blockIdx.x * 3 + 1] = bytes;
      out[blockIdx.x * 3 + 2] = fmas;
    }
  }
  sink[blockIdx.x * 256 + threadIdx.x] = total;
}

// Two warpgroups, each `groups` times 4 instructions and a wait. out [2, groups, 2]: begin and end.
template <int kN, typename Type>
__device__ void turns(int groups, int64_t* out, float* sink) {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kN, Type>*>(memory);
  prepare(shared);
  float sums[kN / 2] = {};
  for (int group = 0; group < groups; ++group) {
    const int64_t begin = clock64();
    wgmma_fence();
    multiply<kN, Type>(shared, sums);
    wgmma_wait<0>();
    const int64_t end = clock64();
    if (threadIdx.x % 128 == 0) {
      int64_t* stamps = out + (threadIdx.x / 128 * groups + group) * 2;
      stamps[0] = begin;
      stamps[1] = end;
    }
  }
  pin_registers(sums);
  float total = 0;
  for (float sum : sums) total += sum;
  sink[threadIdx.x] = total;
}

}  // namespace

#define ENTRIES(type, Type, n)                                                     \
  extern "C" __global__ void __launch_bounds__(256, 1) time_wgmma_##type##_n##n(   \
      const uint8_t* source, int groups, int company, int64_t* out, float* sink) { \
    rate<n, Type>(source, groups, company, out, sink);                             \
  }                                                                                \
  extern "C" __global__ void __launch_bounds__(256, 1)                             \
      time_turns_##type##_n##n(int groups, int64_t* out, float* sink) {            \
    turns<n, Type>(groups, out, sink);                                             \
  }

ENTRIES(e4m3, E4m3, 64)
ENTRIES(e4m3, E4m3, 128)
ENTRIES(e4m3, E4m3, 192)
ENTRIES(e4m3, E4m3, 256)
ENTRIES(bf16, Bf16, 64)
ENTRIES(bf16, Bf16, 128)
ENTRIES(bf16, Bf16, 192)
ENTRIES(bf16, Bf16, 256)

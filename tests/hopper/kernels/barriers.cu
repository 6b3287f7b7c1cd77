// mbarriers and named barriers within a block, leaders, and roles with registers of their own.

#include "hopper/bulk.cuh"
#include "hopper/fence.cuh"
#include "hopper/named_barrier.cuh"
#include "hopper/warp.cuh"

using namespace abyssal::hopper;

// 128 threads hand values round, `rounds` times, by one mbarrier for "written" and one for "read":
// each round thread t takes what thread t + 1 has and adds 1. values [128] -> out [128].
extern "C" __global__ void mbarrier_rounds(const int* values, int rounds, int* out) {
  __shared__ int shared[128];
  __shared__ Mbarrier written, read;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    mbarrier_init(&written, 128);
    mbarrier_init(&read, 4);  // one arrival a warp
  }
  __syncthreads();
  int value = values[thread];
  for (int round = 0; round < rounds; ++round) {
    shared[thread] = value;
    mbarrier_arrive(&written);
    mbarrier_wait(&written, round % 2);
    value = shared[(thread + 1) % 128] + 1;
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(&read);
    mbarrier_wait(&read, round % 2);
  }
  out[thread] = value;
}

// Arrivals by count, looks without waiting, and an object made anew. One thread.
// out: [before any arrival, parity 1 before, after 2 of 3, after 3, parity 1 after, second object]
extern "C" __global__ void mbarrier_looks(uint32_t* out) {
  __shared__ Mbarrier barrier;
  if (threadIdx.x != 0) return;
  mbarrier_init(&barrier, 3);
  out[0] = mbarrier_test_wait(&barrier, 0);
  out[1] = mbarrier_test_wait(&barrier, 1);
  mbarrier_arrive(&barrier, 2);
  out[2] = mbarrier_test_wait(&barrier, 0);
  mbarrier_arrive(&barrier);
  mbarrier_wait(&barrier, 0);
  out[3] = mbarrier_test_wait(&barrier, 0);
  out[4] = mbarrier_test_wait(&barrier, 1);
  mbarrier_invalidate(&barrier);
  mbarrier_init(&barrier, 1);
  mbarrier_arrive(&barrier);
  mbarrier_wait(&barrier, 0);
  out[5] = 1;
}

// Warps 0 and 1 write tiles of 64 values, warps 2 and 3 read them: barrier 1 says full, barrier 2
// says empty. in [rounds, 64] -> out [rounds, 64], doubled and reversed.
extern "C" __global__ void named_barrier_handoff(const int* in, int rounds, int* out) {
  constexpr uint32_t kFull = 1, kEmpty = 2, kThreads = 128;
  __shared__ int tile[64];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 64) {
    for (int round = 0; round < rounds; ++round) {
      if (round > 0) named_barrier_sync(kEmpty, kThreads);
      tile[thread] = in[round * 64 + thread];
      named_barrier_arrive(kFull, kThreads);
    }
  } else {
    for (int round = 0; round < rounds; ++round) {
      named_barrier_sync(kFull, kThreads);
      out[round * 64 + thread - 64] = 2 * tile[127 - thread];
      if (round + 1 < rounds) named_barrier_arrive(kEmpty, kThreads);
    }
  }
}

// Each warp elects twice: leaders [warps] is how many threads were elected, same [warps] whether
// both times the same.
extern "C" __global__ void elect(uint32_t* leaders, uint32_t* same) {
  const bool first = elect_one();
  const bool second = elect_one();
  const uint32_t first_ballot = __ballot_sync(0xFFFFFFFF, first);
  const uint32_t second_ballot = __ballot_sync(0xFFFFFFFF, second);
  if (elect_one()) {
    leaders[threadIdx.x / 32] = __popc(first_ballot);
    same[threadIdx.x / 32] = first_ballot == second_ballot;
  }
}

// A pipeline of 4 stages between a producer warpgroup, which gives registers back, and two
// consumer warpgroups, which take them: the bulk copies of in [tiles, 1024] are summed.
// out [256]: thread t of the consumers has the sum of the values 4 t .. 4 t + 3 of all tiles.
extern "C" __global__ void __launch_bounds__(384, 1)
    setmaxnreg_pipeline(const float* in, int tiles, float* out) {
  constexpr int kStages = 4, kTile = 1024;
  struct Shared {
    alignas(128) float tile[kStages][kTile];
    Mbarrier full[kStages], empty[kStages];
  };
  __shared__ Shared shared;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.full[stage], 1);
      mbarrier_init(&shared.empty[stage], 2);  // one arrival a consumer warpgroup
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    release_registers<40>();
    if (threadIdx.x == 0) {
      for (int tile = 0; tile < tiles; ++tile) {
        const int stage = tile % kStages;
        const uint32_t round = tile / kStages;
        mbarrier_wait(&shared.empty[stage], (round & 1) ^ 1);
        mbarrier_arrive_expect_tx(&shared.full[stage], sizeof(shared.tile[stage]));
        bulk_load(shared.tile[stage], in + tile * kTile, sizeof(shared.tile[stage]),
                  &shared.full[stage]);
      }
    }
  } else {
    acquire_registers<216>();
    const int consumer = static_cast<int>(threadIdx.x) - 128;
    const int group = consumer / 128;
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % kStages;
      const uint32_t round = tile / kStages;
      mbarrier_wait(&shared.full[stage], round & 1);
      const float4 values = *reinterpret_cast<const float4*>(&shared.tile[stage][4 * consumer]);
      sum += values.x + values.y + values.z + values.w;
      named_barrier_sync(1 + group, 128);
      if (consumer % 128 == 0) mbarrier_arrive(&shared.empty[stage]);
    }
    out[consumer] = sum;
  }
}

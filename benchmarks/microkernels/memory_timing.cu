// How many cycles copies, barriers and a few other instructions take, and how fast the clock is.

#include "hopper/clock.cuh"
#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/math.cuh"
#include "hopper/matrix.cuh"
#include "hopper/named_barrier.cuh"
#include "hopper/tma.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kStages = 4;
constexpr int kRows = 128, kBoxBytes = kRows * 128;  // a box: 128 rows of 128 bytes

struct Shared {
  alignas(1024) uint8_t stage[kStages][kBoxBytes];
  Mbarrier full[kStages];
};

__device__ Shared& prepare() {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (Mbarrier& barrier : shared.full) mbarrier_init(&barrier, 1);
    fence_mbarrier_init();
  }
  for (int stage = 0; stage < kStages; ++stage) {
    for (int i = threadIdx.x; i < kBoxBytes; i += blockDim.x) {
      shared.stage[stage][i] = static_cast<uint8_t>(i);
    }
  }
  fence_proxy_async_shared();
  __syncthreads();
  return shared;
}

// cycles, and nanoseconds of the GPU's clock, of a block: out [blocks, 2].
struct Stopwatch {
  int64_t cycles = clock64();
  uint64_t nanoseconds = globaltimer();
  __device__ void stop(int64_t* out) const {
    out[blockIdx.x * 2] = clock64() - cycles;
    out[blockIdx.x * 2 + 1] = static_cast<int64_t>(globaltimer() - nanoseconds);
  }
};

}  // namespace

// `boxes` boxes, one after the other; out [boxes]: cycles from each issue to its arrival.
extern "C" __global__ void time_tma_latency(const __grid_constant__ TensorMap map, int boxes,
                                            int64_t* out) {
  Shared& shared = prepare();
  if (threadIdx.x != 0) return;
  for (int box = 0; box < boxes; ++box) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBoxBytes);
    const int64_t begin = clock64();
    tma_load(shared.stage[0], &map, &shared.full[0], {0, box * kRows});
    mbarrier_wait(&shared.full[0], box & 1);
    out[box] = clock64() - begin;
  }
}

// Each block `boxes` boxes, 4 in flight, the blocks' boxes one behind the other; after the last
// row of the tensor (`all_boxes` boxes) from the first again.
extern "C" __global__ void time_tma_loads(const __grid_constant__ TensorMap map, int boxes,
                                          int all_boxes, int64_t* out) {
  Shared& shared = prepare();
  if (threadIdx.x != 0) return;
  const Stopwatch watch;
  for (int box = 0; box < boxes + kStages; ++box) {
    const int stage = box % kStages;
    if (box >= kStages) mbarrier_wait(&shared.full[stage], (box / kStages - 1) & 1);
    if (box >= boxes) continue;
    const int place = static_cast<int>((int64_t{blockIdx.x} * boxes + box) % all_boxes);
    mbarrier_arrive_expect_tx(&shared.full[stage], kBoxBytes);
    tma_load(shared.stage[stage], &map, &shared.full[stage], {0, place * kRows});
  }
  watch.stop(out);
}

// The same in clusters of 2: each block loads half of every box into both. The box of `map` has 64
// rows. A block loads only when its peer has taken note of the stage's last round, too.
extern "C" __global__ void time_tma_multicast(const __grid_constant__ TensorMap map, int boxes,
                                              int all_boxes, int64_t* out) {
  Shared& shared = prepare();
  __shared__ Mbarrier empty[kStages];
  if (threadIdx.x == 0) {
    for (Mbarrier& barrier : empty) mbarrier_init(&barrier, 2);
    fence_mbarrier_init();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    const int rank = static_cast<int>(cluster_rank());
    const Stopwatch watch;
    for (int box = 0; box < boxes + kStages; ++box) {
      const int stage = box % kStages;
      const uint32_t round = box / kStages;
      if (round > 0) {
        mbarrier_wait(&shared.full[stage], (round - 1) & 1);
        if (box < boxes) {
          mbarrier_arrive_remote(&empty[stage], 0);
          mbarrier_arrive_remote(&empty[stage], 1);
        }
      }
      if (box >= boxes) continue;
      if (round > 0) mbarrier_wait<Scope::cluster>(&empty[stage], (round - 1) & 1);
      const int place = static_cast<int>((int64_t{blockIdx.x / 2} * boxes + box) % all_boxes);
      mbarrier_arrive_expect_tx(&shared.full[stage], kBoxBytes);
      tma_load_multicast(shared.stage[stage] + rank * kBoxBytes / 2, &map, &shared.full[stage],
                         {0, place * kRows + rank * kRows / 2}, 3);
    }
    watch.stop(out);
  }
  cluster_sync();
}

// Stores, 4 in flight; with_loads: each block at the same time loads as many from `source`.
extern "C" __global__ void time_tma_stores(const __grid_constant__ TensorMap map,
                                           const __grid_constant__ TensorMap source, int boxes,
                                           int all_boxes, int with_loads, int64_t* out) {
  Shared& shared = prepare();
  if (threadIdx.x != 0) return;
  const Stopwatch watch;
  for (int box = 0; box < boxes; ++box) {
    const int place = static_cast<int>((int64_t{blockIdx.x} * boxes + box) % all_boxes);
    // With loads, two stages are stored from and two loaded into.
    tma_store(&map, shared.stage[box % 2], {0, place * kRows});
    bulk_commit();
    if (with_loads) {
      const int stage = 2 + box % 2;
      if (box >= 2) mbarrier_wait(&shared.full[stage], (box / 2 - 1) & 1);
      mbarrier_arrive_expect_tx(&shared.full[stage], kBoxBytes);
      tma_load(shared.stage[stage], &source, &shared.full[stage], {0, place * kRows});
    }
    bulk_wait_read<3>();
  }
  if (with_loads) {
    for (int box = boxes - 2; box < boxes; ++box) {
      mbarrier_wait(&shared.full[2 + box % 2], (box / 2) & 1);
    }
  }
  bulk_wait<0>();
  watch.stop(out);
}

// A chain of FFMAs: cycles beside nanoseconds, which is the clock's rate.
extern "C" __global__ void time_clock(int steps, int64_t* out, float* sink) {
  const Stopwatch watch;
  float value = 0;
  for (int i = 0; i < steps; ++i) value = __fmaf_rn(value, 0.5f, 1.0f);
  *sink = value;
  watch.stop(out);
}

// One block of 128 threads. out: cycles of 64 of each: a successful try_wait, an arrival, bar.sync
// of 128 threads, stmatrix.x4, a chain of loads from shared memory, of ex2, of FFMA, and nothing.
extern "C" __global__ void time_instructions(int64_t* out, float* sink) {
  __shared__ alignas(16) uint32_t matrix[128 * 4];
  __shared__ Mbarrier barrier, counted;
  if (threadIdx.x == 0) {
    mbarrier_init(&barrier, 1);
    mbarrier_init(&counted, 1);
  }
  for (int i = 0; i < 4; ++i) matrix[threadIdx.x * 4 + i] = 0;
  __syncthreads();
  uint32_t fragment[4] = {threadIdx.x, 1, 2, 3};
  uint32_t at = 0;
  float value = 0.5f, sum = 0.5f;
  const auto time = [&](int slot, auto&& instruction) {
    __syncthreads();
    const int64_t begin = clock64();
#pragma unroll
    for (int i = 0; i < 64; ++i) instruction();
    const int64_t end = clock64();
    if (threadIdx.x == 0) out[slot] = end - begin;
  };
  time(0, [&] { mbarrier_try_wait(&barrier, 1); });
  __syncthreads();
  time(1, [&] {
    if (threadIdx.x == 0) mbarrier_arrive(&counted);
  });
  time(2, [&] { named_barrier_sync(1, 128); });
  time(3, [&] { store_matrix(matrix + 4 * threadIdx.x, fragment); });
  __syncthreads();
  for (int i = 0; i < 4; ++i) matrix[threadIdx.x * 4 + i] = 0;
  time(4, [&] { at = *static_cast<volatile uint32_t*>(matrix + at); });
  time(5, [&] { value = exp2_approx(value); });
  time(6, [&] { sum = __fmaf_rn(sum, 0.5f, 1.0f); });
  time(7, [&] {});
  sink[threadIdx.x] = value + sum + static_cast<float>(at);
}

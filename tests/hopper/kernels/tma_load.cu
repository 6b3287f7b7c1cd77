// TMA loads: a box of a tensor lands in shared memory, whose bytes are copied out as they lie.

#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/tma.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kMostBytes = 32768;

struct Shared {
  alignas(1024) uint32_t box[kMostBytes / 4];
  Mbarrier full;
};

// Thread 0 loads by `load(shared)`; then all copy `bytes` to `out`.
template <typename Load>
__device__ void load_and_dump(int bytes, uint32_t* out, Load load) {
  __shared__ Shared shared;
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(&shared.full, bytes);
    load(shared);
  }
  __syncthreads();
  mbarrier_wait(&shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = shared.box[i];
}

}  // namespace

// Coordinates are innermost first.
extern "C" __global__ void tma_load_1d(const __grid_constant__ TensorMap map, int x, int bytes,
                                       uint32_t* out) {
  load_and_dump(bytes, out, [&](Shared& shared) { tma_load(shared.box, &map, &shared.full, {x}); });
}

extern "C" __global__ void tma_load_2d(const __grid_constant__ TensorMap map, int x, int y,
                                       int bytes, uint32_t* out) {
  load_and_dump(bytes, out,
                [&](Shared& shared) { tma_load(shared.box, &map, &shared.full, {x, y}); });
}

extern "C" __global__ void tma_load_3d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                       int bytes, uint32_t* out) {
  load_and_dump(bytes, out,
                [&](Shared& shared) { tma_load(shared.box, &map, &shared.full, {x, y, z}); });
}

extern "C" __global__ void tma_load_4d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                       int u, int bytes, uint32_t* out) {
  load_and_dump(bytes, out,
                [&](Shared& shared) { tma_load(shared.box, &map, &shared.full, {x, y, z, u}); });
}

extern "C" __global__ void tma_load_5d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                       int u, int v, int bytes, uint32_t* out) {
  load_and_dump(bytes, out,
                [&](Shared& shared) { tma_load(shared.box, &map, &shared.full, {x, y, z, u, v}); });
}

// The same load with everything that only hints: the map and the box prefetched, a cache policy.
extern "C" __global__ void tma_load_2d_hints(const __grid_constant__ TensorMap map, int x, int y,
                                             int bytes, uint32_t* out) {
  load_and_dump(bytes, out, [&](Shared& shared) {
    prefetch_tensor_map(&map);
    tma_prefetch(&map, {x, y});
    tma_load(shared.box, &map, &shared.full, {x, y}, evict_first_policy());
  });
}

// The bytes are announced only after the copy was started: they may land first.
extern "C" __global__ void tma_load_2d_announced_late(const __grid_constant__ TensorMap map, int x,
                                                      int y, int bytes, uint32_t* out) {
  __shared__ Shared shared;
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
    tma_load(shared.box, &map, &shared.full, {x, y});
    mbarrier_expect_tx(&shared.full, bytes);
    mbarrier_arrive(&shared.full);
  }
  __syncthreads();
  mbarrier_wait(&shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = shared.box[i];
}

namespace {

// Two blocks each load half of the rows of a box into both. out: [2, bytes], one box a block.
template <bool kHint>
__device__ void load_halves(const TensorMap* map, int x, int y, int rows, int bytes,
                            uint32_t* out) {
  __shared__ Shared shared;
  const int rank = static_cast<int>(cluster_rank());
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(&shared.full, bytes);  // both halves
  }
  cluster_sync();  // the peer's barrier exists, too
  if (threadIdx.x == 0) {
    uint32_t* half = shared.box + rank * bytes / 8;
    if constexpr (kHint) {
      tma_load_multicast(half, map, &shared.full, {x, y + rank * rows / 2}, 3, evict_last_policy());
    } else {
      tma_load_multicast(half, map, &shared.full, {x, y + rank * rows / 2}, 3);
    }
  }
  mbarrier_wait(&shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    out[rank * bytes / 4 + i] = shared.box[i];
  }
  cluster_sync();  // the peer may still be writing here or signalling
}

}  // namespace

// The box of `map` has rows / 2 rows.
extern "C" __global__ void tma_multicast_2d(const __grid_constant__ TensorMap map, int x, int y,
                                            int rows, int bytes, uint32_t* out) {
  load_halves<false>(&map, x, y, rows, bytes, out);
}

extern "C" __global__ void tma_multicast_2d_hint(const __grid_constant__ TensorMap map, int x,
                                                 int y, int rows, int bytes, uint32_t* out) {
  load_halves<true>(&map, x, y, rows, bytes, out);
}

// Bulk copies of contiguous bytes.

#include "hopper/bulk.cuh"
#include "hopper/cluster.cuh"
#include "hopper/copy_async.cuh"
#include "hopper/fence.cuh"
#include "hopper/warp.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kMostBytes = 16384;

struct Shared {
  alignas(128) uint32_t data[kMostBytes / 4];
  alignas(128) uint32_t received[kMostBytes / 4];
  Mbarrier full;
};

__device__ void init(Shared& shared) {
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
}

// out = in, by way of shared memory, untouched by any thread.
template <bool kHints>
__device__ void copy(const uint32_t* in, int bytes, uint32_t* out) {
  __shared__ Shared shared;
  init(shared);
  if (threadIdx.x != 0) return;
  mbarrier_arrive_expect_tx(&shared.full, bytes);
  if constexpr (kHints) {
    bulk_prefetch(in, bytes);
    bulk_load(shared.data, in, bytes, &shared.full, evict_first_policy());
  } else {
    bulk_load(shared.data, in, bytes, &shared.full);
  }
  mbarrier_wait(&shared.full, 0);
  if constexpr (kHints) {
    bulk_store(out, shared.data, bytes, evict_first_policy());
  } else {
    bulk_store(out, shared.data, bytes);
  }
  bulk_commit();
  bulk_wait<0>();
}

// Each block adds its part of in [blocks, bytes] to out [bytes].
template <typename Add>
__device__ void add(const uint32_t* in, int bytes, Add add) {
  __shared__ Shared shared;
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    shared.data[i] = in[blockIdx.x * bytes / 4 + i];
  }
  fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    add(shared.data);
    bulk_commit();
    bulk_wait<0>();
  }
}

}  // namespace

extern "C" __global__ void bulk_copy(const uint32_t* in, int bytes, uint32_t* out) {
  copy<false>(in, bytes, out);
}

extern "C" __global__ void bulk_copy_hints(const uint32_t* in, int bytes, uint32_t* out) {
  copy<true>(in, bytes, out);
}

extern "C" __global__ void bulk_add_f32(const uint32_t* in, int bytes, float* out) {
  add(in, bytes, [&](const uint32_t* data) { bulk_reduce_add_f32(out, data, bytes); });
}

extern "C" __global__ void bulk_add_bf16(const uint32_t* in, int bytes, uint16_t* out) {
  add(in, bytes, [&](const uint32_t* data) { bulk_reduce_add_bf16(out, data, bytes); });
}

// A cluster: the first block loads `bytes` into every block. out [blocks, bytes].
extern "C" __global__ void bulk_multicast(const uint32_t* in, int bytes, uint32_t* out) {
  __shared__ Shared shared;
  init(shared);
  if (threadIdx.x == 0) mbarrier_arrive_expect_tx(&shared.full, bytes);
  cluster_sync();
  if (cluster_rank() == 0 and threadIdx.x == 0) {
    bulk_load_multicast(shared.data, in, bytes, &shared.full,
                        static_cast<uint16_t>((1 << cluster_size()) - 1));
  }
  mbarrier_wait(&shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    out[cluster_rank() * bytes / 4 + i] = shared.data[i];
  }
  cluster_sync();
}

// A cluster of two: the first block sends in [rounds, bytes] to both, round by round, into the same
// memory. It may do so once both have read what was there, which they say at the scope of a block.
// out [blocks, bytes]: the sums over the rounds. 256 threads: the second warpgroup sends.
extern "C" __global__ void bulk_multicast_rounds(const uint32_t* in, int bytes, int rounds,
                                                 uint32_t* out) {
  __shared__ Shared shared;
  __shared__ Mbarrier empty;
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    mbarrier_init(&empty, 2 * 4);
    fence_mbarrier_init();
  }
  cluster_meet();
  const int thread = thread_in_warpgroup();
  if (threadIdx.x >= 128) {
    for (int round = 0; thread == 0 and round < rounds; ++round) {
      if (round > 0 and cluster_rank() == 0) mbarrier_wait(&empty, (round - 1) % 2);
      mbarrier_arrive_expect_tx(&shared.full, bytes);
      if (cluster_rank() == 0) {
        bulk_load_multicast(shared.data, in + round * bytes / 4, bytes, &shared.full, 3);
      }
      if (round + 1 < rounds) mbarrier_wait(&shared.full, round % 2);
    }
    __syncwarp();
  } else {
    uint32_t sum = 0;
    for (int round = 0; round < rounds; ++round) {
      mbarrier_wait(&shared.full, round % 2);
      sum += shared.data[thread];
      __syncwarp();
      if (thread % 32 == 0) mbarrier_arrive_remote<Scope::cta>(&empty, 0);
    }
    out[cluster_rank() * bytes / 4 + thread] = sum;
  }
  cluster_meet();
}

// out [rounds, 64] = in[index[rounds, 64]]. 64 threads: each of the first 32 starts two copies a
// round, which the others wait for and read.
extern "C" __global__ void copy_async_gather(const uint32_t* in, const int* index, int rounds,
                                             uint32_t* out) {
  __shared__ uint32_t data[64];
  __shared__ Mbarrier full, empty;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 32);
    mbarrier_init(&empty, 32);
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x < 32) {
      mbarrier_wait(&empty, round % 2 ^ 1);
      for (int i = lane; i < 64; i += 32) copy_async_4_bytes(&data[i], in + index[64 * round + i]);
      copy_async_arrive(&full);
    } else {
      mbarrier_wait(&full, round % 2);
      for (int i = lane; i < 64; i += 32) out[64 * round + i] = data[63 - i];
      mbarrier_arrive(&empty);
    }
  }
}

// A cluster: each block sends its part of in [blocks, bytes] to the next block's shared memory.
// out [blocks, bytes]: what each received. The announcement is the sender's, at the receiver.
extern "C" __global__ void bulk_ring(const uint32_t* in, int bytes, uint32_t* out) {
  __shared__ Shared shared;
  const uint32_t rank = cluster_rank(), next = (rank + 1) % cluster_size();
  init(shared);
  cluster_sync();
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    shared.data[i] = in[rank * bytes / 4 + i];
  }
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx_remote(&shared.full, next, bytes);
    bulk_copy_to_peer(shared.received, shared.data, bytes, &shared.full, next);
  }
  mbarrier_wait<Scope::cluster>(&shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    out[rank * bytes / 4 + i] = shared.received[i];
  }
  cluster_sync();
}

// data = in + 1 by ordinary stores, which the same block's bulk copy then takes to `out`.
extern "C" __global__ void bulk_after_stores(const uint32_t* in, int bytes, uint32_t* data,
                                             uint32_t* out) {
  __shared__ Shared shared;
  init(shared);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) data[i] = in[i] + 1;
  fence_proxy_async_global();  // by each writer, before the barrier
  __syncthreads();
  if (threadIdx.x != 0) return;
  mbarrier_arrive_expect_tx(&shared.full, bytes);
  bulk_load(shared.data, data, bytes, &shared.full);
  mbarrier_wait(&shared.full, 0);
  bulk_store(out, shared.data, bytes);
  bulk_commit();
  bulk_wait<0>();
}

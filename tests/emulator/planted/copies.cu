// Bugs around bulk copies and TMA.

#include "planted.cuh"

namespace {

constexpr int kWords = 256, kBytes = 4 * kWords;

struct Shared {
  alignas(1024) uint32_t data[2][kWords];
  Mbarrier full[2], empty[2];
};

// Words to or from shared memory, by all threads.
__device__ __forceinline__ void copy(uint32_t* to, const uint32_t* from) {
  for (int i = thread_index(); i < kWords; i += static_cast<int>(blockDim.x)) to[i] = from[i];
}

// What a block has stored to shared memory goes out by a bulk copy. Planted: no proxy fence.
template <bool kPlanted>
__device__ void no_fence_before_bulk_store_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  copy(shared.data[0], in);
  if constexpr (not kPlanted) fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;
  bulk_store(out, shared.data[0], kBytes);  // FAULT no_fence_before_bulk_store
  bulk_commit();
  bulk_wait<0>();
}

// The same by TMA, of a box of 8 x 32 words. Planted: a fence for global memory.
template <bool kPlanted>
__device__ void no_fence_before_tma_store_of(const uint32_t* in, const TensorMap* map) {
  __shared__ Shared shared;
  copy(shared.data[0], in);
  if constexpr (kPlanted) {
    fence_proxy_async_global();
  } else {
    fence_proxy_async_shared();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  tma_store(map, shared.data[0], {0, 0});  // FAULT no_fence_before_tma_store
  bulk_commit();
  bulk_wait<0>();
}

// Planted: the fence comes before the stores.
template <bool kPlanted>
__device__ void fence_too_early_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  if constexpr (kPlanted) fence_proxy_async_shared();
  copy(shared.data[0], in);
  if constexpr (not kPlanted) fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;
  bulk_store(out, shared.data[0], kBytes);  // FAULT fence_too_early
  bulk_commit();
  bulk_wait<0>();
}

// Planted: all threads fence, and nothing orders their stores before the copy.
template <bool kPlanted>
__device__ void no_barrier_before_store_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  copy(shared.data[0], in);  // FAULT no_barrier_before_store
  fence_proxy_async_shared();
  if constexpr (not kPlanted) __syncthreads();
  if (threadIdx.x != 0) return;
  bulk_store(out, shared.data[0], kBytes);  // FAULT no_barrier_before_store
  bulk_commit();
  bulk_wait<0>();
}

// Global memory that a block has written, read by its own bulk copy. Planted: no proxy fence.
template <bool kPlanted>
__device__ void no_fence_before_load_of(const uint32_t* in, uint32_t* data, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  copy(data, in);
  if constexpr (not kPlanted) fence_proxy_async_global();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], data, kBytes, &shared.full[0]);  // FAULT no_fence_before_load
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

// A tensor map that the kernel itself has put into global memory. Planted: no fence of its proxy.
template <bool kPlanted>
__device__ void no_tensor_map_fence_of(const TensorMap* map, uint32_t* memory, uint32_t* out) {
  __shared__ Shared shared;
  auto* copied = reinterpret_cast<TensorMap*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x < 16) copied->opaque[threadIdx.x] = map->opaque[threadIdx.x];
  __syncwarp();
  if (threadIdx.x == 0) {
    if constexpr (not kPlanted) {
      asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
      asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(copied)
                   : "memory");
    }
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    tma_load(shared.data[0], copied, &shared.full[0], {0, 0});  // FAULT no_tensor_map_fence
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

// A load. Planted: nobody waits for it.
template <bool kPlanted>
__device__ void load_not_awaited_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);  // FAULT load_not_awaited
  }
  if constexpr (not kPlanted) mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);  // FAULT load_not_awaited
  if constexpr (kPlanted) mbarrier_wait(&shared.full[0], 0);
}

// Planted: thread 0 alone waits, and the others do not wait for it.
template <bool kPlanted>
__device__ void one_thread_waits_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);  // FAULT one_thread_waits
    mbarrier_wait(&shared.full[0], 0);
  }
  if constexpr (not kPlanted) __syncthreads();
  copy(out, shared.data[0]);  // FAULT one_thread_waits
}

// Announced bytes that differ from those that come. Planted: 16 too few, or too many.
template <bool kPlanted, int kDifference>
__device__ void announce(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes + (kPlanted ? kDifference : 0));
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);
  }
  mbarrier_wait(&shared.full[0], 0);  // FAULT announces_too_few announces_too_many
  copy(out, shared.data[0]);
}
template <bool kPlanted>
__device__ void announces_too_few_of(const uint32_t* in, uint32_t* out) {
  announce<kPlanted, -16>(in, out);
}
template <bool kPlanted>
__device__ void announces_too_many_of(const uint32_t* in, uint32_t* out) {
  announce<kPlanted, 16>(in, out);
}

// Two loads on one mbarrier. Planted: only one is announced.
template <bool kPlanted>
__device__ void announces_one_of_two_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kPlanted ? kBytes : 2 * kBytes);
    for (int i = 0; i < 2; ++i) {
      // FAULT announces_one_of_two
      bulk_load(shared.data[i], in + i * kWords, kBytes, &shared.full[0]);
    }
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);           // FAULT announces_one_of_two
  copy(out + kWords, shared.data[1]);  // FAULT announces_one_of_two
}

// Planted: one arrival more than the mbarrier was made for.
template <bool kPlanted>
__device__ void too_many_arrivals_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x < (kPlanted ? 2 : 1)) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);  // FAULT too_many_arrivals
    if (threadIdx.x == 0) {
      bulk_load(shared.data[0], in, kBytes, &shared.full[0]);
    }
  }
  mbarrier_wait(&shared.full[0], 0);  // FAULT too_many_arrivals
  copy(out, shared.data[0]);
}

// Planted: the mbarrier is made without the fence that shows it to the copy.
template <bool kPlanted>
__device__ void init_not_fenced_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full[0], 1);
    if constexpr (not kPlanted) fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);  // FAULT init_not_fenced
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

// Planted: other threads use the mbarrier with nothing that says that it is made.
template <bool kPlanted>
__device__ void init_not_awaited_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  if (threadIdx.x == 32) {
    mbarrier_init(&shared.full[0], 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);
  }
  if constexpr (not kPlanted) __syncthreads();
  mbarrier_wait(&shared.full[0], 0);  // FAULT init_not_awaited
  copy(out, shared.data[0]);
}

// Planted: an mbarrier that nobody has made.
template <bool kPlanted>
__device__ void never_made_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  Mbarrier* barrier = &shared.full[kPlanted ? 1 : 0];
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, kBytes);  // FAULT never_made
    bulk_load(shared.data[0], in, kBytes, barrier);
  }
  mbarrier_wait(barrier, 0);  // FAULT never_made
  copy(out, shared.data[0]);
}

// Two stages between a producer (warp 0) and a consumer (warps 1 to 3). What is wrong, if anything:
enum class Pipeline {
  right,
  refills_unasked,     // the producer does not wait for `empty`
  empties_too_early,   // the consumer arrives at `empty` before it has read
  parity_of_consumer,  // begins with 1: the first wait returns at once
  one_arrival,         // the first of three consumer warps empties the stage for all
};

template <Pipeline kWrong>
__device__ void pipeline(const uint32_t* in, int tiles, uint32_t* out) {
  __shared__ Shared shared;
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  for (int stage = 0; stage < 2; ++stage) {
    make_barrier(&shared.full[stage], 1);
    make_barrier(&shared.empty[stage], kWrong == Pipeline::one_arrival ? 1 : 3);
  }
  if (warp == 0) {
    if (lane != 0) return;
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % 2;
      const uint32_t round = tile / 2;
      if constexpr (kWrong != Pipeline::refills_unasked) {
        mbarrier_wait(&shared.empty[stage], (round & 1) ^ 1);
      }
      mbarrier_arrive_expect_tx(&shared.full[stage], kBytes);  // FAULT pipeline
      // FAULT pipeline
      bulk_load(shared.data[stage], in + tile * kWords, kBytes, &shared.full[stage]);
    }
  } else {
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % 2;
      const uint32_t round = tile / 2;
      mbarrier_wait(&shared.full[stage], (round & 1) ^ (kWrong == Pipeline::parity_of_consumer));
      if constexpr (kWrong == Pipeline::empties_too_early) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
      }
      for (int i = thread_index() - 32; i < kWords; i += 96) {
        out[tile * kWords + i] = shared.data[stage][i];  // FAULT pipeline
      }
      if constexpr (kWrong != Pipeline::empties_too_early) {
        __syncwarp();
        if (lane == 0 and (kWrong != Pipeline::one_arrival or warp == 1)) {
          mbarrier_arrive(&shared.empty[stage]);
        }
      }
    }
  }
}

#define PIPELINE(name)                                                      \
  template <bool kPlanted>                                                  \
  __device__ void name##_of(const uint32_t* in, int tiles, uint32_t* out) { \
    pipeline<kPlanted ? Pipeline::name : Pipeline::right>(in, tiles, out);  \
  }
PIPELINE(refills_unasked)
PIPELINE(empties_too_early)
PIPELINE(parity_of_consumer)
PIPELINE(one_arrival)

// Tiles that one warp builds in one buffer and stores. What is wrong, if anything:
enum class Stores { right, no_wait, wait_for_one_less, no_commit, no_warp_barrier };

template <Stores kWrong>
__device__ void stores(const uint32_t* in, int tiles, uint32_t* out) {
  __shared__ Shared shared;
  for (int tile = 0; tile < tiles; ++tile) {
    if (threadIdx.x == 0) {
      if constexpr (kWrong == Stores::wait_for_one_less) {
        bulk_wait_read<1>();
      } else if constexpr (kWrong != Stores::no_wait) {
        bulk_wait_read<0>();
      }
    }
    if constexpr (kWrong != Stores::no_warp_barrier) __syncwarp();
    for (int i = thread_index(); i < kWords; i += 32) {
      shared.data[0][i] = in[tile * kWords + i];  // FAULT stores
    }
    fence_proxy_async_shared();
    __syncwarp();
    if (threadIdx.x == 0) {
      bulk_store(out + tile * kWords, shared.data[0], kBytes);  // FAULT stores
      if constexpr (kWrong != Stores::no_commit) bulk_commit();
    }
  }
  if (threadIdx.x == 0) {
    bulk_commit();
    bulk_wait<0>();
  }
}

#define STORES(name, wrong)                                                 \
  template <bool kPlanted>                                                  \
  __device__ void name##_of(const uint32_t* in, int tiles, uint32_t* out) { \
    stores<kPlanted ? Stores::wrong : Stores::right>(in, tiles, out);       \
  }
STORES(overwrites_source, no_wait)
STORES(waits_for_one_less, wait_for_one_less)
STORES(never_commits, no_commit)
STORES(others_overwrite_source, no_warp_barrier)

// A block says that its bulk store is there, another reads it. Planted: it has waited only until
// the source was read.
template <bool kPlanted>
__device__ void announces_unwritten_of(const uint32_t* in, uint32_t* data, uint32_t* flag,
                                       uint32_t* out) {
  __shared__ Shared shared;
  if (blockIdx.x == 0) {
    copy(shared.data[0], in);
    fence_proxy_async_shared();
    __syncthreads();
    if (threadIdx.x != 0) return;
    bulk_store(data, shared.data[0], kBytes);  // FAULT announces_unwritten
    bulk_commit();
    if constexpr (kPlanted) {
      bulk_wait_read<0>();
    } else {
      bulk_wait<0>();
    }
    fence_proxy_async();
    store_release<Scope::gpu>(flag, 1);
  } else {
    if (threadIdx.x == 0) {
      while (load_acquire<Scope::gpu>(flag) == 0) {
      }
    }
    __syncthreads();
    copy(out, data);  // FAULT announces_unwritten
  }
}

// Planted: the block exits while its store still reads shared memory.
template <bool kPlanted>
__device__ void exits_with_store_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  copy(shared.data[0], in);
  fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;
  bulk_store(out, shared.data[0], kBytes);  // FAULT exits_with_store
  bulk_commit();
  if constexpr (not kPlanted) bulk_wait_read<0>();
}  // FAULT exits_with_store

// Planted: the block exits while a load is on its way into its shared memory.
template <bool kPlanted>
__device__ void exits_with_load_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    bulk_load(shared.data[0], in, kBytes, &shared.full[0]);  // FAULT exits_with_load
    if constexpr (not kPlanted) mbarrier_wait(&shared.full[0], 0);
  }
  out[threadIdx.x] = in[threadIdx.x];
}  // FAULT exits_with_load

// Planted: a store of shared memory that nobody has written to its end.
template <bool kPlanted>
__device__ void stores_uninitialised_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  for (int i = thread_index(); i < kWords - (kPlanted ? 1 : 0); i += 32) shared.data[0][i] = in[i];
  fence_proxy_async_shared();
  __syncwarp();
  if (threadIdx.x != 0) return;
  bulk_store(out, shared.data[0], kBytes);  // FAULT stores_uninitialised
  bulk_commit();
  bulk_wait<0>();
}

// Planted: the copy reads beyond the array.
template <bool kPlanted>
__device__ void load_out_of_bounds_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    // FAULT load_out_of_bounds
    bulk_load(shared.data[0], in + (kPlanted ? 4 : 0), kBytes, &shared.full[0]);
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

// Planted: the destination is 16 bytes beyond a multiple of 128.
template <bool kPlanted>
__device__ void box_misaligned_of(const TensorMap* map, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  uint32_t* box = shared.data[0] + (kPlanted ? 4 : 0);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    tma_load(box, map, &shared.full[0], {0, 0});  // FAULT box_misaligned
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, box);
}

// Planted: an instruction for three dimensions, a map of two.
template <bool kPlanted>
__device__ void rank_differs_of(const TensorMap* map, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], kBytes);
    if constexpr (kPlanted) {
      tma_load(shared.data[0], map, &shared.full[0], {0, 0, 0});  // FAULT rank_differs
    } else {
      tma_load(shared.data[0], map, &shared.full[0], {0, 0});
    }
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

// Planted: a size that is no multiple of 16 bytes.
template <bool kPlanted>
__device__ void size_misaligned_of(const uint32_t* in, uint32_t* out) {
  __shared__ Shared shared;
  make_barrier(&shared.full[0], 1);
  const uint32_t bytes = kPlanted ? kBytes - 4 : kBytes;
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&shared.full[0], bytes);
    bulk_load(shared.data[0], in, bytes, &shared.full[0]);  // FAULT size_misaligned
  }
  mbarrier_wait(&shared.full[0], 0);
  copy(out, shared.data[0]);
}

}  // namespace

#define COPY(name) PAIR(name, (const uint32_t* in, uint32_t* out), in, out)
#define TILES(name) PAIR(name, (const uint32_t* in, int tiles, uint32_t* out), in, tiles, out)

COPY(no_fence_before_bulk_store)
PAIR(no_fence_before_tma_store, (const uint32_t* in, const __grid_constant__ TensorMap map), in,
     &map)
COPY(fence_too_early)
COPY(no_barrier_before_store)
PAIR(no_fence_before_load, (const uint32_t* in, uint32_t* data, uint32_t* out), in, data, out)
PAIR(no_tensor_map_fence, (const __grid_constant__ TensorMap map, uint32_t* memory, uint32_t* out),
     &map, memory, out)
COPY(load_not_awaited)
COPY(one_thread_waits)
COPY(announces_too_few)
COPY(announces_too_many)
COPY(announces_one_of_two)
COPY(too_many_arrivals)
COPY(init_not_fenced)
COPY(init_not_awaited)
COPY(never_made)
TILES(refills_unasked)
TILES(empties_too_early)
TILES(parity_of_consumer)
TILES(one_arrival)
TILES(overwrites_source)
TILES(waits_for_one_less)
TILES(never_commits)
TILES(others_overwrite_source)
PAIR(announces_unwritten, (const uint32_t* in, uint32_t* data, uint32_t* flag, uint32_t* out), in,
     data, flag, out)
COPY(exits_with_store)
COPY(exits_with_load)
COPY(stores_uninitialised)
COPY(load_out_of_bounds)
PAIR(box_misaligned, (const __grid_constant__ TensorMap map, uint32_t* out), &map, out)
PAIR(rank_differs, (const __grid_constant__ TensorMap map, uint32_t* out), &map, out)
COPY(size_misaligned)

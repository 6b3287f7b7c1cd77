// Bugs in the use of global memory by threads, blocks and grids.

#include "planted.cuh"

namespace {

// Block 0 hands values to block 1: data, then a flag. What is wrong, if anything:
enum class Wrong {
  nothing,
  relaxed_store,
  relaxed_load,
  store_of_block,
  load_of_block,
  no_barrier,
  plain_flag,
};

template <Wrong kWrong>
__device__ void pass(const int* in, int* data, uint32_t* flag, int* out) {
  const int thread = thread_index();
  if (blockIdx.x == 0) {
    data[thread] = in[thread];  // FAULT pass
    if constexpr (kWrong != Wrong::no_barrier) __syncthreads();
    if (thread != 0) return;
    if constexpr (kWrong == Wrong::relaxed_store) {
      store_relaxed<Scope::gpu>(flag, 1);
    } else if constexpr (kWrong == Wrong::store_of_block) {
      store_release<Scope::cta>(flag, 1);  // FAULT store_of_block
    } else if constexpr (kWrong == Wrong::plain_flag) {
      __threadfence();
      asm volatile("st.weak.global.u32 [%0], 1;" ::"l"(flag) : "memory");  // FAULT plain_flag
    } else {
      store_release<Scope::gpu>(flag, 1);  // FAULT load_of_block
    }
  } else {
    if (thread == 0) {
      if constexpr (kWrong == Wrong::relaxed_load) {
        while (load_relaxed<Scope::gpu>(flag) == 0) {
        }
      } else if constexpr (kWrong == Wrong::load_of_block) {
        while (load_acquire<Scope::cta>(flag) == 0) {  // FAULT load_of_block
        }
      } else {
        while (load_acquire<Scope::gpu>(flag) == 0) {  // FAULT store_of_block plain_flag
        }
      }
    }
    __syncthreads();
    out[thread] = data[(thread + 40) % 64];  // FAULT pass
  }
}

#define PASS(name, wrong)                                                         \
  template <bool kPlanted>                                                        \
  __device__ void name##_of(const int* in, int* data, uint32_t* flag, int* out) { \
    pass<kPlanted ? Wrong::wrong : Wrong::nothing>(in, data, flag, out);          \
  }
PASS(relaxed_store, relaxed_store)
PASS(relaxed_load, relaxed_load)
PASS(store_of_block, store_of_block)
PASS(load_of_block, load_of_block)
PASS(no_barrier_before_flag, no_barrier)
PASS(plain_flag, plain_flag)

// The same with relaxed accesses and fences. Planted: the writer has no fence.
template <bool kPlanted>
__device__ void no_thread_fence_of(const int* in, int* data, uint32_t* flag, int* out) {
  const int lane = thread_index();
  if (blockIdx.x == 0) {
    data[lane] = in[lane];  // FAULT no_thread_fence
    __syncwarp();
    if (lane != 0) return;
    if constexpr (not kPlanted) fence_acquire_release<Scope::gpu>();
    store_relaxed<Scope::gpu>(flag, 1);
  } else {
    while (load_relaxed<Scope::gpu>(flag) == 0) {
    }
    fence_acquire_release<Scope::gpu>();
    out[lane] = data[31 - lane];  // FAULT no_thread_fence
  }
}

// Planted: a fence for the block alone.
template <bool kPlanted>
__device__ void fence_of_block_of(const int* in, int* data, uint32_t* flag, int* out) {
  const int lane = thread_index();
  if (blockIdx.x == 0) {
    data[lane] = in[lane];  // FAULT fence_of_block
    __syncwarp();
    if (lane != 0) return;
    fence_acquire_release<kPlanted ? Scope::cta : Scope::gpu>();
    store_relaxed<Scope::gpu>(flag, 1);
  } else {
    while (load_relaxed<Scope::gpu>(flag) == 0) {
    }
    fence_acquire_release<Scope::gpu>();
    out[lane] = data[31 - lane];  // FAULT fence_of_block
  }
}

// Planted: the reader's fence is for its block alone.
template <bool kPlanted>
__device__ void fence_of_reading_block_of(const int* in, int* data, uint32_t* flag, int* out) {
  const int lane = thread_index();
  if (blockIdx.x == 0) {
    data[lane] = in[lane];  // FAULT fence_of_reading_block
    __syncwarp();
    if (lane != 0) return;
    fence_acquire_release<Scope::gpu>();
    store_relaxed<Scope::gpu>(flag, 1);
  } else {
    while (load_relaxed<Scope::gpu>(flag) == 0) {
    }
    fence_acquire_release<kPlanted ? Scope::cta : Scope::gpu>();
    out[lane] = data[31 - lane];  // FAULT fence_of_reading_block
  }
}

// Scratch memory between warps. Planted: no __syncthreads.
template <bool kPlanted>
__device__ void scratch_between_warps_of(const int* in, int* data, int* out) {
  const int thread = thread_index();
  data[thread] = 2 * in[thread];  // FAULT scratch_between_warps
  if constexpr (not kPlanted) __syncthreads();
  out[thread] = data[127 - thread];  // FAULT scratch_between_warps
}

// Scratch memory within a warp. Planted: no __syncwarp.
template <bool kPlanted>
__device__ void scratch_in_warp_of(const int* in, int* data, int* out) {
  const int thread = thread_index();
  data[thread] = 2 * in[thread];  // FAULT scratch_in_warp
  if constexpr (not kPlanted) __syncwarp();
  out[thread] = data[31 - thread];  // FAULT scratch_in_warp
}

// Blocks write rows of `out`. Planted: the rows overlap by one element.
template <bool kPlanted>
__device__ void rows_overlap_of(const int* in, int* out) {
  const int at = block_index() * 64 + thread_index();
  out[at] = in[at];  // FAULT rows_overlap
  if constexpr (kPlanted) {
    if (thread_index() == 63 and blockIdx.x == 0) out[at + 1] = in[at + 1];  // FAULT rows_overlap
  }
}

// The last block to come adds all parts. Planted: its count is relaxed.
template <bool kPlanted>
__device__ void last_block_of(const int* in, int* parts, uint32_t* counter, int* out) {
  __shared__ uint32_t before;
  const int thread = thread_index();
  parts[block_index() * 64 + thread] = in[block_index() * 64 + thread];  // FAULT last_block
  __syncthreads();
  if (thread == 0) before = kPlanted ? atomicAdd(counter, 1) : fetch_add<Scope::gpu>(counter, 1);
  __syncthreads();
  if (before + 1 != gridDim.x) return;
  int sum = 0;
  for (int block = 0; block < static_cast<int>(gridDim.x); ++block) {
    sum += parts[block * 64 + thread];  // FAULT last_block
  }
  out[thread] = sum;
}

// A lock around a counter. Planted: it is given back by a relaxed store.
template <bool kPlanted>
__device__ void lock_of(uint32_t* lock, uint32_t* counter) {
  if (threadIdx.x != 0) return;
  while (compare_exchange<Scope::gpu>(lock, 0, 1) != 0) {
  }
  *counter += 1;  // FAULT lock
  if constexpr (kPlanted) {
    store_relaxed<Scope::gpu>(lock, 0);
  } else {
    store_release<Scope::gpu>(lock, 0);
  }
}

// Planted: the lock holds within a block alone.
template <bool kPlanted>
__device__ void lock_of_block_of(uint32_t* lock, uint32_t* counter) {
  constexpr Scope kScope = kPlanted ? Scope::cta : Scope::gpu;
  if (threadIdx.x != 0) return;
  while (compare_exchange<kScope>(lock, 0, 1) != 0) {  // FAULT lock_of_block
  }
  *counter += 1;              // FAULT lock_of_block
  exchange<kScope>(lock, 0);  // FAULT lock_of_block
}

// A result that blocks add to. Planted: with plain loads and stores.
template <bool kPlanted>
__device__ void plain_additions_of(const int* in, int* sums) {
  if constexpr (kPlanted) {
    sums[thread_index()] += in[global_index()];  // FAULT plain_additions
  } else {
    atomicAdd(&sums[thread_index()], in[global_index()]);
  }
}

// The second of two grids that overlap. Planted: it does not wait for the first.
template <bool kPlanted>
__device__ void no_grid_wait_of(const int* data, int* out) {
  const int i = global_index();
  if constexpr (not kPlanted) wait_for_prior_grids();
  out[i] = data[255 - i] + 1;  // FAULT no_grid_wait
}

// Planted: `out` is added to, though nobody has written it.
template <bool kPlanted>
__device__ void out_uninitialised_of(const int* in, int* out) {
  const int i = thread_index();
  if constexpr (kPlanted) {
    out[i] += in[i];  // FAULT out_uninitialised
  } else {
    out[i] = in[i];
  }
}

// n is not a multiple of the block. Planted: no guard.
template <bool kPlanted>
__device__ void no_guard_of(const int* in, int n, int* out) {
  const int i = global_index();
  if (kPlanted or i < n) out[i] = in[i] + 1;  // FAULT no_guard
}

// Planted: a step to the left of the array.
template <bool kPlanted>
__device__ void before_the_array_of(const int* in, int* out) {
  const int i = thread_index();
  out[i] = i == 0 and not kPlanted ? 0 : in[i - 1];  // FAULT before_the_array
}

// Planted: the result goes into the input.
template <bool kPlanted>
__device__ void writes_input_of(int* in, int* out) {
  const int i = thread_index();
  const int value = in[i] + 1;
  (kPlanted ? in : out)[i] = value;  // FAULT writes_input
}

// Planted: a register that nothing wrote.
template <bool kPlanted>
__device__ void register_uninitialised_of(const int* in, int* out) {
  int value;
  if constexpr (kPlanted) {
    asm volatile("{ .reg .b32 never; add.s32 %0, never, %1; }"  // FAULT register_uninitialised
                 : "=r"(value)
                 : "r"(in[thread_index()]));
  } else {
    value = in[thread_index()];
  }
  out[thread_index()] = value;
}

// Each block waits for the one with the ticket before its own. Planted: for the one with the
// ticket behind it, which may find no place on the device.
template <bool kPlanted>
__device__ void waits_for_later_block_of(uint32_t* tickets, uint32_t* done, uint32_t* out) {
  if (threadIdx.x != 0) return;
  const uint32_t ticket = fetch_add<Scope::gpu>(tickets, 1);
  const uint32_t other = kPlanted ? ticket + 1 : ticket - 1;
  if (other < gridDim.x) {
    while (load_acquire<Scope::gpu>(done + other) == 0) {  // FAULT waits_for_later_block
    }
  }
  store_release<Scope::gpu>(done + ticket, 1);
  out[ticket] = ticket;
}

}  // namespace

// Where the data of `pass` is written and read.
#define PASS_PAIR(name) \
  PAIR(name, (const int* in, int* data, uint32_t* flag, int* out), in, data, flag, out)

PASS_PAIR(relaxed_store)
PASS_PAIR(relaxed_load)
PASS_PAIR(store_of_block)
PASS_PAIR(load_of_block)
PASS_PAIR(no_barrier_before_flag)
PASS_PAIR(plain_flag)
PASS_PAIR(no_thread_fence)
PASS_PAIR(fence_of_block)
PASS_PAIR(fence_of_reading_block)
PAIR(scratch_between_warps, (const int* in, int* data, int* out), in, data, out)
PAIR(scratch_in_warp, (const int* in, int* data, int* out), in, data, out)
PAIR(rows_overlap, (const int* in, int* out), in, out)
PAIR(last_block, (const int* in, int* parts, uint32_t* counter, int* out), in, parts, counter, out)
PAIR(lock, (uint32_t* lock, uint32_t* counter), lock, counter)
PAIR(lock_of_block, (uint32_t* lock, uint32_t* counter), lock, counter)
PAIR(plain_additions, (const int* in, int* sums), in, sums)
PAIR(no_grid_wait, (const int* data, int* out), data, out)
PAIR(out_uninitialised, (const int* in, int* out), in, out)
PAIR(no_guard, (const int* in, int n, int* out), in, n, out)
PAIR(before_the_array, (const int* in, int* out), in, out)
PAIR(writes_input, (int* in, int* out), in, out)
PAIR(register_uninitialised, (const int* in, int* out), in, out)
PAIR(waits_for_later_block, (uint32_t* tickets, uint32_t* done, uint32_t* out), tickets, done, out)

// The first of two grids.
extern "C" __global__ void first_grid(const int* in, int* data) {
  launch_dependents();
  data[global_index()] = in[global_index()] * 3;  // FAULT no_grid_wait
}

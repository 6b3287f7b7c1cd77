// Blocks that meet through global memory, and grids that overlap.

#include "hopper/atomic.cuh"
#include "hopper/fence.cuh"
#include "hopper/grid.cuh"
#include "hopper/memory.cuh"

using namespace abyssal::hopper;

namespace {

// Block 0 writes data [128] and raises the flag; the other blocks wait for it and copy.
// flag: 0 before. out [blocks - 1, 128]. 128 threads.
template <Scope kScope, typename Flag>
__device__ void pass(const int* in, int* data, Flag* flag, int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) {
    data[thread] = 3 * in[thread];
    __syncthreads();  // the block's stores come before the release of its thread 0
    if (thread == 0) store_release<kScope>(flag, Flag{1});
  } else {
    if (thread == 0) {
      while (load_acquire<kScope>(flag) == 0) {
      }
    }
    __syncthreads();
    out[(blockIdx.x - 1) * 128 + thread] = data[thread];
  }
}

// The same with relaxed accesses and fences.
template <Scope kScope>
__device__ void pass_by_fences(const int* in, int* data, uint32_t* flag, int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) {
    data[thread] = 3 * in[thread];
    __syncthreads();
    if (thread == 0) {
      fence_acquire_release<kScope>();
      store_relaxed<kScope>(flag, 1);
    }
  } else {
    if (thread == 0) {
      while (load_relaxed<kScope>(flag) == 0) {
      }
      fence_acquire_release<kScope>();
    }
    __syncthreads();
    out[(blockIdx.x - 1) * 128 + thread] = data[thread];
  }
}

}  // namespace

extern "C" __global__ void flag_gpu(const int* in, int* data, uint32_t* flag, int* out) {
  pass<Scope::gpu>(in, data, flag, out);
}
extern "C" __global__ void flag_sys(const int* in, int* data, uint32_t* flag, int* out) {
  pass<Scope::sys>(in, data, flag, out);
}
extern "C" __global__ void flag_gpu_u64(const int* in, int* data, uint64_t* flag, int* out) {
  pass<Scope::gpu>(in, data, flag, out);
}
extern "C" __global__ void flag_sys_u64(const int* in, int* data, uint64_t* flag, int* out) {
  pass<Scope::sys>(in, data, flag, out);
}
extern "C" __global__ void flag_fence_gpu(const int* in, int* data, uint32_t* flag, int* out) {
  pass_by_fences<Scope::gpu>(in, data, flag, out);
}
extern "C" __global__ void flag_fence_sys(const int* in, int* data, uint32_t* flag, int* out) {
  pass_by_fences<Scope::sys>(in, data, flag, out);
}

// A barrier of the whole grid, by additions: each block then reads what its neighbour wrote.
// counter: 0 before. in, data, out [blocks, 128].
extern "C" __global__ void grid_barrier(const int* in, int* data, uint32_t* counter, int* out) {
  const uint32_t blocks = gridDim.x, next = (blockIdx.x + 1) % blocks;
  data[blockIdx.x * 128 + threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x] + 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    add_release<Scope::gpu>(counter, 1);
    while (load_acquire<Scope::gpu>(counter) < blocks) {
    }
  }
  __syncthreads();
  out[blockIdx.x * 128 + threadIdx.x] = data[next * 128 + threadIdx.x];
}

// Each block leaves a part; the last to come adds them all. counter: 0 before.
// in, parts [blocks, 128] -> out [128].
extern "C" __global__ void last_block(const int* in, int* parts, uint32_t* counter, int* out) {
  __shared__ uint32_t before;
  parts[blockIdx.x * 128 + threadIdx.x] = 2 * in[blockIdx.x * 128 + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) before = fetch_add<Scope::gpu>(counter, 1);
  __syncthreads();
  if (before + 1 != gridDim.x) return;
  int sum = 0;
  for (uint32_t block = 0; block < gridDim.x; ++block) sum += parts[block * 128 + threadIdx.x];
  out[threadIdx.x] = sum;
}

// A lock by compare and exchange guards an ordinary counter. lock, counter: 0 before; afterwards
// counter is the number of blocks. found [blocks]: how often each number was found there, once.
extern "C" __global__ void lock(uint32_t* lock, uint32_t* counter, uint32_t* found) {
  if (threadIdx.x != 0) return;
  while (compare_exchange<Scope::gpu>(lock, 0, 1) != 0) {
  }
  const uint32_t value = *counter;
  *counter = value + 1;
  exchange<Scope::gpu>(lock, 0);
  add_relaxed<Scope::gpu>(&found[value], 1);
}

// Two threads of two blocks each raise their own flag and look at the other's: with sequentially
// consistent fences, not both can miss. flags [2] and missed [2]: 0 before. right: 1 if so.
extern "C" __global__ void store_then_load(uint32_t* flags, uint32_t* missed, uint32_t* right) {
  if (threadIdx.x != 0) return;
  store_relaxed<Scope::gpu>(&flags[blockIdx.x], 1);
  fence_sequentially_consistent<Scope::gpu>();
  if (load_relaxed<Scope::gpu>(&flags[1 - blockIdx.x]) == 0) add_relaxed<Scope::gpu>(missed, 1);
  if (fetch_add<Scope::gpu>(missed + 1, 1) == 1) {  // the second to finish judges
    *right = load_relaxed<Scope::gpu>(missed) < 2;
  }
}

// Every thread of every block adds 4 floats. in [blocks, 128, 4] -> out [128, 4], 0 before.
extern "C" __global__ void add_vectors(const float* in, float* out) {
  const float4 value = reinterpret_cast<const float4*>(in)[blockIdx.x * blockDim.x + threadIdx.x];
  add_relaxed_f32x4(out + 4 * threadIdx.x, value);
}

// Loads and stores of 16 bytes with hints. n: pieces.
extern "C" __global__ void copy_once(const uint4* in, int n, uint4* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) store_once(out + i, load_once(in + i));
}

// The first of two grids: lets the second start before it has written anything.
extern "C" __global__ void primary(const int* in, int* data) {
  launch_dependents();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  data[i] = in[i] * in[i];
}

// The second: waits for the first, and reads what other blocks of it wrote.
extern "C" __global__ void secondary(const int* data, int n, int* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  wait_for_prior_grids();
  out[i] = data[n - 1 - i] + 1;
}

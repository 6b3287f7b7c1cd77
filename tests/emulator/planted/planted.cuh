// Pairs of kernels: one that is right, and the same with one bug planted.
//
// A pair is a function template over kPlanted. PAIR makes of it the entry points `name` and
// `name_planted`. Behind every line that a report may name stands a comment, FAULT and the pair's
// name: where two accesses race, it depends on the schedule which of them comes second.
#pragma once

#include "hopper/atomic.cuh"
#include "hopper/bulk.cuh"
#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/grid.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/named_barrier.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

#define PAIR(name, parameters, ...)                                             \
  extern "C" __global__ void name parameters { name##_of<false>(__VA_ARGS__); } \
  extern "C" __global__ void name##_planted parameters { name##_of<true>(__VA_ARGS__); }

namespace {

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int block_index() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int global_index() {
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// An mbarrier that thread 0 makes and all threads of the block, and copies, may use afterwards.
__device__ __forceinline__ void make_barrier(Mbarrier* barrier, uint32_t count) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, count);
    fence_mbarrier_init();
  }
  __syncthreads();
}

}  // namespace

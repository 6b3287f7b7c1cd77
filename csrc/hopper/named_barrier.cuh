// Named barriers of a block: 16 of them, of which __syncthreads uses number 0.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "bar / barrier", bar.sync: waits until `threads` threads, a multiple of 32, have come to barrier
// `id`, by sync or arrive. All threads of a warp execute it together. Orders their accesses to
// memory within the block.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// "bar / barrier", bar.arrive: counts this warp's threads and goes on. `threads` is the same in
// all arrivals and waits of a round, and includes those that wait.
__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace abyssal::hopper

// cp.async: small copies from global to shared memory that a thread starts and does not wait for.
//
// Unlike bulk copies they are made in the generic proxy, need no more alignment than their size,
// and complete in the order of nothing: an mbarrier, or a wait of the thread, tells.
#pragma once

#include "hopper/mbarrier.cuh"

namespace abyssal::hopper {

// "cp.async": 4 bytes, both addresses multiples of 4.
__device__ __forceinline__ void copy_async_4_bytes(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}

// "cp.async.mbarrier.arrive", noinc: arrives at the barrier, as one of the arrivals that its count
// expects, once all copies that this thread started before are complete. Who waits sees them.
__device__ __forceinline__ void copy_async_arrive(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

}  // namespace abyssal::hopper

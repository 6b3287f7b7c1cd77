// Fences: between proxies, after the initialisation of mbarriers, and between threads.
#pragma once

#include "hopper/address.cuh"

namespace abyssal::hopper {

// "membar / fence", fence.proxy.async: my accesses through the generic proxy come before accesses
// through the async proxy that are ordered after this (by program order, a barrier, an mbarrier).
// The thread that wrote fences, then synchronises with the one that starts TMA or WGMMA.
__device__ __forceinline__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The same for global memory that a bulk copy of the same grid reads or writes.
__device__ __forceinline__ void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// The same for every state space.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

// "membar / fence", fence.mbarrier_init: mbarriers that I initialised are seen as such by threads
// of the cluster, and by the async proxy, that synchronise with me after this
// (barrier.cluster.arrive.relaxed is enough).
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// "membar / fence", fence.acq_rel: what I did or saw before is seen before what I do after, by
// every thread of the scope that meets it through a later relaxed access.
template <Scope kScope>
__device__ __forceinline__ void fence_acquire_release() {
  asm volatile("fence.acq_rel.%0;" ::"C"(detail::ScopeName<kScope>::text) : "memory");
}

// "membar / fence", fence.sc: also one total order of all such fences, for store-then-load
// patterns. Slower.
template <Scope kScope>
__device__ __forceinline__ void fence_sequentially_consistent() {
  asm volatile("fence.sc.%0;" ::"C"(detail::ScopeName<kScope>::text) : "memory");
}

}  // namespace abyssal::hopper

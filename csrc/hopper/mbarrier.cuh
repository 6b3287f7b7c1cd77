// mbarriers: barriers in shared memory that count arrivals of threads and bytes of bulk copies.
//
// A phase completes when all expected arrivals have come and the bytes announced by expect_tx have
// landed (the count is signed: bytes may land before they are announced). It then begins anew with
// the count of init. Phases are told apart by their parity: the first has parity 0. waiting for a
// parity returns once the phase of that parity has completed, so a wait for parity 1 on a fresh
// barrier returns at once (a producer's first round).
#pragma once

#include "hopper/address.cuh"

namespace abyssal::hopper {

// "Size and alignment of mbarrier object". Lives in shared memory.
struct alignas(8) Mbarrier {
  uint64_t opaque;
};

// "mbarrier.init", count in 1 .. 2^20 - 1. By one thread; others may use the barrier after
// fence_mbarrier_init (for the async proxy and the cluster) and a barrier of the block or cluster.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

// "mbarrier.inval": the memory may be used for something else after this.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// "mbarrier.arrive". Release at the scope of the block: who waits sees what I wrote before.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// `count` arrivals at once; count >= 1 and not more than the phase still expects.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier, uint32_t count) {
  asm volatile(
      "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(count)
      : "memory");
}

// "mbarrier.arrive" with .expect_tx: announces `bytes`, then arrives, as one operation.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// "mbarrier.expect_tx": announces `bytes` to the current phase. Orders nothing; the phase must not
// complete in between, so an arrival of this thread follows.
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// "mapa" and "mbarrier.arrive": arrives at the barrier in the same place of block `rank` of the
// cluster, release at the scope of the cluster. That block must not have exited. Scope::cta is for
// who has only read what the peer will overwrite: nothing that was written is handed over, and no
// fence is made (at the cluster's scope, nvcc 13.0 makes MEMBAR.ALL.GPU of it).
template <Scope kScope = Scope::cluster>
__device__ __forceinline__ void mbarrier_arrive_remote(Mbarrier* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.%2.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank), "C"(detail::ScopeName<kScope>::text)
      : "memory");
}

// The same, announcing `bytes` there first.
__device__ __forceinline__ void mbarrier_arrive_expect_tx_remote(Mbarrier* barrier, uint32_t rank,
                                                                 uint32_t bytes) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [remote], %2;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank), "r"(bytes)
      : "memory");
}

// "mbarrier.test_wait / mbarrier.try_wait": whether the phase of `parity` has completed. The
// hardware may suspend the thread for a while first, and may say false for no reason. When true,
// an acquire at the scope: Scope::cluster where arrivals come from other blocks.
template <Scope kScope = Scope::cta>
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, uint32_t parity) {
  uint32_t completed;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.%3.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(completed)
      : "r"(shared_address(barrier)), "r"(parity), "C"(detail::ScopeName<kScope>::text)
      : "memory");
  return completed != 0;
}

// The same without the suspension: to look, not to wait.
template <Scope kScope = Scope::cta>
__device__ __forceinline__ bool mbarrier_test_wait(Mbarrier* barrier, uint32_t parity) {
  uint32_t completed;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.acquire.%3.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(completed)
      : "r"(shared_address(barrier)), "r"(parity), "C"(detail::ScopeName<kScope>::text)
      : "memory");
  return completed != 0;
}

// Waits until the phase of `parity` has completed.
template <Scope kScope = Scope::cta>
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
  while (not mbarrier_try_wait<kScope>(barrier, parity)) {
  }
}

}  // namespace abyssal::hopper

// Clusters: blocks that run together and reach each other's shared memory.
#pragma once

#include "hopper/mbarrier.cuh"

namespace abyssal::hopper {

// "Special registers: %cluster_ctarank": this block's number in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// "Special registers: %cluster_nctarank": blocks in a cluster.
__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// "mapa": the address, for instructions on `.shared::cluster`, of the same place in the shared
// memory of block `rank`.
__device__ __forceinline__ uint32_t peer_address(const void* pointer, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

// "barrier.cluster": arrive and wait are made by all threads of all blocks, each warp together.
// What came before an arrive (release) is seen after the wait (acquire). A block whose shared
// memory peers may still touch must not exit before such a barrier.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Orders nothing by itself: for after fence_mbarrier_init, which does.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// A meeting that hands over nothing: of mbarriers that fence_mbarrier_init has released, or before
// an exit.
__device__ __forceinline__ void cluster_meet() {
  cluster_arrive_relaxed();
  cluster_wait();
}

// "ld" and "st" on .shared::cluster, at an address from peer_address. Weak: order them by a
// cluster barrier or an mbarrier.
__device__ __forceinline__ uint32_t load_peer(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ uint4 load_peer_16_bytes(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_peer(uint32_t address, uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void store_peer_16_bytes(uint32_t address, uint4 value) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// "st.async": stores 4 bytes at a peer, which count on the mbarrier at `barrier_address` of the
// same peer (both from peer_address); who waits there sees them.
__device__ __forceinline__ void store_peer_async(uint32_t address, uint32_t value,
                                                 uint32_t barrier_address) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
          address),
      "r"(value), "r"(barrier_address)
      : "memory");
}

}  // namespace abyssal::hopper

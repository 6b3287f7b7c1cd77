// Bulk copies of contiguous bytes, the groups in which bulk stores complete, and cache policies.
//
// Addresses and sizes are multiples of 16 bytes. A copy is started by one thread and runs in the
// async proxy. Copies into shared memory complete on an mbarrier (they count as bytes there);
// copies out of it complete in the bulk groups of the thread that started them.
#pragma once

#include "hopper/mbarrier.cuh"

namespace abyssal::hopper {

// "createpolicy": what L2 should do with the lines of an access.
struct CachePolicy {
  uint64_t opaque;
};

// For what is read once.
__device__ __forceinline__ CachePolicy evict_first_policy() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy.opaque));
  return policy;
}

// For what many blocks will read again.
__device__ __forceinline__ CachePolicy evict_last_policy() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy.opaque));
  return policy;
}

// "cp.async.bulk", global to shared memory. The barrier's phase must expect `bytes`.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          Mbarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          Mbarrier* barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy.opaque)
      : "memory");
}

// The same into every block of the cluster whose bit is set in `mask`: each receives the bytes,
// and their count, at the same places as here.
__device__ __forceinline__ void bulk_load_multicast(void* shared, const void* global,
                                                    uint32_t bytes, Mbarrier* barrier,
                                                    uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "h"(mask)
      : "memory");
}

// "cp.async.bulk", shared memory to that of block `rank` of the cluster, at the place of `remote`
// and on the barrier at the place of `barrier` there. Fence before it as before a store.
__device__ __forceinline__ void bulk_copy_to_peer(void* remote, const void* shared, uint32_t bytes,
                                                  Mbarrier* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 target, signal;\n"
      "mapa.shared::cluster.u32 target, %0, %4;\n"
      "mapa.shared::cluster.u32 signal, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [target], [%1], %2, "
      "[signal];\n"
      "}" ::"r"(shared_address(remote)),
      "r"(shared_address(shared)), "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

// "cp.async.bulk", shared to global memory, in the current bulk group. What was written to shared
// memory through the generic proxy needs fence_proxy_async_shared first.
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes,
                                           CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(
          global),
      "r"(shared_address(shared)), "r"(bytes), "l"(policy.opaque)
      : "memory");
}

// "cp.reduce.async.bulk": adds to global memory, element by element, relaxed at the scope of the
// GPU; the order of several additions is open. BF16 sums round to nearest and keep subnormals.
__device__ __forceinline__ void bulk_reduce_add_f32(float* global, const void* shared,
                                                    uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
      "r"(shared_address(shared)), "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void bulk_reduce_add_bf16(void* global, const void* shared,
                                                     uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%0], [%1], %2;" ::"l"(
          global),
      "r"(shared_address(shared)), "r"(bytes)
      : "memory");
}

// "cp.async.bulk.prefetch": global memory to L2.
__device__ __forceinline__ void bulk_prefetch(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

// "cp.async.bulk.commit_group": closes the group of the bulk stores that this thread started.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// "cp.async.bulk.wait_group": until at most kGroups of the thread's newest groups are not
// complete: written, and visible to this thread.
template <int kGroups>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

// The same, .read: until their shared memory has been read and may be overwritten.
template <int kGroups>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

}  // namespace abyssal::hopper

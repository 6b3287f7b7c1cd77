// TMA: copies of boxes of a tensor between global and shared memory, "cp.async.bulk.tensor".
//
// A tensor map, made on the host by cuTensorMapEncodeTiled, says where the tensor is, the box, the
// swizzle and what is read out of bounds. Coordinates are elements, the innermost dimension first,
// and may be negative: what is outside the tensor is filled on a load (and counts as bytes all the
// same) and left out on a store. The address in shared memory is a multiple of 128 bytes, with
// swizzles of the swizzle's period: 256, 512 or 1024 bytes for 32, 64 and 128.
//
// Started by one thread, in the async proxy. Loads complete on an mbarrier, whose phase must
// expect the bytes of the whole box; stores complete in bulk groups (bulk.cuh).
#pragma once

#include "hopper/bulk.cuh"
#include "hopper/tensor_map.hpp"

namespace abyssal::hopper {

// rank, operands of the coordinates, the three operands that follow them, and their constraints.
#define ABYSSAL_TMA_RANKS(X)                             \
  X(1, "%2", "%3", "%4", "%5", ABYSSAL_AT_1)             \
  X(2, "%2, %3", "%4", "%5", "%6", ABYSSAL_AT_2)         \
  X(3, "%2, %3, %4", "%5", "%6", "%7", ABYSSAL_AT_3)     \
  X(4, "%2, %3, %4, %5", "%6", "%7", "%8", ABYSSAL_AT_4) \
  X(5, "%2, %3, %4, %5, %6", "%7", "%8", "%9", ABYSSAL_AT_5)
#define ABYSSAL_AT_1 "r"(at[0])
#define ABYSSAL_AT_2 ABYSSAL_AT_1, "r"(at[1])
#define ABYSSAL_AT_3 ABYSSAL_AT_2, "r"(at[2])
#define ABYSSAL_AT_4 ABYSSAL_AT_3, "r"(at[3])
#define ABYSSAL_AT_5 ABYSSAL_AT_4, "r"(at[4])

// "cp.async.bulk.tensor", load of a box. `at`: {innermost, ..., outermost}, 1 to 5 of them.
template <int kRank>
__device__ __forceinline__ void tma_load(void* shared, const TensorMap* map, Mbarrier* barrier,
                                         const int (&at)[kRank]) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                               \
  if constexpr (kRank == rank) {                                                              \
    asm volatile(                                                                             \
        "cp.async.bulk.tensor." #rank                                                         \
        "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
        "}], [" first "];" ::"r"(shared_address(shared)),                                     \
        "l"(map), constraints, "r"(shared_address(barrier))                                   \
        : "memory");                                                                          \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

template <int kRank>
__device__ __forceinline__ void tma_load(void* shared, const TensorMap* map, Mbarrier* barrier,
                                         const int (&at)[kRank], CachePolicy policy) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                               \
  if constexpr (kRank == rank) {                                                              \
    asm volatile("cp.async.bulk.tensor." #rank                                                \
                 "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint " \
                 "[%0], [%1, {" coordinates "}], [" first "], " second                        \
                 ";" ::"r"(shared_address(shared)),                                           \
                 "l"(map), constraints, "r"(shared_address(barrier)), "l"(policy.opaque)      \
                 : "memory");                                                                 \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

// The same into every block of the cluster whose bit is set in `mask`: each receives the box, and
// the count of its bytes, at the same places as here.
template <int kRank>
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap* map,
                                                   Mbarrier* barrier, const int (&at)[kRank],
                                                   uint16_t mask) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                            \
  if constexpr (kRank == rank) {                                                           \
    asm volatile("cp.async.bulk.tensor." #rank                                             \
                 "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"              \
                 ".multicast::cluster [%0], [%1, {" coordinates "}], [" first "], " second \
                 ";" ::"r"(shared_address(shared)),                                        \
                 "l"(map), constraints, "r"(shared_address(barrier)), "h"(mask)            \
                 : "memory");                                                              \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

template <int kRank>
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap* map,
                                                   Mbarrier* barrier, const int (&at)[kRank],
                                                   uint16_t mask, CachePolicy policy) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                              \
  if constexpr (kRank == rank) {                                                             \
    asm volatile("cp.async.bulk.tensor." #rank                                               \
                 "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"                \
                 ".multicast::cluster.L2::cache_hint [%0], [%1, {" coordinates "}], [" first \
                 "], " second ", " third ";" ::"r"(shared_address(shared)),                  \
                 "l"(map), constraints, "r"(shared_address(barrier)), "h"(mask),             \
                 "l"(policy.opaque)                                                          \
                 : "memory");                                                                \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

// "cp.async.bulk.tensor", store of a box, in the current bulk group. What was written to shared
// memory through the generic proxy needs fence_proxy_async_shared by its writers first.
template <int kRank>
__device__ __forceinline__ void tma_store(const TensorMap* map, const void* shared,
                                          const int (&at)[kRank]) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)            \
  if constexpr (kRank == rank) {                                           \
    asm volatile("cp.async.bulk.tensor." #rank                             \
                 "d.global.shared::cta.tile.bulk_group [%1, {" coordinates \
                 "}], [%0];" ::"r"(shared_address(shared)),                \
                 "l"(map), constraints                                     \
                 : "memory");                                              \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

template <int kRank>
__device__ __forceinline__ void tma_store(const TensorMap* map, const void* shared,
                                          const int (&at)[kRank], CachePolicy policy) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                           \
  if constexpr (kRank == rank) {                                                          \
    asm volatile("cp.async.bulk.tensor." #rank                                            \
                 "d.global.shared::cta.tile.bulk_group.L2::cache_hint [%1, {" coordinates \
                 "}], [%0], " first ";" ::"r"(shared_address(shared)),                    \
                 "l"(map), constraints, "l"(policy.opaque)                                \
                 : "memory");                                                             \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

// "cp.reduce.async.bulk.tensor": adds a box to the tensor, element by element in the tensor's
// type, relaxed at the scope of the GPU; the order of several additions is open.
template <int kRank>
__device__ __forceinline__ void tma_reduce_add(const TensorMap* map, const void* shared,
                                               const int (&at)[kRank]) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                \
  if constexpr (kRank == rank) {                                               \
    asm volatile("cp.reduce.async.bulk.tensor." #rank                          \
                 "d.global.shared::cta.add.tile.bulk_group [%1, {" coordinates \
                 "}], [%0];" ::"r"(shared_address(shared)),                    \
                 "l"(map), constraints                                         \
                 : "memory");                                                  \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

// "cp.async.bulk.prefetch.tensor": a box to L2. Unlike the copies it takes nothing in shared
// memory; operand 0 is unused.
template <int kRank>
__device__ __forceinline__ void tma_prefetch(const TensorMap* map, const int (&at)[kRank]) {
  static_assert(kRank >= 1 and kRank <= 5, "a tensor map has 1 to 5 dimensions");
#define X(rank, coordinates, first, second, third, constraints)                               \
  if constexpr (kRank == rank) {                                                              \
    asm volatile("cp.async.bulk.prefetch.tensor." #rank "d.L2.global.tile [%1, {" coordinates \
                 "}];" ::"n"(0),                                                              \
                 "l"(map), constraints                                                        \
                 : "memory");                                                                 \
  }
  ABYSSAL_TMA_RANKS(X)
#undef X
}

#undef ABYSSAL_TMA_RANKS
#undef ABYSSAL_AT_1
#undef ABYSSAL_AT_2
#undef ABYSSAL_AT_3
#undef ABYSSAL_AT_4
#undef ABYSSAL_AT_5

// "prefetch / prefetchu", prefetch.tensormap: the map itself, so that the first copy need not
// wait for it.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace abyssal::hopper

// Accesses to global memory that other blocks, or other GPUs, meanwhile make too.
//
// "Memory Consistency Model": a release by one thread, seen by an acquire of another, orders what
// came before it against what comes after that. Both name a scope that holds the other thread:
// Scope::gpu for other blocks, Scope::sys for other GPUs and the host.
#pragma once

#include "hopper/address.cuh"

namespace abyssal::hopper {

// "ld.acquire".
template <Scope kScope>
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* pointer) {
  uint32_t value;
  asm volatile("ld.acquire.%2.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(pointer), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return value;
}

template <Scope kScope>
__device__ __forceinline__ uint64_t load_acquire(const uint64_t* pointer) {
  uint64_t value;
  asm volatile("ld.acquire.%2.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(pointer), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return value;
}

// "ld.relaxed": sees others' stores, orders nothing; a fence may follow.
template <Scope kScope>
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* pointer) {
  uint32_t value;
  asm volatile("ld.relaxed.%2.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(pointer), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return value;
}

// "st.release".
template <Scope kScope>
__device__ __forceinline__ void store_release(uint32_t* pointer, uint32_t value) {
  asm volatile("st.release.%2.global.u32 [%0], %1;" ::"l"(pointer), "r"(value),
               "C"(detail::ScopeName<kScope>::text)
               : "memory");
}

template <Scope kScope>
__device__ __forceinline__ void store_release(uint64_t* pointer, uint64_t value) {
  asm volatile("st.release.%2.global.u64 [%0], %1;" ::"l"(pointer), "l"(value),
               "C"(detail::ScopeName<kScope>::text)
               : "memory");
}

// "st.relaxed".
template <Scope kScope>
__device__ __forceinline__ void store_relaxed(uint32_t* pointer, uint32_t value) {
  asm volatile("st.relaxed.%2.global.u32 [%0], %1;" ::"l"(pointer), "r"(value),
               "C"(detail::ScopeName<kScope>::text)
               : "memory");
}

// "red", release: adds without asking for the old value.
template <Scope kScope>
__device__ __forceinline__ void add_release(uint32_t* pointer, uint32_t value) {
  asm volatile("red.release.%2.global.add.u32 [%0], %1;" ::"l"(pointer), "r"(value),
               "C"(detail::ScopeName<kScope>::text)
               : "memory");
}

// "red", relaxed.
template <Scope kScope>
__device__ __forceinline__ void add_relaxed(uint32_t* pointer, uint32_t value) {
  asm volatile("red.relaxed.%2.global.add.u32 [%0], %1;" ::"l"(pointer), "r"(value),
               "C"(detail::ScopeName<kScope>::text)
               : "memory");
}

// "atom", acquire and release: adds; returns what was there.
template <Scope kScope>
__device__ __forceinline__ uint32_t fetch_add(uint32_t* pointer, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.%3.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(pointer), "r"(value), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return before;
}

// "atom", acquire and release: stores; returns what was there.
template <Scope kScope>
__device__ __forceinline__ uint32_t exchange(uint32_t* pointer, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.%3.global.exch.b32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(pointer), "r"(value), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return before;
}

// "atom", acquire and release: stores `value` if `expected` is there; returns what was there.
template <Scope kScope>
__device__ __forceinline__ uint32_t compare_exchange(uint32_t* pointer, uint32_t expected,
                                                     uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.%4.global.cas.b32 %0, [%1], %2, %3;"
               : "=r"(before)
               : "l"(pointer), "r"(expected), "r"(value), "C"(detail::ScopeName<kScope>::text)
               : "memory");
  return before;
}

// "red", vectors: four floats, each added on its own, relaxed. `pointer` is 16-byte aligned.
__device__ __forceinline__ void add_relaxed_f32x4(float* pointer, float4 value) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(pointer),
               "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}

}  // namespace abyssal::hopper

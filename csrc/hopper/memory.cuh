// Plain accesses to global memory, wide and with cache hints.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "ld.global.nc": 16 bytes that this kernel reads once and nobody writes meanwhile; they leave the
// L1 cache to others. `pointer` is 16-byte aligned.
__device__ __forceinline__ uint4 load_once(const void* pointer) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(pointer));
  return value;
}

// "st": 16 bytes that this kernel will not read. `pointer` is 16-byte aligned.
__device__ __forceinline__ void store_once(void* pointer, uint4 value) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

}  // namespace abyssal::hopper

// What the compiler is told and the machine never sees.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// Makes the compiler forget what it knows of a value, and so compute anew what it has computed from
// it, where keeping that would cost registers. No instruction.
__device__ __forceinline__ void unlearn(uint4& value) {
  asm volatile("" : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w));
}

__device__ __forceinline__ void unlearn(int& value) { asm volatile("" : "+r"(value)); }

__device__ __forceinline__ void unlearn(int64_t& value) { asm volatile("" : "+l"(value)); }

}  // namespace abyssal::hopper

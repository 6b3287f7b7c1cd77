// Time. Cycles of the multiprocessor are CUDA's clock64().
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "Special registers: %globaltimer": nanoseconds, the same clock on the whole GPU; its steps are
// the hardware's choice (up to a microsecond).
__device__ __forceinline__ uint64_t globaltimer() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

}  // namespace abyssal::hopper

// Arithmetic that CUDA C++ has no name for.
#pragma once

namespace abyssal::hopper {

// The larger of two numbers; NaN if one is NaN (fmaxf would drop it).
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

}  // namespace abyssal::hopper

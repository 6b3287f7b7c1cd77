// FP8 E4M3: conversions.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr uint32_t kFourE4m3Nans = 0x7F7F7F7F;

// Two floats to two E4M3 codes, `first` in the low byte. Rounds to nearest even and clamps finite
// values and infinities to +-448.
__device__ __forceinline__ uint32_t to_e4m3x2(float first, float second) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
  return codes;
}

// Four floats to four E4M3 codes, the first in the lowest byte.
__device__ __forceinline__ uint32_t to_e4m3x4(float first, float second, float third,
                                              float fourth) {
  return to_e4m3x2(first, second) | to_e4m3x2(third, fourth) << 16;
}

}  // namespace abyssal::hopper

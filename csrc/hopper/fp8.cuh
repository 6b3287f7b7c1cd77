// FP8, E4M3 and E5M2: conversions.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr uint32_t kFourE4m3Nans = 0x7F7F7F7F;

// "cvt": two floats to two E4M3 codes, `first` in the low byte. Rounds to nearest even and clamps
// finite values and infinities to +-448.
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

// "cvt": two floats to two E5M2 codes, `first` in the low byte; clamps to +-57344.
__device__ __forceinline__ uint32_t to_e5m2x2(float first, float second) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
  return codes;
}

// "cvt": two FP16 numbers to two E4M3 codes.
__device__ __forceinline__ uint32_t fp16x2_to_e4m3x2(uint32_t values) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(codes) : "r"(values));
  return codes;
}

// "cvt": two codes, in the low 16 bits, to two FP16 numbers, which hold every value of both types.
__device__ __forceinline__ uint32_t e4m3x2_to_fp16x2(uint32_t codes) {
  uint32_t values;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(values) : "h"(static_cast<uint16_t>(codes)));
  return values;
}

__device__ __forceinline__ uint32_t e5m2x2_to_fp16x2(uint32_t codes) {
  uint32_t values;
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(values) : "h"(static_cast<uint16_t>(codes)));
  return values;
}

}  // namespace abyssal::hopper

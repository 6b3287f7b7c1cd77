// Conversions between FP32 and the 16-bit types, two at a time, and to TF32.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "cvt": two floats to two BF16 numbers, `first` in the low half; to nearest even.
__device__ __forceinline__ uint32_t to_bf16x2(float first, float second) {
  uint32_t values;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(values) : "f"(second), "f"(first));
  return values;
}

// "cvt": two floats to two FP16 numbers, `first` in the low half; to nearest even, infinity beyond
// 65504.
__device__ __forceinline__ uint32_t to_fp16x2(float first, float second) {
  uint32_t values;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(values) : "f"(second), "f"(first));
  return values;
}

// "cvt": one FP16 number, in the low half, to FP32. Exact.
__device__ __forceinline__ float fp16_to_fp32(uint32_t value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(static_cast<uint16_t>(value)));
  return result;
}

// One BF16 number, in the low half, to FP32. Exact: its bits are the upper half.
__device__ __forceinline__ float bf16_to_fp32(uint32_t value) {
  return __uint_as_float(value << 16);
}

// "cvt": to TF32, 10 fraction bits in an FP32 word whose low 13 bits are 0; to nearest, ties away
// from zero. WGMMA reads no more than these bits: unrounded words are cut.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}

}  // namespace abyssal::hopper

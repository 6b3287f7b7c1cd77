// Arithmetic that CUDA C++ has no name for, and the hardware's approximate functions.
//
// The approximate functions flush subnormal arguments and results to zero of the same sign (.ftz),
// except tanh, which keeps them. Their bounds are those of the PTX ISA's sections of these names.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "max": the larger of two numbers; NaN if one is NaN (fmaxf would drop it).
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// "max": of two pairs of BF16 numbers, the larger magnitudes; NaN if one is NaN. Signs mean
// nothing.
__device__ __forceinline__ uint32_t max_magnitudes_bf16x2(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// "max" and "min": two pairs of BF16 numbers, no less than `low` and no more than `high`; NaN
// becomes `low`.
__device__ __forceinline__ uint32_t clamp_bf16x2(uint32_t x, uint32_t low, uint32_t high) {
  asm("max.bf16x2 %0, %0, %1;\n\tmin.bf16x2 %0, %0, %2;" : "+r"(x) : "r"(low), "r"(high));
  return x;
}

// "ex2": 2^x, within 2 units of the last place.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "lg2": log2(x), absolute error 2^-22 for x in [1/2, 2], elsewhere relative error 2^-22.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "rcp": 1 / x, within one unit of the last place.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to nearest even, for x from 2^-126 to below 2^126: what __frcp_rn does for these, a Newton
// step, without its branches for others.
__device__ __forceinline__ float reciprocal(float x) {
  const float y = reciprocal_approx(x);
  return __fmaf_rn(y, -__fmaf_rn(x, y, -1.0f), y);
}

// "rsqrt": 1 / sqrt(x), relative error 2^-22.9.
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "sqrt": relative error 2^-23.
__device__ __forceinline__ float sqrt_approx(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "sin" and "cos": absolute error 2^-20.5 for x in [-2 pi, 2 pi], growing beyond.
__device__ __forceinline__ float sin_approx(float x) {
  float y;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float cos_approx(float x) {
  float y;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "tanh": relative error 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// "div": a / b, within 2 units of the last place for |b| in [2^-126, 2^126], 0 beyond.
__device__ __forceinline__ float divide_approx(float a, float b) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

}  // namespace abyssal::hopper

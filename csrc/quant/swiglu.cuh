// SwiGLU, silu(gate) * up, operation by operation as abyssal.reference.fused has it: each is
// rounded to nearest even in FP32, so that all backends give the same bits. For that, no product
// and sum become one FMA, and the exponential is a polynomial, not the hardware's.
#pragma once

#include "hopper/math.cuh"

namespace abyssal::quant {

// 1 / (1 + e^-x) of a clamped x, relative error below 1e-7 (3 + |x|).
__device__ inline float sigmoid(float x) {
  // e^-x = 2^t = 2^n 2^r, n the integer next to t.
  const float t = __fmul_rn(x, -0x1.715476p+0f);
  constexpr float kShift = 0x1.8p+23f;  // added, it rounds to an integer, in the lowest bits
  const float shifted = __fadd_rn(t, kShift);
  const float r = __fsub_rn(t, __fsub_rn(shifted, kShift));
  // The polynomial with p(0) = 1 that is nearest to 2^r, relatively, for |r| <= 1/2: 1.1e-7.
  constexpr float kCoefficients[] = {0x1.5bba14p-10f, 0x1.3cea88p-7f, 0x1.c6b752p-5f,
                                     0x1.ebf9bcp-3f,  0x1.62e42ap-1f, 1.0f};
  float power = kCoefficients[0];
#pragma unroll
  for (int i = 1; i < 6; ++i) power = __fadd_rn(__fmul_rn(power, r), kCoefficients[i]);
  power = __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
  return hopper::reciprocal(__fadd_rn(1.0f, power));
}

// Two gates in one word, clamped to [-86.5, 41.5]: beyond, the sigmoid is 1, or stays at 2^-124.8,
// where its inverse is still a normal number. NaN becomes a number: it comes back with the product.
__device__ inline uint32_t clamp_gates(uint32_t gates) {
  return hopper::clamp_bf16x2(gates, 0xC2ADC2AD, 0x42264226);
}

// What the products of SwiGLU and of its gradient share, of one gate.
struct Silu {
  float sigma;
  float value;

  __device__ Silu(float gate, float clamped_gate)
      : sigma(sigmoid(clamped_gate)), value(__fmul_rn(gate, sigma)) {}

  // d silu / d gate
  __device__ float slope() const {
    return __fadd_rn(sigma, __fmul_rn(value, __fsub_rn(1.0f, sigma)));
  }
};

}  // namespace abyssal::quant

// SwiGLU, silu(gate) * up, operation by operation as abyssal.reference.fused has it: each is
// rounded to nearest even in FP32, so that all backends give the same bits. For that, no product
// and sum become one FMA, and the exponential is a polynomial, not the hardware's.
#pragma once

#include "hopper/math.cuh"

namespace abyssal::quant {

// 1 / (1 + e^-x), relative error below 1e-7 (3 + |x|) from -86 on; below, it stays at 2^-125.
__device__ inline float sigmoid(float x) {
  // e^-x = 2^t = 2^n 2^r, n the integer next to t. Beyond the bounds of t the sum below is 1, or
  // its inverse would not be a normal number. NaN comes out as a number: callers multiply
  // by x.
  const float t = fminf(fmaxf(__fmul_rn(x, -0x1.715476p+0f), -60.0f), 125.0f);
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

// What the products of SwiGLU and of its gradient share, of one gate.
struct Silu {
  float sigma;
  float value;

  __device__ explicit Silu(float gate) : sigma(sigmoid(gate)), value(__fmul_rn(gate, sigma)) {}

  // d silu / d gate
  __device__ float slope() const {
    return __fadd_rn(sigma, __fmul_rn(value, __fsub_rn(1.0f, sigma)));
  }
};

}  // namespace abyssal::quant

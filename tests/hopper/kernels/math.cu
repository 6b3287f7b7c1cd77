// The approximate functions, and those that CUDA C++ offers: y[i] = f(x[i]).

#include "hopper/clock.cuh"
#include "hopper/math.cuh"

using namespace abyssal::hopper;

#define ENTRY(name, expression)                                                        \
  extern "C" __global__ void name(const float* a, const float* b, int n, float* out) { \
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);             \
    if (i >= n) return;                                                                \
    const float x = a[i], y = b[i];                                                    \
    static_cast<void>(y);                                                              \
    out[i] = expression;                                                               \
  }

// Subnormals flushed.
ENTRY(math_exp2, exp2_approx(x))
ENTRY(math_log2, log2_approx(x))
ENTRY(math_reciprocal, reciprocal_approx(x))
ENTRY(math_reciprocal_rounded, reciprocal(x))
ENTRY(math_rsqrt, rsqrt_approx(x))
ENTRY(math_sqrt, sqrt_approx(x))
ENTRY(math_sin, sin_approx(x))
ENTRY(math_cos, cos_approx(x))
ENTRY(math_tanh, tanh_approx(x))
ENTRY(math_divide, divide_approx(x, y))
// Subnormals kept, or rounded as IEEE 754 says.
ENTRY(cuda_log2, __log2f(x))
ENTRY(cuda_rsqrt, rsqrtf(x))
ENTRY(cuda_sin, __sinf(x))
ENTRY(cuda_cos, __cosf(x))
ENTRY(cuda_fdividef, __fdividef(x, y))
ENTRY(cuda_exp2, exp2f(x))
ENTRY(ieee_reciprocal, __frcp_rn(x))
ENTRY(ieee_sqrt, __fsqrt_rn(x))
ENTRY(ieee_divide, __fdiv_rn(x, y))
ENTRY(ieee_fma, __fmaf_rn(x, y, x))
ENTRY(math_max_or_nan, max_or_nan(x, y))

// Pairs of BF16 numbers. Signs of the first mean nothing.
ENTRY(bf16x2_max_magnitudes,
      __uint_as_float(max_magnitudes_bf16x2(__float_as_uint(x), __float_as_uint(y)) & 0x7FFF7FFF))
ENTRY(bf16x2_clamp, __uint_as_float(clamp_bf16x2(__float_as_uint(x), 0xC2ADC2AD, 0x42264226)))

// Clocks run: out [0] cycles and [1] nanoseconds between two looks, 1 where they did not go back.
extern "C" __global__ void clocks(uint32_t* out) {
  if (threadIdx.x != 0) return;
  const long long cycles = clock64();
  const uint64_t nanoseconds = globaltimer();
  out[0] = clock64() > cycles;
  out[1] = globaltimer() >= nanoseconds and nanoseconds > 0;
}

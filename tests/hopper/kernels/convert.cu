// Conversions; n is the number of pairs.

#include "hopper/convert.cuh"
#include "hopper/fp8.cuh"

using namespace abyssal::hopper;

#define ENTRY(name, In, Out, expression)                                   \
  extern "C" __global__ void name(const In* in, int n, Out* out) {         \
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); \
    if (i >= n) return;                                                    \
    out[i] = static_cast<Out>(expression);                                 \
  }

ENTRY(f32_to_e4m3, float2, uint16_t, to_e4m3x2(in[i].x, in[i].y))
ENTRY(f32_to_e5m2, float2, uint16_t, to_e5m2x2(in[i].x, in[i].y))
ENTRY(f32_to_bf16, float2, uint32_t, to_bf16x2(in[i].x, in[i].y))
ENTRY(f32_to_f16, float2, uint32_t, to_fp16x2(in[i].x, in[i].y))
ENTRY(f16_to_e4m3, uint32_t, uint16_t, fp16x2_to_e4m3x2(in[i]))
ENTRY(e4m3_to_f16, uint16_t, uint32_t, e4m3x2_to_fp16x2(in[i]))
ENTRY(e5m2_to_f16, uint16_t, uint32_t, e5m2x2_to_fp16x2(in[i]))
ENTRY(f32_to_tf32, float, uint32_t, to_tf32(in[i]))
ENTRY(f16_to_f32, uint16_t, float, fp16_to_fp32(in[i]))
ENTRY(bf16_to_f32, uint16_t, float, bf16_to_fp32(in[i]))

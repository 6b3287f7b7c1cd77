// The quantisers, as host code calls them. Launchers throw DeviceError.
#pragma once

#include <vector>

#include "quant/quantize_128x128.hpp"
#include "quant/quantize_1x128.hpp"
#include "quant/quantize_1x128_both.hpp"
#include "quant/retile_128x1.hpp"
#include "quant/rms_norm_quantize.hpp"
#include "quant/swiglu_quantize.hpp"
#include "quant/swiglu_quantize_backward.hpp"
#include "runtime/launch.hpp"

namespace abyssal {

// Every entry point of the family, to load them ahead of a launch.
std::vector<EntryPoint> quantiser_kernels();

namespace quantize_1x128 {

inline constexpr Kernel<Quantize1x128Params> kKernels[] = {
    {"quantize_1x128", "quantize_1x128_bf16"},
    {"quantize_1x128", "quantize_1x128_bf16_unaligned"},
    {"quantize_1x128", "quantize_1x128_fp32"},
    {"quantize_1x128", "quantize_1x128_fp32_unaligned"},
};

// Queues the quantiser that fits the type and alignment of x.
void launch(const Stream& stream, const Quantize1x128Params& params, bool x_is_bf16);

}  // namespace quantize_1x128

namespace quantize_1x128_both {

inline constexpr Kernel<Quantize1x128BothParams> kKernels[] = {
    {"quantize_1x128_both", "quantize_1x128_both_bf16"},
    {"quantize_1x128_both", "quantize_1x128_both_bf16_unaligned"},
    {"quantize_1x128_both", "quantize_1x128_both_fp32"},
    {"quantize_1x128_both", "quantize_1x128_both_fp32_unaligned"},
};

// Queues the quantiser of both orientations that fits the type and alignment of x.
void launch(const Stream& stream, const Quantize1x128BothParams& params, bool x_is_bf16);

}  // namespace quantize_1x128_both

namespace quantize_128x128 {

inline constexpr Kernel<Quantize128x128Params> kKernels[] = {
    {"quantize_128x128", "quantize_128x128_bf16"},
    {"quantize_128x128", "quantize_128x128_bf16_unaligned"},
    {"quantize_128x128", "quantize_128x128_fp32"},
    {"quantize_128x128", "quantize_128x128_fp32_unaligned"},
};

// Queues the quantiser of weights that fits the type and alignment of w.
void launch(const Stream& stream, const Quantize128x128Params& params, bool w_is_bf16);

}  // namespace quantize_128x128

namespace retile_128x1 {

inline constexpr Kernel<Retile128x1Params> kKernels[] = {
    {"retile_128x1", "retile_128x1"},
    {"retile_128x1", "retile_128x1_unaligned"},
};

// Queues the change of tiles that fits the alignment of the codes.
void launch(const Stream& stream, const Retile128x1Params& params);

}  // namespace retile_128x1

namespace rms_norm_quantize {

inline constexpr Kernel<RmsNormQuantizeParams> kKernels[] = {
    {"rms_norm_quantize", "rms_norm_quantize_bf16_short"},
    {"rms_norm_quantize", "rms_norm_quantize_bf16_short_unaligned"},
    {"rms_norm_quantize", "rms_norm_quantize_bf16_long"},
    {"rms_norm_quantize", "rms_norm_quantize_bf16_long_unaligned"},
    {"rms_norm_quantize", "rms_norm_quantize_fp32_short"},
    {"rms_norm_quantize", "rms_norm_quantize_fp32_short_unaligned"},
    {"rms_norm_quantize", "rms_norm_quantize_fp32_long"},
    {"rms_norm_quantize", "rms_norm_quantize_fp32_long_unaligned"},
};

// Queues RMSNorm with its quantiser that fits the type, length and alignment of the rows of x.
void launch(const Stream& stream, const RmsNormQuantizeParams& params, bool x_is_bf16);

}  // namespace rms_norm_quantize

namespace swiglu_quantize {

inline constexpr Kernel<SwigluQuantizeParams> kKernels[] = {
    {"swiglu_quantize", "swiglu_quantize"},
    {"swiglu_quantize", "swiglu_quantize_unaligned"},
};

// Queues SwiGLU with its quantiser that fits the alignment of gate_up.
void launch(const Stream& stream, const SwigluQuantizeParams& params);

}  // namespace swiglu_quantize

namespace swiglu_quantize_backward {

inline constexpr Kernel<SwigluQuantizeBackwardParams> kKernels[] = {
    {"swiglu_quantize_backward", "swiglu_quantize_backward"},
};

// Queues the gradient of SwiGLU with its quantisers. All rows begin at multiples of 16 bytes, and
// columns are a multiple of 128. Chooses blocks_per_row_block itself.
void launch(const Stream& stream, SwigluQuantizeBackwardParams params);

}  // namespace swiglu_quantize_backward
}  // namespace abyssal

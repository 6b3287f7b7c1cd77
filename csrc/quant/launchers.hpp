// The quantisers, as host code calls them. Launchers throw DeviceError.
#pragma once

#include <vector>

#include "quant/quantize_128x128.hpp"
#include "quant/quantize_1x128.hpp"
#include "quant/quantize_1x128_both.hpp"
#include "quant/retile_128x1.hpp"
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
}  // namespace abyssal

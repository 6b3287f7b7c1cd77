// The quantisers, as host code calls them. Launchers throw DeviceError.
#pragma once

#include <vector>

#include "quant/quantize_1x128.hpp"
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
}  // namespace abyssal

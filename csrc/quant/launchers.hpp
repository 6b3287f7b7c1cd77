// The quantisers, as host code calls them.
#pragma once

#include "quant/quantize_1x128.hpp"
#include "runtime/launch.hpp"

namespace abyssal::quantize_1x128 {

// Queues the quantiser that fits the type and alignment of x. Throws DeviceError.
void launch(const Stream& stream, const Quantize1x128Params& params, bool x_is_bf16);

// Loads every variant.
void load(const Stream& stream);

}  // namespace abyssal::quantize_1x128

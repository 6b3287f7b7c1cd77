// What host and device agree on for all quantisers.
#pragma once

namespace abyssal::quant {

inline constexpr int kTile = 128;  // values that share a scale, along each tiled dimension

}  // namespace abyssal::quant

// Sets of a warp's lanes.
#pragma once

#include <bit>
#include <cstdint>

namespace abyssal::emulator {

inline constexpr int kLanes = 32;

// Bit l is lane l.
using LaneMask = uint32_t;
inline constexpr LaneMask kAllLanes = ~LaneMask{0};

inline bool has(LaneMask mask, int lane) { return mask >> lane & 1; }
inline int first_lane(LaneMask mask) { return std::countr_zero(mask); }

// Calls act(lane) for each lane of `mask`, in order. The loop over a full warp is what compilers
// turn into vector instructions.
template <typename Act>
inline void for_lanes(LaneMask mask, Act act) {
  if (mask == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) act(lane);
  } else {
    for (; mask != 0; mask &= mask - 1) act(first_lane(mask));
  }
}

}  // namespace abyssal::emulator

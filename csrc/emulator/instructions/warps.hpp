// Parts of warp-wide instructions that other families use.
#pragma once

#include <string>

#include "emulator/decoder.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {

// `bar.warp.sync`: the members named by source 0 wait for each other.
void run_warp_barrier(Warp& warp, const Instruction& instruction, LaneMask mask);

// The 32-bit value of an operand that must be the same in all lanes of `mask`. `what` names it.
uint32_t uniform_value(Warp& warp, const Source& source, LaneMask mask, const char* what);

}  // namespace abyssal::emulator

// Where lanes that part at a branch meet again.
#pragma once

#include <span>
#include <vector>

namespace abyssal::emulator {

// For each instruction, the first instruction that every path from it to the end must reach: its
// immediate post-dominator. `successors[i]` holds the instructions that may follow i, where
// `successors.size()` is the end of the program. Returns -1 where only the end is common.
//
// (Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", on the reversed graph.)
std::vector<int> immediate_post_dominators(const std::vector<std::vector<int>>& successors);

}  // namespace abyssal::emulator

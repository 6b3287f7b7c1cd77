// mbarriers as other instructions use them.
#pragma once

#include "emulator/block.hpp"

namespace abyssal::emulator {

// The mbarrier at a shared address, of this block or another of its cluster. Throws Fault where
// none has been initialised.
Mbarrier& find_mbarrier(Block& block, uint64_t shared_address, int lane);

// Bytes that were announced have come. Completes the phase if that was all.
void complete_transactions(Mbarrier& barrier, uint32_t bytes);

}  // namespace abyssal::emulator

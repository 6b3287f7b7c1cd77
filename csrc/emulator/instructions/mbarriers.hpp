// mbarriers as other instructions use them.
#pragma once

#include "emulator/block.hpp"

namespace abyssal::emulator {

// The mbarrier at a shared address, of this block or another of its cluster. Throws Fault where
// none has been initialised.
Mbarrier& find_mbarrier(Block& block, uint64_t shared_address, int lane);

// Strict runs: threads may use an mbarrier once its initialisation is ordered before. Throws Fault.
void require_initialised(const Mbarrier& barrier, const WarpState& state, int lane);

// A copy that the mbarrier counts begins, and is over: then its bytes have come, which completes
// the phase if they were the last. In strict runs the epoch names the copy.
Epoch begin_copy(Mbarrier& barrier);
void end_copy(Mbarrier& barrier, Epoch copy, uint32_t bytes);

// cp.async.mbarrier.arrive: the phase awaits one arrival more, and the arrival itself, by what has
// seen the copies of a lane up to `copies` done.
void expect_arrival(Mbarrier& barrier, int lane);
void end_async_copies(Mbarrier& barrier, Epoch copies, int lane);

}  // namespace abyssal::emulator

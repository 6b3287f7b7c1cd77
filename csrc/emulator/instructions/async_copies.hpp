// cp.async without bulk: the copies of a warp's threads, and the groups that these commit them to
// (PTX ISA 9.7.9.25.3).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "emulator/block.hpp"
#include "emulator/decoder.hpp"

namespace abyssal::emulator {

class AsyncCopies {
 public:
  // Strict runs: an entry for each lane, whose clock is the number of a copy.
  Agent agent;

  // Copies that lanes begin with one instruction have one number.
  uint32_t begin(LaneMask lanes);
  void end(uint32_t number);

  void commit(int lane) { committed_[lane].push_back(last_[lane]); }
  // Whether all groups of a lane but the newest `rest` are done.
  bool are_done(int lane, size_t rest) const;
  // Forgets those. The number of their last copy, 0 if there is none.
  uint32_t retire(int lane, size_t rest);
  // The mbarrier gets an arrival once all that the lane has begun is done.
  void arrive_after(int lane, Mbarrier& barrier);

  // Some copy was done.
  Event progress;

 private:
  struct Arrival {
    int lane;
    uint32_t number;
    Mbarrier* barrier;
  };

  bool is_done(int lane, uint32_t number) const;

  uint32_t count_ = 0;
  std::map<uint32_t, LaneMask> pending_;
  std::array<uint32_t, kLanes> last_ = {};
  // The last copy of each group.
  std::array<std::deque<uint32_t>, kLanes> committed_;
  std::vector<Arrival> arrivals_;
};

// What follows `cp.async`, unless it is `.bulk`.
void decode_async_copy(Decoding& decoding);

}  // namespace abyssal::emulator

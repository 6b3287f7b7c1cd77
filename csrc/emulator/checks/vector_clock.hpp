// Vector clocks: what has happened before what.
//
// Everything that accesses memory is an agent: a warp, the tensor core of a warpgroup, the copies
// that an mbarrier counts, the bulk stores of a thread. An agent's clock goes up whenever others
// may have learned of what it did. A vector clock holds, for each agent, up to which clock its
// accesses are known to be over (Mattern, "Virtual time and global states of distributed systems",
// 1989; Flanagan and Freund, "FastTrack", 2009, for the way cells use it). Threads of a warp share
// the warp's clock, and have an entry each: one thread's accesses may be over and another's not.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "emulator/lanes.hpp"

namespace abyssal::emulator {

// An agent's clock at an access. Blocks are numbered from 1; an agent is named by its first entry
// in vector clocks.
struct Epoch {
  uint64_t bits = 0;

  Epoch() = default;
  Epoch(uint32_t block, uint32_t agent, uint32_t clock)
      : bits(uint64_t{block} << 40 | uint64_t{agent} << 28 | clock) {}
  uint32_t block() const { return static_cast<uint32_t>(bits >> 40); }
  uint32_t agent() const { return static_cast<uint32_t>(bits >> 28 & 0xfff); }
  uint32_t clock() const { return static_cast<uint32_t>(bits & 0xfffffff); }
  bool is_of_same_agent(Epoch other) const { return bits >> 28 == other.bits >> 28; }
  bool operator==(const Epoch&) const = default;
  explicit operator bool() const { return bits != 0; }
};

// Entries for the agents of a block.
inline constexpr uint32_t kMostEntries = 1 << 12;

class VectorClock {
 public:
  // Whether what each of the agent's `lanes` did is known to be over, here or in `more`.
  bool covers(Epoch epoch, LaneMask lanes, const VectorClock* more = nullptr) const {
    const std::span<const uint32_t> clocks = find(epoch.block());
    const std::span<const uint32_t> others =
        more == nullptr ? std::span<const uint32_t>() : more->find(epoch.block());
    for (; lanes != 0; lanes &= lanes - 1) {
      const size_t entry = epoch.agent() + static_cast<size_t>(std::countr_zero(lanes));
      const bool is_over = (entry < clocks.size() && clocks[entry] >= epoch.clock()) ||
                           (entry < others.size() && others[entry] >= epoch.clock());
      if (!is_over) return false;
    }
    return true;
  }

  void raise(Epoch epoch, LaneMask lanes) {
    if (lanes == 0) return;
    std::vector<uint32_t>& clocks = of(epoch.block());
    const size_t end = epoch.agent() + static_cast<size_t>(std::bit_width(lanes));
    if (clocks.size() < end) clocks.resize(end);
    for_lanes(lanes, [&](int lane) {
      uint32_t& clock = clocks[epoch.agent() + static_cast<size_t>(lane)];
      clock = std::max(clock, epoch.clock());
    });
  }

  void join(const VectorClock& other) {
    for (const Part& part : other.parts_) {
      std::vector<uint32_t>& clocks = of(part.block);
      if (clocks.size() < part.clocks.size()) clocks.resize(part.clocks.size());
      for (size_t i = 0; i < part.clocks.size(); ++i) {
        clocks[i] = std::max(clocks[i], part.clocks[i]);
      }
    }
  }

  // What both know.
  void meet(const VectorClock& other) {
    for (Part& part : parts_) {
      const std::span<const uint32_t> others = other.find(part.block);
      part.clocks.resize(std::min(part.clocks.size(), others.size()));
      for (size_t i = 0; i < part.clocks.size(); ++i) {
        part.clocks[i] = std::min(part.clocks[i], others[i]);
      }
    }
  }

  // Of this block alone, the entries for which is_kept(entry).
  template <typename Predicate>
  void keep(uint32_t block, Predicate is_kept) {
    std::erase_if(parts_, [&](const Part& part) { return part.block != block; });
    for (Part& part : parts_) {
      for (size_t i = 0; i < part.clocks.size(); ++i) {
        if (!is_kept(i)) part.clocks[i] = 0;
      }
    }
  }

  bool is_empty() const { return parts_.empty(); }
  // Whether anything of this block is known at all.
  bool knows_of(uint32_t block) const {
    return std::any_of(parts_.begin(), parts_.end(),
                       [&](const Part& part) { return part.block == block; });
  }

 private:
  // Most know of one block alone.
  struct Part {
    uint32_t block;
    std::vector<uint32_t> clocks;  // by entry
  };

  std::span<const uint32_t> find(uint32_t block) const {
    for (const Part& part : parts_) {
      if (part.block == block) return part.clocks;
    }
    return {};
  }
  std::vector<uint32_t>& of(uint32_t block) {
    for (Part& part : parts_) {
      if (part.block == block) return part.clocks;
    }
    return parts_.emplace_back(Part{block, {}}).clocks;
  }

  std::vector<Part> parts_;
};

// What a proxy fence is about: all memory, a space of it, or tensor maps in global memory.
enum class FenceSpace : uint8_t { any, shared, global, tensor_map };

// What somebody knows: which accesses are over, and which of them the async proxy sees as well
// because a proxy fence lies behind them (PTX ISA 8.11, causality through proxies).
struct Knowledge {
  VectorClock over;
  std::array<VectorClock, 4> fenced_in;  // by FenceSpace

  VectorClock& fenced(FenceSpace space = FenceSpace::any) {
    return fenced_in[static_cast<size_t>(space)];
  }
  bool is_fenced(FenceSpace space, Epoch epoch, LaneMask lanes) const {
    const VectorClock& of_space = fenced_in[static_cast<size_t>(space)];
    const VectorClock& of_any = fenced_in[static_cast<size_t>(FenceSpace::any)];
    return of_space.covers(epoch, lanes, space == FenceSpace::tensor_map ? nullptr : &of_any);
  }

  void join(const Knowledge& other) {
    over.join(other.over);
    for (size_t i = 0; i < fenced_in.size(); ++i) fenced_in[i].join(other.fenced_in[i]);
  }
  // What both know.
  void meet(const Knowledge& other) {
    over.meet(other.over);
    for (size_t i = 0; i < fenced_in.size(); ++i) fenced_in[i].meet(other.fenced_in[i]);
  }
  bool is_empty() const {
    return over.is_empty() && std::all_of(fenced_in.begin(), fenced_in.end(),
                                          [](const VectorClock& c) { return c.is_empty(); });
  }
};

}  // namespace abyssal::emulator

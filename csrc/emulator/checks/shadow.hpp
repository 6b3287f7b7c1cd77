// Shadow memory: for every word that a kernel may touch, who touched it last.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "emulator/checks/vector_clock.hpp"
#include "emulator/memory.hpp"

namespace abyssal::emulator {

inline constexpr uint32_t kWordBytes = 4;

// An access that a later one may collide with.
struct Trace {
  Epoch epoch;
  LaneMask lanes = 0;  // of a warp; 1 for other agents
  uint32_t pc : 23 = 0;
  uint32_t bytes : 4 = 0;  // a bit for each byte of the word
  uint32_t writes : 1 = 0;
  uint32_t is_async : 1 = 0;  // through the async proxy
  // The Scope of a strong access (PTX ISA 8.4); none: weak.
  uint32_t scope : 3 = 0;

  // The same but for the lanes.
  bool is_like(const Trace& other) const {
    return epoch == other.epoch && pc == other.pc && bytes == other.bytes &&
           writes == other.writes && is_async == other.is_async && scope == other.scope;
  }
};

// A word of memory. Few have more than two traces.
struct Cell {
  std::array<Trace, 2> traces;
  uint32_t more = 0;  // index into Shadow's, from 1; 0: none
  uint8_t count = 0;
  uint8_t initialised = 0;  // a bit for each byte
};

class Shadow {
 public:
  explicit Shadow(size_t words) : cells_(words) {}

  Cell& operator[](size_t word) { return cells_[word]; }
  size_t size() const { return cells_.size(); }

  // Calls act(trace) for each trace of a cell, and forgets those for which it returns true.
  template <typename Act>
  void review(Cell& cell, Act act) {
    uint8_t kept = 0;
    for (uint8_t i = 0; i < cell.count; ++i) {
      if (act(cell.traces[i])) continue;
      if (kept != i) cell.traces[kept] = cell.traces[i];
      ++kept;
    }
    cell.count = kept;
    if (cell.more == 0) return;
    std::vector<Trace>& more = more_[cell.more - 1];
    std::erase_if(more, act);
    if (!more.empty()) return;
    free_.push_back(cell.more);
    cell.more = 0;
  }

  void add(Cell& cell, const Trace& trace) {
    const std::span<Trace> few(cell.traces.data(), cell.count);
    if (merge(few, trace)) return;
    if (cell.count < cell.traces.size()) {
      cell.traces[cell.count++] = trace;
      return;
    }
    if (cell.more == 0) {
      if (free_.empty()) {
        more_.emplace_back();
        free_.push_back(static_cast<uint32_t>(more_.size()));
      }
      cell.more = free_.back();
      free_.pop_back();
    }
    std::vector<Trace>& more = more_[cell.more - 1];
    if (!merge(more, trace)) more.push_back(trace);
  }

 private:
  static bool merge(std::span<Trace> traces, const Trace& trace) {
    for (Trace& other : traces) {
      if (!other.is_like(trace)) continue;
      other.lanes |= trace.lanes;
      return true;
    }
    return false;
  }

  std::vector<Cell> cells_;
  std::vector<std::vector<Trace>> more_;
  std::vector<uint32_t> free_;
};

// Shadow of global memory, made a page at a time when it is touched.
class GlobalShadow {
 public:
  struct Place {
    Shadow& shadow;
    Cell& cell;
  };
  Place at(uint64_t address) {
    const uint64_t page = address / kPageBytes;
    if (page != last_page_) {
      std::unique_ptr<Shadow>& shadow = pages_[page];
      if (shadow == nullptr) shadow = std::make_unique<Shadow>(kPageBytes / kWordBytes);
      last_page_ = page;
      last_ = shadow.get();
    }
    return {*last_, (*last_)[address % kPageBytes / kWordBytes]};
  }

 private:
  static constexpr uint64_t kPageBytes = 4096;
  std::unordered_map<uint64_t, std::unique_ptr<Shadow>> pages_;
  uint64_t last_page_ = ~uint64_t{0};
  Shadow* last_ = nullptr;
};

}  // namespace abyssal::emulator

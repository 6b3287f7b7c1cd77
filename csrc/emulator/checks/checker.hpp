// The checks of strict runs: races, uninitialised reads, missing proxy fences.
//
// Every access goes through `access`. Two accesses to a byte, one of them a write, must be ordered
// by synchronisation, or both be strong (atomic, relaxed, volatile) with scopes that include each
// other (PTX ISA 8.7, data races). An access of the async proxy (wgmma, bulk copies) to what the
// generic proxy has written needs a proxy fence on the way as well (PTX ISA 8.11).
//
// Lanes of a warp are threads like others: running in lockstep orders nothing (PTX ISA 8.9.5,
// program order is of one thread), only bar.warp.sync and its like do. Exempt is one store
// instruction whose lanes write to one place: one of them wins (CUDA programming guide, SIMT
// architecture).
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emulator/checks/shadow.hpp"
#include "emulator/checks/warp_state.hpp"
#include "emulator/memory_access.hpp"

namespace abyssal::emulator {

class Block;
class Cluster;
struct Grid;

// No agent's first entry.
inline constexpr uint32_t kNoWarp = 1u << 31;

// One access, as the checker sees it.
struct CheckedAccess {
  Epoch epoch;
  uint32_t warp = kNoWarp;  // its first entry
  LaneMask lanes;           // 1 for an agent that is no warp
  const Knowledge& knowledge;
  const Knowledge* more = nullptr;
  int pc = 0;
  int lane = -1;
  AccessKind kind = AccessKind::read;
  bool is_async = false;
  bool is_of_tensor_map = false;
  Scope scope = Scope::none;  // of a strong access
};

class Checker {
 public:
  // What stands for all that a grid does, once it has ended.
  Agent add_grid(const Grid& grid);
  // A number for a block that begins, and a name for reports.
  uint32_t add_block(const Block& block);
  // An agent of a block, with as many entries in vector clocks.
  Agent add_agent(uint32_t block, std::string name, uint32_t entries = 1);
  // One that stands for the copies that an mbarrier of the block counts.
  Agent add_copies(uint32_t block, std::string name);

  void access_shared(Block& owner, uint64_t address, uint32_t bytes, const CheckedAccess& access);
  void access_global(const GlobalMemory& memory, uint64_t address, uint32_t bytes,
                     const CheckedAccess& access);

  // Of what is over, what a block's threads and products have read, and the copies that its
  // mbarriers count.
  VectorClock reads_of(const VectorClock& over, uint32_t block) const;

  // A strong access to a word, through which threads may learn of each other.
  void communicate(Warp& warp, int lane, const void* address, const Access& access);
  // fence.acq_rel, fence.sc and their like.
  void fence(Warp& warp, LaneMask lanes, Order order, Scope scope);

 private:
  struct BlockRecord {
    std::string name;
    const Cluster* cluster = nullptr;
    const Program* program = nullptr;
    int device = 0;
    Epoch grid;
    uint32_t num_entries = 0, num_warps = 0;
    std::vector<std::pair<uint32_t, std::string>> agents;  // by their first entries
    std::vector<uint32_t> copies;                          // their entries, in order
  };
  // What strong writes to a word published, by their blocks and scopes.
  struct Published {
    uint32_t block;
    Scope scope;
    Knowledge knowledge;
  };
  struct Word {
    uint64_t version = 0;  // counts up with all words' publications
    std::vector<Published> published;
  };

  struct Where {
    const char* space;
    FenceSpace fence;
    uint64_t address;
  };

  void publish(Word& word, uint32_t block, Scope scope, const Knowledge& news);

  void check(Shadow& shadow, Cell& cell, uint8_t bytes, const CheckedAccess& access, Where where);
  [[noreturn]] void report_race(const Trace& other, const CheckedAccess& access, Where where) const;
  [[noreturn]] void report_missing_fence(const Trace& other, const CheckedAccess& access,
                                         Where where) const;
  static bool is_of_same_warp(Epoch epoch, const CheckedAccess& access);
  // Whether what `lanes` of an agent did is over for who accesses.
  bool is_known(const CheckedAccess& access, Epoch epoch, LaneMask lanes) const;
  bool is_fenced(const CheckedAccess& access, const Trace& trace, Where where) const;
  // Whether accesses that nothing orders may meet at a word all the same.
  bool is_allowed(const Trace& before, const Trace& now) const;
  // The least scope that holds both blocks.
  Scope needed_scope(uint32_t a, uint32_t b) const;
  // Whether both scopes reach from one block to the other.
  bool include_each_other(uint32_t a, Scope of_a, uint32_t b, Scope of_b) const;
  std::string describe(const Trace& trace) const;

  std::vector<BlockRecord> blocks_{1};
  GlobalShadow global_;
  std::unordered_map<const void*, Word> words_;
  uint64_t num_published_ = 0;
};

}  // namespace abyssal::emulator

// What the threads of a warp know of what others have done, in strict runs.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "emulator/checks/vector_clock.hpp"
#include "emulator/memory.hpp"

namespace abyssal::emulator {

// Something that accesses memory.
struct Agent {
  uint32_t block = 0;  // its block's number; 0: no agent
  uint32_t index = 0;  // of its first entry in vector clocks
  uint32_t clock = 1;

  Epoch epoch() const { return block == 0 ? Epoch() : Epoch(block, index, clock); }
};

struct ByScope {
  std::array<Knowledge, static_cast<size_t>(Scope::sys) + 1> by_scope;

  Knowledge& operator[](Scope scope) { return by_scope[static_cast<size_t>(scope)]; }
  void join(const ByScope& other) {
    for (size_t i = 0; i < by_scope.size(); ++i) by_scope[i].join(other.by_scope[i]);
  }
};

struct WarpState {
  // Entries for each lane's writes, for the mbarriers that the warp has initialised, and for each
  // lane's reads.
  static constexpr uint32_t kReads = kLanes + 1;
  static constexpr uint32_t kEntries = kReads + kLanes;

  Agent agent;
  // What all lanes know, and what a lane knows beyond that.
  Knowledge common;
  std::array<std::unique_ptr<Knowledge>, kLanes> extra;
  // What relaxed reads have seen, by the scope that a fence must have to acquire it.
  ByScope observed;
  // What fences with release semantics have made ready, by their scopes: a relaxed write behind
  // them publishes it (PTX ISA 8.8.2, release patterns).
  ByScope prepared;
  // What each lane learned from last, and how: loops that wait learn nothing new.
  std::array<uint64_t, kLanes> learned = {};

  Epoch epoch() const { return agent.epoch(); }
  Epoch reads() const { return {agent.block, agent.index + kReads, agent.clock}; }
  Epoch initialisations() const { return {agent.block, agent.index + kLanes, agent.clock}; }

  // Calls act(knowledge) for what `lanes` know.
  template <typename Act>
  void update(LaneMask lanes, LaneMask alive, Act act) {
    if (lanes == alive) return act(common);
    for_lanes(lanes, [&](int lane) {
      if (extra[lane] == nullptr) extra[lane] = std::make_unique<Knowledge>();
      act(*extra[lane]);
    });
  }

  void learn(LaneMask lanes, LaneMask alive, const Knowledge& news) {
    update(lanes, alive, [&](Knowledge& knowledge) { knowledge.join(news); });
  }

  // All that `lanes` know and have done up to now, for others; what they do later is no part of it.
  Knowledge publish(LaneMask lanes) {
    Knowledge all = common;
    for_lanes(lanes, [&](int lane) {
      if (extra[lane] != nullptr) all.join(*extra[lane]);
    });
    all.over.raise(epoch(), lanes);
    all.over.raise(reads(), lanes);
    all.over.raise(initialisations(), 1);
    ++agent.clock;
    return all;
  }

  // `lanes` meet: each knows what all of them know.
  void meet(LaneMask lanes, LaneMask alive) {
    learn(lanes, alive, publish(lanes));
    if (lanes != alive) return;
    for (std::unique_ptr<Knowledge>& more : extra) more = nullptr;
  }

  // `lanes` stand at one `.sync` instruction that is no barrier (shfl, vote, wgmma, ...). It makes
  // each thread wait until all execute it (PTX ISA 9.7.9.6, .sync), so that what they read before
  // is read; it says nothing of writes.
  void converge(LaneMask lanes, LaneMask alive) {
    const Epoch done = reads();
    update(lanes, alive, [&](Knowledge& knowledge) { knowledge.over.raise(done, lanes); });
    ++agent.clock;
  }

  // The async proxy sees what `lanes` know and have done in `space`.
  void fence_proxy(LaneMask lanes, LaneMask alive, FenceSpace space) {
    common.fenced(space).raise(epoch(), lanes);
    common.fenced(space).raise(initialisations(), 1);
    ++agent.clock;
    update(lanes, alive, [&](Knowledge& knowledge) {
      knowledge.fenced(space).join(knowledge.over);
      if (&knowledge != &common) knowledge.fenced(space).join(common.over);
    });
    if (lanes != alive) return;
    for (std::unique_ptr<Knowledge>& more : extra) {
      if (more != nullptr) more->fenced(space).join(more->over);
    }
  }

  // fence.mbarrier_init.release.cluster: nothing but the initialisations of mbarriers.
  void fence_initialisations() {
    common.fenced().raise(initialisations(), 1);
    prepared[Scope::cluster].fenced().raise(initialisations(), 1);
    prepared[Scope::cluster].over.raise(initialisations(), 1);
    ++agent.clock;
  }
};

}  // namespace abyssal::emulator

#include "emulator/checks/checker.hpp"

#include <algorithm>
#include <bit>
#include <iterator>

#include "emulator/block.hpp"
#include "emulator/fault.hpp"

namespace abyssal::emulator {
namespace {

// The bytes of word `word` that [address, address + bytes) touches.
uint8_t bytes_of_word(uint64_t word, uint64_t address, uint64_t bytes) {
  const uint64_t begin = std::max(word * kWordBytes, address) - word * kWordBytes;
  const uint64_t end = std::min((word + 1) * kWordBytes, address + bytes) - word * kWordBytes;
  return static_cast<uint8_t>((1u << end) - (1u << begin));
}

const char* name_of(AccessKind kind) {
  switch (kind) {
    case AccessKind::read:
      return "read";
    case AccessKind::write:
      return "write";
    case AccessKind::atomic:
      return "atomic";
  }
  return "";
}

}  // namespace

Agent Checker::add_grid(const Grid& grid) {
  BlockRecord& record = blocks_.emplace_back();
  record.device = grid.description.device;
  return {static_cast<uint32_t>(blocks_.size() - 1), 0, 1};
}

uint32_t Checker::add_block(const Block& block) {
  BlockRecord& record = blocks_.emplace_back();
  record.name = emulator::describe(block.index());
  record.num_warps = (block.num_threads() + kLanes - 1) / kLanes;
  record.cluster = &block.cluster();
  record.program = block.grid().description.program.get();
  record.device = block.grid().description.device;
  record.grid = block.grid().agent.epoch();
  return static_cast<uint32_t>(blocks_.size() - 1);
}

Agent Checker::add_agent(uint32_t block, std::string name, uint32_t entries) {
  BlockRecord& record = blocks_[block];
  const uint32_t first = record.num_entries;
  if (entries > kMostEntries - first) {
    throw Fault(FaultKind::unsupported, "a block has more agents than strict runs can tell apart");
  }
  record.num_entries += entries;
  record.agents.emplace_back(first, std::move(name));
  return {block, first, 1};
}

Agent Checker::add_copies(uint32_t block, std::string name) {
  const Agent agent = add_agent(block, std::move(name));
  blocks_[block].copies.push_back(agent.index);
  return agent;
}

// Warps come first among a block's agents, and then its warpgroups.
VectorClock Checker::reads_of(const VectorClock& over, uint32_t block) const {
  const uint32_t warps = blocks_[block].num_warps;
  const std::vector<uint32_t>& copies = blocks_[block].copies;
  VectorClock reads = over;
  reads.keep(block, [&](size_t entry) {
    if (entry < warps * WarpState::kEntries)
      return entry % WarpState::kEntries >= WarpState::kReads;
    return entry < warps * WarpState::kEntries + warps / kWarpsOfGroup ||
           std::binary_search(copies.begin(), copies.end(), entry);
  });
  return reads;
}

void Checker::access_shared(Block& owner, uint64_t address, uint32_t bytes,
                            const CheckedAccess& access) {
  Shadow& shadow = *owner.shadow();
  const uint64_t offset = address - kReservedShared;
  for (uint64_t word = offset / kWordBytes; word * kWordBytes < offset + bytes; ++word) {
    check(shadow, shadow[word], bytes_of_word(word, offset, bytes), access,
          {"shared", FenceSpace::shared, kReservedShared + word * kWordBytes});
  }
}

void Checker::access_global(const GlobalMemory& memory, uint64_t address, uint32_t bytes,
                            const CheckedAccess& access) {
  const bool has_contents = memory.last_found().has_contents();
  for (uint64_t word = address / kWordBytes; word * kWordBytes < address + bytes; ++word) {
    const auto [shadow, cell] = global_.at(word * kWordBytes);
    if (has_contents) cell.initialised = 0xf;
    check(shadow, cell, bytes_of_word(word, address, bytes), access,
          {"global", FenceSpace::global, word * kWordBytes});
  }
}

void Checker::check(Shadow& shadow, Cell& cell, uint8_t bytes, const CheckedAccess& access,
                    Where where) {
  const bool writes = access.kind != AccessKind::read;
  const bool reads = access.kind != AccessKind::write;
  if (reads && (bytes & ~cell.initialised) != 0) {
    throw Fault(FaultKind::uninitialised,
                std::string("it reads ") + hex(where.address) + " of " + where.space +
                    " memory, which nobody has written",
                access.lane);
  }
  const Trace now{access.epoch, access.lanes,    static_cast<uint32_t>(access.pc),   bytes,
                  writes,       access.is_async, static_cast<uint32_t>(access.scope)};
  shadow.review(cell, [&](Trace& trace) {
    if ((trace.bytes & bytes) == 0) return false;
    // The async proxy does not even keep one agent's own order.
    const LaneMask own = is_of_same_warp(trace.epoch, access) ? access.lanes : 0;
    const LaneMask others = trace.lanes & ~own;
    const bool is_over = is_known(access, trace.epoch, others);
    if ((writes || trace.writes) && !is_over && !is_allowed(trace, now)) {
      report_race(trace, access, where);
    }
    const bool crosses_proxies =
        (access.is_async || access.is_of_tensor_map) && trace.writes && !trace.is_async;
    if (crosses_proxies && !is_fenced(access, trace, where)) {
      report_missing_fence(trace, access, where);
    }
    // Who comes after this access comes after that trace, too.
    if ((trace.bytes & ~bytes) != 0 || (trace.writes && !writes)) return false;
    if (!is_over) trace.lanes = others;
    return is_over;
  });
  if (writes) cell.initialised |= bytes;
  shadow.add(cell, now);
}

bool Checker::is_of_same_warp(Epoch epoch, const CheckedAccess& access) {
  return !access.is_async && epoch.block() == access.epoch.block() &&
         epoch.agent() - access.warp < WarpState::kEntries;
}

bool Checker::is_known(const CheckedAccess& access, Epoch epoch, LaneMask lanes) const {
  if (lanes == 0) return true;
  const VectorClock* more = access.more == nullptr ? nullptr : &access.more->over;
  if (access.knowledge.over.covers(epoch, lanes, more)) return true;
  // All of a grid is over at once.
  const Epoch grid = blocks_[epoch.block()].grid;
  const bool is_of_other_grid = grid != blocks_[access.epoch.block()].grid;
  return is_of_other_grid && access.knowledge.over.covers(grid, 1, more);
}

bool Checker::is_fenced(const CheckedAccess& access, const Trace& trace, Where where) const {
  const FenceSpace space = access.is_of_tensor_map ? FenceSpace::tensor_map : where.fence;
  const Epoch grid = blocks_[trace.epoch.block()].grid;
  const auto knows = [&](const Knowledge& knowledge) {
    return knowledge.is_fenced(space, trace.epoch, trace.lanes) ||
           knowledge.is_fenced(space, grid, 1);
  };
  return knows(access.knowledge) || (access.more != nullptr && knows(*access.more));
}

bool Checker::is_allowed(const Trace& before, const Trace& now) const {
  if (now.writes && before.is_like(now)) return true;
  const auto scope_before = static_cast<Scope>(before.scope);
  const auto scope_now = static_cast<Scope>(now.scope);
  return scope_before != Scope::none && scope_now != Scope::none &&
         include_each_other(before.epoch.block(), scope_before, now.epoch.block(), scope_now);
}

void Checker::report_race(const Trace& other, const CheckedAccess& access, Where where) const {
  throw Fault(FaultKind::race,
              std::string("a race at ") + hex(where.address) + " of " + where.space +
                  " memory: this " + name_of(access.kind) + " and the " + describe(other) +
                  " are not ordered",
              access.lane);
}

void Checker::report_missing_fence(const Trace& other, const CheckedAccess& access,
                                   Where where) const {
  throw Fault(FaultKind::missing_fence,
              std::string("a proxy fence is missing at ") + hex(where.address) + " of " +
                  where.space + " memory: this " + name_of(access.kind) +
                  (access.is_of_tensor_map ? " of a tensor map" : " of the async proxy") +
                  " comes after the generic " + describe(other) + " with no fence.proxy." +
                  (access.is_of_tensor_map ? "tensormap" : "async") + " between them",
              access.lane);
}

Scope Checker::needed_scope(uint32_t a, uint32_t b) const {
  if (a == b) return Scope::cta;
  if (blocks_[a].cluster == blocks_[b].cluster) return Scope::cluster;
  return blocks_[a].device == blocks_[b].device ? Scope::gpu : Scope::sys;
}

bool Checker::include_each_other(uint32_t a, Scope of_a, uint32_t b, Scope of_b) const {
  return std::min(of_a, of_b) >= needed_scope(a, b);
}

std::string Checker::describe(const Trace& trace) const {
  const BlockRecord& block = blocks_[trace.epoch.block()];
  const auto behind =
      std::upper_bound(block.agents.begin(), block.agents.end(), trace.epoch.agent(),
                       [](uint32_t entry, const auto& agent) { return entry < agent.first; });
  std::string who = std::prev(behind)->second;
  if (!trace.is_async) {
    const bool is_one = std::has_single_bit(trace.lanes);
    who += is_one ? ", lane " + std::to_string(first_lane(trace.lanes))
                  : ", lanes " + hex(trace.lanes);
  }
  return std::string(trace.writes ? "write" : "read") + " by " + who + " of block " + block.name +
         ", " + block.program->place(static_cast<int>(trace.pc));
}

// Synchronisation through memory.

void Checker::publish(Word& word, uint32_t block, Scope scope, const Knowledge& news) {
  word.version = ++num_published_;
  for (Published& published : word.published) {
    if (published.block != block || published.scope != scope) continue;
    published.knowledge.join(news);
    return;
  }
  word.published.push_back({block, scope, news});
}

void Checker::communicate(Warp& warp, int lane, const void* address, const Access& access) {
  WarpState& state = *warp.checks();
  const uint32_t block = state.agent.block;
  const bool acquires = access.order == Order::acquire || access.order == Order::acquire_release;
  const bool releases = access.order == Order::release || access.order == Order::acquire_release;
  const LaneMask lanes = LaneMask{1} << lane;
  Word& word = words_[address];
  const bool reads = access.kind != AccessKind::write;
  const uint64_t seen = word.version << 4 | static_cast<uint64_t>(access.scope) << 1 | acquires;
  if (reads && seen != std::exchange(state.learned[lane], seen)) {
    for (const Published& published : word.published) {
      if (!include_each_other(published.block, published.scope, block, access.scope)) continue;
      state.observed[needed_scope(published.block, block)].join(published.knowledge);
      if (acquires) state.learn(lanes, warp.alive(), published.knowledge);
    }
  }
  if (access.kind == AccessKind::read) return;
  // A plain strong write ends what releases before it began, an atomic carries it on (PTX ISA
  // 8.8.2, release patterns).
  if (access.kind == AccessKind::write) word.published.clear();
  if (releases) publish(word, block, access.scope, state.publish(lanes));
  for (Scope scope : {Scope::cta, Scope::cluster, Scope::gpu, Scope::sys}) {
    const Knowledge& prepared = state.prepared[scope];
    if (!prepared.is_empty()) publish(word, block, std::min(access.scope, scope), prepared);
  }
}

void Checker::fence(Warp& warp, LaneMask lanes, Order order, Scope scope) {
  WarpState& state = *warp.checks();
  for (Scope seen : {Scope::cta, Scope::cluster, Scope::gpu, Scope::sys}) {
    if (order != Order::release && seen <= scope) {
      state.learn(lanes, warp.alive(), state.observed[seen]);
    }
  }
  if (order != Order::acquire) state.prepared[scope].join(state.publish(lanes));
}

}  // namespace abyssal::emulator

// cp.async (PTX ISA 9.7.9.25.3): 4, 8 or 16 bytes from global to shared memory, copied beside the
// thread that asks for it. It may use them once it has waited for the copy's group, or an mbarrier
// has; nothing orders the copies of a group. They belong to the generic proxy: the async proxy is
// that of bulk copies (PTX ISA 9.7.9.25.2).

#include "emulator/instructions/async_copies.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/mbarriers.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {

uint32_t AsyncCopies::begin(LaneMask lanes) {
  const uint32_t number = ++count_;
  pending_.emplace(number, lanes);
  for_lanes(lanes, [&](int lane) { last_[lane] = number; });
  return number;
}

void AsyncCopies::end(uint32_t number) {
  pending_.erase(number);
  progress.happen();
  // An arrival may throw, and must not come twice.
  std::vector<Arrival> due;
  std::erase_if(arrivals_, [&](const Arrival& arrival) {
    if (!is_done(arrival.lane, arrival.number)) return false;
    due.push_back(arrival);
    return true;
  });
  for (const Arrival& arrival : due) {
    end_async_copies(*arrival.barrier, {agent.block, agent.index, arrival.number}, arrival.lane);
  }
}

bool AsyncCopies::is_done(int lane, uint32_t number) const {
  for (const auto& [pending, lanes] : pending_) {
    if (pending > number) return true;
    if (has(lanes, lane)) return false;
  }
  return true;
}

bool AsyncCopies::are_done(int lane, size_t rest) const {
  const auto& groups = committed_[lane];
  return groups.size() <= rest || is_done(lane, groups[groups.size() - rest - 1]);
}

uint32_t AsyncCopies::retire(int lane, size_t rest) {
  auto& groups = committed_[lane];
  uint32_t last = 0;
  while (groups.size() > rest) {
    last = groups.front();
    groups.pop_front();
  }
  return last;
}

void AsyncCopies::arrive_after(int lane, Mbarrier& barrier) {
  if (!is_done(lane, last_[lane])) return arrivals_.push_back({lane, last_[lane], &barrier});
  end_async_copies(barrier, {agent.block, agent.index, last_[lane]}, lane);
}

namespace {

struct CopyDetails : Details {
  uint32_t bytes = 0;
  Source from;
  int64_t from_offset = 0;
  std::optional<Source> size;  // bytes to read; the rest is zeros
  bool may_ignore = false;     // a predicate (source 1) says to read nothing
};

// The copy of one lane.
struct LaneCopy {
  int lane;
  uint64_t to, from;
  uint32_t size;  // bytes to read
  Knowledge knowledge;
};

// What the lanes of a warp copy with one instruction.
class CopyOperation : public Operation {
 public:
  CopyOperation(Warp& warp, std::vector<LaneCopy> copies, LaneMask lanes, uint32_t bytes)
      : block_(warp.block()),
        place_(warp.describe(-1)),
        pc_(warp.pc()),
        copies_(std::move(copies)),
        bytes_(bytes),
        all_(warp.async_copies()),
        number_(all_.begin(lanes)) {}

  bool step() override {
    try {
      for (const LaneCopy& copy : copies_) move(copy);
      all_.end(number_);
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, place_ + ": " + fault.what());
    }
    return true;
  }

  bool uses_shared_of(const Block& block) const override { return &block_ == &block; }
  std::string describe() const override { return place_; }

 private:
  void move(const LaneCopy& copy) {
    GlobalMemory& memory = block_.grid().memory;
    std::byte* to = block_.shared(copy.to, bytes_, copy.lane);
    const std::byte* from = copy.size == 0 ? nullptr : memory.find(copy.from, copy.size, false, -1);
    if (Checker* checker = block_.grid().machine.checker()) {
      if (copy.size != 0) {
        checker->access_global(memory, copy.from, copy.size, access(copy, AccessKind::read));
      }
      checker->access_shared(block_, copy.to, bytes_, access(copy, AccessKind::write));
    }
    std::memset(to, 0, bytes_);
    if (from != nullptr) std::memcpy(to, from, copy.size);
  }

  CheckedAccess access(const LaneCopy& copy, AccessKind kind) const {
    return {.epoch = {all_.agent.block, all_.agent.index, number_},
            .warp = kNoWarp,
            .lanes = LaneMask{1} << copy.lane,
            .knowledge = copy.knowledge,
            .pc = pc_,
            .lane = copy.lane,
            .kind = kind};
  }

  Block& block_;
  const std::string place_;
  const int pc_;
  const std::vector<LaneCopy> copies_;
  const uint32_t bytes_;
  AsyncCopies& all_;
  const uint32_t number_;
};

void require_aligned(uint64_t address, uint32_t bytes, int lane) {
  if (address % bytes == 0) return;
  throw Fault(FaultKind::misaligned,
              "a copy of " + std::to_string(bytes) + " bytes at " + hex(address) +
                  ", which is no multiple of it",
              lane);
}

void run_copy(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const CopyDetails&>(*instruction.details);
  const LaneMask ignored = details.may_ignore ? warp.read_predicate(instruction, 1) : 0;
  std::vector<LaneCopy> copies;
  uint64_t sources[kLanes] = {};
  for_lanes(mask, [&](int lane) {
    const uint64_t to = to_shared(lane_address(warp, instruction, 0, lane));
    if (&warp.block().owner(to, lane) != &warp.block()) {
      throw Fault(FaultKind::invalid, "it copies to another block's shared memory", lane);
    }
    const uint64_t from =
        warp.bits(details.from, lane) + static_cast<uint64_t>(details.from_offset);
    require_aligned(to, details.bytes, lane);
    require_aligned(from, details.bytes, lane);
    const uint64_t size = details.size ? warp.bits(*details.size, lane) : details.bytes;
    if (size > details.bytes) {
      throw Fault(FaultKind::invalid,
                  "it is to read " + std::to_string(size) + " bytes and to write " +
                      std::to_string(details.bytes),
                  lane);
    }
    sources[lane] = from;
    copies.push_back(
        {lane, inside_block(to), from, has(ignored, lane) ? 0 : static_cast<uint32_t>(size), {}});
    if (WarpState* state = warp.checks()) {
      copies.back().knowledge = state->publish(LaneMask{1} << lane);
    }
  });
  count_request(warp, {.space = Space::global}, mask, sources, details.bytes);
  warp.block().cluster().issue(
      std::make_unique<CopyOperation>(warp, std::move(copies), mask, details.bytes));
}

void run_commit(Warp& warp, const Instruction&, LaneMask mask) {
  for_lanes(mask, [&](int lane) { warp.async_copies().commit(lane); });
}

void wait(Warp& warp, LaneMask mask, size_t rest) {
  AsyncCopies& copies = warp.async_copies();
  bool are_done = true;
  for_lanes(mask, [&](int lane) { are_done &= copies.are_done(lane, rest); });
  if (!are_done) {
    return warp.retry_after(copies.progress, "its groups of copies but the last", rest);
  }
  for_lanes(mask, [&](int lane) {
    const uint32_t last = copies.retire(lane, rest);
    WarpState* state = warp.checks();
    if (state == nullptr || last == 0) return;
    const LaneMask own = LaneMask{1} << lane;
    state->update(own, warp.alive(), [&](Knowledge& knowledge) {
      knowledge.over.raise({copies.agent.block, copies.agent.index, last}, own);
    });
  });
}

void run_wait(Warp& warp, const Instruction& instruction, LaneMask mask) {
  wait(warp, mask, static_cast<size_t>(instruction.immediate));
}

// For what has been committed and what has not. Committing again when it comes back is no harm.
void run_wait_all(Warp& warp, const Instruction& instruction, LaneMask mask) {
  run_commit(warp, instruction, mask);
  wait(warp, mask, 0);
}

void run_arrive(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const bool adds = instruction.variant == 0;
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    Mbarrier& barrier = find_mbarrier(warp.block(), address, lane);
    if (warp.checks() != nullptr) require_initialised(barrier, *warp.checks(), lane);
    if (adds) expect_arrival(barrier, lane);
    warp.async_copies().arrive_after(lane, barrier);
  });
  warp.block().grid().machine.note_progress();
}

void decode_copy(Decoding& decoding) {
  auto details = std::make_unique<CopyDetails>();
  const bool caches_all = decoding.choose({"ca", "cg"}) == 0;
  if (!decoding.accept("shared::cta")) decoding.expect("shared");
  decoding.expect("global");
  const bool has_policy = skip_cache_hints(decoding);
  decoding.expect_operands(3, 5);
  decode_address(decoding, 0, 0);
  const Decoding::Address from = decoding.address(decoding.operand(1));
  details->from = from.base;
  details->from_offset = from.offset;
  const int64_t bytes = decoding.constant(decoding.operand(2));
  if (bytes != 16 && !(caches_all && (bytes == 4 || bytes == 8))) {
    decoding.fail(caches_all ? "the size must be 4, 8 or 16" : "the size must be 16");
  }
  details->bytes = static_cast<uint32_t>(bytes);
  const size_t rest = decoding.num_operands() - 3 - (has_policy ? 1 : 0);
  if (rest > 1) decoding.fail("too many operands");
  if (rest == 1) {
    const ptx::Operand& operand = decoding.operand(3);
    details->may_ignore = decoding.is_predicate(operand);
    if (details->may_ignore) {
      decoding.into.sources[1] = decoding.predicate(operand, 1);
    } else {
      details->size = decoding.source(operand, Type::u32);
    }
  }
  decoding.into.run = run_copy;
  decoding.into.details = std::move(details);
}

}  // namespace

void decode_async_copy(Decoding& decoding) {
  if (decoding.accept("commit_group")) {
    decoding.expect_operands(0);
    decoding.into.run = run_commit;
  } else if (decoding.accept("wait_group")) {
    decoding.expect_operands(1);
    decoding.into.immediate = decoding.constant(decoding.operand(0));
    decoding.into.run = run_wait;
  } else if (decoding.accept("wait_all")) {
    decoding.expect_operands(0);
    decoding.into.run = run_wait_all;
  } else if (decoding.accept("mbarrier")) {
    decoding.expect("arrive");
    decoding.into.variant = decoding.accept("noinc");
    decode_space(decoding);
    decoding.expect("b64");
    decoding.expect_operands(1);
    decode_address(decoding, 0, 0);
    decoding.into.run = run_arrive;
  } else {
    decode_copy(decoding);
  }
}

}  // namespace abyssal::emulator

#include "emulator/warp.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "emulator/block.hpp"
#include "emulator/instructions/async_copies.hpp"
#include "emulator/instructions/bulk_groups.hpp"
#include "emulator/machine.hpp"
#include "emulator/special_registers.hpp"

namespace abyssal::emulator {
namespace {

constexpr char kGathering[] = "the other lanes of its member mask";

}  // namespace

Warp::Warp(Block& block, int index, LaneMask lanes)
    : block_(&block),
      program_(block.grid().description.program.get()),
      constants_(reinterpret_cast<const std::byte*>(program_->constants.data())),
      index_(index),
      lanes_(lanes),
      alive_(lanes) {
  const size_t bytes = std::max<size_t>(program_->register_bytes, 1);
  registers_.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
  // Nobody may count on zeros.
  std::memset(registers_.get(), 0xa5, bytes);
  for (const SpecialRegister& special : program_->specials) {
    for (int lane = 0; lane < kLanes; ++lane) {
      set_bits(special.where, lane, special_value(special, *this, lane));
    }
  }
  splits_.push_back({.mask = lanes});
  if (Checker* checker = block.grid().machine.checker()) {
    checks_ = std::make_unique<WarpState>();
    checks_->agent =
        checker->add_agent(block.number(), "warp " + std::to_string(index), WarpState::kEntries);
    checks_->common = block.grid().known;
    if (!program_->product_registers->is_empty()) {
      product_registers_ = std::make_unique<ProductRegisters>(*program_);
    }
  }
}

Warp::Warp(Warp&&) noexcept = default;
Warp::~Warp() = default;

BulkGroups& Warp::bulk_groups(int lane) {
  auto& groups = bulk_groups_[lane];
  if (groups != nullptr) return *groups;
  groups = std::make_unique<BulkGroups>();
  if (Checker* checker = block_->grid().machine.checker()) {
    const std::string thread = "warp " + std::to_string(index_) + ", lane " + std::to_string(lane);
    groups->reader = checker->add_agent(block_->number(), "a bulk copy out by " + thread);
    groups->writer = checker->add_agent(block_->number(), "a bulk copy out by " + thread);
  }
  return *groups;
}

AsyncCopies& Warp::async_copies() {
  if (async_copies_ != nullptr) return *async_copies_;
  async_copies_ = std::make_unique<AsyncCopies>();
  if (Checker* checker = block_->grid().machine.checker()) {
    async_copies_->agent = checker->add_agent(
        block_->number(), "a copy (cp.async) by warp " + std::to_string(index_), kLanes);
  }
  return *async_copies_;
}

uint64_t Warp::bits(const Source& source, int lane) const {
  uint64_t value = 0;
  const auto* values = read<std::byte>(source);
  std::memcpy(&value, values + lane * source.bytes, std::min<size_t>(source.bytes, 8));
  return value;
}

void Warp::set_bits(const Destination& destination, int lane, uint64_t value) {
  auto* values = write<std::byte>(destination);
  std::memcpy(values + lane * destination.bytes, &value, std::min<size_t>(destination.bytes, 8));
}

// Control flow.

void Warp::branch(const Instruction& instruction, LaneMask taken) {
  Split& split = splits_[current_];
  if (taken == split.mask) {
    split.pc = static_cast<uint32_t>(instruction.target);
    return;
  }
  // A loop that lanes leave one after another meets at one place, once.
  const bool meets_outside = split.join >= 0 && joins_[split.join].pc == instruction.join;
  if (instruction.join >= 0 && !meets_outside) {
    split.join = new_join(instruction.join, split.mask, split.join);
  }
  Split other = split;
  split.mask &= ~taken;
  other.mask = taken;
  other.pc = static_cast<uint32_t>(instruction.target);
  splits_.push_back(other);
  may_continue_ = false;
}

void Warp::jump(const int32_t* targets, int32_t join) {
  LaneMask rest = active();
  const Split from = splits_[current_];
  const int32_t first = targets[first_lane(rest)];
  int joined = from.join;
  bool is_first = true;
  while (rest != 0) {
    const int32_t target = targets[first_lane(rest)];
    LaneMask together = 0;
    for_lanes(rest, [&](int lane) { together |= LaneMask{targets[lane] == target} << lane; });
    rest &= ~together;
    if (is_first && rest != 0) {
      const bool meets_outside = from.join >= 0 && joins_[from.join].pc == join;
      if (join >= 0 && !meets_outside) joined = new_join(join, from.mask, from.join);
      may_continue_ = false;
    }
    if (is_first) {
      splits_[current_].pc = static_cast<uint32_t>(first);
      splits_[current_].mask = together;
      splits_[current_].join = joined;
    } else {
      splits_.push_back({.pc = static_cast<uint32_t>(target), .mask = together, .join = joined});
    }
    is_first = false;
  }
}

int Warp::new_join(int32_t pc, LaneMask lanes, int outer) {
  if (free_joins_.empty()) {
    free_joins_.push_back(static_cast<int>(joins_.size()));
    joins_.emplace_back();
  }
  const int index = free_joins_.back();
  free_joins_.pop_back();
  joins_[index] = {.pc = pc, .expected = lanes, .arrived = 0, .outer = outer};
  return index;
}

void Warp::arrive_at_join() {
  const int join = splits_[current_].join;
  joins_[join].arrived |= splits_[current_].mask;
  drop_current();
  release_if_complete(join);
}

void Warp::release_if_complete(int join) {
  const Join done = joins_[join];
  if (done.arrived != done.expected) return;
  joins_[join].arrived = joins_[join].expected = 0;
  free_joins_.push_back(join);
  if (done.expected == 0) return;
  splits_.push_back(
      {.pc = static_cast<uint32_t>(done.pc), .mask = done.expected, .join = done.outer});
}

bool Warp::release_joins() {
  bool has_released = false;
  for (Join& join : joins_) {
    if (join.arrived == 0 || join.arrived == join.expected) continue;
    splits_.push_back(
        {.pc = static_cast<uint32_t>(join.pc), .mask = join.arrived, .join = join.outer});
    join.expected &= ~join.arrived;
    join.arrived = 0;
    has_released = true;
  }
  return has_released;
}

void Warp::drop_current() {
  splits_.erase(splits_.begin() + static_cast<ptrdiff_t>(current_));
  may_continue_ = false;
}

void Warp::exit(LaneMask lanes) {
  alive_ &= ~lanes;
  Split& split = splits_[current_];
  split.mask &= ~lanes;
  const int join = split.join;
  if (split.mask == 0) drop_current();
  for (int outer = join; outer >= 0;) {
    // Completing a join may free it, but its entry still says what is around it.
    const int next = joins_[outer].outer;
    joins_[outer].expected &= ~lanes;
    release_if_complete(outer);
    outer = next;
  }
  may_continue_ = false;
  exited_->happen();
  if (alive_ == 0) {
    require_nothing_in_flight();
    block_->warp_finished(*this);
  }
  block_->cluster().check_barrier();
}

void Warp::require_nothing_in_flight() const {
  const size_t group = static_cast<size_t>(index_) / kWarpsOfGroup;
  if (product_registers_ == nullptr || group >= block_->warpgroups().size()) return;
  const auto& member = block_->warpgroups()[group]->members[index_ % kWarpsOfGroup];
  if (member.issued > product_registers_->waited()) {
    throw Fault(FaultKind::in_flight,
                "the warp ends, and no wgmma.wait_group has waited for the last of its products");
  }
}

void Warp::await(const Event& event, const char* reason, uint64_t value) {
  Split& split = splits_[current_];
  split.awaited = &event;
  split.awaited_count = event.count;
  split.reason = reason;
  split.reason_value = value;
  split.is_retried = false;
  may_continue_ = false;
  ++block_->grid().counters.instructions[static_cast<size_t>(pc_)].waits;
}

void Warp::retry_after(const Event& event, const char* reason, uint64_t value) {
  await(event, reason, value);
  splits_[current_].is_retried = true;
  splits_[current_].pc = static_cast<uint32_t>(pc_);
}

bool Warp::is_gathering(const Split& split, LaneMask members) const {
  return split.is_waiting() && static_cast<int>(split.pc) == pc_ && split.reason == kGathering &&
         split.reason_value == members;
}

LaneMask Warp::gather(LaneMask members, LaneMask mask) {
  const LaneMask wanted = members & alive_;
  if ((mask & ~members) != 0) {
    throw Fault(FaultKind::diverged,
                "a lane runs it that its member mask " + hex(members) + " does not name",
                first_lane(mask & ~members));
  }
  if ((wanted & ~mask) == 0) return wanted;
  LaneMask present = mask;
  for (const Split& split : splits_) {
    if (is_gathering(split, members)) present |= split.mask;
  }
  if ((wanted & ~present) != 0) {
    retry_after(*exited_, kGathering, members);
    return 0;
  }
  for (Split& split : splits_) {
    if (!is_gathering(split, members)) continue;
    ++split.pc;
    split.awaited = nullptr;
  }
  return wanted;
}

int Warp::elect(LaneMask members) const {
  const Options& options = block_->grid().machine.options();
  if (options.policy != Policy::random) return first_lane(members);
  // Some lane, by the seed.
  uint64_t skip = (options.seed * 0x9e3779b97f4a7c15u >> 32) % std::popcount(members);
  for (; skip > 0; --skip) members &= members - 1;
  return first_lane(members);
}

void Warp::require_convergence(LaneMask mask) const {
  if (mask == alive_) return;
  throw Fault(FaultKind::diverged,
              "it is .aligned, so that all lanes of the warp must run it together; lanes " +
                  hex(mask) + " of " + hex(alive_) + " do",
              first_lane(alive_ & ~mask));
}

// Running.

bool Warp::select() {
  for (size_t tried = 0; tried < splits_.size(); ++tried) {
    current_ = current_ + 1 < splits_.size() ? current_ + 1 : 0;
    Split& split = splits_[current_];
    if (split.is_waiting()) continue;
    split.awaited = nullptr;
    return true;
  }
  return false;
}

uint64_t Warp::run(uint64_t budget) {
  uint64_t done = 0;
  // Splits that have asked in vain, one after another.
  size_t asked = 0;
  try {
    while (done < budget && alive_ != 0 && asked < splits_.size() && select()) {
      has_yielded_ = false;
      const uint64_t of_split = run_split(budget - done);
      done += of_split;
      asked = has_yielded_ ? asked + 1 : 0;
      unasked_ = has_yielded_ ? 0 : unasked_ + of_split;
    }
  } catch (const Fault& fault) {
    throw EmulatorError(fault.kind, describe(fault.lane) + ": " + fault.what());
  }
  return done;
}

uint64_t Warp::clock() const { return block_->grid().clock() + executed_; }

std::string Warp::describe(int lane) const {
  std::string text = program_->kernel->name + ": " + program_->place(pc_) + ", block " +
                     emulator::describe(block_->index()) + ", warp " + std::to_string(index_);
  if (lane >= 0) text += ", lane " + std::to_string(lane);
  return text;
}

uint64_t Warp::run_split(uint64_t budget) {
  const Instruction* code = program_->code.data();
  Counters& counters = block_->grid().counters;
  auto& pipes = counters.warps[static_cast<size_t>(index_)];
  executed_ = 0;
  may_continue_ = true;
  while (executed_ < budget && may_continue_) {
    Split& split = splits_[current_];
    if (split.join >= 0 && joins_[split.join].pc == static_cast<int32_t>(split.pc)) {
      arrive_at_join();
      break;
    }
    pc_ = static_cast<int>(split.pc);
    const Instruction& instruction = code[pc_];
    LaneMask mask = split.mask;
    if (instruction.guard != kNoRegister) {
      const LaneMask guard = *write<LaneMask>({instruction.guard});
      mask &= instruction.guard_is_negated ? ~guard : guard;
    }
    ++split.pc;
    ++executed_;
    if (mask == 0) continue;
    if (instruction.touches_products && product_registers_) product_registers_->touch(*this);
    InstructionCounters& counted = counters.instructions[static_cast<size_t>(pc_)];
    ++counted.warps;
    counted.threads += static_cast<uint64_t>(std::popcount(mask));
    ++pipes[static_cast<size_t>(instruction.pipe)];
    instruction.run(*this, instruction, mask);
  }
  const uint64_t done = std::exchange(executed_, 0);
  block_->grid().machine.advance(done);
  return done;
}

}  // namespace abyssal::emulator

// mbarrier.* (PTX ISA 9.7.13.15).
//
// A phase is complete when no arrivals are pending and no transactions are outstanding; the next
// one then begins with the same number of arrivals. Transactions are counted with a sign, since a
// copy may finish before its bytes are announced.

#include "emulator/instructions/mbarriers.hpp"

#include <string>
#include <utility>

#include "emulator/instructions/addressing.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

// Limits of PTX ISA 9.7.13.15.2.
constexpr uint32_t kMostArrivals = (1u << 20) - 1;
constexpr int64_t kMostTransactions = (1 << 20) - 1;

std::string state_of(const Mbarrier& barrier) {
  return std::to_string(barrier.pending) + " of " + std::to_string(barrier.expected) +
         " arrivals and " + std::to_string(barrier.transactions) + " bytes pending in phase " +
         std::to_string(barrier.phase);
}

void complete_if_done(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.transactions != 0) return;
  ++barrier.phase;
  barrier.complete.join(barrier.arriving);
  barrier.arriving = {};
  barrier.pending = barrier.expected;
  barrier.completed.happen();
}

void expect_transactions(Mbarrier& barrier, uint32_t bytes, int lane) {
  barrier.transactions += bytes;
  if (barrier.transactions > kMostTransactions) {
    throw Fault(FaultKind::invalid,
                "an mbarrier can await " + std::to_string(kMostTransactions) + " bytes, not " +
                    std::to_string(barrier.transactions),
                lane);
  }
}

void arrive(Mbarrier& barrier, uint32_t count, bool drops, int lane) {
  if (count == 0 || count > barrier.pending) {
    throw Fault(FaultKind::invalid,
                std::to_string(count) + " arrivals at an mbarrier that has " + state_of(barrier),
                lane);
  }
  barrier.pending -= count;
  if (drops) barrier.expected -= count;
}

// init and inval

void run_init(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto* counts = warp.read<uint32_t>(instruction.sources[1]);
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    if (address % 8 != 0)
      throw Fault(FaultKind::misaligned, "an mbarrier at " + hex(address), lane);
    warp.block().shared(address, 8, lane);
    if (counts[lane] == 0 || counts[lane] > kMostArrivals) {
      throw Fault(FaultKind::invalid,
                  "an mbarrier for " + std::to_string(counts[lane]) + " arrivals: 1 to " +
                      std::to_string(kMostArrivals) + " are possible",
                  lane);
    }
    Block& owner = warp.block().owner(address, lane);
    Mbarrier& barrier = owner.mbarriers()[static_cast<uint32_t>(address)];
    barrier.expected = barrier.pending = counts[lane];
    barrier.transactions = 0;
    barrier.phase = 0;
    if (Checker* checker = warp.block().grid().machine.checker()) {
      barrier.agent = checker->add_agent(
          owner.number(), "the copies that the mbarrier at " + hex(address) + " counts");
      barrier.initialised = warp.checks()->initialisations();
    }
  });
}

void run_inval(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    find_mbarrier(warp.block(), address, lane);
    warp.block().mbarriers().erase(static_cast<uint32_t>(address));
  });
}

// arrive, arrive_drop, expect_tx and complete_tx

struct ArriveDetails : Details {
  Order order = Order::release;
  Scope scope = Scope::cta;
  bool expects = false;  // adds transactions
  bool arrives = true;
  bool completes = false;  // takes transactions away
  bool drops = false;
  bool has_count = false;
};

// Who waits for the phase will know what those knew that arrived with a release.
void tell(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ArriveDetails&>(*instruction.details);
  WarpState& state = *warp.checks();
  const bool releases = details.arrives && details.order == Order::release;
  while (mask != 0) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, first_lane(mask)));
    LaneMask together = 0;
    for_lanes(mask, [&](int lane) {
      if (to_shared(lane_address(warp, instruction, 0, lane)) == address)
        together |= LaneMask{1} << lane;
    });
    mask &= ~together;
    Mbarrier& barrier = find_mbarrier(warp.block(), address, first_lane(together));
    for_lanes(together, [&](int lane) { require_initialised(barrier, state, lane); });
    if (releases) barrier.arriving.join(state.publish(together));
  }
}

void run_arrive(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ArriveDetails&>(*instruction.details);
  if (warp.checks() != nullptr) tell(warp, instruction, mask);
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    Mbarrier& barrier = find_mbarrier(warp.block(), address, lane);
    const uint64_t phase = barrier.phase;
    const uint64_t number = instruction.sources[1] ? warp.bits(instruction.sources[1], lane) : 1;
    const auto count = static_cast<uint32_t>(number);
    if (details.expects) expect_transactions(barrier, count, lane);
    if (details.arrives) arrive(barrier, details.expects ? 1 : count, details.drops, lane);
    if (details.completes) barrier.transactions -= count;
    if (details.arrives || details.completes) complete_if_done(barrier);
    if (instruction.destinations[0]) warp.set_bits(instruction.destinations[0], lane, phase);
  });
  warp.block().grid().machine.note_progress();
}

// .sem.scope, before or after .shared::cta
void decode_semantics(Decoding& decoding, Order& order, Scope& scope) {
  constexpr Order kOrders[] = {Order::release, Order::acquire, Order::relaxed};
  const int index = decoding.choose_if({"release", "acquire", "relaxed"});
  if (index >= 0) order = kOrders[index];
  if (const auto found = decode_scope_if(decoding)) scope = *found;
}

// The state that an arrival gives: a register, `_`, or nothing at all.
size_t decode_state(Decoding& decoding) {
  if (decoding.operand(0).kind == ptx::Operand::Kind::address) return 0;
  decoding.into.destinations[0] = decoding.destination(0, Type::b64);
  return 1;
}

void decode_arrive(Decoding& decoding, bool drops) {
  auto details = std::make_unique<ArriveDetails>();
  details->drops = drops;
  details->expects = decoding.accept("expect_tx");
  decoding.accept("noComplete");
  decode_semantics(decoding, details->order, details->scope);
  decode_space(decoding);
  decoding.expect("b64");
  const size_t address = decode_state(decoding);
  decode_address(decoding, address, 0);
  decoding.expect_operands(address + (details->expects ? 2 : 1), address + 2);
  if (decoding.num_operands() == address + 2) {
    decoding.into.sources[1] = decoding.source(address + 1, Type::u32);
  }
  decoding.into.run = run_arrive;
  decoding.into.details = std::move(details);
}

void decode_transactions(Decoding& decoding, bool expects) {
  auto details = std::make_unique<ArriveDetails>();
  details->arrives = false;
  details->expects = expects;
  details->completes = !expects;
  details->order = Order::relaxed;
  decode_semantics(decoding, details->order, details->scope);
  decode_space(decoding);
  decoding.expect("b64");
  decoding.expect_operands(2);
  decode_address(decoding, 0, 0);
  decoding.into.sources[1] = decoding.source(1, Type::u32);
  decoding.into.run = run_arrive;
  decoding.into.details = std::move(details);
}

// test_wait and try_wait

struct WaitDetails : Details {
  Order order = Order::acquire;
  Scope scope = Scope::cta;
  bool by_parity = false;
  bool may_suspend = false;  // try_wait
};

bool is_complete(const Mbarrier& barrier, const WaitDetails& details, uint64_t wanted, int lane) {
  if (details.by_parity) {
    if (wanted > 1) {
      throw Fault(FaultKind::invalid, "a phase parity of " + std::to_string(wanted), lane);
    }
    return (barrier.phase & 1) != wanted;
  }
  // The state must be of the current phase or the one before it (PTX ISA 9.7.13.15.16).
  if (wanted != barrier.phase && wanted + 1 != barrier.phase) {
    throw Fault(FaultKind::invalid, "the state of a phase long gone", lane);
  }
  return wanted != barrier.phase;
}

// What those know now that have found a phase complete.
void learn(Warp& warp, const Instruction& instruction, LaneMask lanes) {
  while (lanes != 0) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, first_lane(lanes)));
    LaneMask together = 0;
    for_lanes(lanes, [&](int lane) {
      if (to_shared(lane_address(warp, instruction, 0, lane)) == address)
        together |= LaneMask{1} << lane;
    });
    lanes &= ~together;
    const Mbarrier& barrier = find_mbarrier(warp.block(), address, first_lane(together));
    warp.checks()->learn(together, warp.alive(), barrier.complete);
  }
}

void run_wait(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const WaitDetails&>(*instruction.details);
  LaneMask complete = 0;
  const Mbarrier* awaited = nullptr;
  uint64_t awaited_address = 0;
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    const Mbarrier& barrier = find_mbarrier(warp.block(), address, lane);
    if (warp.checks() != nullptr) require_initialised(barrier, *warp.checks(), lane);
    if (is_complete(barrier, details, warp.bits(instruction.sources[1], lane), lane)) {
      complete |= LaneMask{1} << lane;
    } else {
      awaited = &barrier;
      awaited_address = address;
    }
  });
  if (awaited != nullptr && details.may_suspend) {
    // It may give up at any time, and then the program must come back by itself.
    Machine& machine = warp.block().grid().machine;
    const bool gives_up = machine.options().policy != Policy::early && machine.random() % 4 == 0;
    if (!gives_up) return warp.retry_after(awaited->completed, "the mbarrier at", awaited_address);
  }
  if (awaited != nullptr) warp.yield();
  warp.write_predicate(instruction.destinations[0], mask, complete);
  if (warp.checks() != nullptr && details.order == Order::acquire) {
    learn(warp, instruction, complete);
  }
}

void decode_wait(Decoding& decoding, bool may_suspend) {
  auto details = std::make_unique<WaitDetails>();
  details->may_suspend = may_suspend;
  details->by_parity = decoding.accept("parity");
  decode_semantics(decoding, details->order, details->scope);
  decode_space(decoding);
  decoding.expect("b64");
  decoding.expect_operands(3, 4);  // the fourth: how long to wait
  decoding.into.destinations[0] = decoding.predicate_destination(decoding.operand(0));
  decode_address(decoding, 1, 0);
  decoding.into.sources[1] = decoding.source(2, details->by_parity ? Type::u32 : Type::b64);
  decoding.into.run = run_wait;
  decoding.into.details = std::move(details);
}

void decode_address_only(Decoding& decoding, Handler handler, size_t operands) {
  decode_space(decoding);
  decoding.expect("b64");
  decoding.expect_operands(operands);
  decode_address(decoding, 0, 0);
  decoding.into.run = handler;
}

void decode_mbarrier(Decoding& decoding) {
  switch (decoding.choose({"init", "inval", "arrive", "arrive_drop", "expect_tx", "complete_tx",
                           "test_wait", "try_wait"})) {
    case 0:
      decode_address_only(decoding, run_init, 2);
      decoding.into.sources[1] = decoding.source(1, Type::u32);
      return;
    case 1:
      return decode_address_only(decoding, run_inval, 1);
    case 2:
      return decode_arrive(decoding, false);
    case 3:
      return decode_arrive(decoding, true);
    case 4:
      return decode_transactions(decoding, true);
    case 5:
      return decode_transactions(decoding, false);
    case 6:
      return decode_wait(decoding, false);
    default:
      return decode_wait(decoding, true);
  }
}

constexpr Opcode kOpcodes[] = {{"mbarrier", decode_mbarrier}};

}  // namespace

std::span<const Opcode> mbarrier_opcodes() { return kOpcodes; }

Mbarrier& find_mbarrier(Block& block, uint64_t shared_address, int lane) {
  Block& owner = block.owner(shared_address, lane);
  const auto inside = static_cast<uint32_t>(inside_block(shared_address));
  const auto found = owner.mbarriers().find(inside);
  if (found == owner.mbarriers().end()) {
    throw Fault(FaultKind::invalid,
                "there is no initialised mbarrier at " + hex(inside) +
                    " of shared memory of block " + describe(owner.index()),
                lane);
  }
  return found->second;
}

void require_initialised(const Mbarrier& barrier, const WarpState& state, int lane) {
  const bool is_own = barrier.initialised.is_of_same_agent(state.initialisations());
  if (is_own || state.common.over.covers(barrier.initialised, 1)) return;
  const Knowledge* more = state.extra[lane].get();
  if (more != nullptr && more->over.covers(barrier.initialised, 1)) return;
  throw Fault(FaultKind::race, "nothing orders the mbarrier's initialisation before this", lane);
}

Epoch begin_copy(Mbarrier& barrier) {
  const Epoch copy = barrier.agent.epoch();
  if (copy) barrier.outstanding.push_back(barrier.agent.clock++);
  return copy;
}

void end_copy(Mbarrier& barrier, Epoch copy, uint32_t bytes) {
  if (copy) {
    // Who waits knows of all copies up to the oldest that is not over.
    std::erase(barrier.outstanding, copy.clock());
    const uint32_t next =
        barrier.outstanding.empty() ? barrier.agent.clock : barrier.outstanding.front();
    barrier.arriving.over.raise({copy.block(), copy.agent(), next - 1}, 1);
  }
  barrier.transactions -= bytes;
  if (barrier.transactions < -kMostTransactions) {
    throw Fault(FaultKind::invalid, "more bytes arrived at an mbarrier than it can count");
  }
  complete_if_done(barrier);
}

}  // namespace abyssal::emulator

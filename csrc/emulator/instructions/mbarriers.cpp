// mbarrier.* (PTX ISA 9.7.13.15).
//
// A phase is complete when no arrivals are pending and no transactions are outstanding; the next
// one then begins with the same number of arrivals. Transactions are counted with a sign, since a
// copy may finish before its bytes are announced.

#include "emulator/instructions/mbarriers.hpp"

#include <algorithm>
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
  barrier.complete.join(std::exchange(barrier.arriving, {}));
  barrier.complete_from_peers.join(std::exchange(barrier.arriving_from_peers, {}));
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
    Mbarrier& barrier = owner.mbarriers()[static_cast<uint32_t>(inside_block(address))];
    barrier.is_valid = true;
    barrier.expected = barrier.pending = counts[lane];
    barrier.transactions = 0;
    barrier.phase = 0;
    if (Checker* checker = warp.block().grid().machine.checker()) {
      barrier.agent = checker->add_copies(
          owner.number(), "the copies that the mbarrier at " + hex(address) + " counts");
      barrier.initialised = warp.checks()->initialisations();
    }
  });
}

void run_inval(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    find_mbarrier(warp.block(), address, lane).is_valid = false;
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

  // The last operand: arrivals or bytes.
  static uint32_t count_of(const Warp& warp, const Instruction& instruction, int lane) {
    const uint64_t count = instruction.sources[1] ? warp.bits(instruction.sources[1], lane) : 1;
    return static_cast<uint32_t>(count);
  }
  uint32_t arrivals_of(const Warp& warp, const Instruction& instruction, int lane) const {
    return expects ? 1 : count_of(warp, instruction, lane);
  }
};

// Lanes from `lane` on, of `mask`, whose arrivals count for the same phase of one mbarrier.
LaneMask arrivals_together(Warp& warp, const Instruction& instruction, LaneMask mask, int lane) {
  const auto& details = static_cast<const ArriveDetails&>(*instruction.details);
  const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
  const Mbarrier& barrier = find_mbarrier(warp.block(), address, lane);
  uint64_t pending = barrier.pending;
  LaneMask together = 0;
  for (mask &= kAllLanes << lane; mask != 0 && pending > 0; mask &= mask - 1) {
    const int next = first_lane(mask);
    if (to_shared(lane_address(warp, instruction, 0, next)) != address) continue;
    together |= LaneMask{1} << next;
    pending -= std::min<uint64_t>(pending, details.arrivals_of(warp, instruction, next));
  }
  return together;
}

// Who waits for the phase will know what those knew that arrived. Between blocks this takes the
// scope of the cluster on both sides (PTX ISA 8.5, scopes). Public kernels hand buffers back to a
// peer at the scope of a block, after reads alone; what was read is read, whatever the scope. A
// copy into shared memory that was seen complete is there, too: that memory has one place, and no
// cache, so that no later copy falls behind it.
void tell(Warp& warp, Mbarrier& barrier, const Knowledge& news, bool is_own, Scope scope) {
  if (is_own) return barrier.arriving.join(news);
  const Checker& checker = *warp.block().grid().machine.checker();
  barrier.arriving.over.join(checker.reads_of(news.over, warp.block().number()));
  if (scope >= Scope::cluster) barrier.arriving_from_peers.join(news);
}

void run_arrive(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ArriveDetails&>(*instruction.details);
  WarpState* state = warp.checks();
  const bool releases = details.arrives && details.order == Order::release;
  LaneMask told = 0;
  for_lanes(mask, [&](int lane) {
    const uint64_t address = to_shared(lane_address(warp, instruction, 0, lane));
    Mbarrier& barrier = find_mbarrier(warp.block(), address, lane);
    const uint64_t phase = barrier.phase;
    if (state != nullptr) require_initialised(barrier, *state, lane);
    if (state != nullptr && releases && !has(told, lane)) {
      const LaneMask together = arrivals_together(warp, instruction, mask, lane);
      const bool is_own = &warp.block().owner(address, lane) == &warp.block();
      tell(warp, barrier, state->publish(together), is_own, details.scope);
      told |= together;
    }
    const uint32_t count = details.count_of(warp, instruction, lane);
    if (details.expects) expect_transactions(barrier, count, lane);
    if (details.arrives) {
      arrive(barrier, details.arrivals_of(warp, instruction, lane), details.drops, lane);
    }
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
    if (static_cast<const WaitDetails&>(*instruction.details).scope >= Scope::cluster) {
      warp.checks()->learn(together, warp.alive(), barrier.complete_from_peers);
    }
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
  if (found == owner.mbarriers().end() || !found->second.is_valid) {
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
  if (barrier.agent.block == 0) return {};  // not a strict run
  const Epoch copy = barrier.agent.epoch();
  barrier.outstanding.push_back(barrier.agent.clock++);
  return copy;
}

void end_copy(Mbarrier& barrier, Epoch copy, uint32_t bytes) {
  if (!barrier.is_valid) {
    throw Fault(FaultKind::in_flight, "its mbarrier was invalidated before the copy was over");
  }
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

void expect_arrival(Mbarrier& barrier, int lane) {
  if (barrier.pending == kMostArrivals) {
    throw Fault(FaultKind::invalid,
                "an mbarrier can await " + std::to_string(kMostArrivals) + " arrivals", lane);
  }
  ++barrier.pending;
}

void end_async_copies(Mbarrier& barrier, Epoch copies, int lane) {
  if (copies.block() != 0) barrier.arriving.over.raise(copies, LaneMask{1} << lane);
  arrive(barrier, 1, false, lane);
  complete_if_done(barrier);
}

}  // namespace abyssal::emulator

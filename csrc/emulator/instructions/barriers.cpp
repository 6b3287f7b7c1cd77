// Barriers of blocks and clusters, and fences (PTX ISA 9.7.13.1 to 9.7.13.5).

#include <bit>

#include "emulator/block.hpp"
#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/lanewise.hpp"
#include "emulator/instructions/mbarriers.hpp"
#include "emulator/instructions/warps.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

constexpr uint32_t kNumBarriers = 16;

enum class Participation : uint8_t { sync, arrive, reduce };
using Reduction = NamedBarrier::Reduction;

enum class FenceProxy : uint8_t {
  none,
  async,
  async_global,
  async_shared,
  mbarrier_init,
  tensormap,
  alias
};

struct FenceDetails : Details {
  Order order = Order::weak;
  Scope scope = Scope::none;
  FenceProxy proxy = FenceProxy::none;
};

// fence.proxy: what is behind it. Returns the number of operands.
size_t decode_proxy(Decoding& decoding, FenceDetails& details) {
  if (decoding.accept("alias")) {
    details.proxy = FenceProxy::alias;
    return 0;
  }
  if (decoding.accept("async")) {
    details.proxy = FenceProxy::async;
    if (decoding.accept("global")) details.proxy = FenceProxy::async_global;
    if (decoding.accept("shared::cta") || decoding.accept("shared::cluster")) {
      details.proxy = FenceProxy::async_shared;
    }
    return 0;
  }
  decoding.expect("tensormap::generic");
  details.proxy = FenceProxy::tensormap;
  const bool acquires = decoding.choose({"release", "acquire"}) == 1;
  details.order = acquires ? Order::acquire : Order::release;
  details.scope = decode_scope(decoding);
  return acquires ? 2 : 0;  // the address of the map and its size
}

struct BarrierDetails : Details {
  Participation participation = Participation::sync;
  Reduction reduction = Reduction::count;
  bool is_aligned = false;
  bool has_count = false;
};

// The number of threads that the barrier waits for.
uint32_t expected_threads(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const Block& block = warp.block();
  const uint32_t whole = (block.num_threads() + kLanes - 1) / kLanes * kLanes;
  if (!static_cast<const BarrierDetails&>(*instruction.details).has_count) return whole;
  const uint32_t count = uniform_value(warp, instruction.sources[1], mask, "numbers of threads");
  if (count == 0 || count % kLanes != 0 || count > whole) {
    throw Fault(FaultKind::invalid,
                "a barrier for " + std::to_string(count) +
                    " threads: it must be a multiple of 32, " + "and the block has " +
                    std::to_string(whole),
                first_lane(mask));
  }
  return count;
}

// A warp counts with all its threads, those that have exited included (PTX ISA 9.7.13.1).
void arrive(NamedBarrier& barrier, uint32_t id, uint32_t expected, LaneMask mask) {
  if (barrier.arrived != 0 && barrier.expected != expected) {
    throw Fault(FaultKind::invalid,
                "barrier " + std::to_string(id) + " waits for " + std::to_string(barrier.expected) +
                    " threads, and this warp names " + std::to_string(expected),
                first_lane(mask));
  }
  barrier.expected = expected;
  barrier.arrived += kLanes;
  if (barrier.arrived > expected) {
    throw Fault(FaultKind::invalid,
                "barrier " + std::to_string(id) + " waits for " + std::to_string(expected) +
                    " threads and " + std::to_string(barrier.arrived) + " arrived",
                first_lane(mask));
  }
}

// Gives those that asked for a reduction its result.
void complete(NamedBarrier& barrier) {
  for (const NamedBarrier::Vote& vote : barrier.votes) {
    const bool result = vote.reduction == Reduction::conjunction
                            ? barrier.num_true == barrier.num_votes
                            : barrier.num_true > 0;
    if (vote.reduction == Reduction::count) {
      for_lanes(vote.warp->alive(),
                [&](int lane) { vote.warp->set_bits(vote.result, lane, barrier.num_true); });
    } else {
      vote.warp->write_predicate(vote.result, vote.warp->alive(), result ? kAllLanes : 0);
    }
  }
  // All learn what all have done.
  for (Warp* warp : barrier.waiting) {
    WarpState* state = warp->checks();
    if (state == nullptr) continue;
    state->learn(warp->alive(), warp->alive(), barrier.knowledge);
    // A fence by each thread, a barrier, then one thread's atomic for all of them: the programming
    // guide's own example (memory fence functions) counts on it.
    state->prepared.join(barrier.prepared);
  }
  barrier.waiting.clear();
  barrier.knowledge = {};
  barrier.prepared = {};
  barrier.votes.clear();
  barrier.num_votes = barrier.num_true = 0;
  barrier.arrived = 0;
  barrier.completed.happen();
}

void run_barrier(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const BarrierDetails&>(*instruction.details);
  // Without .aligned, lanes may come one after another; they count when the warp is complete.
  if (details.is_aligned) {
    warp.require_convergence(mask);
  } else if (warp.gather(warp.alive(), mask) == 0) {
    return;
  }
  const uint32_t id = uniform_value(warp, instruction.sources[0], warp.alive(), "barriers");
  if (id >= kNumBarriers) {
    throw Fault(FaultKind::invalid, "there is no barrier " + std::to_string(id), first_lane(mask));
  }
  NamedBarrier& barrier = warp.block().barrier(id);
  arrive(barrier, id, expected_threads(warp, instruction, warp.alive()), mask);
  if (details.participation == Participation::reduce) {
    const LaneMask votes = warp.read_predicate(instruction, 2) & warp.alive();
    barrier.votes.push_back({&warp, details.reduction, instruction.destinations[0]});
    barrier.num_votes += static_cast<uint32_t>(std::popcount(warp.alive()));
    barrier.num_true += static_cast<uint32_t>(std::popcount(votes));
  }
  if (WarpState* state = warp.checks()) {
    barrier.knowledge.join(state->publish(warp.alive()));
    barrier.prepared.join(state->prepared);
  }
  if (details.participation != Participation::arrive) barrier.waiting.push_back(&warp);
  const bool is_last = barrier.arrived == barrier.expected;
  if (details.participation != Participation::arrive && !is_last) {
    warp.await(barrier.completed, "barrier", id);
  }
  if (is_last) complete(barrier);
}

// bar.red{.popc.u32, .and.pred, .or.pred} d, barrier {, threads}, {!}p
void decode_reduction(Decoding& decoding, BarrierDetails& details) {
  const size_t reduction = decoding.choose({"and", "or", "popc"});
  details.reduction = static_cast<Reduction>(reduction);
  details.is_aligned |= decoding.accept("aligned");
  const bool counts = details.reduction == Reduction::count;
  decoding.expect(counts ? "u32" : "pred");
  decoding.expect_operands(3, 4);
  decoding.into.destinations[0] = counts ? decoding.destination(0, Type::u32)
                                         : decoding.predicate_destination(decoding.operand(0));
  decoding.into.sources[0] = decoding.source(1, Type::u32);
  details.has_count = decoding.num_operands() == 4;
  if (details.has_count) decoding.into.sources[1] = decoding.source(2, Type::u32);
  decoding.into.sources[2] = decoding.predicate(decoding.operand(details.has_count ? 3 : 2), 2);
}

void decode_named_barrier(Decoding& decoding) {
  decoding.accept("cta");
  auto details = std::make_unique<BarrierDetails>();
  details->participation = static_cast<Participation>(decoding.choose({"sync", "arrive", "red"}));
  // `bar` is `barrier.cta` with .aligned (PTX ISA 9.7.13.1).
  details->is_aligned = decoding.accept("aligned") || decoding.text().opcode == "bar";
  if (details->participation == Participation::reduce) {
    decode_reduction(decoding, *details);
  } else {
    decoding.expect_operands(details->participation == Participation::arrive ? 2 : 1, 2);
    decoding.into.sources[0] = decoding.source(0, Type::u32);
    details->has_count = decoding.num_operands() == 2;
    if (details->has_count) decoding.into.sources[1] = decoding.source(1, Type::u32);
  }
  decoding.into.run = run_barrier;
  decoding.into.details = std::move(details);
}

// barrier.cluster

void run_cluster_arrive(Warp& warp, const Instruction& instruction, LaneMask mask) {
  if (instruction.variant == 1) warp.require_convergence(mask);
  ClusterBarrier& barrier = warp.block().cluster().barrier();
  if ((warp.cluster_arrived & mask) != 0) {
    throw Fault(FaultKind::invalid, "it arrives at the cluster's barrier again without a wait",
                first_lane(warp.cluster_arrived & mask));
  }
  const auto& details = static_cast<const FenceDetails&>(*instruction.details);
  if (WarpState* state = warp.checks()) {
    if (details.order == Order::release) barrier.arriving.join(state->publish(mask));
    for (Scope scope : {Scope::cluster, Scope::gpu, Scope::sys}) {
      barrier.arriving.join(state->prepared[scope]);
    }
    // Whatever the order, who goes on knows that this block runs.
    barrier.arriving.over.raise({state->agent.block, state->agent.index, 0}, 1);
  }
  warp.cluster_arrived |= mask;
  warp.cluster_phase = barrier.completed.count;
  warp.block().cluster().check_barrier();
}

void run_cluster_wait(Warp& warp, const Instruction& instruction, LaneMask mask) {
  if (instruction.variant == 1) warp.require_convergence(mask);
  ClusterBarrier& barrier = warp.block().cluster().barrier();
  const LaneMask early = mask & ~warp.cluster_arrived;
  if (early != 0) {
    throw Fault(FaultKind::invalid, "it waits at the cluster's barrier without having arrived",
                first_lane(early));
  }
  if (barrier.completed.count == warp.cluster_phase) {
    return warp.retry_after(barrier.completed, "the cluster's barrier");
  }
  warp.cluster_arrived &= ~mask;
  if (WarpState* state = warp.checks()) state->learn(mask, warp.alive(), barrier.complete);
}

void decode_cluster_barrier(Decoding& decoding) {
  const bool arrives = decoding.choose({"arrive", "wait"}) == 0;
  auto details = std::make_unique<FenceDetails>();
  details->order = arrives ? Order::release : Order::acquire;
  details->scope = Scope::cluster;
  if (decoding.choose_if({"release", "acquire", "relaxed"}) == 2) details->order = Order::relaxed;
  decoding.into.variant = decoding.accept("aligned");
  decoding.expect_operands(0);
  decoding.into.run = arrives ? run_cluster_arrive : run_cluster_wait;
  decoding.into.details = std::move(details);
}

void decode_barrier(Decoding& decoding) {
  if (decoding.text().opcode == "bar" && decoding.accept("warp")) {
    decoding.expect("sync");
    decoding.expect_operands(1);
    decoding.into.sources[0] = decoding.source(0, Type::b32);
    decoding.into.run = run_warp_barrier;
  } else if (decoding.accept("cluster")) {
    decode_cluster_barrier(decoding);
  } else {
    decode_named_barrier(decoding);
  }
}

// Fences. Memory here is sequentially consistent, so that they change no value; the checks of
// strict runs are what they are for.

void run_fence(Warp& warp, const Instruction& instruction, LaneMask mask) {
  WarpState* state = warp.checks();
  if (state == nullptr) return;
  const auto& details = static_cast<const FenceDetails&>(*instruction.details);
  switch (details.proxy) {
    case FenceProxy::none:
      return warp.block().grid().machine.checker()->fence(warp, mask, details.order, details.scope);
    case FenceProxy::async:
      return state->fence_proxy(mask, warp.alive(), FenceSpace::any);
    case FenceProxy::async_global:
      return state->fence_proxy(mask, warp.alive(), FenceSpace::global);
    case FenceProxy::async_shared:
      return state->fence_proxy(mask, warp.alive(), FenceSpace::shared);
    case FenceProxy::mbarrier_init:
      return state->fence_initialisations();
    case FenceProxy::tensormap:
      if (details.order != Order::acquire) return;
      return state->fence_proxy(mask, warp.alive(), FenceSpace::tensor_map);
    case FenceProxy::alias:
      return;
  }
}

void decode_membar(Decoding& decoding) {
  auto details = std::make_unique<FenceDetails>();
  details->order = Order::acquire_release;
  if (decoding.accept("proxy")) {
    decode_proxy(decoding, *details);
  } else {
    constexpr Scope kScopes[] = {Scope::cta, Scope::gpu, Scope::sys};
    details->scope = kScopes[decoding.choose({"cta", "gl", "sys"})];
  }
  decoding.expect_operands(0);
  decoding.into.run = run_fence;
  decoding.into.details = std::move(details);
}

void decode_fence(Decoding& decoding) {
  auto details = std::make_unique<FenceDetails>();
  details->order = Order::acquire_release;
  size_t operands = 0;
  if (decoding.accept("proxy")) {
    operands = decode_proxy(decoding, *details);
  } else if (decoding.accept("mbarrier_init")) {
    decoding.expect("release");
    decoding.expect("cluster");
    details->proxy = FenceProxy::mbarrier_init;
    details->scope = Scope::cluster;
  } else {
    const int order = decoding.choose_if({"acq_rel", "sc", "acquire", "release"});
    if (order == 2) details->order = Order::acquire;
    if (order == 3) details->order = Order::release;
    details->scope = decode_scope(decoding);
  }
  decoding.expect_operands(operands);
  decoding.into.run = run_fence;
  decoding.into.details = std::move(details);
}

constexpr Opcode kOpcodes[] = {
    {"bar", decode_barrier},
    {"barrier", decode_barrier},
    {"fence", decode_fence},
    {"membar", decode_membar},
};

}  // namespace

std::span<const Opcode> barrier_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

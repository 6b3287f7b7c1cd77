// Instructions that lanes of a warp run together (PTX ISA 9.7.9.7 and 9.7.13.6 to 9.7.13.16).

#include "emulator/instructions/warps.hpp"

#include <array>
#include <bit>

#include "emulator/checks/warp_state.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

// The lanes whose value is that of the first of them.
LaneMask lanes_like_first(const uint32_t* values, LaneMask lanes) {
  const uint32_t first = values[first_lane(lanes)];
  LaneMask alike = 0;
  for_lanes(lanes, [&](int lane) { alike |= LaneMask{values[lane] == first} << lane; });
  return alike;
}

using Together = void (*)(Warp& warp, const Instruction& instruction, LaneMask members);

// Runs `act` for lanes that run a `.sync` instruction together. A thread waits for those that its
// member mask names and that give the same mask (PTX ISA 9.7.9.6), so lanes that stand here side
// by side may be of several groups.
void run_groups(Warp& warp, const Instruction& instruction, LaneMask mask, int source,
                Together act) {
  const auto* masks = warp.read<uint32_t>(instruction.sources[source]);
  LaneMask alike = lanes_like_first(masks, mask);
  if (alike == mask) {
    const LaneMask members = warp.gather(masks[first_lane(mask)], mask);
    if (members != 0) act(warp, instruction, members);
    return;
  }
  std::array<LaneMask, kLanes> groups;
  size_t count = 0;
  for (LaneMask rest = mask; rest != 0; rest &= ~alike) {
    alike = lanes_like_first(masks, rest);
    const LaneMask named = masks[first_lane(alike)];
    const LaneMask absent = named & warp.alive() & ~alike;
    if (absent != 0) {
      throw Fault(FaultKind::diverged,
                  "lanes of the warp give different member masks, and lane " +
                      std::to_string(first_lane(absent)) + ", which " + hex(named) +
                      " names, does not give the same",
                  first_lane(alike));
    }
    groups[count++] = warp.gather(named, alike);
  }
  for (size_t i = 0; i < count; ++i) act(warp, instruction, groups[i]);
}

// As a handler, for instructions that bring lanes together for no more than their values.
template <Together act, int source>
void run_together(Warp& warp, const Instruction& instruction, LaneMask mask) {
  run_groups(warp, instruction, mask, source,
             [](Warp& warp, const Instruction& instruction, LaneMask members) {
               if (WarpState* state = warp.checks()) state->converge(members, warp.alive());
               act(warp, instruction, members);
             });
}

// shfl

enum class Shuffle : uint8_t { up, down, butterfly, index };

struct FromLane {
  int lane;
  bool is_valid;
};

FromLane shuffle_source(Shuffle mode, int lane, uint32_t b, uint32_t c) {
  const int segment_mask = static_cast<int>(c >> 8 & 0x1f);
  const int clamp = static_cast<int>(c & 0x1f);
  const int by = static_cast<int>(b & 0x1f);
  const int most = (lane & segment_mask) | (clamp & ~segment_mask);
  const int least = lane & segment_mask;
  int from = 0;
  bool is_valid = false;
  switch (mode) {
    case Shuffle::up:
      from = lane - by;
      is_valid = from >= most;
      break;
    case Shuffle::down:
      from = lane + by;
      is_valid = from <= most;
      break;
    case Shuffle::butterfly:
      from = lane ^ by;
      is_valid = from <= most;
      break;
    case Shuffle::index:
      from = least | (by & ~segment_mask);
      is_valid = from <= most;
      break;
  }
  return {is_valid ? from : lane, is_valid};
}

void shfl(Warp& warp, const Instruction& instruction, LaneMask members) {
  const auto* values = warp.read<uint32_t>(instruction.sources[0]);
  const auto* b = warp.read<uint32_t>(instruction.sources[1]);
  const auto* c = warp.read<uint32_t>(instruction.sources[2]);
  uint32_t result[kLanes];
  LaneMask valid = 0;
  for_lanes(members, [&](int lane) {
    const FromLane from =
        shuffle_source(static_cast<Shuffle>(instruction.variant), lane, b[lane], c[lane]);
    if (!has(members, from.lane)) {
      throw Fault(FaultKind::diverged,
                  "it reads lane " + std::to_string(from.lane) + ", which does not take part",
                  lane);
    }
    result[lane] = values[from.lane];
    valid |= LaneMask{from.is_valid} << lane;
  });
  if (instruction.destinations[0]) {
    auto* to = warp.write<uint32_t>(instruction.destinations[0]);
    for_lanes(members, [&](int lane) { to[lane] = result[lane]; });
  }
  if (instruction.destinations[1]) {
    warp.write_predicate(instruction.destinations[1], members, valid);
  }
}

// A result, or result|predicate.
void decode_result_pair(Decoding& decoding, Type type) {
  const ptx::Operand& result = decoding.operand(0);
  if (result.kind == ptx::Operand::Kind::pair) {
    decoding.into.destinations[0] = decoding.destination(result.elements[0], ptx::bytes_of(type));
    decoding.into.destinations[1] = decoding.predicate_destination(result.elements[1]);
  } else {
    decoding.into.destinations[0] = decoding.destination(result, ptx::bytes_of(type));
  }
}

void decode_shfl(Decoding& decoding) {
  decoding.expect("sync");
  decoding.into.variant = static_cast<uint8_t>(decoding.choose({"up", "down", "bfly", "idx"}));
  decoding.expect("b32");
  decoding.expect_operands(5);
  decode_result_pair(decoding, Type::b32);
  for (size_t i = 0; i < 4; ++i) decoding.into.sources[i] = decoding.source(i + 1, Type::b32);
  decoding.into.run = run_together<shfl, 3>;
}

// vote

enum class Vote : uint8_t { all, any, uniform, ballot };

void vote(Warp& warp, const Instruction& instruction, LaneMask members) {
  const LaneMask ballot = warp.read_predicate(instruction, 0) & members;
  const auto vote = static_cast<Vote>(instruction.variant);
  if (vote == Vote::ballot) {
    auto* to = warp.write<uint32_t>(instruction.destinations[0]);
    for_lanes(members, [&](int lane) { to[lane] = ballot; });
    return;
  }
  const bool all = ballot == members, none = ballot == 0;
  const bool result = vote == Vote::all ? all : vote == Vote::any ? !none : all || none;
  warp.write_predicate(instruction.destinations[0], members, result ? kAllLanes : 0);
}

void decode_vote(Decoding& decoding) {
  decoding.expect("sync");
  decoding.into.variant = static_cast<uint8_t>(decoding.choose({"all", "any", "uni", "ballot"}));
  const bool is_ballot = static_cast<Vote>(decoding.into.variant) == Vote::ballot;
  decoding.expect(is_ballot ? "b32" : "pred");
  decoding.expect_operands(3);
  decoding.into.destinations[0] = is_ballot ? decoding.destination(0, Type::b32)
                                            : decoding.predicate_destination(decoding.operand(0));
  decoding.into.sources[0] = decoding.predicate(decoding.operand(1), 0);
  decoding.into.sources[1] = decoding.source(2, Type::b32);
  decoding.into.run = run_together<vote, 1>;
}

// match

template <typename T>
void match(Warp& warp, const Instruction& instruction, LaneMask members) {
  const T* values = warp.read<T>(instruction.sources[0]);
  const bool needs_all = instruction.variant == 1;
  LaneMask equal_to_all = 0;
  uint32_t result[kLanes];
  for_lanes(members, [&](int lane) {
    LaneMask equal = 0;
    for_lanes(members,
              [&](int other) { equal |= LaneMask{values[other] == values[lane]} << other; });
    equal_to_all |= LaneMask{equal == members} << lane;
    result[lane] = needs_all && equal != members ? 0 : equal;
  });
  auto* to = warp.write<uint32_t>(instruction.destinations[0]);
  for_lanes(members, [&](int lane) { to[lane] = result[lane]; });
  if (instruction.destinations[1]) {
    warp.write_predicate(instruction.destinations[1], members, equal_to_all);
  }
}

void decode_match(Decoding& decoding) {
  decoding.into.variant = decoding.choose({"any", "all"}) == 1;
  decoding.expect("sync");
  const Type type = decoding.type();
  decoding.expect_operands(3);
  decode_result_pair(decoding, Type::b32);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, Type::b32);
  if (ptx::bytes_of(type) != 4 && ptx::bytes_of(type) != 8) decoding.fail("not of this type");
  decoding.into.run = ptx::bytes_of(type) == 4 ? run_together<match<uint32_t>, 1>
                                               : run_together<match<uint64_t>, 1>;
}

// redux

struct Conjunction {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a & b; }
};
struct Disjunction {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a | b; }
};
struct Exclusive {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a ^ b; }
};
struct Sum {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
};
template <typename T>
struct Least {
  T operator()(T a, T b) const { return b < a ? b : a; }
};
template <typename T>
struct Most {
  T operator()(T a, T b) const { return a < b ? b : a; }
};

template <typename T, typename Operation>
void redux(Warp& warp, const Instruction& instruction, LaneMask members) {
  const T* values = warp.read<T>(instruction.sources[0]);
  T total = values[first_lane(members)];
  for_lanes(members & (members - 1),
            [&](int lane) { total = static_cast<T>(Operation()(total, values[lane])); });
  T* to = warp.write<T>(instruction.destinations[0]);
  for_lanes(members, [&](int lane) { to[lane] = total; });
}

void decode_redux(Decoding& decoding) {
  decoding.expect("sync");
  const size_t operation = decoding.choose({"and", "or", "xor", "add", "min", "max"});
  const Type type = decoding.type();
  decode_uniform(decoding, type, 2);
  if (ptx::bytes_of(type) != 4 || ptx::is_floating(type)) decoding.fail("not of this type");
  constexpr Handler kPlain[] = {
      run_together<redux<uint32_t, Conjunction>, 1>, run_together<redux<uint32_t, Disjunction>, 1>,
      run_together<redux<uint32_t, Exclusive>, 1>, run_together<redux<uint32_t, Sum>, 1>};
  if (operation < 4) {
    decoding.into.run = kPlain[operation];
  } else if (type == Type::s32) {
    decoding.into.run = operation == 4 ? run_together<redux<int32_t, Least<int32_t>>, 1>
                                       : run_together<redux<int32_t, Most<int32_t>>, 1>;
  } else {
    decoding.into.run = operation == 4 ? run_together<redux<uint32_t, Least<uint32_t>>, 1>
                                       : run_together<redux<uint32_t, Most<uint32_t>>, 1>;
  }
}

// activemask, elect and bar.warp.sync

void run_activemask(Warp& warp, const Instruction& instruction, LaneMask mask) {
  auto* to = warp.write<uint32_t>(instruction.destinations[0]);
  for_lanes(mask, [&](int lane) { to[lane] = mask; });
}

void decode_activemask(Decoding& decoding) {
  decoding.expect("b32");
  decoding.expect_operands(1);
  decoding.into.destinations[0] = decoding.destination(0, Type::b32);
  decoding.into.run = run_activemask;
}

// Which lane is elected is not said, only that it is always the same for a member mask.
void elect(Warp& warp, const Instruction& instruction, LaneMask members) {
  const int leader = warp.elect(members);
  if (instruction.destinations[0]) {
    auto* to = warp.write<uint32_t>(instruction.destinations[0]);
    for_lanes(members, [&](int lane) { to[lane] = static_cast<uint32_t>(leader); });
  }
  warp.write_predicate(instruction.destinations[1], members, LaneMask{1} << leader);
}

void decode_elect(Decoding& decoding) {
  decoding.expect("sync");
  decoding.expect_operands(2);
  if (decoding.operand(0).kind != ptx::Operand::Kind::pair) decoding.fail("expected d|p");
  decode_result_pair(decoding, Type::b32);
  if (!decoding.into.destinations[1]) decoding.fail("expected d|p");
  decoding.into.sources[0] = decoding.source(1, Type::b32);
  decoding.into.run = run_together<elect, 0>;
}

constexpr Opcode kOpcodes[] = {
    {"shfl", decode_shfl},   {"vote", decode_vote},   {"match", decode_match},
    {"redux", decode_redux}, {"elect", decode_elect}, {"activemask", decode_activemask},
};

}  // namespace

std::span<const Opcode> warp_opcodes() { return kOpcodes; }

uint32_t uniform_value(Warp& warp, const Source& source, LaneMask mask, const char* what) {
  const auto* values = warp.read<uint32_t>(source);
  const uint32_t first = values[first_lane(mask)];
  for_lanes(mask, [&](int lane) {
    if (values[lane] == first) return;
    throw Fault(FaultKind::diverged, std::string("lanes of the warp give different ") + what, lane);
  });
  return first;
}

void run_warp_barrier(Warp& warp, const Instruction& instruction, LaneMask mask) {
  run_groups(warp, instruction, mask, 0, [](Warp& warp, const Instruction&, LaneMask members) {
    if (WarpState* state = warp.checks()) state->meet(members, warp.alive());
  });
}

}  // namespace abyssal::emulator

// mov, cvta, isspacep, mapa (PTX ISA 9.7.9.1 to 9.7.9.6 and 9.7.9.23).

#include <cstring>
#include <vector>

#include "emulator/block.hpp"
#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

struct Same {
  template <typename T>
  T operator()(T value) const {
    return value;
  }
};

struct Wide {
  uint64_t low, high;
};

void run_move_predicate(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.write_predicate(instruction.destinations[0], mask, warp.read_predicate(instruction, 0));
}

struct PartDetails : Details {
  std::vector<Source> sources;
  std::vector<Destination> destinations;
};

// mov.b64 d, {a, b}: the first part lies lowest.
void run_pack(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& parts = static_cast<const PartDetails&>(*instruction.details).sources;
  const Destination& whole = instruction.destinations[0];
  for_lanes(mask, [&](int lane) {
    std::byte* to = warp.write<std::byte>(whole) + whole.bytes * lane;
    for (const Source& part : parts) {
      std::memcpy(to, warp.read<std::byte>(part) + part.bytes * lane, part.bytes);
      to += part.bytes;
    }
  });
}

void run_unpack(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& parts = static_cast<const PartDetails&>(*instruction.details).destinations;
  const Source& whole = instruction.sources[0];
  const size_t part_bytes = whole.bytes / parts.size();
  for_lanes(mask, [&](int lane) {
    const std::byte* from = warp.read<std::byte>(whole) + whole.bytes * lane;
    for (const Destination& part : parts) {
      if (part) std::memcpy(warp.write<std::byte>(part) + part.bytes * lane, from, part_bytes);
      from += part_bytes;
    }
  });
}

Type part_type(Decoding& decoding, Type whole, size_t count) {
  switch (count == 0 ? 0 : ptx::bytes_of(whole) / static_cast<int>(count)) {
    case 2:
      return Type::b16;
    case 4:
      return Type::b32;
    case 8:
      return Type::b64;
    default:
      decoding.fail("not of such parts");
  }
}

void decode_pack(Decoding& decoding, Type type) {
  auto details = std::make_unique<PartDetails>();
  const auto& parts = decoding.operand(1).elements;
  const Type part = part_type(decoding, type, parts.size());
  for (const ptx::Operand& operand : parts) {
    details->sources.push_back(decoding.source(operand, part));
  }
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.run = run_pack;
  decoding.into.details = std::move(details);
}

void decode_unpack(Decoding& decoding, Type type) {
  auto details = std::make_unique<PartDetails>();
  const auto& parts = decoding.operand(0).elements;
  const Type part = part_type(decoding, type, parts.size());
  for (const ptx::Operand& operand : parts) {
    details->destinations.push_back(decoding.destination(operand, ptx::bytes_of(part)));
  }
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.run = run_unpack;
  decoding.into.details = std::move(details);
}

// Clocks count the instructions of the whole emulation: time goes on, at no honest rate.
void run_clock(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const uint64_t now = warp.clock() << instruction.variant;
  for_lanes(mask, [&](int lane) { warp.set_bits(instruction.destinations[0], lane, now); });
  // Who polls the clock waits for others.
  warp.yield();
}

bool decode_clock(Decoding& decoding, Type type) {
  const ptx::Operand& operand = decoding.operand(1);
  if (operand.kind != ptx::Operand::Kind::special) return false;
  const bool is_clock = operand.text == "%clock" || operand.text == "%clock64" ||
                        operand.text == "%globaltimer" || operand.text == "%globaltimer_lo";
  if (!is_clock) return false;
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.run = run_clock;
  return true;
}

void decode_mov(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.finish_modifiers();
  decoding.expect_operands(2);
  if (decoding.operand(1).kind == ptx::Operand::Kind::vector) return decode_pack(decoding, type);
  if (decoding.operand(0).kind == ptx::Operand::Kind::vector) return decode_unpack(decoding, type);
  if (decode_clock(decoding, type)) return;
  if (type == Type::pred) {
    decoding.into.destinations[0] = decoding.predicate_destination(decoding.operand(0));
    decoding.into.sources[0] = decoding.predicate(decoding.operand(1), 0);
    decoding.into.run = run_move_predicate;
    return;
  }
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  switch (decoding.into.destinations[0].bytes) {
    case 2:
      decoding.into.run = lanewise<Same, uint16_t, uint16_t>;
      break;
    case 4:
      decoding.into.run = lanewise<Same, uint32_t, uint32_t>;
      break;
    case 8:
      decoding.into.run = lanewise<Same, uint64_t, uint64_t>;
      break;
    default:
      decoding.into.run = lanewise<Same, Wide, Wide>;
      break;
  }
}

// cvta adds or takes away the beginning of the space's window.
uint64_t window_of(Space space) {
  switch (space) {
    case Space::shared:
      return kSharedWindow;
    case Space::local:
      return kLocalWindow;
    case Space::param:
      return kParamWindow;
    default:
      return 0;  // global and constant memory have the host's addresses
  }
}

void run_cvta(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t address = warp.bits(instruction.sources[0], lane);
    warp.set_bits(instruction.destinations[0], lane,
                  address + static_cast<uint64_t>(instruction.immediate));
  });
}

void decode_cvta(Decoding& decoding) {
  const bool to = decoding.accept("to");
  const Space space = decode_space(decoding);
  const Type type = decoding.type();
  decoding.finish_modifiers();
  decoding.expect_operands(2);
  if (type != Type::u64) decoding.fail("addresses have 64 bits");
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.wide_source(decoding.operand(1), type);
  decoding.into.immediate = static_cast<int64_t>(to ? 0 - window_of(space) : window_of(space));
  decoding.into.run = run_cvta;
}

void run_isspacep(Warp& warp, const Instruction& instruction, LaneMask mask) {
  LaneMask result = 0;
  for_lanes(mask, [&](int lane) {
    const Located found = resolve_generic(warp.bits(instruction.sources[0], lane));
    bool is_in = found.space == static_cast<Space>(instruction.immediate);
    // shared::cta: this block's own, however it is addressed.
    if (is_in && instruction.variant == 1) {
      is_in = &warp.block().owner(found.address, lane) == &warp.block();
    }
    result |= LaneMask{is_in} << lane;
  });
  warp.write_predicate(instruction.destinations[0], mask, result);
}

void decode_isspacep(Decoding& decoding) {
  const bool of_block = decoding.peek() == "shared" || decoding.peek() == "shared::cta";
  decoding.into.immediate = static_cast<int64_t>(decode_space(decoding));
  decoding.into.variant = of_block;
  decoding.expect_operands(2);
  decoding.into.destinations[0] = decoding.predicate_destination(decoding.operand(0));
  decoding.into.sources[0] = decoding.source(1, Type::u64);
  decoding.into.run = run_isspacep;
}

// mapa: the address in another block of the cluster that corresponds to one in this.
void run_mapa(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const uint64_t blocks = warp.block().cluster().blocks().size();
  for_lanes(mask, [&](int lane) {
    const uint64_t address = warp.bits(instruction.sources[0], lane);
    const uint64_t rank = warp.bits(instruction.sources[1], lane);
    if (rank >= blocks) {
      throw Fault(FaultKind::invalid,
                  "rank " + std::to_string(rank) + " in a cluster of " + std::to_string(blocks),
                  lane);
    }
    const uint64_t inside = inside_block(address);
    const uint64_t window = is_in_window(address, kSharedWindow) ? kSharedWindow : 0;
    warp.set_bits(instruction.destinations[0], lane, window + ((rank + 1) << kRankShift) + inside);
  });
}

void decode_mapa(Decoding& decoding) {
  decode_space(decoding);
  const Type type = decoding.type();
  if (type != Type::u32 && type != Type::u64) decoding.fail("not of this type");
  decoding.finish_modifiers();
  decoding.expect_operands(3);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.wide_source(decoding.operand(1), type);
  decoding.into.sources[1] = decoding.source(2, Type::u32);
  decoding.into.run = run_mapa;
}

// getctarank: the block that a shared address is of.
void run_getctarank(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t address = warp.bits(instruction.sources[0], lane);
    const uint64_t inside =
        is_in_window(address, kSharedWindow) ? address - kSharedWindow : address;
    warp.set_bits(instruction.destinations[0], lane, warp.block().owner(inside, lane).rank());
  });
}

void decode_getctarank(Decoding& decoding) {
  decode_space(decoding);
  const Type type = decoding.type();
  decoding.finish_modifiers();
  decoding.expect_operands(2);
  decoding.into.destinations[0] = decoding.destination(0, Type::u32);
  decoding.into.sources[0] = decoding.wide_source(decoding.operand(1), type);
  decoding.into.run = run_getctarank;
}

constexpr Opcode kOpcodes[] = {
    {"mov", decode_mov},           {"cvta", decode_cvta},
    {"mapa", decode_mapa},         {"getctarank", decode_getctarank},
    {"isspacep", decode_isspacep},
};

}  // namespace

std::span<const Opcode> move_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

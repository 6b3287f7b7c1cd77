// Loads, stores and atomics (PTX ISA 9.7.9.8 to 9.7.9.12 and 9.7.13).

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "emulator/float_formats.hpp"
#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/async_stores.hpp"
#include "emulator/instructions/lanewise.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

constexpr int kMostValues = 8;

struct AccessDetails : Details {
  Access access;
  int bytes = 0;  // of a value
  int count = 1;  // values, one behind the other
  bool extends_sign = false;
  std::array<Source, kMostValues> sources;
  std::array<Destination, kMostValues> destinations;
};

const AccessDetails& details_of(const Instruction& instruction) {
  return static_cast<const AccessDetails&>(*instruction.details);
}

uint64_t load_bits(const std::byte* from, int bytes, bool extends_sign) {
  uint64_t value = 0;
  std::memcpy(&value, from, static_cast<size_t>(bytes));
  if (!extends_sign || bytes == 8) return value;
  const int unused = 64 - 8 * bytes;
  return static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
}

void run_load(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const AccessDetails& details = details_of(instruction);
  const auto bytes = static_cast<uint32_t>(details.bytes * details.count);
  const LaneAddresses addresses(warp, instruction, details.access, mask, bytes);
  for_lanes(mask, [&](int lane) {
    const std::byte* from = locate(warp, lane, details.access, addresses.of[lane], bytes);
    for (int i = 0; i < details.count; ++i, from += details.bytes) {
      const Destination& destination = details.destinations[i];
      if (!destination) continue;
      if (details.bytes == 16) {
        std::memcpy(warp.write<std::byte>(destination) + 16 * lane, from, 16);
      } else {
        warp.set_bits(destination, lane, load_bits(from, details.bytes, details.extends_sign));
      }
    }
  });
  // Who loads in a loop until another thread has written lets that thread run.
  if (details.access.order != Order::weak) warp.yield();
}

void run_store(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const AccessDetails& details = details_of(instruction);
  const auto bytes = static_cast<uint32_t>(details.bytes * details.count);
  const LaneAddresses addresses(warp, instruction, details.access, mask, bytes);
  for_lanes(mask, [&](int lane) {
    std::byte* to = locate(warp, lane, details.access, addresses.of[lane], bytes);
    for (int i = 0; i < details.count; ++i, to += details.bytes) {
      const Source& source = details.sources[i];
      const auto* from = warp.read<std::byte>(source) + source.bytes * lane;
      std::memcpy(to, from, static_cast<size_t>(details.bytes));
    }
  });
  warp.block().grid().machine.note_progress();
}

// .v2, .v4, .v8
int decode_count(Decoding& decoding) {
  const int index = decoding.choose_if({"v2", "v4", "v8"});
  return index < 0 ? 1 : 2 << index;
}

std::unique_ptr<AccessDetails> decode_access(Decoding& decoding, AccessKind kind) {
  auto details = std::make_unique<AccessDetails>();
  details->access.kind = kind;
  decode_order(decoding, details->access);
  details->access.space = decode_space(decoding);
  const bool has_policy = skip_cache_hints(decoding);
  details->count = decode_count(decoding);
  const Type type = decoding.type();
  decoding.finish_modifiers();
  decoding.expect_operands(has_policy ? 3 : 2);
  details->bytes = ptx::bytes_of(type);
  details->extends_sign = ptx::is_signed(type);
  if (type == Type::pred || details->bytes * details->count > 32) {
    decoding.fail("not of this type");
  }
  return details;
}

Type untyped(int bytes) {
  switch (bytes) {
    case 1:
      return Type::b8;
    case 2:
      return Type::b16;
    case 4:
      return Type::b32;
    case 8:
      return Type::b64;
    default:
      return Type::b128;
  }
}

void decode_ld(Decoding& decoding) {
  auto details = decode_access(decoding, AccessKind::read);
  for (int i = 0; i < details->count; ++i) {
    const ptx::Operand& value = vector_element(decoding, 0, details->count, i);
    details->destinations[i] = decoding.wide_destination(value, untyped(details->bytes));
  }
  details->access.space = space_of_variable(decoding, 1, details->access.space);
  decode_address(decoding, 1, 0);
  decoding.into.run = run_load;
  decoding.into.details = std::move(details);
}

void decode_st(Decoding& decoding) {
  if (decoding.accept("async")) return decode_async_store(decoding);
  auto details = decode_access(decoding, AccessKind::write);
  for (int i = 0; i < details->count; ++i) {
    const ptx::Operand& value = vector_element(decoding, 1, details->count, i);
    details->sources[i] = decoding.wide_source(value, untyped(details->bytes));
  }
  details->access.space = space_of_variable(decoding, 0, details->access.space);
  decode_address(decoding, 0, 0);
  decoding.into.run = run_store;
  decoding.into.details = std::move(details);
}

// Hints: nothing happens.
void run_nothing(Warp&, const Instruction&, LaneMask) {}

void decode_hint(Decoding& decoding) {
  while (!decoding.peek().empty()) decoding.accept(decoding.peek());
  decoding.into.run = run_nothing;
}

// Cache policies mean nothing here; the register gets a value all the same.
void run_policy(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) { warp.set_bits(instruction.destinations[0], lane, 1); });
}

void decode_createpolicy(Decoding& decoding) {
  while (!decoding.peek().empty()) decoding.accept(decoding.peek());
  decoding.into.destinations[0] = decoding.destination(0, Type::b64);
  decoding.into.run = run_policy;
}

constexpr Opcode kOpcodes[] = {
    {"ld", decode_ld},
    {"ldu", decode_ld},
    {"st", decode_st},
    {"prefetch", decode_hint},
    {"prefetchu", decode_hint},
    {"applypriority", decode_hint},
    {"createpolicy", decode_createpolicy},
};

}  // namespace

std::span<const Opcode> memory_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

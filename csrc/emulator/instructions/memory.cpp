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

// A value in memory as the register's bits: extended to 8 bytes.
template <typename T>
uint64_t load_bits(const std::byte* from, bool extends_sign) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  if (!extends_sign) return value;
  return static_cast<uint64_t>(static_cast<int64_t>(static_cast<std::make_signed_t<T>>(value)));
}

template <typename T>
void load_lanes(Warp& warp, const AccessDetails& details, const Destination& destination,
                LaneMask mask, std::byte* const* from, int index) {
  for_lanes(mask, [&](int lane) {
    const uint64_t value =
        load_bits<T>(from[lane] + index * static_cast<int>(sizeof(T)), details.extends_sign);
    if (destination.bytes == sizeof(T)) {
      warp.write<T>(destination)[lane] = static_cast<T>(value);
    } else {
      warp.set_bits(destination, lane, value);
    }
  });
}

void load_lanes_wide(Warp& warp, const Destination& destination, LaneMask mask,
                     std::byte* const* from, int index) {
  for_lanes(mask, [&](int lane) {
    std::memcpy(warp.write<std::byte>(destination) + 16 * lane, from[lane] + 16 * index, 16);
  });
}

void run_load(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const AccessDetails& details = details_of(instruction);
  const auto bytes = static_cast<uint32_t>(details.bytes * details.count);
  const LaneAddresses addresses(warp, instruction, details.access, mask, bytes);
  std::byte* from[kLanes];
  for_lanes(mask, [&](int lane) {
    from[lane] = locate(warp, lane, details.access, addresses.of[lane], bytes);
  });
  constexpr auto kLoads = std::array{load_lanes<uint8_t>, load_lanes<uint16_t>,
                                     load_lanes<uint32_t>, load_lanes<uint64_t>};
  for (int i = 0; i < details.count; ++i) {
    const Destination& destination = details.destinations[i];
    if (!destination) continue;
    const int size = std::countr_zero(static_cast<unsigned>(details.bytes));
    if (details.bytes == 16) {
      load_lanes_wide(warp, destination, mask, from, i);
    } else {
      kLoads[size](warp, details, destination, mask, from, i);
    }
  }
  // Who loads in a loop until another thread has written lets that thread run.
  if (details.access.order != Order::weak) warp.yield();
}

template <typename T>
void store_lanes(Warp& warp, const Source& source, LaneMask mask, std::byte* const* to, int index) {
  const auto* values = warp.read<std::byte>(source);
  for_lanes(mask, [&](int lane) {
    std::memcpy(to[lane] + index * static_cast<int>(sizeof(T)), values + source.bytes * lane,
                sizeof(T));
  });
}

void run_store(Warp& warp, const Instruction& instruction, LaneMask mask) {
  struct Wide {
    std::byte bytes[16];
  };
  const AccessDetails& details = details_of(instruction);
  const auto bytes = static_cast<uint32_t>(details.bytes * details.count);
  const LaneAddresses addresses(warp, instruction, details.access, mask, bytes);
  std::byte* to[kLanes];
  for_lanes(mask, [&](int lane) {
    to[lane] = locate(warp, lane, details.access, addresses.of[lane], bytes);
  });
  constexpr auto kStores =
      std::array{store_lanes<uint8_t>, store_lanes<uint16_t>, store_lanes<uint32_t>,
                 store_lanes<uint64_t>, store_lanes<Wide>};
  const int size = std::countr_zero(static_cast<unsigned>(details.bytes));
  for (int i = 0; i < details.count; ++i) {
    kStores[size](warp, details.sources[i], mask, to, i);
  }
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

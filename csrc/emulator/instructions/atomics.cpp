// atom and red (PTX ISA 9.7.13.9 and 10): reads, changes and writes memory in one step.

#include <array>
#include <cstring>

#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/reductions.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

struct AtomicDetails : Details {
  Access access;
  Change change = Change::add;
  Type type = Type::u32;
  int count = 1;
  bool returns = false;
  std::array<Source, 8> values;
  std::array<Destination, 8> results;
};

void run_atomic(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const AtomicDetails&>(*instruction.details);
  const auto bytes = static_cast<uint32_t>(ptx::bytes_of(details.type));
  const uint32_t width = bytes * static_cast<uint32_t>(details.count);
  const LaneAddresses addresses(warp, instruction, details.access, mask, width);
  const bool compares = details.change == Change::compare_and_swap;
  bool has_changed = false;
  for_lanes(mask, [&](int lane) {
    std::byte* memory = locate(warp, lane, details.access, addresses.of[lane], width);
    for (int i = 0; i < details.count; ++i, memory += bytes) {
      uint64_t old = 0;
      std::memcpy(&old, memory, bytes);
      // `atom.cas d, [a], compared, value`
      const uint64_t first = warp.bits(details.values[i], lane);
      const uint64_t second = compares ? warp.bits(instruction.sources[1], lane) : 0;
      const uint64_t value =
          changed(details.change, details.type, old, compares ? second : first, first);
      std::memcpy(memory, &value, bytes);
      has_changed |= value != old;
      if (details.results[i]) warp.set_bits(details.results[i], lane, old);
    }
  });
  // A lock that is tried in vain is no progress.
  if (has_changed) warp.block().grid().machine.note_progress();
  warp.yield();
}

void decode_atomic(Decoding& decoding, bool returns) {
  auto details = std::make_unique<AtomicDetails>();
  details->returns = returns;
  details->access = {.kind = AccessKind::atomic, .order = Order::relaxed, .scope = Scope::gpu};
  decode_order(decoding, details->access);
  if (const auto scope = decode_scope_if(decoding)) details->access.scope = *scope;
  details->access.space = decode_space(decoding);
  details->change = static_cast<Change>(decoding.choose(kChangeNames));
  // Older inline assembly writes the order behind the operation, and so do ptxas' ancestors.
  decode_order(decoding, details->access);
  if (details->access.space == Space::generic) details->access.space = decode_space(decoding);
  decoding.accept("noftz");
  const bool has_policy = skip_cache_hints(decoding);
  const int vector = decoding.choose_if({"v2", "v4", "v8"});
  details->count = vector < 0 ? 1 : 2 << vector;
  details->type = decoding.type();
  decoding.finish_modifiers();
  if (!is_possible(details->change, details->type)) decoding.fail("not of this type");

  const bool compares = details->change == Change::compare_and_swap;
  const size_t address = returns ? 1 : 0;
  decoding.expect_operands(address + 2 + compares + has_policy);
  for (int i = 0; i < details->count; ++i) {
    details->values[i] =
        decoding.source(vector_element(decoding, address + 1, details->count, i), details->type);
    if (returns) {
      details->results[i] = decoding.destination(vector_element(decoding, 0, details->count, i),
                                                 ptx::bytes_of(details->type));
    }
  }
  decode_address(decoding, address, 0);
  if (compares) decoding.into.sources[1] = decoding.source(address + 2, details->type);
  decoding.into.run = run_atomic;
  decoding.into.details = std::move(details);
}

void decode_atom(Decoding& decoding) { decode_atomic(decoding, true); }

void decode_red(Decoding& decoding) { decode_atomic(decoding, false); }

constexpr Opcode kOpcodes[] = {{"atom", decode_atom}, {"red", decode_red}};

}  // namespace

std::span<const Opcode> atomic_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

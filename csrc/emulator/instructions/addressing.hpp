// What instructions that access memory have in common: state spaces, orders and scopes, cache
// hints, and the address of each lane.
#pragma once

#include "emulator/decoder.hpp"
#include "emulator/memory_access.hpp"

namespace abyssal::emulator {

// `.weak`, `.volatile`, `.relaxed.gpu`, ... and `.mmio` (taken as relaxed).
void decode_order(Decoding& decoding, Access& access);
Scope decode_scope(Decoding& decoding);
std::optional<Scope> decode_scope_if(Decoding& decoding);

// `.global`, `.shared::cta`, ...; generic where none is named.
Space decode_space(Decoding& decoding);

// Modifiers that only speed things up: `.nc`, `.ca`, `.L1::no_allocate`, `.L2::128B`, ... Returns
// whether the last operand is a cache policy.
bool skip_cache_hints(Decoding& decoding);

// Decodes the address operand into source `slot` and the immediate.
void decode_address(Decoding& decoding, size_t operand, int slot);

// A variable in `.param` space may be a parameter of the kernel or of a call, which is local.
Space space_of_variable(Decoding& decoding, size_t operand, Space space);

// Value `index` of an operand that is a vector of `count`, or, for a count of 1, the value itself.
const ptx::Operand& vector_element(Decoding& decoding, size_t operand, int count, int index);

inline uint64_t lane_address(const Warp& warp, const Instruction& instruction, int slot, int lane) {
  return warp.bits(instruction.sources[slot], lane) + static_cast<uint64_t>(instruction.immediate);
}

// The addresses of lanes, whose request for `bytes` bytes each is counted.
struct LaneAddresses {
  uint64_t of[kLanes] = {};

  LaneAddresses(Warp& warp, const Instruction& instruction, const Access& access, LaneMask mask,
                uint32_t bytes) {
    for_lanes(mask, [&](int lane) { of[lane] = lane_address(warp, instruction, 0, lane); });
    count_request(warp, access, mask, of, bytes);
  }
};

}  // namespace abyssal::emulator

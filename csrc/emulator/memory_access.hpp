// The memory behind an address that a thread uses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/memory.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {

enum class AccessKind : uint8_t { read, write, atomic };

struct Access {
  Space space = Space::generic;
  AccessKind kind = AccessKind::read;
  Order order = Order::weak;
  Scope scope = Scope::none;
  bool is_of_tensor_map = false;
};

// Where `bytes` bytes at `address` lie on the host. Throws Fault for what is out of bounds,
// misaligned (an address must be a multiple of `bytes`, a power of two) or read-only.
std::byte* locate(Warp& warp, int lane, const Access& access, uint64_t address, uint32_t bytes);

// Counts a request of `lanes`, each for `bytes` bytes at an address of its own.
void count_request(Warp& warp, const Access& access, LaneMask lanes, const uint64_t* addresses,
                   uint32_t bytes);

// The space of a generic address, and the address in that space.
struct Located {
  Space space;
  uint64_t address;
};
Located resolve_generic(uint64_t address);

}  // namespace abyssal::emulator

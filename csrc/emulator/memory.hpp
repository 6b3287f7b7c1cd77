// Memory as kernels see it.
//
// Addresses of global memory are the host's own: a CPU tensor goes into a kernel as it is. The
// other spaces have 32-bit offsets of their own; as generic addresses they lie in windows far
// above what a host uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emulator/fault.hpp"
#include "runtime/driver.hpp"

namespace abyssal::emulator {

inline constexpr uint64_t kSharedWindow = uint64_t{1} << 56;
inline constexpr uint64_t kLocalWindow = uint64_t{2} << 56;
inline constexpr uint64_t kParamWindow = uint64_t{3} << 56;
inline constexpr uint64_t kWindowBytes = uint64_t{1} << 32;

// sm_90 keeps the first kilobyte of a block's shared memory for itself.
inline constexpr uint64_t kReservedShared = 1024;

inline bool is_in_window(uint64_t address, uint64_t window) {
  return address - window < kWindowBytes;
}

// The state space that an instruction names.
enum class Space : uint8_t { generic, global, shared, local, param, constant };

// What an access promises about the order of others (PTX ISA 8).
enum class Order : uint8_t { weak, volatile_, relaxed, acquire, release, acquire_release };
enum class Scope : uint8_t { none, cta, cluster, gpu, sys };

// A block's shared memory as the others of its cluster address it: `mapa` puts the block's rank,
// counted from 1, above the 24 bits of the address. 0 is the block's own.
inline constexpr int kRankShift = 24;
inline uint32_t rank_field(uint64_t shared_address) {
  return static_cast<uint32_t>(shared_address >> kRankShift);
}

// A shared address, of a generic one or of what is one already.
inline uint64_t to_shared(uint64_t address) {
  return is_in_window(address, kSharedWindow) ? address - kSharedWindow : address;
}

inline uint64_t inside_block(uint64_t shared_address) {
  return shared_address & ((uint64_t{1} << kRankShift) - 1);
}

// A piece of global memory and what a launch may do with it.
struct Allocation {
  uint64_t base = 0;
  uint64_t bytes = 0;
  Buffer::Role role = Buffer::Role::inout;
  // An earlier launch of the same group writes it as its output.
  bool is_written_in_group = false;

  // Whether it held something when the launches began.
  bool has_contents() const { return role != Buffer::Role::out && !is_written_in_group; }
  bool holds(uint64_t address, uint64_t size) const {
    return address - base < bytes && bytes - (address - base) >= size;
  }
};

// The buffers that a launch was told of. Anything else is out of bounds.
class GlobalMemory {
 public:
  void add(Allocation allocation);

  const Allocation& last_found() const { return *last_; }

  // The memory behind [address, address + bytes). Throws Fault.
  std::byte* find(uint64_t address, uint64_t bytes, bool writes, int lane) {
    if (!last_->holds(address, bytes)) last_ = &search(address, bytes, lane);
    if (writes && last_->role == Buffer::Role::in) refuse(address, lane);
    return reinterpret_cast<std::byte*>(address);
  }

 private:
  const Allocation& search(uint64_t address, uint64_t bytes, int lane) const;
  [[noreturn]] static void refuse(uint64_t address, int lane);

  std::vector<Allocation> allocations_;  // by base
  inline static const Allocation kNone;
  const Allocation* last_ = &kNone;
};

std::string hex(uint64_t value);

}  // namespace abyssal::emulator

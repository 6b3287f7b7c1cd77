#include "emulator/memory.hpp"

#include <algorithm>
#include <cstdio>

namespace abyssal::emulator {

std::string hex(uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

void GlobalMemory::add(Allocation allocation) {
  const auto place =
      std::upper_bound(allocations_.begin(), allocations_.end(), allocation,
                       [](const Allocation& a, const Allocation& b) { return a.base < b.base; });
  allocations_.insert(place, allocation);
  last_ = &kNone;
}

// Buffers may overlap (an input that is a part of another): any one that holds the access will do,
// and a writable one is preferred to the others.
const Allocation& GlobalMemory::search(uint64_t address, uint64_t bytes, int lane) const {
  const Allocation* found = nullptr;
  const Allocation* nearest = nullptr;
  for (const Allocation& allocation : allocations_) {
    if (allocation.base > address) break;
    nearest = &allocation;
    if (!allocation.holds(address, bytes)) continue;
    if (found == nullptr || found->role == Buffer::Role::in) found = &allocation;
  }
  if (found != nullptr) return *found;
  std::string message = std::to_string(bytes) + " bytes at " + hex(address) + " of global memory";
  if (nearest != nullptr) {
    message += ", " + std::to_string(address - nearest->base) +
               " bytes behind the beginning of a " + "buffer of " + std::to_string(nearest->bytes);
  } else {
    message += ", before every buffer of the launch";
  }
  throw Fault(FaultKind::out_of_bounds, message, lane);
}

void GlobalMemory::refuse(uint64_t address, int lane) {
  throw Fault(FaultKind::read_only, "a write to " + hex(address) + ", which is in an input", lane);
}

}  // namespace abyssal::emulator

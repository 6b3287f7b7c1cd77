// Where a decoded instruction reads and writes.
#pragma once

#include <cstdint>

namespace abyssal::emulator {

inline constexpr uint32_t kNoRegister = UINT32_MAX;

// Where an operand is read: in the warp's registers or in the program's constants.
struct Source {
  uint32_t offset = kNoRegister;
  uint8_t bytes = 0;  // of a lane's value; 0: a predicate
  bool is_constant = false;

  explicit operator bool() const { return offset != kNoRegister; }
};

// Where a result goes. Of `_`, nowhere.
struct Destination {
  uint32_t offset = kNoRegister;
  uint8_t bytes = 0;

  explicit operator bool() const { return offset != kNoRegister; }
};

}  // namespace abyssal::emulator

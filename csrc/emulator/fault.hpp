// What the emulator reports.
#pragma once

#include <stdexcept>
#include <string>

namespace abyssal::emulator {

enum class FaultKind {
  unsupported,    // PTX that the emulator does not know
  out_of_bounds,  // an access outside of every allocation
  misaligned,     // an access that is not aligned to its size
  read_only,      // a write to a parameter, a constant or an input
  diverged,       // lanes missing where all must take part
  deadlock,       // nothing can go on
  invalid,        // an operand out of the range that the PTX ISA allows
  race,           // accesses that nothing orders
  uninitialised,  // a read of what nobody has written
  missing_fence,  // no proxy fence between the generic and the async proxy
  in_flight,      // registers or memory of an operation that goes on
  trap,           // the kernel stopped itself: trap, a failed assert
};

// Thrown where it happens, with the lane where there is one; the warp that runs the instruction
// adds kernel, source line, block and warp.
class Fault : public std::runtime_error {
 public:
  Fault(FaultKind kind, const std::string& message, int lane = -1)
      : std::runtime_error(message), kind(kind), lane(lane) {}
  FaultKind kind;
  int lane;
};

}  // namespace abyssal::emulator

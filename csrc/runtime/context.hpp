// Which device a launch goes to.
#pragma once

#include "runtime/driver.hpp"

namespace abyssal {

// A stream of a device, behind the driver table that knows both.
struct Stream {
  const Driver& driver;
  int device;  // ordinal
  CUstream handle;
};

// Makes `device`'s context current for the life of this object. Where a context of that device is
// current already, it stays. Otherwise (a thread of autograd's or the user's has none; another
// GPU may be current) the device's primary context, the one that torch uses, is pushed, and popped
// at the end.
class CurrentDevice {
 public:
  CurrentDevice(const Driver& driver, int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  const Driver& driver_;
  bool pushed_ = false;
};

}  // namespace abyssal

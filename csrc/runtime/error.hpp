// Errors that reach Python: one sentence each.
#pragma once

#include <stdexcept>
#include <string>

namespace abyssal {

// The device, its driver or this build cannot do what was asked. RuntimeError in Python.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace abyssal

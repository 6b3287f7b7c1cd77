// What the bindings of every family of kernels share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator/driver.hpp"
#include "runtime/context.hpp"

namespace abyssal {

// The device index that stands for the emulator.
inline constexpr int kEmulated = -1;

inline Stream stream_of(int device, uintptr_t handle) {
  if (device == kEmulated) return {emulator::emulated_driver(), 0, nullptr};
  return {cuda_driver(), device, reinterpret_cast<CUstream>(handle)};
}

// The address of a tensor's data, as torch tells it.
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Each family's launchers, as functions of the module.
void bind_quantisers(pybind11::module_& module);
void bind_gemms(pybind11::module_& module);

}  // namespace abyssal

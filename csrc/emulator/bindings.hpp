// The emulator, as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

namespace abyssal::emulator {

// Defines the submodule `emulator` of the extension.
void bind(pybind11::module_& extension);

// Its part for the arithmetic of the tensor cores.
void bind_tensor_core(pybind11::module_& module);

}  // namespace abyssal::emulator

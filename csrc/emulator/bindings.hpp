// The emulator, as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

namespace abyssal::emulator {

// Defines the submodule `emulator` of the extension.
void bind(pybind11::module_& extension);

}  // namespace abyssal::emulator

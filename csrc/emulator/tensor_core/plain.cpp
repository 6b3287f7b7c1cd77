// Tensor-core rows for any processor; CMakeLists.txt sets this file's compiler flags.
#include "emulator/tensor_core/multiply_row.hpp"

namespace abyssal::emulator::tensor_core {

const Path kPlainPath = kThisPath;

}  // namespace abyssal::emulator::tensor_core

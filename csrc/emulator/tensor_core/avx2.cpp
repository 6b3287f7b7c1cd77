// Tensor-core rows for AVX2; CMakeLists.txt sets this file's compiler flags.
#include "emulator/tensor_core/multiply_row.hpp"

namespace abyssal::emulator::tensor_core {

const Path kAvx2Path = kThisPath;

}  // namespace abyssal::emulator::tensor_core

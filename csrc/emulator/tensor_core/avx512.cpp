// Tensor-core rows for AVX-512 F, BW, DQ and VL; CMakeLists.txt sets this file's compiler flags.
#include "emulator/tensor_core/multiply_row.hpp"

namespace abyssal::emulator::tensor_core {

const Path kAvx512Path = kThisPath;

}  // namespace abyssal::emulator::tensor_core

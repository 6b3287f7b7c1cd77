// The functions of the CUDA runtime that kernels call: printf and assert.
#pragma once

#include <vector>

#include "emulator/decoder.hpp"

namespace abyssal::emulator {

void decode_runtime_call(Decoding& decoding, std::string_view name,
                         const std::vector<ptx::Operand>& arguments);

}  // namespace abyssal::emulator

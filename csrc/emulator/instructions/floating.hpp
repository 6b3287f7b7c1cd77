// Floating-point arithmetic that shares its opcodes with integers.
#pragma once

#include "emulator/decoder.hpp"

namespace abyssal::emulator {

enum class Unary { absolute, negate };
enum class Binary { add, subtract, multiply, minimum, maximum };

// Whether the instruction names a floating-point type.
bool is_floating_instruction(const Decoding& decoding);

void decode_floating_unary(Decoding& decoding, Unary operation);
void decode_floating_binary(Decoding& decoding, Binary operation);
void decode_floating_division(Decoding& decoding);
void decode_fma(Decoding& decoding);

}  // namespace abyssal::emulator

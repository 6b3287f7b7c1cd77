// Operands of the tensor core: their formats, and one instruction's operands decoded.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/tensor_core.hpp"

namespace abyssal::emulator::tensor_core {

struct Format {
  const char* name;
  int bytes;               // an element's, in memory
  int unread_bits;         // the lowest ones, of TF32
  int exponent_bits;
  int fraction_bits;
  bool has_infinity;       // else the largest exponent is an ordinary one, but for the last code
  int smallest_exponent;   // of a normal number
};

const Format& format_of(TensorType type);

// Products of one output.
inline int depth_of(TensorType type) { return kTensorCoreRowBytes / format_of(type).bytes; }

struct Factor {
  float value;   // 0 where not finite
  int exponent;  // not of zero
  bool finite;
};

// Element k of an operand's row.
Factor decode(TensorType type, const std::byte* row, int k);

// The same with NaN and infinity, for results that are one of these.
float decode_special(TensorType type, const std::byte* row, int k);

// Rows of one operand.
struct Operand {
  TensorType type;
  const std::byte* data;
  ptrdiff_t stride;  // bytes
  int rows;

  const std::byte* row(int i) const { return data + i * stride; }
};

struct ExponentRange {
  int smallest, largest;  // of non-zero finite factors; smallest > largest where there are none
};

ExponentRange exponent_range(const Operand& operand);

// FP16 as a float, and back; `value` must be one of FP16's, or beyond its range, or NaN.
float from_f16(uint16_t code);
uint16_t to_f16(float value);

}  // namespace abyssal::emulator::tensor_core

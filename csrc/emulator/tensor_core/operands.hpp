// Operands of the tensor core: their formats, and one instruction's operands decoded.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulator/tensor_core.hpp"

namespace abyssal::emulator::tensor_core {

struct Format {
  const char* name;
  int bytes;  // an element's, in memory
  int exponent_bits;
};

const Format& format_of(TensorType type);

// Products of one output.
inline int depth_of(TensorType type) { return kTensorCoreRowBytes / format_of(type).bytes; }

// What the tensor core reads of a TF32 operand's 32 bits.
inline constexpr uint32_t kTf32Mask = 0xffffe000;

struct Factor {
  float value;   // 0 where not finite
  int exponent;  // meaningless for zero
  bool finite;
};

extern const std::array<Factor, 256> kE4m3Factors;
extern const std::array<Factor, 256> kE5m2Factors;

inline Factor decode_f16(uint16_t code) {
  const uint32_t sign = (code & 0x8000u) << 16;
  const int field = code >> 10 & 0x1f;
  const float subnormal = static_cast<float>(code & 0x3ff) * 0x1p-24f;
  const uint32_t normal = ((code & 0x7fffu) << 13) + ((127 - 15) << 23);
  const uint32_t magnitude = field == 0 ? std::bit_cast<uint32_t>(subnormal) : normal;
  const bool finite = field != 0x1f;
  return {finite ? std::bit_cast<float>(sign | magnitude) : 0.0f, std::max(field, 1) - 15, finite};
}

// BF16 and TF32 are the upper bits of an FP32 number, whose exponent's field they share.
inline Factor decode_upper_bits(uint32_t bits) {
  const int field = bits >> 23 & 0xff;
  const bool finite = field != 0xff;
  return {finite ? std::bit_cast<float>(bits) : 0.0f, std::max(field, 1) - 127, finite};
}

// Decodes element k of an operand's row.
template <TensorType kType>
struct Decoder {
  template <typename Code>
  static Code read(const std::byte* row, int k) {
    Code code;
    std::memcpy(&code, row + k * sizeof(Code), sizeof(Code));
    return code;
  }

  Factor operator()(const std::byte* row, int k) const {
    if constexpr (kType == TensorType::e4m3) return kE4m3Factors[read<uint8_t>(row, k)];
    if constexpr (kType == TensorType::e5m2) return kE5m2Factors[read<uint8_t>(row, k)];
    if constexpr (kType == TensorType::f16) return decode_f16(read<uint16_t>(row, k));
    if constexpr (kType == TensorType::bf16) {
      return decode_upper_bits(uint32_t{read<uint16_t>(row, k)} << 16);
    }
    return decode_upper_bits(read<uint32_t>(row, k) & kTf32Mask);
  }
};

// Calls `function` with the decoder of a type: the type is chosen once for many elements.
template <typename Function>
auto with_decoder(TensorType type, const Function& function) {
  switch (type) {
    case TensorType::e4m3:
      return function(Decoder<TensorType::e4m3>{});
    case TensorType::e5m2:
      return function(Decoder<TensorType::e5m2>{});
    case TensorType::f16:
      return function(Decoder<TensorType::f16>{});
    case TensorType::bf16:
      return function(Decoder<TensorType::bf16>{});
    case TensorType::tf32:
      break;
  }
  return function(Decoder<TensorType::tf32>{});
}

// Element k of an operand's row with NaN and infinity, for results that are one of these.
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

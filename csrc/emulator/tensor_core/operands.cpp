#include "emulator/tensor_core/operands.hpp"

#include <cmath>
#include <limits>

namespace abyssal::emulator::tensor_core {
namespace {

// An FP8 code as a number: `bias` is the type's. The code is finite.
constexpr Factor decode_fp8(uint32_t code, int fraction_bits, int bias) {
  const uint32_t fraction = code & ((1u << fraction_bits) - 1);
  const uint32_t field = (code & 0x7f) >> fraction_bits;
  const uint32_t significand = fraction + (field == 0 ? 0 : 1u << fraction_bits);
  const int exponent = std::max(static_cast<int>(field), 1) - bias;
  // A float of exponent field n is a power of two: 2**(n - 127).
  const float unit =
      std::bit_cast<float>(static_cast<uint32_t>(exponent - fraction_bits + 127) << 23);
  const float magnitude = static_cast<float>(significand) * unit;
  return {(code & 0x80) != 0 ? -magnitude : magnitude, exponent, true};
}

constexpr std::array<Factor, 256> decode_all_e4m3() {
  std::array<Factor, 256> factors{};
  for (uint32_t code = 0; code < 256; ++code) {
    const bool nan = (code & 0x7f) == 0x7f;  // the only one, and there is no infinity
    factors[code] = nan ? Factor{0.0f, 0, false} : decode_fp8(code, 3, 7);
  }
  return factors;
}

constexpr std::array<Factor, 256> decode_all_e5m2() {
  std::array<Factor, 256> factors{};
  for (uint32_t code = 0; code < 256; ++code) {
    const bool special = (code & 0x7c) == 0x7c;
    factors[code] = special ? Factor{0.0f, 0, false} : decode_fp8(code, 2, 15);
  }
  return factors;
}

// NaN or infinity from a code that is one of them, by the bits of sign and fraction.
float special(bool negative, uint32_t fraction) {
  if (fraction != 0) return std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  return negative ? -infinity : infinity;
}

float special_f16(uint16_t code) { return special((code & 0x8000) != 0, code & 0x3ff); }

}  // namespace

constinit const std::array<Factor, 256> kE4m3Factors = decode_all_e4m3();
constinit const std::array<Factor, 256> kE5m2Factors = decode_all_e5m2();

const Format& format_of(TensorType type) {
  static constexpr Format kFormats[] = {
      {"e4m3", 1, 4}, {"e5m2", 1, 5}, {"f16", 2, 5}, {"bf16", 2, 8}, {"tf32", 4, 8}};
  return kFormats[static_cast<int>(type)];
}

float decode_special(TensorType type, const std::byte* row, int k) {
  const Factor factor = with_decoder(type, [&](auto decode) { return decode(row, k); });
  if (factor.finite) return factor.value;
  const std::byte* const element = row + k * format_of(type).bytes;
  uint32_t code = 0;
  std::memcpy(&code, element, format_of(type).bytes);
  switch (type) {
    case TensorType::e4m3:
      return std::numeric_limits<float>::quiet_NaN();
    case TensorType::e5m2:
      return special((code & 0x80) != 0, code & 0x3);
    case TensorType::f16:
      return special_f16(static_cast<uint16_t>(code));
    case TensorType::bf16:
      return std::bit_cast<float>(code << 16);
    case TensorType::tf32:
      break;
  }
  return std::bit_cast<float>(code & kTf32Mask);
}

ExponentRange exponent_range(const Operand& operand) {
  return with_decoder(operand.type, [&](auto decode) {
    constexpr int kFar = 1 << 20;
    ExponentRange range{kFar, -kFar};
    for (int i = 0; i < operand.rows; ++i) {
      for (int k = 0; k < depth_of(operand.type); ++k) {
        const Factor factor = decode(operand.row(i), k);
        const bool zero = factor.value == 0.0f;
        range.smallest = std::min(range.smallest, zero ? kFar : factor.exponent);
        range.largest = std::max(range.largest, zero ? -kFar : factor.exponent);
      }
    }
    return range;
  });
}

float from_f16(uint16_t code) {
  const Factor factor = decode_f16(code);
  return factor.finite ? factor.value : special_f16(code);
}

uint16_t to_f16(float value) {
  constexpr uint16_t kInfinity = 0x7c00;
  constexpr uint16_t kNan = 0x7fff;  // the tensor core's
  if (std::isnan(value)) return kNan;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65536.0f) return sign | kInfinity;
  if (magnitude < 0x1p-14f) return sign | static_cast<uint16_t>(magnitude * 0x1p24f);
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  return sign | static_cast<uint16_t>((bits >> 13) - ((127 - 15) << 10));
}

}  // namespace abyssal::emulator::tensor_core

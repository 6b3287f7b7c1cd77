#include "emulator/tensor_core/operands.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace abyssal::emulator::tensor_core {
namespace {

constexpr Format kE4m3{"e4m3", 1, 0, 4, 3, false, -6};
constexpr Format kE5m2{"e5m2", 1, 0, 5, 2, true, -14};
constexpr Format kF16{"f16", 2, 0, 5, 10, true, -14};
constexpr Format kBf16{"bf16", 2, 0, 8, 7, true, -126};
constexpr Format kTf32{"tf32", 4, 13, 8, 10, true, -126};

constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

struct Fields {
  bool negative;
  uint32_t exponent;
  uint32_t fraction;
};

constexpr Fields split(const Format& format, uint32_t code) {
  const uint32_t number = code >> format.unread_bits;
  const uint32_t fraction = number & ((1u << format.fraction_bits) - 1);
  const uint32_t exponent =
      number >> format.fraction_bits & ((1u << format.exponent_bits) - 1);
  return {(number >> (format.fraction_bits + format.exponent_bits) & 1) != 0, exponent, fraction};
}

constexpr bool is_finite(const Format& format, const Fields& fields) {
  if (fields.exponent != (1u << format.exponent_bits) - 1) return true;
  return !format.has_infinity and fields.fraction != (1u << format.fraction_bits) - 1;
}

constexpr Factor decode_code(const Format& format, uint32_t code) {
  const Fields fields = split(format, code);
  if (!is_finite(format, fields)) return {0.0f, 0, false};
  const bool subnormal = fields.exponent == 0;
  const uint32_t significand =
      fields.fraction + (subnormal ? 0 : 1u << format.fraction_bits);
  const int exponent =
      format.smallest_exponent + (subnormal ? 0 : static_cast<int>(fields.exponent) - 1);
  const double magnitude = significand * power_of_two(exponent - format.fraction_bits);
  return {static_cast<float>(fields.negative ? -magnitude : magnitude), exponent, true};
}

constexpr std::array<Factor, 256> decode_all(const Format& format) {
  std::array<Factor, 256> factors{};
  for (uint32_t code = 0; code < 256; ++code) factors[code] = decode_code(format, code);
  return factors;
}

constexpr std::array<Factor, 256> kE4m3Factors = decode_all(kE4m3);
constexpr std::array<Factor, 256> kE5m2Factors = decode_all(kE5m2);

template <typename Code>
uint32_t read(const std::byte* row, int k) {
  Code code;
  std::memcpy(&code, row + k * sizeof(Code), sizeof(Code));
  return code;
}

uint32_t read_code(const Format& format, const std::byte* row, int k) {
  if (format.bytes == 1) return read<uint8_t>(row, k);
  return format.bytes == 2 ? read<uint16_t>(row, k) : read<uint32_t>(row, k);
}

// BF16 and TF32 are the upper bits of an FP32 number, whose exponent's field they share.
Factor decode_upper_bits(uint32_t bits) {
  const uint32_t field = bits >> 23 & 0xff;
  if (field == 0xff) return {0.0f, 0, false};
  return {std::bit_cast<float>(bits), std::max(static_cast<int>(field), 1) - 127, true};
}

}  // namespace

const Format& format_of(TensorType type) {
  switch (type) {
    case TensorType::e4m3:
      return kE4m3;
    case TensorType::e5m2:
      return kE5m2;
    case TensorType::f16:
      return kF16;
    case TensorType::bf16:
      return kBf16;
    case TensorType::tf32:
      break;
  }
  return kTf32;
}

Factor decode(TensorType type, const std::byte* row, int k) {
  switch (type) {
    case TensorType::e4m3:
      return kE4m3Factors[read<uint8_t>(row, k)];
    case TensorType::e5m2:
      return kE5m2Factors[read<uint8_t>(row, k)];
    case TensorType::f16:
      return decode_code(kF16, read<uint16_t>(row, k));
    case TensorType::bf16:
      return decode_upper_bits(read<uint16_t>(row, k) << 16);
    case TensorType::tf32:
      break;
  }
  return decode_upper_bits(read<uint32_t>(row, k) >> kTf32.unread_bits << kTf32.unread_bits);
}

float decode_special(TensorType type, const std::byte* row, int k) {
  const Factor factor = decode(type, row, k);
  if (factor.finite) return factor.value;
  const Format& format = format_of(type);
  const Fields fields = split(format, read_code(format, row, k));
  if (!format.has_infinity or fields.fraction != 0) return std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  return fields.negative ? -infinity : infinity;
}

ExponentRange exponent_range(const Operand& operand) {
  ExponentRange range{std::numeric_limits<int>::max(), std::numeric_limits<int>::min()};
  for (int i = 0; i < operand.rows; ++i) {
    for (int k = 0; k < depth_of(operand.type); ++k) {
      const Factor factor = decode(operand.type, operand.row(i), k);
      if (factor.value == 0.0f) continue;
      range.smallest = std::min(range.smallest, factor.exponent);
      range.largest = std::max(range.largest, factor.exponent);
    }
  }
  return range;
}

float from_f16(uint16_t code) {
  const std::byte* bytes = reinterpret_cast<const std::byte*>(&code);
  return decode_special(TensorType::f16, bytes, 0);
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

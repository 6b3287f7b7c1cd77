// Floating-point formats, and rounding a value to one of them.
//
// Results are formed in double. Where that is not exact, the double is rounded to odd: towards
// zero, with the last bit set if anything was lost. Rounding such a value once more, to a format
// of at most 51 bits, gives what rounding the exact value would have given (Boldo and Melquiond,
// "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace abyssal::emulator {

enum class Rounding : uint8_t { nearest_even, zero, down, up, nearest_away };

// A binary format of `1 + kExponent + kMantissa` bits. Those without infinities (E4M3) have NaN in
// their last code only.
template <int kExponent, int kMantissa, bool kHasInfinity = true>
struct FloatFormat {
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static constexpr int kBits = 1 + kExponent + kMantissa;
  static constexpr uint32_t kSign = uint32_t{1} << (kBits - 1);
  static constexpr uint32_t kExponentMask = ((uint32_t{1} << kExponent) - 1) << kMantissa;
  static constexpr uint32_t kMantissaMask = (uint32_t{1} << kMantissa) - 1;
  // The NaN that the hardware makes.
  static constexpr uint32_t kNan = kExponentMask | kMantissaMask;
  static constexpr uint32_t kInfinity = kExponentMask;
  static constexpr uint32_t kLargest = kHasInfinity ? kInfinity - 1 : kNan - 1;

  static bool is_nan(uint32_t bits) {
    const uint32_t magnitude = bits & ~kSign;
    return kHasInfinity ? magnitude > kInfinity : magnitude == kNan;
  }

  static double decode(uint32_t bits) {
    const uint32_t magnitude = bits & (kSign - 1);
    const bool negative = (bits & kSign) != 0;
    double value;
    if (is_nan(bits)) {
      value = std::numeric_limits<double>::quiet_NaN();
    } else if (kHasInfinity && magnitude == kInfinity) {
      value = std::numeric_limits<double>::infinity();
    } else {
      const int exponent = static_cast<int>(magnitude >> kMantissa);
      const auto fraction = static_cast<double>(magnitude & kMantissaMask);
      constexpr double kOne = uint64_t{1} << kMantissa;
      value = exponent == 0 ? std::ldexp(fraction, 1 - kBias - kMantissa)
                            : std::ldexp(kOne + fraction, exponent - kBias - kMantissa);
    }
    return negative ? -value : value;
  }

  // `saturates`: what is too large becomes the largest finite value, not infinity (or NaN where
  // there is none).
  static uint32_t encode(double value, Rounding rounding, bool saturates = false) {
    if (std::isnan(value)) return kNan;
    const uint64_t bits = std::bit_cast<uint64_t>(value);
    const bool negative = (bits >> 63) != 0;
    const uint32_t sign = negative ? kSign : 0;
    const uint64_t magnitude = bits & ~(uint64_t{1} << 63);
    if (magnitude == 0) return sign;
    if (std::isinf(value)) return sign | (saturates ? kLargest : kHasInfinity ? kInfinity : kNan);

    // value = significand * 2^(exponent - 52), with bit 52 of the significand set (doubles that
    // are subnormal are far below every format here, and round like the smallest normal one).
    int exponent = static_cast<int>(magnitude >> 52) - 1023;
    uint64_t significand = (magnitude & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;
    // Below the normal range, fewer bits are kept.
    int dropped = 52 - kMantissa;
    if (exponent < 1 - kBias) dropped += 1 - kBias - exponent;
    if (dropped > 54) {
      dropped = 54;
      significand = 1;  // only "something" is left of it
    }
    uint64_t kept = significand >> dropped;
    const uint64_t rest = significand & ((uint64_t{1} << dropped) - 1);
    const uint64_t half = uint64_t{1} << (dropped - 1);
    bool up = false;
    switch (rounding) {
      case Rounding::nearest_even:
        up = rest > half || (rest == half && (kept & 1));
        break;
      case Rounding::nearest_away:
        up = rest >= half;
        break;
      case Rounding::zero:
        break;
      case Rounding::down:
        up = negative && rest != 0;
        break;
      case Rounding::up:
        up = !negative && rest != 0;
        break;
    }
    kept += up;
    // Adding the fields lets a carry of the mantissa raise the exponent.
    const uint64_t base =
        exponent < 1 - kBias ? 0 : static_cast<uint64_t>(exponent + kBias - 1) << kMantissa;
    const uint64_t code = base + kept;
    if (code <= kLargest) return sign | static_cast<uint32_t>(code);
    const bool to_largest = rounding == Rounding::zero ||
                            (rounding == Rounding::down && !negative) ||
                            (rounding == Rounding::up && negative);
    if (saturates || to_largest) return sign | kLargest;
    return sign | (kHasInfinity ? kInfinity : kNan);
  }
};

using F32 = FloatFormat<8, 23>;
using Tf32 = FloatFormat<8, 10>;
using F16 = FloatFormat<5, 10>;
using Bf16 = FloatFormat<8, 7>;
using E4m3 = FloatFormat<4, 3, false>;
using E5m2 = FloatFormat<5, 2>;

// a + b, rounded to odd.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  // What the sum has lost (Knuth's TwoSum).
  const double from_b = sum - a;
  const double lost = (a - (sum - from_b)) + (b - from_b);
  if (lost == 0) return sum;
  uint64_t bits = std::bit_cast<uint64_t>(sum);
  if ((bits & 1) != 0) return sum;
  // The neighbour on the side of what was lost is odd.
  const bool away_from_zero = (lost > 0) == (sum > 0);
  bits += away_from_zero ? 1 : -1;
  return std::bit_cast<double>(bits);
}

// a / b, rounded to odd. The operands have at most 24 bits.
inline double divide_to_odd(double a, double b) {
  const double quotient = a / b;
  if (!std::isfinite(quotient) || quotient == 0 || !std::isfinite(b)) return quotient;
  const double lost = std::fma(-quotient, b, a);
  if (lost == 0) return quotient;
  uint64_t bits = std::bit_cast<uint64_t>(quotient);
  if ((bits & 1) != 0) return quotient;
  const bool is_larger = (lost > 0) == (b > 0);  // the exact quotient than the rounded one
  bits += is_larger == (quotient > 0) ? 1 : -1;
  return std::bit_cast<double>(bits);
}

// The square root, rounded to odd. The operand has at most 24 bits.
inline double root_to_odd(double a) {
  const double root = std::sqrt(a);
  if (!std::isfinite(root) || root == 0) return root;
  const double lost = std::fma(-root, root, a);
  if (lost == 0) return root;
  uint64_t bits = std::bit_cast<uint64_t>(root);
  if ((bits & 1) != 0) return root;
  bits += lost > 0 ? 1 : -1;
  return std::bit_cast<double>(bits);
}

}  // namespace abyssal::emulator

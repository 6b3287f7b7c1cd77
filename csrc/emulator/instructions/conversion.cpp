// cvt (PTX ISA 9.7.9.21): between integers, floats, and the packed small formats.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "emulator/float_formats.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

struct ConversionDetails : Details {
  Type to = Type::b32, from = Type::b32;
  Rounding rounding = Rounding::nearest_even;
  bool to_integral = false;  // rni, rzi, ...: of a float, to an integral value
  bool flushes = false;
  bool saturates = false;  // .satfinite, and .sat to an integer: what is too large becomes the most
  bool to_unit = false;    // .sat to a float: to [0, 1], NaN to 0
  bool relu = false;
};

const ConversionDetails& details_of(const Instruction& instruction) {
  return static_cast<const ConversionDetails&>(*instruction.details);
}

int64_t sign_extended(uint64_t bits, int bytes) {
  const int unused = 64 - 8 * bytes;
  return static_cast<int64_t>(bits << unused) >> unused;
}

uint64_t zero_extended(uint64_t bits, int bytes) {
  return bytes >= 8 ? bits : bits & ((uint64_t{1} << (8 * bytes)) - 1);
}

// Integers.

uint64_t integer_to_integer(uint64_t bits, const ConversionDetails& details) {
  const int from_bytes = ptx::bytes_of(details.from), to_bytes = ptx::bytes_of(details.to);
  const bool from_signed = ptx::is_signed(details.from), to_signed = ptx::is_signed(details.to);
  const __int128 value = from_signed ? __int128{sign_extended(bits, from_bytes)}
                                     : __int128{zero_extended(bits, from_bytes)};
  if (!details.saturates) return static_cast<uint64_t>(value);
  const __int128 most = (__int128{1} << (8 * to_bytes - (to_signed ? 1 : 0))) - 1;
  const __int128 least = to_signed ? -most - 1 : 0;
  return static_cast<uint64_t>(std::clamp(value, least, most));
}

// Floats.

double decode_float(Type type, uint64_t bits, bool flushes) {
  const auto low = static_cast<uint32_t>(bits);
  switch (type) {
    case Type::f64:
      return std::bit_cast<double>(bits);
    case Type::f32: {
      const auto value = std::bit_cast<float>(low);
      return flushes && std::abs(value) < 0x1p-126f ? std::copysign(0.0, value) : value;
    }
    case Type::f16:
      return F16::decode(low & 0xffff);
    case Type::bf16:
      return Bf16::decode(low & 0xffff);
    case Type::e4m3:
      return E4m3::decode(low & 0xff);
    case Type::e5m2:
      return E5m2::decode(low & 0xff);
    default:
      return 0;
  }
}

uint64_t encode_float(Type type, double value, const ConversionDetails& details) {
  if (details.relu && value < 0) value = 0;
  // relu makes a zero of -0, too.
  if (details.relu && value == 0) value = 0;
  switch (type) {
    case Type::f64:
      return std::bit_cast<uint64_t>(value);
    case Type::f32: {
      const uint32_t bits = F32::encode(value, details.rounding);
      const bool is_subnormal = (bits & F32::kExponentMask) == 0;
      return details.flushes && is_subnormal ? bits & F32::kSign : bits;
    }
    case Type::tf32:
      return uint64_t{Tf32::encode(value, details.rounding, details.saturates)} << 13;
    case Type::f16:
      return F16::encode(value, details.rounding, details.saturates);
    case Type::bf16:
      return Bf16::encode(value, details.rounding, details.saturates);
    case Type::e4m3:
      return E4m3::encode(value, details.rounding, true);
    case Type::e5m2:
      return E5m2::encode(value, details.rounding, true);
    default:
      return 0;
  }
}

double integral(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    case Rounding::nearest_away:
      return std::round(value);
    case Rounding::nearest_even:
      return std::nearbyint(value);
  }
  return value;
}

// Out of range: the nearest integer there is; NaN: 0 for types of up to 32 bits, else the value
// with only its highest bit set (PTX ISA 9.7.9.21).
uint64_t float_to_integer(double value, const ConversionDetails& details) {
  const int bits = 8 * ptx::bytes_of(details.to);
  const bool is_signed = ptx::is_signed(details.to);
  if (std::isnan(value)) return bits == 64 ? uint64_t{1} << 63 : 0;
  value = integral(value, details.rounding);
  const double most = std::ldexp(1.0, is_signed ? bits - 1 : bits);  // exclusive
  const double least = is_signed ? -most : 0.0;
  const uint64_t largest = is_signed    ? (uint64_t{1} << (bits - 1)) - 1
                           : bits == 64 ? ~uint64_t{0}
                                        : (uint64_t{1} << bits) - 1;
  if (value >= most) return largest;
  if (value <= least) return is_signed ? ~uint64_t{0} << (bits - 1) : 0;
  return is_signed ? static_cast<uint64_t>(static_cast<int64_t>(value))
                   : static_cast<uint64_t>(value);
}

// 64-bit integers do not fit a double: round to odd what is cut off.
double integer_to_double(uint64_t bits, bool is_negative) {
  uint64_t magnitude = is_negative ? 0 - bits : bits;
  const int unused = 11 - std::countl_zero(magnitude | 1);
  if (unused > 0) {
    const uint64_t cut = magnitude & ((uint64_t{1} << unused) - 1);
    magnitude &= ~((uint64_t{1} << unused) - 1);
    if (cut != 0) magnitude |= uint64_t{1} << unused;
  }
  const auto value = static_cast<double>(magnitude);
  return is_negative ? -value : value;
}

uint64_t convert(uint64_t bits, const ConversionDetails& details) {
  const bool from_float = ptx::is_floating(details.from), to_float = ptx::is_floating(details.to);
  if (!from_float && !to_float) return integer_to_integer(bits, details);
  if (!from_float) {
    const int bytes = ptx::bytes_of(details.from);
    const bool is_signed = ptx::is_signed(details.from);
    const uint64_t value =
        is_signed ? static_cast<uint64_t>(sign_extended(bits, bytes)) : zero_extended(bits, bytes);
    const bool is_negative = is_signed && static_cast<int64_t>(value) < 0;
    if (details.to == Type::f64) {
      return std::bit_cast<uint64_t>(is_negative ? static_cast<double>(static_cast<int64_t>(value))
                                                 : static_cast<double>(value));
    }
    return encode_float(details.to, integer_to_double(value, is_negative), details);
  }
  double value = decode_float(details.from, bits, details.flushes);
  if (!to_float) return float_to_integer(value, details);
  if (details.to_integral) value = integral(value, details.rounding);
  // Neither NaN nor -0 is above 0: they become +0.
  if (details.to_unit) value = value > 0 ? std::min(value, 1.0) : 0.0;
  return encode_float(details.to, value, details);
}

void run_convert(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const ConversionDetails& details = details_of(instruction);
  // A signed result fills a wider register with its sign, an unsigned one with zeros.
  const int bytes = ptx::bytes_of(details.to);
  const bool extends_sign = ptx::is_signed(details.to);
  for_lanes(mask, [&](int lane) {
    const uint64_t value = convert(warp.bits(instruction.sources[0], lane), details);
    const uint64_t wide = extends_sign ? static_cast<uint64_t>(sign_extended(value, bytes))
                                       : zero_extended(value, bytes);
    warp.set_bits(instruction.destinations[0], lane, wide);
  });
}

// The commonest: integers without saturation, at the speed of a copy.
template <typename To, typename From>
struct Extend {
  To operator()(From value) const { return static_cast<To>(value); }
};

Handler fast_integer(Type to, Type from, int to_register, int from_register) {
  if (to_register != ptx::bytes_of(to) || from_register != ptx::bytes_of(from)) return nullptr;
  const bool is_signed = ptx::is_signed(from);
  if (to_register == 8 && from_register == 4) {
    return is_signed ? lanewise<Extend<uint64_t, int32_t>, uint64_t, int32_t>
                     : lanewise<Extend<uint64_t, uint32_t>, uint64_t, uint32_t>;
  }
  if (to_register == 4 && from_register == 8) {
    return lanewise<Extend<uint32_t, uint64_t>, uint32_t, uint64_t>;
  }
  if (to_register == 4 && from_register == 2) {
    return is_signed ? lanewise<Extend<uint32_t, int16_t>, uint32_t, int16_t>
                     : lanewise<Extend<uint32_t, uint16_t>, uint32_t, uint16_t>;
  }
  if (to_register == 2 && from_register == 4) {
    return lanewise<Extend<uint16_t, uint32_t>, uint16_t, uint32_t>;
  }
  return nullptr;
}

// Pairs: the first source is the upper half (cvt.rn.bf16x2.f32 d, a, b).
void run_pack(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const ConversionDetails& details = details_of(instruction);
  const int bits = details.to == Type::e4m3 || details.to == Type::e5m2 ? 8 : 16;
  const auto* high = warp.read<float>(instruction.sources[0]);
  const auto* low = warp.read<float>(instruction.sources[1]);
  for_lanes(mask, [&](int lane) {
    const uint64_t upper = encode_float(details.to, high[lane], details);
    const uint64_t lower = encode_float(details.to, low[lane], details);
    warp.set_bits(instruction.destinations[0], lane, upper << bits | lower);
  });
}

// Pairs to pairs: e4m3x2 and f16x2, either way.
void run_repack(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const ConversionDetails& details = details_of(instruction);
  const int from_bits = 8 * ptx::bytes_of(details.from), to_bits = 8 * ptx::bytes_of(details.to);
  for_lanes(mask, [&](int lane) {
    const uint64_t packed = warp.bits(instruction.sources[0], lane);
    uint64_t result = 0;
    for (int half = 0; half < 2; ++half) {
      const double value = decode_float(details.from, packed >> (half * from_bits), false);
      result |= encode_float(details.to, value, details) << (half * to_bits);
    }
    warp.set_bits(instruction.destinations[0], lane, result);
  });
}

// Decoding.

bool decode_rounding(Decoding& decoding, ConversionDetails& details) {
  const int index = decoding.choose_if({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"});
  if (index < 0) return false;
  constexpr Rounding kModes[] = {Rounding::nearest_even, Rounding::zero, Rounding::down,
                                 Rounding::up, Rounding::nearest_away};
  details.to_integral = index >= 5;
  details.rounding = kModes[details.to_integral ? index - 5 : index];
  return true;
}

// The format of a pair's halves; nothing for what is no pair.
std::optional<Type> half_of(Type type) {
  switch (type) {
    case Type::f16x2:
      return Type::f16;
    case Type::bf16x2:
      return Type::bf16;
    case Type::e4m3x2:
      return Type::e4m3;
    case Type::e5m2x2:
      return Type::e5m2;
    default:
      return std::nullopt;
  }
}

void decode_pair(Decoding& decoding, ConversionDetails& details, Type to, Type from) {
  details.to = *half_of(to);
  decoding.into.destinations[0] = decoding.destination(0, to);
  if (from == Type::f32) {
    decoding.expect_operands(3);
    details.from = Type::f32;
    decoding.into.sources[0] = decoding.source(1, Type::f32);
    decoding.into.sources[1] = decoding.source(2, Type::f32);
    decoding.into.run = run_pack;
    return;
  }
  const auto from_half = half_of(from);
  if (!from_half) decoding.fail("not between these types");
  details.from = *from_half;
  decoding.expect_operands(2);
  decoding.into.sources[0] = decoding.source(1, from);
  decoding.into.run = run_repack;
}

void check_rounding(Decoding& decoding, const ConversionDetails& details, bool has_rounding) {
  const bool from_float = ptx::is_floating(details.from), to_float = ptx::is_floating(details.to);
  const bool widens = from_float && to_float && !details.to_integral &&
                      ptx::bytes_of(details.to) > ptx::bytes_of(details.from);
  const bool needs =
      from_float != to_float || (from_float && to_float && !widens && details.from != details.to);
  if (needs && !has_rounding) decoding.fail("a rounding is missing");
  if (from_float && !to_float && !details.to_integral) decoding.fail("it needs .rni, .rzi, ...");
  const bool odd_types = details.to == Type::b8 || ptx::is_untyped(details.to) ||
                         ptx::is_untyped(details.from) || details.from == Type::tf32;
  if (odd_types) decoding.fail("not between these types");
}

void decode_cvt(Decoding& decoding) {
  auto details = std::make_unique<ConversionDetails>();
  const bool has_rounding = decode_rounding(decoding, *details);
  details->flushes = decoding.accept("ftz");
  details->saturates = decoding.accept("satfinite");
  details->relu = decoding.accept("relu");
  const bool sat = decoding.accept("sat");
  const Type to = decoding.type(), from = decoding.type();
  (ptx::is_floating(to) ? details->to_unit : details->saturates) |= sat;
  decoding.finish_modifiers();
  if (half_of(to)) {
    decode_pair(decoding, *details, to, from);
  } else {
    if (half_of(from)) decoding.fail("not between these types");
    details->to = to;
    details->from = from;
    check_rounding(decoding, *details, has_rounding);
    decoding.expect_operands(2);
    decoding.into.destinations[0] = decoding.wide_destination(decoding.operand(0), to);
    decoding.into.sources[0] = decoding.wide_source(decoding.operand(1), from);
    decoding.into.run = run_convert;
    if (!ptx::is_floating(to) && !ptx::is_floating(from) && !details->saturates) {
      const Handler fast = fast_integer(to, from, decoding.into.destinations[0].bytes,
                                        decoding.into.sources[0].bytes);
      if (fast != nullptr) decoding.into.run = fast;
    }
  }
  decoding.into.details = std::move(details);
}

constexpr Opcode kOpcodes[] = {{"cvt", decode_cvt}};

}  // namespace

std::span<const Opcode> conversion_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

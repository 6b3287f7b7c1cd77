// Integer arithmetic (PTX ISA 9.7.1 and 9.7.2). add, sub, mul, abs, neg, min, max and fma of
// floating-point types share these opcodes and are decoded in floating.cpp and half.cpp.

#include <algorithm>
#include <bit>
#include <limits>

#include "emulator/instructions/floating.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) + Wrapping<T>(b));
  }
};

struct Subtract {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) - Wrapping<T>(b));
  }
};

struct AddSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return saturate(int64_t{a} + b); }
  static int32_t saturate(int64_t value) {
    return static_cast<int32_t>(std::clamp<int64_t>(value, INT32_MIN, INT32_MAX));
  }
};

struct SubtractSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return AddSaturated::saturate(int64_t{a} - b); }
};

// The full product, of twice the width.
template <typename T>
auto product(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<Wide>(a) * b;
  } else {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    return static_cast<Wide>(a) * static_cast<Wide>(b);
  }
}

struct MultiplyLow {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) * Wrapping<T>(b));
  }
};

struct MultiplyHigh {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(product(a, b) >> (8 * sizeof(T)));
  }
};

template <typename Wide>
struct MultiplyWide {
  template <typename T>
  Wide operator()(T a, T b) const {
    return static_cast<Wide>(product(a, b));
  }
};

struct MultiplyAddLow {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(MultiplyLow()(a, b), c);
  }
};

struct MultiplyAddHigh {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(MultiplyHigh()(a, b), c);
  }
};

template <typename Wide>
struct MultiplyAddWide {
  template <typename T>
  Wide operator()(T a, T b, Wide c) const {
    return Add()(static_cast<Wide>(product(a, b)), c);
  }
};

// Division by zero: the result is unspecified in PTX; GPUs give all ones. The quotient that does
// not fit wraps.
struct Divide {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract()(T{0}, a);
    return static_cast<T>(a / b);
  }
};

struct Remainder {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};

struct Absolute {
  template <typename T>
  T operator()(T a) const {
    return a < 0 ? Subtract()(T{0}, a) : a;
  }
};

struct Negate {
  template <typename T>
  T operator()(T a) const {
    return Subtract()(T{0}, a);
  }
};

struct Minimum {
  template <typename T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};

struct Maximum {
  template <typename T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

struct SumOfDifferences {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(a < b ? Subtract()(b, a) : Subtract()(a, b), c);
  }
};

template <typename Operation, int kSources>
void decode_integer(Decoding& decoding, Type type) {
  decode_uniform(decoding, type, kSources);
  with_integer_type(decoding, type, [&]<typename T>(std::type_identity<T>) {
    if constexpr (kSources == 1) decoding.into.run = lanewise<Operation, T, T>;
    if constexpr (kSources == 2) decoding.into.run = lanewise<Operation, T, T, T>;
    if constexpr (kSources == 3) decoding.into.run = lanewise<Operation, T, T, T, T>;
  });
}

// add.cc, addc, sub.cc, subc and their mad kin: sums with a carry from and to the flag.
struct Carry {
  bool takes, gives, subtracts;
};

struct CarryDetails : Details {
  explicit CarryDetails(Carry carry) : carry(carry) {}
  Carry carry;
};

template <typename T>
void run_carry(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const Carry carry = static_cast<const CarryDetails&>(*instruction.details).carry;
  const T* a = warp.read<T>(instruction.sources[0]);
  const T* b = warp.read<T>(instruction.sources[1]);
  T* result = warp.write<T>(instruction.destinations[0]);
  for_lanes(mask, [&](int lane) {
    // a - b is a + ~b + 1; the flag holds the borrow, which is the carry's opposite.
    const bool flag = has(warp.carry, lane);
    const T second = carry.subtracts ? static_cast<T>(~b[lane]) : b[lane];
    const T third = carry.subtracts ? !(carry.takes && flag) : (carry.takes && flag);
    const auto sum = static_cast<unsigned __int128>(a[lane]) + second + third;
    result[lane] = static_cast<T>(sum);
    const bool carried = (sum >> (8 * sizeof(T)) & 1) != 0;
    if (!carry.gives) return;
    warp.carry &= ~(LaneMask{1} << lane);
    warp.carry |= LaneMask{carried != carry.subtracts} << lane;
  });
}

void decode_carry(Decoding& decoding, bool takes, bool gives, bool subtracts) {
  const Type type = decoding.type();
  decode_uniform(decoding, type, 2);
  decoding.into.details = std::make_unique<CarryDetails>(Carry{takes, gives, subtracts});
  const int bytes = ptx::bytes_of(type);
  if (ptx::is_floating(type) || bytes < 4 || bytes > 8) decoding.fail("not of this type");
  decoding.into.run = bytes == 4 ? run_carry<uint32_t> : run_carry<uint64_t>;
}

template <typename Operation, typename Saturated>
void decode_sum(Decoding& decoding, bool subtracts) {
  if (decoding.accept("cc")) return decode_carry(decoding, false, true, subtracts);
  if (is_floating_instruction(decoding)) {
    return decode_floating_binary(decoding, subtracts ? Binary::subtract : Binary::add);
  }
  if (decoding.accept("sat")) {
    decoding.expect("s32");
    decode_uniform(decoding, Type::s32, 2);
    decoding.into.run = lanewise<Saturated, int32_t, int32_t, int32_t>;
    return;
  }
  decode_integer<Operation, 2>(decoding, decoding.type());
}

void decode_add(Decoding& decoding) { decode_sum<Add, AddSaturated>(decoding, false); }
void decode_sub(Decoding& decoding) { decode_sum<Subtract, SubtractSaturated>(decoding, true); }

void decode_addc(Decoding& decoding) {
  const bool gives = decoding.accept("cc");
  decode_carry(decoding, true, gives, false);
}

void decode_subc(Decoding& decoding) {
  const bool gives = decoding.accept("cc");
  decode_carry(decoding, true, gives, true);
}

enum class Half { low, high, wide };

Half decode_half(Decoding& decoding) {
  return static_cast<Half>(decoding.choose({"lo", "hi", "wide"}));
}

Type widened(Decoding& decoding, Type type) {
  switch (type) {
    case Type::u16:
      return Type::u32;
    case Type::s16:
      return Type::s32;
    case Type::u32:
      return Type::u64;
    case Type::s32:
      return Type::s64;
    default:
      decoding.fail("not of this type");
  }
}

// The type of a product of twice the width.
template <typename T>
using Widened =
    std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                       std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

void decode_wide(Decoding& decoding, bool adds) {
  const Type type = decoding.type();
  const Type wide = widened(decoding, type);
  decoding.expect_operands(adds ? 4 : 3);
  decoding.into.destinations[0] = decoding.destination(0, wide);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, type);
  if (adds) decoding.into.sources[2] = decoding.source(3, wide);
  with_integer_type(decoding, type, [&]<typename T>(std::type_identity<T>) {
    using Wide = Widened<T>;
    decoding.into.run = adds ? lanewise<MultiplyAddWide<Wide>, Wide, T, T, Wide>
                             : lanewise<MultiplyWide<Wide>, Wide, T, T>;
  });
}

void decode_mul(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_binary(decoding, Binary::multiply);
  const Half half = decode_half(decoding);
  if (half == Half::wide) return decode_wide(decoding, false);
  const Type type = decoding.type();
  if (half == Half::low) return decode_integer<MultiplyLow, 2>(decoding, type);
  decode_integer<MultiplyHigh, 2>(decoding, type);
}

void decode_mad(Decoding& decoding) {
  // mad of floating-point types is fma (PTX ISA 9.7.3.5).
  if (is_floating_instruction(decoding)) return decode_fma(decoding);
  const Half half = decode_half(decoding);
  if (half == Half::wide) return decode_wide(decoding, true);
  const Type type = decoding.type();
  if (half == Half::low) return decode_integer<MultiplyAddLow, 3>(decoding, type);
  decode_integer<MultiplyAddHigh, 3>(decoding, type);
}

void decode_div(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_division(decoding);
  decode_integer<Divide, 2>(decoding, decoding.type());
}

void decode_rem(Decoding& decoding) { decode_integer<Remainder, 2>(decoding, decoding.type()); }

void decode_abs(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_unary(decoding, Unary::absolute);
  decode_integer<Absolute, 1>(decoding, decoding.type());
}

void decode_neg(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_unary(decoding, Unary::negate);
  decode_integer<Negate, 1>(decoding, decoding.type());
}

void decode_min(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_binary(decoding, Binary::minimum);
  decode_integer<Minimum, 2>(decoding, decoding.type());
}

void decode_max(Decoding& decoding) {
  if (is_floating_instruction(decoding)) return decode_floating_binary(decoding, Binary::maximum);
  decode_integer<Maximum, 2>(decoding, decoding.type());
}

void decode_sad(Decoding& decoding) {
  decode_integer<SumOfDifferences, 3>(decoding, decoding.type());
}

// dp4a: c + the dot product of four bytes, dp2a: of two halves with two bytes.
template <typename A, typename B>
struct DotOfBytes {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    for (int byte = 0; byte < 4; ++byte) {
      const auto x = static_cast<A>(a >> (8 * byte) & 0xff);
      const auto y = static_cast<B>(b >> (8 * byte) & 0xff);
      c += static_cast<uint32_t>(int32_t{x} * int32_t{y});
    }
    return c;
  }
};

void decode_dp4a(Decoding& decoding) {
  const Type a = decoding.type(), b = decoding.type();
  decode_uniform(decoding, Type::b32, 3);
  const bool is_a_signed = a == Type::s32, is_b_signed = b == Type::s32;
  if ((!is_a_signed && a != Type::u32) || (!is_b_signed && b != Type::u32)) {
    decoding.fail("not of these types");
  }
  using U = uint8_t;
  using S = int8_t;
  const auto handler = []<typename A, typename B>(std::type_identity<DotOfBytes<A, B>>) {
    return lanewise<DotOfBytes<A, B>, uint32_t, uint32_t, uint32_t, uint32_t>;
  };
  decoding.into.run = is_a_signed   ? is_b_signed ? handler(std::type_identity<DotOfBytes<S, S>>())
                                                  : handler(std::type_identity<DotOfBytes<S, U>>())
                      : is_b_signed ? handler(std::type_identity<DotOfBytes<U, S>>())
                                    : handler(std::type_identity<DotOfBytes<U, U>>());
}

constexpr Opcode kOpcodes[] = {
    {"add", decode_add}, {"sub", decode_sub},   {"addc", decode_addc}, {"subc", decode_subc},
    {"mul", decode_mul}, {"mad", decode_mad},   {"div", decode_div},   {"rem", decode_rem},
    {"abs", decode_abs}, {"neg", decode_neg},   {"min", decode_min},   {"max", decode_max},
    {"sad", decode_sad}, {"dp4a", decode_dp4a},
};

}  // namespace

std::span<const Opcode> arithmetic_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

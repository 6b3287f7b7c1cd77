// Logic, shifts and bit fields (PTX ISA 9.7.1.14 to 9.7.1.22 and 9.7.8).

#include <algorithm>
#include <bit>
#include <type_traits>

#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

enum class Logic { conjunction, disjunction, exclusive };

template <Logic kLogic>
struct Combine {
  template <typename T>
  T operator()(T a, T b) const {
    if (kLogic == Logic::conjunction) return a & b;
    if (kLogic == Logic::disjunction) return a | b;
    return a ^ b;
  }
};

template <Logic kLogic>
void run_predicates(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const LaneMask value =
      Combine<kLogic>()(warp.read_predicate(instruction, 0), warp.read_predicate(instruction, 1));
  warp.write_predicate(instruction.destinations[0], mask, value);
}

// Bits, whatever they mean: the unsigned type of their size.
template <typename Act>
void with_bits(Decoding& decoding, Type type, Act act) {
  switch (ptx::bytes_of(type)) {
    case 2:
      return act(std::type_identity<uint16_t>());
    case 4:
      return act(std::type_identity<uint32_t>());
    case 8:
      return act(std::type_identity<uint64_t>());
    default:
      decoding.fail("not of this type");
  }
}

template <Logic kLogic>
void decode_logic(Decoding& decoding) {
  const Type type = decoding.type();
  if (type == Type::pred) {
    decoding.expect_operands(3);
    decoding.into.destinations[0] = decoding.predicate_destination(decoding.operand(0));
    decoding.into.sources[0] = decoding.predicate(decoding.operand(1), 0);
    decoding.into.sources[1] = decoding.predicate(decoding.operand(2), 1);
    decoding.into.run = run_predicates<kLogic>;
    return;
  }
  decode_uniform(decoding, type, 2);
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<Combine<kLogic>, T, T, T>;
  });
}

struct Complement {
  template <typename T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};

struct LogicalNot {
  template <typename T>
  T operator()(T a) const {
    return a == 0;
  }
};

void run_not_predicate(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.write_predicate(instruction.destinations[0], mask, ~warp.read_predicate(instruction, 0));
}

void decode_not(Decoding& decoding) {
  const Type type = decoding.type();
  if (type == Type::pred) {
    decoding.expect_operands(2);
    decoding.into.destinations[0] = decoding.predicate_destination(decoding.operand(0));
    decoding.into.sources[0] = decoding.predicate(decoding.operand(1), 0);
    decoding.into.run = run_not_predicate;
    return;
  }
  decode_uniform(decoding, type, 1);
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<Complement, T, T>;
  });
}

void decode_cnot(Decoding& decoding) {
  const Type type = decoding.type();
  decode_uniform(decoding, type, 1);
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<LogicalNot, T, T>;
  });
}

// Shifts by more than the width give what shifting one by one would.
struct ShiftLeft {
  template <typename T>
  T operator()(T a, uint32_t by) const {
    return by < 8 * sizeof(T) ? static_cast<T>(a << by) : T{0};
  }
};

struct ShiftRight {
  template <typename T>
  T operator()(T a, uint32_t by) const {
    if (by < 8 * sizeof(T)) return static_cast<T>(a >> by);
    return a < 0 ? static_cast<T>(-1) : T{0};
  }
};

template <typename Operation>
void decode_shift(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.expect_operands(3);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, Type::u32);
  with_integer_type(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<Operation, T, T, uint32_t>;
  });
}

// shf: 32 bits out of 64 (PTX ISA 9.7.8.8).
template <bool kLeft, bool kWraps>
struct FunnelShift {
  uint32_t operator()(uint32_t low, uint32_t high, uint32_t by) const {
    const uint32_t n = kWraps ? by & 31 : std::min(by, 32u);
    const uint64_t both = uint64_t{high} << 32 | low;
    return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
  }
};

void decode_shf(Decoding& decoding) {
  const bool right = decoding.choose({"l", "r"}) == 1;
  const bool wraps = decoding.choose({"clamp", "wrap"}) == 1;
  decoding.expect("b32");
  decode_uniform(decoding, Type::b32, 3);
  const auto handler = []<typename Operation>(std::type_identity<Operation>) {
    return lanewise<Operation, uint32_t, uint32_t, uint32_t, uint32_t>;
  };
  decoding.into.run = right   ? wraps ? handler(std::type_identity<FunnelShift<false, true>>())
                                      : handler(std::type_identity<FunnelShift<false, false>>())
                      : wraps ? handler(std::type_identity<FunnelShift<true, true>>())
                              : handler(std::type_identity<FunnelShift<true, false>>());
}

// Any function of three bits: bit (4 a + 2 b + c) of the table.
void run_lop3(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto* a = warp.read<uint32_t>(instruction.sources[0]);
  const auto* b = warp.read<uint32_t>(instruction.sources[1]);
  const auto* c = warp.read<uint32_t>(instruction.sources[2]);
  auto* result = warp.write<uint32_t>(instruction.destinations[0]);
  for_lanes(mask, [&](int lane) {
    uint32_t value = 0;
    for (int row = 0; row < 8; ++row) {
      if ((instruction.immediate >> row & 1) == 0) continue;
      const uint32_t x = row & 4 ? a[lane] : ~a[lane];
      const uint32_t y = row & 2 ? b[lane] : ~b[lane];
      const uint32_t z = row & 1 ? c[lane] : ~c[lane];
      value |= x & y & z;
    }
    result[lane] = value;
  });
}

void decode_lop3(Decoding& decoding) {
  decoding.expect("b32");
  decoding.expect_operands(5);
  decoding.into.destinations[0] = decoding.destination(0, Type::b32);
  for (size_t i = 0; i < 3; ++i) decoding.into.sources[i] = decoding.source(i + 1, Type::b32);
  decoding.into.immediate = decoding.constant(decoding.operand(4));
  decoding.into.run = run_lop3;
}

// prmt: four bytes out of eight; bit 3 of a selector asks for its byte's sign.
struct PermuteBytes {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t selectors) const {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t selector = selectors >> (4 * i) & 0xf;
      auto byte = static_cast<uint32_t>(bytes >> (8 * (selector & 7)) & 0xff);
      if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
      result |= byte << (8 * i);
    }
    return result;
  }
};

void decode_prmt(Decoding& decoding) {
  decoding.expect("b32");
  decode_uniform(decoding, Type::b32, 3);
  decoding.into.run = lanewise<PermuteBytes, uint32_t, uint32_t, uint32_t, uint32_t>;
}

struct CountOnes {
  template <typename T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(std::popcount(a));
  }
};

struct CountLeadingZeros {
  template <typename T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(std::countl_zero(a));
  }
};

// The position of the highest bit that differs from the sign, or ~0.
template <bool kAsShift>
struct FindLeading {
  template <typename T>
  uint32_t operator()(T a) const {
    using Bits = std::make_unsigned_t<T>;
    const Bits bits = a < 0 ? static_cast<Bits>(~a) : static_cast<Bits>(a);
    if (bits == 0) return ~0u;
    const int shift = std::countl_zero(bits);
    return static_cast<uint32_t>(kAsShift ? shift : static_cast<int>(8 * sizeof(T)) - 1 - shift);
  }
};

template <typename Operation>
void decode_count(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.expect_operands(2);
  decoding.into.destinations[0] = decoding.destination(0, Type::u32);
  decoding.into.sources[0] = decoding.source(1, type);
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<Operation, uint32_t, T>;
  });
}

void decode_bfind(Decoding& decoding) {
  const bool as_shift = decoding.accept("shiftamt");
  const Type type = decoding.type();
  decoding.expect_operands(2);
  decoding.into.destinations[0] = decoding.destination(0, Type::u32);
  decoding.into.sources[0] = decoding.source(1, type);
  with_integer_type(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = as_shift ? lanewise<FindLeading<true>, uint32_t, T>
                                 : lanewise<FindLeading<false>, uint32_t, T>;
  });
}

struct ReverseBits {
  template <typename T>
  T operator()(T a) const {
    T result = 0;
    for (size_t bit = 0; bit < 8 * sizeof(T); ++bit) {
      result = static_cast<T>(result << 1 | (a >> bit & 1));
    }
    return result;
  }
};

void decode_brev(Decoding& decoding) {
  const Type type = decoding.type();
  decode_uniform(decoding, type, 1);
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<ReverseBits, T, T>;
  });
}

// Position and length are taken from the low byte (PTX ISA 9.7.1.19 and 20).
struct ExtractField {
  template <typename T>
  T operator()(T a, uint32_t position, uint32_t length) const {
    using Bits = std::make_unsigned_t<T>;
    constexpr uint32_t kWidth = 8 * sizeof(T);
    position &= 0xff;
    length &= 0xff;
    const uint32_t sign_at = std::min(position + length, kWidth) - 1;
    const bool is_negative = std::is_signed_v<T> && length != 0 && (a >> sign_at & 1) != 0;
    Bits field = position < kWidth ? static_cast<Bits>(a) >> position : 0;
    const Bits mask = length < kWidth ? (Bits{1} << length) - 1 : ~Bits{0};
    field &= mask;
    if (!is_negative) return static_cast<T>(field);
    const uint32_t present = position < kWidth ? std::min(length, kWidth - position) : 0;
    const Bits kept = present < kWidth ? (Bits{1} << present) - 1 : ~Bits{0};
    return static_cast<T>(field | ~kept);
  }
};

void decode_bfe(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.expect_operands(4);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, Type::u32);
  decoding.into.sources[2] = decoding.source(3, Type::u32);
  if (ptx::bytes_of(type) < 4) decoding.fail("not of this type");
  with_integer_type(decoding, type, [&]<typename T>(std::type_identity<T>) {
    if constexpr (sizeof(T) >= 4) {
      decoding.into.run = lanewise<ExtractField, T, T, uint32_t, uint32_t>;
    }
  });
}

struct InsertField {
  template <typename T>
  T operator()(T field, T into, uint32_t position, uint32_t length) const {
    constexpr uint32_t kWidth = 8 * sizeof(T);
    position &= 0xff;
    length &= 0xff;
    if (position >= kWidth) return into;
    const T mask = length < kWidth ? (T{1} << length) - 1 : ~T{0};
    return static_cast<T>((into & ~(mask << position)) | (field & mask) << position);
  }
};

void decode_bfi(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.expect_operands(5);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, type);
  decoding.into.sources[2] = decoding.source(3, Type::u32);
  decoding.into.sources[3] = decoding.source(4, Type::u32);
  if (ptx::bytes_of(type) < 4) decoding.fail("not of this type");
  with_bits(decoding, type, [&]<typename T>(std::type_identity<T>) {
    decoding.into.run = lanewise<InsertField, T, T, T, uint32_t, uint32_t>;
  });
}

// szext: sign- or zero-extends the low `length` bits.
template <bool kWraps>
struct ExtendField {
  template <typename T>
  T operator()(T a, uint32_t length) const {
    const uint32_t n = kWraps ? length & 31 : std::min(length, 32u);
    if (n == 0) return 0;
    if (n == 32) return a;
    return static_cast<T>(static_cast<T>(static_cast<uint32_t>(a) << (32 - n)) >> (32 - n));
  }
};

void decode_szext(Decoding& decoding) {
  const bool wraps = decoding.choose({"clamp", "wrap"}) == 1;
  const Type type = decoding.type();
  if (type != Type::u32 && type != Type::s32) decoding.fail("not of this type");
  decode_uniform(decoding, type, 2);
  if (type == Type::u32) {
    decoding.into.run = wraps ? lanewise<ExtendField<true>, uint32_t, uint32_t, uint32_t>
                              : lanewise<ExtendField<false>, uint32_t, uint32_t, uint32_t>;
  } else {
    decoding.into.run = wraps ? lanewise<ExtendField<true>, int32_t, int32_t, uint32_t>
                              : lanewise<ExtendField<false>, int32_t, int32_t, uint32_t>;
  }
}

// bmsk: `length` ones from `position` on.
template <bool kWraps>
struct BitMask {
  uint32_t operator()(uint32_t position, uint32_t length) const {
    if (kWraps) {
      position &= 31;
      length &= 31;
    }
    if (position >= 32) return 0;
    const uint64_t ones = (uint64_t{1} << std::min(length, 32u)) - 1;
    return static_cast<uint32_t>(ones << position);
  }
};

void decode_bmsk(Decoding& decoding) {
  const bool wraps = decoding.choose({"clamp", "wrap"}) == 1;
  decoding.expect("b32");
  decode_uniform(decoding, Type::b32, 2);
  decoding.into.run = wraps ? lanewise<BitMask<true>, uint32_t, uint32_t, uint32_t>
                            : lanewise<BitMask<false>, uint32_t, uint32_t, uint32_t>;
}

constexpr Opcode kOpcodes[] = {
    {"and", decode_logic<Logic::conjunction>},
    {"or", decode_logic<Logic::disjunction>},
    {"xor", decode_logic<Logic::exclusive>},
    {"not", decode_not},
    {"cnot", decode_cnot},
    {"shl", decode_shift<ShiftLeft>},
    {"shr", decode_shift<ShiftRight>},
    {"shf", decode_shf},
    {"lop3", decode_lop3},
    {"prmt", decode_prmt},
    {"popc", decode_count<CountOnes>},
    {"clz", decode_count<CountLeadingZeros>},
    {"bfind", decode_bfind},
    {"brev", decode_brev},
    {"bfe", decode_bfe},
    {"bfi", decode_bfi},
    {"szext", decode_szext},
    {"bmsk", decode_bmsk},
};

}  // namespace

std::span<const Opcode> bit_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

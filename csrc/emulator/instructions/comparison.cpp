// Comparisons and selections (PTX ISA 9.7.6 and 9.7.7).

#include <cmath>

#include "emulator/float_formats.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

enum class Relation : uint8_t {
  eq,
  ne,
  lt,
  le,
  gt,
  ge,  // false if an operand is NaN, but for ne of integers
  equ,
  neu,
  ltu,
  leu,
  gtu,
  geu,  // true if an operand is NaN
  num,
  nan,
};

enum class Merge : uint8_t { none, conjunction, disjunction, exclusive };

struct ComparisonDetails : Details {
  Relation relation = Relation::eq;
  Merge merge = Merge::none;
  bool flushes = false;
  bool gives_float = false;  // set: 1.0f instead of all ones
};

Relation decode_relation(Decoding& decoding) {
  const size_t index = decoding.choose({"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu",
                                        "leu", "gtu", "geu", "num", "nan", "lo", "ls", "hi", "hs"});
  constexpr Relation kUnsigned[] = {Relation::lt, Relation::le, Relation::gt, Relation::ge};
  return index < 14 ? static_cast<Relation>(index) : kUnsigned[index - 14];
}

template <typename T>
bool holds(Relation relation, T a, T b) {
  switch (relation) {
    case Relation::eq:
      return a == b;
    case Relation::ne:
      return a < b || a > b;
    case Relation::lt:
      return a < b;
    case Relation::le:
      return a <= b;
    case Relation::gt:
      return a > b;
    case Relation::ge:
      return a >= b;
    case Relation::equ:
      return !(a < b || a > b);
    case Relation::neu:
      return a != b;
    case Relation::ltu:
      return !(a >= b);
    case Relation::leu:
      return !(a > b);
    case Relation::gtu:
      return !(a <= b);
    case Relation::geu:
      return !(a < b);
    case Relation::num:
      return a == a && b == b;
    case Relation::nan:
      return a != a || b != b;
  }
  return false;
}

// How a type's bits become something that C++ compares.
template <typename T>
struct Plain {
  using Bits = T;
  static T value(T bits, bool) { return bits; }
};

struct PlainFloat {
  using Bits = float;
  static float value(float x, bool flushes) {
    return flushes && std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
  }
};

template <typename Format>
struct Small {
  using Bits = uint16_t;
  static double value(uint16_t bits, bool flushes) {
    if (flushes && (bits & Format::kExponentMask) == 0) return 0;
    return Format::decode(bits);
  }
};

template <typename Value>
LaneMask compare(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ComparisonDetails&>(*instruction.details);
  const auto* a = warp.read<typename Value::Bits>(instruction.sources[0]);
  const auto* b = warp.read<typename Value::Bits>(instruction.sources[1]);
  const Relation relation = details.relation;
  const bool flushes = details.flushes;
  LaneMask result = 0;
  for_lanes(mask, [&](int lane) {
    const bool is_so =
        holds(relation, Value::value(a[lane], flushes), Value::value(b[lane], flushes));
    result |= LaneMask{is_so} << lane;
  });
  return result;
}

LaneMask merged(Merge merge, LaneMask value, LaneMask with) {
  switch (merge) {
    case Merge::none:
      return value;
    case Merge::conjunction:
      return value & with;
    case Merge::disjunction:
      return value | with;
    case Merge::exclusive:
      return value ^ with;
  }
  return value;
}

template <typename Value>
void run_setp(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ComparisonDetails&>(*instruction.details);
  const LaneMask value = compare<Value>(warp, instruction, mask);
  const LaneMask with = instruction.sources[2] ? warp.read_predicate(instruction, 2) : 0;
  if (instruction.destinations[0]) {
    warp.write_predicate(instruction.destinations[0], mask, merged(details.merge, value, with));
  }
  if (instruction.destinations[1]) {
    warp.write_predicate(instruction.destinations[1], mask, merged(details.merge, ~value, with));
  }
}

template <typename Value>
void run_set(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const ComparisonDetails&>(*instruction.details);
  const LaneMask with = instruction.sources[2] ? warp.read_predicate(instruction, 2) : 0;
  const LaneMask value = merged(details.merge, compare<Value>(warp, instruction, mask), with);
  auto* result = warp.write<uint32_t>(instruction.destinations[0]);
  const uint32_t yes = details.gives_float ? 0x3f800000u : ~0u;
  for_lanes(mask, [&](int lane) { result[lane] = has(value, lane) ? yes : 0; });
}

struct Handlers {
  Handler setp, set;
};

template <typename Value>
constexpr Handlers kHandlers{run_setp<Value>, run_set<Value>};

Handlers handlers_for(Decoding& decoding, Type type) {
  switch (type) {
    case Type::f32:
      return kHandlers<PlainFloat>;
    case Type::f64:
      return kHandlers<Plain<double>>;
    case Type::f16:
      return kHandlers<Small<F16>>;
    case Type::bf16:
      return kHandlers<Small<Bf16>>;
    default:
      return with_integer_type(
          decoding, type, []<typename T>(std::type_identity<T>) { return kHandlers<Plain<T>>; });
  }
}

// .relation{.merge}{.ftz}
std::unique_ptr<ComparisonDetails> decode_comparison(Decoding& decoding) {
  auto details = std::make_unique<ComparisonDetails>();
  details->relation = decode_relation(decoding);
  details->merge = static_cast<Merge>(decoding.choose_if({"and", "or", "xor"}) + 1);
  details->flushes = decoding.accept("ftz");
  return details;
}

void decode_compared(Decoding& decoding, Type type, Merge merge) {
  decoding.finish_modifiers();
  decoding.expect_operands(merge == Merge::none ? 3 : 4);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, type);
  if (merge != Merge::none) decoding.into.sources[2] = decoding.predicate(decoding.operand(3), 2);
}

void decode_setp(Decoding& decoding) {
  auto details = decode_comparison(decoding);
  const Type type = decoding.type();
  decode_compared(decoding, type, details->merge);
  const ptx::Operand& result = decoding.operand(0);
  if (result.kind == ptx::Operand::Kind::pair) {
    decoding.into.destinations[0] = decoding.predicate_destination(result.elements[0]);
    decoding.into.destinations[1] = decoding.predicate_destination(result.elements[1]);
  } else {
    decoding.into.destinations[0] = decoding.predicate_destination(result);
  }
  decoding.into.run = handlers_for(decoding, type).setp;
  decoding.into.details = std::move(details);
}

void decode_set(Decoding& decoding) {
  auto details = decode_comparison(decoding);
  const Type result = decoding.type();
  if (ptx::bytes_of(result) != 4) decoding.fail("its result must have 32 bits");
  details->gives_float = result == Type::f32;
  const Type type = decoding.type();
  decode_compared(decoding, type, details->merge);
  decoding.into.destinations[0] = decoding.destination(0, result);
  decoding.into.run = handlers_for(decoding, type).set;
  decoding.into.details = std::move(details);
}

template <typename T>
void run_selp(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const T* yes = warp.read<T>(instruction.sources[0]);
  const T* no = warp.read<T>(instruction.sources[1]);
  const LaneMask which = warp.read_predicate(instruction, 2);
  T* result = warp.write<T>(instruction.destinations[0]);
  for_lanes(mask, [&](int lane) { result[lane] = has(which, lane) ? yes[lane] : no[lane]; });
}

void decode_selp(Decoding& decoding) {
  const Type type = decoding.type();
  decoding.finish_modifiers();
  decoding.expect_operands(4);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, type);
  decoding.into.sources[2] = decoding.predicate(decoding.operand(3), 2);
  switch (ptx::bytes_of(type)) {
    case 2:
      decoding.into.run = run_selp<uint16_t>;
      break;
    case 4:
      decoding.into.run = run_selp<uint32_t>;
      break;
    case 8:
      decoding.into.run = run_selp<uint64_t>;
      break;
    default:
      decoding.fail("not of this type");
  }
}

// a where c is not negative, else b.
template <bool kFlushes>
struct SelectBySign {
  template <typename T>
  T operator()(T a, T b, int32_t c) const {
    return c >= 0 ? a : b;
  }
  template <typename T>
  T operator()(T a, T b, float c) const {
    return PlainFloat::value(c, kFlushes) >= 0 ? a : b;
  }
};

void decode_slct(Decoding& decoding) {
  const bool flushes = decoding.accept("ftz");
  const Type type = decoding.type(), by = decoding.type();
  if (by != Type::s32 && by != Type::f32) decoding.fail("not of these types");
  decoding.finish_modifiers();
  decoding.expect_operands(4);
  decoding.into.destinations[0] = decoding.destination(0, type);
  decoding.into.sources[0] = decoding.source(1, type);
  decoding.into.sources[1] = decoding.source(2, type);
  decoding.into.sources[2] = decoding.source(3, by);
  const auto choose = [&]<typename T>(std::type_identity<T>) {
    if (by == Type::s32) return lanewise<SelectBySign<false>, T, T, T, int32_t>;
    return flushes ? lanewise<SelectBySign<true>, T, T, T, float>
                   : lanewise<SelectBySign<false>, T, T, T, float>;
  };
  switch (ptx::bytes_of(type)) {
    case 2:
      decoding.into.run = choose(std::type_identity<uint16_t>());
      break;
    case 4:
      decoding.into.run = choose(std::type_identity<uint32_t>());
      break;
    case 8:
      decoding.into.run = choose(std::type_identity<uint64_t>());
      break;
    default:
      decoding.fail("not of this type");
  }
}

constexpr Opcode kOpcodes[] = {
    {"setp", decode_setp}, {"set", decode_set}, {"selp", decode_selp}, {"slct", decode_slct}};

}  // namespace

std::span<const Opcode> comparison_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

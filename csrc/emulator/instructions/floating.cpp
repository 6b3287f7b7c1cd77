// Floating-point arithmetic of all widths (PTX ISA 9.7.3 to 9.7.5): FP64, FP32, FP16 and BF16, the
// latter two also in pairs.
//
// The FP32 operations that kernels are full of, rounded to nearest, are the host's own. All others
// go through double, rounded to odd (float_formats.hpp). A NaN that an operation makes is the one
// that the hardware makes.

#include "emulator/instructions/floating.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "emulator/float_formats.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

struct FloatingDetails : Details {
  Type type = Type::f32;
  Rounding rounding = Rounding::nearest_even;
  bool flushes = false;    // .ftz: subnormal operands and results are zeros
  bool saturates = false;  // .sat: to [0, 1], NaN to 0
  bool relu = false;       // negative results to 0
  bool keeps_nan = false;  // min, max: .NaN
  bool xor_signs = false;  // min, max: .xorsign.abs
};

const FloatingDetails& details_of(const Instruction& instruction) {
  return static_cast<const FloatingDetails&>(*instruction.details);
}

// Formats as registers hold them: `kValues` values in the unsigned type `Word`.
template <typename F, typename W, int kCount>
struct Packed {
  using Format = F;
  using Word = W;
  static constexpr int kValues = kCount;
};

template <typename Format>
uint32_t flush(uint32_t bits) {
  return (bits & Format::kExponentMask) == 0 ? bits & Format::kSign : bits;
}

// A result of a format, given as a double rounded to odd.
template <typename Format>
uint32_t finish(double value, const FloatingDetails& details) {
  // Neither NaN nor -0 is above 0: they become +0.
  if (details.saturates) value = value > 0 ? std::min(value, 1.0) : 0.0;
  // relu keeps NaN, and makes it the canonical one.
  if (details.relu && value < 0) value = 0.0;
  uint32_t bits = Format::encode(value, details.rounding);
  if (details.relu && bits == Format::kSign) bits = 0;
  return details.flushes ? flush<Format>(bits) : bits;
}

// d = operation(a, b, c) over packed values, through double.
template <typename Values, typename Operation, int kSources>
void run_packed(Warp& warp, const Instruction& instruction, LaneMask mask) {
  using Format = typename Values::Format;
  using Word = typename Values::Word;
  const FloatingDetails& details = details_of(instruction);
  const Word* sources[kSources];
  for (int i = 0; i < kSources; ++i) sources[i] = warp.read<Word>(instruction.sources[i]);
  Word* result = warp.write<Word>(instruction.destinations[0]);
  constexpr int kBits = 8 * static_cast<int>(sizeof(Word)) / Values::kValues;
  for_lanes(mask, [&](int lane) {
    Word packed = 0;
    for (int value = 0; value < Values::kValues; ++value) {
      double operands[kSources];
      for (int i = 0; i < kSources; ++i) {
        auto bits = static_cast<uint32_t>(sources[i][lane] >> (value * kBits));
        if constexpr (kBits < 32) bits &= (uint32_t{1} << kBits) - 1;
        if (details.flushes) bits = flush<Format>(bits);
        operands[i] = Format::decode(bits);
      }
      const uint32_t bits = finish<Format>(Operation::apply(operands, details), details);
      packed = static_cast<Word>(packed | static_cast<Word>(bits) << (value * kBits));
    }
    result[lane] = packed;
  });
}

// d = operation(a, b, c) in FP64, rounded to nearest.
template <typename Operation, int kSources>
void run_f64(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const double* sources[kSources];
  for (int i = 0; i < kSources; ++i) sources[i] = warp.read<double>(instruction.sources[i]);
  double* result = warp.write<double>(instruction.destinations[0]);
  for_lanes(mask, [&](int lane) {
    double operands[kSources];
    for (int i = 0; i < kSources; ++i) operands[i] = sources[i][lane];
    result[lane] = Operation::nearest(operands, details_of(instruction));
  });
}

// Operations. `apply` gives a double rounded to odd, of operands of at most 24 bits; `nearest`
// rounds to nearest, of any double.

// A sum of two numbers that cancel is -0 where everything is rounded down (IEEE 754, 6.3).
double sum_to_odd(double a, double b, const FloatingDetails& details) {
  const double sum = add_to_odd(a, b);
  const bool cancels = sum == 0 && std::signbit(a) != std::signbit(b);
  return cancels && details.rounding == Rounding::down ? -0.0 : sum;
}

struct AddOperation {
  static double apply(const double* x, const FloatingDetails& details) {
    return sum_to_odd(x[0], x[1], details);
  }
  static double nearest(const double* x, const FloatingDetails&) { return x[0] + x[1]; }
};

struct SubtractOperation {
  static double apply(const double* x, const FloatingDetails& details) {
    return sum_to_odd(x[0], -x[1], details);
  }
  static double nearest(const double* x, const FloatingDetails&) { return x[0] - x[1]; }
};

struct MultiplyOperation {
  static double apply(const double* x, const FloatingDetails&) { return x[0] * x[1]; }
  static double nearest(const double* x, const FloatingDetails&) { return x[0] * x[1]; }
};

struct FmaOperation {
  static double apply(const double* x, const FloatingDetails& details) {
    return sum_to_odd(x[0] * x[1], x[2], details);
  }
  static double nearest(const double* x, const FloatingDetails&) {
    return std::fma(x[0], x[1], x[2]);
  }
};

struct DivideOperation {
  static double apply(const double* x, const FloatingDetails&) { return divide_to_odd(x[0], x[1]); }
  static double nearest(const double* x, const FloatingDetails&) { return x[0] / x[1]; }
};

// A NaN among two operands gives way to the other, unless .NaN; +0 is more than -0.
template <bool kLargest>
struct ExtremeOperation {
  static double nearest(const double* x, const FloatingDetails& details) {
    double a = x[0], b = x[1];
    const bool negative = std::signbit(a) != std::signbit(b);
    if (details.xor_signs) {
      a = std::abs(a);
      b = std::abs(b);
    }
    double result;
    if (std::isnan(a) || std::isnan(b)) {
      if (details.keeps_nan) return std::numeric_limits<double>::quiet_NaN();
      result = std::isnan(a) ? b : a;
    } else if (a == b) {
      result = std::signbit(a) == kLargest ? b : a;
    } else {
      result = (a < b) == kLargest ? b : a;
    }
    return details.xor_signs ? std::copysign(result, negative ? -1.0 : 1.0) : result;
  }
  static double apply(const double* x, const FloatingDetails& details) {
    return nearest(x, details);
  }
};

struct RootOperation {
  static double apply(const double* x, const FloatingDetails&) { return root_to_odd(x[0]); }
  static double nearest(const double* x, const FloatingDetails&) { return std::sqrt(x[0]); }
};

struct ReciprocalOperation {
  static double apply(const double* x, const FloatingDetails&) { return divide_to_odd(1.0, x[0]); }
  static double nearest(const double* x, const FloatingDetails&) { return 1.0 / x[0]; }
};

// Functions that PTX gives an error bound for: here they are as good as the host's double.

struct InverseRootOperation {
  static double nearest(const double* x, const FloatingDetails&) {
    return x[0] == 0 ? std::copysign(std::numeric_limits<double>::infinity(), x[0])
                     : 1.0 / std::sqrt(x[0]);
  }
  static double apply(const double* x, const FloatingDetails& d) { return nearest(x, d); }
};

template <double (*kFunction)(double)>
struct FunctionOperation {
  static double nearest(const double* x, const FloatingDetails&) { return kFunction(x[0]); }
  static double apply(const double* x, const FloatingDetails&) { return kFunction(x[0]); }
};

double sine(double x) { return std::sin(x); }
double cosine(double x) { return std::cos(x); }
double power_of_two(double x) { return std::exp2(x); }
double binary_logarithm(double x) { return std::log2(x); }
double hyperbolic_tangent(double x) { return std::tanh(x); }

// div.approx and div.full.  Divisors beyond 2^126 give 0 with .approx (PTX ISA 9.7.3.8).
struct ApproximateDivideOperation {
  static double nearest(const double* x, const FloatingDetails&) {
    if (std::abs(x[1]) > 0x1p126 && std::isfinite(x[1])) {
      const double zero = std::isinf(x[0]) ? std::numeric_limits<double>::quiet_NaN() : 0.0;
      return std::copysign(zero, std::signbit(x[0]) != std::signbit(x[1]) ? -1.0 : 1.0);
    }
    return x[0] / x[1];
  }
  static double apply(const double* x, const FloatingDetails& d) { return nearest(x, d); }
};

// FP32, rounded to nearest, on the host's own arithmetic.

float canonical(float value) { return value == value ? value : std::bit_cast<float>(F32::kNan); }

float flushed(float value) {
  return std::abs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}

template <Binary kOperation>
float compute(float a, float b) {
  if (kOperation == Binary::add) return a + b;
  if (kOperation == Binary::subtract) return a - b;
  return a * b;
}

template <Binary kOperation, bool kFlushes>
struct FastBinary {
  float operator()(float a, float b) const {
    if (!kFlushes) return canonical(compute<kOperation>(a, b));
    return flushed(canonical(compute<kOperation>(flushed(a), flushed(b))));
  }
};

template <bool kFlushes>
struct FastFma {
  float operator()(float a, float b, float c) const {
    if (!kFlushes) return canonical(fma_through_double(a, b, c));
    return flushed(canonical(fma_through_double(flushed(a), flushed(b), flushed(c))));
  }
  // The product of two FP32 values is exact in double.
  static float fma_through_double(float a, float b, float c) {
    return static_cast<float>(add_to_odd(double{a} * double{b}, double{c}));
  }
};

#if defined(__x86_64__)
// The same, one instruction each, where the processor has it.
__attribute__((target("avx2,fma"))) void run_fma_avx2(Warp& warp, const Instruction& instruction,
                                                      LaneMask mask) {
  const float* __restrict a = warp.read<float>(instruction.sources[0]);
  const float* __restrict b = warp.read<float>(instruction.sources[1]);
  const float* __restrict c = warp.read<float>(instruction.sources[2]);
  float* result = warp.write<float>(instruction.destinations[0]);
  float values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const float value = __builtin_fmaf(a[lane], b[lane], c[lane]);
    values[lane] = value == value ? value : std::bit_cast<float>(F32::kNan);
  }
  for_lanes(mask, [&](int lane) { result[lane] = values[lane]; });
}
#endif

Handler fast_fma(bool flushes) {
#if defined(__x86_64__)
  if (!flushes && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) {
    return run_fma_avx2;
  }
#endif
  return flushes ? lanewise<FastFma<true>, float, float, float, float>
                 : lanewise<FastFma<false>, float, float, float, float>;
}

// Decoding.

template <typename Operation, int kSources>
Handler handler_for(Decoding& decoding, Type type) {
  switch (type) {
    case Type::f32:
      return run_packed<Packed<F32, uint32_t, 1>, Operation, kSources>;
    case Type::f16:
      return run_packed<Packed<F16, uint16_t, 1>, Operation, kSources>;
    case Type::bf16:
      return run_packed<Packed<Bf16, uint16_t, 1>, Operation, kSources>;
    case Type::f16x2:
      return run_packed<Packed<F16, uint32_t, 2>, Operation, kSources>;
    case Type::bf16x2:
      return run_packed<Packed<Bf16, uint32_t, 2>, Operation, kSources>;
    case Type::f64:
      return run_f64<Operation, kSources>;
    default:
      decoding.fail("not of this type");
  }
}

Rounding decode_rounding(Decoding& decoding) {
  switch (decoding.choose_if({"rn", "rz", "rm", "rp"})) {
    case 1:
      return Rounding::zero;
    case 2:
      return Rounding::down;
    case 3:
      return Rounding::up;
    default:
      return Rounding::nearest_even;
  }
}

// The modifiers of arithmetic, in PTX's order, and the operands.
FloatingDetails decode_modifiers(Decoding& decoding, int num_sources) {
  FloatingDetails details;
  details.rounding = decode_rounding(decoding);
  details.flushes = decoding.accept("ftz");
  details.keeps_nan = decoding.accept("NaN");
  if (decoding.accept("xorsign")) {
    decoding.expect("abs");
    details.xor_signs = true;
  }
  details.relu = decoding.accept("relu");
  details.saturates = decoding.accept("sat");
  details.type = decoding.type();
  decode_uniform(decoding, details.type, num_sources);
  if (details.type == Type::f64 && details.rounding != Rounding::nearest_even) {
    decoding.fail("FP64 is only rounded to nearest here");
  }
  return details;
}

template <typename Operation, int kSources>
void set_handler(Decoding& decoding, FloatingDetails details) {
  decoding.into.run = handler_for<Operation, kSources>(decoding, details.type);
  decoding.into.details = std::make_unique<FloatingDetails>(details);
}

bool is_plain_f32(const FloatingDetails& details) {
  return details.type == Type::f32 && details.rounding == Rounding::nearest_even &&
         !details.saturates;
}

template <Binary kOperation, typename Operation>
void decode_fast_binary(Decoding& decoding) {
  const FloatingDetails details = decode_modifiers(decoding, 2);
  set_handler<Operation, 2>(decoding, details);
  if (!is_plain_f32(details)) return;
  decoding.into.run = details.flushes
                          ? lanewise<FastBinary<kOperation, true>, float, float, float>
                          : lanewise<FastBinary<kOperation, false>, float, float, float>;
}

template <typename T, T kSign, Unary kOperation>
struct ChangeSign {
  T operator()(T a) const {
    return kOperation == Unary::negate ? static_cast<T>(a ^ kSign) : static_cast<T>(a & ~kSign);
  }
};

template <Unary kOperation>
Handler sign_handler(Decoding& decoding, Type type) {
  switch (type) {
    case Type::f16:
    case Type::bf16:
      return lanewise<ChangeSign<uint16_t, 0x8000, kOperation>, uint16_t, uint16_t>;
    case Type::f16x2:
    case Type::bf16x2:
      return lanewise<ChangeSign<uint32_t, 0x80008000u, kOperation>, uint32_t, uint32_t>;
    case Type::f32:
      return lanewise<ChangeSign<uint32_t, 0x80000000u, kOperation>, uint32_t, uint32_t>;
    case Type::f64:
      return lanewise<ChangeSign<uint64_t, uint64_t{1} << 63, kOperation>, uint64_t, uint64_t>;
    default:
      decoding.fail("not of this type");
  }
}

template <typename Flushed, Unary kOperation>
struct FlushAndChangeSign {
  uint32_t operator()(uint32_t a) const {
    return ChangeSign<uint32_t, 0x80000000u, kOperation>()(flush<F32>(a));
  }
};

struct CopySign {
  template <typename T>
  T operator()(T sign_of, T value) const {
    constexpr T kSign = T{1} << (8 * sizeof(T) - 1);
    return (value & ~kSign) | (sign_of & kSign);
  }
};

void decode_copysign(Decoding& decoding) {
  const Type type = decoding.type();
  if (type != Type::f32 && type != Type::f64) decoding.fail("not of this type");
  decode_uniform(decoding, type, 2);
  decoding.into.run = type == Type::f32 ? lanewise<CopySign, uint32_t, uint32_t, uint32_t>
                                        : lanewise<CopySign, uint64_t, uint64_t, uint64_t>;
}

// rcp and sqrt: .approx or correctly rounded, by the same operation.
template <typename Operation>
void decode_rounded_function(Decoding& decoding) {
  decoding.accept("approx");
  set_handler<Operation, 1>(decoding, decode_modifiers(decoding, 1));
}

template <typename Operation>
void decode_approximate_function(Decoding& decoding) {
  decoding.expect("approx");
  set_handler<Operation, 1>(decoding, decode_modifiers(decoding, 1));
}

template <Unary kOperation>
void decode_sign(Decoding& decoding) {
  const bool flushes = decoding.accept("ftz");
  const Type type = decoding.type();
  decode_uniform(decoding, type, 1);
  decoding.into.run = sign_handler<kOperation>(decoding, type);
  if (flushes && type == Type::f32) {
    decoding.into.run = lanewise<FlushAndChangeSign<F32, kOperation>, uint32_t, uint32_t>;
  }
}

}  // namespace

bool is_floating_instruction(const Decoding& decoding) {
  for (std::string_view modifier : decoding.text().modifiers) {
    const auto type = ptx::find_type(modifier);
    if (type && ptx::is_floating(*type)) return true;
  }
  return false;
}

void decode_floating_unary(Decoding& decoding, Unary operation) {
  if (operation == Unary::negate) return decode_sign<Unary::negate>(decoding);
  decode_sign<Unary::absolute>(decoding);
}

void decode_floating_binary(Decoding& decoding, Binary operation) {
  switch (operation) {
    case Binary::add:
      return decode_fast_binary<Binary::add, AddOperation>(decoding);
    case Binary::subtract:
      return decode_fast_binary<Binary::subtract, SubtractOperation>(decoding);
    case Binary::multiply:
      return decode_fast_binary<Binary::multiply, MultiplyOperation>(decoding);
    case Binary::minimum:
      return set_handler<ExtremeOperation<false>, 2>(decoding, decode_modifiers(decoding, 2));
    case Binary::maximum:
      return set_handler<ExtremeOperation<true>, 2>(decoding, decode_modifiers(decoding, 2));
  }
}

void decode_floating_division(Decoding& decoding) {
  if (decoding.accept("approx")) {
    return set_handler<ApproximateDivideOperation, 2>(decoding, decode_modifiers(decoding, 2));
  }
  decoding.accept("full");
  set_handler<DivideOperation, 2>(decoding, decode_modifiers(decoding, 2));
}

void decode_fma(Decoding& decoding) {
  const FloatingDetails details = decode_modifiers(decoding, 3);
  set_handler<FmaOperation, 3>(decoding, details);
  if (is_plain_f32(details)) decoding.into.run = fast_fma(details.flushes);
}

namespace {

constexpr Opcode kOpcodes[] = {
    {"fma", decode_fma},
    {"copysign", decode_copysign},
    {"rcp", decode_rounded_function<ReciprocalOperation>},
    {"sqrt", decode_rounded_function<RootOperation>},
    {"rsqrt", decode_approximate_function<InverseRootOperation>},
    {"ex2", decode_approximate_function<FunctionOperation<power_of_two>>},
    {"lg2", decode_approximate_function<FunctionOperation<binary_logarithm>>},
    {"sin", decode_approximate_function<FunctionOperation<sine>>},
    {"cos", decode_approximate_function<FunctionOperation<cosine>>},
    {"tanh", decode_approximate_function<FunctionOperation<hyperbolic_tangent>>},
};

}  // namespace

std::span<const Opcode> floating_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

// Decodes an instruction's operands and gives them, row by row, to the path that multiplies; sees
// to NaN and infinity, which no path knows.

#include "emulator/tensor_core.hpp"

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "emulator/tensor_core/operands.hpp"
#include "emulator/tensor_core/row.hpp"

namespace abyssal::emulator {
namespace tensor_core {
namespace {

// Columns of a block: the largest instruction's.
constexpr int kBlock = 256;
static_assert(kBlock % kColumnStep == 0);

constexpr int kFp8FractionBits = 13;
constexpr int kFractionBits = 25;

// What the recorded H100 and H200 data do not decide, and where the rule comes from:
// - the smallest exponent of alignment, 7 below that of the output's normal numbers: Khattak and
//   Mikaitis's H100 model (MMA-Sim's goes no lower than 2**-126; a difference shows in sums of
//   BF16 or TF32 products all of which are below 2**-126, and in ties between FP16's subnormals);
// - FP8 with C != 0, FP8 with FP16 accumulators, mixed FP8 types, the codes of NaN, TF32's NaNs
//   that become infinities as their low bits are dropped: MMA-Sim, which its authors compared
//   with Hopper's wgmma bit by bit on random codes (the published outputs of FP8 with FP16
//   accumulators are mma.sync's, which Hopper computes with FP16 instructions);
// - a sum below zero that underflows gives -0, as IEEE 754 has it (MMA-Sim's model has +0).
template <typename Element>
Rounding rounding_of(TensorType type) {
  const bool fp8 = format_of(type).bytes == 1;
  const int fraction_bits = fp8 ? kFp8FractionBits : kFractionBits;
  if constexpr (sizeof(Element) == sizeof(uint16_t)) return {fraction_bits, -21, 10, -14, true};
  return {fraction_bits, -133, fp8 ? kFp8FractionBits : 23, -126, false};
}

// FP32 or FP16 accumulators in memory. Steps in elements.
template <typename Element>
struct Accumulators {
  Element* data;
  ptrdiff_t row_step, column_step;

  Element& at(int row, int column) const { return data[row * row_step + column * column_step]; }
};

float widen(float value) { return value; }
float widen(uint16_t code) { return from_f16(code); }
void narrow(float value, float& to) { to = value; }
void narrow(float value, uint16_t& to) { to = to_f16(value); }

template <typename Exponent>
Exponent exponent_of(const Factor& factor) {
  return static_cast<Exponent>(factor.value == 0.0f ? kExponentOfZero<Exponent> : factor.exponent);
}

// Up to kBlock rows of B, transposed: element k of all of them side by side.
template <typename Real, typename Exponent>
struct Columns {
  static constexpr int kMostDepth = kTensorCoreRowBytes / sizeof(Exponent);

  alignas(64) Real values[kMostDepth * kBlock];
  alignas(64) Exponent exponents[kMostDepth * kBlock];
  bool finite[kBlock];
  bool all_finite = true;
  int padded;  // columns, rounded up

  Columns(const Operand& b) : padded((b.rows + kColumnStep - 1) / kColumnStep * kColumnStep) {
    std::fill_n(finite, kBlock, true);
    with_decoder(b.type, [&](auto decode) {
      for (int k = 0; k < depth_of(b.type); ++k) {
        Real* const value = values + k * kBlock;
        Exponent* const exponent = exponents + k * kBlock;
        for (int c = 0; c < b.rows; ++c) {
          const Factor factor = decode(b.row(c), k);
          value[c] = factor.value;
          exponent[c] = exponent_of<Exponent>(factor);
          finite[c] = finite[c] and factor.finite;
        }
        std::fill(value + b.rows, value + padded, Real{0});
        std::fill(exponent + b.rows, exponent + padded, exponent_of<Exponent>({}));
      }
    });
    for (int c = 0; c < b.rows; ++c) all_finite = all_finite and finite[c];
  }
};

// One row of C on its way in, and of D on its way out.
struct AccumulatorRow {
  alignas(64) float c[kBlock] = {};
  alignas(64) float d[kBlock];

  template <typename Element>
  void load(const Accumulators<Element>& from, int row, int columns) {
    if (from.column_step == 1) {
      const Element* const elements = &from.at(row, 0);
      for (int i = 0; i < columns; ++i) c[i] = widen(elements[i]);
    } else {
      for (int i = 0; i < columns; ++i) c[i] = widen(from.at(row, i));
    }
  }

  template <typename Element>
  void store(const Accumulators<Element>& to, int row, int columns) const {
    if (to.column_step == 1) {
      Element* const elements = &to.at(row, 0);
      for (int i = 0; i < columns; ++i) narrow(d[i], elements[i]);
    } else {
      for (int i = 0; i < columns; ++i) narrow(d[i], to.at(row, i));
    }
  }
};

// An output of which at least one term is not finite.
float special_result(const Operand& a, int row, const Operand& b, int column, float c) {
  bool positive = c == std::numeric_limits<float>::infinity();
  bool negative = c == -std::numeric_limits<float>::infinity();
  bool nan = std::isnan(c);
  for (int k = 0; k < depth_of(a.type); ++k) {
    const float x = decode_special(a.type, a.row(row), k);
    const float y = decode_special(b.type, b.row(column), k);
    if (std::isfinite(x) and std::isfinite(y)) continue;
    const float product = x * y;  // 0 x Inf is NaN
    nan = nan or std::isnan(product);
    positive = positive or product > 0;
    negative = negative or product < 0;
  }
  if (nan or (positive and negative)) return std::bit_cast<float>(0x7fffffffu);
  const float infinity = std::numeric_limits<float>::infinity();
  return positive ? infinity : -infinity;
}

// The row of A that the columns of B are multiplied with.
template <typename Real, typename Exponent>
struct Factors {
  Real values[kTensorCoreRowBytes];
  Exponent exponents[kTensorCoreRowBytes];
  bool finite = true;

  Factors(const Operand& a, int row) {
    with_decoder(a.type, [&](auto decode) {
      for (int k = 0; k < depth_of(a.type); ++k) {
        const Factor factor = decode(a.row(row), k);
        values[k] = factor.value;
        exponents[k] = exponent_of<Exponent>(factor);
        finite = finite and factor.finite;
      }
    });
  }
};

template <typename Real, typename Exponent, typename Element>
void multiply_block(MultiplyRow<Real, Exponent> multiply_row, const Operand& a, const Operand& b,
                    const Accumulators<Element>& d, bool accumulate) {
  const Rounding rounding = rounding_of<Element>(a.type);
  const Columns<Real, Exponent> columns(b);
  AccumulatorRow accumulators;
  for (int r = 0; r < a.rows; ++r) {
    const Factors<Real, Exponent> factors(a, r);
    if (accumulate) accumulators.load(d, r, b.rows);
    const bool c_finite =
        multiply_row({factors.values, factors.exponents, columns.values, columns.exponents, kBlock,
                      depth_of(a.type), columns.padded, accumulators.c, accumulators.d},
                     rounding);
    if (!(c_finite and factors.finite and columns.all_finite)) {
      for (int c = 0; c < b.rows; ++c) {
        const float given = accumulators.c[c];
        if (factors.finite and columns.finite[c] and std::isfinite(given)) continue;
        accumulators.d[c] = special_result(a, r, b, c, given);
      }
    }
    accumulators.store(d, r, b.rows);
  }
}

const Path& path_of(TensorCorePath path) {
  const std::vector<TensorCorePath>& present = tensor_core_paths();
  if (std::find(present.begin(), present.end(), path) == present.end()) {
    throw std::invalid_argument("path must be one that this processor has");
  }
#if defined(__x86_64__)
  if (path == TensorCorePath::avx512) return kAvx512Path;
  if (path == TensorCorePath::avx2) return kAvx2Path;
#endif
  return kPlainPath;
}

template <typename Element>
void multiply_block(const Path& path, const Operand& a, const Operand& b,
                    const Accumulators<Element>& d, bool accumulate) {
  const bool small = format_of(a.type).exponent_bits <= 5;
  if (small) return multiply_block(path.small_exponents, a, b, d, accumulate);
  const ExponentRange of_a = exponent_range(a);
  const ExponentRange of_b = exponent_range(b);
  const bool any = of_a.smallest <= of_a.largest and of_b.smallest <= of_b.largest;
  if (any and (of_a.smallest + of_b.smallest < kSmallestFloatProduct or
               of_a.largest + of_b.largest > kLargestFloatProduct)) {
    return multiply_block(path.double_products, a, b, d, accumulate);
  }
  return multiply_block(path.float_products, a, b, d, accumulate);
}

// The caller's thread may flush subnormals (torch.set_flush_denormal) or round otherwise.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t saved_;
};

void check_types(TensorType a, TensorType b, bool f16_accumulators) {
  const bool fp8 = format_of(a).bytes == 1 and format_of(b).bytes == 1;
  if (a != b and !fp8) {
    throw std::invalid_argument(std::string("a is ") + format_of(a).name + " and b " +
                                format_of(b).name + ": only e4m3 and e5m2 can be mixed");
  }
  if (f16_accumulators and !fp8 and a != TensorType::f16) {
    throw std::invalid_argument(std::string("FP16 accumulators need operands of e4m3, e5m2 or ") +
                                "f16, not " + format_of(a).name);
  }
}

template <typename Element>
void multiply(Operand a, Operand b, Accumulators<Element> d, bool accumulate,
              TensorCorePath path_name) {
  const Path& path = path_of(path_name);
  if (a.rows == 0 or b.rows == 0) return;
  // Columns are what vectors hold: a narrow D is computed as its transpose.
  if (b.rows < kColumnStep and b.rows < a.rows) {
    std::swap(a, b);
    std::swap(d.row_step, d.column_step);
  }
  const DefaultFloatingPoint floating_point;
  for (int column = 0; column < b.rows; column += kBlock) {
    const Operand block{b.type, b.row(column), b.stride, std::min(kBlock, b.rows - column)};
    const Accumulators<Element> out{&d.at(0, column), d.row_step, d.column_step};
    multiply_block(path, a, block, out, accumulate);
  }
}

}  // namespace
}  // namespace tensor_core

const std::vector<TensorCorePath>& tensor_core_paths() {
  static const std::vector<TensorCorePath> paths = [] {
    std::vector<TensorCorePath> present{TensorCorePath::plain};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) present.push_back(TensorCorePath::avx2);
    if (__builtin_cpu_supports("avx512f") and __builtin_cpu_supports("avx512bw") and
        __builtin_cpu_supports("avx512dq") and __builtin_cpu_supports("avx512vl")) {
      present.push_back(TensorCorePath::avx512);
    }
#endif
    return present;
  }();
  return paths;
}

void tensor_core_f32(TensorType a_type, TensorType b_type, const std::byte* a, ptrdiff_t a_stride,
                     const std::byte* b, ptrdiff_t b_stride, float* d, ptrdiff_t d_stride, int rows,
                     int columns, bool accumulate, TensorCorePath path) {
  tensor_core::check_types(a_type, b_type, false);
  tensor_core::multiply<float>({a_type, a, a_stride, rows}, {b_type, b, b_stride, columns},
                               {d, d_stride, 1}, accumulate, path);
}

void tensor_core_f16(TensorType a_type, TensorType b_type, const std::byte* a, ptrdiff_t a_stride,
                     const std::byte* b, ptrdiff_t b_stride, uint16_t* d, ptrdiff_t d_stride,
                     int rows, int columns, bool accumulate, TensorCorePath path) {
  tensor_core::check_types(a_type, b_type, true);
  tensor_core::multiply<uint16_t>({a_type, a, a_stride, rows}, {b_type, b, b_stride, columns},
                                  {d, d_stride, 1}, accumulate, path);
}

}  // namespace abyssal::emulator

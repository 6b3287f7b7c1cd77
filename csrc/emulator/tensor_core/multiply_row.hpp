// The one algorithm of all paths, in GCC's vector types. A path's file includes this one and is
// compiled for its instruction set; the length of a vector follows from that.
//
// An aligned product is trunc(a * b * 2**(F - largest exponent)): both multiplications are exact
// (or the result is far below 1), and conversion to an integer cuts toward zero as the tensor core
// does. So a term costs two multiplications, a conversion and an addition.
//
// NOTE: everything here has internal linkage and nothing of the standard library is called. An
// inline function that is compiled with AVX-512 here and without it elsewhere would be one symbol
// to the linker, which may keep either.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/tensor_core/row.hpp"

namespace abyssal::emulator::tensor_core {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = kVectorBytes / sizeof(T);
};
template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
Vector<T> load(const T* values) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(values);
}

template <typename T>
void store(T* values, Vector<T> vector) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(values) = vector;
}

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

double power_of_two(int64_t exponent) { return bit_cast<double>((exponent + 1023) << 52); }

int max(int a, int b) { return a > b ? a : b; }

// Columns that are computed together: four vectors of Real, enough to hide latencies.
template <typename Real>
constexpr int kStep = 4 * VectorOf<Real>::kLanes;

// largest[c] = the largest exponent of a non-zero product of column c, or kNoExponent.
template <typename Real, typename Exponent>
void find_largest_exponents(const Row<Real, Exponent>& row, int column, int32_t* largest) {
  constexpr int kLanes = VectorOf<Exponent>::kLanes;
  constexpr int kVectors = kStep<Real> / kLanes;
  static_assert(kVectors > 0);
  Exponent found[kStep<Real>];
  for (int v = 0; v < kVectors; ++v) {
    const Exponent* b = row.b_exponents + column + v * kLanes;
    Vector<Exponent> most = load(b) + row.a_exponents[0];
    for (int k = 1; k < row.depth; ++k) {
      const Vector<Exponent> exponents = load(b + k * row.pitch) + row.a_exponents[k];
      most = exponents > most ? exponents : most;
    }
    store(found + v * kLanes, most);
  }
  for (int c = 0; c < kStep<Real>; ++c) {
    largest[c] = found[c] < kSmallestProduct<Exponent> ? kNoExponent : found[c];
  }
}

// sums[c] = the sum of aligned products of column c, in units of 2**(largest[c] - fraction_bits).
template <typename Real, typename Exponent>
void add_products(const Row<Real, Exponent>& row, int column, const int32_t* largest,
                  int fraction_bits, int32_t* sums) {
  constexpr int kLanes = VectorOf<Real>::kLanes;
  typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));
  // In FP32, a clamped exponent means that there is no non-zero product to align.
  constexpr int kSmallest = sizeof(Real) == 4 ? kSmallestFloatProduct : -1000;
  Real scales[kStep<Real>];
  for (int c = 0; c < kStep<Real>; ++c) {
    scales[c] = static_cast<Real>(power_of_two(fraction_bits - max(largest[c], kSmallest)));
  }
  const Vector<Real> scale0 = load(scales), scale1 = load(scales + kLanes),
                     scale2 = load(scales + 2 * kLanes), scale3 = load(scales + 3 * kLanes);
  Integers sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  const Real* b = row.b_values + column;
  for (int k = 0; k < row.depth; ++k, b += row.pitch) {
    const Real a = row.a_values[k];
    sum0 += __builtin_convertvector(load(b) * a * scale0, Integers);
    sum1 += __builtin_convertvector(load(b + kLanes) * a * scale1, Integers);
    sum2 += __builtin_convertvector(load(b + 2 * kLanes) * a * scale2, Integers);
    sum3 += __builtin_convertvector(load(b + 3 * kLanes) * a * scale3, Integers);
  }
  const Integers all[] = {sum0, sum1, sum2, sum3};
  __builtin_memcpy(sums, all, sizeof(all));
}

// The finite numbers of C, and what alignment sees of them. Returns whether all are finite.
bool take_c(const float* c, int columns, const Rounding& rounding, float* finite_c,
            int32_t* largest) {
  const int smallest_exponent = rounding.output_exponent;
  int32_t largest_field = 0;
  for (int i = 0; i < columns; ++i) {
    const int32_t magnitude = bit_cast<int32_t>(c[i]) & 0x7fffffff;
    const int32_t field = magnitude >> 23;
    largest_field = max(largest_field, field);
    finite_c[i] = field == 0xff ? 0.0f : c[i];
    const int32_t exponent = max(field - 127, smallest_exponent);
    largest[i] = max(largest[i], magnitude == 0 ? kNoExponent : exponent);
    largest[i] = max(largest[i], rounding.smallest_exponent);
  }
  return largest_field != 0xff;
}

enum class Result { normal_or_exact, any, nearest };

// Toward zero. A normal result loses the low bits of its significand.
double round_normal(double x, const Rounding& rounding) {
  const uint64_t kept = ~uint64_t{0} << (52 - rounding.output_bits);
  return bit_cast<double>(bit_cast<uint64_t>(x) & kept);
}

// Toward zero. A subnormal result is a whole number of the smallest one; below, it is -0 or +0.
double round_any(double x, const Rounding& rounding) {
  const bool subnormal = __builtin_fabs(x) < power_of_two(rounding.output_exponent);
  const int units_exponent = rounding.output_bits - rounding.output_exponent;
  const double units = (subnormal ? x : 0.0) * power_of_two(units_exponent);
  const double rounded = static_cast<int32_t>(units) * power_of_two(-units_exponent);
  return subnormal ? rounded : round_normal(x, rounding);
}

// To nearest, ties to even: beside 1.5 * 2**52 units, there is no room for a fraction of a unit.
double round_to_nearest(double x, const Rounding& rounding) {
  const int exponent = static_cast<int>(bit_cast<uint64_t>(x) >> 52 & 0x7ff) - 1023;
  const int unit = max(exponent, rounding.output_exponent) - rounding.output_bits;
  const double magic = 1.5 * power_of_two(52 + unit);
  return x + magic - magic;
}

// Adds C, aligned like a product, to the sums, and rounds.
template <Result kResult>
void add_c_and_round(const int32_t* sums, const int32_t* largest, const float* c, int columns,
                     const Rounding& rounding, float* d) {
  const Rounding r = rounding;
  for (int i = 0; i < columns; ++i) {
    const int unit = largest[i] - r.fraction_bits;
    const int32_t aligned_c = static_cast<int32_t>(c[i] * power_of_two(-unit));
    // Either is below 2**31; their sum may not be.
    const double sum = static_cast<double>(sums[i]) + static_cast<double>(aligned_c);
    const double x = sum * power_of_two(unit);
    if constexpr (kResult == Result::normal_or_exact) {
      d[i] = static_cast<float>(round_normal(x, r));
    } else {
      const double result = kResult == Result::any ? round_any(x, r) : round_to_nearest(x, r);
      d[i] = static_cast<float>(__builtin_copysign(result, x));
    }
  }
}

template <typename Real, typename Exponent>
bool multiply_row(const Row<Real, Exponent>& row, const Rounding& rounding) {
  constexpr int kColumns = kStep<Real>;
  static_assert(kColumnStep % kColumns == 0);
  // From this largest exponent on, sums are multiples of the smallest subnormal result, and so a
  // result that is subnormal is exact.
  const int exact_if_subnormal =
      rounding.output_exponent - rounding.output_bits + rounding.fraction_bits;
  bool c_finite = true;
  for (int column = 0; column < row.columns; column += kColumns) {
    int32_t largest[kColumns];
    int32_t sums[kColumns];
    float c[kColumns];
    find_largest_exponents(row, column, largest);
    c_finite &= take_c(row.c + column, kColumns, rounding, c, largest);
    add_products(row, column, largest, rounding.fraction_bits, sums);
    int32_t smallest = largest[0];
    for (int i = 0; i < kColumns; ++i) smallest = smallest < largest[i] ? smallest : largest[i];
    const auto finish = rounding.nearest                ? add_c_and_round<Result::nearest>
                        : smallest < exact_if_subnormal ? add_c_and_round<Result::any>
                                                        : add_c_and_round<Result::normal_or_exact>;
    finish(sums, largest, c, kColumns, rounding, row.d + column);
  }
  return c_finite;
}

constexpr Path kThisPath{multiply_row<float, int8_t>, multiply_row<float, int16_t>,
                         multiply_row<double, int16_t>};

}  // namespace
}  // namespace abyssal::emulator::tensor_core

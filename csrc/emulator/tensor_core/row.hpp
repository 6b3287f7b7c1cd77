// What the dispatcher hands to the code that is compiled once for each instruction set: one row of
// an instruction's outputs and its decoded operands, their NaN and infinity counted as zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace abyssal::emulator::tensor_core {

// Rows of decoded operands are padded to this many columns, a multiple of every path's step.
inline constexpr int kColumnStep = 64;

// The "exponent" of zero. With any other factor's, it adds up to less than the smallest exponent of
// a product that is not zero; two of them still fit the type.
template <typename Exponent>
inline constexpr int kExponentOfZero = sizeof(Exponent) == 1 ? -64 : -1024;
template <typename Exponent>
inline constexpr int kSmallestProduct = 2 * (sizeof(Exponent) == 1 ? -14 : -126);

// The largest exponent where no term is non-zero.
inline constexpr int kNoExponent = -2048;

// Exponents of products that FP32 multiplies exactly. What then underflows as it is aligned is far
// below 1, and is cut.
inline constexpr int kSmallestFloatProduct = -100;
inline constexpr int kLargestFloatProduct = 120;

struct Rounding {
  int fraction_bits;      // F: what alignment keeps of a term
  int smallest_exponent;  // alignment goes no lower
  int output_bits;        // fraction bits of the result
  int output_exponent;    // of the smallest normal result
  bool nearest;           // to nearest even instead of toward zero
};

// Real holds a factor's value and an aligned product exactly; Exponent the sum of two exponents.
template <typename Real, typename Exponent>
struct Row {
  const Real* a_values;         // [depth]
  const Exponent* a_exponents;  // [depth]
  const Real* b_values;         // [depth, pitch]
  const Exponent* b_exponents;  // [depth, pitch]
  ptrdiff_t pitch;              // >= columns
  int depth;                    // products of one output
  int columns;                  // multiple of kColumnStep
  const float* c;               // [columns]
  float* d;                     // [columns] on the output's grid; FP16's overflow is 2**16
};

// Returns whether C is finite throughout; its infinities and NaN count as zero, too.
template <typename Real, typename Exponent>
using MultiplyRow = bool (*)(const Row<Real, Exponent>&, const Rounding&);

struct Path {
  MultiplyRow<float, int8_t> small_exponents;
  MultiplyRow<float, int16_t> float_products;
  MultiplyRow<double, int16_t> double_products;
};

extern const Path kPlainPath;
#if defined(__x86_64__)
extern const Path kAvx2Path;
extern const Path kAvx512Path;
#endif

}  // namespace abyssal::emulator::tensor_core

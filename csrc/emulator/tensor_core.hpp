// The arithmetic of Hopper's tensor cores, bit for bit.
//
// For one instruction and one output, the terms are its exact products (K of them, 32 bytes of
// operand a row) and the accumulator C. A product's exponent is the sum of its factors' exponents;
// it is not normalised, and a subnormal factor keeps the smallest exponent of its type. Every term
// is cut toward zero to F fraction bits below the largest exponent of a non-zero term, the terms
// are added exactly, and the sum is rounded once:
//
//   operands        C and D    F   rounding
//   E4M3, E5M2      FP32      13   toward zero to 13 fraction bits: the low 10 bits of D are 0
//   FP16 BF16 TF32  FP32      25   toward zero to FP32
//   E4M3, E5M2      FP16      13   to nearest even
//   FP16            FP16      25   to nearest even
//
// A NaN, 0 x Inf, or infinities of both signs give 0x7fffffff (FP16: 0x7fff), other infinities
// themselves. Overflow gives infinity, subnormals are kept, and a sum of zero is +0.
//
// Sources: P. Xie et al., MMA-Sim (arXiv 2511.10909); F. A. Khattak and M. Mikaitis, Accurate
// Models of NVIDIA Tensor Cores (arXiv 2512.07004), who publish outputs of an H100 and an H200.
// Those confirm every row of the table but the third, FP8 with C = 0 only. What rests on the papers
// alone, or on us, is listed beside the constants in tensor_core.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace abyssal::emulator {

enum class TensorType { e4m3, e5m2, f16, bf16, tf32 };

// Which instructions of the host's processor compute. All give the same bits.
enum class TensorCorePath { plain, avx2, avx512 };

// Those that this machine has, the fastest last.
const std::vector<TensorCorePath>& tensor_core_paths();

// Bytes of operand that one instruction reads from a row.
inline constexpr int kTensorCoreRowBytes = 32;

// D[r][c] = sum over k of A[r][k] * B[c][k] (+ D[r][c] if `accumulate`).
//
// a: `rows` rows of 32 bytes, a_stride bytes apart. b: `columns` rows of 32 bytes, b_stride bytes
// apart. d: row-major, d_stride elements apart. The two FP8 types may be mixed, others not. Of
// TF32's 32 bits, the upper 19 are read.
void tensor_core_f32(TensorType a_type, TensorType b_type, const std::byte* a, ptrdiff_t a_stride,
                     const std::byte* b, ptrdiff_t b_stride, float* d, ptrdiff_t d_stride, int rows,
                     int columns, bool accumulate,
                     TensorCorePath path = tensor_core_paths().back());

// The same with FP16 accumulators, for operands of FP8 or FP16.
void tensor_core_f16(TensorType a_type, TensorType b_type, const std::byte* a, ptrdiff_t a_stride,
                     const std::byte* b, ptrdiff_t b_stride, uint16_t* d, ptrdiff_t d_stride,
                     int rows, int columns, bool accumulate,
                     TensorCorePath path = tensor_core_paths().back());

}  // namespace abyssal::emulator

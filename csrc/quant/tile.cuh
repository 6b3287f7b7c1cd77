// What the quantising kernels share: pieces of rows, and a tile's scale and codes.
//
// Every operation is rounded as IEEE 754 says, in the order of abyssal.reference.quantize, so that
// results equal it bit for bit.
#pragma once

#include "hopper/compiler.cuh"
#include "hopper/convert.cuh"
#include "hopper/fp8.cuh"
#include "hopper/math.cuh"
#include "hopper/memory.cuh"
#include "quant/tile.hpp"

namespace abyssal::quant {

inline constexpr float kNan = __builtin_nanf("");  // 0x7FC00000

// Types of values. widen: number `index` of a word, as FP32. larger: of the values of two words,
// those of larger magnitudes, or NaN; their signs mean nothing.
struct Bf16 {
  using Bits = uint16_t;
  static __device__ uint32_t larger(uint32_t a, uint32_t b) {
    return hopper::max_magnitudes_bf16x2(a, b);
  }
  static __device__ float widen(uint32_t word, int index) {
    return __uint_as_float(index == 0 ? word << 16 : word & 0xFFFF0000);
  }
};

struct Fp32 {
  using Bits = uint32_t;
  static __device__ uint32_t larger(uint32_t a, uint32_t b) {
    const float magnitude = fabsf(__uint_as_float(a));
    return __float_as_uint(hopper::max_or_nan(magnitude, fabsf(__uint_as_float(b))));
  }
  static __device__ float widen(uint32_t word, int) { return __uint_as_float(word); }
};

struct E4m3 {
  using Bits = uint8_t;
};

// 16 bytes of values.
template <typename Value>
union Piece {
  static constexpr int kValues = 16 / sizeof(typename Value::Bits);
  uint4 words;
  uint32_t word[4];
  typename Value::Bits bits[kValues];

  __device__ float value(int i) const {
    constexpr int kInWord = kValues / 4;
    return Value::widen(word[i / kInWord], i % kInWord);
  }
};

// The largest magnitude of pieces, or NaN.
template <typename Value, int kCount>
__device__ float largest_magnitude(const Piece<Value> (&pieces)[kCount]) {
  uint32_t largest = pieces[0].word[0];
#pragma unroll
  for (int i = 1; i < 4 * kCount; ++i) {
    largest = Value::larger(largest, pieces[i / 4].word[i % 4]);
  }
  float amax = fabsf(Value::widen(largest, 0));
#pragma unroll
  for (int i = 1; i < Piece<Value>::kValues / 4; ++i) {
    amax = hopper::max_or_nan(amax, fabsf(Value::widen(largest, i)));
  }
  return amax;
}

// As hopper::unlearn. nvcc 13.0 otherwise keeps the FP32 values of a thread from their first use to
// their last, twice the registers of BF16 pieces, and spills.
template <typename Value, int kCount>
__device__ void unlearn(Piece<Value> (&pieces)[kCount]) {
#pragma unroll
  for (Piece<Value>& piece : pieces) hopper::unlearn(piece.words);
}

// The values, rounded to the type.
template <typename Value>
__device__ Piece<Value> to_piece(const float (&values)[Piece<Value>::kValues]) {
  Piece<Value> piece;
  if constexpr (sizeof(typename Value::Bits) == 2) {
    const auto pair = [&](int i) { return hopper::to_bf16x2(values[2 * i], values[2 * i + 1]); };
    piece.words = make_uint4(pair(0), pair(1), pair(2), pair(3));
  } else {
    const auto word = [&](int i) { return __float_as_uint(values[i]); };
    piece.words = make_uint4(word(0), word(1), word(2), word(3));
  }
  return piece;
}

// The values from `column` on of a row that has `columns`; 0 beyond. If kAligned, a piece is
// 16-byte aligned and either inside or outside. kOnce: nobody will read them again.
template <typename Value, bool kAligned, bool kOnce = true>
__device__ Piece<Value> load_piece(const typename Value::Bits* row, int column, int columns) {
  Piece<Value> piece;
  piece.words = make_uint4(0, 0, 0, 0);
  if constexpr (kAligned) {
    if (column < columns) {
      const auto* from = reinterpret_cast<const uint4*>(row + column);
      piece.words = kOnce ? hopper::load_once(from) : __ldg(from);
    }
  } else {
#pragma unroll
    for (int i = 0; i < Piece<Value>::kValues; ++i) {
      if (column + i < columns) piece.bits[i] = row[column + i];
    }
  }
  return piece;
}

// Stores a piece as far as it is inside; kAligned as for load_piece.
template <typename Value, bool kAligned>
__device__ void store_piece(typename Value::Bits* row, int column, int columns,
                            const Piece<Value>& piece) {
  if constexpr (kAligned) {
    if (column < columns) hopper::store_once(row + column, piece.words);
  } else {
#pragma unroll
    for (int i = 0; i < Piece<Value>::kValues; ++i) {
      if (column + i < columns) row[column + i] = piece.bits[i];
    }
  }
}

// Stores the codes of a piece, 16, 8 or 4 bytes, as far as they are inside. If kAligned, they are
// aligned to their size, and either inside or outside.
template <bool kAligned, int kWords>
__device__ void store_codes(uint8_t* row, int column, int columns,
                            const uint32_t (&codes)[kWords]) {
  if constexpr (kAligned) {
    if (column >= columns) return;
    if constexpr (kWords == 4) {
      *reinterpret_cast<uint4*>(row + column) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(row + column) = make_uint2(codes[0], codes[1]);
    } else {
      static_assert(kWords == 1, "codes of 4, 8 or 16 values");
      *reinterpret_cast<uint32_t*>(row + column) = codes[0];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kWords; ++i) {
      if (column + i < columns) row[column + i] = codes[i / 4] >> (8 * (i % 4));
    }
  }
}

// The smallest power of two that is not below a positive, normal number: adding the largest
// fraction carries into the exponent unless the fraction was 0.
__device__ inline float round_up_to_power_of_two(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x7FFFFF) & 0x7F800000);
}

// The scale of a tile with this amax (NaN if the tile holds one), and its codes.
class TileScale {
 public:
  __device__ TileScale(float amax, TileOptions options)
      : finite_(amax < __uint_as_float(0x7F800000)) {
    scale_ = __fdiv_rn(fmaxf(amax, options.amax_floor), hopper::kE4m3Max);
    if (options.pow2) scale_ = round_up_to_power_of_two(scale_);
    if (amax == 0) scale_ = 1.0f;
    inverse_ = __frcp_rn(scale_);
  }

  // What is written beside the codes: NaN for a tile that holds Inf or NaN.
  __device__ float stored() const { return finite_ ? scale_ : kNan; }

  // What to multiply values by before they are converted to codes: NaN for such a tile, which makes
  // all its codes NaN. For threads that encode values of a tile whose scale another computed.
  __device__ float inverse() const { return finite_ ? inverse_ : kNan; }

  // The codes of four values of the tile, the first in the lowest byte.
  __device__ uint32_t encode(float first, float second, float third, float fourth) const {
    const uint32_t codes =
        hopper::to_e4m3x4(first * inverse_, second * inverse_, third * inverse_, fourth * inverse_);
    return finite_ ? codes : hopper::kFourE4m3Nans;
  }

 private:
  bool finite_;
  float scale_;
  float inverse_;
};

}  // namespace abyssal::quant

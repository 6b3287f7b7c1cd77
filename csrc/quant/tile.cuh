// What the quantising kernels share: values of BF16 and FP32, and a tile's scale and codes.
//
// Every operation is rounded as IEEE 754 says, in the order of abyssal.reference.quantize, so that
// results equal it bit for bit.
#pragma once

#include "hopper/fp8.cuh"
#include "hopper/math.cuh"
#include "hopper/memory.cuh"
#include "quant/tile.hpp"

namespace abyssal::quant {

struct Bf16 {
  using Bits = uint16_t;
  static __device__ float widen(Bits bits) { return __uint_as_float(uint32_t{bits} << 16); }
};

struct Fp32 {
  using Bits = uint32_t;
  static __device__ float widen(Bits bits) { return __uint_as_float(bits); }
};

// 16 bytes of values.
template <typename Value>
union Piece {
  static constexpr int kValues = 16 / sizeof(typename Value::Bits);
  uint4 words;
  typename Value::Bits bits[kValues];
};

// The values from `column` on of a row that has `columns`; 0 beyond. If kAligned, a piece is
// 16-byte aligned and either inside or outside.
template <typename Value, bool kAligned>
__device__ Piece<Value> load_piece(const typename Value::Bits* row, int column, int columns) {
  Piece<Value> piece;
  piece.words = make_uint4(0, 0, 0, 0);
  if constexpr (kAligned) {
    if (column < columns) piece.words = hopper::load_once(row + column);
  } else {
#pragma unroll
    for (int i = 0; i < Piece<Value>::kValues; ++i) {
      if (column + i < columns) piece.bits[i] = row[column + i];
    }
  }
  return piece;
}

// The scale of a tile with this amax (NaN if the tile holds one), and its codes.
class TileScale {
 public:
  __device__ TileScale(float amax, float amax_floor, bool pow2)
      : finite_(amax < __uint_as_float(0x7F800000)) {
    scale_ = __fdiv_rn(fmaxf(amax, amax_floor), hopper::kE4m3Max);
    if (pow2) {  // adding the largest fraction carries into the exponent unless it was 0
      scale_ = __uint_as_float((__float_as_uint(scale_) + 0x7FFFFF) & 0x7F800000);
    }
    if (amax == 0) scale_ = 1.0f;
    inverse_ = __frcp_rn(scale_);
  }

  // What is written beside the codes: NaN for a tile that holds Inf or NaN.
  __device__ float stored() const { return finite_ ? scale_ : __uint_as_float(0x7FC00000); }

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

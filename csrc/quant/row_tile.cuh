// A 1x128 tile that neighbouring threads of a warp hold.
#pragma once

#include "quant/tile.cuh"

namespace abyssal::quant {

// Quantises the tile that kThreads neighbouring threads hold. `x`: my values; those of piece p are
// columns column_of(p) and on of the row. Codes are stored as far as they are inside of `columns`,
// as by store_codes. Returns the tile's scale as it is to be stored, to all of its threads.
template <int kThreads, bool kAligned, typename Value, int kPieces, typename ColumnOf>
__device__ float quantize_row_tile(const Piece<Value> (&x)[kPieces], uint8_t* codes_row,
                                   int columns, const ColumnOf& column_of, TileOptions options) {
  constexpr int kValues = Piece<Value>::kValues;
  float amax = largest_magnitude(x);
#pragma unroll
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    amax = hopper::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFF, amax, distance));
  }

  const TileScale scale(amax, options);
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    uint32_t codes[kValues / 4];
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      codes[i / 4] = scale.encode(x[piece].value(i), x[piece].value(i + 1), x[piece].value(i + 2),
                                  x[piece].value(i + 3));
    }
    store_codes<kAligned>(codes_row, column_of(piece), columns, codes);
  }
  return scale.stored();
}

}  // namespace abyssal::quant

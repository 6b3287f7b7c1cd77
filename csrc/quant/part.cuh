// What a thread holds of eight 1x128 tiles: 16 bytes of each. The 16 (BF16) or 32 (FP32) threads of
// a tile are neighbours. The eight tiles may be of eight rows (a square's) or of one.
#pragma once

#include "quant/square.cuh"

namespace abyssal::quant {

template <typename Value>
struct Part {
  using Square = quant::Square<Piece<Value>::kValues>;
  static constexpr int kTiles = Square::kRows;
  Piece<Value> x[kTiles];
};

// Where the tiles of a Part go: tile i to columns column(i) and on (of my piece) of the row at
// codes(i), as far as they are inside of `columns`, and its scale to *scale(i); if has(i).
template <typename Codes, typename Column, typename Scale, typename Has>
struct TilePlaces {
  Codes codes;
  Column column;
  Scale scale;
  Has has;
  int columns;
};
template <typename Codes, typename Column, typename Scale, typename Has>
TilePlaces(Codes, Column, Scale, Has, int) -> TilePlaces<Codes, Column, Scale, Has>;

// Scales and codes of the tiles. Thread i of a tile's answers for the scale of tile i.
template <bool kAligned, typename Value, typename Places>
__device__ void quantize_row_tiles(Part<Value>& part, const Places& to, TileOptions options) {
  using Square = Part<Value>::Square;
  constexpr int kValues = Piece<Value>::kValues;
  float amax[Part<Value>::kTiles];
#pragma unroll
  for (int tile = 0; tile < Part<Value>::kTiles; ++tile) {
    const Piece<Value> mine[] = {part.x[tile]};
    amax[tile] = largest_magnitude(mine);
  }
  unlearn(part.x);
  const TileScale scale(Square::reduce_rows(amax), options);
  const int mine = threadIdx.x % Part<Value>::kTiles;
  if (Square::piece() < Part<Value>::kTiles and to.has(mine)) *to.scale(mine) = scale.stored();
#pragma unroll
  for (int tile = 0; tile < Part<Value>::kTiles; ++tile) {
    const float inverse = __shfl_sync(0xFFFFFFFF, scale.inverse(), tile, Square::kPieces);
    const auto scaled = [&](int i) { return part.x[tile].value(i) * inverse; };
    uint32_t codes[kValues / 4];
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      codes[i / 4] = hopper::to_e4m3x4(scaled(i), scaled(i + 1), scaled(i + 2), scaled(i + 3));
    }
    if (to.has(tile)) store_codes<kAligned>(to.codes(tile), to.column(tile), to.columns, codes);
  }
}

}  // namespace abyssal::quant

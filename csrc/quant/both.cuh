// A 128x128 square of values to E4M3 in both orientations: what the kernels do that write them.
//
// A block holds the square as square.cuh says, 8 rows x 16 bytes a thread. Rows are reduced by
// shuffles and leave from registers; columns are reduced by shuffles in a warp, then by shared
// memory, and their codes go through shared memory, so that 128 bytes of a column leave together.
#pragma once

#include "quant/groups.cuh"
#include "quant/part.cuh"

namespace abyssal::quant {

// A matrix in tiles of 1x128.
struct Rowwise {
  uint8_t* codes;       // [rows, columns], contiguous
  float* scale;         // [ceil(columns / 128), scale_pitch]
  int64_t scale_pitch;  // >= rows
  int32_t columns;
};

// A matrix in tiles of 128x1, transposed.
struct Transposed {
  uint8_t* codes;       // [columns, pitch], 16-byte aligned
  float* scale;         // [pitch / 128, scale_pitch]
  int64_t pitch;        // a multiple of 128
  int64_t scale_pitch;  // >= columns
  int32_t columns;
};

// One square at a time; another may follow without a barrier.
template <typename Value>
struct SquareMemory {
  typename Part<Value>::Square::PartialAmax partial;
  typename Part<Value>::Square::Columns inverse;
  typename Part<Value>::Square::Codes codes;
};

// Scales and codes of the rows, of 1x128 tiles. `tile`: which of the row.
template <bool kAligned, typename Value>
__device__ void quantize_rows(Part<Value>& part, const RowBlock& block, int tile, const Rowwise& to,
                              TileOptions options) {
  using Square = Part<Value>::Square;
  const int row_of_block = Square::group() * Square::kRows;
  const int64_t first_row = int64_t{block.first} + row_of_block;
  const int rows = block.rows - row_of_block;
  const int column = tile * kTile + Square::piece() * Piece<Value>::kValues;
  uint8_t* codes = to.codes + first_row * to.columns;
  float* scale = to.scale + tile * to.scale_pitch + first_row;
  const TilePlaces places{[&](int row) { return codes + int64_t{row} * to.columns; },
                          [&](int) { return column; }, [&](int row) { return scale + row; },
                          [&](int row) { return row < rows; }, to.columns};
  quantize_row_tiles<kAligned>(part, places, options);
}

// Scales of the columns, of 128x1 tiles, by one thread each. `number`: of the block of rows.
template <typename Value>
__device__ void scale_columns(const Part<Value>& part, SquareMemory<Value>& shared, int number,
                              int tile, const Transposed& to, TileOptions options) {
  using Square = Part<Value>::Square;
  constexpr int kValues = Piece<Value>::kValues;
  Piece<Value> largest = part.x[0];
#pragma unroll
  for (int row = 1; row < Square::kRows; ++row) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      largest.word[word] = Value::larger(largest.word[word], part.x[row].word[word]);
    }
  }
  float amax[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) amax[i] = fabsf(largest.value(i));
  Square::reduce_columns(amax, shared.partial);
  __syncthreads();
  if (threadIdx.x < kTile) {
    const int mine = threadIdx.x;
    const TileScale scale(Square::column_amax(shared.partial, mine), options);
    shared.inverse[mine] = scale.inverse();
    if (tile * kTile + mine < to.columns) {
      to.scale[number * to.scale_pitch + tile * kTile + mine] = scale.stored();
    }
  }
}

// After scale_columns: the codes of the columns.
template <typename Value>
__device__ void quantize_columns(Part<Value>& part, SquareMemory<Value>& shared, int number,
                                 int tile, const Transposed& to) {
  using Square = Part<Value>::Square;
  __syncthreads();
  unlearn(part.x);
#pragma unroll
  for (int four = 0; four < Piece<Value>::kValues / 4; ++four) {
    const float4 inverses = shared.inverse.four(Square::piece(), four);
    const float inverse[4] = {inverses.x, inverses.y, inverses.z, inverses.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * four + j;
      auto scaled = [&](int row) { return part.x[row].value(i) * inverse[j]; };
      shared.codes.set(i,
                       make_uint2(hopper::to_e4m3x4(scaled(0), scaled(1), scaled(2), scaled(3)),
                                  hopper::to_e4m3x4(scaled(4), scaled(5), scaled(6), scaled(7))));
    }
  }
  __syncthreads();
  Square::template store_transposed<true>(
      shared.codes, to.codes + int64_t{tile} * kTile * to.pitch + int64_t{number} * kTile, to.pitch,
      kTile, to.columns - tile * kTile);
}

}  // namespace abyssal::quant

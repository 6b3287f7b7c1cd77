// A 128x128 square of a matrix, held by a block: the largest magnitudes of its rows and columns,
// and its codes, transposed.
//
// Threads: each holds 8 neighbouring rows of one piece, 16 bytes of each, so that the loads of a
// row are contiguous over threads, and 8 codes of a column are a thread's own:
//
//          piece 0   piece 1  ...  piece kPieces - 1
//   rows 0-7     t0        t1      ...                      kPieces = 32 (FP32), 16 (BF16), 8 (FP8)
//   rows 8-15    tP        tP+1    ...
//   ...                                                     16 kPieces threads
//
// A maximum over threads is taken by halving: partners exchange what the other will answer for, so
// that 8 maxima over 8 threads cost 4 + 2 + 1 shuffles, not 8 * 3.
#pragma once

#include "hopper/math.cuh"
#include "hopper/memory.cuh"
#include "quant/tile.cuh"

namespace abyssal::quant {

// `kValues`: of a matrix, in 16 bytes.
template <int kValues>
struct Square {
  static constexpr int kRows = 8;  // of a thread
  static constexpr int kGroups = kTile / kRows;
  static constexpr int kPieces = kTile / kValues;
  static constexpr int kThreads = square_threads(16 / kValues);
  static_assert(kThreads == kGroups * kPieces);
  static constexpr int kWarps = kThreads / 32;
  static_assert(kPieces >= 8 and kPieces <= 32, "a warp holds whole rows");

  static __device__ int group() { return threadIdx.x / kPieces; }
  static __device__ int piece() { return threadIdx.x % kPieces; }

  // Of each thread's `amax`, its maxima of each row: that of row `threadIdx.x % 8` of the group.
  static __device__ float reduce_rows(float (&amax)[kRows]) {
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2) exchange<kRows>(amax, half, half);
#pragma unroll
    for (int distance = kRows; distance < kPieces; distance *= 2) {
      amax[0] = hopper::max_or_nan(amax[0], __shfl_xor_sync(0xFFFFFFFF, amax[0], distance));
    }
    return amax[0];
  }

  // A number for each column of the square. Fours of neighbours are placed so that neither threads
  // that hold neighbouring pieces nor threads that stand for neighbouring columns hit one bank.
  struct Columns {
    static constexpr int kFours = kValues / 4;  // of a piece
    static constexpr int kStep = kPieces + 32 / kValues;
    float4 fours[(kFours - 1) * kStep + kPieces];

    __device__ float4& four(int piece, int index) { return fours[index * kStep + piece]; }
    __device__ float& operator[](int column) {
      return reinterpret_cast<float*>(&four(column / kValues, column % kValues / 4))[column % 4];
    }
  };
  using PartialAmax = Columns[kWarps];

  // Of each thread's `amax`, its maxima of each column: those of the warp's, in shared memory.
  static __device__ void reduce_columns(float (&amax)[kValues], PartialAmax& partial) {
    // Each thread of the 32 / kPieces that share a piece ends with 4 of the columns.
#pragma unroll
    for (int half = kValues / 2; half >= 4; half /= 2) {
      exchange<kValues>(amax, half, half * 32 / kValues);
    }
    partial[threadIdx.x / 32].four(piece(), threadIdx.x % 32 / kPieces) =
        make_float4(amax[0], amax[1], amax[2], amax[3]);
  }

  // After a barrier: a column's largest magnitude.
  static __device__ float column_amax(PartialAmax& partial, int column) {
    float amax = 0;
#pragma unroll
    for (Columns& of_warp : partial) amax = hopper::max_or_nan(amax, of_warp[column]);
    return amax;
  }

  // The codes, transposed: 128 bytes for each column. The 8 bytes of a thread's rows are moved by
  // its piece (exclusive or), or all threads of a row would write to the same banks.
  struct alignas(16) Codes {
    uint2 eights[kTile][kGroups];

    __device__ void set(int column_of_piece, uint2 codes) {
      eights[piece() * kValues + column_of_piece][group() ^ swizzle(piece())] = codes;
    }

    // Rows 16 * index and on of a column.
    __device__ uint4 sixteen(int column, int index) const {
      const int moved = swizzle(column / kValues);
      const uint4 codes = reinterpret_cast<const uint4*>(eights[column])[index ^ (moved / 2)];
      return moved % 2 == 0 ? codes : make_uint4(codes.z, codes.w, codes.x, codes.y);
    }

   private:
    static __device__ int swizzle(int piece) {
      return kPieces < kGroups ? piece * (kGroups / kPieces) : piece % kGroups;
    }
  };

  // After a barrier: writes `rows` codes of `columns` columns, each column `pitch` bytes after the
  // one before. If kAligned, all addresses and `rows` are multiples of 16.
  template <bool kAligned>
  static __device__ void store_transposed(const Codes& codes, uint8_t* to, int64_t pitch, int rows,
                                          int columns) {
    constexpr int kInColumn = kTile / 16;
#pragma unroll
    for (int pass = 0; pass < kTile * kInColumn / kThreads; ++pass) {
      // Or places would be kept for a next matrix, in registers that are not there.
      int index = pass * kThreads + threadIdx.x;
      hopper::unlearn(index);
      const int column = index / kInColumn, row = index % kInColumn * 16;
      if (column >= columns or row >= rows) continue;
      const uint4 sixteen = codes.sixteen(column, row / 16);
      uint8_t* target = to + column * pitch + row;
      if constexpr (kAligned) {
        hopper::store_once(target, sixteen);
      } else {
        const uint32_t words[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
        store_codes<false>(target, 0, rows - row, words);
      }
    }
  }

 private:
  // The partner at `distance` and I hold 2 * half maxima each; afterwards, of both together, the
  // lower one of us the first half and the upper one the second.
  template <int kCount>
  static __device__ void exchange(float (&amax)[kCount], int half, int distance) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i >= half) break;
      const float kept = upper ? amax[half + i] : amax[i];
      const float given = upper ? amax[i] : amax[half + i];
      amax[i] = hopper::max_or_nan(kept, __shfl_xor_sync(0xFFFFFFFF, given, distance));
    }
  }
};

}  // namespace abyssal::quant

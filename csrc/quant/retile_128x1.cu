// Change the tiles of an E4M3 matrix [rows, columns] from 1x128 to 128x1, for weight gradients,
// which sum over rows: decode, transpose, encode.
//
//   half   = code * (scale / 2)                       half of each value
//   amax   = max |half| over the 128 rows of a tile; rows that a group's last tile lacks count as 0
//   scale' = the smallest power of two that is not below max(amax, 224 * 2^-126) / 224; 1 where
//            amax is 0
//   code'  = round to nearest even of clamp(half * (2 / scale'), +-448)
//
// Why halves: values reach 2^128, where FP32 ends (a tile of the largest FP32 numbers has scale
// 2^120 and codes of 256), and 1 / scale' would have to reach 2^126 * 2 if they were scaled down
// further. With scales that are powers of two, every product is exact, and so is code' unless
// |value| is below 2^-6 * scale', the normal numbers of E4M3. A tile that holds NaN, or a value of
// 2^129 or more: scale NaN and all codes NaN. abyssal.reference.quantize gives the same bits.
//
// Layout
//   as quantize_1x128_both.cu, which also has the layout of groups
//
// Threads
//   block        a 128x128 square: 128 rows of a group, 128 threads of 8 rows x 16 bytes
//                (square.cuh). Neighbouring blocks share rows.
//   columns      a column's maximum goes by shuffles in a warp, then by shared memory; its codes go
//                through shared memory, so that 128 bytes of a column leave together
//
// The kernel is bound by memory: 1 + 4/128 bytes in and as many out for each value. All loads of a
// thread (128 bytes) are issued before the first is used; they are decoded twice rather than kept
// in FP32, which would take 128 registers.

#include "hopper/convert.cuh"
#include "quant/groups.cuh"
#include "quant/retile_128x1.hpp"
#include "quant/square.cuh"

namespace abyssal::retile_128x1 {
namespace {

using quant::kTile;
using Piece = quant::Piece<quant::E4m3>;
using Square = quant::Square<Piece::kValues>;

struct SharedMemory {
  Square::PartialAmax partial;
  Square::Columns inverse;
  Square::Codes codes;
};

// The scale of a tile of which half the largest magnitude is `half_amax`.
class NewScale {
 public:
  explicit __device__ NewScale(float half_amax) : finite_(half_amax < __uint_as_float(0x7F800000)) {
    constexpr float kHalfMax = hopper::kE4m3Max / 2;
    scale_ = quant::round_up_to_power_of_two(
        __fdiv_rn(fmaxf(half_amax, kHalfMax * 0x1p-126f), kHalfMax));
    if (half_amax == 0) scale_ = 1.0f;
  }

  __device__ float stored() const { return finite_ ? scale_ : quant::kNan; }

  // 2 / scale, from 2^-120 to 2^127: the exponent's field e becomes 255 - e.
  __device__ float twice_inverse() const {
    return finite_ ? __uint_as_float(0x7F800000 - __float_as_uint(scale_)) : quant::kNan;
  }

 private:
  bool finite_;
  float scale_;
};

// A thread's part of the square.
struct Part {
  Piece codes[Square::kRows];
  float half_scale[Square::kRows];

  // Halves of the values of four neighbouring columns in a row.
  __device__ float4 halves(int row, int four) const {
    const uint32_t word = reinterpret_cast<const uint32_t*>(&codes[row].words)[four];
    const uint32_t low = hopper::e4m3x2_to_fp16x2(word),
                   high = hopper::e4m3x2_to_fp16x2(word >> 16);
    const float scale = half_scale[row];
    return {hopper::fp16_to_fp32(low) * scale, hopper::fp16_to_fp32(low >> 16) * scale,
            hopper::fp16_to_fp32(high) * scale, hopper::fp16_to_fp32(high >> 16) * scale};
  }
};

template <bool kAligned>
__device__ Part load(const Retile128x1Params& params, const quant::RowBlock& block, int tile) {
  const int row_of_block = Square::group() * Square::kRows;
  const int64_t first_row = int64_t{block.first} + row_of_block;
  const int column = tile * kTile + Square::piece() * Piece::kValues;
  Part part;
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    part.codes[row] = quant::load_piece<quant::E4m3, kAligned>(
        params.codes + (first_row + row) * params.row_stride, column,
        row_of_block + row < block.rows ? params.columns : 0);
  }
  // A row's scale is loaded by one thread and given to the others that hold pieces of it.
  static_assert(Square::kPieces == Square::kRows, "one thread for each row of the group");
  float mine = 0;
  if (row_of_block + Square::piece() < block.rows) {
    mine = params.scale[tile * params.scale_pitch + first_row + Square::piece()] * 0.5f;
  }
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
    part.half_scale[row] = __shfl_sync(0xFFFFFFFF, mine, row, Square::kPieces);
  }
  return part;
}

__device__ void reduce_columns(const Part& part, SharedMemory& shared) {
  float amax[Piece::kValues] = {};
#pragma unroll
  for (int row = 0; row < Square::kRows; ++row) {
#pragma unroll
    for (int four = 0; four < Piece::kValues / 4; ++four) {
      const float4 halves = part.halves(row, four);
      auto add = [&](int i, float half) {
        amax[4 * four + i] = hopper::max_or_nan(amax[4 * four + i], fabsf(half));
      };
      add(0, halves.x), add(1, halves.y), add(2, halves.z), add(3, halves.w);
    }
  }
  Square::reduce_columns(amax, shared.partial);
}

// New codes, to shared memory.
__device__ void encode_columns(const Part& part, SharedMemory& shared) {
#pragma unroll
  for (int four = 0; four < Piece::kValues / 4; ++four) {
    const float4 inverse = shared.inverse.four(Square::piece(), four);
    float4 x[Square::kRows];
#pragma unroll
    for (int row = 0; row < Square::kRows; ++row) x[row] = part.halves(row, four);
    auto encode = [&](int column, float inverse, auto of) {
      const auto scaled = [&](int row) { return of(x[row]) * inverse; };
      shared.codes.set(4 * four + column,
                       make_uint2(hopper::to_e4m3x4(scaled(0), scaled(1), scaled(2), scaled(3)),
                                  hopper::to_e4m3x4(scaled(4), scaled(5), scaled(6), scaled(7))));
    };
    encode(0, inverse.x, [](float4 v) { return v.x; });
    encode(1, inverse.y, [](float4 v) { return v.y; });
    encode(2, inverse.z, [](float4 v) { return v.z; });
    encode(3, inverse.w, [](float4 v) { return v.w; });
  }
}

template <bool kAligned>
__device__ void retile(const Retile128x1Params& params, SharedMemory& shared) {
  const int tiles_in_row = (params.columns + kTile - 1) / kTile;
  const int number = blockIdx.x / tiles_in_row;
  const int tile = blockIdx.x % tiles_in_row;
  const quant::RowBlock block =
      quant::find_row_block(params.offsets, params.groups, params.rows, number);
  if (not block.in_group) return;

  Part part = load<kAligned>(params, block, tile);
  reduce_columns(part, shared);
  __syncthreads();
  static_assert(Square::kThreads == kTile, "one thread for each column");
  const int column = threadIdx.x;
  const NewScale scale(Square::column_amax(shared.partial, column));
  shared.inverse[column] = scale.twice_inverse();
  if (tile * kTile + column < params.columns) {
    params.transposed_scale[number * params.transposed_scale_pitch + tile * kTile + column] =
        scale.stored();
  }
  __syncthreads();
  quant::unlearn(part.codes);
  encode_columns(part, shared);
  __syncthreads();
  Square::store_transposed<true>(
      shared.codes,
      params.transposed + int64_t{tile} * kTile * params.transposed_pitch + int64_t{number} * kTile,
      params.transposed_pitch, kTile, params.columns - tile * kTile);
}

}  // namespace
}  // namespace abyssal::retile_128x1

// Aligned: rows start at multiples of 16 bytes, as every tensor of the model does. Unaligned: any
// shape, one code a load.
// The second bound: 80 registers, so that 96 KB of loads are in flight on a multiprocessor.
#define ABYSSAL_ENTRY(name, kAligned)                                                   \
  extern "C" __global__ void __launch_bounds__(abyssal::retile_128x1::Square::kThreads, \
                                               kAligned ? 6 : 1)                        \
      name(const __grid_constant__ abyssal::Retile128x1Params params) {                 \
    __shared__ abyssal::retile_128x1::SharedMemory shared;                              \
    abyssal::retile_128x1::retile<kAligned>(params, shared);                            \
  }

ABYSSAL_ENTRY(retile_128x1, true)
ABYSSAL_ENTRY(retile_128x1_unaligned, false)

// RMSNorm of x [rows, columns], BF16 or FP32, quantised to E4M3 with one FP32 scale for each 1x128
// tile; if asked for, also its unquantised result (which the router reads) and the inverse root
// mean squares (which its gradient reads).
//
//   inverse_rms   = 1 / sqrt(sum of x^2 / columns + eps)
//   normalized    = x * inverse_rms * weight, rounded as the model's RMSNorm rounds
//   scale, codes  of normalized, as quantize_1x128
//
// The sum has one order, whatever the threads: of L lanes (256 up to 2048 columns, 1024 beyond),
// lane j adds the squares of columns j, j + L and so on; then neighbouring lanes are added in
// pairs, neighbouring pairs, and so on. Every operation is rounded as IEEE 754 says. So the results
// are those of abyssal.reference.fused, bit for bit. Sources: Zhang and Sennrich 2019, Root Mean
// Square Layer Normalization; DeepSeek-V3 report, sections 3.2.3 and 3.3.2.
//
// Threads
//   row     L / 8 (BF16) or L / 4 (FP32) threads, 1 to 8 warps; thread t holds columns
//           t * 8 + step * L and on, 16 bytes for each step, up to 8 steps in registers
//   tile    16 or 32 neighbouring threads at one step
//   block   at least 128 threads: 1 to 4 rows
//
// Bound by memory: x is read once, by loads that are all issued before the first is used. Rows that
// are too long for registers or not aligned are read twice, the second time from the L2 cache.

#include "quant/part.cuh"
#include "quant/rms_norm_quantize.hpp"

namespace abyssal::rms_norm_quantize {
namespace {

// Neighbours in pairs, neighbouring pairs, and so on.
template <int kCount>
__device__ float sum_neighbours(float (&x)[kCount]) {
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i < count) x[i] = __fadd_rn(x[2 * i], x[2 * i + 1]);
    }
  }
  return x[0];
}

// A row, seen by one of its threads, in chunks of eight steps.
template <typename Value, int kLanes, bool kAligned>
struct Row {
  using Piece = quant::Piece<Value>;
  static constexpr int kThreads = Layout<kLanes, sizeof(typename Value::Bits)>::kRowThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kChunk = kLanes * kSteps;  // columns

  const typename Value::Bits* x;
  int columns;
  int thread;

  // The first column of my piece at a step.
  __device__ int column(int chunk, int step) const {
    return chunk * kChunk + step * kLanes + thread * Piece::kValues;
  }

  // If any thread has values at a step: the same for all of them.
  __device__ bool has(int chunk, int step) const {
    return chunk * kChunk + step * kLanes < columns;
  }

  __device__ void load(int chunk, quant::Part<Value>& part) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      part.x[step] = quant::load_piece<Value, kAligned>(x, column(chunk, step), columns);
    }
  }
};

// Adds the squares of a chunk to those of the chunks before, one sum for each lane of the thread.
template <typename Value, int kLanes, bool kAligned>
__device__ void add_squares(const Row<Value, kLanes, kAligned>& row, int chunk,
                            const quant::Part<Value>& part,
                            float (&lanes)[quant::Piece<Value>::kValues]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (not row.has(chunk, step)) continue;
#pragma unroll
    for (int i = 0; i < quant::Piece<Value>::kValues; ++i) {
      const float value = part.x[step].value(i);
      lanes[i] = __fadd_rn(lanes[i], __fmul_rn(value, value));
    }
  }
}

// The sum of all lanes of a row, to all of its threads. `of_warps`: shared memory of the row.
template <int kValues, int kWarps>
__device__ float sum_lanes(float (&lanes)[kValues], int thread, float (&of_warps)[kWarps]) {
  float sum = sum_neighbours(lanes);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFF, sum, distance));
  }
  if constexpr (kWarps > 1) {
    if (thread % 32 == 0) of_warps[thread / 32] = sum;
    __syncthreads();
    float sums[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sums[warp] = of_warps[warp];
    sum = sum_neighbours(sums);
  }
  return sum;
}

// The normalised values of a piece, rounded to the type of x.
template <typename Value, bool kAligned>
__device__ quant::Piece<Value> normalize(const quant::Piece<Value>& x, float inverse_rms,
                                         const RmsNormQuantizeParams& params, int column,
                                         int columns) {
  constexpr int kValues = quant::Piece<Value>::kValues;
  float y[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    // What is outside counts as 0, whatever the row's mean.
    const bool inside = (kAligned ? column : column + i) < columns;
    y[i] = __fmul_rn(x.value(i), inside ? inverse_rms : 0);
  }
  if (params.weight_is_fp32) {
    const auto* weight = static_cast<const uint32_t*>(params.weight);
#pragma unroll
    for (int four = 0; four < kValues; four += 4) {
      const auto piece =
          quant::load_piece<quant::Fp32, kAligned, false>(weight, column + four, columns);
#pragma unroll
      for (int i = 0; i < 4; ++i) y[four + i] = __fmul_rn(piece.value(i), y[four + i]);
    }
  } else if constexpr (sizeof(typename Value::Bits) == 2) {
    // BF16 times BF16: the first factor is rounded, too.
    const auto* weight = static_cast<const typename Value::Bits*>(params.weight);
    const auto piece = quant::load_piece<Value, kAligned, false>(weight, column, columns);
    const auto rounded = quant::to_piece<Value>(y);
#pragma unroll
    for (int i = 0; i < kValues; ++i) y[i] = __fmul_rn(piece.value(i), rounded.value(i));
  }
  return quant::to_piece<Value>(y);
}

// From x to what its normalised values are, in place; codes and scales of a chunk.
template <typename Value, int kLanes, bool kAligned>
__device__ void quantize_chunk(const RmsNormQuantizeParams& params,
                               const Row<Value, kLanes, kAligned>& row, int64_t index, int chunk,
                               float inverse_rms, quant::Part<Value>& part) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (not row.has(chunk, step)) continue;
    const int column = row.column(chunk, step);
    part.x[step] =
        normalize<Value, kAligned>(part.x[step], inverse_rms, params, column, row.columns);
    if (params.normalized != nullptr) {
      auto* to = static_cast<typename Value::Bits*>(params.normalized) + index * params.columns;
      quant::store_piece<Value, kAligned>(to, column, row.columns, part.x[step]);
    }
  }
  uint8_t* codes = params.codes + index * params.columns;
  const quant::TilePlaces places{
      [&](int) { return codes; }, [&](int step) { return row.column(chunk, step); },
      [&](int step) {
        return params.scale + row.column(chunk, step) / kTile * params.scale_pitch + index;
      },
      [&](int step) { return row.column(chunk, step) / kTile * kTile < row.columns; }, row.columns};
  quant::quantize_row_tiles<kAligned>(part, places, params.options);
}

template <typename Value, int kLanes, bool kAligned>
__device__ void run(const RmsNormQuantizeParams& params) {
  using Row = Row<Value, kLanes, kAligned>;
  constexpr int kRows = Layout<kLanes, sizeof(typename Value::Bits)>::kBlockRows;
  __shared__ float of_warps[kRows][Row::kWarps];

  const int row_of_block = threadIdx.x / Row::kThreads;
  const int64_t index = int64_t{blockIdx.x} * kRows + row_of_block;
  const Row row{static_cast<const typename Value::Bits*>(params.x) + index * params.x_row_stride,
                index < params.rows ? params.columns : 0,
                static_cast<int>(threadIdx.x % Row::kThreads)};
  // All of an aligned row is one chunk, which stays in registers.
  const int chunks = kAligned ? 1 : (row.columns + Row::kChunk - 1) / Row::kChunk;

  quant::Part<Value> part;
  float lanes[quant::Piece<Value>::kValues] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    row.load(chunk, part);
    add_squares(row, chunk, part, lanes);
  }
  const float sum = sum_lanes(lanes, row.thread, of_warps[row_of_block]);
  const float mean = __fdiv_rn(sum, static_cast<float>(params.columns));
  const float inverse_rms = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, params.eps)));
  if (params.inverse_rms != nullptr and row.thread == 0 and row.columns > 0) {
    params.inverse_rms[index] = inverse_rms;
  }

  quant::unlearn(part.x);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if constexpr (not kAligned) row.load(chunk, part);
    quantize_chunk(params, row, index, chunk, inverse_rms, part);
  }
}

}  // namespace
}  // namespace abyssal::rms_norm_quantize

// Aligned: rows of x and of normalized and the weight start at multiples of 16 bytes, rows of codes
// at multiples of 8 (BF16) or 4, and a row fits the registers of its threads. Unaligned: any shape.
// The second bound, if aligned: 80 registers, so that 96 KB of loads are in flight on a
// multiprocessor.
#define ABYSSAL_ENTRY(name, Value, kLanes, kAligned)                                             \
  extern "C" __global__ void __launch_bounds__(                                                  \
      abyssal::rms_norm_quantize::Layout<kLanes, sizeof(Value::Bits)>::kBlockThreads,            \
      (kAligned)                                                                                 \
          ? 768 / abyssal::rms_norm_quantize::Layout<kLanes, sizeof(Value::Bits)>::kBlockThreads \
          : 1) name(const __grid_constant__ abyssal::RmsNormQuantizeParams params) {             \
    abyssal::rms_norm_quantize::run<Value, kLanes, kAligned>(params);                            \
  }

using abyssal::quant::Bf16;
using abyssal::quant::Fp32;
using abyssal::rms_norm_quantize::kFewLanes;
using abyssal::rms_norm_quantize::kManyLanes;

ABYSSAL_ENTRY(rms_norm_quantize_bf16_short, Bf16, kFewLanes, true)
ABYSSAL_ENTRY(rms_norm_quantize_bf16_short_unaligned, Bf16, kFewLanes, false)
ABYSSAL_ENTRY(rms_norm_quantize_bf16_long, Bf16, kManyLanes, true)
ABYSSAL_ENTRY(rms_norm_quantize_bf16_long_unaligned, Bf16, kManyLanes, false)
ABYSSAL_ENTRY(rms_norm_quantize_fp32_short, Fp32, kFewLanes, true)
ABYSSAL_ENTRY(rms_norm_quantize_fp32_short_unaligned, Fp32, kFewLanes, false)
ABYSSAL_ENTRY(rms_norm_quantize_fp32_long, Fp32, kManyLanes, true)
ABYSSAL_ENTRY(rms_norm_quantize_fp32_long_unaligned, Fp32, kManyLanes, false)

#include "quant/rms_norm_quantize.hpp"

#include <cstdint>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::rms_norm_quantize {
namespace {

bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// The kernel that fits the type, length and alignment of the rows.
const Kernel<RmsNormQuantizeParams>& choose(const RmsNormQuantizeParams& params, bool x_is_bf16) {
  constexpr uintptr_t kLoad = 16;  // bytes
  const uintptr_t value_bytes = x_is_bf16 ? 2 : 4;
  const uintptr_t codes_store = kLoad / value_bytes;
  const bool is_short = params.columns <= kFewLanesColumns;
  const bool aligned = is_aligned(params.x, kLoad) and is_aligned(params.weight, kLoad) and
                       is_aligned(params.normalized, kLoad) and
                       params.x_row_stride * value_bytes % kLoad == 0 and
                       is_aligned(params.codes, codes_store) and
                       params.columns % codes_store == 0 and params.columns <= kManyLanesColumns;
  return kKernels[(x_is_bf16 ? 0 : 4) + (is_short ? 0 : 2) + (aligned ? 0 : 1)];
}

template <int kLanes>
Grid grid_of(int32_t rows, bool x_is_bf16) {
  const auto of = [&](auto layout) {
    return Grid{static_cast<unsigned int>(ceil_divide(rows, decltype(layout)::kBlockRows)),
                decltype(layout)::kBlockThreads};
  };
  return x_is_bf16 ? of(Layout<kLanes, 2>{}) : of(Layout<kLanes, 4>{});
}

}  // namespace

void launch(const Stream& stream, const RmsNormQuantizeParams& params, bool x_is_bf16) {
  if (params.rows == 0) return;
  const size_t value_bytes = x_is_bf16 ? 2 : 4;
  const size_t values = extent_bytes(params.rows, params.columns, params.columns, 1);
  const Grid grid = params.columns <= kFewLanesColumns
                        ? grid_of<kFewLanes>(params.rows, x_is_bf16)
                        : grid_of<kManyLanes>(params.rows, x_is_bf16);
  abyssal::launch(
      stream, choose(params, x_is_bf16), grid, params,
      {{params.x, extent_bytes(params.rows, params.x_row_stride, params.columns, value_bytes),
        Buffer::Role::in},
       {params.weight, params.columns * (params.weight_is_fp32 ? 4 : value_bytes),
        Buffer::Role::in},
       {params.codes, values, Buffer::Role::out},
       {params.scale,
        extent_bytes(ceil_divide(params.columns, quant::kTile), params.scale_pitch, params.rows,
                     sizeof(float)),
        Buffer::Role::out},
       {params.normalized, params.normalized == nullptr ? 0 : values * value_bytes,
        Buffer::Role::out},
       {params.inverse_rms, params.inverse_rms == nullptr ? 0 : params.rows * sizeof(float),
        Buffer::Role::out}});
}

}  // namespace abyssal::rms_norm_quantize

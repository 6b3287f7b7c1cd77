#include "quant/quantize_1x128_both.hpp"

#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::quantize_1x128_both {
namespace {

using quant::kTile;

// The kernel that fits the type and alignment of x and the codes.
const Kernel<Quantize1x128BothParams>& choose(const Quantize1x128BothParams& params,
                                              bool x_is_bf16) {
  constexpr uintptr_t kLoad = 16;  // bytes
  const uintptr_t value_bytes = x_is_bf16 ? 2 : 4;
  const uintptr_t codes_store = kLoad / value_bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(params.x) % kLoad == 0 and
                       params.x_row_stride * value_bytes % kLoad == 0 and
                       reinterpret_cast<uintptr_t>(params.codes) % codes_store == 0 and
                       params.columns % codes_store == 0;
  return kKernels[(x_is_bf16 ? 0 : 2) + (aligned ? 0 : 1)];
}

}  // namespace

void launch(const Stream& stream, const Quantize1x128BothParams& params, bool x_is_bf16) {
  if (params.rows == 0) return;
  const size_t value_bytes = x_is_bf16 ? 2 : 4;
  const int64_t tiles_in_row = ceil_divide(params.columns, kTile);
  const int64_t row_blocks = params.offsets == nullptr ? ceil_divide(params.rows, kTile)
                                                       : params.rows / kTile + params.groups + 1;
  if (row_blocks * tiles_in_row > INT32_MAX) {
    throw std::length_error("x has too many tiles for one launch");
  }
  const unsigned int threads = quant::square_threads(x_is_bf16 ? 2 : 4);

  abyssal::launch(
      stream, choose(params, x_is_bf16),
      {static_cast<unsigned int>(row_blocks * tiles_in_row), threads}, params,
      {{params.x, extent_bytes(params.rows, params.x_row_stride, params.columns, value_bytes),
        Buffer::Role::in},
       {params.codes, extent_bytes(params.rows, params.columns, params.columns, 1),
        Buffer::Role::out},
       {params.scale, extent_bytes(tiles_in_row, params.scale_pitch, params.rows, sizeof(float)),
        Buffer::Role::out},
       {params.transposed,
        extent_bytes(params.columns, params.transposed_pitch, params.transposed_pitch, 1),
        Buffer::Role::out},
       {params.transposed_scale,
        extent_bytes(params.transposed_pitch / kTile, params.transposed_scale_pitch, params.columns,
                     sizeof(float)),
        Buffer::Role::out},
       {params.offsets, params.offsets == nullptr ? 0 : (params.groups + 1) * sizeof(int32_t),
        Buffer::Role::in}});
}

}  // namespace abyssal::quantize_1x128_both

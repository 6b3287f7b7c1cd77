#include "quant/quantize_1x128.hpp"

#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::quantize_1x128 {
namespace {

// The kernel that fits the type and alignment of x.
const Kernel<Quantize1x128Params>& choose(const Quantize1x128Params& params, bool x_is_bf16) {
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

void launch(const Stream& stream, const Quantize1x128Params& params, bool x_is_bf16) {
  if (params.rows == 0) return;
  const size_t value_bytes = x_is_bf16 ? 2 : 4;
  const int64_t tiles_in_row = ceil_divide(params.columns, kTile);
  const int64_t tiles_per_thread = x_is_bf16 ? kTilesPerThread<2> : kTilesPerThread<4>;
  const int64_t blocks =
      ceil_divide(params.rows, kRowsPerBlock) * ceil_divide(tiles_in_row, tiles_per_thread);
  if (blocks > INT32_MAX) throw std::length_error("x has too many tiles for one launch");

  abyssal::launch(
      stream, choose(params, x_is_bf16), {static_cast<unsigned int>(blocks), kThreadsPerBlock},
      params,
      {{params.x, extent_bytes(params.rows, params.x_row_stride, params.columns, value_bytes),
        Buffer::Role::in},
       {params.codes, extent_bytes(params.rows, params.columns, params.columns, 1),
        Buffer::Role::out},
       {params.scale, extent_bytes(tiles_in_row, params.scale_pitch, params.rows, sizeof(float)),
        Buffer::Role::out}});
}

}  // namespace abyssal::quantize_1x128

#include "quant/retile_128x1.hpp"

#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::retile_128x1 {

using quant::kTile;

void launch(const Stream& stream, const Retile128x1Params& params) {
  if (params.rows == 0) return;
  const int64_t tiles_in_row = ceil_divide(params.columns, kTile);
  // Rows of no group need no block.
  const int64_t row_blocks = params.offsets == nullptr ? ceil_divide(params.rows, kTile)
                                                       : params.rows / kTile + params.groups;
  const int64_t blocks = row_blocks * tiles_in_row;
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::length_error("q has too many tiles for one launch");
  constexpr uintptr_t kLoad = 16;  // bytes
  const bool aligned = reinterpret_cast<uintptr_t>(params.codes) % kLoad == 0 and
                       params.row_stride % kLoad == 0 and params.columns % kLoad == 0;

  abyssal::launch(
      stream, kKernels[aligned ? 0 : 1],
      {static_cast<unsigned int>(blocks), quant::square_threads(1)}, params,
      {{params.codes, extent_bytes(params.rows, params.row_stride, params.columns, 1),
        Buffer::Role::in},
       {params.scale, extent_bytes(tiles_in_row, params.scale_pitch, params.rows, sizeof(float)),
        Buffer::Role::in},
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

}  // namespace abyssal::retile_128x1

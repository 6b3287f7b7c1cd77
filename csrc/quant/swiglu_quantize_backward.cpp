#include "quant/swiglu_quantize_backward.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::swiglu_quantize_backward {

using quant::kTile;

void launch(const Stream& stream, SwigluQuantizeBackwardParams params) {
  if (params.rows == 0) return;
  const int64_t columns = params.columns;
  const int64_t squares = columns / kTile;
  const bool weighted = params.row_weight != nullptr;
  const int64_t blocks_per_row_block =
      weighted ? std::min<int64_t>(squares, kMostBlocksPerCluster) : squares;
  params.blocks_per_row_block = static_cast<int32_t>(blocks_per_row_block);
  const int64_t row_blocks = params.offsets == nullptr ? ceil_divide(params.rows, kTile)
                                                       : params.rows / kTile + params.groups;
  const int64_t blocks = row_blocks * blocks_per_row_block;
  if (blocks > INT32_MAX) throw std::length_error("dy has too many tiles for one launch");
  const Grid grid{
      .blocks = static_cast<unsigned int>(blocks),
      .threads_per_block = kThreads,
      .shared_bytes = kSharedBytes,
      .blocks_per_cluster = weighted ? static_cast<unsigned int>(blocks_per_row_block) : 1};

  const auto scales = [&](int64_t tiles, int64_t pitch, int64_t rows) {
    return extent_bytes(tiles, pitch, rows, sizeof(float));
  };
  const auto transposed = [&](int64_t rows) {
    return extent_bytes(rows, params.transposed_pitch, params.transposed_pitch, 1);
  };
  const int64_t transposed_tiles = params.transposed_pitch / kTile;
  const size_t row_bytes = weighted ? params.rows * sizeof(float) : 0;
  abyssal::launch(
      stream, kKernels[0], grid, params,
      {{params.dy, extent_bytes(params.rows, params.dy_row_stride, columns, 2), Buffer::Role::in},
       {params.gate_up, extent_bytes(params.rows, params.gate_up_row_stride, 2 * columns, 2),
        Buffer::Role::in},
       {params.row_weight, row_bytes, Buffer::Role::in},
       {params.offsets, params.offsets == nullptr ? 0 : (params.groups + 1) * sizeof(int32_t),
        Buffer::Role::in},
       {params.codes, extent_bytes(params.rows, 2 * columns, 2 * columns, 1), Buffer::Role::out},
       {params.scale, scales(2 * squares, params.scale_pitch, params.rows), Buffer::Role::out},
       {params.transposed, transposed(2 * columns), Buffer::Role::out},
       {params.transposed_scale,
        scales(transposed_tiles, params.transposed_scale_pitch, 2 * columns), Buffer::Role::out},
       {params.h_transposed, transposed(columns), Buffer::Role::out},
       {params.h_transposed_scale,
        scales(transposed_tiles, params.h_transposed_scale_pitch, columns), Buffer::Role::out},
       {params.d_row_weight, row_bytes, Buffer::Role::out}});
}

}  // namespace abyssal::swiglu_quantize_backward

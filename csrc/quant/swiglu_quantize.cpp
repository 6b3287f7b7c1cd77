#include "quant/swiglu_quantize.hpp"

#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::swiglu_quantize {
namespace {

// The kernel that fits the alignment of gates, ups and codes.
const Kernel<SwigluQuantizeParams>& choose(const SwigluQuantizeParams& params) {
  constexpr int64_t kValues = 8;  // of a load of 16 bytes, and of a store of codes
  const bool aligned = reinterpret_cast<uintptr_t>(params.gate_up) % 16 == 0 and
                       params.gate_up_row_stride % kValues == 0 and
                       reinterpret_cast<uintptr_t>(params.codes) % kValues == 0 and
                       params.columns % kValues == 0;
  return kKernels[aligned ? 0 : 1];
}

}  // namespace

void launch(const Stream& stream, const SwigluQuantizeParams& params) {
  if (params.rows == 0) return;
  const int64_t tiles_in_row = ceil_divide(params.columns, kTile);
  const int64_t blocks =
      ceil_divide(params.rows, kRowsPerBlock) * ceil_divide(tiles_in_row, kTilesPerThread);
  if (blocks > INT32_MAX) throw std::length_error("gate_up has too many tiles for one launch");

  abyssal::launch(
      stream, choose(params), {static_cast<unsigned int>(blocks), kThreadsPerBlock}, params,
      {{params.gate_up,
        extent_bytes(params.rows, params.gate_up_row_stride, int64_t{2} * params.columns, 2),
        Buffer::Role::in},
       {params.row_weight, params.row_weight == nullptr ? 0 : params.rows * sizeof(float),
        Buffer::Role::in},
       {params.offsets, params.offsets == nullptr ? 0 : (params.groups + 1) * sizeof(int32_t),
        Buffer::Role::in},
       {params.codes, extent_bytes(params.rows, params.columns, params.columns, 1),
        Buffer::Role::out},
       {params.scale, extent_bytes(tiles_in_row, params.scale_pitch, params.rows, sizeof(float)),
        Buffer::Role::out}});
}

}  // namespace abyssal::swiglu_quantize

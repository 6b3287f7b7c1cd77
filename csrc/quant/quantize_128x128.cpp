#include "quant/quantize_128x128.hpp"

#include <cstdint>
#include <stdexcept>

#include "quant/launchers.hpp"
#include "runtime/sizes.hpp"

namespace abyssal::quantize_128x128 {
namespace {

using quant::kTile;

// The kernel that fits the type and alignment of w and the results.
const Kernel<Quantize128x128Params>& choose(const Quantize128x128Params& params, bool w_is_bf16) {
  constexpr uintptr_t kLoad = 16;  // bytes, and of a store of transposed codes
  const uintptr_t value_bytes = w_is_bf16 ? 2 : 4;
  const uintptr_t codes_store = kLoad / value_bytes;
  const auto multiple = [](auto value, uintptr_t of) { return value % of == 0; };
  const bool aligned = multiple(reinterpret_cast<uintptr_t>(params.w), kLoad) and
                       multiple(params.w_row_stride * value_bytes, kLoad) and
                       multiple(params.w_group_stride * value_bytes, kLoad) and
                       multiple(reinterpret_cast<uintptr_t>(params.codes), codes_store) and
                       multiple(params.columns, codes_store) and
                       (params.transposed == nullptr or
                        (multiple(reinterpret_cast<uintptr_t>(params.transposed), kLoad) and
                         multiple(params.rows, kLoad)));
  return kKernels[(w_is_bf16 ? 0 : 2) + (aligned ? 0 : 1)];
}

}  // namespace

void launch(const Stream& stream, const Quantize128x128Params& params, bool w_is_bf16) {
  const int64_t tiles =
      params.groups * ceil_divide(params.rows, kTile) * ceil_divide(params.columns, kTile);
  if (tiles == 0) return;
  if (tiles > INT32_MAX) throw std::length_error("w has too many tiles for one launch");
  const size_t value_bytes = w_is_bf16 ? 2 : 4;
  const size_t values = size_t{1} * params.groups * params.rows * params.columns;
  const size_t w_bytes =
      (params.groups - 1) * params.w_group_stride * value_bytes +
      extent_bytes(params.rows, params.w_row_stride, params.columns, value_bytes);

  abyssal::launch(
      stream, choose(params, w_is_bf16),
      {static_cast<unsigned int>(tiles),
       static_cast<unsigned int>(quant::square_threads(static_cast<int>(value_bytes)))},
      params,
      {{params.w, w_bytes, Buffer::Role::in},
       {params.codes, params.codes == nullptr ? 0 : values, Buffer::Role::out},
       {params.transposed, params.transposed == nullptr ? 0 : values, Buffer::Role::out},
       {params.scale, tiles * sizeof(float), Buffer::Role::out}});
}

}  // namespace abyssal::quantize_128x128

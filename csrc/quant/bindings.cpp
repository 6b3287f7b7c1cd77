// The quantisers' launchers, for Python.

#include "bindings.hpp"

#include "quant/launchers.hpp"

namespace abyssal {
namespace {

void quantize_1x128_op(int device, uintptr_t stream, uintptr_t x, bool x_is_bf16, uintptr_t codes,
                       uintptr_t scale, int64_t x_row_stride, int64_t scale_pitch, int32_t rows,
                       int32_t columns, float amax_floor, bool pow2) {
  quantize_1x128::launch(stream_of(device, stream),
                         {.x = pointer<const void>(x),
                          .codes = pointer<uint8_t>(codes),
                          .scale = pointer<float>(scale),
                          .x_row_stride = x_row_stride,
                          .scale_pitch = scale_pitch,
                          .rows = rows,
                          .columns = columns,
                          .amax_floor = amax_floor,
                          .pow2 = pow2},
                         x_is_bf16);
}

}  // namespace

void bind_quantisers(pybind11::module_& module) {
  module.def("quantize_1x128", &quantize_1x128_op);
}

}  // namespace abyssal

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

void quantize_1x128_both_op(int device, uintptr_t stream, uintptr_t x, bool x_is_bf16,
                            uintptr_t codes, uintptr_t scale, uintptr_t transposed,
                            uintptr_t transposed_scale, uintptr_t offsets, int64_t x_row_stride,
                            int64_t scale_pitch, int64_t transposed_pitch,
                            int64_t transposed_scale_pitch, int32_t rows, int32_t columns,
                            int32_t groups, float amax_floor, bool pow2) {
  quantize_1x128_both::launch(stream_of(device, stream),
                              {.x = pointer<const void>(x),
                               .codes = pointer<uint8_t>(codes),
                               .scale = pointer<float>(scale),
                               .transposed = pointer<uint8_t>(transposed),
                               .transposed_scale = pointer<float>(transposed_scale),
                               .offsets = pointer<const int32_t>(offsets),
                               .x_row_stride = x_row_stride,
                               .scale_pitch = scale_pitch,
                               .transposed_pitch = transposed_pitch,
                               .transposed_scale_pitch = transposed_scale_pitch,
                               .rows = rows,
                               .columns = columns,
                               .groups = groups,
                               .amax_floor = amax_floor,
                               .pow2 = pow2},
                              x_is_bf16);
}

void quantize_128x128_op(int device, uintptr_t stream, uintptr_t w, bool w_is_bf16, uintptr_t codes,
                         uintptr_t transposed, uintptr_t scale, int64_t w_group_stride,
                         int64_t w_row_stride, int32_t groups, int32_t rows, int32_t columns,
                         float amax_floor, bool pow2) {
  quantize_128x128::launch(stream_of(device, stream),
                           {.w = pointer<const void>(w),
                            .codes = pointer<uint8_t>(codes),
                            .transposed = pointer<uint8_t>(transposed),
                            .scale = pointer<float>(scale),
                            .w_group_stride = w_group_stride,
                            .w_row_stride = w_row_stride,
                            .groups = groups,
                            .rows = rows,
                            .columns = columns,
                            .amax_floor = amax_floor,
                            .pow2 = pow2},
                           w_is_bf16);
}

void retile_128x1_op(int device, uintptr_t stream, uintptr_t codes, uintptr_t scale,
                     uintptr_t transposed, uintptr_t transposed_scale, uintptr_t offsets,
                     int64_t row_stride, int64_t scale_pitch, int64_t transposed_pitch,
                     int64_t transposed_scale_pitch, int32_t rows, int32_t columns,
                     int32_t groups) {
  retile_128x1::launch(stream_of(device, stream),
                       {.codes = pointer<const uint8_t>(codes),
                        .scale = pointer<const float>(scale),
                        .transposed = pointer<uint8_t>(transposed),
                        .transposed_scale = pointer<float>(transposed_scale),
                        .offsets = pointer<const int32_t>(offsets),
                        .row_stride = row_stride,
                        .scale_pitch = scale_pitch,
                        .transposed_pitch = transposed_pitch,
                        .transposed_scale_pitch = transposed_scale_pitch,
                        .rows = rows,
                        .columns = columns,
                        .groups = groups});
}

}  // namespace

void bind_quantisers(pybind11::module_& module) {
  module.def("quantize_1x128", &quantize_1x128_op);
  module.def("quantize_1x128_both", &quantize_1x128_both_op);
  module.def("quantize_128x128", &quantize_128x128_op);
  module.def("retile_128x1", &retile_128x1_op);
}

}  // namespace abyssal

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
                          .options = {amax_floor, pow2}},
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
                               .options = {amax_floor, pow2}},
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
                            .options = {amax_floor, pow2}},
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

void rms_norm_quantize_op(int device, uintptr_t stream, uintptr_t x, bool x_is_bf16,
                          uintptr_t weight, bool weight_is_fp32, uintptr_t codes, uintptr_t scale,
                          uintptr_t normalized, uintptr_t inverse_rms, int64_t x_row_stride,
                          int64_t scale_pitch, int32_t rows, int32_t columns, float eps,
                          float amax_floor, bool pow2) {
  rms_norm_quantize::launch(stream_of(device, stream),
                            {.x = pointer<const void>(x),
                             .weight = pointer<const void>(weight),
                             .codes = pointer<uint8_t>(codes),
                             .scale = pointer<float>(scale),
                             .normalized = pointer<void>(normalized),
                             .inverse_rms = pointer<float>(inverse_rms),
                             .x_row_stride = x_row_stride,
                             .scale_pitch = scale_pitch,
                             .rows = rows,
                             .columns = columns,
                             .eps = eps,
                             .weight_is_fp32 = weight_is_fp32,
                             .options = {amax_floor, pow2}},
                            x_is_bf16);
}

void swiglu_quantize_op(int device, uintptr_t stream, uintptr_t gate_up, uintptr_t row_weight,
                        uintptr_t offsets, uintptr_t codes, uintptr_t scale,
                        int64_t gate_up_row_stride, int64_t scale_pitch, int32_t rows,
                        int32_t columns, int32_t groups, float amax_floor, bool pow2) {
  swiglu_quantize::launch(stream_of(device, stream),
                          {.gate_up = pointer<const void>(gate_up),
                           .row_weight = pointer<const float>(row_weight),
                           .offsets = pointer<const int32_t>(offsets),
                           .codes = pointer<uint8_t>(codes),
                           .scale = pointer<float>(scale),
                           .gate_up_row_stride = gate_up_row_stride,
                           .scale_pitch = scale_pitch,
                           .rows = rows,
                           .columns = columns,
                           .groups = groups,
                           .options = {amax_floor, pow2}});
}

void swiglu_quantize_backward_op(int device, uintptr_t stream, uintptr_t dy, uintptr_t gate_up,
                                 uintptr_t row_weight, uintptr_t offsets, uintptr_t codes,
                                 uintptr_t scale, uintptr_t transposed, uintptr_t transposed_scale,
                                 uintptr_t h_transposed, uintptr_t h_transposed_scale,
                                 uintptr_t d_row_weight, int64_t dy_row_stride,
                                 int64_t gate_up_row_stride, int64_t scale_pitch,
                                 int64_t transposed_pitch, int64_t transposed_scale_pitch,
                                 int64_t h_transposed_scale_pitch, int32_t rows, int32_t columns,
                                 int32_t groups, float amax_floor, bool pow2) {
  swiglu_quantize_backward::launch(stream_of(device, stream),
                                   {.dy = pointer<const void>(dy),
                                    .gate_up = pointer<const void>(gate_up),
                                    .row_weight = pointer<const float>(row_weight),
                                    .offsets = pointer<const int32_t>(offsets),
                                    .codes = pointer<uint8_t>(codes),
                                    .scale = pointer<float>(scale),
                                    .transposed = pointer<uint8_t>(transposed),
                                    .transposed_scale = pointer<float>(transposed_scale),
                                    .h_transposed = pointer<uint8_t>(h_transposed),
                                    .h_transposed_scale = pointer<float>(h_transposed_scale),
                                    .d_row_weight = pointer<float>(d_row_weight),
                                    .dy_row_stride = dy_row_stride,
                                    .gate_up_row_stride = gate_up_row_stride,
                                    .scale_pitch = scale_pitch,
                                    .transposed_pitch = transposed_pitch,
                                    .transposed_scale_pitch = transposed_scale_pitch,
                                    .h_transposed_scale_pitch = h_transposed_scale_pitch,
                                    .rows = rows,
                                    .columns = columns,
                                    .groups = groups,
                                    .blocks_per_row_block = 0,
                                    .options = {amax_floor, pow2}});
}

}  // namespace

void bind_quantisers(pybind11::module_& module) {
  module.def("quantize_1x128", &quantize_1x128_op);
  module.def("quantize_1x128_both", &quantize_1x128_both_op);
  module.def("quantize_128x128", &quantize_128x128_op);
  module.def("retile_128x1", &retile_128x1_op);
  module.def("rms_norm_quantize", &rms_norm_quantize_op);
  module.def("swiglu_quantize", &swiglu_quantize_op);
  module.def("swiglu_quantize_backward", &swiglu_quantize_backward_op);
}

}  // namespace abyssal

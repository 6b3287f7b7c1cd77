#include "gemm/fp8_gemm.hpp"

#include <bit>

#include "gemm/launchers.hpp"
#include "runtime/sizes.hpp"
#include "runtime/tensor_map.hpp"

namespace abyssal {

std::vector<EntryPoint> gemm_kernels() {
  std::vector<EntryPoint> all;
  for (const gemm::Variant& variant : gemm::variants()) all.push_back(variant.kernel);
  return all;
}

namespace gemm {
namespace {

// Of Matrices without gaps of 0 planes or rows: from the first value to the last.
size_t bytes_of(const Matrices& x, size_t value_bytes) {
  return ((x.planes - 1) * x.plane_stride + (x.rows - 1) * x.row_stride +
          (x.columns - 1) * x.column_stride + 1) *
         value_bytes;
}

hopper::TensorMap encode(const Driver& driver, const TensorMapDescription& description) {
  return std::bit_cast<hopper::TensorMap>(encode_tensor_map(driver, description));
}

// Codes [planes, rows, K]: boxes of 128 of K and `box_rows` rows.
hopper::TensorMap map_codes(const Driver& driver, const char* name, const Matrices& x,
                            int32_t box_rows) {
  return encode(driver, {.name = name,
                         .address = x.values,
                         .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                         .rank = 3,
                         .extents = {uint64_t(x.columns), uint64_t(x.rows), uint64_t(x.planes)},
                         .strides = {uint64_t(x.row_stride), uint64_t(x.plane_stride)},
                         .box = {kBlockK, uint32_t(box_rows), 1},
                         .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

// Scales [planes, rows, blocks of K], stored with rows contiguous: boxes of `box_rows` rows.
hopper::TensorMap map_scales(const Driver& driver, const char* name, const Matrices& x,
                             int32_t box_rows) {
  const uint64_t bytes = sizeof(float);
  return encode(driver, {.name = name,
                         .address = x.values,
                         .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                         .rank = 3,
                         .extents = {uint64_t(x.rows), uint64_t(x.columns), uint64_t(x.planes)},
                         .strides = {x.column_stride * bytes, x.plane_stride * bytes},
                         .box = {uint32_t(box_rows), 1, 1}});
}

// BF16 d [planes, M, N]: boxes of a warpgroup's panel (plan.cuh).
hopper::TensorMap map_d(const Driver& driver, const Matrices& d, const Variant& variant) {
  const bool divides_n = variant.m == 64;
  const int32_t part_m = divides_n ? variant.m : variant.m / 2;
  const int32_t part_n = divides_n ? variant.n / 2 : variant.n;
  const uint64_t bytes = 2;
  const uint32_t panel_n = part_n < 64 ? part_n : 64;
  return encode(driver, {.name = "d",
                         .address = d.values,
                         .type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                         .rank = 3,
                         .extents = {uint64_t(d.columns), uint64_t(d.rows), uint64_t(d.planes)},
                         .strides = {d.row_stride * bytes, d.plane_stride * bytes},
                         .box = {panel_n, uint32_t(part_m), 1},
                         .swizzle = panel_n == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                    : panel_n == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                    : CU_TENSOR_MAP_SWIZZLE_32B});
}

Params make_params(const Driver& driver, const Product& x, const Choice& choice) {
  const Variant& variant = *choice.variant;
  Params params = {};
  params.a = map_codes(driver, "a", x.a, variant.m / (choice.share == Share::a ? 2 : 1));
  params.b = map_codes(driver, "b", x.b, variant.n / (choice.share == Share::b ? 2 : 1));
  params.scale_a = map_scales(driver, "the scale of a", x.scale_a, variant.m);
  if (x.square_scales) {
    params.square_scale_b = static_cast<const float*>(x.scale_b.values);
    params.square_scale_plane = x.scale_b.plane_stride;
    params.square_scale_n = x.scale_b.row_stride;
    params.square_scale_k = x.scale_b.column_stride;
  } else {
    params.scale_b = map_scales(driver, "the scale of b", x.scale_b, variant.n);
  }
  if (not x.d_is_fp32 and not x.accumulate) params.d = map_d(driver, x.d, variant);
  params.d_values = const_cast<void*>(x.d.values);
  params.d_plane = x.d.plane_stride;
  params.d_stride = x.d.row_stride;
  params.offsets = x.offsets;
  params.groups_are = x.groups_are;
  params.groups = x.groups;
  params.m = static_cast<int32_t>(x.a.rows);
  params.n = static_cast<int32_t>(x.b.rows);
  params.k_blocks = static_cast<int32_t>(ceil_divide(x.a.columns, kBlockK));
  params.share = choice.share;
  params.split_k = choice.split_k;
  params.strip_n = choice.strip_n;
  params.d_is_fp32 = x.d_is_fp32;
  params.accumulate = x.accumulate;
  return params;
}

int32_t count_multiprocessors(const Stream& stream) {
  int count = 0;
  stream.driver.check(stream.driver.cuDeviceGetAttribute(
                          &count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, stream.device),
                      "asking for the number of multiprocessors");
  return count;
}

}  // namespace

Shape shape_of(const Product& x, int32_t multiprocessors) {
  return {.m = x.a.rows,
          .n = x.b.rows,
          .k = x.a.columns,
          .groups_are = x.groups_are,
          .groups = x.groups,
          .square_scales = x.square_scales,
          .d_is_fp32 = x.d_is_fp32,
          .accumulate = x.accumulate,
          .multiprocessors = multiprocessors};
}

Prepared prepare(const Stream& stream, const Product& x, const Choice* choice) {
  Choice best;
  if (choice == nullptr) {
    best = rank_choices(shape_of(x, count_multiprocessors(stream))).front().choice;
    choice = &best;
  }
  const int blocks_per_cluster = choice->share == Share::none ? choice->split_k : 2;
  return {.kernel = &choice->variant->kernel,
          .grid = {.blocks = static_cast<unsigned int>(choice->blocks),
                   .threads_per_block = kThreads,
                   .shared_bytes = choice->variant->shared_bytes,
                   .blocks_per_cluster = static_cast<unsigned int>(blocks_per_cluster),
                   .overlaps_previous = true},
          .params = make_params(stream.driver, x, *choice)};
}

void launch(const Stream& stream, const Product& x, const Choice* choice) {
  const Prepared prepared = prepare(stream, x, choice);
  const size_t offsets = x.groups_are == Groups::none     ? 0
                         : x.groups_are == Groups::masked ? x.groups
                                                          : x.groups + 1;
  const size_t d_bytes = bytes_of(x.d, x.d_is_fp32 ? 4 : 2);
  abyssal::launch(stream, *prepared.kernel, prepared.grid, prepared.params,
                  {{x.a.values, bytes_of(x.a, 1), Buffer::Role::in},
                   {x.b.values, bytes_of(x.b, 1), Buffer::Role::in},
                   {x.scale_a.values, bytes_of(x.scale_a, sizeof(float)), Buffer::Role::in},
                   {x.scale_b.values, bytes_of(x.scale_b, sizeof(float)), Buffer::Role::in},
                   {x.offsets, offsets * sizeof(int32_t), Buffer::Role::in},
                   {x.d.values, d_bytes, x.accumulate ? Buffer::Role::inout : Buffer::Role::out}});
}

}  // namespace gemm
}  // namespace abyssal

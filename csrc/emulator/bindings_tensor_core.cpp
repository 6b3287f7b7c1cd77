// abyssal.emulator.tensor_core's way into C++: addresses, shapes and strides, checked in Python.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/tensor_core.hpp"

namespace py = pybind11;

namespace abyssal::emulator {
namespace {

using Extents = std::vector<int64_t>;

// Dimensions that operands and accumulators share by broadcasting. Strides are in bytes, 0 along a
// dimension that an operand lacks.
struct Layout {
  Extents shape, a_strides, b_strides, d_strides;
};

// A matrix product, or the row or the element of one: as much as the strides leave together.
struct Product {
  TensorType a_type, b_type;
  const std::byte* a;
  const std::byte* b;
  std::byte* d;
  bool f16_accumulators;
  bool accumulate;
  TensorCorePath path;

  void multiply(int64_t rows, int64_t a_stride, int64_t d_stride, int64_t columns,
                int64_t b_stride) const {
    const int m = static_cast<int>(rows), n = static_cast<int>(columns);
    if (f16_accumulators) {
      tensor_core_f16(a_type, b_type, a, a_stride, b, b_stride, reinterpret_cast<uint16_t*>(d),
                      d_stride / sizeof(uint16_t), m, n, accumulate, path);
    } else {
      tensor_core_f32(a_type, b_type, a, a_stride, b, b_stride, reinterpret_cast<float*>(d),
                      d_stride / sizeof(float), m, n, accumulate, path);
    }
  }
};

// `product` begins at index 0 of `dimension` and of those after it.
void multiply_all(Product product, const Layout& layout, size_t dimension) {
  const auto& [shape, a_strides, b_strides, d_strides] = layout;
  const size_t left = shape.size() - dimension;
  if (left == 0) return product.multiply(1, 0, 0, 1, 0);
  const int64_t size = shape[dimension];
  const int64_t a_stride = a_strides[dimension];
  const int64_t b_stride = b_strides[dimension];
  const int64_t d_stride = d_strides[dimension];
  if (left == 1 and b_stride == 0) return product.multiply(size, a_stride, d_stride, 1, 0);
  const int64_t element = product.f16_accumulators ? sizeof(uint16_t) : sizeof(float);
  if (shape.back() == 1 or d_strides.back() == element) {
    if (left == 1 and a_stride == 0) return product.multiply(1, 0, 0, size, b_stride);
    if (left == 2 and b_stride == 0 and a_strides.back() == 0) {
      return product.multiply(size, a_stride, d_stride, shape.back(), b_strides.back());
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    multiply_all(product, layout, dimension + 1);
    product.a += a_stride;
    product.b += b_stride;
    product.d += d_stride;
  }
}

void tensor_core(TensorType a_type, TensorType b_type, uintptr_t a, uintptr_t b, uintptr_t d,
                 const Extents& shape, const Extents& a_strides, const Extents& b_strides,
                 const Extents& d_strides, bool f16_accumulators, bool accumulate,
                 TensorCorePath path) {
  multiply_all(
      {a_type, b_type, reinterpret_cast<const std::byte*>(a), reinterpret_cast<const std::byte*>(b),
       reinterpret_cast<std::byte*>(d), f16_accumulators, accumulate, path},
      {shape, a_strides, b_strides, d_strides}, 0);
}

}  // namespace

void bind_tensor_core(py::module_& module) {
  py::enum_<TensorType>(module, "TensorType")
      .value("e4m3", TensorType::e4m3)
      .value("e5m2", TensorType::e5m2)
      .value("f16", TensorType::f16)
      .value("bf16", TensorType::bf16)
      .value("tf32", TensorType::tf32);
  py::enum_<TensorCorePath>(module, "TensorCorePath")
      .value("plain", TensorCorePath::plain)
      .value("avx2", TensorCorePath::avx2)
      .value("avx512", TensorCorePath::avx512);
  module.def("tensor_core_paths", &tensor_core_paths);
  module.def("tensor_core", &tensor_core, py::call_guard<py::gil_scoped_release>());
}

}  // namespace abyssal::emulator

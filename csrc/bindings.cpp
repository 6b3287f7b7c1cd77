// What Python sees: plain functions over addresses, sizes and a stream. Shapes, types and devices
// are checked in abyssal.ops, which knows the caller's names for them.

#include "emulator/bindings.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator/driver.hpp"
#include "quant/launchers.hpp"
#include "runtime/driver.hpp"
#include "runtime/error.hpp"
#include "runtime/kernel_image.hpp"

namespace py = pybind11;

namespace abyssal {
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The device index that stands for the emulator.
constexpr int kEmulated = -1;

Stream stream_of(int device, uintptr_t handle) {
  if (device == kEmulated) return {emulator::emulated_driver(), 0, nullptr};
  return {cuda_driver(), device, pointer<CUstream_st>(handle)};
}

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

// Loads every kernel of this build on `device`.
void load_kernels(int device) { quantize_1x128::load(stream_of(device, 0)); }

py::dict driver_report() {
  const DriverReport report = report_driver();
  py::dict result;
  result["version"] = report.version;
  result["reason"] = report.reason;
  return result;
}

// name -> {"cubin": bytes, "ptx": str, "ptxas_log": str}
py::dict images() {
  py::dict result;
  for (const KernelImage& image : kernel_images()) {
    py::dict parts;
    parts["cubin"] = py::bytes(image.cubin.view());
    parts["ptx"] = py::str(image.ptx.view());
    parts["ptxas_log"] = py::str(image.ptxas_log.view());
    result[py::str(image.name)] = parts;
  }
  return result;
}

}  // namespace
}  // namespace abyssal

PYBIND11_MODULE(_extension, module) {
  using namespace abyssal;
  module.doc() = "Kernels of Abyssal and the driver table that launches them.";
  py::register_exception<DeviceError>(module, "DeviceError", PyExc_RuntimeError);
  module.attr("kernels_absent") = ABYSSAL_KERNELS_ABSENT;
  module.attr("oldest_driver") = kOldestDriver;
  module.attr("emulated_device") = kEmulated;
  module.def("driver_report", &driver_report);
  module.def("kernel_images", &images);
  module.def("load_kernels", &load_kernels);
  module.def("quantize_1x128", &quantize_1x128_op);
  emulator::bind(module);
}

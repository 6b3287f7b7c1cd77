// What Python sees: plain functions over addresses, sizes and a stream, a file for each family.
// Shapes, types and devices are checked in abyssal.ops, which knows the caller's names for them.

#include "bindings.hpp"

#include "emulator/bindings.hpp"
#include "gemm/launchers.hpp"
#include "quant/launchers.hpp"
#include "runtime/driver.hpp"
#include "runtime/error.hpp"
#include "runtime/kernel_image.hpp"

namespace py = pybind11;

namespace abyssal {
namespace {

// Loads every kernel of this build on `device`.
void load_kernels(int device) {
  const Stream stream = stream_of(device, 0);
  for (const auto& family : {quantiser_kernels(), gemm_kernels()}) {
    for (const EntryPoint& kernel : family) load(stream, kernel);
  }
}

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
  bind_quantisers(module);
  bind_gemms(module);
  emulator::bind(module);
}

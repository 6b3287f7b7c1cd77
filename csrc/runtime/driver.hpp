// The table of driver functions: the one seam between this code and a device.
//
// Host code includes cuda.h for its types and calls the driver through a `Driver`. The table is
// filled from libcuda.so.1 by `cuda_driver()`, at the first use and not before: the extension
// links to no CUDA library and imports on any machine.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace abyssal {

// Every driver function that this project calls. The names pass through cuda.h's macros
// (cuCtxPushCurrent is cuCtxPushCurrent_v2), so that types and symbols are those of one version.
#define ABYSSAL_DRIVER_FUNCTIONS(X) \
  X(cuCtxGetCurrent)                \
  X(cuCtxGetDevice)                 \
  X(cuCtxPopCurrent)                \
  X(cuCtxPushCurrent)               \
  X(cuDeviceGet)                    \
  X(cuDeviceGetAttribute)           \
  X(cuDeviceGetCount)               \
  X(cuDeviceGetName)                \
  X(cuDevicePrimaryCtxRetain)       \
  X(cuDriverGetVersion)             \
  X(cuFuncSetAttribute)             \
  X(cuGetErrorName)                 \
  X(cuGetErrorString)               \
  X(cuInit)                         \
  X(cuKernelGetFunction)            \
  X(cuKernelGetParamInfo)           \
  X(cuLaunchKernelEx)               \
  X(cuLibraryGetKernel)             \
  X(cuLibraryLoadData)              \
  X(cuTensorMapEncodeTiled)         \
  X(cuThreadExchangeStreamCaptureMode)

// Memory that a kernel may touch, and how. A device that checks accesses needs to know.
struct Buffer {
  enum class Role { in, out, inout };
  const void* pointer;
  size_t bytes;
  Role role;
};

struct Driver {
#define X(function) decltype(&::function) function = nullptr;
  ABYSSAL_DRIVER_FUNCTIONS(X)
#undef X
  // What cuLibraryLoadData takes: NVIDIA's driver our cubins, the emulator their PTX.
  enum class Image { cubin, ptx };
  Image image = Image::cubin;
  // Told the buffers of the launch that follows; null where nobody listens.
  void (*declare_buffers)(std::span<const Buffer>) = nullptr;

  // Throws DeviceError, naming what was attempted, unless `result` is success.
  void check(CUresult result, const std::string& attempt) const;
};

// The oldest driver that loads our images: CUDA 13.0, R580.
inline constexpr int kOldestDriver = 13000;

// The NVIDIA driver, initialised. Throws DeviceError where there is none or it is too old, and in
// a process that was forked after the driver was first used.
const Driver& cuda_driver();

// What the machine has, found without throwing: the driver's CUDA version as 1000 * major + 10 *
// minor, 0 if there is none, and then the reason.
struct DriverReport {
  int version = 0;
  std::string reason;
};
DriverReport report_driver();

}  // namespace abyssal

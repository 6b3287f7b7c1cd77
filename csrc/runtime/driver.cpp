#include "runtime/driver.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include "runtime/error.hpp"

namespace abyssal {
namespace {

#define STRING_OF(token) #token
#define EXPANDED_STRING_OF(token) STRING_OF(token)

std::string version_string(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Fills the table from libcuda.so.1. The library stays loaded for the life of the process.
Driver load_cuda_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw DeviceError("there is no NVIDIA driver on this machine (libcuda.so.1 was not found)");
  }
  // An old driver lacks newer functions: ask for its version before anything else.
  using GetVersion = decltype(&::cuDriverGetVersion);
  auto get_version = reinterpret_cast<GetVersion>(dlsym(library, "cuDriverGetVersion"));
  int version = 0;
  if (get_version == nullptr || get_version(&version) != CUDA_SUCCESS) {
    throw DeviceError("libcuda.so.1 does not tell its version");
  }
  if (version < kOldestDriver) {
    throw DeviceError("the NVIDIA driver supports CUDA " + version_string(version) +
                      "; the kernels need driver R580 (CUDA 13.0) or newer");
  }
  Driver driver;
#define X(function)                                                                              \
  driver.function =                                                                              \
      reinterpret_cast<decltype(driver.function)>(dlsym(library, EXPANDED_STRING_OF(function))); \
  if (driver.function == nullptr) {                                                              \
    throw DeviceError("the NVIDIA driver lacks " EXPANDED_STRING_OF(function));                  \
  }
  ABYSSAL_DRIVER_FUNCTIONS(X)
#undef X
  driver.check(driver.cuInit(0), "initialising the NVIDIA driver");
  return driver;
}

}  // namespace

void Driver::check(CUresult result, const std::string& attempt) const {
  if (result == CUDA_SUCCESS) return;
  const char* name = "unknown error";
  const char* meaning = "";
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &meaning);
  throw DeviceError(attempt + " failed: " + meaning + " (" + name + ")");
}

const Driver& cuda_driver() {
  // A failed attempt throws out of the initialiser, and the next call tries again.
  static const Driver driver = load_cuda_driver();
  static const pid_t owner = getpid();
  if (getpid() != owner) {
    throw DeviceError(
        "this process was forked after the GPU was used, and CUDA does not survive a fork: start "
        "it with the multiprocessing method 'spawn'");
  }
  return driver;
}

DriverReport report_driver() {
  DriverReport report;
  try {
    const Driver& driver = cuda_driver();
    driver.check(driver.cuDriverGetVersion(&report.version), "asking for the driver's version");
  } catch (const DeviceError& error) {
    report.reason = error.what();
  }
  return report;
}

}  // namespace abyssal

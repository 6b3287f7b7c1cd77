#include "runtime/context.hpp"

#include <map>
#include <mutex>
#include <utility>

namespace abyssal {
namespace {

// Retained once for each device and kept: releasing the last reference would destroy a context
// that torch still uses.
CUcontext primary_context(const Driver& driver, int ordinal) {
  static std::mutex mutex;
  static std::map<std::pair<const Driver*, int>, CUcontext> retained;
  std::lock_guard lock(mutex);
  auto [entry, is_new] = retained.try_emplace({&driver, ordinal}, nullptr);
  if (is_new) {
    CUdevice device = 0;
    CUresult result = driver.cuDeviceGet(&device, ordinal);
    if (result == CUDA_SUCCESS) result = driver.cuDevicePrimaryCtxRetain(&entry->second, device);
    if (result != CUDA_SUCCESS) retained.erase(entry);
    driver.check(result, "taking the context of GPU " + std::to_string(ordinal));
  }
  return entry->second;
}

bool is_current(const Driver& driver, int ordinal) {
  CUcontext current = nullptr;
  driver.check(driver.cuCtxGetCurrent(&current), "asking for the current context");
  if (current == nullptr) return false;
  CUdevice wanted = 0, device = 0;
  driver.check(driver.cuDeviceGet(&wanted, ordinal), "finding GPU " + std::to_string(ordinal));
  driver.check(driver.cuCtxGetDevice(&device), "asking for the current device");
  return device == wanted;
}

}  // namespace

CurrentDevice::CurrentDevice(const Driver& driver, int device) : driver_(driver) {
  if (is_current(driver, device)) return;
  driver.check(driver.cuCtxPushCurrent(primary_context(driver, device)),
               "making GPU " + std::to_string(device) + " current");
  pushed_ = true;
}

CurrentDevice::~CurrentDevice() {
  CUcontext popped = nullptr;
  if (pushed_) driver_.cuCtxPopCurrent(&popped);
}

}  // namespace abyssal

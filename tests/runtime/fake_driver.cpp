// A stand-in for libcuda.so.1 that writes down how it is called. Its signatures are written from
// the driver's documentation, without cuda.h, so that it also checks names, versions and layouts.
//
// FAKE_DRIVER_VERSION: what cuDriverGetVersion answers (default 13000).
// FAKE_DRIVER_FAIL:    the function that answers error 999.
// FAKE_PARAMS_BYTES:   the size of each kernel's parameters: " kernel=bytes kernel=bytes".

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

std::vector<std::string> calls;
std::string joined;
thread_local std::vector<uintptr_t> contexts;  // 0x100 + device
thread_local int capture_mode = 0;             // global

int number(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

int answer(const char* function, const std::string& details = "") {
  calls.push_back(std::string(function) + (details.empty() ? "" : " " + details));
  const char* failing = std::getenv("FAKE_DRIVER_FAIL");
  return failing != nullptr and std::strcmp(failing, function) == 0 ? 999 : 0;
}

}  // namespace

extern "C" {

// For the tests: the calls so far, one a line; then forgotten.
const char* fake_calls() {
  joined.clear();
  for (const std::string& call : calls) joined += call + "\n";
  calls.clear();
  return joined.c_str();
}
void fake_set_context(uintptr_t context) {
  contexts.clear();
  if (context != 0) contexts.push_back(context);
}

int cuInit(unsigned) { return answer("cuInit"); }
int cuDriverGetVersion(int* version) {
  *version = number("FAKE_DRIVER_VERSION", 13000);
  return 0;
}
int cuGetErrorName(int, const char** name) { return *name = "CUDA_ERROR_UNKNOWN", 0; }
int cuGetErrorString(int, const char** text) { return *text = "unknown error", 0; }
int cuDeviceGetCount(int* count) { return *count = 2, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = 10 + ordinal, 0; }
int cuDeviceGetAttribute(int* value, int, int) { return *value = 0, 0; }
int cuDeviceGetName(char* name, int, int) { return *name = 0, 0; }

int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
  *context = 0x100 + device - 10;
  return answer("cuDevicePrimaryCtxRetain", std::to_string(device));
}
int cuCtxGetCurrent(uintptr_t* context) {
  return *context = contexts.empty() ? 0 : contexts.back(), 0;
}
int cuCtxGetDevice(int* device) { return *device = 10 + int(contexts.back() - 0x100), 0; }
int cuCtxPushCurrent_v2(uintptr_t context) {
  contexts.push_back(context);
  return answer("cuCtxPushCurrent", std::to_string(context));
}
int cuCtxPopCurrent_v2(uintptr_t* context) {
  *context = contexts.back();
  contexts.pop_back();
  return answer("cuCtxPopCurrent");
}
int cuThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(*mode, capture_mode);
  return 0;
}

int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**,
                      unsigned) {
  *library = const_cast<void*>(code);
  const bool is_elf = std::memcmp(code,
                                  "\x7f"
                                  "ELF",
                                  4) == 0;
  return answer("cuLibraryLoadData",
                std::string(is_elf ? "elf" : "?") + " mode " + std::to_string(capture_mode));
}
int cuLibraryGetKernel(void** kernel, void*, const char* name) {
  *kernel = strdup(name);
  return answer("cuLibraryGetKernel", name);
}
int cuKernelGetParamInfo(void* kernel, size_t, size_t* offset, size_t* bytes) {
  const char* sizes = std::getenv("FAKE_PARAMS_BYTES");
  const std::string key = std::string(" ") + static_cast<const char*>(kernel) + "=";
  const char* found = sizes == nullptr ? nullptr : std::strstr(sizes, key.c_str());
  *offset = 0;
  *bytes = found == nullptr ? 0 : std::atoi(found + key.size());
  return 0;
}
int cuKernelGetFunction(void** function, void* kernel) {
  *function = kernel;
  return answer("cuKernelGetFunction", "context " + std::to_string(contexts.back()) + " mode " +
                                           std::to_string(capture_mode));
}

int cuFuncSetAttribute(void*, int attribute, int value) {
  return answer("cuFuncSetAttribute", std::to_string(attribute) + " " + std::to_string(value));
}
int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const uint64_t*, const uint64_t*,
                           const unsigned*, const unsigned*, int, int, int, int) {
  return answer("cuTensorMapEncodeTiled");
}

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  uintptr_t stream;
  void* attributes;
  unsigned num_attributes;
};
int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  char text[400];
  auto* words = static_cast<const uint32_t*>(parameters[0]);
  auto* addresses = static_cast<const uint64_t*>(parameters[0]);
  std::snprintf(
      text, sizeof text,
      "%s grid %u %u %u block %u %u %u shared %u stream %lu attributes %u extra %d "
      "context %lu x %lu codes %lu scale %lu strides %lu %lu shape %u %u floor %08x pow2 %u",
      static_cast<const char*>(function), config->grid[0], config->grid[1], config->grid[2],
      config->block[0], config->block[1], config->block[2], config->shared_bytes, config->stream,
      config->num_attributes, extra != nullptr, contexts.empty() ? 0 : contexts.back(),
      addresses[0], addresses[1], addresses[2], addresses[3], addresses[4], words[10], words[11],
      words[12], words[13]);
  return answer("cuLaunchKernelEx", text);
}

}  // extern "C"

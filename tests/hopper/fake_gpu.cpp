// A stand-in for libcuda.so.1 that computes what a few microkernels compute, on the host. It is
// compiled against cuda.h, so that names, structs and orders of arguments are the driver's.
//
// FAKE_HANG, FAKE_FAIL, FAKE_EXIT, FAKE_OVERRUN: the name of a kernel that never ends, that makes
// the next synchronisation fail, that ends the process, that writes one byte too far.
// FAKE_MAJOR: the compute capability's major number (default 9).

#include <cuda.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct Kernel {
  const char* name;
  std::vector<size_t> param_bytes;
};
Kernel kernels[] = {
    {"bulk_copy", {8, 4, 8}},
    {"tma_load_2d", {128, 4, 4, 4, 8}},
    {"tma_load_3d", {128, 4, 4, 4, 4, 8}},
    {"cluster_ranks", {8}},
    {"primary", {8, 8}},
    {"secondary", {8, 4, 8}},
    {"wgmma_bf16_n64_k_none_k_none", {8, 8, 8}},
};

// What cuTensorMapEncodeTiled keeps; 128 bytes hold it.
struct Map {
  uint32_t type, rank, swizzle, fill;
  uint64_t address;
  uint32_t dims[5], box[5], steps[5], padding;
  uint32_t strides[5];
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

bool failed = false;
int dynamic_shared_bytes = 0;

bool is_named(const char* variable, const char* kernel) {
  const char* name = std::getenv(variable);
  return name != nullptr and std::strcmp(name, kernel) == 0;
}

template <typename T>
T param(void** params, int index) {
  T value;
  std::memcpy(&value, params[index], sizeof(T));
  return value;
}

// A box of 1-byte or 4-byte elements to `out`, 0 out of bounds.
void load_box(const Map& map, const int* at, char* out) {
  const uint32_t bytes = map.type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 4;
  uint64_t count = 1;
  for (uint32_t d = 0; d < map.rank; ++d) count *= map.box[d];
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t rest = i;
    int64_t offset = 0;
    bool inside = true;
    for (uint32_t d = 0; d < map.rank; ++d) {
      const int64_t x = at[d] + static_cast<int64_t>(rest % map.box[d]);
      rest /= map.box[d];
      inside = inside and x >= 0 and x < map.dims[d];
      offset += x * (d == 0 ? bytes : map.strides[d]);
    }
    std::memset(out + i * bytes, 0, bytes);
    if (inside) {
      std::memcpy(out + i * bytes, reinterpret_cast<char*>(map.address) + offset, bytes);
    }
  }
}

void compute(const std::string& name, const CUlaunchConfig& config, void** params) {
  unsigned int cluster = 1;
  bool dependent = false;
  for (unsigned int i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      cluster = attribute.value.clusterDim.x;
    }
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      dependent = attribute.value.programmaticStreamSerializationAllowed == 1;
    }
  }
  const int n = static_cast<int>(config.gridDimX * config.blockDimX);
  if (name == "bulk_copy") {
    const int bytes = param<int>(params, 1);
    std::memcpy(param<char*>(params, 2), param<char*>(params, 0), bytes);
    if (is_named("FAKE_OVERRUN", "bulk_copy")) param<char*>(params, 2)[bytes] = 1;
  } else if (name == "tma_load_2d" or name == "tma_load_3d") {
    Map map;
    std::memcpy(&map, params[0], sizeof(map));
    int at[3] = {param<int>(params, 1), param<int>(params, 2), param<int>(params, 3)};
    load_box(map, at, param<char*>(params, 2 + static_cast<int>(map.rank)));
  } else if (name == "cluster_ranks") {
    auto* out = param<uint32_t*>(params, 0);
    for (unsigned int block = 0; block < config.gridDimX; ++block) {
      out[2 * block] = block % cluster;
      out[2 * block + 1] = cluster;
    }
  } else if (name == "primary") {
    const int* in = param<int*>(params, 0);
    for (int i = 0; i < n; ++i) param<int*>(params, 1)[i] = in[i] * in[i];
  } else if (name == "secondary" and dependent) {
    const int* data = param<int*>(params, 0);
    const int count = param<int>(params, 1);
    for (int i = 0; i < n; ++i) param<int*>(params, 2)[i] = data[count - 1 - i] + 1;
  } else if (name.starts_with("wgmma")) {  // tells the dynamic shared memory it was given
    *param<int*>(params, 2) = static_cast<int>(config.sharedMemBytes);
    param<int*>(params, 2)[1] = dynamic_shared_bytes;
  }
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : nullptr;
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_LAUNCH_FAILED ? "unspecified launch failure" : nullptr;
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  std::strncpy(name, "no GPU", bytes);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  const char* major = std::getenv("FAKE_MAJOR");
  const bool is_major = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
  *value = is_major ? (major == nullptr ? 9 : std::atoi(major)) : 0;
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(0x100);
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  return context == reinterpret_cast<CUcontext>(0x100) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  *stream = reinterpret_cast<CUstream>(0x200);
  return flags == CU_STREAM_NON_BLOCKING ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuStreamSynchronize(CUstream stream) {
  if (stream != reinterpret_cast<CUstream>(0x200)) return CUDA_ERROR_INVALID_HANDLE;
  return failed ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
  *pointer = reinterpret_cast<CUdeviceptr>(std::aligned_alloc(512, (bytes + 511) / 512 * 512));
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr pointer) {
  std::free(reinterpret_cast<void*>(pointer));
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**,
                           unsigned int jit_options, CUlibraryOption*, void**,
                           unsigned int options) {
  *library = reinterpret_cast<CUlibrary>(0x300);
  const bool fits = code != nullptr and jit_options == 0 and options == 0;
  return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char* name) {
  for (Kernel& known : kernels) {
    if (std::strcmp(known.name, name) == 0) {
      *kernel = reinterpret_cast<CUkernel>(&known);
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_NOT_FOUND;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* bytes) {
  const auto& sizes = reinterpret_cast<Kernel*>(kernel)->param_bytes;
  if (index >= sizes.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = 0;
  *bytes = sizes[index];
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  dynamic_shared_bytes = value;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                          void** extra) {
  const char* name = reinterpret_cast<Kernel*>(function)->name;
  const bool fits = config->gridDimY == 1 and config->gridDimZ == 1 and config->blockDimY == 1 and
                    config->blockDimZ == 1 and extra == nullptr and
                    config->hStream == reinterpret_cast<CUstream>(0x200);
  if (not fits) return CUDA_ERROR_INVALID_VALUE;
  if (is_named("FAKE_HANG", name)) pause();
  if (is_named("FAKE_EXIT", name)) _exit(1);
  failed = failed or is_named("FAKE_FAIL", name);
  compute(name, *config, params);
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (reinterpret_cast<uintptr_t>(out) % 64 != 0) return CUDA_ERROR_MISALIGNED_ADDRESS;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return CUDA_ERROR_INVALID_VALUE;
  if (promotion != CU_TENSOR_MAP_L2_PROMOTION_NONE) return CUDA_ERROR_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  Map map = {};
  map.type = type;
  map.rank = rank;
  map.swizzle = swizzle;
  map.fill = fill;
  map.address = reinterpret_cast<uint64_t>(address);
  for (cuuint32_t d = 0; d < rank; ++d) {
    map.dims[d] = static_cast<uint32_t>(dims[d]);
    map.box[d] = box[d];
    map.steps[d] = steps[d];
    if (d > 0) map.strides[d] = static_cast<uint32_t>(strides[d - 1]);
    if (d > 0 and strides[d - 1] % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(out, &map, sizeof(map));
  return CUDA_SUCCESS;
}

}  // extern "C"

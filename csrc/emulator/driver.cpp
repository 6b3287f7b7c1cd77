#include "emulator/driver.hpp"

#include <cstring>
#include <mutex>
#include <utility>

#include "emulator/device.hpp"
#include "emulator/group.hpp"
#include "emulator/tensor_map.hpp"
#include "runtime/error.hpp"

// The driver's handles are pointers to these.
struct CUlib_st {
  abyssal::emulator::LoadedModule module;
};
struct CUkern_st {
  abyssal::emulator::LoadedModule* module;
  std::string name;
};

namespace abyssal::emulator {
namespace {

std::mutex options_mutex;
Options current_options;

void (*surroundings)(const Run&) = [](const Run& run) { run(nullptr); };

// Of the launch that follows on this thread.
thread_local std::vector<Allocation> declared;
// Why the last call on this thread failed.
thread_local std::string last_reason = "an error of the emulator";

CUcontext the_context() {
  static int context;
  return reinterpret_cast<CUcontext>(&context);
}

CUresult context_current(CUcontext* context) {
  *context = the_context();
  return CUDA_SUCCESS;
}

CUresult context_device(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult context_pop(CUcontext* context) { return context_current(context); }
CUresult context_push(CUcontext) { return CUDA_SUCCESS; }

CUresult device_get(CUdevice* device, int) { return context_device(device); }

CUresult device_attribute(int* value, CUdevice_attribute attribute, CUdevice) {
  std::lock_guard lock(options_mutex);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = 0;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = static_cast<int>(current_options.num_sms);
      break;
    default:
      last_reason = "the emulated device does not tell its attribute " + std::to_string(attribute);
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult device_count(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult device_name(char* name, int length, CUdevice) {
  if (length < 1) return CUDA_ERROR_INVALID_VALUE;
  std::strncpy(name, "Abyssal's Hopper emulator", static_cast<size_t>(length) - 1);
  name[length - 1] = '\0';
  return CUDA_SUCCESS;
}

CUresult primary_context(CUcontext* context, CUdevice) { return context_current(context); }

CUresult driver_version(int* version) {
  *version = kOldestDriver;
  return CUDA_SUCCESS;
}

CUresult error_name(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
          : error == CUDA_ERROR_NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
          : error == CUDA_ERROR_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
                                              : "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}

CUresult error_string(CUresult, const char** text) {
  *text = last_reason.c_str();
  return CUDA_SUCCESS;
}

CUresult init(unsigned int) { return CUDA_SUCCESS; }

// Kernels. A function is its kernel.

CUfunction function_of(CUkernel kernel) { return reinterpret_cast<CUfunction>(kernel); }
CUkernel kernel_of(CUfunction function) { return reinterpret_cast<CUkernel>(function); }

CUresult kernel_function(CUfunction* function, CUkernel kernel) {
  *function = function_of(kernel);
  return CUDA_SUCCESS;
}

CUresult kernel_param_info(CUkernel kernel, size_t index, size_t* offset, size_t* bytes) {
  const auto program = kernel->module->program(kernel->name);
  const ptx::Kernel& syntax = *program->kernel;
  if (index >= static_cast<size_t>(syntax.num_params)) return CUDA_ERROR_INVALID_VALUE;
  *offset = syntax.variables[index].offset;
  *bytes = syntax.variables[index].bytes;
  return CUDA_SUCCESS;
}

CUresult library_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  try {
    library->module.program(name);
  } catch (const std::out_of_range& error) {
    last_reason = error.what();
    return CUDA_ERROR_NOT_FOUND;
  }
  // Kernels stay for the life of the process, as the driver's do while their library is loaded.
  *kernel = new CUkern_st{&library->module, name};
  return CUDA_SUCCESS;
}

CUresult library_load(CUlibrary* library, const void* text, CUjit_option*, void**, unsigned int,
                      CUlibraryOption*, void**, unsigned int) {
  *library = new CUlib_st{LoadedModule(static_cast<const char*>(text))};
  return CUDA_SUCCESS;
}

CUresult function_attribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult exchange_capture_mode(CUstreamCaptureMode*) { return CUDA_SUCCESS; }

void declare_buffers(std::span<const Buffer> buffers) {
  declared.clear();
  for (const Buffer& buffer : buffers) {
    if (buffer.bytes == 0) continue;
    declared.push_back({reinterpret_cast<uintptr_t>(buffer.pointer), buffer.bytes, buffer.role});
  }
}

LaunchArguments arguments_of(const CUlaunchConfig& config, const ptx::Kernel& kernel,
                             void** values) {
  LaunchArguments arguments;
  arguments.grid = {config.gridDimX, config.gridDimY, config.gridDimZ};
  arguments.threads = {config.blockDimX, config.blockDimY, config.blockDimZ};
  arguments.dynamic_shared_bytes = config.sharedMemBytes;
  for (unsigned int i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      const auto& cluster = attribute.value.clusterDim;
      arguments.cluster = {cluster.x, cluster.y, cluster.z};
      arguments.has_cluster = true;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      arguments.overlaps_previous = attribute.value.programmaticStreamSerializationAllowed != 0;
    }
  }
  arguments.params.resize(kernel.param_bytes);
  for (int i = 0; i < kernel.num_params; ++i) {
    const ptx::Variable& param = kernel.variables[i];
    std::memcpy(arguments.params.data() + param.offset, values[i], param.bytes);
  }
  arguments.buffers = std::exchange(declared, {});
  return arguments;
}

CUresult launch_kernel(const CUlaunchConfig* config, CUfunction function, void** values, void**) {
  const CUkernel kernel = kernel_of(function);
  const auto program = kernel->module->program(kernel->name);
  Options options;
  {
    std::lock_guard lock(options_mutex);
    options = current_options;
  }
  try {
    LaunchDescription launch = describe_launch(*kernel->module, kernel->name,
                                               arguments_of(*config, *program->kernel, values));
    const auto stream = reinterpret_cast<uintptr_t>(config->hStream);
    if (LaunchGroup* group = LaunchGroup::current()) {
      group->add(0, stream, std::move(launch));
      return CUDA_SUCCESS;
    }
    LaunchGroup alone;
    alone.add(0, stream, std::move(launch));
    Machine machine(options);
    surroundings([&](void (*interrupted)()) { alone.run(machine, interrupted); });
  } catch (const std::invalid_argument& error) {
    last_reason = error.what();
    return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult tensor_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                    const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                    const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                    CUtensorMapFloatOOBfill fill) {
  return encode_tiled(map, type, rank, address, extents, strides, box, element_strides, interleave,
                      swizzle, promotion, fill, last_reason);
}

Driver make_table() {
  Driver driver;
  driver.cuCtxGetCurrent = context_current;
  driver.cuCtxGetDevice = context_device;
  driver.cuCtxPopCurrent = context_pop;
  driver.cuCtxPushCurrent = context_push;
  driver.cuDeviceGet = device_get;
  driver.cuDeviceGetAttribute = device_attribute;
  driver.cuDeviceGetCount = device_count;
  driver.cuDeviceGetName = device_name;
  driver.cuDevicePrimaryCtxRetain = primary_context;
  driver.cuDriverGetVersion = driver_version;
  driver.cuFuncSetAttribute = function_attribute;
  driver.cuGetErrorName = error_name;
  driver.cuGetErrorString = error_string;
  driver.cuInit = init;
  driver.cuKernelGetFunction = kernel_function;
  driver.cuKernelGetParamInfo = kernel_param_info;
  driver.cuLaunchKernelEx = launch_kernel;
  driver.cuLibraryGetKernel = library_kernel;
  driver.cuLibraryLoadData = library_load;
  driver.cuTensorMapEncodeTiled = tensor_map;
  driver.cuThreadExchangeStreamCaptureMode = exchange_capture_mode;
  driver.declare_buffers = declare_buffers;
  driver.image = Driver::Image::ptx;
  return driver;
}

}  // namespace

const Driver& emulated_driver() {
  static const Driver driver = make_table();
  return driver;
}

void set_driver_options(const Options& options) {
  std::lock_guard lock(options_mutex);
  current_options = options;
}

void set_driver_surroundings(void (*around)(const Run&)) { surroundings = around; }

}  // namespace abyssal::emulator

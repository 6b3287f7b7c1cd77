#include "runtime/launch.hpp"

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "runtime/error.hpp"
#include "runtime/kernel_image.hpp"

namespace abyssal {
namespace {

const KernelImage& find_image(std::string_view name) {
  for (const KernelImage& image : kernel_images()) {
    if (image.name == name) return image;
  }
  throw DeviceError("this build of Abyssal has no kernel " + std::string(name) + ": " +
                    (kernel_images().empty() ? ABYSSAL_KERNELS_ABSENT : "it is unknown"));
}

// Loading may need what a capturing thread must not do otherwise (memory, implicit waits). None of
// it touches the captured streams, so the thread's mode is relaxed meanwhile.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  const Driver& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

void check_params_size(const Driver& driver, CUkernel kernel, const EntryPoint& wanted) {
  size_t offset = 0, bytes = 0;
  driver.check(driver.cuKernelGetParamInfo(kernel, 0, &offset, &bytes),
               "reading the parameters of " + std::string(wanted.name));
  if (bytes != wanted.params_bytes) {
    throw DeviceError(std::string(wanted.name) + " takes " + std::to_string(bytes) +
                      " bytes of parameters and the host has " +
                      std::to_string(wanted.params_bytes) + ": a broken build");
  }
}

// Images are loaded once for each driver table, kernels once for each device, under one lock.
class LoadedKernels {
 public:
  // `shared_bytes`: dynamic shared memory that a launch will ask for.
  CUfunction get(const Stream& stream, const EntryPoint& kernel, unsigned int shared_bytes = 0) {
    std::lock_guard lock(mutex_);
    auto [entry, is_new] = functions_.try_emplace({&stream.driver, stream.device, kernel.name});
    Function& function = entry->second;
    if (is_new) {
      try {
        function.handle = load(stream.driver, kernel);
      } catch (...) {
        functions_.erase(entry);
        throw;
      }
    }
    if (shared_bytes > function.shared_bytes) {
      stream.driver.check(
          stream.driver.cuFuncSetAttribute(function.handle,
                                           CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                           static_cast<int>(shared_bytes)),
          "giving " + std::to_string(shared_bytes) + " bytes of shared memory to " + kernel.name);
      function.shared_bytes = shared_bytes;
    }
    return function.handle;
  }

 private:
  struct Function {
    CUfunction handle = nullptr;
    // What a kernel may have without asking.
    unsigned int shared_bytes = 48 * 1024;
  };

  CUfunction load(const Driver& driver, const EntryPoint& kernel) {
    RelaxedCapture relaxed(driver);
    CUkernel handle = nullptr;
    driver.check(driver.cuLibraryGetKernel(&handle, library(driver, kernel.image), kernel.name),
                 "finding kernel " + std::string(kernel.name));
    check_params_size(driver, handle, kernel);
    CUfunction function = nullptr;
    driver.check(driver.cuKernelGetFunction(&function, handle),
                 "loading kernel " + std::string(kernel.name));
    return function;
  }

  CUlibrary library(const Driver& driver, std::string_view image) {
    auto found = libraries_.find({&driver, image});
    if (found != libraries_.end()) return found->second;
    CUlibrary loaded = nullptr;
    const KernelImage& files = find_image(image);
    const char* data = driver.image == Driver::Image::ptx ? files.ptx.begin : files.cubin.begin;
    driver.check(driver.cuLibraryLoadData(&loaded, data, nullptr, nullptr, 0, nullptr, nullptr, 0),
                 "loading the kernel image " + std::string(image));
    return libraries_[{&driver, image}] = loaded;
  }

  std::mutex mutex_;
  std::map<std::pair<const Driver*, std::string_view>, CUlibrary> libraries_;
  std::map<std::tuple<const Driver*, int, std::string_view>, Function> functions_;
};

// Never destroyed: at exit, the driver may be gone before static objects are.
LoadedKernels& loaded_kernels() {
  static LoadedKernels& kernels = *new LoadedKernels;
  return kernels;
}

}  // namespace

void load(const Stream& stream, const EntryPoint& kernel) {
  CurrentDevice current(stream.driver, stream.device);
  loaded_kernels().get(stream, kernel);
}

void launch(const Stream& stream, const EntryPoint& kernel, const Grid& grid, const void* params,
            std::initializer_list<Buffer> buffers) {
  const Driver& driver = stream.driver;
  CurrentDevice current(driver, stream.device);
  CUfunction function = loaded_kernels().get(stream, kernel, grid.shared_bytes);
  if (driver.declare_buffers != nullptr) {
    driver.declare_buffers({buffers.begin(), buffers.size()});
  }
  CUlaunchConfig config = {};
  config.gridDimX = grid.blocks;
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = grid.threads_per_block;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = grid.shared_bytes;
  config.hStream = stream.handle;
  CUlaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (grid.blocks_per_cluster > 1) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {grid.blocks_per_cluster, 1, 1};
  }
  if (grid.overlaps_previous) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  void* arguments[] = {const_cast<void*>(params)};
  driver.check(driver.cuLaunchKernelEx(&config, function, arguments, nullptr),
               "launching " + std::string(kernel.name));
}

}  // namespace abyssal

#include "emulator/device.hpp"

#include <algorithm>
#include <stdexcept>

#include "emulator/ptx/parser.hpp"

namespace abyssal::emulator {
namespace {

constexpr uint64_t kMostThreads = 1024;
constexpr uint64_t kMostSharedBytes = 227 * 1024;
constexpr uint64_t kMostClusterBlocks = 16;

std::string describe_count(uint64_t count, const char* what) {
  return std::to_string(count) + " " + what;
}

void check_extents(const LaunchArguments& arguments, const ptx::Kernel& kernel) {
  const uint64_t threads = arguments.threads.count();
  if (threads == 0 || threads > kMostThreads) {
    throw std::invalid_argument("block has " + describe_count(threads, "threads") +
                                ": 1 to 1024 are possible");
  }
  if (arguments.grid.count() == 0) throw std::invalid_argument("grid has no blocks");
  if (kernel.max_threads[0] != 0) {
    const uint64_t most =
        uint64_t{kernel.max_threads[0]} * kernel.max_threads[1] * kernel.max_threads[2];
    if (threads > most) {
      throw std::invalid_argument("block has " + describe_count(threads, "threads") + " and " +
                                  kernel.name + " is compiled for " + std::to_string(most));
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    const uint32_t required = kernel.required_threads[axis];
    if (required != 0 && required != arguments.threads[axis]) {
      throw std::invalid_argument(kernel.name + " requires blocks of another size (.reqntid)");
    }
    if (arguments.grid[axis] % arguments.cluster[axis] != 0) {
      throw std::invalid_argument("grid is no multiple of the cluster along axis " +
                                  std::to_string(axis));
    }
  }
  if (arguments.cluster.count() > kMostClusterBlocks) {
    throw std::invalid_argument("a cluster of " + std::to_string(arguments.cluster.count()) +
                                " blocks: 16 are possible");
  }
}

}  // namespace

LoadedModule::LoadedModule(std::string text) {
  image_.module = ptx::parse(std::move(text));
  for (const ptx::Variable& variable : image_.module->variables) {
    const bool has_storage =
        variable.space == ptx::Space::global || variable.space == ptx::Space::constant;
    if (!has_storage) {
      image_.addresses.push_back(0);
      continue;
    }
    auto& memory = storage_.emplace_back(std::calloc(variable.bytes + variable.alignment, 1));
    if (memory == nullptr) {
      throw EmulatorError(FaultKind::invalid, "there is no memory for the " +
                                                  std::to_string(variable.bytes) + " bytes of " +
                                                  ptx::quoted(variable.name));
    }
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    const uint64_t aligned =
        (address + variable.alignment - 1) / variable.alignment * variable.alignment;
    const size_t given = std::min<size_t>(variable.initial.size(), variable.bytes);
    std::copy_n(variable.initial.data(), given, reinterpret_cast<uint8_t*>(aligned));
    image_.addresses.push_back(aligned);
  }
}

std::shared_ptr<const Program> LoadedModule::program(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto known = programs_.find(name);
  if (known != programs_.end()) return known->second;
  for (const ptx::Kernel& kernel : syntax().kernels) {
    if (kernel.name == name) return programs_[name] = decode(image_, kernel);
  }
  std::string message = "there is no kernel " + name + " in this module; it has";
  for (const ptx::Kernel& kernel : syntax().kernels) message += " " + kernel.name;
  throw std::out_of_range(message);
}

std::vector<Allocation> LoadedModule::variables() const {
  std::vector<Allocation> result;
  for (size_t i = 0; i < syntax().variables.size(); ++i) {
    const ptx::Variable& variable = syntax().variables[i];
    if (image_.addresses[i] == 0 || variable.bytes == 0) continue;
    const bool is_constant = variable.space == ptx::Space::constant;
    result.push_back({image_.addresses[i], variable.bytes,
                      is_constant ? Buffer::Role::in : Buffer::Role::inout});
  }
  return result;
}

LaunchDescription describe_launch(LoadedModule& module, const std::string& name,
                                  LaunchArguments arguments) {
  LaunchDescription launch;
  launch.program = module.program(name);
  const ptx::Kernel& kernel = *launch.program->kernel;
  if (kernel.cluster[0] != 0) {
    const Extent required{kernel.cluster[0], kernel.cluster[1], kernel.cluster[2]};
    const bool is_other = arguments.has_cluster &&
                          (arguments.cluster.x != required.x || arguments.cluster.y != required.y ||
                           arguments.cluster.z != required.z);
    if (is_other) throw std::invalid_argument(name + " is compiled for clusters of another size");
    arguments.cluster = required;
    arguments.has_cluster = true;
  }
  check_extents(arguments, kernel);
  if (arguments.params.size() != kernel.param_bytes) {
    throw std::invalid_argument(name + " takes " + std::to_string(kernel.param_bytes) +
                                " bytes of parameters, not " +
                                std::to_string(arguments.params.size()));
  }
  const uint64_t shared = uint64_t{launch.program->shared_bytes} + arguments.dynamic_shared_bytes;
  if (shared > kMostSharedBytes) {
    throw std::invalid_argument(name + " needs " + std::to_string(shared) +
                                " bytes of shared memory; a block has at most 227 KiB");
  }
  launch.grid = arguments.grid;
  launch.threads = arguments.threads;
  launch.cluster = arguments.cluster;
  launch.has_cluster = arguments.has_cluster;
  launch.dynamic_shared_bytes = arguments.dynamic_shared_bytes;
  launch.params = std::move(arguments.params);
  launch.buffers = std::move(arguments.buffers);
  launch.overlaps_previous = arguments.overlaps_previous;
  for (const Allocation& variable : module.variables()) launch.buffers.push_back(variable);
  return launch;
}

}  // namespace abyssal::emulator

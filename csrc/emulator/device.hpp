// A device that PTX is loaded on and launched on.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/decoder.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {

// The PTX of one translation unit, with its global variables.
class LoadedModule {
 public:
  explicit LoadedModule(std::string text);

  const ptx::Module& syntax() const { return *image_.module; }
  // Throws std::out_of_range where there is no such kernel, PtxError for what cannot be decoded.
  std::shared_ptr<const Program> program(const std::string& kernel);
  // Every `.global` and `.const` variable.
  std::vector<Allocation> variables() const;

 private:
  ModuleImage image_;
  // Of calloc: what nobody touches of a large variable takes no memory.
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<void, Free>> storage_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Program>> programs_;
};

// What a launch gives besides the kernel.
struct LaunchArguments {
  Extent grid, threads, cluster;
  bool has_cluster = false;
  uint32_t dynamic_shared_bytes = 0;
  std::vector<std::byte> params;
  std::vector<Allocation> buffers;
  bool overlaps_previous = false;
};

// Checks a launch as a driver does, and puts it together. Throws std::invalid_argument.
LaunchDescription describe_launch(LoadedModule& module, const std::string& kernel,
                                  LaunchArguments arguments);

}  // namespace abyssal::emulator

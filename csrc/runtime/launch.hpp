// Loading kernels and launching them.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "runtime/context.hpp"
#include "runtime/driver.hpp"

namespace abyssal {

// A kernel as a name: an entry point of an image, and the size of the one struct that it takes.
struct EntryPoint {
  std::string_view image;  // "quantize_1x128"
  const char* name;        // "quantize_1x128_bf16"
  size_t params_bytes;
};

// The same with the type of the struct.
template <typename Params>
struct Kernel : EntryPoint {
  constexpr Kernel(std::string_view image, const char* name)
      : EntryPoint{image, name, sizeof(Params)} {}
};

struct Grid {
  unsigned int blocks;
  unsigned int threads_per_block;
  unsigned int shared_bytes = 0;        // dynamic, of each block
  unsigned int blocks_per_cluster = 1;  // `blocks` must be a multiple
  // Programmatic dependent launch: blocks may begin before the kernel ahead of it in the stream
  // has ended, and must wait for it (griddepcontrol.wait) before they read what it writes.
  bool overlaps_previous = false;
};

// Loads the kernel's image into the process, and the kernel on the stream's device: what the first
// launch would do. Safe inside a graph capture. Throws DeviceError.
void load(const Stream& stream, const EntryPoint& kernel);

// Queues `kernel` on `stream`. `params` is copied before this returns; nothing is allocated on
// the device and the host does not wait for it. Throws DeviceError, naming the kernel.
void launch(const Stream& stream, const EntryPoint& kernel, const Grid& grid, const void* params,
            std::initializer_list<Buffer> buffers);

template <typename Params>
void launch(const Stream& stream, const Kernel<Params>& kernel, const Grid& grid,
            const Params& params, std::initializer_list<Buffer> buffers) {
  launch(stream, kernel, grid, static_cast<const void*>(&params), buffers);
}

}  // namespace abyssal

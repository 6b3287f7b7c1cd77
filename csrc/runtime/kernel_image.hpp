// The compiled kernels inside this extension, one entry a kernel file.
#pragma once

#include <span>
#include <string_view>
#include <vector>

namespace abyssal {

// Bytes that the assembler embedded, [begin, end).
struct EmbeddedFile {
  const char* begin;
  const char* end;
  std::string_view view() const { return {begin, static_cast<size_t>(end - begin)}; }
};

struct KernelImage {
  std::string_view name;   // the stem of the kernel file: "quantize_1x128"
  EmbeddedFile cubin;      // what the driver loads, ptxas made it from `ptx`
  EmbeddedFile ptx;        // what the emulator runs
  EmbeddedFile ptxas_log;  // registers, spills and stack of each entry point
};

// Empty if the extension was built without kernels. (Made by cmake/embed_kernels.cmake.)
std::span<const KernelImage> kernel_images();

}  // namespace abyssal

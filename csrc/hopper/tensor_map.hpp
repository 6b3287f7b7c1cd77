// The tensor map as kernels see it. Host and device share this file.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// 128 opaque bytes with the size and alignment of cuda.h's CUtensorMap, which the host fills.
// Kernels take it as a `const __grid_constant__` parameter, or in a struct that is one, and pass
// on its address alone.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

}  // namespace abyssal::hopper

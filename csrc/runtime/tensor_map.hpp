// Tensor maps: what the host tells TMA about a tensor in global memory.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/driver.hpp"

namespace abyssal {

// A tensor of up to 5 dimensions and the box that one copy moves; innermost dimension first, as
// the driver counts them.
struct TensorMapDescription {
  const char* name;  // of the tensor, for errors
  const void* address;
  CUtensorMapDataType type;
  uint32_t rank;
  std::array<uint64_t, 5> extents;  // elements
  std::array<uint64_t, 4> strides;  // bytes, of all dimensions but the innermost
  std::array<uint32_t, 5> box;      // elements
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
  CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
};

// Throws DeviceError, naming the tensor and, from the emulator, the rule that is broken.
CUtensorMap encode_tensor_map(const Driver& driver, const TensorMapDescription& tensor);

}  // namespace abyssal

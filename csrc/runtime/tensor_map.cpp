#include "runtime/tensor_map.hpp"

namespace abyssal {

CUtensorMap encode_tensor_map(const Driver& driver, const TensorMapDescription& tensor) {
  CUtensorMap map;
  const std::array<uint32_t, 5> element_strides{1, 1, 1, 1, 1};
  const CUresult result = driver.cuTensorMapEncodeTiled(
      &map, tensor.type, tensor.rank, const_cast<void*>(tensor.address), tensor.extents.data(),
      tensor.strides.data(), tensor.box.data(), element_strides.data(),
      CU_TENSOR_MAP_INTERLEAVE_NONE, tensor.swizzle, tensor.promotion,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  driver.check(result, std::string("describing ") + tensor.name + " to TMA");
  return map;
}

}  // namespace abyssal

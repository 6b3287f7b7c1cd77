#include "quant/launchers.hpp"

namespace abyssal {

std::vector<EntryPoint> quantiser_kernels() {
  std::vector<EntryPoint> all;
  const auto add = [&](const auto& kernels) {
    all.insert(all.end(), std::begin(kernels), std::end(kernels));
  };
  add(quantize_1x128::kKernels);
  add(quantize_1x128_both::kKernels);
  add(quantize_128x128::kKernels);
  add(retile_128x1::kKernels);
  add(rms_norm_quantize::kKernels);
  add(swiglu_quantize::kKernels);
  add(swiglu_quantize_backward::kKernels);
  return all;
}

}  // namespace abyssal

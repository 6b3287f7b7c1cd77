#include "quant/launchers.hpp"

namespace abyssal {

std::vector<EntryPoint> quantiser_kernels() {
  std::vector<EntryPoint> all;
  const auto add = [&](const auto& kernels) {
    all.insert(all.end(), std::begin(kernels), std::end(kernels));
  };
  add(quantize_1x128::kKernels);
  return all;
}

}  // namespace abyssal

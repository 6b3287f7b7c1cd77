// The GEMMs' launcher and the choice of their tiles, for Python.

#include "bindings.hpp"

#include "gemm/launchers.hpp"
#include "runtime/error.hpp"

namespace abyssal {
namespace {

namespace py = pybind11;
using gemm::Groups;
using gemm::Share;

// Matrices as Python describes them: address, then extents and strides of three dimensions.
using Description = std::array<int64_t, 7>;

gemm::Matrices matrices(const Description& x) {
  return {pointer<const void>(x[0]), x[1], x[2], x[3], x[4], x[5], x[6]};
}

// (kernel, share, split_k, strip_n, blocks)
using ChoiceOfPython = std::tuple<std::string, Share, int32_t, int32_t, int32_t>;

gemm::Choice choice_of(const ChoiceOfPython& wanted) {
  for (const gemm::Variant& variant : gemm::variants()) {
    if (variant.kernel.name == std::get<0>(wanted)) {
      return {&variant, std::get<1>(wanted), std::get<2>(wanted), std::get<3>(wanted),
              std::get<4>(wanted)};
    }
  }
  throw DeviceError("there is no kernel " + std::get<0>(wanted));
}

gemm::Product product_of(const Description& a, const Description& scale_a, const Description& b,
                         const Description& scale_b, const Description& d, bool square_scales,
                         bool d_is_fp32, bool accumulate, Groups groups_are, int32_t groups,
                         uintptr_t offsets) {
  return {.a = matrices(a),
          .scale_a = matrices(scale_a),
          .b = matrices(b),
          .scale_b = matrices(scale_b),
          .d = matrices(d),
          .square_scales = square_scales,
          .d_is_fp32 = d_is_fp32,
          .accumulate = accumulate,
          .groups_are = groups_are,
          .groups = groups,
          .offsets = pointer<const int32_t>(offsets)};
}

void fp8_gemm(int device, uintptr_t stream, const Description& a, const Description& scale_a,
              const Description& b, const Description& scale_b, const Description& d,
              bool square_scales, bool d_is_fp32, bool accumulate, Groups groups_are,
              int32_t groups, uintptr_t offsets, const std::optional<ChoiceOfPython>& choice) {
  const gemm::Product product = product_of(a, scale_a, b, scale_b, d, square_scales, d_is_fp32,
                                           accumulate, groups_are, groups, offsets);
  gemm::Choice chosen;
  if (choice) chosen = choice_of(*choice);
  gemm::launch(stream_of(device, stream), product, choice ? &chosen : nullptr);
}

// (kernel, blocks, threads of a block, blocks of a cluster, bytes of shared memory, parameters):
// for who launches the PTX on the emulator.
py::tuple prepare_fp8_gemm(const Description& a, const Description& scale_a, const Description& b,
                           const Description& scale_b, const Description& d, bool square_scales,
                           bool d_is_fp32, bool accumulate, Groups groups_are, int32_t groups,
                           uintptr_t offsets, const ChoiceOfPython& choice) {
  const gemm::Product product = product_of(a, scale_a, b, scale_b, d, square_scales, d_is_fp32,
                                           accumulate, groups_are, groups, offsets);
  const gemm::Choice chosen = choice_of(choice);
  const gemm::Prepared x = gemm::prepare(stream_of(kEmulated, 0), product, &chosen);
  return py::make_tuple(x.kernel->name, x.grid.blocks, x.grid.threads_per_block,
                        x.grid.blocks_per_cluster, x.grid.shared_bytes,
                        py::bytes(reinterpret_cast<const char*>(&x.params), sizeof(x.params)));
}

// The candidates for a shape, the best first, as dictionaries of what the model says.
py::list rank_gemm_choices(int64_t m, int64_t n, int64_t k, Groups groups_are, int32_t groups,
                           bool square_scales, bool d_is_fp32, bool accumulate,
                           int32_t multiprocessors) {
  py::list result;
  for (const gemm::Cost& cost : gemm::rank_choices(
           {m, n, k, groups_are, groups, square_scales, d_is_fp32, accumulate, multiprocessors})) {
    const gemm::Choice& choice = cost.choice;
    py::dict row;
    row["choice"] = ChoiceOfPython(choice.variant->kernel.name, choice.share, choice.split_k,
                                   choice.strip_n, choice.blocks);
    row["tile"] = std::pair(choice.variant->m, choice.variant->n);
    row["stages"] = choice.variant->stages;
    row["tensor"] = cost.tensor;
    row["promotion"] = cost.promotion;
    row["shared"] = cost.shared;
    row["l2"] = cost.l2;
    row["epilogue"] = cost.epilogue;
    row["tiles"] = cost.tiles;
    row["tiles_in_turn"] = cost.tiles_in_turn;
    row["hbm"] = cost.hbm;
    row["cycles"] = cost.cycles;
    result.append(row);
  }
  return result;
}

}  // namespace

void bind_gemms(py::module_& module) {
  py::enum_<Groups>(module, "GemmGroups")
      .value("none", Groups::none)
      .value("rows", Groups::rows)
      .value("masked", Groups::masked)
      .value("depth", Groups::depth);
  py::enum_<Share>(module, "GemmShare")
      .value("none", Share::none)
      .value("a", Share::a)
      .value("b", Share::b);
  module.def("fp8_gemm", &fp8_gemm);
  module.def("prepare_fp8_gemm", &prepare_fp8_gemm);
  module.def("rank_gemm_choices", &rank_gemm_choices);
}

}  // namespace abyssal

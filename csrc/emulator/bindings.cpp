#include "emulator/bindings.hpp"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "emulator/device.hpp"
#include "emulator/driver.hpp"
#include "emulator/group.hpp"
#include "emulator/tensor_map.hpp"

namespace py = pybind11;

namespace abyssal::emulator {
namespace {

using Triple = std::array<uint32_t, 3>;
using BufferTuple = std::tuple<uint64_t, uint64_t, std::string>;  // address, bytes, role

Extent extent(const Triple& triple) { return {triple[0], triple[1], triple[2]}; }

const char* name_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::unsupported:
      return "unsupported";
    case FaultKind::out_of_bounds:
      return "out_of_bounds";
    case FaultKind::misaligned:
      return "misaligned";
    case FaultKind::read_only:
      return "read_only";
    case FaultKind::diverged:
      return "diverged";
    case FaultKind::deadlock:
      return "deadlock";
    case FaultKind::invalid:
      return "invalid";
    case FaultKind::race:
      return "race";
    case FaultKind::uninitialised:
      return "uninitialised";
    case FaultKind::missing_fence:
      return "missing_fence";
    case FaultKind::in_flight:
      return "in_flight";
    case FaultKind::trap:
      return "trap";
  }
  return "";
}

Policy policy_of(const std::string& name) {
  if (name == "early") return Policy::early;
  if (name == "late") return Policy::late;
  if (name == "random") return Policy::random;
  throw std::invalid_argument("policy must be 'early', 'late' or 'random', not '" + name + "'");
}

Buffer::Role role_of(const std::string& name) {
  if (name == "in") return Buffer::Role::in;
  if (name == "out") return Buffer::Role::out;
  if (name == "inout") return Buffer::Role::inout;
  throw std::invalid_argument("a buffer's role must be 'in', 'out' or 'inout', not '" + name + "'");
}

void check_signals() {
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void run_without_lock(const Run& run) {
  py::gil_scoped_release released;
  run(check_signals);
}

// name -> [(parameter's name, offset, bytes, is a float)]
py::dict kernels(const LoadedModule& module) {
  py::dict result;
  for (const ptx::Kernel& kernel : module.syntax().kernels) {
    py::list params;
    for (int i = 0; i < kernel.num_params; ++i) {
      const ptx::Variable& param = kernel.variables[i];
      params.append(py::make_tuple(param.name, param.offset, param.bytes, param.is_floating));
    }
    result[py::str(kernel.name)] = params;
  }
  return result;
}

// What a launch did, for Python to look at when it is asked.
struct Record {
  std::shared_ptr<const Program> program;
  Counters counters;
};

// Of each instruction that ran: (file, line, text, pipe, counters...).
py::list instructions(const Record& record) {
  const Program& program = *record.program;
  py::list result;
  for (size_t pc = 0; pc < program.kernel->instructions.size(); ++pc) {
    const InstructionCounters& counted = record.counters.instructions[pc];
    const ptx::Instruction& instruction = program.kernel->instructions[pc];
    std::string file;
    int line = instruction.line;
    if (instruction.location >= 0) {
      const ptx::Location& place = program.module->locations[instruction.location];
      const bool is_known = static_cast<size_t>(place.file) < program.module->files.size();
      if (is_known) file = program.module->files[place.file];
      line = place.line;
    }
    result.append(py::make_tuple(file, line, written(instruction), name_of(pipe_of(instruction)),
                                 counted.warps, counted.threads, counted.waits,
                                 counted.shared_wavefronts, counted.ideal_wavefronts,
                                 counted.global_requests, counted.global_sectors));
  }
  return result;
}

// [{pipe: instructions} of each warp of a block, over all blocks]
py::list warps(const Record& record) {
  py::list result;
  for (const auto& of_warp : record.counters.warps) {
    py::dict pipes;
    for (size_t i = 0; i < of_warp.size(); ++i) pipes[name_of(static_cast<Pipe>(i))] = of_warp[i];
    result.append(pipes);
  }
  return result;
}

// {direction: (copies, bytes, bytes delivered)}
py::dict copies(const Record& record) {
  constexpr const char* kNames[] = {"to_shared", "to_global", "shared_to_shared", "reduce"};
  py::dict result;
  for (size_t i = 0; i < record.counters.copies.size(); ++i) {
    const CopyCounters& counted = record.counters.copies[i];
    result[kNames[i]] = py::make_tuple(counted.copies, counted.bytes, counted.delivered);
  }
  return result;
}

struct PyLaunch {
  std::shared_ptr<LoadedModule> module;
  std::string kernel;
  Triple grid, threads;
  std::optional<Triple> cluster;
  uint32_t shared_bytes;
  std::string params;
  std::vector<BufferTuple> buffers;
  bool overlaps_previous;
};

LaunchDescription describe(const PyLaunch& launch) {
  LaunchArguments arguments;
  arguments.grid = extent(launch.grid);
  arguments.threads = extent(launch.threads);
  arguments.has_cluster = launch.cluster.has_value();
  if (launch.cluster) arguments.cluster = extent(*launch.cluster);
  arguments.dynamic_shared_bytes = launch.shared_bytes;
  const auto* params = reinterpret_cast<const std::byte*>(launch.params.data());
  arguments.params.assign(params, params + launch.params.size());
  for (const auto& [address, bytes, role] : launch.buffers) {
    arguments.buffers.push_back({address, bytes, role_of(role)});
  }
  arguments.overlaps_previous = launch.overlaps_previous;
  return describe_launch(*launch.module, launch.kernel, std::move(arguments));
}

// Adds a launch to the group that this thread collects for. False if there is none.
bool add_to_group(const PyLaunch& launch, int device, uint64_t stream) {
  LaunchGroup* group = LaunchGroup::current();
  if (group != nullptr) group->add(device, stream, describe(launch));
  return group != nullptr;
}

// Runs a group. Returns (what printf said, [Record of each launch]).
py::tuple run_group(LaunchGroup group, const Options& options) {
  Machine machine(options);
  std::vector<std::unique_ptr<Grid>> grids;
  {
    py::gil_scoped_release released;
    grids = group.run(machine, check_signals);
  }
  py::list records;
  for (const auto& grid : grids) {
    records.append(Record{grid->description.program, std::move(grid->counters)});
  }
  return py::make_tuple(machine.printed(), records);
}

py::tuple run(const PyLaunch& launch, const Options& options) {
  LaunchGroup alone;
  alone.add(0, 0, describe(launch));
  return run_group(std::move(alone), options);
}

// Ends the thread's group, and runs it if `options` are given.
std::optional<py::tuple> end_group(const std::optional<Options>& options) {
  LaunchGroup group = LaunchGroup::end();
  if (!options) return std::nullopt;
  return run_group(std::move(group), *options);
}

py::bytes encode_tensor_map(int type, uint64_t address, const std::vector<uint64_t>& extents,
                            const std::vector<uint64_t>& strides, const std::vector<uint32_t>& box,
                            const std::vector<uint32_t>& element_strides, int swizzle,
                            bool fills_with_nan) {
  const size_t rank = extents.size();
  if (box.size() != rank || element_strides.size() != rank || strides.size() + 1 != rank) {
    throw std::invalid_argument("extents, strides, box and element strides must fit together");
  }
  CUtensorMap map;
  std::string reason;
  const CUresult result =
      encode_tiled(&map, static_cast<CUtensorMapDataType>(type), static_cast<cuuint32_t>(rank),
                   reinterpret_cast<void*>(address), extents.data(), strides.data(), box.data(),
                   element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                   static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_NONE,
                   fills_with_nan ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
                                  : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                   reason);
  if (result != CUDA_SUCCESS) throw std::invalid_argument(reason);
  return py::bytes(reinterpret_cast<const char*>(&map), sizeof(map));
}

}  // namespace

void bind(py::module_& extension) {
  py::module_ module = extension.def_submodule("emulator", "PTX on a CPU.");
  static py::object error = py::reinterpret_steal<py::object>(
      PyErr_NewException("abyssal.emulator.EmulatorError", PyExc_RuntimeError, nullptr));
  module.attr("EmulatorError") = error;
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const EmulatorError& raised) {
      py::object instance = error(raised.what());
      instance.attr("kind") = name_of(raised.kind);
      PyErr_SetObject(error.ptr(), instance.ptr());
    } catch (const ptx::PtxError& raised) {
      py::object instance = error(raised.what());
      instance.attr("kind") = name_of(FaultKind::unsupported);
      PyErr_SetObject(error.ptr(), instance.ptr());
    }
  });
  py::class_<LoadedModule, std::shared_ptr<LoadedModule>>(module, "Module")
      .def(py::init<std::string>(), py::arg("text"), py::call_guard<py::gil_scoped_release>())
      .def("kernels", &kernels);
  py::class_<PyLaunch>(module, "Launch")
      .def(py::init([](std::shared_ptr<LoadedModule> loaded, std::string kernel, Triple grid,
                       Triple threads, std::optional<Triple> cluster, uint32_t shared_bytes,
                       const py::bytes& params, std::vector<BufferTuple> buffers,
                       bool overlaps_previous) {
        return PyLaunch{std::move(loaded),
                        std::move(kernel),
                        grid,
                        threads,
                        cluster,
                        shared_bytes,
                        std::string(params),
                        std::move(buffers),
                        overlaps_previous};
      }));
  py::class_<Record>(module, "Record")
      .def("kernel", [](const Record& record) { return record.program->kernel->name; })
      .def("instructions", &instructions)
      .def("warps", &warps)
      .def("copies", &copies);
  py::class_<Options>(module, "Options")
      .def(py::init([](uint32_t num_sms, const std::string& policy, uint64_t seed, bool strict,
                       bool tolerates_stores_at_exit) {
        return Options{num_sms, policy_of(policy), seed, strict, tolerates_stores_at_exit};
      }));
  module.def("run", &run);
  module.def("begin_group", &LaunchGroup::begin);
  module.def("add_to_group", &add_to_group);
  module.def("end_group", &end_group);
  bind_tensor_core(module);
  module.def("set_driver_options", &set_driver_options);
  set_driver_surroundings(run_without_lock);
  module.def("encode_tensor_map", &encode_tensor_map);
}

}  // namespace abyssal::emulator

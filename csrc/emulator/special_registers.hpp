// Registers that a thread only reads (PTX ISA 10) and whose value is known when its warp starts.
// Clocks are not among them: `mov` asks for those when it runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "emulator/operands.hpp"

namespace abyssal::emulator {

class Warp;

struct SpecialRegister {
  enum class Kind {
    tid,
    ntid,
    laneid,
    warpid,
    nwarpid,
    ctaid,
    nctaid,
    smid,
    nsmid,
    gridid,
    clusterid,
    nclusterid,
    cluster_ctaid,
    cluster_nctaid,
    cluster_ctarank,
    cluster_nctarank,
    is_explicit_cluster,
    lanemask_eq,
    lanemask_lt,
    lanemask_le,
    lanemask_gt,
    lanemask_ge,
    dynamic_smem_size,
    total_smem_size,
  };
  Kind kind = Kind::tid;
  int axis = 0;  // x, y, z
  Destination where;
};

// "%tid.x" and so on.
std::optional<SpecialRegister> find_special_register(std::string_view name);

// The value in a lane of a warp.
uint64_t special_value(const SpecialRegister& special, const Warp& warp, int lane);

}  // namespace abyssal::emulator

#include "emulator/special_registers.hpp"

#include <array>
#include <utility>

#include "emulator/machine.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {
namespace {

using Kind = SpecialRegister::Kind;

constexpr std::array<std::pair<std::string_view, Kind>, 8> kVectors{{
    {"%tid", Kind::tid},
    {"%ntid", Kind::ntid},
    {"%ctaid", Kind::ctaid},
    {"%nctaid", Kind::nctaid},
    {"%clusterid", Kind::clusterid},
    {"%nclusterid", Kind::nclusterid},
    {"%cluster_ctaid", Kind::cluster_ctaid},
    {"%cluster_nctaid", Kind::cluster_nctaid},
}};

constexpr std::array<std::pair<std::string_view, Kind>, 16> kScalars{{
    {"%laneid", Kind::laneid},
    {"%warpid", Kind::warpid},
    {"%nwarpid", Kind::nwarpid},
    {"%smid", Kind::smid},
    {"%nsmid", Kind::nsmid},
    {"%gridid", Kind::gridid},
    {"%cluster_ctarank", Kind::cluster_ctarank},
    {"%cluster_nctarank", Kind::cluster_nctarank},
    {"%is_explicit_cluster", Kind::is_explicit_cluster},
    {"%lanemask_eq", Kind::lanemask_eq},
    {"%lanemask_lt", Kind::lanemask_lt},
    {"%lanemask_le", Kind::lanemask_le},
    {"%lanemask_gt", Kind::lanemask_gt},
    {"%lanemask_ge", Kind::lanemask_ge},
    {"%dynamic_smem_size", Kind::dynamic_smem_size},
    {"%total_smem_size", Kind::total_smem_size},
}};

}  // namespace

std::optional<SpecialRegister> find_special_register(std::string_view name) {
  for (const auto& [scalar, kind] : kScalars) {
    if (scalar == name) return SpecialRegister{.kind = kind};
  }
  if (name.size() < 3 || name[name.size() - 2] != '.') return std::nullopt;
  const int axis = name.back() - 'x';
  if (axis < 0 || axis > 2) return std::nullopt;
  for (const auto& [vector, kind] : kVectors) {
    if (vector == name.substr(0, name.size() - 2)) return SpecialRegister{kind, axis, {}};
  }
  return std::nullopt;
}

uint64_t special_value(const SpecialRegister& special, const Warp& warp, int lane) {
  const Block& block = warp.block();
  const Grid& grid = block.grid();
  const LaunchDescription& launch = grid.description;
  const LaneMask own = LaneMask{1} << lane;
  const auto thread = static_cast<uint32_t>(warp.index() * kLanes + lane);
  switch (special.kind) {
    case Kind::tid:
      return launch.threads.at(thread)[special.axis];
    case Kind::ntid:
      return launch.threads[special.axis];
    case Kind::ctaid:
      return block.index()[special.axis];
    case Kind::nctaid:
      return launch.grid[special.axis];
    case Kind::clusterid:
      return block.cluster().index()[special.axis];
    case Kind::nclusterid:
      return grid.clusters()[special.axis];
    case Kind::cluster_ctaid:
      return launch.cluster.at(block.rank())[special.axis];
    case Kind::cluster_nctaid:
      return launch.cluster[special.axis];
    case Kind::cluster_ctarank:
      return block.rank();
    case Kind::cluster_nctarank:
      return launch.cluster.count();
    case Kind::is_explicit_cluster:
      return launch.has_cluster;
    case Kind::laneid:
      return static_cast<uint64_t>(lane);
    case Kind::warpid:
      return static_cast<uint64_t>(warp.index());
    case Kind::nwarpid:
      return (block.num_threads() + kLanes - 1) / kLanes;
    case Kind::smid:
      return block.sm();
    case Kind::nsmid:
      return grid.machine.options().num_sms;
    case Kind::gridid:
      return grid.id;
    case Kind::lanemask_eq:
      return own;
    case Kind::lanemask_lt:
      return own - 1;
    case Kind::lanemask_le:
      return own | (own - 1);
    case Kind::lanemask_gt:
      return static_cast<LaneMask>(~(own | (own - 1)));
    case Kind::lanemask_ge:
      return static_cast<LaneMask>(~(own - 1));
    case Kind::dynamic_smem_size:
      return launch.dynamic_shared_bytes;
    case Kind::total_smem_size:
      return block.shared_bytes();
  }
  return 0;
}

}  // namespace abyssal::emulator

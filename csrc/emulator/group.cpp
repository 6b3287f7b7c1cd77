#include "emulator/group.hpp"

#include <map>
#include <stdexcept>
#include <utility>

namespace abyssal::emulator {
namespace {

thread_local std::optional<LaunchGroup> collecting;

// Memory that an earlier launch writes as its output holds nothing before.
void mark_outputs(const LaunchDescription& earlier, LaunchDescription& later) {
  for (const Allocation& output : earlier.buffers) {
    if (output.has_contents()) continue;
    for (Allocation& buffer : later.buffers) {
      if (output.holds(buffer.base, 1)) buffer.is_written_in_group = true;
    }
  }
}

}  // namespace

LaunchGroup* LaunchGroup::current() { return collecting ? &*collecting : nullptr; }

void LaunchGroup::begin() {
  if (collecting) throw std::invalid_argument("groups of launches do not nest");
  collecting.emplace();
}

LaunchGroup LaunchGroup::end() { return std::move(*std::exchange(collecting, std::nullopt)); }

void LaunchGroup::add(int device, uint64_t stream, LaunchDescription launch) {
  for (const Queued& earlier : launches_) mark_outputs(earlier.launch, launch);
  launch.device = device;
  launches_.push_back({device, stream, std::move(launch)});
}

std::vector<std::unique_ptr<Grid>> LaunchGroup::run(Machine& machine, void (*interrupted)()) {
  std::map<std::pair<int, uint64_t>, size_t> index_of;
  std::vector<std::vector<LaunchDescription>> streams;
  for (size_t i = 0; i < launches_.size(); ++i) {
    Queued& queued = launches_[i];
    queued.launch.number = i;
    const auto [entry, is_new] =
        index_of.try_emplace({queued.device, queued.stream}, streams.size());
    if (is_new) streams.emplace_back();
    streams[entry->second].push_back(std::move(queued.launch));
  }
  std::vector<std::unique_ptr<Grid>> grids = machine.run(std::move(streams), interrupted);
  std::vector<std::unique_ptr<Grid>> in_order(grids.size());
  for (std::unique_ptr<Grid>& grid : grids) {
    const size_t number = grid->description.number;
    in_order[number] = std::move(grid);
  }
  return in_order;
}

}  // namespace abyssal::emulator

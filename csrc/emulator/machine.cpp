#include "emulator/machine.hpp"

#include <algorithm>
#include <utility>

namespace abyssal::emulator {
namespace {

// What an SM of compute capability 9.0 has (CUDA programming guide, table of capabilities).
constexpr uint32_t kThreadsOfSm = 2048;
constexpr uint32_t kBlocksOfSm = 32;
constexpr uint32_t kSharedBytesOfSm = 228 * 1024;

// Instructions that a warp runs before it is another's turn.
constexpr uint64_t kLongTurn = 4096;
// Turns of all warps in which they only ask in loops, after which something else is tried.
constexpr uint64_t kPatience = 64;
// Instructions of such turns, and of any, that change nothing: more are called a deadlock.
constexpr uint64_t kMostOfAsking = 2'000'000;
constexpr uint64_t kMostWithoutChange = 50'000'000;
constexpr char kNoProgress[] = "no progress: warps run in loops and change nothing";

uint64_t blocks_of_sm(const Grid& grid) {
  const LaunchDescription& launch = grid.description;
  const uint64_t shared =
      kReservedShared + launch.program->shared_bytes + launch.dynamic_shared_bytes;
  return std::min<uint64_t>(
      {kBlocksOfSm, kThreadsOfSm / launch.threads.count(), kSharedBytesOfSm / shared});
}

std::string describe_where(const Warp& warp, int lane) {
  std::string text =
      "block " + describe(warp.block().index()) + ", warp " + std::to_string(warp.index());
  if (lane >= 0) text += ", lane " + std::to_string(lane);
  return text;
}

}  // namespace

Machine::Machine(Options options) : options_(options), generator_(options.seed) {
  if (options.strict) checker_ = std::make_unique<Checker>();
}

uint64_t Machine::budget() {
  return options_.policy == Policy::random ? 1 + random() % 64 : kLongTurn;
}

void Machine::start_grids() {
  for (Stream& stream : streams_) {
    if (stream.waiting.empty()) continue;
    const bool may_overlap = stream.waiting.front().overlaps_previous;
    const bool is_free = stream.last == nullptr || stream.last->is_finished() ||
                         (may_overlap && stream.last->releases_dependents());
    if (is_free) start_grid(stream);
  }
}

void Machine::start_grid(Stream& stream) {
  Grid& grid =
      *grids_.emplace_back(std::make_unique<Grid>(*this, std::move(stream.waiting.front())));
  stream.waiting.pop_front();
  grid.id = grids_.size();
  if (const Grid* last = std::exchange(stream.last, &grid)) {
    // A launch that may overlap counts on nothing before its griddepcontrol.wait, whenever it
    // began.
    const bool overlaps = grid.description.overlaps_previous;
    if (overlaps) grid.primary = last;
    grid.known = overlaps ? last->known : last->over;
    grid.over.join(grid.known);
  }
}

// Whether one more cluster finds SMs with room, beside those that run on its device.
bool Machine::has_room(const Grid& grid) const {
  double sms = 0;
  for (const auto& other : grids_) {
    if (other->description.device != grid.description.device) continue;
    const uint64_t resident = other->clusters_started - other->clusters_finished;
    sms += static_cast<double>(resident * other->description.cluster.count()) /
           static_cast<double>(blocks_of_sm(*other));
  }
  const uint64_t blocks = grid.description.cluster.count();
  sms += static_cast<double>(blocks) / static_cast<double>(blocks_of_sm(grid));
  return sms <= options_.num_sms;
}

// Starts the next cluster of a grid that has room for one.
bool Machine::start_cluster() {
  std::vector<Grid*> open;
  for (const auto& grid : grids_) {
    const bool is_open = grid->clusters_started < grid->clusters().count();
    if (is_open && (has_room(*grid) || clusters_.empty())) open.push_back(grid.get());
  }
  if (open.empty()) return false;
  Grid& grid = *open[random() % open.size()];
  clusters_.push_back(std::make_unique<Cluster>(grid, grid.clusters_started++));
  return true;
}

bool Machine::run_clusters() {
  bool has_run = false;
  for (size_t i = 0; i < clusters_.size(); ++i) {
    Cluster& cluster = *clusters_[i];
    const uint64_t done = cluster.run(budget());
    has_run |= done != 0;
    has_worked_ |= cluster.has_worked();
    if (options_.policy == Policy::early) {
      cluster.deliver_ready();
      continue;
    }
    const bool delivers = done == 0 || (options_.policy == Policy::random && random() % 4 == 0);
    if (!delivers || !cluster.deliver_one()) continue;
    has_run = true;
    note_progress();
  }
  return has_run;
}

bool Machine::deliver_one() {
  for (auto& cluster : clusters_) {
    if (!cluster->deliver_one()) continue;
    note_progress();
    return true;
  }
  return false;
}

void Machine::retire_clusters() {
  for (auto& cluster : clusters_) {
    if (!cluster->is_finished()) continue;
    cluster->deliver_ready();
    Grid& grid = cluster->grid();
    ++grid.clusters_finished;
    if (grid.is_finished()) grid.finished.happen();
    note_progress();
    cluster.reset();
  }
  std::erase(clusters_, nullptr);
}

bool Machine::release_joins() {
  bool has_released = false;
  for (auto& cluster : clusters_) has_released |= cluster->release_joins();
  return has_released;
}

std::vector<std::unique_ptr<Grid>> Machine::run(std::vector<std::vector<LaunchDescription>> streams,
                                                void (*interrupted)()) {
  for (std::vector<LaunchDescription>& launches : streams) {
    Stream& stream = streams_.emplace_back();
    for (LaunchDescription& launch : launches) stream.waiting.push_back(std::move(launch));
  }
  uint64_t progress = 0, since = clock_;
  uint64_t rounds_of_asking = 0;
  for (uint64_t round = 0;; ++round) {
    if (interrupted != nullptr && round % 64 == 0) interrupted();
    start_grids();
    if (clusters_.empty() && !start_cluster()) break;
    const bool goes_on = run_clusters();
    retire_clusters();
    const bool has_changed = std::exchange(progress, progress_) != progress_;
    if (has_changed) since = clock_;
    const bool only_asks = !has_changed && !std::exchange(has_worked_, false);
    rounds_of_asking = only_asks ? rounds_of_asking + 1 : 0;
    if (options_.policy == Policy::random && random() % 2 == 0) start_cluster();
    if (clock_ - since > kMostWithoutChange) report_deadlock(kNoProgress);
    if (goes_on && rounds_of_asking < kPatience) continue;
    rounds_of_asking = 0;
    if (!clusters_.empty()) go_on(goes_on, clock_ - since);
  }
  streams_.clear();
  return std::move(grids_);
}

// Those that run wait, be it in loops: for copies that are late, for blocks that do not run yet, or
// for lanes that stand where those of their warp should meet.
void Machine::go_on(bool polls, uint64_t idle_instructions) {
  if (deliver_one() || start_cluster() || release_joins()) return;
  if (!polls) report_deadlock("no warp can go on");
  if (idle_instructions > kMostOfAsking) report_deadlock(kNoProgress);
}

void Machine::report_deadlock(const std::string& what) const {
  std::string text = "deadlock: " + what;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks()) {
      for (const Warp& warp : block->warps()) {
        for (const Split& split : warp.splits()) {
          text += "\n  " + describe_where(warp, -1) + ", lanes " + hex(split.mask) + ": ";
          if (split.is_waiting()) {
            text += std::string("waits for ") + split.reason + " (" +
                    std::to_string(split.reason_value) + ") at ";
          } else {
            text += "runs at ";
          }
          // A wait that is tried again stands at its instruction, another one behind it.
          text += warp.program().place(static_cast<int>(split.pc) - (split.is_retried ? 0 : 1));
        }
      }
    }
  }
  throw EmulatorError(FaultKind::deadlock, text);
}

}  // namespace abyssal::emulator

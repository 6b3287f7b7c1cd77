#include "emulator/machine.hpp"

#include <algorithm>

namespace abyssal::emulator {
namespace {

// What an SM of compute capability 9.0 has (CUDA programming guide, table of capabilities).
constexpr uint32_t kThreadsOfSm = 2048;
constexpr uint32_t kBlocksOfSm = 32;
constexpr uint32_t kSharedBytesOfSm = 228 * 1024;

// Instructions that a warp runs before it is another's turn.
constexpr uint64_t kLongTurn = 4096;
// Instructions without a change in memory, an arrival or the like, for each cluster that runs,
// after which more blocks start and lanes that wait for each other are let go; and in all, after
// which waiting is called a deadlock.
constexpr uint64_t kPatience = 2'000;
constexpr uint64_t kIdleInstructions = 2'000'000;

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

uint64_t Machine::resident_limit(const Grid& grid) const {
  const LaunchDescription& launch = grid.description;
  const uint64_t shared =
      kReservedShared + launch.program->shared_bytes + launch.dynamic_shared_bytes;
  const uint64_t of_sm = std::min<uint64_t>(
      {kBlocksOfSm, kThreadsOfSm / launch.threads.count(), kSharedBytesOfSm / shared});
  const uint64_t blocks = of_sm * options_.num_sms;
  return std::max<uint64_t>(blocks / launch.cluster.count(), 1);
}

bool Machine::start_grids() {
  bool has_started = false;
  for (Stream& stream : streams_) {
    if (stream.running != nullptr && stream.running->is_finished()) stream.running = nullptr;
    if (stream.running != nullptr || stream.waiting.empty()) continue;
    grids_.push_back(std::make_unique<Grid>(*this, std::move(stream.waiting.front())));
    stream.waiting.pop_front();
    stream.running = grids_.back().get();
    stream.running->id = grids_.size();
    has_started = true;
  }
  return has_started;
}

// Starts the next cluster of a grid that has room for one.
bool Machine::start_cluster() {
  std::vector<Grid*> open;
  for (const auto& grid : grids_) {
    const uint64_t resident = grid->clusters_started - grid->clusters_finished;
    const bool is_open = grid->clusters_started < grid->clusters().count();
    if (is_open && resident < resident_limit(*grid)) open.push_back(grid.get());
  }
  if (open.empty()) return false;
  Grid& grid = *open[random() % open.size()];
  clusters_.push_back(std::make_unique<Cluster>(grid, grid.clusters_started++));
  return true;
}

// Gives each cluster a turn. Returns whether any warp ran.
bool Machine::run_clusters() {
  bool has_run = false;
  for (size_t i = 0; i < clusters_.size(); ++i) {
    Cluster& cluster = *clusters_[i];
    const uint64_t done = cluster.run(budget());
    clock_ += done;
    has_run |= done != 0;
    const bool delivers = options_.policy == Policy::late    ? done == 0
                          : options_.policy == Policy::early ? true
                                                             : done == 0 || random() % 4 == 0;
    if (!delivers) continue;
    if (options_.policy == Policy::early) {
      cluster.deliver_ready();
    } else if (cluster.deliver_one()) {
      has_run = true;
      note_progress();
    }
  }
  return has_run;
}

void Machine::retire_clusters() {
  for (auto& cluster : clusters_) {
    if (!cluster->is_finished()) continue;
    while (cluster->deliver_one()) {
    }
    ++cluster->grid().clusters_finished;
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
  uint64_t idle_since = clock_;
  uint64_t progress = 0;
  for (uint64_t round = 0;; ++round) {
    if (interrupted != nullptr && round % 64 == 0) interrupted();
    start_grids();
    if (clusters_.empty() && !start_cluster()) break;
    bool goes_on = run_clusters();
    retire_clusters();
    if (progress_ != progress) idle_since = clock_;
    progress = progress_;
    // Those that run may wait for blocks that do not run yet.
    const uint64_t idle = clock_ - idle_since;
    const bool starts =
        !goes_on || idle > kPatience || (options_.policy == Policy::random && random() % 2 == 0);
    if (starts && start_cluster()) {
      goes_on = true;
      idle_since = clock_;
    }
    const bool is_stuck = !goes_on && !clusters_.empty();
    if (is_stuck || idle > kPatience * clusters_.size()) {
      if (release_joins()) {
        idle_since = clock_;
      } else if (is_stuck) {
        report_deadlock("no warp can go on");
      } else if (idle > kIdleInstructions) {
        report_deadlock("no progress: warps run in loops and change nothing");
      }
    }
  }
  streams_.clear();
  return std::move(grids_);
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

#include "emulator/block.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

// Shared memory that nobody has written holds no zeros to count on.
constexpr std::byte kPoison{0xa5};

constexpr uint32_t kRegistersOfSm = 64 * 1024;

uint32_t divide(uint32_t extent, uint32_t by) { return (extent + by - 1) / by; }

}  // namespace

std::string describe(Extent index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

// Grid

Grid::Grid(Machine& machine, LaunchDescription launch)
    : machine(machine), description(std::move(launch)) {
  for (const Allocation& buffer : description.buffers) memory.add(buffer);
  counters.instructions.resize(description.program->code.size());
  counters.warps.resize((description.threads.count() + kLanes - 1) / kLanes);
  if (Checker* checker = machine.checker()) {
    agent = checker->add_grid(*this);
    over.over.raise(agent.epoch(), 1);
    over.fenced().raise(agent.epoch(), 1);
    over.fenced(FenceSpace::tensor_map).raise(agent.epoch(), 1);
  }
}

Extent Grid::clusters() const {
  const Extent& grid = description.grid;
  const Extent& cluster = description.cluster;
  return {divide(grid.x, cluster.x), divide(grid.y, cluster.y), divide(grid.z, cluster.z)};
}

uint64_t Grid::clock() const { return machine.clock(); }

void Grid::print(const std::string& text) { machine.print(text); }

// Block

Block::Block(Cluster& cluster, Extent index, uint32_t rank)
    : cluster_(cluster), index_(index), rank_(rank) {
  const LaunchDescription& launch = grid().description;
  const Program& program = *launch.program;
  shared_.assign(program.shared_bytes + launch.dynamic_shared_bytes, kPoison);
  local_.assign(uint64_t{program.local_bytes} * num_threads(), kPoison);
  if (Checker* checker = grid().machine.checker()) {
    number_ = checker->add_block(*this);
    shadow_ = std::make_unique<Shadow>((shared_.size() + kWordBytes - 1) / kWordBytes);
  }
  const uint32_t threads = num_threads();
  warps_.reserve(divide(threads, kLanes));
  for (uint32_t first = 0; first < threads; first += kLanes) {
    const uint32_t count = std::min<uint32_t>(kLanes, threads - first);
    const LaneMask lanes = count == kLanes ? kAllLanes : (LaneMask{1} << count) - 1;
    warps_.emplace_back(*this, static_cast<int>(first / kLanes), lanes);
  }
  for (size_t first = 0; first + kWarpsOfGroup <= warps_.size(); first += kWarpsOfGroup) {
    Warpgroup& group = *warpgroups_.emplace_back(std::make_unique<Warpgroup>());
    for (size_t i = 0; i < kWarpsOfGroup; ++i) group.warps[i] = &warps_[first + i];
    if (Checker* checker = grid().machine.checker()) {
      const std::string name = "the products of warps " + std::to_string(first) + " to " +
                               std::to_string(first + kWarpsOfGroup - 1);
      group.agent = checker->add_agent(number_, name);
    }
  }
  num_running_warps_ = warps_.size();
  // What the compiler gives each thread is not in PTX. With `setmaxnreg`, kernels are compiled for
  // one block on an SM: all that fit.
  const auto rounded_threads = static_cast<uint32_t>(warps_.size() * kLanes);
  const uint32_t registers = std::min<uint32_t>(255, kRegistersOfSm / rounded_threads) / 8 * 8;
  for (Warp& warp : warps_) warp.num_registers = registers;
  free_registers = kRegistersOfSm - registers * rounded_threads;
}

Grid& Block::grid() const { return cluster_.grid(); }

// Blocks of one cluster are on neighbouring SMs; which ones says nothing else.
uint32_t Block::sm() const {
  const Extent& grid_extent = grid().description.grid;
  const uint64_t linear =
      index_.x + uint64_t{grid_extent.x} * (index_.y + uint64_t{grid_extent.y} * index_.z);
  return static_cast<uint32_t>(linear % grid().machine.options().num_sms);
}

uint32_t Block::num_threads() const {
  return static_cast<uint32_t>(grid().description.threads.count());
}

uint32_t Block::num_alive() const {
  uint32_t threads = 0;
  for (const Warp& warp : warps_) threads += std::popcount(warp.alive());
  return threads;
}

Block& Block::owner(uint64_t shared_address, int lane) {
  const uint32_t field = rank_field(shared_address);
  if (field == 0) return *this;
  if (field > cluster_.blocks().size()) {
    throw Fault(FaultKind::out_of_bounds,
                "shared address " + hex(shared_address) + " is in no block of the cluster of " +
                    std::to_string(cluster_.blocks().size()),
                lane);
  }
  Block& block = *cluster_.blocks()[field - 1];
  if (&block != this && block.is_finished()) {
    throw Fault(FaultKind::in_flight,
                "shared address " + hex(shared_address) + " is of block " +
                    describe(block.index()) + ", which has ended",
                lane);
  }
  return block;
}

std::byte* Block::shared(uint64_t address, uint64_t bytes, int lane) {
  if (rank_field(address) != 0) {
    const uint64_t inside = inside_block(address);
    return owner(address, lane).shared(inside, bytes, lane);
  }
  const uint64_t offset = address - kReservedShared;
  if (address < kReservedShared || offset + bytes > shared_.size()) {
    throw Fault(FaultKind::out_of_bounds,
                std::to_string(bytes) + " bytes at " + hex(address) +
                    " of shared memory, where the block's lies from " + hex(kReservedShared) +
                    " to " + hex(kReservedShared + shared_.size()),
                lane);
  }
  return shared_.data() + offset;
}

std::byte* Block::local(uint32_t thread, uint64_t address, uint64_t bytes, int lane) {
  const uint64_t size = grid().description.program->local_bytes;
  if (address > size || bytes > size - address) {
    throw Fault(FaultKind::out_of_bounds,
                std::to_string(bytes) + " bytes at " + hex(address) +
                    " of local memory, of which a thread has " + std::to_string(size) + " bytes",
                lane);
  }
  return local_.data() + thread * size + address;
}

void Block::warp_finished(Warp&) {
  if (--num_running_warps_ != 0) return;
  release_dependents();
  for (const auto& operation : cluster_.operations()) {
    if (!operation->uses_shared_of(*this)) continue;
    if (operation->is_store() && grid().machine.options().tolerates_stores_at_exit) continue;
    throw Fault(FaultKind::in_flight, "the block ends, and its shared memory is still in use by " +
                                          operation->describe());
  }
}

void Block::release_dependents() {
  if (!std::exchange(has_released_, true)) ++grid().blocks_released;
}

// Cluster

Cluster::Cluster(Grid& grid, uint64_t number) : grid_(grid), index_(grid.clusters().at(number)) {
  const Extent& shape = grid.description.cluster;
  for (uint64_t rank = 0; rank < shape.count(); ++rank) {
    const Extent inside = shape.at(rank);
    const Extent index{index_.x * shape.x + inside.x, index_.y * shape.y + inside.y,
                       index_.z * shape.z + inside.z};
    blocks_.push_back(std::make_unique<Block>(*this, index, static_cast<uint32_t>(rank)));
  }
}

bool Cluster::is_finished() const {
  return std::all_of(blocks_.begin(), blocks_.end(),
                     [](const auto& block) { return block->is_finished(); });
}

void Cluster::check_barrier() {
  bool anybody = false;
  for (auto& block : blocks_) {
    for (const Warp& warp : block->warps()) {
      if (warp.is_finished()) continue;
      const bool is_here = (warp.alive() & ~warp.cluster_arrived) == 0 &&
                           warp.cluster_phase == barrier_.completed.count;
      if (!is_here) return;
      anybody = true;
    }
  }
  if (!anybody) return;
  barrier_.complete.join(barrier_.arriving);
  barrier_.completed.happen();
}

uint64_t Cluster::run(uint64_t budget) {
  uint64_t done = 0;
  has_worked_ = false;
  for (auto& block : blocks_) {
    for (Warp& warp : block->warps()) {
      if (warp.is_finished()) continue;
      const uint64_t of_warp = warp.run(budget);
      done += of_warp;
      has_worked_ |= of_warp != 0 && !warp.polls();
    }
  }
  return done;
}

bool Cluster::release_joins() {
  bool has_released = false;
  for (auto& block : blocks_) {
    for (Warp& warp : block->warps()) has_released |= warp.release_joins();
  }
  return has_released;
}

void Cluster::issue(std::unique_ptr<Operation> operation) {
  operations_.push_back(std::move(operation));
  if (grid_.machine.options().policy == Policy::early) deliver_ready();
}

void Cluster::deliver_ready() {
  while (deliver_one()) {
  }
}

bool Cluster::deliver_one() {
  std::vector<size_t> ready;
  for (size_t i = 0; i < operations_.size(); ++i) {
    if (operations_[i]->is_ready()) ready.push_back(i);
  }
  if (ready.empty()) return false;
  // Early means in order; late and random, in any.
  const bool in_order = grid_.machine.options().policy == Policy::early;
  const size_t chosen = ready[in_order ? 0 : grid_.machine.random() % ready.size()];
  if (operations_[chosen]->step()) {
    operations_.erase(operations_.begin() + static_cast<ptrdiff_t>(chosen));
  }
  return true;
}

}  // namespace abyssal::emulator

// Blocks (CTAs), the clusters that they form and the grids that these belong to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/checks/checker.hpp"
#include "emulator/counters.hpp"
#include "emulator/memory.hpp"
#include "emulator/program.hpp"
#include "emulator/warp.hpp"
#include "emulator/warpgroup.hpp"

namespace abyssal::emulator {

struct Extent {
  uint32_t x = 1, y = 1, z = 1;

  uint64_t count() const { return uint64_t{x} * y * z; }
  uint32_t operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
  // The position of an element, x fastest.
  Extent at(uint64_t element) const {
    return {static_cast<uint32_t>(element % x), static_cast<uint32_t>(element / x % y),
            static_cast<uint32_t>(element / x / y)};
  }
};

std::string describe(Extent index);

// What a launch asks for.
struct LaunchDescription {
  std::shared_ptr<const Program> program;
  Extent grid, threads, cluster;
  bool has_cluster = false;  // asked for by the launch or the kernel, be it of one block
  uint32_t dynamic_shared_bytes = 0;
  std::vector<std::byte> params;
  std::vector<Allocation> buffers;
  int device = 0;
  // Programmatic dependent launch: it may begin once the grid ahead of it in the stream says so.
  bool overlaps_previous = false;
  size_t number = 0;  // in its group
};

class Block;
class Machine;

// Work that goes on beside the threads: a copy, a product. When its steps happen is the adversary's
// choice, within what `is_ready` allows.
class Operation {
 public:
  virtual ~Operation() = default;
  virtual bool is_ready() const { return true; }
  // Does the next step. Returns whether it was the last.
  virtual bool step() = 0;
  // Whether it still has to read or write shared memory of this block.
  virtual bool uses_shared_of(const Block& block) const = 0;
  // Whether it only reads it, for global memory.
  virtual bool is_store() const { return false; }
  // For reports: "a TMA load at gemm.cu:12 of warp 0 in block (0, 0, 0)".
  virtual std::string describe() const = 0;
};

// A launch that runs.
struct Grid {
  Grid(Machine& machine, LaunchDescription launch);

  Machine& machine;
  const LaunchDescription description;
  GlobalMemory memory;
  uint64_t id = 0;
  Counters counters;
  uint64_t clusters_started = 0;
  uint64_t clusters_finished = 0;
  // Blocks that have let the next grid of the stream begin, or ended.
  uint64_t blocks_released = 0;

  // With a programmatic dependent launch: the grid before, until which `griddepcontrol` waits.
  const Grid* primary = nullptr;
  Event finished;

  // Strict runs: what stands for this grid, what its blocks know when they begin, and what is over
  // once it has ended.
  Agent agent;
  Knowledge known, over;

  Extent clusters() const;
  // What the clocks of the device show.
  uint64_t clock() const;
  // What `printf` says.
  void print(const std::string& text);
  bool is_finished() const { return clusters_finished == clusters().count(); }
  bool releases_dependents() const { return blocks_released == description.grid.count(); }
};

// A named barrier (`bar`, `barrier`).
struct NamedBarrier {
  enum class Reduction : uint8_t { conjunction, disjunction, count };
  struct Vote {
    Warp* warp;
    Reduction reduction;
    Destination result;
  };

  uint32_t expected = 0;  // threads
  uint32_t arrived = 0;
  uint32_t num_votes = 0, num_true = 0;
  std::vector<Warp*> waiting;
  // Of those that have arrived, in strict runs.
  Knowledge knowledge;
  ByScope prepared;
  std::vector<Vote> votes;
  Event completed;
};

// An mbarrier object (PTX ISA 9.7.13.15). It lies in shared memory, which programs cannot look
// into; its state is kept here.
struct Mbarrier {
  // From init to inval. Copies and warps that wait may refer to it after that: it stays here.
  bool is_valid = false;
  uint32_t expected = 0;     // arrivals of a phase
  uint32_t pending = 0;      // of the current phase
  int64_t transactions = 0;  // bytes announced and not arrived; copies may come first
  uint64_t phase = 0;        // phases that are complete

  // Strict runs: the copies that it counts, what those that arrived knew, what those learn that
  // wait for a complete phase; and when it was initialised.
  Agent agent;
  std::vector<uint32_t> outstanding;  // clocks of copies that are not done
  Knowledge arriving, complete;
  // What takes the scope of the cluster to learn.
  Knowledge arriving_from_peers, complete_from_peers;
  Epoch initialised;
  Event completed;
};

// `barrier.cluster`: complete when all threads of the cluster that have not exited have arrived.
struct ClusterBarrier {
  Knowledge arriving, complete;
  Event completed;
};

class Cluster;

class Block {
 public:
  Block(Cluster& cluster, Extent index, uint32_t rank);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  Grid& grid() const;
  Cluster& cluster() const { return cluster_; }
  Extent index() const { return index_; }
  uint32_t rank() const { return rank_; }  // in its cluster
  uint32_t sm() const;
  uint32_t num_threads() const;
  uint32_t shared_bytes() const { return static_cast<uint32_t>(shared_.size()); }
  std::vector<Warp>& warps() { return warps_; }
  std::vector<std::unique_ptr<Warpgroup>>& warpgroups() { return warpgroups_; }
  NamedBarrier& barrier(uint32_t id) { return barriers_[id]; }
  // The mbarriers of this block by their shared address.
  std::map<uint32_t, Mbarrier>& mbarriers() { return mbarriers_; }

  // Strict runs: the block's number among those of the machine, and the shadow of its shared
  // memory.
  uint32_t number() const { return number_; }
  Shadow* shadow() { return shadow_.get(); }
  // Threads that have not exited.
  uint32_t num_alive() const;

  // Shared memory of this block, or of the one of its cluster that the address names. Throws Fault.
  std::byte* shared(uint64_t address, uint64_t bytes, int lane);
  // The block that a shared address is of.
  Block& owner(uint64_t shared_address, int lane);
  std::byte* local(uint32_t thread, uint64_t address, uint64_t bytes, int lane);

  void warp_finished(Warp& warp);
  bool is_finished() const { return num_running_warps_ == 0; }

  // Registers of the block that no warp has, for `setmaxnreg`.
  uint32_t free_registers = 0;
  Event registers_freed;
  // Lets the next grid of the stream begin, as far as this block is concerned.
  void release_dependents();

 private:
  Cluster& cluster_;
  const Extent index_;
  const uint32_t rank_;
  bool has_released_ = false;
  uint32_t number_ = 0;
  std::unique_ptr<Shadow> shadow_;
  std::vector<std::byte> shared_;
  std::vector<std::byte> local_;
  std::array<NamedBarrier, 16> barriers_;
  std::map<uint32_t, Mbarrier> mbarriers_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Warpgroup>> warpgroups_;
  size_t num_running_warps_ = 0;
};

class Cluster {
 public:
  Cluster(Grid& grid, uint64_t number);

  Grid& grid() const { return grid_; }
  Extent index() const { return index_; }  // among the grid's clusters
  std::vector<std::unique_ptr<Block>>& blocks() { return blocks_; }
  bool is_finished() const;

  ClusterBarrier& barrier() { return barrier_; }
  // Completes the barrier if it is. To be called when a thread has arrived or exited.
  void check_barrier();

  // Runs each warp that can run for up to `budget` instructions. Returns how many were run.
  uint64_t run(uint64_t budget);
  // Whether some warp did more in that turn than ask whether it can go on.
  bool has_worked() const { return has_worked_; }

  // See Warp::release_joins.
  bool release_joins();

  // Takes over an operation that a thread has started.
  void issue(std::unique_ptr<Operation> operation);
  // Does one step of one operation. False if there is none that can go on.
  bool deliver_one();
  void deliver_ready();
  const std::vector<std::unique_ptr<Operation>>& operations() const { return operations_; }

 private:
  Grid& grid_;
  const Extent index_;
  std::vector<std::unique_ptr<Block>> blocks_;
  ClusterBarrier barrier_;
  bool has_worked_ = false;
  std::vector<std::unique_ptr<Operation>> operations_;
};

}  // namespace abyssal::emulator

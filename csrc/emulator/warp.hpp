// A warp: 32 lanes, their registers, and which of them run where.
//
// Lanes run in lockstep until they part at a branch. Those that part meet again at the branch's
// immediate post-dominator (a `Join`); until then each side is a `Split` of its own. Splits take
// turns, so that lanes that wait for lanes of their own warp do not wait for ever.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "emulator/fault.hpp"
#include "emulator/lanes.hpp"
#include "emulator/program.hpp"

namespace abyssal::emulator {

class Block;
class AsyncCopies;
class BulkGroups;
class ProductRegisters;
struct WarpState;
class Machine;

// Counts up whenever what it stands for has happened once more. Who waits remembers the count.
struct Event {
  uint64_t count = 0;
  void happen() { ++count; }
};

// Lanes of a warp that run together.
struct Split {
  uint32_t pc = 0;
  LaneMask mask = 0;
  int join = -1;  // index into the warp's joins
  const Event* awaited = nullptr;
  uint64_t awaited_count = 0;
  const char* reason = nullptr;  // for reports: what it waits for
  uint64_t reason_value = 0;
  bool is_retried = false;  // it comes back to the instruction that made it wait

  bool is_waiting() const { return awaited != nullptr && awaited->count == awaited_count; }
};

// Where lanes that parted meet: those that arrive wait until all that are still alive are there.
struct Join {
  int32_t pc = -1;
  LaneMask expected = 0;
  LaneMask arrived = 0;
  int outer = -1;
};

class Warp {
 public:
  Warp(Block& block, int index, LaneMask lanes);
  Warp(Warp&&) noexcept;
  ~Warp();

  // Registers.
  template <typename T>
  const T* read(const Source& source) const {
    const std::byte* base = source.is_constant ? constants_ : registers_.get();
    return reinterpret_cast<const T*>(base + source.offset);
  }
  template <typename T>
  T* write(const Destination& destination) {
    return reinterpret_cast<T*>(registers_.get() + destination.offset);
  }
  LaneMask read_predicate(const Instruction& instruction, int source) const {
    const LaneMask value = *read<LaneMask>(instruction.sources[source]);
    return instruction.negated >> source & 1 ? ~value : value;
  }
  void write_predicate(const Destination& destination, LaneMask lanes, LaneMask value) {
    LaneMask& predicate = *write<LaneMask>(destination);
    predicate = (predicate & ~lanes) | (value & lanes);
  }
  // A lane's value of up to 8 bytes, from and to a register of any width.
  uint64_t bits(const Source& source, int lane) const;
  void set_bits(const Destination& destination, int lane, uint64_t value);

  // Null unless the run is strict; the other, unless the kernel has products as well.
  WarpState* checks() { return checks_.get(); }
  ProductRegisters* product_registers() { return product_registers_.get(); }

  Block& block() { return *block_; }
  const Block& block() const { return *block_; }
  int index() const { return index_; }
  const Program& program() const { return *program_; }
  // Lanes that the warp began with, and those of them that have not exited.
  LaneMask lanes() const { return lanes_; }
  LaneMask alive() const { return alive_; }
  // Lanes that run now, whatever an instruction's guard says.
  LaneMask active() const { return splits_[current_].mask; }
  // The instruction that runs now.
  int pc() const { return pc_; }

  // The carry bit of `add.cc` and its kin.
  LaneMask carry = 0;
  // Lanes that have arrived at the cluster's barrier and not waited yet, and in which phase.
  LaneMask cluster_arrived = 0;
  uint64_t cluster_phase = 0;

  // Registers of each thread, as `setmaxnreg` counts them.
  uint32_t num_registers = 0;

  // For handlers.
  void branch(const Instruction& instruction, LaneMask taken);
  // `targets[lane]` is where each lane goes.
  void jump(const int32_t* targets, int32_t join);
  void exit(LaneMask lanes);
  // The lanes that run now go on behind this instruction when `event` has happened again.
  void await(const Event& event, const char* reason, uint64_t value = 0);
  // The lanes that run now come back to this instruction when `event` has happened again.
  void retry_after(const Event& event, const char* reason, uint64_t value = 0);
  // Lets others run before the next instruction: these lanes may be waiting in a loop for what
  // others do.
  void yield() {
    may_continue_ = false;
    has_yielded_ = true;
  }
  // For `.sync` instructions, which name the lanes that take part: once all of `members` that are
  // alive stand at this instruction, returns them; they run it together and go on. Until then
  // returns 0, and the lanes that run now wait here.
  LaneMask gather(LaneMask members, LaneMask mask);
  // The lane that `elect.sync` chooses: always the same for the same members.
  int elect(LaneMask members) const;

  // The bulk groups of a lane, and what happens when one of the warp's makes progress.
  BulkGroups& bulk_groups(int lane);
  Event& bulk_progress() { return *bulk_progress_; }
  AsyncCopies& async_copies();

  // Runs up to `budget` instructions. Returns how many; 0 if no lane could run.
  uint64_t run(uint64_t budget);
  // Whether it has asked just now what others do, as loops that wait do.
  bool polls() const { return unasked_ < kLongestQuestion; }
  // What the clocks of the device show now.
  uint64_t clock() const;
  bool is_finished() const { return alive_ == 0; }
  // Lets lanes go on that wait for others of the warp to meet them. PTX promises no meeting, and
  // every thread progress: a thread that holds a lock must not wait for those that want it.
  // Returns whether there were any.
  bool release_joins();
  // Where it stands: "kernel: instruction at file:line, block (0, 0, 0), warp 1, lane 2".
  std::string describe(int lane) const;
  const std::vector<Split>& splits() const { return splits_; }

  // For `.aligned` instructions: throws a Fault unless every lane that is alive runs this one.
  void require_convergence(LaneMask mask) const;

 private:
  struct AlignedDelete {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };

  bool select();
  uint64_t run_split(uint64_t budget);
  void arrive_at_join();
  void release_if_complete(int join);
  void require_nothing_in_flight() const;
  // Whether a split waits here for the rest of these members.
  bool is_gathering(const Split& split, LaneMask members) const;
  void drop_current();
  int new_join(int32_t pc, LaneMask lanes, int outer);

  Block* block_;
  const Program* program_;
  const std::byte* constants_;
  std::unique_ptr<std::byte[], AlignedDelete> registers_;
  int index_;
  LaneMask lanes_;
  LaneMask alive_;
  bool may_continue_ = true;
  bool has_yielded_ = false;
  // Instructions since it has asked, and how many a loop that asks may have.
  uint64_t unasked_ = kLongestQuestion;
  static constexpr uint64_t kLongestQuestion = 64;
  uint64_t executed_ = 0;  // instructions of the turn of a split
  int pc_ = 0;
  size_t current_ = 0;
  std::vector<Split> splits_;
  std::vector<Join> joins_;
  std::vector<int> free_joins_;
  // Happens when lanes exit, for splits that wait for them.
  std::unique_ptr<Event> exited_ = std::make_unique<Event>();
  std::unique_ptr<WarpState> checks_;
  std::unique_ptr<ProductRegisters> product_registers_;
  std::map<int, std::unique_ptr<BulkGroups>> bulk_groups_;
  std::unique_ptr<Event> bulk_progress_ = std::make_unique<Event>();
  std::unique_ptr<AsyncCopies> async_copies_;
};

}  // namespace abyssal::emulator

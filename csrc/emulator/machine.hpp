// What runs the grids: which blocks are there, whose turn it is, and when asynchronous work
// happens.
//
// A machine stands for one GPU, or for several that can reach each other's memory. It is an
// adversary: blocks start only when those that run cannot go on (or at random), and asynchronous
// operations finish as late, as early or in as odd an order as PTX allows, by a seed.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator/block.hpp"

namespace abyssal::emulator {

enum class Policy : uint8_t {
  early,   // asynchronous work happens at once
  late,    // not before nothing else can go on
  random,  // at any time
};

struct Options {
  uint32_t num_sms = 132;
  Policy policy = Policy::late;
  uint64_t seed = 0;
  bool strict = true;
  // A block may end while bulk stores still read its shared memory. The PTX ISA does not allow it,
  // and public kernels do it.
  bool tolerates_stores_at_exit = false;
};

// What went wrong, in words for the user.
class EmulatorError : public std::runtime_error {
 public:
  EmulatorError(FaultKind kind, const std::string& message)
      : std::runtime_error(message), kind(kind) {}
  FaultKind kind;
};

class Machine {
 public:
  explicit Machine(Options options);

  const Options& options() const { return options_; }
  // Null unless the run is strict.
  Checker* checker() { return checker_.get(); }
  uint64_t random() { return generator_(); }
  uint64_t clock() const { return clock_; }
  void advance(uint64_t instructions) { clock_ += instructions; }
  // Something happened that others may have waited for.
  void note_progress() { ++progress_; }
  void print(const std::string& text) { printed_ += text; }
  const std::string& printed() const { return printed_; }

  // Runs the grids of one or more streams to their end; those of one stream one after another.
  // Throws EmulatorError. `interrupted` is asked now and then, and may throw.
  std::vector<std::unique_ptr<Grid>> run(std::vector<std::vector<LaunchDescription>> streams,
                                         void (*interrupted)() = nullptr);

 private:
  struct Stream {
    std::deque<LaunchDescription> waiting;
    Grid* last = nullptr;
  };

  void start_grids();
  void start_grid(Stream& stream);
  bool start_cluster();
  bool has_room(const Grid& grid) const;
  // Gives each cluster a turn. Returns whether any warp ran.
  bool run_clusters();
  bool deliver_one();
  void retire_clusters();
  bool release_joins();
  void go_on(bool polls, uint64_t idle_instructions);
  uint64_t budget();
  [[noreturn]] void report_deadlock(const std::string& what) const;

  const Options options_;
  std::unique_ptr<Checker> checker_;
  std::mt19937_64 generator_;
  uint64_t clock_ = 0;
  uint64_t progress_ = 0;
  bool has_worked_ = false;  // some warp, in this round
  std::string printed_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<Grid>> grids_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run
};

}  // namespace abyssal::emulator

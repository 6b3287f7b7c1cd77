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
    Grid* running = nullptr;
  };

  bool start_grids();
  bool start_cluster();
  bool run_clusters();
  void retire_clusters();
  bool release_joins();
  uint64_t budget();
  // Bytes of shared memory, threads and blocks that the SMs have room for.
  uint64_t resident_limit(const Grid& grid) const;
  [[noreturn]] void report_deadlock(const std::string& what) const;

  const Options options_;
  std::unique_ptr<Checker> checker_;
  std::mt19937_64 generator_;
  uint64_t clock_ = 0;
  uint64_t progress_ = 0;
  std::string printed_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<Grid>> grids_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run
};

}  // namespace abyssal::emulator

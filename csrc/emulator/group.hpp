// Launches that are collected and then run together, as `abyssal.emulator.concurrent` asks for.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emulator/machine.hpp"

namespace abyssal::emulator {

// The launches of a thread, in the order in which they came.
class LaunchGroup {
 public:
  // The group that this thread collects for; null outside of one.
  static LaunchGroup* current();
  // Throws std::invalid_argument inside of a group.
  static void begin();
  // Ends the group and returns it.
  static LaunchGroup end();

  // Launches of one stream of one device run in their order.
  void add(int device, uint64_t stream, LaunchDescription launch);
  bool is_empty() const { return launches_.empty(); }

  // The grids, in the order of `add`. Throws EmulatorError.
  std::vector<std::unique_ptr<Grid>> run(Machine& machine, void (*interrupted)());

 private:
  struct Queued {
    int device;
    uint64_t stream;
    LaunchDescription launch;
  };
  std::vector<Queued> launches_;
};

}  // namespace abyssal::emulator

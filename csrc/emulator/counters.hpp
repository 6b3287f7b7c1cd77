// What a launch did, as a profiler would count it.
//
// Exact where the machine says how it counts (instructions, bytes, bank conflicts of 32 banks of 4
// bytes, sectors of 32 bytes); nothing here is a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/lanes.hpp"
#include "emulator/ptx/syntax.hpp"

namespace abyssal::emulator {

// Where an instruction goes, told from its name: what ptxas makes of it may differ.
enum class Pipe : uint8_t {
  integer,
  float32,
  float16,
  float64,
  special,     // ex2, rcp, sqrt, ... (MUFU)
  conversion,  // cvt
  memory,
  copy,  // bulk copies
  tensor,
  synchronisation,
  control,
  move,
  count,
};

Pipe pipe_of(const ptx::Instruction& instruction);
const char* name_of(Pipe pipe);

// Of one instruction of a kernel.
struct InstructionCounters {
  uint64_t warps = 0;    // how often warps ran it
  uint64_t threads = 0;  // and threads
  uint64_t waits = 0;    // how often lanes had to wait here

  // Requests of warps to shared memory: passes over its banks, and how few would have done for as
  // many bytes.
  uint64_t shared_wavefronts = 0, ideal_wavefronts = 0;
  // Requests of warps to global memory, and the sectors that they touched.
  uint64_t global_requests = 0, global_sectors = 0;
};

// Of the bulk copies of a launch.
struct CopyCounters {
  uint64_t copies = 0;
  uint64_t bytes = 0;      // read, once for all blocks of a multicast
  uint64_t delivered = 0;  // written
};

enum class CopyDirection : uint8_t { to_shared, to_global, shared_to_shared, reduce, count };

struct Counters {
  std::vector<InstructionCounters> instructions;                              // by pc
  std::vector<std::array<uint64_t, static_cast<size_t>(Pipe::count)>> warps;  // by warp of a block
  std::array<CopyCounters, static_cast<size_t>(CopyDirection::count)> copies;
};

// Counts one request: `bytes` bytes at the address of each lane.
void count_shared(InstructionCounters& counters, LaneMask mask, const uint64_t* addresses,
                  uint32_t bytes);
void count_global(InstructionCounters& counters, LaneMask mask, const uint64_t* addresses,
                  uint32_t bytes);

}  // namespace abyssal::emulator

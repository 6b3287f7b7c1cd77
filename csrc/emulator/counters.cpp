#include "emulator/counters.hpp"

#include <algorithm>
#include <string_view>

namespace abyssal::emulator {
namespace {

constexpr uint32_t kBanks = 32, kBankBytes = 4;
constexpr uint32_t kWavefrontBytes = kBanks * kBankBytes;
constexpr uint32_t kSectorBytes = 32;

template <size_t N>
bool is_one_of(std::string_view name, const std::string_view (&names)[N]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool has(const ptx::Instruction& instruction, std::string_view modifier) {
  const auto& all = instruction.modifiers;
  return std::find(all.begin(), all.end(), modifier) != all.end();
}

Pipe arithmetic_pipe(const ptx::Instruction& instruction) {
  if (has(instruction, "f64")) return Pipe::float64;
  if (has(instruction, "f32")) return Pipe::float32;
  for (std::string_view type : {"f16", "f16x2", "bf16", "bf16x2"}) {
    if (has(instruction, type)) return Pipe::float16;
  }
  return Pipe::integer;
}

// Whether no two lanes touch the same bank, as most requests have it.
bool have_banks_of_their_own(LaneMask mask, const uint64_t* addresses, uint32_t bytes) {
  const uint32_t words = std::max(bytes / kBankBytes, 1u);
  const uint64_t banks_of_one = (uint64_t{1} << words) - 1;
  uint64_t taken = 0, shared = 0;
  for_lanes(mask, [&](int lane) {
    const uint64_t banks = banks_of_one << (addresses[lane] / kBankBytes % kBanks);
    shared |= taken & banks;
    taken |= banks;
  });
  return shared == 0;
}

// Passes over the banks for some lanes' accesses: different words of one bank need one each.
uint64_t passes(LaneMask mask, const uint64_t* addresses, uint32_t bytes) {
  if (have_banks_of_their_own(mask, addresses, bytes)) return 1;
  std::array<std::array<uint64_t, kLanes>, kBanks> words;
  std::array<uint8_t, kBanks> count = {};
  uint8_t most = 0;
  for_lanes(mask, [&](int lane) {
    const uint64_t end = (addresses[lane] + bytes + kBankBytes - 1) / kBankBytes;
    for (uint64_t word = addresses[lane] / kBankBytes; word < end; ++word) {
      auto& of_bank = words[word % kBanks];
      uint8_t& known = count[word % kBanks];
      if (std::find(of_bank.begin(), of_bank.begin() + known, word) != of_bank.begin() + known) {
        continue;
      }
      of_bank[known] = word;
      most = std::max(most, ++known);
    }
  });
  return most;
}

// Most requests go through memory upwards.
class SectorCount {
 public:
  void add(uint64_t sector) {
    const bool is_new =
        count_ == 0 || sector > highest_ ||
        std::find(sectors_.begin(), sectors_.begin() + count_, sector) == sectors_.begin() + count_;
    if (!is_new) return;
    highest_ = std::max(highest_, sector);
    sectors_[count_++] = sector;
  }
  size_t count() const { return count_; }

 private:
  // A lane's widest access, 32 bytes, may lie across two.
  std::array<uint64_t, 2 * kLanes> sectors_;
  uint64_t highest_ = 0;
  uint8_t count_ = 0;
};

}  // namespace

Pipe pipe_of(const ptx::Instruction& instruction) {
  constexpr std::string_view kMemory[] = {"ld", "ldu", "st", "atom", "red", "ldmatrix", "stmatrix"};
  constexpr std::string_view kSpecial[] = {"ex2",   "lg2",  "sin",  "cos", "rcp",
                                           "rsqrt", "sqrt", "tanh", "div"};
  constexpr std::string_view kControl[] = {"bra", "brx", "call", "ret", "exit", "trap"};
  constexpr std::string_view kSynchronisation[] = {
      "bar",   "barrier", "fence", "membar",     "mbarrier",       "shfl",       "vote",
      "match", "redux",   "elect", "activemask", "griddepcontrol", "setmaxnreg", "nanosleep"};
  constexpr std::string_view kMove[] = {"mov", "cvta", "mapa", "selp", "createpolicy", "prmt"};
  const std::string_view opcode = instruction.opcode;
  if (is_one_of(opcode, kMemory)) return Pipe::memory;
  if (opcode == "wgmma" || opcode == "mma") return Pipe::tensor;
  if (opcode == "cp") return Pipe::copy;
  if (is_one_of(opcode, kControl)) return Pipe::control;
  if (is_one_of(opcode, kSynchronisation)) return Pipe::synchronisation;
  if (is_one_of(opcode, kMove)) return Pipe::move;
  if (opcode == "cvt") return Pipe::conversion;
  const Pipe arithmetic = arithmetic_pipe(instruction);
  const bool is_floating = arithmetic != Pipe::integer && arithmetic != Pipe::float64;
  return is_floating && is_one_of(opcode, kSpecial) ? Pipe::special : arithmetic;
}

const char* name_of(Pipe pipe) {
  constexpr const char* kNames[] = {"integer", "float32",         "float16", "float64",
                                    "special", "conversion",      "memory",  "copy",
                                    "tensor",  "synchronisation", "control", "move"};
  return kNames[static_cast<size_t>(pipe)];
}

// 32 lanes of 4 bytes go together; wider accesses go by halves and quarters of the warp.
void count_shared(InstructionCounters& counters, LaneMask mask, const uint64_t* addresses,
                  uint32_t bytes) {
  const uint32_t together = std::clamp<uint32_t>(kWavefrontBytes / bytes, 1, kLanes);
  const LaneMask part = together == kLanes ? kAllLanes : (LaneMask{1} << together) - 1;
  for (uint32_t first = 0; first < kLanes; first += together) {
    const LaneMask lanes = mask & part << first;
    if (lanes == 0) continue;
    counters.shared_wavefronts += passes(lanes, addresses, bytes);
    ++counters.ideal_wavefronts;
  }
}

void count_global(InstructionCounters& counters, LaneMask mask, const uint64_t* addresses,
                  uint32_t bytes) {
  SectorCount sectors;
  for_lanes(mask, [&](int lane) {
    const uint64_t end = (addresses[lane] + bytes + kSectorBytes - 1) / kSectorBytes;
    for (uint64_t sector = addresses[lane] / kSectorBytes; sector < end; ++sector) {
      sectors.add(sector);
    }
  });
  ++counters.global_requests;
  counters.global_sectors += sectors.count();
}

}  // namespace abyssal::emulator

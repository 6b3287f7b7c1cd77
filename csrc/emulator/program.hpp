// A kernel made ready to run: each instruction is a function and where its operands are.
//
// Registers of a warp lie in one block of memory, 32 lanes side by side: a register of b bytes is
// 32 b bytes at its offset, a predicate is one LaneMask. Constants in the text are stored the same
// way, once for the program, so that an instruction reads both alike.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/checks/product_registers.hpp"
#include "emulator/counters.hpp"
#include "emulator/lanes.hpp"
#include "emulator/operands.hpp"
#include "emulator/ptx/syntax.hpp"
#include "emulator/special_registers.hpp"

namespace abyssal::emulator {

class Warp;
struct Instruction;

// Executes `instruction` for the lanes of `mask`, which is not empty. The program counter already
// stands behind the instruction; a handler that branches or waits sets it.
using Handler = void (*)(Warp& warp, const Instruction& instruction, LaneMask mask);

// What handlers of memory and warpgroup instructions know beyond their operands.
struct Details {
  virtual ~Details() = default;
};

struct Instruction {
  Handler run = nullptr;
  Source sources[4];
  Destination destinations[2];
  uint32_t guard = kNoRegister;
  bool guard_is_negated = false;
  uint8_t negated = 0;  // bit i: predicate source i is taken negated
  uint8_t variant = 0;  // of handlers that serve several modifiers
  Pipe pipe = Pipe::control;
  bool touches_products = false;  // registers that products use, and is none
  int32_t target = -1;            // branches: where to
  int32_t join = -1;              // branches: where lanes that part here meet again; -1: nowhere
  int64_t immediate = 0;
  std::unique_ptr<const Details> details;
};

struct Program {
  std::shared_ptr<const ptx::Module> module;
  const ptx::Kernel* kernel = nullptr;
  std::vector<Instruction> code;    // one for each of the kernel's, and a last `exit`
  std::vector<uint64_t> constants;  // 8-byte units, for alignment
  std::vector<SpecialRegister> specials;
  uint32_t register_bytes = 0;
  uint32_t shared_bytes = 0;  // static, without the window's reserved kilobyte
  uint32_t dynamic_shared_alignment = 1;
  uint32_t local_bytes = 0;  // of a thread, parameters of calls included
  std::unique_ptr<const ProductRegisterUses> product_registers;
  // Host addresses of the module's `.global` and `.const` variables, by their index.
  std::vector<uint64_t> module_addresses;

  // "quantize_1x128.cu:131, inlined into quantize_1x128.cu:184" of an instruction.
  std::string place(int pc) const;
};

}  // namespace abyssal::emulator

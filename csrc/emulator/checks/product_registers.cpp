#include "emulator/checks/product_registers.hpp"

#include <algorithm>
#include <limits>

#include "emulator/fault.hpp"
#include "emulator/ptx/lexer.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {
namespace {

constexpr uint64_t kUntouched = std::numeric_limits<uint64_t>::max();

bool is_product(const ptx::Instruction& instruction) {
  return instruction.opcode == "wgmma" && !instruction.modifiers.empty() &&
         instruction.modifiers[0] == "mma_async";
}

void collect(const ptx::Operand& operand, std::vector<int>& registers) {
  if (operand.kind == ptx::Operand::Kind::reg) registers.push_back(operand.index);
  for (const ptx::Operand& element : operand.elements) collect(element, registers);
}

// The accumulators, and the fragments of A if they are in registers.
std::vector<int> registers_of_product(const ptx::Instruction& product) {
  std::vector<int> registers;
  for (size_t i = 0; i < std::min<size_t>(2, product.operands.size()); ++i) {
    const ptx::Operand& operand = product.operands[i];
    if (operand.kind == ptx::Operand::Kind::vector) collect(operand, registers);
  }
  return registers;
}

}  // namespace

ProductRegisterUses::ProductRegisterUses(const ptx::Kernel& kernel) {
  std::vector<int> index_of(kernel.registers.size(), -1);
  for (const ptx::Instruction& instruction : kernel.instructions) {
    if (!is_product(instruction)) continue;
    for (int reg : registers_of_product(instruction)) {
      if (index_of[reg] >= 0) continue;
      index_of[reg] = static_cast<int>(registers.size());
      registers.push_back(reg);
    }
  }
  if (registers.empty()) return;
  if (registers.size() > std::numeric_limits<uint16_t>::max()) {
    throw ptx::PtxError(kernel.line, kernel.name + " gives products more registers than 65535");
  }
  of_instruction.resize(kernel.instructions.size() + 1);
  for (size_t pc = 0; pc < kernel.instructions.size(); ++pc) {
    const ptx::Instruction& instruction = kernel.instructions[pc];
    std::vector<int> touched;
    if (is_product(instruction)) {
      touched = registers_of_product(instruction);
    } else {
      for (const ptx::Operand& operand : instruction.operands) collect(operand, touched);
    }
    for (int reg : touched) {
      if (index_of[reg] < 0) continue;
      of_instruction[pc].push_back(static_cast<uint16_t>(index_of[reg]));
    }
  }
}

ProductRegisters::ProductRegisters(const Program& program)
    : program_(program), states_(program.product_registers->registers.size()) {}

void ProductRegisters::touch(const Warp& warp) {
  for (uint16_t index : program_.product_registers->of_instruction[warp.pc()]) {
    State& state = states_[index];
    if (state.product > waited_) report(warp, index);
    state.touched = fences_;
  }
}

void ProductRegisters::use(const Warp& warp, size_t num_accumulators, uint64_t number) {
  const std::vector<uint16_t>& used = program_.product_registers->of_instruction[warp.pc()];
  for (size_t i = 0; i < used.size(); ++i) {
    State& state = states_[used[i]];
    const auto shape = static_cast<uint32_t>(i < num_accumulators ? num_accumulators : 0);
    const bool follows = state.shape == shape && state.pc >= 0;
    if (state.product > waited_ && !follows) report(warp, used[i]);
    if (state.touched == fences_) {
      const ptx::Register& reg =
          program_.kernel->registers[program_.product_registers->registers[used[i]]];
      throw Fault(FaultKind::missing_fence,
                  "no wgmma.fence lies between this product and what other instructions did with "
                  "its register " +
                      reg.name);
    }
    state = {number, warp.pc(), shape, kUntouched};
  }
}

void ProductRegisters::report(const Warp& warp, uint16_t index) const {
  const State& state = states_[index];
  const ptx::Register& reg =
      program_.kernel->registers[program_.product_registers->registers[index]];
  throw Fault(FaultKind::in_flight, "register " + reg.name +
                                        " is in use by a product that no wgmma.wait_group has "
                                        "waited for, " +
                                        warp.program().place(state.pc));
}

}  // namespace abyssal::emulator

// Registers that warpgroup products read and write while the warp goes on (PTX ISA 9.7.15.7.1).
//
// From a `wgmma.mma_async` to a `wgmma.wait_group` that waits for it, nobody may touch its
// accumulators, or its A fragments in registers; products of one shape may follow each other in the
// same accumulators. Registers that other instructions have touched need a `wgmma.fence` before a
// product uses them.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator/ptx/syntax.hpp"

namespace abyssal::emulator {

struct Program;
class Warp;

// What each instruction of a kernel touches of the registers that products use: by pc, indices
// from 0 on. Of a product, its accumulators come first.
struct ProductRegisterUses {
  std::vector<std::vector<uint16_t>> of_instruction;
  std::vector<int> registers;  // of the kernel, by index

  // Throws ptx::PtxError for more than a warp can have.
  explicit ProductRegisterUses(const ptx::Kernel& kernel);
  bool is_empty() const { return registers.empty(); }
};

// Of one warp, in strict runs.
class ProductRegisters {
 public:
  explicit ProductRegisters(const Program& program);

  // An instruction that is no product runs. Throws Fault.
  void touch(const Warp& warp);
  // wgmma.fence
  void fence() { ++fences_; }
  // A product is issued; `number` counts the warp's from 1. Throws Fault.
  void use(const Warp& warp, size_t num_accumulators, uint64_t number);
  // wgmma.wait_group has waited for the products up to this one.
  void wait(uint64_t number) { waited_ = number; }
  uint64_t waited() const { return waited_; }

 private:
  struct State {
    uint64_t product = 0;  // the last that uses it
    int pc = -1;           // of that product
    uint32_t shape = 0;    // its accumulators; 0: a fragment of A
    // How many fences the warp had run when others touched it last.
    uint64_t touched = 0;
  };

  [[noreturn]] void report(const Warp& warp, uint16_t index) const;

  const Program& program_;
  std::vector<State> states_;
  uint64_t fences_ = 0;
  uint64_t waited_ = 0;
};

}  // namespace abyssal::emulator

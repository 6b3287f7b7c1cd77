// setmaxnreg and griddepcontrol (PTX ISA 9.7.19.5 and 9.7.13.14).

#include "emulator/checks/warp_state.hpp"
#include "emulator/decoder.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

constexpr int64_t kFewestRegisters = 24, kMostRegisters = 256, kRegisterStep = 8;

void run_setmaxnreg(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.require_convergence(mask);
  const auto wanted = static_cast<uint32_t>(instruction.immediate);
  Block& block = warp.block();
  if (instruction.variant == 0) {
    if (wanted > warp.num_registers) {
      throw Fault(FaultKind::invalid,
                  "setmaxnreg.dec to " + std::to_string(wanted) + " from " +
                      std::to_string(warp.num_registers) + " registers",
                  first_lane(mask));
    }
  } else if (wanted < warp.num_registers) {
    throw Fault(FaultKind::invalid,
                "setmaxnreg.inc to " + std::to_string(wanted) + " from " +
                    std::to_string(warp.num_registers) + " registers",
                first_lane(mask));
  } else if ((wanted - warp.num_registers) * kLanes > block.free_registers) {
    return warp.retry_after(block.registers_freed, "registers of the block's pool, so many",
                            wanted);
  }
  block.free_registers += warp.num_registers * kLanes;
  block.free_registers -= wanted * kLanes;
  warp.num_registers = wanted;
  block.registers_freed.happen();
}

void decode_setmaxnreg(Decoding& decoding) {
  decoding.into.variant = static_cast<uint8_t>(decoding.choose({"dec", "inc"}));
  decoding.expect("sync");
  decoding.expect("aligned");
  decoding.expect("u32");
  decoding.expect_operands(1);
  const int64_t count = decoding.constant(decoding.operand(0));
  if (count < kFewestRegisters || count > kMostRegisters || count % kRegisterStep != 0) {
    decoding.fail("the number of registers must be a multiple of 8 from 24 to 256");
  }
  decoding.into.immediate = count;
  decoding.into.run = run_setmaxnreg;
}

void run_launch_dependents(Warp& warp, const Instruction&, LaneMask) {
  warp.block().release_dependents();
}

// Blocks of a launch that need not wait for the grid before it begin early; this is where they do.
void run_wait_for_primary(Warp& warp, const Instruction&, LaneMask mask) {
  Grid& grid = warp.block().grid();
  if (grid.primary == nullptr) return;
  if (!grid.primary->is_finished()) {
    warp.retry_after(grid.primary->finished, "the grid that was launched before it",
                     grid.primary->id);
    return;
  }
  if (warp.checks() == nullptr) return;
  // What that grid did is visible, to the async proxy as well (PTX ISA 9.7.13.14).
  warp.checks()->learn(mask, warp.alive(), grid.primary->over);
  grid.over.join(grid.primary->over);
}

void decode_griddepcontrol(Decoding& decoding) {
  const bool waits = decoding.choose({"launch_dependents", "wait"}) == 1;
  decoding.expect_operands(0);
  decoding.into.run = waits ? run_wait_for_primary : run_launch_dependents;
}

constexpr Opcode kOpcodes[] = {{"setmaxnreg", decode_setmaxnreg},
                               {"griddepcontrol", decode_griddepcontrol}};

}  // namespace

std::span<const Opcode> launch_control_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

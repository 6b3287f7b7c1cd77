// Control flow (PTX ISA 9.7.12) and what else steers a thread.

#include "emulator/block.hpp"
#include "emulator/instructions/calls.hpp"
#include "emulator/instructions/lanewise.hpp"

namespace abyssal::emulator {
namespace {

void run_branch(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.branch(instruction, mask);
}

void decode_bra(Decoding& decoding) {
  decoding.accept("uni");
  decoding.expect_operands(1);
  decoding.into.target = decoding.label(0);
  decoding.into.run = run_branch;
}

struct TableDetails : Details {
  std::vector<int32_t> targets;
};

void run_indexed_branch(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& targets = static_cast<const TableDetails&>(*instruction.details).targets;
  const auto* index = warp.read<uint32_t>(instruction.sources[0]);
  int32_t lane_targets[kLanes];
  for_lanes(warp.active(), [&](int lane) { lane_targets[lane] = warp.pc() + 1; });
  for_lanes(mask, [&](int lane) {
    if (index[lane] >= targets.size()) {
      throw Fault(FaultKind::invalid,
                  "index " + std::to_string(index[lane]) + " into a table of " +
                      std::to_string(targets.size()) + " targets",
                  lane);
    }
    lane_targets[lane] = targets[index[lane]];
  });
  warp.jump(lane_targets, instruction.join);
}

void decode_brx(Decoding& decoding) {
  decoding.expect("idx");
  decoding.accept("uni");
  decoding.expect_operands(2);
  decoding.into.sources[0] = decoding.source(0, Type::u32);
  if (decoding.operand(1).kind != ptx::Operand::Kind::table) decoding.fail("expected a table");
  auto details = std::make_unique<TableDetails>();
  for (const ptx::Operand& target : decoding.operand(1).elements) {
    details->targets.push_back(target.index);
  }
  decoding.into.details = std::move(details);
  decoding.into.run = run_indexed_branch;
}

void run_exit(Warp& warp, const Instruction&, LaneMask mask) { warp.exit(mask); }

void decode_exit(Decoding& decoding) {
  decoding.accept("uni");
  decoding.expect_operands(0);
  decoding.into.run = run_exit;
}

void run_trap(Warp&, const Instruction&, LaneMask mask) {
  throw Fault(FaultKind::trap, "the kernel stopped itself", first_lane(mask));
}

void decode_trap(Decoding& decoding) {
  decoding.expect_operands(0);
  decoding.into.run = run_trap;
}

void run_pause(Warp& warp, const Instruction&, LaneMask) { warp.yield(); }

void decode_nanosleep(Decoding& decoding) {
  decoding.expect("u32");
  decoding.expect_operands(1);
  decoding.source(0, Type::u32);
  decoding.into.run = run_pause;
}

// call (result), name, (arguments); only the functions that the CUDA runtime provides.
void decode_call(Decoding& decoding) {
  decoding.accept("uni");
  const ptx::Operand* function = nullptr;
  const ptx::Operand* arguments = nullptr;
  for (const ptx::Operand& operand : decoding.text().operands) {
    if (operand.kind == ptx::Operand::Kind::function) function = &operand;
    if (operand.kind == ptx::Operand::Kind::arguments && function != nullptr) arguments = &operand;
  }
  if (function == nullptr || arguments == nullptr) decoding.fail("an indirect call");
  decode_runtime_call(decoding, function->text, arguments->elements);
}

constexpr Opcode kOpcodes[] = {
    {"bra", decode_bra},   {"brx", decode_brx},   {"ret", decode_exit},
    {"exit", decode_exit}, {"trap", decode_trap}, {"nanosleep", decode_nanosleep},
    {"call", decode_call},
};

}  // namespace

std::span<const Opcode> control_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

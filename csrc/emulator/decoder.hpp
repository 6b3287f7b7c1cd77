// From parsed PTX to a Program.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emulator/program.hpp"
#include "emulator/ptx/lexer.hpp"
#include "emulator/ptx/syntax.hpp"
#include "emulator/ptx/types.hpp"

namespace abyssal::emulator {

using ptx::Type;

// Module-level state that a kernel's code refers to.
struct ModuleImage {
  std::shared_ptr<const ptx::Module> module;
  std::vector<uint64_t> addresses;  // of `.global` and `.const` variables, by index
};

class ProgramBuilder;

// One instruction on its way from text to handler. Every modifier must be taken and every operand
// must fit, or it is an error: nothing is guessed.
class Decoding {
 public:
  Decoding(ProgramBuilder& builder, const ptx::Instruction& text, Instruction& into)
      : into(into), builder_(builder), text_(text) {}

  Instruction& into;

  const ptx::Instruction& text() const { return text_; }

  // Takes the next modifier if it is this one.
  bool accept(std::string_view modifier);
  // Takes the next modifier if it begins so, and returns the rest of it.
  std::optional<std::string_view> accept_prefix(std::string_view prefix);
  void expect(std::string_view modifier);
  // Takes the next modifier, which must be one of `choices`, and returns its index.
  size_t choose(std::span<const std::string_view> choices);
  size_t choose(std::initializer_list<std::string_view> choices) {
    return choose(std::span(choices.begin(), choices.size()));
  }
  // The same where none may be there: then -1.
  int choose_if(std::span<const std::string_view> choices);
  int choose_if(std::initializer_list<std::string_view> choices) {
    return choose_if(std::span(choices.begin(), choices.size()));
  }
  Type type();
  std::optional<Type> type_if();
  std::string_view peek() const;
  void finish_modifiers() const;

  size_t num_operands() const { return text_.operands.size(); }
  const ptx::Operand& operand(size_t index) const;
  void expect_operands(size_t least, size_t most) const;
  void expect_operands(size_t exactly) const { expect_operands(exactly, exactly); }

  // A value of exactly this many bytes; constants are converted to `type`.
  Source source(const ptx::Operand& operand, Type type);
  Source source(size_t index, Type type) { return source(operand(index), type); }
  // A value whose register may be wider (ld, st, cvt: PTX ISA 9.4.1).
  Source wide_source(const ptx::Operand& operand, Type type);
  // A predicate; sets bit `slot` of `negated` for !p.
  Source predicate(const ptx::Operand& operand, int slot);
  bool is_predicate(const ptx::Operand& operand) const;
  Destination destination(const ptx::Operand& operand, int bytes);
  Destination destination(size_t index, Type type) {
    return destination(operand(index), ptx::bytes_of(type));
  }
  Destination wide_destination(const ptx::Operand& operand, Type type);
  Destination predicate_destination(const ptx::Operand& operand);

  // [base + offset]: the base as a 64-bit or 32-bit value, and the offset.
  struct Address {
    Source base;
    int64_t offset = 0;
  };
  Address address(const ptx::Operand& operand);

  // An integer in the text itself.
  int64_t constant(const ptx::Operand& operand) const;
  // A constant that the program stores.
  Source stored(uint64_t bits, int bytes);
  int label(size_t index) const;
  int num_kernel_params() const;

  [[noreturn]] void fail(const std::string& message) const;

 private:
  uint64_t converted(const ptx::Operand& operand, Type type) const;

  ProgramBuilder& builder_;
  const ptx::Instruction& text_;
  size_t next_ = 0;  // modifier
};

using Decode = void (*)(Decoding&);

struct Opcode {
  std::string_view name;
  Decode decode;
};

// Each family of instructions lists what it knows.
std::span<const Opcode> arithmetic_opcodes();
std::span<const Opcode> bit_opcodes();
std::span<const Opcode> comparison_opcodes();
std::span<const Opcode> floating_opcodes();
std::span<const Opcode> conversion_opcodes();
std::span<const Opcode> move_opcodes();
std::span<const Opcode> memory_opcodes();
std::span<const Opcode> atomic_opcodes();
std::span<const Opcode> control_opcodes();
std::span<const Opcode> warp_opcodes();
std::span<const Opcode> barrier_opcodes();
std::span<const Opcode> mbarrier_opcodes();
std::span<const Opcode> bulk_copy_opcodes();
std::span<const Opcode> matrix_opcodes();
std::span<const Opcode> wgmma_opcodes();
std::span<const Opcode> launch_control_opcodes();

// Throws ptx::PtxError for an instruction that is not known, naming it and its source line.
std::shared_ptr<const Program> decode(const ModuleImage& image, const ptx::Kernel& kernel);

// An instruction without its operands: "ld.global.u32".
std::string written(const ptx::Instruction& instruction);

// "tests/kernels/a.cu:17" of an index into Module::locations; "" for -1.
std::string describe_location(const ptx::Module& module, int location);

}  // namespace abyssal::emulator

#include "emulator/decoder.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "emulator/control_flow.hpp"
#include "emulator/memory.hpp"
#include "emulator/special_registers.hpp"

namespace abyssal::emulator {
namespace {

// What one read fetches: alignment of registers and constants of a warp.
constexpr uint32_t kAlignment = 64;
// The largest alignment that the parser accepts.
constexpr uint64_t kMostAligned = 4096;

uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

const std::unordered_map<std::string_view, Decode>& opcodes() {
  static const auto& table = *[] {
    auto* all = new std::unordered_map<std::string_view, Decode>;
    for (const auto& family :
         {arithmetic_opcodes(), bit_opcodes(), comparison_opcodes(), floating_opcodes(),
          conversion_opcodes(), move_opcodes(), memory_opcodes(), atomic_opcodes(),
          control_opcodes(), warp_opcodes(), barrier_opcodes(), mbarrier_opcodes(),
          bulk_copy_opcodes(), matrix_opcodes(), wgmma_opcodes(), launch_control_opcodes()}) {
      for (const Opcode& opcode : family) all->emplace(opcode.name, opcode.decode);
    }
    return all;
  }();
  return table;
}

}  // namespace

std::string written(const ptx::Instruction& instruction) {
  std::string text(instruction.opcode);
  for (std::string_view modifier : instruction.modifiers) text.append(".").append(modifier);
  return text;
}

// Lays out registers, constants and shared memory of a program while it is decoded.
class ProgramBuilder {
 public:
  ProgramBuilder(const ModuleImage& image, const ptx::Kernel& kernel)
      : kernel(kernel), image(image), program(std::make_shared<Program>()) {
    program->module = image.module;
    program->kernel = &kernel;
    program->module_addresses = image.addresses;
    for (const ptx::Register& reg : kernel.registers) offsets.push_back(allocate(reg.bytes));
    lay_out_memory();
  }

  // Room for a register, or a predicate (0 bytes), of all lanes.
  uint32_t allocate(int bytes) {
    if (bytes == 0) {
      program->register_bytes = static_cast<uint32_t>(round_up(program->register_bytes, 4)) + 4;
      return program->register_bytes - 4;
    }
    const auto offset = static_cast<uint32_t>(round_up(program->register_bytes, kAlignment));
    program->register_bytes = offset + static_cast<uint32_t>(bytes) * kLanes;
    return offset;
  }

  // Where results go that the text sinks ('_'): a register that nothing reads.
  Destination discarded(int bytes) {
    const auto [entry, is_new] = sinks.try_emplace(bytes);
    if (is_new) entry->second = {allocate(bytes), static_cast<uint8_t>(bytes)};
    return entry->second;
  }

  // 32 copies of a constant. 16-byte values have their upper half in the sign.
  Source constant(uint64_t bits, int bytes) {
    const auto [entry, is_new] = constants.try_emplace({bits, bytes});
    if (is_new) {
      std::vector<uint64_t>& storage = program->constants;
      storage.resize(round_up(storage.size(), kAlignment / 8));
      const size_t begin = storage.size();
      entry->second = {static_cast<uint32_t>(begin * 8), static_cast<uint8_t>(bytes), true};
      storage.resize(begin + std::max(bytes, 1) * kLanes / 8);
      auto* lanes = reinterpret_cast<std::byte*>(storage.data() + begin);
      if (bytes == 0) {
        std::memset(lanes, bits != 0 ? 0xff : 0, sizeof(LaneMask));
      } else {
        for (int lane = 0; lane < kLanes; ++lane) {
          std::memcpy(lanes + lane * bytes, &bits, std::min<size_t>(bytes, sizeof(bits)));
        }
      }
    }
    return entry->second;
  }

  // The value of a variable's name: its address in its space.
  uint64_t address_of(int index) const {
    const bool of_module = index < 0;
    const ptx::Variable& variable =
        of_module ? program->module->variables[~index] : kernel.variables[index];
    switch (variable.space) {
      case ptx::Space::global:
      case ptx::Space::constant:
        return program->module_addresses[~index];
      case ptx::Space::shared:
        if (variable.is_dynamic) return kReservedShared + program->shared_bytes;
        return kReservedShared +
               (of_module ? module_shared_offsets[~index] : module_shared_bytes + variable.offset);
      case ptx::Space::local:
        return variable.offset;
      case ptx::Space::param:
        return index < kernel.num_params ? variable.offset : kernel.local_bytes + variable.offset;
    }
    return 0;
  }

  const ptx::Variable* variable(const ptx::Operand& operand) const {
    if (operand.kind != ptx::Operand::Kind::variable) return nullptr;
    return operand.index < 0 ? &program->module->variables[~operand.index]
                             : &kernel.variables[operand.index];
  }

  // The register that holds a special register's value, from the start of the warp on.
  Source special(SpecialRegister wanted, int bytes) {
    for (const SpecialRegister& known : program->specials) {
      const bool is_same = known.kind == wanted.kind && known.axis == wanted.axis;
      if (is_same && known.where.bytes == bytes) return {known.where.offset, known.where.bytes};
    }
    wanted.where = {allocate(bytes), static_cast<uint8_t>(bytes)};
    program->specials.push_back(wanted);
    return {wanted.where.offset, wanted.where.bytes};
  }

  const ptx::Kernel& kernel;
  const ModuleImage& image;
  std::shared_ptr<Program> program;
  std::vector<uint32_t> offsets;  // of registers
  uint64_t module_shared_bytes = 0;
  std::vector<uint64_t> module_shared_offsets;  // by index of the module's variables

 private:
  // Shared memory: the module's static variables that the kernel names (ptxas gives it no others),
  // the kernel's, then what the launch adds.
  void lay_out_memory() {
    uint64_t alignment = 1;
    const std::vector<bool> named = named_variables();
    for (const ptx::Variable& variable : program->module->variables) {
      const size_t index = module_shared_offsets.size();
      module_shared_offsets.push_back(0);
      if (variable.space != ptx::Space::shared || !named[index]) continue;
      if (variable.is_dynamic) {
        alignment = std::max(alignment, variable.alignment);
        continue;
      }
      module_shared_offsets.back() = round_up(module_shared_bytes, variable.alignment);
      module_shared_bytes = module_shared_offsets.back() + variable.bytes;
    }
    // The kernel's own offsets are aligned from 0 on.
    if (kernel.shared_bytes > 0) module_shared_bytes = round_up(module_shared_bytes, kMostAligned);
    const uint64_t bytes = round_up(module_shared_bytes + kernel.shared_bytes, alignment);
    uint64_t call_bytes = 0;
    for (size_t i = kernel.num_params; i < kernel.variables.size(); ++i) {
      const ptx::Variable& variable = kernel.variables[i];
      if (variable.space != ptx::Space::param) continue;
      call_bytes = std::max(call_bytes, variable.offset + variable.bytes);
    }
    const uint64_t local_bytes = kernel.local_bytes + call_bytes;
    if (bytes > uint64_t{1} << 20 || local_bytes > uint64_t{512} << 10) {
      throw ptx::PtxError(kernel.line, kernel.name + " declares " + std::to_string(bytes) +
                                           " bytes of shared and " + std::to_string(local_bytes) +
                                           " of local memory, more than any device has");
    }
    program->shared_bytes = static_cast<uint32_t>(bytes);
    program->dynamic_shared_alignment = static_cast<uint32_t>(alignment);
    program->local_bytes = static_cast<uint32_t>(round_up(local_bytes, 16));
  }

  // Which of the module's variables the kernel's instructions name.
  std::vector<bool> named_variables() const {
    std::vector<bool> named(program->module->variables.size());
    const auto mark = [&](const auto& self, const ptx::Operand& operand) -> void {
      if (operand.kind == ptx::Operand::Kind::variable && operand.index < 0) {
        named[static_cast<size_t>(~operand.index)] = true;
      }
      for (const ptx::Operand& element : operand.elements) self(self, element);
    };
    for (const ptx::Instruction& instruction : kernel.instructions) {
      for (const ptx::Operand& operand : instruction.operands) mark(mark, operand);
    }
    return named;
  }

  std::map<std::pair<uint64_t, int>, Source> constants;
  std::map<int, Destination> sinks;  // by their bytes
};

// Modifiers.

std::string_view Decoding::peek() const {
  return next_ < text_.modifiers.size() ? text_.modifiers[next_] : std::string_view();
}

bool Decoding::accept(std::string_view modifier) {
  if (peek() != modifier || next_ == text_.modifiers.size()) return false;
  ++next_;
  return true;
}

std::optional<std::string_view> Decoding::accept_prefix(std::string_view prefix) {
  if (!peek().starts_with(prefix) || next_ == text_.modifiers.size()) return std::nullopt;
  return text_.modifiers[next_++].substr(prefix.size());
}

void Decoding::expect(std::string_view modifier) {
  if (!accept(modifier)) fail("expected ." + std::string(modifier));
}

int Decoding::choose_if(std::span<const std::string_view> choices) {
  int index = 0;
  for (std::string_view choice : choices) {
    if (accept(choice)) return index;
    ++index;
  }
  return -1;
}

size_t Decoding::choose(std::span<const std::string_view> choices) {
  const int index = choose_if(choices);
  if (index >= 0) return static_cast<size_t>(index);
  std::string list;
  for (std::string_view choice : choices) {
    list.append(list.empty() ? "expected one of ." : ", .").append(choice);
  }
  fail(list);
}

std::optional<Type> Decoding::type_if() {
  const auto found = ptx::find_type(peek());
  if (found) ++next_;
  return found;
}

Type Decoding::type() {
  const auto found = type_if();
  if (!found) fail("expected a type");
  return *found;
}

void Decoding::finish_modifiers() const {
  if (next_ < text_.modifiers.size()) fail("." + std::string(peek()) + " is not known here");
}

// Operands.

const ptx::Operand& Decoding::operand(size_t index) const {
  if (index >= text_.operands.size()) fail("operands are missing");
  return text_.operands[index];
}

void Decoding::expect_operands(size_t least, size_t most) const {
  if (text_.operands.size() < least || text_.operands.size() > most) {
    fail("it has " + std::to_string(text_.operands.size()) + " operands");
  }
}

uint64_t Decoding::converted(const ptx::Operand& operand, Type type) const {
  if (operand.kind == ptx::Operand::Kind::integer) {
    if (type == Type::f32 || type == Type::f64) fail("an integer where a float is needed");
    return operand.bits;
  }
  if (type == Type::f64 || ptx::bytes_of(type) == 8) {
    if (operand.bytes == 8) return operand.bits;
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(operand.bits));
    return std::bit_cast<uint64_t>(static_cast<double>(value));
  }
  if (ptx::bytes_of(type) != 4) fail("a floating-point constant of the wrong size");
  if (operand.bytes == 4) return operand.bits;
  return std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(operand.bits)));
}

Source Decoding::stored(uint64_t bits, int bytes) {
  if (bytes > 0 && bytes < 8) bits &= (uint64_t{1} << (8 * bytes)) - 1;
  return builder_.constant(bits, bytes);
}

Source Decoding::source(const ptx::Operand& operand, Type type) {
  const Source found = wide_source(operand, type);
  if (found.bytes != std::max(ptx::bytes_of(type), 2)) {
    fail("an operand of " + std::to_string(found.bytes) + " bytes where " +
         std::to_string(ptx::bytes_of(type)) + " are needed");
  }
  return found;
}

Source Decoding::wide_source(const ptx::Operand& operand, Type type) {
  // Registers of 8-bit types have 16 bits; so do their constants here.
  const int bytes = std::max(ptx::bytes_of(type), 2);
  switch (operand.kind) {
    case ptx::Operand::Kind::reg: {
      const int given = builder_.kernel.registers[operand.index].bytes;
      if (operand.is_negated) fail("'!' before an operand that is no predicate");
      if (given < bytes) fail("a register of " + std::to_string(given) + " bytes is too small");
      return {builder_.offsets[operand.index], static_cast<uint8_t>(given), false};
    }
    case ptx::Operand::Kind::integer:
    case ptx::Operand::Kind::floating:
      return stored(converted(operand, type), bytes);
    case ptx::Operand::Kind::variable:
      return stored(builder_.address_of(operand.index), bytes);
    case ptx::Operand::Kind::special: {
      if (operand.text == "WARP_SZ") return stored(kLanes, bytes);
      const auto found = find_special_register(operand.text);
      if (!found) fail("the special register " + std::string(operand.text) + " is not known");
      return builder_.special(*found, bytes);
    }
    default:
      fail("an operand that is no value");
  }
}

Source Decoding::predicate(const ptx::Operand& operand, int slot) {
  if (operand.kind == ptx::Operand::Kind::integer) return stored(operand.bits, 0);
  if (operand.kind != ptx::Operand::Kind::reg || builder_.kernel.registers[operand.index].bytes) {
    fail("an operand that should be a predicate is none");
  }
  if (operand.is_negated) into.negated |= static_cast<uint8_t>(1 << slot);
  return {builder_.offsets[operand.index], 0, false};
}

bool Decoding::is_predicate(const ptx::Operand& operand) const {
  return operand.kind == ptx::Operand::Kind::reg &&
         builder_.kernel.registers[operand.index].bytes == 0;
}

Destination Decoding::destination(const ptx::Operand& operand, int bytes) {
  bytes = std::max(bytes, 2);
  if (operand.kind == ptx::Operand::Kind::sink) return builder_.discarded(bytes);
  if (operand.kind != ptx::Operand::Kind::reg) fail("a result that is no register");
  const int given = builder_.kernel.registers[operand.index].bytes;
  if (given != bytes) {
    fail("a result of " + std::to_string(bytes) + " bytes and a register of " +
         std::to_string(given));
  }
  return {builder_.offsets[operand.index], static_cast<uint8_t>(given)};
}

Destination Decoding::wide_destination(const ptx::Operand& operand, Type type) {
  if (operand.kind == ptx::Operand::Kind::sink) {
    return builder_.discarded(std::max(ptx::bytes_of(type), 2));
  }
  if (operand.kind != ptx::Operand::Kind::reg) fail("a result that is no register");
  const int given = builder_.kernel.registers[operand.index].bytes;
  if (given < ptx::bytes_of(type)) fail("a register that is too small for the result");
  return {builder_.offsets[operand.index], static_cast<uint8_t>(given)};
}

Destination Decoding::predicate_destination(const ptx::Operand& operand) {
  if (operand.kind == ptx::Operand::Kind::sink) return builder_.discarded(0);
  if (operand.kind != ptx::Operand::Kind::reg || builder_.kernel.registers[operand.index].bytes) {
    fail("a result that should be a predicate is none");
  }
  return {builder_.offsets[operand.index], 0};
}

Decoding::Address Decoding::address(const ptx::Operand& operand) {
  if (operand.kind != ptx::Operand::Kind::address) fail("an operand that should be an address");
  const ptx::Operand& base = operand.elements[0];
  const auto offset = static_cast<int64_t>(operand.bits);
  if (base.kind == ptx::Operand::Kind::reg) {
    const int bytes = builder_.kernel.registers[base.index].bytes;
    if (bytes != 4 && bytes != 8) fail("an address in a register of the wrong size");
    return {wide_source(base, bytes == 4 ? Type::b32 : Type::b64), offset};
  }
  return {wide_source(base, Type::b64), offset};
}

int64_t Decoding::constant(const ptx::Operand& operand) const {
  if (operand.kind != ptx::Operand::Kind::integer) fail("an operand that must be a constant");
  return static_cast<int64_t>(operand.bits);
}

int Decoding::label(size_t index) const {
  if (operand(index).kind != ptx::Operand::Kind::label) fail("an operand that must be a label");
  return operand(index).index;
}

int Decoding::num_kernel_params() const { return builder_.kernel.num_params; }

void Decoding::fail(const std::string& message) const {
  const auto shortened = [](const std::string& text) {
    constexpr size_t kLongest = 200;
    return text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
  };
  std::string text =
      "unsupported instruction " + shortened(written(text_)) + ": " + shortened(message);
  const std::string place = describe_location(*builder_.program->module, text_.location);
  if (!place.empty()) text += " (" + place + ")";
  throw ptx::PtxError(text_.line, text);
}

// Programs.

namespace {

// Instructions that may follow each; the number of instructions stands for the end.
std::vector<std::vector<int>> successors(const ptx::Kernel& kernel) {
  const int end = static_cast<int>(kernel.instructions.size());
  std::vector<std::vector<int>> result(end);
  for (int pc = 0; pc < end; ++pc) {
    const ptx::Instruction& instruction = kernel.instructions[pc];
    bool falls_through = instruction.guard >= 0;
    if (instruction.opcode == "bra" || instruction.opcode == "brx") {
      for (const ptx::Operand& operand : instruction.operands) {
        if (operand.kind == ptx::Operand::Kind::label) result[pc].push_back(operand.index);
        for (const ptx::Operand& target : operand.elements) result[pc].push_back(target.index);
      }
    } else if (instruction.opcode == "ret" || instruction.opcode == "exit" ||
               instruction.opcode == "trap") {
      result[pc].push_back(end);
    } else {
      falls_through = true;
    }
    if (falls_through) result[pc].push_back(pc + 1);
  }
  return result;
}

void decode_instruction(ProgramBuilder& builder, const ptx::Instruction& text, Instruction& into) {
  Decoding decoding(builder, text, into);
  const auto found = opcodes().find(text.opcode);
  if (found == opcodes().end()) decoding.fail("the emulator does not know it");
  if (text.guard >= 0) into.guard = builder.offsets[text.guard];
  into.guard_is_negated = text.guard_is_negated;
  into.pipe = pipe_of(text);
  found->second(decoding);
  decoding.finish_modifiers();
}

}  // namespace

std::shared_ptr<const Program> decode(const ModuleImage& image, const ptx::Kernel& kernel) {
  ProgramBuilder builder(image, kernel);
  std::vector<Instruction>& code = builder.program->code;
  code.resize(kernel.instructions.size() + 1);
  for (size_t pc = 0; pc < kernel.instructions.size(); ++pc) {
    decode_instruction(builder, kernel.instructions[pc], code[pc]);
  }
  // A kernel whose text ends without `ret` ends all the same.
  ptx::Instruction last;
  last.opcode = "exit";
  decode_instruction(builder, last, code.back());

  auto uses = std::make_unique<ProductRegisterUses>(kernel);
  for (size_t pc = 0; pc < uses->of_instruction.size(); ++pc) {
    const bool is_product =
        pc < kernel.instructions.size() && kernel.instructions[pc].opcode == "wgmma";
    code[pc].touches_products = !is_product && !uses->of_instruction[pc].empty();
  }
  builder.program->product_registers = std::move(uses);

  const std::vector<int> joins = immediate_post_dominators(successors(kernel));
  for (size_t pc = 0; pc < joins.size(); ++pc) code[pc].join = joins[pc];
  return builder.program;
}

std::string describe_location(const ptx::Module& module, int location) {
  std::string text;
  while (location >= 0) {
    const ptx::Location& place = module.locations[location];
    if (!text.empty()) text += ", inlined into ";
    const bool is_known = place.file >= 0 && static_cast<size_t>(place.file) < module.files.size();
    text += (is_known ? module.files[place.file] : "?") + ":" + std::to_string(place.line);
    location = place.inlined_at;
  }
  return text;
}

std::string Program::place(int pc) const {
  if (pc < 0 || static_cast<size_t>(pc) >= kernel->instructions.size()) return "the kernel's end";
  const ptx::Instruction& instruction = kernel->instructions[pc];
  std::string text = written(instruction);
  const std::string location = describe_location(*module, instruction.location);
  text += location.empty() ? " at PTX line " + std::to_string(instruction.line) : " at " + location;
  return text;
}

}  // namespace abyssal::emulator

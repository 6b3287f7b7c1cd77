// PTX as the parser leaves it: names resolved, nothing interpreted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace abyssal::emulator::ptx {

// A position in the source, from `.loc`. Code that was inlined has the place it was inlined into.
struct Location {
  int file = 0;  // index into Module::files, 0 for none
  int line = 0;
  int inlined_at = -1;  // index into Module::locations
};

enum class Space { global, constant, shared, local, param };

// A named piece of memory: a parameter, or a `.shared`, `.local`, `.const` or `.global` variable.
struct Variable {
  std::string name;
  Space space = Space::global;
  uint64_t offset = 0;  // from the beginning of its space in its kernel or module
  uint64_t bytes = 0;
  uint64_t alignment = 1;
  bool is_floating = false;            // of an f32 or f64
  bool is_dynamic = false;             // `.extern .shared name[]`: what the launch adds
  std::vector<uint8_t> initial;        // contents; empty: zeros or nothing
  std::vector<std::string> addresses;  // names whose addresses fill it, 8 bytes each
};

struct Register {
  std::string name;
  int bytes = 0;  // 2, 4, 8, 16; a predicate has 0
};

struct Operand {
  enum class Kind {
    reg,        // index: of the kernel's registers; is_negated: !%p
    integer,    // bits
    floating,   // bits, of `bytes` bytes
    variable,   // index: of the kernel's variables, or ~index of the module's
    function,   // text
    special,    // text: "%tid.x", "WARP_SZ"
    label,      // index: of the instruction it stands before
    table,      // elements: labels of a `.branchtargets`
    sink,       // '_'
    vector,     // elements: {a, b}
    pair,       // elements: a|b
    address,    // elements: base, and coordinates where there are; bits: offset in bytes
    arguments,  // elements: (a, b) of a call
  };
  Kind kind = Kind::sink;
  bool is_negated = false;
  int bytes = 0;
  int index = 0;
  uint64_t bits = 0;
  std::string_view text;
  std::vector<Operand> elements;
};

struct Instruction {
  std::string_view opcode;                  // "ld"
  std::vector<std::string_view> modifiers;  // "global", "v4", "u32"
  std::vector<Operand> operands;
  int guard = -1;  // register of @%p
  bool guard_is_negated = false;
  int line = 0;       // of the PTX text
  int location = -1;  // index into Module::locations
};

struct Kernel {
  std::string name;
  int line = 0;
  uint64_t param_bytes = 0;
  std::vector<Variable> variables;  // parameters first
  int num_params = 0;
  std::vector<Register> registers;
  std::vector<Instruction> instructions;
  uint32_t max_threads[3] = {0, 0, 0};       // .maxntid; 0: not said
  uint32_t required_threads[3] = {0, 0, 0};  // .reqntid
  uint32_t cluster[3] = {0, 0, 0};           // .reqnctapercluster
  uint64_t shared_bytes = 0;                 // static
  uint64_t local_bytes = 0;                  // of each thread
};

struct Module {
  std::string text;  // what every string_view here looks into
  std::string target;
  std::vector<std::string> files;  // by the number of `.file`
  std::vector<Location> locations;
  std::vector<Variable> variables;
  std::vector<Kernel> kernels;
};

}  // namespace abyssal::emulator::ptx

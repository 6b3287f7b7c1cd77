#include "emulator/ptx/parser.hpp"

#include <algorithm>
#include <charconv>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "emulator/ptx/types.hpp"

namespace abyssal::emulator::ptx {
namespace {

// A type as declarations write it.
std::optional<Type> declared_type(std::string_view word) {
  if (word.empty() || word[0] != '.') return std::nullopt;
  return find_type(word.substr(1));
}

uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// What nobody has more of: memory of a GPU, and of a kernel's parameters (PTX ISA 5.1.6.1).
constexpr uint64_t kMostBytes = uint64_t{141} << 30;
constexpr uint64_t kMostParamBytes = 32764;

// `.reg .b32 %r<count>`: %r0, %r1, ... A kernel has those of them that it names.
struct RegisterRange {
  int64_t count = 0;
  int bytes = 0;
};

// Names of one `{ }`. Asm blocks reuse names, so an inner one hides an outer one.
struct Scope {
  int parent = -1;
  std::unordered_map<std::string_view, RegisterRange> ranges;
  std::unordered_map<std::string_view, int> registers, variables, labels;
  std::unordered_map<std::string_view, Operand> tables;
};

class Parser {
 public:
  explicit Parser(std::string text) : module_(std::make_unique<Module>()) {
    module_->text = std::move(text);
    lexer_.emplace(module_->text);
  }

  std::unique_ptr<const Module> parse() {
    while (peek().kind != Token::Kind::end) module_item();
    return std::move(module_);
  }

 private:
  const Token& peek() const { return lexer_->peek(); }
  [[noreturn]] void fail(const std::string& message) const { throw PtxError(peek().line, message); }

  // The module.

  void module_item() {
    is_extern_ = false;
    std::string_view word = lexer_->word("a directive");
    while (word == ".visible" || word == ".weak" || word == ".common" || word == ".extern") {
      is_extern_ = word == ".extern";
      word = lexer_->word("a directive");
    }
    if (word == ".version") {
      lexer_->next();
    } else if (word == ".target") {
      module_->target = lexer_->word("a target");
      while (lexer_->accept(',')) lexer_->next();
    } else if (word == ".address_size") {
      if (lexer_->integer("an address size") != 64) fail("only 64-bit addresses are supported");
    } else if (word == ".file") {
      file();
    } else if (word == ".section") {
      skip_until_closing_brace();
    } else if (word == ".entry") {
      kernel();
    } else if (word == ".func") {
      function();
    } else if (const auto space = find_space(word)) {
      variables(*space, module_->variables, module_names_, nullptr);
    } else {
      fail("unknown directive " + quoted(word));
    }
  }

  void file() {
    const int64_t number = lexer_->integer("a file number");
    if (number < 0 || number > 1 << 16) fail("a file number out of range");
    if (peek().kind != Token::Kind::string) fail("expected a file name");
    if (module_->files.size() <= static_cast<size_t>(number)) module_->files.resize(number + 1);
    module_->files[number] = lexer_->next().text;
    while (lexer_->accept(',')) lexer_->next();  // time stamp, size
  }

  // `.func`: only declarations, such as vprintf's.
  void function() {
    const int line = peek().line;
    std::string_view name;
    while (!peek().is(';') && !peek().is('{')) {
      if (peek().kind == Token::Kind::end) fail("a function without an end");
      if (lexer_->accept('(')) {
        while (!lexer_->accept(')')) {
          if (peek().kind == Token::Kind::end) fail("a function without an end");
          lexer_->next();
        }
        continue;
      }
      const Token token = lexer_->next();
      if (token.kind == Token::Kind::word && token.text[0] != '.') name = token.text;
    }
    if (peek().is('{')) {
      throw PtxError(line,
                     "function " + quoted(name) +
                         " was not inlined; only kernels are supported (use __forceinline__)");
    }
    lexer_->expect(';');
    functions_.push_back(name);
  }

  void skip_until_closing_brace() {
    while (!lexer_->accept('}')) {
      if (peek().kind == Token::Kind::end) fail("a section without an end");
      lexer_->next();
    }
  }

  // Variables.

  static std::optional<Space> find_space(std::string_view word) {
    if (word == ".global") return Space::global;
    if (word == ".const") return Space::constant;
    if (word == ".shared" || word == ".shared::cta") return Space::shared;
    if (word == ".local") return Space::local;
    if (word == ".param") return Space::param;
    return std::nullopt;
  }

  // [.align A] .type name [dimensions] [= contents] {, name ...}, and the ';' of a statement.
  void variables(Space space, std::vector<Variable>& into,
                 std::unordered_map<std::string_view, int>& names, uint64_t* used) {
    do {
      declare(variable(space), into, names, used);
    } while (lexer_->accept(','));
    lexer_->expect(';');
  }

  Variable variable(Space space) {
    Variable result{.space = space};
    Type type = Type::b8;
    uint64_t vector = 1;
    for (bool has_type = false; !has_type;) {
      const std::string_view word = lexer_->word("a type");
      if (word == ".align") {
        result.alignment = lexer_->integer("an alignment");
        const bool is_power_of_two = (result.alignment & (result.alignment - 1)) == 0;
        if (result.alignment == 0 || result.alignment > 4096 || !is_power_of_two) {
          fail("an alignment that is no power of two");
        }
      } else if (word == ".v2" || word == ".v4") {
        vector = word[2] - '0';
      } else if (const auto found = declared_type(word); found && *found != Type::pred) {
        type = *found;
        has_type = true;
      } else if (word != ".ptr" && word != ".global" && word != ".shared" && word != ".const") {
        fail("unknown type " + quoted(word));
      }
    }
    // `.param .u64 .ptr .align 16 name`
    while (peek().kind == Token::Kind::word && peek().text[0] == '.') {
      if (lexer_->next().text == ".align") lexer_->integer("an alignment");
    }
    result.name = lexer_->word("a name");
    result.bytes = bytes_of(type) * vector;
    result.is_floating = type == Type::f32 || type == Type::f64;
    result.alignment = std::max<uint64_t>(result.alignment, result.bytes);
    while (lexer_->accept('[')) {
      if (lexer_->accept(']')) {
        result.is_dynamic = true;
        continue;
      }
      const int64_t length = lexer_->integer("an array length");
      if (length < 0) fail("an array length out of range");
      if (length > 0 && result.bytes > kMostBytes / length) {
        fail("more elements of " + quoted(result.name) + " than any device has memory for");
      }
      result.bytes *= length;
      lexer_->expect(']');
    }
    if (lexer_->accept('=')) contents(result, type);
    if (result.is_dynamic) {
      if (!is_extern_) result.bytes = result.initial.size();
      result.is_dynamic = is_extern_;
      if (is_extern_) result.bytes = 0;
    }
    return result;
  }

  void contents(Variable& variable, Type type) {
    if (lexer_->accept('{')) {
      while (!lexer_->accept('}')) {
        value(variable, type);
        if (!peek().is('}')) lexer_->expect(',');
      }
    } else {
      value(variable, type);
    }
    if (variable.initial.size() > variable.bytes && !variable.is_dynamic) {
      fail("more values than " + quoted(variable.name) + " holds");
    }
  }

  void value(Variable& variable, Type type) {
    uint64_t bits = 0;
    if (peek().kind == Token::Kind::word) {
      fail("an address as the initial value of " + quoted(variable.name) + " is not supported");
    } else if (peek().kind == Token::Kind::floating) {
      bits = lexer_->next().bits;
    } else {
      bits = static_cast<uint64_t>(lexer_->integer("a value"));
    }
    for (int byte = 0; byte < bytes_of(type); ++byte) {
      variable.initial.push_back(static_cast<uint8_t>(byte < 8 ? bits >> (8 * byte) : 0));
    }
  }

  // `used`: bytes of the space that are taken; null at the module, where offsets come later.
  void declare(Variable variable, std::vector<Variable>& into,
               std::unordered_map<std::string_view, int>& names, uint64_t* used) {
    if (used != nullptr) {
      variable.offset = *used = round_up(*used, variable.alignment);
      *used += variable.bytes;
    }
    into.push_back(std::move(variable));
    name_pool_.push_back(into.back().name);
    names[name_pool_.back()] = static_cast<int>(into.size()) - 1;
  }

  // Kernels.

  void kernel() {
    module_->kernels.emplace_back();
    kernel_ = &module_->kernels.back();
    kernel_->line = peek().line;
    kernel_->name = lexer_->word("a kernel's name");
    scopes_.assign(1, Scope{});
    scope_ = 0;
    location_ = -1;
    call_bytes_ = 0;
    if (lexer_->accept('(')) parameters();
    kernel_->num_params = static_cast<int>(kernel_->variables.size());
    while (!peek().is('{')) performance_directive();
    block();
    resolve_labels();
  }

  void parameters() {
    while (!lexer_->accept(')')) {
      if (!lexer_->accept(".param")) fail("expected .param");
      declare(variable(Space::param), kernel_->variables, scopes_[0].variables,
              &kernel_->param_bytes);
      if (kernel_->param_bytes > kMostParamBytes) fail("more than 32764 bytes of parameters");
      if (!peek().is(')')) lexer_->expect(',');
    }
  }

  void performance_directive() {
    const std::string_view word = lexer_->word("'{' or a directive of the kernel");
    const auto extents = [&](uint32_t (&into)[3]) {
      int axis = 0;
      into[0] = into[1] = into[2] = 1;
      do {
        const int64_t value = lexer_->integer("an extent");
        if (axis == 3 || value < 1 || value > UINT32_MAX) fail("an extent out of range");
        into[axis++] = static_cast<uint32_t>(value);
      } while (lexer_->accept(','));
    };
    if (word == ".maxntid") {
      extents(kernel_->max_threads);
    } else if (word == ".reqntid") {
      extents(kernel_->required_threads);
    } else if (word == ".reqnctapercluster") {
      extents(kernel_->cluster);
    } else if (word == ".minnctapersm" || word == ".maxnreg" || word == ".maxclusterrank") {
      lexer_->integer("a number");
    } else if (word == ".pragma") {
      lexer_->next();
      lexer_->expect(';');
    } else if (word != ".explicitcluster" && word != ".noreturn") {
      fail("unknown directive " + quoted(word) + " of a kernel");
    }
  }

  void block() {
    lexer_->expect('{');
    if (scopes_.size() > 1 << 20) fail("too many scopes");
    if (++depth_ > 100) fail("scopes nested too deeply");
    const int outer = std::exchange(scope_, static_cast<int>(scopes_.size()));
    scopes_.push_back({.parent = outer});
    while (!lexer_->accept('}')) {
      if (peek().kind == Token::Kind::end) fail("a kernel without an end");
      statement();
    }
    scope_ = outer;
    --depth_;
  }

  void statement() {
    if (peek().is('{')) return block();
    if (lexer_->accept(';')) return;
    if (lexer_->accept('@')) return instruction(true);
    if (peek().kind != Token::Kind::word) fail("expected a statement");
    if (peek().text[0] == '.') return directive();
    instruction(false);
  }

  void directive() {
    const std::string_view word = lexer_->next().text;
    if (word.starts_with(".reg")) {  // CUDA's headers write ".reg.b32", too
      registers(word == ".reg" ? lexer_->word("a type") : word.substr(4));
    } else if (word == ".loc") {
      location();
    } else if (word == ".pragma") {
      lexer_->next();
      lexer_->expect(';');
    } else if (const auto space = find_space(word)) {
      uint64_t* used = &call_bytes_;
      if (space == Space::shared) used = &kernel_->shared_bytes;
      if (space == Space::local) used = &kernel_->local_bytes;
      if (space == Space::global || space == Space::constant) fail("a global inside a kernel");
      variables(*space, kernel_->variables, scopes_[scope_].variables, used);
    } else {
      fail("unknown directive " + quoted(word));
    }
  }

  void registers(std::string_view word) {
    const auto type = declared_type(word);
    if (!type) fail("unknown type " + quoted(word) + " of a register");
    // Registers narrower than 16 bits hold 16 (PTX ISA 5.2.1).
    const int bytes = *type == Type::pred ? 0 : std::max(bytes_of(*type), 2);
    do {
      const std::string_view name = lexer_->word("a register's name");
      if (lexer_->accept('<')) {
        const int64_t count = lexer_->integer("a number of registers");
        if (count < 0 || count > 1 << 20) fail("a number of registers out of range");
        lexer_->expect('>');
        scopes_[scope_].ranges[name] = {count, bytes};
      } else {
        add_register(scopes_[scope_], name, bytes);
      }
    } while (lexer_->accept(','));
    lexer_->expect(';');
  }

  int add_register(Scope& scope, std::string_view name, int bytes) {
    if (kernel_->registers.size() >= 1 << 20) fail("too many registers");
    const int index = static_cast<int>(kernel_->registers.size());
    kernel_->registers.push_back({std::string(name), bytes});
    return scope.registers[name] = index;
  }

  // .loc file line column [, function_name label, inlined_at file line column]
  void location() {
    Location found{.file = static_cast<int>(lexer_->integer("a file number")),
                   .line = static_cast<int>(lexer_->integer("a line"))};
    const auto column = static_cast<int>(lexer_->integer("a column"));
    if (lexer_->accept(',')) {
      if (!lexer_->accept("function_name")) fail("expected function_name");
      lexer_->word("a label");
      if (lexer_->accept('+')) lexer_->integer("an offset");
      lexer_->expect(',');
      if (!lexer_->accept("inlined_at")) fail("expected inlined_at");
      const int64_t file = lexer_->integer("a file number");
      const int64_t line = lexer_->integer("a line");
      const int64_t outer_column = lexer_->integer("a column");
      const auto outer = location_ids_.find({file, line, outer_column});
      found.inlined_at = outer == location_ids_.end() ? -1 : outer->second;
    }
    location_ = static_cast<int>(module_->locations.size());
    location_ids_[{found.file, found.line, column}] = location_;
    module_->locations.push_back(found);
  }

  // Instructions.

  void instruction(bool is_guarded) {
    Instruction result{.location = location_};
    if (is_guarded) {
      result.guard_is_negated = lexer_->accept('!');
      const std::string_view name = lexer_->word("a predicate");
      const auto found = find_register(name);
      if (!found || kernel_->registers[*found].bytes != 0) {
        fail(quoted(name) + " is no predicate");
      }
      result.guard = *found;
    }
    result.line = peek().line;
    const std::string_view word = lexer_->word("an instruction");
    if (!is_guarded && lexer_->accept(':')) return label(word);
    split(word, result);
    while (!lexer_->accept(';')) {
      result.operands.push_back(operand());
      if (lexer_->accept('|')) {
        Operand pair{.kind = Operand::Kind::pair};
        pair.elements = {std::move(result.operands.back()), operand()};
        result.operands.back() = std::move(pair);
      }
      if (!peek().is(';')) lexer_->expect(',');
    }
    kernel_->instructions.push_back(std::move(result));
  }

  static void split(std::string_view word, Instruction& into) {
    for (size_t begin = 0; begin <= word.size();) {
      const size_t end = std::min(word.find('.', begin), word.size());
      const std::string_view part = word.substr(begin, end - begin);
      if (begin == 0) {
        into.opcode = part;
      } else {
        into.modifiers.push_back(part);
      }
      begin = end + 1;
    }
  }

  void label(std::string_view name) {
    if (lexer_->accept(".branchtargets")) {
      Operand table{.kind = Operand::Kind::table};
      do {
        table.elements.push_back({.kind = Operand::Kind::label, .text = lexer_->word("a label")});
      } while (lexer_->accept(','));
      lexer_->expect(';');
      scopes_[scope_].tables[name] = std::move(table);
      return;
    }
    scopes_[scope_].labels[name] = static_cast<int>(kernel_->instructions.size());
  }

  Operand operand() {
    if (++depth_ > 100) fail("operands nested too deeply");
    Operand result = operand_at_depth();
    --depth_;
    return result;
  }

  Operand operand_at_depth() {
    const Token token = peek();
    if (lexer_->accept('{')) return list(Operand::Kind::vector, '}');
    if (lexer_->accept('(')) return list(Operand::Kind::arguments, ')');
    if (lexer_->accept('[')) return address();
    if (lexer_->accept('!')) {
      Operand result = operand();
      if (result.kind != Operand::Kind::reg) fail("'!' before something that is no predicate");
      result.is_negated = true;
      return result;
    }
    if (token.kind == Token::Kind::floating) {
      lexer_->next();
      return {.kind = Operand::Kind::floating, .bytes = token.bytes, .bits = token.bits};
    }
    if (token.kind == Token::Kind::integer || token.is('-')) {
      const auto value = static_cast<uint64_t>(lexer_->integer("a number"));
      return {.kind = Operand::Kind::integer, .bits = value};
    }
    return name(lexer_->word("an operand"));
  }

  Operand list(Operand::Kind kind, char end) {
    Operand result{.kind = kind};
    while (!lexer_->accept(end)) {
      result.elements.push_back(operand());
      if (!peek().is(end)) lexer_->expect(',');
    }
    return result;
  }

  // [base], [base+offset], [base, {coordinates}], [base, {coordinates}, {offsets}]
  Operand address() {
    Operand result{.kind = Operand::Kind::address};
    result.elements.push_back(operand());
    if (lexer_->accept('+')) {
      result.bits = static_cast<uint64_t>(lexer_->integer("an offset"));
    } else if (peek().is('-')) {
      result.bits = static_cast<uint64_t>(lexer_->integer("an offset"));
    }
    while (lexer_->accept(',')) result.elements.push_back(operand());
    lexer_->expect(']');
    return result;
  }

  Operand name(std::string_view word) {
    if (word == "_") return {.kind = Operand::Kind::sink};
    if (const auto found = find_register(word)) {
      return {.kind = Operand::Kind::reg, .index = *found};
    }
    for (int scope = scope_; scope >= 0; scope = scopes_[scope].parent) {
      if (const auto found = scopes_[scope].variables.find(word);
          found != scopes_[scope].variables.end()) {
        return {.kind = Operand::Kind::variable, .index = found->second};
      }
    }
    if (const auto found = module_names_.find(word); found != module_names_.end()) {
      return {.kind = Operand::Kind::variable, .index = ~found->second};
    }
    if (word[0] == '%' || word == "WARP_SZ") return {.kind = Operand::Kind::special, .text = word};
    if (std::find(functions_.begin(), functions_.end(), word) != functions_.end()) {
      return {.kind = Operand::Kind::function, .text = word};
    }
    // Labels may come later; where they are is settled at the end of the kernel.
    return {.kind = Operand::Kind::label, .index = scope_, .text = word};
  }

  std::optional<int> find_register(std::string_view name) {
    for (int index = scope_; index >= 0; index = scopes_[index].parent) {
      Scope& scope = scopes_[index];
      const auto found = scope.registers.find(name);
      if (found != scope.registers.end()) return found->second;
      if (const RegisterRange* range = find_range(scope, name)) {
        return add_register(scope, name, range->bytes);
      }
    }
    return std::nullopt;
  }

  // The range that %r12 is of: "%r" or "%r1".
  static const RegisterRange* find_range(const Scope& scope, std::string_view name) {
    constexpr size_t kMostDigits = 7;
    const size_t last = name.find_last_not_of("0123456789");
    if (scope.ranges.empty() || last == std::string_view::npos) return nullptr;
    const size_t least = name.size() > kMostDigits ? name.size() - kMostDigits : 0;
    for (size_t begin = std::max(last + 1, least); begin < name.size(); ++begin) {
      if (name[begin] == '0' && begin + 1 < name.size()) continue;
      const auto found = scope.ranges.find(name.substr(0, begin));
      if (found == scope.ranges.end()) continue;
      int64_t number = 0;
      std::from_chars(name.data() + begin, name.data() + name.size(), number);
      if (number < found->second.count) return &found->second;
    }
    return nullptr;
  }

  // Every label operand holds its scope in `index` until here.
  void resolve_labels() {
    for (Instruction& instruction : kernel_->instructions) {
      for (Operand& operand : instruction.operands) resolve_label(operand, instruction.line);
    }
  }

  void resolve_label(Operand& operand, int line, bool may_be_table = true) {
    for (Operand& element : operand.elements) resolve_label(element, line);
    if (operand.kind != Operand::Kind::label) return;
    for (int scope = operand.index; scope >= 0; scope = scopes_[scope].parent) {
      const auto found = scopes_[scope].labels.find(operand.text);
      if (found != scopes_[scope].labels.end()) {
        operand.index = found->second;
        return;
      }
      const auto table = scopes_[scope].tables.find(operand.text);
      if (may_be_table && table != scopes_[scope].tables.end()) {
        Operand resolved = table->second;
        for (Operand& target : resolved.elements) {
          target.index = scope;
          resolve_label(target, line, false);
        }
        operand = std::move(resolved);
        return;
      }
    }
    throw PtxError(line, "unknown name " + quoted(operand.text));
  }

  std::unique_ptr<Module> module_;
  std::optional<Lexer> lexer_;
  // Names that are keys of maps; a deque's elements stay where they are.
  std::deque<std::string> name_pool_;
  std::unordered_map<std::string_view, int> module_names_;
  std::vector<std::string_view> functions_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, int> location_ids_;
  bool is_extern_ = false;

  // Of the kernel that is being read.
  Kernel* kernel_ = nullptr;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  int depth_ = 0;
  int location_ = -1;
  uint64_t call_bytes_ = 0;
};

}  // namespace

std::unique_ptr<const Module> parse(std::string text) { return Parser(std::move(text)).parse(); }

}  // namespace abyssal::emulator::ptx

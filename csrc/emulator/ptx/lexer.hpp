// Cuts PTX text into tokens.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace abyssal::emulator::ptx {

// The text is not PTX that this emulator reads. The message begins with the line of the text.
class PtxError : public std::runtime_error {
 public:
  PtxError(int line, const std::string& message)
      : std::runtime_error("PTX line " + std::to_string(line) + ": " + message) {}
};

struct Token {
  // A word is an identifier with all that nvcc writes into one: "ld.global.v4.u32", "%tid.x",
  // "$L__BB0_2", ".reg", "L1::no_allocate". A symbol is a single character.
  enum class Kind { word, integer, floating, string, symbol, end };

  Kind kind = Kind::end;
  std::string_view text;  // as written; of a string, what is between the quotes
  uint64_t bits = 0;      // integer: the value; floating: IEEE bits of `bytes` bytes
  int bytes = 0;
  int line = 0;

  bool is(char symbol) const { return kind == Kind::symbol && text[0] == symbol; }
  bool is(std::string_view word) const { return kind == Kind::word && text == word; }
};

// A piece of the text for a message: in quotes, shortened, and what is not printable ASCII by its
// code.
std::string quoted(std::string_view text);

class Lexer {
 public:
  explicit Lexer(std::string_view text) : rest_(text) { advance(); }

  const Token& peek() const { return token_; }
  Token next();

  // Each takes the next token, or throws PtxError saying what was expected instead.
  void expect(char symbol);
  std::string_view word(const char* meaning);
  int64_t integer(const char* meaning);

  // Takes the next token if it is this one.
  bool accept(char symbol);
  bool accept(std::string_view word);

 private:
  void advance();
  void skip_blank();
  Token number();
  [[noreturn]] void fail(const char* expected) const;

  std::string_view rest_;
  Token token_;
  int line_ = 1;
};

}  // namespace abyssal::emulator::ptx

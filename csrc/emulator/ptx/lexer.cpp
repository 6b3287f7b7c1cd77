#include "emulator/ptx/lexer.hpp"

#include <bit>
#include <charconv>
#include <cstdio>

namespace abyssal::emulator::ptx {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' || c == '$' ||
         c == '%' || c == '.';
}

}  // namespace

std::string quoted(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string result = "'";
  for (char c : text.substr(0, kLongest)) {
    if (c >= ' ' && c <= '~') {
      result += c;
      continue;
    }
    char code[5];
    std::snprintf(code, sizeof(code), "\\x%02x", static_cast<unsigned char>(c));
    result += code;
  }
  return result + (text.size() > kLongest ? "...'" : "'");
}

Token Lexer::next() {
  Token taken = token_;
  advance();
  return taken;
}

void Lexer::expect(char symbol) {
  if (!accept(symbol)) fail((std::string("'") + symbol + "'").c_str());
}

std::string_view Lexer::word(const char* meaning) {
  if (token_.kind != Token::Kind::word) fail(meaning);
  return next().text;
}

int64_t Lexer::integer(const char* meaning) {
  const bool negative = accept('-');
  if (token_.kind != Token::Kind::integer) fail(meaning);
  const uint64_t value = next().bits;
  return static_cast<int64_t>(negative ? 0 - value : value);
}

bool Lexer::accept(char symbol) {
  if (!token_.is(symbol)) return false;
  advance();
  return true;
}

bool Lexer::accept(std::string_view word) {
  if (!token_.is(word)) return false;
  advance();
  return true;
}

void Lexer::fail(const char* expected) const {
  const bool is_end = token_.kind == Token::Kind::end;
  throw PtxError(token_.line, std::string("expected ") + expected + " and found " +
                                  (is_end ? "the end of the text" : quoted(token_.text)));
}

void Lexer::skip_blank() {
  while (!rest_.empty()) {
    if (rest_.starts_with("//")) {
      rest_.remove_prefix(std::min(rest_.find('\n'), rest_.size()));
    } else if (rest_.starts_with("/*")) {
      const size_t end = rest_.find("*/", 2);
      if (end == std::string_view::npos) throw PtxError(line_, "a comment that does not end");
      for (char c : rest_.substr(0, end)) line_ += c == '\n';
      rest_.remove_prefix(end + 2);
    } else if (rest_[0] == ' ' || rest_[0] == '\t' || rest_[0] == '\r' || rest_[0] == '\n') {
      line_ += rest_[0] == '\n';
      rest_.remove_prefix(1);
    } else {
      return;
    }
  }
}

void Lexer::advance() {
  skip_blank();
  token_ = {.line = line_};
  if (rest_.empty()) return;
  if (is_digit(rest_[0])) {
    token_ = number();
  } else if (rest_[0] == '"') {
    const size_t end = rest_.find('"', 1);
    if (end == std::string_view::npos) throw PtxError(line_, "a string that does not end");
    token_.kind = Token::Kind::string;
    token_.text = rest_.substr(1, end - 1);
    for (char c : token_.text) {
      const bool is_control = static_cast<unsigned char>(c) < ' ' || c == 0x7f;
      if (is_control)
        throw PtxError(line_, "a control character in the string " + quoted(token_.text));
    }
    rest_.remove_prefix(end + 1);
  } else if (is_word(rest_[0])) {
    size_t end = 1;
    // "::" belongs to a modifier, a single ':' ends a label.
    while (end < rest_.size() && (is_word(rest_[end]) || rest_.substr(end, 2) == "::")) {
      end += rest_[end] == ':' ? 2 : 1;
    }
    token_.kind = Token::Kind::word;
    token_.text = rest_.substr(0, end);
    rest_.remove_prefix(end);
  } else {
    token_.kind = Token::Kind::symbol;
    token_.text = rest_.substr(0, 1);
    rest_.remove_prefix(1);
  }
}

// Decimal, 0x and 0-octal integers with an optional U; 0f and 0d floats by their bits; decimal
// fractions, which are FP64 constants (PTX ISA 4.5).
Token Lexer::number() {
  size_t end = 1;
  while (end < rest_.size() && is_word(rest_[end])) ++end;
  std::string_view text = rest_.substr(0, end);
  rest_.remove_prefix(end);
  Token token{.kind = Token::Kind::integer, .text = text, .line = line_};

  const auto parse = [&](std::string_view digits, int base) {
    const auto [stop, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), token.bits, base);
    if (error != std::errc{} || stop != digits.data() + digits.size()) {
      throw PtxError(line_, quoted(text) + " is not a number");
    }
  };
  const char marker = text.size() > 1 && text[0] == '0' ? text[1] : '\0';
  if (marker == 'f' || marker == 'F' || marker == 'd' || marker == 'D') {
    token.kind = Token::Kind::floating;
    token.bytes = marker == 'f' || marker == 'F' ? 4 : 8;
    if (text.size() != 2u + 2u * token.bytes) {
      throw PtxError(line_, quoted(text) + " is not a floating-point constant");
    }
    parse(text.substr(2), 16);
    return token;
  }
  if (text.find('.') != std::string_view::npos) {
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || stop != text.data() + text.size()) {
      throw PtxError(line_, quoted(text) + " is not a number");
    }
    token.kind = Token::Kind::floating;
    token.bytes = 8;
    token.bits = std::bit_cast<uint64_t>(value);
    return token;
  }
  if (text.ends_with('U')) text.remove_suffix(1);
  if (marker == 'x' || marker == 'X') {
    parse(text.substr(2), 16);
  } else if (marker == 'b' || marker == 'B') {
    parse(text.substr(2), 2);
  } else {
    parse(text, text.size() > 1 && text[0] == '0' ? 8 : 10);
  }
  return token;
}

}  // namespace abyssal::emulator::ptx

#include "emulator/instructions/calls.hpp"

#include <bit>
#include <cstdio>
#include <cstring>

#include "emulator/block.hpp"
#include "emulator/memory_access.hpp"

namespace abyssal::emulator {
namespace {

constexpr size_t kLongestText = 4096;

// Arguments of a call lie in local memory, at the addresses of their `.param` variables.
template <typename T>
T argument(Warp& warp, const Instruction& instruction, int index, int lane) {
  const uint64_t address = warp.bits(instruction.sources[index], lane);
  T value;
  std::memcpy(&value, locate(warp, lane, {.space = Space::local}, address, sizeof(T)), sizeof(T));
  return value;
}

std::string text_at(Warp& warp, uint64_t address, int lane) {
  std::string text;
  while (text.size() < kLongestText) {
    const auto* letter = reinterpret_cast<const char*>(locate(warp, lane, {}, address++, 1));
    if (*letter == '\0') break;
    text += *letter;
  }
  return text;
}

// One conversion of a format, "%-8.3f", with its value.
class Formatter {
 public:
  Formatter(Warp& warp, int lane, uint64_t values) : warp_(warp), lane_(lane), values_(values) {}

  std::string format(const std::string& text) {
    std::string result;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '%') {
        result += text[i];
        continue;
      }
      const size_t end = text.find_first_of("diouxXcsfFeEgGaAp%", i + 1);
      if (end == std::string::npos) return result + text.substr(i);
      result += convert(text.substr(i, end - i + 1));
      i = end;
    }
    return result;
  }

 private:
  template <typename T>
  T take() {
    values_ = (values_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T value;
    std::memcpy(&value, locate(warp_, lane_, {}, values_, sizeof(T)), sizeof(T));
    values_ += sizeof(T);
    return value;
  }

  template <typename T>
  static std::string print(const std::string& conversion, T value) {
    char buffer[512];
    const int length = std::snprintf(buffer, sizeof(buffer), conversion.c_str(), value);
    return length < 0 ? "" : buffer;
  }

  std::string convert(std::string conversion) {
    const char kind = conversion.back();
    if (kind == '%') return "%";
    if (conversion.find('*') != std::string::npos) return conversion;
    const bool is_long = conversion.find_first_of("ljzt") != std::string::npos;
    if (kind == 's') return print(conversion, text_at(warp_, take<uint64_t>(), lane_).c_str());
    if (std::strchr("fFeEgGaA", kind)) return print(conversion, take<double>());
    if (kind == 'p') return print(conversion, std::bit_cast<void*>(take<uint64_t>()));
    if (kind == 'c') return print(conversion, take<int32_t>());
    return is_long ? print(conversion, take<int64_t>()) : print(conversion, take<int32_t>());
  }

  Warp& warp_;
  int lane_;
  uint64_t values_;
};

void run_printf(Warp& warp, const Instruction& instruction, LaneMask mask) {
  for_lanes(mask, [&](int lane) {
    const std::string format = text_at(warp, argument<uint64_t>(warp, instruction, 0, lane), lane);
    const auto values = argument<uint64_t>(warp, instruction, 1, lane);
    warp.block().grid().print(Formatter(warp, lane, values).format(format));
  });
}

// __assertfail(message, file, line, function, size of a character)
void run_assert(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const int lane = first_lane(mask);
  const auto text = [&](int index) {
    return text_at(warp, argument<uint64_t>(warp, instruction, index, lane), lane);
  };
  const auto line = argument<uint32_t>(warp, instruction, 2, lane);
  throw Fault(FaultKind::trap,
              "the assertion " + text(0) + " failed, in " + text(3) + " at " + text(1) + ":" +
                  std::to_string(line),
              lane);
}

}  // namespace

void decode_runtime_call(Decoding& decoding, std::string_view name,
                         const std::vector<ptx::Operand>& arguments) {
  const bool prints = name == "vprintf";
  if (!prints && name != "__assertfail") {
    decoding.fail("a call of " + std::string(name) + "; only printf and assert can be called");
  }
  if (arguments.size() < (prints ? 2u : 4u)) decoding.fail("arguments are missing");
  for (size_t i = 0; i < (prints ? 2u : 4u); ++i) {
    decoding.into.sources[i] = decoding.wide_source(arguments[i], Type::u64);
  }
  decoding.into.run = prints ? run_printf : run_assert;
}

}  // namespace abyssal::emulator

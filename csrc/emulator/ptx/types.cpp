#include "emulator/ptx/types.hpp"

#include <array>

namespace abyssal::emulator::ptx {
namespace {

struct Entry {
  std::string_view name;
  int bytes;
};

// In the order of Type.
constexpr std::array<Entry, 27> kTypes{{
    {"pred", 0}, {"b8", 1},    {"b16", 2},    {"b32", 4},    {"b64", 8},   {"b128", 16}, {"u8", 1},
    {"u16", 2},  {"u32", 4},   {"u64", 8},    {"s8", 1},     {"s16", 2},   {"s32", 4},   {"s64", 8},
    {"f16", 2},  {"f16x2", 4}, {"bf16", 2},   {"bf16x2", 4}, {"tf32", 4},  {"f32", 4},   {"f64", 8},
    {"e4m3", 1}, {"e5m2", 1},  {"e4m3x2", 2}, {"e5m2x2", 2}, {"u16x2", 4}, {"s16x2", 4},
}};
static_assert(kTypes.size() == static_cast<size_t>(Type::s16x2) + 1);

}  // namespace

std::optional<Type> find_type(std::string_view word) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (kTypes[i].name == word) return static_cast<Type>(i);
  }
  return std::nullopt;
}

int bytes_of(Type type) { return kTypes[static_cast<size_t>(type)].bytes; }

}  // namespace abyssal::emulator::ptx

// The types that PTX instructions name (PTX ISA 5.2).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace abyssal::emulator::ptx {

enum class Type : uint8_t {
  pred,
  b8,
  b16,
  b32,
  b64,
  b128,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  f16x2,
  bf16,
  bf16x2,
  tf32,
  f32,
  f64,
  e4m3,
  e5m2,
  e4m3x2,
  e5m2x2,
  u16x2,
  s16x2,
};

// "f32" and so on; nothing for what is no type.
std::optional<Type> find_type(std::string_view word);

// Bytes of a value; 0 of a predicate.
int bytes_of(Type type);

inline bool is_signed(Type type) { return type >= Type::s8 && type <= Type::s64; }
inline bool is_unsigned(Type type) { return type >= Type::u8 && type <= Type::u64; }
inline bool is_untyped(Type type) { return type >= Type::b8 && type <= Type::b128; }
inline bool is_floating(Type type) { return type >= Type::f16 && type <= Type::e5m2x2; }

}  // namespace abyssal::emulator::ptx

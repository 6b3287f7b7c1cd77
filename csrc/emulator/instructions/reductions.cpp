#include "emulator/instructions/reductions.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "emulator/float_formats.hpp"

namespace abyssal::emulator {
namespace {

template <typename T>
T changed_integer(Change change, T old, T value, T compared) {
  switch (change) {
    case Change::conjunction:
      return old & value;
    case Change::disjunction:
      return old | value;
    case Change::exclusive:
      return old ^ value;
    case Change::exchange:
      return value;
    case Change::compare_and_swap:
      return old == compared ? value : old;
    case Change::add:
      return static_cast<T>(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value));
    case Change::increment:
      return old >= value ? T{0} : static_cast<T>(old + 1);
    case Change::decrement:
      return old == 0 || old > value ? value : static_cast<T>(old - 1);
    case Change::minimum:
      return std::min(old, value);
    case Change::maximum:
      return std::max(old, value);
  }
  return old;
}

// One value of a float format: add, or the extremes.
template <typename Format>
uint32_t changed_float(Change change, uint32_t old, uint32_t value) {
  const double a = Format::decode(old), b = Format::decode(value);
  if (change == Change::add) return Format::encode(add_to_odd(a, b), Rounding::nearest_even);
  if (Format::is_nan(old)) return value;
  if (Format::is_nan(value)) return old;
  return (a < b) == (change == Change::maximum) ? value : old;
}

template <typename Format>
uint64_t changed_pair(Change change, uint64_t old, uint64_t value) {
  const uint32_t low = changed_float<Format>(change, old & 0xffff, value & 0xffff);
  const uint32_t high = changed_float<Format>(change, old >> 16 & 0xffff, value >> 16 & 0xffff);
  return low | uint64_t{high} << 16;
}

}  // namespace

uint64_t changed(Change change, ptx::Type type, uint64_t old, uint64_t value, uint64_t compared) {
  switch (type) {
    case ptx::Type::f32:
      return changed_float<F32>(change, static_cast<uint32_t>(old), static_cast<uint32_t>(value));
    case ptx::Type::f64:
      return std::bit_cast<uint64_t>(std::bit_cast<double>(old) + std::bit_cast<double>(value));
    case ptx::Type::f16:
      return changed_float<F16>(change, old & 0xffff, value & 0xffff);
    case ptx::Type::bf16:
      return changed_float<Bf16>(change, old & 0xffff, value & 0xffff);
    case ptx::Type::f16x2:
      return changed_pair<F16>(change, old, value);
    case ptx::Type::bf16x2:
      return changed_pair<Bf16>(change, old, value);
    case ptx::Type::s32:
      return static_cast<uint32_t>(changed_integer(change, static_cast<int32_t>(old),
                                                   static_cast<int32_t>(value),
                                                   static_cast<int32_t>(compared)));
    case ptx::Type::s64:
      return static_cast<uint64_t>(changed_integer(change, static_cast<int64_t>(old),
                                                   static_cast<int64_t>(value),
                                                   static_cast<int64_t>(compared)));
    default:
      break;
  }
  if (ptx::bytes_of(type) == 8) return changed_integer(change, old, value, compared);
  return changed_integer(change, static_cast<uint32_t>(old), static_cast<uint32_t>(value),
                         static_cast<uint32_t>(compared));
}

bool is_possible(Change change, ptx::Type type) {
  const int bytes = ptx::bytes_of(type);
  if (type == ptx::Type::tf32 || bytes < 2) return false;
  const bool is_extreme = change == Change::minimum || change == Change::maximum;
  if (type == ptx::Type::f64) return change == Change::add;
  if (ptx::is_floating(type)) return change == Change::add || is_extreme;
  return bytes == 4 || bytes == 8;
}

void reduce(Change change, ptx::Type type, std::byte* to, const std::byte* from, uint32_t bytes) {
  const auto size = static_cast<uint32_t>(ptx::bytes_of(type));
  for (uint32_t offset = 0; offset < bytes; offset += size) {
    uint64_t old = 0, value = 0;
    std::memcpy(&old, to + offset, size);
    std::memcpy(&value, from + offset, size);
    value = changed(change, type, old, value, 0);
    std::memcpy(to + offset, &value, size);
  }
}

}  // namespace abyssal::emulator

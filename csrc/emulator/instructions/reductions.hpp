// What atomics and bulk reductions do to a value in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "emulator/ptx/types.hpp"

namespace abyssal::emulator {

enum class Change : uint8_t {
  conjunction,
  disjunction,
  exclusive,
  exchange,
  compare_and_swap,
  add,
  increment,
  decrement,
  minimum,
  maximum,
};

// As PTX calls them, in the order of Change.
inline constexpr std::string_view kChangeNames[] = {"and", "or",  "xor", "exch", "cas",
                                                    "add", "inc", "dec", "min",  "max"};

// The new value. Types of pairs change both halves. `compared` is for compare-and-swap alone.
uint64_t changed(Change change, ptx::Type type, uint64_t old, uint64_t value, uint64_t compared);

// Whether there is such an operation for this type.
bool is_possible(Change change, ptx::Type type);

// Changes an array in memory by another one.
void reduce(Change change, ptx::Type type, std::byte* to, const std::byte* from, uint32_t bytes);

}  // namespace abyssal::emulator

// Instructions that compute each lane's result from that lane's operands alone.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "emulator/decoder.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {

// The handler of d = Operation()(a, b, ...), with D and S... as the C++ types of result and
// sources.
template <typename Operation, typename D, typename... S>
void lanewise(Warp& warp, const Instruction& instruction, LaneMask mask) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    D* result = warp.write<D>(instruction.destinations[0]);
    const auto compute = [result](LaneMask lanes, const S* __restrict... sources) {
      for_lanes(lanes, [&](int lane) { result[lane] = Operation()(sources[lane]...); });
    };
    compute(mask, warp.read<S>(instruction.sources[I])...);
  }(std::index_sequence_for<S...>());
}

// The C++ type of each PTX type's bits, as integer arithmetic sees it.
template <typename Act>
auto with_integer_type(Decoding& decoding, Type type, Act act) {
  switch (type) {
    case Type::u16:
    case Type::b16:
      return act(std::type_identity<uint16_t>());
    case Type::u32:
    case Type::b32:
      return act(std::type_identity<uint32_t>());
    case Type::u64:
    case Type::b64:
      return act(std::type_identity<uint64_t>());
    case Type::s16:
      return act(std::type_identity<int16_t>());
    case Type::s32:
      return act(std::type_identity<int32_t>());
    case Type::s64:
      return act(std::type_identity<int64_t>());
    default:
      decoding.fail("not of this type");
  }
}

// Integer arithmetic wraps around, which C++ promises of unsigned types only.
template <typename T>
using Wrapping = std::conditional_t<sizeof(T) == 2, uint32_t, std::make_unsigned_t<T>>;

// Decodes `count` sources of one type behind the destination, and ends the modifiers.
inline void decode_uniform(Decoding& decoding, Type type, int count) {
  decoding.finish_modifiers();
  decoding.expect_operands(static_cast<size_t>(count) + 1);
  decoding.into.destinations[0] = decoding.destination(0, type);
  for (int i = 0; i < count; ++i) {
    decoding.into.sources[i] = decoding.source(static_cast<size_t>(i) + 1, type);
  }
}

}  // namespace abyssal::emulator

// Addresses, and the words that the other headers share: scopes of synchronisation.
//
// The comments of this folder name the section of the PTX ISA that a function wraps by its title
// (quoted): section numbers move from version to version. "Generic proxy" is what ordinary loads
// and stores use, "async proxy" what TMA, bulk copies and WGMMA's reads of shared memory use: an
// access of one kind sees one of the other only after a proxy fence (fence.cuh).
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// Who is meant by an acquire or release: "Scope".
enum class Scope { cta, cluster, gpu, sys };

namespace detail {

template <Scope kScope>
struct ScopeName;
template <>
struct ScopeName<Scope::cta> {
  static constexpr char text[] = "cta";
};
template <>
struct ScopeName<Scope::cluster> {
  static constexpr char text[] = "cluster";
};
template <>
struct ScopeName<Scope::gpu> {
  static constexpr char text[] = "gpu";
};
template <>
struct ScopeName<Scope::sys> {
  static constexpr char text[] = "sys";
};

}  // namespace detail

// The address within this block's shared memory, as instructions on `.shared` take it: "cvta".
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace abyssal::hopper

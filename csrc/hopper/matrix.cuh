// ldmatrix and stmatrix: 8x8 matrices of 16-bit elements between shared memory and a warp.
//
// A matrix is 8 rows of 16 bytes. Thread t gives the address of row t % 8 of matrix t / 8 (of
// x1 the first 8 threads, of x2 the first 16, of x4 all; the others' addresses are not read), each
// a multiple of 16. Register i of thread t holds the elements (t / 4, 2 * (t % 4)) and the next
// column of matrix i, the first in the low half; kTranspose exchanges rows and columns. All 32
// threads execute it together.
#pragma once

#include "hopper/address.cuh"

namespace abyssal::hopper {

enum class Transpose { no, yes };

namespace detail {

template <Transpose kTranspose>
struct TransposeName {
  static constexpr char text[] = "";
};
template <>
struct TransposeName<Transpose::yes> {
  static constexpr char text[] = ".trans";
};

}  // namespace detail

// "ldmatrix", kMatrices = 1, 2 or 4.
template <Transpose kTranspose = Transpose::no, int kMatrices>
__device__ __forceinline__ void load_matrix(uint32_t (&registers)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 or kMatrices == 2 or kMatrices == 4, "1, 2 or 4 matrices");
  using Name = detail::TransposeName<kTranspose>;
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1%2.shared::cta.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(shared_address(row)), "C"(Name::text)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2%3.shared::cta.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(shared_address(row)), "C"(Name::text)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4%5.shared::cta.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row)), "C"(Name::text)
                 : "memory");
  }
}

// "stmatrix", kMatrices = 1, 2 or 4. A generic-proxy write: fence before TMA or WGMMA reads it.
template <Transpose kTranspose = Transpose::no, int kMatrices>
__device__ __forceinline__ void store_matrix(void* row, const uint32_t (&registers)[kMatrices]) {
  static_assert(kMatrices == 1 or kMatrices == 2 or kMatrices == 4, "1, 2 or 4 matrices");
  using Name = detail::TransposeName<kTranspose>;
  if constexpr (kMatrices == 1) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x1%2.shared::cta.b16 [%0], {%1};" ::"r"(shared_address(row)),
        "r"(registers[0]), "C"(Name::text)
        : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2%3.shared::cta.b16 [%0], {%1, %2};" ::"r"(
                     shared_address(row)),
                 "r"(registers[0]), "r"(registers[1]), "C"(Name::text)
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4%5.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3]),
                 "C"(Name::text)
                 : "memory");
  }
}

}  // namespace abyssal::hopper

// Warps and warpgroups: a leader, and the registers of a role.
#pragma once

#include <cstdint>

namespace abyssal::hopper {

// "elect.sync": true in one thread of the warp, which all 32 threads ask together. Which one is
// the hardware's choice; it is the same each time in a converged warp.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// "Special registers: %tid", of a warpgroup: the same as threadIdx.x % 128, but read anew at each
// call. What is computed from it then stays behind the call; from threadIdx.x, the compiler
// computes it ahead of the loops around, where it would take registers from accumulators.
__device__ __forceinline__ int thread_in_warpgroup() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread % 128;
}

// "setmaxnreg": gives registers of this warpgroup back to the block, or takes some, waiting until
// there are enough. All warps of the warpgroup execute it. kRegisters in 24 .. 256, a multiple of
// 8. The kernel needs __launch_bounds__ (or .maxnreg), or ptxas ignores it (C7508).
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  static_assert(kRegisters >= 24 and kRegisters <= 256 and kRegisters % 8 == 0,
                "registers of a thread are 24 to 256, in steps of 8");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void acquire_registers() {
  static_assert(kRegisters >= 24 and kRegisters <= 256 and kRegisters % 8 == 0,
                "registers of a thread are 24 to 256, in steps of 8");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace abyssal::hopper

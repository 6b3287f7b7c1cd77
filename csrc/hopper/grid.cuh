// Programmatic dependent launch: a grid that starts while the one before it still runs.
#pragma once

namespace abyssal::hopper {

// "griddepcontrol", launch_dependents: once all blocks of this grid have said so or exited, the
// next grid may start. Promises nothing about memory.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// "griddepcontrol", wait: until the grids that this one depends on have completed and their
// writes are visible. Before any access to what they read or write.
__device__ __forceinline__ void wait_for_prior_grids() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace abyssal::hopper

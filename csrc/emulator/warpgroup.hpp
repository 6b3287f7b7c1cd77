// Warpgroups: four warps that multiply matrices together (wgmma, PTX ISA 9.7.15).
//
// A product belongs to the warpgroup: it begins when all four warps have issued it, completes for
// all four at once, and products complete in order. Each warp commits and waits for itself.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "emulator/checks/checker.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {

inline constexpr int kWarpsOfGroup = 4;

// What one `wgmma.mma_async` was told, the same by all four warps.
struct Product {
  const Instruction* instruction = nullptr;
  int pc = 0;
  uint64_t a_descriptor = 0;
  uint64_t b_descriptor = 0;
  bool accumulates = false;
  int issued = 0;  // warps
  // Of each warp, when it issued it: a warp's rows may begin before another warp is there.
  std::array<Knowledge, kWarpsOfGroup> knowledge;
  // Of all warps, at their last wgmma.fence: it tells "that the register/shared-memory across the
  // warpgroup have been written into" (PTX ISA 9.7.15, asynchronous warpgroup operations).
  Knowledge fenced;

  bool is_same(const Product& other) const {
    return instruction == other.instruction && a_descriptor == other.a_descriptor &&
           b_descriptor == other.b_descriptor && accumulates == other.accumulates;
  }
};

struct Warpgroup {
  std::array<Warp*, kWarpsOfGroup> warps = {};
  std::deque<Product> products;  // not performed yet
  uint64_t performed = 0;        // products that are done, since the beginning
  Event progress;
  Agent agent;  // of strict runs; its clock at a product is the product's number + 1

  struct Member {
    uint64_t issued = 0;           // products
    std::deque<uint64_t> commits;  // `issued` at each commit that may still be waited for
    Knowledge fenced;              // at the last wgmma.fence, in strict runs
  };
  std::array<Member, kWarpsOfGroup> members;
};

}  // namespace abyssal::emulator

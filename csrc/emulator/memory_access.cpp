#include "emulator/memory_access.hpp"

#include <string>

#include "emulator/checks/checker.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

std::byte* locate_param(Warp& warp, int lane, const Access& access, uint64_t address,
                        uint32_t bytes) {
  const std::vector<std::byte>& params = warp.block().grid().description.params;
  if (access.kind != AccessKind::read) {
    throw Fault(FaultKind::read_only, "a write to a parameter of the kernel", lane);
  }
  if (address > params.size() || bytes > params.size() - address) {
    throw Fault(FaultKind::out_of_bounds,
                std::to_string(bytes) + " bytes at " + std::to_string(address) + " of the " +
                    std::to_string(params.size()) + " bytes of parameters",
                lane);
  }
  // Parameters are constant: the cast serves the one return type.
  return const_cast<std::byte*>(params.data()) + address;
}

// Strong accesses: through them, warps may learn of each other before they touch the memory.
CheckedAccess checked(Warp& warp, int lane, const Access& access, const void* memory) {
  const WarpState& state = *warp.checks();
  // What a release publishes holds the releasing access itself.
  const Epoch epoch = access.kind == AccessKind::read ? state.reads() : state.epoch();
  if (access.order != Order::weak) {
    warp.block().grid().machine.checker()->communicate(warp, lane, memory, access);
  }
  return {.epoch = epoch,
          .warp = state.agent.index,
          .lanes = LaneMask{1} << lane,
          .knowledge = state.common,
          .more = state.extra[lane].get(),
          .pc = warp.pc(),
          .lane = lane,
          .kind = access.kind,
          .is_of_tensor_map = access.is_of_tensor_map,
          .scope = access.scope};
}

// A block's shared memory is there once something says that the block runs.
void require_started(const Block& peer, const WarpState& state, int lane) {
  const Knowledge* more = state.extra[lane].get();
  if (state.common.over.knows_of(peer.number())) return;
  if (more != nullptr && more->over.knows_of(peer.number())) return;
  throw Fault(FaultKind::race,
              "nothing orders the beginning of block " + describe(peer.index()) +
                  " before this access to its shared memory",
              lane);
}

void check_shared(Warp& warp, int lane, const Access& access, uint64_t address, uint32_t bytes,
                  const void* memory) {
  Block& owner = warp.block().owner(address, lane);
  if (&owner != &warp.block()) require_started(owner, *warp.checks(), lane);
  warp.block().grid().machine.checker()->access_shared(owner, inside_block(address), bytes,
                                                       checked(warp, lane, access, memory));
}

void check_global(Warp& warp, int lane, const Access& access, uint64_t address, uint32_t bytes,
                  const GlobalMemory& memory, const void* found) {
  warp.block().grid().machine.checker()->access_global(memory, address, bytes,
                                                       checked(warp, lane, access, found));
}

}  // namespace

Located resolve_generic(uint64_t address) {
  if (is_in_window(address, kSharedWindow)) return {Space::shared, address - kSharedWindow};
  if (is_in_window(address, kLocalWindow)) return {Space::local, address - kLocalWindow};
  if (is_in_window(address, kParamWindow)) return {Space::param, address - kParamWindow};
  return {Space::global, address};
}

void count_request(Warp& warp, const Access& access, LaneMask lanes, const uint64_t* addresses,
                   uint32_t bytes) {
  Space space = access.space;
  if (space == Space::generic) space = resolve_generic(addresses[first_lane(lanes)]).space;
  auto& counters = warp.block().grid().counters.instructions[static_cast<size_t>(warp.pc())];
  if (space == Space::shared) count_shared(counters, lanes, addresses, bytes);
  if (space == Space::global) count_global(counters, lanes, addresses, bytes);
}

std::byte* locate(Warp& warp, int lane, const Access& access, uint64_t address, uint32_t bytes) {
  Space space = access.space;
  if (space == Space::generic) {
    const Located found = resolve_generic(address);
    space = found.space;
    address = found.address;
  }
  if ((address & (bytes - 1)) != 0) {
    throw Fault(FaultKind::misaligned,
                "an access of " + std::to_string(bytes) + " bytes at " + hex(address) +
                    ", which is no multiple of it",
                lane);
  }
  Block& block = warp.block();
  switch (space) {
    case Space::shared: {
      std::byte* memory = block.shared(address, bytes, lane);
      if (warp.checks() != nullptr) check_shared(warp, lane, access, address, bytes, memory);
      return memory;
    }
    case Space::local:
      return block.local(static_cast<uint32_t>(warp.index() * kLanes + lane), address, bytes, lane);
    case Space::param:
      return locate_param(warp, lane, access, address, bytes);
    case Space::constant:
    case Space::global:
    case Space::generic:
      break;
  }
  GlobalMemory& memory = block.grid().memory;
  std::byte* found = memory.find(address, bytes, access.kind != AccessKind::read, lane);
  if (warp.checks() != nullptr) check_global(warp, lane, access, address, bytes, memory, found);
  return found;
}

}  // namespace abyssal::emulator

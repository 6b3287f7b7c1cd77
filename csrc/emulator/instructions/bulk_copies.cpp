// cp.async.bulk, with and without tensor maps (PTX ISA 9.7.9.25 and 9.7.9.27).
//
// A copy into shared memory tells an mbarrier how many bytes have come; with multicast each block
// has a copy of its own, which arrives at a time of its own. A copy out of shared memory belongs
// to a bulk group of the thread that issued it: it first reads, then writes.

#include <array>
#include <cstring>
#include <vector>

#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/bulk_groups.hpp"
#include "emulator/instructions/mbarriers.hpp"
#include "emulator/instructions/reductions.hpp"
#include "emulator/machine.hpp"
#include "emulator/tensor_map.hpp"

namespace abyssal::emulator {
namespace {

enum class Direction : uint8_t { to_shared, to_global, shared_to_shared };

struct CopyDetails : Details {
  Direction direction = Direction::to_shared;
  bool is_tensor = false;
  int rank = 0;
  bool multicasts = false;
  bool reduces = false;
  Change change = Change::add;
  Type type = Type::b32;  // of a reduction without a tensor map
  Source to, from, size, barrier, mask;
  int64_t to_offset = 0, from_offset = 0, barrier_offset = 0;
  std::array<Source, kMostDimensions> coordinates;
};

// The type of a tensor's elements, as reductions see it.
Type type_of(const TensorMap& map) {
  switch (map.type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
      return Type::u32;
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
      return Type::s32;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
      return Type::u64;
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
      return Type::s64;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
      return Type::f16;
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return Type::bf16;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return Type::f64;
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return Type::u8;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
      return Type::u16;
    default:
      return Type::f32;
  }
}

// One copy, with its addresses, as a thread has issued it.
struct Copy {
  const CopyDetails& details;
  Block& block;  // of the thread
  std::string place;
  TensorMap map;
  std::array<int32_t, kMostDimensions> coordinates = {};
  uint64_t global = 0;
  uint32_t bytes = 0;

  // The type of a reduction's elements.
  Type type() const { return details.is_tensor ? type_of(map) : details.type; }

  // Calls act(global address, shared address, begin, end) for each piece of 16 bytes.
  template <typename Act>
  void for_each_piece(uint32_t shared, Act act) const {
    if (details.is_tensor) {
      for_each_chunk(map, coordinates.data(), shared, [&](const Chunk& chunk) {
        act(chunk.global_address, chunk.shared_address, chunk.begin, chunk.end);
      });
      return;
    }
    for (uint32_t offset = 0; offset < bytes; offset += kChunkBytes) {
      act(global + offset, shared + offset, 0u, kChunkBytes);
    }
  }
};

// What is outside of the tensor.
void fill(std::byte* chunk, const TensorMap& map) {
  std::memset(chunk, 0, kChunkBytes);
  if (!map.fills_with_nan) return;
  // Every byte of a NaN but the exponent's upper ones is as good as another; this is a quiet one
  // in all formats.
  std::memset(chunk, 0x7f, kChunkBytes);
  if (map.element_bytes() == 2) {
    for (uint32_t i = 0; i < kChunkBytes; i += 2) chunk[i] = std::byte{0xff};
  } else {
    for (uint32_t i = 0; i < kChunkBytes; ++i) {
      if (i % map.element_bytes() != map.element_bytes() - 1) chunk[i] = std::byte{0xff};
    }
  }
}

// From global memory, or another block's shared memory, to the shared memory of one block.
class LoadOperation : public Operation {
 public:
  LoadOperation(Copy copy, Block& target, uint32_t shared, Mbarrier& barrier)
      : copy_(std::move(copy)), target_(target), shared_(shared), barrier_(barrier) {}

  bool step() override {
    try {
      move();
      complete_transactions(barrier_, copy_.bytes);
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, describe() + ": " + fault.what());
    }
    return true;
  }

  std::string describe() const override { return copy_.place; }

 private:
  void move() {
    GlobalMemory& memory = copy_.block.grid().memory;
    copy_.for_each_piece(
        shared_, [&](uint64_t global, uint32_t shared, uint32_t begin, uint32_t end) {
          std::byte* to = target_.shared(shared, kChunkBytes, -1);
          if (end - begin < kChunkBytes) fill(to, copy_.map);
          if (begin == end) return;
          const std::byte* from = copy_.details.direction == Direction::shared_to_shared
                                      ? copy_.block.shared(global, kChunkBytes, -1)
                                      : memory.find(global + begin, end - begin, false, -1);
          std::memcpy(to + begin, from, end - begin);
        });
  }

  Copy copy_;
  Block& target_;
  uint32_t shared_;
  Mbarrier& barrier_;
};

// From shared to global memory: reads, then writes or reduces.
class StoreOperation : public Operation {
 public:
  StoreOperation(Copy copy, uint32_t shared, std::shared_ptr<BulkGroup> group, Event& progress)
      : copy_(std::move(copy)), shared_(shared), group_(std::move(group)), progress_(progress) {
    ++group_->reads;
    ++group_->writes;
  }

  bool step() override {
    try {
      has_read_ ? write() : read();
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, describe() + ": " + fault.what());
    }
    --(has_read_ ? group_->writes : group_->reads);
    progress_.happen();
    return std::exchange(has_read_, true);
  }

  bool reads_shared() const override { return !has_read_; }
  std::string describe() const override { return copy_.place; }

 private:
  void read() {
    copy_.for_each_piece(shared_, [&](uint64_t, uint32_t shared, uint32_t, uint32_t) {
      const std::byte* from = copy_.block.shared(shared, kChunkBytes, -1);
      data_.insert(data_.end(), from, from + kChunkBytes);
    });
  }

  void write() {
    GlobalMemory& memory = copy_.block.grid().memory;
    const std::byte* from = data_.data();
    copy_.for_each_piece(shared_, [&](uint64_t global, uint32_t, uint32_t begin, uint32_t end) {
      if (begin != end) {
        std::byte* to = memory.find(global + begin, end - begin, true, -1);
        if (copy_.details.reduces) {
          reduce(copy_.details.change, copy_.type(), to, from + begin, end - begin);
        } else {
          std::memcpy(to, from + begin, end - begin);
        }
      }
      from += kChunkBytes;
    });
  }

  Copy copy_;
  uint32_t shared_;
  std::shared_ptr<BulkGroup> group_;
  Event& progress_;
  bool has_read_ = false;
  std::vector<std::byte> data_;
};

// Issuing.

uint64_t to_shared(uint64_t address) {
  return is_in_window(address, kSharedWindow) ? address - kSharedWindow : address;
}

void require_aligned(uint64_t value, uint64_t multiple, const char* what, int lane) {
  if (value % multiple == 0) return;
  throw Fault(FaultKind::misaligned,
              std::string(what) + " is " + hex(value) + " and must be a multiple of " +
                  std::to_string(multiple),
              lane);
}

TensorMap read_map(Warp& warp, uint64_t address, int lane) {
  TensorMap map;
  require_aligned(address, 64, "the address of the tensor map", lane);
  const Access access{.kind = AccessKind::read};
  CUtensorMap bytes;
  // A descriptor is read whole; parameters need not be aligned to their own 128 bytes.
  std::memcpy(&bytes, locate(warp, lane, access, address, 64), 64);
  std::memcpy(reinterpret_cast<std::byte*>(&bytes) + 64,
              locate(warp, lane, access, address + 64, 64), 64);
  if (!TensorMap::unpack(&bytes, map)) {
    throw Fault(FaultKind::invalid,
                "there is no tensor map at " + hex(address) +
                    " (it must come from the emulator's cuTensorMapEncodeTiled)",
                lane);
  }
  return map;
}

// The copy of one lane, without its shared side.
Copy issue_copy(Warp& warp, const CopyDetails& details, int lane) {
  Copy copy{details, warp.block(), warp.describe(lane), {}};
  const bool is_store = details.direction == Direction::to_global;
  const Source& side = is_store ? details.to : details.from;
  const int64_t offset = is_store ? details.to_offset : details.from_offset;
  const uint64_t address = warp.bits(side, lane) + static_cast<uint64_t>(offset);
  if (details.is_tensor) {
    copy.map = read_map(warp, address, lane);
    if (copy.map.rank != details.rank) {
      throw Fault(FaultKind::invalid,
                  "the tensor map has " + std::to_string(copy.map.rank) +
                      " dimensions, the instruction " + std::to_string(details.rank),
                  lane);
    }
    for (int i = 0; i < details.rank; ++i) {
      copy.coordinates[i] = static_cast<int32_t>(warp.bits(details.coordinates[i], lane));
    }
    copy.bytes = copy.map.box_bytes();
    return copy;
  }
  copy.global = details.direction == Direction::shared_to_shared ? to_shared(address) : address;
  copy.bytes = static_cast<uint32_t>(warp.bits(details.size, lane));
  require_aligned(copy.bytes, 16, "the size", lane);
  require_aligned(copy.global, 16, is_store ? "the destination" : "the source", lane);
  return copy;
}

void issue_load(Warp& warp, const CopyDetails& details, int lane) {
  Block& block = warp.block();
  const Copy copy = issue_copy(warp, details, lane);
  const uint64_t to =
      to_shared(warp.bits(details.to, lane) + static_cast<uint64_t>(details.to_offset));
  const uint64_t barrier =
      to_shared(warp.bits(details.barrier, lane) + static_cast<uint64_t>(details.barrier_offset));
  require_aligned(to, details.is_tensor ? 128 : 16, "the destination", lane);
  constexpr uint64_t kInside = (uint64_t{1} << kRankShift) - 1;
  const auto issue_to = [&](Block& target) {
    Mbarrier& found = find_mbarrier(target, barrier & kInside, lane);
    block.cluster().issue(
        std::make_unique<LoadOperation>(copy, target, static_cast<uint32_t>(to & kInside), found));
  };
  if (!details.multicasts) {
    if (&block.owner(to, lane) != &block.owner(barrier, lane)) {
      throw Fault(FaultKind::invalid, "the destination and the mbarrier are in different blocks",
                  lane);
    }
    return issue_to(block.owner(to, lane));
  }
  const uint64_t mask = warp.bits(details.mask, lane) & 0xffff;
  auto& blocks = block.cluster().blocks();
  if (mask == 0 || mask >> blocks.size() != 0) {
    throw Fault(
        FaultKind::invalid,
        "multicast to blocks " + hex(mask) + " of a cluster of " + std::to_string(blocks.size()),
        lane);
  }
  for (size_t rank = 0; rank < blocks.size(); ++rank) {
    if (mask >> rank & 1) issue_to(*blocks[rank]);
  }
}

void issue_store(Warp& warp, const CopyDetails& details, int lane) {
  const uint64_t from =
      to_shared(warp.bits(details.from, lane) + static_cast<uint64_t>(details.from_offset));
  require_aligned(from, details.is_tensor ? 128 : 16, "the source", lane);
  Copy copy = issue_copy(warp, details, lane);
  warp.block().cluster().issue(
      std::make_unique<StoreOperation>(std::move(copy), static_cast<uint32_t>(from),
                                       warp.bulk_groups(lane).open(), warp.bulk_progress()));
}

void run_copy(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const CopyDetails&>(*instruction.details);
  for_lanes(mask, [&](int lane) {
    if (details.direction == Direction::to_global) return issue_store(warp, details, lane);
    issue_load(warp, details, lane);
  });
}

void run_commit(Warp& warp, const Instruction&, LaneMask mask) {
  for_lanes(mask, [&](int lane) { warp.bulk_groups(lane).commit(); });
}

void run_wait(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto rest = static_cast<size_t>(instruction.immediate);
  const bool reads_only = instruction.variant == 1;
  bool is_done = true;
  for_lanes(mask, [&](int lane) { is_done &= warp.bulk_groups(lane).are_done(rest, reads_only); });
  if (!is_done) warp.retry_after(warp.bulk_progress(), "its bulk groups but the last", rest);
}

// Decoding.

// [map, {x, y, ...}]
void decode_map(Decoding& decoding, const ptx::Operand& operand, CopyDetails& details, Source& base,
                int64_t& offset) {
  const Decoding::Address address = decoding.address(operand);
  base = address.base;
  offset = address.offset;
  if (operand.elements.size() != 2 ||
      operand.elements[1].elements.size() != static_cast<size_t>(details.rank)) {
    decoding.fail("expected [map, {coordinates}]");
  }
  for (int i = 0; i < details.rank; ++i) {
    details.coordinates[i] = decoding.source(operand.elements[1].elements[i], Type::b32);
  }
}

void decode_side(Decoding& decoding, const ptx::Operand& operand, Source& base, int64_t& offset) {
  const Decoding::Address address = decoding.address(operand);
  base = address.base;
  offset = address.offset;
}

// The operands behind the addresses: of a load, the mbarrier, a mask, a policy.
void decode_rest(Decoding& decoding, CopyDetails& details, size_t next, bool has_policy) {
  if (details.direction != Direction::to_global) {
    decode_side(decoding, decoding.operand(next++), details.barrier, details.barrier_offset);
  }
  if (details.multicasts) details.mask = decoding.source(next++, Type::b16);
  decoding.expect_operands(next + has_policy);
}

Direction decode_direction(Decoding& decoding) {
  if (decoding.accept("global")) {
    if (decoding.choose_if({"shared::cta", "shared"}) < 0) decoding.fail("expected .shared::cta");
    return Direction::to_global;
  }
  if (decoding.choose_if({"shared::cluster", "shared::cta"}) < 0) {
    decoding.fail("expected .shared::cluster, .shared::cta or .global");
  }
  if (decoding.accept("global")) return Direction::to_shared;
  decoding.expect("shared::cta");
  return Direction::shared_to_shared;
}

// Modifiers in any order: the forms differ in it. Returns whether there is a cache policy.
bool decode_manner(Decoding& decoding, CopyDetails& details) {
  const bool is_load = details.direction != Direction::to_global;
  bool has_policy = false;
  for (;;) {
    if (is_load && decoding.accept("multicast::cluster")) {
      details.multicasts = true;
    } else if (decoding.accept("L2::cache_hint")) {
      has_policy = true;
    } else if (!decoding.accept("tile") &&
               !decoding.accept(is_load ? "mbarrier::complete_tx::bytes" : "bulk_group")) {
      return has_policy;
    }
  }
}

// .add, ... and without a tensor map .type
void decode_reduction(Decoding& decoding, CopyDetails& details) {
  details.change = static_cast<Change>(decoding.choose(kChangeNames));
  if (details.is_tensor) return;
  decoding.accept("noftz");
  details.type = decoding.type();
  if (!is_possible(details.change, details.type)) decoding.fail("not of this type");
}

void decode_copy(Decoding& decoding, bool reduces) {
  auto details = std::make_unique<CopyDetails>();
  details->reduces = reduces;
  if (decoding.accept("tensor")) {
    details->is_tensor = true;
    details->rank = static_cast<int>(decoding.choose({"1d", "2d", "3d", "4d", "5d"})) + 1;
  }
  details->direction = decode_direction(decoding);
  const bool is_store = details->direction == Direction::to_global;
  if (reduces && !is_store) decoding.fail("reductions are supported into global memory only");
  if (reduces && details->is_tensor) decode_reduction(decoding, *details);
  const bool has_policy = decode_manner(decoding, *details);
  if (reduces && !details->is_tensor) decode_reduction(decoding, *details);

  // [destination], [source] {, size}; a tensor map stands for the global side.
  if (is_store && details->is_tensor) {
    decode_map(decoding, decoding.operand(0), *details, details->to, details->to_offset);
  } else {
    decode_side(decoding, decoding.operand(0), details->to, details->to_offset);
  }
  if (!is_store && details->is_tensor) {
    decode_map(decoding, decoding.operand(1), *details, details->from, details->from_offset);
  } else {
    decode_side(decoding, decoding.operand(1), details->from, details->from_offset);
  }
  if (!details->is_tensor) details->size = decoding.source(2, Type::u32);
  decode_rest(decoding, *details, details->is_tensor ? 2 : 3, has_policy);
  decoding.into.run = run_copy;
  decoding.into.details = std::move(details);
}

void run_nothing(Warp&, const Instruction&, LaneMask) {}

void decode_group(Decoding& decoding) {
  if (decoding.accept("commit_group")) {
    decoding.expect_operands(0);
    decoding.into.run = run_commit;
    return;
  }
  decoding.expect("wait_group");
  decoding.into.variant = decoding.accept("read");
  decoding.expect_operands(1);
  decoding.into.immediate = decoding.constant(decoding.operand(0));
  decoding.into.run = run_wait;
}

void decode_cp(Decoding& decoding) {
  const bool reduces = decoding.accept("reduce");
  decoding.expect("async");
  if (!decoding.accept("bulk")) decoding.fail("only bulk copies are supported");
  if (decoding.peek() == "commit_group" || decoding.peek() == "wait_group") {
    return decode_group(decoding);
  }
  if (!decoding.accept("prefetch")) return decode_copy(decoding, reduces);
  // A hint: nothing happens.
  while (!decoding.peek().empty()) decoding.accept(decoding.peek());
  decoding.into.run = run_nothing;
}

constexpr Opcode kOpcodes[] = {{"cp", decode_cp}};

}  // namespace

std::span<const Opcode> bulk_copy_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

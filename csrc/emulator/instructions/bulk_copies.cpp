// cp.async.bulk, with and without tensor maps (PTX ISA 9.7.9.25 and 9.7.9.27).
//
// A copy into shared memory tells an mbarrier how many bytes have come; with multicast each block
// has a copy of its own, which arrives at a time of its own. A copy out of shared memory belongs
// to a bulk group of the thread that issued it: it first reads, then writes.

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/async_copies.hpp"
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
  // Strict runs: where it was issued, and what the thread knew then.
  int pc = 0;
  Knowledge knowledge;

  Checker* checker() const { return block.grid().machine.checker(); }

  // 16 bytes of a block's shared memory, and bytes of global memory, accessed by this copy. The
  // additions of a reduction are relaxed at the scope of the GPU (PTX ISA 9.7.9.25.4.2).
  std::byte* shared_side(Block& of, uint64_t address, Epoch epoch, AccessKind kind) const {
    std::byte* memory = of.shared(address, kChunkBytes, -1);
    if (epoch) checker()->access_shared(of, address, kChunkBytes, access(epoch, kind));
    return memory;
  }
  std::byte* global_side(uint64_t address, uint32_t size, Epoch epoch, AccessKind kind) const {
    GlobalMemory& global_memory = block.grid().memory;
    std::byte* memory = global_memory.find(address, size, kind != AccessKind::read, -1);
    if (epoch) checker()->access_global(global_memory, address, size, access(epoch, kind));
    return memory;
  }
  CheckedAccess access(Epoch epoch, AccessKind kind) const {
    const Scope scope = kind == AccessKind::atomic ? Scope::gpu : Scope::none;
    return {.epoch = epoch,
            .lanes = 1,
            .knowledge = knowledge,
            .pc = pc,
            .kind = kind,
            .is_async = true,
            .scope = scope};
  }

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
      : copy_(std::move(copy)),
        target_(target),
        shared_(shared),
        barrier_(barrier),
        epoch_(begin_copy(barrier)) {}

  bool step() override {
    try {
      move();
      end_copy(barrier_, epoch_, copy_.bytes);
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, describe() + ": " + fault.what());
    }
    return true;
  }

  std::string describe() const override { return copy_.place; }

  bool uses_shared_of(const Block& block) const override {
    const bool reads_it = copy_.details.direction == Direction::shared_to_shared;
    return &target_ == &block || (reads_it && &copy_.block == &block);
  }

 private:
  void move() {
    const bool is_from_shared = copy_.details.direction == Direction::shared_to_shared;
    copy_.for_each_piece(shared_, [&](uint64_t global, uint32_t shared, uint32_t begin,
                                      uint32_t end) {
      std::byte* to = copy_.shared_side(target_, shared, epoch_, AccessKind::write);
      if (end - begin < kChunkBytes) fill(to, copy_.map);
      if (begin == end) return;
      const std::byte* from =
          is_from_shared ? copy_.shared_side(copy_.block, global, epoch_, AccessKind::read)
                         : copy_.global_side(global + begin, end - begin, epoch_, AccessKind::read);
      std::memcpy(to + begin, from, end - begin);
    });
  }

  const Copy copy_;
  Block& target_;
  const uint32_t shared_;
  Mbarrier& barrier_;
  const Epoch epoch_;
};

// From shared to global memory: reads, then writes or reduces.
class StoreOperation : public Operation {
 public:
  StoreOperation(Copy copy, uint32_t shared, BulkGroups& groups, Event& progress)
      : copy_(std::move(copy)), shared_(shared), group_(groups.open()), progress_(progress) {
    const uint32_t number = ++groups.num_operations;
    group_->last = number;
    ++group_->reads;
    ++group_->writes;
    if (copy_.checker() == nullptr) return;
    reading_ = {groups.reader.block, groups.reader.index, number};
    writing_ = {groups.writer.block, groups.writer.index, number};
    // It writes what it has read.
    copy_.knowledge.over.raise(reading_, 1);
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

  bool uses_shared_of(const Block& block) const override {
    return !has_read_ && &copy_.block == &block;
  }
  bool is_store() const override { return true; }
  std::string describe() const override { return copy_.place; }

 private:
  void read() {
    copy_.for_each_piece(shared_, [&](uint64_t, uint32_t shared, uint32_t, uint32_t) {
      const std::byte* from = copy_.shared_side(copy_.block, shared, reading_, AccessKind::read);
      data_.insert(data_.end(), from, from + kChunkBytes);
    });
  }

  void write() {
    const std::byte* from = data_.data();
    const AccessKind kind = copy_.details.reduces ? AccessKind::atomic : AccessKind::write;
    copy_.for_each_piece(shared_, [&](uint64_t global, uint32_t, uint32_t begin, uint32_t end) {
      if (begin != end) {
        std::byte* to = copy_.global_side(global + begin, end - begin, writing_, kind);
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
  const uint32_t shared_;
  std::shared_ptr<BulkGroup> group_;
  Event& progress_;
  Epoch reading_, writing_;
  bool has_read_ = false;
  std::vector<std::byte> data_;
};

// Issuing.

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
  const Access access{.kind = AccessKind::read, .is_of_tensor_map = true};
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
  copy.pc = warp.pc();
  if (WarpState* state = warp.checks()) copy.knowledge = state->publish(LaneMask{1} << lane);
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

// The async proxy must see the mbarrier's initialisation.
void require_fenced(const Mbarrier& barrier, const Knowledge& knowledge, int lane) {
  if (!knowledge.over.covers(barrier.initialised, 1)) {
    throw Fault(FaultKind::race, "nothing orders the mbarrier's initialisation before this", lane);
  }
  if (knowledge.is_fenced(FenceSpace::shared, barrier.initialised, 1)) return;
  throw Fault(FaultKind::missing_fence,
              "no fence.mbarrier_init or fence.proxy.async lies between the mbarrier's "
              "initialisation and this copy",
              lane);
}

void count(Block& block, const Copy& copy, uint64_t receivers) {
  CopyDirection direction = CopyDirection::to_shared;
  if (copy.details.direction == Direction::to_global) direction = CopyDirection::to_global;
  if (copy.details.direction == Direction::shared_to_shared) {
    direction = CopyDirection::shared_to_shared;
  }
  if (copy.details.reduces) direction = CopyDirection::reduce;
  CopyCounters& counters = block.grid().counters.copies[static_cast<size_t>(direction)];
  ++counters.copies;
  counters.bytes += copy.bytes;
  counters.delivered += receivers * copy.bytes;
}

void issue_load(Warp& warp, const CopyDetails& details, int lane) {
  Block& block = warp.block();
  const Copy copy = issue_copy(warp, details, lane);
  const uint64_t to =
      to_shared(warp.bits(details.to, lane) + static_cast<uint64_t>(details.to_offset));
  const uint64_t barrier =
      to_shared(warp.bits(details.barrier, lane) + static_cast<uint64_t>(details.barrier_offset));
  require_aligned(to, details.is_tensor ? 128 : 16, "the destination", lane);
  const auto issue_to = [&](Block& target) {
    Mbarrier& found = find_mbarrier(target, inside_block(barrier), lane);
    if (warp.checks() != nullptr) require_fenced(found, copy.knowledge, lane);
    block.cluster().issue(std::make_unique<LoadOperation>(
        copy, target, static_cast<uint32_t>(inside_block(to)), found));
  };
  if (!details.multicasts) {
    count(block, copy, 1);
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
  count(block, copy, static_cast<uint64_t>(std::popcount(mask)));
  for (size_t rank = 0; rank < blocks.size(); ++rank) {
    if (mask >> rank & 1) issue_to(*blocks[rank]);
  }
}

void issue_store(Warp& warp, const CopyDetails& details, int lane) {
  const uint64_t from =
      to_shared(warp.bits(details.from, lane) + static_cast<uint64_t>(details.from_offset));
  require_aligned(from, details.is_tensor ? 128 : 16, "the source", lane);
  Copy copy = issue_copy(warp, details, lane);
  count(warp.block(), copy, 1);
  warp.block().cluster().issue(std::make_unique<StoreOperation>(
      std::move(copy), static_cast<uint32_t>(from), warp.bulk_groups(lane), warp.bulk_progress()));
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
  if (!is_done) {
    return warp.retry_after(warp.bulk_progress(), "its bulk groups but the last", rest);
  }
  WarpState* state = warp.checks();
  if (state == nullptr) return;
  for_lanes(mask, [&](int lane) {
    const BulkGroups& groups = warp.bulk_groups(lane);
    if (!groups.reader.block) return;
    const Agent& reader = groups.reader;
    const Agent& writer = groups.writer;
    state->update(LaneMask{1} << lane, warp.alive(), [&](Knowledge& knowledge) {
      knowledge.over.raise({reader.block, reader.index, groups.last_read()}, 1);
      knowledge.over.raise({writer.block, writer.index, groups.last_written()}, 1);
    });
  });
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
  if (!decoding.accept("bulk")) {
    if (reduces) decoding.fail("only bulk copies reduce");
    return decode_async_copy(decoding);
  }
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

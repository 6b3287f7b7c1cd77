// st.async (PTX ISA 9.7.9.12): a store into shared memory of the cluster that goes on by itself and
// tells an mbarrier beside its destination how many bytes have come.

#include "emulator/instructions/async_stores.hpp"

#include <array>
#include <cstring>

#include "emulator/instructions/addressing.hpp"
#include "emulator/instructions/mbarriers.hpp"
#include "emulator/machine.hpp"

namespace abyssal::emulator {
namespace {

constexpr int kMostValues = 4;

struct AsyncStoreDetails : Details {
  int bytes = 0;  // of a value
  int count = 1;
  std::array<Source, kMostValues> values;
  Source barrier;
  int64_t barrier_offset = 0;
};

class StoreOperation : public Operation {
 public:
  StoreOperation(Block& target, uint64_t address, std::vector<std::byte> data, Mbarrier& barrier,
                 Knowledge knowledge, int pc, std::string place)
      : target_(target),
        address_(address),
        data_(std::move(data)),
        barrier_(barrier),
        knowledge_(std::move(knowledge)),
        pc_(pc),
        place_(std::move(place)),
        epoch_(begin_copy(barrier)) {}

  bool step() override {
    const auto bytes = static_cast<uint32_t>(data_.size());
    try {
      std::byte* to = target_.shared(address_, bytes, -1);
      if (epoch_) {
        const CheckedAccess access{.epoch = epoch_,
                                   .lanes = 1,
                                   .knowledge = knowledge_,
                                   .pc = pc_,
                                   .kind = AccessKind::write};
        target_.grid().machine.checker()->access_shared(target_, address_, bytes, access);
      }
      std::memcpy(to, data_.data(), bytes);
      end_copy(barrier_, epoch_, bytes);
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, place_ + ": " + fault.what());
    }
    return true;
  }

  bool uses_shared_of(const Block& block) const override { return &target_ == &block; }
  std::string describe() const override { return place_; }

 private:
  Block& target_;
  const uint64_t address_;
  const std::vector<std::byte> data_;
  Mbarrier& barrier_;
  const Knowledge knowledge_;
  const int pc_;
  const std::string place_;
  const Epoch epoch_;
};

void run_async_store(Warp& warp, const Instruction& instruction, LaneMask mask) {
  const auto& details = static_cast<const AsyncStoreDetails&>(*instruction.details);
  for_lanes(mask, [&](int lane) {
    Block& block = warp.block();
    const uint64_t to = to_shared(lane_address(warp, instruction, 0, lane));
    const uint64_t barrier =
        to_shared(warp.bits(details.barrier, lane) + static_cast<uint64_t>(details.barrier_offset));
    const auto bytes = static_cast<uint64_t>(details.bytes * details.count);
    if (to % bytes != 0) {
      throw Fault(FaultKind::misaligned,
                  "a store of " + std::to_string(bytes) + " bytes at " + hex(to) +
                      ", which is no multiple of it",
                  lane);
    }
    Block& target = block.owner(to, lane);
    if (&target != &block.owner(barrier, lane)) {
      throw Fault(FaultKind::invalid, "the destination and the mbarrier are in different blocks",
                  lane);
    }
    std::vector<std::byte> data(bytes);
    for (int i = 0; i < details.count; ++i) {
      const Source& value = details.values[i];
      const auto* from = warp.read<std::byte>(value) + value.bytes * lane;
      std::memcpy(data.data() + i * details.bytes, from, static_cast<size_t>(details.bytes));
    }
    WarpState* state = warp.checks();
    Mbarrier& found = find_mbarrier(block, barrier, lane);
    if (state != nullptr) require_initialised(found, *state, lane);
    block.cluster().issue(std::make_unique<StoreOperation>(
        target, inside_block(to), std::move(data), found,
        state == nullptr ? Knowledge() : state->publish(LaneMask{1} << lane), warp.pc(),
        warp.describe(lane)));
  });
}

}  // namespace

void decode_async_store(Decoding& decoding) {
  auto details = std::make_unique<AsyncStoreDetails>();
  decoding.accept("weak");
  decoding.expect("shared::cluster");
  decoding.expect("mbarrier::complete_tx::bytes");
  const int vector = decoding.choose_if({"v2", "v4"});
  details->count = vector < 0 ? 1 : 2 << vector;
  const Type type = decoding.type();
  details->bytes = ptx::bytes_of(type);
  if (details->bytes != 4 && details->bytes != 8) decoding.fail("not of this type");
  decoding.expect_operands(3);
  for (int i = 0; i < details->count; ++i) {
    details->values[i] = decoding.source(vector_element(decoding, 1, details->count, i), type);
  }
  decode_address(decoding, 0, 0);
  const Decoding::Address barrier = decoding.address(decoding.operand(2));
  details->barrier = barrier.base;
  details->barrier_offset = barrier.offset;
  decoding.into.run = run_async_store;
  decoding.into.details = std::move(details);
}

}  // namespace abyssal::emulator

// A kernel's tile: its division among warpgroups, its shared memory, and the ring of stages.
#pragma once

#include "gemm/fp8_gemm.hpp"
#include "hopper/mbarrier.cuh"
#include "hopper/wgmma_operand.cuh"

namespace abyssal::gemm {

// Consumer warpgroups of a block.
inline constexpr int kConsumers = 2;
inline constexpr int kConsumerThreads = 128 * kConsumers;
inline constexpr int kConsumerWarps = kConsumerThreads / 32;

template <int kTileM, int kTileN, int kStages_, ScaleB kScaleB_>
struct Plan {
  static constexpr int kM = kTileM;
  static constexpr int kN = kTileN;
  static constexpr int kStages = kStages_;
  static constexpr ScaleB kScaleB = kScaleB_;
  static_assert(kM == 64 or kM == 128 or kM == 256, "a warpgroup's WGMMA has 64 rows");

  // A warpgroup's part of the tile: half of the rows, or of the columns where rows are few.
  static constexpr bool kDividesN = kM == 64;
  static constexpr int kPartM = kDividesN ? kM : kM / kConsumers;
  static constexpr int kPartN = kDividesN ? kN / kConsumers : kN;
  // It is computed in waves of 64 rows, which take turns with one set of partial sums.
  static constexpr int kWaves = kPartM / 64;
  static constexpr int kSums = kPartN / 2;  // FP32 values of a thread and wave

  using TileA = hopper::OperandTile<hopper::Major::k, hopper::Swizzle::b128, kM, kBlockK, 1>;
  using TileB = hopper::OperandTile<hopper::Major::k, hopper::Swizzle::b128, kN, kBlockK, 1>;

  static constexpr int kScalesB = scales_of_b(kN, kScaleB);

  // A part of d on its way out: panels of at most 64 columns (128 bytes) with TMA's swizzle.
  static constexpr int kPanelN = kPartN < 64 ? kPartN : 64;
  static constexpr int kPanels = kPartN / kPanelN;
  static_assert(kPartN % kPanelN == 0, "a part consists of whole panels");
  using Panels = uint8_t[kConsumers][kPanels][kPartM * kPanelN * 2];
  // Or its FP32 sums, where K is divided among blocks. The pitch keeps the stores of 4 rows x 4
  // pairs of columns, which go together, in different banks.
  static constexpr bool kDividesK = kM == 64;
  static constexpr int kPitch = kN + 8;
  using Partials = float[kDividesK ? kM : 1][kPitch];

  struct Shared {
    alignas(1024) uint8_t a[kStages][TileA::kBytes];
    alignas(1024) uint8_t b[kStages][TileB::kBytes];
    union {
      alignas(1024) Panels panels;
      Partials partials;
    };
    alignas(128) float scale_a[kStages][kM];
    alignas(128) float scale_b[kStages][kScalesB];
    hopper::Mbarrier full[kStages];
    hopper::Mbarrier empty[kStages];
  };
  static_assert(sizeof(Shared) == shared_bytes(kM, kN, kStages, kScaleB), "the launch asks for it");
  static_assert(sizeof(Shared) <= 232448, "a block has at most 227 KB");

  // What TMA brings for one stage.
  static constexpr uint32_t kStageBytes = TileA::kBytes + TileB::kBytes + sizeof(float) * kM +
                                          (kScaleB == ScaleB::row ? sizeof(float) * kN : 0);
  // Arrivals that fill a stage: TMA's announcement, and the copies of 128x128 scales.
  static constexpr uint32_t kFullArrivals = kScaleB == ScaleB::square ? 2 : 1;
};

// Where a role is in the ring of stages.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;  // of the round; a consumer's. The producer waits for the other one

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace abyssal::gemm

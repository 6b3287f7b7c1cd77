// Operands of WGMMA in shared memory: layouts of tiles and their matrix descriptors.
//
// A tile of kMn (M of A, N of B) x kK elements lies as TMA boxes lay it, in *panels* of S bytes
// along the contiguous dimension, S = 128, 64 or 32 with the swizzle of that name, 16 without:
//
//   K-major    panel = [kMn][S bytes of K];  panels follow one another along K
//   MN-major   panel = [kK][S bytes of MN];  panels follow one another along MN (16-bit types)
//
// A tile starts at a multiple of 8 * S bytes: the swizzle exchanges 16-byte pieces by the bits of
// the address itself, and so WGMMA and TMA agree only from there.
#pragma once

#include "hopper/address.cuh"

namespace abyssal::hopper {

// The values are those of the descriptor's field: "Matrix Descriptor Format".
enum class Swizzle : uint32_t { none = 0, b128 = 1, b64 = 2, b32 = 3 };

// Which dimension of an operand is contiguous. The values are those of imm-trans.
enum class Major { k = 0, mn = 1 };

// Bytes of a panel.
__host__ __device__ constexpr uint32_t panel_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::b128  ? 128
         : swizzle == Swizzle::b64 ? 64
         : swizzle == Swizzle::b32 ? 32
                                   : 16;
}

// "Matrix Descriptor Format": the start, and two strides in bytes, all multiples of 16.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t start, uint32_t leading_bytes,
                                                      uint32_t stride_bytes, Swizzle swizzle) {
  const uint32_t low = (start & 0x3FFFF) >> 4 | leading_bytes >> 4 << 16;
  const uint32_t high = stride_bytes >> 4 | static_cast<uint32_t>(swizzle) << 30;
  return static_cast<uint64_t>(high) << 32 | low;
}

// The layout of a tile of elements of kElementBytes, and the descriptor for any step into it.
template <Major kMajor, Swizzle kSwizzle, int kMn, int kK, int kElementBytes>
struct OperandTile {
  static_assert(kMajor == Major::k or kElementBytes == 2,
                "only 16-bit operands may have M or N contiguous");
  static constexpr uint32_t kPanelBytes = panel_bytes(kSwizzle);
  static constexpr uint32_t kContiguousBytes = (kMajor == Major::k ? kK : kMn) * kElementBytes;
  static constexpr uint32_t kPanelRows = kMajor == Major::k ? kMn : kK;
  static_assert(kContiguousBytes % kPanelBytes == 0, "the tile consists of whole panels");
  static_assert(kPanelRows % 8 == 0, "a panel consists of groups of 8 rows");

  static constexpr uint32_t kAlignment = 8 * kPanelBytes;
  static constexpr uint32_t kBytes = kMn * kK * kElementBytes;

  // From 8 rows of a panel to the next 8, and from one panel to the next. "Leading dimension byte
  // offset" and "stride dimension byte offset" name them the other way round where there is no
  // swizzle and K is contiguous, or a swizzle and MN is.
  static constexpr uint32_t kGroupStride = 8 * kPanelBytes;
  static constexpr uint32_t kPanelStride = kPanelRows * kPanelBytes;
  static_assert(kPanelStride < 1 << 18, "strides have 18 bits");
  // K-major with a swizzle: an instruction's 32 bytes of K lie within a panel, and no panel stride
  // is read. MN-major without: groups of 8 rows are the leading dimension.
  static constexpr bool kGroupsLead = kMajor == Major::mn and kSwizzle == Swizzle::none;
  static constexpr uint32_t kLeading =
      kGroupsLead ? kGroupStride
                  : (kMajor == Major::k and kSwizzle != Swizzle::none ? 0 : kPanelStride);
  static constexpr uint32_t kStride = kGroupsLead ? kPanelStride : kGroupStride;

  // Bytes from the start of the tile to element (mn, k), before the swizzle. For a descriptor,
  // K-major: mn a multiple of 8, k of 32 bytes; MN-major: mn a multiple of a panel, k of 8.
  static __host__ __device__ constexpr uint32_t offset(int mn, int k) {
    const uint32_t along = (kMajor == Major::k ? k : mn) * kElementBytes;
    const uint32_t across = kMajor == Major::k ? mn : k;
    return along / kPanelBytes * kPanelStride + across * kPanelBytes + along % kPanelBytes;
  }

  // The descriptor of the part of the tile that starts at (mn, k). The same in all threads of the
  // warpgroup: "wgmma.mma_async" leaves others undefined.
  static __device__ __forceinline__ uint64_t descriptor(const void* tile, int mn = 0, int k = 0) {
    return matrix_descriptor(shared_address(tile) + offset(mn, k), kLeading, kStride, kSwizzle);
  }
};

}  // namespace abyssal::hopper

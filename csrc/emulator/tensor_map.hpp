// Tensor maps: what cuTensorMapEncodeTiled makes and TMA instructions read.
//
// The driver's encoding is opaque. Ours is our own; programs only pass the 128 bytes on.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <functional>
#include <string>

namespace abyssal::emulator {

inline constexpr int kMostDimensions = 5;
// What TMA moves and swizzles by.
inline constexpr uint32_t kChunkBytes = 16;

enum class Swizzle : uint8_t { none = 0, bytes_32 = 1, bytes_64 = 2, bytes_128 = 3 };

struct TensorMap {
  uint64_t address = 0;
  int rank = 0;
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  Swizzle swizzle = Swizzle::none;
  bool fills_with_nan = false;
  uint64_t extents[kMostDimensions] = {};  // elements, innermost first
  uint64_t strides[kMostDimensions] = {};  // bytes from one element to the next
  uint32_t box[kMostDimensions] = {};      // elements of the box before element strides
  uint32_t element_strides[kMostDimensions] = {};

  uint32_t element_bytes() const;
  // Elements that a box has along a dimension.
  uint32_t box_count(int dimension) const;
  // Bytes of a box in shared memory.
  uint32_t box_bytes() const;

  // Into the 128 bytes of a CUtensorMap, wherever they lie.
  void pack(void* into) const;
  // False if the 128 bytes are none of ours.
  static bool unpack(const void* bytes, TensorMap& into);
};

// 16 bytes of a box: `begin` to `end` of them are inside of the tensor.
struct Chunk {
  uint64_t global_address;  // of byte 0, be it inside or not
  uint32_t shared_address;
  uint32_t begin, end;
};

// Calls act for each chunk of the box at `coordinates`, whose first byte has `shared_address`.
void for_each_chunk(const TensorMap& map, const int32_t* coordinates, uint32_t shared_address,
                    const std::function<void(const Chunk&)>& act);

// Swizzles by the bits of the address itself, as TMA and wgmma do.
uint32_t swizzled(Swizzle swizzle, uint32_t shared_address);

// cuTensorMapEncodeTiled, with every rule of its documentation. `reason` says which was broken.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                      CUtensorMapFloatOOBfill fill, std::string& reason);

}  // namespace abyssal::emulator

#include "emulator/tensor_map.hpp"

#include <algorithm>
#include <cstring>

namespace abyssal::emulator {
namespace {

constexpr uint64_t kMagic = 0x70616d20756d65;  // "emu map"

// 128 bytes. The second word stays empty: launchers of others change a bit of it to work around a
// bug of old drivers.
struct Encoded {
  uint64_t magic;
  uint64_t unused;
  uint64_t address;
  uint64_t strides[kMostDimensions - 1];
  uint32_t last_elements[kMostDimensions];  // extents - 1, of up to 2^32
  uint16_t box[kMostDimensions];
  uint8_t element_strides[kMostDimensions];
  uint8_t rank, type, swizzle, fills_with_nan;
};
static_assert(sizeof(Encoded) <= sizeof(CUtensorMap));

uint32_t bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

bool is_floating(CUtensorMapDataType type) {
  return type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && type <= CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ;
}

uint32_t span_of(Swizzle swizzle) {
  return swizzle == Swizzle::none ? 0 : 16u << static_cast<uint32_t>(swizzle);
}

// The rules, as cuda.h gives them for cuTensorMapEncodeTiled. Empty if none is broken.
std::string broken_rule(const CUtensorMap* map, const TensorMap& wanted, const void* address) {
  const auto of = [](const char* name, int dimension) {
    return std::string(name) + "[" + std::to_string(dimension) + "]";
  };
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) return "tensorMap must be aligned to 64 bytes";
  if (wanted.rank < 1 || wanted.rank > kMostDimensions) {
    return "tensorRank is " + std::to_string(wanted.rank) + " and must be 1 to 5";
  }
  const uint32_t element = wanted.element_bytes();
  if (element == 0) return "tensorDataType is none of those of compute capability 9.0";
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    return "globalAddress must be aligned to 16 bytes";
  }
  for (int i = 0; i < wanted.rank; ++i) {
    if (wanted.extents[i] == 0 || wanted.extents[i] > uint64_t{1} << 32) {
      return of("globalDim", i) + " is " + std::to_string(wanted.extents[i]) +
             " and must be 1 to 2^32";
    }
    if (i > 0 && (wanted.strides[i] % 16 != 0 || wanted.strides[i] >= uint64_t{1} << 40)) {
      return of("globalStrides", i - 1) + " is " + std::to_string(wanted.strides[i]) +
             " bytes and must be a multiple of 16 below 2^40";
    }
    if (wanted.box[i] < 1 || wanted.box[i] > 256) {
      return of("boxDim", i) + " is " + std::to_string(wanted.box[i]) + " and must be 1 to 256";
    }
    if (wanted.element_strides[i] < 1 || wanted.element_strides[i] > 8) {
      return of("elementStrides", i) + " is " + std::to_string(wanted.element_strides[i]) +
             " and must be 1 to 8";
    }
  }
  const uint32_t inner = wanted.box[0] * element;
  if (inner % 16 != 0) {
    return "boxDim[0] is " + std::to_string(inner) + " bytes and must be a multiple of 16";
  }
  const uint32_t span = span_of(wanted.swizzle);
  if (span != 0 && inner > span) {
    return "boxDim[0] is " + std::to_string(inner) + " bytes and the swizzle spans " +
           std::to_string(span);
  }
  if (wanted.fills_with_nan && !is_floating(wanted.type)) {
    return "oobFill asks for NaN and tensorDataType is an integer";
  }
  return "";
}

}  // namespace

uint32_t TensorMap::element_bytes() const { return bytes_of(type); }

uint32_t TensorMap::box_count(int dimension) const {
  // Without interleave, the innermost element stride is ignored.
  if (dimension == 0) return box[0];
  return (box[dimension] + element_strides[dimension] - 1) / element_strides[dimension];
}

uint32_t TensorMap::box_bytes() const {
  uint32_t bytes = element_bytes();
  for (int i = 0; i < rank; ++i) bytes *= box_count(i);
  return bytes;
}

void TensorMap::pack(void* into) const {
  Encoded encoded = {};
  encoded.magic = kMagic;
  encoded.address = address;
  encoded.rank = static_cast<uint8_t>(rank);
  encoded.type = static_cast<uint8_t>(type);
  encoded.swizzle = static_cast<uint8_t>(swizzle);
  encoded.fills_with_nan = fills_with_nan;
  for (int i = 0; i < rank; ++i) {
    if (i > 0) encoded.strides[i - 1] = strides[i];
    encoded.last_elements[i] = static_cast<uint32_t>(extents[i] - 1);
    encoded.box[i] = static_cast<uint16_t>(box[i]);
    encoded.element_strides[i] = static_cast<uint8_t>(element_strides[i]);
  }
  std::memset(into, 0, sizeof(CUtensorMap));
  std::memcpy(into, &encoded, sizeof(encoded));
}

bool TensorMap::unpack(const void* bytes, TensorMap& into) {
  Encoded encoded;
  std::memcpy(&encoded, bytes, sizeof(encoded));
  const bool is_ours = encoded.magic == kMagic && encoded.rank >= 1 &&
                       encoded.rank <= kMostDimensions &&
                       bytes_of(static_cast<CUtensorMapDataType>(encoded.type)) != 0 &&
                       encoded.swizzle <= static_cast<uint8_t>(Swizzle::bytes_128);
  if (!is_ours) return false;
  into = {};
  into.address = encoded.address;
  into.rank = encoded.rank;
  into.type = static_cast<CUtensorMapDataType>(encoded.type);
  into.swizzle = static_cast<Swizzle>(encoded.swizzle);
  into.fills_with_nan = encoded.fills_with_nan != 0;
  for (int i = 0; i < into.rank; ++i) {
    into.strides[i] = i == 0 ? into.element_bytes() : encoded.strides[i - 1];
    into.extents[i] = uint64_t{encoded.last_elements[i]} + 1;
    into.box[i] = encoded.box[i];
    into.element_strides[i] = std::max<uint32_t>(encoded.element_strides[i], 1);
  }
  return true;
}

uint32_t swizzled(Swizzle swizzle, uint32_t shared_address) {
  const uint32_t mask = (1u << static_cast<uint32_t>(swizzle)) - 1;
  return shared_address ^ (shared_address >> 7 & mask) << 4;
}

void for_each_chunk(const TensorMap& map, const int32_t* coordinates, uint32_t shared_address,
                    const std::function<void(const Chunk&)>& act) {
  const uint32_t element = map.element_bytes();
  const uint32_t inner_bytes = map.box[0] * element;
  uint32_t rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= map.box_count(i);
  // The bytes of a row that are inside of the tensor.
  const int64_t first = -int64_t{coordinates[0]} * element;
  const int64_t last = (static_cast<int64_t>(map.extents[0]) - coordinates[0]) * element;
  for (uint32_t row = 0; row < rows; ++row) {
    uint64_t address = map.address + static_cast<uint64_t>(int64_t{coordinates[0]} * element);
    bool is_inside = true;
    uint32_t rest = row;
    for (int i = 1; i < map.rank; ++i) {
      const int64_t step = int64_t{rest % map.box_count(i)} * map.element_strides[i];
      const int64_t at = coordinates[i] + step;
      rest /= map.box_count(i);
      is_inside = is_inside && at >= 0 && at < static_cast<int64_t>(map.extents[i]);
      address += static_cast<uint64_t>(at) * map.strides[i];
    }
    for (uint32_t offset = 0; offset < inner_bytes; offset += kChunkBytes) {
      Chunk chunk;
      chunk.global_address = address + offset;
      chunk.shared_address = swizzled(map.swizzle, shared_address + row * inner_bytes + offset);
      chunk.begin = static_cast<uint32_t>(std::clamp<int64_t>(first - offset, 0, kChunkBytes));
      chunk.end = static_cast<uint32_t>(std::clamp<int64_t>(last - offset, 0, kChunkBytes));
      if (!is_inside || chunk.begin >= chunk.end) chunk.begin = chunk.end = 0;
      act(chunk);
    }
  }
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill, std::string& reason) {
  TensorMap wanted;
  wanted.address = reinterpret_cast<uintptr_t>(address);
  wanted.rank = static_cast<int>(std::min<cuuint32_t>(rank, 100));
  wanted.type = type;
  wanted.swizzle = static_cast<Swizzle>(swizzle);
  wanted.fills_with_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  for (int i = 0; i < std::min(wanted.rank, kMostDimensions); ++i) {
    wanted.extents[i] = extents[i];
    wanted.strides[i] = i == 0 ? wanted.element_bytes() : strides[i - 1];
    wanted.box[i] = box[i];
    wanted.element_strides[i] = element_strides[i];
  }
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) {
    reason = "interleaved layouts are not supported by the emulator";
  } else if (swizzle > CU_TENSOR_MAP_SWIZZLE_128B) {
    reason = "swizzle is none of those of compute capability 9.0";
  } else {
    reason = broken_rule(map, wanted, address);
  }
  if (!reason.empty()) return CUDA_ERROR_INVALID_VALUE;
  wanted.pack(map);
  return CUDA_SUCCESS;
}

}  // namespace abyssal::emulator

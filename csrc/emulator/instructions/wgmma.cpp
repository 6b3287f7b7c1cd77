// wgmma (PTX ISA 9.7.15): D[64, N] = A[64, K] B[K, N] (+ D), with K = 32 bytes.
//
// A lies in shared memory or in registers, B in shared memory, D in registers of the warpgroup.
// Shared operands are described by a 64-bit matrix descriptor. The product happens when the
// adversary likes, between its issue and the wait; only then it reads and writes.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "emulator/instructions/lanewise.hpp"
#include "emulator/machine.hpp"
#include "emulator/tensor_core.hpp"
#include "emulator/tensor_map.hpp"
#include "emulator/warpgroup.hpp"

namespace abyssal::emulator {
namespace {

constexpr int kRows = 64;
constexpr int kRowsOfWarp = 16;
constexpr int kMostColumns = 256;
constexpr int kRegistersOfA = 4;

struct WgmmaDetails : Details {
  TensorType a_type = TensorType::bf16, b_type = TensorType::bf16;
  int columns = 0;
  bool accumulates_f16 = false;
  bool a_in_registers = false;
  bool negates_a = false, negates_b = false;
  bool transposes_a = false, transposes_b = false;  // MN-major
  std::vector<Destination> d;
  std::array<Source, kRegistersOfA> a;
};

const WgmmaDetails& details_of(const Product& product) {
  return static_cast<const WgmmaDetails&>(*product.instruction->details);
}

int bytes_of(TensorType type) {
  switch (type) {
    case TensorType::e4m3:
    case TensorType::e5m2:
      return 1;
    case TensorType::tf32:
      return 4;
    default:
      return 2;
  }
}

// Matrix descriptors (PTX ISA 9.7.15.5.1.2).

struct Descriptor {
  uint32_t start, leading, stride, base_offset;
  Swizzle swizzle;

  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        base_offset(static_cast<uint32_t>(bits >> 49 & 7)) {
    constexpr Swizzle kModes[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64,
                                  Swizzle::bytes_32};
    swizzle = kModes[bits >> 62];
  }

  uint32_t span() const {
    return swizzle == Swizzle::none ? kChunkBytes : 16u << static_cast<uint32_t>(swizzle);
  }
};

// Rows of 8 that are `span` bytes apart repeat the swizzle's pattern, from an aligned start on.
void check(const Descriptor& descriptor, const char* which) {
  const uint32_t pattern = 8 * descriptor.span();
  const bool rows_begin_inside =
      descriptor.swizzle != Swizzle::none && descriptor.start % pattern >= descriptor.span();
  if (descriptor.base_offset != 0 || rows_begin_inside) {
    throw Fault(FaultKind::invalid, std::string("the descriptor of ") + which + " begins at " +
                                        hex(descriptor.start) + " with base offset " +
                                        std::to_string(descriptor.base_offset) +
                                        "; only patterns that are aligned to " +
                                        std::to_string(pattern) + " bytes are supported");
  }
}

// K-major: 16 bytes of a row at a time.
uint32_t address_k_major(const Descriptor& d, uint32_t row, uint32_t chunk) {
  if (d.swizzle == Swizzle::none) {
    return d.start + row / 8 * d.stride + row % 8 * kChunkBytes + chunk * d.leading;
  }
  return swizzled(d.swizzle,
                  d.start + row / 8 * d.stride + row % 8 * d.span() + chunk * kChunkBytes);
}

// MN-major: the 8 elements of 16 bytes are neighbours along M or N, for one k.
uint32_t address_mn_major(const Descriptor& d, uint32_t chunk, uint32_t k) {
  if (d.swizzle == Swizzle::none) {
    return d.start + chunk * d.stride + k % 8 * kChunkBytes + k / 8 * d.leading;
  }
  const uint32_t byte = chunk * kChunkBytes;
  return swizzled(d.swizzle, d.start + byte % d.span() + byte / d.span() * d.leading +
                                 k % 8 * d.span() + k / 8 * d.stride);
}

// Who reads rows of an operand: as many rows each.
struct Readers {
  std::span<const CheckedAccess> accesses;
  int rows;

  const CheckedAccess& of(int row) const { return accesses[static_cast<size_t>(row / rows)]; }
};

// `rows` rows of 32 bytes of K, from shared memory.
void load_shared(Block& block, uint64_t bits, const char* which, bool transposed, int rows,
                 const Readers& readers, std::byte* into) {
  const Descriptor descriptor(bits);
  check(descriptor, which);
  Checker* checker = block.grid().machine.checker();
  const auto fetch = [&](uint32_t address, int row) {
    const std::byte* memory = block.shared(address, kChunkBytes, -1);
    if (checker != nullptr) checker->access_shared(block, address, kChunkBytes, readers.of(row));
    return memory;
  };
  if (!transposed) {
    for (int row = 0; row < rows; ++row) {
      for (int chunk = 0; chunk < 2; ++chunk) {
        std::memcpy(into + row * kTensorCoreRowBytes + chunk * kChunkBytes,
                    fetch(address_k_major(descriptor, row, chunk), row), kChunkBytes);
      }
    }
    return;
  }
  for (int chunk = 0; chunk < rows / 8; ++chunk) {
    for (int k = 0; k < 16; ++k) {
      const std::byte* from = fetch(address_mn_major(descriptor, chunk, k), 8 * chunk);
      for (int i = 0; i < 8; ++i) {
        std::memcpy(into + (8 * chunk + i) * kTensorCoreRowBytes + 2 * k, from + 2 * i, 2);
      }
    }
  }
}

// Register q of lane l holds 4 bytes of row l / 4 + 8 (q % 2), at byte 4 (l % 4) + 16 (q / 2).
void load_registers(const Warpgroup& group, const WgmmaDetails& details, std::byte* into) {
  for (int w = 0; w < kWarpsOfGroup; ++w) {
    for (int q = 0; q < kRegistersOfA; ++q) {
      const auto* values = group.warps[w]->read<uint32_t>(details.a[q]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int row = kRowsOfWarp * w + lane / 4 + 8 * (q % 2);
        std::memcpy(into + row * kTensorCoreRowBytes + 4 * (lane % 4) + 16 * (q / 2), &values[lane],
                    4);
      }
    }
  }
}

void negate(std::byte* values, int rows, TensorType type) {
  const int bytes = bytes_of(type);
  for (int i = bytes - 1; i < rows * kTensorCoreRowBytes; i += bytes) values[i] ^= std::byte{0x80};
}

// Accumulators: value i of lane l of warp w is D[row][column].
struct Position {
  int row, column;
};

Position position_of(int warp, int lane, int value) {
  return {kRowsOfWarp * warp + lane / 4 + 8 * (value / 2 % 2),
          8 * (value / 4) + 2 * (lane % 4) + value % 2};
}

// Calls act(the value in its register, the value in a matrix of kMostColumns columns).
template <typename T, typename Act>
void for_each_accumulator(Warpgroup& group, const WgmmaDetails& details, T* matrix, Act act) {
  constexpr int kValues = 4 / sizeof(T);  // in a register
  for (int w = 0; w < kWarpsOfGroup; ++w) {
    for (size_t i = 0; i < details.d.size(); ++i) {
      T* registers = group.warps[w]->write<T>(details.d[i]);
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int part = 0; part < kValues; ++part) {
          const Position at = position_of(w, lane, static_cast<int>(i) * kValues + part);
          act(registers[lane * kValues + part], matrix[at.row * kMostColumns + at.column]);
        }
      }
    }
  }
}

template <typename T>
void multiply(Warpgroup& group, const Product& product, const std::byte* a, const std::byte* b) {
  const WgmmaDetails& details = details_of(product);
  alignas(64) T d[kRows * kMostColumns];
  if (product.accumulates) {
    for_each_accumulator(group, details, d, [](T& value, T& element) { element = value; });
  }
  if constexpr (std::is_same_v<T, float>) {
    tensor_core_f32(details.a_type, details.b_type, a, kTensorCoreRowBytes, b, kTensorCoreRowBytes,
                    d, kMostColumns, kRows, details.columns, product.accumulates);
  } else {
    tensor_core_f16(details.a_type, details.b_type, a, kTensorCoreRowBytes, b, kTensorCoreRowBytes,
                    d, kMostColumns, kRows, details.columns, product.accumulates);
  }
  for_each_accumulator(group, details, d, [](T& value, T& element) { value = element; });
}

void perform(Warpgroup& group, const Product& product) {
  const WgmmaDetails& details = details_of(product);
  Block& block = group.warps[0]->block();
  alignas(64) std::byte a[kRows * kTensorCoreRowBytes];
  alignas(64) std::byte b[kMostColumns * kTensorCoreRowBytes];
  const Epoch epoch(group.agent.block, group.agent.index,
                    static_cast<uint32_t>(group.performed + 1));
  auto knowledge = product.knowledge;
  for (Knowledge& of_warp : knowledge) of_warp.join(product.fenced);
  const auto access = [&](const Knowledge& knowledge) {
    return CheckedAccess{
        .epoch = epoch, .lanes = 1, .knowledge = knowledge, .pc = product.pc, .is_async = true};
  };
  if (details.a_in_registers) {
    load_registers(group, details, a);
  } else {
    const std::array by_warp{access(knowledge[0]), access(knowledge[1]), access(knowledge[2]),
                             access(knowledge[3])};
    load_shared(block, product.a_descriptor, "A", details.transposes_a, kRows,
                {by_warp, kRowsOfWarp}, a);
  }
  // Each warp reads all of B, so that all must know what one of them reads.
  Knowledge common = knowledge[0];
  for (int warp = 1; warp < kWarpsOfGroup; ++warp) common.meet(knowledge[warp]);
  const std::array by_all{access(common)};
  load_shared(block, product.b_descriptor, "B", details.transposes_b, details.columns,
              {by_all, details.columns}, b);
  if (details.negates_a) negate(a, kRows, details.a_type);
  if (details.negates_b) negate(b, details.columns, details.b_type);
  details.accumulates_f16 ? multiply<uint16_t>(group, product, a, b)
                          : multiply<float>(group, product, a, b);
}

// The head of a warpgroup's queue.
class ProductOperation : public Operation {
 public:
  ProductOperation(Warpgroup& group, uint64_t number, std::string place)
      : group_(group), number_(number), place_(std::move(place)) {}

  bool is_ready() const override { return group_.performed == number_; }

  bool step() override {
    try {
      perform(group_, group_.products.front());
    } catch (const Fault& fault) {
      throw EmulatorError(fault.kind, describe() + ": " + fault.what());
    }
    group_.products.pop_front();
    ++group_.performed;
    group_.progress.happen();
    return true;
  }

  bool uses_shared_of(const Block& block) const override {
    return &group_.warps[0]->block() == &block;
  }
  std::string describe() const override { return place_; }

 private:
  Warpgroup& group_;
  uint64_t number_;
  std::string place_;
};

// Handlers.

// The same in all lanes and, for the caller to check, in all warps.
uint64_t uniform_descriptor(Warp& warp, const Source& source, LaneMask mask) {
  const auto* values = warp.read<uint64_t>(source);
  const uint64_t first = values[first_lane(mask)];
  for_lanes(mask, [&](int lane) {
    if (values[lane] == first) return;
    throw Fault(FaultKind::diverged,
                "the matrix descriptor is " + hex(values[lane]) + " here and " + hex(first) +
                    " in another lane",
                lane);
  });
  return first;
}

Warpgroup& group_of(Warp& warp, LaneMask mask) {
  if (mask != kAllLanes) {
    throw Fault(FaultKind::diverged, "lanes " + hex(~mask) + " of the warpgroup do not run it",
                first_lane(~mask));
  }
  if (WarpState* state = warp.checks()) state->converge(mask, warp.alive());
  const size_t index = static_cast<size_t>(warp.index()) / kWarpsOfGroup;
  std::vector<std::unique_ptr<Warpgroup>>& groups = warp.block().warpgroups();
  if (index >= groups.size()) {
    throw Fault(FaultKind::invalid, "the warp is in no whole warpgroup of four warps");
  }
  return *groups[index];
}

Warpgroup::Member& member_of(Warp& warp, Warpgroup& group) {
  return group.members[static_cast<size_t>(warp.index()) % kWarpsOfGroup];
}

void run_multiply(Warp& warp, const Instruction& instruction, LaneMask mask) {
  Warpgroup& group = group_of(warp, mask);
  Warpgroup::Member& member = member_of(warp, group);
  const auto& details = static_cast<const WgmmaDetails&>(*instruction.details);
  Product product{&instruction, warp.pc()};
  if (!details.a_in_registers) {
    product.a_descriptor = uniform_descriptor(warp, instruction.sources[0], mask);
  }
  product.b_descriptor = uniform_descriptor(warp, instruction.sources[1], mask);
  const LaneMask accumulates = warp.read_predicate(instruction, 2);
  if (accumulates != 0 && accumulates != kAllLanes) {
    throw Fault(FaultKind::diverged, "scale-d differs between lanes", first_lane(~accumulates));
  }
  product.accumulates = accumulates != 0;

  const uint64_t number = member.issued++;
  const size_t place = number - group.performed;
  if (place == group.products.size()) group.products.push_back(product);
  Product& common = group.products[place];
  if (!product.is_same(common)) {
    throw Fault(FaultKind::diverged,
                "the warpgroup's warps issue different products: descriptors " +
                    hex(product.a_descriptor) + " and " + hex(product.b_descriptor) +
                    ", in another warp " + hex(common.a_descriptor) + " and " +
                    hex(common.b_descriptor) + " at " + warp.program().place(common.pc));
  }
  if (WarpState* state = warp.checks()) {
    common.knowledge[warp.index() % kWarpsOfGroup] = state->publish(mask);
    common.fenced.join(member.fenced);
  }
  if (ProductRegisters* registers = warp.product_registers()) {
    registers->use(warp, details.d.size(), member.issued);
  }
  if (++common.issued < kWarpsOfGroup) return;
  warp.block().cluster().issue(
      std::make_unique<ProductOperation>(group, number, warp.describe(-1)));
}

void run_fence(Warp& warp, const Instruction&, LaneMask mask) {
  Warpgroup& group = group_of(warp, mask);
  if (WarpState* state = warp.checks()) member_of(warp, group).fenced = state->publish(mask);
  if (ProductRegisters* registers = warp.product_registers()) registers->fence();
}

void run_commit(Warp& warp, const Instruction&, LaneMask mask) {
  Warpgroup::Member& member = member_of(warp, group_of(warp, mask));
  member.commits.push_back(member.issued);
}

void run_wait(Warp& warp, const Instruction& instruction, LaneMask mask) {
  Warpgroup& group = group_of(warp, mask);
  Warpgroup::Member& member = member_of(warp, group);
  const auto rest = static_cast<size_t>(instruction.immediate);
  while (member.commits.size() > rest) {
    if (member.commits.front() > group.performed) {
      return warp.retry_after(group.progress, "its products but the last groups", rest);
    }
    if (WarpState* state = warp.checks()) {
      const auto last = static_cast<uint32_t>(member.commits.front());
      if (last > 0) state->common.over.raise({group.agent.block, group.agent.index, last}, 1);
      if (warp.product_registers() != nullptr) warp.product_registers()->wait(last);
    }
    member.commits.pop_front();
  }
}

// Decoding.

struct Shape {
  int columns, depth;
};

// "m64n128k32"
Shape decode_shape(Decoding& decoding) {
  const auto text = decoding.accept_prefix("m64n");
  if (!text) decoding.fail("expected .m64nNkK");
  Shape shape{};
  size_t i = 0;
  const auto number = [&] {
    int value = 0;
    for (; i < text->size() && (*text)[i] >= '0' && (*text)[i] <= '9' && value < 1000; ++i) {
      value = 10 * value + ((*text)[i] - '0');
    }
    return value;
  };
  shape.columns = number();
  if (i >= text->size() || (*text)[i++] != 'k') decoding.fail("expected .m64nNkK");
  shape.depth = number();
  if (i != text->size() || shape.columns < 8 || shape.columns > kMostColumns ||
      shape.columns % 8 != 0) {
    decoding.fail("N must be a multiple of 8 from 8 to 256");
  }
  return shape;
}

TensorType decode_tensor_type(Decoding& decoding) {
  return static_cast<TensorType>(decoding.choose({"e4m3", "e5m2", "f16", "bf16", "tf32"}));
}

void check_types(Decoding& decoding, const WgmmaDetails& details, int depth) {
  const int bytes = bytes_of(details.a_type);
  const bool is_pair_of_fp8 = bytes == 1 && bytes_of(details.b_type) == 1;
  if (details.a_type != details.b_type && !is_pair_of_fp8) decoding.fail("not of these types");
  if (depth != kTensorCoreRowBytes / bytes) decoding.fail("K must be 32 bytes");
  const bool has_f16 = is_pair_of_fp8 || details.a_type == TensorType::f16;
  if (details.accumulates_f16 && !has_f16) decoding.fail("not of these types");
}

// imm-scale: 1 or -1; imm-trans: 0 or 1
bool decode_flag(Decoding& decoding, size_t operand, int64_t yes, int64_t no) {
  const int64_t value = decoding.constant(decoding.operand(operand));
  if (value != yes && value != no) decoding.fail("a constant out of range");
  return value == yes;
}

void decode_multiply(Decoding& decoding) {
  auto details = std::make_unique<WgmmaDetails>();
  decoding.expect("sync");
  decoding.expect("aligned");
  const Shape shape = decode_shape(decoding);
  details->columns = shape.columns;
  details->accumulates_f16 = decoding.choose({"f32", "f16"}) == 1;
  details->a_type = decode_tensor_type(decoding);
  details->b_type = decode_tensor_type(decoding);
  check_types(decoding, *details, shape.depth);

  const size_t registers = static_cast<size_t>(shape.columns) / (details->accumulates_f16 ? 4 : 2);
  const ptx::Operand& d = decoding.operand(0);
  if (d.elements.size() != registers) decoding.fail("D has the wrong number of registers");
  for (const ptx::Operand& reg : d.elements) {
    details->d.push_back(decoding.destination(reg, 4));
    if (!details->d.back()) decoding.fail("D has a register that is none");
  }
  const ptx::Operand& a = decoding.operand(1);
  details->a_in_registers = a.kind == ptx::Operand::Kind::vector;
  if (details->a_in_registers) {
    if (a.elements.size() != kRegistersOfA) decoding.fail("A has the wrong number of registers");
    for (size_t i = 0; i < kRegistersOfA; ++i)
      details->a[i] = decoding.source(a.elements[i], Type::b32);
  } else {
    decoding.into.sources[0] = decoding.source(a, Type::b64);
  }
  decoding.into.sources[1] = decoding.source(2, Type::b64);
  decoding.into.sources[2] = decoding.predicate(decoding.operand(3), 2);
  // {scale-a, scale-b {, trans-a} {, trans-b}}; A in registers has no trans-a.
  size_t next = 4;
  details->negates_a = decode_flag(decoding, next++, -1, 1);
  details->negates_b = decode_flag(decoding, next++, -1, 1);
  if (bytes_of(details->a_type) == 2) {
    if (!details->a_in_registers) details->transposes_a = decode_flag(decoding, next++, 1, 0);
    details->transposes_b = decode_flag(decoding, next++, 1, 0);
  }
  decoding.expect_operands(next);
  decoding.into.run = run_multiply;
  decoding.into.details = std::move(details);
}

void decode_wgmma(Decoding& decoding) {
  const size_t form = decoding.choose({"mma_async", "fence", "commit_group", "wait_group"});
  if (form == 0) return decode_multiply(decoding);
  decoding.expect("sync");
  decoding.expect("aligned");
  decoding.expect_operands(form == 3);
  if (form == 3) decoding.into.immediate = decoding.constant(decoding.operand(0));
  constexpr Handler kHandlers[] = {nullptr, run_fence, run_commit, run_wait};
  decoding.into.run = kHandlers[form];
}

constexpr Opcode kOpcodes[] = {{"wgmma", decode_wgmma}};

}  // namespace

std::span<const Opcode> wgmma_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

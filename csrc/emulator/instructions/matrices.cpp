// ldmatrix and stmatrix (PTX ISA 9.7.14.5.15 and 16): 8x8 matrices of 16-bit elements, a row of 16
// bytes at the address of each lane.

#include <array>
#include <cstring>

#include "emulator/instructions/addressing.hpp"

namespace abyssal::emulator {
namespace {

constexpr int kRows = 8;
constexpr uint32_t kRowBytes = 16;

struct MatrixDetails : Details {
  Access access;
  int count = 1;  // matrices
  bool transposed = false;
  std::array<Source, 4> sources;
  std::array<Destination, 4> destinations;
};

// The place of element pair (row, lane % 4) of a lane's register, in 16-bit elements: row-major in
// an 8x8 matrix.
struct Place {
  int row, column;
};

Place place_of(int lane, int half, bool transposed) {
  const int row = lane / 4, column = 2 * (lane % 4) + half;
  return transposed ? Place{column, row} : Place{row, column};
}

std::array<std::byte*, kRows> rows_of(Warp& warp, const Instruction& instruction, int matrix) {
  const auto& details = static_cast<const MatrixDetails&>(*instruction.details);
  const LaneMask lanes = LaneMask{0xff} << (kRows * matrix);
  const LaneAddresses addresses(warp, instruction, details.access, lanes, kRowBytes);
  std::array<std::byte*, kRows> rows;
  for_lanes(lanes, [&](int lane) {
    rows[lane % kRows] = locate(warp, lane, details.access, addresses.of[lane], kRowBytes);
  });
  return rows;
}

void run_ldmatrix(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.require_convergence(mask);
  const auto& details = static_cast<const MatrixDetails&>(*instruction.details);
  uint32_t values[4][kLanes];
  for (int matrix = 0; matrix < details.count; ++matrix) {
    const auto rows = rows_of(warp, instruction, matrix);
    for (int lane = 0; lane < kLanes; ++lane) {
      uint16_t halves[2];
      for (int half = 0; half < 2; ++half) {
        const Place place = place_of(lane, half, details.transposed);
        std::memcpy(&halves[half], rows[place.row] + 2 * place.column, 2);
      }
      values[matrix][lane] = uint32_t{halves[1]} << 16 | halves[0];
    }
  }
  for (int matrix = 0; matrix < details.count; ++matrix) {
    if (!details.destinations[matrix]) continue;
    std::memcpy(warp.write<uint32_t>(details.destinations[matrix]), values[matrix],
                sizeof(values[matrix]));
  }
}

void run_stmatrix(Warp& warp, const Instruction& instruction, LaneMask mask) {
  warp.require_convergence(mask);
  const auto& details = static_cast<const MatrixDetails&>(*instruction.details);
  for (int matrix = 0; matrix < details.count; ++matrix) {
    const auto rows = rows_of(warp, instruction, matrix);
    const auto* values = warp.read<uint32_t>(details.sources[matrix]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const Place place = place_of(lane, half, details.transposed);
        const auto element = static_cast<uint16_t>(values[lane] >> (16 * half));
        std::memcpy(rows[place.row] + 2 * place.column, &element, 2);
      }
    }
  }
}

// .sync.aligned{.m8n8}{.x1, .x2, .x4}{.trans}.shared.b16, with the numbers and the shape in either
// order.
std::unique_ptr<MatrixDetails> decode_form(Decoding& decoding, AccessKind kind) {
  auto details = std::make_unique<MatrixDetails>();
  details->access = {.space = Space::shared, .kind = kind};
  decoding.expect("sync");
  decoding.expect("aligned");
  decoding.accept("m8n8");
  details->count = 1 << decoding.choose({"x1", "x2", "x4"});
  decoding.accept("m8n8");
  details->transposed = decoding.accept("trans");
  details->access.space = decode_space(decoding);
  decoding.expect("b16");
  decoding.expect_operands(2);
  return details;
}

void decode_ldmatrix(Decoding& decoding) {
  auto details = decode_form(decoding, AccessKind::read);
  for (int i = 0; i < details->count; ++i) {
    const ptx::Operand& value = vector_element(decoding, 0, details->count, i);
    details->destinations[i] = decoding.destination(value, 4);
  }
  decode_address(decoding, 1, 0);
  decoding.into.run = run_ldmatrix;
  decoding.into.details = std::move(details);
}

void decode_stmatrix(Decoding& decoding) {
  auto details = decode_form(decoding, AccessKind::write);
  for (int i = 0; i < details->count; ++i) {
    const ptx::Operand& value = vector_element(decoding, 1, details->count, i);
    details->sources[i] = decoding.source(value, Type::b32);
  }
  decode_address(decoding, 0, 0);
  decoding.into.run = run_stmatrix;
  decoding.into.details = std::move(details);
}

constexpr Opcode kOpcodes[] = {{"ldmatrix", decode_ldmatrix}, {"stmatrix", decode_stmatrix}};

}  // namespace

std::span<const Opcode> matrix_opcodes() { return kOpcodes; }

}  // namespace abyssal::emulator

// From a warpgroup's sums to d in global memory.
//
// Three ways, chosen for each launch:
//   staged     BF16, beta 0: stmatrix into panels of shared memory in TMA's swizzle, one TMA store
//              a panel, which nobody waits for before the next tile's is due. TMA cuts off what is
//              beyond the tensor; where a group ends inside a tile, threads copy its rows instead.
//   direct     FP32, or beta 1: from registers. A thread's two neighbouring columns and its three
//              neighbours' make 32 bytes, a whole sector, of FP32.
//   reduced    K divided among the blocks of a cluster: FP32 sums to shared memory; each block adds
//              up a share of the rows of all, in the order of the ranks, and stores that.
#pragma once

#include "gemm/plan.cuh"
#include "gemm/scheduler.cuh"
#include "hopper/convert.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix.cuh"
#include "hopper/named_barrier.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

namespace abyssal::gemm {

// The matrix of d that a tile is in, and its rows there.
struct Destination {
  int plane;
  int row;     // of the tile's first row
  int rows;    // from there on that belong to the tile's group
  bool whole;  // TMA may store the tile: what it does not own is beyond the matrix

  template <int kTileM>
  static __device__ Destination of(const Params& params, const Tile& tile) {
    const bool own_plane =
        params.groups_are == Groups::masked or params.groups_are == Groups::depth;
    const int rows = tile.rows - tile.m;
    // Beyond the rows of a group lie those of the next, or rows that keep what they hold.
    const bool ends_inside =
        params.groups_are == Groups::rows or params.groups_are == Groups::masked;
    return {own_plane ? tile.group : 0, tile.row_begin + tile.m, rows,
            not ends_inside or rows >= kTileM};
  }
};

// Two neighbouring values of d, the first at an even column: stored, or added to what is there.
__device__ __forceinline__ void store_pair(const Params& params, int64_t index, float2 sum) {
  if (params.d_is_fp32) {
    auto* d = reinterpret_cast<float2*>(static_cast<float*>(params.d_values) + index);
    if (params.accumulate) {
      const float2 before = *d;
      sum = {__fadd_rn(before.x, sum.x), __fadd_rn(before.y, sum.y)};
    }
    *d = sum;
  } else {
    auto* d = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(params.d_values) + index);
    if (params.accumulate) {
      const uint32_t before = *d;
      sum = {__fadd_rn(hopper::bf16_to_fp32(before & 0xFFFF), sum.x),
             __fadd_rn(hopper::bf16_to_fp32(before >> 16), sum.y)};
    }
    *d = hopper::to_bf16x2(sum.x, sum.y);
  }
}

template <typename Plan>
class Epilogue {
 public:
  using Shared = typename Plan::Shared;
  using Sums = float[Plan::kWaves][Plan::kSums];

  // `part_m`, `part_n`: of the tile, where the warpgroup's part begins.
  __device__ Epilogue(Shared& shared, const Params& params, int warpgroup, int part_m, int part_n)
      : shared_(shared), params_(params), warpgroup_(warpgroup), part_m_(part_m), part_n_(part_n) {}

  __device__ void staged(const Tile& tile, const Sums& sums) const {
    const auto to = Destination::of<Plan::kM>(params_, tile);
    const int thread = hopper::thread_in_warpgroup();
    if (thread == 0) hopper::bulk_wait_read<0>();  // of the tile before
    synchronise();
    write_panels(thread, sums);
    if (to.whole) hopper::fence_proxy_async_shared();
    synchronise();
    if (not to.whole) {
      copy_rows(thread, tile, to);
    } else if (thread == 0) {
      store_panels(tile, to);
    }
  }

  __device__ void direct(const Tile& tile, const Sums& sums) const {
    const auto to = Destination::of<Plan::kM>(params_, tile);
    const int thread = hopper::thread_in_warpgroup();
#pragma unroll
    for (int wave = 0; wave < Plan::kWaves; ++wave) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = part_m_ + 64 * wave + hopper::accumulator_row(thread, 2 * half);
        if (row >= to.rows) continue;
        const int64_t line = to.plane * params_.d_plane + (to.row + row) * params_.d_stride;
#pragma unroll
        for (int i = 2 * half; i < Plan::kSums; i += 4) {
          const int column = tile.n + part_n_ + hopper::accumulator_column(thread, i);
          if (column < params_.n) {
            store_pair(params_, line + column, {sums[wave][i], sums[wave][i + 1]});
          }
        }
      }
    }
  }

  // A share of K: for `reduce`, after a barrier of the cluster.
  __device__ void keep(const Sums& sums) const {
    const int thread = hopper::thread_in_warpgroup();
#pragma unroll
    for (int i = 0; i < Plan::kSums; i += 2) {
      const int row = hopper::accumulator_row(thread, i);
      const int column = part_n_ + hopper::accumulator_column(thread, i);
      *reinterpret_cast<float2*>(&shared_.partials[row][column]) = {sums[0][i], sums[0][i + 1]};
    }
  }

  // All shares of K: this block's rows of the tile, of which it and its peers keep sums.
  __device__ void reduce(const Tile& tile) const {
    constexpr int kVectors = Plan::kN / 4;  // of a row
    const auto to = Destination::of<Plan::kM>(params_, tile);
    const int rows = Plan::kM / params_.split_k;
    const int first_row = static_cast<int>(hopper::cluster_rank()) * rows;
    for (int i = static_cast<int>(threadIdx.x); i < rows * kVectors; i += kConsumerThreads) {
      const int row = first_row + i / kVectors, column = 4 * (i % kVectors);
      if (row >= to.rows or tile.n + column >= params_.n) continue;
      float4 sum = peer_sums(row, column, 0);
      for (int rank = 1; rank < params_.split_k; ++rank) {
        const float4 more = peer_sums(row, column, rank);
        sum = {__fadd_rn(sum.x, more.x), __fadd_rn(sum.y, more.y), __fadd_rn(sum.z, more.z),
               __fadd_rn(sum.w, more.w)};
      }
      const int64_t index =
          to.plane * params_.d_plane + (to.row + row) * params_.d_stride + tile.n + column;
      store_pair(params_, index, {sum.x, sum.y});
      store_pair(params_, index + 2, {sum.z, sum.w});
    }
  }

  // Before the last tile's shared memory goes.
  __device__ void finish() const {
    if (hopper::thread_in_warpgroup() == 0) hopper::bulk_wait_read<0>();
  }

 private:
  static constexpr int kPieces = Plan::kPanelN / 8;  // of 16 bytes, in a panel's row

  // The warpgroup alone.
  __device__ void synchronise() const { hopper::named_barrier_sync(1 + warpgroup_, 128); }

  // Piece `piece` of row `row` of a panel: TMA's swizzle exchanges pieces within 128 bytes by the
  // number of the 128 bytes within 8 of them, as far as its width goes.
  __device__ uint8_t* piece_of(int panel, int row, int piece) const {
    const int line = row * kPieces / 8;
    return shared_.panels[warpgroup_][panel] + row * kPieces * 16 + (piece ^ line % kPieces) * 16;
  }

  __device__ float4 peer_sums(int row, int column, int rank) const {
    const uint32_t address = hopper::peer_address(&shared_.partials[row][column], rank);
    const uint4 bits = hopper::load_peer_16_bytes(address);
    return {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
            __uint_as_float(bits.w)};
  }

  __device__ void write_panels(int thread, const Sums& sums) const {
    const int lane = thread % 32;
    // A warp's stmatrix writes 16 rows x 16 columns: rows 0-7 and 8-15 of the first 8 columns,
    // then of the others.
    const int row_in_wave = thread / 32 * 16 + lane % 16;
#pragma unroll
    for (int wave = 0; wave < Plan::kWaves; ++wave) {
#pragma unroll
      for (int i = 0; i < Plan::kSums; i += 8) {
        const float* s = &sums[wave][i];
        const int piece = i / 4 + lane / 16;
        const uint32_t values[4] = {hopper::to_bf16x2(s[0], s[1]), hopper::to_bf16x2(s[2], s[3]),
                                    hopper::to_bf16x2(s[4], s[5]), hopper::to_bf16x2(s[6], s[7])};
        hopper::store_matrix(piece_of(piece / kPieces, 64 * wave + row_in_wave, piece % kPieces),
                             values);
      }
    }
  }

  __device__ void store_panels(const Tile& tile, const Destination& to) const {
#pragma unroll
    for (int panel = 0; panel < Plan::kPanels; ++panel) {
      const int column = tile.n + part_n_ + panel * Plan::kPanelN;
      if (column < params_.n and part_m_ < to.rows) {
        hopper::tma_store(&params_.d, shared_.panels[warpgroup_][panel],
                          {column, to.row + part_m_, to.plane});
      }
    }
    hopper::bulk_commit();
  }

  __device__ void copy_rows(int thread, const Tile& tile, const Destination& to) const {
    constexpr int kPiecesOfRow = Plan::kPartN / 8;
    auto* d = static_cast<uint16_t*>(params_.d_values) + to.plane * params_.d_plane;
    const int rows = min(to.rows - part_m_, Plan::kPartM);
    for (int i = thread; i < rows * kPiecesOfRow; i += 128) {
      const int row = i / kPiecesOfRow, piece = i % kPiecesOfRow;
      const int column = tile.n + part_n_ + 8 * piece;
      if (column < params_.n) {
        *reinterpret_cast<uint4*>(d + (to.row + part_m_ + row) * params_.d_stride + column) =
            *reinterpret_cast<const uint4*>(piece_of(piece / kPieces, row, piece % kPieces));
      }
    }
  }

  Shared& shared_;
  const Params& params_;
  const int warpgroup_, part_m_, part_n_;
};

}  // namespace abyssal::gemm

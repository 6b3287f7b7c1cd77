// FP8 matrix products with block scales, D = beta D + A B^T, dense and in groups.
//
//   A  [M, K] E4M3, a scale for each 1x128          D  [M, N] BF16 or FP32
//   B  [N, K] E4M3, a scale for each 128x128, or for each 1x128
//
//   partial = sum of 128 products along K, on tensor cores (four WGMMA of K = 32, 14 bits)
//   sums    = fma(partial, fl32(scale_a * scale_b), sums), on CUDA cores, in the order of K
//   D       = sums, or fl32(D + sums); BF16 rounds once more, to nearest even
//
// abyssal.reference.gemm(accumulate="hopper") states the same, and results equal it bit for bit.
// Source: DeepSeek-V3 report, section 3.3.2 (fine-grained quantisation, increased accumulation
// precision). Groups (fp8_gemm.hpp) are the experts of a layer: their rows, or their ranges of K.
//
// Tile and threads: 384 threads, one block a multiprocessor, which stays and takes tile after tile
//   (scheduler.cuh).
//     warpgroup 0, 1   consumers, 232 registers: each a half of the tile, in waves of 64 rows
//     warpgroup 2      producer, 40 registers: one thread of its first warp starts all loads
//
// Pipeline: a ring of stages in shared memory, each 128 of K: A's and B's codes as TMA lays them
//   with its 128-byte swizzle, the scales of the tile's rows and columns.
//
//     producer            empty[s] ->  loads into stage s  -> full[s]
//     consumer            full[s]  ->  WGMMA, wait -> empty[s] -> promote
//
//   A consumer waits for its own WGMMA; meanwhile the other's runs, or its promotion. The tensor
//   cores see two queues and are idle only where both promote.
//
// Clusters of two blocks share A (neighbours along N) or B (along M): each loads a half of it and
// sends it to both, so empty[s] counts the warps of both blocks. Clusters of more divide K among
// them where M is small (epilogue.cuh).

#include "gemm/epilogue.cuh"
#include "gemm/promote.cuh"
#include "hopper/copy_async.cuh"
#include "hopper/grid.cuh"
#include "hopper/warp.cuh"

namespace abyssal::gemm {
namespace {

template <typename Plan>
class Producer {
 public:
  __device__ Producer(typename Plan::Shared& shared, const Params& params)
      : shared_(shared), params_(params), rank_(static_cast<int>(hopper::cluster_rank())) {}

  // By one warp, of which one thread loads. The others may run ahead of it.
  __device__ void run() {
    const bool leader = hopper::elect_one();
    Scheduler<Plan::kM, Plan::kN> scheduler(params_);
    Tile tile;
    while (scheduler.next(tile)) {
      if (leader) load_tile(tile);
    }
    if (leader) hopper::launch_dependents();
  }

 private:
  __device__ void load_tile(const Tile& tile) {
    const bool planes = params_.groups_are == Groups::masked;
    const int a_plane = planes ? tile.group : 0;
    const int b_plane = planes or params_.groups_are == Groups::rows ? tile.group : 0;
    const int row = tile.row_begin + tile.m;
    for (int i = 0; i < tile.blocks; ++i, ring_.advance()) {
      const int block = tile.block_begin + i, stage = ring_.stage;
      hopper::Mbarrier* full = &shared_.full[stage];
      hopper::mbarrier_wait(&shared_.empty[stage], ring_.parity ^ 1);
      hopper::mbarrier_arrive_expect_tx(full, Plan::kStageBytes);
      load_codes<Share::a, Plan::kM>(shared_.a[stage], &params_.a, full, block, row, a_plane);
      load_codes<Share::b, Plan::kN>(shared_.b[stage], &params_.b, full, block, tile.n, b_plane);
      hopper::tma_load(shared_.scale_a[stage], &params_.scale_a, full, {row, block, a_plane});
      load_scales_of_b(tile.n, block, b_plane);
    }
  }

  // An operand's rows of the tile: whole, or this block's half for both of the cluster.
  template <Share kOperand, int kRows>
  __device__ void load_codes(uint8_t* shared, const hopper::TensorMap* map, hopper::Mbarrier* full,
                             int block, int row, int plane) const {
    constexpr int kHalf = kRows / 2;
    if (params_.share == kOperand) {
      hopper::tma_load_multicast(shared + rank_ * kHalf * kBlockK, map, full,
                                 {block * kBlockK, row + rank_ * kHalf, plane}, 3);
    } else {
      hopper::tma_load(shared, map, full, {block * kBlockK, row, plane});
    }
  }

  __device__ void load_scales_of_b(int column, int block, int plane) const {
    const int stage = ring_.stage;
    hopper::Mbarrier* full = &shared_.full[stage];
    if constexpr (Plan::kScaleB == ScaleB::row) {
      hopper::tma_load(shared_.scale_b[stage], &params_.scale_b, full, {column, block, plane});
    } else {
      const float* scales = params_.square_scale_b + plane * params_.square_scale_plane +
                            block * params_.square_scale_k;
#pragma unroll
      for (int i = 0; i < Plan::kScalesB; ++i) {
        // Of columns beyond the last, any scale does.
        const int n = min(column + i * kScaleColumns, params_.n - 1) / kBlockK;
        hopper::copy_async_4_bytes(&shared_.scale_b[stage][i], scales + n * params_.square_scale_n);
      }
      hopper::copy_async_arrive(full);
    }
  }

  typename Plan::Shared& shared_;
  const Params& params_;
  const int rank_;
  Ring<Plan::kStages> ring_;
};

template <typename Plan>
class Consumer {
 public:
  using Sums = typename Epilogue<Plan>::Sums;

  __device__ Consumer(typename Plan::Shared& shared, const Params& params, int warpgroup)
      : shared_(shared),
        params_(params),
        part_m_(Plan::kDividesN ? 0 : warpgroup * Plan::kPartM),
        part_n_(Plan::kDividesN ? warpgroup * Plan::kPartN : 0),
        epilogue_(shared, params, warpgroup, part_m_, part_n_) {}

  __device__ void run() {
    Scheduler<Plan::kM, Plan::kN> scheduler(params_);
    Tile tile;
    while (scheduler.next(tile)) {
      Sums sums = {};
      for (int i = 0; i < tile.blocks; ++i, ring_.advance()) add_block(tile, sums);
      if (Plan::kDividesK and params_.split_k > 1) {
        // The only tile of this cluster. The producers are at the barrier, too.
        epilogue_.keep(sums);
        hopper::cluster_sync();
        epilogue_.reduce(tile);
      } else if (params_.d_is_fp32 or params_.accumulate) {
        epilogue_.direct(tile, sums);
      } else {
        epilogue_.staged(tile, sums);
      }
    }
    epilogue_.finish();
  }

 private:
  using ScalesB =
      std::conditional_t<Plan::kScaleB == ScaleB::square, SquareScales<Plan>, ColumnScales<Plan>>;

  // The products of one stage.
  __device__ void add_block(const Tile& tile, Sums& sums) const {
    // 128x128 scales are in registers by the time of the last promotion, 1x128 are not.
    constexpr bool kReleasesEarly = Plan::kScaleB == ScaleB::square;
    const int stage = ring_.stage;
    hopper::mbarrier_wait(&shared_.full[stage], ring_.parity);
    const ScalesB scale_b(shared_.scale_b[stage], part_n_);
#pragma unroll
    for (int wave = 0; wave < Plan::kWaves; ++wave) {
      const int row = part_m_ + 64 * wave;
      const bool has_rows = tile.m + row < tile.rows;
      const RowScales scale_a = load_row_scales(shared_.scale_a[stage] + row);
      float partial[Plan::kSums];
      if (has_rows) multiply(stage, row, partial);
      if (kReleasesEarly and wave == Plan::kWaves - 1) release();
      if (has_rows) scale_b.promote(partial, scale_a, sums[wave]);
    }
    if (not kReleasesEarly) release();
  }

  __device__ void multiply(int stage, int row, float (&partial)[Plan::kSums]) const {
    hopper::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK; k += hopper::kWgmmaK<hopper::E4m3>) {
      hopper::wgmma<Plan::kPartN, hopper::E4m3>(
          partial, Plan::TileA::descriptor(shared_.a[stage], row, k),
          Plan::TileB::descriptor(shared_.b[stage], part_n_, k), k > 0);
    }
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();
    hopper::pin_registers(partial);
  }

  // As far as this warp goes, the stage may be overwritten by all blocks that write it.
  __device__ void release() const {
    __syncwarp();
    const uint32_t lane = threadIdx.x % 32;
    if (params_.share != Share::none) {
      if (lane < 2) {
        hopper::mbarrier_arrive_remote<hopper::Scope::cta>(&shared_.empty[ring_.stage], lane);
      }
    } else if (lane == 0) {
      hopper::mbarrier_arrive(&shared_.empty[ring_.stage]);
    }
  }

  typename Plan::Shared& shared_;
  const Params& params_;
  const int part_m_, part_n_;
  const Epilogue<Plan> epilogue_;
  Ring<Plan::kStages> ring_;
};

template <typename Plan>
__device__ void initialise(typename Plan::Shared& shared, const Params& params) {
  if (threadIdx.x == 0) {
    const uint32_t blocks = params.share == Share::none ? 1 : 2;
    for (int stage = 0; stage < Plan::kStages; ++stage) {
      hopper::mbarrier_init(&shared.full[stage], Plan::kFullArrivals);
      hopper::mbarrier_init(&shared.empty[stage], blocks * kConsumerWarps);
    }
    hopper::fence_mbarrier_init();
  }
  hopper::cluster_meet();
}

template <typename Plan>
__device__ void multiply_matrices(const Params& params) {
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  auto& shared = *reinterpret_cast<typename Plan::Shared*>(shared_memory);
  initialise<Plan>(shared, params);
  hopper::wait_for_prior_grids();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == kConsumers) {
    hopper::release_registers<40>();
    if (threadIdx.x < kConsumerThreads + 32) Producer<Plan>(shared, params).run();
    __syncwarp();  // before what a warp does together
    if (Plan::kDividesK and params.split_k > 1) hopper::cluster_meet();
    // No block ends while a peer may reach into it: who has exited counts as arrived.
    hopper::cluster_meet();
  } else {
    hopper::acquire_registers<232>();
    Consumer<Plan>(shared, params, warpgroup).run();
  }
}

}  // namespace
}  // namespace abyssal::gemm

#define X(name, m, n, stages, scale_b)                                     \
  extern "C" __global__ void __launch_bounds__(abyssal::gemm::kThreads, 1) \
      name(const __grid_constant__ abyssal::gemm::Params params) {         \
    using namespace abyssal::gemm;                                         \
    multiply_matrices<Plan<m, n, stages, ScaleB::scale_b>>(params);        \
  }
ABYSSAL_FP8_GEMMS(X)
#undef X

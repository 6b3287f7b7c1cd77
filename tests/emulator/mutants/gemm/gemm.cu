// A product of matrices with every kind of hand-over that a Hopper GEMM has, small enough to be run
// hundreds of times: the subject of mutation testing.
//
// c [m, 64] = a [m, k] b [64, k]^T in E4M3, FP32 sums rounded to BF16. A cluster of two blocks
// works on two tiles of 64 rows at a time and reads b once, by multicast; warp 4 of each block
// copies, warps 0 to 3 multiply. The results leave by way of shared memory. A second kernel adds
// the parts of a split K, the last block to come for each tile.

#include "hopper/atomic.cuh"
#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/named_barrier.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kRows = 64, kColumns = 64, kDepth = 64, kStages = 2;
using Tile = OperandTile<Major::k, Swizzle::b64, 64, kDepth, 1>;

struct Shared {
  alignas(1024) uint8_t a[kStages][Tile::kBytes];
  alignas(1024) uint8_t b[kStages][Tile::kBytes];
  alignas(1024) uint32_t c[kRows][kColumns / 2];
  Mbarrier full[kStages], empty[kStages];
};

// Half of b's tile for both blocks, a's tile for this one.
__device__ void produce(Shared& shared, const TensorMap* a, const TensorMap* b, int tiles,
                        int steps) {
  const int rank = static_cast<int>(cluster_rank());
  int round = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int step = 0; step < steps; ++step, ++round) {
      const int stage = round % kStages;
      mbarrier_wait(&shared.empty[stage], round / kStages % 2 ^ 1);
      mbarrier_arrive_expect_tx(&shared.full[stage], 2 * Tile::kBytes);
      tma_load(shared.a[stage], a, &shared.full[stage], {step * kDepth, tile * kRows});
      tma_load_multicast(shared.b[stage] + rank * Tile::kBytes / 2, b, &shared.full[stage],
                         {step * kDepth, rank * kColumns / 2}, 3);
    }
  }
}

__device__ void consume(Shared& shared, const TensorMap* c, int tiles, int steps) {
  const int thread = static_cast<int>(threadIdx.x);
  int round = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[kColumns / 2] = {};
    for (int step = 0; step < steps; ++step, ++round) {
      const int stage = round % kStages;
      mbarrier_wait(&shared.full[stage], round / kStages % 2);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth; k += kWgmmaK<E4m3>) {
        wgmma<kColumns, E4m3>(sums, Tile::descriptor(shared.a[stage], 0, k),
                              Tile::descriptor(shared.b[stage], 0, k), true);
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin_registers(sums);
      // Both blocks write half of this stage.
      if (thread < 2) mbarrier_arrive_remote<Scope::cta>(&shared.empty[stage], thread);
    }
    if (thread == 0) bulk_wait_read<0>();
    named_barrier_sync(1, 128);
#pragma unroll
    for (int i = 0; i < kColumns / 2; i += 2) {
      const uint32_t low = __float_as_uint(sums[i]) >> 16, high = __float_as_uint(sums[i + 1]);
      shared.c[accumulator_row(thread, i)][accumulator_column(thread, i) / 2] =
          low | (high & 0xFFFF0000);
    }
    fence_proxy_async_shared();
    named_barrier_sync(1, 128);
    if (thread == 0) {
      tma_store(c, shared.c, {0, tile * kRows});
      bulk_commit();
    }
  }
  if (thread == 0) bulk_wait_read<0>();
}

}  // namespace

// tiles: a multiple of the cluster's 2. steps: of 64 of K. 160 threads.
extern "C" __global__ void __launch_bounds__(160)
    gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
         const __grid_constant__ TensorMap c, int tiles, int steps) {
  __shared__ Shared shared;
  if (threadIdx.x == 128) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.empty[stage], 2);  // one arrival a block
      mbarrier_init(&shared.full[stage], 1);
    }
    fence_mbarrier_init();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    consume(shared, &c, tiles, steps);
  } else if (threadIdx.x == 128) {
    produce(shared, &a, &b, tiles, steps);
  }
  cluster_sync();  // no block exits while another copies into it
}

// out [columns] = the sum over parts of part [parts, columns], which block (x, y) computes: the
// values of in [parts, columns], plus 1. The last of the blocks of a column adds them. counters
// [columns / 32]: 0 before. 64 threads, of which the first warp works and the second adds.
extern "C" __global__ void split_sum(const int* in, int* parts, uint32_t* counters, int* out) {
  __shared__ uint32_t before;
  __shared__ int partial[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, columns = static_cast<int>(gridDim.x) * 32;
  const int column = static_cast<int>(blockIdx.x) * 32 + lane;
  const int blocks = static_cast<int>(gridDim.y);
  if (threadIdx.x < 32) {
    parts[blockIdx.y * columns + column] = in[blockIdx.y * columns + column] + 1;
    __syncwarp();
    if (lane == 0) before = fetch_add<Scope::gpu>(&counters[blockIdx.x], 1);
    __syncwarp();
    if (before + 1 == gridDim.y) {
      int sum = 0;
      for (int i = 0; i < blocks; ++i) sum += parts[i * columns + column];
      partial[31 - lane] = sum;
    }
    named_barrier_arrive(2, 64);
  } else {
    named_barrier_sync(2, 64);
    if (before + 1 == gridDim.y) out[column] = partial[31 - lane];
  }
}

// Bugs between the blocks of a cluster, and of barriers in general.

#include "planted.cuh"

namespace {

// Each block reads the values of its peer. What is wrong, if anything:
enum class Peers { right, no_barrier, relaxed_barrier, exits };

template <Peers kWrong>
__device__ void read_peer(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t values[64];
  const int thread = thread_index();
  values[thread] = in[global_index()];  // FAULT read_peer
  if constexpr (kWrong == Peers::relaxed_barrier) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else if constexpr (kWrong != Peers::no_barrier) {
    cluster_sync();
  }
  // FAULT read_peer
  out[global_index()] = load_peer(peer_address(&values[63 - thread], cluster_rank() ^ 1));
  if constexpr (kWrong != Peers::exits) cluster_sync();
}

#define PEERS(name, wrong)                                       \
  template <bool kPlanted>                                       \
  __device__ void name##_of(const uint32_t* in, uint32_t* out) { \
    read_peer<kPlanted ? Peers::wrong : Peers::right>(in, out);  \
  }
PEERS(peer_unordered, no_barrier)
PEERS(peer_relaxed, relaxed_barrier)
PEERS(peer_exits, exits)

// A value for the peer, with an arrival there. Planted: the wait acquires from the block alone.
template <bool kPlanted>
__device__ void wait_of_block_of(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t value;
  __shared__ Mbarrier arrived;
  make_barrier(&arrived, 1);
  cluster_sync();
  const uint32_t peer = cluster_rank() ^ 1;
  if (threadIdx.x == 0) {
    store_peer(peer_address(&value, peer), in[blockIdx.x]);  // FAULT wait_of_block
    mbarrier_arrive_remote(&arrived, peer);
  }
  mbarrier_wait<kPlanted ? Scope::cta : Scope::cluster>(&arrived, 0);
  out[global_index()] = value;  // FAULT wait_of_block
  cluster_sync();
}

// Planted: the arrival comes before the value.
template <bool kPlanted>
__device__ void arrives_at_peer_too_early_of(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t value;
  __shared__ Mbarrier arrived;
  make_barrier(&arrived, 1);
  cluster_sync();
  const uint32_t peer = cluster_rank() ^ 1;
  if (threadIdx.x == 0) {
    const uint32_t mine = in[blockIdx.x];
    if constexpr (kPlanted) mbarrier_arrive_remote(&arrived, peer);
    store_peer(peer_address(&value, peer), mine);  // FAULT arrives_at_peer_too_early
    if constexpr (not kPlanted) mbarrier_arrive_remote(&arrived, peer);
  }
  mbarrier_wait<Scope::cluster>(&arrived, 0);
  out[global_index()] = value;  // FAULT arrives_at_peer_too_early
  cluster_sync();
}

// Planted: a peer's mbarrier is used before the cluster has met.
template <bool kPlanted>
__device__ void peer_not_ready_of(uint32_t* out) {
  __shared__ Mbarrier arrived;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if constexpr (not kPlanted) cluster_sync();
  if (threadIdx.x == 0)
    mbarrier_arrive_remote(&arrived, cluster_rank() ^ 1);  // FAULT peer_not_ready
  mbarrier_wait<Scope::cluster>(&arrived, 0);
  out[global_index()] = 1;
  cluster_sync();
}

// Planted: a peer's memory is written, though the peer may not have begun.
template <bool kPlanted>
__device__ void peer_not_started_of(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t values[64];
  const int thread = thread_index();
  if constexpr (not kPlanted) cluster_sync();
  // FAULT peer_not_started
  store_peer(peer_address(&values[63 - thread], cluster_rank() ^ 1), in[global_index()]);
  cluster_sync();
  out[global_index()] = values[thread];
}

// Tiles for both blocks by multicast from the first, one buffer. Planted: the first block waits
// until it has read the buffer itself, and not for its peer.
template <bool kPlanted>
__device__ void multicast_of(const uint32_t* in, int tiles, uint32_t* out) {
  __shared__ alignas(128) uint32_t tile[64];
  __shared__ Mbarrier full, empty;
  make_barrier(&full, 1);
  make_barrier(&empty, kPlanted ? 1 : 2);
  cluster_sync();
  const uint32_t rank = cluster_rank();
  for (int i = 0; i < tiles; ++i) {
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect_tx(&full, sizeof(tile));
      // The announcements of both blocks come first, so that `empty` can count them.
      if (rank == 0) {
        if (i > 0) mbarrier_wait<Scope::cluster>(&empty, (i - 1) % 2);
        bulk_load_multicast(tile, in + i * 64, sizeof(tile), &full, 3);  // FAULT multicast
      }
    }
    mbarrier_wait(&full, i % 2);
    out[(rank * tiles + i) * 64 + thread_index()] = tile[thread_index()];  // FAULT multicast
    __syncthreads();
    if (threadIdx.x == 0 and (not kPlanted or rank == 0)) mbarrier_arrive_remote(&empty, 0);
  }
  cluster_sync();
}

// Planted: half a warp comes to the barrier.
template <bool kPlanted>
__device__ void divergent_barrier_of(const int* in, int* out) {
  __shared__ int values[64];
  const int thread = thread_index();
  values[thread] = in[thread];
  if constexpr (kPlanted) {
    if (thread % 32 < 16) {
      asm volatile("barrier.sync.aligned 0;" ::: "memory");  // FAULT divergent_barrier
      out[thread] = values[63 - thread];
    } else {
      asm volatile("barrier.sync.aligned 0;" ::: "memory");  // FAULT divergent_barrier
      out[thread] = values[63 - thread] + 1 - 1;
    }
  } else {
    __syncthreads();
    out[thread] = values[63 - thread];
  }
}

// Planted: lanes that are named in the mask do not take part.
template <bool kPlanted>
__device__ void lanes_missing_of(const int* in, int* out) {
  const int thread = thread_index();
  int value = in[thread];
  if (not kPlanted or thread != 5) {
    value = __shfl_xor_sync(0xFFFFFFFF, value, 1);  // FAULT lanes_missing
  } else {
    asm volatile("exit;");
  }
  out[thread] = value;
}

// Planted: some warps leave and the others wait for them, at a barrier for all.
template <bool kPlanted>
__device__ void waits_for_too_many_of(const int* in, int* out) {
  const int thread = thread_index();
  out[thread] = in[thread];
  if (thread >= 64) return;
  named_barrier_sync(1, kPlanted ? 96 : 64);  // FAULT waits_for_too_many
}

// Two warps, two barriers. Planted: they wait in opposite order.
template <bool kPlanted>
__device__ void opposite_order_of(const int* in, int* out) {
  const int thread = thread_index();
  const bool turned = kPlanted and thread < 32;
  named_barrier_sync(turned ? 2 : 1, 64);  // FAULT opposite_order
  named_barrier_sync(turned ? 1 : 2, 64);  // FAULT opposite_order
  out[thread] = in[thread];
}

// Planted: the mbarrier expects one arrival more than comes.
template <bool kPlanted>
__device__ void arrival_missing_of(const int* in, int* out) {
  __shared__ Mbarrier met;
  make_barrier(&met, kPlanted ? 65 : 64);
  mbarrier_arrive(&met);
  mbarrier_wait(&met, 0);  // FAULT arrival_missing
  out[thread_index()] = in[thread_index()];
}

// Planted: more threads come to a named barrier than it was said to wait for.
template <bool kPlanted>
__device__ void named_barrier_overrun_of(const int* in, int* out) {
  const int thread = thread_index();
  if (thread < (kPlanted ? 96 : 64)) {
    named_barrier_arrive(1, 96);                                // FAULT named_barrier_overrun
    if (kPlanted and thread < 32) named_barrier_arrive(1, 64);  // FAULT named_barrier_overrun
  } else if (thread < 96) {
    named_barrier_sync(1, 96);  // FAULT named_barrier_overrun
  }
  out[thread] = in[thread];
}

// Planted: a number of threads that is not one of whole warps.
template <bool kPlanted>
__device__ void part_of_a_warp_of(const int* in, int* out) {
  out[thread_index()] = in[thread_index()];
  named_barrier_sync(1, kPlanted ? 50 : 64);  // FAULT part_of_a_warp
}

// Planted: the cluster's barrier is waited at without an arrival.
template <bool kPlanted>
__device__ void cluster_wait_alone_of(const int* in, int* out) {
  if constexpr (not kPlanted) cluster_arrive();
  cluster_wait();  // FAULT cluster_wait_alone
  out[global_index()] = in[global_index()];
}

// Planted: together the warpgroups take more registers than the block has.
template <bool kPlanted>
__device__ void too_many_registers_of(const int* in, int* out) {
  if (threadIdx.x < 128) {
    release_registers<kPlanted ? 152 : 40>();
  } else {
    acquire_registers<216>();  // FAULT too_many_registers
  }
  out[thread_index()] = in[thread_index()];
}

}  // namespace

#define PEER(name) PAIR(name, (const uint32_t* in, uint32_t* out), in, out)
#define SIMPLE(name) PAIR(name, (const int* in, int* out), in, out)

PEER(peer_unordered)
PEER(peer_relaxed)
PEER(peer_exits)
PEER(wait_of_block)
PEER(arrives_at_peer_too_early)
PEER(peer_not_started)
PAIR(peer_not_ready, (uint32_t* out), out)
PAIR(multicast, (const uint32_t* in, int tiles, uint32_t* out), in, tiles, out)
SIMPLE(divergent_barrier)
SIMPLE(lanes_missing)
SIMPLE(waits_for_too_many)
SIMPLE(opposite_order)
SIMPLE(arrival_missing)
SIMPLE(named_barrier_overrun)
SIMPLE(part_of_a_warp)
SIMPLE(cluster_wait_alone)

extern "C" __global__ void __launch_bounds__(384, 1) too_many_registers(const int* in, int* out) {
  too_many_registers_of<false>(in, out);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    too_many_registers_planted(const int* in, int* out) {
  too_many_registers_of<true>(in, out);
}

// Clusters: ranks, each other's shared memory, remote arrivals.

#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"

using namespace abyssal::hopper;

// out [blocks, 2]: rank in the cluster and the cluster's size.
extern "C" __global__ void cluster_ranks(uint32_t* out) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x * 2] = cluster_rank();
  out[blockIdx.x * 2 + 1] = cluster_size();
}

// Each block reads the values of the next block of its cluster: words, then pieces of 16 bytes.
// in [blocks, 128] -> words [blocks, 128], pieces [blocks, 128]. 128 threads.
extern "C" __global__ void cluster_load(const uint32_t* in, uint32_t* words, uint32_t* pieces) {
  __shared__ alignas(16) uint32_t shared[128];
  const int at = static_cast<int>(blockIdx.x * 128 + threadIdx.x);
  shared[threadIdx.x] = in[at];
  cluster_sync();
  const uint32_t next = (cluster_rank() + 1) % cluster_size();
  words[at] = load_peer(peer_address(&shared[threadIdx.x], next));
  if (threadIdx.x < 32) {
    const uint4 piece = load_peer_16_bytes(peer_address(&shared[4 * threadIdx.x], next));
    reinterpret_cast<uint4*>(pieces)[blockIdx.x * 32 + threadIdx.x] = piece;
  }
  cluster_sync();  // no block exits while another reads it
}

// Each block writes its values into the previous block: words, pieces of 16 bytes, and words that
// count on an mbarrier. in [blocks, 128] -> words, pieces, counted [blocks, 128]. 128 threads.
extern "C" __global__ void cluster_store(const uint32_t* in, uint32_t* words, uint32_t* pieces,
                                         uint32_t* counted) {
  __shared__ alignas(16) uint32_t shared[3][128];
  __shared__ Mbarrier barrier;
  const int at = static_cast<int>(blockIdx.x * 128 + threadIdx.x);
  const uint32_t previous = (cluster_rank() + cluster_size() - 1) % cluster_size();
  if (threadIdx.x == 0) {
    mbarrier_init(&barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(&barrier, 128 * 4);
  }
  cluster_sync();  // every block has started and has its barrier
  store_peer(peer_address(&shared[0][threadIdx.x], previous), in[at]);
  if (threadIdx.x < 32) {
    store_peer_16_bytes(peer_address(&shared[1][4 * threadIdx.x], previous),
                        reinterpret_cast<const uint4*>(in)[blockIdx.x * 32 + threadIdx.x]);
  }
  store_peer_async(peer_address(&shared[2][threadIdx.x], previous), in[at],
                   peer_address(&barrier, previous));
  mbarrier_wait<Scope::cluster>(&barrier, 0);
  counted[at] = shared[2][threadIdx.x];
  cluster_sync();
  words[at] = shared[0][threadIdx.x];
  pieces[at] = shared[1][threadIdx.x];
}

// A token goes round the cluster `rounds` times: each block adds its number + 1 and hands it on by
// a store into the next block and an arrival there. out [blocks]: the token as each block saw it
// last.
extern "C" __global__ void cluster_token(int rounds, uint32_t* out) {
  __shared__ uint32_t token;
  __shared__ Mbarrier arrived;
  const uint32_t rank = cluster_rank(), size = cluster_size(), next = (rank + 1) % size;
  if (threadIdx.x == 0) {
    token = 0;
    mbarrier_init(&arrived, 1);
    fence_mbarrier_init();
  }
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    if (rank == 0) mbarrier_arrive(&arrived);  // the first has it to begin with
    for (int round = 0; round < rounds; ++round) {
      mbarrier_wait<Scope::cluster>(&arrived, round % 2);
      const uint32_t value = token + rank + 1;
      out[rank] = value;
      if (round + 1 < rounds or rank + 1 < size) {
        store_peer(peer_address(&token, next), value);
        mbarrier_arrive_remote(&arrived, next);
      }
    }
  }
  cluster_sync();
}

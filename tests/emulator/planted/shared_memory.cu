// Bugs in the use of shared memory by threads of a block.

#include "planted.cuh"

namespace {

// Lanes hand values to their neighbours in the warp. Planted: no __syncwarp.
template <bool kPlanted>
__device__ void race_in_warp_of(const int* in, int* out) {
  __shared__ int values[32];
  const int thread = thread_index();
  values[thread] = in[thread];  // FAULT race_in_warp
  if constexpr (not kPlanted) __syncwarp();
  out[thread] = values[31 - thread];  // FAULT race_in_warp
}

// Values go from warp to warp. Planted: __syncwarp is not enough.
template <bool kPlanted>
__device__ void race_between_warps_of(const int* in, int* out) {
  __shared__ int values[128];
  const int thread = thread_index();
  values[thread] = in[thread];  // FAULT race_between_warps
  if constexpr (kPlanted) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[thread] = values[127 - thread];  // FAULT race_between_warps
}

// A buffer used again. Planted: nothing says that all have read.
template <bool kPlanted>
__device__ void buffer_reused_of(const int* in, int* out) {
  __shared__ int values[128];
  const int thread = thread_index();
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    values[thread] = in[round * 128 + thread];  // FAULT buffer_reused
    __syncthreads();
    sum += values[(thread + 37) % 128];  // FAULT buffer_reused
    if constexpr (not kPlanted) __syncthreads();
  }
  out[thread] = sum;
}

// One result of a block. Planted: each warp's lane 0 stores it.
template <bool kPlanted>
__device__ void two_writers_of(const int* in, int* out) {
  __shared__ int result;
  const int thread = thread_index();
  if (kPlanted ? thread % 32 == 0 : thread == 0) {
    result = in[0] + thread / 32 * 0;  // FAULT two_writers
  }
  __syncthreads();
  out[thread] = result;
}

// A histogram. Planted: the increments are not atomic.
template <bool kPlanted>
__device__ void histogram_of(const int* in, int* out) {
  __shared__ int bins[16];
  const int thread = thread_index();
  if (thread < 16) bins[thread] = 0;
  __syncthreads();
  if constexpr (kPlanted) {
    bins[in[thread] & 15] += 1;  // FAULT histogram
  } else {
    atomicAdd(&bins[in[thread] & 15], 1);
  }
  __syncthreads();
  if (thread < 16) out[thread] = bins[thread];
}

// A sum by atomic additions. Planted: it is read before the other warps have added.
template <bool kPlanted>
__device__ void sum_read_early_of(const int* in, int* out) {
  __shared__ int sum;
  const int thread = thread_index();
  if (thread == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, in[thread]);  // FAULT sum_read_early
  if constexpr (not kPlanted) __syncthreads();
  out[thread] = sum;  // FAULT sum_read_early
}

// Three of four warps meet at a named barrier. Planted: the one that writes is not among them.
template <bool kPlanted>
__device__ void barrier_of_too_few_of(const int* in, int* out) {
  __shared__ int values[32];
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  if (warp == 0) values[lane] = in[lane];  // FAULT barrier_of_too_few
  if (warp != (kPlanted ? 0 : 3)) named_barrier_sync(1, 96);
  if (warp == 1 or warp == 2) out[thread_index() - 32] = values[lane];  // FAULT barrier_of_too_few
}

// Two buffers behind two named barriers. Planted: the reader waits at the other buffer's.
template <bool kPlanted>
__device__ void other_barrier_of(const int* in, int* out) {
  __shared__ int values[2][32];
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  if (warp == 0) {
    values[0][lane] = in[lane];
    named_barrier_arrive(1, 64);
    values[1][lane] = in[32 + lane];  // FAULT other_barrier
    named_barrier_arrive(2, 64);
  } else {
    named_barrier_sync(1, 64);
    if constexpr (not kPlanted) named_barrier_sync(2, 64);
    out[lane] = values[0][lane] + values[1][lane];  // FAULT other_barrier
    if constexpr (kPlanted) named_barrier_sync(2, 64);
  }
}

// An mbarrier says that values are there. Planted: the arrival comes before the store.
template <bool kPlanted>
__device__ void arrives_too_early_of(const int* in, int* out) {
  __shared__ int values[64];
  __shared__ Mbarrier written;
  make_barrier(&written, 64);
  const int thread = thread_index();
  if (thread < 64) {
    if constexpr (kPlanted) mbarrier_arrive(&written);
    values[thread] = in[thread];  // FAULT arrives_too_early
    if constexpr (not kPlanted) mbarrier_arrive(&written);
  } else {
    mbarrier_wait(&written, 0);
    out[thread - 64] = values[thread - 64];  // FAULT arrives_too_early
  }
}

// Planted: the mbarrier expects one arrival less than comes.
template <bool kPlanted>
__device__ void one_arrival_less_of(const int* in, int* out) {
  __shared__ int values[64];
  __shared__ Mbarrier written;
  make_barrier(&written, kPlanted ? 63 : 64);
  const int thread = thread_index();
  if (thread < 64) {
    values[thread] = in[thread];  // FAULT one_arrival_less
    mbarrier_arrive(&written);
  } else {
    mbarrier_wait(&written, 0);
    out[thread - 64] = values[thread - 64];  // FAULT one_arrival_less
  }
}

// Planted: the arrival is relaxed and hands nothing over.
template <bool kPlanted>
__device__ void relaxed_arrival_of(const int* in, int* out) {
  __shared__ int values[64];
  __shared__ Mbarrier written;
  make_barrier(&written, 64);
  const int thread = thread_index();
  if (thread < 64) {
    values[thread] = in[thread];  // FAULT relaxed_arrival
    if constexpr (kPlanted) {
      asm volatile(
          "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(&written))
          : "memory");
    } else {
      mbarrier_arrive(&written);
    }
  } else {
    mbarrier_wait(&written, 0);
    out[thread - 64] = values[thread - 64];  // FAULT relaxed_arrival
  }
}

// One lane waits for the mbarrier, for its warp. Planted: the others do not wait for the lane.
template <bool kPlanted>
__device__ void one_lane_waits_of(const int* in, int* out) {
  __shared__ int values[32];
  __shared__ Mbarrier written;
  make_barrier(&written, 32);
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  if (warp == 0) {
    values[lane] = in[lane];  // FAULT one_lane_waits
    mbarrier_arrive(&written);
  } else {
    if (lane == 0) mbarrier_wait(&written, 0);
    if constexpr (not kPlanted) __syncwarp();
    out[lane] = values[31 - lane];  // FAULT one_lane_waits
  }
}

// Rounds over one mbarrier. Planted: the parity does not change.
template <bool kPlanted>
__device__ void wrong_parity_of(const int* in, int* out) {
  __shared__ int values[32];
  __shared__ Mbarrier written, read;
  make_barrier(&written, 32);
  make_barrier(&read, 32);
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  for (int round = 0; round < 3; ++round) {
    if (warp == 0) {
      if (round > 0) mbarrier_wait(&read, (round - 1) % 2);  // FAULT wrong_parity
      values[lane] = in[round * 32 + lane];                  // FAULT wrong_parity
      mbarrier_arrive(&written);
    } else {
      mbarrier_wait(&written, kPlanted ? 0 : round % 2);  // FAULT wrong_parity
      out[round * 32 + lane] = values[31 - lane];         // FAULT wrong_parity
      mbarrier_arrive(&read);
    }
  }
}

// Planted: one element of the tile is left out.
template <bool kPlanted>
__device__ void shared_uninitialised_of(const int* in, int* out) {
  __shared__ int values[64];
  const int thread = thread_index();
  if (not kPlanted or thread != 17) values[thread] = in[thread];
  __syncthreads();
  out[thread] = values[63 - thread];  // FAULT shared_uninitialised
}

// Planted: bytes 2 and 3 of each word are left out.
template <bool kPlanted>
__device__ void half_words_uninitialised_of(const int* in, int* out) {
  __shared__ alignas(4) uint16_t halves[64];
  const int thread = thread_index();
  halves[2 * thread] = static_cast<uint16_t>(in[thread]);
  if constexpr (not kPlanted) halves[2 * thread + 1] = static_cast<uint16_t>(in[thread] >> 16);
  __syncthreads();
  const auto* word = reinterpret_cast<const volatile int*>(halves + 2 * thread);
  out[thread] = *word;  // FAULT half_words_uninitialised
}

// Planted: the last thread reads one element too far.
template <bool kPlanted>
__device__ void shared_out_of_bounds_of(const int* in, int* out) {
  extern __shared__ int dynamic[];
  const int thread = thread_index();
  dynamic[thread] = in[thread];
  __syncthreads();
  out[thread] = dynamic[kPlanted ? thread + 1 : thread];  // FAULT shared_out_of_bounds
}

// Planted: a vector of 16 bytes at a multiple of 8.
template <bool kPlanted>
__device__ void misaligned_of(const int* in, int* out) {
  __shared__ alignas(16) int values[132];
  const int thread = thread_index();
  values[thread] = in[thread];
  values[100 + thread] = 0;
  __syncthreads();
  const int at = kPlanted ? 4 * (thread % 8) + 2 : 4 * (thread % 8);
  const int4 four = *reinterpret_cast<const int4*>(values + at);  // FAULT misaligned
  out[thread] = four.x + four.y + four.z + four.w;
}

}  // namespace

PAIR(race_in_warp, (const int* in, int* out), in, out)
PAIR(race_between_warps, (const int* in, int* out), in, out)
PAIR(buffer_reused, (const int* in, int* out), in, out)
PAIR(two_writers, (const int* in, int* out), in, out)
PAIR(histogram, (const int* in, int* out), in, out)
PAIR(sum_read_early, (const int* in, int* out), in, out)
PAIR(barrier_of_too_few, (const int* in, int* out), in, out)
PAIR(other_barrier, (const int* in, int* out), in, out)
PAIR(arrives_too_early, (const int* in, int* out), in, out)
PAIR(one_arrival_less, (const int* in, int* out), in, out)
PAIR(relaxed_arrival, (const int* in, int* out), in, out)
PAIR(one_lane_waits, (const int* in, int* out), in, out)
PAIR(wrong_parity, (const int* in, int* out), in, out)
PAIR(shared_uninitialised, (const int* in, int* out), in, out)
PAIR(half_words_uninitialised, (const int* in, int* out), in, out)
PAIR(shared_out_of_bounds, (const int* in, int* out), in, out)
PAIR(misaligned, (const int* in, int* out), in, out)

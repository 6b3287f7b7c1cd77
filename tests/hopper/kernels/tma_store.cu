// TMA stores: bytes are put into shared memory as they lie in `image`, and stored as a box.

#include "hopper/fence.cuh"
#include "hopper/tma.cuh"

using namespace abyssal::hopper;

namespace {

constexpr int kMostBytes = 32768;

// All copy `image` to shared memory and fence; then thread 0 stores by `store(box)`.
template <typename Store>
__device__ void fill_and_store(const uint32_t* image, int bytes, Store store) {
  __shared__ alignas(1024) uint32_t box[kMostBytes / 4];
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) box[i] = image[i];
  fence_proxy_async_shared();  // by each writer, before the barrier
  __syncthreads();
  if (threadIdx.x == 0) {
    store(box);
    bulk_commit();
    bulk_wait<0>();
  }
}

}  // namespace

extern "C" __global__ void tma_store_1d(const __grid_constant__ TensorMap map, int x, int bytes,
                                        const uint32_t* image) {
  fill_and_store(image, bytes, [&](uint32_t* box) { tma_store(&map, box, {x}); });
}

extern "C" __global__ void tma_store_2d(const __grid_constant__ TensorMap map, int x, int y,
                                        int bytes, const uint32_t* image) {
  fill_and_store(image, bytes, [&](uint32_t* box) { tma_store(&map, box, {x, y}); });
}

extern "C" __global__ void tma_store_2d_hint(const __grid_constant__ TensorMap map, int x, int y,
                                             int bytes, const uint32_t* image) {
  fill_and_store(image, bytes,
                 [&](uint32_t* box) { tma_store(&map, box, {x, y}, evict_first_policy()); });
}

extern "C" __global__ void tma_store_3d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                        int bytes, const uint32_t* image) {
  fill_and_store(image, bytes, [&](uint32_t* box) { tma_store(&map, box, {x, y, z}); });
}

extern "C" __global__ void tma_store_4d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                        int u, int bytes, const uint32_t* image) {
  fill_and_store(image, bytes, [&](uint32_t* box) { tma_store(&map, box, {x, y, z, u}); });
}

extern "C" __global__ void tma_store_5d(const __grid_constant__ TensorMap map, int x, int y, int z,
                                        int u, int v, int bytes, const uint32_t* image) {
  fill_and_store(image, bytes, [&](uint32_t* box) { tma_store(&map, box, {x, y, z, u, v}); });
}

// Every block adds its image: image [blocks, bytes].
extern "C" __global__ void tma_reduce_add_2d(const __grid_constant__ TensorMap map, int x, int y,
                                             int bytes, const uint32_t* image) {
  fill_and_store(image + blockIdx.x * bytes / 4, bytes,
                 [&](uint32_t* box) { tma_reduce_add(&map, box, {x, y}); });
}

// Four boxes through two buffers: a buffer is filled again once the store from it has read it.
// image [4, bytes]; box i goes to row y + i * rows.
extern "C" __global__ void tma_store_groups(const __grid_constant__ TensorMap map, int x, int y,
                                            int rows, int bytes, const uint32_t* image) {
  __shared__ alignas(1024) uint32_t boxes[2][kMostBytes / 8];
  for (int step = 0; step < 4; ++step) {
    uint32_t* box = boxes[step % 2];
    if (threadIdx.x == 0) bulk_wait_read<1>();  // all but the newest store have read
    __syncthreads();
    for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
      box[i] = image[step * bytes / 4 + i];
    }
    fence_proxy_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
      tma_store(&map, box, {x, y + step * rows});
      bulk_commit();
    }
  }
  if (threadIdx.x == 0) bulk_wait<0>();
}

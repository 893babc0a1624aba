// Kernels, right and wrong, that show what the player of cuda_on_cpu.h finds out.
#include "cuda/device.h"

namespace {

using namespace anifast;

constexpr int kBlock = 64;

// 64: every thread adds its neighbour's one.
__global__ void right(float* out) {
    ANIFAST_SHARED(float, shared, kBlock);
    const int thread = static_cast<int>(threadIdx.x);
    shared[thread] = 1.0f;
    __syncthreads();
    const float sum = sum_over_lanes(shared[(thread + 1) % kBlock], kBlock, shared);
    if (thread == 0) *out = sum;
}

// The same without the barrier: threads read what may not be written yet.
__global__ void no_barrier(float* out) {
    ANIFAST_SHARED(float, shared, kBlock);
    ANIFAST_SHARED(float, space, kBlock);
    const int thread = static_cast<int>(threadIdx.x);
    shared[thread] = 1.0f;
    const float sum = sum_over_lanes(shared[(thread + 1) % kBlock], kBlock, space);
    if (thread == 0) *out = sum;
}

// Half of the threads leave before the barrier.
__global__ void divergent_barrier(float* out) {
    if (threadIdx.x >= kBlock / 2) return;
    __syncthreads();
    *out = 1.0f;
}

// One lane of a warp stays out of a shuffle.
__global__ void divergent_shuffle(float* out) {
    float value = 1.0f;
    if (threadIdx.x != 3) value += __shfl_xor_sync(kFullWarp, value, 1);
    *out = value;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* toy(int kernel, float* out) {
    void (*const kernels[])(float*) = {&right, &no_barrier, &divergent_barrier, &divergent_shuffle};
    ANIFAST_LAUNCH(kernels[kernel], dim3(1), kBlock, nullptr, out);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

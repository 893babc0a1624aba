// Plays CUDA kernels on the CPU, so that the code a GPU runs is tested where there is none.
//
// Included before a .cu file that g++ compiles as C++ (`g++ -x c++ -include cuda_on_cpu.h kernels.cu`) in place of
// nvcc's built-ins. Each thread of a block is a fiber; it runs until it waits at a barrier or a warp shuffle or leaves.
// Blocks run one after the other. What a GPU would do wrong silently is an error or a wrong number here:
//   - shared memory is NaN before a block starts, and of exactly its size for AddressSanitizer;
//   - threads and blocks run in an order that the test chooses, so a missing barrier changes the result;
//   - a barrier or shuffle that not all threads of the block or warp reach fails the launch.
// Only whole-warp shuffles are known. Add built-ins here as kernels come to need them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>

#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

// Element counts from which kernels take 64-bit indices; lowered by tests.
extern int64_t wide_index_from;

void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);

// This block's shared memory of the declaration in this line.
void* shared_memory(int line, size_t bytes);

// Waits until every thread of the block is here.
void block_barrier();

// Gives up to 8 bytes to the warp and takes those of another lane, once all lanes of the warp have given.
void warp_exchange(unsigned lanes, void* value, size_t bytes, int source_lane);
int lane();

}  // namespace cuda_on_cpu

#define ANIFAST_LAUNCH(kernel, grid, block, stream, ...) \
    cuda_on_cpu::launch(dim3(grid), dim3(block), [&] { (*(kernel))(__VA_ARGS__); })
#define ANIFAST_SHARED(type, name, count) \
    type* const name = static_cast<type*>(cuda_on_cpu::shared_memory(__LINE__, sizeof(type) * (count)))
#define ANIFAST_WIDE_INDEX_FROM cuda_on_cpu::wide_index_from

inline void __syncthreads() { cuda_on_cpu::block_barrier(); }

// Never fused with an addition: what plays here knows no such instruction anyway.
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int offset) {
    cuda_on_cpu::warp_exchange(lanes, &value, sizeof(T), cuda_on_cpu::lane() ^ offset);
    return value;
}

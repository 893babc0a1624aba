// What device code of every op uses: types and their conversions, chunks of memory, the leaky ReLU with its mask, sums
// over a thread block, launches.
//
// Nothing here needs torch. The tests compile the same code as C++ and play it on the CPU: they define the macros that
// are only set here if they are not set yet.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"

#ifndef ANIFAST_LAUNCH
#define ANIFAST_LAUNCH(kernel, grid, block, stream, ...) kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#define ANIFAST_SHARED(type, name, count) __shared__ type name[count]
// Element counts from here on are indexed with 64 bits; below it, what a thread adds to an index cannot overflow 32.
#define ANIFAST_WIDE_INDEX_FROM ((int64_t{1} << 31) - (int64_t{1} << 16))
#endif

namespace anifast {

// The type in which values of T are computed and summed.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

// V neighbouring elements, moved by one instruction where they are aligned to their size.
template <typename T, int V>
struct alignas(sizeof(T) * V) Chunk {
    T value[V];
};

template <typename T, int V>
__device__ __forceinline__ Accumulate<T> element(const Chunk<T, V>& chunk, int i) {
    if constexpr (std::is_same_v<T, __nv_bfloat16> && V % 2 == 0) {
        // bfloat16 is the upper half of a float. Taken from words, so that a chunk stays in V / 2 registers until it is
        // used; the header's conversion takes 16-bit registers and doubles that.
        uint32_t word;
        memcpy(&word, chunk.value + i / 2 * 2, sizeof(word));
        word = i % 2 ? word & 0xffff0000u : word << 16;
        float value;
        memcpy(&value, &word, sizeof(value));
        return value;
    } else {
        return widen(chunk.value[i]);
    }
}

template <typename T, int V>
__device__ __forceinline__ Chunk<T, V> load_chunk(const void* from, int64_t at) {
    return *reinterpret_cast<const Chunk<T, V>*>(static_cast<const T*>(from) + at);
}

template <typename T, int V>
__device__ __forceinline__ void store_chunk(void* to, int64_t at, const Chunk<T, V>& chunk) {
    *reinterpret_cast<Chunk<T, V>*>(static_cast<T*>(to) + at) = chunk;
}

// Element `at` of an array of T, or of the accumulation type where the operand is kept wide.
template <typename T>
__device__ __forceinline__ Accumulate<T> load_widened(const void* from, bool wide, int64_t at) {
    return wide ? static_cast<const Accumulate<T>*>(from)[at] : widen(static_cast<const T*>(from)[at]);
}

constexpr unsigned kFullWarp = 0xffffffffu;

// The leaky ReLU with gain and clamp, and the bits that its gradient needs.
template <typename A>
struct Activation {
    A gain, negative_gain, clamp;
    bool clamped;

    // Bit i of `positive` and (with a clamp) of `kept` tells that value i is above 0, and not clamped.
    template <int V>
    __device__ __forceinline__ void apply(A (&value)[V], unsigned& positive, unsigned& kept) const {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            positive |= static_cast<unsigned>(value[i] > 0) << i;
            value[i] *= value[i] > 0 ? gain : negative_gain;
        }
        if (clamped) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                kept |= static_cast<unsigned>(value[i] >= -clamp && value[i] <= clamp) << i;
                value[i] = value[i] < -clamp ? -clamp : value[i];  // comparisons let NaN through
                value[i] = value[i] > clamp ? clamp : value[i];
            }
        }
    }
};

// Write the bits of a chunk. Threads whose chunks share a byte are neighbours; all threads of a warp must call it.
// `shift` is the chunk's first bit in the byte.
template <int V>
__device__ __forceinline__ void store_bits(uint8_t* to, unsigned bits, int shift, bool active) {
    bits <<= shift;
#pragma unroll
    for (int offset = 1; offset < 8 / V; offset *= 2) bits |= __shfl_xor_sync(kFullWarp, bits, offset);
    if (active && shift == 0) *to = static_cast<uint8_t>(bits);
}

// Sum of `value` over each run of `lanes` neighbouring threads (a power of two), for the first thread of the run.
// Always the same order. All threads of the block must call it; `shared` holds one value a thread.
template <typename A>
__device__ __forceinline__ A sum_over_lanes(A value, int lanes, A* shared) {
    const int thread = static_cast<int>(threadIdx.x);
    if (lanes > 32) {
        const int lane = thread & (lanes - 1);
        shared[thread] = value;
        __syncthreads();
        for (int offset = lanes / 2; offset >= 32; offset /= 2) {
            if (lane < offset) shared[thread] += shared[thread + offset];
            __syncthreads();
        }
        value = shared[thread];
        __syncthreads();  // `shared` may be written again at once
    }
    for (int offset = (lanes > 32 ? 32 : lanes) / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, offset);
    }
    return value;
}

// For launches: alignment, and run-time facts as compile-time constants of `function`.

inline bool aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <typename Function>
cudaError_t with_bool(bool value, const Function& function) {
    return value ? function(std::true_type{}) : function(std::false_type{});
}

template <typename Function>
cudaError_t with_type(DType dtype, const Function& function) {
    switch (dtype) {
        case DType::float32:
            return function(float{});
        case DType::float64:
            return function(double{});
        case DType::float16:
            return function(__half{});
        case DType::bfloat16:
            return function(__nv_bfloat16{});
    }
    return cudaErrorInvalidValue;
}

}  // namespace anifast

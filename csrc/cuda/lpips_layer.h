// lpips_layer on the GPU: what the host hands to the launches. Plain types, so that device code sees no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace anifast {

// Maps are [images, channels, length], or [images, length, channels] with channels_last. "Numbers" are float, or double
// for double maps.
struct LpipsLayerParams {
    DType dtype;  // of a, b, ga and gb
    bool channels_last;
    int64_t images, channels, length;  // pixels of a plane; none is 0
    const void *a, *b;
    const void* weight;  // [channels] numbers
    const void* grad;    // backward: numbers, [images] with mean, else [images, length]
    const void* saved;   // backward: forward's stats
    void* out;           // forward: as grad
    void* stats;         // forward: [4, images, length] numbers, p, q, k and l of each pixel
    void *ga, *gb;       // backward: maps; null: not wanted
    void* partials;      // forward: lpips_layer_partials() numbers
    double eps;
    bool eps_inside, mean;
    int processors;  // multiprocessors of the GPU: the grid is cut for them
};

// How many partial sums forward leaves between its two kernels, 0 where one is enough.
int64_t lpips_layer_partials(const LpipsLayerParams& params);

// Each queues its kernels on `stream` of the current device and returns the launch's error.
cudaError_t lpips_layer_launch(const LpipsLayerParams& params, cudaStream_t stream);
cudaError_t lpips_layer_backward_launch(const LpipsLayerParams& params, cudaStream_t stream);

}  // namespace anifast

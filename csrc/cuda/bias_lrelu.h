// bias_lrelu on the GPU: what the host hands to the launches. Plain types, so that device code sees no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace anifast {

// Memory is [outer, channels, inner], inner 1 for channels last. Absent operands are null pointers.
struct BiasLreluParams {
    DType dtype;                     // of x, noise, residual and out
    int64_t outer, channels, inner;  // none is 0
    int64_t noise_rows;              // noise is [noise_rows, inner]; element (o, c, i) takes (o % noise_rows, i)
    const void* x;                   // the input of forward and masked, the gradient of backward
    const void* bias;                // [channels]
    const void* noise;               //
    const void* strength;            // one number; null means 1
    const void* residual;            // as x
    const uint8_t* saved;            // backward, masked: forward's mask; null: f is the gain everywhere
    void* out;                       // as x: out, gx or t
    uint8_t* mask;                   // forward: bits to write, planes of [rows, ceil(length / 8)], low bit first
    void* sums_bias;                 // backward: [channels], float or double
    void* sums_strength;             // backward: one float or double
    void* partials;                  // backward: bias_lrelu_partials() numbers of the same type
    double slope, gain, clamp, residual_gain;
    bool clamped;                   // forward: clamp is given; else: the mask has its second plane
    bool bias_wide, strength_wide;  // the operand is float32 (float64) beside a half x
    int processors;                 // multiprocessors of the GPU: the grid is cut for them
};

// How many partial sums backward leaves between its two kernels, 0 where none are wanted.
int64_t bias_lrelu_partials(const BiasLreluParams& params);

// Each queues its kernels on `stream` of the current device and returns the launch's error.
cudaError_t bias_lrelu_launch(const BiasLreluParams& params, cudaStream_t stream);
cudaError_t bias_lrelu_backward_launch(const BiasLreluParams& params, cudaStream_t stream);
cudaError_t bias_lrelu_masked_launch(const BiasLreluParams& params, cudaStream_t stream);

}  // namespace anifast

// The gradient passes of modulated_conv2d on the GPU: what the host hands to the launches. Plain types, so that device
// code sees no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace anifast {

// Maps are [images, channels, length], or [images, length, channels] with channels_last. Absent operands are null
// pointers.
struct ModulatedConv2dPassParams {
    bool epilogue;  // epilogue_grad; else style_grad, which has no operands and sums but the factor's
    DType dtype;    // of the maps and the noise
    bool channels_last;
    int64_t images, channels, length;  // pixels of a plane; none is 0
    const void* grad;                  //
    const void* map;                   // forward's output, or x
    const void* factor;                // [images, channels], of the result: scale, or style; null means 1
    const void* bias;                  // [channels]
    const void* noise;                 // [1 or images, length], where a sum needs it
    const void* strength;              // one number; null means 1
    void* result;                      // a map: gc, or gx
    void* sums_factor;                 // [images, channels], float or double: gscale, or gstyle
    void* sums_bias;                   // [channels]
    void* sums_strength;               // one number
    void* partials;                    // modulated_conv2d_pass_partials() numbers of the type of sums
    double slope, gain, clamp;
    bool clamped, shared_noise;
    bool factor_wide, bias_wide, strength_wide;  // the operand is float32 (float64) beside half maps
    int processors;                              // multiprocessors of the GPU: the grid is cut for them
};

// How many partial sums a pass leaves between its two kernels.
int64_t modulated_conv2d_pass_partials(const ModulatedConv2dPassParams& params);

// Queues the kernels on `stream` of the current device and returns the launch's error.
cudaError_t modulated_conv2d_pass_launch(const ModulatedConv2dPassParams& params, cudaStream_t stream);

}  // namespace anifast

// upfirdn2d on the GPU: what the host hands to the launch. Plain types, so that device code sees no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace anifast {

// Memory is [batch, channels, rows, columns], or [batch, rows, columns, channels] with channels_last. Absent operands
// are null pointers.
struct Upfirdn2dParams {
    DType dtype;  // of x, noise, add and out
    bool channels_last;
    int64_t batch, channels, in_rows, in_columns, out_rows, out_columns;  // none is 0
    int64_t taps_x, taps_y;                                               // size of the kernel
    bool matrix, flip;                                                    // a line of taps serves both axes
    int64_t up_x, up_y, down_x, down_y, pad_x, pad_y;                     // pads before the samples
    const void* x;                                                        //
    const void* kernel;                                                   // [taps_y, taps_x] or [taps], float or double
    const void* scale;                                                    // [batch, channels]
    const void* bias;                                                     // [channels]
    const void* noise;                                                    // [1 or batch, out_rows, out_columns]
    const void* strength;                                                 // one number; null means 1
    const void* add;                                                      // as out
    void* out;                                                            //
    uint8_t* mask;  // bits to write as bias_lrelu does, rows of whole bytes
    bool shared_noise;
    double gain, slope, act_gain, clamp;
    bool clamped;
    bool scale_wide, bias_wide, strength_wide;  // the operand is float32 (float64) beside a half x
    int processors;                             // multiprocessors of the GPU: the grid is cut for them
};

// Queues the kernel on `stream` of the current device and returns the launch's error.
cudaError_t upfirdn2d_launch(const Upfirdn2dParams& params, cudaStream_t stream);

}  // namespace anifast

// What the host code of CUDA ops shares: the checks and pointers of a call's tensors, errors, and the stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <optional>
#include <vector>

#include "../common/layout.h"
#include "dtype.h"

namespace anifast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline at::ScalarType sum_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// One call of an op: x in its layout, the tensors that had to be copied beside it, and messages with the op's name.
struct DeviceCall {
    const char* op;
    at::MemoryFormat format;
    Tensor x;
    std::vector<Tensor> keep;

    DeviceCall(const char* op, const Tensor& any, bool channels_last)
        : op(op), format(memory_format(any.dim(), channels_last)), x(any.contiguous(format)) {}

    void check(cudaError_t error) const { TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error)); }

    DType dtype() const {
        switch (x.scalar_type()) {
            case at::kFloat:
                return DType::float32;
            case at::kDouble:
                return DType::float64;
            case at::kHalf:
                return DType::float16;
            case at::kBFloat16:
                return DType::bfloat16;
            default:
                TORCH_CHECK(false, op, ": x must be float32, float64, float16 or bfloat16, got ", x.scalar_type());
        }
    }

    // The pointer of an operand with `numel` elements; `wide` lets float32 stand beside a half x.
    const void* operand(const OptionalTensor& value, const char* name, int64_t numel, bool* wide = nullptr) {
        if (!value) return nullptr;
        TORCH_CHECK(value->device() == x.device(), op, ": ", name, " is on ", value->device(), ", expected ",
                    x.device());
        TORCH_CHECK(value->numel() == numel, op, ": ", name, " has ", value->numel(), " elements, expected ", numel);
        const bool same = value->scalar_type() == x.scalar_type();
        TORCH_CHECK(same || (wide && value->scalar_type() == sum_type(x)), op, ": ", name, " has dtype ",
                    value->scalar_type(), ", expected ", x.scalar_type());
        if (wide) *wide = !same;
        return keep.emplace_back(value->dim() == x.dim() ? value->contiguous(format) : value->contiguous())
            .const_data_ptr();
    }

    // The current stream; the device of x must be current. Tells the device's multiprocessors, for which grids are cut.
    cudaStream_t stream(int& processors) const {
        check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device()));
        return c10::cuda::getCurrentCUDAStream().stream();
    }
};

}  // namespace anifast

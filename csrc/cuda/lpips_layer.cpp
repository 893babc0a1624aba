// lpips_layer on the GPU, host side: checks, layouts and allocations. anifast/ops/lpips_layer.py tells the formulas and
// the contract.
#include "lpips_layer.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <tuple>

#include "host.h"

namespace anifast {
namespace {

// The arguments of one launch, with the map a in the place of x.
struct Call : DeviceCall {
    LpipsLayerParams params{};

    Call(const Tensor& a, const Tensor& b, const OptionalTensor& weight, double eps, bool eps_inside, bool mean)
        : DeviceCall("lpips_layer", a, is_channels_last(a)) {
        TORCH_CHECK(a.dim() == 4, "lpips_layer: a must have rank 4, got shape ", a.sizes());
        TORCH_CHECK(b.sizes() == a.sizes(), "lpips_layer: b has shape ", b.sizes(), ", expected ", a.sizes());
        params.dtype = dtype();
        params.channels_last = format != at::MemoryFormat::Contiguous;
        params.images = x.size(0);
        params.channels = x.size(1);
        params.length = x.size(2) * x.size(3);
        params.a = x.const_data_ptr();
        params.b = operand(b, "b", x.numel());
        params.weight = numbers(weight ? *weight : at::ones({params.channels}, options()), "weight", params.channels);
        params.eps = eps;
        params.eps_inside = eps_inside;
        params.mean = mean;
    }

    at::TensorOptions options() const { return x.options().dtype(sum_type(x)); }

    // The pointer of an operand in the type of sums.
    const void* numbers(const Tensor& value, const char* name, int64_t numel) {
        TORCH_CHECK(value.scalar_type() == sum_type(x), "lpips_layer: ", name, " has dtype ", value.scalar_type(),
                    ", expected ", sum_type(x));
        bool wide;
        return operand(value, name, numel, &wide);
    }

    // To be called last before a launch, with the device of a current.
    cudaStream_t stream() { return DeviceCall::stream(params.processors); }
};

std::tuple<Tensor, Tensor> lpips_layer_cuda(const Tensor& a, const Tensor& b, const OptionalTensor& weight, double eps,
                                            bool eps_inside, bool mean) {
    const c10::cuda::CUDAGuard guard(a.device());
    Call call(a, b, weight, eps, eps_inside, mean);
    auto& params = call.params;
    Tensor out = at::empty({a.size(0), 1, mean ? 1 : a.size(2), mean ? 1 : a.size(3)}, call.options());
    Tensor stats = at::empty({4, params.images, params.length}, call.options());
    if (a.numel() == 0) return {out.zero_(), stats.zero_()};
    params.out = out.mutable_data_ptr();
    params.stats = stats.mutable_data_ptr();
    const cudaStream_t stream = call.stream();
    const Tensor partials = at::empty({lpips_layer_partials(params)}, call.options());
    params.partials = partials.mutable_data_ptr();
    call.check(lpips_layer_launch(params, stream));
    return {out, stats};
}

std::tuple<Tensor, Tensor> lpips_layer_backward_cuda(const Tensor& grad, const Tensor& a, const Tensor& b,
                                                     const OptionalTensor& weight, const Tensor& stats, double eps,
                                                     bool eps_inside, bool mean, bool want_a, bool want_b) {
    const c10::cuda::CUDAGuard guard(a.device());
    Call call(a, b, weight, eps, eps_inside, mean);
    auto& params = call.params;
    params.grad = call.numbers(grad, "grad", mean ? params.images : params.images * params.length);
    params.saved = call.numbers(stats, "stats", 4 * params.images * params.length);
    const auto make = [&](bool want, void*& to) {
        if (!want) return at::empty({0}, a.options());
        Tensor map = at::empty_like(call.x, call.format);
        to = map.mutable_data_ptr();
        return map;
    };
    Tensor ga = make(want_a, params.ga), gb = make(want_b, params.gb);
    if (a.numel() > 0 && (want_a || want_b)) call.check(lpips_layer_backward_launch(params, call.stream()));
    return {ga, gb};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CUDA, m) {
    m.impl("lpips_layer", &lpips_layer_cuda);
    m.impl("lpips_layer_backward", &lpips_layer_backward_cuda);
}

}  // namespace anifast

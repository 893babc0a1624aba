// The gradient passes of modulated_conv2d on the GPU, host side: checks, layouts and allocations.
// anifast/ops/modulated_conv2d.py tells the formulas and the contract.
#include "modulated_conv2d.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "host.h"

namespace anifast {
namespace {

// The arguments of one pass, with grad in the place of x.
struct Call : DeviceCall {
    ModulatedConv2dPassParams params{};

    Call(const Tensor& grad, bool epilogue) : DeviceCall("modulated_conv2d", grad, is_channels_last(grad)) {
        TORCH_CHECK(x.dim() == 4, "modulated_conv2d: grad must have rank 4, got shape ", x.sizes());
        params.epilogue = epilogue;
        params.dtype = dtype();
        params.channels_last = format != at::MemoryFormat::Contiguous;
        params.images = x.size(0);
        params.channels = x.size(1);
        params.length = x.size(2) * x.size(3);
        params.grad = x.const_data_ptr();
    }

    int64_t planes() const { return params.images * params.channels; }

    void set_map(const Tensor& map, const char* name) {
        TORCH_CHECK(map.sizes() == x.sizes(), "modulated_conv2d: ", name, " has shape ", map.sizes(), ", expected ",
                    x.sizes());
        params.map = operand(map, name, x.numel());
    }

    Tensor make_result() {
        Tensor result = at::empty_like(x, format);
        params.result = result.mutable_data_ptr();
        return result;
    }

    // A sum for the kernels to write, 0 where there are no values; empty where it is not wanted.
    Tensor make_sum(bool want, at::IntArrayRef sizes, void*& to) const {
        const auto options = x.options().dtype(sum_type(x));
        if (!want) return at::empty({0}, options);
        Tensor sum = x.numel() ? at::empty(sizes, options) : at::zeros(sizes, options);
        to = sum.mutable_data_ptr();
        return sum;
    }

    void run() {
        if (x.numel() == 0) return;
        const cudaStream_t stream = DeviceCall::stream(params.processors);
        const Tensor partials = at::empty({modulated_conv2d_pass_partials(params)}, x.options().dtype(sum_type(x)));
        params.partials = partials.mutable_data_ptr();
        check(modulated_conv2d_pass_launch(params, stream));
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> epilogue_grad_cuda(const Tensor& grad, const Tensor& out,
                                                              const OptionalTensor& scale, const OptionalTensor& bias,
                                                              const OptionalTensor& noise,
                                                              const OptionalTensor& strength, double slope, double gain,
                                                              std::optional<double> clamp, bool want_scale,
                                                              bool want_bias, bool want_strength) {
    const c10::cuda::CUDAGuard guard(grad.device());
    TORCH_CHECK(slope >= 0.0 && gain > 0.0, "modulated_conv2d: the output tells the gradient where slope >= 0 and ",
                "gain > 0, got slope ", slope, " and gain ", gain);
    TORCH_CHECK(!want_scale || scale, "modulated_conv2d: the gradient of scale needs the scale");
    TORCH_CHECK(!want_strength || noise, "modulated_conv2d: the gradient of noise_strength needs the noise");
    Call call(grad, true);
    auto& params = call.params;
    call.set_map(out, "out");
    params.factor = call.operand(scale, "scale", call.planes(), &params.factor_wide);
    params.bias = call.operand(bias, "bias", params.channels, &params.bias_wide);
    params.shared_noise = noise && noise->numel() == params.length;
    const void* noises =
        call.operand(noise, "noise", params.shared_noise ? params.length : params.images * params.length);
    if (want_scale || want_strength) params.noise = noises;
    params.strength = call.operand(strength, "noise_strength", 1, &params.strength_wide);
    params.slope = slope;
    params.gain = gain;
    params.clamped = clamp.has_value();
    params.clamp = clamp.value_or(0.0);
    Tensor gc = call.make_result();
    Tensor gscale = call.make_sum(want_scale, {params.images, params.channels}, params.sums_factor);
    Tensor gbias = call.make_sum(want_bias, {params.channels}, params.sums_bias);
    Tensor gstrength = call.make_sum(want_strength, {1}, params.sums_strength);
    call.run();
    return {gc, gscale, gbias, gstrength};
}

std::tuple<Tensor, Tensor> style_grad_cuda(const Tensor& grad, const Tensor& x, const Tensor& style) {
    const c10::cuda::CUDAGuard guard(grad.device());
    Call call(grad, false);
    auto& params = call.params;
    call.set_map(x, "x");
    params.factor = call.operand(style, "style", call.planes(), &params.factor_wide);
    Tensor gx = call.make_result();
    Tensor gstyle = call.make_sum(true, {params.images, params.channels}, params.sums_factor);
    call.run();
    return {gx, gstyle};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CUDA, m) {
    m.impl("modulated_conv2d_epilogue_grad", &epilogue_grad_cuda);
    m.impl("modulated_conv2d_style_grad", &style_grad_cuda);
}

}  // namespace anifast

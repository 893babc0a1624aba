// bias_lrelu on the GPU, host side: checks, layouts and allocations. anifast/ops/bias_lrelu.py tells the contract.
#include "bias_lrelu.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "host.h"

namespace anifast {
namespace {

// The arguments of one launch.
struct Call : DeviceCall {
    BiasLreluParams params{};

    Call(const Tensor& any, int64_t dim, bool channels_last, double slope, double gain)
        : DeviceCall("bias_lrelu", any, channels_last) {
        TORCH_CHECK(dim >= 0 && dim < x.dim(), "bias_lrelu: dim must lie in [0, ", x.dim() - 1, "], got ", dim);
        params.dtype = dtype();
        params.outer = params.inner = 1;
        params.channels = x.size(dim);
        for (int64_t axis = 0; axis < x.dim(); ++axis) {
            if (axis < dim || (axis > dim && channels_last)) params.outer *= x.size(axis);
            if (axis > dim && !channels_last) params.inner *= x.size(axis);
        }
        params.x = x.const_data_ptr();
        params.slope = slope;
        params.gain = gain;
    }

    int64_t row_bytes() const { return ((params.inner == 1 ? params.channels : params.inner) + 7) / 8; }
    int64_t rows() const { return params.inner == 1 ? params.outer : params.outer * params.channels; }

    void set_bias(const OptionalTensor& bias) {
        params.bias = operand(bias, "bias", params.channels, &params.bias_wide);
    }

    void set_noise(const OptionalTensor& noise, const OptionalTensor& strength) {
        if (!noise) return;
        const int64_t row = std::max<int64_t>(1, params.inner);
        params.noise_rows = noise->numel() / row;
        TORCH_CHECK(params.noise_rows > 0 && noise->numel() % row == 0 && params.outer % params.noise_rows == 0,
                    "bias_lrelu: noise of shape ", noise->sizes(), " does not fit x of shape ", x.sizes());
        params.noise = operand(noise, "noise", noise->numel());
        params.strength = operand(strength, "noise_strength", 1, &params.strength_wide);
    }

    void set_mask(const OptionalTensor& mask) {
        TORCH_CHECK(mask || params.slope == 1.0, "bias_lrelu: the mask is missing, and slope ", params.slope,
                    " needs it");
        if (!mask) return;
        TORCH_CHECK(mask->device() == x.device() && mask->scalar_type() == at::kByte && mask->dim() == 3 &&
                        (mask->size(0) == 1 || mask->size(0) == 2) && mask->size(1) == rows() &&
                        mask->size(2) == row_bytes(),
                    "bias_lrelu: mask must be uint8 [1 or 2, ", rows(), ", ", row_bytes(), "], got ",
                    mask->scalar_type(), " of shape ", mask->sizes());
        params.clamped = mask->size(0) == 2;
        params.saved = keep.emplace_back(mask->contiguous()).const_data_ptr<uint8_t>();
    }

    Tensor make_out() {
        Tensor out = at::empty_like(x, format);
        params.out = out.mutable_data_ptr();
        return out;
    }

    // To be called last before a launch, with the device of x current.
    cudaStream_t stream() { return DeviceCall::stream(params.processors); }
};

std::tuple<Tensor, Tensor> bias_lrelu_cuda(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& noise,
                                           const OptionalTensor& strength, const OptionalTensor& residual, int64_t dim,
                                           double slope, double gain, std::optional<double> clamp, double residual_gain,
                                           bool save_mask) {
    const c10::cuda::CUDAGuard guard(x.device());
    Call call(x, dim, dim == 1 && is_channels_last(x), slope, gain);
    auto& params = call.params;
    Tensor out = call.make_out();
    Tensor mask = save_mask ? at::empty({clamp ? 2 : 1, call.rows(), call.row_bytes()}, x.options().dtype(at::kByte))
                            : at::empty({0}, x.options().dtype(at::kByte));
    if (x.numel() == 0) return {out, mask};
    call.set_bias(bias);
    call.set_noise(noise, strength);
    params.residual = call.operand(residual, "residual", x.numel());
    params.residual_gain = residual_gain;
    params.clamped = clamp.has_value();
    params.clamp = clamp.value_or(0.0);
    params.mask = save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
    call.check(bias_lrelu_launch(params, call.stream()));
    return {out, mask};
}

std::tuple<Tensor, Tensor, Tensor> bias_lrelu_backward_cuda(const Tensor& grad, const OptionalTensor& mask,
                                                            const OptionalTensor& noise, int64_t dim,
                                                            bool channels_last, double slope, double gain,
                                                            bool want_bias, bool want_strength) {
    const c10::cuda::CUDAGuard guard(grad.device());
    TORCH_CHECK(!want_strength || noise, "bias_lrelu: the gradient of noise_strength needs the noise");
    Call call(grad, dim, channels_last, slope, gain);
    auto& params = call.params;
    Tensor gx = call.make_out();
    const auto sums = grad.options().dtype(sum_type(grad));
    const auto make_sum = [&](at::IntArrayRef size) {
        return grad.numel() ? at::empty(size, sums) : at::zeros(size, sums);
    };
    Tensor gbias = want_bias ? make_sum({params.channels}) : at::empty({0}, sums);
    Tensor gstrength = want_strength ? make_sum({}) : at::empty({0}, sums);
    if (grad.numel() == 0) return {gx, gbias, gstrength};
    call.set_mask(mask);
    if (want_strength) call.set_noise(noise, {});
    params.sums_bias = want_bias ? gbias.mutable_data_ptr() : nullptr;
    params.sums_strength = want_strength ? gstrength.mutable_data_ptr() : nullptr;
    const cudaStream_t stream = call.stream();
    const Tensor partials = at::empty({bias_lrelu_partials(params)}, sums);
    params.partials = partials.mutable_data_ptr();
    call.check(bias_lrelu_backward_launch(params, stream));
    return {gx, gbias, gstrength};
}

Tensor bias_lrelu_masked_cuda(const Tensor& x, const OptionalTensor& mask, const OptionalTensor& bias,
                              const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim,
                              bool channels_last, double slope, double gain) {
    const c10::cuda::CUDAGuard guard(x.device());
    Call call(x, dim, channels_last, slope, gain);
    Tensor out = call.make_out();
    if (x.numel() == 0) return out;
    call.set_mask(mask);
    call.set_bias(bias);
    call.set_noise(noise, strength);
    call.check(bias_lrelu_masked_launch(call.params, call.stream()));
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CUDA, m) {
    m.impl("bias_lrelu", &bias_lrelu_cuda);
    m.impl("bias_lrelu_backward", &bias_lrelu_backward_cuda);
    m.impl("bias_lrelu_masked", &bias_lrelu_masked_cuda);
}

}  // namespace anifast

// upfirdn2d on the GPU, host side: checks, layouts and allocations. anifast/ops/upfirdn2d.py tells the contract.
#include "upfirdn2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "host.h"

namespace anifast {
namespace {

// Samples of one axis of the output.
int64_t out_size(int64_t in, int64_t up, int64_t down, int64_t before, int64_t behind, int64_t taps) {
    TORCH_CHECK(up > 0 && down > 0 && taps > 0, "upfirdn2d: up, down and the kernel's size must be 1 or more");
    const int64_t last = in * up + before + behind - taps;
    TORCH_CHECK(in > 0 && last >= 0, "upfirdn2d: no output is left of ", in, " samples, up ", up, ", padding (", before,
                ", ", behind, "), under ", taps, " taps");
    return last / down + 1;
}

std::tuple<Tensor, Tensor> upfirdn2d_cuda(const Tensor& x, const Tensor& kernel_any, at::IntArrayRef up,
                                          at::IntArrayRef down, at::IntArrayRef padding, bool flip, double gain,
                                          const OptionalTensor& scale, const OptionalTensor& bias,
                                          const OptionalTensor& noise, const OptionalTensor& strength,
                                          const OptionalTensor& add, double slope, double act_gain,
                                          std::optional<double> clamp, bool save_mask) {
    const c10::cuda::CUDAGuard guard(x.device());
    TORCH_CHECK(x.dim() == 4, "upfirdn2d: x must have rank 4, got shape ", x.sizes());
    TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                "upfirdn2d: up and down need 2 numbers and padding 4");
    TORCH_CHECK(kernel_any.device() == x.device() && kernel_any.scalar_type() == sum_type(x) &&
                    (kernel_any.dim() == 1 || kernel_any.dim() == 2),
                "upfirdn2d: kernel must be a vector or matrix of ", sum_type(x), " on ", x.device(), ", got ",
                kernel_any.scalar_type(), " of shape ", kernel_any.sizes(), " on ", kernel_any.device());
    DeviceCall call("upfirdn2d", x, is_channels_last(x));
    const Tensor kernel = kernel_any.contiguous();
    Upfirdn2dParams params{};
    params.dtype = call.dtype();
    params.channels_last = call.format != at::MemoryFormat::Contiguous;
    params.batch = x.size(0);
    params.channels = x.size(1);
    params.in_rows = x.size(2);
    params.in_columns = x.size(3);
    params.taps_x = kernel.size(kernel.dim() - 1);
    params.taps_y = kernel.size(0);
    params.matrix = kernel.dim() == 2;
    params.flip = flip;
    params.up_x = up[0];
    params.up_y = up[1];
    params.down_x = down[0];
    params.down_y = down[1];
    params.pad_x = padding[0];
    params.pad_y = padding[2];
    params.out_columns = out_size(params.in_columns, up[0], down[0], padding[0], padding[1], params.taps_x);
    params.out_rows = out_size(params.in_rows, up[1], down[1], padding[2], padding[3], params.taps_y);
    const int64_t maps = params.batch * params.channels, pixels = params.out_rows * params.out_columns;
    TORCH_CHECK(!save_mask || params.channels_last || params.out_columns % 8 == 0,
                "upfirdn2d: save_mask needs lines of whole bytes, got ", params.out_columns, " columns");

    Tensor out = at::empty({params.batch, params.channels, params.out_rows, params.out_columns},
                           x.options().memory_format(call.format));
    const auto bytes = x.options().dtype(at::kByte);
    Tensor mask = !save_mask ? at::empty({0}, bytes)
                  : params.channels_last
                      ? at::empty({clamp ? 2 : 1, params.batch * pixels, divide_up(params.channels, 8)}, bytes)
                      : at::empty({clamp ? 2 : 1, maps, pixels / 8}, bytes);
    if (out.numel() == 0) return {out, mask};
    params.shared_noise = noise && noise->numel() == pixels;
    params.x = call.x.const_data_ptr();
    params.kernel = kernel.const_data_ptr();
    params.scale = call.operand(scale, "scale", maps, &params.scale_wide);
    params.bias = call.operand(bias, "bias", params.channels, &params.bias_wide);
    params.noise = call.operand(noise, "noise", params.shared_noise ? pixels : params.batch * pixels);
    params.strength = call.operand(strength, "noise_strength", 1, &params.strength_wide);
    params.add = call.operand(add, "add", out.numel());
    params.out = out.mutable_data_ptr();
    params.mask = save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
    params.gain = gain;
    params.slope = slope;
    params.act_gain = act_gain;
    params.clamped = clamp.has_value();
    params.clamp = clamp.value_or(0.0);
    const cudaStream_t stream = call.stream(params.processors);
    call.check(upfirdn2d_launch(params, stream));
    return {out, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CUDA, m) { m.impl("upfirdn2d", &upfirdn2d_cuda); }

}  // namespace anifast

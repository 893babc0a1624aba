// The gradient of the native upfirdn2d, on any device: anifast/ops/upfirdn2d.py tells the formulas. In C++ for the
// reason that bias_lrelu.cpp gives.
#include "upfirdn2d.h"

#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/layout.h"
#include "gradients.h"
#include "plain_calls.h"

namespace anifast {
namespace {

using c10::SymInt;
using c10::SymIntArrayRef;

using Op = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef, SymIntArrayRef,
                                      bool, double, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                      const OptionalTensor&, const OptionalTensor&, double, double,
                                      std::optional<double>, bool);

const auto& op() {
    static const auto found = find<Op>("anifast::upfirdn2d");
    return found;
}

// What backward has to know beside the tensors.
struct Form {
    std::vector<int64_t> up, down;  // of the adjoint
    std::vector<SymInt> padding;    // of the adjoint
    bool flip;
    double gain;
    bool channels_last, linear;
    double slope, act_gain;
    int64_t wants, given;  // Input of each that needs a gradient, that is there
    at::ScalarType bias_dtype;

    enum Input { kX = 1, kScale = 2, kBias = 4, kNoise = 8, kStrength = 16, kAdd = 32, kKernel = 64 };

    bool want(Input which) const { return (wants & which) != 0; }

    void save(AutogradContext* ctx) const {
        std::vector<c10::IValue> entries{up,
                                         down,
                                         flip,
                                         gain,
                                         channels_last,
                                         linear,
                                         slope,
                                         act_gain,
                                         wants,
                                         given,
                                         static_cast<int64_t>(bias_dtype)};
        for (const SymInt& pad : padding) entries.emplace_back(pad);
        ctx->saved_data["form"] = c10::ivalue::Tuple::create(std::move(entries));
    }
    static Form load(AutogradContext* ctx) {
        const auto saved = ctx->saved_data.at("form").toTuple();
        const std::vector<c10::IValue> at = saved->elements().vec();
        std::vector<SymInt> padding;
        for (size_t i = 11; i < at.size(); ++i) padding.push_back(at[i].toSymInt());
        return {at[0].toIntVector(), at[1].toIntVector(), std::move(padding),
                at[2].toBool(),      at[3].toDouble(),    at[4].toBool(),
                at[5].toBool(),      at[6].toDouble(),    at[7].toDouble(),
                at[8].toInt(),       at[9].toInt(),       static_cast<at::ScalarType>(at[10].toInt())};
    }
};

// The pads with which the op maps `out` samples back to `in` ones.
void push_adjoint_padding(std::vector<SymInt>& padding, const SymInt& in, const SymInt& out, int64_t taps, int64_t up,
                          int64_t down, const SymInt& before) {
    padding.push_back(taps - 1 - before);
    padding.push_back(in * up - out * down + before - up + 1);
}

struct Forward : Function<Forward> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& kernel, at::IntArrayRef up,
                                 at::IntArrayRef down, SymIntArrayRef padding, bool flip, double gain,
                                 const OptionalTensor& scale, const OptionalTensor& bias, const OptionalTensor& noise,
                                 const OptionalTensor& strength, const OptionalTensor& add, double slope,
                                 double act_gain, std::optional<double> clamp, bool save_mask) {
        at::AutoDispatchBelowADInplaceOrView below;
        const bool linear = slope == 1.0 && act_gain == 1.0 && !clamp;
        const int64_t wants = (x.requires_grad() ? Form::kX : 0) | (needs_grad(scale) ? Form::kScale : 0) |
                              (needs_grad(bias) ? Form::kBias : 0) | (needs_grad(noise) ? Form::kNoise : 0) |
                              (needs_grad(strength) ? Form::kStrength : 0) | (needs_grad(add) ? Form::kAdd : 0);
        const bool masked = !linear && wants != Form::kAdd;
        TORCH_CHECK(!masked || save_mask, "upfirdn2d: save_mask must be true where a gradient is needed");
        auto [out, mask] = op().call(x, kernel, up, down, padding, flip, gain, scale, bias, noise, strength, add, slope,
                                     act_gain, clamp, save_mask);
        Form form{down.vec(), up.vec(), {}, !flip, gain, is_channels_last(x), linear, slope, act_gain};
        const int64_t rank = kernel.dim();
        push_adjoint_padding(form.padding, x.sym_size(3), out.sym_size(3), kernel.size(rank - 1), up[0], down[0],
                             padding[0]);
        push_adjoint_padding(form.padding, x.sym_size(2), out.sym_size(2), kernel.size(0), up[1], down[1], padding[2]);
        form.wants = wants;
        form.given = Form::kX | Form::kKernel | (scale ? Form::kScale : 0) | (bias ? Form::kBias : 0) |
                     (noise ? Form::kNoise : 0) | (strength ? Form::kStrength : 0) | (add ? Form::kAdd : 0);
        form.bias_dtype = bias ? bias->scalar_type() : at::kFloat;
        form.save(ctx);
        const bool of_noise = form.want(Form::kNoise) || form.want(Form::kStrength);
        ctx->save_for_backward({kernel, masked ? mask : Tensor(), of_noise ? or_undefined(noise) : Tensor(),
                                of_noise ? or_undefined(strength) : Tensor(), or_undefined(scale),
                                form.want(Form::kScale) ? x : Tensor()});
        ctx->mark_non_differentiable({mask});
        ctx->set_materialize_grads(false);
        return {out, mask};
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list found(16);
        if (!grads[0].defined()) return found;
        Form form = Form::load(ctx);
        form.wants &=
            asked_for(ctx, form.given,
                      {Form::kX, Form::kKernel, Form::kScale, Form::kBias, Form::kNoise, Form::kStrength, Form::kAdd});
        if (form.want(Form::kAdd)) found[11] = grads[0];
        if ((form.wants & ~Form::kAdd) == 0) return found;
        const auto saved = ctx->get_saved_variables();
        const Tensor &kernel = saved[0], &noise = saved[2], &strength = saved[3], &scale = saved[4], &x = saved[5];
        const Tensor grad = grads[0].contiguous(memory_format(4, form.channels_last));
        const bool want_bias = form.want(Form::kBias), want_strength = form.want(Form::kStrength);
        const auto sums = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        Tensor gz = grad, gbias, gstrength;
        if (form.linear) {
            if (want_bias) gbias = gz.sum({0, 2, 3}, /*keepdim=*/false, sums);
            if (want_strength) gstrength = gz.mul(noise).sum(sums);
        } else {
            std::tie(gz, gbias, gstrength) =
                bias_lrelu_backward_op().call(grad, saved[1], want_strength ? OptionalTensor(noise) : std::nullopt, 1,
                                              form.channels_last, form.slope, form.act_gain, want_bias, want_strength);
        }
        if (want_bias) found[8] = gbias.to(form.bias_dtype);
        if (form.want(Form::kNoise)) {
            found[9] = gz.sum_to_size_symint(noise.sym_sizes());
            if (strength.defined()) found[9] = found[9].mul(strength.to(found[9].scalar_type()));
        }
        if (want_strength) found[10] = gstrength.to(strength.scalar_type()).reshape_symint(strength.sym_sizes());
        const auto back = [&](const OptionalTensor& by) {
            return std::get<0>(op().call(gz, kernel, form.up, form.down, form.padding, form.flip, form.gain, by,
                                         std::nullopt, std::nullopt, std::nullopt, std::nullopt, 1.0, 1.0, std::nullopt,
                                         false));
        };
        if (form.want(Form::kScale)) {
            Tensor v = back(std::nullopt);
            found[7] = x.to(sums).mul(v.to(sums)).sum({2, 3}).to(scale.scalar_type());
            const Tensor factor = scale.unsqueeze(2).unsqueeze(3).to(v.scalar_type());
            // in place where nothing is recorded that needs v: fresh memory takes several times as long
            if (form.want(Form::kX)) found[0] = at::GradMode::is_enabled() ? v.mul(factor) : v.mul_(factor);
        } else if (form.want(Form::kX)) {
            found[0] = back(defined(scale));
        }
        return found;
    }
};

std::tuple<Tensor, Tensor> autograd(const Tensor& x, const Tensor& kernel, at::IntArrayRef up, at::IntArrayRef down,
                                    SymIntArrayRef padding, bool flip, double gain, const OptionalTensor& scale,
                                    const OptionalTensor& bias, const OptionalTensor& noise,
                                    const OptionalTensor& strength, const OptionalTensor& add, double slope,
                                    double act_gain, std::optional<double> clamp, bool save_mask) {
    if (!any_needs_grad("upfirdn2d", OptionalTensor(x), scale, bias, noise, strength, add)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return op().call(x, kernel, up, down, padding, flip, gain, scale, bias, noise, strength, add, slope, act_gain,
                         clamp, save_mask);
    }
    const auto out = Forward::apply(x, kernel, up, down, padding, flip, gain, scale, bias, noise, strength, add, slope,
                                    act_gain, clamp, save_mask);
    return {out[0], out[1]};
}

// `count` numbers out of one, of as many, or (padding) of one pair for both axes; empty if that is not what they are.
std::vector<int64_t> spread(const Numbers& numbers, size_t count) {
    if (const auto* one = std::get_if<int64_t>(&numbers)) return std::vector<int64_t>(count, *one);
    std::vector<int64_t> all = std::get<std::vector<int64_t>>(numbers);
    if (count == 4 && all.size() == 2) all.insert(all.end(), {all[0], all[1]});
    return all.size() == count ? all : std::vector<int64_t>();
}

}  // namespace

OptionalTensor upfirdn2d_if_plain(const Tensor& x, const Tensor& kernel, const Numbers& up_any, const Numbers& down_any,
                                  const Numbers& padding_any, bool flip, double gain, const OptionalTensor& add,
                                  const OptionalTensor& scale, const OptionalTensor& bias, const OptionalTensor& noise,
                                  const OptionalTensor& strength, bool act, double slope, double act_gain,
                                  std::optional<double> clamp) {
    const auto type = x.scalar_type();
    // a transform of torch.func sees other sizes than the tensor has
    if (transforms_are_active() || x.dim() != 4 || !is_supported(type)) return std::nullopt;
    const bool channels_last = is_channels_last(x), recording = at::GradMode::is_enabled();
    const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3), rank = kernel.dim();
    if (!(x.is_contiguous() || channels_last) || height == 0 || width == 0 || (rank != 1 && rank != 2) ||
        kernel.numel() == 0 || kernel.device() != x.device() || (recording && kernel.requires_grad()) ||
        kernel.scalar_type() != (type == at::kDouble ? at::kDouble : at::kFloat) || (clamp && !(*clamp >= 0.0))) {
        return std::nullopt;
    }
    const auto up = spread(up_any, 2), down = spread(down_any, 2), pads = spread(padding_any, 4);
    const auto within = [](const std::vector<int64_t>& values, int64_t least, int64_t most) {
        return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v >= least && v <= most; });
    };
    constexpr int64_t kMostFactor = 1024, kMostPad = (int64_t(1) << 31) - 1;
    if (up.empty() || down.empty() || pads.empty() || !within(up, 1, kMostFactor) || !within(down, 1, kMostFactor) ||
        !within(pads, -kMostPad, kMostPad)) {
        return std::nullopt;
    }
    const int64_t beyond_x = width * up[0] + pads[0] + pads[1] - kernel.size(rank - 1);
    const int64_t beyond_y = height * up[1] + pads[2] + pads[3] - kernel.size(0);
    if (beyond_x < 0 || beyond_y < 0) return std::nullopt;
    const int64_t columns = beyond_x / down[0] + 1, rows = beyond_y / down[1] + 1;
    const bool plain =
        (!scale || (scale->sizes() == at::IntArrayRef{batch, channels} && fits(*scale, x, true))) &&
        (!bias || (bias->sizes() == at::IntArrayRef{channels} && fits(*bias, x, true))) &&
        (!noise || ((noise->sizes() == at::IntArrayRef{batch, 1, rows, columns} ||
                     noise->sizes() == at::IntArrayRef{1, 1, rows, columns}) &&
                    fits(*noise, x, false))) &&
        (!strength || (noise && strength->numel() == 1 && fits(*strength, x, true))) &&
        (!add || (add->sizes() == at::IntArrayRef{batch, channels, rows, columns} && fits(*add, x, false)));
    if (!plain) return std::nullopt;
    if (!act) slope = act_gain = 1.0;
    const bool save_mask =
        !(slope == 1.0 && act_gain == 1.0 && !clamp) && recording &&
        (x.requires_grad() || needs_grad(scale) || needs_grad(bias) || needs_grad(noise) || needs_grad(strength));
    if (save_mask && !channels_last && columns % 8 != 0) return std::nullopt;
    return std::get<0>(op().call(x, kernel, up, down, c10::fromIntArrayRefSlow(pads), flip, gain, scale, bias, noise,
                                 strength, add, slope, act_gain, clamp, save_mask));
}

TORCH_LIBRARY_IMPL(anifast, Autograd, m) { m.impl("upfirdn2d", &autograd); }

}  // namespace anifast

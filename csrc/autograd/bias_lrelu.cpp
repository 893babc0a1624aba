// The gradients of the native bias_lrelu ops, on any device: anifast/ops/bias_lrelu.py tells the formulas.
//
// They stand in C++ because the same lines registered from Python cost 50 microseconds a call, more than the whole
// chain of plain PyTorch operations on a small tensor.
#include "bias_lrelu.h"

#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../common/layout.h"
#include "gradients.h"
#include "plain_calls.h"

namespace anifast {
namespace {

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                             const OptionalTensor&, const OptionalTensor&, int64_t, double, double,
                                             std::optional<double>, double, bool);
using MaskedOp = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, int64_t, bool, double, double);

const auto& forward_op() {
    static const auto op = find<ForwardOp>("anifast::bias_lrelu");
    return op;
}
const auto& masked_op() {
    static const auto op = find<MaskedOp>("anifast::bias_lrelu_masked");
    return op;
}

// What backward has to know beside the tensors: where the channels are, what the factor f of an element is made of, and
// which gradients somebody wants.
struct Form {
    int64_t dim;
    bool channels_last;
    double slope, gain;
    int64_t wants = 0;  // Want of each
    at::ScalarType bias_dtype = at::kFloat;
    double residual_gain = 1.0;
    int64_t given = 0;  // Want of each that is there, of forward's

    enum Want { kX = 1, kBias = 2, kNoise = 4, kStrength = 8, kResidual = 16 };

    bool want(Want which) const { return (wants & which) != 0; }

    // One entry instead of one for each field: filling a map of names costs as much as the op itself on a small tensor.
    void save(AutogradContext* ctx) const {
        const int64_t dtype = static_cast<int64_t>(bias_dtype);
        ctx->saved_data["form"] = c10::ivalue::Tuple::create(
            std::vector<c10::IValue>{dim, channels_last, slope, gain, wants, dtype, residual_gain, given});
    }
    static Form load(AutogradContext* ctx) {
        const auto saved = ctx->saved_data.at("form").toTuple();
        const std::vector<c10::IValue> at = saved->elements().vec();
        return {at[0].toInt(),    at[1].toBool(), at[2].toDouble(),
                at[3].toDouble(), at[4].toInt(),  static_cast<at::ScalarType>(at[5].toInt()),
                at[6].toDouble(), at[7].toInt()};
    }
};

// Gradients of x, bias, noise and strength of f * (x + strength * noise + bias); what nobody asked for stays undefined.
struct Linear {
    static void save(AutogradContext* ctx, Form form, const Tensor& x, const OptionalTensor& mask,
                     const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength) {
        form.wants |= (x.requires_grad() ? Form::kX : 0) | (needs_grad(bias) ? Form::kBias : 0) |
                      (needs_grad(noise) ? Form::kNoise : 0) | (needs_grad(strength) ? Form::kStrength : 0);
        if (bias) form.bias_dtype = bias->scalar_type();
        form.save(ctx);
        const bool of_noise = form.want(Form::kNoise) || form.want(Form::kStrength);
        ctx->save_for_backward({or_undefined(mask), of_noise ? or_undefined(noise) : Tensor(),
                                of_noise ? or_undefined(strength) : Tensor()});
    }
    static variable_list grads(AutogradContext* ctx, const Form& form, const Tensor& grad) {
        variable_list out(4);
        const bool want_bias = form.want(Form::kBias), want_strength = form.want(Form::kStrength);
        if (!(want_bias || want_strength || form.want(Form::kX) || form.want(Form::kNoise))) return out;
        const auto saved = ctx->get_saved_variables();
        const Tensor &noise = saved[1], &strength = saved[2];
        auto [gx, gbias, gstrength] = bias_lrelu_backward_op().call(
            grad, defined(saved[0]), want_strength ? defined(noise) : std::nullopt, form.dim, form.channels_last,
            form.slope, form.gain, want_bias, want_strength);
        if (form.want(Form::kX)) out[0] = gx;
        if (want_bias) out[1] = gbias.to(form.bias_dtype);
        if (form.want(Form::kNoise)) {
            out[2] = gx.sum_to_size_symint(noise.sym_sizes());
            if (strength.defined()) out[2] = out[2].mul(strength.to(out[2].scalar_type()));
        }
        if (want_strength) out[3] = gstrength.to(strength.scalar_type()).reshape_symint(strength.sym_sizes());
        return out;
    }
};

struct Forward : Function<Forward> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& bias,
                                 const OptionalTensor& noise, const OptionalTensor& strength,
                                 const OptionalTensor& residual, int64_t dim, double slope, double gain,
                                 std::optional<double> clamp, double residual_gain, bool save_mask) {
        at::AutoDispatchBelowADInplaceOrView below;
        const bool linear = slope == 1.0 && !clamp;  // f is the gain everywhere
        TORCH_CHECK(linear || save_mask, "bias_lrelu: save_mask must be true where a gradient is needed");
        auto [out, mask] =
            forward_op().call(x, bias, noise, strength, residual, dim, slope, gain, clamp, residual_gain, save_mask);
        Form form{dim, dim == 1 && is_channels_last(x), slope, gain};
        form.wants = needs_grad(residual) ? Form::kResidual : 0;
        form.residual_gain = residual_gain;
        form.given = Form::kX | (bias ? Form::kBias : 0) | (noise ? Form::kNoise : 0) |
                     (strength ? Form::kStrength : 0) | (residual ? Form::kResidual : 0);
        Linear::save(ctx, form, x, linear ? OptionalTensor() : OptionalTensor(mask), bias, noise, strength);
        ctx->mark_non_differentiable({mask});
        ctx->set_materialize_grads(false);
        return {out, mask};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(11);
        if (!grads[0].defined()) return out;
        Form form = Form::load(ctx);
        form.wants &=
            asked_for(ctx, form.given, {Form::kX, Form::kBias, Form::kNoise, Form::kStrength, Form::kResidual});
        const auto linear = Linear::grads(ctx, form, grads[0]);
        std::copy(linear.begin(), linear.end(), out.begin());
        if (form.want(Form::kResidual)) {
            out[4] = form.residual_gain == 1.0 ? grads[0] : grads[0].mul(form.residual_gain);
        }
        return out;
    }
};

struct Backward : Function<Backward> {
    static variable_list forward(AutogradContext* ctx, const Tensor& grad, const OptionalTensor& mask,
                                 const OptionalTensor& noise, int64_t dim, bool channels_last, double slope,
                                 double gain, bool want_bias, bool want_strength) {
        at::AutoDispatchBelowADInplaceOrView below;
        auto [gx, gbias, gstrength] =
            bias_lrelu_backward_op().call(grad, mask, noise, dim, channels_last, slope, gain, want_bias, want_strength);
        Form form{dim, channels_last, slope, gain};
        form.wants = (grad.requires_grad() ? Form::kX : 0) | (needs_grad(noise) ? Form::kNoise : 0) |
                     (want_bias ? Form::kBias : 0) | (want_strength ? Form::kStrength : 0);
        form.save(ctx);
        ctx->save_for_backward({grad, or_undefined(mask), or_undefined(noise)});
        ctx->set_materialize_grads(false);
        return {gx, gbias, gstrength};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(9);
        const auto saved = ctx->get_saved_variables();
        const Tensor &grad = saved[0], &noise = saved[2];
        const OptionalTensor known = defined(saved[1]);
        const Form f = Form::load(ctx);
        const OptionalTensor bias = f.want(Form::kBias) ? defined(grads[1]) : std::nullopt;
        const OptionalTensor strength = f.want(Form::kStrength) ? defined(grads[2]) : std::nullopt;
        if (f.want(Form::kX) && (grads[0].defined() || bias || strength)) {
            out[0] = masked_op().call(grads[0].defined() ? grads[0] : at::zeros_like(grad), known, bias,
                                      strength ? defined(noise) : std::nullopt, strength, f.dim, f.channels_last,
                                      f.slope, f.gain);
        }
        if (f.want(Form::kNoise) && strength) {
            const Tensor gx = masked_op().call(grad, known, std::nullopt, std::nullopt, std::nullopt, f.dim,
                                               f.channels_last, f.slope, f.gain);
            out[2] = gx.sum_to_size_symint(noise.sym_sizes()).mul(strength->to(gx.scalar_type()));
        }
        return out;
    }
};

struct Masked : Function<Masked> {
    static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& bias,
                          const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim, bool channels_last,
                          double slope, double gain) {
        at::AutoDispatchBelowADInplaceOrView below;
        Linear::save(ctx, Form{dim, channels_last, slope, gain}, x, mask, bias, noise, strength);
        ctx->set_materialize_grads(false);
        return masked_op().call(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(9);
        if (!grads[0].defined()) return out;
        const auto linear = Linear::grads(ctx, Form::load(ctx), grads[0]);
        out[0] = linear[0];
        std::copy(linear.begin() + 1, linear.end(), out.begin() + 2);
        return out;
    }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& noise,
                                            const OptionalTensor& strength, const OptionalTensor& residual, int64_t dim,
                                            double slope, double gain, std::optional<double> clamp,
                                            double residual_gain, bool save_mask) {
    if (!any_needs_grad("bias_lrelu", OptionalTensor(x), bias, noise, strength, residual)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op().call(x, bias, noise, strength, residual, dim, slope, gain, clamp, residual_gain, save_mask);
    }
    const auto out =
        Forward::apply(x, bias, noise, strength, residual, dim, slope, gain, clamp, residual_gain, save_mask);
    return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> backward_autograd(const Tensor& grad, const OptionalTensor& mask,
                                                     const OptionalTensor& noise, int64_t dim, bool channels_last,
                                                     double slope, double gain, bool want_bias, bool want_strength) {
    if (!any_needs_grad("bias_lrelu", OptionalTensor(grad), noise)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return bias_lrelu_backward_op().call(grad, mask, noise, dim, channels_last, slope, gain, want_bias,
                                             want_strength);
    }
    const auto out = Backward::apply(grad, mask, noise, dim, channels_last, slope, gain, want_bias, want_strength);
    return {out[0], out[1], out[2]};
}

Tensor masked_autograd(const Tensor& x, const OptionalTensor& mask, const OptionalTensor& bias,
                       const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim, bool channels_last,
                       double slope, double gain) {
    if (!any_needs_grad("bias_lrelu", OptionalTensor(x), bias, noise, strength)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return masked_op().call(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
    }
    return Masked::apply(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
}

bool is_noise_of(at::IntArrayRef noise, at::IntArrayRef x, int64_t dim) {
    if (noise.size() != x.size()) return false;
    for (int64_t axis = 0; axis < static_cast<int64_t>(x.size()); ++axis) {
        const int64_t wanted = axis == dim ? 1 : x[axis];
        if (noise[axis] != wanted && !(axis == 0 && noise[axis] == 1)) return false;
    }
    return true;
}

}  // namespace

OptionalTensor bias_lrelu_if_plain(const Tensor& x, const OptionalTensor& bias, int64_t dim,
                                   const OptionalTensor& noise, const OptionalTensor& strength, double slope,
                                   double gain, std::optional<double> clamp, const OptionalTensor& residual,
                                   double residual_gain) {
    const int64_t rank = x.dim();
    const auto type = x.scalar_type();
    // a transform of torch.func sees other sizes than the tensor has
    const bool plain = !transforms_are_active() && rank >= 2 && dim >= 0 && dim < rank && is_supported(type) &&
                       (x.is_contiguous() || (dim == 1 && is_channels_last(x))) && !(clamp && !(*clamp >= 0.0)) &&
                       (!bias || (bias->dim() == 1 && bias->size(0) == x.size(dim) && fits(*bias, x, true))) &&
                       (!noise || (is_noise_of(noise->sizes(), x.sizes(), dim) && fits(*noise, x, false))) &&
                       (!strength || (noise && strength->numel() == 1 && fits(*strength, x, true))) &&
                       (!residual || (residual->sizes() == x.sizes() && fits(*residual, x, false)));
    if (!plain) return std::nullopt;
    const bool save_mask =
        !(slope == 1.0 && !clamp) && at::GradMode::is_enabled() &&
        (x.requires_grad() || needs_grad(bias) || needs_grad(noise) || needs_grad(strength) || needs_grad(residual));
    return std::get<0>(
        forward_op().call(x, bias, noise, strength, residual, dim, slope, gain, clamp, residual_gain, save_mask));
}

TORCH_LIBRARY_IMPL(anifast, Autograd, m) {
    m.impl("bias_lrelu", &forward_autograd);
    m.impl("bias_lrelu_backward", &backward_autograd);
    m.impl("bias_lrelu_masked", &masked_autograd);
}

}  // namespace anifast

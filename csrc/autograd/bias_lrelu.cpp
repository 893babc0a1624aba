// The gradients of the native bias_lrelu ops, on any device: anifast/ops/bias_lrelu.py tells the formulas.
//
// They stand in C++ because the same lines registered from Python cost 50 microseconds a call, more than the whole
// chain of plain PyTorch operations on a small tensor.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../common/layout.h"

namespace anifast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                             const OptionalTensor&, const OptionalTensor&, int64_t, double, double,
                                             std::optional<double>, double, bool);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                                      int64_t, bool, double, double, bool, bool);
using MaskedOp = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, int64_t, bool, double, double);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
const auto& forward_op() {
    static const auto op = find<ForwardOp>("anifast::bias_lrelu");
    return op;
}
const auto& backward_op() {
    static const auto op = find<BackwardOp>("anifast::bias_lrelu_backward");
    return op;
}
const auto& masked_op() {
    static const auto op = find<MaskedOp>("anifast::bias_lrelu_masked");
    return op;
}

OptionalTensor defined(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
Tensor or_undefined(const OptionalTensor& x) { return x.value_or(Tensor()); }
bool needs_grad(const OptionalTensor& x) { return x && x->requires_grad(); }

// Whether a gradient has to be recorded. Forward-mode tangents have no formula here and must not be dropped silently.
template <class... Tensors>
bool any_needs_grad(const Tensors&... tensors) {
    const bool tangent = ((tensors && tensors->_fw_grad(/*level=*/0).defined()) || ...);
    TORCH_CHECK_NOT_IMPLEMENTED(!tangent,
                                "bias_lrelu: the native backend has no forward-mode differentiation (jvp); "
                                "backend=\"reference\" has it");
    return at::GradMode::is_enabled() && (needs_grad(tensors) || ...);
}

// Where the channels are and what the factor f of an element is made of.
struct Form {
    int64_t dim;
    bool channels_last;
    double slope, gain;

    void save(AutogradContext* ctx) const {
        ctx->saved_data["dim"] = dim;
        ctx->saved_data["channels_last"] = channels_last;
        ctx->saved_data["slope"] = slope;
        ctx->saved_data["gain"] = gain;
    }
    static Form load(AutogradContext* ctx) {
        return {ctx->saved_data["dim"].toInt(), ctx->saved_data["channels_last"].toBool(),
                ctx->saved_data["slope"].toDouble(), ctx->saved_data["gain"].toDouble()};
    }
};

// Gradients of x, bias, noise and strength of f * (x + strength * noise + bias); what nobody asked for stays undefined.
struct Linear {
    static void save(AutogradContext* ctx, const Form& form, const Tensor& x, const OptionalTensor& mask,
                     const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength) {
        form.save(ctx);
        ctx->save_for_backward({or_undefined(mask), or_undefined(noise), or_undefined(strength)});
        ctx->saved_data["want_x"] = x.requires_grad();
        ctx->saved_data["want_bias"] = needs_grad(bias);
        ctx->saved_data["want_noise"] = needs_grad(noise);
        ctx->saved_data["want_strength"] = needs_grad(strength);
        if (bias) ctx->saved_data["bias_dtype"] = bias->scalar_type();
    }
    static variable_list grads(AutogradContext* ctx, const Tensor& grad) {
        const bool want_x = ctx->saved_data["want_x"].toBool(), want_bias = ctx->saved_data["want_bias"].toBool();
        const bool want_noise = ctx->saved_data["want_noise"].toBool();
        const bool want_strength = ctx->saved_data["want_strength"].toBool();
        variable_list out(4);
        if (!(want_x || want_bias || want_noise || want_strength)) return out;
        const auto saved = ctx->get_saved_variables();
        const Tensor &noise = saved[1], &strength = saved[2];
        const Form f = Form::load(ctx);
        auto [gx, gbias, gstrength] =
            backward_op().call(grad, defined(saved[0]), want_strength ? defined(noise) : std::nullopt, f.dim,
                               f.channels_last, f.slope, f.gain, want_bias, want_strength);
        if (want_x) out[0] = gx;
        if (want_bias) out[1] = gbias.to(ctx->saved_data["bias_dtype"].toScalarType());
        if (want_noise) {
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
        Linear::save(ctx, {dim, dim == 1 && is_channels_last(x), slope, gain}, x,
                     linear ? OptionalTensor() : OptionalTensor(mask), bias, noise, strength);
        ctx->saved_data["want_residual"] = needs_grad(residual);
        ctx->saved_data["residual_gain"] = residual_gain;
        ctx->mark_non_differentiable({mask});
        ctx->set_materialize_grads(false);
        return {out, mask};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(11);
        if (!grads[0].defined()) return out;
        const auto linear = Linear::grads(ctx, grads[0]);
        std::copy(linear.begin(), linear.end(), out.begin());
        if (ctx->saved_data["want_residual"].toBool()) {
            const double gain = ctx->saved_data["residual_gain"].toDouble();
            out[4] = gain == 1.0 ? grads[0] : grads[0].mul(gain);
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
            backward_op().call(grad, mask, noise, dim, channels_last, slope, gain, want_bias, want_strength);
        Form{dim, channels_last, slope, gain}.save(ctx);
        ctx->save_for_backward({grad, or_undefined(mask), or_undefined(noise)});
        ctx->saved_data["want_grad"] = grad.requires_grad();
        ctx->saved_data["want_noise"] = needs_grad(noise);
        ctx->saved_data["has_bias"] = want_bias;
        ctx->saved_data["has_strength"] = want_strength;
        ctx->set_materialize_grads(false);
        return {gx, gbias, gstrength};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(10);
        const auto saved = ctx->get_saved_variables();
        const Tensor &grad = saved[0], &noise = saved[2];
        const OptionalTensor known = defined(saved[1]);
        const OptionalTensor bias = ctx->saved_data["has_bias"].toBool() ? defined(grads[1]) : std::nullopt;
        const OptionalTensor strength = ctx->saved_data["has_strength"].toBool() ? defined(grads[2]) : std::nullopt;
        const Form f = Form::load(ctx);
        if (ctx->saved_data["want_grad"].toBool() && (grads[0].defined() || bias || strength)) {
            out[0] = masked_op().call(grads[0].defined() ? grads[0] : at::zeros_like(grad), known, bias,
                                      strength ? defined(noise) : std::nullopt, strength, f.dim, f.channels_last,
                                      f.slope, f.gain);
        }
        if (ctx->saved_data["want_noise"].toBool() && strength) {
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
        Linear::save(ctx, {dim, channels_last, slope, gain}, x, mask, bias, noise, strength);
        ctx->set_materialize_grads(false);
        return masked_op().call(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(10);
        if (!grads[0].defined()) return out;
        const auto linear = Linear::grads(ctx, grads[0]);
        out[0] = linear[0];
        std::copy(linear.begin() + 1, linear.end(), out.begin() + 2);
        return out;
    }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& noise,
                                            const OptionalTensor& strength, const OptionalTensor& residual, int64_t dim,
                                            double slope, double gain, std::optional<double> clamp,
                                            double residual_gain, bool save_mask) {
    if (!any_needs_grad(OptionalTensor(x), bias, noise, strength, residual)) {
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
    if (!any_needs_grad(OptionalTensor(grad), noise)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return backward_op().call(grad, mask, noise, dim, channels_last, slope, gain, want_bias, want_strength);
    }
    const auto out = Backward::apply(grad, mask, noise, dim, channels_last, slope, gain, want_bias, want_strength);
    return {out[0], out[1], out[2]};
}

Tensor masked_autograd(const Tensor& x, const OptionalTensor& mask, const OptionalTensor& bias,
                       const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim, bool channels_last,
                       double slope, double gain) {
    if (!any_needs_grad(OptionalTensor(x), bias, noise, strength)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return masked_op().call(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
    }
    return Masked::apply(x, mask, bias, noise, strength, dim, channels_last, slope, gain);
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, Autograd, m) {
    m.impl("bias_lrelu", &forward_autograd);
    m.impl("bias_lrelu_backward", &backward_autograd);
    m.impl("bias_lrelu_masked", &masked_autograd);
}

}  // namespace anifast

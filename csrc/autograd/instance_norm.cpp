// The gradient of the native instance_norm: anifast/ops/instance_norm.py tells the formulas. In C++ for the reason that
// bias_lrelu.cpp gives.
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "gradients.h"

namespace anifast {
namespace {

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, double, double);
using BackwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, double);

const auto& forward_op() {
    static const auto op = find<ForwardOp>("anifast::instance_norm");
    return op;
}
const auto& backward_op() {
    static const auto op = find<BackwardOp>("anifast::instance_norm_backward");
    return op;
}

struct Forward : Function<Forward> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& residual, double slope,
                                 double eps) {
        at::AutoDispatchBelowADInplaceOrView below;
        auto [out, stats] = forward_op().call(x, residual, slope, eps);
        ctx->save_for_backward({x, stats});
        ctx->saved_data["slope"] = slope;
        ctx->saved_data["want_x"] = x.requires_grad();
        ctx->saved_data["want_residual"] = needs_grad(residual);
        ctx->mark_non_differentiable({stats});
        ctx->set_materialize_grads(false);
        return {out, stats};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(4);
        if (!grads[0].defined()) return out;
        const auto saved = ctx->get_saved_variables();
        if (ctx->saved_data.at("want_x").toBool()) {
            out[0] = backward_op().call(grads[0], saved[0], saved[1], ctx->saved_data.at("slope").toDouble());
        }
        if (ctx->saved_data.at("want_residual").toBool()) out[1] = grads[0];
        return out;
    }
};

// No second derivative: the result says so when somebody asks for one.
struct Backward : Function<Backward> {
    static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor& x, const Tensor& stats, double slope) {
        at::AutoDispatchBelowADInplaceOrView below;
        return backward_op().call(grad, x, stats, slope);
    }
    static variable_list backward(AutogradContext*, const variable_list&) {
        TORCH_CHECK_NOT_IMPLEMENTED(false,
                                    "instance_norm: the native backend has no second derivative; "
                                    "backend=\"reference\" has it");
    }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& x, const OptionalTensor& residual, double slope, double eps) {
    if (!any_needs_grad("instance_norm", OptionalTensor(x), residual)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op().call(x, residual, slope, eps);
    }
    const auto out = Forward::apply(x, residual, slope, eps);
    return {out[0], out[1]};
}

Tensor backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& stats, double slope) {
    if (!at::GradMode::is_enabled() || !(grad.requires_grad() || x.requires_grad())) {
        at::AutoDispatchBelowADInplaceOrView below;
        return backward_op().call(grad, x, stats, slope);
    }
    return Backward::apply(grad, x, stats, slope);
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, Autograd, m) {
    m.impl("instance_norm", &forward_autograd);
    m.impl("instance_norm_backward", &backward_autograd);
}

}  // namespace anifast

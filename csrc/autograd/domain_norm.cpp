// The gradient of the native domain_norm: anifast/ops/domain_norm.py tells the formulas. In C++ for the reason that
// bias_lrelu.cpp gives; that of its backward, which refuses, stands in Python.
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "gradients.h"

namespace anifast {
namespace {

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                             double, bool, double, double);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                      const Tensor&, bool, double, bool, double, std::array<bool, 3>);

const auto& forward_op() {
    static const auto op = find<ForwardOp>("anifast::domain_norm");
    return op;
}
const auto& backward_op() {
    static const auto op = find<BackwardOp>("anifast::domain_norm_backward");
    return op;
}

// Bits of the inputs.
enum Input { kX = 1, kGamma = 2, kBeta = 4 };

struct Forward : Function<Forward> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& gamma, const Tensor& beta,
                                 int64_t groups, const OptionalTensor& mean_memory, const OptionalTensor& std_memory,
                                 const OptionalTensor& weights, const OptionalTensor& limits,
                                 const OptionalTensor& mean, const OptionalTensor& std, double slope, bool pixel_norm,
                                 double eps, double pixel_eps) {
        at::AutoDispatchBelowADInplaceOrView below;
        auto [out, stats] = forward_op().call(x, gamma, beta, groups, mean_memory, std_memory, weights, limits, mean,
                                              std, slope, pixel_norm, eps, pixel_eps);
        // one entry instead of one for each: filling a map of names takes long beside a small tensor
        ctx->saved_data["form"] =
            c10::ivalue::Tuple::create(std::vector<c10::IValue>{mean.has_value(), slope, pixel_norm, pixel_eps});
        ctx->save_for_backward({x, gamma, beta, stats});
        ctx->mark_non_differentiable({stats});
        ctx->set_materialize_grads(false);
        return {out, stats};
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(14);
        const int64_t asked = asked_for(ctx, kX | kGamma | kBeta, {kX, kGamma, kBeta});
        if (!grads[0].defined() || !asked) return out;
        const auto form = ctx->saved_data.at("form").toTuple();
        const auto& at = form->elements();
        const std::array<bool, 3> wanted{(asked & kX) != 0, (asked & kGamma) != 0, (asked & kBeta) != 0};
        const auto saved = ctx->get_saved_variables();
        const auto found = [&] {
            const auto call = [&] {
                return backward_op().call(grads[0], saved[0], saved[1], saved[2], saved[3], at[0].toBool(),
                                          at[1].toDouble(), at[2].toBool(), at[3].toDouble(), wanted);
            };
            if (at::GradMode::is_enabled()) return call();
            at::AutoDispatchBelowADInplaceOrView below;  // past its gradient, which is Python's
            return call();
        }();
        if (wanted[0]) out[0] = std::get<0>(found);
        if (wanted[1]) out[1] = std::get<1>(found).to(saved[1].scalar_type());
        if (wanted[2]) out[2] = std::get<2>(found).to(saved[2].scalar_type());
        return out;
    }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& x, const Tensor& gamma, const Tensor& beta, int64_t groups,
                                            const OptionalTensor& mean_memory, const OptionalTensor& std_memory,
                                            const OptionalTensor& weights, const OptionalTensor& limits,
                                            const OptionalTensor& mean, const OptionalTensor& std, double slope,
                                            bool pixel_norm, double eps, double pixel_eps) {
    if (!any_needs_grad("domain_norm", OptionalTensor(x), OptionalTensor(gamma), OptionalTensor(beta))) {
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op().call(x, gamma, beta, groups, mean_memory, std_memory, weights, limits, mean, std, slope,
                                 pixel_norm, eps, pixel_eps);
    }
    const auto out = Forward::apply(x, gamma, beta, groups, mean_memory, std_memory, weights, limits, mean, std, slope,
                                    pixel_norm, eps, pixel_eps);
    return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, Autograd, m) { m.impl("domain_norm", &forward_autograd); }

}  // namespace anifast

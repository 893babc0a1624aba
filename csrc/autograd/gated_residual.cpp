// The gradient of the native gated_residual: anifast/ops/gated_residual.py tells the formulas. In C++ for the reason
// that bias_lrelu.cpp gives; that of its backward is asked for where overhead doesn't matter, and stands in Python.
#include "gated_residual.h"

#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/layout.h"
#include "gradients.h"
#include "plain_calls.h"

namespace anifast {
namespace {

using ForwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                         const OptionalTensor&, double, double, int64_t, int64_t);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                                              const OptionalTensor&, const Tensor&,
                                                                              const Tensor&, const OptionalTensor&,
                                                                              const OptionalTensor&, double, double,
                                                                              int64_t, int64_t, std::array<bool, 6>);

const auto& forward_op() {
    static const auto op = find<ForwardOp>("anifast::gated_residual");
    return op;
}
const auto& backward_op() {
    static const auto op = find<BackwardOp>("anifast::gated_residual_backward");
    return op;
}

// Bits of the inputs.
enum Input { kX = 1, kShortcut = 2, kGate = 4, kShortcutGate = 8, kSlope = 16, kBias = 32 };

struct Forward : Function<Forward> {
    static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& shortcut, const Tensor& gate,
                          const Tensor& shortcut_gate, const OptionalTensor& slope, const OptionalTensor& bias,
                          double mean, double std, int64_t up, int64_t crop) {
        at::AutoDispatchBelowADInplaceOrView below;
        const int64_t given =
            kX | kShortcut | kGate | kShortcutGate | (slope ? int64_t(kSlope) : 0) | (bias ? int64_t(kBias) : 0);
        // one entry instead of one for each: filling a map of names takes long beside a small tensor
        ctx->saved_data["form"] = c10::ivalue::Tuple::create(std::vector<c10::IValue>{mean, std, up, crop, given});
        const Tensor kept = shortcut_gate.requires_grad() ? shortcut : Tensor();
        ctx->save_for_backward({x, kept, gate, shortcut_gate, or_undefined(slope), or_undefined(bias)});
        ctx->set_materialize_grads(false);
        return forward_op().call(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        variable_list out(10);
        if (!grads[0].defined()) return out;
        const auto form = ctx->saved_data.at("form").toTuple();
        const std::vector<c10::IValue> at = form->elements().vec();
        const int64_t asked = asked_for(ctx, at[4].toInt(), {kX, kShortcut, kGate, kShortcutGate, kSlope, kBias});
        if (!asked) return out;
        std::array<bool, 6> wanted;
        for (int i = 0; i < 6; ++i) wanted[i] = (asked >> i & 1) != 0;
        const auto saved = ctx->get_saved_variables();
        const auto found = [&] {
            const auto call = [&] {
                return backward_op().call(grads[0], saved[0], defined(saved[1]), saved[2], saved[3], defined(saved[4]),
                                          defined(saved[5]), at[0].toDouble(), at[1].toDouble(), at[2].toInt(),
                                          at[3].toInt(), wanted);
            };
            if (at::GradMode::is_enabled()) return call();
            at::AutoDispatchBelowADInplaceOrView below;  // past its gradient, which is Python's
            return call();
        }();
        const std::array<Tensor, 6> each{std::get<0>(found), std::get<1>(found), std::get<2>(found),
                                         std::get<3>(found), std::get<4>(found), std::get<5>(found)};
        for (int i = 0; i < 6; ++i) {
            if (wanted[i]) out[i] = i < 2 ? each[i] : each[i].to(saved[i].scalar_type());
        }
        return out;
    }
};

Tensor forward_autograd(const Tensor& x, const Tensor& shortcut, const Tensor& gate, const Tensor& shortcut_gate,
                        const OptionalTensor& slope, const OptionalTensor& bias, double mean, double std, int64_t up,
                        int64_t crop) {
    if (!any_needs_grad("gated_residual", OptionalTensor(x), OptionalTensor(shortcut), OptionalTensor(gate),
                        OptionalTensor(shortcut_gate), slope, bias)) {
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op().call(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop);
    }
    return Forward::apply(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop);
}

// Whether the shortcut, doubled and cut, has x's shape.
bool is_shortcut_of(const Tensor& shortcut, const Tensor& x, int64_t up, int64_t crop) {
    if (up == 1) return crop == 0 && shortcut.sizes() == x.sizes();
    if (up != 2 || crop < 0 || x.dim() != 4 || shortcut.dim() != 4) return false;
    for (int64_t axis = 0; axis < 4; ++axis) {
        if (crop > shortcut.size(axis) && axis > 1) return false;
        if (x.size(axis) != (axis < 2 ? shortcut.size(axis) : 2 * (shortcut.size(axis) - crop))) return false;
    }
    return true;
}

}  // namespace

OptionalTensor gated_residual_if_plain(const Tensor& x, const Tensor& shortcut, const Tensor& gate,
                                       const Tensor& shortcut_gate, const OptionalTensor& slope,
                                       const OptionalTensor& bias, double mean, double std, int64_t up, int64_t crop) {
    // a transform of torch.func sees other sizes than the tensor has
    if (transforms_are_active() || !(x.dim() == 2 || x.dim() == 4) || !is_supported(x.scalar_type())) {
        return std::nullopt;
    }
    const auto is_parameter = [&](const Tensor& value) {
        return value.dim() == 1 && value.size(0) == x.size(1) && fits(value, x, true);
    };
    const bool plain = (x.is_contiguous() || is_channels_last(x)) && fits(shortcut, x, false) &&
                       is_shortcut_of(shortcut, x, up, crop) && std > 0.0 && is_parameter(gate) &&
                       is_parameter(shortcut_gate) && (!slope || is_parameter(*slope)) &&
                       (!bias || is_parameter(*bias));
    if (!plain) return std::nullopt;
    return forward_op().call(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop);
}

TORCH_LIBRARY_IMPL(anifast, Autograd, m) { m.impl("gated_residual", &forward_autograd); }

}  // namespace anifast

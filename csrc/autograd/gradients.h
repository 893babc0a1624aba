// What the gradients of all native ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <initializer_list>
#include <optional>
#include <tuple>

namespace anifast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The dispatcher's op of that name; looking it up takes long, so callers keep it.
template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline OptionalTensor defined(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
inline Tensor or_undefined(const OptionalTensor& x) { return x.value_or(Tensor()); }

inline bool needs_grad(const OptionalTensor& x) { return x && x->requires_grad(); }

// The gradient of an activation, of whatever op: anifast/ops/bias_lrelu.py.
using BiasLreluBackwardOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                               const OptionalTensor&, int64_t, bool, double, double,
                                                               bool, bool);
inline const auto& bias_lrelu_backward_op() {
    static const auto op = find<BiasLreluBackwardOp>("anifast::bias_lrelu_backward");
    return op;
}

// Whether a gradient has to be recorded. Forward-mode tangents have no formula here and must not be dropped silently.
template <class... Tensors>
bool any_needs_grad(const char* op, const Tensors&... tensors) {
    const bool tangent = ((tensors && tensors->_fw_grad(/*level=*/0).defined()) || ...);
    TORCH_CHECK_NOT_IMPLEMENTED(!tangent, op,
                                ": the native backend has no forward-mode differentiation (jvp); "
                                "backend=\"reference\" has it");
    return at::GradMode::is_enabled() && (needs_grad(tensors) || ...);
}

// The bits of those inputs whose gradient this very backward is asked for: `torch.autograd.grad(y, x)` wants one of
// them however many need theirs. `given` has the bits of the inputs that were there, `order` is their order in
// `forward`.
inline int64_t asked_for(const AutogradContext* ctx, int64_t given, std::initializer_list<int64_t> order) {
    int64_t asked = 0;
    size_t edge = 0;
    for (const int64_t bit : order) {
        if ((given & bit) != 0 && ctx->needs_input_grad(edge++)) asked |= bit;
    }
    return asked;
}

// Whether a transform of torch.func (grad, vjp, jvp, vmap) is going on in this thread.
inline bool transforms_are_active() {
    return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

}  // namespace anifast

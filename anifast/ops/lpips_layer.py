"""One layer of LPIPS: two maps normalised over their channels, weighted squared difference, spatial mean.

With |a| the norm of a pixel's channel vector, p = 1 / (|a| + eps) (with eps_inside 1 / sqrt(|a|^2 + eps); 0 for a zero
vector), q the same of b, d = p a - q b per channel and u the gradient of that pixel's value v,

    v = sum w d^2                                       (lpips_layer: reads both maps once)
    ga =  2 u p (w d - k a),   k = sum w d a  * p / |a| (eps_inside: p^2)
    gb = -2 u q (w d - l b),   l = sum w d b  * q / |b| (eps_inside: q^2)      (lpips_layer_backward: the same, once)

Of a pixel p, q, k and l are kept, four numbers, so that backward need not sum over the channels again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import backends
from anifast.ops import _common
from anifast.reference.lpips_layer import lpips_layer as _reference
from anifast.reference.lpips_layer import normalised

_OP = "lpips_layer"
_FORWARD = "(Tensor a, Tensor b, Tensor? weight, float eps, bool eps_inside, bool mean) -> (Tensor, Tensor)"
_BACKWARD = (
    "_backward(Tensor grad, Tensor a, Tensor b, Tensor? weight, Tensor stats, float eps, bool eps_inside, bool mean, "
    "bool want_a, bool want_b) -> (Tensor, Tensor)"
)


def _fake_forward(
    a: Tensor, b: Tensor, weight: Tensor | None, eps: float, eps_inside: bool, mean: bool
) -> tuple[Tensor, Tensor]:
    images, _, rows, columns = a.shape
    shape = (images, 1, 1, 1) if mean else (images, 1, rows, columns)
    return a.new_empty(shape, dtype=_common.wide(a)), a.new_empty((4, images, rows * columns), dtype=_common.wide(a))


def _fake_backward(grad: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Where a gradient isn't wanted stands an empty tensor."""
    form = _common.memory_format(4, _common.is_channels_last(a))
    want_a, want_b = rest[-2:]
    ga = torch.empty_like(a, memory_format=form) if want_a else a.new_empty(0)
    return ga, torch.empty_like(b, memory_format=form) if want_b else b.new_empty(0)


def _define(suffix: str) -> None:
    """Define both ops of one implementation, their fakes and their gradients."""
    names = [_common.define(f"{_OP}{schema.replace('(', suffix + '(', 1)}") for schema in (_FORWARD, _BACKWARD)]
    backward = getattr(torch.ops.anifast, names[1].removeprefix("anifast::")).default

    def forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        a, b, weight, *ctx.how = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(a, b, weight, output[1])
        ctx.set_materialize_grads(False)

    def forward_grad(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        a, b, weight, stats = ctx.saved_tensors
        want_a, want_b, want_weight = ctx.needs_input_grad[:3]
        found: list[Tensor | None] = [None] * 6
        if grad is not None and (want_a or want_b):
            values = backward(grad.contiguous(), a, b, weight, stats, *ctx.how, want_a, want_b)
            found[:2] = [value if want else None for value, want in zip(values, (want_a, want_b), strict=True)]
        if grad is not None and want_weight:
            found[2] = _of_weight(grad, a, b, weight, *ctx.how)
        return tuple(found)

    def backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, a, b, weight, _, *ctx.how, ctx.want_a, ctx.want_b = inputs
        ctx.save_for_backward(grad, a, b, weight)
        ctx.set_materialize_grads(False)

    def backward_grad(ctx: Any, ha: Tensor | None, hb: Tensor | None) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[:4]
        ha, hb = ha if ctx.want_a else None, hb if ctx.want_b else None
        found: list[Tensor | None] = [None] * 10
        if ha is not None or hb is not None:
            found[:4] = _second(ctx.saved_tensors, ha, hb, ctx.how, wants)
        return tuple(found)

    torch.library.register_fake(names[0])(_fake_forward)
    torch.library.register_fake(names[1])(_fake_backward)
    torch.library.register_autograd(names[0], forward_grad, setup_context=forward_context)
    torch.library.register_autograd(names[1], backward_grad, setup_context=backward_context)


def _of_weight(grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, eps: float, eps_inside: bool, mean: bool) -> Tensor:
    """The gradient of the weight in plain PyTorch: it is asked for where heads are trained, and nowhere else."""
    with _common.without_autocast(a):
        wide = _common.wide(a)
        squares = (normalised(a.to(wide), eps, eps_inside) - normalised(b.to(wide), eps, eps_inside)).square()
        sums = torch.einsum("nchw,nhw->c", squares, grad[:, 0].expand(-1, *a.shape[2:]))
        return (sums / (a.shape[2] * a.shape[3]) if mean else sums).to(weight.dtype)


def _second(
    tensors: Sequence[Tensor | None], ha: Tensor | None, hb: Tensor | None, how: Any, wants: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of lpips_layer_backward for gradients of its two results, from the reference's own graph.

    `tensors` are grad, a, b and the weight, and `wants` says of which of them gradients are asked for.
    """
    higher = torch.is_grad_enabled()

    def own(x: Tensor) -> Tensor:  # a view ends the graph here and, for the orders above, goes on with it
        return x.view_as(x) if higher and x.requires_grad else x.detach().requires_grad_()

    grad, a, b, weight = [None if x is None else own(x) for x in tensors]
    assert grad is not None and a is not None and b is not None
    with torch.enable_grad(), _common.without_autocast(a):
        out = _reference(a, b, weight, *how)
        pairs = [(x, h) for x, h in ((a, ha), (b, hb)) if h is not None]
        first = torch.autograd.grad(out, [x for x, _ in pairs], grad, create_graph=True)
        asked = [x for x, want in zip((grad, a, b, weight), wants, strict=True) if want and x is not None]
        second = torch.autograd.grad(first, asked, [h for _, h in pairs], create_graph=higher, allow_unused=True)
    found = iter(second)
    return [next(found) if want else None for want in wants]


_define("")
_define("_triton")
for _suffix, _place in (("", 0), ("_backward", 1)):  # where the first map stands, whose layout is that of all
    _common.implement(
        f"anifast::{_OP}{_suffix}_triton",
        "anifast.kernels.lpips_layer",
        f"{_OP}{_suffix}",
        lambda *given, place=_place: (*given, _common.memory_format(4, _common.is_channels_last(given[place]))),
    )
backends.register(_OP, "native", "triton")


def lpips_layer(
    a: Tensor,
    b: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-10,
    eps_inside: bool = False,
    reduce: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Distance of two feature maps as a layer of LPIPS has it (Zhang et al. 2018, arXiv 1801.03924, equation 1).

    sum over c of weight[c] * (a[c] / (|a| + eps) - b[c] / (|b| + eps))^2 at each pixel, |.| over the channels there,
    and the mean of that over the pixels. Differentiable to any order in a, b and weight; the gradient at a zero vector,
    where the formula's own is 1 / eps or NaN, is 0. No forward mode (jvp) outside the reference.

    Args:
        a, b: N,C,H,W in float32, float64, float16 or bfloat16, of one shape, type and device, contiguous or
            channels_last (b follows a); under autocast the wider type is taken. N may be 0.
        weight: C or 1,C,1,1, in the type of a, or float32 beside half maps; None is 1 for every channel.
        eps: added to the norm, against division by 0.
        eps_inside: added to its square instead: a / sqrt(|a|^2 + eps).
        reduce: "mean" over the pixels, or "none" for a map.
        backend: "reference", "native" or "triton"; None chooses (see `anifast.backends`).

    Returns:
        N,1,1,1 for "mean", N,1,H,W for "none", in float32 (float64 for float64).

    Raises:
        TypeError: an argument is no tensor or has a wrong type.
        ValueError: a wrong rank, size or device, maps without pixels, a negative eps, an unknown reduce.
        BackendError: an explicitly chosen backend cannot run here.
    """
    _common.check_float(_OP, "a", a)
    if a.dim() != 4 or 0 in a.shape[1:]:
        raise ValueError(f"{_OP}: a has shape {tuple(a.shape)}, expected N,C,H,W without a 0 behind N")
    _common.promote(maps := [a, b])
    a, b = maps
    b = _common.like(_OP, "b", b, a, float32_too=False, called="a")
    if b.shape != a.shape:
        raise ValueError(f"{_OP}: b has shape {tuple(b.shape)}, expected {tuple(a.shape)} as a")
    if weight is not None:
        weight = _common.like(_OP, "weight", weight, a, float32_too=True, called="a")
        channels = a.shape[1]
        if weight.shape not in ((channels,), (1, channels, 1, 1)):
            raise ValueError(
                f"{_OP}: weight has shape {tuple(weight.shape)}, expected ({channels},) or (1, {channels}, 1, 1) "
                "as a has that many channels"
            )
        weight = weight.flatten().to(_common.wide(a))
    _common.check_number(_OP, "eps", eps)
    if not eps >= 0.0:
        raise ValueError(f"{_OP}: eps must not be negative, got {eps}")
    _common.check_bool(_OP, "eps_inside", eps_inside)
    if reduce not in ("mean", "none"):
        raise ValueError(f"{_OP}: reduce is {reduce!r}, expected 'mean' or 'none'")
    mean = reduce == "mean"
    chosen = _common.choose(_OP, a, backend)
    if chosen == "reference":
        return _reference(a, b, weight, eps, eps_inside, mean)
    _common.refuse_tangents(_OP, (a, b, weight))
    a = _common.dense(a)
    b = b.contiguous(memory_format=_common.memory_format(4, _common.is_channels_last(a)))
    op = torch.ops.anifast.lpips_layer if chosen == "native" else torch.ops.anifast.lpips_layer_triton
    out: Tensor = op(a, b, weight, eps, eps_inside, mean)[0]
    return out

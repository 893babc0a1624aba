"""The end of a gated residual block: bias, centred PReLU, both gates and the sum in one pass over the maps.

With S the shortcut (or its nearest-neighbour doubling, cut), v = x + bias, p = slope where v <= 0 and 1 elsewhere,

    forward    y = shortcut_gate * S + gate * (p * v - mean) / std
    backward   gx = gate / std * p * g,   gbias = sum gx,   gslope = gate / std * sum min(v, 0) * g
               ggate = sum g * (p * v - mean) / std,   gshortcut_gate = sum g * S
               gshortcut = shortcut_gate * g, over the four pixels that one became

Backward is one pass over x, S and g for all that is asked for. It reads x again instead of something forward kept, as
the gradients of gate and slope need it whole; S is kept where the gradient of shortcut_gate is wanted, and only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import _native, backends
from anifast.ops import _common
from anifast.reference.gated_residual import gated_residual as _reference

_OP = "gated_residual"
_PARAMETERS = "Tensor gate, Tensor shortcut_gate, Tensor? slope, Tensor? bias, float mean, float std, int up, int crop"
_FORWARD = f"(Tensor x, Tensor shortcut, {_PARAMETERS}) -> Tensor"
_BACKWARD = (
    f"_backward(Tensor grad, Tensor x, Tensor? shortcut, {_PARAMETERS}, bool[6] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def shortcut_shape(shape: torch.Size, up: int, crop: int) -> tuple[int, ...]:
    """Shape of the shortcut beside an x of `shape`."""
    if up == 1:
        return tuple(shape)
    return (*shape[:2], *((size + 2 * crop) // 2 for size in shape[2:]))


def _form(x: Tensor) -> torch.memory_format:
    """The layout of a call's maps: that of x."""
    return _common.memory_format(x.dim(), _common.is_channels_last(x))


def _fake_forward(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_form(x))


def _fake_backward(grad: Tensor, x: Tensor, shortcut: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, shortcut, gate, shortcut_gate, slope and bias; where one isn't wanted stands an empty tensor."""
    up, crop, wanted = rest[-3:]
    shape, numbers = shortcut_shape(x.shape, up, crop), _common.wide(x)
    return (
        torch.empty_like(x, memory_format=_form(x)) if wanted[0] else x.new_empty(0),
        x.new_empty(shape).contiguous(memory_format=_form(x)) if wanted[1] else x.new_empty(0),
        *(x.new_empty(x.shape[1] if want else 0, dtype=numbers) for want in wanted[2:]),
    )


def _define(suffix: str) -> None:
    """Define both ops of one implementation, their fakes and their gradients.

    The native forward has its gradient in csrc/autograd, where a call costs microseconds less.
    """
    names = [_common.define(f"{_OP}{schema.replace('(', suffix + '(', 1)}") for schema in (_FORWARD, _BACKWARD)]
    backward = getattr(torch.ops.anifast, names[1].removeprefix("anifast::")).default

    def forward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, shortcut, gate, shortcut_gate, slope, bias, *ctx.how = inputs
        kept = shortcut if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(x, kept, gate, shortcut_gate, slope, bias)
        ctx.set_materialize_grads(False)

    def forward_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 10
        wanted = list(ctx.needs_input_grad[:6])
        if grad is not None and any(wanted):
            x, _, *parameters = ctx.saved_tensors
            values = backward(grad, *ctx.saved_tensors, *ctx.how, wanted)
            types = [x.dtype, x.dtype, *(None if value is None else value.dtype for value in parameters)]
            found[:6] = [
                value.to(dtype) if want else None for value, dtype, want in zip(values, types, wanted, strict=True)
            ]
        return tuple(found)

    def backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, shortcut, gate, shortcut_gate, slope, bias, *ctx.how, ctx.wanted = inputs
        ctx.save_for_backward(grad, x, shortcut, gate, shortcut_gate, slope, bias)
        ctx.set_materialize_grads(False)

    def backward_grad(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 12
        along = tuple(h if want else None for h, want in zip(along, ctx.wanted, strict=True))
        if any(h is not None for h in along):
            found[:7] = _second(ctx.saved_tensors, along, ctx.how, ctx.needs_input_grad[:7])
        return tuple(found)

    torch.library.register_fake(names[0])(_fake_forward)
    torch.library.register_fake(names[1])(_fake_backward)
    if suffix:
        torch.library.register_autograd(names[0], forward_grad, setup_context=forward_context)
    torch.library.register_autograd(names[1], backward_grad, setup_context=backward_context)


def _second(
    tensors: Sequence[Tensor | None], along: Sequence[Tensor | None], how: Any, wants: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of gated_residual_backward for gradients `along` of its results, from the reference's own graph.

    `tensors` are grad and the six of forward, and `wants` says of which of them gradients are asked for. Half types are
    taken to float32; no system needs this, so it may use memory.
    """
    higher = torch.is_grad_enabled()
    _, x, shortcut, *_ = tensors
    assert x is not None
    if shortcut is None:  # whose values count for the gradient of shortcut_gate alone, which isn't in `along`
        tensors = [*tensors[:2], x.new_zeros(shortcut_shape(x.shape, *how[2:])), *tensors[3:]]

    def own(x: Tensor) -> Tensor:  # a view ends the graph here and, for the orders above, goes on with it
        return x.view_as(x) if higher and x.requires_grad else x.detach().requires_grad_()

    points = [None if value is None else own(value) for value in tensors]
    with torch.enable_grad(), _common.without_autocast(x):
        grad, *inputs = [None if point is None else point.to(_common.wide(x)) for point in points]
        out = _reference(*inputs, *how)  # type: ignore[arg-type]
        pairs = [
            (value, h.to(value.dtype))
            for value, h in zip(inputs, along, strict=True)
            if value is not None and h is not None
        ]
        first = torch.autograd.grad(out, [value for value, _ in pairs], grad, create_graph=True)
        asked = [point for point, want in zip(points, wants, strict=True) if want and point is not None]
        second = torch.autograd.grad(first, asked, [h for _, h in pairs], create_graph=higher, allow_unused=True)
    found = iter(second)
    return [next(found) if want else None for want in wants]


_define("")
_define("_triton")
#: for calls that need neither casts nor an explanation, at a part of the cost on a small tensor
short = getattr(_native.extension, "gated_residual_if_plain", None)
_common.implement(
    f"anifast::{_OP}_triton",
    "anifast.kernels.gated_residual",
    _OP,
    lambda x, shortcut, *rest: (x, shortcut.contiguous(memory_format=_form(x)), *rest, _form(x)),
)
_common.implement(
    f"anifast::{_OP}_backward_triton",
    "anifast.kernels.gated_residual",
    f"{_OP}_backward",
    lambda grad, x, shortcut, *rest: (
        grad.contiguous(memory_format=_form(x)),
        x,
        None if shortcut is None else shortcut.contiguous(memory_format=_form(x)),
        *rest,
        _form(x),
    ),
)
backends.register(_OP, "native", "triton", native_devices=("cpu",))


def gated_residual(
    x: Tensor,
    shortcut: Tensor,
    gate: Tensor,
    shortcut_gate: Tensor,
    slope: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    up: int = 1,
    crop: int = 0,
    backend: str | None = None,
) -> Tensor:
    """shortcut_gate * S + gate * (prelu(x + bias; slope) - mean) / std, gates, slope and bias one number a channel.

    The sum of a residual block with learned gates and a centred PReLU (Xiang and Li 2019, arXiv 1905.10742, section 4
    and the authors' program): x is what the block's convolution gives without its bias, and mean and std are the
    moments of prelu with slope 0.25 under unit normal values. S is the shortcut, or with up=2 its nearest-neighbour
    doubling without `crop` pixels on each side, which is never made. Differentiable to any order in all six tensors;
    no forward mode (jvp) outside the reference, and the transforms of torch.func take the reference by themselves.

    Args:
        x: N,C,H,W or N,C in float32, float64, float16 or bfloat16, any size including 0; contiguous or channels_last
            is kept in the output.
        shortcut: the dtype of x, and its shape; with up=2 N,C,(H + 2 crop) / 2,(W + 2 crop) / 2. It follows x's layout.
        gate: C, in x's dtype or, as the other parameters, float32 beside a half x.
        shortcut_gate: C.
        slope: C, factors of negative values: zeros are ReLU; None is 1 (linear). At 0 the first derivative is that of
            the negative side, and the second that of the positive one, as in PyTorch.
        bias: C; None is 0.
        mean: subtracted behind the PReLU.
        std: divides what is left; positive.
        up: 1 or 2, along both axes.
        crop: pixels cut off on each side of the doubled shortcut; with up=2 only.
        backend: "reference", "native" (CPU only) or "triton"; None chooses (see `anifast.backends`).

    Returns:
        A new tensor with the shape, dtype and layout of x. Half types are computed in float32 and rounded once.

    Raises:
        TypeError: an argument is no tensor, number or whole number, or has a wrong dtype.
        ValueError: a wrong rank, size, device, up or crop, or a std that is not positive.
        BackendError: an explicitly chosen backend cannot run here.
    """
    tensors = (x, shortcut, gate, shortcut_gate, slope, bias)
    if (
        short is not None
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.overrides.has_torch_function(tensors)
        and backends.choose(_OP, x.device.type, backend) == "native"
    ):
        try:
            plain: Tensor | None = short(*tensors, mean, std, up, crop)
        except TypeError:  # an argument of a wrong type: what follows says which
            plain = None
        if plain is not None:
            return plain
    _check(x, shortcut, up, crop, mean, std)
    shortcut = _common.like(_OP, "shortcut", shortcut, x, float32_too=False)
    gate, shortcut_gate = _parameter("gate", gate, x), _parameter("shortcut_gate", shortcut_gate, x)
    slope = None if slope is None else _parameter("slope", slope, x)
    bias = None if bias is None else _parameter("bias", bias, x)
    chosen = _common.choose(_OP, x, backend)
    if chosen == "reference":
        return _reference(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop)
    if not torch.compiler.is_compiling():
        _common.refuse_tangents(_OP, tensors)
    op = torch.ops.anifast.gated_residual if chosen == "native" else torch.ops.anifast.gated_residual_triton
    out: Tensor = op(_common.dense(x), shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop)
    return out


def _check(x: Tensor, shortcut: Tensor, up: int, crop: int, mean: float, std: float) -> None:
    """Check everything but the parameters."""
    _common.check_float(_OP, "x", x)
    if x.dim() not in (2, 4):
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}, expected N,C or N,C,H,W")
    for name, value in (("up", up), ("crop", crop)):
        if not isinstance(value, int):
            raise TypeError(f"{_OP}: {name} must be an int, got {type(value).__name__}")
    if up not in (1, 2):
        raise ValueError(f"{_OP}: up must be 1 or 2, got {up}")
    if up == 2 and x.dim() == 2:
        raise ValueError(f"{_OP}: up=2 needs an x of N,C,H,W, got shape {tuple(x.shape)}")
    if crop < 0 or (crop and up == 1):
        raise ValueError(f"{_OP}: crop must be 0, or with up=2 not negative; got {crop} with up={up}")
    _common.check_float(_OP, "shortcut", shortcut)
    if up == 1 and shortcut.shape != x.shape:
        raise ValueError(f"{_OP}: shortcut has shape {tuple(shortcut.shape)}, expected {tuple(x.shape)} as x")
    if up == 2 and (
        shortcut.dim() != 4
        or shortcut.shape[:2] != x.shape[:2]
        or any(2 * small - 2 * crop != size for small, size in zip(shortcut.shape[2:], x.shape[2:], strict=True))
    ):
        raise ValueError(
            f"{_OP}: shortcut has shape {tuple(shortcut.shape)}, which doubled and without {crop} pixels on each side "
            f"is not x's {tuple(x.shape)}"
        )
    _common.check_number(_OP, "mean", mean)
    _common.check_number(_OP, "std", std)
    if not std > 0.0:
        raise ValueError(f"{_OP}: std must be positive, got {std}")


def _parameter(name: str, value: Tensor, x: Tensor) -> Tensor:
    """`value` checked to be one number a channel, cast where autocast allows it."""
    value = _common.like(_OP, name, value, x, float32_too=True)
    if value.shape != (x.shape[1],):
        raise ValueError(f"{_OP}: {name} has shape {tuple(value.shape)}, expected ({x.shape[1]},) as x has channels")
    return value

"""Domain-specific batch (re)normalisation, leaky ReLU and pixel norm: one pass for the statistics, one for the rest.

A batch is G groups of consecutive images. With mean m and deviation s = sqrt(variance + eps) of a group's channel, and
r and d of batch renormalisation (1 and 0 without it),

    forward    xhat = (x - m) / s,   v = gamma * (r * xhat + d) + beta,   a = lrelu(v),   q = mean_c(a^2) + pixel_eps
               out = p = a / sqrt(q)
    backward   ga = (gp - p * mean_c(gp * p)) / sqrt(q),   h = ga * lrelu'(v),   k = gamma * h
               gbeta = sum h,   ggamma = sum h * (r * xhat + d)
               gx = r / s * (k - mean(k) - xhat * mean(k * xhat)), means over the group's images and pixels

where r and d are constants, as are m and s if they are given: gx = r / s * k then. Forward leaves x and m, s, r, d
behind (what r and d came from may change before backward); the rest is computed again from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import backends
from anifast.ops import _common
from anifast.reference.domain_norm import domain_norm as _reference

_OP = "domain_norm"
# gamma and beta are [R, C]. All four of renorm are there or none, and both statistics or none, not both kinds at once.
# The second output is [4, groups, C]: m, s, r, d.
_FORWARD = (
    "(Tensor x, Tensor gamma, Tensor beta, int groups, Tensor? mean_memory, Tensor? std_memory, Tensor? weights, "
    "Tensor? limits, Tensor? mean, Tensor? std, float slope, bool pixel_norm, float eps, float pixel_eps) "
    "-> (Tensor, Tensor)"
)
# `fixed` says that the statistics were given; `wanted` is about x, gamma and beta.
_BACKWARD = (
    "_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor stats, bool fixed, float slope, "
    "bool pixel_norm, float pixel_eps, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)


def _form(x: Tensor) -> torch.memory_format:
    """The layout of a call's maps: that of x."""
    return _common.memory_format(x.dim(), _common.is_channels_last(x))


def _fake_forward(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    stats = x.new_empty((4, groups, x.shape[1]), dtype=_common.wide(x))
    return torch.empty_like(x, memory_format=_form(x)), stats


def _fake_backward(grad: Tensor, x: Tensor, gamma: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, gamma and beta, the latter in float32 beside a half x; an empty tensor where one isn't wanted."""
    want_x, *others = rest[-1]
    return (
        torch.empty_like(x, memory_format=_form(x)) if want_x else x.new_empty(0),
        *(x.new_empty(gamma.shape if want else 0, dtype=_common.wide(x)) for want in others),
    )


def _contiguous(arguments: Sequence[Any]) -> list[Any]:
    """The arguments behind the maps as the Triton kernels read them: small tensors are contiguous."""
    return [value.contiguous() if isinstance(value, Tensor) else value for value in arguments]


def _define(suffix: str) -> None:
    """Define both ops of one implementation, their fakes and their gradients.

    The native forward has its gradient in csrc/autograd, where a call costs microseconds less.
    """
    names = [_common.define(f"{_OP}{schema.replace('(', suffix + '(', 1)}") for schema in (_FORWARD, _BACKWARD)]
    backward = getattr(torch.ops.anifast, names[1].removeprefix("anifast::")).default

    def forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gamma, beta, *_, mean, _, slope, pixel_norm, _, pixel_eps = inputs
        ctx.how = (mean is not None, slope, pixel_norm, pixel_eps)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gamma, beta, output[1])
        ctx.set_materialize_grads(False)

    def forward_grad(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 14
        wanted = list(ctx.needs_input_grad[:3])
        if grad is not None and any(wanted):
            inputs = ctx.saved_tensors[:3]
            values = backward(grad, *ctx.saved_tensors, *ctx.how, wanted)
            found[:3] = [
                value.to(given.dtype) if want else None
                for value, given, want in zip(values, inputs, wanted, strict=True)
            ]
        return tuple(found)

    def backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    def backward_grad(ctx: Any, *along: Tensor | None) -> tuple[None, ...]:
        if all(h is None for h in along):
            return (None,) * 10
        raise NotImplementedError(f'{_OP}: only backend="reference" has a second derivative')

    torch.library.register_fake(names[0])(_fake_forward)
    torch.library.register_fake(names[1])(_fake_backward)
    if suffix:
        torch.library.register_autograd(names[0], forward_grad, setup_context=forward_context)
    torch.library.register_autograd(names[1], backward_grad, setup_context=backward_context)


_define("")
_define("_triton")
_common.implement(
    f"anifast::{_OP}_triton",
    "anifast.kernels.domain_norm",
    _OP,
    lambda x, *rest: (x, *_contiguous(rest), _form(x)),
)
_common.implement(
    f"anifast::{_OP}_backward_triton",
    "anifast.kernels.domain_norm",
    f"{_OP}_backward",
    lambda grad, x, *rest: (grad.contiguous(memory_format=_form(x)), x, *_contiguous(rest), _form(x)),
)
backends.register(_OP, "native", "triton", native_devices=("cpu",))


def domain_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    groups: int = 1,
    renorm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    slope: float = 0.2,
    pixel_norm: bool = True,
    eps: float = 1e-3,
    pixel_eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each group of images by statistics of its own; affine part, leaky ReLU and pixel norm follow.

    The batch is `groups` parts of N / groups consecutive images. With mean and std = sqrt(biased variance + eps) over a
    group's images and pixels, per channel,

        v = gamma * ((x - mean) / std * r + d) + beta,   a = lrelu(v),   out = a / sqrt(mean_c(a^2) + pixel_eps)

    as in Twin-GAN's layers, whose domains have gamma, beta and statistics of their own; pixel norm is Karras et al.
    2018 (arXiv 1710.10196, section 4.2). r = 1 and d = 0, or with `renorm` those of batch renormalisation (Ioffe 2017,
    arXiv 1702.03275, section 3) with memories that start at 0 and a weight that tells how full they are:

        m~ = M + (1 - wM) * mean,   s~ = S + (1 - wS) * std
        r = clip(std / s~, rmin, rmax),   d = clip((mean - m~) / s~, -dmax, dmax)

    The gradients of x, gamma and beta are exact, with r and d as constants. Second order, forward mode (jvp) and the
    transforms of torch.func on the reference only, which the latter two take by themselves.

    Args:
        x: N,C or N,C,*spatial, floating point, any size including 0; contiguous or channels_last is kept in the output.
        gamma: [R, C], each row for N / R consecutive images, R a multiple of groups that divides N: R = groups is one
            domain a group, R = N is a conditional norm. [C] or [1, C] serve all images. In x's dtype or, beside a half
            x, in float32.
        beta: the shape of gamma.
        groups: parts of the batch with statistics of their own; N is instance norm.
        renorm: None, or the memories of mean and std [groups, C], their weights [groups, 2] (wM, wS), and the limits
            [3] (rmin, rmax, dmax); in float32 (float64 for a float64 x), constants for the gradient. They are read on
            the device when the op runs: a recorded CUDA graph sees what they hold when it is played.
        statistics: None, or (mean, std) [groups, C] of the same type that stand for the batch's, as in evaluation, and
            are constants for the gradient. Not with renorm.
        slope: factor of negative values of v: 1 is linear, 0 is ReLU. At 0 the derivative is that of the negative side.
        pixel_norm: whether each pixel is divided by the root of its channels' mean square.
        eps: added to the variance.
        pixel_eps: added to the mean square.
        backend: "reference", "native" (CPU only) or "triton"; None chooses (see `anifast.backends`).

    Returns:
        out, a new tensor with the shape, dtype and layout of x (half types are computed in float32 and rounded once);
        mean and std, [groups, C] in float32 (float64 for a float64 x), without gradient: those of the batch, or
        `statistics` as they came. Where a group has no values they are 0 and sqrt(eps).

    Raises:
        TypeError: an argument is no tensor, number, whole number or bool, or has a wrong dtype.
        ValueError: a wrong rank, size or device, groups or rows that do not divide the batch, a negative eps, or
            renorm and statistics at once.
        BackendError: an explicitly chosen backend cannot run here.
    """
    _check(x, groups, slope, pixel_norm, eps, pixel_eps)
    gamma, beta = _parameters(x, gamma, beta, groups)
    if renorm is not None and statistics is not None:
        raise ValueError(f"{_OP}: renorm brings the batch's statistics to the memories, and statistics replace them")
    channels = x.shape[1]
    if renorm is not None:
        shapes = [(groups, channels), (groups, channels), (groups, 2), (3,)]
        _check_constants(x, "renorm", ("mean_memory", "std_memory", "weights", "limits"), shapes, renorm)
    if statistics is not None:
        _check_constants(x, "statistics", ("mean", "std"), [(groups, channels)] * 2, statistics)
    chosen = _common.choose(_OP, x, backend)
    if chosen == "reference":
        return _reference(x, gamma, beta, groups, renorm, statistics, slope, pixel_norm, eps, pixel_eps)
    if not torch.compiler.is_compiling():
        _common.refuse_tangents(_OP, (x, gamma, beta))
    op = torch.ops.anifast.domain_norm if chosen == "native" else torch.ops.anifast.domain_norm_triton
    given = (*(renorm or (None,) * 4), *(statistics or (None,) * 2))
    out, stats = op.default(_common.dense(x), gamma, beta, groups, *given, slope, pixel_norm, eps, pixel_eps)
    mean, std = statistics or (stats[0], stats[1])
    return out, mean.detach(), std.detach()


def _check(x: Tensor, groups: int, slope: float, pixel_norm: bool, eps: float, pixel_eps: float) -> None:
    """Check x and the numbers."""
    _common.check_float(_OP, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}, expected N,C or N,C,*spatial")
    if not isinstance(groups, (int, torch.SymInt)) or isinstance(groups, bool):
        raise TypeError(f"{_OP}: groups must be an int, got {type(groups).__name__}")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"{_OP}: groups must divide the batch of {x.shape[0]}, got {groups}")
    _common.check_number(_OP, "slope", slope)
    _common.check_bool(_OP, "pixel_norm", pixel_norm)
    for name, value in (("eps", eps), ("pixel_eps", pixel_eps)):
        _common.check_number(_OP, name, value)
        if not value >= 0.0:
            raise ValueError(f"{_OP}: {name} must not be negative, got {value}")


def _parameters(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Gamma and beta checked, cast where autocast allows it, and as [R, C] with R a multiple of groups."""
    gamma = _common.like(_OP, "gamma", gamma, x, float32_too=True)
    beta = _common.like(_OP, "beta", beta, x, float32_too=True)
    images, channels = x.shape[:2]
    if gamma.dim() not in (1, 2) or gamma.shape[-1] != channels:
        raise ValueError(
            f"{_OP}: gamma has shape {tuple(gamma.shape)}, expected [C] or [rows, C] with the {channels} channels of x"
        )
    if beta.shape != gamma.shape:
        raise ValueError(f"{_OP}: beta has shape {tuple(beta.shape)}, expected {tuple(gamma.shape)} as gamma")
    rows = gamma.shape[0] if gamma.dim() == 2 else 1
    if rows == 1:  # in the type of sums, because the gradients of all groups are added up
        wide = gamma.dtype if groups == 1 else _common.wide(x)
        return gamma.to(wide).expand(groups, channels), beta.to(wide).expand(groups, channels)
    if rows < 1 or rows % groups or images % rows:
        raise ValueError(
            f"{_OP}: gamma has {rows} rows, expected a multiple of groups ({groups}) that divides the batch of {images}"
        )
    return gamma, beta


def _check_constants(
    x: Tensor, what: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]], given: Sequence[Tensor]
) -> None:
    """Check the tensors of renorm or statistics."""
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{_OP}: {what} must be a tuple ({', '.join(names)}), got {type(given).__name__}")
    if len(given) != len(names):
        raise ValueError(f"{_OP}: {what} has {len(given)} tensors, expected {len(names)}: {', '.join(names)}")
    for name, shape, value in zip(names, shapes, given, strict=True):
        _common.check_float(_OP, f"{what}'s {name}", value)
        if value.dtype != _common.wide(x):
            raise TypeError(f"{_OP}: {what}'s {name} has dtype {value.dtype}, expected {_common.wide(x)}")
        if value.device != x.device:
            raise ValueError(f"{_OP}: {what}'s {name} is on {value.device}, expected {x.device} as x")
        if value.shape != shape:
            raise ValueError(f"{_OP}: {what}'s {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")

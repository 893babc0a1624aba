"""Gram matrices of feature maps, written straight into one vector per image.

With F a map of an image as C rows of H*W values, the row of that image holds for each map

    G = F F^T / divisor                  all of it, row by row, or (folded) its upper triangle row by row

and for a gradient g of the row, with S = g + g^T, where of a folded g the lower triangle is 0,

    gF = S F / divisor                   (gram_backward: one pass; linear in g and in F)
    <gF, h> = <g, (h F^T + F h^T) / divisor> = <F, S h / divisor>

The second line is the gradient of gram_backward for a gradient h of gF, which makes every order exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import backends
from anifast.ops import _common
from anifast.reference.gram import gram as _reference
from anifast.reference.gram import upper

# normalize -> the part of a map's shape whose product divides
_DIVISORS = {"chw": slice(1, None), "hw": slice(2, None), "none": slice(0)}
_FORWARD = "(Tensor[] features, SymInt[] divisors, bool folded) -> Tensor"
_BACKWARD = "_backward(Tensor grad, Tensor[] features, SymInt[] divisors, bool folded, bool[] wanted) -> Tensor[]"


def entries(channels: int, folded: bool) -> int:
    """How many numbers a map of so many channels has in the vector."""
    return channels * (channels + 1) // 2 if folded else channels * channels


def _fake_forward(features: Sequence[Tensor], divisors: Sequence[int], folded: bool) -> Tensor:
    first = features[0]
    width = sum(entries(x.shape[1], folded) for x in features)
    return first.new_empty((first.shape[0], width), dtype=_common.wide(first))


def _fake_backward(
    grad: Tensor, features: Sequence[Tensor], divisors: Sequence[int], folded: bool, wanted: Sequence[bool]
) -> list[Tensor]:
    """Where a gradient isn't wanted stands an empty tensor."""
    return [
        torch.empty_like(x, memory_format=_common.memory_format(4, _common.is_channels_last(x)))
        if want
        else x.new_empty(0)
        for x, want in zip(features, wanted, strict=True)
    ]


def _define(suffix: str) -> None:
    """Define both ops of one implementation, their fakes and their gradients."""
    names = [_common.define(f"gram{schema.replace('(', suffix + '(', 1)}") for schema in (_FORWARD, _BACKWARD)]
    backward = getattr(torch.ops.anifast, names[1].removeprefix("anifast::")).default

    def forward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, ctx.divisors, ctx.folded = inputs
        ctx.save_for_backward(*features)
        ctx.set_materialize_grads(False)

    def forward_grad(ctx: Any, grad: Tensor | None) -> tuple[Any, None, None]:
        features, wanted = ctx.saved_tensors, list(ctx.needs_input_grad[0])
        if grad is None:
            return [None] * len(features), None, None
        found = backward(grad.contiguous(), features, ctx.divisors, ctx.folded, wanted)
        return [value if want else None for value, want in zip(found, wanted, strict=True)], None, None

    def backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, features, ctx.divisors, ctx.folded, ctx.wanted = inputs
        ctx.save_for_backward(grad, *features)
        ctx.set_materialize_grads(False)

    def backward_grad(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
        grad, *features = ctx.saved_tensors
        wants, how = ctx.needs_input_grad, (ctx.divisors, ctx.folded)
        hs = [h if want else None for h, want in zip(grads, ctx.wanted, strict=True)]
        of_features = [want and h is not None for want, h in zip(wants[1], hs, strict=True)]
        found: list[Tensor | None] = [None] * len(features)
        if any(of_features):
            # linear in F, so it is itself applied to h
            instead = [x if h is None else _common.dense(h) for x, h in zip(features, hs, strict=True)]
            values = backward(grad, instead, *how, of_features)
            found = [value if want else None for value, want in zip(values, of_features, strict=True)]
        return (_of_grad(hs, features, *how) if wants[0] else None), found, None, None, None

    torch.library.register_fake(names[0])(_fake_forward)
    torch.library.register_fake(names[1])(_fake_backward)
    torch.library.register_autograd(names[0], forward_grad, setup_context=forward_context)
    torch.library.register_autograd(names[1], backward_grad, setup_context=backward_context)


def _of_grad(
    grads: Sequence[Tensor | None], features: Sequence[Tensor], divisors: Sequence[int], folded: bool
) -> Tensor:
    """(h F^T + F h^T) / divisor for each gradient h of gF, as a row per image."""
    rows = []
    for h, x, divisor in zip(grads, features, divisors, strict=True):
        if h is None:
            width = entries(x.shape[1], folded)
            rows.append(x.new_zeros((x.shape[0], width), dtype=_common.wide(x)))
            continue
        with _common.without_autocast(x):
            product = torch.bmm(h.flatten(2).to(_common.wide(x)), x.flatten(2).to(_common.wide(x)).mT) / divisor
        both = product + product.mT
        rows.append(upper(both) if folded else both.flatten(1))
    return torch.cat(rows, dim=1)


def _forms(features: Sequence[Tensor]) -> list[torch.memory_format]:
    """The layouts of the maps."""
    return [_common.memory_format(4, _common.is_channels_last(x)) for x in features]


def _scales(divisors: Sequence[int]) -> list[float]:
    return [1.0 / divisor for divisor in divisors]


_define("")
_define("_triton")
for _suffix, _arguments in (
    ("", lambda features, divisors, *rest: (features, _scales(divisors), *rest, _forms(features))),
    (
        "_backward",
        lambda grad, features, divisors, *rest: (grad, features, _scales(divisors), *rest, _forms(features)),
    ),
):
    _common.implement(f"anifast::gram{_suffix}_triton", "anifast.kernels.gram", f"gram{_suffix}", _arguments)
backends.register("gram", "native", "triton", native_devices=("cpu",))


def gram(
    features: Tensor | Sequence[Tensor], *, normalize: str = "chw", folded: bool = False, backend: str | None = None
) -> Tensor:
    """Gram matrices F F^T of feature maps, F being C rows of H*W values (Gatys et al. 2016, equation 3).

    A list of maps, of any channels and sizes, gives one vector per image, which the kernels write into directly:
    nothing is concatenated. The C++ matrices don't depend on the number of threads. Differentiable to any order; no
    forward mode (jvp) outside the reference.

    Args:
        features: N,C,H,W in float32, float64, float16 or bfloat16, contiguous or channels_last, or a list of such maps
            with the same N, type (under autocast: the widest is taken) and device. N may be 0.
        normalize: divides by C*H*W ("chw"), by H*W ("hw") or by nothing ("none").
        folded: only the upper triangle with the diagonal, row by row in the order of `torch.triu_indices`, entries as
            they are: C(C+1)/2 numbers instead of C*C.
        backend: "reference", "native" (CPU only) or "triton"; None chooses (see `anifast.backends`).

    Returns:
        For one map N,C,C (folded: N,C(C+1)/2); for a list, also of one map, N,L with the maps' matrices flattened row
        by row one behind the other. Sums and result are float32 for half types.

    Raises:
        TypeError: a map is no tensor or of a wrong type.
        ValueError: an empty list, a wrong rank, a map without pixels or channels, unequal batches or devices.
        BackendError: an explicitly chosen backend cannot run here.
    """
    single = isinstance(features, Tensor)
    if not isinstance(features, Tensor | list | tuple):
        raise TypeError(f"gram: features must be a torch.Tensor or a list of them, got {type(features).__name__}")
    maps = [features] if isinstance(features, Tensor) else list(features)
    if not maps:
        raise ValueError("gram: features is an empty list, expected at least one map")
    if normalize not in tuple(_DIVISORS):
        raise ValueError(f"gram: normalize is {normalize!r}, expected one of {', '.join(_DIVISORS)}")
    _common.check_bool("gram", "folded", folded)
    _common.promote(maps)
    for i, x in enumerate(maps):
        name = "features" if single else f"features[{i}]"
        _common.check_float("gram", name, x)
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(f"gram: {name} has shape {tuple(x.shape)}, expected N,C,H,W without a 0 behind N")
        if x.shape[0] != maps[0].shape[0]:
            first = maps[0].shape[0]
            raise ValueError(f"gram: {name} has a batch of {x.shape[0]}, expected {first} as the first map")
        if i:
            maps[i] = _common.like("gram", name, x, maps[0], float32_too=False, called="the first map")
    divisors = [math.prod(x.shape[_DIVISORS[normalize]]) for x in maps]
    chosen = _common.choose("gram", maps[0], backend)
    if chosen == "reference":
        with _common.without_autocast(maps[0]):
            out = _reference(maps, divisors, folded)
    else:
        _common.refuse_tangents("gram", maps)
        op = torch.ops.anifast.gram if chosen == "native" else torch.ops.anifast.gram_triton
        out = op([_common.dense(x) for x in maps], divisors, folded)
    return out.view(-1, *[maps[0].shape[1]] * 2) if single and not folded else out

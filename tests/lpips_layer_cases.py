"""Cases of lpips_layer and their checks, shared by the tests of every backend.

A result is held to the reference in float64: its error may be twice that of the reference in the same type, plus a few
roundings of what it is made of: of normalised vectors at most 1 long and, for gradients, of one over their lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anifast.ops import lpips_layer


@dataclass(frozen=True)
class Case:
    """One call. `weight` is "" (none), "flat" (C) or "head" (1,C,1,1)."""

    name: str
    shape: tuple[int, int, int, int]
    weight: str = "head"
    channels_last: bool = False
    b_other_layout: bool = False
    eps: float = 1e-10
    eps_inside: bool = False
    reduce: str = "mean"
    zeros: bool = False  # some vectors of a, of b and of both are 0
    near: bool = False  # b is nearly a
    scale: float = 1.0  # of a; b is as long as its numbers make it
    wants: tuple[str, ...] = ("a", "b")  # inputs with a gradient
    float32_weight: bool = False  # the weight stays float32 beside half maps

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("odd", (2, 5, 3, 7)),
    Case("odd_map", (2, 5, 3, 7), reduce="none"),
    Case("flat_weight", (2, 5, 3, 7), weight="flat"),
    Case("no_weight", (2, 5, 3, 7), weight=""),
    Case("no_weight_map", (1, 6, 4, 5), weight="", reduce="none"),
    Case("eps_inside", (2, 5, 4, 6), eps_inside=True),
    Case("large_eps", (2, 5, 4, 6), eps=0.5),
    Case("large_eps_inside", (2, 5, 4, 6), eps=0.5, eps_inside=True, reduce="none"),
    Case("vectors", (1, 16, 8, 16)),
    Case("vectors_and_rest", (2, 20, 9, 13)),
    Case("many_channels", (1, 130, 5, 5)),
    Case("many_pixels", (2, 3, 40, 37)),
    Case("nhwc_odd", (2, 5, 3, 7), channels_last=True),
    Case("nhwc_map", (2, 7, 3, 5), channels_last=True, reduce="none", eps_inside=True),
    Case("nhwc_vectors", (2, 64, 4, 6), channels_last=True),
    Case("nhwc_vectors_and_rest", (1, 90, 5, 6), channels_last=True, weight=""),
    Case("nhwc_many_pixels", (1, 16, 40, 37), channels_last=True),
    Case("other_layout", (2, 6, 5, 4), b_other_layout=True),
    Case("nhwc_other_layout", (2, 6, 5, 4), channels_last=True, b_other_layout=True),
    Case("zeros", (2, 5, 4, 4), zeros=True),
    Case("zeros_inside", (2, 5, 4, 4), zeros=True, eps_inside=True, reduce="none"),
    Case("nhwc_zeros", (2, 19, 4, 5), zeros=True, channels_last=True),
    Case("near", (2, 9, 5, 6), near=True),
    Case("long_a", (2, 9, 5, 6), scale=100.0),
    Case("short_a", (2, 9, 5, 6), scale=0.01),
    Case("only_a", (2, 9, 5, 6), wants=("a",)),
    Case("only_b", (2, 9, 5, 6), wants=("b",), channels_last=True),
    Case("weight_too", (2, 9, 5, 6), wants=("a", "b", "weight")),
    Case("only_weight", (2, 9, 5, 6), wants=("weight",), reduce="none"),
    Case("float32_weight", (2, 9, 5, 6), wants=("a", "b", "weight"), float32_weight=True),
    Case("one_channel", (2, 1, 5, 6), reduce="none"),
    Case("one_pixel", (3, 9, 1, 1)),
    Case("empty_batch", (0, 5, 6, 7)),
    Case("empty_batch_map", (0, 5, 6, 7), reduce="none", channels_last=True),
]
CASE = {case.name: case for case in CASES}


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    a, b = draw(*case.shape) * case.scale, draw(*case.shape)
    if case.near:
        b = a + b / 64
    if case.zeros:
        flat = (a.flatten(2), b.flatten(2))
        flat[0][:, :, :5] = 0
        flat[1][:, :, 3:8] = 0
    formats = [torch.channels_last if last else torch.contiguous_format for last in _layouts(case)]
    tensors = {"a": a, "b": b}
    tensors = {
        name: x.to(dtype).to(device).contiguous(memory_format=form)
        for (name, x), form in zip(tensors.items(), formats, strict=True)
    }
    channels = case.shape[1]
    if case.weight:
        few = torch.bfloat16 if case.float32_weight else dtype  # numbers that half types hold
        own = torch.float32 if case.float32_weight and dtype.itemsize == 2 else dtype
        weight = draw(channels).abs().to(few).to(own).to(device)
        tensors["weight"] = weight if case.weight == "flat" else weight.view(1, channels, 1, 1)
    out = (case.shape[0], 1, 1, 1) if case.reduce == "mean" else (case.shape[0], 1, *case.shape[2:])
    tensors["grad"] = draw(*out).to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)
    return {name: x.requires_grad_(name in (*case.wants, "grad")) for name, x in tensors.items()}


def _layouts(case: Case) -> tuple[bool, bool]:
    return case.channels_last, case.channels_last != case.b_other_layout


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """The op on a case's tensors."""
    return lpips_layer(
        tensors["a"],
        tensors["b"],
        tensors.get("weight"),
        eps=case.eps,
        eps_inside=case.eps_inside,
        reduce=case.reduce,
        backend=backend,
    )


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, gradients ("d "), and gradients of a penalty on the gradients ("d2 ")."""
    out = call(case, tensors, backend)
    inputs = [tensors[name] for name in case.wants]
    first = torch.autograd.grad(out, inputs, tensors["grad"], create_graph=True)
    found = {"out": out} | {f"d {name}": value for name, value in zip(case.wants, first, strict=True)}
    penalty = sum(((value + 0.5) ** 2).sum() for value in first)
    names = [*case.wants, "grad"]
    second = torch.autograd.grad(penalty, [tensors[name] for name in names], materialize_grads=True)
    return found | {f"d2 {name}": value for name, value in zip(names, second, strict=True)}


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    doubles = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in tensors.items()}
    truth, plain = results(case, doubles, "reference"), results(case, tensors, "reference")
    assert list(got) == list(truth)
    for name, expected in truth.items():
        value = got[name]
        source = tensors.get(name.split()[-1], tensors["grad"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        if name in ("d a", "d b") and source.numel() and backend != "reference":
            assert value.stride() == tensors["a"].stride(), f"{name}: the layout of a is not kept"
        if not expected.numel():
            continue
        rounding = (plain[name].double() - expected).abs().max().item()
        allowed = 2 * rounding + _roundings(case, doubles, name, truth, dtype, value.dtype)
        error = (value.double() - expected).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # also where error is NaN
    return got


def _roundings(
    case: Case, tensors: dict[str, Tensor], name: str, truth: dict[str, Tensor], dtype: torch.dtype, own: torch.dtype
) -> float:
    """Four roundings of the terms of a result; `own` is its type."""
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    a, b = tensors["a"].detach(), tensors["b"].detach()
    weight = tensors["weight"].detach().flatten() if case.weight else a.new_ones(case.shape[1])
    norms = torch.cat([x.square().sum(1).sqrt().flatten() for x in (a, b)])
    shortest = (norms[norms > 0].min() ** 2 + case.eps).sqrt() if case.eps_inside else norms[norms > 0].min() + case.eps
    grad = tensors["grad"].detach().abs().max().item() / (math.prod(case.shape[2:]) if case.reduce == "mean" else 1)
    # |a / |a| - b / |b|| is at most 2
    terms = 4 * weight.max().item()
    if name.startswith("d2"):
        # each result sums over the pixels or the channels what the gradients' rounding changed
        first = max(value.abs().max().item() for key, value in truth.items() if key.startswith("d "))
        count = math.sqrt(a.numel())
        first = max(first, terms * grad / shortest.item())  # whose terms can cancel
        scale = max(1.0, first) * max(1.0, terms * max(1.0, grad) / min(1.0, shortest.item() ** 2)) * count
        return 4 * torch.finfo(dtype).eps * scale
    if name == "d weight":
        terms = 4 * grad * a.numel() / a.shape[1]
    elif name.startswith("d "):
        terms *= grad / shortest.item()
    narrow = torch.finfo(own).eps * truth[name].abs().max().item() if own.itemsize == 2 else 0.0
    return 4 * wide * terms + narrow


def small(case: Case) -> bool:
    """Whether finite differences over a case end soon, at points where they may be taken."""
    return math.prod(case.shape) < 300 and not case.zeros

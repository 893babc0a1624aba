"""Cases of lpips_layer and their checks, shared by the tests of every backend.

A result is held to the reference in float64, number by number. All is computed in float32 at least, so an error may be
twice that of the reference there, plus four roundings of the number's terms: of normalised vectors at most 1 long and,
for gradients, of one over their lengths. A number of a half type is rounded to it once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def results(
    case: Case, tensors: dict[str, Tensor], backend: str | None, along: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Output, gradients ("d "), and gradients ("d2 ") of the products of the gradients with their `directions`.

    `along` names the gradients that are in those products; all by default.
    """
    out = call(case, tensors, backend)
    inputs = [tensors[name] for name in case.wants]
    first = torch.autograd.grad(out, inputs, tensors["grad"], create_graph=True)
    found = {"out": out} | {f"d {name}": value for name, value in zip(case.wants, first, strict=True)}
    ways = directions(case, tensors)
    some = case.wants if along is None else along
    names = [*case.wants, "grad"]
    second = torch.autograd.grad(
        [found[f"d {name}"] for name in some],
        [tensors[name] for name in names],
        [ways[name] for name in some],
        materialize_grads=True,
    )
    return found | {f"d2 {name}": value for name, value in zip(names, second, strict=True)}


def directions(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like the gradients, of numbers that every type holds: second gradients see no rounding of the first."""
    source = torch.Generator().manual_seed(1)
    shapes = {name: tensors[name].shape for name in case.wants}
    return {
        name: (torch.randint(-16, 17, shape, generator=source) / 8).to(tensors[name]) for name, shape in shapes.items()
    }


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    for name in {"d a", "d b"} & got.keys() if backend != "reference" and tensors["a"].numel() else ():
        assert got[name].stride() == tensors["a"].stride(), f"{name}: the layout of a is not kept"
    hold(case, tensors, got, cut_off=backend == "triton" and device == "cpu")
    return got


def hold(case: Case, tensors: dict[str, Tensor], got: dict[str, Tensor], *, cut_off: bool = False) -> None:
    """Hold results of a case to the definition, in values, types and shapes.

    `cut_off`: Triton's interpreter makes a bfloat16 by cutting a float32 off, where a GPU rounds it.
    """
    wide = tensors["grad"].dtype

    def exactly(dtype: torch.dtype, along: Sequence[str] | None = None) -> dict[str, Tensor]:
        same = {name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in tensors.items()}
        return results(case, same, "reference", along)

    truth, plain = exactly(torch.float64), exactly(wide)
    parts = [exactly(torch.float64, (name,)) for name in case.wants]
    terms = _terms(case, tensors)
    assert list(got) == list(truth)
    for name, expected in truth.items():
        value = got[name]
        source = tensors.get(name.split()[-1], tensors["grad"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        if not expected.numel():
            continue
        rounding = (plain[name].double() - expected).abs().max()
        allowed = 2 * rounding + 4 * torch.finfo(wide).eps * terms[name]
        if value.dtype != wide:
            limits = torch.finfo(value.dtype)
            size = expected.abs()
            if name.startswith("d2 "):  # its parts are rounded, then their sum
                size = size + sum(part[name].abs() for part in parts) if len(parts) > 1 else size
            unit = limits.eps if cut_off else limits.eps / 2
            allowed = allowed + unit * (size + allowed) + limits.smallest_normal * limits.eps
        error = (value.double() - expected).abs()
        worst = (error - allowed).argmax()  # also where it is NaN
        assert (error <= allowed).all(), (
            f"{name}: error {error.flatten()[worst]:.3g}, allowed {allowed.expand_as(error).flatten()[worst]:.3g}"
        )


def _terms(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what size the terms of each result are together, at most; by pixels, images or channels.

    With the module docstring's d = p a - q b, at most 2 long, the output has the terms w d^2, and its derivatives those
    of d, which are p along a and at most 6 p^2 along two (p and 2 of its projections on a, and their derivatives).
    """
    a, b, grad = (tensors[name].detach().double() for name in ("a", "b", "grad"))
    weight = tensors["weight"].detach().double().max() if case.weight else a.new_ones(())
    inverse = {}
    for name, x in (("a", a), ("b", b)):
        square = x.square().sum(1, keepdim=True)
        norm = (square + case.eps).sqrt() if case.eps_inside else square.sqrt() + case.eps
        inverse[name] = torch.where(square > 0, 1 / norm, 0.0)  # a zero vector has no gradient
    pixels = math.prod(case.shape[2:]) if case.reduce == "mean" else 1
    u = (grad.abs() / pixels).expand(-1, -1, *case.shape[2:])
    ways = {name: value.double() for name, value in directions(case, tensors).items()}
    along = sum((inverse[x] * ways[x].square().sum(1, keepdim=True).sqrt() for x in ("a", "b") if x in ways), 0 * u)
    of_weight = ways["weight"].abs().max() if "weight" in ways else a.new_zeros(())

    def averaged(x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) if case.reduce == "mean" else x

    found = {
        "out": averaged(4 * weight * torch.ones_like(u)),
        "d weight": 4 * u.sum(),
        "d2 weight": (8 * u * along).sum(),
    }
    found["d2 grad"] = averaged(8 * weight * along + 4 * of_weight)
    for name, p in inverse.items():
        found[f"d {name}"] = 4 * weight * u * p * 2
        found[f"d2 {name}"] = u * p * (32 * weight * along + 8 * of_weight)
    return found


def small(case: Case) -> bool:
    """Whether finite differences over a case end soon, at points where they may be taken."""
    return math.prod(case.shape) < 300 and not case.zeros

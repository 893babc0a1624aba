"""Cases of gram and their checks, shared by the tests of every backend.

Everything here is a sum of products of the maps and the gradient. A result is held to the reference in float64, number
by number: its error may be twice that of the reference in the same type on the same map, plus the roundings of a sum in
any order: half a unit of the sum of the number's own products' absolute values, which the same call on absolute values
gives, times the root of their count. The result of several maps is looked at map by map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anifast.ops import gram
from anifast.ops.gram import entries


@dataclass(frozen=True)
class Case:
    """One call on maps of C, H, W; those whose numbers are in `last` lie in channels_last."""

    name: str
    maps: tuple[tuple[int, int, int], ...]
    batch: int = 2
    last: tuple[int, ...] = ()
    normalize: str = "chw"
    folded: bool = False
    single: bool = False  # the map itself instead of a list of one

    def __str__(self) -> str:
        return self.name

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the result."""
        channels = self.maps[0][0]
        if self.single and not self.folded:
            return (self.batch, channels, channels)
        return (self.batch, sum(entries(c, self.folded) for c, _, _ in self.maps))


_FIVE = ((3, 16, 17), (5, 8, 8), (20, 4, 5), (33, 2, 3), (40, 1, 1))
CASES = [
    Case("single", ((5, 6, 7),), single=True),
    Case("single_folded", ((5, 6, 7),), single=True, folded=True),
    Case("list_of_one", ((5, 6, 7),)),
    Case("five", _FIVE),
    Case("five_folded", _FIVE, folded=True),
    Case("five_nhwc", _FIVE, last=(0, 1, 2, 3), folded=True, batch=3),
    Case("mixed_layouts", _FIVE, last=(1, 3), batch=1),
    Case("hw", ((7, 9, 4), (16, 3, 3)), normalize="hw"),
    Case("none", ((7, 9, 4), (2, 3, 3)), normalize="none", folded=True),
    Case("wide", ((70, 5, 7),), batch=1),
    Case("wide_nhwc", ((70, 5, 7),), last=(0,), batch=1),
    Case("wider_folded", ((16, 4, 4), (130, 3, 3)), folded=True, batch=1),
    Case("wider_nhwc", ((130, 3, 5),), last=(0,), batch=1),
    Case("whole_blocks", ((64, 16, 16), (32, 32, 32)), batch=1),
    Case("whole_blocks_nhwc", ((64, 16, 16), (32, 32, 32)), batch=1, last=(0, 1), folded=True),
    Case("long", ((6, 70, 71),), batch=1),
    Case("long_nhwc", ((6, 70, 71),), last=(0,), batch=1, folded=True),
    Case("one_channel", ((1, 5, 3),), single=True),
    Case("one_pixel", ((9, 1, 1),), single=True),
    Case("one_value", ((1, 1, 1), (1, 1, 1)), folded=True),
    Case("empty_batch", ((5, 6, 7), (4, 3, 3)), batch=0),
    Case("empty_batch_single", ((5, 6, 7),), batch=0, single=True),
]
CASE = {case.name: case for case in CASES}


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The maps of a case, "0", "1", ..., and under "grad" a gradient of its output; all need gradients."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, shape in enumerate(case.maps):
        x = torch.randn((case.batch, *shape), generator=generator).to(dtype).to(device)
        tensors[str(i)] = x.contiguous(memory_format=torch.channels_last) if i in case.last else x
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors["grad"] = torch.randn(case.out_shape, generator=generator).to(wide).to(device)
    return {name: value.requires_grad_() for name, value in tensors.items()}


def maps(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The maps among the tensors."""
    return [value for name, value in tensors.items() if name != "grad"]


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """The op on a case's tensors."""
    given: Tensor | Sequence[Tensor] = tensors["0"] if case.single else maps(tensors)
    return gram(given, normalize=case.normalize, folded=case.folded, backend=backend)


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, gradients ("d "), and gradients of a penalty on the gradients ("d2 ")."""
    out = call(case, tensors, backend)
    inputs = maps(tensors)
    first = torch.autograd.grad(out, inputs, tensors["grad"], create_graph=True)
    found = {"out": out} | {f"d {i}": value for i, value in enumerate(first)}
    penalty = sum(((value + 0.5) ** 2).sum() for value in first)
    second = torch.autograd.grad(penalty, [*inputs, tensors["grad"]])
    return found | {f"d2 {name}": value for name, value in zip(tensors, second, strict=True)}


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    hold(case, tensors, got, cut_off=backend == "triton" and device == "cpu")
    for name in [name for name in got if name.startswith("d ") and got[name].numel() and backend != "reference"]:
        assert got[name].stride() == tensors[name[2:]].stride(), f"{name}: the layout of the map is not kept"
    return got


def hold(case: Case, tensors: dict[str, Tensor], got: dict[str, Tensor], *, cut_off: bool = False) -> None:
    """Hold results of a case to the definition, in values, types and shapes.

    `cut_off`: Triton's interpreter makes a bfloat16 by cutting a float32 off, where a GPU rounds it.
    """
    doubles = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    absolute = {name: value.detach().abs().requires_grad_() for name, value in doubles.items()}
    truth, sums = results(case, doubles, "reference"), results(case, absolute, "reference")
    plain = results(case, tensors, "reference")
    dtype, wide = tensors["0"].dtype, tensors["grad"].dtype
    assert list(got) == list(truth)
    assert got["out"].shape == case.out_shape
    for name, expected in truth.items():
        value = got[name]
        source = tensors.get(name.split()[-1], tensors["grad"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        # into a half type a gradient is rounded once; a penalty is made of that, plus 0.5, and rounded again
        halves = int(name.startswith("d") and value.dtype != wide) + 2 * int(name.startswith("d2") and dtype != wide)
        halves *= 2 if cut_off else 1
        pieces = [pieces_of(case, name, found) for found in (value, plain[name], expected, sums[name])]
        for i, terms, *these in zip(*of_maps(case, name), *pieces, strict=True):
            if not these[0].numel():
                continue
            one, usual, right, absolute_sum = (x.double() for x in these)
            # before a product is summed: the gradient and its mirror, times the scale, times the map
            units = (3.0 + math.sqrt(terms)) * torch.finfo(wide).eps / 2 + halves * torch.finfo(dtype).eps / 2
            units *= 2 if wide == torch.float64 else 1  # what it is held to is rounded as well
            allowed = 2 * (usual - right).abs().max() + units * absolute_sum
            error = (one - right).abs()
            worst = (error - allowed).argmax()  # also where it is NaN
            assert (error <= allowed).all(), (
                f"{name}, map {i}: error {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g}"
            )


def of_maps(case: Case, name: str) -> tuple[list[int], list[int]]:
    """The maps that a result is of, and how many products a number of each is the sum of, with those in its factors."""
    every = name in ("out", "d2 grad")
    indices = list(range(len(case.maps))) if every else [int(name.split()[-1])]
    sizes = [(channels, rows * columns) for channels, rows, columns in (case.maps[i] for i in indices)]
    if name == "out":
        return indices, [pixels for _, pixels in sizes]
    if name == "d2 grad":  # of the maps with the gradients, sums over the channels
        return indices, [channels + pixels for channels, pixels in sizes]
    return indices, [channels * (2 if name.startswith("d2") else 1) for channels, _ in sizes]


def pieces_of(case: Case, name: str, result: Tensor) -> Sequence[Tensor]:
    """A result by maps."""
    if name in ("out", "d2 grad") and not case.single:
        return result.split([entries(channels, case.folded) for channels, _, _ in case.maps], dim=1)
    return [result]


def small(case: Case) -> bool:
    """Whether finite differences over a case end soon."""
    return sum(math.prod(shape) for shape in case.maps) * case.batch < 300


def golden_results(
    case: Any, backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """What the golden case losses_gram stores, by its names: matrices, gradients, the vector, a style loss."""
    inputs = {name: torch.from_numpy(value).to(device, dtype) for name, value in case.inputs.items()}
    found = {}
    for tap in ("tap1", "tap2", "tap3"):
        x = inputs[tap].requires_grad_()
        for name, normalize in (("raw", "none"), ("per_hw", "hw"), ("per_chw", "chw")):
            found[f"{tap}.{name}"] = gram(x, normalize=normalize, backend=backend)
        (found[f"{tap}.dF_per_chw"],) = torch.autograd.grad(found[f"{tap}.per_chw"], x, inputs[f"{tap}_cot"])
    found["vector.flat"] = gram([inputs["tap1"], inputs["tap2"], inputs["tap3"]], backend=backend)
    first, other = (gram(inputs[name], backend=backend) for name in ("tap1", "other"))
    found["style_loss.mse"] = (first - other).square().mean()
    return {name: value.detach() for name, value in found.items()}

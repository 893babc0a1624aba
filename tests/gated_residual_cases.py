"""Cases of gated_residual and their checks, shared by the tests of every backend.

A result is held to the reference in float64, number by number. All is computed in float32 at least, so an error may be
twice that of the reference there, plus eight roundings of the number's terms, each taken as positive: no more
operations lie between the inputs and a term. A long sum may err by one more for each doubling of its length, as one
does that is added up in parts. A number of a half type is rounded to it once more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anifast.ops import gated_residual
from anifast.reference.gated_residual import doubled

#: of the centred PReLU
MEAN = 0.75 / math.sqrt(2.0 * math.pi)
STD = math.sqrt(0.53125 - MEAN**2)
NAMES = ("x", "shortcut", "gate", "shortcut_gate", "slope", "bias")


@dataclass(frozen=True)
class Case:
    """One call. `shape` is x's."""

    name: str
    shape: tuple[int, ...]
    channels_last: bool = False
    shortcut_other_layout: bool = False
    slope: str = "each"  # "" (none), "each" or "zeros" (ReLU)
    bias: bool = True
    mean: float = MEAN
    std: float = STD
    up: int = 1
    crop: int = 0
    zeros: bool = False  # some x + bias are 0
    float32_parameters: bool = False  # they stay float32 beside half maps
    wants: tuple[str, ...] = NAMES  # inputs with a gradient, where they are there

    def __str__(self) -> str:
        return self.name

    @property
    def shortcut_shape(self) -> tuple[int, ...]:
        """Of the shortcut."""
        if self.up == 1:
            return self.shape
        return (*self.shape[:2], *(size // 2 + self.crop for size in self.shape[2:]))

    @property
    def leaves(self) -> list[str]:
        """The inputs with a gradient."""
        absent = {name for name, there in (("slope", self.slope), ("bias", self.bias)) if not there}
        return [name for name in self.wants if name not in absent]


CASES = [
    Case("odd", (2, 3, 5, 7)),
    Case("one_element", (1, 1, 1, 1)),
    Case("vectors", (2, 3, 4, 16)),
    Case("vectors_and_rest", (2, 3, 9, 13)),
    Case("short_planes", (3, 70, 1, 2)),
    Case("4x4", (5, 33, 4, 4)),
    Case("long_planes", (2, 2, 70, 66)),
    Case("many_images", (90, 2, 17, 13)),
    Case("nhwc_odd", (2, 5, 3, 7), channels_last=True),
    Case("nhwc_vectors", (3, 64, 5, 6), channels_last=True),
    Case("nhwc_vectors_and_rest", (2, 90, 5, 6), channels_last=True),
    Case("nhwc_many_pixels", (3, 19, 16, 31), channels_last=True),
    Case("matrix", (5, 12)),
    Case("matrix_odd", (131, 7)),
    Case("one_pixel", (6, 37, 1, 1)),
    Case("other_layout", (2, 6, 5, 4), shortcut_other_layout=True),
    Case("nhwc_other_layout", (2, 6, 5, 4), channels_last=True, shortcut_other_layout=True),
    Case("relu", (2, 4, 5, 4), slope="zeros", mean=0.0, std=1.0),
    Case("nhwc_relu", (2, 4, 5, 4), slope="zeros", mean=0.0, std=1.0, channels_last=True),
    Case("linear", (2, 4, 5, 4), slope="", mean=0.0, std=1.0),
    Case("linear_centred", (2, 4, 3, 4), slope="", bias=False),
    Case("no_bias", (2, 4, 5, 3), bias=False),
    Case("nhwc_no_bias", (2, 4, 5, 3), bias=False, channels_last=True),
    Case("zeros", (2, 4, 5, 3), zeros=True),
    Case("float32_parameters", (2, 8, 5, 3), float32_parameters=True),
    Case("float32_parameters_nhwc", (2, 8, 5, 3), float32_parameters=True, channels_last=True),
    Case("up", (2, 3, 6, 10), up=2),
    Case("up_vectors", (2, 3, 6, 64), up=2),
    Case("up_vectors_and_rest", (2, 2, 4, 38), up=2),
    Case("up_long_planes", (2, 2, 90, 134), up=2, crop=1),
    Case("up_long_lines", (1, 1, 4, 4102), up=2, crop=1),
    Case("up_many_images", (70, 3, 14, 20), up=2),
    Case("up_crop", (2, 3, 6, 8), up=2, crop=1),
    Case("up_crop_vectors", (1, 2, 4, 32), up=2, crop=1),
    Case("up_crop_2", (2, 3, 4, 6), up=2, crop=2),
    Case("up_crop_more_than_all", (2, 3, 2, 2), up=2, crop=5),
    Case("up_nhwc", (2, 20, 6, 4), up=2, channels_last=True),
    Case("up_nhwc_crop", (2, 35, 6, 8), up=2, crop=1, channels_last=True),
    Case("up_nhwc_crop_2", (2, 3, 4, 6), up=2, crop=2, channels_last=True),
    Case("up_nhwc_crop_3", (2, 3, 2, 4), up=2, crop=3, channels_last=True),
    Case("up_nhwc_many_pixels", (2, 17, 30, 44), up=2, crop=1, channels_last=True),
    Case("up_other_layout", (2, 3, 6, 8), up=2, crop=1, shortcut_other_layout=True),
    Case("up_nhwc_other_layout", (2, 3, 6, 8), up=2, channels_last=True, shortcut_other_layout=True),
    Case("only_maps", (2, 5, 4, 6), wants=("x", "shortcut")),
    Case("only_maps_up_nhwc", (2, 5, 4, 6), wants=("x", "shortcut"), up=2, channels_last=True),
    Case("only_shortcut", (2, 5, 4, 6), wants=("shortcut",), up=2, crop=1),
    Case("only_x_nhwc", (2, 5, 4, 6), wants=("x",), channels_last=True),
    Case("only_gates", (2, 5, 4, 6), wants=("gate", "shortcut_gate")),
    Case("only_parameters_up", (2, 5, 4, 6), wants=NAMES[2:], up=2),
    Case("no_shortcut_gate", (2, 5, 4, 6), wants=("x", "shortcut", "gate", "slope", "bias")),
    Case("empty_batch", (0, 3, 4, 4)),
    Case("empty_batch_up", (0, 3, 4, 4), up=2, crop=1, channels_last=True),
    Case("no_pixels", (2, 3, 0, 4)),
    Case("all_cut_off", (2, 3, 0, 4), up=2, crop=1),
]
CASE = {case.name: case for case in CASES}


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.float32 if case.float32_parameters and dtype.itemsize == 2 else dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def laid_out(x: Tensor, last: bool) -> Tensor:
        form = torch.channels_last if last and x.dim() == 4 else torch.contiguous_format
        return x.to(dtype).to(device).contiguous(memory_format=form)

    channels = case.shape[1]
    x, shortcut = draw(*case.shape), draw(*case.shortcut_shape)
    bias = (draw(channels) * 8).round() / 8  # of numbers that half types hold, so that x + bias may be 0
    if case.zeros:
        along = bias.view(-1, *[1] * (len(case.shape) - 2))
        x = torch.where(draw(*case.shape) > 0.5, -along, x)
    tensors = {
        "x": laid_out(x, case.channels_last),
        "shortcut": laid_out(shortcut, case.channels_last != case.shortcut_other_layout),
        "gate": draw(channels),
        "shortcut_gate": draw(channels),
        "slope": draw(channels) * (case.slope != "zeros"),
        "bias": bias,
    }
    for name in NAMES[2:]:
        tensors[name] = tensors[name].to(parameters).to(device)
    for name, there in (("slope", case.slope), ("bias", case.bias)):
        if not there:
            del tensors[name]
    tensors["grad"] = laid_out(draw(*case.shape), case.channels_last)
    return {name: value.requires_grad_(name in (*case.wants, "grad")) for name, value in tensors.items()}


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """The op on a case's tensors."""
    return gated_residual(
        tensors["x"],
        tensors["shortcut"],
        tensors["gate"],
        tensors["shortcut_gate"],
        tensors.get("slope"),
        tensors.get("bias"),
        mean=case.mean,
        std=case.std,
        up=case.up,
        crop=case.crop,
        backend=backend,
    )


def directions(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like the gradients, of numbers that every type holds: second gradients see no rounding of the first."""
    source = torch.Generator().manual_seed(1)
    return {
        name: (torch.randint(-16, 17, tensors[name].shape, generator=source) / 8).to(tensors[name])
        for name in case.leaves
    }


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, gradients ("d "), and gradients ("d2 ") of the products of the gradients with their `directions`."""
    return _derivatives(case, tensors, call(case, tensors, backend), directions(case, tensors))


def _derivatives(case: Case, tensors: dict[str, Tensor], out: Tensor, ways: dict[str, Tensor]) -> dict[str, Tensor]:
    first = torch.autograd.grad(out, [tensors[name] for name in case.leaves], tensors["grad"], create_graph=True)
    found = {"out": out} | {f"d {name}": value for name, value in zip(case.leaves, first, strict=True)}
    names = [*case.leaves, "grad"]
    second = torch.autograd.grad(
        first, [tensors[name] for name in names], [ways[name] for name in case.leaves], materialize_grads=True
    )
    return found | {f"d2 {name}": value for name, value in zip(names, second, strict=True)}


def _terms(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results of a case with all terms of their sums taken as positive, in float64.

    They are those of the formula with |.| of all inputs, each value on the side of the kink where it is.
    """
    ways = {name: value.double().abs() for name, value in directions(case, tensors).items()}
    given = {name: value.detach().double() for name, value in tensors.items()}
    bias = given["bias"] if case.bias else torch.zeros_like(given["gate"])
    inner = given["x"] + bias.view(-1, *[1] * (len(case.shape) - 2))
    sizes = {name: value.abs().requires_grad_(tensors[name].requires_grad) for name, value in given.items()}
    v, gate, shortcut_gate, *others = (
        sizes[name].view(-1, *[1] * (len(case.shape) - 2)) if name in NAMES[2:] else sizes[name]
        for name in ("x", "gate", "shortcut_gate", "slope", "bias")
        if name in sizes
    )
    if case.bias:
        v = v + others.pop()
    if case.slope:
        slope = others.pop()
        # at 0 PyTorch's first derivatives are those of the negative side, and its second ones of the positive
        v = torch.where(inner > 0, v, torch.where(inner == 0, (slope + 1) * v, slope * v))
    shortcut = sizes["shortcut"] if case.up == 1 else doubled(sizes["shortcut"], case.crop)
    return _derivatives(case, sizes, shortcut_gate * shortcut + gate * (v + abs(case.mean)) / case.std, ways)


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    x = tensors["x"]
    if backend != "reference" and x.numel():
        form = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        for name in {"out", "d x", "d shortcut"} & got.keys():
            assert got[name].is_contiguous(memory_format=form), f"{name}: the layout of x is not kept"
    hold(case, tensors, got, cut_off=backend == "triton" and device == "cpu")
    return got


def hold(case: Case, tensors: dict[str, Tensor], got: dict[str, Tensor], *, cut_off: bool = False) -> None:
    """Hold results of a case to the definition, in values, types and shapes.

    `cut_off`: Triton's interpreter makes a bfloat16 by cutting a float32 off, where a GPU rounds it.
    """
    dtype = tensors["x"].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def exactly(dtype: torch.dtype) -> dict[str, Tensor]:
        same = {name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in tensors.items()}
        return results(case, same, "reference")

    truth, plain, sizes = exactly(torch.float64), exactly(wide), _terms(case, tensors)
    assert list(got) == list(truth)
    for name, expected in truth.items():
        value = got[name]
        source = tensors.get(name.split()[-1], tensors["x"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        if not expected.numel():
            continue
        rounding = (plain[name].double() - expected).abs()
        doublings = math.log2(max(1.0, tensors["x"].numel() / expected.numel()))
        allowed = 2 * rounding + (8 + doublings) * torch.finfo(wide).eps * sizes[name]
        if value.dtype != wide:
            limits = torch.finfo(value.dtype)
            unit = limits.eps if cut_off else limits.eps / 2
            allowed = allowed + unit * (expected.abs() + allowed) + limits.smallest_normal * limits.eps
        error = (value.double() - expected).abs()
        worst = (error - allowed).argmax()  # also where it is NaN
        assert (error <= allowed).all(), (
            f"{name}: error {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g}"
        )


def small(case: Case) -> bool:
    """Whether finite differences over a case end soon, at points where they may be taken."""
    return math.prod(case.shape) < 300 and not case.zeros

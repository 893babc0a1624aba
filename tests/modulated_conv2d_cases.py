"""Cases of modulated_conv2d and their checks, shared by the tests of every strategy.

A result is held to the reference in float64: its error may be twice that of the reference in the same type, plus what
summing as many products as it does rounds, which a strategy that computes at points amplifies.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from upfirdn2d_cases import layout

from anifast.ops import modulated_conv2d
from anifast.ops.modulated_conv2d import STRATEGIES


@dataclass(frozen=True)
class Case:
    """One call. `shape` is x's, `noise` is "" (none), "each" (one a sample) or "shared"."""

    name: str
    shape: tuple[int, int, int, int]
    outputs: int
    size: int = 3
    up: int = 1
    down: int = 1
    padding: int | str = "same"
    demodulate: bool = True
    weight_gain: float = 0.3
    fir: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    channels_last: bool = False
    bias: bool = False
    noise: str = ""
    strength: bool = True
    act: bool = True
    slope: float = 0.2
    gain: float = math.sqrt(2.0)
    clamp: float | None = None
    add: bool = False
    float32_parameters: bool = False  # weight, style, bias and strength stay float32 beside a half x

    def __str__(self) -> str:
        return self.name

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """N, O, rows and columns of the output."""
        pad = self.size // 2 if isinstance(self.padding, str) else self.padding
        grown = 2 * pad - self.size + 1 if self.up == self.down == 1 else 0
        rows, columns = (side * self.up // self.down + grown for side in self.shape[2:])
        return (self.shape[0], self.outputs, rows, columns)

    @property
    def products(self) -> int:
        """How many products a value of the output is the sum of."""
        return self.shape[1] * self.size**2


_LAYER = dict(bias=True, noise="each")
_RGB = dict(size=1, demodulate=False, act=False, bias=True, add=True)
CASES = [
    # what the systems use
    Case("plain", (2, 5, 8, 8), 7, **_LAYER),
    Case("plain_wide", (1, 20, 6, 37), 35, **_LAYER),
    Case("plain_many", (2, 36, 4, 4), 40, bias=True),
    Case("plain_bare", (2, 3, 5, 6), 4, act=False),
    Case("up", (2, 5, 8, 8), 7, up=2, **_LAYER),
    Case("up_wide", (1, 18, 5, 19), 33, up=2, **_LAYER),
    Case("up_bare", (2, 3, 4, 6), 4, up=2, act=False),
    Case("rgb", (2, 20, 8, 9), 3, **_RGB),
    Case("rgb_first", (1, 6, 4, 4), 3, size=1, demodulate=False, act=False, bias=True),
    Case("down", (2, 5, 8, 6), 7, down=2, **_LAYER),
    # layouts
    Case("nhwc_plain", (2, 19, 7, 6), 9, channels_last=True, **_LAYER),
    Case("nhwc_up", (2, 7, 5, 6), 21, up=2, channels_last=True, **_LAYER),
    Case("nhwc_rgb", (2, 17, 6, 5), 3, channels_last=True, **_RGB),
    Case("nhwc_down", (1, 6, 9, 8), 5, down=2, channels_last=True, **_LAYER),
    # every other form of the arguments
    Case("one", (2, 5, 7, 9), 6, size=1, **_LAYER),
    Case("not_demodulated", (2, 5, 6, 7), 6, demodulate=False, **_LAYER),
    Case("up_not_demodulated", (2, 4, 5, 5), 6, up=2, demodulate=False, bias=True),
    Case("up_one", (2, 4, 5, 6), 3, size=1, up=2, **_LAYER),
    Case("up_five", (1, 3, 4, 5), 2, size=5, up=2),
    Case("down_one", (2, 4, 6, 8), 3, size=1, down=2, **_LAYER),
    Case("five", (1, 4, 6, 7), 3, size=5, bias=True),
    Case("no_padding", (1, 4, 6, 7), 3, padding=0, bias=True),
    Case("padded", (1, 4, 5, 4), 3, size=1, padding=2),
    Case("odd_fir", (1, 4, 5, 4), 3, up=2, fir=(1.0, 2.0, 1.0)),
    Case("down_odd_fir", (1, 4, 5, 6), 3, down=2, fir=(1.0, 2.0, 1.0)),
    Case("long_fir", (1, 4, 5, 4), 3, up=2, fir=(1.0, 5.0, 10.0, 10.0, 5.0, 1.0)),
    Case("lopsided_fir", (1, 4, 5, 4), 3, up=2, fir=(1.0, 2.0, 5.0, 0.5)),
    Case("down_lopsided_fir", (1, 4, 6, 4), 3, down=2, fir=(1.0, 2.0, 5.0, 0.5)),
    Case("shared_noise", (3, 4, 5, 6), 5, noise="shared", bias=True),
    Case("no_strength", (2, 4, 5, 6), 5, noise="each", strength=False),
    Case("clamped", (2, 4, 6, 6), 5, clamp=3.0, **_LAYER),
    Case("up_clamped", (2, 4, 4, 4), 5, up=2, clamp=3.0, **_LAYER),
    Case("added", (2, 4, 6, 6), 5, add=True, **_LAYER),
    Case("clamp_only", (2, 4, 6, 6), 5, act=False, clamp=3.0, bias=True),
    Case("relu", (2, 4, 6, 6), 5, slope=0.0, **_LAYER),
    Case("gain_only", (2, 4, 6, 6), 5, slope=1.0, gain=0.5, **_LAYER),
    Case("negative_slope", (2, 4, 6, 6), 5, slope=-0.3, add=True, **_LAYER),
    Case("negative_gain", (2, 4, 5, 5), 5, up=2, gain=-0.7, **_LAYER),
    Case("float32_parameters", (2, 5, 8, 8), 7, float32_parameters=True, **_LAYER),
    Case("up_float32_parameters", (2, 5, 4, 4), 7, up=2, float32_parameters=True, **_LAYER),
    Case("one_pixel", (2, 5, 1, 1), 7, **_LAYER),
    Case("one_pixel_up", (2, 5, 1, 1), 7, up=2, **_LAYER),
    Case("one_column", (2, 5, 9, 1), 7, **_LAYER),
    Case("one_row_up", (2, 5, 1, 9), 7, up=2, **_LAYER),
    Case("one_channel", (2, 1, 6, 5), 1, demodulate=False, **_LAYER),
    Case("one_output", (2, 3, 6, 5), 1, **_LAYER),
    Case("empty_batch", (0, 5, 6, 7), 4, add=True, **_LAYER),
    Case("empty_batch_up", (0, 5, 6, 7), 4, up=2, **_LAYER),
]
CASE = {case.name: case for case in CASES}
LEAVES = ("x", "weight", "style", "bias", "noise", "noise_strength", "add")


def suits(case: Case, strategy: str) -> bool:
    """Whether a strategy computes a case."""
    if STRATEGIES[strategy] == "reference" or strategy == "library":
        return True
    same = case.padding in ("same", case.size // 2) or case.up == 2
    sizes = (1, 3) if case.up == 1 and strategy != "winograd" else (3,)
    return same and case.down == 1 and case.size in sizes


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output; all need gradients.

    In half types a bias is far from 0, so that rounding does not choose the side of the activation's kink.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    own = torch.float32 if case.float32_parameters and dtype != torch.float64 else dtype
    # numbers that half types hold, so that every type computes the same function
    few = torch.bfloat16 if case.float32_parameters else dtype
    out = case.out_shape
    tensors = {
        "x": layout(draw(*case.shape), case),
        "weight": draw(case.outputs, case.shape[1], case.size, case.size, dtype=few).to(own),
        "style": draw(*case.shape[:2], dtype=few).to(own),
    }
    if case.bias:
        bias = draw(out[1], dtype=few).to(own)
        tensors["bias"] = bias.sign() * 4 if dtype in (torch.float16, torch.bfloat16) else bias
    if case.noise:
        tensors["noise"] = draw(out[0] if case.noise == "each" else 1, 1, *out[2:])
        if case.strength:
            tensors["noise_strength"] = draw(1, dtype=few).to(own) / 8
    if case.add:
        tensors["add"] = layout(draw(*out), case)
    tensors["grad"] = layout(draw(*out), case)
    return {name: value.requires_grad_() for name, value in tensors.items()}


def call(case: Case, tensors: dict[str, Tensor], strategy: str = "auto", backend: str | None = None) -> Tensor:
    """The op on a case's tensors."""
    return modulated_conv2d(
        tensors["x"],
        tensors["weight"],
        tensors["style"],
        weight_gain=case.weight_gain,
        demodulate=case.demodulate,
        up=case.up,
        down=case.down,
        padding=case.padding,
        fir=case.fir,
        add=tensors.get("add"),
        bias=tensors.get("bias"),
        noise=tensors.get("noise"),
        noise_strength=tensors.get("noise_strength"),
        act=case.act,
        slope=case.slope,
        gain=case.gain,
        clamp=case.clamp,
        strategy=strategy,
        backend=backend,
    )


def leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that gradients are taken of."""
    return {name: tensors[name] for name in LEAVES if name in tensors}


def results(case: Case, tensors: dict[str, Tensor], strategy: str) -> dict[str, Tensor]:
    """Output, gradients, and gradients of a penalty on the gradients (as path length has it, with every input in it).

    Gradients come twice, as a training step takes them and as a penalty does ("g " and "d ").
    """
    inputs = leaves(tensors)
    out = call(case, tensors, strategy)
    found = {"out": out}
    loss = (out * tensors["grad"]).sum()
    plain = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    found |= {f"g {name}": value for name, value in zip(inputs, plain, strict=True)}
    first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
    found |= {f"d {name}": value for name, value in zip(inputs, first, strict=True)}
    penalty = sum(((value + 0.5) ** 2).mean() for value in first if value.numel())
    if torch.is_tensor(penalty) and penalty.requires_grad:
        wanted = {"grad": tensors["grad"]} | {name: value for name, value in inputs.items() if name != "add"}
        second = torch.autograd.grad(penalty, list(wanted.values()), materialize_grads=True)
        found |= {f"d2 {name}": value for name, value in zip(wanted, second, strict=True)}
    return found


@functools.cache
def amplification(strategy: str, up: int) -> float:
    """By how much a strategy's rounding exceeds that of the sums of products themselves, for random inputs.

    At points p with evaluations X of the inputs and W of the kernel and interpolation Y, the products of point p have
    the variance |X_p|^2 |W_p|^2 where each of the `taps` products of the sum itself has 1, along each of two axes.
    """
    if strategy != "winograd":
        return 1.0
    a, b = math.sqrt(0.5), math.sqrt(2.0)
    points = (0.0, a, -a, b, -b)
    values, taps, infinity = (4, 3, 1) if up == 1 else (4, 2, 0)
    length = values + taps - 1

    def evaluation(terms: int) -> np.ndarray:
        last = [[0.0] * (terms - 1) + [1.0]] * infinity
        return np.array([[p**power for power in range(terms)] for p in points] + last)

    others = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0] * infinity)
    kernel = evaluation(taps) / others[:, None]
    product = np.linalg.inv(evaluation(length)) * others[None, :]  # values at the points -> coefficients
    # the plain form is the transpose of the product of polynomials: it reads `length` inputs
    inputs, outputs = (product.T, evaluation(values).T) if up == 1 else (evaluation(values), product)
    variance = (outputs**2 * (inputs**2).sum(1) * (kernel**2).sum(1)).sum(1) / taps
    return float(variance.max())  # of the standard deviation, squared for two axes


def check(case: Case, dtype: torch.dtype, strategy: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a strategy to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, strategy)

    def others(dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.detach().to(dtype).requires_grad_() for name, value in tensors.items()}

    truth = results(replace(case, float32_parameters=False), others(torch.float64), "grouped")
    plain = results(replace(case, float32_parameters=False), others(dtype), "grouped")
    scaled = results(replace(case, float32_parameters=False), others(dtype), "scaled")
    assert list(got) == list(truth)
    assert got["out"].shape == case.out_shape
    last = case.channels_last and not tensors["x"].is_contiguous()  # one pixel lies in memory as both
    form = torch.channels_last if last else torch.contiguous_format
    assert got["out"].is_contiguous(memory_format=form), "the layout of x is not kept"
    if strategy not in ("grouped", "scaled"):
        assert got["g x"].is_contiguous(memory_format=form), "layout of x's gradient"
    first = [value for name, value in truth.items() if name.startswith("d ") and value.numel()]
    sums = math.sqrt(case.products) * amplification(strategy, case.up)
    for name in truth:
        value, expected = got[name], truth[name]
        source = tensors.get(name.split()[-1], tensors["x"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        if not expected.numel():
            continue
        scale = expected.abs().max().clamp(min=1.0).item() * sums
        if name.startswith("d2"):
            scale = max(scale, *(value.abs().max().item() for value in first))
            scale *= math.sqrt(tensors["x"].numel())  # every element rounds the sums that the penalty squares
        elif name[0] in "dg" and expected.numel() < tensors["x"].numel():
            scale *= math.sqrt(tensors["x"].numel() / expected.numel())  # a sum of that many roundings
        error = (value.double() - expected).abs().max().item()
        rounding = max((other[name].double() - expected).abs().max().item() for other in (plain, scaled))
        # sums are in float32 for half types, whose results are rounded once more
        narrow = torch.finfo(dtype).eps * expected.abs().max().item() if dtype.itemsize == 2 else 0.0
        allowed = 2 * rounding + 2 * narrow + torch.finfo(dtype if dtype.itemsize > 2 else torch.float32).eps * scale
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # also where error is NaN
    return got

"""Cases of bias_lrelu and their checks, shared by the tests of every backend.

A result is held to the reference in float64: its error may be twice that of the reference in the same type, plus the
rounding of that type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anifast.ops import bias_lrelu


@dataclass(frozen=True)
class Case:
    """Shape, layout and arguments of one call. `noise` is "" (none), "each" (one a sample) or "shared"."""

    name: str
    shape: tuple[int, ...]
    dim: int = 1
    channels_last: bool = False
    bias: bool = True
    noise: str = ""
    strength: bool = True
    slope: float = 0.2
    gain: float = math.sqrt(2.0)
    clamp: float | None = None
    residual: bool = False
    residual_gain: float = 1.0
    float32_parameters: bool = False  # bias and strength stay float32 beside a half x

    def __str__(self) -> str:
        return self.name


_FULL = dict(noise="each", clamp=0.7, residual=True, residual_gain=0.5)
CASES = [
    Case("odd", (2, 3, 5, 7)),
    Case("odd_full", (2, 3, 5, 7), **_FULL),
    Case("odd_noise", (3, 5, 7, 3), noise="shared"),
    Case("one_element", (1, 1, 1, 1), noise="each"),
    Case("even", (2, 6, 4, 4), noise="each"),
    Case("even_full", (2, 5, 8, 4), **_FULL),
    Case("half_a_byte", (3, 3, 2, 2), noise="shared", clamp=0.5),  # 4 elements a row: one float chunk
    Case("long_rows", (1, 2, 41, 27), noise="each", residual=True),
    Case("long_even_rows", (2, 2, 40, 32), **_FULL),
    Case("many_channels", (1, 70, 2, 4), noise="each"),
    Case("nhwc", (2, 8, 3, 5), channels_last=True, noise="each"),
    Case("nhwc_full", (2, 16, 3, 3), channels_last=True, **_FULL),
    Case("nhwc_odd", (3, 7, 5, 2), channels_last=True, noise="shared", clamp=0.5),
    Case("nhwc_wide", (1, 264, 2, 2), channels_last=True, noise="shared"),
    Case("nhwc_few_pixels", (20, 7, 3, 2), channels_last=True, noise="shared"),
    Case("nhwc_1x1", (2, 8, 1, 1), channels_last=True, noise="each"),
    Case("matrix", (5, 12)),
    Case("matrix_odd", (9, 7), noise="each", clamp=0.5),
    Case("rank3", (2, 3, 11), noise="shared", residual=True),
    Case("rank5", (2, 3, 2, 3, 5), noise="each"),
    Case("rank5_nhwc", (2, 4, 2, 3, 5), channels_last=True, **_FULL),
    Case("last_dim", (2, 3, 5, 8), dim=-1, noise="each"),
    Case("first_dim", (4, 3, 5), dim=0),
    Case("middle_dim", (3, 2, 6, 4), dim=2, noise="shared", clamp=0.5),
    Case("last_dim_of_nhwc", (2, 4, 3, 8), dim=3, channels_last=True),
    Case("no_bias", (2, 3, 4, 4), bias=False),
    Case("no_strength", (2, 4, 3, 3), noise="each", strength=False),
    Case("linear", (2, 3, 4, 5), slope=1.0, noise="each"),
    Case("linear_clamped", (2, 8, 3, 4), slope=1.0, clamp=0.5),
    Case("relu", (2, 3, 4, 5), slope=0.0),
    Case("other_slope", (2, 3, 4, 5), slope=0.1, gain=1.0),
    Case("negative_gain", (2, 4, 4, 4), gain=-0.5, noise="each"),
    Case("negative_slope", (2, 4, 3, 4), slope=-0.3),
    Case("clamp_zero", (2, 3, 4, 4), clamp=0.0),
    Case("float32_parameters", (2, 8, 4, 4), noise="each", float32_parameters=True),
    Case("float32_parameters_nhwc", (2, 8, 4, 3), channels_last=True, noise="each", float32_parameters=True),
    Case("empty_batch", (0, 3, 4, 4), noise="each", clamp=0.5),
    Case("empty_rows", (2, 3, 0, 4), noise="each"),
    Case("no_channels", (2, 0, 4, 4)),
]
CASE = {case.name: case for case in CASES}


def layout(x: Tensor, case: Case) -> Tensor:
    """X in the memory layout of the case."""
    if not case.channels_last:
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output; all of them may need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    dim = case.dim % len(case.shape)
    parameters = torch.float32 if case.float32_parameters and dtype != torch.float64 else dtype
    tensors = {"x": layout(draw(*case.shape), case)}
    if case.bias:
        tensors["bias"] = draw(case.shape[dim], dtype=parameters)
    if case.noise:
        size = [1 if axis == dim else n for axis, n in enumerate(case.shape)]
        tensors["noise"] = draw(*(size if case.noise == "each" or dim == 0 else [1, *size[1:]]))
        if case.strength:
            tensors["noise_strength"] = draw(1, dtype=parameters)
    if case.residual:
        tensors["residual"] = layout(draw(*case.shape), case)
    tensors["grad"] = layout(draw(*case.shape), case)
    return {name: value.requires_grad_() for name, value in tensors.items()}


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """The op on a case's tensors."""
    return bias_lrelu(
        tensors["x"],
        tensors.get("bias"),
        dim=case.dim,
        noise=tensors.get("noise"),
        noise_strength=tensors.get("noise_strength"),
        slope=case.slope,
        gain=case.gain,
        clamp=case.clamp,
        residual=tensors.get("residual"),
        residual_gain=case.residual_gain,
        backend=backend,
    )


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, gradients, and gradients of a penalty on the gradients (as R1 has it, with every input in it)."""
    inputs = {name: value for name, value in tensors.items() if name != "grad"}
    out = call(case, tensors, backend)
    found = {"out": out}
    first = torch.autograd.grad((out * tensors["grad"]).sum(), list(inputs.values()), create_graph=True)
    found |= {f"d {name}": value for name, value in zip(inputs, first, strict=True)}
    penalty = sum(((value + 0.5) ** 2).mean() for value in first if value.numel())
    if torch.is_tensor(penalty) and penalty.requires_grad:
        wanted = {name: tensors[name] for name in ("grad", "noise", "noise_strength") if name in tensors}
        second = torch.autograd.grad(penalty, list(wanted.values()), materialize_grads=True)
        found |= {f"d2 {name}": value for name, value in zip(wanted, second, strict=True)}
    return found


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the reference on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    doubles = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    truth = results(replace(case, float32_parameters=False), doubles, "reference")
    narrow = {name: value.detach().to(dtype).requires_grad_() for name, value in tensors.items()}
    plain = results(replace(case, float32_parameters=False), narrow, "reference")
    assert list(got) == list(truth)
    last = case.channels_last and not tensors["x"].is_contiguous()  # one pixel lies in memory as both
    form = (
        (torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d) if last else torch.contiguous_format
    )
    assert got["out"].is_contiguous(memory_format=form), "the layout of x is not kept"
    first = [value for name, value in truth.items() if name.startswith("d ") and value.numel()]
    for name in truth:
        value, expected = got[name], truth[name]
        source = tensors.get(name.split()[-1], tensors["x"])
        assert value.dtype == source.dtype and value.shape == expected.shape and value.device == source.device, name
        if not expected.numel():
            continue
        scale = expected.abs().max().clamp(min=1.0).item()
        if name.startswith("d2"):
            scale = max(scale, *(value.abs().max().item() for value in first))
            scale *= math.sqrt(tensors["x"].numel())  # every element rounds the sums that the penalty squares
        elif name.startswith("d") and expected.numel() < tensors["x"].numel():
            scale *= math.sqrt(tensors["x"].numel() / expected.numel())  # a sum of that many roundings
        error = (value.double() - expected).abs().max().item()
        allowed = 2 * (plain[name].double() - expected).abs().max().item() + 4 * torch.finfo(dtype).eps * scale
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # also where error is NaN
    return got


def golden_results(case: Any, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """What the op answers in float64 to the golden case `ops_lrelu_a`, by the names of its outputs."""
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        arguments, grad, name = case.arguments(spec), spec["grad"], spec["name"]
        leaves = {
            key: torch.from_numpy(value).to(device, torch.float64).requires_grad_()
            for key, value in case.inputs.items()
            if "@" + key in grad["wrt"]
        }
        given = {key: leaves[value[1:]] for key, value in spec["args"].items() if str(value)[1:] in leaves}
        out = bias_lrelu(
            given["input"],
            given.get("bias"),
            slope=arguments["negative_slope"],
            gain=arguments["scale"],
            backend=backend,
        )
        probe = torch.from_numpy(case.inputs[grad["of"]["y"][1:]]).to(out)
        loss = (probe * out).sum() if grad["loss"] == "linear" else 0.5 * (probe * out**2).sum()
        wanted = {key[1:]: leaves[key[1:]] for key in grad["wrt"]}
        first = torch.autograd.grad(loss, list(wanted.values()), create_graph=True)
        found[f"{name}.y"] = out
        found |= {f"{name}.grad.{key}": value for key, value in zip(wanted, first, strict=True)}
        if grad.get("second"):
            square = (first[0] ** 2).sum()
            second = torch.autograd.grad(square, list(wanted.values()), materialize_grads=True)
            found[f"{name}.grad2"] = square
            found |= {f"{name}.grad2.{key}": value for key, value in zip(wanted, second, strict=True)}
    return found

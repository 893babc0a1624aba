"""Cases of upfirdn2d and their checks, shared by the tests of every backend.

A result is held to the reference in float64: its error may be twice that of the reference in the same type, plus the
rounding of that type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anifast.ops import upfirdn2d

Pair = tuple[int, int]
BLUR = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One call. `kernel` is "blur" (4 taps along both axes), "outer" (the same as a matrix), (k,) or (k_y, k_x) random.

    `noise` is "" (none), "each" (one a sample) or "shared".
    """

    name: str
    shape: tuple[int, int, int, int]
    kernel: str | tuple[int, ...] = "blur"
    up: Pair = (1, 1)
    down: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    flip: bool = False
    gain: float = 1.0
    channels_last: bool = False
    scale: bool = False
    bias: bool = False
    noise: str = ""
    strength: bool = True
    act: bool = False
    slope: float = 0.2
    act_gain: float = math.sqrt(2.0)
    clamp: float | None = None
    add: bool = False
    float32_parameters: bool = False  # scale, bias and strength stay float32 beside a half x

    def __str__(self) -> str:
        return self.name

    @property
    def kernel_size(self) -> Pair:
        """(rows, columns) of the kernel."""
        if isinstance(self.kernel, str):
            return (4, 4)
        return (self.kernel[0], self.kernel[-1])

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """N, C, rows and columns of the output."""
        x0, x1, y0, y1 = self.padding
        return (
            *self.shape[:2],
            (self.shape[2] * self.up[1] + y0 + y1 - self.kernel_size[0]) // self.down[1] + 1,
            (self.shape[3] * self.up[0] + x0 + x1 - self.kernel_size[1]) // self.down[0] + 1,
        )


_BLUR1 = dict(padding=(1, 1, 1, 1))
_BLUR2 = dict(padding=(2, 2, 2, 2))
_DOWN = dict(down=(2, 2), padding=(1, 1, 1, 1))
_UP = dict(up=(2, 2), padding=(2, 1, 2, 1), gain=4.0)
_EPILOGUE = dict(scale=True, bias=True, noise="each", act=True)
_FULL = dict(**_EPILOGUE, clamp=0.7, add=True)
CASES = [
    # what the systems use
    Case("blur1", (2, 3, 9, 9), **_BLUR1),
    Case("blur2", (2, 3, 8, 8), **_BLUR2),
    Case("blur2_wide", (1, 2, 5, 40), **_BLUR2),
    Case("blur1_outer", (2, 3, 17, 17), "outer", **_BLUR1, gain=4.0),
    Case("down", (2, 3, 8, 8), **_DOWN),
    Case("down_odd", (1, 2, 9, 37), **_DOWN),
    Case("down_outer", (1, 2, 32, 34), "outer", **_DOWN),
    Case("up", (2, 3, 4, 4), **_UP),
    Case("up_odd", (1, 2, 5, 19), **_UP),
    Case("up_outer", (1, 2, 16, 33), "outer", **_UP),
    Case("up_add", (2, 3, 8, 8), **_UP, add=True),
    Case("epilogue", (2, 3, 9, 9), **_BLUR1, gain=4.0, **_EPILOGUE),
    Case("epilogue_full", (2, 3, 17, 33), **_BLUR1, gain=4.0, **_FULL),
    Case("epilogue_odd", (2, 3, 7, 6), "outer", **_BLUR1, **_FULL),
    Case("epilogue_shared_noise", (3, 2, 5, 17), **_BLUR1, scale=True, noise="shared", act=True),
    Case("epilogue_no_strength", (2, 2, 6, 9), **_BLUR1, noise="each", strength=False, act=True, bias=True),
    Case("epilogue_linear", (2, 3, 6, 9), **_BLUR1, scale=True, bias=True, noise="each", add=True),
    Case("epilogue_clamp_only", (2, 3, 6, 9), **_BLUR1, bias=True, clamp=0.4),
    Case("epilogue_gain_only", (2, 3, 6, 9), **_BLUR1, act=True, slope=1.0, act_gain=0.5, noise="each"),
    Case("epilogue_up", (2, 3, 4, 4), **_UP, **_EPILOGUE),
    Case("epilogue_down", (2, 3, 16, 16), **_DOWN, **_FULL),
    Case("epilogue_float32", (2, 3, 9, 9), **_BLUR1, **_EPILOGUE, float32_parameters=True),
    Case("negative_slope", (2, 3, 9, 9), **_BLUR1, act=True, slope=-0.3, act_gain=-0.7, bias=True),
    # both layouts
    Case("nhwc_blur1", (2, 8, 9, 9), **_BLUR1, channels_last=True),
    Case("nhwc_blur2", (2, 7, 8, 5), **_BLUR2, channels_last=True),
    Case("nhwc_down", (2, 16, 8, 9), **_DOWN, channels_last=True),
    Case("nhwc_up", (2, 5, 4, 6), **_UP, channels_last=True, add=True),
    Case("nhwc_epilogue", (2, 24, 5, 6), **_BLUR1, **_EPILOGUE, channels_last=True),
    Case("nhwc_epilogue_full", (2, 19, 5, 6), "outer", **_BLUR1, **_FULL, channels_last=True),
    Case("nhwc_epilogue_up", (1, 20, 4, 4), **_UP, **_FULL, channels_last=True, float32_parameters=True),
    Case("nhwc_many_channels", (1, 150, 4, 3), **_BLUR1, **_EPILOGUE, channels_last=True),
    Case("nhwc_generic", (2, 6, 7, 5), (3, 5), up=(2, 3), down=(3, 2), padding=(2, 1, 0, 3), channels_last=True),
    Case("nhwc_one_pixel", (2, 8, 1, 1), **_BLUR2, channels_last=True),
    # every other form of the arguments
    Case("matrix", (2, 2, 7, 9), (3, 5), padding=(2, 2, 1, 1)),
    Case("matrix_flip", (2, 2, 7, 9), (4, 3), padding=(2, 0, -1, 3), flip=True),
    Case("one_axis", (1, 3, 6, 11), (1, 5), padding=(2, 2, 0, 0), up=(2, 1)),
    Case("one_axis_y", (1, 3, 11, 6), (5, 1), padding=(0, 0, 2, 2), down=(1, 2)),
    Case("line", (2, 2, 9, 8), (6,), down=(2, 2), padding=(2, 2, 2, 2), flip=True),
    Case("long_line", (1, 2, 20, 21), (12,), up=(2, 2), down=(2, 2), padding=(6, 5, 6, 5), gain=4.0),
    Case("up3", (1, 2, 5, 6), (7,), up=(3, 3), padding=(3, 3, 3, 3), flip=True),
    Case("up4", (1, 2, 5, 6), (4, 6), up=(4, 4), padding=(1, 2, 0, 3)),
    Case("down3", (1, 2, 16, 19), (5, 4), down=(3, 3), padding=(1, 0, 2, 1)),
    Case("down4", (1, 2, 19, 22), (8,), down=(4, 4), padding=(3, 3, 3, 3)),
    Case("up2_down3", (2, 2, 9, 10), (5,), up=(2, 2), down=(3, 3), padding=(3, 2, 2, 3)),
    Case("up3_down2", (2, 2, 6, 9), (3, 3), up=(3, 3), down=(2, 2), padding=(-1, 2, 1, -2)),
    Case("mixed", (2, 1, 9, 5), (6, 2), up=(1, 3), down=(2, 1), padding=(0, 3, -1, 4)),
    Case("up4_down4", (1, 3, 6, 5), (4,), up=(4, 4), down=(4, 4), padding=(3, 2, 2, 3)),
    Case("up_x", (1, 2, 6, 17), "blur", up=(2, 1), padding=(2, 1, 2, 1)),
    Case("crop", (1, 4, 10, 9), "outer", padding=(-2, -1, -2, -1)),
    Case("crop_up", (1, 2, 8, 9), "blur", up=(2, 2), padding=(-1, -3, -5, -2), gain=-2.0),
    Case("wide_pads", (1, 2, 3, 4), "blur", padding=(9, 20, 11, 6)),
    Case("crop_and_pad", (1, 2, 9, 8), (3, 3), padding=(-4, 7, 6, -3), flip=True),
    Case("all_of_x_cut", (1, 2, 3, 4), "blur", padding=(-5, 9, 8, -4), up=(1, 2)),
    Case("identity", (2, 3, 4, 5), (1,)),
    Case("one_tap", (2, 3, 4, 5), (1, 1), up=(2, 2), down=(1, 2), gain=3.0),
    Case("kernel_larger_than_x", (2, 3, 2, 3), (7, 9), padding=(4, 5, 3, 4)),
    Case("one_pixel", (2, 3, 1, 1), **_BLUR2),
    Case("one_pixel_up", (1, 1, 1, 1), **_UP, **_EPILOGUE),
    Case("one_column", (2, 3, 20, 1), **_BLUR2, **_EPILOGUE),
    Case("one_output", (2, 5, 4, 4), "blur", **_EPILOGUE),
    Case("empty_batch", (0, 3, 8, 8), **_BLUR1, **_FULL),
    Case("no_channels", (2, 0, 8, 8), **_DOWN),
]
CASE = {case.name: case for case in CASES}
LEAVES = ("x", "scale", "bias", "noise", "noise_strength", "add")


def layout(x: Tensor, case: Case) -> Tensor:
    """X in the memory layout of the case."""
    return x.contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output; all but `kernel` need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    parameters = torch.float32 if case.float32_parameters and dtype != torch.float64 else dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = case.out_shape
    if isinstance(case.kernel, str):
        line = torch.tensor(BLUR, dtype=wide, device=device) / sum(BLUR)
        kernel = line if case.kernel == "blur" else torch.outer(line, line)
    else:
        # numbers that half types hold too, so that every type filters by the same kernel
        kernel = draw(*case.kernel, dtype=torch.float32).mul(16).round().div(32).to(wide)
    tensors = {"x": layout(draw(*case.shape), case)}
    if case.scale:
        tensors["scale"] = draw(*out[:2], dtype=parameters)
    if case.bias:
        tensors["bias"] = draw(out[1], dtype=parameters)
    if case.noise:
        tensors["noise"] = draw(out[0] if case.noise == "each" else 1, 1, *out[2:])
        if case.strength:
            tensors["noise_strength"] = draw(1, dtype=parameters)
    if case.add:
        tensors["add"] = layout(draw(*out), case)
    tensors["grad"] = layout(draw(*out), case)
    return {name: value.requires_grad_() for name, value in tensors.items()} | {"kernel": kernel}


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """The op on a case's tensors."""
    return upfirdn2d(
        tensors["x"],
        tensors["kernel"],
        up=case.up,
        down=case.down,
        padding=case.padding,
        flip=case.flip,
        gain=case.gain,
        add=tensors.get("add"),
        scale=tensors.get("scale"),
        bias=tensors.get("bias"),
        noise=tensors.get("noise"),
        noise_strength=tensors.get("noise_strength"),
        act=case.act,
        slope=case.slope,
        act_gain=case.act_gain,
        clamp=case.clamp,
        backend=backend,
    )


def leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that gradients are taken of."""
    return {name: tensors[name] for name in LEAVES if name in tensors}


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, gradients, and gradients of a penalty on the gradients (as R1 has it, with every input in it)."""
    inputs = leaves(tensors)
    out = call(case, tensors, backend)
    found = {"out": out}
    first = torch.autograd.grad((out * tensors["grad"]).sum(), list(inputs.values()), create_graph=True)
    found |= {f"d {name}": value for name, value in zip(inputs, first, strict=True)}
    penalty = sum(((value + 0.5) ** 2).mean() for value in first if value.numel())
    if torch.is_tensor(penalty) and penalty.requires_grad:
        wanted = {"grad": tensors["grad"]} | {name: value for name, value in inputs.items() if name != "add"}
        second = torch.autograd.grad(penalty, list(wanted.values()), materialize_grads=True)
        found |= {f"d2 {name}": value for name, value in zip(wanted, second, strict=True)}
    return found


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the reference on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)

    def others(dtype: torch.dtype) -> dict[str, Tensor]:
        moved = {name: value.detach().to(dtype) for name, value in tensors.items()}
        return {name: value if name == "kernel" else value.requires_grad_() for name, value in moved.items()}

    truth = results(replace(case, float32_parameters=False), others(torch.float64), "reference")
    plain = results(replace(case, float32_parameters=False), others(dtype), "reference")
    assert list(got) == list(truth)
    assert got["out"].shape == case.out_shape
    last = case.channels_last and not tensors["x"].is_contiguous()  # one pixel lies in memory as both
    form = torch.channels_last if last else torch.contiguous_format
    assert got["out"].is_contiguous(memory_format=form), "the layout of x is not kept"
    if backend != "reference" and last != got["out"].is_contiguous():  # an output of one pixel tells no layout
        assert got["d x"].is_contiguous(memory_format=form), "layout of x's gradient"
    taps = max(1, math.prod(case.kernel_size))
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
            scale *= math.sqrt(taps * tensors["x"].numel())  # every element rounds the sums that the penalty squares
        elif name.startswith("d") and expected.numel() < tensors["x"].numel():
            scale *= math.sqrt(tensors["x"].numel() / expected.numel())  # a sum of that many roundings
        error = (value.double() - expected).abs().max().item()
        allowed = 2 * (plain[name].double() - expected).abs().max().item() + 4 * torch.finfo(dtype).eps * scale
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # also where error is NaN
    return got


def brute_force(case: Case, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The definition, sample by sample: zeros behind each sample, pads, the flipped kernel's correlation."""
    if kernel.ndim == 1:
        kernel = np.outer(kernel, kernel)
    taps = kernel if case.flip else kernel[::-1, ::-1]
    (ux, uy), (dx, dy), (x0, _, y0, _) = case.up, case.down, case.padding
    out = np.zeros(case.out_shape)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for a in range(taps.shape[0]):
                for b in range(taps.shape[1]):
                    row, column = i * dy + a - y0, j * dx + b - x0
                    if row % uy or column % ux or row < 0 or column < 0:
                        continue
                    row, column = row // uy, column // ux
                    if row < x.shape[2] and column < x.shape[3]:
                        out[:, :, i, j] += taps[a, b] * x[:, :, row, column]
    return out * case.gain


def golden_results(case: Any, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """What the op answers in float64 to the golden case `ops_upfirdn2d_a`, by the names of its outputs."""
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        arguments, grad, name = case.arguments(spec), spec["grad"], spec["name"]
        key = spec["args"]["input"][1:]
        x = torch.from_numpy(case.inputs[key]).to(device, torch.float64).requires_grad_()
        kernel = torch.from_numpy(arguments["kernel"]).to(x)
        out = upfirdn2d(
            x, kernel.detach(), up=arguments["up"], down=arguments["down"], padding=arguments["pad"], backend=backend
        )
        probe = torch.from_numpy(case.inputs[grad["of"]["y"][1:]]).to(out)
        (gx,) = torch.autograd.grad((probe * out).sum(), x)
        found |= {f"{name}.y": out, f"{name}.grad.{key}": gx}
    return found

"""Cases of the two gradient passes of modulated_conv2d and their checks, shared by the tests of every backend.

A result is held to the passes of plain PyTorch in float64: its error may be twice that of plain PyTorch in the same
type, plus the rounding of that type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.reference.modulated_conv2d import epilogue_grad, style_grad


@dataclass(frozen=True)
class Case:
    """Maps and what the epilogue did. `noise` is "" (none), "each" (one a sample) or "shared".

    `wants` has a letter for each of the sums that are asked for: s(cale), b(ias), n(oise_strength).
    """

    name: str
    shape: tuple[int, int, int, int]
    channels_last: bool = False
    scale: bool = True
    bias: bool = True
    noise: str = "each"
    strength: bool = True  # else it is 1
    slope: float = 0.2
    gain: float = math.sqrt(2.0)
    clamp: float | None = None
    wants: str = "sbn"
    float32_parameters: bool = False  # all but the maps and the noise stay float32 beside half maps

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("odd", (2, 3, 5, 7)),
    Case("odd_clamped", (2, 3, 5, 7), noise="shared", clamp=0.7),
    Case("even", (2, 6, 8, 4)),
    Case("even_clamped", (3, 5, 8, 8), noise="shared", clamp=0.75),
    Case("small_maps", (3, 40, 4, 4)),
    Case("smaller_maps", (2, 9, 2, 2), noise="shared"),
    Case("one_pixel", (3, 21, 1, 1)),
    Case("one_value", (1, 1, 1, 1)),
    Case("one_channel", (2, 1, 9, 11)),
    Case("long_planes", (1, 2, 121, 137), clamp=1.0),
    Case("long_even_planes", (2, 2, 128, 96), noise="shared"),
    Case("nhwc_odd", (2, 7, 5, 3), channels_last=True),
    Case("nhwc_clamped", (3, 16, 3, 3), channels_last=True, noise="shared", clamp=0.7),
    Case("nhwc_even", (2, 32, 6, 4), channels_last=True),
    Case("nhwc_vectors_and_rest", (2, 90, 5, 3), channels_last=True, clamp=0.7),
    Case("nhwc_many_pixels", (2, 32, 30, 37), channels_last=True, noise="shared"),
    Case("nhwc_few_channels", (2, 3, 19, 17), channels_last=True),
    Case("nhwc_wide", (1, 1032, 2, 2), channels_last=True),
    Case("no_scale", (2, 4, 6, 6), scale=False, wants="bn"),
    Case("no_scale_nhwc", (2, 4, 6, 6), channels_last=True, scale=False, wants="bn"),
    Case("no_bias", (2, 4, 5, 6), bias=False, wants="sn"),
    Case("no_bias_nhwc", (2, 12, 5, 6), channels_last=True, bias=False, wants="sn"),
    Case("no_noise", (2, 4, 5, 6), noise="", wants="sb"),
    Case("no_noise_nhwc", (2, 12, 5, 6), channels_last=True, noise="", clamp=0.7, wants="sb"),
    Case("no_strength", (2, 4, 5, 6), strength=False),
    Case("image", (2, 3, 8, 8), scale=False, noise="", slope=1.0, gain=1.0, clamp=0.75, wants="b"),
    Case("only_scale", (2, 3, 6, 6), wants="s"),
    Case("only_strength_nhwc", (2, 8, 6, 6), channels_last=True, wants="n"),
    Case("only_the_map", (2, 3, 6, 6), wants=""),
    Case("linear", (2, 3, 5, 6), slope=1.0, clamp=0.7),
    Case("relu", (2, 5, 6, 7), slope=0.0),
    Case("relu_nhwc", (2, 8, 6, 7), channels_last=True, slope=0.0, clamp=0.7),
    Case("other_slope", (2, 3, 4, 5), slope=0.1, gain=0.5),
    Case("clamp_zero", (2, 3, 4, 4), clamp=0.0),
    Case("float32_parameters", (2, 8, 4, 4), float32_parameters=True),
    Case("float32_parameters_nhwc", (2, 8, 4, 3), channels_last=True, float32_parameters=True),
    Case("empty_batch", (0, 3, 4, 4)),
    Case("empty_batch_nhwc", (0, 8, 4, 4), channels_last=True),
    Case("no_pixels", (2, 3, 0, 4)),
]  # fmt: skip
CASE = {case.name: case for case in CASES}
NAMES = ("scale", "bias", "noise_strength")


def layout(x: Tensor, case: Case) -> Tensor:
    """X in the memory layout of the case."""
    return x.contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)


def epilogue(case: Case, c: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """What is behind the convolution: clamp(gain * lrelu(scale * c + noise_strength * noise + bias))."""
    z = c * tensors["scale"][:, :, None, None] if case.scale else c
    if case.noise:
        z = z + tensors["noise"] * tensors.get("noise_strength", torch.ones(1, device=c.device))
    z = z + tensors["bias"][:, None, None] if case.bias else z
    out = F.leaky_relu(z, case.slope) * case.gain
    return out if case.clamp is None else out.clamp(-case.clamp, case.clamp)


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensors of both passes: `out` is the epilogue's, of maps "c" that no pass is given."""
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.float32 if case.float32_parameters and dtype != torch.float64 else dtype

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    batch, channels, rows, columns = case.shape
    tensors = {name: layout(draw(*case.shape), case) for name in ("grad", "x", "c")}
    tensors["style"] = draw(batch, channels, dtype=parameters)
    if case.scale:
        tensors["scale"] = draw(batch, channels, dtype=parameters).abs() + 0.5
    if case.bias:
        tensors["bias"] = draw(channels, dtype=parameters)
    if case.noise:
        tensors["noise"] = draw(batch if case.noise == "each" else 1, 1, rows, columns)
        if case.strength:
            tensors["noise_strength"] = draw(1, dtype=parameters)
    wide = {name: value.double() for name, value in tensors.items()}
    tensors["out"] = layout(epilogue(case, wide["c"], wide).to(dtype), case)
    return {name: value.to(device) for name, value in tensors.items()}


def arguments(
    case: Case, tensors: dict[str, Tensor], clamp: float | None = None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What epilogue_grad and style_grad are called with; the case's own limit where none is given."""
    names = ("grad", "out", "scale", "bias", "noise", "noise_strength")
    act = (case.slope, case.gain, case.clamp if clamp is None else clamp)
    wants = tuple(letter in case.wants for letter in "sbn")
    first = (*(tensors.get(name) for name in names), *act, *wants)
    return first, (tensors["grad"], tensors["x"], tensors["style"])


def named(case: Case, outputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The outputs of both passes by name; of the sums those that were asked for. The others must be empty."""
    gc, *sums, gx, gstyle = outputs
    found = {"d c": gc}
    for name, letter, value in zip(NAMES, "sbn", sums, strict=True):
        if letter in case.wants:
            found[f"d {name}"] = value
        else:
            assert value.shape == (0,), name
    return found | {"d x": gx, "d style": gstyle}


def results(case: Case, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Both passes of the ops on a case's tensors: "native", "triton" or "played" ones."""
    first, second = arguments(case, {name: value.detach() for name, value in tensors.items()})
    suffix = "" if backend == "native" else f"_{backend}"
    epilogue_op = getattr(torch.ops.anifast, f"modulated_conv2d_epilogue_grad{suffix}")
    style_op = getattr(torch.ops.anifast, f"modulated_conv2d_style_grad{suffix}")
    return named(case, (*epilogue_op(*first), *style_op(*second)))


def plain(case: Case, tensors: dict[str, Tensor], clamp: float | None) -> dict[str, Tensor]:
    """Both passes in plain PyTorch. `clamp` is the limit that `out` shows, rounded as the type of `out` rounds it."""
    first, second = arguments(case, tensors, clamp)
    return named(case, (*epilogue_grad(*first), *style_grad(*second)))


def terms(case: Case, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """What each sum adds up, or more than that, and over which axes; of a difference, both sides."""
    grad, out, x = (tensors[name].double().abs() for name in ("grad", "out", "x"))
    zero, one = torch.zeros(1, device=out.device), torch.ones(1, device=out.device)
    noise, strength = tensors.get("noise", zero).double(), tensors.get("noise_strength", one).double()
    bias, scale = tensors.get("bias", zero).double(), tensors.get("scale", one[None]).double()
    gz = grad * case.gain
    z = out / (case.gain * (case.slope or 1.0)) + (strength * noise).abs() + bias.abs()[:, None, None]
    return {
        "d scale": (gz * z / scale[:, :, None, None], (2, 3)),
        "d bias": (gz, (0, 2, 3)),
        "d noise_strength": (gz * noise, (0, 1, 2, 3)),
        "d style": (grad * x, (2, 3)),
    }


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to plain PyTorch on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    clamp = None if case.clamp is None else torch.tensor(case.clamp, dtype=dtype).item()
    got, usual = results(case, tensors, backend), plain(case, tensors, clamp)
    truth = plain(case, {name: value.double() for name, value in tensors.items()}, clamp)
    summed = terms(case, tensors)
    assert list(got) == list(truth)
    for name, expected in truth.items():
        value = got[name]
        wide = dtype if name in ("d c", "d x") or dtype == torch.float64 else torch.float32
        assert value.dtype == wide and value.shape == expected.shape and value.device == tensors["grad"].device, name
        if not tensors["grad"].numel():
            assert not value.any(), f"{name}: a sum of nothing is 0"
            continue
        if name in ("d c", "d x"):
            assert value.stride() == tensors["grad"].stride(), f"{name}: the layout of grad is not kept"
        scale = expected.abs().max()
        if name in summed:  # roundings of that many terms, which add up as their squares do
            every, axes = summed[name]
            scale = torch.maximum(scale, every.square().sum(axes).sqrt().max())
        error = (value.double() - expected).abs().max().item()
        allowed = 2 * (usual[name].double() - expected).abs().max() + 4 * torch.finfo(wide).eps * scale
        assert error <= allowed.item(), f"{name}: error {error:.3g}, allowed {allowed.item():.3g}"
    return got


def moved(tensors: dict[str, Tensor], offset: int) -> dict[str, Tensor]:
    """The same maps beginning `offset` elements behind an aligned address."""
    found = dict(tensors)
    for name in {"grad", "out", "x", "noise"} & set(tensors):
        value = tensors[name]
        storage = torch.empty(value.numel() + offset, dtype=value.dtype, device=value.device)
        found[name] = storage[offset:].as_strided(value.shape, value.stride(), offset).copy_(value)
    return found


def differentiated(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What autograd finds for both passes, whose output it never sees: gradients of the epilogue and of style * x."""
    one = torch.ones(1, dtype=tensors["c"].dtype, device=tensors["c"].device)
    leaves = {name: value.clone().requires_grad_() for name, value in ({"noise_strength": one} | tensors).items()}
    wanted = ["c", *(name for name, letter in zip(NAMES, "sbn", strict=True) if letter in case.wants)]
    out, y = epilogue(case, leaves["c"], leaves), leaves["x"] * leaves["style"][:, :, None, None]
    found = [*torch.autograd.grad(out, [leaves[name] for name in wanted], tensors["grad"])]
    found += torch.autograd.grad(y, [leaves["x"], leaves["style"]], tensors["grad"])
    return {f"d {name}": value for name, value in zip([*wanted, "x", "style"], found, strict=True)}


def check_not_finite(case: Case, value: float, backend: str, device: str = "cpu") -> None:
    """NaN and infinities in the maps and in the gradient end where autograd leads them.

    Not in the gradient of the scale: of a c that is not finite it is NaN, where the limit hides that from the output.
    """
    tensors = make(case, torch.float64, device)
    tensors["c"][:, 0] = value
    tensors["grad"][:, 1:, 1] = value
    tensors["out"] = layout(epilogue(case, tensors["c"], tensors), case)
    got, expected = results(case, tensors, backend), differentiated(case, tensors)
    for name in ("d c", "d bias", "d noise_strength", "d x", "d style"):
        torch.testing.assert_close(
            got[name], expected[name], equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )

"""LPIPS with VGG-16, and BlendGAN's style vector, against the same formulas in plain PyTorch.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_lpips [--size 256] [--images 4] [--out DIR]`

The rival is what the lpips package computes, written from the formula (Zhang et al. 2018): torchvision's VGG-16, both
images through it one after the other, normalised maps, squared difference, 1 x 1 convolution and mean; for the style
vector VGG-19, a matrix product a map, and cat. Both sides have the same weights, which nobody trained: speed does not
depend on them. Before anything is timed their results are compared, by their errors against float64. The rival also
runs in channels_last, with its weights and all it computes in bf16 for "bf16"; the faster one counts. Of a frozen
target ours has the features from before, which count as memory of ours; the rival knows nothing of that kind and takes
both images.

Beside the times stand two bounds: the library's convolutions of the same work alone, timed, and as a roofline their
operations at the rate of a large matrix product. Winograd's kernels take fewer, and can be faster than both.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.engine.precision import autocast, matrix_unit
from anifast.files import write_text
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import LPIPS, Features, GramStyle

from .. import environment
from ..bench import WrongResult
from ..ops.bench_gram import plain as plain_gram
from ..ops.bench_gram import positions
from ..timing import Call, Clock, MatrixProduct, clock_for, interleave, memory, saved_for_backward, steady_allocator

FORMAT = "anifast.benchmark.system/1"
RIVAL = "the formula in plain PyTorch"
#: device -> pairs, or for the style vector images, at once
IMAGES = {"cpu": 4, "cuda": 16}
#: precision -> what a product's inputs are rounded to, relatively
ROUNDING = {"fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}
FORWARD, BACKWARD, FROZEN = (
    "LPIPS(vgg), forward",
    "LPIPS(vgg), forward + backward to one image",
    "LPIPS(vgg), forward + backward, frozen target",
)
WHOLE, FOLDED = "style vector (VGG-19)", "style vector (VGG-19), folded"
#: work -> how often a batch must go forward and backward through the convolutions
PASSES = {FORWARD: (2, 0), BACKWARD: (2, 1), FROZEN: (1, 1), WHOLE: (1, 0), FOLDED: (1, 0)}
#: (device, precision) -> work -> how many times faster than the rival it shall be, at 256 px and IMAGES
AIMS: dict[tuple[str, str], dict[str, float]] = {
    ("cpu", "fp32"): {BACKWARD: 1.25, FROZEN: 1.9},
    ("cuda", "bf16"): {FORWARD: 2.5, BACKWARD: 2.5},
    ("cuda", "tf32"): {FORWARD: 1.5, BACKWARD: 1.5},
}
#: depth of VGG -> convolutions in each of its blocks, between pools
BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class PlainVGG(nn.Module):
    """torchvision's VGG up to the last ReLU, with its names; gives the maps before each pool and the last one."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, width in zip(BLOCKS[depth], WIDTHS, strict=True):
            layers += [nn.MaxPool2d(2, 2)] if layers else []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """N,3,H,W -> five maps, in the type of the weights."""
        x = x.to(next(self.parameters()).dtype)
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]

    def convolutions(self, size: int) -> list[tuple[nn.Conv2d, int]]:
        """The convolutions, and the side of each one's input, of images of `size`."""
        found, side = [], size
        for layer in self.features:
            side = side // 2 if isinstance(layer, nn.MaxPool2d) else side
            if isinstance(layer, nn.Conv2d):
                found.append((layer, side))
        return found


class PlainDistance(nn.Module):
    """LPIPS with VGG-16 as the lpips package computes it."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainVGG(16)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """N,3,H,W each, in [-1, 1] -> N,1,1,1."""
        maps = [self.net((images - self.shift) / self.scale) for images in (first, second)]
        distances = []
        for head, *pair in zip(self.heads, *maps, strict=True):
            a, b = (x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10) for x in pair)
            distances.append(head((a - b) ** 2).mean([2, 3], keepdim=True))
        total: Tensor = sum(distances[1:], distances[0])
        return total

    def published(self) -> dict[str, Tensor]:
        """Its weights by the lpips package's names."""
        found = {f"net.slice1.{name}": value for name, value in self.net.features.state_dict().items()}
        return found | {f"lin{i}.model.1.weight": head.weight for i, head in enumerate(self.heads)}


class PlainStyle(nn.Module):
    """The whole style vector of images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net, self.size = PlainVGG(19), size

    def forward(self, images: Tensor) -> Tensor:
        """N,3,H,W -> N,L."""
        maps = self.net(F.adaptive_avg_pool2d(images, self.size))
        return plain_gram(folded=False, **{str(i): x for i, x in enumerate(maps)})


def untrained(net: nn.Module) -> None:
    """Give convolutions He-normal weights and small biases, so that maps keep their size from layer to layer, and heads
    weights that are not negative. All are frozen, as in use.
    """
    source = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            weight.normal_(0.0, math.sqrt(2.0 / weight[0].numel()), generator=source)
            if module.bias is None:
                weight.abs_()
            else:
                module.bias.data.normal_(0.0, 0.1, generator=source)
    net.requires_grad_(False).eval()


@dataclass(frozen=True)
class Pair:
    """A rival, and our networks of the same weights.

    Attributes:
        plain: the rival, float32 and contiguous; its result is that of all.
        rivals: what is timed, "plain" and others made of it (see `other_rivals`).
        ours: by work.
        inputs: images for both; the first have the gradient.
        size: of the images.
        precision: "fp32", "tf32" or "bf16".
    """

    plain: PlainDistance | PlainStyle
    rivals: dict[str, PlainDistance | PlainStyle]
    ours: dict[str, nn.Module]
    inputs: list[Tensor]
    size: int
    precision: str

    def given(self, work: str, name: str, inputs: list[Tensor]) -> list[Any]:
        """What "anifast" or a rival is called with: the inputs, or for ours the features of a frozen one."""
        if work == FROZEN and name == "anifast":
            net: Any = self.ours[work]
            return [inputs[0], *(net.features(x) for x in inputs[1:])]
        return inputs

    def forward(self, work: str, name: str, given: list[Any]) -> Tensor:
        """The result of `work`."""
        if name == "anifast":
            return self.ours[work](*given)
        rival = self.rivals[name]
        if name == "plain":
            with autocast(given[0].device, self.precision):
                return rival(*given)
        return rival(*given)

    def _with_gradient(self, work: str, name: str) -> list[Any]:
        return self.given(work, name, [self.inputs[0].clone().requires_grad_(), *self.inputs[1:]])

    def call(self, work: str, name: str) -> Call:
        """A call without arguments that does `work`, with its gradient if it has one."""
        if PASSES[work][1]:
            given = self._with_gradient(work, name)
            return lambda: torch.autograd.grad(self.forward(work, name, given).sum(), given[0])

        def without_gradient() -> Tensor:
            with torch.no_grad():
                return self.forward(work, name, self.inputs)

        return without_gradient

    def kept(self, work: str, name: str) -> int:
        """Bytes that a forward keeps for its backward, beyond weights and images; features from before are kept."""
        net = self.ours[work] if name == "anifast" else self.rivals[name]
        given = self._with_gradient(work, name)
        tensors = [tensor for x in given for tensor in (x.maps if isinstance(x, Features) else [x])]
        own = saved_for_backward(lambda: self.forward(work, name, given), [*tensors, *net.parameters(), *net.buffers()])
        return own + _bytes(given)

    def peak(self, work: str, name: str, call: Call) -> int:
        """Bytes that a call takes at its highest, with the features from before that it is given."""
        return memory(call, self.inputs[0].device.type)[0] + _bytes(self.given(work, name, self.inputs))

    def check(self) -> None:
        """Compare the result for one image of each input, and its gradient, with the rival's in float64.

        A relative error may be twice the best rival's in the same precision, plus what roundings explain. A sum of n
        products errs by about sqrt(n) / 2 roundings of it (see benchmarks/bench.py), and those of all layers may add
        up to a share e of the values; maps of fewer digits are rounded once more. A gradient also changes where a value
        is so near 0, or so near the largest of its pool, that an error decides: of each layer's values a share of 2 e,
        which carry as large a share of the squared gradient.

        Raises:
            WrongResult: an error is larger, or NaN.
        """
        layers = [conv for conv, _ in self.plain.net.convolutions(self.size)]
        share = sum(math.sqrt(conv.weight[0].numel()) / 2 for conv in layers) * ROUNDING["fp32"]
        floors = {"result": share + ROUNDING[self.precision], "gradient": math.sqrt(2 * share * len(layers))}
        exact_net = copy.deepcopy(self.plain).double()
        for work in self.ours:
            found: dict[str, list[Tensor]] = {}
            for name in ("exact", "anifast", *self.rivals):
                images, *others = (x[:1].double() if name == "exact" else x[:1] for x in self.inputs)
                given = self.given(work, name, [images.clone().requires_grad_(), *others])
                with torch.set_grad_enabled(PASSES[work][1] > 0):  # as it is timed
                    out = exact_net(*given) if name == "exact" else self.forward(work, name, given)
                both = out[:, positions(out.device)] if work == FOLDED and name != "anifast" else out
                found[name] = [both.detach().double()]
                if PASSES[work][1]:
                    found[name] += torch.autograd.grad(out.sum(), given[0])
            for (what, floor), exact, *others in zip(floors.items(), *found.values(), strict=False):
                error, *usual_ones = (float((x.double() - exact).norm() / exact.norm()) for x in others)
                usual = min(usual_ones)
                if not error <= 2 * usual + floor:
                    raise WrongResult(
                        f"{work}, {self.size} px, {self.precision}, {what}: relative error {error:.3g}, "
                        f"allowed {2 * usual + floor:.3g}"
                    )


def _bytes(given: list[Any]) -> int:
    """Of the features among what a call is given."""
    return sum(tensor.nbytes for x in given if isinstance(x, Features) for tensor in x.maps)


def other_rivals(plain: PlainDistance | PlainStyle, precision: str) -> dict[str, PlainDistance | PlainStyle]:
    """What may make the rival faster and changes no line of it: channels_last and, for "bf16", all in that type."""
    dtype, name = (torch.bfloat16, "plain in bf16, ") if precision == "bf16" else (torch.float32, "plain in ")
    other = copy.deepcopy(plain).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {f"{name}channels_last": other}


def pairs(size: int, device: torch.device, precision: str, images: int) -> list[Pair]:
    """LPIPS and the style vector."""
    dtype = torch.bfloat16 if precision == "bf16" else None
    source = torch.Generator().manual_seed(1)
    inputs = [(torch.rand(images, 3, size, size, generator=source) * 2 - 1).to(device) for _ in range(2)]
    distance, style = PlainDistance(), PlainStyle(size)
    for net in (distance, style):
        untrained(net)
    ours = LPIPS("vgg", pretrained=False, dtype=dtype)
    ours.load_lpips_state(distance.published())
    backbone = load_backbone("vgg19", pretrained=False)
    backbone.load_state_dict(style.net.state_dict())
    vectors = {WHOLE: GramStyle(backbone, size=size, dtype=dtype)}
    vectors[FOLDED] = GramStyle(backbone, size=size, dtype=dtype, folded=True)
    works: list[dict[str, nn.Module]] = [
        dict.fromkeys((FORWARD, BACKWARD, FROZEN), ours.to(device)),
        {work: net.to(device) for work, net in vectors.items()},
    ]
    plains: list[PlainDistance | PlainStyle] = [distance.to(device), style.to(device)]
    return [
        Pair(plain, {"plain": plain} | other_rivals(plain, precision), nets, given, size, precision)
        for plain, nets, given in zip(plains, works, (inputs, inputs[:1]), strict=True)
    ]


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """On a GPU float32 convolutions and products in TF32 for "tf32", and exactly for "fp32"."""
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def convolutions_alone(
    net: PlainVGG, inputs: Tensor, precision: str, clock: Clock, seconds: float
) -> tuple[float, float]:
    """Seconds of the library's convolutions of a batch by themselves: forward, and the gradients of their inputs."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    calls: dict[str, Call] = {}
    for i, (conv, side) in enumerate(net.convolutions(inputs.shape[2])):
        x = torch.randn(inputs.shape[0], conv.in_channels, side, side, device=inputs.device)
        x, weight = (value.to(dtype, memory_format=torch.channels_last) for value in (x, conv.weight))

        def forward(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return F.conv2d(x, weight, padding=1)

        grad = torch.randn_like(forward())

        def backward(x: Tensor = x, weight: Tensor = weight, grad: Tensor = grad) -> Any:
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
            )

        calls |= {f"forward {i}": forward, f"backward {i}": backward}
    times = interleave(calls, clock, seconds=seconds, rounds=(5, 51))
    forwards, backwards = (
        sum(timing.p25 for name, timing in times.items() if name.startswith(way)) for way in ("forward", "backward")
    )
    return forwards, backwards


def operations(net: PlainVGG, size: int, images: int) -> int:
    """Two for each weight and pixel of the convolutions, of one pass forward or to the inputs."""
    return sum(2 * images * conv.weight.numel() * side**2 for conv, side in net.convolutions(size))


def measure(size: int, precision: str, device: torch.device, seconds: float, images: int) -> list[dict[str, Any]]:
    """Rows of one size and precision.

    Args:
        size: of the images.
        precision: "fp32", "tf32" (on a GPU) or "bf16".
        device: to run on.
        seconds: for each row.
        images: pairs, or for the style vector images, at once.

    Raises:
        WrongResult: the two sides differ.
    """
    clock, rows = clock_for(device.type), []
    with products_in(precision):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        product = MatrixProduct.measure(dtype, device.type, clock, min(seconds, 1.0))
        for pair in pairs(size, device, precision, images):
            pair.check()
            net = pair.plain.net
            alone = convolutions_alone(net, pair.inputs[0], precision, clock, seconds / 4)
            for work in pair.ours:
                calls = {name: pair.call(work, name) for name in ("anifast", *pair.rivals)}
                times = interleave(calls, clock, seconds=seconds, rounds=(7, 51))
                fastest = min(pair.rivals, key=lambda name: times[name].p25)
                compared = {"anifast": "anifast", "plain": fastest}
                row: dict[str, Any] = {"work": work, "size": size, "precision": precision, "images": images}
                row["ms"] = {
                    name: [*(round(v * 1e3, 3) for v in (t.p25, t.p75, t.minimum)), t.count]
                    for name, t in ((name, times[of]) for name, of in compared.items())
                }
                row["rivals_ms"] = {name: round(times[name].p25 * 1e3, 3) for name in pair.rivals}
                passes = PASSES[work]
                row["convolutions_ms"] = round(sum(n * t for n, t in zip(passes, alone, strict=True)) * 1e3, 3)
                row["roofline_ms"] = round(sum(passes) * operations(net, size, images) / product.rate * 1e3, 4)
                aims = AIMS.get((device.type, precision), {}) if (size, images) == (256, IMAGES[device.type]) else {}
                if work in aims:
                    row["aim"] = aims[work]
                row["peak"] = {name: pair.peak(work, of, calls[of]) for name, of in compared.items()}
                if passes[1]:
                    row["kept"] = {name: pair.kept(work, of) for name, of in compared.items()}
                rows.append(row)
                print(show(row), flush=True)
    return rows


def show(row: dict[str, Any]) -> str:
    """A row as one line."""
    ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
    text = (
        f"{row['work']:<46} {row['size']} px x{row['images']} {row['precision']}: anifast {ours[0]:8.1f} ms "
        f"({row['images'] * 1e3 / ours[0]:6.2f} a second, +{(ours[1] / ours[0] - 1) * 100:.0f} %)  "
        f"plain {plain[0]:8.1f} ms  {plain[0] / ours[0]:.2f}x"
    )
    text += f" (aim {row['aim']:.2f}x)" if "aim" in row else ""
    text += "".join(f"  {name} {time:.1f} ms" for name, time in row["rivals_ms"].items())
    for bound, title in (("convolutions_ms", "convolutions alone"), ("roofline_ms", "roofline")):
        text += f"  {title} {row[bound]:8.1f} ms, {row[bound] / ours[0] * 100:.0f} % of ours"
    for what, title in (("kept", "kept for backward"), ("peak", "peak")):
        if what in row:
            text += f"  {title} {row[what]['anifast'] / 2**20:.0f} MiB, plain {row[what]['plain'] / 2**20:.0f} MiB"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler behind `memory` tells of itself
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="side of the images; default 256")
    parser.add_argument(
        "--images", type=int, metavar="N", help="pairs (or images) at once; default 4 on a CPU, 16 on a GPU"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=tuple(ROUNDING), help="default: fp32 on a CPU, tf32 and bf16 on a GPU"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each row; default 40")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for <device>/systems/lpips.json")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    precisions = chosen.precision or (["tf32", "bf16"] if device.type == "cuda" else ["fp32"])
    if min(chosen.size) < 16:  # four pools
        parser.error(f"--size must be 16 or more, got {min(chosen.size)}")
    if chosen.images is not None and chosen.images < 1:
        parser.error(f"--images must be 1 or more, got {chosen.images}")
    if device.type == "cpu" and "tf32" in precisions:
        parser.error("--precision tf32 is a GPU's")
    if device.type == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "ACTIVE":
        print("warning: without OMP_WAIT_POLICY=ACTIVE times on the CPU are unsteady", file=sys.stderr)
    described = environment.describe(chosen.device)
    described["allocator"] = "limits fixed" if steady_allocator() else "as the system has it"
    described["bf16 matrix unit"] = "yes" if device.type == "cuda" or matrix_unit() else "no"
    rows = [
        row
        for size in chosen.size
        for precision in precisions
        for row in measure(size, precision, device, chosen.seconds, chosen.images or IMAGES[chosen.device])
    ]
    if chosen.out:
        path = chosen.out / environment.slug(chosen.device) / "systems" / "lpips.json"
        result = {"format": FORMAT, "system": "lpips", "rival": RIVAL, "environment": described, "rows": rows}
        write_text(path, json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

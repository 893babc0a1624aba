"""StyleGAN2's generator (config F) against the same network on the ops that vendored op folders have for a CPU.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_stylegan2 [--size 256] [--precision fp32 bf16] [--out DIR]`

Both sides run on the same parameters and the stored noise, from z to images; the rival is _vendored_stylegan2.py.
Before anything is timed their images are compared, by their errors against float64. Measured are the forward pass, the
gradients of all parameters, and a step of path length regularisation, beside two bounds of the modulated layers: the
library's convolutions of the same work alone, timed, and the roofline, which is for each layer the larger of its
operations at the rate of a large matrix product and its bytes at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.engine.precision import autocast, matrix_unit
from anifast.files import write_text
from anifast.nn.regularizers import path_lengths
from anifast.nn.stylegan2 import Generator

from .. import environment, modulated_layers
from ..shapes import CONFIG_F, ModulatedConv2d, stylegan2_layers
from ..timing import Clock, MatrixProduct, clock_for, interleave, memory, saved_for_backward, steady_allocator
from ._vendored_stylegan2 import generator as vendored

FORMAT = "anifast.benchmark.system/1"
RIVAL = "the vendored folders' CPU ops"
#: device -> (images at once of a forward, of the gradients, of a path length step)
BATCHES = {"cpu": ((1, 4), 4, 2), "cuda": ((1, 16), 16, 8)}
#: (work, images) -> how many times faster than the rival it shall be on a CPU, in float32 at 256 px
AIMS = {("forward", 1): 1.5, ("forward", 4): 2.0, ("forward + backward", 4): 1.8}
#: work -> that of each modulated layer
WORKS = {
    "forward": "forward",
    "forward + backward": "forward_backward",
    "path length step": "double_backward",
}

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


class WrongImage(AssertionError):
    """Ours and the rival do not compute the same."""


class Pair:
    """One set of parameters, and both networks on them."""

    def __init__(self, size: int, device: torch.device, precision: str, channel_multiplier: float, n_mlp: int) -> None:
        self.device, self.precision = device, precision
        torch.manual_seed(0)
        self.net = Generator(size, 512, n_mlp, channel_multiplier=channel_multiplier)
        with torch.no_grad():  # as after training: in a new network noise and biases are zeros
            for name, value in self.net.named_parameters():
                if name.endswith(".noise.weight"):
                    value.fill_(0.1)
                elif name.endswith((".activate.bias", "to_rgb1.bias")) or name.startswith("to_rgbs") and "bias" in name:
                    value.add_(torch.randn_like(value) * 0.1)
        self.net.to(device)
        self.state: dict[str, Tensor] = self.net.state_dict(keep_vars=True)
        self.parameters = list(self.net.parameters())
        self.networks: dict[str, Network] = {"anifast": self._ours, "plain": lambda z: vendored(self.state, z)}

    def _ours(self, z: Tensor) -> tuple[Tensor, Tensor]:
        image, latents = self.net([z], return_latents=True, randomize_noise=False)
        assert latents is not None
        return image, latents

    @torch.no_grad()
    def check(self) -> None:
        """Compare the images of one code with the rival's in float64.

        The largest error may be twice the rival's in the precision that is measured, plus eight roundings in float32 of
        the largest value.

        Raises:
            WrongImage: it is larger, or NaN.
        """
        z = torch.randn(1, 512, device=self.device)
        exact = vendored({name: value.detach().double() for name, value in self.state.items()}, z.double())[0]
        with autocast(self.device, self.precision):
            images = {name: network(z)[0] for name, network in self.networks.items()}
        errors = {name: float((image.double() - exact).abs().max()) for name, image in images.items()}
        allowed = 2 * errors["plain"] + 8 * torch.finfo(torch.float32).eps * float(exact.abs().max())
        if not errors["anifast"] <= allowed:
            raise WrongImage(
                f"{exact.shape[-1]} px, {self.precision}: error {errors['anifast']:.3g}, allowed {allowed:.3g}"
            )

    def call(self, work: str, name: str, z: Tensor) -> Callable[[], Any]:
        """A call without arguments that does `work` by the network `name`."""
        network = self.networks[name]

        def forward() -> Any:
            with torch.no_grad(), autocast(self.device, self.precision):
                return network(z)[0]

        if work == "forward":
            return forward
        noise = torch.randn_like(forward(), dtype=torch.float32)
        direction = noise / z.shape[0]

        def gradients() -> Any:
            with autocast(self.device, self.precision):
                loss = (network(z)[0].float() * direction).sum()
            return torch.autograd.grad(loss, self.parameters)

        def path_length() -> Any:
            with autocast(self.device, self.precision):
                image, latents = network(z)
                loss = path_lengths(image.float(), latents, noise).square().mean()
            return torch.autograd.grad(loss, self.parameters, allow_unused=True)

        return gradients if work == "forward + backward" else path_length

    def kept(self, name: str, z: Tensor) -> int:
        """Bytes that a forward keeps for its backward, beyond parameters and buffers."""

        def forward() -> Any:
            with autocast(self.device, self.precision):
                return self.networks[name](z)[0]

        return saved_for_backward(forward, self.state.values())


class Bounds:
    """The bounds of the modulated layers of a generator on one device in one precision."""

    def __init__(
        self,
        layers: list[ModulatedConv2d],
        device: torch.device,
        precision: str,
        clock: Clock,
        copied: int,
        seconds: float,
    ) -> None:
        self.layers, self.device, self.clock = layers, device, clock
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.product = MatrixProduct.measure(self.dtype, device.type, clock, seconds)
        much = torch.empty(copied // 4, device=device).uniform_()
        copy = interleave({"copy": much.clone}, clock, seconds=seconds)["copy"]
        self.bandwidth = 2 * much.nbytes / copy.p25

    def roofline(self, work: str, images: int) -> float:
        """Seconds: of each layer the larger of its operations and its bytes at the rates measured."""
        of_layer = WORKS[work]
        return sum(
            max(
                modulated_layers.operations(use, images, of_layer) / self.product.rate,
                modulated_layers.traffic(use, images, self.dtype.itemsize, of_layer) / self.bandwidth,
            )
            for use in self.layers
        )

    def convolutions(self, work: str, images: int, seconds: float) -> float:
        """Seconds of the library's convolutions alone: each layer's timed, in turn as in a network."""
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        calls = {}
        for use in self.layers:
            x = torch.randn(images, use.inputs, use.side, use.side, device=self.device)
            weight = torch.randn(use.outputs, use.inputs, use.size, use.size, device=self.device, dtype=self.dtype)
            x = x.to(self.dtype, memory_format=layout)
            calls[use.name] = modulated_layers.library(use, WORKS[work], x, weight)
        return sum(timing.p25 for timing in interleave(calls, self.clock, seconds=seconds, rounds=(5, 51)).values())


def measure(
    size: int,
    precision: str,
    device: torch.device,
    seconds: float,
    batches: tuple[tuple[int, ...], int, int],
    *,
    channels: dict[int, int] = CONFIG_F,
    channel_multiplier: float = 2,
    n_mlp: int = 8,
    copied: int = 1 << 28,
) -> list[dict[str, Any]]:
    """Rows of one size and precision.

    Args:
        size: of the images.
        precision: "fp32" or "bf16".
        device: to run on.
        seconds: for each row.
        batches: see `BATCHES`.
        channels: of the generator by side, `channel_multiplier`'s.
        channel_multiplier: of the generator.
        n_mlp: layers of its mapping network.
        copied: bytes of the tensor that is cloned for the roofline.

    Raises:
        WrongImage: the two networks differ.
    """
    pair, clock = Pair(size, device, precision, channel_multiplier, n_mlp), clock_for(device.type)
    pair.check()
    layers = stylegan2_layers(
        "generator", {side: count for side, count in channels.items() if side <= size}, noise=True
    )
    bounds = Bounds(layers, device, precision, clock, copied, min(seconds, 1.0))
    forwards, training, path = batches
    rows = []
    for work, images in [
        *(("forward", n) for n in forwards),
        ("forward + backward", training),
        ("path length step", path),
    ]:
        z = torch.randn(images, 512, device=device)
        calls = {name: pair.call(work, name, z) for name in pair.networks}
        times = interleave(calls, clock, seconds=seconds, rounds=(7, 51))
        row: dict[str, Any] = {"work": work, "size": size, "precision": precision, "images": images}
        row["ms"] = {n: [*(round(v * 1e3, 3) for v in (t.p25, t.p75, t.minimum)), t.count] for n, t in times.items()}
        row["convolutions_ms"] = round(bounds.convolutions(work, images, seconds / 4) * 1e3, 3)
        row["roofline_ms"] = round(bounds.roofline(work, images) * 1e3, 4)
        if device.type == "cpu" and (size, precision) == (256, "fp32") and (work, images) in AIMS:
            row["aim"] = AIMS[work, images]
        if work != "forward":
            row["peak"] = {name: memory(call, device.type)[0] for name, call in calls.items()}
        if work == "forward + backward":
            row["kept"] = {name: pair.kept(name, z) for name in pair.networks}
        rows.append(row)
        print(show(row), flush=True)
    return rows


def show(row: dict[str, Any]) -> str:
    """A row as one line."""
    ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
    text = (
        f"{row['work']:<18} {row['size']} px x{row['images']} {row['precision']}: anifast {ours[0]:8.1f} ms "
        f"({row['images'] * 1e3 / ours[0]:6.2f} img/s, +{(ours[1] / ours[0] - 1) * 100:.0f} %)  "
        f"vendored {plain[0]:8.1f} ms  {plain[0] / ours[0]:.2f}x"
    )
    text += f" (aim {row['aim']:.2f}x)" if "aim" in row else ""
    for bound, title in (("convolutions_ms", "convolutions alone"), ("roofline_ms", "roofline")):
        text += f"  {title} {row[bound]:8.1f} ms, {row[bound] / ours[0] * 100:.0f} % of ours"
    for what, title in (("kept", "kept for backward"), ("peak", "peak")):
        if what in row:
            text += f"  {title} {row[what]['anifast'] / 2**20:.0f} MiB, vendored {row[what]['plain'] / 2**20:.0f} MiB"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        choices=sorted(CONFIG_F)[1:],
        default=[256],
        help="side of the images; default 256",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--training", type=int, metavar="N", help="images of a training step; half as many of path length"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="for each row; default 40")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for <device>/systems/stylegan2.json")
    chosen = parser.parse_args(arguments)
    if chosen.training is not None and chosen.training < 1:
        parser.error(f"--training must be 1 or more, got {chosen.training}")
    device = torch.device(chosen.device)
    if device.type == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "ACTIVE":
        print("warning: without OMP_WAIT_POLICY=ACTIVE times on the CPU are unsteady", file=sys.stderr)
    described = environment.describe(chosen.device)
    described["allocator"] = "limits fixed" if steady_allocator() else "as the system has it"
    described["bf16 matrix unit"] = "yes" if device.type == "cuda" or matrix_unit() else "no"
    forwards, training, path = BATCHES[chosen.device]
    if chosen.training:
        training, path = chosen.training, max(1, chosen.training // 2)
    rows = [
        row
        for size in chosen.size
        for precision in chosen.precision or (["bf16"] if device.type == "cuda" else ["fp32"])
        for row in measure(size, precision, device, chosen.seconds, (forwards, training, path))
    ]
    if chosen.out:
        path_of_file = chosen.out / environment.slug(chosen.device) / "systems" / "stylegan2.json"
        result = {"format": FORMAT, "system": "stylegan2", "rival": RIVAL, "environment": described, "rows": rows}
        write_text(path_of_file, json.dumps(result, indent=1) + "\n")
        print(f"written: {path_of_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

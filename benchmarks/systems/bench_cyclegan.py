"""CycleGAN's training step and translation against the same networks in plain eager PyTorch.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_cyclegan [--size 128] [--precision fp32 bf16] [--out DIR]`

Both sides run the published step (batch 1, identity loss): the plain one as its authors wrote it, six generator and six
discriminator passes on N,C,H,W tensors. Ours has both pools filled; the plain one has none and judges the translations
as they come, which is a little less work. They are timed in turn in one process, in the same precision. Beside them
stands the bound: the convolutions of our step alone, forward and backward, at our layout and batches, which nothing but
a faster convolution can go below.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.engine.loop import run_step
from anifast.engine.precision import autocast, matrix_unit
from anifast.files import write_text
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.training import CycleGAN

from .. import environment
from ..timing import clock_for, interleave, steady_allocator

FORMAT = "anifast.benchmark.system/1"


class PlainBlock(nn.Module):
    """A residual block as model code usually has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> the same shape."""
        return x + self.body(x)


def plain_generator(blocks: int, w: int) -> nn.Module:
    """The generator of spec and paper in torch.nn's modules."""

    def normed(*convs: nn.Module, width: int) -> list[nn.Module]:
        return [*convs, nn.InstanceNorm2d(width), nn.ReLU(True)]

    return nn.Sequential(
        *normed(nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), width=w),
        *normed(nn.Conv2d(w, 2 * w, 3, 2, 1), width=2 * w),
        *normed(nn.Conv2d(2 * w, 4 * w, 3, 2, 1), width=4 * w),
        *(PlainBlock(4 * w) for _ in range(blocks)),
        *normed(nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, output_padding=1), width=2 * w),
        *normed(nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1), width=w),
        nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh(),
    )  # fmt: skip


def plain_discriminator(w: int) -> nn.Module:
    """The PatchGAN of spec and paper in torch.nn's modules."""
    layers: list[nn.Module] = [nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for i, stride in ((1, 2), (2, 2), (4, 1)):
        layers += [nn.Conv2d(i * w, 2 * i * w, 4, stride, 1), nn.InstanceNorm2d(2 * i * w), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * w, 1, 4, 1, 1))


class Plain:
    """One step after the other as the reference implementation takes it, but without its pools of past translations."""

    def __init__(self, blocks: int, width: int, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self.g = [plain_generator(blocks, width).to(device) for _ in range(2)]
        self.d = [plain_discriminator(width).to(device) for _ in range(2)]
        self.optimizers = [
            torch.optim.Adam(itertools.chain(*(net.parameters() for net in nets)), lr=2e-4, betas=(0.5, 0.999))
            for nets in (self.g, self.d)
        ]

    def step(self, a: Tensor, b: Tensor) -> None:
        """Train on one image of each domain, 1,3,H,W in [-1, 1]."""
        (g_ab, g_ba), (d_a, d_b) = self.g, self.d
        for net in self.d:
            net.requires_grad_(False)
        with autocast(self.device, self.precision):
            fake_b, fake_a = g_ab(a), g_ba(b)
            rec_a, rec_b = g_ba(fake_b), g_ab(fake_a)
            loss = 5.0 * (F.l1_loss(g_ab(b), b) + F.l1_loss(g_ba(a), a))
            loss = loss + 10.0 * (F.l1_loss(rec_a, a) + F.l1_loss(rec_b, b))
            for judge, fake in ((d_b, fake_b), (d_a, fake_a)):
                score = judge(fake)
                loss = loss + F.mse_loss(score, torch.ones_like(score))
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        for net in self.d:
            net.requires_grad_(True)
        self.optimizers[1].zero_grad()
        for judge, real, fake in ((d_b, b, fake_b), (d_a, a, fake_a)):
            with autocast(self.device, self.precision):
                on_real, on_fake = judge(real), judge(fake.detach())
                loss = F.mse_loss(on_real, torch.ones_like(on_real)) + F.mse_loss(on_fake, torch.zeros_like(on_fake))
            (0.5 * loss).backward()
        self.optimizers[1].step()


def convolutions(work: Callable[[], None]) -> Counter[tuple[Any, ...]]:
    """The convolutions that `work` calls, as keys of `convolve`, and how often."""
    seen: Counter[tuple[Any, ...]] = Counter()
    originals = {name: getattr(F, name) for name in ("conv2d", "conv_transpose2d")}

    def recorded(name: str) -> Callable[..., Tensor]:
        def call(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
            wants = x.requires_grad and torch.is_grad_enabled(), weight.requires_grad and torch.is_grad_enabled()
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            numbers = tuple(None if torch.is_tensor(value) else value for value in rest)  # biases are not the point
            seen[(name, tuple(x.shape), tuple(weight.shape), numbers, tuple(options.items()), wants, last)] += 1
            return originals[name](x, weight, *rest, **options)

        return call

    try:
        for name in originals:
            setattr(F, name, recorded(name))
        work()
    finally:
        for name, original in originals.items():
            setattr(F, name, original)
    return seen


def convolve(key: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """The call of one recorded convolution, with the gradients that were wanted."""
    name, shape, weight_shape, numbers, options, wants, last = key
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape, device=device).to(dtype, memory_format=layout).requires_grad_(wants[0])
    weight = torch.randn(weight_shape, device=device).to(dtype, memory_format=layout).requires_grad_(wants[1])
    function = getattr(F, name)

    def run() -> Any:
        return function(x, weight, *numbers, **dict(options))

    leaves = [tensor for tensor in (x, weight) if tensor.requires_grad]
    if not leaves:
        return run
    with torch.no_grad():
        grad = torch.randn_like(run())
    return lambda: torch.autograd.grad(run(), leaves, grad)


def bound(work: Callable[[], None], device: torch.device, precision: str, seconds: float) -> float:
    """Seconds that the convolutions of `work` take by themselves."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    total = 0.0
    for key, count in convolutions(work).items():
        call = convolve(key, device, dtype)
        total += count * interleave({"conv": call}, clock_for(device.type), seconds=seconds, rounds=(5, 51))["conv"].p25
    return total


def measure(
    size: int, precision: str, device: torch.device, seconds: float, blocks: int = 9, width: int = 64
) -> list[dict[str, Any]]:
    """Rows of one size and precision: the training step, and the translation of 1 and 8 pictures."""
    sizes = {"size": size, "blocks": blocks, "width": width, "d_width": width}
    config = make("reference", {"precision": precision, **sizes})
    ours = CycleGAN(config, device)
    plain = Plain(blocks, width, device, precision)
    for domain in ("A", "B"):  # as after many steps
        ours.pools[domain].query(torch.rand(config.pool_size, 3, size, size, device=device) * 2 - 1)
    a, b = (torch.rand(1, 3, size, size, device=device) * 2 - 1 for _ in range(2))
    steps = itertools.count()

    def our_step() -> None:
        ours.begin((a, b), 0)
        run_step(ours.phases, next(steps), device, precision)

    rows = []

    def add(work: str, images: int, calls: dict[str, Callable[[], Any]]) -> None:
        least = bound(calls["anifast"], device, precision, seconds / 40)
        times = interleave(calls, clock_for(device.type), seconds=seconds, rounds=(7, 51))
        row = {
            "work": work,
            "size": size,
            "precision": precision,
            "images": images,
            "ms": {
                name: [round(v * 1e3, 3) for v in (t.p25, t.p75, t.minimum)] + [t.count] for name, t in times.items()
            },
            "convolutions_ms": round(least * 1e3, 3),
        }
        rows.append(row)
        print(show(row), flush=True)

    add("training step", 1, {"anifast": our_step, "plain": lambda: plain.step(a, b)})
    net, other = ours.nets["G_AB"].eval(), plain.g[0].eval()
    for count in (1, 8):
        images = torch.rand(count, 3, size, size, device=device) * 2 - 1

        def translation(model: nn.Module, images: Tensor = images) -> Callable[[], Any]:
            def call() -> Any:
                with torch.no_grad(), autocast(device, precision):
                    return model(images)

            return call

        add("translation", count, {"anifast": translation(net), "plain": translation(other)})
    return rows


def show(row: dict[str, Any]) -> str:
    """A row as one line."""
    ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
    return (
        f"{row['work']:<14} {row['size']} px x{row['images']} {row['precision']}: anifast {ours[0]:8.1f} ms "
        f"({row['images'] * 1e3 / ours[0]:6.2f} img/s, +{(ours[1] / ours[0] - 1) * 100:.0f} %)  "
        f"plain {plain[0]:8.1f} ms  {plain[0] / ours[0]:.2f}x  convolutions alone {row['convolutions_ms']:8.1f} ms, "
        f"{row['convolutions_ms'] / ours[0] * 100:.0f} % of ours"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="side of the pictures; default 128")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each row; default 40")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for <device>/systems/cyclegan.json")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "ACTIVE":
        print("warning: without OMP_WAIT_POLICY=ACTIVE times on the CPU are unsteady", file=sys.stderr)
    described = environment.describe(chosen.device)
    described["allocator"] = "limits fixed" if steady_allocator() else "as the system has it"
    described["bf16 matrix unit"] = "yes" if device.type == "cuda" or matrix_unit() else "no"
    rows = [
        row
        for size in chosen.size
        for precision in chosen.precision
        for row in measure(size, precision, device, chosen.seconds)
    ]
    if chosen.out:
        path = chosen.out / environment.slug(chosen.device) / "systems" / "cyclegan.json"
        result = {"format": FORMAT, "system": "cyclegan", "environment": described, "rows": rows}
        write_text(path, json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What benchmarks of systems share: sides that compute the same, the library's products alone, rows, results files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anifast.engine.precision import matrix_unit
from anifast.files import write_text

from .. import environment
from ..timing import Clock, MatrixProduct, Timing, interleave, steady_allocator

FORMAT = "anifast.benchmark.system/1"
#: Of float32, relative.
ROUNDING = torch.finfo(torch.float32).eps

Call = Callable[[], Any]


class WrongResult(AssertionError):
    """Two sides do not compute the same."""


def relative(x: Tensor, exact: Tensor) -> float:
    """The length of x - exact in parts of that of exact; infinite where there is a NaN, so that it is the most."""
    error = float((x.to(exact) - exact).norm() / exact.norm())
    return math.inf if math.isnan(error) else error


def as_after_training(nets: Iterable[nn.Module]) -> None:
    """Move biases away from where new networks have them, always the same way."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for net in nets:
            for name, value in net.named_parameters():
                if name.rpartition(".")[2] == "bias":
                    value.add_(torch.randn(value.shape, generator=source).to(value.device) * 0.1)


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """On a GPU cuDNN measures which of its convolutions is the fastest, as authors' programs let it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Convolutions(TorchDispatchMode):
    """Counts the convolutions and gradients of one that run under it, but not filters, which see one channel at once.

    Attributes:
        seen: how often each was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count it if it is one."""
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            backward = func is torch.ops.aten.convolution_backward.default
            tensors, numbers = args[: 2 + backward], args[3 + backward :]
            x, weight = tensors[-2:]
            # the double backward of a filter convolves channel by channel, for a gradient of the filter or not
            one = weight.shape[1] if numbers[5] > 1 else max(x.shape[0], weight.shape[0])
            if one > 1:
                likes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in tensors)
                self.seen[(backward, likes, tuple(tuple(n) if isinstance(n, list) else n for n in numbers))] += 1
        return func(*args, **(kwargs or {}))


class Products(Convolutions):
    """Counts matrix products too, but not those of a vector.

    Args:
        vectors: whether those count as well.
    """

    def __init__(self, vectors: bool = False) -> None:
        super().__init__()
        self._vectors = vectors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count it if it is one."""
        if func in (
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.bmm.default,
            torch.ops.aten.baddbmm.default,
        ):
            factors = args[-2:]
            if self._vectors or all(1 not in x.shape for x in factors):
                self.seen[("product", tuple((tuple(x.shape), x.stride(), x.dtype) for x in factors))] += 1
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def alike(like: tuple[Any, ...], device: torch.device) -> Tensor:
    """Random numbers that lie as these do; on a GPU in channels_last, which its convolutions are fastest in."""
    shape, stride, dtype = like
    extent = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    x = torch.randn(extent, device=device).to(dtype).as_strided(shape, stride)
    return x.contiguous(memory_format=torch.channels_last) if device.type == "cuda" and x.dim() == 4 else x


def repeated(key: tuple[Any, ...], device: torch.device) -> Call:
    """The call of one that was counted; its bias is not the point."""
    if key[0] == "product":
        a, b = (alike(like, device) for like in key[1])
        return lambda: a @ b
    backward, likes, numbers = key
    tensors = [alike(like, device) for like in likes]
    if backward:
        *numbers, wanted = numbers
        mask = [*wanted[:2], False]
        return lambda: torch.ops.aten.convolution_backward(*tensors, None, *numbers, mask)
    return lambda: torch.ops.aten.convolution(*tensors, None, *numbers)


def seconds_of(counts: Mapping[tuple[Any, ...], int], device: torch.device, clock: Clock, seconds: float) -> float:
    """Seconds that what was counted takes by itself, all in turn, measured for `seconds`."""
    calls = {str(number): repeated(key, device) for number, key in enumerate(counts)}
    with torch.no_grad(), tuned(device):
        times = interleave(calls, clock, seconds=seconds, rounds=(5, 51))
    return sum(count * times[str(number)].p25 for number, count in enumerate(counts.values()))


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device reaches.

    Attributes:
        operations: type -> operations a second of a large matrix product, 2 for a multiplication and its sum.
        bandwidth: bytes a second that a large copy reads and writes.
    """

    operations: Mapping[torch.dtype, float]
    bandwidth: float

    @staticmethod
    def measure(device: torch.device, clock: Clock, seconds: float, copied: int = 1 << 28) -> Rates:
        """Measured for `seconds` each; `copied` bytes are copied."""
        operations = {
            dtype: MatrixProduct.measure(dtype, device.type, clock, seconds).rate
            for dtype in (torch.float32, torch.bfloat16)
        }
        much = torch.empty(copied // 4, device=device).uniform_()
        copy = interleave({"copy": much.clone}, clock, seconds=seconds)["copy"]
        return Rates(operations, 2 * much.nbytes / copy.p25)


def cost(key: tuple[Any, ...]) -> tuple[int, int]:
    """Operations, 2 for a multiplication and its sum, and the fewest bytes of one that was counted."""
    like = [torch.empty_strided(*shape, device="meta", dtype=dtype) for *shape, dtype in key[1]]
    if key[0] == "product":
        a, b = like
        made = a.numel() // a.shape[-1] * b.shape[-1]
        return 2 * a.numel() * b.shape[-1], a.nbytes + b.nbytes + made * a.itemsize
    backward, _, numbers = key
    x, weight = like[-2:]
    *how, wanted = numbers if backward else (*numbers, [])
    out = like[0] if backward else torch.ops.aten.convolution(x, weight, None, *how)
    transposed = how[3]
    # of each value of the smaller map, with all weights of its group
    operations = 2 * (x if transposed else out).numel() * weight[0].numel()
    if not backward:
        return operations, x.nbytes + weight.nbytes + out.nbytes
    times = sum(wanted[:2])
    # each gradient reads the other factor and writes what is like its own
    return operations * times, times * (out.nbytes + x.nbytes + weight.nbytes)


def roofline(counts: Mapping[tuple[Any, ...], int], rates: Rates) -> float:
    """Seconds: of each that was counted the larger of its operations and its bytes at these rates."""
    found = 0.0
    for key, count in counts.items():
        operations, nbytes = cost(key)
        rate = rates.operations.get(key[1][0][2], math.inf)
        found += count * max(operations / rate, nbytes / rates.bandwidth)
    return found


def milliseconds(times: Mapping[str, Timing]) -> dict[str, list[Any]]:
    """A row's `ms`: lower quartile, upper quartile, minimum and number of samples of each side."""
    return {name: [*(round(v * 1e3, 3) for v in (t.p25, t.p75, t.minimum)), t.count] for name, t in times.items()}


def show(
    row: Mapping[str, Any],
    rivals: Iterable[str],
    aimed: str,
    *,
    width: int,
    steps: bool = False,
    bound: str = "convolutions alone",
) -> str:
    """A row as one line.

    Args:
        row: as in results files; it may lack a size.
        rivals: their names in the row, in this order; those that it lacks are left out.
        aimed: the rival that a row's aim is against where its `aimed` names no other.
        width: of the work's name.
        steps: whether the rate is told in steps instead of pictures.
        bound: what `convolutions_ms` is called.
    """
    ours, alone, digits = row["ms"]["anifast"], row["convolutions_ms"], 2 if steps else 1
    size = f"{row['size']} px " if "size" in row else ""
    rate = f"{1e3 / ours[0]:.4g} it/s" if steps else f"{row['images'] * 1e3 / ours[0]:6.2f} img/s"
    text = (
        f"{row['work']:<{width}} {size}x{row['images']} {row['precision']}: "
        f"anifast {ours[0]:8.{digits}f} ms ({rate}, +{(ours[1] / ours[0] - 1) * 100:.0f} %)"
    )
    for name in rivals:
        if name in row["ms"]:
            rival = row["ms"][name][0]
            text += f"  {name} {rival:8.{digits}f} ms{f' ({1e3 / rival:.4g} it/s)' if steps else ''}, "
            text += f"{rival / ours[0]:.2f}x ("
            text += f"aim {row['aim']:.2f}x, " if "aim" in row and name == row.get("aimed", aimed) else ""
            text += f"bound {rival / alone:.2f}x)"
    text += f"  {bound} {alone:8.{digits}f} ms, {alone / ours[0] * 100:.0f} % of ours"
    if "roofline_ms" in row:
        text += f"  roofline {row['roofline_ms']:.2f} ms, ours {ours[0] / row['roofline_ms']:.2f} times"
        text += f" (aim {row['roofline_aim']:.1f})" if "roofline_aim" in row else ""
    if "peak" in row:
        text += "  peak " + ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in row["peak"].items())
    if "peak_aim" in row:
        share = row["peak"]["anifast"] / row["peak"]["authors"]
        text += f", {share * 100:.0f} % of the authors' (aim {row['peak_aim'] * 100:.0f} %)"
    return text


def add_options(parser: argparse.ArgumentParser, repository: str | None, seconds: float, name: str) -> None:
    """The options that all have.

    Args:
        parser: to add them to.
        repository: of the authors, without https; None: theirs is not measured.
        seconds: default for each row.
        name: of the results file.
    """
    if repository is not None:
        parser.add_argument("--authors", type=Path, metavar="DIR", help=f"checkout of {repository}")
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), help="default: fp32 on a CPU, both on a GPU"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"for each row, and 3 rounds at least; default {seconds:g}",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for <device>/systems/{name}.json")


def begin(device: str) -> dict[str, Any]:
    """Fix the allocator's limits and warn of what makes times unsteady; returns a result's `environment`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler behind `memory` tells of itself
    if device == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "ACTIVE":
        print("warning: without OMP_WAIT_POLICY=ACTIVE times on the CPU are unsteady", file=sys.stderr)
    described = environment.describe(device)
    described["allocator"] = "limits fixed" if steady_allocator() else "as the system has it"
    described["bf16 matrix unit"] = "yes" if device == "cuda" or matrix_unit() else "no"
    return described


def precisions_of(chosen: argparse.Namespace) -> list[str]:
    """Those that were chosen, or the device's."""
    return list(chosen.precision or (["fp32", "bf16"] if chosen.device == "cuda" else ["fp32"]))


def write(
    out: Path,
    device: str,
    system: str,
    note: str,
    rivals: Mapping[str, str],
    authors: dict[str, Any] | None,
    described: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Write a results file and tell where.

    Args:
        out: the folder that `--out` named.
        device: "cpu" or "cuda".
        system: its name.
        note: what stands under the table.
        rivals: name -> title, of all that there are; those in no row are left out.
        authors: what `_checkouts.describe` gave.
        described: what `begin` gave.
        rows: of the table.
    """
    path = out / environment.slug(device) / "systems" / f"{system}.json"
    measured = {name: title for name, title in rivals.items() if any(name in row["ms"] for row in rows)}
    result: dict[str, Any] = {"format": FORMAT, "system": system, "note": note, "rivals": measured}
    result |= {} if authors is None else {"authors": authors}
    result |= {"environment": described, "rows": rows}
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")

"""Twin-GAN: training steps phase by phase, translation and search, against plain PyTorch.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_twingan [--only 32 64 translate-64 search] [--batch 8]
[--out DIR]`

The author's code needs TensorFlow 1.8 on Python 2, so the rivals are plain PyTorch: a step of the preset `fast` and one
of `tg2018`, with every op on the backend `reference`, contiguous maps, doubled and joined maps built as they are, and
each network called once for every set of pictures, as the author's graph does. `fast` does the same work on all sides,
`tg2018` paints a further batch for its discriminators and keeps no average. All take turns in one process, on the same
weights and pictures and with as many of them. Before anything is timed the losses and gradients of a step and the
translated pictures are compared, by their errors against plain PyTorch in float64.

A step is one from a batch of pictures on the device on: losses, DRAGAN's penalty with its second derivatives, both
optimisers, norms and the average. On a GPU the phases up to 32 px repeat recorded CUDA graphs, as they do in training
with --cuda-graphs. Beside each stand the bound, the library's convolutions and matrix products of our order of work
alone, and the roofline, which is for each of these the larger of its operations at the rate of a large matrix product
and its bytes at the rate of a large copy. A search is from a query's embedding to its nearest in a gallery of random
ones on disk that has been read before; its bound is the gallery's bytes at the rate of a large copy, on a GPU of one
from the host. Its rivals are plain PyTorch in the same chunks, and with the whole gallery in float32.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anifast import use_backend
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.engine.precision import autocast
from anifast.errors import AnifastError
from anifast.systems.twingan import checkpoints, gallery, inference
from anifast.systems.twingan.config import SIZES, STAGES, Config, make
from anifast.systems.twingan.config import sides as of_stage
from anifast.systems.twingan.networks import Encoder, Generator, build
from anifast.systems.twingan.pictures import Batch
from anifast.systems.twingan.training import GRAPHS_UP_TO, TwinGAN

from ..timing import Clock, clock_for, highest_own_memory, interleave, memory, own_memory
from ._sides import (
    ROUNDING,
    Call,
    Products,
    Rates,
    WrongResult,
    add_options,
    as_after_training,
    begin,
    cost,
    milliseconds,
    precisions_of,
    relative,
    roofline,
    seconds_of,
    show,
    tuned,
    write,
)

#: What ours is compared with, in this order, and what tables call it.
RIVALS = {
    "eager": "`fast` in plain PyTorch",
    "tg2018": "`tg2018` in plain PyTorch",
    "unrecorded": "ours without CUDA graphs",
    "chunks": "a search in float32 chunks and `torch.topk`",
    "whole": "a search that makes all of it float32",
}
#: What stands under the table.
NOTE = (
    "Steps begin with a batch of pictures, {batch} of each domain and on all sides. The author's code needs TensorFlow "
    "1.8 and was not run: plain PyTorch has every op as plain operations and contiguous maps, and calls each network "
    "once for every set of pictures, as the author's graph does; `tg2018` paints a further batch for its "
    "discriminators. Bounds are what the ratios would be if ours were the library's convolutions and matrix products "
    "of our order of work alone; the roofline counts their operations and bytes. Phases whose layers fade in are "
    "measured half way, of them {fading} here. A search is in a memory-mapped gallery whose pages are in memory; its "
    "bound is the gallery's bytes at the rate of {rate}. Its rivals are plain PyTorch too: the same chunks made "
    "float32 one by one, with torch.topk of each and of all that these have found, and the whole gallery made float32 "
    "first."
)
#: What a search's bound is the rate of.
RATE = {"cpu": "a large copy", "cuda": "a large copy from the host's memory to the GPU's"}
#: What stands there too where a search's memory was looked at.
MEMORY_NOTE = (
    " A process that does nothing but search, for {queries} pictures at once, has at most {mib:.0f} MiB of memory of "
    "its own, Python's and PyTorch's {before:.0f} MiB among them (RssAnon, looked at every millisecond: resident pages "
    "that no file backs, and so without those of the gallery, which the system drops where it needs them)."
)
#: What stands there too where steps are recorded as CUDA graphs.
GRAPHS_NOTE = (
    "Up to 32 px anifast's steps are recorded as CUDA graphs, their peaks of memory are those before recording."
)
#: What `convolutions_ms` is here.
BOUND, SEARCH_BOUND = "convolutions and products alone", "the gallery's bytes"
#: What is measured where nothing is chosen.
ROWS = {
    kind: ("4", "8", "16", "32", "32to64", "64", "128", "256", "translate-64", "translate-256", "search")
    for kind in ("cpu", "cuda")
}
#: Pictures of each domain in a step: on a CPU the author's, which are fewer at large sizes, on a GPU those of `fast`.
BATCHES = {"cpu": 0, "cuda": 16}
#: Pictures at once of a translation, and queries at once of a search.
TRANSLATED, QUERIES = (1, 32), (1, 10)
#: Rows of a gallery, numbers of an embedding, and how many neighbours are asked for.
GALLERY, DIMENSIONS, NEAREST = 160_000, 4096, 5
#: device -> {phase: how many times faster than plain PyTorch's `fast` a step shall be}
AIMS = {"cpu": {"64": 1.6}, "cuda": {"4": 4.0, "8": 4.0, "16": 4.0, "32": 4.0, "256": 1.8}}
#: Pictures of each domain in the steps that are compared.
COMPARED = 2


class Plain(TwinGAN):
    """A step with maps and weights as PyTorch makes them, contiguous; for configurations that are not stacked."""

    def __init__(self, config: Config, stage: str, device: torch.device, total: int) -> None:
        super().__init__(config, stage, device, total)
        averages = {} if self.ema is None else self.ema.nets
        for net in (*self.nets.values(), *averages.values()):
            for parameter in net.parameters():
                parameter.data = parameter.data.contiguous()

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous()


def change(nets: Iterable[nn.Module]) -> None:
    """Move what new networks have at 0 or 1 away from there, always the same way: biases, norms and their memories."""
    nets = list(nets)
    as_after_training(nets)
    source = torch.Generator().manual_seed(1)

    def drawn(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=source).to(like)

    with torch.no_grad():
        for net in nets:
            for name, value in (*net.named_parameters(), *net.named_buffers()):
                kind = name.rpartition(".")[2]
                if kind in ("beta", "gamma"):
                    value.add_(drawn(value) - 0.5, alpha=0.2)
                elif kind == "renorm_weight":  # the memories are half full
                    value.fill_(0.5)
                elif kind in ("renorm_mean", "running_mean"):
                    value.copy_(drawn(value) - 0.5).mul_(0.2)
                elif kind in ("renorm_std", "running_var"):
                    value.copy_(drawn(value)).add_(0.5).mul_(0.5)


def batches(system: TwinGAN, count: int) -> tuple[Batch, ...]:
    """What a step takes, always the same pictures, `count` of each domain."""
    source = torch.Generator().manual_seed(2)
    shape = (2, count, 3, system.side, system.side)
    found = []
    for _ in range(system.batches):
        real = torch.rand(shape, generator=source).to(system.device, system.alpha.dtype)
        found.append(Batch(real[0], real[1], None))
    return tuple(found)


class Sides:
    """A phase's step by ours and by plain PyTorch, on the same weights and pictures.

    Args:
        config: of ours; its batch is the step's, on all sides.
        stage: the phase. One whose layers fade in is measured half way.
        device: to run on.
        graphs: whether ours is to be recorded as CUDA graphs, and also measured without them.

    Attributes:
        configs, systems: name -> those of each side, ours first.
        graphs: those of "anifast"; None: it isn't recorded.

    Raises:
        AnifastError: CUDA graphs are asked for without a GPU.
    """

    def __init__(self, config: Config, stage: str, device: torch.device, graphs: bool = False) -> None:
        self.stage, self.device = stage, device
        self.side = of_stage(stage)[0]
        self.batch = config.batch_of(self.side)
        self._recorder = Graphs(device) if graphs else None
        self.graphs: Graphs | None = None  # once there is something to record
        plain: dict[str, Any] = {"stacked": False, "split_up": False}
        shared = {name: getattr(config, name) for name in ("size", "max_channels", "precision", "seed")}
        tg2018 = make("tg2018", {**shared, **plain, "batch": self.batch})
        self.configs = {"anifast": config, "eager": dataclasses.replace(config, **plain), "tg2018": tg2018}
        if graphs:
            self.configs["unrecorded"] = config
        self.systems = {name: self._system(name) for name in self.configs}
        self._batches = {name: batches(system, self.batch) for name, system in self.systems.items()}
        self._steps = 0

    @property
    def names(self) -> list[str]:
        """Of the sides, ours first."""
        return list(self.systems)

    def _system(self, name: str, **changes: Any) -> TwinGAN:
        config = dataclasses.replace(self.configs[name], **changes)
        batch = config.batch_of(self.side)
        kind = TwinGAN if self.configs[name].stacked else Plain
        system = kind(config, self.stage, self.device, total=2 * batch)
        change(system.nets.values())
        return system

    def step(self, name: str) -> Call:
        """A call that trains one step and gives its losses."""
        system, batch = self.systems[name], self._batches[name]

        def ours() -> dict[str, Tensor]:
            graphs = self.graphs if name == "anifast" else None
            found = _step(system, batch, self._steps, graphs)
            self._steps += 1
            if system.ema is not None:
                system.ema.update(self.batch)
            return found

        def rival() -> dict[str, Tensor]:
            with use_backend("reference"), tuned(self.device):
                return ours()

        return rival if isinstance(system, Plain) else ours

    def record(self) -> None:
        """Let ours repeat recorded phases from now on, if it does at all."""
        self.graphs = self._recorder
        for _ in range(WARM_UP + 1 if self.graphs is not None else 0):
            self.step("anifast")()

    def peak(self, name: str) -> int:
        """Bytes that a step takes at its highest, with weights, averages and what optimisers keep."""
        system, step = self.systems[name], self.step(name)

        def from_nothing() -> None:
            step()
            for net in system.nets.values():
                net.zero_grad(set_to_none=True)  # what is left of the last call would count as there before

        peak, _ = memory(from_nothing, self.device.type)
        averages = {} if system.ema is None else system.ema.nets
        held = [x for net in (*system.nets.values(), *averages.values()) for x in net.state_dict().values()]
        for optimizer in system.optimizers.values():
            held += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        return peak + sum(x.nbytes for x in held)

    def check(self) -> dict[str, float]:
        """Compare losses and gradients of a step on two pictures of each domain with plain PyTorch in float64.

        The relative error of each may be twice that of `eager`, plus what rounding can do: to a loss e, the sum over
        all layers of sqrt(n) / 2 roundings for sums of n products (benchmarks/bench.py), in bf16 one rounding of what
        it is computed from; and to a gradient where an error decides on which side of 0 a value lies: of each layer's
        values a share of 2 e, which carry as large a share of the squared gradients. A step goes through the encoder
        twice.

        Returns:
            Multiplications and their sums for each pair of pictures, in 10^9, of the convolutions and matrix products
            of each side.

        Raises:
            WrongResult: an error is larger, or NaN.
        """
        found: dict[str, dict[str, Tensor]] = {}
        counts: dict[str, float] = {}
        draws: dict[str, Tensor] = {}
        for name in ("eager", "anifast", "tg2018"):
            system = self._system(name, batch=COMPARED, lr=0.0)
            plain = isinstance(system, Plain)
            with Products() as mode, use_backend("reference" if plain else None), tuned(self.device):
                losses = _step(system, batches(system, COMPARED), 1)
            counts[name] = sum(cost(key)[0] * count for key, count in mode.seen.items()) / 2 / COMPARED / 1e9
            if name != "tg2018":
                found[name] = _results(system, losses)
                draws = system._draws
        config = dataclasses.replace(self.configs["eager"], batch=COMPARED, lr=0.0, precision="fp32")
        exact = Plain(config, self.stage, self.device, total=2 * COMPARED)
        change(exact.nets.values())
        for net in exact.nets.values():
            net.double()
        exact.alpha = exact.alpha.double()
        given = batches(exact, COMPARED)
        exact.begin(given, COMPARED)
        exact._draws = {name: value.double() for name, value in draws.items()}  # others are drawn in float64
        with use_backend("reference"):
            expected = _results(exact, run_step(exact.phases, 1, self.device))
        self._compare(found, expected, exact)
        return {name: counts[name] for name in ("anifast", "eager", "tg2018")}

    def _compare(self, found: Mapping[str, Mapping[str, Tensor]], exact: Mapping[str, Tensor], system: TwinGAN) -> None:
        passes = [system.nets[name] for name in ("E", "G", "E", "D_s", "D_t")]
        layers = [w for net in passes for w in net.parameters() if w.dim() == 4]
        share = sum(math.sqrt(w[0].numel()) / 2 for w in layers) * ROUNDING
        turned = math.sqrt(2 * share * len(layers))
        precision = self.configs["anifast"].precision
        rounding = share if precision == "fp32" else max(share, torch.finfo(torch.bfloat16).eps)
        for name, value in exact.items():
            floor = turned if name.startswith("gradient") else rounding
            allowed = 2 * relative(found["eager"][name], value) + floor
            error = relative(found["anifast"][name], value)
            if not error <= allowed:
                raise WrongResult(
                    f"phase {self.stage}, {precision}: {name}: relative error {error:.3g}, allowed {allowed:.3g}"
                )


def _step(system: TwinGAN, batch: tuple[Batch, ...], index: int, graphs: Graphs | None = None) -> dict[str, Tensor]:
    system.begin(batch, system.batch_size)  # half way, if layers fade in
    return run_step(system.phases, index, system.device, system.config.precision, graphs=graphs)


def _results(system: TwinGAN, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses, and the gradient of each network, all of it in one tensor."""
    found = dict(losses)
    for name, net in system.nets.items():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        found[f"gradient of {name}"] = torch.cat([gradient.flatten() for gradient in gradients])
    return found


def steps(
    config: Config,
    stage: str,
    device: torch.device,
    seconds: float,
    rates: Rates,
    graphs: bool = False,
    aims: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The row of a phase.

    Args:
        config: of ours; its batch is the step's.
        stage: the phase.
        device: to run on.
        seconds: for the row.
        rates: of the device.
        graphs: whether ours is recorded as CUDA graphs.
        aims: see `AIMS`.

    Raises:
        AnifastError: CUDA graphs are asked for without a GPU.
        WrongResult: two sides differ.
    """
    sides, clock = Sides(config, stage, device, graphs), clock_for(device.type)
    counts = sides.check()
    peak = {name: sides.peak(name) for name in sides.names}
    with use_backend("reference"), Products() as mode:
        sides.step("anifast")()
    alone = seconds_of(mode.seen, device, clock, seconds / 4)
    sides.record()
    times = interleave({name: sides.step(name) for name in sides.names}, clock, seconds=seconds, rounds=(7, 51))
    row: dict[str, Any] = {"work": f"step of phase {stage}", "size": sides.side, "precision": config.precision}
    row |= {"images": sides.batch, "ms": milliseconds(times), "convolutions_ms": round(alone * 1e3, 3)}
    row |= {"roofline_ms": round(roofline(mode.seen, rates) * 1e3, 3), "peak": peak}
    row["gmac"] = {name: round(count, 3) for name, count in counts.items()}
    if stage in (aims or {}):
        row["aim"] = (aims or {})[stage]
    each = ", ".join(f"{name} {count:.4g}" for name, count in row["gmac"].items())
    print(f"{_told(row, BOUND, steps=True)}  GMAC a pair: {each}", flush=True)
    return row


class Translation:
    """A model, and the same networks plainly.

    Args:
        config: of the run that the model is said to come from.
        size: of its phase.
        device: to run on.
    """

    def __init__(self, config: Config, size: int, device: torch.device) -> None:
        self.config, self.size, self.device = config, size, device
        torch.manual_seed(config.seed)
        nets = build(config, str(size))
        change(nets.values())
        weights = {name: net.state_dict() for name, net in nets.items()}
        state = {**checkpoints.header(config), "stage": str(size), "alpha": 1.0, "batch": config.batch_of(size)}
        self.model = inference.load({**state, "nets": weights}, device, precision=config.precision)
        plain = dataclasses.replace(config, stacked=False, split_up=False)
        self.plain = {"E": Encoder(plain, size, False), "G": Generator(plain, size, False)}
        for name, net in self.plain.items():
            net.load_state_dict(weights[name])
            net.to(device).eval().requires_grad_(False)

    def images(self, count: int) -> Tensor:
        """Pictures of the source, always the same."""
        source = torch.Generator().manual_seed(3)
        return (torch.rand(count, 3, self.size, self.size, generator=source) * 2 - 1).to(self.device)

    def call(self, name: str, count: int) -> Call:
        """A call that translates so many pictures to the target."""
        images = self.images(count)

        def rival() -> Tensor:
            with use_backend("reference"), tuned(self.device):
                return self.plainly(images)

        return (lambda: self.model.translate(images, "B")) if name == "anifast" else rival

    @torch.no_grad()
    def plainly(self, images: Tensor, nets: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Pictures of the target, in [-1, 1]."""
        nets = nets or self.plain
        with autocast(self.device, "fp32" if images.dtype == torch.float64 else self.config.precision):
            latent = nets["E"]((images + 1) / 2, (0,))
            painted, _ = nets["G"](latent.z, latent.skips, (1,))
        found: Tensor = painted.clamp(0, 1) * 2 - 1
        return found

    def check(self) -> None:
        """Compare two translated pictures with those of the networks in float64.

        The relative error may be twice that of plain PyTorch in the precision that is measured, plus what roundings
        explain: a sum of n products errs by about sqrt(n) / 2 of them (benchmarks/bench.py), and those of all layers
        may add up.

        Raises:
            WrongResult: the error is larger, or NaN.
        """
        layers = [w for net in self.plain.values() for w in net.parameters() if w.dim() == 4]
        floor = sum(math.sqrt(w[0].numel()) / 2 for w in layers) * ROUNDING
        doubles = {name: copy.deepcopy(net).double() for name, net in self.plain.items()}
        with use_backend("reference"):
            exact = self.plainly(self.images(2).double(), doubles)
        allowed = 2 * relative(self.call("eager", 2)(), exact) + floor
        error = relative(self.call("anifast", 2)(), exact)
        if not error <= allowed:
            raise WrongResult(
                f"translation, {self.size} px, {self.config.precision}: relative error {error:.3g}, allowed "
                f"{allowed:.3g}"
            )


def translations(
    config: Config, size: int, device: torch.device, seconds: float, rates: Rates, counts: Iterable[int] = TRANSLATED
) -> list[dict[str, Any]]:
    """Rows of translating pictures of one size, a row for each number of them at once.

    Raises:
        WrongResult: two sides differ.
    """
    sides, clock = Translation(config, size, device), clock_for(device.type)
    sides.check()
    rows = []
    for count in counts:
        calls = {name: sides.call(name, count) for name in ("anifast", "eager")}
        with use_backend("reference"), Products() as mode:
            calls["anifast"]()
        alone = seconds_of(mode.seen, device, clock, seconds / 4)
        times = interleave(calls, clock, seconds=seconds, rounds=(7, 201))
        weights = sum(x.nbytes for net in sides.plain.values() for x in net.state_dict().values())
        row = {"work": "translate to target", "size": size, "precision": config.precision, "images": count}
        row |= {"ms": milliseconds(times), "convolutions_ms": round(alone * 1e3, 3)}
        row |= {"roofline_ms": round(roofline(mode.seen, rates) * 1e3, 3)}
        row["peak"] = {name: memory(call, device.type)[0] + weights for name, call in calls.items()}
        rows.append(row)
        print(_told(row, BOUND), flush=True)
    return rows


def make_gallery(path: Path, rows: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Random embeddings of length 1, float16 [rows, dimensions], in a new file that is memory-mapped."""
    source = torch.Generator().manual_seed(4)
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, dimensions))
    for first in range(0, rows, 8192):
        part = torch.randn(min(8192, rows - first), dimensions, generator=source)
        made[first : first + len(part)] = torch.nn.functional.normalize(part).half().numpy()
    made.flush()
    del made
    found: np.ndarray = np.load(path, mmap_mode="c")  # torch warns of memory that it must not write
    return found


def searches(
    rows: int,
    device: torch.device,
    seconds: float,
    bandwidth: float,
    counts: Iterable[int] = QUERIES,
    dimensions: int = DIMENSIONS,
) -> list[dict[str, Any]]:
    """Rows of finding the nearest in a gallery of so many rows on disk, a row for each number of queries at once.

    Args:
        rows: of the gallery.
        device: of the queries, to which the gallery goes chunk by chunk.
        seconds: for each row.
        bandwidth: bytes a second at which the gallery could be read.
        counts: of queries at once.
        dimensions: numbers of an embedding.

    Raises:
        WrongResult: what is found is not the nearest.
    """
    found, clock = [], clock_for(device.type)
    nearest = min(NEAREST, rows)
    with tempfile.TemporaryDirectory(prefix="bench-twingan-") as folder:
        held = make_gallery(Path(folder) / "gallery.npy", rows, dimensions)
        for count in counts:
            queries = queries_of(count, dimensions).to(device)
            calls: dict[str, Call] = {
                name: partial(search, queries, held, nearest)
                for name, search in (("anifast", gallery.topk), ("chunks", chunked_topk), ("whole", plain_topk))
            }
            for call in calls.values():
                _check_search(queries.cpu(), held, call(), nearest)
            times = interleave(calls, clock, seconds=seconds, rounds=(7, 51))
            row: dict[str, Any] = {"work": f"search, {nearest} nearest of {rows:,}", "precision": "fp16"}
            row |= {"images": count, "ms": milliseconds(times)}
            row["convolutions_ms"] = round(held.nbytes / bandwidth * 1e3, 3)
            row["peak"] = {name: memory(call, device.type)[0] for name, call in calls.items()}
            found.append(row)
            print(_told(row, SEARCH_BOUND, steps=True), flush=True)
        del held, calls
    return found


def queries_of(count: int, dimensions: int = DIMENSIONS) -> Tensor:
    """Embeddings that are searched for, always the same."""
    source = torch.Generator().manual_seed(5)
    return torch.nn.functional.normalize(torch.randn(count, dimensions, generator=source))


def plain_topk(queries: Tensor, held: np.ndarray, nearest: int) -> tuple[Tensor, Tensor]:
    """What a few lines of PyTorch do: the whole gallery in float32, all scores, the largest."""
    rows = torch.from_numpy(np.asarray(held)).to(queries.device).float()
    scores, numbers = torch.topk(queries @ rows.T, nearest)
    return scores.cpu(), numbers.cpu()


def chunked_topk(queries: Tensor, held: np.ndarray, nearest: int) -> tuple[Tensor, Tensor]:
    """What a few more lines do: in chunks of the size that ours takes, and the largest of each one's largest."""
    size = gallery.GPU_CHUNK if queries.is_cuda else gallery.CHUNK
    scores, numbers = [], []
    for first in range(0, len(held), size):
        rows = torch.from_numpy(held[first : first + size]).to(queries.device).float()
        found, places = torch.topk(queries @ rows.T, min(nearest, len(rows)))
        scores.append(found)
        numbers.append(places + first)
    best, places = torch.topk(torch.cat(scores, 1), nearest)
    return best.cpu(), torch.cat(numbers, 1).gather(1, places).cpu()


def searching_alone(rows: int, count: int, dimensions: int = DIMENSIONS) -> tuple[int, int] | None:
    """Memory of its own, in bytes, that a new process has before it searches, and at its highest; None: not told here.

    Args:
        rows: of the gallery.
        count: queries at once.
        dimensions: numbers of an embedding.
    """
    if own_memory() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bench-twingan-") as folder:
        path = Path(folder) / "gallery.npy"
        make_gallery(path, rows, dimensions)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(_own_memory_of_search, path, count).result()


def _own_memory_of_search(path: Path, count: int) -> tuple[int, int]:
    held = np.load(path, mmap_mode="c")
    queries = queries_of(count, held.shape[1])
    before = own_memory()
    highest = highest_own_memory(partial(gallery.topk, queries, held, min(NEAREST, len(held))))
    assert before is not None and highest is not None
    return before, highest


def to_device(device: torch.device, clock: Clock, seconds: float, copied: int = 1 << 28) -> float:
    """Bytes a second of a large copy from the host's memory, as searches have it: not pinned."""
    much = torch.empty(copied, dtype=torch.uint8).fill_(1)
    return copied / interleave({"copy": lambda: much.to(device)}, clock, seconds=seconds)["copy"].p25


def _check_search(queries: Tensor, held: np.ndarray, found: tuple[Any, Any], nearest: int) -> None:
    """Hold what was found to the largest scores in float64, in whose order those within an error may be exchanged.

    A score is a sum of n products of vectors of length 1, which errs by sqrt(n) / 2 roundings.

    Raises:
        WrongResult: a score is another, or a row has another one.
    """
    parts = [
        queries.double() @ torch.from_numpy(np.array(held[first : first + 8192])).double().T
        for first in range(0, len(held), 8192)
    ]
    exact = torch.cat(parts, dim=1)
    scores, rows = (torch.as_tensor(x) for x in found)
    allowed = math.sqrt(held.shape[1]) / 2 * ROUNDING
    for what, values in (("score", scores.double()), ("row's score", exact.gather(1, rows.long()))):
        error = float((values - exact.topk(nearest).values).abs().max())
        if not error <= allowed:
            raise WrongResult(f"search: error {error:.3g} of a {what}, allowed {allowed:.3g}")


def _told(row: Mapping[str, Any], bound: str, steps: bool = False) -> str:
    return show(row, RIVALS, "eager", width=30, steps=steps, bound=bound)


def _row(text: str) -> str:
    """What can be measured: a phase, translate-SIZE or search."""
    what, _, size = text.partition("-")
    if text in STAGES or text == "search" or (what == "translate" and size in map(str, SIZES)):
        return text
    raise argparse.ArgumentTypeError(f"{text!r}: there are phases ({', '.join(STAGES[:4])}, ...), translate-64, search")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only",
        type=_row,
        nargs="+",
        metavar="ROW",
        help=f"phases (4, 4to8, ...), translate-SIZE, search; default {' '.join(ROWS['cpu'])}",
    )
    parser.add_argument(
        "--batch",
        type=int,
        help="pictures of each domain in a step; default: on a CPU the author's (8, at 128 px 4, at 256 px 3), on a "
        f"GPU {BATCHES['cuda']}",
    )
    parser.add_argument("--max-channels", type=int, help="most channels of a layer, to try it out; default 256")
    parser.add_argument("--gallery", type=int, default=GALLERY, help=f"rows of a search's gallery; default {GALLERY}")
    parser.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help=f"record our steps up to {GRAPHS_UP_TO} px as CUDA graphs; default: on a GPU",
    )
    add_options(parser, None, 12.0, "twingan")
    chosen = parser.parse_args(arguments)
    device, described = torch.device(chosen.device), begin(chosen.device)
    graphs = device.type == "cuda" if chosen.cuda_graphs is None else chosen.cuda_graphs
    wanted = list(dict.fromkeys(chosen.only or ROWS[device.type]))
    batch = BATCHES[device.type] if chosen.batch is None else chosen.batch
    rows: list[dict[str, Any]] = []
    told = ""
    try:
        if chosen.gallery < 1:
            raise AnifastError(f"--gallery {chosen.gallery}: at least 1")
        clock: Clock = clock_for(chosen.device)
        rates = Rates.measure(device, clock, min(chosen.seconds, 1.0))
        for precision in precisions_of(chosen):
            for what in wanted:
                if what == "search":
                    continue
                values: dict[str, Any] = {"batch": batch, "precision": precision}
                values |= {} if chosen.max_channels is None else {"max_channels": chosen.max_channels}
                side = int(what.rpartition("-")[2]) if "-" in what else of_stage(what)[0]
                config = make(None, {**values, "size": side})
                if "-" in what:
                    rows += translations(config, side, device, chosen.seconds, rates)
                    continue
                aims = AIMS[device.type] if chosen.max_channels is None and chosen.batch is None else {}
                recorded = graphs and side <= GRAPHS_UP_TO
                rows.append(steps(config, what, device, chosen.seconds, rates, recorded, aims))
        if "search" in wanted:
            on_cpu = device.type == "cpu"
            rate = rates.bandwidth if on_cpu else to_device(device, clock, min(chosen.seconds, 1.0))
            rows += searches(chosen.gallery, device, chosen.seconds, rate)
            # a GPU's driver has memory of its own in every process
            alone = searching_alone(chosen.gallery, QUERIES[-1]) if on_cpu else None
            if alone is not None:
                before, highest = (value / 2**20 for value in alone)
                told = MEMORY_NOTE.format(queries=QUERIES[-1], mib=highest, before=before)
                print(told.strip(), flush=True)
    except AnifastError as error:
        print(f"bench_twingan: error: {error}", file=sys.stderr)
        return 1
    if chosen.out:
        narrow = chosen.max_channels
        each = "as many as the author has" if batch == 0 else str(batch)
        fading = " and ".join(what for what in wanted if "to" in what) or "none"
        note = NOTE.format(batch=each, fading=fading, rate=RATE[device.type]) + told
        note = f"{f'At most {narrow} channels. ' if narrow else ''}{note}{f' {GRAPHS_NOTE}' if graphs else ''}"
        write(chosen.out, chosen.device, "twingan", note, RIVALS, None, described, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""GANs N' Roses: translation, R1 and training, against its authors' code and against plain PyTorch.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_gnr [--authors CHECKOUT] [--size 128] [--out DIR]
[--translate 1 8] [--cuda-graphs]`

Measured are `translate`, the R1 pass of one discriminator (its scores, the penalty, and the penalty's gradients of all
parameters) and a training iteration, each by ours as it is, by ours on the backend `reference`, and, given a checkout
of github.com/mchong6/GANsNRoses (the preset main is its branch main), by the authors' networks on the same weights and
inputs (_authors_gnr.py). All take turns in one process. Before anything is timed their results are compared, by their
errors against float64.

The iteration is one from augmented batches on: losses, both optimisers' steps and the averages. It has the perceptual
loss of VGG-16 with random weights, which changes no time; the authors' side calls the same module, ours, on both
pictures. Theirs is always in float32, as their program is. Beside each stands the bound: the library's convolutions of
the same work alone, as plain PyTorch calls them in our order of work.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast import use_backend
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.engine.precision import autocast
from anifast.errors import AnifastError
from anifast.systems.gnr import checkpoints
from anifast.systems.gnr.config import Config, make
from anifast.systems.gnr.inference import Translator
from anifast.systems.gnr.losses import gradient_penalty
from anifast.systems.gnr.training import GNR, Batch

from ..timing import Clock, clock_for, interleave, memory
from . import _authors_gnr as theirs
from . import _checkouts
from ._sides import (
    ROUNDING,
    Call,
    Convolutions,
    WrongResult,
    add_options,
    as_after_training,
    begin,
    milliseconds,
    precisions_of,
    relative,
    seconds_of,
    show,
    tuned,
    write,
)

#: What ours is compared with, in this order, and what tables call it.
RIVALS = {"authors": "the authors' code", "reference": "ours on `reference`"}
#: What stands under the table.
NOTE = (
    "iterations begin with augmented batches and have the perceptual loss of a VGG-16 of random weights, which is our "
    "module on all sides; the authors' code is always in float32; bounds are what the ratios would be if ours were the "
    "library's convolutions alone."
)
#: What stands there too where ours trains with CUDA graphs.
GRAPHS_NOTE = (
    "anifast's training iterations are recorded as CUDA graphs (--cuda-graphs), those beside are not; what a recorded "
    "iteration takes of memory is not measured."
)
#: The presets whose networks and losses are those of a version of the authors' code.
PRESETS = ("main", "rel", "new")
#: device -> side of the pictures, pictures of an iteration, pictures at once of a translation
SIZES = {"cpu": (128, 2, (1, 8)), "cuda": (256, 7, (1, 16, 64))}
TRANSLATE, R1, WITHOUT, WITH, AVERAGE = (
    "translate",
    "R1 pass of one discriminator",
    "training iteration without R1",
    "training iteration with R1",
    "training iteration, average",
)
#: (device, size, precision, preset) -> {(work, pictures): how many times faster than the authors' code it shall be}
AIMS = {
    ("cpu", 128, "fp32", "main"): {(TRANSLATE, 1): 1.5, (TRANSLATE, 8): 1.9, (R1, 2): 4.0, (AVERAGE, 2): 2.0},
    ("cuda", 256, "bf16", "main"): {(TRANSLATE, 16): 4.0, (AVERAGE, 7): 3.0},
}
#: The share of the authors' memory that an iteration of 7 pictures shall take at most on a GPU at 256 px.
MEMORY_AIM = 0.6


class Sides:
    """Ours, on each backend, and the authors' networks, on the same weights and inputs.

    With `config.cuda_graphs` ours trains a system of its own, whose phases are recorded: a step that is not recorded
    would put other tensors where recorded phases look for those of the phase before.

    Args:
        config: of the run.
        device: to run on.
        checkout: of the authors' repository; None: they are not there.

    Raises:
        AnifastError: the checkout cannot be used, or CUDA graphs are asked for without a GPU.
    """

    def __init__(self, config: Config, device: torch.device, checkout: Path | None) -> None:
        self.config, self.device = config, device
        self.graphs = Graphs(device) if config.cuda_graphs else None
        self.system = GNR(config, device)
        as_after_training(self.system.nets.values())
        self.recorded: GNR | None = None
        if self.graphs is not None:
            self.recorded = GNR(config, device)
            as_after_training(self.recorded.nets.values())
        weights = {
            name: {key: x.clone() for key, x in net.state_dict().items()} for name, net in self.system.nets.items()
        }
        state = {**checkpoints.header(config), "nets": weights}
        self.translator = Translator(state, device, precision=config.precision)
        self.authors: theirs.Authors | None = None
        if checkout is not None:
            model = theirs.load_model(checkout)
            self.authors = theirs.Authors(model, config, self.system.nets, self.system.lpips)
        self.names = ["anifast", *([] if self.authors is None else ["authors"]), "reference"]
        source = torch.Generator().manual_seed(1)
        self.batch = Batch(*((torch.rand(4, *self._shape(config.batch), generator=source) * 2 - 1).to(device)))

    def _shape(self, count: int) -> tuple[int, ...]:
        return count, 3, self.config.size, self.config.size

    def _by(self, name: str, ours: Call, authors: Call) -> Call:
        """The call of one side."""
        if name == "anifast":
            return ours

        def rival() -> Any:
            with tuned(self.device) if name == "authors" else use_backend("reference"):
                return authors() if name == "authors" else ours()

        return rival

    def translate(self, name: str, count: int) -> Call:
        """A call that translates so many pictures to B in styles of their own."""
        source = torch.Generator().manual_seed(2)
        images = (torch.rand(self._shape(count), generator=source) * 2 - 1).to(self.device)
        codes = self.translator.random_styles(count).to(self.device)
        return self._by(
            name,
            lambda: self.translator.translate(images, "B", styles=codes),
            lambda: self.authors.translate(images, codes),  # type: ignore[union-attr]
        )

    def r1(self, name: str) -> Call:
        """A call that gives D_A's penalty on the real batch and its gradients."""
        images = self.batch.aug_a
        return self._by(
            name,
            lambda: _r1(self.system.nets["D_A"], images, gradient_penalty),
            lambda: _r1(self.authors.nets["D_A"], images, theirs.r1),  # type: ignore[union-attr]
        )

    def iteration(self, name: str, regularised: bool) -> Call:
        """A call that trains one step on the batch; with CUDA graphs all phases of ours are recorded before."""
        c, index = self.config, 0 if regularised else 1
        graphs = self.graphs if name == "anifast" else None
        system = self.system if graphs is None or self.recorded is None else self.recorded

        def ours() -> None:
            system.begin(self.batch, index * c.batch)
            run_step(system.phases, index, self.device, c.precision, graphs=graphs)
            if system.ema is not None:
                system.ema.update(c.batch)

        for _ in range(WARM_UP + 1 if graphs is not None else 0):
            ours()
        return self._by(name, ours, lambda: self.authors.step(self.batch, index))  # type: ignore[union-attr]

    def peak(self, name: str, call: Call, training: bool) -> int:
        """Bytes that a call takes at its highest, with the weights in use, and in training optimisers and averages."""
        if not training:
            nets = self._nets(name)
            return memory(call, self.device.type)[0] + sum(x.nbytes for x in nets["G_A2B"].state_dict().values())
        averages = {} if self.system.ema is None else self.system.ema.nets
        side: Any = self.system
        if name == "authors" and self.authors is not None:
            side, averages = self.authors, self.authors.averages
        held = [x for net in (*side.nets.values(), *averages.values()) for x in net.state_dict().values()]

        def from_nothing() -> None:
            call()
            for net in side.nets.values():
                net.zero_grad(set_to_none=True)  # what is left of the last call would count as there before

        peak, _ = memory(from_nothing, self.device.type)
        for optimizer in side.optimizers.values():
            held += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        return peak + sum(x.nbytes for x in held)

    def check(self) -> None:
        """Compare what all networks give for two pictures, and R1 of D_A, with float64.

        Exact are the authors' networks in float64, or without them `reference`. The relative error of each result may
        be twice the largest that the rival has in that network's, plus eight roundings; in bf16 the rival is
        `reference`. R1 also changes where an error decides on which side of 0 a value lies: of each layer's values a
        share of 2 e, which carry as large a share of the squared gradients, e being the sum over layers of sqrt(n) / 2
        roundings for sums of n products (benchmarks/bench.py).

        Raises:
            WrongResult: an error is larger, or NaN.
        """
        exact = {name: copy.deepcopy(net).double() for name, net in self._nets("authors").items()}
        sides = ["anifast", "reference"]
        if self.authors is not None and self.config.precision == "fp32":
            sides.append("authors")
        with use_backend("reference"):
            expected = self._results(exact, torch.float64)
        found = {name: self._by(name, *[partial(self._results, self._nets(name))] * 2)() for name in sides}
        convolutions = [w for w in self.system.nets["D_A"].parameters() if w.dim() == 4]
        share = sum(math.sqrt(w[0].numel()) / 2 for w in convolutions) * ROUNDING
        turned = 2 * share * len(convolutions)
        floors = {"R1 of D_A": turned, "gradients of R1": math.sqrt(turned)}
        for what, values in expected.items():
            errors = {
                name: max(relative(x, y) for x, y in zip(results[what], values, strict=True))
                for name, results in found.items()
            }
            allowed = 2 * errors[sides[-1]] + floors.get(what, 8 * ROUNDING)
            if not errors["anifast"] <= allowed:
                raise WrongResult(
                    f"{what}, {self.config.size} px, {self.config.precision}: relative error "
                    f"{errors['anifast']:.3g}, allowed {allowed:.3g}"
                )

    def _nets(self, name: str) -> Mapping[str, Any]:
        return self.authors.nets if name == "authors" and self.authors is not None else self.system.nets

    def _results(self, nets: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
        """What networks of either side give for the first two pictures of each batch, by the same names."""
        a, b, real_a, real_b = (x[:2].to(dtype) for x in self.batch)
        found: dict[str, list[Tensor]] = {}
        precision = self.config.precision if nets is self.system.nets else "fp32"
        with torch.no_grad(), autocast(self.device, precision):
            for name, x in (("G_A2B", a), ("G_B2A", b)):
                content, code = nets[name].encode(x)
                found[name] = [content, code, nets[name].decode(content, self.translator.random_styles(2).to(code))]
            for name, x in (("D_A", real_a), ("D_B", real_b)):
                found[name] = nets[name](x)
            scores = nets["D_L"](self.translator.random_styles(16).to(a))
            found["D_L"] = [scores] if torch.is_tensor(scores) else scores
        codes = self.translator.random_styles(2)
        if nets is self.system.nets:
            found["translate"] = [self.translator.translate(a, "B", styles=codes)]
        else:
            with torch.no_grad():
                found["translate"] = [nets["G_A2B"].decode(nets["G_A2B"].encode(a)[0], codes.to(a)).clamp(-1, 1)]
        penalty, gradients = _r1(nets["D_A"], real_a, gradient_penalty if nets is self.system.nets else theirs.r1)
        found["R1 of D_A"] = [penalty]
        found["gradients of R1"] = [torch.cat([gradient.flatten() for gradient in gradients])]
        return found


def _r1(net: nn.Module, images: Tensor, penalty: Callable[[Any, Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The penalty of a discriminator on pictures, and its gradients of all parameters."""
    images, parameters = images.clone().requires_grad_(), list(net.requires_grad_(True).parameters())
    loss = penalty(net(images), images)
    return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def convolutions_alone(work: Call, device: torch.device, clock: Clock, seconds: float) -> float:
    """Seconds that the library's convolutions of `work`, which plain PyTorch does, take by themselves."""
    with Convolutions() as mode:
        work()
    return seconds_of(mode.seen, device, clock, seconds)


def measure(
    config: Config,
    device: torch.device,
    seconds: float,
    counts: Iterable[int],
    checkout: Path | None = None,
    aims: Mapping[tuple[str, int], float] | None = None,
) -> list[dict[str, Any]]:
    """Rows of one size and precision.

    Args:
        config: sizes, batch of an iteration, precision.
        device: to run on.
        seconds: for each row.
        counts: pictures at once, of a row of translation each.
        checkout: of the authors' repository; None: without them.
        aims: see `AIMS`.

    Raises:
        AnifastError: the checkout cannot be used.
        WrongResult: two sides differ.
    """
    sides, clock = Sides(config, device, checkout), clock_for(device.type)
    sides.check()
    rows: list[dict[str, Any]] = []

    def add(work: str, images: int, ms: dict[str, list[Any]], convolutions: float, **more: Any) -> None:
        row: dict[str, Any] = {"work": work, "size": config.size, "precision": config.precision, "images": images}
        row |= {"ms": ms, "convolutions_ms": convolutions} | more
        if "authors" in ms and (work, images) in (aims or {}):
            row["aim"] = (aims or {})[work, images]
        rows.append(row)
        print(show(row, RIVALS, "authors", width=29), flush=True)

    def timed(work: str, images: int, make_call: Callable[[str], Call], *, training: bool | None = None) -> None:
        """A row; with the peaks of memory where `training` tells whose."""
        calls = {name: make_call(name) for name in sides.names}
        alone = convolutions_alone(calls["reference"], device, clock, seconds / 4)
        times = interleave(calls, clock, seconds=seconds, rounds=(7, 51))
        more = {}
        if training is not None and not (training and sides.graphs is not None):  # whose memory is never given back
            more["peak"] = {name: sides.peak(name, call, training) for name, call in calls.items()}
        add(work, images, milliseconds(times), round(alone * 1e3, 3), **more)

    for count in counts:
        timed(TRANSLATE, count, partial(sides.translate, count=count), training=False)
    if config.precision == "fp32":  # as in every training
        timed(R1, config.batch, sides.r1)
    if sides.authors is not None:
        sides.authors.begin_training()
    timed(WITHOUT, config.batch, partial(sides.iteration, regularised=False), training=True)
    timed(WITH, config.batch, partial(sides.iteration, regularised=True), training=True)
    without, regularised = rows[-2:]
    every = config.r1_every

    def average(a: float, b: float) -> float:
        return round(((every - 1) * a + b) / every, 3)

    ms = {
        name: [*map(average, values[:3], regularised["ms"][name][:3]), min(values[3], regularised["ms"][name][3])]
        for name, values in without["ms"].items()
    }
    more: dict[str, Any] = {}
    if "peak" in without:
        more["peak"] = {name: max(value, regularised["peak"][name]) for name, value in without["peak"].items()}
        if aims and device.type == "cuda" and "authors" in ms:
            more["peak_aim"] = MEMORY_AIM
    add(
        AVERAGE,
        config.batch,
        ms,
        average(without["convolutions_ms"], regularised["convolutions_ms"]),
        **more,
    )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="main", help="networks and losses; default main")
    parser.add_argument("--size", type=int, help="side of the pictures; default 128 on a CPU, 256 on a GPU")
    parser.add_argument("--batch", type=int, help="pictures of an iteration; default 2 on a CPU, 7 on a GPU")
    parser.add_argument(
        "--translate",
        type=int,
        nargs="+",
        metavar="N",
        help="pictures at once of a translation, a row each; default 1 8 on a CPU, 1 16 64 on a GPU",
    )
    parser.add_argument("--channel-multiplier", type=float, default=1.0, help="factor on all channels; default 1")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="record our training iterations as CUDA graphs; on a GPU only"
    )
    add_options(parser, "github.com/mchong6/GANsNRoses", 40.0, "gnr")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    described = begin(chosen.device)
    size, batch, counts = SIZES[chosen.device]
    size, batch = chosen.size or size, chosen.batch or batch
    counts = counts if chosen.translate is None else tuple(dict.fromkeys(chosen.translate))
    rows: list[dict[str, Any]] = []
    try:
        if min(counts) < 1:
            raise AnifastError(f"--translate {min(counts)}: at least 1")
        authors = None if chosen.authors is None else theirs.describe(chosen.authors)
        for precision in precisions_of(chosen):
            values = {"size": size, "batch": batch, "precision": precision, "lpips_net": "random"}
            values |= {"channel_multiplier": chosen.channel_multiplier, "cuda_graphs": chosen.cuda_graphs}
            config = make(chosen.preset, values)
            aims = AIMS.get((chosen.device, size, precision, chosen.preset), {}) if config.base_channels == 512 else {}
            rows += measure(config, device, chosen.seconds, counts, chosen.authors, aims)
    except AnifastError as error:
        print(f"bench_gnr: error: {error}", file=sys.stderr)
        return 1
    if chosen.out:
        wide = chosen.channel_multiplier
        note = f"Preset `{chosen.preset}`{f', {wide:g} times the channels' if wide != 1 else ''}; {NOTE}"
        if chosen.cuda_graphs:
            note += f" With CUDA graphs: {GRAPHS_NOTE}"
        if authors is not None:
            note += f" The authors' code: networks {authors['version']}, {_checkouts.which(authors)}."
        write(chosen.out, chosen.device, "gnr", note, RIVALS, authors, described, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

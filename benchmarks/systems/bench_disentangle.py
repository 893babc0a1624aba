"""The disentangling network: training iterations against plain PyTorch and against its authors' code.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_disentangle [--authors CHECKOUT] [--preset nist_fast paper]
[--stage 1 2] [--out DIR]`

Measured is a whole iteration of stage 1 and of stage 2, from a batch of uint8 pictures on the device to the optimisers'
steps, by ours, by the same step in plain eager PyTorch on the same weights (_eager_disentangle.py), and, given a
checkout of github.com/stormraiser/adversarial-disentangle, by the authors' own trainers (_authors_disentangle.py). All
take turns in one process. Before anything is timed the losses and gradients of a step are compared, by their errors
against those of the eager step in float64.

On a GPU ours records its phases as CUDA graphs, as it does in training with --cuda-graphs; the others run as they are
written. The authors' code is always in float32 and knows RGBA pictures only, as which it sees digits. Beside each
stands the bound: the library's convolutions and matrix products of the same work alone, as plain PyTorch calls them in
our order of work.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast import use_backend
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.errors import AnifastError
from anifast.systems.disentangle import codes
from anifast.systems.disentangle.augmentation import prepare
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.networks import networks
from anifast.systems.disentangle.training import Batch, Stage1, Stage2

from ..timing import Clock, clock_for, interleave, memory
from . import _authors_disentangle as theirs
from . import _checkouts
from ._eager_disentangle import Draws, Eager
from ._sides import (
    ROUNDING,
    Call,
    Products,
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
RIVALS = {"eager": "plain eager PyTorch", "authors": "the authors' code"}
#: What stands under the table.
NOTE = (
    "Iterations begin with a batch of uint8 pictures; eager PyTorch runs the same step; all sides have the settings "
    "adv_cap and nlu_form of the authors' code; bounds are what the ratios would be if ours were the library's "
    "convolutions and matrix products alone."
)
AUTHORS_NOTE = "The authors' code is always in float32 and sees digits as RGBA pictures, as it does all"
#: What stands there too where ours trains with CUDA graphs.
GRAPHS_NOTE = "anifast's iterations are recorded as CUDA graphs, their peaks of memory are those before recording."
#: The presets whose step _eager_disentangle.py has, and the stages.
PRESETS = ("nist_fast", "nist", "small", "paper")
STAGES = (1, 2)
#: What is measured where nothing is chosen.
CHOSEN = {"cpu": ("nist_fast", "nist", "small"), "cuda": ("nist_fast", "nist", "paper")}
#: Artists of a data set: MNIST's writers, and those of the paper.
CLASSES = {"digits": 539, "artists": 1139}
#: (device, preset, precision) -> {(stage, pictures): how many times faster than eager PyTorch it shall be}
AIMS = {
    ("cpu", "nist_fast", "fp32"): {(1, 64): 1.5},
    ("cuda", "nist", "fp32"): {(1, 8): 8.0},
    ("cuda", "paper", "bf16"): {(1, 8): 2.5, (2, 8): 2.5},
}


@dataclasses.dataclass(frozen=True)
class Artists:
    """What training asks of a data set: names, pictures of each, and the labels of all (none: there are no sheets)."""

    classes: list[str]
    counts: Tensor
    labels: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class Sides:
    """A stage by ours, by eager PyTorch, and by the authors, on the same weights and batch.

    Args:
        config: of the run, in the precision of ours and of eager PyTorch.
        stage: 1 or 2.
        device: to run on.
        checkout: of the authors' repository; None: they are not there.

    Attributes:
        names: of the sides, ours first.
        system, eager, authors: the sides; authors may be None.

    Raises:
        AnifastError: the checkout cannot be used, the batch is larger than the number of artists, or CUDA graphs are
            asked for without a GPU.
    """

    def __init__(self, config: Config, stage: int, device: torch.device, checkout: Path | None = None) -> None:
        c = self.config = dataclasses.replace(config, **theirs.LOSSES)
        self.stage, self.device = stage, device
        self._recorder = Graphs(device) if config.cuda_graphs else None
        self._graphs: Graphs | None = None  # once there is something to record
        self._steps = 0
        count = self.count = c.batch if stage == 1 else c.stage2_batch
        classes = CLASSES[c.dataset]
        if count > classes:
            raise AnifastError(f"setting batch: {count} pictures are more than {classes} artists, one for each")
        source = torch.Generator().manual_seed(1)
        artists: Any = Artists([str(i) for i in range(classes)], torch.randint(50, 200, (classes,), generator=source))
        mean, std = torch.empty(0), torch.empty(0)
        self.statistics: dict[str, Tensor] = {}
        self.system: Stage1 | Stage2
        if stage == 1:
            self.system = Stage1(c, artists, device)
        else:
            mean = torch.randn(1024, c.content_size, generator=source)
            std = torch.rand(1024, c.content_size, generator=source) * 0.4 + 0.1
            self.statistics = codes.statistics(mean, std)
            self.system = Stage2(c, artists, device, statistics=self.statistics)
        _change(self.system.nets)
        self.eager, self._exact = self._eager_ones(c, self.system.nets, c.precision)
        images = torch.randint(0, 256, (count, c.channels, c.size, c.size), dtype=torch.uint8, generator=source)
        if c.channels == 4:
            images[:, 3] = 255
            images[: count // 2, 3, : c.size // 8] = 0  # faces near the upper border
        # All of different artists: ours leaves pictures out of C1's losses whose next one is of the same.
        labels = torch.randperm(classes, generator=source)[:count]
        parts = (images, torch.empty(0), labels, mean[:count], std[:count])
        self.batch = Batch(*(x.to(device) for x in parts))
        self.authors: theirs.Authors | None = None
        if checkout is not None:
            self._add_authors(theirs.load(checkout))
        self.names = ["anifast", "eager", *([] if self.authors is None else ["authors"])]

    def _eager_ones(self, config: Config, nets: Mapping[str, nn.Module], precision: str) -> tuple[Eager, Eager]:
        """The eager step on the weights of networks of ours, as it is timed and in float64."""
        weights = {name: net.state_dict() for name, net in nets.items()}
        given = (config, self.system.frequency, weights, self.device, self.statistics)
        return Eager(*given, precision=precision), Eager(*given, torch.float64)

    def _add_authors(self, modules: Mapping[str, Any]) -> None:
        """Their trainer, and for its check the eager step on pictures and networks as theirs have them."""
        c, nets, images = self.config, self.system.nets, self.batch.images
        if c.channels != 4:
            c = dataclasses.replace(c, dataset="artists", channels=4)
            nets = {
                name: net.to(self.device)
                for name, net in networks(c, self.system.frequency, f"stage{self.stage}").items()
            }
            _change(nets)
            images = torch.cat([images.expand(-1, 3, -1, -1), torch.full_like(images[:, :1], 255)], 1)
        weights = {name: net.state_dict() for name, net in nets.items()}
        self.authors = theirs.Authors(
            modules, c, self.system.frequency, weights, self.device, self.count, self.statistics
        )
        self._rgba, self._shown = images, prepare(images)
        self._labels = self.batch.labels.cpu()
        self._rgba_eager = self._eager_ones(c, nets, "fp32")

    def step(self, name: str) -> Call:
        """A call that trains one step on the batch and gives its losses, of all but the authors' side."""
        if name == "anifast":
            return self._ours
        trainer, b = self.authors, self.batch

        def rival() -> Any:
            with tuned(self.device):
                if name == "eager" or trainer is None:
                    return self._run(self.eager, b.images)
                return trainer.step(self._shown, self._labels, *((b.mean, b.std) if self.stage == 2 else ()))

        return rival

    def _ours(self) -> dict[str, Tensor]:
        self.system.begin(self.batch, self._steps * self.count)
        self._steps += 1
        return run_step(self.system.phases, self._steps, self.device, self.config.precision, graphs=self._graphs)

    def _run(self, eager: Eager, images: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        b = self.batch
        if self.stage == 1:
            return eager.stage1(images, b.labels, draws)
        return eager.stage2(images, b.labels, b.mean, b.std, draws)

    def record(self) -> None:
        """Let ours repeat recorded phases from now on, if it does at all."""
        self._graphs = self._recorder
        for _ in range(WARM_UP + 1 if self._graphs is not None else 0):
            self._ours()

    def peak(self, name: str) -> int:
        """Bytes that a step takes at its highest, with weights and what optimisers keep."""
        side: Any = {"anifast": self.system, "eager": self.eager, "authors": self.authors}[name]
        step = self.step(name)

        def from_nothing() -> None:
            step()
            for net in side.nets.values():
                net.zero_grad(set_to_none=True)  # what is left of the last call would count as there before

        peak, _ = memory(from_nothing, self.device.type)
        held = [x for net in side.nets.values() for x in net.state_dict().values()]
        for optimizer in side.optimizers.values():
            held += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        return peak + sum(x.nbytes for x in held)

    def check(self) -> None:
        """Compare the losses and gradients of a step with those of the eager step in float64, for the same draws.

        The relative error of each may be twice that of the eager step in the precision that is timed, plus what
        rounding can do: eight roundings to a loss (in bf16 one, of what it is computed from), and to a gradient where
        an error decides on which side of 0 a value lies: of each layer's values a share of 2 e, which carry as large a
        share of the squared gradients, e being the sum over layers of sqrt(n) / 2 roundings for sums of n products
        (benchmarks/bench.py). The authors' code, always in float32, is held to the eager step on the same RGBA pictures
        in the same way. To be called once, before any other step.

        Raises:
            WrongResult: an error is larger, or NaN.
        """
        self.system.begin(self.batch, 0)
        draws: Draws = self.system.draw(self.system.inputs()[-1])._asdict()
        self._steps = 0
        found = _results(self.system.nets, self._ours())
        self._compare("anifast", found, (self.eager, self._exact), self.batch.images, draws)
        if self.authors is not None:
            draws, found = self._by_authors(self.authors)
            self._compare("authors", found, self._rgba_eager, self._rgba, draws)
            del self._rgba_eager
        del self._exact  # with its optimisers several times the weights in float64

    def _by_authors(self, authors: theirs.Authors) -> tuple[Draws, dict[str, Tensor]]:
        """What the authors' step draws, and its losses and gradients by our names."""
        eager = self._rgba_eager[0]
        draws = dict(eager.draw(self.count))
        noises = [draws[name].cpu() for name in ("content", "style")]
        original = authors.utils.gaussian_noise
        authors.utils.gaussian_noise = lambda rows, size: noises.pop(0)
        try:
            torch.manual_seed(2)
            self.step("authors")()
        finally:
            authors.utils.gaussian_noise = original
        torch.manual_seed(2)
        if self.stage == 2:
            authors.utils.generate_aug_params(self.count)  # which they draw before the levels, and do not use
            logged = {"d_real": "dis-real", "d_fake": "dis-fake", "c2_real": "cla-real", "c2_fake": "cla-fake"}
            logged |= {"g_d": "gen-dis", "g_c2": "gen-cla", "content": "con", "kl_style": "sty"}
        else:
            draws["content_level"] = torch.rand(self.count).to(self.device)
            logged = {"rec": "rec", "rec_other": "rec-shift", "c1": "cla", "kl_content": "con", "kl_style": "sty"}
        draws["style_level"] = torch.rand(self.count).to(self.device)
        losses = {name: torch.tensor(authors.logs[log][-1][1]) for name, log in logged.items()}
        return draws, _results(authors.nets, losses, eager.nets)

    def _compare(
        self, who: str, found: Mapping[str, Tensor], eager: tuple[Eager, Eager], images: Tensor, draws: Draws
    ) -> None:
        """Hold results to the eager step of (the timed precision, float64)."""
        with tuned(self.device):
            rival, exact = (_results(one.nets, self._run(one, images, draws)) for one in eager)
        layers = [w for net in eager[0].nets.values() for w in net.parameters() if w.dim() in (2, 4)]
        share = sum(math.sqrt(w[0].numel()) / 2 for w in layers) * ROUNDING
        turned = math.sqrt(2 * share * len(layers))
        rounding = 8 * ROUNDING if eager[0].precision == "fp32" else torch.finfo(torch.bfloat16).eps
        for name, value in exact.items():
            floor = turned if name.startswith("gradient") else rounding
            allowed = 2 * relative(rival[name], value) + floor
            error = relative(found[name], value)
            if not error <= allowed:
                what = f"{who}, stage {self.stage}, {self.config.size} px, {self.config.precision}"
                raise WrongResult(f"{what}: {name}: relative error {error:.3g}, allowed {allowed:.3g}")


def _change(nets: Mapping[str, nn.Module]) -> None:
    """Move biases and styles away from where new networks have them, always the same way."""
    as_after_training(nets.values())
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in nets["S"].parameters():
            value.add_(torch.randn(value.shape, generator=source).to(value.device) * 0.5)


def _results(
    nets: Mapping[str, nn.Module], losses: Mapping[str, Tensor], ours: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """Losses, and the gradient of each network that a step trains, all of it in one tensor.

    With the networks of `ours`, those of `nets` are the authors', which have more parameters.
    """
    found = dict(losses)
    for name, net in nets.items():
        parameters = dict(net.named_parameters())
        if any(p.grad is not None for p in parameters.values()):
            keys = parameters if ours is None else [theirs.key(name, key) for key, _ in ours[name].named_parameters()]
            parts = [parameters[key] for key in keys]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts]
            found[f"gradient of {name}"] = torch.cat([gradient.flatten() for gradient in gradients])
    return found


def products_alone(work: Call, device: torch.device, clock: Clock, seconds: float) -> float:
    """Seconds that the library's convolutions and matrix products of `work` take by themselves."""
    with use_backend("reference"), Products() as mode:
        work()
    return seconds_of(mode.seen, device, clock, seconds)


def measure(
    preset: str,
    config: Config,
    stage: int,
    device: torch.device,
    seconds: float,
    checkout: Path | None = None,
    aims: Mapping[tuple[int, int], float] | None = None,
) -> dict[str, Any]:
    """The row of a stage.

    Args:
        preset: its name, for the row.
        config: sizes, batch, precision.
        stage: 1 or 2.
        device: to run on.
        seconds: for the row.
        checkout: of the authors' repository; None: without them.
        aims: see `AIMS`.

    Raises:
        AnifastError: the checkout cannot be used, or a setting.
        WrongResult: two sides differ.
    """
    sides, clock = Sides(config, stage, device, checkout), clock_for(device.type)
    sides.check()
    peak = {name: sides.peak(name) for name in sides.names}
    alone = products_alone(sides.step("anifast"), device, clock, seconds / 4)
    sides.record()
    times = interleave({name: sides.step(name) for name in sides.names}, clock, seconds=seconds, rounds=(7, 201))
    row: dict[str, Any] = {"work": f"stage {stage} of {preset}", "size": config.size, "precision": config.precision}
    row |= {"images": sides.count, "ms": milliseconds(times), "convolutions_ms": round(alone * 1e3, 3), "peak": peak}
    if (stage, sides.count) in (aims or {}):
        row["aim"] = (aims or {})[stage, sides.count]
    alone_title = "convolutions and products alone"
    print(show(row, RIVALS, "eager", width=20, steps=True, bound=alone_title), flush=True)
    return row


def _config(preset: str, multiplier: float, values: Mapping[str, Any]) -> Config:
    """The preset with these values and so many times the channels."""
    config = make(preset, values)
    if multiplier == 1:
        return config
    features = ",".join(str(max(1, round(width * multiplier))) for width in config.widths)
    return dataclasses.replace(config, features=features, fc=max(1, round(config.fc * multiplier)))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        help=f"default {' '.join(CHOSEN['cpu'])} on a CPU, {' '.join(CHOSEN['cuda'])} on a GPU",
    )
    parser.add_argument("--stage", nargs="+", type=int, choices=STAGES, default=STAGES, help="default both")
    parser.add_argument("--batch", type=int, help="pictures of an iteration; default those of the preset")
    parser.add_argument("--channel-multiplier", type=float, default=1.0, help="factor on all channels; default 1")
    parser.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="record our iterations as CUDA graphs; default: on a GPU",
    )
    add_options(parser, "github.com/stormraiser/adversarial-disentangle", 30.0, "disentangle")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    described = begin(chosen.device)
    graphs = device.type == "cuda" if chosen.cuda_graphs is None else chosen.cuda_graphs
    values: dict[str, Any] = {"cuda_graphs": graphs}
    if chosen.batch is not None:
        values |= {"batch": chosen.batch, "stage2_batch": chosen.batch}
    rows: list[dict[str, Any]] = []
    try:
        authors = None if chosen.authors is None else theirs.describe(chosen.authors)
        for preset in chosen.preset or CHOSEN[chosen.device]:
            for precision in precisions_of(chosen):
                config = _config(preset, chosen.channel_multiplier, {**values, "precision": precision})
                aims = AIMS.get((chosen.device, preset, precision), {}) if chosen.channel_multiplier == 1 else {}
                for stage in chosen.stage:
                    rows.append(measure(preset, config, stage, device, chosen.seconds, chosen.authors, aims))
    except AnifastError as error:
        print(f"bench_disentangle: error: {error}", file=sys.stderr)
        return 1
    if chosen.out:
        wide = chosen.channel_multiplier
        note = f"{f'{wide:g} times the channels. ' if wide != 1 else ''}{NOTE}"
        if graphs:
            note += f" {GRAPHS_NOTE}"
        if authors is not None:
            note += f" {AUTHORS_NOTE} ({_checkouts.which(authors)})."
        write(chosen.out, chosen.device, "disentangle", note, RIVALS, authors, described, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

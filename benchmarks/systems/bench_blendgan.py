"""BlendGAN: painting, its encoders, folder transfer and training, against its authors' code and against plain PyTorch.

`OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_blendgan [--authors CHECKOUT] [--work pairs style] [--quick]
[--size 256 1024] [--out DIR]`

Measured are the generator's forward pass, pairs of a natural and a stylized picture, the style encoder in its full and
its folded form, the encoder of photos (pSp), the transfer of all styles of a folder to all faces of another, and a
training iteration, each by ours as it is, by ours on the backend `reference`, and, given a checkout of
github.com/onion-liu/BlendGAN, by the authors' networks on the same weights and inputs (_authors_blendgan.py), but for
training, which they did not publish. All take turns in one process. Before anything is timed their results are
compared, by their errors against float64.

The transfer is one from pictures in memory to pictures in memory. Ours encodes every face and every style once and
paints in batches; the authors' program encodes both anew for each picture, one at a time, so that it is timed on some
pairs and the time multiplied. An iteration is one from a batch of pictures and style codes on: losses, steps of the
optimisers and the average. Beside each stand the bound, the library's convolutions and matrix products of the same work
alone as plain PyTorch calls them in our order of work, and the roofline, which is for each of these the larger of its
operations at the rate of a large matrix product and its bytes at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anifast import use_backend
from anifast.engine.loop import run_step
from anifast.engine.precision import autocast
from anifast.errors import AnifastError
from anifast.ops.gram import entries
from anifast.systems.blendgan import checkpoints
from anifast.systems.blendgan.config import INDEX, SIZES, TRUNCATION, Config, make
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import StyleEncoder, build_generator
from anifast.systems.blendgan.psp import PSPEncoder
from anifast.systems.blendgan.training import Batch, Gan

from ..timing import Clock, clock_for, interleave, memory
from . import _authors_blendgan as theirs
from . import _checkouts
from ._sides import (
    ROUNDING,
    Call,
    Products,
    Rates,
    WrongResult,
    add_options,
    as_after_training,
    begin,
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
RIVALS = {"authors": "the authors' code", "reference": "ours on `reference`"}
#: What stands under the table.
NOTE = (
    "Bounds are what the ratios would be if ours were the library's convolutions and matrix products alone, as plain "
    "PyTorch calls them; the roofline counts their operations, of which Winograd's algorithm on a CPU has fewer. "
    "Folder transfer is from pictures to pictures in memory, with all three networks held. "
    "Training iterations begin with a batch of pictures and style codes; the authors published no training."
)
AUTHORS_NOTE = (
    "The authors' code is always in float32; in folder transfer it encodes face and style anew for each picture, and "
    "its time is that of {pairs} of them, multiplied"
)
#: What `convolutions_ms` is here.
BOUND = "convolutions and products alone"
#: What can be chosen to be measured.
WORKS = ("generator", "pairs", "style", "psp", "transfer", "training")
FORWARD, PAIRS, PSP = "generator, stylized", "pair, natural and stylized", "pSp"
FULL, FOLDED = "style encoder, full", "style encoder, folded"
PLAIN, PATH, BOTH, AVERAGE = (
    "training iteration",
    "training iteration with path length",
    "training iteration with path length and R1",
    "training iteration, average",
)


def transfer_of(faces: int, styles: int) -> str:
    """What the row of a transfer is called."""
    return f"folder transfer, {faces} faces x {styles} styles"


@dataclasses.dataclass(frozen=True)
class Batches:
    """How many pictures rows have at once.

    Attributes:
        forward, pairs, style, psp: a row for each number.
        training: side -> pictures of an iteration; other sides have those of the largest.
        faces, styles: of a transfer.
        sample: pairs of a transfer that the authors' program is timed on.
    """

    forward: tuple[int, ...] = (1, 4)
    pairs: tuple[int, ...] = (1, 4)
    style: tuple[int, ...] = (1, 64)
    psp: tuple[int, ...] = (1, 4)
    training: Mapping[int, int] = dataclasses.field(default_factory=lambda: {256: 2, 1024: 1})
    faces: int = 8
    styles: int = 30
    sample: int = 4


#: By device, and for trying out.
BATCHES = {
    "cpu": Batches(),
    "cuda": Batches((1, 16), (1, 16), (1, 64), (1, 16), {256: 8, 1024: 4}, sample=30),
    "quick": Batches((1,), (1, 2), (1,), (1,), {64: 2}, 2, 2, 1),
}
_ENCODERS = {(work, n): 1.3 for work in (FULL, FOLDED) for n in (1, 64)}
#: (device, precision) -> {(work, side, pictures): how many times faster than the authors' code it shall be, and the
#: average iteration than `reference`}
AIMS: dict[tuple[str, str], dict[tuple[str, int, int], float]] = {
    ("cpu", "fp32"): {
        (PAIRS, 256, 1): 1.5,
        (PAIRS, 256, 4): 2.0,
        (transfer_of(8, 30), 256, 240): 5.0,
        **{(work, 256, n): aim for (work, n), aim in _ENCODERS.items()},
    },
    ("cuda", "bf16"): {(FORWARD, 1024, 16): 4.0, (AVERAGE, 256, 8): 3.0},
}
#: The same of the roofline, in times of it that ours may take at most.
ROOFLINE_AIMS: dict[tuple[str, str], dict[tuple[str, int, int], float]] = {("cuda", "bf16"): {(FORWARD, 1024, 16): 2.5}}


class Sides:
    """Ours, on each backend, and the authors' networks, on the same weights and inputs.

    Args:
        config: of the run; `folded` does not matter.
        device: to run on.
        works: of `WORKS`; networks that none needs are not built.
        checkout: of the authors' repository; None: they are not there.

    Raises:
        AnifastError: the checkout cannot be used.
    """

    def __init__(self, config: Config, device: torch.device, works: Iterable[str], checkout: Path | None) -> None:
        c, works = config, set(works)
        self.config, self.device = config, device
        modules = None if checkout is None else theirs.load(checkout)
        torch.manual_seed(0)
        nets: dict[str, nn.Module] = {"G": build_generator(c)}
        if works & {"style", "transfer"}:
            nets["E_style"] = StyleEncoder(c.backbone, c.style_side, c.style_dim, c.style_mlp, folded=False)
        if works & {"psp", "transfer"}:
            nets["psp"] = PSPEncoder(c.n_latent, c.psp_side)
        as_after_training(nets.values())
        with torch.no_grad():
            for name, value in (pair for net in nets.values() for pair in net.named_parameters()):
                # else what the encoders see vanishes from layer to layer beside the biases
                if value.dim() == 4 and name.startswith(("embedder.", "styles.")):
                    nn.init.kaiming_normal_(value)
            nets["G"].get_parameter("add_weight").uniform_()  # a new one has no styles
            for name, value in nets["G"].named_parameters():
                if name.endswith(".noise.weight"):
                    value.fill_(0.1)
            for net in nets.values():
                net.to(device).eval().requires_grad_(False)
        self.nets = nets
        self.weights = {name: net.state_dict() for name, net in nets.items()}
        state = {**checkpoints.header(c), "nets": self.weights}
        self.model = Model(state, device, precision=c.precision)
        self.mean = self.model.mean_latent()
        self.system: Gan | None = None
        self.authors: theirs.Authors | None = None
        if modules is not None:
            self.authors = theirs.Authors(modules, c, self.weights, device)
        self.names = ["anifast", *([] if self.authors is None else ["authors"]), "reference"]

    def _random(self, seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _pictures(self, seed: int, count: int, side: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        return (torch.rand(count, 3, side, side, generator=source) * 2 - 1).to(self.device)

    def _by(self, name: str, ours: Call, authors: Call) -> Call:
        """The call of one side."""
        if name == "anifast":
            return ours

        def rival() -> Any:
            with tuned(self.device) if name == "authors" else use_backend("reference"):
                return authors() if name == "authors" else ours()

        return rival

    @property
    def _theirs(self) -> theirs.Authors:
        assert self.authors is not None
        return self.authors

    def forward(self, name: str, count: int) -> Call:
        """A call that paints so many random faces, each in a style of its own."""
        z, style = self._random(1, count, self.config.style_dim), self._random(2, count, self.config.style_dim)

        def ours() -> Tensor:
            return self.model.paint(self.model.faces(z, 1.0), style, INDEX, batch=count)

        return self._by(name, ours, lambda: self._theirs.generate(z, style, INDEX))

    def pairs(self, name: str, count: int) -> Call:
        """A call that paints so many random faces as they are and in one style, [2 count, 3, size, size]."""
        z, style = self._random(1, count, self.config.style_dim), self._random(2, 1, self.config.style_dim)
        index = torch.tensor([self.config.n_latent] * count + [INDEX] * count)

        def ours() -> Tensor:
            w = self.model.faces(z, TRUNCATION)
            return self.model.paint(torch.cat([w, w]), style, index, batch=2 * count)

        return self._by(name, ours, lambda: self._theirs.pair(z, style, INDEX, TRUNCATION, self.mean))

    def encode(self, name: str, count: int, folded: bool) -> Call:
        """A call that encodes so many style pictures."""
        images, full = self._pictures(3, count, self.config.style_side), self.nets["E_style"]

        def ours() -> Tensor:
            if folded:
                return self.model.encode_styles(images, count)
            with torch.no_grad(), autocast(self.device, self.config.precision):
                codes: Tensor = full(images)
            return codes

        return self._by(name, ours, lambda: self._theirs.encode_styles(images))

    def invert(self, name: str, count: int) -> Call:
        """A call that inverts so many photos."""
        images = self._pictures(4, count, self.config.psp_side)
        return self._by(name, lambda: self.model.invert(images, count), lambda: self._theirs.invert(images))

    def transfer(self, name: str, faces: int, styles: int, sample: int | None = None) -> Call:
        """A call that gives pictures of all faces in all styles beside both, uint8, or of the first `sample` pairs.

        They are lists of [size, 3 size, 3] from the authors, whose colours begin with blue, and else
        [faces * styles, 3, size, 3 size].
        """
        size = self.config.size
        source = np.random.default_rng(5)
        drawn = source.integers(0, 256, (faces + styles, size, size, 3), dtype=np.uint8)
        photos, art = list(drawn[:faces]), list(drawn[faces:])
        if sample is not None:
            photos, art = photos[: math.ceil(sample / styles)], art[: min(sample, styles)]
        red_first = [torch.from_numpy(np.stack(x)[..., ::-1].copy()).permute(0, 3, 1, 2) for x in (photos, art)]

        def ours() -> Tensor:
            face, style = (x.to(self.device).float() / 127.5 - 1 for x in red_first)
            w, z = self.model.invert(face), self.model.encode_styles(style)
            which = torch.cartesian_prod(torch.arange(len(face)), torch.arange(len(style))).to(self.device)
            painted = self.model.paint(w[which[:, 0]], z[which[:, 1]], INDEX)
            shown = ((painted + 1) * 127.5).to(torch.uint8).cpu()
            beside = [x[at.cpu()] for x, at in zip(red_first, which.T, strict=True)]
            return torch.cat([*beside, shown], dim=3)

        return self._by(name, ours, lambda: self._theirs.transfer(photos, art, INDEX))

    def begin_training(self) -> Gan:
        """Make the networks, optimisers and the average that are trained."""
        if self.system is None:
            c = self.config
            self.system = Gan(c, self.device, self._random(6, 64, c.style_dim))
            as_after_training(self.system.nets.values())
        return self.system

    def iteration(self, name: str, index: int) -> Call:
        """A call that trains step `index`, whatever was trained before."""
        c, system = self.config, self.begin_training()
        faces, art = (self._pictures(seed, c.batch, c.size) for seed in (7, 8))
        batch = Batch(faces, art, self._random(9, c.batch, c.style_dim))

        def ours() -> None:
            system.begin(batch, index * c.batch)
            run_step(system.phases, index, self.device, c.precision)
            if system.ema is not None:
                system.ema.update(c.batch)

        return self._by(name, ours, ours)

    def _nbytes(self, name: str, net: str) -> int:
        """Bytes of a network's weights on one side; `folded` is the style encoder in that form."""
        found = sum(x.nbytes for x in self.weights["E_style" if net == "folded" else net].values())
        encoder = self.nets.get("E_style")
        if net == "folded" and name != "authors" and isinstance(encoder, StyleEncoder):
            first = self.weights["E_style"]["embedder_mlp.0.weight"]
            narrow = sum(entries(count, True) for count in encoder.embedder.channels)
            found -= first.nbytes // first.shape[1] * (first.shape[1] - narrow)
        return found

    def peak(self, name: str, call: Call, used: Iterable[str] = ()) -> int:
        """Bytes that a call takes at its highest, with the weights of the networks that it uses.

        Args:
            name: of the side.
            call: of it.
            used: G, psp, E_style or folded; none: those that are trained, with optimisers and the average.
        """
        if used:
            return memory(call, self.device.type)[0] + sum(self._nbytes(name, net) for net in used)
        system = self.begin_training()
        averages = {} if system.ema is None else system.ema.nets
        held = [x for net in (*system.nets.values(), *averages.values()) for x in net.state_dict().values()]

        def from_nothing() -> None:
            call()
            for net in system.nets.values():
                net.zero_grad(set_to_none=True)  # what is left of the last call would count as there before

        peak, _ = memory(from_nothing, self.device.type)
        for optimizer in system.optimizers.values():
            held += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        return peak + sum(x.nbytes for x in held)

    def check(self) -> None:
        """Compare what all sides give for one input each with the networks in float64 on `reference`.

        The relative error of each may be twice that of the networks on `reference` in the precision that is measured,
        plus what roundings explain: a sum of n products errs by about sqrt(n) / 2 of them (benchmarks/bench.py), and
        those of all layers may add up. The authors' code, always in float32, is held to that.

        Raises:
            WrongResult: an error is larger, or NaN.
        """
        c = self.config
        z, style = self._random(1, 1, c.style_dim), self._random(2, 1, c.style_dim)
        made: list[Callable[[str], Call]] = [partial(self.pairs, count=1)]
        works = {"pair": ("G", partial(_pair, inputs=(z, style, self.mean)), made)}
        if "E_style" in self.weights:
            made = [partial(self.encode, count=1, folded=folded) for folded in (False, True)]
            works["style encoder"] = ("E_style", partial(_coded, images=self._pictures(3, 1, c.style_side)), made)
        if "psp" in self.weights:
            made = [partial(self.invert, count=1)]
            works["pSp"] = ("psp", partial(_coded, images=self._pictures(4, 1, c.psp_side)), made)
        for what, (name, plainly, made) in works.items():
            layers = [w[0] if w.dim() == 5 else w for w in self.nets[name].parameters() if w.dim() in (2, 4, 5)]
            floor = sum(math.sqrt(w[0].numel()) / 2 for w in layers) * ROUNDING
            with torch.no_grad(), use_backend("reference"):
                exact = plainly(copy.deepcopy(self.nets[name]).double(), dtype=torch.float64)
                with autocast(self.device, c.precision):
                    usual = relative(plainly(self.nets[name]), exact)
            for make_call in made:
                for side in self.names:
                    found = make_call(side)()
                    # the authors' pictures are not limited
                    error = relative(found.clamp(-1, 1) if name == "G" else found, exact)
                    if not error <= 2 * usual + floor:
                        raise WrongResult(
                            f"{what}, {c.size} px, {c.precision}: {side}: relative error {error:.3g}, allowed "
                            f"{2 * usual + floor:.3g}"
                        )


def _coded(net: Any, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What an encoder gives for pictures."""
    found: Tensor = net(images.to(dtype))
    return found


def _pair(net: Any, inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A natural and a stylized picture of (z, style code, the mean in w), as `Sides.pairs` gives them."""
    z, style, mean = (x.to(dtype) for x in inputs)
    w = net.latents(z, truncation=TRUNCATION, truncation_latent=mean)
    images = [net.render(net.codes(w, given, INDEX), randomize_noise=False) for given in (None, style)]
    return torch.cat(images).clamp(-1, 1)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is measured for a row.

    Attributes:
        work: its name.
        images: pictures of it.
        call: side -> call.
        used: see `Sides.peak`.
        names: of its sides.
        part: how much of the work the authors' call does; its time is divided by it.
        rounds: see `timing.interleave`.
    """

    work: str
    images: int
    call: Callable[[str], Call]
    used: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    part: float = 1.0
    rounds: tuple[int, int] = (7, 51)


def rows_of(sides: Sides, works: Iterable[str], batches: Batches) -> list[_Row]:
    """All rows of works but training."""
    found: list[_Row] = []
    names = tuple(sides.names)
    for work in dict.fromkeys(works):
        if work == "generator":
            found += [_Row(FORWARD, n, partial(sides.forward, count=n), ("G",), names) for n in batches.forward]
        elif work == "pairs":
            found += [_Row(PAIRS, n, partial(sides.pairs, count=n), ("G",), names) for n in batches.pairs]
        elif work == "style":
            for title, folded in ((FULL, False), (FOLDED, True)):
                used = ("folded" if folded else "E_style",)
                for n in batches.style:
                    found.append(_Row(title, n, partial(sides.encode, count=n, folded=folded), used, names))
        elif work == "psp":
            found += [_Row(PSP, n, partial(sides.invert, count=n), ("psp",), names) for n in batches.psp]
        elif work == "transfer":
            faces, styles, sample = batches.faces, batches.styles, min(batches.sample, batches.styles)

            def transfer(name: str, size: tuple[int, int, int] = (faces, styles, sample)) -> Call:
                return sides.transfer(name, size[0], size[1], size[2] if name == "authors" else None)

            title, count = transfer_of(faces, styles), faces * styles
            found.append(_Row(title, count, transfer, ("G", "folded", "psp"), names, sample / count, (2, 9)))
    return found


def measure(
    config: Config,
    device: torch.device,
    seconds: float,
    works: Iterable[str] = WORKS,
    batches: Batches | None = None,
    checkout: Path | None = None,
    rates: Rates | None = None,
    aims: Mapping[tuple[str, int, int], float] | None = None,
    roofline_aims: Mapping[tuple[str, int, int], float] | None = None,
) -> list[dict[str, Any]]:
    """Rows of one size and precision.

    Args:
        config: sizes, batch of an iteration, precision.
        device: to run on.
        seconds: for each row.
        works: of `WORKS`.
        batches: pictures at once; None: the device's.
        checkout: of the authors' repository; None: without them.
        rates: of the device; None: they are measured.
        aims: see `AIMS`; that of the average iteration is against `reference`.
        roofline_aims: see `ROOFLINE_AIMS`.

    Raises:
        AnifastError: the checkout cannot be used.
        WrongResult: two sides differ.
    """
    works, batches = list(works), batches or BATCHES[device.type]
    sides, clock = Sides(config, device, works, checkout), clock_for(device.type)
    sides.check()
    rates = rates or Rates.measure(device, clock, min(seconds, 1.0))
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        key = row["work"], row["size"], row["images"]
        row = {**row, "precision": config.precision}
        against = "reference" if row["work"] == AVERAGE else "authors"
        if key in (aims or {}) and against in row["ms"]:
            row |= {"aim": (aims or {})[key], "aimed": against}
        if key in (roofline_aims or {}):
            row["roofline_aim"] = (roofline_aims or {})[key]
        rows.append(row)
        print(show(row, RIVALS, "authors", width=42, bound=BOUND), flush=True)

    def timed(given: _Row, size: int) -> None:
        calls = {name: given.call(name) for name in given.names}
        with Products(vectors=True) as mode:
            calls["reference"]()
        alone = seconds_of(mode.seen, device, clock, seconds / 4)
        times = interleave(calls, clock, seconds=seconds, rounds=given.rounds)
        ms = milliseconds(times)
        if "authors" in ms:
            ms["authors"] = [*(round(value / given.part, 3) for value in ms["authors"][:3]), ms["authors"][3]]
        row = {"work": given.work, "size": size, "images": given.images, "ms": ms}
        row |= {"convolutions_ms": round(alone * 1e3, 3), "roofline_ms": round(roofline(mode.seen, rates) * 1e3, 3)}
        if device.type == "cuda" or given.used and given.images <= 16:  # the profiler is slow on a CPU
            row["peak"] = {name: sides.peak(name, call, given.used) for name, call in calls.items()}
        add(row)

    encoders = {FULL: config.style_side, FOLDED: config.style_side, PSP: config.psp_side}
    for given in rows_of(sides, works, batches):
        timed(given, encoders.get(given.work, config.size))
    if "training" in works:
        names = tuple(name for name in sides.names if name != "authors")
        # R1 is due in steps of a larger interval than path lengths
        steps = ((PLAIN, 1), (PATH, config.path_every), (BOTH, 0))
        for work, index in steps:
            call = partial(sides.iteration, index=index)
            timed(_Row(work, config.batch, call, (), names), config.size)
        add(_averaged(rows[-3:], config))
    return rows


def _averaged(rows: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    """The row of the average iteration, of those of a plain one, one with path lengths and one with R1 too."""
    both = 1 / config.r1_every
    path = 1 / config.path_every - both
    shares = (1 - path - both, path, both)

    def average(values: Iterable[float]) -> float:
        return round(sum(share * value for share, value in zip(shares, values, strict=True)), 3)

    times = {}
    for name in rows[0]["ms"]:
        each = [row["ms"][name] for row in rows]
        times[name] = [*(average(values[k] for values in each) for k in range(3)), min(values[3] for values in each)]
    found: dict[str, Any] = {"work": AVERAGE, "size": rows[0]["size"], "images": rows[0]["images"], "ms": times}
    found |= {key: average(row[key] for row in rows) for key in ("convolutions_ms", "roofline_ms")}
    if all("peak" in row for row in rows):
        found["peak"] = {name: max(row["peak"][name] for row in rows) for name in rows[0]["peak"]}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS, help="what is measured; default all")
    parser.add_argument(
        "--size", type=int, nargs="+", choices=SIZES, help="sides of the generator's pictures; default 256 1024"
    )
    parser.add_argument("--batch", type=int, help="pictures of an iteration")
    parser.add_argument(
        "--channel-multiplier",
        type=float,
        default=2.0,
        help="of the channels above 32 px; default 2, and the authors' code takes whole numbers only",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="64 px, few pictures and, without --authors, narrow networks: to try it out",
    )
    add_options(parser, "github.com/onion-liu/BlendGAN", 40.0, "blendgan")
    chosen = parser.parse_args(arguments)
    device, described = torch.device(chosen.device), begin(chosen.device)
    batches = BATCHES["quick" if chosen.quick else chosen.device]
    sizes = chosen.size or ([64] if chosen.quick else [256, 1024])
    rows: list[dict[str, Any]] = []
    try:
        authors = None if chosen.authors is None else theirs.describe(chosen.authors)
        clock: Clock = clock_for(chosen.device)
        rates = Rates.measure(device, clock, min(chosen.seconds, 1.0))
        for precision in precisions_of(chosen):
            for place, size in enumerate(dict.fromkeys(sizes)):
                usual = batches.training.get(size, batches.training[max(batches.training)])
                batch = usual if chosen.batch is None else chosen.batch
                values: dict[str, Any] = {"size": size, "batch": batch, "precision": precision}
                values |= {"channel_multiplier": chosen.channel_multiplier, "lpips_net": "none"}
                values["psp_side"] = min(256, size)
                if chosen.quick and chosen.authors is None:  # whose networks have one width
                    values |= {"base_channels": 64, "backbone": "vgg19_16x", "style_side": 64}
                # what does not depend on the size is measured once, with the first
                works = [work for work in chosen.work if place == 0 or work in ("generator", "training")]
                kind = (chosen.device, precision) if chosen.channel_multiplier == 2 else ("", "")
                aims = AIMS.get(kind, {}), ROOFLINE_AIMS.get(kind, {})
                if works:
                    config = make(None, values)
                    rows += measure(config, device, chosen.seconds, works, batches, chosen.authors, rates, *aims)
    except AnifastError as error:
        print(f"bench_blendgan: error: {error}", file=sys.stderr)
        return 1
    if chosen.out:
        wide = chosen.channel_multiplier
        note = f"{f'Channel multiplier {wide:g}. ' if wide != 2 else ''}{NOTE}"
        if authors is not None:
            note += f" {AUTHORS_NOTE.format(pairs=batches.sample)} ({_checkouts.which(authors)})."
        write(chosen.out, chosen.device, "blendgan", note, RIVALS, authors, described, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Stage style: the style encoder learns to tell two views of one picture from those of all others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from anifast.data.packed import spread
from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Phase
from anifast.engine.precision import autocast
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import restore, stored
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import folded_steps
from anifast.systems.blendgan.augmentation import views
from anifast.systems.blendgan.config import Config
from anifast.systems.blendgan.losses import nt_xent
from anifast.systems.blendgan.networks import Projector, StyleEncoder, build_style_encoder
from anifast.systems.blendgan.panels import PANELS
from anifast.systems.blendgan.pictures import Drawn, pictures_of

# Views of 256 pixels that go through the backbone at once; nothing of them is kept for a gradient.
_CHUNK = {"cpu": 4, "cuda": 32}
#: Pictures on a sample sheet, and among how many their neighbours are looked for.
SHOWN, AMONG = 8, 256


class FoldedAdam(torch.optim.Adam):
    """Adam in which a weight's columns may move by more than a step: those that stand for two mirrored weights.

    Args:
        parameters: all of them.
        lr: learning rate.
        betas: as of Adam.
        factors: weight -> how many steps each of its columns moves by, from `folded_steps`.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        factors: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, fused=True)
        self._further = {weight: count - 1 for weight, count in (factors or {}).items()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of Adam, and what is missing to the further ones."""
        found = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight not in self._further or weight.grad is None:
                    continue
                kept = self.state[weight]
                one, two = (1 - beta ** float(kept["step"]) for beta in group["betas"])
                further = self._further[weight].to(weight)
                # a few rows at a time: whole, this would be two more copies of the weight
                rows = zip(*(x.split(32) for x in (weight, kept["exp_avg"], kept["exp_avg_sq"])), strict=True)
                for part, mean, square in rows:
                    deviation = (square / two).sqrt_().add_(group["eps"])
                    part.addcdiv_(mean * further, deviation, value=-group["lr"] / one)
        return found


class Views(Drawn):
    """Style pictures, two views of each.

    Args:
        root: the data folder.
        config: sizes, augmentation, seed.
        batch: pictures in a step, of all processes.
        device: where the batches go.
        team: the processes that share each batch; None: one.

    Raises:
        DataError: the folder is missing, or has fewer pictures than a batch or only one.
    """

    def __init__(self, root: Path, config: Config, batch: int, device: torch.device, team: Team | None = None) -> None:
        pictures = pictures_of(root, "styles", config.style_side, config.packed)
        super().__init__(pictures, "styles", batch, config.seed, 3, device, team, setting="style-batch", least=2)
        self._config = config

    def next(self) -> Tensor:
        """First views of this process's pictures, then their second views, [2n,3,side,side] in [-1, 1]."""
        images, _, seeds = self.draw()
        return views(images.repeat(2, 1, 1, 1), torch.cat([seeds, seeds + 2**32]), self._config)


def chunk(config: Config, device: str) -> int:
    """How many pictures go through the backbone at once, on "cpu" or "cuda": more of smaller ones."""
    return min(_CHUNK[device] * max(1, 256 // config.style_side) ** 2, 256)


def memory_estimate(config: Config, batch: int, device: str = "cpu", world: int = 1) -> float:
    """GiB that stage style takes in each of `world` processes: weights, Adam, views, Gram matrices, a chunk's maps.

    Args:
        config: all settings.
        batch: pictures of one process in a step.
        device: "cpu" or "cuda".
        world: how many processes there are.
    """
    encoder = _empty_encoder(config)
    trained = sum(p.numel() for p in encoder.embedder_mlp.parameters())
    frozen = sum(p.numel() for p in encoder.embedder.net.parameters())
    # weights, gradients, two moments, and with several processes the gradients on their way
    weights = 4 * ((5 if world > 1 else 4) * trained + frozen)
    pixels = config.style_side**2
    grams = 2 * batch * encoder.embedder.width
    drawn = 2 * batch * pixels * (2 * 3 + 2)  # pictures, their views, and where those are taken from
    maps = 3 * chunk(config, device) * encoder.embedder.channels[0] * pixels  # input, output, pooling
    return (weights + 4 * (grams + drawn + maps)) / 2**30


def _empty_encoder(config: Config) -> StyleEncoder:
    """Shapes without memory."""
    with torch.device("meta"):
        return build_style_encoder(config)


def fitting_batch(config: Config, free: float, device: str, world: int = 1) -> int:
    """Pictures in a step where the setting leaves it open: a power of 2 up to 256 that `free` GiB hold, 2 at least."""
    batch = 256
    while batch > 2 * world and memory_estimate(config, batch // world, device, world) > free:
        batch //= 2
    return batch


class Style:
    """The style encoder and its projection head; what the training loop runs in stage style.

    The backbone is frozen: its Gram matrices are computed without gradient, a few views at a time.

    Args:
        config: all settings.
        batch: pictures in a step, of all processes.
        device: where everything lives.
        shown: pictures for the sample sheet.
        team: the processes that share each batch, and compare all of it; None: one.

    Raises:
        AnifastError: the backbone's weights are missing.
    """

    stage = "style"
    panels = PANELS
    ema = None
    watched = None

    def __init__(
        self, config: Config, batch: int, device: torch.device, shown: Tensor | None = None, team: Team | None = None
    ) -> None:
        self.config, self.batch_size, self.device, self.shown = config, batch, device, shown
        self.team = team or alone(device)
        backbone = load_backbone(config.backbone, weights=config.backbone_weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            encoder = build_style_encoder(config, backbone)
            projector = Projector(config.style_dim, config.projection)
        self.encoder, self.projector = encoder.to(device), projector.to(device)
        self.nets: dict[str, nn.Module] = {"E_style": self.encoder, "projector": self.projector}
        first = self.encoder.first_weight
        channels = self.encoder.embedder.channels
        factors = {first: folded_steps(channels, device=device)} if config.folded else {}
        trained = [self.encoder.embedder_mlp, self.projector]
        parameters = [parameter for net in trained for parameter in net.parameters()]
        self.optimizers = {"E_style": FoldedAdam(parameters, config.style_lr, (0.0, 0.99), factors)}
        self.phases = [
            Phase("views", self.projected, None, trained, self.looked_at),
            Phase("contrast", self.contrast, self.optimizers["E_style"], trained, self.gathered),
        ]
        self.views = torch.empty(0)
        self.steps = 0
        self._projections: Tensor | None = None

    def begin(self, batch: Tensor, images: int) -> None:
        """Take the views of the next step."""
        self.views, self.steps = batch, images // self.batch_size

    def looked_at(self) -> tuple[Tensor, ...]:
        """The Gram matrices of all views."""
        return (self.grams(self.views),)

    @torch.no_grad()
    def grams(self, images: Tensor) -> Tensor:
        """Of N,3,side,side, a few at a time, [N, width] in float32."""
        out = images.new_empty(len(images), self.encoder.embedder.width)
        step = chunk(self.config, self.device.type)
        for start in range(0, len(images), step):
            with autocast(self.device, self.config.precision):
                out[start : start + step] = self.encoder.grams(images[start : start + step])
        return out

    def projected(self, grams: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Projections of this process's views, kept with their graph for the phase that compares all."""
        codes = self.encoder.codes(grams)
        self._projections = self.projector(codes)
        with torch.no_grad():
            return self._projections.sum(), {"norm": codes.norm(dim=1).mean()}

    def gathered(self) -> tuple[Tensor, ...]:
        """The projections of all processes, without gradient: all first views, then all second ones."""
        assert self._projections is not None, "the phase views comes first"
        everyone = self.team.gather(self._projections.detach())
        parts = everyone.unflatten(0, (self.team.world, 2, -1)).transpose(0, 1)
        return (parts.flatten(0, 2),)

    def contrast(self, everyone: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of all views; its gradient is that to this process's own.

        Gradients are averaged over the processes, and the whole gradient is their sum.
        """
        assert self._projections is not None
        mine, world = self._projections, self.team.world
        rows = everyone
        if world == 1:
            rows = mine
        else:
            share, half = len(mine) // 2, len(everyone) // 2
            places = torch.arange(share, device=mine.device) + self.team.rank * share
            rows = everyone.index_copy(0, torch.cat([places, places + half]), mine)
        each = nt_xent(rows, self.config.temperature)
        loss = each.mean()
        with torch.no_grad():
            unit = nn.functional.normalize(rows.float(), dim=1)
            cosines = (unit @ unit.t()).fill_diagonal_(-math.inf)
            other = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
            right = (cosines.argmax(1) == other).float().mean()
        return loss + (world - 1) * (loss - loss.detach()), {"contrast": loss.detach(), "recognised": right}

    def row(self, images: int) -> dict[str, Any]:
        """Step and learning rate."""
        return {"step": images // self.batch_size, "lr": self.config.style_lr}

    def note(self, means: dict[str, float]) -> str:
        """The loss, and how often the other view is the nearest."""
        return f"contrast {means['contrast']:.3f}  recognised {100 * means['recognised']:.0f}%"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def sheet(self) -> Image.Image:
        """Pictures and those whose style codes are nearest to theirs, and farthest."""
        if self.shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        images = self.shown.to(self.device)
        found = [self.encoder.codes(self.grams(part)) for part in images.split(chunk(self.config, self.device.type))]
        unit = nn.functional.normalize(torch.cat(found), dim=1)
        chosen = torch.tensor(spread(len(images), SHOWN), device=self.device)
        cosines = unit[chosen] @ unit.t()
        cosines[torch.arange(len(chosen)), chosen] = math.inf
        order = cosines.argsort(dim=1, descending=True)
        rows = [("picture", images[chosen])]
        for place, label in ((1, "nearest"), (2, "second"), (3, "third"), (-1, "farthest")):
            if len(images) > abs(place):
                rows.append((label, images[order[:, place]]))
        tile = 128 if images.shape[-1] > 128 else 0
        return sheet([Block(f"style codes, of {len(images)} pictures", rows)], tile=tile)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, and how many pictures a step has."""
        return {
            "stage": self.stage,
            "batch": self.batch_size,
            **stored(self.nets, self.optimizers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)

    def summary(self) -> list[str]:
        """For the first lines of the stage."""
        c = self.config
        sizes = [sum(p.numel() for p in net.parameters()) for net in (self.encoder.embedder_mlp, self.projector)]
        form = "upper triangles" if c.folded else "whole matrices"
        needed = memory_estimate(c, self.team.portion(self.batch_size), self.device.type, self.team.world)
        return [
            f"style: {self.encoder.embedder.net.title} (frozen) at {c.style_side} px, Gram matrices of "
            f"{len(self.encoder.embedder.channels)} layers ({form}), {self.encoder.embedder.width:,} numbers; "
            f"predictor {sizes[0]:,} parameters, head {sizes[1]:,}",
            f"contrastive loss, temperature {c.temperature:g}, {2 * self.batch_size} views in a step; Adam, lr "
            f"{c.style_lr:g}",
            f"memory: about {needed:.1f} GiB for weights, optimiser, Gram matrices and maps",
        ]

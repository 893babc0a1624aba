"""Training Twin-GAN: one phase's networks, its step, and what a run shows of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from anifast.data.tags import TagList
from anifast.engine.distributed import Team, alone
from anifast.engine.ema import EMA
from anifast.engine.loop import Phase, Plan
from anifast.engine.plots import Panel
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import restore, stored
from anifast.nn.stylegan2_layers import lay_out, without_autocast
from anifast.systems.twingan.config import DOMAINS, STAGES, Config, half_life, sides
from anifast.systems.twingan.losses import (
    adversarial,
    dragan_points,
    gradient_penalty,
    judging,
    recognition,
    wgan_points,
)
from anifast.systems.twingan.networks import (
    Discriminator,
    Encoder,
    Generator,
    Latent,
    Statistics,
    build,
    down,
    limits,
    normalised_by,
    up,
)
from anifast.systems.twingan.pictures import Batch, Pictures

#: The loss figure: all weighted.
PANELS = (
    Panel("reconstruction (L1)", ("rec_s", "rec_t")),
    Panel("generator, translations", ("gan_s", "gan_t")),
    Panel("generator, reconstructions", ("gan_rec_s", "gan_rec_t")),
    Panel("semantic consistency (L1)", ("sem_st", "sem_ts")),
    Panel("discriminators", ("d_s", "d_t")),
    Panel("gradient penalties", ("gp_s", "gp_t")),
    Panel("tags and styles", ("tags_g", "tags_d", "style")),
)
#: Batches that the statistics of averaged networks are taken of.
MEASURED = 4
#: Pictures per domain on a sample sheet.
SHOWN = 6
#: Where a phase has new layers, the half-life of averages is at most this part of its images so far: of the first
#: weights no more than 2e-4 is left after 500 steps.
_RAMP = 0.5
#: Up to this side phases are recorded as CUDA graphs, where that is asked for: beyond it kernels take their time.
GRAPHS_UP_TO = 32


class Steps:
    """The batches of a step: one for the generator, and one for each turn of the discriminators with its own.

    Args:
        pictures: gives batches.
        count: how many a step takes.
    """

    def __init__(self, pictures: Pictures, count: int) -> None:
        self.pictures, self.count = pictures, count

    def next(self) -> tuple[Batch, ...]:
        """Those of the next step."""
        return tuple(self.pictures.next() for _ in range(self.count))

    def skipped(self) -> dict[str, str]:
        """Pictures that cannot be used, and why."""
        return self.pictures.skipped()

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands."""
        return self.pictures.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.pictures.load_state_dict(state)


@dataclasses.dataclass
class Painted:
    """What the generator has made of a batch, without gradient.

    Attributes:
        translated: of each domain, what the other domain's pictures have become in it: [s', t'].
        same: of each domain, its own pictures repainted, or None where nobody judges them: [s~, t~].
    """

    translated: list[Tensor]
    same: list[Tensor] | None


class TwinGAN:
    """The networks of one phase, their losses and optimisers; what the training loop runs.

    A step: encoder and generator learn on a batch; the norms remember its statistics; the discriminators learn, on what
    has just been painted or on a batch of their own.

    Args:
        config: all settings.
        stage: the phase.
        device: where everything lives.
        total: images per domain of the phase, over which its layers fade in.
        tags: what the networks are told, with `config.tags`.
        shown: source and target pictures for the sample sheets, in [0, 1].
        team: the processes that share each batch; None: one. Statistics of norms, minibatch stddev and the variance of
            dragan's noise are those of each process's part.
        start: networks to begin with, of this phase.
        averaged: averages to begin with.
        measured: pictures that the averaged networks' recalibrated statistics are taken of whenever these are saved or
            shown; None: they have those of the networks in training.
    """

    def __init__(
        self,
        config: Config,
        stage: str,
        device: torch.device,
        total: int = 1,
        tags: TagList | None = None,
        shown: tuple[Tensor, Tensor] | None = None,
        team: Team | None = None,
        start: Mapping[str, nn.Module] | None = None,
        averaged: Mapping[str, nn.Module] | None = None,
        measured: Batch | None = None,
    ) -> None:
        self.config, self.stage, self.device, self.total, self.tags = config, stage, device, total, tags
        self.shown, self.measured, self.team = shown, measured, team or alone(device)
        self.panels, self.watched = PANELS, None
        self.side, self.fading = sides(stage)
        self.batch_size = config.batch_of(self.side)
        self.judges_same = bool(config.rec_gan_from) and self.side >= config.rec_gan_from
        torch.manual_seed(config.seed + STAGES.index(stage))
        self.nets = dict(start) if start is not None else build(config, stage, len(tags.names) if tags else 0)
        for net in self.nets.values():
            net.to(device)
            lay_out(net)
        painting = {name: net for name, net in self.nets.items() if name in ("E", "G", "E_style")}
        judges = [self.nets["D_s"], self.nets["D_t"]]
        self.ema, self._half_life = None, 0.0
        self._ramps = self.fading or STAGES.index(stage) == 0
        if config.ema:
            self._half_life = half_life(config, self.batch_size)
            self.ema = EMA(painting, self._half_life)
            for name, net in (averaged or {}).items():
                self.ema.nets[name].load_state_dict(net.state_dict())
        self.optimizers = {
            "G": self._adam(list(painting.values())),
            "D": self._adam(judges),
        }
        self.alpha = torch.ones((), device=device)
        self._limits = {
            values: torch.tensor(values, device=device) for values in map(limits, (0, 10_001, 20_001, 30_001))
        }
        self._found: dict[str, list[Statistics]] = {}
        self._remembered = True
        self._painted: dict[int, Painted] = {}  # by batch: phases that are recorded leave theirs where they once did
        self._batches: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._draws: dict[str, Tensor] = {}
        self.phases = [Phase("generator", self.generator, self.optimizers["G"], list(painting.values()), self.given)]
        own = 1  # the batch that is next
        for turn in range(config.d_steps):
            name = f" {turn + 1}" if turn else ""
            at = 0
            if turn or not config.share_batch:
                at, own = own, own + 1
                self.phases.append(
                    Phase(
                        f"painting{name}",
                        partial(self.painting, at),
                        None,
                        list(painting.values()),
                        partial(self.repainted, at),
                    )
                )
            self.phases.append(
                Phase(
                    f"discriminators{name}",
                    self.discriminators,
                    self.optimizers["D"],
                    judges,
                    partial(self.judged, at, turn),
                )
            )
        #: Batches that a step takes.
        self.batches = own

    def _adam(self, nets: Sequence[nn.Module]) -> torch.optim.Adam:
        c = self.config
        parameters = [parameter for net in nets for parameter in net.parameters()]
        return torch.optim.Adam(parameters, lr=c.lr, betas=(c.beta1, c.beta2), eps=1e-8, fused=True)

    # A step

    def begin(self, batch: tuple[Batch, ...], images: int) -> None:
        """Take the batches of the next step, set its learning rates and limits, and how far layers have faded in."""
        c, step = self.config, images // self.batch_size
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = c.d_lr if name == "D" and c.d_lr is not None else c.lr
        for net in self.nets.values():
            if isinstance(net, (Encoder, Generator)) and net.norms.kind == "batch_renorm":
                net.norms.renorm_limits.copy_(self._limits[limits(step)])
        self.alpha.fill_(self.faded(images))
        if self.ema is not None:
            self.ema.half_life = self._half_life
            if self._ramps:
                # New layers begin at random, and their first weights must not outlast a short phase in the averages
                # (as in Karras et al. 2020, arXiv 2006.06676, appendix C).
                self.ema.half_life = min(self._half_life, _RAMP * (images + self.batch_size))
        self._batches = [(self._real(one.source), self._real(one.target), one.tags) for one in batch]
        self._remembered = False
        # By phase, step and process, not from a generator with a state: a resumed run draws the same.
        words = np.random.SeedSequence([c.seed, STAGES.index(self.stage), step, self.team.rank]).generate_state(2)
        source = torch.Generator(self.device).manual_seed(int(words[0]) * 2**31 + int(words[1]) // 2)
        self._draws = {}
        count = len(batch[0].source)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=source, device=self.device, dtype=self.alpha.dtype)

        for turn in range(len(batch)):
            if c.style:
                self._draws[f"style{turn}"] = torch.randn(
                    (count, c.style), generator=source, device=self.device, dtype=self.alpha.dtype
                )
        for turn in range(c.d_steps):
            for domain in DOMAINS:
                if c.loss in ("dragan", "wgan_gp"):
                    self._draws[f"share{turn}{domain}"] = uniform(count)
                if c.loss == "dragan":
                    noise = uniform(count, 3, self.side, self.side) * 2.0 - 1.0
                    self._draws[f"noise{turn}{domain}"] = self._laid_out(noise)

    def faded(self, images: int) -> float:
        """How far the phase's own layers have faded in after so many images: 0 to 1."""
        return min(1.0, images / self.total) if self.fading else 1.0

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    def _real(self, images: Tensor) -> Tensor:
        """Real pictures as the phase has them: while layers fade in, mixed with what the phase before saw."""
        images = self._laid_out(images.to(self.alpha.dtype))
        return torch.lerp(up(down(images)), images, self.alpha) if self.fading else images

    def given(self) -> tuple[Tensor, ...]:
        """The pictures of the generator's step, and what its norms follow."""
        return self._given(0)

    def _given(self, at: int) -> tuple[Tensor, ...]:
        source, target, tags = self._batches[at]
        if self.config.style:
            return source, target, self._draws[f"style{at}"]
        return (source, target) if tags is None else (source, target, tags.to(self.alpha.dtype))

    def _encode(self, net: str, images: Sequence[Tensor], domains: tuple[int, ...]) -> list[Latent]:
        """Each set of images in its domain: in one pass, or set by set."""
        encoder = cast(Encoder, self.nets[net])
        if not self.config.stacked:
            return [encoder(part, (domain,), self.alpha) for part, domain in zip(images, domains, strict=True)]
        return [encoder(torch.cat(list(images)), domains, self.alpha)]

    def _paint(self, latents: list[Latent], condition: list[Tensor | None]) -> tuple[list[Tensor], list[Statistics]]:
        """Both sets reconstructed and translated: s~, t~, t', s'; `condition` has what each of these follows."""
        net, domains = cast(Generator, self.nets["G"]), (0, 1, 1, 0)
        if len(latents) == 1:
            follows = None if condition[0] is None else torch.cat(cast(list[Tensor], condition))
            one = latents[0]
            images, found = net(one.z, one.skips, domains, self.alpha, follows, copies=2)
            return list(images.chunk(4)), [found]
        made = [
            net(latents[i % 2].z, latents[i % 2].skips, (domain,), self.alpha, condition[i])
            for i, domain in enumerate(domains)
        ]
        return [images for images, _ in made], [found for _, found in made]

    def _follows(self, source: Tensor, target: Tensor, along: tuple[Tensor, ...]) -> list[Tensor | None]:
        """What the norms follow in s~, t~, t' and s'."""
        if not along:
            return [None] * 4
        (one,) = along
        if self.config.style:  # one random style for both translations, as the author has it
            own = _joined(self._encode("E_style", (source, target), (0, 1)), self._found.setdefault("E_style", []))
            return [*own.chunk(2), one, one]
        nothing = torch.zeros_like(one)
        return [nothing, one, one, nothing]

    def generator(self, source: Tensor, target: Tensor, *along: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of encoder and generator; what was painted is kept for the discriminators.

        Args:
            source: N,3,H,W, x_s.
            target: x_t.
            along: random styles [N, style], or the target's tags [N, tags].
        """
        c = self.config
        self._found = {"E": [], "G": []}
        latents = self._encode("E", (source, target), (0, 1))
        z = _joined(latents, self._found["E"])
        follows = self._follows(source, target, along)
        (same_s, same_t, to_t, to_s), self._found["G"] = self._paint(latents, follows)
        again = _joined(self._encode("E", (to_t, to_s), (1, 0)), self._found["E"])
        z_s, z_t = z.float().chunk(2) if z.dtype != torch.float64 else z.chunk(2)
        again_t, again_s = again.to(z_s.dtype).chunk(2)
        parts = {
            "rec_s": F.l1_loss(same_s, source) * c.rec_weight,
            "rec_t": F.l1_loss(same_t, target) * c.rec_weight,
            "sem_st": F.l1_loss(again_t, z_s) * c.sem_weight,
            "sem_ts": F.l1_loss(again_s, z_t) * c.sem_weight,
        }
        told = along[0] if c.tags and along else None
        for domain, translated, same in (("s", to_s, same_s), ("t", to_t, same_t)):
            sets = [translated, same] if self.judges_same else [translated]
            scores, recognised = self._judge(domain, sets, told)
            for name, one in zip(("gan", "gan_rec"), scores, strict=False):
                parts[f"{name}_{domain}"] = adversarial(one, c.loss) * c.gan_weight
            if recognised is not None and told is not None:
                parts["tags_g"] = recognition(recognised[: len(told)], told) * c.tag_weight
        if c.style:
            found = _joined(self._encode("E_style", (to_t, to_s), (1, 0)), self._found["E_style"])
            wanted = along[0]
            each = [F.l1_loss(one.to(wanted.dtype), wanted) for one in found.chunk(2)]
            parts["style"] = torch.stack(each).sum() * c.style_weight
        if c.share_batch:
            self._painted[0] = self._kept([to_s, to_t], [same_s, same_t])
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()} | {"generator": loss.detach()}

    def _judge(self, domain: str, sets: Sequence[Tensor], told: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Scores of sets of pictures of a domain, each compared within itself, and tags recognised in all of them."""
        net = self.nets[f"D_{domain}"]
        told = told if domain == "t" else None
        if not self.config.stacked or len(sets) == 1:
            found = [net(one, 1, self.alpha, told) for one in sets]
            tags = None if told is None else torch.cat([one.tags for one in found])
            return [one.scores for one in found], tags
        many = None if told is None else torch.cat([told] * len(sets))
        judged = net(torch.cat(list(sets)), len(sets), self.alpha, many)
        return list(judged.scores.chunk(len(sets))), judged.tags

    def _kept(self, translated: Sequence[Tensor], same: Sequence[Tensor]) -> Painted:
        """What discriminators judge of what was painted."""
        judged = [images.detach() for images in same] if self.judges_same else None
        return Painted([images.detach() for images in translated], judged)

    def repainted(self, at: int) -> tuple[Tensor, ...]:
        """A further batch, and what its norms follow."""
        self._remember()
        return self._given(at)

    @torch.no_grad()
    def painting(self, at: int, source: Tensor, target: Tensor, *along: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Paint what the discriminators are about to judge, of batch `at`; the norms remember nothing of it."""
        found = self._found
        self._found = {}
        latents = self._encode("E", (source, target), (0, 1))
        (same_s, same_t, to_t, to_s), _ = self._paint(latents, self._follows(source, target, along))
        self._found = found
        self._painted[at] = self._kept([to_s, to_t], [same_s, same_t])
        return to_s.sum() + to_t.sum(), {}

    def judged(self, at: int, turn: int) -> tuple[Tensor, ...]:
        """Real and painted pictures of both domains, what the penalties draw, and the target's tags."""
        self._remember()
        painted = self._painted[at]
        source, target, tags = self._batches[at]
        drawn = [
            self._draws[f"{kind}{turn}{domain}"]
            for domain in DOMAINS
            for kind in ("share", "noise")
            if f"{kind}{turn}{domain}" in self._draws
        ]
        told = [tags.to(self.alpha.dtype)] if self.config.tags and tags is not None else []
        return (source, target, *painted.translated, *(painted.same or ()), *drawn, *told)

    def discriminators(self, source: Tensor, target: Tensor, *others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of both discriminators, with their penalties; see `judged` for what comes along."""
        c, rest = self.config, list(others)

        def take(count: int) -> list[Tensor]:
            taken = rest[:count]
            del rest[:count]
            return taken

        translated = take(2)
        same = take(2) if self.judges_same else []
        each = {"dragan": 2, "wgan_gp": 1}.get(c.loss, 0)
        drawn = [take(each), take(each)]
        told = rest[0] if rest else None
        parts: dict[str, Tensor] = {}
        for i, (domain, real) in enumerate(zip(DOMAINS, (source, target), strict=True)):
            sets = [real, translated[i], *same[i : i + 1]]
            (scores, *painted), recognised = self._judge(domain, sets, told)
            parts[f"d_{domain}"] = torch.stack([judging(scores, one, c.loss) for one in painted]).sum()
            if c.drift and c.loss.startswith("wgan"):
                parts[f"d_{domain}"] = parts[f"d_{domain}"] + scores.square().mean() * c.drift
            if recognised is not None and told is not None:
                parts["tags_d"] = recognition(recognised[: len(told)], told) * c.tag_weight
            if each:
                points = (
                    dragan_points(real, drawn[i][1], drawn[i][0], c.dragan_noise)
                    if c.loss == "dragan"
                    else wgan_points(real, translated[i], drawn[i][0])
                )
                net = cast(Discriminator, self.nets[f"D_{domain}"])
                with without_autocast(points):  # the penalty squares gradients of second order
                    # what torch.compile makes has no gradients of second order
                    judge = _scores(net, self.alpha, told if domain == "t" else None)
                    parts[f"gp_{domain}"] = gradient_penalty(judge, points) * c.gp_weight
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _remember(self) -> None:
        """Let the norms remember what the generator's step has found, once its weights have changed."""
        if self._remembered:
            return
        self._remembered = True
        for name, found in self._found.items():
            norms = cast(Encoder, self.nets[name]).norms
            if not norms.remembers:
                continue
            if self.team.world > 1:
                found = [one._replace(mean=one.mean.clone(), std=one.std.clone()) for one in found]
                self.team.average([part for one in found for part in (one.mean, one.std)])
            norms.remember(found)
            if self.config.recalibrate:
                norms.recalibrate(*_parted(name, found))

    @torch.no_grad()
    def recalibrate_averages(self) -> None:
        """Take the recalibrated statistics of the averaged networks anew, from these themselves.

        They begin as those of the networks in training, which they lag behind: their maps have other statistics.
        """
        if self.ema is None or self.measured is None or not self.config.recalibrate:
            return
        nets = {name: cast(Encoder | Generator, net) for name, net in self.ema.nets.items()}
        norms = {name: net.norms for name, net in nets.items()}
        if not norms["E"].remembers:
            return
        source = torch.Generator().manual_seed(self.config.seed % 2**32)
        encoder, generator = cast(Encoder, nets["E"]), cast(Generator, nets["G"])
        for kept in norms.values():
            kept.recalibrated_steps.zero_()
        count = min(len(self.measured.source), len(self.measured.target))
        each = min(count, self.batch_size)
        with normalised_by(norms.values(), "batch"):
            for first in range(0, count - each + 1, each):
                here = slice(first, first + each)
                x = torch.cat([self._real(part[here].to(self.device)) for part in self.measured[:2]])
                found: dict[str, list[Statistics]] = {name: [] for name in nets}
                latent = encoder(x, (0, 1), self.alpha)
                follows: Tensor | None = None
                style = cast(Encoder, nets["E_style"]) if "E_style" in nets else None
                if style is not None:
                    own = style(x, (0, 1), self.alpha)
                    found["E_style"].append(own.found)
                    random = torch.randn(each, self.config.style, generator=source).to(own.z)
                    follows = torch.cat([own.z, random, random])
                elif self.measured.tags is not None:
                    told = self.measured.tags[here].to(x)
                    follows = torch.cat([torch.zeros_like(told), told, told, torch.zeros_like(told)])
                images, statistics = generator(latent.z, latent.skips, (0, 1, 1, 0), self.alpha, follows, copies=2)
                translated = images[2 * each :]
                found["G"].append(statistics)
                found["E"] += [latent.found, encoder(translated, (1, 0), self.alpha).found]
                if style is not None:
                    found["E_style"].append(style(translated, (1, 0), self.alpha).found)
                for name, parts in found.items():
                    norms[name].recalibrate(*_parted(name, parts))

    # What a run shows of itself

    def row(self, images: int) -> dict[str, Any]:
        """Step, learning rate, and how far layers have faded in."""
        return {
            "step": images // self.batch_size,
            "lr": self.optimizers["G"].param_groups[0]["lr"],
            "alpha": round(self.faded(images), 4),
        }

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""

        def both(name: str) -> float:
            return means.get(f"{name}_s", 0.0) + means.get(f"{name}_t", 0.0)

        return f"{self.stage}: rec {both('rec'):.3f}  gan {both('gan'):.2f}  D {both('d'):.2f}"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # for these shapes compiling would begin anew
    def sheet(self) -> Image.Image:
        """Always the same pictures of both domains: translated, and repainted in their own."""
        if self.shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        nets: Mapping[str, nn.Module] = self.nets if self.ema is None else self.ema.nets
        self.recalibrate_averages()
        painting = [cast(Encoder | Generator, nets[name]) for name in ("E", "G", "E_style") if name in nets]
        source = "recalibrated" if all(net.norms.recalibrated for net in painting) else "running"
        was = [net.training for net in painting]
        try:
            for net in painting:
                net.eval()
            with normalised_by([net.norms for net in painting], source):
                blocks = [self._shown_block(nets, domain) for domain in range(len(DOMAINS))]
        finally:
            for net, training in zip(painting, was, strict=True):
                net.train(training)
        caption = f"phase {self.stage}" + (f", {self.averaging}" if self.ema else "")
        return sheet(blocks, caption=caption, tile=max(64, min(128, self.side)), beside=True)

    @property
    def averaging(self) -> str:
        """How weights are averaged, in words."""
        return f"averaged weights, decay {self.config.ema:g} a step" + (" at last" if self._ramps else "")

    def _shown_block(self, nets: Mapping[str, nn.Module], domain: int) -> Block:
        """The pictures of a domain on a sheet."""
        assert self.shown is not None
        encoder, generator = cast(Encoder, nets["E"]), cast(Generator, nets["G"])
        real = self._real(self.shown[domain].to(self.device))
        latent = encoder(real, (domain,), self.alpha)
        random: Tensor | None = None
        own: Tensor | None = None
        if self.config.style:  # always the same random styles, and the pictures' own; of tags, none
            source = torch.Generator().manual_seed(self.config.seed % 2**32)
            random = torch.randn(len(real), self.config.style, generator=source).to(self.device)
            own = cast(Encoder, nets["E_style"])(real, (domain,), self.alpha).z
        translated, _ = generator(latent.z, latent.skips, (1 - domain,), self.alpha, random)
        same, _ = generator(latent.z, latent.skips, (domain,), self.alpha, own, deployed=False)
        rows = [("real", real), ("translated", translated), ("repainted", same)]
        title = ("source to target", "target to source")[domain]
        return Block(title, [(label, images.float().clamp(0, 1) * 2 - 1) for label, images in rows])

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers, and which phase they are of."""
        self.recalibrate_averages()
        about: dict[str, Any] = {"stage": self.stage, "batch": self.batch_size, "alpha": float(self.alpha)}
        if self.tags is not None:
            about["tags"] = self.tags.rows()
        return stored(self.nets, self.optimizers) | about

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)
        self.alpha.fill_(float(state["alpha"]))


def _scores(net: Discriminator, alpha: Tensor, told: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda points: net.forward(points, 1, alpha, told, recognise=False).scores


def _joined(latents: Sequence[Latent], found: list[Statistics]) -> Tensor:
    """The latents of all sets, whose statistics go to `found`."""
    found.extend(one.found for one in latents)
    return latents[0].z if len(latents) == 1 else torch.cat([one.z for one in latents])


def _parted(name: str, found: Sequence[Statistics]) -> tuple[list[Statistics], list[Statistics]]:
    """The statistics of a step: of what is deployed, real pictures in encoders and translations in the generator, and
    of the rest, painted pictures and reconstructions.

    Two groups of each: in encoders the former come first, in the generator last.
    """
    each = [one.groups(row, row + 1) for one in found for row in range(len(one.domains))]
    return (each[2:], each[:2]) if name == "G" else (each[:2], each[2:])


def summary(system: TwinGAN, data: Steps, plan: Plan) -> list[str]:
    """What is trained on what, for the first lines of a phase."""
    c = system.config
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in system.nets.items()}
    fading = f"; the layers of {system.side}x{system.side} fade in" if system.fading else ""
    options = [
        *(["no skips"] if not c.unet else [f"skips up to {c.skips_up_to}"] if c.skips_up_to < system.side else []),
        *([f"self-attention at {c.attention_size}"] if c.self_attention else []),
        *(["spectral norm"] if c.spectral_norm else []),
        *([f"styles of {c.style} numbers"] if c.style else []),
        *([f"{len(system.tags.names)} tags"] if system.tags else []),
    ]
    each = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    judged = "translations and reconstructions" if system.judges_same else "translations"
    penalty = f", penalty {c.gp_weight:g}" if c.loss in ("dragan", "wgan_gp") else ""
    d_lr = f" (discriminators {c.d_lr:g})" if c.d_lr is not None else ""
    average = f"; {system.averaging}" if c.ema else ""
    if plan.cuda_graphs != c.cuda_graphs:
        average += f"; CUDA graphs up to {GRAPHS_UP_TO} px only, so not in this phase"
    untagged = f"; {data.pictures.untagged} target pictures have no tags" if data.pictures.untagged else ""
    shared = "the generator's own batch" if system.batches == 1 else f"{system.batches} batches a step"
    return [
        f"phase {system.stage}: {system.side}x{system.side}{fading}; {c.norm}"
        f"{' and pixel norm' if c.pixel_norm else ''}{''.join(f', {one}' for one in options)}",
        f"parameters: {each}",
        f"data: source {len(data.pictures.source)}, target {len(data.pictures.target)} pictures, scaled by {c.resize}"
        f"{untagged}",
        f"losses: {c.loss} on {judged}{penalty}, reconstruction {c.rec_weight:g}, semantic {c.sem_weight:g}; "
        f"discriminators see {shared}",
        f"Adam, lr {c.lr:g}{d_lr}, betas {c.beta1:g} and {c.beta2:g}, batch {system.batch_size}{average}",
        f"{plan.total} images per domain, {plan.total // system.batch_size} steps",
    ]

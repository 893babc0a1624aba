"""Training BlendGAN's generator (stage gan): data, one step in phases, and what a run shows of itself.

The style encoder is trained in `contrast`, the encoder of photos in `inversion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anifast.data.augment import uniforms
from anifast.data.folders import counted, read_image, resize, to_float, to_tensor
from anifast.data.packed import pack, pixels_digest, spread
from anifast.engine.distributed import Team, alone
from anifast.engine.ema import EMA
from anifast.engine.loop import Phase, Plan
from anifast.engine.precision import autocast
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import restore, stored
from anifast.errors import DataError
from anifast.nn.regularizers import PathLength, path_lengths, r1_penalty
from anifast.nn.stylegan2 import Discriminator, stages
from anifast.nn.stylegan2_layers import lay_out, without_autocast
from anifast.systems.blendgan.codes import Queue
from anifast.systems.blendgan.config import INDEX, Config
from anifast.systems.blendgan.losses import adversarial
from anifast.systems.blendgan.networks import Generator, ProjectionDiscriminator, StyleEncoder, networks
from anifast.systems.blendgan.panels import PANELS
from anifast.systems.blendgan.pictures import Drawn, held_out, numbers, pictures_of

__all__ = ["PANELS", "Faces", "Gan", "Pictures", "summary"]

#: Faces on a sample sheet.
SHOWN = {"cpu": 6, "cuda": 10}


class Batch(NamedTuple):
    """This process's part of a step.

    Attributes:
        faces: photos [n,3,size,size] in [-1, 1], mirrored half of the time.
        art: style pictures, the same.
        codes: their style codes [n, D], as they are mirrored, or empty where the system encodes them.
    """

    faces: Tensor
    art: Tensor
    codes: Tensor


class Faces(Drawn):
    """Pictures of one folder, mirrored half of the time; arguments as of `Drawn`."""

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [n,3,side,side] in [-1, 1], their places, and which are mirrored (int64 [n], 0 or 1)."""
        images, places, seeds = self.draw()
        mirrored = uniforms(seeds, 1)[:, 0] < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(3), images), places, mirrored.long()


class Pictures:
    """Photos and art, or the one style picture, with style codes.

    Args:
        root: the data folder.
        config: sizes, batch, seed, and the one style picture, if any.
        device: where the batches go.
        team: the processes that share each batch; None: one.
        codes: the table of style codes [N,2,D] of all art, or [1,2,D] of the one picture; None: batches hold none.

    Raises:
        DataError: a folder is missing, or has fewer pictures than a batch.
        ImageError: the one style picture cannot be read.
    """

    def __init__(
        self,
        root: Path,
        config: Config,
        device: torch.device,
        team: Team | None = None,
        codes: Tensor | None = None,
    ) -> None:
        c = config
        self._faces = Faces(pictures_of(root, "faces", c.size, c.packed), "faces", c.batch, c.seed, 0, device, team)
        self._one: Tensor | None = None
        self._art: Faces | None = None
        if c.one_shot is not None:
            one = the_picture(c.one_shot, c.size)
            self._pixels = pixels_digest(one.permute(0, 2, 3, 1).numpy())
            self._one = one.to(device)
        else:
            self._art = Faces(pictures_of(root, "styles", c.size, c.packed), "styles", c.batch, c.seed, 1, device, team)
        self._codes = None if codes is None else codes.to(device)
        self._none = torch.empty(0, device=device)
        self._config, self._device, self._root = config, device, root
        self._team = team or alone(device)
        self._drawn = 0
        self.counts = (len(self._faces.pictures), 1 if self._art is None else len(self._art.pictures))

    def next(self) -> Batch:
        """The next batch."""
        faces, _, _ = self._faces.next()
        if self._art is not None:
            art, places, mirrored = self._art.next()
        else:
            assert self._one is not None
            share = self._team.portion(self._config.batch)
            first = self._drawn + self._team.rank * share
            mirrored = (uniforms(numbers(self._config.seed, 1, first, share, self._device), 1)[:, 0] < 0.5).long()
            places = torch.zeros_like(mirrored)
            art = torch.where(mirrored[:, None, None, None] == 1, self._one.flip(3), self._one)
            self._drawn += self._config.batch
        return Batch(faces, art, self._none if self._codes is None else self._codes[places, mirrored])

    def samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` photos and style pictures for the sample sheets, held out ones where there are any."""
        found = []
        for kind, train in (("faces", self._faces), ("styles", self._art)):
            if train is None:
                assert self._one is not None
                found.append(self._one.cpu())
            elif (folder := held_out(self._root, kind)) is not None:
                test = pack(folder, self._config.size, how="crop")
                found.append(to_float(test.batch(spread(len(test), count))))
            else:
                found.append(train.shown(count))
        return found[0], found[1]

    def skipped(self) -> dict[str, str]:
        """Pictures that cannot be used, and why."""
        return self._faces.skipped() | ({} if self._art is None else self._art.skipped())

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        if self._art is None:
            return {"faces": self._faces.state_dict(), "art": {"drawn": self._drawn, "pixels": self._pixels}}
        return {"faces": self._faces.state_dict(), "art": self._art.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folders hold other pictures than then.
        """
        self._faces.load_state_dict(state["faces"])
        if self._art is None:
            if state["art"]["pixels"] != self._pixels:
                raise DataError(
                    f"{self._config.one_shot}: is another picture than when this stage began, so it cannot go on as if "
                    "nothing had happened. Put the old picture back, or start a new run"
                )
            self._drawn = int(state["art"]["drawn"])
        else:
            self._art.load_state_dict(state["art"])


def the_picture(path: str, size: int) -> Tensor:
    """One picture as [1,3,size,size] in [-1, 1], the largest square in its middle.

    Raises:
        ImageError: it cannot be read.
    """
    return to_float(to_tensor(resize(read_image(Path(path)), size, "crop"))[None])


class Gan:
    """The generator and its three discriminators, their losses and optimisers; what the training loop runs.

    Natural and stylized pictures of the same faces are painted in one batch, each with its own blending indicator.

    Args:
        config: all settings.
        device: where everything lives.
        queue: style codes [n, D] of any pictures, which the queue is filled from.
        shown: photos and art for the sample sheets, and the art's style codes.
        team: the processes that share each batch; None: one.
        encoder: encodes batches that come without style codes.
    """

    stage = "gan"
    panels = PANELS
    watched = None

    def __init__(
        self,
        config: Config,
        device: torch.device,
        queue: Tensor,
        shown: tuple[Tensor, Tensor, Tensor] | None = None,
        team: Team | None = None,
        encoder: StyleEncoder | None = None,
    ) -> None:
        c = config
        self.config, self.device, self.shown, self.encoder = config, device, shown, encoder
        self.team = team or alone(device)
        # Matrix units take channels_last as it is; on CPUs contiguous maps were faster.
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.nets = {name: net.to(device) for name, net in networks(config).items()}
        for net in self.nets.values():
            if self._layout == torch.channels_last:
                lay_out(net)
            net.recompute = c.checkpointing  # type: ignore[assignment]
        source = np.random.default_rng([c.seed, 1])
        self.queue = Queue(queue[torch.from_numpy(source.integers(0, len(queue), c.queue))].to(device))
        self.paths = {"face": PathLength().to(device), "style": PathLength().to(device)}
        self.ema: EMA | None = None
        self.start_averaging()
        # lazy regularisation (Karras et al. 2020, appendix B)
        lazy_g = c.path_every / (c.path_every + 1) if c.path_length else 1.0
        lazy_d = c.r1_every / (c.r1_every + 1) if c.r1 else 1.0
        generator, judges = [self.nets["G"]], [self.nets[name] for name in ("D_face", "D_style", "D_latent")]
        self.optimizers = {"G": _adam(generator, c.lr, lazy_g), "D": _adam(judges, c.lr, lazy_d)}
        self.optimizers["G"].register_step_post_hook(lambda *_: self._g.project())
        # Each discriminator by itself: at 1024 px the maps of all three, and of their penalties, are many GB.
        self.phases = [Phase("paintings", self.paintings, None, [], self.drawn)]
        judged: list[tuple[str, Callable[..., Any], Callable[[], tuple[Tensor, ...]], Callable[..., Any]]] = [
            ("face", self.judges_faces, self.real_faces, self.penalises_faces),
            ("style", self.judges_styles, self.real_styles, self.penalises_styles),
        ]
        if c.lambda_latent:
            judged.append(("latent", self.judges_codes, self.real_codes, self.penalises_codes))
        for name, loss, inputs, _ in judged:
            self.phases.append(Phase(f"D_{name}", loss, self.optimizers["D"], [self.nets[f"D_{name}"]], inputs))
        for name, _, inputs, loss in judged if c.r1 else ():
            net = self.nets[f"D_{name}"]
            self.phases.append(
                Phase(f"D_{name}, penalty", loss, self.optimizers["D"], [net], inputs, interval=c.r1_every)
            )
        self.phases.append(
            Phase("generator", self.generator, self.optimizers["G"], generator, self.painted, ready=self._warm)
        )
        if c.path_length:
            self.phases += [
                Phase("path lengths", self.lengths, None, generator, self.sampled, c.path_every, ready=self._warm),
                Phase(
                    "path length penalty",
                    self.path_penalty,
                    self.optimizers["G"],
                    generator,
                    self.gathered,
                    c.path_every,
                    ready=self._warm,
                ),
            ]
        #: Where its networks come from, for the log; new ones have nothing to tell.
        self.taken: list[str] = []
        self.batch = Batch(*[torch.empty(0)] * 3)
        self.steps = 0
        self._fakes: tuple[Tensor, Tensor] | None = None
        self._others = torch.empty(0)
        self._lengths: Tensor | None = None

    def start_averaging(self) -> None:
        """Let the average be the generator as it is now."""
        c = self.config
        if c.ema:
            self.ema = EMA({"G": self.nets["G"]}, c.batch * math.log(0.5) / math.log(c.ema))

    @property
    def _g(self) -> Generator:
        net = self.nets["G"]
        assert isinstance(net, Generator)
        return net

    def _judge(self, name: str) -> Discriminator:
        net = self.nets[name]
        assert isinstance(net, Discriminator)
        return net

    @property
    def _d_latent(self) -> ProjectionDiscriminator:
        net = self.nets["D_latent"]
        assert isinstance(net, ProjectionDiscriminator)
        return net

    def _warm(self) -> bool:
        """Whether the generator takes part."""
        return self.steps >= self.config.warm_up

    @torch.no_grad()
    def begin(self, batch: Batch, images: int) -> None:
        """Take the next batch."""
        faces, art = (x.contiguous(memory_format=self._layout) for x in (batch.faces, batch.art))
        codes = batch.codes
        if self.encoder is not None:
            with autocast(self.device, self.config.precision):
                codes = self.encoder(batch.art)
        self.batch = Batch(faces, art, codes)
        self.steps = images // self.config.batch

    def _draws(self, purpose: int, count: int) -> tuple[Tensor, ...]:
        """Face codes [n, D] twice, the slot from which the second counts [n], and noise maps, of this process.

        They depend on the run's seed, the step, its purpose and the place in the joined batch alone.
        """
        c, joined = self.config, count * self.team.world
        source = np.random.default_rng([c.seed, self.steps, 2 + purpose])
        z = torch.from_numpy(source.standard_normal((2, joined, c.style_dim), dtype=np.float32))
        slot = source.integers(1, self._g.n_latent, joined)
        slot = np.where(source.random(joined) < c.mixing, slot, self._g.n_latent)
        generator = torch.Generator(self.device).manual_seed(int(source.integers(2**62)))
        sides = [4, *(side for side in stages(c.size) for _ in range(2))]
        noise = [
            # natural and stylized pictures of a face have their own
            torch.randn(joined, 2, side, side, generator=generator, device=self.device)
            for side in sides
        ]
        share = self.team.share
        maps = [share(x).transpose(0, 1).flatten(0, 1)[:, None] for x in noise]
        one, two, at = (share(x).to(self.device) for x in (z[0], z[1], torch.from_numpy(slot)))
        return one, two, at, *maps

    def _codes(self, one: Tensor, two: Tensor, at: Tensor, codes: Tensor) -> Tensor:
        """W+ [2n, L, D]: natural faces, then the same faces in styles."""
        g, count = self._g, len(one)
        w = g.get_latent(torch.cat([one, two]))
        slots = torch.arange(g.n_latent, device=w.device)
        mixed = torch.where((slots < at[:, None])[..., None], w[:count, None], w[count:, None])
        index = torch.zeros(2 * count, dtype=torch.int64, device=w.device)
        index[:count] = g.n_latent
        return g.codes(mixed.repeat(2, 1, 1), codes.repeat(2, 1), index)

    def drawn(self) -> tuple[Tensor, ...]:
        """Style codes, and the draws of the faces that are painted for the discriminators."""
        b, c = self.batch, self.config
        source = np.random.default_rng([c.seed, self.steps, 1])
        places = torch.from_numpy(source.random(len(b.faces) * self.team.world))
        self._others = self.queue.get(self.team.share(places).to(self.device))
        if c.one_shot is None:  # else the one picture's code would meet itself as another's
            self.queue.put(self.team.gather(b.codes))
        return (b.codes, *self._draws(0, len(b.faces)))

    def paintings(
        self, codes: Tensor, one: Tensor, two: Tensor, at: Tensor, *noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Natural and stylized pictures of the same faces, without gradient, kept for the discriminators."""
        self._fakes = None
        with torch.no_grad():
            natural, stylized = self._g.render(self._codes(one, two, at, codes), noise).split(len(one))
            self._fakes = natural, stylized
            return natural.sum() + stylized.sum(), {}

    def _made(self) -> tuple[Tensor, Tensor]:
        assert self._fakes is not None, "the phase paintings comes first"
        return self._fakes

    def real_faces(self) -> tuple[Tensor, ...]:
        """Photos and natural paintings."""
        return self.batch.faces, self._made()[0]

    def judges_faces(self, faces: Tensor, natural: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of D_face (equation 6)."""
        return self._told("d_face", self._judged("D_face", faces, natural))

    def real_styles(self) -> tuple[Tensor, ...]:
        """Art and stylized paintings."""
        return self.batch.art, self._made()[1]

    def judges_styles(self, art: Tensor, stylized: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of D_style (equation 7)."""
        return self._told("d_style", self._judged("D_style", art, stylized))

    def _judged(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        sizes = [len(real), len(fake)]
        logits = self._judge(name)(torch.cat([real, fake]), sizes).split(sizes)
        return adversarial(logits[0], True) + adversarial(logits[1], False)

    @staticmethod
    def _told(name: str, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss, {name: loss.detach()}

    def real_codes(self) -> tuple[Tensor, ...]:
        """The pictures that go with style codes, others that do not, the codes, and codes of other pictures."""
        b, stylized = self.batch, self._made()[1]
        coded = stylized if self.config.latent_loss == "paper" else b.art
        return coded, stylized, b.codes, self._others

    def judges_codes(
        self, coded: Tensor, stylized: Tensor, codes: Tensor, others: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of D_latent (equation 8); its trunk sees each picture once, whatever codes it is judged with."""
        d = self._d_latent
        if self.config.latent_loss == "paper":
            found = d.summed(coded)
            loss = adversarial(d.score(found, codes), True) + adversarial(d.score(found, others), False)
        else:
            sizes = [len(coded), len(stylized)]
            found, painted = d.summed(torch.cat([coded, stylized]), sizes).split(sizes)
            wrong = adversarial(d.score(found, others), False) + adversarial(d.score(painted, codes), False)
            loss = adversarial(d.score(found, codes), True) + 0.5 * wrong
        return self._told("d_latent", loss)

    def penalises_faces(self, faces: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """R1 of D_face on photos."""
        return self._penalty("face", faces)

    def penalises_styles(self, art: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """R1 of D_style on art."""
        return self._penalty("style", art)

    def penalises_codes(self, coded: Tensor, _: Tensor, codes: Tensor, __: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """R1 of D_latent on the pictures that go with their style codes."""
        return self._penalty("latent", coded, codes)

    def _penalty(self, name: str, images: Tensor, codes: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """R1 of a discriminator, in float32: it squares gradients of second order."""
        c, net = self.config, self.nets[f"D_{name}"]
        images = images.detach().to(torch.promote_types(images.dtype, torch.float32)).requires_grad_()
        with without_autocast(images):  # and not through what torch.compile makes: it has no second order
            if codes is None:
                scores = net.forward(images)
            else:
                assert isinstance(net, ProjectionDiscriminator)
                scores = net.score(type(net).summed(net, images), codes)
            loss = r1_penalty(scores, images) * (c.r1 / 2 * c.r1_every)
        return self._told(f"r1_{name}", loss)

    def painted(self) -> tuple[Tensor, ...]:
        """Style codes, and the draws of new faces."""
        return (self.batch.codes, *self._draws(1, len(self.batch.faces)))

    def generator(
        self, codes: Tensor, one: Tensor, two: Tensor, at: Tensor, *noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of the generator, with the discriminators as they now are."""
        c, g = self.config, self._g
        natural, stylized = g.render(self._codes(one, two, at, codes), noise).split(len(one))
        parts = {
            "g_face": adversarial(self._judge("D_face")(natural), True),
            "g_style": adversarial(self._judge("D_style")(stylized), True),
        }
        loss = c.lambda_face * parts["g_face"] + c.lambda_style * parts["g_style"]
        if c.lambda_latent:
            parts["g_latent"] = adversarial(self._d_latent(stylized, codes), True)
            loss = loss + c.lambda_latent * parts["g_latent"]
        with torch.no_grad():
            alpha = 1 - g.face_share.mean()
            return_parts = {name: part.detach() for name, part in parts.items()}
            return_parts |= {"alpha": alpha, "norm": codes.norm(dim=1).mean()}
        return loss, return_parts

    def sampled(self) -> tuple[Tensor, ...]:
        """The same for path lengths, of a part of the batch, and their directions in the pictures."""
        count = max(1, len(self.batch.faces) // self.config.path_shrink)
        c = self.config
        source = np.random.default_rng([c.seed, self.steps, 9])
        generator = torch.Generator(self.device).manual_seed(int(source.integers(2**62)))
        joined = torch.randn(count * self.team.world, 2, 3, c.size, c.size, generator=generator, device=self.device)
        directions = self.team.share(joined).transpose(0, 1).flatten(0, 1)
        codes = self.batch.codes[:: c.path_shrink][:count]  # of a joined batch's these are those of its parts
        return (codes, directions, *self._draws(2, count))

    def lengths(
        self, codes: Tensor, directions: Tensor, one: Tensor, two: Tensor, at: Tensor, *noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How far natural and stylized pictures move with their blended codes, kept with their graph."""
        g = self._g
        self._lengths = None  # a step that was skipped has left its graph
        w = self._codes(one, two, at, codes)
        with without_autocast(w):
            images = type(g).render(g, w, noise)  # not what torch.compile makes: it has no second order
            self._lengths = path_lengths(images, w, directions)
        with torch.no_grad():
            return self._lengths.sum(), {}

    def gathered(self) -> tuple[Tensor, ...]:
        """The lengths of all processes, without gradient, [world, 2, n]."""
        assert self._lengths is not None, "the phase path lengths comes first"
        return (self.team.gather(self._lengths.detach()[None]).unflatten(1, (2, -1)),)

    def path_penalty(self, everyone: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Path length regularisation of natural and stylized pictures, each with its own mean length.

        Its gradient is that to this process's own lengths, of the penalty on all; the processes' is averaged.
        """
        assert self._lengths is not None
        c, world = self.config, self.team.world
        mine, parts = self._lengths.unflatten(0, (2, -1)), {}
        for k, name in enumerate(("face", "style")):
            rows = [mine[k] if rank == self.team.rank else everyone[rank, k] for rank in range(world)]
            parts[f"path_{name}"] = self.paths[name](torch.cat(rows)) * (c.path_length * c.path_every)
        loss = torch.stack(list(parts.values())).sum()
        return loss + (world - 1) * (loss - loss.detach()), {name: part.detach() for name, part in parts.items()}

    def row(self, images: int) -> dict[str, Any]:
        """Step and learning rate."""
        return {"step": images // self.config.batch, "lr": self.config.lr}

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""
        words = "  ".join(
            f"{name} {means[f'd_{name}']:.2f}/{means.get(f'g_{name}', math.nan):.2f}"
            for name in ("face", "style", "latent")
            if f"d_{name}" in means
        )
        return f"D/G {words}" if "g_face" in means else f"D/G {words}  G waits"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def sheet(self) -> Image.Image:
        """Faces, natural and in the styles of pictures by several indicators; and every style on two faces."""
        if self.shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        photos, art, codes = (x.to(self.device) for x in self.shown)
        g = self._g if self.ema is None else self.ema.nets["G"]
        assert isinstance(g, Generator)
        count = SHOWN[self.device.type]
        source = torch.Generator().manual_seed(self.config.seed % 2**32)
        z = torch.randn(count, self.config.style_dim, generator=source).to(self.device)
        w = g.get_latent(z)
        places = torch.arange(count, device=self.device) % len(art)
        paint = partial(_painted, g)
        rows = [
            ("photos", photos[torch.arange(count, device=self.device) % len(photos)]),
            ("styles", art[places]),
            ("natural faces", paint(w)),
            *((f"in styles, {i}", paint(w, codes[places], i)) for i in (8, INDEX, 4, 0) if i < g.n_latent),
            ("the first face", paint(w[:1].expand(count, -1), codes[places], 0)),
            ("in random styles", paint(w, torch.randn(z.shape, generator=source).to(self.device), 0)),
        ]
        caption = f"averaged weights, decay {self.config.ema:g} a step" if self.ema else ""
        return sheet([Block("", rows)], caption=caption, tile=128 if self.config.size > 128 else 0, beside=False)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, the queue and the mean path lengths."""
        return {
            "stage": self.stage,
            **stored(self.nets, self.optimizers),
            "queue": self.queue.state_dict(),
            "paths": {name: path.state_dict() for name, path in self.paths.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)
        self.queue.load_state_dict(state["queue"])
        for name, path in self.paths.items():
            path.load_state_dict(state["paths"][name])

    def summary(self) -> list[str]:
        """For the first lines of the stage."""
        c = self.config
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in self.nets.items()}
        start = f"; {'; '.join(self.taken)}" if self.taken else ""
        penalty = f"R1 {c.r1:g} every {c.r1_every} steps" if c.r1 else "no gradient penalty"
        length = f"path length {c.path_length:g} every {c.path_every}" if c.path_length else "no path length penalty"
        where = "a table" if self.encoder is None else "the encoder"
        waits = f"; the generator waits for {c.warm_up} steps" if c.warm_up else ""
        return [
            "gan: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()) + f" parameters{start}",
            f"losses: face {c.lambda_face:g}, style {c.lambda_style:g}, style code {c.lambda_latent:g} "
            f"({c.latent_loss}); {penalty}; {length}; mixing {c.mixing:g}",
            f"style codes from {where}, {len(self.queue.codes)} in the queue; Adam, lr {c.lr:g}, batch "
            f"{c.batch}{waits}",
        ]


def _painted(g: Generator, w: Tensor, codes: Tensor | None = None, index: int | None = None) -> Tensor:
    """Pictures, a few at a time, with the generator's own noise maps."""
    found = []
    for start in range(0, len(w), 4):
        part = w[start : start + 4]
        style = None if codes is None else codes[start : start + 4]
        found.append(g.render(g.codes(part, style, index), randomize_noise=False).float())
    return torch.cat(found)


def _adam(nets: Sequence[nn.Module], lr: float, lazy: float) -> torch.optim.Adam:
    """Adam whose rate and decay are corrected for `lazy` of its steps being those of the main loss."""
    parameters = [parameter for net in nets for parameter in net.parameters()]
    return torch.optim.Adam(parameters, lr=lr * lazy, betas=(0.0, 0.99**lazy), fused=True)


def summary(system: Any, data: Any, plan: Plan) -> list[str]:
    """What is trained on what, for the first lines of a stage."""
    lines: list[str] = system.summary()
    counts = getattr(data, "counts", None) or (len(data.pictures),)
    names = (" of faces", " of art") if len(counts) == 2 else ("",)
    held = ", ".join(f"{counted(count)}{name}" for count, name in zip(counts, names, strict=True))
    return [*lines, f"data: {held}", f"{plan.total} images, {plan.total // plan.batch} steps of {plan.batch}"]

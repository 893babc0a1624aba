"""Translating, repainting and embedding pictures with a trained Twin-GAN."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from anifast.data.folders import read_image, resize, to_float, to_tensor
from anifast.data.tags import TagList
from anifast.engine.config import check_options
from anifast.engine.precision import PRECISIONS, autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.nn.stylegan2_layers import lay_out
from anifast.systems.styles import check_seed
from anifast.systems.twingan import checkpoints
from anifast.systems.twingan.config import DOMAINS, LETTERS, REMEMBERING, WORDS, Config, domain_of, sides
from anifast.systems.twingan.networks import (
    Discriminator,
    Encoder,
    Generator,
    Latent,
    Norms,
    Statistics,
    normalised_by,
)
from anifast.systems.twingan.pictures import preprocess

#: What norms normalise by: what training remembers, the batch's own statistics, or those of `Model.recalibrate`.
NORM_MODES = ("running", "batch", "recalibrated")
#: The buffers that `Model.recalibrate` fills, and training where its settings ask for it.
_RECALIBRATED = ("norms.recalibrated_mean", "norms.recalibrated_var")


class Model:
    """The networks of a checkpoint; each is built when it is first asked for.

    Args:
        state: a loaded checkpoint of any kind that `checkpoints.recognises` accepts.
        device: where to compute.
        precision: "fp32", or "bf16" for faster convolutions where the machine has them.
        norm_mode: what the norms normalise by: "running", what training remembers; "batch", the statistics of the
            pictures that are given at once, so that a result depends on the others; or "recalibrated", those of
            deployment alone; None: the last where the file has them, else the first.
        pixel_norm: of the author's files, which do not tell: whether the networks have it; None: as he trained them.

    Raises:
        AnifastError: there is no such precision or norm_mode, or norm_mode asks for statistics of norms without such.
        CheckpointError: the file holds another architecture, or has not been recalibrated.
    """

    #: The domains there are by their letters, the default first.
    targets = ("B", "A")
    #: How pictures that are not square become so where nothing else is asked for: as in training.
    resize = "stretch"

    def __init__(
        self,
        state: Mapping[str, Any],
        device: torch.device,
        precision: str = "fp32",
        norm_mode: str | None = None,
        pixel_norm: bool | None = None,
    ) -> None:
        for name, value, known in (("precision", precision, PRECISIONS), ("norm_mode", norm_mode, (None, *NORM_MODES))):
            if value not in known:
                raise AnifastError(f"{name} {value!r}: there are {', '.join(filter(None, known))}")
        self._found = checkpoints.contents(state, pixel_norm=pixel_norm)
        if "pixel_norm" in self._found.undecided:
            warnings.warn(
                "the author's files do not tell whether the networks have pixel norm; taken as they are with it. Where "
                "results look wrong, convert the file by anifast convert --pixel-norm off",
                stacklevel=2,
            )
        self.config: Config = self._found.config
        if norm_mode in ("batch", "recalibrated") and self.config.norm not in REMEMBERING:
            raise AnifastError(
                f"norm_mode {norm_mode!r}: this model's norm, {self.config.norm}, takes no statistics over pictures; "
                "leave it out"
            )
        self.stage = self._found.stage
        #: Whether the weights are averages over the steps of a run.
        self.averaged = self._found.averaged
        #: Those of `targets` that it can paint; a frozen graph of the author's has one of them.
        self.held: tuple[str, ...] = self._found.targets
        self.device, self.precision = device, precision
        self.norm_mode = norm_mode or ("recalibrated" if self.recalibrated else "running")
        #: Those that the networks are told, or None.
        self.tags: TagList | None = None if self._found.tags is None else TagList.from_rows(self._found.tags)
        self._nets: dict[str, nn.Module] = {}
        if norm_mode == "recalibrated" and not self.recalibrated:
            raise CheckpointError(
                "its statistics have not been recalibrated; do so by anifast twingan recalibrate, or take those that "
                "training remembers (--norm-mode running)"
            )

    # --- what it is

    @property
    def size(self) -> int:
        """The side of pictures, the only one."""
        return sides(self.stage)[0]

    @property
    def multiple(self) -> int:
        """Sides of results must be multiples of this; here they are the size itself."""
        return self.size

    @property
    def dimensions(self) -> int:
        """Numbers of an embedding."""
        return self.config.channels(4) * 16

    @property
    def options(self) -> tuple[str, ...]:
        """What `painter` takes, which are options of `anifast translate`."""
        return ("seed",) if self.config.style else ()

    @property
    def recalibrated(self) -> bool:
        """Whether the file holds recalibrated statistics."""
        held = [self._found.nets.get(net, {}).get(key) for net in ("E", "G") for key in _RECALIBRATED]
        return all(value is not None and not bool(value.isnan().any()) for value in held)

    @property
    def hash(self) -> str:
        """By what embeddings are known to be this model's: a digest of the encoder and of the statistics it uses."""
        weights = {
            key: value
            for key, value in self._found.nets.get("E", {}).items()
            if not key.startswith("norms.recalibrated")
        }
        nets = {"E": weights} if weights else {}
        found = checkpoints.hash_of(dataclasses.replace(self._found, nets=nets))
        if self.norm_mode == "running":
            return found
        digest = hashlib.sha256(f"{found} {self.norm_mode}".encode())
        if self.norm_mode == "recalibrated":
            state = self.net("E").state_dict()
            for key in _RECALIBRATED:
                digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def require(self, to: str) -> None:
        """Check that there is a domain `to` and what paints in it.

        Raises:
            AnifastError: no such domain.
            CheckpointError: the file has no encoder or no generator, or is of the other direction alone.
        """
        domain = domain_of(to)
        for name in ("E", "G"):
            self._require(name)
        self._check_held(domain)

    def require_encoder(self, domain: str) -> None:
        """Check that there is a domain `domain` and what encodes its pictures.

        Raises:
            AnifastError: no such domain.
            CheckpointError: the file has no encoder, or has the norms of the other domain's alone.
        """
        own = domain_of(domain)
        self._require("E")
        self._check_held(1 - own)

    def _check_held(self, to: int) -> None:
        """That translations to a domain, and so the other's encoder and its own generator, are there."""
        if LETTERS[to] not in self.held:
            here, there = (f"{WORDS[one]} ({DOMAINS[one]}, {LETTERS[one]})" for one in (1 - to, to))
            raise CheckpointError(
                f"this model takes pictures of the {there} and paints the {here} only, as frozen graphs do; the other "
                "direction is in the checkpoint that the graph was made of"
            )

    def _require(self, name: str) -> None:
        if name not in self._found.nets:
            what = {"E_style": "no encoder of styles", "D_t": "no discriminator of the target, which recognises tags"}
            raise CheckpointError(f"this file has {what.get(name, f'no network {name}')}")

    def net(self, name: str) -> nn.Module:
        """A network for evaluation, on the device: E, G, D_t, ...

        Raises:
            CheckpointError: the file has none.
        """
        if name not in self._nets:
            self._require(name)
            net = checkpoints.build(self._found, name)[name].to(self.device).requires_grad_(False)
            lay_out(net)
            if isinstance(net, Generator):
                net.freeze()
            norms = getattr(net, "norms", None)
            if isinstance(norms, Norms) and norms.remembers:
                norms.source = self.norm_mode
            self._nets[name] = net
        return self._nets[name]

    # --- pictures

    def reader(self, how: str = "stretch") -> Callable[[Path], Tensor]:
        """A function that reads a picture of any size as `translate` takes it, 3,size,size, scaled as in training.

        Args:
            how: pictures that are not square become so by "crop" or "stretch".
        """
        return lambda path: self.prepared(read_image(path), how)

    def prepared(self, image: Image.Image, how: str = "stretch") -> Tensor:
        """A picture of mode RGB as `translate` takes it, 3,size,size in [-1, 1], scaled as in training."""
        if self.config.resize != "tf1":
            return to_float(to_tensor(resize(image, self.size, how)))
        if how == "crop":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        return preprocess(to_tensor(image)[None], self.size, "tf1")[0].mul(2).sub(1)

    def _given(self, images: Tensor) -> Tensor:
        """Images as the networks take them: [0, 1], at the model's size, on its device."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected N,3,H,W, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        x = images.to(self.device, torch.float32).add(1).div(2)
        if len(x) and x.shape[2:] != (self.size, self.size):
            x = preprocess(x, self.size, self.config.resize)
        return x

    # --- networks

    @torch.no_grad()
    def encode(self, images: Tensor, domain: str, *, painted: bool = False) -> Latent:
        """What the encoder makes of pictures.

        Args:
            images: N,3,size,size in [0, 1], float, N at least 1.
            domain: of the pictures: s, t, source, target, A or B.
            painted: whether they are painted, which have recalibrated statistics of their own, or training's.

        Raises:
            AnifastError: no such domain.
            CheckpointError: the file has no encoder, or none of this domain.
        """
        self.require_encoder(domain)
        net = cast(Encoder, self.net("E"))
        with autocast(self.device, self.precision):
            x = images.to(self.device).contiguous(memory_format=torch.channels_last)
            found: Latent = net(x, (domain_of(domain),), self._found.alpha, deployed=not painted)
        return found

    @torch.no_grad()
    def paint(
        self,
        latent: Latent,
        domain: str,
        *,
        tags: Tensor | None = None,
        style: Tensor | int | None = None,
        same: bool = False,
    ) -> Tensor:
        """Paint what was encoded.

        Args:
            latent: from `encode`, of N pictures.
            domain: to paint in.
            tags: see `translate`.
            style: see `translate`.
            same: whether this is the pictures' own domain, which has recalibrated statistics of its own, or training's.

        Returns:
            N,3,size,size, about in [0, 1] but not cut to it, float32 on the model's device.

        Raises:
            AnifastError: no such domain, or a condition that this model does not follow.
            CheckpointError: the file has no generator, or none of this domain.
        """
        to, net = domain_of(domain), cast(Generator, self.net("G"))
        self._check_held(to)
        follows = self._condition(len(latent.z), to, tags, style)
        with autocast(self.device, self.precision):
            painted, _ = net(latent.z, latent.skips, (to,), self._found.alpha, follows, deployed=not same)
        return painted.float()

    def _condition(self, count: int, to: int, tags: Tensor | None, style: Tensor | int | None) -> Tensor | None:
        """What the generator's norms follow, [count, dimensions], or None."""
        if tags is not None:
            self.require_tags()
            if not to:
                raise AnifastError("tags: they are of pictures of the target, and the source has none")
        if style is not None and not self.config.style:
            raise AnifastError("style: this model embeds no styles (it was trained with setting style 0)")
        found = tags
        if self.config.style:
            found = self.random_styles(1, 0 if style is None else style) if not isinstance(style, Tensor) else style
        if found is None:
            return None
        width = len(self.tags.names) if self.tags is not None else self.config.style
        found = found[None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != width or len(found) not in (1, count):
            name = "style" if self.config.style else "tags"
            raise ValueError(f"{name}: expected [{count} or 1, {width}], got {list(found.shape)}")
        return found.to(self.device, torch.float32).expand(count, -1)

    def require_tags(self) -> TagList:
        """The tags that this model is told.

        Raises:
            AnifastError: it is told none.
        """
        if self.tags is None:
            raise AnifastError("tags: this model follows none (it was trained without --tags)")
        return self.tags

    # --- what people ask for

    @torch.no_grad()
    def translate(
        self, images: Tensor, to: str = "B", *, tags: Tensor | None = None, style: Tensor | int | None = None
    ) -> Tensor:
        """Translate pictures of the other domain to `to`.

        Args:
            images: N,3,H,W in [-1, 1], float, any N and size (they are stretched to the model's), on any device.
            to: the domain wanted: "B" or "A"; t, s, target and source are the same.
            tags: for a model that follows tags, scores [N or 1, tags]; only for pictures of the target. None: none.
            style: for a model that embeds styles, [N or 1, style], or the seed of a random one for all pictures; None:
                that of seed 0.

        Returns:
            N,3,size,size in [-1, 1] of the type and on the device of `images`; NaN where something is not finite; no
            gradient.

        Raises:
            ValueError: wrong shapes or types.
            AnifastError: no such domain, or a condition that this model does not follow.
            CheckpointError: a network that is needed is missing.
        """
        self.require(to)
        domain = domain_of(to)
        return self._result(images, 1 - domain, domain, tags, style)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, domain: str, *, tags: Tensor | None = None, style: Tensor | int | None = None
    ) -> Tensor:
        """Paint pictures again in their own domain.

        Args:
            images: see `translate`.
            domain: of the pictures.
            tags: see `translate`.
            style: see `translate`; None: each picture's own.

        Returns:
            See `translate`.

        Raises:
            As `translate`.
        """
        own = domain_of(domain)
        if style is None and self.config.style and len(images):
            style = self.styles_of(images, domain)
        return self._result(images, own, own, tags, style)

    def _result(self, images: Tensor, domain: int, to: int, tags: Tensor | None, style: Tensor | int | None) -> Tensor:
        x = self._given(images)
        if not len(x):
            return images.new_empty(0, 3, self.size, self.size)
        latent = self.encode(x, LETTERS[domain])
        painted = self.paint(latent, LETTERS[to], tags=tags, style=style, same=domain == to)
        # cut to 1 an infinity would look like a colour
        painted = painted.masked_fill(painted.isinf(), math.nan).mul(2).sub(1).clamp(-1.0, 1.0)
        return painted.to(images.device, images.dtype).contiguous()

    @torch.no_grad()
    def embed(self, images: Tensor, domain: str) -> Tensor:
        """Where pictures lie among those of both domains: the latent of their own domain's encoder, of length 1.

        Args:
            images: see `translate`.
            domain: of the pictures.

        Returns:
            [N, `dimensions`], the 4x4 map flattened in the order channel, row, column; float32 on the device of
            `images`. The distance of two is 1 minus their product.

        Raises:
            ValueError: wrong shape or type.
            AnifastError: no such domain.
            CheckpointError: the file has no encoder.
        """
        domain_of(domain)
        x = self._given(images)
        if not len(x):
            return torch.empty(0, self.dimensions, device=images.device)
        return of_length_1(self.encode(x, domain).z).to(images.device)

    @torch.no_grad()
    def styles_of(self, images: Tensor, domain: str) -> Tensor:
        """The styles of pictures, for a model that embeds them.

        Args:
            images: see `translate`.
            domain: of the pictures.

        Returns:
            [N, style], float32 on the model's device.

        Raises:
            As `embed`; AnifastError: the model embeds no styles.
        """
        if not self.config.style:
            raise AnifastError("style: this model embeds no styles (it was trained with setting style 0)")
        own, x = domain_of(domain), self._given(images)
        if not len(x):
            return torch.empty(0, self.config.style, device=self.device)
        net = cast(Encoder, self.net("E_style"))
        with autocast(self.device, self.precision):
            found: Tensor = net(x, (own,), self._found.alpha).z
        return found.float()

    def random_styles(self, count: int = 1, seed: int = 0) -> Tensor:
        """Styles from N(0, I), always the same for a seed, [count, style], float32 on the CPU.

        Raises:
            AnifastError: the model embeds no styles.
        """
        if not self.config.style:
            raise AnifastError("style: this model embeds no styles (it was trained with setting style 0)")
        source = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.config.style, generator=source)

    @torch.no_grad()
    def recognise(self, images: Tensor) -> Tensor:
        """The tags that the target's discriminator recognises in pictures of the target.

        Args:
            images: see `translate`.

        Returns:
            Scores in [0, 1], [N, tags], float32 on the device of `images`. Each picture is looked at by itself.

        Raises:
            ValueError: wrong shape or type.
            AnifastError: the model follows no tags.
            CheckpointError: the file has no discriminator of the target.
        """
        count, x = len(self.require_tags().names), self._given(images)
        if not len(x):
            return torch.empty(0, count, device=images.device)
        net = cast(Discriminator, self.net("D_t"))
        with autocast(self.device, self.precision):
            found = net(x, len(x), self._found.alpha, torch.zeros(len(x), count, device=self.device))
        assert found.tags is not None
        return found.tags.float().sigmoid().to(images.device)

    def painter(self, to: str = "B", *, seed: int | None = None, how: str = "stretch", batch: int = 8) -> Painter:
        """What `anifast translate` runs with a model that embeds styles: all pictures in one random style.

        Args:
            to: the domain wanted.
            seed: of the style; None: 0.
            how: pictures that are not square become so by "crop" or "stretch".
            batch: not used: painters of all systems are told, as some paint a picture several times, and here each is
                painted once, in the batch that it comes in.

        Raises:
            AnifastError: a number that cannot be.
        """
        check_seed(seed)
        return Painter(self, to, style=self.random_styles(1, seed or 0), about=f"style of seed {seed or 0}", how=how)

    # --- statistics

    @torch.no_grad()
    def recalibrate(
        self,
        source: Iterable[Tensor],
        target: Iterable[Tensor],
        *,
        tags: Tensor | None = None,
        seed: int = 0,
        on_batch: Callable[[], object] = lambda: None,
    ) -> int:
        """Take the statistics of norms anew, of pictures on the very way that translation takes: E_s, G_t and E_t, G_s.

        What training remembers mixes two kinds of pictures for each domain: real and painted ones in the encoder,
        repainted and translated ones in the generator. The new statistics are mean and variance of all pictures
        together, taken batch by batch while each batch is normalised by its own. They serve the norm_mode
        "recalibrated", and `recalibrated_state` puts them into a checkpoint.

        Args:
            source: batches N,3,H,W of pictures as `translate` takes them.
            target: the same of the target.
            tags: for a model that follows tags, scores [any, tags] of pictures, which translations are painted with in
                turn; None: without.
            seed: of the styles that translations are painted in, for a model that embeds them.
            on_batch: is called after each batch.

        Returns:
            How many pictures there were.

        Raises:
            ValueError: there is no batch, or one of a wrong shape or type.
            AnifastError: the norms remember nothing, or what they find is not finite.
            CheckpointError: a network that is needed is missing.
        """
        for to in self.targets:
            self.require(to)
        names = ("E", "G", "E_style") if self.config.style else ("E", "G")
        nets = {name: self.net(name) for name in names}
        norms = {name: cast(Norms, net.norms) for name, net in nets.items()}
        if not norms["E"].remembers:
            raise AnifastError(f"norm {self.config.norm}: remembers no statistics, so there is nothing to recalibrate")
        drawn = torch.Generator().manual_seed(seed)
        moments = {(name, domain): _Moments() for name in names for domain in (0, 1)}
        seen = 0
        with normalised_by(norms.values(), "batch"):
            for domain, batches in ((0, source), (1, target)):
                for images in batches:
                    x = self._given(images)
                    if not len(x):
                        continue
                    follows: Tensor | None = None
                    if self.config.style:
                        follows = torch.randn(len(x), self.config.style, generator=drawn).to(self.device)
                    elif tags is not None and domain == 0:
                        rows = torch.arange(seen, seen + len(x)) % len(tags)
                        follows = tags[rows.to(tags.device)].to(self.device, torch.float32)
                    with autocast(self.device, self.precision):
                        latent: Latent = nets["E"](x, (domain,), self._found.alpha)
                        _, found = nets["G"](latent.z, latent.skips, (1 - domain,), self._found.alpha, follows)
                        if "E_style" in nets:
                            style: Latent = nets["E_style"](x, (domain,), self._found.alpha)
                            moments["E_style", domain].add(style.found, norms["E_style"].eps, len(x))
                    moments["E", domain].add(latent.found, norms["E"].eps, len(x))
                    moments["G", 1 - domain].add(found, norms["G"].eps, len(x))
                    seen += len(x)
                    on_batch()
        if any(one.count == 0 for one in moments.values()):
            raise ValueError("source and target: expected at least one batch of each")
        for (name, _), one in moments.items():
            if not bool(torch.isfinite(one.mean).all() and torch.isfinite(one.variance).all()):
                raise AnifastError(f"the statistics of {name} are not finite (NaN); its weights may be damaged")
        for name, kept in norms.items():  # tensors of their own: what is there is the loaded checkpoint's
            means = [moments[name, domain].mean for domain in (0, 1)]
            variances = [moments[name, domain].variance for domain in (0, 1)]
            kept.recalibrated_mean = torch.stack(means).to(kept.recalibrated_mean)
            kept.recalibrated_var = torch.stack(variances).to(kept.recalibrated_var)
        return seen

    def drift(self, name: str) -> tuple[float, float]:
        """How far recalibrated statistics of a network are from those of training, averaged over all channels.

        Returns:
            The difference of means in standard deviations, and that of the standard deviations as a part of them.
        """
        norms = cast(Norms, self.net(name).norms)
        std = (norms.running_var + norms.eps).sqrt()
        moved = ((norms.recalibrated_mean - norms.running_mean).abs() / std).mean()
        wider = ((norms.recalibrated_var + norms.eps).sqrt() / std - 1).abs().mean()
        return float(moved), float(wider)

    def recalibrated_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint with the statistics that `recalibrate` has taken beside those that it had.

        Args:
            state: the loaded checkpoint that this model was made of.

        Returns:
            The same as an own checkpoint, whole: a run can go on from it.
        """
        if "format" in state:
            found = dict(state)
            parts = ("ema", "nets") if self.averaged else ("nets",)
        else:
            nets = {name: dict(weights) for name, weights in self._found.nets.items()}
            found = {**checkpoints.header(self.config), "stage": self.stage, "alpha": self._found.alpha, "nets": nets}
            parts = ("nets",)
        for name, net in self._nets.items():
            kept = net.state_dict()
            new = {key: kept[key].detach().cpu().clone() for key in _RECALIBRATED if key in kept}
            part = next((part for part in parts if name in found.get(part, {})), None)
            if new and part is not None:
                found[part] = {**found[part], name: {**found[part][name], **new}}
        return found


def of_length_1(z: Tensor) -> Tensor:
    """Latents N,C,4,4 as embeddings: [N, 16 C] in the order channel, row, column, each of length 1, float32."""
    return F.normalize(z.float().flatten(1), dim=1)


class _Moments:
    """Mean and variance of all pictures of several batches together, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.variance = torch.zeros(())

    def add(self, found: Statistics, eps: float, count: int) -> None:
        """Take in the statistics of a pass over `count` pictures of one domain."""
        mean = found.mean[0].double()
        variance = found.std[0].double().square() - eps
        share = count / (self.count + count)
        apart = mean - self.mean.to(mean)
        # the variance of two sets together: that within them, and that of their means
        within = torch.lerp(self.variance.to(mean).expand_as(variance), variance, share)
        self.variance = (within + share * (1 - share) * apart.square()).clamp_min(0)
        self.mean = self.mean.to(mean) + share * apart
        self.count += count


class Filled:
    """Fills up small batches, so that each picture is normalised by the statistics of equally many (norm_mode "batch").

    A batch that is smaller than asked for, as the last one may be, is painted together with pictures of those before.

    Args:
        paint: N,3,H,W -> the same, for any N.
        batch: pictures that belong together.
    """

    def __init__(self, paint: Callable[[Tensor], Tensor], batch: int) -> None:
        self.paint, self.batch = paint, batch
        self._before: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """N,3,H,W -> the same, of these pictures alone."""
        together = images
        if self._before is not None and len(images) < self.batch:
            together = torch.cat([images, self._before[: self.batch - len(images)]])
        self._before = together
        return self.paint(together)[: len(images)]


class Painter:
    """Paints every picture under one condition.

    Args:
        model: paints.
        to: the domain wanted.
        tags: see `Model.translate`.
        style: see `Model.translate`.
        about: a few words on the condition.
        how: see `Model.reader`.
        pictures: that the condition was read from.
    """

    #: A picture has one result, which is called as the picture.
    labels = ("",)

    def __init__(
        self,
        model: Model,
        to: str,
        *,
        tags: Tensor | None = None,
        style: Tensor | None = None,
        about: str = "",
        how: str = "stretch",
        pictures: Iterable[Path] = (),
    ) -> None:
        self.model, self.to, self.tags, self.style, self.about = model, to, tags, style, about
        self.pictures = list(pictures)
        self.how = how
        #: Reads a picture as it is painted.
        self.read = model.reader(how)

    def prepared(self, image: Image.Image) -> Tensor:
        """A picture as it is painted, see `Model.prepared`."""
        return self.model.prepared(image, self.how)

    def __call__(self, images: Tensor) -> Tensor:
        """N,3,size,size in [-1, 1] -> the same."""
        return self.model.translate(images, self.to, tags=self.tags, style=self.style)

    def save(self, folder: Path) -> None:
        """Nothing: a seed says which style it is."""


def load(state: Mapping[str, Any], device: torch.device, **options: Any) -> Model:
    """The model in a loaded checkpoint.

    Raises:
        AnifastError: an option that this system does not have, or a value that it cannot take.
    """
    check_options("Twin-GAN", options, ("precision", "norm_mode", "pixel_norm"))
    return Model(state, device, **options)

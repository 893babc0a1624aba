"""Painting pictures in styles with a trained GANs N' Roses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from anifast.engine.config import check_options
from anifast.engine.precision import PRECISIONS, autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.gnr import checkpoints
from anifast.systems.gnr.config import STYLE_DIM
from anifast.systems.gnr.networks import Generator
from anifast.systems.gnr.styles import Painter, gather

#: Domain that is painted -> the generator that does it; its encoder reads the other domain.
_PAINTS = {"B": "G_A2B", "A": "G_B2A"}
#: Domain -> the other one.
OTHER = {"A": "B", "B": "A"}
#: Random styles whose mean in w truncation goes towards.
_MEAN_OF = 1000


class Translator:
    """The generators of a checkpoint, of both directions or of one; one is built when it is first asked for.

    With one generator alone everything works in its direction but reading styles from pictures (`styles_of`): the style
    of a picture of the domain that it paints is read by the other one's encoder.

    Args:
        state: a loaded checkpoint of any kind that `checkpoints.recognises` accepts.
        device: where to compute.
        precision: "fp32", or "bf16" for faster convolutions where the machine has them.

    Raises:
        AnifastError: there is no such precision.
        CheckpointError: the file holds another architecture.
    """

    #: The domains there are, the default first.
    targets = ("B", "A")
    #: What `painter` takes, which are options of `anifast translate`.
    options = ("style", "styles", "seed", "truncation")

    def __init__(self, state: Mapping[str, Any], device: torch.device, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise AnifastError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        self.config, self._weights = checkpoints.generators(state)
        #: Whether the weights are averages over the steps of a run.
        self.averaged = checkpoints.averaged(state)
        self.device, self.precision = device, precision
        #: Whether the file holds a generator for each direction; one that does not say its direction may serve both.
        self.both = len(self._weights) == 2 and self._weights["G_A2B"] is not self._weights["G_B2A"]
        #: Those that the file has a generator to.
        self.held = tuple(to for to in self.targets if _PAINTS[to] in self._weights)
        self._nets: dict[str, Generator] = {}
        self._means: dict[str, Tensor] = {}
        self._directions: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """The side of pictures, the only one: the encoder's last layers are made for it."""
        return self.config.size

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this; here they are the size itself."""
        return self.config.size

    @property
    def latent_dim(self) -> int:
        """Length of a style code."""
        return self.config.latent_dim

    def require(self, to: str) -> None:
        """Check that there is a generator to the domain `to`, "A" or "B".

        Raises:
            CheckpointError: the file has none.
        """
        if to not in self.held:
            raise CheckpointError(
                f"this model translates to {self.held[0]} only; {_PAINTS[to]}, which paints {to}, is in another file"
            )

    def require_styles(self, to: str) -> None:
        """Check that `styles_of` pictures of the domain `to` can be read, which takes the other direction's generator.

        Raises:
            CheckpointError: the file has one generator only.
        """
        if not self.both:
            raise CheckpointError(
                f"styles of pictures of {to} are read by the encoder of {_PAINTS[OTHER[to]]}, and this file holds one "
                "generator only; paint in random styles or saved codes, or take a file with both generators"
            )

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        to: str = "B",
        *,
        styles: Tensor | None = None,
        seed: int = 0,
        truncation: float = 1.0,
    ) -> Tensor:
        """Paint each image in one style.

        Args:
            images: N,3,size,size in [-1, 1], float, any N, on any device.
            to: the domain wanted, "A" or "B".
            styles: codes [N, latent_dim], one for each image, or [latent_dim] or [1, latent_dim] for all; None: image n
                gets number n of `random_styles`.
            seed: of random styles.
            truncation: see `latents`.

        Returns:
            N,3,size,size in [-1, 1] of the same type and on the same device as `images`; no gradient.

        Raises:
            ValueError: wrong shape, type, target or truncation.
            CheckpointError: the file has no generator of this direction.
        """
        self._check_images(images, to)
        codes = self.random_styles(len(images), seed) if styles is None else self._check_styles(styles)
        if len(codes) not in (1, len(images)):
            raise ValueError(
                f"styles: {len(codes)} codes for {len(images)} images; expected one for each, or one for all"
            )
        w = self.latents(codes, to, truncation)
        if not len(images):
            return images.detach().clone()
        painted = self.paint(self.contents(images, to), w.expand(len(images), -1), to)
        return painted.to(images.device, images.dtype)

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        """Style codes from N(0, I), always the same for a seed.

        Returns:
            [count, latent_dim], float32 on the CPU; the first k of a larger count are those of count k.

        Raises:
            ValueError: a negative count.
        """
        if count < 0:
            raise ValueError(f"count: {count} is negative")
        source = torch.Generator().manual_seed(seed)
        # one after the other: drawn at once, numbers would depend on how many they are
        drawn = [torch.randn(self.latent_dim, generator=source) for _ in range(count)]
        return torch.stack(drawn) if drawn else torch.empty(0, self.latent_dim)

    @torch.no_grad()
    def styles_of(self, images: Tensor, to: str = "B") -> Tensor:
        """Style codes of pictures of the domain `to`, to paint with.

        Args:
            images: N,3,size,size in [-1, 1], float, any N: pictures of `to`.
            to: the domain.

        Returns:
            [N, latent_dim], float32 on the device of `images`.

        Raises:
            ValueError: wrong shape, type or target.
            CheckpointError: the file lacks the encoder that reads them (`require_styles`).
        """
        self._check_images(images, to)
        self.require_styles(to)
        net = self._generator(OTHER[to])
        if not len(images):
            return torch.empty(0, self.latent_dim, device=images.device)
        with autocast(self.device, self.precision):
            codes = net.style_encode(images.to(self.device, torch.float32))
        return codes.float().to(images.device)

    @torch.no_grad()
    def contents(self, images: Tensor, to: str = "B") -> Tensor:
        """What pictures show, without their style, for `paint`.

        Args:
            images: N,3,size,size in [-1, 1], float, any N: pictures of the other domain than `to`.
            to: the domain that they are to be painted as.

        Returns:
            Maps [N, C, side, side] on the model's device.

        Raises:
            ValueError: wrong shape, type or target.
            CheckpointError: the file has no generator of this direction.
        """
        self._check_images(images, to)
        encoder = self._generator(to).encoder
        with autocast(self.device, self.precision):
            # `encode` without the style, which nobody asks for
            maps: Tensor = encoder.content(encoder.stem(images.to(self.device, torch.float32)))
        return maps

    @torch.no_grad()
    def latents(self, styles: Tensor, to: str = "B", truncation: float = 1.0) -> Tensor:
        """Style codes as the decoder takes them, in the space in which styles are mixed and edited.

        Args:
            styles: codes [S, latent_dim] or [latent_dim], float, any S.
            to: the domain that is painted.
            truncation: psi of mean + psi (w - mean): 1 leaves styles as they are, 0 makes all of them the mean style
                (`mean_latent`), between them they are tamer, above 1 they are exaggerated.

        Returns:
            w [S, 512], float32 on the model's device.

        Raises:
            ValueError: wrong shape, type or target, or a truncation that is negative or not finite.
            CheckpointError: the file has no generator of this direction.
        """
        if not (math.isfinite(truncation) and truncation >= 0):
            raise ValueError(f"truncation: {truncation} is not a number from 0")
        codes = self._check_styles(styles)
        w = self._generator(to).get_latent(codes.to(self.device, torch.float32))
        if truncation != 1.0:
            if to not in self._means:
                self._means[to] = self.mean_latent(to)
            w = torch.lerp(self._means[to], w, truncation)
        return w

    @torch.no_grad()
    def paint(self, content: Tensor, w: Tensor, to: str = "B") -> Tensor:
        """Paint each content in one style: the decoder, its result cut to [-1, 1]; infinities become NaN.

        Args:
            content: from `contents`, [N, C, side, side].
            w: from `latents`, [N, 512].
            to: the domain that is painted.

        Returns:
            N,3,size,size in [-1, 1], float32 on the model's device.

        Raises:
            ValueError: wrong shape or target, or another number of styles than of contents.
            CheckpointError: the file has no generator of this direction.
        """
        self._check_latents(w)
        if len(w) != len(content):
            raise ValueError(f"w: {len(w)} styles for {len(content)} contents; expected as many")
        net = self._generator(to)
        return self._painted(net, content.to(self.device), net.styles_of(w.to(self.device, torch.float32)))

    @torch.no_grad()
    def paint_all(self, content: Tensor, w: Tensor, to: str = "B", batch: int = 16) -> Iterator[Tensor]:
        """Paint every content in every style, `batch` pictures at once.

        Args:
            content: from `contents`, [N, C, side, side].
            w: from `latents`, [S, 512].
            to: the domain that is painted.
            batch: pictures at once.

        Yields:
            Up to batch,3,size,size as of `paint`: the first content in all styles, then the second, ...

        Raises:
            ValueError: wrong shape or target, or a batch below 1.
            CheckpointError: the file has no generator of this direction.
        """
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")
        self._check_latents(w)
        net = self._generator(to)
        rows = net.styles_of(w.to(self.device, torch.float32))
        content = content.to(self.device)
        pairs = torch.arange(len(content) * len(w), device=self.device)
        for part in pairs.split(batch) if len(pairs) else ():
            style = part % len(w)
            yield self._painted(net, content[part // len(w)], [row[style] for row in rows])

    @torch.no_grad()
    def paintings(self, images: Tensor, w: Tensor, to: str = "B", batch: int = 16) -> Iterator[Tensor]:
        """Paint every image in every style; `batch` images are encoded at once, each once, and as many are painted.

        Args:
            images: N,3,size,size in [-1, 1], float, any N, on any device.
            w: from `latents`, [S, 512], any S.
            to: the domain wanted, "A" or "B".
            batch: pictures at once.

        Yields:
            Up to batch,3,size,size as of `paint`: the first image in all styles, then the second, ...

        Raises:
            ValueError: wrong shape, type or target, or a batch below 1.
            CheckpointError: the file has no generator of this direction.
        """
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")
        self._check_images(images, to)
        for part in images.split(batch) if len(images) else ():
            yield from self.paint_all(self.contents(part, to), w, to, batch)

    @torch.no_grad()
    def grid(self, images: Tensor, styles: Tensor, to: str = "B", truncation: float = 1.0, batch: int = 16) -> Tensor:
        """Paint every image in every style. Each image is encoded once.

        Args:
            images: N,3,size,size in [-1, 1], float, any N, on any device.
            styles: codes [S, latent_dim] or [latent_dim], any S.
            to: the domain wanted, "A" or "B".
            truncation: see `latents`.
            batch: pictures to encode or paint at once.

        Returns:
            N,S,3,size,size in [-1, 1] of the same type and on the same device as `images`; no gradient.

        Raises:
            ValueError: wrong shape, type, target, truncation or batch.
            CheckpointError: the file has no generator of this direction.
        """
        self._check_images(images, to)
        w = self.latents(styles, to, truncation)
        out = images.new_empty(len(images) * len(w), *images.shape[1:])
        done = 0
        for painted in self.paintings(images, w, to, batch):
            out[done : done + len(painted)] = painted
            done += len(painted)
        return out.unflatten(0, (len(images), len(w)))

    @torch.no_grad()
    def mean_latent(self, to: str = "B", count: int = _MEAN_OF, seed: int = 0) -> Tensor:
        """The mean of w over `count` random styles, [1, 512], float32 on the model's device.

        Raises:
            ValueError: wrong target, or a count below 1.
            CheckpointError: the file has no generator of this direction.
        """
        if count < 1:
            raise ValueError(f"count: {count} is below 1")
        return self.latents(self.random_styles(count, seed), to).mean(0, keepdim=True)

    @torch.no_grad()
    def directions(self, to: str = "B", count: int | None = None) -> Tensor:
        """Directions in w that change the painting most, those of the greatest change first.

        The closed form of SeFA (Shen and Zhou 2021): unit vectors n for which |A n| is largest, eigenvectors of A^T A,
        where A holds the affine layers of the whole decoder one below the other, without those of to_rgbs, which only
        colour (the authors leave to_rgb1 in). A vector points to where its largest entry is positive.

        Args:
            to: the domain that is painted.
            count: of directions; None: all.

        Returns:
            [count, 512], orthonormal, float32 on the model's device.

        Raises:
            ValueError: wrong target, or there are not as many.
            CheckpointError: the file has no generator of this direction.
        """
        net = self._generator(to)
        if to not in self._directions:
            layers = [
                module.weight
                for name, module in net.named_modules()
                if name.endswith(".modulation") and not name.startswith("to_rgbs.")
            ]
            matrix = torch.cat(layers).double().cpu()  # in float64 squaring costs none of the weights' digits
            found = torch.linalg.eigh(matrix.t() @ matrix).eigenvectors.t().flip(0)[: len(matrix)]
            largest = found.gather(1, found.abs().argmax(1, keepdim=True))
            self._directions[to] = (found * largest.sign()).float().to(self.device)
        held = self._directions[to]
        if count is not None and not 1 <= count <= len(held):
            raise ValueError(f"count: {count} directions, and there are 1 to {len(held)}")
        return held[:count].clone()

    def painter(
        self,
        to: str = "B",
        *,
        style: list[str] | None = None,
        styles: int | None = None,
        seed: int | None = None,
        truncation: float | None = None,
        how: str = "crop",
        batch: int = 8,
    ) -> Painter:
        """What `anifast translate` runs: it paints pictures in one style or several, the same for all of them.

        Args:
            to: the domain wanted.
            style: sources of styles, see `styles.gather`.
            styles: how many random styles.
            seed: of random styles.
            truncation: see `latents`.
            how: pictures that are not square become so by "crop" or "stretch".
            batch: pictures at once.

        Raises:
            AnifastError: a source that cannot be read, or a number that cannot be.
            CheckpointError: the file has no generator of this direction, or not the encoder for reference pictures.
        """
        self.require(to)
        found = gather(self, style or (), to=to, count=styles, seed=seed, how=how, batch=batch)
        return Painter(self, found, to, truncation, batch)

    def _generator(self, to: str) -> Generator:
        self._check_target(to)
        self.require(to)
        name = _PAINTS[to]
        if name not in self._nets:
            net = cast(Generator, checkpoints.build(name, self.config))
            net.load_state_dict(self._weights[name], assign=True)
            self._nets[name] = net.to(self.device, torch.float32).eval().requires_grad_(False)
        return self._nets[name]

    def _painted(self, net: Generator, content: Tensor, rows: list[Tensor]) -> Tensor:
        with autocast(self.device, self.precision):
            result = net.paint(content, rows).float()
        # cut to 1 an infinity would look like a colour
        return result.masked_fill(result.isinf(), math.nan).clamp(-1.0, 1.0).contiguous()

    def _check_target(self, to: str) -> None:
        if to not in self.targets:
            raise ValueError(f"to: {to!r} is not one of A, B")

    def _check_images(self, images: Tensor, to: str) -> None:
        self._check_target(to)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected N,3,{self.size},{self.size}, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        if tuple(images.shape[2:]) != (self.size, self.size):
            height, width = images.shape[2:]
            raise ValueError(
                f"images: this model takes {self.size}x{self.size} pixels only, got {height}x{width}; resize them"
            )

    def _check_styles(self, styles: Tensor) -> Tensor:
        """Codes as [S, latent_dim]."""
        codes = styles[None] if styles.ndim == 1 else styles
        if codes.ndim != 2 or codes.shape[1] != self.latent_dim:
            raise ValueError(
                f"styles: expected codes [N, {self.latent_dim}] or [{self.latent_dim}], got {list(styles.shape)}"
            )
        if not codes.is_floating_point():
            raise ValueError(f"styles: expected floats, got {styles.dtype}")
        return codes

    def _check_latents(self, w: Tensor) -> None:
        if w.ndim != 2 or w.shape[1] != STYLE_DIM:
            raise ValueError(f"w: expected [N, {STYLE_DIM}], got {list(w.shape)}")


def load(state: Mapping[str, Any], device: torch.device, **options: Any) -> Translator:
    """The model in a loaded checkpoint.

    Raises:
        AnifastError: an option that this system does not have, or a value that it cannot take.
    """
    check_options("GANs N' Roses", options, ("precision",))
    return Translator(state, device, **options)

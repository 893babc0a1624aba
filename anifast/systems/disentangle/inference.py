"""Painting with a trained disentangling network: what pictures show, in the styles of artists."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from anifast.data.folders import MODES, printable, read_image, resize, to_tensor
from anifast.engine.config import check_options
from anifast.engine.precision import PRECISIONS, autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.disentangle import checkpoints, codes
from anifast.systems.disentangle.augmentation import alpha_mask, prepare
from anifast.systems.disentangle.config import Config
from anifast.systems.disentangle.losses import pixel_weights, reconstruction
from anifast.systems.disentangle.networks import Encoder, StyleBank
from anifast.systems.disentangle.styles import Painter, gather
from anifast.systems.styles import RANDOM

#: How the style of one picture or of several is given: an artist's name or number, one for each picture, or codes.
Artist: TypeAlias = "str | int | Sequence[str | int] | Tensor | None"
#: Colour modes by channels.
_MODE = {channels: mode for mode, channels in MODES.items()}
#: Names that are listed where a name is unknown.
_LISTED = 5


class Model:
    """Encoder, generator and styles of a checkpoint. Of a run of both stages it is stage 2's generator that paints.

    A plain VAE has no styles: codes of styles then have no numbers, and what it paints is a reconstruction.

    Args:
        state: a loaded checkpoint of any kind that `checkpoints.recognises` accepts.
        device: where to compute.
        precision: "fp32", or "bf16" for faster convolutions where the machine has them.

    Attributes:
        config: the settings of the run, or what can be told of them.
        stage: that the weights are of, "stage1" or "stage2".
        classes: the artists' names, in the order of their numbers.
        counts: int64 [artists], pictures of each in training; None: not told.
        style_size: numbers of a style code; 0: a plain VAE.
        steps: of the stage that are behind it; None: not told.
        statistics: what contents are like together, see `codes.statistics`; None: not told.

    Raises:
        AnifastError: there is no such precision.
        CheckpointError: the file cannot paint, or holds another architecture.
    """

    #: Styles are of artists, and there are no domains to choose from.
    targets: tuple[str, ...] = ()
    #: What `painter` takes, which are options of `anifast translate`.
    options = ("artist", "styles", "seed")
    #: No averages of weights are kept.
    averaged = False

    def __init__(self, state: Mapping[str, Any], device: torch.device, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise AnifastError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        held = checkpoints.contents(state)
        if "G" not in held.nets:
            raise CheckpointError(
                f"holds the pre-trained classifier ({', '.join(held.nets)}), which does not paint; take the whole run, "
                "or its stage1 or stage2"
            )
        self.config: Config = held.config
        self.stage, self.classes, self.counts = held.stage, held.classes, held.counts
        self.device, self.precision = device, precision
        self.style_size = self.config.style_width(len(self.classes))
        self.steps, self.statistics = held.steps, held.statistics
        self._index = {name: number for number, name in enumerate(self.classes)}
        self._nets: dict[str, nn.Module] = {}
        for name in ("E", "G", "S") if self.style_size else ("E", "G"):
            net = checkpoints.build(name, self.config, len(self.classes))
            net.load_state_dict(held.nets[name], assign=True)
            self._nets[name] = net.to(device, torch.float32).eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """The side of pictures, the only one."""
        return self.config.size

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this; here they are the size itself."""
        return self.config.size

    @property
    def content_size(self) -> int:
        """Numbers of a content code."""
        return self.config.content_size

    @property
    def channels(self) -> int:
        """Of what the networks see: 4 colours and alpha, 3 colours, 1 grey."""
        return self.config.channels

    @property
    def bank(self) -> StyleBank:
        """The styles of artists.

        Raises:
            AnifastError: a plain VAE has none.
        """
        net = self._nets.get("S")
        if not isinstance(net, StyleBank):
            raise AnifastError("this model is a plain VAE (style_size 0) and has no styles of artists")
        return net

    @property
    def encoder(self) -> Encoder:
        """E, without gradients."""
        net = self._nets["E"]
        assert isinstance(net, Encoder)
        return net

    @torch.no_grad()
    def encode(self, images: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
        """The distributions of pictures' content codes.

        Args:
            images: N,3,size,size, float in [-1, 1], any N, on any device; alpha is 1 where the networks see it. Or as
                the networks see them: N,channels,size,size, of which a fourth channel is alpha in [0, 1]. What is
                under alpha 0 is not looked at.
            batch: pictures at once.

        Returns:
            Mean and standard deviation, each [N, content_size], float32 on the model's device.

        Raises:
            ValueError: wrong shape or type, or a batch below 1.
        """
        self.check_images(images)
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")
        mean, std = torch.empty(2, len(images), self.content_size, device=self.device)
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            with autocast(self.device, self.precision):
                mean[part], std[part] = self._nets["E"](self.seen(images[part]))
        return mean, std

    def contents(self, images: Tensor, batch: int = 64) -> Tensor:
        """The content codes of pictures, which are the means of `encode`: [N, content_size]."""
        return self.encode(images, batch)[0]

    @torch.no_grad()
    def styles(self, artists: Sequence[str | int]) -> Tensor:
        """The styles of artists, the means of their distributions.

        Args:
            artists: names or numbers, any of them any number of times.

        Returns:
            [len(artists), style_size], float32 on the model's device.

        Raises:
            AnifastError: an artist that the model does not know; the message has names that are close. Or a plain VAE.
        """
        numbers = [self.number(artist) for artist in artists]
        mean: Tensor = self.bank(torch.tensor(numbers, dtype=torch.int64, device=self.device))[0]
        return mean

    def number(self, artist: str | int) -> int:
        """The number of an artist, who is given by name or number.

        Raises:
            AnifastError: the model does not know him; the message has names that are close. Or a plain VAE.
        """
        known = len(self.bank.mean)
        if isinstance(artist, int):
            if not 0 <= artist < known:
                raise AnifastError(f"artist {artist}: this model knows {known}, by number 0 to {known - 1}")
            return artist
        if artist in self._index:
            return self._index[artist]
        close = difflib.get_close_matches(artist.lower(), {name.lower() for name in self.classes}, _LISTED, 0.5)
        names = [name for name in self.classes if name.lower() in close][:_LISTED] or self.classes[:_LISTED]
        more = "" if close or known <= _LISTED else ", ..."
        raise AnifastError(
            f"artist {printable(artist)}: none of the {known} that this model knows; "
            f"{'close are' if close else 'they are'} {', '.join(map(printable, names))}{more} "
            "(`anifast disentangle artists` lists all)"
        )

    def knows(self, name: str) -> bool:
        """Whether there is an artist of this name."""
        return name in self._index

    def neutral(self, count: int = 1) -> Tensor:
        """The style in the middle of all pictures' styles, which is zero: [count, style_size]."""
        return torch.zeros(count, self.style_size, device=self.device)

    def random_contents(self, count: int, seed: int = 0) -> Tensor:
        """Content codes from the distribution of the training pictures', always the same for a seed.

        Returns:
            [count, content_size], float32 on the model's device; the first k of a larger count are those of count k.

        Raises:
            ValueError: a negative count.
            CheckpointError: the file has no statistics of contents.
        """
        if self.statistics is None:
            raise CheckpointError(
                "has no statistics of contents, which random ones are drawn from; make them by `anifast train "
                "disentangle ... --resume --stage encode`, and give the run folder"
            )
        noise = _noise(count, self.content_size, seed).double()
        return codes.random_contents(self.statistics, noise).to(self.device, torch.float32)

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        """Style codes from N(0, covariance of the artists' styles), always the same for a seed.

        Returns:
            [count, style_size], float32 on the model's device; the first k of a larger count are those of count k.

        Raises:
            ValueError: a negative count.
            AnifastError: a plain VAE has no styles.
        """
        noise = _noise(count, self.style_size, seed).double()
        return codes.random_styles(self.bank, noise.to(self.device)).to(torch.float32)

    @torch.no_grad()
    def paint(self, contents: Tensor, styles: Tensor, batch: int = 32) -> Tensor:
        """Paint each content in one style.

        Args:
            contents: [N, content_size], float, any N.
            styles: [N, style_size], one for each content, or [1, style_size] or [style_size] for all.
            batch: pictures at once.

        Returns:
            N,3,size,size in [-1, 1] (N,1,size,size if networks see grey), float32 on the model's device.

        Raises:
            ValueError: wrong shapes, or a batch below 1.
        """
        contents, styles = self._check_codes(contents, "contents"), self._check_codes(styles, "styles")
        if len(styles) not in (1, len(contents)):
            raise ValueError(f"styles: {len(styles)} for {len(contents)} contents; expected one for each, or one")
        painted = contents.new_empty(len(contents), min(self.channels, 3), self.size, self.size)
        done = 0
        for part in self._painted(torch.cat([contents, styles.expand(len(contents), -1)], 1), batch):
            painted[done : done + len(part)] = part
            done += len(part)
        return painted

    @torch.no_grad()
    def paint_all(self, contents: Tensor, styles: Tensor, batch: int = 32) -> Iterator[Tensor]:
        """Paint every content in every style, `batch` pictures at once.

        Args:
            contents: [N, content_size], float, any N.
            styles: [S, style_size] or [style_size], any S.
            batch: pictures at once.

        Yields:
            Up to batch pictures as of `paint`: the first content in all styles, then the second, ...

        Raises:
            ValueError: wrong shapes, or a batch below 1.
        """
        contents, styles = self._check_codes(contents, "contents"), self._check_codes(styles, "styles")
        every = contents.repeat_interleave(len(styles), 0)
        yield from self._painted(torch.cat([every, styles.repeat(len(contents), 1)], 1), batch)

    def translate(self, images: Tensor, *, artist: Artist = None, batch: int = 32) -> Tensor:
        """Style transfer: what pictures show, in the style of an artist.

        Args:
            images: as of `encode`.
            artist: name or number of an artist, a sequence with one for each picture, or codes of styles
                [style_size], [1, style_size] or [N, style_size]; None: neutral.
            batch: pictures at once.

        Returns:
            N,3,size,size in [-1, 1] (N,1,size,size if networks see grey) of the type and on the device of `images`;
            no gradient.

        Raises:
            ValueError: wrong shapes or types, or a batch below 1.
            AnifastError: an artist that the model does not know.
        """
        contents = self.contents(images, batch)
        if artist is None:
            style = self.neutral()
        elif isinstance(artist, Tensor):
            style = artist
        else:
            style = self.styles([artist] if isinstance(artist, str | int) else artist)
        return self.paint(contents, style, batch).to(images.device, images.dtype)

    def reconstruct(self, images: Tensor, artist: Artist = None, batch: int = 32) -> Tensor:
        """Pictures again from their contents and their own artist's style, or without it: `translate`."""
        return self.translate(images, artist=artist, batch=batch)

    def fit_style(
        self,
        images: Tensor,
        steps: int = 300,
        lr: float = 0.05,
        weight: float = 1e-3,
        batch: int = 16,
        on_step: Callable[[float], None] | None = None,
    ) -> Tensor:
        """The style of an artist whom the model does not know, from his pictures.

        An extension of ours to the paper, whose styles belong to the artists of the training set: with encoder and
        generator as they are, Adam minimises mean ||x - G(E(x), s)|| + weight mean(s^2) over s, which begins as 0. As
        in training, distances count for as much as pixels are opaque. With a checkpoint of stage 2 it is that stage's
        generator, which is then to paint in this style.

        Args:
            images: as of `encode`, at least one that is not transparent.
            steps: of Adam, from 1.
            lr: its learning rate.
            weight: of the code's mean square.
            batch: pictures at once; each step's gradient is that of all.
            on_step: is told the distance before each step.

        Returns:
            [style_size], float32 on the model's device.

        Raises:
            ValueError: wrong shape or type, no picture, or numbers that cannot be.
            AnifastError: a plain VAE; all pictures are transparent; the distance is not finite.
        """
        if steps < 1 or not (math.isfinite(lr) and lr > 0) or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"steps {steps}, lr {lr}, weight {weight}: expected at least 1, above 0 and from 0")
        known = self.bank  # refuses a plain VAE before anything is computed
        contents = self.contents(images, batch)
        if not len(images):
            raise ValueError("images: expected at least one")
        x = self.seen(images)
        if self.channels == 4 and not bool((x[:, 3] > 0).any()):
            raise AnifastError("all pictures are transparent everywhere, so there is no style to be seen in them")
        style = torch.zeros_like(known.mean[0]).requires_grad_()
        adam = torch.optim.Adam([style], lr=lr)
        for _ in range(steps):
            adam.zero_grad()
            distance = 0.0
            with torch.enable_grad():
                for part in self._distances(x, contents, style, batch):
                    part.backward()
                    distance += float(part.detach())
                (weight * style.square().mean()).backward()
            _check_finite(distance)
            if on_step is not None:
                on_step(distance)
            adam.step()
        return style.detach()

    @torch.no_grad()
    def distance(self, images: Tensor, style: Tensor, batch: int = 16) -> float:
        """How far from pictures their contents are painted in one style: mean ||x - G(E(x), s)||, as in `fit_style`.

        Args:
            images: as of `encode`, at least one.
            style: [style_size] or [1, style_size].
            batch: pictures at once.

        Raises:
            ValueError: wrong shape or type, no picture, several styles, or a batch below 1.
            AnifastError: the distance is not finite.
        """
        contents, style = self.contents(images, batch), self._check_codes(style, "styles")
        if not len(images) or len(style) != 1:
            raise ValueError(f"{len(images)} images, {len(style)} styles: expected at least one image and one style")
        total = sum(float(part) for part in self._distances(self.seen(images), contents, style, batch))
        return _check_finite(total)

    def _distances(self, x: Tensor, contents: Tensor, style: Tensor, batch: int) -> Iterator[Tensor]:
        """The mean distance of pictures, as networks see them, from what is painted: parts of it that add up to it."""
        colours = x[:, : min(self.channels, 3)]
        for rows in torch.arange(len(x), device=self.device).split(batch):
            with autocast(self.device, self.precision):
                painted = self._nets["G"](torch.cat([contents[rows], style.expand(len(rows), -1)], 1))
            counted = pixel_weights(x[rows, 3]) if self.channels == 4 else None
            yield reconstruction(colours[rows], painted, counted) * (len(rows) / len(x))

    def painter(
        self,
        to: str | None = None,
        *,
        how: str = "crop",
        batch: int = 8,
        artist: Sequence[str] = (),
        styles: int | None = None,
        seed: int | None = None,
    ) -> Painter:
        """What `anifast translate` paints with: every picture in all of some styles.

        Args:
            to: is there for systems with domains.
            how: pictures that are not square become so by "crop" or "stretch".
            batch: pictures at once.
            artist: where styles come from, see `styles.gather`.
            styles: how many are random; None: 1.
            seed: of random styles; None: 0.

        Raises:
            AnifastError: no artist, one that the model does not know, or a number that cannot be.
            DataError: a file of styles that cannot be read.
        """
        if not artist and styles is not None and self.style_size:
            artist = (RANDOM,)
        if self.style_size and not artist:
            raise AnifastError(
                f"this model paints in the styles of {len(self.classes)} artists; give --artist and one of them "
                "(`anifast disentangle artists` lists them), or neutral, random or a file of styles"
            )
        found = gather(self, artist, count=styles, seed=seed)
        if seed is not None and not any(style.drawn for style in found):
            raise AnifastError(f"--seed {seed}: is that of random styles, and none is asked for; leave it out")
        return Painter(self, found, how, batch)

    def read(self, path: str | Path, how: str = "crop") -> Tensor:
        """A picture of any size as the networks see it, as training brings it there.

        Args:
            path: the file.
            how: what is not square becomes so by "crop" or "stretch".

        Returns:
            channels,size,size, float32 on the CPU: colours in [-1, 1], and alpha in [0, 1] if there are 4.

        Raises:
            ImageError: it cannot be read.
        """
        image = resize(read_image(path, _MODE[self.channels]), self.size, how, crop_size=self.config.crop_size)
        return prepare(to_tensor(image)[None])[0]

    def seen(self, images: Tensor) -> Tensor:
        """Images of either kind that `encode` takes, as the networks see them, on the model's device in float32."""
        x = images.detach().to(self.device, torch.float32)
        if self.channels != 4:
            return x
        return alpha_mask(x[:, :3], x[:, 3:] if x.shape[1] == 4 else None)

    def check_images(self, images: Tensor) -> None:
        """Check the shape and type of images.

        Raises:
            ValueError: they are not those that `encode` takes.
        """
        channels = "3 or 4" if self.channels == 4 else str(self.channels)
        if images.ndim != 4 or images.shape[1] not in {self.channels, min(self.channels, 3)}:
            raise ValueError(
                f"images: expected N,{channels},{self.size},{self.size} ({channels} channels), got "
                f"{tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        if tuple(images.shape[2:]) != (self.size, self.size):
            height, width = images.shape[2:]
            raise ValueError(
                f"images: this model takes {self.size}x{self.size} pixels only, got {height}x{width}; resize them"
            )

    def _check_codes(self, found: Tensor, kind: str) -> Tensor:
        """Codes as [N, numbers] on the model's device in float32."""
        size = self.content_size if kind == "contents" else self.style_size
        rows = found[None] if found.ndim == 1 else found
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(f"{kind}: expected codes [N, {size}] or [{size}], got {list(found.shape)}")
        if not rows.is_floating_point():
            raise ValueError(f"{kind}: expected floats, got {rows.dtype}")
        return rows.to(self.device, torch.float32)

    def _painted(self, code: Tensor, batch: int) -> Iterator[Tensor]:
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")
        for part in code.split(batch) if len(code) else ():
            with autocast(self.device, self.precision):
                painted = self._nets["G"](part)
            yield painted.float()


def _check_finite(distance: float) -> float:
    """The distance itself.

    Raises:
        AnifastError: it is not finite.
    """
    if not math.isfinite(distance):
        raise AnifastError(
            "the distance of what is painted is not finite (NaN); the model's weights may be damaged, or try "
            "--precision fp32"
        )
    return distance


def _noise(count: int, size: int, seed: int) -> Tensor:
    """N(0, 1) count,size on the CPU, of which each row depends on seed and number alone."""
    if count < 0:
        raise ValueError(f"count: {count} is negative")
    source = torch.Generator().manual_seed(seed)
    # one after the other: drawn at once, numbers would depend on how many they are
    drawn = [torch.randn(size, generator=source) for _ in range(count)]
    return torch.stack(drawn) if drawn else torch.empty(0, size)


def load(state: Mapping[str, Any], device: torch.device, **options: Any) -> Model:
    """The model in a loaded checkpoint.

    Raises:
        AnifastError: an option that this system does not have, or a value that it cannot take.
        CheckpointError: the file cannot paint, or holds another architecture.
    """
    check_options("the disentangling network", options, ("precision",))
    return Model(state, device, **options)

"""Style codes of GANs N' Roses: drawn at random, read from pictures, or kept in a file, and painting in several."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anifast.data.folders import printable
from anifast.engine.precision import enough_memory
from anifast.errors import CheckpointError, DataError
from anifast.systems.styles import (
    RANDOM,
    check_count,
    check_random,
    check_seed,
    check_truncation,
    chosen,
    keep,
    load_pictures,
    pictures_in,
    read_codes,
    saved,
    write_codes,
)

if TYPE_CHECKING:
    from anifast.systems.gnr.inference import Translator

#: Marks a file of style codes, with the version of its contents.
FORMAT = "anifast.gnr.styles/1"


@dataclass(frozen=True)
class Style:
    """A style code and where it comes from.

    Attributes:
        name: for people.
        code: latent_dim numbers.
        picture: the picture that it was read from, where there is one.
    """

    name: str
    code: tuple[float, ...]
    picture: Path | None = None


def codes(styles: Sequence[Style]) -> Tensor:
    """[S, latent_dim] of at least one style, float32 on the CPU."""
    return torch.tensor([style.code for style in styles], dtype=torch.float32)


def save(path: str | Path, styles: Sequence[Style], to: str) -> None:
    """Write style codes, whole or not at all; `load` gives exactly the same numbers.

    Args:
        path: the file, .json.
        styles: at least one.
        to: the domain that is painted with them, "A" or "B".

    Raises:
        AnifastError: the file cannot be written.
    """
    head = {"format": FORMAT, "latent_dim": len(styles[0].code), "to": to}
    write_codes(path, head, ((style.name, style.code) for style in styles))


def load(path: str | Path, *, to: str | None = None, latent_dim: int | None = None) -> list[Style]:
    """Read the style codes of a file that `save` has written.

    Args:
        path: the file.
        to: the domain that they must be of; None: either.
        latent_dim: the length that they must have; None: any.

    Raises:
        DataError: missing, no such file, damaged, or of another domain or length.
    """
    found, named = read_codes(
        path,
        FORMAT,
        what="style codes",
        field="latent_dim",
        length=latent_dim,
        expected="latent_dim, to (A or B)",
        fits=lambda head: head.get("to") in ("A", "B"),
    )
    domain = found["to"]
    if to is not None and domain != to:
        raise DataError(
            f"{printable(path)}: holds styles to paint {domain} with, not {to}; give --to {domain}, or other styles"
        )
    return [Style(name, code) for name, code in named]


def gather(
    model: Translator,
    sources: Sequence[str | Path] = (),
    *,
    to: str = "B",
    count: int | None = None,
    seed: int | None = None,
    how: str = "crop",
    batch: int = 8,
    option: str = "--style",
) -> list[Style]:
    """The style codes of several sources, in their order.

    Args:
        model: reads the styles of pictures.
        sources: "random" (also the default): `count` random styles, those that follow where it comes again; a file of
            style codes, or one of them as FILE.json#3; a picture of the domain `to`, of any size, or a folder of such,
            which is searched as that of contents is (what it holds of no use is warned of).
        to: the domain that is painted with them.
        count: how many are random; None: 1.
        seed: of random styles, 0 or larger; None: 0.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures to read at once.
        option: that gives the sources, for messages.

    Raises:
        AnifastError: a number that cannot be, or a count or seed without "random".
        DataError: a picture or file that cannot be read, or codes that do not fit the model.
        CheckpointError: the model lacks the encoder that reads styles of pictures.
    """
    check_count(count)
    check_seed(seed)
    texts = [str(source) for source in sources] or [RANDOM]
    check_random(texts, count, seed, option)
    count, seed = count or 1, seed or 0
    drawn = enumerate(model.random_styles(count * texts.count(RANDOM), seed).tolist())
    found: list[Style | Path] = []
    for text in texts:
        if text == RANDOM:
            found += [Style(f"seed {seed}, no. {n}", tuple(code)) for n, code in islice(drawn, count)]
        elif file := saved(text):
            found += chosen(load(file[0], to=to, latent_dim=model.latent_dim), *file)
        else:
            inside, rejected = pictures_in(Path(text))
            for path, why in rejected.items():
                warnings.warn(f"left out: {path}: {why}", stacklevel=2)
            found += inside
    pictures = [path for path in found if isinstance(path, Path)]
    if pictures:
        model.require_styles(to)
    read = _read(model, pictures, to, how, batch)
    return [next(read) if isinstance(style, Path) else style for style in found]


def _read(model: Translator, paths: Sequence[Path], to: str, how: str, batch: int) -> Iterator[Style]:
    """The styles of pictures."""
    for start in range(0, len(paths), batch):
        part = paths[start : start + batch]
        images = load_pictures(part, model.size, how)
        with enough_memory(batch, "", "--batch"):
            read = model.styles_of(images, to)
        for path, code in zip(part, read, strict=True):
            if not torch.isfinite(code).all():
                raise CheckpointError(
                    f"the style that it reads in {printable(path)} is not finite (NaN); its weights may be damaged, or "
                    "try --precision fp32"
                )
            yield Style(path.name, tuple(code.tolist()), path)


class Painter:
    """Paints every picture in all of some styles.

    Args:
        model: paints.
        styles: at least one.
        to: the domain wanted.
        truncation: see `Translator.latents`; None: 1.
        batch: pictures at once.

    Raises:
        AnifastError: a truncation that cannot be.
    """

    def __init__(
        self, model: Translator, styles: Sequence[Style], to: str = "B", truncation: float | None = None, batch: int = 8
    ) -> None:
        self.model, self.styles, self.to, self.batch = model, list(styles), to, batch
        self._w = model.latents(codes(styles), to, check_truncation(truncation))

    @property
    def labels(self) -> tuple[str, ...]:
        """What the names of a picture's results end with: nothing where there is one, else -s00, -s01, ..."""
        if len(self.styles) == 1:
            return ("",)
        width = max(2, len(str(len(self.styles) - 1)))
        return tuple(f"-s{number:0{width}d}" for number in range(len(self.styles)))

    @property
    def pictures(self) -> list[Path]:
        """Those that styles were read from."""
        return [style.picture for style in self.styles if style.picture is not None]

    @property
    def about(self) -> str:
        """A few words for the first line of a command."""
        return "1 style" if len(self.styles) == 1 else f"{len(self.styles)} styles"

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """N,3,size,size in [-1, 1] -> the first in all styles, then the second, ..., `batch` pictures at once."""
        return self.model.paintings(images, self._w, self.to, self.batch)

    def save(self, folder: Path) -> Path:
        """Keep the style codes beside the results: as styles.json, or as styles-2.json, -3, ... beside other codes.

        So the codes of earlier results are never lost. A file that holds these codes already is left as it is.

        Returns:
            The file.

        Raises:
            AnifastError: the file cannot be written.
        """
        return keep(
            folder,
            lambda path: [style.code for style in load(path, to=self.to)] == [style.code for style in self.styles],
            lambda path: save(path, self.styles, self.to),
        )

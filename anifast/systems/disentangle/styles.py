"""Styles by what they are asked for: an artist's name, random, neutral, or a file; and painting in several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anifast.data.folders import printable
from anifast.errors import AnifastError
from anifast.systems.styles import (
    RANDOM,
    check_count,
    check_seed,
    chosen,
    endings,
    keep,
    read_codes,
    saved,
    write_codes,
)

if TYPE_CHECKING:
    from anifast.systems.disentangle.inference import Model

#: Marks a file of styles, with the version of its contents.
FORMAT = "anifast.disentangle.styles/1"
#: Words in place of an artist's name, as RANDOM; an artist who is called so goes first.
NEUTRAL, ALL = "neutral", "all"
#: Random styles at once; each is drawn, painted in and kept by itself.
_MOST = 10_000


@dataclass(frozen=True)
class Style:
    """A style and what it is called.

    Attributes:
        name: an artist's, or what it is.
        code: its numbers; none for a plain VAE.
        drawn: whether it was drawn at random.
    """

    name: str
    code: tuple[float, ...]
    drawn: bool = False


def codes(styles: Sequence[Style]) -> Tensor:
    """[S, style_size] of at least one style, float32 on the CPU."""
    return torch.tensor([style.code for style in styles], dtype=torch.float32)


def save(path: str | Path, styles: Sequence[Style]) -> None:
    """Write styles, whole or not at all; `load` gives exactly the same numbers.

    Args:
        path: the file, .json.
        styles: at least one, all of one size.

    Raises:
        AnifastError: the file cannot be written.
    """
    head = {"format": FORMAT, "style_size": len(styles[0].code)}
    write_codes(path, head, ((style.name, style.code) for style in styles))


def load(path: str | Path, style_size: int | None = None) -> list[Style]:
    """Read the styles of a file that `save` has written.

    Args:
        path: the file.
        style_size: how many numbers they must have; None: any.

    Raises:
        DataError: missing, no such file, damaged, or of another model's size.
    """
    _, named = read_codes(
        path, FORMAT, what="styles of artists", field="style_size", length=style_size, expected="style_size"
    )
    return [Style(name, code) for name, code in named]


def gather(
    model: Model,
    words: Sequence[str],
    *,
    count: int | None = None,
    seed: int | None = None,
    option: str = "--artist",
) -> list[Style]:
    """The styles that words ask for, in their order.

    Args:
        model: whose artists they are.
        words: the name of an artist; several with commas between them; neutral: the style in the middle of all; random:
            `count` random styles, those that follow where it comes again; all: every artist; a file of styles, or one
            of them as FILE.json#3. A plain VAE has one style, and nothing can be asked for.
        count: how many are random, for each such word; None: 1. At most 10,000 in all.
        seed: of random styles, 0 or larger; None: 0.
        option: that gives the words, for messages.

    Raises:
        AnifastError: nobody is named, an artist that the model does not know, a plain VAE, a number that cannot be, or
            a count without "random".
        DataError: a file that cannot be read, or that does not fit the model.
    """
    check_count(count)
    check_seed(seed)
    if not model.style_size:
        if words or count is not None:
            raise AnifastError(
                f"{option if words else '--styles'}: this model is a plain VAE (style_size 0) and has no styles; leave "
                "it out"
            )
        return [Style("reconstruction", ())]
    asked = [part for word in words for part in _parts(model, word)]
    if not asked:
        raise AnifastError(
            f"{option} {printable(' '.join(words))}: names nobody; give an artist's name "
            f"(`anifast disentangle artists` lists them), {NEUTRAL}, {RANDOM} or a file of styles"
        )
    if count is not None and RANDOM not in asked:
        raise AnifastError(
            f"--styles {count}: is the number of random styles, and {option} asks for none; leave it out, or add "
            f"{RANDOM} to {option}"
        )
    count, seed = count or 1, seed or 0
    random = 0 if model.knows(RANDOM) else count * asked.count(RANDOM)
    if random > _MOST:
        raise AnifastError(f"--styles {count}: {random} random styles are more than {_MOST}; take fewer")
    drawn = _drawn(model, random, seed)
    found: list[Style] = []
    for word in asked:
        if model.knows(word):
            found += _of_artists(model, [word])
        elif word == NEUTRAL:
            found.append(Style(NEUTRAL, (0.0,) * model.style_size))
        elif word == RANDOM:
            found += [next(drawn) for _ in range(count)]
        elif word == ALL:
            found += _of_artists(model, model.classes)
        elif file := saved(word):
            found += chosen(load(file[0], model.style_size), *file)
        else:
            found += _of_artists(model, [word])  # which says that there is none
    return found


def _parts(model: Model, word: str) -> list[str]:
    """The names of a list with commas, unless it is a name or a file that is there with commas itself."""
    if "," not in word or model.knows(word):
        return [word]
    if (file := saved(word)) and os.path.exists(file[0]):
        return [word]
    return [part.strip() for part in word.split(",") if part.strip()]


def _of_artists(model: Model, names: Sequence[str]) -> list[Style]:
    return [Style(name, tuple(code)) for name, code in zip(names, model.styles(names).tolist(), strict=True)]


def _drawn(model: Model, count: int, seed: int) -> Iterator[Style]:
    width = max(2, len(str(count - 1)))
    for number, code in enumerate(model.random_styles(count, seed).tolist()):
        yield Style(f"random-{seed}-{number:0{width}d}", tuple(code), drawn=True)


class Painter:
    """Paints every picture in all of some styles.

    Args:
        model: paints.
        styles: at least one.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures at once.
    """

    def __init__(self, model: Model, styles: Sequence[Style], how: str = "crop", batch: int = 8) -> None:
        self.model, self.styles, self.how, self.batch = model, list(styles), how, batch
        self._codes = codes(styles).to(model.device)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the names of a picture's results end with: the artist, -NAME; with a number where names are alike."""
        return endings([style.name for style in self.styles], "-")

    @property
    def pictures(self) -> list[Path]:
        """Files that must not be overwritten: none."""
        return []

    @property
    def about(self) -> str:
        """A few words for the first line of a command."""
        if not self.model.style_size:
            return "reconstruction"
        if len(self.styles) == 1:
            return f"style {printable(self.styles[0].name)}"
        return f"{len(self.styles)} styles"

    def read(self, path: Path) -> Tensor:
        """A picture as `__call__` takes it."""
        return self.model.read(path, self.how)

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """N,C,size,size -> the first in all styles, then the second, ..., `batch` pictures at once."""
        return self.model.paint_all(self.model.contents(images), self._codes, self.batch)

    def save(self, folder: Path) -> Path | None:
        """Keep the codes of random styles beside the results, as nothing else has them: None where there are none.

        They go into styles.json, or into styles-2.json, -3, ... beside other styles, so that those of earlier results
        are never lost. A file that holds these already is left as it is.

        Raises:
            AnifastError: the file cannot be written.
        """
        drawn = [style for style in self.styles if style.drawn]
        if not drawn:
            return None
        return keep(
            folder,
            lambda path: [style.code for style in load(path)] == [style.code for style in drawn],
            lambda path: save(path, drawn),
        )

"""Styles by what they are asked for: an artist's name, random, neutral, or a file; and painting in several."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anifast.data.folders import printable
from anifast.errors import AnifastError, DataError
from anifast.files import write_text

if TYPE_CHECKING:
    from anifast.systems.disentangle.inference import Model

#: Marks a file of styles, with the version of its contents.
FORMAT = "anifast.disentangle.styles/1"
#: Its name beside results.
NAME = "styles.json"
#: Words in place of an artist's name; an artist who is called so goes first.
NEUTRAL, RANDOM, ALL = "neutral", "random", "all"
#: A file of styles, with the number of one of them behind it or not.
_SAVED = re.compile(r"(?P<path>.+\.json)(#(?P<number>\d+))?", re.IGNORECASE | re.DOTALL)
#: What a part of a file's name is not made of, on any system, and its longest.
_UNFIT, _LONGEST = re.compile(r'[\s<>:"/\\|?*\x00-\x1f]+'), 60
_LARGEST = torch.finfo(torch.float32).max
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
    lines = [json.dumps({"name": printable(style.name), "code": list(style.code)}) for style in styles]
    head = f'"format": {json.dumps(FORMAT)},\n"style_size": {len(styles[0].code)},'
    write_text(path, f'{{\n{head}\n"styles": [\n' + ",\n".join(lines) + "\n]\n}\n")


def load(path: str | Path, style_size: int | None = None) -> list[Style]:
    """Read the styles of a file that `save` has written.

    Args:
        path: the file.
        style_size: how many numbers they must have; None: any.

    Raises:
        DataError: missing, no such file, damaged, or of another model's size.
    """
    shown = printable(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise DataError(f"{shown}: not a file of styles: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        held = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{shown}: not a file of styles of artists (format {held!r}, expected {FORMAT!r})")
    size, entries = found.get("style_size"), found.get("styles")
    if type(size) is not int or not isinstance(entries, list) or not entries:
        raise DataError(f"{shown}: damaged: expected style_size and at least one of styles")
    if style_size is not None and size != style_size:
        raise DataError(
            f"{shown}: holds styles of {size} numbers, but this model's have {style_size} (style_size); they belong "
            "to another model"
        )
    return [_style(entry, number, size, shown) for number, entry in enumerate(entries)]


def _style(entry: Any, number: int, size: int, shown: str) -> Style:
    name, code = (entry.get("name"), entry.get("code")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(code, list) or len(code) != size:
        raise DataError(f"{shown}: damaged: style {number} is not a name and a code of {size} numbers")
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in code):
        raise DataError(f"{shown}: damaged: style {number}: its code holds something else than finite numbers")
    return Style(name, tuple(map(float, code)))


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
    if count is not None and count < 1:
        raise AnifastError(f"--styles {count}: at least 1")
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
        elif match := _SAVED.fullmatch(word):
            found += _saved(match["path"], match["number"], model.style_size)
        else:
            found += _of_artists(model, [word])  # which says that there is none
    return found


def check_seed(seed: int | None) -> None:
    """Refuse a seed that is out of range.

    Raises:
        AnifastError: it is.
    """
    if seed is not None and not 0 <= seed < 2**63:
        raise AnifastError(f"--seed {seed}: a whole number from 0 to {2**63 - 1}")


def _parts(model: Model, word: str) -> list[str]:
    """The names of a list with commas, unless it is a name or a file that is there with commas itself."""
    if "," not in word or model.knows(word):
        return [word]
    if (match := _SAVED.fullmatch(word)) and os.path.exists(match["path"]):
        return [word]
    return [part.strip() for part in word.split(",") if part.strip()]


def _of_artists(model: Model, names: Sequence[str]) -> list[Style]:
    return [Style(name, tuple(code)) for name, code in zip(names, model.styles(names).tolist(), strict=True)]


def _drawn(model: Model, count: int, seed: int) -> Iterator[Style]:
    width = max(2, len(str(count - 1)))
    for number, code in enumerate(model.random_styles(count, seed).tolist()):
        yield Style(f"random-{seed}-{number:0{width}d}", tuple(code), drawn=True)


def _saved(path: str, number: str | None, style_size: int) -> list[Style]:
    """The styles of a file, or the one with this number."""
    styles = load(path, style_size)
    if number is None:
        return styles
    if int(number) >= len(styles):
        raise DataError(f"{printable(path)}#{number}: there is no such style; the file has 0 to {len(styles) - 1}")
    return [styles[int(number)]]


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
        found: list[str] = []
        taken: set[str] = set()
        for style in self.styles:
            plain = label = "-" + (_UNFIT.sub("_", style.name)[:_LONGEST] or "style")
            number = 1
            while label.lower() in taken:
                number += 1
                label = f"{plain}-{number}"
            taken.add(label.lower())
            found.append(label)
        return tuple(found)

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
        path, number = folder / NAME, 1
        while path.exists():
            with suppress(DataError):  # it is something else
                if [style.code for style in load(path)] == [style.code for style in drawn]:
                    return path
            number += 1
            path = folder / f"{Path(NAME).stem}-{number}.json"
        save(path, drawn)
        return path

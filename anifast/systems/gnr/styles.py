"""Style codes of GANs N' Roses: drawn at random, read from pictures, or kept in a file, and painting in several."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anifast.data.folders import printable, read_image, resize, scan, to_float, to_tensor
from anifast.engine.precision import enough_memory
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.files import write_text

if TYPE_CHECKING:
    from anifast.systems.gnr.inference import Translator

#: Marks a file of style codes, with the version of its contents.
FORMAT = "anifast.gnr.styles/1"
#: Its name beside results.
NAME = "styles.json"
#: The source of styles that are drawn.
RANDOM = "random"
#: A file of style codes, with the number of one of them behind it or not.
_SAVED = re.compile(r"(?P<path>.+\.json)(#(?P<number>\d+))?", re.IGNORECASE | re.DOTALL)
_LARGEST = torch.finfo(torch.float32).max


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
    lines = [json.dumps({"name": printable(style.name), "code": list(style.code)}) for style in styles]
    head = f'"format": {json.dumps(FORMAT)},\n"latent_dim": {len(styles[0].code)},\n"to": {json.dumps(to)},'
    write_text(path, f'{{\n{head}\n"styles": [\n' + ",\n".join(lines) + "\n]\n}\n")


def load(path: str | Path, *, to: str | None = None, latent_dim: int | None = None) -> list[Style]:
    """Read the style codes of a file that `save` has written.

    Args:
        path: the file.
        to: the domain that they must be of; None: either.
        latent_dim: the length that they must have; None: any.

    Raises:
        DataError: missing, no such file, damaged, or of another domain or length.
    """
    shown = printable(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise DataError(f"{shown}: not a file of style codes: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        held = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{shown}: not a file of style codes (format {held!r}, expected {FORMAT!r})")
    length, domain, entries = found.get("latent_dim"), found.get("to"), found.get("styles")
    if not isinstance(length, int) or domain not in ("A", "B") or not isinstance(entries, list) or not entries:
        raise DataError(f"{shown}: damaged: expected latent_dim, to (A or B) and at least one of styles")
    if latent_dim is not None and length != latent_dim:
        raise DataError(
            f"{shown}: holds style codes of {length} numbers, but this model's have {latent_dim} (latent_dim); they "
            "belong to another model"
        )
    if to is not None and domain != to:
        raise DataError(f"{shown}: holds styles to paint {domain} with, not {to}; give --to {domain}, or other styles")
    return [_style(entry, number, length, shown) for number, entry in enumerate(entries)]


def _style(entry: Any, number: int, length: int, shown: str) -> Style:
    name, code = (entry.get("name"), entry.get("code")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(code, list) or len(code) != length:
        raise DataError(f"{shown}: damaged: style {number} is not a name and a code of {length} numbers")
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in code):
        raise DataError(f"{shown}: damaged: style {number}: its code holds something else than finite numbers")
    return Style(name, tuple(map(float, code)))


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
    if count is not None and count < 1:
        raise AnifastError(f"--styles {count}: at least 1")
    if seed is not None and not 0 <= seed < 2**63:
        raise AnifastError(f"--seed {seed}: a whole number from 0 to {2**63 - 1}")
    texts = [str(source) for source in sources] or [RANDOM]
    for name, value, meaning in (("--styles", count, "number"), ("--seed", seed, "seed")):
        if value is not None and RANDOM not in texts:
            raise AnifastError(
                f"{name} {value}: is the {meaning} of random styles, and {option} asks for none; leave it out, or add "
                f"{RANDOM} to {option}"
            )
    count, seed = count or 1, seed or 0
    drawn = enumerate(model.random_styles(count * texts.count(RANDOM), seed).tolist())
    found: list[Style | Path] = []
    for text in texts:
        if text == RANDOM:
            found += [Style(f"seed {seed}, no. {n}", tuple(code)) for n, code in islice(drawn, count)]
        elif match := _SAVED.fullmatch(text):
            found += _saved(match["path"], match["number"], to, model.latent_dim)
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


def pictures_in(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The pictures under a folder, or the file that `source` is; and path -> reason for what looked like pictures.

    Raises:
        DataError: a folder that cannot be read, or that holds no picture.
    """
    if not source.is_dir():
        return [source], {}
    folder = scan(source)
    return folder.paths, {printable(folder.root / name): why for name, why in folder.rejected.items()}


def _saved(path: str, number: str | None, to: str, latent_dim: int) -> list[Style]:
    """The styles of a file, or the one with this number."""
    styles = load(path, to=to, latent_dim=latent_dim)
    if number is None:
        return styles
    if int(number) >= len(styles):
        raise DataError(f"{printable(path)}#{number}: there is no such style; the file has 0 to {len(styles) - 1}")
    return [styles[int(number)]]


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


def load_pictures(paths: Sequence[Path], size: int, how: str) -> Tensor:
    """Pictures of any size as N,3,size,size in [-1, 1], float32; at least one.

    Raises:
        ImageError: one cannot be read.
    """
    return torch.stack([to_float(to_tensor(resize(read_image(path), size, how))) for path in paths])


def check_truncation(psi: float | None) -> float:
    """The psi that an option gives, 1 where it is left out.

    Raises:
        AnifastError: negative or not finite.
    """
    if psi is not None and not (math.isfinite(psi) and psi >= 0):
        raise AnifastError(f"--truncation {psi}: a number from 0 (all the mean style); 1 leaves styles as they are")
    return 1.0 if psi is None else psi


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
        path, number = folder / NAME, 1
        while path.exists():
            with suppress(DataError):  # it is something else, or of the other domain
                if [style.code for style in load(path, to=self.to)] == [style.code for style in self.styles]:
                    return path
            number += 1
            path = folder / f"{Path(NAME).stem}-{number}.json"
        save(path, self.styles, self.to)
        return path

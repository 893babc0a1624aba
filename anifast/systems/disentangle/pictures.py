"""Pictures whose contents are asked for: files, folders, and digits from their data sets' files."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anifast.data.digits import has_split
from anifast.data.folders import printable, scan
from anifast.data.labelled import Labelled, load_digits_by
from anifast.data.packed import spread
from anifast.data.stream import read_batches
from anifast.errors import DataError, ImageError
from anifast.systems.disentangle.augmentation import prepare

if TYPE_CHECKING:
    from anifast.systems.disentangle.inference import Model

#: A folder of digits, with the number of one of them behind it.
_NUMBERED = re.compile(r"(?P<folder>.+)#(?P<number>\d+)", re.DOTALL)


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: for people and for exports.
        source: its file, or a digit's pixels, uint8 1,H,W.
        artist: whose it is, where its folder or its data set tells and the model knows him.
    """

    name: str
    source: Path | Tensor
    artist: str | None = None


def gather(model: Model, sources: Sequence[str | Path], most: int | None = None) -> list[Picture]:
    """The pictures of several sources, in their order.

    Args:
        model: that is to see them.
        sources: pictures, and folders of such, which are searched recursively. In a folder of artists, or in an
            artist's, folders' names tell whose pictures are. For a model of digits also the folder with the files of
            their data set, or one of it as FOLDER#17. What looks like a picture and is none is warned of.
        most: of each folder, so many pictures evenly spread over it; None: all.

    Raises:
        DataError: nothing is there, or the data set's files cannot be used.
    """
    found: list[Picture] = []
    for source in sources:
        text, path = os.fspath(source), Path(source)
        if match := _numbered(model, text):
            digits, number = _digits(model, Path(match["folder"])), int(match["number"])
            if number >= len(digits):
                raise DataError(f"{printable(text)}: there is no such digit; there are 0 to {len(digits) - 1}")
            found.append(_digit(model, digits, number))
        elif _is_digits(model, path):
            digits = _digits(model, path)
            found += [_digit(model, digits, row) for row in spread(len(digits), most or len(digits))]
        elif path.is_dir():
            inside = _folder(model, path)
            found += [inside[row] for row in spread(len(inside), most or len(inside))]
        else:
            found.append(Picture(path.name, path, _artist(model, path.absolute().parent.name)))
    return found


def of_artists(model: Model, data: Path, artists: Sequence[str], count: int, how: str) -> Tensor:
    """Real pictures by artists, white where there are too few.

    Args:
        model: whose size they are brought to.
        data: a folder with one of pictures for each artist, or that of the digits' files.
        artists: by name.
        count: of each.
        how: see `read`.

    Returns:
        [len(artists), count, C, size, size] as the model's networks see them.

    Raises:
        DataError: none of the artists has a picture there.
        ImageError: one cannot be read.
    """
    digits = _digits(model, data) if _is_digits(model, data) else None
    by: list[list[Picture]] = []
    for artist in artists:
        if digits is not None:
            label = digits.classes.index(artist) if artist in digits.classes else -1
            rows = torch.nonzero(digits.labels == label)[:, 0].tolist()
            by.append([_digit(model, digits, rows[k]) for k in spread(len(rows), count)])
        else:
            inside = _folder(model, data / artist) if (data / artist).is_dir() else []
            by.append([inside[k] for k in spread(len(inside), count)])
    if not any(by):
        raise DataError(
            f"--data {printable(data)}: has no pictures by {printable(artists[0])}"
            f"{' or the others' if len(artists) > 1 else ''}; give the folder with a sub-folder for each artist"
        )
    white = torch.ones(model.channels, model.size, model.size)
    found = []
    for chosen in by:
        row = [*read(model, chosen, how)] if chosen else []
        found.append(torch.stack([*row, *[white] * (count - len(row))]))
    return torch.stack(found)


def read(model: Model, pictures: Sequence[Picture], how: str = "crop") -> Tensor:
    """Pictures as the model's networks see them, N,C,size,size, float32 on the CPU; at least one.

    Args:
        model: that is to see them.
        pictures: from `gather`.
        how: what is not square becomes so by "crop" or "stretch".

    Raises:
        ImageError: one cannot be read.
    """
    return torch.stack([_pixels(model, picture, how) for picture in pictures])


def batches(
    model: Model, pictures: Sequence[Picture], how: str, batch: int, failed: dict[str, str]
) -> Iterator[tuple[list[Picture], Tensor]]:
    """The same, `batch` at once and read ahead.

    Args:
        model: that is to see them.
        pictures: from `gather`.
        how: see `read`.
        batch: pictures at once.
        failed: gets name -> reason of those that cannot be read, which are left out.

    Yields:
        Pictures, and N,C,size,size.
    """

    def unreadable(picture: Picture, error: ImageError) -> None:
        failed[picture.name] = str(error)

    for group in read_batches(pictures, lambda one: _pixels(model, one, how), batch, unreadable):
        yield [one for one, _ in group], torch.stack([pixels for _, pixels in group])


def _pixels(model: Model, picture: Picture, how: str) -> Tensor:
    if isinstance(picture.source, Path):
        return model.read(picture.source, how)
    return prepare(picture.source[None])[0]


def _folder(model: Model, path: Path) -> list[Picture]:
    folder = scan(path)
    for name, why in folder.rejected.items():
        warnings.warn(f"left out: {printable(folder.root / name)}: {why}", stacklevel=2)
    own = folder.root.name
    return [
        Picture(name, file, _artist(model, *([name.partition("/")[0]] if "/" in name else []), own))
        for name, file in zip(folder.names, folder.paths, strict=True)
    ]


def _artist(model: Model, *folders: str) -> str | None:
    """The first of some folders' names that is an artist's."""
    return next((name for name in folders if model.knows(name)), None)


def _is_digits(model: Model, folder: Path) -> bool:
    """Whether a folder has the files of digits, and the model sees such."""
    return model.config.dataset == "digits" and any(has_split(folder, split) for split in ("train", "nist"))


def _numbered(model: Model, text: str) -> re.Match[str] | None:
    match = _NUMBERED.fullmatch(text)
    return match if match and not os.path.exists(text) and _is_digits(model, Path(match["folder"])) else None


def _digits(model: Model, folder: Path) -> Labelled:
    return _loaded(folder.resolve(), model.config.label)


@lru_cache(1)  # several of a folder, each by its number, are not to read it several times
def _loaded(folder: Path, label: str) -> Labelled:
    return load_digits_by(folder, label)


def _digit(model: Model, digits: Labelled, row: int) -> Picture:
    owner = digits.classes[int(digits.labels[row])]
    return Picture(digits.names[row], digits.images.batch([row])[0], _artist(model, owner))

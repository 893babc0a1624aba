"""Boxes of faces, from whatever detector, and the parts of pictures that are cut out around them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from anifast.errors import DataError
from anifast.files import text_rows

#: So many faces of a photo are taken, the best first.
FACES = 4
_COLUMNS = ("path", "x", "y", "w", "h", "score")

#: Left, top, right and bottom of a part of a picture, in pixels; as `Image.crop` takes it.
Part = tuple[int, int, int, int]


class Box(NamedTuple):
    """A face, in pixels of its picture.

    Attributes:
        x: of its left edge.
        y: of its upper edge.
        w: width.
        h: height.
        score: how sure the detector is, 1 where it does not say.
    """

    x: int
    y: int
    w: int
    h: int
    score: float = 1.0


class Margins(NamedTuple):
    """What is added around a box: parts of its width to the left and right, of its height above and below."""

    left: float
    right: float
    top: float
    bottom: float


#: Around photographed faces, as SSD detectors box them, and the score that counts (spec twingan, 2.3).
HUMAN, HUMAN_THRESHOLD = Margins(0.5, 0.5, 1.0, 0.3), 0.7
#: Around drawn faces, so that they lie as those of CelebA do, and the score that counts.
ANIME, ANIME_THRESHOLD = Margins(0.6, 0.6, 1.0, 0.4), 0.9


def face_crop(box: Sequence[float], size: tuple[int, int], margins: Margins = HUMAN) -> Part:
    """The part of a picture around a face, within the picture.

    Spec twingan, 2.3, with margins L, R, T, B and a picture of W x H pixels:
        x0 = max(0, x - int(L w)),       y0 = max(0, y - int(T h)),
        x1 = min(W, x + int((1 + R) w)), y1 = min(H, y + int((1 + B) h)).

    Args:
        box: x, y, w, h (a `Box` or numbers, of which the whole part counts).
        size: (width, height) of the picture, as `Image.size`.
        margins: around the box.

    Returns:
        (x0, y0, x1, y1), as `Image.crop` takes it; at least a pixel.

    Raises:
        DataError: nothing of that is in the picture.
    """
    x, y, w, h = (int(value) for value in box[:4])
    width, height = size
    x0, y0 = max(0, x - int(margins.left * w)), max(0, y - int(margins.top * h))
    x1, y1 = min(width, x + int((1 + margins.right) * w)), min(height, y + int((1 + margins.bottom) * h))
    if x1 <= x0 or y1 <= y0:
        raise DataError(f"box {x}, {y}, {w}, {h} (x, y, w, h): lies outside its picture of {width}x{height} pixels")
    return x0, y0, x1, y1


def face_crops(
    boxes: Sequence[Box],
    size: tuple[int, int],
    margins: Margins = HUMAN,
    threshold: float = HUMAN_THRESHOLD,
    most: int = FACES,
) -> list[Part]:
    """The parts around the faces of a picture, best score first; the whole picture where there is none.

    Args:
        boxes: those of the picture.
        size: (width, height) of the picture.
        margins: around each.
        threshold: the score that a box must reach.
        most: so many faces at most.

    Raises:
        DataError: a box lies outside the picture.
    """
    sure = sorted((box for box in boxes if box.score >= threshold), key=lambda box: -box.score)
    return [face_crop(box, size, margins) for box in sure[:most]] or [(0, 0, *size)]


def read_boxes(path: str | os.PathLike[str]) -> dict[str, list[Box]]:
    """The boxes in a boxes.tsv: path, x, y, w, h and score in each row, parted by tabs.

    The first row may be a heading with these words; the score may be left out and is 1 then. Of positions and sizes the
    whole part counts.

    Returns:
        Path of a picture as the file has it (parted by "/", without "." in it) -> its boxes, best score first, in the
        file's order where scores are the same.

    Raises:
        DataError: the file cannot be read, or a row of it (named by its number) is no box.
    """
    found: dict[str, list[Box]] = {}
    first = True
    for number, line in text_rows(path):
        columns = [column.strip() for column in line.split("\t")]
        heading, first = first and tuple(column.lower() for column in columns) in (_COLUMNS, _COLUMNS[:-1]), False
        if heading:
            continue
        box = _box(columns)
        if isinstance(box, str):
            raise DataError(f"{path}, row {number}: {box}")
        found.setdefault(str(PurePosixPath(columns[0])), []).append(box)
    for boxes in found.values():
        boxes.sort(key=lambda box: -box.score)
    return found


def _box(columns: Sequence[str]) -> Box | str:
    """The box of a row, or what is wrong with it."""
    if len(columns) not in (len(_COLUMNS) - 1, len(_COLUMNS)) or not columns[0]:
        return f"expected {', '.join(_COLUMNS)}, parted by tabs, and got {len(columns)} of them"
    try:
        x, y, w, h, *rest = (float(column) for column in columns[1:])
    except ValueError:
        return f"expected numbers behind the path, got {', '.join(columns[1:])}"
    score = rest[0] if rest else 1.0
    if not all(math.isfinite(value) for value in (x, y, w, h, score)):
        return f"a box has finite numbers, this one {', '.join(columns[1:])}"
    box = Box(int(x), int(y), int(w), int(h), score)
    if box.w < 1 or box.h < 1:
        return f"width and height are at least a pixel, got {columns[3]} and {columns[4]}"
    return box

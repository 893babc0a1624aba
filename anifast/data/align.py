"""Aligning faces as FFHQ's pictures are: turned level, cut to a square around the face, filled up where it hangs over.

The geometry is that of the data set's own preparation (Karras et al. 2019), from four points of a face. They come from
a list that is at hand, AAHQ's among others, or from a detector (`anifast.data.mtcnn`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anifast.data.folders import printable
from anifast.errors import DataError

SIZE = 1024
"""Side of FFHQ's pictures."""

# The square is taken out of the picture at so many times the side of the result, and then scaled down.
_OVERSAMPLING = 4
# A square of less than so many pixels shows no face, and one of more than so many times the picture's longer side comes
# of landmarks that are not this picture's.
_LEAST_SIDE, _MOST_SIDES = 8, 8
# Of scipy's and everybody's Gaussian filters: how far the kernel reaches, in standard deviations.
_TRUNCATE = 4.0
# Numbers that are transformed at once: 64 MB of float64 and their spectrum.
_CHUNK = 1 << 22

_FORMS = (
    "68 pairs x, y in dlib's order; 5 pairs: left eye, right eye, nose, left and right corner of the mouth; or "
    "{eye_left, eye_right, mouth_left, mouth_right}, a pair each"
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Points:
    """Four points of a face, x and y in pixels; left and right as one sees them in the picture.

    Attributes:
        eye_left: the middle of an eye.
        eye_right: of the other.
        mouth_left: a corner of the mouth.
        mouth_right: the other.
    """

    eye_left: Point
    eye_right: Point
    mouth_left: Point
    mouth_right: Point

    @classmethod
    def of_68(cls, landmarks: NDArray[Any] | Sequence[Sequence[float]]) -> Points:
        """From 68 landmarks [68, 2] in the order of the 300-W annotation, as dlib's predictor gives them.

        Raises:
            ValueError: another shape.
        """
        marks = _pairs(landmarks, 68)
        return cls(_point(marks[36:42].mean(0)), _point(marks[42:48].mean(0)), _point(marks[48]), _point(marks[54]))

    @classmethod
    def of_5(cls, landmarks: NDArray[Any] | Sequence[Sequence[float]]) -> Points:
        """From 5 landmarks [5, 2]: left eye, right eye, tip of the nose, left and right corner of the mouth.

        Raises:
            ValueError: another shape.
        """
        marks = _pairs(landmarks, 5)
        return cls(_point(marks[0]), _point(marks[1]), _point(marks[3]), _point(marks[4]))

    @classmethod
    def of(cls, found: Any) -> Points:
        """From what stands in a JSON file: 68 or 5 pairs, or the four points by their names.

        Raises:
            ValueError: something else, or numbers that are not finite.
        """
        if isinstance(found, Mapping):
            names = [field.name for field in fields(cls)]
            if any(name not in found for name in names):
                raise ValueError(f"expected {_FORMS}")
            return cls(*(_point(pair) for pair in _pairs([found[name] for name in names], 4)))
        if isinstance(found, Sequence) and not isinstance(found, str):
            if len(found) == 68:
                return cls.of_68(found)
            if len(found) == 5:
                return cls.of_5(found)
        raise ValueError(f"expected {_FORMS}")


def _pairs(found: Any, count: int) -> NDArray[np.float64]:
    """`count` pairs of finite numbers as [count, 2]."""
    try:
        pairs = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):  # ragged, or no numbers
        pairs = np.empty(0)
    if pairs.shape != (count, 2) or not np.isfinite(pairs).all():
        raise ValueError(f"expected {count} pairs of numbers x, y")
    return pairs


def _point(pair: NDArray[np.float64]) -> Point:
    return float(pair[0]), float(pair[1])


@dataclass(frozen=True)
class Entry:
    """A face of AAHQ's list: the name of its aligned picture, the picture that it is in, and where."""

    name: str
    raw: str
    points: Points


def read_aahq(path: str | os.PathLike[str]) -> tuple[list[Entry], dict[str, str]]:
    """The faces of AAHQ's list, a JSON object {name: {"raw_name": ..., "landmarks": {eye_left, ...}, ...}}.

    Returns:
        The entries in the list's order, and name -> reason for those that cannot be used.

    Raises:
        DataError: the file cannot be read or is something else.
    """
    entries: list[Entry] = []
    wrong: dict[str, str] = {}
    results: dict[PurePosixPath, str] = {}
    for name, found in _read_object(path, "AAHQ's list").items():
        raw = found.get("raw_name") if isinstance(found, Mapping) else None
        result = PurePosixPath(name).with_suffix("") if PurePosixPath(name).name else PurePosixPath()
        if not isinstance(raw, str) or not raw:
            wrong[name] = "the list tells no raw_name of it"
        elif not all(_stays_inside(one) for one in (name, raw)):
            wrong[name] = f"it, or its raw_name {raw!r}, is no name of a file inside a folder"
        elif result in results:
            wrong[name] = f"would be the same file as {results[result]}"
        else:
            try:
                entries.append(Entry(name, raw, Points.of(found.get("landmarks"))))
                results[result] = name
            except ValueError as error:
                wrong[name] = f"its landmarks: {error}"
    if not entries:
        first = min(wrong, default="")
        reason = f": {first}: {wrong[first]}" if wrong else ""
        raise DataError(f'{printable(path)}: no entry of AAHQ\'s list {{name: {{"raw_name", "landmarks"}}}}{reason}')
    return entries, wrong


def _stays_inside(name: str) -> bool:
    """Does a name from a file lead to somewhere inside the folder that it is looked up in?"""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def read_landmarks(path: str | os.PathLike[str]) -> dict[str, Points]:
    """Landmarks of pictures from a JSON object {name: landmarks}; those that are null are left out.

    Raises:
        DataError: the file cannot be read, is something else, or holds no landmarks.
    """
    points: dict[str, Points] = {}
    for name, found in _read_object(path, "a file of landmarks").items():
        if found is None:
            continue
        try:
            points[name] = Points.of(found)
        except ValueError as error:
            raise DataError(f"{printable(path)}: {name}: {error}") from None
    if not points:
        raise DataError(f"{printable(path)}: holds no landmarks. Expected {{name: landmarks}}, with {_FORMS}")
    return points


def _read_object(path: str | os.PathLike[str], wanted: str) -> dict[str, Any]:
    shown = printable(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file. Give {wanted}") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise DataError(f"{shown}: is not JSON ({error}). Give {wanted}") from error
    if not isinstance(found, dict):
        raise DataError(f"{shown}: expected a JSON object {{name: ...}}. Give {wanted}")
    return found


def quad(points: Points) -> NDArray[np.float64]:
    """The corners of the square that FFHQ cuts out.

    With the middle e of the eyes, v from the left eye to the right one and u from e to the middle of the mouth:
    x = (v_x + u_y, v_y - u_x), brought to the length max(2 |v|, 1.8 |u|), y = x turned by 90 degrees, c = e + 0.1 u;
    the corners are c - x - y, c - x + y, c + x + y, c + x - y.

    Returns:
        float64 [4, 2], in pixels: upper left, lower left, lower right, upper right, as the face sees itself.

    Raises:
        DataError: the points are none of a face seen in a picture: all in one place, or mirrored.
    """
    eye_left, eye_right, mouth_left, mouth_right = (
        np.array(getattr(points, field.name), dtype=np.float64) for field in fields(points)
    )
    eyes = (eye_left + eye_right) / 2
    across = eye_right - eye_left
    down = (mouth_left + mouth_right) / 2 - eyes
    if not across[0] * down[1] - across[1] * down[0] > 0:
        raise DataError(
            "its landmarks are none of a face: eye_left is the eye on the left as one sees it, and the mouth is below"
        )
    x = np.array([across[0] + down[1], across[1] - down[0]])
    x *= max(2.0 * math.hypot(*across), 1.8 * math.hypot(*down)) / math.hypot(*x)
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def align(image: Image.Image, points: Points, size: int = SIZE) -> Image.Image:
    """Cut out and turn a face as FFHQ's pictures are.

    What is missing of the square is the picture reflected, blurred towards the edge and faded into its median colour.

    Args:
        image: RGB, any size.
        points: of the face, in pixels of the picture.
        size: side of the result. With 1024 this is FFHQ's preparation, step for step; other sides likewise.

    Returns:
        RGB, size x size.

    Raises:
        DataError: the points are none of a face in this picture.
        ValueError: another mode, or a size below 1.
    """
    if image.mode != "RGB":
        raise ValueError(f"image: expected mode RGB, got {image.mode}")
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    corners = quad(points)
    side = float(math.hypot(*(corners[3] - corners[0])))
    if side < _LEAST_SIDE:
        raise DataError(f"the face is too small: a square of {side:.1f} pixels around it")
    inside = ((corners.min(0) < image.size) & (corners.max(0) > 0)).all()
    if not inside or side > _MOST_SIDES * max(image.size):
        raise DataError(
            f"its landmarks do not fit a picture of {image.width}x{image.height}: they may be of the picture in "
            "another size"
        )
    shrink = math.floor(0.5 * side / size)
    if shrink > 1:
        across, down = (max(1, int(np.rint(length / shrink))) for length in image.size)
        image = image.resize((across, down), Image.Resampling.LANCZOS)
        corners /= shrink
        side /= shrink
    image, corners = _cropped(image, corners, side)
    image, corners = _padded(image, corners, side)
    large = image.transform(
        (_OVERSAMPLING * size, _OVERSAMPLING * size),
        Image.Transform.QUAD,
        tuple((corners + 0.5).flatten().tolist()),
        Image.Resampling.BILINEAR,
    )
    return large.resize((size, size), Image.Resampling.LANCZOS)


def _border(side: float) -> int:
    """What is kept around the square."""
    return max(int(np.rint(0.1 * side)), 3)


def _bounds(corners: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of whole pixels around the corners."""
    (left, top), (right, bottom) = np.floor(corners.min(0)), np.ceil(corners.max(0))
    return int(left), int(top), int(right), int(bottom)


def _cropped(image: Image.Image, corners: NDArray[np.float64], side: float) -> tuple[Image.Image, NDArray[np.float64]]:
    """What matters of the picture."""
    border = _border(side)
    left, top, right, bottom = _bounds(corners)
    left, top = max(left - border, 0), max(top - border, 0)
    right, bottom = min(right + border, image.width), min(bottom + border, image.height)
    return image.crop((left, top, right, bottom)), corners - (left, top)


def _padded(image: Image.Image, corners: NDArray[np.float64], side: float) -> tuple[Image.Image, NDArray[np.float64]]:
    """The picture filled up to where the square reaches, if it reaches out or nearly so."""
    border = _border(side)
    left, top, right, bottom = _bounds(corners)
    over = [max(length + border, 0) for length in (-left, -top, right - image.width, bottom - image.height)]
    if max(over) <= border - 4:
        return image, corners
    left, top, right, bottom = (max(length, int(np.rint(0.3 * side))) for length in over)
    width, height = image.width + left + right, image.height + top + bottom
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    # 1 at the edge, 0 where the picture begins, less inside
    mask = np.maximum(
        1 - np.minimum(x / np.float32(left), x[::-1] / np.float32(right)),
        1 - np.minimum(y / np.float32(top), y[::-1] / np.float32(bottom)),
    )
    blurred, faded = np.clip(3 * mask + 1, 0, 1), np.clip(mask, 0, 1)
    planes = []
    for band in image.split():  # one after the other: they are large
        plane = np.pad(np.asarray(band, dtype=np.float32), ((top, bottom), (left, right)), "reflect")
        plane += (gaussian_blur(plane, 0.02 * side) - plane) * blurred
        plane += (np.median(plane) - plane) * faded
        planes.append(Image.fromarray(np.clip(np.rint(plane), 0, 255).astype(np.uint8)))
    return Image.merge("RGB", planes), corners + (left, top)


def gaussian_blur(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur float32 [H, W] by a Gaussian that ends at 4 sigma.

    Beyond its edges the picture is mirrored, d c b a | a b c d. Sums are in float64, and rows and columns are each
    rounded to float32 once.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    return _convolved(_convolved(plane.T, taps).T, taps)


def _convolved(rows: NDArray[np.float32], taps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each row convolved, by its spectrum: kernels are hundreds of pixels wide where faces are large."""
    radius, length = len(taps) // 2, rows.shape[1]
    whole = -(-(length + 2 * radius) // 64) * 64  # a length with small factors
    spectrum = np.fft.rfft(taps, whole)
    result = np.empty(rows.shape, np.float32)
    step = max(1, _CHUNK // whole)
    for start in range(0, len(rows), step):
        part = np.pad(rows[start : start + step].astype(np.float64), ((0, 0), (radius, radius)), "symmetric")
        part = np.fft.irfft(np.fft.rfft(part, whole) * spectrum, whole)
        result[start : start + step] = part[:, 2 * radius : 2 * radius + length]
    return result

"""Videos of a face that goes from style to style (section 6.3): the face, the sliding pictures of styles, the painting.

Frames are painted a few at a time and written one by one; moments that look the same are painted once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anifast.data.folders import to_uint8
from anifast.data.video import writing
from anifast.engine.precision import enough_memory
from anifast.progress import Progress
from anifast.systems.blendgan.styles import truncated
from anifast.systems.sheets import check_finite

if TYPE_CHECKING:
    from anifast.systems.blendgan.inference import Model

#: Frames a second, and how many styles a video goes through where they are drawn.
RATE, STYLES = 30, 8
#: The way from one style to the next: a moment of the first, the sigmoid from -5 in steps of a half, the second.
_STEPS, _TAIL = 20, 10
#: A moment of a video: the number of a style, and how far it has gone to the next.
Moment = tuple[int, float]


def schedule() -> list[float]:
    """How far the 31 frames between two styles have gone, from 0 to 1."""
    between = [1 / (1 + math.exp(5 - 0.5 * k)) for k in range(_STEPS)]
    return [0.0, *between, *[1.0] * _TAIL]


def moments(styles: int) -> list[Moment]:
    """The moments of all frames of a video through so many styles, at least 2: 31 a pair, and the last ten times more.

    Raises:
        ValueError: fewer styles.
    """
    if styles < 2:
        raise ValueError(f"styles: {styles} is below 2")
    found = [(k, t) if t < 1 else (k + 1, 0.0) for k in range(styles - 1) for t in schedule()]
    return found + found[-1:] * _TAIL


def between(codes: Tensor, chosen: Sequence[Moment], slerp: bool = False) -> Tensor:
    """The style codes of moments.

    Args:
        codes: [S, D].
        chosen: n of them.
        slerp: along the arc on the sphere, at an even pace, in place of the straight line. The generator sees the
            direction of a code only, so that the line is an arc too, gone through faster in its middle.

    Returns:
        [n, D].
    """
    first = codes[[k for k, _ in chosen]]
    second = codes[[min(k + 1, len(codes) - 1) for k, _ in chosen]]
    t = torch.tensor([t for _, t in chosen], dtype=codes.dtype, device=codes.device)[:, None]
    if not slerp:
        return torch.lerp(first, second, t)
    first, second = (torch.nn.functional.normalize(code, dim=1) for code in (first, second))
    angle = (first * second).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / sine.clamp(min=1e-6)
    # of one direction there is no arc, and of opposite ones there are many
    found = torch.where(sine > 1e-4, arc, torch.lerp(first, second, t))
    return torch.where(t == 0, first, found) * codes.shape[1] ** 0.5


def painted(
    model: Model,
    w: Tensor,
    codes: Tensor,
    *,
    index: int,
    slerp: bool = False,
    noise: int | None = None,
    parity: bool = False,
    batch: int = 8,
) -> Iterator[tuple[Moment, NDArray[np.uint8]]]:
    """The frames of a face through styles: each one's moment, and the painting uint8 size,size,3.

    Args:
        model: paints.
        w: code of the face, [1, style_dim] or [1, L, style_dim].
        codes: of the styles in their order, [S, style_dim], S at least 2.
        index: the blending indicator.
        slerp: see `between`.
        noise: see `Model.paint`; the same for all frames.
        parity: see `styles.truncated`.
        batch: frames to paint at once.

    Raises:
        AnifastError: a painting is not finite.
    """
    groups = [(moment, len(list(same))) for moment, same in itertools.groupby(moments(len(codes)))]
    for start in range(0, len(groups), batch):
        part = groups[start : start + batch]
        styles = between(codes, [moment for moment, _ in part], slerp)
        faces = w.expand(len(part), *w.shape[1:])
        # all with the same maps, or the grain would flicker
        images = model.paint(faces, styles, index, noise=noise, each=len(part), batch=batch)
        check_finite(images)
        pixels = to_uint8(truncated(images) if parity else images).permute(0, 2, 3, 1).cpu().numpy()
        for (moment, count), picture in zip(part, pixels, strict=True):
            for _ in range(count):
                yield moment, picture


def sliding(pictures: Sequence[NDArray[np.uint8]], moment: Moment) -> NDArray[np.uint8]:
    """The picture of a style that slides up and draws the next one's after it, size,size,3."""
    k, t = moment
    size = len(pictures[k])
    top = int(size * t)
    if not top:
        return pictures[k]
    return np.concatenate([pictures[k][top:], pictures[k + 1][:top]])


def write(
    model: Model,
    out: Path,
    w: Tensor,
    codes: Tensor,
    *,
    face: NDArray[np.uint8],
    pictures: Sequence[NDArray[np.uint8]] | None,
    index: int,
    slerp: bool = False,
    noise: int | None = None,
    parity: bool = False,
    rate: int = RATE,
    batch: int = 8,
    bar: Progress | None = None,
) -> int:
    """Write a video, whole or not at all: the face, the pictures of styles and the painting beside each other.

    Args:
        model: paints.
        out: the video.
        w: see `painted`, as are codes, index, slerp, noise, parity and batch.
        face: uint8 size,size,3, which stays.
        pictures: of the styles, each such; None: no column of them.
        rate: frames a second.
        bar: is told of each frame.

    Returns:
        How many frames it has.

    Raises:
        AnifastError: it cannot be written, the memory does not suffice, or a painting is not finite.
    """
    size, count = model.size, 0
    columns = 2 if pictures is None else 3
    with (
        enough_memory(batch, f" of side {size}", "--batch"),
        writing(out, rate, columns * size, size) as writer,
    ):
        for moment, picture in painted(
            model, w, codes, index=index, slerp=slerp, noise=noise, parity=parity, batch=batch
        ):
            middle = [] if pictures is None else [sliding(pictures, moment)]
            writer.write(np.concatenate([face, *middle, picture], axis=1), count)
            count += 1
            if bar is not None:
                bar.update()
    return count

"""Sliced Wasserstein distance of two sets of pictures, at each scale (Karras et al. 2018, section 5)."""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.progress import Progress

#: Pictures that the published figures are of half of; more tell little more.
PICTURES = 8192
#: Side of the smallest level, of a patch, patches of a picture at each level, and directions: repeats x at once.
LEAST, SIDE, PATCHES, DIRECTIONS = 16, 7, 128, 4 * 128
#: Figures are printed times this.
SCALE = 1e3
#: Projections that are there at once (32 MiB of float32), and pictures whose patches are taken at once.
_PIECE, _PICTURES = 1 << 23, 256
#: The binomial filter of Burt and Adelson (1983).
_TAPS = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def levels(size: int) -> list[int]:
    """Sides of the levels of pictures of this side: itself, half of it, ..., 16; none for smaller ones.

    Raises:
        ValueError: a side that halving does not bring to 16.
    """
    found = []
    while size >= LEAST:
        found.append(size)
        if size > LEAST and size % 2:
            raise ValueError(f"pictures of side {found[0]}: expected {LEAST} times a power of two")
        size //= 2
    if found and found[-1] != LEAST:
        raise ValueError(f"pictures of side {found[0]}: expected {LEAST} times a power of two")
    return found


def swd(x: Tensor, y: Tensor, *, seed: int = 0, label: str = "SWD") -> dict[int, float]:
    """Sliced Wasserstein distance of two sets of pictures, for each level of a Laplacian pyramid down to 16 px.

    As arXiv 1710.10196 has it, but for the number of pictures, which is up to the caller.

    Of each picture 128 patches of 7x7 pixels are taken at every level. Those of a set are normalised by the mean and
    the standard deviation of each colour channel over the set. They are projected to 512 random directions, and the
    distance is the mean over these of the Wasserstein-1 distance of the projections (Rabin et al. 2011). A set against
    itself gives 0; two samples of the same pictures do not. Brightness and contrast of a whole set do not count.

    Where patches are taken follows from the picture's own bytes, so that the order of pictures does not matter. Memory:
    up to 38 kB for each picture of both sets (one level at a time, patches in float16), and 0.1 GB.

    Args:
        x: uint8 M,3,S,S, pictures as they are saved, on any device or memory-mapped: 256 are looked at at once. S is 16
            times a power of two, or below 16.
        y: uint8 N,3,S,S; M and N may differ.
        seed: of places and directions.
        label: of the progress bar.

    Returns:
        Side of a level -> 1000 times the distance, the largest first; empty where S is below 16.

    Raises:
        ValueError: another type or shape, or an empty set.
    """
    for name, images in (("x", x), ("y", y)):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"{name}: expected uint8 N,3,S,S with N > 0, got {images.dtype} {tuple(images.shape)}")
    if x.shape[2:] != y.shape[2:] or x.shape[2] != x.shape[3]:
        raise ValueError(f"x and y: expected squares of one side, got {tuple(x.shape)} and {tuple(y.shape)}")
    sides = levels(x.shape[2])
    source = torch.Generator().manual_seed(seed)
    found = {}
    with Progress(len(sides) * DIRECTIONS, label, unit="direction") as bar:
        for depth, side in enumerate(sides):
            axes = F.normalize(torch.randn(DIRECTIONS, 3 * SIDE * SIDE, generator=source), dim=1)
            taken, other = (patches(images, depth, last=side == sides[-1], seed=seed) for images in (x, y))
            found[side] = SCALE * _distance(taken, other, axes, bar)
    return found


def patches(images: Tensor, depth: int, *, last: bool, seed: int = 0) -> Tensor:
    """Patches at a level of the Laplacian pyramid: 128 of each picture.

    Args:
        images: uint8 N,3,S,S.
        depth: 0 for the finest level.
        last: the level is the coarsest: what is left of the pictures, not the difference to something coarser.
        seed: of their places.

    Returns:
        float16 128 N,147 on the CPU, of pictures in [0, 1]: 3 channels x 7 rows x 7 columns.
    """
    side = images.shape[2] >> depth
    found = torch.empty(len(images) * PATCHES, 3 * SIDE * SIDE, dtype=torch.float16)
    inside = (torch.arange(SIDE)[:, None] * side + torch.arange(SIDE)).flatten()
    for first in range(0, len(images), _PICTURES):
        group = images[first : first + _PICTURES].cpu()
        level = group.float() / 255
        for _ in range(depth):
            level = _down(level)
        if not last:
            level = level - _up(_down(level))
        corners = torch.stack([_corners(image, side, seed) for image in group])  # n,patches
        places = (corners[:, :, None] + inside).flatten(1)
        taken = level.flatten(2).gather(2, places[:, None].expand(-1, 3, -1))
        rows = taken.unflatten(2, (PATCHES, SIDE * SIDE)).transpose(1, 2).flatten(2)  # n,patches,147
        found[first * PATCHES : (first + len(group)) * PATCHES] = rows.flatten(0, 1)
    return found


def sliced_wasserstein(x: Tensor, y: Tensor, axes: Tensor) -> float:
    """The mean over directions of the Wasserstein-1 distance of two sets of vectors, projected.

    Args:
        x: M,D of any floating type.
        y: N,D.
        axes: K,D.

    Raises:
        ValueError: shapes that do not fit, or an empty set.
    """
    if x.ndim != 2 or y.ndim != 2 or axes.ndim != 2 or not x.shape[1] == y.shape[1] == axes.shape[1]:
        raise ValueError(f"expected M,D, N,D and K,D, got {tuple(x.shape)}, {tuple(y.shape)} and {tuple(axes.shape)}")
    if not len(x) or not len(y) or not len(axes):
        raise ValueError(f"nothing to compare: {len(x)} and {len(y)} vectors, {len(axes)} directions")
    plain = torch.zeros(len(axes))
    return _mean_distance(x, y, (axes, plain), (axes, plain))


def _distance(x: Tensor, y: Tensor, axes: Tensor, bar: Progress | None = None) -> float:
    """Of patches, each set normalised by itself; that is done to the directions, which are fewer."""
    return _mean_distance(x, y, _normalising(x, axes), _normalising(y, axes), bar)


def _normalising(rows: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and offsets whose projections of patches are those of normalised patches.

    With mean m_c and deviation s_c of channel c: sum of a (x - m) / s = (a / s) x - sum of m a / s.
    """
    total = torch.zeros(2, 3, dtype=torch.float64)
    for part in rows.split(_PICTURES * PATCHES):
        channels = part.float().unflatten(1, (3, -1))
        total += torch.stack([channels.sum((0, 2), dtype=torch.float64), _squares(channels)])
    mean, square = total / (len(rows) * SIDE * SIDE)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    # a channel of one value has nothing to be scaled by, but for rounding
    deviation[deviation <= 1e-6 * square.sqrt()] = 1.0
    scaled = axes.double().unflatten(1, (3, -1)) / deviation[:, None]
    return scaled.flatten(1).float(), (scaled.sum(2) @ mean).float()


def _squares(channels: Tensor) -> Tensor:
    return channels.square().sum((0, 2), dtype=torch.float64)


def _mean_distance(
    x: Tensor,
    y: Tensor,
    of_x: tuple[Tensor, Tensor],
    of_y: tuple[Tensor, Tensor],
    bar: Progress | None = None,
) -> float:
    """Over all directions; of_x and of_y: the directions and offsets of each set."""
    count = len(of_x[0])
    cells = None if len(x) == len(y) else _cells(len(x), len(y))
    total = 0.0
    for part in torch.arange(count).split(max(1, _PIECE // max(len(x), len(y)))):
        a, b = (_projected(rows, axes[part], off[part]) for rows, (axes, off) in ((x, of_x), (y, of_y)))
        if cells is None:
            total += float((a - b).abs().sum(dtype=torch.float64)) / len(x)
        else:
            i, j, width = cells
            for one, other in zip(a, b, strict=True):
                total += float((one[i] - other[j]).abs().double() @ width)
        if bar is not None:
            bar.update(len(part))
    return total / count


def _projected(rows: Tensor, axes: Tensor, offsets: Tensor) -> Tensor:
    """Sorted projections, [directions, rows]."""
    found = torch.empty(len(axes), len(rows))
    for first in range(0, len(rows), 1 << 16):
        part = rows[first : first + (1 << 16)].float()
        found[:, first : first + len(part)] = axes.float() @ part.T - offsets[:, None]
    return found.sort(dim=1).values


def _cells(m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where two quantile functions, steps of 1/m and 1/n, are constant together: step of each, and how wide."""
    both = m * n // math.gcd(m, n)
    ends = torch.cat([torch.arange(1, m + 1) * (both // m), torch.arange(1, n + 1) * (both // n)]).unique()
    width = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype)).double() / both
    return (ends - 1) // (both // m), (ends - 1) // (both // n), width


def _corners(image: Tensor, side: int, seed: int) -> Tensor:
    """int64 [patches]: where the upper left pixels of a picture's patches lie in a level of this side, row by row."""
    digest = hashlib.blake2b(f"{seed} {side} ".encode(), digest_size=8)
    digest.update(image.contiguous().numpy().tobytes())
    source = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
    row, column = torch.randint(side - SIDE + 1, (2, PATCHES), generator=source)
    return row * side + column


def _down(images: Tensor) -> Tensor:
    """Half the side: filtered, every second pixel; borders are mirrored."""
    return _filtered(images)[:, :, ::2, ::2]


def _up(images: Tensor) -> Tensor:
    """Twice the side: zeros between the pixels, filtered to the same mean."""
    wide = images.new_zeros(*images.shape[:2], 2 * images.shape[2], 2 * images.shape[3])
    wide[:, :, ::2, ::2] = images
    return _filtered(wide) * 4


def _filtered(images: Tensor) -> Tensor:
    channels = images.shape[1]
    taps = _TAPS.to(images).expand(channels, 1, -1)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, taps[:, :, None, :], groups=channels)
    return F.conv2d(rows, taps[:, :, :, None], groups=channels)

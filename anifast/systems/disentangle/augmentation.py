"""What networks see of pictures, and all that is drawn for a batch.

Everything random is a function of the numbers of the batch's pictures in the run, on whatever device these are: it can
be recorded with the step, and does not depend on how many processes share it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anifast.data.augment import uniforms, warp
from anifast.systems.disentangle.config import Config


def alpha_mask(rgb: Tensor, alpha: Tensor | None = None) -> Tensor:
    """N,3,H,W and alpha N,1,H,W in [0, 1] (None: 1) -> N,4,H,W: mid-grey where nothing is, and alpha behind."""
    if alpha is None:
        return torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1)
    return torch.cat([rgb * (alpha > 0).to(rgb.dtype), alpha.to(rgb.dtype)], 1)


def prepare(images: Tensor) -> Tensor:
    """uint8 N,C,H,W, C 1, 3 or 4 (RGBA) -> what networks see: colours in [-1, 1] and, if C is 4, alpha in [0, 1]."""
    x = images.float()
    if images.shape[1] != 4:
        return x / 127.5 - 1
    return alpha_mask(x[:, :3] / 127.5 - 1, x[:, 3:] / 255)


def seen(painted: Tensor, real: Tensor | None, channels: int) -> Tensor:
    """What networks with so many channels see of a painted picture, with the alpha of a real one's view (None: 1)."""
    if channels != 4:
        return painted
    return alpha_mask(painted, None if real is None else real[:, 3:])


def augment(x: Tensor, parameters: Tensor, config: Config) -> Tensor:
    """Turn, scale and move pictures and their alpha; what comes in from outside is transparent, or mid-grey.

    Args:
        x: N,C,H,W as networks see it.
        parameters: N,4 in [0, 1): angle, of a triangular distribution, scale, exponential, and centre, uniform.
        config: `max_angle`, `max_scale`, `min_margin`.
    """
    p = parameters.unbind(1)
    turn = torch.where(p[0] < 0.5, (2 * p[0]).sqrt() - 1, 1 - (2 * (1 - p[0])).sqrt())
    angle = turn * math.radians(config.max_angle)
    scale = torch.exp(p[1] * math.log(config.max_scale))
    reach = 1 - 2 * config.min_margin / scale
    columns = [torch.cos(angle) / scale, -torch.sin(angle) / scale, (2 * p[2] - 1) * reach]
    columns += [torch.sin(angle) / scale, torch.cos(angle) / scale, (2 * p[3] - 1) * reach]
    return warp(x, torch.stack(columns, 1).view(-1, 2, 3), align_corners=True)


def strata(order: Tensor, within: Tensor) -> Tensor:
    """[0, 1) numbers M,D of which each column has one in every M-th part.

    Args:
        order: a permutation of 0..M-1 in each column.
        within: M,D in [0, 1), the places in the parts.
    """
    return (order + within) / len(order)


def normal(u: Tensor) -> Tensor:
    """[0, 1) numbers as those of N(0, 1) with the same ranks: sqrt 2 erfinv, up to 4.3 in size."""
    return torch.erfinv(u * 1.99998 - 0.99999) * math.sqrt(2)


class Draws(NamedTuple):
    """What is random in a step, a row for each picture.

    Attributes:
        content: noise of content codes, N(0, 1).
        style: of style codes.
        content_level: of nested dropout, in [0, 1).
        style_level: likewise.
        warp: parameters of `augment`, N,4.
        partner: in 0..N-1, the picture whose artist is the other one; never the picture itself if N is above 1.
    """

    content: Tensor
    style: Tensor
    content_level: Tensor
    style_level: Tensor
    warp: Tensor
    partner: Tensor

    def rows(self, which: slice | Tensor) -> Draws:
        """Those of some pictures."""
        return Draws(*(part[which] for part in self))


def draw(numbers: Tensor, config: Config, style: int) -> Draws:
    """All draws for the pictures with these numbers, which decide them with the run's seed, and for one another.

    Args:
        numbers: int64 [N], different ones.
        config: `stratified`, `other_artist`, `content_size`.
        style: numbers of a style code.
    """
    count = len(numbers)
    wide = config.content_size + style + 4
    u = uniforms(numbers, 2 * wide + 3)
    spread = u[:, :wide]
    if config.stratified:
        spread = strata(u[:, wide : 2 * wide].argsort(0), spread)
    noise = normal(spread[:, :-4])
    rows = torch.arange(count, device=numbers.device)
    step = 1 if config.other_artist == "next" else 1 + (u[:, -1] * (count - 1)).long()
    return Draws(
        noise[:, : config.content_size],
        noise[:, config.content_size :],
        u[:, -3],
        u[:, -2],
        spread[:, -4:],
        (rows + step) % count,
    )


def kept(level: Tensor, base: float, size: int) -> Tensor | None:
    """The mask of nested dropout N,size: number i stays where base^i >= level; None: all stay."""
    if base == 1:
        return None
    return (keep_probabilities(base, size, level) >= level[:, None]).to(level.dtype)


def keep_probabilities(base: float, size: int, like: Tensor) -> Tensor:
    """base^i for i = 0..size-1, on the device of `like` and in its type."""
    return base ** torch.arange(size, device=like.device, dtype=like.dtype)

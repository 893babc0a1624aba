"""The views of style pictures that the style encoder learns by: affine, without any change of colour."""

from __future__ import annotations

import torch
from torch import Tensor

from anifast.data import augment as geometry
from anifast.systems.blendgan.config import Config


def views(images: Tensor, seeds: Tensor, config: Config) -> Tensor:
    """One view of each picture: a random part of it, stretched, turned, sheared, moved, mirrored half of the time.

    All of it is one interpolation. What comes from outside a picture is its reflection: a border of one colour would be
    in the Gram matrices.

    Args:
        images: N,3,side,side in [-1, 1], float.
        seeds: int64 [N] on the same device, which decide everything.
        config: the ranges.

    Returns:
        The same shape and type.
    """
    side = images.shape[-1]
    theta = geometry.to_theta(matrices(seeds, config, side), side)
    return geometry.warp(images, theta, padding="reflection")


def matrices(seeds: Tensor, config: Config, side: int) -> Tensor:
    """From input pixels to output pixels, [N,3,3]."""
    draws = geometry.uniforms(seeds, 10).double()
    signed = 2 * draws - 1
    area = config.least_area + (1 - config.least_area) * draws[:, 0]
    aspect = torch.exp(signed[:, 1] * torch.tensor(config.aspect, dtype=torch.float64).log())
    # a part is no larger than the picture: a square one where the stretched one would be
    wide, high = (side * torch.sqrt(area * ratio) for ratio in (aspect, 1 / aspect))
    fits = (wide <= side) & (high <= side)
    square = side * torch.sqrt(area)
    wide, high = torch.where(fits, wide, square), torch.where(fits, high, square)
    center = ((side - 1) / 2, (side - 1) / 2)
    return geometry.compose(
        geometry.cropping(draws[:, 2] * (side - wide), draws[:, 3] * (side - high)),
        geometry.resizing((high, wide), side),
        geometry.shearing(signed[:, 4] * config.shear, center=center),
        geometry.scaling(1 + signed[:, 5] * config.scale, center=center),
        geometry.rotation(signed[:, 6] * config.degrees, center),
        geometry.translation(signed[:, 7] * config.shift * side, signed[:, 8] * config.shift * side),
        geometry.flipping(side, draws[:, 9] < 0.5),
    )

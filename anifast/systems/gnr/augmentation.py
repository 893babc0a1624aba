"""The augmentation T: affine half of the time, enlarged by 286 / 256, cut at random, mirrored half of the time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from anifast.data import augment as geometry
from anifast.systems.gnr.config import Config


def augment(images: Tensor, seeds: Tensor, config: Config) -> Tensor:
    """Augment every picture by itself (specification of the system, section 2; its authors used kornia).

    What comes from outside a picture is mid-grey. With `config.warp` "twice" each of the authors' two interpolations is
    made (cuts and mirrors copy pixels); "once" composes all into one, which is sharper and half the work.

    Args:
        images: N,3,size,size in [-1, 1], float; may be an expanded view of one picture.
        seeds: int64 [N] on the same device, which decide everything.
        config: the ranges.

    Returns:
        The same shape and type.
    """
    affine, cut = matrices(seeds, config)
    size = config.size
    if config.warp == "once":
        # A rim of copied edge pixels, so that an enlarged picture does not fade into what is outside at its border.
        rimmed = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        whole = geometry.compose(geometry.translation(-1.0, -1.0, device=seeds.device), affine, cut)
        return geometry.warp(rimmed, geometry.to_theta(whole, size + 2, size), size=size)
    moved = geometry.warp(images, geometry.to_theta(affine, size), size=size)
    # an interpolation inside the picture, whose edge pixels stand for what is beyond
    return geometry.warp(moved, geometry.to_theta(cut, size), padding="border", size=size)


def matrices(seeds: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """The two steps, affine and enlarge-cut-mirror, as matrices [N,3,3] from input pixels to output pixels."""
    size, loaded = config.size, config.loaded
    draws = geometry.uniforms(seeds, 9).double()
    applied = draws[:, 0] < config.affine
    signed = 2 * draws - 1

    def within(column: int, reach: float) -> Tensor:
        """Uniform in [-reach, reach] where the affine step is applied, else 0: then that step is the identity."""
        return torch.where(applied, signed[:, column] * reach, torch.zeros_like(signed[:, column]))

    center = ((size - 1) / 2, (size - 1) / 2)
    affine = geometry.compose(
        geometry.shearing(within(5, config.shear), center=center),
        geometry.scaling(1 + within(2, config.scale), center=center),
        geometry.rotation(within(1, config.degrees), center),
        geometry.translation(within(3, config.shift * size), within(4, config.shift * size)),
    )
    places = loaded - size + 1
    cut = geometry.compose(
        geometry.resizing(size, loaded, device=seeds.device),
        geometry.cropping((draws[:, 6] * places).floor(), (draws[:, 7] * places).floor()),
        geometry.flipping(size, draws[:, 8] < 0.5),
    )
    return affine, cut

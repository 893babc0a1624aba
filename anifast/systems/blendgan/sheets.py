"""Labelled sheets of what BlendGAN paints: faces by the blending indicator, and faces by styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anifast.data.folders import to_uint8
from anifast.engine.sheets import Block, sheet
from anifast.systems.blendgan.config import INDEX
from anifast.systems.sheets import OnPainted, check_room, collected, labels

if TYPE_CHECKING:
    from anifast.systems.blendgan.inference import Model

#: Sides of a picture on a sheet: of smaller ones faces cannot be seen, and of larger ones a sheet is not looked at.
LEAST, MOST = 96, 256


def tile_of(size: int) -> int:
    """The side of a picture on a sheet, for pictures of side `size`: a multiple or a part of it."""
    return min(MOST, size * -(-LEAST // size))


def sweep(
    model: Model,
    w: Tensor,
    style: Tensor,
    *,
    indices: Sequence[int],
    names: Sequence[str] = (),
    photos: Tensor | None = None,
    style_name: str = "",
    reference: Tensor | None = None,
    noise: int | None = None,
    batch: int = 8,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """Faces in one style by the blending indicator: a row for each face, a column for each indicator.

    Args:
        model: paints.
        w: codes of the faces, see `Model.paint`; at least one.
        style: [1, style_dim].
        indices: the indicators, each of 0 (all of the style) to L (none of it).
        names: of the rows.
        photos: uint8 N,3,H,W, which the codes are of, for a column in front.
        style_name: for people.
        reference: uint8 1,3,H,W, the picture that the style is of; it stands in front of the first row.
        noise: see `Model.paint`; the same for all pictures of a face.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    tile = tile_of(model.size)
    check_room(tile, len(w), len(indices) + 2, "faces or indicators")
    count = len(indices)
    parts = model.paintings(
        w.repeat_interleave(count, 0), style, torch.tensor(indices).repeat(len(w)), noise=noise, each=count, batch=batch
    )
    painted = collected(parts, len(w) * count, on_painted, lambda part: _small(part, tile)).split(count)
    rows = _named(names, len(w))
    blocks = []
    if reference is not None:
        blocks.append(Block("style", [("", reference)]))
    if photos is not None:
        blocks.append(Block("", list(zip(rows, photos.split(1), strict=True)), ["photo"]))
        rows = [""] * len(w)
    last, (named,) = model.n_latent, labels([style_name], "style")
    of = f" of {named}" if style_name else ""
    title = f"blending indicator: 0 is all of the style{of}, {last} none of it"
    blocks.append(Block(title, list(zip(rows, painted, strict=True)), [str(index) for index in indices]))
    return sheet(blocks, tile=tile)


def grid(
    model: Model,
    w: Tensor,
    styles: Tensor,
    *,
    index: int = INDEX,
    names: Sequence[str] = (),
    photos: Tensor | None = None,
    heads: Sequence[str] = (),
    references: Tensor | None = None,
    noise: int | None = None,
    batch: int = 8,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """Every face in every style: a row for each face behind its natural picture, a column for each style.

    Args:
        model: paints.
        w: codes of the faces, see `Model.paint`; at least one.
        styles: codes [S, style_dim], S at least 1.
        index: the blending indicator.
        names: of the rows.
        photos: uint8 N,3,H,W, which the codes are of, for a column in front.
        heads: names of the styles, above their columns.
        references: uint8 S,3,H,W, pictures that the styles are of, for a first row; white for a style without one.
        noise: see `Model.paint`; the same for all pictures of a face.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    tile, count = tile_of(model.size), len(styles) + 1
    check_room(tile, len(w) + (references is not None), count + (photos is not None), "faces or styles")
    indices = torch.tensor([model.n_latent] + [index] * len(styles))
    codes = torch.cat([styles[:1], styles])  # with an indicator of L it is nobody's
    parts = model.paintings(
        w.repeat_interleave(count, 0),
        codes.repeat(len(w), 1),
        indices.repeat(len(w)),
        noise=noise,
        each=count,
        batch=batch,
    )
    painted = collected(parts, len(w) * count, on_painted, lambda part: _small(part, tile)).unflatten(0, (-1, count))
    side, plain = painted.shape[-1], painted[:, :1]
    if photos is not None:
        plain = torch.cat([_resized(photos, side)[:, None], plain], 1)
    rows, right = _named(names, len(w)), list(painted[:, 1:])
    left = list(plain)
    if references is not None:
        rows, right = ["styles of", *rows], [_resized(references, side), *right]
        left = [torch.full_like(plain[0], 255), *left]
    first = Block("", list(zip(rows, left, strict=True)), ["natural"] if photos is None else ["photo", "inverted"])
    title = f"styles, blending indicator {index} of {model.n_latent}"
    return sheet([first, Block(title, [("", row) for row in right], labels(heads, "style"))], tile=tile)


def _named(names: Sequence[str], count: int) -> list[str]:
    return labels(names, "face") or [f"{number}" for number in range(count)]


def _small(images: Tensor, tile: int) -> Tensor:
    """What is painted as it stands on a sheet: not larger than `tile`."""
    if images.shape[-1] > tile:
        images = F.interpolate(images, tile, mode="bicubic", antialias=True)
    return to_uint8(images).cpu()


def _resized(images: Tensor, side: int) -> Tensor:
    """uint8 pictures at the side of those that are painted, to stand in one row with them."""
    if images.shape[-1] == side:
        return images
    pixels = F.interpolate(images.float(), side, mode="bicubic", antialias=True)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)

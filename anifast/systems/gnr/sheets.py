"""Labelled sheets of what GANs N' Roses paints: contents x styles, from one style to another, and edited styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from anifast.engine.sheets import Block, sheet
from anifast.systems import sheets
from anifast.systems.sheets import OnPainted, collected, labels

if TYPE_CHECKING:
    from anifast.systems.gnr.inference import Translator


def grid(
    model: Translator,
    images: Tensor,
    styles: Tensor,
    *,
    to: str = "B",
    truncation: float = 1.0,
    names: Sequence[str] = (),
    heads: Sequence[str] = (),
    references: Tensor | None = None,
    title: str = "",
    batch: int = 8,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """A sheet of every picture in every style: a row for each picture, which stands in the first column.

    Args:
        model: paints.
        images: N,3,size,size in [-1, 1], N at least 1.
        styles: codes [S, latent_dim], S at least 1.
        to: the domain that is painted.
        truncation: see `Translator.latents`.
        names: of the rows.
        heads: names of the styles, above their columns.
        references: S,3,size,size, pictures that the styles are of, for a first row; white for a style without one.
        title: above the columns of styles.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large.
        ValueError: wrong shapes or target.
    """
    check_room(model, len(images) + (references is not None), 1 + len(styles))
    w = model.latents(styles, to, truncation)
    return _strips(model, images, w, to, names, labels(heads, "style"), references, title, batch, on_painted)


def interpolation(
    model: Translator,
    images: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    steps: int = 5,
    to: str = "B",
    truncation: float = 1.0,
    names: Sequence[str] = (),
    references: Tensor | None = None,
    title: str = "",
    batch: int = 8,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """A strip for each picture from one style to another, in even steps in w, behind the picture itself.

    Above the columns stands how far they have gone, from 0 to 1.

    Args:
        model: paints.
        images: N,3,size,size in [-1, 1], N at least 1.
        first: code [latent_dim] or [1, latent_dim].
        last: code [latent_dim] or [1, latent_dim].
        steps: how many paintings, with both ends; at least 2.
        to: the domain that is painted.
        truncation: see `Translator.latents`.
        names: of the strips.
        references: 2,3,size,size, pictures that the two styles are of, for a row above; white for one without.
        title: above the paintings.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large.
        ValueError: wrong shapes or target, or fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"steps: {steps} is below 2")
    check_room(model, len(images) + (references is not None), 1 + steps)
    start, end = (model.latents(code, to, truncation) for code in (first, last))
    w = torch.cat([torch.lerp(start, end, k / (steps - 1)) for k in range(steps)])
    if references is not None:
        between = _nothing(references).expand(steps - 2, -1, -1, -1).to(references)
        references = torch.cat([references[:1], between, references[1:]])
    heads = [f"{k / (steps - 1):.3g}" for k in range(steps)]
    return _strips(model, images, w, to, names, heads, references, title, batch, on_painted)


def edits(
    model: Translator,
    image: Tensor,
    style: Tensor,
    *,
    directions: int = 5,
    strength: float = 4.0,
    steps: int = 5,
    to: str = "B",
    truncation: float = 1.0,
    title: str = "",
    batch: int = 8,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """A sheet of one picture in styles around a given one: a row for each of `Translator.directions`.

    Columns go from -strength to +strength times the direction, a unit vector in w, in even steps; with an odd number
    of them the style itself is in the middle. How far they go stands above them.

    Args:
        model: paints.
        image: 1,3,size,size in [-1, 1].
        style: code [latent_dim] or [1, latent_dim].
        directions: how many, those that change the most.
        strength: of the outermost columns, above 0; the authors take 4.
        steps: columns, at least 2.
        to: the domain that is painted.
        truncation: see `Translator.latents`.
        title: above the columns.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large.
        ValueError: wrong shapes or target, or numbers that cannot be.
    """
    if steps < 2 or not 0 < strength < float("inf"):
        raise ValueError(f"steps: {steps}, strength: {strength}; expected at least 2 steps and a strength above 0")
    check_room(model, directions, 1 + steps)
    axes = model.directions(to, directions)
    w = model.latents(style, to, truncation)
    offsets = torch.tensor(strengths(strength, steps), device=w.device)
    around = (w + offsets[None, :, None] * axes[:, None]).flatten(0, 1)
    (painted,) = _painted(model, image, around, to, batch, on_painted)
    names = [f"direction {n}" for n in range(directions)]
    shown = [image, *[_nothing(image)] * (directions - 1)]
    heads = [f"{x:+.3g}" if x else "0" for x in strengths(strength, steps)]
    return _sheet(model, names, shown, painted.split(steps), title, heads)


def strengths(strength: float, steps: int) -> list[float]:
    """From -strength to +strength in even steps."""
    return [strength * (2 * k - (steps - 1)) / (steps - 1) for k in range(steps)]


def check_room(model: Translator, rows: int, columns: int) -> None:
    """Check that a sheet of so many pictures can be drawn.

    Raises:
        AnifastError: it would have more pixels than pictures may have.
    """
    sheets.check_room(_tile(model), rows, columns, "pictures or styles")


def _tile(model: Translator) -> int:
    """The side of a picture on a sheet: its own, but at least 128, so that faces can be seen and labels have room."""
    return max(128, model.size)


def _nothing(like: Tensor) -> Tensor:
    """1,3,H,W of the sheet's white."""
    return torch.ones(1, *like.shape[1:])


def _strips(
    model: Translator,
    images: Tensor,
    w: Tensor,
    to: str,
    names: Sequence[str],
    heads: Sequence[str],
    references: Tensor | None,
    title: str,
    batch: int,
    on_painted: OnPainted | None,
) -> Image.Image:
    """A row for each picture in all of w, under a row of references if there are some."""
    named = labels(names, "picture") or [f"{n}" for n in range(len(images))]
    shown = list(images.split(1))
    painted = list(_painted(model, images, w, to, batch, on_painted))
    if references is not None:
        named, shown, painted = ["styles of", *named], [_nothing(images), *shown], [references, *painted]
    return _sheet(model, named, shown, painted, title, heads)


def _sheet(
    model: Translator,
    names: Sequence[str],
    shown: Sequence[Tensor],
    painted: Sequence[Tensor],
    title: str,
    heads: Sequence[str],
) -> Image.Image:
    """Pictures with their labels in the first column, and under title and heads what stands in the row of each."""
    left = Block("", list(zip(names, shown, strict=True)))
    return sheet([left, Block(title, [("", row) for row in painted], heads)], tile=_tile(model))


def _painted(
    model: Translator, images: Tensor, w: Tensor, to: str, batch: int, on_painted: OnPainted | None
) -> tuple[Tensor, ...]:
    """Every picture in styles w [S, 512], for each picture uint8 S,3,size,size on the CPU.

    Raises:
        AnifastError: a painting is not finite.
    """
    parts = model.paintings(images, w, to, batch)
    return collected(parts, len(images) * len(w), on_painted).split(len(w))

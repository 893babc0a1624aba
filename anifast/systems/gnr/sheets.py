"""Labelled sheets of what GANs N' Roses paints: contents x styles, from one style to another, and edited styles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from anifast.data.folders import pixel_limit
from anifast.engine.sheets import Block, sheet
from anifast.errors import AnifastError

if TYPE_CHECKING:
    from anifast.systems.gnr.inference import Translator

#: Is told how many pictures were painted just now.
OnPainted = Callable[[int], None]


def grid(
    model: Translator,
    images: Tensor,
    styles: Tensor,
    *,
    to: str = "B",
    truncation: float = 1.0,
    names: Sequence[str] = (),
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
    rows = [] if references is None else [("styles of", torch.cat([_nothing(references), references.float().cpu()]))]
    for n, image in enumerate(images.split(1)):
        rows.append((names[n] if names else f"{n}", _row(image, _painted(model, image, w, to, batch, on_painted))))
    return sheet([Block(title, rows)], tile=_tile(model))


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
    ends = [model.latents(code, to, truncation) for code in (first, last)]
    w = torch.cat([torch.lerp(*ends, k / (steps - 1)) for k in range(steps)])
    rows = []
    if references is not None:
        between = _nothing(references).expand(steps - 2, -1, -1, -1)
        known = references.float().cpu()
        rows.append(("styles of", torch.cat([_nothing(references), known[:1], between, known[1:]])))
    for n, image in enumerate(images.split(1)):
        rows.append((names[n] if names else f"{n}", _row(image, _painted(model, image, w, to, batch, on_painted))))
    return sheet([Block(title, rows)], tile=_tile(model))


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
    of them the style itself is in the middle.

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
    painted = _painted(model, image, around, to, batch, on_painted)
    rows = [
        (f"direction {n}", _row(image if n == 0 else _nothing(image), part))
        for n, part in enumerate(painted.split(steps))
    ]
    return sheet([Block(title, rows)], tile=_tile(model))


def strengths(strength: float, steps: int) -> list[float]:
    """From -strength to +strength in even steps."""
    return [strength * (2 * k - (steps - 1)) / (steps - 1) for k in range(steps)]


def check_room(model: Translator, rows: int, columns: int) -> None:
    """Check that a sheet of so many pictures can be drawn.

    Raises:
        AnifastError: it would have more pixels than pictures may have.
    """
    pixels = rows * columns * _tile(model) ** 2
    if pixels > pixel_limit():
        raise AnifastError(
            f"{rows} rows of {columns} pictures make a sheet of {pixels} pixels, more than {pixel_limit()}; take fewer "
            "pictures or styles (or set ANIFAST_MAX_PIXELS)"
        )


def _tile(model: Translator) -> int:
    """The side of a picture on a sheet: its own, but at least 128, so that faces can be seen and labels have room."""
    return max(128, model.size)


def _nothing(like: Tensor) -> Tensor:
    """1,3,H,W of the sheet's white."""
    return torch.ones(1, *like.shape[1:])


def _row(image: Tensor, painted: Tensor) -> Tensor:
    """A row of a sheet on the CPU: the picture and its paintings."""
    return torch.cat([image.detach().float().cpu(), painted])


def _painted(model: Translator, image: Tensor, w: Tensor, to: str, batch: int, on_painted: OnPainted | None) -> Tensor:
    """One picture in styles w [S, 512] as S,3,size,size on the CPU.

    Raises:
        AnifastError: a painting is not finite.
    """

    def parts() -> Iterator[Tensor]:
        for part in model.paint_all(model.contents(image, to), w, to, batch):
            if not torch.isfinite(part).all():
                raise AnifastError(
                    "a painting is not finite (NaN); the model's weights may be damaged, or try --precision fp32"
                )
            if on_painted is not None:
                on_painted(len(part))
            yield part.cpu()

    return torch.cat(list(parts()))

"""Labelled sheets of what the disentangling network paints: artists by contents, one of either, and pictures again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from anifast.data.folders import to_uint8
from anifast.engine.sheets import Block, readable, sheet
from anifast.systems import sheets
from anifast.systems.sheets import OnPainted, collected, label, labels

if TYPE_CHECKING:
    from anifast.systems.disentangle.inference import Model


def grid(
    model: Model,
    contents: Tensor,
    styles: Tensor,
    *,
    names: Sequence[str],
    originals: Tensor | None = None,
    real: Tensor | None = None,
    batch: int = 32,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """The same contents in every style, a row for each style, beside real pictures of the artist (the paper's fig. 2).

    Args:
        model: paints.
        contents: [N, content_size], N at least 1.
        styles: [S, style_size], S at least 1.
        names: of the styles.
        originals: N,C,size,size, the pictures that contents are of, for a first row.
        real: S,R,C,size,size, pictures by each artist.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    columns = len(contents) + (0 if real is None else real.shape[1])
    check_room(model, len(styles) + (originals is not None), columns)
    named = labels(names, "style")
    rows = list(_painted(model, contents, styles, batch, on_painted))
    if originals is not None:
        named, rows = ["contents of", *named], [shown(originals), *rows]
    if real is None:
        return _sheet(model, [Block("the same contents in each style", list(zip(named, rows, strict=True)))])
    beside = [shown(row) for row in real]
    if originals is not None:
        beside = [torch.full_like(beside[0], 255), *beside]
    return _sheet(
        model,
        [
            Block("real pictures", list(zip(named, beside, strict=True))),
            Block("the same contents in each style", [("", row) for row in rows]),
        ],
    )


def one_content(
    model: Model,
    content: Tensor,
    styles: Tensor,
    *,
    names: Sequence[str],
    original: Tensor | None = None,
    batch: int = 32,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """One content in many styles, with the picture that it is of in front (the paper's fig. 3 and 14).

    Args:
        model: paints.
        content: [1, content_size].
        styles: [S, style_size], S at least 1.
        names: of the styles.
        original: 1,C,size,size.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    heads, count = [label(name, "style", n) for n, name in enumerate(names)], len(styles) + (original is not None)
    columns = across(count)
    check_room(model, -(-count // columns), columns)
    tiles = torch.cat(list(_painted(model, content, styles, batch, on_painted)))
    if original is not None:
        heads, tiles = ["content of", *heads], torch.cat([shown(original), tiles])
    return _wrapped(model, heads, tiles, columns)


def one_style(
    model: Model,
    contents: Tensor,
    style: Tensor,
    *,
    name: str,
    originals: Tensor | None = None,
    batch: int = 32,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """Many contents in one style, each behind the picture that it is of (the paper's fig. 13).

    Args:
        model: paints.
        contents: [N, content_size], N at least 1.
        style: [1, style_size].
        name: of the style.
        originals: N,C,size,size.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    each = 1 if originals is None else 2
    columns = across(each * len(contents))
    columns += columns % each
    check_room(model, -(-each * len(contents) // columns), columns)
    (tiles,) = _painted(model, contents, style, batch, on_painted)
    heads: list[str] = []
    if originals is not None:
        tiles = torch.stack([shown(originals), tiles], 1).flatten(0, 1)
        heads = ["content of", "painted"] * (columns // 2)
    title = f"many contents in one style{f': {name}' if readable(name) else ''}"
    rows = [("", row) for row in tiles.split(columns)]
    return _sheet(model, [Block(title, rows, heads[: len(tiles)])])


def again(
    model: Model,
    images: Tensor,
    own: Tensor | None,
    other: Tensor,
    *,
    names: Sequence[str],
    known: Sequence[bool] = (),
    batch: int = 32,
    on_painted: OnPainted | None = None,
) -> Image.Image:
    """Pictures and what is made of their contents: in their own style, in none, and in another's.

    Args:
        model: paints. A plain VAE has one reconstruction.
        images: N,C,size,size as the networks see them, N at least 1.
        own: [N, style_size]; None: nobody's is known.
        other: [N, style_size].
        names: of the rows; several lines where wanted.
        known: whose own style is known, for white in place of it; empty: all.
        batch: pictures at once.
        on_painted: is told of progress.

    Raises:
        AnifastError: the sheet would be too large, or what is painted is not finite.
    """
    contents = model.contents(images, batch)
    if model.style_size:
        kinds = {} if own is None else {"own style": own}
        kinds |= {"neutral": model.neutral(len(images)), "other style": other}
    else:
        kinds = {"reconstruction": model.neutral(len(images))}
    check_room(model, len(images), 1 + len(kinds))
    columns = [shown(images)]
    for kind, style in kinds.items():
        painted = _pairs(model, contents, style, batch, on_painted)
        if kind == "own style" and known:
            painted[~torch.tensor(known)] = 255
        columns.append(painted)
    named = ["\n".join(labels(name.splitlines(), "line")) for name in names]
    rows = list(zip(named, torch.stack(columns, 1), strict=True))
    return _sheet(model, [Block("pictures, painted again", rows, ["picture", *kinds])])


def across(count: int) -> int:
    """Columns of a sheet of so many pictures that is about square."""
    return math.ceil(math.sqrt(count))


def check_room(model: Model, rows: int, columns: int) -> None:
    """Check that a sheet of so many pictures can be drawn.

    Raises:
        AnifastError: it would have more pixels than pictures may have.
    """
    sheets.check_room(_tile(model), rows, columns, "contents or styles")


def _tile(model: Model) -> int:
    """The side of a picture on a sheet: a multiple of its own, and at least 96."""
    return model.size * -(-96 // model.size)


def shown(images: Tensor) -> Tensor:
    """Images as sheets show them: what is transparent is white, and grey has three colours.

    Args:
        images: N,C,H,W as the networks see them or as they are painted: in [-1, 1], and a fourth channel, which is
            alpha, in [0, 1]. C is 1, 3 or 4.

    Returns:
        uint8 N,3,H,W on the CPU.
    """
    x = images.float().cpu()
    if x.shape[1] == 4:
        x = x[:, :3] * x[:, 3:] + (1 - x[:, 3:])
    return to_uint8(x).expand(-1, 3, -1, -1)


def _wrapped(model: Model, heads: Sequence[str], tiles: Tensor, columns: int) -> Image.Image:
    """Pictures under their names, in rows."""
    starts = range(0, len(tiles), columns)
    title = "one content in many styles"
    blocks = [Block("" if k else title, [("", tiles[k : k + columns])], heads[k : k + columns]) for k in starts]
    return sheet(blocks, tile=_tile(model), beside=False)


def _sheet(model: Model, blocks: Sequence[Block]) -> Image.Image:
    return sheet(blocks, tile=_tile(model))


def _painted(
    model: Model, contents: Tensor, styles: Tensor, batch: int, on_painted: OnPainted | None
) -> tuple[Tensor, ...]:
    """For each style all contents in it, uint8 N,3,size,size on the CPU."""
    pairs = contents.repeat(len(styles), 1), styles.repeat_interleave(len(contents), 0)
    return _pairs(model, *pairs, batch, on_painted).split(len(contents))


def _pairs(model: Model, contents: Tensor, styles: Tensor, batch: int, on_painted: OnPainted | None) -> Tensor:
    """Each content in its style, uint8 N,3,size,size on the CPU.

    Raises:
        AnifastError: a painting is not finite.
    """
    parts = (
        model.paint(content, style, batch)
        for content, style in zip(contents.split(batch), styles.split(batch), strict=True)
    )
    return collected(parts, len(contents), on_painted, shown)

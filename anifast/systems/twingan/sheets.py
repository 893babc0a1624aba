"""Sheets of pictures beside those that are nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from anifast.data.folders import read_image, resize, to_tensor
from anifast.engine.sheets import Block, sheet
from anifast.errors import ImageError
from anifast.systems.sheets import check_room, labels
from anifast.systems.twingan.gallery import Neighbour

#: Side of a picture on a sheet: those of galleries are shown as they are, whatever size the model works at.
TILE = 128
_LOST = "not readable"


def neighbours(
    queries: Tensor,
    found: Sequence[tuple[str, Sequence[Sequence[Neighbour]]]],
    *,
    names: Sequence[str] = (),
    title: str = "query",
    caption: str = "",
) -> tuple[Image.Image, dict[str, str]]:
    """A row for each query: its picture, then those that are nearest, each with its distance under it.

    Args:
        queries: uint8 N,3,TILE,TILE (or another side), N at least 1.
        found: one part or several: its title, and the neighbours of each query, the nearest first.
        names: of the queries, left of the rows.
        title: above the queries.
        caption: one line at the top.

    Returns:
        The sheet, and path -> reason of neighbours that cannot be read, in whose places it is white.

    Raises:
        AnifastError: the sheet would be too large.
    """
    check(len(queries), [max(map(len, rows), default=0) for _, rows in found])
    lost: dict[str, str] = {}

    def shown(near: Neighbour) -> Tensor:
        try:
            return to_tensor(resize(read_image(near.path), TILE, near.resize))
        except ImageError as error:
            lost[str(near.path)] = str(error)
            return torch.full((3, TILE, TILE), 255, dtype=torch.uint8)

    def noted(near: Neighbour) -> str:
        return _LOST if str(near.path) in lost else f"{near.distance:.3f}"

    blank = [""] * len(queries)
    blocks = [Block(title, list(zip(labels(names, "query") or blank, queries.split(1), strict=True)))]
    for head, rows in found:
        tiles = [[shown(near) for near in row] for row in rows]
        empty = torch.empty(0, 3, TILE, TILE, dtype=torch.uint8)
        pictures = [("", torch.stack(row) if row else empty) for row in tiles]
        blocks.append(Block(head, pictures, notes=[[noted(near) for near in row] for row in rows]))
    return sheet(blocks, caption=caption, tile=TILE), lost


def check(queries: int, nearest: Sequence[int]) -> None:
    """Check that a sheet can be drawn, before anything is searched.

    Args:
        queries: how many.
        nearest: of each of them in each part.

    Raises:
        AnifastError: the sheet would be too large.
    """
    check_room(TILE, queries, 1 + sum(nearest), "queries or neighbours")


def load(paths: Sequence[Path], how: str = "stretch") -> Tensor:
    """Pictures as they stand on a sheet, uint8 N,3,TILE,TILE; at least one.

    Raises:
        ImageError: one cannot be read.
    """
    return torch.stack([to_tensor(resize(read_image(path), TILE, how)) for path in paths])

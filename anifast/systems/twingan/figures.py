"""Sheets of an evaluation of Twin-GAN: what is painted of pictures, and which of the other domain lie nearest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from anifast.engine.sheets import Block, sheet


def translations(sides: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], *, caption: str, tile: int) -> Image.Image:
    """Pictures of each domain and what is painted of them, the domains beside each other.

    Args:
        sides: title of each domain, and rows of a label and N,3,H,W, floats in [-1, 1] or uint8.
        caption: one line at the top.
        tile: side of a picture on the sheet.
    """
    return sheet([Block(title, rows) for title, rows in sides], caption=caption, tile=tile)


def neighbours(
    queries: Tensor, nearest: Sequence[Tensor], distances: Sequence[Sequence[float]], *, caption: str, tile: int = 96
) -> Image.Image:
    """Pictures, each in a row with those whose embeddings are the nearest, and how far they are above these.

    Args:
        queries: uint8 Q,3,H,W, Q at least 1.
        nearest: of each query uint8 n,3,H,W, the nearest first.
        distances: of these, 1 - cosine.
        caption: one line at the top.
        tile: side of a picture on the sheet.
    """
    blocks = []
    for query, pictures, far in zip(queries.split(1), nearest, distances, strict=True):
        gap = torch.full_like(query, 255)  # keeps the query apart from what was found
        heads = ["query", "", *(f"{distance:.3f}" for distance in far)]
        blocks.append(Block("", [("", torch.cat([query, gap, pictures]))], heads))
    return sheet(blocks, caption=caption, tile=tile, beside=False)

"""Pictures of an evaluation: how alike the style codes of classes are, and which pictures are the nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from anifast.engine.plots import GREY, INK, PAPER, font
from anifast.engine.sheets import Block, readable, sheet, shortened

#: White to blue, the darker the more alike.
_LIGHT, _DARK = np.array([255.0, 255.0, 255.0]), np.array([16.0, 72.0, 140.0])
_BORDER = 16
#: Classes beyond this many get no numbers in their cells, and smaller ones.
_NUMBERED = 20


def names_of(classes: Sequence[str]) -> list[str]:
    """Classes as the font can write them; others become numbers."""
    return [name if readable(name) else f"class {number}" for number, name in enumerate(classes)]


def matrix(values: Tensor, classes: Sequence[str], *, title: str, about: str) -> Image.Image:
    """Mean cosines of classes as a square of coloured cells.

    Args:
        values: [K, K], finite.
        classes: K names, the rows and columns.
        title: above.
        about: a line below it.
    """
    cosines, names = values.double().cpu().numpy(), names_of(classes)
    count = len(names)
    cell = 46 if count <= _NUMBERED else max(6, 920 // count)
    small, big = font(13), font(16)
    step = max(1, math.ceil(16 / cell))  # names of rows that are thinner than letters would lie on one another
    heads = [shortened(name, 150) for name in names]
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = math.ceil(max(probe.textlength(name, font=small) for name in heads)) + 12
    head = math.ceil(max(probe.textlength(title, font=big), probe.textlength(about, font=small)))
    width, top = max(margin + count * cell, head), 58 + margin
    image = Image.new("RGB", (width + 2 * _BORDER, top + count * cell + 2 * _BORDER), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_BORDER, _BORDER), title, fill=INK, font=big, anchor="lt")
    draw.text((_BORDER, _BORDER + 26), about, fill=GREY, font=small, anchor="lt")
    low, high = float(cosines.min()), float(cosines.max())
    left, upper = _BORDER + margin, _BORDER + top
    for row in range(count):
        for column in range(count):
            share = (cosines[row, column] - low) / (high - low) if high > low else 0.0
            colour = tuple(int(round(c)) for c in _LIGHT + share * (_DARK - _LIGHT))
            x, y = left + column * cell, upper + row * cell
            draw.rectangle([x, y, x + cell - 1, y + cell - 1], fill=colour)
            if count <= _NUMBERED:
                ink = PAPER if share > 0.55 else INK
                draw.text(
                    (x + cell / 2, y + cell / 2), f"{cosines[row, column]:.2f}", fill=ink, font=small, anchor="mm"
                )
    for place in range(0, count, step):
        at = (place + 0.5) * cell
        draw.text((left - 8, upper + at), heads[place], fill=INK, font=small, anchor="rm")
        turned = Image.new("RGB", (margin, 18), PAPER)
        ImageDraw.Draw(turned).text((8, 9), heads[place], fill=INK, font=small, anchor="lm")
        image.paste(turned.rotate(90, expand=True), (round(left + at) - 9, upper - margin - 1))
    draw.rectangle([left - 1, upper - 1, left + count * cell, upper + count * cell], outline=GREY)
    return image


def neighbours(rows: Sequence[Tensor], names: Sequence[Sequence[str]], *, caption: str, tile: int = 96) -> Image.Image:
    """Pictures, each in a row with those whose style codes are the nearest; the class of each stands above it.

    Args:
        rows: 1 + n,3,H,W each, floats in [-1, 1] or uint8: a picture, then its n nearest.
        names: of their classes.
        caption: one line at the top.
        tile: side of a picture on the sheet.
    """
    blocks = [Block("", [("", pictures)], names_of(classes)) for pictures, classes in zip(rows, names, strict=True)]
    return sheet(blocks, caption=caption, tile=tile, beside=False)

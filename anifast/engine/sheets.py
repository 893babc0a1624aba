"""Sample sheets: labelled grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from anifast.data.folders import to_uint8
from anifast.engine.plots import GREY, INK, PAPER, font


@dataclass(frozen=True)
class Block:
    """A part of a sheet: rows of pictures under one title.

    Attributes:
        title: above the block; without one no room is kept where blocks stand below each other.
        rows: label and images N,3,H,W of each row: floats in [-1, 1], or uint8. Without any label no room is kept.
        heads: above the columns, from the left; shortened to the width of a picture.
        notes: of each row a line under each of its pictures, from the left; shortened too.
    """

    title: str
    rows: Sequence[tuple[str, Tensor]]
    heads: Sequence[str] = ()
    notes: Sequence[Sequence[str]] = ()


def readable(text: str) -> bool:
    """Whether the font of sheets has every character of a text; it has those of English and few more."""
    return all(map(_drawn, text))


@cache
def _drawn(character: str) -> bool:
    """Fonts draw what they lack as one and the same box."""
    text = font(13)
    try:
        mask, box = text.getmask(character), text.getmask("\U0010ffff")
    except UnicodeError:  # a half of a pair, or Pillow's font without FreeType, which is Latin-1
        return character.isascii() and character.isprintable()
    return bool(mask.size != box.size or bytes(mask) != bytes(box))


def shortened(text: str, width: float) -> str:
    """A label of at most so many pixels: what does not fit is left out in the middle, as ends tell names apart."""
    length = font(13).getlength
    if length(text) <= width:
        return text
    for kept in range(min(len(text) - 1, int(width)), 0, -1):
        tail = kept // 2
        shorter = f"{text[: kept - tail]}\u2026{text[len(text) - tail :]}"
        if length(shorter) <= width:
            return shorter
    return ""


def sheet(blocks: Sequence[Block], *, caption: str = "", tile: int = 0, beside: bool = True) -> Image.Image:
    """Draw blocks beside or below each other, with a label left of each row.

    Args:
        blocks: the content; where they stand beside each other, rows of the same number are in line.
        caption: one line at the top.
        tile: side of a picture on the sheet; 0: as it is, doubled until it has 96 pixels.
        beside: put blocks beside each other rather than below.
    """
    height = max(rows.shape[-2] for block in blocks for _, rows in block.rows)
    side = tile or height * max(1, 2 ** max(0, int(np.ceil(np.log2(96 / height)))))
    gap, title = 4, 30
    text = font(13)
    headed, noted = [bool(block.heads) for block in blocks], [bool(block.notes) for block in blocks]
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    parts = []
    for block in blocks:
        lines = [line for label, _ in block.rows for line in label.splitlines()]
        margin = int(max(probe.textlength(line, font=text) for line in lines)) + 18 if lines else 0
        columns = max(len(rows) for _, rows in block.rows)
        titled = title if beside or block.title else 0
        head = titled + (20 if (any(headed) if beside else block.heads) else 0)
        pitch = side + gap + (20 if (any(noted) if beside else block.notes) else 0)
        width = max(columns * (side + gap), int(np.ceil(probe.textlength(block.title, font=font(15)))))
        part = Image.new("RGB", (margin + width, head + len(block.rows) * pitch), PAPER)
        draw = ImageDraw.Draw(part)
        draw.text((margin, titled - 8), block.title, fill=INK, font=font(15), anchor="ls")
        for c, name in enumerate(block.heads):
            middle = margin + c * (side + gap) + side / 2
            draw.text((middle, head - 7), shortened(name, side - 6), fill=GREY, font=text, anchor="ms")
        for r, (label, images) in enumerate(block.rows):
            top = head + r * pitch
            draw.text((margin - 9, top + side / 2), label, fill=GREY, font=text, anchor="rm", align="right")
            shown = to_uint8(images.detach().float().cpu()) if images.is_floating_point() else images.cpu()
            for c, image in enumerate(shown):
                picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
                how = Image.Resampling.NEAREST if side % picture.width == 0 else Image.Resampling.BICUBIC
                part.paste(picture.resize((side, side), how), (margin + c * (side + gap), top))
            for c, note in enumerate(block.notes[r] if r < len(block.notes) else ()):
                middle = margin + c * (side + gap) + side / 2
                draw.text((middle, top + side + 5), shortened(note, side - 6), fill=GREY, font=text, anchor="mt")
        parts.append(part)
    room, border = 18, 14
    first = 26 if caption else 0
    if beside:
        width = sum(part.width for part in parts) + room * (len(parts) - 1)
        tall = max(part.height for part in parts)
    else:
        width = max(part.width for part in parts)
        tall = sum(part.height for part in parts) + room * (len(parts) - 1)
    whole = Image.new("RGB", (width + 2 * border, tall + first + 2 * border), PAPER)
    if caption:
        ImageDraw.Draw(whole).text((border, border), caption, fill=INK, font=font(16), anchor="lt")
    x, y = border, border + first
    for part in parts:
        whole.paste(part, (x, y))
        x, y = (x + part.width + room, y) if beside else (x, y + part.height + room)
    return whole

"""The colours of portraits before an artist or a camera has changed them: what a name means, drawn and photographed."""

from __future__ import annotations

from typing import NamedTuple

from anifast.data._portrait_shapes import Color


class Palette(NamedTuple):
    """One domain's colours by the names of the content's factors; skin by its number, light to dark."""

    skin: tuple[Color, ...]
    hair: dict[str, Color]
    iris: dict[str, Color]
    cloth: dict[str, Color]
    accent: dict[str, Color]
    trim: dict[str, Color]


# Name -> drawn, photographed.
_Pair = tuple[Color, Color]
_SKIN: tuple[_Pair, ...] = (
    ((255, 238, 226), (246, 214, 198)), ((255, 227, 206), (238, 198, 174)), ((247, 209, 177), (226, 180, 150)),
    ((226, 178, 138), (204, 154, 120)), ((194, 142, 106), (176, 128, 96)), ((160, 112, 84), (142, 102, 76)),
)  # fmt: skip
_HAIR: dict[str, _Pair] = {
    "black": ((66, 62, 80), (38, 33, 34)), "brown": ((136, 90, 64), (92, 62, 44)),
    "blonde": ((246, 216, 130), (204, 168, 112)), "orange": ((234, 142, 74), (176, 96, 50)),
    "red": ((200, 62, 64), (142, 44, 40)), "pink": ((246, 166, 192), (214, 134, 154)),
    "purple": ((142, 104, 190), (106, 74, 134)), "blue": ((82, 122, 208), (60, 86, 150)),
    "aqua": ((112, 208, 214), (86, 158, 166)), "green": ((116, 182, 112), (84, 128, 80)),
    "silver": ((180, 186, 202), (150, 153, 160)), "white": ((240, 238, 242), (216, 213, 210)),
}  # fmt: skip
_IRIS: dict[str, _Pair] = {
    "brown": ((140, 86, 50), (92, 58, 38)), "blue": ((58, 124, 218), (74, 112, 160)),
    "green": ((60, 156, 86), (82, 116, 78)), "grey": ((122, 134, 152), (112, 120, 128)),
    "purple": ((136, 84, 196), (104, 78, 138)), "red": ((204, 56, 60), (136, 56, 50)),
    "yellow": ((226, 168, 40), (164, 120, 46)), "aqua": ((44, 182, 194), (66, 138, 146)),
}  # fmt: skip
_CLOTH: dict[str, _Pair] = {
    "white": ((240, 240, 244), (214, 213, 214)), "navy": ((66, 80, 128), (46, 56, 90)),
    "red": ((200, 76, 74), (152, 52, 50)), "pink": ((240, 172, 186), (204, 142, 150)),
    "yellow": ((238, 204, 110), (200, 168, 84)), "green": ((108, 160, 120), (78, 116, 86)),
    "grey": ((140, 146, 158), (112, 116, 124)), "black": ((66, 64, 74), (42, 41, 46)),
}  # fmt: skip
_ACCENT: dict[str, _Pair] = {
    "warm": ((226, 74, 92), (176, 48, 60)), "cool": ((70, 110, 200), (52, 78, 140)),
}  # fmt: skip
_TRIM: dict[str, _Pair] = {
    "dark": ((58, 74, 124), (44, 56, 94)), "pale": ((214, 226, 240), (176, 188, 204)),
    "white": ((248, 247, 244), (222, 220, 216)),
}  # fmt: skip


def _palette(column: int) -> Palette:
    tables = (_HAIR, _IRIS, _CLOTH, _ACCENT, _TRIM)
    named = ({name: pair[column] for name, pair in table.items()} for table in tables)
    return Palette(tuple(pair[column] for pair in _SKIN), *named)


DRAWN, PHOTO = _palette(0), _palette(1)

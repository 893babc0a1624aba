"""Procedural portraits: faces drawn from named factors, with every factor kept as a label.

`draw(content, style, domain, size)` makes a picture of three groups of factors. Content is who is shown and how: pose,
face, hair, eyes, mouth, clothes. Style is an artist: line, palette, shading, eyes, proportions. Domain is "drawn" or
"photo". The same content in another style or domain is recognisably the same character, so translation between the
domains has a real mapping to learn, and separating style from content has a ground truth.

Factors come from seeds by hashing, one stream a factor: a seed gives the same factors on every platform and with every
version of numpy, and a sample does not depend on how many others are drawn. The `write_*` functions lay data sets out
as the systems read them, with the factors of every picture in `factors.jsonl`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from anifast.data import _portrait_drawn, _portrait_palette, _portrait_photo, _portrait_shapes
from anifast.data.tags import TAGS
from anifast.errors import DataError
from anifast.files import atomic_path, write_text
from anifast.progress import Progress

DOMAINS = ("drawn", "photo")
MIN_SIZE, MAX_SIZE = 16, 2048

CHOICES: dict[str, tuple[str | int, ...]] = {
    "skin": tuple(range(len(_portrait_palette.DRAWN.skin))),
    "hair_cut": tuple(_portrait_shapes.HAIR_CUTS),
    "bangs": ("blunt", "locks", "swept", "parted", "crop", "none"),
    "hair_color": tuple(_portrait_palette.DRAWN.hair),
    "wink": (-1, 0, 1),
    "eye_color": tuple(_portrait_palette.DRAWN.iris),
    "glasses": ("none", "round", "square"),
    "accessory": _portrait_shapes.ACCESSORIES,
    "clothes": _portrait_shapes.CLOTHES,
    "clothes_color": tuple(_portrait_palette.DRAWN.cloth),
    "line_color": tuple(_portrait_drawn.LINES),
    "shading": ("flat", "cel", "soft", "hatch", "dots"),
    "light": (-1, 1),
    "eye_shape": tuple(_portrait_drawn.EYES),
    "highlight": ("none", "single", "double", "star", "crescent"),
    "nose": ("none", "dot", "tick", "line", "shadow"),
    "blush_kind": ("none", "soft", "lines"),
    "gloss": ("none", "band", "streaks", "soft"),
    "backdrop": ("gradient", "halo", "stripes", "dots", "rays", "paper", "panel", "split", "night"),
}
"""What the categorical factors of `Content` and `Style` can be."""


def _check(factors: Content | Style) -> None:
    for field in fields(factors):
        allowed = CHOICES.get(field.name)
        value = getattr(factors, field.name)
        if allowed is not None and value not in allowed:
            raise ValueError(f"{field.name}: expected one of {', '.join(map(str, allowed))}; got {value!r}")


@dataclass(frozen=True)
class Content:
    """Who is shown and how. The defaults are a plain portrait; the choices of the names stand in `CHOICES`.

    Attributes:
        detail: seed of what carries no meaning: single hairs, folds, grain.
        turn: degrees the head turns to the picture's right, about -30 to 30.
        nod: degrees it looks down, about -12 to 12.
        tilt: degrees it leans clockwise, about -16 to 16.
        scale: size of the figure, about 0.9 to 1.1.
        offset_x: shift of the figure in picture widths, to the right; `offset_y` is downwards.
        face_width: -1 narrow to 1 wide; `jaw` -1 pointed to 1 square; `chin` -1 short to 1 long.
        skin: 0 light to 5 dark.
        hair_cut: name of the cut, `bangs` of the fringe, `hair_color` of the colour.
        parting: -1 to 1, where the hair parts; its sign is also the side of ponytails and accessories.
        ahoge: whether a single lock stands up.
        eye_open: 0 closed to 1 wide open; `wink` closes the eye at the picture's left (-1) or right (1).
        gaze_x: -1 left to 1 right; `gaze_y` -1 up to 1 down.
        eye_spacing: -1 close to 1 apart; `eye_slant` -1 drooping to 1 rising outwards.
        eye_color: name of the iris' colour.
        lashes: 0 light to 1 heavy.
        brow_raise: -1 low to 1 high; `brow_angle` -1 worried to 1 angry; `brow_weight` 0 thin to 1 thick.
        smile: -1 sad to 1 happy; `mouth_open` 0 shut to 1 open.
        blush: 0 to 1.
        glasses: kind of spectacles; `accessory` what is worn in the hair or ears.
        clothes: kind, and `clothes_color` the name of their colour.
        background_hue: 0 to 1 around the colour circle; `background_light` 0 dark to 1 light.
    """

    detail: int = 0
    turn: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    scale: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0
    face_width: float = 0.0
    jaw: float = 0.0
    chin: float = 0.0
    skin: int = 1
    hair_cut: str = "bob"
    bangs: str = "locks"
    hair_color: str = "brown"
    parting: float = 0.5
    ahoge: bool = False
    eye_open: float = 1.0
    wink: int = 0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    eye_spacing: float = 0.0
    eye_slant: float = 0.0
    eye_color: str = "blue"
    lashes: float = 0.5
    brow_raise: float = 0.0
    brow_angle: float = 0.0
    brow_weight: float = 0.5
    smile: float = 0.5
    mouth_open: float = 0.0
    blush: float = 0.4
    glasses: str = "none"
    accessory: str = "none"
    clothes: str = "shirt"
    clothes_color: str = "navy"
    background_hue: float = 0.55
    background_light: float = 0.6

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Style:
    """How an artist draws. In the photo domain the same factors are a photographer: colours, light, backdrop, grain.

    Attributes:
        name: the artist's name.
        line: width of outlines in hundredths of the picture's side, 0 (no lines) to 2.
        line_color: name of the ink; "dark" and "self" follow the field they surround.
        wobble: 0 clean to 1 sketched.
        saturation: factor,
        about 0.4 to 1.4; `temperature` -1 cold to 1 warm; `lightness` -0.4 to 0.4; `contrast` factor.
        tint: colour mixed into everything, `tint_amount` of it.
        shading: name; `shade_depth` 0 none to about 1 deep; `shade_hue` -1 warm to 1 cold shadows.
        light: where the light comes from, -1 left or 1 right.
        eye_shape: name; `eye_size` factor; `highlight` kind of gleam; `eye_height` shift of the eyes, downwards.
        face_width: factor; `chin` how much longer the face is.
        nose: kind; `blush_kind` how a blush is drawn.
        gloss: kind of gleam on the hair; `strands` 0 none to 1 strong lines in it.
        backdrop: what is behind.
        grain: 0 none to 1 rough paper.
    """

    name: str = "artist"
    line: float = 0.8
    line_color: str = "dark"
    wobble: float = 0.0
    saturation: float = 1.0
    temperature: float = 0.0
    lightness: float = 0.0
    contrast: float = 1.0
    tint: tuple[int, int, int] = (128, 128, 128)
    tint_amount: float = 0.0
    shading: str = "cel"
    shade_depth: float = 0.5
    shade_hue: float = 0.0
    light: int = -1
    eye_shape: str = "round"
    eye_size: float = 1.0
    highlight: str = "double"
    eye_height: float = 0.0
    face_width: float = 1.0
    chin: float = 0.0
    nose: str = "tick"
    gloss: str = "band"
    strands: float = 0.5
    blush_kind: str = "soft"
    backdrop: str = "gradient"
    grain: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Factors:
    """Everything a picture is drawn from."""

    content: Content
    style: Style
    domain: str

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ValueError(f"domain: expected one of {', '.join(DOMAINS)}; got {self.domain!r}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        style = dict(vars(self.style), tint=list(self.style.tint))
        return {"domain": self.domain, "content": dict(vars(self.content)), "style": style}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Factors:
        """The factors of a row that `to_dict` made; other keys of the row are left alone."""
        style = dict(row["style"], tint=tuple(row["style"]["tint"]))
        return cls(Content(**row["content"]), Style(**style), row["domain"])

    def draw(self, size: int = 64) -> Image.Image:
        """The picture, as `draw` makes it."""
        return draw(self.content, self.style, self.domain, size)


def draw(content: Content, style: Style, domain: str = "drawn", size: int = 64) -> Image.Image:
    """Draw a portrait: an RGB picture of size x size pixels, anti-aliased, the same for the same factors.

    Raises:
        ValueError: an unknown domain, or a size outside 16..2048.
    """
    return _portrait(content, style, domain, size).picture()


def landmarks(content: Content, style: Style, domain: str = "drawn") -> dict[str, tuple[float, float]]:
    """Where the face is: `eye_left`, `eye_right`, `mouth_left` and `mouth_right` as seen in the picture.

    Returns:
        x and y of each, in parts of the picture's side.
    """
    return _portrait(content, style, domain, 256).landmarks()


def _portrait(
    content: Content, style: Style, domain: str, size: int
) -> _portrait_drawn.DrawnPortrait | _portrait_photo.PhotoPortrait:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size: expected {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    if domain == "drawn":
        return _portrait_drawn.DrawnPortrait(content, style, size)
    if domain == "photo":
        return _portrait_photo.PhotoPortrait(content, style, size)
    raise ValueError(f"domain: expected one of {', '.join(DOMAINS)}; got {domain!r}")


# --- sampling --------------------------------------------------------------------------------------------------------

T = TypeVar("T")


class _Draws:
    """Random values by name: each is a hash of the seed and its name, so none depends on another."""

    def __init__(self, seed: int, group: str) -> None:
        self._prefix = f"{seed}/{group}."

    def word(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b((self._prefix + name).encode(), digest_size=8).digest(), "little")

    def unit(self, name: str) -> float:
        return (self.word(name) >> 11) * 2.0**-53

    def even(self, name: str, low: float, high: float) -> float:
        return round(low + (high - low) * self.unit(name), 4)

    def bell(self, name: str, low: float, high: float) -> float:
        """More often in the middle."""
        return round(low + (high - low) * (self.unit(name) + self.unit(name + "'") + self.unit(name + "''")) / 3, 4)

    def chance(self, name: str, probability: float) -> bool:
        return self.unit(name) < probability

    def choice(self, name: str, options: Sequence[T]) -> T:
        return options[int(self.unit(name) * len(options))]

    def weighted(self, name: str, options: Mapping[T, float]) -> T:
        at = self.unit(name) * sum(options.values())
        for option, weight in options.items():
            at -= weight
            if at < 0:
                return option
        return option  # rounding: the last one


_HAIR_COLORS = {
    "black": 4, "brown": 5, "blonde": 4, "orange": 2, "red": 2, "pink": 1.5, "purple": 1.3, "blue": 1.5, "aqua": 1.2,
    "green": 1.3, "silver": 1.2, "white": 1.0,
}  # fmt: skip
_SKINS = {0: 5, 1: 5, 2: 4.5, 3: 3.5, 4: 3, 5: 2.5}
_ACCESSORIES = {"none": 11, "earrings": 2, "ribbon": 2, "clip": 2, "headband": 2, "flower": 2}


def sample_content(seed: int) -> Content:
    """A random character: the content that belongs to `seed` (any integer)."""
    d = _Draws(seed, "content")
    cut = d.choice("hair_cut", tuple(_portrait_shapes.HAIR_CUTS))
    eyes = d.weighted("eyes", {"open": 84, "half": 8, "closed": 8})
    return Content(
        detail=d.word("detail") >> 33,
        turn=d.bell("turn", -30, 30),
        nod=d.bell("nod", -12, 12),
        tilt=d.bell("tilt", -16, 16),
        scale=d.bell("scale", 0.9, 1.1),
        offset_x=d.bell("offset_x", -0.06, 0.06),
        offset_y=d.bell("offset_y", -0.03, 0.03),
        face_width=d.bell("face_width", -1, 1),
        jaw=d.even("jaw", -1, 1),
        chin=d.bell("chin", -1, 1),
        skin=d.weighted("skin", _SKINS),
        hair_cut=cut,
        bangs=d.choice("bangs", _portrait_shapes.HAIR_CUTS[cut]),
        hair_color=d.weighted("hair_color", _HAIR_COLORS),
        parting=d.even("parting", -1, 1),
        ahoge=d.chance("ahoge", 0.08),
        eye_open=d.even("eye_open", 0.8, 1.0) if eyes == "open" else 0.5 if eyes == "half" else 0.0,
        wink=d.weighted("wink", {0: 94, -1: 3, 1: 3}),
        gaze_x=d.bell("gaze_x", -1, 1),
        gaze_y=d.bell("gaze_y", -1, 1),
        eye_spacing=d.bell("eye_spacing", -1, 1),
        eye_slant=d.bell("eye_slant", -1, 1),
        eye_color=d.choice("eye_color", tuple(_portrait_palette.DRAWN.iris)),
        lashes=d.even("lashes", 0, 1),
        brow_raise=d.bell("brow_raise", -1, 1),
        brow_angle=d.bell("brow_angle", -1, 1),
        brow_weight=d.even("brow_weight", 0, 1),
        smile=d.even("smile", -0.6, 1),
        mouth_open=d.even("mouth_open", 0.3, 1.0) if d.chance("mouth", 0.4) else 0.0,
        blush=d.even("blush", 0, 1),
        glasses=d.weighted("glasses", {"none": 8, "round": 1, "square": 1}),
        accessory=d.weighted("accessory", _ACCESSORIES),
        clothes=d.choice("clothes", _portrait_shapes.CLOTHES),
        clothes_color=d.choice("clothes_color", tuple(_portrait_palette.DRAWN.cloth)),
        background_hue=d.even("background_hue", 0, 1),
        background_light=d.even("background_light", 0.25, 0.85),
    )


def sample_style(seed: int) -> Style:
    """A random artist (or photographer): the style that belongs to `seed` (any integer)."""
    d = _Draws(seed, "style")
    shading = d.choice("shading", CHOICES["shading"])
    size = d.bell("eye_size", 0.78, 1.2)
    return Style(
        name=f"sampled_{seed}",
        line=d.choice("line", (0.0, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0))
        if shading in ("cel", "soft")
        else d.even("line", 0.5, 1.6),
        line_color=str(d.choice("line_color", ("dark", "dark", "black", "brown", "blue", "self", "self"))),
        wobble=d.even("wobble", 0.4, 1.0) if d.chance("sketched", 0.2) else 0.0,
        saturation=d.bell("saturation", 0.6, 1.4),
        temperature=d.bell("temperature", -1.0, 1.2),
        lightness=d.bell("lightness", -0.3, 0.36),
        contrast=d.bell("contrast", 0.8, 1.2),
        tint=(int(256 * d.unit("red")), int(256 * d.unit("green")), int(256 * d.unit("blue"))),
        tint_amount=d.even("tint", 0.04, 0.16) if d.chance("tinted", 0.3) else 0.0,
        shading=str(shading),
        shade_depth=d.even("shade_depth", 0.35, 1.0),
        shade_hue=d.even("shade_hue", -1, 1),
        light=-1 if d.chance("light", 0.5) else 1,
        eye_shape=str(d.choice("eye_shape", CHOICES["eye_shape"])),
        eye_size=size,
        highlight=str(d.choice("highlight", CHOICES["highlight"])),
        eye_height=d.bell("eye_height", -0.04, 0.06),
        face_width=d.bell("face_width", 0.92, 1.08),
        chin=d.bell("chin", -0.08, 0.07),
        nose=str(d.choice("nose", CHOICES["nose"][1:])),
        gloss=str(d.choice("gloss", CHOICES["gloss"])),
        strands=d.even("strands", 0.1, 1.0),
        blush_kind=str(d.choice("blush_kind", CHOICES["blush_kind"])),
        backdrop=str(d.choice("backdrop", CHOICES["backdrop"])),
        grain=d.even("grain", 0, 1) if d.chance("grainy", 0.4) else 0.0,
    )


ARTISTS: tuple[Style, ...] = (
    # television animation
    Style("artist_00"),
    # pop art: flat, bright, thick black lines
    Style(
        "artist_01", line=2.0, line_color="black", saturation=1.35, contrast=1.1, shading="flat", shade_depth=0.7,
        highlight="single", nose="dot", gloss="streaks", strands=0.9, blush_kind="none", backdrop="rays",
        face_width=1.02,
    ),
    # watercolour: soft, pale, hardly a line
    Style(
        "artist_02", line=0.45, line_color="self", saturation=0.75, temperature=0.3, lightness=0.22, contrast=0.86,
        shading="soft", shade_depth=0.42, shade_hue=0.8, eye_shape="droopy", highlight="single", nose="shadow",
        gloss="soft", strands=0.3, backdrop="paper", grain=0.5,
    ),
    # ink and hatching
    Style(
        "artist_03", line=0.9, line_color="black", saturation=0.42, lightness=0.22, shading="hatch", light=1,
        eye_shape="almond", eye_size=0.86, nose="line", gloss="streaks", strands=1.0, blush_kind="lines",
        backdrop="paper", grain=0.2,
    ),
    # pastel romance: enormous starry eyes
    Style(
        "artist_04", line=0.6, line_color="self", saturation=0.9, temperature=0.15, lightness=0.34, contrast=0.8,
        tint=(255, 214, 232), tint_amount=0.14, shading="soft", shade_depth=0.34, shade_hue=-0.4, eye_shape="tall",
        eye_size=1.15, highlight="star", nose="dot", strands=0.25, backdrop="halo", chin=-0.03,
    ),
    # the nineties: earthy, deep shadows, tall eyes
    Style(
        "artist_05", line=1.05, line_color="brown", saturation=0.78, temperature=0.55, lightness=-0.10,
        shade_depth=0.95, shade_hue=-0.3, light=1, eye_shape="tall", eye_size=0.98, nose="line", gloss="streaks",
        strands=0.8, blush_kind="none", backdrop="split", face_width=0.94, chin=0.06,
    ),
    # screen tone
    Style(
        "artist_06", line=1.3, line_color="black", saturation=0.6, contrast=1.1, lightness=0.1, shading="dots",
        shade_depth=0.8, eye_shape="cat", highlight="crescent", strands=0.8, blush_kind="lines", backdrop="stripes",
    ),
    # neon night
    Style(
        "artist_07", line=0.8, line_color="blue", saturation=1.25, temperature=-0.5, lightness=-0.22, contrast=1.1,
        tint=(96, 50, 200), tint_amount=0.16, shade_depth=1.0, shade_hue=1.0, light=1, eye_shape="cat", nose="shadow",
        gloss="streaks", strands=0.4, backdrop="night",
    ),
    # storybook pencil with beads for eyes
    Style(
        "artist_08", line=0.9, line_color="brown", wobble=1.0, saturation=0.7, temperature=0.5, lightness=0.12,
        contrast=0.85, shading="hatch", shade_depth=0.35, eye_shape="bead", eye_size=0.95, eye_height=0.05,
        highlight="single", nose="line", gloss="none", strands=0.6, backdrop="paper", grain=0.8, face_width=1.06,
    ),
    # poster: no lines at all
    Style(
        "artist_09", line=0.0, saturation=1.1, temperature=0.2, contrast=1.08, shade_depth=0.8, shade_hue=0.5,
        eye_shape="almond", eye_size=0.9, highlight="none", nose="shadow", gloss="none", strands=0.0,
        blush_kind="none", backdrop="halo",
    ),
    # gouache: dark and rich
    Style(
        "artist_10", line=0.3, line_color="self", saturation=1.05, temperature=0.45, lightness=-0.22, contrast=1.12,
        shading="soft", shade_depth=1.1, shade_hue=0.2, light=1, eye_shape="almond", eye_size=0.80, eye_height=-0.05,
        highlight="single", nose="shadow", gloss="soft", grain=0.6, face_width=0.96, chin=0.03,
    ),
    # chibi sticker
    Style(
        "artist_11", line=1.7, line_color="brown", saturation=1.1, temperature=0.1, lightness=0.16, shading="flat",
        shade_depth=0.4, shade_hue=-0.6, eye_size=1.16, eye_height=0.06, nose="dot", gloss="streaks", strands=0.3,
        backdrop="dots", face_width=1.08, chin=-0.08,
    ),
    # cold and gothic
    Style(
        "artist_12", line=0.7, line_color="black", saturation=0.6, temperature=-0.5, contrast=1.1, shade_depth=1.05,
        shade_hue=0.8, eye_shape="cool", eye_size=0.95, highlight="crescent", nose="line", gloss="streaks",
        strands=0.9, blush_kind="none", backdrop="panel", face_width=0.94, chin=0.05,
    ),
    # sunset
    Style(
        "artist_13", line=0.7, line_color="self", saturation=1.1, temperature=1.0, lightness=0.04,
        tint=(255, 120, 60), tint_amount=0.13, shade_depth=0.8, shade_hue=0.9, eye_shape="droopy", highlight="single",
        nose="shadow", strands=0.4, backdrop="split",
    ),
    # blue pencil
    Style(
        "artist_14", line=0.8, line_color="blue", wobble=0.8, saturation=0.8, temperature=-0.35, lightness=0.30,
        contrast=0.8, tint=(190, 210, 250), tint_amount=0.18, shading="hatch", shade_depth=0.4, shade_hue=1.0,
        gloss="none", strands=0.8, blush_kind="lines", backdrop="panel", grain=0.6,
    ),
    # two-ink print with dots
    Style(
        "artist_15", line=0.6, line_color="self", contrast=0.95, tint=(250, 210, 90), tint_amount=0.22,
        shading="dots", shade_depth=0.9, shade_hue=-1.0, light=1, eye_shape="droopy", eye_size=1.08,
        highlight="single", nose="dot", gloss="none", strands=0.4, backdrop="dots", grain=1.0,
    ),
)  # fmt: skip
"""Sixteen artists, far apart from each other."""


def sample_factors(seed: int, domain: str, artists: Sequence[Style] = ARTISTS) -> Factors:
    """Random factors: drawn portraits by one of `artists`, photos by a photographer of their own."""
    d = _Draws(seed, "factors")
    style = d.choice("artist", artists) if domain == "drawn" else sample_style(d.word("photographer") >> 33)
    return Factors(sample_content(d.word("content") >> 1), style, domain)


# --- tags ------------------------------------------------------------------------------------------------------------


def tags(content: Content, style: Style) -> dict[str, float]:
    """The tags of `TAGS` that a drawn portrait has, with scores in (0, 1]."""
    c = content
    long = c.hair_cut in ("long", "wavy", "ponytail", "twintails", "bun")
    closed = c.eye_open == 0.0
    found: dict[str, float] = {
        "long_hair" if long else "short_hair": 1.0,
        f"{c.hair_color}_hair": 1.0,
        "closed_eyes" if closed else f"{c.eye_color}_eyes": 1.0,
        "one_eye_closed": float(c.wink != 0 and not closed),
        "twintails": float(c.hair_cut == "twintails"),
        "ponytail": float(c.hair_cut == "ponytail"),
        "ahoge": float(c.ahoge),
        "grin" if c.mouth_open and c.smile > 0.2 else "smile": round(max(0.0, c.smile), 2) if c.smile > 0.2 else 0.0,
        "open_mouth": float(c.mouth_open > 0),
        "blush": round(c.blush, 2) if c.blush >= 0.35 and style.blush_kind != "none" else 0.0,
        "glasses": float(c.glasses != "none"),
        "ribbon": float(c.accessory == "ribbon"),
        "earrings": float(c.accessory == "earrings"),
        "dark_skin": float(c.skin >= 4),
        "tan": float(c.skin == 3),
        "simple_background": float(style.backdrop in ("gradient", "paper", "panel")),
    }
    return {tag: score for tag, score in found.items() if score > 0}


# --- layouts ---------------------------------------------------------------------------------------------------------

MARK = "portraits.json"
"""The file in a written folder that tells its settings; a folder with other things in it and without it is refused."""
LABELS = "factors.jsonl"
"""The file in a written folder with one JSON object a picture: path, domain, content, style, landmarks."""

# What drawing looks like: raised when pictures of the same factors change.
_VERSION = 1


@dataclass(frozen=True)
class _Set:
    """Some pictures of a layout: `folder`, and the factors of the i-th."""

    folder: str
    count: int
    factors: Callable[[int], Factors]


@dataclass(frozen=True)
class _Layout:
    """A folder to be written: its settings, its pictures and what else lies in it."""

    out: Path
    settings: dict[str, Any]
    sets: tuple[_Set, ...]
    texts: Mapping[str, Callable[[Mapping[str, Factors]], str]]

    def pictures(self) -> Iterator[tuple[str, Factors]]:
        for part in self.sets:
            for index in range(part.count):
                yield f"{part.folder}/{index:05d}.png", part.factors(index)

    def check(self) -> None:
        """Refuse a folder that is anything but new, empty or the same layout half or wholly written."""
        mark = self.out / MARK
        try:
            if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
                return
            if not self.out.is_dir():
                raise DataError(f"{self.out} is no folder; give --out a new or empty one")
            if not mark.exists():
                raise DataError(f"{self.out} has files in it that are not portraits; choose a new or empty folder")
            found = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {mark} ({error}); choose a new or empty folder") from error
        if found != self.settings:
            found = found if isinstance(found, dict) else {}
            other = sorted(key for key in self.settings if found.get(key) != self.settings[key])
            told = "; ".join(f"{key} {found.get(key)} there, {self.settings[key]} asked for" for key in other)
            raise DataError(
                f"{self.out} holds portraits with other settings ({told or 'unknown ones'}); "
                "choose another folder or delete this one"
            )

    def write(self, progress: bool) -> None:
        size = self.settings["size"]
        write_text(self.out / MARK, json.dumps(self.settings, indent=1) + "\n")
        total = sum(part.count for part in self.sets)
        rows: dict[str, Factors] = {}
        labels = []
        bar = Progress(total, f"portraits {self.settings['layout']}") if progress else None
        with bar or nullcontext():
            for name, factors in self.pictures():
                path = self.out / name
                if not path.exists():
                    with atomic_path(path, sync=False) as temporary:
                        factors.draw(size).save(temporary)
                rows[name] = factors
                points = landmarks(factors.content, factors.style, factors.domain)
                labels.append(json.dumps({"path": name, **factors.to_dict(), "landmarks": points}))
                if bar:
                    bar.update()
        for name, text in self.texts.items():
            if not (self.out / name).exists():
                write_text(self.out / name, text(rows))
        if not (self.out / LABELS).exists():
            write_text(self.out / LABELS, "\n".join(labels) + "\n")


def read_labels(folder: str | os.PathLike[str]) -> dict[str, Factors]:
    """The factors of every picture of a written folder, by relative path.

    Raises:
        DataError: there is no `factors.jsonl`, or it is damaged.
    """
    path = Path(folder) / LABELS
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["path"]: Factors.from_dict(row) for row in rows}
    except OSError as error:
        raise DataError(f"{path}: no labels there ({error.strerror}); write them with `anifast portraits`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and write the portraits again, which restores it"
        ) from error


def _numbered(make: Callable[[int], Factors], seed: int, place: str, index: int) -> Factors:
    """The factors of a folder's i-th picture: they depend on the seed, the folder and i only."""
    return make(_Draws(seed, place).word(str(index)) >> 1)


def _layout(
    out: str | os.PathLike[str],
    name: str,
    size: int,
    seed: int,
    sets: Iterable[tuple[str, int, Callable[[int], Factors]]],
    *,
    texts: Mapping[str, Callable[[Mapping[str, Factors]], str]] | None = None,
    artists: Sequence[Style] = ARTISTS,
) -> _Layout:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size: expected {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    if not artists:
        raise ValueError("artists: expected at least one style")
    parts = []
    for folder, count, make in sets:
        if count < 0:
            raise ValueError(f"number of pictures for {folder}: expected at least 0, got {count}")
        parts.append(_Set(folder, count, partial(_numbered, make, seed, f"{name}/{folder}")))
    counts = {part.folder: part.count for part in parts}
    settings = {"layout": name, "version": _VERSION, "size": size, "seed": seed, "pictures": counts}
    settings["artists"] = hashlib.blake2b(repr(tuple(artists)).encode(), digest_size=8).hexdigest()
    return _Layout(Path(out), settings, tuple(parts), texts or {})


def _plan_cyclegan(
    out: str | os.PathLike[str],
    train: int,
    test: int,
    size: int,
    seed: int,
    artists: Sequence[Style],
    name: str = "cyclegan",
) -> _Layout:
    def photo(s: int) -> Factors:
        return sample_factors(s, "photo")

    def drawn(s: int) -> Factors:
        return sample_factors(s, "drawn", artists)

    sets = [("trainA", train, photo), ("trainB", train, drawn), ("testA", test, photo), ("testB", test, drawn)]
    return _layout(out, name, size, seed, sets, artists=artists)


def write_cyclegan(
    out: str | os.PathLike[str],
    train: int = 200,
    test: int = 20,
    size: int = 64,
    seed: int = 0,
    *,
    artists: Sequence[Style] = ARTISTS[:1],
    progress: bool = True,
) -> Path:
    """Write `out`/trainA, trainB, testA and testB: A is photo-like, B drawn, and no character comes twice.

    The folder must be new, empty, or one that the same call wrote before: pictures that are there stay and the rest is
    added, so an interrupted run can be run again. The same holds for the other writers.

    Args:
        out: the folder.
        train: pictures in each of trainA and trainB.
        test: pictures in each of testA and testB.
        size: side of the pictures in pixels.
        seed: of the whole set; a picture depends on it, its folder and its number only.
        artists: who draws B; by default one artist, so that B has one look to learn.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        ValueError: a size or number out of range.
        DataError: the folder holds other files, or portraits with other settings.
    """
    return _write([_plan_cyclegan(out, train, test, size, seed, artists)], progress)[0]


def write_gnr(
    out: str | os.PathLike[str],
    train: int = 200,
    test: int = 20,
    size: int = 64,
    seed: int = 0,
    *,
    progress: bool = True,
) -> Path:
    """Write the folders of `write_cyclegan` with B by all artists: for systems whose point is the choice of style."""
    return _write([_plan_cyclegan(out, train, test, size, seed, ARTISTS, "gnr")], progress)[0]


def _plan_artists(
    out: str | os.PathLike[str], count: int, size: int, seed: int, artists: Sequence[Style] = ARTISTS
) -> _Layout:
    if len({style.name for style in artists}) < len(artists):
        raise ValueError("artists: their names, which become folders, must differ")
    for style in artists:
        if style.name in ("", ".", "..") or set(style.name) & set("/\\\0"):
            raise ValueError(f"artists: {style.name!r} cannot be the name of a folder")
    sets = [(style.name, count, lambda s, a=style: Factors(sample_content(s), a, "drawn")) for style in artists]
    return _layout(out, "disentangle", size, seed, sets, artists=artists)


def write_artists(
    out: str | os.PathLike[str],
    count: int = 200,
    size: int = 64,
    seed: int = 0,
    *,
    artists: Sequence[Style] = ARTISTS,
    progress: bool = True,
) -> Path:
    """Write `out`/<artist>/: `count` drawn portraits by each artist, every one of another character."""
    return _write([_plan_artists(out, count, size, seed, artists)], progress)[0]


def _tags_table(rows: Mapping[str, Factors]) -> str:
    lines = []
    for name, factors in rows.items():
        folder, _, rest = name.partition("/")
        if folder == "target":
            found = tags(factors.content, factors.style)
            told = ", ".join(tag if score == 1.0 else f"{tag}:{score:g}" for tag, score in found.items())
            lines.append(f"{rest}\t{told}\n")
    return "".join(lines)


def _plan_twingan(out: str | os.PathLike[str], train: int, val: int, size: int, seed: int) -> _Layout:
    sets = [
        (f"{folder}/{split}", count, lambda s, d=domain: sample_factors(s, d))
        for folder, domain in (("source", "photo"), ("target", "drawn"))
        for split, count in (("train", train), ("val", val))
    ]
    texts = {
        "target/tags.tsv": _tags_table,
        "target/taglist.tsv": lambda _: "".join(f"{number}\t{tag}\t{group}\n" for number, tag, group in TAGS),
    }
    return _layout(out, "twingan", size, seed, sets, texts=texts)


def write_twingan(
    out: str | os.PathLike[str],
    train: int = 200,
    val: int = 20,
    size: int = 64,
    seed: int = 0,
    *,
    progress: bool = True,
) -> Path:
    """Write `out`/source and target with train and val, and target/tags.tsv and taglist.tsv.

    Source is photo-like, target drawn by all artists. The paths in tags.tsv are relative to target; a tag without a
    score has 1.
    """
    return _write([_plan_twingan(out, train, val, size, seed)], progress)[0]


def _aligned(factors: Factors) -> Factors:
    level = replace(factors.content, tilt=0.0, scale=1.0, offset_x=0.0, offset_y=0.0)
    return replace(factors, content=level)


def _plan_blendgan(out: str | os.PathLike[str], count: int, size: int, seed: int) -> _Layout:
    sets = [
        ("faces", count, lambda s: _aligned(sample_factors(s, "photo"))),
        ("styles", count, lambda s: _aligned(sample_factors(s, "drawn"))),
    ]
    return _layout(out, "blendgan", size, seed, sets)


def write_blendgan(
    out: str | os.PathLike[str], count: int = 200, size: int = 64, seed: int = 0, *, progress: bool = True
) -> Path:
    """Write `out`/faces, photo-like, and `out`/styles, drawn by all artists.

    Heads are level, centred and of one size, as the alignment of real pictures leaves them.
    """
    return _write([_plan_blendgan(out, count, size, seed)], progress)[0]


LAYOUTS: dict[str, Callable[[Path, int, int, int, int], _Layout]] = {
    "cyclegan": lambda out, count, held, size, seed: _plan_cyclegan(out, count, held, size, seed, ARTISTS[:1]),
    "gnr": lambda out, count, held, size, seed: _plan_cyclegan(out, count, held, size, seed, ARTISTS, "gnr"),
    "disentangle": lambda out, count, held, size, seed: _plan_artists(out, count, size, seed),
    "twingan": lambda out, count, held, size, seed: _plan_twingan(out, count, held, size, seed),
    "blendgan": lambda out, count, held, size, seed: _plan_blendgan(out, count, size, seed),
}
"""The systems whose layouts `write_layouts` knows."""


def write_layouts(
    out: str | os.PathLike[str],
    systems: Sequence[str] = tuple(LAYOUTS),
    count: int = 200,
    size: int = 64,
    seed: int = 0,
    *,
    progress: bool = True,
) -> list[Path]:
    """Write the layouts of several systems, each into `out`/<system>; gnr has the layout of cyclegan with more artists.

    Args:
        out: the folder the systems' folders go into.
        systems: names from `LAYOUTS`.
        count: pictures in each training folder; each held-out folder gets a tenth of it, at least one.
        size: side of the pictures in pixels.
        seed: of the whole.
        progress: show progress bars.

    Returns:
        The systems' folders.

    Raises:
        ValueError: an unknown system, or a size or number out of range.
        DataError: one of the folders holds something else; nothing is written then.
    """
    unknown = [name for name in systems if name not in LAYOUTS]
    if unknown:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}; got {unknown[0]!r}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    held = max(1, count // 10)
    return _write(
        [LAYOUTS[name](Path(out) / name, count, held, size, seed) for name in dict.fromkeys(systems)], progress
    )


def _write(layouts: Sequence[_Layout], progress: bool) -> list[Path]:
    for layout in layouts:
        layout.check()
    for layout in layouts:
        layout.write(progress)
    return [layout.out for layout in layouts]


# --- command line ----------------------------------------------------------------------------------------------------


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value}: " + (f"at least {low}" if high is None else f"{low} to {high}"))
        return value

    return parse


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Add the options of `anifast portraits`."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="each layout goes into a folder of its name in here"
    )
    parser.add_argument(
        "--count", type=_integer(1), default=200, metavar="N",
        help="pictures in each training folder (for disentangle: of each artist); held-out folders get a tenth [200]",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=_integer(MIN_SIZE, MAX_SIZE), default=64, metavar="S", help="side in pixels [64]"
    )
    parser.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="another seed gives other portraits [0]"
    )
    parser.add_argument(
        "--layout", nargs="+", choices=tuple(LAYOUTS), default=tuple(LAYOUTS), metavar="NAME",
        help=f"systems to write for: {', '.join(LAYOUTS)} [all]",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Run `anifast portraits`."""
    for folder in write_layouts(args.out, args.layout, args.count, args.size, args.seed):
        print(folder)
    return 0

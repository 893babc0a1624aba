"""What portraits are drawn with: a canvas with a pen, colours, screens and film grain."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from anifast.data._portrait_shapes import Color, Noise, Points

Box = tuple[int, int, int, int]
WHITE: Color = (255, 255, 255)


def mix(a: Sequence[float], b: Sequence[float], t: float) -> Color:
    """Blend two colours, `t` of the second."""
    return (
        int(a[0] + (b[0] - a[0]) * t + 0.5),
        int(a[1] + (b[1] - a[1]) * t + 0.5),
        int(a[2] + (b[2] - a[2]) * t + 0.5),
    )


def hls(hue: float, light: float, saturation: float) -> Color:
    """Colour of a hue, lightness and saturation, each in [0, 1]."""
    r, g, b = colorsys.hls_to_rgb(hue % 1.0, light, saturation)
    return (int(r * 255), int(g * 255), int(b * 255))


@cache
def _ramp(count: int, knots: int) -> Points:
    """Weights [count,knots] of linear interpolation."""
    at = np.linspace(0, knots - 1, count)[:, None]
    return np.maximum(0.0, 1 - np.abs(at - np.arange(knots)))


def ribbon(points: Points, widths: Sequence[float]) -> Points:
    """The polygon of a line [N,2] whose width runs through `widths`."""
    way = np.empty_like(points)
    way[1:-1] = points[2:] - points[:-2]
    way[0], way[-1] = points[1] - points[0], points[-1] - points[-2]
    half = 0.5 * (_ramp(len(points), len(widths)) @ widths) / (np.hypot(way[:, 0], way[:, 1]) + 1e-9)
    out = np.empty((2 * len(points), 2))
    aside = way[:, ::-1] * half[:, None] * (-1.0, 1.0)
    out[: len(points)] = points + aside
    out[len(points) :] = (points - aside)[::-1]
    return out


class Mask(NamedTuple):
    """An L picture and the part of the canvas it covers."""

    box: Box
    image: Image.Image


def enlarge(small: Image.Image, cells: float, box: Box, side: int) -> Image.Image:
    """The part `box` of a canvas of that side over which the first `cells` pixels of a small picture are spread."""
    k = cells / side
    part = (box[0] * k, box[1] * k, box[2] * k, box[3] * k)
    return small.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC, part)


class Canvas:
    """An RGB picture and a pen."""

    def __init__(self, side: int, color: Color) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side), color)
        self._pen = ImageDraw.Draw(self.image)

    def fill(self, points: Points, color: Color) -> None:
        """Fill a polygon [N,2]."""
        self._pen.polygon(points.ravel().tolist(), fill=color)

    def cover(self, color: Color) -> None:
        """Fill everything (of the clip)."""
        self.image.paste(color, (0, 0, self.side, self.side))

    def line(self, points: Points, color: Color, width: float, closed: bool = False) -> None:
        """Draw a line of even width; wide ones get round corners."""
        xy = points.ravel().tolist()
        whole = max(1, round(width))
        self._pen.line(xy + xy[:2] if closed else xy, fill=color, width=whole)
        if whole > 3:
            way = np.diff(points, axis=0, append=points[:1])
            before = np.roll(way, 1, axis=0)
            along = (way * before).sum(1)
            across = way[:, 0] * before[:, 1] - way[:, 1] * before[:, 0]
            corners = np.abs(across) > 0.12 * along
            r = whole / 2 - 0.5
            for x, y in points[corners].tolist():
                self._pen.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def stroke(self, points: Points, widths: Sequence[float], color: Color) -> None:
        """Draw a line whose width runs through `widths`."""
        self.fill(ribbon(points, widths), color)

    def soft(self, points: Points, color: Color, alpha: float = 1.0, blur: float = 0.0) -> None:
        """Fill a polygon with a blurred edge (radius in pixels) and opacity `alpha`."""
        mask = self.mask(points, alpha, blur)
        if mask:
            self.image.paste(color, mask.box, mask.image)

    def mask(self, points: Points, alpha: float = 1.0, blur: float = 0.0) -> Mask | None:
        """A polygon of opacity `alpha`, its edge blurred by `blur` pixels; None outside the picture."""
        blurred = blur >= 0.7
        box = self.box(points, int(2 * blur) + 1 if blurred else 1)
        if box is None:
            return None
        image = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(image).polygon((points - box[:2]).ravel().tolist(), fill=int(255 * alpha))
        # at these few pixels a box of the same spread is as good as a Gaussian and three times as fast
        return Mask(box, image.filter(ImageFilter.BoxBlur(1.5 * blur)) if blurred else image)

    def box(self, points: Points, margin: int = 1) -> Box | None:
        """The part of the picture a polygon covers, or None."""
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        box = (
            max(0, int(left) - margin), max(0, int(top) - margin), min(self.side, int(right) + margin + 1),
            min(self.side, int(bottom) + margin + 1),
        )  # fmt: skip
        return box if box[0] < box[2] and box[1] < box[3] else None

    @contextmanager
    def clip(self, points: Points) -> Iterator[None]:
        """What is drawn inside the block shows only inside the polygon."""
        under = self.image
        self.image = under.copy()
        self._pen = ImageDraw.Draw(self.image)
        yield
        box = self.box(points)
        if box:
            mask = Image.new("L", under.size)
            ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=255)
            under.paste(self.image.crop(box), box, mask.crop(box))
        self.image = under
        self._pen = ImageDraw.Draw(under)


@lru_cache(maxsize=8)
def pattern(kind: str, side: int, count: float) -> Image.Image:
    """Hatching or screen dots as an L picture of that side, with `count` lines or rows of dots across it."""
    y, x = np.mgrid[0:side, 0:side] * (np.pi * count / side)
    if kind == "hatch":
        value = np.sin(1.2 * x + 0.9 * y) ** 2 * 2.4 - 1.2
    else:
        value = (np.cos(1.4 * (x + y)) + np.cos(1.4 * (x - y))) * 1.6 - 0.9
    return Image.fromarray((np.clip(value, 0, 1) * 255).astype(np.uint8))


@lru_cache(maxsize=8)
def _grain(side: int, strength: int) -> Image.Image:
    noise = Noise(7)(side, side, 4).sum(2) - 2.0
    level = Image.fromarray(np.clip(128.5 + noise * strength, 0, 255).astype(np.uint8))
    return Image.merge("RGB", (level, level, level))


def grain(image: Image.Image, strength: float, noise: Noise) -> Image.Image:
    """Add grain of a standard deviation of `strength` of 255 to an RGB picture."""
    level = int(strength / 0.577 + 0.5)
    if level == 0:
        return image
    x, y = (noise(2) * 4096).astype(int).tolist()
    side = image.size[0]
    return ImageChops.add(image, ImageChops.offset(_grain(side, level), x % side, y % side), 1.0, -128)


@lru_cache(maxsize=8)
def vignette(side: int) -> Image.Image:
    """What a lens leaves of the light, as an RGB picture to multiply with."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side - 0.5
    level = Image.fromarray((255 - 56 * np.clip((x * x + y * y) / 0.5, 0, 1) ** 1.5).astype(np.uint8))
    return Image.merge("RGB", (level, level, level))

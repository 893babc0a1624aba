"""Portraits in the drawn domain: outlines, large eyes, and an artist's palette and shading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from anifast.data import _portrait_shapes as shapes
from anifast.data._portrait_canvas import WHITE, Canvas, enlarge, grain, hls, mix, pattern
from anifast.data._portrait_palette import DRAWN
from anifast.data._portrait_shapes import Color, Points, arcs, ellipse, flat, path, smooth

if TYPE_CHECKING:
    from anifast.data.portraits import Content, Style

LINES: dict[str, Color] = {
    "dark": (34, 22, 36), "black": (14, 12, 16), "brown": (104, 62, 42), "blue": (48, 58, 128), "self": (0, 0, 0),
}  # fmt: skip


class EyeShape(NamedTuple):
    """Lids from the inner to the outer corner and back, factors on the eye's width and height, and the iris' radii."""

    upper: tuple[tuple[float, float], ...]
    lower: tuple[tuple[float, float], ...]
    width: float
    height: float
    iris: tuple[float, float]


EYES = {
    "round": EyeShape(
        ((-1.0, 0.28), (-0.76, -0.48), (-0.12, -1.0), (0.56, -0.80), (1.0, 0.0)),
        ((0.72, 0.66), (0.05, 0.90), (-0.66, 0.70)), 1.0, 1.0, (0.66, 0.84),
    ),
    "almond": EyeShape(
        ((-1.05, 0.38), (-0.66, -0.36), (0.0, -0.80), (0.62, -0.74), (1.10, -0.24)),
        ((0.72, 0.46), (0.05, 0.72), (-0.64, 0.62)), 1.05, 0.84, (0.58, 0.86),
    ),
    "cat": EyeShape(
        ((-1.05, 0.48), (-0.60, -0.26), (0.08, -0.78), (0.70, -0.88), (1.16, -0.56)),
        ((0.80, 0.30), (0.12, 0.66), (-0.62, 0.68)), 1.06, 0.88, (0.56, 0.86),
    ),
    "droopy": EyeShape(
        ((-1.0, 0.08), (-0.62, -0.72), (0.0, -0.96), (0.58, -0.62), (1.02, 0.26)),
        ((0.70, 0.80), (0.08, 0.88), (-0.64, 0.62)), 1.0, 0.96, (0.66, 0.84),
    ),
    "tall": EyeShape(
        ((-0.94, 0.10), (-0.80, -0.70), (-0.12, -1.04), (0.62, -0.94), (0.98, -0.26)),
        ((0.76, 0.72), (0.0, 0.94), (-0.66, 0.80)), 0.90, 1.16, (0.70, 0.86),
    ),
    "cool": EyeShape(
        ((-1.04, -0.02), (-0.70, -0.40), (0.0, -0.56), (0.66, -0.56), (1.10, -0.26)),
        ((0.74, 0.50), (0.05, 0.72), (-0.64, 0.54)), 1.06, 0.84, (0.56, 0.78),
    ),
    "bead": EyeShape(
        ((-0.72, 0.0), (-0.50, -0.74), (0.0, -1.0), (0.50, -0.74), (0.72, 0.0)),
        ((0.50, 0.74), (0.0, 1.0), (-0.50, 0.74)), 0.62, 0.66, (0.62, 0.80),
    ),
}  # fmt: skip


class Ink:
    """An artist's colours: every colour of the content passes through it."""

    def __init__(self, style: Style) -> None:
        self._style = style

    def tone(self, color: Color, living: bool = False) -> Color:
        """The colour as this artist would mix it; `living` skin keeps some warmth in the coldest palette."""
        s = self._style
        saturation = max(s.saturation, 0.85) if living else s.saturation
        temperature = max(s.temperature, 0.0) * 0.7 if living else s.temperature
        grey = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
        out = []
        for part, warmth, tint in zip(color, (26.0, 4.0, -26.0), s.tint, strict=True):
            value = grey + (part - grey) * saturation + warmth * temperature
            value = 150 + (value - 150) * s.contrast + 70 * s.lightness
            value = value * (1 - s.tint_amount) + s.tint_amount * tint
            out.append(int(min(255.0, max(0.0, value))))
        return (out[0], out[1], out[2])

    def shade(self, color: Color, depth: float = 1.0) -> Color:
        """The colour in shadow."""
        s = self._style
        d = min(s.shade_depth * depth, 1.4)
        r, g, b = 1 - d * (0.36 + 0.14 * s.shade_hue), 1 - d * 0.44, 1 - d * (0.36 - 0.16 * s.shade_hue)
        return (int(color[0] * r), int(color[1] * g), int(color[2] * b))

    def line(self, color: Color) -> Color:
        """The colour of a line around a field of `color`."""
        kind = self._style.line_color
        if kind == "self":
            return mix((color[0] * 0.5, color[1] * 0.42, color[2] * 0.46), (70, 24, 50), 0.2)
        return mix(LINES[kind], color, 0.18 if kind == "dark" else 0.0)


class DrawnPortrait:
    """One drawn portrait of `size` pixels."""

    def __init__(self, content: Content, style: Style, size: int) -> None:
        self.c, self.s, self.size = content, style, size
        self.reduction = 3 if size <= 96 else 2
        self.side = side = size * self.reduction
        self.view = shapes.View(content, side)
        self.unit = self.view.unit
        self.ink = Ink(style)
        self.noise = shapes.Noise(content.detail)
        self.width = style.line * side / 100
        self.fine = min(max(self.width, side * 0.0055), side * 0.012)
        self.steps = 5 if side <= 256 else 9
        self.screen = min(side / 9, 44.0)
        self.eye_y = 0.15 + style.eye_height
        self.eye_x = (0.355 + 0.022 * content.eye_spacing) * (0.4 + 0.6 * style.face_width)
        self.eye_w = 0.225 * (0.35 + 0.65 * style.eye_size)
        self.eye_h = 0.245 * style.eye_size
        self.nose_y = 0.49 + 0.3 * style.chin
        self.mouth_y = 0.70 + 0.6 * style.chin
        self.mouth_w = 0.135 + 0.05 * abs(content.smile) + 0.02 * content.mouth_open
        self.skin = self.ink.tone(DRAWN.skin[content.skin], living=True)
        self.hair = self.ink.tone(DRAWN.hair[content.hair_color])
        self.cloth = self.ink.tone(DRAWN.cloth[content.clothes_color])
        self.accent = self.ink.tone(DRAWN.accent[shapes.accent(content)])
        self.skin_line, self.hair_line, self.cloth_line = (self.ink.line(v) for v in (self.skin, self.hair, self.cloth))

    def landmarks(self) -> dict[str, tuple[float, float]]:
        """Eyes and corners of the mouth, in parts of the side."""
        mouth = (self.mouth_w, self.mouth_y - 0.05 * self.c.smile)
        return self.view.landmarks((self.eye_x, self.eye_y), mouth)

    def picture(self) -> Image.Image:
        """Draw it."""
        return grain(self.render().reduce(self.reduction), 3.5 * self.s.grain, self.noise)

    def render(self) -> Image.Image:
        """Draw everything on the large canvas, back to front."""
        front = shapes.FrontHair(self.c, self.noise)
        front_px = self.view.front_hair(arcs(front.outline, self.steps))
        width, chin = 0.735 * self.s.face_width + 0.025 * self.c.face_width, self.s.chin + 0.04 * self.c.chin
        face_px = self.view.head(shapes.skull(width, self.c.jaw, chin, 0.0, self.steps))
        cv = Canvas(self.side, WHITE)
        self.background(cv)
        self.behind(cv, front.volume)
        self.body(cv, face_px)
        self.ears(cv)
        with cv.clip(face_px):
            cv.fill(face_px, self.skin)
            self.shade(cv, face_px + self.shift(0.10, -0.02), self.skin, 0.7, face_px)
            self.cast(cv, front_px + self.shift(-0.03, 0.075), self.skin, 0.9, front_px)
            self.blush(cv)
        self.outline(cv, face_px, self.skin_line)
        self.nose(cv)
        self.mouth(cv)
        for side in (-1, 1):
            self.eye(cv, side)
        self.glasses(cv, arms=True)
        self.front(cv, front_px, front)
        for side in (-1, 1):
            self.brow(cv, side)
        self.glasses(cv, arms=False)
        self.accessory(cv, front_px, front.volume)
        return cv.image

    # --- helpers

    def shift(self, x: float, y: float) -> Points:
        """A shift in pixels; x > 0 goes towards the light."""
        return np.array([x * self.s.light, y]) * self.unit

    def outline(self, cv: Canvas, points: Points, color: Color, weight: float = 1.0, closed: bool = True) -> None:
        """Draw an outline the artist's way."""
        width = self.width * weight
        if width < 0.4:
            return
        cv.line(points, color, width, closed)
        if self.s.wobble:
            t = np.linspace(0, 6.283, len(points))
            a = self.noise(4) * 6.283
            x, y = np.sin(3 * t + a[0]) + np.sin(7 * t + a[1]), np.sin(4 * t + a[2]) + np.sin(6 * t + a[3])
            cv.line(points + np.stack([x, y], 1) * self.s.wobble * self.side * 0.006, color, width * 0.7, closed)

    def shade(self, cv: Canvas, lit: Points, color: Color, depth: float, within: Points) -> None:
        """Inside a clip filled with `color`: put everything but the polygon `lit` into shadow."""
        if self.s.shading == "flat":
            return
        if self.s.shading == "cel":
            cv.cover(self.ink.shade(color, depth))
            cv.fill(lit, color)
        else:
            self._veil(cv, lit, True, color, depth, within)

    def cast(self, cv: Canvas, shadow: Points, color: Color, depth: float, within: Points) -> None:
        """Inside a clip: a shadow of the form `shadow` on `color`."""
        if self.s.shading in ("flat", "cel"):
            cv.fill(shadow, self.ink.shade(color, depth))
        else:
            self._veil(cv, shadow, False, color, depth, within)

    def _veil(self, cv: Canvas, form: Points, inverse: bool, color: Color, depth: float, within: Points) -> None:
        box = cv.box(within)
        if box is None:
            return
        kind = self.s.shading
        ground, mark = (255, 0) if inverse else (0, 255)
        if kind == "soft":
            small = Image.new("L", (-(-self.side // 4),) * 2, ground)
            ImageDraw.Draw(small).polygon((form / 4).ravel().tolist(), fill=mark)
            small = small.filter(ImageFilter.GaussianBlur(self.unit * 0.06 / 4))
            veil = enlarge(small, self.side / 4, box, self.side)
            cv.image.paste(self.ink.shade(color, depth * 1.15), box, veil)
            return
        mask = Image.new("L", cv.image.size, ground)
        ImageDraw.Draw(mask).polygon(form.ravel().tolist(), fill=mark)
        veil = ImageChops.multiply(mask.crop(box), pattern(kind, self.side, self.screen).crop(box))
        cv.image.paste(self.ink.line(color) if kind == "hatch" else self.ink.shade(color, depth * 1.5), box, veil)

    # --- background

    def background(self, cv: Canvas) -> None:
        c, s, side = self.c, self.s, self.side
        light = 0.42 + 0.42 * c.background_light
        base = self.ink.tone(hls(c.background_hue, light, 0.40))
        pale = self.ink.tone(hls(c.background_hue, min(0.95, light + 0.12), 0.45))
        deep = self.ink.tone(hls(c.background_hue, light - 0.10, 0.36))
        kind = s.backdrop
        cv.cover(base)
        if kind == "gradient":
            strip = Image.new("RGB", (1, 2))
            strip.putpixel((0, 0), deep)
            strip.putpixel((0, 1), pale)
            cv.image.paste(strip.resize((side, side), Image.Resampling.BILINEAR, (0, 0.5, 1, 1.5)))
        elif kind == "halo":
            cv.fill(self.view.body(ellipse(0, -0.05, 1.32, 1.32, 48)), pale)
            cv.line(self.view.body(ellipse(0, -0.05, 1.40, 1.40, 48)), pale, side * 0.008, closed=True)
        elif kind == "stripes":
            stripe = np.array([(0.1, 0.0), (0.2, 0.0), (0.65, 1.0), (0.55, 1.0)])
            for i in range(-5, 6):
                cv.fill((stripe + (0.2 * i, 0)) * side, pale)
        elif kind == "dots":
            dot = ellipse(0, 0, 0.04, 0.04, 16)
            for i in range(36):
                row, column = divmod(i, 6)
                cv.fill((dot + (0.2 * column + 0.1 * (row % 2), 0.2 * row)) * side, pale)
        elif kind == "rays":
            for i in range(12):
                ray = ellipse(0.5, 0.45, 1.0, 1.0, 2, i * 30, i * 30 + 14)
                cv.fill(np.concatenate([[(0.5, 0.45)], ray]) * side, pale)
        elif kind == "paper":
            cv.cover(self.ink.tone((250, 246, 238)))
            top = [(0.05, 0.5), (0.08, 0.14), (0.5, 0.06), (0.92, 0.12), (0.95, 0.5)]
            wash = smooth([*top, (0.9, 0.84), (0.5, 0.9), (0.1, 0.86)], 5, True)
            cv.fill(wash * side + (self.noise(len(wash), 2) - 0.5) * 0.03 * side, mix(base, WHITE, 0.35))
        elif kind == "panel":
            cv.cover(self.ink.tone((248, 246, 242)))
            edge = np.array([(0.07, 0.07), (0.93, 0.07), (0.93, 1.1), (0.07, 1.1)]) * side
            cv.fill(edge, base)
            cv.line(edge, self.ink.line(base), max(1.0, self.width), closed=True)
        elif kind == "split":
            cv.fill(np.array([(0, 0.62), (1, 0.5), (1, 1), (0, 1)]) * side, deep)
        elif kind == "night":
            cv.cover(mix(deep, (20, 16, 48), 0.62))
            for x, y, size in self.noise(16, 3).tolist():
                radius = 0.003 + 0.008 * size
                cv.fill(ellipse(x, 0.8 * y, radius, radius, 8) * side, pale)

    # --- hair

    def behind(self, cv: Canvas, volume: float) -> None:
        dark = self.ink.shade(self.hair, 0.55)
        for form, depth, tie in shapes.tails(self.c):
            px = self.view.hair(flat(arcs(form, self.steps), depth))
            with cv.clip(px):
                cv.cover(self.hair)
                self.shade(cv, px + self.shift(0.10, -0.06), self.hair, 0.7, px)
            if self.c.hair_cut != "bun":
                for t in (0.35, 0.65):
                    self.strand(cv, self._between(px, t), 1.0)
            self.outline(cv, px, self.hair_line)
            if self.c.hair_cut != "bun":
                band = self.view.hair(flat(ellipse(tie[0], tie[1], 0.10, 0.13), depth))
                cv.fill(band, self.accent)
                self.outline(cv, band, self.ink.line(self.accent))
        px = self.view.hair(flat(arcs(shapes.hair_behind(self.c.hair_cut, volume), self.steps), -0.3))
        cv.fill(px, dark)
        low = {"long": 2.0, "wavy": 2.0, "bob": 0.98}.get(self.c.hair_cut, 0.0)
        for x in (-0.92, -0.62, 0.62, 0.92) if low else ():
            line = smooth([(x * 0.9, 0.2), (x, 0.6 * low), (x * 0.98, low)])
            self.strand(cv, self.view.hair(flat(line, -0.3)), 0.8)
        self.outline(cv, px, self.hair_line)

    def _between(self, outline: Points, t: float) -> Points:
        """A line inside a tail: between its two edges."""
        half = len(outline) // 2
        a = outline[2 : half - 2]
        b = outline[half + 2 :][::-1]
        index = np.linspace(0, len(b) - 1, len(a)).astype(int)
        line: Points = a * (1 - t) + b[index] * t
        return line[2:-2]

    def strand(self, cv: Canvas, points: Points, weight: float) -> None:
        """A line in the hair, as dark as the artist likes strands."""
        if self.s.strands > 0.05:
            color = mix(self.hair, self.hair_line, 0.35 + 0.6 * self.s.strands)
            width = self.fine * weight
            cv.stroke(points, (0, width, width, 0), color)

    def front(self, cv: Canvas, px: Points, front: shapes.FrontHair) -> None:
        if self.c.hair_cut == "buzz":
            cv.fill(px, mix(self.hair, self.skin, 0.15))
            for x, t in self.noise(26, 2).tolist():
                line = shapes.meridian(2.2 * x - 1.1, 0.0, 0.15 + 0.4 * t, 0.21 + 0.4 * t, count=3)
                self.strand(cv, self.view.face(line, 0.02), 0.9)
            self.outline(cv, px, self.hair_line, 0.7)
        else:
            with cv.clip(px):
                cv.fill(px, self.hair)
                self.shade(cv, px + self.shift(0.13, -0.05), self.hair, 0.6, px)
                self.gloss(cv, front.volume)
            self.strands(cv, front)
            self.outline(cv, px, self.hair_line)
        if self.c.ahoge:
            tuft = self.view.head(flat(shapes.ahoge(front.volume), 0.1))
            rim = 2 * self.width
            cv.stroke(tuft, (self.unit * 0.09 + rim, self.unit * 0.07 + rim, 0), self.hair_line)
            cv.stroke(tuft, (self.unit * 0.09, self.unit * 0.07, 0), self.hair)

    def strands(self, cv: Canvas, front: shapes.FrontHair) -> None:
        """Lines in the front hair: up from the notches of the fringe, along the parting, down the side locks."""
        c, rows, top = self.c, front.edge, -0.95 - front.volume
        for i in range(1, len(rows) - 1):
            (x, y), (_, before), (_, after) = rows[i, :2], rows[i - 1, :2], rows[i + 1, :2]
            if -0.6 < y < min(before, after) and (c.bangs != "blunt" or i % 6 == 3):
                reach = (0.42, 0.545, 0.67)[i % 3]
                end = (x + (0.25 * c.parting - x) * 0.45, y + (top - y) * reach, 0.14 if x < 0 else -0.14)
                self.strand(cv, self.view.face(arcs(path((x, y, 0), end)), 0.02), 1.2)
        if c.bangs in ("parted", "swept"):
            x, y = rows[np.argmin(rows[:, 1]), :2]
            self.strand(cv, self.view.face(arcs(path((x, y, 0), (0.7 * x, top - 0.05, 0.05))), 0.02), 1.2)
        if c.bangs == "none":
            for x in (-0.75, -0.35, 0.1, 0.5, 0.8):
                line = np.array([(x * 0.62, -0.60), (x * 0.66, -0.80), (x * 0.50, -1.0)]) + (0, 0.28 * x * x)
                self.strand(cv, self.view.face(line, 0.02), 1.0)
        low = {"bob": 0.72, "long": 1.35, "wavy": 1.3}.get(c.hair_cut, 0.0)
        for side in (-1, 1) if low else ():
            line = smooth([(0.80, -0.42), (0.86, 0.1), (0.85, 0.55 * low), (0.82, low)]) * (side, 1)
            self.strand(cv, self.view.front_hair(line), 1.1)

    def gloss(self, cv: Canvas, volume: float) -> None:
        kind = self.s.gloss
        if kind == "none" or self.c.hair_cut == "buzz":
            return
        color = mix(self.hair, WHITE, 0.5)
        if kind == "soft":
            spot = self.view.face(ellipse(0.30 * self.s.light, -0.64, 0.42, 0.10, 20), 0.03)
            cv.soft(spot, color, 0.6, self.unit * 0.05)
            return
        if kind == "band":
            at = np.linspace(-0.66, 0.44, 15)
            middle = 0.47 + 0.20 * at * at
            reach = np.where(np.arange(15) % 2 == 0, 0.07, 0.015) * (1.2 - 1.1 * np.linspace(-1, 1, 15) ** 2)
            jagged = reach * (0.7 + 0.6 * self.noise(15))
            rows = [
                shapes.meridian(x, volume, m - 0.5 * u - 0.02, m + v + 0.02)
                for x, m, u, v in zip(-self.s.light * at, middle, reach[::-1], jagged, strict=True)
            ]
            both = np.array(rows)
            cv.fill(self.view.face(np.concatenate([both[:, 0], both[::-1, -1]]), 0.02), color)
            return
        for x, half in ((-0.56, 0.09), (-0.40, 0.15), (-0.27, 0.08), (0.34, 0.10), (0.48, 0.06)):
            line = shapes.meridian(-self.s.light * x, volume, 0.48 + 0.16 * x * x - half, 0.48 + 0.16 * x * x + half)
            cv.stroke(self.view.face(line, 0.02), (0, self.unit * 0.05, self.unit * 0.05, 0), color)

    # --- body

    def body(self, cv: Canvas, face_px: Points) -> None:
        view, outfit = self.view, shapes.clothes(self.c.clothes, 0.26)
        head = view.head(np.array([(-0.26, 0.5, -0.1), (0.26, 0.5, -0.1)]))
        right, left = view.body(outfit.slope), view.body(outfit.slope * (-1, 1))
        torso = np.concatenate([head[1:], right, left[::-1], head[:1]])
        with cv.clip(torso):
            cv.cover(self.skin)
            self.shade(cv, torso + self.shift(0.08, 0.0), self.skin, 0.7, torso)
            self.cast(cv, face_px + self.shift(-0.04, 0.15), self.skin, 1.0, torso)
        self.outline(cv, np.concatenate([head[1:], right[:14]]), self.skin_line, closed=False)
        self.outline(cv, np.concatenate([head[:1], left[:14]]), self.skin_line, closed=False)
        start = outfit.start
        shirt = np.concatenate([view.body(outfit.neckline), left[start:], right[start:][::-1]])
        with cv.clip(shirt):
            cv.cover(self.cloth)
            self.shade(cv, shirt + self.shift(0.14, 0.03), self.cloth, 0.7, shirt)
        self.outline(cv, shirt, self.cloth_line)
        trim = self.ink.tone(DRAWN.trim[shapes.trim(self.c)])
        made_of = {"cloth": self.cloth, "dark": self.ink.shade(self.cloth, 0.4), "trim": trim, "accent": self.accent}
        for points, role in outfit.parts:
            px = view.body(points)
            cv.fill(px, made_of[role])
            self.outline(cv, px, self.cloth_line, 0.8)
        for line in outfit.seams:
            cv.stroke(view.body(line), (0, self.width, self.width), self.cloth_line)

    def glasses(self, cv: Canvas, arms: bool) -> None:
        """The arms go behind the front hair, the frames before it."""
        c = self.c
        if c.glasses == "none":
            return
        color = self.ink.line(mix(self.accent, (30, 26, 34), 0.6))
        lenses, others = shapes.glasses(c.glasses, self.eye_x, self.eye_y + 0.02, max(0.28, self.eye_w * 1.25))
        width = min(max(self.width, self.side * 0.007), self.side * 0.012)
        for points in others if arms else lenses:
            cv.line(self.view.face(points, 0.06), color, width, closed=not arms)

    def accessory(self, cv: Canvas, front_px: Points, volume: float) -> None:
        made_of = {
            "accent": self.accent,
            "dark": self.ink.shade(self.accent, 0.7),
            "pale": self.ink.tone((252, 232, 238)),
        }
        line = self.ink.line(self.accent)
        if not shapes.ears_bare(self.c):
            self.earrings(cv)
        for points, depth, role in shapes.worn(self.c, volume):
            px = self.view.face(points, 0.03) if depth is None else self.view.head(flat(points, depth))
            if self.c.accessory == "headband":
                with cv.clip(front_px):
                    cv.fill(px, made_of[role])
                    self.outline(cv, px, line)
                self.outline(cv, front_px, self.hair_line)
            else:
                cv.fill(px, made_of[role])
                self.outline(cv, px, line, 0.8)

    # --- face

    def ears(self, cv: Canvas) -> None:
        for side in (-1, 1):
            rim = [(0.66, 0.02), (0.76, -0.06), (0.86, 0.02), (0.85, 0.18), (0.77, 0.36), (0.66, 0.38)]
            px = self.view.head(flat(smooth(rim, 4, True) * (side, 1), -0.05))
            cv.fill(px, self.skin)
            self.outline(cv, px, self.skin_line)
            inner = arcs(path((0.80, 0.03, 0), (0.755, 0.24, -0.25)), 5) * (side, 1)
            cv.stroke(self.view.head(flat(inner, -0.05)), (0, self.unit * 0.03, 0), self.ink.shade(self.skin, 1.2))
        if shapes.ears_bare(self.c):
            self.earrings(cv)

    def earrings(self, cv: Canvas) -> None:
        if self.c.accessory == "earrings":
            for points in shapes.earrings(self.c, 0.34):
                px = self.view.head(flat(points, 0.05))
                cv.fill(px, self.ink.tone((250, 208, 84)))
                self.outline(cv, px, self.ink.line((200, 150, 40)), 0.7)

    def blush(self, cv: Canvas) -> None:
        kind = self.s.blush_kind
        if kind == "none" or self.c.blush < 0.35:
            return
        color = mix(self.skin, self.ink.tone((236, 92, 100)), 0.16 + 0.28 * self.c.blush)
        for side in (-1, 1):
            x, y = side * 0.43, self.eye_y + self.eye_h + 0.10
            if kind == "lines":
                for i in (-1, 0, 1):
                    line = self.view.face(np.array([(x + i * 0.07 + 0.03, y - 0.05), (x + i * 0.07 - 0.03, y + 0.05)]))
                    cv.stroke(line, (self.unit * 0.024,) * 2, mix(color, (220, 80, 90), 0.4))
                continue
            spot = self.view.face(ellipse(x, y, 0.15, 0.075))
            cv.soft(spot, color, 1.0, self.unit * 0.03 if self.s.shading in ("soft", "cel") else 0.0)

    def nose(self, cv: Canvas) -> None:
        y, width = self.nose_y, self.fine
        color = mix(self.skin_line, self.skin, 0.25)
        away = -self.s.light
        kind = self.s.nose
        if kind == "dot":
            cv.fill(self.view.face(ellipse(0, y, 0.022, 0.016, 10), 0.08), color)
        elif kind == "line":
            line = arcs(path((away * 0.03, y - 0.20, 0), (away * 0.07, y - 0.01, 0.0), (0.0, y + 0.02, 0.2)), 4)
            cv.stroke(self.view.face(line, 0.1), (0, width, width, width * 0.5), color)
        elif kind == "shadow":
            form = arcs(path((0, y - 0.09, 0), (away * 0.075, y + 0.015, 0.1), (0, y + 0.03, 0.1), (0, y - 0.09, 0)), 4)
            cv.fill(self.view.face(form, 0.08), self.ink.shade(self.skin, 1.0))
        elif kind == "tick":
            line = arcs(path((away * 0.015, y - 0.05, 0), (away * 0.035, y, 0.1), (0, y + 0.012, 0.1)), 4)
            cv.stroke(self.view.face(line, 0.1), (width * 0.3, width * 1.1, width * 0.4), color)

    def mouth(self, cv: Canvas) -> None:
        c = self.c
        y, w = self.mouth_y, self.mouth_w
        corner = -0.05 * c.smile
        dark = mix(self.skin_line, self.ink.tone((110, 30, 40)), 0.35)
        width = self.fine
        half, middle = y + 0.012 - corner * 0.35, y + 0.008 - corner * 0.5
        upper = smooth([(-w, y + corner), (-w * 0.5, half), (0, middle), (w * 0.5, half), (w, y + corner)])
        if c.mouth_open > 0.15:
            drop = 0.06 + 0.14 * c.mouth_open
            cheek = y + drop * 0.72
            lower = smooth([(w, y + corner), (w * 0.74, cheek), (0, y + drop), (-w * 0.74, cheek), (-w, y + corner)])
            px = self.view.face(np.concatenate([upper, lower]))
            with cv.clip(px):
                cv.fill(px, self.ink.tone((146, 50, 58)))
                tongue = ellipse(0, y + drop * 1.05, w * 0.66, drop * 0.45)
                cv.fill(self.view.face(tongue), self.ink.tone((238, 124, 124)))
                if c.smile > 0.2:
                    teeth = np.concatenate([upper + (0, 0.028), upper[::-1] - (0, 0.1)])
                    cv.fill(self.view.face(teeth), self.ink.tone((252, 250, 248)))
            self.outline(cv, px, dark, 0.85)
        else:
            cv.stroke(self.view.face(upper), (width * 0.7, width * 1.4, width * 1.0, width * 1.4, width * 0.7), dark)
            low = smooth([(-0.05, y + 0.075), (0, y + 0.082), (0.05, y + 0.075)], 3)
            cv.stroke(self.view.face(low), (0, width * 0.8, 0), mix(self.skin_line, self.skin, 0.5))

    def eye(self, cv: Canvas, side: int) -> None:
        c, s, ink = self.c, self.s, self.ink
        shape = EYES[s.eye_shape]
        w, h = self.eye_w * shape.width, self.eye_h * shape.height
        rx, ry = shape.iris
        slant = 0.13 * c.eye_slant
        openness = 0.0 if c.wink == side else c.eye_open

        def place(points: Points) -> Points:
            x, y = points[:, 0], points[:, 1]
            return self.view.face(np.stack([side * (self.eye_x + x * w), self.eye_y + (y - slant * x) * h], 1), 0.01)

        lash = mix(ink.line(self.hair), (20, 14, 22), 0.55)
        width = max(self.fine, self.side * 0.0075) * (0.8 + 0.35 * c.lashes)
        if openness < 0.15:
            lid = smooth([(-0.95, 0.30), (-0.5, 0.54), (0.05, 0.62), (0.6, 0.50), (1.05, 0.20)], 5)
            if c.smile > 0.4:
                lid[:, 1] = 0.80 - lid[:, 1] * 1.1
            if s.eye_shape == "bead":
                lid[:, 0] *= 0.9
            cv.stroke(place(lid), (width * 0.6, width * 2.0, width * 2.4, width * 1.6, 0), lash)
            return
        top, low = np.array(shape.upper), np.array(shape.lower)
        closing = (1 - openness) * 0.8
        top[:, 1] += (0.30 - top[:, 1]) * closing
        upper = smooth(top, 5)
        lower = smooth(np.concatenate([top[-1:], low, top[:1]]), 4)
        opening = place(np.concatenate([upper, lower[1:-1]]))
        iris = ink.tone(DRAWN.iris[c.eye_color])
        ring, dark, pale = mix(iris, (16, 8, 28), 0.66), mix(iris, (16, 8, 28), 0.40), mix(iris, WHITE, 0.42)
        at = np.array([0.05 + 0.24 * c.gaze_x * side, 0.0 + 0.16 * c.gaze_y])
        if s.eye_shape == "bead":
            cv.fill(opening, mix(iris, (20, 14, 22), 0.72))
            self.highlight(cv, place, at * 0, rx, ry, side)
            return

        def disc(x: float, y: float, a: float, b: float, count: int = 20) -> Points:
            return place(ellipse(at[0] + x * rx, at[1] + y * ry, a * rx, b * ry, count))

        with cv.clip(opening):
            cv.cover(ink.tone((253, 253, 255)))
            cv.fill(disc(0, 0, 1.0, 1.0), ring)
            cv.fill(disc(0, 0.04, 0.85, 0.88), iris)
            cv.fill(place(ellipse(at[0], at[1] + 0.02, rx * 0.85, ry * 0.88, 12, 180, 359.9)), dark)
            cv.fill(disc(0, 0.52, 0.58, 0.32), pale)
            cv.fill(disc(0, 0.0, 0.40, 0.46, 14), mix(iris, (10, 4, 18), 0.86))
            # the upper lid's shadow on the white
            lidded = np.concatenate([upper + (0, 0.20), upper[::-1] - (0, 0.4)])
            cv.soft(place(lidded), mix(lash, (40, 30, 80), 0.4), 0.35)
            self.highlight(cv, place, at, rx, ry, side)
        wing = 0.10 + 0.14 * c.lashes
        lid = np.concatenate([upper - (0, 0.05), [upper[-1] + (wing, -0.10)]])
        cv.stroke(place(lid), (width * 0.7, width * 1.7, width * 2.5, width * 2.9, 0), lash)
        if c.lashes > 0.55 and s.line > 0.3:
            for t, dx in ((-3, 0.22), (-6, 0.20)):
                spot = upper[t]
                cv.stroke(place(np.array([spot - (0.04, 0.02), spot + (dx, -0.16)])), (width * 1.3, 0), lash)
        below = smooth(low[::-1] + (0.06, 0.03), 4)
        cv.stroke(place(below), (0, width * 0.6, width * 1.0, 0), mix(lash, self.skin, 0.3))
        if s.line > 0.3 and openness > 0.4:
            crease = smooth(top[1:] * (0.96, 1.0) - (0.0, 0.24), 4)
            cv.stroke(place(crease), (0, width * 0.7, width * 0.7, 0), mix(self.skin_line, self.skin, 0.3))

    def highlight(
        self, cv: Canvas, place: Callable[[Points], Points], at: Points, rx: float, ry: float, side: int
    ) -> None:
        kind = self.s.highlight
        if kind == "none":
            return
        x = at[0] + self.s.light * side * 0.30 * rx / 0.66
        y = at[1] - 0.40 * ry / 0.84
        if kind == "star":
            points = ellipse(0, 0, 1, 1, 8) * np.where(np.arange(8) % 2 == 0, 1.0, 0.36)[:, None]
            cv.fill(place(points * (rx * 0.46, ry * 0.42) + (x, y)), WHITE)
        elif kind == "crescent":
            outer = ellipse(at[0], at[1], rx * 0.72, ry * 0.74, 10, 195, 300)
            inner = ellipse(at[0], at[1], rx * 0.42, ry * 0.48, 10, 195, 300)
            cv.fill(place(np.concatenate([outer, inner[::-1]])), WHITE)
        else:
            cv.fill(place(ellipse(x, y, rx * 0.36, ry * 0.29, 14)), WHITE)
        if kind in ("double", "star"):
            cv.fill(place(ellipse(2 * at[0] - x, at[1] + 0.46 * ry, rx * 0.18, ry * 0.14, 10)), WHITE)

    def brow(self, cv: Canvas, side: int) -> None:
        c = self.c
        y = self.eye_y - self.eye_h * min(1.0, EYES[self.s.eye_shape].height + 0.1) - 0.15 - 0.06 * c.brow_raise
        turn, x = 0.09 * c.brow_angle, self.eye_x
        inner, outer = [(x - 0.18, y + turn), (x - 0.04, y - 0.02 + 0.45 * turn)], (x + 0.22, y + 0.02 - 0.3 * turn)
        line = smooth([*inner, (x + 0.10, y - 0.025), outer], 4) * (side, 1)
        width = self.unit * (0.022 + 0.032 * c.brow_weight)
        cv.stroke(self.view.face(line), (width * 0.8, width, width * 0.8, 0), mix(self.hair_line, self.hair, 0.25))

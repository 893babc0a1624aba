"""Portraits in the photo-like domain: natural proportions, soft light, skin, strands of hair, no outlines."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from anifast.data import _portrait_shapes as shapes
from anifast.data._portrait_canvas import Canvas, Mask, enlarge, grain, hls, mix, ribbon, vignette
from anifast.data._portrait_palette import PHOTO
from anifast.data._portrait_shapes import Color, Points, arcs, ellipse, flat, smooth

if TYPE_CHECKING:
    from anifast.data.portraits import Content, Style

_GRID = 48
_LEFT, _TOP, _SPAN = -1.2, -1.2, 2.4


@cache
def _grid() -> Points:
    return (np.arange(_GRID) + 0.5) / _GRID * _SPAN


class PhotoPortrait:
    """One photo-like portrait of `size` pixels."""

    def __init__(self, content: Content, style: Style, size: int) -> None:
        self.c, self.s, self.size = content, style, size
        self.side = side = size * 2
        self.view = shapes.View(content, side)
        self.unit = self.view.unit
        self.noise = shapes.Noise(content.detail)
        self.steps = 5 if side <= 256 else 9
        self.eye_y = 0.0
        self.eye_x = 0.325 + 0.018 * content.eye_spacing
        self.mouth_y, self.mouth_w = 0.675, 0.205 + 0.035 * max(0.0, content.smile)
        # how hard the light is
        self.hard = 0.65 + 0.7 * min(style.shade_depth, 1.0)
        self.skin = self.tone(PHOTO.skin[content.skin])
        self.hair = self.tone(PHOTO.hair[content.hair_color])
        self.cloth = self.tone(PHOTO.cloth[content.clothes_color])
        self.accent = self.tone(PHOTO.accent[shapes.accent(content)])

    def tone(self, color: Color) -> Color:
        """The colour as this photographer's camera gives it: the artist's palette, much weaker."""
        s = self.s
        grey = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
        out = []
        for part, warmth in zip(color, (14.0, 2.0, -14.0), strict=True):
            value = grey + (part - grey) * (1 + 0.4 * (s.saturation - 1)) + warmth * s.temperature * 0.7
            value = 120 + (value - 120) * (1 + 0.35 * (s.contrast - 1)) + 24 * s.lightness
            out.append(int(min(255.0, max(0.0, value))))
        return (out[0], out[1], out[2])

    def landmarks(self) -> dict[str, tuple[float, float]]:
        """Eyes and corners of the mouth, in parts of the side."""
        mouth = (self.mouth_w, self.mouth_y - 0.05 * self.c.smile)
        return self.view.landmarks((self.eye_x, self.eye_y), mouth)

    def picture(self) -> Image.Image:
        """Draw it, and add what lens and film do."""
        image = ImageChops.multiply(self.render().reduce(2), vignette(self.size))
        return grain(image, 1.8 + 1.6 * self.s.grain, self.noise)

    def render(self) -> Image.Image:
        """Draw everything on the large canvas, back to front."""
        front = shapes.FrontHair(self.c, self.noise, volume=-0.04, lift=0.10, wild=0.55)
        front_px = self.view.front_hair(arcs(front.outline, self.steps))
        outline = shapes.skull(0.69 + 0.025 * self.c.face_width, self.c.jaw, 0.04 * self.c.chin, 1.0, self.steps)
        face_px = self.view.head(outline)
        cv = Canvas(self.side, (128, 128, 128))
        self.background(cv)
        light = self.hair_light(front.volume)
        self.behind(cv, light, front.volume)
        self.body(cv, face_px)
        self.ears(cv)
        self.face(cv, face_px, front_px)
        self.nostrils(cv)
        self.mouth(cv)
        for side in (-1, 1):
            self.eye(cv, side)
            self.brow(cv, side)
        self.front(cv, light, front_px, front)
        self.accessory(cv, front_px, front.volume)
        return cv.image

    # --- helpers

    def soft(self, cv: Canvas, points: Points, color: Color, alpha: float = 1.0, blur: float = 0.015) -> None:
        """A polygon with a soft edge; `blur` in head units."""
        cv.soft(points, color, alpha, blur * self.unit)

    def shift(self, x: float, y: float) -> Points:
        """A shift in pixels; x > 0 goes towards the light."""
        return np.array([x * self.s.light, y]) * self.unit

    def mask(self, cv: Canvas, points: Points, blur: float) -> Mask | None:
        """A polygon as a mask, its edge softened by `blur` head units; None outside the picture."""
        return cv.mask(points, 1.0, blur * self.unit)

    def shadow(self, cv: Canvas, points: Points, clip: Mask | None, color: Color, alpha: float, blur: float) -> None:
        """A blurred shadow of a form, only where `clip` lets it."""
        if clip is None:
            return
        small = Image.new("L", (-(-self.side // 4),) * 2)
        ImageDraw.Draw(small).polygon((points / 4).ravel().tolist(), fill=int(255 * min(1.0, alpha * self.hard)))
        small = small.filter(ImageFilter.GaussianBlur(blur * self.unit / 4))
        veil = enlarge(small, self.side / 4, clip.box, self.side)
        cv.image.paste(color, clip.box, ImageChops.multiply(veil, clip.image))

    def dark(self, color: Color, t: float) -> Color:
        """The colour with `t` of its light, shadows turning warm."""
        return (int(color[0] * t**0.85), int(color[1] * t**1.05), int(color[2] * t**1.15))

    def upright(self, xy: Points, lift: Points | float = 0.0) -> Points:
        """Where points [N,2] of the face stand after turn and nod, before tilt."""
        out: Points = (shapes.on_head(xy, lift) - shapes.PIVOT) @ self.view.upright.T + shapes.PIVOT[:2]
        return out

    # --- parts

    def background(self, cv: Canvas) -> None:
        c, side = self.c, self.side
        light = 0.28 + 0.5 * c.background_light
        base = np.array(self.tone(hls(c.background_hue, light, 0.24)), float)
        noise = self.noise(8, 8, 1)
        field = base * (0.72 + 0.5 * noise)
        kind = self.s.backdrop
        if kind in ("gradient", "halo", "paper"):
            y, x = np.mgrid[0:8, 0:8] / 7.0
            glow = 0.5 - np.hypot(x - 0.5 - 0.3 * self.s.light, y - 0.4)
            field = base * (0.9 + 0.08 * noise + 0.35 * glow[..., None])
        elif kind in ("stripes", "panel", "split"):
            window = int(self.noise(1)[0] * 4) + (4 if self.s.light > 0 else 0)
            field[1:6, window] = np.minimum(255, base * 1.3 + 50)
            field[6:] *= 0.7
        cells = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
        cv.image.paste(cells.resize((side, side), Image.Resampling.BICUBIC))
        if kind in ("dots", "rays", "night"):
            lamp = mix(base.tolist(), (255, 250, 235), 0.5)
            for left, top, size, alpha in self.noise(9, 4).tolist():
                radius = 0.03 + 0.05 * size
                self.soft(cv, ellipse(left, top, radius, radius) * side, lamp, 0.15 + 0.3 * alpha, 0.02)

    def hair_light(self, volume: float) -> Image.Image:
        """Brightness of the hair as an L picture: strands along the flow, a band of light, form."""
        c = self.c
        axis = np.arange(0.5, self.side / 2, dtype=np.float32) * 2
        px = (axis - np.float32(self.view.centre[0])) / np.float32(self.unit)
        py = (axis - np.float32(self.view.centre[1])) / np.float32(self.unit)
        (a, b), (d, e) = self.view.roll.T.astype(np.float32)
        ox, oy = shapes.PIVOT[0], shapes.PIVOT[1]
        x = a * (px - ox)[None, :] + b * (py - oy)[:, None] + np.float32(ox)
        y = d * (px - ox)[None, :] + e * (py - oy)[:, None] + np.float32(oy)
        top = 1.06 + volume
        down = np.clip((y + top) / 1.15, 0.02, 1.0)
        wide = np.sqrt(down * (2 - down))
        root = np.float32(0.25 * c.parting + 0.4 * np.sin(np.radians(c.turn)))
        q = (x - root * (1 - wide)) / ((0.86 + volume) * wide)
        if c.hair_cut == "wavy":
            q += 0.05 * np.sin(y * 9) * np.clip((y + 0.4) * 2, 0, 1)
        white = self.noise(512)
        fine = white * 0.5 + np.roll(white, 1) * 0.5
        coarse = np.convolve(np.concatenate([white[-8:], white, white[:8]]), np.ones(9) / 9, "same")[8:-8]
        strands = (0.6 * (fine - 0.5) + 1.8 * (coarse - 0.5)).astype(np.float32)
        s = strands[(q * 110).astype(np.int32) & 511]
        light = np.float32(self.s.light)
        form = 0.5 + 0.10 * light * x - 0.12 * np.minimum(y, 0.4) - 0.22 * np.minimum(q * q, 1.2)
        ring = (y + 0.66 - 0.22 * x * x - 0.06 * light * x) / 0.13
        band = np.exp(-ring * ring) * (0.20 + 0.30 * s)
        low = (y - 0.75) / 0.28
        band += np.exp(-low * low) * (0.06 + 0.15 * s)
        level = np.clip((form + 0.26 * s + band) * 255, 0, 255).astype(np.uint8)
        return Image.fromarray(level).resize((self.side, self.side), Image.Resampling.BILINEAR)

    def hair_fill(self, cv: Canvas, light: Image.Image, gain: float, mask: Mask | None) -> None:
        """Fill a mask with hair: its colour under `light`, times `gain`."""
        if mask is None:
            return
        color = np.array(self.hair, float)
        dark, bright = color * (0.30, 0.24, 0.24), np.minimum(255.0, color * 1.18 + 46)
        t = np.minimum(np.arange(256) / 255.0 * gain, 1.0)[:, None]
        ramp = np.where(t < 0.5, dark + (color - dark) * 2 * t, color + (bright - color) * (2 * t - 1))
        part = light.crop(mask.box)
        picture = Image.frombuffer("P", part.size, part.tobytes(), "raw", "P", 0, 1)
        picture.putpalette(ramp.astype(np.uint8).tobytes())
        cv.image.paste(picture.convert("RGB"), mask.box, mask.image)

    def behind(self, cv: Canvas, light: Image.Image, volume: float) -> None:
        for form, depth, tie in shapes.tails(self.c):
            px = self.view.hair(flat(arcs(form, self.steps), depth))
            self.hair_fill(cv, light, 0.85, self.mask(cv, px, 0.02))
            if self.c.hair_cut != "bun":
                band = self.view.hair(flat(ellipse(tie[0], tie[1], 0.09, 0.12), depth))
                self.soft(cv, band, self.accent)
        px = self.view.hair(flat(arcs(shapes.hair_behind(self.c.hair_cut, volume), self.steps), -0.3))
        self.hair_fill(cv, light, 0.55, self.mask(cv, px, 0.02))

    def body(self, cv: Canvas, face_px: Points) -> None:
        view, outfit = self.view, shapes.clothes(self.c.clothes, 0.33)
        head = view.head(np.array([(-0.33, 0.5, -0.1), (0.33, 0.5, -0.1)]))
        right, left = view.body(outfit.slope), view.body(outfit.slope * (-1, 1))
        chest = view.body(np.array([(0.5, 1.36), (0.3, 2.0), (-0.3, 2.0), (-0.5, 1.36)]))
        neck = np.concatenate([head[1:], right[:9], chest, left[8::-1], head[:1]])
        clip = self.mask(cv, neck, 0.015)
        if clip:
            cv.image.paste(self.dark(self.skin, 0.86), clip.box, clip.image)
        self.shadow(cv, neck + self.shift(-0.35, 0.1), clip, self.dark(self.skin, 0.62), 0.55, 0.14)
        self.shadow(cv, face_px + self.shift(-0.05, 0.17), clip, self.dark(self.skin, 0.48), 0.85, 0.09)
        start = outfit.start
        shirt = np.concatenate([view.body(outfit.neckline), left[start:], right[start:][::-1]])
        clip = self.mask(cv, shirt, 0.012)
        x = np.linspace(-0.5, 0.5, 7)[None, :]
        level = np.clip(0.86 + 0.34 * (self.noise(7, 7) - 0.5) + 0.25 * x * self.s.light, 0.2, 1.25)[..., None]
        fabric = Image.fromarray(np.clip(np.array(self.cloth) * level, 0, 255).astype(np.uint8))
        if clip:
            cv.image.paste(enlarge(fabric, 7, clip.box, self.side), clip.box, clip.image)
        rim = view.body(outfit.neckline)
        cv.soft(ribbon(rim, (0, self.unit * 0.05, 0)), self.dark(self.cloth, 0.55), 0.6, self.unit * 0.015)
        trim = self.tone(PHOTO.trim[shapes.trim(self.c)])
        made_of = {"cloth": self.cloth, "dark": self.dark(self.cloth, 0.8), "trim": trim, "accent": self.accent}
        for points, role in outfit.parts:
            px = view.body(points)
            lit = 0.96 if points[:, 0].mean() * self.s.light > -0.05 else 0.80
            self.soft(cv, px + self.shift(0, 0.03), self.dark(self.cloth, 0.5), 0.5, 0.03)
            self.soft(cv, px, self.dark(made_of[role], lit), 1.0, 0.008)
        for line in outfit.seams:
            fold = ribbon(view.body(line), (0, self.unit * 0.04, self.unit * 0.04))
            self.soft(cv, fold, self.dark(self.cloth, 0.55), 0.5, 0.02)

    def ears(self, cv: Canvas) -> None:
        for side in (-1, 1):
            rim = [(0.64, -0.12), (0.74, -0.16), (0.81, -0.08), (0.79, 0.10), (0.73, 0.26), (0.64, 0.28)]
            t = 0.86 if side == self.s.light else 0.70
            self.soft(cv, self.view.head(flat(smooth(rim, 4, True) * (side, 1), -0.05)), self.dark(self.skin, t))
            hollow = self.view.head(flat(ellipse(side * 0.735, 0.02, 0.035, 0.12), -0.05))
            self.soft(cv, hollow, self.dark(self.skin, t * 0.7), 0.7, 0.03)
        if shapes.ears_bare(self.c):
            self.earrings(cv)

    def earrings(self, cv: Canvas) -> None:
        if self.c.accessory == "earrings":
            for points in shapes.earrings(self.c, 0.24):
                self.soft(cv, self.view.head(flat(points, 0.05)), self.tone((206, 166, 76)), 1.0, 0.008)
                gleam = self.view.head(flat(points - (0.01, 0.02), 0.05))
                self.soft(cv, gleam, (250, 236, 190), 0.35, 0.03)

    def face(self, cv: Canvas, face_px: Points, front_px: Points) -> None:
        clip = self.mask(cv, face_px, 0.012)
        if clip is None:
            return
        box = clip.box
        texture = self.skin_texture()
        # canvas pixel -> upright head coordinates -> cell of the texture
        r = self.view.roll.T / self.unit
        k = _GRID / _SPAN
        neck = shapes.PIVOT[:2]
        origin = r @ (np.array(box[:2], float) - self.view.centre - neck * self.unit) + neck - (_LEFT, _TOP)
        data = (r[0, 0] * k, r[0, 1] * k, origin[0] * k, r[1, 0] * k, r[1, 1] * k, origin[1] * k)
        size = (box[2] - box[0], box[3] - box[1])
        skin = texture.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        cv.image.paste(skin, box, clip.image)
        self.shadow(cv, front_px + self.shift(-0.04, 0.09), clip, self.dark(self.skin, 0.50), 0.75, 0.06)

    def skin_texture(self) -> Image.Image:
        """The lit skin of the head, without tilt, on a small grid."""
        c, s = self.c, self.s
        x, y = _grid() + _LEFT, _grid() + _TOP
        ((cx, cy),) = self.upright(np.array([(0.0, 0.05)]))
        nx, ny = (x - 0.5 * cx) / 0.86, (y - cy * 0.5) / 1.2
        nz = np.sqrt(np.maximum(0.0, 1 - nx[None, :] ** 2 - ny[:, None] ** 2))
        lambert = 0.46 * s.light * nx[None, :] - 0.34 * ny[:, None] + 0.78 * nz
        level = 1 + self.hard * (0.44 * np.maximum(lambert, 0.0) - 0.33)
        e = self.eye_y
        # light and dark places: x, y, reach in x and y, amount
        spots = []
        for side in (-1, 1):
            lit = 1.0 if side == s.light else 0.6
            spots += [
                (side * 0.32, e - 0.07, 0.19, 0.09, -0.13),
                (side * 0.14, e - 0.03, 0.06, 0.10, -0.12),
                (side * 0.32, e + 0.13, 0.16, 0.05, -0.06),
                (side * 0.43, 0.26, 0.17, 0.12, 0.10 * lit),
                (side * 0.115, 0.26, 0.045, 0.18, -0.09 * (1.5 - lit)),
                (side * 0.125, 0.415, 0.035, 0.05, -0.10),
                (side * 0.28, 0.54, 0.05, 0.12, -0.05 - 0.08 * max(0.0, c.smile)),
                (side * 0.27, 0.665 - 0.04 * c.smile, 0.04, 0.04, -0.12),
                (side * 0.66, 0.5, 0.14, 0.30, -0.10),
                (side * 0.68, -0.25, 0.10, 0.30, -0.10),
            ]
        spots += [
            (0.0, 0.16, 0.04, 0.24, 0.10), (0.015 * s.light, 0.385, 0.055, 0.05, 0.14),
            (0.0, 0.475, 0.11, 0.030, -0.20), (0.0, 0.56, 0.03, 0.04, -0.05),
            (0.0, 0.815, 0.13, 0.035, -0.13), (0.0, 0.93, 0.12, 0.06, 0.07), (0.12 * s.light, -0.50, 0.34, 0.18, 0.08),
        ]  # fmt: skip
        form = np.array(spots)
        nose = (np.abs(form[:, 0]) < 0.13) & (form[:, 1] > 0.1) & (form[:, 1] < 0.5)
        place = self.upright(form[:, :2], 0.12 * nose)
        bx = np.exp(-(((x[None, :] - place[:, :1]) / form[:, 2:3]) ** 2))
        by = np.exp(-(((y[None, :] - place[:, 1:]) / form[:, 3:4]) ** 2)) * form[:, 4:5] * self.hard
        level = level + by.T @ bx
        warm = 0.3 + 1.3 * c.blush
        rosy = np.array([(-0.43, 0.32, 0.17, 0.13, warm), (0.43, 0.32, 0.17, 0.13, warm), (0.0, 0.40, 0.08, 0.06, 0.5)])
        at = self.upright(rosy[:, :2])
        bx = np.exp(-(((x[None, :] - at[:, :1]) / rosy[:, 2:3]) ** 2))
        by = np.exp(-(((y[None, :] - at[:, 1:]) / rosy[:, 3:4]) ** 2)) * rosy[:, 4:5]
        red = (by.T @ bx) * (self.skin[1] / 190) ** 1.5
        level = np.clip(level, 0.2, 1.25)[..., None]
        # shadows on skin turn red
        rgb = np.array(self.skin, float) * level * (1 + np.array([0.15, -0.05, -0.15]) * (1 - level))
        rgb += red[..., None] * np.array([3.0, -15.0, -11.0])
        return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))

    def mouth(self, cv: Canvas) -> None:
        c, view = self.c, self.view
        y, w = self.mouth_y, self.mouth_w
        up = 0.05 * c.smile
        lip = mix(self.skin, (176, 62, 72), 0.42 + 0.15 * c.lashes)
        upper, lower = self.dark(lip, 0.80), self.dark(lip, 0.98)
        gap = 0.13 * c.mouth_open if c.mouth_open > 0.15 else 0.0
        seam = y + 0.006 - up * 0.2
        line = smooth([(-w, y - up), (-w * 0.5, seam), (0, y + 0.012 + up * 0.2), (w * 0.5, seam), (w, y - up)])
        half = [(w, y - up), (w * 0.55, y - 0.036 - up * 0.4), (w * 0.2, y - 0.062)]
        bow = smooth([*half, (0, y - 0.048), *((-a, b) for a, b in reversed(half))], 4)

        def below(part: float, side: float, depth: float) -> Points:
            """The lower edge of lip or mouth."""
            x, corner = w * part, y - up
            return smooth([(x, corner), (0.64 * x, y + side), (0, y + depth), (-0.64 * x, y + side), (-x, corner)])

        under = below(0.97, 0.055 + gap * 0.75, 0.088 + gap)
        self.soft(cv, view.face(np.concatenate([line, under])), lower, 0.92, 0.012)
        if gap:
            hole = view.face(np.concatenate([line, below(0.90, gap * 0.62, 0.016 + gap)]))
            self.soft(cv, hole, (66, 24, 26), 1.0, 0.008)
            if c.smile > 0.0:
                edge = line * (0.78, 1) + (0, 0.012 + gap * 0.62)
                teeth = np.concatenate([line * (0.86, 1) + (0, 0.004 - up * 0.1), edge[::-1]])
                with cv.clip(hole):
                    self.soft(cv, view.face(teeth), self.tone((226, 220, 212)), 0.95, 0.008)
        self.soft(cv, view.face(np.concatenate([line, bow])), upper, 0.92, 0.012)
        if not gap:
            widths = (0, self.unit * 0.014, self.unit * 0.02, self.unit * 0.014, 0)
            cv.stroke(view.face(line), widths, self.dark(lip, 0.42))
        gleam = view.face(ellipse(0.03 * self.s.light, y + 0.052 + gap, w * 0.34, 0.014))
        self.soft(cv, gleam, mix(lip, (255, 235, 230), 0.55), 0.6, 0.015)

    def nostrils(self, cv: Canvas) -> None:
        for side in (-1, 1):
            spot = self.view.face(ellipse(side * 0.062, 0.462, 0.034, 0.016), 0.08)
            self.soft(cv, spot, self.dark(self.skin, 0.34), 0.8, 0.012)

    def eye(self, cv: Canvas, side: int) -> None:
        c = self.c
        w, h = 0.170, 0.086
        slant = 0.22 * c.eye_slant
        openness = 0.0 if c.wink == side else c.eye_open

        def place(points: Points) -> Points:
            x, y = points[:, 0], points[:, 1]
            return self.view.face(np.stack([side * (self.eye_x + x * w), self.eye_y + (y - slant * x) * h], 1))

        lash = (38, 27, 24)
        u = self.unit
        top = np.array([(-1.0, 0.30), (-0.55, -0.55), (0.05, -0.95), (0.60, -0.70), (1.0, 0.05)])
        low = np.array([(0.60, 0.62), (0.0, 0.80), (-0.60, 0.62)])
        if openness < 0.15:
            lid = smooth([(-1.0, 0.30), (-0.5, 0.62), (0.05, 0.74), (0.6, 0.56), (1.05, 0.20)], 5)
            skin = mix(self.skin, self.dark(self.skin, 0.7), 0.4)
            self.soft(cv, place(np.concatenate([smooth(top, 4), lid[::-1]])), skin, 0.6, 0.02)
            cv.stroke(place(lid), (0, u * 0.022, u * 0.028, u * 0.024, 0), lash)
            return
        closing = (1 - openness) * 0.8
        top[:, 1] += (0.45 - top[:, 1]) * closing
        upper = smooth(top, 5)
        lower = smooth(np.concatenate([top[-1:], low, top[:1]]), 4)
        opening = place(np.concatenate([upper, lower[1:-1]]))
        iris = self.tone(PHOTO.iris[c.eye_color])
        gx, gy = 0.02 + 0.30 * c.gaze_x * side, -0.06 + 0.22 * c.gaze_y
        rx, ry = 0.080 / w, 0.080 / h

        def disc(r: float, dx: float = 0.0, dy: float = 0.0) -> Points:
            return place(ellipse(gx + dx * rx, gy + dy * ry, rx * r, ry * r, 20))

        with cv.clip(opening):
            cv.cover(self.tone((226, 220, 216)))
            self.soft(cv, place(ellipse(-1.0, 0.3, 0.28, 0.4, 12)), (196, 140, 130), 0.7, 0.02)
            cv.fill(disc(1.0), mix(iris, (18, 14, 16), 0.62))
            cv.fill(disc(0.84), iris)
            cv.fill(disc(0.50, 0.0, 0.32), mix(iris, (255, 240, 210), 0.22))
            cv.fill(disc(0.44), (16, 12, 14))
            shade = np.concatenate([upper + (0, 0.34), upper[::-1] - (0, 0.6)])
            self.soft(cv, place(shade), (40, 26, 28), 0.55, 0.012)
            cv.fill(disc(0.20, 0.30 * self.s.light * side, -0.34), (250, 250, 250))
        heavy = 0.7 + 0.6 * c.lashes
        lid = np.concatenate([upper - (0, 0.06), [upper[-1] + (0.10 + 0.08 * c.lashes, -0.06 - 0.14 * c.lashes)]])
        cv.stroke(place(lid), (u * 0.008, u * 0.022 * heavy, u * 0.030 * heavy, u * 0.028 * heavy, 0), lash)
        below = smooth(np.concatenate([low[::-1], top[-1:]]) + (0.0, 0.06), 4)
        cv.stroke(place(below), (0, u * 0.010, u * 0.014, 0), self.dark(self.skin, 0.45))
        crease = ribbon(place(smooth(top * (1.02, 0.9) - (-0.02, 0.62), 4)), (0, u * 0.020, u * 0.022, 0))
        self.soft(cv, crease, self.dark(self.skin, 0.48), 0.7, 0.01)

    def brow(self, cv: Canvas, side: int) -> None:
        c = self.c
        y = self.eye_y - 0.225 - 0.05 * c.brow_raise
        turn, x = 0.06 * c.brow_angle, self.eye_x
        inner = [(x - 0.19, y + 0.02 + turn), (x - 0.04, y - 0.02 + 0.4 * turn)]
        line = smooth([*inner, (x + 0.09, y - 0.03), (x + 0.22, y + 0.025 - 0.3 * turn)], 4) * (side, 1)
        width = self.unit * (0.040 + 0.035 * c.brow_weight)
        color = mix(self.dark(self.hair, 0.6), (60, 46, 38), 0.35)
        self.soft(cv, ribbon(self.view.face(line), (width * 0.8, width, width * 0.75, width * 0.2)), color, 0.8, 0.015)

    def front(self, cv: Canvas, light: Image.Image, px: Points, front: shapes.FrontHair) -> None:
        c = self.c
        self.glasses(cv)
        if c.hair_cut == "buzz":
            self.hair_fill(cv, light, 0.9, cv.mask(px, 0.88, 0.035 * self.unit))
        else:
            self.hair_fill(cv, light, 1.0, self.mask(cv, px, 0.015))
            self.loose_hairs(cv, px)
        if c.ahoge:
            tuft = self.view.head(flat(shapes.ahoge(front.volume), 0.1))
            self.soft(cv, ribbon(tuft, (self.unit * 0.07, self.unit * 0.05, 0)), self.hair, 0.95, 0.01)

    def loose_hairs(self, cv: Canvas, px: Points) -> None:
        """Single hairs that leave the outline `px` at the sides."""
        rows = self.noise(min(30, int(self.unit * 0.5)), 3)
        start = px[(rows[:, 0] * len(px)).astype(int)]
        out = (start - self.view.head(np.array([(0.0, -0.2, 0.0)]))) / self.unit
        way = np.stack([0.25 * out[:, 0], 0.35 + 0.2 * np.abs(out[:, 0])], 1) * (0.10 + 0.16 * rows[:, 1:2]) * self.unit
        aside = np.stack([-way[:, 1], way[:, 0]], 1) * (rows[:, 2:] - 0.5) * 0.6
        hairs = np.stack([start - way * 0.8, start, start + way * 0.6 + aside * 0.4, start + way + aside], 1)
        beside = (out[:, 1] > -0.2) & (np.abs(out[:, 0]) > 0.6)
        for hair, tone in zip(hairs[beside], rows[beside, 1].tolist(), strict=True):
            cv.line(hair, self.dark(self.hair, 0.7 + 0.3 * tone), self.unit * 0.006)

    def glasses(self, cv: Canvas) -> None:
        c, u = self.c, self.unit
        if c.glasses == "none":
            return
        frames, others = shapes.glasses(c.glasses, self.eye_x, self.eye_y + 0.03, 0.255)
        color = mix(self.accent, (34, 30, 32), 0.7)
        for points in frames:
            px = self.view.face(points, 0.08)
            closed = np.concatenate([px, px[:2]])
            self.soft(cv, ribbon(closed + (0.0, 0.035 * u), (u * 0.03,) * 2), self.dark(self.skin, 0.5), 0.45, 0.02)
            glint = points * (0.5, 0.12) + points.mean(0) * (0.5, 0.88) + (0.05 * self.s.light, -0.13)
            self.soft(cv, self.view.face(glint, 0.08), (255, 255, 255), 0.22, 0.02)
            cv.stroke(closed, (u * 0.026,) * 2, color)
        for points in others:
            cv.stroke(self.view.face(points, 0.08), (u * 0.026,) * 2, color)

    def accessory(self, cv: Canvas, front_px: Points, volume: float) -> None:
        made_of = {"accent": self.accent, "dark": self.dark(self.accent, 0.7), "pale": self.tone((232, 206, 212))}
        if not shapes.ears_bare(self.c):
            self.earrings(cv)
        for points, depth, role in shapes.worn(self.c, volume):
            px = self.view.face(points, 0.03) if depth is None else self.view.head(flat(points, depth))
            if self.c.accessory == "headband":
                with cv.clip(front_px):
                    self.soft(cv, px + self.shift(0, 0.03), (20, 16, 18), 0.4, 0.03)
                    self.soft(cv, px, made_of[role], 1.0, 0.01)
                continue
            self.soft(cv, px + self.shift(0, 0.03), (20, 16, 18), 0.45, 0.03)
            self.soft(cv, px, made_of[role], 1.0, 0.008)
            gleam = 0.55 * px + 0.45 * px.mean(0) + self.shift(0.02, -0.02)
            self.soft(cv, gleam, mix(made_of[role], (255, 255, 255), 0.4), 0.4, 0.03)

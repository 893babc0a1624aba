"""The forms both domains of the portraits share: curves, the posed head, hair outlines, proportions.

Everything is designed on a frontal head: x to the right, y down, z towards the viewer,
the origin between the temples and
the unit about half the height of a head (crown -1, chin +1). `View` turns these points into pixels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from anifast.data.portraits import Content

Points = npt.NDArray[np.float64]
Color = tuple[int, int, int]

# The head of scale 1 in units of the picture's side, and where its origin stands.
UNIT = 0.315
CENTRE = (0.5, 0.435)
# The head turns about the top of the neck.
PIVOT = np.array([0.0, 0.85, -0.2])


class Noise:
    """A small deterministic stream of uniforms (splitmix64), the same on every platform and numpy version."""

    def __init__(self, seed: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64

    def __call__(self, *shape: int) -> Points:
        """Return float64 uniforms in [0, 1) of the given shape."""
        count = math.prod(shape)
        step = 0x9E3779B97F4A7C15
        z = np.uint64(self._state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(step)
        self._state = (self._state + count * step) % 2**64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


# --- curves ---------------------------------------------------------------------------------------------------------


@cache
def _spline(count: int, steps: int, closed: bool) -> Points:
    rows = []
    for i in range(count if closed else count - 1):
        for j in range(steps):
            t = j / steps
            weights = (
                0.5 * (-t + 2 * t * t - t**3),
                0.5 * (2 - 5 * t * t + 3 * t**3),
                0.5 * (t + 4 * t * t - 3 * t**3),
                0.5 * (-t * t + t**3),
            )
            row = np.zeros(count)
            for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
                row[(i + offset) % count if closed else min(max(i + offset, 0), count - 1)] += weight
            rows.append(row)
    if not closed:
        rows.append(np.eye(count)[-1])
    return np.array(rows)


def smooth(points: npt.ArrayLike, steps: int = 5, closed: bool = False) -> Points:
    """Catmull-Rom curve through `points` [N,D]."""
    knots = np.asarray(points, dtype=np.float64)
    return _spline(len(knots), steps, closed) @ knots


@cache
def _quadratic(steps: int) -> tuple[Points, Points, Points]:
    t = (np.arange(steps) / steps)[:, None, None]
    return (1 - t) ** 2, 2 * t * (1 - t), t * t


def path(*rows: tuple[float, float, float]) -> Points:
    """A path [N,3]: rows of x, y and the bulge of the segment that ends there (the first row's bulge is unused)."""
    return np.array(rows, dtype=np.float64)


def arcs(rows: Points, steps: int = 5) -> Points:
    """Sample a path's bulging segments: [N,3] -> [M,2]. Positive bulges bend to the right of the way on screen."""
    start, end, bulge = rows[:-1, :2], rows[1:, :2], rows[1:, 2:3]
    way = end - start
    control = (start + end) / 2 + bulge * np.stack([-way[:, 1], way[:, 0]], 1)
    a, b, c = _quadratic(steps)
    points = (a * start + b * control + c * end).transpose(1, 0, 2).reshape(-1, 2)
    return np.concatenate([points, rows[-1:, :2]])


def mirror(rows: Points) -> Points:
    """The path on the other side of the face."""
    return rows * np.array([-1.0, 1.0, -1.0])


def back(rows: Points) -> Points:
    """The path walked backwards."""
    out = rows[::-1].copy()
    out[1:, 2] = -rows[1:, 2][::-1]
    return out


def both_sides(right: Points) -> Points:
    """The closed path whose right half is given from the top down."""
    return np.concatenate([right, back(mirror(right))])


@cache
def _circle(count: int, start: float, stop: float) -> Points:
    angle = np.radians(np.linspace(start, stop, count, endpoint=stop - start < 360))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(x: float, y: float, rx: float, ry: float, count: int = 20, start: float = 0, stop: float = 360) -> Points:
    """Points [count,2] on an ellipse; degrees run clockwise on screen from the right."""
    return _circle(count, start, stop) * (rx, ry) + (x, y)


# --- the posed head --------------------------------------------------------------------------------------------------


def flat(xy: Points, z: float) -> Points:
    """Put points [N,2] at one depth: [N,3]."""
    return np.concatenate([xy, np.full((len(xy), 1), z)], 1)


def on_head(xy: Points, lift: Points | float = 0.0) -> Points:
    """Lay points [N,2] on the front of the head, `lift` above its surface: [N,3]."""
    out = np.empty((len(xy), 3))
    out[:, :2] = xy
    x, y = xy[:, 0] / 0.92, (xy[:, 1] - 0.1) / 1.4
    out[:, 2] = 0.54 * np.sqrt(np.maximum(1 - x * x - y * y, 0.0)) + lift
    return out


class View:
    """The pose: turns head coordinates into pixels of a canvas of side `side`."""

    def __init__(self, content: Content, side: int) -> None:
        turn, nod, tilt = (math.radians(v) for v in (content.turn, content.nod, content.tilt))
        yaw = np.array([[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]])
        pitch = np.array([[1, 0, 0], [0, math.cos(nod), math.sin(nod)], [0, -math.sin(nod), math.cos(nod)]])
        roll = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
        self.side = side
        self.upright = (pitch @ yaw)[:2]
        self.roll = roll
        self.unit = UNIT * content.scale * side
        self.centre = np.array([CENTRE[0] + content.offset_x, CENTRE[1] + content.offset_y]) * side
        self._matrix = (roll @ self.upright).T * self.unit
        self._origin = PIVOT[:2] * self.unit + self.centre - PIVOT @ self._matrix

    def head(self, points: Points) -> Points:
        """Points of the head [N,3] -> pixels [N,2]."""
        out: Points = points @ self._matrix + self._origin
        return out

    def body(self, points: Points) -> Points:
        """Points of neck and shoulders [N,2] -> pixels; they do not follow the head."""
        return points * self.unit + self.centre

    def front_hair(self, xy: Points) -> Points:
        """Points of the front hair [N,2] -> pixels: on the head, but closer to the cheeks than to the nose."""
        points = on_head(xy)
        points[:, 2] *= np.clip((0.85 - np.abs(xy[:, 0])) / 0.45, 0.2, 1.0)
        return self.hair(points)

    def hair(self, points: Points) -> Points:
        """Points of hair [N,3] -> pixels: it follows the head at the top and hangs down below."""
        loose = np.clip((points[:, 1:2] - 0.5) / 0.9, 0.0, 1.0)
        loose = loose * loose * (3 - 2 * loose) * 0.8
        return self.head(points) * (1 - loose) + self.body(points[:, :2]) * loose

    def face(self, xy: Points, lift: float = 0.0) -> Points:
        """Points on the face [N,2] -> pixels."""
        return self.head(on_head(xy, lift))

    def landmarks(self, eye: tuple[float, float], mouth: tuple[float, float]) -> dict[str, tuple[float, float]]:
        """Both eyes and corners of the mouth, given on the right half of the face, in parts of the picture's side."""
        xy = self.face(np.array([(-eye[0], eye[1]), eye, (-mouth[0], mouth[1]), mouth])) / self.side
        names = ("eye_left", "eye_right", "mouth_left", "mouth_right")
        return {name: (round(x, 4), round(y, 4)) for name, (x, y) in zip(names, xy.tolist(), strict=True)}


# --- hair ------------------------------------------------------------------------------------------------------------

# Cuts and the fringes that go with them.
HAIR_CUTS: dict[str, tuple[str, ...]] = {
    "bob": ("blunt", "locks", "swept", "parted"),
    "long": ("blunt", "locks", "swept", "parted"),
    "wavy": ("locks", "swept", "parted"),
    "short": ("locks", "swept", "crop"),
    "spiky": ("locks", "swept"),
    "ponytail": ("locks", "swept", "parted", "none"),
    "twintails": ("blunt", "locks", "parted"),
    "bun": ("none", "swept", "blunt"),
    "buzz": ("none",),
}


def cap(volume: float, stop: float) -> Points:
    """The right half of the outline of hair of that volume over the skull, from the crown to `stop` degrees: a path."""
    xy = ellipse(0, -0.18, 0.80 + volume, 0.88 + 0.8 * volume, 7, -90, stop)
    return np.concatenate([xy, np.full((7, 1), -math.tan(math.radians(90 + stop) / 24))], 1)


# Front hair of the right half: volume, the angle where it leaves the cap, the outer edge down to the tip of the side
# lock and the inner edge up to the corner of the hairline.
_SIDES: dict[str, tuple[float, float, Points, Points]] = {
    "bob": (
        0.18, 6,
        path((1.04, 0.30, -0.05), (1.00, 0.66, -0.06), (0.66, 0.93, -0.10)),
        path((0.74, 0.66, 0.10), (0.60, 0.74, 0.02), (0.65, 0.30, -0.05), (0.62, -0.08, -0.03)),
    ),
    "long": (
        0.17, 6,
        path((1.02, 0.45, -0.04), (1.05, 1.0, -0.02), (0.86, 1.68, -0.07)),
        path((0.80, 1.15, -0.04), (0.66, 1.36, 0.02), (0.68, 0.5, -0.05), (0.63, -0.08, -0.03)),
    ),
    "wavy": (
        0.22, 4,
        path(
            (1.10, 0.24, -0.10), (1.04, 0.52, 0.12), (1.14, 0.88, -0.18), (1.03, 1.16, 0.12), (1.06, 1.40, -0.18),
            (0.82, 1.66, -0.14),
        ),
        path((0.90, 1.30, 0.12), (0.76, 1.02, -0.16), (0.82, 0.70, 0.16), (0.68, 0.40, -0.12), (0.63, -0.08, -0.04)),
    ),
    "short": (
        0.15, 2,
        path((0.98, 0.14, -0.05), (0.88, 0.30, -0.03), (0.76, 0.50, -0.08)),
        path((0.73, 0.20, 0.08), (0.66, 0.34, 0.02), (0.64, -0.10, -0.04)),
    ),
    "spiky": (
        0.10, 2,
        path((1.10, 0.20, 0.10), (0.89, 0.20, 0.05), (0.96, 0.48, 0.10), (0.80, 0.34, 0.05), (0.74, 0.60, -0.05)),
        path((0.72, 0.20, 0.06), (0.65, 0.34, 0.02), (0.64, -0.10, -0.03)),
    ),
    "ponytail": (
        0.11, -2,
        path((0.89, 0.16, -0.05), (0.86, 0.40, -0.03), (0.68, 0.82, -0.10)),
        path((0.72, 0.40, 0.04), (0.68, 0.10, -0.04), (0.65, -0.12, -0.03)),
    ),
    "twintails": (
        0.13, -2,
        path((0.90, 0.20, -0.05), (0.88, 0.55, -0.03), (0.68, 1.02, -0.08)),
        path((0.73, 0.50, 0.03), (0.69, 0.15, -0.04), (0.65, -0.12, -0.03)),
    ),
    "bun": (
        0.09, -2,
        path((0.86, 0.10, -0.05), (0.82, 0.30, -0.03), (0.70, 0.58, -0.10)),
        path((0.72, 0.22, 0.04), (0.68, 0.05, -0.04), (0.65, -0.15, -0.03)),
    ),
    "buzz": (0.07, 0, path((0.82, -0.02, -0.04), (0.73, 0.18, 0.0)), path((0.69, -0.06, 0.05), (0.66, -0.24, 0.0))),
}  # fmt: skip


def fringe(kind: str, parting: float, noise: Noise, x: float, y: float) -> Points:
    """Path along the lower edge of the fringe, from the hairline's right corner (x, y) (left out) to its left one."""
    end = (-x, y, 0.03)
    if kind == "blunt":
        rows = []
        jitter = (noise(9) - 0.5) * 0.03
        xs = np.linspace(x - 0.04, -x + 0.04, 9)
        for i, at in enumerate(xs):
            low = -0.04 - 0.06 * (at / x) ** 2 + jitter[i]
            rows.append((at, low, 0.10))
            if i < 8:
                rows.append((at - 0.05, low - 0.09, 0.02))
        return path(*rows, end)
    if kind == "parted":
        middle = 0.16 * parting
        half = path(
            (0.61, 0.24, 0.04), (0.57, -0.04, 0.06), (0.50, 0.10, -0.06), (0.42, -0.22, 0.10), (0.34, -0.06, -0.06),
            (0.20, -0.46, 0.08), (0.0, -0.82, 0.06),
        )  # fmt: skip
        left = back(mirror(half))
        half[-1, 0] = left[0, 0] = middle
        return np.concatenate([half, left[1:], path(end)])
    if kind == "none":
        half = path((0.61, -0.26, 0.02), (0.52, -0.53, 0.08), (0.0, -0.70, 0.10))
        return np.concatenate([half, back(mirror(half))[1:], path(end)])
    if kind == "crop":
        rows = []
        jitter = noise(8) * 0.10
        for i, at in enumerate(np.linspace(0.54, -0.50, 8)):
            rows.append((at - 0.05, -0.26 - 0.16 * (at / 0.6) ** 2 - jitter[i], -0.14))
            if i < 7:
                rows.append((at - 0.06, -0.44 - 0.5 * jitter[i], 0.10))
        return path(*rows, end)
    if kind == "swept":
        edge = path(
            (0.61, 0.22, 0.03), (0.54, -0.10, 0.08), (0.47, 0.06, -0.06), (0.40, -0.34, 0.10), (0.32, -0.76, 0.06),
            (0.12, -0.08, 0.20), (0.05, -0.24, -0.04), (-0.17, 0.02, 0.14), (-0.22, -0.14, -0.04), (-0.38, 0.10, 0.12),
            (-0.44, -0.06, -0.04), (-0.58, 0.24, 0.10),
        )  # fmt: skip
        edge = back(mirror(edge)) if parting < 0 else edge
        return np.concatenate([edge, path(end)])
    tips = np.array([(0.57, 0.20), (0.36, 0.02), (0.11, 0.15), (-0.15, 0.0), (-0.37, 0.12), (-0.57, 0.20)])
    notches = np.array([(0.48, -0.20), (0.25, -0.38), (-0.01, -0.44), (-0.26, -0.36), (-0.47, -0.22)])
    tips[1:-1] += (noise(4, 2) - 0.5) * (0.08, 0.14)
    notches += (noise(5, 2) - 0.5) * (0.05, 0.10)
    lean = 0.06 if parting >= 0 else -0.06
    rows = []
    for i in range(6):
        flow = 1 if tips[i, 0] < lean * 4 else -1
        rows.append((tips[i, 0] - lean, tips[i, 1], 0.13 * flow))
        if i < 5:
            rows.append((notches[i, 0], notches[i, 1], -0.09 * flow))
    return path(*rows, end)


def _spikes(volume: float, noise: Noise, wild: float) -> Points:
    jitter = noise(4, 2)
    rows = [(0.06, -1.02 - volume, 0.0)]
    for angle, (length, lean) in zip((-70, -45, -22, -4), jitter, strict=True):
        reach = (0.24 + 0.16 * length) * wild
        tip = ellipse(0, -0.18, 0.80 + volume + reach, 0.86 + volume + reach, 1, angle - 16 + 10 * lean, 0)[0]
        low = ellipse(0, -0.18, 0.78 + volume, 0.84 + volume, 1, angle + 10, 90)[0]
        rows += [(tip[0], tip[1], -0.16), (low[0], low[1], 0.14)]
    return path(*rows)


class FrontHair:
    """Cap, side locks and fringe as one closed path.

    Attributes:
        outline: closed path [N,3].
        edge: the fringe's lower edge, a path from right to left.
        volume: how far the hair stands off the skull.
    """

    def __init__(
        self, content: Content, noise: Noise, *, volume: float = 0.0, lift: float = 0.0, wild: float = 1.0
    ) -> None:
        base, leave, outer, inner = _SIDES[content.hair_cut]
        self.volume = base + volume
        spiky = content.hair_cut == "spiky"
        halves = [
            np.concatenate([_spikes(self.volume, noise, wild) if spiky else cap(self.volume, leave), outer])
            for _ in range(2)
        ]
        self.edge = fringe(content.bangs, content.parting, noise, inner[-1, 0], inner[-1, 1])
        # the whole fringe moves up with the eyes, its root at the crown stays
        self.edge[:, 1] -= lift * np.clip((self.edge[:, 1] + 0.8) / 0.5, 0.0, 1.0)
        tip = np.concatenate([outer[-1:], inner])
        self.outline = np.concatenate([back(mirror(halves[0])), halves[1][1:], inner, self.edge, back(mirror(tip))[1:]])


# Hair behind neck and shoulders, right half, below the cap.
_BEHIND: dict[str, Points] = {
    "bob": path(
        (1.06, 0.42, -0.05), (1.04, 0.82, -0.05), (0.78, 1.08, -0.12), (0.70, 0.98, 0.0), (0.50, 1.12, -0.08),
        (0.40, 1.02, 0.0), (0.1, 1.08, 0)
    ),
    "long": path(
        (1.05, 0.6, -0.03), (1.15, 1.3, -0.02), (1.06, 2.2, -0.03), (0.8, 2.0, 0.05), (0.6, 2.2, -0.05), (0.1, 2.2, 0)
    ),
    "wavy": path(
        (1.20, 0.34, -0.10), (1.13, 0.66, 0.12), (1.28, 1.06, -0.18), (1.18, 1.40, 0.12), (1.28, 1.9, -0.12),
        (0.7, 2.1, -0.05), (0.1, 2.1, 0)
    ),
    "short": path(
        (0.99, 0.20, -0.04), (0.94, 0.44, -0.04), (1.00, 0.66, 0.08), (0.84, 0.60, 0.04), (0.84, 0.86, 0.06),
        (0.66, 0.76, 0.04), (0.58, 1.0, 0.02),
        (0.46, 0.84, 0.02), (0.34, 1.0, 0.0), (0.1, 0.9, 0),
    ),
    "spiky": path(
        (0.99, 0.20, -0.04), (0.92, 0.44, -0.04), (1.04, 0.62, 0.08), (0.84, 0.58, 0.04), (0.86, 0.86, 0.06),
        (0.66, 0.74, 0.04), (0.58, 0.98, 0.02), (0.1, 0.8, 0)
    ),
    "ponytail": path((0.74, 0.42, -0.10), (0.1, 0.60, 0)),
    "twintails": path((0.74, 0.42, -0.10), (0.1, 0.60, 0)),
    "bun": path((0.72, 0.42, -0.10), (0.1, 0.60, 0)),
    "buzz": path((0.66, 0.40, -0.10), (0.1, 0.55, 0)),
}  # fmt: skip


def hair_behind(cut: str, volume: float) -> Points:
    """Closed path of the hair behind the head."""
    return both_sides(np.concatenate([cap(volume - 0.05, 0), _BEHIND[cut]]))


_PONYTAIL = path(
    (0.34, -0.98, 0), (0.66, -1.24, -0.14), (1.18, -0.98, -0.22), (1.36, -0.20, -0.16), (1.20, 0.86, -0.10),
    (1.14, 0.46, 0.06), (0.98, 0.70, 0.0),
    (1.00, 0.10, -0.10), (0.92, -0.42, 0.04), (0.56, -0.72, 0.10),
)  # fmt: skip
_TWINTAIL = path(
    (0.72, -0.78, 0), (1.12, -0.90, -0.20), (1.44, -0.20, -0.16), (1.44, 0.70, -0.06), (1.20, 1.60, -0.10),
    (1.16, 1.20, 0.05), (1.00, 1.42, 0.0),
    (0.98, 0.60, -0.06), (1.00, 0.0, 0.02), (0.76, -0.52, 0.12),
)  # fmt: skip


def tails(content: Content) -> list[tuple[Points, float, tuple[float, float]]]:
    """Tied hair behind the head: closed path, depth, and where it is tied."""
    if content.hair_cut == "ponytail":
        side = 1.0 if content.parting >= 0 else -1.0
        return [(_PONYTAIL if side > 0 else mirror(_PONYTAIL), -0.5, (side * 0.50, -0.90))]
    if content.hair_cut == "twintails":
        return [(_TWINTAIL, -0.25, (0.80, -0.68)), (mirror(_TWINTAIL), -0.25, (-0.80, -0.68))]
    if content.hair_cut == "bun":
        return [(path(*((p[0], p[1], 0.0) for p in ellipse(0.0, -1.02, 0.31, 0.28, 20))), -0.3, (0.0, -0.90))]
    return []


def ahoge(volume: float) -> Points:
    """The lock that stands up on the crown: its middle line [N,2] from the root."""
    top = -0.98 - volume
    return arcs(path((0.0, top, 0.0), (0.10, top - 0.26, 0.25), (-0.15, top - 0.22, 0.4)), 6)


def meridian(at: float, volume: float, start: float, stop: float, count: int = 5) -> Points:
    """A strand [count,2] over the cap: `at` in [-1, 1] across the head, from `start` to `stop` (0 crown, 1 ears)."""
    t = np.linspace(start, stop, count) * (math.pi / 2)
    x = at * (0.80 + volume) * np.sin(t)
    y = -0.18 + 0.10 * np.sin(t) - (0.86 + 0.8 * volume) * np.cos(t)
    return np.stack([x, y], 1)


def skull(width: float, jaw: float, chin: float, natural: float, steps: int) -> Points:
    """The face's outline [N,3]: `natural` 0 is the drawn head, 1 a real one."""
    drawn = [
        (0.0, -1.0), (0.45, -0.90), (0.69, -0.52), (width, 0.0), (width * 0.985, 0.27),
        (width * (0.86 + 0.04 * jaw), 0.56),
        (width * (0.54 + 0.09 * jaw), 0.83), (0.16 + 0.06 * jaw, 0.97), (0.0, 1.0),
    ]  # fmt: skip
    real = [
        (0.0, -1.0), (0.44, -0.91), (0.66, -0.55), (width, -0.05), (width * 0.98, 0.25),
        (width * (0.88 + 0.05 * jaw), 0.55),
        (width * (0.62 + 0.10 * jaw), 0.85), (0.20 + 0.07 * jaw, 1.03), (0.0, 1.06),
    ]  # fmt: skip
    half = np.array(drawn) * (1 - natural) + np.array(real) * natural
    half[5:, 1] += chin * np.array([0.15, 0.6, 1.0, 1.0])
    half3 = np.concatenate([half, np.array([0.0, 0, 0, 0.04, 0.10, 0.20, 0.34, 0.45, 0.47])[:, None]], 1)
    return smooth(np.concatenate([half3, half3[-2:0:-1] * (-1.0, 1.0, 1.0)]), steps, closed=True)


# --- clothes and things worn ------------------------------------------------------------------------------------------

CLOTHES = ("tee", "shirt", "sailor", "hoodie", "turtleneck")


class Clothes:
    """What is worn, on the body's coordinates, for a neck `neck` wide.

    Attributes:
        slope: right edge of neck and shoulder, from the top down.
        start: the sample of `slope` where the cloth begins.
        neckline: its upper edge, right to left.
        parts: polygons on top of it with what they are made of: "cloth", "dark" cloth, "trim" or "accent".
        seams: lines on top of it.
    """

    def __init__(self, kind: str, neck: float) -> None:
        n = neck - 0.26
        nape = [(neck, 0.95), (neck + 0.01, 1.12), (neck + 0.12, 1.25)]
        self.slope = smooth([*nape, (0.74 + n, 1.37), (1.12 + n, 1.52), (1.32 + n, 1.85), (1.42 + n, 2.6)])
        self.start = 8 if kind in ("tee", "sailor") else 5
        sleeve = smooth([(1.00 + n, 1.56), (0.92 + n, 1.85), (0.94 + n, 2.2)])
        self.parts: list[tuple[Points, str]] = []
        self.seams = [sleeve, sleeve * (-1, 1)]

        def part(role: str, *points: tuple[float, float]) -> None:
            self.parts.extend((np.array(points) * (side, 1), role) for side in (-1, 1))

        if kind == "tee":
            rows = path((0.46 + n, 1.28, 0), (0.0, 1.58, -0.24), (-0.46 - n, 1.28, -0.24))
            band = arcs(rows, 8)
            self.parts.append((np.concatenate([band, (band * (1.14, 1) + (0, 0.065))[::-1]]), "dark"))
        elif kind == "shirt":
            rows = path((0.30 + n, 1.18, 0), (0.0, 1.56, 0.0), (-0.30 - n, 1.18, 0.0))
            self.seams.append(np.array([(0.0, 1.5), (0.0, 2.4)]))
            part("trim", (0.27 + n, 1.08), (0.40 + n, 1.25), (0.24 + n, 1.60), (0.0, 1.44))
            tie = ((-0.07, 1.45), (0.07, 1.45), (0.05, 1.57), (0.12, 2.0), (0.0, 2.1), (-0.12, 2.0), (-0.05, 1.57))
            self.parts.append((np.array(tie), "accent"))
        elif kind == "sailor":
            rows = path((0.44 + n, 1.29, 0), (0.0, 1.74, -0.04), (-0.44 - n, 1.29, -0.04))
            part("trim", (0.40 + n, 1.25), (0.74 + n, 1.36), (0.82 + n, 1.60), (0.0, 1.92), (0.0, 1.74))
            stripe = (
                (0.70 + n, 1.42),
                (0.735 + n, 1.55),
                (0.05, 1.82),
                (0.05, 1.85),
                (0.765 + n, 1.57),
                (0.73 + n, 1.42),
            )
            part("cloth", *stripe)
            part("accent", (0.0, 1.76), (0.28, 1.86), (0.22, 2.10), (0.0, 1.92))
        elif kind == "hoodie":
            rows = path((0.38 + n, 1.22, 0), (0.0, 1.50, -0.16), (-0.38 - n, 1.22, -0.16))
            hood = (
                (0.32 + n, 1.12),
                (0.62 + n, 1.22),
                (0.64 + n, 1.42),
                (0.34, 1.60),
                (0.0, 1.70),
                (0.0, 1.50),
                (0.24, 1.40),
            )
            part("dark", *hood)
            part("trim", (0.11, 1.62), (0.14, 1.62), (0.17, 1.90), (0.14, 1.90))
        else:
            rows = path((0.28 + n, 1.04, 0), (0.0, 1.10, -0.10), (-0.28 - n, 1.04, -0.10))
            side = smooth([(0.28 + n, 1.04), (0.31 + n, 1.15), (0.36 + n, 1.26)], 4)
            fold = arcs(path((0.36 + n, 1.26, 0), (-0.36 - n, 1.26, -0.12)), 8)
            self.parts.append((np.concatenate([arcs(rows, 8)[::-1], side, fold, (side * (-1, 1))[::-1]]), "cloth"))
        self.neckline = arcs(rows, 8)


@cache
def clothes(kind: str, neck: float) -> Clothes:
    """The clothes of that kind."""
    return Clothes(kind, neck)


def accent(content: Content) -> str:
    """The family of the colour of ribbons, clips and ties, against the hair: "warm" or "cool"."""
    return "cool" if content.hair_color in ("red", "pink", "orange", "brown", "blonde") else "warm"


def trim(content: Content) -> str:
    """What collars are made of: "dark", "pale" or "white" cloth."""
    if content.clothes == "sailor" and content.clothes_color in ("white", "pink", "yellow", "grey"):
        return "dark"
    return "pale" if content.clothes_color == "white" else "white"


def glasses(kind: str, x: float, y: float, size: float) -> tuple[list[Points], list[Points]]:
    """Spectacles around eyes at (+-x, y): two closed frames; the lines of bridge and arms; all [N,2] on the face."""
    if kind == "round":
        lens = ellipse(0, 0, 1.0, 0.92, 24)
    else:
        top = [(-1.0, -0.62), (0.0, -0.72), (1.0, -0.66), (1.08, -0.2)]
        lens = smooth([*top, (0.92, 0.62), (0.0, 0.74), (-0.92, 0.62), (-1.04, -0.2)], 4, True)
    frames = [lens * (side * size, size) + (side * x, y) for side in (-1, 1)]
    bridge = arcs(path((size * 1.0 - x, y - 0.03, 0), (x - size * 1.0, y - 0.03, 0.25)), 6)
    arms = [np.array([(side * (x + size * 1.03), y - 0.1 * size), (side * 0.80, y - 0.06)]) for side in (-1, 1)]
    return frames, [bridge, *arms]


ACCESSORIES = ("none", "earrings", "ribbon", "clip", "headband", "flower")


def worn(content: Content, volume: float) -> list[tuple[Points, float | None, str]]:
    """An accessory in the hair: polygons [N,2], depth (None: on the head's front), and "accent", "pale" or "dark"."""
    side = -1.0 if content.parting >= 0 else 1.0
    kind = content.accessory
    out: list[tuple[Points, float | None, str]] = []
    x, y = side * (0.66 + 0.5 * volume), -0.66 - 0.4 * volume
    if kind == "ribbon":
        for wing in (-1.0, 1.0):
            loop = smooth([(0.0, 0.0), (0.16, -0.17), (0.34, -0.15), (0.34, 0.13), (0.16, 0.12)], 4, True)
            turned = loop @ np.array([[0.82, 0.42 * side], [-0.42 * side, 0.82]])
            out.append((turned * wing + (x, y), 0.25, "accent"))
        out.append((ellipse(x, y, 0.085, 0.085, 12), 0.25, "dark"))
    elif kind == "flower":
        for angle in range(0, 360, 72):
            centre = ellipse(x, y, 0.13, 0.13, 1, angle + 18)[0]
            out.append((ellipse(centre[0], centre[1], 0.105, 0.105, 12), 0.25, "pale"))
        out.append((ellipse(x, y, 0.075, 0.075, 12), 0.25, "accent"))
    elif kind == "clip":
        x, y = (0.36, -0.78) if content.bangs == "none" else (0.44, -0.44)
        bar = np.array([(x, y - 0.034), (x + 0.28, y - 0.114), (x + 0.28, y - 0.046), (x, y + 0.034)]) * (side, 1)
        out += [(bar, None, "accent"), (bar + (0, 0.11), None, "accent")]
    elif kind == "headband":
        middle = ellipse(0.0, -0.10, 0.82 + volume, 0.70 + 0.8 * volume, 15, -173, -7)
        out.append((np.concatenate([middle - (0, 0.065), middle[::-1] + (0, 0.065)]), None, "accent"))
    return out


def ears_bare(content: Content) -> bool:
    """Whether the hair leaves the ears free; else earrings hang out between hair and cheek."""
    return content.hair_cut == "buzz"


def earrings(content: Content, y: float) -> list[Points]:
    """Drops and studs [N,2] of earrings under ears that end at `y`."""
    x = 0.775 if ears_bare(content) else 0.68
    drop, stud = ellipse(x, y + 0.14, 0.045, 0.075, 14), ellipse(x, y + 0.02, 0.028, 0.028, 10)
    return [form * (side, 1) for side in (-1, 1) for form in (drop, stud)]

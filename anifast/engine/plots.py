"""Loss plots, drawn with Pillow: faint raw curve, smooth curve over it, ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, GREY, GRID, PAPER = (40, 44, 52), (120, 126, 136), (230, 232, 236), (255, 255, 255)
COLOURS = ((31, 102, 190), (214, 92, 42), (40, 140, 90), (140, 80, 170))
# Everything is drawn this much larger and then reduced: Pillow's lines have no smooth edges of their own.
SCALE = 3


@dataclass(frozen=True)
class Panel:
    """One small plot of a loss figure.

    Attributes:
        title: above it.
        keys: names in metrics.jsonl that are added up for the curve.
    """

    title: str
    keys: tuple[str, ...]


def font(size: int) -> Any:
    """Pillow's own font in `size` pixels."""
    return ImageFont.load_default(size)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's number as short as it can be: 0.25, 40, 12k, 3M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` neighbours, fewer at the ends (as many on either side, so that it does not lag)."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half, out = window // 2, []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        out.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return out


def line_plot(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    size: tuple[int, int] = (420, 280),
    xlabel: str = "images",
) -> Image.Image:
    """One plot with axes: each curve faint as it is and strong when smoothed; a legend where there are several.

    Args:
        title: above the plot.
        curves: name -> positions, rising, and values; values that are not finite are left out.
        size: width and height in pixels.
        xlabel: below the axis.
    """
    s = SCALE
    image = Image.new("RGB", (size[0] * s, size[1] * s), PAPER)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 52 * s, 34 * s, (size[0] - 16) * s, (size[1] - 40) * s
    small, big = font(11 * s), font(14 * s)

    shown = sorted(v for points in curves.values() for _, v in points if math.isfinite(v))
    x = [position for points in curves.values() for position, _ in points]
    # A single spike must not flatten the rest: the axis covers all but the outermost percent.
    low, high = (shown[len(shown) // 100], shown[-1 - len(shown) // 100]) if shown else (0.0, 1.0)
    low = 0.0 if 0.0 <= low < 0.5 * high else low
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    low, high = (low if low == 0.0 else low - pad), high + pad
    first, last = (min(x), max(x)) if x else (0.0, 1.0)
    last = last if last > first else first + 1.0

    def place(px: float, py: float) -> tuple[float, float]:
        across = left + (px - first) / (last - first) * (right - left)
        down = bottom - (py - low) / (high - low) * (bottom - top)
        return across, min(max(down, top), bottom)

    for value in ticks(low, high):
        _, down = place(first, value)
        draw.line([(left, down), (right, down)], fill=GRID, width=s)
        draw.text((left - 6 * s, down), label(value), fill=GREY, font=small, anchor="rm")
    for value in ticks(first, last):
        across, _ = place(value, low)
        draw.line([(across, bottom), (across, bottom + 4 * s)], fill=GREY, width=s)
        draw.text((across, bottom + 7 * s), label(value), fill=GREY, font=small, anchor="mt")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=GREY, width=s)

    for number, curve in enumerate(curves.values()):
        points = [(px, py) for px, py in curve if math.isfinite(py)]
        if not points:
            continue
        colour = COLOURS[number % len(COLOURS)]
        faint = tuple(round(0.28 * c + 0.72 * 255) for c in colour)
        mean = smooth([py for _, py in points], max(1, len(points) // 12))
        if len(points) == 1:
            (across, down), r = place(*points[0]), 3 * s
            draw.ellipse([across - r, down - r, across + r, down + r], fill=colour)
        draw.line([place(*point) for point in points], fill=faint, width=s, joint="curve")
        draw.line(
            [place(px, py) for (px, _), py in zip(points, mean, strict=True)], fill=colour, width=2 * s, joint="curve"
        )

    draw.text((left, 10 * s), title, fill=INK, font=big, anchor="lt")
    draw.text((right, (size[1] - 6) * s), xlabel, fill=GREY, font=small, anchor="rb")
    if not shown:
        draw.text(((left + right) / 2, (top + bottom) / 2), "not in use", fill=GREY, font=big, anchor="mm")
    if len(curves) > 1:
        for number, name in enumerate(curves):
            place_of_name = right - 4 * s, top + (4 + 14 * number) * s
            draw.text(place_of_name, name, fill=COLOURS[number % len(COLOURS)], font=small, anchor="rt")
    return image.resize(size, Image.Resampling.LANCZOS)


def plot_losses(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel], columns: int = 3
) -> Image.Image:
    """The figure of one or several runs: `panels` in reading order, `columns` a row.

    Args:
        runs: name -> lines of metrics.jsonl; names are shown where there are several.
        panels: what to show; those whose losses no run has are left out.
        columns: plots beside each other.
    """
    plots = []
    for panel in panels:
        curves = {}
        for name, rows in runs.items():
            known = [row for row in rows if all(key in row for key in panel.keys)]
            curves[name] = [(float(row["images"]), sum(float(row[key]) for key in panel.keys)) for row in known]
        if any(curves.values()):
            plots.append(line_plot(panel.title, curves))
    if not plots:
        plots = [line_plot("no losses yet", {"": []})]
    width, height = plots[0].size
    figure = Image.new("RGB", (width * min(columns, len(plots)), height * -(-len(plots) // columns)), PAPER)
    for number, plot in enumerate(plots):
        figure.paste(plot, (number % columns * width, number // columns * height))
    return figure

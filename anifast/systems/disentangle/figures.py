"""Figures of an evaluation: where codes lie, and what is painted of the codes of digits and of writers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from anifast.engine.plots import GREY, INK, PAPER, font, label, ticks
from anifast.engine.sheets import Block, readable, sheet, shortened
from anifast.systems.disentangle.inference import Model
from anifast.systems.disentangle.sheets import shown

#: One for each digit, told apart also where they are mixed.
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (96, 96, 96), (188, 189, 34), (23, 190, 207),
)  # fmt: skip
_BEHIND = (176, 180, 188)
# Side of a digit on a sheet.
_TILE = 56
_BORDER, _GAP = 16, 20
# A point's print: the binomial approximation of a Gaussian, which leaves a dot of about three pixels.
_PRINT = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


@dataclass(frozen=True)
class Cloud:
    """Codes to be drawn.

    Attributes:
        title: what they are; shown above.
        points: N,2, any floating type.
        labels: int64 [N], the colours' numbers; negative ones are grey.
    """

    title: str
    points: Tensor
    labels: Tensor


def scatter(clouds: Sequence[Cloud], names: Sequence[str], *, caption: str, columns: int = 3) -> Image.Image:
    """Codes as points in the colours of their classes, a plot for each cloud.

    Where points lie on one another the strength of colour tells how many they are (logarithmically), and the colour is
    a mixture in which the most frequent class weighs most: any number of points can be read.

    Args:
        clouds: at least one; each plot has its own scale, the same across and up.
        names: of the colours, at most 10.
        caption: one line at the top.
        columns: plots beside each other.
    """
    plots = []
    for cloud in clouds:
        inside, limits = _finite(cloud), _limits(cloud.points)
        layers = [_Layer(inside.points, inside.labels)]
        plots.append(_plot(layers, limits, 380, cloud.title))
    return _arranged(plots, min(columns, len(plots)), caption, names)


def split(clouds: Sequence[Cloud], names: Sequence[str], *, caption: str) -> Image.Image:
    """The same with a small plot for each class over all points in grey, and a row of them for each cloud."""
    plots = []
    for cloud in clouds:
        inside, limits = _finite(cloud), _limits(cloud.points)
        for number, name in enumerate(names):
            own = inside.labels == number
            layers = [
                _Layer(inside.points, torch.full_like(inside.labels, -1)),
                _Layer(inside.points[own], inside.labels[own]),
            ]
            plots.append(_plot(layers, limits, 150, f"{cloud.title}: {name}" if number == 0 else name))
    return _arranged(plots, len(names), caption)


def matrix(rows: Sequence[Sequence[Cloud]], names: Sequence[str], *, caption: str) -> Image.Image:
    """Plots in rows, all of the same number of columns, of one scale in a row."""
    plots = []
    for row in rows:
        limits = _limits(torch.cat([cloud.points for cloud in row]))
        for cloud in row:
            inside = _finite(cloud)
            plots.append(_plot([_Layer(inside.points, inside.labels)], limits, 240, cloud.title))
    return _arranged(plots, len(rows[0]), caption, names)


def _finite(cloud: Cloud) -> Cloud:
    good = cloud.points.isfinite().all(1)
    return Cloud(cloud.title, cloud.points[good], cloud.labels[good])


@dataclass(frozen=True)
class _Layer:
    points: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Limits:
    """The square that is shown: its middle and half its side."""

    middle: tuple[float, float]
    reach: float


def _limits(points: Tensor) -> _Limits:
    """All points but the outermost thousandth on each side."""
    values = points[points.isfinite().all(1)].double().cpu().numpy()
    if not len(values):
        return _Limits((0.0, 0.0), 1.0)
    low, high = np.quantile(values, (0.001, 0.999), axis=0)
    middle = (low + high) / 2
    return _Limits((float(middle[0]), float(middle[1])), float(max(high - low)) * 0.54 or 1.0)


def _density(points: Tensor, limits: _Limits, side: int) -> NDArray[np.float64]:
    """How many points there are about each pixel of a square, row 0 at the top."""
    places = (points.double().cpu().numpy() - np.array(limits.middle)) / limits.reach
    places = np.floor((places * (1, -1) + 1) / 2 * side)
    inside = ((places >= 0) & (places < side)).all(1)
    across, down = places[inside].astype(np.int64).T
    counts = np.bincount(down * side + across, minlength=side * side).reshape(side, side).astype(np.float64)
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, _PRINT, "same")
    return counts


def _painted(layers: Sequence[_Layer], limits: _Limits, side: int) -> Image.Image:
    picture = np.full((side, side, 3), 255.0)
    alone = _PRINT.max() ** 2  # what a single point leaves in its middle
    for layer in layers:
        numbers = layer.labels.unique().tolist()
        total, weight, colour = np.zeros((side, side)), np.zeros((side, side)), np.zeros((side, side, 3))
        for number in numbers:
            found = _density(layer.points[layer.labels == number], limits, side)
            total += found
            # Squared, so that where classes overlap the most frequent one is seen: mere means are brown.
            weight += found**2
            colour += (found**2)[..., None] * (COLOURS[number % len(COLOURS)] if number >= 0 else _BEHIND)
        # Most of the pixels that hold anything should be told apart, and a few full ones not decide.
        most = np.quantile(total[total > 0], 0.995) if (total > 0).any() else alone
        strength = np.clip(np.log1p(total / alone) / np.log1p(max(most, alone) / alone), 0, 1)[..., None]
        picture += strength * (colour / np.maximum(weight, 1e-12)[..., None] - picture)
    return Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def _plot(layers: Sequence[_Layer], limits: _Limits, side: int, title: str) -> Image.Image:
    """A square with its frame, numbers and title."""
    small, left, top, bottom = font(11), 34, 24, 20
    count = max(3, side // 60)
    image = Image.new("RGB", (left + side + 4, top + side + bottom), PAPER)
    image.paste(_painted(layers, limits, side), (left, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle([left - 1, top - 1, left + side, top + side], outline=GREY)
    x, y = limits.middle
    for value in ticks(x - limits.reach, x + limits.reach, count):
        at = left + (value - x + limits.reach) / (2 * limits.reach) * side
        draw.line([(at, top + side), (at, top + side + 4)], fill=GREY)
        draw.text((at, top + side + 6), label(_plain(value)), fill=GREY, font=small, anchor="mt")
    for value in ticks(y - limits.reach, y + limits.reach, count):
        at = top + side - (value - y + limits.reach) / (2 * limits.reach) * side
        draw.line([(left - 5, at), (left - 1, at)], fill=GREY)
        draw.text((left - 7, at), label(_plain(value)), fill=GREY, font=small, anchor="rm")
    draw.text((left, top - 6), shortened(title, side), fill=INK, font=font(13), anchor="ls")
    return image


def _plain(value: float) -> float:
    """A tick without the rounding that would be shown as 1e-17."""
    return round(value, 10) + 0.0


def _arranged(plots: Sequence[Image.Image], columns: int, caption: str, names: Sequence[str] = ()) -> Image.Image:
    """Plots in rows under a caption and, where there are names, their colours."""
    width, height = plots[0].size
    rows = math.ceil(len(plots) / columns)
    text, big = font(13), font(16)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    full = max(columns * width + (columns - 1) * _GAP, math.ceil(probe.textlength(caption, font=big)))
    boxes = [18 + math.ceil(probe.textlength(name, font=text)) + 18 for name in names]
    lines, used = 1 if names else 0, 0
    places = []
    for box in boxes:
        if used and used + box > full:
            lines, used = lines + 1, 0
        places.append((used, lines - 1))
        used += box
    head = 30 + 22 * lines
    whole = Image.new("RGB", (full + 2 * _BORDER, head + rows * (height + 8) + 2 * _BORDER), PAPER)
    draw = ImageDraw.Draw(whole)
    draw.text((_BORDER, _BORDER), caption, fill=INK, font=big, anchor="lt")
    for number, (name, (across, line)) in enumerate(zip(names, places, strict=True)):
        x, y = _BORDER + across, _BORDER + 28 + 22 * line
        draw.rectangle([x, y, x + 12, y + 12], fill=COLOURS[number % len(COLOURS)])
        draw.text((x + 18, y + 6), name, fill=INK, font=text, anchor="lm")
    for number, plot in enumerate(plots):
        row, column = divmod(number, columns)
        whole.paste(plot, (_BORDER + column * (width + _GAP), _BORDER + head + row * (height + 8)))
    return whole


# --- digits


def painter(model: Model) -> str:
    """Whose generator paints, for headings."""
    return f"painted by {model.stage.replace('stage', 'stage ')}'s generator"


def crossed(
    model: Model, contents: Tensor, digits: Sequence[int], writers: Sequence[str], *, batch: int
) -> Image.Image:
    """Every digit as every writer would write it: a row for each digit, a column for each writer (figures 5 and 7).

    Args:
        model: knows writers, and `contents` are then those of the digits; or it knows digits, and they are of writers.
        contents: [len(digits), content_size] or [len(writers), content_size].
        digits: the rows.
        writers: their ids, the columns.
        batch: pictures at once.
    """
    if model.config.label == "writer":
        styles = model.styles(writers)
        tiles = [model.paint(one.expand(len(writers), -1), styles, batch) for one in contents]
        told = "content: mean of the digit's; style: the writer's"
    else:
        tiles = [model.paint(contents, model.styles([str(digit)]), batch) for digit in digits]
        told = "content: mean of the writer's; style: the digit's"
    rows = [(f"digit {digit}", shown(row)) for digit, row in zip(digits, tiles, strict=True)]
    block = Block(f"{told}; columns: writers", rows, list(writers))
    return sheet([block], caption=f"digits by writers, {painter(model)}", tile=_TILE)


def one_writer(
    model: Model, real: Mapping[int, Tensor], contents: Tensor, writer: str, *, noise: float, seed: int, batch: int
) -> Image.Image:
    """Real digits of a writer beside painted ones, whose contents are the digits' means and noise (figure 8).

    Args:
        model: knows writers.
        real: digit -> his, uint8 n,1,28,28, n up to 5.
        contents: [len(real), content_size], the mean of each digit's.
        writer: his id.
        noise: standard deviation of what is added to contents.
        seed: of it.
        batch: pictures at once.
    """
    kept, made = 5, 10
    source = torch.Generator().manual_seed(seed)
    style = model.styles([writer])
    left, right = [], []
    for (digit, images), content in zip(real.items(), contents, strict=True):
        row = torch.full((kept, 3, *images.shape[2:]), 255, dtype=torch.uint8)
        row[: len(images)] = images[:kept].expand(-1, 3, -1, -1)
        left.append((f"digit {digit}", row))
        moved = content.cpu() + noise * torch.randn(made, len(content), generator=source)
        right.append(("", shown(model.paint(moved, style, batch))))
    blocks = [
        Block("real", left),
        Block(f"mean content of the digit, noise of {noise:g}, and his style", right),
    ]
    return sheet(blocks, caption=f"writer {writer}, {painter(model)}", tile=_TILE)


def reconstructions(models: Mapping[str, Model], images: Tensor, labels: Mapping[str, Sequence[str]]) -> Image.Image:
    """Pictures, and what each model makes of their contents in their own style and in none (figure 10).

    Args:
        models: by name.
        images: N,C,size,size as networks see them.
        labels: name of a model that has styles -> the class of each picture.
    """
    rows = [("picture", shown(images))]
    for name, model in models.items():
        contents = model.contents(images)
        if model.style_size:
            kinds = {"own style": model.styles(labels[name]), "no style": model.neutral()}
        else:
            kinds = {"reconstruction": model.neutral()}
        rows += [(f"{name}, {kind}", shown(model.paint(contents, style))) for kind, style in kinds.items()]
    who = " or ".join(dict.fromkeys(painter(model) for model in models.values()))
    return sheet([Block("", rows)], caption=f"pictures, and their contents {who}", tile=_TILE, beside=False)


def colours_of(labels: Tensor, names: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Labels as numbers of colours: those of the most frequent classes in their order, and -1, grey, for all others.

    Returns:
        int64 [N], and the names that the colours stand for.
    """
    counts = torch.bincount(labels, minlength=len(names))
    kept = sorted(counts.argsort(descending=True, stable=True)[: len(COLOURS)].tolist())
    numbers = torch.full((len(names),), -1, dtype=torch.int64)
    numbers[kept] = torch.arange(len(kept))
    return numbers[labels], [names[k] if readable(names[k]) else f"class {k}" for k in kept]

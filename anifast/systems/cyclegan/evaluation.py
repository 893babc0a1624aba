"""Figures of a trained CycleGAN on pictures it has not seen: cycle L1, identity L1, FID and KID, in each direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.data.folders import printable, scan, to_float, to_uint8
from anifast.data.stream import image_batches
from anifast.engine.precision import enough_memory
from anifast.errors import AnifastError, DataError
from anifast.metrics.report import DISTANCES, Options, Report, distance_cells, distances
from anifast.metrics.sets import FeatureSet
from anifast.progress import Progress
from anifast.systems.cyclegan.inference import Translator
from anifast.systems.measures import figure, real_features

_OTHER = {"A": "B", "B": "A"}


class _Mean:
    """Mean absolute difference of all pixels of all pictures."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        self._sum += float((x - y).abs().sum(dtype=torch.float64))
        self._count += x.numel()

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


class _Side:
    """What one pass over the pictures of a domain gives."""

    def __init__(self, dim: int | None) -> None:
        self.pictures = 0
        self.cycle, self.identity = _Mean(), _Mean()
        self.fakes = None if dim is None else FeatureSet(dim)


def evaluate(model: Translator, data: Path, options: Options) -> Report:
    """Evaluate the translations of testA to B and of testB to A.

    Pictures are brought to the model's size (bicubic, aspect ignored, as in its training). All L1 are means over pixels
    in [-1, 1], unweighted. Translations are rounded to 8 bits, as they would be saved, before features are taken.

    Args:
        model: the generators; where the file holds one only, it is taken as A -> B unless `options.to` says A.
        data: folder with testA and testB.
        options: see there.

    Returns:
        One row a direction and set of real pictures: cycle L1 of the pictures translated there and back, identity L1 of
        the target's own pictures under the same generator, FID and KID of the translations.

    Raises:
        DataError: a folder is missing or holds no picture that can be read.
        AnifastError: the model gives NaN, or the memory does not suffice.
    """
    ways = [options.to] if options.to else ["B", "A"] if model.both else [model.held[0]]
    if not set(ways) <= set(model.held):
        raise AnifastError(f"to: {options.to!r} is not one of {', '.join(sorted(model.held))} that this model has")
    folders = [*("testA", "testB"), *(f"{name}{way}" for name in options.against for way in ways)]
    if missing := sorted({name for name in folders if not (data / name).is_dir()}):
        raise DataError(
            f"{printable(data)}: no folder {' and no folder '.join(missing)}. Expected {printable(data)}/testA and "
            "testB with pictures that the model was not trained on, and trainA, trainB for --against train"
        )
    report = Report(("pictures", "cycle L1", "identity L1", *DISTANCES))
    if not model.both:
        report.note(
            f"the file holds one generator, taken as {_OTHER[ways[0]]} -> {ways[0]}"
            + (f" (--to {_OTHER[ways[0]]} for the other direction)" if len(model.held) == 2 else "")
            + "; there is no way back, so no cycle L1"
        )
    sides = {side: _pass(model, data / f"test{side}", side, ways, options, report) for side in "AB"}
    real: dict[str, FeatureSet] = {}
    if options.extractor is not None:
        names = {f"{name}{way}" for name in options.against for way in ways} | {"testA", "testB"}
        real = {name: real_features(data / name, model.size, options, report) for name in sorted(names)}
    directions: dict[str, Any] = {}
    for to in ways:
        source = sides[_OTHER[to]]
        name = f"{_OTHER[to]} -> {to}"
        figures: dict[str, Any] = {
            "pictures": source.pictures,
            "cycle_l1": source.cycle.value,
            "identity_l1": sides[to].identity.value,
        }
        cells = [str(source.pictures), *(figure(figures[key], 4) for key in ("cycle_l1", "identity_l1"))]
        directions[name] = figures
        if source.fakes is None:
            report.rows.append((name, [*cells, *distance_cells(None)]))
        for which in options.against if source.fakes is not None else ():
            assert source.fakes is not None
            figures[which] = distances(source.fakes, real[f"{which}{to}"], options, report)
            report.rows.append((f"{name} ({which}{to})", [*cells, *distance_cells(figures[which])]))
    report.facts = {"size": model.size, "precision": model.precision, "directions": directions}
    if real:
        untouched = distances(real["testA"], real["testB"], options, report)
        report.rows.append(("testA, testB untranslated", ["", "", "", *distance_cells(untouched)]))
        report.facts["untranslated"] = untouched
    return report


def _pass(model: Translator, folder: Path, side: str, ways: list[str], options: Options, report: Report) -> _Side:
    """Translate the pictures of a domain in whatever ways are asked for."""
    other = _OTHER[side]
    extractor = options.extractor if other in ways else None
    result = _Side(None if extractor is None else extractor.dim)
    found = scan(folder)
    failed = dict(found.rejected)
    if options.limit is not None:
        del found.paths[options.limit :], found.names[options.limit :]
    with (
        Progress(len(found), folder.name) as bar,
        enough_memory(options.batch, f" of side {model.size}", "--batch"),
    ):
        done = len(failed)
        for pixels in image_batches(found, model.size, options.batch, failed):
            images = to_float(pixels)
            if other in ways:
                fakes = _finite(model.translate(images, to=other), folder)
                if model.both:
                    result.cycle.add(_finite(model.translate(fakes, to=side), folder), images)
                if extractor is not None and result.fakes is not None:
                    result.fakes.update(extractor(to_float(to_uint8(fakes))))
            if side in ways:
                result.identity.add(_finite(model.translate(images, to=side), folder), images)
            result.pictures += len(images)
            bar.update(len(images) + len(failed) - done)
            done = len(failed)
    if not result.pictures:
        first = min(failed)
        raise DataError(
            f"{printable(folder)}: none of its pictures can be read, the first because {printable(first)}: "
            f"{failed[first]}"
        )
    for name, why in failed.items():
        report.note(f"left out: {printable(folder / name)}: {why}")
    return result


def _finite(images: Tensor, folder: Path) -> Tensor:
    if not bool(images.isfinite().all()):
        raise AnifastError(f"the model gives NaN for pictures of {printable(folder)}: its weights are damaged")
    return images

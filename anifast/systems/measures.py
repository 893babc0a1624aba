"""What the evaluations of several systems do alike."""

from __future__ import annotations

from pathlib import Path

from anifast.data.folders import printable
from anifast.engine.precision import enough_memory
from anifast.metrics.features import FID_WEIGHTS, Extractor
from anifast.metrics.report import Options, Report
from anifast.metrics.sets import FeatureSet, folder_features

#: What stands below a table of published figures in which ours have a star.
OTHER_NETWORK = "* taken with another network than the published figures: not to be compared with them"


def real_features(folder: Path, size: int, options: Options, report: Report) -> FeatureSet:
    """Features of a folder's pictures at this side, from the cache if they are there.

    Args:
        folder: of the pictures; those that cannot be read are noted in the report.
        size: see `anifast.metrics.folder_features`.
        options: with an extractor.
        report: gets the notes.

    Raises:
        DataError: the folder is missing, or none of its pictures can be read.
        AnifastError: the memory does not suffice.
    """
    assert options.extractor is not None
    with enough_memory(options.batch, "", "--batch"):
        found = folder_features(folder, options.extractor, size, batch=options.batch, limit=options.limit)
    for name, why in found.skipped.items():
        report.note(f"left out: {printable(folder / name)}: {why}")
    return found


def is_standard(extractor: Extractor) -> bool:
    """Whether it is the one that published FIDs are taken with."""
    return extractor.name == "inception" and extractor.weights.startswith(FID_WEIGHTS)


def figure(value: float | None, digits: int) -> str:
    """A cell of a table."""
    return "-" if value is None else f"{value:.{digits}f}"

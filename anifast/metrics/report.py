"""What an evaluation asks for and what it gives, whatever the system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anifast.metrics.features import Extractor
from anifast.metrics.frechet import fid
from anifast.metrics.kid import fitting_subset, kid
from anifast.metrics.sets import FeatureSet


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        extractor: what FID and KID are taken with; None leaves them out.
        batch: pictures at once.
        limit: take the first so many pictures of each folder only.
        against: the sets of real pictures that translations are compared with: "test", "train" or both.
        subset_size: pictures in a subset of KID, at most half of a set.
        to: evaluate the translation to this domain only.
        own: the system's own settings, its `evaluation.Settings`; None for those that have none.
        model: where the model was loaded from; None: not told.
    """

    extractor: Extractor | None = None
    batch: int = 8
    limit: int | None = None
    against: tuple[str, ...] = ("test",)
    subset_size: int = 50
    to: str | None = None
    own: Any = None
    model: Path | None = None


@dataclass
class Report:
    """Figures for reading and for a file.

    Attributes:
        columns: heads of the table behind the rows' names.
        rows: (name, cells).
        above: lines before the table: what its figures are.
        below: lines behind it.
        facts: the same and more as plain values, for JSON.
        notes: what to know about the figures.
        interrupted: Ctrl-C ended it, and these are the figures until then.
        file: where `facts` were written.
    """

    columns: Sequence[str]
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    file: Path | None = None

    def lines(self) -> list[str]:
        """The table, if it has columns, and what stands around it."""
        return [*self.above, *(table("", self.columns, self.rows) if self.columns else ()), *self.below]

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Lines of a table, columns aligned: its title and the columns' heads, then (name, cells) of the rows."""
    cells = [[title, *columns], *([name, *values] for name, values in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]


#: Heads of the columns that `distance_cells` fills.
DISTANCES = ("FID", "KID x100", "std x100", "error x100")


def distances(made: FeatureSet, real: FeatureSet, options: Options, report: Report) -> dict[str, Any]:
    """FID and KID of two sets as plain values; None, and a note in the report, where there are too few pictures."""
    fewer = min(len(made), len(real))
    found: dict[str, Any] = {"pictures": len(real), "fid": None, "kid": None}
    if fewer < 2:
        report.note("FID and KID need at least 2 pictures in each set")
        return found
    if fewer <= made.statistics.dim:
        report.note(
            f"{fewer} pictures are not more than the {made.statistics.dim} features: FID is too large, and comparable "
            "for equal numbers of pictures only; KID has no such bias"
        )
    found["fid"] = fid(made.statistics, real.statistics)
    size = fitting_subset(options.subset_size, min(len(made.features), len(real.features)))
    if size < options.subset_size:
        report.note(f"subsets of KID hold {size} pictures and not {options.subset_size}: half of the smaller set")
    found["kid"] = kid(made.features, real.features, subset_size=size).as_dict()
    return found


def distance_cells(found: dict[str, Any] | None) -> list[str]:
    """The cells of `DISTANCES`."""
    if found is None or found["fid"] is None:
        return ["-"] * len(DISTANCES)
    figures = [found["kid"][key] for key in ("mean", "std", "error")]
    return [f"{found['fid']:.2f}", *("-" if value is None else f"{100 * value:.3f}" for value in figures)]

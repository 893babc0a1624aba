"""A results file: its form, its summary, reading and writing. Needs no torch.

A file holds everything measured of one op on one device:

    format, op, device ("cpu" or "cuda"), folder, selection ("all", or what was left out), environment, seconds,
    forms         form -> title
    variants      name -> role ("ours", "strategy", "rival", "bound")
    unavailable   "variant" or "variant work" -> why it has no times
    statistics    what the numbers of a row's "us" are: microseconds of one call, and how many samples there were
    rows          case, form, shape, dtype, layout, output (its bytes), work, bytes (that the work must move),
                  copied (that clone moves), operations (if arithmetic binds), us: variant -> statistics, refused:
                  variant -> why it got no speed, memory: variant -> [peak, held] bytes of allocations, kept: variant
                  -> bytes that a forward keeps for backward; in the file grouped as cases -> works
    aims          title, against, aim, percent, each (the smallest counts, else the mean) and measured: ours -> [over
                  all cases, over those of >= 1 MiB]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from anifast.errors import DataError
from anifast.files import write_text

FORMAT = "anifast.benchmark/1"
#: What is timed, and its title. The double backward is the path of the R1 penalty: the gradient of an input, and the
#: gradients of that gradient.
WORKS = {"forward": "forward", "forward_backward": "forward + backward", "double_backward": "double backward"}
STATISTICS = ("p25", "p75", "minimum", "count")
#: From this many bytes moved on a row counts as large: below, the cost of a call is most of its time.
LARGE = 1 << 20

_OF_CASE = ("case", "form", "shape", "dtype", "layout", "output")

Result = dict[str, Any]
Row = dict[str, Any]


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def least(values: Iterable[float]) -> float | None:
    """The smallest, or None of nothing."""
    return min(values, default=None)


def ratio(row: Row, ours: str, against: str | Sequence[str]) -> float | None:
    """How many times faster `ours` is than `against` by lower quartiles; None where either has no time.

    Against several it is the fastest that counts. Against "clone" it is the share of the bandwidth that cloning
    reaches, as bytes that have to move over bytes moved.
    """
    names = [against] if isinstance(against, str) else against
    found = [row["us"][name][0] for name in names if name in row["us"]]
    if ours not in row["us"] or not found:
        return None
    times = min(found) / row["us"][ours][0]
    return times * row["bytes"] / row["copied"] if against == "clone" else times


def mean_ratio(
    rows: Iterable[Row],
    ours: str,
    against: str | Sequence[str],
    keep: Callable[[Row], bool],
    mean: Callable[[Iterable[float]], float | None] = geomean,
) -> tuple[float | None, float | None, int]:
    """`mean` of `ratio` over the rows that `keep` takes: all, those that are large, and how many there are."""
    found = [(value, row["bytes"]) for row in rows if keep(row) and (value := ratio(row, ours, against)) is not None]
    return mean(v for v, _ in found), mean(v for v, size in found if size >= LARGE), len(found)


def named(result: Result, role: str) -> list[str]:
    """The variants of a role that have any time, in the file's order."""
    timed = {name for row in result["rows"] for name in row["us"]}
    return [name for name, its in result["variants"].items() if its == role and name in timed]


def refusals(result: Result) -> list[str]:
    """A line for every variant that computed something wrong or failed."""
    return [
        f"{row['case']} {row['work']} {variant}: {reason}"
        for row in result["rows"]
        for variant, reason in row.get("refused", {}).items()
    ]


def validate(result: Any) -> None:
    """Raise DataError unless `result` has the form of this module's description."""
    try:
        if result["format"] != FORMAT:
            raise DataError(f"format is {result['format']!r}, expected {FORMAT!r}")
        if result["device"] not in ("cpu", "cuda") or not isinstance(result["environment"]["torch"], str):
            raise DataError("device or environment is not as expected")
        if tuple(result["statistics"]) != STATISTICS or not result["rows"]:
            raise DataError(f"statistics are {result['statistics']}, or there are no rows")
        for row in result["rows"]:
            where = f"{row['case']} {row['work']}"
            if row["form"] not in result["forms"] or row["bytes"] <= 0 or row["copied"] <= 0:
                raise DataError(f"{where}: unknown form, or no bytes")
            for name, (p25, p75, minimum, count) in row["us"].items():
                if name not in result["variants"] or not 0 < minimum <= p25 <= p75 or count < 1:
                    raise DataError(f"{where}: impossible statistics of {name}")
        for aim in result["aims"]:
            if not {"title", "against", "aim", "percent", "measured"} <= aim.keys():
                raise DataError("an aim is incomplete")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a results file ({type(error).__name__}: {error})") from None


def load(path: Path) -> Result:
    """Read a results file.

    Raises:
        DataError: it cannot be read or is no results file; the message names it.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        result["rows"] = [
            {**{name: case[name] for name in _OF_CASE}, "work": work, **row}
            for case in result.pop("cases")
            for work, row in case["works"].items()
        ]
        validate(result)
    except (OSError, LookupError, TypeError, AttributeError, ValueError, DataError) as error:
        raise DataError(f"{path}: {error}. Remove it, or measure again: python benchmarks/run.py") from None
    return result


def save(result: Result, folder: Path) -> Path:
    """Write `folder`/<device folder>/<op>.json whole, in place of that op's file only; a case a line."""
    validate(result)
    head = {name: value for name, value in result.items() if name != "rows"}
    cases: dict[str, Any] = {}
    for row in result["rows"]:
        of_case = {name: row[name] for name in _OF_CASE}
        case = cases.setdefault(row["case"], {**of_case, "works": {}})
        case["works"][row["work"]] = {name: row[name] for name in row if name != "work" and name not in of_case}
    lines = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in cases.values())
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n' + lines + "\n ]\n}\n"
    path = folder / str(result["folder"]) / f"{result['op']}.json"
    write_text(path, text)
    return path


def load_all(folder: Path) -> list[tuple[Path, Result]]:
    """Every results file under `folder`, sorted by device folder and op."""
    return [(path, load(path)) for path in sorted(folder.glob("*/*.json"))]

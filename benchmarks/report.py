"""Tables of the results files: `python benchmarks/report.py [--rows] [--write README.md | --check README.md]`.

Without a file the tables are printed. In a file they stand between the lines `<!-- benchmarks -->` and
`<!-- /benchmarks -->`; --check exits with 1 where they are not those of the results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
AGAINST = {
    "clone": "share of `clone`'s bandwidth",
    "convolution": "share of the library's convolution alone",
    "matrix": "share of a matrix product's rate",
    "whole": "speed of plain PyTorch's whole matrices",
    "compile": "`torch.compile` of plain PyTorch",
}


def _use_repository() -> None:
    here = str(ROOT / "benchmarks")
    sys.path[:] = [path for path in sys.path if path != here]
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def environment_line(environment: dict[str, Any]) -> str:
    """What was measured on, and with, in one line."""
    parts = []
    if "gpu" in environment:
        parts += [environment["gpu"], f"CUDA {environment['cuda']}", f"triton {environment['triton'] or 'absent'}"]
    else:
        parts += [
            f"{environment['threads']} threads on {environment['cores']} cores of {environment['cpu']}"
            f" ({environment['cpu_capability']})",
            f"kernels built for {environment['build'].get('isa', 'nothing')}",
            f"OMP_WAIT_POLICY={environment['settings'].get('OMP_WAIT_POLICY', 'unset')}",
        ]
    commit = (environment["commit"] or "unknown")[:10] + ("+changes" if environment["uncommitted_changes"] else "")
    parts += [f"torch {environment['torch']}", f"commit {commit}", environment["date"]]
    return ", ".join(parts)


def _against(names: str | list[str]) -> str:
    """A rival or bound, or several rivals, in words."""
    if isinstance(names, str):
        return AGAINST.get(names, names)
    return "the fastest of " + ", ".join(names)


def _value(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{value * 100:.0f} %" if percent else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratios(result: dict[str, Any], ours: str) -> str:
    """The table of geometric means of one of our backends: a line for each group of rows and rival, a column a pass.

    The groups are the forms in the first dtype and layout there is (float32, contiguous), then each other dtype and
    layout as a whole.
    """
    from benchmarks.results import WORKS, mean_ratio, named

    works = [work for work in WORKS if any(row["work"] == work for row in result["rows"])]
    usual, *others = {(row["dtype"], row["layout"]): None for row in result["rows"] if ours in row["us"]}
    bounds = named(result, "bound")
    strategies = named(result, "strategy")
    forms = [*result["forms"].items(), *([("", "all forms")] if len(result["forms"]) > 1 else [])]
    groups = [(title, form, usual) for form, title in forms]
    groups += [(", ".join(kind).replace("_", " "), "", kind) for kind in others]
    lines = []
    for title, form, kind in groups:
        for against in [*strategies, *named(result, "rival"), *bounds]:
            cells, count = [], 0
            for work in works:

                def counts(row: dict[str, Any], of: Any = (work, form, kind)) -> bool:
                    return (row["work"], row["dtype"], row["layout"]) == (of[0], *of[2]) and of[1] in ("", row["form"])

                value, large, found = mean_ratio(result["rows"], ours, against, counts)
                percent = against in bounds
                cells.append(f"{_value(value, percent)} ({_value(large, percent)})" if found else "–")
                count = max(count, found)
            if count:
                rival = f"its strategy `{against}`" if against in strategies else _against(against)
                lines.append([f"{title} ({count})", rival, *cells])
    return _table([f"`{ours}` (shapes)", "against", *(WORKS[work] for work in works)], lines)


def aims(result: dict[str, Any]) -> str:
    """The table of aims and what was reached."""
    lines = []
    for aim in result["aims"]:
        for ours, (value, large) in aim["measured"].items():
            if value is not None:
                percent = aim["percent"]
                met = "yes" if value >= aim["aim"] else "**no**"
                lines.append(
                    [
                        ours,
                        aim["title"] + (", each shape" if aim.get("each") else ""),
                        _against(aim["against"]),
                        _value(aim["aim"], percent),
                        _value(value, percent),
                        _value(large, percent),
                        met,
                    ]
                )
    header = ["backend", "aim", "against", "at least", "all shapes", "shapes of 1 MiB and more", "met"]
    return _table(header, lines) if lines else ""


def _unit(result: dict[str, Any]) -> tuple[str, Callable[[dict[str, Any]], float]]:
    """What sizes are told in: outputs, or MiB where an output is a few numbers. Its name, and its bytes in a row."""
    if all(row["output"] * 1000 < row["bytes"] for row in result["rows"]):
        return "MiB", lambda row: 2.0**20
    return "outputs", lambda row: row["output"]


def memory(result: dict[str, Any]) -> str:
    """The table of allocations: peak above the inputs."""
    from benchmarks.results import LARGE, WORKS

    unit, size = _unit(result)
    names = [name for name, role in result["variants"].items() if role != "bound"]
    lines = []
    for row in result["rows"]:
        taken = row.get("memory", {})
        if taken and row["bytes"] >= LARGE:
            cells = [f"{taken[name][0] / size(row):.2f}" if name in taken else "–" for name in names]
            lines.append([row["case"], WORKS[row["work"]], f"{row['output'] / 2**20:.1f} MiB", *cells])
    return _table([f"case (peaks in {unit})", "pass", "output", *names], lines) if lines else ""


def kept(result: dict[str, Any]) -> str:
    """The table of what a forward keeps for its backward, in parts of all outputs (or in MiB a shape), and at most."""
    unit, size = _unit(result)
    rows = [row for row in result["rows"] if "kept" in row]
    names = [
        name for name, role in result["variants"].items() if role != "bound" and any(name in r["kept"] for r in rows)
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["form"], row["dtype"]), []).append(row)
    lines = []
    for (form, dtype), found in groups.items():
        cells = []
        for name in names:
            of = [row for row in found if name in row["kept"]]
            whole = sum(row["kept"][name] for row in of) / max(1, sum(size(row) for row in of))
            most = max((row["kept"][name] / size(row) for row in of), default=0.0)
            cells.append(f"{whole:.2f} ({most:.2f})" if of else "–")
        lines.append([f"{result['forms'][form]}, {dtype} ({len(found)})", *cells])
    return _table([f"kept for backward beyond the inputs, in {unit} (at most)", *names], lines) if lines else ""


def section(result: dict[str, Any], link: str = "", *, rows: bool = False) -> str:
    """Everything about one op on one device."""
    from benchmarks.results import named, refusals

    title = f"#### `{result['op']}` on {result['environment'].get('gpu') or result['environment']['cpu']}"
    about = environment_line(result["environment"])
    if result["selection"] != "all":
        about += f". Only a part was measured: {result['selection']}"
    parts = [title, f"{about}{f' ([all figures]({link}))' if link else ''}."]
    parts += [f"**Refused** {line}" for line in refusals(result)]
    for ours in named(result, "ours"):
        parts.append(ratios(result, ours))
    parts.append(aims(result))
    parts.append(kept(result))
    if rows:
        parts.append(each_row(result))
        parts.append(memory(result))
    return "\n\n".join(part for part in parts if part)


def system_section(result: dict[str, Any], link: str) -> str:
    """Everything about one system on one device, from benchmarks/systems/bench_<system>.py.

    A row may lack a size. It may have an aim against the first rival or the one that it names as `aimed`, a roofline,
    what a step's forward keeps for its backward, and a peak of memory beside. A result with several rivals names them,
    and has beside each ratio the one that it would be if ours were the library's convolutions alone; a row may lack
    some. A note says what else one has to know.
    """
    about = environment_line(result["environment"])
    several: dict[str, str] = result.get("rivals", {})
    rivals = several or {"plain": result.get("rival", "plain eager PyTorch")}
    whose = ", ".join(several.values()) or "rival's"
    more = {
        "roofline_ms": "roofline",
        "kept": f"kept for backward, ours ({whose})",
        "peak": f"peak of memory, ours ({whose})",
    }
    more = {name: title for name, title in more.items() if any(name in row for row in result["rows"])}
    lines = []
    for row in result["rows"]:
        ours = row["ms"]["anifast"][0]
        against = []
        for name in rivals:
            if name not in row["ms"]:
                against += ["–", "–"]
                continue
            rival = row["ms"][name][0]
            aimed = "aim" in row and name == row.get("aimed", next(iter(rivals)))
            notes = [f"aim {_times(row['aim'])}x"] if aimed else []
            notes += [f"bound {rival / row['convolutions_ms']:.2f}x"] if several else []
            against += [_ms(rival), f"{rival / ours:.2f}x" + (f" ({', '.join(notes)})" if notes else "")]
        lines.append(
            [
                ", ".join([row["work"], *([f"{row['size']} px"] if "size" in row else []), f"{row['images']} at once"]),
                row["precision"],
                _ms(ours),
                _rate(row["images"] * 1e3 / ours),
                *against,
                _of_ours(row["convolutions_ms"], ours),
                *(_beside(row, name, list(rivals)) for name in more),
            ]
        )
    header = [
        "",
        "precision",
        "anifast",
        "images/s",
        *(title for rival in rivals.values() for title in (rival, "faster")),
        "the library's convolutions alone",
        *more.values(),
    ]
    title = f"#### `{result['system']}` on {result['environment'].get('gpu') or result['environment']['cpu']}"
    note = f" {result['note']}" if "note" in result else ""
    return "\n\n".join([title, f"{about} ([all figures]({link})).{note}", _table(header, lines)])


def _times(aim: float) -> str:
    return f"{aim:.1f}" if aim == round(aim, 1) else f"{aim:.2f}"


def _of_ours(bound: float, ours: float) -> str:
    return f"{_ms(bound)} ({bound / ours * 100:.0f} %)"


def _ms(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 2}f} ms"


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _beside(row: dict[str, Any], name: str, rivals: list[str]) -> str:
    """A cell of what a system's row may have beside its times."""
    if name not in row:
        return "–"
    if name == "roofline_ms":
        ours = row["ms"]["anifast"][0]
        aim = (
            f", ours {ours / row[name]:.2f} times (aim {_times(row['roofline_aim'])})" if "roofline_aim" in row else ""
        )
        return _of_ours(row[name], ours) + aim
    others = ", ".join(f"{row[name][rival] / 2**20:.0f} MiB" if rival in row[name] else "–" for rival in rivals)
    text = f"{row[name]['anifast'] / 2**20:.0f} MiB ({others})"
    if f"{name}_aim" in row:
        share = row[name]["anifast"] / row[name][rivals[0]]
        text += f", {share * 100:.0f} % of the first (aim {row[f'{name}_aim'] * 100:.0f} %)"
    return text


def each_row(result: dict[str, Any]) -> str:
    """The table of all rows: lower quartiles in microseconds."""
    from benchmarks.results import WORKS

    names = [name for name in result["variants"] if any(name in row["us"] for row in result["rows"])]
    lines = []
    for row in result["rows"]:
        times = (row["us"][name][0] if name in row["us"] else None for name in names)
        cells = ("–" if time is None else f"{time:.{1 if time < 1000 else 0}f}" for time in times)
        lines.append([row["case"], "x".join(map(str, row["shape"])), WORKS[row["work"]], *cells])
    return _table(["case", "shape", "pass", *(f"{name}, us" for name in names)], lines)


def document(results_folder: Path, beside: Path, *, rows: bool = False) -> str:
    """All sections; links are relative to the folder `beside`."""
    from benchmarks.results import load_all

    found = load_all(results_folder)
    systems = sorted(results_folder.glob("*/systems/*.json"))
    if not found and not systems:
        return "Nothing has been measured yet: `python benchmarks/run.py`."
    lead = (
        "Geometric means over the shapes of the systems of how many times faster ours is, in float32 and contiguous "
        "where nothing else is said; in brackets over the shapes that move 1 MiB and more."
    )
    sections = [
        section(result, Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix(), rows=rows)
        for path, result in found
    ]
    for path in systems:
        result = json.loads(path.read_text(encoding="utf-8"))
        sections.append(system_section(result, Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix()))
    return "\n\n".join([lead, *sections] if found else sections)


def replaced(text: str, block: str, name: str) -> str:
    """`text` with `block` between its markers.

    Raises:
        AnifastError: the markers are not there, once each and in order.
    """
    from anifast.errors import AnifastError

    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise AnifastError(f"{name} needs one line {BEGIN} and, below it, one line {END}; the tables go between them")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + block + "\n" + text[text.index(END) :]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks/report.py", description="Tables of the measured results.")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--rows", action="store_true", help="also print every row, and the memory taken")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="put the tables into FILE")
    action.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        nargs="?",
        const=ROOT / "README.md",
        help="exit with 1 if FILE (default: the README) has other tables",
    )
    chosen = parser.parse_args(arguments)
    _use_repository()
    from anifast.errors import AnifastError
    from anifast.files import write_text

    try:
        target: Path | None = chosen.write or chosen.check
        if target is None:
            print(document(chosen.results, Path.cwd(), rows=chosen.rows))
            return 0
        try:
            text = target.read_text(encoding="utf-8")
        except OSError as error:
            raise AnifastError(f"{target}: {error.strerror}; it must exist and hold the line {BEGIN}") from error
        made = replaced(text, document(chosen.results, target.parent, rows=chosen.rows), str(target))
        if made == text:
            print(f"{target}: up to date")
            return 0
        if chosen.check:
            print(f"{target}: not the tables of {chosen.results}; run benchmarks/report.py --write {target}")
            return 1
        write_text(target, made)
        print(f"{target}: written")
        return 0
    except AnifastError as error:
        print(f"benchmarks/report.py: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The measurement that the project quotes: `python benchmarks/run.py [--op OP] [--device cpu|cuda] [--quick]`.

Every variant is first checked against the reference; then all variants of a case are timed in turn in this one
process (benchmarks/timing.py), beside the cloning of what the op must write. A whole run writes
benchmarks/results/<device>/<op>.json, which benchmarks/report.py makes tables of; a part of it is only printed, unless
--out says where it shall go.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.bench import Aim, Case, OpBench, Prepared
    from benchmarks.timing import Clock, MatrixProduct, Timing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def use_repository() -> None:
    """Make `benchmarks` importable; an installed anifast goes before the source tree."""
    if "benchmarks" in sys.modules:
        return
    here = str(ROOT / "benchmarks")
    sys.path[:] = [path for path in sys.path if path != here]
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from benchmarks.results import WORKS

    made = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--op", action="append", metavar="OP", help="an op to measure, may be repeated; default: all")
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")
    made.add_argument("--quick", action="store_true", help="only the few cases that stand for the rest, briefly")
    made.add_argument("--cases", action="append", metavar="PATTERN", help="only cases like gnr.*, may be repeated")
    made.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS), help="only these passes")
    made.add_argument("--skip", nargs="+", default=[], metavar="VARIANT", help="leave variants out, such as compile")
    made.add_argument("--seconds", type=float, help="time for each case and pass; default 0.5, with --quick 0.3")
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for <device>/<op>.json; default for a whole run: "
        "benchmarks/results, for a part of one: none is written",
    )
    return made


def measure_case(
    bench: OpBench,
    case: Case,
    device: str,
    clock: Clock,
    works: list[str],
    skip: list[str],
    seconds: float,
    product: MatrixProduct | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one case, and why variants have no times in any."""
    from benchmarks.bench import Prepared

    prepared = Prepared(bench, case, device)
    rows, unavailable = [], {}
    for work in works:
        row, missing = _measure(prepared, work, clock, skip, seconds)
        if product is not None:
            row["operations"] = bench.operations(case, work)
            row["us"]["matrix"] = _microseconds(product.time_of(row["operations"]))
        rows.append(row)
        unavailable.update(missing)
    return rows, unavailable


def _measure(
    prepared: Prepared, work: str, clock: Clock, skip: list[str], seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    import torch

    from benchmarks.timing import interleave, memory

    bench, case = prepared.bench, prepared.case
    refused: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    calls = {}
    for name, variant in prepared.variants.items():
        if name in skip:
            continue
        if variant.function is None or variant.why_missing(work):
            unavailable[name if "" in variant.missing else f"{name} {work}"] = variant.why_missing(work) or ""
            continue
        try:
            prepared.check(work, name)
        except Exception as error:  # told in the row, at the end, and by the exit status: the other rows still count
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            calls[name] = prepared.call(work, name)
    prepared.forget_truth()
    kept = {name: prepared.kept(name) for name in calls} if work == "forward_backward" else {}
    calls["clone"], copied = prepared.bound(work)
    calls.update(prepared.bounds(work))
    row: dict[str, Any] = {
        "case": case.id,
        "form": case.form,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "output": prepared.grad.nbytes,
        "work": work,
        "bytes": bench.traffic(case, work),
        "copied": copied,
    }
    with torch.set_grad_enabled(work != "forward"):
        times = interleave(calls, clock, seconds=seconds)
        if case.quick and work != "double_backward":
            row["memory"] = {name: list(memory(call, prepared.device)) for name, call in calls.items()}
    if kept:
        row["kept"] = kept
    row["us"] = {name: _microseconds(timing) for name, timing in times.items()}
    if refused:
        row["refused"] = refused
    return row, unavailable


def _microseconds(timing: Timing) -> list[float]:
    return [*(float(f"{value * 1e6:.5g}") for value in (timing.p25, timing.p75, timing.minimum)), timing.count]


def show(row: dict[str, Any], variants: dict[str, str]) -> str:
    """A row as one line: the time of ours, its rates, the shares of its bounds, and the rivals' times over ours."""
    from benchmarks.results import ratio

    size = f"{row['operations'] / 1e9:8.2f} GFLOP" if "operations" in row else f"{row['bytes'] / 2**20:8.2f} MiB"
    parts = [f"{row['case']:<32} {row['work'].replace('_', ' '):<16} {size}"]
    for name in (name for name, role in variants.items() if role == "ours" and name in row["us"]):
        time_us, late = row["us"][name][:2]
        text = (
            f"{name} {time_us:9.1f} us (+{(late / time_us - 1) * 100:3.0f} %) {row['bytes'] / time_us / 1e3:6.1f} GB/s"
        )
        if "operations" in row:
            text += f" {row['operations'] / time_us / 1e3:6.1f} GFLOP/s"
        for bound in (bound for bound, role in variants.items() if role == "bound" and bound in row["us"]):
            text += f" {(ratio(row, name, bound) or 0.0) * 100:4.0f} % of {bound}"
        for rival in (rival for rival, role in variants.items() if role in ("strategy", "rival")):
            times = ratio(row, name, rival)
            text += f"  {rival} {times:.2f}x" if times else ""
        parts.append(text)
    parts += [f"{name} REFUSED: {reason}" for name, reason in row.get("refused", {}).items()]
    return " | ".join(parts)


def reached(aims: tuple[Aim, ...], device: str, rows: list[dict[str, Any]], ours: list[str]) -> list[dict[str, Any]]:
    """The aims for this kind of device with what was measured."""
    from benchmarks.results import geomean, least, mean_ratio

    found = []
    for aim in aims:

        def counts(row: dict[str, Any], aim: Aim = aim) -> bool:
            kind = (row["dtype"], row["layout"]) == (aim.dtype, aim.layout) and row["work"] in aim.works
            named = not aim.cases or any(row["case"].split("-")[0] == name for name in aim.cases)
            return kind and named and (not aim.forms or row["form"] in aim.forms)

        if aim.device == device:
            mean = least if aim.each else geomean
            measured = {name: [*mean_ratio(rows, name, aim.against, counts, mean)[:2]] for name in ours}
            found.append(
                {
                    "title": aim.title,
                    "against": aim.against,
                    "aim": aim.at_least,
                    "percent": aim.percent,
                    "each": aim.each,
                    "measured": {
                        name: [None if value is None else round(value, 3) for value in values]
                        for name, values in measured.items()
                    },
                }
            )
    return found


def measure_op(
    bench: OpBench,
    device: str,
    *,
    cases: list[Case] | None = None,
    works: list[str] | None = None,
    skip: list[str] | None = None,
    seconds: float = 0.5,
    selection: str = "all",
) -> dict[str, Any]:
    """Measure an op and return its results (see benchmarks/results.py), printing a line a row."""
    from benchmarks import environment, results
    from benchmarks.bench import DTYPES
    from benchmarks.timing import MatrixProduct, clock_for, steady_allocator

    described = environment.describe(device)
    described["allocator"] = "limits fixed" if steady_allocator() else "as the system has it"
    clock = clock_for(device)
    cases = bench.cases(device) if cases is None else cases
    variants = {**bench.roles, **dict.fromkeys(("clone", *bench.limits), "bound")}
    products = {}
    if "matrix" in bench.limits:
        for dtype in dict.fromkeys(case.dtype for case in cases):
            products[dtype] = MatrixProduct.measure(DTYPES[dtype], device, clock, seconds)
        rates = {dtype: float(f"{product.rate / 1e9:.5g}") for dtype, product in products.items()}
        described["matrix product, GFLOP/s"] = rates
    rows: list[dict[str, Any]] = []
    unavailable: dict[str, str] = {name: "left out" for name in skip or []}
    start = time.monotonic()
    for number, case in enumerate(cases, 1):
        new, missing = measure_case(
            bench, case, device, clock, works or list(results.WORKS), skip or [], seconds, products.get(case.dtype)
        )
        rows += new
        unavailable.update(missing)
        for row in new:
            print(f"[{number}/{len(cases)}, {time.monotonic() - start:.0f} s] {show(row, variants)}", flush=True)
    result = {
        "format": results.FORMAT,
        "op": bench.name,
        "device": device,
        "folder": environment.slug(device),
        "selection": selection,
        "environment": described,
        "seconds": seconds,
        "forms": dict(bench.forms),
        "variants": variants,
        "unavailable": unavailable,
        "statistics": list(results.STATISTICS),
        "rows": rows,
        "aims": [],
    }
    result["aims"] = reached(bench.aims, device, rows, results.named(result, "ours"))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    use_repository()
    from anifast.errors import AnifastError

    try:
        return measure(arguments, RESULTS)
    except AnifastError as error:
        print(f"benchmarks/run.py: error: {error}", file=sys.stderr)
        return 1


def measure(arguments: list[str] | None, results: Path | None, leave_out: Sequence[str] = ()) -> int:
    """Run the command line, with another place for whole runs; returns the exit status.

    Args:
        arguments: of the command line; None: those of the process.
        results: where a whole run writes if --out does not say; None: nowhere.
        leave_out: variants that are not timed, where an op has them.

    Raises:
        AnifastError: an argument names what is not there, or a result cannot be written.
    """
    line = parser()
    chosen = line.parse_args(arguments)
    if chosen.seconds is not None and not chosen.seconds > 0:
        line.error(f"--seconds must be above 0, got {chosen.seconds}")
    # OpenMP reads it when torch is loaded. Sleeping threads make the same call take anything from 1x to 6x.
    late = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler behind `memory` tells of itself
    return _run(chosen, late, results, leave_out)


def _run(chosen: argparse.Namespace, late: bool, folder: Path | None, leave_out: Sequence[str]) -> int:
    import torch

    from anifast.errors import AnifastError, BackendError
    from benchmarks import environment, report, results
    from benchmarks.bench import all_benches

    if late:
        print(
            "warning: torch was loaded before OMP_WAIT_POLICY=ACTIVE could be set; CPU times are unsteady",
            file=sys.stderr,
        )
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no GPU here; measure with --device cpu")
    benches = all_benches()
    unknown = sorted(set(chosen.op or []) - set(benches))
    if unknown:
        raise AnifastError(f"--op {unknown[0]}: there is no such benchmark; there are {', '.join(benches)}")
    wanted = {name: benches[name] for name in chosen.op or benches}
    variants = {variant: None for bench in wanted.values() for variant in bench.roles}
    unknown = sorted(set(chosen.skip) - set(variants))
    if unknown:
        raise AnifastError(f"--skip {unknown[0]}: there is no such variant; there are {', '.join(variants)}")
    chosen.skip = [*chosen.skip, *(name for name in leave_out if name in variants and name not in chosen.skip)]
    patterns = chosen.cases or ["*"]
    cases = {
        name: [
            case
            for case in bench.cases(device)
            if (case.quick or not chosen.quick) and any(fnmatchcase(case.id, pattern) for pattern in patterns)
        ]
        for name, bench in wanted.items()
    }
    if not any(cases.values()):
        example = next(iter(wanted.values())).cases(device)[0].id
        raise AnifastError(f"--cases {' '.join(patterns)}: no case is called so; one is {example}")
    parts = [
        *(["quick"] if chosen.quick else []),
        *(f"cases {pattern}" for pattern in chosen.cases or []),
        *([" ".join(chosen.works)] if set(chosen.works) != set(results.WORKS) else []),
        *(f"without {name}" for name in chosen.skip),
    ]
    seconds = chosen.seconds or (0.3 if chosen.quick else 0.5)
    out = chosen.out or (None if parts else folder)
    failed = False
    print(report.environment_line(environment.describe(device)))
    for name, bench in wanted.items():
        if not cases[name]:
            continue
        result = measure_op(
            bench,
            device,
            cases=cases[name],
            works=chosen.works,
            skip=chosen.skip,
            seconds=seconds,
            selection=", ".join(parts) or "all",
        )
        print("\n" + report.section(result) + "\n")
        refused = results.refusals(result)
        for line in refused:
            print(f"REFUSED {line}", file=sys.stderr)
        failed = failed or bool(refused)
        why = "a part of the cases, and no --out" if parts else "no --out"
        print(f"written: {results.save(result, out)}" if out else f"not written: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""pytest-benchmark over the descriptions in benchmarks/ops: `pytest benchmarks/ops [--quick] [-k ...]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Read when OpenMP starts: before anything here imports torch. Sleeping threads make short calls slow and erratic.
os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
_ROOT = str(Path(__file__).resolve().parents[1])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the few cases that stand for the rest")
    parser.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu", help="where to run the benchmarks")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


class Row:
    """One variant doing one work on one case."""

    # inputs and compiled code of the case in use: the rows of a case follow each other
    _prepared: Any = None

    def __init__(self, bench: Any, case: Any, work: str, variant: str, device: str) -> None:
        self.bench, self.case, self.work, self.variant, self.device = bench, case, work, variant, device

    def measure(self, benchmark: Any) -> None:
        """Check the variant and give its call to pytest-benchmark, in one group with its rivals."""
        import torch

        from benchmarks.bench import Prepared
        from benchmarks.timing import steady_allocator

        steady_allocator()
        if Row._prepared is None or Row._prepared.case is not self.case:
            Row._prepared = None
            Row._prepared = Prepared(self.bench, self.case, self.device)
        prepared = Row._prepared
        if self.variant == "clone":
            call, moved = prepared.bound(self.work)
        elif self.variant in self.bench.limits:
            call, moved = prepared.bounds(self.work)[self.variant], self.bench.traffic(self.case, self.work)
        else:
            reason = prepared.variants[self.variant].why_missing(self.work)
            if reason:
                pytest.skip(reason)
            prepared.check(self.work, self.variant)
            call, moved = prepared.call(self.work, self.variant), self.bench.traffic(self.case, self.work)
        prepared.forget_truth()

        def complete() -> Any:
            result = call()
            if self.device == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.group = f"{self.bench.name} {self.case.id} {self.work}"
        benchmark.extra_info["bytes"] = moved
        with torch.set_grad_enabled(self.work != "forward"):
            complete()
            benchmark(complete)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    bench = getattr(metafunc.module, "BENCH", None)
    if bench is None or "row" not in metafunc.fixturenames:
        return
    from benchmarks.results import WORKS

    device, quick = metafunc.config.getoption("--bench-device"), metafunc.config.getoption("--quick")
    rows = [
        Row(bench, case, work, variant, device)
        for case in bench.cases(device)
        if case.quick or not quick
        for work in WORKS
        for variant in (*bench.roles, "clone", *bench.limits)
        if variant != "matrix"
    ]
    metafunc.parametrize("row", rows, ids=[f"{row.case.id}-{row.work}-{row.variant}" for row in rows])

"""Fixtures of the tests that run in Triton's interpreter, and the way to the shapes in benchmarks/."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from op_checks import nan_filled_allocations

# last, so that an installed anifast goes before the source tree
sys.path.append(str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that the interpreter ran; fresh memory is NaN."""
    from triton.runtime import interpreter

    names: list[str] = []
    run = interpreter.GridExecutor.__call__

    def spy(self: object, *arguments: object, **options: object) -> object:
        names.append(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", spy)
    with nan_filled_allocations():
        yield names

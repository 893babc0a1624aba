"""Fixtures of the tests that run in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from op_checks import nan_filled_allocations


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

"""Fixtures of the drop-in tests: a backend to run on, and modules that leave no trace in the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import anifast
from anifast import _native

needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with anifast.use_backend(request.param):
        yield request.param


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test installs and imports is forgotten behind it."""
    modules = dict(sys.modules)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - set(modules):
        if name.split(".")[0] in ("op", "torch_utils", "models"):
            del sys.modules[name]

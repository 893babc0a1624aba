"""GPU tests skip with a reason where there is no GPU or nothing to run on it; under `make gpu` they must not.

`make gpu` sets ANIFAST_GPU_TARGET to the folder it installed into: then anifast must come from there, and a backend
that cannot run fails the tests instead of skipping them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from op_checks import nan_filled_allocations

import anifast.ops
from anifast import backends

sys.path.insert(0, str(Path(__file__).parent))  # gpu_checks

TARGET = os.environ.get("ANIFAST_GPU_TARGET")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it


def pytest_sessionstart() -> None:
    installed = Path(anifast.__file__).resolve()
    if TARGET and not installed.is_relative_to(Path(TARGET).resolve()):
        raise pytest.UsageError(f"anifast comes from {installed}, expected below ANIFAST_GPU_TARGET={TARGET}")


@pytest.fixture(params=["native", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each compiled backend of the op that the module names as OP, or the test as its parameter `op`."""
    op = request.getfixturevalue("op") if "op" in request.fixturenames else request.module.OP
    reason = backends.why_not(op, request.param, "cuda")
    if reason:
        (pytest.fail if TARGET else pytest.skip)(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    with nan_filled_allocations():
        yield

"""Fixtures of all tests: where shared data and golden cases are, and a quiet, reproducible torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shared_data import need_shared

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; skips where it is missing."""
    return need_shared()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """5 + 5 small training pictures and 2 + 2 to test with, and a cache of decoded pictures of their own."""
    from tiny_cyclegan import data_folder, own_cache

    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        yield data_folder(root / "faces")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """load(name) -> Case of ../shared/golden: what the authors' own code computes; skips where it is missing."""
    path = need_shared("golden", "golden.py")
    spec = importlib.util.spec_from_file_location("anifast_golden", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["anifast_golden"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.load  # type: ignore[no-any-return]

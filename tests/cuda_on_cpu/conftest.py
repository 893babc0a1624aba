import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from op_checks import nan_filled_allocations

from anifast import backends

sys.path.insert(0, str(Path(__file__).parent))

from playing import Player, Unavailable, build


@pytest.fixture(scope="session")
def library() -> Player:
    """The CUDA code as a library that the CPU plays."""
    try:
        path = build(sanitize=os.environ.get("ANIFAST_PLAY_SANITIZED") == "1")
    except Unavailable as problem:
        pytest.skip(str(problem))
    torch.ops.load_library(path)
    return Player(path)


@pytest.fixture(scope="session")
def played_ops(library: Player) -> object:
    """The dispatcher ops of bias_lrelu whose implementation is the played CUDA code."""
    return importlib.import_module("anifast.ops.bias_lrelu")._Ops("_played")


@pytest.fixture
def played(library: Player, played_ops: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    """The played CUDA code as backend "native" of CPU tensors; fresh memory is NaN."""
    monkeypatch.setattr(importlib.import_module("anifast.ops.bias_lrelu"), "_NATIVE", played_ops)
    monkeypatch.setitem(backends._reasons, ("bias_lrelu", "native", "cpu"), "")
    library.set()
    with nan_filled_allocations():
        yield library
    library.set()

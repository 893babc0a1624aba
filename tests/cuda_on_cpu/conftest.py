import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import nan_filled_allocations

from anifast import backends

sys.path.insert(0, str(Path(__file__).parent))

from compiling import Unavailable
from playing import Player, build


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
def played_ops(library: Player) -> dict[str, Any]:
    """By the names of ops, the dispatcher ops whose implementation is the played CUDA code."""
    bias_lrelu = importlib.import_module("anifast.ops.bias_lrelu")._Ops("_played")
    upfirdn2d = importlib.import_module("anifast.ops.upfirdn2d")._Op("_played", bias_lrelu)
    importlib.import_module("anifast.ops.lpips_layer")._define("_played")
    return {"bias_lrelu": bias_lrelu, "upfirdn2d": upfirdn2d}


@pytest.fixture
def played(library: Player, played_ops: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    """The played CUDA code as backend "native" of CPU tensors; fresh memory is NaN."""
    for name, ops in played_ops.items():
        monkeypatch.setattr(importlib.import_module(f"anifast.ops.{name}"), "_NATIVE", ops)
        monkeypatch.setitem(backends._reasons, (name, "native", "cpu"), "")
    monkeypatch.setattr(torch.ops.anifast, "lpips_layer", torch.ops.anifast.lpips_layer_played)
    monkeypatch.setitem(backends._reasons, ("lpips_layer", "native", "cpu"), "")
    library.set()
    with nan_filled_allocations():
        yield library
    library.set()

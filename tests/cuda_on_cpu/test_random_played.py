"""The played CUDA code against the reference over random arguments."""

from __future__ import annotations

from typing import Any

import pytest
import random_arguments
import torch
from hypothesis import given
from playing import Player
from random_arguments import CASES, FLOATS, examples

from anifast import backends


@pytest.mark.parametrize("op", [op for op in CASES if backends.is_written(op, "native", "cuda")])
def test_random_arguments(played: Player, op: str) -> None:
    before = played.launches

    @examples(100)
    @given(CASES[op](largest=20), FLOATS)
    def run(case: Any, dtype: torch.dtype) -> None:
        random_arguments.check(op, case, dtype, "native")

    run()
    assert played.launches > before + 100

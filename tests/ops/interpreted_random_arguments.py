"""Triton kernels in the interpreter over random arguments; test_random_arguments.py runs this file."""

from __future__ import annotations

from typing import Any

import pytest
import random_arguments
import torch
from hypothesis import given
from random_arguments import CASES, SHORT_FLOATS, examples


@pytest.mark.parametrize("op", CASES)
def test_random_arguments(launched: list[str], op: str) -> None:
    @examples(20, slow=True)
    @given(CASES[op](largest=8), SHORT_FLOATS)
    def run(case: Any, dtype: torch.dtype) -> None:
        random_arguments.check(op, case, dtype, "triton")

    run()
    assert len(launched) > 20

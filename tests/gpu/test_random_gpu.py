"""CUDA and Triton kernels on a GPU against the reference over random arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
import random_arguments
from hypothesis import given
from random_arguments import CASES, FLOATS, SHORT_FLOATS, examples

from anifast import backends

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)


WRITTEN = [(op, name) for op in CASES for name in ("native", "triton") if backends.is_written(op, name, "cuda")]


@pytest.mark.parametrize(("op", "backend"), WRITTEN, indirect=["backend"])
def test_random_arguments(op: str, backend: str) -> None:
    @examples(150)
    @given(CASES[op](), FLOATS if backend == "native" else SHORT_FLOATS)
    def run(case: Any, dtype: torch.dtype) -> None:
        random_arguments.check(op, case, dtype, backend, "cuda")

    run()

"""C++ and Triton backends against the reference over random arguments: 2400 valid and 2100 invalid calls of C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
import random_arguments
from hypothesis import given
from hypothesis import strategies as st
from op_checks import CalledOps, nan_filled_allocations
from random_arguments import CASES, FAULTS, FLOATS, examples
from triton_checks import interpret, needs_install, needs_triton

from anifast import _native

needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


@needs_native
@examples(600)
@given(random_arguments.upfirdn2d_case(), FLOATS)
def test_random_calls_of_upfirdn2d(case: Any, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        random_arguments.check("upfirdn2d", case, dtype, "native")
    assert "upfirdn2d" in called.names


@needs_native
@examples(300)
@given(random_arguments.bias_lrelu_case(), FLOATS)
def test_random_calls_of_bias_lrelu(case: Any, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        random_arguments.check("bias_lrelu", case, dtype, "native")
    assert "bias_lrelu" in called.names


@needs_native
@pytest.mark.parametrize("strategy", ["gemm", "winograd", "library"])
def test_random_calls_of_modulated_conv2d(strategy: str) -> None:
    @examples(100)
    @given(random_arguments.modulated_conv2d_case(), FLOATS)
    def run(case: Any, dtype: torch.dtype) -> None:
        with nan_filled_allocations():
            random_arguments.check_strategy(case, dtype, strategy)

    run()


@needs_native
@pytest.mark.parametrize("op", ["domain_norm", "gated_residual", "gram", "lpips_layer"])
def test_random_calls_of(op: str) -> None:
    @examples(300)
    @given(CASES[op](), FLOATS)
    def run(case: Any, dtype: torch.dtype) -> None:
        with CalledOps() as called, nan_filled_allocations():
            random_arguments.check(op, case, dtype, "native")
        assert op in called.names

    run()


EVERY = CASES | {"modulated_conv2d": random_arguments.modulated_conv2d_case}


@needs_native
@pytest.mark.parametrize("op", EVERY)
def test_faults(op: str) -> None:
    @examples(300)
    @given(EVERY[op](), FLOATS, st.sampled_from(sorted(FAULTS[op])))
    def run(case: Any, dtype: torch.dtype, fault: str) -> None:
        random_arguments.check_refused(op, case, dtype, fault, "native")

    run()


@pytest.mark.heavy
@needs_triton
@needs_install
def test_triton_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_random_arguments.py"), tmp_path, at_least=1)

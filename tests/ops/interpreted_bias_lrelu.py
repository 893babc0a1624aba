"""The Triton kernels of bias_lrelu in Triton's interpreter; test_bias_lrelu_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from bias_lrelu_cases import CASE, CASES, Case, call, check, make, results

import anifast

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::3] for dtype in (torch.float16, torch.bfloat16)],
]
# What each kernel must have been launched for; a backend that fell back elsewhere launches none.
KERNELS = {"bias_lrelu_kernel", "bias_lrelu_backward_kernel", "bias_lrelu_sums_kernel"}


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(launched: list[str], case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "triton")
    if 0 in case.shape:
        assert not launched
    elif case.bias:
        assert set(launched) == KERNELS


def test_the_mask_is_that_of_the_contract(launched: list[str]) -> None:
    from anifast.kernels import bias_lrelu as kernels

    x = torch.randn(2, 3, 5, 5)
    out, mask = kernels.forward(x, None, None, None, None, 1, torch.contiguous_format, 0.2, 2.0, 0.9, 1.0, True)
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (mask.unsqueeze(-1) >> shifts & 1).flatten(2)
    assert mask.shape == (2, 6, 4) and bits[..., 25:].sum() == 0
    value = torch.where(x > 0, x, 0.2 * x) * 2.0
    assert torch.equal(bits[0, :, :25].bool(), (x > 0).reshape(6, 25))
    assert torch.equal(bits[1, :, :25].bool(), (value.abs() <= 0.9).reshape(6, 25))


def test_sums_are_the_same_bits_each_time() -> None:
    case = replace(CASE["even_full"], shape=(4, 9, 24, 16))
    tensors = make(case, torch.float32)
    first, second = results(case, tensors, "triton"), results(case, tensors, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    case = CASE["even"]
    tensors = make(case, torch.float32)

    def function(x: torch.Tensor) -> torch.Tensor:
        return call(case, tensors | {"x": x}, None) + 1.0

    with anifast.use_backend("triton"):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        out = compiled(tensors["x"])
        gx = torch.autograd.grad(out.sum(), tensors["x"])[0]
    expected = call(case, tensors, "reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected.sum(), tensors["x"])[0])
    assert {"bias_lrelu_kernel", "bias_lrelu_backward_kernel"} <= set(launched)


@pytest.mark.parametrize("name", ["odd_noise", "nhwc_odd", "odd_full"])
def test_opcheck(name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    ops = importlib.import_module("anifast.ops.bias_lrelu")._TRITON
    residual = tensors.get("residual")
    operands = (tensors.get("bias"), tensors["noise"], tensors.get("noise_strength"))
    arguments = (tensors["x"], *operands, residual, 1, case.slope, case.gain, case.clamp, case.residual_gain)
    torch.library.opcheck(ops.forward, (*arguments, True))
    _, mask = ops.forward(*arguments, True)
    rest = (1, case.channels_last, case.slope, case.gain)
    torch.library.opcheck(ops.backward, (tensors["grad"], mask, tensors["noise"], *rest, True, True))
    torch.library.opcheck(ops.masked, (tensors["x"], mask, *operands, *rest))

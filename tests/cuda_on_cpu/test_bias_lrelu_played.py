"""The CUDA code of bias_lrelu, host and device side, played on the CPU and held to the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bias_lrelu_cases import CASE, CASES, Case, call, check, make, results
from playing import Player

HALVES = ["odd_full", "even_full", "long_even_rows", "nhwc_full", "nhwc_odd", "matrix", "float32_parameters_nhwc"]
TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(CASE[name], dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)],
    *[(CASE[name], torch.float64) for name in ("odd_full", "even_full", "nhwc_full")],
]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(played: Player, case: Case, dtype: torch.dtype) -> None:
    before = played.launches
    check(case, dtype, "native")
    empty = 0 in case.shape
    assert played.launches > before or empty, "the played kernels were not reached"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["odd_full", "long_even_rows", "nhwc_full", "nhwc_odd", "middle_dim"])
def test_wide_indices_give_the_same_bits(played: Player, name: str, dtype: torch.dtype) -> None:
    tensors = make(CASE[name], dtype)
    narrow = results(CASE[name], tensors, "native")
    played.set(wide_index_from=0)
    wide = results(CASE[name], tensors, "native")
    assert all(torch.equal(narrow[key], wide[key]) for key in narrow)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["odd_full", "long_even_rows", "nhwc_full", "many_channels", "matrix_odd"])
def test_the_order_of_threads_and_blocks_changes_no_bit(played: Player, name: str, order: int) -> None:
    tensors = make(CASE[name], torch.float32)
    ascending = results(CASE[name], tensors, "native")
    played.set(order=order)
    other = results(CASE[name], tensors, "native")
    assert all(torch.equal(ascending[key], other[key]) for key in ascending)


@pytest.mark.parametrize("processors", [1, 3, 132])
@pytest.mark.parametrize("name", ["long_rows", "long_even_rows", "nhwc_full", "even"])
def test_every_cut_of_the_work_is_right(played: Player, name: str, processors: int) -> None:
    played.set(processors=processors)
    check(replace(CASE[name], shape=(17, *CASE[name].shape[1:])), torch.float32, "native")


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("name", ["even_full", "nhwc_full"])
def test_memory_that_is_not_aligned(played: Player, name: str, offset: int) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    expected = results(case, tensors, "native")
    for key in ("x", "noise", "residual", "grad"):
        value = tensors[key].detach()
        storage = torch.empty(value.numel() + offset, dtype=value.dtype)
        moved = storage[offset:].as_strided(value.shape, value.stride(), offset)
        tensors[key] = moved.copy_(value).requires_grad_()
    got = results(case, tensors, "native")
    assert all(torch.allclose(got[key], expected[key], rtol=1e-6, atol=1e-6) for key in expected)


GRADIENTS = [
    "odd_full",
    "half_a_byte",
    "nhwc_odd",
    "matrix_odd",
    "linear",
    "negative_gain",
    "no_strength",
    "middle_dim",
]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck_and_gradgradcheck(played: Player, name: str) -> None:
    case = replace(CASE[name], shape=tuple(min(n, 3) for n in CASE[name].shape), clamp=CASE[name].clamp and 3.0)
    tensors = make(case, torch.float64)
    del tensors["grad"]
    if case.clamp is not None:
        assert call(case, tensors, "reference").abs().max() > 1.0

    def function(*values: torch.Tensor) -> torch.Tensor:
        return call(case, dict(zip(tensors, values, strict=True)), "native")

    played.set(processors=1)
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["even_full", "nhwc_odd", "odd"])
def test_nan_and_inf_pass_as_in_the_reference(played: Player, name: str, value: float) -> None:
    tensors = make(CASE[name], torch.float32)
    with torch.no_grad():
        tensors["x"][:, 1] = value
        tensors["grad"][:, 1:, 1] = value
    got, expected = results(CASE[name], tensors, "native"), results(CASE[name], tensors, "reference")
    for key in ("out", "d x", "d bias"):
        torch.testing.assert_close(got[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


def test_the_error_of_a_launch_is_raised_where_it_happens(played: Player) -> None:
    tensors = make(CASE["odd_full"], torch.float32)
    out = call(CASE["odd_full"], tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="bias_lrelu: the test asked for a failure"):
        call(CASE["odd_full"], tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="bias_lrelu: the test asked for a failure"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(4)}, "bias has 4 elements, expected 3"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, "bias has dtype Double, expected Float"),
        ({"noise": torch.zeros(2, 1, 4, 5)}, "noise of shape"),
        ({"noise": torch.zeros(2, 1, 4, 4).half()}, "noise has dtype Half"),
        ({"residual": torch.zeros(2, 3, 4, 5)}, "residual has 120 elements, expected 96"),
        ({"dim": 4}, "dim must lie in"),
    ],
    ids=["bias size", "bias type", "noise size", "noise type", "residual size", "dim"],
)
def test_host_code_refuses_wrong_arguments(played_ops: dict[str, Any], change: dict[str, object], message: str) -> None:
    arguments = dict(x=torch.zeros(2, 3, 4, 4), bias=None, noise=None, noise_strength=None, residual=None, dim=1)
    arguments |= dict(slope=0.2, gain=1.0, clamp=None, residual_gain=1.0, save_mask=False) | change
    with pytest.raises(RuntimeError, match=f"bias_lrelu: {message}"):
        played_ops["bias_lrelu"].forward(*arguments.values())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "the mask is missing, and slope 0.2 needs it"),
        (
            torch.zeros(1, 6, 3, dtype=torch.uint8),
            r"mask must be uint8 \[1 or 2, 6, 2\], got Byte of shape \[1, 6, 3\]",
        ),
        (torch.zeros(1, 6, 2), "mask must be uint8 .* got Float"),
    ],
    ids=["missing", "size", "type"],
)
def test_host_code_refuses_a_wrong_mask(played_ops: dict[str, Any], mask: torch.Tensor | None, message: str) -> None:
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match=f"bias_lrelu: {message}"):
        played_ops["bias_lrelu"].backward(x, mask, None, 1, False, 0.2, 1.0, True, False)
    with pytest.raises(RuntimeError, match=f"bias_lrelu: {message}"):
        played_ops["bias_lrelu"].masked(x, mask, None, None, None, 1, False, 0.2, 1.0)

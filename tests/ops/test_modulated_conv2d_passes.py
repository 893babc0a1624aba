"""The two gradient passes of modulated_conv2d: the native CPU kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from modulated_conv2d_passes_cases import (
    CASE,
    CASES,
    Case,
    arguments,
    check,
    check_not_finite,
    differentiated,
    make,
    moved,
    results,
)
from op_checks import nan_filled_allocations
from torch import Tensor

from anifast import _native

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
pytestmark = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_plain_pytorch(case: Case, dtype: torch.dtype) -> None:
    with nan_filled_allocations():
        found = check(case, dtype, "native")
    assert not any(value.isnan().any() for value in found.values())


@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case.shape], ids=str)
def test_they_are_the_gradients_of_what_they_stand_for(case: Case) -> None:
    tensors = make(case, torch.float64)
    got, expected = results(case, tensors, "native"), differentiated(case, tensors)
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_native_sums_of_many_values_stay_exact(channels_last: bool, dtype: torch.dtype) -> None:
    case = Case("many", (2, 4, 300, 200), channels_last=channels_last, clamp=0.75)
    check(case, dtype, "native")


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(channels_last: bool) -> None:
    case = Case("large", (2, 24, 61, 163), channels_last=channels_last)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(case, make(case, torch.float32), "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [0.7, 0.3, 1.1, 256.0])
def test_what_the_limit_stopped_passes_nothing_however_the_type_rounds_it(dtype: torch.dtype, clamp: float) -> None:
    out = torch.tensor([clamp, -clamp, 0.5 * clamp, -0.5 * clamp], dtype=dtype).view(1, 1, 2, 2)
    op: Any = torch.ops.anifast.modulated_conv2d_epilogue_grad
    for value in (1.0, math.nan, math.inf):
        gc = op(torch.full_like(out, value), out, *[None] * 4, 0.5, 1.0, clamp, False, False, False)[0]
        torch.testing.assert_close(gc.flatten().tolist(), [0.0, 0.0, value, 0.5 * value], equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd", "odd_clamped", "nhwc_even", "nhwc_clamped"])
def test_native_passes_nan_and_inf_as_autograd_does(name: str, value: float) -> None:
    check_not_finite(CASE[name], value, "native")


@pytest.mark.parametrize("name", ["even", "nhwc_even"])
def test_native_takes_odd_strides_and_addresses(name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    expected = results(case, tensors, "native")
    form = torch.contiguous_format if case.channels_last else torch.channels_last
    other = {name: tensors[name].contiguous(memory_format=form) for name in ("out", "x")}
    wider = {name: torch.cat([tensors[name]] * 2, 3)[..., : case.shape[3]] for name in ("grad", "out", "x", "noise")}
    wider |= {"style": tensors["style"].t().contiguous().t(), "bias": tensors["bias"].repeat_interleave(2)[::2]}
    for changed in (other, wider, moved(tensors, 1)):
        got = results(case, tensors | changed, "native")
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["odd_clamped", "nhwc_clamped", "image", "one_pixel", "empty_batch"])
def test_opcheck(name: str) -> None:
    first, second = arguments(CASE[name], make(CASE[name], torch.float32))
    torch.library.opcheck(torch.ops.anifast.modulated_conv2d_epilogue_grad.default, first)
    torch.library.opcheck(torch.ops.anifast.modulated_conv2d_style_grad.default, second)


SMALL = replace(CASE["odd"], shape=(2, 3, 4, 5))
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("rank", {"grad": torch.zeros(2, 3, 4)}, r"grad must have rank 4, got shape \[2, 3, 4\]"),
    ("out", {"out": torch.zeros(2, 3, 5, 4)}, r"out has shape \[2, 3, 5, 4\]"),
    ("out type", {"out": torch.zeros(2, 3, 4, 5).half()}, "out has dtype Half, expected Float"),
    ("scale", {"scale": torch.zeros(3, 2)}, "scale has"),
    ("bias", {"bias": torch.zeros(4)}, "bias has"),
    ("noise", {"noise": torch.zeros(2, 1, 4, 4)}, "noise has"),
    ("noise type", {"noise": torch.zeros(2, 1, 4, 5).half()}, "noise has dtype Half, expected Float"),
    ("strength", {"noise_strength": torch.zeros(2)}, "noise_strength has 2 elements, expected 1"),
    ("no scale", {"scale": None}, "the gradient of scale needs the scale"),
    ("no noise", {"noise": None}, "the gradient of noise_strength needs the noise"),
]


@pytest.mark.parametrize(("changed", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_wrong_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"modulated_conv2d: {message}"):
        first, _ = arguments(SMALL, make(SMALL, torch.float32) | changed)
        torch.ops.anifast.modulated_conv2d_epilogue_grad(*first)


@pytest.mark.parametrize(("slope", "gain"), [(-0.1, 1.0), (0.2, 0.0), (math.nan, 1.0)])
def test_an_activation_that_the_output_does_not_tell_is_refused(slope: float, gain: float) -> None:
    case = replace(SMALL, slope=slope, gain=gain)
    with pytest.raises(RuntimeError, match="the output tells the gradient where slope >= 0 and gain > 0"):
        torch.ops.anifast.modulated_conv2d_epilogue_grad(*arguments(case, make(SMALL, torch.float32))[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"x": torch.zeros(2, 3, 4, 4)}, "x has"), ({"style": torch.zeros(2, 4)}, "style has")],
    ids=["x", "style"],
)
def test_wrong_arguments_of_the_style_are_named(changed: dict[str, Tensor], message: str) -> None:
    tensors = make(SMALL, torch.float32) | changed
    with pytest.raises(RuntimeError, match=f"modulated_conv2d: {message}"):
        torch.ops.anifast.modulated_conv2d_style_grad(tensors["grad"], tensors["x"], tensors["style"])

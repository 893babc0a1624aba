"""The CUDA code of modulated_conv2d's gradient passes, host and device side, played on the CPU."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from modulated_conv2d_passes_cases import (
    CASE,
    CASES,
    Case,
    check,
    check_not_finite,
    differentiated,
    make,
    moved,
    results,
)
from playing import Player
from torch import Tensor

HALVES = ["odd_clamped", "even_clamped", "small_maps", "one_pixel", "nhwc_odd", "nhwc_even", "nhwc_clamped", "no_scale"]
HALVES += ["long_even_planes", "image", "relu_nhwc", "float32_parameters", "float32_parameters_nhwc", "empty_batch"]
TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(CASE[name], dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)],
    *[(CASE[name], torch.float64) for name in ("odd_clamped", "even", "nhwc_even", "nhwc_odd")],
]


@pytest.fixture(scope="module")
def defined(library: Player) -> None:
    """The played ops, whose implementations the library holds."""
    importlib.import_module("anifast.ops.modulated_conv2d")._define_passes("_played")


@pytest.fixture(autouse=True)
def ready(defined: None, played: Player) -> None:
    pass


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_plain_pytorch(played: Player, case: Case, dtype: torch.dtype) -> None:
    before = played.launches
    found = check(case, dtype, "played")
    assert not any(value.isnan().any() for value in found.values())
    assert played.launches > before or 0 in case.shape, "the played kernels were not reached"


@pytest.mark.parametrize("name", ["odd", "even_clamped", "nhwc_clamped", "relu", "relu_nhwc", "no_strength", "image"])
def test_they_are_the_gradients_of_what_they_stand_for(name: str) -> None:
    tensors = make(CASE[name], torch.float64)
    got, expected = results(CASE[name], tensors, "played"), differentiated(CASE[name], tensors)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["odd", "even_clamped", "nhwc_even", "nhwc_odd"])
def test_wide_indices_give_the_same_numbers(played: Player, name: str, dtype: torch.dtype) -> None:
    tensors = make(CASE[name], dtype)
    narrow = results(CASE[name], tensors, "played")
    played.set(wide_index_from=0)
    wide = results(CASE[name], tensors, "played")
    assert all(torch.equal(narrow[key], wide[key]) for key in narrow)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["odd", "long_planes", "small_maps", "nhwc_even", "nhwc_many_pixels"])
def test_the_order_of_threads_and_blocks_changes_no_bit(played: Player, name: str, order: int) -> None:
    tensors = make(CASE[name], torch.float32)
    ascending = results(CASE[name], tensors, "played")
    played.set(order=order)
    other = results(CASE[name], tensors, "played")
    assert all(torch.equal(ascending[key], other[key]) for key in ascending)


@pytest.mark.parametrize("processors", [1, 3, 132])
@pytest.mark.parametrize("name", ["long_planes", "long_even_planes", "nhwc_many_pixels", "small_maps"])
def test_every_cut_of_the_work_is_right(played: Player, name: str, processors: int) -> None:
    played.set(processors=processors)
    check(CASE[name], torch.float32, "played")


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_gpu_has_more_blocks_for_the_same_maps(played: Player, channels_last: bool) -> None:
    case, counts = Case("large", (1, 8, 120, 148), channels_last=channels_last), []
    tensors = make(case, torch.float32)
    for processors in (1, 132):
        played.set(processors=processors)
        before = played.blocks
        results(case, tensors, "played")
        counts.append(played.blocks - before)
    assert counts[0] < counts[1]


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("name", ["even", "nhwc_even"])
def test_memory_that_is_not_aligned(name: str, offset: int) -> None:
    tensors = make(CASE[name], torch.float32)
    expected = results(CASE[name], tensors, "played")
    got = results(CASE[name], moved(tensors, offset), "played")
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)


@pytest.mark.parametrize("name", ["even", "nhwc_even"])
def test_maps_in_another_layout_than_the_gradient(name: str) -> None:
    tensors = make(CASE[name], torch.float32)
    form = torch.contiguous_format if CASE[name].channels_last else torch.channels_last
    other = {key: tensors[key].contiguous(memory_format=form) for key in ("out", "x")}
    expected, got = (results(CASE[name], given, "played") for given in (tensors, tensors | other))
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd", "odd_clamped", "nhwc_even", "nhwc_clamped"])
def test_nan_and_inf_pass_as_autograd_has_it(name: str, value: float) -> None:
    check_not_finite(CASE[name], value, "played")


def test_the_error_of_a_launch_is_raised_where_it_happens(played: Player) -> None:
    tensors = make(CASE["odd"], torch.float32)
    played.fail_next()
    with pytest.raises(RuntimeError, match="modulated_conv2d: the test asked for a failure"):
        results(CASE["odd"], tensors, "played")
    assert results(CASE["odd"], tensors, "played")["d c"].isfinite().all()  # and the next call is sound


SMALL = replace(CASE["odd"], shape=(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grad": torch.zeros(2, 3, 4)}, r"grad must have rank 4, got shape \[2, 3, 4\]"),
        ({"out": torch.zeros(2, 3, 5, 4)}, r"out has shape \[2, 3, 5, 4\], expected \[2, 3, 4, 5\]"),
        ({"out": torch.zeros(2, 3, 4, 5).half()}, "out has dtype Half, expected Float"),
        ({"scale": torch.zeros(3, 3)}, "scale has 9 elements, expected 6"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, "bias has dtype Double, expected Float"),
        ({"noise": torch.zeros(2, 1, 4, 4)}, "noise has 32 elements, expected 40"),
        ({"noise_strength": torch.zeros(2)}, "noise_strength has 2 elements, expected 1"),
        ({"scale": None}, "the gradient of scale needs the scale"),
        ({"noise": None}, "the gradient of noise_strength needs the noise"),
        ({"x": torch.zeros(2, 3, 4, 4)}, r"x has shape \[2, 3, 4, 4\]"),
        ({"style": torch.zeros(2, 4)}, "style has 8 elements, expected 6"),
    ],
    ids=["rank", "out", "type", "scale", "bias", "noise", "strength", "no scale", "no noise", "x", "style"],
)
def test_host_code_refuses_wrong_arguments(changed: dict[str, Tensor], message: str) -> None:
    tensors: dict[str, Any] = make(SMALL, torch.float32) | changed
    given = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(RuntimeError, match=f"modulated_conv2d: {message}"):
        results(SMALL, given, "played")


@pytest.mark.parametrize(("slope", "gain"), [(-0.1, 1.0), (0.2, 0.0)])
def test_an_activation_that_the_output_does_not_tell_is_refused(slope: float, gain: float) -> None:
    case = replace(SMALL, slope=slope, gain=gain)
    with pytest.raises(RuntimeError, match="the output tells the gradient where slope >= 0 and gain > 0"):
        results(case, make(SMALL, torch.float32), "played")

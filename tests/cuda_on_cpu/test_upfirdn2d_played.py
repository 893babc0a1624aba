"""The CUDA code of upfirdn2d, host and device side, played on the CPU and held to the reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from playing import Player
from upfirdn2d_cases import CASE, CASES, Case, call, check, make, results

# What the fast kernels cut in other ways than the shared cases: several tiles along each axis, several maps a block,
# lines of whole vectors and others, odd and negative pads, a mask of less than a warp.
_FULL = dict(scale=True, bias=True, noise="each", act=True, clamp=0.7, add=True)
CUTS = [
    Case("tiles", (1, 2, 37, 261), padding=(1, 2, 2, 2), noise="shared"),
    Case("tiles_full", (1, 1, 40, 267), padding=(1, 1, 1, 1), **_FULL, gain=4.0),
    Case("tiles_whole", (1, 2, 36, 136), padding=(2, 1, 1, 2), **_FULL),
    Case("tiles_down", (1, 1, 80, 270), down=(2, 2), padding=(1, 1, 2, 2), add=True),
    Case("tiles_up", (1, 1, 40, 70), up=(2, 2), padding=(2, 1, 2, 1), gain=4.0, **_FULL),
    Case("up_odd_pads", (2, 2, 9, 12), "outer", up=(2, 2), padding=(1, 2, 3, 0), **_FULL),
    Case("up_odd_and_even", (2, 2, 9, 12), up=(2, 2), padding=(-1, 2, 2, -1), flip=True),
    Case("random_taps", (2, 3, 9, 12), (4, 4), padding=(-2, 5, 1, 0), flip=True),
    Case("random_taps_up", (2, 3, 9, 12), (4, 4), up=(2, 2), padding=(1, 2, 2, 1)),
    Case("random_taps_down", (2, 3, 9, 12), (4, 4), down=(2, 2), padding=(3, 2, -2, 1)),
    Case("many_maps", (3, 20, 4, 8), padding=(2, 1, 2, 1), **_FULL),
    Case("many_maps_odd", (3, 19, 5, 5), padding=(2, 2, 1, 1), **_FULL),
    Case("nhwc_strips", (1, 4, 70, 5), padding=(1, 1, 2, 2), channels_last=True, **_FULL),
    Case("nhwc_down_strips", (2, 8, 75, 6), (4, 4), down=(2, 2), padding=(2, 1, 3, 1), channels_last=True),
    Case("nhwc_up_odd", (2, 12, 9, 5), (4, 4), up=(2, 2), padding=(1, 2, 3, -1), channels_last=True, **_FULL),
    Case("nhwc_up_odd_and_even", (1, 8, 20, 5), (4, 4), up=(2, 2), padding=(2, 2, 1, 1), channels_last=True, flip=True),
]
CASE = CASE | {case.name: case for case in CUTS}
HALVES = [
    "down_odd", "up_odd", "epilogue_full", "epilogue_up", "epilogue_down", "epilogue_float32", "nhwc_down",
    "nhwc_epilogue_full", "nhwc_epilogue_up", "nhwc_epilogue", "long_line", "tiles_whole", "many_maps_odd",
]  # fmt: skip
DOUBLES = ["epilogue_full", "down_outer", "nhwc_epilogue_up", "mixed", "long_line"]
TYPES = [
    *[(case, torch.float32) for case in [*CASES, *CUTS]],
    *[(CASE[name], dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)],
    *[(CASE[name], torch.float64) for name in DOUBLES],
]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(played: Player, case: Case, dtype: torch.dtype) -> None:
    before = played.launches
    check(case, dtype, "native")
    empty = 0 in case.shape
    assert played.launches > before or empty, "the played kernels were not reached"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["epilogue_full", "nhwc_epilogue_up", "mixed", "nhwc_generic", "up3_down2"])
def test_wide_indices_agree_with_the_reference(played: Player, name: str, dtype: torch.dtype) -> None:
    played.set(wide_index_from=0)
    check(CASE[name], dtype, "native")


@pytest.mark.parametrize("name", ["mixed", "nhwc_generic", "long_line"])
def test_wide_indices_give_the_same_bits(played: Player, name: str) -> None:
    tensors = make(CASE[name], torch.float32)
    narrow = results(CASE[name], tensors, "native")
    played.set(wide_index_from=0)
    wide = results(CASE[name], tensors, "native")
    assert all(torch.equal(narrow[key], wide[key]) for key in narrow)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    "name", ["epilogue_full", "epilogue_down", "epilogue_up", "many_maps_odd", "nhwc_up_odd", "mixed"]
)
def test_the_order_of_threads_and_blocks_changes_no_bit(played: Player, name: str, order: int) -> None:
    tensors = make(CASE[name], torch.float32)
    ascending = results(CASE[name], tensors, "native")
    played.set(order=order)
    other = results(CASE[name], tensors, "native")
    assert all(torch.equal(ascending[key], other[key]) for key in ascending)


@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize(
    "name", ["tiles_full", "many_maps", "many_maps_odd", "tiles_down", "nhwc_strips", "nhwc_up_odd"]
)
def test_every_cut_of_the_work_is_right(played: Player, name: str, processors: int) -> None:
    played.set(processors=processors)
    check(CASE[name], torch.float32, "native")


# 256 threads sum 4 x 4 outputs each (down 2: 2 x 2), or walk down a column of 4 channels by up to 16 rows.
BLOCKS = [
    (Case("one_tile", (1, 1, 64, 64), padding=(1, 2, 1, 2)), 1, 2),  # one tile, halved
    (Case("tiles", (1, 1, 64, 256), padding=(1, 2, 1, 2)), 1, 4),
    (Case("columns_of_257", (1, 1, 30, 256), padding=(2, 2, 1, 2)), 1, 3),
    (Case("small_maps", (8, 32, 8, 8), padding=(2, 1, 2, 1)), 1, 6),  # of 12 x 11 floats each
    (Case("small_maps_spread", (8, 32, 8, 8), padding=(2, 1, 2, 1)), 132, 256),
    (Case("down", (1, 1, 64, 64), padding=(1, 1, 1, 1), down=(2, 2)), 1, 2),
    (Case("up", (1, 1, 32, 32), padding=(2, 1, 2, 1), up=(2, 2)), 1, 2),
    (Case("pixels", (8, 64, 16, 16), padding=(1, 2, 1, 2), channels_last=True), 1, 8),
    (Case("pixels_spread", (2, 64, 16, 16), padding=(1, 2, 1, 2), channels_last=True), 132, 8),
    (Case("general", (1, 3, 20, 64), (3, 3), padding=(1, 1, 1, 1)), 1, 15),
    (Case("general_most", (1, 3, 40, 64), (3, 3), padding=(1, 1, 1, 1)), 1, 16),
]


@pytest.mark.parametrize(("case", "processors", "blocks"), BLOCKS, ids=lambda value: str(value))
def test_the_grid_fits_the_work(played: Player, case: Case, processors: int, blocks: int) -> None:
    tensors = make(case, torch.float32)
    played.set(processors=processors)
    launches, before = played.launches, played.blocks
    with torch.no_grad():
        out = call(case, tensors, "native")
    assert (played.launches - launches, played.blocks - before) == (1, blocks)
    torch.testing.assert_close(out, call(case, tensors, "reference").detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("offset", "dtype"), [(1, torch.float32), (4, torch.float32), (2, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("name", ["epilogue_up", "epilogue_down", "tiles_whole", "nhwc_epilogue_up", "long_line"])
def test_memory_that_is_not_aligned(played: Player, name: str, offset: int, dtype: torch.dtype) -> None:
    case = CASE[name]
    tensors = make(case, dtype)
    expected = results(case, tensors, "native")
    for key in {"x", "noise", "add", "grad"} & set(tensors):
        value = tensors[key].detach()
        storage = torch.empty(value.numel() + offset, dtype=value.dtype)
        moved = storage[offset:].as_strided(value.shape, value.stride(), offset)
        tensors[key] = moved.copy_(value).requires_grad_()
    got = results(case, tensors, "native")
    for key, value in expected.items():
        sums = 1 if key in ("out", "d x", "d add") else case.shape[2] * case.shape[3]  # in another order
        allowed = 8 * torch.finfo(dtype).eps * value.abs().max().clamp(min=1.0) * math.sqrt(sums)
        assert (got[key] - value).abs().max() <= allowed, key


GRADIENTS = ["epilogue_full", "epilogue_no_strength", "nhwc_generic", "mixed", "negative_slope", "matrix_flip"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck_and_gradgradcheck(played: Player, name: str) -> None:
    case = CASE[name]
    case = replace(case, shape=(min(case.shape[0], 2), min(case.shape[1], 2), 4, 5), clamp=case.clamp and 3.0)
    tensors = make(case, torch.float64)
    kernel = tensors.pop("kernel")
    del tensors["grad"]
    if case.clamp is not None:
        assert call(case, tensors | {"kernel": kernel}, "reference").abs().max() > 1.0

    def function(*values: torch.Tensor) -> torch.Tensor:
        return call(case, dict(zip(tensors, values, strict=True)) | {"kernel": kernel}, "native")

    played.set(processors=1)
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["epilogue_full", "up", "down", "nhwc_epilogue_full", "nhwc_up", "up3", "wide_pads"])
def test_nan_and_inf_pass_as_in_the_reference(played: Player, name: str, value: float) -> None:
    tensors = make(CASE[name], torch.float32)
    with torch.no_grad():
        tensors["x"][:, 1, 1, 2] = value
        tensors["grad"][:, 0] = value
    got, expected = results(CASE[name], tensors, "native"), results(CASE[name], tensors, "reference")
    finite = got["d x" if CASE[name].clamp else "out"].isfinite()  # a clamp makes inf finite
    assert finite.any() and not finite.all()
    for key in ("out", "d x"):
        torch.testing.assert_close(got[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


def test_the_error_of_a_launch_is_raised_where_it_happens(played: Player) -> None:
    tensors = make(CASE["blur1"], torch.float32)
    out = call(CASE["blur1"], tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="upfirdn2d: the test asked for a failure"):
        call(CASE["blur1"], tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="upfirdn2d: the test asked for a failure"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 8, 8)}, "x must have rank 4"),
        ({"up": [1]}, "up and down need 2 numbers and padding 4"),
        ({"down": [0, 1]}, "up, down and the kernel's size must be 1 or more"),
        ({"padding": [-4, -3, 0, 0]}, r"no output is left of 8 samples, up 1, padding \(-4, -3\), under 4 taps"),
        ({"kernel": torch.zeros(2, 2, 2)}, "kernel must be a vector or matrix of Float on cpu, got Float of shape"),
        ({"kernel": torch.zeros(4).half()}, "kernel must be a vector or matrix of Float on cpu, got Half"),
        ({"scale": torch.zeros(3)}, "scale has 3 elements, expected 6"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, "bias has dtype Double, expected Float"),
        ({"noise": torch.zeros(2, 1, 8, 8)}, "noise has 128 elements, expected 50"),
        ({"noise": torch.zeros(2, 1, 5, 5).half()}, "noise has dtype Half"),
        ({"add": torch.zeros(2, 3, 5, 4)}, "add has 120 elements, expected 150"),
        ({"save_mask": True}, "save_mask needs lines of whole bytes, got 5 columns"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_host_code_refuses_wrong_arguments(played_ops: dict[str, Any], change: dict[str, Any], message: str) -> None:
    arguments = dict(x=torch.zeros(2, 3, 8, 8), kernel=torch.ones(4), up=[1, 1], down=[1, 1], padding=[0, 0, 0, 0])
    arguments |= dict(flip=False, gain=1.0, scale=None, bias=None, noise=None, noise_strength=None, add=None)
    arguments |= dict(slope=0.2, act_gain=1.0, clamp=None, save_mask=False)
    with pytest.raises(RuntimeError, match=f"upfirdn2d: {message}"):
        played_ops["upfirdn2d"].forward(*(arguments | change).values())

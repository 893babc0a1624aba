"""The CUDA code of lpips_layer, host and device side, played on the CPU and held to the reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from lpips_layer_cases import CASE, CASES, Case, call, check, hold, make, results, small
from playing import Player
from torch import Tensor

# beside the cases of every backend: pixels with more channels than a thread block holds, in batches and with a rest,
# and more pixels than a block has
OWN = {
    case.name: case
    for case in (
        Case("batches", (1, 300, 2, 5)),
        Case("many_batches", (1, 1031, 1, 7), reduce="none"),
        Case("nhwc_batches", (1, 1032, 3, 3), channels_last=True),
        Case("nhwc_many_batches", (1, 2051, 2, 1), channels_last=True, weight=""),
        Case("tiles", (2, 9, 37, 41), zeros=True),
        Case("even_tiles", (2, 64, 24, 32)),
        Case("even_tiles_map", (3, 20, 24, 34), reduce="none", eps_inside=True),
        Case("nhwc_tiles", (2, 24, 23, 17), channels_last=True, zeros=True),
        Case("nhwc_tiles_map", (2, 24, 23, 17), channels_last=True, reduce="none", near=True),
        Case("image", (2, 3, 40, 38), reduce="none"),
        Case("nhwc_image", (2, 3, 40, 38), channels_last=True),
        Case("many_images", (70, 16, 1, 1)),
    )
}
ALL = CASE | OWN
HALVES = ["odd", "odd_map", "vectors", "many_pixels", "nhwc_odd", "nhwc_vectors", "nhwc_vectors_and_rest", "zeros"]
HALVES += ["nhwc_zeros", "near", "other_layout", "only_b", "float32_weight", "one_pixel", "empty_batch", *OWN]
DOUBLES = ["odd", "odd_map", "vectors", "zeros_inside", "nhwc_odd", "nhwc_vectors", "batches", "nhwc_batches", "tiles"]
TYPES = [
    *[(case, torch.float32) for case in ALL.values()],
    *[(ALL[name], dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)],
    *[(ALL[name], torch.float64) for name in DOUBLES],
]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(played: Player, case: Case, dtype: torch.dtype) -> None:
    before = played.launches
    found = check(case, dtype, "native")
    assert not any(value.isnan().any() for value in found.values())
    assert played.launches > before or 0 in case.shape, "the played kernels were not reached"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["odd", "nhwc_zeros", "short_a", "weight_too", "float32_weight"])
def test_wrong_results_are_refused(name: str, dtype: torch.dtype) -> None:
    """The cases' own check: each result, a hundredth too large, is over what roundings explain."""
    tensors = make(ALL[name], dtype)
    right = {key: value.detach() for key, value in results(ALL[name], tensors, "reference").items()}
    hold(ALL[name], tensors, right)
    for key, value in right.items():
        for factor in (0.0, -1.0, 1.01):
            with pytest.raises(AssertionError, match=f"{key}: error"):
                hold(ALL[name], tensors, right | {key: value * factor})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["odd", "even_tiles", "many_batches", "nhwc_tiles", "nhwc_batches", "image"])
def test_wide_indices_give_the_same_bits(played: Player, name: str, dtype: torch.dtype) -> None:
    tensors = make(ALL[name], dtype)
    narrow = results(ALL[name], tensors, "native")
    played.set(wide_index_from=0)
    wide = results(ALL[name], tensors, "native")
    assert all(torch.equal(narrow[key], wide[key]) for key in narrow)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["odd", "even_tiles", "tiles", "batches", "nhwc_tiles", "nhwc_batches"])
def test_the_order_of_threads_and_blocks_changes_no_bit(played: Player, name: str, order: int) -> None:
    tensors = make(ALL[name], torch.float32)
    ascending = results(ALL[name], tensors, "native")
    played.set(order=order)
    other = results(ALL[name], tensors, "native")
    assert all(torch.equal(ascending[key], other[key]) for key in ascending)


@pytest.mark.parametrize("processors", [1, 3, 132])
@pytest.mark.parametrize("name", ["even_tiles", "tiles", "batches", "vectors", "nhwc_tiles", "nhwc_vectors", "image"])
def test_every_cut_of_the_work_is_right(played: Player, name: str, processors: int) -> None:
    played.set(processors=processors)
    check(ALL[name], torch.float32, "native")
    check(ALL[name], torch.bfloat16, "native")


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "pixels"])
def test_small_maps_are_cut_into_more_blocks_for_a_larger_gpu(played: Player, channels_last: bool) -> None:
    case, counts = Case("small", (1, 64, 16, 16), channels_last=channels_last), []
    tensors = make(case, torch.float32)
    for processors in (1, 132):
        played.set(processors=processors)
        before = played.blocks
        call(case, tensors, "native")
        counts.append(played.blocks - before)
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("case", "launches"),
    [
        (Case("mean", (2, 16, 16, 16)), 2),
        (Case("one_tile", (2, 16, 4, 4)), 1),
        (Case("map", (2, 16, 16, 16), reduce="none"), 1),
        (Case("pixel", (40, 16, 1, 1)), 1),
    ],
    ids=str,
)
def test_the_mean_takes_a_second_launch_only_over_several_blocks(played: Player, case: Case, launches: int) -> None:
    tensors = make(case, torch.float32)
    played.set(processors=1)
    before = played.launches
    out = call(case, tensors, "native")
    assert played.launches == before + launches
    torch.autograd.grad(out, [tensors["a"], tensors["b"]], tensors["grad"])
    assert played.launches == before + launches + 1, "both gradients are of one pass"


def moved(tensors: dict[str, Tensor], offset: int) -> dict[str, Tensor]:
    """The same, each `offset` elements behind an address that any chunk may lie at."""
    found = {}
    for name, value in tensors.items():
        storage = torch.empty(value.numel() + offset, dtype=value.dtype)
        moved = storage[offset:].as_strided(value.shape, value.stride(), offset).copy_(value.detach())
        found[name] = moved.requires_grad_(value.requires_grad)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("name", ["even_tiles", "even_tiles_map", "nhwc_vectors", "nhwc_tiles_map"])
def test_memory_that_is_not_aligned(played: Player, name: str, offset: int, dtype: torch.dtype) -> None:
    tensors = make(ALL[name], dtype)
    hold(ALL[name], tensors, results(ALL[name], moved(tensors, offset), "native"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["odd", "even_tiles", "batches", "nhwc_tiles", "nhwc_odd"])
def test_equal_maps_are_at_a_distance_of_exactly_0(played: Player, name: str, dtype: torch.dtype) -> None:
    tensors = make(ALL[name], dtype)
    tensors["b"] = tensors["a"].detach().clone().requires_grad_()
    got = results(ALL[name], tensors, "native")
    assert all(got[key].eq(0).all() for key in ("out", "d a", "d b"))


@pytest.mark.parametrize("eps", [0.0, 1e-10])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["odd_map", "nhwc_map"])
def test_zero_vectors_have_neither_nan_nor_gradient(played: Player, name: str, inside: bool, eps: float) -> None:
    case = replace(ALL[name], eps_inside=inside, eps=eps)
    tensors = make(case, torch.float32)
    with torch.no_grad():
        tensors["a"][:, :, 0] = 0
        tensors["b"][:, :, :2] = 0
    got = results(case, tensors, "native")
    assert all(value.isfinite().all() for value in got.values())
    assert got["d a"][:, :, 0].eq(0).all() and got["d b"][:, :, :2].eq(0).all()
    assert got["out"][:, :, 0].eq(0).all()
    assert got["d a"][:, :, 1].ne(0).any() and got["d b"][:, :, 2].ne(0).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["odd_map", "even_tiles_map", "nhwc_map", "nhwc_tiles_map"])
def test_what_is_not_finite_stays_in_its_pixel_and_is_seen(played: Player, name: str, value: float) -> None:
    case = ALL[name]
    tensors = make(case, torch.float32)
    finite = results(case, tensors, "native")
    with torch.no_grad():
        tensors["a"][0, 1, 1, 2] = value
    out = call(case, tensors, "native")
    ga, gb = torch.autograd.grad(out, [tensors["a"], tensors["b"]], tensors["grad"])
    here = torch.zeros(case.shape[0], 1, *case.shape[2:], dtype=torch.bool)
    here[0, 0, 1, 2] = True
    for key, found in (("out", out), ("d a", ga), ("d b", gb)):
        assert found[here.expand_as(found)].isnan().any(), key
        others = ~here.expand_as(found)
        assert torch.equal(found[others], finite[key][others]), key


@pytest.mark.parametrize("case", [case for case in CASES if small(case) and 0 not in case.shape][::2], ids=str)
def test_gradcheck_and_gradgradcheck(played: Player, case: Case) -> None:
    tensors = make(case, torch.float64)
    del tensors["grad"]

    def function(*values: Tensor) -> Tensor:
        return call(case, dict(zip(tensors, values, strict=True)), "native")

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


def test_the_error_of_a_launch_is_raised_where_it_happens(played: Player) -> None:
    case = OWN["tiles"]
    tensors = make(case, torch.float32)
    out = call(case, tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="lpips_layer: the test asked for a failure"):
        call(case, tensors, "native")
    played.fail_next()
    with pytest.raises(RuntimeError, match="lpips_layer: the test asked for a failure"):
        out.sum().backward()
    assert call(case, tensors, "native").isfinite().all()  # and the next call is sound


SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": torch.zeros(2, 3, 4)}, r"a must have rank 4, got shape \[2, 3, 4\]"),
        ({"a": torch.zeros(SHAPE, dtype=torch.int32)}, "x must be float32, float64, float16 or bfloat16, got Int"),
        ({"b": torch.zeros(2, 3, 5, 4)}, r"b has shape \[2, 3, 5, 4\], expected \[2, 3, 4, 5\]"),
        ({"b": torch.zeros(SHAPE).half()}, "b has dtype Half, expected Float"),
        ({"weight": torch.zeros(4)}, "weight has 4 elements, expected 3"),
        ({"weight": torch.zeros(3).half()}, "weight has dtype Half, expected Float"),
        ({"grad": torch.zeros(3, 1, 1, 1)}, "grad has 3 elements, expected 2"),
        ({"grad": torch.zeros(2, 1, 1, 1, dtype=torch.float64)}, "grad has dtype Double, expected Float"),
        ({"grad": torch.zeros(2, 1, 1, 1), "mean": False}, "grad has 2 elements, expected 40"),
        ({"stats": torch.zeros(3, 2, 20)}, "stats has 120 elements, expected 160"),
        ({"stats": torch.zeros(4, 2, 20).half()}, "stats has dtype Half, expected Float"),
    ],
    ids=["rank", "type", "b", "b type", "weight", "weight type", "grad", "grad type", "map", "stats", "stats type"],
)
def test_host_code_refuses_wrong_arguments(played: Player, changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"grad": torch.zeros(2, 1, 1, 1), "a": torch.zeros(SHAPE), "b": torch.zeros(SHAPE)}
    given |= {"weight": torch.ones(3), "stats": torch.zeros(4, 2, 20), "eps": 1e-10, "eps_inside": False, "mean": True}
    given |= changed
    forward = [value for name, value in given.items() if name not in ("grad", "stats")]
    with pytest.raises(RuntimeError, match=f"lpips_layer: {message}"):
        if not {"grad", "stats"} & set(changed):
            torch.ops.anifast.lpips_layer_played(*forward)
        torch.ops.anifast.lpips_layer_backward_played(*given.values(), True, True)


@pytest.mark.parametrize(("want_a", "want_b"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "pixels"])
def test_gradients_that_are_not_wanted_are_empty(
    played: Player, channels_last: bool, want_a: bool, want_b: bool
) -> None:
    case = Case("wanted", (2, 8, 3, 5), channels_last=channels_last)
    tensors = {name: value.detach() for name, value in make(case, torch.float32).items()}
    a, b, weight, grad = (tensors[name] for name in ("a", "b", "weight", "grad"))
    how = (case.eps, case.eps_inside, True)
    _, stats = torch.ops.anifast.lpips_layer_played(a, b, weight.flatten(), *how)
    backward = torch.ops.anifast.lpips_layer_backward_played
    both = backward(grad, a, b, weight.flatten(), stats, *how, True, True)
    before = played.launches
    got = backward(grad, a, b, weight.flatten(), stats, *how, want_a, want_b)
    assert played.launches == before + (want_a or want_b)
    for value, expected, want in zip(got, both, (want_a, want_b), strict=True):
        assert torch.equal(value, expected) if want else value.shape == (0,)

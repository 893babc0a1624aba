"""The gradient passes of modulated_conv2d on a GPU: both compiled backends, and what only a GPU can show."""

from __future__ import annotations

import math
from dataclasses import replace

import gpu_checks
import modulated_conv2d_passes_cases as cases
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

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "modulated_conv2d"
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[("native", case, dtype) for case in CASES for dtype in DTYPES],
    *[("triton", case, torch.float32) for case in CASES],
    *[("triton", case, dtype) for case in CASES[1::5] for dtype in DTYPES[1:]],
]
# more than one wave of blocks, and shapes that systems train on
LARGE = [
    Case("generator", (4, 128, 64, 64)),
    Case("generator_nhwc", (4, 128, 64, 64), channels_last=True),
    Case("few_channels", (1, 32, 512, 512), noise="shared"),
    Case("few_channels_nhwc", (1, 32, 512, 512), channels_last=True, noise="shared"),
    Case("small_maps", (16, 512, 4, 4), clamp=256.0),
    Case("image", (4, 3, 256, 256), scale=False, noise="", slope=1.0, gain=1.0, clamp=0.75, wants="b"),
    Case("odd_maps", (3, 67, 31, 31), clamp=1.0),
    Case("odd_maps_nhwc", (3, 67, 31, 31), channels_last=True, clamp=1.0),
    Case("thousands_of_channels_nhwc", (2, 5000, 3, 3), channels_last=True),
    Case("many_images_nhwc", (70000, 8, 2, 2), channels_last=True),
]
LIMIT = 2**31


@pytest.mark.parametrize(("backend", "case", "dtype"), TYPES, indirect=["backend"], ids=str)
def test_agrees_with_plain_pytorch(backend: str, case: Case, dtype: torch.dtype) -> None:
    found = check(case, dtype, backend, "cuda")
    assert not any(value.isnan().any() for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_plain_pytorch(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("name", ["odd", "even_clamped", "nhwc_clamped", "relu", "relu_nhwc", "no_strength", "image"])
def test_they_are_the_gradients_of_what_they_stand_for(backend: str, name: str) -> None:
    tensors = make(CASE[name], torch.float64, "cuda")
    got, expected = results(CASE[name], tensors, backend), differentiated(CASE[name], tensors)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_sums_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    gpu_checks.same_bits_each_time(cases, case, backend)


def test_the_kernels_of_the_native_passes_run() -> None:
    names = gpu_checks.kernels_that_run(cases, LARGE[0], "native")
    for kernel in ("modulated_conv2d_pass_kernel", "modulated_conv2d_sums_kernel"):
        assert any(kernel in name and "anifast::" in name for name in names), names


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, replace(LARGE[0], shape=(4, 64, 256, 256)), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["odd"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 12 * math.prod(shape):
        pytest.skip("less than 26 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    case = Case("huge", shape, channels_last=channels_last, clamp=2.0)
    form = torch.channels_last if channels_last else torch.contiguous_format
    grad = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    whole = {"grad": grad, "out": torch.empty_like(grad).normal_()}
    assert grad.numel() > LIMIT
    whole |= {"x": whole["out"], "noise": torch.randn(3, 1, *shape[2:], device="cuda", dtype=torch.bfloat16)}
    whole |= {"scale": torch.rand(3, 64, device="cuda") + 0.5, "style": torch.randn(3, 64, device="cuda")}
    shared = {"bias": torch.randn(64, device="cuda"), "noise_strength": torch.full((1,), 0.5, device="cuda")}
    found = results(case, whole | shared, backend)
    totals = {"d bias": torch.zeros(64, device="cuda"), "d noise_strength": torch.zeros(1, device="cuda")}
    for sample in range(3):
        part = slice(sample, sample + 1)
        single = results(case, {name: value[part] for name, value in whole.items()} | shared, backend)
        for name in ("d c", "d x"):
            assert torch.equal(found[name][part], single[name]), f"{name} of sample {sample}"
        for name in ("d scale", "d style"):
            torch.testing.assert_close(found[name][part], single[name], rtol=1e-4, atol=1.0)
        totals = {name: total + single[name] for name, total in totals.items()}
    torch.testing.assert_close(found["d bias"], totals["d bias"], rtol=1e-4, atol=1.0)
    torch.testing.assert_close(found["d noise_strength"], totals["d noise_strength"], rtol=1e-3, atol=10.0)


def test_a_cuda_graph_replays_both_passes(backend: str) -> None:
    tensors = make(LARGE[0], torch.float32, "cuda")
    results(LARGE[0], tensors, backend)
    torch.use_deterministic_algorithms(False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(LARGE[0], tensors, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(LARGE[0], tensors, backend)
    for seed in (5, 6):
        for name, value in make(LARGE[0], torch.float32, "cuda", seed).items():
            tensors[name].copy_(value)
        graph.replay()
        for name, value in results(LARGE[0], tensors, backend).items():
            assert torch.equal(captured[name], value), name


@pytest.mark.parametrize("name", ["even", "nhwc_even"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    tensors = make(CASE[name], torch.float32, "cuda")
    expected, got = (results(CASE[name], given, backend) for given in (tensors, moved(tensors, 1)))
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd", "odd_clamped", "nhwc_even", "nhwc_clamped"])
def test_nan_and_inf_pass_as_autograd_has_it(backend: str, name: str, value: float) -> None:
    check_not_finite(CASE[name], value, backend, "cuda")


@pytest.mark.parametrize("name", ["odd_clamped", "nhwc_even"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    tensors = make(CASE[name], torch.float32, "cuda")
    suffix = "" if backend == "native" else "_triton"
    for part, arguments in zip(("epilogue", "style"), cases.arguments(CASE[name], tensors), strict=True):
        op = getattr(torch.ops.anifast, f"modulated_conv2d_{part}_grad{suffix}")
        torch.library.opcheck(op.default, arguments)

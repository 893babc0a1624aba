"""upfirdn2d on a GPU: both compiled backends held to the reference, and what only a GPU can show."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gpu_checks
import pytest
import torch
import upfirdn2d_cases as cases
from upfirdn2d_cases import CASE, CASES, Case, call, check, make, results

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "upfirdn2d"
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[("native", case, dtype) for case in CASES for dtype in DTYPES],
    *[("triton", case, torch.float32) for case in CASES],
    *[("triton", case, dtype) for case in CASES[1::5] for dtype in DTYPES[1:]],
]
# more than one tile of each kernel, and shapes that systems train on
LARGE = [
    Case("generator", (2, 128, 65, 65), padding=(1, 1, 1, 1), gain=4.0, scale=True, bias=True, noise="each", act=True),
    Case(
        "generator_nhwc", (2, 128, 65, 65), padding=(1, 1, 1, 1), gain=4.0, scale=True, bias=True, noise="shared",
        act=True, channels_last=True,
    ),
    Case("rgb_skip", (4, 3, 128, 128), up=(2, 2), padding=(2, 1, 2, 1), gain=4.0, add=True),
    Case("rgb_skip_nhwc", (4, 3, 128, 128), up=(2, 2), padding=(2, 1, 2, 1), gain=4.0, add=True, channels_last=True),
    Case("before_down", (2, 64, 256, 256), padding=(2, 2, 2, 2)),
    Case("before_down_nhwc", (2, 64, 256, 256), padding=(2, 2, 2, 2), channels_last=True),
    Case("skip_down", (2, 64, 256, 256), down=(2, 2), padding=(1, 1, 1, 1)),
    Case("skip_down_nhwc", (2, 64, 130, 254), down=(2, 2), padding=(1, 1, 1, 1), channels_last=True),
    Case("up_epilogue", (2, 48, 96, 80), "outer", up=(2, 2), padding=(2, 1, 2, 1), scale=True, act=True, clamp=1.0),
    Case("small_maps", (16, 512, 8, 8), padding=(2, 2, 2, 2), bias=True, act=True),
    Case("twelve_taps", (2, 16, 65, 70), (12,), up=(2, 2), down=(2, 2), padding=(6, 5, 6, 5)),
]  # fmt: skip
LIMIT = 2**31


@pytest.mark.parametrize(("backend", "case", "dtype"), TYPES, indirect=["backend"], ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE[::3], ids=str)
def test_results_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    gpu_checks.same_bits_each_time(cases, case, backend)


@pytest.mark.parametrize("name", ["epilogue_full", "nhwc_generic", "mixed", "negative_slope", "matrix_flip"])
def test_gradcheck_and_gradgradcheck(backend: str, name: str) -> None:
    case = CASE[name]
    case = replace(case, shape=(min(case.shape[0], 2), min(case.shape[1], 2), 4, 5), clamp=case.clamp and 3.0)
    gpu_checks.passes_gradcheck(cases, case, backend)


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("blur1", ["upfirdn2d_planes_kernel"]),
        ("epilogue_up", ["upfirdn2d_planes_kernel", "bias_lrelu_backward_kernel"]),
        ("nhwc_epilogue", ["upfirdn2d_pixels_kernel", "bias_lrelu_backward_kernel"]),
        ("mixed", ["upfirdn2d_general_kernel"]),
    ],
)
def test_the_kernels_of_the_backend_run(backend: str, name: str, kernels: list[str]) -> None:
    names = gpu_checks.kernels_that_run(cases, CASE[name], backend)
    for kernel in kernels:
        if backend == "triton" and kernel.startswith("upfirdn2d"):
            kernel = "upfirdn2d_kernel"
        ours = [name for name in names if kernel in name]
        assert ours and all(("anifast::" in name) == (backend == "native") for name in ours), names


def test_the_automatic_choice_is_a_compiled_backend() -> None:
    assert anifast.backends.automatic("upfirdn2d", "cuda") in ("native", "triton")


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, replace(LARGE[0], shape=(4, 64, 257, 257)), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["epilogue_full"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    x = torch.zeros(2, 3, 8, 8, device="cuda")
    with pytest.raises(ValueError, match="kernel is on cpu, expected cuda"):
        anifast.ops.upfirdn2d(x, torch.ones(4), backend=backend)
    with pytest.raises(ValueError, match="bias is on cpu, expected cuda"):
        anifast.ops.upfirdn2d(x, torch.ones(4, device="cuda"), bias=torch.zeros(3), backend=backend)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("taps", ["blur", (3,)], ids=["four taps", "other taps"])
def test_more_than_two_to_the_31_elements(
    backend: str, channels_last: bool, taps: str | tuple[int, ...]
) -> None:  # fmt: skip
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 12 * 3 * 64 * 4096 * 2740:
        pytest.skip("less than 26 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    pads = (2, 1, 1, 2) if taps == "blur" else (1, 1, 1, 1)  # the size stays
    case = Case("huge", shape, taps, padding=pads, channels_last=channels_last, act=True)
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    grad = torch.empty_like(x).normal_()
    assert x.numel() > LIMIT
    small = make(replace(case, shape=(1, 64, 8, 8)), torch.bfloat16, "cuda")
    bias = torch.randn(64, device="cuda", requires_grad=True)

    def run(part: slice) -> list[torch.Tensor]:
        given = {"x": x[part].detach().requires_grad_(), "kernel": small["kernel"], "bias": bias}
        out = call(replace(case, bias=True), given, backend)
        return [out.detach(), *torch.autograd.grad(out, [given["x"], bias], grad[part])]

    out, gx, gbias = run(slice(0, 3))
    total = torch.zeros_like(bias)
    for sample in range(3):
        part = slice(sample, sample + 1)
        out_part, gx_part, gbias_part = run(part)
        # the parts may be left to a kernel with other indices, whose sums round otherwise
        torch.testing.assert_close(out[part], out_part, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(gx[part], gx_part, rtol=1e-2, atol=1e-2)
        total = total + gbias_part
    torch.testing.assert_close(gbias, total, rtol=1e-4, atol=1.0)


def test_a_cuda_graph_replays_forward_and_backward(backend: str) -> None:
    gpu_checks.graph_replays(cases, LARGE[0], backend, ("x", "scale", "bias", "noise_strength"))


def test_compiles_into_one_graph(backend: str) -> None:
    gpu_checks.compiles_into_one_graph(cases, LARGE[0], backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_float32_parameters(backend: str, dtype: torch.dtype) -> None:
    tensors = make(replace(LARGE[0], float32_parameters=True), dtype, "cuda")
    with torch.autocast("cuda", dtype):
        out = call(LARGE[0], tensors, backend)
        out.float().sum().backward()
    assert out.dtype == dtype and tensors["bias"].grad.dtype == tensors["scale"].grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["epilogue_up", "epilogue_down", "down_outer", "nhwc_epilogue_up"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    gpu_checks.unaligned_memory_agrees(cases, CASE[name], backend)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["epilogue_full", "up", "nhwc_epilogue_full", "up3"])
def test_nan_and_inf_pass_as_in_the_reference(backend: str, name: str, value: float) -> None:
    tensors = make(CASE[name], torch.float32, "cuda")
    with torch.no_grad():
        tensors["x"][:, 1, 1, 2] = value
        tensors["grad"][:, 0] = value
    got, expected = results(CASE[name], tensors, backend), results(CASE[name], tensors, "reference")
    for key in ("out", "d x"):
        torch.testing.assert_close(got[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["epilogue_up", "nhwc_epilogue_full", "mixed"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    module = importlib.import_module("anifast.ops.upfirdn2d")
    op = module._NATIVE if backend == "native" else module._TRITON
    operands = (tensors.get(key) for key in ("scale", "bias", "noise", "noise_strength", "add"))
    slope, act_gain = (case.slope, case.act_gain) if case.act else (1.0, 1.0)
    form = (list(case.up), list(case.down), list(case.padding), case.flip, case.gain)
    arguments = (tensors["x"], tensors["kernel"], *form, *operands, slope, act_gain, case.clamp)
    torch.library.opcheck(op.forward, (*arguments, case.act or case.clamp is not None))


def test_golden_ops_upfirdn2d(backend: str, golden: Callable[[str], Any]) -> None:
    gpu_checks.golden_case_agrees(cases, golden("ops_upfirdn2d_a"), backend, 3e-7)

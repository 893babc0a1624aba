"""bias_lrelu on a GPU: both compiled backends held to the reference, and what only a GPU can show."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bias_lrelu_cases as cases
import gpu_checks
import pytest
import torch
from bias_lrelu_cases import CASE, CASES, Case, call, check, make, results

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "bias_lrelu"
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[("native", case, dtype) for case in CASES for dtype in DTYPES],
    *[("triton", case, torch.float32) for case in CASES],
    *[("triton", case, dtype) for case in CASES[1::5] for dtype in DTYPES[1:]],
]
# more than one grid of tiles, and shapes that systems train on
LARGE = [
    Case("generator", (2, 128, 64, 64), noise="each"),
    Case("generator_nhwc", (2, 128, 64, 64), channels_last=True, noise="each"),
    Case("few_channels", (1, 32, 512, 512), noise="shared"),
    Case("discriminator", (4, 512, 16, 16), residual=True, residual_gain=0.7),
    Case("discriminator_nhwc", (4, 96, 33, 31), channels_last=True, residual=True, clamp=2.0),
    Case("patch", (3, 67, 31, 31), gain=1.0),
    Case("mapping", (300, 512)),
    Case("one_channel", (6, 1, 127, 129), noise="each", clamp=1.0),
    Case("thousands_of_channels", (2, 5000, 3, 3)),
]
LIMIT = 2**31


@pytest.mark.parametrize(("backend", "case", "dtype"), TYPES, indirect=["backend"], ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_sums_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    gpu_checks.same_bits_each_time(cases, case, backend)


@pytest.mark.parametrize("name", ["odd_full", "nhwc_odd", "linear", "negative_gain", "middle_dim"])
def test_gradcheck_and_gradgradcheck(backend: str, name: str) -> None:
    case = replace(CASE[name], shape=tuple(min(n, 3) for n in CASE[name].shape), clamp=CASE[name].clamp and 3.0)
    gpu_checks.passes_gradcheck(cases, case, backend)


def test_the_kernels_of_the_backend_run(backend: str) -> None:
    names = gpu_checks.kernels_that_run(cases, CASE["even"], backend)
    for kernel in ("bias_lrelu_kernel", "bias_lrelu_backward_kernel", "bias_lrelu_sums_kernel"):
        ours = [name for name in names if kernel in name]
        assert ours and all(("anifast::" in name) == (backend == "native") for name in ours), names


def test_the_automatic_choice_is_a_compiled_backend() -> None:
    assert anifast.backends.automatic("bias_lrelu", "cuda") in ("native", "triton")


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, replace(LARGE[0], shape=(4, 64, 256, 256)), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["odd_full"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    x = torch.zeros(2, 3, device="cuda")
    with pytest.raises(ValueError, match="bias is on cpu, expected cuda"):
        anifast.ops.bias_lrelu(x, torch.zeros(3), backend=backend)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("clamp", [None, 1.0], ids=["one plane", "two planes"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool, clamp: float | None) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 16 * 3 * 64 * 4096 * 2740:
        pytest.skip("less than 35 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    case = Case("huge", shape, channels_last=channels_last, clamp=clamp, noise="each")
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    grad = torch.empty_like(x).normal_()
    assert x.numel() > LIMIT
    bias = torch.randn(64, device="cuda", requires_grad=True)
    noise = torch.randn(3, 1, 4096, 2740, device="cuda", dtype=torch.bfloat16)
    strength = torch.full((1,), 0.5, device="cuda", requires_grad=True)

    def run(part: slice) -> list[torch.Tensor]:
        given = {"x": x[part].detach().requires_grad_(), "bias": bias, "noise": noise[part], "noise_strength": strength}
        out = call(case, given, backend)
        return [out.detach(), *torch.autograd.grad(out, [given["x"], bias, strength], grad[part])]

    out, gx, gbias, gstrength = run(slice(0, 3))
    parts = [torch.zeros_like(bias), torch.zeros_like(strength)]
    for sample in range(3):
        part = slice(sample, sample + 1)
        out_part, gx_part, *sums = run(part)
        assert torch.equal(out[part], out_part) and torch.equal(gx[part], gx_part), f"sample {sample}"
        parts = [total + value for total, value in zip(parts, sums, strict=True)]
    torch.testing.assert_close(gbias, parts[0], rtol=1e-4, atol=1.0)
    torch.testing.assert_close(gstrength, parts[1], rtol=1e-3, atol=10.0)


def test_a_cuda_graph_replays_forward_and_backward(backend: str) -> None:
    gpu_checks.graph_replays(cases, LARGE[0], backend, ("x", "bias", "noise_strength"))


def test_compiles_into_one_graph(backend: str) -> None:
    gpu_checks.compiles_into_one_graph(cases, LARGE[0], backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_float32_parameters(backend: str, dtype: torch.dtype) -> None:
    tensors = make(replace(LARGE[0], float32_parameters=True), dtype, "cuda")
    with torch.autocast("cuda", dtype):
        out = call(LARGE[0], tensors, backend)
        out.float().sum().backward()
    assert out.dtype == dtype and tensors["bias"].grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["even_full", "nhwc_full"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    gpu_checks.unaligned_memory_agrees(cases, CASE[name], backend)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["even_full", "nhwc_odd"])
def test_nan_and_inf_pass_as_in_the_reference(backend: str, name: str, value: float) -> None:
    tensors = make(CASE[name], torch.float32, "cuda")
    with torch.no_grad():
        tensors["x"][:, 1] = value
        tensors["grad"][:, 1:, 1] = value
    got, expected = results(CASE[name], tensors, backend), results(CASE[name], tensors, "reference")
    for key in ("out", "d x", "d bias"):
        torch.testing.assert_close(got[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["odd_noise", "nhwc_odd", "odd_full"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    module = importlib.import_module("anifast.ops.bias_lrelu")
    ops = module._NATIVE if backend == "native" else module._TRITON
    residual = tensors.get("residual")
    operands = (tensors.get("bias"), tensors["noise"], tensors.get("noise_strength"))
    arguments = (tensors["x"], *operands, residual, 1, case.slope, case.gain, case.clamp, case.residual_gain)
    torch.library.opcheck(ops.forward, (*arguments, True))
    _, mask = ops.forward(*arguments, True)
    rest = (1, case.channels_last, case.slope, case.gain)
    torch.library.opcheck(ops.backward, (tensors["grad"], mask, tensors["noise"], *rest, True, True))
    torch.library.opcheck(ops.masked, (tensors["x"], mask, *operands, *rest))


def test_golden_ops_lrelu(backend: str, golden: Callable[[str], Any]) -> None:
    gpu_checks.golden_case_agrees(cases, golden("ops_lrelu_a"), backend, 3e-7)

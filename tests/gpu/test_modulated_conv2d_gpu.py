"""modulated_conv2d on a GPU: the strategies there are held to the reference, and what only a GPU can show."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gpu_checks
import pytest
import torch
from modulated_conv2d_cases import CASE, CASES, Case, call, check, layout, make, results, suits
from torch import Tensor

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "modulated_conv2d"
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan", "products_of_float32")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# the strategy of each backend on a GPU
STRATEGY = {"native": "library", "triton": "implicit_gemm", "reference": "scaled", None: "auto"}
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[("native", case, dtype) for case in CASES for dtype in DTYPES],
    *[("triton", case, torch.float32) for case in CASES if suits(case, "implicit_gemm")],
    *[("triton", case, dtype) for case in CASES[::3] if suits(case, "implicit_gemm") for dtype in DTYPES[1:]],
]
_LAYER = dict(bias=True, noise="each", weight_gain=0.03)
# every kind of tile, several of them, and shapes that systems train on
LARGE = [
    Case("wide", (2, 512, 64, 64), 512, channels_last=True, **_LAYER),
    Case("wide_planes", (2, 256, 64, 64), 512, **_LAYER),
    Case("wide_up", (2, 512, 32, 32), 512, up=2, channels_last=True, **_LAYER),
    Case("wide_up_planes", (2, 256, 33, 31), 256, up=2, **_LAYER),
    Case("middle", (2, 128, 130, 67), 128, channels_last=True, clamp=2.0, **_LAYER),
    Case("narrow", (2, 64, 129, 131), 32, channels_last=True, **_LAYER),
    Case("narrow_odd", (2, 37, 65, 66), 51, channels_last=True, **_LAYER),
    Case("narrow_up", (2, 64, 63, 65), 32, up=2, channels_last=True, **_LAYER),
    Case("image", (4, 128, 96, 96), 3, 1, demodulate=False, act=False, bias=True, add=True, channels_last=True),
    Case("image_planes", (4, 512, 48, 50), 3, 1, demodulate=False, act=False, bias=True, add=True),
    Case("first", (16, 512, 4, 4), 512, channels_last=True, **_LAYER),
    Case("second_up", (5, 512, 4, 4), 512, up=2, channels_last=True, **_LAYER),
]
BY_BACKEND: Any = SimpleNamespace(
    make=make,
    layout=layout,
    call=lambda case, tensors, backend: call(case, tensors, STRATEGY[backend]),
    results=lambda case, tensors, backend: results(case, tensors, STRATEGY[backend]),
)
SMALL = {case.name: case for case in LARGE} | CASE


@pytest.fixture
def products_of_float32() -> Iterator[None]:
    """PyTorch lets convolutions of float32 round their factors to 10 bits; the checks expect products of float32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(("backend", "case", "dtype"), TYPES, indirect=["backend"], ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, STRATEGY[backend], "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, STRATEGY[backend], "cuda", seed=1)


@pytest.mark.parametrize("name", ["wide", "narrow_odd", "image_planes", "wide_up_planes"])
def test_factors_of_10_bits_where_pytorch_lets_them(backend: str, name: str) -> None:
    if backend != "triton":
        pytest.skip("what the library computes is PyTorch's")
    case = SMALL[name]
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    tensors = {name: value.detach() for name, value in make(case, torch.float32, "cuda").items()}
    with torch.no_grad():
        out = call(case, tensors, "implicit_gemm")
        expected = call(case, {name: value.double() for name, value in tensors.items()}, "scaled")
    error = (out - expected).abs().max() / expected.abs().max()
    # each factor is off by up to 2^-11 of it, at random, so that a sum of many is off by less than that of its terms
    assert 2**-20 < error < 2**-10


@pytest.mark.parametrize("case", LARGE[::3], ids=str)
def test_results_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    if backend != "triton":
        pytest.skip("the library's gradients may be sums in any order")
    case = replace(case, noise="")  # a gradient of noise is that of other ops
    tensors = {name: value.detach() for name, value in make(case, torch.float32, "cuda").items()}
    ops = importlib.import_module("anifast.ops.modulated_conv2d")._TRITON
    how = (torch.ones(4, device="cuda") / 4 if case.up > 1 else None, case.up, 1, case.size // 2, "implicit_gemm")
    x, weight, style, grad = (tensors[name] for name in ("x", "weight", "style", "grad"))
    rest = (*[None] * 6, *how, 0.2, 1.0, None)
    found = []
    for _ in range(2):
        out = ops.forward(x, weight, style, *rest)
        found.append([out, *ops.input_grad(grad, weight, x, style, *x.shape[2:], *how)])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["plain", "up", "nhwc_rgb", "clamped"])
def test_gradcheck_and_gradgradcheck(backend: str, name: str) -> None:
    case = replace(CASE[name], shape=(2, 2, 4, 5), outputs=3)
    gpu_checks.passes_gradcheck(BY_BACKEND, case, backend)


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("narrow", ["modulated_conv2d_kernel", "modulated_conv2d_epilogue_grad_kernel"]),
        ("narrow_up", ["modulated_conv2d_kernel", "modulated_conv2d_epilogue_grad_kernel", "upfirdn2d_kernel"]),
        ("first", ["modulated_conv2d_kernel", "modulated_conv2d_style_grad_kernel"]),
    ],
)
def test_the_kernels_of_triton_run(backend: str, name: str, kernels: list[str]) -> None:
    if backend != "triton":
        pytest.skip("the library's kernels have the library's names")
    tensors = make(SMALL[name], torch.float32, "cuda")
    inputs = [value for key, value in tensors.items() if key not in ("grad", "noise", "add")]

    def step() -> None:
        torch.autograd.grad(call(SMALL[name], tensors, "implicit_gemm"), inputs, tensors["grad"])

    tensors["noise"] = tensors["noise"].detach()
    step()  # compiled before the profiler looks
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if "kernel" in event.name]
    if not names:
        pytest.skip("the profiler reads no kernels on this machine")
    assert set(kernels) <= set(names), names


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    case = Case("stream", (4, 64, 257, 257), 64, demodulate=False, act=False)
    tensors = make(case, torch.float32, "cuda")
    expected = call(case, tensors, STRATEGY[backend])
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            slow = slow @ slow * 1e-3  # x is written only after this
        nothing = 0.0 * slow[0, 0].nan_to_num()
        got = call(case, tensors | {"x": tensors["x"].detach() + nothing}, STRATEGY[backend])
    stream.synchronize()
    torch.testing.assert_close(got, expected)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["plain"], torch.float32, STRATEGY[backend], "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    x, weight = torch.zeros(2, 3, 8, 8, device="cuda"), torch.ones(4, 3, 3, 3)
    with pytest.raises(ValueError, match="weight is on cpu, expected cuda"):
        anifast.ops.modulated_conv2d(x, weight, torch.ones(2, 3, device="cuda"), backend=backend)
    with pytest.raises(ValueError, match="style is on cpu, expected cuda"):
        anifast.ops.modulated_conv2d(x, weight.cuda(), torch.ones(2, 3), backend=backend)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool) -> None:
    shape = (3, 64, 4096, 2740)
    if backend != "triton":
        pytest.skip("how large the library's convolutions may be is PyTorch's")
    if torch.cuda.mem_get_info()[0] < 18 * 3 * 64 * 4096 * 2740:
        pytest.skip("less than 39 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    grad = torch.empty_like(x).normal_()
    assert x.numel() > 2**31
    case = Case("huge", shape, 64, channels_last=channels_last, **_LAYER)
    small = make(replace(case, shape=(3, 64, 8, 8)), torch.bfloat16, "cuda")
    small["weight"] = small["weight"].detach()  # its gradient is the library's

    def run(part: slice) -> list[Tensor]:
        given = {name: small[name] for name in ("weight", "bias")}
        given |= {"x": x[part].detach().requires_grad_(), "style": small["style"][part].detach().requires_grad_()}
        out = call(case, given, "implicit_gemm")
        return [out.detach(), *torch.autograd.grad(out, [given["x"], given["style"]], grad[part])]

    together = run(slice(0, 3))
    for sample in range(3):
        # the parts have other tiles and other indices, whose sums round otherwise
        for whole, part in zip(together, run(slice(sample, sample + 1)), strict=True):
            torch.testing.assert_close(whole[sample : sample + 1], part, rtol=2e-2, atol=2e-2 * float(part.std()))


def test_a_cuda_graph_replays_forward_and_backward(backend: str) -> None:
    if backend != "triton":
        pytest.skip("the library's gradients may be sums in any order")
    case = replace(SMALL["narrow"], noise="")
    gpu_checks.graph_replays(BY_BACKEND, case, backend, ("x", "style", "bias"))


@pytest.mark.parametrize("name", ["narrow", "narrow_up"])
def test_compiles_into_one_graph(backend: str, name: str) -> None:
    gpu_checks.compiles_into_one_graph(BY_BACKEND, SMALL[name], backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_float32(backend: str, dtype: torch.dtype) -> None:
    case = SMALL["narrow_up"]
    tensors = make(case, torch.float32, "cuda")
    with torch.autocast("cuda", dtype):
        out = call(case, tensors, STRATEGY[backend])
        out.float().sum().backward()
    assert out.dtype == dtype
    assert all(tensors[name].grad.dtype == torch.float32 for name in ("x", "weight", "style", "bias"))


@pytest.mark.parametrize("name", ["plain", "nhwc_plain", "nhwc_up", "nhwc_rgb"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    gpu_checks.unaligned_memory_agrees(BY_BACKEND, CASE[name], backend)


@pytest.mark.parametrize("name", ["plain", "nhwc_up"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    module = importlib.import_module("anifast.ops.modulated_conv2d")
    op = module._LIBRARY if backend == "native" else module._TRITON
    how = (torch.ones(4, device="cuda") / 4 if case.up > 1 else None, case.up, 1, 1, STRATEGY[backend])
    scale = torch.rand(case.out_shape[:2], device="cuda").requires_grad_()
    operands = (tensors["bias"], tensors["noise"].detach(), tensors["noise_strength"], None)
    x, weight, style = (tensors[key] for key in ("x", "weight", "style"))
    torch.library.opcheck(op.forward, (x, weight, style, scale, *operands, *how, 0.2, 1.5, None))
    torch.library.opcheck(op.input_grad, (tensors["grad"], weight, None, None, *x.shape[2:], *how))
    torch.library.opcheck(op.weight_grad, (x, None, tensors["grad"], 3, *how))

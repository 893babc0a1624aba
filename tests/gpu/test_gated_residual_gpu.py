"""gated_residual on a GPU: the Triton kernels held to the reference, and what only a GPU can show. No CUDA kernels."""

from __future__ import annotations

import math
from dataclasses import replace

import gated_residual_cases as cases
import gpu_checks
import pytest
import torch
from gated_residual_cases import CASE, CASES, NAMES, Case, call, check, make, small

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "gated_residual"
pytestmark = [
    pytest.mark.usefixtures("fresh_memory_is_nan"),
    pytest.mark.parametrize("backend", ["triton"], indirect=True),
]
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[1::5] for dtype in (*gpu_checks.HALVES, torch.float64)],
]
# the maps of the disentangling network for digits and for pictures
LARGE = [
    Case("digits", (64, 32, 28, 28)),
    Case("digits_middle", (64, 64, 14, 14)),
    Case("digits_small", (64, 256, 4, 4)),
    Case("digits_up", (64, 32, 14, 14), up=2, crop=1),
    Case("features", (64, 512)),
    Case("pictures", (8, 32, 128, 128)),
    Case("pictures_nhwc", (8, 32, 128, 128), channels_last=True),
    Case("pictures_up", (8, 64, 64, 64), up=2),
    Case("pictures_up_nhwc", (8, 64, 64, 64), up=2, channels_last=True),
    Case("many_channels", (2, 1500, 9, 9)),
    Case("many_channels_nhwc", (2, 2048, 8, 8), channels_last=True, up=2, crop=2),
    Case("one_channel", (3, 1, 130, 254), up=2, crop=3),
]
LIMIT = 2**31


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_sums_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    tensors = make(case, torch.float32, "cuda")

    def run() -> list[torch.Tensor]:
        out = call(case, tensors, backend)
        return [out, *torch.autograd.grad(out, [tensors[name] for name in NAMES], tensors["grad"])]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if small(case) and 0 not in case.shape][::4], ids=str)
def test_gradcheck_and_gradgradcheck(backend: str, case: Case) -> None:
    gpu_checks.passes_gradcheck(cases, case, backend)


def test_the_kernels_of_the_backend_run(backend: str) -> None:
    names = gpu_checks.kernels_that_run(cases, LARGE[0], backend)
    assert {"gated_residual_kernel", "gated_residual_backward_kernel"} <= set(names), names


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, Case("stream", (4, 64, 256, 256), up=2), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["up_crop"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    x, gate = torch.zeros(2, 3, device="cuda"), torch.ones(3, device="cuda")
    with pytest.raises(ValueError, match="shortcut is on cpu, expected cuda"):
        anifast.ops.gated_residual(x, x.cpu(), gate, gate, backend=backend)
    with pytest.raises(ValueError, match="bias is on cpu, expected cuda"):
        anifast.ops.gated_residual(x, x, gate, gate, bias=gate.cpu(), backend=backend)


def test_native_is_refused_and_the_automatic_choice_runs(backend: str) -> None:
    x, gate = torch.randn(2, 3, 8, 8, device="cuda"), torch.randn(3, device="cuda")
    with pytest.raises(anifast.errors.BackendError, match="gated_residual has no native kernels for cuda"):
        anifast.ops.gated_residual(x, x, gate, gate, backend="native")
    found = anifast.ops.gated_residual(x, x, gate, gate)
    torch.testing.assert_close(found, anifast.ops.gated_residual(x, x, gate, gate, backend=backend))


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool, up: int) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 16 * math.prod(shape):
        pytest.skip("less than 35 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    case = Case("huge", shape, channels_last=channels_last, up=up, crop=up - 1)
    form = torch.channels_last if channels_last else torch.contiguous_format

    def draw(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()

    x, shortcut, grad = draw(*shape), draw(*case.shortcut_shape), draw(*shape)
    assert x.numel() > LIMIT
    parameters = {name: torch.randn(64, device="cuda", requires_grad=True) for name in NAMES[2:]}

    def run(part: slice) -> list[torch.Tensor]:
        given = {"x": x[part].detach().requires_grad_(), "shortcut": shortcut[part].detach().requires_grad_()}
        given |= parameters
        out = call(case, given, backend)
        return [out.detach(), *torch.autograd.grad(out, [given[name] for name in NAMES], grad[part])]

    together = run(slice(0, 3))
    sums = [torch.zeros_like(value, dtype=torch.float64) for value in parameters.values()]
    for sample in range(3):
        found = run(slice(sample, sample + 1))
        for name, whole, part in zip(("out", "d x", "d shortcut"), together[:3], found[:3], strict=True):
            assert torch.equal(whole[sample : sample + 1], part), f"{name} of sample {sample}"
        sums = [total + value for total, value in zip(sums, found[3:], strict=True)]
    # n products of about 1 add up to about sqrt(n), and so do their roundings, each of a lane's running sum of a
    # thousand: sqrt(1000) eps = 4e-6 of it; gates and slopes are some times larger than 1
    atol = 1e-4 * math.sqrt(math.prod(shape) / 64)
    for value, total in zip(together[3:], sums, strict=True):
        torch.testing.assert_close(value.double(), total, rtol=0.0, atol=atol)


@pytest.mark.parametrize("name", ["digits", "digits_up", "pictures_nhwc", "pictures_up_nhwc"])
def test_a_cuda_graph_replays_forward_and_backward(backend: str, name: str) -> None:
    case = next(case for case in LARGE if case.name == name)
    gpu_checks.graph_replays(cases, case, backend, NAMES)


@pytest.mark.parametrize("case", [LARGE[0], LARGE[3]], ids=str)
def test_compiles_into_one_graph(backend: str, case: Case) -> None:
    gpu_checks.compiles_into_one_graph(cases, case, backend)


@pytest.mark.parametrize("dtype", gpu_checks.HALVES, ids=str)
def test_autocast_takes_float32_parameters(backend: str, dtype: torch.dtype) -> None:
    case = replace(LARGE[1], float32_parameters=True)
    tensors = make(case, dtype, "cuda")
    expected = call(case, tensors, backend)
    with torch.autocast("cuda", dtype):
        out = call(case, tensors, backend)
        out.float().sum().backward()
    assert torch.equal(out, expected) and out.dtype == dtype
    assert tensors["x"].grad.dtype == dtype and tensors["slope"].grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["vectors", "nhwc_vectors", "up_vectors", "up_nhwc"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    gpu_checks.unaligned_memory_agrees(cases, CASE[name], backend)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd", "nhwc_odd", "up", "up_nhwc_crop"])
def test_nan_and_inf_pass_as_in_the_reference(backend: str, name: str, value: float) -> None:
    tensors = make(CASE[name], torch.float32, "cuda")
    with torch.no_grad():
        tensors["x"][:, 1] = value
        tensors["grad"][:, 1:, 1] = value
    leaves = [tensors[leaf] for leaf in NAMES]
    found = []
    for each in (backend, "reference"):
        out = call(CASE[name], tensors, each)
        found.append([out, *torch.autograd.grad(out, leaves, tensors["grad"])])
    for leaf, got, expected in zip(("out", *NAMES), *found, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@pytest.mark.parametrize("name", ["odd", "nhwc_odd", "up_crop", "linear_centred"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    given = [tensors.get(leaf) for leaf in NAMES]
    how = (case.mean, case.std, case.up, case.crop)
    torch.library.opcheck(torch.ops.anifast.gated_residual_triton.default, (*given, *how))
    wanted = [value is not None for value in given]
    torch.library.opcheck(
        torch.ops.anifast.gated_residual_backward_triton.default, (tensors["grad"], *given, *how, wanted)
    )

"""domain_norm on a GPU: the Triton kernels held to the reference, and what only a GPU can show. No CUDA kernels."""

from __future__ import annotations

import math
from dataclasses import replace

import domain_norm_cases as cases
import gpu_checks
import pytest
import torch
from domain_norm_cases import CASE, CASES, NAMES, RENORM, Case, call, check, make, small
from torch import Tensor

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "domain_norm"
pytestmark = [
    pytest.mark.usefixtures("fresh_memory_is_nan"),
    pytest.mark.parametrize("backend", ["triton"], indirect=True),
]
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[1::5] for dtype in (*gpu_checks.HALVES, torch.float64)],
]
# the layers of Twin-GAN: stacked groups in its small phases, few images in the large ones
LARGE = [
    Case("4_px", (64, 256, 4, 4), groups=4, renorm="inside"),
    Case("4_px_nhwc", (64, 256, 4, 4), groups=4, renorm="inside", channels_last=True),
    Case("16_px_nhwc", (32, 256, 16, 16), groups=4, renorm="inside", channels_last=True),
    Case("32_px", (16, 128, 32, 32), groups=2, renorm="inside"),
    Case("64_px_rows_nhwc", (16, 64, 64, 64), groups=2, rows=16, renorm="inside", channels_last=True),
    Case("128_px", (8, 32, 128, 128), groups=4, renorm="inside"),
    Case("128_px_nhwc", (8, 32, 128, 128), groups=4, renorm="inside", channels_last=True),
    Case("256_px", (4, 16, 256, 256), groups=2, renorm="inside"),
    Case("256_px_nhwc", (4, 16, 256, 256), groups=2, renorm="inside", channels_last=True),
    Case("256_px_one_group_nhwc", (4, 16, 256, 256), channels_last=True),
    Case("colours_nhwc", (4, 3, 256, 256), groups=4, slope=1.0, pixel_norm=False, channels_last=True),
    Case("running_nhwc", (4, 32, 128, 128), groups=2, statistics=True, channels_last=True),
    Case("512_channels", (4, 512, 8, 8), groups=2),
    Case("512_channels_nhwc", (4, 512, 8, 8), groups=2, channels_last=True),
    Case("many_channels", (2, 1500, 9, 9)),
    Case("many_channels_nhwc", (2, 2048, 8, 8), channels_last=True),
    Case("far_nhwc", (4, 24, 96, 96), groups=2, shift=1000.0, channels_last=True),
    Case("one_channel", (3, 1, 130, 254), pixel_norm=False),
]
LIMIT = 2**31


def step(case: Case, tensors: dict[str, Tensor], backend: str) -> list[Tensor]:
    """The output and the three gradients."""
    out = call(case, tensors, backend)
    return [out, *torch.autograd.grad(out, [tensors[name] for name in NAMES], tensors["grad"])]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_sums_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    gpu_checks.same_bits_each_time(cases, case, backend)


@pytest.mark.parametrize("case", [case for case in CASES if small(case) and 0 not in case.shape][::4], ids=str)
def test_gradcheck(backend: str, case: Case) -> None:
    tensors = make(case, torch.float64, "cuda")
    leaves = [name for name in NAMES if name in case.wants]

    def function(*values: Tensor) -> Tensor:
        return call(case, tensors | dict(zip(leaves, values, strict=True)), backend)

    assert torch.autograd.gradcheck(function, tuple(tensors[name] for name in leaves))


def test_the_kernels_of_the_backend_run(backend: str) -> None:
    names = gpu_checks.kernels_that_run(cases, next(case for case in LARGE if case.name == "256_px_nhwc"), backend)
    kinds = ("moments_", "finish_", "", "backward_", "totals_")
    assert {f"domain_norm_{kind}kernel" for kind in kinds} <= set(names), names


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, Case("stream", (4, 64, 256, 256), groups=2, renorm="inside"), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["renorm_nhwc"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    x, gamma = torch.zeros(2, 3, device="cuda"), torch.ones(3, device="cuda")
    with pytest.raises(ValueError, match="beta is on cpu, expected cuda"):
        anifast.ops.domain_norm(x, gamma, gamma.cpu(), backend=backend)
    with pytest.raises(ValueError, match="std is on cpu, expected cuda"):
        anifast.ops.domain_norm(x, gamma, gamma, statistics=(gamma[None], torch.ones(1, 3)), backend=backend)


def test_native_is_refused_and_the_automatic_choice_runs(backend: str) -> None:
    x, gamma = torch.randn(2, 3, 8, 8, device="cuda"), torch.randn(3, device="cuda")
    with pytest.raises(anifast.errors.BackendError, match="domain_norm has no native kernels for cuda"):
        anifast.ops.domain_norm(x, gamma, gamma, backend="native")
    found = anifast.ops.domain_norm(x, gamma, gamma)
    for got, expected in zip(found, anifast.ops.domain_norm(x, gamma, gamma, backend=backend), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 12 * math.prod(shape):
        pytest.skip("less than 26 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    form = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_() for _ in range(2))
    assert x.numel() > LIMIT
    gamma, beta = (torch.randn(3, 64, device="cuda", requires_grad=True) for _ in range(2))

    def run(part: slice) -> list[Tensor]:
        groups = len(range(3)[part])
        leaves = (x[part].detach().requires_grad_(), gamma[part], beta[part])
        # linear, as a kink takes what is rounded the other way to its other side
        out, mean, std = anifast.ops.domain_norm(*leaves, groups=groups, slope=1.0, backend=backend)
        return [out.detach(), mean, std, *torch.autograd.grad(out, leaves, grad[part])]

    together = run(slice(0, 3))
    for sample in range(3):  # of instance norm each sample has sums of its own, though in other parts
        found = run(slice(sample, sample + 1))
        for name, whole, part in zip(("out", "mean", "std", "x", "gamma", "beta"), together, found, strict=True):
            got, expected = whole[sample : sample + 1], part
            if name in ("out", "x"):  # rounded to 8 bits, perhaps the other way
                assert ((got - expected).abs() <= 2**-7 * expected.abs() + 1e-4).all(), name
            else:
                # n numbers of about 1 and either sign add up to about sqrt(n), and so do their roundings
                atol = 1e-5 * (math.sqrt(math.prod(shape[2:])) if name in ("gamma", "beta") else 1.0)
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("name", ["4_px_nhwc", "32_px", "64_px_rows_nhwc", "running_nhwc", "many_channels"])
def test_a_cuda_graph_replays_forward_and_backward(backend: str, name: str) -> None:
    case = next(case for case in LARGE if case.name == name)
    gpu_checks.graph_replays(cases, case, backend, NAMES)


def test_a_cuda_graph_sees_what_the_memories_hold_when_it_is_played(backend: str) -> None:
    case = Case("memories", (8, 16, 8, 8), groups=2, renorm="inside", channels_last=True)
    tensors = make(case, torch.float32, "cuda")
    step(case, tensors, backend)
    torch.use_deterministic_algorithms(False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(case, tensors, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, tensors, backend)
    before = captured[0].clone()
    for name, factor in zip(RENORM, (1.5, 0.7, 0.5, 0.9), strict=True):
        tensors[name].mul_(factor)
        graph.replay()
        for got, expected in zip(captured, step(case, tensors, backend), strict=True):
            assert torch.equal(got, expected), name
    assert not torch.equal(captured[0], before)


@pytest.mark.parametrize("name", ["4_px_nhwc", "128_px"])
def test_compiles_into_one_graph(backend: str, name: str) -> None:
    gpu_checks.compiles_into_one_graph(cases, next(case for case in LARGE if case.name == name), backend)


@pytest.mark.parametrize("dtype", gpu_checks.HALVES, ids=str)
def test_autocast_takes_float32_parameters(backend: str, dtype: torch.dtype) -> None:
    case = replace(LARGE[0], float32_parameters=True)
    tensors = make(case, dtype, "cuda")
    expected = call(case, tensors, backend)
    with torch.autocast("cuda", dtype):
        out = call(case, tensors, backend)
        out.float().sum().backward()
    assert torch.equal(out, expected) and out.dtype == dtype
    assert tensors["x"].grad.dtype == dtype and tensors["gamma"].grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["vectors", "nhwc_vectors", "rows_nhwc", "colours"])
def test_memory_that_is_not_aligned(backend: str, name: str) -> None:
    gpu_checks.unaligned_memory_agrees(cases, CASE[name], backend)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd_groups", "nhwc_odd", "no_pixel_norm", "renorm_nhwc"])
def test_nan_and_inf_pass_as_in_the_reference(backend: str, name: str, value: float) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    with torch.no_grad():
        tensors["x"][0, 1] = value
        tensors["grad"][-1, 0, 1] = value
    for got, expected in zip(*(step(case, tensors, each) for each in (backend, "reference")), strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())
        some = expected.isfinite()
        torch.testing.assert_close(got[some], expected[some])


@pytest.mark.parametrize("name", ["odd_groups", "renorm_nhwc", "rows", "statistics"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    inputs = [tensors[leaf] for leaf in NAMES]
    constants = [tensors.get(key) for key in (*RENORM, *cases.STATISTICS)]
    how = (case.slope, case.pixel_norm, case.eps, case.pixel_eps)
    torch.library.opcheck(torch.ops.anifast.domain_norm_triton.default, (*inputs, case.groups, *constants, *how))
    stats = torch.rand(4, case.groups, case.shape[1], device="cuda") + 0.5
    arguments = [value.detach() for value in (tensors["grad"], *inputs)]  # second derivatives are refused
    torch.library.opcheck(
        torch.ops.anifast.domain_norm_backward_triton.default,
        (*arguments, stats, case.statistics, case.slope, case.pixel_norm, case.pixel_eps, [True] * 3),
    )

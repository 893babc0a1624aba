"""gram on a GPU: the Triton kernels held to the reference, and what only a GPU can show. It has no CUDA kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import golden_calls
import gpu_checks
import gram_cases as cases
import pytest
import torch
from gram_cases import CASE, CASES, Case, call, check, make, maps, small

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "gram"
pytestmark = [
    pytest.mark.usefixtures("fresh_memory_is_nan", "products_of_float32"),
    pytest.mark.parametrize("backend", ["triton"], indirect=True),
]
# Triton compiles anew for almost each of these, so half types get a part
TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[1::4] for dtype in gpu_checks.HALVES],
]
_VGG = ((64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16))
LARGE = [
    Case("style", _VGG, batch=1),
    Case("style_folded", _VGG, batch=3, folded=True),
    Case("style_nhwc", _VGG, batch=2, last=(0, 1, 2, 3, 4), folded=True),
    Case("style_mixed", _VGG, batch=1, last=(1, 4)),
    Case("alex", ((64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13)), batch=3),
    Case("alex_nhwc", ((64, 55, 55), (192, 27, 27), (384, 13, 13)), batch=3, last=(0, 1, 2), folded=True),
    Case("single", ((200, 31, 33),), batch=5, single=True),
    Case("thirty_maps", ((17, 9, 11), (40, 5, 4), (3, 20, 20)) * 10, batch=2, last=(2, 7, 11)),
    Case("thousands_of_channels", ((2048, 7, 7),), batch=1),
]
LIMIT = 2**31
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def products_of_float32() -> Iterator[None]:
    """The reference's products are of float32 by default; a setting of another test must not reach these."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE[::2], ids=str)
def test_results_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    tensors = make(case, torch.float32, "cuda")

    def run() -> list[torch.Tensor]:
        out = call(case, tensors, backend)
        return [out, *torch.autograd.grad(out, maps(tensors), tensors["grad"])]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if small(case) and case.batch][::4], ids=str)
def test_gradcheck_and_gradgradcheck(backend: str, case: Case) -> None:
    gpu_checks.passes_gradcheck(cases, case, backend)


def test_the_kernels_of_the_backend_run(backend: str) -> None:
    names = gpu_checks.kernels_that_run(cases, LARGE[0], backend)
    assert {"gram_kernel", "gram_sums_kernel", "gram_backward_kernel"} <= set(names), names


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, Case("stream", ((64, 256, 256), (32, 128, 128))), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["five"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_maps_on_two_devices_are_refused(backend: str) -> None:
    x = torch.zeros(2, 3, 8, 8, device="cuda")
    with pytest.raises(ValueError, match=r"features\[1\] is on cpu, expected cuda"):
        anifast.ops.gram([x, x.cpu()], backend=backend)


def test_native_is_refused_and_the_automatic_choice_runs(backend: str) -> None:
    x = torch.randn(2, 3, 8, 8, device="cuda")
    with pytest.raises(anifast.errors.BackendError, match="gram has no native kernels for cuda"):
        anifast.ops.gram(x, backend="native")
    torch.testing.assert_close(anifast.ops.gram(x), anifast.ops.gram(x, backend=backend))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 8 * math.prod(shape):
        pytest.skip("less than 17 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    assert x.numel() > LIMIT
    case = Case("huge", (shape[1:],), batch=3, normalize="hw", single=True)
    grad = torch.randn(3, 64, 64, device="cuda")

    def run(part: slice) -> list[torch.Tensor]:
        given = x[part].detach().requires_grad_()
        out = call(case, {"0": given}, backend)
        return [out.detach(), *torch.autograd.grad(out, given, grad[part])]

    together = run(slice(0, 3))
    for sample in range(3):
        matrix, gradient = run(slice(sample, sample + 1))
        # an image alone may be split otherwise, and its sums round otherwise: each by half a unit of the products'
        # absolute sum (at most the diagonal's largest, Cauchy-Schwarz) times the root of their number, both of them
        sums = math.sqrt(math.prod(shape[2:])) * EPS * float(matrix.abs().max())
        torch.testing.assert_close(together[0][sample : sample + 1], matrix, rtol=0.0, atol=sums)
        # a gradient of 64 products is rounded to bfloat16, here to one neighbour and there to the other; where the
        # products cancel float32's roundings are left, of 64 that are as large as the largest result at most
        atol = 64 * EPS * float(gradient.abs().max())
        torch.testing.assert_close(together[1][sample : sample + 1], gradient, rtol=2**-7, atol=atol)


def test_a_cuda_graph_replays_forward_and_backward(backend: str) -> None:
    gpu_checks.graph_replays(cases, LARGE[1], backend, ("0", "2", "4"))


@pytest.mark.parametrize("case", [CASE["five_folded"], LARGE[6]], ids=str)
def test_compiles_into_one_graph(backend: str, case: Case) -> None:
    gpu_checks.compiles_into_one_graph(cases, case, backend, "0")


@pytest.mark.parametrize("dtype", gpu_checks.HALVES, ids=str)
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    case = replace(LARGE[4], batch=2)
    tensors = make(case, dtype, "cuda")
    expected = call(case, tensors, backend)
    with torch.autocast("cuda", dtype):
        out = call(case, tensors, backend)
    assert torch.equal(out, expected) and out.dtype == torch.float32


@pytest.mark.parametrize("case", [CASE["whole_blocks"], CASE["whole_blocks_nhwc"], LARGE[4]], ids=str)
def test_memory_that_is_not_aligned(backend: str, case: Case) -> None:
    gpu_checks.unaligned_memory_agrees(cases, case, backend)


@pytest.mark.parametrize("name", ["five_folded", "five_nhwc", "single"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    given, scales = maps(tensors), [1.0 / math.prod(shape) for shape in case.maps]
    grad = tensors["grad"].flatten(1)
    torch.library.opcheck(torch.ops.anifast.gram_triton.default, (given, scales, case.folded))
    wanted = [True] * len(given)
    torch.library.opcheck(torch.ops.anifast.gram_backward_triton.default, (grad, given, scales, case.folded, wanted))


def test_golden_losses_gram(backend: str, golden: Callable[[str], Any]) -> None:
    case = golden("losses_gram")
    found = cases.golden_results(case, backend, "cuda")
    assert set(found) == set(case.outputs), "every stored output is compared"
    golden_calls.check(case, {name: value.cpu() for name, value in found.items()})  # to the limits of the CPU

"""lpips_layer on a GPU: both compiled backends held to the reference, and what only a GPU can show."""

from __future__ import annotations

import math
from dataclasses import replace

import gpu_checks
import lpips_layer_cases as cases
import pytest
import torch
from lpips_layer_cases import CASE, CASES, Case, call, check, make, small

import anifast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

OP = "lpips_layer"
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")
# Triton compiles anew for almost each of these, so it gets a part of the other types
TYPES = [
    *[("native", case, dtype) for case in CASES for dtype in (*gpu_checks.HALVES, torch.float32, torch.float64)],
    *[("triton", case, torch.float32) for case in CASES],
    *[("triton", case, dtype) for case in CASES[1::5] for dtype in gpu_checks.HALVES],
]
# the maps of the networks that LPIPS has heads for, and more channels than a thread block or a tile holds
LARGE = [
    Case("vgg1", (2, 64, 256, 256)),
    Case("vgg2", (2, 128, 128, 128)),
    Case("vgg3_near", (2, 256, 64, 64), near=True),
    Case("vgg4", (2, 512, 32, 32)),
    Case("vgg5", (16, 512, 16, 16)),
    Case("vgg1_nhwc", (2, 64, 256, 256), channels_last=True),
    Case("vgg4_nhwc", (2, 512, 32, 32), channels_last=True, zeros=True),
    Case("vgg5_nhwc", (16, 512, 16, 16), channels_last=True),
    Case("alex2_map", (3, 192, 27, 27), reduce="none"),
    Case("alex3_nhwc", (3, 384, 13, 13), channels_last=True, reduce="none"),
    Case("squeeze", (3, 256, 15, 15), zeros=True),
    Case("many_channels", (2, 1500, 9, 9)),
    Case("many_channels_nhwc", (2, 2048, 7, 7), channels_last=True),
    Case("image_nhwc", (2, 3, 301, 299), channels_last=True),
]
LIMIT = 2**31
EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("backend", "case", "dtype"), TYPES, indirect=["backend"], ids=str)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_shapes_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend, "cuda", seed=1)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_results_are_the_same_bits_each_time(backend: str, case: Case) -> None:
    gpu_checks.same_bits_each_time(cases, case, backend)


@pytest.mark.parametrize("case", [case for case in CASES if small(case) and 0 not in case.shape][::3], ids=str)
def test_gradcheck_and_gradgradcheck(backend: str, case: Case) -> None:
    gpu_checks.passes_gradcheck(cases, case, backend)


def test_the_kernels_of_the_backend_run(backend: str) -> None:
    names = gpu_checks.kernels_that_run(cases, LARGE[0], backend)
    kernels = ["lpips_layer_kernel", "lpips_layer_backward_kernel"]
    kernels += ["lpips_layer_mean_kernel"] if backend == "native" else []
    for kernel in kernels:
        ours = [name for name in names if kernel in name]
        assert ours and all(("anifast::" in name) == (backend == "native") for name in ours), names


def test_the_automatic_choice_is_a_compiled_backend() -> None:
    assert anifast.backends.automatic("lpips_layer", "cuda") in ("native", "triton")


def test_another_stream_orders_the_kernels_after_its_own_work(backend: str) -> None:
    gpu_checks.stream_orders_kernels(cases, replace(LARGE[0], shape=(4, 64, 256, 256)), backend)


def test_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(0):
        found = check(CASE["odd"], torch.float32, backend, "cuda:1")
    assert all(value.device.index == 1 for value in found.values())


def test_operands_on_two_devices_are_refused(backend: str) -> None:
    a = torch.zeros(2, 3, 8, 8, device="cuda")
    with pytest.raises(ValueError, match="b is on cpu, expected cuda"):
        anifast.ops.lpips_layer(a, a.cpu(), backend=backend)
    with pytest.raises(ValueError, match="weight is on cpu, expected cuda"):
        anifast.ops.lpips_layer(a, a, torch.ones(3), backend=backend)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend: str, channels_last: bool) -> None:
    shape = (3, 64, 4096, 2740)
    if torch.cuda.mem_get_info()[0] < 13 * math.prod(shape):
        pytest.skip("less than 28 GB of GPU memory is free")
    torch.use_deterministic_algorithms(False)  # filling fresh memory would double the time
    case = Case("huge", shape, channels_last=channels_last, reduce="none" if channels_last else "mean")
    form = torch.channels_last if channels_last else torch.contiguous_format
    a = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    b = torch.empty_like(a).normal_()
    assert a.numel() > LIMIT
    weight = torch.rand(64, device="cuda")
    grad = torch.randn((3, 1, *shape[2:]) if channels_last else (3, 1, 1, 1), device="cuda")

    def run(part: slice) -> list[torch.Tensor]:
        given = {"a": a[part].detach().requires_grad_(), "b": b[part].detach().requires_grad_(), "weight": weight}
        out = call(case, given, backend)
        return [out.detach(), *torch.autograd.grad(out, [given["a"], given["b"]], grad[part])]

    together = run(slice(0, 3))
    for sample in range(3):
        for whole, part in zip(together, run(slice(sample, sample + 1)), strict=True):
            # the parts may be cut elsewhere: a distance's terms are not negative, so its sums over 64 channels, threads
            # and blocks round relatively; a gradient is rounded to its type, here to one neighbour and there to the
            # other, and where its terms cancel what is left of them are float32's roundings of the largest
            rtol, atol = (64 * EPS, 0.0) if part.dtype == torch.float32 else (2**-7, 64 * EPS * float(part.abs().max()))
            torch.testing.assert_close(whole[sample : sample + 1], part, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", [LARGE[3], LARGE[6]], ids=str)
def test_a_cuda_graph_replays_forward_and_backward(backend: str, case: Case) -> None:
    gpu_checks.graph_replays(cases, case, backend, ("a", "b"))


def test_compiles_into_one_graph(backend: str) -> None:
    gpu_checks.compiles_into_one_graph(cases, LARGE[3], backend, "a")


@pytest.mark.parametrize("dtype", gpu_checks.HALVES, ids=str)
def test_autocast_takes_a_float32_weight(backend: str, dtype: torch.dtype) -> None:
    case = replace(LARGE[4], float32_weight=True, wants=("a", "b", "weight"))
    tensors = make(case, dtype, "cuda")
    expected = call(case, tensors, backend)
    with torch.autocast("cuda", dtype):
        out = call(case, tensors, backend)
        out.sum().backward()
    assert torch.equal(out, expected) and out.dtype == torch.float32
    assert tensors["a"].grad.dtype == dtype and tensors["weight"].grad.dtype == torch.float32


@pytest.mark.parametrize("case", [LARGE[1], CASE["odd_map"], LARGE[7], CASE["nhwc_map"]], ids=str)
def test_memory_that_is_not_aligned(backend: str, case: Case) -> None:
    gpu_checks.unaligned_memory_agrees(cases, case, backend)


@pytest.mark.parametrize("dtype", [*gpu_checks.HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("case", [LARGE[3], LARGE[6], LARGE[11], LARGE[12]], ids=str)
def test_equal_maps_are_at_a_distance_of_0(backend: str, case: Case, dtype: torch.dtype) -> None:
    tensors = make(case, dtype, "cuda")
    tensors["b"] = tensors["a"].detach().clone().requires_grad_()
    out = call(case, tensors, backend)
    found = [out, *torch.autograd.grad(out, [tensors["a"], tensors["b"]], tensors["grad"])]
    # neither compiler fuses p a - q b, which would leave the rounding of one product
    assert all(value.eq(0).all() for value in found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["odd_map", "nhwc_map"])
def test_what_is_not_finite_stays_in_its_pixel_and_is_seen(backend: str, name: str, value: float) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    expected = [value.detach() for value in cases.results(case, tensors, backend).values()][:3]
    with torch.no_grad():
        tensors["a"][0, 1, 1, 2] = value
    out = call(case, tensors, backend)
    found = [out, *torch.autograd.grad(out, [tensors["a"], tensors["b"]], tensors["grad"])]
    here = torch.zeros_like(out, dtype=torch.bool)
    here[0, 0, 1, 2] = True
    for got, finite in zip(found, expected, strict=True):
        assert got[here.expand_as(got)].isnan().any()
        assert torch.equal(got[~here.expand_as(got)], finite[~here.expand_as(got)])


@pytest.mark.parametrize("name", ["odd", "nhwc_map"])
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    case = CASE[name]
    tensors = make(case, torch.float32, "cuda")
    suffix = "" if backend == "native" else "_triton"
    forward = getattr(torch.ops.anifast, f"lpips_layer{suffix}").default
    backward = getattr(torch.ops.anifast, f"lpips_layer_backward{suffix}").default
    maps = (tensors["a"], tensors["b"], tensors["weight"].flatten())
    how = (case.eps, case.eps_inside, case.reduce == "mean")
    torch.library.opcheck(forward, (*maps, *how))
    _, stats = forward(*maps, *how)
    torch.library.opcheck(backward, (tensors["grad"], *maps, stats.detach(), *how, True, True))

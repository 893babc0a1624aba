"""The Triton kernels of lpips_layer in Triton's interpreter; test_lpips_layer_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from lpips_layer_cases import CASE, CASES, Case, call, check, make, results
from torch import Tensor

import anifast
from anifast.ops import lpips_layer

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::3] for dtype in (torch.float16, torch.bfloat16)],
]
FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.lpips_layer")


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(launched: list[str], case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "triton")
    if case.shape[0] == 0:
        assert not launched
    else:  # both gradients in one pass, and that of the weight in none
        backward = ["lpips_layer_backward_kernel"] if {"a", "b"} & set(case.wants) else []
        assert launched == ["lpips_layer_kernel", *backward]


@pytest.mark.parametrize(
    "name",
    ["vectors_and_rest", "many_channels", "nhwc_vectors_and_rest", "nhwc_zeros", "zeros_inside", "no_weight_map"],
)
def test_more_channels_than_are_held(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(kernels, "_CHANNELS", 2)
    case = CASE[name]
    assert not kernels._plan(torch.empty(case.shape), case.channels_last).held
    check(case, torch.float32, "triton")


@pytest.mark.parametrize("name", ["vectors_and_rest", "many_channels", "nhwc_vectors", "nhwc_zeros"])
def test_tiles_and_walks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(kernels, "_TILE", 32)
    monkeypatch.setattr(kernels, "_LEAST", 1)
    case = CASE[name]
    x, last = torch.empty(case.shape), case.channels_last

    def is_uneven(programs: int) -> bool:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        plan = kernels._walk(x, last)
        steps = -(-case.shape[1] // (plan.across if last else plan.high))
        return plan.tiles > 1 and plan.walks > 1 and 1 < plan.each and plan.each * plan.walks > steps

    assert any(is_uneven(programs) for programs in range(1, 200)), "the last walk shall end before the others"
    assert kernels._plan(x, last).tiles > 1
    check(case, torch.float32, "triton")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps_inside", [False, True], ids=["outside", "inside"])
def test_the_four_numbers_of_a_pixel_are_those_of_the_contract(
    kernels: ModuleType, eps_inside: bool, form: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 6, 3, 5, generator=generator).contiguous(memory_format=FORMS[form]) for _ in range(2))
    weight, eps = torch.rand(6, generator=generator), 0.1
    _, stats = kernels.lpips_layer(a, b, weight, eps, eps_inside, True, FORMS[form])
    a, b, weight = a.double().flatten(2), b.double().flatten(2), weight.double()[:, None]
    norms = [x.square().sum(1) for x in (a, b)]
    p, q = ((s + eps).rsqrt() if eps_inside else 1 / (s.sqrt() + eps) for s in norms)
    difference = weight * (p[:, None] * a - q[:, None] * b)
    of_a, of_b = (p**2, q**2) if eps_inside else (p / norms[0].sqrt(), q / norms[1].sqrt())
    expected = torch.stack([p, q, (difference * a).sum(1) * of_a, (difference * b).sum(1) * of_b])
    torch.testing.assert_close(stats, expected.float(), rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps_inside", [False, True], ids=["outside", "inside"])
def test_the_gradient_at_a_zero_vector_is_zero(eps_inside: bool, form: str) -> None:
    a, b = (torch.randn(1, 5, 2, 3).contiguous(memory_format=FORMS[form]) for _ in range(2))
    a[0, :, 0, 0], b[0, :, 1, 1] = 0, 0
    a.requires_grad_(), b.requires_grad_()
    weight = torch.arange(1.0, 6.0)
    out = lpips_layer(a, b, weight, eps_inside=eps_inside, reduce="none", backend="triton")
    ga, gb = torch.autograd.grad(out.sum(), (a, b))
    assert out.isfinite().all() and ga.isfinite().all() and gb.isfinite().all()
    assert ga[0, :, 0, 0].eq(0).all() and gb[0, :, 1, 1].eq(0).all()
    assert ga[0, :, 1, 1].ne(0).any() and gb[0, :, 0, 0].ne(0).any()


@pytest.mark.parametrize("form", FORMS)
def test_equal_maps_differ_in_nothing(form: str) -> None:
    a = torch.randn(2, 7, 3, 5).contiguous(memory_format=FORMS[form]).requires_grad_()
    b = a.detach().clone().requires_grad_()
    out = lpips_layer(a, b, backend="triton")
    assert out.eq(0).all() and all(value.eq(0).all() for value in torch.autograd.grad(out.sum(), (a, b)))


def test_short_vectors_overflow_nothing(kernels: ModuleType) -> None:
    a = torch.randn(1, 5, 2, 3) * 1e-19
    b = torch.randn(1, 5, 2, 3)
    out, stats = kernels.lpips_layer(a, b, None, 0.0, False, False, torch.contiguous_format)
    assert out.isfinite().all() and stats.isfinite().all()


@pytest.mark.parametrize("name", ["many_channels", "nhwc_vectors"])
def test_addresses_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    check(CASE[name], torch.float32, "triton")


def test_sums_are_the_same_bits_each_time(kernels: ModuleType) -> None:
    case = CASE["many_pixels"]
    assert kernels._plan(torch.empty(case.shape), False).tiles > 1
    tensors = make(case, torch.float32)
    first, second = results(case, tensors, "triton"), results(case, tensors, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    case = CASE["odd"]
    tensors = make(case, torch.float32)
    inputs = [tensors["a"], tensors["b"]]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return call(case, tensors | {"a": a, "b": b}, None) + 1.0

    with anifast.use_backend("triton"):
        out = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
        got = torch.autograd.grad(out.sum(), inputs)
    expected = call(case, tensors, "reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), inputs))
    assert launched == ["lpips_layer_kernel", "lpips_layer_backward_kernel"]


@pytest.mark.parametrize("name", ["no_weight_map", "nhwc_map"])
def test_opcheck(name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    weight = tensors["weight"].detach().flatten() if case.weight else None
    how = (case.eps, case.eps_inside, case.reduce == "mean")
    a, b = tensors["a"], tensors["b"]
    torch.library.opcheck(torch.ops.anifast.lpips_layer_triton, (a, b, weight, *how))
    out, stats = torch.ops.anifast.lpips_layer_triton(a, b, weight, *how)
    grad = torch.randn_like(out).requires_grad_()
    for wants in ((True, True), (False, True)):
        arguments = (grad, a, b, weight, stats, *how, *wants)
        torch.library.opcheck(torch.ops.anifast.lpips_layer_backward_triton, arguments)

"""The Triton kernels of domain_norm in Triton's interpreter; test_domain_norm_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from domain_norm_cases import CASES, NAMES, Case, check
from torch import Tensor

import anifast
from anifast.ops import domain_norm

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::3] for dtype in (torch.float16, torch.bfloat16)],
]
FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FIRST = ["domain_norm_moments_kernel", "domain_norm_kernel"]
SECOND = ["domain_norm_backward_kernel", "domain_norm_totals_kernel", "domain_norm_backward_kernel"]


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.domain_norm")


@pytest.fixture
def small_tiles(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps are cut into several tiles, and statistics are made in parts, by few programs."""
    for name, value in (("_THREADS", 4), ("_TOGETHER", 4), ("_LINE", 16), ("_ALONE", 0), ("_PROGRAMS", 16)):
        monkeypatch.setattr(kernels, name, value)


def maps(shape: tuple[int, ...], form: str, rows: int = 2, groups: int = 2) -> list[Any]:
    """A gradient, x, gamma and beta, the number of groups, and renorm's four tensors."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    found = [torch.randn(shape, generator=generator).contiguous(memory_format=FORMS[form]) for _ in range(2)]
    found += [torch.randn(rows, channels, generator=generator) for _ in range(2)]
    memories = [0.3 * torch.randn(groups, channels, generator=generator), torch.rand(groups, channels)]
    return [*found, groups, *memories, torch.rand(groups, 2, generator=generator), torch.tensor([0.7, 1.4, 0.2])]


def both(kernels: ModuleType, given: list[Any], form: str, slope: float = 0.2, pixel_norm: bool = True) -> list[Tensor]:
    """The results of both ops of a call with renorm: out, statistics, and three gradients."""
    grad, x, gamma, beta, *rest = given
    how = (slope, pixel_norm)
    out, stats = kernels.domain_norm(x, gamma, beta, *rest, None, None, *how, 1e-3, 1e-6, FORMS[form])
    arguments = (grad, x, gamma, beta, stats, False, *how, 1e-6, [True] * 3, FORMS[form])
    return [out, stats, *kernels.domain_norm_backward(*arguments)]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "triton")


@pytest.mark.parametrize("form", FORMS)
def test_kernels_of_a_call(kernels: ModuleType, launched: list[str], request: pytest.FixtureRequest, form: str) -> None:
    given = maps((4, 5, 6, 7), form)
    together = both(kernels, given, form)
    assert launched == FIRST + SECOND
    launched.clear()
    request.getfixturevalue("small_tiles")
    in_parts = both(kernels, given, form)
    assert launched == ["domain_norm_moments_kernel", "domain_norm_finish_kernel", "domain_norm_kernel", *SECOND]
    for got, expected in zip(in_parts, together, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "rows", "pixel_norm"),
    [((6, 5, 6, 7), 2, True), ((6, 9, 3, 5), 6, False), ((10, 20, 1, 7), 10, True)],
)
def test_parts_and_walks(
    kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    shape: tuple[int, ...],
    rows: int,
    pixel_norm: bool,
    form: str,
) -> None:
    given = maps(shape, form, rows)
    expected = both(kernels, given, form, pixel_norm=pixel_norm)
    request.getfixturevalue("small_tiles")
    plan = kernels._plan
    cuts: list[tuple[Any, ...]] = []

    def is_uneven(programs: int) -> bool:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        found = kernels._Maps(*given[1:5], 0.2, pixel_norm, 1e-6, FORMS[form]).plan(2, False)
        return found.parts > 1 and found.each > 1 and found.each * found.parts > found.steps

    assert any(is_uneven(programs) for programs in range(1, 400)), "the last program shall end before the others"
    monkeypatch.setattr(kernels, "_plan", lambda *cut: cuts.append(cut) or plan(*cut))
    for got, value in zip(both(kernels, given, form, pixel_norm=pixel_norm), expected, strict=True):
        torch.testing.assert_close(got, value)
    assert len(cuts) == 4, "statistics, forward and two passes backward"
    exact = [value.double() if isinstance(value, Tensor) else value for value in given]
    leaves = [value.requires_grad_() for value in exact[1:4]]
    out, mean, std = domain_norm(*leaves, groups=2, renorm=tuple(exact[5:]), pixel_norm=pixel_norm, backend="reference")
    reference = [out, torch.stack([mean, std]), *torch.autograd.grad(out, leaves, exact[0])]
    expected[1] = expected[1][:2]
    for got, value in zip(expected, reference, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [3, 9, 20])
def test_more_channels_than_are_held(
    kernels: ModuleType,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    channels: int,
    form: str,
) -> None:
    given = maps((4, channels, 3, 7), form, rows=4)
    held = both(kernels, given, form)
    monkeypatch.setattr(kernels, "_CHANNELS", 2)
    request.getfixturevalue("small_tiles")
    launched.clear()
    loaded = both(kernels, given, form)
    assert launched.count("domain_norm_pixels_kernel") == 2
    for got, expected in zip(loaded, held, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("first", ["as the others", "far away"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["alone", "in_parts"])
@pytest.mark.parametrize("form", FORMS)
def test_variances_do_not_cancel(
    kernels: ModuleType, request: pytest.FixtureRequest, form: str, in_parts: bool, first: str
) -> None:
    if in_parts:
        request.getfixturevalue("small_tiles")
    generator = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(4, 6, 9, 13, generator=generator)
    if first == "far away":
        x[::2, :, 0, 0] = 0.0
    x = x.contiguous(memory_format=FORMS[form])
    ones = torch.ones(2, 6)
    none = (None,) * 6
    _, stats = kernels.domain_norm(x, ones, ones, 2, *none, 1.0, False, 0.0, 0.0, FORMS[form])
    parts = x.double().reshape(2, 2, 6, -1)
    # A mean is rounded once, and again where it is known away from the first value. What a value is away from it is
    # rounded to half an ulp of itself or of the running mean, and so is a variance to as little; sums go on rounding,
    # at most as often as the interpreter adds in a row, 117 times for a tile's column.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(stats[0].double(), parts.mean((1, 3)), rtol=eps, atol=0.0)
    std = parts.var((1, 3), correction=0).sqrt()
    torch.testing.assert_close(stats[1].double(), std, rtol=117 * eps, atol=0.0)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_only_wanted_gradients_are_made(kernels: ModuleType, launched: list[str], form: str, fixed: bool) -> None:
    grad, x, gamma, beta, groups, *_ = maps((4, 5, 4, 6), form, rows=4)
    generator = torch.Generator().manual_seed(1)
    stats = torch.rand(4, groups, 5, generator=generator) + 0.5

    def run(*wanted: bool) -> tuple[Tensor, ...]:
        launched.clear()
        how = (fixed, 0.2, True, 1e-6, wanted, FORMS[form])
        return kernels.domain_norm_backward(grad, x, gamma, beta, stats, *how)

    together = run(True, True, True)
    assert launched == (SECOND[:2] if fixed else SECOND)
    for i in range(3):
        found = run(*(i == other for other in range(3)))
        assert launched == (SECOND[:1] if fixed else SECOND) if i == 0 else SECOND[:2]
        assert torch.equal(found[i], together[i])
        assert [value.numel() > 0 for value in found] == [i == other for other in range(3)]
    assert not any(value.numel() for value in run(False, False, False)) and not launched


@pytest.mark.parametrize("form", FORMS)
def test_pixels_that_are_not_there_add_nothing(kernels: ModuleType, form: str) -> None:
    grad, x, gamma, beta, *_ = maps((2, 3, 2, 5), form)
    stats = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(4, 1, 1).repeat(1, 2, 3)
    beta.zero_()  # a pixel that is not there reads as 0, whose square is 0 too, and so is pixel_eps
    for fixed in (False, True):
        how = (fixed, 0.2, True, 0.0, [True] * 3, FORMS[form])
        for value in kernels.domain_norm_backward(grad, x, gamma, beta, stats, *how):
            assert value.isfinite().all()


@pytest.mark.parametrize("pixel_norm", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_passes_as_in_the_reference(form: str, pixel_norm: bool) -> None:
    grad, x, gamma, beta, *_ = maps((4, 5, 4, 6), form, rows=4)
    for channel, value in enumerate((math.nan, math.inf, -math.inf)):
        x[0, channel, 2, 3] = value
        grad[2, channel + 1, 1, 2] = value
    leaves = [value.requires_grad_() for value in (x, gamma, beta)]
    found = []
    for backend in ("triton", "reference"):
        out, _, std = domain_norm(*leaves, groups=2, pixel_norm=pixel_norm, backend=backend)
        found.append([out, std, *torch.autograd.grad(out, leaves, grad)])
    for name, got, expected in zip(("out", "std", *NAMES), *found, strict=True):
        assert expected.isfinite().logical_not().any(), name
        # which of those that are not finite is up to the order of operations
        assert torch.equal(got.isfinite(), expected.isfinite()), name
        some = expected.isfinite()
        torch.testing.assert_close(got[some], expected[some], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("form", FORMS)
def test_what_a_memory_holds_later_is_not_seen_by_backward(form: str) -> None:
    grad, x, gamma, beta, groups, *renorm = maps((4, 5, 4, 6), form)
    leaves = [value.requires_grad_() for value in (x, gamma, beta)]
    found = []
    for changed in (False, True):
        out, *_ = domain_norm(*leaves, groups=groups, renorm=tuple(renorm), backend="triton")
        if changed:
            for value in renorm:
                value.fill_(3.0)
        found.append(torch.autograd.grad(out, leaves, grad))
    assert all(torch.equal(got, expected) for got, expected in zip(*found, strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("channels", [5, 9])
@pytest.mark.parametrize("form", FORMS)
def test_addresses_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, form: str, channels: int) -> None:
    monkeypatch.setattr(kernels, "_CHANNELS", 8)
    given = maps((4, channels, 6, 7), form, rows=4)
    short = both(kernels, given, form)
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    assert all(torch.equal(got, value) for got, value in zip(both(kernels, given, form), short, strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("form", FORMS)
def test_sums_are_the_same_bits_each_time(kernels: ModuleType, form: str) -> None:
    given = maps((2, 9, 8, 8), form)
    first, second = both(kernels, given, form), both(kernels, given, form)
    assert all(torch.equal(value, other) for value, other in zip(first, second, strict=True))


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    grad, x, gamma, beta, groups, *renorm = maps((4, 5, 4, 6), "channels_last")
    leaves = [value.requires_grad_() for value in (x, gamma, beta)]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        out, mean, std = domain_norm(*values, groups=groups, renorm=tuple(renorm))
        return out + 1.0, mean + std

    with anifast.use_backend("triton"):
        out, sums = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
        got = torch.autograd.grad(out, leaves, grad)
    assert launched == FIRST + SECOND and not sums.requires_grad
    expected, mean, std = domain_norm(*leaves, groups=groups, renorm=tuple(renorm), backend="reference")
    torch.testing.assert_close(out, expected + 1.0)
    torch.testing.assert_close(sums, mean + std)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, grad))


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str) -> None:
    grad, x, gamma, beta, groups, *renorm = maps((4, 3, 4, 6), form, rows=4)
    x, gamma, beta = (value.requires_grad_() for value in (x, gamma, beta))
    given, how = (x, gamma, beta, groups), (0.2, True, 1e-3, 1e-6)
    torch.library.opcheck(torch.ops.anifast.domain_norm_triton, (*given, *renorm, None, None, *how))
    statistics = (torch.randn(groups, 3), torch.rand(groups, 3) + 0.5)
    torch.library.opcheck(torch.ops.anifast.domain_norm_triton, (*given, *[None] * 4, *statistics, *how))
    stats = torch.rand(4, groups, 3) + 0.5
    # without gradients, as second ones are refused
    inputs = [value.detach() for value in (grad, x, gamma, beta)]
    for fixed, wanted in ((False, [True] * 3), (True, [True, False, True]), (False, [False, True, False])):
        arguments = (*inputs, stats, fixed, 0.2, True, 1e-6, wanted)
        torch.library.opcheck(torch.ops.anifast.domain_norm_backward_triton, arguments)


def test_the_second_derivative_is_refused() -> None:
    x, gamma, beta = torch.randn(2, 3, requires_grad=True), torch.ones(3), torch.zeros(3)
    out, *_ = domain_norm(x, gamma, beta, backend="triton")
    (gx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='only backend="reference" has a second derivative'):
        torch.autograd.grad(gx.square().sum(), x)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 3)], ids=str)
def test_nothing_to_do(launched: list[str], shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    gamma, beta = (torch.ones(2, shape[1], requires_grad=True) for _ in range(2))
    renorm = (torch.ones(2, shape[1]), torch.ones(2, shape[1]), torch.ones(2, 2), torch.tensor([0.5, 2.0, 1.0]))
    out, mean, std = domain_norm(x, gamma, beta, groups=2, renorm=renorm, backend="triton")
    assert out.shape == x.shape and mean.eq(0).all() and std.eq(torch.tensor(math.sqrt(1e-3))).all()
    for value, leaf in zip(torch.autograd.grad(out.sum(), (x, gamma, beta)), (x, gamma, beta), strict=True):
        assert value.shape == leaf.shape and value.eq(0).all()
    assert set(launched) <= {"domain_norm_finish_kernel"}

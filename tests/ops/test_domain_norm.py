"""domain_norm: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from domain_norm_cases import CASE, CASES, NAMES, RENORM, Case, call, check, given, layout, make, results, run, small
from op_checks import CalledOps, RecordedCalls, nan_filled_allocations
from torch import Tensor

from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import domain_norm

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = {"domain_norm", "domain_norm_backward"}
WHY_NOT = backends.why_not("domain_norm", "native", "cpu")
needs_native = pytest.mark.skipif(bool(WHY_NOT), reason=f"no compiled kernels: {WHY_NOT}")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


# The formula, and every backend against the reference in float64.


def formula(
    x: Tensor, gamma: Tensor, beta: Tensor, memories: tuple[Tensor, ...] | None, slope: float, pixel_norm: bool
) -> Tensor:
    """One group, as the paper and the task write it."""
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    std = (variance + 1e-3).sqrt()
    r, d = torch.ones(()), torch.zeros(())
    if memories is not None:
        of_mean, of_std, weights, limits = memories
        usual_mean, usual_std = of_mean + (1 - weights[0]) * mean, of_std + (1 - weights[1]) * std
        r = (std / usual_std).clamp(limits[0], limits[1]).detach()
        d = ((mean - usual_mean) / usual_std).clamp(-limits[2], limits[2]).detach()

    def along(value: Tensor) -> Tensor:
        return value.view(1, -1, 1, 1) if value.dim() else value

    v = along(gamma) * ((x - along(mean)) / along(std) * along(r) + along(d)) + along(beta)
    a = torch.where(v > 0, v, slope * v)
    return a / (a.square().mean(1, keepdim=True) + 1e-6).sqrt() if pixel_norm else a


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("renorm", ["", "inside", "beyond"])
@pytest.mark.parametrize(("slope", "pixel_norm"), [(0.2, True), (1.0, False), (0.0, True)])
def test_it_is_the_written_formula(
    slope: float, pixel_norm: bool, renorm: str, channels_last: bool, backend: str
) -> None:
    case = Case("formula", (6, 5, 4, 7), 2, 0, channels_last, renorm, slope=slope, pixel_norm=pixel_norm)
    tensors = make(case, torch.float64)
    parts = [
        formula(
            x,
            tensors["gamma"][i],
            tensors["beta"][i],
            (*(tensors[name][i] for name in RENORM[:3]), tensors["limits"]) if renorm else None,
            slope,
            pixel_norm,
        )
        for i, x in enumerate(tensors["x"].chunk(2))
    ]
    grads = torch.autograd.grad(torch.cat(parts), [tensors[name] for name in NAMES], tensors["grad"])
    found = results(case, tensors, backend)
    torch.testing.assert_close(found["out"], torch.cat(parts))
    for name, expected in zip(NAMES, grads, strict=True):
        torch.testing.assert_close(found[f"d {name}"], expected)
    for i, x in enumerate(tensors["x"].chunk(2)):
        torch.testing.assert_close(found["mean"][i], x.mean((0, 2, 3)))
        torch.testing.assert_close(found["std"][i], (x.var((0, 2, 3), correction=0) + 1e-3).sqrt())


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        found = check(case, dtype, "native")
    assert called.names == NATIVE, "the kernels were not reached"
    assert not any(value.isnan().any() for value in found.values())
    with CalledOps() as called:
        results(case, make(case, dtype), "reference")
    assert not called.names, "the reference must not run kernels"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if small(case)], ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    tensors = make(case, torch.float64)
    inputs = {name: tensors[name] for name in case.wants}

    def out_of(*values: Tensor) -> Tensor:
        return call(case, tensors | dict(zip(inputs, values, strict=True)), backend)

    with CalledOps() as called:
        assert torch.autograd.gradcheck(out_of, tuple(inputs.values()), fast_mode=math.prod(case.shape) > 100)
        if backend == "reference":
            assert torch.autograd.gradgradcheck(out_of, tuple(inputs.values()), fast_mode=True)
    assert called.names == (NATIVE if backend == "native" else set())


# What a group is.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_stacked_calls_are_the_calls(channels_last: bool, backend: str) -> None:
    case = Case("stacked", (6, 20, 9, 14), 3, 0, channels_last, "inside")
    tensors = make(case, torch.float32)
    together = results(case, tensors, backend)
    apart = []
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in tensors.items() if name not in ("x", "grad", "limits")}
        one |= {name: tensors[name][2 * i : 2 * i + 2] for name in ("x", "grad")} | {"limits": tensors["limits"]}
        leaves = {name: layout(value.detach(), channels_last) for name, value in one.items()}
        leaves = {name: value.requires_grad_(name in NAMES) for name, value in leaves.items()}
        apart.append(results(replace(case, shape=(2, 20, 9, 14), groups=1), leaves, backend))
    for name, value in together.items():
        joined = torch.cat([found[name] for found in apart])
        if backend == "native":  # whose tasks end with their rows
            assert torch.equal(value, joined), name
        else:
            torch.testing.assert_close(value, joined)


@pytest.mark.parametrize("backend", BACKENDS)
def test_instance_norm_is_a_group_an_image(backend: str) -> None:
    x, ones = torch.randn(3, 4, 5, 6).double(), torch.ones(4).double()
    out, mean, std = domain_norm(x, ones, 0 * ones, groups=3, slope=1.0, pixel_norm=False, eps=1e-5, backend=backend)
    torch.testing.assert_close(out, F.instance_norm(x))
    torch.testing.assert_close(mean, x.mean((2, 3)))
    assert std.shape == (3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_row_serves_all(backend: str) -> None:
    x, gamma, beta = torch.randn(6, 4, 5, 3), torch.randn(4), torch.randn(4)
    for groups in (1, 2, 6):
        expected = domain_norm(x, gamma.expand(groups, 4), beta.expand(groups, 4), groups=groups, backend=backend)
        for shape in ((4,), (1, 4)):
            found = domain_norm(x, gamma.view(shape), beta.view(shape), groups=groups, backend=backend)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_of_a_batch_give_its_output(backend: str) -> None:
    x, gamma, beta = torch.randn(6, 4, 5, 3), torch.randn(2, 4), torch.randn(2, 4)
    out, mean, std = domain_norm(x, gamma, beta, groups=2, backend=backend)
    again, *same = domain_norm(x, gamma, beta, groups=2, statistics=(mean, std), backend=backend)
    assert torch.equal(out, again) and torch.equal(same[0], mean) and torch.equal(same[1], std)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fresh_memory_changes_nothing(backend: str) -> None:
    case = CASE["fresh"]
    tensors = make(case, torch.float32)
    torch.testing.assert_close(call(case, tensors, backend), call(replace(case, renorm=""), tensors, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memories_may_change_before_backward(backend: str) -> None:
    case = CASE["renorm_nhwc"]
    tensors = make(case, torch.float32)
    expected = results(case, tensors, backend)
    out = call(case, tensors, backend)
    for name in RENORM:
        tensors[name].mul_(0.5)
    grads = torch.autograd.grad(out, [tensors[name] for name in NAMES], tensors["grad"])
    for name, value in zip(NAMES, grads, strict=True):
        assert torch.equal(value, expected[f"d {name}"]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_nan_stays_in_its_group(channels_last: bool, backend: str) -> None:
    case = Case("nan", (4, 19, 6, 10), 2, 0, channels_last)
    clean = results(case, make(case, torch.float32), backend)
    tensors = make(case, torch.float32)
    with torch.no_grad():
        tensors["x"][2, 3, 4, 5] = math.nan
    found = results(case, tensors, backend)
    for name, value in found.items():
        images = len(value) // 2
        assert torch.equal(value[:images], clean[name][:images]), name
    assert found["out"][2:].isnan().all() and found["d x"][2:].isnan().all()  # by way of pixel norm
    assert torch.equal(found["mean"].isnan().nonzero(), torch.tensor([[1, 3]]))


# Numbers far from zero, few or none.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_far_from_zero_costs_no_digits_of_the_deviation(channels_last: bool, backend: str) -> None:
    # multiples of 2^-10 around 1000: float32 holds them, but not their squares
    x = (torch.randint(-2048, 2049, (2, 16, 64, 64)) / 1024 + 1000.0).float()
    _, mean, std = domain_norm(layout(x, channels_last), torch.ones(16), torch.zeros(16), groups=2, backend=backend)
    parts = x.double().view(2, -1, 16, 64 * 64)
    # each of 4096 and more values may be rounded by half of 2^-14 in a sum around the mean
    torch.testing.assert_close(mean.double(), parts.mean((1, 3)), rtol=0, atol=2**-13)
    expected = (parts.var((1, 3), correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(std.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 3, 4, 4)])
def test_equal_values_have_the_least_deviation(shape: tuple[int, ...], backend: str) -> None:
    x = torch.full(shape, 7.0, requires_grad=True)
    beta = torch.tensor([1.0, -2.0, 3.0])
    out, mean, std = domain_norm(x, torch.ones(3), beta, groups=2, pixel_norm=False, backend=backend)
    torch.testing.assert_close(std, torch.full((2, 3), math.sqrt(1e-3)))
    assert torch.equal(mean, torch.full((2, 3), 7.0))
    activations = torch.tensor([1.0, -0.4, 3.0]).view(3, *[1] * (len(shape) - 2))
    assert torch.equal(out.detach(), activations.expand(shape))
    out.sum().backward()
    # the difference of two terms of 1 / std, each rounded a few times
    torch.testing.assert_close(x.grad, torch.zeros(shape), rtol=0, atol=4 * torch.finfo(torch.float32).eps / 1e-3**0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (4, 3, 0, 4), (0, 3)])
def test_a_group_of_nothing(shape: tuple[int, ...], backend: str) -> None:
    leaves = [torch.zeros(shape), torch.ones(2, 3), torch.ones(2, 3)]
    out, mean, std = domain_norm(*(leaf.requires_grad_() for leaf in leaves), groups=2, eps=0.25, backend=backend)
    assert out.shape == shape and torch.equal(mean, torch.zeros(2, 3)) and torch.equal(std, torch.full((2, 3), 0.5))
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_at_the_kink_the_derivative_is_that_of_the_negative_side(channels_last: bool, backend: str) -> None:
    x = layout(torch.randn(2, 3, 4, 5), channels_last)
    gamma = torch.zeros(3, requires_grad=True)
    out, *_ = domain_norm(
        x,
        gamma,
        torch.zeros(3),
        slope=0.25,
        pixel_norm=False,
        statistics=(torch.zeros(1, 3), torch.ones(1, 3)),
        backend=backend,
    )
    (grad,) = torch.autograd.grad(out.sum(), gamma)
    torch.testing.assert_close(grad, 0.25 * x.sum((0, 2, 3)))


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(pixel_norm: bool, channels_last: bool) -> None:
    case = Case("large", (4, 40, 70, 72), 2, 0, channels_last, pixel_norm=pixel_norm, slope=1.0)
    tensors = make(case, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(case, tensors, "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


# What is kept, made and asked for.


@needs_native
def test_only_what_backward_reads_is_kept() -> None:
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    case = CASE["renorm"]
    tensors = make(case, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(case, tensors, "native")
    statistics = 4 * 2 * case.shape[1] * 4
    assert sum(sizes) == sum(tensors[name].nbytes for name in NAMES) + statistics


@needs_native
@pytest.mark.parametrize("name", ["odd_groups", "rows_nhwc", "statistics"])
def test_a_gradient_that_is_not_wanted_is_not_made(name: str) -> None:
    case = CASE[name]
    tensors = {key: value.detach() for key, value in make(case, torch.float32).items()}
    with RecordedCalls() as recorded:
        results(case, make(case, torch.float32), "native")
    (full,) = recorded.of("domain_norm_backward")
    together = torch.ops.anifast.domain_norm_backward(*full)
    for i in range(3):
        found = torch.ops.anifast.domain_norm_backward(*full[:-1], [j == i for j in range(3)])
        assert [value.numel() > 0 for value in found] == [j == i for j in range(3)]
        assert torch.equal(found[i], together[i])
    assert tensors["x"].numel() == together[0].numel()
    out = call(case, tensors := make(case, torch.float32), "native")
    with RecordedCalls() as recorded:
        torch.autograd.grad(out, tensors["beta"], tensors["grad"])
    assert [args[-1] for args in recorded.of("domain_norm_backward")] == [[False, False, True]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["renorm", "statistics"])
def test_constants_have_no_gradient(name: str, backend: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    constants = {key: value.requires_grad_() for key, value in tensors.items() if key not in (*NAMES, "grad")}
    out, mean, std = run(case, tensors, backend)
    assert not mean.requires_grad and not std.requires_grad
    found = torch.autograd.grad(out.sum(), list(constants.values()), allow_unused=True)
    assert found == (None,) * len(constants)


@needs_native
def test_higher_orders_and_forward_mode_are_refused() -> None:
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(2, dtype=torch.float64)
    (first,) = torch.autograd.grad(domain_norm(x, ones, ones, backend="native")[0].pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='domain_norm: only backend="reference" has a second derivative'):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match="does not go through torch.func"):
        torch.func.jvp(lambda x: domain_norm(x, ones, ones, backend="native")[0], (x.detach(),), (x.detach(),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
        domain_norm(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)), ones, ones, backend="native")


def test_transforms_of_torch_func_take_the_reference() -> None:
    x, gamma, beta = torch.randn(3, 4, 2, 5, 6), torch.randn(2), torch.randn(2)

    def out_of(x: Tensor) -> Tensor:
        return domain_norm(x, gamma, beta, groups=2)[0]

    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(out_of(leaf).pow(3).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: out_of(x).pow(3).sum())(x[0]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(out_of)(x), torch.stack([out_of(each) for each in x]))


@needs_native
@pytest.mark.parametrize(
    "name", ["odd_groups", "nhwc_odd", "rows", "renorm", "statistics_nhwc", "rank5_nhwc", "only_x"]
)
def test_opcheck(name: str) -> None:
    case = CASE[name]
    with RecordedCalls() as recorded:
        results(case, make(case, torch.float32), "native")
    assert recorded.names == NATIVE
    for func, args in recorded.calls:
        learned = 3 if func is torch.ops.anifast.domain_norm.default else 0  # backward refuses
        fresh = [
            value.detach().clone().requires_grad_(i < learned) if isinstance(value, Tensor) else value
            for i, value in enumerate(args)
        ]
        torch.library.opcheck(func, tuple(fresh))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["renorm_nhwc", "statistics"])
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    torch.compiler.reset()
    case = CASE[name]
    tensors = make(case, torch.float32)
    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(
        lambda tensors: run(case, tensors, backend), fullgraph=True, backend="aot_eager"
    )
    found, expected = compiled(tensors), run(case, tensors, backend)
    torch.testing.assert_close(found, expected)
    leaves = [tensors[key] for key in NAMES]
    for got, wanted in zip(
        torch.autograd.grad(found[0], leaves, tensors["grad"]),
        torch.autograd.grad(expected[0], leaves, tensors["grad"]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = [base[:, 1:5, ::2], base.transpose(2, 3), layout(base, True)[:, :, 2:, ::5], base[:, :, :1, :1]]
    for view in views:
        x, plain = view.detach().requires_grad_(), view.contiguous().requires_grad_()
        channels = x.shape[1]
        numbers = [torch.randn(2, 2 * channels)[:, ::2] for _ in range(2)]
        memories = [torch.rand(channels, 2).t() for _ in range(2)]
        renorm = (memories[0], memories[1], torch.rand(2, 4)[:, ::2], torch.rand(6)[::2])
        grad = torch.randn(x.shape).transpose(0, 1).contiguous().transpose(0, 1)
        found = domain_norm(x, *numbers, groups=2, renorm=renorm, backend=backend)
        expected = domain_norm(plain, *numbers, groups=2, renorm=renorm, backend="reference")
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found[0], x, grad), torch.autograd.grad(expected[0], plain, grad), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_types_meet(backend: str) -> None:
    x, gamma, beta = torch.randn(4, 8, 5, 5).bfloat16(), torch.randn(2, 8), torch.randn(2, 8)
    expected = domain_norm(x.float(), gamma, beta, groups=2, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = domain_norm(x, gamma, beta, groups=2, backend=backend)
    assert [value.dtype for value in found] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(found[0].float(), expected[0], rtol=2**-8, atol=1e-6)  # one rounding
    torch.testing.assert_close(found[1:], expected[1:])
    with pytest.raises(TypeError, match="gamma has dtype torch.bfloat16, expected torch.float32 as x"):
        domain_norm(x.float(), gamma.bfloat16(), beta, backend=backend)


# The choice of a backend, and wrong arguments.


def test_a_gpu_has_triton_kernels_and_the_choice_says_so() -> None:
    assert "no native kernels for cuda yet" in backends.why_not("domain_norm", "native", "cuda")
    assert backends.is_written("domain_norm", "triton", "cuda")


def test_kernels_that_were_not_built_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_reasons", {})
    monkeypatch.setattr(backends, "_automatic", {})
    monkeypatch.setattr(_native, "build_info", _native.build_info | {"sources": ["csrc/cpu/bias_lrelu.cpp"]})
    monkeypatch.setattr(_native, "reason", None)
    monkeypatch.setattr(_native, "devices", frozenset({"cpu"}))
    assert backends.choose("domain_norm", "cpu") == "reference"
    with pytest.raises(BackendError, match="the extension was built before domain_norm was written"):
        backends.choose("domain_norm", "cpu", "native")


X, G = torch.randn(4, 3, 4, 6), torch.ones(2, 3)
MEMORY, STATS = (G, G, torch.ones(2, 2), torch.ones(3)), (G, G)
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("list", dict(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ("integers", dict(x=X.int()), TypeError, "x must be float32, .* got torch.int32"),
    ("rank 1", dict(x=X[0, 0, 0]), ValueError, r"x has shape \(6,\), expected N,C or N,C,\*spatial"),
    ("groups", dict(groups=3), ValueError, "groups must divide the batch of 4, got 3"),
    ("groups 0", dict(groups=0), ValueError, "groups must divide the batch of 4, got 0"),
    ("groups negative", dict(groups=-2), ValueError, "groups must divide the batch of 4, got -2"),
    ("groups float", dict(groups=2.0), TypeError, "groups must be an int, got float"),
    ("groups bool", dict(groups=True), TypeError, "groups must be an int, got bool"),
    ("gamma list", dict(gamma=[1.0]), TypeError, "gamma must be a torch.Tensor, got list"),
    ("gamma channels", dict(gamma=torch.ones(2, 4)), ValueError, r"gamma has shape \(2, 4\), expected \[C\] or \[rows"),
    ("gamma rank", dict(gamma=G[None]), ValueError, r"gamma has shape \(1, 2, 3\), expected \[C\] or \[rows, C\]"),
    ("gamma number", dict(gamma=G[0, 0]), ValueError, r"gamma has shape \(\), expected"),
    ("gamma rows", dict(gamma=torch.ones(3, 3), beta=torch.ones(3, 3)), ValueError, "gamma has 3 rows, expected a m"),
    ("gamma many", dict(gamma=torch.ones(8, 3), beta=torch.ones(8, 3)), ValueError, "8 rows, .* divides the batch"),
    ("gamma none", dict(gamma=G[:0], beta=G[:0]), ValueError, "gamma has 0 rows"),
    ("gamma type", dict(gamma=G.half()), TypeError, "gamma has dtype torch.float16, expected torch.float32 as x"),
    ("gamma device", dict(gamma=G.to("meta")), ValueError, "gamma is on meta, expected cpu as x"),
    ("beta", dict(beta=G[0]), ValueError, r"beta has shape \(3,\), expected \(2, 3\) as gamma"),
    ("beta none", dict(beta=None), TypeError, "beta must be a torch.Tensor, got NoneType"),
    ("both", dict(renorm=MEMORY, statistics=STATS), ValueError, "statistics replace them"),
    ("renorm tensor", dict(renorm=G), TypeError, r"renorm must be a tuple \(mean_memory, std_memory, w"),
    ("renorm short", dict(renorm=MEMORY[:3]), ValueError, "renorm has 3 tensors, expected 4: mean_memory"),
    ("renorm number", dict(renorm=(*MEMORY[:3], 1.0)), TypeError, "renorm's limits must be a torch.Tensor, got float"),
    ("renorm shape", dict(renorm=(G[:1], *MEMORY[1:])), ValueError, r"mean_memory has shape \(1, 3\), expected \(2"),
    ("renorm weights", dict(renorm=(G, G, G, torch.ones(3))), ValueError, r"weights has shape \(2, 3\), expected \(2"),
    ("renorm limits", dict(renorm=(*MEMORY[:3], G)), ValueError, r"limits has shape \(2, 3\), expected \(3,\)"),
    ("renorm type", dict(renorm=(G, G.double(), *MEMORY[2:])), TypeError, "std_memory has dtype torch.float64"),
    ("renorm device", dict(renorm=(G, G.to("meta"), *MEMORY[2:])), ValueError, "renorm's std_memory is on meta"),
    ("statistics short", dict(statistics=(G,)), ValueError, "statistics has 1 tensors, expected 2: mean, std"),
    ("statistics shape", dict(statistics=(G, G[0])), ValueError, r"statistics's std has shape \(3,\), expected \(2"),
    ("statistics half", dict(statistics=(G.half(), G)), TypeError, "statistics's mean has dtype torch.float16"),
    ("slope", dict(slope="0"), TypeError, "slope must be a number, got str"),
    ("pixel_norm", dict(pixel_norm=1), TypeError, "pixel_norm must be True or False, got int"),
    ("eps", dict(eps=-1.0), ValueError, "eps must not be negative, got -1.0"),
    ("eps nan", dict(eps=math.nan), ValueError, "eps must not be negative, got nan"),
    ("eps none", dict(eps=None), TypeError, "eps must be a number, got NoneType"),
    ("pixel_eps", dict(pixel_eps=-1e-6), ValueError, "pixel_eps must not be negative, got -1e-06"),
    ("backend", dict(backend="cudnn"), BackendError, "unknown backend 'cudnn'"),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "wrong", "error", "message"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_arguments(name: str, wrong: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match="^(domain_norm|backend=): .*" + message):
        domain_norm(**{"x": X, "gamma": G, "beta": G, "groups": 2, "backend": backend, **wrong})


@needs_native
def test_dispatcher_ops_check_what_they_are_given() -> None:
    ops, how, none = torch.ops.anifast, (0.2, True, 1e-3, 1e-6), (None,) * 6
    with pytest.raises(RuntimeError, match="domain_norm: x must have rank 2 or more, got 1"):
        ops.domain_norm(X[0, 0, 0], G, G, 2, *none, *how)
    with pytest.raises(RuntimeError, match="domain_norm: groups must divide the batch of 4, got 3"):
        ops.domain_norm(X, G, G, 3, *none, *how)
    for gamma in (G[0], G[:1], torch.ones(6, 3)):
        with pytest.raises(RuntimeError, match="domain_norm: gamma has shape"):
            ops.domain_norm(X, gamma, G, 2, *none, *how)
    with pytest.raises(RuntimeError, match="domain_norm: gamma is Double"):
        ops.domain_norm(X, G.double(), G, 2, *none, *how)
    with pytest.raises(RuntimeError, match="domain_norm: beta is Float of shape .2, 4."):
        ops.domain_norm(X, G, torch.ones(2, 4), 2, *none, *how)
    for some in ((G, None, None, None, None, None), (*MEMORY, *STATS), (None, None, None, None, G, None)):
        with pytest.raises(RuntimeError, match="domain_norm: of renorm all four tensors are needed"):
            ops.domain_norm(X, G, G, 2, *some, *how)
    with pytest.raises(RuntimeError, match="domain_norm: weights is Float of shape .2, 3."):
        ops.domain_norm(X, G, G, 2, G, G, G, torch.ones(3), None, None, *how)
    with pytest.raises(RuntimeError, match="domain_norm: std is Double"):
        ops.domain_norm(X, G, G, 2, None, None, None, None, G, G.double(), *how)
    stats, rest = torch.ones(4, 2, 3), (False, 0.2, True, 1e-6, [True] * 3)
    with pytest.raises(RuntimeError, match="domain_norm: grad is Float of shape .1, 3, 4, 6."):
        ops.domain_norm_backward(X[:1], X, G, G, stats, *rest)
    with pytest.raises(RuntimeError, match="domain_norm: stats is Float of shape .2, 2, 3."):
        ops.domain_norm_backward(X, X, G, G, stats[:2], *rest)
    with pytest.raises(RuntimeError, match="domain_norm: stats must have rank 3, got 2"):
        ops.domain_norm_backward(X, X, G, G, stats[0], *rest)


def test_given_constants_reach_the_op() -> None:
    assert list(given(CASE["renorm"], make(CASE["renorm"], torch.float32))) == ["renorm"]
    assert list(given(CASE["statistics"], make(CASE["statistics"], torch.float32))) == ["statistics"]

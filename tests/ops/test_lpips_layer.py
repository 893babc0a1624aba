"""lpips_layer: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lpips_layer_cases import CASE, CASES, Case, call, check, make, results, small
from op_checks import CalledOps, RecordedCalls, nan_filled_allocations
from torch import Tensor

from anifast import _native
from anifast.errors import BackendError
from anifast.ops import lpips_layer

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
NATIVE = {"lpips_layer", "lpips_layer_backward"}
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps_inside", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_it_is_the_written_formula(reduce: str, eps_inside: bool, backend: str) -> None:
    a, b, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double(), torch.randn(3).double()
    eps = 0.01

    def normalised(x: Tensor) -> Tensor:
        square = (x**2).sum(1, keepdim=True)
        return x / ((square + eps) ** 0.5 if eps_inside else square**0.5 + eps)

    expected = F.conv2d((normalised(a) - normalised(b)) ** 2, weight.view(1, 3, 1, 1))
    if reduce == "mean":
        expected = expected.mean((2, 3), keepdim=True)
    found = lpips_layer(a, b, weight, eps=eps, eps_inside=eps_inside, reduce=reduce, backend=backend)
    torch.testing.assert_close(found, expected)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        found = check(case, dtype, "native")
    maps = {"a", "b"} & set(case.wants)
    assert called.names == {"lpips_layer"} | ({"lpips_layer_backward"} if maps else set()), (
        "the kernels were not reached"
    )
    assert not any(value.isnan().any() for value in found.values())
    with CalledOps() as called:
        results(case, make(case, dtype), "reference")
    assert not called.names, "the reference must not run kernels"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if small(case)], ids=str)
def test_gradcheck_and_gradgradcheck(case: Case, backend: str) -> None:
    tensors = make(case, torch.float64)
    tensors.pop("grad")
    inputs = {name: tensors[name] for name in case.wants}

    def run(*values: Tensor) -> Tensor:
        return call(case, tensors | dict(zip(inputs, values, strict=True)), backend)

    fast = backend == "reference" or math.prod(case.shape) > 100
    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(inputs.values()), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, tuple(inputs.values()), fast_mode=fast)
    assert ("lpips_layer" in called.names) == (backend == "native")


@needs_native
def test_third_order() -> None:
    case = CASE["weight_too"]
    found = []
    for backend in ("native", "reference"):
        tensors = make(case, torch.float64)
        leaves = [tensors[name] for name in case.wants]
        first = torch.autograd.grad(call(case, tensors, backend).pow(2).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in second), leaves))
    torch.testing.assert_close(*found)


@needs_native
@pytest.mark.parametrize("name", ["odd", "nhwc_map", "no_weight", "only_b", "weight_too", "empty_batch"])
def test_opcheck(name: str) -> None:
    with RecordedCalls() as recorded:
        results(CASE[name], make(CASE[name], torch.float32), "native")
    assert recorded.names == NATIVE
    for func, args in recorded.calls:
        # the four numbers of a pixel are the forward's own, and no input of a function
        stats = args[4] if func.name().endswith("backward") else None
        fresh = [x.detach().clone().requires_grad_(x is not stats) if isinstance(x, Tensor) else x for x in args]
        torch.library.opcheck(func, tuple(fresh))


@needs_native
def test_of_a_pixel_four_numbers_are_kept() -> None:
    a, b = (torch.randn(2, 16, 8, 9, requires_grad=True) for _ in range(2))
    weight = torch.rand(16)
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lpips_layer(a, b, weight, backend="native")
    assert sum(sizes) == a.nbytes + b.nbytes + weight.nbytes + 4 * 4 * 2 * 8 * 9


@needs_native
def test_a_gradient_that_isnt_wanted_is_not_made() -> None:
    asked: list[tuple[bool, bool]] = []
    for case in ("only_a", "only_b", "odd"):
        tensors = make(CASE[case], torch.float32)
        with RecordedCalls() as recorded:
            torch.autograd.grad(call(CASE[case], tensors, "native").sum(), [tensors[name] for name in CASE[case].wants])
        asked += [args[-2:] for args in recorded.of("lpips_layer_backward")]
    assert asked == [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("eps_inside", [False, True])
def test_zero_vectors_give_no_nan_and_no_gradient(eps_inside: bool, channels_last: bool, backend: str) -> None:
    case = replace(CASE["zeros"], eps_inside=eps_inside, channels_last=channels_last, reduce="none")
    for dtype in DTYPES:
        tensors = make(case, dtype)
        out = call(case, tensors, backend)
        ga, gb = torch.autograd.grad(out.sum(), [tensors["a"], tensors["b"]])
        assert out.isfinite().all() and ga.isfinite().all() and gb.isfinite().all()
        flat = ga.flatten(2), gb.flatten(2), out.flatten(1)
        assert (flat[0][:, :, :5] == 0).all() and (flat[1][:, :, 3:8] == 0).all()
        assert (flat[2][:, 3:5] == 0).all(), "two zero vectors are equal"
        assert (flat[0][:, :, 5:] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equal_maps_are_at_distance_zero(channels_last: bool, backend: str) -> None:
    a = torch.randn(2, 20, 9, 7)
    if channels_last:
        a = a.contiguous(memory_format=torch.channels_last)
    x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
    out = lpips_layer(x, y, torch.rand(20), backend=backend)
    assert (out == 0).all()
    out.sum().backward()
    assert x.grad is not None and (x.grad == 0).all() and (y.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_vectors_doesnt_matter(backend: str) -> None:
    a, b, weight = torch.randn(2, 9, 5, 6).double(), torch.randn(2, 9, 5, 6).double(), torch.rand(9).double()
    expected = lpips_layer(a, b, weight, backend=backend)
    torch.testing.assert_close(lpips_layer(a * 1e6, b * 1e-4, weight, backend=backend), expected, rtol=1e-5, atol=0)
    assert lpips_layer(a, a * 7.0, weight, backend=backend).max() < 1e-15


@needs_native
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    for channels_last in (False, True):
        case = replace(CASE["odd"], shape=(2, 40, 70, 71), channels_last=channels_last)
        found = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                tensors = make(case, torch.float32)
                out = call(case, tensors, "native")
                found.append([out, *torch.autograd.grad(out.sum(), [tensors["a"], tensors["b"]])])
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@needs_native
def test_nothing_as_large_as_a_map_is_allocated() -> None:
    from benchmarks.timing import memory

    a, b = torch.randn(2, 64, 32, 32), torch.randn(2, 64, 32, 32)
    peak, _ = memory(lambda: lpips_layer(a, b, torch.ones(64), backend="native"), "cpu")
    assert peak < 4 * 4 * 2 * 32 * 32 + 4096, "four numbers a pixel and the result"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_pixel(value: float, backend: str) -> None:
    a, b = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    a[1, 2, 3, 4] = value
    found = lpips_layer(a, b, reduce="none", backend=backend)
    reached = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
    reached[1, 0, 3, 4] = True
    assert torch.equal(found.isnan(), reached)


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = [base[:, 1:5, ::2], base.transpose(2, 3), base.contiguous(memory_format=torch.channels_last)[:, :, 1:, ::3]]
    for x in views:
        a, b = x.detach().requires_grad_(), torch.randn(x.shape).transpose(2, 3).contiguous().transpose(2, 3)
        weight = torch.rand(2 * x.shape[1])[::2]
        plain = x.detach().contiguous().requires_grad_()
        grad = torch.randn(1).expand(x.shape[0], 1, *x.shape[2:])
        found = lpips_layer(a, b, weight, reduce="none", backend=backend)
        expected = lpips_layer(plain, b.contiguous(), weight.contiguous(), reduce="none", backend="reference")
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, a, grad), torch.autograd.grad(expected, plain, grad))


@needs_native
@pytest.mark.parametrize("name", ["odd", "nhwc_map", "weight_too"])
def test_compiled_whole(name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    run: Callable[..., Tensor] = torch.compile(
        lambda given: call(case, given, "native"), fullgraph=True, backend="aot_eager"
    )
    expected = call(case, tensors, "native")
    found = run(tensors)
    assert torch.equal(found, expected)
    leaves = [tensors[key] for key in case.wants]
    for got, wanted in zip(
        torch.autograd.grad(found, leaves, tensors["grad"]),
        torch.autograd.grad(expected, leaves, tensors["grad"]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_maps_give_float32_also_under_autocast(backend: str) -> None:
    a, b, weight = torch.randn(2, 8, 5, 5).bfloat16(), torch.randn(2, 8, 5, 5).bfloat16(), torch.rand(8)
    expected = lpips_layer(a.float(), b.float(), weight, backend="reference")
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = lpips_layer(a, b, weight, backend=backend)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = a.clone().requires_grad_()
        out = lpips_layer(leaf, b.float(), weight, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.float().square().sum(), leaf)
    assert grad.dtype == second.dtype == torch.bfloat16 and second.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_the_order_of_types_does_not_matter(backend: str) -> None:
    a, b = torch.randn(2, 8, 5, 5).half(), torch.randn(2, 8, 5, 5) * 1e5  # beyond half's range
    expected = lpips_layer(a.float(), b, backend="reference")
    with torch.autocast("cpu", dtype=torch.float16):
        for pair in ((a, b), (b, a)):
            torch.testing.assert_close(lpips_layer(*pair, backend=backend), expected)


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("eps_inside", [False, True])
def test_short_vectors_overflow_nothing(eps_inside: bool, channels_last: bool) -> None:
    a = torch.full((1, 4, 3, 3), 1e-17)
    b = torch.randn(1, 4, 3, 3)
    if channels_last:
        a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
    found = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        x = a.to(dtype).requires_grad_()
        out = lpips_layer(x, b.to(dtype), eps=0.0, eps_inside=eps_inside, backend=backend)
        found += [out.double(), torch.autograd.grad(out.sum(), x)[0].double()]
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-5 * found[3].abs().max().item())


def test_transforms_of_torch_func_take_the_reference() -> None:
    a, b = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    (expected,) = torch.autograd.grad(lpips_layer(leaf := a.clone().requires_grad_(), b).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda a: lpips_layer(a, b).sum())(a), expected)
    each = torch.func.vmap(lambda a, b: lpips_layer(a[None], b[None])[0])(a, b)
    torch.testing.assert_close(each, lpips_layer(a, b))


@needs_native
def test_forward_mode_is_refused_where_it_would_be_dropped() -> None:
    with torch.autograd.forward_ad.dual_level():
        a = torch.autograd.forward_ad.make_dual(torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3))
        with pytest.raises(NotImplementedError, match="lpips_layer: no forward-mode"):
            lpips_layer(torch.randn(1, 2, 3, 3), a, backend="native")
        out = lpips_layer(a, torch.randn(1, 2, 3, 3), backend="reference")
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None


def test_bad_arguments() -> None:
    a = torch.randn(2, 3, 4, 5)
    for given, error, message in [
        (dict(a=torch.randn(3, 4, 5)), ValueError, r"a has shape \(3, 4, 5\), expected N,C,H,W"),
        (dict(a=torch.randn(2, 3, 0, 5)), ValueError, "without a 0 behind N"),
        (dict(a=a.to(torch.uint8)), TypeError, "a must be float32, .* got torch.uint8"),
        (dict(b=torch.randn(3, 3, 4, 5)), ValueError, r"b has shape \(3, 3, 4, 5\), expected \(2, 3, 4, 5\) as a"),
        (dict(b=torch.randn(2, 1, 4, 5)), ValueError, r"b has shape \(2, 1, 4, 5\)"),
        (dict(b=a.double()), TypeError, "b has dtype torch.float64, expected torch.float32 as a"),
        (dict(b=a.to("meta")), ValueError, "b is on meta, expected cpu as a"),
        (dict(b=None), TypeError, "b must be a torch.Tensor, got NoneType"),
        (dict(weight=torch.rand(4)), ValueError, r"weight has shape \(4,\), expected \(3,\) or \(1, 3, 1, 1\)"),
        (dict(weight=torch.rand(3, 1, 1)), ValueError, r"weight has shape \(3, 1, 1\)"),
        (dict(weight=torch.rand(3).double()), TypeError, "weight has dtype torch.float64, expected torch.float32 as a"),
        (dict(eps=-1e-3), ValueError, "eps must not be negative, got -0.001"),
        (dict(eps=math.nan), ValueError, "eps must not be negative"),
        (dict(eps="1"), TypeError, "eps must be a number, got str"),
        (dict(eps_inside="no"), TypeError, "eps_inside must be True or False, got str"),
        (dict(reduce="sum"), ValueError, "reduce is 'sum', expected 'mean' or 'none'"),
        (dict(backend="cuda"), BackendError, "unknown backend 'cuda'"),
    ]:
        with pytest.raises(error, match=message):
            lpips_layer(**({"a": a, "b": a} | given))  # type: ignore[arg-type]


@needs_native
def test_dispatcher_ops_check_what_they_are_given() -> None:
    a, ops = torch.randn(2, 3, 4, 5), torch.ops.anifast
    how = (1e-10, False, True)
    with pytest.raises(RuntimeError, match="lpips_layer: b is Double"):
        ops.lpips_layer(a, a.double(), None, *how)
    with pytest.raises(RuntimeError, match="lpips_layer: weight is Float of shape .4., expected Float of shape .3."):
        ops.lpips_layer(a, a, torch.rand(4), *how)
    out, stats = ops.lpips_layer(a, a, None, *how)
    with pytest.raises(RuntimeError, match="lpips_layer: grad is Float with 3 values, expected Float with 2"):
        ops.lpips_layer_backward(torch.ones(3), a, a, None, stats, *how, True, True)
    with pytest.raises(RuntimeError, match="lpips_layer: stats must be Float of shape"):
        ops.lpips_layer_backward(out, a, a, None, stats[:3], *how, True, True)

"""gram: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import golden_calls
import pytest
import torch
from gram_cases import CASE, CASES, Case, call, check, golden_results, make, maps, results, small
from op_checks import CalledOps, RecordedCalls, nan_filled_allocations
from torch import Tensor

from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import gram

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = {"gram", "gram_backward"}
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("normalize", ["chw", "hw", "none"])
def test_it_is_the_written_formula(normalize: str, folded: bool, backend: str) -> None:
    x, y = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 2, 3, 3).double()
    rows = []
    for n in range(2):
        row = []
        for f in (x[n], y[n]):
            over = {"chw": f.numel(), "hw": f[0].numel(), "none": 1}[normalize]
            for i in range(f.shape[0]):
                for j in range(i if folded else 0, f.shape[0]):
                    row.append((f[i] * f[j]).sum() / over)
        rows.append(torch.stack(row))
    torch.testing.assert_close(gram([x, y], normalize=normalize, folded=folded, backend=backend), torch.stack(rows))


def test_folded_is_the_upper_triangle_in_the_order_of_triu_indices() -> None:
    x = torch.randn(2, 7, 3, 4)
    rows, columns = torch.triu_indices(7, 7)
    torch.testing.assert_close(gram(x, folded=True), gram(x)[:, rows, columns])


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        found = check(case, dtype, "native")
    assert called.names == NATIVE, "the native kernels were not reached"
    assert not any(value.isnan().any() for value in found.values())
    with CalledOps() as called:
        results(case, make(case, dtype), "reference")
    assert not called.names, "the reference must not run kernels"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if small(case)], ids=str)
def test_gradcheck_and_gradgradcheck(case: Case, backend: str) -> None:
    tensors = make(case, torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(case, dict(zip(tensors, values, strict=True)), backend)

    fast = backend == "reference" or sum(math.prod(shape) for shape in case.maps) > 100
    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, tuple(tensors.values()), fast_mode=fast)
    assert called.names == (NATIVE if backend == "native" else set())


@needs_native
def test_third_order() -> None:
    for name in ("single", "five_folded"):
        case = CASE[name]
        found = []
        for backend in ("native", "reference"):
            tensors = make(case, torch.float64)
            x = maps(tensors)
            first = torch.autograd.grad(call(case, tensors, backend).pow(3).sum(), x, create_graph=True)
            second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), x, create_graph=True)
            found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in second), x))
        torch.testing.assert_close(*found)


@needs_native
@pytest.mark.parametrize("name", ["single", "five_folded", "mixed_layouts", "empty_batch"])
def test_opcheck(name: str) -> None:
    with RecordedCalls() as recorded:
        results(CASE[name], make(CASE[name], torch.float32), "native")
    assert recorded.names == NATIVE

    def fresh(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [fresh(one) for one in value]
        return value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value

    for func, args in recorded.calls:
        torch.library.opcheck(func, tuple(fresh(value) for value in args))


@needs_native
def test_a_gradient_that_isnt_wanted_is_not_made() -> None:
    case = CASE["five"]
    tensors = make(case, torch.float32)
    every = results(case, tensors, "native")
    for name in ("0", "2", "4"):
        tensors[name].requires_grad_(False)
    with RecordedCalls() as recorded:
        call(case, tensors, "native").backward(tensors["grad"].detach())
    assert [args[4] for args in recorded.of("gram_backward")] == [[False, True, False, True, False]]
    for name in ("1", "3"):
        assert torch.equal(tensors[name].grad, every[f"d {name}"])


@needs_native
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    case = Case("threads", ((6, 70, 71), (40, 33, 32), (130, 9, 9)), batch=2, last=(1,))
    for folded in (False, True):
        found = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(call(replace(case, folded=folded), make(case, torch.float32), "native"))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_matrix_is_symmetric_to_the_bit_where_it_is_written_twice(backend: str) -> None:
    found = gram(torch.randn(2, 70, 9, 11), backend=backend)
    torch.testing.assert_close(found, found.mT, **(dict(rtol=0, atol=0) if backend == "native" else {}))


@needs_native
def test_only_the_vector_and_little_more_is_allocated() -> None:
    """Where images enough make tasks enough, no partial sums: nothing as large as a copy of the vector or of a map."""
    from benchmarks.timing import memory

    x = [torch.randn(32, 64, 32, 32), torch.randn(32, 256, 8, 8)]
    vector = 32 * (64 * 64 + 256 * 256) * 4
    peak, held = memory(lambda: gram(x, backend="native"), "cpu")
    assert vector <= held <= vector + 512
    assert peak < vector + x[1].nbytes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(value: float, backend: str) -> None:
    x = torch.rand(2, 5, 6, 7) + 0.5
    x[1, 2, 3, 4] = value
    found = gram(x, backend=backend)
    reached = torch.zeros(2, 5, 5, dtype=torch.bool)
    reached[1, 2, :] = reached[1, :, 2] = True
    assert torch.equal(found.isfinite(), ~reached)
    assert torch.equal(found.isnan(), reached & math.isnan(value))


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = [base[:, 1:5, ::2], base.transpose(2, 3), base.contiguous(memory_format=torch.channels_last)[:, :, 1:, ::3]]
    leaves = [x.detach().requires_grad_() for x in views]
    grad = torch.randn(16 + 36 + 36, 4).t()
    found = gram(leaves, backend=backend)
    expected = gram([x.contiguous() for x in views], backend="reference")
    torch.testing.assert_close(found, expected)
    plain = [x.detach().contiguous().requires_grad_() for x in views]
    for got, wanted in zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(gram(plain, backend="reference"), plain, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@needs_native
@pytest.mark.parametrize("name", ["single", "five_folded", "mixed_layouts"])
def test_compiled_whole(name: str) -> None:
    case = CASE[name]
    tensors = {key: value.detach() for key, value in make(case, torch.float32).items()}
    run: Callable[..., Tensor] = torch.compile(
        lambda given: call(case, given, "native"), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(run(tensors), call(case, tensors, "native"))
    grads = {key: value.requires_grad_() for key, value in tensors.items() if key != "grad"}
    found = torch.autograd.grad(run(grads), list(grads.values()), tensors["grad"])
    expected = torch.autograd.grad(call(case, grads, "native"), list(grads.values()), tensors["grad"])
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


@needs_native
def test_compiled_for_every_size_at_once() -> None:
    run: Callable[..., Tensor] = torch.compile(
        lambda x, y: gram([x, y], folded=True, backend="native"), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in range(2, 14):  # more sizes than torch.compile compiles anew for
        x, y = torch.randn(2, 5, size, 6), torch.randn(2, 3, 4, size + 1)
        assert torch.equal(run(x, y), gram([x, y], folded=True, backend="native"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_maps_of_several_types_take_the_widest(backend: str) -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 3, 3).bfloat16()
    for maps_ in ([x, y], [y, x]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gram(maps_, backend=backend)
        torch.testing.assert_close(found, gram([value.float() for value in maps_], backend="reference"))
    with pytest.raises(TypeError, match=r"gram: features\[1\] has dtype torch.bfloat16, expected torch.float32"):
        gram([x, y], backend=backend)


def test_shapes_on_the_meta_device() -> None:
    assert gram(torch.empty(2, 3, 4, 5, device="meta")).shape == (2, 3, 3)


def test_transforms_of_torch_func_take_the_reference() -> None:
    x = torch.randn(3, 2, 4, 5)
    (expected,) = torch.autograd.grad(gram(leaf := x.clone().requires_grad_()).pow(3).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: gram(x).pow(3).sum())(x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda x: gram([x[None]], folded=True)[0])(x), gram(x, folded=True))


@needs_native
def test_forward_mode_is_refused_where_it_would_be_dropped() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3))
        with pytest.raises(NotImplementedError, match="gram: no forward-mode"):
            gram(x, backend="native")
        assert torch.autograd.forward_ad.unpack_dual(gram(x, backend="reference")).tangent is not None


def test_bad_arguments() -> None:
    x = torch.randn(2, 3, 4, 5)
    for given, error, message in [
        ([], ValueError, "features is an empty list"),
        ([x, torch.randn(3, 3, 4, 5)], ValueError, r"features\[1\] has a batch of 3, expected 2 as the first map"),
        (torch.randn(3, 4, 5), ValueError, r"features has shape \(3, 4, 5\), expected N,C,H,W"),
        ([x, torch.randn(2, 3, 0, 5)], ValueError, r"features\[1\] has shape \(2, 3, 0, 5\), .* without a 0"),
        (torch.randn(2, 0, 4, 5), ValueError, "features has shape .* without a 0"),
        (x.to(torch.uint8), TypeError, "features must be float32, .* got torch.uint8"),
        ([x, x.double()], TypeError, r"features\[1\] has dtype torch.float64, expected torch.float32"),
        ([x, x.numpy()], TypeError, r"features\[1\] must be a torch.Tensor, got ndarray"),
        ([x, x.to("meta")], ValueError, r"features\[1\] is on meta, expected cpu"),
    ]:
        with pytest.raises(error, match="gram: " + message):
            gram(given)
    for normalize in ("c", None, []):
        with pytest.raises(ValueError, match="gram: normalize is .*, expected one of chw, hw, none"):
            gram(x, normalize=normalize)  # type: ignore[arg-type]
    for given in (None, 3, (value for value in [x])):
        with pytest.raises(TypeError, match="gram: features must be a torch.Tensor or a list of them, got"):
            gram(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gram: folded must be True or False, got str"):
        gram(x, folded="a")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        gram(x, backend="cuda")
    assert "no native kernels for cuda" in backends.why_not("gram", "native", "cuda")


@needs_native
def test_dispatcher_ops_check_what_they_are_given() -> None:
    x = torch.randn(2, 3, 4, 5)
    ops = torch.ops.anifast
    with pytest.raises(RuntimeError, match="gram: 1 maps and 2 divisors"):
        ops.gram([x], [1, 1], False)
    with pytest.raises(RuntimeError, match="gram: a map is"):
        ops.gram([x, x.double()], [1, 1], False)
    with pytest.raises(RuntimeError, match="gram: grad is Float with 17 values, expected Float with 18"):
        ops.gram_backward(torch.randn(17), [x], [1], False, [True])
    with pytest.raises(
        RuntimeError, match="gram: a map is Float of shape .1, 3, 0, 5. on cpu, expected N,C,H,W without"
    ):
        ops.gram([torch.empty(1, 3, 0, 5)], [1], False)
    with pytest.raises(RuntimeError, match="gram: 1 maps and 2 wanted"):
        ops.gram_backward(torch.randn(18), [x], [1], False, [True, True])
    with pytest.raises(RuntimeError, match="gram: grad is Double"):
        ops.gram_backward(torch.randn(18).double(), [x], [1], False, [True])


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_gram(golden: Callable[[str], Any], backend: str) -> None:
    """Matrices, their gradient and the vector, from the formula; BlendGAN's own function and its gradient."""
    case = golden("losses_gram")
    for dtype in (torch.float64, torch.float32):
        found = golden_results(case, backend, dtype=dtype)
        assert set(found) == set(case.outputs)
        golden_calls.check(case, found)
    case = golden("blend_gram_projector_a")
    y = torch.from_numpy(case.inputs["y"]).double().requires_grad_()
    out = gram(y, backend=backend)
    (grad,) = torch.autograd.grad(out, y, torch.from_numpy(case.inputs["probe_g"]).double())
    golden_calls.check(case, {"gram.g": out, "gram.grad.y": grad})

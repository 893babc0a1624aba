"""instance_norm: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import CalledOps, nan_filled_allocations
from torch import Tensor

from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import instance_norm

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = {"instance_norm", "instance_norm_backward"}
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


@dataclass(frozen=True)
class Case:
    """Shape, layout and arguments of one call."""

    name: str
    shape: tuple[int, ...]
    channels_last: bool = False
    slope: float = 0.0
    residual: bool = False
    eps: float = 1e-5

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("odd", (2, 3, 5, 7)),
    Case("odd_residual", (2, 3, 5, 7), slope=1.0, residual=True),
    Case("vectors", (1, 4, 16, 16), slope=0.2),
    Case("vectors_and_rest", (2, 3, 13, 21), residual=True),
    Case("long_rows", (1, 2, 150, 141), slope=0.2),
    Case("long_rows_residual", (2, 1, 128, 256), residual=True),
    Case("nhwc_odd", (2, 7, 3, 5), channels_last=True),
    Case("nhwc_vectors", (2, 64, 4, 6), channels_last=True, slope=0.2, residual=True),
    Case("nhwc_vectors_and_rest", (3, 90, 5, 3), channels_last=True, slope=1.0),
    Case("nhwc_many_pixels", (2, 16, 40, 37), channels_last=True, residual=True),
    Case("nhwc_wide", (1, 8200, 2, 2), channels_last=True),
    Case("rank3", (2, 3, 11)),
    Case("rank5", (2, 3, 2, 3, 5), slope=0.1),
    Case("rank5_nhwc", (2, 4, 2, 3, 5), channels_last=True, residual=True),
    Case("two_pixels", (2, 5, 1, 2)),
    Case("large_eps", (2, 3, 4, 4), eps=0.5),
]
CASE = {case.name: case for case in CASES}


def layout(x: Tensor, case: Case) -> Tensor:
    if not case.channels_last:
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def make(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ["x", "grad", *(["residual"] if case.residual else [])]
    draw = {name: torch.randn(case.shape, generator=generator) for name in names}
    draw["x"] = draw["x"] * 3.0 + 1.0
    return {name: layout(value.to(dtype), case).requires_grad_() for name, value in draw.items()}


def call(case: Case, tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    return instance_norm(
        tensors["x"], slope=case.slope, residual=tensors.get("residual"), eps=case.eps, backend=backend
    )


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output and gradients."""
    inputs = {name: value for name, value in tensors.items() if name != "grad"}
    out = call(case, tensors, backend)
    grads = torch.autograd.grad(out, list(inputs.values()), tensors["grad"])
    return {"out": out, **{f"d {name}": value for name, value in zip(inputs, grads, strict=True)}}


def check(case: Case, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Hold a backend to the reference in float64: twice the error of the reference in `dtype`, plus its rounding."""
    tensors = make(case, dtype)
    got = results(case, tensors, backend)
    doubles = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    truth, plain = results(case, doubles, "reference"), results(case, tensors, "reference")
    assert got["out"].stride() == tensors["x"].stride(), "the layout of x is not kept"
    for name, expected in truth.items():
        value = got[name]
        assert value.dtype == dtype and value.shape == expected.shape
        # an element of y beside the kink may fall on its other side, which changes that element's gradient only
        near = torch.zeros_like(expected, dtype=torch.bool)
        if name == "d x":
            y = F.instance_norm(doubles["x"].detach().flatten(2), eps=case.eps).view(case.shape)
            near = y.abs() < 8 * torch.finfo(dtype).eps
        # sums of n roundings, of differences of terms as large as x or grad over the deviation
        x, grad = doubles["x"].detach().flatten(2), doubles["grad"].detach()
        deviation = (x.var(2, correction=0) + case.eps).sqrt().min()
        terms = [expected.abs().max(), (x if name == "out" else grad).abs().max() / deviation]
        scale = max(1.0, *(value.item() for value in terms))
        scale *= math.sqrt(x.shape[2]) if dtype == torch.float64 else 1.0
        error = (value.double() - expected).abs().masked_fill(near, 0.0).max().item()
        usual = (plain[name].double() - expected).abs().masked_fill(near, 0.0).max().item()
        assert error <= 2 * usual + 4 * torch.finfo(dtype).eps * scale, f"{name}: {error:.3g}, usual {usual:.3g}"
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
def test_it_is_the_written_formula(backend: str, slope: float) -> None:
    x, residual = torch.randn(2, 3, 6, 5).double(), torch.randn(2, 3, 6, 5).double()
    mean = x.mean((2, 3), keepdim=True)
    y = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    expected = torch.where(y > 0, y, slope * y) + residual
    torch.testing.assert_close(instance_norm(x, slope=slope, residual=residual, backend=backend), expected)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called:
        check(case, dtype, "native")
    assert called.names == NATIVE, "the native kernels were not reached"
    with CalledOps() as called:
        results(case, make(case, dtype), "reference")
    assert not called.names, "the reference must not run kernels"


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_writes_every_element(case: Case, dtype: torch.dtype) -> None:
    with nan_filled_allocations():
        found = check(case, dtype, "native")
    assert not any(value.isnan().any() for value in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if math.prod(case.shape) < 300], ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    tensors = make(case, torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(case, dict(zip(tensors, values, strict=True)), backend)

    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(tensors.values()))
    assert called.names == (NATIVE if backend == "native" else set())


@pytest.mark.parametrize("name", ["odd", "odd_residual", "nhwc_odd"])
def test_gradgradcheck_of_the_reference(name: str) -> None:
    tensors = make(CASE[name], torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(CASE[name], dict(zip(tensors, values, strict=True)), "reference")

    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))


@needs_native
def test_higher_orders_and_forward_mode_are_refused() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(instance_norm(x, backend="native").pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative; backend="reference" has it'):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match="does not go through torch.func"):
        torch.func.jvp(lambda x: instance_norm(x, backend="native"), (x.detach(),), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
        instance_norm(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)), backend="native")


def test_transforms_of_torch_func_take_the_reference() -> None:
    x = torch.randn(3, 2, 4, 5)
    expected = torch.autograd.grad(instance_norm(leaf := x.clone().requires_grad_()).pow(3).sum(), leaf)[0]
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        got = torch.func.grad(lambda x: instance_norm(x).pow(3).sum())(given)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.func.vmap(lambda x: instance_norm(x[None])[0])(given), instance_norm(x))


def test_what_is_asked_of_all_ops_leaves_those_without_such_kernels_alone() -> None:
    assert backends.choose("instance_norm", "cpu") == backends.automatic("instance_norm", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_environment", "triton")
        assert backends.choose("instance_norm", "cpu") == backends.automatic("instance_norm", "cpu")
        patch.setattr(backends, "_environment", "native")
        assert backends.choose("instance_norm", "cuda") == "reference"


@needs_native
@pytest.mark.parametrize("name", ["odd_residual", "nhwc_vectors_and_rest", "rank5_nhwc"])
def test_opcheck(name: str) -> None:
    tensors = {key: value.detach() for key, value in make(CASE[name], torch.float32).items()}
    residual = tensors.get("residual")
    _, stats = torch.ops.anifast.instance_norm(tensors["x"], residual, 0.2, 1e-5)
    torch.library.opcheck(
        torch.ops.anifast.instance_norm.default,
        (tensors["x"].requires_grad_(), residual if residual is None else residual.requires_grad_(), 0.2, 1e-5),
    )
    torch.library.opcheck(
        torch.ops.anifast.instance_norm_backward.default, (tensors["grad"], tensors["x"].detach(), stats, 0.2)
    )


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(channels_last: bool) -> None:
    case = Case("large", (2, 24, 61, 83), channels_last=channels_last, residual=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(case, make(case, torch.float32), "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(channels_last: bool) -> None:
    case = Case("far", (1, 16, 64, 64), channels_last=channels_last)
    # multiples of 2^-10 around 1000: float32 holds them, but not their squares
    x = layout((torch.randint(-2048, 2049, case.shape) / 1024 + 1000.0).float(), case)
    got = instance_norm(x, backend="native").double()
    expected = instance_norm(x.double(), backend="reference")
    # the mean is rounded to float32 once, by up to half of 2^-14, and the deviation is 1.15
    assert (got - expected).abs().max() < 2**-15 / 1.15 + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_constant_inputs(backend: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        x = torch.zeros(shape, requires_grad=True)
        y = instance_norm(x, slope=0.0, backend=backend)
        y.sum().backward()
        assert y.shape == shape and x.grad is not None and x.grad.shape == shape


@needs_native
def test_a_constant_image_and_a_single_pixel_are_zero() -> None:
    for x in (
        torch.randn(2, 3, 1, 1),
        torch.full((2, 3, 4, 4), 7.0),
        torch.full((2, 16, 9, 9), 1e6).contiguous(memory_format=torch.channels_last),
    ):
        assert torch.equal(instance_norm(x, backend="native"), torch.zeros_like(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    for x in (base[:, 1:5, ::2], base.transpose(2, 3), torch.randn(1, 6, 3, 1).expand(2, 6, 3, 5)):
        residual = torch.randn(x.shape).transpose(0, 1).contiguous().transpose(0, 1)
        got = instance_norm(x, residual=residual, backend=backend)
        torch.testing.assert_close(got, F.instance_norm(x.contiguous()) + residual)
    x = base.clone().requires_grad_()
    grad = torch.randn(4, 8, 10, 6).permute(0, 3, 1, 2)  # a gradient in another layout than x
    instance_norm(x, backend=backend).backward(grad)
    (expected,) = torch.autograd.grad(F.instance_norm(y := base.clone().requires_grad_()), y, grad)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


@needs_native
def test_only_what_backward_reads_is_saved() -> None:
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        instance_norm(x, slope=0.0, residual=x, backend="native")
    assert sum(sizes) == x.nbytes + 2 * 2 * 8 * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    torch.compiler.reset()

    def model(x: Tensor, residual: Tensor) -> Tensor:
        return instance_norm(x.sin(), slope=0.2, residual=residual, backend=backend).cos()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 3, 4, 5).requires_grad_() for _ in range(2)]
    got, expected = compiled(*leaves), model(*leaves)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(value.sum(), leaves) for value in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_there_are_no_gpu_kernels_yet_and_the_choice_says_so() -> None:
    assert "no native kernels for cuda yet" in backends.why_not("instance_norm", "native", "cuda")
    assert backends.automatic("instance_norm", "cuda") == "reference"
    assert "has no triton kernels" in backends.why_not("instance_norm", "triton", "cpu")


X = torch.zeros(2, 3, 4, 5)
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("no tensor", lambda: instance_norm([1.0]), TypeError, "x must be a torch.Tensor, got list"),  # type: ignore[arg-type]
    ("integers", lambda: instance_norm(X.int()), TypeError, "x must be float32.*got torch.int32"),
    ("rank 2", lambda: instance_norm(X[0, 0]), ValueError, r"x must have rank 3 or more, got shape \(4, 5\)"),
    ("eps", lambda: instance_norm(X, eps=-1.0), ValueError, "eps must not be negative, got -1.0"),
    ("residual size", lambda: instance_norm(X, residual=X[:1]), ValueError, r"residual has shape \(1, 3, 4, 5\)"),
    ("residual type", lambda: instance_norm(X, residual=X.double()), TypeError, "residual has dtype torch.float64"),
    ("backend", lambda: instance_norm(X, backend="triton"), BackendError, "instance_norm has no triton kernels"),
]


@pytest.mark.parametrize(("run", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_arguments_are_named(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


@needs_native
def test_the_dispatcher_ops_check_their_own_arguments() -> None:
    ops: Any = torch.ops.anifast
    stats = torch.zeros(2, 2, 3)
    with pytest.raises(RuntimeError, match="x must have rank 3 or more, got 2"):
        ops.instance_norm(X[0, 0], None, 1.0, 1e-5)
    with pytest.raises(RuntimeError, match=r"residual is Float of shape \[1, 3, 4, 5\]"):
        ops.instance_norm(X, X[:1], 1.0, 1e-5)
    with pytest.raises(RuntimeError, match="grad is Double"):
        ops.instance_norm_backward(X.double(), X, stats, 1.0)
    with pytest.raises(RuntimeError, match=r"stats must be Float of shape \[2, 2, 3\]"):
        ops.instance_norm_backward(X, X, stats[:1], 1.0)

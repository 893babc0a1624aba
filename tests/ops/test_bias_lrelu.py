"""bias_lrelu: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bias_lrelu_cases
import pytest
import torch
import torch.nn.functional as F
from bias_lrelu_cases import CASE, CASES, Case, call, check, golden_results, make, results
from op_checks import CalledOps, RecordedCalls, check_asked_for, check_short_way, nan_filled_allocations
from torch import Tensor

import anifast
from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import bias_lrelu

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = {"bias_lrelu", "bias_lrelu_backward", "bias_lrelu_masked"}
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


# The reference says what the op means, in plain PyTorch lines written out once more here.


def test_reference_is_the_written_formula() -> None:
    x, bias, noise, residual = torch.randn(2, 3, 4, 5), torch.randn(3), torch.randn(2, 1, 4, 5), torch.randn(2, 3, 4, 5)
    got = bias_lrelu(
        x, bias, noise=noise, noise_strength=0.3, slope=0.1, gain=1.5, clamp=0.8, residual=residual, residual_gain=0.7,
        backend="reference",
    )  # fmt: skip
    expected = (F.leaky_relu(x + 0.3 * noise + bias[:, None, None], 0.1) * 1.5).clamp(-0.8, 0.8) + 0.7 * residual
    torch.testing.assert_close(got, expected)


# Values, gradients, second gradients, layouts and types against the reference in float64.


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called:
        check(case, dtype, "native")
    assert {"bias_lrelu", "bias_lrelu_backward"} <= called.names, "the native kernels were not reached"
    with CalledOps() as called:
        check(case, dtype, "reference")
    assert not called.names, "the reference must not run kernels"


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_writes_every_element(case: Case, dtype: torch.dtype) -> None:
    with nan_filled_allocations():
        found = check(case, dtype, "native")
    assert not any(value.isnan().any() for value in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case.shape], ids=str)
def test_gradcheck_and_gradgradcheck(case: Case, backend: str) -> None:
    small = case if math.prod(case.shape) <= 200 else replace(case, shape=tuple(min(s, 3) for s in case.shape))
    tensors = make(replace(small, float32_parameters=False), torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(small, dict(zip(tensors, values, strict=True)), backend)

    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(tensors.values()))
        assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))
    assert called.names == (NATIVE if backend == "native" else set())


@needs_native
@pytest.mark.parametrize(
    "name", ["odd_full", "nhwc_full", "odd_noise", "linear", "matrix_odd", "rank5_nhwc", "first_dim"]
)
def test_opcheck(name: str) -> None:
    tensors = make(CASE[name], torch.float32)
    with RecordedCalls() as recorded:
        results(CASE[name], tensors, "native")
    assert {str(func) for func, _ in recorded.calls} == {f"anifast.{op}.default" for op in NATIVE}
    for func, args in recorded.calls:
        fresh = tuple(
            a.detach().clone().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a for a in args
        )
        if "save_mask" in str(func._schema):
            fresh = (*fresh[:-1], True)
        torch.library.opcheck(func, fresh)


@needs_native
def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    case = replace(CASE["odd_full"], shape=(3, 5, 150, 301))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(case, make(case, torch.float32), "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), f"{name} changes with the number of threads"


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_of_many_values_stay_exact(channels_last: bool) -> None:
    case = replace(CASE["nhwc" if channels_last else "even"], shape=(2, 4, 500, 300))
    check(case, torch.float32, "native")
    check(case, torch.bfloat16, "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clamp", [None, 0.5])
def test_nan_and_inf_pass_as_in_plain_pytorch(backend: str, value: float, clamp: float | None) -> None:
    x = torch.tensor([[value, 1.0, -1.0], [2.0, value, 0.0]]).repeat(1, 9).requires_grad_()
    y = bias_lrelu(x, clamp=clamp, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    plain = F.leaky_relu(x, 0.2) * math.sqrt(2)
    plain = plain if clamp is None else plain.clamp(-clamp, clamp)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    torch.testing.assert_close(y, plain, equal_nan=True)
    torch.testing.assert_close(grad, expected, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_was_clamped_stops_any_gradient(backend: str, value: float) -> None:
    x = torch.tensor([[3.0, 0.1, -4.0]]).repeat(1, 7).requires_grad_()
    (grad,) = torch.autograd.grad(bias_lrelu(x, clamp=0.5, gain=1.0, backend=backend), x, torch.full_like(x, value))
    expected = torch.tensor([[0.0, value, 0.0]]).repeat(1, 7)
    expected[:, 2::3] = 0.0
    torch.testing.assert_close(grad, expected, equal_nan=True)


@needs_native
def test_bfloat16_rounds_to_nearest_even_and_keeps_nan() -> None:
    x = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)[None]
    got = bias_lrelu(x, slope=1.0, gain=1.0 + 2**-7 + 2**-9, backend="native")
    expected = (x.float() * (1.0 + 2**-7 + 2**-9)).to(torch.bfloat16)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


# The short way of plain calls past the checks in Python


@needs_native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_short_way_computes_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = importlib.import_module("anifast.ops.bias_lrelu")._NATIVE
    taken = check_short_way(bias_lrelu_cases, case, ops, monkeypatch)
    plain = case.dim >= 0 and not (case.channels_last and case.dim != 1)
    assert taken == [plain]


@needs_native
def test_what_needs_a_cast_or_an_explanation_takes_the_long_way() -> None:
    short = importlib.import_module("anifast.ops.bias_lrelu")._NATIVE.short
    x, rest = torch.randn(2, 3, 4, 5), (0.2, 1.0, None, None, 1.0)
    assert short(x, torch.zeros(3), 1, None, None, *rest) is not None
    assert short(x.half(), torch.zeros(3), 1, None, None, *rest) is not None
    for bad in (
        (x, torch.zeros(4), 1, None, None, *rest),
        (x, torch.zeros(1, 3), 1, None, None, *rest),
        (x, torch.zeros(3).half(), 1, None, None, *rest),
        (x, torch.zeros(3, device="meta"), 1, None, None, *rest),
        (x.int(), None, 1, None, None, *rest),
        (x[0, 0, 0], None, 0, None, None, *rest),
        (x, None, -1, None, None, *rest),
        (x, None, 4, None, None, *rest),
        (x[..., ::2], None, 1, None, None, *rest),
        (x, None, 1, x, None, *rest),
        (x, None, 1, x[:, :1, :3], None, *rest),
        (x.half(), None, 1, x[:, :1], None, *rest),
        (x, None, 1, None, torch.zeros(1), *rest),
        (x, None, 1, x[:, :1], torch.zeros(2), *rest),
        (x, None, 1, None, None, 0.2, 1.0, -1.0, None, 1.0),
        (x, None, 1, None, None, 0.2, 1.0, math.nan, None, 1.0),
        (x, None, 1, None, None, 0.2, 1.0, None, x[:1], 1.0),
        (x, None, 1, None, None, 0.2, 1.0, None, x.double(), 1.0),
    ):
        assert short(*bad) is None
    with pytest.raises(TypeError):
        short(x, [1.0], 1, None, None, *rest)
    with torch.autocast("cpu", torch.bfloat16):  # which the casts of a wrong type depend on
        y = bias_lrelu(x.bfloat16(), torch.zeros(3, dtype=torch.float64), backend="native")
    assert y.dtype == torch.bfloat16


@needs_native
def test_a_number_as_strength_and_subclasses_never_reach_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = importlib.import_module("anifast.ops.bias_lrelu")._NATIVE

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("it would print every tensor into an error that nobody reads")

    class Named(Tensor):
        pass

    x, noise, strength = torch.randn(2, 3, 4, 5), torch.randn(2, 1, 4, 5), torch.tensor(0.3)
    expected = bias_lrelu(x, noise=noise, noise_strength=strength)
    monkeypatch.setattr(ops, "short", refuse)
    torch.testing.assert_close(bias_lrelu(x, noise=noise, noise_strength=0.3), expected)
    assert type(bias_lrelu(x, torch.zeros(3).as_subclass(Named))) is Named


@pytest.mark.parametrize("backend", [None, pytest.param("native", marks=needs_native)])
def test_transforms_of_torch_func_take_the_reference_or_say_so(backend: str | None) -> None:
    x, bias = torch.randn(4, 3, 5, 6), torch.randn(3)

    def loss(x: Tensor) -> Tensor:
        return bias_lrelu(x, bias, backend=backend).square().sum()

    if backend is not None:
        with pytest.raises(NotImplementedError, match=r'not go through torch.func.*backend="reference" does'):
            torch.func.grad(loss)(x)
        return
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    each = torch.func.vmap(lambda x: bias_lrelu(x[None], bias)[0])
    torch.testing.assert_close(each(x), bias_lrelu(x, bias))
    torch.testing.assert_close(each(leaf.transpose(2, 3)), bias_lrelu(x.transpose(2, 3), bias))


# Layouts


@needs_native
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = {
        "slice": base[:, 1:5, ::2],
        "transposed": base.transpose(2, 3),
        "expanded": torch.randn(1, 6, 1, 1).expand(2, 6, 5, 5),
        "slice of channels_last": base.contiguous(memory_format=torch.channels_last)[:, :, 1:, ::3],
    }
    for name, x in views.items():
        bias, residual = torch.randn(x.shape[1]), torch.randn(x.shape).transpose(0, 1).contiguous().transpose(0, 1)
        got = bias_lrelu(x, bias, residual=residual, backend=backend)
        torch.testing.assert_close(
            got, bias_lrelu(x.contiguous(), bias, residual=residual, backend="reference"), msg=name
        )
    grad = torch.randn(4, 8, 10, 6).permute(0, 3, 1, 2)  # a gradient in another layout than x
    x = base.clone().requires_grad_()
    bias_lrelu(x, backend=backend).backward(grad)
    expected = torch.autograd.grad(F.leaky_relu(y := base.clone().requires_grad_(), 0.2) * math.sqrt(2), y, grad)[0]
    torch.testing.assert_close(x.grad, expected)


# Backends


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    automatic = backends.choose("bias_lrelu", "cpu")
    assert automatic == ("native" if _native.unavailable("cpu") is None else "reference")
    with anifast.use_backend("reference"):
        assert backends.choose("bias_lrelu", "cpu") == "reference"
        assert backends.choose("bias_lrelu", "cpu", "auto") == "reference"
        with anifast.use_backend(None):
            assert backends.choose("bias_lrelu", "cpu") == automatic
        assert backends.choose("bias_lrelu", "cpu") == "reference"
    monkeypatch.setattr(backends, "_environment", "reference")
    assert backends.choose("bias_lrelu", "cpu") == "reference"
    with CalledOps() as called:
        bias_lrelu(x)
    assert not called.names
    monkeypatch.setattr(backends, "_environment", "cudnn")
    with pytest.raises(BackendError, match="environment ANIFAST_BACKEND: unknown backend 'cudnn'.*reference"):
        bias_lrelu(x)


def test_an_absent_backend_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._reasons, ("bias_lrelu", "native", "cpu"), "nothing was compiled")
    for how in ("argument", "with block", "environment"):
        with monkeypatch.context() as patch, pytest.raises(BackendError, match="native.*nothing was compiled"):
            if how == "argument":
                bias_lrelu(torch.randn(2, 3), backend="native")
            elif how == "with block":
                with anifast.use_backend("native"):
                    bias_lrelu(torch.randn(2, 3))
            else:
                patch.setattr(backends, "_environment", "native")
                bias_lrelu(torch.randn(2, 3))
    monkeypatch.setattr(backends, "_automatic", {})
    assert backends.choose("bias_lrelu", "cpu") == "reference", "the automatic choice moves on"
    with pytest.raises(BackendError, match="unknown backend 'fast'"):
        anifast.set_backend("fast")


# torch.compile, autocast, modes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend: str, dynamic: bool) -> None:
    torch.compiler.reset()

    def model(x: Tensor, bias: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        return bias_lrelu(x.sin(), bias, noise=noise, noise_strength=strength, clamp=1.0, backend=backend).cos()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (4, 3, 6, 7)):
        leaves = [torch.randn(s).requires_grad_() for s in (shape, (3,), (1, 1, *shape[2:]), (1,))]
        got, expected = compiled(*leaves), model(*leaves)
        torch.testing.assert_close(got, expected)
        for a, b in zip(
            torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_and_float32_parameters(backend: str) -> None:
    conv = torch.nn.Conv2d(3, 8, 3, bias=False)
    bias = torch.randn(8, requires_grad=True)
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = conv(x)
        y = bias_lrelu(hidden, bias, residual=torch.randn(2, 8, 7, 7), backend=backend)
    assert hidden.dtype == y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32
    assert conv.weight.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_saves_nothing_and_training_the_least(backend: str) -> None:
    x, bias = torch.randn(2, 8, 16, 16, requires_grad=True), torch.randn(8, requires_grad=True)
    with torch.no_grad():
        assert not bias_lrelu(x, bias, backend=backend).requires_grad
    with torch.inference_mode():
        bias_lrelu(x, bias, clamp=1.0, residual=x, backend=backend)
    if backend == "reference":
        return
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bias_lrelu(x, bias, backend=backend)
        assert sum(sizes) == x.numel() // 8, "one bit an element"
        sizes.clear()
        bias_lrelu(x, bias, clamp=1.0, residual=x, backend=backend)
        assert sum(sizes) == 2 * x.numel() // 8, "two bits an element"
        sizes.clear()
        bias_lrelu(x, bias, slope=1.0, backend=backend)
        assert sum(sizes) == 0, "linear: nothing"


# Golden numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_ops_lrelu(golden: Callable[[str], Any], backend: str) -> None:
    case = golden("ops_lrelu_a")
    found = golden_results(case, backend)
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors = case.compare({name: value.detach().numpy() for name, value in found.items()})
    assert max(errors.values()) < 3e-7, errors


# Bad input


X = torch.zeros(2, 3, 4, 5)
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("no tensor", lambda: bias_lrelu([1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ("integers", lambda: bias_lrelu(X.int()), TypeError, "x must be float32.*got torch.int32"),
    ("rank 1", lambda: bias_lrelu(torch.zeros(3)), ValueError, r"x must have rank 2 or more, got shape \(3,\)"),
    ("dim", lambda: bias_lrelu(X, dim=4), ValueError, r"dim must lie in \[-4, 3\] for rank 4, got 4"),
    ("bias size", lambda: bias_lrelu(X, torch.zeros(4)), ValueError, r"bias has shape \(4,\), expected \(3,\)"),
    ("bias rank", lambda: bias_lrelu(X, torch.zeros(1, 3)), ValueError, r"bias has shape \(1, 3\), expected \(3,\)"),
    (
        "bias type",
        lambda: bias_lrelu(X, torch.zeros(3).half()),
        TypeError,
        "bias has dtype torch.float16, expected torch.float32",
    ),
    ("bias device", lambda: bias_lrelu(X, torch.zeros(3, device="meta")), ValueError, "bias is on meta, expected cpu"),
    (
        "noise size",
        lambda: bias_lrelu(X, noise=torch.zeros(2, 1, 4, 4)),
        ValueError,
        r"noise has shape.*expected \(2, 1, 4, 5\)",
    ),
    ("noise batch", lambda: bias_lrelu(X, noise=torch.zeros(3, 1, 4, 5)), ValueError, "or 1 at axis 0"),
    ("strength alone", lambda: bias_lrelu(X, noise_strength=1.0), ValueError, "noise_strength is given without noise"),
    (
        "strength size",
        lambda: bias_lrelu(X, noise=X[:, :1], noise_strength=torch.zeros(2)),
        ValueError,
        "expected one element",
    ),
    ("clamp", lambda: bias_lrelu(X, clamp=-1.0), ValueError, "clamp must not be negative, got -1.0"),
    ("clamp nan", lambda: bias_lrelu(X, clamp=math.nan), ValueError, "clamp must not be negative, got nan"),
    (
        "residual size",
        lambda: bias_lrelu(X, residual=X[:1]),
        ValueError,
        r"residual has shape \(1, 3, 4, 5\), expected",
    ),
    (
        "residual type",
        lambda: bias_lrelu(X, residual=X.double()),
        TypeError,
        "residual has dtype torch.float64, expected torch.float32",
    ),
    (
        "residual no tensor",
        lambda: bias_lrelu(X, residual=1.0),
        TypeError,
        "residual must be a torch.Tensor, got float",
    ),
    ("dim type", lambda: bias_lrelu(X, dim=1.0), TypeError, "dim must be an int, got float"),  # type: ignore[arg-type]
    ("sparse", lambda: bias_lrelu(X.to_sparse()), TypeError, "x must be a dense tensor, got torch.sparse_coo"),
    ("backend", lambda: bias_lrelu(X, backend="cudnn"), BackendError, "unknown backend 'cudnn'"),
]


@pytest.mark.parametrize(("run", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_arguments_are_named(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


@needs_native
def test_the_dispatcher_ops_check_their_own_arguments() -> None:
    ops = torch.ops.anifast
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(RuntimeError, match="bias has 4 elements, expected 3"):
        ops.bias_lrelu(x, torch.zeros(4), None, None, None, 1, 0.2, 1.0, None, 1.0, False)
    with pytest.raises(RuntimeError, match="noise has 3 elements"):
        ops.bias_lrelu(x, None, torch.zeros(3), None, None, 1, 0.2, 1.0, None, 1.0, False)
    for dim in (-1, 4):
        with pytest.raises(RuntimeError, match=rf"dim must lie in \[0, 3\], got {dim}"):
            ops.bias_lrelu(x, None, None, None, None, dim, 0.2, 1.0, None, 1.0, False)
    with pytest.raises(RuntimeError, match="the mask is missing, and slope 0.2 needs it"):
        ops.bias_lrelu_backward(x, None, None, 1, False, 0.2, 1.0, False, False)
    with pytest.raises(RuntimeError, match="mask must be uint8 with 18 bytes a plane, got Byte of shape"):
        ops.bias_lrelu_backward(x, torch.zeros(1, 6, 2, dtype=torch.uint8), None, 1, False, 0.2, 1.0, False, False)
    with pytest.raises(RuntimeError, match="save_mask must be true"):
        ops.bias_lrelu(x.requires_grad_(), None, None, None, None, 1, 0.2, 1.0, None, 1.0, False)


def test_forward_mode_is_right_or_refused() -> None:
    x, tangent = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    _, got = torch.func.jvp(lambda x: bias_lrelu(x, backend="reference"), (x,), (tangent,))
    torch.testing.assert_close(got, tangent * torch.where(x > 0, 1.0, 0.2) * math.sqrt(2))
    if _native.unavailable("cpu") is None:
        with pytest.raises(NotImplementedError, match="does not go through torch.func"):
            torch.func.jvp(lambda x: bias_lrelu(x, backend="native"), (x,), (tangent,))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
            bias_lrelu(torch.autograd.forward_ad.make_dual(x, tangent), backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", ["x", "bias", "noise", "noise_strength", "residual"])
def test_each_input_alone_can_need_a_gradient(wanted: str, backend: str) -> None:
    tensors = {name: value.detach() for name, value in make(CASE["odd_full"], torch.float64).items()}
    tensors[wanted].requires_grad_()
    (got,) = torch.autograd.grad(call(CASE["odd_full"], tensors, backend).sum(), tensors[wanted])
    (expected,) = torch.autograd.grad(call(CASE["odd_full"], tensors, "reference").sum(), tensors[wanted])
    torch.testing.assert_close(got, expected)


@needs_native
def test_backward_computes_what_is_asked_for() -> None:
    check_asked_for(bias_lrelu_cases, "odd_full")

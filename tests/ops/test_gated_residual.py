"""gated_residual: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gated_residual_cases
import pytest
import torch
import torch.nn.functional as F
from gated_residual_cases import CASE, CASES, MEAN, NAMES, STD, Case, call, check, make, results, small
from op_checks import CalledOps, RecordedCalls, check_short_way, nan_filled_allocations
from torch import Tensor

from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import gated_residual

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = {"gated_residual", "gated_residual_backward"}
MODULE = importlib.import_module("anifast.ops.gated_residual")
WHY_NOT = backends.why_not("gated_residual", "native", "cpu")
needs_native = pytest.mark.skipif(bool(WHY_NOT), reason=f"no compiled kernels: {WHY_NOT}")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_written_formula(backend: str) -> None:
    x, shortcut = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 4, 5)
    gate, shortcut_gate, slope, bias = torch.randn(4, 3)
    found = gated_residual(
        x, shortcut, gate, shortcut_gate, slope, bias, mean=0.3, std=0.7, up=2, crop=1, backend=backend
    )
    inner = F.prelu(x + bias[:, None, None], slope)
    whole = F.interpolate(shortcut, scale_factor=2, mode="nearest")[:, :, 1:-1, 1:-1]
    expected = shortcut_gate[:, None, None] * whole + gate[:, None, None] * (inner - 0.3) / 0.7
    torch.testing.assert_close(found, expected)


def test_constants_centre_the_activation() -> None:
    x = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, quarter = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.25, dtype=torch.float64)
    y = gated_residual(x, x, one, 0 * one, quarter, mean=MEAN, std=STD)
    assert abs(y.mean().item()) < 5e-3 and abs(y.std().item() - 1) < 5e-3, "five standard errors of a mean"


# Values, gradients, second gradients, layouts and types against the reference in float64.


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
def test_gradcheck_and_gradgradcheck(case: Case, backend: str) -> None:
    tensors = make(case, torch.float64)
    tensors.pop("grad")
    inputs = {name: tensors[name] for name in case.leaves}

    def run(*values: Tensor) -> Tensor:
        return call(case, tensors | dict(zip(inputs, values, strict=True)), backend)

    fast = backend == "reference" or math.prod(case.shape) > 60
    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(inputs.values()), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, tuple(inputs.values()), fast_mode=fast)
    assert called.names == (NATIVE if backend == "native" and math.prod(case.shape) else called.names & NATIVE)


@needs_native
def test_third_order() -> None:
    case = CASE["up_crop"]
    found = []
    for backend in ("native", "reference"):
        tensors = make(case, torch.float64)
        leaves = [tensors[name] for name in case.leaves]
        first = torch.autograd.grad(call(case, tensors, backend).pow(2).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in second), leaves))
    torch.testing.assert_close(*found)


@needs_native
@pytest.mark.parametrize("name", ["odd", "nhwc_odd", "up_crop", "up_nhwc", "linear", "only_maps", "empty_batch_up"])
def test_opcheck(name: str) -> None:
    with RecordedCalls() as recorded:
        results(CASE[name], make(CASE[name], torch.float32), "native")
    assert recorded.names == NATIVE
    for func, args in recorded.calls:
        fresh = [x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in args]
        torch.library.opcheck(func, tuple(fresh))


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("up", [1, 2])
def test_results_do_not_depend_on_the_number_of_threads(up: int, channels_last: bool) -> None:
    case = Case("large", (3, 40, 70, 72), up=up, crop=up - 1, channels_last=channels_last)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(case, make(case, torch.float32), "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), f"{name} changes with the number of threads"


# What is kept, and what is not made.


@needs_native
def test_the_doubled_shortcut_is_never_there() -> None:
    from benchmarks.timing import memory

    case = Case("large", (2, 64, 32, 32), up=2)
    tensors = make(case, torch.float32)
    maps = tensors["x"].nbytes + tensors["shortcut"].nbytes
    with torch.no_grad():
        peak, _ = memory(lambda: call(case, tensors, "native"), "cpu")
    assert peak < tensors["x"].nbytes + 4096, "the result"
    leaves = [tensors[name] for name in case.leaves]
    peak, _ = memory(lambda: torch.autograd.grad(call(case, tensors, "native"), leaves, tensors["grad"]), "cpu")
    assert peak < tensors["x"].nbytes + maps + 16384, "the result, two gradients, and sums"


def _kept(case: Case, backend: str) -> int:
    tensors, sizes = make(case, torch.float32), []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(case, tensors, backend)
    return sum(sizes)


@needs_native
def test_the_shortcut_is_kept_for_its_gate_alone() -> None:
    case = CASE["up_crop"]
    tensors = make(case, torch.float32)
    parameters = sum(tensors[name].nbytes for name in NAMES[2:])
    assert _kept(case, "native") == tensors["x"].nbytes + tensors["shortcut"].nbytes + parameters
    frozen = replace(case, wants=("x", "shortcut"))
    assert _kept(frozen, "native") == tensors["x"].nbytes + parameters


@needs_native
def test_a_gradient_that_isnt_wanted_is_not_made() -> None:
    case = CASE["odd"]
    for wanted in (("x",), ("shortcut",), ("gate", "bias"), ("shortcut_gate",), ("slope",), NAMES):
        tensors = make(case, torch.float32)
        with RecordedCalls() as recorded:
            torch.autograd.grad(call(case, tensors, "native").sum(), [tensors[name] for name in wanted])
        ((*_, asked),) = recorded.of("gated_residual_backward")
        assert list(asked) == [name in wanted for name in NAMES]
    ops = torch.ops.anifast
    tensors = {name: value.detach() for name, value in make(case, torch.float32).items()}
    given = [tensors["grad"], *(tensors[name] for name in NAMES), 0.0, 1.0, 1, 0]
    for i in range(6):
        found = ops.gated_residual_backward(*given, [j == i for j in range(6)])
        assert [value.numel() > 0 for value in found] == [j == i for j in range(6)]


# The public function.


@needs_native
@pytest.mark.parametrize("name", ["odd", "nhwc_odd", "matrix", "up_crop", "up_nhwc", "linear", "float32_parameters"])
def test_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = check_short_way(gated_residual_cases, CASE[name], MODULE, monkeypatch)
    assert taken == [True]


@needs_native
def test_the_short_way_leaves_the_rest() -> None:
    case = CASE["up_crop"]
    good = make(case, torch.float32)
    arguments = [*(good[name] for name in NAMES), MEAN, STD, 2, 1]
    assert MODULE.short(*arguments) is not None
    wrong: list[tuple[int, Any]] = [
        (0, good["x"][0]),
        (0, good["x"].transpose(2, 3)),
        (0, good["x"].bfloat16()),
        (1, good["shortcut"][:1]),
        (1, good["shortcut"].double()),
        (2, torch.ones(4)),
        (3, torch.ones(1, 3)),
        (4, torch.ones(3).half()),
        (5, torch.ones(3, device="meta")),
        (7, 0.0),
        (7, math.nan),
        (8, 1),
        (8, 3),
        (9, 0),
        (9, -1),
        (9, 1 << 62),
    ]
    for place, value in wrong:
        given = list(arguments)
        given[place] = value
        assert MODULE.short(*given) is None, (place, value)


@needs_native
@pytest.mark.parametrize("name", ["odd", "up_nhwc_crop"])
def test_compiled_whole(name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    run: Callable[..., Tensor] = torch.compile(
        lambda given: call(case, given, "native"), fullgraph=True, backend="aot_eager"
    )
    expected = call(case, tensors, "native")
    found = run(tensors)
    assert torch.equal(found, expected)
    leaves = [tensors[key] for key in case.leaves]
    for got, wanted in zip(
        torch.autograd.grad(found, leaves, tensors["grad"]),
        torch.autograd.grad(expected, leaves, tensors["grad"]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_at_the_kink_the_derivative_is_that_of_the_negative_side(channels_last: bool, backend: str) -> None:
    x = torch.zeros(2, 3, 4, 5).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    x.requires_grad_()
    slope = torch.tensor([0.5, 0.0, -2.0])
    y = gated_residual(x, x.detach(), torch.ones(3), torch.ones(3), slope, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, slope.view(1, 3, 1, 1).expand(2, 3, 4, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_nan_stays_in_its_place(channels_last: bool, up: int, backend: str) -> None:
    case = Case("nan", (2, 19, 6, 10), up=up, channels_last=channels_last, wants=("x", "shortcut"))
    tensors = make(case, torch.float32)
    with torch.no_grad():
        tensors["x"][1, 2, 3, 4] = tensors["shortcut"][0, 3, 2, 1] = tensors["grad"][1, 5, 0, 9] = math.nan
    found = results(case, tensors, backend)
    for name, places in {
        "out": [(1, 2, 3, 4), (0, 3, slice(4, 6), slice(2, 4)) if up == 2 else (0, 3, 2, 1)],
        "d x": [(1, 5, 0, 9)],
        "d shortcut": [(1, 5, 0, 4) if up == 2 else (1, 5, 0, 9)],
    }.items():
        expected = torch.zeros_like(found[name], dtype=torch.bool)
        for place in places:
            expected[place] = True
        assert torch.equal(found[name].isnan(), expected), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_bias_spoils_its_own_channel_alone(backend: str) -> None:
    case = CASE["vectors_and_rest"]
    tensors = make(case, torch.float32)
    with torch.no_grad():
        tensors["bias"][1], tensors["slope"][1] = math.inf, 0.5
    expected = results(case, make(case, torch.float32), backend)
    for name, value in results(case, tensors, backend).items():
        if not name.startswith("d2"):
            kept = [0, 2]
            same = (
                (value[kept], expected[name][kept]) if value.dim() == 1 else (value[:, kept], expected[name][:, kept])
            )
            assert torch.equal(*same), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = [base[:, 1:5, ::2], base.transpose(2, 3), base.contiguous(memory_format=torch.channels_last)[:, :, 2:, ::5]]
    for view in views:
        x, shortcut = (
            view.detach().requires_grad_(),
            torch.randn(view.shape).transpose(2, 3).contiguous().transpose(2, 3),
        )
        numbers = [torch.randn(2 * x.shape[1])[::2] for _ in range(4)]
        grad = torch.randn(1).expand(x.shape)
        plain = view.contiguous().requires_grad_()
        found = gated_residual(x, shortcut, *numbers, backend=backend)
        expected = gated_residual(plain, shortcut.contiguous(), *numbers, backend="reference")
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, plain, grad))


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_types_meet(backend: str) -> None:
    x, shortcut = torch.randn(2, 8, 5, 5).bfloat16(), torch.randn(2, 8, 5, 5)
    numbers = [torch.randn(8).requires_grad_() for _ in range(4)]
    expected = gated_residual(x.float(), shortcut, *numbers, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = x.clone().requires_grad_()
        found = gated_residual(leaf, shortcut, *numbers, backend=backend)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-6, atol=2**-5)  # a few roundings to 8 bits
    grads = torch.autograd.grad(found.float().sum(), [leaf, *numbers])
    assert [grad.dtype for grad in grads] == [torch.bfloat16, *[torch.float32] * 4]
    with pytest.raises(TypeError, match="shortcut has dtype torch.float32, expected torch.bfloat16 as x"):
        gated_residual(x, shortcut, *numbers, backend=backend)


def test_transforms_of_torch_func_take_the_reference() -> None:
    x, shortcut, numbers = torch.randn(3, 2, 4, 6), torch.randn(3, 2, 2, 3), torch.randn(4, 2).unbind()
    (expected,) = torch.autograd.grad(
        gated_residual(leaf := x.clone().requires_grad_(), shortcut, *numbers, up=2).sum(), leaf
    )
    torch.testing.assert_close(
        torch.func.grad(lambda x: gated_residual(x, shortcut, *numbers, up=2).sum())(x), expected
    )
    each = torch.func.vmap(lambda x, shortcut: gated_residual(x[None], shortcut[None], *numbers, up=2)[0])(x, shortcut)
    torch.testing.assert_close(each, gated_residual(x, shortcut, *numbers, up=2))


@needs_native
@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (1, 2, 3, 6)])
def test_forward_mode_is_refused_where_it_would_be_dropped(shape: tuple[int, ...]) -> None:
    numbers = torch.randn(4, 2).unbind()
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(shape), torch.randn(shape))
        given = x if shape[-1] == 3 else x[..., ::2]  # the second takes the long way
        with pytest.raises(NotImplementedError, match="gated_residual: .*no forward-mode"):
            gated_residual(given, torch.randn(given.shape), *numbers, backend="native")
        out = gated_residual(given, torch.randn(given.shape), *numbers, backend="reference")
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None


def test_kernels_that_were_not_built_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_reasons", {})
    monkeypatch.setattr(backends, "_automatic", {})
    sources = ["csrc/cpu/bias_lrelu.cpp"]
    monkeypatch.setattr(_native, "build_info", _native.build_info | {"sources": sources})
    monkeypatch.setattr(_native, "reason", None)
    monkeypatch.setattr(_native, "devices", frozenset({"cpu"}))
    assert backends.choose("gated_residual", "cpu") == "reference"
    with pytest.raises(BackendError, match="the extension was built before gated_residual was written"):
        backends.choose("gated_residual", "cpu", "native")
    assert backends.choose("bias_lrelu", "cpu") == "native"


X, G = torch.randn(2, 3, 4, 6), torch.randn(3)
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("list", dict(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ("integers", dict(x=X.int()), TypeError, "x must be float32, .* got torch.int32"),
    ("rank 3", dict(x=X[0]), ValueError, r"x has shape \(3, 4, 6\), expected N,C or N,C,H,W"),
    ("shortcut list", dict(shortcut=[1.0]), TypeError, "shortcut must be a torch.Tensor, got list"),
    ("shortcut", dict(shortcut=X[:1]), ValueError, r"shortcut has shape \(1, 3, 4, 6\), expected \(2, 3, 4, 6\) as x"),
    ("shortcut type", dict(shortcut=X.double()), TypeError, "shortcut has dtype torch.float64, expected torch.float32"),
    ("shortcut device", dict(shortcut=X.to("meta")), ValueError, "shortcut is on meta, expected cpu as x"),
    ("gate", dict(gate=torch.ones(4)), ValueError, r"gate has shape \(4,\), expected \(3,\)"),
    ("gate number", dict(gate=1.0), TypeError, "gate must be a torch.Tensor, got float"),
    ("gate none", dict(gate=None), TypeError, "gate must be a torch.Tensor, got NoneType"),
    ("shortcut_gate", dict(shortcut_gate=G[None]), ValueError, r"shortcut_gate has shape \(1, 3\), expected \(3,\)"),
    ("slope", dict(slope=torch.ones(1)), ValueError, r"slope has shape \(1,\), expected \(3,\)"),
    ("slope number", dict(slope=0.2), TypeError, "slope must be a torch.Tensor, got float"),
    ("bias type", dict(bias=G.half()), TypeError, "bias has dtype torch.float16, expected torch.float32 as x"),
    ("bias device", dict(bias=G.to("meta")), ValueError, "bias is on meta, expected cpu as x"),
    ("mean", dict(mean="0"), TypeError, "mean must be a number, got str"),
    ("std", dict(std=0.0), ValueError, "std must be positive, got 0.0"),
    ("std nan", dict(std=math.nan), ValueError, "std must be positive, got nan"),
    ("std none", dict(std=None), TypeError, "std must be a number, got NoneType"),
    ("up", dict(up=3), ValueError, "up must be 1 or 2, got 3"),
    ("up float", dict(up=2.0), TypeError, "up must be an int, got float"),
    ("up shortcut", dict(up=2), ValueError, r"shortcut has shape \(2, 3, 4, 6\), which doubled and without 0 pixels"),
    ("up crop", dict(up=2, crop=1, shortcut=X[:, :, :2, :3]), ValueError, r"is not x's \(2, 3, 4, 6\)"),
    ("up matrix", dict(x=X[:, :, 0, 0], up=2), ValueError, r"up=2 needs an x of N,C,H,W, got shape \(2, 3\)"),
    ("up odd", dict(x=X[:, :, :3], shortcut=X[:, :, :2, :3], up=2), ValueError, r"is not x's \(2, 3, 3, 6\)"),
    ("crop", dict(crop=1), ValueError, "crop must be 0, or with up=2 not negative; got 1 with up=1"),
    ("crop negative", dict(crop=-1, up=2), ValueError, "got -1 with up=2"),
    ("crop far", dict(crop=1 << 62, up=2), ValueError, "which doubled and without 4611686018427387904 pixels"),
    ("backend", dict(backend="cudnn"), BackendError, "unknown backend 'cudnn'"),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, given, error, message", BAD, ids=[bad[0] for bad in BAD])
def test_bad_arguments(name: str, given: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match="^(gated_residual|backend=): .*" + message):
        gated_residual(**({"x": X, "shortcut": X, "gate": G, "shortcut_gate": G, "backend": backend} | given))


@needs_native
def test_dispatcher_ops_check_what_they_are_given() -> None:
    ops, how = torch.ops.anifast, (0.0, 1.0, 1, 0)
    with pytest.raises(RuntimeError, match="gated_residual: shortcut is Double"):
        ops.gated_residual(X, X.double(), G, G, None, None, *how)
    with pytest.raises(RuntimeError, match="gated_residual: x must have rank 2 or 4, got 3"):
        ops.gated_residual(X[0], X[0], G, G, None, None, *how)
    with pytest.raises(RuntimeError, match="gated_residual: slope has shape .4."):
        ops.gated_residual(X, X, G, G, torch.ones(4), None, *how)
    for up, crop in ((3, 0), (0, 0), (1, 1), (2, -1), (2, 1 << 62)):
        with pytest.raises(RuntimeError, match=f"gated_residual: up {up} and crop {crop} do not go with rank 4"):
            ops.gated_residual(X, X, G, G, None, None, 0.0, 1.0, up, crop)
    with pytest.raises(RuntimeError, match="gated_residual: a doubled shortcut is not 3 by 6"):
        ops.gated_residual(X[:, :, :3], X, G, G, None, None, 0.0, 1.0, 2, 0)
    with pytest.raises(RuntimeError, match="gated_residual: grad is Float of shape .1, 3, 4, 6."):
        ops.gated_residual_backward(X[:1], X, X, G, G, None, None, *how, [True] * 6)
    with pytest.raises(RuntimeError, match="gated_residual: the gradient of shortcut_gate needs the shortcut"):
        ops.gated_residual_backward(X, X, None, G, G, None, None, *how, [True] * 6)


def test_the_measured_shapes_are_those_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    from anifast.systems.disentangle import networks
    from anifast.systems.disentangle.config import make
    from benchmarks.shapes import GATED_RESIDUAL

    met: set[tuple[Any, ...]] = set()

    def watched(x: Tensor, shortcut: Tensor, *parameters: Tensor, up: int, crop: int, **rest: Any) -> Tensor:
        act = rest["slope"] is not None
        narrow = 16 if act else 1  # the last block's channels are the pictures'
        met.add((narrow * x.shape[1], *x.shape[2:], *shortcut.shape[2:], up, crop, act))
        return op(x, shortcut, *parameters, up=up, crop=crop, **rest)

    op = networks.gated_residual
    monkeypatch.setattr(networks, "gated_residual", watched)
    for preset, system in (("nist_fast", "digits"), ("paper", "faces")):
        met.clear()
        features = [int(width) // 16 for width in make(preset, {}).features.split(",")]
        config = make(preset, {"features": ",".join(map(str, features)), "fc": 8})
        with torch.no_grad():
            networks.Encoder(config)(torch.zeros(1, config.channels, config.size, config.size))
            networks.Generator(config, 8)(torch.zeros(1, 8))
        listed = {
            (*use.shape[1:], *use.shortcut_shape[2:], use.up, use.crop, use.act)
            for use in GATED_RESIDUAL
            if use.name.startswith(f"disentangle.{system}.")
        }
        assert listed == met, system
    assert len({use.name for use in GATED_RESIDUAL}) == len(GATED_RESIDUAL)
    assert len({(use.shape, use.up) for use in GATED_RESIDUAL}) == len(GATED_RESIDUAL)

"""modulated_conv2d: the reference, the strategies that run on a CPU, and the public function around them."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from modulated_conv2d_cases import CASE, CASES, LEAVES, Case, call, check, leaves, make, results, suits
from op_checks import CalledOps, RecordedCalls, nan_filled_allocations
from torch import Tensor

from anifast import _native
from anifast.errors import BackendError
from anifast.ops import modulated_conv2d
from anifast.ops.modulated_conv2d import STRATEGIES, no_weight_gradients

needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
REFERENCE = ["grouped", "scaled"]
NATIVE = ["library", "gemm", "winograd"]
EVERY = REFERENCE + [pytest.param(name, marks=needs_native) for name in NATIVE]
#: the dispatcher op that each strategy runs
OP = {"library": "modulated_conv2d_library", "gemm": "modulated_conv2d", "winograd": "modulated_conv2d"}


def pairs(strategies: list[str]) -> list[Any]:
    """(strategy, case) for all that the strategies do."""
    return [
        pytest.param(strategy, case, id=f"{strategy}-{case}", marks=needs_native if strategy in NATIVE else ())
        for strategy in strategies
        for case in CASES
        if suits(case, strategy)
    ]


# The definition


@pytest.mark.parametrize("strategy", REFERENCE)
@pytest.mark.parametrize("case", [case for case in CASES if case.shape[0]], ids=str)
def test_the_reference_is_the_written_formula(case: Case, strategy: str) -> None:
    t = {name: value.detach() for name, value in make(case, torch.float64).items()}
    fir = torch.tensor(case.fir, dtype=torch.float64) / sum(case.fir)
    taps = len(fir)
    outs = []
    for b in range(case.shape[0]):
        own = case.weight_gain * t["weight"] * t["style"][b][None, :, None, None]
        if case.demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        x = t["x"][b : b + 1]
        kernel = torch.outer(fir, fir).flip(0, 1)[None, None]
        if case.up == 2:
            # every sample adds its kernel at twice its place; then the filter, whose border is cut to twice the size
            rows, columns = 2 * x.shape[2] + case.size - 2, 2 * x.shape[3] + case.size - 2
            y = x.new_zeros(1, case.outputs, rows, columns)
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    y[0, :, 2 * i : 2 * i + case.size, 2 * j : 2 * j + case.size] += torch.einsum(
                        "oikl,i->okl", own, x[0, :, i, j]
                    )
            spare = taps - 2 - (case.size - 1)
            pads = ((spare + 1) // 2 + 1, spare // 2 + 1)
            y = F.conv2d(F.pad(y, pads * 2).transpose(0, 1), 4 * kernel).transpose(0, 1)
        elif case.down == 2:
            spare = taps - 2 + (case.size - 1)
            x = F.conv2d(F.pad(x, ((spare + 1) // 2, spare // 2) * 2).transpose(0, 1), kernel).transpose(0, 1)
            y = F.conv2d(x, own, stride=2)
        else:
            y = F.conv2d(x, own, padding=case.size // 2 if isinstance(case.padding, str) else case.padding)
        outs.append(y)
    z = torch.cat(outs)
    if case.noise:
        z = z + t["noise"] * t.get("noise_strength", 1.0)
    if case.bias:
        z = z + t["bias"][:, None, None]
    if case.act:
        z = F.leaky_relu(z, case.slope) * case.gain
    if case.clamp is not None:
        z = z.clamp(-case.clamp, case.clamp)
    torch.testing.assert_close(call(case, t, strategy), z + t.get("add", 0.0))


# Values, gradients, second gradients, layouts and types against the definition in float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("strategy", "case"), pairs([*REFERENCE, *NATIVE]))
def test_agrees_with_the_definition(strategy: str, case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        found = check(case, dtype, strategy)
    ours = {name for name in called.names if name.startswith("modulated_conv2d")}
    assert (OP[strategy] in ours) if strategy in OP else not ours, f"{ours} ran"
    assert not any(value.isnan().any() for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("strategy", "case"), pairs(NATIVE))
def test_half_types_agree_with_the_definition(strategy: str, case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        check(case, dtype, strategy)
    assert OP[strategy] in called.names


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("strategy", ["gemm", "winograd"])
def test_maps_that_are_cut_into_many_parts(strategy: str, up: int, channels_last: bool) -> None:
    for shape, outputs in (((1, 24, 90, 220), 20), ((5, 40, 9, 10), 70)):
        case = Case("parts", shape, outputs, up=up, bias=True, channels_last=channels_last)
        check(case, torch.float32, strategy)


@pytest.mark.parametrize(("strategy", "case"), [row for row in pairs([*REFERENCE, *NATIVE]) if row.values[1].shape[0]])
def test_gradcheck_and_gradgradcheck(strategy: str, case: Case) -> None:
    n, i, h, w = case.shape
    small = replace(
        case, shape=(n, min(i, 3), min(h, 5), min(w, 5)), outputs=min(case.outputs, 3), float32_parameters=False
    )
    tensors = make(small, torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(small, dict(zip(tensors, values, strict=True)), strategy)

    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, tuple(tensors.values()), fast_mode=True)
    assert strategy not in OP or OP[strategy] in called.names


@needs_native
@pytest.mark.parametrize("strategy", NATIVE)
@pytest.mark.parametrize("up", [1, 2])
def test_gradcheck_of_every_number(strategy: str, up: int) -> None:
    case = Case("small", (2, 2, 3, 2), 2, up=up, bias=True, noise="each")
    tensors = make(case, torch.float64)
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(case, dict(zip(tensors, values, strict=True)), strategy)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))


@needs_native
@pytest.mark.parametrize("strategy", NATIVE)
@pytest.mark.parametrize(
    "name", ["plain", "up", "nhwc_plain", "nhwc_up", "rgb", "down", "not_demodulated", "empty_batch"]
)
def test_opcheck(name: str, strategy: str) -> None:
    case = CASE[name]
    if not suits(case, strategy):
        with pytest.raises(ValueError, match=f"strategy '{strategy}' does no"):
            call(case, make(case, torch.float32), strategy)
        return
    with RecordedCalls() as recorded:
        results(case, make(case, torch.float32), strategy)
    seen: dict[str, tuple[Any, ...]] = {}
    for func, args in recorded.calls:
        if "modulated" in str(func):
            seen.setdefault(f"{func} {[value is None for value in args]}", (func, args))
    assert len(seen) >= 3  # forward and its adjoints at least
    for func, args in seen.values():
        fresh = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
        torch.library.opcheck(func, tuple(fresh))


@needs_native
@pytest.mark.parametrize("strategy", ["gemm", "winograd"])
@pytest.mark.parametrize("name", ["plain", "up", "nhwc_plain"])
def test_results_do_not_depend_on_the_number_of_threads(name: str, strategy: str) -> None:
    before = torch.get_num_threads()
    case = replace(CASE[name], shape=(2, 20, 65, 130), outputs=40)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = make(case, torch.float32)
            out = call(case, tensors, strategy)
            grads = torch.autograd.grad((out * tensors["grad"]).sum(), [tensors["x"], tensors["weight"]])
            found.append([out, *grads])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for value, same in zip(found[0], other, strict=True):
            assert torch.equal(value, same)


# Memory


@needs_native
@pytest.mark.parametrize("strategy", NATIVE)
@pytest.mark.parametrize("name", ["plain", "up", "clamped"])
def test_training_keeps_the_input_the_output_and_small_vectors(name: str, strategy: str) -> None:
    from benchmarks.timing import saved_for_backward

    case = replace(CASE[name], shape=(2, 8, 16, 16), outputs=8)
    tensors = make(case, torch.float32)
    vectors = 8 * 4 * 2 * (8 + 8 + 8)  # style and scale a few times, each [2, 8]
    kept = saved_for_backward(lambda: call(case, tensors, strategy), tensors.values())
    assert kept <= 4 * math.prod(case.out_shape) + vectors


@needs_native
@pytest.mark.parametrize("strategy", NATIVE)
def test_backward_computes_what_needs_a_gradient(strategy: str) -> None:
    case, suffix = CASE["plain"], "_library" if strategy == "library" else ""
    expected = {
        "x": {"epilogue_grad", f"input_grad{suffix}"},
        "style": {"epilogue_grad", f"input_grad{suffix}"},
        "weight": {"epilogue_grad", f"weight_grad{suffix}"},
        "bias": {"epilogue_grad"},
        "noise_strength": {"epilogue_grad"},
    }
    for name, ops in expected.items():
        tensors = {key: value.detach() for key, value in make(case, torch.float32).items()}
        out = call(case, tensors | {name: tensors[name].requires_grad_()}, strategy)
        with CalledOps() as called:
            out.sum().backward()
        ours = {op.removeprefix("modulated_conv2d_") for op in called.names if op.startswith("modulated")}
        assert ours - {"style_grad", "square_sums"} == ops, name


@needs_native
@pytest.mark.parametrize("create_graph", [False, True])
def test_weight_gradients_can_be_left_out(create_graph: bool) -> None:
    case = CASE["plain"]
    tensors = make(case, torch.float32)
    inputs = [tensors["style"], tensors["x"]]

    def penalty() -> tuple[Tensor, set[str]]:
        out = call(case, tensors, "winograd")
        with CalledOps() as called:
            grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=create_graph)
        return sum((value.square().sum() for value in grads), torch.zeros(())), called.names

    whole, with_weight = penalty()
    with no_weight_gradients():
        part, without = penalty()
    torch.testing.assert_close(part, whole)
    assert "modulated_conv2d_weight_grad" in with_weight - without
    if create_graph:  # of the penalty itself nothing is missing
        got = torch.autograd.grad(part, tensors["weight"])[0]
        torch.testing.assert_close(got, torch.autograd.grad(whole, tensors["weight"])[0])
    plain = replace(case, demodulate=False)
    with no_weight_gradients():
        out = call(plain, tensors, "winograd").sum()
        assert torch.autograd.grad(out, tensors["weight"], allow_unused=True)[0] is None
    assert torch.autograd.grad(call(case, tensors, "winograd").sum(), tensors["weight"])[0].any()


# Forms of arguments


@pytest.mark.parametrize("strategy", EVERY)
def test_forms_of_the_arguments_mean_the_same(strategy: str) -> None:
    torch.manual_seed(0)
    x, weight, style = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3), torch.randn(2, 4)

    def run(**given: Any) -> Tensor:
        return modulated_conv2d(x, weight, style, strategy=strategy, **given)

    torch.testing.assert_close(run(padding=1), run())
    torch.testing.assert_close(run(weight_gain=7.0), run(), rtol=1e-5, atol=1e-5)  # which demodulation undoes
    torch.testing.assert_close(run(slope=1.0, gain=1.0), run(act=False))
    fir = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for same in (fir, fir * 5, torch.outer(fir, fir) / 16, torch.outer(fir, fir).half()):
        torch.testing.assert_close(run(up=2, fir=same), run(up=2), rtol=1e-5, atol=1e-5)
    noise = torch.randn(2, 1, 6, 5)
    torch.testing.assert_close(
        run(noise=noise, noise_strength=0.5), run(noise=noise, noise_strength=torch.tensor([0.5]))
    )
    torch.testing.assert_close(run(noise=noise, act=False), run(act=False) + noise)
    add = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(run(add=add), run() + add)


@pytest.mark.parametrize("strategy", EVERY)
def test_odd_strides_are_taken(strategy: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6, 8, 10)
    views = {
        "slice": base[:, 1:5, ::2],
        "transposed": base.transpose(2, 3),
        "expanded": torch.randn(1, 6, 1, 1).expand(2, 6, 5, 5),
        "slice of channels_last": base.contiguous(memory_format=torch.channels_last)[:, :, 1:, ::3],
    }
    for name, x in views.items():
        weight = torch.randn(3, 3, x.shape[1], 5).permute(3, 2, 1, 0)
        given: dict[str, Any] = dict(
            weight=weight, style=torch.randn(x.shape[1], x.shape[0]).t(), bias=torch.randn(10)[::2],
            noise=torch.randn(1, 1, *x.shape[2:][::-1]).transpose(2, 3),
        )  # fmt: skip
        got = modulated_conv2d(x, **given, strategy=strategy)
        expected = modulated_conv2d(x.contiguous(), **given, strategy="grouped")
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=name)
    grad = torch.randn(4, 8, 10, 5).permute(0, 3, 1, 2)  # a gradient in another layout than x
    weight, style = torch.randn(5, 6, 3, 3), torch.randn(4, 6)
    found = []
    for way in (strategy, "grouped"):
        x = base.clone().requires_grad_()
        modulated_conv2d(x, weight, style, strategy=way).backward(grad)
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_style_of_zeros_gives_no_nan(strategy: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 4, 6, 5).to(dtype).requires_grad_(), torch.randn(3, 4, 3, 3, requires_grad=True)
    style = torch.zeros(2, 4, requires_grad=True)
    bias = torch.tensor([1.0, -1.0, 0.5], requires_grad=True)
    if dtype == torch.float16 and strategy in REFERENCE:
        pytest.skip("plain PyTorch in float16 has no eps of 1e-8")
    for up in (1, 2):
        out = modulated_conv2d(x, weight, style, bias=bias, up=up, strategy=strategy)
        expected = (F.leaky_relu(bias, 0.2) * math.sqrt(2.0)).to(dtype)
        torch.testing.assert_close(out, expected[None, :, None, None].expand_as(out))
        if dtype == torch.float16:  # the style's gradient is beyond its range, 1e4 times the usual
            grads = torch.autograd.grad(out.float().sum() * 1e-4, (x, weight, style, bias))
            assert all(value.isfinite().all() for value in grads) and grads[2].any()
            continue
        grads = torch.autograd.grad(out.sum(), (x, weight, style, bias), create_graph=True)
        again = torch.autograd.grad(grads[2].square().sum(), (x, weight, style), allow_unused=True)
        assert all(value.isfinite().all() for value in (*grads, *(g for g in again if g is not None)))


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=needs_native) for name in NATIVE])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("factor", [1e-6, 1.0, 3e4])
def test_float16_at_extreme_styles(factor: float, demodulate: bool, strategy: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 32, 6, 5) * 100).half()
    weight, style = torch.randn(8, 32, 3, 3), torch.randn(2, 32) * factor
    if demodulate:
        weight[0] *= factor
    gain = 1.0 if demodulate else 1.0 / factor / 300.0
    direction = torch.randn(2, 8, 6, 5)
    found = []
    for dtype, way in ((torch.float16, strategy), (torch.float64, "grouped")):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = [x.to(dtype).requires_grad_(), weight.to(wide).requires_grad_(), style.to(wide).requires_grad_()]
        out = modulated_conv2d(
            *leaves, demodulate=demodulate, weight_gain=gain, eps=0.0, act=False, clamp=256.0, strategy=way
        )
        loss = (out.to(wide) * direction).sum()
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        again = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append([out, *first, *again])
    assert found[0][0].dtype == torch.float16 and found[0][0].abs().max() <= 256.0
    for got, expected in zip(*found, strict=True):
        # x * style, the weight, the sum and the gradient between are rounded, each at its largest
        bound = 2**-8 * expected.abs().max().item()
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=bound)


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=needs_native) for name in NATIVE])
def test_float16_gradients_of_weights_have_their_usual_range(strategy: str) -> None:
    torch.manual_seed(0)
    x, weight, style = torch.randn(1, 64, 8, 8).half(), torch.randn(4, 64, 3, 3), torch.rand(1, 64) + 0.5
    grads = []
    for given in (x, x.float()):
        leaf = weight.clone().requires_grad_()
        out = modulated_conv2d(given, leaf, style, act=False, strategy=strategy).float()
        grads.append(torch.autograd.grad((out * out.detach()).sum() * 1e3, leaf)[0])
    assert grads[1].abs().max() > 1e3  # where a guard's factor of the weights would leave the type
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=2**-8 * grads[1].abs().max().item())


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=needs_native) for name in NATIVE])
def test_a_style_beyond_squares_has_finite_gradients(strategy: str) -> None:
    x, weight = torch.randn(1, 4, 6, 5, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    style = torch.full((1, 4), 1e20, requires_grad=True)
    out = modulated_conv2d(x, weight, style, strategy=strategy)
    assert all(value.isfinite().all() for value in torch.autograd.grad(out.sum(), (weight, style)))


@needs_native
@pytest.mark.parametrize("up", [1, 2])
def test_matrices_that_pass_the_caches(up: int) -> None:
    case = Case("wide weight", (1, 256, 4, 4), 256, up=up, bias=True)
    tensors = make(case, torch.float32)
    out, expected = (call(case, tensors, way) for way in ("winograd", "scaled"))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


# torch.compile, autocast, transforms, modes


@pytest.mark.parametrize("strategy", ["auto", "scaled", *(pytest.param(name, marks=needs_native) for name in NATIVE)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(strategy: str, dynamic: bool) -> None:
    torch.compiler.reset()

    def model(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        y = modulated_conv2d(x.sin(), weight, style, bias=bias, strategy=strategy)
        return modulated_conv2d(y, weight, style, bias=bias, up=2, clamp=1.0, strategy=strategy)

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (5, 8):
        given = [torch.randn(s).requires_grad_() for s in ((2, 4, side, side + 1), (4, 4, 3, 3), (2, 4), (4,))]
        got, expected = compiled(*given), model(*given)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad(got.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", EVERY)
def test_autocast_and_float32_parameters(strategy: str) -> None:
    weight, style = torch.randn(5, 3, 3, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    bias, x = torch.randn(5, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    noise = torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = modulated_conv2d(x, weight, style, bias=bias, noise=noise, up=2, strategy=strategy)
        again = modulated_conv2d(y.detach(), weight.repeat(1, 2, 1, 1)[:, :5], style.repeat(1, 2)[:, :5].to(y.dtype))
    assert y.dtype == again.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in (x, weight, style, bias))
    with pytest.raises(TypeError, match="weight has dtype torch.float16, expected torch.float32 as x"):
        modulated_conv2d(x, weight.half(), style, strategy=strategy)


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=needs_native) for name in NATIVE])
@pytest.mark.parametrize("name", ["plain", "up", "rgb"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_backward_computes_in_the_types_of_forward_under_autocast(kind: torch.dtype, name: str, strategy: str) -> None:
    case = CASE[name] if suits(CASE[name], strategy) else replace(CASE[name], size=3)
    expected = results(case, make(case, torch.float32), strategy)
    tensors = make(case, torch.float32)
    out, inputs = call(case, tensors, strategy), leaves(tensors)
    loss = (out * tensors["grad"]).sum()
    with torch.autocast("cpu", kind):
        first = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
        again = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
    penalty = sum(((value + 0.5) ** 2).mean() for value in again)
    second = torch.autograd.grad(penalty, tensors["style"])[0]
    for at, key in enumerate(inputs):
        torch.testing.assert_close(first[at], expected[f"g {key}"])
        torch.testing.assert_close(again[at], expected[f"d {key}"])
    torch.testing.assert_close(second, expected["d2 style"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["auto", "scaled", pytest.param("winograd", marks=needs_native)])
def test_transforms_of_torch_func_take_the_reference_or_say_so(strategy: str) -> None:
    x, weight, style = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), torch.randn(2, 3)

    def loss(x: Tensor) -> Tensor:
        return modulated_conv2d(x, weight, style, strategy=strategy).square().sum()

    if strategy == "winograd":
        with pytest.raises(NotImplementedError, match=r'not go through torch.func.*backend="reference" does'):
            torch.func.grad(loss)(x)
        return
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-4, atol=1e-4)


def test_forward_mode_is_right_or_refused() -> None:
    x, tangent = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    weight, style = torch.randn(4, 3, 3, 3), torch.randn(2, 3)

    def run(x: Tensor, strategy: str = "scaled") -> Tensor:
        return modulated_conv2d(x, weight, style, act=False, strategy=strategy)

    _, got = torch.func.jvp(run, (x,), (tangent,))
    torch.testing.assert_close(got, run(tangent))
    if _native.unavailable("cpu") is None:
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
            run(torch.autograd.forward_ad.make_dual(x, tangent), "winograd")


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("wanted", LEAVES)
@pytest.mark.parametrize("name", ["plain", "up", "rgb", "negative_slope"])
def test_each_input_alone_can_need_a_gradient(name: str, wanted: str, strategy: str) -> None:
    case = replace(CASE[name], bias=True, noise="each", add=True)
    if not suits(case, strategy):
        case = replace(case, size=3)
    tensors = {key: value.detach() for key, value in make(case, torch.float64).items()}
    leaves(tensors)[wanted].requires_grad_()
    (got,) = torch.autograd.grad(call(case, tensors, strategy).square().sum(), tensors[wanted])
    (expected,) = torch.autograd.grad(call(case, tensors, "grouped").square().sum(), tensors[wanted])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("strategy", EVERY)
def test_a_style_made_of_the_input_has_its_gradient_once(strategy: str) -> None:
    # the style as a function of x: the graph of a penalty must not walk from the one to the other twice
    x, weight = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, 3, 3).double()

    def run(x: Tensor) -> Tensor:
        return modulated_conv2d(x, weight, x.mean((2, 3)) + 1.0, strategy=strategy)

    assert torch.autograd.gradcheck(run, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


# Which strategy runs


@needs_native
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("plain", (1, 5, 16, 16), "winograd"),
        ("plain", (4, 5, 7, 8), "winograd"),
        ("plain", (1, 5, 8, 8), "library"),
        ("up", (1, 5, 16, 16), "winograd"),
        ("up", (1, 5, 4, 4), "gemm"),
        ("rgb", (1, 5, 4, 4), "gemm"),
        ("down", (1, 5, 16, 16), "library"),
        ("five", (1, 5, 16, 16), "library"),
        ("no_padding", (1, 5, 16, 16), "library"),
        ("empty_batch", (0, 5, 16, 16), "library"),
    ],
)
def test_the_automatic_choice_runs_what_the_shape_suits(
    name: str, shape: tuple[int, int, int, int], expected: str
) -> None:
    case = replace(CASE[name], shape=shape)
    with RecordedCalls() as recorded:
        call(case, make(case, torch.float32))
    assert [args[13] for op in sorted({*OP.values()}) for args in recorded.of(op)] == [expected]
    assert OP[expected] in recorded.names


def test_a_strategy_and_a_backend_must_agree() -> None:
    x, weight, style = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3), torch.randn(1, 2)
    modulated_conv2d(x, weight, style, strategy="grouped", backend="reference")
    with pytest.raises(ValueError, match="strategy 'grouped' belongs to backend 'reference', got backend='native'"):
        modulated_conv2d(x, weight, style, strategy="grouped", backend="native")
    with pytest.raises(ValueError, match="unknown strategy 'fast'; there are auto, grouped, scaled, library"):
        modulated_conv2d(x, weight, style, strategy="fast")
    with pytest.raises(BackendError, match="strategy 'implicit_gemm' cannot run on cpu: "):
        modulated_conv2d(x, weight, style, strategy="implicit_gemm")
    assert set(STRATEGIES.values()) == {"reference", "native", "triton"}


@needs_native
def test_a_strategy_says_what_it_does_not_do() -> None:
    x, style = torch.randn(1, 2, 4, 4), torch.randn(1, 2)
    for strategy, size, given in (("winograd", 1, {}), ("gemm", 5, {}), ("gemm", 3, dict(down=2)),
                                  ("winograd", 3, dict(padding=0)), ("gemm", 1, dict(up=2))):  # fmt: skip
        with pytest.raises(ValueError, match=rf"'{strategy}' does no {size} x {size} kernel.*\"library\" does"):
            modulated_conv2d(x, torch.randn(2, 2, size, size), style, strategy=strategy, **given)  # type: ignore[arg-type]


def test_where_nothing_is_compiled_the_reference_runs() -> None:
    x, weight, style = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3), torch.randn(1, 2)
    torch.testing.assert_close(
        modulated_conv2d(x, weight, style, backend="reference"), modulated_conv2d(x, weight, style, strategy="scaled")
    )


# Bad input

X, WEIGHT, STYLE = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 3, 3), torch.zeros(2, 3)


def run(x: Any = X, weight: Any = WEIGHT, style: Any = STYLE, **given: Any) -> Tensor:
    return modulated_conv2d(x, weight, style, **given)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no tensor", dict(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ("integers", dict(x=X.int()), TypeError, "x must be float32.*got torch.int32"),
    ("rank", dict(x=X[0]), ValueError, r"x must have rank 4 \(N,C,H,W\), got shape \(3, 4, 5\)"),
    ("no pixels", dict(x=X[..., :0]), ValueError, r"x has no pixels, got shape \(2, 3, 4, 0\)"),
    ("channels", dict(x=X[:, :2]), ValueError, "x has 2 channels, expected 3 as the weight's axis 1"),
    ("weight", dict(weight=1.0), TypeError, "weight must be a torch.Tensor, got float"),
    ("stored weight", dict(weight=WEIGHT[None]), ValueError, r"\(1, 6, 3, 3, 3\) \(stored weights.*weight\[0\]\)"),
    ("even kernel", dict(weight=WEIGHT[..., :2, :2]), ValueError, r"odd k, got shape \(6, 3, 2, 2\)"),
    ("oblong kernel", dict(weight=WEIGHT[..., :1]), ValueError, r"odd k, got shape \(6, 3, 3, 1\)"),
    ("no outputs", dict(weight=WEIGHT[:0]), ValueError, "weight has no channels"),
    ("weight type", dict(weight=WEIGHT.double()), TypeError, "weight has dtype torch.float64, expected torch.float32"),
    ("weight device", dict(weight=WEIGHT.to("meta")), ValueError, "weight is on meta, expected cpu"),
    ("style width", dict(style=STYLE[:, :2]), ValueError, r"style has shape \(2, 2\), expected \(2, 3\)"),
    ("style batch", dict(style=STYLE[:1]), ValueError, r"style has shape \(1, 3\), expected \(2, 3\)"),
    ("style rank", dict(style=STYLE[None]), ValueError, r"style has shape \(1, 2, 3\), expected \(2, 3\): one factor"),
    ("style type", dict(style=STYLE.half()), TypeError, "style has dtype torch.float16, expected torch.float32"),
    ("up", dict(up=3), ValueError, "up must be 1 or 2, got 3"),
    ("down", dict(down=0), ValueError, "down must be 1 or 2, got 0"),
    ("both", dict(up=2, down=2), ValueError, "up and down cannot both be 2"),
    ("padding", dict(padding="valid"), ValueError, "padding must be \"same\", or 0 or more.*got 'valid'"),
    ("padding up", dict(padding=1, up=2), ValueError, "where neither up nor down is 2, got 1"),
    ("padding negative", dict(padding=-1), ValueError, "got -1"),
    ("no output", dict(x=X[..., :2, :2], padding=0), ValueError, "no output is left of 2 x 2 pixels under 3 x 3"),
    ("fir", dict(up=2, fir=torch.zeros(1, 1, 1)), ValueError, r"fir must be \[k\] or \[k_y, k_x\].*\(1, 1, 1\)"),
    ("no fir", dict(up=2, fir=()), ValueError, r"fir must be one number or more.*got \(\)"),
    ("fir sum", dict(up=2, fir=(1, -1)), ValueError, "with a finite sum other than 0, got"),
    ("fir nan", dict(up=2, fir=(1, math.nan)), ValueError, "with a finite sum other than 0, got"),
    ("fir nothing", dict(up=2, fir=None), TypeError, "fir must be numbers or a tensor, got None"),
    ("fir nested", dict(up=2, fir=[[1, 2]]), TypeError, r"fir must be numbers or a tensor, got \[\[1, 2\]\]"),
    ("up of float", dict(up=2.0), ValueError, "up must be 1 or 2, got 2.0"),
    ("padding of float", dict(padding=1.5), ValueError, "padding must be.*got 1.5"),
    ("no padding", dict(padding=None), ValueError, "padding must be.*got None"),
    ("bias", dict(bias=torch.ones(3)), ValueError, r"bias has shape \(3,\), expected \(6,\)"),
    ("noise", dict(noise=X), ValueError, r"noise has shape.*expected \(2, 1, 4, 5\), or 1 at axis 0"),
    ("noise up", dict(noise=X[:, :1], up=2), ValueError, r"expected \(2, 1, 8, 10\), or 1"),
    ("strength alone", dict(noise_strength=1.0), ValueError, "given without noise"),
    ("clamp", dict(clamp=-1.0), ValueError, "clamp must not be negative, got -1.0"),
    ("add", dict(add=X), ValueError, r"add has shape \(2, 3, 4, 5\), expected \(2, 6, 4, 5\)"),
    ("gain", dict(gain="2"), TypeError, "gain must be a number, got str"),
    ("eps", dict(eps=None), TypeError, "eps must be a number, got NoneType"),
    ("backend", dict(backend="cudnn"), BackendError, "unknown backend 'cudnn'"),
]


@pytest.mark.parametrize(("given", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_arguments_are_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**given)


@needs_native
def test_the_dispatcher_op_checks_its_own_arguments() -> None:
    def forward(
        x: Tensor = X, weight: Tensor = WEIGHT, up: int = 1, down: int = 1, padding: int = 1, strategy: str = "gemm",
        **given: Tensor,
    ) -> None:  # fmt: skip
        names = ("style", "scale", "bias", "noise", "noise_strength", "add", "weight_scale", "fir")
        torch.ops.anifast.modulated_conv2d(
            x, weight, *[given.get(name) for name in names], up, down, padding, strategy, 1.0, 1.0, None
        )

    def adjoints(grad: Tensor, size: int = 3, strategy: str = "gemm") -> None:
        torch.ops.anifast.modulated_conv2d_weight_grad(X, None, grad, size, None, 1, 1, size // 2, strategy)
        torch.ops.anifast.modulated_conv2d_input_grad(grad, WEIGHT, None, None, 4, 5, None, 1, 1, 1, strategy)

    adjoints(torch.zeros(2, 6, 4, 5))
    for grad in (torch.zeros(2, 6, 4, 4), torch.zeros(1, 6, 4, 5)[0]):
        with pytest.raises(RuntimeError, match="expected the output's size for 4 x 5"):
            adjoints(grad)
    with pytest.raises(RuntimeError, match="do not fit"):
        adjoints(torch.zeros(1, 6, 4, 5))
    with pytest.raises(RuntimeError, match="winograd does not do up 1, down 1, kernel 1"):
        adjoints(torch.zeros(2, 6, 4, 5), 1, "winograd")

    for wrong, message in (
        (dict(x=X[0]), "x and weight must have rank 4"),
        (dict(weight=WEIGHT.double()), "weight has dtype Double, expected Float"),
        (dict(strategy="fast"), "unknown strategy fast"),
        (dict(weight=WEIGHT[..., :1, :1], padding=0, strategy="winograd"), "winograd does not do up 1, down 1, kernel"),
        (dict(style=STYLE[:1]), "style has 3 elements, expected 6"),
        (dict(scale=STYLE), "scale has 6 elements, expected 12"),
        (dict(bias=STYLE[0]), "bias has 3 elements, expected 6"),
        (dict(noise=X), "noise has 120 elements, expected 40"),
        (dict(add=X), "add has 120 elements, expected 240"),
        (dict(weight_scale=STYLE), "need no scale"),
        (dict(x=X[:, :2]), "do not fit"),
        (dict(down=2), "gemm does not do up 1, down 2, kernel 3"),
        (dict(padding=0), "does not do"),
        (dict(up=2), "needs its filter"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(**wrong)  # type: ignore[arg-type]


def test_the_op_is_where_it_says() -> None:
    module = importlib.import_module("anifast.ops.modulated_conv2d")
    assert module._NATIVE.names[0] == "anifast::modulated_conv2d"
    schema = str(torch.ops.anifast.modulated_conv2d.default._schema)
    assert schema.startswith("anifast::modulated_conv2d(Tensor x, Tensor weight, Tensor? style")

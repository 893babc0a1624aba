"""upfirdn2d: the reference, the native CPU kernels, and the public function around them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import upfirdn2d_cases
from op_checks import CalledOps, RecordedCalls, check_asked_for, check_short_way, nan_filled_allocations
from torch import Tensor
from upfirdn2d_cases import (
    BLUR,
    CASE,
    CASES,
    LEAVES,
    Case,
    brute_force,
    call,
    check,
    golden_results,
    leaves,
    make,
    results,
)

from anifast import _native
from anifast.errors import BackendError
from anifast.ops import upfirdn2d
from anifast.ops.upfirdn2d import mask_fits
from benchmarks.shapes import UPFIRDN2D

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
KERNEL = torch.tensor(BLUR) / 8


# The definition, sample by sample


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_filter_is_the_definition(case: Case, backend: str) -> None:
    bare = replace(case, scale=False, bias=False, noise="", act=False, clamp=None, add=False)
    tensors = make(bare, torch.float64)
    got = call(bare, tensors, backend).detach().numpy()
    expected = brute_force(bare, tensors["x"].detach().numpy(), tensors["kernel"].numpy())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)


def test_the_epilogue_of_the_reference_is_the_written_formula() -> None:
    case = CASE["epilogue_full"]
    t = {name: value.detach() for name, value in make(case, torch.float64).items()}
    bare = replace(case, scale=False, bias=False, noise="", act=False, clamp=None, add=False)
    u = torch.from_numpy(brute_force(bare, t["x"].numpy(), t["kernel"].numpy()))
    z = u * t["scale"][:, :, None, None] + t["noise_strength"] * t["noise"] + t["bias"][:, None, None]
    expected = (F.leaky_relu(z, 0.2) * math.sqrt(2.0)).clamp(-0.7, 0.7) + t["add"]
    torch.testing.assert_close(call(case, t, "reference"), expected)


# Values, gradients, second gradients, layouts and types against the reference in float64


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    with CalledOps() as called, nan_filled_allocations():
        found = check(case, dtype, "native")
    assert "upfirdn2d" in called.names, "the native kernel was not reached"
    assert not any(value.isnan().any() for value in found.values())
    with CalledOps() as called:
        check(case, dtype, "reference")
    assert not called.names, "the reference must not run kernels"


@needs_native
@pytest.mark.parametrize("use", [use for use in UPFIRDN2D if use.quick], ids=lambda use: use.name)
def test_shapes_of_the_systems(use: Any) -> None:
    epilogue = dict(scale=True, bias=True, act=True) if use.epilogue else {}
    case = Case(
        use.name, (1, min(use.shape[1], 8), *use.shape[2:]), up=(use.up,) * 2, down=(use.down,) * 2,
        padding=use.padding * 2, gain=use.gain, noise="each" if use.noise else "", add=use.add, **epilogue,
    )  # fmt: skip
    assert case.out_shape[2:] == use.out_shape[2:]
    check(case, torch.float32, "native")
    check(replace(case, channels_last=True), torch.float32, "native")


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["blur2", "down", "up", "epilogue_full", "matrix", "up3_down2"])
def test_many_planes_bands_and_blocks(name: str, channels_last: bool) -> None:
    shape = (2, 200, 9, 40) if channels_last else (1, 2, 150, 700)
    check(replace(CASE[name], shape=shape, channels_last=channels_last), torch.float32, "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case.shape], ids=str)
def test_gradcheck_and_gradgradcheck(case: Case, backend: str) -> None:
    small = case if math.prod(case.shape) <= 200 else replace(case, shape=(1, min(case.shape[1], 3), *case.shape[2:]))
    tensors = make(replace(small, float32_parameters=False), torch.float64)
    kernel = tensors.pop("kernel")
    tensors.pop("grad")

    def run(*values: Tensor) -> Tensor:
        return call(small, dict(zip(tensors, values, strict=True)) | {"kernel": kernel}, backend)

    fast = backend == "reference" or math.prod(small.shape) * math.prod(small.out_shape) > 10000
    with CalledOps() as called:
        assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, tuple(tensors.values()), fast_mode=fast)
    assert ("upfirdn2d" in called.names) == (backend == "native")


@needs_native
@pytest.mark.parametrize(
    "name",
    ["blur2", "down", "up_add", "epilogue_down", "nhwc_epilogue_full", "matrix_flip", "empty_batch", "no_channels"],
)
def test_opcheck(name: str) -> None:
    tensors = make(CASE[name], torch.float32)
    with RecordedCalls() as recorded:
        results(CASE[name], tensors, "native")
    seen = recorded.of("upfirdn2d")
    # forward, backward and the gradient of that, which nothing has where there are no elements
    assert len(seen) >= (2 if 0 in CASE[name].shape else 3)
    for args in seen:
        x, kernel, *rest = args
        fresh = (
            a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in (x, *rest)
        )  # the kernel is a constant
        x, *rest = fresh
        linear = rest[-4:-1] == [1.0, 1.0, None]
        torch.library.opcheck(torch.ops.anifast.upfirdn2d.default, (x, kernel, *rest[:-1], not linear or rest[-1]))


@needs_native
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    for name in ("epilogue_full", "down", "nhwc_epilogue_full"):
        case = replace(CASE[name], shape=(3, 5, 150, 300))
        found = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(results(case, make(case, torch.float32), "native"))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            for key, value in found[0].items():
                # gradients of scale, noise and strength are sums of torch's, which splits them by threads
                if key.split()[-1] in ("out", "x", "grad", "add"):
                    assert torch.equal(value, other[key]), f"{name}: {key} changes with the number of threads"
                else:
                    torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["blur1", "down", "up", "matrix", "up3_down2", "nhwc_blur1", "nhwc_up"])
def test_nan_and_inf_reach_what_their_sample_reaches(name: str, value: float, backend: str) -> None:
    case = replace(CASE[name], add=False)
    tensors = {key: tensor.detach() for key, tensor in make(case, torch.float32).items()}
    x, kernel = tensors["x"], tensors["kernel"]
    x[1, 1, 2, 3] = value
    got = call(case, tensors, backend)
    # the samples that it reaches: those that a 1 there reaches
    alone = torch.zeros_like(x)
    alone[1, 1, 2, 3] = 1.0
    reached = call(case, tensors | {"x": alone, "kernel": kernel.abs() + 1.0}, "reference") != 0
    assert reached.any() and not reached.all()
    assert torch.equal(got.isfinite(), ~reached)
    signs = call(case, tensors | {"x": alone}, "reference").sign()
    expected = torch.where(reached, signs * value, 0.0)
    torch.testing.assert_close(got[reached], expected[reached], equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_pass_the_epilogue_as_in_plain_pytorch(value: float, backend: str) -> None:
    x = torch.full((1, 1, 5, 40), 0.5)
    x[0, 0, 2, ::7] = value
    given: dict[str, Any] = dict(act=True, clamp=0.25, bias=torch.tensor([0.1]), padding=1)
    got = upfirdn2d(x, KERNEL, **given, backend=backend)
    u = upfirdn2d(x, KERNEL, padding=1, backend="reference")
    expected = (F.leaky_relu(u + 0.1, 0.2) * math.sqrt(2.0)).clamp(-0.25, 0.25)
    torch.testing.assert_close(got, expected, equal_nan=True)


# Memory


@needs_native
@pytest.mark.parametrize("name", ["blur2", "down", "up_add", "epilogue_full", "nhwc_epilogue_full"])
def test_nothing_but_the_output_is_allocated(name: str) -> None:
    from benchmarks.timing import memory

    case = replace(CASE[name], shape=(2, 16, 64, 63))
    tensors = {key: tensor.detach() for key, tensor in make(case, torch.float32).items()}
    peak, held = memory(lambda: call(case, tensors, "native"), "cpu")
    output = math.prod(case.out_shape) * 4
    assert output <= held <= peak <= output + 512  # the empty mask counts for a block of the allocator


@needs_native
def test_inference_saves_nothing_and_training_the_least() -> None:
    x = torch.randn(2, 8, 17, 17, requires_grad=True)
    bias, scale = torch.randn(8, requires_grad=True), torch.rand(2, 8)
    with torch.no_grad():
        assert not upfirdn2d(x, KERNEL, padding=1, bias=bias, act=True, backend="native").requires_grad
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    elements, kernel = 2 * 8 * 16 * 16, KERNEL.nbytes
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        upfirdn2d(x, KERNEL, padding=1, backend="native")
        assert sum(sizes) == kernel, "a linear map: its kernel"
        sizes.clear()
        upfirdn2d(x, KERNEL, padding=1, bias=bias, act=True, backend="native")
        assert sum(sizes) == elements // 8 + kernel, "one bit an element"
        sizes.clear()
        upfirdn2d(x, KERNEL, padding=1, bias=bias, act=True, clamp=1.0, scale=scale, backend="native")
        assert sum(sizes) == 2 * elements // 8 + kernel + scale.nbytes, "two bits an element"


@needs_native
def test_an_activation_that_fits_is_one_pass_and_else_two() -> None:
    for width, ops in ((17, {"upfirdn2d"}), (18, {"upfirdn2d", "bias_lrelu"})):
        assert mask_fits(width - 1, False) == (len(ops) == 1)
        x = torch.randn(1, 2, 9, width, requires_grad=True)
        with CalledOps() as called:
            upfirdn2d(x, KERNEL, padding=1, act=True, backend="native")
        assert called.names == ops
        with torch.no_grad(), CalledOps() as called:
            upfirdn2d(x, KERNEL, padding=1, act=True, backend="native")
        assert called.names == {"upfirdn2d"}, "no gradient, no mask"


# Forms of arguments


@pytest.mark.parametrize("backend", BACKENDS)
def test_forms_of_the_arguments_mean_the_same(backend: str) -> None:
    x = torch.randn(2, 3, 9, 11)

    def run(**given: Any) -> Tensor:
        return upfirdn2d(x, KERNEL, backend=backend, **given)

    assert torch.equal(run(up=2, padding=2), run(up=(2, 2), padding=[2, 2, 2, 2]))
    assert torch.equal(run(down=2, padding=(2, 1)), run(down=[2, 2], padding=(2, 1, 2, 1)))
    assert torch.equal(run(padding=(0, 3)), run(padding=(0, 3, 0, 3)))
    matrix = torch.outer(KERNEL, KERNEL)
    torch.testing.assert_close(run(padding=1), upfirdn2d(x, matrix, padding=1, backend=backend))
    for dtype in DTYPES:  # the kernel's type does not matter where it holds its taps
        torch.testing.assert_close(upfirdn2d(x, KERNEL.to(dtype), padding=1, backend=backend), run(padding=1))
    lopsided = torch.tensor([1.0, 2.0, 0.0, -1.0])
    assert torch.equal(
        upfirdn2d(x, lopsided, flip=True, backend=backend), upfirdn2d(x, lopsided.flip(0), backend=backend)
    )
    torch.testing.assert_close(run(gain=4.0), 4.0 * run())
    noise = torch.randn(2, 1, 6, 8)
    torch.testing.assert_close(
        run(noise=noise, noise_strength=0.5), run(noise=noise, noise_strength=torch.tensor([0.5]))
    )
    torch.testing.assert_close(run(noise=noise), run() + noise)


@needs_native
def test_a_nearly_separable_matrix_is_not_taken_for_one() -> None:
    x = torch.randn(1, 2, 20, 33)
    matrix = torch.outer(KERNEL, KERNEL)
    for position, by in (((1, 2), 1e-3), ((0, 0), 1e-5), ((3, 3), math.nan), ((0, 3), math.inf)):
        other = matrix.clone()
        other[position] += by
        got, expected = (upfirdn2d(x, other, padding=1, backend=backend)[..., 4:-4, 4:-4] for backend in
                         ("native", "reference"))  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    zero = upfirdn2d(x, torch.zeros(4, 4), padding=1, bias=torch.tensor([1.0, 2.0]), backend="native")
    assert torch.equal(zero, torch.tensor([1.0, 2.0])[None, :, None, None].expand_as(zero))


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_strides_are_taken(backend: str) -> None:
    base = torch.randn(4, 6, 8, 10)
    views = {
        "slice": base[:, 1:5, ::2],
        "transposed": base.transpose(2, 3),
        "expanded": torch.randn(1, 6, 1, 1).expand(2, 6, 5, 5),
        "slice of channels_last": base.contiguous(memory_format=torch.channels_last)[:, :, 1:, ::3],
    }
    for name, x in views.items():
        rows, columns = x.shape[2] + 1, x.shape[3] + 1
        add = torch.randn(x.shape[0], rows, columns, x.shape[1]).permute(0, 3, 1, 2)
        given: dict[str, Any] = dict(
            scale=torch.randn(x.shape[1], x.shape[0]).t(), bias=torch.randn(2 * x.shape[1])[::2],
            noise=torch.randn(1, 1, columns, rows).transpose(2, 3), add=add, act=True, padding=2,
        )  # fmt: skip
        kernel = torch.randn(4, 8)[:, ::2]
        got = upfirdn2d(x, kernel, backend=backend, **given)
        expected = upfirdn2d(x.contiguous(), kernel.contiguous(), backend="reference", **given)
        torch.testing.assert_close(got, expected, msg=name)
    grad = torch.randn(4, 9, 11, 6).permute(0, 3, 1, 2)  # a gradient in another layout than x
    x = base.clone().requires_grad_()
    upfirdn2d(x, KERNEL, padding=2, act=True, backend=backend).backward(grad)
    y = base.clone().requires_grad_()
    upfirdn2d(y, KERNEL, padding=2, act=True, backend="reference").backward(grad)
    torch.testing.assert_close(x.grad, y.grad)


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [KERNEL, torch.ones(3, 5)], ids=["four taps", "matrix"])
@pytest.mark.parametrize("factors", [dict(), dict(down=2), dict(up=2), dict(up=3, down=2)], ids=str)
def test_pads_far_beyond_the_image_cost_nothing(
    factors: dict[str, int], kernel: Tensor, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, size = 10**9, 12
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.ones(1, 2, size, size).contiguous(memory_format=form).requires_grad_()
    up = factors.get("up", 1)
    for before in (-far, far):
        behind = 20 - before - size * up
        out = upfirdn2d(x, kernel, padding=(before, behind), backend="native", **factors)
        assert not out.any(), "only padding is in reach"
        assert not torch.autograd.grad(out.sum(), x)[0].any()


@needs_native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_short_way_computes_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = importlib.import_module("anifast.ops.upfirdn2d")._NATIVE
    taken = check_short_way(upfirdn2d_cases, case, ops, monkeypatch)
    masked = case.act or case.clamp is not None
    assert taken == [not masked or mask_fits(case.out_shape[3], case.channels_last)]


@needs_native
def test_what_needs_a_cast_or_an_explanation_takes_the_long_way() -> None:
    short = importlib.import_module("anifast.ops.upfirdn2d")._NATIVE.short
    x = torch.randn(2, 3, 8, 9)
    plain: dict[str, Any] = dict(
        x=x, kernel=KERNEL, up=1, down=1, padding=1, flip=False, gain=1.0, add=None, scale=None, bias=None, noise=None,
        strength=None, act=False, slope=0.2, act_gain=1.0, clamp=None,
    )  # fmt: skip
    assert short(*plain.values()) is not None
    for bad in (
        dict(x=x[0]),
        dict(x=x.int()),
        dict(x=x[..., ::2]),
        dict(x=x[..., :0]),
        dict(kernel=KERNEL.double()),
        dict(kernel=KERNEL[:0]),
        dict(kernel=x),
        dict(kernel=KERNEL.clone().requires_grad_()),
        dict(kernel=KERNEL.to("meta")),
        dict(up=0),
        dict(up=2000),
        dict(down=[1, 2, 3]),
        dict(padding=(1, 2, 3)),
        dict(padding=-4),
        dict(padding=1 << 40),
        dict(scale=torch.ones(3)),
        dict(scale=torch.ones(2, 3).half()),
        dict(bias=torch.ones(2)),
        dict(noise=x[:, :1]),
        dict(noise=x[:, :1, :7, :8].double()),
        dict(strength=torch.ones(1)),
        dict(add=x),
        dict(clamp=-1.0),
        dict(clamp=math.nan),
    ):
        assert short(*(plain | bad).values()) is None, bad
    with pytest.raises(TypeError):
        short(*(plain | dict(up=1.5)).values())


@needs_native
def test_memory_that_is_not_aligned() -> None:
    base = torch.randn(2 * 3 * 33 * 34 + 3)
    for offset in (1, 3):
        x = base[offset : offset + 2 * 3 * 33 * 34].view(2, 3, 33, 34)
        for given in (dict(padding=2), dict(down=2, padding=1), dict(up=2, padding=(2, 1))):
            got = upfirdn2d(x, KERNEL, backend="native", **given)
            torch.testing.assert_close(got, upfirdn2d(x.clone(), KERNEL, backend="reference", **given))


# torch.compile, autocast, transforms, modes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend: str, dynamic: bool) -> None:
    torch.compiler.reset()

    def model(x: Tensor, scale: Tensor, bias: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        y = upfirdn2d(
            x.sin(), KERNEL, padding=1, gain=2.0, scale=scale, bias=bias, noise=noise, noise_strength=strength,
            act=True, clamp=1.0, backend=backend,
        )  # fmt: skip
        up = upfirdn2d(y, KERNEL, up=2, padding=(2, 1), backend=backend)
        return upfirdn2d(up, KERNEL, down=2, padding=1, add=y.cos(), backend=backend)

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (9, 17):
        shapes = ((2, 3, side, side), (2, 3), (3,), (1, 1, side - 1, side - 1), (1,))
        given = [torch.randn(s).requires_grad_() for s in shapes]
        got, expected = compiled(*given), model(*given)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad(got.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_and_float32_parameters(backend: str) -> None:
    conv = torch.nn.ConvTranspose2d(3, 8, 3, stride=2, bias=False)
    bias, scale = torch.randn(8, requires_grad=True), torch.rand(2, 8, requires_grad=True)
    x = torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = conv(x)
        y = upfirdn2d(
            hidden, KERNEL, padding=1, scale=scale, bias=bias, act=True, add=torch.randn(2, 8, 8, 8), backend=backend
        )
    assert hidden.dtype == y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32
    assert scale.grad is not None and scale.grad.dtype == torch.float32
    assert conv.weight.grad is not None


@pytest.mark.parametrize("backend", [None, pytest.param("native", marks=needs_native)])
def test_transforms_of_torch_func_take_the_reference_or_say_so(backend: str | None) -> None:
    x, bias = torch.randn(4, 3, 5, 6), torch.randn(3)

    def loss(x: Tensor) -> Tensor:
        return upfirdn2d(x, KERNEL, padding=2, bias=bias, act=True, backend=backend).square().sum()

    if backend is not None:
        with pytest.raises(NotImplementedError, match=r'not go through torch.func.*backend="reference" does'):
            torch.func.grad(loss)(x)
        return
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    each = torch.func.vmap(lambda x: upfirdn2d(x[None], KERNEL, up=2, padding=(2, 1))[0])
    torch.testing.assert_close(each(x), upfirdn2d(x, KERNEL, up=2, padding=(2, 1)))


def test_forward_mode_is_right_or_refused() -> None:
    x, tangent = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    _, got = torch.func.jvp(lambda x: upfirdn2d(x, KERNEL, padding=2, backend="reference"), (x,), (tangent,))
    torch.testing.assert_close(got, upfirdn2d(tangent, KERNEL, padding=2, backend="reference"))
    if _native.unavailable("cpu") is None:
        with pytest.raises(NotImplementedError, match="does not go through torch.func"):
            torch.func.jvp(lambda x: upfirdn2d(x, KERNEL, backend="native"), (x,), (tangent,))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
            upfirdn2d(torch.autograd.forward_ad.make_dual(x, tangent), KERNEL, backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", LEAVES)
@pytest.mark.parametrize("name", ["epilogue_full", "epilogue_linear", "epilogue_odd"])
def test_each_input_alone_can_need_a_gradient(name: str, wanted: str, backend: str) -> None:
    case = replace(CASE[name], scale=True, bias=True, noise="each", add=True)
    tensors = {key: value.detach() for key, value in make(case, torch.float64).items()}
    leaves(tensors)[wanted].requires_grad_()
    (got,) = torch.autograd.grad(call(case, tensors, backend).square().sum(), tensors[wanted])
    (expected,) = torch.autograd.grad(call(case, tensors, "reference").square().sum(), tensors[wanted])
    torch.testing.assert_close(got, expected)


# Golden numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_ops_upfirdn2d(golden: Callable[[str], Any], backend: str) -> None:
    case = golden("ops_upfirdn2d_a")
    found = golden_results(case, backend)
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors = case.compare({name: value.detach().numpy() for name, value in found.items()})
    assert max(errors.values()) < 3e-7, errors


# Bad input

X = torch.zeros(2, 3, 4, 5)
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("no tensor", lambda: upfirdn2d([1.0], KERNEL), TypeError, "x must be a torch.Tensor, got list"),  # type: ignore[arg-type]
    ("integers", lambda: upfirdn2d(X.int(), KERNEL), TypeError, "x must be float32.*got torch.int32"),
    ("rank", lambda: upfirdn2d(X[0], KERNEL), ValueError, r"x must have rank 4 \(N,C,H,W\), got shape \(3, 4, 5\)"),
    ("no pixels", lambda: upfirdn2d(X[..., :0], KERNEL, padding=4), ValueError, r"x has no pixels.*\(2, 3, 4, 0\)"),
    ("sparse", lambda: upfirdn2d(X.to_sparse(), KERNEL), TypeError, "x must be a dense tensor"),
    ("kernel type", lambda: upfirdn2d(X, [1.0]), TypeError, "kernel must be a torch.Tensor, got list"),  # type: ignore[arg-type]
    ("kernel integers", lambda: upfirdn2d(X, KERNEL.int()), TypeError, "kernel must be float32"),
    ("kernel rank", lambda: upfirdn2d(X, X), ValueError, r"kernel must be \[k\] or \[k_y, k_x\].*\(2, 3, 4, 5\)"),
    ("kernel empty", lambda: upfirdn2d(X, KERNEL[:0]), ValueError, r"with k >= 1, got shape \(0,\)"),
    ("kernel device", lambda: upfirdn2d(X, KERNEL.to("meta")), ValueError, "kernel is on meta, expected cpu as x"),
    (
        "kernel gradient",
        lambda: upfirdn2d(X, KERNEL.clone().requires_grad_()),
        ValueError,
        "kernel requires a gradient, and FIR kernels are constants",
    ),
    ("up zero", lambda: upfirdn2d(X, KERNEL, up=0), ValueError, "up must be 1 or more.*got 0"),
    ("down negative", lambda: upfirdn2d(X, KERNEL, down=(1, -2)), ValueError, r"down must be 1 or more.*got \(1, -2\)"),
    ("up huge", lambda: upfirdn2d(X, KERNEL, up=1 << 31), ValueError, "up must be 1 or more and at most 1024"),
    ("pads huge", lambda: upfirdn2d(X, KERNEL, padding=1 << 40), ValueError, r"padding must lie within 2\^31 - 1"),
    ("gain text", lambda: upfirdn2d(X, KERNEL, gain="2"), TypeError, "gain must be a number, got str"),  # type: ignore[arg-type]
    ("gain none", lambda: upfirdn2d(X, KERNEL, gain=None), TypeError, "gain must be a number, got NoneType"),  # type: ignore[arg-type]
    ("slope", lambda: upfirdn2d(X, KERNEL, act=True, slope=X), TypeError, "slope must be a number, got Tensor"),  # type: ignore[arg-type]
    ("act_gain", lambda: upfirdn2d(X, KERNEL, act=True, act_gain=[1]), TypeError, "act_gain must be a number"),  # type: ignore[arg-type]
    ("clamp text", lambda: upfirdn2d(X, KERNEL, clamp="1"), TypeError, "clamp must be a number, got str"),  # type: ignore[arg-type]
    (
        "strength text",
        lambda: upfirdn2d(X, KERNEL, noise=X[:, :1, :1, :2], noise_strength="1"),  # type: ignore[arg-type]
        TypeError,
        "noise_strength must be a number, got str",
    ),
    ("up array", lambda: upfirdn2d(X, KERNEL, up=np.array([2, 2])), TypeError, "up must be an int or two ints"),  # type: ignore[arg-type]
    ("pads range", lambda: upfirdn2d(X, KERNEL, padding=range(4)), TypeError, "padding must be an int"),
    ("up float", lambda: upfirdn2d(X, KERNEL, up=2.0), TypeError, "up must be an int or two ints"),  # type: ignore[arg-type]
    ("up three", lambda: upfirdn2d(X, KERNEL, up=(1, 2, 3)), TypeError, "up must be an int or two ints"),
    ("pads three", lambda: upfirdn2d(X, KERNEL, padding=(1, 2, 3)), TypeError, "padding must be an int"),
    ("pads float", lambda: upfirdn2d(X, KERNEL, padding=1.5), TypeError, "padding must be an int"),  # type: ignore[arg-type]
    ("kernel larger", lambda: upfirdn2d(X, torch.ones(5, 5)), ValueError, "has 4 x 5 pixels and the kernel 5 x 5"),
    ("all cropped", lambda: upfirdn2d(X, KERNEL, padding=-2), ValueError, "no output is left.*has 0 x 1 pixels"),
    ("over-cropped", lambda: upfirdn2d(X, KERNEL, padding=-9), ValueError, "no output is left.*has -14 x -13 pixels"),
    ("scale shape", lambda: upfirdn2d(X, KERNEL, scale=torch.ones(3)), ValueError, r"scale has shape \(3,\), expected"),
    ("scale type", lambda: upfirdn2d(X, KERNEL, scale=torch.ones(2, 3).half()), TypeError, "scale has dtype"),
    ("bias shape", lambda: upfirdn2d(X, KERNEL, bias=torch.ones(2)), ValueError, r"bias.*\(2,\), expected \(3,\)"),
    ("bias device", lambda: upfirdn2d(X, KERNEL, bias=torch.ones(3, device="meta")), ValueError, "bias is on meta"),
    ("noise", lambda: upfirdn2d(X, KERNEL, noise=X[:, :1]), ValueError, r"noise.*expected \(2, 1, 1, 2\), or 1"),
    ("strength alone", lambda: upfirdn2d(X, KERNEL, noise_strength=1.0), ValueError, "given without noise"),
    (
        "strength size",
        lambda: upfirdn2d(X, KERNEL, noise=X[:, :1, :1, :2], noise_strength=torch.zeros(2)),
        ValueError,
        "expected one element",
    ),
    ("clamp", lambda: upfirdn2d(X, KERNEL, clamp=-1.0), ValueError, "clamp must not be negative, got -1.0"),
    ("clamp nan", lambda: upfirdn2d(X, KERNEL, clamp=math.nan), ValueError, "clamp must not be negative, got nan"),
    ("add shape", lambda: upfirdn2d(X, KERNEL, add=X), ValueError, r"add has shape \(2, 3, 4, 5\), expected"),
    (
        "add type",
        lambda: upfirdn2d(X, KERNEL, add=X[..., :1, :2].double()),
        TypeError,
        "add has dtype torch.float64, expected torch.float32",
    ),
    ("backend", lambda: upfirdn2d(X, KERNEL, backend="cudnn"), BackendError, "unknown backend 'cudnn'"),
]


@pytest.mark.parametrize(("run", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_arguments_are_named(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


def test_a_kernel_that_learns_is_taken_where_nothing_is_recorded() -> None:
    with torch.no_grad():
        upfirdn2d(X, torch.nn.Parameter(KERNEL))


@needs_native
def test_the_dispatcher_op_checks_its_own_arguments() -> None:
    x = torch.randn(2, 3, 4, 5)

    def run(kernel: Tensor = KERNEL, up: Any = (1, 1), down: Any = (1, 1), padding: Any = (0, 0, 0, 0), *,
            scale: Any = None, bias: Any = None, noise: Any = None, add: Any = None, clamp: Any = None,
            save_mask: bool = False, given: Tensor = x) -> None:  # fmt: skip
        torch.ops.anifast.upfirdn2d(
            given, kernel, up, down, padding, False, 1.0, scale, bias, noise, None, add, 1.0, 1.0, clamp, save_mask
        )

    for wrong, message in (
        (dict(given=x[0]), "x must have rank 4"),
        (dict(kernel=x), "kernel must be a vector or matrix"),
        (dict(kernel=KERNEL[:0]), "the kernel's size must be 1 or more"),
        (dict(up=[0, 1]), "must be 1 or more"),
        (dict(up=[1, 2000]), "up and down must be at most 1024"),
        (dict(padding=[1 << 40, 0, 0, 0]), "padding must lie within 2"),
        (dict(up=[1]), "up and down need 2 numbers and padding 4"),
        (dict(padding=[0, 0]), "padding 4"),
        (dict(padding=[-2, 0, 0, 0]), "no output is left of 5 samples"),
        (dict(scale=torch.ones(3)), "scale has 3 elements, expected 6"),
        (dict(bias=torch.ones(2)), "bias has 2 elements, expected 3"),
        (dict(noise=torch.ones(3)), "noise has 3 elements"),
        (dict(noise=torch.ones(4).half()), "noise has dtype Half"),
        (dict(add=x), "add has 120 elements, expected 12"),
        (dict(save_mask=True), "lines of whole bytes, got 2 columns"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="save_mask must be true"):
        run(given=x.clone().requires_grad_(), clamp=1.0)


def test_the_op_is_where_it_says() -> None:
    module = importlib.import_module("anifast.ops.upfirdn2d")
    assert module._NATIVE.name == "anifast::upfirdn2d"
    assert str(torch.ops.anifast.upfirdn2d.default._schema).startswith("anifast::upfirdn2d(Tensor x, Tensor kernel")


@needs_native
def test_backward_computes_what_is_asked_for() -> None:
    check_asked_for(upfirdn2d_cases, "epilogue_full")

"""The Triton kernels of modulated_conv2d in Triton's interpreter; test_modulated_conv2d_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import modulated_conv2d_passes_cases as passes
import pytest
import torch
import torch.nn.functional as F
from modulated_conv2d_cases import CASE, CASES, Case, call, check, make, suits
from op_checks import CalledOps
from torch import Tensor

import anifast
from anifast.ops import modulated_conv2d

pytestmark = pytest.mark.usefixtures("launched")

# a filter takes long here: its arguments and its epilogue are left to the tests of upfirdn2d, more products to SHAPES
LEFT = {"up", "up_wide", "odd_fir", "long_fir", "lopsided_fir", "up_clamped", "up_not_demodulated", "negative_gain"}
HALF = ["plain", "nhwc_plain", "rgb", "up_bare", "clamped", "float32_parameters"]
TYPES = [
    *[(case, torch.float32) for case in CASES if suits(case, "implicit_gemm") and case.name not in LEFT],
    *[(CASE[name], dtype) for name in HALF for dtype in (torch.float16, torch.bfloat16)],
]
PASSES = [
    *[(case, torch.float32) for case in passes.CASES],
    *[(case, dtype) for case in passes.CASES[::4] for dtype in (torch.float16, torch.bfloat16)],
]
# (batch, inputs, outputs, rows, columns, size, up): tiles within and across samples, one channel and more than a tile
SHAPES = [
    (2, 5, 7, 9, 7, 3, 1),
    (3, 3, 2, 2, 3, 3, 1),
    (1, 1, 1, 1, 1, 3, 1),
    (2, 34, 20, 5, 6, 3, 1),
    (2, 20, 70, 4, 4, 3, 1),
    (2, 17, 3, 9, 8, 1, 1),
    (2, 3, 18, 4, 5, 1, 1),
    (2, 5, 7, 9, 7, 3, 2),
    (3, 4, 2, 1, 1, 3, 2),
    (2, 19, 33, 3, 2, 3, 2),
]
FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.modulated_conv2d")


class Recorder:
    """Stands where the kernel stands and keeps the named arguments of its launches."""

    def __init__(self, kernel: Any = None) -> None:
        self.kernel = kernel
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.launches.append({"grid": grid, **constants})
            if self.kernel is not None:
                self.kernel[grid](*arguments, **constants)

        return launch


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(launched: list[str], case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "implicit_gemm")
    assert ("modulated_conv2d_kernel" in launched) == (0 not in case.shape)


@pytest.mark.parametrize("name", ["five", "down", "no_padding"])
def test_forms_without_a_kernel_are_left_to_the_library(launched: list[str], name: str) -> None:
    case = CASE[name]
    tensors = make(case, torch.float32)
    torch.testing.assert_close(call(case, tensors, backend="triton"), call(case, tensors, backend="reference"))
    assert not launched
    with pytest.raises(ValueError, match="'implicit_gemm' does no"):
        call(case, tensors, "implicit_gemm")


@pytest.mark.parametrize(("case", "dtype"), PASSES, ids=lambda value: str(value).removeprefix("torch."))
def test_the_passes_agree_with_plain_pytorch(launched: list[str], case: passes.Case, dtype: torch.dtype) -> None:
    passes.check(case, dtype, "triton")
    both = ["modulated_conv2d_epilogue_grad_kernel", "modulated_conv2d_style_grad_kernel"]
    assert launched == ([] if 0 in case.shape else both)


@pytest.mark.parametrize("name", ["long_planes", "nhwc_many_pixels"])
def test_the_passes_in_several_walks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = passes.CASE[name]
    form = FORMS["channels_last" if case.channels_last else "contiguous"]
    monkeypatch.setattr(kernels, "_TILE", 64)

    def is_uneven(programs: int) -> bool:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        steps, each, splits = kernels._walk(torch.empty(case.shape), form, None).sizes[3:6]
        return splits > 2 and each > 1 and each * splits > steps

    assert any(is_uneven(programs) for programs in range(6, 30)), "the last walk shall end before the others"
    passes.check(case, torch.float32, "triton")


def whole(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Small whole numbers: their products and sums are exact in float32, whatever the order."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("products", ["ieee", "tf32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_convolution(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], products: str, form: str
) -> None:
    monkeypatch.setattr(kernels, "_products", lambda x: products)  # another tile; the interpreter multiplies exactly
    batch, inputs, outputs, rows, columns, size, up = shape
    x = whole((batch, inputs, rows, columns), torch.float32, 0)
    weight = whole((outputs, inputs, size, size), torch.float32, 1)
    style = whole((batch, inputs), torch.float32, 2)
    scaled = (x * style[:, :, None, None]).requires_grad_()
    if up == 2:
        expected = F.conv_transpose2d(scaled, weight.transpose(0, 1), stride=2)
    else:
        expected = F.conv2d(scaled, weight, padding=size // 2)
    grad = whole(tuple(expected.shape), torch.float32, 3)
    (gxs,) = torch.autograd.grad(expected, scaled, grad)
    memory = FORMS[form]
    given, grad = x.contiguous(memory_format=memory), grad.contiguous(memory_format=memory)
    rest = (up, size // 2, 1.0, 1.0, None, memory)
    out = kernels.forward(given, weight, style, None, None, None, None, None, *rest)
    assert torch.equal(out, expected) and out.is_contiguous(memory_format=memory)
    linear = kernels.forward(scaled.detach(), weight, None, None, None, None, None, None, *rest)
    assert torch.equal(linear, expected)
    how = (rows, columns, up, size // 2, memory)
    gx, gstyle = kernels.input_grad(grad, weight, given, style, *how)
    assert torch.equal(gx, gxs * style[:, :, None, None]) and gx.is_contiguous(memory_format=memory)
    assert torch.equal(gstyle, (gxs * x).sum((2, 3)))
    gx, nothing = kernels.input_grad(grad, weight, None, None, *how)
    assert torch.equal(gx, gxs) and nothing.numel() == 0
    gx, nothing = kernels.input_grad(grad, weight, None, style, *how)
    assert torch.equal(gx, gxs * style[:, :, None, None]) and nothing.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[3:8], ids=str)
def test_products_of_half_types(kernels: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, inputs, outputs, rows, columns, size, up = shape
    x, weight = whole((batch, inputs, rows, columns), dtype, 0), whole((outputs, inputs, size, size), dtype, 1)
    style = torch.full((batch, inputs), 1.0 + 2**-12)  # lost in the product with the type's own one
    out = kernels.forward(
        x, weight, style, None, None, None, None, None, up, size // 2, 1.0, 1.0, None, torch.contiguous_format
    )
    wide = (x.float() * style[:, :, None, None]).to(dtype).float()
    if up == 2:
        expected = F.conv_transpose2d(wide, weight.float().transpose(0, 1), stride=2)
    else:
        expected = F.conv2d(wide, weight.float(), padding=size // 2)
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[9]], ids=str)
def test_offsets_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    import triton.language as tl

    recorder = Recorder(kernels.modulated_conv2d_kernel)
    monkeypatch.setattr(kernels, "modulated_conv2d_kernel", recorder)
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    for form in FORMS:
        test_products_are_those_of_the_convolution(kernels, monkeypatch, shape, "ieee", form)
    assert recorder.launches and all(launch["IDX"] == tl.int64 for launch in recorder.launches)


@pytest.mark.parametrize("name", ["odd_clamped", "nhwc_clamped"])
def test_offsets_of_64_bits_in_the_passes(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import triton.language as tl

    names = ["modulated_conv2d_epilogue_grad_kernel", "modulated_conv2d_style_grad_kernel"]
    recorders = [Recorder(getattr(kernels, kernel)) for kernel in names]
    for kernel, recorder in zip(names, recorders, strict=True):
        monkeypatch.setattr(kernels, kernel, recorder)
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    passes.check(passes.CASE[name], torch.float32, "triton")
    assert all(len(each.launches) == 1 and each.launches[0]["IDX"] == tl.int64 for each in recorders)


@pytest.mark.parametrize(
    ("shape", "outputs", "up", "wide"),
    [
        ((1, 64, 1024, 1024), 64, 1, False),
        ((2, 1024, 1024, 1024), 3, 1, True),  # x
        ((2, 3, 1024, 1024), 1024, 1, True),  # the output
        ((2, 3, 1024, 1024), 256, 2, True),  # that of the transposed form alone
    ],
    ids=str,
)
def test_offsets_are_as_wide_as_the_largest(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], outputs: int, up: int, wide: bool
) -> None:
    import triton.language as tl

    recorder = Recorder()
    monkeypatch.setattr(kernels, "modulated_conv2d_kernel", recorder)
    x = torch.empty(shape, dtype=torch.float16, device="meta")
    weight = torch.empty(outputs, shape[1], 3, 3, dtype=torch.float16, device="meta")
    kernels.forward(x, weight, *[None] * 6, up, 1, 1.0, 1.0, None, torch.contiguous_format)
    (launch,) = recorder.launches
    assert launch["IDX"] == (tl.int64 if wide else tl.int32)
    assert launch["grid"][0] < 2**31


def test_tiles_fit_the_layer(kernels: ModuleType) -> None:
    def kind(dtype: torch.dtype, batch: int, channels: int, outputs: int, side: int, summed: bool = False) -> Any:
        x = torch.empty(batch, channels, side, side, dtype=dtype, device="meta")
        return kernels._tile(x, outputs, side * side, summed)

    half = torch.bfloat16
    assert kind(half, 16, 512, 512, 64) == kernels.TILES["half", "wide"]
    assert kind(half, 16, 512, 512, 64, summed=True) == kernels.TILES["half", "middle"]
    assert kind(half, 16, 256, 128, 128) == kernels.TILES["half", "middle"]
    assert kind(half, 32, 512, 512, 512) == kernels.TILES["half", "middle"], "addresses of 64 bits"
    assert kind(half, 16, 64, 32, 256) == kernels.TILES["half", "narrow"]._replace(channels=32)
    assert kind(half, 16, 512, 3, 64) == kernels.TILES["half", "image"]
    assert kind(half, 16, 512, 512, 4) == kernels.TILES["half", "small"]
    assert kind(torch.float64, 1, 5, 512, 4) == kernels.TILES["float64", "any"]
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for products in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = products
            expected = kernels.TILES[products, "wide" if products == "tf32" else "any"]
            assert kind(torch.float32, 16, 512, 512, 64) == expected
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def draw(
    shape: tuple[int, ...], outputs: int, size: int, up: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The operands of a call with the whole epilogue; all but the noise need gradients."""
    generator = torch.Generator().manual_seed(7)

    def one(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    batch, inputs, rows, columns = shape
    return {
        "x": one(*shape), "weight": one(outputs, inputs, size, size), "style": one(batch, inputs),
        "bias": one(outputs), "noise_strength": one(1), "noise": one(batch, 1, rows * up, columns * up).detach(),
    }  # fmt: skip


def leaves(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [value for value in tensors.values() if value.requires_grad]


def test_what_is_launched(launched: list[str]) -> None:
    product, activation = "modulated_conv2d_kernel", "modulated_conv2d_epilogue_grad_kernel"

    def both(*form: Any, **options: Any) -> tuple[list[str], list[str]]:
        tensors = draw(*form)
        launched.clear()
        out = modulated_conv2d(**tensors, up=form[-1], **options, backend="triton")
        first = list(launched)
        launched.clear()
        torch.autograd.grad(out.sum(), leaves(tensors))
        return first, list(launched)

    assert both((2, 3, 12, 11), 5, 3, 1) == ([product], [activation, product])
    assert both((2, 3, 12, 11), 5, 3, 1, clamp=1.0) == ([product], [activation, product])
    # tiles across samples leave the sums over x to a pass
    small = [activation, product, "modulated_conv2d_style_grad_kernel"]
    assert both((2, 3, 4, 4), 5, 3, 1) == ([product], small)
    # the filter, with the epilogue, and its adjoint, once for both gradients
    up = [activation, "upfirdn2d_kernel", product]
    assert both((2, 3, 12, 11), 5, 3, 2) == ([product, "upfirdn2d_kernel"], up)


def test_no_op_of_another_backend_takes_part() -> None:
    tensors = draw((2, 3, 4, 5), 4, 3, 2)
    with CalledOps() as called:
        out = modulated_conv2d(**tensors, up=2, backend="triton")
        torch.autograd.grad(out.sum(), leaves(tensors))
    ours = {"modulated_conv2d" + name for name in ("", "_input_grad", "_weight_grad", "_epilogue_grad")}
    # demodulation is small and the same for every backend
    small = {"modulated_conv2d_demodulation", "modulated_conv2d_square_sums"}
    assert called.names == {name + "_triton" for name in ours} | {"upfirdn2d_triton"} | small


def test_gradcheck_and_gradgradcheck(launched: list[str]) -> None:
    tensors = {name: value for name, value in draw((2, 2, 3, 4), 3, 3, 1, torch.float64).items() if "noise" not in name}

    def function(*values: Tensor) -> Tensor:
        return modulated_conv2d(**dict(zip(tensors, values, strict=True)), backend="triton")

    torch.autograd.gradcheck(function, tuple(tensors.values()), fast_mode=True)
    torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)
    assert "modulated_conv2d_kernel" in launched


def test_results_are_the_same_bits_each_time() -> None:
    tensors = draw((2, 20, 17, 19), 24, 3, 1)
    found = []
    for _ in range(2):
        out = modulated_conv2d(**tensors, backend="triton")
        found.append([out, *torch.autograd.grad(out.sum(), leaves(tensors))])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("up", [1, 2])
def test_nan_and_inf_pass_as_in_the_reference(up: int) -> None:
    tensors = {name: value.detach() for name, value in draw((2, 3, 9, 8), 4, 3, up).items()}
    tensors["weight"] = tensors["weight"].abs() + 0.125  # sums of infinities of one sign, in any order
    tensors["style"] = tensors["style"].abs() + 0.125
    tensors["x"][0, 1, 0, 0] = float("inf")
    tensors["x"][0, 1, 6, 7] = float("nan")
    tensors["x"][1, 0, 8, 4] = -float("inf")
    got, expected = (modulated_conv2d(**tensors, up=up, backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert not got.isfinite().all() and got.isfinite().any()


def test_operands_that_are_not_dense() -> None:
    tensors = {name: value.detach() for name, value in draw((2, 4, 6, 6), 4, 3, 1).items()}
    copies = {name: value.mT.clone() if value.dim() == 4 else value.clone() for name, value in tensors.items()}
    views = {name: value.mT if value.dim() == 4 else value for name, value in tensors.items()}
    views["style"] = torch.stack([tensors["style"]] * 2, -1)[..., 0]
    assert not any(views[name].is_contiguous() for name in ("x", "weight", "style", "noise"))
    torch.testing.assert_close(
        modulated_conv2d(**views, backend="triton"), modulated_conv2d(**copies, backend="reference")
    )


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    tensors = draw((2, 3, 5, 6), 4, 3, 1)

    def function(x: Tensor) -> Tensor:
        return modulated_conv2d(**tensors | {"x": x}) + 1.0

    with anifast.use_backend("triton"):
        out = torch.compile(function, fullgraph=True, backend="aot_eager")(tensors["x"])
        gx = torch.autograd.grad(out.sum(), tensors["x"])[0]
    expected = modulated_conv2d(**tensors, backend="reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected.sum(), tensors["x"])[0], atol=1e-5, rtol=1e-5)
    assert launched.count("modulated_conv2d_kernel") == 2


@pytest.mark.parametrize(("up", "form"), [(1, "contiguous"), (1, "channels_last"), (2, "channels_last")])
def test_opcheck(up: int, form: str) -> None:
    ops = importlib.import_module("anifast.ops.modulated_conv2d")
    tensors = draw((2, 3, 4, 5) if up == 1 else (2, 3, 2, 2), 4, 3, up)
    rows, columns = tensors["x"].shape[2:]
    x, weight, style = tensors["x"].detach().contiguous(memory_format=FORMS[form]), tensors["weight"], tensors["style"]
    how = (torch.ones(4) / 4 if up > 1 else None, up, 1, 1, "implicit_gemm")
    operands = (torch.rand(2, 4).requires_grad_(), tensors["bias"], tensors["noise"], tensors["noise_strength"])
    operands += (None, None)  # add, weight_scale
    x.requires_grad_()
    # a filter takes long here, so its gradients are left to the cases
    only = {} if up == 1 else {"test_utils": ("test_schema", "test_faketensor")}
    forward, input_grad, weight_grad = ops._TRITON.forward, ops._TRITON.input_grad, ops._TRITON.weight_grad
    torch.library.opcheck(forward, (x, weight, style, *operands, *how, 0.2, 1.5, 2.0), **only)
    with torch.no_grad():
        out = forward(x, weight, style, *operands, *how, 0.2, 1.5, 2.0)
    grad = torch.randn_like(out).requires_grad_()
    torch.library.opcheck(input_grad, (grad, weight, None, None, rows, columns, *how), **only)
    torch.library.opcheck(weight_grad, (x, None, grad, 3, *how), **only)
    x, weight, style, grad = (value.detach() for value in (x, weight, style, grad))
    torch.library.opcheck(input_grad, (grad, weight, x, style, rows, columns, *how), **only)
    if up == 1:
        scale, bias, noise, strength = (value.detach() for value in operands[:4])
        arguments = (grad, out, scale, bias, noise, strength, 0.2, 1.5, 2.0, True, True, True)
        torch.library.opcheck(torch.ops.anifast.modulated_conv2d_epilogue_grad_triton.default, arguments)
        arguments = (x, x, style)
        torch.library.opcheck(torch.ops.anifast.modulated_conv2d_style_grad_triton.default, arguments)

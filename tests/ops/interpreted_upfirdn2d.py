"""The Triton kernel of upfirdn2d in Triton's interpreter; test_upfirdn2d_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from upfirdn2d_cases import CASE, CASES, Case, call, check, golden_results, layout, leaves, make, results

import anifast
from anifast.ops import upfirdn2d

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::5] for dtype in (torch.float16, torch.bfloat16)],
]
# What a case may launch: the activation is a pass of its own where the mask has no whole bytes for a line.
KERNELS = {"upfirdn2d_kernel", "bias_lrelu_kernel", "bias_lrelu_backward_kernel", "bias_lrelu_sums_kernel"}
# Every way through the kernel: taps across a line, along a matrix, with zeros between samples, in both layouts.
FORMS = ["epilogue_odd", "down_odd", "up_odd", "up3_down2", "mixed", "nhwc_generic", "nhwc_epilogue_up"]


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.upfirdn2d")


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
    check(case, dtype, "triton")
    if 0 in case.shape:
        assert not launched
    else:
        assert "upfirdn2d_kernel" in launched and set(launched) <= KERNELS


@pytest.mark.parametrize("name", ["epilogue_full", "nhwc_epilogue_full"])
def test_the_whole_epilogue_is_one_launch(launched: list[str], name: str) -> None:
    case = CASE[name]
    tensors = make(case if case.channels_last else replace(case, shape=(2, 3, 17, 25)), torch.float32)
    call(case, tensors, "triton")  # with gradients, so with a mask: 24 columns are 3 bytes
    assert launched == ["upfirdn2d_kernel"]
    launched.clear()
    with torch.no_grad():
        call(case, make(replace(case, shape=(2, 3, 8, 6)), torch.float32), "triton")
    assert launched == ["upfirdn2d_kernel"]


@pytest.mark.parametrize("name", FORMS)
def test_loops_do_what_unrolled_taps_do(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    recorder = Recorder(kernels.upfirdn2d_kernel)
    monkeypatch.setattr(kernels, "upfirdn2d_kernel", recorder)
    monkeypatch.setattr(kernels, "_TAPS", 0)
    check(CASE[name], torch.float32, "triton")
    assert recorder.launches and not any(launch["UNROLLED"] for launch in recorder.launches)


@pytest.mark.parametrize(
    "name", ["epilogue_odd", "up3_down2", "nhwc_generic", "nhwc_epilogue_up", "kernel_larger_than_x"]
)
def test_offsets_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import triton.language as tl

    recorder = Recorder(kernels.upfirdn2d_kernel)
    monkeypatch.setattr(kernels, "upfirdn2d_kernel", recorder)
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    check(CASE[name], torch.float32, "triton")
    assert recorder.launches and all(launch["IDX"] == tl.int64 for launch in recorder.launches)


@pytest.mark.parametrize(
    ("shape", "up", "down", "wide"),
    [
        ((1, 2, 1024, 1024), 1, 1, False),
        ((2, 1024, 1024, 1024), 1, 1, True),  # both
        ((2, 256, 1024, 1024), 2, 1, True),  # the output
        ((2, 1024, 1024, 1024), 1, 4, True),  # x
        ((1, 1, 1, 2**29), 4, 4, True),  # the zeros between the samples
    ],
    ids=str,
)
def test_offsets_are_as_wide_as_the_largest(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], up: int, down: int, wide: bool
) -> None:
    import triton.language as tl

    recorder = Recorder()
    monkeypatch.setattr(kernels, "upfirdn2d_kernel", recorder)
    x = torch.empty(shape, dtype=torch.float16, device="meta")
    line = torch.empty(1, device="meta")
    nothing = (None,) * 5
    kernels.forward(
        x, line, (up, up), (down, down), (0,) * 4, False, 1.0, *nothing, 1.0, 1.0, None, False, torch.contiguous_format
    )
    (launch,) = recorder.launches
    assert launch["IDX"] == (tl.int64 if wide else tl.int32)
    assert launch["grid"][0] < 2**31


@pytest.mark.parametrize("columns", [8, 24, 136])
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "pixels"])
def test_the_mask_is_that_of_bias_lrelu(kernels: ModuleType, channels_last: bool, columns: int) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(1, 5, 9, columns).contiguous(memory_format=form)
    bias = torch.randn(5)
    activation = importlib.import_module("anifast.kernels.bias_lrelu")
    expected, bits = activation.forward(x, bias, None, None, None, 1, form, 0.2, 2.0, 0.9, 1.0, True)
    one, nothing = torch.ones(1), (None,) * 3  # one tap of 1: what comes out of the filter is x
    out, mask = kernels.forward(
        x, one, (1, 1), (1, 1), (0,) * 4, False, 1.0, None, bias, *nothing, 0.2, 2.0, 0.9, True, form
    )
    assert torch.equal(out, expected)
    assert torch.equal(mask, bits)


def test_a_mask_needs_whole_bytes(kernels: ModuleType) -> None:
    x, line, nothing = torch.randn(1, 2, 4, 9), torch.ones(2), (None,) * 5
    with pytest.raises(ValueError, match="whole bytes, got 9 columns"):
        kernels.forward(
            x, line, (1, 1), (1, 1), (1, 0, 1, 0), False, 1.0, *nothing, 0.2, 1.0, None, True, torch.contiguous_format
        )


# without a clamp, which ends inf, and with taps that are not 0 and do not cancel, so that the order of sums is free
SPOILED = [
    CASE["down"],
    CASE["up_outer"],
    CASE["epilogue"],
    CASE["nhwc_blur1"],
    replace(CASE["kernel_larger_than_x"], channels_last=True),  # in loops
    replace(CASE["up4"], name="up4_flip", flip=True),
]


@pytest.mark.parametrize("case", SPOILED, ids=str)
def test_nan_and_inf_pass_as_in_the_reference(case: Case) -> None:
    tensors = make(case, torch.float32)
    with torch.no_grad():
        tensors["kernel"].abs_().add_(0.125)
        for key in ("x", "grad"):  # at borders, from where the padding is reached, and in the middle
            tensors[key][0, 1, 0, 0] = float("inf")
            tensors[key][0, 1, -1, -1] = float("nan")
            tensors[key][-1, 0, -1, tensors[key].shape[3] // 2] = -float("inf")
    got, expected = results(case, tensors, "triton"), results(case, tensors, "reference")
    for key in ("out", "d x"):
        torch.testing.assert_close(got[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")
    assert not got["out"].isfinite().all() and got["out"].isfinite().any()


SMALL = [
    replace(CASE["epilogue"], shape=(1, 2, 3, 4)),  # 3 columns: the activation is a pass of its own
    replace(CASE["nhwc_epilogue"], shape=(1, 2, 2, 2)),
    replace(CASE["up3_down2"], shape=(1, 1, 4, 4)),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_and_gradgradcheck(launched: list[str], case: Case) -> None:
    tensors = make(case, torch.float64)
    inputs = leaves(tensors)

    def function(*values: Tensor) -> Tensor:
        return call(case, tensors | dict(zip(inputs, values, strict=True)), "triton")

    torch.autograd.gradcheck(function, tuple(inputs.values()), fast_mode=True)
    torch.autograd.gradgradcheck(function, tuple(inputs.values()), fast_mode=True)
    assert "upfirdn2d_kernel" in launched


@pytest.mark.parametrize("name", ["epilogue_full", "nhwc_epilogue_full"])
def test_operands_that_are_not_dense(name: str) -> None:
    case = CASE[name]
    tensors = {key: value.detach() for key, value in make(case, torch.float32).items()}
    tensors |= {key: tensors[key][:, :1].expand_as(tensors[key]) for key in ("x", "add")}
    tensors["noise"] = tensors["noise"].mT.contiguous().mT
    tensors["kernel"] = torch.stack([tensors["kernel"]] * 2, -1)[..., 0]
    copies = {key: layout(value, case) if value.dim() == 4 else value.clone() for key, value in tensors.items()}
    assert not any(tensors[key].is_contiguous() for key in ("x", "add", "noise", "kernel"))
    torch.testing.assert_close(call(case, tensors, "triton"), call(case, copies, "reference"))


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    case = CASE["epilogue"]
    tensors = make(case, torch.float32)

    def function(x: Tensor) -> Tensor:
        return call(case, tensors | {"x": x}, None) + 1.0

    with anifast.use_backend("triton"):
        out = torch.compile(function, fullgraph=True, backend="aot_eager")(tensors["x"])
        gx = torch.autograd.grad(out.sum(), tensors["x"])[0]
    expected = call(case, tensors, "reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected.sum(), tensors["x"])[0])
    assert launched.count("upfirdn2d_kernel") == 2


@pytest.mark.parametrize("name", ["epilogue_full", "nhwc_epilogue_up"])
def test_opcheck(name: str) -> None:
    case = CASE[name] if name != "epilogue_full" else replace(CASE[name], shape=(2, 3, 4, 9))
    tensors = make(case, torch.float32)
    op = importlib.import_module("anifast.ops.upfirdn2d")._TRITON.forward
    operands = [tensors.get(key) for key in ("scale", "bias", "noise", "noise_strength", "add")]
    ending = (case.slope, case.act_gain, case.clamp, True) if case.act else (1.0, 1.0, None, False)
    torch.library.opcheck(
        op,
        (tensors["x"], tensors["kernel"], case.up, case.down, case.padding, case.flip, case.gain, *operands, *ending),
    )


def test_golden_ops_upfirdn2d(golden: Callable[[str], Any]) -> None:
    case = golden("ops_upfirdn2d_a")
    found = golden_results(case, "triton")
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors = case.compare({name: value.detach().numpy() for name, value in found.items()})
    assert max(errors.values()) < 3e-7, errors


def test_every_order_of_gradient_is_the_kernel_itself(launched: list[str]) -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    out = upfirdn2d(x, torch.ones(3), padding=1, backend="triton")
    (gx,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    gx.sum().backward()
    assert launched == ["upfirdn2d_kernel"] * 4

"""The package `torch_utils.ops`: arguments, defaults, conventions and gradients as its repositories expect them."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.compat.nvlabs import bias_act, conv2d_resample, fma, grid_sample_gradfix, upfirdn2d

REQUIRED = inspect.Parameter.empty
RESAMPLING = {"padding": 0, "flip_filter": False, "gain": 1, "impl": "cuda"}
XF: dict[str, Any] = {"x": REQUIRED, "f": REQUIRED}
SIGNATURES: list[tuple[Any, dict[str, Any]]] = [
    (
        bias_act.bias_act,
        {"x": REQUIRED, "b": None, "dim": 1, "act": "linear", "alpha": None, "gain": None, "clamp": None}
        | {"impl": "cuda"},
    ),
    (
        upfirdn2d.setup_filter,
        {"f": REQUIRED, "device": "cpu", "normalize": True, "flip_filter": False, "gain": 1, "separable": None},
    ),
    (upfirdn2d.upfirdn2d, XF | {"up": 1, "down": 1} | RESAMPLING),
    (upfirdn2d.filter2d, XF | RESAMPLING),
    (upfirdn2d.upsample2d, XF | {"up": 2} | RESAMPLING),
    (upfirdn2d.downsample2d, XF | {"down": 2} | RESAMPLING),
    (
        conv2d_resample.conv2d_resample,
        {"x": REQUIRED, "w": REQUIRED, "f": None, "up": 1, "down": 1, "padding": 0, "groups": 1}
        | {"flip_weight": True, "flip_filter": False},
    ),
    (grid_sample_gradfix.grid_sample, {"input": REQUIRED, "grid": REQUIRED}),
    (fma.fma, {"a": REQUIRED, "b": REQUIRED, "c": REQUIRED}),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_arguments_and_defaults(function: Any, expected: dict[str, Any]) -> None:
    found = [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]
    assert found == list(expected.items()), "the order counts where arguments have no names"


# bias_act


def test_table_of_activations() -> None:
    table = bias_act.activation_funcs
    root = math.sqrt(2)
    assert {name: (row.def_alpha, row.def_gain) for name, row in table.items()} == {
        "linear": (0, 1), "relu": (0, root), "lrelu": (0.2, root), "tanh": (0, 1), "sigmoid": (0, 1), "elu": (0, 1),
        "selu": (0, 1), "softplus": (0, 1), "swish": (0, root),
    }  # fmt: skip
    assert table["lrelu"]["def_alpha"] == table["lrelu"].def_alpha
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(table["lrelu"].func(x, alpha=0.1), F.leaky_relu(x, 0.1))
    torch.testing.assert_close(table["swish"].func(x, alpha=0.0), F.silu(x))
    with pytest.raises(AttributeError, match="nothing"):
        _ = table["lrelu"].nothing


@pytest.mark.parametrize("act", list(bias_act.activation_funcs))
@pytest.mark.parametrize(("shape", "dim"), [((5,), 0), ((4, 5), 1), ((5, 3), -2), ((2, 3, 5), 2), ((2, 5, 3, 2, 2), 1)])
def test_bias_of_any_axis(backend: str, act: str, shape: tuple[int, ...], dim: int) -> None:
    x, b = torch.randn(shape, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    row = bias_act.activation_funcs[act]
    z = x + b.reshape([5 if axis == dim % len(shape) else 1 for axis in range(len(shape))])
    expected = (row.func(z, alpha=0.3) * 1.7).clamp(-0.6, 0.6)
    torch.testing.assert_close(bias_act.bias_act(x, b, dim, act, 0.3, 1.7, 0.6), expected)
    torch.testing.assert_close(bias_act.bias_act(x, act=act), row.func(x, alpha=row.def_alpha) * row.def_gain)


@pytest.mark.parametrize("act", list(bias_act.activation_funcs))
def test_gradients_of_activations(backend: str, act: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, b: Tensor) -> Tensor:
        return bias_act.bias_act(x, b, act=act, clamp=1.1)

    assert torch.autograd.gradcheck(run, (x, b))
    assert torch.autograd.gradgradcheck(run, (x, b))


def test_nothing_to_do_is_x_itself() -> None:
    x = torch.randn(2, 3)
    assert bias_act.bias_act(x) is x
    assert bias_act.bias_act(torch.tensor(-2.0), act="relu").shape == ()


def test_relu_of_minus_infinity_is_zero(backend: str) -> None:
    x = torch.tensor([[-math.inf, -1.0, 2.0]])
    assert bias_act.bias_act(x, act="relu", gain=1).tolist() == [[0.0, 0.0, 2.0]]


def test_half_types_keep_their_type(backend: str) -> None:
    x, b = torch.randn(2, 3, 4, 4).half(), torch.randn(3)
    for act in bias_act.activation_funcs:
        assert bias_act.bias_act(x, b, act=act, clamp=2).dtype == torch.float16, act


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (dict(act="gelu"), ValueError, "unknown act 'gelu'; there are linear, relu, lrelu"),
        (dict(impl="fast"), ValueError, "impl must be 'cuda' or 'ref', got 'fast'"),
        (dict(clamp=-1.0), ValueError, "clamp must not be negative, got -1.0"),
        (dict(b=torch.zeros(4)), ValueError, r"bias has shape \(4,\), expected \(3,\)"),
        (dict(b=torch.zeros(3), dim=2), ValueError, r"dim must lie in \[-2, 1\]"),
    ],
)
def test_bad_input_of_bias_act(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bias_act.bias_act(**{"x": torch.zeros(2, 3), "act": "lrelu"} | arguments)


# filters and resampling


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7, 8])
def test_sizes_that_the_helpers_keep(backend: str, taps: int) -> None:
    x, f = torch.randn(1, 2, 12, 6), upfirdn2d.setup_filter(list(range(1, taps + 1)))
    assert f.dim() == (1 if taps >= 8 else 2)
    assert upfirdn2d.filter2d(x, f).shape == x.shape
    assert upfirdn2d.downsample2d(x, f, down=[3, 2]).shape == (1, 2, 6, 2)
    assert upfirdn2d.upsample2d(x, f).shape == (1, 2, 24, 12)
    assert upfirdn2d.upsample2d(x, f, up=[1, 3]).shape == (1, 2, 36, 6)


@pytest.mark.parametrize("taps", [2, 4, 6])
def test_resampling_keeps_the_brightness(backend: str, taps: int) -> None:
    x, f = torch.ones(1, 1, 32, 32), upfirdn2d.setup_filter([1] * taps)
    for y in (upfirdn2d.upsample2d(x, f), upfirdn2d.downsample2d(x, f), upfirdn2d.filter2d(x, f)):
        inner = y[:, :, taps : y.shape[2] - taps, taps : y.shape[3] - taps]
        assert inner.numel()
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_line_and_matrix_are_one_filter(backend: str) -> None:
    # taps whose float32 products are exact
    x, taps = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(5).mul(16).round().div(16)
    for flip in (False, True):
        line = upfirdn2d.upfirdn2d(x, taps, up=2, padding=[2, 1], flip_filter=flip, gain=3)
        matrix = upfirdn2d.upfirdn2d(x, torch.outer(taps, taps), up=2, padding=[2, 2, 1, 1], flip_filter=flip, gain=3)
        torch.testing.assert_close(line, matrix, rtol=1e-12, atol=1e-12)
    assert upfirdn2d.upfirdn2d(x, None) is not x
    torch.testing.assert_close(upfirdn2d.upfirdn2d(x, None), x)


def test_setup_filter_takes_arrays_and_devices() -> None:
    f = upfirdn2d.setup_filter(np.array([1, 3, 3, 1]), device=torch.device("cpu"), gain=4)
    torch.testing.assert_close(f, torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 16)
    assert f.dtype == torch.float32 and upfirdn2d.setup_filter(2).shape == (1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upfirdn2d.setup_filter([]), r"got shape \(0,\)"),
        (lambda: upfirdn2d.setup_filter(torch.ones(2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (lambda: upfirdn2d.setup_filter([[1, 2]], separable=True), "cannot be separable"),
        (lambda: upfirdn2d.filter2d(torch.zeros(1, 1, 4, 4), None, padding=[1, 2, 3]), "padding must be an int"),
        (lambda: upfirdn2d.upsample2d(torch.zeros(1, 1, 4, 4), None, up=0), "1 or more, got 0"),
        (lambda: upfirdn2d.upsample2d(torch.zeros(1, 1, 4, 4), None, up=1.5), "must be an int"),
        (lambda: upfirdn2d.upfirdn2d(torch.zeros(1, 1, 4, 4), None, impl="x"), "impl must be 'cuda' or 'ref'"),
        (lambda: conv2d_resample.conv2d_resample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 1, 1), up=0), "up must be"),
    ],
)
def test_bad_input_of_resampling(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# conv2d_resample


def in_the_written_order(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
    groups: int,
    flips: tuple[bool, bool],
) -> Tensor:
    """Up-sample with f, convolve, down-sample with f, one behind the other; f's own pads as the helpers have them."""
    flip_weight, flip_filter = flips
    pads, taps = list(padding), (1, 1) if f is None else (f.shape[-1], f.shape[0])
    for axis in (0, 1):
        if up > 1:
            pads[2 * axis] += (taps[axis] + up - 1) // 2
            pads[2 * axis + 1] += (taps[axis] - up) // 2
        if down > 1:
            pads[2 * axis] += (taps[axis] - down + 1) // 2
            pads[2 * axis + 1] += (taps[axis] - down) // 2
    y = upfirdn2d.upfirdn2d(
        x, f if up > 1 else None, up=up, padding=pads, gain=up**2, flip_filter=flip_filter, impl="ref"
    )
    y = F.conv2d(y, w if flip_weight else w.flip(2, 3), groups=groups)
    return upfirdn2d.upfirdn2d(y, f, down=down, flip_filter=flip_filter, impl="ref") if down > 1 else y


@pytest.mark.parametrize(
    ("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2)], ids=lambda value: f"{value}"
)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5)], ids=str)
def test_convolution_between_resampling(backend: str, up: int, down: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for groups, padding, flips, taps in itertools.product(
        (1, 2), ([1, 1, 1, 1], [2, 0, -1, 3]), ((True, False), (False, True)), ((4, 4), (3, 5), (8,), None)
    ):
        x, w = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((2, 4, 9, 8), (6, 4 // groups, *size))
        )
        f = None if taps is None else torch.randn(taps, generator=generator)
        got = conv2d_resample.conv2d_resample(x, w, f, up, down, padding, groups, *flips)
        torch.testing.assert_close(got, in_the_written_order(x, w, f, up, down, padding, groups, flips))


def test_double_backward_of_convolution_between_resampling(backend: str) -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    for factors in ({"up": 2}, {"down": 2}):

        def run(x: Tensor, w: Tensor, factors: dict[str, int] = factors) -> Tensor:
            return conv2d_resample.conv2d_resample(x, w, f, padding=1, **factors)

        assert torch.autograd.gradgradcheck(run, (x, w))


# grid_sample and fma


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(grid_sample_gradfix, "enabled", True)
    return grid_sample_gradfix.grid_sample


def scene() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    return image, torch.rand(2, 4, 3, 2, generator=generator, dtype=torch.float64) * 3 - 1.5  # some of it outside


def test_sampling_is_pytorchs(sampling: Any) -> None:
    image, grid = scene()
    expected = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    for wants in itertools.product((False, True), repeat=2):
        got = sampling(image.clone().requires_grad_(wants[0]), grid.clone().requires_grad_(wants[1]))
        torch.testing.assert_close(got, expected)
    assert not grid_sample_gradfix.grid_sample(image, grid).requires_grad


@pytest.mark.parametrize("grid_too", [False, True])
def test_every_order_of_gradient_of_sampling(sampling: Any, grid_too: bool) -> None:
    image, grid = (value.requires_grad_(wanted) for value, wanted in zip(scene(), (True, grid_too), strict=True))
    name = type(sampling(image, grid).grad_fn).__name__
    assert (name == "_SampleBackward") != grid_too, "the gradients under test are those of this module"

    def run(image: Tensor, grid: Tensor) -> Tensor:
        return sampling(image, grid) ** 2

    assert torch.autograd.gradcheck(run, (image, grid))
    assert torch.autograd.gradgradcheck(run, (image, grid))


def test_sampling_switched_off_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grid_sample_gradfix.enabled is False
    image, grid = scene()
    assert (
        type(grid_sample_gradfix.grid_sample(image.requires_grad_(), grid).grad_fn).__name__ == "GridSampler2DBackward0"
    )


def test_multiply_and_add() -> None:
    a, b, c = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 4, 4), (2, 3, 1, 1), (1, 1, 4, 4))
    )
    torch.testing.assert_close(fma.fma(a, b, c), a * b + c)
    assert torch.autograd.gradcheck(fma.fma, (a, b, c))
    assert torch.autograd.gradgradcheck(fma.fma, (a, b, c))

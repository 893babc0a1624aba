"""The package `op`: arguments, defaults, keys and gradients as the repositories that import it expect them."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.compat import rosinality as op
from anifast.compat.rosinality import FusedLeakyReLU, fused_leaky_relu, upfirdn2d

SIGNATURES = [
    (FusedLeakyReLU, {"channel": inspect.Parameter.empty, "bias": True, "negative_slope": 0.2, "scale": 2**0.5}),
    (fused_leaky_relu, {"input": inspect.Parameter.empty, "bias": None, "negative_slope": 0.2, "scale": 2**0.5}),
    (
        upfirdn2d,
        {"input": inspect.Parameter.empty, "kernel": inspect.Parameter.empty, "up": 1, "down": 1, "pad": (0, 0)},
    ),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_arguments_and_defaults(function: object, expected: dict[str, object]) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == expected
    assert list(parameters) == list(expected), "the order counts where arguments have no names"


def test_names_are_functions_and_modules_as_imported_there() -> None:
    assert callable(op.upfirdn2d) and callable(op.fused_leaky_relu), "a name of the package is the function"
    for name in ("FusedLeakyReLU", "fused_leaky_relu", "upfirdn2d", "conv2d_gradfix"):
        assert hasattr(op, name)
    from anifast.compat.rosinality import conv2d_gradfix

    assert conv2d_gradfix.enabled and callable(conv2d_gradfix.conv2d)


def test_layer_has_the_published_keys() -> None:
    layer = FusedLeakyReLU(5)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == {"bias": (5,)}
    assert not layer.bias.any() and layer.bias.requires_grad
    assert (layer.negative_slope, layer.scale) == (0.2, 2**0.5)
    layer.load_state_dict({"bias": torch.arange(5.0)})
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(layer(x), F.leaky_relu(x + torch.arange(5.0)[:, None, None], 0.2) * 2**0.5)
    bare = FusedLeakyReLU(5, bias=False, negative_slope=0.5, scale=3.0)
    assert bare.bias is None and not bare.state_dict()
    torch.testing.assert_close(bare(x), F.leaky_relu(x, 0.5) * 3)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_slope_in_the_place_of_an_older_copy_is_refused() -> None:
    with pytest.raises(TypeError, match=r"bias must be a bool, got 0\.3; a slope is given as negative_slope=0\.3"):
        FusedLeakyReLU(5, 0.3)


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 5), (2, 6, 5, 3), (1, 6, 2, 3, 4), (0, 6)], ids=str)
@pytest.mark.parametrize("slope", [0.2, 0.01])
def test_bias_is_that_of_axis_1_and_the_slope_is_the_given_one(
    backend: str, shape: tuple[int, ...], slope: float
) -> None:
    x, bias = torch.randn(shape, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = F.leaky_relu(x + bias.reshape(6, *[1] * (len(shape) - 2)), slope) * 1.5
    torch.testing.assert_close(fused_leaky_relu(x, bias, slope, 1.5), expected)
    torch.testing.assert_close(fused_leaky_relu(x, None, slope, 1.5), F.leaky_relu(x, slope) * 1.5)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5, 4)], ids=str)
def test_gradients_of_the_activation(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused_leaky_relu, (x, bias))
    assert torch.autograd.gradgradcheck(fused_leaky_relu, (x, bias))


def test_half_inputs_beside_float32_parameters(backend: str) -> None:
    x = torch.randn(2, 5, 6, 6).bfloat16()
    layer = FusedLeakyReLU(5)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    blurred = upfirdn2d(out, torch.ones(4, 4) / 16, pad=(2, 1))
    assert blurred.dtype == torch.bfloat16 and blurred.shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        linear = fused_leaky_relu(F.linear(torch.randn(3, 4), torch.randn(5, 4)), layer.bias)
    assert linear.dtype == torch.bfloat16


def zero_inserted(x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], pad: list[int]) -> Tensor:
    """The definition: zeros behind each sample, pads or cuts, true convolution, every down-th sample."""
    batch, channels, rows, columns = x.shape
    full = x.new_zeros(batch, channels, rows * up[1], columns * up[0])
    full[:, :, :: up[1], :: up[0]] = x
    full = F.pad(full, pad)
    weight = kernel.flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(full, weight, groups=channels)[:, :, :: down[1], :: down[0]]


@pytest.mark.parametrize(
    ("up", "down", "pad"),
    [
        (1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), ((2, 1), (1, 2), (3, 1, 2, 0)), (2, 2, (-1, 3, 2, -1)),
        ([1, 2], [2, 1], [0, 3, -1, 4]),
    ],
)  # fmt: skip
def test_resampling_is_its_definition(backend: str, up: object, down: object, pad: tuple[int, ...]) -> None:
    x, kernel = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pairs = [tuple(value) if isinstance(value, (tuple, list)) else (value, value) for value in (up, down)]
    pads = list(pad) if len(pad) == 4 else [*pad, *pad]
    torch.testing.assert_close(upfirdn2d(x, kernel, up, down, pad), zero_inserted(x, kernel, *pairs, pads))


def test_gradients_of_resampling(backend: str) -> None:
    x, kernel = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 4).double()

    def resampled(x: Tensor) -> Tensor:
        return upfirdn2d(x, kernel, up=2, down=1, pad=(2, 1)) ** 2

    assert torch.autograd.gradcheck(resampled, (x,))
    assert torch.autograd.gradgradcheck(resampled, (x,))


def test_numbers_of_other_libraries_are_numbers() -> None:
    x, kernel = torch.randn(1, 2, 5, 6), torch.ones(3, 3)
    expected = upfirdn2d(x, kernel, up=2, pad=(2, 1))
    for pad in (np.array([2, 1]), torch.tensor([2, 1]), (np.int64(2), torch.tensor(1)), [2, 1]):
        torch.testing.assert_close(upfirdn2d(x, kernel, up=np.int32(2), pad=pad), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(pad=(1, 1, 1)), TypeError, "padding must be an int"),
        (dict(pad=(0.5, 1)), TypeError, "padding must be an int"),
        (dict(up=0), ValueError, "up must be 1 or more.*got 0"),
        (dict(down="2"), TypeError, "down must be an int"),
        (dict(pad=(-3, -3)), ValueError, "no output is left"),
        (dict(kernel=torch.ones(3, 3, requires_grad=True)), ValueError, "kernel requires a gradient"),
        (dict(input=torch.zeros(5, 6)), ValueError, "rank 4"),
        (dict(input=[1.0]), TypeError, "must be a torch.Tensor, got list"),
    ],
)
def test_bad_input_of_resampling(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upfirdn2d(**{"input": torch.zeros(1, 2, 5, 6), "kernel": torch.ones(3, 3)} | arguments)


def test_bad_input_of_the_activation() -> None:
    with pytest.raises(ValueError, match=r"bias has shape \(4,\), expected \(3,\)"):
        fused_leaky_relu(torch.zeros(2, 3, 4), torch.zeros(4))
    with pytest.raises(TypeError, match="x must be float32.*got torch.int64"):
        fused_leaky_relu(torch.zeros(2, 3, dtype=torch.long))

"""Convolutions by the Winograd kernels, and halvings with a faster gradient, against PyTorch's to the second order.

What is plain here is one padded depthwise convolution for the filter and `torch.nn.functional.conv2d`, in float64 for
the truth. The allowed error is twice that of plain float32, and the rounding of Winograd's sums (see `amplification` in
modulated_conv2d_cases.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from modulated_conv2d_cases import amplification
from op_checks import CalledOps
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import anifast
from anifast import _native, backends
from anifast.errors import BackendError
from anifast.nn import winograd
from anifast.nn.regularizers import r1_penalty
from anifast.nn.stylegan2_layers import ConvLayer, ResBlock
from anifast.ops.modulated_conv2d import no_weight_gradients
from anifast.systems.disentangle.networks import ResidueBlock
from anifast.systems.gnr.networks import Discriminator

EPS = torch.finfo(torch.float32).eps
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
Function = Callable[[Tensor, Tensor], Tensor]
needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


def operands(shape: tuple[int, int, int, int], outputs: int, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=source)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randn(outputs, shape[1], 3, 3, generator=source)


def plain_halve(x: Tensor, weight: Tensor, gain: float = 1.0) -> Tensor:
    channels = x.shape[1]
    taps = TAPS.to(x.dtype)
    kernel = torch.outer(taps, taps)[None, None].expand(channels, 1, 4, 4) * gain
    return F.conv2d(F.conv2d(F.pad(x, (2, 2, 2, 2)), kernel, groups=channels), weight, stride=2)


def plain_convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight * 0.3, padding=1)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return winograd.convolve(x, weight, weight_gain=0.3, act=False)


def halve(x: Tensor, weight: Tensor) -> Tensor:
    return winograd.halve(x, weight, TAPS, 0.3)


def plain_halve_scaled(x: Tensor, weight: Tensor) -> Tensor:
    return plain_halve(x, weight, 0.3)


def orders(function: Function, x: Tensor, weight: Tensor, alone: bool) -> dict[str, Tensor]:
    """Output, gradients, and gradients of penalties on these.

    Args:
        function: differentiated.
        x: maps.
        weight: of the convolution.
        alone: the penalty is on the gradient by x only, which is taken without gradients by weights, as R1 does;
            otherwise on both.
    """
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = function(x, weight)
    source = torch.Generator().manual_seed(3)
    grad = torch.randn(out.shape, generator=source).to(out.dtype).requires_grad_()
    loss = (out * grad).sum()
    if alone:
        with no_weight_gradients():
            first = torch.autograd.grad(loss, [x], create_graph=True)
    else:
        first = torch.autograd.grad(loss, [x, weight], create_graph=True)
    found = {"out": out} | {f"d {name}": value for name, value in zip(("x", "weight"), first, strict=False)}
    penalty = torch.stack([value.square().mean() for value in first]).sum()
    second = torch.autograd.grad(penalty, [x, weight, grad], allow_unused=alone)
    found |= {f"d2 {name}": value for name, value in zip(("x", "weight", "grad"), second, strict=True)}
    return {name: value.detach() for name, value in found.items() if value is not None}


CASES = {
    "convolve": (convolve, plain_convolve, winograd.is_faster, (2, 32, 40, 44), 96),
    "convolve odd": (convolve, plain_convolve, winograd.is_faster, (1, 35, 37, 41), 160),
    "halve": (halve, plain_halve_scaled, None, (3, 40, 40, 44), 48),
    "halve oblong": (halve, plain_halve_scaled, None, (1, 24, 90, 66), 60),
}


@needs_native
@pytest.mark.parametrize("alone", [False, True], ids=["both gradients", "as R1"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CASES)
def test_against_pytorch(name: str, channels_last: bool, alone: bool) -> None:
    function, plain, _, shape, outputs = CASES[name]
    x, weight = operands(shape, outputs, channels_last)
    assert winograd.is_faster(x, weight)
    if name.startswith("halve"):
        assert winograd.is_faster_halving(x.clone().requires_grad_(), weight, TAPS)
    truth = orders(plain, x.double(), weight.double(), alone)
    usual = orders(plain, x, weight, alone)
    with CalledOps() as called:
        got = orders(function, x, weight, alone)
    assert "modulated_conv2d" in called.names
    assert ("d weight" in truth) != alone and set(got) == set(truth)
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert got["out"].is_contiguous(memory_format=form)
    images, channels, rows, columns = shape
    positions = images * rows * columns
    amplified = amplification("winograd", 1 if name.startswith("convolve") else 2)
    for what, expected in truth.items():
        assert got[what].shape == expected.shape and got[what].dtype == torch.float32
        # products that a value is the sum of; a penalty squares gradients that are such sums themselves
        products = positions if what.endswith("weight") else 9 * max(channels, outputs)
        products *= 9 * max(channels, outputs) if what.startswith("d2") else 1
        scale = float(expected.abs().max()) * math.sqrt(products) * amplified
        error = float((got[what].double() - expected).abs().max())
        rounding = float((usual[what].double() - expected).abs().max())
        assert error <= 2 * rounding + EPS * scale, (what, error, rounding, EPS * scale)
        assert error < 0.01 * float(expected.abs().max()), what  # the bound is no empty one


@needs_native
@pytest.mark.parametrize("name", ["convolve", "halve"])
def test_in_float64_to_rounding(name: str) -> None:
    """Of kernels that have it: only sums in another order."""
    function, plain, *_ = CASES[name]
    x, weight = (value.double() for value in operands((2, 5, 12, 14), 6))
    for alone in (False, True):
        got, truth = orders(function, x, weight, alone), orders(plain, x, weight, alone)
        for what, expected in truth.items():
            # at most as many roundings as products in two sums, one behind the other
            allowed = torch.finfo(torch.float64).eps * 2 * 9 * 12 * 14 * 2 * float(expected.abs().max())
            assert float((got[what] - expected).abs().max()) <= allowed, what


class WeightGradients(TorchDispatchMode):
    """Counts the gradients by a convolution's weight, PyTorch's and ours."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.count += name == "anifast::modulated_conv2d_weight_grad"
        self.count += name == "aten::convolution_backward" and args[-1][1]
        return func(*args, **(kwargs or {}))


@needs_native
@pytest.mark.parametrize("name", ["convolve", "halve"])
def test_a_penalty_computes_no_gradients_by_weights_on_its_way(name: str) -> None:
    function, _, _, shape, outputs = CASES[name]
    x, weight = (value.requires_grad_() for value in operands(shape, outputs))
    with WeightGradients() as whole:
        function(x, weight).sum().backward()
    assert whole.count == 1
    with WeightGradients() as none, no_weight_gradients():
        (gradient,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
    assert none.count == 0
    with WeightGradients() as behind:
        gradient.square().sum().backward()
    assert behind.count >= 1  # the penalty's own


# --- where it runs, and where not


def runs(x: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """(is_faster, is_faster_halving)"""
    return winograd.is_faster(x, weight), winograd.is_faster_halving(x.requires_grad_(), weight, TAPS)


@needs_native
def test_where_it_runs() -> None:
    x, weight = operands((3, 40, 40, 44), 48)
    assert runs(x, weight) == (True, True)
    assert not any(runs(x.double(), weight.double()))
    assert not any(runs(x.bfloat16(), weight.bfloat16()))
    assert not any(runs(x.detach().to("meta"), weight.to("meta")))
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(runs(x, weight))
    with anifast.use_backend("reference"):
        assert not any(runs(x, weight))
    # few maps, few products, few tiles
    assert not any(runs(x.detach()[:0], weight))
    assert not any(runs(x.detach()[:, :4].clone(), weight[:, :4]))
    wide, many = operands((1, 512, 8, 8), 512)
    assert not any(runs(wide, many)) and wide.numel() // 512 * 512 * 512 > winograd._FEWEST_PRODUCTS
    # halving: odd sides, another filter, no gradient asked for
    odd, weight_of_odd = operands((3, 40, 41, 44), 48)
    assert runs(odd, weight_of_odd) == (True, False)
    assert not winograd.is_faster_halving(x, weight, torch.tensor([1.0, 2.0, 1.0]) / 4)
    assert not winograd.is_faster_halving(x.detach(), weight, TAPS)
    with torch.no_grad():
        assert not winograd.is_faster_halving(x, weight, TAPS)
    fewer = x.detach()[:2].clone()  # 3520 positions: enough for a convolution, too few for a halving
    assert runs(fewer, operands((2, 40, 40, 44), 64)[1]) == (True, False)


def test_a_backend_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(op: str, device: str) -> str:
        raise BackendError("not there")

    monkeypatch.setattr(backends, "choose", missing)
    assert runs(*operands((3, 40, 40, 44), 48)) == (False, False)


# --- layers


def prepared(layer: nn.Module) -> nn.Module:
    """With biases so far from 0 that rounding chooses no side of an activation."""
    source = torch.Generator().manual_seed(2)
    for key, value in layer.named_parameters():
        if key.endswith("weight"):
            value.data.copy_(torch.randn(value.shape, generator=source))
        else:
            signs = torch.where(torch.arange(len(value)) % 2 == 0, 1.0, -1.0)
            value.data.copy_(signs * (200.0 if "conv2" in key else 7.0))
    return layer


def gradients(layer: nn.Module, x: Tensor, weighted: bool) -> dict[str, Tensor]:
    """Output; gradients of a sum with R1 (`weighted`: by r1_penalty, else written out)."""
    x = x.clone().requires_grad_()
    out = layer(x)
    source = torch.Generator().manual_seed(3)
    score = (out * torch.randn(out.shape, generator=source).to(out.dtype)).sum()
    if weighted:
        penalty = r1_penalty(score, x)
    else:
        (inner,) = torch.autograd.grad(score, x, create_graph=True)
        penalty = inner.square().sum() / len(x)
    loss = score + penalty
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    named = {name: value for name, value in zip(("x", *parameters), found, strict=True) if value is not None}
    return {"out": out.detach(), "penalty": penalty.detach()} | named


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: ConvLayer(40, 48, 3),
    "halving": lambda: ConvLayer(40, 48, 3, down=True),
    "block": lambda: ResBlock(40, 48),
    "block of one size": lambda: ResBlock(40, 40, down=False),
}


@needs_native
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_and_without(name: str) -> None:
    layer = prepared(LAYERS[name]())
    x = operands((3, 40, 40, 44), 48)[0].clamp(-2.5, 2.5)
    double = copy.deepcopy(layer).double()
    truth = gradients(double, x.double(), weighted=False)
    with anifast.use_backend("reference"), CalledOps() as none:
        without = gradients(layer, x, weighted=False)
    assert "modulated_conv2d" not in none.names
    with CalledOps() as called:
        got = gradients(layer, x, weighted=True)
    assert "modulated_conv2d" in called.names
    assert set(got) == set(without) == set(truth)
    convolutions = sum(isinstance(module, ConvLayer) for module in layer.modules())
    amplified = max(amplification("winograd", up) for up in (1, 2))
    for what, expected in truth.items():
        # forward and backward twice: so many sums of 9 C products lie behind one another
        products = 4 * convolutions * 9 * 48
        if expected.dim() in (1, 4) and what not in ("out", "x"):
            products *= x.numel() // x.shape[1] / 48  # and a sum over all positions
        scale = float(expected.abs().max()) * math.sqrt(products) * amplified
        error = float((got[what].double() - expected).abs().max())
        rounding = float((without[what].double() - expected).abs().max())
        assert error <= 2 * rounding + EPS * scale, (what, error, rounding, EPS * scale)


@needs_native
def test_the_penalty_of_a_discriminator() -> None:
    """In float64 the penalty is that of plain autograd, of every parameter, to rounding."""
    torch.manual_seed(0)
    net = Discriminator(64, 1 / 64, "v1.1").double()
    images = torch.randn(2, 3, 64, 64).double().requires_grad_()
    for head in range(3):
        score = net(images)[head].mean()
        penalty = r1_penalty(score, images)
        score = net(images)[head].mean()
        (inner,) = torch.autograd.grad(score, images, create_graph=True)
        expected = inner.square().flatten(1).sum(1).mean()
        torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
        ours, theirs = (
            torch.autograd.grad(value, list(net.parameters()), materialize_grads=True, allow_unused=True)
            for value in (penalty, expected)
        )
        largest = max(float(value.abs().max()) for value in theirs)
        assert largest > 0
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * largest)


@needs_native
def test_filters_need_not_be_symmetric() -> None:
    """The gradient goes through the filter turned round."""
    layer = prepared(ConvLayer(40, 48, 3, down=True, blur_kernel=(1, 2, 3, 4)))
    x = operands((3, 40, 40, 44), 48)[0].requires_grad_()
    conv = layer.conv
    assert layer.blur is not None and winograd.is_faster_halving(x, conv.weight, layer.blur.taps)
    (found,) = torch.autograd.grad(layer(x).square().mean(), x)
    exact = copy.deepcopy(layer).double()
    own = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(own).square().mean(), own)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= EPS * scale * math.sqrt(9 * 48) * amplification("winograd", 2)


@needs_native
def test_in_transforms_and_modes() -> None:
    """What worked with PyTorch's convolution goes on to work: torch.func, torch.compile, inference."""
    layer = prepared(ConvLayer(40, 48, 3, down=True))
    x = operands((3, 40, 40, 44), 48)[0].clamp(-2.5, 2.5)
    with anifast.use_backend("reference"):
        expected = layer(x).detach()
    scale = float(expected.abs().max())
    allowed = EPS * scale * math.sqrt(9 * 40) * amplification("winograd", 2)
    with torch.inference_mode():
        assert float((layer(x) - expected).abs().max()) <= allowed
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert float((compiled(x.clone().requires_grad_()) - expected).detach().abs().max()) <= allowed
    own = x.clone().requires_grad_()
    (usual,) = torch.autograd.grad(layer(own).square().mean(), own)
    functional = torch.func.grad(lambda given: layer(given).square().mean())(x)
    assert float((functional - usual).detach().abs().max()) <= allowed


# --- 6x6 with stride 2, and its transposed


def six(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, stride=2, padding=2)


def six_transposed(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight, stride=2, padding=2)


#: ours, PyTorch's, where ours is faster, shape, number of outputs
SIX = {
    "halving": (winograd.convolve_six, six, winograd.is_faster_six, (2, 24, 40, 44), 96),
    "halving, odd": (winograd.convolve_six, six, winograd.is_faster_six, (3, 37, 34, 30), 77),
    "doubling": (
        winograd.convolve_six_transposed,
        six_transposed,
        winograd.is_faster_six_transposed,
        (2, 40, 20, 22),
        60,
    ),
    "doubling, odd": (
        winograd.convolve_six_transposed,
        six_transposed,
        winograd.is_faster_six_transposed,
        (3, 37, 17, 15),
        77,
    ),
}


def operands_of_six(name: str, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    _, plain, _, shape, outputs = SIX[name]
    x, _ = operands(shape, 1, channels_last)
    ends = (outputs, shape[1]) if plain is six else (shape[1], outputs)
    return x, torch.randn(*ends, 6, 6, generator=torch.Generator().manual_seed(1))


@needs_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", SIX)
def test_six_against_pytorch(name: str, channels_last: bool) -> None:
    function, plain, is_faster, (images, channels, rows, columns), outputs = SIX[name]
    x, weight = operands_of_six(name, channels_last)
    assert is_faster(x, weight)
    truth, usual = orders(plain, x.double(), weight.double(), False), orders(plain, x, weight, False)
    with CalledOps() as called:
        got = orders(function, x, weight, False)
    assert "modulated_conv2d" in called.names and set(got) == set(truth)
    positions = images * rows * columns * (1 if plain is six else 4)
    amplified = amplification("winograd", 1)
    for what, expected in truth.items():
        assert got[what].shape == expected.shape and got[what].dtype == torch.float32
        # products that a value is the sum of; a penalty squares gradients that are such sums themselves
        products = positions if what.endswith("weight") else 36 * max(channels, outputs)
        products *= 36 * max(channels, outputs) if what.startswith("d2") else 1
        scale = float(expected.abs().max()) * math.sqrt(products) * amplified
        error = float((got[what].double() - expected).abs().max())
        rounding = float((usual[what].double() - expected).abs().max())
        assert error <= 2 * rounding + EPS * scale, (what, error, rounding, EPS * scale)
        assert error < 0.01 * float(expected.abs().max()), what  # the bound is no empty one


@needs_native
@pytest.mark.parametrize("shape", [(2, 5, 12, 14), (1, 3, 2, 6), (3, 1, 6, 2)], ids=str)
@pytest.mark.parametrize("name", ["halving", "doubling"])
def test_six_in_float64_to_rounding(name: str, shape: tuple[int, int, int, int]) -> None:
    """Each tap stands where it belongs: the weight is that of no symmetric filter."""
    function, plain, *_ = SIX[name]
    x = operands(shape, 1)[0].double()
    ends = (6, shape[1]) if plain is six else (shape[1], 6)
    weight = torch.randn(*ends, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    got, truth = orders(function, x, weight, False), orders(plain, x, weight, False)
    for what, expected in truth.items():
        # at most as many roundings as products in two sums, one behind the other
        allowed = torch.finfo(torch.float64).eps * 2 * 36 * 12 * 14 * 2 * float(expected.abs().max())
        assert float((got[what] - expected).abs().max()) <= allowed, what


@needs_native
def test_where_six_runs() -> None:
    for name, (_, plain, is_faster, shape, _) in SIX.items():
        x, weight = operands_of_six(name)
        assert is_faster(x, weight)
        assert not is_faster(x.double(), weight.double()) and not is_faster(x.to("meta"), weight.to("meta"))
        assert not is_faster(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_faster(x, weight)
        with anifast.use_backend("reference"):
            assert not is_faster(x, weight)
        assert not is_faster(x[:0], weight)  # no maps
        few = weight[:4] if plain is six else weight[:, :4]
        assert not is_faster(x, few.contiguous())
        # sides that pixels cannot be taken together of, in pairs
        assert is_faster(F.pad(x, (0, 2, 0, 4)), weight)
        assert is_faster(F.pad(x, (0, 1)), weight) == (plain is six_transposed)
        assert is_faster(F.pad(x, (0, 0, 0, 1)), weight) == (plain is six_transposed), shape


@needs_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("stride", [2, -2], ids=["halving", "doubling"])
def test_blocks_with_six(stride: int, pad: int, channels_last: bool) -> None:
    """With the further padding of sides that are no multiples of 4; first order, as they are trained."""
    side = (30 if pad else 32) if stride == 2 else (17 if pad else 16)
    torch.manual_seed(0)
    block = ResidueBlock(48, 64, 0.3, stride, pad)
    x, _ = operands((4, 48, side, side), 1, channels_last)

    def found(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        x = x.clone().requires_grad_()
        y = net(x)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
        parameters = dict(net.named_parameters())
        rest = torch.autograd.grad((y * noise).sum(), [x, *parameters.values()])
        return {"out": y.detach()} | dict(zip(("x", *parameters), rest, strict=True))

    truth = found(copy.deepcopy(block).double(), x.double())
    with anifast.use_backend("reference"), CalledOps() as none:
        usual = found(block, x)
    with CalledOps() as called:
        got = found(block, x)
    assert "modulated_conv2d" in called.names and "modulated_conv2d" not in none.names
    outputs = side // 2 + pad if stride == 2 else 2 * side - 2 * pad
    assert got["out"].shape == (4, 64, outputs, outputs)
    for what, expected in truth.items():
        # sums of 36 C products forward and back, and over all positions where a parameter's gradient is asked for
        products = 2 * 36 * 64 * (1 if what in ("out", "x") else 4 * max(side, outputs) ** 2)
        scale = float(expected.abs().max()) * math.sqrt(products) * amplification("winograd", 1)
        error = float((got[what].double() - expected).abs().max())
        rounding = float((usual[what].double() - expected).abs().max())
        assert error <= 2 * rounding + EPS * scale, (what, error, rounding, EPS * scale)
        assert error < 0.02 * float(expected.abs().max()), what

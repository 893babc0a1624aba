"""`conv2d_gradfix` of both flavours: PyTorch's convolutions, whose weights a backward pass may leave out."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anifast.compat import nvlabs, rosinality


@pytest.fixture(params=[rosinality.conv2d_gradfix, nvlabs.conv2d_gradfix], ids=["rosinality", "nvlabs"])
def gradfix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(request.param, "enabled", True)
    return request.param


class WeightGradients(TorchDispatchMode):
    """Counts the backward passes of convolutions, and those of them that compute a weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = self.with_weight = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "aten::convolution_backward":
            self.passes += 1
            self.with_weight += args[-1][1]
        return func(*args, **(kwargs or {}))


def network(conv2d: Any, conv_transpose2d: Any, x: Tensor, weights: list[Tensor]) -> Tensor:
    """Curved enough for second derivatives of everything."""
    y = torch.tanh(conv2d(x, weights[0], weights[1], stride=2, padding=1))
    y = torch.tanh(conv_transpose2d(y, weights[2], stride=2, padding=(0, 1), output_padding=1, groups=2))
    return conv2d(y, weights[3], None, 1, 0, 1, 1).sum((1, 2, 3))


def leaves() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 3, 7, 8), (4, 3, 3, 3), (4,), (4, 1, 3, 3), (1, 2, 1, 1))
    x, *weights = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    return x, weights


def test_arguments_and_defaults(gradfix: ModuleType) -> None:
    common = {"bias": None, "stride": 1, "padding": 0}
    found = {
        name: [(key, p.default) for key, p in inspect.signature(getattr(gradfix, name)).parameters.items()][2:]
        for name in ("conv2d", "conv_transpose2d")
    }
    assert found["conv2d"] == list((common | {"dilation": 1, "groups": 1}).items())
    assert found["conv_transpose2d"] == list((common | {"output_padding": 0, "groups": 1, "dilation": 1}).items())
    assert list(inspect.signature(gradfix.no_weight_gradients).parameters) == ["disable"]
    assert gradfix.weight_gradients_disabled is False


def test_defaults_of_the_switch() -> None:
    assert rosinality.conv2d_gradfix.enabled is True and nvlabs.conv2d_gradfix.enabled is False


def test_penalty_has_the_gradients_of_plain_pytorch(gradfix: ModuleType) -> None:
    """R1: the image's gradient without the weights', then the whole gradient of its square."""
    x, weights = leaves()
    expected = torch.autograd.grad(network(F.conv2d, F.conv_transpose2d, x, weights).sum(), x, create_graph=True)[0]
    truth = torch.autograd.grad((expected**2).sum(), [x, *weights], materialize_grads=True)
    out = network(gradfix.conv2d, gradfix.conv_transpose2d, x, weights)
    torch.testing.assert_close(out, network(F.conv2d, F.conv_transpose2d, x, weights))
    with gradfix.no_weight_gradients(), WeightGradients() as counted:
        (inner,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert (counted.passes, counted.with_weight) == (3, 0), "no weight's gradient is computed"
    torch.testing.assert_close(inner, expected)
    penalty = (inner**2).sum()
    penalty.backward()
    for leaf, value in zip([x, *weights], truth, strict=True):
        torch.testing.assert_close(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf), value)
    assert weights[0].grad is not None and weights[0].grad.any()


def test_weights_get_nothing_within_and_everything_behind(gradfix: ModuleType) -> None:
    x, weights = leaves()
    out = network(gradfix.conv2d, gradfix.conv_transpose2d, x, weights).sum()
    with gradfix.no_weight_gradients():
        assert gradfix.weight_gradients_disabled
        out.backward(retain_graph=True)
    assert [weight.grad is None for weight in weights] == [True, False, True, True], "a bias is no weight"
    assert x.grad is not None
    out.backward()
    plain = torch.autograd.grad(network(F.conv2d, F.conv_transpose2d, x, weights).sum(), weights)
    for weight, value in zip((weights[0], weights[2], weights[3]), (plain[0], plain[2], plain[3]), strict=True):
        torch.testing.assert_close(weight.grad, value)


def test_what_counts_is_when_the_backward_pass_runs(gradfix: ModuleType) -> None:
    x, weights = leaves()
    with gradfix.no_weight_gradients():
        out = gradfix.conv2d(x, weights[0])
    assert torch.autograd.grad(out.sum(), weights[0])[0].any()


def test_styles_within_weights_are_cut_too(gradfix: ModuleType) -> None:
    x, weights = leaves()
    style = torch.ones(3, dtype=torch.float64, requires_grad=True)
    out = gradfix.conv2d(x, weights[0] * style[:, None, None]).sum()
    with gradfix.no_weight_gradients():
        assert torch.autograd.grad(out, style, retain_graph=True, allow_unused=True) == (None,)
    with gradfix.no_weight_gradients(disable=False):
        assert torch.autograd.grad(out, style)[0].any()


def test_switched_off_it_is_plain_pytorch(gradfix: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradfix, "enabled", False)
    x, weights = leaves()
    out = gradfix.conv2d(x, weights[0]).sum()
    with gradfix.no_weight_gradients():
        assert torch.autograd.grad(out, weights[0])[0].any()


def test_block_ends_with_an_error_and_nests(gradfix: ModuleType) -> None:
    with pytest.raises(KeyError), gradfix.no_weight_gradients():
        with gradfix.no_weight_gradients(), gradfix.no_weight_gradients(False):
            assert gradfix.weight_gradients_disabled
        assert gradfix.weight_gradients_disabled, "the outer block goes on"
        raise KeyError
    assert not gradfix.weight_gradients_disabled


def test_gradgradcheck(gradfix: ModuleType) -> None:
    x, weights = leaves()

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return network(gradfix.conv2d, gradfix.conv_transpose2d, x, list(weights))

    small = x.detach()[:1, :, :4, :5].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(run, (small, *weights))


def test_autocast_and_compile(gradfix: ModuleType) -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = gradfix.conv2d(x, weight)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.float().sum(), weight)[0].dtype == torch.float32
    compiled = torch.compile(gradfix.conv2d, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), F.conv2d(x, weight))

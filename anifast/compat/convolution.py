"""Convolutions whose weights can be kept out of a backward pass: what both flavours give as `conv2d_gradfix`.

PyTorch's own convolutions have every order of gradient, so only `no_weight_gradients` is left to add.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Gate(torch.autograd.Function):
    """The identity, whose gradient is left out by a backward pass that runs while `flags` say so.

    The convolution behind it is PyTorch's own. Its engine computes a weight's gradient only where one is wanted, so
    the gradient of a penalty's pass towards images or latents costs nothing here; and that gradient, being made of the
    gated weight, has the gate in its own graph, which is open again when the penalty is differentiated.
    """

    @staticmethod
    def forward(flags: dict[str, Any], weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[dict[str, Any], Tensor], output: Tensor) -> None:
        ctx.flags = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, None if ctx.flags["weight_gradients_disabled"] else grad


class Convolutions:
    """`conv2d`, `conv_transpose2d` and `no_weight_gradients` of one module.

    Args:
        flags: the module's namespace, whose `enabled` and `weight_gradients_disabled` programs read and set.
    """

    def __init__(self, flags: dict[str, Any]) -> None:
        self._flags = flags

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> Tensor:
        """`torch.nn.functional.conv2d`, with a weight that `no_weight_gradients` concerns where `enabled` is true."""
        return F.conv2d(input, self._gated(weight), bias, stride, padding, dilation, groups)

    def conv_transpose2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        dilation: int | tuple[int, int] = 1,
    ) -> Tensor:
        """`torch.nn.functional.conv_transpose2d`, with a weight as that of `conv2d`."""
        return F.conv_transpose2d(input, self._gated(weight), bias, stride, padding, output_padding, groups, dilation)

    @contextmanager
    def no_weight_gradients(self, disable: bool = True) -> Iterator[None]:
        """Backward passes in this block leave out the weights of convolutions, wherever those were computed.

        For the inner pass of R1 and path length regularisation, with `create_graph=True`. What reaches a parameter
        through a convolution's weight alone has no gradient in it; the gradient of the penalty itself, taken behind
        the block, is whole. It holds for all threads, and not in what torch.compile has compiled.
        """
        before = self._flags["weight_gradients_disabled"]
        self._flags["weight_gradients_disabled"] = before or disable
        try:
            yield
        finally:
            self._flags["weight_gradients_disabled"] = before

    def _gated(self, weight: Tensor) -> Tensor:
        gate = self._flags["enabled"] and torch.is_grad_enabled() and weight.requires_grad
        return _Gate.apply(self._flags, weight) if gate and not torch.compiler.is_compiling() else weight

"""`op.fused_act`: bias, leaky ReLU and gain as a function and as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anifast.ops import bias_lrelu


class FusedLeakyReLU(nn.Module):
    """scale * lrelu(input + bias), a bias for each index of axis 1.

    Args:
        channel: size of axis 1.
        bias: whether there is a bias, zeros to begin with; the only key of the state dict.
        negative_slope: factor of negative values.
        scale: factor after the activation.

    Raises:
        TypeError: bias is not a bool. In old copies of the op folder the slope stood in its place.
    """

    bias: nn.Parameter | None

    def __init__(self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__()
        if not isinstance(bias, bool):
            raise TypeError(
                f"FusedLeakyReLU: bias must be a bool, got {bias!r}; a slope is given as negative_slope={bias!r}"
            )
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """[N, channel, ...] of any rank from 2 up -> the same shape."""
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """scale * lrelu(input + bias) in one pass, on every device with the slope that is given.

    Args:
        input: [N, C, ...], floating point, any rank from 2 up.
        bias: [C], in the input's dtype or float32, or None.
        negative_slope: factor of negative values.
        scale: factor after the activation.

    Raises:
        TypeError, ValueError: as `anifast.ops.bias_lrelu`.
    """
    return bias_lrelu(input, bias, slope=negative_slope, gain=scale)

"""Plain 3x3 convolutions by the Winograd kernels that modulated_conv2d has for CPUs, where these are faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anifast import backends
from anifast.errors import BackendError
from anifast.ops.modulated_conv2d import modulated_conv2d

# From where they beat PyTorch's convolution, as measured: 4 x 4 tiles of output in a batch, for which matrices are made
# of the weight, and products for each tap, for which an op is called.
_FEWEST_TILES = 36
_FEWEST_PRODUCTS = 8_000_000


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` can do this convolution here, and faster than PyTorch's.

    Args:
        x: N,C,H,W.
        weight: O,C,3,3 of a convolution with stride 1 and one zero on each side.
    """
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    images, channels, rows, columns = x.shape
    if images * ((rows + 3) // 4) * ((columns + 3) // 4) < _FEWEST_TILES:
        return False
    if images * rows * columns * channels * weight.shape[0] < _FEWEST_PRODUCTS:
        return False
    try:
        return backends.choose("modulated_conv2d", "cpu") == "native"
    except BackendError:  # this network does not need the backend that was asked for
        return False


def convolve(x: Tensor, weight: Tensor, **epilogue: Any) -> Tensor:
    """N,C,H,W -> N,O,H,W: the convolution, and bias and activation in the same pass, differentiable to any order.

    Its rounding is a few times that of a direct convolution.

    Args:
        x: maps.
        weight: O,C,3,3.
        epilogue: keywords of modulated_conv2d: weight_gain, bias, act, slope, gain, clamp.
    """
    return modulated_conv2d(x, weight, x.new_ones(x.shape[0], x.shape[1]), demodulate=False, **epilogue)

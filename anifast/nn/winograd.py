"""Plain convolutions by the Winograd kernels that modulated_conv2d has for CPUs, where these are faster.

3x3 with stride 1 forward and backward, with stride 2 the gradient by what is convolved. 6x6 with stride 2, and its
transposed, are 3x3 with stride 1 on maps whose 2x2 pixels are channels (Shi et al. 2016 rearrange them so).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from anifast import backends
from anifast.errors import BackendError
from anifast.ops.modulated_conv2d import modulated_conv2d, weight_gradients_left_out
from anifast.ops.upfirdn2d import upfirdn2d

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
    return _is_faster(x, weight, x.shape[1], x.shape[2], x.shape[3], weight.shape[0])


def _is_faster(x: Tensor, weight: Tensor, channels: int, rows: int, columns: int, out: int) -> bool:
    """The same of a 3x3 convolution of x's images with these numbers, which x and weight are rearranged to."""
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    images = x.shape[0]
    if images * ((rows + 3) // 4) * ((columns + 3) // 4) < _FEWEST_TILES:
        return False
    if images * rows * columns * channels * out < _FEWEST_PRODUCTS:
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


def is_faster_six(x: Tensor, weight: Tensor, pad: int = 0) -> bool:
    """Whether `convolve_six` can do this convolution of x, padded by `pad` more, here, and faster than PyTorch's."""
    rows, columns = (size + 2 * pad for size in x.shape[2:])
    return not (rows % 2 or columns % 2) and _is_faster(
        x, weight, 4 * x.shape[1], rows // 2, columns // 2, weight.shape[0]
    )


def is_faster_six_transposed(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_six_transposed` can do this here, and faster than PyTorch's."""
    return _is_faster(x, weight, x.shape[1], x.shape[2], x.shape[3], 4 * weight.shape[1])


def convolve_six(x: Tensor, weight: Tensor) -> Tensor:
    """N,C,H,W -> N,O,H/2,W/2: conv2d(x, weight, stride=2, padding=2); H and W even, weight O,C,6,6."""
    out, channels = weight.shape[:2]
    small = weight.reshape(out, channels, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(out, 4 * channels, 3, 3)
    return convolve(F.pixel_unshuffle(x, 2), small, act=False, gain=1.0)


def convolve_six_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """N,C,H,W -> N,O,2H,2W: conv_transpose2d(x, weight, stride=2, padding=2); weight C,O,6,6."""
    channels, out = weight.shape[:2]
    # Row 2p + r of the output is a sum over d = -1, 0, 1 of row p + d of the input by row 2 - 2d + r of the weight.
    small = weight.reshape(channels, out, 3, 2, 3, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    return F.pixel_shuffle(convolve(x, small.reshape(4 * out, channels, 3, 3), act=False, gain=1.0), 2)


#: Positions of the output, in the whole batch, from which `halve` is faster than PyTorch's own gradient, as measured.
_FEWEST_POSITIONS = 1024


def is_faster_halving(x: Tensor, weight: Tensor, taps: Tensor) -> bool:
    """Whether `halve` can do this here, and its gradient is faster than PyTorch's.

    Args:
        x: N,C,H,W.
        weight: O,C,3,3.
        taps: of the filter, along one axis.
    """
    if torch.compiler.is_compiling():  # which looks into gradients written in Python, and knows no such op there
        return False
    if not (torch.is_grad_enabled() and x.requires_grad) or taps.shape != (4,) or x.shape[2] % 2 or x.shape[3] % 2:
        return False
    return x.shape[0] * x.shape[2] * x.shape[3] >= 4 * _FEWEST_POSITIONS and is_faster(x, weight)


def halve(x: Tensor, weight: Tensor, taps: Tensor, gain: float = 1.0) -> Tensor:
    """N,C,H,W -> N,O,H/2,W/2: filter, then a convolution with stride 2; differentiable to any order.

    Its gradient by x is the up-sampling modulated convolution, one pass of Winograd kernels where PyTorch's transposed
    convolution leaves its result in a layout that it copies. x is kept for the gradient and not the filtered one.

    Args:
        x: maps, H and W even.
        weight: O,C,3,3.
        taps: [4], of sum 1.
        gain: factor.
    """
    return _Halve.apply(x, weight, taps, gain)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, taps: Tensor, gain: float) -> Tensor:
        return F.conv2d(upfirdn2d(x, taps, padding=(2, 2), gain=gain), weight, stride=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # apart: torch.func asks for it
        ctx.save_for_backward(*inputs[:3])
        ctx.gain = inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, taps = ctx.saved_tensors
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            ones = grad.new_ones(grad.shape[0], grad.shape[1])
            by_x = modulated_conv2d(
                grad,
                weight.transpose(0, 1),
                ones,
                weight_gain=ctx.gain / 4,  # the op multiplies by up * up
                demodulate=False,
                up=2,
                fir=taps.flip(0),
                act=False,
            )
        if ctx.needs_input_grad[1] and not weight_gradients_left_out():
            filtered = upfirdn2d(x, taps, padding=(2, 2), gain=ctx.gain)
            by_weight = conv2d_weight(filtered, weight.shape, grad, stride=2)
        return by_x, by_weight, None, None

"""`torch_utils.ops.conv2d_resample`: a convolution between up-sampling and down-sampling.

Zeros between samples, pads, FIR f, convolution w, FIR f, every down-th sample: all but the last are convolutions, so
their order is free. f is always applied where the fewest samples are, and zeros are never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .conv2d_gradfix import conv2d, conv_transpose2d
from .upfirdn2d import same_padding, upfirdn2d


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Convolve x with w at `up` times its size and keep every down-th sample of that.

    Args:
        x: [N, I, H, W], floating point.
        w: [O, I / groups, k_y, k_x], in x's dtype.
        f: low-pass filter as `setup_filter` gives it, used where up or down is above 1; None is the identity.
        up: samples for each one of x.
        down: every how manyth sample of the result is kept.
        padding: in the up-sampled signal, on top of what f needs; int, (x, y) or (x0, x1, y0, y1).
        groups: groups of channels.
        flip_weight: False is convolution with w, True correlation, as PyTorch's conv2d has it.
        flip_filter: False is convolution with f, True correlation.

    Raises:
        TypeError, ValueError: up or down is no int of 1 or more, or as `upfirdn2d` and PyTorch's conv2d.
    """
    for name, value in (("up", up), ("down", down)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"conv2d_resample: {name} must be an int of 1 or more, got {value!r}")
    x0, x1, y0, y1 = _pads(f, up, down, padding)
    rows, columns = w.shape[2:]
    point = rows == columns == 1
    if up > 1:
        if point:
            x = upfirdn2d(_conv(x, w, groups), f, up, 1, (x0, x1, y0, y1), flip_filter, up**2)
        else:  # a transposed convolution has `up - 1` zeros less behind the last sample, and `taps - 1` more around all
            x = _conv_up(x, w, up, groups, flip_weight)
            pads = (x0 - columns + 1, x1 - columns + up, y0 - rows + 1, y1 - rows + up)
            x = upfirdn2d(x, f, 1, 1, pads, flip_filter, up**2)
        return x if down == 1 else upfirdn2d(x, f, 1, down, 0, flip_filter)
    weight = w if flip_weight or point else w.flip(2, 3)
    if down > 1:
        if point:
            return _conv(upfirdn2d(x, f, 1, down, (x0, x1, y0, y1), flip_filter), w, groups)
        return _conv(upfirdn2d(x, f, 1, 1, (x0, x1, y0, y1), flip_filter), weight, groups, stride=down)
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return _conv(x, weight, groups, padding=(y0, x0))
    return _conv(F.pad(x, (x0, x1, y0, y1)), weight, groups)


def _pads(f: Tensor | None, up: int, down: int, padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """The pads of all steps together."""
    pads = same_padding(f, up, 1, padding) if up > 1 else same_padding(None, 1, 1, padding)
    return same_padding(f, 1, down, pads) if down > 1 else pads


def _conv(x: Tensor, w: Tensor, groups: int, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    return conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _conv_up(x: Tensor, w: Tensor, up: int, groups: int, flip_weight: bool) -> Tensor:
    """The whole convolution of the zero-inserted x: channels change sides, and a correlation's taps are flipped."""
    outputs, inputs, *taps = w.shape
    w = w.unflatten(0, (groups, outputs // groups)).transpose(1, 2).reshape(groups * inputs, outputs // groups, *taps)
    return conv_transpose2d(x, w.flip(2, 3) if flip_weight else w, stride=up, groups=groups)

"""Reference of `upfirdn2d`: depthwise convolutions of plain PyTorch, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.reference.bias_lrelu import bias_lrelu


def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip: bool,
    gain: float,
    scale: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    add: Tensor | None,
    slope: float,
    act_gain: float,
    clamp: float | None,
) -> Tensor:
    """Up-sample, pad or crop, filter, down-sample, then the epilogue; one rounding per operation.

    Arguments as `anifast.ops.upfirdn2d` has checked them: `up`, `down` and `padding` as (x, y) and (x0, x1, y0, y1),
    `kernel` one or two axes in x's dtype, `slope` and `act_gain` 1 where there is no activation.
    """
    if kernel.dim() == 1 and len(kernel) <= 8:  # one pass over 64 taps still beats two passes
        kernel = torch.outer(kernel, kernel)
    if kernel.dim() == 2:
        y = _fir(x, kernel, up, down, padding, flip)
    else:
        y = _fir(x, kernel[None, :], (up[0], 1), (down[0], 1), (padding[0], padding[1], 0, 0), flip)
        y = _fir(y, kernel[:, None], (1, up[1]), (1, down[1]), (0, 0, padding[2], padding[3]), flip)
    if gain != 1.0:
        y = y * gain
    if scale is not None:
        y = y * scale[:, :, None, None]
    return bias_lrelu(y, bias, noise, noise_strength, add, 1, slope, act_gain, clamp, 1.0)


def _fir(
    x: Tensor,
    kernel: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip: bool,
) -> Tensor:
    channels, (rows, columns) = x.shape[1], kernel.shape
    x0, x1, y0, y1 = padding
    if channels == 0:  # which convolutions refuse
        out_columns = (x.shape[3] * up[0] + x0 + x1 - columns) // down[0] + 1
        out_rows = (x.shape[2] * up[1] + y0 + y1 - rows) // down[1] + 1
        return F.pad(x, (0, out_columns - x.shape[3], 0, out_rows - x.shape[2]))
    if up == (1, 1):
        y = _pad(x, padding)  # conv2d correlates
        weight = (kernel if flip else kernel.flip(0, 1)).expand(channels, 1, rows, columns)
        return F.conv2d(y, weight, stride=(down[1], down[0]), groups=channels)
    # The transposed convolution is the whole true convolution of the zero-inserted signal, less the zeros behind its
    # last sample: padding beyond it is zeros, and what lies before the first or behind the last wanted sample is cut.
    weight = (kernel.flip(0, 1) if flip else kernel).expand(channels, 1, rows, columns)
    y = F.conv_transpose2d(x, weight, stride=(up[1], up[0]), groups=channels)
    y = _pad(y, (x0 - columns + 1, up[0] - 1 + x1 - columns + 1, y0 - rows + 1, up[1] - 1 + y1 - rows + 1))
    return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def _pad(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Zeros first, then what is cut, which may be more than x has on that side."""
    x0, x1, y0, y1 = padding
    if max(padding) > 0:
        x = F.pad(x, (max(x0, 0), max(x1, 0), max(y0, 0), max(y1, 0)))
    if min(padding) < 0:
        x = x[:, :, max(-y0, 0) : x.shape[2] - max(-y1, 0), max(-x0, 0) : x.shape[3] - max(-x1, 0)]
    return x

"""What code with vendored StyleGAN2 op folders computes on a CPU, from the formulas: a rival."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .shapes import SQRT2


def zero_insert(x: Tensor, weight: Tensor, up: int, down: int, padding: tuple[int, int]) -> Tensor:
    """upfirdn2d: zeros behind each sample, pads, a convolution of one channel with the flipped filter, a slice.

    Args:
        x: [N, C, H, W].
        weight: [k, k], the filter with its gain.
        up, down, padding: as upfirdn2d's, the same along both axes.
    """
    batch, channels, rows, columns = x.shape
    y = x.reshape(batch * channels, 1, rows, 1, columns, 1)
    y = F.pad(y, (0, up - 1, 0, 0, 0, up - 1)).reshape(batch * channels, 1, rows * up, columns * up)
    y = F.pad(y, (*padding, *padding))
    y = F.conv2d(y, weight.flip(0, 1)[None, None])[:, :, ::down, ::down]
    return y.reshape(batch, channels, y.shape[2], y.shape[3])


def bias_act(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) lrelu(x + bias) in three passes; x is [N, C, ...] and bias [C]."""
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2) * SQRT2

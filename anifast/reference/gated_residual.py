"""Reference of `gated_residual`: a chain of plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_residual(
    x: Tensor,
    shortcut: Tensor,
    gate: Tensor,
    shortcut_gate: Tensor,
    slope: Tensor | None,
    bias: Tensor | None,
    mean: float,
    std: float,
    up: int,
    crop: int,
) -> Tensor:
    """shortcut_gate * shortcut + gate * (prelu(x + bias; slope) - mean) / std, one rounding per operation.

    Arguments as `anifast.ops.gated_residual` has checked them.
    """

    def along_channels(parameter: Tensor) -> Tensor:
        return parameter.to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    y = x
    if bias is not None:
        y = y + along_channels(bias)
    if slope is not None:
        y = F.prelu(y, slope.to(x.dtype))
    if mean != 0.0:
        y = y - mean
    if up == 2:
        shortcut = doubled(shortcut, crop)
    scale = gate if std == 1.0 else gate / std
    return torch.addcmul(along_channels(shortcut_gate) * shortcut, along_channels(scale), y)


def doubled(shortcut: Tensor, crop: int) -> Tensor:
    """N,C,h,w -> N,C,2h - 2 crop,2w - 2 crop: each pixel four times, then `crop` pixels cut off on each side."""
    rows, columns = (2 * size for size in shortcut.shape[2:])
    if shortcut.numel():
        whole = F.interpolate(shortcut, scale_factor=2.0, mode="nearest")
    else:  # which interpolate refuses
        whole = shortcut.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return whole[:, :, crop : rows - crop, crop : columns - crop]

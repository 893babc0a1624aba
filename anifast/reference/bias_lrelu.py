"""Reference of `bias_lrelu`: a chain of plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_lrelu(
    x: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    residual: Tensor | None,
    dim: int,
    slope: float,
    gain: float,
    clamp: float | None,
    residual_gain: float,
) -> Tensor:
    """clamp(gain * lrelu(x + noise_strength * noise + bias)) + residual_gain * residual, one rounding per operation.

    Arguments as `anifast.ops.bias_lrelu` has checked them: `dim` is not negative and nothing is left to broadcast
    but `bias` along `dim` and `noise` along `dim` and the batch.
    """
    y = x
    if noise is not None:
        y = y + (noise if noise_strength is None else noise * noise_strength)
    if bias is not None:
        y = y + bias.reshape([-1 if axis == dim else 1 for axis in range(x.dim())])
    if slope != 1.0:
        y = F.leaky_relu(y, slope)
    if gain != 1.0:
        y = y * gain
    if clamp is not None:
        y = torch.clamp(y, -clamp, clamp)
    if residual is not None:
        y = torch.add(y, residual, alpha=residual_gain)
    return y

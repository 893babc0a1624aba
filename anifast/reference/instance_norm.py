"""Reference of `instance_norm`: plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_norm(x: Tensor, residual: Tensor | None, slope: float, eps: float) -> Tensor:
    """lrelu((x - mean) / sqrt(var + eps)) + residual, one rounding per operation. Arguments as the op checked them."""
    y = _normalised(x, eps)
    if slope == 0.0:
        y = F.relu(y)
    elif slope != 1.0:
        y = F.leaky_relu(y, slope)
    return y if residual is None else y + residual


def _normalised(x: Tensor, eps: float) -> Tensor:
    """In the fastest of PyTorch's own ways that keeps the memory layout.

    A batch norm of one image is its instance norm, and on the CPU batch norm has channels_last kernels where instance
    norm first copies to N,C,H,W.
    """
    if x.numel() == 0:
        return x.clone()
    last = x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]
    if last and x.device.type == "cpu" and x[0, 0].numel() > 1:
        images = [F.batch_norm(image, None, None, training=True, eps=eps) for image in x.split(1)]
        return images[0] if len(images) == 1 else torch.cat(images)
    return torch.instance_norm(x, None, None, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)

"""`torch_utils.ops.grid_sample_gradfix`: bilinear sampling with every order of gradient.

Older versions of PyTorch have the first order only. Sampling is linear in the image: with S for it, the gradient is S'
(its adjoint), and that of S' is S again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Whether `grid_sample` is more than PyTorch's own; the training loop switches it on.
enabled = False


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """Sample images bilinearly at `grid`; zeros outside, corners of the image at the corners of its corner pixels.

    Args:
        input: [N, C, H, W], floating point.
        grid: [N, rows, columns, 2], (x, y) from -1 to 1 across the image, in the input's dtype.

    Returns:
        [N, C, rows, columns]. A grid that needs a gradient too is sampled by gathering pixels, which is slower.
    """
    if not enabled or not torch.is_grad_enabled():
        return _sample(input, grid)
    if grid.requires_grad:
        return _gathered(input, grid)
    return _Sample.apply(input, grid) if input.requires_grad else _sample(input, grid)


def _sample(input: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _Sample(torch.autograd.Function):
    """S, for a grid that is a constant."""

    @staticmethod
    def forward(input: Tensor, grid: Tensor) -> Tensor:
        return _sample(input, grid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(grad, ctx.saved_tensors[0], ctx.size), None


class _Adjoint(torch.autograd.Function):
    """S', as PyTorch's gradient of S at any image."""

    @staticmethod
    def forward(grad: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        with torch.enable_grad():
            image = grad.new_zeros(size).requires_grad_()
            sampled = _sample(image, grid)
        return torch.autograd.grad(sampled, image, grad.detach())[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.Size], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Sample.apply(grad, ctx.saved_tensors[0]), None, None


def _gathered(input: Tensor, grid: Tensor) -> Tensor:
    """S in operations that PyTorch differentiates to any order with respect to the grid as well."""
    size = (input.shape[3], input.shape[2])
    at = [((grid[..., axis] + 1) * size[axis] - 1) / 2 for axis in (0, 1)]
    first = [position.detach().floor() for position in at]
    pixels, out = input.flatten(2), torch.zeros((), dtype=input.dtype, device=input.device)
    for dx in (0, 1):
        for dy in (0, 1):
            corner = (first[0] + dx, first[1] + dy)
            weight, inside = torch.ones_like(at[0]), torch.ones_like(at[0], dtype=torch.bool)
            index = torch.zeros_like(at[0], dtype=torch.long)
            for axis, step in ((1, dy), (0, dx)):
                part = at[axis] - first[axis]
                weight = weight * (part if step else 1 - part)
                inside = inside & (corner[axis] >= 0) & (corner[axis] < size[axis])
                index = index * size[axis] + corner[axis].nan_to_num().clamp(0, size[axis] - 1).long()
            wanted = index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
            values = pixels.gather(2, wanted).unflatten(2, grid.shape[1:3])
            # not a product with 0, which inf and NaN at a border survive
            out = out + torch.where(inside[:, None], values * weight[:, None], 0.0)
    return out

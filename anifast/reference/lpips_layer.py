"""Reference of `lpips_layer`: plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor


def lpips_layer(a: Tensor, b: Tensor, weight: Tensor | None, eps: float, eps_inside: bool, mean: bool) -> Tensor:
    """Weighted squared difference of normalised maps. Arguments as the op checked them; float32 or float64 out."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    squares = (normalised(a.to(wide), eps, eps_inside) - normalised(b.to(wide), eps, eps_inside)).square()
    if weight is not None:
        squares = squares * weight.to(wide)[:, None, None]
    out = squares.sum(1, keepdim=True)
    return out.mean((2, 3), keepdim=True) if mean else out


def normalised(x: Tensor, eps: float, eps_inside: bool) -> Tensor:
    """X over the norms of its pixels' vectors. A zero vector stays 0 and has no gradient (that of sqrt is infinite)."""
    square = x.square().sum(1, keepdim=True)
    some = square != 0
    safe = torch.where(some, square, 1.0)
    norm = (safe + eps).sqrt() if eps_inside else safe.sqrt() + eps
    return torch.where(some, x / norm, 0.0)

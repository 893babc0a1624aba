"""Reference of `gram`: plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gram(features: Sequence[Tensor], divisors: Sequence[int], folded: bool) -> Tensor:
    """One row per image: F F^T / divisor of each map F. Arguments as the op checked them; float32 or float64 out."""
    rows = []
    for x, divisor in zip(features, divisors, strict=True):
        wide = x.flatten(2).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        matrix = torch.bmm(wide, wide.mT) / divisor
        rows.append(upper(matrix) if folded else matrix.flatten(1))
    return torch.cat(rows, dim=1)


def upper(matrix: Tensor) -> Tensor:
    """N,C,C -> N,C(C+1)/2: the upper triangle row by row, as torch.triu_indices has it."""
    rows, columns = torch.triu_indices(*matrix.shape[1:], device=matrix.device)
    return matrix[:, rows, columns]

"""The losses of BlendGAN that are its own; R1 and path length are in `anifast.nn.regularizers`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projections: Tensor, temperature: float = 0.1) -> Tensor:
    """The normalised temperature-scaled cross entropy of two views of each picture (equation 2; Chen et al. 2020).

    Args:
        projections: [2N, D], N of first views, then N of the second views of the same pictures, N >= 1.
        temperature: tau, above 0.

    Returns:
        The loss of each row, [2N], in float32 (float64 from it): -log softmax over all other rows m of
        cos(p_j, p_m) / tau at the other view of its picture.

    Raises:
        ValueError: an odd number of rows, or none.
    """
    rows = len(projections)
    if projections.dim() != 2 or rows < 2 or rows % 2:
        raise ValueError(f"nt_xent: projections has shape {tuple(projections.shape)}, expected [2N, D] with N >= 1")
    with torch.autocast(projections.device.type, enabled=False):
        wide = projections if projections.dtype == torch.float64 else projections.float()
        unit = F.normalize(wide, dim=1)
        logits = (unit @ unit.t()) / temperature
        logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool, device=logits.device), -torch.inf)
        other = torch.arange(rows, device=logits.device).roll(rows // 2)
        return F.cross_entropy(logits, other, reduction="none")


def adversarial(logits: Tensor, real: bool) -> Tensor:
    """The logistic loss: mean softplus(-logits) of what is to be taken for real, softplus(logits) of what is not."""
    return F.softplus(-logits if real else logits).mean()

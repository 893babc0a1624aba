"""The losses of GANs N' Roses (specification of the system, section 4). All are computed in float32 from half types."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.nn.regularizers import r1_penalty


def _full(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def adversarial(logits: Sequence[Tensor], real: bool) -> Tensor:
    """Non-saturating loss, -log of the probability that the pictures are real (or not): a sum over heads.

    Each head counts by its mean over batch and positions of softplus(-logit), or of softplus(logit) if not `real`.

    Args:
        logits: of the heads, any shapes.
        real: what the pictures shall count as.
    """
    return torch.stack([F.softplus(-_full(x) if real else _full(x)).mean() for x in logits]).sum()


def gradient_penalty(logits: Sequence[Tensor], inputs: Tensor, reduction: str = "mean") -> Tensor:
    """R1 of each head by itself, summed: mean over the batch of |d head / d input|^2.

    Args:
        logits: of the heads.
        inputs: N,... that required a gradient when the logits were computed.
        reduction: what a head's gradient is taken of: the "mean" of its logits over batch and positions, as the authors
            do (N^2 and positions^2 times weaker), or the "sum".
    """
    scores = [_full(x).mean() if reduction == "mean" else _full(x).sum() for x in logits]
    return torch.stack([r1_penalty(score, inputs) for score in scores]).sum()


def style_consistency(codes: Tensor, kind: str = "variance") -> Tensor:
    """How much the style codes [N, D] of one person's poses differ: poses are content, and must not be style.

    Args:
        codes: of one batch.
        kind: "variance": the sum over D of the biased variance over the batch; "cosine": the sum of 1 - cos over all
            N^2 pairs.
    """
    codes = _full(codes)
    if kind == "variance":
        return codes.var(0, correction=0).sum()
    unit = F.normalize(codes, dim=1)
    return (1 - unit @ unit.t()).sum()


def distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """Mean over all elements of the squared ("mse") or absolute ("l1") difference."""
    return F.mse_loss(_full(x), _full(y)) if kind == "mse" else F.l1_loss(_full(x), _full(y))

"""Losses of Twin-GAN. Scores are logits of a discriminator, [N]; all losses are means."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops.modulated_conv2d import no_weight_gradients


def adversarial(scores: Tensor, kind: str) -> Tensor:
    """What the generator minimises of the scores of what it has painted.

    Args:
        scores: [N].
        kind: "dragan" and "gan": softplus(-score); "wgan", "wgan_gp" and "hinge": -score.
    """
    return F.softplus(-scores).mean() if kind in ("dragan", "gan") else -scores.mean()


def judging(real: Tensor, painted: Tensor, kind: str) -> Tensor:
    """What a discriminator minimises, without any penalty.

    Args:
        real: [N], scores of real pictures.
        painted: [M], of painted ones.
        kind: "dragan" and "gan": softplus(-real) + softplus(painted); "wgan" and "wgan_gp": painted - real; "hinge":
            relu(1 - real) + relu(1 + painted).
    """
    if kind in ("dragan", "gan"):
        return F.softplus(-real).mean() + F.softplus(painted).mean()
    if kind == "hinge":
        return F.relu(1.0 - real).mean() + F.relu(1.0 + painted).mean()
    return painted.mean() - real.mean()


def dragan_points(real: Tensor, noise: Tensor, share: Tensor, scaled_by: str = "variance") -> Tensor:
    """Points around real pictures: x + share * 0.5 * V * noise (Kodali et al. 2017, arXiv 1705.07215, as released).

    Args:
        real: N,3,H,W.
        noise: the same shape, uniform in [-1, 1].
        share: [N], uniform in [0, 1].
        scaled_by: V is the batch's "variance" over all its values, as in the author's code, or their "std".
    """
    spread = real.var(correction=0) if scaled_by == "variance" else real.std(correction=0)
    return real + share.view(-1, 1, 1, 1) * (0.5 * spread) * noise


def wgan_points(real: Tensor, painted: Tensor, share: Tensor) -> Tensor:
    """Points between real and painted pictures: x + share * (painted - x) (Gulrajani et al. 2017, arXiv 1704.00028)."""
    return torch.lerp(real, painted, share.view(-1, 1, 1, 1))


def gradient_penalty(judge: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Mean over points of (|gradient of the score| - 1)^2, the norm over all pixels of a point.

    Args:
        judge: gives the scores of pictures.
        points: N,3,H,W, float32 or float64.
    """
    points = points.detach().requires_grad_()
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(judge(points).sum(), points, create_graph=True)
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norms - 1.0).square().mean()


def recognition(logits: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy of each tag's logit with its score in [0, 1], over the pictures that have any tags.

    Args:
        logits: [N, tags].
        tags: the same shape; a row of zeros is a picture that nobody has tagged.
    """
    tagged = (tags.sum(1) > 0).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype), reduction="none").mean(1)
    return (each * tagged).sum() / tagged.sum().clamp(min=1.0)

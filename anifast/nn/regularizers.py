"""Penalties on gradients that StyleGAN2's family trains with: R1 for discriminators, path length for generators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anifast.ops.modulated_conv2d import no_weight_gradients


def r1_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean over the batch of the squared length of the gradient of sum(scores) (Mescheder et al. 2018, equation 9).

    The penalty has a gradient to the parameters behind `scores`; those of the inner gradient are not computed. Multiply
    it by gamma / 2, and by the interval where it is applied lazily.

    Args:
        scores: what a discriminator gave for `inputs`, any shape. One score for each sample is the usual penalty;
            systems that define it by a mean over the batch give that mean.
        inputs: [N, ...], which required a gradient when the scores were computed.

    Returns:
        A scalar.
    """
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, latents: Tensor, noise: Tensor | None = None) -> Tensor:
    """How far each image moves with its latents: sqrt(mean over slots of |d<image, y>/dw|^2), y = noise / sqrt(H W).

    Args:
        images: [N, C, H, W], computed from `latents`.
        latents: [N, L, D], W+ that required a gradient or came from what does.
        noise: in the shape of the images, N(0, 1); None draws it.

    Returns:
        [N], with a graph.
    """
    noise = torch.randn_like(images) if noise is None else noise
    directions = noise / math.sqrt(images.shape[2] * images.shape[3])
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad((images * directions).sum(), latents, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


class PathLength(nn.Module):
    """Path length regularisation (Karras et al. 2020, equation 4): mean of (length - a)^2.

    a is the moving average of mean lengths, the buffer `mean`, which each call moves on. Its newest part is not
    detached in the penalty, as in the authors' and rosinality's code. Multiply the penalty by its weight and interval.

    Args:
        decay: weight of the newest mean length in a.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, lengths: Tensor) -> Tensor:
        """Lengths [N] of `path_lengths` (of all processes) -> the penalty, a scalar."""
        mean = self.mean + self.decay * (lengths.mean() - self.mean)
        with torch.no_grad():
            self.mean.copy_(mean)  # in place, as a recorded CUDA graph needs it
        return (lengths - mean).square().mean()

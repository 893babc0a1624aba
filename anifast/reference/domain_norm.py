"""Reference of `domain_norm`: plain PyTorch operations, differentiable to any order by PyTorch itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def domain_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    renorm: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    statistics: tuple[Tensor, Tensor] | None,
    slope: float,
    pixel_norm: bool,
    eps: float,
    pixel_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and deviation of each group: arguments as `anifast.ops.domain_norm` has checked them.

    All is computed in float32 (float64 for float64) and rounded to x's type once.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    images, channels, rows, pixels = *x.shape[:2], gamma.shape[0], math.prod(x.shape[2:])

    def parts(values: Tensor, number: int) -> Tensor:  # a view in either layout
        return values.reshape(number, images // number, channels, pixels)

    def each(value: Tensor) -> Tensor:  # [rows or groups, C], to go with parts
        return value[:, None, :, None]

    def for_rows(value: Tensor) -> Tensor:  # [groups, C] -> [rows, C]
        return value if rows == groups else value.repeat_interleave(rows // groups, 0)

    values = parts(x.to(wide), groups)
    if statistics is not None:
        mean, std = (value.detach() for value in statistics)
        centred = values - each(mean)
    elif images * pixels == 0:
        mean, std = values.new_zeros(groups, channels), values.new_full((groups, channels), math.sqrt(eps))
        centred = values
    else:  # var_mean takes several times as long on a CPU, and its batch norm does not tell the deviation
        mean = values.mean((1, 3))
        centred = values - each(mean)
        std = (centred.square().mean((1, 3)) + eps).sqrt()
    scale, shift = gamma.to(wide), beta.to(wide)
    if renorm is None:
        scale = scale / for_rows(std)
    else:
        r, d = correction(mean.detach(), std.detach(), *renorm)
        scale, shift = scale * for_rows(r / std), scale * for_rows(d) + shift
    out = torch.addcmul(each(shift), parts(centred, rows), each(scale))
    if slope != 1.0:
        out = F.leaky_relu(out, slope)
    if pixel_norm:
        out = out * (out.square().mean(2, keepdim=True) + pixel_eps).rsqrt()
    return out.reshape(x.shape).to(x.dtype), mean.detach(), std.detach()


def correction(
    mean: Tensor, std: Tensor, mean_memory: Tensor, std_memory: Tensor, weights: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """r and d of batch renormalisation, [groups, C]: what brings the batch's statistics to those remembered."""
    least, most, furthest = limits.detach().unbind()
    missing = 1.0 - weights.detach()
    usual_mean = mean_memory.detach() + missing[:, :1] * mean
    usual_std = std_memory.detach() + missing[:, 1:] * std
    r = torch.clamp(std / usual_std, least, most)
    d = torch.clamp((mean - usual_mean) / usual_std, -furthest, furthest)
    return r, d

"""Instance norm, leaky ReLU and residual sum: one pass for the statistics, one for the rest.

With the mean and 1 / sqrt(variance + eps) = r of an image's channel over all its pixels,

    forward    y = (x - mean) * r,  out = lrelu(y) + residual
    backward   h = g * lrelu'(y),   gx = r * (h - mean(h) - y * mean(h * y))

Forward leaves x and two numbers a channel behind; y, and with it the side of the kink, is computed again from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anifast import backends
from anifast.ops import _common
from anifast.reference.instance_norm import instance_norm as _reference

_FORWARD = _common.define("instance_norm(Tensor x, Tensor? residual, float slope, float eps) -> (Tensor, Tensor)")
_BACKWARD = _common.define("instance_norm_backward(Tensor grad, Tensor x, Tensor stats, float slope) -> Tensor")


@torch.library.register_fake(_FORWARD)
def _fake_forward(x: Tensor, residual: Tensor | None, slope: float, eps: float) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=_common.memory_format(x.dim(), _common.is_channels_last(x)))
    return out, x.new_empty((2, x.shape[0], x.shape[1]), dtype=_common.wide(x))


@torch.library.register_fake(_BACKWARD)
def _fake_backward(grad: Tensor, x: Tensor, stats: Tensor, slope: float) -> Tensor:
    return torch.empty_like(x, memory_format=_common.memory_format(x.dim(), _common.is_channels_last(x)))


backends.register("instance_norm", "native", native_devices=("cpu",))


def instance_norm(
    x: Tensor,
    *,
    slope: float = 1.0,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """lrelu((x - mean) / sqrt(var + eps)) + residual, mean and biased variance over the pixels of an image's channel.

    Instance normalisation without affine part or running statistics (Ulyanov et al. 2016, arXiv 1607.08022, equation 3)
    with what follows it in CycleGAN's networks. The gradient is exact; second order, forward mode (jvp) and the
    transforms of torch.func on the reference only, which the latter two take by themselves.

    Args:
        x: floating point, rank >= 3, any size including 0; contiguous or channels_last is kept in the output.
        slope: factor of negative values: 1 is linear, 0 is ReLU. At 0 the derivative is that of the negative side.
        residual: the shape and dtype of x, added behind the activation.
        eps: added to the variance.
        backend: "reference" or "native" (CPU only so far); None chooses (see `anifast.backends`).

    Returns:
        A new tensor with the shape, dtype and layout of x. Half types are computed in float32 and rounded once.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a wrong rank, size or device, or a negative eps.
        BackendError: an explicitly chosen backend cannot run here.
    """
    _common.check_float("instance_norm", "x", x)
    if x.dim() < 3:
        raise ValueError(f"instance_norm: x must have rank 3 or more, got shape {tuple(x.shape)}")
    if not eps >= 0.0:
        raise ValueError(f"instance_norm: eps must not be negative, got {eps}")
    if residual is not None:
        residual = _common.like("instance_norm", "residual", residual, x, float32_too=False)
        if residual.shape != x.shape:
            raise ValueError(
                f"instance_norm: residual has shape {tuple(residual.shape)}, expected {tuple(x.shape)} as x"
            )
    if _common.choose("instance_norm", x, backend) == "reference":
        return _reference(x, residual, slope, eps)
    out: Tensor = torch.ops.anifast.instance_norm.default(_common.dense(x), residual, slope, eps)[0]
    return out

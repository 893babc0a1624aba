"""Reference of `modulated_conv2d` in its two forms, differentiable to any order by PyTorch itself.

`grouped` is the definition: every sample has weights of its own, W'_boi = gain * W_oi * s_bi, normalised over inputs
and taps, in one grouped convolution. `scaled` moves what depends on the sample out of the weights: the style scales the
input, the normalisation scales the output, and one convolution serves the batch. They agree up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.reference.bias_lrelu import bias_lrelu
from anifast.reference.upfirdn2d import upfirdn2d


def up_padding(taps: int, size: int) -> tuple[int, int]:
    """(before, behind) of the filter of `taps` that follows a transposed convolution by 2 under a kernel of `size`."""
    spare = taps - 2 - (size - 1)
    return (spare + 1) // 2 + 1, spare // 2 + 1


def down_padding(taps: int, size: int) -> tuple[int, int]:
    """(before, behind) of the filter of `taps` that precedes a convolution with stride 2 under a kernel of `size`."""
    spare = taps - 2 + (size - 1)
    return (spare + 1) // 2, spare // 2


def fir(x: Tensor, kernel: Tensor, padding: tuple[int, int, int, int], gain: float) -> Tensor:
    """The filter alone, `kernel` of one axis or two."""
    return upfirdn2d(
        x, kernel, (1, 1), (1, 1), padding, False, gain, None, None, None, None, None, 1.0, 1.0, None
    )  # fmt: skip


def demodulation(weight: Tensor, style: Tensor, eps: float) -> Tensor:
    """[N, O]: 1 / sqrt(sum over inputs and taps of (weight * style)^2 + eps)."""
    return torch.rsqrt(F.linear(style.square(), weight.square().sum((2, 3))) + eps)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    weight_gain: float,
    demodulate: bool,
    up: int,
    down: int,
    padding: int,
    kernel: Tensor,
    add: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    slope: float,
    gain: float,
    clamp: float | None,
    eps: float,
    form: str,
) -> Tensor:
    """Modulated convolution and its epilogue, one rounding per operation.

    Arguments as `anifast.ops.modulated_conv2d` has checked them, all in x's dtype: `kernel` is the FIR filter of sum 1,
    `slope` and `gain` are 1 where there is no activation, `form` is "grouped" or "scaled".
    """
    batch, size, factor = x.shape[0], (weight.shape[2], weight.shape[3]), None
    if form == "grouped" and batch > 0:
        own = (weight_gain * weight)[None] * style[:, None, :, None, None]
        if demodulate:
            own = own * torch.rsqrt(own.square().sum((2, 3, 4), keepdim=True) + eps)
        if up > 1:
            own = own.transpose(1, 2)
        y, filters, groups = x.reshape(1, -1, *x.shape[2:]), own.reshape(-1, *own.shape[2:]), batch
    else:
        style = style * weight_gain
        y, filters, groups = x * style[:, :, None, None], (weight.transpose(0, 1) if up > 1 else weight), 1
        factor = demodulation(weight, style, eps)[:, :, None, None] if demodulate else None
    taps = (kernel.shape[0], kernel.shape[-1])
    if up > 1:
        y = F.conv_transpose2d(y, filters, stride=up, groups=groups)
        y = fir(y, kernel, up_padding(taps[1], size[1]) + up_padding(taps[0], size[0]), float(up * up))
    elif down > 1:
        y = fir(y, kernel, down_padding(taps[1], size[1]) + down_padding(taps[0], size[0]), 1.0)
        y = F.conv2d(y, filters, stride=down, groups=groups)
    else:
        y = F.conv2d(y, filters, padding=padding, groups=groups)
    if factor is not None:
        y = y * factor
    y = y.reshape(batch, weight.shape[0], *y.shape[2:])
    return bias_lrelu(y, bias, noise, noise_strength, add, 1, slope, gain, clamp, 1.0)


def epilogue_grad(
    grad: Tensor, out: Tensor, scale: Tensor | None, bias: Tensor | None, noise: Tensor | None,
    strength: Tensor | None, slope: float, gain: float, clamp: float | None, want_scale: bool, want_bias: bool,
    want_strength: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What backward does first: (gradient of the sums, of the scale, of the bias, of the noise's strength).

    From the output alone, in float32 (float64); needs slope >= 0 and gain > 0. What is not wanted is empty.
    """
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    g, y = grad.to(wide), out.to(wide)
    gz = torch.where(y > 0, g * gain, g * (gain * slope))
    if clamp is not None:
        gz = torch.where(y.abs() < torch.tensor(clamp, dtype=out.dtype), gz, 0.0)
    none = gz.new_empty(0)
    gbias, gstrength, gscale = (gz.sum((0, 2, 3)) if want_bias else none), none, none
    if want_strength:
        assert noise is not None
        gstrength = (gz * noise).sum().reshape(1)
    if want_scale:
        assert scale is not None
        c = torch.where(y > 0, y / gain, y / (gain * slope if slope else 1.0))
        if noise is not None:
            c = c - noise.to(wide) * (1.0 if strength is None else strength.to(wide))
        if bias is not None:
            c = c - bias.to(wide)[:, None, None]
        gscale = (gz * c).sum((2, 3)) / scale.to(wide)
    gc = gz if scale is None else gz * scale.to(wide)[:, :, None, None]
    return gc.to(grad.dtype), gscale, gbias, gstrength


def style_grad(grad: Tensor, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """What backward does last: (style * grad, sum over pixels of x * grad in float32 or float64)."""
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    gx = (grad.to(wide) * style.to(wide)[:, :, None, None]).to(grad.dtype)
    return gx, (grad.to(wide) * x.to(wide)).sum((2, 3))

"""The layers of StyleGAN2 (Karras et al. 2020, config F), with the parameter names of rosinality's implementation.

Weights are stored unscaled, drawn from N(0, 1): the factor of an equalised learning rate (Karras et al. 2018, section
4.1) is applied where they are used. FIR filters are constants that state dicts carry under `kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anifast.nn import winograd
from anifast.ops.bias_lrelu import bias_lrelu
from anifast.ops.modulated_conv2d import modulated_conv2d
from anifast.ops.upfirdn2d import upfirdn2d

_SQRT2 = math.sqrt(2.0)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on x's device: what reads more weights than pixels gains nothing from half types."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def lay_out(net: nn.Module) -> None:
    """Put the weights of plain convolutions into channels_last, the layout of the maps that they meet on a GPU."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8), for N,C and N,C,H,W."""

    def forward(self, x: Tensor) -> Tensor:
        """N,C,... -> the same shape, length sqrt(C) along C."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate: x W^T m / sqrt(in) + m b, and sqrt 2 * lrelu of it with `act`.

    Args:
        in_features: in.
        out_features: out.
        bias_init: the bias b begins with this.
        lr_mul: m, the factor of the learning rate; W is drawn from N(0, 1) / m.
        act: whether an activation follows.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_mul: float = 1.0, act: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.scale, self.lr_mul, self.act = lr_mul / math.sqrt(in_features), lr_mul, act

    def forward(self, x: Tensor) -> Tensor:
        """N,in -> N,out."""
        if x.dim() != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(f"EqualLinear: x has shape {tuple(x.shape)}, expected [N, {self.weight.shape[1]}]")
        # both factors belong to the product, so that no scaled copy of the weight is made
        y = torch.addmm(self.bias, x, self.weight.t(), beta=self.lr_mul, alpha=self.scale)
        return bias_lrelu(y) if self.act else y


class EqualConv2d(nn.Module):
    """Convolution with an equalised learning rate: the weight is used times `scale` = 1 / sqrt(in * k * k).

    Args:
        in_channels: in.
        out_channels: out.
        kernel_size: k.
        stride: of the convolution.
        padding: of the convolution.
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """N,in,H,W -> N,out,H',W'."""
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class FusedLeakyReLU(nn.Module):
    """sqrt 2 * lrelu(x + b) with slope 0.2 and a bias b for each channel (`anifast.ops.bias_lrelu`).

    Args:
        channels: of x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, **epilogue: Any) -> Tensor:
        """N,C,... -> the same shape; `epilogue` are keywords of bias_lrelu."""
        return bias_lrelu(x, self.bias, **epilogue)

    def scaled(self, x: Tensor, scale: float, *, gain: float = _SQRT2, **epilogue: Any) -> Tensor:
        """The same for scale * x, as lrelu(s x + b) = s lrelu(x + b / s) for s > 0: no weight needs to be scaled."""
        return bias_lrelu(x, self.bias / scale, gain=gain * scale, **epilogue)


class _Filter(nn.Module):
    """A FIR filter of sum factor^2 along both axes.

    State dicts carry it as the constant `kernel` [k, k]. A file may lack it; one with another filter is refused.

    Args:
        blur_kernel: k numbers, of any sum.
        factor: of the up-sampling that it serves.
    """

    kernel: Tensor
    taps: Tensor

    def __init__(self, blur_kernel: Sequence[float], factor: int = 1) -> None:
        super().__init__()
        self.numbers = tuple(number / sum(blur_kernel) for number in blur_kernel)
        taps = torch.tensor(self.numbers, dtype=torch.float32)
        self.gain = float(factor**2)
        self.register_buffer("kernel", torch.outer(taps, taps) * self.gain)
        self.register_buffer("taps", taps, persistent=False)  # one axis of sum 1: what the ops take
        self.register_load_state_dict_pre_hook(_check_kernel)


def _check_kernel(
    module: _Filter,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    key = prefix + "kernel"
    taps = torch.tensor(module.numbers, dtype=torch.float32, device="cpu")
    expected = torch.outer(taps, taps) * module.gain
    if module.kernel.is_meta:  # a network that was built without memory and is given all of it now
        module.kernel, module.taps = expected.clone(), taps
    stored = state_dict.get(key, module.kernel)
    shape = tuple(stored.shape)
    # as far as bfloat16 tells filters apart
    if shape != tuple(expected.shape) or not torch.allclose(stored.float().cpu(), expected, rtol=2**-8, atol=1e-6):
        found = f"shape {list(shape)} and sum {float(stored.sum()):.4g}"
        error_msgs.append(
            f"{key} is another FIR filter ({found}) than this network's (shape {list(expected.shape)} and sum "
            f"{float(expected.sum()):.4g}); build the network with the blur_kernel that the file was trained with."
        )
    state_dict[key] = module.kernel


class Blur(_Filter):
    """The FIR filter alone.

    Args:
        blur_kernel: k numbers, of any sum.
        pad: zeros (before, behind) along both axes.
        factor: of the up-sampling before it: the gain is factor^2.
    """

    def __init__(self, blur_kernel: Sequence[float], pad: tuple[int, int], factor: int = 1) -> None:
        super().__init__(blur_kernel, factor)
        self.pad = pad

    def forward(self, x: Tensor, gain: float = 1.0, down: int = 1) -> Tensor:
        """N,C,H,W -> N,C,(H + pads - k) // down + 1,...: `gain` times the filtered x, every `down`-th pixel."""
        return upfirdn2d(x, self.taps, down=down, padding=self.pad, gain=self.gain * gain)


class Upsample(_Filter):
    """Up-sampling by 2 with a FIR filter.

    Args:
        blur_kernel: k numbers, of any sum.
    """

    def __init__(self, blur_kernel: Sequence[float]) -> None:
        super().__init__(blur_kernel, 2)
        spare = len(blur_kernel) - 2
        self.pad = ((spare + 1) // 2 + 1, spare // 2)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """N,C,H,W -> N,C,2H,2W, plus `add` of that shape, in one pass."""
        return upfirdn2d(x, self.taps, up=2, padding=self.pad, gain=self.gain, add=add)


class ConvLayer(nn.Sequential):
    """[blur,] convolution [, bias and leaky ReLU]: the layer of discriminators and encoders.

    Stride 1 keeps the size; down-sampling blurs and then has stride 2, so that H, W become H // 2, W // 2. A 1x1
    convolution that down-samples has its blur calculated at the kept pixels alone, which is the same.

    Args:
        in_channels: in.
        out_channels: out.
        kernel_size: k, odd.
        down: whether it down-samples.
        bias: whether the convolution has a bias where no activation follows (logits have one, skips have none).
        act: whether an activation follows; its bias is the layer's.
        blur_kernel: of the blur.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16 (Karras et al. 2020b, their code).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        down: bool = False,
        bias: bool = True,
        act: bool = True,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        clamp: float | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        if down:
            spare = len(blur_kernel) - 2 + kernel_size - 1
            layers.append(Blur(blur_kernel, ((spare + 1) // 2, spare // 2)))
        stride, padding = (2, 0) if down else (1, kernel_size // 2)
        layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride, padding, bias and not act))
        if act:
            layers.append(FusedLeakyReLU(out_channels))
        super().__init__(*layers)
        self.down, self.act, self.clamp = down, act, clamp

    @property
    def conv(self) -> EqualConv2d:
        """The convolution among the children, whose names are numbers."""
        conv = self[1 if self.down else 0]
        assert isinstance(conv, EqualConv2d)
        return conv

    @property
    def blur(self) -> Blur | None:
        """The blur among the children, where it down-samples."""
        return cast(Blur, self[0]) if self.down else None

    def forward(
        self, x: Tensor, *, gain: float = _SQRT2, residual: Tensor | None = None, residual_gain: float = 1.0
    ) -> Tensor:
        """N,in,H,W -> N,out,H',W'; with an activation `gain` is its factor and residual_gain * residual is added."""
        conv = self.conv
        if x.dim() != 4 or x.shape[1] != conv.weight.shape[1]:
            raise ValueError(
                f"ConvLayer: x has shape {tuple(x.shape)}, expected [N, {conv.weight.shape[1]}, height, width]"
            )
        blur = self.blur
        if blur is not None:
            if min(x.shape[2], x.shape[3]) < 2:
                raise ValueError(
                    f"ConvLayer: {x.shape[2]} x {x.shape[3]} pixels cannot be halved, got x {tuple(x.shape)}"
                )
            # the blur's factor carries the weight's: no scaled copy of the weight is made
            if conv.weight.shape[2] == 1:
                x = F.conv2d(blur(x, conv.scale, down=2), conv.weight, conv.bias)
            elif conv.bias is None and blur.pad == (2, 2) and winograd.is_faster_halving(x, conv.weight, blur.taps):
                x = winograd.halve(x, conv.weight, blur.taps, blur.gain * conv.scale)
            else:
                x = F.conv2d(blur(x, conv.scale), conv.weight, conv.bias, stride=2)
        clamp = None if self.clamp is None else self.clamp * gain / _SQRT2
        if not self.down:
            if self.act and conv.weight.shape[2] == 3 and winograd.is_faster(x, conv.weight):
                bias = self[-1].get_parameter("bias")
                x = winograd.convolve(x, conv.weight, weight_gain=conv.scale, bias=bias, gain=gain, clamp=clamp)
                return x if residual is None else torch.add(x, residual, alpha=residual_gain)
            half = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            if self.act and half != torch.float16:  # which unscaled sums of products may leave
                return cast(FusedLeakyReLU, self[-1]).scaled(
                    F.conv2d(x, conv.weight, None, 1, conv.padding),
                    conv.scale,
                    gain=gain,
                    clamp=clamp,
                    residual=residual,
                    residual_gain=residual_gain,
                )
            x = conv(x)
        if not self.act:
            return x
        return self[-1](x, gain=gain, clamp=clamp, residual=residual, residual_gain=residual_gain)


class ResBlock(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / sqrt 2, of which conv2 and the 1x1 skip may down-sample.

    Args:
        in_channels: in.
        out_channels: out; the skip is the identity where it is `in_channels` and nothing is down-sampled.
        down: whether the block down-samples.
        blur_kernel: of the blurs.
        clamp: of the activations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        down: bool = True,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3, clamp=clamp)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, down=down, blur_kernel=blur_kernel, clamp=clamp)
        self.skip = None
        if down or in_channels != out_channels:
            self.skip = ConvLayer(
                in_channels, out_channels, 1, down=down, bias=False, act=False, blur_kernel=blur_kernel
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """N,in,H,W -> N,out,H',W'."""
        skip = x if self.skip is None else self.skip(x)
        # the activation's sqrt 2 is gone with the sum's 1 / sqrt 2
        return self.conv2(self.conv1(x), gain=1.0, residual=skip, residual_gain=1.0 / _SQRT2)


def _deviation(x: Tensor, group: int | None) -> Tensor:
    """[groups, ...], of float32 at least: deviation within each group; sample n is in group n mod groups."""
    batch = x.shape[0]
    size = batch if group is None else next(n for n in range(min(batch, group), 0, -1) if batch % n == 0)
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.sqrt(wide.unflatten(0, (size, batch // size)).var(0, correction=0) + 1e-8)


def minibatch_std(x: Tensor, group: int | None = 4) -> Tensor:
    """Append one channel that tells how much the samples of a batch differ (Karras et al. 2018, section 3).

    It is the mean over channels and pixels of the standard deviation within a group of samples, sqrt(var + 1e-8), the
    same for all of the group. A batch of one has 1e-4.

    Args:
        x: [N, C, ...], N may be 0.
        group: the largest divisor of N up to this is the size of a group; None takes the whole batch.

    Returns:
        [N, C + 1, ...]; the statistic is computed in float32 from half types.
    """
    if x.shape[0] == 0:
        return torch.cat([x, x[:, :1]], dim=1)
    mean = _deviation(x, group).flatten(1).mean(1).to(x.dtype)
    mean = mean.repeat(x.shape[0] // mean.shape[0]).reshape(-1, *[1] * (x.dim() - 1))
    return torch.cat([x, mean.expand(-1, 1, *x.shape[2:])], dim=1)


def batch_std(x: Tensor) -> Tensor:
    """[N, ...] -> the same shape: sqrt(var + 1e-8) of each feature over the batch, for every sample of it."""
    if x.shape[0] == 0:
        return x
    return _deviation(x, None).to(x.dtype).expand_as(x)


class ModulatedConv2d(nn.Module):
    """Modulated convolution (`anifast.ops.modulated_conv2d`) with the affine layer of its style.

    Args:
        in_channels: in.
        out_channels: out.
        kernel_size: k, odd.
        style_dim: width of w.
        demodulate: whether weights are normalised.
        up: whether it up-samples: a transposed convolution with stride 2, then a blur.
        blur_kernel: of that blur.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        up: bool = False,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate, self.up = demodulate, 2 if up else 1
        self.blur = _Filter(blur_kernel, 2) if up else None  # the op pads for it
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor | None = None, *, style: Tensor | None = None, **epilogue: Any) -> Tensor:
        """N,in,H,W -> N,out,H',W'.

        Args:
            x: maps.
            w: [N, style_dim], or None where there is a `style`.
            style: [N, in], what `modulate` has made of w.
            epilogue: keywords of the op: bias, noise, noise_strength, act, clamp.

        Raises:
            ValueError: there is neither or both of w and style; a wrong shape.
        """
        if (w is None) == (style is None):
            raise ValueError("ModulatedConv2d: give either w or style")
        if w is not None:
            style = modulate([self.modulation], w)[0]
        return modulated_conv2d(
            x,
            self.weight[0],
            style,  # type: ignore[arg-type]
            weight_gain=self.scale,
            demodulate=self.demodulate,
            up=self.up,
            fir=(1,) if self.blur is None else self.blur.taps,
            **epilogue,
        )


def modulate(layers: Sequence[EqualLinear], w: Tensor, slots: Sequence[int] | None = None) -> list[Tensor]:
    """The styles of many layers in one matrix product.

    Gradients flow into each layer's own parameters. The product is in float32 under autocast.

    Args:
        layers: the affine layers, of one input width, with lr_mul 1.
        w: [N, style_dim] for all layers, or [N, L, style_dim], one for each of L slots.
        slots: of the layers, for the latter: a batched product, in which narrower layers are filled up with zeros.

    Returns:
        [N, out] for each layer.

    Raises:
        ValueError: w has another width or rank.
    """
    width, scale = layers[0].weight.shape[1], layers[0].scale
    if w.dim() != (2 if slots is None else 3) or w.shape[-1] != width:
        rows = "N" if slots is None else "N, slots"
        raise ValueError(f"modulate: w has shape {tuple(w.shape)}, expected [{rows}, {width}]")
    sizes = [layer.weight.shape[0] for layer in layers]
    with without_autocast(w):
        w = w.to(layers[0].weight.dtype)
        if slots is None:
            weight = torch.cat([layer.weight for layer in layers])
            bias = torch.cat([layer.bias for layer in layers])
            return list(torch.addmm(bias, w, weight.t(), alpha=scale).split(sizes, dim=1))
        weight = pad_sequence([layer.weight for layer in layers], batch_first=True)
        bias = pad_sequence([layer.bias for layer in layers], batch_first=True)
        chosen = torch.stack([w[:, slot] for slot in slots])
        styles = torch.baddbmm(bias[:, None], chosen, weight.transpose(1, 2), alpha=scale)
        return [style[:, :size] for style, size in zip(styles, sizes, strict=True)]


class NoiseInjection(nn.Module):
    """Holds the strength of a layer's noise, `weight` [1], which begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU: the layer of the synthesis network, in one op.

    Args:
        in_channels: in.
        out_channels: out.
        kernel_size: k, odd.
        style_dim: width of w.
        up: whether it up-samples.
        blur_kernel: of the blur behind the up-sampling.
        noise: whether noise is added.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        up: bool = False,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        noise: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel_size, style_dim, up=up, blur_kernel=blur_kernel)
        self.noise = NoiseInjection() if noise else None
        self.activate = FusedLeakyReLU(out_channels)
        self.clamp = clamp

    def forward(
        self, x: Tensor, w: Tensor | None = None, noise: Tensor | None = None, *, style: Tensor | None = None
    ) -> Tensor:
        """N,in,H,W -> N,out,H',W'.

        Args:
            x: maps.
            w: [N, style_dim], or None where there is a `style`.
            noise: [N or 1, 1, H', W']; None draws it, for each sample its own. A layer without noise takes none.
            style: [N, in], what `modulate` has made of w.

        Raises:
            ValueError: noise for a layer that has none; neither or both of w and style; a wrong shape.
        """
        strength = None
        if x.dim() != 4:
            raise ValueError(f"StyledConv: x must have rank 4 (N,C,H,W), got shape {tuple(x.shape)}")
        if self.noise is not None:
            strength = self.noise.weight
            if noise is None:
                rows, columns = x.shape[2] * self.conv.up, x.shape[3] * self.conv.up
                noise = torch.randn(x.shape[0], 1, rows, columns, dtype=x.dtype, device=x.device)
        elif noise is not None:
            raise ValueError("StyledConv: noise is given to a layer that was built with noise=False")
        return self.conv(
            x, w, style=style, bias=self.activate.bias, noise=noise, noise_strength=strength, clamp=self.clamp
        )


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to 3 channels without demodulation, bias, and the up-sampled image so far.

    Args:
        in_channels: in.
        style_dim: width of w.
        up: whether there is an image so far.
        blur_kernel: of its up-sampling.
        clamp: what is added ends up in [-clamp, clamp].
    """

    def __init__(
        self,
        in_channels: int,
        style_dim: int,
        *,
        up: bool = True,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = Upsample(blur_kernel) if up else None
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.clamp = clamp

    def forward(
        self, x: Tensor, w: Tensor | None = None, skip: Tensor | None = None, *, style: Tensor | None = None
    ) -> Tensor:
        """N,in,H,W -> N,3,H,W, in float32 from half types.

        Args:
            x: maps.
            w: [N, style_dim], or None where there is a `style`.
            skip: [N, 3, H / 2, W / 2], the image so far.
            style: [N, in], what `modulate` has made of w.

        Raises:
            ValueError: a skip is missing or too much; neither or both of w and style; a wrong shape.
        """
        if (skip is None) != (self.upsample is None):
            raise ValueError("ToRGB: skip is given exactly where the layer was built with up=True")
        rgb: Tensor = self.conv(x, w, style=style, bias=self.bias.flatten(), act=False, clamp=self.clamp)
        rgb = rgb if rgb.dtype == torch.float64 else rgb.float()  # a sum over all sizes
        return rgb if self.upsample is None else self.upsample(skip, add=rgb)

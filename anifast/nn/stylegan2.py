"""Generator and discriminator of StyleGAN2 (Karras et al. 2020, config F), with rosinality's parameter names.

Published checkpoints in its format load (`anifast.nn.stylegan2_checkpoints`). `Synthesis` and `DiscriminatorTrunk` are
the parts that other systems build on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anifast.nn.stylegan2_layers import (
    ConvLayer,
    EqualLinear,
    PixelNorm,
    ResBlock,
    StyledConv,
    ToRGB,
    minibatch_std,
    modulate,
    without_autocast,
)


def channels(side: int, multiplier: float = 2, base: int = 512) -> int:
    """Channels of the maps with `side` pixels: `base` up to 32, above them base * 32 / side * multiplier."""
    return base if side <= 32 else int(base * 32 / side * multiplier)


def stages(size: int, start: int = 4) -> list[int]:
    """The sides behind each doubling: 8, 16, ... size.

    Raises:
        ValueError: size is not start * 2^n with n >= 1.
    """
    count = int(math.log2(size / start)) if size > start else 0
    if count < 1 or start * 2**count != size:
        raise ValueError(f"size must be {start} times a power of 2 and at least {2 * start}, got {size}")
    return [start * 2 ** (k + 1) for k in range(count)]


class Synthesis(nn.Module):
    """What paints an image from maps of `start` pixels under one style or one for each slot: the base of generators.

    Of the L = 2 log2(size / start) + 2 slots, conv1 has 0, to_rgb1 1, convs.2k (which doubles the size) 2k + 1,
    convs.2k+1 2k + 2 and to_rgbs.k 2k + 3.
    """

    conv1: StyledConv
    to_rgb1: ToRGB
    convs: nn.ModuleList
    to_rgbs: nn.ModuleList

    def add_synthesis(
        self,
        size: int,
        style_dim: int,
        *,
        start: int = 4,
        channel_multiplier: float = 2,
        base_channels: int = 512,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        noise: bool = True,
        clamp: float | None = None,
    ) -> None:
        """Build conv1, to_rgb1, convs and to_rgbs, at the place among a subclass's parameters where it is called."""
        sides = stages(size, start)
        width = channels(start, channel_multiplier, base_channels)
        self.conv1 = StyledConv(width, width, 3, style_dim, noise=noise, clamp=clamp)
        self.to_rgb1 = ToRGB(width, style_dim, up=False, clamp=clamp)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for side in sides:
            out = channels(side, channel_multiplier, base_channels)
            self.convs.append(
                StyledConv(width, out, 3, style_dim, up=True, blur_kernel=blur_kernel, noise=noise, clamp=clamp)
            )
            self.convs.append(StyledConv(out, out, 3, style_dim, noise=noise, clamp=clamp))
            self.to_rgbs.append(ToRGB(out, style_dim, blur_kernel=blur_kernel, clamp=clamp))
            width = out

    @property
    def n_latent(self) -> int:
        """L, the number of slots."""
        return len(self.convs) + 2

    @property
    def num_layers(self) -> int:
        """L - 1, the number of layers with noise."""
        return len(self.convs) + 1

    def modulations(self) -> list[EqualLinear]:
        """The affine layers in the order of use: conv1, to_rgb1, then two of convs and one of to_rgbs for each size."""
        layers: list[StyledConv | ToRGB] = [self.conv1, self.to_rgb1]
        for k, to_rgb in enumerate(self.to_rgbs):
            layers += [self.convs[2 * k], self.convs[2 * k + 1], to_rgb]  # type: ignore[list-item]
        return [layer.conv.modulation for layer in layers]

    def slots(self) -> list[int]:
        """The slot of each of `modulations`."""
        return [0, 1, *(2 * k + n for k in range(len(self.to_rgbs)) for n in (1, 2, 3))]

    def synthesize(
        self,
        x: Tensor,
        styles: Sequence[Tensor],
        noise: Sequence[Tensor | None] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """N,C,start,start -> the image N,3,size,size, not limited to a range.

        Args:
            x: the maps.
            styles: of `modulations`, what `modulate` gives.
            noise: of conv1 and each of convs; None, or a None in it, is drawn.
            recompute: keep maps and image of each size only for the gradient, and compute what is between them again.

        Raises:
            ValueError: another number of noise maps, or wrong shapes.
        """
        noise = [None] * self.num_layers if noise is None else noise
        if len(noise) != self.num_layers:
            raise ValueError(
                f"noise has {len(noise)} maps, expected {self.num_layers}: one for conv1 and each of convs"
            )
        x = self.conv1(x, noise=noise[0], style=styles[0])
        image: Tensor = self.to_rgb1(x, style=styles[1])
        for k in range(len(self.to_rgbs)):
            given = (k, x, image, styles[3 * k + 2 : 3 * k + 5], noise[2 * k + 1 : 2 * k + 3])
            if recompute and torch.is_grad_enabled():
                noisy = self.conv1.noise is not None and any(one is None for one in given[4])
                x, image = checkpoint(self._doubled, *given, use_reentrant=False, preserve_rng_state=noisy)
            else:
                x, image = self._doubled(*given)
        return image

    def _doubled(
        self, k: int, x: Tensor, image: Tensor, styles: Sequence[Tensor], noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Maps and image after doubling number k."""
        x = self.convs[2 * k](x, noise=noise[0], style=styles[0])
        x = self.convs[2 * k + 1](x, noise=noise[1], style=styles[1])
        return x, self.to_rgbs[k](x, skip=image, style=styles[2])


class ConstantInput(nn.Module):
    """The learned maps that synthesis begins with, `input` [1, C, side, side]."""

    def __init__(self, width: int, side: int = 4) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, width, side, side))

    def forward(self, batch: int) -> Tensor:
        """[batch, C, side, side]."""
        return self.input.expand(batch, -1, -1, -1)


class Generator(Synthesis):
    """The generator: a mapping network and a synthesis network, from z or w to images.

    Under autocast mapping and styles are computed in float32, and so is the image.

    Args:
        size: of the images, a power of 2 from 8.
        style_dim: width of z and w.
        n_mlp: layers of the mapping network.
        channel_multiplier: of the channels above 32 x 32 (2 is config F).
        blur_kernel: of every up-sampling.
        lr_mlp: factor of the mapping network's learning rate.
        base_channels: channels up to 32 x 32.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        n_mlp: int = 8,
        channel_multiplier: float = 2,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        lr_mlp: float = 0.01,
        *,
        base_channels: int = 512,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.size, self.style_dim = size, style_dim
        mapping = [EqualLinear(style_dim, style_dim, lr_mul=lr_mlp, act=True) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = ConstantInput(base_channels)
        self.add_synthesis(
            size,
            style_dim,
            channel_multiplier=channel_multiplier,
            base_channels=base_channels,
            blur_kernel=blur_kernel,
            clamp=clamp,
        )
        #: Whether maps of each size only are kept for the gradient, and what is between is computed again.
        self.recompute = False
        self.noises = nn.Module()
        for index, noise in enumerate(self.make_noise()):
            self.noises.register_buffer(f"noise_{index}", noise)

    def make_noise(self) -> list[Tensor]:
        """New noise maps [1, 1, side, side] for one image, a list for `forward`."""
        sides = [4, *(side for side in stages(self.size) for _ in range(2))]
        return [torch.randn(1, 1, side, side, device=self.input.input.device) for side in sides]

    def get_latent(self, z: Tensor) -> Tensor:
        """[N, style_dim] -> w of that shape: the mapping network.

        Raises:
            ValueError: z has another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.style_dim:
            raise ValueError(f"Generator: z has shape {tuple(z.shape)}, expected [N, {self.style_dim}]")
        with without_autocast(z):
            w: Tensor = self.style(z.to(self.input.input.dtype))
        return w

    @torch.no_grad()
    def mean_latent(self, count: int) -> Tensor:
        """[1, style_dim]: mean of w over `count` random z."""
        return self.get_latent(torch.randn(count, self.style_dim, device=self.input.input.device)).mean(0, keepdim=True)

    def forward(
        self,
        styles: Tensor | Sequence[Tensor],
        return_latents: bool = False,
        inject_index: int | None = None,
        truncation: float = 1,
        truncation_latent: Tensor | None = None,
        input_is_latent: bool = False,
        noise: Sequence[Tensor | None] | None = None,
        randomize_noise: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Images of one z, w or W+, or of two that are mixed.

        Args:
            styles: [N, style_dim], alone or in a list; a list of two mixes them: the first for the slots below
                `inject_index`, the second from it. Latents may also be [N, L, style_dim], one for each slot.
            return_latents: whether to return the latents too, from which the image then has its gradient.
            inject_index: 1 to L - 1 (0 and L give one style alone); None draws it.
            truncation: w becomes truncation_latent + truncation * (w - truncation_latent) where this is below 1.
            truncation_latent: see above, [1, style_dim], such as `mean_latent` or a checkpoint's latent_avg.
            input_is_latent: whether `styles` are w or W+ instead of z.
            noise: for conv1 and each of convs [N or 1, 1, side, side], or None to draw it.
            randomize_noise: whether noise that is not given is drawn, or is the buffers `noises`.

        Returns:
            (image [N, 3, size, size], near [-1, 1] but not limited to it; latents [N, L, style_dim] or None).

        Raises:
            ValueError: wrong shapes, another number of styles than 1 or 2, truncation without a latent.
        """
        w = self.latents(styles, inject_index, truncation, truncation_latent, input_is_latent)
        if return_latents:
            w = self._spread(w)
        return self.render(w, noise, randomize_noise), (w if return_latents else None)

    def latents(
        self,
        styles: Tensor | Sequence[Tensor],
        inject_index: int | None = None,
        truncation: float = 1,
        truncation_latent: Tensor | None = None,
        input_is_latent: bool = False,
    ) -> Tensor:
        """The first half of `forward`, whose arguments these are: w [N, style_dim], or W+ [N, L, style_dim]."""
        styles = [styles] if isinstance(styles, Tensor) else styles
        if len(styles) not in (1, 2) or styles[0].shape[0] != styles[-1].shape[0]:
            shapes = [tuple(style.shape) for style in styles]
            raise ValueError(f"Generator: styles must be one tensor, or two of one batch to mix, got shapes {shapes}")
        found = [self._checked(style) if input_is_latent else self.get_latent(style) for style in styles]
        if truncation < 1:
            if truncation_latent is None:
                raise ValueError("Generator: truncation below 1 needs truncation_latent, such as mean_latent(4096)")
            found = [truncation_latent + truncation * (w - truncation_latent) for w in found]
        if len(found) == 1:
            return found[0]
        index = int(torch.randint(1, self.n_latent, ())) if inject_index is None else inject_index
        if not 0 <= index <= self.n_latent:
            raise ValueError(f"Generator: inject_index must lie in 0 to {self.n_latent}, got {index}")
        return torch.cat([self._spread(found[0])[:, :index], self._spread(found[1])[:, index:]], dim=1)

    def render(self, w: Tensor, noise: Sequence[Tensor | None] | None = None, randomize_noise: bool = True) -> Tensor:
        """The second half of `forward`: images of w [N, style_dim] or W+ [N, L, style_dim]."""
        w = self._checked(w)
        styles = modulate(self.modulations(), w, self.slots() if w.dim() == 3 else None)
        if noise is None and not randomize_noise:
            noise = list(self.noises.buffers())
        return self.synthesize(self.input(w.shape[0]), styles, noise, self.recompute)

    def _checked(self, w: Tensor) -> Tensor:
        if w.shape[1:] not in ((self.style_dim,), (self.n_latent, self.style_dim)):
            raise ValueError(
                f"Generator: a latent has shape {tuple(w.shape)}, expected [N, {self.style_dim}] or "
                f"[N, {self.n_latent}, {self.style_dim}]"
            )
        return w

    def _spread(self, w: Tensor) -> Tensor:
        """W+ of w."""
        return w if w.dim() == 3 else w[:, None].expand(-1, self.n_latent, -1)


class DiscriminatorTrunk(nn.Module):
    """Residual blocks down to 4 x 4, minibatch standard deviation and a convolution: the base of discriminators.

    Under autocast all from the standard deviation on is computed in float32.

    Args:
        size: of the images, a power of 2 from 8.
        channel_multiplier: of the channels above 32 x 32.
        blur_kernel: of every down-sampling.
        base_channels: channels up to 32 x 32.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16.
    """

    def __init__(
        self,
        size: int,
        channel_multiplier: float = 2,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        *,
        base_channels: int = 512,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        widths = [channels(side, channel_multiplier, base_channels) for side in reversed([4, *stages(size)])]
        self.convs = nn.Sequential(
            ConvLayer(3, widths[0], 1, clamp=clamp),
            *(
                ResBlock(before, behind, blur_kernel=blur_kernel, clamp=clamp)
                for before, behind in zip(widths, widths[1:], strict=False)
            ),
        )
        #: Whether blocks' borders only are kept for the gradient, and what is between is computed again.
        self.recompute = False
        self.width = widths[-1]
        self.final_conv = ConvLayer(self.width + 1, self.width, 3, clamp=clamp)

    def features(self, x: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """Images N,3,size,size -> N,C,4,4; samples are compared within groups of up to 4 (`minibatch_std`).

        Args:
            x: images.
            parts: sizes of batches that are judged at once but compared within each alone; None: one batch.

        Raises:
            ValueError: the images have another shape.
        """
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}, expected [N, 3, {self.size}, {self.size}]"
            )
        if self.recompute and torch.is_grad_enabled():
            for block in self.convs:
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = self.convs(x)
        with without_autocast(x):
            x = x.to(self.final_conv.conv.weight.dtype)
            batches = [x] if parts is None else x.split(list(parts))
            found: Tensor = self.final_conv(torch.cat([minibatch_std(batch) for batch in batches]))
        return found


class Discriminator(DiscriminatorTrunk):
    """The discriminator: one logit for each image. Arguments as of `DiscriminatorTrunk`."""

    def __init__(
        self,
        size: int,
        channel_multiplier: float = 2,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        *,
        base_channels: int = 512,
        clamp: float | None = None,
    ) -> None:
        super().__init__(size, channel_multiplier, blur_kernel, base_channels=base_channels, clamp=clamp)
        self.final_linear = nn.Sequential(
            EqualLinear(self.width * 16, self.width, act=True), EqualLinear(self.width, 1)
        )

    def forward(self, x: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """Images N,3,size,size -> logits N,1; `parts` as of `features`.

        Raises:
            ValueError: the images have another shape.
        """
        with without_autocast(found := self.features(x, parts)):
            logits: Tensor = self.final_linear(found.flatten(1))
        return logits

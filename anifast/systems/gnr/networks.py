"""The networks of GANs N' Roses, in the three versions that its authors published, with their parameter names.

A generator holds an encoder, which takes a picture apart into content (maps that tell pose and layout) and style (a
short code), and a decoder, which paints content in a style of the *other* domain. Parameters are registered in the
order of the authors' optimiser states: mapping, encoder, adain_bottleneck, conv1, to_rgb1, convs, to_rgbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anifast.nn.stylegan2 import Synthesis, channels
from anifast.nn.stylegan2_layers import (
    ConvLayer,
    EqualLinear,
    ResBlock,
    StyledConv,
    batch_std,
    minibatch_std,
    modulate,
    without_autocast,
)
from anifast.systems.gnr.config import STYLE_DIM, Config

_SQRT2 = math.sqrt(2.0)
#: Sides of the maps behind the blocks of a discriminator's two trunks, and features of its diversity head, by version.
_TRUNKS = {"v1": (32, 8, 128), "v1.1": (32, 16, 8), "v2": (16, 4, 128)}


def _down(size: int, smallest: int, base: int) -> list[nn.Module]:
    """A 1x1 convolution from RGB, then residual blocks that halve `size` down to `smallest`."""
    sides = [size // 2**k for k in range(int(math.log2(size // smallest)) + 1)]
    widths = [channels(side, 1, base) for side in sides]
    blocks = [ResBlock(before, behind) for before, behind in zip(widths, widths[1:], strict=False)]
    return [ConvLayer(3, widths[0], 1), *blocks]


def _through(modules: Sequence[nn.Module], x: Tensor, recompute: bool) -> Tensor:
    """x through all modules; with `recompute` only what lies between them is kept for the gradient."""
    for module in modules:
        x = _call(module, x, recompute)
    return x


def _call(module: Callable[..., Tensor], x: Tensor, recompute: bool, **options: Any) -> Tensor:
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, x, use_reentrant=False, preserve_rng_state=False, **options)
    return module(x, **options)


def _in_full(layers: nn.Module, x: Tensor) -> Tensor:
    """A sequence of layers that ends in a linear one, without autocast."""
    last = list(layers.children())[-1]
    assert isinstance(last, EqualLinear)
    with without_autocast(x):
        found: Tensor = layers(x.to(last.weight.dtype))
    return found


class StyledResBlock(nn.Module):
    """(conv2(conv1(x)) + x) / sqrt 2 of two styled convolutions without noise.

    Args:
        width: channels in and out.
        style_dim: width of w.
    """

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.conv1 = StyledConv(width, width, 3, style_dim, noise=False)
        self.conv2 = StyledConv(width, width, 3, style_dim, noise=False)

    def forward(self, x: Tensor, *, styles: Sequence[Tensor]) -> Tensor:
        """N,C,H,W -> the same shape; `styles` of the two convolutions, as `modulate` gives them."""
        y: Tensor = self.conv2(self.conv1(x, style=styles[0]), style=styles[1])
        return (y + x) * (1 / _SQRT2)


class Encoder(nn.Module):
    """A picture's content code and style code, from one common stem.

    Args:
        size: side of the pictures.
        num_down: halvings in the stem.
        n_res: residual blocks behind them.
        latent_dim: length of a style code.
        base: channels up to 32 x 32.
        kernel: of the content head's convolutions.
    """

    def __init__(self, size: int, num_down: int, n_res: int, latent_dim: int, base: int, kernel: int) -> None:
        super().__init__()
        side = size // 2**num_down
        width = channels(side, 1, base)
        stem = _down(size, side, base)
        self.stem = nn.Sequential(*stem, *(ResBlock(width, width, down=False) for _ in range(n_res)))
        self.content = nn.Sequential(ConvLayer(width, width, kernel), ConvLayer(width, width, kernel))
        style: list[nn.Module] = []
        while side > 4:
            side //= 2
            style.append(ConvLayer(width, channels(side, 1, base), 3, down=True))
            width = channels(side, 1, base)
        self.style = nn.Sequential(
            *style, nn.Flatten(), EqualLinear(width * 16, width, act=True), EqualLinear(width, latent_dim)
        )
        #: Whether the stem's blocks are computed again in backward rather than kept.
        self.recompute = False

    def forward(self, images: Tensor, contents: int | None = None) -> tuple[Tensor, Tensor]:
        """Content [contents, C, side, side] of the first pictures, and style [N, latent_dim] of all.

        Args:
            images: N,3,size,size in [-1, 1].
            contents: of how many pictures the content is wanted, which the others are then spared; None: of all.
        """
        x = _through(list(self.stem), images, self.recompute)
        chosen = x if contents is None else x[:contents]
        content = self.content(chosen) if len(chosen) else chosen
        first = next(k for k, module in enumerate(self.style) if isinstance(module, nn.Flatten))
        return content, _in_full(self.style[first:], self.style[:first](x))


class Generator(Synthesis):
    """Encoder of one domain and decoder into the other.

    G_A2B reads pictures of A and paints B: the style of a picture of A is what its encoder finds, and what the decoder
    of G_B2A paints with.

    Args:
        size: side of the pictures, a power of 2 from 64.
        num_down: halvings on the way to the content.
        latent_dim: length of a style code.
        n_mlp: layers of the mapping network.
        n_res: residual blocks of encoder and decoder.
        lr_mlp: factor of the mapping network's learning rate.
        channel_multiplier: factor on the channels of all maps.
        version: "v1", or "v2" with 3x3 convolutions in the content head.
    """

    def __init__(
        self,
        size: int,
        num_down: int = 4,
        latent_dim: int = 8,
        n_mlp: int = 5,
        n_res: int = 1,
        lr_mlp: float = 0.01,
        channel_multiplier: float = 1.0,
        version: str = "v1",
    ) -> None:
        super().__init__()
        self.size, self.num_down, self.latent_dim = size, num_down, latent_dim
        base, start = int(512 * channel_multiplier), size // 2**num_down
        widths = [latent_dim, *[STYLE_DIM] * n_mlp]
        self.mapping = nn.Sequential(
            *(EqualLinear(a, b, lr_mul=lr_mlp, act=True) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.encoder = Encoder(size, num_down, n_res, latent_dim, base, 3 if version == "v2" else 1)
        width = channels(start, 1, base)
        self.adain_bottleneck = nn.ModuleList(StyledResBlock(width, STYLE_DIM) for _ in range(n_res))
        self.add_synthesis(size, STYLE_DIM, start=start, channel_multiplier=1, base_channels=base, noise=False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As of modules, but encoder and decoder each by itself: `encode` and `decode` are what is called."""
        self.encoder.compile(*args, **kwargs)
        self.paint = torch.compile(self.paint, *args, **kwargs)  # type: ignore[method-assign]

    def encode(self, input: Tensor, contents: int | None = None) -> tuple[Tensor, Tensor]:
        """Pictures N,3,size,size -> content [contents or N, C, side, side] and style [N, latent_dim]."""
        content, style = self.encoder(input, contents)
        return content, style

    def style_encode(self, input: Tensor) -> Tensor:
        """Pictures N,3,size,size -> style [N, latent_dim]."""
        style: Tensor = self.encoder(input, 0)[1]
        return style

    def get_latent(self, styles: Tensor) -> Tensor:
        """Style codes [N, latent_dim] -> w [N, 512]: the mapping network."""
        return _in_full(self.mapping, styles)

    def decode(self, input: Tensor, styles: Tensor, use_mapping: bool = True) -> Tensor:
        """Paint contents in styles.

        Args:
            input: content [N, C, side, side].
            styles: codes [N, latent_dim], or w [N, 512] without `use_mapping`.
            use_mapping: whether `styles` go through the mapping network.

        Returns:
            N,3,size,size, near [-1, 1] but not limited to it.
        """
        w = self.get_latent(styles) if use_mapping else styles
        return self.paint(input, self.styles_of(w))

    def styles_of(self, w: Tensor) -> list[Tensor]:
        """What all affine layers make of w [N, 512], for `paint`: two for each bottleneck, then the synthesis' own."""
        blocks = [block for block in self.adain_bottleneck if isinstance(block, StyledResBlock)]
        convs = [conv.conv.modulation for block in blocks for conv in (block.conv1, block.conv2)]
        return modulate([*convs, *self.modulations()], w)

    def paint(self, content: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """The second half of `decode`: contents under what `styles_of` gives."""
        x = content
        for k, block in enumerate(self.adain_bottleneck):
            x = _call(block, x, self.encoder.recompute, styles=styles[2 * k : 2 * k + 2])
        return self.synthesize(x, styles[2 * len(self.adain_bottleneck) :], recompute=self.encoder.recompute)

    def forward(self, input: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures -> (their translation, content, style); painted in the style codes z, or in their own."""
        content, style = self.encode(input)
        return self.decode(content, style if z is None else z), content, style


class Discriminator(nn.Module):
    """Three judgements of pictures, from two trunks: local, global, and how diverse the batch is.

    Args:
        size: side of the pictures, a power of 2 from 64.
        channel_multiplier: factor on the channels of all maps.
        version: "v1", "v1.1" or "v2".
    """

    def __init__(self, size: int, channel_multiplier: float = 1.0, version: str = "v1") -> None:
        super().__init__()
        self.version, base = version, int(512 * channel_multiplier)
        local, whole, features = _TRUNKS[version]
        self.l_branch = nn.Sequential(*_down(size, local, base), ConvLayer(base, 1, 1, act=False))
        trunk = _down(size, whole, base)
        if version == "v2":
            self.g_branch = nn.Sequential(*trunk, nn.Flatten(), EqualLinear(base * 16, features, act=True))
            self.g_adv: nn.Module = EqualLinear(features, 1)
        else:
            self.g_branch = nn.Sequential(*trunk)
            self.g_adv = ConvLayer(base, 1, 1, act=False)
            halvings = int(math.log2(whole // 4))
            down = [ConvLayer(base, base, 3, down=True) for _ in range(halvings)]
            self.g_std = nn.Sequential(*down, nn.Flatten(), EqualLinear(base * 16, features, act=True))
        self.g_final = EqualLinear(features, 1)
        #: Whether blocks are computed again in backward rather than kept.
        self.recompute = False

    def forward(self, x: Tensor, parts: Sequence[int] | None = None) -> list[Tensor]:
        """Logits of three heads; under autocast the last one, and what is behind the trunks of v2, is in float32.

        Args:
            x: N,3,size,size.
            parts: sizes of batches that are judged at once but compared within each alone; None: one batch.

        Returns:
            [N,1,h,w] local, [N,1,h,w] (v2: [N,1]) global, [N,1] diversity, which is the same for a whole batch.
        """
        local = _through(list(self.l_branch), x, self.recompute)
        split = len(self.g_branch) - (2 if self.version == "v2" else 0)
        maps = _through(list(self.g_branch)[:split], x, self.recompute)
        if self.version == "v2":
            features = _in_full(self.g_branch[split:], maps)
            with without_autocast(maps):
                whole = self.g_adv(features)
        else:
            whole = self.g_adv(maps)
            features = _in_full(self.g_std[-2:], self.g_std[:-2](maps))
        with without_autocast(maps):
            batches = [features] if parts is None else features.split(list(parts))
            diversity = self.g_final(torch.cat([batch_std(batch) for batch in batches]))
        return [local, whole, diversity]


class LatentDiscriminator(nn.Module):
    """Judges whether style codes are N(0, 1), a batch at a time: one logit each, in float32 under autocast.

    Args:
        style_dim: length of a code.
    """

    def __init__(self, style_dim: int) -> None:
        super().__init__()
        widths = [style_dim, 256, 256, 256, 256]
        last = nn.Module()  # the authors' key fc.4.fc: the layer behind the standard deviation
        last.fc = EqualLinear(257, 256, act=True)
        self.fc = nn.Sequential(
            *(EqualLinear(a, b, act=True) for a, b in zip(widths, widths[1:], strict=False)), last, EqualLinear(256, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        """[N, style_dim] -> [N, 1]; all N are compared."""
        x = _in_full(self.fc[:4], input)
        with without_autocast(input):
            out: Tensor = self.fc[5](self.fc[4].get_submodule("fc")(minibatch_std(x, None)))
        return out


def build_generator(config: Config) -> Generator:
    """The generator of a run."""
    return Generator(
        config.size,
        config.num_down,
        config.latent_dim,
        config.n_mlp,
        config.n_res,
        config.lr_mlp,
        config.channel_multiplier,
        config.generator,
    )


def build_discriminator(config: Config) -> Discriminator:
    """The discriminator of a domain."""
    return Discriminator(config.size, config.channel_multiplier, config.discriminator)


def networks(config: Config) -> dict[str, nn.Module]:
    """G_A2B, G_B2A, D_A, D_B and D_L, drawn from the run's seed; D_L is always there, as in the authors' files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        nets: dict[str, nn.Module] = {name: build_generator(config) for name in ("G_A2B", "G_B2A")}
        nets |= {name: build_discriminator(config) for name in ("D_A", "D_B")}
        nets["D_L"] = LatentDiscriminator(config.latent_dim)
    return nets


def recompute(nets: Sequence[nn.Module], on: bool) -> None:
    """Whether these networks keep block borders only for the gradient, and compute the rest again."""
    for net in nets:
        for module in net.modules():
            if isinstance(module, Encoder | Discriminator):
                module.recompute = on

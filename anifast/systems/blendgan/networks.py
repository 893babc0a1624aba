"""The networks of BlendGAN (Liu et al. 2021), with the authors' key names where they have published weights.

`Generator` is StyleGAN2's with a second mapping network and the weighted blending module; `StyleEncoder` is a
multi-layer perceptron over Gram matrices. The encoder that inverts photos is in `psp`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anifast.nn import stylegan2
from anifast.nn.backbones import Backbone
from anifast.nn.perceptual import GramStyle, folded_steps
from anifast.nn.stylegan2 import Discriminator, DiscriminatorTrunk
from anifast.nn.stylegan2_layers import EqualLinear, PixelNorm, without_autocast
from anifast.systems.blendgan.config import Config


def blend(
    w_f: Tensor, w_s: Tensor, weights: Tensor, index: int | Tensor | None = None, theta: float | Tensor = 1.0
) -> Tensor:
    """The weighted blending module (section 3.2, equations 3 to 5): the style takes part from slot `index` on.

    Args:
        w_f: codes of faces, [N, D] or one for each slot [N, L, D].
        w_s: codes of styles, [N, D] or [N, L, D].
        weights: the face's share of each slot, a = 1 - alpha, [L], within [0, 1].
        index: the blending indicator, 0 (all of the style) to L (none of it), one for all or int64 [N]; None is 0.
        theta: how much of the style's share slot `index` has, in [0, 1], one for all or [N].

    Returns:
        W+ [N, L, D]: w_f a^ + w_s (1 - a^), with a^ = 1 below the indicator, 1 - theta (1 - a) at it and a above.

    Raises:
        ValueError: wrong shapes, or a number for the indicator or theta that is out of range; tensors of them are taken
            as they are.
    """
    slots = len(weights)
    for name, w in (("w_f", w_f), ("w_s", w_s)):
        if w.dim() not in (2, 3) or (w.dim() == 3 and w.shape[1] != slots) or len(w) != len(w_f):
            raise ValueError(f"blend: {name} has shape {tuple(w.shape)}, expected [{len(w_f)}, D] or [N, {slots}, D]")
    index = 0 if index is None else index
    if not isinstance(index, Tensor) and not 0 <= (index := operator.index(index)) <= slots:
        raise ValueError(f"blend: index is {index}, expected 0 (all of the style) to {slots} (none of it)")
    if not isinstance(theta, Tensor) and not 0 <= theta <= 1:
        raise ValueError(f"blend: theta is {theta}, expected 0 to 1")
    place = torch.arange(slots, device=weights.device)
    # numbers stay numbers: a tensor of one would wait for the device
    at, share = (x.reshape(-1, 1).to(weights.device) if isinstance(x, Tensor) else x for x in (index, theta))
    face = torch.where(place < at, torch.ones_like(weights), weights)
    face = torch.where(place == at, 1 - share * (1 - weights), face)[..., None]
    w_f, w_s = (w if w.dim() == 3 else w[:, None] for w in (w_f, w_s))
    return w_f * face + w_s * (1 - face)


class Generator(stylegan2.Generator):
    """Faces in styles: StyleGAN2's generator, whose code is blended from a face's and a style's.

    A second mapping network, `embedding`, makes w of style codes. `add_weight` [1, L, 1] is the face's share of each
    slot, 1 at first: training begins with a generator of faces. It counts as if it were within [0, 1], where `project`
    puts it; its gradient passes.

    Args:
        size: of the images, a power of 2 from 8.
        style_dim: width of face codes, style codes and w.
        n_mlp: layers of each mapping network.
        channel_multiplier: of the channels above 32 x 32.
        base_channels: channels up to 32 x 32.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        n_mlp: int = 8,
        channel_multiplier: float = 2,
        *,
        base_channels: int = 512,
        clamp: float | None = None,
    ) -> None:
        super().__init__(size, style_dim, n_mlp, channel_multiplier, base_channels=base_channels, clamp=clamp)
        mapping = [EqualLinear(style_dim, style_dim, lr_mul=0.01, act=True) for _ in range(n_mlp)]
        self.embedding = nn.Sequential(PixelNorm(), *mapping)
        self.add_weight = nn.Parameter(torch.ones(1, self.n_latent, 1))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As of modules, but of `render`, which is what training calls."""
        self.render = torch.compile(self.render, *args, **kwargs)  # type: ignore[method-assign]

    def embed(self, z_style: Tensor) -> Tensor:
        """Style codes [N, style_dim], of whatever length, -> w_s of that shape.

        Raises:
            ValueError: another shape.
        """
        if z_style.dim() != 2 or z_style.shape[1] != self.style_dim:
            raise ValueError(f"Generator: z_style has shape {tuple(z_style.shape)}, expected [N, {self.style_dim}]")
        with without_autocast(z_style):
            w: Tensor = self.embedding(z_style.to(self.input.input.dtype))
        return w

    @property
    def face_share(self) -> Tensor:
        """a [L], within [0, 1]."""
        a = self.add_weight.flatten()
        return a + (a.clamp(0, 1) - a).detach()

    @torch.no_grad()
    def project(self) -> None:
        """Put the shares into [0, 1]."""
        self.add_weight.clamp_(0, 1)

    def codes(
        self,
        w_f: Tensor,
        z_style: Tensor | None = None,
        index: int | Tensor | None = None,
        theta: float | Tensor = 1.0,
    ) -> Tensor:
        """What the synthesis network paints, for `render`.

        Args:
            w_f: codes of faces in w or W+, from `latents`.
            z_style: style codes [N or 1, style_dim]; None: natural faces.
            index: the blending indicator, see `blend`.
            theta: see `blend`.

        Returns:
            W+ [N, L, style_dim], or w_f itself without a style, or with the number L for the indicator.
        """
        if z_style is None or (isinstance(index, int) and index == self.n_latent):
            return w_f
        w_s = self.embed(z_style)
        return blend(w_f, w_s.expand(len(w_f), -1), self.face_share, index, theta)

    def forward(  # type: ignore[override]
        self,
        styles: Tensor | Sequence[Tensor],
        z_style: Tensor | None = None,
        index: int | Tensor | None = None,
        *,
        theta: float | Tensor = 1.0,
        return_latents: bool = False,
        inject_index: int | None = None,
        truncation: float = 1,
        truncation_latent: Tensor | None = None,
        input_is_latent: bool = False,
        noise: Sequence[Tensor | None] | None = None,
        randomize_noise: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Images of faces in styles.

        Args:
            styles: codes of faces, z, w or W+, as of StyleGAN2's generator; truncation and mixing concern these only.
            z_style: style codes [N or 1, style_dim]; None: natural faces.
            index: the blending indicator, one for all or int64 [N], 0 (all of the style, as None) to L (none of it).
            theta: see `blend`.
            return_latents: whether to return the blended codes, from which the image then has its gradient.
            inject_index, truncation, truncation_latent, input_is_latent, noise, randomize_noise: see StyleGAN2's
                generator.

        Returns:
            (image [N, 3, size, size], near [-1, 1] but not limited to it; W+ [N, L, style_dim] or None).

        Raises:
            ValueError: wrong shapes, an indicator that is none of 0 to L.
        """
        w = self.latents(styles, inject_index, truncation, truncation_latent, input_is_latent)
        w = self.codes(w, z_style, index, theta)
        if return_latents:
            w = self._spread(w)
        return self.render(w, noise, randomize_noise), (w if return_latents else None)


class ProjectionDiscriminator(DiscriminatorTrunk):
    """Judges whether a picture goes with a style code: D_style_latent (section 3.3).

    Args:
        size: of the images, a power of 2 from 8.
        style_dim: width of style codes.
        channel_multiplier: of the channels above 32 x 32.
        base_channels: channels up to 32 x 32.
        clamp: activations end up in [-clamp, clamp]; 256 is right for float16.
        normalised: whether style codes count by their direction alone; their length is free under the contrastive loss.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        channel_multiplier: float = 2,
        *,
        base_channels: int = 512,
        clamp: float | None = None,
        normalised: bool = False,
    ) -> None:
        super().__init__(size, channel_multiplier, base_channels=base_channels, clamp=clamp)
        self.l_out = EqualLinear(self.width, 1)
        self.l_style = EqualLinear(style_dim, self.width)
        self.norm = PixelNorm() if normalised else nn.Identity()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As of modules, but of `summed`, which is what training calls."""
        self.summed = torch.compile(self.summed, *args, **kwargs)  # type: ignore[method-assign]

    def summed(self, x: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """Images N,3,size,size -> what `score` takes, [N, C]: the trunk's maps, summed over their pixels."""
        return self.features(x, parts).sum(dim=(2, 3))

    def score(self, found: Tensor, z_style: Tensor) -> Tensor:
        """Logits [N, 1] of what `summed` gave and style codes [N, style_dim]; cheap, for several codes of an image."""
        with without_autocast(found):
            logits: Tensor = self.l_out(found)
            return logits + (self.l_style(self.norm(z_style.to(found.dtype))) * found).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor, z_style: Tensor) -> Tensor:
        """Images N,3,size,size and style codes [N, style_dim] -> logits [N, 1]."""
        return self.score(self.summed(x), z_style)


class StyleEncoder(nn.Module):
    """E_style (section 3.1): style codes of pictures, from the Gram matrices of a frozen classification network.

    With VGG-19 and `folded=False` it is the authors' network. Folded it is the same function with half the weights:
    Gram matrices are symmetric, so only their upper triangles are computed and the first layer's weight is one number
    for each pair (`anifast.nn.perceptual.fold_weight`).

    Args:
        backbone: of the features, without gradient.
        side: of the square that pictures are pooled to.
        style_dim: width of codes.
        n_mlp: layers.
        folded: whether the first layer takes upper triangles.
    """

    def __init__(
        self, backbone: str | Backbone, side: int = 256, style_dim: int = 512, n_mlp: int = 4, *, folded: bool = True
    ) -> None:
        super().__init__()
        self.embedder = GramStyle(backbone, size=side, folded=folded, pretrained=False)
        self.embedder.requires_grad_(False)
        whole = sum(count * count for count in self.embedder.channels)
        layers = [EqualLinear(self.embedder.width, style_dim, act=n_mlp > 1)]
        layers[0].scale = whole**-0.5  # of the authors' width, whichever the form
        if folded:  # sums of two weights of variance 1
            with torch.no_grad():
                layers[0].weight.mul_(folded_steps(self.embedder.channels).sqrt())
        layers += [EqualLinear(style_dim, style_dim, act=k < n_mlp - 1) for k in range(1, n_mlp)]
        self.embedder_mlp = nn.Sequential(*layers)

    @property
    def folded(self) -> bool:
        """Whether the first layer takes upper triangles."""
        return self.embedder.folded

    @property
    def first_weight(self) -> nn.Parameter:
        """The weight over Gram matrices, [style_dim, width]."""
        first = self.embedder_mlp[0]
        assert isinstance(first, EqualLinear)
        return first.weight

    def grams(self, images: Tensor) -> Tensor:
        """Pictures N,3,H,W in [-1, 1], of any size -> their Gram matrices in a row, [N, width] in float32."""
        found: Tensor = self.embedder(images)
        return found

    def codes(self, grams: Tensor) -> Tensor:
        """What `grams` gives -> style codes [N, style_dim], neither normalised nor bounded, in float32."""
        with without_autocast(grams):
            found: Tensor = self.embedder_mlp(grams.to(self.first_weight.dtype))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Pictures N,3,H,W in [-1, 1], of any size -> style codes [N, style_dim] in float32."""
        return self.codes(self.grams(images))


class Projector(nn.Module):
    """The head behind style codes that the contrastive loss sees, in training alone.

    Args:
        style_dim: width.
        n_mlp: layers.
    """

    def __init__(self, style_dim: int = 512, n_mlp: int = 2) -> None:
        super().__init__()
        self.projector = nn.Sequential(*(EqualLinear(style_dim, style_dim, act=k < n_mlp - 1) for k in range(n_mlp)))

    def forward(self, x: Tensor) -> Tensor:
        """Codes [N, style_dim] -> projections [N, style_dim], in float32 under autocast."""
        with without_autocast(x):
            found: Tensor = self.projector(x)
        return found


def build_generator(config: Config) -> Generator:
    """The generator of a run."""
    c = config
    return Generator(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, base_channels=c.base_channels)


def build_discriminator(config: Config) -> Discriminator:
    """The discriminator of faces or of stylized pictures."""
    return Discriminator(config.size, config.channel_multiplier, base_channels=config.base_channels)


def build_latent_discriminator(config: Config) -> ProjectionDiscriminator:
    """The discriminator of pictures with style codes."""
    c = config
    return ProjectionDiscriminator(
        c.size, c.style_dim, c.channel_multiplier, base_channels=c.base_channels, normalised=c.normalised
    )


def build_style_encoder(config: Config, backbone: str | Backbone | None = None) -> StyleEncoder:
    """The style encoder of a run; its backbone has no weights yet unless one is given."""
    c = config
    return StyleEncoder(backbone or c.backbone, c.style_side, c.style_dim, c.style_mlp, folded=c.folded)


def networks(config: Config) -> dict[str, nn.Module]:
    """G, D_face, D_style and D_latent of generator training, drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = build_generator(config)
        nn.init.constant_(generator.add_weight, 1 - config.alpha)
        return {
            "G": generator,
            "D_face": build_discriminator(config),
            "D_style": build_discriminator(config),
            "D_latent": build_latent_discriminator(config),
        }

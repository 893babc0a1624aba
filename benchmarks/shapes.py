"""The shapes that the supported systems run the ops on, listed once for benchmarks and tests.

Needs nothing but the standard library. Batches are those the systems are trained with, for each GPU. Uses of one
shape in one form are one entry, which names them all; a geometric mean over a list counts each shape once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class BiasLrelu:
    """One use of bias + leaky ReLU.

    Attributes:
        name: system, network and side in pixels; unique.
        shape: N,C,H,W or N,C of the tensor.
        where: the layers that it stands for.
        slope: of the leaky ReLU.
        gain: factor after it.
        noise: noise of shape N,1,H,W times one learned strength is added before the bias.
        residual: a skip of the same shape is added and the sum divided by sqrt 2; `gain` is folded with that factor.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    shape: tuple[int, ...]
    where: str
    slope: float = 0.2
    gain: float = SQRT2
    noise: bool = False
    residual: bool = False
    quick: bool = False

    @property
    def residual_gain(self) -> float:
        """Factor of the skip."""
        return 1.0 / SQRT2 if self.residual else 1.0

    @property
    def form(self) -> str:
        """What is fused: "noise", "residual", "bias" (with a gain) or "plain" (gain 1)."""
        if self.noise or self.residual:
            return "noise" if self.noise else "residual"
        return "plain" if self.gain == 1.0 else "bias"


def _gnr() -> list[BiasLrelu]:
    """GANs N' Roses at 256 px, batch 7: no noise anywhere, residual blocks in the encoder and both trunks of D."""
    batch = 7
    used = {
        256: (64, "encoder stem.0 and stem.1.conv1, decoder convs.6 and .7, first layer and block of D"),
        128: (128, "encoder stem.2.conv1, decoder convs.4 and .5, D block 2"),
        64: (256, "encoder stem.3.conv1, decoder convs.2 and .3, D block 3"),
        32: (512, "encoder stem.4.conv1, decoder convs.0 and .1, D block 4"),
        16: (512, "encoder stem.5 and content, bottleneck, decoder conv1"),
        8: (512, "encoder style.0, D g_std.0"),
        4: (512, "encoder style.1, D g_std.1"),
    }
    residual = {
        128: (128, "encoder stem.1, D block 1"),
        64: (256, "encoder stem.2, D block 2"),
        32: (512, "encoder stem.3, D block 3"),
        16: (512, "encoder stem.4 and .5, bottleneck, D block 4"),
    }
    return [
        *(
            BiasLrelu(f"gnr.{side}", (batch, channels, side, side), where, quick=side in (16, 64))
            for side, (channels, where) in used.items()
        ),
        *(
            BiasLrelu(
                f"gnr.{side}.residual",
                (batch, channels, side, side),
                where,
                gain=1.0,
                residual=True,
                quick=side == 64,
            )
            for side, (channels, where) in residual.items()
        ),
        BiasLrelu("gnr.mapping", (batch, 512), "mapping.0 to .4, encoder style linear", quick=True),
        BiasLrelu("gnr.d_latent", (batch, 256), "latent discriminator fc.0 to .4"),
    ]


def _blendgan() -> list[BiasLrelu]:
    """BlendGAN at 1024 px, batch 8 on four GPUs: a StyleGAN2 generator with noise and residual discriminators."""
    batch = 2
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    return [
        *(
            BiasLrelu(
                f"blendgan.g.{side}",
                (batch, count, side, side),
                "generator conv1" if side == 4 else f"generator styled convs at {side} px",
                noise=True,
                quick=side in (16, 256),
            )
            for side, count in channels.items()
        ),
        *(
            BiasLrelu(
                f"blendgan.d.{side}",
                (batch, count, side, side),
                "D first layer and conv1 at 1024 px" if side == 1024 else f"D conv1 at {side} px",
            )
            for side, count in channels.items()
        ),
        *(
            BiasLrelu(
                f"blendgan.d.{side}.residual",
                (batch, count, side, side),
                f"D block output at {side} px",
                gain=1.0,
                residual=True,
            )
            for side, count in channels.items()
            if side < 1024
        ),
        BiasLrelu("blendgan.mapping", (batch, 512), "both mapping networks, D final_linear.0"),
        BiasLrelu("blendgan.style_encoder", (512, 512), "style encoder predictor, 256 images in two views"),
        BiasLrelu("blendgan.psp.32", (8, 512, 32, 32), "pSp heads after the first convolution", slope=0.01, gain=1.0),
    ]


def _twingan() -> list[BiasLrelu]:
    """Twin-GAN: the discriminators, bias + leaky ReLU with neither norm nor gain; batch 3 at 256 px, 8 up to 64 px."""
    at_256 = {256: (16, 32), 128: (32, 64), 64: (64, 128), 32: (128, 256), 16: (256,), 8: (256,), 4: (256,)}
    return [
        *(
            BiasLrelu(
                f"twingan.d.{side}.{count}",
                (3, count, side, side),
                f"D at {side} px, 256 px phase",
                gain=1.0,
                quick=(count, side) == (64, 128),
            )
            for side, counts in at_256.items()
            for count in counts
        ),
        BiasLrelu("twingan.d.phase64", (8, 64, 64, 64), "D first layer and block, 64 px phase", gain=1.0),
        BiasLrelu("twingan.d.phase16", (8, 256, 16, 16), "D first layer and block, 16 px phase", gain=1.0),
    ]


#: bias_lrelu in all systems. CycleGAN's other discriminator layers have an instance norm before the activation.
BIAS_LRELU: tuple[BiasLrelu, ...] = (
    *_gnr(),
    *_blendgan(),
    *_twingan(),
    BiasLrelu("cyclegan.d.128", (1, 64, 128, 128), "PatchGAN layer 0", gain=1.0),
)


@dataclass(frozen=True)
class InstanceNorm:
    """One use of instance norm with what follows it.

    Attributes:
        name: system, network and side in pixels; unique.
        shape: N,C,H,W of the tensor.
        where: the layers that it stands for.
        slope: of the activation: 0 is ReLU, 1 none.
        residual: a skip of the same shape is added.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    shape: tuple[int, ...]
    where: str
    slope: float = 0.0
    residual: bool = False
    quick: bool = False

    @property
    def form(self) -> str:
        """What is fused: "residual", "lrelu" or "relu"."""
        return "residual" if self.residual else "lrelu" if self.slope else "relu"


def _cyclegan() -> list[InstanceNorm]:
    """CycleGAN at 256 and 128 px, batch 1; with the identity loss both real images meet a generator in one batch."""
    found = []
    for size in (256, 128):
        for batch in (1, 2):
            name = f"cyclegan.g.{size}x{batch}"
            found += [
                InstanceNorm(f"{name}.outer", (batch, 64, size, size), "generator stem and last upsampling"),
                InstanceNorm(f"{name}.middle", (batch, 128, size // 2, size // 2), "generator down 1 and up 1"),
                InstanceNorm(
                    f"{name}.inner", (batch, 256, size // 4, size // 4), "generator down 2, first half of a block",
                    quick=batch == 2,
                ),
                InstanceNorm(
                    f"{name}.residual", (batch, 256, size // 4, size // 4), "second half of a block",
                    slope=1.0, residual=True, quick=batch == 2,
                ),
            ]  # fmt: skip
        found += [
            InstanceNorm(f"cyclegan.d.{size}.2", (2, 128, size // 4, size // 4), "PatchGAN layer 2", slope=0.2),
            InstanceNorm(f"cyclegan.d.{size}.5", (2, 256, size // 8, size // 8), "PatchGAN layer 5", slope=0.2),
            InstanceNorm(
                f"cyclegan.d.{size}.8",
                (2, 512, size // 8 - 1, size // 8 - 1),
                "PatchGAN layer 8",
                slope=0.2,
                quick=True,
            ),
        ]
    return found


#: instance_norm in all systems.
INSTANCE_NORM: tuple[InstanceNorm, ...] = tuple(_cyclegan())


@dataclass(frozen=True)
class DomainNorm:
    """One use of domain-specific norm with what follows it.

    Attributes:
        name: system, network, channels and side in pixels; unique.
        shape: N,C,H,W of the stacked calls.
        groups: calls that are stacked, with statistics of their own.
        where: the layers that it stands for.
        unit: leaky ReLU and pixel norm follow, else nothing does.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    shape: tuple[int, int, int, int]
    groups: int
    where: str
    unit: bool = True
    quick: bool = False

    @property
    def form(self) -> str:
        """ "unit" with leaky ReLU and pixel norm, else "norm"."""
        return "unit" if self.unit else "norm"


def _twingan_norms() -> list[DomainNorm]:
    """Twin-GAN with batch 8 up to 64 px and 4 beyond: two calls of E in one, and four of G."""
    found = []
    for side in (4, 8, 16, 32, 64, 128, 256):
        channels, batch = min(4096 // side, 256), 8 if side <= 64 else 4
        for network, groups in (("e", 2), ("g", 4)):
            found.append(
                DomainNorm(
                    f"twingan.{network}.{channels}x{side}",
                    (groups * batch, channels, side, side),
                    groups,
                    f"{network.upper()}'s layers at {side} px",
                    quick=side in (8, 64) and network == "g",
                )
            )
    found.append(DomainNorm("twingan.rgb.3x64", (32, 3, 64, 64), 4, "toRGB", unit=False))
    return found


#: domain_norm in all systems.
DOMAIN_NORM: tuple[DomainNorm, ...] = tuple(_twingan_norms())


@dataclass(frozen=True)
class GatedResidual:
    """One use of the sum of a gated residual block.

    Attributes:
        name: system, preset, batch, channels and side in pixels; unique.
        shape: N,C,H,W of the sum.
        where: the blocks that it stands for.
        up: 2 where the shortcut is doubled.
        crop: pixels cut off on each side of the doubled one.
        act: a centred PReLU; none is in G's last block.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    shape: tuple[int, int, int, int]
    where: str
    up: int = 1
    crop: int = 0
    act: bool = True
    quick: bool = False

    @property
    def form(self) -> str:
        """ "up" with a doubled shortcut, else "same"."""
        return "up" if self.up == 2 else "same"

    @property
    def shortcut_shape(self) -> tuple[int, int, int, int]:
        """N,C,H,W of the shortcut."""
        images, channels, *sides = self.shape
        rows, columns = (side // self.up + (self.crop if self.up == 2 else 0) for side in sides)
        return images, channels, rows, columns


def _disentangle() -> list[GatedResidual]:
    """The disentangling networks on digits of 28 px, batch 64 (G also 128), and on faces of 256 px, batch 8."""
    found = []
    for batch in (64, 128):
        name = f"disentangle.digits.b{batch}"
        found += [
            GatedResidual(
                f"{name}.{channels}x{side}", (batch, channels, side, side), "halving and plain blocks",
                quick=side == 14 and batch == 64,
            )
            for channels, side in ((64, 14), (128, 8), (256, 4))
        ]  # fmt: skip
    found += [
        GatedResidual("disentangle.digits.g.128x8", (128, 128, 8, 8), "G up 1", up=2),
        GatedResidual("disentangle.digits.g.64x14", (128, 64, 14, 14), "G up 2", up=2, crop=1, quick=True),
        GatedResidual("disentangle.digits.g.1x28", (128, 1, 28, 28), "G up 3", up=2, act=False),
    ]
    for channels, side in ((32, 128), (64, 64), (128, 32), (256, 16), (512, 8), (1024, 4)):
        shape = (8, channels, side, side)
        found.append(
            GatedResidual(f"disentangle.faces.{channels}x{side}", shape, "halving and plain blocks", quick=side == 32)
        )
        if side > 4:
            found.append(GatedResidual(f"disentangle.faces.g.{channels}x{side}", shape, "G up", up=2))
    found.append(GatedResidual("disentangle.faces.g.3x256", (8, 3, 256, 256), "G's last up", up=2, act=False))
    return found


#: gated_residual in all systems.
GATED_RESIDUAL: tuple[GatedResidual, ...] = tuple(_disentangle())


@dataclass(frozen=True)
class Upfirdn2d:
    """One use of upfirdn2d, under the kernel (1, 3, 3, 1) along both axes.

    Attributes:
        name: form, system, network and side in pixels; unique.
        shape: N,C,H,W of the tensor.
        where: the layers that it stands for.
        up: samples for each one.
        down: every how manyth sample is kept.
        padding: (before, behind) along both axes.
        gain: factor of the filter.
        epilogue: a scale a map (demodulation), bias, leaky ReLU and gain follow.
        noise: noise of shape N,1,H,W of the output, times one learned strength, is in the epilogue.
        add: a tensor like the output is added.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    shape: tuple[int, int, int, int]
    where: str
    up: int = 1
    down: int = 1
    padding: tuple[int, int] = (2, 2)
    gain: float = 1.0
    epilogue: bool = False
    noise: bool = False
    add: bool = False
    quick: bool = False

    @property
    def form(self) -> str:
        """What it does: "blur", "down", "up" or "epilogue"."""
        return "epilogue" if self.epilogue else "up" if self.up > 1 else "down" if self.down > 1 else "blur"

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """N,C,H,W of the output."""
        rows, columns = ((side * self.up + sum(self.padding) - 4) // self.down + 1 for side in self.shape[2:])
        return (*self.shape[:2], rows, columns)


def _stylegan2(
    system: str, batch: int, channels: dict[int, int], *, encoder: str, noise: bool, quick: tuple[int, ...]
) -> list[Upfirdn2d]:
    """The uses of a StyleGAN2-type generator and discriminator; `channels` by side, without the smallest."""
    found = []
    for side, count in channels.items():
        shape = (batch, count, side, side)
        found += [
            Upfirdn2d(f"blur.{system}.{side}", shape, f"{encoder} before the stride-2 conv2", quick=side in quick),
            Upfirdn2d(f"down.{system}.{side}", shape, f"{encoder} skip", down=2, padding=(1, 1), quick=side in quick),
            Upfirdn2d(
                f"epilogue.{system}.{side}",
                (batch, count, side + 1, side + 1),
                "generator, behind the transposed convolution",
                padding=(1, 1),
                gain=4.0,
                epilogue=True,
                noise=noise,
                quick=side in quick,
            ),
            Upfirdn2d(
                f"up.{system}.{side}",
                (batch, 3, side // 2, side // 2),
                "generator, RGB skip",
                up=2,
                padding=(2, 1),
                gain=4.0,
                add=True,
                quick=side in quick,
            ),
        ]
    return found


#: upfirdn2d in the two StyleGAN2-type systems: GANs N' Roses at 256 px, batch 7 (decoder, encoder and both trunks of D;
#: its content is 16 px), and BlendGAN at 1024 px, batch 8 on four GPUs.
UPFIRDN2D: tuple[Upfirdn2d, ...] = (
    *_stylegan2(
        "gnr", 7, {32: 512, 64: 256, 128: 128, 256: 64}, encoder="encoder and D block", noise=False,
        quick=(64,),
    ),
    *_stylegan2(
        "blendgan", 2,
        {8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}, encoder="D block",
        noise=True, quick=(16, 256),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ModulatedConv2d:
    """One use of modulated_conv2d, of a whole batch of styles; the batch is `MODULATED_BATCHES`'s.

    Attributes:
        name: form, system and side of the output in pixels; unique.
        inputs: channels of the input.
        outputs: channels of the output, 3 for an image.
        side: of the input in pixels.
        where: the layers that it stands for.
        up: 2: transposed convolution and filter (1, 3, 3, 1).
        size: side of the weights; 1 is an image: not demodulated, no activation, added to the image so far.
        noise: noise of shape N,1,H,W of the output times one learned strength is added before the bias.
        add: there is an image so far.
        quick: part of the small selection that stands for the rest.
    """

    name: str
    inputs: int
    outputs: int
    side: int
    where: str
    up: int = 1
    size: int = 3
    noise: bool = False
    add: bool = False
    quick: bool = False

    @property
    def form(self) -> str:
        """What it does: "plain", "up" or "rgb"."""
        return "rgb" if self.size == 1 else "up" if self.up > 1 else "plain"

    @property
    def system(self) -> str:
        """The system that it is a layer of."""
        return self.name.split(".")[1]

    @property
    def demodulate(self) -> bool:
        """Whether its weights are normalised."""
        return self.size > 1


def stylegan2_layers(
    system: str, channels: dict[int, int], *, noise: bool, quick: tuple[int, ...] = ()
) -> list[ModulatedConv2d]:
    """The modulated layers of a StyleGAN2 generator; `channels` by side, from its first on."""
    found = []
    first = min(channels)
    for side, count in channels.items():
        some = side in quick
        if side > first:
            found.append(
                ModulatedConv2d(
                    f"up.{system}.{side}", channels[side // 2], count, side // 2, f"first layer at {side} px",
                    up=2, noise=noise, quick=some,
                )
            )  # fmt: skip
        where = "conv1" if side == first else f"second layer at {side} px"
        found += [
            ModulatedConv2d(f"plain.{system}.{side}", count, count, side, where, noise=noise, quick=some),
            ModulatedConv2d(f"rgb.{system}.{side}", count, 3, side, "ToRGB", size=1, add=side > first, quick=some),
        ]
    return found


#: channels by side of StyleGAN2's config-f generator (channel multiplier 2)
CONFIG_F = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}

#: modulated_conv2d in the two StyleGAN2-type systems: the decoder of GANs N' Roses at 256 px (its content is 16 px, and
#: its bottleneck has the shape of conv1) and BlendGAN at 1024 px, whose layers up to 256 px are BlendGAN's at 256 px.
MODULATED_CONV2D: tuple[ModulatedConv2d, ...] = (
    *stylegan2_layers("gnr", {16: 512, 32: 512, 64: 256, 128: 128, 256: 64}, noise=False),
    *stylegan2_layers("blendgan", CONFIG_F, noise=True, quick=(16,)),
)

#: device -> system -> batches. On a GPU those of training and a common larger one; on a CPU what a step of training and
#: a translation there have.
MODULATED_BATCHES: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {"gnr": (4,), "blendgan": (1,)},
    "cuda": {"gnr": (7, 16), "blendgan": (8, 16)},
}


@dataclass(frozen=True)
class LpipsLayer:
    """A map that LPIPS compares, of an image of 256 x 256; the batch is `LPIPS_BATCHES`'s.

    Attributes:
        net: the network that makes it: "vgg" (VGG-16), "alex" (AlexNet) or "squeeze" (SqueezeNet 1.1).
        channels: of the map.
        side: of the map in pixels.
        where: the layers behind which it is taken.
        quick: part of the small selection that stands for the rest.
    """

    net: str
    channels: int
    side: int
    where: str
    quick: bool = False

    @property
    def name(self) -> str:
        """Network, channels and side; unique."""
        return f"{self.net}.{self.channels}x{self.side}"


#: lpips_layer in LPIPS with each of its three networks. 384 channels at 15 px are AlexNet's too.
LPIPS_LAYER: tuple[LpipsLayer, ...] = (
    LpipsLayer("vgg", 64, 256, "relu1_2"),
    LpipsLayer("vgg", 128, 128, "relu2_2"),
    LpipsLayer("vgg", 256, 64, "relu3_3", quick=True),
    LpipsLayer("vgg", 512, 32, "relu4_3"),
    LpipsLayer("vgg", 512, 16, "relu5_3"),
    LpipsLayer("alex", 64, 63, "relu1"),
    LpipsLayer("alex", 192, 31, "relu2", quick=True),
    LpipsLayer("alex", 256, 15, "relu4 and relu5"),
    LpipsLayer("squeeze", 64, 127, "relu of conv1"),
    LpipsLayer("squeeze", 128, 63, "fire3"),
    LpipsLayer("squeeze", 256, 31, "fire5"),
    LpipsLayer("squeeze", 384, 15, "fire6 and fire7, AlexNet's relu3"),
    LpipsLayer("squeeze", 512, 15, "fire8 and fire9"),
)

#: device -> batches of the pair
LPIPS_BATCHES: dict[str, tuple[int, ...]] = {"cpu": (1, 4), "cuda": (1, 16)}

#: layer -> (channels, side) of the maps of VGG-19 whose Gram matrices are BlendGAN's style vector, of an image of
#: 256 x 256 (its style encoder brings images of any size to that)
GRAM_MAPS: dict[str, tuple[int, int]] = {
    "relu1_2": (64, 256),
    "relu2_2": (128, 128),
    "relu3_4": (256, 64),
    "relu4_4": (512, 32),
    "relu5_4": (512, 16),
}

#: device -> batches of the style vector
GRAM_BATCHES: dict[str, tuple[int, ...]] = {"cpu": (1, 4), "cuda": (1, 4, 16)}

"""The encoder that inverts photos into W+ (pSp, Richardson et al. 2021), and the face recognition that it learns by.

Both are an IR-SE50 (Deng et al. 2019, ArcFace) with the key names of published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.nn import winograd
from anifast.nn.stylegan2_layers import EqualLinear, without_autocast

#: Channels and number of blocks of the body's four groups.
GROUPS = ((64, 3), (128, 4), (256, 14), (512, 3))
#: The blocks behind which maps are taken: 1/4, 1/8 and 1/16 of the side.
TAPS = (6, 20, 23)
#: The side of the square that pictures are pooled to.
SIDE = 256
#: Slots that are read from the coarse and from the middle maps; the others from the fine ones.
COARSE, MIDDLE = 3, 4


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution without a bias, one zero on each side, by Winograd kernels where they are faster.

    Args:
        channels: in.
        width: out.
        stride: of the convolution.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """N,in,H,W -> N,out,ceil(H/stride),ceil(W/stride)."""
        if self.stride == (1, 1) and winograd.is_faster(x, self.weight):
            return winograd.convolve(x, self.weight, act=False, gain=1.0)
        return super().forward(x)


class SqueezeExcite(nn.Module):
    """Channels weighted by what all of a picture's pixels are like (Hu et al. 2018).

    Args:
        channels: of the maps.
        reduction: factor of the narrow layer.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> the same shape."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class Bottleneck(nn.Module):
    """The improved residual block: norm, convolution, PReLU, convolution with the stride, norm, squeeze-excite.

    Args:
        channels: in.
        width: out.
        stride: of the second convolution and of the way past.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer = None
        if channels != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            Conv3x3(channels, width),
            nn.PReLU(width),
            Conv3x3(width, width, stride),
            nn.BatchNorm2d(width),
            SqueezeExcite(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N,in,H,W -> N,out,H/stride,W/stride."""
        if self.shortcut_layer is None:
            past = x[:, :, :: self.stride, :: self.stride]
        else:
            past = self.shortcut_layer(x)
        found: Tensor = past + self.res_layer(x)
        return found


def _input_layer() -> nn.Sequential:
    return nn.Sequential(Conv3x3(3, 64), nn.BatchNorm2d(64), nn.PReLU(64))


def _body() -> nn.Sequential:
    blocks, channels = [], 64
    for width, count in GROUPS:
        for k in range(count):
            blocks.append(Bottleneck(channels, width, 2 if k == 0 else 1))
            channels = width
    return nn.Sequential(*blocks)


class Head(nn.Module):
    """One slot's code from maps: convolutions of stride 2 down to one pixel, then a linear layer.

    Args:
        width: channels, and width of the code.
        halvings: how many convolutions.
    """

    def __init__(self, width: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.01, inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> N,C."""
        x = self.convs(x)
        with without_autocast(x):
            found: Tensor = self.linear(x.to(self.linear.weight.dtype).mean(dim=(2, 3)))  # of one pixel
        return found


class PSPEncoder(nn.Module):
    """Photos to W+ (section 3.6).

    Args:
        n_latent: L, the generator's slots.
        side: of the square that pictures are pooled to, a multiple of 16; up to 256.
    """

    latent_avg: Tensor

    def __init__(self, n_latent: int, side: int = SIDE) -> None:
        super().__init__()
        self.side = side
        self.input_layer, self.body = _input_layer(), _body()
        width = GROUPS[-1][0]
        depths = [4 + (k >= COARSE) + (k >= COARSE + MIDDLE) for k in range(n_latent)]  # 16 to 64 pixels down to 1
        self.styles = nn.ModuleList(Head(width, depth) for depth in depths)
        self.latlayer1 = nn.Conv2d(GROUPS[2][0], width, 1)
        self.latlayer2 = nn.Conv2d(GROUPS[1][0], width, 1)
        self.register_buffer("latent_avg", torch.zeros(n_latent, width))

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures N,3,side,side -> maps of 1/4, 1/8 and 1/16 of the side."""
        x, found = self.input_layer(x), []
        for k, block in enumerate(self.body):
            x = block(x)
            if k in TAPS:
                found.append(x)
        fine, middle, coarse = found
        return fine, middle, coarse

    def pyramid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures N,3,side,side -> what the heads read: fine, middle and coarse maps of 512 channels."""
        c1, c2, c3 = self.taps(x)
        p2 = _enlarged(c3, c2) + self.latlayer1(c2)
        p1 = _enlarged(p2, c1) + self.latlayer2(c1)
        return p1, p2, c3

    def offsets(self, x: Tensor) -> Tensor:
        """Pictures N,3,side,side -> codes beside the mean, [N, L, 512]."""
        p1, p2, c3 = self.pyramid(x)
        maps = [c3] * COARSE + [p2] * MIDDLE + [p1] * len(self.styles)
        return torch.stack([head(maps[k]) for k, head in enumerate(self.styles)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures N,3,H,W in [-1, 1], of any size -> W+ [N, L, 512] in float32."""
        if images.shape[2:] != (self.side, self.side):
            images = F.adaptive_avg_pool2d(images, self.side)
        return self.offsets(images) + self.latent_avg


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class FaceRecognition(nn.Module):
    """ArcFace's IR-SE50: a unit vector for each face, by which the identity loss compares.

    Keys are those of the published `model_ir_se50.pth`.
    """

    #: The part of a 256 x 256 picture that it sees (rows, columns), and the side that this is pooled to.
    CROP, SIDE = (slice(35, 223), slice(32, 220)), 112

    def __init__(self) -> None:
        super().__init__()
        self.input_layer, self.body = _input_layer(), _body()
        width = GROUPS[-1][0]
        # dropout and flattening at 1 and 2: keys are named after 0, 3 and 4
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(width * 7 * 7, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Faces N,3,256,256 in [-1, 1], aligned as in FFHQ -> [N, 512] of length 1."""
        rows, columns = self.CROP
        x = F.adaptive_avg_pool2d(images[:, :, rows, columns], self.SIDE)
        return F.normalize(self.output_layer(self.body(self.input_layer(x))), dim=1)


def mean_of(latent_avg: Tensor, n_latent: int) -> Tensor:
    """A checkpoint's `latent_avg`, of shape [512], [1,512], [L,512] or [1,L,512], as [L, 512].

    Raises:
        ValueError: another shape.
    """
    shape: Sequence[int] = latent_avg.shape
    found = latent_avg.reshape(-1, shape[-1]) if latent_avg.dim() in (1, 2, 3) else latent_avg
    if found.dim() != 2 or len(found) not in (1, n_latent):
        raise ValueError(
            f"latent_avg has shape {tuple(shape)}, expected [512], [1, 512], [{n_latent}, 512] or [1, {n_latent}, 512]"
        )
    return found.expand(n_latent, -1).contiguous()

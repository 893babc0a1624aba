"""The two networks of CycleGAN: ResNet generator and 70x70 PatchGAN discriminator.

Parameters carry the reference implementation's names (`model.1.weight`, ...), so its files load as they are; the number
is the position in its sequential container. Images are N,C,H,W in [-1, 1].

Instance norm here has no affine part and no running statistics: train() and eval() do the same. It takes the mean away,
so the bias of a convolution right before it cannot change anything. Such a bias is a buffer: kept for the files' sake,
never added, never trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.errors import CheckpointError
from anifast.ops import bias_lrelu, instance_norm
from anifast.systems.cyclegan.config import Config


def reflect(x: Tensor, pad: int) -> Tensor:
    """Reflection padding on all four sides."""
    return F.pad(x, (pad, pad, pad, pad), mode="reflect")


def _fast_layout(x: Tensor) -> Tensor:
    """Channels innermost: the layout in which oneDNN on CPUs and tensor cores on GPUs convolve without reordering."""
    return x.contiguous(memory_format=torch.channels_last)


class Conv(nn.Module):
    """A convolution, padding in front, bias behind.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: side of the square kernel.
        stride: step of the kernel.
        padding: pixels put around the image.
        mode: what they hold, "zero" or "reflect".
        live: the bias has an effect, because no instance norm follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        mode: str = "zero",
        live: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.mode, self.live = stride, padding, mode, live
        self.weight = nn.Parameter(_fast_layout(torch.empty(self._shape(inputs, outputs, kernel))))
        self.bias: Tensor
        if live:
            self.bias = nn.Parameter(torch.empty(outputs))
        else:
            self.register_buffer("bias", torch.empty(outputs))

    def _shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, int, int, int]:
        return outputs, inputs, kernel, kernel

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,h,w."""
        bias = self.bias if self.live else None
        if self.mode == "reflect":
            return F.conv2d(reflect(x, self.padding), self.weight, bias, self.stride)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding)


class LReLUConv(Conv):
    """A convolution whose bias and leaky ReLU (slope 0.2) are one fused pass."""

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,h,w."""
        return bias_lrelu(F.conv2d(x, self.weight, None, self.stride, self.padding), self.bias, slope=0.2, gain=1.0)


class UpConv(Conv):
    """A 3x3 transposed convolution that doubles height and width; weight in,out,3,3.

    The library's kernel is fast in channels_last only (N,C,H,W: a quarter of the speed on CPUs); the four-phase form
    lost to it there (benchmarks/LOG.md).
    """

    def _shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, int, int, int]:
        return inputs, outputs, kernel, kernel

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,2H,2W."""
        return F.conv_transpose2d(x, self.weight, None, stride=2, padding=1, output_padding=1)


class ResizeConv(Conv):
    """Twice the size by nearest neighbours, then a 3x3 convolution: no checkerboard, more work than `UpConv`."""

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,2H,2W."""
        return F.conv2d(reflect(F.interpolate(x, scale_factor=2, mode="nearest"), 1), self.weight)


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), reflection padding, no ReLU behind the sum.

    Args:
        channels: of input and output.
        branch_relu: a further ReLU before the sum (the selfie2anime report's own code).
    """

    def __init__(self, channels: int, branch_relu: bool = False) -> None:
        super().__init__()
        self.branch_relu = branch_relu
        self.conv_block = nn.ModuleDict(
            {index: Conv(channels, channels, 3, padding=1, mode="reflect") for index in ("1", "5")}
        )

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W with H, W >= 2 -> the same shape."""
        h = instance_norm(self.conv_block["1"](x), slope=0.0)
        return instance_norm(self.conv_block["5"](h), slope=0.0 if self.branch_relu else 1.0, residual=x)


class Generator(nn.Module):
    """7x7 stem, two stride-2 convolutions, residual blocks, two transposed convolutions, 7x7 and tanh.

    Args:
        blocks: residual blocks; 9 has 11,378,179 parameters, 6 has 7,837,699 (width 64).
        width: channels of the stem.
        down_padding: of the stride-2 convolutions: "zero", or "reflect" as in the selfie2anime report's own code.
        branch_relu: see `ResidualBlock`.
        skip: the network gives the change of the image instead of the image: output = input + 2 tanh(...). It starts
            near the identity and stays sharp, which small networks and short runs need; not in the published files.
        upsample: "transpose" as published, or "resize" against checkerboards.
        channels: of input and output images.
    """

    def __init__(
        self,
        blocks: int = 9,
        width: int = 64,
        *,
        down_padding: str = "zero",
        branch_relu: bool = False,
        skip: bool = False,
        upsample: str = "transpose",
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.blocks, self.skip = blocks, skip
        w, b = width, blocks
        up = {"transpose": UpConv, "resize": ResizeConv}[upsample]
        self.model = nn.ModuleDict(
            {
                "1": Conv(channels, w, 7, padding=3, mode="reflect"),
                "4": Conv(w, 2 * w, 3, stride=2, padding=1, mode=down_padding),
                "7": Conv(2 * w, 4 * w, 3, stride=2, padding=1, mode=down_padding),
                **{f"{10 + j}": ResidualBlock(4 * w, branch_relu) for j in range(b)},
                f"{10 + b}": up(4 * w, 2 * w, 3),
                f"{13 + b}": up(2 * w, w, 3),
                f"{17 + b}": Conv(w, channels, 7, padding=3, mode="reflect", live=True),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """N,C,H,W in [-1, 1], H and W multiples of 4 and at least 8 -> the same shape, in (-1, 1) without skip."""
        net, b = self.model, self.blocks
        x = _fast_layout(images)
        for index in ("1", "4", "7"):
            x = instance_norm(net[index](x), slope=0.0)
        for j in range(b):
            x = net[f"{10 + j}"](x)
        for index in (f"{10 + b}", f"{13 + b}"):
            x = instance_norm(net[index](x), slope=0.0)
        # Half precision would lose half a grey level near +-1, so tanh runs in the images' own type.
        out = torch.tanh(net[f"{17 + b}"](x).to(images.dtype))
        return images + 2.0 * out if self.skip else out


class Discriminator(nn.Module):
    """Scores overlapping 70x70 patches: 256 px gives 1x30x30 raw scores. 2,764,737 parameters at width 64.

    Args:
        width: channels of the first layer.
        sigmoid: squash the scores (the selfie2anime report's own code).
        channels: of the input images.
    """

    def __init__(self, width: int = 64, *, sigmoid: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        w = width
        self.model = nn.ModuleDict(
            {
                "0": LReLUConv(channels, w, 4, stride=2, padding=1, live=True),
                "2": Conv(w, 2 * w, 4, stride=2, padding=1),
                "5": Conv(2 * w, 4 * w, 4, stride=2, padding=1),
                "8": Conv(4 * w, 8 * w, 4, padding=1),
                "11": Conv(8 * w, 1, 4, padding=1, live=True),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """N,C,H,W in [-1, 1], H and W at least 24 -> N,1,h,w scores in the images' type."""
        x = self.model["0"](_fast_layout(images))
        for index in ("2", "5", "8"):
            x = instance_norm(self.model[index](x), slope=0.2)
        x = self.model["11"](x).to(images.dtype)
        return torch.sigmoid(x) if self.sigmoid else x


def build_generator(config: Config) -> Generator:
    """A generator as the settings describe it, its weights not yet set."""
    return Generator(
        config.blocks,
        config.width,
        down_padding=config.down_padding,
        branch_relu=config.branch_relu,
        skip=config.skip,
        upsample=config.upsample,
    )


def build_discriminator(config: Config) -> Discriminator:
    """A discriminator as the settings describe it, its weights not yet set."""
    return Discriminator(config.d_width, sigmoid=config.sigmoid)


def fill(net: nn.Module, weights: Mapping[str, Tensor], name: str, *, assign: bool = False) -> None:
    """Put the weights of a file into `net`, called `name` in messages; `assign` takes the tensors themselves.

    Raises:
        CheckpointError: keys or shapes of another architecture.
    """
    try:
        net.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(f"{name} has another architecture: {lines}") from error


def initialise(net: nn.Module, how: str, generator: torch.Generator) -> None:
    """Draw all weights of `net` anew.

    Args:
        net: a generator or discriminator.
        how: "normal": every weight N(0, 0.02), every bias 0. "conv": only the weights of plain convolutions are
            N(0, 0.02); transposed ones and all biases are PyTorch's default, U(-r, r) with r = 1 / sqrt(fan in).
        generator: source of the numbers.
    """
    for conv in net.modules():
        if not isinstance(conv, Conv):
            continue
        with torch.no_grad():
            r = float(conv.weight[0].numel()) ** -0.5
            if how == "conv" and isinstance(conv, UpConv):
                conv.weight.uniform_(-r, r, generator=generator)
            else:
                conv.weight.normal_(0.0, 0.02, generator=generator)
            if how == "conv":
                conv.bias.uniform_(-r, r, generator=generator)
            else:
                conv.bias.zero_()
    if isinstance(net, Generator) and net.skip:
        with torch.no_grad():  # begin near the identity
            net.get_parameter(f"model.{17 + net.blocks}.weight").mul_(0.1)

"""The networks of the disentangling system, with the parameter names of its authors' code.

Encoder, classifiers and discriminator go through a trunk of levels from left to right, the generator from right to
left. A level halves (or doubles) its maps in its first (last) block; each block has one convolution beside a shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.nn import winograd
from anifast.nn.stylegan2_layers import without_autocast
from anifast.ops.gated_residual import gated_residual
from anifast.systems.disentangle.config import Config

#: Mean and standard deviation of PReLU with slope 0.25 on N(0, 1): E = 0.75 / sqrt(2 pi), E[x^2] = (1 + 1/16) / 2.
MEAN = 0.75 / math.sqrt(2 * math.pi)
STD = math.sqrt(0.53125 - MEAN**2)
#: softplus(_ONE) is 1.
_ONE = math.log(math.e - 1)
#: Of a convolution by an op that could do more.
_PLAIN: dict[str, Any] = {"act": False, "gain": 1.0}


def unit_norm(layer: nn.Module) -> nn.Module:
    """Bring the weights of each output unit to L2 norm 1 (transposed convolutions to 2, for the stride product 4)."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    with torch.no_grad():
        weight = layer.weight
        transposed = isinstance(layer, nn.ConvTranspose2d)
        over = [dim for dim in range(weight.ndim) if dim != int(transposed)]
        norm = (weight.square().sum(over, keepdim=True) + 1e-8).sqrt()
        weight.mul_((math.prod(layer.stride) ** 0.5 if isinstance(layer, nn.ConvTranspose2d) else 1.0) / norm)
    return layer


class Activation(nn.Module):
    """Centred PReLU, (prelu(x; slope_c) - MEAN) / STD with a slope for each channel, or ReLU, which has no parameter.

    Args:
        features: channels.
        kind: "cprelu" or "relu".
    """

    def __init__(self, features: int, kind: str = "cprelu") -> None:
        super().__init__()
        self.kind = kind
        if kind == "cprelu":
            self.weight = nn.Parameter(torch.full((features,), 0.25))
        else:
            self.register_buffer("zeros", torch.zeros(features), persistent=False)

    def constants(self) -> dict[str, Any]:
        """What the op gated_residual takes of it: slope, mean and deviation."""
        if self.kind == "relu":
            return {"slope": self.zeros}
        return {"slope": self.weight, "mean": MEAN, "std": STD}

    def forward(self, x: Tensor) -> Tensor:
        """N,C,... -> the same shape."""
        if self.kind == "relu":
            return F.relu(x)
        return (F.prelu(x, self.weight.to(x.dtype)) - MEAN) / STD


class BatchRegularization(nn.Module):
    """Measures how far a batch's features are from mean 0 and variance 1 behind a learnt shift and scale.

    Args:
        features: channels.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.pre_mean = nn.Parameter(torch.zeros(features))
        self.pre_pstd = nn.Parameter(torch.full((features,), _ONE))
        # The authors' code meant to keep averages here and never stored any: they are as in all its files.
        self.register_buffer("real_mean", torch.zeros(features))
        self.register_buffer("real_lstd", torch.zeros(features))
        self.register_buffer("real_w", torch.tensor(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,... -> mean over channels of mean^2 + (log variance)^2, a float; N is at least 2."""
        with without_autocast(x):
            z = x.to(self.pre_mean.dtype).flatten(2) if x.ndim > 2 else x.to(self.pre_mean.dtype)[:, :, None]
            z = (z - self.pre_mean[:, None]) / F.softplus(self.pre_pstd)[:, None]
            mean = z.mean((0, 2))
            variance = (z.square().mean((0, 2)) - mean.square()) * (len(x) / (len(x) - 1))
            # A dead channel has variance 0, whose logarithm the authors' code does not survive.
            return (mean.square() + variance.clamp(min=1e-8).log().square()).mean()


class Block(nn.Module):
    """What all blocks share: the gates of residue and shortcut, and batch regularisation behind the sum.

    Args:
        features: channels out.
        ratio: the residue's share of the variance at the start.
        regularised: with batch regularisation.
    """

    def __init__(self, features: int, ratio: float, regularised: bool = False) -> None:
        super().__init__()
        self.residue_ratio = nn.Parameter(torch.full((features,), ratio**0.5))
        self.shortcut_ratio = nn.Parameter(torch.full((features,), (1 - ratio) ** 0.5))
        self.batch_reg = BatchRegularization(features) if regularised else None

    def gated(self, x: Tensor, shortcut: Tensor, up: int = 1, crop: int = 0) -> Tensor:
        """g_s * shortcut + g_r * act(x + bias), with bias and activation of `residue`; `up` and `crop` as in the op."""
        layer, *act = self.residue  # type: ignore[misc]
        how: dict[str, Any] = {"slope": None}
        if act:
            assert isinstance(act[0], Activation)
            how = act[0].constants()
        return gated_residual(
            x, shortcut, self.residue_ratio, self.shortcut_ratio, bias=layer.bias, up=up, crop=crop, **how
        )


class ResidueBlock(Block):
    """g_s * shortcut(x) + g_r * act(conv(x)).

    Args:
        before: channels in.
        features: channels out.
        ratio: see `Block`.
        stride: 1: 3x3; 2: 6x6 that halves; -2: transposed 6x6 that doubles.
        pad: further padding of the halving block, and what the doubling one cuts off on each side.
        act: of the residue: "cprelu", "relu" or "none".
        regularised: see `Block`.
    """

    def __init__(
        self,
        before: int,
        features: int,
        ratio: float,
        stride: int = 1,
        pad: int = 0,
        act: str = "cprelu",
        regularised: bool = False,
    ) -> None:
        super().__init__(features, ratio, regularised)
        self.stride, self.pad = stride, pad
        conv: nn.Module
        if stride == -2:
            conv = nn.ConvTranspose2d(before, features, 6, 2, 2 + pad)
        else:
            conv = nn.Conv2d(before, features, 3 if stride == 1 else 6, stride, 1 if stride == 1 else 2 + pad)
        # As in the authors' files: residue.0 the convolution, residue.1 the slopes, shortcut.1 the 1x1 convolution.
        self.residue = nn.Sequential(unit_norm(conv), *([Activation(features, act)] if act != "none" else []))
        self.shortcut = (
            nn.Sequential(nn.Identity(), unit_norm(nn.Conv2d(before, features, 1)))
            if before != features
            else nn.Sequential()
        )

    def forward(self, x: Tensor) -> Tensor:
        """N,before,H,W -> N,features, and H and W by the stride."""
        shortcut = F.avg_pool2d(x, 2, 2, self.pad) if self.stride == 2 else x
        if self.stride == -2:
            return self.gated(self.convolved(x), self.shortcut(shortcut), 2, self.pad)
        return self.gated(self.convolved(x), self.shortcut(shortcut))

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution without its bias."""
        weight = self.residue[0].weight
        assert isinstance(weight, Tensor)
        if self.stride == 1:
            return (
                winograd.convolve(x, weight, **_PLAIN)
                if winograd.is_faster(x, weight)
                else F.conv2d(x, weight, padding=1)
            )
        if self.stride == 2:
            if winograd.is_faster_six(x, weight, self.pad):
                return winograd.convolve_six(F.pad(x, (self.pad,) * 4) if self.pad else x, weight)
            return F.conv2d(x, weight, None, 2, 2 + self.pad)
        if not winograd.is_faster_six_transposed(x, weight):
            return F.conv_transpose2d(x, weight, None, 2, 2 + self.pad)
        y = winograd.convolve_six_transposed(x, weight)
        return y[:, :, self.pad : -self.pad, self.pad : -self.pad] if self.pad else y


class BusBlock(Block):
    """g_s * x + g_r * what the block has read from weighted means over the whole map.

    Args:
        features: channels.
        ratio, regularised: see `Block`.
    """

    def __init__(self, features: int, ratio: float, regularised: bool = False) -> None:
        super().__init__(features, ratio, regularised)
        self.write_value_map = unit_norm(nn.Conv2d(features, features, 1))
        self.weight_map = unit_norm(nn.Conv2d(features, features, 1))
        self.read_value_map = unit_norm(nn.Linear(features, features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> the same shape."""
        value, weight = self.write_value_map(x).flatten(2), F.softplus(self.weight_map(x).flatten(2))
        pooled = (value * weight).sum(2) / (weight.sum(2) + 1e-4)
        read = self.read_value_map(pooled) * self.residue_ratio
        return x * self.shortcut_ratio[:, None, None] + read[:, :, None, None].to(x.dtype)


class NonlocalBlock(Block):
    """g_s * x + g_r * what each position has read from all others, by how its key meets theirs.

    Args:
        features: channels.
        ratio, regularised: see `Block`.
        width: channels of a message's keys and values; None: as the authors choose it.
        messages: their number; None: likewise.
    """

    def __init__(
        self,
        features: int,
        ratio: float,
        regularised: bool = False,
        width: int | None = None,
        messages: int | None = None,
    ) -> None:
        super().__init__(features, ratio, regularised)
        self.width = width or min(features // 4, 64)
        self.messages = messages or max(features // 256, 1)
        wide = self.width * self.messages
        self.write_value_map = unit_norm(nn.Conv2d(features, wide, 1))
        self.write_key_map = unit_norm(nn.Conv2d(features, wide, 1))
        self.read_key_map = unit_norm(nn.Conv2d(features, wide, 1))
        self.read_value_map = unit_norm(nn.Conv2d(wide, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> the same shape."""
        value, key, query = (
            one(x).reshape(len(x) * self.messages, self.width, -1)
            for one in (self.write_value_map, self.write_key_map, self.read_key_map)
        )
        weight = F.softplus(query.transpose(1, 2) @ key)
        weight = weight / (weight.sum(2, keepdim=True) + 1e-4)
        read = (value @ weight.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
        return x * self.shortcut_ratio[:, None, None] + self.read_value_map(read) * self.residue_ratio[:, None, None]


class SpatialTransform(nn.Module):
    """Resamples maps at positions that their last two channels shift, in half pixels.

    Attributes:
        penalty: of the last call, how much its positions fold over; None before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor, penalised: int | None = None) -> Tensor:
        """N,C+2,H,W -> N,C,H,W; `penalised`: how many of the first rows the penalty sees, None: all."""
        with without_autocast(x):
            value, offset = x[:, :-2].float() if x.dtype != torch.float64 else x[:, :-2], x[:, -2:]
            offset = offset.to(value.dtype)
            first = offset[:penalised]
            self.penalty = _folds(first[:, :1]) + _folds(first[:, 1:].transpose(2, 3))
            height, width = x.shape[2:]
            columns = torch.linspace(-1, 1, width, dtype=value.dtype, device=x.device)
            rows = torch.linspace(-1, 1, height, dtype=value.dtype, device=x.device)[:, None]
            grid = torch.stack([offset[:, 0] / width + columns, offset[:, 1] / height + rows], 3).clamp(-1, 1)
            return F.grid_sample(value, grid, "bilinear", "zeros", align_corners=True).to(x.dtype)


def _folds(offset: Tensor) -> Tensor:
    """Mean over positions of how far one column's shifts pass those of the next by more than a half pixel each."""
    largest, smallest = F.max_pool2d(offset, (2, 1), 1), -F.max_pool2d(-offset, (2, 1), 1)
    distance = smallest[:, :, :, 1:] - largest[:, :, :, :-1]
    return F.relu(-(distance + 1)).mean()


class LinearResidueBlock(Block):
    """g_s * h + g_r * act(linear(h)).

    Args:
        features: width.
        ratio, regularised: see `Block`.
        act: "cprelu" or "relu".
    """

    def __init__(self, features: int, ratio: float, act: str = "cprelu", regularised: bool = False) -> None:
        super().__init__(features, ratio, regularised)
        self.residue = nn.Sequential(unit_norm(nn.Linear(features, features)), Activation(features, act))

    def forward(self, x: Tensor) -> Tensor:
        """N,features -> the same shape."""
        return self.gated(F.linear(x, self.residue[0].weight), x)  # type: ignore[arg-type]


def paddings(size: int, levels: int) -> tuple[list[int], int]:
    """Further padding of each halving, finest first, and the side of the coarsest maps.

    A side that is no multiple of 4 is padded by one pixel on either side, in all levels but the last.
    """
    pads = []
    for _ in range(levels - 1):
        pads.append(size % 4 // 2)
        size = (size + 2) // 4 * 2
    return [*pads, 0], size // 2


def _ratios(levels: Sequence[str]) -> Iterator[float]:
    """The residue's share in each block as they run: w_k / (1 + w_1 + ... + w_k) with w = 1 / blocks of its level."""
    total = 1.0
    for level in levels:
        for _ in level:
            total += 1 / len(level)
            yield 1 / len(level) / total


def _fill(letter: str, width: int, ratio: float, act: str, regularised: bool) -> list[nn.Module]:
    """A block that changes neither size nor width."""
    if letter == "b":
        return [BusBlock(width, ratio, regularised)]
    if letter == "n":
        return [NonlocalBlock(width, ratio, regularised)]
    if letter == "t":
        return [ResidueBlock(width, width + 2, ratio, act=act), SpatialTransform()]
    return [ResidueBlock(width, width, ratio, act=act, regularised=regularised)]


def _penalty(net: nn.Module, x: Tensor, penalties: list[Tensor] | None, rows: int) -> Tensor:
    """x; what the block's batch regularisation finds in its first rows is added to `penalties`, if that is given."""
    if penalties is not None and getattr(net, "batch_reg", None) is not None:
        penalties.append(net.batch_reg(x[:rows]))  # type: ignore[operator]
    return x


class Trunk(nn.Module):
    """Levels and one fully connected layer, which encoder, classifiers and discriminator begin with.

    Args:
        config: sizes.
        regularised: with batch regularisation.
    """

    def __init__(self, config: Config, regularised: bool = False) -> None:
        super().__init__()
        widths, letters = config.widths, config.levels()
        pads, side = paddings(config.size, len(widths))
        ratios, before = _ratios(letters), config.channels
        self.levels = nn.ModuleList()
        for width, pad, level in zip(widths, pads, letters, strict=True):
            blocks: list[nn.Module] = [
                ResidueBlock(before, width, next(ratios), 2, pad, config.activation, regularised)
            ]
            for letter in level[1:]:
                blocks += _fill(letter, width, next(ratios), config.activation, regularised)
            self.levels.append(nn.Sequential(*blocks))
            before = width
        self.fc = nn.Sequential(unit_norm(nn.Linear(before * side * side, config.fc)))
        if regularised:
            self.fc.append(BatchRegularization(config.fc))
        self.fc.append(Activation(config.fc, config.activation))

    def features(self, x: Tensor, penalties: list[Tensor] | None = None, rows: int | None = None) -> Tensor:
        """N,channels,size,size -> N,fc.

        Args:
            x: pictures.
            penalties: gets the batch regularisation of all blocks.
            rows: how many of the first pictures it sees; None: all.
        """
        count = len(x) if rows is None else rows
        for level in self.levels:
            for block in level:  # type: ignore[attr-defined]
                x = _penalty(block, block(x), penalties, count)
        x = self.fc[0](x.flatten(1))
        if len(self.fc) > 2 and penalties is not None:
            penalties.append(self.fc[1](x[:count]))
        y: Tensor = self.fc[-1](x)
        return y


class Encoder(Trunk):
    """E: content codes as normal distributions.

    Args:
        config: sizes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mean = unit_norm(nn.Linear(config.fc, config.content_size))
        self.pstd = unit_norm(nn.Linear(config.fc, config.content_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures N,channels,size,size -> mean and standard deviation, each N,content_size, float32 at least."""
        h = self.features(x)
        with without_autocast(h):
            h = h.to(self.mean.weight.dtype)  # type: ignore[arg-type]
            return self.mean(h), F.softplus(self.pstd(h))


class Classifier(Trunk):
    """C1 and C2: logits of the artists.

    Args:
        config: sizes.
        classes: number of artists.
    """

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__(config, config.regularised)
        self.cla = unit_norm(nn.Linear(config.fc, classes))

    def forward(self, x: Tensor, penalties: list[Tensor] | None = None, rows: int | None = None) -> Tensor:
        """Pictures N,channels,size,size -> logits N,classes, float32 at least; see `Trunk.features`."""
        h = self.features(x, penalties, rows)
        with without_autocast(h):
            logits: Tensor = self.cla(h.to(self.cla.weight.dtype))  # type: ignore[arg-type]
            return logits


class Discriminator(Trunk):
    """D: one score, 1 for real pictures and -1 for generated ones.

    Args:
        config: sizes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.regularised)
        self.dis = unit_norm(nn.Linear(config.fc, 1))

    def forward(self, x: Tensor, penalties: list[Tensor] | None = None, rows: int | None = None) -> Tensor:
        """Pictures N,channels,size,size -> scores N, float32 at least; see `Trunk.features`."""
        h = self.features(x, penalties, rows)
        with without_autocast(h):
            return self.dis(h.to(self.dis.weight.dtype))[:, 0]  # type: ignore[arg-type]

    def take_trunk(self, classifier: Classifier) -> None:
        """Begin with the weights of a classifier's trunk; the head stays as it is."""
        own = {key: value for key, value in classifier.state_dict().items() if not key.startswith("cla.")}
        self.load_state_dict(self.state_dict() | own)


class CodeClassifier(nn.Module):
    """C1 for codes (an ablation of the paper): fully connected residual blocks.

    Args:
        codes: numbers of a code.
        width: of the layers.
        layers: their number.
        classes: number of artists.
        act: "cprelu" or "relu".
    """

    def __init__(self, codes: int, width: int, layers: int, classes: int, act: str = "cprelu") -> None:
        super().__init__()
        # The authors' classifier of codes always has batch regularisation, whose penalty counts if it has a weight.
        self.net = nn.Sequential(
            unit_norm(nn.Linear(codes, width)),
            BatchRegularization(width),
            Activation(width, act),
            *(LinearResidueBlock(width, 1 / (k + 2), act, True) for k in range(layers - 1)),
            unit_norm(nn.Linear(width, classes)),
        )

    def forward(self, code: Tensor, penalties: list[Tensor] | None = None, rows: int | None = None) -> Tensor:
        """Codes N,codes -> logits N,classes, float32 at least; see `Trunk.features`."""
        count = len(code) if rows is None else rows
        x = self.net[0](code)
        if penalties is not None:
            penalties.append(self.net[1](x[:count]))
        x = self.net[2](x)
        for block in list(self.net)[3:-1]:
            x = _penalty(block, block(x), penalties, count)
        last = self.net[-1]
        with without_autocast(x):
            logits: Tensor = last(x.to(last.weight.dtype))
            return logits


class Generator(nn.Module):
    """G: pictures from content and style codes.

    Args:
        config: sizes.
        codes: numbers of content and style code together.
        channels: of the pictures; None: those that networks see, without alpha.
    """

    def __init__(self, config: Config, codes: int, channels: int | None = None) -> None:
        super().__init__()
        widths = config.widths
        pads, self.side = paddings(config.size, len(widths))
        act = config.activation
        flat = widths[-1] * self.side**2
        self.fc = nn.Sequential(
            unit_norm(nn.Linear(codes, config.fc)),
            Activation(config.fc, act),
            unit_norm(nn.Linear(config.fc, flat)),
            Activation(flat, act),
        )
        narrower = [min(config.channels, 3) if channels is None else channels, *widths[:-1]]
        letters = config.levels("gen_blocks")[::-1]
        ratios = _ratios(letters)
        self.levels = nn.ModuleList()
        for depth, level in zip(reversed(range(len(widths))), letters, strict=True):
            blocks: list[nn.Module] = []
            for letter in reversed(level[1:]):
                blocks += _fill(letter, widths[depth], next(ratios), act, False)
            warped = level[0] == "t"
            blocks.append(
                ResidueBlock(
                    widths[depth],
                    narrower[depth] + 2 * warped,
                    next(ratios),
                    -2,
                    pads[depth],
                    act if depth else "none",
                )
            )
            if warped:
                blocks.append(SpatialTransform())
            self.levels.append(nn.Sequential(*blocks))

    def forward(self, code: Tensor, penalised: int | None = None) -> Tensor:
        """Codes N,content + style -> pictures N,channels,size,size in (-1, 1).

        Args:
            code: content, then style.
            penalised: how many of the first rows `warp_penalty` sees; None: all.
        """
        x = self.fc(code).unflatten(1, (-1, self.side, self.side))
        for level in self.levels:
            for block in level:  # type: ignore[attr-defined]
                x = block(x, penalised) if isinstance(block, SpatialTransform) else block(x)
        return torch.tanh(x if x.dtype == torch.float64 else x.float())

    def warp_penalty(self) -> Tensor | None:
        """The sum over spatial transforms of how much they folded in the last call; None: there are none."""
        found = [one.penalty for one in self.modules() if isinstance(one, SpatialTransform) and one.penalty is not None]
        return torch.stack(found).sum() if found else None


class StyleBank(nn.Module):
    """S: a normal distribution for each artist, brought to mean 0 and variance 1 over the population of pictures.

    Args:
        frequency: of each artist among the pictures; sums to 1.
        size: numbers of a style code.
    """

    def __init__(self, frequency: Tensor, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(len(frequency), size))
        self.pstd = nn.Parameter(torch.full((len(frequency), size), _ONE))
        self.register_buffer("class_freq", frequency.float())

    def population(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the population before it is normalised, each [size]."""
        with without_autocast(self.mean):  # half types would lose the variance beside the square of the mean
            frequency = self.get_buffer("class_freq").to(self.mean.dtype)
            mean = frequency @ self.mean
            variance = frequency @ ((self.mean - mean).square() + F.softplus(self.pstd).square())
            return mean, (variance + 1e-8).sqrt()

    def table(self) -> tuple[Tensor, Tensor]:
        """Means and deviations of all artists, each classes,size."""
        mean, std = self.population()
        return (self.mean - mean) / std, F.softplus(self.pstd) / std

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Artists [N] -> mean and deviation of their styles, each N,size."""
        mean, std = self.population()
        return (self.mean[labels] - mean) / std, F.softplus(self.pstd[labels]) / std

    def divergence(self) -> Tensor:
        """KL from N(0, 1), a mean over pictures, for each number of a code: [size]."""
        mean, std = self.table()
        with without_autocast(mean):
            frequency = self.get_buffer("class_freq").to(mean.dtype)
            return frequency @ ((mean.square() + std.square()) * 0.5 - std.log() - 0.5)

    @torch.no_grad()
    def covariance(self) -> Tensor:
        """Of styles of artists that are all alike frequent: size,size."""
        mean, std = (x.double() for x in self.table())
        return (mean.T @ mean + torch.diag(std.square().sum(0))) / len(mean)


def networks(config: Config, frequency: Tensor, stage: str) -> dict[str, nn.Module]:
    """The networks of a stage, drawn from the run's seed: stage1, classifier or stage2."""
    state, classes = torch.get_rng_state(), len(frequency)
    torch.manual_seed(config.seed % 2**63)
    try:
        style = config.style_width(classes)
        nets: dict[str, nn.Module] = {}
        if stage != "classifier":
            nets["E"] = Encoder(config)
            nets["G"] = Generator(config, config.content_size + style)
            if style:
                nets["S"] = StyleBank(frequency, style)
        if stage == "stage1" and style:
            if config.c1_input == "code":
                nets["C1"] = CodeClassifier(
                    config.content_size, config.mlp_width, config.mlp_layers, classes, config.activation
                )
            else:
                nets["C1"] = Classifier(config, classes)
        if stage in ("classifier", "stage2"):
            nets["C2"] = Classifier(config, classes)
        if stage == "stage2":
            nets["D"] = Discriminator(config)
        return nets
    finally:
        torch.set_rng_state(state)

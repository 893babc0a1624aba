"""The networks of Twin-GAN: encoder and generator that two domains share, two discriminators, and an encoder of styles.

What tells the domains apart are the norms of encoder and generator alone: each domain has its own scales, shifts and
statistics in `Norms`. A batch is a stack of groups, each of one domain and with statistics of its own: [source; target]
for an encoder, [both reconstructed; both translated] for the generator. Images are N,3,H,W in [0, 1].

A network is made for one phase: the side of its pictures, and whether its last layers fade in. `adopt` takes over what
the phase before has learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anifast.nn import winograd
from anifast.nn.stylegan2_layers import without_autocast
from anifast.ops import bias_lrelu, domain_norm
from anifast.systems.twingan.config import REMEMBERING, Config, sides

#: How much of the statistics that batch norm and renorm remember a step keeps.
_DECAY = {"batch_renorm": 0.99, "batch_norm": 0.999}
_EPS = {"batch_renorm": 1e-3, "batch_norm": 1e-3, "instance_norm": 1e-6, "layer_norm": 1e-12}
#: Until which step of a phase rmin, rmax and dmax of batch renorm are what they are.
LIMITS = (
    (10_000, (0.9, 1.1, 0.1)),
    (20_000, (0.66, 1.5, 0.3)),
    (30_000, (0.5, 2.0, 0.5)),
    (math.inf, (0.25, 4.0, 1.0)),
)
_PIXEL_EPS = 1e-6


def limits(step: int) -> tuple[float, float, float]:
    """rmin, rmax and dmax of batch renorm in this step of a phase, counted from 0."""
    return next(values for last, values in LIMITS if step <= last)


def down(x: Tensor) -> Tensor:
    """Half the size, by 2x2 averages."""
    return F.avg_pool2d(x, 2)


def up(x: Tensor) -> Tensor:
    """Twice the size, by nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _convolved(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """A convolution of stride 1, by the Winograd kernels where they are faster."""
    if kernel.shape[2] == 3 and padding == 1 and winograd.is_faster(x, kernel):
        return winograd.convolve(x, kernel, act=False, gain=1.0)
    return F.conv2d(x, kernel, padding=padding)


def _doubling(kernel: Tensor) -> Tensor:
    """O,I,3,3 -> I,O,4,4: of the transposed convolution of stride 2 that doubles (nearest neighbours) and convolves."""
    taps = kernel.flip(2, 3).transpose(0, 1)
    taps = F.pad(taps, (0, 1, 0, 0)) + F.pad(taps, (1, 0, 0, 0))
    return F.pad(taps, (0, 0, 0, 1)) + F.pad(taps, (0, 0, 1, 0))


class Conv(nn.Module):
    """A convolution of stride 1 without bias, weights from N(0, 0.02).

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: side of the square kernel.
        padding: pixels of zeros around the maps; None: as many as keep the size.
        equalized: weights from N(0, 1), scaled by sqrt(2 / (inputs * kernel^2)) where they are used.
        spectral: divided by their largest singular value, found by one power iteration a pass in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        padding: int | None = None,
        equalized: bool = False,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.padding = kernel // 2 if padding is None else padding
        self.taps: Tensor | None = None  # see `Generator.freeze`
        self.scale = math.sqrt(2.0 / (inputs * kernel**2)) if equalized else 1.0
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * (1.0 if equalized else 0.02))
        if spectral:
            spectral_norm(self, "weight")

    @property
    def kernel(self) -> Tensor:
        """The weights as they are used."""
        return self.weight if self.scale == 1.0 else self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,H',W'."""
        return _convolved(x, self.kernel, self.padding)

    def doubled(self, low: Tensor, skip: Tensor | None, split: bool = True) -> Tensor:
        """This convolution on [`low` at twice the size; `skip`], channels joined.

        Nothing of that is built with `split`: the doubling and a 3x3 kernel are one transposed convolution of stride 2
        with a 4x4 kernel, which takes 4 products a pixel instead of 9, and maps that several groups are given are
        convolved once.

        Args:
            low: k*N,C,H,W.
            skip: N,S,2H,2W, for each of the k parts of `low`; None: none.
            split: whether to go this way.
        """
        kernel, many = self.kernel, low.shape[1]
        if not split:
            x = up(low)
            return F.conv2d(x if skip is None else torch.cat([x, _repeated(skip, len(low))], dim=1), kernel, padding=1)
        taps = _doubling(kernel[:, :many]) if self.taps is None else self.taps
        out = F.conv_transpose2d(low, taps, stride=2, padding=1)
        if skip is None:
            return out
        return out + _repeated(_convolved(skip, kernel[:, many:], 1), len(low))


def _repeated(x: Tensor, count: int) -> Tensor:
    """x as often as makes `count` rows."""
    return x if len(x) == count else torch.cat([x] * (count // len(x)))


def _spread(rows: Tensor, each: int) -> Tensor:
    """Each row so often, one after the other."""
    return rows.unsqueeze(1).expand(-1, each, -1).flatten(0, 1)


def _wide(x: Tensor) -> Tensor:
    """x in float32, if it is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Linear(nn.Module):
    """A fully connected layer, weights from N(0, 0.02), no bias at first.

    Args:
        inputs: in.
        outputs: out.
        equalized: see `Conv`; the factor is sqrt(2 / inputs).
        spectral: see `Conv`.
    """

    def __init__(self, inputs: int, outputs: int, *, equalized: bool = False, spectral: bool = False) -> None:
        super().__init__()
        self.scale = math.sqrt(2.0 / inputs) if equalized else 1.0
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (1.0 if equalized else 0.02))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if spectral:
            spectral_norm(self, "weight")

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs -> N,outputs."""
        return F.linear(x * self.scale if self.scale != 1.0 else x, self.weight, self.bias)


class Statistics(NamedTuple):
    """What a pass of a network has found, to be remembered by `Norms.remember`.

    Attributes:
        domains: of its groups.
        mean: of all layers, side by side, [groups, channels].
        std: the same, of sqrt(variance + eps).
    """

    domains: tuple[int, ...]
    mean: Tensor
    std: Tensor

    def groups(self, first: int, last: int) -> Statistics:
        """Those of some of the groups."""
        return Statistics(self.domains[first:last], self.mean[first:last], self.std[first:last])


class Norms(nn.Module):
    """The norms of all layers of a network, for each domain its own: scales, shifts and what is remembered of batches.

    They lie side by side in one tensor of each kind, [domains, channels of all layers], so that a pass fetches its rows
    and a step remembers its statistics in a few operations for all layers together.

    Args:
        layers: name -> channels, in the order of their use.
        kind: "batch_renorm" (Ioffe 2017, arXiv 1702.03275), "batch_norm", "instance_norm", "layer_norm", or "none",
            which has a bias alone.
        dimensions: of a condition, that scales and shifts follow by a linear map; 0: none.
        pixel_norm: whether pixel norm comes behind activations.
        domains: how many there are.

    Attributes:
        source: what evaluation normalises by: "running" (what is remembered), "recalibrated" (statistics of passes
            that are deployed, and elsewhere those of the other passes, or, where there are none, "running"), or
            "batch".
    """

    layer_of_channel: Tensor
    renorm_limits: Tensor
    running_mean: Tensor
    running_var: Tensor
    recalibrated_mean: Tensor
    recalibrated_var: Tensor
    recalibrated_else_mean: Tensor
    recalibrated_else_var: Tensor
    recalibrated_steps: Tensor
    renorm_mean: Tensor
    renorm_std: Tensor
    renorm_weight: Tensor

    def __init__(
        self, layers: Mapping[str, int], kind: str, dimensions: int = 0, pixel_norm: bool = True, domains: int = 2
    ) -> None:
        super().__init__()
        self.layers, self.kind, self.dimensions, self.pixel_norm = dict(layers), kind, dimensions, pixel_norm
        self.domains, self.source = domains, "running"
        self.sizes = list(self.layers.values())
        total = sum(self.sizes)
        self.beta = nn.Parameter(torch.zeros(domains, total))
        if kind != "none":
            self.gamma = nn.Parameter(torch.ones(domains, total))
        if dimensions:
            self.gamma_weight = nn.Parameter(torch.randn(domains, total, dimensions) * 0.02)
            self.beta_weight = nn.Parameter(torch.randn(domains, total, dimensions) * 0.02)
        if kind in REMEMBERING:
            self.register_buffer("running_mean", torch.zeros(domains, total))
            self.register_buffer("running_var", torch.ones(domains, total))
            self.register_buffer("recalibrated_mean", torch.full((domains, total), math.nan))
            self.register_buffer("recalibrated_var", torch.full((domains, total), math.nan))
            self.register_buffer("recalibrated_else_mean", torch.full((domains, total), math.nan))
            self.register_buffer("recalibrated_else_var", torch.full((domains, total), math.nan))
            self.register_buffer("recalibrated_steps", torch.zeros(()))
        if kind == "batch_renorm":
            self.register_buffer("renorm_mean", torch.zeros(domains, total))
            self.register_buffer("renorm_std", torch.zeros(domains, total))
            self.register_buffer("renorm_weight", torch.zeros(domains, len(self.layers), 2))
            numbers = [i for i, size in enumerate(self.sizes) for _ in range(size)]
            # no part of the weights, so that they have to be there also in networks that are `empty`
            for name, values in (("layer_of_channel", numbers), ("renorm_limits", LIMITS[0][1])):
                self.register_buffer(name, torch.tensor(values, device="cpu"), persistent=False)
        self._rows: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    @property
    def eps(self) -> float:
        """What is added to variances."""
        return _EPS[self.kind]

    @property
    def by_batch(self) -> bool:
        """Whether the next pass normalises by the statistics of its own batch."""
        return self.training or self.source == "batch"

    @property
    def remembers(self) -> bool:
        """Whether evaluation needs what training has remembered."""
        return self.kind in REMEMBERING

    def columns(self, layer: str) -> slice:
        """Where a layer's channels lie."""
        first = sum(self.sizes[: list(self.layers).index(layer)])
        return slice(first, first + self.layers[layer])

    @torch.no_grad()
    def begin_at(self, layer: str, mean: float, std: float) -> None:
        """Let a layer's results begin with this mean and standard deviation."""
        self.beta[:, self.columns(layer)] = mean
        if self.kind != "none":
            self.gamma[:, self.columns(layer)] = std

    def rows(self, values: Tensor, domains: tuple[int, ...]) -> Tensor:
        """Those of the domains, [len(domains), ...]."""
        if domains == tuple(range(self.domains)):
            return values
        key = (domains, values.device)
        if key not in self._rows:  # made once: a tensor from numbers of Python makes the device wait
            self._rows[key] = torch.tensor(domains, device=values.device)
        return values.index_select(0, self._rows[key])

    def begin(
        self, domains: tuple[int, ...], count: int, condition: Tensor | None = None, deployed: bool = True
    ) -> Pass:
        """A pass of the network.

        Args:
            domains: of the groups that its batch is a stack of.
            count: images.
            condition: [count, dimensions], for each image; None: none, as all zeros would have it.
            deployed: whether it is one of those that recalibrated statistics are of: real pictures in an encoder,
                translations in the generator.
        """
        return Pass(self, domains, count, condition, deployed)

    @torch.no_grad()
    def recalibrate(self, deployed: Sequence[Statistics], others: Sequence[Statistics]) -> None:
        """Take statistics of a step into the recalibrated ones: their means over all steps, later over the last 100.

        Args:
            deployed: of passes that are deployed, with one group of each domain in all.
            others: the same of the other passes.
        """
        if not self.remembers:
            return
        share = (1.0 / (self.recalibrated_steps + 1.0)).clamp(min=0.01)
        first = self.recalibrated_steps == 0
        for found, means, variances in (
            (deployed, self.recalibrated_mean, self.recalibrated_var),
            (others, self.recalibrated_else_mean, self.recalibrated_else_var),
        ):
            for one in found:
                for row, domain in enumerate(one.domains):
                    mean, std = one.mean[row].to(means), one.std[row].to(means)
                    old, variance = means[domain], variances[domain]
                    spread = torch.lerp((variance + self.eps).sqrt(), std, share)
                    old.copy_(torch.where(first, mean, torch.lerp(old, mean, share)))
                    variance.copy_(torch.where(first, std, spread).square() - self.eps)
        self.recalibrated_steps += 1.0

    @torch.no_grad()
    def remember(self, found: Sequence[Statistics]) -> None:
        """Take the statistics of passes of a step into the running ones, in this order.

        For batch renorm (M, wM, S, wS and the running values of all layers, decay 0.99):
            M <- .99 M + .01 mean, wM <- .99 wM + .01, the same with S for the std,
            running mean <- .99 running mean + .01 M / wM, running variance <- .99 ... + .01 ((S / wS)^2 - eps).
        """
        if not self.remembers:
            return
        keep = _DECAY[self.kind]
        for one in found:
            for first in range(0, len(one.domains), self.domains):
                part = one.domains[first : first + self.domains]
                mean, std = (values[first : first + len(part)] for values in (one.mean, one.std))
                if sorted(part) == list(range(self.domains)):  # each domain once: all of them together
                    order = tuple(part.index(domain) for domain in range(self.domains))
                    self._remember(slice(None), self.rows(mean, order), self.rows(std, order), keep)
                    continue
                for row, domain in enumerate(part):
                    self._remember(slice(domain, domain + 1), mean[row : row + 1], std[row : row + 1], keep)

    def _remember(self, rows: slice, mean: Tensor, std: Tensor, keep: float) -> None:
        """Of these domains, each with one row of every statistic."""
        if self.kind == "batch_renorm":
            self.renorm_mean[rows].lerp_(mean.to(self.renorm_mean), 1.0 - keep)
            self.renorm_std[rows].lerp_(std.to(self.renorm_std), 1.0 - keep)
            self.renorm_weight[rows].mul_(keep).add_(1.0 - keep)
            weights = self._by_channel(self.renorm_weight[rows])
            mean, std = self.renorm_mean[rows] / weights[..., 0], self.renorm_std[rows] / weights[..., 1]
        self.running_mean[rows].lerp_(mean.to(self.running_mean), 1.0 - keep)
        self.running_var[rows].lerp_((std.square() - self.eps).to(self.running_var), 1.0 - keep)

    def _by_channel(self, weights: Tensor) -> Tensor:
        """d,layers,2 -> d,channels,2."""
        return weights.index_select(1, self.layer_of_channel)

    def usual(self, deployed: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and variance that evaluation normalises by, [domains, channels]; `deployed`: see `begin`.

        Raises:
            RuntimeError: recalibrated ones are wanted and there are none.
        """
        if self.source == "recalibrated" and deployed:
            if not self.recalibrated:
                raise RuntimeError("these norms have not been recalibrated")
            return self.recalibrated_mean, self.recalibrated_var
        if self.source == "recalibrated" and not bool(self.recalibrated_else_mean.isnan().any()):
            return self.recalibrated_else_mean, self.recalibrated_else_var
        return self.running_mean, self.running_var

    @property
    def recalibrated(self) -> bool:
        """Whether there are recalibrated statistics."""
        return self.remembers and not bool(self.recalibrated_mean.isnan().any())


class Pass:
    """One pass of a network through its norms; made by `Norms.begin`.

    Attributes:
        found: what the pass has found so far, for `statistics`.
    """

    def __init__(
        self, norms: Norms, domains: tuple[int, ...], count: int, condition: Tensor | None, deployed: bool = True
    ) -> None:
        if not domains or count % len(domains):
            raise ValueError(f"{count} images are no stack of {len(domains)} groups of one size")
        self.norms, self.domains, self.count = norms, domains, count
        self.found: list[tuple[Tensor, Tensor]] = []
        names = list(norms.layers)
        beta = norms.rows(norms.beta, domains)
        gamma = norms.rows(norms.gamma, domains) if norms.kind != "none" else None
        self.groups = count if norms.kind == "instance_norm" else len(domains)
        each = count // len(domains)
        if condition is not None and norms.dimensions:
            if norms.kind != "instance_norm":
                condition = F.normalize(condition, dim=1, eps=1e-6)
            gamma = gamma if gamma is None else self._conditional(gamma, norms.gamma_weight, condition, each)
            beta = self._conditional(beta, norms.beta_weight, condition, each)
        elif self.groups != len(domains):
            beta = _spread(beta, each)
            gamma = gamma if gamma is None else _spread(gamma, each)
        self._beta = dict(zip(names, beta.split(norms.sizes, 1), strict=True))
        self._gamma = {} if gamma is None else dict(zip(names, gamma.split(norms.sizes, 1), strict=True))
        self._places = dict(zip(names, range(len(names)), strict=True))
        self._held: list[tuple[Tensor, ...]] = []
        self._weights: Tensor | None = None
        if norms.remembers:
            kept = norms.kind == "batch_renorm" and norms.training
            columns = [norms.renorm_mean, norms.renorm_std] if kept else []
            if not norms.by_batch:
                mean, variance = norms.usual(deployed)
                columns = [mean, (variance + norms.eps).sqrt()]
            split = [norms.rows(one, domains).split(norms.sizes, 1) for one in columns]
            self._held = list(zip(*split, strict=True))
            if kept:
                self._weights = norms.rows(norms.renorm_weight, domains)

    def _conditional(self, rows: Tensor, weight: Tensor, condition: Tensor, each: int) -> Tensor:
        """rows + W c of the domain of each image, [count, channels]."""
        weights = self.norms.rows(weight, self.domains)  # groups,channels,dimensions
        with without_autocast(weights):
            moved = torch.bmm(condition.view(len(self.domains), each, -1), weights.transpose(1, 2))
        return (rows.unsqueeze(1) + moved).flatten(0, 1)

    def __call__(self, name: str, x: Tensor, slope: float = 0.2, pixel_norm: bool = True) -> Tensor:
        """The norm of a layer, leaky ReLU (slope 1: none) and pixel norm, N,C,H,W -> the same."""
        norms, beta = self.norms, self._beta[name]
        pixel_norm = pixel_norm and norms.pixel_norm
        if norms.kind in ("none", "layer_norm"):
            return self._plain(x, name, beta, slope, pixel_norm)
        renorm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        statistics: tuple[Tensor, Tensor] | None = None
        if self._held:
            place = self._places[name]
            if self._weights is not None:
                mean_memory, std_memory = self._held[place]
                renorm = mean_memory, std_memory, self._weights[:, place], norms.renorm_limits
            else:
                mean, std = self._held[place]
                statistics = mean, std
        out, mean, std = domain_norm(
            x,
            self._gamma[name],
            beta,
            groups=self.groups,
            renorm=renorm,
            statistics=statistics,
            slope=slope,
            pixel_norm=pixel_norm,
            eps=norms.eps,
            pixel_eps=_PIXEL_EPS,
        )
        if norms.by_batch and norms.remembers:
            self.found.append((mean, std))
        return out

    def _plain(self, x: Tensor, name: str, beta: Tensor, slope: float, pixel_norm: bool) -> Tensor:
        """Norms that no batch has a part in: over all of an image, or none."""
        each = self.count // len(self.domains)
        shape = (self.count, -1, *[1] * (x.dim() - 2))
        y = _wide(x) if self.norms.kind == "layer_norm" or pixel_norm else x
        if self.norms.kind == "layer_norm":
            y = F.group_norm(y, 1, eps=self.norms.eps) * _spread(self._gamma[name], each).view(shape)
        y = y + _spread(beta, each).view(shape)
        if slope != 1.0:
            y = F.leaky_relu(y, slope)
        if pixel_norm:
            y = y * (y.square().mean(1, keepdim=True) + _PIXEL_EPS).rsqrt()
        return y.to(x.dtype)

    def statistics(self) -> Statistics:
        """What `Norms.remember` takes, of a pass that is over."""
        if not self.found:
            empty = torch.empty(0)
            return Statistics(self.domains, empty, empty)
        means, stds = zip(*self.found, strict=True)
        return Statistics(self.domains, torch.cat(means, 1), torch.cat(stds, 1))


@contextmanager
def normalised_by(norms: Iterable[Norms], source: str) -> Iterator[None]:
    """Let norms normalise by something else inside; see `Norms.source`."""
    before = [(one, one.source) for one in norms]
    try:
        for one, _ in before:
            one.source = source
        yield
    finally:
        for one, kept in before:
            one.source = kept


class Attention(nn.Module):
    """Self-attention (Zhang et al. 2018, arXiv 1805.08318): x + gamma * (softmax(f g^T) h), gamma 0 at first.

    f, g: 1x1 convolutions to an eighth of the channels, with tanh; h: one to all channels. In encoder and generator
    these have a norm, in discriminators a bias.

    Args:
        channels: of x.
        name: prefix of its layers' norms.
        biases: whether there are biases, instead of norms.
        settings: equalized and spectral of `Conv`.
    """

    def __init__(self, channels: int, name: str, biases: bool, **settings: bool) -> None:
        super().__init__()
        self.name, few = name, max(1, channels // 8)
        self.f, self.g = Conv(channels, few, 1, **settings), Conv(channels, few, 1, **settings)
        self.h = Conv(channels, channels, 1, **settings)
        if biases:
            self.biases = nn.ParameterList([torch.zeros(few), torch.zeros(few), torch.zeros(channels)])
        self.gamma = nn.Parameter(torch.zeros(1))

    @staticmethod
    def layers(channels: int, name: str) -> dict[str, int]:
        """Its layers with norms and their channels."""
        few = max(1, channels // 8)
        return {f"{name}.f": few, f"{name}.g": few, f"{name}.h": channels}

    def forward(self, x: Tensor, norm: Pass | None = None) -> Tensor:
        """N,C,H,W -> the same."""
        maps = []
        for i, (part, conv) in enumerate((("f", self.f), ("g", self.g), ("h", self.h))):
            y = conv(x)
            if norm is not None:
                y = norm(f"{self.name}.{part}", y, slope=1.0, pixel_norm=False)
            else:
                y = y + self.biases[i].view(1, -1, 1, 1).to(y.dtype)
            maps.append(y.flatten(2))
        f, g, h = maps
        with without_autocast(x):
            weights = torch.softmax(_wide(f.tanh().transpose(1, 2)) @ _wide(g.tanh()), dim=-1)  # N,queries,keys
            out = (self.gamma * (_wide(h) @ weights.transpose(1, 2))).to(x.dtype)
        return x + out.view(x.shape)


class Latent(NamedTuple):
    """What an encoder makes of images.

    Attributes:
        z: N,C,4,4.
        skips: side -> N,C',side,side, for the generator's block of that side.
        found: statistics of the pass.
    """

    z: Tensor
    skips: dict[int, Tensor]
    found: Statistics


def _blocks(side: int) -> list[int]:
    """Sides of the blocks of a network whose pictures have this side, from the largest to 8."""
    return [2**k for k in range(int(math.log2(side)), 2, -1)]


class Encoder(nn.Module):
    """Images to a 4x4 map, halved block by block; spec: fromRGB, then at each side two 3x3 convolutions and a pool.

    Args:
        config: channels, norms, options.
        side: of the images.
        fading: whether the layers of this side fade in.
        style: the second encoder, whose head gives a vector of `config.style`.
    """

    def __init__(self, config: Config, side: int, fading: bool, style: bool = False) -> None:
        super().__init__()
        self.config, self.side, self.fading = config, side, fading
        channels = config.channels
        how = {"equalized": config.equalized, "spectral": config.spectral_norm and config.spectral_norm_g}
        layers: dict[str, int] = {}
        self.from_rgb, self.blocks, self.attention = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for one in (side, side // 2) if fading else (side,):
            self.from_rgb[str(one)] = Conv(3, channels(one), 1, **how)
            layers[f"from_rgb.{one}"] = channels(one)
        for one in _blocks(side):
            same, more = channels(one), channels(one // 2)
            if config.self_attention and one == config.attention_size:
                name = f"attention.{one}"
                self.attention[str(one)] = Attention(same, name, False, **how)
                layers |= Attention.layers(same, name)
            self.blocks[str(one)] = nn.ModuleList([Conv(same, same, 3, **how), Conv(same, more, 3, **how)])
            layers |= {f"blocks.{one}.0": same, f"blocks.{one}.1": more}
        if style:
            last = channels(4)
            self.head = nn.ModuleList([Conv(last, last, 3, **how), Conv(last, last, 4, padding=0, **how)])
            self.out = Linear(last, config.style, **how)
            layers |= {"head.0": last, "head.1": last}
        self.norms = Norms(layers, config.norm, pixel_norm=config.pixel_norm)

    def forward(
        self, x: Tensor, domains: tuple[int, ...], alpha: Tensor | float = 1.0, deployed: bool = True
    ) -> Latent:
        """Encode.

        Args:
            x: N,3,side,side in [0, 1], a stack of groups.
            domains: of the groups.
            alpha: how far the layers of this side have faded in, 0 to 1.
            deployed: whether these are real pictures, not painted ones; of recalibrated statistics, see `Norms.begin`.
        """
        norm = self.norms.begin(domains, len(x), deployed=deployed)
        h = norm(f"from_rgb.{self.side}", self.from_rgb[str(self.side)](x))
        half: Tensor | None = None
        if self.fading:
            low = self.side // 2
            half = norm(f"from_rgb.{low}", self.from_rgb[str(low)](down(x)))
        skips: dict[int, Tensor] = {}
        for one, block in self.blocks.items():
            side = int(one)
            if one in self.attention:
                h = self.attention[one](h, norm)
            for i, conv in enumerate(cast(nn.ModuleList, block)):
                h = norm(f"blocks.{one}.{i}", conv(h))
            skips.setdefault(side, h)
            h = down(h)
            if side == self.side and half is not None:
                h = torch.lerp(half, h, _weight(alpha, h))
                if self._by_name(side // 2):
                    skips[side // 2] = h
        if hasattr(self, "head"):
            for i, conv in enumerate(self.head):
                h = norm(f"head.{i}", conv(h), pixel_norm=False)
            with without_autocast(h):
                h = self.out(_wide(h.flatten(1)))
        return Latent(h, skips, norm.statistics())

    def _by_name(self, half: int) -> bool:
        """Whether the author's code hands over the faded map at this side, whose name has the same channels in it."""
        channels = self.config.channels
        return self.config.fade_skip == "code" and half > 4 and channels(half) == channels(half // 2)


def _weight(alpha: Tensor | float, like: Tensor) -> Tensor | float:
    """For torch.lerp, in the type of what it mixes."""
    return alpha.to(like.dtype) if isinstance(alpha, Tensor) else alpha


class Generator(nn.Module):
    """A latent and the encoder's maps to images: 4x4, then doubled block by block, each on [doubled; encoder's map].

    Args:
        config: channels, norms, options.
        side: of the images.
        fading: whether the layers of this side fade in.
        dimensions: of a condition that the norms follow; 0: none.
    """

    def __init__(self, config: Config, side: int, fading: bool, dimensions: int = 0) -> None:
        super().__init__()
        self.config, self.side, self.fading = config, side, fading
        channels = config.channels
        how = {"equalized": config.equalized, "spectral": config.spectral_norm and config.spectral_norm_g}
        layers: dict[str, int] = {}
        self.blocks, self.attention, self.to_rgb = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for one in reversed([*_blocks(side), 4]):
            wide, before = channels(one), channels(max(4, one // 2))
            if 4 < one <= config.skips_up_to:
                before += channels(one // 2)
            self.blocks[str(one)] = nn.ModuleList([Conv(before, wide, 3, **how), Conv(wide, wide, 3, **how)])
            layers |= {f"blocks.{one}.0": wide, f"blocks.{one}.1": wide}
            if config.self_attention and one == config.attention_size:
                name = f"attention.{one}"
                self.attention[str(one)] = Attention(wide, name, False, **how)
                layers |= Attention.layers(wide, name)
            if one == side or (fading and one == side // 2):
                self.to_rgb[str(one)] = Conv(wide, 3, 1, **how)
                layers[f"to_rgb.{one}"] = 3
        self.norms = Norms(layers, config.norm, dimensions, config.pixel_norm)
        if config.rgb_start:
            for key in self.to_rgb:
                self.norms.begin_at(f"to_rgb.{key}", mean=0.5, std=0.25)

    def forward(
        self,
        z: Tensor,
        skips: Mapping[int, Tensor],
        domains: tuple[int, ...],
        alpha: Tensor | float = 1.0,
        condition: Tensor | None = None,
        copies: int = 1,
        deployed: bool = True,
    ) -> tuple[Tensor, Statistics]:
        """Paint.

        Args:
            z: N,C,4,4, a stack of groups.
            skips: of the encoder that made z.
            domains: to paint the groups in; with `copies` all groups first in these, then in those: two groups painted
                twice in (0, 1, 1, 0) are four groups that come out.
            alpha: how far the layers of this side have faded in, 0 to 1.
            condition: [images that come out, dimensions]; None: none.
            copies: how often each group is painted.
            deployed: whether these are translations, not reconstructions; of recalibrated statistics, see
                `Norms.begin`.

        Returns:
            Images, of no bounds (about [0, 1]), and the statistics of the pass. What does not depend on the domain, the
            first convolution and those of the encoder's maps, is computed once for all copies.
        """
        norm = self.norms.begin(domains, copies * len(z), condition, deployed)
        split = self.config.split_up
        h, half = z, z
        for one, block in self.blocks.items():
            first, second = cast(tuple[Conv, Conv], tuple(cast(nn.ModuleList, block)))
            side = int(one)
            if side > 4:
                h = first.doubled(h, skips[side] if side <= self.config.skips_up_to else None, split)
            elif split:
                h = _repeated(first(h), copies * len(z))
            else:
                h = first(_repeated(h, copies * len(z)))
            h = norm(f"blocks.{one}.0", h)
            h = norm(f"blocks.{one}.1", second(h))
            if one in self.attention:
                h = self.attention[one](h, norm)
            if self.fading and side == self.side // 2:
                half = up(self._colours(norm, one, h))
        out = self._colours(norm, str(self.side), h)
        if self.fading:
            out = torch.lerp(half, out, _weight(alpha, out))
        return out, norm.statistics()

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep what each pass makes of the weights alone, for weights that stay as they are."""
        if not self.config.split_up:
            return
        for one, block in self.blocks.items():
            first = cast(Conv, cast(nn.ModuleList, block)[0])
            if int(one) > 4:
                first.taps = _doubling(first.kernel[:, : self.config.channels(int(one) // 2)]).contiguous()

    def _colours(self, norm: Pass, side: str, h: Tensor) -> Tensor:
        return _wide(norm(f"to_rgb.{side}", self.to_rgb[side](h), slope=1.0, pixel_norm=False))


def minibatch_stddev(x: Tensor, groups: int = 1) -> Tensor:
    """x with a channel behind it: sqrt(variance + 1e-8) over a group's images, averaged over all values to one number.

    Args:
        x: N,C,H,W, a stack of groups that have nothing to do with one another.
        groups: how many.
    """
    parts = _wide(x).unflatten(0, (groups, len(x) // groups))
    spread = (parts.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    channel = spread.to(x.dtype).view(groups, 1, 1, 1, 1).expand(-1, parts.shape[1], 1, *x.shape[2:])
    return torch.cat([x, channel.flatten(0, 1)], dim=1)


class Judgement(NamedTuple):
    """What a discriminator says.

    Attributes:
        scores: [N], logits.
        tags: [N, tags], logits, or None.
    """

    scores: Tensor
    tags: Tensor | None


class BiasConv(Conv):
    """`Conv` with a bias and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, **how: bool | int | None) -> None:
        super().__init__(inputs, outputs, kernel, **how)  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """N,inputs,H,W -> N,outputs,H',W'."""
        return bias_lrelu(super().forward(x), self.bias, slope=0.2, gain=1.0)


class Discriminator(nn.Module):
    """The encoder's blocks without norms, minibatch stddev, a 3x3 and a 4x4 convolution, and one linear layer.

    Args:
        config: channels, options.
        side: of the images.
        fading: whether the layers of this side fade in.
        tags: how many tags it is told and recognises; 0: none.
    """

    tag_matrix: Tensor

    def __init__(self, config: Config, side: int, fading: bool, tags: int = 0) -> None:
        super().__init__()
        self.config, self.side, self.fading = config, side, fading

        def channels(one: int) -> int:
            return config.channels(one, discriminator=True)

        how = {"equalized": config.equalized, "spectral": config.spectral_norm}
        self.from_rgb, self.blocks, self.attention = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for one in (side, side // 2) if fading else (side,):
            self.from_rgb[str(one)] = BiasConv(3, channels(one), 1, **how)
        for one in _blocks(side):
            same, more = channels(one), channels(one // 2)
            if config.self_attention and one == config.attention_size:
                self.attention[str(one)] = Attention(same, f"attention.{one}", True, **how)
            self.blocks[str(one)] = nn.Sequential(BiasConv(same, same, 3, **how), BiasConv(same, more, 3, **how))
        last = channels(4)
        if tags:
            self.register_buffer("tag_matrix", torch.rand(tags, config.tag_width))
            self.tag_head = Linear(last, tags, **how)
        seen = last + 1 + (config.tag_width if tags else 0)
        self.head = nn.Sequential(BiasConv(seen, last, 3, **how), BiasConv(last, last, 4, padding=0, **how))
        self.out = Linear(last, 1, **how)

    def forward(
        self,
        x: Tensor,
        groups: int = 1,
        alpha: Tensor | float = 1.0,
        tags: Tensor | None = None,
        recognise: bool = True,
    ) -> Judgement:
        """Judge.

        Args:
            x: N,3,side,side in [0, 1], a stack of groups, each compared within itself alone.
            groups: how many.
            alpha: how far the layers of this side have faded in, 0 to 1.
            tags: [N, tags], for a discriminator that is told them; None: nothing is told. What it recognises it does
                without being told.
            recognise: whether tags are wanted, where it has learnt any.
        """
        h = self.from_rgb[str(self.side)](x)
        half = self.from_rgb[str(self.side // 2)](down(x)) if self.fading else None
        for one, block in self.blocks.items():
            if one in self.attention:
                h = self.attention[one](h)
            h = down(block(h))
            if half is not None and int(one) == self.side:
                h = torch.lerp(half, h, _weight(alpha, h))
        recognised = None
        if hasattr(self, "tag_head"):
            # told nothing, or the answer would be copied
            recognised = self._last(self._told(h, None), groups) if recognise else None
            h = self._told(h, tags)
        h = self._last(h, groups)
        with without_autocast(h):  # logits are float32
            return Judgement(self.out(h).flatten(), None if recognised is None else self.tag_head(recognised))

    def _told(self, h: Tensor, tags: Tensor | None) -> Tensor:
        """h with the channels that tell the tags, or zeros."""
        if tags is None:
            tags = h.new_zeros(len(h), len(self.tag_matrix))
        with without_autocast(h):
            told = (tags @ self.tag_matrix.to(tags)).to(h.dtype)
        return torch.cat([h, told[:, :, None, None].expand(-1, -1, *h.shape[2:])], dim=1)

    def _last(self, h: Tensor, groups: int) -> Tensor:
        """The features before the last layer, [N, channels]."""
        return _wide(self.head(minibatch_stddev(h, groups)).flatten(1))


def build(config: Config, stage: str, tags: int = 0) -> dict[str, nn.Module]:
    """The networks of a phase: E, G, D_s, D_t, and with `config.style` E_style.

    Args:
        config: all settings.
        stage: the phase's name.
        tags: how many tags there are, with `config.tags`.
    """
    side, fading = sides(stage)
    told = tags if config.tags else 0
    nets: dict[str, nn.Module] = {
        "E": Encoder(config, side, fading),
        "G": Generator(config, side, fading, told or config.style),
        "D_s": Discriminator(config, side, fading),
        "D_t": Discriminator(config, side, fading, told),
    }
    if config.style:
        nets["E_style"] = Encoder(config, side, fading, style=True)
    return nets


def empty(config: Config, stage: str, tags: int = 0) -> dict[str, nn.Module]:
    """As `build`, but without weights of their own: `load_state_dict(weights, assign=True)` has to follow.

    No random numbers are drawn, and where there is no spectral norm no memory is used.
    """
    if not config.spectral_norm:
        with torch.device("meta"):
            return build(config, stage, tags)
    with torch.random.fork_rng(devices=[]):  # on meta its first iterations take seconds
        return build(config, stage, tags)


@torch.no_grad()
def adopt(net: nn.Module, before: nn.Module) -> None:
    """Let `net` begin with what `before`, the same network in the phase before, has learnt.

    Layers that both have are taken over, with their norms and all that these remember, but for recalibrated statistics,
    which are of `before` alone; the others stay as they are.
    """
    theirs = before.state_dict()
    for name, value in net.state_dict().items():
        if not name.startswith("norms.") and name in theirs:
            value.copy_(theirs[name])
    if not hasattr(net, "norms"):
        return
    ours, old = net.norms, before.norms
    assert isinstance(ours, Norms) and isinstance(old, Norms)
    kept = old.state_dict()
    for i, layer in enumerate(ours.layers):
        if layer in old.layers:
            here, there = ours.columns(layer), old.columns(layer)
            for name, value in ours.state_dict().items():
                if name == "renorm_weight":
                    value[:, i].copy_(kept[name][:, list(old.layers).index(layer)])
                elif not name.startswith("recalibrated"):
                    value[:, here].copy_(kept[name][:, there])
        elif layer.startswith("to_rgb.") and cast(Generator, net).config.rgb_start:
            colours = max((one for one in old.layers if one.startswith("to_rgb.")), key=lambda one: int(one[7:]))
            for name in ("beta", "gamma"):
                if name in kept:
                    getattr(ours, name)[:, ours.columns(layer)] = kept[name][:, old.columns(colours)]

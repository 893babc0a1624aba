"""Twin-GAN's networks as section 3 of its specification tells them: one set of pictures at a time, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from stepping import move_by_an_ulp
from torch import Tensor, nn

from anifast.systems.twingan.config import Config

#: Section 3.6: decays and what is added to variances; layer norm's is TensorFlow's.
DECAY = {"batch_renorm": 0.99, "batch_norm": 0.999}
EPS = {"batch_renorm": 1e-3, "batch_norm": 1e-3, "instance_norm": 1e-6, "layer_norm": 1e-12, "none": 0.0}


def halved(x: Tensor) -> Tensor:
    """Averages of 2x2 pixels."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).sum((3, 5)) / 4


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def faded(x: Tensor, alpha: float) -> Tensor:
    """Real pictures of a phase that fades in."""
    return alpha * x + (1 - alpha) * doubled(halved(x))


class PlainNet:
    """One of the networks: its weights by their names there, and what its norms remember.

    Attributes:
        values: trainable weights.
        memory: statistics of the norms, [domains, channels of all layers].
        limits: rmin, rmax and dmax of batch renorm.
        training: whether passes normalise by their own batch.
        seen: layer, domain, mean and deviation of each batch that was normalised since `remember`.
    """

    def __init__(self, net: Any, limits: tuple[float, float, float] = (0.9, 1.1, 0.1)) -> None:
        self.config: Config = net.config
        self.side, self.fading = int(net.side), bool(net.fading)
        self.values = {name: nn.Parameter(value.detach().clone()) for name, value in net.named_parameters()}
        self.memory = {name: value.detach().clone() for name, value in net.named_buffers()}
        self.limits = tuple(torch.tensor(limits).tolist())  # they are kept in float32
        self.training = True
        self.seen: list[tuple[str, int, Tensor, Tensor]] = []
        self.steps = int(getattr(getattr(net, "norms", None), "recalibrated_steps", 0))
        self.places: dict[str, tuple[int, slice]] = {}
        first = 0
        for number, (layer, channels) in enumerate(net.norms.layers.items() if hasattr(net, "norms") else ()):
            self.places[layer] = number, slice(first, first + channels)
            first += channels

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """As a module's."""
        return self.values.items()

    def parameters(self) -> Iterable[nn.Parameter]:
        """As a module's."""
        return self.values.values()

    def nudged(self) -> PlainNet:
        """A copy whose weights are each one rounding away, up or down."""
        other = copy.deepcopy(self)
        move_by_an_ulp({"": other})  # type: ignore[dict-item]
        return other

    # --- layers

    def conv(self, layer: str, x: Tensor, padding: int | None = None) -> Tensor:
        """Without bias, at stride 1."""
        weight = self.values[f"{layer}.weight"]
        kernel = weight.shape[2]
        if self.config.equalized:
            x = x * (2 / (weight.shape[1] * kernel**2)) ** 0.5
        return F.conv2d(x, weight, padding=kernel // 2 if padding is None else padding)

    def linear(self, layer: str, x: Tensor) -> Tensor:
        """With a bias."""
        weight = self.values[f"{layer}.weight"]
        if self.config.equalized:
            x = x * (2 / weight.shape[1]) ** 0.5
        return x @ weight.T + self.values[f"{layer}.bias"]

    def norm(self, layer: str, x: Tensor, domain: int, c: Tensor | None = None) -> Tensor:
        """Of one set of pictures; `c`: a condition for each."""
        kind, eps = self.config.norm, EPS[self.config.norm]
        number, columns = self.places[layer]
        names = ("beta",) if kind == "none" else ("beta", "gamma")
        rows = {name: self.values[f"norms.{name}"][domain, columns] for name in names}
        if c is not None:
            if kind != "instance_norm":
                length = c.square().sum(1, keepdim=True).sqrt()
                c = torch.where(length > 0, c / length, 0.0)
            rows = {
                name: row + c @ self.values[f"norms.{name}_weight"][domain, columns].T for name, row in rows.items()
            }
        affine = {name: row.expand(len(x), -1)[..., None, None] for name, row in rows.items()}
        if kind == "none":
            return x + affine["beta"]
        over = {"instance_norm": (2, 3), "layer_norm": (1, 2, 3)}.get(kind, (0, 2, 3))
        mean = x.mean(over, keepdim=True)
        std = ((x - mean).square().mean(over, keepdim=True) + eps).sqrt()
        r, d = torch.ones_like(mean), torch.zeros_like(mean)
        if kind in DECAY and not self.training:
            mean = self.memory["norms.running_mean"][domain, columns].view(1, -1, 1, 1)
            std = (self.memory["norms.running_var"][domain, columns].view(1, -1, 1, 1) + eps).sqrt()
        elif kind in DECAY:
            self.seen.append((layer, domain, mean.detach().flatten(), std.detach().flatten()))
        if kind == "batch_renorm" and self.training:
            w_m, w_s = self.memory["norms.renorm_weight"][domain, number]
            m = self.memory["norms.renorm_mean"][domain, columns].view(1, -1, 1, 1) + (1 - w_m) * mean.detach()
            s = self.memory["norms.renorm_std"][domain, columns].view(1, -1, 1, 1) + (1 - w_s) * std.detach()
            least, most, furthest = self.limits
            r = (std.detach() / s).clamp(least, most)
            d = ((mean.detach() - m) / s).clamp(-furthest, furthest)
        return affine["gamma"] * ((x - mean) / std * r + d) + affine["beta"]

    @torch.no_grad()
    def remember(self) -> None:
        """What was seen goes into the memories, in the order of the passes."""
        kind = self.config.norm
        memory = {name.removeprefix("norms."): value for name, value in self.memory.items()}
        for layer, domain, mean, std in self.seen:
            number, columns = self.places[layer]
            at, keep = (domain, columns), DECAY[kind]

            def fed(name: str, value: Tensor, at: Any = at, keep: float = keep) -> Tensor:
                memory[name][at] = keep * memory[name][at] + (1 - keep) * value
                return memory[name][at]

            if kind == "batch_renorm":
                one = torch.ones((), dtype=mean.dtype)
                mean = fed("renorm_mean", mean) / fed("renorm_weight", one, (domain, number, 0))
                std = fed("renorm_std", std) / fed("renorm_weight", one, (domain, number, 1))
            fed("running_mean", mean)
            fed("running_var", std.square() - EPS[kind])
        self.seen.clear()

    @torch.no_grad()
    def recalibrate(self, last: bool) -> None:
        """Means over steps, later as over the last hundred, of what a layer has seen last or first of a domain.

        And of what it has seen first or last: of the passes that are not deployed.
        """
        share = max(1 / (self.steps + 1), 0.01)
        for which, kind in ((last, "recalibrated"), (not last, "recalibrated_else")):
            chosen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
            for layer, domain, mean, std in self.seen:
                if which or (layer, domain) not in chosen:
                    chosen[layer, domain] = mean, std
            means, variances = (self.memory[f"norms.{kind}_{name}"] for name in ("mean", "var"))
            for (layer, domain), (mean, std) in chosen.items():
                at = domain, self.places[layer][1]
                if self.steps:
                    mean = (1 - share) * means[at] + share * mean
                    std = (1 - share) * (variances[at] + EPS[self.config.norm]).sqrt() + share * std
                means[at], variances[at] = mean, std.square() - EPS[self.config.norm]
        self.steps += 1
        self.memory["norms.recalibrated_steps"].fill_(self.steps)

    def unit(self, layer: str, x: Tensor, domain: int, c: Tensor | None = None, padding: int | None = None) -> Tensor:
        """Convolution, norm, leaky ReLU and pixel norm (section 3.2)."""
        a = F.leaky_relu(self.norm(layer, self.conv(layer, x, padding), domain, c), 0.2)
        if not self.config.pixel_norm or layer.startswith("head."):
            return a
        return a / (a.square().mean(1, keepdim=True) + 1e-6).sqrt()

    def biased(self, layer: str, x: Tensor, padding: int | None = None) -> Tensor:
        """A discriminator's: convolution, bias, leaky ReLU."""
        return F.leaky_relu(self.conv(layer, x, padding) + self.values[f"{layer}.bias"].view(1, -1, 1, 1), 0.2)

    def attend(self, side: int, x: Tensor, domain: int | None = None, c: Tensor | None = None) -> Tensor:
        """Self-attention (section 3.7) where it is; norms where there is a domain, else biases."""
        if not self.config.self_attention or side != self.config.attention_size:
            return x
        maps = []
        for i, part in enumerate("fgh"):
            y = self.conv(f"attention.{side}.{part}", x)
            if domain is None:
                y = y + self.values[f"attention.{side}.biases.{i}"].view(1, -1, 1, 1)
            else:
                y = self.norm(f"attention.{side}.{part}", y, domain, c)
            maps.append((y.tanh() if part != "h" else y).flatten(2))
        f, g, h = maps
        shares = torch.einsum("ncq,nck->nqk", f, g).exp()
        shares = shares / shares.sum(2, keepdim=True)
        o = torch.einsum("nqk,nck->ncq", shares, h).view(x.shape)
        return x + self.values[f"attention.{side}.gamma"] * o

    # --- networks

    @property
    def _sides(self) -> list[int]:
        """Of the blocks, from the largest to 8."""
        return [side for side in (512, 256, 128, 64, 32, 16, 8) if side <= self.side]

    def encode(self, x: Tensor, domain: int, alpha: float = 1.0) -> tuple[Tensor, dict[int, Tensor]]:
        """Latent, and the maps that the generator is handed (section 3.3); a vector, where this encodes styles."""
        c = self.config
        h = self.unit(f"from_rgb.{self.side}", x, domain)
        skips: dict[int, Tensor] = {}
        for side in self._sides:
            faded_in = side * 2 == self.side and self.fading
            given = h
            h = self.attend(side, h, domain)
            for i in range(2):
                h = self.unit(f"blocks.{side}.{i}", h, domain)
            by_name = c.fade_skip == "code" and faded_in and c.channels(side) == c.channels(side // 2)
            skips[side] = given if by_name else h
            h = halved(h)
            if side == self.side and self.fading:
                h = alpha * h + (1 - alpha) * self.unit(f"from_rgb.{side // 2}", halved(x), domain)
        if "head.0.weight" in self.values:
            h = self.unit("head.0", h, domain)
            h = self.unit("head.1", h, domain, padding=0)
            h = self.linear("out", h.flatten(1))
        return h, skips

    def paint(
        self, z: Tensor, skips: dict[int, Tensor], domain: int, alpha: float = 1.0, c: Tensor | None = None
    ) -> Tensor:
        """Pictures (section 3.4)."""

        def colours(side: int, h: Tensor) -> Tensor:
            return self.norm(f"to_rgb.{side}", self.conv(f"to_rgb.{side}", h), domain, c)

        h, low = z, z
        for side in (4, *reversed(self._sides)):
            if side > 4:
                h = doubled(h)
                if side <= self.config.skips_up_to:
                    h = torch.cat([h, skips[side]], 1)
            for i in range(2):
                h = self.unit(f"blocks.{side}.{i}", h, domain, c)
            h = self.attend(side, h, domain, c)
            if self.fading and side * 2 == self.side:
                low = colours(side, h)
        out = colours(self.side, h)
        return alpha * out + (1 - alpha) * doubled(low) if self.fading else out

    def judge(self, x: Tensor, alpha: float = 1.0, tags: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [N], and those of tags (sections 3.5 and 3.8)."""
        h = self.biased(f"from_rgb.{self.side}", x)
        for side in self._sides:
            h = self.attend(side, h)
            for i in range(2):
                h = self.biased(f"blocks.{side}.{i}", h)
            h = halved(h)
            if side == self.side and self.fading:
                h = alpha * h + (1 - alpha) * self.biased(f"from_rgb.{side // 2}", halved(x))
        if "tag_head.weight" not in self.values:
            return self.linear("out", self.last(h)).flatten(), None
        matrix = self.memory["tag_matrix"]
        nothing = torch.zeros(len(x), len(matrix)).to(x)
        # what is in a picture is recognised without being told it
        recognised = self.linear("tag_head", self.last(h, nothing @ matrix))
        return self.linear("out", self.last(h, (nothing if tags is None else tags) @ matrix)).flatten(), recognised

    def last(self, h: Tensor, told: Tensor | None = None) -> Tensor:
        """A discriminator's features of 4x4 maps: what is told, minibatch stddev, two convolutions."""
        if told is not None:
            h = torch.cat([h, told[:, :, None, None].expand(-1, -1, 4, 4)], 1)
        spread = ((h - h.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        h = torch.cat([h, spread.expand(len(h), 1, 4, 4)], 1)
        return self.biased("head.1", self.biased("head.0", h), padding=0).flatten(1)


@torch.no_grad()
def unlike_at_first(nets: dict[str, nn.Module], seed: int = 3) -> None:
    """Weights of about the size that keeps that of maps, and all else as in the midst of a run."""
    source = torch.Generator().manual_seed(seed)

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=source).to(value)

    def uniform(value: Tensor) -> Tensor:
        return torch.rand(value.shape, generator=source).to(value)

    for net in nets.values():
        for name, value in net.named_parameters():
            last = name.rpartition(".")[2]
            if last == "gamma":
                value.copy_(1 + 0.3 * normal(value))
            elif last in ("beta", "bias") or "biases" in name:
                value.copy_(0.3 * normal(value))
            elif last in ("gamma_weight", "beta_weight"):
                value.copy_(0.5 * normal(value))
            elif not net.config.equalized:  # type: ignore[union-attr]
                value.copy_(normal(value) / value[0].numel() ** 0.5)
        norms = getattr(net, "norms", None)
        if norms is None or not norms.remembers:
            continue
        norms.running_mean.copy_(0.5 * normal(norms.running_mean))
        norms.running_var.copy_(0.5 + uniform(norms.running_var))
        if norms.kind == "batch_renorm":
            norms.renorm_weight.copy_(0.5 + 0.4 * uniform(norms.renorm_weight))
            norms.renorm_mean.copy_(0.5 * normal(norms.renorm_mean))
            norms.renorm_std.copy_(0.3 + 0.6 * uniform(norms.renorm_std))

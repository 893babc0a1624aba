"""The disentangling network's training steps in plain eager PyTorch, as one would write them down from the formulas.

Modules of torch.nn with the parameter names of ours, so that they take the same weights; no kernel and no function of
ours. Written are the parts that the presets `paper`, `small`, `nist` and `nist_fast` have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.engine.precision import autocast
from anifast.systems.disentangle.config import Config

#: Mean and standard deviation of PReLU with slope 0.25 on N(0, 1).
MEAN = 0.75 / math.sqrt(2 * math.pi)
STD = math.sqrt((1 + 0.25**2) / 2 - MEAN**2)

Weights = Mapping[str, Mapping[str, Tensor]]


#: What is random in a step: noise N,D of `content` and `style`, and levels [N] of nested dropout, `content_level` and
#: `style_level`.
Draws = Mapping[str, Tensor]


class CPReLU(nn.Module):
    """Centred PReLU with a slope for each channel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((features,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,... -> the same shape."""
        return (F.prelu(x, self.weight.to(x.dtype)) - MEAN) / STD


class Block(nn.Module):
    """g_s * shortcut(x) + g_r * act(conv(x)); stride 1, 2, or -2, which doubles."""

    def __init__(self, before: int, features: int, stride: int = 1, pad: int = 0, linear: bool = False) -> None:
        super().__init__()
        self.residue_ratio = nn.Parameter(torch.ones(features))
        self.shortcut_ratio = nn.Parameter(torch.ones(features))
        conv: nn.Module = nn.Conv2d(before, features, 3, 1, 1)
        first: nn.Module = nn.Identity()
        last: list[nn.Module] = []
        if stride == 2:
            conv, first = nn.Conv2d(before, features, 6, 2, 2 + pad), nn.AvgPool2d(2, 2, pad)
        elif stride == -2:
            conv = nn.ConvTranspose2d(before, features, 6, 2, 2 + pad)
            last = [nn.Upsample(scale_factor=2), *([nn.ZeroPad2d(-pad)] if pad else [])]
        self.residue = nn.Sequential(conv, *([] if linear else [CPReLU(features)]))
        one = nn.Conv2d(before, features, 1) if before != features else nn.Identity()
        self.shortcut = nn.Sequential(first, one, *last)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> N,features,H',W'."""
        y, shortcut = self.residue(x), self.shortcut(x)
        return (
            self.shortcut_ratio[:, None, None].to(y.dtype) * shortcut
            + self.residue_ratio[:, None, None].to(y.dtype) * y
        )


def _levels(config: Config) -> Iterator[tuple[int, int, int]]:
    """Channels, further padding and side of what comes out, of each level, finest first."""
    side = config.size
    for number, width in enumerate(config.widths, 1):
        pad = side % 4 // 2 if number < len(config.widths) else 0
        side = side // 2 + pad
        yield width, pad, side


class Trunk(nn.Module):
    """What E, C1, C2 and D begin with."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels, before, side = [], config.channels, config.size
        for width, pad, after in _levels(config):
            levels.append(nn.Sequential(Block(before, width, 2, pad), Block(width, width)))
            before, side = width, after
        self.levels = nn.Sequential(*levels)
        self.fc = nn.Sequential(nn.Linear(before * side**2, config.fc), CPReLU(config.fc))

    def features(self, x: Tensor) -> Tensor:
        """N,C,size,size -> N,fc."""
        h: Tensor = self.fc(self.levels(x).flatten(1))
        return h


class Encoder(Trunk):
    """E."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mean = nn.Linear(config.fc, config.content_size)
        self.pstd = nn.Linear(config.fc, config.content_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures -> mean and deviation of their contents."""
        h = self.features(x)
        return _full(self.mean(h)), F.softplus(_full(self.pstd(h)))


class Classifier(Trunk):
    """C1 and C2."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__(config)
        self.cla = nn.Linear(config.fc, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures -> logits N,classes."""
        return _full(self.cla(self.features(x)))


class Discriminator(Trunk):
    """D."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dis = nn.Linear(config.fc, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures -> scores N."""
        return _full(self.dis(self.features(x))).squeeze(1)


class Generator(nn.Module):
    """G."""

    def __init__(self, config: Config, codes: int) -> None:
        super().__init__()
        sizes = list(_levels(config))
        top, _, self.side = sizes[-1]
        flat = top * self.side**2
        self.fc = nn.Sequential(
            nn.Linear(codes, config.fc), CPReLU(config.fc), nn.Linear(config.fc, flat), CPReLU(flat)
        )
        finer = [min(config.channels, 3), *config.widths[:-1]]
        levels = [
            nn.Sequential(Block(width, width), Block(width, below, -2, pad, linear=depth == 0))
            for depth, ((width, pad, _), below) in enumerate(zip(sizes, finer, strict=True))
        ]
        self.levels = nn.Sequential(*reversed(levels))

    def forward(self, code: Tensor) -> Tensor:
        """Codes -> pictures in (-1, 1)."""
        x = self.fc(code).unflatten(1, (-1, self.side, self.side))
        return _full(torch.tanh(self.levels(x)))


class StyleBank(nn.Module):
    """S."""

    class_freq: Tensor

    def __init__(self, frequency: Tensor, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(len(frequency), size))
        self.pstd = nn.Parameter(torch.zeros(len(frequency), size))
        self.register_buffer("class_freq", frequency)

    def table(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of all artists, brought to mean 0 and variance 1 over the population."""
        std = F.softplus(self.pstd)
        middle = self.class_freq @ self.mean
        square = self.class_freq @ (self.mean.square() + std.square())
        whole = (square - middle.square() + 1e-8).sqrt()
        return (self.mean - middle) / whole, std / whole


def _full(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL from N(0, 1) of each number."""
    return (mean.square() + std.square()) / 2 - std.log() - 0.5


class Eager:
    """The networks of a stage on given weights, with an optimiser each, and the stage's step.

    Args:
        config: of the run.
        frequency: of the artists among the pictures, [K].
        weights: network -> state dict: E, G, S and C1 of stage 1, or E, G, S, C2 and D of stage 2.
        device: where they go.
        statistics: of the codes, for stage 2: `std` and `weight`.
        dtype: of weights and pictures.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(
        self,
        config: Config,
        frequency: Tensor,
        weights: Weights,
        device: torch.device,
        statistics: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        precision: str = "fp32",
    ) -> None:
        c = self.config = config
        self.device, self.precision = device, precision
        style = c.style_width(len(frequency))
        self.nets: dict[str, Any] = {
            "E": Encoder(c),
            "G": Generator(c, c.content_size + style),
            "S": StyleBank(frequency.clone(), style),
        }
        if "C1" in weights:
            self.nets["C1"] = Classifier(c, len(frequency))
        else:
            self.nets |= {"C2": Classifier(c, len(frequency)), "D": Discriminator(c)}
        for name, net in self.nets.items():
            net.load_state_dict(weights[name])
            net.to(device, dtype)
        self.dtype = dtype
        self.frequency = frequency.to(device, dtype)
        self.statistics = {name: value.to(device, dtype) for name, value in (statistics or {}).items()}
        bases = zip(c.keeps(len(frequency)), (c.content_size, style), strict=True)
        self.keep_content, self.keep_style = (
            base ** torch.arange(size, device=device, dtype=dtype) for base, size in bases
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, net in self.nets.items():
            parameters = list(net.parameters())
            if name == "S":
                self.optimizers[name] = torch.optim.Adam(
                    parameters, c.lr_style if "C1" in weights else c.stage2_lr_style
                )
            elif "C1" in weights:
                self.optimizers[name] = torch.optim.Adam(parameters, c.lr, eps=1e-4)
            elif name != "E":
                self.optimizers[name] = torch.optim.RMSprop(parameters, c.stage2_lr, eps=1e-4)
        self.rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self.steps = 0
        if "D" in self.nets:
            self.nets["E"].requires_grad_(False)

    def _run(self, name: str, x: Tensor) -> Any:
        with autocast(self.device, self.precision):
            return self.nets[name](x)

    def draw(self, count: int) -> Draws:
        """Noise that is spread evenly over its distribution, and levels of nested dropout."""
        drawn: dict[str, Tensor] = {}
        like = self.keep_content
        for name, size in (("content", len(like)), ("style", len(self.keep_style))):
            order = torch.rand(count, size, device=like.device).argsort(0)
            u = (order + torch.rand(count, size, device=like.device)) / count * 1.99998 - 0.99999
            drawn[name] = torch.erfinv(u).mul(math.sqrt(2)).to(like.dtype)
            drawn[f"{name}_level"] = torch.rand(count, device=like.device, dtype=like.dtype)
        return drawn

    def _drawn(self, count: int, draws: Draws | None) -> Draws:
        if draws is None:
            return self.draw(count)
        return {name: value.to(self.dtype) for name, value in draws.items()}

    def _warm_up(self) -> None:
        self.steps += 1
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * min(self.steps / self.config.warm_up, 1)

    def _prepare(self, images: Tensor) -> Tensor:
        """uint8 -> colours in [-1, 1], masked by alpha, and alpha in [0, 1]."""
        x = images.to(self.dtype)
        if x.shape[1] != 4:
            return x / 127.5 - 1
        return self._seen(x[:, :3] / 127.5 - 1, x[:, 3:] / 255)

    def _seen(self, colours: Tensor, alpha: Tensor) -> Tensor:
        return torch.cat([colours * (alpha > 0), alpha], 1)

    def _styles(self, labels: Tensor, table: Sequence[Tensor], drawn: Draws) -> Tensor:
        mean, std = (part[labels] for part in table)
        return (mean + std * drawn["style"]) * (self.keep_style >= drawn["style_level"][:, None])

    def stage1(self, images: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """A step of stage 1; gives its losses.

        Two pictures are painted of each content in one batch. C1 sees the one in the next picture's style without its
        graph, and gives its own gradient, and then the one that pushes G and E away from what it knows.
        """
        c = self.config
        self._warm_up()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        drawn = self._drawn(len(images), draws)
        x = self._prepare(images)
        mean, std = self._run("E", x)
        table = self.nets["S"].table()
        content = (mean + std * drawn["content"]) * (self.keep_content >= drawn["content_level"][:, None])
        style = self._styles(labels, table, drawn)
        own, other = torch.cat([content, style], 1), torch.cat([content, style.detach().roll(-1, 0)], 1)
        painted, swapped = self._run("G", torch.cat([own, other])).chunk(2)

        shown = swapped.detach().requires_grad_()
        alpha = [torch.ones_like(shown[:, :1])] if c.channels == 4 else []
        logits = self._run("C1", torch.cat([shown, *alpha], 1))
        loss_c1 = F.cross_entropy(logits, labels)
        pushed = loss_c1
        if c.adv_cap:
            log_p = F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
            pushed = -torch.maximum(log_p, self.frequency.log()[labels]).mean()
        loss_c1.backward(inputs=list(self.nets["C1"].parameters()), retain_graph=True)
        (push,) = torch.autograd.grad(-c.lambda_c1 * pushed, shown)

        rec = self._reconstruction(painted, x)
        kl_content, kl_style = _divergence(mean, std).mean(0), self.frequency @ _divergence(*table)
        loss = c.lambda_rec * rec
        loss = loss + c.lambda_kl_content * (kl_content * self.keep_content).sum()
        loss = loss + c.lambda_kl_style * (kl_style * self.keep_style).sum()
        torch.autograd.backward([loss, swapped], [torch.ones_like(loss), push])
        for optimizer in self.optimizers.values():
            optimizer.step()
        with torch.no_grad():
            rec_other = self._reconstruction(swapped, x)
        losses = {"rec": rec, "rec_other": rec_other, "c1": loss_c1}
        losses |= {"kl_content": kl_content.sum(), "kl_style": kl_style.sum()}
        return {name: loss.detach() for name, loss in losses.items()}

    def _reconstruction(self, painted: Tensor, x: Tensor) -> Tensor:
        """Mean distance of colours; alpha tells how much a pixel counts."""
        colours = x[:, :3] if self.config.channels == 4 else x
        distance = ((painted - colours).square().sum(1) + 1e-8).sqrt()
        if self.config.channels != 4:
            return distance.mean()
        weights = x[:, 3] / x[:, 3].sum((1, 2), keepdim=True)
        return (distance * weights).sum((1, 2)).mean()

    def stage2(
        self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, draws: Draws | None = None
    ) -> dict[str, Tensor]:
        """A step of stage 2; gives its losses.

        D and C2 see real and painted pictures in one batch; G and S then go on with the graph of the same pictures.
        """
        c = self.config
        self._warm_up()
        drawn = self._drawn(len(images), draws)
        x, others = self._prepare(images), labels.roll(-1, 0)
        mean, std = mean.to(self.dtype), std.to(self.dtype)
        table = self.nets["S"].table()
        style = self._styles(labels, table, drawn).roll(-1, 0)
        painted = self._run("G", torch.cat([mean + std * drawn["content"], style], 1))
        shown = self._seen(painted, x[:, 3:]) if c.channels == 4 else painted

        both = torch.cat([x, shown.detach()])
        real, fake = self._run("D", both).chunk(2)
        losses = {"d_real": (real - 1).square().mean(), "d_fake": (fake + 1).square().mean()}
        self.optimizers["D"].zero_grad()
        (losses["d_real"] + losses["d_fake"]).backward()
        self.optimizers["D"].step()
        real, fake = self._run("C2", both).chunk(2)
        losses |= {"c2_real": F.cross_entropy(real, labels), "c2_fake": self._unlikelihood(fake, others)}
        self.optimizers["C2"].zero_grad()
        (losses["c2_real"] + losses["c2_fake"]).backward()
        self.optimizers["C2"].step()

        for name in ("D", "C2"):
            self.nets[name].requires_grad_(False)
        losses["g_d"] = self._run("D", shown).square().mean()
        losses["g_c2"] = F.cross_entropy(self._run("C2", shown), others)
        again, _ = self._run("E", shown)
        distance = ((again - mean) / self.statistics["std"]).square() * self.statistics["weight"]
        losses["content"] = distance.sum(1).mean()
        kl_style = self.frequency @ _divergence(*table)
        loss = c.lambda_d * losses["g_d"] + c.lambda_c2 * losses["g_c2"] + c.lambda_content * losses["content"]
        loss = loss + c.lambda_kl_style * (kl_style * self.keep_style).sum()
        for name in ("G", "S"):
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in ("G", "S"):
            self.optimizers[name].step()
        for name in ("D", "C2"):
            self.nets[name].requires_grad_(True)
        losses["kl_style"] = kl_style.sum()
        return {name: loss.detach() for name, loss in losses.items()}

    def _unlikelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """-log(1 - p) of the label."""
        if self.config.nlu_form == "eps":
            p = logits.softmax(1).gather(1, labels[:, None])
            return -(1 - p + 1e-6).log().mean()
        own = F.one_hot(labels, logits.shape[1]).bool()
        return (logits.logsumexp(1) - logits.masked_fill(own, -math.inf).logsumexp(1)).mean()

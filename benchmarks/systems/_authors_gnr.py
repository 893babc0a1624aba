"""The networks of GANs N' Roses by its authors, from a checkout of their repository, and a training step on them.

Only the module `model` of github.com/mchong6/GANsNRoses and its package `op` are imported, at the time of measuring;
nothing of that code is here. The branch main computes with plain PyTorch on any device, the others need a GPU and a
compiler. The step is written from what it computes, in the order in which their program does: real and translated
pictures judged in calls of their own, discriminators not frozen in the generators' half, each style's pictures encoded
whole, optimisers and averages parameter by parameter.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.nn.stylegan2 import channels
from anifast.systems.gnr import checkpoints
from anifast.systems.gnr.config import Config

from . import _checkouts


def load_model(checkout: Path) -> ModuleType:
    """The module `model` of a checkout, with nothing left behind in sys.path and sys.modules.

    Raises:
        AnifastError: there is none, or it cannot be imported here.
    """
    checkout = checkout.resolve()
    _checkouts.require(checkout, ("model.py", "op/__init__.py"), "https://github.com/mchong6/GANsNRoses")
    with _checkouts.checkout_first(checkout):
        try:
            return importlib.import_module("model")
        except Exception as error:  # their other branches compile kernels while they are imported
            raise AnifastError(
                f"--authors {checkout}: its module model cannot be imported ({type(error).__name__}: {error}); the "
                "branch main runs on any device"
            ) from error


def describe(checkout: Path) -> dict[str, Any]:
    """Which code a checkout holds, as JSON values.

    Returns:
        `version`: "v1", "v1.1" or "v2", which the keys and shapes of its discriminator tell; and what
        `_checkouts.describe` tells of model.py and the sources in op.

    Raises:
        AnifastError: it cannot be imported, or its networks are of no known version.
    """
    checkout = checkout.resolve()
    model = load_model(checkout)
    model.channels.update({side: channels(side, 1, 8) for side in model.channels})  # narrow ones tell it as well
    nets = {"G_A2B": model.Generator(64, 3, 8, 5, 1), "D_A": model.Discriminator(64)}
    weights = {name: net.state_dict() for name, net in nets.items()}
    found: dict[str, Any] = {"version": checkpoints.contents(weights).config.discriminator}
    sources = [path for path in (checkout / "op").iterdir() if path.suffix in (".py", ".cpp", ".cu")]
    return found | _checkouts.describe(checkout, (checkout / "model.py", *sorted(sources)))


def _softplus(scores: Sequence[Tensor], sign: float) -> Tensor:
    """Sum over heads of the mean of softplus(sign * score)."""
    return torch.stack([F.softplus(sign * score).mean() for score in scores]).sum()


def r1(scores: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Sum over heads of the squared length of the gradient of the head's mean, a mean over the batch."""
    penalties = []
    for score in scores:
        (gradient,) = torch.autograd.grad(score.mean(), inputs, create_graph=True)
        penalties.append(gradient.square().flatten(1).sum(1).mean())
    return torch.stack(penalties).sum()


def _cosine(styles: Tensor) -> Tensor:
    """Sum over all pairs of 1 - cosine."""
    return (1 - F.cosine_similarity(styles[:, None], styles[None], dim=2)).sum()


class Authors:
    """Their five networks on the weights of ours, and what their program does with them, in float32.

    Args:
        model: what `load_model` gave.
        config: of our run.
        nets: our networks by their names.
        perceptual: distance of two batches of pictures, [N, 1, 1, 1] or [N]; None: the step has none.

    Raises:
        AnifastError: the checkout has other networks.
    """

    def __init__(
        self,
        model: ModuleType,
        config: Config,
        nets: Mapping[str, nn.Module],
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.config, self.perceptual = config, perceptual
        #: The generators' averages and the optimisers, once training has begun.
        self.averages: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        model.channels.update({side: channels(side, 1, config.base_channels) for side in model.channels})
        c = config
        self.nets: dict[str, Any] = {}
        for name, ours in nets.items():
            if name.startswith("G"):
                net = model.Generator(c.size, c.num_down, c.latent_dim, c.n_mlp, c.n_res, lr_mlp=c.lr_mlp)
            else:
                net = model.LatDiscriminator(c.latent_dim) if name == "D_L" else model.Discriminator(c.size)
            try:
                net.load_state_dict(ours.state_dict(), strict=True)
            except RuntimeError as error:
                raise AnifastError(
                    f"--authors: the networks of {model.__file__} are not those of this preset "
                    f"({str(error).splitlines()[-1].strip()}); the branch main is the preset main"
                ) from error
            self.nets[name] = net.to(next(ours.parameters()).device)

    def begin_training(self) -> None:
        """Make optimisers and averages."""
        self.averages = {name: copy.deepcopy(self.nets[name]) for name in ("G_A2B", "G_B2A")}
        every = self.config.r1_every
        beta = 0.99 ** (every / (every + 1))
        self.optimizers = {
            kind: torch.optim.Adam([p for n in names for p in self.nets[n].parameters()], self.config.lr, (0.0, b))
            for kind, names, b in (("G", ("G_A2B", "G_B2A"), 0.99), ("D", ("D_L", "D_A", "D_B"), beta))
        }

    def translate(self, images: Tensor, styles: Tensor, to: str = "B") -> Tensor:
        """Pictures in given style codes, limited to [-1, 1]."""
        net = self.nets["G_A2B" if to == "B" else "G_B2A"]
        with torch.no_grad():
            content, _ = net.encode(images)
            painted: Tensor = net.decode(content, styles)
        return painted.clamp(-1, 1)

    def judge(self, name: str, x: Tensor) -> list[Tensor]:
        """The scores of a discriminator's heads."""
        scores: list[Tensor] = self.nets[name](x)
        return scores

    def _draw(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Styles z, which of styles and read codes are painted with, and the order of codes on the way back."""
        drawn: dict[str, Tensor] = {}
        for domain in "ab":
            drawn[f"z_{domain}"] = torch.randn(count, self.config.latent_dim, device=device)
            drawn[f"pick_{domain}"] = torch.randperm(2 * count)[:count]
            drawn[f"mix_{domain}"] = torch.randperm(count)
        return drawn

    def step(self, batch: Sequence[Tensor], index: int, drawn: Mapping[str, Tensor] | None = None) -> None:
        """Iteration `index`.

        Args:
            batch: augmented pictures [B,3,size,size] in the order of `training.Batch`: one picture of A, one of B, and
                different ones of A and B.
            index: the penalty is due where this is a multiple of its interval.
            drawn: see `_draw`; None draws it.
        """
        a, b, aug_a, aug_b = batch
        c, regularise = self.config, index % self.config.r1_every == 0
        drawn = self._draw(len(a), a.device) if drawn is None else drawn
        g_ab, g_ba = (self.nets[name] for name in ("G_A2B", "G_B2A"))
        if regularise:
            aug_a, aug_b = (x.detach().clone().requires_grad_() for x in (aug_a, aug_b))
        content_a, style_a = g_ab.encode(a)
        content_b, style_b = g_ba.encode(b)
        read_b, read_a = g_ba.style_encode(aug_b), g_ab.style_encode(aug_a)
        z_b, z_a = (drawn[name].clone().requires_grad_() for name in ("z_b", "z_a"))
        given_b, given_a = torch.cat([z_b, read_b])[drawn["pick_b"]], torch.cat([z_a, read_a])[drawn["pick_a"]]
        fake_b, fake_a = g_ab.decode(content_a, given_b), g_ba.decode(content_b, given_a)

        on_real = {"D_A": self.judge("D_A", aug_a), "D_B": self.judge("D_B", aug_b)}
        on_drawn = [self.judge("D_L", z) for z in (z_b, z_a)]
        loss = torch.stack([_softplus(scores, -1) for scores in (*on_real.values(), *on_drawn)]).sum()
        for name, made in (("D_B", fake_b), ("D_A", fake_a), ("D_L", read_b), ("D_L", read_a)):
            loss = loss + _softplus(self.judge(name, made.detach()), 1)
        if regularise:
            penalty = r1(on_real["D_A"], aug_a) + r1(on_real["D_B"], aug_b)
            penalty = penalty + r1(on_drawn[0], z_b) + r1(on_drawn[1], z_a)
            loss = loss + c.r1 / 2 * c.r1_every * penalty
        self.optimizers["D"].zero_grad()
        loss.backward()
        self.optimizers["D"].step()

        loss = torch.zeros((), dtype=a.dtype, device=a.device)
        for name, fake in (("D_A", fake_a), ("D_B", fake_b)):
            loss = loss + c.lambda_adv / 3 * _softplus(self.judge(name, fake), -1)
        for read in (read_b, read_a):
            loss = loss + c.lambda_adv * c.lambda_latent * _softplus(self.judge("D_L", read), -1)
        for style in (style_a, style_b):
            spread = style.var(0, unbiased=False).sum() if c.style_consistency == "variance" else _cosine(style)
            loss = loss + c.lambda_style * spread
        again_a, found_b = g_ba.encode(fake_b)
        again_b, found_a = g_ab.encode(fake_a)
        rec_a = g_ba.decode(again_a, style_a[drawn["mix_a"]])
        rec_b = g_ab.decode(again_b, style_b[drawn["mix_b"]])
        distance = F.mse_loss if c.cycle == "mse" else F.l1_loss
        loss = loss + c.lambda_cycle * (distance(rec_a, a) + distance(rec_b, b))
        if self.perceptual is not None:
            loss = loss + c.lambda_lpips * (self.perceptual(rec_a, a).mean() + self.perceptual(rec_b, b).mean())
        if c.lambda_style_rec:
            loss = loss + c.lambda_style_rec * (F.mse_loss(found_b, given_b) + F.mse_loss(found_a, given_a))
        if c.lambda_identity:
            for net, real in ((g_ab, aug_b), (g_ba, aug_a)):
                loss = loss + c.lambda_identity * F.l1_loss(net(real)[0], real)
        self.optimizers["G"].zero_grad()
        loss.backward()
        self.optimizers["G"].step()
        with torch.no_grad():
            for name, average in self.averages.items():
                for mean, weight in zip(average.parameters(), self.nets[name].parameters(), strict=True):
                    mean.mul_(c.ema).add_(weight, alpha=1 - c.ema)

"""Training of the disentangling network: the steps of its stages against plain ones, its draws, and that it learns.

`Plain` is one iteration of each stage as sections 2 to 5 of the specification tell it: a pass for every batch of every
network, the two players of stage 1 one after the other, PyTorch's own functions and optimisers, one for each network.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_cyclegan import ROOT, command, own_cache
from tiny_disentangle import Artists, tiny_config, write_artists
from torch import Tensor

from anifast.data.augment import uniforms
from anifast.data.labelled import Labelled, load_artists
from anifast.engine.distributed import Team
from anifast.engine.loop import run_step
from anifast.systems.disentangle import training
from anifast.systems.disentangle.augmentation import Draws, augment, draw, kept, normal, prepare, strata
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.networks import Classifier, Discriminator
from anifast.systems.disentangle.training import Batch, Pictures, Pretraining, Stage1, Stage2, Trained

CPU = torch.device("cpu")
SYSTEMS: dict[str, type[Trained]] = {"stage1": Stage1, "classifier": Pretraining, "stage2": Stage2}
#: Networks as small as they can be; learning rates at which a few steps change something.
NARROW: dict[str, Any] = {
    "size": 16,
    "features": "4,6",
    "fc": 8,
    "content_size": 6,
    "style_size": 5,
    "mlp_width": 7,
    "mlp_layers": 3,
    "min_images": 1,
    "batch": 4,
    "classifier_batch": 4,
    "stage2_batch": 4,
    "lr": 1e-3,
    "lr_style": 1e-2,
    "classifier_lr": 1e-3,
    "stage2_lr": 1e-3,
    "stage2_lr_style": 1e-2,
    "warm_up": 4,
}
#: The last code's networks with all that is in them.
RELEASE = NARROW | {"blocks": "cc,cbc", "gen_blocks": "tc,cbc"}
#: 28 -> 14 -> 8 -> 4 with a padding in the middle, as digits have it.
DIGITS = NARROW | {"features": "3,4,5", "size": 28}
#: Pictures of each artist: their frequencies are exact in float32.
COUNTS = (4, 2, 1, 1)


ARTISTS = Artists(
    [f"artist {number}" for number in range(len(COUNTS))],
    torch.tensor(COUNTS),
    torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)),
)


def settings(preset: str = "paper", **changes: Any) -> Config:
    small = {"paper": NARROW, "release": RELEASE, "nist": DIGITS}[preset]
    return make(preset, small | changes)


def as_seen(images: Tensor) -> Tensor:
    """What networks see of uint8 pictures, in float64."""
    x = images.double() / 255
    if images.shape[1] != 4:
        return 2 * x - 1
    return torch.cat([(2 * x[:, :3] - 1) * (x[:, 3:] > 0), x[:, 3:]], 1)


def statistics(config: Config) -> dict[str, Tensor]:
    """Of codes; exact in float32."""
    source = torch.Generator().manual_seed(7)
    size = config.content_size
    found = {name: (torch.rand(size, generator=source) + 0.5).double() for name in ("mean", "std", "eigenvalues")}
    return found | {"weight": torch.rand(size, generator=source).double(), "eigenvectors": torch.eye(size).double()}


def system(stage: str, config: Config, team: Team | None = None, dtype: torch.dtype = torch.float64) -> Any:
    """A stage whose styles and slopes are not all alike, as trained ones are not; its draws have the networks' type."""
    more = {"statistics": statistics(config)} if stage == "stage2" else {}
    made = SYSTEMS[stage](config, ARTISTS, CPU, team, **more)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(3)
    for net in made.nets.values():
        for value in net.parameters():
            value.data.add_(torch.randn(value.shape, generator=source), alpha=0.1)
        net.to(dtype)
    drawn = made.draw
    made.draw = lambda numbers: Draws(*(x.to(dtype) if x.is_floating_point() else x for x in drawn(numbers)))
    return made


def batch_of(made: Trained, index: int, labels: tuple[int, ...] = (0, 1, 0, 2)) -> Batch:
    """Pictures of step `index`: noise, of which a part is transparent; codes where the stage has them."""
    c, count = made.config, made.batch_size
    source = torch.Generator().manual_seed(100 + index)
    images = torch.randint(0, 256, (count, c.channels, c.size, c.size), generator=source, dtype=torch.uint8)
    if c.channels == 4:
        images[:, 3] = torch.where(images[:, 3] < 60, 0, torch.where(images[:, 3] < 200, 255, images[:, 3]))
    none = torch.empty(0)
    maps = none
    if c.weight_maps is not None:
        maps = torch.randint(0, 256, (count, 1, c.size, c.size), generator=source, dtype=torch.uint8)
    owners = torch.tensor(labels)[torch.randperm(count, generator=source)]
    codes = [none, none]
    if made.stage == "stage2":
        mean = torch.randn(count, c.content_size, generator=source).double()
        codes = [mean, (torch.rand(count, c.content_size, generator=source) + 0.1).double()]
    return Batch(images, maps, owners, *codes)


class Plain:
    """Iterations of all stages on a copy of a system's weights."""

    def __init__(self, made: Trained) -> None:
        self.config, self.keeps = made.config, made.keeps
        self.weights = {
            name: {key: value.detach().clone().requires_grad_() for key, value in net.named_parameters()}
            for name, net in made.nets.items()
        }
        self.frequency = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
        self.turns, self.waited = 0, [0.0] * 5
        c = self.config
        self.rates = (
            {"stage1": c.lr, "classifier": c.classifier_lr, "stage2": c.stage2_lr}[made.stage],
            (c.stage2_lr_style if made.stage == "stage2" else c.lr_style),
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name in self.weights:
            values = list(self.weights[name].values())
            if name == "S":
                self.optimizers[name] = torch.optim.Adam(values, eps=1e-8, foreach=False)
            elif made.stage == "stage2":
                self.optimizers[name] = torch.optim.RMSprop(values, alpha=0.99, eps=1e-4, foreach=False)
            else:
                self.optimizers[name] = torch.optim.Adam(values, eps=1e-4, foreach=False)

    # networks

    def act(self, x: Tensor, slope: Tensor | None) -> Tensor:
        if self.config.activation == "relu":
            return F.relu(x)
        mean = 0.75 / math.sqrt(2 * math.pi)
        return (F.prelu(x, slope) - mean) / math.sqrt(0.53125 - mean**2)

    def gate(self, w: dict[str, Tensor], at: str, residue: Tensor, shortcut: Tensor) -> Tensor:
        ones = [1] * (residue.dim() - 2)
        g_r, g_s = w[f"{at}.residue_ratio"].view(-1, *ones), w[f"{at}.shortcut_ratio"].view(-1, *ones)
        return g_s * shortcut + g_r * residue

    def block(self, w: dict[str, Tensor], at: str, x: Tensor, stride: int, pad: int = 0, plain: bool = False) -> Tensor:
        kernel, bias = w[f"{at}.residue.0.weight"], w[f"{at}.residue.0.bias"]
        shortcut = x
        if stride == 1:
            y = F.conv2d(x, kernel, bias, 1, 1)
        elif stride == 2:
            y = F.conv2d(x, kernel, bias, 2, 2 + pad)
            shortcut = F.avg_pool2d(x, 2, 2, pad)
        else:
            y = F.conv_transpose2d(x, kernel, bias, 2, 2 + pad)
        if f"{at}.shortcut.1.weight" in w:
            shortcut = F.conv2d(shortcut, w[f"{at}.shortcut.1.weight"], w[f"{at}.shortcut.1.bias"])
        if stride == -2:
            shortcut = F.interpolate(shortcut, scale_factor=2, mode="nearest")
            shortcut = shortcut[:, :, pad : shortcut.shape[2] - pad, pad : shortcut.shape[3] - pad]
        if not plain:
            y = self.act(y, w.get(f"{at}.residue.1.weight"))
        return self.gate(w, at, y, shortcut)

    def bus(self, w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
        v = F.conv2d(x, w[f"{at}.write_value_map.weight"], w[f"{at}.write_value_map.bias"])
        u = F.softplus(F.conv2d(x, w[f"{at}.weight_map.weight"], w[f"{at}.weight_map.bias"]))
        pooled = (v * u).sum((2, 3)) / (u.sum((2, 3)) + 1e-4)
        read = F.linear(pooled, w[f"{at}.read_value_map.weight"], w[f"{at}.read_value_map.bias"])
        return self.gate(w, at, read[:, :, None, None], x)

    def regular(self, w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
        if f"{at}.pre_mean" not in w:
            return x.new_zeros(())
        x = x.reshape(*x.shape[:2], -1)
        z = (x - w[f"{at}.pre_mean"][:, None]) / F.softplus(w[f"{at}.pre_pstd"])[:, None]
        m, v = z.mean((0, 2)), torch.log(z.var((0, 2), correction=0) * len(z) / (len(z) - 1))
        return (m**2 + v**2).mean()

    def trunk(self, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        side, penalty = self.config.size, x.new_zeros(())
        words = self.config.levels()
        for i, word in enumerate(words):
            pad = side % 4 // 2 if i < len(words) - 1 else 0
            side = (side + 2) // 4 * 2
            for j, letter in enumerate(word):
                at = f"levels.{i}.{j}"
                x = self.bus(w, at, x) if letter == "b" else self.block(w, at, x, 1 if j else 2, pad if j == 0 else 0)
                penalty = penalty + self.regular(w, f"{at}.batch_reg", x)
        x = F.linear(x.flatten(1), w["fc.0.weight"], w["fc.0.bias"])
        penalty = penalty + self.regular(w, "fc.1", x)
        return self.act(x, w.get("fc.2.weight", w.get("fc.1.weight"))), penalty

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.weights["E"]
        h, _ = self.trunk(w, x)
        return F.linear(h, w["mean.weight"], w["mean.bias"]), F.softplus(F.linear(h, w["pstd.weight"], w["pstd.bias"]))

    def judge(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of C1 or C2, or D's scores; batch regularisation."""
        w = self.weights[name]
        if "net.0.weight" in w:
            return self.perceptron(w, x)
        h, penalty = self.trunk(w, x)
        if name == "D":
            return F.linear(h, w["dis.weight"], w["dis.bias"])[:, 0], penalty
        return F.log_softmax(F.linear(h, w["cla.weight"], w["cla.bias"]), 1), penalty

    def perceptron(self, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.config.mlp_layers
        x = F.linear(x, w["net.0.weight"], w["net.0.bias"])
        penalty = self.regular(w, "net.1", x)
        x = self.act(x, w.get("net.2.weight"))
        for number in range(3, layers + 2):
            at = f"net.{number}"
            y = F.linear(x, w[f"{at}.residue.0.weight"], w[f"{at}.residue.0.bias"])
            x = self.gate(w, at, self.act(y, w.get(f"{at}.residue.1.weight")), x)
            penalty = penalty + self.regular(w, f"{at}.batch_reg", x)
        return F.log_softmax(F.linear(x, w[f"net.{layers + 2}.weight"], w[f"net.{layers + 2}.bias"]), 1), penalty

    def paint(self, content: Tensor, style: Tensor | None) -> tuple[Tensor, Tensor]:
        """A picture, and how much its warps fold."""
        w, folds = self.weights["G"], content.new_zeros(())
        code = content if style is None else torch.cat([content, style], 1)
        x = self.act(F.linear(code, w["fc.0.weight"], w["fc.0.bias"]), w.get("fc.1.weight"))
        x = self.act(F.linear(x, w["fc.2.weight"], w["fc.2.bias"]), w.get("fc.3.weight"))
        words, sides, pads = self.config.levels("gen_blocks"), [self.config.size], []
        for i in range(len(words)):
            pads.append(sides[-1] % 4 // 2 if i < len(words) - 1 else 0)
            sides.append((sides[-1] + 2 * pads[-1]) // 2)
        x = x.reshape(len(x), -1, sides[-1], sides[-1])
        for i, depth in enumerate(reversed(range(len(words)))):
            word = words[depth]
            for j, letter in enumerate(word[:0:-1]):
                at = f"levels.{i}.{j}"
                x = self.bus(w, at, x) if letter == "b" else self.block(w, at, x, 1)
            x = self.block(w, f"levels.{i}.{len(word) - 1}", x, -2, pads[depth], plain=depth == 0)
            if word[0] == "t":
                x, folded = self.warp(x)
                folds = folds + folded
        return torch.tanh(x), folds

    def warp(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        across, down = x[:, -2], x[:, -1].transpose(1, 2)
        folds = x.new_zeros(())
        for shift in (across, down):
            one, other = shift[:, :-1], shift[:, 1:]
            d = torch.minimum(one, other)[:, :, 1:] - torch.maximum(one, other)[:, :, :-1]
            folds = folds + torch.clamp(-(d + 1), min=0).mean()
        line = torch.linspace(-1, 1, size, dtype=x.dtype)
        grid = torch.stack([line[None, None] + x[:, -2] / size, line[None, :, None] + x[:, -1] / size], 3)
        return F.grid_sample(x[:, :-2], grid.clamp(-1, 1), align_corners=True), folds

    def bank(self) -> tuple[Tensor, Tensor]:
        m, sd, f = self.weights["S"]["mean"], F.softplus(self.weights["S"]["pstd"]), self.frequency[:, None]
        mu = (f * m).sum(0)
        v = torch.sqrt((f * (m**2 + sd**2)).sum(0) - mu**2 + 1e-8)
        return (m - mu) / v, sd / v

    # what is computed of codes and pictures

    def keep(self, which: int, size: int) -> Tensor:
        return self.keeps[which] ** torch.arange(size, dtype=torch.float64)

    def style(self, labels: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        mean, std = self.bank()
        code = mean[labels] + std[labels] * noise
        return code * (self.keep(1, code.shape[1]) >= level[:, None])

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        return (mean**2 + std**2) / 2 - torch.log(std) - 0.5

    def kl_style(self) -> tuple[Tensor, Tensor]:
        each = (self.frequency[:, None] * self.kl(*self.bank())).sum(0)
        return (each * self.keep(1, len(each))).sum(), each.sum()

    def view(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Augmented as section 2.2 says."""
        c = self.config
        if not c.augment:
            return x
        rows = []
        for p in parameters.tolist():
            t = math.sqrt(2 * p[0]) - 1 if p[0] < 0.5 else 1 - math.sqrt(2 * (1 - p[0]))
            angle, s = t * math.radians(15), math.exp(p[1] * math.log(1.25))
            cx, cy = ((2 * q - 1) * (1 - 0.8 / s) for q in p[2:])
            a, b = math.cos(angle) / s, math.sin(angle) / s
            rows.append([[a, -b, cx], [b, a, cy]])
        grid = F.affine_grid(torch.tensor(rows, dtype=x.dtype), list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, align_corners=True)

    def with_alpha(self, painted: Tensor, x: Tensor | None) -> Tensor:
        if self.config.channels != 4:
            return painted
        if x is None:
            return torch.cat([painted, torch.ones_like(painted[:, :1])], 1)
        return torch.cat([painted * (x[:, 3:] > 0), x[:, 3:]], 1)

    def distance(self, y: Tensor, x: Tensor, maps: Tensor) -> Tensor:
        each = torch.sqrt(((y - x[:, : y.shape[1]]) ** 2).sum(1) + 1e-8)
        weight = torch.ones_like(each) if x.shape[1] < 4 else x[:, 3]
        if maps.numel():
            weight = weight * (maps[:, 0].double() / 255)
        return ((weight * each).sum((1, 2)) / weight.sum((1, 2))).mean()

    def nlu(self, log_p: Tensor, labels: Tensor) -> Tensor:
        p = log_p.exp()[torch.arange(len(labels)), labels]
        return -torch.log(1 - p + (1e-6 if self.config.nlu_form == "eps" else 0.0))

    def gradients(self, loss: Tensor, names: str, added: bool = False) -> None:
        """Gradients of a loss by the weights of some networks, and of no others."""
        values = [value for name in names.split() for value in self.weights.get(name, {}).values()]
        found = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
        for value, grad in zip(values, found, strict=True):
            if not added:
                value.grad = grad
            elif grad is not None:
                value.grad = grad if value.grad is None else value.grad + grad

    def update(self, names: str, step: int) -> None:
        for name in names.split():
            if name in self.weights:
                rate = self.rates[name == "S"] * min(step / self.config.warm_up, 1)
                self.optimizers[name].param_groups[0]["lr"] = rate
                self.optimizers[name].step()

    # iterations

    def stage1(self, step: int, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        c, parts = self.config, {}
        x, a, partner = as_seen(batch.images), batch.labels, draws.partner
        mean, std = self.encode(x)
        content = (mean + std * draws.content) * (self.keep(0, c.content_size) >= draws.content_level[:, None])
        styles = bool(self.weights.get("S"))
        own = self.style(a, draws.style, draws.style_level) if styles else None
        painted, folds = self.paint(content, own)
        parts["rec"] = self.distance(painted, x, batch.maps)
        kl = self.kl(mean, std).mean(0)
        parts["kl_content"] = kl.sum()
        loss = c.lambda_rec * parts["rec"] + c.lambda_kl_content * (kl * self.keep(0, c.content_size)).sum()
        if "t" in c.gen_blocks:
            parts["warp"] = folds
            loss = loss + c.lambda_warp * folds
        if styles:
            weighted, parts["kl_style"] = self.kl_style()
            loss = loss + c.lambda_kl_style * weighted
        self.gradients(loss, "E G S")
        if styles:
            other = self.style(a[partner], draws.style[partner], draws.style_level[partner]).detach()
            counted = torch.ones(len(a), dtype=torch.bool)
            if c.c1_input == "code":
                shown = content
            else:
                swapped, _ = self.paint(content, other)
                parts["rec_other"] = self.distance(swapped, x, batch.maps)
                shown = self.view(self.with_alpha(swapped, None), draws.warp)
                if c.skip_same:
                    counted = a != a[partner]
            # its own player: all the others' work is detached
            log_p, penalty = self.judge("C1", shown.detach())
            known = log_p[torch.arange(len(a)), a]
            loss = parts["c1"] = -known[counted].mean() if counted.any() else known.sum() * 0
            if c.lambda_reg_c1:
                parts["reg_c1"] = penalty
                loss = loss + c.lambda_reg_c1 * penalty
            self.gradients(loss, "C1")
            # the others'
            log_p, _ = self.judge("C1", shown)
            known = log_p[torch.arange(len(a)), a]
            if c.adv_cap:
                known = torch.maximum(known, torch.log(self.frequency)[a])
            against = known if c.c1_adv == "nll" else self.nlu(log_p, a)
            loss = against[counted].mean() if counted.any() else known.sum() * 0
            self.gradients(c.lambda_c1 * loss, "E" if c.c1_input == "code" else "E G", added=True)
            if c.lambda_match:
                again, _ = self.paint(content.detach(), other)
                wanted, _ = self.encode(self.with_alpha(painted, x))
                found, _ = self.encode(self.with_alpha(again, x))
                parts["match"] = ((found - wanted.detach()) ** 2).sum(1).mean()
                self.gradients(c.lambda_match * parts["match"], "G", added=True)
        self.update("E G S C1", step)
        return parts

    def classifier(self, step: int, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        log_p, penalty = self.judge("C2", self.view(as_seen(batch.images), draws.warp))
        parts = {"c2_real": -log_p[torch.arange(len(log_p)), batch.labels].mean()}
        loss = parts["c2_real"]
        if self.config.regularised:
            parts["reg_c2"] = penalty
            loss = loss + self.config.lambda_reg * penalty
        parts["right"] = (log_p.argmax(1) == batch.labels).double().mean()
        self.gradients(loss, "C2")
        self.update("C2", step)
        return parts

    def stage2(self, step: int, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        c, parts = self.config, {}
        x, a, rows = as_seen(batch.images), batch.labels, torch.arange(len(batch.labels))
        partner = draws.partner
        others = a[partner]
        content = batch.mean + batch.std * draws.content
        painted, folds = self.paint(content, self.style(others, draws.style[partner], draws.style_level[partner]))
        shown = self.with_alpha(painted, x)
        real, fake = self.view(x, draws.warp), self.view(shown, draws.warp)
        (on_real, reg_d), (on_fake, _) = self.judge("D", real), self.judge("D", fake.detach())
        parts["d_real"], parts["d_fake"] = ((on_real - 1) ** 2).mean(), ((on_fake + 1) ** 2).mean()
        (log_p, reg_c2), (log_q, _) = self.judge("C2", real), self.judge("C2", fake.detach())
        parts["c2_real"] = -log_p[rows, a].mean()
        if c.c2_fake == "nlu":
            parts["c2_fake"] = self.nlu(log_q, others).mean()
        elif c.c2_fake == "neg_nll":
            parts["c2_fake"] = log_q[rows, others].mean()
        names = ("d_real", "d_fake", "c2_real", "c2_fake")
        loss_d, loss_c2 = parts["d_real"] + parts["d_fake"], parts["c2_real"] + parts.get("c2_fake", 0)
        if c.regularised:
            parts |= {"reg_d": reg_d, "reg_c2": reg_c2}
            loss_d, loss_c2 = loss_d + c.lambda_reg * reg_d, loss_c2 + c.lambda_reg * reg_c2
        self.gradients(loss_d, "D")
        self.gradients(loss_c2, "C2")
        self.update("D C2", step)
        # G's turn comes when D and C2 have been good for long enough since its last one
        self.waited = [0.9 * old + 0.1 * new for old, new in zip(self.waited, [*(
            parts[name].item() if name in parts else 0.0 for name in names
        ), 1.0], strict=True)]  # fmt: skip
        means = [mean / self.waited[4] for mean in self.waited[:4]]
        if (c.force_d > 0 and max(means[:2]) >= c.force_d) or (c.force_c2 > 0 and max(means[2:]) >= c.force_c2):
            return parts
        self.waited, self.turns = [0.0] * 5, self.turns + 1
        (score, reg_d), (log_q, reg_c2) = self.judge("D", fake), self.judge("C2", fake)
        parts["g_d"], parts["g_c2"] = (score**2).mean(), -log_q[rows, others].mean()
        loss = c.lambda_d * parts["g_d"] + c.lambda_c2 * parts["g_c2"]
        if c.regularised:
            parts |= {"g_reg_d": reg_d, "g_reg_c2": reg_c2}
            loss = loss + c.lambda_reg_gen * (c.lambda_d * reg_d + c.lambda_c2 * reg_c2)
        if c.lambda_content:
            apart, known = self.encode(shown)[0] - batch.mean, statistics(c)
            if c.content_form == "whitened":
                apart = apart / known["std"] * known["weight"].sqrt()
            parts["content"] = (apart**2).sum(1).mean()
            loss = loss + c.lambda_content * parts["content"]
        weighted, parts["kl_style"] = self.kl_style()
        loss = loss + c.lambda_kl_style * weighted
        if "t" in c.gen_blocks:
            parts["warp"] = folds
            loss = loss + c.lambda_warp * folds
        self.gradients(loss, "G S")
        self.update("G S", self.turns)
        return parts

    def state(self) -> dict[str, Tensor]:
        optimizers = [self.optimizers[name] for name in self.weights]
        return state_of(self.weights, optimizers)


def state_of(weights: dict[str, dict[str, Tensor]], optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Weights, and what the optimisers keep of each, by name."""
    slots = {id(value): slot for one in optimizers for value, slot in one.state.items()}
    found = {}
    for name, values in weights.items():
        for key, value in values.items():
            found[f"weights {name} {key}"] = value.detach().clone()
            for kind, kept_ in slots.get(id(value), {}).items():
                found[f"{kind} {name} {key}"] = kept_.clone()
    return found


def own_state(made: Trained) -> dict[str, Tensor]:
    return state_of({n: dict(net.named_parameters()) for n, net in made.nets.items()}, list(made.optimizers.values()))


def deviations(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each kind in each network."""
    assert set(one) == set(other)
    found: dict[str, float] = {}
    for name, value in one.items():
        kind = " ".join(name.split()[:2])
        assert value.shape == other[name].shape, name
        found[kind] = max(found.get(kind, 0.0), float((value.double() - other[name].double()).abs().max()))
    return found


# --- the steps

#: Ours rounds in another order in some hundred sums that lie behind one another, whose errors add up like sqrt(256);
#: what one rounding of each weight leads to is measured.
SUMS = 16
STEPS = 6


def moved_by_an_ulp(plain: Plain) -> Plain:
    """The same iterations, from weights each of which is one rounding off."""
    other = copy.deepcopy(plain)
    source = torch.Generator().manual_seed(5)
    for values in other.weights.values():
        for value in values.values():
            signs = torch.randint(0, 2, value.shape, generator=source).double() * 2 - 1
            value.data.mul_(1 + signs * torch.finfo(torch.float64).eps)
    return other


def check_steps(made: Any, steps: int = STEPS, labels: tuple[int, ...] = (0, 1, 0, 2)) -> list[set[str]]:
    """Train both side by side: losses, weights and moments are the same to the rounding of float64.

    Returns:
        The names of each step's losses.
    """
    plain = Plain(made)
    near = moved_by_an_ulp(plain)
    begun = plain.state()
    rounding, apart, where, names = torch.finfo(torch.float64).eps, 0.0, "", []
    for index in range(steps):
        batch = batch_of(made, index, labels)
        made.begin(batch, index * made.batch_size)
        draws = made.draw(made._numbers)
        found = run_step(made.phases, index, CPU)
        expected, other = (getattr(one, made.stage)(index + 1, batch, draws) for one in (plain, near))
        assert set(found) == set(expected)
        names.append(set(found))
        for name, value in expected.items():
            true, scale = value.item(), max(1.0, abs(value.item()))
            apart, where = max((apart, where), (abs(found[name].item() - true) / scale, f"{name} in step {index}"))
            rounding = max(rounding, abs(other[name].item() - true) / scale)
    assert apart <= SUMS * rounding < 1e-9, (apart, rounding, where)
    truth = plain.state()
    mine, usual = deviations(own_state(made), truth), deviations(near.state(), truth)
    moved = deviations({k: v for k, v in truth.items() if k in begun}, begun)
    sizes = deviations(truth, {name: torch.zeros_like(value) for name, value in truth.items()})
    for kind, error in mine.items():
        what, _ = kind.split()
        allowed = SUMS * max(usual[kind], torch.finfo(torch.float64).eps * sizes[kind])
        assert error <= allowed, (kind, error, allowed)
        if what == "weights" and moved[kind]:
            assert allowed < 1e-6 * moved[kind], kind  # not lost in the tolerance
    still = {kind.split()[1] for kind, change in moved.items() if change == 0}
    assert still <= ({"E"} if made.stage == "stage2" else {"C1"} if len(set(labels)) == 1 else set())
    return names


@pytest.fixture(autouse=True)
def pictures_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` computes in float32."""
    monkeypatch.setattr(training, "prepare", as_seen)


#: Name -> preset, settings over it, and labels of a batch where they are others than 0, 1, 0, 2.
STAGE_1: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "paper": ("paper", {}, ()),
    "release": ("release", {}, ()),
    "digits": ("nist", {}, ()),
    "four in a row": ("paper", {"stratified": False, "other_artist": "random", "batch": 5}, (0, 1, 0, 2, 3)),
    "colours only": ("paper", {"channels": 3}, ()),
    "weight maps": ("paper", {"weight_maps": "given"}, ()),
    "grey with weight maps": ("paper", {"channels": 1, "weight_maps": "given"}, ()),
    "relu": ("paper", {"activation": "relu"}, ()),
    "same artists count": ("paper", {"skip_same": False}, (0, 0, 1, 0)),
    "same artists are skipped": ("paper", {}, (0, 0, 1, 0)),
    "one artist in a batch": ("paper", {}, (2, 2, 2, 2)),
    "one artist in a batch counts": ("release", {}, (2, 2, 2, 2)),
    "unlikelihood": ("paper", {"c1_adv": "nlu"}, ()),
    "cap": ("paper", {"adv_cap": True, "lambda_c1": 2.0}, ()),
    "no adversary": ("paper", {"lambda_c1": 0.0}, ()),
    "codes": ("paper", {"c1_input": "code", "lambda_reg_c1": 0.5}, (0, 0, 1, 0)),
    "codes of relu with the last code's settings": ("release", {"c1_input": "code", "activation": "relu"}, ()),
    "match": ("paper", {"lambda_match": 0.1}, ()),
    "match with nested dropout": ("release", {"lambda_match": 0.1, "content_keep": 0.8, "style_keep": 1.0}, ()),
    "regularised": ("paper", {"regularised": True, "lambda_reg_c1": 0.5, "augment": True}, ()),
    "no styles": ("paper", {"style_size": 0}, ()),
    "no styles, digits": ("nist", {"style_size": 0, "batch": 1}, (3,)),
}


@pytest.mark.parametrize("name", STAGE_1)
def test_steps_of_stage_1(name: str) -> None:
    preset, changes, labels = STAGE_1[name]
    config = settings(preset, **changes)
    made = system("stage1", config)
    names = check_steps(made, labels=labels or (0, 1, 0, 2))
    expected = {"rec", "kl_content"}
    if config.style_size:
        expected |= {"kl_style", "c1"} | ({"rec_other"} if config.c1_input == "image" else set())
    expected |= {"warp"} if preset == "release" else set()
    expected |= {"match"} if config.lambda_match else set()
    expected |= {"reg_c1"} if config.lambda_reg_c1 else set()
    assert names == [expected] * STEPS
    assert set(made.nets) == {"E", "G"} | ({"S", "C1"} if config.style_size else set())


@pytest.mark.parametrize("preset", ["paper", "release", "nist"])
def test_steps_of_pretraining(preset: str) -> None:
    made = system("classifier", settings(preset))
    names = check_steps(made)
    assert names == [{"c2_real", "right"} | ({"reg_c2"} if preset == "release" else set())] * STEPS


STAGE_2: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "paper": ("paper", {}, ()),
    "release": ("release", {"force_d": 0.0, "force_c2": 0.0}, ()),
    "digits": ("nist", {}, ()),
    "colours only, random others, no strata": (
        "paper",
        {"channels": 3, "other_artist": "random", "stratified": False},
        (),
    ),
    "relu and augmentation": ("paper", {"activation": "relu", "augment": True}, ()),
    "same artists": ("paper", {}, (0, 0, 1, 0)),
    "plain contents": ("paper", {"content_form": "plain"}, ()),
    "no contents": ("paper", {"lambda_content": 0.0}, ()),
    "unlikelihood with a gap": ("paper", {"nlu_form": "eps"}, ()),
    "C2 learns from real pictures": ("release", {"c2_fake": "none", "force_d": 0.0, "force_c2": 0.0}, ()),
    "C2 unlearns": ("paper", {"c2_fake": "neg_nll"}, ()),
    "weights": ("release", {"lambda_d": 0.3, "lambda_c2": 0.7, "lambda_reg": 0.2, "force_d": 0.0, "force_c2": 0.0}, ()),
}


@pytest.mark.parametrize("name", STAGE_2)
def test_steps_of_stage_2(name: str) -> None:
    preset, changes, labels = STAGE_2[name]
    made = system("stage2", settings(preset, **changes))
    encoder = {key: value.clone() for key, value in made.nets["E"].state_dict().items()}
    names = check_steps(made, labels=labels or (0, 1, 0, 2))
    expected = {"d_real", "d_fake", "c2_real", "g_d", "g_c2", "kl_style"}
    expected |= {"c2_fake"} if made.config.c2_fake != "none" else set()
    expected |= {"content"} if made.config.lambda_content else set()
    expected |= {"warp", "reg_d", "reg_c2", "g_reg_d", "g_reg_c2"} if preset == "release" else set()
    assert names == [expected] * STEPS and made.turns == STEPS
    assert all(torch.equal(value, encoder[key]) for key, value in made.nets["E"].state_dict().items())
    assert all(p.grad is None for p in made.nets["E"].parameters())


WAITING: dict[str, dict[str, Any]] = {
    "for D": {"force_d": 2.0},
    "for C2": {"force_c2": 1.5},
    "for both": {"force_d": 1.8, "force_c2": 1.45},
    "for C2 without generated pictures": {"force_c2": 1.3, "c2_fake": "none"},
}


@pytest.mark.parametrize("name", WAITING)
def test_steps_in_which_the_generator_waits(name: str) -> None:
    made = system("stage2", settings(stage2_lr=5e-3, **WAITING[name]))
    names = check_steps(made, 18)
    turns = ["g_d" in found for found in names]
    assert made.turns == sum(turns) and True in turns[:-1] and False in turns
    # what was painted for a turn that did not come leaves no trace
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.nets["G"].parameters())


def test_waiting_goes_on_from_a_checkpoint() -> None:
    """The running means and G's own count of steps are in it."""
    config = settings(stage2_lr=5e-3, force_d=1.7, force_c2=1.4)
    made, other = system("stage2", config), system("stage2", config)
    for index in range(3):
        made.begin(batch_of(made, index), 4 * index)
        run_step(made.phases, index, CPU)
    assert 0 < made.turns + made._waited and made._waited > 0
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for index in range(3, 12):
        for one in (made, other):
            one.begin(batch_of(one, index), 4 * index)
            run_step(one.phases, index, CPU)
        assert other.optimizers["G"].param_groups[0]["lr"] == made.optimizers["G"].param_groups[0]["lr"]
    assert made.turns == other.turns > 0
    truth = own_state(made)
    assert all(torch.equal(value, truth[name]) for name, value in own_state(other).items())


@pytest.mark.parametrize("term", ["adversary", "D", "C2"])
def test_which_losses_reach_the_styles(term: str) -> None:
    """Stage 1's adversary does not, stage 2's judges do; both reach the generator."""
    alone: dict[str, Any] = {f"lambda_{name}": 0.0 for name in ("rec", "kl_content", "kl_style", "d", "c2", "content")}
    stage = "stage1" if term == "adversary" else "stage2"
    made = system(stage, settings(**alone | ({} if stage == "stage1" else {f"lambda_{term.lower()}": 1.0})))
    made.begin(batch_of(made, 0), 0)
    run_step(made.phases, 0, CPU)
    largest = {
        name: max(0.0 if p.grad is None else float(p.grad.abs().max()) for p in made.nets[name].parameters())
        for name in made.nets
    }
    assert largest["G"] > 1e-6
    assert (largest["S"] > 1e-6) == (stage == "stage2")
    assert (largest["E"] > 1e-6) == (stage == "stage1")
    if stage == "stage1":
        assert largest["S"] == 0.0


def test_a_discriminator_takes_over_the_trunk_of_a_classifier() -> None:
    config = settings("release")
    classifier, discriminator = Classifier(config, 7), Discriminator(config)
    head = {key: value.clone() for key, value in discriminator.dis.state_dict().items()}
    discriminator.take_trunk(classifier)
    found, expected = discriminator.state_dict(), classifier.state_dict()
    assert {key for key in found if not key.startswith("dis.")} == {k for k in expected if not k.startswith("cla.")}
    for key, value in found.items():
        wanted = head[key.removeprefix("dis.")] if key.startswith("dis.") else expected[key]
        assert torch.equal(value, wanted), key
        assert value.data_ptr() != expected.get(key, torch.empty(0)).data_ptr()  # a copy


def test_what_networks_see_of_pictures() -> None:
    images = torch.randint(0, 256, (3, 4, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 3, :2] = 0
    for channels in (1, 3, 4):
        found, expected = prepare(images[:, :channels]), as_seen(images[:, :channels])
        # at most three roundings of values up to 2
        assert float((found - expected).abs().max()) <= 3 * torch.finfo(torch.float32).eps
    assert float(found[:, :3, :2].abs().max()) == 0 and found.shape == (3, 4, 5, 5)


# --- draws


def numbers(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count)


def ranks(noise: Tensor) -> Tensor:
    """In which of M equal parts of the distribution each of M numbers lies."""
    u = (torch.erf(noise.double() / math.sqrt(2)) + 0.99999) / 1.99998
    return (u * len(noise)).floor().long()


BATCHES, ROWS = 1200, 4


def drawn(**changes: Any) -> list[Draws]:
    config = settings(**changes)
    return [draw(numbers(ROWS * turn, ROWS), config, 5) for turn in range(BATCHES)]


def within(found: Tensor, expected: float | Tensor, deviation: float | Tensor) -> bool:
    """Five standard deviations: less than one in a million for each of some hundred numbers."""
    return bool(((found - expected).abs() <= 5 * torch.as_tensor(deviation)).all())


def test_stratified_noise() -> None:
    """Each number of a code has one picture of the batch in each stratum, in an order of its own."""
    all_draws = drawn()
    noise = torch.stack([torch.cat([one.content, one.style], 1) for one in all_draws])
    strata_of = torch.stack([ranks(one) for one in noise])
    warps = torch.stack([(one.warp * ROWS).floor().long() for one in all_draws])
    both = torch.cat([strata_of, warps], 2)  # batches, rows, numbers
    assert torch.equal(both.sort(1).values, torch.arange(ROWS)[None, :, None].expand_as(both))
    # every order of 4 comes equally often, for each number
    code = (both[:, :3] * torch.tensor([16, 4, 1])[None, :, None]).sum(1)
    p = 1 / math.factorial(ROWS)
    for column in code.T:
        _, counts = column.unique(return_counts=True)
        assert len(counts) == 24 and within(counts / BATCHES, p, math.sqrt(p * (1 - p) / BATCHES))
    # and the orders of two numbers have nothing to do with each other: their covariance is 0 in the mean over batches
    centred = both.double() - (ROWS - 1) / 2
    each = torch.einsum("bri,brj->bij", centred, centred)
    # of two independent permutations the products' sum has the variance (sum of squares)^2 / (rows - 1)
    deviation = 5.0 / math.sqrt((ROWS - 1) * BATCHES)
    apart = each.mean(0)[~torch.eye(both.shape[2], dtype=torch.bool)]
    assert within(apart, 0.0, deviation)
    assert not torch.equal(strata_of[0], strata_of[1])


@pytest.mark.parametrize("stratified", [False, True])
def test_moments_of_noise(stratified: bool) -> None:
    """N(0, 1), also within a stratum: a mean over strata is far nearer to 0 than one of independent numbers."""
    noise = torch.stack([torch.cat([o.content, o.style], 1) for o in drawn(stratified=stratified)]).double()
    count = noise.shape[0] * noise.shape[1]
    assert within(noise.mean((0, 1)), 0.0, 1 / math.sqrt(count))
    # the variance of x^2 is 2; 1 - 1e-5 of the distribution is drawn, which the cut tails hardly tell
    assert within(noise.square().mean((0, 1)), 1.0, math.sqrt(2 / count))
    of_a_mean = noise.mean(1).std()
    # four independent numbers: 1/2. One in each quarter: the mean of the quarters' variances, over 4
    quarters = normal((torch.arange(4 * 4096).double() + 0.5) / (4 * 4096)).view(4, -1).var(1, correction=0)
    expected = math.sqrt(float(quarters.mean()) / ROWS) if stratified else 0.5
    assert within(of_a_mean, expected, expected / math.sqrt(2 * BATCHES)) and (expected < 0.3) == stratified


def test_stratified_numbers_are_as_the_specification_says() -> None:
    source = torch.Generator().manual_seed(0)
    order = torch.rand(9, 5, generator=source).argsort(0)
    inside = torch.rand(9, 5, generator=source).double()
    u = ((order + inside) / 9) * 1.99998 - 0.99999
    torch.testing.assert_close(normal(strata(order, inside)), math.sqrt(2) * torch.erfinv(u), rtol=1e-12, atol=1e-12)
    ends = normal(torch.tensor([0.0, 1 - 2.0**-24]))
    assert bool(ends.isfinite().all()) and float(ends.abs().max()) < 4.5


def test_nested_dropout_keeps_prefixes() -> None:
    """P(keep i) = p^i; what is dropped begins somewhere and goes on to the end."""
    base, size, count = 0.9, 12, 20_000
    levels = torch.cat([draw(numbers(4000 * i, 4000), settings(), 5).content_level for i in range(count // 4000)])
    mask = kept(levels, base, size)
    assert mask is not None and set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((mask[:, 1:] <= mask[:, :-1]).all()) and bool((mask[:, 0] == 1).all())
    p = base ** torch.arange(size).double()
    assert within(mask.double().mean(0), p, (p * (1 - p) / count).sqrt())
    assert kept(levels, 1.0, size) is None
    edges = torch.tensor([0.0, 0.8099, 0.8101, 0.9001])
    assert kept(edges, base, 3).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]  # type: ignore[union-attr]


def test_levels_of_contents_and_styles_are_independent() -> None:
    found = draw(numbers(0, 20_000), settings(), 5)
    both = torch.stack([found.content_level, found.style_level, found.content[:, 0], found.style[:, 0]]).double()
    correlations = torch.corrcoef(both)[~torch.eye(4, dtype=torch.bool)]
    assert within(correlations, 0.0, 1 / math.sqrt(20_000))


def test_partners() -> None:
    rows = torch.arange(6)
    assert torch.equal(draw(numbers(0, 6), settings(), 5).partner, (rows + 1) % 6)
    steps = [(draw(numbers(6 * i, 6), settings(other_artist="random"), 5).partner - rows) % 6 for i in range(BATCHES)]
    found = torch.stack(steps)
    assert int(found.min()) == 1 and int(found.max()) == 5  # never the picture itself
    counts = torch.bincount(found.flatten(), minlength=6)[1:] / found.numel()
    assert within(counts.double(), 1 / 5, math.sqrt(0.2 * 0.8 / found.numel()))
    for kind in ("next", "random"):
        assert draw(numbers(3, 1), settings(other_artist=kind), 5).partner.tolist() == [0]
        assert draw(numbers(3, 2), settings(other_artist=kind), 5).partner.tolist() == [1, 0]


def test_numbers_decide_all_draws() -> None:
    """Those of a picture depend on the run's seed, the stage, and its place in the run; noise that is not stratified
    on nothing else."""
    config = settings(stratified=False)
    whole, part = draw(numbers(8, 8), config, 5), draw(numbers(10, 3), config, 5)
    for name in ("content", "style", "content_level", "style_level", "warp"):
        assert torch.equal(getattr(whole, name)[2:5], getattr(part, name)), name
    seen: set[int] = set()
    for stage in SYSTEMS:
        for seed in (0, 1, 2**28 - 1):
            made = system(stage, settings(seed=seed))
            for index in (0, 1, 10**9 // 4):
                made.begin(batch_of(made, 0), index * made.batch_size)
                seen |= set(made._numbers.tolist())
    assert len(seen) == 3 * 3 * 3 * 4
    values = uniforms(torch.tensor(sorted(seen)), 1)
    assert len(values.unique()) == len(seen)


def test_augmentation_moves_alpha_along_and_stays_inside() -> None:
    """The corners of the window: what is furthest out is the margin that the settings leave."""
    config = settings(augment=True)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1 - 2.0**-24])] * 4).double()
    x = torch.ones(len(corners), 4, 16, 16).double()
    x[:, :3] = torch.linspace(-1, 1, 16).double()
    found = augment(x, corners, config)
    assert found.shape == x.shape and float(found.abs().max()) <= 1 + 1e-12
    # outside nothing is: neither colour nor alpha
    assert bool(((found[:, 3] > 0) | (found[:, :3].abs().sum(1) == 0)).all())
    assert 0 < float((found[:, 3] == 0).double().mean()) < 0.75
    middle = augment(x[:1], torch.tensor([[0.5, 0.0, 0.5, 0.5]]).double(), config)
    torch.testing.assert_close(middle, x[:1], rtol=0, atol=1e-12)


# --- several processes


def trained_by(team: Team, data: Path, nudge: bool = False) -> dict[str, dict[str, Tensor]]:
    """Four steps of each stage in float64 on this process's part of each batch; stage 2's generator waits in some."""
    config = settings(batch=8, stage2_batch=8, classifier_batch=8, stage2_lr=5e-3, force_d=2.8, lambda_match=0.1)
    pictures = load_artists(data, config.size, channels=config.channels, min_images=1)
    source = torch.Generator().manual_seed(1)
    stored = {part: torch.rand(len(pictures), config.content_size, generator=source) for part in ("mean", "std")}
    found = {}
    for stage in SYSTEMS:
        made = system(stage, config, team)
        batches = Pictures(pictures, 8, 0, CPU, team, stored if stage == "stage2" else None)
        if nudge:
            signs = torch.Generator().manual_seed(2)
            for value in (p for net in made.nets.values() for p in net.parameters()):
                up = torch.randint(0, 2, value.shape, generator=signs).double() * 2 - 1
                value.data.mul_(1 + up * torch.finfo(torch.float64).eps)
        losses = {}
        for index in range(4):
            batch = batches.next()
            assert len(batch.images) == 8 // team.world and len(batch.labels) == 8
            made.begin(batch._replace(mean=batch.mean.double(), std=batch.std.double()), 8 * index)
            scalars = run_step(made.phases, index, CPU, team=team)
            for name, value in scalars.items():
                mean = value.double().clone()
                team.average([mean])
                losses[f"losses {stage} {index} {name}"] = mean
        if stage == "stage2":
            assert 0 < made.turns < 4
        found[stage] = own_state(made) | losses
    return found


def steps_of_two(team: Team, data: str, folder: str) -> None:
    training.prepare = as_seen
    torch.save(trained_by(team, Path(data)), Path(folder) / f"{team.rank}.pt")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes have it, so that sums are added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.heavy
@pytest.mark.usefixtures("one_thread")
def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    """Labels of the others' pictures, pairs of the same artist and what the generator waits for are of both."""
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/systems']\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_disentangle_training as tests\n"
        "from anifast.engine import distributed\n"
        "with distributed.team('cpu') as team:\n"
        f"    tests.steps_of_two(team, {str(tmp_path / 'pictures')!r}, {str(tmp_path)!r})\n"
    )
    (tmp_path / "program.py").write_text(program)
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "program.py")
    with own_cache(tmp_path / "cache"):
        data = write_artists(tmp_path / "pictures", transparent=True)
        done = subprocess.run(command(sys.executable, *words), cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        alone = Team(CPU)
        truth, near = trained_by(alone, data), trained_by(alone, data, nudge=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for stage, expected in truth.items():
        assert all(torch.equal(value, second[stage][name]) for name, value in first[stage].items())
        mine, usual = deviations(first[stage], expected), deviations(near[stage], expected)
        sizes = deviations(expected, {name: torch.zeros_like(value) for name, value in expected.items()})
        for kind, error in mine.items():
            allowed = SUMS * max(usual[kind], torch.finfo(torch.float64).eps * sizes[kind])
            assert error <= allowed < 1e-8 * max(1.0, sizes[kind]), (stage, kind, error, allowed)


# --- learning


@torch.no_grad()
def skill(made: Stage1, pictures: Labelled) -> tuple[float, list[float]]:
    """What the networks make of all pictures.

    Returns:
        The distance to the pictures when painted in their own artist's style, in parts of the distance to the mean of
        all pictures, which is about the best that one and the same picture for all could have. And for each two
        artists how far pictures by the first go on the way from his mean picture to the second one's when they are
        painted in the second one's style: 0 where styles make no difference, 1 where they get there.
    """
    images, labels, _ = pictures.batch(range(len(pictures)), CPU)
    x = prepare(images)[:, :3]
    content = made.nets["E"](prepare(images))[0]

    def painted(who: Tensor) -> Tensor:
        found: Tensor = made.nets["G"](torch.cat([content, made.nets["S"](who)[0]], 1))
        return found

    def distance(y: Tensor) -> float:
        return float((y - x).square().sum(1).sqrt().mean())

    artists = range(len(pictures.classes))
    means, own = [x[labels == k].mean(0) for k in artists], painted(labels)
    went = []
    for one in artists:
        for other in artists:
            if one != other:
                way = means[other] - means[one]
                moved = (painted(torch.full_like(labels, other)) - own)[labels == one].mean(0)
                went.append(float((moved * way).sum() / way.square().sum()))
    return distance(own) / distance(x.mean(0, keepdim=True)), went


@pytest.mark.heavy
@pytest.mark.usefixtures("one_thread")
def test_stage_1_learns_twelve_pictures_and_their_artists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures come back twice as near as the mean picture is, and in another artist's style they look more like his.

    Untrained networks, also with styles that differ, do neither.
    """
    monkeypatch.setattr(training, "prepare", prepare)
    config = tiny_config(features="10,14,20", fc=48, content_size=16, batch=12, lr=5e-3, lr_style=2e-2, warm_up=20)
    with own_cache(tmp_path / "cache"):
        pictures = load_artists(write_artists(tmp_path / "pictures"), 32, channels=4, min_images=2)
    made, batches = Stage1(config, pictures, CPU), Pictures(pictures, 12, 0, CPU)
    fresh = Stage1(config, pictures, CPU)
    styles = fresh.nets["S"].get_parameter("mean").data
    styles.copy_(torch.randn(styles.shape, generator=torch.Generator().manual_seed(0)))
    error, went = skill(fresh, pictures)
    assert error > 1 and max(map(abs, went)) < 0.15, (error, went)
    for index in range(240):
        made.begin(batches.next(), 12 * index)
        run_step(made.phases, index, CPU)
    error, went = skill(made, pictures)
    assert error < 0.5 and min(went) > 0 and sum(went) / len(went) > 0.2, (error, went)

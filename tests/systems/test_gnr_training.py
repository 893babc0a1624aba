"""Training of GANs N' Roses: the step against a plain one, runs that are killed and resumed, and what is refused.

`Plain` is one iteration as sections 4 and 5 of the specification tell it: a pass for every batch, no network is frozen,
PyTorch's own Adam.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_cyclegan import ROOT, command, data_folder, leftovers, own_cache, picture, read, start, the_error
from tiny_gnr import authors_state, ema_only, own_state
from torch import Tensor, nn

from anifast import cli
from anifast.engine.distributed import Team
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.systems.gnr import training
from anifast.systems.gnr.config import Config, make
from anifast.systems.gnr.training import GNR, Batch, Pictures

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
#: 64 px and 8 channels at most (the style codes keep their width).
TINY: dict[str, Any] = {"size": 64, "num_down": 3, "channel_multiplier": 1 / 64, "n_mlp": 2, "lpips_net": "none"}


class Seen:
    """A perceptual distance that costs nothing: of what one convolution sees."""

    report_name = "one convolution"

    def __init__(self) -> None:
        self.weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double() / 8
        self.looked = 0

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        self.looked += 1
        return self._maps(x)

    def __call__(self, x: Tensor, features: Tensor) -> Tensor:
        return (self._maps(x) - features).square().mean((1, 2, 3), keepdim=True)

    def _maps(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), stride=4).to(x.dtype).tanh()


def system(preset: str, dtype: torch.dtype = torch.float64, team: Team | None = None, **changes: Any) -> GNR:
    """A run's networks and losses; its biases are not 0, as trained ones are not."""
    model = GNR(make(preset, TINY | {"batch": 3} | changes), CPU, team=team)
    source = torch.Generator().manual_seed(1)
    for net in model.nets.values():
        for key, value in net.named_parameters():
            if key.endswith("bias"):
                value.data.add_(torch.randn(value.shape, generator=source), alpha=0.1)
    if model.ema is not None:
        model.ema.nets = {name: copy.deepcopy(model.nets[name]).requires_grad_(False) for name in model.ema.nets}
    for net in [*model.nets.values(), *(model.ema.nets.values() if model.ema else ())]:
        net.to(dtype)
    if model.config.lambda_lpips:
        model.lpips = Seen()  # type: ignore[assignment]
    return model


def pictures(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Batch:
    """Smooth pictures, all different."""
    coarse = torch.rand(4 * count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    smooth = F.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=True).clamp(-1, 1)
    return Batch(*smooth.to(dtype).split(count))


def begin(model: GNR, index: int, dtype: torch.dtype = torch.float64) -> Batch:
    """The batch of a step, taken; what is drawn for it has the type of the networks."""
    batch = pictures(model.config.batch, index, dtype)
    model.begin(batch, index * model.config.batch)
    model._draws = {name: x.to(dtype) if x.is_floating_point() else x for name, x in model._draws.items()}
    return batch


@dataclasses.dataclass(frozen=True)
class Column:
    """The weights of section 4, which are those of L-v1 unless something else is said."""

    consistency: float = 50.0
    cosine: bool = False
    l1: bool = False
    reconstruction: float = 5.0
    identity: float = 0.0
    latent: bool = True
    mixed: bool = True


COLUMNS = {
    "rel": Column(),
    "main": Column(),
    "new": Column(cosine=True, l1=True, reconstruction=0.0, identity=10.0),
    "notes": Column(consistency=10.0, reconstruction=0.0, latent=False, mixed=False),
}


class Plain:
    """Iterations of section 5 on copies of a system's networks."""

    def __init__(self, model: GNR, column: Column) -> None:
        self.column, self.config = column, model.config
        self.nets = copy.deepcopy(model.nets)
        for net in self.nets.values():
            for module in net.requires_grad_(True).modules():
                module.recompute = False  # type: ignore[assignment]
        self.ema = copy.deepcopy({name: self.nets[name] for name in ("G_A2B", "G_B2A")})
        self.heads = 3 if self.config.diversity else 2
        self.seen = Seen()
        every = self.config.r1_every
        g = [p for name in ("G_A2B", "G_B2A") for p in self.nets[name].parameters()]
        d = [p for name in ("D_L", "D_A", "D_B") for p in self.nets[name].parameters()]
        plain = {"lr": self.config.lr, "eps": 1e-8, "foreach": False, "fused": False}
        self.adam = {
            "G": torch.optim.Adam(g, betas=(0.0, 0.99), **plain),  # type: ignore[arg-type]
            "D": torch.optim.Adam(d, betas=(0.0, 0.99 ** (every / (every + 1))), **plain),  # type: ignore[arg-type]
        }

    def judge(self, name: str, x: Tensor) -> list[Tensor]:
        logits: list[Tensor] = self.nets[name](x)
        return logits[: self.heads]

    def penalty(self, logits: list[Tensor], x: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for head in logits:
            score = head.sum() if self.config.r1_reduction == "sum" else head.mean()
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            total = total + gradient.pow(2).reshape(len(x), -1).sum(1).mean()
        return total

    def step(self, index: int, batch: Batch, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One iteration; the values of its losses by the names of the log."""
        c, nets, parts = self.column, self.nets, {}
        halvings = index // self.config.halve_every if self.config.halve_every else 0
        for adam in self.adam.values():
            adam.param_groups[0]["lr"] = 0.002 * 0.5**halvings
        a, b = batch.a, batch.b
        aug_a, aug_b = (x.clone().requires_grad_() for x in (batch.aug_a, batch.aug_b))
        z_a, z_b = (draws[f"z_{side}"].clone().requires_grad_() for side in "ab")
        content_a, s_a = nets["G_A2B"].encode(a)
        content_b, s_b = nets["G_B2A"].encode(b)
        r_b, r_a = nets["G_B2A"].style_encode(aug_b), nets["G_A2B"].style_encode(aug_a)
        t_b = torch.cat([z_b, r_b])[draws["pick_b"]] if c.mixed else z_b
        t_a = torch.cat([z_a, r_a])[draws["pick_a"]] if c.mixed else z_a
        fake_b, fake_a = nets["G_A2B"].decode(content_a, t_b), nets["G_B2A"].decode(content_b, t_a)

        loss, penalties = torch.zeros((), dtype=torch.float64), []
        due = self.config.r1 > 0 and index % self.config.r1_every == 0
        judged = [("d_a", "D_A", aug_a, fake_a), ("d_b", "D_B", aug_b, fake_b)]
        if c.latent:
            judged += [("d_latent", "D_L", z_b, r_b), ("d_latent", "D_L", z_a, r_a)]
        for part, name, real, fake in judged:
            judge = (lambda x: [nets["D_L"](x)]) if name == "D_L" else (lambda x, name=name: self.judge(name, x))
            on_real, on_fake = judge(real), judge(fake.detach())
            for one, other in zip(on_real, on_fake, strict=True):
                value = F.softplus(-one).mean() + F.softplus(other).mean()
                parts[part] = parts.get(part, 0) + value
                loss = loss + value
            if due:
                penalties.append(self.penalty(on_real, real))
        if due:
            parts["r1"] = self.config.r1 / 2 * self.config.r1_every * torch.stack(penalties).sum()
            loss = loss + parts["r1"]
        self.adam["D"].zero_grad()
        loss.backward(retain_graph=True)
        self.adam["D"].step()

        def cost(x: Tensor, y: Tensor) -> Tensor:
            return (x - y).abs().mean() if c.l1 else (x - y).pow(2).mean()

        def spread(codes: Tensor) -> Tensor:
            if not c.cosine:
                return (codes - codes.mean(0)).pow(2).mean(0).sum()
            pairs = [F.cosine_similarity(x, y, dim=0) for x in codes for y in codes]
            return torch.stack([1 - value for value in pairs]).sum()

        for side, name, fake in (("a", "D_A", fake_a), ("b", "D_B", fake_b)):
            values = [F.softplus(-head).mean() for head in self.judge(name, fake)]
            parts[f"g_adv_{side}"] = sum(values) / 3
        if c.latent:
            parts["g_latent"] = sum(2 * F.softplus(-nets["D_L"](code)).mean() for code in (r_a, r_b))
        back_a, found_b = nets["G_B2A"].encode(fake_b)
        back_b, found_a = nets["G_A2B"].encode(fake_a)
        again_a = nets["G_B2A"].decode(back_a, s_a[draws["mix_a"]])
        again_b = nets["G_A2B"].decode(back_b, s_b[draws["mix_b"]])
        parts["style_a"], parts["style_b"] = c.consistency * spread(s_a), c.consistency * spread(s_b)
        parts["cycle_a"], parts["cycle_b"] = 20 * cost(again_a, a), 20 * cost(again_b, b)
        parts["lpips_a"] = 10 * self.seen(again_a, self.seen.features(a)).mean()
        parts["lpips_b"] = 10 * self.seen(again_b, self.seen.features(b)).mean()
        if c.reconstruction:
            parts["style_rec_b"] = c.reconstruction * (found_b - t_b).pow(2).mean()
            parts["style_rec_a"] = c.reconstruction * (found_a - t_a).pow(2).mean()
        if c.identity:
            parts["identity_b"] = c.identity * (nets["G_A2B"](aug_b)[0] - aug_b).abs().mean()
            parts["identity_a"] = c.identity * (nets["G_B2A"](aug_a)[0] - aug_a).abs().mean()
        parts["generators"] = torch.stack([value for key, value in parts.items() if key[:2] not in ("d_", "r1")]).sum()
        self.adam["G"].zero_grad()
        parts["generators"].backward()
        self.adam["G"].step()
        with torch.no_grad():
            for name, average in self.ema.items():
                for mean, live in zip(average.parameters(), nets[name].parameters(), strict=True):
                    mean.copy_(self.config.ema * mean + (1 - self.config.ema) * live)
        return {name: value.detach() for name, value in parts.items()}

    def state(self) -> dict[str, Tensor]:
        return state_of(self.nets, self.ema, self.adam)


def state_of(
    nets: dict[str, nn.Module], ema: dict[str, nn.Module], adam: dict[str, torch.optim.Adam]
) -> dict[str, Tensor]:
    """Weights, averages and moments; the latter by number."""
    found = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.named_parameters()}
    found |= {f"ema.{name}.{key}": value for name, net in ema.items() for key, value in net.named_parameters()}
    for name, optimizer in adam.items():
        for number, slot in optimizer.state_dict()["state"].items():
            found |= {f"{kind}.{name}.{number}": slot[kind] for kind in ("step", "exp_avg", "exp_avg_sq")}
    return {name: value.detach().clone() for name, value in found.items()}


def kind_of(name: str) -> str:
    """What is compared with one scale."""
    first, second = name.split(".")[:2]
    return f"{first} {second[0]}" if first in ("ema", "step", "exp_avg", "exp_avg_sq") else f"weights {first[0]}"


def deviations(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each kind."""
    assert set(one) == set(other)
    found: dict[str, float] = {}
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
        found[kind_of(name)] = max(found.get(kind_of(name), 0.0), float((value - other[name]).abs().max()))
    return found


# --- the step

#: Ours rounds in another order in some hundred sums that lie behind one another, whose errors add up like sqrt(256);
#: what one rounding of each weight leads to is measured.
SUMS = 16


def moved_by_an_ulp(plain: Plain) -> Plain:
    """The same iterations, from weights each of which is one rounding off."""
    other = copy.deepcopy(plain)
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for net in other.nets.values():
            for value in net.parameters():
                signs = torch.randint(0, 2, value.shape, generator=source).double() * 2 - 1
                value.mul_(1 + signs * torch.finfo(torch.float64).eps)
        for name, net in other.ema.items():
            net.load_state_dict(other.nets[name].state_dict())
    return other


def check_steps(model: GNR, plain: Plain, steps: int) -> None:
    """Train both side by side; their losses, weights, moments and averages are the same to the rounding of float64.

    An error d of a gradient moves a weight by at most lr d / eps in a step of Adam.
    """
    other = moved_by_an_ulp(plain)
    apart, rounding = 0.0, torch.finfo(torch.float64).eps
    for index in range(steps):
        batch = begin(model, index)
        found = run_step(model.phases, index, CPU)
        assert model.ema is not None
        model.ema.update(model.config.batch)
        expected, near = (one.step(index, batch, model._draws) for one in (plain, other))
        assert set(found) == set(expected) <= {key for panel in model.panels for key in panel.keys} | {"generators"}
        for name, value in expected.items():
            assert found[name].dtype == torch.float64 and value > 0, name
            apart = max(apart, float(abs(found[name] - value) / value))
            rounding = max(rounding, float(abs(near[name] - value) / value))
    assert apart <= SUMS * rounding
    truth = plain.state()
    mine = deviations(state_of(model.nets, model.ema.nets, model.optimizers), truth)  # type: ignore[union-attr]
    usual = deviations(other.state(), truth)
    assert {kind.split()[0] for kind in mine} == {"weights", "ema", "step", "exp_avg", "exp_avg_sq"}
    for kind, error in mine.items():
        allowed = SUMS * usual[kind]
        if kind.startswith(("weights", "ema")):
            allowed = SUMS * usual[f"exp_avg {kind[-1]}"] * model.config.lr / 1e-8 * steps
            assert allowed < 0.1 * model.config.lr * steps  # a wrong sign of one gradient is seen
        assert error <= allowed, (kind, error, allowed)


@pytest.mark.heavy
def test_eighteen_steps_are_those_of_the_specification() -> None:
    """With the penalty in the steps 0 and 16, and half the learning rate from step 7 and again from step 14."""
    model = system("rel", halve_every=7, ema=0.9)
    check_steps(model, Plain(model, COLUMNS["rel"]), 18)
    assert model.row(17 * 3)["lr"] == 2e-3 / 4


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "main": ("main", {}, {}),
    "new": ("new", {}, {}),
    "notes": ("notes", {}, {}),
    "sum": ("rel", {"r1_reduction": "sum"}, {}),
    "no diversity": ("rel", {"diversity": False}, {}),
    "random styles": ("rel", {"styles": "random"}, {"mixed": False}),
    "checkpointing": ("new", {"checkpointing": True, "n_res": 2}, {}),
    "penalty in each step": ("rel", {"r1_every": 1}, {}),
    "no penalty": ("rel", {"r1": 0.0}, {}),
    "two": ("rel", {"batch": 2, "latent_dim": 3}, {}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_those_of_the_specification(name: str) -> None:
    """Of the other presets and options: one step with a penalty and one without."""
    preset, changes, column = OPTIONS[name]
    model = system(preset, **{"r1_every": 2, "ema": 0.9} | changes)
    check_steps(model, Plain(model, dataclasses.replace(COLUMNS[preset], **column)), 2)
    assert len(model.phases) == (3 if name in ("penalty in each step", "no penalty") else 4)


def test_a_wrong_weight_would_be_seen() -> None:
    model = system("rel", r1_every=2)
    with pytest.raises(AssertionError):
        check_steps(model, Plain(model, dataclasses.replace(COLUMNS["rel"], reconstruction=5 * (1 + 1e-8))), 1)


@pytest.mark.parametrize("preset", ["rel", "new"])
def test_checkpointing_changes_no_bit(preset: str) -> None:
    kept, computed_again = (system(preset, torch.float32, r1_every=2, checkpointing=on) for on in (False, True))
    for index in range(2):
        for model in (kept, computed_again):
            begin(model, index, torch.float32)
            run_step(model.phases, index, CPU)
    for name, value in state_of(kept.nets, {}, kept.optimizers).items():
        assert torch.equal(state_of(computed_again.nets, {}, computed_again.optimizers)[name], value), name


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("preset", ["rel", "main", "new"])
def test_losses_at_zero_logits(preset: str, penalised: bool) -> None:
    """Section 4's values known by heart: 16 ln 2 for the discriminators, 6 ln 2 for the generators."""
    model = system(preset, torch.float32, lr=0.0)
    for name in ("D_A", "D_B"):
        for head in (model.nets[name].l_branch[-1], model.nets[name].g_adv, model.nets[name].g_final):
            for value in head.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(value)
    for value in model.nets["D_L"].fc[-1].parameters():  # type: ignore[index,union-attr]
        nn.init.zeros_(value)
    begin(model, 0, torch.float32)
    found = run_step(model.phases, 0 if penalised else 1, CPU)
    judges, painters = (("d_a", "d_b", "d_latent"), ("g_adv_a", "g_adv_b", "g_latent"))
    assert sum(float(found[name]) for name in judges) == pytest.approx(16 * math.log(2), rel=1e-6)
    assert sum(float(found[name]) for name in painters) == pytest.approx(6 * math.log(2), rel=1e-6)
    assert ("r1" in found) == penalised and found.get("r1", 0) == 0


def test_each_phase_trains_its_own_networks_only() -> None:
    """Gradients of the others would be thrown away. `translations` keeps its graph for the generators' phase."""
    model = system("rel", torch.float32, r1_every=2)
    trainable: list[tuple[str, set[str]]] = []
    for phase in model.phases:

        def noted(*inputs: Tensor, phase: Any = phase, loss: Callable[..., Any] = phase.loss) -> Any:
            assert not any(x.requires_grad for x in inputs)
            nets = {name for name, net in model.nets.items() for p in net.parameters() if p.requires_grad}
            trainable.append((phase.name, nets))
            return loss(*inputs)

        phase.loss = noted
    generators, judges = {"G_A2B", "G_B2A"}, {"D_A", "D_B", "D_L"}
    for index, middle in ((0, "discriminators, penalised"), (1, "discriminators")):
        before = state_of(model.nets, {}, {})
        begin(model, index, torch.float32)
        run_step(model.phases, index, CPU)
        assert trainable == [("translations", generators), (middle, judges), ("generators", generators)]
        trainable.clear()
        after = state_of(model.nets, {}, {})
        assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_the_target_of_the_perceptual_distance_is_looked_at_once() -> None:
    model = system("rel", torch.float32)
    begin(model, 1, torch.float32)
    run_step(model.phases, 1, CPU)
    assert model.lpips.looked == 2  # type: ignore[union-attr]


def test_the_perceptual_distance_of_the_cycle() -> None:
    """By the network that needs no file, on the pictures that come back.

    It has no published heads: a layer's value is 2 - 2 cos, and the mean over the five of 1 - cos is what counts.
    """
    model = GNR(make("rel", TINY | {"batch": 2, "lpips_net": "random", "lr": 0.0}), CPU)
    batch = begin(model, 1, torch.float32)
    found = run_step(model.phases, 1, CPU)
    with torch.no_grad():
        nets, draws = model.nets, model._draws
        content, code = nets["G_A2B"].encode(batch.a)
        styles = torch.cat([draws["z_b"], nets["G_B2A"].style_encode(batch.aug_b)])[draws["pick_b"]]
        content = nets["G_B2A"].encode(nets["G_A2B"].decode(content, styles))[0]
        again = nets["G_B2A"].decode(content, code[draws["mix_a"]])
        assert model.lpips is not None
        expected = 10 * model.lpips(again, batch.a).mean() / (2 * 5)
    torch.testing.assert_close(found["lpips_a"], expected, rtol=1e-3, atol=0)  # float32, through untrained networks
    assert not any(p.requires_grad for p in model.lpips.parameters())


def test_draws_of_a_step() -> None:
    """By seed, step and process; z is N(0, 1), picks and mixes are rows without replacement, all of them as often."""
    model, other = system("rel", torch.float32, batch=4), system("rel", torch.float32, batch=4, seed=1)
    second = GNR(model.config, CPU, team=Team(CPU, 1, 2))
    batch, count = pictures(4, 0, torch.float32), 1000
    seen: dict[str, list[Tensor]] = {}
    for index in range(count):
        model.begin(batch, 4 * index)
        for name, value in model._draws.items():
            seen.setdefault(name, []).append(value)
    for one in (other, second):
        one.begin(batch, 0)
        assert not any(torch.equal(one._draws[f"z_{side}"], seen[f"z_{side}"][0]) for side in "ab")
    again = GNR(model.config, CPU)
    again.begin(batch, 4 * 7)
    assert all(torch.equal(again._draws[name], values[7]) for name, values in seen.items())
    z = torch.stack([torch.stack(seen[f"z_{side}"]) for side in "ab"])
    assert z.shape == (2, count, 4, 8)
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel()) and abs(float(z.var()) - 1) < 5 * math.sqrt(2 / z.numel())
    assert abs(float((z[0] * z[1]).mean())) < 5 / math.sqrt(z[0].numel())
    assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < 5 / math.sqrt(z[0].numel())
    for side in "ab":
        picks, mixes = torch.stack(seen[f"pick_{side}"]), torch.stack(seen[f"mix_{side}"])
        assert all(len(set(row.tolist())) == 4 for row in picks) and (mixes.sort(1).values == torch.arange(4)).all()
        for rows, choices, chance in ((picks.flatten(), 8, 4 / 8), (mixes[:, 0], 4, 1 / 4)):
            often = torch.bincount(rows, minlength=choices) / count
            assert (abs(often - chance) < 5 * math.sqrt(chance * (1 - chance) / count)).all()
    assert not torch.equal(torch.stack(seen["pick_a"]), torch.stack(seen["pick_b"]))


def test_bfloat16_on_the_cpu() -> None:
    """Every convolution rounds maps and weights to 8 bits; its losses are those of float32 up to that."""
    single, half = (system("rel", torch.float32, lr=0.0, batch=4) for _ in range(2))
    types: dict[str, set[torch.dtype]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, out: types.setdefault(name, set()).add(out.dtype)

    half.nets["G_A2B"].encoder.stem[1].register_forward_hook(note("stem"))  # type: ignore[index,union-attr]
    half.nets["G_A2B"].convs[-1].register_forward_hook(note("convs"))  # type: ignore[index,union-attr]
    half.nets["D_L"].register_forward_hook(note("D_L"))
    half.nets["D_A"].l_branch.register_forward_hook(note("l_branch"))  # type: ignore[union-attr]
    for index in range(2):
        for model in (single, half):
            begin(model, index, torch.float32)
        with_penalty = index == 0
        truth = run_step(single.phases, index, CPU)
        found = run_step(half.phases, index, CPU, "bf16")
        assert set(found) == set(truth) and ("r1" in found) == with_penalty
        # the longest way is two generators and a discriminator of some 20 layers each, three roundings in a layer,
        # whose errors add up like the root of their number
        allowed = 2**-8 * math.sqrt(3 * 60)
        for name, value in truth.items():
            assert found[name].dtype == torch.float32
            assert abs(float(found[name] - value)) <= allowed * max(float(value), 1.0), name
        assert any(float(found[name]) != float(value) for name, value in truth.items())
    assert types["stem"] == types["convs"] == {torch.bfloat16} and types["D_L"] == {torch.float32}
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in half.nets["G_A2B"].parameters())  # type: ignore[union-attr]


# --- data


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """8 pictures of A, 9 of B, and 2 each to test with, of different sizes."""
    root = tmp_path_factory.mktemp("faces")
    with own_cache(root / "cache"):
        for start_at, (name, count) in enumerate((("trainA", 8), ("trainB", 9), ("testA", 2), ("testB", 2))):
            for i in range(count):
                picture(root / "data" / name / f"{i}.png", 100 * start_at + i, (64 + 8 * (i % 2), 64))
        yield root / "data"


def tiny(**changes: Any) -> Config:
    return make("rel", TINY | {"batch": 4} | changes)


def undone(**changes: Any) -> Config:
    """Without augmentation but for the cut and the mirror, which copy what was enlarged."""
    return tiny(affine=0.0, warp="twice", **changes)


def test_content_batches_show_one_picture_and_real_ones_several(faces: Path) -> None:
    """Told apart by colour: pictures of one colour each keep it through every augmentation that is not affine."""
    root = faces.parent / "plain"
    for name in ("trainA", "trainB"):
        for i in range(8):
            (root / name).mkdir(parents=True, exist_ok=True)
            shade = 16 * i + (128 if name == "trainB" else 0)
            Image.new("RGB", (64, 64), (shade, 255 - shade, 100)).save(root / name / f"{i}.png")
    data = Pictures(root, undone(), CPU)
    seen: list[list[int]] = [[], [], [], []]
    for _ in range(40):
        batch = data.next()
        for kind, x in enumerate(batch):
            assert x.shape == (4, 3, 64, 64) and x.dtype == torch.float32
            assert torch.allclose(x, x[:, :, :1, :1].expand_as(x), atol=1e-5)
            colours = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
            assert len(set(colours)) == (1 if kind < 2 else 4)
            assert all((colour >= 128) == (kind % 2 == 1) for colour in colours)
            seen[kind] += colours[:1] if kind < 2 else colours
        assert {seen[0][-1]} <= set(seen[2][-4:]) and {seen[1][-1]} <= set(seen[3][-4:])
    # every picture comes, real ones as often as all (8 pictures are two batches), content at random
    for kind in range(4):
        assert len(set(seen[kind])) == 8
    assert all(seen[kind].count(colour) == 20 for kind in (2, 3) for colour in set(seen[kind]))
    assert seen[2] != [colour - 128 for colour in seen[3]]  # the two domains are shuffled independently


def test_augmentations_of_a_batch_differ_and_come_back(faces: Path) -> None:
    config = tiny()
    data = Pictures(faces, config, CPU)
    first, second = data.next(), data.next()
    place = data.state_dict()
    third = data.next()
    for x in first:
        assert x.min() >= -1 and x.max() <= 1
        assert all((x[i] - x[j]).abs().max() > 0.01 for i in range(4) for j in range(i))
    assert not any(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    again = Pictures(faces, config, CPU)
    again.load_state_dict(place)
    assert all(torch.equal(x, y) for x, y in zip(again.next(), third, strict=True))
    other = Pictures(faces, tiny(seed=1), CPU)
    assert not any(torch.equal(x, y) for x, y in zip(other.next(), first, strict=True))


def test_processes_share_the_real_batch_and_have_content_of_their_own(faces: Path) -> None:
    config = tiny(batch=8, affine=0.0)
    whole, parts = Pictures(faces, config, CPU), [Pictures(faces, config, CPU, Team(CPU, rank, 2)) for rank in range(2)]
    for _ in range(2):
        joined, pieces = whole.next(), [part.next() for part in parts]
        for kind in (2, 3):  # the augmentation too
            assert torch.equal(torch.cat([piece[kind] for piece in pieces]), joined[kind])
        for kind in (0, 1):
            assert all(piece[kind].shape == (4, 3, 64, 64) for piece in pieces)
            assert not torch.equal(pieces[0][kind], pieces[1][kind])
    assert whole.state_dict() == parts[0].state_dict() == parts[1].state_dict()


# --- sample sheets


@pytest.mark.parametrize(("a", "b"), [(2, 2), (1, 1), (1, 3), (0, 0)])
def test_sample_sheets_of_few_pictures(faces: Path, tmp_path: Path, a: int, b: int) -> None:
    """Fewer than 16 test pictures, one, and none: then pictures of the training are shown."""
    for name, count in (("trainA", 8), ("trainB", 9), ("testA", a), ("testB", b)):
        if count:
            (tmp_path / name).symlink_to(faces / name if "train" in name else tmp_path / f"some {name}")
            for i in range(count if "test" in name else 0):
                picture(tmp_path / f"some {name}" / f"{i}.png", i, (70, 64))
    shown = Pictures(tmp_path, tiny(), CPU).samples(training.SHOWN["cpu"])
    assert [len(x) for x in shown] == [a or 6, b or 6] and all(x.shape[1:] == (3, 64, 64) for x in shown)
    model = GNR(tiny(), CPU, shown)
    found: list[Any] = []
    original = training.sheet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "sheet", lambda blocks, **words: found.append(blocks) or original(blocks, **words))
        image = model.sheet()
    assert min(image.size) > 100
    for block, count in zip(found[0], (a or 6, b or 6), strict=True):
        assert len(block.rows) == 11 and all(len(x) == count and x.isfinite().all() for _, x in block.rows)
    assert not torch.equal(found[0][0].rows[4][1], found[0][0].rows[5][1])  # two random styles


@torch.no_grad()
def test_what_a_sample_sheet_shows(faces: Path) -> None:
    """Section 5: own-domain reconstruction, a reference style, two random styles, ways back; of averaged weights."""
    model = GNR(tiny(), CPU, Pictures(faces, tiny(), CPU).samples(2))
    assert model.ema is not None and model.shown is not None
    for net in model.ema.nets.values():
        for value in net.parameters():
            value.mul_(1.01)
    found: list[Any] = []
    original = training.sheet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "sheet", lambda blocks, **words: found.append(blocks) or original(blocks, **words))
        model.sheet()
    a, b = model.shown
    to_b, to_a = model.ema.nets["G_A2B"], model.ema.nets["G_B2A"]
    labels, rows = zip(*found[0][0].rows, strict=True)
    content, code = to_b.encode(a)
    expected = [a, to_a(a)[0], b, to_b.decode(content, to_a.style_encode(b))]
    for label, one, other in zip(labels, rows, expected, strict=False):
        torch.testing.assert_close(one, other, msg=lambda text, label=label: f"{label}: {text}")
    for k in range(3):
        torch.testing.assert_close(rows[6 + k], to_a(rows[3 + k], code)[0])
    torch.testing.assert_close(rows[9], to_a(rows[4])[0])
    # both pictures are painted in one style, and each in another in the next row
    for k in (4, 5):
        styles = [s for s in torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(model.config.seed))]
        torch.testing.assert_close(rows[k], to_b.decode(content, styles[k - 4].expand(2, -1)))
    live = model.nets["G_A2B"]
    torch.testing.assert_close(rows[10], live.decode(live.encode(a)[0], styles[0].expand(2, -1)))  # type: ignore[operator,union-attr]


# --- runs

WORDS = ("--size", 64, "--num-down", 3, "--channel-multiplier", 1 / 64, "--n-mlp", 2, "--lpips-net", "none")
# odd intervals, so that checkpoints and log lines do not fall together; a penalty in the steps 0, 3, 6
INTERVALS = ("--batch", 2, "--r1-every", 3, "--halve-every", 4, "--ema", 0.9, "--log-every", 6, "--save-every", 4,
             "--sheet-every", 1000)  # fmt: skip


def train(data: Path, out: Path, *options: object) -> int:
    """`anifast train gnr` in this process; the exit code."""
    return cli.main(command("train", "gnr", "--data", data, "--out", out, "--device", "cpu", *options))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit."""
    ours, theirs = read(one / "checkpoint.pt"), read(other / "checkpoint.pt")
    assert list(ours) == list(theirs)
    for part in ("format", "config", "images", "steps", "skipped", "data"):
        assert ours[part] == theirs[part], part
    for part in ("nets", "optim", "ema", "meter", "watched", "rng"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0, msg=lambda text, p=part: f"{p}: {text}")
    assert rows_of(one) == rows_of(other)


@pytest.fixture(scope="module")
def straight(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 steps of 2 pictures without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert train(faces, out, *WORDS, *INTERVALS, "--steps", 9) == 0
    return out


def test_what_a_run_writes(straight: Path) -> None:
    rows = rows_of(straight)
    assert [row["images"] for row in rows] == [6, 12, 18] and [row["step"] for row in rows] == [2, 5, 8]
    assert [row["lr"] for row in rows] == [2e-3, 1e-3, 5e-4]  # of the steps 2, 5 and 8: halved at 4 and 8
    drawn = {name for panel in training.PANELS for name in panel.keys}
    for row in rows:
        losses = set(row) - {"images", "step", "lr", "skipped", "generators"}
        assert losses <= drawn and {"r1", "d_latent", "style_rec_a"} <= losses and row["skipped"] == 0
        parts = [name for name in losses if name[:2] not in ("d_", "r1")]
        assert row["generators"] == pytest.approx(sum(row[name] for name in parts), rel=1e-4)
    found = read(straight / "checkpoint.pt")
    assert found["format"] == "anifast.gnr/1" and (found["images"], found["steps"]) == (18, 9)
    assert set(found["nets"]) == {"G_A2B", "G_B2A", "D_A", "D_B", "D_L"} and set(found["ema"]) == {"G_A2B", "G_B2A"}
    fresh = training.networks(Config(**found["config"]))
    for name, net in fresh.items():
        for key, value in net.named_parameters():
            assert not torch.equal(found["nets"][name][key], value), f"{name}.{key}"
    text = (straight / "log.txt").read_text()
    for words in (
        "train gnr",
        "A 8, B 9 pictures",
        "R1 10 every 3 steps",
        "halved every 4 steps",
        "decay 0.9",
        "9 steps",
    ):
        assert words in text
    assert "may swallow" not in text
    assert (straight / "samples" / "0000018.png").stat().st_size > 1000 and not leftovers(straight)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(faces: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("train", "gnr", "--data", faces, "--out", out, "--device", "cpu", *WORDS, *INTERVALS, "--steps", 9)
    deadline = time.monotonic() + 100
    while not (out / "checkpoint.pt").exists():  # after the second step
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    images = read(out / "checkpoint.pt")["images"]
    assert images < 18
    assert train(faces, out, "--resume") == 0
    assert f"resumed at image {images}" in (out / "log.txt").read_text()
    assert_same_run(out, straight)


def test_a_run_with_checkpointing_and_bfloat16(faces: Path, straight: Path, tmp_path: Path) -> None:
    """The first alone changes no bit of a run."""
    assert train(faces, tmp_path / "same", *WORDS, *INTERVALS, "--steps", 3, "--checkpointing") == 0
    assert rows_of(tmp_path / "same")[0] == rows_of(straight)[0]
    options = ("--steps", 3, "--checkpointing", "--precision", "bf16")
    assert train(faces, tmp_path / "half", *WORDS, *INTERVALS, *options) == 0
    for net in read(tmp_path / "half" / "checkpoint.pt")["nets"].values():
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in net.values())


# --- learning

LEARNING: dict[str, Any] = {
    "num_down": 1,
    "channel_multiplier": 1 / 32,
    "affine": 0.0,
    "lr": 5e-3,
    "ema": 0.95,
    "lambda_adv": 0.1,
    "lambda_latent": 0.1,
    "lambda_cycle": 100.0,
    "lambda_style": 5.0,
}


@torch.no_grad()
def skill(nets: Any, a: Tensor, b: Tensor) -> tuple[list[float], list[float]]:
    """For both directions: the error of the way back, in parts of the best that one and the same picture for all
    inputs could have; and how far translations of a picture in eight styles are from their mean."""
    errors, spreads = [], []
    for there, back, x in (("G_A2B", "G_B2A", a), ("G_B2A", "G_A2B", b)):
        content, code = nets[there].encode(x)
        z = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        fake = nets[there].decode(content, z[: len(x)])
        again = nets[back].decode(nets[back].encode(fake)[0], code)
        errors.append(float((again - x).square().mean() / x.var(0, correction=0).mean()))
        spreads.append(float(nets[there].decode(content[:1].expand(8, -1, -1, -1), z).std(0).mean()))
    return errors, spreads


def learnt(root: Path, steps: int, **changes: Any) -> tuple[list[float], list[float]]:
    """The skill of averaged networks before and after training on four pictures of each domain."""
    for start_at, name in enumerate(("trainA", "trainB")):
        for i in range(4):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = torch.randint(0, 256, (2, 2, 3), generator=torch.Generator().manual_seed(10 * start_at + i))
            small = Image.fromarray(coarse.to(torch.uint8).numpy())
            small.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    data = Pictures(root, tiny(**LEARNING | changes), CPU)
    model = GNR(tiny(**LEARNING | changes), CPU)
    assert model.ema is not None
    a, b = data.samples(4)
    before, _ = skill(model.ema.nets, a, b)
    assert min(before) > 1  # untrained networks do worse than one picture
    for index in range(steps):
        model.begin(data.next(), 4 * index)
        run_step(model.phases, index, CPU)
        model.ema.update(4)
    return skill(model.ema.nets, a, b)


@pytest.mark.heavy
def test_four_pictures_of_each_domain_are_learnt(tmp_path: Path) -> None:
    """They come back from a translation in a random style, better than networks without contents ever could; and
    styles make a difference."""
    with own_cache(tmp_path / "cache"):
        errors, spreads = learnt(tmp_path, 160)
    assert sum(errors) / 2 < 0.75 and max(errors) < 1, errors
    assert min(spreads) > 0.05, spreads


# --- several processes


def steps_of_two(team: Team, folder: str, data: str) -> None:
    """Two steps in float64 of one of the processes."""
    model = system("rel", team=team, batch=8, r1_every=2)
    pictures_of = Pictures(Path(data), model.config, CPU, team)
    for index in range(2):
        take(model, pictures_of.next(), index)
        found = run_step(model.phases, index, CPU, team=team)
        if index == 0:
            torch.save(found, Path(folder) / f"losses {team.rank}.pt")
    torch.save(state_of(model.nets, {}, model.optimizers), Path(folder) / f"state {team.rank}.pt")


def take(model: GNR, batch: Batch, index: int) -> None:
    model.begin(Batch(*(x.double() for x in batch)), index * model.config.batch)
    model._draws = {name: x.double() if x.is_floating_point() else x for name, x in model._draws.items()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes have it, so that sums are added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_average_the_gradients_of_their_own_batches(faces: Path, tmp_path: Path) -> None:
    """Statistics over a batch (diversity heads, consistency) are those of each process's own pictures."""
    program = (
        f"import sys; sys.path[:0] = ['tests', 'tests/systems']\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_gnr_training as tests\n"
        "from anifast.engine import distributed\n"
        "with distributed.team('cpu') as team:\n"
        f"    tests.steps_of_two(team, {str(tmp_path)!r}, {str(faces)!r})\n"
    )
    (tmp_path / "program.py").write_text(program)
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "program.py")
    done = subprocess.run(command(sys.executable, *words), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"state {rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())

    # The same without processes: each one's own pictures and loss, then the mean of both gradients.
    models = [system("rel", team=Team(CPU, rank, 2), batch=8, r1_every=2) for rank in range(2)]
    sources = [Pictures(faces, models[0].config, CPU, Team(CPU, rank, 2)) for rank in range(2)]
    losses = [torch.load(tmp_path / f"losses {rank}.pt", weights_only=True) for rank in range(2)]
    for index in range(2):
        for model, source in zip(models, sources, strict=True):
            take(model, source.next(), index)
        phases = [[phase for phase in model.phases if phase.due(index)] for model in models]
        for pair in zip(*phases, strict=True):
            gradients = []
            for rank, phase in enumerate(pair):
                loss, values = phase.loss(*phase.inputs())
                if index == 0:
                    for name, value in values.items():
                        torch.testing.assert_close(losses[rank][name], value, rtol=1e-12, atol=0)
                if phase.optimizer is not None:
                    phase.optimizer.zero_grad()
                    loss.backward()
                    gradients.append([p for net in phase.nets for p in net.parameters()])
            if gradients:
                for one, other in zip(*gradients, strict=True):
                    one.grad = other.grad = (one.grad + other.grad) / 2
                for phase in pair:
                    phase.optimizer.step()
    assert losses[0]["style_a"] != losses[1]["style_a"]
    expected = state_of(models[0].nets, {}, models[0].optimizers)
    # rounding of float64 in the gradients, and what Adam makes of it (see check_steps)
    rounding = torch.finfo(torch.float64).eps * math.sqrt(4 * 64 * 64) * SUMS
    for name, value in expected.items():
        scale = max(1.0, *(float(v.abs().max()) for n, v in expected.items() if kind_of(n) == kind_of(name)))
        allowed = rounding * scale * (2e-3 / 1e-8 if name[0] in "GD" else 1.0)
        assert float((first[name] - value).abs().max()) <= allowed, name


def test_batches_of_several_processes(faces: Path) -> None:
    with pytest.raises(AnifastError, match="6 leaves 3 pictures to each of 2 processes.*at least 8"):
        Pictures(faces, tiny(batch=6), CPU, Team(CPU, 0, 2))
    with pytest.raises(AnifastError, match="cannot be shared out evenly over 2"):
        Pictures(faces, tiny(batch=7), CPU, Team(CPU, 0, 2))


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", 1), "1 is too few.*compare the pictures of a batch.*at least 2"),
        (("--num-down", 5), "64 pixels can be halved 4 times.*--num-down 4"),
        (("--size", 96), "96 is not one of 64, 128, 256, 512"),
        (("--batch", 9), "trainA: 8 pictures that can be read, and a batch has 9.*take --batch 8"),
        (("--channel-multiplier", 0.001), "channel_multiplier.*below"),
        (("--lpips-net", "alex"), "alex"),
        (("--ema", 1.0), "ema.*above"),
        (("--preset", "paper"), "paper.*rel"),
        (("--start-from", "nowhere.pt"), "nowhere.pt: no such"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_settings_that_cannot_be_used(
    faces: Path, tmp_path: Path, capsys: Capture, options: tuple[object, ...], words: str
) -> None:
    """One line, and nothing is left behind. (The later of two equal options counts.)"""
    try:
        code = train(faces, tmp_path / "run", *WORDS, *INTERVALS, *options)
    except SystemExit as ended:  # what the parser of the command line knows already
        code = int(ended.code or 0)
    errors = capsys.readouterr().err
    assert code != 0 and not (tmp_path / "run" / "checkpoint.pt").exists()
    assert "Traceback" not in errors and re.search(words, " ".join(errors.split())), errors


def test_a_folder_with_one_picture(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "trainB").symlink_to(faces / "trainB")
    picture(tmp_path / "trainA" / "only.png", 0)
    with pytest.raises(DataError, match="trainA: 1 pictures? that can be read"):
        Pictures(tmp_path, tiny(batch=2), CPU)
    (tmp_path / "trainA" / "other.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="trainA: 1 pictures? that can be read"):
        Pictures(tmp_path, tiny(batch=2), CPU)
    with pytest.raises(DataError, match="no folder trainB"):
        Pictures(faces / "trainA", tiny(), CPU)


def test_missing_weights_of_the_perceptual_distance(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The message names the ways out, before anything is trained or written."""
    gone = tmp_path / "gone.pth"
    out = tmp_path / "run"
    assert train(faces, out, *WORDS[:-2], *INTERVALS, "--lpips-net", "vgg", "--lpips-weights", gone) == 1
    error = capsys.readouterr().err
    assert str(gone) in the_error(error)
    for way in ("--lpips-net", "squeezenet1_0", "random", "none"):
        assert way in error
    assert not (out / "checkpoint.pt").exists() and not (out / "metrics.jsonl").exists()


def test_starting_from_files(faces: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    config = tiny(num_down=3)
    theirs = authors_state(config)
    torch.save(theirs, tmp_path / "ck.pt")
    torch.save(ema_only(theirs), tmp_path / "ema.pt")
    other = tiny(num_down=2, discriminator="v1")
    torch.save(own_state(other), tmp_path / "other.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")

    model = GNR(dataclasses.replace(config, start_from=str(tmp_path / "ck.pt")), CPU)
    for name, net in model.nets.items():
        assert all(torch.equal(value, theirs[name][key]) for key, value in net.state_dict().items())
    assert model.ema is not None  # the average begins with what the run begins with
    assert all(torch.equal(value, theirs["G_A2B"][key]) for key, value in model.ema.nets["G_A2B"].state_dict().items())
    assert not model.optimizers["G"].state
    model = GNR(dataclasses.replace(config, start_from=str(straight)), CPU)
    assert torch.equal(
        next(model.nets["D_L"].parameters()), next(iter(read(straight / "checkpoint.pt")["nets"]["D_L"].values()))
    )

    for name, words in (
        ("ema.pt", "G_A2B, G_B2A, D_A, D_B, D_L are not there.*averages of G_A2B and G_B2A only.*translate"),
        ("other.pt", "they need.*--num-down 2.*--discriminator v1"),
        ("foreign.pt", "no GANs N' Roses"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            GNR(dataclasses.replace(config, start_from=str(tmp_path / name)), CPU)
        assert str(tmp_path / name) in str(error.value)


def test_resuming_with_what_does_not_fit(faces: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    cases: list[tuple[Path, Path, tuple[object, ...], str]] = [
        (faces, straight, ("--batch", 4), "batch"),
        (faces, straight, ("--latent-dim", 4), "latent.dim"),
        (faces, straight, ("--preset", "main"), "preset"),
        (faces, straight, (), "nothing is left to train"),
    ]
    others = data_folder(tmp_path / "others", 9)
    cases.append((others, straight, ("--steps", 20), "other pictures"))
    torch.save({"format": "anifast.cyclegan/1", "config": {}, "nets": {}}, tmp_path / "checkpoint.pt")
    cases.append((faces, tmp_path, (), "cyclegan, not of gnr"))
    averages = tmp_path / "averages"
    averages.mkdir()
    torch.save(ema_only(authors_state(tiny())), averages / "checkpoint.pt")
    cases.append((faces, averages, (), "D_A, D_B, D_L are not there.*this one translates"))
    before = (straight / "checkpoint.pt").read_bytes()
    for data, out, options, words in cases:
        assert train(data, out, "--resume", *options) == 1, words
        assert re.search(words, the_error(capsys.readouterr().err)), words
    assert (straight / "checkpoint.pt").read_bytes() == before


def test_long_style_codes_are_warned_of(faces: Path, tmp_path: Path) -> None:
    system, data, plan = training.assemble(tiny(latent_dim=9), faces, CPU)
    assert [line for line in training.summary(system, data, plan) if "9 numbers may swallow the content" in line]
    system, data, plan = training.assemble(tiny(), faces, CPU)
    assert not [line for line in training.summary(system, data, plan) if "swallow" in line]

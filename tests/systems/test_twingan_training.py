"""Training of Twin-GAN: steps against plain ones, fading, draws, averages, skipped steps, precision, processes.

`PlainTwinGAN` is one step as sections 4 and 5 of the specification tell it: every network sees every set of pictures by
itself, formulas are written out, optimisers are PyTorch's own.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from plain_twingan import DECAY, PlainNet, doubled, faded, halved, unlike_at_first
from stepping import SUMS, assert_same, deviations, move_by_an_ulp, one_thread, state_of, two_processes
from tiny_twingan import mixed_rounding
from torch import Tensor, nn

from anifast.data.tags import TagList
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.distributed import Team
from anifast.engine.loop import NotFinite, run_step
from anifast.errors import CheckpointError
from anifast.systems.twingan.config import STAGES, Config, make, sides
from anifast.systems.twingan.networks import limits, normalised_by
from anifast.systems.twingan.pictures import Batch
from anifast.systems.twingan.training import PANELS, Steps, TwinGAN

CPU = torch.device("cpu")
EPS64 = torch.finfo(torch.float64).eps
#: Channels: 8 at 4 and 8 px, 4 at 16. With this decay an average has moved after two steps.
NARROW: dict[str, Any] = {"size": 16, "base_channels": 16, "max_channels": 8, "batch": 3, "lr": 1e-3, "ema": 0.7}
#: Steps before those that are looked at: averages take up faster in the first of these than they do from the second on.
BEFORE = 37
TAGS = TagList(("red_hair", "blue_hair", "red_eyes", "hat"), (2, 2, 3, 5), (1, 2, 3, 4))
DOMAINS = (0, 1, 1, 0)


def settings(preset: str = "fast", **changes: Any) -> Config:
    return make(preset, NARROW | changes)


def system(
    stage: str = "8", dtype: torch.dtype = torch.float64, total: int = 30, team: Team | None = None, **changes: Any
) -> TwinGAN:
    """One phase, in the midst of a run; what it draws has the networks' type."""
    config = settings(**changes)
    made = TwinGAN(config, stage, CPU, total, TAGS if config.tags else None, None, team)
    unlike_at_first(made.nets)
    for net in made.nets.values():
        net.to(dtype)
    made.alpha = made.alpha.to(dtype)
    if made.ema is not None:
        for name, net in made.ema.nets.items():
            net.to(dtype).load_state_dict(made.nets[name].state_dict())
    return made


def pictures(count: int, side: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """In [0, 1], without sharp edges, all different."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    found = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True) if side > 4 else coarse
    return found.clamp(0, 1).to(dtype)


def batches(made: TwinGAN, index: int, count: int | None = None) -> tuple[Batch, ...]:
    """Those of a step; one target picture of each is untagged."""
    found = []
    count = made.batch_size if count is None else count
    for at in range(made.batches):
        seed = 1000 * index + 10 * at
        source, target = (pictures(count, made.side, seed + k, made.alpha.dtype) for k in (1, 2))
        tags = torch.rand(count, len(TAGS.names), generator=torch.Generator().manual_seed(seed)).to(source)
        tags[-1] = 0
        found.append(Batch(source, target, tags if made.config.tags else None))
    return tuple(found)


def go_on(made: TwinGAN, index: int, given: tuple[Batch, ...] | None = None, **how: Any) -> dict[str, Tensor]:
    """Step number `index`, as the loop has it."""
    made.begin(batches(made, index) if given is None else given, index * made.batch_size)
    found = run_step(made.phases, index, CPU, team=made.team, **how)
    if made.ema is not None:
        made.ema.update(made.batch_size)
    return found


# --- the step, told plainly


def sp(x: Tensor) -> Tensor:
    """softplus, as section 4 writes it."""
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


def fooling(kind: str, scores: Tensor) -> Tensor:
    """What the generator minimises."""
    return sp(-scores).mean() if kind in ("dragan", "gan") else -scores.mean()


def telling(kind: str, real: Tensor, painted: Tensor) -> Tensor:
    """What a discriminator minimises."""
    if kind in ("dragan", "gan"):
        return sp(-real).mean() + sp(painted).mean()
    if kind == "hinge":
        return (1 + painted).clamp(min=0).mean() + (1 - real).clamp(min=0).mean()
    return painted.mean() - real.mean()


def tagging(logits: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy of the pictures that have tags."""
    p = torch.sigmoid(logits)
    each = -(tags * p.log() + (1 - tags) * (1 - p).log())
    return each[tags.sum(1) > 0].mean()


class PlainTwinGAN:
    """Steps of section 4 on copies of a system's networks."""

    def __init__(self, made: TwinGAN) -> None:
        self.config, self.side, self.fading, self.total = made.config, made.side, made.fading, made.total
        self.first = made.stage == "4"
        self.nets: dict[str, Any] = {name: PlainNet(net) for name, net in made.nets.items()}
        self.ema = {name: copy.deepcopy(net) for name, net in self.nets.items() if made.ema and name[0] != "D"}
        c = self.config
        painting = [
            value for name in ("E", "G", "E_style") if name in self.nets for value in self.nets[name].parameters()
        ]
        judges = [value for name in ("D_s", "D_t") for value in self.nets[name].parameters()]
        how: dict[str, Any] = {"betas": (0.5, 0.99), "eps": 1e-8, "foreach": False, "fused": False}
        self.optimizers = {
            "G": torch.optim.Adam(painting, lr=c.lr, **how),
            "D": torch.optim.Adam(judges, lr=c.lr if c.d_lr is None else c.d_lr, **how),
        }

    def painted(self, x: list[Tensor], alpha: float, along: Tensor | None) -> tuple[list[Any], list[Tensor]]:
        """Latents, and s~, t~, t', s' of [x_s, x_t]."""
        e, g = self.nets["E"], self.nets["G"]
        latents = [e.encode(images, domain, alpha) for domain, images in enumerate(x)]
        follows: list[Tensor | None] = [None] * 4
        if self.config.tags:  # of t~ its own, of t' those of the target picture of its number
            follows = [None, along, along, None]
        elif self.config.style:  # reconstructions their own
            follows = [self.nets["E_style"].encode(x[0], 0, alpha)[0], self.nets["E_style"].encode(x[1], 1, alpha)[0]]
            follows += [along, along]
        return latents, [g.paint(*latents[i % 2], d, alpha, follows[i]) for i, d in enumerate(DOMAINS)]

    def step(self, index: int, given: tuple[Batch, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step; the values of its losses by the names of the log."""
        c, nets = self.config, self.nets
        alpha = min(1.0, index * c.batch / self.total) if self.fading else 1.0

        def real(at: int) -> list[Tensor]:
            return [faded(images, alpha) if self.fading else images for images in given[at][:2]]

        def along(at: int) -> Tensor | None:
            return draws[f"style{at}"] if c.style else given[at].tags

        # generator and encoder
        x, told, parts = real(0), given[0].tags, {}
        latents, (same_s, same_t, to_t, to_s) = self.painted(x, alpha, along(0))
        z_s, z_t = latents[0][0], latents[1][0]
        again_t, again_s = nets["E"].encode(to_t, 1, alpha)[0], nets["E"].encode(to_s, 0, alpha)[0]
        parts["rec_s"], parts["rec_t"] = (
            (a - b).abs().mean() * c.rec_weight for a, b in ((x[0], same_s), (x[1], same_t))
        )
        parts["sem_st"], parts["sem_ts"] = (
            (a - b).abs().mean() * c.sem_weight for a, b in ((z_s, again_t), (z_t, again_s))
        )
        score_s, _ = nets["D_s"].judge(to_s, alpha)
        score_t, recognised = nets["D_t"].judge(to_t, alpha, told)
        parts["gan_s"], parts["gan_t"] = (c.gan_weight * fooling(c.loss, score) for score in (score_s, score_t))
        everywhere = bool(c.rec_gan_from) and self.side >= c.rec_gan_from
        if everywhere:
            scores = nets["D_s"].judge(same_s, alpha)[0], nets["D_t"].judge(same_t, alpha, told)[0]
            parts["gan_rec_s"], parts["gan_rec_t"] = (c.gan_weight * fooling(c.loss, score) for score in scores)
        if c.tags:
            parts["tags_g"] = c.tag_weight * tagging(recognised, told)
        if c.style:
            z = draws["style0"]
            found = nets["E_style"].encode(to_t, 1, alpha)[0], nets["E_style"].encode(to_s, 0, alpha)[0]
            parts["style"] = c.style_weight * sum((one - z).abs().mean() for one in found)
        parts["generator"] = sum(parts.values())
        self.move("G", parts["generator"])
        for name in ("E", "G", "E_style"):
            if name in nets:
                if c.recalibrate and c.norm in DECAY:  # of real pictures, and of translations
                    nets[name].recalibrate(last=name == "G")
                nets[name].remember()
        # discriminators
        at = 0
        painted = [one.detach() for one in (same_s, same_t, to_t, to_s)]
        for turn in range(c.d_steps):
            if turn or not c.share_batch:
                at += 1
                x, told = real(at), given[at].tags
                with torch.no_grad():
                    painted = self.painted(x, alpha, along(at))[1]
                for name in ("E", "G", "E_style"):
                    if name in nets:
                        nets[name].seen.clear()
            losses = {}
            for i, (domain, fake, same) in enumerate((("s", painted[3], painted[0]), ("t", painted[2], painted[1]))):
                d, tags = nets[f"D_{domain}"], told if domain == "t" else None
                score, recognised = d.judge(x[i], alpha, tags)
                losses[f"d_{domain}"] = telling(c.loss, score, d.judge(fake, alpha, tags)[0])
                if everywhere:  # the real term counts twice
                    losses[f"d_{domain}"] = losses[f"d_{domain}"] + telling(
                        c.loss, score, d.judge(same, alpha, tags)[0]
                    )
                if c.loss in ("wgan", "wgan_gp"):
                    losses[f"d_{domain}"] = losses[f"d_{domain}"] + c.drift * score.square().mean()
                if tags is not None:
                    losses["tags_d"] = c.tag_weight * tagging(recognised, tags)
                if c.loss in ("dragan", "wgan_gp"):
                    share = draws[f"share{turn}{domain}"].view(-1, 1, 1, 1)
                    if c.loss == "dragan":
                        v = (x[i] - x[i].mean()).square().mean()
                        v = v.sqrt() if c.dragan_noise == "std" else v
                        points = x[i] + share * (0.5 * v * draws[f"noise{turn}{domain}"])
                    else:
                        points = x[i] + share * (fake - x[i])
                    points = points.detach().requires_grad_()
                    (gradient,) = torch.autograd.grad(d.judge(points, alpha, tags)[0].sum(), points, create_graph=True)
                    length = gradient.square().sum((1, 2, 3)).sqrt()
                    losses[f"gp_{domain}"] = c.gp_weight * (length - 1).square().mean()
            self.move("D", sum(losses.values()))
            parts |= losses
        decay = c.ema
        if self.fading or self.first:  # half of an average is never older than half of a phase with new layers
            decay = min(c.ema, 0.5 ** (1 / (0.5 * (index + 1))))
        for name, mean in self.ema.items():
            with torch.no_grad():
                for key, value in mean.values.items():
                    value.copy_(decay * value + (1 - decay) * nets[name].values[key])
            mean.memory = copy.deepcopy(nets[name].memory)
        return {name: value.detach() for name, value in parts.items()}

    def move(self, name: str, loss: Any) -> None:
        """Backward and Adam."""
        self.optimizers[name].zero_grad()
        loss.backward(inputs=[p for group in self.optimizers[name].param_groups for p in group["params"]])
        self.optimizers[name].step()

    def state(self) -> dict[str, Tensor]:
        return all_of(self.nets, self.optimizers, self.ema)


def all_of(nets: Any, optimizers: Any, ema: Any) -> dict[str, Tensor]:
    """Weights, averages, moments, and what norms remember."""
    found = state_of(nets, optimizers, ema)
    for kind, group in (("memory", nets), ("memory of ema", ema)):
        for name, net in group.items():
            memory = net.memory if isinstance(net, PlainNet) else dict(net.named_buffers())
            for key, value in memory.items():
                if not key.endswith("renorm_limits"):  # and statistics that there are not are no numbers
                    found[f"{kind.replace(' ', '-')} {name} {key}"] = value.detach().nan_to_num(nan=-1.0)
    return found


def state(made: TwinGAN) -> dict[str, Tensor]:
    return all_of(made.nets, made.optimizers, {} if made.ema is None else made.ema.nets)


def check(made: TwinGAN, steps: int = 2) -> list[dict[str, Tensor]]:
    """Train both side by side: losses, weights, averages, moments and memories are the same to the rounding of float64.

    An error d of a gradient moves a weight by at most 2 lr d / eps in a step of Adam.

    Returns:
        Each step's losses.
    """
    plain = PlainTwinGAN(made)
    near = copy.deepcopy(plain)
    move_by_an_ulp(near.nets)
    for name, mean in near.ema.items():
        mean.values = copy.deepcopy(near.nets[name].values)
    begun, found = plain.state(), []
    apart, rounding = 0.0, EPS64
    for index in range(BEFORE, BEFORE + steps):
        given = batches(made, index)
        losses = go_on(made, index, given)
        draws = dict(made._draws)
        expected, other = (one.step(index, given, draws) for one in (plain, near))
        assert set(losses) == set(expected)
        for name, value in expected.items():
            scale = max(1.0, float(value.abs()))
            apart = max(apart, float(abs(losses[name] - value)) / scale)
            rounding = max(rounding, float(abs(other[name] - value)) / scale)
        found.append(losses)
    truth = plain.state()
    mine, usual, moved = (deviations(one, truth) for one in (state(made), near.state(), begun_like(begun, truth)))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in plain.optimizers.items()}
    # weights whose gradients cancel, such as the last bias with hinge, move by this, and all that follows with them
    by_adam = max(
        usual[f"exp_avg {name}"] * rate / 1e-8 * 2 * steps * made.config.d_steps for name, rate in rates.items()
    )
    assert apart <= SUMS * (rounding + by_adam) < 1e-6, (apart, rounding, by_adam)
    for kind, error in mine.items():
        what, name = kind.split()
        allowed = SUMS * (max(usual[kind], EPS64) + by_adam)
        assert error <= allowed < 1e-6, (kind, error, allowed)
        if what in ("weights", "ema"):  # so that a wrong sign of one gradient is seen
            assert moved[kind] > 0.3 * rates["D" if name.startswith("D") else "G"] > 100 * allowed, kind
    return found


def begun_like(begun: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state at first, where optimisers had none."""
    return {name: begun.get(name, torch.zeros_like(value)) for name, value in truth.items()}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "first phase": ("4", {}),
    "fading": ("4to8", {}),
    "fading, skips": ("8to16", {"fade_skip": "code"}),
    "a batch of their own": ("4to8", {"share_batch": False, "ema": 0.0}),
    "reconstructions judged": ("8", {"rec_gan_from": 8}),
    "reconstructions judged while their side fades in": ("4to8", {"rec_gan_from": 8, "share_batch": False}),
    "reconstructions of smaller sides": ("8", {"rec_gan_from": 16}),
    "three turns": ("4", {"d_steps": 3}),
    "two turns, batches of their own": ("4to8", {"d_steps": 2, "share_batch": False, "rec_gan_from": 4}),
    "deviation": ("8", {"dragan_noise": "std", "gp_weight": 10.0}),
    "plain": ("8", {"loss": "gan"}),
    "wgan": ("8", {"loss": "wgan", "drift": 0.5}),
    "wgan_gp": ("8", {"loss": "wgan_gp", "drift": 0.1, "gp_weight": 10.0, "rec_gan_from": 8}),
    "hinge": ("8", {"loss": "hinge", "rec_gan_from": 8}),
    "set by set": ("8", {"stacked": False, "rec_gan_from": 8}),
    "not split up": ("8", {"split_up": False}),
    "weights": ("8", {"rec_weight": 3.0, "gan_weight": 0.5, "sem_weight": 2.0, "rec_gan_from": 8, "d_lr": 4e-3}),
    "batch norm": ("8", {"norm": "batch_norm"}),
    "no recalibration": ("8", {"recalibrate": False}),
    "recalibrated batch norm": ("4to8", {"norm": "batch_norm", "share_batch": False, "stacked": False}),
    "instance norm": ("8", {"norm": "instance_norm"}),
    "layer norm": ("8", {"norm": "layer_norm"}),
    "no norm": ("8", {"norm": "none", "pixel_norm": False}),
    "equalised": ("4to8", {"equalized": True}),
    "self-attention": ("8", {"self_attention": True, "attention_size": 8}),
    "styles": ("4to8", {"style": 5}),
    "styles, batches of their own": ("8", {"style": 5, "share_batch": False, "stacked": False, "style_weight": 0.7}),
    "tags": ("8", {"tags": True, "rec_gan_from": 8, "tag_weight": 0.6}),
    "tags, batches of their own": ("4to8", {"tags": True, "share_batch": False, "stacked": False}),
    "tags, instance norm": ("8", {"tags": True, "norm": "instance_norm", "loss": "wgan_gp"}),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_specification(case: str) -> None:
    """Two steps: losses and their weights, which networks they train, the order of both halves, optimisers, averages,
    memories of norms; nothing is detached."""
    stage, changes = CASES[case]
    made = system(stage, total=300, **changes)
    found = check(made)
    names = {"rec_s", "rec_t", "gan_s", "gan_t", "sem_st", "sem_ts", "d_s", "d_t", "generator"}
    c = made.config
    names |= {"gp_s", "gp_t"} if c.loss in ("dragan", "wgan_gp") else set()
    names |= {"gan_rec_s", "gan_rec_t"} if 0 < c.rec_gan_from <= made.side else set()
    names |= ({"tags_g", "tags_d"} if c.tags else set()) | ({"style"} if c.style else set())
    assert all(set(losses) == names for losses in found)
    assert names - {"generator"} <= {key for panel in PANELS for key in panel.keys}
    assert made.batches == 1 + c.d_steps - c.share_batch


def test_reconstructions_are_judged_from_64_px_on() -> None:
    """By the side that a phase is about, also while it fades in; with 0 nowhere."""
    judged = [stage for stage in STAGES if TwinGAN(settings(size=512, max_channels=2), stage, CPU).judges_same]
    assert judged == list(STAGES[STAGES.index("32to64") :])
    assert not system("8", rec_gan_from=0).judges_same


def test_the_semantic_loss_flows_through_both_passes() -> None:
    """Its gradient for the encoder is that of the pass on real pictures and that on translations; with either held it
    would be another, and the generator has one too."""
    made = system("8", rec_weight=0.0, gan_weight=0.0, sem_weight=1.0)
    plain = PlainTwinGAN(made)
    given = batches(made, 0)
    made.begin(given, 0)
    loss, _ = made.generator(*made.given())
    loss.backward()
    x = list(given[0][:2])
    latents, (_, _, to_t, to_s) = plain.painted(x, 1.0, None)
    e = plain.nets["E"]

    def gradient(hold: str) -> list[Tensor]:
        z = [latent[0].detach() if hold == "first" else latent[0] for latent in latents]
        again = [e.encode(to_t, 1)[0], e.encode(to_s, 0)[0]]
        again = [one.detach() if hold == "second" else one for one in again]
        loss = (z[0] - again[0]).abs().mean() + (z[1] - again[1]).abs().mean()
        return list(torch.autograd.grad(loss, list(e.values.values()), retain_graph=True))

    found = [cast(Tensor, value.grad) for value in made.nets["E"].parameters()]
    whole = gradient("none")
    scale = max(float(value.abs().max()) for value in whole)
    for value, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1024 * EPS64 * scale)
    for hold in ("first", "second"):
        others = gradient(hold)
        assert max(float((a - b).abs().max()) for a, b in zip(found, others, strict=True)) > 0.1 * scale
    assert all(bool(value.grad.any()) for value in made.nets["G"].parameters() if value.grad is not None)
    assert any(bool(cast(Tensor, value.grad).any()) for value in made.nets["G"].parameters())


# --- from step to step


class Counted:
    """Batches that tell their number."""

    def __init__(self) -> None:
        self.given = 0

    def next(self) -> int:
        self.given += 1
        return self.given


@pytest.mark.parametrize(("shared", "turns", "count"), [(True, 1, 1), (True, 3, 3), (False, 1, 2), (False, 2, 3)])
def test_batches_of_a_step(shared: bool, turns: int, count: int) -> None:
    made = system("4", share_batch=shared, d_steps=turns)
    source = Counted()
    steps = Steps(cast(Any, source), made.batches)
    assert steps.next() == tuple(range(1, count + 1)) and steps.next()[0] == count + 1
    names = [phase.name for phase in made.phases]
    assert names[0] == "generator" and sum("discriminators" in name for name in names) == turns
    assert sum("painting" in name for name in names) == turns - shared


def test_how_far_layers_have_faded_in() -> None:
    """Steps by those of the phase; pictures too, before any use. Stable phases do not fade."""
    made = system("4to8", total=30)
    for index, alpha in ((0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0), (12, 1.0)):
        given = batches(made, 0)
        made.begin(given, 3 * index)
        assert float(made.alpha) == pytest.approx(alpha, abs=1e-15)
        for real, image in zip(made.given(), given[0][:2], strict=True):
            torch.testing.assert_close(real, faded(image, alpha), rtol=0, atol=4 * EPS64)
    assert torch.equal(faded(pictures(2, 8, 0), 0.0), doubled(halved(pictures(2, 8, 0))))
    assert made.row(15)["alpha"] == 0.5 and made.row(15)["step"] == 5
    stable = system("8", total=30)
    given = batches(stable, 0)
    stable.begin(given, 3)
    assert float(stable.alpha) == 1 and torch.equal(stable.given()[0], given[0].source)
    assert system("4to8", total=30).state_dict()["alpha"] == 1.0


def test_limits_follow_the_steps_of_the_phase() -> None:
    made = system("4", torch.float32)
    for step in (0, 10_000, 10_001, 20_001, 30_001, 50_000):
        made.begin(batches(made, 0), 3 * step)
        for name in "EG":
            found = made.nets[name].norms.renorm_limits.tolist()  # type: ignore[union-attr]
            assert found == torch.tensor(limits(step)).tolist(), step
    fresh = system("4to8", torch.float32)
    fresh.begin(batches(fresh, 0), 0)
    least, most, furthest = fresh.nets["E"].norms.renorm_limits.tolist()  # type: ignore[union-attr]
    assert (least, most, furthest) == pytest.approx((0.9, 1.1, 0.1))


def test_draws() -> None:
    """Uniform in [-1, 1] and [0, 1]; of the seed, the phase, the step and the process, and of nothing else."""

    def drawn(stage: str = "8", images: int = 0, rank: int = 0, **changes: Any) -> dict[str, Tensor]:
        return draws(system(stage, torch.float32, team=Team(CPU, rank, 2), **changes), images)

    def draws(made: TwinGAN, images: int) -> dict[str, Tensor]:
        torch.manual_seed(images)  # has no part in it
        made.begin(batches(made, 0, 3), images)
        return made._draws

    one = drawn(style=4)
    assert set(one) == {"style0", "share0s", "noise0s", "share0t", "noise0t"}
    assert_same(one, drawn(style=4))
    others = [drawn(style=4, images=3), drawn(style=4, rank=1), drawn(style=4, seed=1), drawn("4to8", style=4)]
    for other in others:
        assert not any(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(one["noise0s"], one["noise0t"]) and not torch.equal(one["share0s"], one["share0t"])
    made = system("8", torch.float32)
    many = [draws(made, 3 * k) for k in range(100)]
    noise, share = (torch.cat([found[name].flatten() for found in many]) for name in ("noise0s", "share0t"))
    # five deviations of a mean of uniform numbers, whose own are 1/sqrt(3) and 1/sqrt(12)
    assert abs(noise.mean().item()) < 5 / math.sqrt(3 * len(noise)) and float(noise.abs().max()) <= 1
    assert abs(share.mean().item() - 0.5) < 5 / math.sqrt(12 * len(share)) and 0 <= float(share.min())
    assert noise.min().item() < -0.99 and noise.max().item() > 0.99 and 0.9 < share.max().item() < 1
    assert set(drawn(d_steps=2, loss="wgan_gp")) == {"share0s", "share0t", "share1s", "share1t"}
    assert not drawn(loss="hinge")


def test_a_phase_goes_on_from_a_checkpoint() -> None:
    """Bit for bit, with rates and weights as they are told now."""
    made = system("4to8", torch.float32, share_batch=False)
    for index in range(2):
        go_on(made, index)
    saved, averages = copy.deepcopy(made.state_dict()), copy.deepcopy(cast(Any, made.ema).state_dict())
    again = system("4to8", torch.float32, share_batch=False)
    other = system("4to8", torch.float32, share_batch=False, lr=0.0, d_lr=0.5, gp_weight=0.0)
    for one in (again, other):
        one.load_state_dict(copy.deepcopy(saved))
        cast(Any, one.ema).load_state_dict(averages)
    assert float(again.alpha) == pytest.approx(0.1) == saved["alpha"]
    losses = [go_on(one, 2) for one in (made, again, other)]
    assert_same(made.state_dict(), again.state_dict())
    assert_same(cast(Any, made.ema).state_dict(), cast(Any, again.ema).state_dict())
    assert_same(losses[0], losses[1])
    assert float(losses[2]["gp_s"]) == 0.0 < float(losses[0]["gp_s"])
    was = made.nets["D_s"].state_dict()
    assert not torch.equal(other.nets["D_s"].state_dict()["out.weight"], was["out.weight"])
    for name, value in other.nets["E"].named_parameters():
        assert torch.equal(value, saved["nets"]["E"][name]), name  # nothing moves at rate 0
    with pytest.raises(CheckpointError, match="does not fit these networks"):
        system("8", torch.float32).load_state_dict(saved)


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_that_is_not_finite_leaves_no_trace(shared: bool) -> None:
    """Neither in weights, nor in moments, nor in what norms remember; a discriminators' one, not in these."""
    made, other = (system("4to8", torch.float32, share_batch=shared) for _ in range(2))
    for one in (made, other):
        go_on(one, 1)
    before = copy.deepcopy((made.state_dict(), dict(made.nets["E"].named_buffers())))
    bad = batches(made, 2)
    bad[0].target[1, 0, 2, 2] = math.nan
    made.begin(bad, 6)
    with pytest.raises(NotFinite, match="loss of phase generator is nan"):
        run_step(made.phases, 2, CPU)
    after = made.state_dict()
    for part in ("nets", "optim"):
        assert_same(after[part], before[0][part], part)
    for one in (made, other):
        go_on(one, 3)
    for part in ("nets", "optim"):
        assert_same(made.state_dict()[part], other.state_dict()[part], part)
    # of the discriminators alone: the generator's half has been, and is remembered
    for one in (made, other):
        one.begin(batches(one, 4), 12)
    made._draws["noise0t"][0, 0, 0, 0] = math.inf
    with pytest.raises(NotFinite, match="phase discriminators is nan"):
        run_step(made.phases, 4, CPU)
    run_step(other.phases, 4, CPU)
    for name, net in made.nets.items():
        theirs = dict(other.nets[name].named_parameters())
        same = all(torch.equal(value, theirs[key]) for key, value in net.named_parameters())
        assert same == (not name.startswith("D")), name
        if hasattr(net, "norms"):
            assert_same(net.norms.state_dict(), cast(Any, other.nets[name]).norms.state_dict(), name)


@pytest.mark.parametrize(
    ("stage", "index", "decay"),
    [("4to8", 0, 0.25), ("4", 3, 0.5**0.5), ("4to8", 3, 0.5**0.5), ("4to8", 500, 0.9), ("8", 0, 0.9), ("8", 500, 0.9)],
)
def test_averages_have_the_weights_decayed_and_the_memories_copied(stage: str, index: int, decay: float) -> None:
    """By the setting, but half of an average is never older than half of a phase whose layers began anew."""
    made = system(stage, ema=0.9)
    before = copy.deepcopy(cast(Any, made.ema).state_dict())
    go_on(made, index)
    assert made.ema is not None and set(made.ema.nets) == {"E", "G"}
    for name, net in made.ema.nets.items():
        live = made.nets[name].state_dict()
        held = dict(net.named_buffers())
        assert not net.training
        for key, value in net.state_dict().items():
            expected = live[key] if key in held else decay * before[name][key] + (1 - decay) * live[key]
            torch.testing.assert_close(value, expected, rtol=0, atol=0 if key in held else 16 * EPS64, equal_nan=True)


def test_networks_that_are_averaged() -> None:
    assert set(system("8", style=3).ema.nets) == {"E", "G", "E_style"}  # type: ignore[union-attr]
    assert system("8", ema=0.0).ema is None


@pytest.mark.parametrize(
    "changes",
    [{"spectral_norm": True}, {"spectral_norm": True, "spectral_norm_g": True, "share_batch": False},
     {"spectral_norm": True, "self_attention": True, "attention_size": 8, "style": 3}],
    ids=["discriminators", "all", "with self-attention and styles"],
)  # fmt: skip
def test_training_with_spectral_norm(changes: dict[str, Any]) -> None:
    """Every weight moves, what power iterations have found is kept in checkpoints, and iterations of training bring the
    largest singular values to 1; in float64, as a run has it.

    Where weights stand still, k passes with the squared singular values l_i of a matrix, whose moments weighted by the
    parts that the first vector has in them are m_j, find m_2k / m_(2k-1) >= m_2k^(1/2k) >= c^(1/k) l_1, with its cosine
    c to the first of the singular vectors.
    """
    made = system("4to8", **changes)
    begun = copy.deepcopy({name: dict(net.named_parameters()) for name, net in made.nets.items()})
    for index in range(4):
        found = go_on(made, index)
        assert all(bool(value.isfinite()) for value in found.values())
    again = system("4to8", **changes)
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    cast(Any, again.ema).load_state_dict(copy.deepcopy(cast(Any, made.ema).state_dict()))
    for one in (made, again):
        go_on(one, 4)
    assert_same(made.state_dict(), again.state_dict())
    for name, net in made.nets.items():
        for key, value in net.named_parameters():
            assert not torch.equal(value, begun[name][key]), (name, key)
    assert sum("_u" in key for key in made.state_dict()["nets"]["D_t"]) == sum(
        key.endswith("original") for key in begun["D_t"]
    )
    made.config = dataclasses.replace(made.config, lr=0.0)
    layers = {
        (name, key): layer.parametrizations.weight
        for name, net in made.nets.items()
        for key, layer in net.named_modules()
        if hasattr(layer, "parametrizations")
    }
    passes = dict.fromkeys(layers, 0)

    def passed(which: tuple[str, str]) -> Callable[..., None]:
        def count(module: nn.Module, *_: Any) -> None:
            passes[which] += module.training

        return count

    cosines = {}
    for which, held in layers.items():
        held[0].register_forward_hook(passed(which))
        right = torch.linalg.svd(held.original.detach().flatten(1), full_matrices=False)[2][0]
        cosines[which] = min(1.0, float((held[0]._v @ right).abs()))
    for index in (5, 6):
        go_on(made, index)
    for which, held in layers.items():
        matrix = held.original.detach().flatten(1)
        found = float(torch.linalg.matrix_norm(matrix, 2) / (held[0]._u @ matrix @ held[0]._v))
        rounding = EPS64 * matrix.numel()
        assert passes[which] >= 2, which
        assert 1 - rounding <= found <= cosines[which] ** (-0.5 / passes[which]) + rounding, which


# --- recorded phases


def played(work: Callable[[], None], made: TwinGAN) -> Callable[[], None]:
    """What repeats `work`, done once here as if recorded: results land in the memory they had then, nothing else does.

    A replay of a CUDA graph runs no Python: neither where `.grad` points nor any attribute of the system is touched.
    """
    hidden = ("_batches", "_draws")
    own = ("_painted", "_found")
    parameters = [p for net in made.nets.values() for p in net.parameters()]
    before = [p.grad for p in parameters]
    was = {name: dict(getattr(made, name)) for name in own}
    work()
    places = {p: p.grad for p, old in zip(parameters, before, strict=True) if p.grad is not old and p.grad is not None}
    left = {
        (name, key): value
        for name in own
        for key, value in getattr(made, name).items()
        if value is not was[name].get(key)
    }
    first = True

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        elif hasattr(value, "__dict__") and not isinstance(value, tuple):
            value = list(vars(value).values())
        return [x for part in value for x in tensors(part)] if isinstance(value, list | tuple) else []

    def replay() -> None:
        nonlocal first
        if first:  # recording has computed on the CPU, which it does not on a GPU
            first = False
            return
        pointed = [p.grad for p in parameters]
        kept = {name: copy.copy(getattr(made, name)) for name in (*hidden, *own)}
        for name in hidden:
            delattr(made, name)
        work()
        with torch.no_grad():
            for (name, key), value in left.items():
                for place, new in zip(tensors(value), tensors(getattr(made, name)[key]), strict=True):
                    place.copy_(new)
        for name, value in kept.items():
            setattr(made, name, value)
        for p, place in places.items():
            assert p.grad is not None
            place.copy_(p.grad)
        for p, old in zip(parameters, pointed, strict=True):
            p.grad = old

    return replay


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("4to8", {}),
        ("4to8", {"share_batch": False}),
        ("8", {"d_steps": 3, "rec_gan_from": 8}),
        ("8", {"d_steps": 2, "share_batch": False}),
        ("8", {"tags": True, "loss": "wgan_gp"}),
        ("8", {"style": 3, "share_batch": False, "stacked": False}),
    ],
    ids=["shared batch", "own batch", "three turns", "two turns, own batches", "tags", "styles"],
)
def test_phases_take_everything_from_their_inputs(stage: str, changes: dict[str, Any]) -> None:
    """All but what phases before them have left, which lies where it was recorded: recorded ones train the same."""
    plain, recorded = (system(stage, torch.float32, **changes) for _ in range(2))
    graphs = Graphs(CPU, lambda work: played(work, recorded))
    for index in range(WARM_UP + 3):
        found = [go_on(plain, index), go_on(recorded, index, graphs=graphs)]
        assert set(found[0]) == set(found[1])
    assert set(graphs._recorded) == {phase.name for phase in plain.phases}
    assert_same(plain.state_dict()["nets"], recorded.state_dict()["nets"])
    assert_same(cast(Any, plain.ema).state_dict(), cast(Any, recorded.ema).state_dict())


# --- torch.compile


@pytest.mark.parametrize("changes", [{}, {"tags": True, "norm": "instance_norm"}], ids=["batch renorm", "tags"])
def test_compiled_networks_train_the_same(changes: dict[str, Any]) -> None:
    """Each network is one graph; with torch's tracing and without its code generator, so bit for bit."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(len(list(graph.graph.nodes)))
        return graph.forward

    plain, compiled = (system("4to8", torch.float32, **changes) for _ in range(2))
    torch._dynamo.reset()
    for net in compiled.nets.values():
        net.compile(backend=backend, fullgraph=True)  # which fails where a graph breaks
    for index in range(2):
        one, other = go_on(plain, index), go_on(compiled, index)
        assert_same(one, other)
    assert_same(state(plain), state(compiled))
    assert len(graphs) >= 4 and max(graphs) > 10


# --- mixed precision


def test_what_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16: statistics, memories, penalties with all maps of the penalised discriminator, logits and weights."""
    made = system("4to8", torch.float32, rec_gan_from=8)
    types: dict[str, set[torch.dtype]] = {"convolution": set(), "logits": set(), "statistics": set(), "points": set()}
    from anifast.systems.twingan import training

    penalty, inside = training.gradient_penalty, []

    def watched(judge: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        types["points"].add(points.dtype)
        inside.append(True)
        found = penalty(judge, points)
        inside.pop()
        types.setdefault("penalty", set()).add(found.dtype)
        return found

    monkeypatch.setattr(training, "gradient_penalty", watched)

    def convolved(_: nn.Module, inputs: Any, out: Tensor) -> None:
        types["penalised" if inside else "convolution"].add(out.dtype)

    types["penalised"] = set()
    for name in ("D_s", "D_t"):
        made.nets[name].register_forward_hook(lambda _, inputs, out: types["logits"].add(out.scores.dtype))
        made.nets[name].blocks["8"][0].register_forward_hook(convolved)  # type: ignore[index,union-attr]
    remember = type(made.nets["E"].norms).remember

    def seen(self: Any, found: Any) -> None:
        types["statistics"].update(x.dtype for one in found for x in (one.mean, one.std))
        remember(self, found)

    monkeypatch.setattr(type(made.nets["E"].norms), "remember", seen)
    for index in range(3):
        found = go_on(made, index, precision="bf16")
        assert all(bool(value.isfinite()) for value in found.values())
    assert types.pop("convolution") == {torch.bfloat16}
    assert types == {name: {torch.float32} for name in ("logits", "statistics", "points", "penalty", "penalised")}, (
        types
    )
    assert {value.dtype for net in made.nets.values() for value in net.state_dict().values()} == {torch.float32}


def test_mixed_precision_is_that_of_float32() -> None:
    """One step's losses, as far from those in float64 as roundings to the 8 bits of bf16 lead, on the longest way,
    twice through the encoder.

    The learning rate is 0, since Adam's first step, behind which discriminators judge, divides gradients by their size.
    """
    exact, mixed = system("8", lr=0.0), system("8", torch.float32, lr=0.0)
    given = batches(exact, 0)
    truth = go_on(exact, 0, given)
    mixed.begin(tuple(Batch(one.source.float(), one.target.float(), None) for one in given), 0)
    mixed._draws = {name: value.float() for name, value in exact._draws.items()}
    found = run_step(mixed.phases, 0, CPU, precision="bf16")
    allowed = mixed_rounding(mixed.nets[name] for name in ("E", "G", "E", "D_s"))
    for name, value in truth.items():
        assert float((found[name].double() - value).abs()) <= allowed * max(1.0, float(value.abs())), name


# --- several processes


#: What several processes share: pictures alone, and what the norms follow.
SHARED: dict[str, dict[str, Any]] = {"pictures": {}, "tags": {"tags": True}, "styles": {"style": 3}}


def shared(case: str, team: Team) -> TwinGAN:
    """A system of which `team` is one process."""
    return system("4to8", team=team, batch=4, share_batch=False, rec_gan_from=8, **SHARED[case])


def part_of(team: Team, given: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """This process's part of batches."""
    return tuple(Batch(*(None if part is None else team.share(part) for part in one)) for one in given)  # type: ignore[arg-type]


def trained_by(team: Team, case: str) -> dict[str, Tensor]:
    """Three steps on this process's part of each batch."""
    made = shared(case, team)
    for index in range(3):
        go_on(made, index, part_of(team, batches(made, index)))
    return state(made)


class Parts:
    """Two systems in one process, each with its part of the batch, whose gradients and statistics are averaged."""

    def __init__(self, case: str, nudge: bool = False) -> None:
        self.teams = [Team(CPU, rank, 2) for rank in range(2)]
        self.made = [shared(case, team) for team in self.teams]
        if nudge:
            for one in self.made:
                move_by_an_ulp(one.nets)

    def step(self, index: int) -> None:
        """Phase by phase in both."""
        for team, one in zip(self.teams, self.made, strict=True):
            one.begin(part_of(team, batches(one, index)), 4 * index)
            one._remembered = True  # done below for both at once
        for number in range(len(self.made[0].phases)):
            phases = [one.phases[number] for one in self.made]
            if number == 1:
                self.remember()
            for phase, one in zip(phases, self.made, strict=True):
                for net in one.nets.values():
                    net.requires_grad_(net in phase.nets)
                loss, _ = phase.loss(*phase.inputs())
                if phase.optimizer is not None:
                    phase.optimizer.zero_grad()
                    loss.backward()
            if phases[0].optimizer is None:
                continue
            for ours, theirs in zip(
                *([p for net in phase.nets for p in net.parameters()] for phase in phases), strict=True
            ):
                mean = (ours.grad + theirs.grad) / 2
                ours.grad.copy_(mean), theirs.grad.copy_(mean)
            for phase in phases:
                cast(Any, phase.optimizer).step()
        for one in self.made:
            cast(Any, one.ema).update(4)

    def remember(self) -> None:
        """The mean of both parts' statistics."""
        for name in self.made[0]._found:
            found = [one._found[name] for one in self.made]
            means = [
                a._replace(mean=(a.mean + b.mean) / 2, std=(a.std + b.std) / 2) for a, b in zip(*found, strict=True)
            ]
            for one in self.made:
                norms = cast(Any, one.nets[name]).norms
                norms.remember(means)
                if name == "G":
                    norms.recalibrate([means[0].groups(2, 4)], [means[0].groups(0, 2)])
                else:
                    norms.recalibrate(means[:1], means[1:])


def steps_of_two(team: Team, folder: str, case: str) -> None:
    torch.save(trained_by(team, case), Path(folder) / f"{team.rank}.pt")


@pytest.mark.heavy
@pytest.mark.parametrize("case", SHARED)
def test_two_processes_average_the_gradients_of_their_parts(case: str, tmp_path: Path) -> None:
    """In float64; weights, moments, averages and what norms remember are the same in both."""
    two_processes("test_twingan_training", "steps_of_two", tmp_path, str(tmp_path), case)
    with one_thread():
        parts = [Parts(case, nudge) for nudge in (False, True)]
        begun = state(parts[0].made[0])
        for one in parts:
            for index in range(3):
                one.step(index)
        truth, near = (state(one.made[0]) for one in parts)
        assert_same(truth, state(parts[0].made[1]))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_same(first, second)
    mine, usual, moved = (deviations(one, truth) for one in (first, near, begun_like(begun, truth)))
    rate = parts[0].made[0].config.lr
    # as in `check`
    by_adam = max(usual[f"exp_avg {name}"] * rate / 1e-8 * 2 * 3 for name in "GD")
    for kind, error in mine.items():
        what, name = kind.split()
        allowed = SUMS * (max(usual[kind], EPS64) + by_adam)
        assert error <= allowed, (kind, error, allowed)
        if what in ("weights", "ema"):
            assert moved[kind] > 0.3 * rate > 100 * allowed, (kind, moved[kind], allowed)
    # they are not those of the joined batch, whose norms and minibatch stddev see more pictures
    with one_thread():
        joined = deviations(trained_by(Team(CPU), case), truth)
    assert all(joined[f"memory {name}"] > 100 * SUMS * max(usual[f"memory {name}"], by_adam) for name in "EG")
    assert sides("4to8") == (8, True)


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "batch_norm"}, {"style": 3}, {"tags": True}, {"stage": "4to8"}], ids=lambda one: str(one)
)
def test_averages_have_statistics_of_their_own(changes: dict[str, Any]) -> None:
    """Taken of the pictures for it when a run is saved: by these the averages do what they do by each batch's own."""
    stage = changes.pop("stage", "8")
    made = system(stage, ema=0.9, **changes)
    for index in range(3):
        go_on(made, index)
    (made.measured, *_) = batches(made, 99)
    lagging = cast(Any, made.ema).state_dict()["G"]["norms.recalibrated_mean"].clone()
    made.state_dict()
    nets = cast(Any, made.ema).nets
    encoder, generator = nets["E"], nets["G"]
    assert not torch.equal(generator.norms.recalibrated_mean, lagging)
    x, follows = [made._real(one) for one in made.measured[:2]], None
    count = len(x[0])
    with torch.no_grad():
        if "style" in changes:
            random = torch.randn(count, 3, generator=torch.Generator().manual_seed(made.config.seed)).to(x[0])
            follows = random
        by: dict[str, list[Tensor]] = {}
        for source in ("batch", "recalibrated"):
            with normalised_by([encoder.norms, generator.norms], source):
                by[source] = []
                for domain in (0, 1):
                    latent = encoder(x[domain], (domain,), made.alpha)
                    told = follows
                    if made.measured.tags is not None:
                        told = made.measured.tags.to(x[0]) * (1 - domain)
                    painted, _ = generator(latent.z, latent.skips, (1 - domain,), made.alpha, told)
                    again = encoder(painted, (1 - domain,), made.alpha, deployed=False)
                    by[source] += [latent.z, painted, again.z]
    for one, other in zip(by["batch"], by["recalibrated"], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e4 * EPS64)  # sums of some hundred values, layer by layer
    assert all(not net.training and net.norms.source == "running" for net in nets.values())

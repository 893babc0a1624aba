"""Parts of Twin-GAN against its specification's formulas: networks, norms, options, losses, settings."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from plain_twingan import PlainNet, doubled, faded, halved, unlike_at_first
from stepping import SUMS
from torch import Tensor

import anifast
from anifast import backends
from anifast.errors import AnifastError
from anifast.nn import winograd
from anifast.systems.twingan import losses
from anifast.systems.twingan.config import NORMS, PRESETS, STAGES, Config, domain_of, make, sides
from anifast.systems.twingan.networks import (
    Attention,
    Conv,
    Discriminator,
    Latent,
    Linear,
    Norms,
    Statistics,
    adopt,
    build,
    limits,
    minibatch_stddev,
)

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
#: Channels: 8 at 4 and 8 px, 4 at 16, 2 at 32.
NARROW: dict[str, Any] = {"size": 32, "base_channels": 16, "max_channels": 8, "batch": 3}
DOMAINS = (0, 1, 1, 0)


def settings(**changes: Any) -> Config:
    return make(values=NARROW | changes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


def exactly(values: Any) -> Tensor:
    """Numbers of Python."""
    return torch.tensor(values, dtype=torch.float64)


def networks(config: Config, stage: str, tags: int = 0, trained: bool = True) -> dict[str, Any]:
    """In float64, as in the midst of a run."""
    torch.manual_seed(0)
    nets = build(config, stage, tags)
    for net in nets.values():
        net.double()
    if trained:
        unlike_at_first(nets)
    return nets


def assert_close(found: Tensor, expected: Tensor, near: Tensor) -> None:
    """What one rounding of each weight leads to (`near`) says how far another order of sums may lead."""
    scale = float(expected.detach().abs().max())
    usual = max(float((near - expected).detach().abs().max()), EPS64 * scale)
    assert SUMS * usual < 1e-9 * scale  # else nothing would be seen
    assert float((found - expected).detach().abs().max()) <= SUMS * usual


# --- sizes


#: Section 3.9: weights of convolutions and linear layers, channels with a norm or biases.
SIZES = {
    4: ((768, 256), (1_180_416, 515), (1_641_728, 769)),
    32: ((2_802_048, 1_536), (5_456_256, 1_795), (4_443_008, 2_049)),
    64: ((2_912_448, 1_664), (5_640_384, 1_923), (4_553_408, 2_177)),
    128: ((2_940_000, 1_728), (5_686_368, 1_987), (4_580_960, 2_241)),
    256: ((2_946_864, 1_760), (5_697_840, 2_019), (4_587_824, 2_273)),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes_of_the_published_networks(preset: str) -> None:
    """To the last number; norms have gamma and beta for either domain."""
    config = make(preset, {"size": 256, "max_channels": 256})
    for side, expected in SIZES.items():
        with torch.device("meta"):
            nets = build(config, str(side))
        assert list(nets) == ["E", "G", "D_s", "D_t"]
        for names, (weights, others) in zip((["E"], ["G"], ["D_s", "D_t"]), expected, strict=True):
            for name in names:
                sizes = {key: value.numel() for key, value in nets[name].named_parameters()}
                extra = {key: size for key, size in sizes.items() if key.startswith("norms.") or key.endswith("bias")}
                assert sum(sizes.values()) - sum(extra.values()) == weights, (side, name)
                assert sum(extra.values()) == others * (1 if name.startswith("D") else 4), (side, name)
        if side == 256:
            each = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
            assert each == {"E": 2_953_904, "G": 5_705_916, "D_s": 4_590_097, "D_t": 4_590_097}
            assert sum(each.values()) == 17_840_014


def test_channels() -> None:
    """Section 3.1; discriminators may have a limit of their own."""
    c = make("tg2018", {"size": 512})
    table = {4: 256, 8: 256, 16: 256, 32: 128, 64: 64, 128: 32, 256: 16, 512: 8}
    assert {side: c.channels(side) for side in table} == table
    assert {side: c.channels(side, discriminator=True) for side in table} == table
    wide = dataclasses.replace(c, max_channels=512, max_channels_d=64)
    assert [wide.channels(side) for side in (4, 8, 16, 32)] == [512, 512, 256, 128]
    assert [wide.channels(side, discriminator=True) for side in (4, 16, 64, 128)] == [64, 64, 64, 32]
    net = Discriminator(wide, 8, False)
    assert net.head[0].weight.shape == (64, 65, 3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", STAGES[: STAGES.index("32") + 1])
def test_shapes_of_all_phases(stage: str) -> None:
    config = settings()
    side, fading = sides(stage)
    nets = networks(config, stage)
    x = uniform(4, 3, side, side)
    latent = nets["E"](x, (0, 1), 0.3)
    assert latent.z.shape == (4, 8, 4, 4)
    blocks = [one for one in (32, 16, 8) if one <= side]
    assert list(latent.skips) == blocks
    assert [value.shape for value in latent.skips.values()] == [
        (4, config.channels(one // 2), one, one) for one in blocks
    ]
    images, _ = nets["G"](latent.z, latent.skips, DOMAINS, 0.3, copies=2)
    assert images.shape == (8, 3, side, side)
    judgement = nets["D_t"](images, 4, 0.3)
    assert judgement.scores.shape == (8,) and judgement.tags is None
    held = {"E": nets["E"].from_rgb, "G": nets["G"].to_rgb, "D_s": nets["D_s"].from_rgb}
    for colours in held.values():
        assert sorted(map(int, colours)) == ([side // 2, side] if fading else [side])


# --- the networks, told plainly


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "first phase": ("4", {}, 0),
    "first fade": ("4to8", {}, 0),
    "fading": ("8to16", {}, 0),
    "fading, as the author's code": ("8to16", {"fade_skip": "code"}, 0),
    "fading, other channels, as the author's code": ("16to32", {"fade_skip": "code"}, 0),
    "stable": ("16", {}, 0),
    "no pixel norm": ("8", {"pixel_norm": False}, 0),
    "no skips": ("8to16", {"unet": False}, 0),
    "skips up to 8": ("16", {"unet_max": 8}, 0),
    "equalised": ("8to16", {"equalized": True}, 0),
    "self-attention": ("16", {"self_attention": True, "attention_size": 16}, 0),
    "self-attention below": ("8to16", {"self_attention": True, "attention_size": 8}, 0),
    "batch norm": ("8to16", {"norm": "batch_norm"}, 0),
    "instance norm": ("8to16", {"norm": "instance_norm"}, 0),
    "layer norm": ("8to16", {"norm": "layer_norm"}, 0),
    "no norm": ("8to16", {"norm": "none"}, 0),
    "tags": ("8to16", {"tags": True}, 5),
    "tags, batch norm": ("8", {"tags": True, "norm": "batch_norm"}, 5),
    "tags, instance norm": ("8to16", {"tags": True, "norm": "instance_norm"}, 5),
    "styles": ("8to16", {"style": 5}, 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_networks_are_those_of_the_specification(case: str, training: bool) -> None:
    """Stacked or set by set, split up or not, and what their norms remember; in float64."""
    stage, changes, tags = CASES[case]
    config = settings(**changes)
    (side, _), alpha, count = sides(stage), 0.3, 3
    nets = networks(config, stage, tags)
    plain: dict[str, Any] = {name: PlainNet(net) for name, net in nets.items()}
    near = {name: net.nudged() for name, net in plain.items()}
    for group in (nets, plain, near):
        for net in group.values():
            net.training = training
    for net in nets.values():
        net.train(training)
    x = [uniform(count, 3, side, side, seed=seed) for seed in (1, 2)]
    wanted = tags or config.style
    c = [uniform(count, wanted, seed=seed) - 0.3 for seed in range(4)] if wanted else [None] * 4
    told = uniform(count, tags, seed=9) if tags else None

    def told_plainly(by: dict[str, Any]) -> dict[str, Tensor]:
        latents = [by["E"].encode(images, domain, alpha) for domain, images in enumerate(x)]
        made = [by["G"].paint(*latents[i % 2], domain, alpha, c[i]) for i, domain in enumerate(DOMAINS)]
        again = [by["E"].encode(made[i], domain, alpha)[0] for i, domain in ((2, 1), (3, 0))]
        judged = [by["D_s"].judge(made[i], alpha)[0] for i in (0, 3)]
        judged_t = [by["D_t"].judge(made[i], alpha, told) for i in (1, 2)]
        found = {"z": torch.cat([z for z, _ in latents]), "images": torch.cat(made), "again": torch.cat(again)}
        found |= {f"skip {one}": torch.cat([latent[1][one] for latent in latents]) for one in latents[0][1]}
        found |= {"s": torch.cat(judged), "t": torch.cat([scores for scores, _ in judged_t])}
        if told is not None:
            found["tags"] = torch.cat([found_tags for _, found_tags in judged_t])
        if config.style:
            found["style"] = torch.cat([by["E_style"].encode(images, d, alpha)[0] for d, images in enumerate(x)])
        return found

    def check(expected: dict[str, Tensor], usual: dict[str, Tensor], **found: Tensor) -> None:
        for name, value in found.items():
            assert_close(value, expected[name], usual[name])

    expected, usual = told_plainly(plain), told_plainly(near)
    passes = []
    for stacked, split in ((True, True), (True, False), (False, True), (False, False)):
        nets["G"].config = dataclasses.replace(config, split_up=split)
        if stacked:
            latent = nets["E"](torch.cat(x), (0, 1), alpha)
            follows = torch.cat(cast(list[Tensor], c)) if wanted else None
            images, found = nets["G"](latent.z, latent.skips, DOMAINS, alpha, follows, copies=2)
            again = nets["E"](torch.cat(images.chunk(4)[2:]), (1, 0), alpha)
            parts = images.chunk(4)
            judged = nets["D_s"](torch.cat([parts[0], parts[3]]), 2, alpha)
            both = None if told is None else torch.cat([told, told])
            judged_t = nets["D_t"](torch.cat([parts[1], parts[2]]), 2, alpha, both)
            skips = {f"skip {one}": value for one, value in latent.skips.items()}
            more = {} if both is None else {"tags": judged_t.tags}
            if config.style:
                more["style"] = nets["E_style"](torch.cat(x), (0, 1), alpha).z
            check(expected, usual, z=latent.z, images=images, again=again.z, s=judged.scores, t=judged_t.scores,
                  **skips, **more)  # fmt: skip
            passes = [latent.found, again.found], [found]
        else:
            latents = [nets["E"](images, (domain,), alpha) for domain, images in enumerate(x)]
            images = torch.cat([
                nets["G"](latents[i % 2].z, latents[i % 2].skips, (domain,), alpha, c[i])[0]
                for i, domain in enumerate(DOMAINS)
            ])  # fmt: skip
            scores = torch.cat([nets["D_s"](images.chunk(4)[i], 1, alpha).scores for i in (0, 3)])
            check(expected, usual, z=torch.cat([one.z for one in latents]), images=images, s=scores)
    if not training:
        assert all(len(one.mean) == 0 for kind in passes for one in kind)
        return
    for name, found in zip("EG", passes, strict=True):
        nets[name].norms.remember(found)
        if nets[name].norms.remembers:
            plain[name].remember(), near[name].remember()
        for key, value in nets[name].named_buffers():
            if "recalibrated" not in key and key != "norms.layer_of_channel":
                assert_close(value, plain[name].memory[key], near[name].memory[key])


# --- fading in


def grown(config: Config, stage: str, before: dict[str, Any]) -> dict[str, Any]:
    """The networks of the phase behind, begun with those before."""
    nets = networks(config, stage)
    for name, net in nets.items():
        adopt(net, before[name])
    return nets


@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_phase_that_fades_in_lies_between_its_neighbours(side: int) -> None:
    """Nothing faded in: the smaller networks, of halved pictures, its paintings doubled; all of it: the bigger ones."""
    config = settings()
    small = networks(config, str(side // 2))
    fading = grown(config, f"{side // 2}to{side}", small)
    big = grown(config, str(side), fading)
    x = uniform(6, 3, side, side)

    def all_of(nets: dict[str, Any], x: Tensor, alpha: float) -> tuple[Latent, Tensor, Tensor]:
        latent = nets["E"](x, (0, 1), alpha)
        images, _ = nets["G"](latent.z, latent.skips, (1, 0), alpha)
        return latent, images, nets["D_s"](x, 2, alpha).scores

    exact = {"rtol": 64 * EPS64, "atol": 64 * EPS64}  # of maps around 1: alpha 0 and 1 leave a rounding each
    for alpha, nets, y in ((0.0, small, halved(x)), (1.0, big, x)):
        latent, images, scores = all_of(fading, x, alpha)
        expected, painted, judged = all_of(nets, y, 1.0)
        torch.testing.assert_close(latent.z, expected.z, **exact)
        for one, skip in expected.skips.items():
            torch.testing.assert_close(latent.skips[one], skip, **exact)
        torch.testing.assert_close(images, painted if alpha else doubled(painted), **exact)
        torch.testing.assert_close(scores, judged, **exact)
    half = all_of(fading, x, 0.5)[1]
    torch.testing.assert_close(fading["G"](*fading["E"](x, (0, 1), torch.tensor(0.5).double())[:2], (1, 0),
                                           torch.tensor(0.5).double())[0], half)  # fmt: skip


def test_what_is_handed_over_while_fading() -> None:
    """At half the size the block's output; `code`: its faded input, where that has as many channels (8 at 8 px)."""
    for stage, as_code in (("8to16", True), ("16to32", False), ("4to8", False)):
        (side, _), found = sides(stage), {}
        for how in ("block", "code"):
            nets = networks(settings(fade_skip=how), stage)
            found[how] = nets["E"](uniform(3, 3, side, side), (0,), 0.25).skips
        for one in found["block"]:
            same = torch.equal(found["block"][one], found["code"][one])
            assert same == (not as_code or one != side // 2), (stage, one)
    nets = networks(settings(fade_skip="code"), "8to16")
    given: list[Tensor] = []
    nets["E"].blocks["8"][0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert torch.equal(nets["E"](uniform(3, 3, 16, 16), (0,), 0.25).skips[8], given[0])
    # in the author's networks that concerns 8 and 16 px
    c = make("tg2018")
    assert [half for half in (8, 16, 32, 64, 128) if c.channels(half) == c.channels(half // 2)] == [8, 16]


def test_doubled_maps_come_before_those_handed_over() -> None:
    conv, (low, skip) = Conv(5, 4, 3).double(), (normal(4, 3, 4, 4), normal(2, 2, 8, 8, seed=1))
    both = torch.cat([doubled(low), torch.cat([skip, skip])], 1)
    expected = F.conv2d(both, conv.weight, padding=1)
    near = F.conv2d(both, conv.weight * (1 + EPS64), padding=1)
    for split in (True, False):
        assert_close(conv.doubled(low, skip, split), expected, near)
    alone = Conv(3, 4, 3).double()
    expected = F.conv2d(doubled(low), alone.weight, padding=1)
    for split in (True, False):
        assert_close(alone.doubled(low, None, split), expected, expected * (1 + EPS64))


def test_colours_have_a_norm_and_nothing_else() -> None:
    """At the start of a run, where r = 1 and d = 0: mean beta and deviation gamma in each channel, without bounds."""
    nets = networks(settings(), "8", trained=False)
    norms = nets["G"].norms
    columns = slice(norms.beta.shape[1] - 3, None)
    with torch.no_grad():
        norms.beta[1, columns], norms.gamma[1, columns] = torch.tensor([[0.2, -0.5, 3.0], [0.5, 2.0, 0.1]]).double()
        nets["G"].to_rgb["8"].weight.mul_(1000)  # so that 1e-3 is nothing beside the variance
    latent = nets["E"](uniform(4, 3, 8, 8), (0,))
    images = nets["G"](latent.z, latent.skips, (1,))[0].detach()
    variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.tensor([0.2, -0.5, 3.0]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(variance.sqrt(), torch.tensor([0.5, 2.0, 0.1]).double(), rtol=1e-3, atol=0)
    assert float(images.min()) < -1 and float(images.max()) > 2


def test_pictures_fade_in_too() -> None:
    x = uniform(2, 3, 8, 8)
    assert torch.equal(faded(x, 1.0), x) and torch.equal(faded(x, 0.0), doubled(halved(x)))


# --- norms


class Scalar:
    """Section 3.6 number by number: one layer, one domain."""

    def __init__(self, kind: str, channels: int) -> None:
        self.kind = kind
        self.m, self.s = [0.0] * channels, [0.0] * channels
        self.w_m = self.w_s = 0.0
        self.mean, self.var = [0.0] * channels, [1.0] * channels
        self.clipped: set[str] = set()

    def __call__(self, x: Tensor, gamma: Tensor, beta: Tensor, bounds: tuple[float, float, float]) -> Tensor:
        out = torch.empty_like(x)
        self.found = []
        for c in range(x.shape[1]):
            values = x[:, c].flatten().tolist()
            mu = math.fsum(values) / len(values)
            sigma = math.sqrt(math.fsum((v - mu) ** 2 for v in values) / len(values) + 1e-3)
            r, d = 1.0, 0.0
            if self.kind == "batch_renorm":
                m, s = self.m[c] + (1 - self.w_m) * mu, self.s[c] + (1 - self.w_s) * sigma
                least, most, furthest = bounds
                r, d = min(max(sigma / s, least), most), min(max((mu - m) / s, -furthest), furthest)
                inside = r == sigma / s and d == (mu - m) / s
                self.clipped |= {"r"} if r != sigma / s else {"d"} if d != (mu - m) / s else set()
                self.clipped |= {"neither"} if inside and (r, d) != (1.0, 0.0) else set()
            self.found.append((mu, sigma))
            for n in range(len(x)):
                for i in range(x.shape[2]):
                    for j in range(x.shape[3]):
                        xhat = (x[n, c, i, j].item() - mu) / sigma
                        out[n, c, i, j] = gamma[c].item() * (xhat * r + d) + beta[c].item()
        return out

    def remember(self, found: list[tuple[float, float]]) -> None:
        keep = 0.99 if self.kind == "batch_renorm" else 0.999
        if self.kind == "batch_renorm":
            self.w_m, self.w_s = keep * self.w_m + (1 - keep), keep * self.w_s + (1 - keep)
        for c, (mu, sigma) in enumerate(found):
            if self.kind == "batch_renorm":
                self.m[c] = keep * self.m[c] + (1 - keep) * mu
                self.s[c] = keep * self.s[c] + (1 - keep) * sigma
                mu, sigma = self.m[c] / self.w_m, self.s[c] / self.w_s
            self.mean[c] = keep * self.mean[c] + (1 - keep) * mu
            self.var[c] = keep * self.var[c] + (1 - keep) * (sigma**2 - 1e-3)


@pytest.mark.parametrize("kind", ["batch_renorm", "batch_norm"])
def test_norms_number_by_number(kind: str) -> None:
    """Twelve steps of two layers: each domain twice a step, r and d from what was remembered before it, then the
    reconstruction's statistics and the translation's; and evaluation."""
    norms = Norms({"a": 2, "b": 3}, kind).double()
    with torch.no_grad():
        norms.gamma.copy_(1 + 0.3 * normal(2, 5))
        norms.beta.copy_(0.3 * normal(2, 5, seed=1))
    columns = {"a": slice(0, 2), "b": slice(2, 5)}
    plain = {(layer, d): Scalar(kind, norms.layers[layer]) for layer in "ab" for d in range(2)}
    # some forty roundings of numbers up to 10, of sums over 16 values and of memories through twelve steps
    near = {"rtol": 0.0, "atol": 10 * 64 * EPS64}
    for step in range(12):
        least, most, furthest = torch.tensor(limits((0, 10_001, 20_001, 30_001)[step % 4])).tolist()
        if kind == "batch_renorm":
            norms.renorm_limits.copy_(torch.tensor((least, most, furthest)))
        one = norms.begin(DOMAINS, 8)
        seen: dict[tuple[str, int], list[Any]] = {key: [] for key in plain}
        for layer, several in columns.items():
            # means and deviations of the step, so that some of r and d are clipped and others are not
            spread = 1.0 + 0.4 * uniform(4, 1, 1, 1, 1, seed=step) + 9.0 * (step == 8)
            moved = 0.3 * normal(4, 1, 1, 1, 1, seed=50 + step)
            x = (spread * normal(4, 2, norms.layers[layer], 2, 4, seed=100 + step) + moved).flatten(0, 1)
            y = one(layer, x, slope=1.0, pixel_norm=False)
            for k, d in enumerate(DOMAINS):
                scalar, rows = plain[layer, d], slice(2 * k, 2 * k + 2)
                gamma, beta = norms.gamma[d, several], norms.beta[d, several]
                torch.testing.assert_close(y[rows], scalar(x[rows], gamma, beta, (least, most, furthest)), **near)
                seen[layer, d].append(scalar.found)
        norms.remember([one.statistics()])
        for (layer, d), scalar in plain.items():
            for found in seen[layer, d]:  # reconstruction, then translation
                scalar.remember(found)
            several = columns[layer]
            held = {"running_mean": scalar.mean, "running_var": scalar.var}
            if kind == "batch_renorm":
                held |= {"renorm_mean": scalar.m, "renorm_std": scalar.s}
                weights = norms.renorm_weight[d, "ab".index(layer)]
                torch.testing.assert_close(weights, exactly([scalar.w_m, scalar.w_s]), **near)
            for name, values in held.items():
                torch.testing.assert_close(getattr(norms, name)[d, several], exactly(values), **near)
    if kind == "batch_renorm":
        assert set.union(*(scalar.clipped for scalar in plain.values())) == {"r", "d", "neither"}
    norms.eval()
    x = normal(4, 3, 2, 2, seed=7)
    y = norms.begin((1, 0), 4)("b", x, slope=1.0, pixel_norm=False)
    for k, d in enumerate((1, 0)):
        scalar, rows = plain["b", d], slice(2 * k, 2 * k + 2)
        mean, var = (exactly(values).view(1, 3, 1, 1) for values in (scalar.mean, scalar.var))
        expected = (x[rows] - mean) / (var + 1e-3).sqrt()
        expected = expected * norms.gamma[d, 2:].view(1, 3, 1, 1) + norms.beta[d, 2:].view(1, 3, 1, 1)
        torch.testing.assert_close(y[rows], expected, **near)


def test_limits_of_batch_renorm() -> None:
    """rmin, rmax and dmax by the phase's step."""
    tight, looser, loose, last = (0.9, 1.1, 0.1), (0.66, 1.5, 0.3), (0.5, 2.0, 0.5), (0.25, 4.0, 1.0)
    expected = {0: tight, 10_000: tight, 10_001: looser, 20_000: looser, 20_001: loose, 30_000: loose, 30_001: last}
    assert {step: limits(step) for step in expected} == expected and limits(10**7) == last
    assert Norms({"a": 1}, "batch_renorm").renorm_limits.tolist() == pytest.approx(list(tight), rel=EPS32)


def test_r_and_d_are_constants() -> None:
    """The gradient is that of gamma ((x - mean) / std r + d) + beta with r and d held."""
    norms = Norms({"a": 2}, "batch_renorm").double()
    norms.renorm_limits.copy_(torch.tensor((0.25, 4.0, 1.0)))
    norms.remember([norms_pass(norms, normal(8, 2, 3, 3)).statistics()])
    x = (1.5 * normal(8, 2, 3, 3, seed=1) + 0.2).requires_grad_()
    held = Scalar("batch_renorm", 2)
    held.m, held.s = norms.renorm_mean[0].tolist(), norms.renorm_std[0].tolist()
    held.w_m, held.w_s = norms.renorm_weight[0, 0].tolist()
    along = normal(8, 2, 3, 3, seed=2)
    one = norms.begin((0,), 8)
    (gradient,) = torch.autograd.grad((one("a", x, slope=1.0, pixel_norm=False) * along).sum(), x)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    std = (variance + 1e-3).sqrt()
    r = (std / (norms.renorm_std[0].view(1, 2, 1, 1) + (1 - held.w_s) * std)).detach().clamp(0.25, 4.0)
    (expected,) = torch.autograd.grad(((x - mean) / std * r * along).sum(), x)
    assert float((r - 1).abs().min()) > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=0, atol=64 * EPS64 * expected.abs().max().item())


def norms_pass(norms: Norms, x: Tensor, domains: tuple[int, ...] = (0,)) -> Any:
    one = norms.begin(domains, len(x))
    for layer in norms.layers:
        one(layer, x)
    return one


@pytest.mark.parametrize("kind", NORMS)
def test_a_domain_leaves_the_other_alone(kind: str) -> None:
    """Weights get no gradient, and nothing is remembered of it; outputs depend on the own ones."""
    config = settings(norm=kind)
    nets = networks(config, "8")
    x = uniform(4, 3, 8, 8)
    for name, domain in (("E", 0), ("E", 1), ("G", 0), ("G", 1)):
        net = nets[name]
        before = copy.deepcopy(net.state_dict())

        def passed(net: Any = net, name: str = name, domain: int = domain) -> tuple[Tensor, Any]:
            if name == "E":
                latent = net(x, (domain,))
                return latent.z, latent.found
            latent = nets["E"](x, (0,))
            return cast(tuple[Tensor, Any], net(latent.z.detach(), latent.skips, (domain,)))

        out, found = passed()
        net.zero_grad()
        out.square().sum().backward()
        net.norms.remember([found])
        for key, value in net.norms.named_parameters():
            assert not bool(value.grad[1 - domain].any()) and bool(value.grad[domain].any()), key
        changed = set()
        for key, value in net.norms.named_buffers():
            if key not in ("renorm_limits", "layer_of_channel") and not key.startswith("recalibrated"):
                assert torch.equal(value[1 - domain], before[f"norms.{key}"][1 - domain]), key
                if not torch.equal(value[domain], before[f"norms.{key}"][domain]):
                    changed.add(key)
        memories = {"batch_norm": {"running_mean", "running_var"}, "batch_renorm": {"running_mean", "running_var",
                    "renorm_mean", "renorm_std", "renorm_weight"}}  # fmt: skip
        assert changed == memories.get(kind, set())
        with torch.no_grad():
            for value in net.norms.state_dict().values():
                if value.dim():
                    value[1 - domain] += 1
        if kind not in memories:
            assert torch.equal(passed()[0], out)
        net.load_state_dict(before)
        with torch.no_grad():
            net.norms.beta[domain] += 1
        assert not torch.equal(passed()[0], out)
        net.load_state_dict(before)


@pytest.mark.parametrize("kind", ["instance_norm", "layer_norm", "none"])
def test_norms_without_memories_see_each_picture_alone(kind: str) -> None:
    nets = networks(settings(norm=kind), "8")
    x = uniform(4, 3, 8, 8)
    assert not nets["E"].norms.remembers and not list(nets["E"].norms.buffers())
    both = nets["E"](x, (0, 1)).z
    for i in range(4):
        assert_close(both[i : i + 1], nets["E"](x[i : i + 1], (i // 2,)).z, both[i : i + 1])
    assert torch.equal(nets["E"].eval()(x, (0, 1)).z, both)


def test_evaluation_does_not_see_a_batch() -> None:
    """Nor does it remember one; `batch` is the exception, and recalibrated statistics are what they are."""
    nets = networks(settings(), "8")
    norms, x = nets["E"].norms, uniform(4, 3, 8, 8)
    training = nets["E"](x, (0, 1))
    nets["E"].eval()
    both = nets["E"](x, (0, 1))
    assert both.found.mean.numel() == 0
    one = nets["E"](x[2:3], (1,)).z
    assert_close(one, both.z[2:3], both.z[2:3])
    assert not torch.equal(both.z, training.z)
    norms.source = "batch"  # without r and d, which are about training
    plain = networks(settings(norm="batch_norm"), "8")["E"]
    plain.load_state_dict({k: v for k, v in nets["E"].state_dict().items() if "renorm" not in k})
    assert torch.equal(nets["E"](x, (0, 1)).z, plain(x, (0, 1)).z)
    norms.source = "recalibrated"
    assert not norms.recalibrated
    with pytest.raises(RuntimeError, match="not been recalibrated"):
        nets["E"](x, (0, 1))
    norms.recalibrated_mean.copy_(norms.running_mean)
    norms.recalibrated_var.copy_(norms.running_var)
    assert norms.recalibrated and torch.equal(nets["E"](x, (0, 1)).z, both.z)
    norms.recalibrated_mean += 0.5
    assert not torch.equal(nets["E"](x, (0, 1)).z, both.z)


def test_recalibrated_statistics_are_means_over_steps() -> None:
    """Of means and of deviations, over all of a phase's steps and later as over the last hundred; of each domain."""
    norms = Norms({"a": 2, "b": 1}, "batch_renorm").double()
    before = copy.deepcopy(norms.state_dict())
    mean = std = torch.zeros(2, 3).double()
    for step in range(150):
        each, deviation = normal(2, 3, seed=step), 0.5 + uniform(2, 3, seed=step)
        # in one pass of both domains, or one of each, in either order
        if step % 3 == 0:
            found = [Statistics((1, 0), each.flip(0), deviation.flip(0))]
        else:
            found = [Statistics((d,), each[d : d + 1], deviation[d : d + 1]) for d in ((0, 1), (1, 0))[step % 2]]
        norms.recalibrate(found, [one._replace(mean=-one.mean, std=2 * one.std) for one in found])
        share = max(1 / (step + 1), 0.01)
        mean, std = (1 - share) * mean + share * each, (1 - share) * std + share * deviation
        exact = {"rtol": 0.0, "atol": 8 * (step + 1) * EPS64}  # some roundings a step of numbers around 1
        torch.testing.assert_close(norms.recalibrated_mean, mean, **exact)
        torch.testing.assert_close(norms.recalibrated_var, std.square() - 1e-3, **exact)
        torch.testing.assert_close(norms.recalibrated_else_mean, -mean, **exact)
        torch.testing.assert_close(norms.recalibrated_else_var, 4 * std.square() - 1e-3, rtol=0, atol=4 * exact["atol"])
        assert norms.recalibrated
        assert norms.usual()[0] is norms.running_mean
    for name, value in norms.named_buffers():
        if not name.startswith("recalibrated") and name in before:
            assert torch.equal(value, before[name]), name  # nothing else is about these
    norms.source = "recalibrated"
    assert norms.usual()[0] is norms.recalibrated_mean
    assert norms.usual(deployed=False)[0] is norms.recalibrated_else_mean
    norms.recalibrated_else_mean[0, 1] = math.nan  # there are none
    assert norms.usual(deployed=False)[0] is norms.running_mean
    Norms({"a": 2}, "instance_norm").recalibrate([], [])


@pytest.mark.parametrize("kind", ["batch_renorm", "instance_norm"])
def test_a_condition_moves_scales_and_shifts(kind: str) -> None:
    """By its direction; with instance norm by its length too. Zeros are no condition."""
    nets = networks(settings(tags=True, norm=kind), "8", tags=5)
    latent = nets["E"](uniform(3, 3, 8, 8), (0,))

    def painted(c: Tensor | None) -> Tensor:
        return cast(Tensor, nets["G"](latent.z.detach(), latent.skips, (1,), condition=c)[0])

    c = uniform(3, 5)
    nothing = painted(None)
    assert_close(painted(torch.zeros(3, 5).double()), nothing, nothing)
    assert not torch.allclose(painted(c), painted(None))
    longer = torch.allclose(painted(3 * c), painted(c), rtol=1e-10, atol=1e-10)
    assert longer == (kind == "batch_renorm")
    weights = nets["G"].norms.gamma_weight
    nets["G"].zero_grad()
    painted(c).square().sum().backward()
    assert bool(weights.grad[1].any()) and not bool(weights.grad[0].any())


def test_a_stack_that_is_none() -> None:
    with pytest.raises(ValueError, match="5 images are no stack of 2 groups"):
        networks(settings(), "8")["E"](uniform(5, 3, 8, 8), (0, 1))


# --- parts of discriminators


def test_minibatch_stddev() -> None:
    """One number for each set of pictures: the mean over positions and channels of sqrt(variance + 1e-8)."""
    x = normal(6, 4, 3, 3)
    for groups in (1, 2, 3):
        y = minibatch_stddev(x, groups)
        assert y.shape == (6, 5, 3, 3) and torch.equal(y[:, :4], x)
        for part, out in zip(x.chunk(groups), y.chunk(groups), strict=True):
            total = 0.0
            for values in part.flatten(1).T.tolist():
                mean = math.fsum(values) / len(values)
                total += math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values) + 1e-8)
            expected = exactly(total / 36).expand(len(part), 3, 3)
            torch.testing.assert_close(out[:, 4], expected, rtol=16 * EPS64, atol=0)
    assert float(minibatch_stddev(x[:1])[0, 4, 0, 0]) == pytest.approx(1e-4, rel=1e-12)
    half = x.bfloat16()
    torch.testing.assert_close(
        minibatch_stddev(half)[:, 4].float(), minibatch_stddev(half.float())[:, 4], rtol=2**-8, atol=0
    )


def test_self_attention_is_the_identity_at_first() -> None:
    torch.manual_seed(0)
    attend = Attention(16, "a", True).double()
    assert attend.f.weight.shape == attend.g.weight.shape == (2, 16, 1, 1) and attend.h.weight.shape == (16, 16, 1, 1)
    x = normal(2, 16, 4, 4)
    assert torch.equal(attend(x), x)
    assert Attention.layers(16, "a") == {"a.f": 2, "a.g": 2, "a.h": 16}
    for stage, there in (("8", False), ("16", True), ("8to16", True), ("32", True)):
        nets = networks(settings(self_attention=True, attention_size=16), stage)
        assert [list(nets[name].attention) for name in ("E", "G", "D_s")] == [["16"] * there] * 3
        layers = [name for name in nets["E"].norms.layers if name.startswith("attention")]
        assert layers == ["attention.16.f", "attention.16.g", "attention.16.h"] * there


def test_tags_are_recognised_without_being_told() -> None:
    """Scores depend on what is told, recognition does not, and nothing told is zeros."""
    net = networks(settings(tags=True), "8", tags=5)["D_t"]
    x, tags = uniform(3, 3, 8, 8), uniform(3, 5, seed=1)
    told, untold, zeros = (net(x, 1, tags=given) for given in (tags, None, torch.zeros_like(tags)))
    assert told.tags.shape == (3, 5) and torch.equal(told.tags, untold.tags)
    assert not torch.allclose(told.scores, untold.scores) and torch.equal(untold.scores, zeros.scores)


def test_discriminators_have_no_norms() -> None:
    net = networks(settings(), "16")["D_s"]
    assert not hasattr(net, "norms") and not list(net.buffers())
    assert not any(isinstance(module, Norms) for module in net.modules())


def largest(weight: Tensor) -> float:
    """Its largest singular value as a matrix of [outputs, the rest]."""
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))


def test_spectral_norm() -> None:
    """Of every layer of the discriminators, the linear one too, and with a second setting of encoder and generator:
    one power iteration a pass brings the largest singular value to 1."""
    for everywhere in (False, True):
        config = settings(spectral_norm=True, spectral_norm_g=everywhere, tags=True, self_attention=True,
                          attention_size=8)  # fmt: skip
        nets = networks(config, "8", tags=4)
        for name, net in nets.items():
            layers = [layer for layer in net.modules() if isinstance(layer, (Conv, Linear))]
            wanted = name.startswith("D") or everywhere
            assert all(hasattr(layer, "parametrizations") == wanted for layer in layers)
            if not wanted or (everywhere and name == "D_t"):
                continue
            for layer in layers:  # as when weights have moved far in a step
                weight = layer.parametrizations.weight.original  # type: ignore[union-attr]
                with torch.no_grad():
                    weight.copy_(normal(*weight.shape))
                assert largest(weight) != pytest.approx(1, rel=1e-3)
                for _ in range(300):
                    found = layer.kernel if isinstance(layer, Conv) else layer.weight
                assert largest(found) == pytest.approx(1, rel=1e-3), name
        assert nets["D_s"].out.weight.shape == (1, 8)
        before = nets["D_s"].out.parametrizations.weight[0]._u.clone()
        nets["D_s"].eval()(uniform(3, 3, 8, 8), 1)
        assert torch.equal(nets["D_s"].out.parametrizations.weight[0]._u, before)  # evaluation moves nothing


def test_equalised_learning_rate() -> None:
    """Weights from N(0, 1), inputs times sqrt(2 / fan in); else weights from N(0, 0.02)."""
    torch.manual_seed(0)
    for equalized, deviation in ((False, 0.02), (True, 1.0)):
        conv, linear = Conv(64, 64, 3, equalized=equalized), Linear(64, 64, equalized=equalized)
        for layer in (conv, linear):
            count = layer.weight.numel()
            assert abs(layer.weight.std().item() / deviation - 1) < 5 / math.sqrt(2 * count)
            assert abs(layer.weight.mean().item()) < 5 * deviation / math.sqrt(count)
        assert not bool(linear.bias.any())
        x = torch.randn(2, 64, 4, 4)
        scale = math.sqrt(2 / (64 * 9)) if equalized else 1.0
        # a sum of 576 products in another order
        expected = F.conv2d(scale * x, conv.weight, padding=1)
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=24 * 4 * EPS32 * expected.abs().max().item())
        scale = math.sqrt(2 / 64) if equalized else 1.0
        torch.testing.assert_close(linear(x[:, :, 0, 0]), F.linear(scale * x[:, :, 0, 0], linear.weight))


@pytest.mark.parametrize("rgb_start", [True, False])
def test_weights_at_the_start(rgb_start: bool) -> None:
    """Scales 1 and shifts 0; with `rgb_start` colours have mean 0.5 and deviation 0.25."""
    nets = build(settings(tags=True, rgb_start=rgb_start), "8to16", 5)
    norms = nets["G"].norms
    for layer in norms.layers:  # type: ignore[union-attr,operator]
        columns = norms.columns(layer)  # type: ignore[operator,union-attr]
        mean, std = (0.5, 0.25) if rgb_start and layer.startswith("to_rgb.") else (0.0, 1.0)
        assert bool((norms.beta[:, columns] == mean).all()), layer  # type: ignore[union-attr,index]
        assert bool((norms.gamma[:, columns] == std).all()), layer  # type: ignore[union-attr,index]
    for name, net in nets.items():
        for key, value in net.named_parameters():
            last = key.rpartition(".")[2]
            if last in ("beta", "bias"):
                assert name == "G" or not bool(value.any()), (name, key)
            elif last == "gamma":
                assert name == "G" or bool((value == 1).all()), (name, key)
            else:
                assert 0 < value.std().item() < 0.04, (name, key)
    matrix = cast(Tensor, nets["D_t"].tag_matrix)
    assert matrix.shape == (5, 16) and not matrix.requires_grad
    assert 0 <= float(matrix.min()) < 0.2 and 0.8 < float(matrix.max()) < 1
    assert not hasattr(nets["D_s"], "tag_matrix")


# --- from phase to phase


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "batch_norm"}, {"style": 4}, {"tags": True, "self_attention": True, "attention_size": 8},
     {"spectral_norm": True, "spectral_norm_g": True}, {"rgb_start": False}],
    ids=["batch renorm", "batch norm", "styles", "tags and attention", "spectral norm", "colours anew"],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["4", "4to8", "8", "8to16"])
def test_a_phase_takes_over_what_both_have(stage: str, changes: dict[str, Any]) -> None:
    """Every layer by its name, with scales, shifts and memories of both domains; new layers stay as they are, but for
    scales and shifts of colours, which are where those of the phase before have got."""
    config = settings(**changes)
    before = networks(config, stage, tags=5)
    after = STAGES[STAGES.index(stage) + 1]
    torch.manual_seed(1)
    nets = build(config, after, 5)
    fresh = copy.deepcopy(nets)
    for net in (*nets.values(), *fresh.values()):
        net.double()
    for name, net in nets.items():
        adopt(net, before[name])
        held, new = before[name].state_dict(), fresh[name].state_dict()
        shared = 0
        for key, value in net.state_dict().items():
            if key.startswith("norms."):
                continue
            assert torch.equal(value, (held if key in held else new)[key]), (name, key)
            shared += key in held
        assert shared, name
        if not hasattr(net, "norms"):
            continue
        ours, theirs, untouched = (n.norms for n in (net, before[name], fresh[name]))

        def of(norms: Any, layer: str) -> dict[str, Tensor]:
            """Everything of a layer."""
            number = list(norms.layers).index(layer)
            first = sum(list(norms.layers.values())[:number])
            found = {}
            for key, value in norms.state_dict().items():
                if key == "renorm_weight":
                    found[key] = value[:, number]
                elif not key.startswith("recalibrated"):
                    found[key] = value[:, first : first + norms.layers[layer]]
            return found

        assert set(ours.layers) & set(theirs.layers)
        for layer in ours.layers:
            expected = of(theirs if layer in theirs.layers else untouched, layer)
            if layer not in theirs.layers and layer.startswith("to_rgb.") and config.rgb_start:
                colours = of(theirs, f"to_rgb.{stage.rpartition('to')[2]}")
                expected |= {key: colours[key] for key in ("beta", "gamma")}
            for key, value in of(ours, layer).items():
                assert torch.equal(value, expected[key]), (name, layer, key)
        gone = {layer for layer in theirs.layers if layer not in ours.layers}
        half = stage.partition("to")[0]
        assert all(layer.endswith(f"rgb.{half}") for layer in gone) and bool(gone) == ("to" in stage)


def test_recalibrated_statistics_end_with_their_phase() -> None:
    """They are of networks that have since changed."""
    before = networks(settings(), "4to8")
    for name in "EG":
        before[name].norms.recalibrated_mean.zero_()
        before[name].norms.recalibrated_var.fill_(1)
        before[name].norms.recalibrated_steps.fill_(9)
        assert before[name].norms.recalibrated
    after = grown(settings(), "8", before)
    for name in "EG":
        assert not after[name].norms.recalibrated and float(after[name].norms.recalibrated_steps) == 0


# --- losses


@pytest.mark.parametrize("kind", ["dragan", "gan", "wgan", "wgan_gp", "hinge"])
def test_adversarial_losses(kind: str) -> None:
    """Section 4.2 and 4.3 number by number."""
    real, painted = 3 * normal(5), 3 * normal(7, seed=1)

    def mean(values: Tensor, of: Callable[[float], float]) -> float:
        return math.fsum(of(v) for v in values.tolist()) / len(values)

    def sp(v: float) -> float:
        return math.log1p(math.exp(v))

    if kind in ("dragan", "gan"):
        g = mean(painted, lambda v: sp(-v))
        d = mean(real, lambda v: sp(-v)) + mean(painted, sp)
    elif kind == "hinge":
        g = mean(painted, lambda v: -v)
        d = mean(painted, lambda v: max(0.0, 1 + v)) + mean(real, lambda v: max(0.0, 1 - v))
    else:
        g, d = mean(painted, lambda v: -v), mean(painted, lambda v: v) - mean(real, lambda v: v)
    assert float(losses.adversarial(painted, kind)) == pytest.approx(g, rel=1e-14)
    assert float(losses.judging(real, painted, kind)) == pytest.approx(d, rel=1e-14)


def test_points_of_dragan() -> None:
    """x + alpha 0.5 V U(-1, 1) per element, V one number of the batch: its variance, or its deviation."""
    x, noise, share = uniform(3, 3, 4, 4), 2 * uniform(3, 3, 4, 4, seed=1) - 1, uniform(3, seed=2)
    values = x.flatten().tolist()
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    for how, v in (("variance", variance), ("std", math.sqrt(variance))):
        expected = torch.stack([x[i] + share[i] * 0.5 * v * noise[i] for i in range(3)])
        torch.testing.assert_close(losses.dragan_points(x, noise, share, how), expected, rtol=8 * EPS64, atol=0)
    assert torch.equal(losses.dragan_points(x, noise, torch.zeros(3).double()), x)


def test_points_between_real_and_painted() -> None:
    x, y = uniform(3, 3, 4, 4), uniform(3, 3, 4, 4, seed=1)
    found = losses.wgan_points(x, y, exactly([0.0, 1.0, 0.25]))
    assert torch.equal(found[0], x[0]) and torch.equal(found[1], y[1])
    torch.testing.assert_close(found[2], 0.75 * x[2] + 0.25 * y[2], rtol=4 * EPS64, atol=0)


def test_gradient_penalty_is_over_all_pixels_of_a_picture() -> None:
    """Of scores whose gradient is known: sum of w x^2 / 2."""
    w, x = uniform(3, 4, 4), normal(5, 3, 4, 4)
    found = losses.gradient_penalty(lambda points: 0.5 * (w * points.square()).flatten(1).sum(1), x).detach()
    norms = [math.sqrt(math.fsum(v * v for v in (w * x[i]).flatten().tolist())) for i in range(5)]
    assert float(found) == pytest.approx(math.fsum((n - 1) ** 2 for n in norms) / 5, rel=1e-14)
    assert not x.requires_grad


@pytest.mark.parametrize("changes", [{}, {"self_attention": True, "attention_size": 8}], ids=["plain", "attention"])
def test_the_penalty_trains_a_discriminator(changes: dict[str, Any]) -> None:
    """Its gradient, of second order in all of D, against differences; minibatch stddev, pools and fading included."""
    nets = networks(settings(**changes), "4to8")
    net = nets["D_s"]
    x = uniform(3, 3, 8, 8)
    weights = dict(net.named_parameters())

    def penalty(*values: Tensor) -> Tensor:
        held = dict(zip(weights, values, strict=True))

        def judge(points: Tensor) -> Tensor:
            scores: Tensor = torch.func.functional_call(net, held, (points, 1, 0.6)).scores
            return scores

        return losses.gradient_penalty(judge, x)

    given = tuple(value.detach().clone().requires_grad_() for value in weights.values())
    assert torch.autograd.gradcheck(penalty, given, fast_mode=True)
    found = torch.autograd.grad(penalty(*given), given, allow_unused=True, materialize_grads=True)
    moved = {name for name, value in zip(weights, found, strict=True) if bool(value.any())}
    assert {name for name in weights if name.endswith("weight")} <= moved


def test_recognition_of_tags() -> None:
    """Mean binary cross-entropy over the tags of pictures that have any."""
    logits, tags = 2 * normal(4, 5), uniform(4, 5, seed=1)
    tags[2] = 0
    total = 0.0
    for n in (0, 1, 3):
        for logit, tag in zip(logits[n].tolist(), tags[n].tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= tag * math.log(p) + (1 - tag) * math.log(1 - p)
    assert float(losses.recognition(logits, tags)) == pytest.approx(total / 15, rel=1e-13)
    assert float(losses.recognition(logits, torch.zeros_like(tags))) == 0.0


# --- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 48}, "setting size: 48 is not a power of two; take 32 or 64"),
        ({"attention_size": 20}, "setting attention_size: 20 is not a power of two; take 16 or 32"),
        ({"unet_max": 100}, "setting unet_max: 100 is not a power of two; take 64 or 128"),
        ({"tags": True, "style": 4}, "tags and style"),
        ({"tags": True, "norm": "layer_norm"}, "norm layer_norm: has nothing that could follow tags"),
        ({"stage": "64"}, "setting stage: 64 is beyond size 32; there are 4, 4to8, 8"),
        ({"batch": 1}, "batch: 1 picture has no statistics"),
        ({"beta1": 1.0}, "beta1 and beta2 lie below 1"),
        ({"loss": "lsgan"}, "loss"),
        ({"norm": "group"}, "norm"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        settings(**changes)


def test_presets() -> None:
    """Sections 4.4 and 5: `tg2018` is the author's code, `fast` the default; shared numbers are the author's."""
    assert next(iter(PRESETS)) == "fast" and make() == make("fast")
    for name in ("fast", "tg2018"):
        c = make(name)
        assert (c.size, c.phase_images, c.last_images) == (256, 300_000, 600_000)
        assert (c.lr, c.d_lr, c.beta1, c.beta2, c.d_steps) == (1e-4, None, 0.5, 0.99, 1)
        assert (c.loss, c.gp_weight, c.dragan_noise) == ("dragan", 0.25, "variance")
        assert (c.rec_weight, c.gan_weight, c.sem_weight, c.rec_gan_from) == (1.0, 1.0, 0.1, 64)
        assert (c.norm, c.pixel_norm, c.unet, c.skips_up_to, c.equalized) == ("batch_renorm", True, True, 512, False)
        assert not (c.self_attention or c.spectral_norm or c.spectral_norm_g or c.style or c.tags)
        assert (c.crop, c.flip, c.tag_threshold, c.attention_size) == (0.8, True, 0.25, 64)
    author, fast = make("tg2018"), make("fast")
    assert [author.batch_of(side) for side in (4, 8, 16, 32, 64, 128, 256, 512)] == [8, 8, 8, 8, 8, 4, 3, 2]
    assert {fast.batch_of(side) for side in (4, 64, 256)} == {16}
    assert (author.ema, author.share_batch, author.fade_skip, author.resize, author.jitter) == (
        0.0, False, "code", "tf1", "both")  # fmt: skip
    assert (fast.ema, fast.share_batch, fast.fade_skip, fast.resize, fast.jitter) == (
        0.999, True, "block", "antialias", "source")  # fmt: skip
    assert make(values={"tags": True}).skips_up_to == 64 and make(values={"tags": True, "unet_max": 8}).skips_up_to == 8
    assert make("small").size == 32


def test_phases() -> None:
    assert make(values={"size": 16}).phases == ("4", "4to8", "8", "8to16", "16")
    assert make(values={"size": 4}).phases == ("4",)
    assert [sides(name) for name in ("4", "4to8", "128to256", "512")] == [(4, False), (8, True), (256, True),
                                                                          (512, False)]  # fmt: skip


def test_words_for_domains() -> None:
    assert [domain_of(word) for word in ("s", "source", "A", "t", "target", "B")] == [0, 0, 0, 1, 1, 1]
    for word in ("anime", "a", ""):
        with pytest.raises(AnifastError, match=f"domain '{word}': there are source \\(s, A\\) and target \\(t, B\\)"):
            domain_of(word)


def test_settings_survive_a_file() -> None:
    c = settings(seed=5, loss="hinge", style=3)
    file = io.BytesIO()
    torch.save(c.as_dict(), file)
    file.seek(0)
    assert Config(**torch.load(file, weights_only=True)) == c


@pytest.mark.parametrize("changes", [{}, {"unet_max": 8}, {"equalized": True}, {"split_up": False}])
def test_a_frozen_generator_paints_the_same(changes: dict[str, Any]) -> None:
    """What is kept of its weights is what each pass would make of them."""
    nets = networks(settings(**changes), "16")
    z, skips, _ = nets["E"](uniform(4, 3, 16, 16), (0, 1))
    before, _ = nets["G"](z, skips, (1, 0))
    nets["G"].freeze()
    assert torch.equal(nets["G"](z, skips, (1, 0))[0], before)
    with torch.no_grad():
        for conv in nets["G"].modules():
            if isinstance(conv, Conv) and conv.taps is not None:
                conv.weight[:, : conv.taps.shape[0]].zero_()  # it is not looked at any more
    assert torch.equal(nets["G"](z, skips, (1, 0))[0], before)


def test_convolutions_by_the_winograd_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where maps are large enough, the penalty's gradients go through them, a few times less exact than PyTorch's."""
    if backends.choose("modulated_conv2d", "cpu") != "native":
        pytest.skip("the extension has no modulated_conv2d here")
    torch.manual_seed(0)
    net = Discriminator(Config(size=16, max_channels=64, equalized=True), 16, False)
    x, calls = uniform(12, 3, 16, 16).float(), []
    original = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args, **how: calls.append(1) or original(*args, **how))

    def gradients(judge: Discriminator, points: Tensor) -> Tensor:
        judge.zero_grad()
        losses.gradient_penalty(lambda given: judge(given).scores, points).backward()
        return torch.cat([value.grad.flatten().double() for value in judge.parameters() if value.dim() == 4])

    exact = gradients(copy.deepcopy(net).double(), x.double())
    assert not calls
    found = gradients(net, x)
    assert len(calls) >= 2
    with anifast.use_backend("reference"):
        plain = gradients(net, x)
    error, usual = ((one - exact).norm() / exact.norm() for one in (found, plain))
    assert error < 8 * usual

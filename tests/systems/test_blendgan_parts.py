"""Parts of BlendGAN's training against its specification's formulas: losses, networks, views, optimisers, queue."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_blendgan import tiny_config
from torch import Tensor, nn

from anifast.data import augment as geometry
from anifast.errors import AnifastError, CheckpointError
from anifast.nn import perceptual
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import fold_weight, folded_steps, unfold_weight
from anifast.nn.stylegan2 import Discriminator
from anifast.systems.blendgan.augmentation import matrices, views
from anifast.systems.blendgan.checkpoints import config_of, header
from anifast.systems.blendgan.codes import Queue
from anifast.systems.blendgan.config import PRESETS, Config, make
from anifast.systems.blendgan.contrast import FoldedAdam, fitting_batch, memory_estimate
from anifast.systems.blendgan.inversion import Ranger
from anifast.systems.blendgan.losses import adversarial, nt_xent
from anifast.systems.blendgan.networks import (
    Generator,
    ProjectionDiscriminator,
    Projector,
    StyleEncoder,
    blend,
    build_discriminator,
    build_generator,
    build_latent_discriminator,
    build_style_encoder,
    networks,
)
from anifast.systems.blendgan.psp import FaceRecognition, PSPEncoder

#: Layers of Gram matrices that are enough here, with 64 and 128 channels.
FEW = (3, 8)
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
L = 10
#: Sums behind one another whose roundings add up, in tolerances that are not measured: some 32 of them.
DEEP = 32


@pytest.fixture(autouse=True)
def few_gram_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(perceptual.STYLE_LAYERS, "random", FEW)


def generator(dtype: torch.dtype = torch.float64, **changes: Any) -> Generator:
    """At 64 px with 8 channels at most; shares, biases and noise are as training makes them."""
    torch.manual_seed(0)
    net = Generator(64, 16, 2, 1.0, base_channels=8, **changes)
    with torch.no_grad():
        net.add_weight.copy_(torch.rand(1, L, 1))
        for name, value in net.named_parameters():
            if name.endswith(("bias", "noise.weight")):
                value.add_(torch.randn_like(value), alpha=0.3)
    return net.to(dtype)


def codes(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- losses


def plain_nt_xent(p: Tensor, tau: float) -> list[float]:
    """Equation 2, pair by pair."""
    count = len(p)
    cosine = [[float(a @ b / (a.norm() * b.norm())) for b in p] for a in p]
    found = []
    for j in range(count):
        k = (j + count // 2) % count
        below = sum(math.exp(cosine[j][m] / tau) for m in range(count) if m != j)
        found.append(-math.log(math.exp(cosine[j][k] / tau) / below))
    return found


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_nt_xent(pictures: int, tau: float) -> None:
    p = torch.randn(2 * pictures, 7, generator=torch.Generator().manual_seed(1)).double()
    found = nt_xent(p, tau)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(plain_nt_xent(p, tau), rel=1e-13, abs=DEEP * EPS64 / tau)
    scales = torch.rand(len(p), 1).double() + 0.5
    torch.testing.assert_close(nt_xent(p * scales, tau), found, rtol=0, atol=DEEP * EPS64 / tau)
    if pictures == 1:
        assert found.tolist() == [0.0, 0.0]  # nothing to tell apart


def test_nt_xent_knows_the_other_view() -> None:
    """First views, then second ones: equal pairs that are apart from all others cost nothing, swapped ones a lot."""
    p = torch.eye(4).repeat(2, 1)
    assert float(nt_xent(p, 0.01).max()) < 1e-30
    wrong = torch.cat([torch.eye(4), torch.eye(4).roll(1, 0)])
    assert float(nt_xent(wrong, 0.01).min()) > 99


def test_nt_xent_is_computed_in_float32() -> None:
    p = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    expected = nt_xent(p)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(p), expected)
    half = nt_xent(p.bfloat16())
    assert half.dtype == torch.float32 and torch.equal(half, nt_xent(p.bfloat16().float()))


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4,), (1, 4), (2, 2, 4)])
def test_nt_xent_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"projections has shape {re.escape(str(shape))}, expected \[2N, D\]"):
        nt_xent(torch.zeros(shape))


def test_adversarial_losses() -> None:
    logits = torch.tensor([[0.0], [2.0], [-3.0]]).double()
    real = sum(math.log1p(math.exp(-x)) for x in (0, 2, -3)) / 3
    fake = sum(math.log1p(math.exp(x)) for x in (0, 2, -3)) / 3
    assert float(adversarial(logits, True)) == pytest.approx(real, rel=4 * EPS64)
    assert float(adversarial(logits, False)) == pytest.approx(fake, rel=4 * EPS64)


# --- the weighted blending module


def plain_blend(w_f: Tensor, w_s: Tensor, a: Tensor, index: int, theta: float) -> Tensor:
    """Equations 3 to 5 for one picture, slot by slot."""
    rows = []
    for slot in range(L):
        mask = 0.0 if slot < index else theta if slot == index else 1.0
        alpha = (1 - a[slot]) * mask
        face, style = (w[slot] if w.dim() == 2 else w for w in (w_f, w_s))
        rows.append(style * alpha + face * (1 - alpha))
    return torch.stack(rows)


@pytest.mark.parametrize("theta", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("plus", [(False, False), (True, False), (False, True), (True, True)])
def test_blending(plus: tuple[bool, bool], theta: float) -> None:
    """Every indicator alone, and all of them in one batch."""
    source = torch.Generator().manual_seed(0)
    w_f, w_s = (torch.randn(L + 1, *([L] if p else []), 5, generator=source).double() for p in plus)
    a = torch.rand(L, generator=source).double()
    expected = torch.stack([plain_blend(w_f[i], w_s[i], a, i, theta) for i in range(L + 1)])
    size = float(torch.cat([w_f.flatten(), w_s.flatten()]).abs().max())
    found = blend(w_f, w_s, a, torch.arange(L + 1), theta)
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * EPS64 * size)
    for i in range(L + 1):
        torch.testing.assert_close(blend(w_f, w_s, a, i, theta)[i], expected[i], rtol=0, atol=8 * EPS64 * size)
    thetas = torch.linspace(0, 1, L + 1).double()
    each = torch.stack([plain_blend(w_f[i], w_s[i], a, i, float(thetas[i])) for i in range(L + 1)])
    found = blend(w_f, w_s, a, torch.arange(L + 1), thetas)
    torch.testing.assert_close(found, each, rtol=0, atol=8 * EPS64 * size)
    assert torch.equal(blend(w_f, w_s, a), blend(w_f, w_s, a, 0))


@pytest.mark.parametrize("index", [-1, L + 1, 99])
def test_an_indicator_out_of_range(index: int) -> None:
    with pytest.raises(ValueError, match=rf"index is {index}, expected 0 \(all of the style\) to {L} \(none of it\)"):
        blend(codes(2), codes(2), torch.ones(L), index)
    with pytest.raises(ValueError, match="index is"):
        generator()(codes(1), codes(1), index)


@pytest.mark.parametrize("theta", [-0.1, 1.1])
def test_a_theta_out_of_range(theta: float) -> None:
    with pytest.raises(ValueError, match="theta is .*, expected 0 to 1"):
        blend(codes(2), codes(2), torch.ones(L), 3, theta)


@pytest.mark.parametrize(
    ("w_f", "w_s", "name"),
    [((2, 9, 4), (2, 4), "w_f"), ((2, 4), (2, 11, 4), "w_s"), ((2, 4), (3, 4), "w_s"), ((4,), (2, 4), "w_f")],
)
def test_codes_of_the_wrong_length(w_f: tuple[int, ...], w_s: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"blend: {name} has shape"):
        blend(torch.zeros(w_f), torch.zeros(w_s), torch.ones(L))


# --- the generator


@torch.no_grad()
def test_the_full_indicator_is_the_face_without_style() -> None:
    """Bit for bit; and no indicator is 0. Between them each one differs from the next, as alpha is nowhere 0."""
    g = generator()
    z, style = codes(3), codes(3, 1)
    natural, w = g(z, randomize_noise=False, return_latents=True)
    assert w is not None and natural.shape == (3, 3, 64, 64)
    image, same = g(z, style, L, randomize_noise=False, return_latents=True)
    assert torch.equal(image, natural) and same is not None and torch.equal(same, w)
    found = [g(z, style, i, randomize_noise=False)[0] for i in range(L + 1)]
    assert torch.equal(g(z, style, randomize_noise=False)[0], found[0])
    assert all(float((one - other).abs().max()) > 1e-6 for one, other in zip(found, found[1:], strict=False))


@torch.no_grad()
def test_each_picture_of_a_batch_has_an_indicator_of_its_own() -> None:
    g = generator()
    z, style, index = codes(4), codes(4, 1), torch.tensor([L, 0, 6, 3])
    found, w = g(z, style, index, randomize_noise=False, return_latents=True)
    assert w is not None and w.shape == (4, L, 16)
    for k in range(4):
        alone, own = g(z[k : k + 1], style[k : k + 1], int(index[k]), randomize_noise=False, return_latents=True)
        torch.testing.assert_close(w[k : k + 1], own, rtol=0, atol=DEEP * EPS64 * float(w.abs().max()))
        # 14 layers, each a sum; what one rounding of the codes leads to is measured
        moved = g(own * (1 + EPS64), input_is_latent=True, randomize_noise=False)[0]
        usual = float((moved - alone).abs().max())
        assert float((found[k : k + 1] - alone).abs().max()) <= DEEP * usual < 1e-9


@torch.no_grad()
def test_the_length_of_a_style_code_means_nothing() -> None:
    """PixelNorm comes first: 1e-8 beside a mean square of about 1 is what is left of it."""
    for dtype in (torch.float64, torch.float32):
        g = generator(dtype)
        z, style = codes(2, dtype=dtype), codes(2, 1, dtype)
        one, three = (g(z, factor * style, 0, randomize_noise=False)[0] for factor in (1, 3))
        assert float((one - three).abs().max()) < 2e-5 * max(1.0, float(one.abs().max()))
        assert float((g(z, -style, 0, randomize_noise=False)[0] - one).abs().max()) > 1e-3


@torch.no_grad()
def test_truncation_concerns_faces_only() -> None:
    g = generator()
    z, style, mean = codes(2), codes(2, 1), codes(1, 2)
    found = g(z, style, 4, truncation=0.75, truncation_latent=mean, return_latents=True, randomize_noise=False)[1]
    w = mean + 0.75 * (g.get_latent(z) - mean)
    expected = blend(w, g.embed(style), g.add_weight.flatten(), 4)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_shares_are_held_within_0_and_1_and_get_gradients_beyond() -> None:
    g = generator()
    with torch.no_grad():
        g.add_weight.copy_(torch.linspace(-1, 2, L)[None, :, None])
    wanted = g.add_weight.detach().clone().clamp(0, 1)
    assert torch.equal(g.face_share, wanted.flatten())
    g.face_share.square().sum().backward()
    torch.testing.assert_close(g.add_weight.grad, 2 * wanted, rtol=0, atol=0)
    g.project()
    assert torch.equal(g.add_weight.detach(), wanted)


def test_training_begins_with_a_generator_of_faces() -> None:
    g = build_generator(tiny_config())
    assert g.add_weight.shape == (1, L, 1) and bool((g.add_weight == 1).all())
    z, style = torch.randn(2, 32), torch.randn(2, 32)
    with torch.no_grad():
        natural = g(z, randomize_noise=False, return_latents=True)[0]
        assert torch.equal(g(z, style, 0, randomize_noise=False)[0], natural)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_share_of_the_style_at_first_is_a_setting(alpha: float) -> None:
    """And it is all that depends on it."""
    found, usual = (networks(tiny_config(alpha=a)) for a in (alpha, 0.5))
    share = found["G"].get_parameter("add_weight").detach()
    torch.testing.assert_close(share, torch.full((1, L, 1), 1 - alpha), rtol=EPS32, atol=0)
    for name, net in found.items():
        for key, value in net.named_parameters():
            assert key == "add_weight" or torch.equal(value, usual[name].get_parameter(key)), key


def test_every_weight_of_the_generator_gets_a_gradient_from_both_kinds_at_once() -> None:
    """Also where the shares are 1, as at the beginning: the style's mapping through no share, so but for that."""
    g = generator()
    image, _ = g(codes(2).repeat(2, 1), codes(2, 1).repeat(2, 1), torch.tensor([L, L, 0, 0]))
    image.square().mean().backward()
    for name, value in g.named_parameters():
        assert value.grad is not None and bool(value.grad.any()), name


def test_style_codes_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"z_style has shape \(2, 17\), expected \[N, 16\]"):
        generator()(codes(2), torch.zeros(2, 17).double())


# --- discriminators


@pytest.mark.parametrize("normalised", [False, True])
@torch.no_grad()
def test_the_discriminator_of_style_codes(normalised: bool) -> None:
    """Section 3.3: maps are summed over 4 x 4, h; the score is linear in h, plus <linear of z_s, h>."""
    torch.manual_seed(0)
    d = ProjectionDiscriminator(64, 16, 1.0, base_channels=8, normalised=normalised).double()
    for layer in (d.l_out, d.l_style):
        nn.init.normal_(layer.bias)
    x, z = torch.randn(3, 3, 64, 64).double(), 5 * codes(3)
    h = d.features(x)
    assert h.shape == (3, 8, 4, 4)
    h = h.flatten(2).sum(2)
    z_seen = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt() if normalised else z
    out = h @ (d.l_out.weight / math.sqrt(8)).T + d.l_out.bias
    out = out + ((z_seen @ (d.l_style.weight / 4).T + d.l_style.bias) * h).sum(1, keepdim=True)
    torch.testing.assert_close(d(x, z), out, rtol=1e-12, atol=1e-12)
    assert torch.equal(d(x, z), d.score(d.summed(x), z))
    longer = float((d(x, 3 * z) - d(x, z)).abs().min())
    assert longer < 1e-6 if normalised else longer > 1e-3


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 8])
@torch.no_grad()
def test_discriminators_of_any_batch(batch: int) -> None:
    """Samples are compared within groups of the largest divisor up to 4; one alone has the deviation 1e-4."""
    torch.manual_seed(0)
    face = Discriminator(64, 1.0, base_channels=8).double()
    latent = ProjectionDiscriminator(64, 16, 1.0, base_channels=8).double()
    x = torch.randn(batch, 3, 64, 64).double()
    group = max(g for g in (1, 2, 3, 4) if batch % g == 0)
    for net in (face, latent):
        trunk = net.convs(x)
        view = trunk.view(group, batch // group, *trunk.shape[1:])
        std = ((view - view.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
        if batch == 1:
            assert float(std) == pytest.approx(1e-4, rel=1e-12)
        extra = std.repeat(group).view(batch, 1, 1, 1).expand(-1, 1, 4, 4)
        expected = net.final_conv(torch.cat([trunk, extra], 1))
        torch.testing.assert_close(net.features(x), expected, rtol=1e-11, atol=1e-11)
    assert face(x).shape == latent(x, codes(batch)).shape == (batch, 1)


@pytest.mark.parametrize("kind", [Discriminator, ProjectionDiscriminator])
@torch.no_grad()
def test_batches_are_judged_at_once_and_compared_within_each(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    d: Any = kind(64, *(() if kind is Discriminator else (16,)), channel_multiplier=1.0, base_channels=8).double()
    one, other = torch.randn(3, 3, 64, 64).double(), torch.randn(2, 3, 64, 64).double() / 4
    together = d.features(torch.cat([one, other]), [3, 2])
    torch.testing.assert_close(together, torch.cat([d.features(one), d.features(other)]), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(d.features(torch.cat([one, other])), together, rtol=1e-3)


def saved_by(call: Any, batch: int) -> tuple[Tensor, int]:
    """What a call gives, and how many numbers of maps it keeps for the gradient."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if value.dim() == 4 and len(value) == batch:  # not a weight
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = call()
    return out, sum(kept.values())


@pytest.mark.parametrize("given", [True, False], ids=["noise given", "noise drawn"])
def test_networks_that_compute_again_keep_less(given: bool) -> None:
    """The same gradients bit for bit, also with noise that is drawn; borders of sizes only in memory."""
    nets = networks(tiny_config(style_dim=16))
    g, d_face, d_latent = (nets[name] for name in ("G", "D_face", "D_latent"))
    assert isinstance(g, Generator)
    source = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, 1, x.shape[-1], x.shape[-1], generator=source) for x in g.make_noise()] if given else None
    with torch.no_grad():
        for layer in (g.conv1, *g.convs):
            layer.noise.weight.fill_(0.3)  # type: ignore[union-attr,operator]
    z, style, index = codes(3, 0, torch.float32), codes(3, 1, torch.float32), torch.tensor([L, 0, 4])
    w = g.codes(g.get_latent(z), style, index).detach().requires_grad_()
    found, kept = [], []
    for on in (False, True):
        for net in nets.values():
            net.recompute = on  # type: ignore[assignment]
        torch.manual_seed(7)
        image, numbers = saved_by(lambda: g.render(w, noise), 3)
        score, more = saved_by(lambda: d_face(image).sum() + d_latent(image, style).sum(), 3)  # noqa: B023
        parameters = [p for net in (g, d_face, d_latent) for p in net.parameters() if p is not g.add_weight]
        parameters = [p for p in parameters if not any(p is q for m in (g.style, g.embedding) for q in m.parameters())]
        found.append([image, *torch.autograd.grad(score, [w, *parameters])])
        kept.append((numbers, more))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert kept[1][0] < kept[0][0] / 2 and kept[1][1] < kept[0][1] / 2


# --- sizes


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("size", "synthesis", "d", "d_latent", "psp"),
    [
        (256, 27_933_090, 28_864_129, 24_931_969, 209_450_688),
        (512, 28_175_335, 28_982_849, 25_050_689, 238_293_696),
        (1024, 28_268_812, 29_012_513, 25_080_353, 267_136_704),
    ],
)
def test_parameters_of_the_published_networks(size: int, synthesis: int, d: int, d_latent: int, psp: int) -> None:
    """Section 3, counted in the authors' modules."""
    config = make(values={"size": size})
    assert config.n_latent == 2 * int(math.log2(size)) - 2
    with torch.device("meta"):
        g = build_generator(config)
        assert count(g) == synthesis + 2 * 2_101_248 + config.n_latent
        assert count(g.style) == count(g.embedding) == 2_101_248
        assert (count(build_discriminator(config)), count(build_latent_discriminator(config))) == (d, d_latent)
        assert count(PSPEncoder(config.n_latent)) == psp


def test_parameters_of_the_published_style_encoder() -> None:
    config = make()
    with torch.device("meta"):
        full, folded = (build_style_encoder(dataclasses.replace(config, folded=f)) for f in (False, True))
        assert count(full.embedder) == count(folded.embedder) == 20_024_384
        assert (count(full.embedder_mlp), full.first_weight.numel()) == (313_264_128, 312_475_648)
        assert full.first_weight.shape == (512, 610_304) and folded.first_weight.shape == (512, 305_888)
        assert count(Projector()) == 525_312 and len(Projector().projector) == 2
    assert full.embedder_mlp[0].scale == folded.embedder_mlp[0].scale == 610_304**-0.5
    assert [layer.act for layer in full.embedder_mlp] == [True, True, True, False]  # type: ignore[union-attr]


# --- the style encoder


def encoders(side: int = 32) -> tuple[StyleEncoder, StyleEncoder]:
    """One with whole Gram matrices and the same folded, in float64."""
    backbone = load_backbone("random").double()
    torch.manual_seed(0)
    full, folded = (StyleEncoder(backbone, side, 8, 2, folded=f).double() for f in (False, True))
    state = dict(full.state_dict())
    name = "embedder_mlp.0.weight"
    folded.load_state_dict(state | {name: fold_weight(state[name], full.embedder.channels)})
    return full, folded


@torch.no_grad()
def test_folded_is_the_same_function() -> None:
    full, folded = encoders()
    for layer in (*full.embedder_mlp, *folded.embedder_mlp):
        layer.bias.copy_(torch.arange(8) / 8)  # type: ignore[union-attr,operator]
    x = torch.rand(3, 3, 32, 32).double() * 2 - 1
    assert full.folded is False and folded.folded is True
    one, other = full(x), folded(x)
    grams = full.grams(x)
    assert grams.shape[1] == full.first_weight.shape[1] and folded.grams(x).shape[1] == folded.first_weight.shape[1]
    # a sum of many thousand products in two orders: their rounding errors add up like the root of their number
    terms = (grams.abs() @ full.first_weight.abs().T).max() * full.embedder_mlp[0].scale  # type: ignore[operator]
    assert float((one - other).abs().max()) <= 8 * EPS64 * math.sqrt(grams.shape[1]) * float(terms)
    assert float((one[0] - one[1]).abs().max()) > 1e-6
    back = unfold_weight(folded.first_weight, full.embedder.channels)
    start = 0
    for channels in full.embedder.channels:
        part = back[:, start : start + channels**2].unflatten(1, (channels, channels))
        assert torch.equal(part, part.transpose(1, 2))
        start += channels**2


def test_folded_weights_begin_with_the_variance_of_the_sums_they_stand_for() -> None:
    folded = build_style_encoder(tiny_config(), load_backbone("random"))
    steps = folded_steps(folded.embedder.channels)
    for factor in (1, 2):
        values = folded.first_weight.detach()[:, steps == factor].double()
        assert abs(float(values.square().mean()) - factor) < 5 * factor * math.sqrt(2 / values.numel())


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 47, 80), (1, 3, 5, 64), (1, 3, 300, 301)])
@torch.no_grad()
def test_style_pictures_of_any_size(shape: tuple[int, ...]) -> None:
    """They are pooled to the encoder's square."""
    encoder = build_style_encoder(tiny_config(), load_backbone("random"))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = encoder(x)
    assert found.shape == (shape[0], 32) and found.dtype == torch.float32
    assert torch.equal(found, encoder(F.adaptive_avg_pool2d(x, 32)))


def test_a_grey_style_picture_is_told_how_to_become_one() -> None:
    encoder = build_style_encoder(tiny_config(), load_backbone("random"))
    with pytest.raises(ValueError, match=r"expected N,3,H,W; for grayscale pictures give"):
        encoder(torch.zeros(1, 1, 32, 32))


def test_the_backbone_of_the_style_encoder_asks_for_no_gradient() -> None:
    encoder = build_style_encoder(tiny_config(), load_backbone("random"))
    assert not any(p.requires_grad for p in encoder.embedder.parameters())
    x = torch.rand(2, 3, 32, 32)
    assert not encoder.grams(x).requires_grad and encoder(x).requires_grad


@torch.no_grad()
def test_codes_and_projections_are_computed_in_float32() -> None:
    encoder, head = build_style_encoder(tiny_config(), load_backbone("random")), Projector(32)
    grams = torch.rand(2, encoder.embedder.width)
    expected = head(encoder.codes(grams))
    with torch.autocast("cpu", torch.bfloat16):
        found = head(encoder.codes(grams))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# --- views


def smooth(number: int, size: int, seed: int = 0) -> Tensor:
    """Pictures in [-1, 1] without sharp edges."""
    values = torch.rand(number, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


STILL: dict[str, Any] = {"least_area": 1.0, "aspect": 1.0, "degrees": 0.0, "shift": 0.0, "scale": 0.0, "shear": 0.0}


def still(**changes: Any) -> Config:
    """Views that show the whole picture, mirrored half of the time, but for `changes`."""
    return tiny_config(**STILL | changes)


def inside_out(matrix: Tensor, side: int) -> Tensor:
    """Views are mirrored last: those that are, mirrored back, as maps of coordinates around the centre [N,3,3]."""
    center = (side - 1) / 2
    to = torch.tensor([[1, 0, -center], [0, 1, -center], [0, 0, 1]]).double()
    back = torch.tensor([[1, 0, center], [0, 1, center], [0, 0, 1]]).double()
    found = to @ matrix @ back
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0])).double()
    return torch.where((torch.linalg.det(found) < 0)[:, None, None], mirror @ found, found)


def uniform(values: Tensor, low: float, high: float) -> None:
    """Within the range and, within 5 standard deviations, with the mean and variance of a uniform distribution."""
    n, x = len(values), (values - (low + high) / 2) / ((high - low) / 2)
    assert float(x.abs().max()) <= 1 + 1e-9 and float(x.abs().max()) > 1 - 20 / n
    assert abs(float(x.mean())) < 5 / math.sqrt(3 * n)
    assert abs(float(x.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def test_ranges_of_views() -> None:
    """Each setting alone, read back from the matrices."""
    number, side = 8000, 64
    seeds, identity = torch.arange(number) * 3 + 2**40, torch.eye(3).double()

    def found(**changes: Any) -> Tensor:
        matrix = matrices(seeds, still(**changes), side)
        assert matrix.shape == (number, 3, 3) and matrix.dtype == torch.float64
        return inside_out(matrix, side)

    mirrored = (torch.linalg.det(matrices(seeds, still(), side)) < 0).double().mean()
    assert abs(float(mirrored) - 0.5) < 5 * math.sqrt(0.25 / number)
    torch.testing.assert_close(found(), identity.expand(number, -1, -1), rtol=0, atol=1e-11)
    turned = found(degrees=15.0)
    uniform(torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0])), -15, 15)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(number).double())
    sheared = found(shear=10.0)
    uniform(torch.rad2deg(torch.atan(sheared[:, 0, 1])), -10, 10)
    torch.testing.assert_close(sheared[:, 1, :2], identity[1, :2].expand(number, -1), rtol=0, atol=1e-11)
    enlarged = found(scale=0.1)
    uniform(enlarged[:, 0, 0], 0.9, 1.1)
    torch.testing.assert_close(enlarged[:, 0, 0], enlarged[:, 1, 1])
    moved = found(shift=0.1)
    for axis in (0, 1):
        uniform(moved[:, axis, 2].abs(), 0, 6.4)
        assert abs(float(moved[:, axis, 2].sign().mean())) < 5 / math.sqrt(number)
    for axis in (0, 1):  # the part that is shown: its area is uniform, its place is uniform within the picture
        cut = found(least_area=0.5)
        part = 1 / cut[:, 0, 0]
        uniform(part.square(), 0.5, 1.0)
        torch.testing.assert_close(cut[:, 0, 0], cut[:, 1, 1])
        center = -cut[:, axis, 2] * part / side  # of the part, from the picture's
        room = (1 - part) / 2
        uniform((center / room)[room > 1e-3], -1, 1)


def test_parts_of_pictures_are_stretched_as_far_as_they_fit() -> None:
    number, side = 8000, 64
    matrix = matrices(torch.arange(number), still(least_area=0.5, aspect=4 / 3), side)
    cut = inside_out(matrix, side)
    wide, high = 1 / cut[:, 0, 0], 1 / cut[:, 1, 1]
    assert float(torch.maximum(wide, high).max()) <= 1 + 1e-12
    uniform(wide * high, 0.5, 1.0)
    aspect = (wide / high).log()
    assert float(aspect.abs().max()) <= math.log(4 / 3) + 1e-12
    small = (wide * high) < 0.75  # there every stretch fits
    uniform(aspect[small], -math.log(4 / 3), math.log(4 / 3))
    # no part reaches beyond the picture
    for matrix, axis in ((cut, 0), (cut, 1)):
        center, half = -matrix[:, axis, 2] / matrix[:, axis, axis] / side, 0.5 / matrix[:, axis, axis]
        assert float((center.abs() + half).max()) <= 0.5 + 1e-12


def test_views_do_not_touch_colours() -> None:
    """Affine in pixels' values, alike in each channel; and what is outside a picture is no border of another colour."""
    config, seeds = tiny_config(), torch.arange(24)
    plain = torch.tensor([0.9, -0.3, 0.5])[:, None, None].expand(24, 3, 32, 32)
    # four weights that add up to 1 but for rounding
    torch.testing.assert_close(views(plain.contiguous(), seeds, config), plain, rtol=0, atol=8 * EPS32)
    images = smooth(1, 32).expand(24, -1, -1, -1).contiguous()
    found = views(images, seeds, config)
    torch.testing.assert_close(views(0.5 * images - 0.2, seeds, config), 0.5 * found - 0.2, rtol=0, atol=16 * EPS32)
    torch.testing.assert_close(views(images.flip(1), seeds, config), found.flip(1), rtol=0, atol=0)
    assert float(found.min()) >= float(images.min()) - 8 * EPS32
    assert float(found.max()) <= float(images.max()) + 8 * EPS32


def test_views_are_one_interpolation_of_their_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """out(p) = picture(matrix^-1 p), bilinear, reflected about the outer edges: pixel by pixel, on white noise."""
    config, side = tiny_config(), 16
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds, calls = torch.arange(6) + 5, []
    warp = geometry.warp
    monkeypatch.setattr(geometry, "warp", lambda *args, **named: (calls.append(named), warp(*args, **named))[1])
    found = views(images, seeds, config)
    assert len(calls) == 1 and found.shape == images.shape and found.dtype == torch.float32

    def reflected(place: float) -> float:
        place = (place + 0.5) % (2 * side)
        return min(place, 2 * side - place) - 0.5

    outside = 0
    for image, matrix, out in zip(images.double(), matrices(seeds, config, side), found, strict=True):
        inverse = torch.linalg.inv(matrix)
        for row in range(side):
            for column in range(side):
                x, y, _ = (inverse @ torch.tensor([column, row, 1.0]).double()).tolist()
                outside += not (-0.5 <= x <= side - 0.5 and -0.5 <= y <= side - 0.5)
                x, y = (min(max(reflected(v), 0.0), side - 1.0) for v in (x, y))
                left, top = min(int(x), side - 2), min(int(y), side - 2)
                dx, dy = x - left, y - top
                value = (1 - dy) * ((1 - dx) * image[:, top, left] + dx * image[:, top, left + 1])
                value = value + dy * ((1 - dx) * image[:, top + 1, left] + dx * image[:, top + 1, left + 1])
                # float32 coordinates: four roundings of numbers up to 2, half a side of pixels each, slopes up to 2
                assert float((value - out[:, row, column]).abs().max()) <= 2 * 2 * 4 * EPS32 * side / 2 * 2
    assert outside > 50


def test_the_number_of_a_view_decides_everything() -> None:
    config, images = tiny_config(), smooth(5, 32)
    seeds = torch.tensor([5, 3, 3, 2**62, 0])
    whole, order = views(images, seeds, config), torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(views(images[order], seeds[order], config), whole[order])
    assert torch.equal(views(images[2:3], seeds[2:3], config)[0], whole[2])
    same = views(images[:1].expand(5, -1, -1, -1), seeds, config)
    assert torch.equal(same[1], same[2]) and not torch.equal(same[0], same[1])


# --- optimisers


class Mirrored(nn.Module):
    """A predictor over two symmetric matrices of 5 and 3 numbers a side, whole or folded."""

    CHANNELS = (5, 3)

    def __init__(self, folded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        whole = torch.randn(6, sum(c * c for c in self.CHANNELS)).double()
        self.first = nn.Parameter(fold_weight(whole, self.CHANNELS) if folded else whole)
        self.rest = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        self.folded = folded

    def forward(self, x: list[Tensor]) -> Tensor:
        parts = []
        for maps in x:
            gram = maps @ maps.transpose(1, 2)
            rows, columns = torch.triu_indices(maps.shape[1], maps.shape[1])
            parts.append(gram[:, rows, columns] if self.folded else gram.flatten(1))
        out: Tensor = self.rest(torch.tanh(torch.cat(parts, 1) @ self.first.T * 0.2))
        return out


def trained(net: Mirrored, optimizer: torch.optim.Optimizer, steps: int = 40) -> Tensor:
    """The folded weight after steps on random maps."""
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = [torch.randn(4, c, 7, generator=source).double() for c in net.CHANNELS]
        target = torch.randn(4, 2, generator=source).double()
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    weight = net.first.detach()
    return weight if net.folded else fold_weight(weight, net.CHANNELS)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_folded_predictor_trains_as_the_whole_one(beta: float) -> None:
    """40 steps of Adam in float64. What one rounding of each weight leads to in these steps is measured; the two forms
    add up in another order in some ten sums behind one another in each step, whose errors add up like the root of
    their number, 16."""
    settings: dict[str, Any] = {"lr": 2e-3, "betas": (beta, 0.99)}
    whole, near, folded = Mirrored(False), Mirrored(False), Mirrored(True)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in near.parameters():
            value.mul_(1 + EPS64 * (torch.randint(0, 2, value.shape, generator=source).double() * 2 - 1))
    begun = folded.first.detach().clone()
    truth = trained(whole, torch.optim.Adam(whole.parameters(), **settings))
    usual = float((trained(near, torch.optim.Adam(near.parameters(), **settings)) - truth).abs().max())
    factors = folded_steps(folded.CHANNELS)
    ours = FoldedAdam(list(folded.parameters()), settings["lr"], settings["betas"], {folded.first: factors})
    found = trained(folded, ours)
    moved = float((truth - begun).abs().max())
    assert float((found - truth).abs().max()) <= 16 * usual < 1e-10 * moved
    plain = Mirrored(True)
    other = trained(plain, torch.optim.Adam(plain.parameters(), **settings))
    assert float((other - truth).abs().max()) > 0.1 * moved  # equal steps would be something else


def test_columns_of_a_folded_weight_move_by_one_or_two_steps() -> None:
    """In float32, and of more rows than are done at once; other weights are Adam's."""
    torch.manual_seed(0)
    weight, other = nn.Parameter(torch.randn(70, 4)), nn.Parameter(torch.randn(3))
    before = weight.detach().clone()
    factors = torch.tensor([1.0, 2.0, 2.0, 1.0])
    ours = FoldedAdam([weight, other], 0.01, (0.0, 0.99), {weight: factors})
    plain = [nn.Parameter(x.detach().clone()) for x in (weight, other)]
    adam = torch.optim.Adam(plain, lr=0.01, betas=(0.0, 0.99))
    for values in ([weight, other], plain):
        for value in values:
            value.grad = torch.linspace(-1, 1, value.numel()).view(value.shape)
    ours.step()
    adam.step()
    # the step itself is exact to a few roundings; both are found as differences of numbers up to 4
    step = plain[0].detach() - before
    torch.testing.assert_close(weight.detach() - before, step * factors, rtol=8 * EPS32, atol=4 * 4 * EPS32)
    torch.testing.assert_close(other, plain[1], rtol=0, atol=2 * EPS32)
    other.grad = weight.grad = None
    ours.step()  # nothing to do


def centred(gradient: Tensor) -> Tensor:
    if gradient.dim() == 1:
        return gradient
    return gradient - gradient.flatten(1).mean(1).view(-1, *[1] * (gradient.dim() - 1))


def plain_ranger(start: Tensor, gradients: list[Tensor], lr: float) -> tuple[list[Tensor], list[bool]]:
    """RAdam of centred gradients and lookahead, as section 5 has them; and which steps were rectified."""
    b1, b2, eps = 0.95, 0.999, 1e-5
    p, slow, m, v = start.clone(), start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    most = 2 / (1 - b2) - 1
    found, rectified = [], []
    for t, gradient in enumerate(gradients, start=1):
        g = centred(gradient)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        n = most - 2 * t * b2**t / (1 - b2**t)
        if n > 5:
            r = math.sqrt((n - 4) / (most - 4) * (n - 2) / n * most / (most - 2))
            p = p - lr * math.sqrt(1 - b2**t) * r / (1 - b1**t) * m / (v.sqrt() + eps)
        else:
            p = p - lr / (1 - b1**t) * m
        if t % 6 == 0:
            slow = slow + 0.5 * (p - slow)
            p = slow.clone()
        found.append(p)
        rectified.append(n > 5)
    return found, rectified


def ranger_problem(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    source = torch.Generator().manual_seed(0)
    shapes = [(5,), (4, 3), (3, 2, 3, 3)]
    parameters = [nn.Parameter(torch.randn(shape, generator=source).to(dtype)) for shape in shapes]
    return parameters, [[torch.randn(shape, generator=source).to(dtype) for shape in shapes] for _ in range(14)]


def test_ranger_is_that_of_the_specification() -> None:
    """14 steps: five without rectification, which begins when N_sma passes 5; lookahead behind the 6th and the 12th."""
    parameters, gradients = ranger_problem()
    expected = [plain_ranger(p.detach(), [row[k] for row in gradients], 0.1) for k, p in enumerate(parameters)]
    assert expected[0][1] == [False] * 5 + [True] * 9
    optimizer = Ranger(parameters, 0.1)
    for t, row in enumerate(gradients):
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for parameter, (wanted, _) in zip(parameters, expected, strict=True):
            # some 16 roundings a step of numbers up to 4; N_sma is a difference of numbers around 2000, so that the
            # first rectified step, where it is 5 - 4, has 2000 of them
            torch.testing.assert_close(parameter.detach(), wanted[t], rtol=0, atol=4 * 16 * (t + 1) * EPS64 * 2000)
    assert not torch.equal(
        expected[1][0][0], plain_ranger(parameters[1].detach(), [row[1] for row in gradients], 0.1)[0][0]
    )


@pytest.mark.parametrize("at", [1, 4, 6, 9])
def test_ranger_goes_on_from_a_checkpoint(at: int) -> None:
    """Bit for bit, through a file."""
    parameters, gradients = ranger_problem(torch.float32)
    optimizer = Ranger(parameters, 0.1)
    again: list[nn.Parameter] = []
    other: Ranger | None = None
    for t, row in enumerate(gradients):
        if t == at:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            again = [nn.Parameter(p.detach().clone()) for p in parameters]
            other = Ranger(again, 0.1)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        for values, one in ((parameters, optimizer), (again, other)):
            if one is not None:
                for value, gradient in zip(values, row, strict=True):
                    value.grad = gradient.clone()
                one.step()
    assert all(torch.equal(one, two) for one, two in zip(parameters, again, strict=True))


# --- the queue


def test_the_queue_is_first_in_first_out() -> None:
    given = torch.arange(5.0)[:, None].repeat(1, 2)
    queue = Queue(given)
    given += 100  # a copy was taken
    queue.put(torch.full((2, 2), 10.0))
    assert queue.codes[:, 0].tolist() == [10, 10, 2, 3, 4]
    queue.put(torch.full((2, 2), 11.0))
    queue.put(torch.full((2, 2), 12.0))
    assert queue.codes[:, 0].tolist() == [12, 10, 11, 11, 12]
    queue.put(torch.arange(20.0, 27.0)[:, None].repeat(1, 2))  # more than it holds: the last ones stay
    assert sorted(queue.codes[:, 0].tolist()) == [22, 23, 24, 25, 26]
    queue.put(torch.full((1, 2), 30.0))
    assert sorted(queue.codes[:, 0].tolist()) == [23, 24, 25, 26, 30]
    code = torch.ones(1, 2, requires_grad=True)
    queue.put(code * 2)
    assert not queue.codes.requires_grad


def test_codes_of_the_queue_come_as_often_as_one_another() -> None:
    queue = Queue(torch.arange(7.0)[:, None])
    numbers = (torch.arange(7000).double() + 0.5) / 7000
    assert torch.bincount(queue.get(numbers)[:, 0].long()).tolist() == [1000] * 7
    edges = torch.tensor([0.0, 1 - 2.0**-24, 1 - 2.0**-53], dtype=torch.float64)
    assert queue.get(edges)[:, 0].tolist() == [0, 6, 6]
    assert queue.get(edges.float())[:, 0].tolist() == [0, 6, 6]  # the last one is 1 in float32
    found = queue.get(torch.zeros(1))
    found += 1
    assert float(queue.codes[0]) == 0  # a copy


def test_the_queue_goes_on_from_a_checkpoint() -> None:
    queue, other = Queue(torch.randn(5, 3)), Queue(torch.zeros(5, 3))
    queue.put(torch.ones(3, 3))
    other.load_state_dict(copy.deepcopy(queue.state_dict()))
    for one in (queue, other):
        one.put(torch.full((3, 3), 2.0))
    assert torch.equal(queue.codes, other.codes) and queue.next == other.next == 1
    with pytest.raises(CheckpointError, match=r"queue holds codes of shape \(5, 3\), expected \(4, 3\)"):
        Queue(torch.zeros(4, 3)).load_state_dict(queue.state_dict())


# --- face recognition


@torch.no_grad()
def test_face_recognition_sees_the_face_alone() -> None:
    """Rows 35 to 222 and columns 32 to 219, pooled to 112 x 112 (section 4); its vectors have length 1."""
    torch.manual_seed(0)
    net = FaceRecognition().eval()
    x = torch.rand(2, 3, 256, 256) * 2 - 1
    seen: list[Tensor] = []
    net.input_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = net(x)
    assert found.shape == (2, 512)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2), rtol=8 * EPS32, atol=0)
    assert torch.equal(seen[0], F.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], 112))


# --- memory and settings


def test_memory_of_the_published_style_encoder() -> None:
    """Weight, gradient and two moments of 157 million numbers are 2.3 GiB; whole matrices take twice that.

    Several processes have the gradient once more, on its way. A picture is two Gram vectors, and two views of three
    channels, before and after the warp, with the two coordinates where each pixel is taken from.
    """
    folded, full = (dataclasses.replace(make(), folded=f) for f in (True, False))
    for config, first in ((folded, 156_614_656), (full, 312_475_648)):
        trained = first + 313_264_128 - 312_475_648
        weights = 4 * (4 * trained + 20_024_384) / 2**30
        needed = memory_estimate(config, 1)
        assert weights < needed < weights + 0.5
        assert memory_estimate(config, 1, world=2) - needed == pytest.approx(4 * trained / 2**30, rel=1e-9)
        picture = 4 * 2 * (first / 512 + 256 * 256 * (3 + 3 + 2)) / 2**30
        assert memory_estimate(config, 65) - needed == pytest.approx(64 * picture, rel=1e-9)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_batch_that_memory_holds(world: int) -> None:
    """The largest power of 2 whose estimate is not above what is free; 256 and two pictures a process are the ends."""
    config = make()
    for batch in (4 * world, 32, 128):
        needed = memory_estimate(config, batch // world, world=world)
        assert fitting_batch(config, needed, "cpu", world) == batch
        assert fitting_batch(config, needed - 1e-6, "cpu", world) == batch // 2
    assert fitting_batch(config, 1e6, "cpu", world) == 256 and fitting_batch(config, 0.0, "cpu", world) == 2 * world


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 96}, "setting size: 96 is not one of 64, 128"),
        ({"psp_side": 100}, "psp_side: 100 is no multiple of 16"),
        ({"style_dim": 64, "psp_iterations": 5}, "codes of 512 numbers, not 64; take --style-dim 512 or"),
        ({"channel_multiplier": 0.05}, "too few channels at 64 pixels; take at least"),
        ({"style_batch": 1}, "style_batch: 1 has no other picture"),
        ({"one_shot": "art.png"}, "adapts a trained generator; give --start-from"),
        ({"backbone_weights": "vgg.pth"}, "the backbone random takes no file"),
        ({"lpips_weights": "alex.pth"}, "lpips_net random takes no file"),
        ({"identity_weights": "ir.pth"}, "face recognition looks at 256 pixels, not 32"),
        ({"latent_loss": "both"}, "latent_loss"),
        ({"temperature": 0.0}, "temperature"),
        ({"codes": "queue"}, "codes"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        tiny_config(**changes)


def test_presets() -> None:
    """Section 5's table: the numbers of the paper; the style encoder's batch is 256, where memory holds that."""
    assert next(iter(PRESETS)) == "paper"
    c = make()
    assert (c.size, c.batch, c.iterations, c.style_batch, c.style_iterations) == (1024, 8, 200_000, 0, 500_000)
    assert (c.lr, c.style_lr, c.r1, c.r1_every, c.path_length, c.path_every) == (2e-3, 2e-3, 10.0, 16, 2.0, 4)
    assert (c.mixing, c.temperature, c.queue, c.latent_loss, c.path_shrink) == (0.9, 0.1, 1024, "paper", 2)
    assert (c.lambda_face, c.lambda_style, c.lambda_latent) == (1.0, 1.0, 1.0)
    assert c.ema == pytest.approx(0.5 ** (32 / 10_000), abs=5e-7)
    assert (c.psp_lr, c.psp_batch, c.lambda_l2, c.lambda_lpips, c.lambda_id, c.lambda_w) == (1e-4, 8, 1, 0.8, 0.1, 0)
    assert (c.backbone, c.style_side, c.style_mlp, c.projection, c.codes) == ("vgg19", 256, 4, 2, "table")
    assert make("small").size == 64 and make("ffhq256").n_latent == 14


def test_settings_survive_a_checkpoint() -> None:
    c = tiny_config(seed=5, latent_loss="matching")
    file = io.BytesIO()
    torch.save(header(c), file)
    file.seek(0)
    assert config_of(torch.load(file, weights_only=True)) == c

"""The parts of GANs N' Roses' training against the formulas of its specification: losses, augmentation, networks."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.errors import AnifastError
from anifast.systems.gnr import augmentation
from anifast.systems.gnr.augmentation import augment
from anifast.systems.gnr.checkpoints import config_of, header
from anifast.systems.gnr.config import PRESETS, SIZES, Config, make
from anifast.systems.gnr.losses import adversarial, distance, gradient_penalty, style_consistency
from anifast.systems.gnr.networks import Discriminator, Generator, LatentDiscriminator, networks, recompute

TINY: dict[str, Any] = {"size": 64, "num_down": 3, "channel_multiplier": 1 / 64, "n_mlp": 2}


def config(**changes: Any) -> Config:
    return make("rel", TINY | changes)


def smooth(count: int, size: int, seed: int = 0, coarse: int = 4) -> Tensor:
    """Pictures in [-1, 1] without sharp edges."""
    values = torch.rand(count, 3, coarse, coarse, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


# --- losses


def test_adversarial_losses() -> None:
    """softplus(-+logit), each head by its own mean: a head with more positions does not count more."""
    heads = [torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[-1.0]])]
    real = (math.log(2) + math.log1p(math.exp(-2))) / 2 + math.log1p(math.exp(1))
    fake = (math.log(2) + math.log1p(math.exp(2))) / 2 + math.log1p(math.exp(-1))
    assert float(adversarial(heads, True)) == pytest.approx(real, rel=1e-6)
    assert float(adversarial(heads, False)) == pytest.approx(fake, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_penalty(reduction: str) -> None:
    """Of heads a x and b x^2 / 2 summed over positions: |d/dx|^2 is known, and heads are penalised one by one."""
    x = torch.randn(3, 2, 4, 5).double().requires_grad_()
    a, b = 0.7, -1.3
    heads = [a * x.sum((1, 2, 3)), b * x.square() / 2]
    penalty = gradient_penalty(heads, x, reduction)
    first, second = (3, x.numel()) if reduction == "mean" else (1, 1)
    expected = (a / first) ** 2 * 40 + (b / second) ** 2 * x.detach().square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(penalty, expected)
    (gradient,) = torch.autograd.grad(penalty, x)
    torch.testing.assert_close(gradient, (b / second) ** 2 * 2 * x.detach() / 3)


def test_style_consistency() -> None:
    codes = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, -2.0]]).double()
    assert float(style_consistency(codes)) == pytest.approx(1 + 0 + 4, abs=1e-12)
    cosine = (3 - 4) / math.sqrt(5 * 13)
    assert float(style_consistency(codes, "cosine")) == pytest.approx(2 * (1 - cosine), abs=1e-12)
    same = codes[:1].expand(5, -1)
    assert float(style_consistency(same)) == 0
    assert float(style_consistency(same * torch.arange(1, 6)[:, None], "cosine")) == pytest.approx(0, abs=1e-12)


def test_distances() -> None:
    x, y = torch.tensor([[0.0, 3.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    assert float(distance(x, y, "mse")) == 2.5 and float(distance(x, y, "l1")) == 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_have_float32_at_least(dtype: torch.dtype) -> None:
    """Half types are summed in float32; float64 stays what it is, so that a step can be held to rounding."""
    x = torch.randn(4, 8, dtype=dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    for value in (
        adversarial([x], True),
        adversarial([x], False),
        style_consistency(x),
        style_consistency(x, "cosine"),
        distance(x, x.detach() + 1, "mse"),
        distance(x, x.detach() + 1, "l1"),
    ):
        assert value.dtype == wide and value.shape == ()
        assert torch.autograd.grad(value, x)[0].dtype == dtype
    assert gradient_penalty([x.square()], x).dtype == dtype  # of its inputs, which are pictures


# --- augmentation


def sampled(images: Tensor, matrix: Tensor, outside: float) -> Tensor:
    """Bilinear pictures out(p) = image(matrix^-1 p), pixel by pixel, for one picture; beyond it is `outside`."""
    _, rows, columns = images.shape
    inverse = torch.linalg.inv(matrix)
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1) @ inverse.T
    px, py = points[..., 0], points[..., 1]
    padded = F.pad(images.double(), (1, 1, 1, 1), value=outside)
    left, top = px.floor(), py.floor()
    total = torch.zeros_like(images, dtype=torch.float64)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - (px - left - dx).abs()) * (1 - (py - top - dy).abs())
            i = (top + dy + 1).clamp(0, rows + 1).long()
            j = (left + dx + 1).clamp(0, columns + 1).long()
            total += weight * padded[:, i, j]
    return total


def two_steps(image: Tensor, draws: dict[str, float], size: int) -> Tensor:
    """The specification's four steps on one picture, with PyTorch's resize and slices."""
    center, turn = (size - 1) / 2, math.radians(draws["degrees"])
    to_center = torch.tensor([[1, 0, -center], [0, 1, -center], [0, 0, 1]]).double()
    back = torch.tensor([[1, 0, center], [0, 1, center], [0, 0, 1]]).double()
    s, cos, sin = draws["scale"], math.cos(turn), math.sin(turn)
    rotate_scale = torch.tensor([[s * cos, s * sin, 0], [-s * sin, s * cos, 0], [0, 0, 1]]).double()
    shear = torch.tensor([[1, math.tan(math.radians(draws["shear"])), 0], [0, 1, 0], [0, 0, 1]]).double()
    move = torch.tensor([[1, 0, draws["x"]], [0, 1, draws["y"]], [0, 0, 1]]).double()
    moved = sampled(image, move @ back @ rotate_scale @ shear @ to_center, 0.0)
    loaded = round(size * 286 / 256)
    large = F.interpolate(moved[None], size=(loaded, loaded), mode="bilinear", align_corners=False)[0]
    top, left = int(draws["top"]), int(draws["left"])
    cut = large[:, top : top + size, left : left + size]
    return cut.flip(2) if draws["flip"] else cut


def read_back(seeds: Tensor, c: Config) -> dict[str, Tensor]:
    """What the two matrices of each seed say that is done, and that they say nothing else."""
    affine, cut = augmentation.matrices(seeds, c)
    size, loaded, center = c.size, c.loaded, (c.size - 1) / 2
    assert affine.dtype == cut.dtype == torch.float64 and affine.shape == cut.shape == (len(seeds), 3, 3)
    linear = affine[:, :2, :2]
    # linear = scale * rotation * shear along x, which leaves the first column alone
    scale = linear[:, :, 0].norm(dim=1)
    degrees = torch.rad2deg(torch.atan2(-linear[:, 1, 0], linear[:, 0, 0]))
    shear = torch.rad2deg(torch.atan((linear[:, :, 0] * linear[:, :, 1]).sum(1) / scale.square()))
    torch.testing.assert_close(torch.linalg.det(linear), scale.square(), rtol=1e-9, atol=0)
    middle = torch.tensor([center, center, 1.0]).double()
    shift = (affine @ middle)[:, :2] - middle[:2]
    factor = loaded / size
    flipped = cut[:, 0, 0] < 0
    torch.testing.assert_close(cut[:, 0, 0].abs(), torch.full_like(scale, factor), rtol=1e-12, atol=0)
    torch.testing.assert_close(cut[:, 1, 1], torch.full_like(scale, factor), rtol=1e-12, atol=0)
    assert not cut[:, 0, 1].any() and not cut[:, 1, 0].any()
    offset = factor / 2 - 0.5  # of the resize with half-pixel centres
    x = torch.where(flipped, size - 1 - cut[:, 0, 2], cut[:, 0, 2])
    return {
        "scale": scale,
        "degrees": degrees,
        "shear": shear,
        "x": shift[:, 0],
        "y": shift[:, 1],
        "left": offset - x,
        "top": offset - cut[:, 1, 2],
        "flip": flipped.double(),
    }


def test_two_interpolations_are_those_of_the_specification() -> None:
    """By PyTorch's resize and slices, and an affine step written out; white noise, on which every pixel counts."""
    c = config(warp="twice", affine=0.7)
    images = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds = torch.arange(12) + 100
    found = augment(images, seeds, c)
    draws = read_back(seeds, c)
    assert 0 < int((draws["scale"] == 1).sum()) < 12 and 0 < int(draws["flip"].sum()) < 12
    for n, image in enumerate(images):
        one = {name: float(values[n]) for name, values in draws.items()}
        one["left"], one["top"] = round(one["left"]), round(one["top"])
        # float32 coordinates: four roundings of numbers up to 1, half a side of pixels each, slope 2; in two steps
        allowed = 2 * 4 * torch.finfo(torch.float32).eps * 64 / 2 * 2
        assert float((found[n].double() - two_steps(image, one, 64)).abs().max()) <= allowed, one


def test_draws_of_the_augmentation() -> None:
    """Ranges and, within 5 standard deviations, means, variances and probabilities; nothing hangs together."""
    c, count = config(), 20000
    draws = read_back(torch.arange(count) * 7 + 2**40, c)
    applied = draws["scale"] != 1
    assert abs(float(applied.double().mean()) - 0.5) < 5 * math.sqrt(0.25 / count)
    assert abs(float(draws["flip"].mean()) - 0.5) < 5 * math.sqrt(0.25 / count)
    for name, low, high in (
        ("scale", 0.8, 1.2),
        ("degrees", -20, 20),
        ("shear", -0.15, 0.15),
        ("x", -6.4, 6.4),
        ("y", -6.4, 6.4),
    ):
        identity = 1.0 if name == "scale" else 0.0
        torch.testing.assert_close(
            draws[name][~applied], torch.full_like(draws[name][~applied], identity), rtol=0, atol=1e-9
        )
        values = (draws[name][applied] - (low + high) / 2) / ((high - low) / 2)
        n = len(values)
        assert float(values.abs().max()) <= 1 + 1e-9 and float(values.abs().max()) > 1 - 20 / n
        assert abs(float(values.mean())) < 5 / math.sqrt(3 * n)
        # var(U(-1, 1)^2) = 4/45
        assert abs(float(values.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    for name in ("left", "top"):
        corners = draws[name].round()
        torch.testing.assert_close(draws[name], corners, rtol=0, atol=1e-9)
        places = c.loaded - c.size + 1
        assert places == 9
        often = torch.bincount(corners.long(), minlength=places)
        assert len(often) == places
        assert (abs(often / count - 1 / places) < 5 * math.sqrt((1 - 1 / places) / places / count)).all()
    columns = torch.stack([values[applied] for values in draws.values()], 1)
    columns = (columns - columns.mean(0)) / columns.std(0)
    together = columns.T @ columns / len(columns) - torch.eye(columns.shape[1])
    assert float(together.abs().max()) < 5.5 / math.sqrt(len(columns))


@pytest.mark.parametrize(("size", "loaded"), [(64, 72), (128, 143), (256, 286), (512, 572)])
def test_sizes_are_enlarged_as_256_to_286(size: int, loaded: int) -> None:
    c = config(size=size, channel_multiplier=1 / 32)
    assert c.loaded == loaded
    draws = read_back(torch.arange(500), c)
    assert float(draws["left"].min()) >= -1e-9 and float(draws["left"].max()) <= loaded - size + 1e-9
    assert float(draws["x"].abs().max()) <= 0.1 * size


def test_presets_have_the_ranges_of_their_sources() -> None:
    assert {name: make(name).scale for name in ("rel", "main", "new", "notes")} == {
        "rel": 0.2,
        "main": 0.2,
        "new": 0.2,
        "notes": 0.1,
    }


@pytest.mark.parametrize("warp", ["once", "twice"])
def test_without_the_affine_step_pictures_are_enlarged_and_cut(warp: str) -> None:
    c = config(warp=warp, affine=0.0)
    images, seeds = smooth(20, 64), torch.arange(20)
    found, draws = augment(images, seeds, c), read_back(seeds, c)
    large = F.interpolate(images, size=(72, 72), mode="bilinear", align_corners=False)
    for n in range(20):
        top, left = int(draws["top"][n].round()), int(draws["left"][n].round())
        cut = large[n, :, top : top + 64, left : left + 64]
        cut = cut.flip(2) if draws["flip"][n] else cut
        error = (found[n] - cut).abs().max()
        assert float(error) <= 2 * 4 * torch.finfo(torch.float32).eps * 64 / 2 * 2


def test_one_interpolation_is_close_to_two() -> None:
    """On smooth pictures, away from the grey around them.

    Linear interpolation between pixels errs by at most 1/8 of the second differences along each axis (times the step
    squared), so one and two of them differ by at most three such errors; the pictures below are waves of known size.
    """
    size, wave = 64, 2 * math.pi / 32
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    phases = torch.tensor([0.0, 1.0, 2.0]).double()[:, None, None]
    image = (torch.sin(wave * x + phases) * torch.cos(wave * y + 2 * phases)).float()
    images, seeds = image.expand(16, -1, -1, -1), torch.arange(16)
    once, twice = (augment(images, seeds, config(warp=how, affine=1.0)) for how in ("once", "twice"))
    ones = torch.ones_like(images)
    inside = augment(ones, seeds, config(warp="twice", affine=1.0)) > 1 - 1e-6
    inside &= augment(ones, seeds, config(warp="once", affine=1.0)) > 1 - 1e-6
    assert 0.5 < float(inside.double().mean()) < 1
    # a picture that was shrunk by 0.8 has waves that are shorter by as much
    error = 2 * wave**2 / 8
    allowed = error + error + 2 * (wave / 0.8) ** 2 / 8
    difference = (once - twice)[inside].abs()
    assert 1e-4 < float(difference.max()) <= allowed
    # away from the edges the two have the same geometry: a shift by half a pixel would be seen
    assert float(difference.max()) < wave / 2


def test_the_seed_of_a_picture_decides_everything() -> None:
    images, seeds = smooth(6, 64), torch.tensor([5, 3, 3, 2**62, 0, 1])
    c = config()
    whole = augment(images, seeds, c)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert torch.equal(augment(images[order], seeds[order], c), whole[order])
    assert torch.equal(augment(images[2:3], seeds[2:3], c)[0], whole[2])
    same = augment(images[:1].expand(6, -1, -1, -1), seeds, c)
    assert torch.equal(same[1], same[2]) and not torch.equal(same[0], same[1])
    assert whole.dtype == torch.float32 and float(whole.abs().max()) <= 1
    assert augment(images[:0], seeds[:0], c).shape == (0, 3, 64, 64)


def test_what_comes_from_outside_is_grey() -> None:
    c = config(affine=1.0, shift=1.0)
    colour = torch.tensor([1.0, -0.5, 0.25])[:, None, None]
    out = augment(colour.expand(50, 3, 64, 64), torch.arange(50), c)
    share = out[:, :1]  # of the picture in each pixel, the rest of which is grey
    assert float(share.min()) == 0 and float(share.max()) <= 1 + 1e-6
    assert float((out - share * colour).abs().max()) <= 1e-6


# --- settings and networks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 1}, "batch: 1 is too few.*at least 2"),
        ({"size": 100}, "size: 100 is not one of 64, 128, 256, 512"),
        ({"num_down": 5}, "64 pixels can be halved 4 times.*take --num-down 4"),
        ({"size": 512, "num_down": 8}, "512 pixels can be halved 7 times"),
        ({"channel_multiplier": 0.001}, "channel_multiplier"),
        ({"generator": "v3"}, "generator"),
        ({"ema": 1.0}, "ema"),
        ({"r1_reduction": "max"}, "r1_reduction"),
        ({"affine": 1.5}, "affine"),
        ({"batches": 2}, "batches"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        config(**changes)


def test_presets() -> None:
    """Section 4's two columns of losses and the versions' networks (table at its head)."""
    assert next(iter(PRESETS)) == "rel"
    found = {name: make(name) for name in ("rel", "main", "new", "notes")}
    assert {n: (c.generator, c.discriminator, c.num_down) for n, c in found.items()} == {
        "rel": ("v1", "v1.1", 4),
        "main": ("v1", "v1", 3),
        "new": ("v2", "v2", 4),
        "notes": ("v1", "v1.1", 4),
    }
    for c in found.values():
        assert (c.batch, c.steps, c.lr, c.ema, c.r1, c.r1_every, c.size) == (7, 300_000, 2e-3, 0.999, 10, 16, 256)
        assert (c.lambda_adv, c.lambda_cycle, c.lambda_lpips, c.lpips_net) == (1, 20, 10, "vgg")
    assert found["notes"].halve_every == 0 and found["rel"].halve_every == 100_000


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("version", ["v1", "v1.1", "v2"])
@torch.no_grad()
def test_shapes_of_logits(size: int, version: str) -> None:
    net = Discriminator(size, 1 / 64, version)
    local, whole, diversity = net(torch.randn(3, 3, size, size))
    side = 32 if version != "v2" else 16
    assert local.shape == (3, 1, side, side)
    assert whole.shape == ((3, 1) if version == "v2" else (3, 1, *[8 if version == "v1" else 16] * 2))
    assert diversity.shape == (3, 1)
    torch.testing.assert_close(diversity, diversity[:1].expand(3, -1))  # one value, but for rounding


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("num_down", [1, 3, 4])
@torch.no_grad()
def test_shapes_of_a_generator(size: int, num_down: int) -> None:
    net = Generator(size, num_down, latent_dim=5, n_mlp=2, channel_multiplier=1 / 64)
    x = torch.randn(2, 3, size, size)
    content, style = net.encode(x)
    side = size // 2**num_down
    assert content.shape[0] == 2 and content.shape[2:] == (side, side) and style.shape == (2, 5)
    out, same, code = net(x)
    assert out.shape == x.shape and torch.equal(same, content) and torch.equal(code, style)
    assert torch.equal(net(x, style.flip(0))[0], net.decode(content, style.flip(0)))
    w = net.get_latent(style)
    torch.testing.assert_close(net.decode(content, w, use_mapping=False), out)


@pytest.mark.parametrize(("n_res", "n_mlp", "lr_mlp"), [(2, 1, 0.01), (3, 4, 1.0)])
@torch.no_grad()
def test_options_of_networks(n_res: int, n_mlp: int, lr_mlp: float) -> None:
    nets = networks(config(n_res=n_res, n_mlp=n_mlp, lr_mlp=lr_mlp, latent_dim=3))
    g = nets["G_A2B"]
    assert isinstance(g, Generator) and isinstance(nets["D_L"], LatentDiscriminator)
    assert len(g.adain_bottleneck) == n_res and len(g.encoder.stem) == 1 + 3 + n_res and len(g.mapping) == n_mlp
    assert float(g.mapping[0].weight.std()) == pytest.approx(1 / lr_mlp, rel=0.15)
    assert nets["D_L"](torch.randn(4, 3)).shape == (4, 1)
    assert g(torch.randn(2, 3, 64, 64))[0].shape == (2, 3, 64, 64)


@torch.no_grad()
def test_pictures_whose_style_alone_is_wanted_skip_the_content_head() -> None:
    net = Generator(64, 3, n_mlp=2, channel_multiplier=1 / 64).double()
    x, seen = torch.randn(5, 3, 64, 64).double(), []
    net.encoder.content.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    content, style = net.encode(x)
    first, codes = net.encode(x, contents=2)
    assert seen == [5, 2] and first.shape[0] == 2
    torch.testing.assert_close(first, content[:2], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(codes, style, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.style_encode(x), style, rtol=1e-10, atol=1e-12)
    assert seen == [5, 2]


@pytest.mark.parametrize("version", ["v1", "v1.1", "v2"])
@torch.no_grad()
def test_batches_are_judged_at_once_and_compared_within_each(version: str) -> None:
    net = Discriminator(64, 1 / 64, version).double()
    one, other = torch.randn(3, 3, 64, 64).double(), torch.randn(2, 3, 64, 64).double() / 4
    together = net(torch.cat([one, other]), [3, 2])
    for k, heads in enumerate(zip(net(one), net(other), strict=True)):
        torch.testing.assert_close(together[k], torch.cat(heads), rtol=1e-9, atol=1e-11)
    mixed = net(torch.cat([one, other]))
    assert not torch.allclose(mixed[2], together[2], rtol=1e-3) and torch.equal(mixed[0], together[0])


def test_the_diversity_head_sees_a_batch_of_one_picture() -> None:
    """The features' deviation is 1e-4 each there: the head says what its bias and that give."""
    net = Discriminator(64, 1 / 64).double()
    x = torch.randn(1, 3, 64, 64).double()
    head = net.g_final
    expected = (head.weight.sum() * head.scale * 1e-4 + head.bias).item()
    for batch in (x, x.expand(4, -1, -1, -1)):
        assert net(batch)[2].flatten().tolist() == pytest.approx([expected] * len(batch), rel=1e-6)


def test_two_networks_of_one_run_differ_and_come_back_with_the_seed() -> None:
    before = torch.get_rng_state()
    first, again, other = (networks(config(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == ["G_A2B", "G_B2A", "D_A", "D_B", "D_L"]
    for name, net in first.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, again[name].state_dict()[key])
            drawn = key.endswith("weight")
            assert torch.equal(value, other[name].state_dict()[key]) != drawn, key
    for one, two in (("G_A2B", "G_B2A"), ("D_A", "D_B")):
        assert not torch.equal(next(first[one].parameters()), next(first[two].parameters()))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_networks_that_compute_again_keep_less(version: str) -> None:
    """The same gradients, and block borders only in memory."""
    c = config(generator=version, discriminator="v2" if version == "v2" else "v1.1", n_res=2)
    found, kept = [], []
    x = smooth(2, 64).requires_grad_()
    for on in (False, True):
        nets = networks(c)
        recompute(list(nets.values()), on)
        maps: dict[int, Tensor] = {}

        def keep(value: Tensor, maps: dict[int, Tensor] = maps) -> Tensor:
            if value.dim() == 4 and len(value) == 2:  # not a weight
                maps[value.data_ptr()] = value
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = nets["G_A2B"](x)[0]
            score = torch.cat([head.flatten() for head in nets["D_B"](out)]).sum()
        kept.append(sum(value.numel() for value in maps.values()))
        parameters = [p for name in ("G_A2B", "D_B") for p in nets[name].parameters()]
        found.append(torch.autograd.grad(score, [x, *parameters]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert kept[1] < kept[0] / 2


def test_settings_survive_a_checkpoint() -> None:
    c = config(seed=5, warp="twice", start_from="other.pt")
    file = io.BytesIO()
    torch.save(header(c), file)
    file.seek(0)
    assert config_of(torch.load(file, weights_only=True)) == dataclasses.replace(c, start_from=None)

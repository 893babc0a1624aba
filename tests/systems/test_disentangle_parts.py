"""Parts of the disentangling network: sizes, initial weights, and identities of the specification."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_disentangle import THREE, tiny_config
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.systems.disentangle.augmentation import draw, keep_probabilities, kept, normal, strata
from anifast.systems.disentangle.checkpoints import build
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.losses import Reversal, nll, nlu, pixel_weights, push, reconstruction
from anifast.systems.disentangle.networks import (
    MEAN,
    STD,
    Activation,
    BatchRegularization,
    BusBlock,
    Classifier,
    Discriminator,
    Generator,
    LinearResidueBlock,
    NonlocalBlock,
    ResidueBlock,
    StyleBank,
    networks,
    paddings,
)
from anifast.systems.disentangle.training import Batch, Stage1

CPU = torch.device("cpu")


def parameters(config: Config, classes: int, *names: str) -> dict[str, int]:
    return {name: sum(p.numel() for p in build(name, config, classes).parameters()) for name in names}


# --- sizes


def test_parameters_of_the_papers_networks() -> None:
    """Specification 3.5, counted in the authors' modules."""
    counts = {"E": 73_049_952, "G": 73_075_916, "C2": 74_334_675, "D": 72_002_913, "S": 583_168}
    assert parameters(make("paper"), 1139, *counts) == counts
    assert parameters(make("paper"), 1139, "C1") == {"C1": counts["C2"]}


def test_parameters_of_the_authors_last_networks() -> None:
    counts = {"E": 78_299_168, "G": 77_802_708, "C1": 78_550_931, "D": 76_219_169}
    assert parameters(make("release"), 1139, *counts) == counts


@pytest.mark.parametrize(
    ("label", "classes", "counts"),
    [
        ("writer", 3579, {"E": 4_443_488, "G": 4_491_268, "C2": 6_230_267, "D": 4_394_753, "S": 916_224}),
        ("digit", 10, {"E": 4_558_400, "G": 4_491_268, "C2": 4_399_370, "D": 4_394_753, "S": 320}),
    ],
)
def test_parameters_of_networks_for_digits(label: str, classes: int, counts: dict[str, int]) -> None:
    """Specification 3.6."""
    for preset in ("nist", "nist_fast"):
        assert parameters(make(preset, {"label": label}), classes, *counts) == counts


def test_sizes_for_digits() -> None:
    """28 -> 14 -> 8, to which 14 is padded -> 4, and back again, cropped."""
    assert paddings(28, 3) == ([0, 1, 0], 4)
    assert make("nist").widths == (64, 128, 256)
    nets: dict[str, Any] = networks(make("nist", {"features": "4,4,4", "fc": 8}), torch.ones(10) / 10, "stage1")
    sides: dict[str, list[int]] = {"E": [], "G": []}
    for name in sides:
        for level in nets[name].levels:
            block = level[0 if name == "E" else -1]
            block.register_forward_hook(lambda _, __, out, name=name: sides[name].append(out.shape[-1]))
    mean, std = nets["E"](torch.rand(2, 1, 28, 28))
    picture = nets["G"](torch.rand(2, 48 + 128))
    assert sides == {"E": [14, 8, 4], "G": [8, 14, 28]}
    assert mean.shape == std.shape == (2, 48) and picture.shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("size", "levels", "expected"),
    [
        (256, 6, ([0] * 6, 4)),
        (64, 4, ([0] * 4, 4)),
        (20, 2, ([0, 0], 5)),
        (30, 3, ([1, 0, 0], 4)),
        (22, 3, ([1, 0, 0], 3)),
        (36, 3, ([0, 1, 0], 5)),
    ],
)
def test_padding_rule(size: int, levels: int, expected: tuple[list[int], int]) -> None:
    """A side that is no multiple of 4 is padded to one, but in the last level, which halves what there is."""
    assert paddings(size, levels) == expected
    config = tiny_config(size=size, features=",".join(["4"] * levels))
    nets = networks(config, torch.ones(3) / 3, "stage1")
    mean, _ = nets["E"](torch.rand(2, 4, size, size))
    picture = nets["G"](torch.rand(2, 20))
    assert mean.shape == (2, 12) and picture.shape == (2, 3, size, size)


@pytest.mark.parametrize(("classes", "expected"), [(3, 3), (16, 16), (40, 16), (100, 25), (1139, 256), (3579, 256)])
def test_the_authors_size_of_styles(classes: int, expected: int) -> None:
    assert make("release").style_width(classes) == expected
    assert make("paper").style_width(classes) == 256


def test_codes_of_digits() -> None:
    """Digit 16 numbers, writer 128, the rest 32, nested dropout by 1 - 2 / size."""
    for label, content, style in (("writer", 48, 128), ("digit", 160, 16)):
        config = make("nist", {"label": label})
        assert (config.content_size, config.style_width(10)) == (content, style)
        assert config.keeps(10) == (1 - 2 / content, 1 - 2 / style)
    assert make("nist", {"content_keep": 1.0}).keeps(10)[0] == 1
    assert make("paper").keeps(10) == (1, 1)


# --- initial weights


def test_gates_begin_with_equal_shares() -> None:
    """Two blocks a level: the residue has 1/3, 1/4, ... of the variance, in the order blocks run."""
    for name in ("E", "G", "C2", "D"):
        config = tiny_config(features="4,4,4,4,4,4", size=256, fc=4)
        net = networks(config, torch.ones(3) / 3, "stage2")[name]
        found = [p[0].item() ** 2 for key, p in net.named_parameters() if key.endswith("residue_ratio")]
        assert found == pytest.approx([1 / k for k in range(3, 15)])
        other = [p[0].item() ** 2 for key, p in net.named_parameters() if key.endswith("shortcut_ratio")]
        assert other == pytest.approx([1 - 1 / k for k in range(3, 15)])


def test_gates_of_levels_of_several_lengths() -> None:
    net = networks(tiny_config(blocks="cc,cbc,cc"), torch.ones(3) / 3, "stage1")["E"]
    total, expected = 1.0, []
    for length in (2, 3, 2):
        for _ in range(length):
            total += 1 / length
            expected.append(1 / length / total)
    found = [p[0].item() ** 2 for key, p in net.named_parameters() if key.endswith("residue_ratio")]
    assert found == pytest.approx(expected)


def test_gates_of_the_classifier_of_codes() -> None:
    net = networks(tiny_config(c1_input="code", mlp_layers=10, mlp_width=6), torch.ones(3) / 3, "stage1")["C1"]
    found = [p[0].item() ** 2 for key, p in net.named_parameters() if key.endswith("residue_ratio")]
    assert found == pytest.approx([1 / k for k in range(2, 11)])


def test_weights_of_an_output_have_norm_1() -> None:
    """Those of transposed convolutions 2; biases are PyTorch's, and slopes 1/4."""
    config = tiny_config(blocks="cc,cbc,cnc", gen_blocks="tc,cbc,cnc")
    seen: dict[str, int] = {}
    for net in networks(config, torch.ones(3) / 3, "stage1").values():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                transposed = isinstance(layer, nn.ConvTranspose2d)
                rows = layer.weight.transpose(0, 1) if transposed else layer.weight
                torch.testing.assert_close(rows.flatten(1).norm(dim=1), torch.full((len(rows),), 1.0 + transposed))
                bias = layer.bias
                assert bias is not None and bias.abs().max() > 0
                seen[type(layer).__name__] = seen.get(type(layer).__name__, 0) + 1
            elif isinstance(layer, Activation):
                assert bool((layer.weight == 0.25).all())
    assert set(seen) == {"Conv2d", "Linear", "ConvTranspose2d"}


def test_weights_come_from_the_runs_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (networks(tiny_config(seed=seed), torch.ones(3) / 3, "stage1") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("E", "G", "C1"):
        key = next(key for key in one[name].state_dict() if key.endswith("weight"))
        weights = [nets[name].state_dict()[key] for nets in (one, same, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# --- activation


def test_centred_prelu_keeps_mean_0_and_variance_1() -> None:
    """Integrals over N(0, 1): midpoints of 2e5 cells, which are exact to their width's square, 1e-8."""
    cells = 200_000
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) * (20 / cells) - 10
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (20 / cells)
    y = Activation(1).double()(x[:, None])[:, 0]
    assert (density * y).sum().item() == pytest.approx(0, abs=1e-7)
    assert (density * y.square()).sum().item() == pytest.approx(1, abs=1e-7)
    assert (round(MEAN, 6), round(STD, 6)) == (0.299207, 0.664624)


def test_relu_has_no_parameters() -> None:
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(Activation(3, "relu")(x), x.relu())
    assert not list(Activation(3, "relu").parameters())
    net = ResidueBlock(3, 3, 0.25, act="relu").double()
    x = x.double()
    expected = net.residue[0](x).relu() * 0.5 + x * 0.75**0.5
    torch.testing.assert_close(net(x), expected)


BLOCKS: list[Callable[[], nn.Module]] = [
    lambda: ResidueBlock(6, 6, 1 / 4),
    lambda: BusBlock(6, 1 / 4),
    lambda: NonlocalBlock(8, 1 / 4),
    lambda: LinearResidueBlock(6, 1 / 4),
]


@pytest.mark.parametrize("make_block", BLOCKS, ids=["plain", "bus", "non-local", "linear"])
def test_gates_weigh_shortcut_and_residue(make_block: Callable[[], nn.Module]) -> None:
    """Without its residue a block is its shortcut, and what it adds grows with the gate."""
    net = make_block().double()
    width = net.residue_ratio.numel()  # type: ignore[union-attr, operator]
    x = torch.randn(3, width, *(() if isinstance(net, LinearResidueBlock) else (4, 4)), dtype=torch.float64)
    results = []
    for gate in (0.0, 1.0, 3.0):
        nn.init.constant_(net.residue_ratio, gate)  # type: ignore[arg-type]
        nn.init.constant_(net.shortcut_ratio, 0.5)  # type: ignore[arg-type]
        results.append(net(x) - 0.5 * x)
    assert results[0].abs().max() < 1e-12 < results[1].abs().max()
    torch.testing.assert_close(3 * results[1], results[2])


def test_batch_regularisation_survives_a_dead_channel() -> None:
    net = BatchRegularization(2)
    x = torch.randn(4, 2, 3, 3)
    x[:, 1] = 0
    x.requires_grad_()
    loss = net(x)
    loss.backward()
    assert x.grad is not None
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(x.grad).all()) and bool(x.grad[:, 0].any())


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_codes_logits_and_scores_are_float32_in_bf16(stage: str) -> None:
    nets = networks(tiny_config(regularised=True), torch.ones(3) / 3, stage)
    x = torch.rand(2, 4, 32, 32)
    penalties: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        mean, std = nets["E"](x)
        found = [mean, std, nets["C1" if stage == "stage1" else "C2"](x, penalties)]
        if stage == "stage2":
            found.append(nets["D"](x, penalties))
    assert penalties and all(value.dtype == torch.float32 for value in found + penalties)
    assert bool((std > 0).all())


def test_a_discriminator_takes_a_classifiers_trunk() -> None:
    config = tiny_config(regularised=True)
    classifier, judge = Classifier(config, 3), Discriminator(config)
    head = {key: value.clone() for key, value in judge.state_dict().items() if key.startswith("dis.")}
    judge.take_trunk(classifier)
    theirs = classifier.state_dict()
    for key, value in judge.state_dict().items():
        assert torch.equal(value, head[key] if key in head else theirs[key]), key
    x = torch.rand(2, 4, 32, 32)
    assert torch.equal(judge.features(x), classifier.features(x))
    with torch.no_grad():  # they are apart from then on
        classifier.fc[0].weight.zero_()
    assert judge.fc[0].weight.any()


def test_generators_without_warps_have_no_penalty() -> None:
    plain, warped = (Generator(tiny_config(gen_blocks=words), 20) for words in ("cc", "tc,cc,cc"))
    assert warped.warp_penalty() is None
    for net in (plain, warped):
        assert net(torch.randn(2, 20)).abs().max() < 1
    penalty = warped.warp_penalty()
    assert plain.warp_penalty() is None and penalty is not None and penalty >= 0


# --- styles


def bank(classes: int = 7, size: int = 5) -> tuple[StyleBank, Tensor]:
    source = torch.Generator().manual_seed(0)
    frequency = torch.rand(classes, generator=source, dtype=torch.float64) + 0.1
    frequency /= frequency.sum()
    net = StyleBank(frequency, size).double()
    net.class_freq = frequency  # type: ignore[assignment]
    for parameter in net.parameters():
        parameter.data += 2 * torch.randn(parameter.shape, generator=source, dtype=torch.float64) + 1
    return net, frequency


def test_the_population_of_styles_has_mean_0_and_variance_1() -> None:
    net, frequency = bank()
    mean, std = net.table()
    # 1e-8 is added to variances, which are above 1
    torch.testing.assert_close(frequency @ mean, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    square = frequency @ (mean.square() + std.square())
    torch.testing.assert_close(square, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-8)
    labels = torch.tensor([6, 0, 0, 3])
    for rows, table in zip(net(labels), (mean, std), strict=True):
        assert torch.equal(rows, table[labels])


def test_the_divergence_of_styles_is_that_of_their_deviations() -> None:
    """KL_S = -sum_a f_a sum_d log(sd_ad / v_d), as the rest adds up to 0 over the population."""
    net, frequency = bank()
    _, std = net.table()
    torch.testing.assert_close(net.divergence(), -(frequency @ std.log()), rtol=0, atol=1e-8)
    assert bool((net.divergence() > 0).all())


def test_new_styles_are_all_alike() -> None:
    net = StyleBank(torch.tensor([0.5, 0.3, 0.2]), 4)
    mean, std = net.table()
    assert not mean.any()
    torch.testing.assert_close(std, torch.ones(3, 4))


def test_each_artist_moves_all_styles() -> None:
    """Through mean and variance of the population, which all share."""
    net, _ = bank()
    net(torch.tensor([2]))[0].sum().backward()
    assert net.mean.grad is not None and bool(net.mean.grad.ne(0).all())


# --- losses


def test_gradient_of_the_unlikelihood() -> None:
    """p - q, with q the softmax of the others; at most 1, and the true class's is p."""
    logits = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    labels = torch.arange(50) % 6
    logits.requires_grad_()
    (found,) = torch.autograd.grad(nlu(logits, labels).sum(), logits)
    p = logits.softmax(1)
    own = F.one_hot(labels, 6).bool()
    q = logits.masked_fill(own, -torch.inf).softmax(1)
    torch.testing.assert_close(found, p - q)
    torch.testing.assert_close(found[own], p[own])
    assert found.abs().max() <= 1
    torch.testing.assert_close(nlu(logits, labels), -(1 - p[own]).log())


@pytest.mark.parametrize("lead", [20.0, 100.0, 1e4])
def test_the_unlikelihood_of_what_is_certain(lead: float) -> None:
    """float32 knows p = 1 only, and the stable form still says by how much, and pushes."""
    logits = torch.zeros(1, 5)
    logits[0, 2] = lead
    logits.requires_grad_()
    loss = nlu(logits, torch.tensor([2]))
    (found,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == pytest.approx(lead - math.log(4), rel=1e-6)
    torch.testing.assert_close(found, torch.tensor([[-0.25, -0.25, 1.0, -0.25, -0.25]]))
    capped = nlu(logits, torch.tensor([2]), "eps")
    (found,) = torch.autograd.grad(capped.sum(), logits)
    # at most -log(1e-6); float32 has 1 - p + 1e-6 to 6e-8
    assert capped.item() <= -math.log(1e-6) + 1e-4 and found.abs().max() < 0.01


def test_how_strongly_the_adversary_pushes() -> None:
    """Its gradient is that of what it raises: NLL, -NLU, and nothing where the classifier is worse than a guess."""
    source = torch.Generator().manual_seed(1)
    shown = torch.randn(40, 6, dtype=torch.float64, generator=source) * 2
    labels = torch.arange(40) % 6
    frequency = torch.full((6,), 1 / 6, dtype=torch.float64)
    for kind, capped in (("nll", None), ("nll", frequency), ("nlu", None)):
        x = shown.clone().requires_grad_()
        turn = Reversal()
        logits = turn(x) * 1.0
        turn.strength = push(logits, labels, kind, capped)
        nll(logits, labels).sum().backward()
        y = shown.clone().requires_grad_()
        log_p = y.log_softmax(1).gather(1, labels[:, None])[:, 0]
        raised = -log_p if kind == "nll" else -nlu(y, labels)
        if capped is not None:
            raised = -torch.maximum(log_p, frequency.log()[labels])
        (-raised).sum().backward()
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad, y.grad)
        if capped is not None:
            assert 0 < int((turn.strength == 0).sum()) < 40


def test_weights_of_pixels() -> None:
    alpha, maps = torch.rand(3, 4, 4, dtype=torch.float64), torch.rand(3, 4, 4, dtype=torch.float64)
    alpha[1] = 0
    for given in ((alpha, None), (None, maps), (alpha, maps)):
        found = pixel_weights(*given)
        assert found is not None
        expected = torch.ones(3, dtype=torch.float64)
        if given[0] is not None:
            expected[1] = 0
        torch.testing.assert_close(found.sum((1, 2)), expected)
    assert pixel_weights(None) is None
    x, y = (torch.rand(3, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = reconstruction(x, y, pixel_weights(alpha))
    loss.backward()
    # of a picture that is not there nothing is learnt
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
    assert not x.grad[1].any() and x.grad[0].any()
    distance = (x - y).square().sum(1).add(1e-8).sqrt()
    expected = ((distance * alpha).sum((1, 2)) / alpha.sum((1, 2)))[[0, 2]].sum() / 3
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(reconstruction(x, y), distance.mean())


# --- nested dropout and noise


def test_masks_keep_prefixes_as_often_as_they_should() -> None:
    """Number i in p^i of all: over even levels, exactly to one of them."""
    base, size, count = 1 - 2 / 12, 12, 10_000
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    mask = kept(levels, base, size)
    assert mask is not None and set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())  # prefixes
    expected = base ** torch.arange(size, dtype=torch.float64)
    assert (mask.mean(0) - expected).abs().max() <= 1 / count
    assert torch.equal(keep_probabilities(base, size, levels), expected)
    assert kept(levels, 1.0, size) is None


def test_stratified_noise_has_one_number_in_each_part() -> None:
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(k)) for k in range(5)], 1)
    spread = strata(order, torch.rand(64, 5))
    assert torch.equal((spread * 64).floor().long().sort(0).values, torch.arange(64)[:, None].expand(64, 5))
    found = normal(spread.double())
    assert found.abs().max() < 4.3 and bool((found.argsort(0) == spread.argsort(0)).all())
    assert found.mean(0).abs().max() < 0.05  # of numbers that are apart it would be 1/8


def test_draws_depend_on_the_pictures_numbers_alone() -> None:
    config = tiny_config(stratified=False)
    whole = draw(torch.arange(100, 116), config, 8)
    part = draw(torch.arange(104, 108), config, 8)
    for name in ("content", "style", "content_level", "style_level", "warp"):
        assert torch.equal(getattr(whole, name)[4:8], getattr(part, name)), name
    assert whole.partner.tolist() == [*range(1, 16), 0]
    others = draw(torch.arange(100, 116), tiny_config(other_artist="random"), 8).partner
    assert bool((others != torch.arange(16)).all()) and len(others.unique()) > 4
    assert others.tolist() != whole.partner.tolist()


# --- whose gradient it is


@pytest.mark.parametrize("c1_input", ["image", "code"])
def test_the_adversary_moves_contents_and_generator_and_no_style(c1_input: str) -> None:
    only = {"lambda_rec": 0.0, "lambda_kl_content": 0.0, "lambda_kl_style": 0.0, "lambda_c1": 0.7}
    config = tiny_config(**only, c1_input=c1_input, mlp_layers=3, mlp_width=8)
    system: Any = Stage1(config, THREE, CPU)  # type: ignore[arg-type]
    images = torch.randint(256, (4, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    none = torch.empty(0)
    system.begin(Batch(images, none, torch.tensor([0, 1, 2, 1]), none, none), 0)
    system.losses(*system.inputs())[0].backward()

    def moved(name: str) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in system.nets[name].parameters())

    assert moved("E") and moved("C1") and not moved("S") and moved("G") == (c1_input == "image")


def test_settings_that_cannot_be() -> None:
    for values, words in (
        ({"features": "8,x"}, "no list of numbers"),
        ({"features": "8,12,16,16,16,16,16"}, "cannot be halved 7 times"),
        ({"blocks": "cc,cc"}, "2 levels in 'cc,cc', and features has 3"),
        ({"blocks": "tc"}, "'tc' is no level"),
        ({"blocks": "bc"}, "it begins with c"),
        ({"gen_blocks": "cx"}, "'cx' is no level"),
        ({"channels": 2}, "2 is not one of 1, 3, 4"),
        ({"size": 33}, "33 is odd; take 34"),
        ({"lambda_c1": float("inf")}, "lambda_c1: inf is not finite"),
        ({"dataset": "digits", "weight_maps": "maps"}, "leave them out for digits"),
        ({"dataset": "digits", "crop_size": 20}, "leave them out for digits"),
        ({"batch": 1}, "no other artist"),
        ({"stage2_batch": 1}, "no other artist"),
        ({"style_size": 0, "stage": "stage2"}, "has no stage2"),
    ):
        with pytest.raises(AnifastError, match=words):
            tiny_config(**values)


def test_styles_keep_float32_beside_half_types() -> None:
    """Means far from 0 would cost half types the whole variance."""
    bank = StyleBank(torch.tensor([0.5, 0.25, 0.25]), 4)
    with torch.no_grad():
        bank.mean.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 0.1 + 30)
        bank.pstd.fill_(-3.0)
    labels = torch.tensor([2, 0])
    wanted = (*bank(labels), bank.divergence())
    with torch.autocast("cpu", torch.bfloat16):
        found = (*bank(labels), bank.divergence())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    mean, std = bank.table()
    frequency = torch.tensor([0.5, 0.25, 0.25])
    # The sums run over numbers near 30, so their rounding is 30 times that of 1, over the deviation of some tenths.
    torch.testing.assert_close(frequency @ mean, torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(frequency @ (mean.square() + std.square()), torch.ones(4), rtol=1e-3, atol=0)

"""CycleGAN's parts against the figures and formulas of its sources: sizes, keys, schedule, pool, losses."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.engine.loop import Phase, run_step
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan import checkpoints, networks
from anifast.systems.cyclegan.config import PRESETS, make
from anifast.systems.cyclegan.inference import Translator
from anifast.systems.cyclegan.losses import ImagePool
from anifast.systems.cyclegan.networks import Conv, Discriminator, Generator, initialise
from anifast.systems.cyclegan.training import CycleGAN, learning_rate
from anifast.systems.cyclegan.training import networks as four_networks

CPU = torch.device("cpu")
SMALL = {"size": 32, "blocks": 1, "width": 8, "d_width": 8}


def numbers(net: torch.nn.Module) -> int:
    return sum(value.numel() for value in net.state_dict().values())


def images(count: int, size: int, seed: int, coarse: int = 5) -> Tensor:
    """Smooth pictures in [-1, 1]."""
    values = torch.rand(count, 3, coarse, coarse, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


def small_system(**changes: object) -> CycleGAN:
    """In float64, with weights large enough that nothing is near zero."""
    model = CycleGAN(make("reference", SMALL | changes), CPU)
    source = torch.Generator().manual_seed(1)
    for net in model.nets.values():
        net.double()
        for value in net.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=source, dtype=torch.float64) * 0.1)
    return model


def test_parameter_counts() -> None:
    nets = four_networks(make("reference"))
    assert [numbers(nets[name]) for name in ("G_AB", "G_BA", "D_A", "D_B")] == [11_378_179] * 2 + [2_764_737] * 2
    assert sum(map(numbers, nets.values())) == 28_285_832
    assert numbers(Generator(6)) == 7_837_699
    # What stands right before an instance norm is kept for the files and not trained.
    assert sum(b.numel() for b in nets["G_AB"].buffers()) == 5_248
    assert sum(b.numel() for b in nets["D_A"].buffers()) == 896


def test_networks_of_one_run_differ_and_come_back_with_the_seed() -> None:
    first, again, other = (four_networks(make("reference", SMALL | {"seed": seed})) for seed in (3, 3, 4))
    stem = {
        name: net.state_dict()["model.1.weight" if name[0] == "G" else "model.0.weight"] for name, net in first.items()
    }
    assert not torch.equal(stem["G_AB"], stem["G_BA"]) and not torch.equal(stem["D_A"], stem["D_B"])
    for name, net in first.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, again[name].state_dict()[key])
    assert not torch.equal(stem["G_AB"], other["G_AB"].state_dict()["model.1.weight"])


@pytest.mark.parametrize("how", ["normal", "conv"])
def test_initialisation(how: str) -> None:
    net = Generator(2, 32)
    initialise(net, how, torch.Generator().manual_seed(0))
    state = net.state_dict()
    assert state["model.4.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(state["model.4.weight"].mean().item()) < 1e-3
    if how == "normal":
        assert not any(value.any() for key, value in state.items() if key.endswith("bias"))
        assert state["model.12.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    else:  # PyTorch's default: U(-r, r) with r = 1 / sqrt(64 * 9)
        r = (64 * 9) ** -0.5
        assert r * 0.95 < state["model.12.weight"].abs().max().item() <= r
        assert state["model.4.bias"].abs().max().item() > 0


def test_generator_keys_and_shapes() -> None:
    expected: dict[str, tuple[int, ...]] = {
        "1": (64, 3, 7, 7),
        "4": (128, 64, 3, 3),
        "7": (256, 128, 3, 3),
        **{f"{10 + j}.conv_block.{index}": (256, 256, 3, 3) for j in range(9) for index in (1, 5)},
        "19": (256, 128, 3, 3),
        "22": (128, 64, 3, 3),
        "26": (3, 64, 7, 7),
    }
    state = Generator().state_dict()
    assert len(state) == 48
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == {
        f"model.{k}.weight": v for k, v in expected.items()
    }
    assert {k for k in state if k.endswith("bias")} == {f"model.{k}.bias" for k in expected}
    tail = list(Generator(6, 8).state_dict())[-6:]
    assert tail == [f"model.{i}.{kind}" for i in (16, 19, 23) for kind in ("weight", "bias")]


def test_discriminator_keys_and_shapes() -> None:
    expected = {"0": (64, 3), "2": (128, 64), "5": (256, 128), "8": (512, 256), "11": (1, 512)}
    state = Discriminator().state_dict()
    assert len(state) == 10
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == {
        f"model.{k}.weight": (*v, 4, 4) for k, v in expected.items()
    }


def test_output_shapes() -> None:
    x = images(2, 256, 0)
    with torch.no_grad():
        judge, generator = Discriminator(4), Generator(1, 4)
        for net in (judge, generator):
            initialise(net, "normal", torch.Generator().manual_seed(0))
        assert judge(x).shape == (2, 1, 30, 30)
        assert generator(x).shape == x.shape
        assert generator(x[:, :, :36, :64]).shape == (2, 3, 36, 64)
        assert generator(x).abs().max() < 1


def test_a_score_sees_70_by_70_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        networks, "instance_norm", lambda x, slope: F.leaky_relu(x, slope)
    )  # the norm sees the whole picture
    judge = Discriminator(2).double()
    initialise(judge, "normal", torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64).requires_grad_()
    judge(x)[0, 0, 15, 15].backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    assert int(rows[-1] - rows[0]) + 1 == 70 and int(columns[-1] - columns[0]) + 1 == 70


def test_sigmoid_and_skip() -> None:
    raw, squashed = Discriminator(4), Discriminator(4, sigmoid=True)
    initialise(raw, "conv", torch.Generator().manual_seed(0))
    squashed.load_state_dict(raw.state_dict())
    plain, skip = Generator(1, 4), Generator(1, 4, skip=True)
    initialise(plain, "conv", torch.Generator().manual_seed(0))
    skip.load_state_dict(plain.state_dict())
    x = images(1, 32, 0)
    with torch.no_grad():
        torch.testing.assert_close(squashed(x), torch.sigmoid(raw(x)))
        torch.testing.assert_close(skip(x), x + 2 * plain(x))


@pytest.mark.parametrize("net", [Generator(2, 8), Discriminator(8)], ids=["generator", "discriminator"])
def test_biases_before_a_norm_are_inert(net: torch.nn.Module) -> None:
    net = net.double()
    initialise(net, "normal", torch.Generator().manual_seed(0))
    x = images(2, 48, 1).double()
    with torch.no_grad():
        without = net(x)
        buffers = [c for c in net.modules() if isinstance(c, Conv) and not c.live]
        for conv in buffers:
            conv.bias.normal_()
        assert torch.equal(net(x), without)
        added = 0
        for conv in buffers:
            if type(conv) is Conv:
                conv.live = True
                added += 1
        assert added >= 3
        torch.testing.assert_close(net(x), without, rtol=0, atol=1e-10)
        last = [c for c in net.modules() if isinstance(c, Conv)][-1]
        last.bias.add_(0.1)
        assert (net(x) - without).abs().max() > 1e-3


def test_train_and_eval_are_the_same_and_no_image_sees_another() -> None:
    for net in small_system().nets.values():
        x = images(3, 32, 2).double()
        with torch.no_grad():
            together = net.train()(x)
            assert torch.equal(net.eval()(x), together)
            apart = torch.cat([net(image) for image in x.split(1)])
        torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("identity", [0.5, 0.0])
def test_losses_are_those_of_separate_passes(identity: float) -> None:
    """Section 5.1 of the paper and the reference's options, written out with one call per image and use."""
    model = small_system(lambda_a=10.0, lambda_b=7.0, lambda_identity=identity, pool_size=0, batch=2)
    a, b = images(2, 32, 3).double(), images(2, 32, 4).double()
    model.begin((a, b), 0)
    loss, parts = model.generators(*model.reals())
    d_loss, d_parts = model.discriminators(*model.judged())

    def one_by_one(name: str, x: Tensor) -> Tensor:
        return torch.cat([model.nets[name](image) for image in x.split(1)])

    def mae(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean()

    fake_b, fake_a = one_by_one("G_AB", a), one_by_one("G_BA", b)
    expected = {
        "gan_ab": (one_by_one("D_B", fake_b) - 1).square().mean(),
        "gan_ba": (one_by_one("D_A", fake_a) - 1).square().mean(),
        "cycle_a": 10 * mae(one_by_one("G_BA", fake_b), a),
        "cycle_b": 7 * mae(one_by_one("G_AB", fake_a), b),
    }
    if identity:
        expected["identity_b"] = identity * 7 * mae(one_by_one("G_AB", b), b)
        expected["identity_a"] = identity * 10 * mae(one_by_one("G_BA", a), a)
    total = torch.stack(list(expected.values())).sum()
    assert set(parts) == set(expected) | {"generators"}
    for name, value in (expected | {"generators": total}).items():
        torch.testing.assert_close(parts[name], value.detach(), rtol=1e-9, atol=1e-11)
    for side, real, fake in (("A", a, fake_a), ("B", b, fake_b)):
        on_real, on_fake = one_by_one(f"D_{side}", real), one_by_one(f"D_{side}", fake.detach())
        value = 0.5 * ((on_real - 1).square().mean() + on_fake.square().mean())
        torch.testing.assert_close(d_parts[f"d_{side.lower()}"], value.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(d_loss, d_parts["d_a"] + d_parts["d_b"])

    # The gradients too: batching must not double or lose one.
    parameters = [
        model.nets["G_AB"].get_parameter(key) for key in ("model.1.weight", "model.14.weight", "model.18.bias")
    ]
    batched = torch.autograd.grad(loss, parameters, retain_graph=True)
    for ours, written_out in zip(batched, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(ours, written_out, rtol=1e-7, atol=1e-11)


def test_zero_parameters_give_the_losses_known_by_heart() -> None:
    model = CycleGAN(make("reference", SMALL), CPU)
    for net in model.nets.values():
        for value in net.state_dict().values():
            value.zero_()
    a, b = images(1, 32, 5), images(1, 32, 6)
    model.begin((a, b), 0)
    _, parts = model.generators(*model.reals())
    _, judged = model.discriminators(*model.judged())
    assert not model.fake_a.any() and not model.fake_b.any()
    assert parts["gan_ab"] == parts["gan_ba"] == 1.0
    assert judged["d_a"] == judged["d_b"] == 0.5
    for name, weight, real in (("cycle_a", 10, a), ("identity_a", 5, a), ("cycle_b", 10, b), ("identity_b", 5, b)):
        torch.testing.assert_close(parts[name], weight * real.abs().mean())


def test_each_phase_trains_its_own_networks_only() -> None:
    model = CycleGAN(make("reference", SMALL), CPU)
    for phase, trained in zip(model.phases, ("G", "D"), strict=True):
        before = {k: {n: v.clone() for n, v in net.state_dict().items()} for k, net in model.nets.items()}
        model.begin((images(1, 32, 7), images(1, 32, 8)), 0)
        for net in (net for p in model.phases for net in p.nets):
            net.requires_grad_(net in phase.nets)
        if trained == "D":
            model.generators(*model.reals())
        loss, _ = phase.loss(*phase.inputs())
        phase.optimizer.zero_grad()
        loss.backward()
        phase.optimizer.step()
        for name, net in model.nets.items():
            moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[name][n])}
            assert moved == ({n for n, _ in net.named_parameters()} if name[0] == trained else set()), name


def test_networks_of_the_other_phase_are_frozen() -> None:
    """Their gradients would be thrown away."""
    model = CycleGAN(make("reference", SMALL), CPU)
    trainable: dict[str, set[str]] = {}
    for phase in model.phases:

        def noted(*inputs: torch.Tensor, phase: Phase = phase, loss: Callable[..., Any] = phase.loss) -> Any:
            nets = model.nets.items()
            trainable[phase.name] = {name for name, net in nets for p in net.parameters() if p.requires_grad}
            return loss(*inputs)

        phase.loss = noted
    model.begin((images(1, 32, 0), images(1, 32, 1)), 0)
    run_step(model.phases, 0, CPU)
    assert trainable == {"generators": {"G_AB", "G_BA"}, "discriminators": {"D_A", "D_B"}}


def test_learning_rate() -> None:
    config = make("reference")
    expected = {1: 2e-4, 100: 2e-4, 101: 1.980198e-4, 150: 1.009901e-4, 200: 1.980198e-6}
    for epoch, lr in expected.items():
        assert learning_rate(config, epoch) == pytest.approx(lr, rel=1e-6)
    for one, following in pairwise(learning_rate(config, epoch) for epoch in range(100, 201)):
        assert following < one


def test_discriminators_may_have_a_learning_rate_of_their_own() -> None:
    config = make("reference", SMALL | {"epochs": 1, "decay_epochs": 1, "d_lr": 5e-5})
    model = CycleGAN(config, CPU, epoch_length=1)
    for seen, factor in ((0, 1.0), (1, 0.5)):
        model.begin((images(1, 32, 0), images(1, 32, 1)), seen)
        rates = {kind: optimizer.param_groups[0]["lr"] for kind, optimizer in model.optimizers.items()}
        assert rates == {"G": 2e-4 * factor, "D": 5e-5 * factor}


@torch.no_grad()
def test_an_exported_generator_is_the_generator() -> None:
    net = Generator(2, 4)
    initialise(net, "normal", torch.Generator().manual_seed(0))
    x = images(2, 32, 12)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-6)


def test_learning_rate_follows_the_images_seen() -> None:
    model = CycleGAN(make("reference", SMALL | {"epochs": 1, "decay_epochs": 1}), CPU, epoch_length=3)
    batch = images(1, 32, 0), images(1, 32, 1)
    rates = []
    for seen in range(6):
        model.begin(batch, seen)
        rates.append([group["lr"] for optimizer in model.optimizers.values() for group in optimizer.param_groups])
    assert rates == [[2e-4, 2e-4]] * 3 + [[1e-4, 1e-4]] * 3
    assert model.row(5) == {"epoch": 2, "lr": 1e-4}


def test_pool_fills_first_and_then_gives_half_from_the_past() -> None:
    size, queries = 50, 4050
    pool = ImagePool(size, random.Random(0))
    stream = torch.arange(queries, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
    returned = [int(pool.query(image)) for image in stream]
    assert returned[:size] == list(range(size))
    ages = [now - then for now, then in enumerate(returned)][size:]
    history = [age for age in ages if age]
    assert len(history) / len(ages) == pytest.approx(0.5, abs=0.03)
    assert sum(history) / len(history) == pytest.approx(2 * size, rel=0.1)
    # An image that was given back at once was not stored, one that replaced another was: each comes back once at most.
    past = [then for now, then in enumerate(returned) if then != now]
    fresh = {now for now, then in enumerate(returned) if then == now and now >= size}
    assert len(set(past)) == len(past) and not fresh & set(past)
    assert pool.count == size and not fresh & {int(x) for x in pool.held}


def test_pool_gives_copies_and_size_zero_gives_all_back() -> None:
    pool = ImagePool(2, random.Random(0))
    first = torch.ones(1, 1, 1, 1)
    pool.query(first)
    first.fill_(5.0)
    assert pool.held.item() == 1.0
    images = torch.arange(3.0).reshape(3, 1, 1, 1)
    assert ImagePool(0, random.Random(0)).query(images) is images


def test_pool_states_hold_what_is_in_the_pool_and_stay_as_they_are() -> None:
    pool = ImagePool(50, random.Random(0))
    pool.query(torch.ones(2, 3, 4, 4))
    state = pool.state_dict()
    assert state["images"].shape == (2, 3, 4, 4)
    assert state["images"].untyped_storage().nbytes() == 2 * 3 * 4 * 4 * 4
    pool.held.zero_()
    assert bool((state["images"] == 1).all())


def test_pool_refuses_a_state_that_does_not_fit() -> None:
    full = ImagePool(4, random.Random(0))
    full.query(torch.zeros(4, 3, 2, 2))
    with pytest.raises(CheckpointError, match="pool of 2"):
        ImagePool(2, random.Random(0)).load_state_dict(full.state_dict(), CPU)


@pytest.mark.heavy
def test_eight_pictures_are_overfitted() -> None:
    model = CycleGAN(make("reference", {"size": 64, "width": 16, "d_width": 16, "crop": False}), CPU)
    a, b = images(4, 64, 9), images(4, 64, 10)

    @torch.no_grad()
    def cycle() -> float:
        g_ab, g_ba = model.nets["G_AB"], model.nets["G_BA"]
        return float((g_ba(g_ab(a)) - a).abs().mean() + (g_ab(g_ba(b)) - b).abs().mean()) / 2

    start = cycle()
    curve = []
    for step in range(100):
        i, j = step % 4, (step + step // 4) % 4
        model.begin((a[i : i + 1], b[j : j + 1]), step)
        run_step(model.phases, step, CPU)
        if step % 10 == 9:
            curve.append(cycle())
            if curve[-1] < start / 2:
                break
    assert curve[-1] < start / 2, (start, curve)


def test_presets_differ_from_the_reference_where_they_say() -> None:
    seed, reference = make("seed"), make()
    assert reference == make("reference") and reference.loaded == 286 and seed.loaded == seed.size == 256
    assert (seed.down_padding, seed.branch_relu, seed.sigmoid, seed.beta1, seed.pairing) == (
        "reflect",
        True,
        True,
        0.9,
        "paired",
    )
    assert all("about" in preset for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 66}, "multiple of 4"),
        ({"size": 16}, "below 32"),
        ({"gan": "vanilla", "sigmoid": True}, "applied twice; take --no-sigmoid, or --gan lsgan"),
        ({"load_size": 100}, "smaller than size"),
        ({"batch": 0}, "below 1"),
        ({"batch": "two"}, "not of type int"),
        ({"flip": 1}, "not of type bool"),
        ({"gan": "hinge"}, "not one of lsgan"),
        ({"beta1": 1.0}, "below 1"),
        ({"lr": float("nan")}, "below 0"),
        ({"epochs": 0, "decay_epochs": 0}, "nothing to train"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        make("reference", values)


def test_unknown_preset() -> None:
    with pytest.raises(AnifastError, match="reference, seed, small"):
        make("huge")


def renamed_for_seed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A 9-block generator's keys as the selfie2anime report's code calls them."""
    names = {"1": "0.conv_block.0", "4": "1.conv_block.0", "7": "2.conv_block.0"}
    for j in range(9):
        names |= {f"{10 + j}.conv_block.1": f"{3 + j}.conv_block.0", f"{10 + j}.conv_block.5": f"{3 + j}.conv_block.3"}
    names |= {"19": "12.conv_block.0", "22": "13.conv_block.0", "26": "14.conv_block.0"}
    made = {}
    for key, value in state.items():
        layer, _, kind = key.removeprefix("model.").rpartition(".")
        made[f"generator_block.{names[layer]}.{kind}"] = value
    return made


def test_published_files_of_every_kind_translate_alike() -> None:
    net = Generator(9, 4)
    initialise(net, "normal", torch.Generator().manual_seed(0))
    state = net.state_dict()
    x = images(1, 32, 11)
    with torch.no_grad():
        expected = net(x)
    wrapped = {f"module.{key}": value for key, value in state.items()}
    wrapped["module.model.2.running_mean"] = torch.zeros(4)
    wrapped["module.model.2.num_batches_tracked"] = torch.tensor(7)
    dropout = {key.replace("conv_block.5", "conv_block.6"): value for key, value in state.items()}
    own = {"format": "anifast.cyclegan/1", "config": make("reference", {"width": 4}).as_dict()}
    own["nets"] = {"G_AB": state, "G_BA": state}
    with pytest.warns(UserWarning, match="trained with dropout"):
        without = checkpoints.generators(dropout)[1]["AB"]
    for found in (state, wrapped, without, own):
        assert checkpoints.recognises(found)
        torch.testing.assert_close(Translator(found, CPU).translate(x), expected, rtol=0, atol=1e-6)
    back = checkpoints.generator_from_seed(renamed_for_seed(state))
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "state",
    [
        {"format": "anifast.cyclegan/1"},
        {"format": "anifast.cyclegan/1", "config": {"size": 32}},
        {"format": "anifast.cyclegan/99", "config": {}, "nets": {}},
        {"format": "anifast.cyclegan/1", "config": 3, "nets": {"G_AB": {}, "G_BA": {}}},
        {"format": "anifast.cyclegan/1", "config": {"size": 33}, "nets": {"G_AB": {}, "G_BA": {}}},
        {"G_12_state_dict": {}},
        {"G_12_state_dict": {"encoder.0.weight": torch.zeros(1)}, "G_21_state_dict": {}},
        {"model.1.weight": torch.zeros(64, 3, 4, 4), "model.1.bias": torch.zeros(64)},
    ],
    ids=["bare", "no nets", "newer", "config", "size", "half", "other keys", "u-net"],
)
def test_damaged_files_are_refused_by_name(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Translator(state, CPU).translate(images(1, 32, 0))


@pytest.mark.parametrize("state", [{}, {1: torch.zeros(2)}, {"state_dict": {}}, {"weight": 3}])
def test_other_dicts_are_not_recognised(state: dict[object, object]) -> None:
    assert not checkpoints.recognises(state)  # type: ignore[arg-type]

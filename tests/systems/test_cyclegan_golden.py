"""CycleGAN against numbers computed by the authors' codes, in float64 (float32 gradients of these nets are chaotic)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.engine.loop import run_step
from anifast.systems.cyclegan.checkpoints import discriminator_from_seed, generator_from_seed
from anifast.systems.cyclegan.config import Config, make
from anifast.systems.cyclegan.losses import ImagePool, gan_loss, l1
from anifast.systems.cyclegan.networks import Conv, Discriminator, Generator
from anifast.systems.cyclegan.training import CycleGAN

Golden = Callable[[str], Any]
CPU = torch.device("cpu")
# The references are float64, stored as float32.
EXACT = 5e-7


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value).double() for key, value in arrays.items()}


def image(case: Any, name: str) -> Tensor:
    return torch.from_numpy(case.inputs[name]).double()


def check(case: Any, results: dict[str, Any], limit: float = EXACT, *, all_of: str | None = None) -> None:
    """Compare with what is stored; `all_of`: nothing that is stored under this prefix is left out."""
    if all_of is not None:
        assert set(results) == {name for name in case.outputs if name.startswith(all_of)}
    plain = {k: v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in results.items()}
    errors = case.compare(plain)
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < limit, f"{worst}: {errors[worst]:.2e}"


@torch.no_grad()
def generator_outputs(net: Generator, taps: dict[str, str], x: Tensor) -> dict[str, Tensor]:
    """Of a forward pass: y, its corner, and what sub-modules give, by the name under which it is stored.

    Args:
        net: the generator.
        taps: stored name -> sub-module. A convolution's is stored behind norm and ReLU, a residual block's as it is.
        x: images.
    """
    kept: dict[str, Tensor] = {}
    hooks = []
    for stored, name in taps.items():

        def keep(module: nn.Module, _: Any, out: Tensor, stored: str = stored) -> None:
            kept[stored] = F.relu(F.instance_norm(out)) if isinstance(module, Conv) else out.clone()

        hooks.append(net.get_submodule(name).register_forward_hook(keep))
    kept["y"] = net(x)
    kept["y_corner"] = kept["y"][:, :, -9:, -9:]
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize(("name", "blocks"), [("refcyc_g6_128", 6), ("refcyc_g9_256", 9)])
def test_reference_generator(golden: Golden, name: str, blocks: int) -> None:
    case = golden(name)
    net = Generator(blocks).double()
    net.load_state_dict(tensors(case.state_dict()))
    taps = {}
    for index in case.spec["options"]["taps"]:  # of the sequential container: a block, or the ReLU behind conv and norm
        taps[f"model.{index}"] = f"model.{index if 10 <= index < 10 + blocks else index - 2}"
    kept = generator_outputs(net, taps, image(case, "x"))
    check(case, {f"forward.{key}": value for key, value in kept.items()}, all_of="forward.")


def test_reference_discriminator(golden: Golden) -> None:
    case = golden("refcyc_d70_256")
    net = Discriminator().double()
    net.load_state_dict(tensors(case.state_dict()))
    x = image(case, "x").requires_grad_()
    y = net(x)
    gan_loss(y, True).backward()
    check(case, {"forward.y": y, "forward.dx": x.grad}, all_of="")


def test_reference_gan_losses(golden: Golden) -> None:
    case = golden("refcyc_ganloss")
    results = {
        f"{kind}.{name}.{word}": gan_loss(image(case, name), word == "real", kind)
        for kind in ("lsgan", "vanilla", "wgangp")
        for name in "abc"
        for word in ("real", "fake")
    }
    check(case, results, all_of="")


@pytest.mark.parametrize(("name", "size_key"), [("refcyc_pool", "pool_size"), ("seedcyc_pool", "buffer_size")])
def test_pool_returns_and_holds_the_same_images(golden: Golden, name: str, size_key: str) -> None:
    case = golden(name)
    found: dict[str, Any] = {}
    for call in case.calls:
        args, rng = call["args"], random.Random(call["args"]["seed"])
        pool = ImagePool(args[size_key], rng)
        numbers = torch.arange(args["queries"] * args["batch"], dtype=torch.float32)
        batches = numbers.reshape(args["queries"], args["batch"], 1, 1, 1).expand(-1, -1, 3, 2, 2)
        returned = torch.cat([pool.query(batch)[:, 0, 0, 0] for batch in batches])
        held = pool.held[:, 0, 0, 0] if pool.size else torch.empty(0)
        results = {"returned": returned, "held": held, "next_random": rng.random()}
        found |= {f"{call['name']}.{key}": value for key, value in results.items()}
    check(case, found, all_of="")


def system(config: Config, weights: dict[str, dict[str, Tensor]], seed: int = 0) -> CycleGAN:
    """A CycleGAN in float64 with the given weights, whose pools draw from Python's generator seeded by `seed`."""
    made = CycleGAN(config, CPU)
    for name, net in made.nets.items():
        net.double().load_state_dict(weights[name])
    made.rng.seed(seed)
    return made


def reference_system(case: Any, config: Config) -> CycleGAN:
    # The reference calls a discriminator after the generator that it trains.
    names = {"G_AB": "G_A.", "G_BA": "G_B.", "D_B": "D_A.", "D_A": "D_B."}
    weights = {ours: tensors(case.state_dict(theirs)) for ours, theirs in names.items()}
    return system(config, weights, case.spec["options"].get("seed", 0))


def reference_losses(step: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "loss_G_A": "gan_ab",
        "loss_G_B": "gan_ba",
        "loss_cycle_A": "cycle_a",
        "loss_cycle_B": "cycle_b",
        "loss_idt_A": "identity_b",
        "loss_idt_B": "identity_a",
        "loss_G": "generators",
        "loss_D_A": "d_b",
        "loss_D_B": "d_a",
    }
    return {theirs: step[ours] for theirs, ours in names.items()}


@pytest.mark.heavy
def test_reference_step_losses_images_and_gradients(golden: Golden) -> None:
    case = golden("refcyc_step_128")
    model = reference_system(case, make("reference"))
    model.begin((image(case, "A"), image(case, "B")), 0)
    results: dict[str, Any] = dict(reference_losses(run_step(model.phases, 0, CPU)))
    ours = {"G_A": "G_AB", "G_B": "G_BA", "D_A": "D_B", "D_B": "D_A"}
    for key in case.spec["options"]["grads_G"] + case.spec["options"]["grads_D"]:
        net, _, parameter = key.partition(".")
        results[f"grad.{key}"] = model.nets[ours[net]].get_parameter(parameter).grad
    results |= {"fake_B": model.fake_b, "fake_A": model.fake_a, "rec_A": model.rec_a, "rec_B": model.rec_b}
    check(case, {f"step.{key}": value for key, value in results.items()}, 1e-6, all_of="step.")


def test_reference_training_steps(golden: Golden) -> None:
    case = golden("refcyc_train3")
    options = case.spec["options"]
    sizes = {"blocks": 6, "width": 16, "d_width": 16, "pool_size": options["pool_size"]}
    model = reference_system(case, make("reference", sizes))
    for step in range(options["steps"]):
        model.begin((image(case, f"A{step}"), image(case, f"B{step}")), step)
        losses = reference_losses(run_step(model.phases, step, CPU))
        # After the first step the weights carry Adam's amplification of rounding.
        check(case, {f"step{step}.{key}": value for key, value in losses.items()}, EXACT if step == 0 else 1e-5)
    ours = {"G_A": "G_AB", "G_B": "G_BA", "D_A": "D_B", "D_B": "D_A"}
    after = {}
    for key in options["params_after"]:
        net, _, parameter = key.partition(".")
        after[f"step{step}.after.{key}"] = model.nets[ours[net]].get_parameter(parameter)
    check(case, after, 1e-4)


def test_seed_generator_and_discriminator(golden: Golden) -> None:
    case = golden("seedcyc_g_128")
    net = Generator(9, down_padding="reflect", branch_relu=True).double()
    net.load_state_dict(generator_from_seed(tensors(case.state_dict())))
    ours = {0: "model.1", 1: "model.4", 2: "model.7", **{3 + j: f"model.{10 + j}" for j in range(9)}}
    ours |= {12: "model.19", 13: "model.22"}
    taps = {f"generator_block.{i}": ours[i] for i in case.spec["options"]["taps"]}
    kept = generator_outputs(net, taps, image(case, "x"))
    check(case, {f"forward.{key}": value for key, value in kept.items()}, all_of="forward.")

    case = golden("seedcyc_d_128")
    judge = Discriminator(sigmoid=True).double()
    judge.load_state_dict(discriminator_from_seed(tensors(case.state_dict())))
    x = image(case, "x").requires_grad_()
    scores = judge(x)
    gan_loss(scores, True).backward()
    check(case, {"forward.y": scores, "forward.dx": x.grad}, all_of="")


def test_seed_losses(golden: Golden) -> None:
    case = golden("seedcyc_losses")
    x = {name: image(case, name) for name in case.inputs}
    results = {
        "losses.gan": gan_loss(x["fake_scores"], True),
        "losses.discriminator": 0.5 * (gan_loss(x["real_scores"], True) + gan_loss(x["fake_scores"], False)),
        "losses.cycle": l1(x["rec"], x["image"]),
        "losses.identity": l1(x["idt"], x["image"]),
    }
    check(case, results, all_of="")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["seedcyc_step_128", "seedcyc_train3_48"])
def test_seed_training_steps(golden: Golden, name: str) -> None:
    case = golden(name)
    options = case.spec["options"]
    weights = {
        "G_AB": generator_from_seed(tensors(case.state_dict("G_12."))),
        "G_BA": generator_from_seed(tensors(case.state_dict("G_21."))),
        "D_A": discriminator_from_seed(tensors(case.state_dict("D_1."))),
        "D_B": discriminator_from_seed(tensors(case.state_dict("D_2."))),
    }
    model = system(make("seed", {"pool_size": options["buffer_size"]}), weights, options["seed"])

    compared: set[str] = set()

    def parameter(key: str) -> nn.Parameter:
        net, _, name = key.partition(".")
        rename = generator_from_seed if net[0] == "G" else discriminator_from_seed
        keys = [k.partition(".")[2] for k in case.keys() if k.startswith(f"{net}.")]
        position = keys.index(name)
        ours = list(rename({k: torch.empty(0) for k in keys}))[position]
        return model.nets[{"G_12": "G_AB", "G_21": "G_BA", "D_1": "D_A", "D_2": "D_B"}[net]].get_parameter(ours)

    with torch.no_grad():  # of the step itself only their losses are kept
        identities = {
            "id_img_1": model.nets["G_BA"](image(case, "images_1_0")),
            "id_img_2": model.nets["G_AB"](image(case, "images_2_0")),
        }
    for step in range(options["steps"]):
        model.begin((image(case, f"images_1_{step}"), image(case, f"images_2_{step}")), step)
        s = run_step(model.phases, step, CPU)
        results: dict[str, Any] = {
            "loss_GAN": s["gan_ab"] + s["gan_ba"],
            "loss_cycle": s["cycle_a"] + s["cycle_b"],
            "loss_id": s["identity_a"] + s["identity_b"],
            "loss_G": s["generators"],
            "loss_D1": s["d_a"],
            "loss_D2": s["d_b"],
        }
        if step == 0:
            results |= identities | {
                "fake_img_2": model.fake_b,
                "fake_img_1": model.fake_a,
                "rec_img_1": model.rec_a,
                "rec_img_2": model.rec_b,
            }
            for key in options["grads_G"] + options["grads_D"]:
                results[f"grad.{key}"] = parameter(key).grad
        found = {f"step{step}.{key}": value for key, value in results.items()}
        check(case, found, 1e-6 if step == 0 else 1e-5)
        compared |= set(found)
    if options["params_after"]:
        after = {f"step{step}.after.{key}": parameter(key) for key in options["params_after"]}
        check(case, after, 1e-4)
        compared |= set(after)
    assert compared == set(case.outputs)

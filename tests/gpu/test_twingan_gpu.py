"""Twin-GAN on a GPU: steps as on the CPU, fused, recorded, in half types, and pictures as on the CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_twingan import mixed_rounding, networks, tiny_config
from torch import Tensor, nn

from anifast import backends, use_backend
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.systems.twingan import checkpoints, inference
from anifast.systems.twingan.config import Config
from anifast.systems.twingan.networks import Conv, Discriminator, Encoder, Generator
from anifast.systems.twingan.pictures import Batch
from anifast.systems.twingan.training import TwinGAN

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

GPU, CPU = torch.device("cuda"), torch.device("cpu")
ROUNDING = torch.finfo(torch.float32).eps
#: What a value passes through on the longest way of a step: the encoder twice.
WAY = ("E", "G", "E", "D_s", "D_t")
#: What a step is that is not all of the default: nets by sets of pictures, as the author's code, judged repainted too.
KINDS: dict[str, dict[str, Any]] = {
    "fast": {},
    "apart": {"stacked": False, "split_up": False, "rec_gan_from": 4},
    "tg2018": {"preset": "tg2018", "rec_gan_from": 4},
    "instance norm, wgan_gp": {"norm": "instance_norm", "loss": "wgan_gp", "self_attention": True, "attention_size": 8},
}


@pytest.fixture(autouse=True)
def products_of_float32() -> Iterator[None]:
    """Convolutions and products are not rounded to tf32 where float32 is compared."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def system_of(config: Config, stage: str, device: torch.device, total: int = 8, double: bool = False) -> TwinGAN:
    """As after some training, always the same."""
    system = TwinGAN(config, stage, device, total, start=networks(config, stage))
    if double:
        for net in system.nets.values():
            net.double()
        system.alpha = system.alpha.double()
    return system


def config_of(**changes: Any) -> Config:
    """Without a learning rate, since Adam's first step divides gradients by their own size."""
    return tiny_config(**({"batch": 4, "lr": 0.0} | changes))


def batches(system: TwinGAN, seed: int = 2) -> tuple[Batch, ...]:
    source = torch.Generator().manual_seed(seed)
    shape = (system.batches, 2, system.batch_size, 3, system.side, system.side)
    return tuple(Batch(a, b, None) for a, b in torch.rand(shape, generator=source).to(system.device))


def step(system: TwinGAN, draws: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a step leaves, half way if layers fade in."""
    system.begin(batches(system), system.batch_size)
    if draws is not None:  # generators of another device or type draw other numbers
        system._draws = {name: value.to(system.alpha) for name, value in draws.items()}
    return results(system, run_step(system.phases, 1, system.device, system.config.precision))


def results(system: TwinGAN, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses, means of gradients and what the norms remember behind a step."""
    found = dict(losses)
    for name, net in system.nets.items():
        # where a recorded phase leaves them too
        moments = system.optimizers["D" if name.startswith("D") else "G"].state
        gradients = [moments[p]["exp_avg"] if p in moments else torch.zeros_like(p) for p in net.parameters()]
        found[f"gradient of {name}"] = torch.cat([gradient.flatten() for gradient in gradients])
        for key, value in net.named_buffers():
            if key.startswith("norms.r") and not key.startswith(("norms.recalibrated", "norms.renorm_limits")):
                found[f"{key} of {name}"] = value.clone()
    return {name: value.double().cpu() for name, value in found.items()}


def relative(value: Tensor, exact: Tensor) -> float:
    error = float((value - exact).norm() / exact.norm().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def rounding_of(nets: list[nn.Module]) -> tuple[float, float]:
    """What rounding can do to a value that passes through all layers, and to a gradient.

    A sum of n products errs by about sqrt(n) / 2 roundings, and those of all layers may add up to e. In gradients an
    error also decides on which side of 0 a value of a leaky ReLU lies: of each layer's values a share of 2 e, which
    carry as large a share of the squared gradients.
    """
    layers = [w for net in nets for w in net.parameters() if w.dim() == 4]
    e = sum(math.sqrt(w[0].numel()) / 2 for w in layers) * ROUNDING
    return e, math.sqrt(2 * e * len(layers))


def check(found: dict[str, Tensor], usual: dict[str, Tensor], exact: dict[str, Tensor], system: TwinGAN) -> None:
    """Errors against float64 up to twice those of `usual`, plus what rounding can do."""
    assert found.keys() == usual.keys() == exact.keys()
    e, turned = rounding_of([system.nets[name] for name in WAY])
    for name, value in exact.items():
        allowed = 2 * relative(usual[name], value) + (turned if name.startswith("gradient") else e)
        assert relative(found[name], value) <= allowed, name


@pytest.mark.parametrize("stage", ["16", "8to16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_cpu(kind: str, stage: str) -> None:
    config = config_of(**KINDS[kind])
    plain = system_of(config, stage, CPU)
    with use_backend("reference"):
        usual = step(plain)
        exact = step(system_of(config, stage, CPU, double=True), plain._draws)
    check(step(system_of(config, stage, GPU), plain._draws), usual, exact, plain)


@pytest.mark.parametrize("stage", ["16", "8to16"])
def test_a_fused_step_is_the_plain_one(stage: str) -> None:
    """Every op by Triton, where both ways run on the GPU; and as one network call for each set of pictures."""
    reason = backends.why_not("domain_norm", "triton", "cuda")
    if reason:
        (pytest.fail if os.environ.get("ANIFAST_GPU_TARGET") else pytest.skip)(f"triton: {reason}")
    config = config_of()
    system = system_of(config, stage, GPU)
    with use_backend("triton"):  # which raises where an op cannot
        fused = step(system)
    with use_backend("reference"):
        usual = step(system_of(config_of(stacked=False, split_up=False), stage, GPU), system._draws)
        exact = step(system_of(config, stage, CPU, double=True), system._draws)
    check(fused, usual, exact, system)


@pytest.mark.parametrize("kind", ["fast", "tg2018"])
def test_recorded_steps_are_those_that_run(kind: str) -> None:
    """While weights move, layers fade in and the limits of batch renorm change; all are read on the device.

    Weights move by a factor, the same in both: Adam's steps would depend on which side of 0 a rounding leads to.
    """
    config = config_of(**KINDS[kind])
    count = WARM_UP + 8

    def steps(graphs: Graphs | None = None) -> list[dict[str, Tensor]]:
        first = 10_001 - (WARM_UP + 4)  # beyond step 10,000 there are other limits
        system = system_of(config, "8to16", GPU, total=(first + count) * config.batch)
        system.faded = lambda images: 0.1 + 0.8 * (images // config.batch - first) / count  # type: ignore[method-assign]
        found = []
        for index in range(count):
            system.begin(batches(system, seed=index), (first + index) * config.batch)
            found.append(results(system, run_step(system.phases, index, GPU, graphs=graphs)))
            with torch.no_grad():
                for net in system.nets.values():
                    for value in net.parameters():
                        value.mul_(0.99)
        return found

    nets = networks(config, "8to16")
    e, turned = (2 * one for one in rounding_of([nets[name] for name in WAY]))  # both round

    def furthest(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> dict[str, float]:
        """In what rounding can do."""
        found: dict[str, float] = {}
        for a, b in zip(one, other, strict=True):
            for name, value in b.items():
                error = relative(a[name], value) / (turned if name.startswith("gradient") else e)
                found[name] = max(found.get(name, 0.0), error)
        return found

    once = steps()
    apart, moved = furthest(steps(Graphs(GPU)), once), furthest(once[1:], once[:-1])
    assert max(apart.values()) <= 1, apart
    assert min(moved.values()) > 1, moved


@pytest.mark.parametrize("kind", ["fast", "apart"])
def test_in_half_types_statistics_and_logits_are_float32(kind: str) -> None:
    """So are penalties; convolutions elsewhere are in bfloat16, and losses as far off as its roundings lead."""
    config = config_of(**KINDS[kind], precision="bf16")
    system = system_of(config, "16", GPU)
    maps: dict[str, set[torch.dtype]] = {"E": set(), "G": set(), "D": set()}
    told: set[torch.dtype] = set()

    def look(name: str) -> Any:
        def seen(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            if isinstance(module, Conv):
                maps[name[0]].add(out.dtype)
            elif isinstance(module, Discriminator):
                told.add(out.scores.dtype)
            elif isinstance(module, Encoder):
                told.update((out.found.mean.dtype, out.found.std.dtype))
            elif isinstance(module, Generator):
                told.update((out[1].mean.dtype, out[1].std.dtype))

        return seen

    for name, net in system.nets.items():
        for module in net.modules():
            module.register_forward_hook(look(name))
    half = step(system)
    assert told == {torch.float32}
    # the penalty goes through the discriminators in float32
    assert torch.bfloat16 in maps["E"] and torch.bfloat16 in maps["G"]
    assert maps["D"] == {torch.bfloat16, torch.float32}
    assert all(value.dtype == torch.float32 for net in system.nets.values() for value in net.state_dict().values())
    plain = step(system_of(config_of(**KINDS[kind]), "16", GPU), system._draws)
    allowed = mixed_rounding(system.nets[name] for name in ("E", "G", "E", "D_s"))
    for name, value in plain.items():
        if value.dim() == 0:
            assert float((half[name] - value).abs()) <= allowed * max(1.0, float(value.abs())), name


def test_maps_are_in_channels_last() -> None:
    """All the way through all networks, so that no convolution turns them around."""
    system = system_of(config_of(rec_gan_from=4), "8to16", GPU)
    layouts: dict[str, bool] = {}

    def look(name: str) -> Any:
        def seen(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[1:]) > 1:
                layouts[name] = out.is_contiguous(memory_format=torch.channels_last)

        return seen

    for net_name, net in system.nets.items():
        for name, module in net.named_modules():
            module.register_forward_hook(look(f"{net_name} {name}"))
    step(system)
    assert layouts and all(layouts.values()), [name for name, good in layouts.items() if not good]


def test_pictures_are_those_of_the_cpu() -> None:
    """Translated and embedded, one at a time and all at once."""
    config = config_of()
    nets = system_of(config, "16", CPU).nets
    weights = {name: net.state_dict() for name, net in nets.items()}
    state = {**checkpoints.header(config), "stage": "16", "alpha": 1.0, "batch": config.batch, "nets": weights}
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    models = {device: inference.load(state, device) for device in (CPU, GPU)}
    with use_backend("reference"):
        usual = {to: models[CPU].translate(images, to) for to in ("A", "B")}
        usual |= {domain: models[CPU].embed(images, domain) for domain in ("s", "t")}
    # both sides err by as much
    allowed = 2 * rounding_of([nets["E"], nets["G"]])[0]
    for name, value in usual.items():
        model = models[GPU]
        work = model.translate if name in ("A", "B") else model.embed
        together = work(images.cuda(), name).cpu()
        apart = torch.cat([work(one[None].cuda(), name) for one in images]).cpu()
        for found in (together, apart):
            assert found.shape == value.shape and relative(found, value) <= allowed, name

"""GANs N' Roses on a GPU: its authors' numbers, steps as on the CPU, recorded, in half types, with less kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_gnr import tiny_config
from torch import Tensor, nn

from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.nn.stylegan2_layers import lay_out
from anifast.systems.gnr.networks import Discriminator, Generator
from anifast.systems.gnr.training import GNR, Batch

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def products_of_float32() -> Iterator[None]:
    """Convolutions and products are not rounded to tf32 where float32 is compared."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["gnr_generator_64_a", "gnr_discriminator_64_a"])
def test_golden(name: str, layout: torch.memory_format, golden: Callable[[str], Any]) -> None:
    """Values, to ten times the authors' own error in float32."""
    case = golden(name)
    kind: type[nn.Module] = Generator if "generator" in name else Discriminator
    net = kind(**case.spec["modules"][0]["init"])
    net.load_state_dict({key: torch.from_numpy(value) for key, value in case.state_dict("").items()})
    net.cuda()
    if layout == torch.channels_last:
        lay_out(net)
    x = torch.from_numpy(case.inputs["x"]).cuda().contiguous(memory_format=layout)
    with torch.no_grad():
        if isinstance(net, Generator):
            content, style = net.encode(x)
            found = {"encode.content": content, "encode.style": style}
        else:
            found = dict(zip(("heads.l_adv", "heads.g_adv", "heads.g_std"), net(x), strict=True))
    errors = case.compare({key: value.cpu().numpy() for key, value in found.items()})
    for key, error in errors.items():
        assert error < max(10 * case.outputs[key]["f32"], 1e-5), key


def batches(count: int, size: int = 2) -> list[Batch]:
    source = torch.Generator().manual_seed(5)
    return [Batch(*(torch.rand(size, 3, 64, 64, generator=source) * 2 - 1 for _ in range(4))) for _ in range(count)]


def losses(device: torch.device, steps: range, graphs: Graphs | None = None, **settings: Any) -> list[dict[str, float]]:
    """What the steps give; the same draws on every device."""
    config = tiny_config(**settings)
    system = GNR(config, device)
    found = []
    for step, batch in zip(steps, batches(len(steps), config.batch), strict=True):
        system.begin(Batch(*(images.to(device) for images in batch)), config.batch * step)
        values = run_step(system.phases, step, device, config.precision, graphs=graphs)
        found.append({name: float(value) for name, value in values.items()})
    return found


def furthest(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest difference, relative to the loss, of all steps."""
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)


@pytest.mark.parametrize("preset", [{}, {"generator": "v2", "discriminator": "v2", "lambda_identity": 10.0}])
def test_a_first_step_is_that_of_the_cpu(preset: dict[str, Any]) -> None:
    """Before Adam's first step, which divides gradients by their own size, rounding is all that differs.

    Losses behind it are left out; R1 squares sums of products of second order.
    """
    ours, plain = (losses(device, range(1), lr=0.0, **preset) for device in (GPU, CPU))
    assert ours[0].keys() == plain[0].keys() and furthest(ours, plain) < 1e-3


def test_recorded_steps_are_those_that_run() -> None:
    """With penalties in between; two runs alike differ as well, since some sums have no fixed order."""
    steps = range(1, WARM_UP + 8)
    once, again = (losses(GPU, steps, r1_every=4) for _ in range(2))
    recorded = losses(GPU, steps, Graphs(GPU), r1_every=4)
    assert furthest(recorded, once) <= 10 * furthest(again, once) + 1e-3


def test_half_types_are_near() -> None:
    """The first step's losses; bfloat16 keeps 8 bits of each of some twenty layers."""
    ours, plain = (losses(GPU, range(1, 2), lr=0.0, precision=precision) for precision in ("bf16", "fp32"))
    assert furthest(ours, plain) < 0.5 and all(torch.isfinite(torch.tensor(list(ours[0].values()))))


def test_checkpointing_keeps_less() -> None:
    peaks = []
    for on in (False, True):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        losses(GPU, range(1, 3), checkpointing=on, channel_multiplier=0.25, batch=4, r1=0.0)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.9 * peaks[0]


def test_maps_are_in_channels_last() -> None:
    """All the way through encoder, decoder and discriminators, also their gradients."""
    system = GNR(tiny_config(), GPU)
    layouts: list[bool] = []

    def seen(_: nn.Module, __: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[1:]) > 1:
            layouts.append(out.is_contiguous(memory_format=torch.channels_last))

    for net in system.nets.values():
        for module in net.modules():
            module.register_forward_hook(seen)
    (batch,) = batches(1)
    system.begin(Batch(*(images.cuda() for images in batch)), 2)
    run_step(system.phases, 1, GPU)
    assert layouts and all(layouts)

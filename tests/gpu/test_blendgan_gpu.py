"""BlendGAN on a GPU: its authors' numbers, steps as on the CPU, recorded, in half types, with less kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_blendgan import stage_state, tiny_config
from tiny_cyclegan import picture

from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import run_step
from anifast.nn.stylegan2 import Discriminator
from anifast.systems.blendgan import checkpoints, inference
from anifast.systems.blendgan.config import make
from anifast.systems.blendgan.contrast import Style
from anifast.systems.blendgan.networks import Generator, ProjectionDiscriminator
from anifast.systems.blendgan.training import Batch, Gan

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


def test_generator_golden(golden: Callable[[str], Any]) -> None:
    """Blended pictures of an indicator between the ends, to ten times the authors' own error in float32."""
    case = golden("blend_generator_64_a")
    net = Generator(64)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in case.state_dict("").items()})
    net.cuda()
    given = {name: torch.from_numpy(value).cuda() for name, value in case.inputs.items()}
    noise = [given[f"noise_{k}"] for k in range(9)]
    with torch.no_grad():
        image, latents = net(given["z"], given["z_embed"], 4, noise=noise, return_latents=True)
    found = {"index_4.image": image.cpu().numpy(), "index_4.latent": latents.cpu().numpy()}
    for key, error in case.compare(found).items():
        assert error < max(10 * case.outputs[key]["f32"], 1e-5), key


def test_discriminators_golden(golden: Callable[[str], Any]) -> None:
    """Logits of a batch of 8, compared in groups of 4."""
    case = golden("blend_discriminators_64_a")
    given = {name: torch.from_numpy(value).cuda() for name, value in case.inputs.items()}
    plain, coded = Discriminator(64, 1).cuda(), ProjectionDiscriminator(64, 512, 1).cuda()
    for net, prefix in ((plain, "d."), (coded, "p.")):
        net.load_state_dict({key: torch.from_numpy(value) for key, value in case.state_dict(prefix).items()})
    with torch.no_grad():
        found = {"d_batch8.logit": plain(given["x_64_8"]), "p_batch8.logit": coded(given["x_64_8"], given["style_8"])}
    errors = case.compare({key: value.cpu().numpy() for key, value in found.items()})
    for key, error in errors.items():
        assert error < max(10 * case.outputs[key]["f32"], 1e-5), key


def batches(count: int, size: int, codes: int) -> list[Batch]:
    source = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        faces, art = torch.rand(2, size, 3, 64, 64, generator=source) * 2 - 1
        found.append(Batch(faces, art, torch.randn(size, codes, generator=source)))
    return found


def losses(device: torch.device, steps: range, graphs: Graphs | None = None, **settings: Any) -> list[dict[str, float]]:
    """What the steps give; the same faces on every device, with noise of no strength."""
    config = tiny_config(**settings)
    system = Gan(config, device, torch.randn(16, config.style_dim, generator=torch.Generator().manual_seed(1)))
    found = []
    for step, batch in zip(steps, batches(len(steps), config.batch, config.style_dim), strict=True):
        system.begin(Batch(*(x.to(device) for x in batch)), config.batch * step)
        values = run_step(system.phases, step, device, config.precision, graphs=graphs)
        found.append({name: float(value) for name, value in values.items()})
    return found


def furthest(one: list[dict[str, float]], other: list[dict[str, float]], leave_out: tuple[str, ...] = ()) -> float:
    """The largest difference, relative to the loss, of all steps."""
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a if name not in leave_out]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)


@pytest.mark.parametrize("mode", ["paper", "matching"])
def test_a_first_step_is_that_of_the_cpu(mode: str) -> None:
    """Before Adam's first step, which divides gradients by their own size, rounding is all that differs.

    The directions of path lengths are drawn on the device.
    """
    ours, plain = (losses(device, range(1), lr=0.0, latent_loss=mode) for device in (GPU, CPU))
    assert ours[0].keys() == plain[0].keys() and "r1" in ours[0] and "path_style" in ours[0]
    assert furthest(ours, plain, ("path_face", "path_style")) < 1e-3


def test_recorded_steps_are_those_that_run() -> None:
    """With penalties in between; two runs alike differ as well, since some sums have no fixed order."""
    steps = range(1, WARM_UP + 12)
    once, again = (losses(GPU, steps, r1_every=4, path_every=3) for _ in range(2))
    recorded = losses(GPU, steps, Graphs(GPU), r1_every=4, path_every=3)
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
        losses(GPU, range(1, 3), checkpointing=on, base_channels=128, batch=8, r1=0.0, path_length=0.0)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.9 * peaks[0]


def test_the_style_encoder_learns_as_on_the_cpu() -> None:
    """Two steps' losses: the second has the folded Adam's first step in it."""
    found = []
    for device in (GPU, CPU):
        config = tiny_config()
        system = Style(config, 4, device)
        source = torch.Generator().manual_seed(2)
        rows = []
        for step in range(2):
            system.begin((torch.rand(8, 3, 32, 32, generator=source) * 2 - 1).to(device), 4 * step)
            rows.append({name: float(value) for name, value in run_step(system.phases, step, device).items()})
        found.append(rows)
    assert furthest(found[0], found[1], ("recognised",)) < 2e-2


def test_a_card_of_4_gb_is_enough_at_1024_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos x styles with the published networks, by what the estimate says of a card with that much free."""
    config = make()
    state = {
        "format": checkpoints.FORMAT,
        "config": config.as_dict(),
        "parts": {stage: stage_state(config, stage, ema=False) for stage in ("style", "gan", "psp")},
    }
    free = 3.6e9  # the driver has the rest
    monkeypatch.setattr(inference, "free_memory", lambda device: free)
    photos, art = (
        [picture(tmp_path / kind / f"{n}.png", n, (1024, 1024)) for n in range(3)] for kind in ("photos", "art")
    )
    model = inference.Model(state, GPU)
    batch = model.fitting_batch(model.used(["art"]))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    painter = model.painter(style=[str(art[0].parent)], batch=batch)
    assert painter.prepare(photos) == {}
    count = 0
    for part in painter(torch.stack([painter.read(path) for path in photos])):
        assert part.shape[1:] == (3, 1024, 1024) and bool(torch.isfinite(part).all())
        count += len(part)
    assert count == 9 and batch >= 2
    peak = torch.cuda.max_memory_allocated() - before
    estimated = max(map(sum, model.memory(batch, model.used(["art"])).values()))
    assert peak <= estimated <= free, f"{peak / 1e9:.2f} GB, estimated {estimated / 1e9:.2f} GB"

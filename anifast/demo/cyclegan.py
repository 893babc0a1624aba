"""The demo's CycleGAN: between photo-like faces and those of one artist, both ways."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

import anifast
from anifast.demo import shared
from anifast.demo.shared import DOMAINS, SIZE, l1, patch_distance
from anifast.engine import precision, translate
from anifast.engine.loop import run_step
from anifast.engine.sheets import Block, sheet
from anifast.files import atomic_path
from anifast.systems import runs
from anifast.systems.cyclegan import config as cyclegan
from anifast.systems.cyclegan import training
from anifast.systems.cyclegan.inference import Translator

#: What it puts into the demo's folder.
MADE = ("faces", "run", "translated", "sheet.png", "losses.png")
#: Pictures per domain that a run sees where the machine is fast enough.
IMAGES = 4000
SETTINGS: dict[str, Any] = {
    "size": SIZE,
    "load_size": 68,
    "blocks": 3,
    "width": 32,
    "d_width": 32,
    "skip": True,
    # A network that starts at the identity needs no identity loss, and a strong cycle loss would keep it there.
    "lambda_a": 2.0,
    "lambda_b": 2.0,
    "lambda_identity": 0.0,
    "lr": 4e-4,
    "ema": 400,
    "log_every": 20,
    "sheet_every": 1000,
    "save_every": 1000,
}
_SHOWN = 6


def run(out: Path, device: torch.device, images: int | None) -> list[tuple[str, str]] | None:
    """Draw, train, translate and tell how well.

    Args:
        out: the demo's folder, without an earlier demo's `MADE`.
        device: where to compute.
        images: training pictures per domain; None: as many as the machine affords.

    Returns:
        Names in the folder and what is there, or None: Ctrl-C ended the training.
    """
    train, held = shared.enough(images), shared.held_out(out / "faces")
    for side, domain in DOMAINS.items():
        shared.drawn(out / "faces" / f"train{side}", domain, train)

    fast = device.type == "cuda" or precision.matrix_unit()
    values = {**SETTINGS, "precision": "bf16" if fast else "fp32"}
    total = images or min(IMAGES, _affordable(values, device))
    epochs = math.ceil(total / train)
    values |= {"epochs": epochs - epochs // 2, "decay_epochs": epochs // 2, "images": total, "minutes": shared.MINUTES}
    if not runs.train("cyclegan", out / "faces", out / "run", preset="small", values=values, device=str(device)):
        return None

    model = anifast.load(out / "run", str(device))
    before = _untrained(model, device)
    blocks, lines = [], []
    for there, back in (("B", "A"), ("A", "B")):
        inputs, truth = held[back]
        first, last = before.translate(inputs, to=there), model.translate(inputs, to=there)
        returned = model.translate(last, to=back)
        cycle = [l1(before.translate(first, to=back), inputs), l1(returned, inputs)]
        target = held[there][0]
        patches = [patch_distance(x, target) for x in (inputs, first, last)]
        likeness = [l1(x, truth) for x in (inputs, first, last)]
        lines += [
            f"{back} to {there}  cycle L1                          {cycle[0]:.3f} -> {cycle[1]:.3f}",
            f"        patches, distance to {there}'s           {patches[1]:.3f} -> {patches[2]:.3f}   "
            f"(untranslated {patches[0]:.3f})",
            f"        L1 to the same face, {DOMAINS[there]:<5}         {likeness[1]:.3f} -> {likeness[2]:.3f}   "
            f"(untranslated {likeness[0]:.3f})",
        ]
        rows = [
            (f"held-out {DOMAINS[back]}", inputs),
            ("before training", first),
            ("after training", last),
            ("and back again", returned),
            ("the same face,\nnever shown", truth),
        ]
        blocks.append(
            Block(f"{back} to {there}: {DOMAINS[back]} to {DOMAINS[there]}", [(a, b[:_SHOWN]) for a, b in rows])
        )
        jobs, _ = translate.collect([out / "faces" / f"test{back}"], out / "translated" / there)
        outcome = translate.translate_files(partial(model.translate, to=there), jobs, size=SIZE)
        print(f"translated {len(outcome.written)} held-out faces to {there}: {outcome.seconds:.1f} s")
    with atomic_path(out / "sheet.png") as temporary:
        sheet(blocks).save(temporary)
    shutil.copyfile(out / "run" / "losses.png", out / "losses.png")
    print(f"CycleGAN: {shared.HELD} held-out faces per direction, before -> after training (lower is better)")
    print("\n".join(lines))
    print(precision.describe(device, values["precision"]), flush=True)
    return [
        ("sheet.png", "held-out faces both ways, before and after"),
        ("losses.png", "the losses"),
        ("run/samples", "the networks' progress"),
        ("translated", "all translations"),
    ]


def _affordable(values: dict[str, Any], device: torch.device) -> int:
    """How many images a run sees in the time that it may take, from a few steps of the same networks."""
    config = cyclegan.make("small", values)
    system = training.CycleGAN(config, device)
    batch = torch.zeros(1, 3, SIZE, SIZE, device=device).uniform_(-1, 1)

    def step(number: int) -> None:
        system.begin((batch, batch), 0)
        run_step(system.phases, number, device, config.precision)["generators"].item()  # waits for a GPU

    epochs = int(shared.SECONDS / shared.seconds_of(step) / shared.TRAIN)
    return max(1, epochs) * shared.TRAIN


def _untrained(model: Translator, device: torch.device) -> Translator:
    """The same networks as they were before the first step: drawn again from the run's seed."""
    config = model.config
    nets = {name: net.state_dict() for name, net in training.networks(config).items()}
    return Translator({"format": "anifast.cyclegan/1", "config": config.as_dict(), "nets": nets}, device)

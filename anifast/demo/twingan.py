"""The demo's Twin-GAN: photo-like and drawn faces by one network, grown from 4x4, and a search across the two.

Its pictures are small: what it learns in a minute and a half is colours, poses and whose hair is how long.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import anifast
from anifast import systems
from anifast.demo import shared
from anifast.demo.shared import DOMAINS, l1, patch_distance
from anifast.engine import state
from anifast.engine.loop import run_step
from anifast.engine.sheets import Block, sheet
from anifast.files import atomic_path
from anifast.systems import runs
from anifast.systems.twingan import config as twingan
from anifast.systems.twingan import training
from anifast.systems.twingan.gallery import topk
from anifast.systems.twingan.inference import Model
from anifast.systems.twingan.pictures import Batch, preprocess

#: The folder that it puts into the demo's.
NAME = "twingan"
MADE = (NAME,)
#: Side of its pictures.
SIDE = 32
#: Steps of a phase where the machine is fast enough; the last has twice as many. Seconds that all may take otherwise.
STEPS, SECONDS = 150, 80.0
#: What a step takes in each phase, in steps of the last: the phases' sum is the run's.
_SHARES = {"4": 0.1, "4to8": 0.2, "8": 0.2, "8to16": 0.4, "16": 0.4, "16to32": 1.0, "32": 2.0}
SETTINGS: dict[str, Any] = {
    "size": SIDE,
    # Narrow networks, which leave time for many steps; of so few those of an equalised learning rate paint noise.
    "max_channels": 32,
    "equalized": False,
    "batch": 8,
    "lr": 1e-3,
    "ema": 0.98,
    # Faces are framed alike.
    "crop": 0.9,
    "jitter": "none",
    # Layers as narrow as these gain next to nothing from bf16.
    "precision": "fp32",
}
#: Faces on the sheet, and those found for each.
_SHOWN, _FOUND = 6, 5
#: Faces at once whose statistics are taken.
_BATCH = 50


def run(out: Path, device: torch.device, images: int | None) -> list[tuple[str, str]] | None:
    """Draw, train, translate, search and tell how well.

    Args:
        out: the demo's folder, without an earlier demo's `MADE`.
        device: where to compute.
        images: training pictures per domain, of all phases; None: as many as the machine affords.

    Returns:
        Names in the folder and what is there, or None: Ctrl-C ended the training.
    """
    here = out / NAME
    train, held = shared.enough(images), shared.held_out(here / "faces")
    seen = [shared.drawn(here / "faces" / f"train{side}", domain, train)[0] for side, domain in DOMAINS.items()]

    values = dict(SETTINGS)
    config = twingan.make("small", values)
    phases = len(config.phases) + 1  # the last counts twice
    steps = max(1, images // (phases * config.batch)) if images else min(STEPS, _affordable(config, device))
    each = steps * config.batch
    values |= {"phase_images": each, "last_images": 2 * each, "minutes": shared.MINUTES}
    values |= {"log_every": 10 * config.batch, "sheet_every": each, "save_every": each}
    if not runs.train("twingan", here / "faces", here / "run", preset="small", values=values, device=str(device)):
        return None

    model = _recalibrated(here / "run", here / "model.pt", seen, device)
    lines, blocks = [], []
    for there, back in (("B", "A"), ("A", "B")):
        inputs, truth = (at_side(images) for images in held[back])
        translated, again = model.translate(inputs, there), model.reconstruct(inputs, back)
        lines += _compared(model, inputs, translated, truth, at_side(held[there][0]), there)
        rows = [
            (f"held-out {DOMAINS[back]}", inputs),
            ("translated", translated),
            ("and back again", model.translate(translated, back)),
            ("repainted\nin its own domain", again),
            ("the same face,\nnever shown", truth),
        ]
        blocks.append(
            Block(f"{back} to {there}: {DOMAINS[back]} to {DOMAINS[there]}", [(a, b[:_SHOWN]) for a, b in rows])
        )
    blocks.append(_found(model, held["A"][0], held["B"][0]))
    with atomic_path(here / "sheet.png") as temporary:
        sheet(blocks, tile=96).save(temporary)
    last = config.phases[-1]
    shutil.copyfile(here / "run" / last / "losses.png", here / "losses.png")
    taken = f"{steps} steps in each phase, {2 * steps} in the last"
    print(f"Twin-GAN: {shared.HELD} held-out faces per direction at {SIDE}x{SIDE}, after {taken}")
    print("\n".join(lines), flush=True)
    return [
        (f"{NAME}/sheet.png", "held-out faces both ways, and the drawn faces that lie nearest to photos"),
        (f"{NAME}/model.pt", f"the model, for anifast twingan translate {here / 'model.pt'} PHOTOS --out DIR"),
        (f"{NAME}/losses.png", "the losses of the last phase"),
        (f"{NAME}/run/{last}/samples", "the network's progress; the phases before it stand beside"),
    ]


def _recalibrated(run: Path, file: Path, seen: list[Tensor], device: torch.device) -> Model:
    """The run's model with statistics taken anew of the training faces, which goes into a file.

    What training keeps follows it slowly and lags behind a run that is as short as this: with statistics taken anew
    the patches of translations lie half as far from those of real faces.
    """
    found = systems.read(run)
    model = Model(found, device)
    source, target = (at_side(images).split(_BATCH) for images in seen)
    model.recalibrate(source, target)
    state.save(file, model.recalibrated_state(found))
    loaded = anifast.load(file, str(device))  # by these statistics, as the file has them
    assert isinstance(loaded, Model)
    return loaded


def at_side(images: Tensor) -> Tensor:
    """Faces in [-1, 1] as the network sees them."""
    return preprocess((images + 1) / 2, SIDE) * 2 - 1


def _compared(model: Model, inputs: Tensor, translated: Tensor, truth: Tensor, real: Tensor, there: str) -> list[str]:
    """Figures of one direction for the end of the demo.

    What a character looks like in the other domain is known and was never shown: so it can be told how like it a
    translation is, and whether the search finds it among those of all characters.
    """
    back = "A" if there == "B" else "B"
    count, few = len(inputs), min(_FOUND, len(truth))

    def shares(queries: Tensor, among: Tensor) -> list[float]:
        """Percent of queries whose own face is the nearest, and among the nearest few."""
        hits = topk(queries, among, few)[1] == torch.arange(count)[:, None]
        return [100 * float(one.float().mean()) for one in (hits[:, 0], hits.any(1))]

    first, any_of = shares(model.embed(inputs, back), model.embed(truth, there))
    plain, plain_any = shares(*(F.normalize(images.flatten(1), dim=1) for images in (inputs, truth)))
    return [
        f"{back} to {there}  patches, distance to {there}'s      {patch_distance(translated, real):.3f}   "
        f"(untranslated {patch_distance(inputs, real):.3f})",
        f"        L1 to the same face, {DOMAINS[there]:<5}    {l1(translated, truth):.3f}   "
        f"(untranslated {l1(inputs, truth):.3f})",
        f"        search: the same face is found    {first:.0f} %   (by chance {100 / count:.0f} %, "
        f"by pixels {plain:.0f} %)",
        f"          among the nearest {few}             {any_of:.0f} %   (by chance {100 * few / count:.0f} %, "
        f"by pixels {plain_any:.0f} %)",
    ]


def _found(model: Model, photos: Tensor, drawings: Tensor) -> Block:
    """A block with photos and, in the row of each, the held-out drawings of other characters that lie nearest."""
    shown = photos[: _SHOWN - 1]
    near = topk(model.embed(shown, "A"), model.embed(drawings, "B"), min(_FOUND, len(drawings)))[1]
    rows = [("", torch.cat([photo[None], drawings[row]])) for photo, row in zip(shown, near, strict=True)]
    heads = ["photo", *(f"nearest {k + 1}" for k in range(near.shape[1]))]
    return Block(f"search among {len(drawings)} drawings of others", rows, heads)


def _affordable(config: twingan.Config, device: torch.device) -> int:
    """How many steps each phase has in the time that all may take, from a few steps of the last one's networks."""
    system = training.TwinGAN(config, config.phases[-1], device)
    faces = torch.rand(2, config.batch, 3, SIDE, SIDE, device=device)
    batch = (Batch(faces[0], faces[1], None),) * system.batches

    def step(number: int) -> None:
        system.begin(batch, number * config.batch)
        run_step(system.phases, number, device, config.precision)["generator"].item()  # waits for a GPU

    return max(1, int(SECONDS / shared.seconds_of(step) / sum(_SHARES.values())))

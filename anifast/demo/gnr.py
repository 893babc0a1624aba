"""The demo's GANs N' Roses: photo-like faces painted in the styles of several artists."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import anifast
from anifast.data import portraits
from anifast.demo import shared
from anifast.demo.shared import SIZE, l1, patch_distance
from anifast.engine import translate
from anifast.engine.loop import run_step
from anifast.files import atomic_path
from anifast.systems import runs
from anifast.systems.gnr import checkpoints, sheets, training
from anifast.systems.gnr import config as gnr
from anifast.systems.gnr.inference import Translator
from anifast.systems.gnr.networks import networks

#: The folder that it puts into the demo's.
NAME = "gnr"
MADE = (NAME,)
#: What the artists do, far apart in colour, line and ground -> their numbers.
_ARTISTS = {"pop art": 1, "ink": 3, "pastel": 4, "neon": 7, "sunset": 13}
ARTISTS = tuple(portraits.ARTISTS[number] for number in _ARTISTS.values())
HEADS = tuple(_ARTISTS)
#: Steps of a run where the machine is fast enough.
STEPS = 2000
SETTINGS: dict[str, Any] = {
    "size": SIZE,
    # Contents of 32 x 32 pixels carry a face from the first minute on, and few channels leave time for many steps.
    "num_down": 1,
    "channel_multiplier": 1 / 16,
    "batch": 3,
    # Updates of narrow layers have to be larger than those of wide ones to change their results as much.
    "lr": 1e-2,
    "ema": 0.98,
    # A strong cycle loss would keep photos photos; as strong as it is usual, the loss on codes makes all codes one.
    "cycle": "l1",
    "lambda_cycle": 5.0,
    "lambda_identity": 5.0,
    "lambda_style": 1.0,
    "lambda_latent": 1.0,
    # Faces are framed alike: pictures are cut and mirrored only.
    "affine": 0.0,
    "lpips_net": "none",
    # Layers as narrow as these gain next to nothing from bf16.
    "precision": "fp32",
}
#: Photos on the sheet, and random styles of each there.
_SHOWN, _RANDOM = 6, 5
#: Random styles in which all photos are painted.
_PAINTED = 3
#: Faces and styles of each that diversity is measured with.
_CONTENTS, _STYLES = 12, 6


def run(out: Path, device: torch.device, images: int | None) -> list[tuple[str, str]] | None:
    """Draw, train, paint and tell how well.

    Args:
        out: the demo's folder, without an earlier demo's `MADE`.
        device: where to compute.
        images: training pictures per domain; None: as many as the machine affords.

    Returns:
        Names in the folder and what is there, or None: Ctrl-C ended the training.
    """
    here = out / NAME
    train, held = shared.enough(images), shared.held_out(here / "faces", ARTISTS)
    for side, domain in shared.DOMAINS.items():
        shared.drawn(here / "faces" / f"train{side}", domain, train, artists=ARTISTS)

    values = dict(SETTINGS)
    config = gnr.make("small", values)
    steps = max(1, images // config.batch) if images else min(STEPS, _affordable(config, device))
    total = steps * config.batch
    values |= {"steps": steps, "halve_every": math.ceil(0.4 * steps), "minutes": shared.MINUTES}
    values |= {"log_every": 10 * config.batch, "sheet_every": max(1, total // 4), "save_every": max(1, total // 4)}
    if not runs.train("gnr", here / "faces", here / "run", preset="small", values=values, device=str(device)):
        return None

    model = anifast.load(here / "run", str(device))
    assert isinstance(model, Translator)
    photos, drawings = held["A"][0], held["B"][0]
    lines = _compared(_untrained(model, device), model, photos, drawings)
    with atomic_path(here / "sheet.png") as temporary:
        _sheet(model, photos[:_SHOWN], drawings[: len(ARTISTS)]).save(temporary)
    shutil.copyfile(here / "run" / "losses.png", here / "losses.png")
    painter = model.painter("B", styles=_PAINTED)
    jobs, _ = translate.collect([here / "faces" / "testA"], here / "translated")
    painter.save(here / "translated")
    outcome = translate.translate_files(painter, translate.several(jobs, painter.labels), size=SIZE)
    print(f"painted {len(jobs)} held-out photos in {painter.about}: {outcome.seconds:.1f} s")
    print(f"GANs N' Roses: {len(photos)} held-out photos, before -> after training")
    print("\n".join(lines), flush=True)
    return [
        (f"{NAME}/sheet.png", "held-out photos in styles of drawings and in random ones"),
        (f"{NAME}/losses.png", "the losses"),
        (f"{NAME}/run/samples", "the networks' progress, both ways"),
        (f"{NAME}/translated", "all photos in three random styles, and the codes of these"),
    ]


def _sheet(model: Translator, photos: Tensor, drawings: Tensor) -> Image.Image:
    """Photos in the styles of drawings, one by each artist, and in random ones."""
    styles = torch.cat([model.styles_of(drawings), model.random_styles(_RANDOM)])
    shown = torch.cat([drawings, torch.ones(_RANDOM, *drawings.shape[1:])])
    heads = [*HEADS[: len(drawings)], *(f"random {number}" for number in range(1, _RANDOM + 1))]
    names = [f"photo {number}" for number in range(len(photos))]
    return sheets.grid(model, photos, styles, names=names, heads=heads, references=shown)


def _compared(before: Translator, after: Translator, photos: Tensor, drawings: Tensor) -> list[str]:
    """Figures of both models for the end of the demo.

    What a photo's character looks like by each artist is known and was never shown: so it can be told by whom a photo
    in the style of a drawing is painted, and how like it is.
    """
    count = len(photos)
    truth = torch.stack(
        [
            torch.stack([shared.face("photo", shared.HELD_FROM + n, "drawn", artist) for artist in ARTISTS])
            for n in range(count)
        ]
    )  # count, artists
    by = torch.arange(count) % len(ARTISTS)  # whose drawing is read for a photo
    rows = []
    for model in (before, after):
        painted = model.translate(photos)
        back = model.translate(painted, to="A", styles=model.styles_of(photos, to="A"))
        imitated = model.translate(photos, styles=model.styles_of(drawings))
        off = (imitated[:, None] - truth).abs().mean(dim=(2, 3, 4))
        rows.append(
            [
                l1(back, photos),
                patch_distance(painted, drawings),
                patch_distance(imitated, drawings),
                float(off[torch.arange(count), by].mean()),
                100 * float((off.argmin(dim=1) == by).float().mean()),
                _spread(model.grid(photos[:_CONTENTS], model.random_styles(_STYLES))),
            ]
        )
    first, last = rows
    plain = patch_distance(photos, drawings)
    same = l1(photos, truth[torch.arange(count), by])
    return [
        f"cycle L1, back in their own style     {first[0]:.3f} -> {last[0]:.3f}",
        f"patches, distance to B's              {first[1]:.3f} -> {last[1]:.3f}   (untranslated {plain:.3f})",
        f"  in the styles of {count} drawings        {first[2]:.3f} -> {last[2]:.3f}",
        f"  L1 to the same face by that artist  {first[3]:.3f} -> {last[3]:.3f}   (untranslated {same:.3f})",
        f"  likest to that artist's             {first[4]:.0f} % -> {last[4]:.0f} %   "
        f"(by chance {100 / len(ARTISTS):.0f} %)",
        f"L1 between styles of one face         {first[5]:.3f} -> {last[5]:.3f}   "
        f"(the artists' own {_spread(truth):.3f}, a CycleGAN's 0)",
    ]


def _spread(painted: Tensor) -> float:
    """N,S,3,H,W -> the mean L1 between two of the S styles of a content."""
    styles = painted.shape[1]
    apart = (painted[:, :, None] - painted[:, None]).abs().mean()
    return float(apart) * styles / (styles - 1)


def _affordable(config: gnr.Config, device: torch.device) -> int:
    """How many steps a run has in the time that it may take, from a few steps of the same networks."""
    system = training.GNR(config, device)
    batch = training.Batch(*torch.zeros(4, config.batch, 3, SIZE, SIZE, device=device).uniform_(-1, 1))

    def step(number: int) -> None:
        system.begin(batch, number * config.batch)
        run_step(system.phases, number, device, config.precision)["generators"].item()  # waits for a GPU

    return max(1, int(shared.SECONDS / shared.seconds_of(step)))


def _untrained(model: Translator, device: torch.device) -> Translator:
    """The same networks as they were before the first step: drawn again from the run's seed."""
    nets = {name: net.state_dict() for name, net in networks(model.config).items()}
    return Translator({**checkpoints.header(model.config), "nets": nets}, device)

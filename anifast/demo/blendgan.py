"""The demo's BlendGAN: faces of nobody, natural and in the styles of drawings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import anifast
from anifast.data.folders import to_uint8
from anifast.demo import shared
from anifast.demo.gnr import ARTISTS, HEADS
from anifast.demo.shared import SIZE, patch_distance
from anifast.engine.loop import run_step
from anifast.files import atomic_path
from anifast.metrics.cosines import nearest
from anifast.systems import runs
from anifast.systems.blendgan import checkpoints, contrast, sheets, training
from anifast.systems.blendgan import config as blendgan
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import networks

#: The folder that it puts into the demo's.
NAME = "blendgan"
MADE = (NAME,)
#: Steps of the generator where the machine is fast enough, and seconds that they may take where it is slow.
STEPS, SECONDS = 900, 110.0
SETTINGS: dict[str, Any] = {
    "size": SIZE,
    # Narrow networks, which leave time for many steps.
    "base_channels": 32,
    "channel_multiplier": 1.0,
    "style_dim": 32,
    "n_mlp": 2,
    "batch": 4,
    # Faces are of nobody: the encoder that inverts photos is larger than all the rest.
    "psp_iterations": 0,
    # Of five artists' pictures Gram matrices tell much before anything is learnt.
    "style_side": 32,
    "style_mlp": 2,
    "style_batch": 16,
    "style_iterations": 40,
    # Updates of narrow layers have to be larger than those of wide ones to change their results as much.
    "lr": 8e-3,
    "ema": 0.98,
    "r1": 2.0,
    "path_length": 0.0,
    "mixing": 0.0,
    # Layers as narrow as these gain next to nothing from bf16.
    "precision": "fp32",
}
#: Faces on the sheets, and faces that figures are taken of.
_SHOWN, _COUNTED = 5, 40


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
    train, held = shared.enough(images), shared.held_out(here / "faces", ARTISTS, level=True)
    for side, domain in shared.DOMAINS.items():
        shared.drawn(here / "faces" / f"train{side}", domain, train, artists=ARTISTS, level=True)

    values = dict(SETTINGS)
    config = blendgan.make("small", values)
    steps = max(1, images // config.batch) if images else min(STEPS, _affordable(config, device))
    total = steps * config.batch
    values |= {"iterations": steps, "minutes": shared.MINUTES}
    values |= {"log_every": 10 * config.batch, "sheet_every": max(1, total // 4), "save_every": max(1, total // 4)}
    if images:
        values |= {"style_iterations": max(1, images // config.style_batch)}
    if not runs.train("blendgan", here / "faces", here / "run", preset="small", values=values, device=str(device)):
        return None

    model = anifast.load(here / "run", str(device))
    assert isinstance(model, Model)
    photos, drawings = held["A"][0], held["B"][0]
    lines = _compared(_untrained(model, device), model, photos, drawings)
    w = model.faces(model.random_faces(_SHOWN))
    styles = model.encode_styles(drawings[: len(ARTISTS)])
    shown = to_uint8(drawings[: len(ARTISTS)])
    heads = list(HEADS)[: len(styles)]
    pictures = {
        "sheet": sheets.grid(model, w, styles, index=0, heads=heads, references=shown),
        "sweep": sheets.sweep(
            model, w, styles[:1], indices=range(model.n_latent + 1), style_name=heads[0], reference=shown[:1]
        ),
    }
    for name, image in pictures.items():
        with atomic_path(here / f"{name}.png") as temporary:
            image.save(temporary)
    shutil.copyfile(here / "run" / "gan" / "losses.png", here / "losses.png")
    print(f"BlendGAN: {_COUNTED} random faces, {len(drawings)} held-out drawings, before -> after training")
    print("\n".join(lines), flush=True)
    return [
        (f"{NAME}/sheet.png", "faces of nobody, natural and in the styles of held-out drawings"),
        (f"{NAME}/sweep.png", "the same in one style, of which more and more is left out"),
        (f"{NAME}/losses.png", "the losses"),
        (f"{NAME}/run/gan/samples", "the networks' progress"),
    ]


def _compared(before: Model, after: Model, photos: Tensor, drawings: Tensor) -> list[str]:
    """Figures of both models for the end of the demo.

    Who drew a drawing is known and was never told: so it can be seen whether style codes tell artists apart, and
    whether paintings in an artist's style have codes like those of his drawings.
    """
    labels = torch.arange(len(drawings)) % len(ARTISTS)
    rows = []
    for model in (before, after):
        codes = model.encode_styles(drawings).cpu()
        near = nearest(codes, 1)[:, 0]
        by = torch.arange(_COUNTED) % len(drawings)
        w = model.faces(model.random_faces(_COUNTED), 1.0)
        natural = model.paint(w, None, model.n_latent).cpu()
        painted = model.paint(w, codes[by], 0).cpu()
        found = _nearest(model.encode_styles(painted).cpu(), codes)
        rows.append(
            [
                100 * float((labels[near] == labels).float().mean()),
                patch_distance(natural, _as_many(photos)),
                patch_distance(painted, _as_many(drawings)),
                100 * float((labels[found] == labels[by]).float().mean()),
            ]
        )
    first, last = rows
    plain = patch_distance(_as_many(photos), _as_many(drawings))
    chance = f"(by chance {100 / len(ARTISTS):.0f} %)"
    return [
        f"style codes: the nearest drawing is the same artist's  {first[0]:.0f} % -> {last[0]:.0f} %   {chance}",
        f"natural faces: patches, distance to photos'            {first[1]:.3f} -> {last[1]:.3f}",
        f"in styles: patches, distance to drawings'              {first[2]:.3f} -> {last[2]:.3f}   "
        f"(photos {plain:.3f})",
        f"  the likest drawing is by the artist of the style     {first[3]:.0f} % -> {last[3]:.0f} %   {chance}",
    ]


def _as_many(images: Tensor) -> Tensor:
    """As many pictures as faces, each as often as all others but for one."""
    return images[torch.arange(_COUNTED) % len(images)]


def _nearest(codes: Tensor, among: Tensor) -> Tensor:
    """int64 [N], the number of the code of `among` with the greatest cosine for each of N codes."""
    unit = nn.functional.normalize
    return (unit(codes, dim=1) @ unit(among, dim=1).T).argmax(dim=1)


def _affordable(config: blendgan.Config, device: torch.device) -> int:
    """How many steps the generator has in the time that it may take, from a few steps of the same networks."""
    system = training.Gan(config, device, torch.randn(config.queue, config.style_dim))
    count = config.batch
    faces, art = torch.zeros(2, count, 3, SIZE, SIZE, device=device).uniform_(-1, 1)
    batch = training.Batch(faces, art, torch.randn(count, config.style_dim, device=device))

    def step(number: int) -> None:
        system.begin(batch, number * count)
        run_step(system.phases, number, device, config.precision)["generator"].item()  # waits for a GPU

    return max(1, int(SECONDS / shared.seconds_of(step)))


def _untrained(model: Model, device: torch.device) -> Model:
    """The same networks as they were before the first step, drawn again from the run's seed."""
    config = model.config
    header = checkpoints.header(config)
    nets: dict[str, dict[str, nn.Module]] = {
        "style": {"E_style": contrast.Style(config, config.style_batch, device).encoder},
        "gan": {"G": networks(config)["G"]},
    }
    parts = {
        stage: {**header, "stage": stage, "nets": {name: net.state_dict() for name, net in those.items()}}
        for stage, those in nets.items()
    }
    return Model({**header, "parts": parts}, device)

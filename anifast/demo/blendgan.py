"""The demo's BlendGAN: faces of nobody, natural and in the styles of drawings.

The paper's generator starts from one that paints faces already, after weeks on many GPUs. Here it starts from one that
was fitted, for a minute, to the training pictures one by one; discriminators alone would need hours on a CPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import anifast
from anifast.data.folders import read_image, to_float, to_tensor, to_uint8
from anifast.demo import shared
from anifast.demo.gnr import ARTISTS, HEADS
from anifast.demo.shared import SIZE, patch_distance
from anifast.engine import state
from anifast.engine.loop import run_step
from anifast.files import atomic_path
from anifast.metrics.cosines import nearest
from anifast.progress import Progress
from anifast.systems import runs
from anifast.systems.blendgan import checkpoints, contrast, sheets, training
from anifast.systems.blendgan import config as blendgan
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import Generator, networks

#: The folder that it puts into the demo's.
NAME = "blendgan"
MADE = (NAME,)
#: Steps where the machine is fast enough, and seconds that they may take where it is slow: of the fit, and of training.
FIT, FIT_SECONDS = 800, 75.0
STEPS, SECONDS = 160, 40.0
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
    "style_iterations": 15,
    "alpha": 0.7,
    # Few and careful steps: discriminators that know nothing yet would spoil what was fitted.
    "lr": 5e-4,
    "ema": 0.97,
    "r1": 10.0,
    "r1_every": 4,
    "path_length": 0.0,
    "mixing": 0.0,
    "latent_loss": "matching",
    # Layers as narrow as these gain next to nothing from bf16.
    "precision": "fp32",
}
#: Photos, and as many drawings, in a step of the fit; its learning rates of weights and of faces' codes.
_BATCH, _LR, _LR_CODES = 8, 0.02, 0.03
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
    faces, start = here / "faces", here / "start.pt"
    train, held = shared.enough(images), shared.held_out(faces, ARTISTS, plain=True)
    for side, domain in shared.DOMAINS.items():
        shared.drawn(faces / f"train{side}", domain, train, artists=ARTISTS, plain=True)

    values = SETTINGS | {"minutes": shared.MINUTES}
    if images:
        values |= {"style_iterations": max(1, images // SETTINGS["style_batch"])}

    def trained(folder: str, **more: Any) -> bool:
        return runs.train("blendgan", faces, here / folder, preset="small", values=values | more, device=str(device))

    config = blendgan.make("small", values)
    # First of all, as it also settles the number of threads.
    steps = max(1, images // config.batch) if images else min(STEPS, _affordable(config, device))
    if not trained("style", stage="style"):
        return None
    fitted = _fit(config, _read(faces / "trainA"), _read(faces / "trainB"), here / "style", device, images)
    if fitted is None:
        return None
    state.save(start, {**checkpoints.header(config), "stage": "gan", "nets": {"G": fitted.state_dict()}})
    total = steps * config.batch
    plan = {"iterations": steps, "log_every": 10 * config.batch}
    plan |= {name: max(1, total // 4) for name in ("sheet_every", "save_every")}
    if not trained("run", style_encoder=str(here / "style"), start_from=str(start), **plan):
        return None

    model = anifast.load(here / "run", str(device))
    assert isinstance(model, Model)
    photos, drawings = held["A"][0], held["B"][0]
    lines = _compared(_untrained(model, device), model, photos, drawings)
    w = model.faces(model.random_faces(_SHOWN))
    styles = model.encode_styles(drawings[: len(ARTISTS)])
    shown, heads = to_uint8(drawings[: len(ARTISTS)]), HEADS[: len(styles)]
    indices = range(model.n_latent + 1)
    pictures = {
        "sheet": sheets.grid(model, w, styles, index=0, heads=heads, references=shown),
        "sweep": sheets.sweep(model, w, styles[:1], indices=indices, style_name=heads[0], reference=shown[:1]),
    }
    for name, image in pictures.items():
        with atomic_path(here / f"{name}.png") as temporary:
            image.save(temporary)
    shutil.copyfile(here / "run" / "gan" / "losses.png", here / "losses.png")
    print(f"BlendGAN: {_COUNTED} random faces, {len(drawings)} held-out drawings, before -> after fit and training")
    print("\n".join(lines), flush=True)
    return [
        (f"{NAME}/sheet.png", "faces of nobody, natural and in the styles of held-out drawings"),
        (f"{NAME}/sweep.png", "the same in one style, of which more and more is left out"),
        (f"{NAME}/losses.png", "the losses"),
        (f"{NAME}/run/gan/samples", "the networks' progress"),
    ]


def _read(folder: Path) -> Tensor:
    """The pictures of a folder, N,3,SIZE,SIZE in [-1, 1]."""
    return torch.stack([to_float(to_tensor(read_image(path))) for path in sorted(folder.glob("*.png"))])


def _fit(
    config: blendgan.Config, photos: Tensor, drawings: Tensor, encoder: Path, device: torch.device, images: int | None
) -> Generator | None:
    """A generator to start from: it shows each photo, and each drawing in its own style, for a face that is found too.

    This is generative latent optimisation (Bojanowski et al. 2018) with plain absolute differences at four sizes.

    Args:
        config: of the run.
        photos: N,3,SIZE,SIZE in [-1, 1].
        drawings: N,3,SIZE,SIZE.
        encoder: run folder with the style encoder.
        device: where to compute.
        images: pictures of each kind that are looked at; None: as many as the machine affords.

    Returns:
        The generator on the CPU, or None: Ctrl-C ended the fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = networks(config)["G"].to(device)
        assert isinstance(net, Generator)
        z = nn.Parameter(torch.randn(2, len(photos), config.style_dim).to(device))
        codes = anifast.load(encoder, str(device)).encode_styles(drawings.to(device))
        photos, drawings = photos.to(device), drawings.to(device)
        index = torch.tensor([net.n_latent] * _BATCH + [0] * _BATCH, device=device)
        rates = {"net": (list(net.parameters()), _LR), "faces": ([z], _LR_CODES)}
        optimizer = torch.optim.Adam([{"params": p, "lr": lr} for p, lr in rates.values()], betas=(0.9, 0.99))

        def step(_: int) -> None:
            i, j = torch.randint(len(photos), (2, _BATCH)).to(device)
            found = F.normalize(torch.cat([z[0, i], z[1, j]]), dim=1) * config.style_dim**0.5
            found = found + 0.2 * torch.randn(found.shape).to(device)  # faces between those that are fitted count too
            painted, _none = net([found], codes[j].repeat(2, 1), index)
            off = painted - torch.cat([photos[i], drawings[j]])
            loss = torch.stack([(F.avg_pool2d(off, size) if size > 1 else off).abs().mean() for size in (1, 2, 4, 8)])
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            net.project()
            loss.sum().item()  # waits for a GPU

        steps = max(1, images // _BATCH) if images else min(FIT, int(FIT_SECONDS / shared.seconds_of(step)))
        try:
            with Progress(steps, "fitting the generator to start from", unit="step") as bar:
                for number in range(steps):
                    for group, (_, lr) in zip(optimizer.param_groups, rates.values(), strict=True):
                        group["lr"] = lr * min(1.0, 2 * (1 - number / steps))
                    step(number)
                    bar.update()
        except KeyboardInterrupt:
            return None
    return net.cpu()


def _compared(before: Model, after: Model, photos: Tensor, drawings: Tensor) -> list[str]:
    """Figures of both models for the end of the demo.

    Who drew a drawing is known and was never told: so it can be seen whether style codes tell artists apart, and
    whether paintings in an artist's style have codes like those of his drawings.
    """
    labels = torch.arange(len(drawings)) % len(ARTISTS)
    by = torch.arange(_COUNTED) % len(drawings)
    rows = []
    for model in (before, after):
        codes = model.encode_styles(drawings).cpu()
        near = nearest(codes, 1)[:, 0]
        w = model.faces(model.random_faces(_COUNTED), 1.0)
        natural = model.paint(w, None, model.n_latent).cpu()
        painted = model.paint(w, codes[by], 0).cpu()
        found = _likest(model.encode_styles(painted).cpu(), codes)
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


def _likest(codes: Tensor, among: Tensor) -> Tensor:
    """int64 [N], the number of the code of `among` with the greatest cosine for each of N codes."""
    return (F.normalize(codes, dim=1) @ F.normalize(among, dim=1).T).argmax(dim=1)


def _affordable(config: blendgan.Config, device: torch.device) -> int:
    """How many steps of training have the time that they may take, from a few steps of the same networks."""
    system = training.Gan(config, device, torch.randn(config.queue, config.style_dim))
    count = config.batch
    faces, art = torch.zeros(2, count, 3, SIZE, SIZE, device=device).uniform_(-1, 1)
    batch = training.Batch(faces, art, torch.randn(count, config.style_dim, device=device))

    def step(number: int) -> None:
        system.begin(batch, number * count)
        run_step(system.phases, number, device, config.precision)["g_style"].item()  # waits for a GPU

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

"""`anifast demo`: draws two sets of faces, trains a small CycleGAN between them and translates faces it never saw.

A is photo-like, B is drawn; no character is in both, and nothing tells the networks who belongs to whom. The pictures
are procedural, so the same character can afterwards be drawn in the other domain as well, to compare with.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anifast
from anifast.data import portraits
from anifast.data.folders import save_png, to_float, to_tensor
from anifast.engine import lock, precision, translate
from anifast.engine.loop import run_step
from anifast.engine.sheets import Block, sheet
from anifast.errors import AnifastError
from anifast.files import atomic_path, write_text
from anifast.progress import Progress, duration
from anifast.systems import runs
from anifast.systems.cyclegan import config as cyclegan
from anifast.systems.cyclegan import training
from anifast.systems.cyclegan.inference import Translator

SIZE = 64
#: Faces per domain to learn from, and held out.
TRAIN, HELD = 200, 24
#: Pictures per domain that a run sees where the machine is fast enough, and the seconds it may take.
IMAGES, SECONDS = 4000, 225.0
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
DOMAINS = {"A": "photo", "B": "drawn"}
_MARK = "demo.txt"
_SHOWN = 6


def main(args: argparse.Namespace) -> int:
    """Run the demo; the exit code.

    Raises:
        AnifastError: the folder cannot be used, or another demo is at work in it.
    """
    out: Path = args.out
    device = precision.pick_device(args.device)
    if out.exists() and not out.is_dir():
        raise AnifastError(f"{out}: is a file; choose another --out")
    with lock.hold(out):  # to the end: a second demo would empty the folder of the first
        _clear(out)
        return _demo(args, out, device)


def _demo(args: argparse.Namespace, out: Path, device: torch.device) -> int:
    """`main` in a folder that is held and empty."""
    started = time.perf_counter()
    total, train = args.images or IMAGES, min(TRAIN, max(16, args.images or TRAIN))
    print(f"anifast {anifast.__version__} demo: faces, training and translation go to {out}", flush=True)
    held = {side: _draw(out / "faces" / f"test{side}", domain, HELD, first=10**6) for side, domain in DOMAINS.items()}
    for side, domain in DOMAINS.items():
        _draw(out / "faces" / f"train{side}", domain, train)

    fast = device.type == "cuda" or precision.matrix_unit()
    values = {**SETTINGS, "precision": "bf16" if fast else "fp32"}
    if args.images is None:
        total = min(IMAGES, _affordable(values, device))
    epochs = math.ceil(total / train)
    values |= {"epochs": epochs - epochs // 2, "decay_epochs": epochs // 2, "images": total, "minutes": 5.0}
    if not runs.train("cyclegan", out / "faces", out / "run", preset="small", values=values, device=args.device):
        return 130

    model = anifast.load(out / "run", args.device)
    before = _untrained(model, device)
    blocks, lines = [], []
    for there, back in (("B", "A"), ("A", "B")):
        inputs, truth = held[back]
        first, last = before.translate(inputs, to=there), model.translate(inputs, to=there)
        returned = model.translate(last, to=back)
        cycle = [_l1(before.translate(first, to=back), inputs), _l1(returned, inputs)]
        target = held[there][0]
        patches = [patch_distance(images, target) for images in (inputs, first, last)]
        likeness = [_l1(images, truth) for images in (inputs, first, last)]
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
    print(f"{HELD} held-out faces per direction, before -> after training (lower is better)")
    print("\n".join(lines))
    print(precision.describe(device, values["precision"]))
    print(f"{duration(time.perf_counter() - started)} in all; look at")
    for name, what in (
        ("sheet.png", "held-out faces both ways, before and after"),
        ("losses.png", "the losses"),
        ("run/samples", "the networks' progress"),
        ("translated", "all translations"),
    ):
        print(f"  {out / name}  {what}")
    return 0


def patch_distance(x: Tensor, y: Tensor, side: int = 7, directions: int = 128) -> float:
    """Sliced Wasserstein distance between all patches of two sets of images: how unlike their textures and colours are.

    Args:
        x: N,3,H,W.
        y: as many images of the same size.
        side: of the patches.
        directions: random projections, always the same.
    """
    source = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(3 * side * side, directions, generator=source), dim=0)
    projected = []
    for images in (x, y):
        patches = torch.nn.functional.unfold(images, side, stride=3).transpose(1, 2).reshape(-1, len(axes))
        projected.append((patches @ axes).sort(dim=0).values)
    return float((projected[0] - projected[1]).abs().mean())


def _l1(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().mean())


def _clear(out: Path) -> None:
    """Empty the folder, which is held, of what an earlier demo left there."""
    if not (out / _MARK).exists() and any(path.name != lock.NAME for path in out.iterdir()):
        raise AnifastError(f"{out}: holds other files than those of a demo; choose another --out")
    write_text(out / _MARK, "Everything in this folder was made by `anifast demo`, which replaces it when run again.\n")
    for name in ("faces", "run", "translated"):
        shutil.rmtree(out / name, ignore_errors=True)


def _draw(folder: Path, domain: str, count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Draw `count` faces into a folder: one studio, one photographer, one artist; every character is another.

    Returns:
        The faces, and the same characters in the other domain, both count,3,SIZE,SIZE in [-1, 1].
    """
    artist = portraits.ARTISTS[0]
    other = "drawn" if domain == "photo" else "photo"
    faces: dict[str, list[Tensor]] = {domain: [], other: []}
    keep = [domain, other] if first else [domain]
    with Progress(count, f"drawing {folder.name}") as bar:
        for i in range(count):
            seed = 2 * (first + i) + (domain == "drawn")
            # What 64 pixels cannot show, and what instance norm takes out of a picture, is left away.
            content = dataclasses.replace(
                portraits.sample_content(seed),
                background_hue=0.55,
                background_light=0.6,
                glasses="none",
                accessory="none",
            )
            for kind in keep:
                faces[kind].append(to_float(to_tensor(portraits.draw(content, artist, kind, SIZE))))
            save_png(faces[domain][-1], folder / f"{i:04d}.png")
            bar.update()
    empty = torch.empty(0, 3, SIZE, SIZE)
    return torch.stack(faces[domain]), torch.stack(faces[other]) if faces[other] else empty


def _affordable(values: dict[str, Any], device: torch.device) -> int:
    """How many images a run of `SECONDS` sees on this machine, from a few steps of the same networks.

    Also settles the number of threads: on a machine that others keep busy, threads that wait for each other at every
    layer make two of them slower than one.
    """
    config = cyclegan.make("small", values)
    system = training.CycleGAN(config, device)
    batch = torch.zeros(1, 3, SIZE, SIZE, device=device).uniform_(-1, 1)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for step in range(8):
            begun = time.perf_counter()
            system.begin((batch, batch), 0)
            run_step(system.phases, step, device, config.precision)["generators"].item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
        return sorted(times)[4]

    trials = {threads: seconds(threads) for threads in sorted({1, torch.get_num_threads()})}
    best = min(trials, key=lambda threads: trials[threads])
    torch.set_num_threads(best)
    return max(TRAIN, int(SECONDS / trials[best] / TRAIN) * TRAIN)


def _untrained(model: Translator, device: torch.device) -> Translator:
    """The same networks as they were before the first step: drawn again from the run's seed."""
    config = model.config
    nets = {name: net.state_dict() for name, net in training.networks(config).items()}
    return Translator({"format": "anifast.cyclegan/1", "config": config.as_dict(), "nets": nets}, device)

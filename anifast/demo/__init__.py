"""`anifast demo`: draws faces, trains small networks between photo-like and drawn ones, translates faces never seen.

A is photo-like, B is drawn; no character is in both, and nothing tells the networks who belongs to whom. The pictures
are procedural, so the same character can afterwards be drawn in the other domain as well, to compare with.

There are four parts: a CycleGAN, for which B has one artist, GANs N' Roses, for which B has several, BlendGAN, which
paints faces of nobody in their styles, and Twin-GAN, which also finds the drawn faces that are like a photo.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch

import anifast
from anifast.demo import blendgan, cyclegan, gnr, twingan
from anifast.engine import lock, precision
from anifast.errors import AnifastError
from anifast.files import write_text
from anifast.progress import duration

PARTS = {"cyclegan": cyclegan, "gnr": gnr, "blendgan": blendgan, "twingan": twingan}
_MARK = "demo.txt"


def main(args: argparse.Namespace) -> int:
    """Run the demo, or the part of it that `args.only` names; the exit code.

    Raises:
        AnifastError: the folder cannot be used, or another demo is at work in it.
    """
    out: Path = args.out
    device = precision.pick_device(args.device)
    if out.exists() and not out.is_dir():
        raise AnifastError(f"{out}: is a file; choose another --out")
    chosen = {name: part for name, part in PARTS.items() if args.only in (None, name)}
    with lock.hold(out):  # to the end: a second demo would empty the folder of the first
        _claim(out)
        for part in chosen.values():
            _clear(out, part.MADE)
        started = time.perf_counter()
        print(f"anifast {anifast.__version__} demo: faces, training and translation go to {out}", flush=True)
        threads, look_at = torch.get_num_threads(), []
        for part in chosen.values():
            torch.set_num_threads(threads)
            results = part.run(out, device, args.images)
            if results is None:
                return 130
            look_at += results
        print(f"{duration(time.perf_counter() - started)} in all; look at")
        for name, what in look_at:
            print(f"  {out / name}  {what}")
    return 0


def _claim(out: Path) -> None:
    """Mark the folder, which is held, as a demo's."""
    if not (out / _MARK).exists() and any(path.name != lock.NAME for path in out.iterdir()):
        raise AnifastError(f"{out}: holds other files than those of a demo; choose another --out")
    write_text(out / _MARK, "Everything in this folder was made by `anifast demo`, which replaces it when run again.\n")


def _clear(out: Path, names: tuple[str, ...]) -> None:
    """Remove what an earlier demo left of a part."""
    for name in names:
        if (out / name).is_dir():
            shutil.rmtree(out / name, ignore_errors=True)
        else:
            (out / name).unlink(missing_ok=True)

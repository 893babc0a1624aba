"""What the parts of the demo share: faces, the time that they may take, and how unlike pictures are."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.data import portraits
from anifast.data.folders import save_png, to_float, to_tensor
from anifast.progress import Progress

SIZE = 64
#: Faces per domain to learn from, and held out.
TRAIN, HELD = 200, 24
#: Seconds that a part may train for where the machine is slow.
SECONDS = 225.0
#: Minutes after which a training ends, should the machine become slower than it was when it was measured.
MINUTES = 5.0
DOMAINS = {"A": "photo", "B": "drawn"}
OTHER = {"photo": "drawn", "drawn": "photo"}
#: The number of the first face that is held out: no other has it.
HELD_FROM = 10**6


def enough(images: int | None) -> int:
    """How many faces per domain to draw for a training with `images` pictures."""
    return min(TRAIN, max(16, images or TRAIN))


def held_out(
    folder: Path, artists: Sequence[portraits.Style] = portraits.ARTISTS[:1], *, plain: bool = False
) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw the held-out faces of both domains, by domain, into testA and testB; see `drawn`."""
    return {
        side: drawn(folder / f"test{side}", domain, HELD, HELD_FROM, artists, plain=plain)
        for side, domain in DOMAINS.items()
    }


def drawn(
    folder: Path,
    domain: str,
    count: int,
    first: int = 0,
    artists: Sequence[portraits.Style] = portraits.ARTISTS[:1],
    *,
    plain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw `count` faces into a folder: one studio, one photographer, artists in turn; every character is another.

    Args:
        folder: gets 0000.png, 0001.png, ...
        domain: "photo" or "drawn".
        count: of the faces.
        first: number of the first one; those from 0 on are not drawn in the other domain.
        artists: number n is drawn by artist n modulo their number.
        plain: see `face`.

    Returns:
        The faces, and the same characters in the other domain, both count,3,SIZE,SIZE in [-1, 1].
    """
    keep = [domain, OTHER[domain]] if first else [domain]
    faces: dict[str, list[Tensor]] = {"photo": [], "drawn": []}
    with Progress(count, f"drawing {folder.name}") as bar:
        for i in range(count):
            for kind in keep:
                faces[kind].append(face(domain, first + i, kind, artists[i % len(artists)], plain))
            save_png(faces[domain][-1], folder / f"{i:04d}.png")
            bar.update()
    empty = torch.empty(0, 3, SIZE, SIZE)
    other = faces[OTHER[domain]]
    return torch.stack(faces[domain]), torch.stack(other) if other else empty


def face(domain: str, number: int, kind: str, artist: portraits.Style, plain: bool = False) -> Tensor:
    """Character `number` of a domain as "photo", or as "drawn" by an artist: 3,SIZE,SIZE in [-1, 1].

    `plain`: upright heads in the middle, of few kinds and without grain, for networks that paint faces from nothing.
    """
    content = portraits.sample_content(2 * number + (domain == "drawn"))
    style = portraits.ARTISTS[0] if kind == "photo" else artist
    # What 64 pixels cannot show, and what instance norm takes out of a picture, is left away.
    room: dict[str, Any] = {"background_hue": 0.55, "background_light": 0.6}
    if plain:
        kept = ("skin", "hair_color", "eye_color", "clothes_color", "smile")
        cut = "long" if content.hair_cut in ("long", "wavy", "twintails") else "bob"
        content = portraits.Content(hair_cut=cut, **room, **{name: getattr(content, name) for name in kept})
        style = dataclasses.replace(style, grain=0.0)
    else:
        content = dataclasses.replace(content, **room, glasses="none", accessory="none")
    return to_float(to_tensor(portraits.draw(content, style, kind, SIZE)))


def seconds_of(step: Callable[[int], None]) -> float:
    """How long a training step takes on this machine; `step` is called with 0, 1, ... and waits for the device.

    Also settles the number of threads: on a machine that others keep busy, threads that wait for each other at every
    layer make two of them slower than one.
    """

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for number in range(8):
            begun = time.perf_counter()
            step(number)
            times.append(time.perf_counter() - begun)
        return sorted(times)[4]

    trials = {threads: seconds(threads) for threads in sorted({1, torch.get_num_threads()})}
    best = min(trials, key=lambda threads: trials[threads])
    torch.set_num_threads(best)
    return trials[best]


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


def l1(x: Tensor, y: Tensor) -> float:
    """Mean absolute difference."""
    return float((x - y).abs().mean())

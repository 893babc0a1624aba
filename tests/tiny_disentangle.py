"""A disentangling network small enough for tests, pictures by artist and digits by writer for it, and its files."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from anifast.data import portraits
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.networks import networks

FORMAT = "anifast.disentangle/1"
TINY: dict[str, Any] = {
    "size": 32,
    "features": "8,12,16",
    "fc": 24,
    "content_size": 12,
    "style_size": 8,
    "channels": 4,
    "min_images": 2,
    "batch": 4,
    "classifier_batch": 4,
    "stage2_batch": 4,
    "iterations": 6,
    "classifier_iterations": 4,
    "stage2_iterations": 5,
}
#: The same for digits.
TINY_DIGITS = TINY | {"dataset": "digits", "size": 28, "channels": 1, "min_images": 1, "nested": True}
#: The networks in the checkpoint of a stage.
NETS = {"stage1": ("E", "G", "S", "C1"), "classifier": ("C2",), "stage2": ("E", "G", "S", "C2", "D")}

# Of a digit in a box of width 1 and height 2: the strokes of a pocket calculator and which of them a digit has.
_CORNERS = {"a": (0, 0), "b": (1, 0), "c": (0, 1), "d": (1, 1), "e": (0, 2), "f": (1, 2)}
_STROKES = (("a", "b"), ("b", "d"), ("d", "f"), ("e", "f"), ("c", "e"), ("a", "c"), ("c", "d"))
_LIT = ("1111110", "0110000", "1101101", "1111001", "0110011", "1011011", "1011111", "1110000", "1111111", "1111011")


class Artists:
    """What a stage asks of its data before a batch comes.

    Args:
        classes: the artists' names.
        counts: of their pictures.
        labels: of the pictures; None: one by each artist.
    """

    def __init__(self, classes: list[str], counts: Tensor, labels: Tensor | None = None) -> None:
        self.classes, self.counts = classes, counts
        self.labels = torch.arange(len(classes)) if labels is None else labels


#: Three of them.
THREE = Artists(["ann", "ben", "cleo"], torch.tensor([5, 3, 4]))


def tiny_config(**changes: Any) -> Config:
    """The preset `paper` at 32 px with at most 16 channels; `dataset="digits"` makes it fit digits."""
    return make(values=(TINY_DIGITS if changes.get("dataset") == "digits" else TINY) | changes)


def write_artists(
    folder: Path, artists: int = 3, each: int = 4, size: int = 32, seed: int = 0, transparent: bool = False
) -> Path:
    """Drawn portraits as `folder`/<artist>/<picture>.png.

    transparent: every second picture of an artist lacks a part at the top, as faces near a picture's border do; its
    pixels there are black with alpha 0.
    """
    portraits.write_artists(folder, each, size, seed, artists=portraits.ARTISTS[:artists], progress=False)
    if transparent:
        for path in sorted(folder.glob("*/*.png")):
            number = int(path.stem)
            if number % 2:
                with Image.open(path) as image:
                    pixels = np.array(image.convert("RGBA"))
                pixels[: size // 8 * (1 + number % 3)] = 0
                Image.fromarray(pixels).save(path)
    return folder


def write_digits(folder: Path, count: int = 200, writers: int = 12, seed: int = 0, split: str = "train") -> Path:
    """The files of a split that `load_digits` takes, `train` or `nist`; slant, width and pen are the writer's.

    Every digit and every writer comes where `count` has room for it; the ids of writers have gaps, as NIST's have.
    """
    source = np.random.default_rng(seed)
    slants, widths = source.uniform(-0.35, 0.35, writers), source.uniform(5, 11, writers)
    pens = source.integers(2, 5, writers)
    labels = np.zeros((count, 8), np.int32)
    labels[:, 0] = source.permutation(count) % 10
    writer = source.permutation(count) % writers
    labels[:, 2] = 7 * writer + 3
    images = np.stack(
        [
            _digit(int(digit), slants[who], widths[who], int(pens[who]), source.uniform(-1.5, 1.5, 2))
            for digit, who in zip(labels[:, 0], writer, strict=True)
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    stem = "xnist" if split == "nist" else split
    _write_idx(folder / f"{stem}-images-idx3-ubyte", images)
    if split == "nist":
        _write_idx(folder / "xnist-labels-idx2-int", labels)
    else:
        _write_idx(folder / f"{stem}-labels-idx1-ubyte", labels[:, 0].astype(np.uint8))
        _write_idx(folder / f"qmnist-{split}-labels-idx2-int", labels)
    return folder


def _digit(digit: int, slant: float, width: float, pen: int, moved: np.ndarray) -> np.ndarray:
    """One digit, uint8 28,28, ink 255."""
    image = Image.new("L", (28, 28))
    pencil = ImageDraw.Draw(image)
    for (start, end), lit in zip(_STROKES, _LIT[digit], strict=True):
        if lit == "1":
            corners = (_CORNERS[start], _CORNERS[end])
            points = [
                (14 + moved[0] + (x - 0.5) * width + (1 - y) * 9 * slant, 14 + moved[1] + (y - 1) * 9)
                for x, y in corners
            ]
            pencil.line(points, fill=255, width=pen)
    return np.asarray(image)


def _write_idx(path: Path, array: np.ndarray) -> None:
    code = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def weights(config: Config, stage: str, counts: Tensor, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Of a stage's networks: as drawn for this seed, with artists' styles that differ as trained ones do."""
    nets = networks(dataclasses.replace(config, seed=seed), counts / counts.sum(), stage)
    source = torch.Generator().manual_seed(seed)
    if "S" in nets:
        for value in nets["S"].parameters():
            value.data.add_(torch.randn(value.shape, generator=source))
    return {name: dict(nets[name].state_dict()) for name in NETS[stage] if name in nets}


def statistics(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Of contents, as the stage `encode` finds them: float64, eigenvalues ascending."""
    source = torch.Generator().manual_seed(seed)
    size = config.content_size
    means = torch.randn(4 * size, size, generator=source, dtype=torch.float64)
    inner = torch.rand(size, generator=source, dtype=torch.float64)
    spread = means.T.cov(correction=0)
    covariance = spread + torch.diag(inner)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return {
        "mean": means.mean(0),
        "std": covariance.diagonal().sqrt(),
        "eigenvalues": eigenvalues,
        "eigenvectors": eigenvectors,
        "weight": spread.diagonal() / covariance.diagonal(),
    }


def run_state(config: Config, stage: str, classes: int = 3, seed: int = 0) -> dict[str, Any]:
    """A stage's checkpoint after two steps, without optimisers, data and the like; untrained."""
    names = sorted(style.name for style in portraits.ARTISTS[:classes])
    names += [f"artist {i}" for i in range(len(names), classes)]
    counts = torch.arange(classes) + 4
    batch = {"stage1": config.batch, "classifier": config.classifier_batch, "stage2": config.stage2_batch}[stage]
    state = {
        "format": FORMAT,
        "config": config.as_dict() | {"start_from": None},
        "stage": stage,
        "classes": names,
        "counts": counts,
        "images": 2 * batch,
        "steps": 2,
        "nets": weights(config, stage, counts, seed),
    }
    if stage == "stage2":
        state["statistics"] = statistics(config, seed)
    return state

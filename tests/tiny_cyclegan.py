"""Pictures and settings for runs that take a second: what the tests of commands and training runs share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anifast import cli

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--size", "32", "--blocks", "1", "--width", "8", "--d-width", "8", "--device", "cpu")


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Packed pictures go into `folder` and not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIFAST_CACHE", str(folder))
        yield


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 40)) -> Path:
    """A smooth coloured picture of width, height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def data_folder(root: Path, count: int = 5) -> Path:
    """trainA and trainB of `count` pictures each, testA and testB of two."""
    for start, (name, number) in enumerate((("trainA", count), ("trainB", count), ("testA", 2), ("testB", 2))):
        for i in range(number):
            picture(root / name / f"{i}.png", 100 * start + i)
    return root


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


def train(data: Path, out: Path, *options: object) -> int:
    """`anifast train cyclegan` in this process; the exit code."""
    return cli.main(command("train", "cyclegan", "--data", data, "--out", out, *TINY, *options))


def resume(data: Path, out: Path, *options: object) -> int:
    return cli.main(command("train", "cyclegan", "--data", data, "--out", out, "--device", "cpu", "--resume", *options))


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """`anifast WORDS` in a process of its own."""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("ANIFAST_BACKEND", "TRITON_INTERPRET")}
    return subprocess.Popen(
        [sys.executable, "-m", "anifast", *command(*words)],
        cwd=ROOT,
        env=surroundings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def the_error(text: str) -> str:
    """The one error line on standard error; fails if there are more or fewer, or a traceback."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("anifast: error: ")]
    assert len(lines) == 1, text
    return lines[0].removeprefix("anifast: error: ")


def read(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return found


def leftovers(folder: Path) -> list[str]:
    """Files that were begun and not finished."""
    return [path.name for path in folder.rglob(".*") if path.is_file()]

"""Checkpoints of BlendGAN."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def recognises(state: dict[str, Any]) -> bool:
    """Whether a loaded checkpoint is one."""
    return False


def gather(path: Path) -> dict[str, Any] | None:
    """The parts of a run or of the authors' files as one."""
    return None

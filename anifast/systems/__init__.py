"""The systems by name. A system's package is imported when it is first used."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from anifast.errors import AnifastError, CheckpointError

#: Name on the command line -> package.
SYSTEMS = {
    "cyclegan": "anifast.systems.cyclegan",
    "gnr": "anifast.systems.gnr",
    "disentangle": "anifast.systems.disentangle",
    "blendgan": "anifast.systems.blendgan",
    "twingan": "anifast.systems.twingan",
}


def module(system: str, part: str) -> ModuleType:
    """The module `part` (config, training, inference, evaluation, checkpoints, convert) of a system.

    Raises:
        AnifastError: no such system.
    """
    if system not in SYSTEMS:
        raise AnifastError(f"unknown system {system!r}; there are {', '.join(SYSTEMS)}")
    return importlib.import_module(f"{SYSTEMS[system]}.{part}")


def recognise(state: dict[str, Any], path: str | Path) -> str:
    """The system that a loaded checkpoint belongs to, told by its contents.

    Raises:
        CheckpointError: none of the systems knows it.
    """
    for name in SYSTEMS:
        if module(name, "checkpoints").recognises(state):
            return name
    keys = ", ".join(str(key) for key in list(state)[:4])
    raise CheckpointError(
        f"{path}: no checkpoint of a known system ({', '.join(SYSTEMS)}); it holds {keys or 'nothing'}"
    )


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of any kind as one dict on the CPU: a file, a run folder, or the files an author's code has made.

    Raises:
        CheckpointError: missing, damaged, or it would run code when loaded.
    """
    from anifast.engine import state

    for name in SYSTEMS:
        found: dict[str, Any] | None = module(name, "checkpoints").gather(Path(path))
        if found is not None:
            return found
    return state.load(path)


def load(path: str | Path, device: str | None = None, **options: Any) -> Any:
    """A trained model: `load("runs/faces").translate(images)`.

    Args:
        path: a run folder, a checkpoint of one, or a file or folder of an author's own code; told apart by the
            contents.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.
        options: of the system.

    Returns:
        The system's model; `translate(images, ...)` takes N,C,H,W in [-1, 1] and gives the same, without gradient.

    Raises:
        CheckpointError: the file is missing, damaged, of no known system, or would run code when loaded.
    """
    from anifast.engine import precision, state

    found = read(path)
    system = recognise(found, path)
    with state.about(path):
        return module(system, "inference").load(found, precision.pick_device(device), **options)

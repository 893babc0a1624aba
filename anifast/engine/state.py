"""Checkpoints: one dict of tensors and plain values, written whole or not at all, read without running any code."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from anifast.errors import AnifastError, CheckpointError
from anifast.files import atomic_path, remove_temporaries

#: The checkpoint of a run folder.
NAME = "checkpoint.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to a temporary name and rename it to `path`.

    Raises:
        AnifastError: the file cannot be written; what stood at `path` before is untouched.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer hides a full disk behind a RuntimeError
            raise AnifastError(
                f"cannot write {path}: {str(error).splitlines()[0]}. Free some space or choose another output folder; "
                "the checkpoint before is untouched"
            ) from error


def load(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint file, or the one of a run folder, onto the CPU.

    Args:
        path: the file or folder.
        mmap: read tensors when they are looked at: for a glance at something else.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or it holds pickled code, which is never run.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / NAME).exists():
            raise CheckpointError(f"{path}: no {NAME} in this folder; give a run folder or a checkpoint file")
        path = path / NAME
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; give a run folder or a checkpoint file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if zipfile_or_old(path):
            raise CheckpointError(
                f"{path}: holds pickled objects other than tensors and plain values; loading it would run code, "
                "so it is refused"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # of a file that ends before its table of contents
            raise CheckpointError(f"{path}: damaged or not a checkpoint ({error.strerror})") from error
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged pickle makes torch raise has no bounds: struct.error, TypeError, ...
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not the dict of a checkpoint")
    return found


def settings_of(state: Mapping[str, Any], form: str, system: str) -> Mapping[str, Any]:
    """The settings in a checkpoint of a system's own run.

    Args:
        state: the checkpoint.
        form: the format that it must have.
        system: its name, for messages.

    Raises:
        CheckpointError: another format, or the settings are missing.
    """
    found, settings = state.get("format"), state.get("config")
    if found != form:
        raise CheckpointError(
            f"this is no checkpoint of an anifast run of {system} (format {found!r}, expected {form!r})"
        )
    if not isinstance(settings, Mapping):
        raise CheckpointError("damaged: the settings of the run are missing")
    return settings


def stored(nets: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """The parts `nets` and `optim` of a checkpoint, for `restore`."""
    return {
        "nets": {name: net.state_dict() for name, net in nets.items()},
        "optim": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }


def restore(nets: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], state: Mapping[str, Any]) -> None:
    """Put the parts `nets` and `optim` of a checkpoint into networks and optimisers of the same names.

    Raises:
        CheckpointError: it does not fit them.
    """
    try:
        for name, net in nets.items():
            net.load_state_dict(state["nets"][name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optim"][name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit these networks: {str(error).splitlines()[0]}") from error


def numbered(folder: Path) -> dict[int, Path]:
    """Images seen -> checkpoint, of the past checkpoints in a run folder, oldest first."""
    name = Path(NAME)
    found = {}
    for path in folder.glob(f"{name.stem}-*{name.suffix}"):
        match = re.fullmatch(rf"{name.stem}-(\d+){re.escape(name.suffix)}", path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def keep_last(folder: Path, images: int, count: int) -> None:
    """Keep the checkpoint just saved also as checkpoint-IMAGES.pt, and of those only the last `count`.

    Where the file system has hard links this takes neither time nor space. Checkpoints beyond `images`, which a run
    has left that went on from an earlier one, are not touched; with `count` 1 nothing is done at all.

    Raises:
        AnifastError: the file cannot be written.
    """
    if count <= 1:
        return
    newest, name = folder / NAME, Path(NAME)
    with atomic_path(folder / f"{name.stem}-{images:07d}{name.suffix}") as temporary:
        try:
            os.link(newest, temporary)
        except OSError:
            shutil.copyfile(newest, temporary)
    past = [path for number, path in numbered(folder).items() if number <= images]
    for path in past[:-count]:
        with suppress(OSError):
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the files of a run that a killed process has begun and not finished."""
    name = Path(NAME)
    for own in (NAME, f"{name.stem}-*{name.suffix}", "config.json", "metrics.jsonl", "losses.png"):
        remove_temporaries(folder, own)
    remove_temporaries(folder / "samples", "*.png")


@contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Put `path` in front of the message of a CheckpointError that is raised inside."""
    try:
        yield
    except CheckpointError as error:
        named = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
        raise CheckpointError(named) from error


def zipfile_or_old(path: Path) -> bool:
    """Whether the file starts like something torch.save wrote: a zip archive or a pickle."""
    with open(path, "rb") as handle:
        head = handle.read(4)
    return head == b"PK\x03\x04" or head[:1] == b"\x80"


def random_state() -> dict[str, Any]:
    """State of torch's own generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put torch's own generators back; those of GPUs only where there are as many as then."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

"""What the commands of systems share: where results may go, a model of the right system, memory that is free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anifast.errors import AnifastError, CheckpointError

if TYPE_CHECKING:
    import torch

Kind = TypeVar("Kind")


def check_out(out: Path, suffixes: Sequence[str] = (), flag: str = "--out ") -> None:
    """Refuse a result of another kind than what is written, or that is a folder.

    Args:
        out: the file.
        suffixes: that it may have, in small letters; none: any.
        flag: the option that names it and a blank, for messages; none for an argument by its place.

    Raises:
        AnifastError: that is so.
    """
    from anifast.data.folders import printable

    if suffixes and out.suffix.lower() not in suffixes:
        raise AnifastError(f"{flag}{printable(out)}: give it a name that ends with {' or '.join(suffixes)}")
    if out.is_dir():
        raise AnifastError(f"{flag}{printable(out)}: is a folder; name the file")


def not_an_input(out: Path, inputs: Iterable[str | Path | None], flag: str = "") -> None:
    """Refuse a result that would overwrite one of the files that are read.

    Args:
        out: the result.
        inputs: the files; None for what is of no file.
        flag: see `check_out`.

    Raises:
        AnifastError: that is so.
    """
    from anifast.data.folders import printable

    if os.path.realpath(out) in {os.path.realpath(path) for path in inputs if path is not None}:
        raise AnifastError(f"{flag}{printable(out)}: the result would overwrite an input; give it another name")


def load_as(
    kind: type[Kind],
    takes: str,
    path: str | Path,
    device: str | None = None,
    precision: str = "fp32",
    **options: Any,
) -> Kind:
    """A trained model, for the commands that no other system has.

    Args:
        kind: the class of the system's models.
        takes: which command takes which models, for the message.
        path: see `anifast.load`, as are device, precision and options.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    import anifast

    model = anifast.load(path, device, precision=precision, **options)
    if not isinstance(model, kind):
        raise CheckpointError(f"{path}: a model of another system; {takes}")
    return model


def free_memory(device: torch.device) -> int:
    """Bytes of memory that this process may still take on a device; 8 GiB where the machine does not say."""
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10
    except (OSError, ValueError, IndexError):
        pass
    return 8 * 2**30

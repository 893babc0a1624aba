"""Files of published weights: where they usually are, reading them without running code, and downloads with a hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import anifast
from anifast.errors import AnifastError


def hub_folder() -> Path:
    """Where torch.hub keeps weights, TORCH_HOME/hub/checkpoints."""
    return Path(torch.hub.get_dir(), "checkpoints")


def places(file: str, shared: str) -> Iterator[Path]:
    """The files of this name where weights are usually kept, the nearest first.

    Looked for in the folder ANIFAST_WEIGHTS, in torch.hub's folder, and in data/weights/`shared` of the folder
    ANIFAST_SHARED (by default `shared` beside the project's folder).
    """
    folders = [hub_folder()]
    if given := os.environ.get("ANIFAST_WEIGHTS"):
        folders.insert(0, Path(given).expanduser())
    beside = Path(os.environ.get("ANIFAST_SHARED") or Path(anifast.__file__).parents[2] / "shared").expanduser()
    folders.append(beside / "data" / "weights" / shared)
    return (path for folder in folders if (path := folder / file).is_file())


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as handle:
        found = hashlib.sha256()
        while block := handle.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def download(url: str, file: str, sha256: str, wanted: str) -> Path:
    """Download into torch.hub's folder, with a progress bar; the file is there whole and right or not at all.

    Args:
        url: where it is.
        file: its name in the folder.
        sha256: its hash, or the beginning of it.
        wanted: what it is, for the message.

    Raises:
        AnifastError: it cannot be had; the message tells what to put where.
    """
    path = hub_folder() / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network; another hash; a broken answer
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AnifastError(
            f"no weights: {wanted} are not here and cannot be downloaded ({reason}). Get {url} and put it at {path} "
            "or into a folder that ANIFAST_WEIGHTS names, or give its path"
        ) from error
    return path


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz.

    Raises:
        AnifastError: missing, damaged, another file, or one that holds objects.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as stored:  # np.load takes other files as well
            return {key: torch.from_numpy(stored[key]) for key in stored.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise AnifastError(f"{path}: damaged, or no .npz of weights ({error})") from error


def read_torch(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save; what is not used stays on the disk where the format allows it.

    Raises:
        AnifastError: missing, damaged, another file, or one that holds program code.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch and pickle raise whatever they like on files that are something else
        reason = str(error).partition("\n")[0]
        raise AnifastError(f"{path}: damaged, or no PyTorch weights ({reason})") from error
    if not isinstance(found, Mapping):
        raise AnifastError(f"{path}: holds a {type(found).__name__}, not the weights of a network")
    return dict(found)


def fill(net: nn.Module, weights: Mapping[str, Any], source: str | Path, wanted: str) -> None:
    """Load `weights` after a look at their names, shapes and values; counts of batches, which nothing uses, may lack.

    Args:
        net: what to fill.
        weights: by the net's own names.
        source: the file, for the message.
        wanted: what to give instead, for the message.

    Raises:
        AnifastError: they are not this net's; nothing was changed.
    """
    own = {key: value for key, value in net.state_dict().items() if not key.endswith(".num_batches_tracked")}
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own]
    for key in own.keys() & weights.keys():
        value = weights[key]
        if not isinstance(value, Tensor) or value.shape != own[key].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            problems.append(f"{key} is {shape} and not {tuple(own[key].shape)}")
        elif not value.is_floating_point() or not bool(value.isfinite().all()):
            problems.append(f"{key} holds other things than finite numbers")
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise AnifastError(f"{source}: other weights ({'; '.join(problems[:2])}{more}). Give {wanted}")
    net.load_state_dict(weights, strict=False)

"""Files of published weights: where they usually are, reading them without running code, and downloads with a hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
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


def download(url: str, file: str, sha256: str, wanted: str, passed_over: Sequence[Path] = ()) -> Path:
    """Download into torch.hub's folder, with a progress bar; the file is there whole and right or not at all.

    Args:
        url: where it is.
        file: its name in the folder.
        sha256: its hash, or the beginning of it.
        wanted: what it is, for the message.
        passed_over: files of its name with another hash, for the message.

    Raises:
        AnifastError: it cannot be had; the message tells what to put where.
    """
    path = hub_folder() / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network; another hash; a broken answer
        reason = str(error).partition("\n")[0] or type(error).__name__
        others = "".join(f". {other} was passed over, for its SHA-256 is another" for other in passed_over)
        raise AnifastError(
            f"no weights: {wanted} are not here and cannot be downloaded ({reason}). Get {url} and put it at {path} "
            f"or into a folder that ANIFAST_WEIGHTS names, or give its path{others}"
        ) from error
    return path


def check_file(path: Path, wanted: str) -> None:
    """Raise AnifastError, which tells to give `wanted`, unless this is a file."""
    if not path.is_file():
        problem = "is a folder, expected a file" if path.is_dir() else "no such file"
        raise AnifastError(f"{path}: {problem}. Give {wanted}")


def _damaged(path: Path, what: str, reason: str, wanted: str) -> AnifastError:
    way_out = f". Delete it, and get {wanted}" if wanted else ""
    return AnifastError(f"{path}: damaged, or no {what} ({reason}){way_out}")


def read_npz(path: Path, wanted: str = "") -> dict[str, Tensor]:
    """The arrays of an .npz.

    Args:
        path: it.
        wanted: what to get where it is something else, for the message.

    Raises:
        AnifastError: missing, damaged, another file, or one that holds objects.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as stored:  # np.load takes other files as well
            return {key: torch.from_numpy(stored[key]) for key in stored.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, ".npz of weights", str(error), wanted) from error


def read_torch(path: Path, wanted: str = "") -> dict[str, Any]:
    """The dict in a file of torch.save; what is not used stays on the disk where the format allows it.

    Args:
        path: it.
        wanted: what to get where it is something else, for the message.

    Raises:
        AnifastError: missing, damaged, another file, or one that holds program code.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise AnifastError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:  # what PyTorch says tells to run the file's code
        raise _damaged(path, "PyTorch weights", "its contents are something else", wanted) from error
    except Exception as error:  # torch and pickle raise whatever they like on files that are something else
        raise _damaged(path, "PyTorch weights", str(error).partition("\n")[0], wanted) from error
    if not isinstance(found, Mapping):
        raise AnifastError(f"{path}: holds a {type(found).__name__}, not the weights of a network")
    return dict(found)


def fill(net: nn.Module, weights: Mapping[str, Any], source: str | Path, wanted: str) -> None:
    """Load `weights` after a look at their names, shapes and values.

    Counts of batches, which nothing uses, and what is no tensor (`_extra_state`) may lack.

    Args:
        net: what to fill.
        weights: by the net's own names.
        source: the file, for the message.
        wanted: what to give instead, for the message.

    Raises:
        AnifastError: they are not this net's; nothing was changed.
    """
    optional = (".num_batches_tracked", "_extra_state")
    own = {key: value for key, value in net.state_dict().items() if not key.endswith(optional)}
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own and key != "_extra_state"]
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

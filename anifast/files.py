"""Files are written whole or not at all; rows of text files, and paths that can be printed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from anifast.errors import AnifastError, DataError

# What `atomic_path` puts between stem and suffix.
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}\.tmp(?P<suffix>\.[^.]+)?")


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that can always be printed: bytes that are no UTF-8 are shown escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def text_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The rows of a text file that hold anything, with their numbers from 1; also where bytes of it are no UTF-8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def remove_temporaries(folder: Path, names: str) -> None:
    """Remove what `atomic_path` had begun in a folder for the files `names`, a pattern, when its process was killed.

    Nobody else may be writing these files.
    """
    for path in folder.glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and fnmatchcase(match["stem"] + (match["suffix"] or ""), names):
            with suppress(OSError):
                path.unlink()


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends well.

    If the block raises, the temporary file is removed and whatever stood at `path` before is untouched.
    The name keeps the suffix of `path`, as picture writers choose their format by it. `sync` waits until the disk has
    the data, so that even a loss of power leaves a whole file; without it thousands of small files are written faster.

    Raises:
        AnifastError: the folder cannot be made or the file cannot be written (no space, no permission).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise AnifastError(
            f"cannot write {target}: {error.strerror or error}. Free some space or choose another output folder"
        ) from error
    finally:
        with suppress(OSError):  # the error above is the one to tell, not that there is nothing to remove
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

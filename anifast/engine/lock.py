"""One run at a time in a run folder, one demo in the folder of a demo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anifast.errors import AnifastError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder, which is made if missing and removed again if nothing is put into it.

    The lock ends with the process however that ends. Where the file system has no locks, there is none.

    Raises:
        AnifastError: another run holds the folder, or it cannot be written.
    """
    path = folder / NAME
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(path, "ab")
    except OSError as error:
        raise AnifastError(
            f"cannot write to the run folder {folder}: {error.strerror or error}; choose another --out"
        ) from error
    with handle:
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever ends a run removes the file, and the next one may have made and locked another by now.
            mine = path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat())
        except BlockingIOError:
            mine = False
        except OSError:  # some network file systems
            mine = True
        if not mine:
            raise AnifastError(f"{folder}: another run is writing here; wait until it ends, or choose another --out")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            with suppress(OSError):  # not empty: there is a run now
                for empty in made:
                    empty.rmdir()

"""Checkouts of authors' repositories: imported while something is measured, and told which code they hold."""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from anifast.errors import AnifastError

#: Packages that authors' modules import at the top and their networks do without.
UNUSED = ("torchvision", "kornia", "lpips", "matplotlib", "aubio", "dlib", "cv2")


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty package for each of `UNUSED`; asked last, so only for those that are not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module of that name, if it is one of `UNUSED` or lies in one."""
        if fullname.partition(".")[0] not in UNUSED:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


@contextmanager
def checkout_first(checkout: Path) -> Iterator[None]:
    """Imports look into `checkout` first; afterwards what was imported from there, or is empty, is forgotten."""
    own = {path.stem for path in checkout.glob("*.py")} | {path.parent.name for path in checkout.glob("*/__init__.py")}
    before, path = dict(sys.modules), list(sys.path)
    finder = _Empty()

    def passing(name: str) -> bool:
        return name.partition(".")[0] in own or getattr(sys.modules[name], "__loader__", None) is finder

    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    sys.meta_path.append(finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = path
        for name in [name for name in sys.modules if passing(name)]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name.partition(".")[0] in own})


def require(checkout: Path, names: Iterable[str], address: str) -> None:
    """Raise AnifastError where a checkout lacks one of these files; `address` is that of its repository."""
    missing = [name for name in names if not (checkout / name).is_file()]
    if missing:
        raise AnifastError(f"--authors {checkout}: no {' and no '.join(missing)}; expected a checkout of {address}")


def git(checkout: Path, *arguments: str) -> str | None:
    """What git says, stripped; None where there is no git or it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe(checkout: Path, sources: Iterable[Path]) -> dict[str, Any]:
    """Which code a checkout holds, as JSON values.

    Args:
        checkout: its folder, resolved.
        sources: the files that count.

    Returns:
        `commit` with `uncommitted_changes`, or, where it is no repository of its own, `sha256` over the sources by
        their names.
    """
    if git(checkout, "rev-parse", "--show-toplevel") == str(checkout):
        commit = git(checkout, "rev-parse", "HEAD")
        if commit is not None:
            changed = git(checkout, "status", "--porcelain", "--untracked-files=no")
            return {"commit": commit, "uncommitted_changes": None if changed is None else bool(changed)}
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(checkout).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {"sha256": digest.hexdigest()}


def which(authors: dict[str, Any]) -> str:
    """What `describe` gave, in short words for a note."""
    code = f"commit {authors['commit'][:10]}" if "commit" in authors else f"sha256 {authors['sha256'][:10]}"
    return code + ("+changes" if authors.get("uncommitted_changes") else "")

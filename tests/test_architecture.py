"""The direction of imports, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "anifast"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

# room -> rooms of this package that it may import; modules outside a room (errors, files, ...) serve everyone
MAY_IMPORT = {
    "reference": {"reference"},
    "ops": {"reference", "ops", "backends", "_native"},
    "backends": {"_native"},
    "data": {"data"},
    "nn": {"nn", "ops", "backends"},
    "compat": {"compat", "ops", "backends"},
    "engine": {"engine", "data", "ops", "backends"},
    "metrics": {"metrics", "data", "nn", "ops", "backends"},
    "systems": {"systems", "engine", "metrics", "data", "nn", "ops", "backends"},
}
for _module in ("errors", "files", "progress"):
    MAY_IMPORT[_module] = set()
EVERYONE = {"errors", "files", "progress"}
# they run under the names of the packages whose places they take, so their modules are siblings and nothing more
STAND_INS = {PACKAGE / "compat" / "rosinality", PACKAGE / "compat" / "nvlabs"}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            sibling = isinstance(node, ast.ImportFrom) and node.level == 1 and path.parent in STAND_INS
            assert sibling or not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("anifast.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    if here not in MAY_IMPORT:
        return
    rooms = imported_rooms(path) - EVERYONE - {"__version__", "__init__"}
    assert rooms <= MAY_IMPORT[here], f"{here} may not import {sorted(rooms - MAY_IMPORT[here])}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_ops_touches_kernels(path: Path) -> None:
    if room(path) in ("ops", "_native"):
        return
    text = path.read_text(encoding="utf-8")
    assert "torch.ops.anifast" not in text and "anifast._C" not in text.replace("`anifast._C`", "")
    assert "kernels" not in imported_rooms(path)


def test_systems_do_not_know_one_another() -> None:
    for folder in (PACKAGE / "systems").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            others = [
                f.name for f in folder.parent.iterdir() if f.is_dir() and f.name not in (folder.name, "__pycache__")
            ]
            for path in folder.rglob("*.py"):
                text = path.read_text(encoding="utf-8")
                assert not any(f"anifast.systems.{other}" in text for other in others), path


@pytest.mark.parametrize("module", ["anifast", "anifast.cli", "anifast.compat"])
def test_import_is_light(module: str) -> None:
    program = (
        f"import sys, {module}\nheavy = {{'torch', 'triton', 'numpy'}} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_ops_initialises_no_gpu() -> None:
    program = "import torch, anifast.ops\nassert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Shared libraries that tests build of the C++ and CUDA sources, kept in build/ while nothing has changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


class Unavailable(Exception):
    """Why nothing can be built here."""


def compiler() -> str:
    """The C++ compiler's command."""
    command = os.environ.get("CXX") or "g++"
    if shutil.which(command.split()[0]) is None:
        raise Unavailable(f"no C++ compiler: {command} was not found")
    return command


def torch_flags() -> list[str]:
    """Where torch's headers are."""
    from torch.utils.cpp_extension import include_paths

    return [word for path in include_paths() for word in ("-isystem", path)]


def library(name: str, jobs: dict[Path, list[str]], link: list[str], depends: Iterable[Path]) -> Path:
    """The shared library build/<name>/<digest>/<name>.so of these sources, each with its compiler flags.

    Args:
        name: of the library.
        jobs: source -> compiler flags.
        link: linker flags beside torch's.
        depends: folders of sources and headers; any change in them builds anew.

    Raises:
        Unavailable: there is no compiler.
    """
    import torch

    program = compiler().split()
    digest = hashlib.sha256(repr([program, torch.__version__, link, sorted(map(str, jobs.items()))]).encode())
    for folder in depends:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu"):
                digest.update(path.read_bytes())
    folder = ROOT / "build" / name / digest.hexdigest()[:16]
    built = folder / f"{name}.so"
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)

    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")

    def compiled(path: Path) -> str:
        target = str(folder / f"{path.parent.name}.{path.name}.{os.getpid()}.o")
        run(*program, *jobs[path], "-c", str(path), "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, jobs))
    libraries = Path(torch.__file__).parent / "lib"
    partial = folder / f"{name}.{os.getpid()}.so"
    run(*program, "-shared", *link, "-o", str(partial), *objects, f"-L{libraries}", "-ltorch_cpu", "-lc10")
    for target in objects:
        os.unlink(target)
    partial.replace(built)
    return built


def sanitized_environment(**more: str) -> dict[str, str]:
    """The environment of a process that loads a library built with SANITIZE.

    Raises:
        Unavailable: the compiler has no sanitizers.
    """
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*compiler().split(), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            raise Unavailable(f"the compiler has no {name}")
        libraries.append(path)
    return (
        os.environ
        | {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",  # Python frees little at its end
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        | more
    )

"""What a measurement was made on and with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import anifast
from anifast import _native

_ROOT = Path(__file__).resolve().parents[1]
_OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_SPINCOUNT")
_ALLOCATOR = ("MALLOC_CONF", "LD_PRELOAD")


def _first(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1].strip() if found else None


def _git(*arguments: str) -> str | None:
    if not (_ROOT / "setup.py").exists():  # installed: whatever repository lies around it is another one
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _first("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slug(device: str) -> str:
    """Name of the results folder: the GPU, or the CPU with the cores in use."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        plain = re.sub(r"(?i)\((r|tm)\)|processor|cpu|@.*", " ", cpu_name())
        name = f"cpu {plain} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: str) -> dict[str, Any]:
    """The whole environment as JSON values; what cannot be told is None."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results", ":!README.md")
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "uncommitted_changes": None if commit is None or changed is None else bool(changed),
        "anifast": anifast.__version__,
        "build": _native.build_info or {"none": _native.reason},
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "huge_pages": _first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "settings": {name: os.environ[name] for name in (*_OPENMP, *_ALLOCATOR) if name in os.environ},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_capability"] = f"{properties.major}.{properties.minor}"
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found

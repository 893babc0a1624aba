"""`anifast doctor`: what is installed, what was compiled, which backend each op takes, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil

import anifast
from anifast.errors import BackendError


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report() -> str:
    """The whole report as text."""
    import torch

    from anifast import _native, backends

    info = _native.build_info
    rows = [
        ("anifast", f"{anifast.__version__} from {os.path.dirname(anifast.__file__)}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("numpy, pillow", f"{_version('numpy')}, {_version('pillow')}"),
        ("triton", _version("triton")),
        ("compilers", f"c++ {shutil.which('c++') or 'not found'}, nvcc {shutil.which('nvcc') or 'not found'}"),
        ("cpu", f"{_cpu()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            rows.append(
                (f"gpu {index}", f"{properties.name}, sm_{properties.major}{properties.minor}, "
                 f"{properties.total_memory / 2**30:.0f} GiB")
            )  # fmt: skip
    else:
        rows.append(("gpu", "none visible to torch"))
    if _native.reason is None:
        cuda = f"CUDA for {info['cuda_archs']}" if info["cuda"] else "no CUDA"
        rows.append(("kernels", f"compiled: C++ for {info['isa']}, {cuda}, against torch {info['torch']}"))
    else:
        rows.append(("kernels", f"NONE: {_native.reason}"))
    rows.append(("ANIFAST_BACKEND", os.environ.get("ANIFAST_BACKEND", "not set")))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    try:
        chosen = backends.lines()
    except BackendError as error:
        chosen = [f"none can run: {error}"]
    return "\n".join([*lines, "", "backends", *("  " + line for line in chosen)])


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The arguments of `anifast doctor`: none."""
    parser.description = __doc__


def main(args: argparse.Namespace) -> int:
    """Print the report; exit code 0 whatever it says."""
    print(report())
    return 0

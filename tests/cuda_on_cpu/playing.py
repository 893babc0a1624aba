"""Builds the CUDA sources for the CPU player of cuda_on_cpu.h and hands out what is in them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from pathlib import Path

from compiling import ROOT, SANITIZE, Unavailable, library, torch_flags

HERE = ROOT / "tests" / "cuda_on_cpu"
WIDE_INDEX_FROM = 2**31 - 2**16


def cuda_include() -> Path:
    """A folder with the CUDA headers: the toolkit's, or the copy that Triton brings."""
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", Path(nvcc).resolve().parents[1] if nvcc else None]
    folders = [Path(toolkit) / "include" for toolkit in toolkits if toolkit]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.submodule_search_locations:
        folders.append(Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "include")
    for folder in folders:
        if (folder / "cuda_bf16.h").exists():
            return folder
    raise Unavailable("no CUDA headers: neither a toolkit nor the package triton is installed")


def build(sanitize: bool = False) -> Path:
    """The shared library of all CUDA ops as played code, from the cache in build/ where nothing has changed.

    With `sanitize`, device code and player (not the host code around them) run under AddressSanitizer and UBSan.

    Raises:
        Unavailable: no compiler or no CUDA headers.
    """
    headers = cuda_include()
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    common += [f"-I{HERE}", "-isystem", str(headers)]
    device = ["-O1", *SANITIZE] if sanitize else ["-O2"]
    jobs = {HERE / "cuda_on_cpu.cpp": [*common, *device]}
    for path in [*sorted((ROOT / "csrc" / "cuda").glob("*_kernels.cu")), HERE / "toy_kernels.cu"]:
        jobs[path] = [*common, *device, "-include", "cuda_on_cpu.h", "-x", "c++"]
    for path in sorted(HERE.glob("played_*.cpp")):
        jobs[path] = [*common, "-O1", f"-I{HERE / 'stubs'}", *torch_flags()]
    link = ["-fsanitize=address,undefined"] if sanitize else []
    return library("played", jobs, link, (ROOT / "csrc" / "cuda", ROOT / "csrc" / "common", HERE))


class Player:
    """The handles of a loaded library."""

    def __init__(self, library: Path) -> None:
        handles = ctypes.CDLL(str(library))
        self._set = handles.cuda_on_cpu_set
        self._set.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_uint]
        self._launches = handles.cuda_on_cpu_launches
        self._launches.restype = ctypes.c_int64
        self._blocks = handles.cuda_on_cpu_blocks
        self._blocks.restype = ctypes.c_int64
        self.fail_next = handles.cuda_on_cpu_fail_next  # the next launch does not happen and is an error
        self._toy = handles.toy
        self._toy.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_float)]
        self._toy.restype = ctypes.c_char_p

    def set(self, *, wide_index_from: int = WIDE_INDEX_FROM, processors: int = 4, order: int = 0) -> None:
        """Choose from how many elements indices have 64 bits, the multiprocessors, and the order of the threads.

        Order 0 is ascending, 1 descending, every other number another shuffle.
        """
        self._set(wide_index_from, processors, order)

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return self._launches()

    @property
    def blocks(self) -> int:
        """Thread blocks of all launches so far."""
        return self._blocks()

    def toy(self, kernel: int) -> tuple[float, str]:
        """What a kernel of toy_kernels.cu wrote, and the error of its launch."""
        result = ctypes.c_float(-1.0)
        error = self._toy(kernel, ctypes.byref(result)).decode()
        return result.value, error

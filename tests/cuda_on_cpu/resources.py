"""What the compiler makes of the CUDA kernels: `python tests/cuda_on_cpu/resources.py` prints a table of it.

Registers set how many blocks a multiprocessor holds; spills and local memory are slow and not expected anywhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
THREADS = 256  # of a block, in every kernel so far

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds: 65536 registers, given out to warps by 256, and 2048 threads."""
        warp = -(-self.registers * 32 // 256) * 256
        by_shared = 100 * 1024 // (self.shared + 1024)
        return min(2048 // THREADS, 65536 // (warp * THREADS // 32), by_shared)


def nvcc() -> str | None:
    """The CUDA compiler, where there is one."""
    return shutil.which("nvcc")


def sources() -> list[Path]:
    """Every file of device code."""
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def compile_for(source: Path, architectures: tuple[str, ...] = ARCHITECTURES) -> list[Usage]:
    """Compile a file for all architectures and return what each kernel needs.

    Raises:
        RuntimeError: it does not compile; the message holds what the compiler says.
    """
    # with the macros under which torch compiles extensions: half types have no operators and convert by name only
    flags = [f"-D__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS")]
    flags += [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in architectures]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc() or "nvcc", "-std=c++17", "-O3", "-Xptxas=-v", "--threads=2", *flags]
        command += ["-c", str(source), "-o", str(Path(folder) / "out.o")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc cannot compile {source.name}:\n{done.stderr[-4000:]}")
    found = []
    for entry in _ENTRY.finditer(done.stderr):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        spilled = int(entry["stores"]) + int(entry["loads"])
        usage = (int(entry["registers"]), int(shared[1]) if shared else 0, int(entry["stack"]), spilled)
        found.append(Usage(readable(entry["name"]), entry["arch"], *usage))
    return found


def readable(mangled: str) -> str:
    """A kernel's name and template arguments, as bias_lrelu_kernel<half, 8, 0, 1, uint32>."""
    names, rest = [], mangled.removeprefix("_ZN")
    while found := re.match(r"\d+", rest):  # nested names, each after its length
        start = found.end()
        names.append(rest[start : start + int(found[0])])
        rest = rest[start + int(found[0]) :]
    types = {"f": "float", "d": "double", "j": "uint32", "l": "int64", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
    arguments = re.match(r"I(.*?E)E", rest)
    words = re.findall(r"13__nv_bfloat16|6__half|L[ib]\d+E|[fdjl]", arguments[1]) if arguments else []
    return f"{names[-1]}<{', '.join(types.get(word, word[2:-1]) for word in words)}>" if names else mangled


def table(usages: list[Usage]) -> str:
    """The kernels as lines, worst occupancy first."""
    lines = [
        f"{'kernel':<62}{'arch':>8}{'registers':>11}{'blocks/SM':>11}{'threads/SM':>12}{'shared':>8}{'spilled':>9}"
    ]
    for usage in sorted(usages, key=lambda usage: (usage.arch, usage.blocks, -usage.registers)):
        lines.append(
            f"{usage.kernel:<62}{usage.arch:>8}{usage.registers:>11}{usage.blocks:>11}{usage.blocks * THREADS:>12}"
            f"{usage.shared:>8}{usage.spilled:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if nvcc() is None:
        raise SystemExit("resources.py: nvcc was not found; install the CUDA toolkit")
    print(table([usage for source in sources() for usage in compile_for(source)]))

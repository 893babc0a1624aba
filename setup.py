"""Builds the extension `anifast._C`; everything else about the package is in pyproject.toml.

What is built is decided by the toolkit and the torch build, never by a visible GPU:

    ANIFAST_BUILD=auto   CUDA and CPU kernels where torch is a CUDA build and its nvcc is found, else CPU kernels,
                         else (no C++ compiler) a pure-Python install
    ANIFAST_BUILD=cpu    CPU kernels, or fail
    ANIFAST_BUILD=cuda   CUDA and CPU kernels, or fail (FORCE_CUDA=1 is the same)
    ANIFAST_BUILD=none   pure Python

TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX and CUDA_HOME mean what they mean to torch. ANIFAST_MARCH chooses the CPU that
the kernels are built for (default: native, this machine; x86-64-v3 suits every AVX2 machine).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RECORD = "_build.json"
MODES = ("auto", "cpu", "cuda", "none")
TRUE = ("1", "on", "true", "yes")


@dataclass
class Configuration:
    """What will be built and why; printed first and kept beside the extension."""

    mode: str
    extension: bool = False
    cuda: bool = False
    reason: str = ""
    torch: str = ""
    compiler: str = ""
    march: str = ""
    isa: str = ""
    nvcc: str = ""
    cuda_archs: str = ""
    sources: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The configuration as lines for the build log."""
        values = {name: value for name, value in asdict(self).items() if name != "sources" and value not in ("", [])}
        lines = [f"  {name:<10} {value}" for name, value in values.items()]
        return "\n".join(["anifast build configuration:", *lines, f"  {'sources':<10} {len(self.sources)} files"])


def fail(message: str) -> None:
    """End the build with one clear error."""
    raise SystemExit(f"anifast: error: {message}")


def requested_mode() -> str:
    """ANIFAST_BUILD and FORCE_CUDA, checked."""
    mode = os.environ.get("ANIFAST_BUILD", "auto").strip().lower() or "auto"
    if mode not in MODES:
        fail(f"ANIFAST_BUILD={mode!r} is unknown; it is one of {', '.join(MODES)}")
    if os.environ.get("FORCE_CUDA", "").strip().lower() in TRUE:
        if mode in ("cpu", "none"):
            fail(f"FORCE_CUDA=1 and ANIFAST_BUILD={mode} contradict each other; unset one of them")
        mode = "cuda"
    return mode


def output_of(*command: str) -> str | None:
    """Standard output of a command, or None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def find_compiler(configuration: Configuration) -> str | None:
    """Fill in compiler, march and isa; return why no kernels can be compiled, or None."""
    command = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")
    program = command.split()[0]
    version = output_of(*command.split(), "--version")
    if version is None:
        return f"no C++ compiler: {program!r} does not run (install g++, or point CXX at a compiler)"
    if not any(name in version.lower() for name in ("gcc", "g++", "clang", "free software foundation")):
        return f"{program!r} is neither GCC nor clang, and the kernels use their vector extensions"
    configuration.compiler = version.splitlines()[0]
    wanted = os.environ.get("ANIFAST_MARCH", "native")
    macros = output_of(*command.split(), f"-march={wanted}", "-dM", "-E", "-x", "c++", os.devnull)
    if macros is None:
        if "ANIFAST_MARCH" in os.environ:
            fail(f"the compiler does not know -march={wanted} (ANIFAST_MARCH): {configuration.compiler}")
        macros, wanted = output_of(*command.split(), "-dM", "-E", "-x", "c++", os.devnull) or "", ""
    configuration.march = wanted
    avx512 = "__AVX512F__ " in macros and "__AVX512DQ__ " in macros
    configuration.isa = "avx512" if avx512 else "avx2" if "__AVX2__ " in macros else "default"
    return None


def find_cuda(configuration: Configuration, torch: Any) -> str | None:
    """Fill in nvcc and the architectures; return why CUDA kernels cannot be built, or None."""
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch first"
    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    text = output_of(str(nvcc), "--version") if CUDA_HOME else None
    if text is None:
        return "nvcc was not found; install the CUDA toolkit or point CUDA_HOME at it"
    release = re.search(r"release (\d+)\.(\d+)", text)
    version = (int(release[1]), int(release[2])) if release else (0, 0)
    if version[0] != int(torch.version.cuda.split(".")[0]):
        return (
            f"nvcc is {version[0]}.{version[1]} and torch was built with CUDA {torch.version.cuda}: majors must agree"
        )
    configuration.nvcc = f"{nvcc} {version[0]}.{version[1]}"
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if not archs:
        archs = "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
    os.environ["TORCH_CUDA_ARCH_LIST"] = configuration.cuda_archs = archs
    return None


def configure() -> Configuration:
    """Decide what to build, or end with the reason why a request cannot be met."""
    mode = requested_mode()
    configuration = Configuration(mode)
    if mode == "none":
        configuration.reason = "ANIFAST_BUILD=none"
        return configuration
    try:
        import torch
    except ImportError:
        if not {"bdist_wheel", "editable_wheel", "build_ext", "build", "install", "develop"} & set(sys.argv):
            configuration.reason = "metadata only"
            return configuration
        fail(
            "torch is not importable while building. Kernels are compiled against the torch they run with, so install "
            "torch first and build in the same environment: pip install --no-build-isolation . "
            "(ANIFAST_BUILD=none installs without kernels)"
        )
    configuration.torch = torch.__version__
    missing = find_compiler(configuration)
    if missing:
        if mode != "auto":
            fail(f"ANIFAST_BUILD={mode} cannot be met: {missing}")
        configuration.reason = missing
        return configuration
    configuration.extension = True
    if mode in ("auto", "cuda"):
        no_cuda = find_cuda(configuration, torch)
        if no_cuda and mode == "cuda":
            fail(f"ANIFAST_BUILD=cuda cannot be met: {no_cuda}")
        configuration.cuda = no_cuda is None
        configuration.reason = f"no CUDA kernels: {no_cuda}" if no_cuda else ""
    patterns = ["module.cpp", "autograd/*.cpp", "cpu/*.cpp"] + (
        ["cuda/*.cpp", "cuda/*.cu"] if configuration.cuda else []
    )
    found = [path for pattern in patterns for path in (ROOT / "csrc").glob(pattern)]
    configuration.sources = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return configuration


def extension(configuration: Configuration) -> Any:
    """The extension of this configuration."""
    try:
        import ninja  # noqa: F401  compiles the files in parallel
        import pybind11
    except ImportError as missing:
        fail(f"{missing.name} is needed to build the kernels: pip install ninja pybind11 (or ANIFAST_BUILD=none)")
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cxx = [
        "-O3",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",  # in GCC's own AVX-512 header (bug 105593)
        "-Wno-unknown-pragmas",
    ]
    cxx += [f"-march={configuration.march}"] if configuration.march else []
    macros = [("ANIFAST_CUDA", str(int(configuration.cuda))), ("ANIFAST_CUDA_ARCHS", f'"{configuration.cuda_archs}"')]
    make = CUDAExtension if configuration.cuda else CppExtension
    return make(
        "anifast._C",
        configuration.sources,
        include_dirs=[pybind11.get_include()],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "--threads=2"]},
        extra_link_args=["-fopenmp"],
        depends=[path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h")],
    )


def commands(configuration: Configuration) -> dict[str, type]:
    """Build commands that leave the record beside the extension."""

    def record(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(asdict(configuration), indent=1) + "\n", encoding="utf-8")

    class BuildPy(build_py):
        def run(self) -> None:
            super().run()
            if not configuration.extension:
                record(ROOT / "anifast" if self.editable_mode else Path(self.build_lib) / "anifast")

    made: dict[str, type] = {"build_py": BuildPy}
    if configuration.extension:
        from torch.utils.cpp_extension import BuildExtension

        class Build(BuildExtension):
            def run(self) -> None:
                super().run()
                record(Path(self.get_ext_fullpath("anifast._C")).parent)

        made["build_ext"] = Build
    return made


INSTALLED = {
    "anifast.kernels": "kernels",
    "anifast.benchmarks": "benchmarks",
    "anifast.benchmarks.ops": "benchmarks/ops",
    "anifast.benchmarks.systems": "benchmarks/systems",
}
configuration = configure()
print(configuration.describe(), flush=True)
if configuration.mode == "auto" and not configuration.extension and configuration.reason != "metadata only":
    line = "!" * 100
    print(f"{line}\nanifast: NO KERNELS ARE BUILT: {configuration.reason}\n{line}", file=sys.stderr, flush=True)

setup(
    # kernels/ and benchmarks/ stand in the top level of the repository and install below anifast
    packages=[*find_packages(include=["anifast", "anifast.*"]), *INSTALLED],
    package_dir=INSTALLED,
    ext_modules=[extension(configuration)] if configuration.extension else [],
    cmdclass=commands(configuration),
)

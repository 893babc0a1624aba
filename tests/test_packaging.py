"""What setup.py decides, and what arrives in a wheel and a source archive."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

NAMES = ("ANIFAST_BUILD", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CXX", "CUDA_HOME", "ANIFAST_MARCH")
needs_setuptools = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed"
)


def setup(
    root: Path, *arguments: str, path: str | None = None, isolated: bool = False, **environment: str
) -> tuple[int, str]:
    """Run setup.py from a scratch copy of its inputs and give exit code and output."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    if path is not None:
        clean["PATH"] = path
    program = [sys.executable, "setup.py", *arguments]
    if isolated:  # as in an isolated build: setuptools is there and torch is not
        hide = (
            "import sys; sys.modules['torch'] = None; import runpy; sys.argv[:] = sys.argv[1:]; "
            "runpy.run_path('setup.py', run_name='__main__')"
        )
        program = [sys.executable, "-c", hide, "setup.py", *arguments]
    done = subprocess.run(program, cwd=root, env=clean | environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a build reads, apart from the working tree."""
    copy = tmp_path_factory.mktemp("source") / "anifast-source"
    wanted = ("anifast", "csrc", "kernels", "tests", "benchmarks")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json", "*.egg-info")
    for name in wanted:
        shutil.copytree(root / name, copy / name, ignore=ignore)
    (copy / ".ci").mkdir()
    for name in (
        ".ci/run",
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
    ):
        shutil.copy(root / name, copy / name)
    return copy


def python_files(folder: Path, prefix: str) -> set[str]:
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}


@needs_setuptools
def test_wheel_holds_every_file_and_no_top_level_kernels(tree: Path, tmp_path: Path) -> None:
    code, text = setup(tree, "-q", "bdist_wheel", "--dist-dir", str(tmp_path), ANIFAST_BUILD="none")
    assert code == 0, text
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = python_files(tree / "anifast", "anifast") | python_files(tree / "kernels", "anifast/kernels")
    expected |= python_files(tree / "benchmarks", "anifast/benchmarks")
    assert expected <= names, sorted(expected - names)
    assert not any(name.startswith(("kernels/", "tests/", "benchmarks/", "csrc/")) for name in names)
    assert {"anifast/py.typed", "anifast/_build.json"} <= names
    target = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(target)
    program = (
        "import anifast, anifast.ops, anifast._native as n, torch, importlib.util as u\n"
        f"assert anifast.__file__.startswith({str(target)!r}), anifast.__file__\n"
        "assert n.unavailable('cpu').startswith('nothing was compiled: ANIFAST_BUILD=none')\n"
        "assert u.find_spec('anifast.kernels') is not None and u.find_spec('kernels') is None\n"
        "assert u.find_spec('anifast.benchmarks') is not None and u.find_spec('benchmarks') is None\n"
        "from anifast.cli import main\n"
        "assert main(['bench', 'nothing', '--device', 'cpu']) == 1\n"
        "assert anifast.ops.bias_lrelu(torch.ones(2, 3)).shape == (2, 3)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--op nothing: there is no such benchmark; there are bias_lrelu" in done.stderr


@needs_setuptools
def test_source_archive_can_build(tree: Path, tmp_path: Path) -> None:
    code, text = setup(tree, "-q", "sdist", "--dist-dir", str(tmp_path), isolated=True)
    assert code == 0, text
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    folders = ("csrc", "kernels", "anifast", "tests", "benchmarks")
    kinds = (".py", ".cpp", ".cu", ".h")
    sources = {p.relative_to(tree).as_posix() for f in folders for p in (tree / f).rglob("*") if p.suffix in kinds}
    expected = sources | {"setup.py", "LICENSE", "Makefile", "README.md", ".ci/run"}
    assert expected <= names, sorted(expected - names)


def test_the_configuration_is_printed_first(root: Path) -> None:
    code, text = setup(root, "--version", ANIFAST_BUILD="none")
    assert code == 0 and text.startswith("anifast build configuration:\n  mode       none"), text


def test_unknown_and_contradicting_modes_fail(root: Path) -> None:
    code, text = setup(root, "--version", ANIFAST_BUILD="gpu")
    assert code == 1 and "ANIFAST_BUILD='gpu' is unknown; it is one of auto, cpu, cuda, none" in text
    code, text = setup(root, "--version", ANIFAST_BUILD="cpu", FORCE_CUDA="1")
    assert code == 1 and "contradict each other" in text


def test_without_a_compiler_auto_is_loud_and_pure_and_cpu_fails(tree: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, text = setup(tree, "-q", "bdist_wheel", "--dist-dir", str(tmp_path), path=str(empty))
    assert code == 0 and "NO KERNELS ARE BUILT: no C++ compiler" in text, text
    assert len(list(tmp_path.glob("*.whl"))) == 1
    code, text = setup(tree, "--version", path=str(empty), ANIFAST_BUILD="cpu")
    assert code == 1 and "ANIFAST_BUILD=cpu cannot be met: no C++ compiler" in text


def test_cuda_on_a_cpu_build_of_torch_fails_with_the_reason(root: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    for environment in ({"ANIFAST_BUILD": "cuda"}, {"FORCE_CUDA": "1"}):
        code, text = setup(root, "--version", **environment)
        assert code == 1 and "cannot be met: torch" in text and "is a build without CUDA" in text, text


def test_isolated_build_names_the_flag(tree: Path) -> None:
    code, text = setup(tree, "bdist_wheel", isolated=True)
    assert code == 1 and "pip install --no-build-isolation ." in text, text
    assert "anifast: error: torch is not importable while building" in text


def test_unknown_march_fails(root: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    code, text = setup(root, "--version", ANIFAST_MARCH="z80", ANIFAST_BUILD="cpu")
    assert code == 1 and "does not know -march=z80" in text

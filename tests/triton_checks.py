"""What the tests of all Triton kernels share: processes of their own for the interpreter and for the compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_install = pytest.mark.skipif(
    importlib.util.find_spec("anifast.kernels") is None,
    reason="anifast is not installed: a bare source tree does not map kernels/ into it",
)


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python outside the repository, whose bare source tree would hide what is installed."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


def interpret(file: Path, folder: Path, at_least: int) -> None:
    """Run a file of tests under TRITON_INTERPRET=1; more than `at_least` must pass and none be skipped."""
    options = ["-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-o", f"pythonpath={TESTS}"]
    settings = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # the tensors are small
    done = python("-m", "pytest", *options, str(file), cwd=folder, **settings)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > at_least


def compile_all(program: str, folder: Path) -> None:
    """Run a program that compiles kernels with `triton_compiling` and ends by printing "compiled"."""
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no NVIDIA backend")
    (folder / "compile.py").write_text(program, encoding="utf-8")
    settings = {"TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_INTERPRET": "0", "PYTHONPATH": str(TESTS)}
    done = python(str(folder / "compile.py"), cwd=folder, **settings)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-4000:]

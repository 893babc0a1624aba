"""The played CUDA code under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from compiling import Unavailable, sanitized_environment
from playing import build

HERE = Path(__file__).parent


@pytest.mark.heavy
def test_no_access_is_out_of_bounds_and_nothing_is_undefined() -> None:
    try:
        environment = sanitized_environment(ANIFAST_PLAY_SANITIZED="1")
        build(sanitize=True)
    except Unavailable as problem:
        pytest.skip(str(problem))
    chosen = "agrees or aligned or cut or wide or toy or barriers"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", chosen]
    command += [*map(str, sorted(HERE.glob("test_*_played.py"))), str(HERE / "test_player.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_the_sanitizer_is_on() -> None:
    try:
        environment = sanitized_environment(ANIFAST_PLAY_SANITIZED="1")
        library = build(sanitize=True)
    except Unavailable as problem:
        pytest.skip(str(problem))
    program = f"""
import ctypes, sys
sys.path.insert(0, {str(HERE)!r})
import torch
toy = ctypes.CDLL({str(library)!r}).toy
four_bytes = ctypes.CDLL(None).malloc
four_bytes.restype = ctypes.c_void_p
toy(0, ctypes.c_void_p(four_bytes(4) + 4))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 66 and "heap-buffer-overflow" in done.stderr

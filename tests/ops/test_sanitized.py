"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from compiling import ROOT, SANITIZE, Unavailable, library, sanitized_environment, torch_flags

from anifast import _native

TESTS = ROOT / "tests"
pytestmark = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package anifast whose extension is built with the sanitizers."""
    import pybind11
    import torch

    try:
        sanitized_environment()
        record = json.loads((ROOT / "anifast" / "_build.json").read_text(encoding="utf-8"))
        # the instructions that most machines have, whatever this one has beyond: those that are tested are its own
        march = "x86-64-v3" if record["isa"] in ("avx2", "avx512") else record["march"]
        flags = ["-std=c++20", "-fPIC", "-fopenmp", "-Wno-psabi", "-Wno-unknown-pragmas", "-DTORCH_EXTENSION_NAME=_C"]
        flags += [f"-march={march}"] if march else []
        flags += [*torch_flags(), "-isystem", pybind11.get_include()]
        flags += ["-isystem", str(Path(torch.__file__).parent / "include" / "torch" / "csrc" / "api" / "include")]
        flags += ["-isystem", sysconfig.get_path("include")]
        # Torch's classes are not instrumented, so what the vptr check asks of them is not there. Unoptimised code takes
        # half the time to compile, and is more to the letter. What touches no memory of tensors stays plain.
        kernels = [*flags, *SANITIZE, "-fno-sanitize=vptr"]
        jobs = {path: kernels for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))}
        jobs |= dict.fromkeys(
            [ROOT / "csrc" / "module.cpp", *sorted((ROOT / "csrc" / "autograd").glob("*.cpp"))], flags
        )
        link = ["-fopenmp", "-fsanitize=address,undefined", "-ltorch_python", "-ltorch"]
        libraries = Path(torch.__file__).parent / "lib"
        depends = [ROOT / "csrc" / part for part in ("autograd", "common", "cpu")]
        built = library("sanitized", jobs, [f"-L{libraries}", *link], depends)
    except Unavailable as problem:
        pytest.skip(str(problem))
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "anifast").mkdir()
    for path in (ROOT / "anifast").iterdir():
        if not path.name.startswith(("_C", "__pycache__")):
            (folder / "anifast" / path.name).symlink_to(path)
    (folder / "anifast" / "_C.so").symlink_to(built)
    return folder


def run(package: Path, program: str) -> subprocess.CompletedProcess[str]:
    start = f"""
import sys
sys.path.insert(0, {str(package)!r})
import torch, anifast._C
assert anifast._C.__file__ == {str(package / "anifast" / "_C.so")!r}
"""
    environment = sanitized_environment(OMP_NUM_THREADS="2", ANIFAST_BACKEND="")
    command = [sys.executable, "-c", start + program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.heavy
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(package: Path) -> None:
    shapes = "agrees or many or strides or aligned or nearly or nan"
    strategies = "(gemm or winograd) and (agree_with or agrees_with or odd_strides)"
    chosen = f"((native and ({shapes})) or ({strategies}) or random_calls or faults) and not (float64 or float16)"
    names = ("upfirdn2d", "bias_lrelu", "instance_norm", "modulated_conv2d", "modulated_conv2d_passes")
    names += ("domain_norm", "gated_residual", "gram", "lpips_layer", "random_arguments")
    files = [str(TESTS / "ops" / f"test_{name}.py") for name in names]
    options = ["-q", "-x", "--capture=sys", "-m", "not heavy", "-k", chosen, *files]
    done = run(package, f"import pytest\nsys.exit(pytest.main({options!r}))")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("short_by", [0, 1])
def test_the_sanitizer_is_on(package: Path, short_by: int) -> None:
    done = run(
        package,
        f"""
import ctypes
import numpy
from anifast.ops import upfirdn2d
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
values = 2 * 7 * 19
memory = (ctypes.c_float * values).from_address(malloc(ctypes.c_size_t(4 * (values - {short_by}))))
x = torch.from_numpy(numpy.frombuffer(memory, dtype=numpy.float32)).view(1, 2, 7, 19)
upfirdn2d(x, torch.ones(4), backend="native")
print("done")
""",
    )
    if short_by:
        assert done.returncode == 66 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]
    else:
        assert done.returncode == 0 and "done" in done.stdout, done.stderr[-2000:]

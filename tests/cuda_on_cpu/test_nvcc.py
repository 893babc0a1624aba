"""The CUDA sources under the real compilers: device code for three architectures, host code against torch's headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from compiling import ROOT, Unavailable, compiler, torch_flags
from playing import cuda_include
from resources import ARCHITECTURES, compile_for, nvcc, readable, sources, table

HOST = sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))


def test_every_op_has_a_host_and_a_device_file() -> None:
    assert {path.name.removesuffix("_kernels.cu") for path in sources()} == {path.stem for path in HOST}


@pytest.mark.heavy
@pytest.mark.skipif(nvcc() is None, reason="nvcc is not on this machine")
@pytest.mark.parametrize("source", sources(), ids=lambda path: path.name)
def test_device_code_compiles_without_spills_or_local_memory(source: Path) -> None:
    usages = compile_for(source)
    assert {usage.arch for usage in usages} == set(ARCHITECTURES)
    bad = [usage for usage in usages if usage.spilled or usage.stack]
    assert not bad, f"spills or local memory:\n{table(bad)}"
    # all but the slow path (64-bit indices) leaves room for half of a multiprocessor's threads
    crowded = [usage for usage in usages if usage.blocks < 4 and "int64" not in usage.kernel]
    assert not crowded, f"too many registers:\n{table(crowded)}"


@pytest.mark.parametrize("source", HOST, ids=lambda path: path.name)
def test_host_code_compiles_against_torch(source: Path) -> None:
    try:
        command = [*compiler().split(), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-Wno-error=cpp"]
        # torch's CPU build lacks one generated header of c10/cuda
        command += ["-DC10_USING_CUSTOM_GENERATED_MACROS", *torch_flags(), "-isystem", str(cuda_include()), str(source)]
    except Unavailable as problem:
        pytest.skip(str(problem))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def with_own_headers(path: Path) -> set[Path]:
    """A source and what it includes of ours."""
    found = {path}
    for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
        found |= with_own_headers(path.parent / name)
    return found


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.name)
def test_device_code_and_its_headers_know_nothing_of_torch(source: Path) -> None:
    files = with_own_headers(source)
    assert {"device.h", f"{source.name.removesuffix('_kernels.cu')}.h"} <= {path.name for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not any(f"#include <{name}" in text for name in ("torch", "ATen", "c10")), path.name


def test_names_of_kernels_are_readable() -> None:
    space = "_ZN7anifast54_GLOBAL__N__67516b5f_21_bias_lrelu_kernels_cu_f05e0a0c"
    masked = space + "17bias_lrelu_kernelI6__halfLi8ELb1ELb0EjEEvNS0_4TaskINSt11conditionalIL_ZSt9is_same_vEdfEE"
    assert readable(masked) == "bias_lrelu_kernel<half, 8, 1, 0, uint32>"
    planes = space + "23upfirdn2d_planes_kernelI13__nv_bfloat16Li2ELi1EEEvNS0_10PlanesTaskIfEE"
    assert readable(planes) == "upfirdn2d_planes_kernel<bfloat16, 2, 1>"
    assert readable(space + "22bias_lrelu_sums_kernelIdEEvPKT_S4_PS2_S5_lll") == "bias_lrelu_sums_kernel<double>"

"""The Triton backend of bias_lrelu without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_install = pytest.mark.skipif(
    importlib.util.find_spec("anifast.kernels") is None,
    reason="anifast is not installed: a bare source tree does not map kernels/ into it",
)


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    # outside the repository, whose bare source tree would hide what is installed
    options = ["-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-o", f"pythonpath={ROOT / 'tests'}"]
    file = str(HERE / "interpreted_bias_lrelu.py")
    done = python("-m", "pytest", *options, file, cwd=tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


@needs_install
def test_nothing_of_triton_is_imported_before_it_is_chosen(tmp_path: Path) -> None:
    program = (
        "import sys, torch, anifast.ops\n"
        "loaded = [name for name in sys.modules if name == 'triton' or name.startswith('anifast.kernels')]\n"
        "assert not loaded, loaded\n"
    )
    done = python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@needs_triton
@needs_install
def test_a_cpu_tensor_is_refused_where_the_interpreter_is_off(tmp_path: Path) -> None:
    program = "import torch, anifast.ops\nanifast.ops.bias_lrelu(torch.zeros(2, 3), backend='triton')\n"
    done = python("-c", program, cwd=tmp_path, TRITON_INTERPRET="0")
    assert done.returncode == 1 and "BackendError" in done.stderr and "no driver" in done.stderr


def test_the_source_folder_is_no_package_of_its_own() -> None:
    done = python("-c", "import kernels", cwd=ROOT)
    assert done.returncode == 1
    assert "ImportError" in done.stderr and "import anifast.kernels instead" in done.stderr


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton.language as tl
from anifast.kernels import bias_lrelu as kernels

def compiled(kernel, pointers, constants, capability, acc):
    types = {p.name: p.annotation_type or "i32" for p in kernel.params} | pointers
    # as double numbers, which float64 tensors need, and not compiled anew for each value
    for name in {"gain", "negative", "limit", "residual_gain"} & set(types):
        assert types[name] == "fp64", name
    types |= {n: "constexpr" for n in (*constants, "ACC")}
    aligned = [i for i, n in enumerate(kernel.arg_names) if n == "length" or types[n].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, types, {**constants, "ACC": acc}, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    text = made.asm["ptx"]
    assert ".local" not in text, (capability, constants, "local memory")
    assert constants.get("PIXELS") is None or "ld.global.v4.b32" in text or "ld.global.v2.b64" in text, "narrow loads"

TENSORS = ("p_x", "p_bias", "p_noise", "p_strength", "p_residual", "p_out", "p_grad", "p_gx")
for capability in (80, 90, 100):
    for dtype in ("bf16", "fp32", "fp16", "fp64") if capability == 90 else ("bf16",):
        acc = tl.float64 if dtype == "fp64" else tl.float32
        sums = "*fp64" if dtype == "fp64" else "*fp32"
        for pixels in (False, True):
            cut = dict(PIXELS=pixels, G=2 if pixels else 1, L=512 if pixels else 1024)
            pointers = {n: f"*{dtype}" for n in TENSORS} | {n: "*u8" for n in ("p_mask", "p_saved")}
            pointers |= {n: sums for n in ("p_bias_parts", "p_strength_parts")}
            every = dict(HAS_BIAS=True, HAS_NOISE=True, HAS_STRENGTH=True)
            for linear, clamped in ((True, False), (False, False), (False, True)):
                known = dict(LINEAR=linear, CLAMPED=clamped, **cut) | (dict(p_saved=None) if linear else {})
                def of(kernel, **more):
                    own = {n: t for n, t in pointers.items() if n in kernel.arg_names}
                    compiled(kernel, own, known | more, capability, acc)
                none = dict(p_residual=None, HAS_RESIDUAL=False, SAVE_MASK=False)
                of(kernels.bias_lrelu_kernel, MASKED=True, p_mask=None, **none, **every)
                of(kernels.bias_lrelu_backward_kernel, WANT_BIAS=True, WANT_STRENGTH=True)
            of(kernels.bias_lrelu_kernel, MASKED=False, p_saved=None, **none, **every)
            of(kernels.bias_lrelu_kernel, MASKED=False, p_saved=None, SAVE_MASK=True, HAS_RESIDUAL=True, **every)
        for columns in (dict(R=32, C=32), dict(R=1024, C=1)):
            compiled(kernels.bias_lrelu_sums_kernel, {"p_parts": sums, "p_sums": sums}, columns, capability, acc)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_with_wide_loads_and_no_local_memory(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no NVIDIA backend")
    # from a file: Triton reads the source of kernels
    (tmp_path / "compile.py").write_text(COMPILE, encoding="utf-8")
    settings = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "0"}
    done = python(str(tmp_path / "compile.py"), cwd=tmp_path, **settings)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-4000:]

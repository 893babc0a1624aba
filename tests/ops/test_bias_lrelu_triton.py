"""The Triton backend of bias_lrelu without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import ROOT, compile_all, interpret, needs_install, needs_triton, python


@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_bias_lrelu.py"), tmp_path, at_least=50)


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
from anifast.kernels import bias_lrelu as kernels
from triton_compiling import SUMS, compiled

TENSORS = ("p_x", "p_bias", "p_noise", "p_strength", "p_residual", "p_out", "p_grad", "p_gx")
for capability in (80, 90, 100):
    for dtype in ("bf16", "fp32", "fp16", "fp64") if capability == 90 else ("bf16",):
        acc, sums = SUMS[dtype]
        for pixels in (False, True):
            cut = dict(PIXELS=pixels, G=2 if pixels else 1, L=512 if pixels else 1024)
            pointers = {n: f"*{dtype}" for n in TENSORS} | {n: "*u8" for n in ("p_mask", "p_saved")}
            pointers |= {n: sums for n in ("p_bias_parts", "p_strength_parts")}
            every = dict(HAS_BIAS=True, HAS_NOISE=True, HAS_STRENGTH=True)
            for linear, clamped in ((True, False), (False, False), (False, True)):
                known = dict(LINEAR=linear, CLAMPED=clamped, **cut) | (dict(p_saved=None) if linear else {})
                def of(kernel, **more):
                    own = {n: t for n, t in pointers.items() if n in kernel.arg_names}
                    made = compiled(kernel, own, known | more, capability, acc, wide=("length",))
                    assert made.load == 16, (capability, known, more)
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
    compile_all(COMPILE, tmp_path)

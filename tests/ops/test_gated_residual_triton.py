"""The Triton backend of gated_residual without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_gated_residual.py"), tmp_path, at_least=110)


COMPILE = """
import triton.language as tl
from anifast.kernels import gated_residual as kernels
from triton_compiling import SUMS, compiled

MAPS = ("p_x", "p_shortcut", "p_out", "p_grad", "p_gx", "p_gshortcut")
VECTORS = ("GATE", "SHORTCUT_GATE", "SLOPE", "BIAS")

def of(kernel, capability, dtype, cut, pixels, most, narrow=False, idx=tl.int32, **constants):
    (acc, sums), (high, wide) = SUMS[dtype], cut.tile
    constants |= dict(PIXELS=pixels, IDX=idx, G=high, L=wide)
    names = [n for n in kernel.arg_names if n.startswith("p_") and n not in constants]
    pointers = {n: f"*{dtype}" if n in MAPS else sums for n in names}  # parameters are float32 beside half maps
    floats = {p.name: p.annotation_type for p in kernel.params if p.name in ("mean", "factor")}
    assert floats == {"mean": "fp64", "factor": "fp64"}
    made = compiled(kernel, pointers, constants, capability, acc, wide=("length",))
    what = (kernel.fn.__name__, capability, dtype, constants)
    # elements of neighbouring columns are loaded together, except where each is of its own line
    size = dict(bf16=2, fp16=2, fp32=4, fp64=8)[dtype]
    assert made.load >= (size if narrow else min(16, high * wide // 128 * size)), (what, made.load)
    assert made.registers <= most, (what, made.registers)
    print(*what, f"{made.registers} registers, {made.shared} bytes shared", flush=True)

def both(capability, dtype, channels, side, pixels, up, **more):
    tile = kernels._TILE
    cut = kernels._plan(4, channels, side * side, pixels, tile)
    every = dict(HAS_SLOPE=True, HAS_BIAS=True)
    wide = 2 if dtype == "fp64" else 1
    of(kernels.gated_residual_kernel, capability, dtype, cut, pixels, 64 * wide, UP=up, **every, **more)
    twice = up == 2 and not pixels
    cut = kernels._plan(4, channels, side * side // up**2 * (2 if twice else 1), pixels, tile // up)
    every |= {f"WANT_{name}": True for name in ("X", "SHORTCUT", *VECTORS)}
    # 16 warps a multiprocessor
    of(kernels.gated_residual_backward_kernel, capability, dtype, cut, pixels, 128 * wide, narrow=twice,
       PARTS=1 if up == 1 else 2 if twice else 4, **every, **more)

for pixels in (False, True):
    for up in (1, 2):
        for capability in (80, 90, 100):
            both(capability, "bf16", 32, 128, pixels, up)
        both(90, "bf16", 256, 4, pixels, up)
        both(90, "fp16", 64, 14, pixels, up)
        both(90, "fp32", 64, 64, pixels, up)
        both(90, "fp64", 32, 32, pixels, up)
        both(90, "fp32", 64, 14, pixels, up, idx=tl.int64)

# of an identity's gradient alone neither x nor the vectors that it does not need are read
cut = kernels._plan(4, 32, 1024, False, kernels._TILE)
none = dict.fromkeys(("p_x", "p_shortcut", "p_slope", "p_bias", "p_gshortcut", "p_sums"))
of(kernels.gated_residual_backward_kernel, 90, "bf16", cut, False, 128, PARTS=1, HAS_SLOPE=False, HAS_BIAS=False,
   WANT_X=True, WANT_SHORTCUT=False, **{f"WANT_{name}": False for name in VECTORS}, **none)

# only the length of a row and whether addresses are aligned may make another kernel: no batch does
for kernel in (kernels.gated_residual_kernel, kernels.gated_residual_backward_kernel):
    own = {p.name for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))} - {"mean", "factor"}
    assert set(kernels._SIZES) == own - {"length"}
    assert all(p.do_not_specialize for p in kernel.params if p.name in kernels._SIZES)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

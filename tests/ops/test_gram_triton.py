"""The Triton backend of gram without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_gram.py"), tmp_path, at_least=55)


COMPILE = """
import triton.language as tl
from anifast.kernels import gram as kernels
from triton_compiling import SUMS, compiled

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
MAPS = kernels._MAPS

def of(kernel, capability, dtype, tile, count, constants):
    acc, sums = SUMS[dtype]
    absent = {f"{p}_{i}": None for p in ("p_x", "p_gx") for i in range(count, MAPS)}
    constants |= {name: value for name, value in absent.items() if name in kernel.arg_names}
    names = [name for name in kernel.arg_names if name.startswith("p_") and name not in constants]
    pointers = {name: f"*{dtype}" if name.startswith(("p_x", "p_gx")) else sums for name in names}
    made = compiled(
        kernel, pointers, constants, capability, acc, num_warps=tile.warps, num_stages=tile.stages
    )
    scales = [p for p in kernel.params if p.name.startswith("scale_")]
    assert len(scales) == MAPS and all(p.annotation_type == "fp64" for p in scales)
    what = (kernel.fn.__name__, capability, dtype, constants["COUNT"], constants.get("FORMS"), constants["FOLDED"])
    print(*what, f"{made.registers} registers, {made.shared} bytes shared", flush=True)
    return made

def forward(capability, dtype, kind, count=5, forms=0, folded=False, odd=False, wide_offsets=False):
    tile = kernels.TILES[kind]
    made = of(kernels.gram_kernel, capability, dtype, tile, count, dict(
        COUNT=count, FORMS=forms, FOLDED=folded, SPLIT=True, VECTOR=1 if odd else 16 // BYTES[dtype],
        PRECISION="tf32" if kind == "tf32" else "ieee", WIDEN=False, IDX=tl.int64 if wide_offsets else tl.int32,
        B=tile.rows, BK=tile.depth,
    ))
    what = (capability, dtype, kind, forms, folded, odd)
    if kind in ("half", "tf32"):
        assert TENSOR_CORES[capability] in made.ptx, (what, "no tensor cores")
    if not odd and not (kind == "tf32" and forms):
        # one factor is read on the diagonal and two off it, past the registers, 16 bytes at a time and ahead
        assert made.ptx.count("cp.async.cg.shared.global") >= 3 * (tile.stages - 1), what
    assert made.shared <= tile.stages * 2 * tile.rows * tile.depth * BYTES[dtype] + 64, (what, made.shared)

def sums(capability, dtype, folded, wide_offsets=False):
    made = of(kernels.gram_sums_kernel, capability, dtype, kernels._Tile(0, 0, 0, 4, 3), 5, dict(
        COUNT=5, FOLDED=folded, IDX=tl.int64 if wide_offsets else tl.int32, B=kernels.TILES["half"].rows,
        S=kernels._SUM_SPLITS, R=kernels._SUM_ROWS, C=kernels._SUM_COLUMNS,
    ))
    assert made.load == 16, (capability, dtype, made.load)

def backward(capability, dtype, kind, count=5, forms=0, folded=False, odd=False, wide_offsets=False):
    tile = kernels.BACKWARD_TILES[kind]
    made = of(kernels.gram_backward_kernel, capability, dtype, tile, count, dict(
        COUNT=count, FORMS=forms, FOLDED=folded, VECTOR=1 if odd else 16 // BYTES[dtype], HALVES=kind == "half",
        PRECISION="tf32" if kind in ("tf32", "half") else "ieee", IDX=tl.int64 if wide_offsets else tl.int32,
        BM=tile.rows, BN=tile.columns, BK=tile.depth,
    ))
    if kind in ("half", "tf32"):
        assert TENSOR_CORES[capability] in made.ptx, (capability, dtype, "no tensor cores")

for capability in (80, 90, 100):
    forward(capability, "bf16", "half")
    forward(capability, "fp32", "ieee")
    forward(capability, "fp32", "tf32", folded=True)
    backward(capability, "bf16", "half")
    sums(capability, "fp32", folded=False)
forward(90, "fp16", "half", forms=31, folded=True)
forward(90, "bf16", "half", forms=5, wide_offsets=True)
forward(90, "bf16", "half", count=1)
forward(90, "bf16", "half", count=8)
forward(90, "fp32", "tf32", forms=31)
forward(90, "fp32", "ieee", forms=31)
forward(90, "bf16", "half", odd=True)
forward(90, "fp64", "float64")
sums(90, "fp32", folded=True, wide_offsets=True)
backward(90, "fp16", "half", forms=31, folded=True)
backward(90, "fp32", "ieee", forms=5)
backward(90, "fp32", "tf32", folded=True, wide_offsets=True)
backward(90, "fp64", "float64")
# no size makes another kernel
for kernel in (kernels.gram_kernel, kernels.gram_sums_kernel, kernels.gram_backward_kernel):
    own = [p for p in kernel.params if not (p.is_constexpr or p.name.startswith(("p_", "scale_")))]
    assert {p.name for p in own} <= set(kernels._SIZES) and all(p.do_not_specialize for p in own)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

"""The Triton backend of upfirdn2d without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_upfirdn2d.py"), tmp_path, at_least=110)


COMPILE = """
import torch
import triton.language as tl
from anifast.kernels import upfirdn2d as kernels
from triton_compiling import SUMS, compiled

TYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPERANDS = {"SCALE": "p_scale", "BIAS": "p_bias", "NOISE": "p_noise", "STRENGTH": "p_strength", "ADD": "p_add"}

def of(capability, dtype, pixels, up=1, down=1, taps=4, rank=1, fused=False, clamped=False, wide_offsets=False):
    form = torch.channels_last if pixels else torch.contiguous_format
    out = torch.empty(2, 64, 64, 64, device="meta", dtype=TYPES[dtype])
    plan = kernels._plan(out, form, torch.empty((taps,) * rank), (up, up), (down, down), fused)
    assert plan.unrolled == (taps <= 8 * up), "the case shows something else"
    pointers = {n: f"*{dtype}" for n in ("p_x", "p_out", *OPERANDS.values())}
    acc, pointers["p_kernel"] = SUMS[dtype]
    pointers["p_mask"] = "*u8"
    constants = {
        **dict(UX=up, UY=up, DX=down, DY=down, KX=taps, KY=taps, PX=1 % up, PY=1 % up, FLIP=False, LINE=rank == 1),
        **{"HAS_" + name: fused for name in OPERANDS}, **({} if fused else dict.fromkeys(OPERANDS.values())),
        **dict(UNROLLED=plan.unrolled, ACT=fused, SAVE_MASK=fused, CLAMPED=clamped, PIXELS=pixels),
        **dict(zip("RGL", plan.tile)), "IDX": tl.int64 if wide_offsets else tl.int32,
    }
    pointers = {name: kind for name, kind in pointers.items() if name not in constants}
    made = compiled(kernels.upfirdn2d_kernel, pointers, constants, capability, acc, wide=("channels",))
    # of x, neighbouring channels at once, but one column; weights are read in float32
    load = (2 if fused else 4) if pixels else 1
    assert made.load == max(load * out.element_size(), 8 if dtype == "fp64" else 4), (made.load, capability, constants)
    if not fused:  # neighbouring columns in neighbouring threads, in the sums and in what is stored
        assert made.shared == 0, (made.shared, capability, constants)
    assert made.registers <= 168, (made.registers, capability, constants)  # 12 warps a multiprocessor
    print(
        f"sm_{capability} {dtype} {'pixels' if pixels else 'planes'} up {up} down {down} taps {taps} rank {rank} "
        f"fused {fused} clamped {clamped}: {made.registers} registers, {made.shared} bytes shared", flush=True
    )

for pixels in (False, True):
    for capability in (80, 90, 100):
        of(capability, "bf16", pixels, up=2)
        of(capability, "bf16", pixels, up=2, fused=True)
    of(90, "fp16", pixels, down=2)
    of(90, "bf16", pixels)
    of(90, "fp32", pixels)
    of(90, "fp32", pixels, fused=True, clamped=True, wide_offsets=True)
    of(90, "fp32", pixels, rank=2, up=2)
    of(90, "fp32", pixels, taps=12)
of(90, "fp64", True, up=2, fused=True)
# only channels, and whether addresses are aligned, may make another kernel: no image size does
sizes = {p.name for p in kernels.upfirdn2d_kernel.params if not (p.is_constexpr or p.name.startswith("p_"))}
assert set(kernels._SIZES) == {n for n in sizes if n not in ("channels", "gain", "act_gain", "negative", "limit")}
assert all(p.do_not_specialize for p in kernels.upfirdn2d_kernel.params if p.name in kernels._SIZES)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

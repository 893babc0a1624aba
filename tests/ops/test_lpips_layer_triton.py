"""The Triton backend of lpips_layer without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_lpips_layer.py"), tmp_path, at_least=75)


COMPILE = """
import torch
import triton.language as tl
from anifast.kernels import lpips_layer as kernels
from triton_compiling import SUMS, compiled

TYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAPS = ("p_a", "p_b", "p_ga", "p_gb")

def of(kernel, capability, dtype, constants, **options):
    acc, sums = SUMS[dtype]
    names = [n for n in kernel.arg_names if n.startswith("p_") and n not in constants]
    pointers = {n: f"*{dtype}" if n in MAPS else sums for n in names}
    assert [p.annotation_type for p in kernel.params if p.name == "eps"] in ([], ["fp64"])
    options["enable_fp_fusion"] = False
    made = compiled(kernel, pointers, constants, capability, acc, wide=("channels", "pixels"), **options)
    what = (kernel.fn.__name__, capability, dtype, constants["G"], constants["L"])
    assert made.load == 16, (what, made.load)
    assert dtype == "fp64" or "fma.rn" not in made.ptx, (what, "fused: maps that are equal would differ")
    # 16 warps a multiprocessor
    assert made.registers <= (168 if dtype == "fp64" else 128), (what, made.registers)
    print(*what, f"{made.registers} registers, {made.shared} bytes shared", flush=True)

def forward(capability, dtype, channels, side, pixels, held=True, inside=False, mean=True, wide_offsets=False):
    x = torch.empty(4, channels, side, side, device="meta", dtype=TYPES[dtype])
    plan = kernels._plan(x, pixels)
    assert plan.held == held, "the case shows something else"
    constants = dict(HAS_WEIGHT=True, EPS_INSIDE=inside, MEAN=mean, HELD=held, PIXELS=pixels, G=plan.high)
    constants |= dict(L=plan.across, IDX=tl.int64 if wide_offsets else tl.int32)
    of(kernels.lpips_layer_kernel, capability, dtype, constants, num_warps=plan.warps)

def backward(capability, dtype, channels, side, pixels, mean=True, wide_offsets=False):
    plan = kernels._walk(torch.empty(4, channels, side, side, device="meta", dtype=TYPES[dtype]), pixels)
    constants = dict(HAS_WEIGHT=True, MEAN=mean, WANT_A=True, WANT_B=True, PIXELS=pixels, G=plan.high, L=plan.across)
    constants["IDX"] = tl.int64 if wide_offsets else tl.int32
    of(kernels.lpips_layer_backward_kernel, capability, dtype, constants)

for pixels in (False, True):
    for capability in (80, 90, 100):
        for channels, side in ((64, 256), (128, 128), (256, 64), (512, 32)):
            if capability == 90 or channels == 512:
                forward(capability, "bf16", channels, side, pixels)
        backward(capability, "bf16", 64, 256, pixels)
    for channels, side in ((64, 256), (128, 128), (512, 32)):
        forward(90, "fp32", channels, side, pixels)
    forward(90, "fp16", 256, 64, pixels, inside=True, mean=False)
    forward(90, "fp32", 1024, 32, pixels, held=False)
    forward(90, "fp32", 256, 64, pixels, wide_offsets=True)
    forward(90, "fp64", 64, 64, pixels)
    backward(90, "fp32", 64, 256, pixels)
    backward(90, "fp32", 512, 32, pixels, mean=False, wide_offsets=True)
    backward(90, "fp64", 64, 64, pixels)
# only channels, pixels and whether addresses are aligned may make another kernel: no batch does
for kernel, sizes in (
    (kernels.lpips_layer_kernel, kernels._SIZES), (kernels.lpips_layer_backward_kernel, kernels._WALK_SIZES)
):
    own = {p.name for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))} - {"eps"}
    assert set(sizes) == own - {"channels", "pixels"}
    assert all(p.do_not_specialize for p in kernel.params if p.name in sizes)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

"""The Triton backend of modulated_conv2d without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_modulated_conv2d.py"), tmp_path, at_least=150)


COMPILE = """
import torch
import triton.language as tl
from anifast.kernels import modulated_conv2d as kernels
from triton_compiling import SUMS, compiled

TYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALARS = {"act_gain", "negative", "limit", "of_positive", "of_negative"}
OPERANDS = {"SCALE": "p_scale", "BIAS": "p_bias", "NOISE": "p_noise", "STRENGTH": "p_strength"}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# the least that a kind of GPU lets a program have: 163, 227 and 227 KB
SHARED = {80: 166912, 90: 232448, 100: 232448}

def product(capability, dtype, kind, form="plain", size=3, across=False, pixels=True, summed=False, wide_offsets=False):
    plan = kernels.TILES[kind]
    stage = kernels._stage(plan, TYPES[dtype], across)
    plan = plan._replace(stages=min(plan.stages, SHARED[capability] // stage))
    acc, sums = SUMS[dtype]
    fused = form == "plain" and not summed  # the forms that follow one another in training
    pointers = {n: f"*{dtype}" for n in ("p_x", "p_weight", "p_out", "p_noise", "p_add", "p_other")}
    pointers |= {n: sums for n in ("p_style", "p_scale", "p_bias", "p_strength", "p_parts")}
    has = {"HAS_" + name: fused or (summed and name == "SCALE") for name in OPERANDS}
    constants = {
        **dict(SIZE=size, STRIDE=2 if form == "strided" else 1, PAD=size // 2 if form == "plain" else 0),
        **dict(UP=form == "transposed", FLIP=summed and form == "plain", HAS_STYLE=not summed, HAS_OTHER=summed),
        **has, **{pointer: None for name, pointer in OPERANDS.items() if not has["HAS_" + name]},
        **dict(ACT=fused, CLAMPED=fused, HAS_ADD=kind[1] == "image", PIXELS=pixels, ACROSS=across),
        **dict(PRECISION="tf32" if kind[0] == "tf32" else "ieee", BM=plan.pixels, BN=plan.channels, BK=plan.depth),
        **dict(FACTOR=tl.dtype(dtype), IDX=tl.int64 if wide_offsets else tl.int32),
        **({"p_style": None} if summed else {"p_other": None, "p_parts": None}),
        **({} if kind[1] == "image" else {"p_add": None}),
    }
    pointers = {name: kind for name, kind in pointers.items() if name not in constants}
    made = compiled(
        kernels.modulated_conv2d_kernel, pointers, constants, capability, acc, wide=("inputs", "outputs"),
        num_warps=plan.warps, num_stages=plan.stages,
    )
    what = (capability, dtype, kind, form, size, across, pixels, summed)
    if kind[0] in ("half", "tf32"):
        assert TENSOR_CORES[capability] in made.ptx, (what, "no tensor cores")
    elif dtype == "fp64":
        assert "mma.sync" in made.ptx, (what, "no tensor cores")
    # both factors are read past the registers, 16 bytes at a time and ahead of their product
    assert made.ptx.count("cp.async.cg.shared.global") >= 2 * (plan.stages - 1), what
    assert made.shared <= plan.stages * stage <= SHARED[capability], (what, made.shared, plan.stages * stage)
    print(*what, f"{made.registers} registers, {made.shared} bytes shared", flush=True)

def a_pass(kernel, capability, dtype, pixels, wide_offsets=False):
    acc, sums = SUMS[dtype]
    maps = ("p_grad", "p_out", "p_noise", "p_gc", "p_x", "p_gx")
    names = [p.name for p in kernel.params]
    pointers = {n: f"*{dtype}" if n in maps else sums for n in names if n.startswith("p_")}
    flags = {n: True for n in names if n.startswith(("HAS_", "WANT_")) or n == "CLAMPED"}
    form = torch.channels_last if pixels else torch.contiguous_format
    tile = kernels._walk(torch.empty(2, 64, 64, 64, device="meta"), form, None).tile
    constants = {**flags, **tile, "PIXELS": pixels, "IDX": tl.int64 if wide_offsets else tl.int32}
    made = compiled(kernel, pointers, constants, capability, acc, wide=("channels", "pixels"))
    assert made.load == 16, (made.load, capability, constants)
    assert made.registers <= 128, (made.registers, capability, constants)
    print(kernel.fn.__name__, capability, dtype, f"pixels {pixels}: {made.registers} registers", flush=True)

for capability in (80, 90, 100):
    for kind in kernels.TILES:
        dtype = {"half": "bf16", "float64": "fp64"}.get(kind[0], "fp32")
        across = kind[1] in ("small", "any")
        product(capability, dtype, kind, across=across, size=1 if kind[1] == "image" else 3)
    product(capability, "bf16", ("half", "wide"), "transposed")
    product(capability, "bf16", ("half", "middle"), summed=True)
    product(capability, "bf16", ("half", "narrow"), "strided", summed=True)
product(90, "fp16", ("half", "wide"), pixels=False)
product(90, "bf16", ("half", "middle"), wide_offsets=True)
product(90, "bf16", ("half", "small"), "strided", summed=True)
product(90, "bf16", ("half", "middle"), summed=True, pixels=False)
product(90, "fp32", ("tf32", "middle"), summed=True, pixels=False)
product(90, "fp32", ("tf32", "wide"), "transposed")
product(90, "fp32", ("ieee", "any"), summed=True)
for kernel in (kernels.modulated_conv2d_epilogue_grad_kernel, kernels.modulated_conv2d_style_grad_kernel):
    for pixels in (False, True):
        a_pass(kernel, 80, "bf16", pixels)
        a_pass(kernel, 90, "fp32", pixels, wide_offsets=True)
    sizes = {p.name for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))} - SCALARS
    assert set(kernels._PASS_SIZES) == sizes - {"channels", "pixels"}
# only channels, and whether addresses are aligned, may make another kernel: no image size does
kernel = kernels.modulated_conv2d_kernel
sizes = {p.name for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))} - SCALARS
assert set(kernels._SIZES) == sizes - {"inputs", "outputs"}
assert all(p.do_not_specialize for p in kernel.params if p.name in kernels._SIZES)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

"""The Triton backend of domain_norm without a GPU: in the interpreter, and compiled for three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_checks import compile_all, interpret, needs_install, needs_triton


@pytest.mark.heavy
@needs_triton
@needs_install
def test_in_the_interpreter(tmp_path: Path) -> None:
    interpret(Path(__file__).with_name("interpreted_domain_norm.py"), tmp_path, at_least=130)


COMPILE = """
import triton.language as tl
from anifast.kernels import domain_norm as kernels
from triton_compiling import SUMS, compiled

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
MAPS = ("p_x", "p_out", "p_grad", "p_gx")
RENORM = ("p_mean_memory", "p_std_memory", "p_weights", "p_limits")
NUMBERS = ("eps", "slope", "pixel_eps", "count")

def of(kernel, capability, dtype, load, warps, **constants):
    acc, sums = SUMS[dtype]
    names = [n for n in kernel.arg_names if n.startswith("p_") and n not in constants]
    pointers = {n: f"*{dtype}" if n in MAPS else sums for n in names}  # parameters are float32 beside half maps
    assert all(p.annotation_type == "fp64" for p in kernel.params if p.name in NUMBERS)
    made = compiled(kernel, pointers, constants, capability, acc, wide=("channels", "plane"), num_warps=warps)
    what = (kernel.fn.__name__, capability, dtype, constants)
    assert made.load >= load, (what, made.load)
    assert made.registers <= (256 if dtype == "fp64" else 128), (what, made.registers)  # 16 warps a multiprocessor
    print(*what, warps, f"warps {made.registers} registers, {made.shared} bytes shared", flush=True)

def every(capability, dtype, channels, side, pixels, groups=4, images=4, norm=True, idx=tl.int32):
    size = SIZES[dtype]
    held = norm and channels <= kernels._CHANNELS
    how = dict(PIXELS=pixels, IDX=idx)

    def cut(held, values=kernels._VALUES, most=kernels._PROGRAMS):
        least = kernels._SECTOR // size
        plan = kernels._plan(groups, images, channels, side * side, pixels, held, least, values, most)
        tile = dict(G=plan.high, L=plan.across, warps=plan.warps)
        # neighbours in memory are loaded together, as far as a thread has some
        return plan, tile, min(16, size * max(1, plan.high * plan.across // (32 * plan.warps)), size * plan.across)

    plan, tile, load = cut(False, most=kernels._PARTS)
    alone = plan.steps <= kernels._ALONE
    none = dict(p_moments=None) if alone else dict.fromkeys(("p_stats", *RENORM))
    of(kernels.domain_norm_moments_kernel, capability, dtype, load, ALONE=alone, HAS_RENORM=alone,
       **how, **none, **tile)
    if not alone:
        high, across, warps = kernels._block(plan.parts, channels)
        of(kernels.domain_norm_finish_kernel, capability, dtype, 4, warps, p_mean=None, p_std=None,
           GIVEN=False, HAS_RENORM=True, G=high, L=across, **how)
    mode = kernels._HELD if held else kernels._LOADED if norm else kernels._NONE
    loaded = {} if mode == kernels._LOADED else dict(p_pixels=None)
    plan, tile, load = cut(held)
    of(kernels.domain_norm_kernel, capability, dtype, load, NORM=mode, **how, **loaded, **tile)
    if mode == kernels._LOADED:
        for backward in (False, True):
            none = {} if backward else dict(p_grad=None)
            of(kernels.domain_norm_pixels_kernel, capability, dtype, load, BACKWARD=backward,
               **how, **none, **tile)
    plan, tile, load = cut(held, kernels._VALUES_BACKWARD, kernels._PARTS)
    backward = kernels.domain_norm_backward_kernel
    none = dict(p_gx=None, p_means=None)
    of(backward, capability, dtype, load, NORM=mode, WANT_X=False, WANT_SUMS=True, FIXED=False,
       **how, **none, **loaded, **tile)
    of(backward, capability, dtype, load, NORM=mode, WANT_X=True, WANT_SUMS=False, FIXED=False, p_sums=None,
       **how, **loaded, **tile)
    of(backward, capability, dtype, load, NORM=mode, WANT_X=True, WANT_SUMS=True, FIXED=True, p_means=None,
       **how, **loaded, **tile)
    high, across, warps = kernels._block(plan.parts, channels)
    of(kernels.domain_norm_totals_kernel, capability, dtype, 4, warps, WANT_MEANS=True, WANT_GAMMA=True,
       WANT_BETA=True, G=high, L=across)

for pixels in (False, True):
    for capability in (80, 90, 100):
        every(capability, "bf16", 16, 256, pixels)
    every(90, "bf16", 64, 64, pixels)
    every(90, "fp32", 32, 128, pixels)
    every(90, "fp16", 256, 16, pixels)
    every(90, "bf16", 256, 4, pixels, images=16)
    every(90, "bf16", 512, 16, pixels)
    every(90, "fp32", 1024, 8, pixels)
    every(90, "bf16", 64, 32, pixels, norm=False, idx=tl.int64)
    every(90, "fp64", 64, 32, pixels)

# only channels, pixels of an image and whether addresses are aligned may make another kernel: no batch does
for name in ("moments", "finish", "pixels", "backward", "totals", ""):
    kernel = getattr(kernels, f"domain_norm_{name}_kernel".replace("__", "_"))
    own = {p.name for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))} - set(NUMBERS)
    varied = {p.name for p in kernel.params if p.do_not_specialize}
    assert varied == own - {"channels", "plane"}, (kernel.fn.__name__, own - varied)
print("compiled")
"""


@pytest.mark.heavy
@needs_triton
@needs_install
def test_compiles_for_three_architectures_without_local_memory(tmp_path: Path) -> None:
    compile_all(COMPILE, tmp_path)

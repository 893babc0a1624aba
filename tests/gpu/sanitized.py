"""Small cases of every op on a GPU, for compute-sanitizer (run.py sanitize)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

NAMES = {
    "bias_lrelu": (
        ["odd_full", "even_full", "half_a_byte", "long_rows", "nhwc_full", "nhwc_odd", "matrix_odd", "middle_dim"]
    ),
    "upfirdn2d": (
        ["epilogue_full", "epilogue_down", "epilogue_up", "blur2_wide", "nhwc_epilogue_full", "nhwc_down", "nhwc_up"]
        + ["nhwc_epilogue_up", "mixed", "long_line"]
    ),
    "modulated_conv2d_passes": (
        ["odd_clamped", "even_clamped", "small_maps", "one_pixel", "long_planes", "no_scale", "nhwc_odd", "relu_nhwc"]
        + ["nhwc_clamped", "nhwc_many_pixels", "nhwc_wide"]
    ),
    "lpips_layer": (
        ["odd", "odd_map", "vectors", "vectors_and_rest", "many_channels", "many_pixels", "one_pixel", "other_layout"]
        + ["nhwc_odd", "nhwc_map", "nhwc_vectors", "nhwc_vectors_and_rest", "nhwc_many_pixels", "only_a", "only_b"]
    ),
}  # fmt: skip

for op, names in NAMES.items():
    cases = importlib.import_module(f"{op}_cases")
    for name in names:
        for dtype in (torch.float32, torch.bfloat16):
            cases.results(cases.CASE[name], cases.make(cases.CASE[name], dtype, "cuda"), "native")
torch.cuda.synchronize()
print("sanitized cases ran")

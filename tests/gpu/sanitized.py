"""Small cases of every op on a GPU, for compute-sanitizer (run.py sanitize)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bias_lrelu_cases import CASE, results
from bias_lrelu_cases import make as make_bias_lrelu

NAMES = ["odd_full", "even_full", "half_a_byte", "long_rows", "nhwc_full", "nhwc_odd", "matrix_odd", "middle_dim"]

for name in NAMES:
    for dtype in (torch.float32, torch.bfloat16):
        results(CASE[name], make_bias_lrelu(CASE[name], dtype, "cuda"), "native")
torch.cuda.synchronize()
print("sanitized cases ran")

"""`torch_utils.ops.fma`: multiply and add in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A * b + c, broadcast against one another; every order of gradient."""
    return torch.addcmul(c, a, b)

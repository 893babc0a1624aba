"""What the Triton kernels of several ops share: the activation with its mask of bits, types of sums, devices.

Prefixes as in every file here: p_ pointer, i_ index, o_ offsets, m_ mask, b_ block of values.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def activate(
    b_value, p_mask, o_row, i_byte, m_row, m, stride, end, plane, gain, negative, limit,
    SAVE_MASK: tl.constexpr, CLAMPED: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Leaky ReLU (gain, and `negative` below zero) and clamp of values [G, L], with their bits of the mask.

    The mask is bias_lrelu's: rows `o_row` [G, 1] (those in `m_row`) of `stride` bytes, the tile's first is `i_byte`;
    bytes from `end` on are left alone. The bits of the clamp follow `plane` bytes behind.
    """
    m_positive = b_value > 0
    b_value *= tl.where(m_positive, gain, negative)
    if SAVE_MASK:
        _store_bits(p_mask, m_positive, o_row, i_byte, m_row, m, stride, end, G, L)
    if CLAMPED:
        if SAVE_MASK:
            m_kept = (b_value >= -limit) & (b_value <= limit)
            _store_bits(p_mask + plane, m_kept, o_row, i_byte, m_row, m, stride, end, G, L)
        b_value = tl.where(b_value < -limit, -limit, b_value)  # comparisons let NaN through
        b_value = tl.where(b_value > limit, limit, b_value)
    return b_value


@triton.jit
def _store_bits(p_mask, m_bits, o_row, i_byte, m_row, m, stride, end, G: tl.constexpr, L: tl.constexpr):
    """Write [G, L] booleans as bytes of 8, low bit first; a row's last byte is filled with zeros."""
    b_bits = tl.reshape((m_bits & m).to(tl.int32), (G, L // 8, 8))
    b_bytes = tl.sum(b_bits << tl.arange(0, 8)[None, None, :], axis=2)
    o_byte = i_byte + tl.arange(0, L // 8)[None, :]
    tl.store(p_mask + o_row * stride + o_byte, b_bytes.to(tl.uint8), mask=m_row & (o_byte < end))


def accumulate(x: Tensor) -> tuple[tl.dtype, torch.dtype]:
    """The type of sums over x, as Triton and as torch call it: float32, float64 for float64."""
    return (tl.float64, torch.float64) if x.dtype == torch.float64 else (tl.float32, torch.float32)


# Offsets of 32 bits reach so far, less what a tile may overshoot.
REACH = 2**31 - 2**20


def index_type(*tensors: Tensor) -> tl.dtype:
    """The type of addresses that reaches the last element of each."""
    return tl.int32 if max(value.numel() for value in tensors) < REACH else tl.int64


def contiguous(value: Tensor | None) -> Tensor | None:
    """An optional operand as the kernels read it."""
    return None if value is None else value.contiguous()


def device(x: Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of x the current one; does nothing for the interpreter's CPU tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()

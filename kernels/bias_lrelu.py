"""Triton kernels of `bias_lrelu`: the three ops of anifast/ops/bias_lrelu.py, which tells their contract.

    forward   out   = clamp(f * (x + strength * noise + bias)) + residual_gain * residual
    backward  gx    = f * g,   gbias = sum gx,   gstrength = sum gx * noise
    masked    out   = f * (x + strength * noise + bias)

Memory is [outer, channels, inner]. A row is a contiguous run of `length` elements: with inner > 1 ("planes") row (o, c)
of inner elements that share a bias, with inner == 1 ("pixels", also channels last) row o of channels that share a noise
value. A program works on tiles of [G rows, L columns]; it keeps its channels (planes) or its columns (pixels), so it
loads its biases once, and walks over the rest in steps. Sums are kept per element of the tile, reduced at the end of
the program and added up by a second kernel, in an order that depends on the sizes alone.

Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. Addresses are int64. float32 sums, float64 for float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels._common import accumulate, activate, contiguous, device
from torch import Tensor

# Elements of a tile: 8 for each thread of 4 warps. Programs that the grid is cut into, at most.
_TILE = 1024
_PROGRAMS = 2048
# Sizes that make no difference to the code: only `length` tells how wide a load may be.
_SIZES = ["rows", "channels", "noise_rows", "row_steps", "steps_per_split", "stride", "plane"]


@triton.jit
def _position(i_step, row_steps, rows, channels, length, G: tl.constexpr, L: tl.constexpr, PIXELS: tl.constexpr):
    """Of one step: outer index or indices, first column and all, rows and their mask [G, 1], elements and theirs."""
    i_tile = tl.program_id(0).to(tl.int64)
    o_g = tl.arange(0, G).to(tl.int64)
    if PIXELS:
        i_first = i_tile * L
        o_row = (i_step * G + o_g)[:, None]
        m_row = o_row < rows
        i_outer = o_row
    else:
        i_outer = i_step // row_steps
        i_first = (i_step - i_outer * row_steps) * L
        o_channel = i_tile * G + o_g
        o_row = (i_outer * channels + o_channel)[:, None]
        m_row = (o_channel < channels)[:, None] & (o_row < rows)
    o_column = i_first + tl.arange(0, L).to(tl.int64)
    o_element, m = o_row * length + o_column[None, :], m_row & (o_column < length)[None, :]
    return i_outer, i_first, o_column, o_row, m_row, o_element, m


@triton.jit
def _noise(p_noise, i_outer, o_column, noise_rows, length, ACC: tl.constexpr, PIXELS: tl.constexpr):
    """Noise of a step's elements: [G, 1] for pixels, [1, L] for planes."""
    i_noise = i_outer % noise_rows
    if PIXELS:
        b_noise = tl.load(p_noise + i_noise)
    else:
        b_noise = tl.load(p_noise + i_noise * length + o_column, mask=o_column < length, other=0.0)[None, :]
    return b_noise.to(ACC)


@triton.jit
def _factor(
    b_value, p_saved, o_row, o_column, m, stride, plane, gain, negative, LINEAR: tl.constexpr, CLAMPED: tl.constexpr
):  # fmt: skip
    """f * b_value, with f from forward's mask; with LINEAR there is none and f is the gain."""
    if LINEAR:
        b_value *= gain
    else:
        o_byte = o_row * stride + (o_column // 8)[None, :]
        o_bit = (o_column % 8).to(tl.int32)[None, :]
        m_positive = ((tl.load(p_saved + o_byte, mask=m, other=0).to(tl.int32) >> o_bit) & 1) == 1
        b_value *= tl.where(m_positive, gain, negative)
        if CLAMPED:
            m_kept = ((tl.load(p_saved + plane + o_byte, mask=m, other=0).to(tl.int32) >> o_bit) & 1) == 1
            b_value = tl.where(m_kept, b_value, 0.0)  # also where it is inf or NaN, as torch.clamp has it
    return b_value


@triton.jit(do_not_specialize=_SIZES)
def bias_lrelu_kernel(
    p_x, p_bias, p_noise, p_strength, p_residual, p_saved, p_out, p_mask,
    rows, channels, length, noise_rows, row_steps, steps_per_split, stride, plane,
    gain: tl.float64, negative: tl.float64, limit: tl.float64, residual_gain: tl.float64,
    HAS_BIAS: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_STRENGTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    SAVE_MASK: tl.constexpr, CLAMPED: tl.constexpr, MASKED: tl.constexpr, LINEAR: tl.constexpr, ACC: tl.constexpr,
    PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """forward, and with MASKED the masked op, whose f comes from `p_saved`."""
    gain, negative = tl.cast(gain, ACC), tl.cast(negative, ACC)
    limit, residual_gain = tl.cast(limit, ACC), tl.cast(residual_gain, ACC)
    i_tile = tl.program_id(0).to(tl.int64)
    if HAS_BIAS:
        if PIXELS:
            o_bias = i_tile * L + tl.arange(0, L)
            b_bias = tl.load(p_bias + o_bias, mask=o_bias < channels, other=0.0).to(ACC)[None, :]
        else:
            o_bias = i_tile * G + tl.arange(0, G)
            b_bias = tl.load(p_bias + o_bias, mask=o_bias < channels, other=0.0).to(ACC)[:, None]
    if HAS_STRENGTH:
        strength = tl.load(p_strength).to(ACC)

    i_first = tl.program_id(1).to(tl.int64) * steps_per_split
    for i_step in range(i_first, i_first + steps_per_split):
        i_outer, i_first_column, o_column, o_row, m_row, o_element, m = _position(
            i_step, row_steps, rows, channels, length, G, L, PIXELS
        )
        b_value = tl.load(p_x + o_element, mask=m, other=0.0).to(ACC)
        if HAS_BIAS:
            b_value += b_bias
        if HAS_NOISE:
            b_noise = _noise(p_noise, i_outer, o_column, noise_rows, length, ACC, PIXELS)
            if HAS_STRENGTH:
                b_noise *= strength
            b_value += b_noise
        if MASKED:
            b_value = _factor(b_value, p_saved, o_row, o_column, m, stride, plane, gain, negative, LINEAR, CLAMPED)
        else:
            b_value = activate(
                b_value, p_mask, o_row, i_first_column // 8, m_row, m, stride, stride, plane, gain, negative, limit,
                SAVE_MASK, CLAMPED, G, L,
            )  # fmt: skip
            if HAS_RESIDUAL:
                b_value += residual_gain * tl.load(p_residual + o_element, mask=m, other=0.0).to(ACC)
        tl.store(p_out + o_element, b_value.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=_SIZES)
def bias_lrelu_backward_kernel(
    p_grad, p_saved, p_noise, p_gx, p_bias_parts, p_strength_parts,
    rows, channels, length, noise_rows, row_steps, steps_per_split, stride, plane,
    gain: tl.float64, negative: tl.float64,
    WANT_BIAS: tl.constexpr, WANT_STRENGTH: tl.constexpr, CLAMPED: tl.constexpr, LINEAR: tl.constexpr,
    ACC: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """backward, with this program's parts of both sums."""
    gain, negative = tl.cast(gain, ACC), tl.cast(negative, ACC)
    b_sum = tl.zeros((G, L), ACC)
    b_dot = tl.zeros((G, L), ACC)
    i_split = tl.program_id(1).to(tl.int64)
    i_first = i_split * steps_per_split
    for i_step in range(i_first, i_first + steps_per_split):
        i_outer, i_first_column, o_column, o_row, m_row, o_element, m = _position(
            i_step, row_steps, rows, channels, length, G, L, PIXELS
        )
        b_value = tl.load(p_grad + o_element, mask=m, other=0.0).to(ACC)
        b_value = _factor(b_value, p_saved, o_row, o_column, m, stride, plane, gain, negative, LINEAR, CLAMPED)
        tl.store(p_gx + o_element, b_value.to(p_gx.dtype.element_ty), mask=m)
        if WANT_BIAS:
            b_sum += b_value
        if WANT_STRENGTH:
            b_dot += b_value * _noise(p_noise, i_outer, o_column, noise_rows, length, ACC, PIXELS)

    i_tile = tl.program_id(0).to(tl.int64)
    if WANT_BIAS:
        if PIXELS:
            o_channel = i_tile * L + tl.arange(0, L)
            b_part = tl.sum(b_sum, axis=0)
        else:
            o_channel = i_tile * G + tl.arange(0, G)
            b_part = tl.sum(b_sum, axis=1)
        tl.store(p_bias_parts + i_split * channels + o_channel, b_part, mask=o_channel < channels)
    if WANT_STRENGTH:
        part = tl.sum(tl.sum(b_dot, axis=1), axis=0)
        tl.store(p_strength_parts + i_split * tl.num_programs(0) + i_tile, part)


@triton.jit
def bias_lrelu_sums_kernel(p_parts, p_sums, columns, rows, ACC: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Sums [columns] of parts [rows, columns], C columns a program."""
    o_column = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    o_r = tl.arange(0, R).to(tl.int64)
    b_sum = tl.zeros((R, C), ACC)
    for i_row in range(0, rows, R):
        m = ((i_row + o_r) < rows)[:, None] & (o_column < columns)[None, :]
        b_sum += tl.load(p_parts + (i_row + o_r)[:, None] * columns + o_column[None, :], mask=m, other=0.0)
    tl.store(p_sums + o_column, tl.sum(b_sum, axis=0), mask=o_column < columns)


class _Plan(NamedTuple):
    """How a tensor is cut, by its sizes alone."""

    outer: int
    channels: int
    length: int
    pixels: bool
    tile: tuple[int, int]  # G, L
    grid: tuple[int, int]
    row_steps: int
    steps_per_split: int

    @property
    def rows(self) -> int:
        return self.outer if self.pixels else self.outer * self.channels

    @property
    def stride(self) -> int:
        """Bytes of a row in a plane of the mask."""
        return (self.length + 7) // 8

    def sizes(self, noise: Tensor | None) -> tuple[int, ...]:
        """The integer arguments of both kernels."""
        inner = 1 if self.pixels else self.length
        noise_rows = 1 if noise is None else noise.numel() // inner
        plane = self.rows * self.stride
        return (
            self.rows, self.channels, self.length, noise_rows,
            self.row_steps, self.steps_per_split, self.stride, plane,
        )  # fmt: skip


def _plan(x: Tensor, dim: int, form: torch.memory_format) -> _Plan:
    channels_last = form != torch.contiguous_format
    outer, channels, inner = 1, x.shape[dim], 1
    for axis, size in enumerate(x.shape):
        if axis < dim or (axis > dim and channels_last):
            outer *= size
        elif axis > dim:
            inner *= size
    pixels = inner == 1
    length = channels if pixels else inner
    columns = max(8, min(_TILE, triton.next_power_of_2(length)))
    rows = _TILE // columns
    if pixels:
        tiles, row_steps, steps = triton.cdiv(length, columns), 1, triton.cdiv(outer, rows)
    else:
        row_steps = triton.cdiv(length, columns)
        tiles, steps = triton.cdiv(channels, rows), outer * row_steps
    per_split = triton.cdiv(steps, max(1, _PROGRAMS // max(1, tiles)))
    grid = (tiles, triton.cdiv(steps, max(1, per_split)))
    return _Plan(outer, channels, length, pixels, (rows, columns), grid, row_steps, per_split)


def forward(
    x: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    residual: Tensor | None,
    dim: int,
    form: torch.memory_format,
    slope: float,
    gain: float,
    clamp: float | None,
    residual_gain: float,
    save_mask: bool,
) -> tuple[Tensor, Tensor]:
    """`anifast::bias_lrelu`: the output, and the bit mask [planes, rows, bytes] or an empty tensor.

    `form` is the layout of x, and of the output, as is that of the first tensor in all three functions.
    """
    plan = _plan(x, dim, form)
    out = torch.empty_like(x, memory_format=form)
    shape = (1 if clamp is None else 2, plan.rows, plan.stride) if save_mask else (0,)
    mask = x.new_empty(shape, dtype=torch.uint8)
    if x.numel():
        x, noise = x.contiguous(memory_format=form), contiguous(noise)
        residual = None if residual is None else residual.contiguous(memory_format=form)
        with device(x):
            bias_lrelu_kernel[plan.grid](
                x, contiguous(bias), noise, noise_strength, residual, None, out, mask, *plan.sizes(noise),
                float(gain), float(gain * slope), float(clamp or 0.0), float(residual_gain),
                HAS_BIAS=bias is not None, HAS_NOISE=noise is not None,
                HAS_STRENGTH=noise is not None and noise_strength is not None, HAS_RESIDUAL=residual is not None,
                SAVE_MASK=save_mask, CLAMPED=clamp is not None, MASKED=False, LINEAR=False, ACC=accumulate(x)[0],
                PIXELS=plan.pixels, G=plan.tile[0], L=plan.tile[1],
            )  # fmt: skip
    return out, mask


def masked(
    x: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    dim: int,
    form: torch.memory_format,
    slope: float,
    gain: float,
) -> Tensor:
    """`anifast::bias_lrelu_masked`: the adjoint of `backward`."""
    plan = _plan(x, dim, form)
    out = torch.empty_like(x, memory_format=form)
    if x.numel():
        x, noise, (mask, clamped) = x.contiguous(memory_format=form), contiguous(noise), _mask(mask, slope)
        with device(x):
            bias_lrelu_kernel[plan.grid](
                x, contiguous(bias), noise, noise_strength, None, mask, out, None, *plan.sizes(noise),
                float(gain), float(gain * slope), 0.0, 0.0,
                HAS_BIAS=bias is not None, HAS_NOISE=noise is not None,
                HAS_STRENGTH=noise is not None and noise_strength is not None, HAS_RESIDUAL=False,
                SAVE_MASK=False, CLAMPED=clamped, MASKED=True, LINEAR=mask is None, ACC=accumulate(x)[0],
                PIXELS=plan.pixels, G=plan.tile[0], L=plan.tile[1],
            )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    mask: Tensor | None,
    noise: Tensor | None,
    dim: int,
    form: torch.memory_format,
    slope: float,
    gain: float,
    want_bias: bool,
    want_strength: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`anifast::bias_lrelu_backward`: gradients of the input, of the bias and of the noise strength."""
    plan = _plan(grad, dim, form)
    acc, sums = accumulate(grad)
    gx = torch.empty_like(grad, memory_format=form)
    make = grad.new_empty if grad.numel() else grad.new_zeros
    gbias = make((plan.channels if want_bias else 0,), dtype=sums)
    gstrength = make(() if want_strength else (0,), dtype=sums)
    if grad.numel() == 0:
        return gx, gbias, gstrength
    grad, (mask, clamped) = grad.contiguous(memory_format=form), _mask(mask, slope)
    noise = contiguous(noise) if want_strength else None
    tiles, splits = plan.grid
    bias_parts = grad.new_empty((splits, plan.channels), dtype=sums) if want_bias else None
    strength_parts = grad.new_empty((splits, tiles), dtype=sums) if want_strength else None
    with device(grad):
        bias_lrelu_backward_kernel[plan.grid](
            grad, mask, noise, gx, bias_parts, strength_parts, *plan.sizes(noise), float(gain), float(gain * slope),
            WANT_BIAS=want_bias, WANT_STRENGTH=want_strength, CLAMPED=clamped, LINEAR=mask is None, ACC=acc,
            PIXELS=plan.pixels, G=plan.tile[0], L=plan.tile[1],
        )  # fmt: skip
        if bias_parts is not None:
            grid = (triton.cdiv(plan.channels, 32),)
            bias_lrelu_sums_kernel[grid](bias_parts, gbias, plan.channels, splits, ACC=acc, R=32, C=32)
        if strength_parts is not None:
            bias_lrelu_sums_kernel[(1,)](strength_parts, gstrength, 1, splits * tiles, ACC=acc, R=1024, C=1)
    return gx, gbias, gstrength


def _mask(mask: Tensor | None, slope: float) -> tuple[Tensor | None, bool]:
    """Forward's mask as the kernels read it, and whether it has the plane of the clamp."""
    if mask is None and slope != 1.0:
        raise ValueError(f"bias_lrelu: the mask is missing, and slope {slope} needs it")
    return contiguous(mask), mask is not None and mask.shape[0] == 2

"""Triton kernels of `gated_residual`: both ops of anifast/ops/gated_residual.py, which tells their contract.

Memory is rows of `length` elements: with PIXELS, where channels lie together (channels last, and matrices), a row is a
pixel of all channels, else a channel's plane of an image. A program works on tiles [G rows, L columns] and keeps to its
channels, so it loads the numbers of these once; it walks over the rest in steps.

gated_residual_kernel walks over x, and of a shortcut at half the size reads the pixel that each of its pixels shows.

gated_residual_backward_kernel walks over the shortcut, so that one program has all that a pixel of it was read for. At
half the size the four pixels of x are then in PARTS: four with PIXELS; else the even and the odd line, whose tiles have
each column of the shortcut twice, two neighbours that are added up at last. Sums over a channel are kept per element of
the tile, reduced at the end of the program and added up by torch, in an order that depends on the sizes alone.

Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. IDX is the type of addresses: int32 where it reaches.
float32 sums, float64 for float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels._common import accumulate, contiguous, device, index_type
from torch import Tensor

# Elements of a tile: 8 for each thread of 4 warps, and half as many where backward has several PARTS, so that registers
# are left for 16 warps a multiprocessor. Programs that the grid is cut into, at most. UNMEASURED: no GPU timed these.
_TILE = 1024
_PROGRAMS = 2048
# Sizes that make no difference to the code: only `length` tells how wide a load may be.
_SIZES = ["rows", "channels", "row_steps", "steps", "each", "height", "width", "crop"]


@triton.jit
def _of_channels(p_values, channels, ACC: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr):
    """What a vector has for the channels of this program's tiles, [1, L] with PIXELS, else [G, 1]."""
    if PIXELS:
        o_channel = (tl.program_id(0) * L + tl.arange(0, L))[None, :]
    else:
        o_channel = (tl.program_id(0) * G + tl.arange(0, G))[:, None]
    return tl.load(p_values + o_channel, mask=o_channel < channels, other=0.0).to(ACC)


@triton.jit
def _position(
    i_step, row_steps, rows, channels, length,
    IDX: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Of a step: its rows [G, 1] and columns [1, L], and the mask of its elements."""
    i_tile = tl.program_id(0).to(IDX)
    if PIXELS:
        o_row = (i_step * G + tl.arange(0, G).to(IDX))[:, None]
        o_column = (i_tile * L + tl.arange(0, L).to(IDX))[None, :]
        m_row = o_row < rows
    else:
        i_image = i_step // row_steps
        o_channel = i_tile * G + tl.arange(0, G).to(IDX)
        o_row = (i_image * channels + o_channel)[:, None]
        o_column = ((i_step - i_image * row_steps) * L + tl.arange(0, L).to(IDX))[None, :]
        m_row = (o_channel < channels)[:, None]
    return o_row, o_column, m_row & (o_column < length)


@triton.jit
def _shown(o_row, o_column, length, height, width, crop, UP: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets of the shortcut's elements that elements of x show."""
    if UP == 1:
        o_shown = o_row * length + o_column
    else:
        o_pixel = o_row if PIXELS else o_column
        o_line = o_pixel // width
        i_column = o_pixel - o_line * width
        i_image = o_line // height if PIXELS else 0  # of pixels the lines are counted through all images
        i_line = o_line - i_image * height
        low_height, low_width = (height + 2 * crop) // 2, (width + 2 * crop) // 2
        o_low = (i_image * low_height + (i_line + crop) // 2) * low_width + (i_column + crop) // 2
        o_shown = o_low * length + o_column if PIXELS else o_row * (low_height * low_width) + o_low
    return o_shown


@triton.jit
def _part(
    o_row, o_column, m, length, height, width, crop, PART: tl.constexpr, PARTS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """Offsets of the elements of x that one part of the shortcut's elements shows, and their mask."""
    if PARTS == 1:
        o_element = o_row * length + o_column
    else:
        low_height, low_width = (height + 2 * crop) // 2, (width + 2 * crop) // 2
        if PIXELS:
            i_low_line = o_row // low_width  # through all images
            i_image = i_low_line // low_height
            i_line = 2 * (i_low_line - i_image * low_height) + PART // 2 - crop
            i_column = 2 * (o_row - i_low_line * low_width) + PART % 2 - crop
            o_element = ((i_image * height + i_line) * width + i_column) * length + o_column
        else:
            i_low_line = o_column // (2 * low_width)
            i_line = 2 * i_low_line + PART - crop
            i_column = o_column - i_low_line * (2 * low_width) - crop
            o_element = (o_row * height + i_line) * width + i_column
        m = m & (i_line >= 0) & (i_line < height) & (i_column >= 0) & (i_column < width)
    return o_element, m


@triton.jit(do_not_specialize=_SIZES)
def gated_residual_kernel(
    p_x, p_shortcut, p_gate, p_shortcut_gate, p_slope, p_bias, p_out,
    rows, channels, length, row_steps, steps, each, height, width, crop, mean: tl.float64, factor: tl.float64,
    HAS_SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, UP: tl.constexpr,
    PIXELS: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The output; `factor` is 1 / std."""
    mean = tl.cast(mean, ACC)
    b_gate = _of_channels(p_gate, channels, ACC, PIXELS, G, L) * tl.cast(factor, ACC)
    b_shortcut_gate = _of_channels(p_shortcut_gate, channels, ACC, PIXELS, G, L)
    if HAS_SLOPE:
        b_slope = _of_channels(p_slope, channels, ACC, PIXELS, G, L)
    if HAS_BIAS:
        b_bias = _of_channels(p_bias, channels, ACC, PIXELS, G, L)

    i_begin = tl.program_id(1).to(IDX) * each
    for i_step in range(i_begin, tl.minimum(i_begin + each, steps)):
        o_row, o_column, m = _position(i_step, row_steps, rows, channels, length, IDX, PIXELS, G, L)
        o_element = o_row * length + o_column
        b_value = tl.load(p_x + o_element, mask=m, other=0.0).to(ACC)
        o_shown = _shown(o_row, o_column, length, height, width, crop, UP, PIXELS)
        b_shortcut = tl.load(p_shortcut + o_shown, mask=m, other=0.0).to(ACC)
        if HAS_BIAS:
            b_value += b_bias
        if HAS_SLOPE:
            b_value = tl.where(b_value > 0, b_value, b_slope * b_value)
        b_out = b_shortcut_gate * b_shortcut + b_gate * (b_value - mean)
        tl.store(p_out + o_element, b_out.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def _store_sums(p_sums, b_sum, b_factor, channels, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr):
    """Write this program's sums of its channels, times what they all have as a factor."""
    o_tile = tl.program_id(0)
    if PIXELS:
        o_channel = o_tile * L + tl.arange(0, L)[None, :]
        b_total = tl.sum(b_sum, axis=0, keep_dims=True)
    else:
        o_channel = o_tile * G + tl.arange(0, G)[:, None]
        b_total = tl.sum(b_sum, axis=1, keep_dims=True)
    tl.store(p_sums + tl.program_id(1) * channels + o_channel, b_factor * b_total, mask=o_channel < channels)


@triton.jit(do_not_specialize=_SIZES)
def gated_residual_backward_kernel(
    p_grad, p_x, p_shortcut, p_gate, p_shortcut_gate, p_slope, p_bias, p_gx, p_gshortcut, p_sums,
    rows, channels, length, row_steps, steps, each, height, width, crop, mean: tl.float64, factor: tl.float64,
    HAS_SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, WANT_X: tl.constexpr, WANT_SHORTCUT: tl.constexpr,
    WANT_GATE: tl.constexpr, WANT_SHORTCUT_GATE: tl.constexpr, WANT_SLOPE: tl.constexpr, WANT_BIAS: tl.constexpr,
    PARTS: tl.constexpr, PIXELS: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Gradients of x and the shortcut, and this program's sums [programs, channels] of each vector that is wanted."""
    NEED_X: tl.constexpr = WANT_GATE or WANT_SLOPE or (HAS_SLOPE and (WANT_X or WANT_BIAS))
    TWICE: tl.constexpr = PARTS == 2  # a tile has each column of the shortcut twice
    mean, factor = tl.cast(mean, ACC), tl.cast(factor, ACC)
    b_gate = _of_channels(p_gate, channels, ACC, PIXELS, G, L) * factor
    b_shortcut_gate = _of_channels(p_shortcut_gate, channels, ACC, PIXELS, G, L)
    if HAS_SLOPE:
        b_slope = _of_channels(p_slope, channels, ACC, PIXELS, G, L)
    if HAS_BIAS:
        b_bias = _of_channels(p_bias, channels, ACC, PIXELS, G, L)
    b_of_gate = tl.zeros((G, L), ACC)
    b_of_shortcut_gate = tl.zeros((G, L), ACC)
    b_of_slope = tl.zeros((G, L), ACC)
    b_of_bias = tl.zeros((G, L), ACC)

    i_begin = tl.program_id(1).to(IDX) * each
    for i_step in range(i_begin, tl.minimum(i_begin + each, steps)):
        o_row, o_column, m = _position(i_step, row_steps, rows, channels, length, IDX, PIXELS, G, L)
        b_total = tl.zeros((G, L), ACC)  # of the gradients of all that an element of the shortcut was read for
        for part in tl.static_range(PARTS):
            o_element, m_part = _part(o_row, o_column, m, length, height, width, crop, part, PARTS, PIXELS)
            b_grad = tl.load(p_grad + o_element, mask=m_part, other=0.0).to(ACC)
            b_total += b_grad
            b_inner = b_grad  # behind the activation
            if NEED_X:
                b_value = tl.load(p_x + o_element, mask=m_part, other=0.0).to(ACC)
                if HAS_BIAS:
                    b_value += b_bias
                m_positive = b_value > 0
                if WANT_SLOPE:
                    b_of_slope += tl.where(m_positive, 0.0, b_value * b_grad)
                if HAS_SLOPE:
                    b_inner = tl.where(m_positive, b_grad, b_slope * b_grad)
                    b_value = tl.where(m_positive, b_value, b_slope * b_value)
                if WANT_GATE:
                    b_of_gate += (b_value - mean) * b_grad
            if WANT_BIAS:
                b_of_bias += b_inner
            if WANT_X:
                tl.store(p_gx + o_element, (b_gate * b_inner).to(p_gx.dtype.element_ty), mask=m_part)
        if WANT_SHORTCUT_GATE:
            o_shortcut = o_row * (length // 2) + o_column // 2 if TWICE else o_row * length + o_column
            b_of_shortcut_gate += tl.load(p_shortcut + o_shortcut, mask=m, other=0.0).to(ACC) * b_total
        if WANT_SHORTCUT:
            b_gshortcut = b_shortcut_gate * b_total
            if TWICE:
                b_gshortcut = tl.sum(tl.reshape(b_gshortcut, (G, L // 2, 2)), axis=2)
                o_low_row, o_low_column, m_low = _position(
                    i_step, row_steps, rows, channels, length // 2, IDX, PIXELS, G, L // 2
                )
                o_low = o_low_row * (length // 2) + o_low_column
            else:
                o_low, m_low = o_row * length + o_column, m
            tl.store(p_gshortcut + o_low, b_gshortcut.to(p_gshortcut.dtype.element_ty), mask=m_low)

    # in the order of the ops' results; a sum that isn't wanted takes no place
    plane = tl.num_programs(1) * channels
    if WANT_GATE:
        _store_sums(p_sums, b_of_gate, factor, channels, PIXELS, G, L)
        p_sums += plane
    if WANT_SHORTCUT_GATE:
        _store_sums(p_sums, b_of_shortcut_gate, 1.0, channels, PIXELS, G, L)
        p_sums += plane
    if WANT_SLOPE:
        _store_sums(p_sums, b_of_slope, b_gate, channels, PIXELS, G, L)
        p_sums += plane
    if WANT_BIAS:
        _store_sums(p_sums, b_of_bias, b_gate, channels, PIXELS, G, L)


class _Plan(NamedTuple):
    """How maps are cut, by their sizes alone."""

    rows: int
    length: int
    row_steps: int
    steps: int
    each: int
    tile: tuple[int, int]  # G, L
    grid: tuple[int, int]


def _plan(images: int, channels: int, plane: int, pixels: bool, tile: int) -> _Plan:
    """The cut of maps of `plane` elements a channel; `pixels`: channels lie together in memory."""
    length = channels if pixels else plane
    wide = max(8, min(tile, triton.next_power_of_2(length)))
    high = tile // wide
    if pixels:
        rows, tiles, row_steps = images * plane, triton.cdiv(length, wide), 1
        steps = triton.cdiv(rows, high)
    else:
        high = min(high, triton.next_power_of_2(channels))
        rows, tiles, row_steps = images * channels, triton.cdiv(channels, high), triton.cdiv(length, wide)
        steps = images * row_steps
    each = triton.cdiv(steps, max(1, _PROGRAMS // tiles))
    return _Plan(rows, length, row_steps, steps, each, (high, wide), (tiles, triton.cdiv(steps, each)))


def _map_size(x: Tensor) -> tuple[int, int]:
    """Lines and columns of maps; matrices have one pixel."""
    return (x.shape[2], x.shape[3]) if x.dim() == 4 else (1, 1)


def gated_residual(
    x: Tensor,
    shortcut: Tensor,
    gate: Tensor,
    shortcut_gate: Tensor,
    slope: Tensor | None,
    bias: Tensor | None,
    mean: float,
    std: float,
    up: int,
    crop: int,
    form: torch.memory_format,
) -> Tensor:
    """`anifast::gated_residual`: the output. `form` is the layout of all maps, here and in backward."""
    out = torch.empty_like(x, memory_format=form)
    if x.numel() == 0:
        return out
    height, width = _map_size(x)
    pixels = form != torch.contiguous_format or height * width == 1
    plan = _plan(x.shape[0], x.shape[1], height * width, pixels, _TILE)
    with device(x):
        gated_residual_kernel[plan.grid](
            x.contiguous(memory_format=form), shortcut.contiguous(memory_format=form),
            gate.contiguous(), shortcut_gate.contiguous(), contiguous(slope), contiguous(bias), out,
            plan.rows, x.shape[1], plan.length, plan.row_steps, plan.steps, plan.each, height, width, crop,
            float(mean), 1.0 / float(std), HAS_SLOPE=slope is not None, HAS_BIAS=bias is not None, UP=up,
            PIXELS=pixels, ACC=accumulate(x)[0], IDX=index_type(x, shortcut), G=plan.tile[0], L=plan.tile[1],
        )  # fmt: skip
    return out


def gated_residual_backward(
    grad: Tensor,
    x: Tensor,
    shortcut: Tensor | None,
    gate: Tensor,
    shortcut_gate: Tensor,
    slope: Tensor | None,
    bias: Tensor | None,
    mean: float,
    std: float,
    up: int,
    crop: int,
    wanted: Sequence[bool],
    form: torch.memory_format,
) -> tuple[Tensor, ...]:
    """`anifast::gated_residual_backward`: gradients of all six, an empty tensor for each that isn't `wanted`."""
    want_x, want_shortcut, *want_sums = wanted
    if want_sums[1] and shortcut is None:
        raise ValueError("gated_residual: the shortcut is missing, and the gradient of shortcut_gate needs it")
    images, channels = x.shape[:2]
    height, width = _map_size(x)
    low = [(size + 2 * crop) // up for size in (height, width)]  # of the shortcut
    acc, sums = accumulate(x)
    gx = torch.empty_like(x, memory_format=form) if want_x else x.new_empty(0)
    if want_shortcut:
        shape = (images, channels, *low)[: x.dim()]
        gshortcut = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
    else:
        gshortcut = x.new_empty(0)
    if x.numel() == 0:  # though the shortcut may have pixels, all of them cut off
        return gx, gshortcut.zero_(), *[x.new_zeros(channels if want else 0, dtype=sums) for want in want_sums]
    if not any(wanted):
        return gx, gshortcut, *[x.new_empty(0, dtype=sums) for _ in want_sums]
    pixels = form != torch.contiguous_format or (up == 1 and height * width == 1)
    twice = up == 2 and not pixels
    plan = _plan(images, channels, math.prod(low) * (2 if twice else 1), pixels, _TILE // up)
    parts = x.new_empty((sum(want_sums), plan.grid[1], channels), dtype=sums)
    maps = [x, gshortcut] if shortcut is None else [x, gshortcut, shortcut]
    with device(x):
        gated_residual_backward_kernel[plan.grid](
            grad.contiguous(memory_format=form), x.contiguous(memory_format=form),
            None if shortcut is None else shortcut.contiguous(memory_format=form),
            gate.contiguous(), shortcut_gate.contiguous(), contiguous(slope), contiguous(bias), gx, gshortcut, parts,
            plan.rows, channels, plan.length, plan.row_steps, plan.steps, plan.each, height, width, crop,
            float(mean), 1.0 / float(std), HAS_SLOPE=slope is not None, HAS_BIAS=bias is not None,
            WANT_X=want_x, WANT_SHORTCUT=want_shortcut, WANT_GATE=want_sums[0], WANT_SHORTCUT_GATE=want_sums[1],
            WANT_SLOPE=want_sums[2], WANT_BIAS=want_sums[3], PARTS=1 if up == 1 else 2 if twice else 4,
            PIXELS=pixels, ACC=acc, IDX=index_type(*maps), G=plan.tile[0], L=plan.tile[1],
        )  # fmt: skip
    found = (part.sum(0) for part in parts)
    return gx, gshortcut, *[next(found) if want else x.new_empty(0, dtype=sums) for want in want_sums]

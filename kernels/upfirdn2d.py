"""Triton kernel of `upfirdn2d`: the op of anifast/ops/upfirdn2d.py, which tells its contract.

A program makes R rows of a tile of the output, tile [G, L]: columns of L with contiguous memory ("planes": G planes of
N * C), G columns of L channels with channels last ("pixels"). Of k taps along an axis only those that meet a sample of
x are visited, T = ceil(k / up): tap s + t * up meets sample first + t, where s and first depend on the output's row or
column. Rows of a program start at a multiple of `up`, so their taps are known when the kernel is compiled; columns find
theirs in the tile, with their weights where up > 1. Loads and weights beyond the borders are masked.

Up to 8 such taps an axis are unrolled: a row of x is loaded T times (shifted), summed along the columns, and added to
every row of the output that it reaches. A value of the output so costs T * (rows of x) / R reads, of which all but the
first of a sample come from the first cache: with 4 taps and R = 8 it is 5.5 (R = 16, half types: 4.75), up by 2 1.25,
down by 2 9; with channels last these are vectors of channels. A matrix costs the same reads and T * T products. More
taps are loops over them, with T * T reads. Of the memory itself x and out move once, + `add`, + 1/8 byte per plane of
the mask, + noise once a sample.

Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. IDX is the type of addresses: int32 where it reaches.
float32 sums, float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels import _common
from anifast.kernels._common import accumulate, activate, contiguous, device
from torch import Tensor

# Elements of one row of a tile, for each thread of 4 warps: 2, so that no registers spill, or 4 in vectors of channels.
_TILE = 256
_WIDE_TILE = 512
# Taps of an axis that meet a sample, and factors, up to which loops are unrolled.
_TAPS = 8
_FACTOR = 4
# Sizes that make no difference to the code: only `channels` tells how wide a load may be, with channels last.
_SIZES = [
    "planes", "in_rows", "in_columns", "rows", "columns", "noise_outer", "row_tiles", "column_tiles", "lane_tiles",
    "pad_row", "pad_column", "stride", "plane",
]  # fmt: skip


@triton.jit
def _weight(
    p_kernel, i_y, o_x, KY: tl.constexpr, KX: tl.constexpr, UX: tl.constexpr, FLIP: tl.constexpr, LINE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Taps (i_y, o_x) of the kernel as it is correlated, or o_x of a LINE; 0 behind the last column."""
    if not FLIP:
        i_y = KY - 1 - i_y
        o_x = KX - 1 - o_x
    o_tap = o_x
    if not LINE:
        o_tap += i_y * KX
    if UX == 1:  # the same tap for all columns, and never behind the last
        return tl.load(p_kernel + o_tap).to(ACC)
    return tl.load(p_kernel + o_tap, mask=(o_x >= 0) & (o_x < KX), other=0.0).to(ACC)


@triton.jit
def _unrolled(
    p_x, p_kernel, m_read, o_first, o_phase, i_row, in_rows, in_columns, row_stride, tap_stride,
    UX: tl.constexpr, UY: tl.constexpr, DY: tl.constexpr, KX: tl.constexpr, KY: tl.constexpr, PY: tl.constexpr,
    T: tl.constexpr, FLIP: tl.constexpr, LINE: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
    L: tl.constexpr,
):  # fmt: skip
    """The sums of R rows. `p_x` points at tap 0 of each element in row 0 of its plane, `i_row` is the first row."""
    m_columns = ()
    across = ()
    down = ()
    for t in tl.static_range(T):
        m_column = m_read & (o_first + t >= 0) & (o_first + t < in_columns)
        if UX > 1:
            m_column = m_column & (o_phase + t * UX < KX)
        m_columns = m_columns + (m_column,)
        if LINE:
            across = across + (_weight(p_kernel, 0, o_phase + t * UX, KX, KX, UX, FLIP, True, ACC),)
    for i_tap in tl.static_range(KY):
        if LINE:
            down = down + (_weight(p_kernel, 0, i_tap, KY, KY, 1, FLIP, True, ACC),)
        else:
            for t in tl.static_range(T):
                down = down + (_weight(p_kernel, i_tap, o_phase + t * UX, KY, KX, UX, FLIP, False, ACC),)

    sums = ()
    for _ in tl.static_range(R):
        sums = sums + (tl.zeros((G, L), ACC),)
    o_row = tl.full((1, 1), 0, i_row.dtype) + i_row  # the interpreter cannot spread one boolean over a tile
    for d in tl.static_range(((R - 1) * DY - PY + KY - 1) // UY + 1):
        m_row = (o_row + d >= 0) & (o_row + d < in_rows)
        p_row = p_x + (i_row + d) * row_stride
        b_line = tl.zeros((G, L), ACC)
        for t in tl.static_range(T):
            b_value = tl.load(p_row + t * tap_stride, mask=m_columns[t] & m_row, other=0.0).to(ACC)
            if LINE:
                b_line += across[t] * b_value
            if not LINE or t == T - 1:  # to every row that this one reaches, if the tap between them is the kernel's
                added = ()
                for r in tl.static_range(R):
                    if d * UY + PY - r * DY < 0 or d * UY + PY - r * DY >= KY:
                        added = added + (sums[r],)
                    elif LINE:
                        added = added + (sums[r] + down[d * UY + PY - r * DY] * b_line,)
                    else:
                        added = added + (sums[r] + down[(d * UY + PY - r * DY) * T + t] * b_value,)
                sums = added
    return sums


@triton.jit
def _looped(
    p_x, p_kernel, m_read, o_first, o_phase, i_row, i_phase, in_rows, in_columns, row_stride, tap_stride,
    UX: tl.constexpr, UY: tl.constexpr, KX: tl.constexpr, KY: tl.constexpr, FLIP: tl.constexpr, LINE: tl.constexpr,
    ACC: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The sums of one row: taps i_phase, i_phase + UY, ... meet rows i_row, i_row + 1, ..."""
    b_sum = tl.zeros((G, L), ACC)
    taps = (KY - i_phase + UY - 1) // UY
    for ty in range(tl.maximum(0, -i_row), tl.minimum(taps, in_rows - i_row)):
        i_tap = i_phase + ty * UY
        p_row = p_x + (i_row + ty) * row_stride
        b_line = tl.zeros((G, L), ACC)
        for tx in range(0, (KX + UX - 1) // UX):
            o_tap = o_phase + tx * UX
            m = m_read & (o_first + tx >= 0) & (o_first + tx < in_columns)
            if UX > 1:
                m = m & (o_tap < KX)
            b_value = tl.load(p_row + tx * tap_stride, mask=m, other=0.0).to(ACC)
            b_line += _weight(p_kernel, i_tap, o_tap, KY, KX, UX, FLIP, LINE, ACC) * b_value
        if LINE:
            b_line *= _weight(p_kernel, 0, i_tap, KY, KY, 1, FLIP, True, ACC)
        b_sum += b_line
    return b_sum


@triton.jit(do_not_specialize=_SIZES)
def upfirdn2d_kernel(
    p_x, p_kernel, p_scale, p_bias, p_noise, p_strength, p_add, p_out, p_mask,
    planes, channels, in_rows, in_columns, rows, columns, noise_outer, row_tiles, column_tiles, lane_tiles,
    pad_row, pad_column, stride, plane,
    gain: tl.float64, act_gain: tl.float64, negative: tl.float64, limit: tl.float64,
    UX: tl.constexpr, UY: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, KX: tl.constexpr, KY: tl.constexpr,
    PX: tl.constexpr, PY: tl.constexpr, FLIP: tl.constexpr, LINE: tl.constexpr, UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_STRENGTH: tl.constexpr,
    HAS_ADD: tl.constexpr, ACT: tl.constexpr, SAVE_MASK: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
    IDX: tl.constexpr, PIXELS: tl.constexpr, R: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """forward. The pads before x are pad_row * UY + PY and pad_column * UX + PX."""
    gain, act_gain = tl.cast(gain, ACC), tl.cast(act_gain, ACC)
    negative, limit = tl.cast(negative, ACC), tl.cast(limit, ACC)

    # lanes (channels) within columns within rows within planes or samples: what shares rows of x runs together
    i_rest = tl.program_id(0).to(IDX)
    i_lane = i_rest % lane_tiles
    i_rest = i_rest // lane_tiles
    i_column = i_rest % column_tiles
    i_rest = i_rest // column_tiles
    i_row_tile = i_rest % row_tiles
    i_outer = i_rest // row_tiles
    if PIXELS:
        o_column = i_column * G + tl.arange(0, G).to(IDX)[:, None]
        o_lane = i_lane * L + tl.arange(0, L).to(IDX)
        o_plane = i_outer  # the sample
        m = (o_column < columns) & (o_lane < channels)[None, :]
        o_sample = i_outer
        o_channel = o_lane[None, :]
        m_channel = o_channel < channels
    else:
        o_column = i_column * L + tl.arange(0, L).to(IDX)[None, :]
        o_plane = i_outer * G + tl.arange(0, G).to(IDX)[:, None]
        m_channel = o_plane < planes
        o_plane = tl.minimum(o_plane, planes - 1)  # to be read without a mask, which is then one a column
        m = m_channel & (o_column < columns)
        o_sample = o_plane // channels
        o_channel = o_plane - o_sample * channels

    # column j: the first tap that meets a sample, and that sample
    if UX == 1:
        o_first = o_column * DX - pad_column
        o_phase = 0
    else:
        o_ahead = o_column * DX - PX
        o_first = (o_ahead + (UX - 1)) // UX
        o_phase = o_first * UX - o_ahead
        o_first -= pad_column
    if PIXELS:
        m_read = m
        p_first = p_x + (o_plane * in_rows * in_columns * channels + o_first * channels + o_channel)
        in_stride = tl.cast(in_columns, IDX) * channels
        tap_stride = channels
    else:
        m_read = o_column < columns
        o_read = o_plane * in_rows * in_columns + o_first
        if UX > 1 or DX > 1:
            # neighbouring threads shall take columns, not planes (Triton 3.6 has no other reason to); nothing is known
            # of the alignment of a line, so that no two are read at once
            o_read = tl.max_contiguous(o_read, [1, 2])
        p_first = p_x + o_read
        in_stride = tl.cast(in_columns, IDX)
        tap_stride = 1

    if UNROLLED:
        i_row = i_row_tile * (R * DY // UY) - pad_row
        sums = _unrolled(
            p_first, p_kernel, m_read, o_first, o_phase, i_row, in_rows, in_columns, in_stride, tap_stride,
            UX, UY, DY, KX, KY, PY, (KX + UX - 1) // UX, FLIP, LINE, ACC, R, G, L,
        )  # fmt: skip
    else:
        i_ahead = i_row_tile * DY - PY
        i_row = (i_ahead + (UY - 1)) // UY
        i_phase = i_row * UY - i_ahead
        sums = (
            _looped(
                p_first, p_kernel, m_read, o_first, o_phase, i_row - pad_row, i_phase, in_rows, in_columns, in_stride,
                tap_stride, UX, UY, KX, KY, FLIP, LINE, ACC, G, L,
            ),
        )  # fmt: skip

    if HAS_SCALE:
        b_scale = gain * tl.load(p_scale + (o_sample * channels + o_channel), mask=m_channel, other=0.0).to(ACC)
    else:
        b_scale = gain
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(ACC)
    if HAS_STRENGTH:
        strength = tl.load(p_strength).to(ACC)
    i_row = i_row_tile * R
    o_row = tl.full((1, 1), 0, IDX) + i_row
    # the elements (planes) or pixels of the first row
    o_flat = (o_plane * rows + i_row) * columns + o_column
    if HAS_NOISE:
        o_noise = ((o_sample % noise_outer) * rows + i_row) * columns + o_column
        m_noise = (o_column < columns) if PIXELS else m
    for r in tl.static_range(R):
        m_row = o_row + r < rows
        m_out = m & m_row
        o_out = o_flat + r * columns
        if PIXELS:
            o_pixel = o_out
            o_out = o_pixel * channels + o_channel
        b_value = sums[r] * b_scale
        if HAS_NOISE:
            b_noise = tl.load(p_noise + (o_noise + r * columns), mask=m_noise & m_row, other=0.0).to(ACC)
            if HAS_STRENGTH:
                b_noise *= strength
            b_value += b_noise
        if HAS_BIAS:
            b_value += b_bias
        if ACT:
            if PIXELS:
                b_value = activate(
                    b_value, p_mask, o_pixel, i_lane * (L // 8), (o_column < columns) & m_row, m_out, stride, stride,
                    plane, act_gain, negative, limit, SAVE_MASK, CLAMPED, G, L,
                )  # fmt: skip
            else:
                # lines are whole bytes where there is a mask, and those of a plane follow one another
                i_byte = ((i_row + r) * columns + i_column * L) // 8
                end = (i_row + (r + 1)) * columns // 8
                b_value = activate(
                    b_value, p_mask, o_plane, i_byte, m_channel & m_row, m_out, stride, end, plane, act_gain,
                    negative, limit, SAVE_MASK, CLAMPED, G, L,
                )  # fmt: skip
        if HAS_ADD:
            b_value += tl.load(p_add + o_out, mask=m_out, other=0.0).to(ACC)
        tl.store(p_out + o_out, b_value.to(p_out.dtype.element_ty), mask=m_out)


class _Plan(NamedTuple):
    """How an output [planes or samples, rows, columns(, channels)] is cut into tiles."""

    unrolled: bool
    tile: tuple[int, int, int]  # R, G, L
    tiles: tuple[int, int, int]  # of rows, columns, lanes
    programs: int


def _tile(across: int, lanes: int, size: int, longest: int) -> tuple[int, int]:
    """G and L of tiles of `size` elements: the longest that need no more than 1/8 more programs than the best."""

    def programs(length: int) -> int:
        return triton.cdiv(lanes, length) * triton.cdiv(across, size // length)

    whole = min(longest, triton.next_power_of_2(lanes))
    lengths = [length for length in (8, 16, 32, 64, 128) if length <= whole] or [whole]
    fewest = min(map(programs, lengths))
    length = max(length for length in lengths if 8 * programs(length) <= 9 * fewest)
    return min(size // length, triton.next_power_of_2(across)), length


def _is_unrolled(rank: int, kernel: tuple[int, int], up: Sequence[int], down: Sequence[int]) -> bool:
    """Whether taps are unrolled: those along an axis are few, and so are the registers that hold all weights."""
    across, high = triton.cdiv(kernel[1], up[0]), triton.cdiv(kernel[0], up[1])
    weights = (1 if up[0] == 1 else 4) * across * (1 if rank == 1 else kernel[0])
    return max(across, high) <= _TAPS and weights <= _TAPS**2 and max(up[1], down[1]) <= _FACTOR


def _plan(
    out: Tensor, form: torch.memory_format, kernel: Tensor, up: Sequence[int], down: Sequence[int], act: bool
) -> _Plan:
    outer, channels, rows, columns = out.shape
    pixels = form != torch.contiguous_format
    unrolled = _is_unrolled(kernel.dim(), (kernel.shape[0], kernel.shape[-1]), up, down)
    # rows that share reads; half types, which take the more instructions a byte, have the registers for twice as many
    half = out.element_size() == 2
    many = 4 if down[1] > 2 or rows <= 4 else 16 if half and not pixels and down[1] == 1 and rows >= 16 else 8
    high = up[1] * max(1, many // up[1]) if unrolled else 1
    if pixels:
        # few channels and so many columns, which share what they read; 8 at least: a byte of the mask is not shared
        across, length = _tile(columns, max(8, channels), _TILE if act else _WIDE_TILE, 32)
        tiles = (triton.cdiv(rows, high), triton.cdiv(columns, across), triton.cdiv(channels, length))
        programs = outer
    else:
        across, length = _tile(outer * channels, columns, _TILE, 128)  # one mask for each tap and thread
        tiles = (triton.cdiv(rows, high), triton.cdiv(columns, length), 1)
        programs = triton.cdiv(outer * channels, across)
    return _Plan(unrolled, (high, across, length), tiles, programs * tiles[0] * tiles[1] * tiles[2])


def forward(
    x: Tensor,
    kernel: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
    scale: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    add: Tensor | None,
    slope: float,
    act_gain: float,
    clamp: float | None,
    save_mask: bool,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`anifast::upfirdn2d`: the output, and the bit mask [planes, rows, bytes] of bias_lrelu or an empty tensor.

    `form` is the layout of x, and of the output.
    """
    outer, channels, in_rows, in_columns = x.shape
    taps = (kernel.shape[0], kernel.shape[-1])
    rows = (in_rows * up[1] + padding[2] + padding[3] - taps[0]) // down[1] + 1
    columns = (in_columns * up[0] + padding[0] + padding[1] - taps[1]) // down[0] + 1
    pixels = form != torch.contiguous_format
    if save_mask and not pixels and columns % 8:
        raise ValueError(f"upfirdn2d: save_mask needs lines of whole bytes, got {columns} columns")
    out = torch.empty((outer, channels, rows, columns), dtype=x.dtype, device=x.device, memory_format=form)
    if pixels:
        mask_rows, stride = outer * rows * columns, triton.cdiv(channels, 8)
    else:
        mask_rows, stride = outer * channels, rows * columns // 8
    mask = x.new_empty((1 if clamp is None else 2, mask_rows, stride) if save_mask else (0,), dtype=torch.uint8)
    if out.numel() == 0:
        return out, mask
    act = save_mask or slope != 1.0 or act_gain != 1.0 or clamp is not None
    plan = _plan(out, form, kernel, up, down, act)
    # what the furthest sample is called, in x, in the output, or among the zeros inserted between
    reach = max(
        x.numel(), out.numel(), in_rows * up[1] + sum(map(abs, padding)), in_columns * up[0] + sum(map(abs, padding))
    )
    x, noise = x.contiguous(memory_format=form), contiguous(noise)
    add = None if add is None else add.contiguous(memory_format=form)
    with device(x):
        upfirdn2d_kernel[(plan.programs,)](
            x, kernel.contiguous(), contiguous(scale), contiguous(bias), noise, noise_strength, add, out, mask,
            outer * channels, channels, in_rows, in_columns, rows, columns, 1 if noise is None else noise.shape[0],
            *plan.tiles, padding[2] // up[1], padding[0] // up[0], stride, mask_rows * stride,
            float(gain), float(act_gain), float(act_gain * slope), float(clamp or 0.0),
            UX=up[0], UY=up[1], DX=down[0], DY=down[1], KX=taps[1], KY=taps[0],
            PX=padding[0] % up[0], PY=padding[2] % up[1], FLIP=flip, LINE=kernel.dim() == 1, UNROLLED=plan.unrolled,
            HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, HAS_NOISE=noise is not None,
            HAS_STRENGTH=noise is not None and noise_strength is not None, HAS_ADD=add is not None,
            ACT=act, SAVE_MASK=save_mask, CLAMPED=clamp is not None, ACC=accumulate(x)[0],
            IDX=tl.int32 if reach < _common.REACH else tl.int64, PIXELS=pixels,
            R=plan.tile[0], G=plan.tile[1], L=plan.tile[2],
        )  # fmt: skip
    return out, mask

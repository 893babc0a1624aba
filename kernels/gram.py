"""Triton kernels of `gram`: the ops of anifast/ops/gram.py, which tells their contract.

A launch serves up to `_MAPS` maps of a list and all images. Triton takes no array of pointers, a table of addresses in
memory would cost a copy from the host for each call (and hide from the compiler how they are aligned), so maps are
separate arguments, as many of them as COUNT tells are there, and a program finds its own by its number. Layouts differ
from map to map: bit i of FORMS tells that map i has its channels last.

gram_kernel makes tiles [B, B] of G = scale F F^T on and above the diagonal, and writes each to its mirrored place too;
on the diagonal both factors are one tile, read once. Pixels are cut into `splits`, so that few tiles of many pixels
fill a GPU as many tiles of few do. Where a map has several, their sums are `p_parts` [images, (maps, splits, tiles),
B, B], which gram_sums_kernel adds up, in the order of splits, which depends on the sizes alone.

gram_backward_kernel makes tiles [BM channels, BN pixels] of scale S F; S = g + g^T is added up out of the vector where
it is read. Rounded to a half type, S would cost the gradient more than its own rounding does. Beside half maps S is
therefore two numbers that tf32 holds, and F, which tf32 holds as it is, is multiplied by both: S has 21 bits in all
(and an infinite gradient becomes NaN there).

Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. IDX is the type of addresses: int32 where it reaches.
float32 sums, float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels._common import accumulate, device, index_type
from torch import Tensor


class _Tile(NamedTuple):
    """How a product is cut: rows and columns of the result, depth of a step; warps, and steps read ahead."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# How factors are multiplied -> tile. UNMEASURED: no GPU has timed these. They compile without local memory for sm_80,
# sm_90 and sm_100; a benchmark of the op is to settle them. Tiles of G are square.
TILES = {
    "half": _Tile(64, 64, 64, 4, 4),
    "tf32": _Tile(64, 64, 32, 4, 4),
    "ieee": _Tile(64, 64, 16, 4, 3),
    "float64": _Tile(32, 32, 16, 4, 3),
}
BACKWARD_TILES = {
    "half": _Tile(64, 64, 32, 4, 3),
    "tf32": _Tile(64, 64, 32, 4, 3),
    "ieee": _Tile(64, 64, 16, 4, 3),
    "float64": _Tile(32, 32, 16, 4, 3),
}
# Maps of a launch, at most: more than any style loss takes of a network.
_MAPS = 8
# Pixels of a split, at least, and programs that all the work of a launch is cut into, more or less.
_PIXELS = 512
_PROGRAMS = 1024
# Rows and columns of a tile that a program of gram_sums_kernel adds up, and splits that it reads at once.
_SUM_ROWS, _SUM_COLUMNS, _SUM_SPLITS = 8, 32, 16
# No size makes another kernel: VECTOR tells how wide loads may be.
_SIZES = [f"{name}_{i}" for name in ("channels", "pixels", "offset") for i in range(_MAPS)] + [
    "programs", "width", "longest", "parts"
]  # fmt: skip


@triton.jit
def _pick(i_map, values, COUNT: tl.constexpr):
    """The entry `i_map` of a tuple."""
    found = values[0]
    for i in tl.static_range(1, COUNT):
        found = tl.where(i_map == i, values[i], found)
    return found


@triton.jit
def _find(i_program, channels, pixels, longest, COUNT: tl.constexpr, B: tl.constexpr, CHUNKS: tl.constexpr):
    """Of a program: its map, its number there, the map's tiles and splits, and parts before those of the map.

    A map has a program for each tile and split, or, with CHUNKS, that many for each tile if it has several splits.
    """
    i_map, i_own, found_tiles, found_splits, found_parts = 0, i_program, 0, 0, 0
    before, parts = 0, 0
    for i in tl.static_range(COUNT):
        side = tl.cdiv(channels[i], B)
        tiles = side * (side + 1) // 2
        splits = tl.cdiv(pixels[i], longest)
        m = i_program >= before  # the last map for which it holds has the program
        i_map = tl.where(m, i, i_map)
        i_own = tl.where(m, i_program - before, i_own)
        found_tiles = tl.where(m, tiles, found_tiles)
        found_splits = tl.where(m, splits, found_splits)
        found_parts = tl.where(m, parts, found_parts)
        several = tl.where(splits > 1, 1, 0)
        before += tiles * (several * CHUNKS if CHUNKS else splits)
        parts += several * tiles * splits
    return i_map, i_own, found_tiles, found_splits, found_parts


@triton.jit
def _corner(i_tile):
    """Row and column of the tile that is number `i_tile` on and above the diagonal, column by column."""
    i_column = ((tl.sqrt(8.0 * i_tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i_column -= tl.where(i_column * (i_column + 1) // 2 > i_tile, 1, 0)  # where the root was rounded
    i_column += tl.where((i_column + 1) * (i_column + 2) // 2 <= i_tile, 1, 0)
    return i_tile - i_column * (i_column + 1) // 2, i_column


@triton.jit
def _write(p_out, b_value, o_row, o_column, channels, i_row, i_column, FOLDED: tl.constexpr):
    """Write values of G in rows [R, 1] and columns [1, C], of tile (i_row, i_column)."""
    m = (o_row < channels) & (o_column < channels)
    if FOLDED:
        o_out = o_row * channels - o_row * (o_row + 1) // 2 + o_column
        tl.store(p_out + o_out, b_value, mask=m & (o_row <= o_column))
    else:
        tl.store(p_out + (o_row * channels + o_column), b_value, mask=m)
        if i_row != i_column:
            tl.store(p_out + (o_column * channels + o_row), b_value, mask=m)


@triton.jit
def _product(
    p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
    DIAGONAL: tl.constexpr, PIXELS: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, B: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of F F^T over pixels i_begin to i_end."""
    if PIXELS:
        channels = channels // VECTOR * VECTOR  # which tells what it is a multiple of, as no hint in a function does
        channel_stride, pixel_stride = 1, channels
    else:
        pixels = pixels // VECTOR * VECTOR
        channel_stride, pixel_stride = pixels, 1
    p_image = p_x + i_image * channels * pixels
    o_row = i_row * B + tl.arange(0, B).to(IDX)
    o_column = i_column * B + tl.arange(0, B).to(IDX)
    p_row = p_image + o_row[:, None] * channel_stride
    p_column = p_image + o_column[None, :] * channel_stride
    m_row, m_column = (o_row < channels)[:, None], (o_column < channels)[None, :]
    b_sum = tl.zeros((B, B), ACC)
    for i_pixel in range(i_begin, i_end, BK):
        o_pixel = i_pixel + tl.arange(0, BK)
        m_pixel = o_pixel < pixels
        o_from = o_pixel.to(IDX) * pixel_stride
        b_row = tl.load(p_row + o_from[None, :], mask=m_row & m_pixel[None, :], other=0.0)
        if DIAGONAL:
            b_column = tl.trans(b_row)
        else:
            b_column = tl.load(p_column + o_from[:, None], mask=m_column & m_pixel[:, None], other=0.0)
        if WIDEN:
            b_row, b_column = b_row.to(ACC), b_column.to(ACC)
        b_sum = tl.dot(b_row, b_column, b_sum, input_precision=PRECISION, out_dtype=ACC)
    return b_sum


@triton.jit
def _tile(
    p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
    PIXELS: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, B: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`_product` on the diagonal or off it."""
    if i_row == i_column:
        b_sum = _product(
            p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
            True, PIXELS, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
        )  # fmt: skip
    else:
        b_sum = _product(
            p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
            False, PIXELS, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
        )  # fmt: skip
    return b_sum


@triton.jit(do_not_specialize=_SIZES)
def gram_kernel(
    p_x_0, p_x_1, p_x_2, p_x_3, p_x_4, p_x_5, p_x_6, p_x_7, p_out, p_parts,
    channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7,
    pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7,
    offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7,
    scale_0: tl.float64, scale_1: tl.float64, scale_2: tl.float64, scale_3: tl.float64,
    scale_4: tl.float64, scale_5: tl.float64, scale_6: tl.float64, scale_7: tl.float64,
    programs, width, longest, parts,
    COUNT: tl.constexpr, FORMS: tl.constexpr, FOLDED: tl.constexpr, SPLIT: tl.constexpr, VECTOR: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
    B: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Tiles of G, or their parts where a map has more than `longest` pixels; `offset` is where a map's begin in a row.

    SPLIT tells that there are such maps.
    """
    i_program = tl.program_id(0)
    i_image = (i_program // programs).to(IDX)
    all_channels = (channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7)
    all_pixels = (pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7)
    i_map, i_own, tiles, splits, i_part = _find(i_program % programs, all_channels, all_pixels, longest, COUNT, B, 0)
    p_x = _pick(i_map, (p_x_0, p_x_1, p_x_2, p_x_3, p_x_4, p_x_5, p_x_6, p_x_7), COUNT)
    channels = _pick(i_map, all_channels, COUNT)
    pixels = _pick(i_map, all_pixels, COUNT)
    offset = _pick(i_map, (offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7), COUNT)
    scale = _pick(i_map, (scale_0, scale_1, scale_2, scale_3, scale_4, scale_5, scale_6, scale_7), COUNT)

    # tiles within splits: what shares pixels runs together
    i_row, i_column = _corner(i_own % tiles)
    each = tl.cdiv(tl.cdiv(pixels, BK), splits) * BK
    i_begin = (i_own // tiles) * each
    i_end = tl.minimum(i_begin + each, pixels)
    if FORMS == 0:
        b_sum = _tile(
            p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
            False, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
        )  # fmt: skip
    elif FORMS == (1 << COUNT) - 1:
        b_sum = _tile(
            p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
            True, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
        )  # fmt: skip
    else:
        if (tl.full((), FORMS, tl.int32) >> i_map) & 1:
            b_sum = _tile(
                p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
                True, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
            )  # fmt: skip
        else:
            b_sum = _tile(
                p_x, i_image, i_row, i_column, channels, pixels, i_begin, i_end,
                False, VECTOR, PRECISION, WIDEN, ACC, IDX, B, BK,
            )  # fmt: skip

    o_row, o_column = tl.arange(0, B).to(IDX)[:, None], tl.arange(0, B).to(IDX)[None, :]
    if splits > 1:
        if SPLIT:
            p_part = p_parts + (i_image * parts + i_part + i_own) * (B * B)
            tl.store(p_part + (o_row * B + o_column), b_sum)
    else:
        p_row = p_out + (i_image * width + offset)
        o_row, o_column = i_row * B + o_row, i_column * B + o_column
        _write(p_row, b_sum * tl.cast(scale, ACC), o_row, o_column, channels, i_row, i_column, FOLDED)


@triton.jit(do_not_specialize=_SIZES)
def gram_sums_kernel(
    p_out, p_parts,
    channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7,
    pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7,
    offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7,
    scale_0: tl.float64, scale_1: tl.float64, scale_2: tl.float64, scale_3: tl.float64,
    scale_4: tl.float64, scale_5: tl.float64, scale_6: tl.float64, scale_7: tl.float64,
    programs, width, longest, parts,
    COUNT: tl.constexpr, FOLDED: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
    B: tl.constexpr, S: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """G of those maps that have parts: R rows and C columns of a tile a program."""
    i_program = tl.program_id(0)
    i_image = (i_program // programs).to(IDX)
    all_channels = (channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7)
    all_pixels = (pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7)
    CHUNKS: tl.constexpr = (B // R) * (B // C)
    i_map, i_own, tiles, splits, i_part = _find(
        i_program % programs, all_channels, all_pixels, longest, COUNT, B, CHUNKS
    )
    channels = _pick(i_map, all_channels, COUNT)
    offset = _pick(i_map, (offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7), COUNT)
    scale = _pick(i_map, (scale_0, scale_1, scale_2, scale_3, scale_4, scale_5, scale_6, scale_7), COUNT)

    i_tile, i_chunk = i_own // CHUNKS, i_own % CHUNKS
    i_row, i_column = _corner(i_tile)
    o_row = (i_chunk // (B // C)) * R + tl.arange(0, R).to(IDX)
    o_column = (i_chunk % (B // C)) * C + tl.arange(0, C).to(IDX)
    p_part = p_parts + (i_image * parts + i_part + i_tile) * (B * B)
    p_part += o_row[None, :, None] * B + o_column[None, None, :]
    o_split = tl.arange(0, S)
    b_sum = tl.zeros((R, C), ACC)
    for i_split in range(0, splits, S):
        m = (i_split + o_split < splits)[:, None, None]
        o_part = (i_split + o_split).to(IDX)[:, None, None] * tiles * (B * B)
        b_sum += tl.sum(tl.load(p_part + o_part, mask=m, other=0.0), axis=0)
    p_row = p_out + (i_image * width + offset)
    o_row, o_column = (i_row * B + o_row)[:, None], (i_column * B + o_column)[None, :]
    _write(p_row, b_sum * tl.cast(scale, ACC), o_row, o_column, channels, i_row, i_column, FOLDED)


@triton.jit
def _back(
    p_grad, p_x, p_gx, i_image, i_row, i_column, channels, pixels, scale,
    PIXELS: tl.constexpr, FOLDED: tl.constexpr, VECTOR: tl.constexpr, HALVES: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of scale S F; `p_grad` points at the map's own part of the image's row."""
    if PIXELS:
        channels = channels // VECTOR * VECTOR  # as in _product
        channel_stride, pixel_stride = 1, channels
    else:
        pixels = pixels // VECTOR * VECTOR
        channel_stride, pixel_stride = pixels, 1
    i_first = i_image * channels * pixels
    o_row = (i_row * BM + tl.arange(0, BM).to(IDX))[:, None]
    o_pixel = (i_column * BN + tl.arange(0, BN).to(IDX))[None, :]
    m_row, m_pixel = o_row < channels, o_pixel < pixels
    p_pixel = p_x + (i_first + o_pixel * pixel_stride)
    b_sum = tl.zeros((BM, BN), ACC)
    for i_channel in range(0, channels, BK):
        o_channel = i_channel + tl.arange(0, BK).to(IDX)
        o_other, m_other = o_channel[None, :], (o_channel < channels)[None, :]
        if FOLDED:
            o_less, o_more = tl.minimum(o_row, o_other), tl.maximum(o_row, o_other)
            o_from = o_less * channels - o_less * (o_less + 1) // 2 + o_more
            b_both = tl.load(p_grad + o_from, mask=m_row & m_other, other=0.0)
            b_both = tl.where(o_row == o_other, 2.0 * b_both, b_both)
        else:
            b_both = tl.load(p_grad + (o_row * channels + o_other), mask=m_row & m_other, other=0.0)
            b_both += tl.load(p_grad + (o_other * channels + o_row), mask=m_row & m_other, other=0.0)
        o_from, m_from = (o_channel * channel_stride)[:, None], (o_channel < channels)[:, None]
        b_x = tl.load(p_pixel + o_from, mask=m_from & m_pixel, other=0.0).to(ACC)
        if HALVES:
            b_high = (b_both.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # 10 bits, exactly
            b_sum = tl.dot(b_both - b_high, b_x, b_sum, input_precision=PRECISION, out_dtype=ACC)
            b_sum = tl.dot(b_high, b_x, b_sum, input_precision=PRECISION, out_dtype=ACC)
        else:
            b_sum = tl.dot(b_both, b_x, b_sum, input_precision=PRECISION, out_dtype=ACC)
    b_sum *= tl.cast(scale, ACC)
    o_out = i_first + o_row * channel_stride + o_pixel * pixel_stride
    tl.store(p_gx + o_out, b_sum.to(p_gx.dtype.element_ty), mask=m_row & m_pixel)


@triton.jit(do_not_specialize=_SIZES)
def gram_backward_kernel(
    p_grad, p_x_0, p_x_1, p_x_2, p_x_3, p_x_4, p_x_5, p_x_6, p_x_7,
    p_gx_0, p_gx_1, p_gx_2, p_gx_3, p_gx_4, p_gx_5, p_gx_6, p_gx_7,
    channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7,
    pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7,
    offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7,
    scale_0: tl.float64, scale_1: tl.float64, scale_2: tl.float64, scale_3: tl.float64,
    scale_4: tl.float64, scale_5: tl.float64, scale_6: tl.float64, scale_7: tl.float64,
    programs, width,
    COUNT: tl.constexpr, FORMS: tl.constexpr, FOLDED: tl.constexpr, VECTOR: tl.constexpr, HALVES: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Tiles of the gradients of all maps, each in the layout of its map."""
    i_program = tl.program_id(0)
    i_image = (i_program // programs).to(IDX)
    i_own = i_program % programs
    all_channels = (channels_0, channels_1, channels_2, channels_3, channels_4, channels_5, channels_6, channels_7)
    all_pixels = (pixels_0, pixels_1, pixels_2, pixels_3, pixels_4, pixels_5, pixels_6, pixels_7)
    i_map, before = 0, 0
    i_rest = i_own
    for i in tl.static_range(COUNT):
        m = i_own >= before  # the last map for which it holds has the program
        i_map = tl.where(m, i, i_map)
        i_rest = tl.where(m, i_own - before, i_rest)
        before += tl.cdiv(all_channels[i], BM) * tl.cdiv(all_pixels[i], BN)
    p_x = _pick(i_map, (p_x_0, p_x_1, p_x_2, p_x_3, p_x_4, p_x_5, p_x_6, p_x_7), COUNT)
    p_gx = _pick(i_map, (p_gx_0, p_gx_1, p_gx_2, p_gx_3, p_gx_4, p_gx_5, p_gx_6, p_gx_7), COUNT)
    channels = _pick(i_map, all_channels, COUNT)
    pixels = _pick(i_map, all_pixels, COUNT)
    offset = _pick(i_map, (offset_0, offset_1, offset_2, offset_3, offset_4, offset_5, offset_6, offset_7), COUNT)
    scale = _pick(i_map, (scale_0, scale_1, scale_2, scale_3, scale_4, scale_5, scale_6, scale_7), COUNT)

    # channels within pixels: what shares a column of F runs together
    rows = tl.cdiv(channels, BM)
    i_row, i_column = i_rest % rows, i_rest // rows
    p_own = p_grad + (i_image * width + offset)
    if FORMS == 0:
        _back(
            p_own, p_x, p_gx, i_image, i_row, i_column, channels, pixels, scale,
            False, FOLDED, VECTOR, HALVES, PRECISION, ACC, IDX, BM, BN, BK,
        )  # fmt: skip
    elif FORMS == (1 << COUNT) - 1:
        _back(
            p_own, p_x, p_gx, i_image, i_row, i_column, channels, pixels, scale,
            True, FOLDED, VECTOR, HALVES, PRECISION, ACC, IDX, BM, BN, BK,
        )  # fmt: skip
    else:
        if (tl.full((), FORMS, tl.int32) >> i_map) & 1:
            _back(
                p_own, p_x, p_gx, i_image, i_row, i_column, channels, pixels, scale,
                True, FOLDED, VECTOR, HALVES, PRECISION, ACC, IDX, BM, BN, BK,
            )  # fmt: skip
        else:
            _back(
                p_own, p_x, p_gx, i_image, i_row, i_column, channels, pixels, scale,
                False, FOLDED, VECTOR, HALVES, PRECISION, ACC, IDX, BM, BN, BK,
            )  # fmt: skip


class _Maps(NamedTuple):
    """Arguments of the maps of one launch, in the order that the kernels have."""

    maps: list[Tensor]
    sizes: tuple[tuple[int, int], ...]  # channels and pixels of each
    numbers: tuple[int | float, ...]  # channels, pixels and offset of each of `_MAPS`, then scales
    forms: int

    def vector(self) -> int:
        """Elements that are known to lie together in 16 bytes, wherever a row of a map begins."""
        lanes = 16 // self.maps[0].element_size()
        strides = [channels if self.forms >> i & 1 else pixels for i, (channels, pixels) in enumerate(self.sizes)]
        return 1 if any(stride % lanes for stride in strides) else lanes


def _launches(
    features: Sequence[Tensor],
    scales: Sequence[float],
    folded: bool,
    wanted: Sequence[bool],
    forms: Sequence[torch.memory_format],
) -> list[_Maps]:
    """The wanted maps, `_MAPS` of them a launch."""
    found, offset = [], 0
    for x, scale, want, form in zip(features, scales, wanted, forms, strict=True):
        channels = x.shape[1]
        if want:
            found.append(
                (x.contiguous(memory_format=form), channels, x.shape[2] * x.shape[3], offset, float(scale), form)
            )
        offset += _entries(channels, folded)
    launches = []
    for i in range(0, len(found), _MAPS):
        maps, channels, pixels, offsets, factors, layouts = zip(*found[i : i + _MAPS], strict=True)
        numbers = [value for each in (channels, pixels, offsets) for value in _padded(each, 0)]
        bits = sum((form != torch.contiguous_format) << i for i, form in enumerate(layouts))
        sizes = tuple(zip(channels, pixels, strict=True))
        launches.append(_Maps(list(maps), sizes, (*numbers, *_padded(factors, 0.0)), bits))
    return launches


def _padded(values: Sequence[Any], value: Any) -> list[Any]:
    """The values, as many as a kernel takes."""
    return [*values, *[value] * (_MAPS - len(values))]


def _entries(channels: int, folded: bool) -> int:
    """How many numbers a map has in a row."""
    return channels * (channels + 1) // 2 if folded else channels * channels


def _products(x: Tensor) -> str:
    """How products of x are made: a key of the tables of tiles; "tf32" where PyTorch lets its matrix products."""
    if x.dtype == torch.float64:
        return "float64"
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _fitted(size: int, largest: int) -> int:
    """The side of a tile along an axis of so many elements."""
    return min(largest, max(16, triton.next_power_of_2(size)))


class _Cut(NamedTuple):
    """How the work of gram_kernel is cut, of one image: its programs and parts, and programs that add up parts."""

    side: int  # of a tile
    longest: int  # pixels of a split
    programs: int
    parts: int
    sums: int


@lru_cache(maxsize=256)
def _cut(batch: int, sizes: tuple[tuple[int, int], ...], largest: int, depth: int) -> _Cut:
    side = _fitted(max(channels for channels, _ in sizes), largest)
    tiles = [n * (n + 1) // 2 for n in (triton.cdiv(channels, side) for channels, _ in sizes)]
    work = sum(n * pixels for n, (_, pixels) in zip(tiles, sizes, strict=True)) * batch
    longest = triton.cdiv(max(_PIXELS, triton.cdiv(work, _PROGRAMS)), depth) * depth
    splits = [triton.cdiv(pixels, longest) for _, pixels in sizes]
    programs = [n * m for n, m in zip(tiles, splits, strict=True)]
    chunks = (side // min(side, _SUM_ROWS)) * (side // min(side, _SUM_COLUMNS))
    several = [(n, count) for n, m, count in zip(tiles, splits, programs, strict=True) if m > 1]
    return _Cut(side, longest, sum(programs), sum(count for _, count in several), sum(n for n, _ in several) * chunks)


def gram(
    features: Sequence[Tensor], scales: Sequence[float], folded: bool, forms: Sequence[torch.memory_format]
) -> Tensor:
    """`anifast::gram`: a row per image. `forms` are the layouts of the maps."""
    first = features[0]
    batch = first.shape[0]
    acc, sums = accumulate(first)
    width = sum(_entries(x.shape[1], folded) for x in features)
    out = first.new_empty((batch, width), dtype=sums)
    if batch == 0:
        return out
    products = _products(first)
    tile = TILES[products]
    for maps in _launches(features, scales, folded, [True] * len(features), forms):
        cut = _cut(batch, maps.sizes, tile.rows, tile.depth)
        parts = out.new_empty((batch, cut.parts, cut.side, cut.side)) if cut.parts else None
        index = index_type(out, *maps.maps, *([] if parts is None else [parts]))
        count = len(maps.maps)
        with device(first):
            gram_kernel[(batch * cut.programs,)](
                *_padded(maps.maps, None), out, parts, *maps.numbers, cut.programs, width, cut.longest, cut.parts,
                COUNT=count, FORMS=maps.forms, FOLDED=folded, SPLIT=parts is not None, VECTOR=maps.vector(),
                PRECISION="tf32" if products == "tf32" else "ieee", WIDEN=not first.is_cuda, ACC=acc, IDX=index,
                B=cut.side, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            if parts is not None:
                gram_sums_kernel[(batch * cut.sums,)](
                    out, parts, *maps.numbers, cut.sums, width, cut.longest, cut.parts,
                    COUNT=count, FOLDED=folded, ACC=acc, IDX=index, B=cut.side, S=_SUM_SPLITS,
                    R=min(cut.side, _SUM_ROWS), C=min(cut.side, _SUM_COLUMNS),
                )  # fmt: skip
    return out


def gram_backward(
    grad: Tensor,
    features: Sequence[Tensor],
    scales: Sequence[float],
    folded: bool,
    wanted: Sequence[bool],
    forms: Sequence[torch.memory_format],
) -> list[Tensor]:
    """`anifast::gram_backward`: the gradient of each wanted map, in its layout, and else an empty tensor."""
    found = [
        torch.empty_like(x, memory_format=form) if want else x.new_empty(0)
        for x, want, form in zip(features, wanted, forms, strict=True)
    ]
    first = features[0]
    batch, width = grad.shape
    if batch == 0:
        return found
    grad = grad.contiguous()
    products = _products(first)
    tile = BACKWARD_TILES[products]
    rest = [gx for gx, want in zip(found, wanted, strict=True) if want]
    for maps in _launches(features, scales, folded, wanted, forms):
        count = len(maps.maps)
        gradients, rest = rest[:count], rest[count:]
        rows = _fitted(max(channels for channels, _ in maps.sizes), tile.rows)
        columns = _fitted(max(pixels for _, pixels in maps.sizes), tile.columns)
        programs = sum(triton.cdiv(n, rows) * triton.cdiv(m, columns) for n, m in maps.sizes)
        with device(first):
            gram_backward_kernel[(batch * programs,)](
                grad, *_padded(maps.maps, None), *_padded(gradients, None), *maps.numbers, programs, width,
                COUNT=count, FORMS=maps.forms, FOLDED=folded, VECTOR=maps.vector(), HALVES=products == "half",
                PRECISION="tf32" if products in ("tf32", "half") else "ieee", ACC=accumulate(first)[0],
                IDX=index_type(grad, *maps.maps), BM=rows, BN=columns, BK=tile.depth,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return found

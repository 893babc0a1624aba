"""Triton kernels of `lpips_layer`: the ops of anifast/ops/lpips_layer.py, which tells their contract.

A program works on some pixels of an image, in tiles [G, L]: G channels of L neighbouring pixels, or with PIXELS, where
channels lie together in memory, G pixels of L channels. AXIS is that of the channels, over which is summed.

lpips_layer_kernel needs the norms before it can tell the differences. A tile of all channels, up to `_CHANNELS`, is
HELD in registers between the two, so that each value is loaded once; of more channels there are several tiles, loaded
again, out of the cache where the norms' loads have just put them. The pixels' mean leaves as one number a program, and
a second, small reduction adds these up: sums are in an order that depends on the sizes alone.

lpips_layer_backward_kernel loads the numbers of its pixels once and walks over tiles of channels.

Products and sums are not fused: p a - q b with one of its products unrounded is not 0 where a and b are the same.

Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. IDX is the type of addresses: int32 where it reaches.
float32 sums, float64 for float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels._common import accumulate, contiguous, device, index_type
from torch import Tensor

# Channels that are held, at most.
_CHANNELS = 512
# Values of each map in a tile where they are held, and where not; what a thread holds of them, so that registers are
# left for 16 warps a multiprocessor. UNMEASURED: no GPU has timed these.
_HELD = 2048
_TILE = 1024
_EACH = 16
# Bytes that are read of memory together, which a tile has of each channel at least, where there are as many pixels; and
# values of the smallest tile.
_SECTOR = 32
_LEAST = 512
# Programs that fill a large GPU: fewer make tiles smaller, and walks shorter.
_PROGRAMS = 512
# Sizes that make no difference to the code: channels and pixels tell how wide a load may be.
_SIZES = ["images", "tiles"]
_WALK_SIZES = ["images", "tiles", "walks", "each"]


@triton.jit
def _pixels(i_tile, pixels, IDX: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr):
    """The pixels of tile `i_tile`, [1, L] or with PIXELS [G, 1], and their mask."""
    if PIXELS:
        o_pixel = i_tile * G + tl.arange(0, G).to(IDX)[:, None]
    else:
        o_pixel = i_tile * L + tl.arange(0, L).to(IDX)[None, :]
    return o_pixel, o_pixel < pixels


@triton.jit
def _elements(
    i_channel, o_pixel, m_pixel, channels, pixels,
    IDX: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Channels from `i_channel` on, their offsets at these pixels of an image, and masks of both."""
    if PIXELS:
        o_channel = i_channel + tl.arange(0, L).to(IDX)[None, :]
        o_element = o_pixel * channels + o_channel
    else:
        o_channel = i_channel + tl.arange(0, G).to(IDX)[:, None]
        o_element = o_channel * pixels + o_pixel
    m_channel = o_channel < channels
    return o_channel, o_element, m_channel, m_channel & m_pixel


@triton.jit
def _weights(p_weight, o_channel, m_channel, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    """The weights of channels, or 1."""
    if HAS_WEIGHT:
        b_weight = tl.load(p_weight + o_channel, mask=m_channel, other=0.0).to(ACC)
    else:
        b_weight = tl.full(o_channel.shape, 1.0, ACC)
    return b_weight


@triton.jit
def _factors(b_square, eps, EPS_INSIDE: tl.constexpr, ACC: tl.constexpr):
    """Of squared norms: p, and what a projection is multiplied with besides; both are 0 for a zero vector."""
    m_some = b_square > 0
    b_square = tl.where(m_some, b_square, 1.0)
    if EPS_INSIDE:
        b_factor = 1.0 / _root(b_square + eps, ACC)
        b_other = b_factor
    else:
        b_norm = _root(b_square, ACC)
        b_factor = 1.0 / (b_norm + eps)
        b_other = 1.0 / b_norm
    return tl.where(m_some, b_factor, 0.0), tl.where(m_some, b_other, 0.0)


@triton.jit
def _root(b_value, ACC: tl.constexpr):
    """The square root, rounded once: the quick one of float32 takes the smallest for 0."""
    return tl.sqrt(b_value) if ACC == tl.float64 else tl.sqrt_rn(b_value)


@triton.jit(do_not_specialize=_SIZES)
def lpips_layer_kernel(
    p_a, p_b, p_weight, p_out, p_stats, channels, pixels, images, tiles, eps: tl.float64,
    HAS_WEIGHT: tl.constexpr, EPS_INSIDE: tl.constexpr, MEAN: tl.constexpr, HELD: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The pixels' values, or with MEAN sums of them over tiles; `p_stats` is [4, images, pixels]: p, q, k and l."""
    AXIS: tl.constexpr = 1 if PIXELS else 0
    DEPTH: tl.constexpr = L if PIXELS else G
    i_program = tl.program_id(0)
    i_image = (i_program // tiles).to(IDX)
    o_pixel, m_pixel = _pixels(i_program % tiles, pixels, IDX, PIXELS, G, L)
    p_a += i_image * channels * pixels
    p_b += i_image * channels * pixels

    if HELD:
        o_channel, o_element, m_channel, m = _elements(0, o_pixel, m_pixel, channels, pixels, IDX, PIXELS, G, L)
        b_a = tl.load(p_a + o_element, mask=m, other=0.0).to(ACC)
        b_b = tl.load(p_b + o_element, mask=m, other=0.0).to(ACC)
        b_aa, b_bb = b_a * b_a, b_b * b_b
    else:
        b_aa, b_bb = tl.zeros((G, L), ACC), tl.zeros((G, L), ACC)
        for i_channel in range(0, channels, DEPTH):
            o_channel, o_element, m_channel, m = _elements(
                i_channel, o_pixel, m_pixel, channels, pixels, IDX, PIXELS, G, L
            )
            b_a = tl.load(p_a + o_element, mask=m, other=0.0).to(ACC)
            b_b = tl.load(p_b + o_element, mask=m, other=0.0).to(ACC)
            b_aa += b_a * b_a
            b_bb += b_b * b_b
    eps = tl.cast(eps, ACC)
    b_p, b_by_a = _factors(tl.sum(b_aa, axis=AXIS, keep_dims=True), eps, EPS_INSIDE, ACC)
    b_q, b_by_b = _factors(tl.sum(b_bb, axis=AXIS, keep_dims=True), eps, EPS_INSIDE, ACC)

    if HELD:
        b_difference = b_p * b_a - b_q * b_b
        b_weighted = _weights(p_weight, o_channel, m_channel, HAS_WEIGHT, ACC) * b_difference
        b_value, b_k, b_l = b_weighted * b_difference, b_weighted * b_a, b_weighted * b_b
    else:
        b_value, b_k, b_l = tl.zeros((G, L), ACC), tl.zeros((G, L), ACC), tl.zeros((G, L), ACC)
        for i_channel in range(0, channels, DEPTH):
            o_channel, o_element, m_channel, m = _elements(
                i_channel, o_pixel, m_pixel, channels, pixels, IDX, PIXELS, G, L
            )
            b_a = tl.load(p_a + o_element, mask=m, other=0.0).to(ACC)
            b_b = tl.load(p_b + o_element, mask=m, other=0.0).to(ACC)
            b_difference = b_p * b_a - b_q * b_b
            b_weighted = _weights(p_weight, o_channel, m_channel, HAS_WEIGHT, ACC) * b_difference
            b_value += b_weighted * b_difference
            b_k += b_weighted * b_a
            b_l += b_weighted * b_b
    b_value = tl.sum(b_value, axis=AXIS, keep_dims=True)
    p_stats += i_image * pixels
    plane = tl.cast(images, IDX) * pixels
    tl.store(p_stats + o_pixel, b_p, mask=m_pixel)
    tl.store(p_stats + plane + o_pixel, b_q, mask=m_pixel)
    # in this order, in which short vectors overflow nothing
    b_k = tl.sum(b_k, axis=AXIS, keep_dims=True) * b_by_a * b_p
    b_l = tl.sum(b_l, axis=AXIS, keep_dims=True) * b_by_b * b_q
    tl.store(p_stats + 2 * plane + o_pixel, b_k, mask=m_pixel)
    tl.store(p_stats + 3 * plane + o_pixel, b_l, mask=m_pixel)
    if MEAN:
        total = tl.sum(tl.sum(b_value, axis=1), axis=0)  # that of masked pixels is 0
        tl.store(p_out + i_program, total / tl.cast(pixels, ACC))
    else:
        tl.store(p_out + i_image * pixels + o_pixel, b_value, mask=m_pixel)


@triton.jit(do_not_specialize=_WALK_SIZES)
def lpips_layer_backward_kernel(
    p_grad, p_a, p_b, p_weight, p_stats, p_ga, p_gb, channels, pixels, images, tiles, walks, each,
    HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr, WANT_A: tl.constexpr, WANT_B: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The gradients of either map or both: for a tile's pixels `walks` programs, each over `each` tiles of channels."""
    i_program = tl.program_id(0)
    i_walk = i_program % walks
    i_program = i_program // walks
    i_image = (i_program // tiles).to(IDX)
    o_pixel, m_pixel = _pixels(i_program % tiles, pixels, IDX, PIXELS, G, L)
    p_stats += i_image * pixels
    plane = tl.cast(images, IDX) * pixels
    b_p = tl.load(p_stats + o_pixel, mask=m_pixel, other=0.0)
    b_q = tl.load(p_stats + plane + o_pixel, mask=m_pixel, other=0.0)
    if MEAN:
        b_grad = 2.0 * tl.load(p_grad + i_image).to(ACC) / tl.cast(pixels, ACC)
    else:
        b_grad = 2.0 * tl.load(p_grad + i_image * pixels + o_pixel, mask=m_pixel, other=0.0).to(ACC)
    if WANT_A:
        b_k = tl.load(p_stats + 2 * plane + o_pixel, mask=m_pixel, other=0.0)
        b_of_a = b_grad * b_p
    if WANT_B:
        b_l = tl.load(p_stats + 3 * plane + o_pixel, mask=m_pixel, other=0.0)
        b_of_b = -b_grad * b_q
    i_first = i_image * channels * pixels
    p_a, p_b = p_a + i_first, p_b + i_first
    if WANT_A:
        p_ga += i_first
    if WANT_B:
        p_gb += i_first
    DEPTH: tl.constexpr = L if PIXELS else G
    i_begin = i_walk * each * DEPTH
    for i_channel in range(i_begin, tl.minimum(i_begin + each * DEPTH, channels), DEPTH):
        o_channel, o_element, m_channel, m = _elements(i_channel, o_pixel, m_pixel, channels, pixels, IDX, PIXELS, G, L)
        b_a = tl.load(p_a + o_element, mask=m, other=0.0).to(ACC)
        b_b = tl.load(p_b + o_element, mask=m, other=0.0).to(ACC)
        b_weighted = _weights(p_weight, o_channel, m_channel, HAS_WEIGHT, ACC) * (b_p * b_a - b_q * b_b)
        if WANT_A:
            b_ga = b_of_a * (b_weighted - b_k * b_a)
            tl.store(p_ga + o_element, b_ga.to(p_ga.dtype.element_ty), mask=m)
        if WANT_B:
            b_gb = b_of_b * (b_weighted - b_l * b_b)
            tl.store(p_gb + o_element, b_gb.to(p_gb.dtype.element_ty), mask=m)


class _Plan(NamedTuple):
    """How the pixels of an image are cut: tiles, and each tile [G, L] with its warps."""

    tiles: int
    high: int
    across: int
    warps: int
    held: bool


def _plan(a: Tensor, last: bool) -> _Plan:
    """The cut of the forward kernel; `last`: channels lie together in memory."""
    batch, channels, rows, columns = a.shape
    pixels, depth = rows * columns, triton.next_power_of_2(channels)
    held = depth <= _CHANNELS
    if not held:
        depth = 32
    least = max(1 if last else _SECTOR // a.element_size(), _LEAST // depth)
    neighbours = min(max(least, (_HELD if held else _TILE) // depth), triton.next_power_of_2(pixels))
    while neighbours > least and batch * triton.cdiv(pixels, neighbours) < _PROGRAMS:
        neighbours //= 2
    warps = max(1, min(16, depth * neighbours // (32 * _EACH))) if held else 4
    high, across = (neighbours, depth) if last else (depth, neighbours)
    return _Plan(triton.cdiv(pixels, neighbours), high, across, warps, held)


class _Walk(NamedTuple):
    """How the backward kernel is cut: tiles of pixels, walks over channels for each, tiles of one; the tile [G, L]."""

    tiles: int
    walks: int
    each: int
    high: int
    across: int


def _walk(a: Tensor, last: bool) -> _Walk:
    """The cut of the backward kernel; `last`: channels lie together in memory."""
    batch, channels, rows, columns = a.shape
    pixels = rows * columns
    lanes, others = (channels, pixels) if last else (pixels, channels)
    across = min(_TILE // 4, triton.next_power_of_2(lanes))
    high = min(_TILE // across, triton.next_power_of_2(others))
    depth, wide = (across, high) if last else (high, across)
    tiles, steps = triton.cdiv(pixels, wide), triton.cdiv(channels, depth)
    each = triton.cdiv(steps, min(steps, max(1, triton.cdiv(2 * _PROGRAMS, batch * tiles))))
    return _Walk(tiles, triton.cdiv(steps, each), each, high, across)


def lpips_layer(
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    eps: float,
    eps_inside: bool,
    mean: bool,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`anifast::lpips_layer`: the distances, and p, q, k and l of each pixel. `form` is the layout of both maps."""
    batch, channels, rows, columns = a.shape
    pixels, last = rows * columns, form != torch.contiguous_format
    acc, sums = accumulate(a)
    stats = a.new_empty((4, batch, pixels), dtype=sums)
    shape = (batch, 1, 1, 1) if mean else (batch, 1, rows, columns)
    if batch == 0:
        return stats.new_empty(shape), stats
    plan = _plan(a, last)
    out = stats.new_empty((batch, plan.tiles) if mean else shape)
    with device(a):
        lpips_layer_kernel[(batch * plan.tiles,)](
            a.contiguous(memory_format=form), b.contiguous(memory_format=form), contiguous(weight), out, stats,
            channels, pixels, batch, plan.tiles, float(eps),
            HAS_WEIGHT=weight is not None, EPS_INSIDE=eps_inside, MEAN=mean, HELD=plan.held, PIXELS=last,
            ACC=acc, IDX=index_type(a, stats), G=plan.high, L=plan.across, num_warps=plan.warps,
            enable_fp_fusion=False,
        )  # fmt: skip
    if mean:
        out = (out.sum(1) if plan.tiles > 1 else out).view(shape)
    return out, stats


def lpips_layer_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    eps: float,
    eps_inside: bool,
    mean: bool,
    want_a: bool,
    want_b: bool,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`anifast::lpips_layer_backward`: the gradients of a and b, or an empty tensor. `form` is the layout of all maps.

    What eps does is in `stats`.
    """
    ga, gb = (
        torch.empty_like(x, memory_format=form) if want else x.new_empty(0) for x, want in ((a, want_a), (b, want_b))
    )
    batch, channels, rows, columns = a.shape
    if batch == 0 or not (want_a or want_b):
        return ga, gb
    pixels, last = rows * columns, form != torch.contiguous_format
    plan = _walk(a, last)
    with device(a):
        lpips_layer_backward_kernel[(batch * plan.tiles * plan.walks,)](
            grad.contiguous(), a.contiguous(memory_format=form), b.contiguous(memory_format=form),
            contiguous(weight), stats.contiguous(), ga, gb, channels, pixels, batch, plan.tiles, plan.walks, plan.each,
            HAS_WEIGHT=weight is not None, MEAN=mean, WANT_A=want_a, WANT_B=want_b, PIXELS=last,
            ACC=accumulate(a)[0], IDX=index_type(a, stats), G=plan.high, L=plan.across, enable_fp_fusion=False,
        )  # fmt: skip
    return ga, gb

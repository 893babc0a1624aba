"""Triton kernels of `domain_norm`: both ops of anifast/ops/domain_norm.py, which tells their contract.

Memory is cut into units of consecutive images: groups where statistics are made, and rows of gamma elsewhere. A program
keeps to a unit and walks over some of its pixels in tiles [G, L]: G channels of L neighbouring pixels of an image, or
with PIXELS, where channels lie together in memory, G pixels of L channels, through all images of the unit. AXIS is that
of the channels.

    domain_norm_moments_kernel    mean and variance of a group, of each of the parts that its pixels are cut into
    domain_norm_finish_kernel     those of all parts together, then m, s, r and d; for one part done by the kernel above
    domain_norm_kernel            the output
    domain_norm_backward_kernel   first the sums of h and h * (x - m), in parts; then, from these, the gradient of x
    domain_norm_totals_kernel     between the two: the gradients of gamma and beta, and a group's two means

Pixel norm needs all channels of a pixel. Up to `_CHANNELS` are one tile, HELD in registers; of more channels
domain_norm_pixels_kernel leaves 1 / sqrt(q) and mean_c(gp * p) of each pixel for the others to load.

The second pass over a map begins at its end, as the last that the first pass read is still in the cache. Variances are
made by Welford's updates in each element of a tile, and joined by the rule of Chan et al.: nothing cancels where the
mean is far larger than the deviation. No sum depends on the order in which programs run.

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

# Channels that are held, at most.
_CHANNELS = 512
# Threads of a program, where there is work for so many and at most; values that each has of a map: in backward, which
# has two maps and their sums, half as many, so that registers are left for 16 warps a multiprocessor. Channels of a
# tile that need not have all, where they lie together, and pixels, where these do. UNMEASURED: no GPU has timed these.
_THREADS, _MOST_THREADS = 128, 512
_VALUES, _VALUES_BACKWARD = 16, 8
_TOGETHER = 64
_LINE = 256
# Bytes that are read of memory together, which a tile has of each channel at least, where there are as many pixels.
_SECTOR = 32
# Programs that fill a large GPU; parts that sums are made in, at most; steps of a walk that one program does alone, as
# it is done sooner than another kernel begins.
_PROGRAMS = 2048
_PARTS = 1024
_ALONE = 8
# Sizes that make no difference to the code: channels and plane tell how wide a load may be.
_SIZES = ["units", "groups", "images", "row_steps", "steps", "each", "parts", "tiles"]
# What NORM is: no pixel norm, that of channels that are held, that of pixels whose numbers are loaded.
_NONE, _HELD, _LOADED = 0, 1, 2


@triton.jit
def _root(b_value, ACC: tl.constexpr):
    """The square root, rounded once: the quick one of float32 takes the smallest for 0."""
    return tl.sqrt(b_value) if ACC == tl.float64 else tl.sqrt_rn(b_value)


@triton.jit
def _channels(i_tile, channels, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr):
    """The channels of tile `i_tile`, [1, L] with PIXELS, else [G, 1], and their mask."""
    if PIXELS:
        o_channel = (i_tile * L + tl.arange(0, L))[None, :]
    else:
        o_channel = (i_tile * G + tl.arange(0, G))[:, None]
    return o_channel, o_channel < channels


@triton.jit
def _place(
    i_step, i_unit, o_channel, row_steps, images, channels, plane,
    IDX: tl.constexpr, PIXELS: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Of a step of a unit: offsets of the elements, numbers of the pixels in the batch, and the mask of pixels."""
    if PIXELS:
        pixels = tl.cast(images, IDX) * plane
        o_within = (i_step * G + tl.arange(0, G).to(IDX))[:, None]
        m_pixel = o_within < pixels
        o_pixel = i_unit * pixels + o_within
        o_element = o_pixel * channels + o_channel
    else:
        i_image = i_step // row_steps
        o_within = ((i_step - i_image * row_steps) * L + tl.arange(0, L).to(IDX))[None, :]
        m_pixel = o_within < plane
        i_image += i_unit * images
        o_pixel = i_image * plane + o_within
        o_element = (i_image * channels + o_channel) * plane + o_within
    return o_element, o_pixel, m_pixel


@triton.jit
def _walk(i_program, tiles, parts, each, steps, IDX: tl.constexpr):
    """Of a program: its tile of channels, its part, its unit, and the steps that are its."""
    i_tile = i_program % tiles
    i_part = i_program // tiles % parts
    i_unit = (i_program // tiles // parts).to(IDX)
    i_begin = i_part.to(IDX) * each
    return i_tile, i_part, i_unit, i_begin, tl.minimum(i_begin + each, steps)


@triton.jit
def _affine(
    p_gamma, p_beta, p_stats, i_unit, units, groups, o_channel, m_channel, channels, ACC: tl.constexpr
):  # fmt: skip
    """What v = (x - m) * factor + shift needs for channels of a row of gamma: m, factor and shift."""
    p_stats += i_unit // (units // groups) * channels
    stride = groups * channels
    b_mean = tl.load(p_stats + o_channel, mask=m_channel, other=0.0)
    b_std = tl.load(p_stats + stride + o_channel, mask=m_channel, other=1.0)
    b_r = tl.load(p_stats + 2 * stride + o_channel, mask=m_channel, other=0.0)
    b_d = tl.load(p_stats + 3 * stride + o_channel, mask=m_channel, other=0.0)
    b_gamma = tl.load(p_gamma + i_unit * channels + o_channel, mask=m_channel, other=0.0).to(ACC)
    b_beta = tl.load(p_beta + i_unit * channels + o_channel, mask=m_channel, other=0.0).to(ACC)
    return b_mean, b_gamma * (b_r / b_std), b_gamma * b_d + b_beta


@triton.jit
def _first(
    p_x, i_unit, o_channel, m_channel, images, channels, plane,
    ACC: tl.constexpr, IDX: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The first value of channels of a unit: near it there is more room for digits than near 0."""
    o_element = i_unit * images * channels * plane + (o_channel if PIXELS else o_channel.to(IDX) * plane)
    return tl.load(p_x + o_element, mask=m_channel, other=0.0).to(ACC)


@triton.jit
def _join(b_count, b_mean, b_square, AXIS: tl.constexpr):
    """Count, mean and sum of squares around it of values known in parts, which AXIS goes through."""
    b_total = tl.sum(b_count, axis=AXIS, keep_dims=True)
    b_share = b_count / tl.maximum(b_total, 1.0)
    b_joined = tl.sum(b_mean * b_share, axis=AXIS, keep_dims=True)
    b_joined += tl.sum((b_mean - b_joined) * b_share, axis=AXIS, keep_dims=True)  # what the first sum's rounding left
    b_away = b_mean - b_joined
    return b_total, b_joined, tl.sum(b_square + b_count * b_away * b_away, axis=AXIS, keep_dims=True)


@triton.jit
def _finish(
    b_mean, b_std, p_stats, p_mean_memory, p_std_memory, p_weights, p_limits, i_group, groups, channels,
    o_channel, m_channel, HAS_RENORM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write m, s, r and d of channels of a group. Comparisons let NaN through."""
    o_stat = i_group * channels + o_channel
    if HAS_RENORM:
        mean_weight, std_weight = tl.load(p_weights + 2 * i_group), tl.load(p_weights + 2 * i_group + 1)
        b_usual_mean = tl.load(p_mean_memory + o_stat, mask=m_channel, other=0.0) + (1.0 - mean_weight) * b_mean
        b_usual_std = tl.load(p_std_memory + o_stat, mask=m_channel, other=1.0) + (1.0 - std_weight) * b_std
        least, most, furthest = tl.load(p_limits), tl.load(p_limits + 1), tl.load(p_limits + 2)
        b_r = b_std / b_usual_std
        b_r = tl.where(b_r < least, least, b_r)
        b_r = tl.where(b_r > most, most, b_r)
        b_d = (b_mean - b_usual_mean) / b_usual_std
        b_d = tl.where(b_d < -furthest, -furthest, b_d)
        b_d = tl.where(b_d > furthest, furthest, b_d)
    else:
        b_r, b_d = tl.full(b_mean.shape, 1.0, ACC), tl.zeros(b_mean.shape, ACC)
    stride = groups * channels
    tl.store(p_stats + o_stat, b_mean, mask=m_channel)
    tl.store(p_stats + stride + o_stat, b_std, mask=m_channel)
    tl.store(p_stats + 2 * stride + o_stat, b_r, mask=m_channel)
    tl.store(p_stats + 3 * stride + o_stat, b_d, mask=m_channel)


@triton.jit(do_not_specialize=_SIZES)
def domain_norm_moments_kernel(
    p_x, p_moments, p_stats, p_mean_memory, p_std_memory, p_weights, p_limits,
    units, images, channels, plane, row_steps, steps, each, parts, tiles, eps: tl.float64,
    ALONE: tl.constexpr, HAS_RENORM: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of squares of a part of a group, [3, groups, parts, channels]; ALONE, m, s, r and d.

    The mean is that of what x is away from the group's first value.
    """
    AXIS: tl.constexpr = 0 if PIXELS else 1
    i_tile, i_part, i_unit, i_begin, i_end = _walk(tl.program_id(0), tiles, parts, each, steps, IDX)
    o_channel, m_channel = _channels(i_tile, channels, PIXELS, G, L)
    b_first = _first(p_x, i_unit, o_channel, m_channel, images, channels, plane, ACC, IDX, PIXELS)
    b_count = tl.zeros((G, 1) if PIXELS else (1, L), ACC)
    b_mean = tl.zeros((G, L), ACC)
    b_square = tl.zeros((G, L), ACC)
    for i_step in range(i_begin, i_end):
        o_element, o_pixel, m_pixel = _place(
            i_step, i_unit, o_channel, row_steps, images, channels, plane, IDX, PIXELS, G, L
        )
        b_x = tl.load(p_x + o_element, mask=m_pixel & m_channel, other=0.0).to(ACC) - b_first
        b_count += tl.where(m_pixel, 1.0, 0.0)
        b_share = 1.0 / tl.maximum(b_count, 1.0)
        b_delta = b_x - b_mean
        b_mean += b_delta * tl.where(m_pixel, b_share, 0.0)
        b_square += b_delta * b_delta * tl.where(m_pixel, 1.0 - b_share, 0.0)
    b_count, b_mean, b_square = _join(b_count, b_mean, b_square, AXIS)
    if ALONE:
        b_std = _root(b_square / b_count + tl.cast(eps, ACC), ACC)
        _finish(
            b_first + b_mean, b_std, p_stats, p_mean_memory, p_std_memory, p_weights, p_limits, i_unit, units, channels,
            o_channel, m_channel, HAS_RENORM, ACC,
        )  # fmt: skip
    else:
        p_moments += (i_unit * parts + i_part) * channels + o_channel
        stride = units * parts * channels
        tl.store(p_moments, tl.broadcast_to(b_count, b_mean.shape), mask=m_channel)
        tl.store(p_moments + stride, b_mean, mask=m_channel)
        tl.store(p_moments + 2 * stride, b_square, mask=m_channel)


@triton.jit(do_not_specialize=["groups", "images", "parts"])
def domain_norm_finish_kernel(
    p_x, p_moments, p_mean, p_std, p_stats, p_mean_memory, p_std_memory, p_weights, p_limits,
    groups, images, channels, plane, parts, eps: tl.float64,
    GIVEN: tl.constexpr, HAS_RENORM: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """m, s, r and d of a group, from its parts (G at least) or from a mean and a deviation that are GIVEN."""
    i_group = tl.program_id(0)
    o_channel, m_channel = _channels(tl.program_id(1), channels, True, G, L)
    if GIVEN:
        b_mean = tl.load(p_mean + i_group * channels + o_channel, mask=m_channel, other=0.0)
        b_std = tl.load(p_std + i_group * channels + o_channel, mask=m_channel, other=1.0)
    else:
        o_part = tl.arange(0, G)[:, None]
        m = (o_part < parts) & m_channel
        p_moments += (i_group * parts + o_part) * channels + o_channel
        stride = groups * parts * channels
        b_count = tl.load(p_moments, mask=m, other=0.0)
        b_mean = tl.load(p_moments + stride, mask=m, other=0.0)
        b_square = tl.load(p_moments + 2 * stride, mask=m, other=0.0)
        b_count, b_mean, b_square = _join(b_count, b_mean, b_square, 0)
        b_mean += _first(p_x, i_group.to(IDX), o_channel, m_channel, images, channels, plane, ACC, IDX, PIXELS)
        b_std = _root(b_square / tl.maximum(b_count, 1.0) + tl.cast(eps, ACC), ACC)
    _finish(
        b_mean, b_std, p_stats, p_mean_memory, p_std_memory, p_weights, p_limits, i_group, groups, channels,
        o_channel, m_channel, HAS_RENORM, ACC,
    )  # fmt: skip


@triton.jit
def _activated(b_x, b_mean, b_factor, b_shift, slope):
    """Values behind the activation, and its derivative."""
    b_value = (b_x - b_mean) * b_factor + b_shift
    b_slope = tl.where(b_value > 0, 1.0, slope)
    return b_value * b_slope, b_slope


@triton.jit(do_not_specialize=_SIZES)
def domain_norm_pixels_kernel(
    p_grad, p_x, p_gamma, p_beta, p_stats, p_pixels,
    units, groups, images, channels, plane, row_steps, steps, each, parts, tiles,
    slope: tl.float64, pixel_eps: tl.float64,
    BACKWARD: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """1 / sqrt(q) of each pixel and, BACKWARD, mean_c(gp * p) behind them, over all tiles of channels."""
    AXIS: tl.constexpr = 1 if PIXELS else 0
    slope, pixel_eps = tl.cast(slope, ACC), tl.cast(pixel_eps, ACC)
    depth = tl.cast(channels, ACC)
    i_none, i_part, i_unit, i_begin, i_end = _walk(tl.program_id(0), 1, parts, each, steps, IDX)
    for i_step in range(i_begin, i_end):
        o_first, o_pixel, m_pixel = _place(i_step, i_unit, 0, row_steps, images, channels, plane, IDX, PIXELS, G, L)
        b_squares = tl.zeros((G, L), ACC)
        b_products = tl.zeros((G, L), ACC)
        for i_tile in range(0, tiles):
            o_channel, m_channel = _channels(i_tile, channels, PIXELS, G, L)
            b_mean, b_factor, b_shift = _affine(
                p_gamma, p_beta, p_stats, i_unit, units, groups, o_channel, m_channel, channels, ACC
            )
            o_element = o_first + (o_channel if PIXELS else o_channel.to(IDX) * plane)
            m = m_pixel & m_channel
            b_x = tl.load(p_x + o_element, mask=m, other=0.0).to(ACC)
            b_value, b_slope = _activated(b_x, b_mean, b_factor, b_shift, slope)
            b_squares += b_value * b_value
            if BACKWARD:
                b_products += b_value * tl.load(p_grad + o_element, mask=m, other=0.0).to(ACC)
        b_inverse = 1.0 / _root(tl.sum(b_squares, axis=AXIS, keep_dims=True) / depth + pixel_eps, ACC)
        tl.store(p_pixels + o_pixel, b_inverse, mask=m_pixel)
        if BACKWARD:
            b_along = tl.sum(b_products, axis=AXIS, keep_dims=True) * b_inverse / depth
            tl.store(p_pixels + tl.cast(units, IDX) * images * plane + o_pixel, b_along, mask=m_pixel)


@triton.jit(do_not_specialize=_SIZES)
def domain_norm_kernel(
    p_x, p_gamma, p_beta, p_stats, p_pixels, p_out,
    units, groups, images, channels, plane, row_steps, steps, each, parts, tiles,
    slope: tl.float64, pixel_eps: tl.float64,
    NORM: tl.constexpr, PIXELS: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The output."""
    AXIS: tl.constexpr = 1 if PIXELS else 0
    slope, pixel_eps = tl.cast(slope, ACC), tl.cast(pixel_eps, ACC)
    i_program = tl.num_programs(0) - 1 - tl.program_id(0)
    i_tile, i_part, i_unit, i_begin, i_end = _walk(i_program, tiles, parts, each, steps, IDX)
    o_channel, m_channel = _channels(i_tile, channels, PIXELS, G, L)
    b_mean, b_factor, b_shift = _affine(
        p_gamma, p_beta, p_stats, i_unit, units, groups, o_channel, m_channel, channels, ACC
    )
    for i_step in range(i_begin, i_end):
        o_element, o_pixel, m_pixel = _place(
            i_step, i_unit, o_channel, row_steps, images, channels, plane, IDX, PIXELS, G, L
        )
        m = m_pixel & m_channel
        b_x = tl.load(p_x + o_element, mask=m, other=0.0).to(ACC)
        b_value, b_slope = _activated(b_x, b_mean, b_factor, b_shift, slope)
        if NORM == 1:
            b_square = tl.sum(b_value * b_value, axis=AXIS, keep_dims=True) / tl.cast(channels, ACC)
            b_value *= 1.0 / _root(b_square + pixel_eps, ACC)
        if NORM == 2:
            b_value *= tl.load(p_pixels + o_pixel, mask=m_pixel, other=0.0)
        tl.store(p_out + o_element, b_value.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=_SIZES)
def domain_norm_backward_kernel(
    p_grad, p_x, p_gamma, p_beta, p_stats, p_pixels, p_means, p_gx, p_sums,
    units, groups, images, channels, plane, row_steps, steps, each, parts, tiles,
    slope: tl.float64, pixel_eps: tl.float64,
    NORM: tl.constexpr, WANT_X: tl.constexpr, WANT_SUMS: tl.constexpr, FIXED: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and sums [2, units, parts, channels] of h and h * (x - m).

    `p_means` is [2, groups, channels]: r / s * mean(k), and r / s**2 * mean(k * xhat); with FIXED they are not read.
    """
    AXIS: tl.constexpr = 1 if PIXELS else 0
    slope, pixel_eps = tl.cast(slope, ACC), tl.cast(pixel_eps, ACC)
    i_program = tl.program_id(0)
    if WANT_X:
        i_program = tl.num_programs(0) - 1 - i_program
    i_tile, i_part, i_unit, i_begin, i_end = _walk(i_program, tiles, parts, each, steps, IDX)
    o_channel, m_channel = _channels(i_tile, channels, PIXELS, G, L)
    b_mean, b_factor, b_shift = _affine(
        p_gamma, p_beta, p_stats, i_unit, units, groups, o_channel, m_channel, channels, ACC
    )
    if WANT_X and not FIXED:
        p_means += i_unit // (units // groups) * channels
        b_even = tl.load(p_means + o_channel, mask=m_channel, other=0.0)
        b_along = tl.load(p_means + groups * channels + o_channel, mask=m_channel, other=0.0)
    if WANT_SUMS:
        b_of_shift = tl.zeros((G, L), ACC)
        b_of_factor = tl.zeros((G, L), ACC)
    for i_step in range(i_begin, i_end):
        o_element, o_pixel, m_pixel = _place(
            i_step, i_unit, o_channel, row_steps, images, channels, plane, IDX, PIXELS, G, L
        )
        m = m_pixel & m_channel
        b_x = tl.load(p_x + o_element, mask=m, other=0.0).to(ACC)
        b_grad = tl.load(p_grad + o_element, mask=m, other=0.0).to(ACC)
        b_value, b_slope = _activated(b_x, b_mean, b_factor, b_shift, slope)
        if NORM == 1:
            depth = tl.cast(channels, ACC)
            b_square = tl.sum(b_value * b_value, axis=AXIS, keep_dims=True) / depth
            b_inverse = 1.0 / _root(b_square + pixel_eps, ACC)
            b_value *= b_inverse
            b_common = tl.sum(b_grad * b_value, axis=AXIS, keep_dims=True) / depth
            b_grad = (b_grad - b_value * b_common) * b_inverse
        if NORM == 2:
            b_inverse = tl.load(p_pixels + o_pixel, mask=m_pixel, other=0.0)
            pixels = tl.cast(units, IDX) * images * plane
            b_common = tl.load(p_pixels + pixels + o_pixel, mask=m_pixel, other=0.0)
            b_grad = (b_grad - b_value * b_inverse * b_common) * b_inverse
        b_grad *= b_slope
        if WANT_SUMS:
            b_inner = tl.where(m, b_grad, 0.0)  # a pixel that is not there may have no square at all
            b_of_shift += b_inner
            b_of_factor += b_inner * (b_x - b_mean)
        if WANT_X:
            b_gx = b_factor * b_grad
            if not FIXED:
                b_gx -= b_even + (b_x - b_mean) * b_along
            tl.store(p_gx + o_element, b_gx.to(p_gx.dtype.element_ty), mask=m)
    if WANT_SUMS:
        p_sums += (i_unit * parts + i_part) * channels + o_channel
        stride = units * parts * channels
        tl.store(p_sums, tl.sum(b_of_shift, axis=1 - AXIS, keep_dims=True), mask=m_channel)
        tl.store(p_sums + stride, tl.sum(b_of_factor, axis=1 - AXIS, keep_dims=True), mask=m_channel)


@triton.jit(do_not_specialize=["units", "groups", "parts"])
def domain_norm_totals_kernel(
    p_sums, p_gamma, p_stats, p_means, p_ggamma, p_gbeta, units, groups, channels, parts, count: tl.float64,
    WANT_MEANS: tl.constexpr, WANT_GAMMA: tl.constexpr, WANT_BETA: tl.constexpr,
    ACC: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Of a group, from the sums in parts (G at least): gradients of its rows of gamma and beta, and its two means.

    `count` are the images' pixels in it.
    """
    i_group = tl.program_id(0)
    o_channel, m_channel = _channels(tl.program_id(1), channels, True, G, L)
    stride = groups * channels
    p_stats += i_group * channels + o_channel
    b_std = tl.load(p_stats + stride, mask=m_channel, other=1.0)
    b_r = tl.load(p_stats + 2 * stride, mask=m_channel, other=0.0)
    b_d = tl.load(p_stats + 3 * stride, mask=m_channel, other=0.0)
    o_part = tl.arange(0, G)[:, None]
    m = (o_part < parts) & m_channel
    b_even = tl.zeros((1, L), ACC)
    b_along = tl.zeros((1, L), ACC)
    each = units // groups
    for i_row in range(i_group * each, i_group * each + each):
        p_row = p_sums + (i_row * parts + o_part) * channels + o_channel
        b_of_shift = tl.sum(tl.load(p_row, mask=m, other=0.0), axis=0, keep_dims=True)
        b_of_factor = tl.load(p_row + units * parts * channels, mask=m, other=0.0)
        b_of_factor = tl.sum(b_of_factor, axis=0, keep_dims=True) / b_std
        o_row = i_row * channels + o_channel
        if WANT_GAMMA:
            tl.store(p_ggamma + o_row, b_r * b_of_factor + b_d * b_of_shift, mask=m_channel)
        if WANT_BETA:
            tl.store(p_gbeta + o_row, b_of_shift, mask=m_channel)
        if WANT_MEANS:
            b_gamma = tl.load(p_gamma + o_row, mask=m_channel, other=0.0).to(ACC)
            b_even += b_gamma * b_of_shift
            b_along += b_gamma * b_of_factor
    if WANT_MEANS:
        b_factor = b_r / b_std / tl.cast(count, ACC)
        p_means += i_group * channels + o_channel
        tl.store(p_means, b_even * b_factor, mask=m_channel)
        tl.store(p_means + stride, b_along * b_factor / b_std, mask=m_channel)


class _Plan(NamedTuple):
    """How units are cut, by their sizes alone: tiles of channels, parts of `each` steps; the tile [G, L], its warps."""

    tiles: int
    row_steps: int
    steps: int
    each: int
    parts: int
    high: int
    across: int
    warps: int


def _plan(
    units: int, images: int, channels: int, plane: int, pixels: bool, held: bool, least: int, values: int, most: int
) -> _Plan:
    """The cut of maps into units of so many images, and of these into parts.

    Args:
        units: groups, or rows of gamma.
        images: of a unit.
        channels: of the maps.
        plane: pixels of an image.
        pixels: whether channels lie together.
        held: whether a tile has all channels.
        least: pixels of a tile that shall lie together, where channels do not.
        values: of each map, that a thread has.
        most: parts, at most.
    """
    depth, tile = triton.next_power_of_2(channels), _THREADS * values
    there = triton.next_power_of_2(images * plane if pixels else plane)
    if held:
        neighbours = max(1, tile // depth)
        if not pixels:
            neighbours = max(neighbours, min(least, _MOST_THREADS * values // depth))
        neighbours = min(there, neighbours)
    elif pixels:
        depth = min(depth, _TOGETHER)
        neighbours = min(there, tile // depth)
    else:
        neighbours = min(there, _LINE)
        depth = min(depth, tile // neighbours)
    tiles, row_steps = triton.cdiv(channels, depth), triton.cdiv(plane, neighbours)
    steps = triton.cdiv(images * plane, neighbours) if pixels else images * row_steps
    each = triton.cdiv(steps, min(most, max(1, _PROGRAMS // (units * tiles))))
    high, across = (neighbours, depth) if pixels else (depth, neighbours)
    return _Plan(tiles, row_steps, steps, each, triton.cdiv(steps, each), high, across, _warps(high * across, values))


def _warps(size: int, values: int) -> int:
    """Warps for a tile of that size, of which a thread has so many values."""
    return max(1, min(_MOST_THREADS, size // values) // 32)


def _block(parts: int, channels: int) -> tuple[int, int, int]:
    """The block [parts, channels] in which parts are added up, and its warps."""
    high = triton.next_power_of_2(parts)
    across = min(triton.next_power_of_2(channels), max(8, min(32, _THREADS * _VALUES // high)))
    return high, across, _warps(high * across, _VALUES)


class _Maps:
    """What the launches of a call share: sizes, layout and numbers of maps and their rows of gamma."""

    def __init__(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        groups: int,
        slope: float,
        pixel_norm: bool,
        pixel_eps: float,
        form: torch.memory_format,
    ) -> None:
        self.x, self.gamma, self.beta = x.contiguous(memory_format=form), gamma.contiguous(), beta.contiguous()
        self.images, self.channels = x.shape[:2]
        self.plane = math.prod(x.shape[2:])
        self.groups, self.rows = groups, gamma.shape[0]
        self.slope, self.pixel_eps = float(slope), float(pixel_eps)
        self.pixels = form != torch.contiguous_format or self.plane == 1
        self.acc, self.sums = accumulate(x)
        self.norm = _NONE if not pixel_norm else _HELD if self.channels <= _CHANNELS else _LOADED
        self.types = {"ACC": self.acc, "IDX": index_type(x), "PIXELS": self.pixels}

    def plan(self, units: int, held: bool, values: int = _VALUES, most: int = _PROGRAMS) -> _Plan:
        """The cut into so many units."""
        images, least = self.images // units, _SECTOR // self.x.element_size()
        return _plan(units, images, self.channels, self.plane, self.pixels, held, least, values, most)

    def sizes(self, plan: _Plan) -> tuple[int, ...]:
        """The sizes that kernels over rows of gamma ask for, in their order."""
        unit = (self.rows, self.groups, self.images // self.rows, self.channels, self.plane)
        return (*unit, *plan[1:5], plan.tiles)

    def of_pixels(self, stats: Tensor, grad: Tensor | None) -> Tensor | None:
        """The pixels' numbers where these are loaded: [1 or, with a gradient, 2, pixels]."""
        if self.norm != _LOADED:
            return None
        found = stats.new_empty((1 if grad is None else 2, self.images * self.plane))
        plan = self.plan(self.rows, False)
        domain_norm_pixels_kernel[(self.rows * plan.parts,)](
            grad, self.x, self.gamma, self.beta, stats, found, *self.sizes(plan), self.slope, self.pixel_eps,
            BACKWARD=grad is not None, G=plan.high, L=plan.across, num_warps=plan.warps, **self.types,
        )  # fmt: skip
        return found


def _statistics(
    maps: _Maps, renorm: Sequence[Tensor | None], mean: Tensor | None, std: Tensor | None, eps: float
) -> Tensor:
    """What the contract calls stats, [4, groups, channels]: m, s, r and d of each group."""
    groups, channels = maps.groups, maps.channels
    stats = maps.x.new_empty((4, groups, channels), dtype=maps.sums)
    parts, moments = 1, None
    has_renorm = renorm[0] is not None
    if mean is None and maps.images * maps.plane == 0:
        mean, std = torch.zeros_like(stats[0]), torch.full_like(stats[0], math.sqrt(eps))
    if mean is None:
        plan = maps.plan(groups, False, most=_PARTS)
        if plan.steps <= _ALONE:
            plan = plan._replace(each=plan.steps, parts=1)
        parts = plan.parts
        if parts > 1:
            moments = stats.new_empty((3, groups, parts, channels))
        domain_norm_moments_kernel[(groups * parts * plan.tiles,)](
            maps.x, moments, stats, *renorm, groups, maps.images // groups, channels, maps.plane,
            *plan[1:5], plan.tiles, float(eps), ALONE=parts == 1, HAS_RENORM=has_renorm,
            G=plan.high, L=plan.across, num_warps=plan.warps, **maps.types,
        )  # fmt: skip
        if parts == 1:
            return stats
    high, across, warps = _block(parts, channels)
    domain_norm_finish_kernel[(groups, triton.cdiv(channels, across))](
        maps.x, moments, contiguous(mean), contiguous(std), stats, *renorm, groups, maps.images // groups, channels,
        maps.plane, parts, float(eps), GIVEN=mean is not None, HAS_RENORM=has_renorm,
        G=high, L=across, num_warps=warps, **maps.types,
    )  # fmt: skip
    return stats


def domain_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    mean_memory: Tensor | None,
    std_memory: Tensor | None,
    weights: Tensor | None,
    limits: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    slope: float,
    pixel_norm: bool,
    eps: float,
    pixel_eps: float,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`anifast::domain_norm`: the output, and m, s, r and d of each group. `form` is the layout of all maps."""
    maps = _Maps(x, gamma, beta, groups, slope, pixel_norm, pixel_eps, form)
    out = torch.empty_like(x, memory_format=form)
    if maps.channels == 0:
        return out, out.new_empty((4, groups, 0), dtype=maps.sums)
    with device(x):
        renorm = [contiguous(value) for value in (mean_memory, std_memory, weights, limits)]
        stats = _statistics(maps, renorm, mean, std, eps)
        if x.numel() == 0:
            return out, stats
        plan = maps.plan(maps.rows, maps.norm == _HELD)
        domain_norm_kernel[(maps.rows * plan.parts * plan.tiles,)](
            maps.x, maps.gamma, maps.beta, stats, maps.of_pixels(stats, None), out, *maps.sizes(plan),
            maps.slope, maps.pixel_eps, NORM=maps.norm, G=plan.high, L=plan.across, num_warps=plan.warps, **maps.types,
        )  # fmt: skip
    return out, stats


def domain_norm_backward(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    stats: Tensor,
    fixed: bool,
    slope: float,
    pixel_norm: bool,
    pixel_eps: float,
    wanted: Sequence[bool],
    form: torch.memory_format,
) -> tuple[Tensor, Tensor, Tensor]:
    """`anifast::domain_norm_backward`: gradients of x, gamma and beta, an empty tensor for each that isn't `wanted`."""
    want_x, *want_sums = wanted
    maps = _Maps(x, gamma, beta, stats.shape[1], slope, pixel_norm, pixel_eps, form)
    gx = torch.empty_like(x, memory_format=form) if want_x else x.new_empty(0)
    ggamma, gbeta = (x.new_empty(gamma.shape if want else 0, dtype=maps.sums) for want in want_sums)
    if x.numel() == 0:
        return gx, ggamma.zero_(), gbeta.zero_()
    if not any(wanted):
        return gx, ggamma, gbeta
    grad, stats = grad.contiguous(memory_format=form), stats.contiguous()
    need_means = want_x and not fixed

    with device(x):
        of_pixels = maps.of_pixels(stats, grad)

        def walk(plan: _Plan, means: Tensor | None, sums: Tensor | None, with_x: bool) -> None:
            domain_norm_backward_kernel[(maps.rows * plan.parts * plan.tiles,)](
                grad, maps.x, maps.gamma, maps.beta, stats, of_pixels, means, gx, sums, *maps.sizes(plan),
                maps.slope, maps.pixel_eps, NORM=maps.norm, WANT_X=with_x, WANT_SUMS=sums is not None, FIXED=fixed,
                G=plan.high, L=plan.across, num_warps=plan.warps, **maps.types,
            )  # fmt: skip

        held, means = maps.norm == _HELD, None
        if need_means or any(want_sums):
            plan = maps.plan(maps.rows, held, _VALUES_BACKWARD, _PARTS)
            sums = stats.new_empty((2, maps.rows, plan.parts, maps.channels))
            walk(plan, None, sums, want_x and fixed)  # the gradient of x needs no sums where statistics are fixed
            means = torch.empty_like(stats[:2]) if need_means else None
            high, across, warps = _block(plan.parts, maps.channels)
            domain_norm_totals_kernel[(maps.groups, triton.cdiv(maps.channels, across))](
                sums, maps.gamma, stats, means, ggamma, gbeta, maps.rows, maps.groups, maps.channels, plan.parts,
                maps.images // maps.groups * maps.plane, WANT_MEANS=need_means, WANT_GAMMA=want_sums[0],
                WANT_BETA=want_sums[1], ACC=maps.acc, G=high, L=across, num_warps=warps,
            )  # fmt: skip
            want_x = need_means
        if want_x:
            walk(maps.plan(maps.rows, held, _VALUES_BACKWARD), means, None, True)
    return gx, ggamma, gbeta

"""Triton kernels of `modulated_conv2d`: the ops of anifast/ops/modulated_conv2d.py, which tells their contract.

modulated_conv2d_kernel is a convolution as one matrix product that is never laid out (implicit GEMM): M are the pixels
of the output, N its channels, K the channels of x under every tap. A program makes a tile [BM, BN] of it in steps of BK
channels under one tap, taps innermost, so that what a pixel holds comes from the caches for all taps but one. x lies
with its channels last, the weight as [N, taps, channels of x], so both tiles are read in vectors along K, and programs
of the same pixels run together. The style multiplies the tile of x before the product, in the type of sums, and what
follows the product is done where its sums are. Three forms,

    plain       out[y] = sum over t of w[t] x[y * STRIDE + t - PAD], zeros outside; STRIDE 2 is the adjoint of
    transposed  out[2 y + t] += w[t] x[y], of 3 x 3 taps: phase (r_y, r_x) of the output, r its index modulo 2, is a
                plain convolution of 2 taps along an axis where r is 0 and of 1 where it is 1, all phases in one launch.

In the gradient of x the factor behind the product is the style, and the sums x * product, whose total is the gradient
of the style, leave the program as one number a tile and channel. A tile lies within one sample, where a sample has as
many pixels; tiles go across samples (ACROSS) where not, and then the sums are a pass.

modulated_conv2d_epilogue_grad_kernel and modulated_conv2d_style_grad_kernel are the passes: each map is read once, sums
are kept per element of a tile [G, L] that walks over pixels, and leave as one number a channel and walk.

All these numbers are summed by a second, small reduction: sums are in an order that depends on the sizes alone.
Prefixes: i_ index, o_ offsets, m_ mask, b_ block of values. IDX is the type of addresses: int32 where it reaches.
float32 sums, float64 for float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from anifast.kernels import _common
from anifast.kernels._common import accumulate, activate, contiguous, device, index_type
from torch import Tensor


class _Tile(NamedTuple):
    """How the product is cut: pixels, channels of the output, channels of a step; warps, and steps read ahead."""

    pixels: int
    channels: int
    depth: int
    warps: int
    stages: int


# (how factors are multiplied, kind of layer) -> tile, which `_tile` takes. UNMEASURED: no GPU has timed these. They are
# large tiles that compile without local memory for sm_80, sm_90 and sm_100; a benchmark of the op is to settle them.
TILES = {
    ("half", "wide"): _Tile(128, 256, 64, 8, 4),
    ("half", "middle"): _Tile(128, 128, 64, 8, 4),
    ("half", "narrow"): _Tile(128, 64, 32, 4, 4),
    ("half", "image"): _Tile(128, 16, 64, 4, 4),
    ("half", "small"): _Tile(64, 64, 64, 4, 3),
    ("tf32", "wide"): _Tile(128, 128, 32, 8, 4),
    ("tf32", "middle"): _Tile(128, 64, 32, 8, 4),
    ("tf32", "narrow"): _Tile(128, 64, 32, 8, 4),
    ("tf32", "image"): _Tile(128, 16, 32, 4, 4),
    ("tf32", "small"): _Tile(64, 64, 32, 4, 3),
    ("ieee", "any"): _Tile(64, 64, 16, 4, 3),
    ("float64", "any"): _Tile(32, 32, 16, 4, 3),
}
# Elements of a tile of a pass: 8 for each thread of 4 warps. Programs that a pass is cut into, at most.
_TILE = 1024
_PROGRAMS = 1024
# Sizes that make no difference to the code: channels, and a pass's pixels, tell how wide a load may be.
_SIZES = [
    "batch", "in_rows", "in_columns", "rows", "columns", "noise_outer", "pixel_tiles", "channel_tiles"
]  # fmt: skip
_PASS_SIZES = ["noise_outer", "steps", "steps_per_split", "splits", "channel_tiles"]


@triton.jit(do_not_specialize=_SIZES)
def modulated_conv2d_kernel(
    p_x, p_weight, p_style, p_scale, p_bias, p_noise, p_strength, p_add, p_other, p_out, p_parts,
    inputs, outputs, batch, in_rows, in_columns, rows, columns, noise_outer, pixel_tiles, channel_tiles,
    act_gain: tl.float64, negative: tl.float64, limit: tl.float64,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, UP: tl.constexpr, FLIP: tl.constexpr,
    HAS_STYLE: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_STRENGTH: tl.constexpr, HAS_ADD: tl.constexpr, HAS_OTHER: tl.constexpr, ACT: tl.constexpr,
    CLAMPED: tl.constexpr, PIXELS: tl.constexpr, ACROSS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr,
    ACC: tl.constexpr, IDX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The product with its prologue and epilogue. x has its channels last, the output too with PIXELS.

    `p_weight` is [outputs, SIZE * SIZE, inputs], with FLIP its taps are visited from the last. `p_other` lies as the
    output does; with it `p_parts` [samples, pixel tiles, outputs] are sums of it times the bare product.
    """
    # channels within pixels within phases within samples: what shares x runs together
    i_rest = tl.program_id(0).to(IDX)
    i_column = i_rest % channel_tiles
    i_rest = i_rest // channel_tiles
    i_tile = i_rest % pixel_tiles
    i_sample = i_rest // pixel_tiles
    high, wide = rows, columns
    if UP:
        i_phase = i_sample % 4
        i_sample = i_sample // 4
        i_row_phase, i_column_phase = (i_phase // 2).to(tl.int32), (i_phase % 2).to(tl.int32)
        high, wide = in_rows + 1 - i_row_phase, in_columns + 1 - i_column_phase
        # 2 taps along an axis are numbers 0 and 2, which meet this sample and the one before, 1 tap is number 1
        row_bits, column_bits = 1 - i_row_phase, 1 - i_column_phase
        taps = 1 << (row_bits + column_bits)
    else:
        taps = SIZE * SIZE
    pixels = tl.cast(high, IDX) * wide

    o_row = i_tile * BM + tl.arange(0, BM).to(IDX)
    if ACROSS:
        o_sample = o_row // pixels
        o_pixel = o_row - o_sample * pixels
        m_row = o_sample < batch
        o_sample = tl.minimum(o_sample, batch - 1)  # to be read without a mask
    else:
        o_sample = tl.full((1,), 0, IDX) + i_sample
        o_pixel = o_row
        m_row = o_row < pixels
    o_y = o_pixel // wide
    o_x = (o_pixel - o_y * wide).to(tl.int32)
    o_y = o_y.to(tl.int32)
    o_top, o_left = o_y * STRIDE - PAD, o_x * STRIDE - PAD
    o_out = i_column * BN + tl.arange(0, BN)
    m_out = o_out < outputs
    o_read = tl.minimum(o_out, outputs - 1)

    p_first = p_x + ((o_sample * in_rows + o_top) * in_columns + o_left) * inputs
    if HAS_STYLE:
        p_styles = p_style + o_sample * inputs
    p_weights = p_weight + o_read.to(IDX) * (SIZE * SIZE) * inputs
    b_sum = tl.zeros((BM, BN), ACC)
    steps = tl.cdiv(inputs, BK) * taps
    if UP:  # a phase may have fewer tiles than the first
        steps = tl.where(i_tile * BM < (pixels * batch if ACROSS else pixels), steps, 0)
    for i_step in range(0, steps):
        if UP:
            i_channel = i_step >> (row_bits + column_bits)
            i_y, i_x = (i_step >> column_bits) & row_bits, i_step & column_bits
            i_tap = (2 * i_y + i_row_phase) * SIZE + 2 * i_x + i_column_phase
            i_y, i_x = -i_y, -i_x
        else:
            i_channel = i_step // taps
            i_tap = i_step % taps
            i_y, i_x = i_tap // SIZE, i_tap % SIZE
            if FLIP:
                i_tap = SIZE * SIZE - 1 - i_tap
        o_channel = i_channel * BK + tl.arange(0, BK)
        m_channel = o_channel < inputs
        o_row_read, o_column_read = o_top + i_y, o_left + i_x
        m_read = m_row & (o_row_read >= 0) & (o_row_read < in_rows)
        m_read = m_read & (o_column_read >= 0) & (o_column_read < in_columns)
        o_from = (i_y * in_columns + i_x) * tl.cast(inputs, IDX) + o_channel
        b_x = tl.load(p_first[:, None] + o_from[None, :], mask=m_read[:, None] & m_channel[None, :], other=0.0)
        if HAS_STYLE:
            b_style = tl.load(p_styles[:, None] + o_channel[None, :], mask=m_channel[None, :], other=0.0).to(ACC)
            b_x = (b_x.to(ACC) * b_style).to(p_x.dtype.element_ty)
        o_from = i_tap * inputs + o_channel
        b_weight = tl.load(p_weights[None, :] + o_from[:, None], mask=m_channel[:, None], other=0.0)
        b_sum = tl.dot(b_x.to(FACTOR), b_weight.to(FACTOR), b_sum, input_precision=PRECISION, out_dtype=ACC)

    out_pixels = tl.cast(rows, IDX) * columns
    if UP:
        o_pixel = (2 * o_y + i_row_phase).to(IDX) * columns + (2 * o_x + i_column_phase)
    m = m_row[:, None] & m_out[None, :]
    if PIXELS:
        o_flat = (o_sample * out_pixels + o_pixel)[:, None] * outputs + o_out[None, :]
    else:
        o_flat = (o_sample[:, None] * outputs + o_out[None, :]) * out_pixels + o_pixel[:, None]
    if HAS_OTHER:
        b_part = tl.sum(b_sum * tl.load(p_other + o_flat, mask=m, other=0.0).to(ACC), axis=0)
        tl.store(p_parts + (i_sample * pixel_tiles + i_tile) * outputs + o_out, b_part, mask=m_out)
    if HAS_SCALE:
        b_scale = tl.load(p_scale + (o_sample[:, None] * outputs + o_out[None, :]), mask=m_out[None, :], other=0.0)
        b_sum *= b_scale.to(ACC)
    if HAS_NOISE:
        o_noise = (o_sample % noise_outer) * out_pixels + o_pixel
        b_noise = tl.load(p_noise + o_noise, mask=m_row, other=0.0).to(ACC)
        if HAS_STRENGTH:
            b_noise *= tl.load(p_strength).to(ACC)
        b_sum += b_noise[:, None]
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_out, mask=m_out, other=0.0).to(ACC)[None, :]
    if ACT:
        b_sum = activate(
            b_sum, None, 0, 0, m, m, 0, 0, 0, tl.cast(act_gain, ACC), tl.cast(negative, ACC), tl.cast(limit, ACC),
            False, CLAMPED, BM, BN,
        )  # fmt: skip
    if HAS_ADD:
        b_sum += tl.load(p_add + o_flat, mask=m, other=0.0).to(ACC)
    tl.store(p_out + o_flat, b_sum.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def _place(channel_tiles, splits, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr, PIXELS: tl.constexpr):
    """Of a program of a pass: its sample, its split, its channels [G, 1] or [1, L], and its pixels in step 0."""
    i_rest = tl.program_id(0).to(IDX)
    i_tile = i_rest % channel_tiles
    i_rest = i_rest // channel_tiles
    o_g, o_l = tl.arange(0, G).to(IDX)[:, None], tl.arange(0, L).to(IDX)[None, :]
    if PIXELS:
        o_channel = i_tile * L + o_l
        o_pixel = o_g
    else:
        o_channel = i_tile * G + o_g
        o_pixel = o_l
    return i_rest // splits, i_rest % splits, o_channel, o_pixel


@triton.jit
def _keep(p_parts, i_walk, channels, o_channel, b_sum, PIXELS: tl.constexpr):
    """Write the sums of a walk over pixels, one for each channel of the tile."""
    b_part = tl.sum(b_sum, axis=0 if PIXELS else 1, keep_dims=True)
    tl.store(p_parts + i_walk * channels + o_channel, b_part, mask=o_channel < channels)


@triton.jit(do_not_specialize=_PASS_SIZES)
def modulated_conv2d_epilogue_grad_kernel(
    p_grad, p_out, p_scale, p_bias, p_noise, p_strength, p_gc, p_scale_parts, p_bias_parts, p_strength_parts,
    channels, pixels, noise_outer, steps, steps_per_split, splits, channel_tiles,
    act_gain: tl.float64, negative: tl.float64, limit: tl.float64, of_positive: tl.float64, of_negative: tl.float64,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_STRENGTH: tl.constexpr,
    WANT_SCALE: tl.constexpr, WANT_BIAS: tl.constexpr, WANT_STRENGTH: tl.constexpr, CLAMPED: tl.constexpr,
    PIXELS: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """gz = f * grad, gc = scale * gz, and parts of the sums of gz * (scale * c), gz and gz * noise."""
    act_gain, negative, limit = tl.cast(act_gain, ACC), tl.cast(negative, ACC), tl.cast(limit, ACC)
    of_positive, of_negative = tl.cast(of_positive, ACC), tl.cast(of_negative, ACC)
    i_sample, i_split, o_channel, o_first = _place(channel_tiles, splits, IDX, G, L, PIXELS)
    m_channel = o_channel < channels
    if HAS_SCALE:
        b_scale = tl.load(p_scale + (i_sample * channels + o_channel), mask=m_channel, other=0.0).to(ACC)
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(ACC)
    if HAS_STRENGTH:
        strength = tl.load(p_strength).to(ACC)
    b_scale_sum = tl.zeros((G, L), ACC)
    b_bias_sum = tl.zeros((G, L), ACC)
    b_strength_sum = tl.zeros((G, L), ACC)
    i_begin = i_split * steps_per_split
    for i_step in range(i_begin, tl.minimum(i_begin + steps_per_split, steps)):
        o_pixel = o_first + i_step * (G if PIXELS else L)
        m = m_channel & (o_pixel < pixels)
        if PIXELS:
            o_flat = (i_sample * pixels + o_pixel) * channels + o_channel
        else:
            o_flat = (i_sample * channels + o_channel) * pixels + o_pixel
        b_out = tl.load(p_out + o_flat, mask=m, other=0.0).to(ACC)
        b_grad = tl.load(p_grad + o_flat, mask=m, other=0.0).to(ACC)
        m_positive = b_out > 0  # as the activation asks
        b_grad *= tl.where(m_positive, act_gain, negative)
        if CLAMPED:
            b_grad = tl.where((b_out < limit) & (b_out > -limit), b_grad, 0.0)
        if HAS_NOISE:
            o_noise = (i_sample % noise_outer) * pixels + o_pixel
            b_noise = tl.load(p_noise + o_noise, mask=o_pixel < pixels, other=0.0).to(ACC)
        if WANT_STRENGTH:
            b_strength_sum += b_grad * b_noise
        if WANT_BIAS:
            b_bias_sum += b_grad
        if WANT_SCALE:
            b_out *= tl.where(m_positive, of_positive, of_negative)
            if HAS_NOISE:
                b_out -= b_noise * strength if HAS_STRENGTH else b_noise
            if HAS_BIAS:
                b_out -= b_bias
            b_scale_sum += b_grad * b_out
        if HAS_SCALE:
            b_grad *= b_scale
        tl.store(p_gc + o_flat, b_grad.to(p_gc.dtype.element_ty), mask=m)
    i_walk = i_sample * splits + i_split
    if WANT_SCALE:
        _keep(p_scale_parts, i_walk, channels, o_channel, b_scale_sum, PIXELS)
    if WANT_BIAS:
        _keep(p_bias_parts, i_walk, channels, o_channel, b_bias_sum, PIXELS)
    if WANT_STRENGTH:
        _keep(p_strength_parts, i_walk, channels, o_channel, b_strength_sum, PIXELS)


@triton.jit(do_not_specialize=_PASS_SIZES)
def modulated_conv2d_style_grad_kernel(
    p_grad, p_x, p_style, p_gx, p_parts,
    channels, pixels, noise_outer, steps, steps_per_split, splits, channel_tiles,
    PIXELS: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr, G: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """gx = style * grad, and parts of the sums of x * grad."""
    i_sample, i_split, o_channel, o_first = _place(channel_tiles, splits, IDX, G, L, PIXELS)
    m_channel = o_channel < channels
    b_style = tl.load(p_style + (i_sample * channels + o_channel), mask=m_channel, other=0.0).to(ACC)
    b_sum = tl.zeros((G, L), ACC)
    i_begin = i_split * steps_per_split
    for i_step in range(i_begin, tl.minimum(i_begin + steps_per_split, steps)):
        o_pixel = o_first + i_step * (G if PIXELS else L)
        m = m_channel & (o_pixel < pixels)
        if PIXELS:
            o_flat = (i_sample * pixels + o_pixel) * channels + o_channel
        else:
            o_flat = (i_sample * channels + o_channel) * pixels + o_pixel
        b_grad = tl.load(p_grad + o_flat, mask=m, other=0.0).to(ACC)
        b_sum += b_grad * tl.load(p_x + o_flat, mask=m, other=0.0).to(ACC)
        tl.store(p_gx + o_flat, (b_grad * b_style).to(p_gx.dtype.element_ty), mask=m)
    _keep(p_parts, i_sample * splits + i_split, channels, o_channel, b_sum, PIXELS)


def _factor(x: Tensor, acc: tl.dtype) -> tl.dtype:
    """The type of factors: that of x, but not bfloat16 in the interpreter, which multiplies its bits as integers."""
    types = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16 if x.is_cuda else tl.float32}
    return types.get(x.dtype, acc)


def _products(x: Tensor) -> str:
    """How products of x are made: "tf32" where PyTorch lets its convolutions, "ieee" where not and of other types."""
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _tile(x: Tensor, outputs: int, pixels: int, summed: bool) -> _Tile:
    """The tile for a layer, of `TILES`, no larger than the layer and with the stages that the GPU's memory holds.

    `pixels` are those of a sample, of all phases; `summed` tells that sums over x leave the product, for which a tile
    of the output is held twice, so that the widest has no registers for it, as for addresses of 64 bits. Tiles of
    `small` layers are many enough for a large GPU.
    """
    batch, inputs = x.shape[:2]
    size = batch * pixels * outputs
    if x.dtype == torch.float64:
        found = TILES["float64", "any"]
    elif x.dtype == torch.float32 and _products(x) == "ieee":
        found = TILES["ieee", "any"]
    else:
        if outputs <= 64:
            kind = "image" if outputs <= 16 else "narrow"
        elif size < 2**21:
            kind = "small"
        else:
            held = summed or max(size, x.numel()) >= _common.REACH
            kind = "middle" if held or outputs <= 128 or size < 2**23 else "wide"
        found = TILES["tf32" if x.dtype == torch.float32 else "half", kind]
    channels = min(found.channels, max(16, triton.next_power_of_2(outputs)))
    found = found._replace(channels=channels, depth=min(found.depth, max(16, triton.next_power_of_2(inputs))))
    if x.is_cuda:
        memory = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin
        stages = memory // _stage(found, x.dtype, pixels < 4 * found.pixels)
        found = found._replace(stages=max(1, min(found.stages, stages)))
    return found


def _stage(plan: _Tile, dtype: torch.dtype, across: bool) -> int:
    """Bytes of a stage: x, the weight and the style, one for each row where rows are of several samples."""
    styles = (plan.pixels if across else 1) * (8 if dtype == torch.float64 else 4)
    return plan.depth * ((plan.pixels + plan.channels) * dtype.itemsize + styles)


def _convolve(
    x: Tensor,
    weight: Tensor,
    style: Tensor | None,
    out: Tensor,
    form: torch.memory_format,
    plan: _Tile,
    *,
    up: bool = False,
    stride: int = 1,
    padding: int = 0,
    flip: bool = False,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    add: Tensor | None = None,
    slope: float = 1.0,
    gain: float = 1.0,
    clamp: float | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """Fill `out`, whose layout is `form`, from x and weight [outputs, k, k, inputs].

    Returns:
        With `other`, the sums [samples, outputs] of it times the bare product; else an empty tensor.
    """
    batch, inputs, in_rows, in_columns = x.shape
    acc, sums = accumulate(x)
    outputs, rows, columns = out.shape[1:]
    pixels = (in_rows + 1) * (in_columns + 1) if up else rows * columns
    across = pixels < plan.pixels
    assert other is None or not across, "these sums need tiles within samples"
    pixel_tiles = triton.cdiv(batch * pixels if across else pixels, plan.pixels)
    channel_tiles = triton.cdiv(outputs, plan.channels)
    programs = pixel_tiles * channel_tiles * (1 if across else batch) * (4 if up else 1)
    parts = None
    if other is not None:
        other = other.contiguous(memory_format=form)
        parts = out.new_empty((batch, pixel_tiles, outputs), dtype=sums)
    with device(x):
        modulated_conv2d_kernel[(programs,)](
            x.contiguous(memory_format=torch.channels_last), weight.contiguous(), contiguous(style), contiguous(scale),
            contiguous(bias), contiguous(noise), strength, None if add is None else add.contiguous(memory_format=form),
            other, out, parts, inputs, outputs, batch, in_rows, in_columns, rows, columns,
            1 if noise is None else noise.shape[0], pixel_tiles, channel_tiles,
            float(gain), float(gain * slope), float(clamp or 0.0),
            SIZE=weight.shape[1], STRIDE=stride, PAD=padding, UP=up, FLIP=flip, HAS_STYLE=style is not None,
            HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, HAS_NOISE=noise is not None,
            HAS_STRENGTH=noise is not None and strength is not None, HAS_ADD=add is not None,
            HAS_OTHER=other is not None, ACT=slope != 1.0 or gain != 1.0 or clamp is not None,
            CLAMPED=clamp is not None, PIXELS=form != torch.contiguous_format, ACROSS=across, PRECISION=_products(x),
            FACTOR=_factor(x, acc), ACC=acc, IDX=index_type(x, out, weight),
            BM=plan.pixels, BN=plan.channels, BK=plan.depth, num_warps=plan.warps, num_stages=plan.stages,
        )  # fmt: skip
    return out.new_empty(0, dtype=sums) if parts is None else parts.sum(1)


def forward(
    x: Tensor,
    weight: Tensor,
    style: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    add: Tensor | None,
    up: int,
    padding: int,
    slope: float,
    gain: float,
    clamp: float | None,
    form: torch.memory_format,
) -> Tensor:
    """`anifast::modulated_conv2d`; with up = 2 its transposed convolution, which a filter is to follow.

    `form` is the layout of x, and of the output.
    """
    size = weight.shape[2]
    padding = 0 if up > 1 else padding
    rows, columns = ((n - 1) * up + size if up > 1 else n + 2 * padding - size + 1 for n in x.shape[2:])
    shape = (x.shape[0], weight.shape[0], rows, columns)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
    if out.numel():
        plan = _tile(x, weight.shape[0], rows * columns, False)
        _convolve(
            x, weight.permute(0, 2, 3, 1), style, out, form, plan, up=up > 1, padding=padding, scale=scale, bias=bias,
            noise=noise, strength=strength, add=add, slope=slope, gain=gain, clamp=clamp,
        )  # fmt: skip
    return out


def input_grad(
    grad: Tensor,
    weight: Tensor,
    x: Tensor | None,
    style: Tensor | None,
    rows: int,
    columns: int,
    up: int,
    padding: int,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`anifast::modulated_conv2d_input_grad`; with up = 2 `grad` is that of what the filter is applied to.

    `form` is the layout of grad, and of the gradient of x.
    """
    shape = (grad.shape[0], weight.shape[1], rows, columns)
    back = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=form)
    nothing = grad.new_empty(0, dtype=accumulate(grad)[1])
    fused = x is not None and style is not None
    if back.numel() == 0:
        return back, (nothing.new_zeros(shape[:2]) if fused else nothing)
    plan = _tile(grad, shape[1], rows * columns, fused)
    apart = fused and rows * columns < plan.pixels
    found = _convolve(
        grad, weight.permute(1, 2, 3, 0), None, back, form, plan, stride=up, flip=up == 1,
        padding=0 if up > 1 else weight.shape[2] - 1 - padding, scale=None if apart else style,
        other=x if fused and not apart else None,
    )  # fmt: skip
    return style_grad(back, x, style, form) if apart else (back, found)


class _Walk(NamedTuple):
    """How a pass is cut: its tile, and each program's steps over pixels."""

    grid: tuple[int]
    sizes: tuple[int, ...]  # channels, pixels, noise_outer, steps, steps_per_split, splits, channel_tiles
    parts: tuple[int, int, int]  # samples, splits, channels
    tile: dict[str, int]  # G, L


def _walk(x: Tensor, form: torch.memory_format, noise: Tensor | None) -> _Walk:
    batch, channels, rows, columns = x.shape
    pixels, last = rows * columns, form != torch.contiguous_format
    lanes, others = (channels, pixels) if last else (pixels, channels)
    across = min(_TILE, triton.next_power_of_2(lanes))
    high = min(_TILE // across, triton.next_power_of_2(others))
    tiles, steps = triton.cdiv(channels, across if last else high), triton.cdiv(pixels, high if last else across)
    per_split = triton.cdiv(steps, min(steps, max(1, _PROGRAMS // (batch * tiles))))
    splits = triton.cdiv(steps, per_split)
    outer = 1 if noise is None else noise.shape[0]
    sizes = (channels, pixels, outer, steps, per_split, splits, tiles)
    return _Walk((batch * splits * tiles,), sizes, (batch, splits, channels), {"G": high, "L": across})


def epilogue_grad(
    grad: Tensor,
    out: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    slope: float,
    gain: float,
    clamp: float | None,
    want_scale: bool,
    want_bias: bool,
    want_strength: bool,
    form: torch.memory_format,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`anifast::modulated_conv2d_epilogue_grad`: gc, and the gradients of scale, bias and strength or empty tensors.

    `form` is the layout of grad, and of gc. slope >= 0 and gain > 0.
    """
    gc = torch.empty_like(grad, memory_format=form)
    acc, sums = accumulate(grad)
    wants = (want_scale, want_bias, want_strength)
    if grad.numel() == 0:
        shapes = (grad.shape[:2], grad.shape[1:2], (1,))
        found = [gc.new_zeros(s if want else (0,), dtype=sums) for s, want in zip(shapes, wants, strict=True)]
        return gc, found[0], found[1], found[2]
    plan = _walk(grad, form, noise)
    limit = torch.tensor(clamp or 0.0, dtype=out.dtype).item()  # as `out` shows it
    parts = [gc.new_empty(plan.parts if want else (0,), dtype=sums) for want in wants]
    with device(grad):
        modulated_conv2d_epilogue_grad_kernel[plan.grid](
            grad.contiguous(memory_format=form), out.contiguous(memory_format=form), contiguous(scale),
            contiguous(bias), contiguous(noise), strength, gc, *parts, *plan.sizes,
            float(gain), float(gain * slope), limit, 1.0 / gain, 1.0 / (gain * slope) if slope else 0.0,
            HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, HAS_NOISE=noise is not None,
            HAS_STRENGTH=noise is not None and strength is not None, WANT_SCALE=want_scale, WANT_BIAS=want_bias,
            WANT_STRENGTH=want_strength, CLAMPED=clamp is not None, PIXELS=form != torch.contiguous_format, ACC=acc,
            IDX=index_type(grad), **plan.tile,
        )  # fmt: skip
    gscale, gbias, gstrength = parts
    if want_scale:
        assert scale is not None
        gscale = gscale.sum(1) / scale.to(sums)
    if want_bias:
        gbias = gbias.sum((0, 1))
    if want_strength:
        gstrength = gstrength.sum().reshape(1)
    return gc, gscale, gbias, gstrength


def style_grad(grad: Tensor, x: Tensor, style: Tensor, form: torch.memory_format) -> tuple[Tensor, Tensor]:
    """`anifast::modulated_conv2d_style_grad`: style * grad, and the sum over pixels of x * grad.

    `form` is the layout of grad, and of the first.
    """
    gx = torch.empty_like(grad, memory_format=form)
    acc, sums = accumulate(grad)
    if grad.numel() == 0:
        return gx, gx.new_zeros(grad.shape[:2], dtype=sums)
    plan = _walk(grad, form, None)
    parts = gx.new_empty(plan.parts, dtype=sums)
    with device(grad):
        modulated_conv2d_style_grad_kernel[plan.grid](
            grad.contiguous(memory_format=form), x.contiguous(memory_format=form), contiguous(style), gx, parts,
            *plan.sizes, PIXELS=form != torch.contiguous_format, ACC=acc, IDX=index_type(grad), **plan.tile,
        )  # fmt: skip
    return gx, parts.sum(1)

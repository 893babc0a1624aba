"""`torch_utils.ops.upfirdn2d`: up-sampling, FIR filter and down-sampling, and the filters for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import ops
from anifast.compat.arguments import backend_of, integers


def setup_filter(
    f: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A filter for the functions below out of its numbers.

    Args:
        f: [k_y, k_x], [k] along both axes, one number, or None for 1; tensor, array or lists.
        device: where the filter lies.
        normalize: whether the numbers are divided by their sum.
        flip_filter: whether the filter is flipped.
        gain: the factor that the filter has on a constant image.
        separable: whether a line of numbers stays one instead of becoming a matrix; None: from 8 numbers on.

    Returns:
        float32, [k_y, k_x] or [k].

    Raises:
        ValueError: no numbers, more than two axes, or a matrix that is to be separable.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if taps.dim() > 2 or taps.numel() == 0:
        raise ValueError(f"setup_filter: f must be [k_y, k_x], [k] or one number, got shape {tuple(taps.shape)}")
    taps = taps.reshape(1) if taps.dim() == 0 else taps
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= 8
    if separable and taps.dim() == 2:
        raise ValueError(f"setup_filter: f of shape {tuple(taps.shape)} cannot be separable, which [k] can")
    if taps.dim() == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(tuple(range(taps.dim())))
    return (taps * gain ** (taps.dim() / 2)).to(device)  # a line is passed once along each axis


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Zeros behind each sample, pads, filter, every down-th sample.

    Args:
        x: [N, C, H, W], floating point.
        f: [k_y, k_x], [k] along both axes, or None for the identity; a constant.
        up: samples for each one of x; int or (x, y).
        down: every how manyth sample is kept; int or (x, y).
        padding: in the up-sampled signal, negative ones cut; int, (x, y) or (x before, x behind, y before, y behind).
        flip_filter: False is convolution, True correlation.
        gain: factor, once in total.
        impl: "cuda" is the fastest there is for x's device, "ref" plain PyTorch.

    Returns:
        [N, C, (H * up + pads - k_y) // down + 1, (W * up + pads - k_x) // down + 1].

    Raises:
        TypeError, ValueError: as `anifast.ops.upfirdn2d`; an unknown impl.
    """
    backend = backend_of("upfirdn2d", impl)
    if not isinstance(x, Tensor):
        raise TypeError(f"upfirdn2d: x must be a torch.Tensor, got {type(x).__name__}")
    taps = torch.ones(1, 1, dtype=torch.float32, device=x.device) if f is None else f
    return ops.upfirdn2d(
        x,
        taps,
        up=integers(up),
        down=integers(down),
        padding=_parse_padding(padding),
        flip=flip_filter,
        gain=float(gain),
        backend=backend,
    )


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Filter x to the same size; `padding` comes on top. Arguments as in `upfirdn2d`."""
    return resample(x, f, 1, 1, padding, flip_filter, gain, impl)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Up-sample x to `up` times its size, equally bright; `padding` comes on top. Arguments as in `upfirdn2d`."""
    return resample(x, f, up, 1, padding, flip_filter, gain, impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Down-sample x to 1 / `down` of its size; `padding` comes on top. Arguments as in `upfirdn2d`."""
    return resample(x, f, 1, down, padding, flip_filter, gain, impl)


def resample(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int],
    down: int | Sequence[int],
    padding: int | Sequence[int],
    flip_filter: bool,
    gain: float,
    impl: str,
) -> Tensor:
    """`upfirdn2d` with the pads that give H * up // down samples (up or down is 1) around the same centre."""
    (up_x, up_y) = _parse_scaling(up)
    pads = same_padding(f, up, down, padding)
    return upfirdn2d(x, f, (up_x, up_y), down, pads, flip_filter, gain * up_x * up_y, impl)


def same_padding(
    f: Tensor | None, up: int | Sequence[int], down: int | Sequence[int], padding: int | Sequence[int]
) -> tuple[int, int, int, int]:
    """`padding` on top of the pads that keep the size: k - up zeros behind up-sampling, k - down before down-sampling.

    The pads are split evenly; the odd one goes before for a filter on its own and for up-sampling by even factors.
    """
    pads = list(_parse_padding(padding))
    for axis, (taps, u, d) in enumerate(
        zip(_get_filter_size(f), _parse_scaling(up), _parse_scaling(down), strict=True)
    ):
        if u > 1:
            before, behind = (taps + u - 1) // 2, (taps - u) // 2
        else:
            before, behind = (taps - d + 1) // 2, (taps - d) // 2
        pads[2 * axis] += before
        pads[2 * axis + 1] += behind
    return (pads[0], pads[1], pads[2], pads[3])


# Names that modules beside this one in the repositories import.


def _parse_scaling(scaling: int | Sequence[int]) -> tuple[int, int]:
    """`up` or `down` as (x, y)."""
    pair = integers(scaling)
    pair = (pair, pair) if isinstance(pair, int) else pair
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise ValueError(f"upfirdn2d: up and down must be an int or (x, y), 1 or more, got {scaling!r}")
    return (pair[0], pair[1])


def _parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """`padding` as (x before, x behind, y before, y behind)."""
    pads = integers(padding)
    pads = (pads, pads) if isinstance(pads, int) else pads
    if not isinstance(pads, tuple) or len(pads) not in (2, 4) or not all(isinstance(v, int) for v in pads):
        raise ValueError(f"upfirdn2d: padding must be an int, (x, y) or (x0, x1, y0, y1), got {padding!r}")
    return (pads[0], pads[0], pads[1], pads[1]) if len(pads) == 2 else (pads[0], pads[1], pads[2], pads[3])


def _get_filter_size(f: Tensor | None) -> tuple[int, int]:
    """(columns, rows) of a filter."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])

"""`op.upfirdn2d`: up-sampling, FIR filter and down-sampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from anifast import ops
from anifast.compat.arguments import integers


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> Tensor:
    """Zeros behind each sample, pads, true convolution with `kernel`, every down-th sample.

    Args:
        input: [N, C, H, W], floating point.
        kernel: [k_y, k_x], a constant; 4 x 4 in these networks.
        up: samples for each one of the input; int or (x, y).
        down: every how manyth sample is kept; int or (x, y).
        pad: (before, behind) for both axes or (x0, x1, y0, y1), in the up-sampled signal; negative ones cut.

    Returns:
        [N, C, (H * up + pads - k_y) // down + 1, (W * up + pads - k_x) // down + 1].

    Raises:
        TypeError, ValueError: as `anifast.ops.upfirdn2d`.
    """
    return ops.upfirdn2d(input, kernel, up=integers(up), down=integers(down), padding=integers(pad))

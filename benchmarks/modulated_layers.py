"""What a modulated layer costs at least: operations, bytes, and the library's convolutions alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import ModulatedConv2d


def counts(use: ModulatedConv2d, work: str) -> tuple[int, int, int]:
    """How many convolutions, and gradients of one by its input and by its weight, a work cannot do without.

    The double backward differentiates the style's gradient: the convolution and its gradient by the input, and of that
    a convolution and a gradient by the weight. Where the output is normalised or activated the convolution's result is
    in the style's gradient, which adds one gradient of each kind.
    """
    if work == "double_backward":
        return (2, 2, 2) if use.demodulate else (2, 1, 1)
    return (1, 0, 0) if work == "forward" else (1, 1, 1)


def operations(use: ModulatedConv2d, batch: int, work: str) -> int:
    """Two for each weight and pixel of the input, in each convolution."""
    return 2 * batch * use.outputs * use.inputs * use.size**2 * use.side**2 * sum(counts(use, work))


def traffic(use: ModulatedConv2d, batch: int, itemsize: int, work: str) -> int:
    """The fewest bytes of a work.

    Forward reads x, weight, noise and image and writes out; backward reads x, weight, out and its gradient and writes
    gradients like x and weight; the double backward reads all that for the style's gradient and once more for the
    gradients of that, of which one is like out.
    """
    x, out = batch * use.inputs * use.side**2 * itemsize, batch * use.outputs * (use.side * use.up) ** 2 * itemsize
    weight = use.outputs * use.inputs * use.size**2 * itemsize
    noise = out // use.outputs if use.noise else 0
    forward = x + weight + out + noise + (out if use.add else 0)
    kept = out if use.demodulate else 0  # without an activation the gradient does not ask for the output
    reads, writes = x + weight + kept + out, x + weight
    if work == "forward":
        return forward
    return forward + (reads + writes + noise if work == "forward_backward" else 2 * reads + writes + out)


def convolution(use: ModulatedConv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The library's convolution with the layer's weights, one for all samples; nothing before and nothing behind."""
    if use.up > 1:
        return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return F.conv2d(x, weight, padding=use.size // 2)


def library(use: ModulatedConv2d, work: str, x: Tensor, weight: Tensor) -> Callable[[], list[Tensor | None]]:
    """A call of the library's convolutions that a work cannot do without, and of nothing else."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        weight = weight.contiguous(memory_format=torch.channels_last)
    transposed, pad = use.up > 1, 0 if use.up > 1 else use.size // 2
    forwards, by_input, by_weight = counts(use, work)
    with torch.no_grad():
        grad = torch.randn_like(convolution(use, x, weight))
        filters = weight.transpose(0, 1) if transposed else weight

    def run() -> list[Tensor | None]:
        with torch.no_grad():
            found: list[Tensor | None] = [convolution(use, x, weight) for _ in range(forwards)]
            for at in range(max(by_input, by_weight)):
                found += torch.ops.aten.convolution_backward(
                    grad, x, filters, None, [use.up, use.up], [pad, pad], [1, 1], transposed, [0, 0], 1,
                    [at < by_input, at < by_weight, False],
                )  # fmt: skip
        return found

    return run

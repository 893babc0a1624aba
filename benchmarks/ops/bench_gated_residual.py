"""gated_residual: bias, centred PReLU, both gates and the sum in one pass, against the chain people write."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops import gated_residual
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import GATED_RESIDUAL
from benchmarks.shapes import GatedResidual as Use

#: moments of PReLU with slope 0.25 under unit normal values
_MEAN = 0.75 / math.sqrt(2.0 * math.pi)
_STD = math.sqrt(0.53125 - _MEAN**2)

#: the shapes also measured in other dtypes and layouts
_ALSO = tuple(
    use.name
    for use in GATED_RESIDUAL
    if use.name.startswith(("disentangle.digits.b64", "disentangle.digits.g.64", "disentangle.faces.64"))
)


def chain(
    x: Tensor,
    shortcut: Tensor,
    gate: Tensor,
    shortcut_gate: Tensor,
    slope: Tensor | None,
    bias: Tensor,
    *,
    up: int,
    crop: int,
) -> Tensor:
    """What model code has where no fused op is at hand; the bias is its convolution's, which adds it in a pass too."""
    y = x + bias.view(1, -1, 1, 1)
    if slope is not None:
        y = (F.prelu(y, slope) - _MEAN) / _STD
    if up == 2:
        shortcut = F.interpolate(shortcut, scale_factor=2.0, mode="nearest")
        if crop:
            shortcut = F.pad(shortcut, [-crop] * 4)
    return shortcut_gate.view(1, -1, 1, 1) * shortcut + gate.view(1, -1, 1, 1) * y


def _ours(backend: str, use: Use) -> Callable[..., Tensor]:
    constants = {"mean": _MEAN, "std": _STD} if use.act else {}

    def call(
        x: Tensor, shortcut: Tensor, gate: Tensor, shortcut_gate: Tensor, slope: Tensor | None, bias: Tensor
    ) -> Tensor:
        return gated_residual(
            x, shortcut, gate, shortcut_gate, slope, bias, **constants, up=use.up, crop=use.crop, backend=backend
        )

    return call


class GatedResidualBench(OpBench):
    """The op in the forms and shapes that the systems use."""

    name = "gated_residual"
    forms = {"same": "a shortcut of the same size", "up": "a shortcut that is doubled"}
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "chain": "rival", "compile": "rival"}
    leaves = ("x", "shortcut", "gate", "shortcut_gate", "slope", "bias")
    aims = (
        Aim("a shortcut of the same size, forward", "cpu", "chain", 4.0, ("forward",), ("same",)),
        Aim("a shortcut of the same size, forward + backward", "cpu", "chain", 5.0, ("forward_backward",), ("same",)),
        Aim("a shortcut that is doubled, forward", "cpu", "chain", 6.0, ("forward",), ("up",)),
        Aim("a shortcut that is doubled, forward + backward", "cpu", "chain", 6.0, ("forward_backward",), ("up",)),
        Aim("both forms, forward", "cpu", "compile", 1.0, ("forward",)),
        Aim("both forms, forward + backward", "cpu", "compile", 1.5, ("forward_backward",)),
    )

    def cases(self, device: str) -> list[Case]:
        """All uses in float32; a few also in half precision and channels last."""
        plain = [Case(use.name, use.form, use.shape, use, quick=use.quick) for use in GATED_RESIDUAL]
        kinds = [("float32", "channels_last"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last")]
        return plain + [
            Case(case.name, case.form, case.shape, case.detail, dtype, layout)
            for dtype, layout in kinds
            for case in plain
            if case.name in _ALSO
        ]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Unit normal maps, and parameters as they are where training starts."""
        use: Use = case.detail
        dtype = DTYPES[case.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        def constant(value: float) -> Tensor:
            return torch.full(use.shape[1:2], value, dtype=dtype, device=device)

        made: Tensors = {
            "x": normal(*use.shape),
            "shortcut": normal(*use.shortcut_shape),
            "gate": constant(math.sqrt(0.2)),
            "shortcut_gate": constant(math.sqrt(0.8)),
            "slope": constant(0.25) if use.act else None,
            "bias": normal(use.shape[1]) / 8,
        }
        return in_layout(made, case, "x", "shortcut")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the chain, and torch.compile of the chain."""
        use: Use = case.detail
        plain = functools.partial(chain, up=use.up, crop=use.crop)
        why = {"double_backward": "every backend takes the second derivative from the reference; no system needs it"}
        ours = our_backends(self.name, device, lambda backend: _ours(backend, use))
        return {
            **{name: Variant(variant.function, why | dict(variant.missing)) for name, variant in ours.items()},
            "reference": Variant(_ours("reference", use)),
            "chain": Variant(plain),
            "compile": compiled(plain),
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads x and the shortcut and writes the sum; backward reads these and a gradient, and writes two.

        The second derivative reads all of them, and the directions of both gradients, and writes three gradients.
        """
        use: Use = case.detail
        size = DTYPES[case.dtype].itemsize
        one, small = math.prod(use.shape) * size, math.prod(use.shortcut_shape) * size
        forward = 2 * one + small
        step = forward + 3 * one + 2 * small
        return {"forward": forward, "forward_backward": step}.get(work, step + 5 * one + 3 * small)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map that is written."""
        maps = {"forward": [tensors["x"]], "forward_backward": [grad, tensors["x"], tensors["shortcut"]]}.get(
            work, [grad, tensors["x"], tensors["shortcut"], second]
        )
        return [tensor for tensor in maps if tensor is not None]


BENCH = GatedResidualBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

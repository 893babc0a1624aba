"""instance_norm: instance norm, activation and residual sum, against the chain people write."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops import instance_norm
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import INSTANCE_NORM
from benchmarks.shapes import InstanceNorm as Use

#: the shapes also measured in other dtypes and layouts
_ALSO = tuple(use.name for use in INSTANCE_NORM if use.name.startswith(("cyclegan.g.128x2", "cyclegan.d.128")))


def chain(x: Tensor, residual: Tensor | None, *, slope: float) -> Tensor:
    """What model code has where no fused op is at hand."""
    y = F.instance_norm(x)
    if slope != 1.0:
        y = F.relu(y) if slope == 0.0 else F.leaky_relu(y, slope)
    return y if residual is None else residual + y


def _ours(backend: str, use: Use) -> Callable[..., Tensor]:
    def call(x: Tensor, residual: Tensor | None) -> Tensor:
        return instance_norm(x, slope=use.slope, residual=residual, backend=backend)

    return call


class InstanceNormBench(OpBench):
    """The op in the forms and shapes that the systems use."""

    name = "instance_norm"
    forms = {
        "relu": "instance norm + ReLU",
        "lrelu": "instance norm + leaky ReLU",
        "residual": "instance norm + residual",
    }
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "chain": "rival", "compile": "rival"}
    leaves = ("x", "residual")
    aims = (
        Aim("all forms, forward", "cpu", "chain", 2.0, ("forward",)),
        Aim("all forms, forward + backward", "cpu", "chain", 2.0, ("forward_backward",)),
        Aim("all forms, forward", "cpu", "compile", 1.0, ("forward",)),
        Aim("all forms, forward + backward", "cpu", "compile", 1.0, ("forward_backward",)),
    )

    def cases(self, device: str) -> list[Case]:
        """All uses in float32; a few also in half precision and channels last, where CycleGAN trains."""
        plain = [Case(use.name, use.form, use.shape, use, quick=use.quick) for use in INSTANCE_NORM]
        kinds = [("float32", "channels_last"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last")]
        return plain + [
            Case(case.name, case.form, case.shape, case.detail, dtype, layout)
            for dtype, layout in kinds
            for case in plain
            if case.name in _ALSO
        ]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Unit normal values; none of them normalised to so near the kink that rounding decides its side."""
        use: Use = case.detail
        dtype = DTYPES[case.dtype]
        x = torch.randn(use.shape, generator=generator, device=device)
        margin = 0.01 if dtype == torch.float32 else 0.1
        for _ in range(20):  # moving some of them moves the mean a little
            near = F.instance_norm(x.to(dtype).float()).abs() < margin
            if not near.any():
                break
            x = torch.where(near, x + 3 * margin, x)
        residual = torch.randn(use.shape, generator=generator, device=device).to(dtype) if use.residual else None
        made: Tensors = {"x": x.to(dtype), "residual": residual}
        return in_layout(made, case, "x", "residual")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the chain, and torch.compile of the chain."""
        use: Use = case.detail
        plain = functools.partial(chain, slope=use.slope)
        ours = our_backends(self.name, device, lambda backend: _ours(backend, use))
        no_second = {"double_backward": "no second derivative: the reference has it, and no system needs it"}
        return {
            **{name: Variant(v.function, {**no_second, **v.missing}) for name, v in ours.items()},
            "reference": Variant(_ours("reference", use)),
            "chain": Variant(plain),
            "compile": compiled(plain),
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads x for the statistics and again for out, and the residual; backward reads grad and x twice."""
        use: Use = case.detail
        one = math.prod(use.shape) * DTYPES[case.dtype].itemsize
        forward = 3 * one + (one if use.residual else 0)
        return {"forward": forward, "forward_backward": forward + 5 * one}.get(work, forward + 10 * one)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map that is written."""
        maps = {"forward": [tensors["x"]], "forward_backward": [tensors["x"], grad]}.get(
            work, [tensors["x"], grad, second]
        )
        return [tensor for tensor in maps if tensor is not None]


BENCH = InstanceNormBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

"""lpips_layer: the distance of two maps as LPIPS takes it, against the formula in plain PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops import lpips_layer
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import LPIPS_BATCHES, LPIPS_LAYER


def formula(a: Tensor, b: Tensor | None, target: Tensor | None, weight: Tensor) -> Tensor:
    """The published algebra (Zhang et al. 2018, equation 1), step by step.

    Half maps are taken to float32 first: a sum of squares in half numbers loses what the distance is about.
    """
    other = target if b is None else b
    assert other is not None
    maps = [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in (a, other)]
    norms = [torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) for x in maps]
    unit_a, unit_b = (x / (norm + 1e-10) for x, norm in zip(maps, norms, strict=True))
    return F.conv2d((unit_a - unit_b) ** 2, weight).mean((2, 3), keepdim=True)


def _ours(backend: str) -> Callable[..., Tensor]:
    def call(a: Tensor, b: Tensor | None, target: Tensor | None, weight: Tensor) -> Tensor:
        other = target if b is None else b
        assert other is not None
        return lpips_layer(a, other, weight, backend=backend)

    return call


class LpipsLayerBench(OpBench):
    """The op on the maps of the three networks, with a gradient to one of the maps or to both.

    The second map is `b` where it has a gradient and `target` where it has none.
    """

    name = "lpips_layer"
    forms = {
        "one": "VGG-16's maps, gradient to one of the pair",
        "both": "VGG-16's maps, gradients to both",
        "small": "AlexNet's and SqueezeNet's maps, gradients to both",
    }
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "formula": "rival", "compile": "rival"}
    leaves = ("a", "b")
    aims = (
        *(
            aim
            for against, forward, backward in (("formula", 5.0, 4.0), ("compile", 1.5, 1.5))
            for aim in (
                Aim("VGG-16's maps, forward", "cpu", against, forward, ("forward",), ("one", "both")),
                Aim(
                    "VGG-16's maps, forward + backward", "cpu", against, backward, ("forward_backward",),
                    ("one", "both"),
                ),
            )
        ),
        Aim("VGG-16's maps, forward", "cuda", "clone", 0.8, ("forward",), ("one", "both"), percent=True),
    )  # fmt: skip

    def cases(self, device: str) -> list[Case]:
        """VGG-16's maps at two batches in float32 and both layouts. At the larger batch they also stand in bfloat16,
        with gradients to both, and the maps of the two smaller networks in float32.
        """
        found = []
        batches = LPIPS_BATCHES[device]
        for layout in ("contiguous", "channels_last"):
            for form in ("one", "both"):
                for batch in batches:
                    quick = layout == "contiguous" and batch == batches[-1]
                    found += _cases(form, batch, "float32", layout, quick)
        found += _cases("small", batches[-1], "float32", "contiguous", True)
        for layout in ("contiguous", "channels_last"):
            found += _cases("both", batches[-1], "bfloat16", layout, False)
        return found

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Maps as behind a ReLU, and weights that are not negative, as trained heads have them.

        A pixel's vectors have length 1, so that a term of the mean is about weight / (channels * pixels). Weights
        times that number make the terms about 1, the size that the check takes those of a long sum to have.
        """
        dtype = DTYPES[case.dtype]

        def behind_relu() -> Tensor:
            return torch.randn(case.shape, generator=generator, device=device).relu_().to(dtype)

        b = behind_relu()
        weight = torch.rand(1, case.shape[1], 1, 1, generator=generator, device=device)
        made: Tensors = {
            "a": behind_relu(),
            "b": None if case.form == "one" else b,
            "target": b if case.form == "one" else None,
            "weight": weight * math.prod(case.shape[1:]),
        }
        return in_layout(made, case, "a", "b", "target")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference")

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the formula, and torch.compile of the formula."""
        found = {
            **our_backends(self.name, device, _ours),
            "reference": Variant(_ours("reference")),
            "formula": Variant(formula),
            "compile": compiled(formula),
        }
        why = "every backend takes the second derivative from the reference, and no system needs it"
        return {
            name: dataclasses.replace(variant, missing={"double_backward": why, **variant.missing})
            for name, variant in found.items()
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads both maps and keeps four numbers a pixel, where there is a gradient; backward reads the maps
        and these numbers, and writes a gradient for one map or both. The weights are next to nothing.
        """
        one = math.prod(case.shape) * DTYPES[case.dtype].itemsize
        kept = 4 * 4 * case.shape[0] * math.prod(case.shape[2:])
        written = one if case.form == "one" else 2 * one
        step = 4 * one + written + 2 * kept
        return {"forward": 2 * one, "forward_backward": step}.get(work, step + 4 * one + written)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every gradient that is written. Forward writes next to nothing: a clone of one map moves as many
        bytes as reading both.
        """
        maps = [tensors["a"]] if work == "forward" else [tensors["a"], tensors["b"]]
        return [tensor for tensor in maps if tensor is not None]


def _cases(form: str, batch: int, dtype: str, layout: str, quick: bool) -> list[Case]:
    """A case for every map of the networks of a form."""
    return [
        Case(
            f"{form}.{use.name}.b{batch}", form, (batch, use.channels, use.side, use.side), use, dtype, layout,
            quick and use.quick,
        )
        for use in LPIPS_LAYER
        if (use.net == "vgg") != (form == "small")
    ]  # fmt: skip


BENCH = LpipsLayerBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

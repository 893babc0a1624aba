"""bias_lrelu: bias, noise, leaky ReLU, gain and residual sum in one pass, against the chain people write."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops import bias_lrelu
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import BIAS_LRELU, SQRT2
from benchmarks.shapes import BiasLrelu as Use

#: the shapes also measured in other dtypes and layouts
_ALSO = ("gnr.128", "gnr.16", "gnr.64.residual", "blendgan.g.256", "blendgan.g.32")


def chain(
    x: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    residual: Tensor | None,
    *,
    slope: float,
    gain: float,
) -> Tensor:
    """What model code has where no fused op is at hand."""
    if noise is not None and strength is not None:
        x = x + strength * noise
    y = F.leaky_relu(x + bias.view(1, -1, *(1,) * (x.dim() - 2)), slope)
    if residual is not None:
        return (y * SQRT2 + residual) / SQRT2
    return y if gain == 1.0 else y * gain


def _ours(backend: str, use: Use) -> Callable[..., Tensor]:
    def call(x: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor | None, residual: Tensor | None) -> Tensor:
        return bias_lrelu(
            x,
            bias,
            noise=noise,
            noise_strength=strength,
            slope=use.slope,
            gain=use.gain,
            residual=residual,
            residual_gain=use.residual_gain,
            backend=backend,
        )

    return call


class BiasLreluBench(OpBench):
    """The op in the forms and shapes that the systems use."""

    name = "bias_lrelu"
    forms = {
        "noise": "noise + bias + lrelu + gain",
        "bias": "bias + lrelu + gain",
        "plain": "bias + lrelu",
        "residual": "bias + lrelu + gain + residual",
    }
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "chain": "rival", "compile": "rival"}
    leaves = ("x", "bias", "strength", "residual")
    aims = (
        Aim("noise + bias + lrelu + gain, forward", "cpu", "chain", 4.0, ("forward",), ("noise",)),
        Aim("bias + lrelu + gain, forward", "cpu", "chain", 2.5, ("forward",), ("bias",)),
        Aim("bias + lrelu + gain, forward", "cpu", "clone", 0.85, ("forward",), ("bias",), percent=True),
        Aim("both forms above, forward + backward", "cpu", "chain", 3.0, ("forward_backward",), ("noise", "bias")),
        Aim("all forms, forward", "cpu", "compile", 1.0, ("forward",)),
        Aim("all forms, forward + backward", "cpu", "compile", 1.0, ("forward_backward",)),
        Aim("all forms, forward", "cuda", "clone", 0.90, ("forward",), percent=True),
        Aim(
            "all forms, forward + backward with bias gradient",
            "cuda",
            "clone",
            0.80,
            ("forward_backward",),
            percent=True,
        ),
    )

    def cases(self, device: str) -> list[Case]:
        """All uses in float32; a few also in half precision and channels last."""
        plain = [Case(use.name, use.form, use.shape, use, quick=use.quick) for use in BIAS_LRELU]
        also = [case for case in plain if case.name in _ALSO]
        kinds = [("float32", "channels_last"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last")]
        if device == "cuda":
            kinds.append(("float16", "contiguous"))
        return plain + [_as(case, dtype, layout) for dtype, layout in kinds for case in also]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Unit normal values, none so near the kink that rounding decides its side."""
        use: Use = case.detail
        dtype = DTYPES[case.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        bias = normal(use.shape[1]).to(dtype)
        noise = normal(use.shape[0], 1, *use.shape[2:]).to(dtype) if use.noise else None
        strength = torch.full((1,), 0.25, device=device, dtype=dtype) if use.noise else None
        x = normal(*use.shape)
        before = x + bias.float().view(1, -1, *(1,) * (x.dim() - 2))
        if noise is not None:
            before += 0.25 * noise.float()
        margin = 0.01 if dtype == torch.float32 else 0.1
        x = torch.where(before.abs() < margin, x + 3 * margin, x).to(dtype)
        residual = normal(*use.shape).to(dtype) if use.residual else None
        made: Tensors = {"x": x, "bias": bias, "noise": noise, "strength": strength, "residual": residual}
        return in_layout(made, case, "x", "noise", "residual")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the chain, and torch.compile of the chain."""
        use: Use = case.detail
        plain = functools.partial(chain, slope=use.slope, gain=use.gain)
        return {
            **our_backends(self.name, device, lambda backend: _ours(backend, use)),
            "reference": Variant(_ours("reference", use)),
            "chain": Variant(plain),
            "compile": compiled(plain),
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads x (noise, residual) and writes out, and one bit an element where a gradient will be wanted;
        each gradient reads a map and the bits, and writes a map.
        """
        use: Use = case.detail
        itemsize = DTYPES[case.dtype].itemsize
        one = math.prod(use.shape) * itemsize
        noise = one // use.shape[1] if use.noise else 0
        bits = math.prod(use.shape) // 8
        forward = 2 * one + noise + (one if use.residual else 0)
        gradient = 2 * one + bits
        if work == "forward":
            return forward
        if work == "forward_backward":  # + the residual's gradient, a map of its own; + noise for its strength
            return forward + bits + gradient + noise + (one if use.residual else 0)
        return forward + bits + 2 * gradient

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map that is written."""
        maps = {"forward": [tensors["x"]], "forward_backward": [tensors["x"], grad]}.get(
            work, [tensors["x"], grad, second]
        )
        if work == "forward_backward" and tensors["residual"] is not None:
            maps.append(tensors["residual"])
        return [tensor for tensor in maps if tensor is not None]


def _as(case: Case, dtype: str, layout: str) -> Case:
    return Case(case.name, case.form, case.shape, case.detail, dtype, layout)


BENCH = BiasLreluBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

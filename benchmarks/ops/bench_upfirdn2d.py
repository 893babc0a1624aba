"""upfirdn2d: filter, resampling and what follows in one pass, against the forms that people have."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anifast.ops import upfirdn2d
from benchmarks import vendored
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import UPFIRDN2D
from benchmarks.shapes import Upfirdn2d as Use

#: the shapes also measured in other dtypes and layouts
_ALSO = ("blur.gnr.128", "down.gnr.128", "epilogue.gnr.128", "up.gnr.128", "epilogue.blendgan.32")


def zero_insert(
    x: Tensor,
    kernel: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    add: Tensor | None,
    *,
    use: Use,
) -> Tensor:
    """What vendored op folders do on a CPU: see benchmarks/vendored.py; then a chain of ops."""
    y = vendored.zero_insert(x, torch.outer(kernel, kernel) * use.gain, use.up, use.down, use.padding)
    if scale is not None and bias is not None:
        y = y * scale[:, :, None, None]
        if noise is not None and strength is not None:
            y = y + strength * noise
        y = vendored.bias_act(y, bias)
    return y if add is None else y + add


def _ours(backend: str, use: Use) -> Callable[..., Tensor]:
    def call(
        x: Tensor,
        kernel: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        noise: Tensor | None,
        strength: Tensor | None,
        add: Tensor | None,
    ) -> Tensor:
        return upfirdn2d(
            x,
            kernel,
            up=use.up,
            down=use.down,
            padding=use.padding,
            gain=use.gain,
            scale=scale,
            bias=bias,
            noise=noise,
            noise_strength=strength,
            act=use.epilogue,
            add=add,
            backend=backend,
        )

    return call


class Upfirdn2dBench(OpBench):
    """The op in the forms and shapes that the systems use."""

    name = "upfirdn2d"
    forms = {
        "blur": "blur",
        "down": "blur, every 2nd sample",
        "up": "2x up-sampling + sum",
        "epilogue": "blur + scale (+ noise) + bias + lrelu",
    }
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "zeros": "rival", "compile": "rival"}
    leaves = ("x", "scale", "bias", "strength", "add")
    aims = (
        Aim("all forms, forward", "cpu", "zeros", 25.0, ("forward",)),
        Aim("all forms, forward", "cpu", "reference", 6.0, ("forward",)),
        Aim("all forms, forward", "cpu", "compile", 3.0, ("forward",)),
        Aim("all forms, forward + backward", "cpu", "zeros", 25.0, ("forward_backward",)),
        Aim("all forms, forward + backward", "cpu", "reference", 6.0, ("forward_backward",)),
        Aim("all forms, forward + backward", "cpu", "compile", 3.0, ("forward_backward",)),
        Aim("all forms, double backward", "cpu", "reference", 5.0, ("double_backward",)),
        Aim("all forms, forward", "cuda", "clone", 0.80, ("forward",), percent=True),
        Aim("all forms, forward + backward", "cuda", "clone", 0.80, ("forward_backward",), percent=True),
    )

    def cases(self, device: str) -> list[Case]:
        """All uses in float32, on a CPU those below 2^25 values; a few also in half precision and channels last."""
        most = 1 << 25 if device == "cpu" else math.inf  # the zero-insert form takes a minute a call beyond
        uses = [use for use in UPFIRDN2D if math.prod(use.shape) < most]
        plain = [Case(use.name, use.form, use.shape, use, quick=use.quick) for use in uses]
        also = [case for case in plain if case.name in _ALSO]
        kinds = [("float32", "channels_last"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last")]
        if device == "cuda":
            kinds.append(("float16", "contiguous"))
        return plain + [
            Case(case.name, case.form, case.shape, case.detail, dtype, layout)
            for dtype, layout in kinds
            for case in also
        ]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Values in [-1, 1], and biases so far from 0 that rounding never decides the side of the kink."""
        use: Use = case.detail
        dtype = DTYPES[case.dtype]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device).mul_(2).sub_(1)

        count, out = use.shape[1], use.out_shape
        made: Tensors = {
            "x": uniform(*use.shape).to(dtype),
            "kernel": torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype) / 8,
            "scale": uniform(*use.shape[:2]).div_(use.gain).to(dtype) if use.epilogue else None,
            "bias": (uniform(count).sign() * 2).to(dtype) if use.epilogue else None,
            "noise": uniform(use.shape[0], 1, *out[2:]).to(dtype) if use.noise else None,
            "strength": torch.full((1,), 0.25, device=device, dtype=dtype) if use.noise else None,
            "add": uniform(*out).to(dtype) if use.add else None,
        }
        return in_layout(made, case, "x", "add")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference (depthwise convolution), the zero-insert form, torch.compile of the reference."""
        use: Use = case.detail
        return {
            **our_backends(self.name, device, lambda backend: _ours(backend, use)),
            "reference": Variant(_ours("reference", use)),
            "zeros": Variant(
                functools.partial(zero_insert, use=use), {"double_backward": "seconds a call, and no aim"}
            ),
            "compile": compiled(_ours("reference", use)),
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads x (add, noise) and writes out, and one bit an element where a gradient of an activation will be
        wanted; each gradient reads a map and the bits, and writes a map.
        """
        use: Use = case.detail
        itemsize = DTYPES[case.dtype].itemsize
        x, out = math.prod(use.shape) * itemsize, math.prod(use.out_shape) * itemsize
        noise = out // use.shape[1] if use.noise else 0
        bits = math.prod(use.out_shape) // 8 if use.epilogue else 0
        forward = x + out + noise + (out if use.add else 0)
        gradient = x + out + bits
        if work == "forward":
            return forward
        if work == "forward_backward":  # + x for the gradient of the scale; noise for its strength's
            return forward + bits + gradient + noise + (x if use.epilogue else 0)
        return forward + bits + 2 * gradient

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map that is written."""
        x = tensors["x"]
        assert x is not None
        return {"forward": [grad], "forward_backward": [grad, x]}.get(work, [grad, second, grad])


BENCH = Upfirdn2dBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

"""modulated_conv2d: the layers of StyleGAN2 generators, against the forms that people have and the bare convolution."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anifast.errors import BackendError
from anifast.ops import modulated_conv2d
from benchmarks import modulated_layers
from benchmarks.bench import (
    DTYPES,
    Aim,
    Call,
    Case,
    OpBench,
    Tensors,
    Variant,
    compiled,
    in_layout,
    our_backends,
)
from benchmarks.shapes import MODULATED_BATCHES, MODULATED_CONV2D
from benchmarks.shapes import ModulatedConv2d as Use

#: measured on a CPU: of GANs N' Roses every layer but some images, of BlendGAN what lies beside; all would take hours
_ON_CPU = (
    *(f"{form}.gnr.{side}" for form in ("plain", "up") for side in (32, 64, 128, 256)),
    *("plain.gnr.16", "rgb.gnr.64", "rgb.gnr.256"),
    *(f"{form}.blendgan.{side}" for form in ("plain", "up", "rgb") for side in (16, 256, 1024)),
    *("plain.blendgan.4", "up.blendgan.8"),
)
#: also measured in other dtypes and layouts
_ALSO = ("plain.gnr.64", "up.gnr.64", "rgb.gnr.64", "plain.blendgan.16", "up.blendgan.16", "rgb.blendgan.16")


def layer(
    style: Tensor, x: Tensor, weight: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor | None,
    add: Tensor | None, *, use: Use, strategy: str = "auto", backend: str | None = None,
) -> Tensor:  # fmt: skip
    """The op as a layer of that use calls it, by a strategy or a backend."""
    return modulated_conv2d(
        x,
        weight,
        style,
        weight_gain=1.0 / math.sqrt(use.inputs * use.size**2),
        demodulate=use.demodulate,
        up=use.up,
        bias=bias,
        noise=noise,
        noise_strength=strength,
        add=add,
        act=use.demodulate,
        strategy=strategy,
        backend=backend,
    )


class ModulatedConv2dBench(OpBench):
    """The op in the layers of two systems. The double backward is that of path length regularisation, by the style."""

    name = "modulated_conv2d"
    forms = {
        "plain": "3 x 3, demodulation (+ noise) + bias + lrelu",
        "up": "3 x 3, 2x up, filter, demodulation (+ noise) + bias + lrelu",
        "rgb": "1 x 1 to an image, bias, + image so far",
    }
    roles = {
        "native": "ours",
        "triton": "ours",
        "library": "strategy",
        "gemm": "strategy",
        "winograd": "strategy",
        "grouped": "rival",
        "scaled": "rival",
        "compile": "rival",
    }
    limits = ("convolution", "matrix")
    leaves = ("style", "x", "weight", "bias", "strength")
    aims = (
        Aim("plain, forward + backward", "cpu", "grouped", 1.15, ("forward_backward",), ("plain",)),
        Aim("plain, forward + backward", "cpu", "scaled", 1.05, ("forward_backward",), ("plain",)),
        Aim("up, forward + backward", "cpu", "grouped", 2.5, ("forward_backward",), ("up",)),
        Aim(
            "plain and up, forward + backward", "cpu", "convolution", 0.85, ("forward_backward",), ("plain", "up"),
            percent=True, each=True,
        ),
        *(
            Aim(
                f"plain and up, {title}, bfloat16", "cuda", against, least, (work,), ("plain", "up"),
                dtype="bfloat16", layout="channels_last",
            )
            for work, title in (("forward", "forward"), ("forward_backward", "forward + backward"))
            for against, least in (("grouped", 2.5), (("grouped", "scaled", "compile"), 1.25))
        ),
        Aim(
            "512 channels from 64 px on, batch 16, forward, bfloat16", "cuda", "matrix", 0.55, ("forward",),
            percent=True, cases=("plain.blendgan.64.b16", "up.blendgan.128.b16"), dtype="bfloat16",
            layout="channels_last", each=True,
        ),
    )  # fmt: skip

    def cases(self, device: str) -> list[Case]:
        """On a CPU some layers in float32; on a GPU all in bfloat16, channels last, at the larger batch. A few of them
        in the other dtypes and layouts too, and on a GPU at the batch of training.
        """

        def case(use: Use, batch: int, dtype: str = "float32", layout: str = "contiguous", quick: bool = False) -> Case:
            shape = (batch, use.inputs, use.side, use.side)
            return Case(f"{use.name}.b{batch}", use.form, shape, use, dtype, layout, quick)

        batches = MODULATED_BATCHES[device]
        also = [use for use in MODULATED_CONV2D if use.name in _ALSO]
        if device == "cpu":
            found = [
                case(use, batch, quick=use.quick)
                for use in MODULATED_CONV2D
                if use.name in _ON_CPU
                for batch in batches[use.system]
            ]
            kinds = [("float32", "channels_last"), ("bfloat16", "contiguous")]
            also = [use for use in also if use.system == "blendgan"]
        else:
            found = [
                case(use, batch, "bfloat16", "channels_last", quick=use.quick and batch == batches[use.system][-1])
                for use in MODULATED_CONV2D
                for batch in batches[use.system]
                if batch == batches[use.system][-1] or use.name in _ALSO
            ]
            kinds = [("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "contiguous")]
            kinds.append(("float16", "channels_last"))
        return found + [case(use, batches[use.system][0], *kind) for kind in kinds for use in also]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """As in a trained network, and biases so far from 0 that rounding never decides the side of the kink.

        A normalised output has the spread of x, 0.58; biases are at 4.
        """
        use: Use = case.detail
        batch, dtype = case.shape[0], DTYPES[case.dtype]
        side = use.side * use.up

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device).mul_(2).sub_(1)

        weight = torch.randn(use.outputs, use.inputs, use.size, use.size, generator=generator, device=device)
        made: Tensors = {
            "style": uniform(batch, use.inputs).mul_(0.5).add_(1).to(dtype),
            "x": uniform(*case.shape).to(dtype),
            "weight": weight.to(dtype),
            "bias": (uniform(use.outputs).sign() * 4).to(dtype),
            "noise": uniform(batch, 1, side, side).to(dtype) if use.noise else None,
            "strength": torch.full((1,), 0.25, device=device, dtype=dtype) if use.noise else None,
            "add": uniform(batch, use.outputs, side, side).to(dtype) if use.add else None,
        }
        return in_layout(made, case, "x", "add")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The style on the input, in plain PyTorch."""
        return functools.partial(layer, use=case.detail, strategy="scaled")

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends with the strategy that they choose, and native's strategies by name; the definition (weights of
        each sample's own, one grouped convolution); the style on the input in plain PyTorch, and torch.compile of it.
        """
        call = functools.partial(functools.partial, layer, use=case.detail)
        return {
            **our_backends(self.name, device, lambda backend: call(backend=backend)),
            **{name: self._forced(name, case, device) for name in ("library", "gemm", "winograd")},
            "grouped": Variant(call(strategy="grouped")),
            "scaled": Variant(call(strategy="scaled")),
            "compile": compiled(call(strategy="scaled")),
        }

    def _forced(self, strategy: str, case: Case, device: str) -> Variant:
        """A strategy of native by name, where it does layers of this form: one small call tells."""
        if device == "cuda":
            return Variant(None, {"": "on a GPU the library's convolution is what native chooses"})
        tiny = dataclasses.replace(case.detail, inputs=8, outputs=min(case.detail.outputs, 8), side=8)
        small = dataclasses.replace(case, shape=(1, 8, 8, 8), detail=tiny)
        try:
            with torch.no_grad():
                layer(**self.tensors(small, device, torch.Generator()), use=tiny, strategy=strategy)  # type: ignore[arg-type]
        except (BackendError, ValueError, NotImplementedError) as error:
            return Variant(None, {"": f"{case.form}: {str(error).splitlines()[0]}"})
        return Variant(functools.partial(layer, use=case.detail, strategy=strategy))

    def traffic(self, case: Case, work: str) -> int:
        """See benchmarks/modulated_layers.py."""
        return modulated_layers.traffic(case.detail, case.shape[0], DTYPES[case.dtype].itemsize, work)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map and weight that is written."""
        x, weight = tensors["x"], tensors["weight"]
        assert x is not None and weight is not None
        return {"forward": [grad], "forward_backward": [grad, x, weight]}.get(work, [grad, grad, x, weight])

    def bounds(self, case: Case, work: str, tensors: Tensors, grad: Tensor) -> dict[str, Call]:
        """The library's convolutions that the work cannot do without, of the same tensors."""
        x, weight = tensors["x"], tensors["weight"]
        assert x is not None and weight is not None
        return {"convolution": modulated_layers.library(case.detail, work, x, weight)}

    def operations(self, case: Case, work: str) -> int:
        """See benchmarks/modulated_layers.py."""
        return modulated_layers.operations(case.detail, case.shape[0], work)


BENCH = ModulatedConv2dBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

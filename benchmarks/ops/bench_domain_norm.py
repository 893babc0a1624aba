"""domain_norm: norm of each group, leaky ReLU and pixel norm in two passes, against the chain people write."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.ops import domain_norm
from benchmarks.bench import DTYPES, Aim, Case, OpBench, Tensors, Variant, compiled, in_layout, our_backends
from benchmarks.shapes import DOMAIN_NORM
from benchmarks.shapes import DomainNorm as Use

#: the shapes also measured in bfloat16
_ALSO = ("twingan.g.256x8", "twingan.g.128x32", "twingan.g.64x64")


def chain(x: Tensor, gamma: Tensor, beta: Tensor, *, unit: bool, **memories: Tensor) -> Tensor:
    """What model code has where no fused op is at hand: PyTorch's batch norm of each group, and what follows.

    The memories are empty, so that batch renormalisation changes nothing; this does not even look.
    """
    parts = zip(x.chunk(len(gamma)), gamma, beta, strict=True)
    y = torch.cat([F.batch_norm(part, None, None, g, b, training=True, eps=1e-3) for part, g, b in parts])
    if not unit:
        return y
    y = F.leaky_relu(y, 0.2)
    return y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6)


def _ours(backend: str, use: Use) -> Callable[..., Tensor]:
    slope = 0.2 if use.unit else 1.0

    def call(x: Tensor, gamma: Tensor, beta: Tensor, **memories: Tensor) -> Tensor:
        return domain_norm(
            x,
            gamma,
            beta,
            groups=use.groups,
            renorm=(memories["mean_memory"], memories["std_memory"], memories["weights"], memories["limits"]),
            slope=slope,
            pixel_norm=use.unit,
            backend=backend,
        )[0]

    return call


class DomainNormBench(OpBench):
    """The op in the forms and shapes that the systems use."""

    name = "domain_norm"
    forms = {"unit": "norm, leaky ReLU and pixel norm", "norm": "norm alone"}
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "chain": "rival", "compile": "rival"}
    leaves = ("x", "gamma", "beta")
    aims = (
        Aim("both forms, forward", "cpu", ("reference", "chain"), 3.0, ("forward",)),
        Aim("both forms, forward + backward", "cpu", ("reference", "chain"), 3.0, ("forward_backward",)),
        Aim("both forms, forward", "cpu", ("reference", "chain"), 3.0, ("forward",), layout="channels_last"),
        Aim(
            "both forms, forward + backward", "cpu", ("reference", "chain"), 3.0, ("forward_backward",),
            layout="channels_last",
        ),
        Aim("both forms, forward + backward", "cpu", "compile", 1.0, ("forward_backward",)),
        *(
            Aim(
                f"both forms, {title}", "cuda", "clone", 0.75, (work,), percent=True, dtype=dtype,
                layout="channels_last",
            )
            for dtype in ("float32", "bfloat16")
            for title, work in (("forward", "forward"), ("forward + backward", "forward_backward"))
        ),
    )  # fmt: skip

    def cases(self, device: str) -> list[Case]:
        """All uses in float32 and both layouts; a few also in bfloat16."""
        plain = [Case(use.name, use.form, use.shape, use, quick=use.quick) for use in DOMAIN_NORM]
        kinds = [("float32", "channels_last"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last")]
        return plain + [
            Case(case.name, case.form, case.shape, case.detail, dtype, layout)
            for dtype, layout in kinds
            for case in plain
            if dtype == "float32" or case.name in _ALSO
        ]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Parameters as they are where training starts; no value is so near the kink that rounding decides its side."""
        use: Use = case.detail
        dtype = DTYPES[case.dtype]
        channels = use.shape[1]
        x = torch.randn(use.shape, generator=generator, device=device)
        gamma = torch.ones(use.groups, channels, device=device)
        margin = 0.01 if dtype == torch.float32 else 0.1
        for _ in range(20):  # moving some of them moves the mean a little
            normal, *_ = domain_norm(
                x.to(dtype).float(), gamma, 0 * gamma, groups=use.groups, slope=1.0, pixel_norm=False,
                backend="reference",
            )  # fmt: skip
            near = normal.abs() < margin
            if not near.any():
                break
            x = torch.where(near, x + 3 * margin, x)
        made: Tensors = {
            "x": x.to(dtype),
            "gamma": gamma,
            "beta": 0 * gamma,
            "mean_memory": 0 * gamma,
            "std_memory": 0 * gamma,
            "weights": torch.zeros(use.groups, 2, device=device),
            "limits": torch.tensor([0.25, 4.0, 1.0], device=device),
        }
        return in_layout(made, case, "x")

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the chain, and torch.compile of the chain."""
        use: Use = case.detail
        plain = functools.partial(chain, unit=use.unit)
        ours = our_backends(self.name, device, lambda backend: _ours(backend, use))
        no_second = {"double_backward": "no second derivative: the reference has it, and no system needs it"}
        missing = no_second
        if not use.unit and case.layout == "channels_last":
            wrong = "PyTorch's batch norm adds up 65,536 values of 3 channels one by one there, and errs too much"
            missing = dict.fromkeys(("forward", "forward_backward", "double_backward"), wrong)
        return {
            **{name: Variant(v.function, {**no_second, **v.missing}) for name, v in ours.items()},
            "reference": Variant(_ours("reference", use)),
            "chain": Variant(plain, missing),
            "compile": compiled(plain),
        }

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads x for the statistics and again for out; backward reads grad and x twice."""
        one = math.prod(case.detail.shape) * DTYPES[case.dtype].itemsize
        return {"forward": 3 * one, "forward_backward": 8 * one}.get(work, 13 * one)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for every map that is written."""
        maps = {"forward": [tensors["x"]], "forward_backward": [tensors["x"], grad]}.get(
            work, [tensors["x"], grad, second]
        )
        return [tensor for tensor in maps if tensor is not None]


BENCH = DomainNormBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

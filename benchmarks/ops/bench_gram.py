"""gram: the Gram matrices of five maps as one vector an image, against a product a map and cat."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anifast.ops import gram
from benchmarks.bench import (
    DTYPES,
    Aim,
    Call,
    Case,
    OpBench,
    Tensors,
    Variant,
    WrongResult,
    compiled,
    in_layout,
    our_backends,
)
from benchmarks.shapes import GRAM_BATCHES, GRAM_MAPS


def plain(*, folded: bool, **maps: Tensor) -> Tensor:
    """What people write: a product a map, normalised and flattened (folded: indexed), then cat.

    Half maps are taken to float32 first, as the vector is; on a GPU a product of half maps can sum to float32 by
    itself, but has no gradient.
    """
    rows = []
    for x in maps.values():
        flat, half = x.flatten(2), x.dtype in (torch.bfloat16, torch.float16)
        if half and x.is_cuda and not torch.is_grad_enabled():
            matrix = torch.bmm(flat, flat.mT, out_dtype=torch.float32)
        else:
            flat = flat.float() if half else flat
            matrix = torch.bmm(flat, flat.mT)
        matrix = matrix / x[0].numel()
        if folded:
            above = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
            rows.append(matrix[:, above[0], above[1]])
        else:
            rows.append(matrix.flatten(1))
    return torch.cat(rows, dim=1)


def positions(device: torch.device) -> Tensor:
    """Where the entries of the folded vector stand in the whole one."""
    found, before = [], 0
    for channels, _ in GRAM_MAPS.values():
        rows, columns = torch.triu_indices(channels, channels, device=device)
        found.append(before + rows * channels + columns)
        before += channels**2
    return torch.cat(found)


def _ours(backend: str, folded: bool) -> Callable[..., Tensor]:
    def call(**maps: Tensor) -> Tensor:
        return gram(list(maps.values()), folded=folded, backend=backend)

    return call


class GramBench(OpBench):
    """The style vector of BlendGAN, whole or folded. A case's shape is that of the first map.

    Who folds the vector had the whole one before: beside the rivals, which give the same numbers, the whole vector in
    plain PyTorch is timed as the bound `whole`, in the form "full" too.
    """

    name = "gram"
    forms = {"full": "five maps of VGG-19, whole matrices", "folded": "five maps of VGG-19, upper triangles"}
    roles = {"native": "ours", "triton": "ours", "reference": "rival", "plain": "rival", "compile": "rival"}
    leaves = tuple(GRAM_MAPS)
    limits = ("whole", "matrix")
    aims = (
        Aim("full, forward", "cpu", "plain", 1.2, ("forward",), ("full",)),
        Aim("folded, forward", "cpu", "whole", 1.5, ("forward",), ("folded",)),
        Aim("full, batch 1, forward", "cuda", "plain", 2.5, ("forward",), cases=("full.b1",)),
        Aim("full, batch 16, forward", "cuda", "plain", 1.5, ("forward",), cases=("full.b16",)),
    )

    def cases(self, device: str) -> list[Case]:
        """All batches in float32 and both layouts; the largest in bfloat16 too."""
        batches, (channels, side) = GRAM_BATCHES[device], GRAM_MAPS["relu1_2"]
        kinds = [(dtype, layout) for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels_last")]
        return [
            Case(
                f"{form}.b{batch}", form, (batch, channels, side, side), form == "folded", dtype, layout,
                quick=batch == 1 and (dtype, layout) == kinds[0],
            )
            for dtype, layout in kinds
            for form in self.forms
            for batch in (batches if dtype == "float32" else batches[-1:])
        ]  # fmt: skip

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Maps as behind a ReLU."""
        made: Tensors = {}
        for name, (channels, side) in GRAM_MAPS.items():
            x = torch.randn(case.shape[0], channels, side, side, generator=generator, device=device)
            made[name] = x.relu_().to(DTYPES[case.dtype])
        return in_layout(made, case, *made)

    def reference(self, case: Case) -> Callable[..., Tensor]:
        """The op's own plain PyTorch form."""
        return _ours("reference", case.detail)

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Our backends, the reference, the products and cat, and torch.compile of these."""
        rival = functools.partial(plain, folded=case.detail)
        return {
            **our_backends(self.name, device, lambda backend: _ours(backend, case.detail)),
            "reference": Variant(_ours("reference", case.detail)),
            "plain": Variant(rival),
            "compile": compiled(rival),
        }

    def bounds(self, case: Case, work: str, tensors: Tensors, grad: Tensor) -> dict[str, Call]:
        """The whole vector in plain PyTorch and, where the work has them, the same gradients from it: that of a whole
        vector is 0 below the diagonals.

        Raises:
            WrongResult: it is not the vector of the case.
        """
        maps = {name: x for name, x in tensors.items() if x is not None}
        upstream = grad
        if case.detail:
            at = positions(grad.device)
            upstream = grad.new_zeros(grad.shape[0], sum(_entries(c, False) for c, _ in GRAM_MAPS.values()))
            upstream[:, at] = grad
        self._check(case, maps)
        if work == "forward":
            return {"whole": lambda: [plain(folded=False, **maps)]}
        given = {name: x.detach().requires_grad_() for name, x in maps.items()}
        leaves = list(given.values())

        def gradients() -> list[Tensor | None]:
            out = plain(folded=False, **given)
            return [out, *torch.autograd.grad(out, leaves, upstream)]

        def second() -> list[Tensor | None]:
            out = plain(folded=False, **given)
            by = upstream.detach().requires_grad_()
            (first,) = torch.autograd.grad(out, leaves[0], by, create_graph=True)
            direction = leaves[0].detach()
            return [out, first, *torch.autograd.grad(first, [by, *leaves], direction, allow_unused=True)]

        return {"whole": gradients if work == "forward_backward" else second}

    @staticmethod
    @torch.no_grad()
    def _check(case: Case, maps: dict[str, Tensor]) -> None:
        """Hold the whole vector to the case's in float64, as every rival is: see benchmarks/bench.py."""
        reference = _ours("reference", case.detail)
        exact, usual = reference(**{name: x.double() for name, x in maps.items()}), reference(**maps)
        found = plain(folded=False, **maps)
        found = found[:, positions(found.device)] if case.detail else found
        error, plain_error = (float((value - exact).abs().max()) for value in (found, usual))
        allowed = 2 * plain_error + 8 * torch.finfo(torch.float32).eps * float(exact.abs().max())
        if not error <= allowed:
            raise WrongResult(f"{case.id}, whole: error {error:.3g}, allowed {allowed:.3g}")

    def traffic(self, case: Case, work: str) -> int:
        """Forward reads the maps and writes the vector; backward reads the maps and the vector's gradient and writes
        gradients like the maps. The double backward goes through the first map alone, three times.
        """
        size = DTYPES[case.dtype].itemsize
        values = [channels * side**2 for channels, side in GRAM_MAPS.values()]
        maps, first = case.shape[0] * sum(values) * size, case.shape[0] * values[0] * size
        vector = case.shape[0] * 4 * sum(_entries(channels, case.detail) for channels, _ in GRAM_MAPS.values())
        forward = maps + vector
        if work == "forward":
            return forward
        return forward + (2 * maps + vector if work == "forward_backward" else 6 * first + 3 * vector)

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """A clone for the vector and for every gradient that is written."""
        maps = {"forward": [], "forward_backward": list(tensors.values())}.get(work, [second, grad, second])
        return [grad, *(x for x in maps if x is not None)]

    def operations(self, case: Case, work: str) -> int:
        """Those of the upper triangles with the diagonal, which is what a symmetric product needs; a gradient of a map
        is a product with a whole matrix. The double backward has the gradient of the first map, and of that the
        symmetric gradient of the vector and another product with a whole matrix.
        """
        triangles, wholes = [], []
        for channels, side in GRAM_MAPS.values():
            pixels = case.shape[0] * side**2
            triangles.append(2 * pixels * _entries(channels, True))
            wholes.append(2 * pixels * channels**2)
        if work == "forward":
            return sum(triangles)
        if work == "forward_backward":
            return sum(triangles) + sum(wholes)
        return sum(triangles) + 2 * triangles[0] + 2 * wholes[0]


def _entries(channels: int, folded: bool) -> int:
    return channels * (channels + 1) // 2 if folded else channels**2


BENCH = GramBench()


def test_speed(row: Any, benchmark: Any) -> None:
    row.measure(benchmark)

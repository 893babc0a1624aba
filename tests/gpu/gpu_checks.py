"""What the GPU tests of every op check alike. `cases` is the module of an op's cases (bias_lrelu_cases, ...)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import anifast

HALVES = (torch.float16, torch.bfloat16)


def same_bits_each_time(cases: ModuleType, case: Any, backend: str) -> None:
    """Two runs give the same bits: sums are made in a fixed order."""
    tensors = cases.make(case, torch.float32, "cuda")
    first, second = cases.results(case, tensors, backend), cases.results(case, tensors, backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


def kernels_that_run(cases: ModuleType, case: Any, backend: str) -> list[str]:
    """The names of the kernels behind an op's results; skips where the profiler cannot tell."""
    tensors = cases.make(case, torch.float32, "cuda")
    cases.results(case, tensors, backend)  # compiled before the profiler looks
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        cases.results(case, tensors, backend)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if "kernel" in event.name]
    if not names:
        pytest.skip("the profiler reads no kernels on this machine")
    return names


def stream_orders_kernels(cases: ModuleType, case: Any, backend: str) -> None:
    """On another stream, kernels wait for what that stream was given before."""
    tensors = cases.make(case, torch.float32, "cuda")
    expected = cases.results(case, tensors, backend)
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            slow = slow @ slow * 1e-3  # the tensors are written only after this
        nothing = 0.0 * slow[0, 0].nan_to_num()
        late = {name: (value.detach() + nothing).requires_grad_(value.requires_grad) for name, value in tensors.items()}
        got = cases.results(case, late, backend)
    stream.synchronize()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def graph_replays(cases: ModuleType, case: Any, backend: str, leaves: tuple[str, ...]) -> None:
    """A CUDA graph of forward and backward gives what a call gives, for new numbers in the same memory."""
    tensors = cases.make(case, torch.float32, "cuda")
    cases.results(case, tensors, backend)
    torch.use_deterministic_algorithms(False)

    def step() -> list[Tensor]:
        out = cases.call(case, tensors, backend)
        return [out, *torch.autograd.grad(out, [tensors[name] for name in leaves], tensors["grad"])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        fresh = cases.make(case, torch.float32, "cuda", seed)
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(fresh[name])
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


def compiles_into_one_graph(cases: ModuleType, case: Any, backend: str, leaf: str = "x") -> None:
    """torch.compile(fullgraph=True) of a function around the op, with its gradient."""
    tensors = cases.make(case, torch.float32, "cuda")

    def function(x: Tensor) -> Tensor:
        return cases.call(case, tensors | {leaf: x}, None).sin()

    with anifast.use_backend(backend):
        out = torch.compile(function, fullgraph=True)(tensors[leaf])
        gx = torch.autograd.grad(out, tensors[leaf], tensors["grad"])[0]
    expected = cases.call(case, tensors, "reference").sin()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected, tensors[leaf], tensors["grad"])[0])


def unaligned_memory_agrees(cases: ModuleType, case: Any, backend: str) -> None:
    """Tensors that begin beside a multiple of 16 bytes give the same."""
    tensors = cases.make(case, torch.float32, "cuda")
    expected = cases.results(case, tensors, backend)
    for key in {"x", "noise", "residual", "shortcut", "add", "grad", "a", "b", "0", "1"} & set(tensors):
        value = tensors[key].detach()
        storage = torch.empty(value.numel() + 1, dtype=value.dtype, device="cuda")
        moved = storage[1:].as_strided(value.shape, value.stride(), 1).copy_(value)
        tensors[key] = moved.requires_grad_(tensors[key].requires_grad)
    got = cases.results(case, tensors, backend)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key])


def passes_gradcheck(cases: ModuleType, case: Any, backend: str) -> None:
    """First and second order against finite differences, in float64."""
    tensors = cases.make(case, torch.float64, "cuda")
    constants = {name: tensors.pop(name) for name in ("grad", "kernel") if name in tensors}

    def function(*values: Tensor) -> Tensor:
        return cases.call(case, dict(zip(tensors, values, strict=True)) | constants, backend)

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


def golden_case_agrees(cases: ModuleType, case: Any, backend: str, most: float) -> None:
    """Every stored output of a golden case, with errors up to `most`."""
    found = cases.golden_results(case, backend, "cuda")
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors: dict[str, float] = case.compare({name: value.detach().cpu().numpy() for name, value in found.items()})
    assert max(errors.values()) < most, errors

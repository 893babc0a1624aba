"""What every op's tests share beside their own cases: NaN-filled allocations and the proof of backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def nan_filled_allocations() -> Iterator[None]:
    """Fresh memory holds NaN (integers: the largest value), so an element that a kernel forgets cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all(), "allocations are not filled: the test would prove nothing"
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before)


class CalledOps(TorchDispatchMode):
    """Collects the names of our dispatcher ops that run inside the with block: the proof of which backend worked."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "anifast":
            self.names.add(func.name().removeprefix("anifast::"))
        return func(*args, **(kwargs or {}))


class RecordedCalls(CalledOps):
    """Keeps those calls with their arguments too, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "anifast":
            self.calls.append((func, args))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def of(self, op: str) -> list[tuple[Any, ...]]:
        """The arguments of the calls of one op."""
        return [args for func, args in self.calls if func.name() == f"anifast::{op}"]


def sums_of_backward(run: Callable[[], Any]) -> list[bool]:
    """What the calls of bias_lrelu_backward inside `run` are asked to sum: (of the bias, of the strength) each."""
    with RecordedCalls() as recorded:
        run()
    return [wanted for func, args in recorded.calls if "bias_lrelu_backward" in str(func) for wanted in args[-2:]]


def check_asked_for(cases: Any, name: str) -> None:
    """Backward of one input alone sums nothing for the others, and finds the same."""
    case = cases.CASE[name]
    tensors = cases.make(case, torch.float32)
    out, found = cases.call(case, tensors, "native"), []
    wanted = sums_of_backward(lambda: found.extend(torch.autograd.grad(out.sum(), tensors["x"], create_graph=True)))
    assert wanted == [False, False]
    names = [name for name in tensors if name not in ("grad", "kernel")]
    together = torch.autograd.grad(cases.call(case, tensors, "native").sum(), [tensors[name] for name in names])
    torch.testing.assert_close(found[0], together[names.index("x")])


def check_short_way(cases: Any, case: Any, ops: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The short and the long way of an op from Python give the same bits; returns whether the short one is taken."""
    taken: list[bool] = []

    def watched(*arguments: Any) -> Any:
        taken.append((out := short(*arguments)) is not None)
        return out

    short, found = ops.short, []
    assert short is not None
    for way in (watched, None):
        monkeypatch.setattr(ops, "short", way)
        found.append(cases.results(case, cases.make(case, torch.float32), "native"))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    return taken

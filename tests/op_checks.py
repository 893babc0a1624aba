"""What every op's tests share beside their own cases: NaN-filled allocations and the proof of backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

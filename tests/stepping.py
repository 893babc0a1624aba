"""What tests of training share: two trainings compared in float64, steps of two processes, runs compared by files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cyclegan import ROOT
from torch import Tensor, nn

#: Ours rounds in another order in some hundred sums that lie behind one another, whose errors add up like sqrt(256);
#: what one rounding of each weight leads to is measured.
SUMS = 16


@torch.no_grad()
def move_by_an_ulp(nets: Mapping[str, nn.Module]) -> None:
    """Every weight by one rounding, up or down."""
    source = torch.Generator().manual_seed(5)
    for net in nets.values():
        for value in net.parameters():
            signs = torch.randint(0, 2, value.shape, generator=source).double() * 2 - 1
            value.mul_(1 + signs * torch.finfo(torch.float64).eps)


def state_of(
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    ema: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """Weights, averages, and what optimisers keep of each weight, the latter by number."""
    found = {f"weights {name} {key}": value for name, net in nets.items() for key, value in net.named_parameters()}
    for name, net in (ema or {}).items():
        found |= {f"ema {name} {key}": value for key, value in net.named_parameters()}
    for name, optimizer in optimizers.items():
        for number, slots in optimizer.state_dict()["state"].items():
            found |= {f"{kind} {name} {number}": value for kind, value in slots.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def deviations(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each kind: of the weights of a network, of the moments of an optimiser."""
    assert set(one) == set(other), set(one) ^ set(other)
    found: dict[str, float] = {}
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
        kind = " ".join(name.split()[:2])
        found[kind] = max(found.get(kind, 0.0), float((value - other[name]).abs().max()))
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """As `two_processes` have it, so that sums are added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def two_processes(module: str, function: str, folder: Path, *words: str) -> None:
    """Call `function(team, *words)` of a test module in two processes that torchrun starts on the CPU.

    Args:
        module: its name, in tests/systems.
        function: in it.
        folder: for the program.
        words: its other arguments.
    """
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/systems']\n"
        "import torch; torch.set_num_threads(1)\n"
        f"import {module} as tests\n"
        "from anifast.engine import distributed\n"
        "with distributed.team('cpu') as team:\n"
        f"    tests.{function}(team, *{words!r})\n"
    )
    (folder / "program.py").write_text(program)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*run, str(folder / "program.py")], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


class Killed(BaseException):
    """Nothing that training would catch."""


def killed(owner: Any, name: str, count: int, call: Callable[[], int]) -> None:
    """Break a run off where a function is called, behind so many calls of it."""
    left, original = [count], getattr(owner, name)

    def deadly(*args: Any, **named: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return original(*args, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, deadly)
        call()


def words(settings: Mapping[str, Any], **changes: Any) -> list[object]:
    """Settings as options of a command."""
    found: list[object] = []
    for name, value in {**settings, **changes}.items():
        flag = name.replace("_", "-")
        found += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    return found


def rows_of(stage: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Checkpoints, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert bool(((one == other) | (one.isnan() & other.isnan())).all()), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (value, another) in enumerate(zip(one, other, strict=True)):
            assert_same(value, another, f"{where}[{i}]")
    else:
        assert one == other, where

"""The memory that a run of GANs N' Roses says it takes is what it keeps for its gradients."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tiny_gnr import tiny_config
from torch import Tensor

from anifast.engine.loop import run_step
from anifast.systems.gnr import training


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_at_most(system: training.GNR, step: int) -> int:
    """Bytes, other than weights, that the graph of step 0 (with a penalty) or another keeps at its largest."""
    nets = [*system.nets.values(), *([] if system.lpips is None else [system.lpips])]
    own = {p.untyped_storage().data_ptr() for net in nets for p in net.parameters()}
    uses: dict[int, int] = {}
    now = most = 0

    def pack(tensor: Tensor) -> Kept:
        nonlocal now, most
        held, storage = Kept(tensor), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in own:
            return held
        uses[place] = uses.get(place, 0) + 1
        if uses[place] == 1:
            now += size
            most = max(most, now)

        def dropped() -> None:
            nonlocal now
            uses[place] -= 1
            if uses[place] == 0:
                now -= size

        weakref.finalize(held, dropped)
        return held

    config = system.config
    images = torch.rand(config.batch, 3, config.size, config.size) * 2 - 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        system.begin(training.Batch(*[images] * 4), step * config.batch)
        run_step(system.phases, step, torch.device("cpu"))
    return most


@pytest.mark.parametrize("r1", [10.0, 0.0])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate(checkpointing: bool, r1: float) -> None:
    """Within a third; wide enough channels that the maps are most of it."""
    values: dict[str, Any] = {"channel_multiplier": 0.125, "batch": 3, "checkpointing": checkpointing, "r1": r1}
    config = tiny_config(**values)
    system = training.GNR(config, torch.device("cpu"))
    sizes = [sum(p.numel() for p in net.parameters()) for net in system.nets.values()]
    weights = 16 * sum(sizes) + 4 * sum(sizes[:2])
    maps = training.memory_estimate(config, system.nets) * 2**30 - weights
    assert 2 / 3 < maps / kept_at_most(system, 0) < 3 / 2


def test_what_changes_it() -> None:
    nets = training.networks(tiny_config())

    def needed(processes: int = 1, **values: Any) -> float:
        return training.memory_estimate(tiny_config(batch=8, **values), nets, processes)

    assert needed(ema=0.0) < needed()
    assert needed(checkpointing=True) < needed()
    assert needed(precision="bf16") < needed()
    assert needed(processes=2) < needed()
    assert needed(lpips_net="random") > needed()

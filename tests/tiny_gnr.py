"""A GANs N' Roses small enough for tests, and what its files hold: ours and the authors', with made-up weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anifast.systems.gnr.checkpoints import header
from anifast.systems.gnr.config import Config, make
from anifast.systems.gnr.networks import networks

TINY: dict[str, Any] = {"size": 64, "num_down": 3, "channel_multiplier": 1 / 32, "batch": 2, "lpips_net": "none"}
GENERATORS = ("G_A2B", "G_B2A")
Weights = dict[str, Tensor]


def tiny_config(**changes: Any) -> Config:
    """The preset `rel` at 64 px with at most 16 channels (the mapping network keeps its 512)."""
    return make(values=TINY | changes)


def weights(config: Config, seed: int = 0) -> dict[str, Weights]:
    """Of the five networks: as drawn for this seed, with biases that are not 0 as trained ones are not."""
    nets = networks(dataclasses.replace(config, seed=seed))
    source = torch.Generator().manual_seed(seed)
    for net in nets.values():
        for key, value in net.named_parameters():
            if key.endswith("bias"):
                scale = 10.0 if key.startswith("mapping") else 0.1
                value.data.add_(torch.randn(value.shape, generator=source), alpha=scale)
    return {name: dict(net.state_dict()) for name, net in nets.items()}


def own_state(config: Config, seed: int = 0, ema: bool = True) -> dict[str, Any]:
    """A run's checkpoint after two steps, without optimisers and data; averages are not the live weights."""
    state = {**header(config), "images": 2 * config.batch, "steps": 2, "nets": weights(config, seed)}
    if ema:
        averages = weights(config, seed + 1)
        state["ema"] = {name: averages[name] for name in GENERATORS}
    return state


def authors_state(config: Config, seed: int = 0, optimisers: bool = True) -> dict[str, Any]:
    """The dict of the authors' training code after iteration 6 (it saves every 2000th)."""
    nets = weights(config, seed)
    state: dict[str, Any] = {name: nets[name] for name in GENERATORS}
    averages = weights(config, seed + 1)
    state |= {f"{name}_ema": averages[name] for name in GENERATORS}
    state |= {name: nets[name] for name in ("D_A", "D_B", "D_L")}
    if optimisers:
        state["G_optim"] = authors_adam([nets[name] for name in GENERATORS], config.lr, 0.99, seed)
        discriminators = [nets[name] for name in ("D_L", "D_A", "D_B")]
        state["D_optim"] = authors_adam(discriminators, config.lr, 0.99 ** (16 / 17), seed)
    return state | {"iter": 6}


def ema_only(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of the authors' dict what GNR_checkpoint.pt, their first file, holds."""
    return {f"{name}_ema": state[f"{name}_ema"] for name in GENERATORS}


def authors_adam(nets: list[Weights], lr: float, beta2: float, seed: int) -> dict[str, Any]:
    """The state of an Adam over the parameters of `nets`, as PyTorch of 2021 has written it: steps are ints."""
    source = torch.Generator().manual_seed(seed)
    shapes = [value.shape for net in nets for key, value in net.items() if not key.endswith("kernel")]
    state = {
        i: {
            "step": 7,
            "exp_avg": torch.randn(shape, generator=source),
            "exp_avg_sq": torch.rand(shape, generator=source),
        }
        for i, shape in enumerate(shapes)
    }
    group = {"lr": lr, "betas": (0, beta2), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "initial_lr": lr}
    return {"state": state, "param_groups": [group | {"params": list(range(len(shapes)))}]}

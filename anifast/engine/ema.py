"""Exponential moving averages of networks, which give better pictures than the last step's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anifast.errors import CheckpointError


class EMA:
    """Averaged copies of networks: average = beta * average + (1 - beta) * weight, with beta = 0.5^(batch/half_life).

    Counted in images, so that the average means the same at any batch size (Karras et al. 2020, StyleGAN2). Buffers
    are not averaged but copied.

    Args:
        nets: the networks in training; copied as they are now.
        half_life: after so many images a weight's share in the average has halved.

    Attributes:
        nets: the averages by the same names, without gradient.
    """

    def __init__(self, nets: Mapping[str, nn.Module], half_life: float) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life}; expected more than 0 images")
        self.half_life = half_life
        self._live = dict(nets)
        self.nets = {name: copy.deepcopy(net).eval().requires_grad_(False) for name, net in nets.items()}

    def averages(self, nets: Iterable[nn.Module]) -> bool:
        """Whether any of `nets` is one of those averaged."""
        return any(net is live for net in nets for live in self._live.values())

    @torch.no_grad()
    def update(self, batch: int) -> None:
        """Take in the weights after a step of `batch` images."""
        average = get_ema_multi_avg_fn(0.5 ** (batch / self.half_life))
        for name, net in self._live.items():
            mean = self.nets[name]
            average(list(mean.parameters()), list(net.parameters()), 0)
            for kept, buffer in zip(mean.buffers(), net.buffers(), strict=True):
                kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The averages, each in its network's keys."""
        return {name: net.state_dict() for name, net in self.nets.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        try:
            for name, net in self.nets.items():
                net.load_state_dict(state[name])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the averaged weights do not fit: {str(error).splitlines()[0]}") from error

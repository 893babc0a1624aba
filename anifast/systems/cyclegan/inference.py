"""Translating pictures with a trained CycleGAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anifast.engine.config import check_options
from anifast.engine.precision import PRECISIONS, autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan import checkpoints
from anifast.systems.cyclegan.networks import Generator, build_generator, fill

_WHAT = "the generator of this file"


class Translator:
    """The generators of a checkpoint, of both directions or of one; one is built when it is first asked for.

    Args:
        state: a loaded checkpoint of any kind that `checkpoints.recognises` accepts.
        device: where to compute.
        precision: "fp32", or "bf16" for faster convolutions where the machine has them.

    Raises:
        AnifastError: there is no such precision.
        CheckpointError: the file holds another architecture.
    """

    #: The domains there are, the default first.
    targets = ("B", "A")

    def __init__(self, state: Mapping[str, Any], device: torch.device, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise AnifastError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        self.config, self._weights = checkpoints.generators(state)
        #: Whether the weights are averages over the steps of a run.
        self.averaged = checkpoints.averaged(state)
        self.device, self.precision = device, precision
        #: Whether the file holds a generator for each direction; one of the reference may serve both.
        self.both = len(self._weights) == 2 and self._weights["AB"] is not self._weights["BA"]
        #: Those that the file has a generator to.
        self.held = tuple(to for to, way in (("B", "AB"), ("A", "BA")) if way in self._weights)
        self._nets: dict[str, Generator] = {}
        for weights in self._weights.values():
            with torch.device("meta"):  # a file of another architecture is refused here, before anything is computed
                fill(build_generator(self.config), weights, _WHAT, assign=True)

    @property
    def size(self) -> int:
        """The side that the generators were trained at."""
        return self.config.size

    #: Sides of images must be multiples of this.
    multiple = 4

    def require(self, to: str) -> None:
        """Check that there is a generator to the domain `to`, "A" or "B".

        Raises:
            CheckpointError: the file has none.
        """
        if to not in self.held:
            raise CheckpointError(
                f"this model translates to {self.held[0]} only; the generator to {to} is in another file"
            )

    def _generator(self, to: str) -> Generator:
        name = {"B": "AB", "A": "BA"}[to]
        self.require(to)
        if name not in self._nets:
            net = build_generator(self.config)
            fill(net, self._weights[name], _WHAT)
            self._nets[name] = net.to(self.device).eval()
        return self._nets[name]

    @torch.no_grad()
    def translate(self, images: Tensor, to: str = "B") -> Tensor:
        """Translate images.

        Args:
            images: N,3,H,W in [-1, 1], float, any N, H and W multiples of 4 and at least 8, on any device.
            to: the domain wanted, "A" or "B".

        Returns:
            N,3,H,W in [-1, 1] of the same type and on the same device as `images`; no gradient.

        Raises:
            ValueError: wrong shape, type or target.
            CheckpointError: the file has no generator of this direction.
        """
        if to not in self.targets:
            raise ValueError(f"to: {to!r} is not one of A, B")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected N,3,H,W, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple or min(height, width) < 8:
            raise ValueError(f"images: sides must be multiples of 4 and at least 8, got {height}x{width}")
        if not len(images):
            return images.clone()
        net = self._generator(to)
        with autocast(self.device, self.precision):
            result: Tensor = net(images.to(self.device, torch.float32))
        return result.clamp(-1.0, 1.0).to(images.device, images.dtype).contiguous()


def load(state: Mapping[str, Any], device: torch.device, **options: Any) -> Translator:
    """The model in a loaded checkpoint.

    Raises:
        AnifastError: an option that this system does not have, or a value that it cannot take.
    """
    check_options("CycleGAN", options, ("precision",))
    return Translator(state, device, **options)

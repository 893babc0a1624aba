"""The losses of CycleGAN and its pool of past translations (spec: Zhu et al. 2017, section 3)."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.errors import CheckpointError


def gan_loss(scores: Tensor, real: bool, kind: str = "lsgan") -> Tensor:
    """Adversarial loss of scores that are wanted to read "real" or "fake", mean over all elements, in float32 or more.

    Args:
        scores: raw scores of any shape.
        real: what they are wanted to say: 1 for real, 0 for fake.
        kind: "lsgan": mean((s - t)^2); "vanilla": binary cross entropy of the logits; "wgangp": -mean(s) or mean(s).

    Raises:
        ValueError: unknown kind.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if kind == "lsgan":
        return (scores - float(real)).square().mean()
    if kind == "vanilla":
        return F.softplus(-scores if real else scores).mean()
    if kind == "wgangp":
        return -scores.mean() if real else scores.mean()
    raise ValueError(f"gan_loss: kind {kind!r} is not one of lsgan, vanilla, wgangp")


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference over all elements."""
    return F.l1_loss(x, y)


class ImagePool:
    """Up to `size` past translations, of which the discriminator sees one about half of the time.

    While it fills, an image is stored and given back. Then, per image, u ~ U[0, 1): above 0.5 a stored image is given
    back and replaced by the new one, else the new one is given back and not stored.

    Args:
        size: how many to keep; 0 gives every image back as it came.
        rng: source of the decisions, shared by the pools of a run.
    """

    def __init__(self, size: int, rng: random.Random) -> None:
        self.size, self._rng = size, rng
        self.count = 0
        self._images: Tensor | None = None

    @property
    def held(self) -> Tensor:
        """The stored images by slot: count,C,H,W."""
        return torch.empty(0) if self._images is None else self._images[: self.count]

    def query(self, images: Tensor) -> Tensor:
        """N,C,H,W new translations (no gradient) -> as many, partly from the past."""
        if self.size == 0:
            return images
        if self._images is None:
            self._images = images.new_empty((self.size, *images.shape[1:]))
        returned = []
        for image in images:
            if self.count < self.size:
                self._images[self.count] = image
                self.count += 1
            elif self._rng.uniform(0, 1) > 0.5:
                slot = self._rng.randint(0, self.size - 1)
                old = self._images[slot].clone()
                self._images[slot] = image
                image = old
            returned.append(image)
        return torch.stack(returned)

    def state_dict(self) -> dict[str, Any]:
        """The stored images and how many there are; the generator of decisions belongs to the run."""
        # A copy: of a view torch.save would write the whole storage, also the part that nothing was put into yet.
        return {"count": self.count, "images": self.held.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over stored images.

        Raises:
            CheckpointError: they do not fit this pool.
        """
        images, self.count = state["images"], int(state["count"])
        if self.count > self.size or self.count != len(images):
            raise CheckpointError(f"a pool of {self.size} cannot take the {self.count} images of the checkpoint")
        self._images = None
        if self.count:
            self._images = torch.empty((self.size, *images.shape[1:]), dtype=images.dtype, device=device)
            self._images[: self.count] = images.to(device)

"""Style codes: the table of all style pictures' codes (stage codes), and the queue that other pictures' come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast.data.folders import to_float
from anifast.data.packed import PackedImages, check_digests, digests
from anifast.engine import state
from anifast.errors import CheckpointError
from anifast.progress import Progress
from anifast.systems.blendgan.networks import StyleEncoder

FORMAT = "anifast.blendgan.codes/1"
NAME = "codes.pt"
_WAY_OUT = "make them anew by --stage codes"


def digest(encoder: nn.Module) -> str:
    """By what a style encoder's weights are known again: of large ones some hundred thousand numbers are looked at."""
    found = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        if not isinstance(value, Tensor):  # what a backbone wants
            found.update(f"{name}{value}".encode())
            continue
        flat = value.detach().flatten()
        found.update(f"{name}{tuple(value.shape)}".encode())
        found.update(flat[:: max(1, len(flat) // 2**18)].float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@torch.no_grad()
def encode(encoder: StyleEncoder, pictures: PackedImages, device: torch.device, batch: int = 4) -> dict[str, Any]:
    """The codes of all pictures and of their mirror images: what `codes.pt` holds.

    Args:
        encoder: on `device`.
        pictures: to be encoded, in their order.
        device: where.
        batch: pictures at once.

    Raises:
        CheckpointError: the encoder gives codes that are not finite.
    """
    found = []
    with Progress(len(pictures), "style codes") as bar:
        for part in torch.arange(len(pictures)).split(batch):
            images = to_float(pictures.batch(part).to(device))
            codes = encoder(torch.cat([images, images.flip(3)]))
            found.append(codes.unflatten(0, (2, -1)).transpose(0, 1).cpu())
            bar.update(len(part))
    codes = torch.cat(found)
    if not bool(torch.isfinite(codes).all()):
        raise CheckpointError("the style encoder gives codes that are not finite; its weights may be damaged")
    return {
        "format": FORMAT,
        "codes": codes.float(),
        "names": list(pictures.paths),
        "data": digests(pictures),
        "encoder": digest(encoder),
    }


def read(path: Path) -> dict[str, Any]:
    """A file of codes.

    Raises:
        CheckpointError: missing, damaged, or something else.
    """
    found = state.load(path)
    codes = found.get("codes")
    if found.get("format") != FORMAT or not isinstance(codes, Tensor) or codes.dim() != 3 or codes.shape[1] != 2:
        raise CheckpointError(f"{path}: no table of style codes ({FORMAT}); {_WAY_OUT}")
    return found


def check(found: Mapping[str, Any], path: Path, encoder: str, pictures: PackedImages) -> None:
    """Look whether codes are those of these pictures by the encoder of this digest.

    Raises:
        CheckpointError: they are of another encoder.
        DataError: they are of other pictures.
    """
    if found["encoder"] != encoder:
        raise CheckpointError(f"{path}: the style codes are of another encoder; {_WAY_OUT}")
    check_digests(pictures, found["data"], "styles")


class Queue:
    """The style codes of the last pictures, first in first out (section 3.3): those of others for the discriminator.

    Args:
        codes: [size, D], what it holds at first.
    """

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes.detach().clone()
        self.next = 0

    def put(self, codes: Tensor) -> None:
        """Take codes [n, D] in for the oldest ones."""
        size = len(self.codes)
        codes = codes.detach()[-size:]
        places = (torch.arange(len(codes), device=codes.device) + self.next) % size
        self.codes[places] = codes
        self.next = (self.next + len(codes)) % size

    def get(self, numbers: Tensor) -> Tensor:
        """The codes at places given by uniform numbers [n] in [0, 1), [n, D]."""
        return self.codes[(numbers * len(self.codes)).long().clamp(max=len(self.codes) - 1)]

    def state_dict(self) -> dict[str, Any]:
        """The codes and where the next one goes."""
        return {"codes": self.codes, "next": self.next}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit.
        """
        codes = found["codes"]
        if codes.shape != self.codes.shape:
            raise CheckpointError(
                f"the queue holds codes of shape {tuple(codes.shape)}, expected {tuple(self.codes.shape)}"
            )
        self.codes.copy_(codes)
        self.next = int(found["next"])

"""Parts of losses that systems share."""

from __future__ import annotations

import torch

from anifast.errors import AnifastError
from anifast.nn.perceptual import LPIPS


def perceptual(net: str, weights: str | None, weight: float, device: torch.device) -> tuple[LPIPS | None, float]:
    """The perceptual distance that a run's settings name, and its factor; None where they want none.

    Without published heads a distance is a sum over layers of 2 - 2 cos: its factor makes it `weight` times a mean of
    1 - cos, which is in LPIPS's range.

    Args:
        net: a name that LPIPS knows, or "none".
        weights: file of its backbone, or None.
        weight: of the loss; 0: none.
        device: where it goes.

    Raises:
        AnifastError: its weights are missing.
    """
    if net == "none" or weight == 0:
        return None, weight
    try:
        found = LPIPS(net, backbone_weights=weights).to(device)
    except AnifastError as error:
        raise AnifastError(
            f"{str(error).rstrip('.')}. Or choose another network of the perceptual loss: --lpips-net squeezenet1_0, "
            "random (needs no file) or none"
        ) from error
    return found, weight / (1 if len(found.heads) else 2 * len(found.layers))

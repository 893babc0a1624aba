"""How far a gradient through many ReLUs may be off in float32: a bound for values whose sign rounding decides."""

from __future__ import annotations

import math

import torch
from torch import nn

from anifast.nn.backbones import Backbone


def gradient_bound(net: Backbone) -> float:
    """Relative error, in the l2 norm, that roundings of the maps explain in a gradient to the pictures.

    A sum of n products errs by about sqrt(n) / 2 roundings of it, and those of all layers may add up to a share e of
    the values. Of each layer's values a share of 2 e is so near 0, or so near the largest of its pool, that this error
    decides; they carry as large a share of the squared gradient.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    share = sum(math.sqrt(conv.weight[0].numel()) / 2 for conv in layers) * torch.finfo(torch.float32).eps
    return math.sqrt(2 * share * len(layers))

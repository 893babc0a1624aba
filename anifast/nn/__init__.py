"""Networks that several systems and the metrics share."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anifast.nn.backbones import load_backbone as load_backbone
    from anifast.nn.perceptual import LPIPS as LPIPS
    from anifast.nn.perceptual import GramStyle as GramStyle
    from anifast.nn.perceptual import fold_weight as fold_weight
    from anifast.nn.perceptual import folded_steps as folded_steps
    from anifast.nn.perceptual import unfold_weight as unfold_weight

# public name -> the module that holds it, imported when the name is first used
_PUBLIC = {
    "GramStyle": "anifast.nn.perceptual",
    "LPIPS": "anifast.nn.perceptual",
    "fold_weight": "anifast.nn.perceptual",
    "folded_steps": "anifast.nn.perceptual",
    "load_backbone": "anifast.nn.backbones",
    "unfold_weight": "anifast.nn.perceptual",
}

__all__ = ["LPIPS", "GramStyle", "fold_weight", "folded_steps", "load_backbone", "unfold_weight"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'anifast.nn' has no attribute {name!r}")

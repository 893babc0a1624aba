"""anifast: fused kernels, models and training loops for anime-face translation.

Importing this package is cheap: torch, the compiled extension and the systems are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from anifast.backends import set_backend as set_backend
    from anifast.backends import use_backend as use_backend
    from anifast.nn.perceptual import LPIPS as LPIPS
    from anifast.systems import load as load

# public name -> the module that holds it
_PUBLIC = {
    "LPIPS": "anifast.nn.perceptual",
    "load": "anifast.systems",
    "set_backend": "anifast.backends",
    "use_backend": "anifast.backends",
}
_MODULES = frozenset(
    {"backends", "compat", "data", "engine", "metrics", "neural_style", "nn", "ops", "reference", "systems"}
)

__all__ = ["LPIPS", "__version__", "load", "set_backend", "use_backend"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"anifast.{name}")
    raise AttributeError(f"module 'anifast' has no attribute {name!r}")

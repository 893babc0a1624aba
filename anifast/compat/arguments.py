"""Arguments as other repositories give them, in the form that anifast's ops take."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


def integers(value: Any) -> Any:
    """An int or several with whole numbers of NumPy and of tensors as plain ints.

    What is no whole number stays, for the op to name it in its error.
    """
    if isinstance(value, (int, str)):
        return value
    if hasattr(value, "__index__") and not getattr(value, "shape", ()):
        return operator.index(value)
    return tuple(integers(number) for number in value) if isinstance(value, Iterable) else value


def backend_of(op: str, impl: str) -> str | None:
    """The backend that stands for NVlabs' `impl`: "cuda" is whatever is fastest here, "ref" plain PyTorch.

    Raises:
        ValueError: any other impl.
    """
    if impl not in ("cuda", "ref"):
        raise ValueError(f"{op}: impl must be 'cuda' or 'ref', got {impl!r}")
    return None if impl == "cuda" else "reference"

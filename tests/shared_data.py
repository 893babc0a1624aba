"""Where the real data and golden numbers are, for tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Real data and golden numbers travel apart from the repository; tests that need them skip without.
SHARED = Path(os.environ.get("ANIFAST_SHARED", ROOT.parent / "shared")).expanduser().resolve()


def need_shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts) or 'shared data'} is not at {SHARED} (set ANIFAST_SHARED)")
    return path

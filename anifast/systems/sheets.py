"""What the sheets of systems share: the room that they take, names beside pictures, and what models paint for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from anifast.data.folders import pixel_limit, to_uint8
from anifast.engine.sheets import readable, shortened
from anifast.errors import AnifastError

#: Is told how many pictures were painted just now.
OnPainted = Callable[[int], None]
#: Width in pixels that the name of a row may take.
_LABEL = 160


def check_room(tile: int, rows: int, columns: int, fewer: str) -> None:
    """Check that a sheet of so many pictures of side `tile` can be drawn; `fewer` of what would do, for the message.

    Raises:
        AnifastError: it would have more pixels than pictures may have.
    """
    pixels = rows * columns * tile**2
    if pixels > pixel_limit():
        raise AnifastError(
            f"{rows} rows of {columns} pictures make a sheet of {pixels} pixels, more than {pixel_limit()}; take fewer "
            f"{fewer} (or set ANIFAST_MAX_PIXELS)"
        )


def label(name: str, kind: str, number: int) -> str:
    """A name if the font of sheets has its letters, else what it is and a number."""
    return name if readable(name) else f"{kind} {number}"


def labels(names: Sequence[str], kind: str) -> list[str]:
    """Names as they fit beside pictures."""
    return [shortened(label(name, kind, n), _LABEL) for n, name in enumerate(names)]


def check_finite(painted: Tensor) -> None:
    """Refuse paintings with numbers that are not finite.

    Raises:
        AnifastError: there are some.
    """
    if not torch.isfinite(painted).all():
        raise AnifastError(
            "a painting is not finite (NaN); the model's weights may be damaged, or try --precision fp32"
        )


def collected(
    parts: Iterable[Tensor],
    count: int,
    on_painted: OnPainted | None = None,
    shown: Callable[[Tensor], Tensor] = lambda part: to_uint8(part).cpu(),
) -> Tensor:
    """What a model paints batch by batch as a sheet has it: no more than a batch is ever there as it is painted.

    Args:
        parts: N,C,H,W each, in [-1, 1].
        count: of all pictures.
        on_painted: is told of progress.
        shown: makes uint8 N,3,H,W of a part.

    Returns:
        uint8 count,3,H,W on the CPU.

    Raises:
        AnifastError: a painting is not finite.
    """
    found: Tensor | None = None
    done = 0
    for part in parts:
        check_finite(part)
        seen = shown(part)
        if found is None:
            found = torch.empty(count, *seen.shape[1:], dtype=torch.uint8)
        found[done : done + len(seen)] = seen
        done += len(seen)
        if on_painted is not None:
            on_painted(len(part))
    return torch.empty(0, 3, 1, 1, dtype=torch.uint8) if found is None else found

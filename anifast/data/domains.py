"""Two folders of pictures to learn from, packed: what all systems of two domains train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from anifast.data.folders import to_float, walk
from anifast.data.packed import check_digests, digests, pack, spread
from anifast.errors import DataError


class TwoDomains:
    """The folders `trainA` and `trainB`, and `testA` and `testB` (else the former) for the sample sheets.

    Args:
        root: the data folder.
        loaded: side of the training pictures.
        size: side of the pictures that are shown.
        how: how pictures become square, see `resize`.

    Raises:
        DataError: a folder of training pictures is missing, or one that has files holds no picture that can be read.

    Attributes:
        a: pictures of A.
        b: pictures of B.
    """

    def __init__(self, root: Path, loaded: int, size: int, how: str = "stretch") -> None:
        missing = [name for name in ("trainA", "trainB") if not (root / name).is_dir()]
        if missing:
            raise DataError(
                f"{root}: no folder {' and no folder '.join(missing)}. Expected {root}/trainA and {root}/trainB with "
                "pictures, and testA, testB beside them for the samples"
            )
        self.a, self.b = (pack(root / name, loaded, how=how) for name in ("trainA", "trainB"))
        self._shown = []
        for letter, train in (("A", self.a), ("B", self.b)):
            test = root / f"test{letter}"
            if test.exists() and next(walk(test), None) is not None:
                held = pack(test, size, how=how)
            else:
                held = pack(root / f"train{letter}", size, how=how) if loaded != size else train
            self._shown.append(held)

    def skipped(self) -> dict[str, str]:
        """Path under the data folder -> reason, of the training pictures that could not be used."""
        both = (("trainA", self.a), ("trainB", self.b))
        return {f"{name}/{path}": why for name, packed in both for path, why in packed.skipped.items()}

    def samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` pictures of A and of B for the sample sheets, always the same, n,3,size,size in [-1, 1]."""
        a, b = (to_float(packed.batch(spread(len(packed), count))) for packed in self._shown)
        return a, b

    def digests(self) -> dict[str, Any]:
        """By what the pictures are known again."""
        both = digests(self.a), digests(self.b)
        return {key: [one[key] for one in both] for key in both[0]}

    def check(self, state: Mapping[str, Any]) -> None:
        """Look whether these are the pictures of `digests` in a checkpoint.

        Raises:
            DataError: they are others.
        """
        for i, (name, packed) in enumerate((("trainA", self.a), ("trainB", self.b))):
            then = {key: state[key][i] for key in digests(packed) if key in state}
            check_digests(packed, then, name, "this run")

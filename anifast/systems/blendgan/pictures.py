"""The pictures of a BlendGAN run: photos of faces and art, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anifast.data.folders import to_float
from anifast.data.packed import PackedImages, check_digests, digests, pack, spread, unpacked
from anifast.data.samplers import ClassSampler
from anifast.engine.distributed import Team, alone
from anifast.errors import DataError

#: What a data folder's parts are called: as the portraits are written, or as in the systems of two domains.
FOLDERS = {"faces": ("faces", "trainA"), "styles": ("styles", "trainB")}
_HELD_OUT = {"faces": "testA", "styles": "testB"}


def find(root: Path, kind: str) -> Path:
    """The folder, or LMDB, of a data folder's "faces" or "styles".

    Raises:
        DataError: it is missing.
    """
    for name in FOLDERS[kind]:
        if (root / name).is_dir():
            return root / name
    one, other = FOLDERS[kind]
    what = "photos of faces" if kind == "faces" else "pictures of art"
    raise DataError(f"{root}: no folder {one} (nor {other}). Expected {root / one} with {what}, or an LMDB of them")


def held_out(root: Path, kind: str) -> Path | None:
    """The folder of pictures that nothing is learnt from, or None."""
    path = root / _HELD_OUT[kind]
    return path if path.is_dir() else None


def pictures_of(root: Path, kind: str, side: int, packed: bool = True) -> PackedImages:
    """The pictures of a data folder's "faces" or "styles", cut to squares; not `packed`, they are decoded each time.

    Raises:
        DataError: the folder is missing or holds none.
    """
    return (pack if packed else unpacked)(find(root, kind), side, how="crop")


def numbers(seed: int, stream: int, first: int, count: int, device: torch.device) -> Tensor:
    """Seeds of what is drawn for pictures number `first` and so on of a run, int64 [count].

    Args:
        seed: of the run.
        stream: another number, up to 3, for each purpose.
        first: number of the first picture.
        count: how many.
        device: where they go.
    """
    start = (seed % 2**28) * 2**35 + stream * 2**33 + first
    return torch.arange(start, start + count, device=device)


class Drawn:
    """Batches of one folder's pictures, in shuffled order; base of what makes something of them.

    Args:
        pictures: they.
        name: of the folder, for messages.
        batch: of all processes.
        seed: of the order and of what is drawn.
        stream: another number, up to 3, for each folder of a run.
        device: where batches go.
        team: the processes that share each batch; None: one.
        setting: the option that says how many pictures a batch has.
        least: fewest different pictures.

    Raises:
        DataError: there are fewer pictures than a batch, or than `least`.
    """

    def __init__(
        self,
        pictures: PackedImages,
        name: str,
        batch: int,
        seed: int,
        stream: int,
        device: torch.device,
        team: Team | None = None,
        *,
        setting: str = "batch",
        least: int = 1,
    ) -> None:
        self._team = team or alone(device)
        self._share = self._team.portion(batch)
        held, wanted = len(pictures), max(batch, least)
        if held < wanted:
            fewer = f", or take --{setting} {held}" if held >= least else f": at least {least} are to be told apart"
            raise DataError(
                f"{name}: {held} pictures that can be read, and a batch has {wanted} different ones; add pictures"
                f"{fewer}"
            )
        self.pictures, self._name, self._batch = pictures, name, batch
        self._seed, self._stream, self._device = seed, stream, device
        self._sampler = ClassSampler(
            np.zeros(held, np.int64), self._share, (seed + stream) % 2**63, self._team.rank, self._team.world
        )
        self._drawn = 0

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """This process's next pictures [n,3,side,side] in [-1, 1], their places, and the seeds of what is drawn."""
        chosen = self._sampler.next_batch()
        images = to_float(self.pictures.batch(chosen).to(self._device, non_blocking=True))
        first = self._drawn + self._team.rank * self._share
        self._drawn += self._batch
        seeds = numbers(self._seed, self._stream, first, self._share, self._device)
        if not isinstance(self.pictures.images, np.ndarray):  # decode the next batch while this one is in use
            here = self._sampler.state_dict()
            self.pictures.ahead(self._sampler.next_batch())
            self._sampler.load_state_dict(here)
        return images, torch.from_numpy(chosen).to(self._device), seeds

    def shown(self, count: int) -> Tensor:
        """Up to so many pictures, always the same, [n,3,side,side] in [-1, 1]."""
        return to_float(self.pictures.batch(spread(len(self.pictures), count)))

    def skipped(self) -> dict[str, str]:
        """Pictures that cannot be used, and why."""
        return {f"{self._name}/{path}": why for path, why in self.pictures.skipped.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        return {"sampler": self._sampler.state_dict(), "drawn": self._drawn, **digests(self.pictures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folder holds other pictures than then.
        """
        check_digests(self.pictures, state, self._name)
        self._sampler.load_state_dict(state["sampler"])
        self._drawn = int(state["drawn"])

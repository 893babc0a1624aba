"""Which pictures come next: seeded, endless, and resumed exactly from a few numbers.

Nothing is remembered but the place: every epoch's order is a function of (seed, stream, epoch), made from the raw
output of numpy's Philox, which, unlike numpy's shuffling, is the same in every version. In training on several
processes, each passes its rank and gets its slice of one joined batch of batch * world pictures.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from anifast.errors import DataError

Indices = NDArray[np.int64]
Batch = TypeVar("Batch")


def _words(seed: int, stream: str, epoch: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words of their own for each (seed, stream, epoch)."""
    entropy = [seed & 0xFFFFFFFF, seed >> 32, epoch, *stream.encode()]
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(count)


def permutation(seed: int, stream: str, epoch: int, count: int) -> Indices:
    """0..count-1 in an order of its own for each (seed, stream, epoch), int64."""
    return np.argsort(_words(seed, stream, epoch, count), kind="stable").astype(np.int64)


def integers(seed: int, stream: str, epoch: int, count: int, bound: int) -> Indices:
    """`count` independent uniform draws from 0..bound-1, int64; bound at most 2^31."""
    return ((_words(seed, stream, epoch, count) >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


class Sampler(ABC, Generic[Batch]):
    """What all samplers share: the walk through epochs, the split over processes, the state.

    Attributes:
        seed, batch, rank, world: as given.
        epoch: the epoch that the next picture belongs to, from 0.
        offset: how many of the epoch's pictures have been given out, over all processes.
    """

    def __init__(self, data: Mapping[str, int], batch: int, seed: int, rank: int, world: int) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of world {world}; expected 0 <= rank < world")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}; expected 0 <= seed < 2^63")
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self.epoch = self.offset = 0
        self._data = {name: int(value) for name, value in data.items()}
        self._drawn: tuple[int, int, tuple[Indices, ...]] | None = None

    @property
    @abstractmethod
    def epoch_length(self) -> int:
        """Pictures in an epoch, over all processes."""

    @abstractmethod
    def _draw(self, epoch: int) -> tuple[Indices, ...]:
        """The epoch's columns, each of length `epoch_length`."""

    @abstractmethod
    def _result(self, columns: tuple[Indices, ...]) -> Batch:
        """What `next_batch` gives for the columns' values."""

    @property
    def position(self) -> int:
        """Pictures given out since the start, over all processes."""
        return self.epoch * self.epoch_length + self.offset

    def next_batch(self) -> Batch:
        """This process's share of the next joined batch."""
        joined = self.batch * self.world
        pieces: list[tuple[Indices, ...]] = []
        while joined:
            take = min(joined, self.epoch_length - self.offset)
            columns = self._columns()
            pieces.append(tuple(column[self.offset : self.offset + take] for column in columns))
            joined -= take
            self.offset += take
            if self.offset == self.epoch_length:
                self.epoch, self.offset = self.epoch + 1, 0
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        return self._result(tuple(np.concatenate(parts)[mine] for parts in zip(*pieces, strict=True)))

    def _columns(self) -> tuple[Indices, ...]:
        """This epoch's columns; kept, as many batches are cut from them."""
        if self._drawn is None or self._drawn[:2] != (self.seed, self.epoch):
            self._drawn = (self.seed, self.epoch, self._draw(self.epoch))
        return self._drawn[2]

    def __iter__(self) -> Sampler[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next_batch()

    def state_dict(self) -> dict[str, Any]:
        """The place, the same in all processes; numbers and strings only."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "epoch": self.epoch,
            "offset": self.offset,
            "data": dict(self._data),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on where `state` was taken, with its seed.

        Batch and world may differ from then: the same order is cut into other batches.

        Args:
            state: from `state_dict` of a sampler of the same class.
            strict: refuse a state taken on other data; otherwise such a state goes on at the next epoch.

        Raises:
            DataError: the state was taken on other data, so the run cannot go on unchanged.
            ValueError: the state is another class's.
        """
        if state["sampler"] != type(self).__name__:
            raise ValueError(f"state is of a {state['sampler']}; expected {type(self).__name__}")
        then, now = state["data"], self._data
        if strict and then != now:
            changes = [f"{name} {then.get(name)} -> {now.get(name)}" for name in now if then.get(name) != now.get(name)]
            raise DataError(
                f"the data is not that of the checkpoint: {', '.join(changes)}. "
                "Put the old data back, or start a new run"
            )
        self.seed, self.epoch, self.offset = int(state["seed"]), int(state["epoch"]), int(state["offset"])
        if then != now or self.offset >= self.epoch_length:
            self.epoch, self.offset = self.epoch + 1, 0


class UnalignedSampler(Sampler[tuple[Indices, Indices]]):
    """Pairs of two unpaired data sets, as CycleGAN's reference code draws them.

    An epoch has max(n_a, n_b) pairs; A is walked in shuffled order (a shuffled index modulo n_a), B is drawn uniformly
    with replacement, independently. A batch may reach over the end of an epoch.

    Args:
        n_a: pictures in A.
        n_b: pictures in B.
        batch: pairs for each process and batch.
        seed: 0 <= seed < 2^63.
        rank: this process.
        world: number of processes.

    Raises:
        DataError: a data set is empty.
        ValueError: batch, seed, rank or world out of range.
    """

    def __init__(self, n_a: int, n_b: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if min(n_a, n_b) < 1:
            raise DataError(f"nothing to sample from: A has {n_a} pictures, B has {n_b}")
        super().__init__({"a": n_a, "b": n_b}, batch, seed, rank, world)

    @property
    def epoch_length(self) -> int:
        """Pairs in an epoch, over all processes: max(n_a, n_b)."""
        return max(self._data.values())

    def _draw(self, epoch: int) -> tuple[Indices, ...]:
        walked = permutation(self.seed, "unaligned a", epoch, self.epoch_length) % self._data["a"]
        return walked, integers(self.seed, "unaligned b", epoch, self.epoch_length, self._data["b"])

    def _result(self, columns: tuple[Indices, ...]) -> tuple[Indices, Indices]:
        return columns[0], columns[1]


class PairedSampler(Sampler[tuple[Indices, Indices]]):
    """The i-th picture of A always with the i-th of B, the order of the pairs shuffled in every epoch.

    Args:
        n_a: pictures in A.
        n_b: pictures in B.
        batch: pairs for each process and batch.
        seed: 0 <= seed < 2^63.
        rank: this process.
        world: number of processes.

    Raises:
        DataError: n_a and n_b differ or are 0.
        ValueError: batch, seed, rank or world out of range.
    """

    def __init__(self, n_a: int, n_b: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if n_a != n_b:
            raise DataError(
                f"paired sampling needs as many pictures in A as in B, got {n_a} and {n_b}. "
                "Remove those without a partner, or sample unpaired"
            )
        if n_a < 1:
            raise DataError("nothing to sample from: A and B have no pictures")
        super().__init__({"a": n_a, "b": n_b}, batch, seed, rank, world)

    @property
    def epoch_length(self) -> int:
        """Pairs in an epoch, over all processes."""
        return self._data["a"]

    def _draw(self, epoch: int) -> tuple[Indices, ...]:
        return (permutation(self.seed, "paired", epoch, self.epoch_length),)

    def _result(self, columns: tuple[Indices, ...]) -> tuple[Indices, Indices]:
        return columns[0], columns[0].copy()


class ClassSampler(Sampler[Indices]):
    """Pictures of one labelled data set; an epoch's last, partial joined batch is dropped.

    Plain, every picture comes at most once in an epoch, in shuffled order, and classes come as often as they are in
    the data (Xiang & Li). Balanced, classes take turns in shuffled rounds, and each class's pictures are walked in
    shuffled order, again from the start when they are used up; an epoch has as many draws as there are pictures.

    Args:
        labels: class of each picture; pictures with a negative label are never drawn.
        batch: pictures for each process and batch.
        seed: 0 <= seed < 2^63.
        rank: this process.
        world: number of processes.
        balanced: draw all classes equally often.

    Raises:
        DataError: there are fewer pictures than a joined batch has.
        ValueError: batch, seed, rank or world out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.int64],
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        balanced: bool = False,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.ndim != 1:
            raise ValueError(f"labels: expected one label for each picture, got shape {self.labels.shape}")
        self.balanced = balanced
        self._usable = np.flatnonzero(self.labels >= 0).astype(np.int64)
        data = {
            "pictures": len(self._usable),
            "classes": len(np.unique(self.labels[self._usable])),
            "checksum of the labels": zlib.crc32(self.labels.astype("<i8").tobytes()),
            "balanced": balanced,
        }
        super().__init__(data, batch, seed, rank, world)
        if self.epoch_length == 0:
            raise DataError(
                f"{len(self._usable)} pictures do not fill a batch of {batch * world}. Use a smaller batch or more data"
            )

    @property
    def epoch_length(self) -> int:
        """Pictures in an epoch, over all processes, without the last partial joined batch."""
        joined = self.batch * self.world
        return len(self._usable) // joined * joined

    def _draw(self, epoch: int) -> tuple[Indices, ...]:
        if not self.balanced:
            order = permutation(self.seed, "class", epoch, len(self._usable))
            return (self._usable[order[: self.epoch_length]],)
        classes = np.unique(self.labels[self._usable])
        rounds = -(-self.epoch_length // len(classes))
        # Row r, column c: the picture that class c gives in round r; then each row's classes are shuffled.
        table = np.empty((rounds, len(classes)), dtype=np.int64)
        for column, label in enumerate(classes):
            members = np.flatnonzero(self.labels == label)
            walks = -(-rounds // len(members))
            keys = _words(self.seed, f"balanced walk {label}", epoch, walks * len(members)).reshape(walks, -1)
            table[:, column] = members[np.argsort(keys, axis=1, kind="stable")].ravel()[:rounds]
        keys = _words(self.seed, "balanced round", epoch, table.size).reshape(table.shape)
        turns = np.argsort(keys, axis=1, kind="stable")
        return (np.take_along_axis(table, turns, axis=1).ravel()[: self.epoch_length],)

    def _result(self, columns: tuple[Indices, ...]) -> Indices:
        return columns[0]

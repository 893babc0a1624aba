"""Samplers: the order the specifications give, resumed exactly, split over processes without a gap or a double."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anifast.data.samplers import ClassSampler, PairedSampler, Sampler, UnalignedSampler, integers, permutation
from anifast.errors import DataError

LABELS = np.repeat(np.arange(5), [1, 3, 6, 10, 15])
MAKERS: dict[str, Callable[..., Sampler[Any]]] = {
    "unaligned, A larger": lambda batch, seed=3, **split: UnalignedSampler(17, 11, batch, seed, **split),
    "unaligned, B larger": lambda batch, seed=3, **split: UnalignedSampler(11, 17, batch, seed, **split),
    "paired": lambda batch, seed=3, **split: PairedSampler(13, 13, batch, seed, **split),
    "class": lambda batch, seed=3, **split: ClassSampler(LABELS, batch, seed, **split),
    "balanced": lambda batch, seed=3, **split: ClassSampler(LABELS, batch, seed, balanced=True, **split),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))


def take(sampler: Sampler[Any], batches: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The next batches, as columns of indices."""
    drawn = [np.atleast_2d(np.stack(sampler.next_batch())) for _ in range(batches)]
    return np.concatenate(drawn, axis=1)


def epoch_of(sampler: Sampler[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One whole epoch of a sampler whose batch divides it."""
    return take(sampler, sampler.epoch_length // sampler.batch)


# --- what all have in common


@makers
@pytest.mark.parametrize("before", [0, 1, 5, 6, 23])
def test_resumed_is_uninterrupted(make: Callable[..., Sampler[Any]], before: int) -> None:
    straight = make(4)
    for _ in range(before):
        straight.next_batch()
    state = json.loads(json.dumps(straight.state_dict()))  # small and plain
    assert len(json.dumps(state)) < 300
    resumed = make(4, seed=99)
    take(resumed, 7)
    resumed.load_state_dict(state)
    assert resumed.position == straight.position
    assert np.array_equal(take(resumed, 20), take(straight, 20))
    assert resumed.state_dict() == straight.state_dict()


@makers
def test_ranks_share_out_the_joined_batch(make: Callable[..., Sampler[Any]]) -> None:
    joined = make(6)
    ranks = [make(2, rank=rank, world=3) for rank in range(3)]
    for _ in range(25):
        whole = np.atleast_2d(np.stack(joined.next_batch()))
        parts = [np.atleast_2d(np.stack(sampler.next_batch())) for sampler in ranks]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
        assert all(sampler.state_dict() == joined.state_dict() for sampler in ranks)


@makers
def test_a_run_may_go_on_with_other_processes(make: Callable[..., Sampler[Any]]) -> None:
    """Saved with one process and resumed with two: the joined batches stay."""
    straight = make(4)
    take(straight, 5)
    ranks = [make(2, rank=rank, world=2) for rank in range(2)]
    for sampler in ranks:
        sampler.load_state_dict(straight.state_dict())
    for _ in range(10):
        parts = np.concatenate([np.atleast_2d(np.stack(sampler.next_batch())) for sampler in ranks], axis=1)
        assert np.array_equal(parts, np.atleast_2d(np.stack(straight.next_batch())))


@makers
@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_a_run_may_go_on_with_another_batch(make: Callable[..., Sampler[Any]], batch: int) -> None:
    """Wherever the old batch stopped, also past the end of an epoch that the new batch makes shorter."""
    old = make(5)
    for _ in range(20):
        old.next_batch()
        new = make(batch)
        new.load_state_dict(old.state_dict())
        assert take(new, 30).shape[1] == 30 * batch


@makers
def test_iteration_and_dtype(make: Callable[..., Sampler[Any]]) -> None:
    sampler = make(4)
    assert iter(sampler) is sampler
    columns = np.atleast_2d(np.stack(next(sampler)))
    assert columns.dtype == np.int64 and columns.shape[1] == 4
    assert sampler.position == 4


@makers
def test_seeds_and_epochs_differ(make: Callable[..., Sampler[Any]]) -> None:
    first, again, other = make(1), make(1), make(1, seed=4)
    a, b = epoch_of(first), epoch_of(first)
    assert first.epoch == 2 and first.offset == 0
    assert not np.array_equal(a, b)
    assert np.array_equal(a, epoch_of(again))
    assert not np.array_equal(a, epoch_of(other))


def test_the_order_never_changes() -> None:
    """These numbers are a promise: with others, old checkpoints would go on with other pictures."""
    assert permutation(1, "x", 0, 8).tolist() == [0, 2, 7, 5, 1, 4, 6, 3]
    assert integers(2**62 + 5, "x", 3, 8, 1000).tolist() == [407, 952, 461, 829, 695, 472, 814, 874]


def test_integers_are_uniform_and_in_bounds() -> None:
    drawn = integers(0, "x", 0, 70_000, 7)
    counts = np.bincount(drawn, minlength=7)
    assert len(counts) == 7 and np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000)
    assert integers(0, "x", 0, 1000, 1).max() == 0
    assert integers(0, "x", 0, 1000, 2**31).max() < 2**31


def test_permutations_are_uniform() -> None:
    """All 24 orders of four come equally often (chi-squared with 23 degrees of freedom, far in its tail)."""
    orders = [tuple(permutation(seed, "x", 0, 4)) for seed in range(4800)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 200) ** 2 / 200).sum() < 60


# --- unaligned


def test_unaligned_walks_all_of_a_larger_a() -> None:
    sampler = UnalignedSampler(17, 11, 1, 0)
    assert sampler.epoch_length == 17
    for _ in range(3):
        a, b = epoch_of(sampler)
        assert sorted(a) == list(range(17)) and 0 <= b.min() and b.max() < 11


def test_unaligned_repeats_a_smaller_a_evenly() -> None:
    """The shuffled index modulo |A|: each of 5 comes three or four times in an epoch of 17."""
    sampler = UnalignedSampler(5, 17, 1, 0)
    for _ in range(3):
        a, _ = epoch_of(sampler)
        assert np.bincount(a).tolist() == [4, 4, 3, 3, 3]


def test_unaligned_draws_b_with_replacement_and_independently() -> None:
    a, b = epoch_of(UnalignedSampler(4000, 4000, 1, 0))
    distinct = len(np.unique(b)) / 4000
    assert abs(distinct - (1 - np.exp(-1))) < 0.02
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_unaligned_batches_are_full_and_reach_over_the_end() -> None:
    whole = UnalignedSampler(10, 7, 1, 0)
    pairs = np.concatenate([epoch_of(whole) for _ in range(6)], axis=1)
    assert np.array_equal(take(UnalignedSampler(10, 7, 4, 0), 15), pairs)
    assert np.array_equal(take(UnalignedSampler(10, 7, 30, 0), 2), pairs)  # several epochs in one batch


def test_unaligned_refuses_an_empty_set() -> None:
    with pytest.raises(DataError, match="A has 0 pictures, B has 4"):
        UnalignedSampler(0, 4, 1, 0)


# --- paired


def test_paired_keeps_pairs_and_covers_all() -> None:
    sampler = PairedSampler(13, 13, 1, 0)
    a, b = epoch_of(sampler)
    assert np.array_equal(a, b) and sorted(a) == list(range(13)) and not np.array_equal(a, np.arange(13))


def test_paired_refuses_unequal_lengths() -> None:
    with pytest.raises(DataError, match="got 13 and 12. Remove those without a partner, or sample unpaired"):
        PairedSampler(13, 12, 1, 0)
    with pytest.raises(DataError, match="no pictures"):
        PairedSampler(0, 0, 1, 0)


# --- by class


def test_class_shuffles_all_and_drops_the_partial_batch() -> None:
    sampler = ClassSampler(LABELS, 8, 0)
    assert sampler.epoch_length == 32
    seen = []
    for epoch in range(4):
        (drawn,) = epoch_of(sampler)
        assert sampler.epoch == epoch + 1 and len(np.unique(drawn)) == 32
        seen.append(set(drawn.tolist()))
    assert set.union(*seen) == set(range(35))  # those dropped in one epoch come in another


def test_class_never_draws_left_out_pictures() -> None:
    labels = np.array([-1, 0, 1, -1, 0, 1, 1])
    for balanced in (False, True):
        drawn = take(ClassSampler(labels, 2, 0, balanced=balanced), 50)
        assert set(drawn.ravel().tolist()) == {1, 2, 4, 5, 6}


def test_balanced_gives_every_class_its_turn() -> None:
    sampler = ClassSampler(LABELS, 5, 0, balanced=True)
    orders = set()
    for _ in range(3 * sampler.epoch_length // 5):
        turn = LABELS[sampler.next_batch()]
        assert sorted(turn) == [0, 1, 2, 3, 4]
        orders.add(tuple(turn))
    assert len(orders) > 10


def test_balanced_walks_each_class_in_shuffled_order() -> None:
    (drawn,) = epoch_of(ClassSampler(LABELS, 5, 0, balanced=True))
    for label, count in enumerate(np.bincount(LABELS)):
        walk = drawn[LABELS[drawn] == label]
        for start in range(0, len(walk), count):  # no picture again before all of its class have come
            part = walk[start : start + count]
            assert len(np.unique(part)) == len(part)


def test_class_labels_need_not_be_consecutive() -> None:
    drawn = take(ClassSampler([7, 7, 100, 3], 3, 0, balanced=True), 1)
    assert sorted(np.array([7, 7, 100, 3])[drawn[0]]) == [3, 7, 100]


def test_class_refuses_too_few_pictures() -> None:
    with pytest.raises(DataError, match="35 pictures do not fill a batch of 36. Use a smaller batch or more data"):
        ClassSampler(LABELS, 12, 0, rank=0, world=3)
    with pytest.raises(DataError, match="0 pictures do not fill a batch of 1"):
        ClassSampler([-1, -1], 1, 0)
    with pytest.raises(ValueError, match="expected one label for each picture"):
        ClassSampler(np.zeros((3, 2), dtype=np.int64), 1, 0)


# --- wrong arguments and states


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"rank": 2, "world": 2}, "rank is 2 of world 2"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_arguments_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnalignedSampler(4, 4, **{"batch": 1, "seed": 0, **options})


def test_a_state_of_other_data_is_refused_or_goes_on_at_the_next_epoch() -> None:
    sampler = UnalignedSampler(17, 11, 4, 0)
    take(sampler, 6)
    state = sampler.state_dict()
    grown = UnalignedSampler(17, 12, 4, 0)
    with pytest.raises(DataError, match="not that of the checkpoint: b 11 -> 12. Put the old data back, or start"):
        grown.load_state_dict(state)
    assert grown.position == 0
    grown.load_state_dict(state, strict=False)
    assert (grown.epoch, grown.offset) == (2, 0)


def test_other_labels_are_other_data() -> None:
    state = ClassSampler(LABELS, 4, 0).state_dict()
    with pytest.raises(DataError, match="checksum of the labels"):
        ClassSampler(LABELS[::-1], 4, 0).load_state_dict(state)


def test_a_state_of_another_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="state is of a PairedSampler; expected UnalignedSampler"):
        UnalignedSampler(13, 13, 4, 0).load_state_dict(PairedSampler(13, 13, 4, 0).state_dict())

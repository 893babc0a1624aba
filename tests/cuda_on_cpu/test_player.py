"""The player itself: right kernels come out right, and wrong ones do not pass."""

from __future__ import annotations

import math

import pytest
from playing import Player

RIGHT, NO_BARRIER, DIVERGENT_BARRIER, DIVERGENT_SHUFFLE = range(4)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_barriers_shared_memory_and_shuffles(library: Player, order: int) -> None:
    library.set(order=order)
    assert library.toy(RIGHT) == (64.0, "")


def test_a_missing_barrier_reads_memory_that_is_not_written(library: Player) -> None:
    library.set()
    assert math.isnan(library.toy(NO_BARRIER)[0])


@pytest.mark.parametrize("kernel", [DIVERGENT_BARRIER, DIVERGENT_SHUFFLE])
def test_a_barrier_that_some_threads_never_reach_is_an_error(library: Player, kernel: int) -> None:
    library.set()
    assert "others never reach" in library.toy(kernel)[1]
    assert library.toy(RIGHT) == (64.0, "")  # and the next launch is sound

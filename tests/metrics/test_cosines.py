"""How close codes lie to their own class: against loops over pairs, and codes whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anifast.errors import DataError
from anifast.metrics.cosines import class_cosines, closeness, nearest


def codes_of(sizes: tuple[int, ...], width: int = 6, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes about a centre for each class, and labels with gaps between their numbers."""
    source = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((size,), 3 * number) for number, size in enumerate(sizes)])
    centres = torch.randn(3 * len(sizes), width, generator=source)
    codes = centres[labels] + spread * torch.randn(len(labels), width, generator=source)
    order = torch.randperm(len(labels), generator=source)
    return codes[order], labels[order]


def test_means_are_those_of_all_pairs() -> None:
    codes, labels = codes_of((4, 2, 7))
    cosines = torch.nn.functional.cosine_similarity(codes[:, None].double(), codes[None].double(), dim=2)
    count, within, between = len(codes), [], []
    for i in range(count):
        same = [float(cosines[i, j]) for j in range(count) if j != i and labels[j] == labels[i]]
        other = [float(cosines[i, j]) for j in range(count) if labels[j] != labels[i]]
        within.append(sum(same) / len(same))
        between.append(sum(other) / len(other))
    found = closeness(codes, labels, permutations=3)
    assert found.within == pytest.approx(sum(within) / count, abs=1e-12)
    assert found.between == pytest.approx(sum(between) / count, abs=1e-12)
    assert found.ratio == pytest.approx((1 - found.within) / (1 - found.between), rel=1e-12)
    cosines.fill_diagonal_(-2)
    assert found.nearest == float((labels[cosines.argmax(1)] == labels).double().mean())
    assert found.chance == pytest.approx((4 * 3 + 2 * 1 + 7 * 6) / (13 * 12), rel=1e-12)
    assert (found.pictures, found.classes, found.permutations) == (13, 3, 3)
    assert found.as_dict()["nearest"] == found.nearest

    table = class_cosines(codes, labels)
    for a, one in enumerate((0, 3, 6)):
        for b, two in enumerate((0, 3, 6)):
            part = cosines[labels == one][:, labels == two]
            assert float(table[a, b]) == pytest.approx(float(part[part > -2].mean()), abs=1e-12)


def test_lengths_and_order_of_codes_count_nothing() -> None:
    codes, labels = codes_of((5, 6))
    one = closeness(codes, labels, permutations=5)
    order = torch.arange(len(codes)).flip(0)
    other = closeness((codes * torch.rand(len(codes), 1).add(0.1))[order], labels[order], permutations=5)
    for key in ("within", "between", "nearest"):
        assert getattr(other, key) == pytest.approx(getattr(one, key), abs=1e-6)  # codes are float32
    assert closeness(codes, labels, permutations=5) == one


def test_classes_that_are_apart_are_found() -> None:
    codes, labels = codes_of((20, 20, 20), width=32, spread=0.2)
    found = closeness(codes, labels, permutations=200)
    assert found.nearest == 1.0 and found.ratio < 0.3
    assert found.nearest_shuffled[1] < 0.6 and found.ratio_shuffled[0] > 0.9


def test_codes_that_tell_nothing_are_within_what_permuted_labels_give() -> None:
    """Labels drawn apart from the codes are one more permutation, which 95 % of the intervals hold."""
    source, inside = torch.Generator().manual_seed(1), 0
    trials = 60
    for seed in range(trials):
        codes = torch.randn(40, 8, generator=source)
        found = closeness(codes, torch.arange(40) % 4, permutations=199, seed=seed)
        low, high = found.ratio_shuffled
        inside += low <= found.ratio <= high
        assert found.nearest_shuffled[0] <= found.chance <= found.nearest_shuffled[1]
    # Of a binomial of 60 trials at 0.95, fewer than 50 come once in 2000 cases.
    assert sum(math.comb(trials, k) * 0.95**k * 0.05 ** (trials - k) for k in range(50)) < 5e-4
    assert inside >= 50


def test_nearest_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.5])
    codes = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = nearest(codes, 3)
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0], [3, 2, 1]]
    monkeypatch.setattr("anifast.metrics.cosines._PIECE", 10)  # two rows at a time
    assert torch.equal(nearest(codes, 3), found)


@pytest.mark.parametrize(
    ("codes", "labels", "error", "told"),
    [
        (torch.ones(4, 2, 1), torch.zeros(4).long(), ValueError, "codes: expected floats"),
        (torch.ones(4, 2).long(), torch.zeros(4).long(), ValueError, "codes: expected floats"),
        (torch.ones(4, 2), torch.zeros(3).long(), ValueError, "labels: expected integers"),
        (torch.ones(4, 2), torch.tensor([0, 0, 1, -1]), ValueError, "labels: expected integers"),
        (torch.ones(4, 2), torch.zeros(4).long(), ValueError, "at least 2 classes"),
        (torch.ones(4, 2), torch.tensor([0, 0, 0, 1]), ValueError, "each of at least 2 codes"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1]), DataError, "not finite"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), DataError, "no direction"),
    ],
)
def test_what_cannot_be(codes: Tensor, labels: Tensor, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        closeness(codes, labels, permutations=1)


def test_numbers_that_cannot_be() -> None:
    codes, labels = codes_of((3, 3))
    with pytest.raises(ValueError, match="permutations is 0"):
        closeness(codes, labels, permutations=0)
    with pytest.raises(ValueError, match="expected 1 to 5"):
        nearest(codes, 6)
    alike = closeness(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), permutations=1)
    assert alike.ratio == pytest.approx(1.0, abs=1e-9)

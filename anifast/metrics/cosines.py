"""How close codes lie to those of their own class, by the angles between them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.errors import DataError

#: Of permuted labels' figures, this part lies in the intervals that are given.
INTERVAL = 0.95
#: Cosines that are there at once: 8 MiB of float64.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Closeness:
    """What `closeness` gives.

    Attributes:
        within: cosine of a code with the others of its class, the mean over these, then over all codes.
        between: the same with codes of other classes.
        ratio: (1 - within) / (1 - between), the distance to one's own in that to others: 1 where classes tell nothing.
        ratio_shuffled: the interval that holds 95 % of the ratios with permuted labels.
        nearest: part of the codes whose nearest other code is of their class.
        chance: the mean of that over all permutations of the labels.
        nearest_shuffled: the interval that holds 95 % of the parts with permuted labels.
        pictures: codes.
        classes: of them.
        permutations: that the intervals are of.
    """

    within: float
    between: float
    ratio: float
    ratio_shuffled: tuple[float, float]
    nearest: float
    chance: float
    nearest_shuffled: tuple[float, float]
    pictures: int
    classes: int
    permutations: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def closeness(codes: Tensor, labels: Tensor, *, permutations: int = 1000, seed: int = 0) -> Closeness:
    """Whether codes are closer to those of their own class than to others, and than they are with permuted labels.

    In float64 on the CPU; memory grows with the number of codes, not with its square.

    Args:
        codes: N,k of any floating type.
        labels: integers [N] >= 0, of at least 2 classes, each of at least 2 codes.
        permutations: of the labels, at least 1.
        seed: of the permutations.

    Raises:
        ValueError: codes, labels or permutations of another kind.
        DataError: codes that are not finite, or zero, which has no direction.
    """
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; expected at least 1")
    unit = _unit(codes)
    owners, counts = _owners(labels, len(codes))
    near = nearest(codes, 1)[:, 0]
    total, sizes, everyone = len(unit), counts.double(), unit.sum(0)
    others = total - sizes

    def measured(of: Tensor) -> tuple[float, float, float]:
        sums = torch.zeros(len(counts), unit.shape[1], dtype=unit.dtype).index_add_(0, of, unit)
        own = sums.square().sum(1)  # of all pairs of a class, each code with itself too
        within = float(((own - sizes) / (sizes - 1)).sum()) / total
        between = float(((sums @ everyone - own) / others).sum()) / total
        return within, between, float((of == of[near]).double().mean())

    within, between, found = measured(owners)
    source = torch.Generator().manual_seed(seed)
    shuffled = [measured(owners[torch.randperm(total, generator=source)]) for _ in range(permutations)]
    return Closeness(
        within=within,
        between=between,
        ratio=_ratio(within, between),
        ratio_shuffled=_interval([_ratio(one, other) for one, other, _ in shuffled]),
        nearest=found,
        chance=float((sizes * (sizes - 1)).sum()) / (total * (total - 1)),
        nearest_shuffled=_interval([part for _, _, part in shuffled]),
        pictures=total,
        classes=len(counts),
        permutations=permutations,
    )


def class_cosines(codes: Tensor, labels: Tensor) -> Tensor:
    """Mean cosines of the codes of each two classes, of a class with itself without each code's own.

    Args:
        codes: N,k of any floating type.
        labels: integers [N] >= 0, of at least 2 classes, each of at least 2 codes.

    Returns:
        float64 [classes, classes] on the CPU, in the order of the labels.

    Raises:
        ValueError, DataError: see `closeness`.
    """
    unit = _unit(codes)
    owners, counts = _owners(labels, len(codes))
    sums = torch.zeros(len(counts), unit.shape[1], dtype=unit.dtype).index_add_(0, owners, unit)
    pairs, totals = counts[:, None] * counts, sums @ sums.T
    return (totals - counts.diag()) / (pairs - counts.diag())


def nearest(codes: Tensor, count: int) -> Tensor:
    """The nearest other codes by cosine: int64 [N, count], the nearest first.

    Raises:
        ValueError: codes of another kind, or not that many others.
        DataError: see `closeness`.
    """
    unit = _unit(codes)
    if not 1 <= count < len(unit):
        raise ValueError(f"count: expected 1 to {len(unit) - 1}, the number of other codes, got {count}")
    found = []
    for rows in torch.arange(len(unit)).split(max(1, _PIECE // len(unit))):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        found.append(cosines.topk(count, dim=1).indices)
    return torch.cat(found)


def _unit(codes: Tensor) -> Tensor:
    """Codes of length 1, float64 on the CPU."""
    if codes.ndim != 2 or not codes.is_floating_point() or not codes.numel():
        raise ValueError(f"codes: expected floats (N, k), N and k > 0, got {codes.dtype} {tuple(codes.shape)}")
    wide = codes.detach().to("cpu", torch.float64)
    if not bool(wide.isfinite().all()):
        raise DataError("codes are not finite: the encoder or its input holds NaN or infinity")
    if not bool(wide.any(dim=1).all()):
        raise DataError("codes are zero, which lies in no direction: the encoder's weights are damaged")
    return F.normalize(wide, dim=1, eps=0.0)


def _owners(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The class of each code from 0 on, and the number of codes in each class."""
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool or bool((labels < 0).any()):
        raise ValueError(f"labels: expected integers ({count},) from 0, got {labels.dtype} {tuple(labels.shape)}")
    _, owners, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(counts) < 2 or int(counts.min()) < 2:
        raise ValueError("labels: expected at least 2 classes, each of at least 2 codes")
    return owners, counts


def _ratio(within: float, between: float) -> float:
    """1 where all codes lie in one direction, but for rounding."""
    return (1 - within) / (1 - between) if 1 - between > 1e-12 else 1.0


def _interval(values: list[float]) -> tuple[float, float]:
    """Where the middle part of some values lies."""
    tail = (1 - INTERVAL) / 2
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high

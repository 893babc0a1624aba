"""Kernel distance of two sets of features (KID; Binkowski et al. 2018): unbiased, with its error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from anifast.errors import DataError


def mmd(
    x: Tensor, y: Tensor, *, degree: int = 3, gamma: float | None = None, coef0: float = 1.0, biased: bool = False
) -> float:
    """Squared maximum mean discrepancy with the kernel k(u, v) = (gamma u.v + coef0)^degree.

        mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j)

    where the first two leave i = j out: the unbiased estimate (Gretton et al. 2012, eq. 3), which can be below 0.

    Args:
        x: M,D features, M at least 2 (1 if biased), any floating type; computed in float64.
        y: N,D.
        degree: of the polynomial; 3 for KID.
        gamma: 1/D by default, as KID has it.
        coef0: 1 for KID.
        biased: keep i = j.

    Raises:
        ValueError: shapes that do not fit, or too few rows.
    """
    _check(x, y)
    least = 1 if biased else 2
    if min(len(x), len(y)) < least:
        raise ValueError(f"x and y: expected at least {least} rows, got {len(x)} and {len(y)}")
    x, y = x.detach().double(), y.detach().double()
    scale = 1.0 / x.shape[1] if gamma is None else gamma

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T).mul_(scale).add_(coef0).pow_(degree)

    def within(u: Tensor) -> Tensor:
        values = kernel(u, u)
        return values.mean() if biased else (values.sum() - values.trace()) / (len(u) * (len(u) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1]:
        raise ValueError(f"x and y: expected M,D and N,D, got {tuple(x.shape)} and {tuple(y.shape)}")


@dataclass(frozen=True)
class KID:
    """What `kid` gives.

    Attributes:
        mean: over the subsets; 100 times this is what papers print.
        std: over the subsets (divisor: their number), the figure that papers print behind "+-". It belongs to subsets
            of this size, and is no error of the mean.
        error: standard error of `mean` for other pictures of the same kind, by the delete-d jackknife (Shao and Wu
            1989): std * sqrt(s / (n - s)) for subsets of s out of n; too large rather than too small where the two sets
            differ in size. NaN where subsets are whole sets.
        subsets: how many were drawn.
        subset_size: features of each set in each.
    """

    mean: float
    std: float
    error: float
    subsets: int
    subset_size: int

    def as_dict(self) -> dict[str, float | None]:
        """Plain values for a file; None for NaN."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, subset_size: int = 50, seed: int = 0) -> KID:
    """Kernel Inception distance: `mmd` with k(u, v) = (u.v / D + 1)^3, the mean over random subsets.

    Unbiased for any number of pictures, unlike FID. Subsets are drawn without repetition, from both sets anew each
    time, by a generator of their own.

    Args:
        x: M,D features.
        y: N,D features.
        subsets: how many to draw.
        subset_size: of each set, at most the smaller one. 50 is selfie2anime's usage; 1000 is usual where there are
            thousands of pictures.
        seed: of the draws.

    Raises:
        ValueError: shapes that do not fit, or subsets that cannot be drawn.
        DataError: NaN or infinity among the features.
    """
    _check(x, y)
    smaller = min(len(x), len(y))
    if subsets < 1:
        raise ValueError(f"subsets is {subsets}; expected at least 1")
    if not 2 <= subset_size <= smaller:
        raise ValueError(f"subset_size is {subset_size}; expected 2 to {smaller}, the size of the smaller set")
    x, y = x.detach().double(), y.detach().double()
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise DataError("features are not finite: the pictures or the weights behind them hold NaN or infinity")
    source = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        rows = [torch.randperm(len(features), generator=source)[:subset_size] for features in (x, y)]
        values[i] = mmd(x[rows[0].to(x.device)], y[rows[1].to(y.device)])
    std = float(values.std(correction=0))
    left = smaller - subset_size
    error = std * math.sqrt(subset_size / left) if left and subsets > 1 else math.nan
    return KID(float(values.mean()), std, error, subsets, subset_size)


def fitting_subset(wanted: int, smaller: int) -> int:
    """The size of subsets out of sets of which the smaller has `smaller` features: `wanted`, at most half of it.

    Raises:
        DataError: the set is too small for any.
    """
    if smaller < 2:
        raise DataError(f"KID needs at least 2 pictures, there are {smaller}")
    return min(wanted, max(2, smaller // 2))

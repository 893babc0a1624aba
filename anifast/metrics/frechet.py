"""Frechet distance of two sets of features, each taken as a normal distribution (FID; Heusel et al. 2017, eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anifast.errors import DataError

#: The factor by which an eigenvalue of a covariance may be below 0 for rounding alone (covariances made in float32).
_NEGATIVE = 1e-3


class Statistics:
    """Mean and covariance of features that come in batches; memory does not grow with their number.

    In float64 on the CPU. Batches are joined by the pairwise update of Chan, Golub and LeVeque (1979), which does not
    lose digits where the mean is large beside the spread, and gives the same however the features are divided but for
    rounding.

    Args:
        dim: length of a feature vector.

    Attributes:
        count: vectors seen.
        mean: dim.
        scatter: dim,dim: sum of (x - mean)(x - mean)^T.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected at least 1")
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return len(self.mean)

    def update(self, features: Tensor) -> None:
        """Take in N,dim features of any type, on any device.

        Raises:
            ValueError: another shape.
            DataError: NaN or infinity among them.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features: expected N,{self.dim}, got {tuple(features.shape)}")
        if not len(features):
            return
        x = features.detach().to("cpu", torch.float64, copy=True)
        if not bool(x.isfinite().all()):
            raise DataError("features are not finite: the pictures or the weights behind them hold NaN or infinity")
        mean = x.mean(dim=0)
        x -= mean
        self.scatter.addmm_(x.T, x)
        self._join(len(x), mean)

    def merge(self, other: Statistics) -> None:
        """Take in what another one has seen.

        Raises:
            ValueError: it is of another dimension.
        """
        if other.dim != self.dim:
            raise ValueError(f"other: expected dimension {self.dim}, got {other.dim}")
        if other.count:
            self.scatter += other.scatter
            self._join(other.count, other.mean)

    def _join(self, count: int, mean: Tensor) -> None:
        """Join the means, and add to the scatter what comes of their being two."""
        total = self.count + count
        step = mean - self.mean
        self.scatter.addr_(step, step, alpha=self.count * count / total)
        self.mean += step * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """dim,dim, divided by count - 1.

        Raises:
            DataError: fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 pictures, there are {self.count}")
        return self.scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, for a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Statistics:
        """Those that `state_dict` came from.

        Raises:
            ValueError: damaged: shapes or types do not fit.
        """
        count, mean, scatter = state["count"], state["mean"], state["scatter"]
        if mean.ndim != 1 or not len(mean) or scatter.shape != (len(mean), len(mean)) or count.ndim:
            raise ValueError(f"state: mean {tuple(mean.shape)} and scatter {tuple(scatter.shape)} do not fit")
        if mean.dtype != torch.float64 or scatter.dtype != torch.float64 or count.dtype != torch.int64:
            raise ValueError(f"state: expected float64, got {mean.dtype} and {scatter.dtype}")
        made = cls(len(mean))
        made.count, made.mean, made.scatter = int(count), mean.clone(), scatter.clone()
        return made


def _root(covariance: Tensor, name: str) -> Tensor:
    """dim,rank R with covariance = R R^T.

    Eigenvalues that rounding cannot tell from 0 are left out: the root of such a one would be a hundred million times
    larger than itself, and a covariance of fewer vectors than dimensions has many of them.
    """
    values, vectors = torch.linalg.eigh(covariance)
    largest = float(values[-1])
    if float(values[0]) < -_NEGATIVE * max(largest, 0.0):
        raise ValueError(f"{name}: has an eigenvalue of {float(values[0]):.3g}; this is no covariance")
    kept = values > largest * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def _checked(mean: Tensor, covariance: Tensor, which: str) -> tuple[Tensor, Tensor]:
    mean, covariance = mean.detach().double(), covariance.detach().double()
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mean{which} and covariance{which}: expected D and D,D, got {tuple(mean.shape)} "
            f"and {tuple(covariance.shape)}"
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"mean{which} and covariance{which}: expected finite numbers")
    if float((covariance - covariance.T).abs().max()) > 1e-5 * float(covariance.abs().max()):
        raise ValueError(f"covariance{which}: expected a symmetric matrix")
    return mean, covariance


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Frechet (Wasserstein-2) distance, squared, of two normal distributions.

        |m1 - m2|^2 + Tr(C1) + Tr(C2) - 2 Tr((C1 C2)^(1/2))

    With C = R R^T from the symmetric eigendecomposition of each covariance the last trace is the sum of the singular
    values of R1^T R2. No root of a product that is not symmetric is taken, so covariances of any rank are as good as
    others: no imaginary parts, nothing added to the diagonal.

    Args:
        mean1: D.
        covariance1: D,D, symmetric, no negative eigenvalue but for rounding.
        mean2: D.
        covariance2: as covariance1. Any floating type; computed in float64 where covariance1 is.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: shapes that do not fit, NaN, or a matrix that is no covariance.
    """
    mean1, covariance1 = _checked(mean1, covariance1, "1")
    mean2, covariance2 = _checked(mean2, covariance2, "2")
    if len(mean1) != len(mean2):
        raise ValueError(f"the two are of dimensions {len(mean1)} and {len(mean2)}; expected the same")
    mean2, covariance2 = mean2.to(mean1.device), covariance2.to(covariance1.device)
    product = _root(covariance1, "covariance1").T @ _root(covariance2, "covariance2")
    common = torch.linalg.svdvals(product).sum() if product.numel() else product.sum()
    traces = covariance1.trace() + covariance2.trace() - 2 * common
    return max(0.0, float((mean1 - mean2).square().sum()) + float(traces))


def fid(a: Statistics, b: Statistics) -> float:
    """Frechet distance of two sets of features; 0 for the same set.

    Of few pictures it comes out too large, the more so the fewer there are (Binkowski et al. 2018, section 4): compare
    values of the same number of pictures and the same extractor only.

    Raises:
        DataError: a set of fewer than two.
        ValueError: features of different lengths.
    """
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)

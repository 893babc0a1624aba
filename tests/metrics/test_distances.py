"""FID and KID against numbers of pytorch-fid and of the formula, and what must hold for any features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anifast.errors import DataError
from anifast.metrics import Statistics, fid, frechet_distance, kid, mmd
from anifast.metrics.kid import fitting_subset

Golden = Callable[[str], Any]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(features: Tensor, batch: int | None = None) -> Statistics:
    made = Statistics(features.shape[1])
    for part in features.split(batch or len(features)):
        made.update(part)
    return made


# --- golden


def golden_features(case: Any, about: dict[str, Any], which: str) -> Tensor:
    """One set of features of a golden case, as the case's note tells."""
    name = about["name"]
    x = case.inputs[f"{name}_x{which}"].astype(np.float64)
    if about.get("abs"):
        x = np.abs(x)
    if "log10_scale" in about:
        x = x * 10 ** np.linspace(*about["log10_scale"], x.shape[1])
    if about.get("mix"):
        x = x @ case.inputs[f"{name}_a{which}"].astype(np.float64)
    if f"zero_columns{which}" in about:
        x[:, slice(*about[f"zero_columns{which}"])] = 0
    return torch.from_numpy(x)


@pytest.mark.parametrize("name", ["fid_frechet", "fid_2048"])
def test_golden_fid(golden: Golden, name: str) -> None:
    case = golden(name)
    for about in case.spec["options"]["cases"]:
        if about.get("given"):
            args = [torch.from_numpy(case.inputs[f"given_{key}"]) for key in ("mu1", "sigma1", "mu2", "sigma2")]
        else:
            one, other = (statistics(golden_features(case, about, which), 64) for which in "12")
            args = [one.mean, one.covariance, other.mean, other.covariance]
        distance = frechet_distance(*args)
        mean_term = float((args[0] - args[2]).square().sum())
        want = {key: case.outputs[f"{about['name']}.{key}"] for key in ("exact", "mean_term", "trace_term", "fid")}
        # The references were made in float64. Singular values are right to some eps of the largest one, and the traces
        # that they are taken from are at most 1e4 times the distance in these cases.
        assert distance == pytest.approx(want["exact"]["mean"], rel=1e-10), about["name"]
        assert mean_term == pytest.approx(want["mean_term"]["mean"], rel=1e-12), about["name"]
        assert distance - mean_term == pytest.approx(want["trace_term"]["mean"], rel=1e-10), about["name"]
        # pytorch-fid itself is off by what the case tells where the product of the covariances is singular.
        assert distance == pytest.approx(want["fid"]["mean"], rel=1e-10 + 1.01 * want["fid"]["f32"]), about["name"]


def test_golden_kid(golden: Golden) -> None:
    case = golden("kid_mmd")
    for about in case.spec["options"]["cases"]:
        name, options = about["name"], {key: about[key] for key in ("degree", "gamma", "coef0")}
        x, y = (torch.from_numpy(case.inputs[f"{name}_{key}"]).double() for key in "xy")
        if about["abs"]:
            x, y = x.abs(), y.abs()
        rows = zip(case.inputs[f"{name}_subset_x"], case.inputs[f"{name}_subset_y"], strict=True)
        values = torch.tensor([mmd(x[i], y[j], **options) for i, j in rows], dtype=torch.float64)
        results = {
            "unbiased": mmd(x, y, **options),
            "biased": mmd(x, y, **options, biased=True),
            "subset_mean": values.mean(),
            "subset_std": values.std(correction=0),
        }
        for key, value in results.items():
            # Differences of means of kernel values that are up to a hundred times as large.
            assert float(value) == pytest.approx(case.outputs[f"{name}.{key}"]["mean"], rel=1e-11), (name, key)
        assert max(case.compare({f"{name}.subsets": values.numpy()}).values()) < 2**-23  # stored as float32


# --- statistics


def test_streamed_statistics_are_those_of_all_at_once() -> None:
    x = normal(97, 12) * 10.0 ** torch.arange(-6, 6) + 1e4 * normal(12, seed=1)  # mean far from 0, all scales
    want_mean, want = x.mean(dim=0), torch.cov(x.T)
    spread = want.diagonal().sqrt()
    for made in (statistics(x), statistics(x, 1), statistics(x, 10)):
        assert made.count == 97
        assert torch.allclose(made.mean, want_mean, rtol=1e-13, atol=0)
        # The mean's rounding, 1e4 * eps for each value, is all there is beside the scale of a column.
        error = (made.covariance - want).abs() / torch.outer(spread, spread)
        assert float(error.max()) < 4 * (1e4 * 2.0**-52 / 1e-6 + 97 * 2.0**-52)


def test_merged_statistics() -> None:
    x = normal(50, 5)
    one, other, none = statistics(x[:20]), statistics(x[20:], 7), Statistics(5)
    one.merge(other)
    one.merge(none)
    none.merge(one)
    for made in (one, none):
        assert made.count == 50
        assert torch.allclose(made.covariance, torch.cov(x.T), rtol=1e-13)
    with pytest.raises(ValueError, match="expected dimension 5, got 4"):
        one.merge(Statistics(4))


def test_statistics_go_through_a_state() -> None:
    made = statistics(normal(9, 4))
    back = Statistics.from_state(made.state_dict())
    assert back.count == 9 and torch.equal(back.mean, made.mean) and torch.equal(back.scatter, made.scatter)
    for key, value in (("mean", torch.zeros(3, dtype=torch.float64)), ("scatter", torch.zeros(4, 4))):
        with pytest.raises(ValueError, match="state"):
            Statistics.from_state({**made.state_dict(), key: value})


def test_features_of_half_types_are_summed_in_float64() -> None:
    x = normal(40, 6).to(torch.bfloat16)
    made = statistics(x, 8)
    assert made.mean.dtype == torch.float64
    assert torch.allclose(made.covariance, torch.cov(x.double().T), rtol=1e-13)


def test_statistics_refuse() -> None:
    made = Statistics(3)
    for shape in ((2, 4), (3,)):
        with pytest.raises(ValueError, match="expected N,3"):
            made.update(torch.zeros(shape))
    for value in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="not finite"):
            made.update(torch.full((2, 3), value))
    made.update(torch.empty(0, 3))
    assert made.count == 0
    made.update(torch.ones(1, 3))
    with pytest.raises(DataError, match="at least 2 pictures, there are 1"):
        _ = made.covariance


# --- Frechet distance


def test_the_distance_of_a_set_to_itself_is_nothing() -> None:
    for rows, dim in ((300, 20), (10, 64), (2, 2048)):
        one = statistics(normal(rows, dim))
        assert 0 <= fid(one, one) < 1e-12 * float(one.covariance.trace())


def test_diagonal_covariances_have_a_closed_form() -> None:
    a, b = normal(7).abs(), normal(7, seed=1).abs()
    a[2] = b[4] = 0  # singular, both
    m = normal(7, seed=2)
    distance = frechet_distance(m, a.square().diag(), torch.zeros(7), b.square().diag())
    assert distance == pytest.approx(float(m.square().sum() + (a - b).square().sum()), rel=1e-14)


def test_a_rotation_changes_nothing_and_sides_can_be_swapped() -> None:
    turn = torch.linalg.qr(normal(16, 16)).Q
    x, y = normal(9, 16, seed=1), normal(40, 16, seed=2) + 0.3  # the first is singular
    straight = fid(statistics(x), statistics(y))
    assert fid(statistics(x @ turn), statistics(y @ turn)) == pytest.approx(straight, rel=1e-12)
    assert fid(statistics(y), statistics(x)) == pytest.approx(straight, rel=1e-12)
    assert fid(statistics(3 * x), statistics(3 * y)) == pytest.approx(9 * straight, rel=1e-12)


def test_a_covariance_of_zeros() -> None:
    zero, one = torch.zeros(4, 4), torch.eye(4)
    assert frechet_distance(torch.zeros(4), zero, torch.ones(4), zero) == 4
    assert frechet_distance(torch.zeros(4), zero, torch.zeros(4), one) == 4


def test_fid_of_few_pictures_is_too_large() -> None:
    """The known bias that the command warns of."""
    small = [fid(statistics(normal(30, 16, seed=i)), statistics(normal(30, 16, seed=100 + i))) for i in range(5)]
    large = [fid(statistics(normal(3000, 16, seed=i)), statistics(normal(3000, 16, seed=100 + i))) for i in range(5)]
    assert min(small) > 10 * max(large) > 0


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((torch.zeros(3), torch.eye(4), torch.zeros(4), torch.eye(4)), "mean1 and covariance1: expected D and D,D"),
        ((torch.zeros(4), torch.eye(4), torch.zeros(3), torch.eye(3)), "dimensions 4 and 3"),
        ((torch.zeros(2), torch.eye(2), torch.zeros(2), torch.full((2, 2), torch.nan)), "covariance2: expected finite"),
        ((torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)), "covariance1: has an eigenvalue of -1"),
        ((torch.zeros(2), torch.eye(2), torch.zeros(2), torch.tensor([[1.0, 0], [1, 1]])), "covariance2: expected a s"),
    ],
)
def test_the_distance_refuses(args: tuple[Tensor, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        frechet_distance(*args)


# --- KID


def test_kid_is_unbiased_and_zero_for_one_kind() -> None:
    values = [kid(normal(60, 8, seed=i), normal(60, 8, seed=100 + i), subset_size=30) for i in range(40)]
    means = torch.tensor([value.mean for value in values])
    assert abs(float(means.mean())) < 3 * float(means.std()) / 40**0.5
    far = kid(normal(60, 8), normal(60, 8, seed=1) + 1.0, subset_size=30)
    assert far.mean > 4 * far.error > 0


def test_the_error_of_kid_is_that_of_other_pictures() -> None:
    found = [kid(normal(80, 4, seed=i), normal(80, 4, seed=1000 + i) + 0.5, subset_size=40) for i in range(60)]
    truth = float(torch.tensor([value.mean for value in found]).std())
    told = float(torch.tensor([value.error for value in found]).mean())
    assert 0.75 < told / truth < 1.35  # 60 repetitions know the truth to 9 %


def test_subsets_are_seeded_and_without_repetition() -> None:
    x, y = normal(20, 5), normal(30, 5, seed=1)
    one = kid(x, y, subsets=7, subset_size=10)
    assert one == kid(x, y, subsets=7, subset_size=10)
    assert one != kid(x, y, subsets=7, subset_size=10, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    kid(x, y, subset_size=4)
    assert torch.equal(before, torch.get_rng_state())
    whole = kid(x, y[:20], subsets=3, subset_size=20)
    assert whole.mean == pytest.approx(mmd(x, y[:20]), rel=1e-12)
    assert whole.std < 1e-12 and whole.error != whole.error
    assert whole.as_dict()["error"] is None and whole.as_dict()["subsets"] == 3


def test_kid_refuses() -> None:
    x = normal(10, 4)
    with pytest.raises(ValueError, match="expected 2 to 10"):
        kid(x, normal(20, 4), subset_size=11)
    with pytest.raises(ValueError, match="subsets is 0"):
        kid(x, x, subsets=0, subset_size=5)
    with pytest.raises(ValueError, match="expected M,D and N,D"):
        kid(x, normal(10, 5), subset_size=5)
    with pytest.raises(ValueError, match="at least 2 rows"):
        mmd(x[:1], x)
    with pytest.raises(DataError, match="not finite"):
        kid(x, x / 0, subset_size=5)
    assert [fitting_subset(50, n) for n in (2, 3, 10, 99, 100, 1000)] == [2, 2, 5, 49, 50, 50]
    with pytest.raises(DataError, match="at least 2"):
        fitting_subset(50, 1)

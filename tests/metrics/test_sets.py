"""Features of sets and folders: what is gathered, and the cache that saves taking them twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cyclegan import leftovers, picture
from torch import Tensor

from anifast.data.folders import read_image, resize, to_float, to_tensor
from anifast.errors import DataError
from anifast.metrics import FeatureSet, folder_features, sets

COUNT = 7


class Colours:
    """An extractor of six features: mean and spread of each colour. Counts the pictures that it is shown."""

    name, dim, weights, about = "colours", 6, "0" * 64, "means and spreads"

    def __init__(self) -> None:
        self.shown = 0
        self.largest = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        self.largest = max(self.largest, len(images))
        flat = images.flatten(2)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for i in range(COUNT):
        picture(tmp_path / "faces" / f"{i}.png", i, (20 + i, 24))
    return tmp_path / "faces"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def take(faces: Path, cache: Path, measure: Colours | None = None, **options: int) -> tuple[FeatureSet, int]:
    """The features, and how many pictures had to be looked at."""
    measure = measure or Colours()
    found = folder_features(faces, measure, options.pop("size", 16), cache_dir=cache, batch=3, **options)
    return found, measure.shown


def same(one: FeatureSet, other: FeatureSet) -> bool:
    a, b = one.statistics, other.statistics
    return (
        len(one) == len(other)
        and torch.equal(a.mean, b.mean)
        and torch.equal(a.scatter, b.scatter)
        and torch.equal(one.features, other.features)
        and one.skipped == other.skipped
    )


# --- sets


def test_a_set_gathers_statistics_and_features() -> None:
    x = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    made = FeatureSet(4)
    assert len(made) == 0 and made.features.shape == (0, 4)
    for part in x.split(5):
        made.update(part)
    assert len(made) == 23 and torch.equal(made.features, x)
    assert torch.allclose(made.statistics.covariance, torch.cov(x.double().T), rtol=1e-12)


def test_features_beyond_the_limit_are_a_fair_sample() -> None:
    rows = torch.arange(400.0)[:, None].expand(-1, 2)
    made = FeatureSet(2, kept=100)
    for part in rows.split(7):
        made.update(part)
    kept = made.features[:, 0]
    assert len(made) == 400 and made.features.shape == (100, 2)
    assert len(kept.unique()) == 100
    # Uniform over 400 numbers: the mean of 100 of them has a standard deviation of 10.
    assert abs(float(kept.mean()) - 199.5) < 40
    assert int((kept < 100).sum()) < 50  # not just the first ones
    again = FeatureSet(2, kept=100)
    again.update(rows)
    assert torch.equal(again.features, made.features)  # however it is divided
    none = FeatureSet(2, kept=0)
    none.update(rows)
    assert len(none) == 400 and none.features.shape == (0, 2)


# --- folders


def test_features_of_a_folder(faces: Path, cache: Path) -> None:
    measure = Colours()
    found, shown = take(faces, cache, measure)
    images = torch.stack([to_float(to_tensor(resize(read_image(faces / f"{i}.png"), 16))) for i in range(COUNT)])
    assert torch.allclose(found.features, Colours()(images), atol=1e-6)
    assert shown == len(found) == COUNT and measure.largest == 3


def test_the_second_time_nothing_is_looked_at(faces: Path, cache: Path) -> None:
    first, shown = take(faces, cache)
    second, again = take(faces, cache)
    assert (shown, again) == (COUNT, 0)
    assert same(first, second)
    second.update(torch.ones(2, 6))  # can go on
    assert len(second) == COUNT + 2 and second.features.shape == (COUNT + 2, 6)
    assert same(take(faces, cache)[0], first)
    assert not leftovers(cache) and len(list(cache.iterdir())) == 1


def test_what_decides_the_features_makes_them_anew(faces: Path, cache: Path) -> None:
    take(faces, cache)
    assert take(faces, cache, size=20)[1] == COUNT
    assert take(faces, cache, limit=4)[1] == 4
    assert take(faces, cache, kept=2)[1] == COUNT
    other = Colours()
    other.weights = "1" * 64  # type: ignore[misc]
    assert take(faces, cache, other)[1] == COUNT
    assert take(faces, cache)[1] == COUNT  # one file a setting: the other weights took its place
    other = Colours()
    other.about = "means and spreads / 2"  # type: ignore[misc]
    assert take(faces, cache, other)[1] == COUNT
    assert take(faces, cache)[1] == COUNT
    assert take(faces, cache)[1] == 0
    picture(faces / "new.png", 99)
    found, shown = take(faces, cache)
    assert shown == len(found) == COUNT + 1
    os.utime(faces / "0.png", (1, 1))
    assert take(faces, cache)[1] == COUNT + 1
    (faces / "new.png").unlink()
    assert take(faces, cache)[1] == COUNT


def test_damaged_caches_are_made_anew(faces: Path, cache: Path) -> None:
    first, _ = take(faces, cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-30], whole[:900] + b"\xff" * 8 + whole[908:]):
        file.write_bytes(content)
        found, shown = take(faces, cache)
        assert shown == COUNT and same(found, first)
        assert take(faces, cache)[1] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", np.zeros((COUNT, 5), np.float32)),
        ("features", np.zeros((COUNT - 1, 6), np.float32)),
        ("mean", np.zeros(5)),
        ("scatter", np.zeros((6, 6), np.float32)),
        ("count", np.array(COUNT + 1)),
        ("about", np.array("{}")),
        ("about", np.array("[]")),
        ("about", np.array(3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inconsistent_caches_are_made_anew(faces: Path, cache: Path, name: str, value: np.ndarray) -> None:
    take(faces, cache)
    (file,) = cache.iterdir()
    with np.load(file) as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(file, **{**arrays, name: value})
    assert take(faces, cache)[1] == COUNT


def test_a_cache_that_cannot_be_written_costs_time_only(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.warns(RuntimeWarning, match="ANIFAST_CACHE") as warned:
        found, shown = take(faces, tmp_path / "cache")
    assert len(warned) == 1 and shown == len(found) == COUNT


def test_a_cache_inside_the_folder_is_no_change_of_it(faces: Path) -> None:
    take(faces, faces / "cache")
    assert take(faces, faces / "cache")[1] == 0


def test_a_killed_writer_leaves_nothing(faces: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sets.np, "savez", interrupted)
        take(faces, cache)
    assert list(cache.iterdir()) == []


def test_pictures_that_cannot_be_read_are_named(faces: Path, cache: Path) -> None:
    whole = (faces / "2.png").read_bytes()
    (faces / "2.png").write_bytes(whole[: len(whole) // 2])
    (faces / "note.jpg").write_text("hello")
    for _ in range(2):  # the second time from the cache
        found, _ = take(faces, cache)
        assert len(found) == COUNT - 1
        assert sorted(found.skipped) == ["2.png", "note.jpg"] and str(faces) not in found.skipped["2.png"]
    for i in range(COUNT):
        (faces / f"{i}.png").write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"none of its pictures can be read, the first because 0\.png"):
        take(faces, cache)
    with pytest.raises(DataError, match="no such folder"):
        take(faces / "nowhere", cache)

"""Features of sets of pictures: gathered in batches, and those of folders kept on the disk."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anifast.data.folders import pixel_limit, printable, scan, to_float
from anifast.data.packed import cache_folder, cache_name, folder_fingerprint
from anifast.data.stream import image_batches
from anifast.errors import AnifastError, DataError
from anifast.files import atomic_path
from anifast.metrics.features import Extractor
from anifast.metrics.frechet import Statistics
from anifast.progress import Progress

FORMAT = "anifast.features/1"
"""Version of the cached files; those of another version are made again."""

KEPT = 10_000
"""Feature vectors that are kept for KID: 20 MB of SqueezeNet's, 82 MB of Inception's."""


class FeatureSet:
    """What FID and KID need of a set of pictures whose features come in batches.

    FID gets mean and covariance of all of them, in memory that does not grow. KID gets the features themselves, in
    float32, of at most `kept` pictures: beyond that each has the same chance to be among them (reservoir sampling,
    Vitter 1985, with a generator of its own).

    Args:
        dim: length of a feature vector.
        kept: how many features are kept.

    Attributes:
        statistics: for FID.
        skipped: name -> reason, for pictures of the folder that could not be read.
    """

    def __init__(self, dim: int, kept: int = KEPT) -> None:
        if kept < 0:
            raise ValueError(f"kept is {kept}; expected at least 0")
        self.statistics = Statistics(dim)
        self.skipped: dict[str, str] = {}
        self._limit = kept
        self._random = np.random.default_rng(0)
        self._held = torch.empty(0, dim)  # the kept ones, and room for more

    def __len__(self) -> int:
        return self.statistics.count

    @property
    def features(self) -> Tensor:
        """The kept ones: min(N, kept),dim float32, on the CPU; in the order they came while all are kept."""
        return self._held[: min(len(self), self._limit)]

    def update(self, features: Tensor) -> None:
        """Take in N,dim features of any floating type, on any device.

        Raises:
            ValueError: another shape.
            DataError: NaN or infinity among them.
        """
        before = self.statistics.count
        self.statistics.update(features)
        features = features.detach().to("cpu", torch.float32)
        room = max(0, self._limit - before)
        if room:
            end = min(self._limit, before + len(features))
            if end > len(self._held):  # doubled: many small pieces between a network's large ones split the heap
                larger = torch.empty(min(self._limit, max(end, 2 * len(self._held))), self.statistics.dim)
                larger[:before] = self._held[:before]
                self._held = larger
            self._held[before:end] = features[:room]
        if len(features) <= room or not self._limit:
            return
        places = self._random.integers(0, np.arange(before + room, before + len(features)) + 1)
        for row, place in zip(features[room:], places.tolist(), strict=True):
            if place < self._limit:
                self._held[place] = row


def folder_features(
    root: str | os.PathLike[str],
    extractor: Extractor,
    size: int,
    *,
    batch: int = 8,
    limit: int | None = None,
    kept: int = KEPT,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FeatureSet:
    """Features of the pictures of a folder; computed only if they are not in the cache for the folder as it is now.

    The cache is one file a folder, extractor and setting, written whole or not at all. Any change of a file's name,
    size, time or permissions, of the weights or the settings makes it anew, as does damage. A cache that cannot be
    written costs time only, with a RuntimeWarning.

    Args:
        root: the folder, searched as `scan` does.
        extractor: see `anifast.metrics.extractor`.
        size: side that pictures are brought to (bicubic, aspect ignored) before the extractor resizes them its own way:
            that of the pictures they are compared with.
        batch: pictures at once.
        limit: take the first so many only, in the folder's order.
        kept: features kept for KID.
        cache_dir: `cache_folder()` by default.

    Raises:
        DataError: the folder is missing or empty, or none of its pictures can be read.
    """
    top = Path(os.path.expanduser(os.fspath(root))).absolute()
    cache = cache_folder() if cache_dir is None else Path(os.path.expanduser(cache_dir))
    file = cache / f"{cache_name(top, size, size, f'features {extractor.name} {limit} {kept} ')}.npz"
    key = {
        "format": FORMAT,
        "folder": folder_fingerprint(top, str(pixel_limit())),
        "extractor": extractor.name,
        "dim": extractor.dim,
        "weights": extractor.weights,
        "about": extractor.about,
    }
    known = _read(file, key, kept)
    if known is not None:
        return known
    made = FeatureSet(extractor.dim, kept)
    found = scan(top)
    made.skipped.update(found.rejected)
    if limit is not None:
        del found.paths[limit:], found.names[limit:]
    with Progress(len(found), f"{extractor.name} of {printable(top.name)}") as bar:
        counted = len(made.skipped)
        for images in image_batches(found, size, batch, made.skipped):
            made.update(extractor(to_float(images)))
            new = len(made.skipped) - counted
            bar.update(len(images) + new, f"{new} skipped" if new else None)
            counted += new
    if not len(made):
        name = min(made.skipped)
        raise DataError(
            f"{printable(top)}: none of its pictures can be read, the first because {printable(name)}: "
            f"{made.skipped[name]}"
        )
    _write(file, key, made)
    return made


def _read(file: Path, key: dict[str, Any], kept: int) -> FeatureSet | None:
    """The cached features, if the file is whole and made under this key."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if {name: about.get(name) for name in key} != key:
                return None
            state = {name: torch.from_numpy(stored[name]) for name in ("count", "mean", "scatter")}
            statistics, features = Statistics.from_state(state), torch.from_numpy(stored["features"])
            skipped = dict(about["skipped"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None
    expected = (min(statistics.count, kept), key["dim"])
    if statistics.dim != key["dim"] or features.shape != expected or features.dtype != torch.float32:
        return None
    known = FeatureSet(statistics.dim, kept)
    known.statistics, known.skipped, known._held = statistics, skipped, features
    return known


def _write(file: Path, key: dict[str, Any], made: FeatureSet) -> None:
    state = {name: value.numpy() for name, value in made.statistics.state_dict().items()}
    about = np.array(json.dumps({**key, "skipped": made.skipped}))
    try:
        with atomic_path(file) as temporary, open(temporary, "wb") as handle:
            np.savez(
                handle,
                about=about,
                features=made.features.numpy(),
                count=state["count"],
                mean=state["mean"],
                scatter=state["scatter"],
            )
    except AnifastError as error:
        warnings.warn(
            f"the features of {printable(file.stem)} are not kept for another time: {error} "
            "(ANIFAST_CACHE names the folder)",
            RuntimeWarning,
            stacklevel=3,
        )

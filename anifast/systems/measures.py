"""What the evaluations of several systems do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from anifast.data import lmdb, stream
from anifast.data.folders import printable, read_image, resize, scan, to_float, to_tensor
from anifast.engine.precision import enough_memory
from anifast.errors import DataError, ImageError
from anifast.metrics.features import FID_WEIGHTS, Extractor
from anifast.metrics.report import Options, Report
from anifast.metrics.sets import FeatureSet, folder_features
from anifast.progress import Progress

#: What stands below a table of published figures in which ours have a star.
OTHER_NETWORK = "* taken with another network than the published figures: not to be compared with them"


def real_features(folder: Path, size: int, options: Options, report: Report) -> FeatureSet:
    """Features of a folder's pictures at this side, from the cache if they are there.

    Args:
        folder: of the pictures, or an LMDB; those that cannot be read are noted in the report.
        size: see `anifast.metrics.folder_features`; of an LMDB the pictures of the next larger size it has are taken.
        options: with an extractor.
        report: gets the notes.

    Raises:
        DataError: the folder is missing, or none of its pictures can be read.
        AnifastError: the memory does not suffice.
    """
    assert options.extractor is not None
    with enough_memory(options.batch, "", "--batch"):
        if not lmdb.is_lmdb(folder):
            found = folder_features(folder, options.extractor, size, batch=options.batch, limit=options.limit)
            note_left_out(folder, found.skipped, report)
            return found
        found = FeatureSet(options.extractor.dim)
        with opened(folder, size) as pictures:
            places = range(len(pictures.names))[: options.limit]
            label = f"{options.extractor.name} of {printable(folder.name)}"

            def prepared(image: Image.Image) -> Tensor:
                return to_float(to_tensor(resize(image, size)))

            for group, _ in read_batches(pictures, places, prepared, options.batch, label, report):
                found.update(options.extractor(group))
        return found


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder or an LMDB.

    Attributes:
        folder: it.
        names: of the pictures, in its order.
        read: the number of a name -> the picture; raises ImageError.
        rejected: name -> reason, for what promises pictures and holds none.
    """

    folder: Path
    names: list[str]
    read: Callable[[int], Image.Image]
    rejected: dict[str, str]


@contextmanager
def opened(folder: Path, side: int | None = None) -> Iterator[Pictures]:
    """The pictures of a folder or an LMDB, as long as it is open.

    Args:
        folder: see `scan`; or one with an LMDB.
        side: of an LMDB, which has each picture in several sizes, take the smallest one from `side` on, or the largest.

    Raises:
        DataError: it is missing, empty or damaged.
    """
    if not lmdb.is_lmdb(folder):
        found = scan(folder)
        yield Pictures(folder, found.names, lambda number: read_image(found.paths[number]), found.rejected)
        return
    with lmdb.Database(folder) as database:
        size = min([one for one in database.sizes if side is not None and one >= side], default=max(database.sizes))
        names = database.names(size)
        yield Pictures(folder, names, lambda number: database.read(names[number]), {})


def read_batches(
    pictures: Pictures,
    places: Sequence[int],
    prepare: Callable[[Image.Image], Tensor],
    batch: int,
    label: str,
    report: Report,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Some pictures, read ahead; those that cannot be read are left out and noted. Shows progress.

    Args:
        pictures: where from.
        places: numbers of their names.
        prepare: makes a tensor of a picture, of the same shape for all.
        batch: pictures at once.
        label: of the progress bar.
        report: gets the notes.

    Yields:
        A batch (the last one may be smaller), and its places.

    Raises:
        DataError: none of them can be read.
    """
    failed, read = dict(pictures.rejected), 0
    with Progress(len(places), label) as bar:

        def unreadable(place: int, error: ImageError) -> None:
            name = pictures.names[place]
            failed[name] = str(error).removeprefix(f"{printable(pictures.folder / name)}: ")
            bar.update()

        # they may be large: not many at a time
        for group in stream.read_batches(places, lambda k: prepare(pictures.read(k)), batch, unreadable, workers=2):
            read += len(group)
            bar.update(len(group))
            yield torch.stack([pixels for _, pixels in group]), [place for place, _ in group]
    if not read:
        first = min(failed)
        raise DataError(
            f"{printable(pictures.folder)}: none of its pictures can be read, the first because {printable(first)}: "
            f"{failed[first]}"
        )
    note_left_out(pictures.folder, failed, report)


def note_left_out(folder: Path, failed: Mapping[str, str], report: Report) -> None:
    """Note pictures, name -> reason, that cannot be read."""
    for name, why in failed.items():
        report.note(f"left out: {printable(folder / name)}: {why}")


def is_standard(extractor: Extractor) -> bool:
    """Whether it is the one that published FIDs are taken with."""
    return extractor.name == "inception" and extractor.weights.startswith(FID_WEIGHTS)


def figure(value: float | None, digits: int) -> str:
    """A cell of a table."""
    return "-" if value is None else f"{value:.{digits}f}"

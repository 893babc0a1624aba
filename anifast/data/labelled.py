"""Pictures of which each belongs to a known class: faces by artist, digits by writer or by digit."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anifast.data.digits import has_split, load_digits
from anifast.data.folders import MODES, class_labels, counted, printable
from anifast.data.packed import PackedImages, names_digest, pack, pixels_digest
from anifast.errors import DataError
from anifast.progress import Nowhere, Progress

LABELS = ("writer", "digit")
"""What digits can be labelled with."""

_MODES = {channels: mode for mode, channels in MODES.items()}
# Bytes that go to a GPU at a time, and the part of its free memory that pictures may take: networks need the rest.
_CHUNK = 1 << 28
_PART = 4
# How many names a line lists before it says how many more there are.
_LISTED = 3


class Selection:
    """Some pictures of a pack, in an order of their own.

    Args:
        pack: the pictures.
        rows: int64 [N], the place in the pack of each chosen one.
    """

    def __init__(self, pack: PackedImages, rows: NDArray[np.int64]) -> None:
        self._pack, self._rows = pack, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        _, height, width, channels = self._pack.images.shape
        return channels, height, width

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """The pictures at `indices` as uint8 n,C,H,W: contiguous, a copy.

        Raises:
            IndexError: an index is negative or not below N.
        """
        return self._pack.batch(self._rows[_checked(indices, len(self))])

    def digest(self) -> str:
        """Of the pixels, see `pixels_digest`."""
        return pixels_digest(self._pack.images, self._rows)


class Labelled:
    """Pictures and the class of each.

    Args:
        source: where they come from, for messages.
        images: N pictures.
        labels: int64 [N], the class of each, 0..K-1; every class has a picture.
        classes: K names.
        names: N names of pictures.
        about: one line for logs.
        maps: how much each pixel counts, one channel; or None: all alike.
        skipped: name -> reason, of pictures that cannot be used.
        left_out: class -> number of pictures that can be used, of classes that have too few.

    Raises:
        ValueError: the numbers do not fit.

    Attributes:
        images, maps, labels, classes, names, about, left_out: as given.
    """

    def __init__(
        self,
        source: str,
        images: Selection,
        labels: Tensor,
        classes: list[str],
        names: list[str],
        *,
        about: str,
        maps: Selection | None = None,
        skipped: Mapping[str, str] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        if not len(images) == len(labels) == len(names) or (maps is not None and len(maps) != len(images)):
            raise ValueError(f"{len(images)} pictures, {len(labels)} labels and {len(names)} names do not fit")
        self.images, self.maps, self.labels = images, maps, labels
        self.classes, self.names, self.about = classes, names, about
        self.left_out = dict(left_out or {})
        self._source, self._skipped = source, dict(skipped or {})
        self._kept: tuple[torch.device, Tensor, Tensor, Tensor | None] | None = None
        owners = hashlib.sha256(labels.numpy().tobytes())
        owners.update("\n".join(classes).encode("utf-8", "surrogateescape"))
        self._digests = {
            "pictures": len(names),
            "classes": len(classes),
            "names": names_digest(names),
            "labels": owners.hexdigest()[:16],
            "pixels": images.digest(),
            "maps": None if maps is None else maps.digest(),
        }

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> Tensor:
        """Pictures of each class, int64 [K]."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def skipped(self) -> dict[str, str]:
        """Name -> reason, of pictures that cannot be used."""
        return dict(self._skipped)

    def digests(self) -> dict[str, Any]:
        """By what the pictures are known again: plain numbers and texts."""
        return dict(self._digests)

    def check(
        self,
        state: Mapping[str, Any],
        *,
        since: str = "this run began",
        way_out: str = "Put the old pictures back, or start a new run",
    ) -> None:
        """Look whether these are the pictures of `digests`.

        Args:
            state: the digests of then.
            since: what happened then, for the message.
            way_out: what the user can do, for the message.

        Raises:
            DataError: they are others; the message says in what.
        """
        differing = [key for key, value in self._digests.items() if state.get(key) != value]
        if not differing:
            return
        pictures, classes = state.get("pictures"), state.get("classes")
        told = {
            "pictures": f"{counted(len(self))} can be used, and it was {pictures} when {since}",
            "classes": f"the pictures belong to {len(self.classes)} classes, and it was {classes} when {since}",
            "names": f"the pictures have other names than when {since}",
            "labels": f"the pictures belong to other classes than when {since}",
            "pixels": f"the pictures look different, or are cut or sized differently, than when {since}",
            "maps": f"the weight maps are others than when {since}",
        }
        raise DataError(f"{self._source}: {told[differing[0]]}. {way_out}")

    def batch(
        self, indices: Sequence[int] | NDArray[np.int64] | Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pictures, labels and weight maps at `indices`, all on `device`.

        Args:
            indices: integers [n] in 0..N-1.
            device: where they go; after `to(device)` they are gathered there.

        Returns:
            uint8 n,C,H,W; int64 [n]; uint8 n,1,H,W or None. Contiguous, copies.

        Raises:
            IndexError: an index is negative or not below N.
        """
        device = _located(device)
        rows = torch.from_numpy(_checked(indices, len(self)))
        if self._kept is not None and self._kept[0] == device:
            _, images, labels, maps = self._kept
            rows = rows.to(device, non_blocking=True)
            return images[rows], labels[rows], None if maps is None else maps[rows]
        chosen = None if self.maps is None else self.maps.batch(rows).to(device, non_blocking=True)
        images = self.images.batch(rows).to(device, non_blocking=True)
        return images, self.labels[rows].to(device, non_blocking=True), chosen

    def to(self, device: torch.device | str, progress: bool = True) -> bool:
        """Keep all pictures on a GPU, where batches are then gathered, if they take at most a quarter of what is free.

        Args:
            device: the GPU; any other device just forgets what is kept elsewhere.
            progress: draw a bar.

        Returns:
            Whether they are kept there.
        """
        device, self._kept = _located(device), None
        sources = [self.images] if self.maps is None else [self.images, self.maps]
        if sum(len(self) * math.prod(source.shape) for source in sources) > _free(device) // _PART:
            return False
        kept = [_copied(source, device, progress) for source in sources]
        self._kept = device, kept[0], self.labels.to(device), kept[1] if self.maps is not None else None
        return True


def _copied(source: Selection, device: torch.device, progress: bool) -> Tensor:
    """All pictures of a selection, uint8 N,C,H,W on a device; copied in parts, as memory for all at once may lack."""
    kept = torch.empty(len(source), *source.shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK // math.prod(source.shape))
    # What takes one part needs no bar.
    stream = None if progress and len(source) > step else Nowhere()
    with Progress(len(source), f"pictures to {device}", stream=stream) as bar:
        for start in range(0, len(source), step):
            part = source.batch(np.arange(start, min(start + step, len(source))))
            kept[start : start + len(part)] = part.to(device)
            bar.update(len(part))
    return kept


def _checked(indices: Sequence[int] | NDArray[np.int64] | Tensor, count: int) -> NDArray[np.int64]:
    """Indices as int64, none of them negative or beyond `count`."""
    numbers = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices, dtype=np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise IndexError(f"index {wrong} is out of range for {counted(count)}")
    return numbers


def _located(device: torch.device | str) -> torch.device:
    """A device with its number, so that `cuda` and `cuda:0` are the same."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _free(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 on other devices, which pictures need not be copied to."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def load_artists(
    root: str | os.PathLike[str],
    size: int,
    *,
    crop_size: int = 0,
    channels: int = 4,
    min_images: int = 50,
    weight_maps: str | os.PathLike[str] | None = None,
    min_classes: int = 2,
) -> Labelled:
    """Pictures by artist from the layout `root/<artist>/.../<picture>`, packed (see `pack`), in the order of paths.

    Pictures that cannot be read, and with 4 channels those that are transparent all over, are skipped.

    Args:
        root: the folder.
        size: side of the pictures.
        crop_size: side of the centred square that is cut from each picture first; 0: the largest.
        channels: 4 RGBA, 3 RGB, 1 grey; what is transparent is white without alpha.
        min_images: artists with fewer pictures that can be used are left out.
        weight_maps: a folder with a picture for each picture in use, of the same relative name but for the suffix: how
            much each pixel counts, black nothing. Read as grey and cut like the pictures.
        min_classes: how many artists there have to be.

    Raises:
        DataError: a folder is missing or holds no picture that can be used; a picture stands outside the artists'
            folders; there are too few artists; a weight map is missing, cannot be read, or is of no picture.
        ValueError: another number of channels.
    """
    if channels not in _MODES:
        raise ValueError(f"channels: expected one of {', '.join(map(str, sorted(_MODES)))}, got {channels}")
    shown = printable(os.path.expanduser(root))
    packed = pack(root, size, how="crop", mode=_MODES[channels], crop_size=crop_size)
    try:
        classes, owners = class_labels(packed.paths, min_images)
    except DataError as error:
        raise DataError(f"{shown}: {error}") from error
    have = Counter(name.partition("/")[0] for name in packed.paths)
    have.update({name.partition("/")[0]: 0 for name in packed.skipped if "/" in name})
    left_out = {artist: have[artist] for artist in sorted(set(have) - set(classes), key=os.fsencode)}
    if len(classes) < min_classes:
        others = (
            f" {len(left_out)} more have fewer than {min_images} pictures: {_listed(list(left_out))}."
            if left_out
            else ""
        )
        raise DataError(
            f"{shown}: pictures by {_artists(len(classes))} only ({_listed(classes)}), and at least {min_classes} are "
            "needed: style is what sets an artist's pictures apart from others', and pictures are painted in another "
            f"artist's style.{others} Add a folder of pictures by another artist"
            + (", or lower min_images" if left_out else "")
        )
    rows = np.flatnonzero(owners >= 0)
    labels = torch.from_numpy(owners[rows])
    about = [f"{counted(len(rows))} by {_artists(len(classes))}"]
    singles = [classes[i] for i in torch.nonzero(torch.bincount(labels) == 1)[:, 0].tolist()]
    if singles:
        about.append(f"warning: a single picture, which is all that tells the style, by {_listed(singles)}")
    return Labelled(
        shown,
        Selection(packed, rows),
        labels,
        classes,
        [packed.paths[row] for row in rows],
        about="; ".join(about),
        maps=None if weight_maps is None else _weight_maps(weight_maps, shown, packed, rows, crop_size),
        skipped=packed.skipped,
        left_out=left_out,
    )


def _weight_maps(
    folder: str | os.PathLike[str], root: str, packed: PackedImages, rows: NDArray[np.int64], crop_size: int
) -> Selection:
    """The maps of the pictures at `rows`."""
    shown, (_, height, width, _) = printable(os.path.expanduser(folder)), packed.images.shape
    maps = pack(folder, (height, width), how="crop", mode="L", crop_size=crop_size)
    exact = {name: row for row, name in enumerate(maps.paths)}
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(maps.paths):
        alike.setdefault(_stem(name), []).append(row)
    pictures = [*packed.paths, *packed.skipped]
    namesakes = Counter(_stem(name) for name in pictures)

    def find(name: str) -> int | None:
        if name in exact:
            return exact[name]
        rows = alike.get(_stem(name), [])
        return rows[0] if len(rows) == 1 and namesakes[_stem(name)] == 1 else None

    found = [find(name) for name in pictures]
    for row in rows:
        if found[row] is None:
            name = packed.paths[row]
            why = _why(name, maps, namesakes[_stem(name)])
            raise DataError(f"{shown}: no weight map of {printable(name)} ({why}). Each picture of {root} needs one")
    used = set(found)
    for row, name in enumerate(maps.paths):
        if row not in used:
            raise DataError(
                f"{shown}: {printable(name)} is the weight map of no picture of {root}. Remove it, or give the folder "
                "that belongs to these pictures"
            )
    return Selection(maps, np.array([found[row] for row in rows], dtype=np.int64))


def _why(name: str, maps: PackedImages, namesakes: int) -> str:
    """Why there is no map of a picture."""
    stem = _stem(name)
    broken = [other for other in sorted(maps.skipped) if _stem(other) == stem]
    if broken:
        return f"{printable(broken[0])}: {maps.skipped[broken[0]]}"
    if namesakes > 1:
        return "expected the very same name, as pictures of several suffixes are called so"
    if any(_stem(other) == stem for other in maps.paths):
        return "several files are called so, and none exactly so"
    return f"expected {printable(stem)} with any suffix"


def _stem(name: str) -> str:
    """A relative path without its suffix."""
    return os.path.splitext(name)[0]


def _artists(count: int) -> str:
    """A number of artists in words."""
    return f"{count} artist{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(printable(name) for name in names[:_LISTED]) + more


def load_digits_by(root: str | os.PathLike[str], label: str = "writer") -> Labelled:
    """Digits with the writer or the digit as the class: the whole of NIST if the folder has it, else MNIST's 60,000.

    Pictures have one channel, 28x28, 0 is paper and 255 ink. Classes are called by the writers' NIST ids, or by digit.

    Args:
        root: the folder, see `load_digits`.
        label: "writer" or "digit".

    Raises:
        DataError: files are missing or damaged, or all digits are of one class.
        ValueError: another label.
    """
    if label not in LABELS:
        raise ValueError(f"label: expected one of {', '.join(LABELS)}, got {label!r}")
    folder = Path(os.path.expanduser(root))
    split = "nist" if has_split(folder, "nist") else "train"
    digits = load_digits(folder, split)
    if label == "writer":
        ids, labels = digits.writer_ids, digits.writer
    else:
        ids, labels = torch.unique(digits.digit, return_inverse=True)
    if len(ids) < 2:
        raise DataError(
            f"{printable(folder)}: {len(digits)} digits of {len(ids)} {label}{'' if len(ids) == 1 else 's'}, and at "
            f"least 2 are needed to tell the {label}'s part of a picture from the rest"
        )
    what = {"nist": "NIST's digits", "train": "MNIST's training digits"}[split]
    return Labelled(
        printable(folder),
        Selection(PackedImages(digits.images.numpy()[..., None], []), np.arange(len(digits))),
        labels,
        [str(number) for number in ids.tolist()],
        [f"{split}/{i:06d}" for i in range(len(digits))],
        about=f"{what}: {len(digits)} by {len(digits.writer_ids)} writers, labelled by {label} ({len(ids)} classes)",
    )

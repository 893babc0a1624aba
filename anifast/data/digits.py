"""Handwritten digits with the writer of each: MNIST with QMNIST's labels, and the whole of NIST.

The files are those of yann.lecun.com and github.com/facebookresearch/qmnist, raw or packed (.gz, .xz):

| split | images | labels |
|---|---|---|
| train | train-images-idx3-ubyte | train-labels-idx1-ubyte, qmnist-train-labels-idx2-int |
| test | t10k-images-idx3-ubyte | t10k-labels-idx1-ubyte, qmnist-test-labels-idx2-int (its first 10,000 rows) |
| nist | xnist-images-idx3-ubyte | xnist-labels-idx2-int |
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anifast.errors import DataError

# IDX type codes; numbers are big-endian.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_CHUNK = 1 << 24

# split -> images, plain digit labels (None: there are none), extended labels
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "qmnist-train-labels-idx2-int"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "qmnist-test-labels-idx2-int"),
    "nist": ("xnist-images-idx3-ubyte", None, "xnist-labels-idx2-int"),
}
# Columns of the extended labels (spec disentangle, 2.3).
_DIGIT, _WRITER = 0, 2


@dataclass(frozen=True)
class Digits:
    """Digits and who wrote them.

    Attributes:
        images: uint8 [N,28,28], 0 is paper and 255 ink.
        digit: int64 [N], 0..9.
        writer: int64 [N], the writers of this split numbered 0..W-1 in the order of their NIST ids.
        writer_ids: int64 [W], the NIST id of each of these numbers; `writer_ids[writer]` is the id of every image.
    """

    images: Tensor
    digit: Tensor
    writer: Tensor
    writer_ids: Tensor

    def __len__(self) -> int:
        """The number of digits."""
        return len(self.images)


@dataclass(frozen=True)
class ChanceLevels:
    """What a classifier reaches that knows nothing but how frequent the classes are.

    Attributes:
        probability: mean probability given to the true class.
        rank: mean rank of the true class, 1 for the most frequent; equally frequent classes share the mean of their
            ranks, so that K equal classes have (K + 1) / 2.
        top1: part of the samples that belong to the most frequent class.
    """

    probability: float
    rank: float
    top1: float


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[np.generic]:
    """Read an IDX file, raw or packed by gzip or xz (told apart by content, not by name).

    Returns:
        A writable array of the file's shape and type (uint8, int8, int16, int32, float32 or float64) in this machine's
        byte order.

    Raises:
        DataError: the file is absent or unreadable, its header is not that of an IDX file, or there is less or more
            data than the header says.
    """
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            if start.startswith(_GZIP):
                with gzip.open(raw) as packed:
                    return _parse(packed, path)  # type: ignore[arg-type]
            if start == _XZ:
                with lzma.open(raw) as packed:
                    return _parse(packed, path)  # type: ignore[arg-type]
            return _parse(raw, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}). Fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(file: BinaryIO, path: Path) -> npt.NDArray[np.generic]:
    magic = file.read(4)
    if len(magic) < 4:
        raise DataError(f"{path}: truncated: {len(magic)} bytes instead of the 4 that an IDX file begins with")
    code, rank = magic[2], magic[3]
    if magic[:2] != b"\0\0" or code not in _TYPES or rank == 0:
        codes = ", ".join(f"{known:02x}" for known in _TYPES)
        raise DataError(
            f"{path}: not an IDX file: begins with {magic.hex(' ')}, expected 00 00, a type ({codes}) and a rank"
        )
    header = file.read(4 * rank)
    if len(header) < 4 * rank:
        raise DataError(f"{path}: truncated in the header: {rank} dimensions need {4 * rank} bytes, got {len(header)}")
    shape = tuple(int(side) for side in np.frombuffer(header, ">u4"))
    dtype = np.dtype(_TYPES[code])
    expected = math.prod(shape) * dtype.itemsize
    # In pieces, as the header may promise more than there is memory; one byte too many is enough to complain.
    data = bytearray()
    while len(data) <= expected and (piece := file.read(min(_CHUNK, expected + 1 - len(data)))):
        data += piece
    if len(data) < expected:
        raise DataError(
            f"{path}: truncated: the header says {'x'.join(map(str, shape))} {dtype.name} = {expected} bytes, "
            f"got {len(data)}"
        )
    if len(data) > expected:
        raise DataError(f"{path}: more data than the {'x'.join(map(str, shape))} {dtype.name} that the header says")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load_digits(folder: str | os.PathLike[str], split: str = "train") -> Digits:
    """Load a split with its labels.

    Args:
        folder: holds the files of the split, see this module's table; each may be raw, .gz or .xz.
        split: "train" (60,000 images of 539 writers), "test" (10,000 of 297 others) or "nist" (402,953 of 3,579).

    Raises:
        DataError: a file is missing, damaged, of the wrong shape, or its labels do not belong to the images.
        ValueError: no such split.
    """
    if split not in _FILES:
        raise ValueError(f"split: expected one of {', '.join(_FILES)}, got {split!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {_FILES[split][0]}.gz and its label files")
    paths = [None if name is None else _find(folder, name) for name in _FILES[split]]
    image_path, digit_path, label_path = paths
    assert image_path is not None and label_path is not None

    images = _read(image_path, np.dtype(np.uint8), (None, 28, 28))
    labels = _read(label_path, np.dtype(np.int32), (None, 8))
    # QMNIST's test labels go on for 50,000 digits that are not in MNIST's test set.
    if len(labels) < len(images) or (split != "test" and len(labels) > len(images)):
        raise DataError(f"{label_path}: {len(labels)} labels do not fit the {len(images)} images of {image_path.name}")
    labels = labels[: len(images)]
    digit = labels[:, _DIGIT]
    if digit_path is not None:
        plain = _read(digit_path, np.dtype(np.uint8), (len(images),))
        wrong = np.flatnonzero(plain != digit)
        if len(wrong):
            raise DataError(
                f"{label_path}: not the labels of these images: {len(wrong)} of {len(images)} digits differ from "
                f"{digit_path.name}, the first at row {wrong[0]}"
            )
    if len(digit) and (digit.min() < 0 or digit.max() > 9):
        raise DataError(f"{label_path}: digits from {digit.min()} to {digit.max()}, expected 0 to 9")
    writer_ids, writer = np.unique(labels[:, _WRITER], return_inverse=True)
    return Digits(
        images=torch.from_numpy(images),
        digit=torch.from_numpy(digit.astype(np.int64)),
        writer=torch.from_numpy(writer.astype(np.int64)),
        writer_ids=torch.from_numpy(writer_ids.astype(np.int64)),
    )


def has_split(folder: str | os.PathLike[str], split: str) -> bool:
    """Whether a folder has the images of a split, raw or packed."""
    return _present(Path(folder), str(_FILES[split][0])) is not None


def _find(folder: Path, name: str) -> Path:
    path = _present(folder, name)
    if path is None:
        raise DataError(f"{folder}: {name} is missing; expected it raw or as .gz or .xz")
    return path


def _present(folder: Path, name: str) -> Path | None:
    for suffix in ("", ".gz", ".xz"):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    return None


def _read(path: Path, dtype: np.dtype[np.generic], shape: tuple[int | None, ...]) -> npt.NDArray[np.generic]:
    array = read_idx(path)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        want = "x".join("N" if side is None else str(side) for side in shape)
        raise DataError(
            f"{path}: expected {want} {dtype.name}, got {'x'.join(map(str, array.shape))} {array.dtype.name}"
        )
    return array


def chance_levels(labels: Tensor) -> ChanceLevels:
    """The chance levels of a labelled set, with the class frequencies as prior (spec disentangle, 7.1).

    Args:
        labels: integer [N] >= 0, at least one.

    Raises:
        ValueError: not such labels.
    """
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise ValueError(f"labels: expected integers of shape (N,), N > 0, got {labels.dtype} {tuple(labels.shape)}")
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    frequency = counts.double() / counts.sum()
    above = (counts[None, :] > counts[:, None]).sum(1)
    equal = (counts[None, :] == counts[:, None]).sum(1)
    rank = above + (equal + 1) / 2
    return ChanceLevels(
        probability=float((frequency * frequency).sum()),
        rank=float((frequency * rank).sum()),
        top1=float(frequency.max()),
    )

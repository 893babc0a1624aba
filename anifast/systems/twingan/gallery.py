"""Galleries: where the pictures of a folder lie, kept in a file, and the search for those that are nearest.

A gallery is an .npz that numpy reads too, stored without compression so that it can be memory-mapped:

    embeddings  float16 [N, D], each of length 1     names  [N], paths relative to `folder`
    format, domain ("s" or "t"), checkpoint (the model's hash), size, resize, folder     one value each
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anifast.data.folders import ImageFolder, printable
from anifast.data.stream import read_batches
from anifast.errors import AnifastError, DataError, ImageError
from anifast.files import atomic_path
from anifast.systems.twingan.config import DOMAINS, domain_of

if TYPE_CHECKING:
    from anifast.systems.twingan.inference import Model

#: Marks a gallery, with the version of its contents.
FORMAT = "anifast.twingan.gallery/1"
#: Rows that are compared at once on a CPU, whose caches hold them in float32 (16 MB at the usual 4096 numbers), and on
#: a GPU, where launches count.
CHUNK, GPU_CHUNK = 1024, 16_384
_WAY_OUT = "make it anew by anifast twingan embed"
_NOT_FINITE = "its embedding is not finite (NaN); the model's weights may be damaged, or try --precision fp32"
#: What a zip file has before each part: 26 bytes, then the lengths of a name and of further fields that come first.
_LOCAL = struct.Struct("<26xHH")
_ABOUT = ("format", "domain", "checkpoint", "size", "resize", "folder")


@dataclass(frozen=True)
class Gallery:
    """Where pictures lie.

    Attributes:
        path: the file.
        embeddings: float16 [N, D], memory-mapped.
        names: of the pictures, relative to `folder`.
        domain: "s" or "t".
        checkpoint: `Model.hash` of the model that has placed them.
        size: the side at which it has seen them.
        resize: how those that are not square were made so, "crop" or "stretch".
        folder: where the pictures were.
    """

    path: Path
    embeddings: NDArray[np.float16]
    names: Sequence[str]
    domain: str
    checkpoint: str
    size: int
    resize: str
    folder: Path

    def __len__(self) -> int:
        return len(self.names)

    def check(self, model: Model) -> None:
        """Refuse a gallery of another model.

        Raises:
            DataError: it is.
        """
        shown = printable(self.path)
        if self.size != model.size or self.embeddings.shape[1] != model.dimensions:
            raise DataError(
                f"{shown}: its pictures were seen at {self.size}x{self.size} and are {self.embeddings.shape[1]} "
                f"numbers each, but this model sees them at {model.size}x{model.size} and makes {model.dimensions} "
                f"numbers; {_WAY_OUT}"
            )
        if self.checkpoint != model.hash:
            raise DataError(
                f"{shown}: was made by another checkpoint (or with another --norm-mode), and what two have placed "
                f"cannot be compared; {_WAY_OUT} with this one"
            )


def write(
    path: Path, embeddings: IO[bytes], dimensions: int, names: Sequence[str], about: Mapping[str, str | int]
) -> None:
    """Write a gallery, whole or not at all; `read` gives the same.

    Args:
        path: the file, .npz.
        embeddings: what it holds, float16 row by row, from where the file stands; copied piece by piece.
        dimensions: numbers in a row.
        names: one for each row.
        about: format, domain, checkpoint, size, resize, folder.

    Raises:
        AnifastError: the file cannot be written.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as part:
            kind = np.lib.format.dtype_to_descr(np.dtype("<f2"))
            head = {"descr": kind, "fortran_order": False, "shape": (len(names), dimensions)}
            np.lib.format.write_array_header_1_0(part, head)
            shutil.copyfileobj(embeddings, part, 2**22)
        for name, value in {"names": list(names), **about}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asarray(value), allow_pickle=False)


def read(path: str | Path) -> Gallery:
    """Open a gallery; its embeddings are read from the disk as they are looked at.

    Raises:
        DataError: missing, no gallery, damaged, or empty.
    """
    path, shown = Path(path), printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            about = {name: _small(archive, name).item() for name in _ABOUT}
            names = [str(name) for name in _small(archive, "names").tolist()]
            info = archive.getinfo("embeddings.npy")
        size = int(about["size"])
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file; anifast twingan embed makes a gallery") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error.args[0] if error.args else ""
        raise DataError(f"{shown}: no gallery of Twin-GAN ({why}); anifast twingan embed makes one") from error
    if about["format"] != FORMAT:
        raise DataError(f"{shown}: no gallery of Twin-GAN (format {about['format']!r}, expected {FORMAT!r})")
    if info.compress_type != zipfile.ZIP_STORED:
        raise DataError(f"{shown}: its embeddings are compressed, so that they cannot be searched in place; {_WAY_OUT}")
    try:
        found = _mapped(path, info.header_offset)
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{shown}: damaged ({error}); {_WAY_OUT}") from error
    if found.ndim != 2 or found.dtype != np.float16 or len(found) != len(names) or about["domain"] not in DOMAINS:
        raise DataError(
            f"{shown}: damaged: {len(names)} names and embeddings of type {found.dtype} and shape {found.shape} of "
            f"domain {about['domain']!r}; {_WAY_OUT}"
        )
    if not len(found):
        raise DataError(f"{shown}: holds no picture; {_WAY_OUT} from a folder that does")
    return Gallery(
        path,
        found,
        names,
        str(about["domain"]),
        str(about["checkpoint"]),
        size,
        str(about["resize"]),
        Path(str(about["folder"])),
    )


def _small(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as part:
        found: NDArray[Any] = np.lib.format.read_array(part, allow_pickle=False)
        return found


def _mapped(path: Path, start: int) -> NDArray[np.float16]:
    """The array of a part of a zip file that begins at `start` and is not compressed."""
    with open(path, "rb") as handle:
        handle.seek(start)
        handle.seek(sum(_LOCAL.unpack(handle.read(_LOCAL.size))), os.SEEK_CUR)
        version = np.lib.format.read_magic(handle)
        reading = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = reading(handle)
        if fortran or kind.hasobject:
            raise ValueError("embeddings in another order or of objects")
        # "c": torch wants memory that may be written to; what would be written never reaches the file
        return np.memmap(path, kind, "c", handle.tell(), shape) if np.prod(shape) else np.empty(shape, kind)


class Placed(NamedTuple):
    """Where some pictures of several lie.

    Attributes:
        numbers: of the pictures.
        embeddings: [len(numbers), D], float32 on the CPU.
        done: pictures that are done so far, also those of no use.
    """

    numbers: list[int]
    embeddings: Tensor
    done: int


def embedded(
    model: Model, paths: Sequence[Path], domain: str, failed: dict[str, str], *, how: str = "stretch", batch: int = 8
) -> Iterator[Placed]:
    """Where pictures lie, `batch` at a time and in order; `failed` gets path -> reason of those of no use.

    Args:
        model: places them.
        paths: of the pictures.
        domain: of the pictures, see `config.domain_of`.
        failed: see above.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures at once.
    """
    read = model.reader(how)

    def unreadable(number: int, error: ImageError) -> None:
        path = printable(paths[number])
        failed[path] = str(error).removeprefix(f"{path}: ")

    for group in read_batches(range(len(paths)), lambda number: read(paths[number]), batch, unreadable):
        found = model.embed(torch.stack([pixels for _, pixels in group]), domain).cpu()
        finite = torch.isfinite(found).all(1)
        for (number, _), whole in zip(group, finite.tolist(), strict=True):
            if not whole:
                failed[printable(paths[number])] = _NOT_FINITE
        good = [number for (number, _), whole in zip(group, finite.tolist(), strict=True) if whole]
        yield Placed(good, found[finite], group[-1][0] + 1)


def embed_folder(
    model: Model,
    folder: ImageFolder,
    domain: str,
    out: Path,
    *,
    how: str = "stretch",
    batch: int = 32,
    on_done: Callable[[int, int], object] = lambda count, failed: None,
) -> tuple[int, dict[str, str]]:
    """Make the gallery of a folder. No more than a few batches are in the memory at once.

    Args:
        model: places the pictures.
        folder: from `scan`.
        domain: of the pictures, see `config.domain_of`.
        out: the file, .npz.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures at once.
        on_done: is told after each batch how many pictures were done just now, and how many have failed in all.

    Returns:
        How many pictures are in the gallery, and path -> reason of those that are not.

    Raises:
        AnifastError: no such domain, or the file cannot be written.
        CheckpointError: the model has no encoder of this domain.
        DataError: none of the pictures can be used.
    """
    letter = DOMAINS[domain_of(domain)]
    model.require_encoder(letter)
    about: dict[str, str | int] = {
        "format": FORMAT,
        "domain": letter,
        "checkpoint": model.hash,
        "size": model.size,
        "resize": how,
        "folder": str(folder.root),
    }
    failed = {printable(folder.root / name): why for name, why in folder.rejected.items()}
    names: list[str] = []
    done = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # How many rows there are is known at the end only, and the head of an array tells it: rows wait in a file that
        # is gone with this process, whatever happens to it.
        with tempfile.TemporaryFile(dir=out.parent) as rows:
            for part in embedded(model, folder.paths, letter, failed, how=how, batch=batch):
                names += [folder.names[number] for number in part.numbers]
                rows.write(part.embeddings.half().numpy().astype("<f2", copy=False).tobytes())
                on_done(part.done - done, len(failed))
                done = part.done
            on_done(len(folder) - done, len(failed))
            if not names:
                path, why = next(iter(failed.items()))
                raise DataError(f"{printable(folder.root)}: none of its pictures can be used ({path}: {why})")
            rows.seek(0)
            write(out, rows, model.dimensions, names, about)
    except OSError as error:
        raise AnifastError(
            f"cannot write {printable(out)}: {error.strerror or error}. Free some space or choose another output folder"
        ) from error
    return len(names), failed


@torch.no_grad()
def topk(
    queries: Tensor, gallery: NDArray[np.float16] | Tensor, k: int, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The rows with the largest products, exactly: all are looked at, a chunk of them in float32 at once.

    Args:
        queries: [Q, D], float, on the device where it is computed.
        gallery: [N, D], float16 or another float type, also memory-mapped; moved to that device chunk by chunk.
        k: how many; all where there are fewer.
        chunk: rows at once; None: as suits the device.

    Returns:
        Products, float32 [Q, min(k, N)], the largest first, and the numbers of the rows, int64, both on the CPU. Of
        equal products among them that of the smaller number comes first.

    Raises:
        ValueError: wrong shapes, or a k or chunk below 1.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"expected queries [Q, D] and gallery [N, D], got {list(queries.shape)}, {list(gallery.shape)}"
        )
    if chunk is None:
        chunk = GPU_CHUNK if queries.device.type == "cuda" else CHUNK
    if k < 1 or chunk < 1:
        raise ValueError(f"k and chunk: expected at least 1, got {k} and {chunk}")
    wanted, device = queries.float(), queries.device
    room = torch.empty(min(chunk, max(1, len(gallery))), queries.shape[1], device=device)
    scores = wanted.new_empty(len(wanted), 0)
    numbers = torch.empty(len(wanted), 0, dtype=torch.int64, device=device)
    for start in range(0, len(gallery), chunk):
        part = gallery[start : start + chunk]
        rows = part if isinstance(part, Tensor) else torch.from_numpy(part)
        wide = room[: len(rows)].copy_(rows)
        found, places = _largest(wanted @ wide.t(), k)
        scores, numbers = torch.cat([scores, found], 1), torch.cat([numbers, places + start], 1)
        scores, best = _largest(scores, k)
        numbers = numbers.gather(1, best)
    return scores.cpu(), numbers.cpu()


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, in falling order; of equal ones the first place comes first."""
    found, places = scores.topk(min(k, scores.shape[1]), dim=1)
    places, order = places.sort(dim=1)
    found, again = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    return found, places.gather(1, again)


@dataclass(frozen=True)
class Neighbour:
    """A picture that is near a query.

    Attributes:
        path: where it was, in its gallery's folder.
        distance: 1 - cosine, from 0.
        resize: how its gallery makes pictures square that are not, "crop" or "stretch".
    """

    path: Path
    distance: float
    resize: str = "stretch"


def search(
    queries: Tensor,
    galleries: Sequence[Gallery],
    k: int,
    *,
    folder: Path | None = None,
    apart_from: Sequence[Path] | None = None,
    chunk: int | None = None,
) -> list[list[Neighbour]]:
    """The nearest pictures of several galleries together, the nearest first.

    Args:
        queries: [Q, D], from `Model.embed`.
        galleries: at least one, of one model.
        k: how many of each query; all where there are fewer.
        folder: where the galleries' pictures are now; None: where they were.
        apart_from: of each query the file that is left out where it is among them; None: nothing is.
        chunk: see `topk`.

    Returns:
        Of each query its neighbours.
    """
    more = 1 if apart_from is not None else 0
    found: list[list[tuple[float, Path, str]]] = [[] for _ in queries]
    for gallery in galleries:
        root = folder or gallery.folder
        scores, numbers = topk(queries, gallery.embeddings, k + more, chunk=chunk)
        for near, values, rows in zip(found, scores.tolist(), numbers.tolist(), strict=True):
            near += [
                (1.0 - value, root / gallery.names[row], gallery.resize)
                for value, row in zip(values, rows, strict=True)
            ]
    result = []
    for number, near in enumerate(found):
        near.sort(key=lambda one: one[0])  # stable: of equal ones the first gallery's come first
        if apart_from is not None:
            own = os.path.realpath(apart_from[number])
            near = [one for one in near if os.path.realpath(one[1]) != own]
        # embeddings are rounded to float16, so that of equal ones the product may be above 1
        result.append([Neighbour(path, max(0.0, distance), how) for distance, path, how in near[:k]])
    return result

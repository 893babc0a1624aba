"""A folder's pictures, or those of an LMDB, decoded and resized once, kept as uint8 in one memory-mapped file.

A pack is two files in the cache folder: `<key>-<unique>.npy` with the pixels and `<key>.json`, the sidecar, which names
the pixel file and says what it was made from. The sidecar is replaced in one step, after the pixels are on the disk:
whoever is killed at whatever moment leaves the old pack or none, never half a one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anifast.data import lmdb
from anifast.data.folders import MODES, RESIZES, pixel_limit, printable, read_image, resize, scan, walk
from anifast.data.stream import in_order
from anifast.errors import DataError, ImageError
from anifast.files import atomic_path, write_text
from anifast.progress import Progress

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

FORMAT = "anifast.packed/2"
"""Version of the cache; a pack of another version is made again."""

SAMPLED = 64
"""Pictures that `pixels_digest` looks at: some MB, read once."""

_HEADER_BYTES = 128
# Averages are made of so many bytes at once.
_AT_ONCE = 32 * 2**20
# The ends of the names that `cache_name` gives to files: those of packs, and statistics of features.
_OWN_FILE = re.compile(r"-\d+x\d+-[0-9a-f]{16}(\.json|\.lock|\.npz|-[0-9a-f]{8}\.npy)$")


@dataclass(frozen=True)
class PackedImages:
    """Pictures of one size.

    Attributes:
        images: uint8 N,H,W,C, read-only, memory-mapped: only what is looked at is read from the disk.
        paths: the N pictures' POSIX paths relative to the folder, sorted bytewise.
        skipped: relative path -> reason, for pictures that could not be used. Of pictures that are decoded when they
            are asked for (`unpacked`) it grows with each bad one that is met.
    """

    images: NDArray[np.uint8]
    paths: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> torch.Tensor:
        """The pictures at `indices` as uint8 n,C,H,W: contiguous, a copy.

        Raises:
            IndexError: an index is negative or not below N.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if (numbers < 0).any():
            raise IndexError(f"index {numbers.min()} is out of range for {len(self)} pictures")
        chosen = self.images[numbers]
        return torch.from_numpy(chosen).permute(0, 3, 1, 2).contiguous()

    def ahead(self, indices: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> None:
        """Say which `batch` is asked for next: pictures that are not decoded yet are decoded meanwhile.

        One batch is kept: another call before that `batch` takes its place.
        """
        if isinstance(self.images, _Undecoded):
            self.images.ahead(np.asarray(indices, dtype=np.int64))

    @cached_property
    def _digests(self) -> tuple[str, str]:
        """Of names and pixels; once, as looking at pictures that are not decoded yet takes its time."""
        return names_digest(self.paths), pixels_digest(self.images)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` positions, evenly over 0..count-1."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def names_digest(names: Sequence[str]) -> str:
    """Digest of pictures' names and their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def pixels_digest(images: NDArray[np.uint8], rows: Sequence[int] | NDArray[np.int64] | None = None) -> str:
    """Digest of the pixels of up to `SAMPLED` pictures of N,H,W,C, and of how many there are.

    Of the pixels and not of the files' times, so that a copy of a folder is the same data.

    Args:
        images: the pictures, as in `PackedImages`.
        rows: the positions of those that count; None: all.
    """
    chosen = range(len(images)) if rows is None else rows
    digest = hashlib.sha256(str((len(chosen), *images.shape[1:])).encode())
    for i in spread(len(chosen), SAMPLED):
        digest.update(images[chosen[i]].tobytes())
    return digest.hexdigest()[:16]


def digests(pictures: PackedImages) -> dict[str, str]:
    """By what pictures are known again."""
    names, pixels = pictures._digests
    return {"names": names, "pixels": pixels}


def check_digests(pictures: PackedImages, state: Mapping[str, Any], name: str, began: str = "this stage") -> None:
    """Look whether these are the pictures of `digests` in a checkpoint.

    Args:
        pictures: they.
        state: the digests of then.
        name: of the folder, for the message.
        began: what has begun with the pictures of then, for the message.

    Raises:
        DataError: they are others.
    """
    now = digests(pictures)
    for key, how in (("names", ""), ("pixels", " under the same names")):
        if key == "pixels" and key not in state:  # checkpoints from before it was kept know the names only
            continue
        if state[key] != now[key]:
            raise DataError(
                f"{name} holds other pictures{how} than when {began} began, so it cannot go on as if nothing had "
                "happened. Put the old pictures back, or start a new run"
            )


def cache_folder() -> Path:
    """Where packs are kept unless told otherwise: ANIFAST_CACHE, or ~/.cache/anifast.

    A user without a home, as in many containers, gets a folder among the temporary files.
    """
    folder = os.path.expanduser(os.environ.get("ANIFAST_CACHE") or "~/.cache/anifast")
    return Path(tempfile.gettempdir(), "anifast-cache") if folder.startswith("~") else Path(folder)


def pack(
    root: str | os.PathLike[str],
    size: int | tuple[int, int],
    *,
    how: str = "stretch",
    mode: str = "RGB",
    crop_size: int = 0,
    top: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> PackedImages:
    """Give all pictures of a folder at one size; decode them only if the folder is not yet in the cache as it is now.

    Any change of a file's name, size, time or permissions, of the settings or of the format makes the pack anew in
    place of the old one. Several processes may ask at once: one packs, the others wait for it. Pictures that cannot
    be read, and in mode RGBA those of which nothing is visible, are skipped and named in `skipped`.

    A folder that holds an LMDB (`data.mdb`, see `anifast.data.lmdb`) gives its pictures of exactly this size, whose
    keys are their paths.

    Args:
        root: the folder, searched as `scan` does.
        size: the side of a square, or (height, width).
        how: `stretch` or `crop`, see `resize`.
        mode: RGB, RGBA or L, see `read_image`.
        crop_size: side of the centred square that is cut from each picture first, see `resize`.
        top: the side at which pictures are decoded: that of the square, twice, four times it, and so on. Each smaller
            pack is of the averages of 2x2 pixels of the one above, rounded to the nearest (halves to the even number),
            so that pictures are decoded once for all sizes; each is in the cache for itself.
        cache_dir: where the pack is kept; `cache_folder()` by default. If nothing can be written there, a temporary
            file serves this process alone, with a RuntimeWarning.
        workers: decoding threads; by default one for each CPU this process may use.
        progress: draw a bar while decoding.

    Raises:
        AnifastError: it is an LMDB, and the package `lmdb` is not installed.
        DataError: the folder is missing or empty, none of its pictures can be used, crop_size is beyond the limit for
            pictures, the LMDB has no pictures of this size, or the disk has no room.
        ValueError: size, how, mode, crop_size, top or workers out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    if how not in RESIZES:
        raise ValueError(f"how is {how!r}; expected one of {', '.join(RESIZES)}")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    if crop_size < 0:
        raise ValueError(f"crop_size is {crop_size}; expected at least 0")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1")
    if top is not None:
        doubled = height
        while doubled < top:
            doubled *= 2
        if height != width or doubled != top:
            raise ValueError(f"top is {top}; expected the side of a square, {height}x{width}, or 2, 4, 8, ... times it")
        if mode == "RGBA":
            raise ValueError("mode is RGBA; colours of transparent pixels would enter averages: leave top out")
    max_pixels = pixel_limit()
    if crop_size**2 > max_pixels:
        raise DataError(
            f"crop_size {crop_size}: a square of that side has more than the limit of {max_pixels} pixels. Take a "
            "smaller one, or raise the limit with ANIFAST_MAX_PIXELS"
        )
    job = _Job(
        root=Path(os.path.expanduser(os.fspath(root))).absolute(),
        height=height,
        width=width,
        how=how,
        mode=mode,
        crop_size=crop_size,
        max_pixels=max_pixels,
        workers=workers or _cpus(),
        progress=progress,
        top=top or 0,
        cache=cache_folder() if cache_dir is None else Path(os.path.expanduser(cache_dir)),
    )
    return _packed(job)


def _packed(job: _Job) -> PackedImages:
    """The pack of a job, from the cache or made now."""
    cache = job.cache
    sidecar = cache / f"{job.key()}.json"
    fingerprint = job.fingerprint()
    packed = _load(sidecar, fingerprint)
    if packed is not None:
        return packed
    lock = sidecar.with_suffix(".lock")
    reason = _not_writable(lock)
    if reason is not None:
        warnings.warn(
            f"{printable(cache)}: the cache cannot be written ({reason}); {printable(job.root)} is packed into a "
            "temporary file for this run only. Set ANIFAST_CACHE to a folder that can be written",
            RuntimeWarning,
            stacklevel=3,
        )
        return _pack_temporary(job)
    with _lock(lock, job.progress) as alone:
        packed = _load(sidecar, fingerprint)  # the one waited for may have made it
        if packed is not None:
            return packed
        if alone:
            _remove_leftovers(sidecar)
        return _pack_cached(job, sidecar, fingerprint)


@dataclass(frozen=True)
class _Job:
    """What is to be packed, and how."""

    root: Path
    height: int
    width: int
    how: str
    mode: str
    crop_size: int
    max_pixels: int
    workers: int
    progress: bool
    database: lmdb.Database | None = None
    top: int = 0
    cache: Path = Path()

    @property
    def row_bytes(self) -> int:
        """Bytes of one picture."""
        return self.height * self.width * MODES[self.mode]

    def key(self) -> str:
        """Name of the pack."""
        cut = f"{self.crop_size} " if self.crop_size else ""
        halved = f"of {self.top} " if self.halved else ""
        return cache_name(self.root, self.height, self.width, f"{self.how} {self.mode} {cut}{halved}")

    @property
    def halved(self) -> bool:
        """Whether the pixels are averages of a larger pack's."""
        return self.top > self.height

    def fingerprint(self) -> str:
        """Digest of all that decides the pixels."""
        if lmdb.is_lmdb(self.root):
            return lmdb.fingerprint(self.root, FORMAT)
        return folder_fingerprint(self.root, f"{FORMAT} {self.max_pixels}")

    def read(self, path: Path) -> Image.Image:
        """A picture of the folder, or of the database under its key."""
        if self.database is not None:
            return self.database.read(path.name, self.mode)
        return read_image(path, self.mode, max_pixels=self.max_pixels)


def cache_name(root: Path, height: int, width: int, settings: str) -> str:
    """Name of a cache file about a folder: one for each folder and setting, so that a changed folder replaces it."""
    settings = f"{height} {width} {settings}"
    digest = hashlib.sha256(settings.encode() + os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() else "_" for letter in printable(root.name))[:40]
    return f"{name}-{height}x{width}-{digest}"


def folder_fingerprint(root: str | os.PathLike[str], settings: str) -> str:
    """Digest of a folder as it is now: every file's name, size, time and permissions, and `settings`.

    What this cache wrote does not count: a cache below the folder would change it with every file.

    Raises:
        DataError: the folder is missing or cannot be listed.
    """
    lines = []
    for name, entry in walk(root):
        if _OWN_FILE.search(name):
            continue
        try:
            info = entry.stat()
        except OSError:  # gone since it was listed
            continue
        lines.append(b"%s\0%d %d %o" % (os.fsencode(name), info.st_size, info.st_mtime_ns, info.st_mode))
    lines.sort()
    lines.append(settings.encode())
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load(sidecar: Path, fingerprint: str) -> PackedImages | None:
    """The pack behind a sidecar, if it is whole and of this fingerprint."""
    try:
        record: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["fingerprint"] != fingerprint:
            return None
        images = np.load(sidecar.with_name(record["file"]), mmap_mode="r")
        if images.dtype != np.uint8 or list(images.shape) != record["shape"] or len(images) != len(record["paths"]):
            return None
        return PackedImages(images, record["paths"], record["skipped"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _not_writable(lock: Path) -> str | None:
    """Why a pack with this lock cannot be written, after trying to make the folder and to write there, or None."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=lock.parent), open(lock, "ab"):
            return None
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def _lock(path: Path, progress: bool) -> Iterator[bool]:
    """Hold the pack's lock, which ends with the process however that ends; gives False where locks do not work."""
    if fcntl is None:
        yield False
        return
    with open(path, "ab") as handle:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"waiting for another process to pack {path.stem}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            alone = False
        yield alone


def _remove_leftovers(sidecar: Path) -> None:
    """Remove the pixels of an outdated pack and of packers that were killed. Who has them mapped keeps them."""
    for pattern in (f"{sidecar.stem}-*.npy", f".{sidecar.stem}*.tmp.*"):
        for path in sidecar.parent.glob(pattern):
            with suppress(OSError):
                path.unlink()


def _pack_cached(job: _Job, sidecar: Path, fingerprint: str) -> PackedImages:
    """Decode into the cache; pixels first, sidecar last."""
    pixels = sidecar.with_name(f"{sidecar.stem}-{uuid.uuid4().hex[:8]}.npy")
    with atomic_path(pixels) as temporary, open(temporary, "wb") as handle:
        paths, skipped = _write(job, handle, sidecar.parent, "set ANIFAST_CACHE to a folder on a larger disk")
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "root": os.fspath(job.root),
        "how": job.how,
        "mode": job.mode,
        "crop_size": job.crop_size,
        "top": job.top,
        "file": pixels.name,
        "shape": [len(paths), job.height, job.width, MODES[job.mode]],
        "paths": paths,
        "skipped": skipped,
    }
    write_text(sidecar, json.dumps(record))
    return PackedImages(np.load(pixels, mmap_mode="r"), paths, skipped)


def _pack_temporary(job: _Job) -> PackedImages:
    """Decode into a file without a name, which is gone with this process."""
    try:
        handle = tempfile.TemporaryFile()
    except OSError as error:
        raise DataError(
            f"no temporary folder can be written either ({error.strerror}). Set ANIFAST_CACHE to a folder that can"
        ) from error
    with handle:
        paths, skipped = _write(job, handle, Path(tempfile.gettempdir()), "set ANIFAST_CACHE to another folder")
        handle.flush()
        shape = (len(paths), job.height, job.width, MODES[job.mode])
        images = np.memmap(handle, np.uint8, "r", offset=_HEADER_BYTES, shape=shape)
    return PackedImages(images, paths, skipped)


def _write(job: _Job, handle: IO[bytes], folder: Path, way_out: str) -> tuple[list[str], dict[str, str]]:
    """Write an .npy file of all pictures that can be read; give their paths and the skipped ones.

    Written in order and not through a map: a full disk is then an error and not a bus error, and only a few
    pictures are in memory at a time.
    """
    if job.halved:
        return _write_averages(job, handle, folder, way_out)
    with _listed(job) as (job, names, rejected):
        return _write_pictures(job, handle, folder, way_out, names, rejected)


@contextmanager
def _listed(job: _Job) -> Iterator[tuple[_Job, list[str], dict[str, str]]]:
    """The job with its database open, if it is one, the pictures' names, and name -> reason for what is none."""
    if not lmdb.is_lmdb(job.root):
        found = scan(job.root)
        yield job, found.names, dict(found.rejected)
        return
    if job.height != job.width:
        raise DataError(
            f"{printable(job.root)}: an LMDB holds squares, not {job.height}x{job.width}. Give a folder of pictures"
        )
    with lmdb.Database(job.root) as database:
        yield replace(job, database=database), database.names(job.height), {}


#: A picture H,W,C, and name -> reason of the bad ones that it stands in for.
_Decoded = tuple[NDArray[np.uint8], dict[str, str]]


class _Undecoded:
    """Pictures N,H,W,C that are decoded whenever they are looked at, in threads; stands in for a pack's array.

    One that cannot be read is noted in `skipped` by who asks for it, and the next one that can be stands in for it.
    """

    def __init__(self, job: _Job, names: list[str], skipped: dict[str, str]) -> None:
        self._job, self._names, self._skipped = job, names, skipped
        self._is_lmdb = lmdb.is_lmdb(job.root)
        self.shape = (len(names), job.height, job.width, MODES[job.mode])
        self._pool = ThreadPoolExecutor(job.workers, thread_name_prefix="decode")
        self._before = ThreadPoolExecutor(1, thread_name_prefix="ahead")  # waits for the other's threads
        self._next: tuple[NDArray[np.int64], Future[list[_Decoded]]] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: Any) -> NDArray[np.uint8]:
        """Of a number H,W,C, of numbers n,H,W,C."""
        numbers = np.asarray(place, dtype=np.int64)
        if self._next is not None and np.array_equal(self._next[0], numbers):
            coming, self._next = self._next[1], None
            found = coming.result()
        else:
            found = self._decoded(numbers)
        for _, bad in found:
            self._skipped.update(bad)
        out = np.stack([pixels for pixels, _ in found]) if found else np.empty((0, *self.shape[1:]), np.uint8)
        return out.reshape(*numbers.shape, *self.shape[1:])

    def ahead(self, numbers: NDArray[np.int64]) -> None:
        """Begin to decode what is asked for next."""
        if self._next is not None:
            self._next[1].cancel()
        numbers = numbers.copy()
        self._next = numbers, self._before.submit(self._decoded, numbers)

    def _decoded(self, numbers: NDArray[np.int64]) -> list[_Decoded]:
        if numbers.size and numbers.max() >= len(self):
            raise IndexError(f"index {numbers.max()} is out of range for {len(self)} pictures")
        if not self._is_lmdb:
            return self._with(self._job, numbers)
        with lmdb.Database(self._job.root) as database:  # opened for each batch, or somebody had to close it
            return self._with(replace(self._job, database=database), numbers)

    def _with(self, job: _Job, numbers: NDArray[np.int64]) -> list[_Decoded]:
        return list(self._pool.map(lambda number: self._read(job, int(number)), numbers.reshape(-1)))

    def _read(self, job: _Job, number: int) -> _Decoded:
        bad: dict[str, str] = {}
        reason = ""
        for step in range(len(self)):
            name = self._names[(number + step) % len(self)]
            path = job.root / name
            try:
                return np.frombuffer(_decode(job, path), np.uint8).reshape(self.shape[1:]), bad
            except ImageError as error:
                bad[name] = reason = str(error).removeprefix(f"{printable(path)}: ")
        raise DataError(f"{printable(job.root)}: none of its pictures can be read; the last one: {reason}")


def unpacked(
    root: str | os.PathLike[str], size: int | tuple[int, int], *, how: str = "stretch", mode: str = "RGB"
) -> PackedImages:
    """The same pictures as `pack` gives, decoded anew whenever they are asked for: for sets too large for a cache.

    A picture that cannot be read is found when it is asked for: it is then noted in `skipped`, and the next one stands
    in for it. `ahead` lets the next batch be decoded while the one at hand is used.

    Args:
        root, size, how, mode: as of `pack`.

    Raises:
        AnifastError: it is an LMDB, and the package `lmdb` is not installed.
        DataError: the folder is missing or empty, or the LMDB has no pictures of this size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    folder = Path(os.path.expanduser(os.fspath(root))).absolute()
    job = _Job(folder, height, width, how, mode, 0, pixel_limit(), _cpus(), False)
    with _listed(job) as (_, names, rejected):
        skipped = dict(rejected)
    return PackedImages(_Undecoded(job, names, skipped), names, skipped)  # type: ignore[arg-type]


def _write_pictures(
    job: _Job, handle: IO[bytes], folder: Path, way_out: str, names: Sequence[str], skipped: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Write pictures with these names, of which some more are skipped already; see `_write`."""
    _check_space(job, len(names), folder, way_out)
    paths: list[str] = []
    stream = None if job.progress else io.StringIO()
    pool = ThreadPoolExecutor(job.workers, thread_name_prefix="pack")
    try:
        handle.write(_npy_header((0, job.height, job.width, MODES[job.mode])))
        with Progress(len(names), f"packing {printable(job.root.name)}", stream=stream) as bar:
            for name, future in in_order(names, lambda name: _decode(job, job.root / name), pool, 4 * job.workers):
                try:
                    handle.write(future.result())
                    paths.append(name)
                    bar.update()
                except ImageError as error:
                    skipped[name] = str(error).removeprefix(f"{printable(job.root / name)}: ")
                    bar.update(note=f"{len(skipped)} skipped")
        handle.seek(0)
        handle.write(_npy_header((len(paths), job.height, job.width, MODES[job.mode])))
    except OSError as error:
        raise _not_written(job, len(names), folder, way_out, error) from error
    finally:
        pool.shutdown(cancel_futures=True)
    if not paths:
        name = min(skipped)
        raise DataError(
            f"{printable(job.root)}: none of its {len(skipped)} pictures can be read, the first because "
            f"{printable(name)}: {skipped[name]}"
        )
    return paths, skipped


def _write_averages(job: _Job, handle: IO[bytes], folder: Path, way_out: str) -> tuple[list[str], dict[str, str]]:
    """Write the averages of 2x2 pixels of the pack of twice the size; see `_write`."""
    above = _packed(replace(job, height=2 * job.height, width=2 * job.width))
    count = len(above)
    _check_space(job, count, folder, way_out)
    step = max(1, _AT_ONCE // (4 * job.row_bytes))
    stream = None if job.progress else io.StringIO()
    try:
        handle.write(_npy_header((count, job.height, job.width, MODES[job.mode])))
        with Progress(count, f"halving {printable(job.root.name)} to {job.height} px", stream=stream) as bar:
            for first in range(0, count, step):
                part = above.images[first : first + step]
                handle.write(_averages(part).tobytes())
                bar.update(len(part))
    except OSError as error:
        raise _not_written(job, count, folder, way_out, error) from error
    return list(above.paths), dict(above.skipped)


def _averages(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of 2x2 pixels each, N,2H,2W,C -> N,H,W,C; halves to the even number, as up they would brighten level by level."""
    total = images[:, 0::2].astype(np.uint16)
    total += images[:, 1::2]
    total = total[:, :, 0::2] + total[:, :, 1::2]
    return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint8)


def _check_space(job: _Job, pictures: int, folder: Path, way_out: str) -> None:
    needed, free = pictures * job.row_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{printable(folder)}: packing {printable(job.root)} needs {_amount(needed)}, but only {_amount(free)} "
            f"are free. Free some space or {way_out}"
        )


def _not_written(job: _Job, pictures: int, folder: Path, way_out: str, error: OSError) -> DataError:
    return DataError(
        f"{printable(folder)}: the pack of {printable(job.root)} ({_amount(pictures * job.row_bytes)}) cannot be "
        f"written ({error.strerror}). Free some space or {way_out}"
    )


def _decode(job: _Job, path: Path) -> bytes:
    """One picture's pixels, H,W,C."""
    image = resize(job.read(path), (job.height, job.width), job.how, crop_size=job.crop_size)
    if job.mode == "RGBA" and image.getchannel("A").getbbox() is None:
        raise ImageError(f"{printable(path)}: every pixel is transparent")
    return image.tobytes()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 .npy file, of the same length for every shape: the count is known only at the end."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER_BYTES - 10) + text.ljust(_HEADER_BYTES - 11).encode() + b"\n"
    )


def _amount(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

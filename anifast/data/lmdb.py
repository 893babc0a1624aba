"""Pictures in an LMDB, as StyleGAN2's training in PyTorch keeps them: JPEGs of one or several sizes in one database.

The key of a picture is "{size}-{index:05d}", and under the key `length` stands how many there are, as text. Reading and
writing needs the package `lmdb`, the extra of the same name.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from anifast.data.folders import ImageFolder, printable, read_image, scan, sniff
from anifast.data.stream import in_order
from anifast.errors import AnifastError, DataError, ImageError
from anifast.progress import Progress

FILE = "data.mdb"
"""The file in a folder that makes it an LMDB."""

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
}
# Pictures that stand in one transaction while writing.
_GROUP = 100
# Environments that are open, by path, and how many readers each has: a process may not open one twice.
_OPEN: dict[str, tuple[Any, int]] = {}
_OPENING = threading.Lock()


def is_lmdb(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an LMDB."""
    return os.path.isfile(os.path.join(os.path.expanduser(folder), FILE))


def fingerprint(folder: str | os.PathLike[str], settings: str) -> str:
    """Digest of the database as it is now, by its file's size, time and permissions, and `settings`.

    The lock beside it, which every reader may touch, does not count.

    Raises:
        DataError: the file cannot be looked at.
    """
    try:
        info = os.stat(os.path.join(os.path.expanduser(folder), FILE))
    except OSError as error:
        raise DataError(f"{printable(folder)}: {FILE} cannot be read ({error.strerror})") from error
    line = f"lmdb {info.st_size} {info.st_mtime_ns} {info.st_mode:o} {settings}"
    return hashlib.sha256(line.encode()).hexdigest()


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise AnifastError(f'an LMDB needs the package lmdb ({error}): pip install "anifast[lmdb]"') from None
    return lmdb


def _opened(lmdb: Any, path: str) -> Any:
    """The environment at a path, which `_closed` gives back."""
    with _OPENING:
        environment, readers = _OPEN.get(path) or (None, 0)
        if environment is None:
            environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False, create=False)
        _OPEN[path] = environment, readers + 1
        return environment


def _closed(path: str) -> None:
    """Give an environment back; the last one closes it."""
    with _OPENING:
        environment, readers = _OPEN.pop(path)
        if readers > 1:
            _OPEN[path] = environment, readers - 1
        else:
            environment.close()


class Database:
    """An LMDB of pictures, open for reading; threads may share it, and it may be open several times.

    Nothing is written into its folder, not even a lock: nobody may be writing it meanwhile.

    Args:
        folder: the one with `data.mdb`.

    Raises:
        AnifastError: the package `lmdb` is not installed.
        DataError: it cannot be opened, or is no database of pictures of this kind.

    Attributes:
        count: how many pictures there should be of each size.
        sizes: sides of the pictures, in rising order.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        lmdb = _lmdb()
        self._root = Path(os.path.expanduser(folder)).absolute()
        self._error: type[Exception] = lmdb.Error
        shown = printable(self._root)
        try:
            self._path: str | None = os.path.realpath(self._root)
            self._database = _opened(lmdb, self._path)
        except (lmdb.Error, OSError) as error:
            raise DataError(
                f"{shown}: the LMDB cannot be opened ({error}). Unless it is in use here, make it again"
            ) from error
        try:
            pages = self._database.info()["last_pgno"] + 1
            if pages * self._database.stat()["psize"] > (self._root / FILE).stat().st_size:  # reading would be fatal
                raise DataError(f"{shown}: the LMDB is cut short: {FILE} is smaller than it says. Copy it again")
            self.count = self._length()
            self.sizes = self._sizes()
            if not self.sizes:
                raise DataError(f"{shown}: the LMDB holds no pictures. Expected keys like 256-00000")
        except lmdb.Error as error:
            self.close()
            raise self._damaged(error) from error
        except DataError:
            self.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; nothing can be read any more."""
        if self._path is not None:
            _closed(self._path)
        self._path = None

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{printable(self._root)}: the LMDB is damaged ({error}). Make it again")

    def _length(self) -> int:
        with self._database.begin() as transaction:
            stored = transaction.get(b"length")
            entries = transaction.stat()["entries"]
        shown = printable(self._root)
        if stored is None:
            raise DataError(
                f"{shown}: the LMDB has no key `length`, which is written last: it is not whole, or one of another "
                "kind. Make it again"
            )
        text = bytes(stored[:20])
        if not text.isdigit() or not 0 < int(text) < entries:
            raise DataError(
                f"{shown}: the LMDB tells its number of pictures as {text.decode('ascii', 'backslashreplace')!r}, but "
                f"it has {entries} entries. Make it again"
            )
        return int(text)

    def _sizes(self) -> list[int]:
        """By leaps from one size's first key to behind its last one."""
        sizes = []
        with self._database.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.first()
            while more:
                size, dash, _ = bytes(cursor.key()).partition(b"-")
                if dash and size.isdigit() and not size.startswith(b"0"):
                    sizes.append(int(size))
                    more = cursor.set_range(size + b".")  # the character behind the dash
                else:
                    more = cursor.next()
        return sorted(sizes)

    def names(self, size: int) -> list[str]:
        """The keys of all pictures of a size, sorted bytewise.

        Raises:
            DataError: there are none of this size.
        """
        if size not in self.sizes:
            there = ", ".join(map(str, self.sizes))
            raise DataError(
                f"{printable(self._root)}: the LMDB has no pictures of size {size}, only of {there}. Take one of "
                f"these sizes, or make the LMDB again with {size} too"
            )
        return sorted(f"{size}-{index:05d}" for index in range(self.count))

    def read(self, name: str, mode: str = "RGB") -> Image.Image:
        """A picture by its key, as 8-bit `mode`: RGB, RGBA or L.

        Raises:
            ImageError: it is missing, damaged, or not of the size that the key tells.
        """
        shown = printable(self._root / name)
        try:
            with self._database.begin() as transaction:
                value = transaction.get(name.encode())
        except self._error as error:
            raise ImageError(f"{shown}: cannot be read ({error})") from error
        if value is None:
            raise ImageError(f"{shown}: is not in the LMDB")
        reader = _READERS.get(sniff(value[:32]) or "")
        if reader is None:
            raise ImageError(f"{shown}: is neither a JPEG nor a PNG")
        side = int(name.partition("-")[0])
        try:
            image = reader(io.BytesIO(value))
            if image.size != (side, side):
                raise ImageError(f"{shown}: is {image.width}x{image.height} and not {side}x{side} as its key tells")
            image.load()
        except ImageError:
            raise
        except Exception as error:  # decoders raise whatever they like on damaged data
            raise ImageError(f"{shown}: cannot be decoded ({error or type(error).__name__})") from error
        if image.mode not in ("RGB", "L", "CMYK", "YCbCr"):
            raise ImageError(f"{shown}: is of mode {image.mode}, expected RGB")
        return image.convert(mode)


def write_lmdb(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    sizes: Sequence[int],
    *,
    quality: int = 100,
    progress: bool = True,
) -> dict[str, str]:
    """Write the pictures of a folder into an LMDB, whole or not at all.

    Each is scaled until its shorter side is `size` (Lanczos) and cut to the centred square.

    Args:
        root: the folder, searched as `scan` does.
        out: the new folder.
        sizes: sides of the pictures.
        quality: of the JPEGs.
        progress: draw a bar.

    Returns:
        Path relative to the folder -> reason, for pictures that could not be read and are left out.

    Raises:
        AnifastError: the package `lmdb` is not installed, or `out` exists or cannot be written.
        DataError: the folder is missing or empty, or none of its pictures can be read.
        ValueError: sizes or quality out of range.
    """
    if not sizes or min(sizes) < 1 or len(set(sizes)) != len(sizes):
        raise ValueError(f"sizes are {list(sizes)}; expected different ones, at least 1")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; expected 1 to 100")
    lmdb = _lmdb()
    found = scan(root)
    target = Path(os.path.expanduser(out)).absolute()
    skipped = dict(found.rejected)
    # JPEGs are smaller than their pixels, but for headers; the file grows only as it is filled.
    room = len(found) * sum(4 * size * size + (1 << 16) for size in sizes) + (1 << 24)
    with _new_folder(target) as temporary:
        try:
            with lmdb.open(os.fspath(temporary), map_size=room, readahead=False) as database:
                count = _fill(database, found, sorted(sizes), quality, skipped, progress)
        except (lmdb.Error, OSError) as error:
            raise AnifastError(
                f"{printable(target)}: cannot be written ({error}). Free some space or choose another folder"
            ) from error
        if not count:
            name = min(skipped)
            raise DataError(
                f"{printable(found.root)}: none of its {len(skipped)} pictures can be read, the first because "
                f"{printable(name)}: {skipped[name]}"
            )
        (temporary / "lock.mdb").unlink(missing_ok=True)
    return skipped


def _fill(
    database: Any, found: ImageFolder, sizes: Sequence[int], quality: int, skipped: dict[str, str], progress: bool
) -> int:
    """Write the pictures in their order, and last how many they are."""

    def encoded(path: Path) -> list[bytes]:
        image = read_image(path)
        return [_encoded(image, size, quality) for size in sizes]

    count = 0
    workers = max(1, min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lmdb")
    try:
        stream = None if progress else io.StringIO()
        with Progress(len(found), f"writing {printable(found.root.name)}", stream=stream) as bar:
            transaction = database.begin(write=True)
            for path, future in in_order(found.paths, encoded, pool, 4 * workers):
                try:
                    for size, value in zip(sizes, future.result(), strict=True):
                        transaction.put(f"{size}-{count:05d}".encode(), value)
                    count += 1
                    bar.update()
                except ImageError as error:
                    name = path.relative_to(found.root).as_posix()
                    skipped[name] = str(error).removeprefix(f"{printable(path)}: ")
                    bar.update(note=f"{len(skipped)} skipped")
                    continue
                if count % _GROUP == 0:
                    transaction.commit()
                    transaction = database.begin(write=True)
            transaction.put(b"length", str(count).encode())
            transaction.commit()
    finally:
        pool.shutdown(cancel_futures=True)
    return count


def _encoded(image: Image.Image, size: int, quality: int) -> bytes:
    """The centred square of a picture as a JPEG of this side."""
    shorter = min(image.size)
    across, down = (size * length // shorter for length in image.size)
    image = image.resize((across, down), Image.Resampling.LANCZOS)
    left, top = round((across - size) / 2), round((down - size) / 2)
    buffer = io.BytesIO()
    image.crop((left, top, left + size, top + size)).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that gets its name when the block ends well, and is removed otherwise."""
    if target.exists():
        raise AnifastError(f"{printable(target)}: is there already; choose another folder or remove it")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise AnifastError(
                f"cannot write {printable(target)}: {error.strerror or error}. Choose another folder"
            ) from error
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise AnifastError(f"cannot write {printable(target)}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary)

"""LMDBs of pictures: read as StyleGAN2's training writes them, packed like folders, and never a crash."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blendgan import tiny_config
from tiny_cyclegan import command, the_error

from anifast import cli
from anifast.data import lmdb as databases
from anifast.data import packed
from anifast.data.lmdb import Database, is_lmdb, write_lmdb
from anifast.data.packed import check_digests, digests, pack, unpacked
from anifast.errors import AnifastError, DataError, ImageError
from anifast.systems.blendgan.contrast import Views
from anifast.systems.blendgan.pictures import pictures_of
from anifast.systems.blendgan.training import Pictures

pytestmark = pytest.mark.filterwarnings("error")

COUNT = 12


@pytest.fixture
def lmdb() -> Any:
    return pytest.importorskip("lmdb", reason='lmdb is not installed (pip install "anifast[lmdb]")')


def picture(index: int, size: int) -> Image.Image:
    small = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=100)
    return buffer.getvalue()


def entries() -> dict[bytes, bytes]:
    """As the published script writes them."""
    found = {
        f"{size}-{index:05d}".encode(): encoded(picture(index, size)) for size in (8, 16, 128) for index in range(COUNT)
    }
    return {**found, b"length": str(COUNT).encode()}


def write(lmdb: Any, folder: Path, values: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


@pytest.fixture
def base(lmdb: Any, tmp_path: Path) -> Path:
    return write(lmdb, tmp_path / "base", entries())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def expected(index: int, size: int, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(picture(index, size)))).convert(mode))


# --- reading


def test_what_is_in_it(base: Path) -> None:
    assert is_lmdb(base) and not is_lmdb(base.parent) and not is_lmdb(base / "data.mdb")
    with Database(base) as database:
        assert database.count == COUNT and database.sizes == [8, 16, 128]
        assert database.names(16) == [f"16-{index:05d}" for index in range(COUNT)]
        for mode in ("RGB", "L", "RGBA"):
            assert np.array_equal(np.asarray(database.read("16-00003", mode)), expected(3, 16, mode))


def test_names_are_sorted_bytewise_and_not_by_number(lmdb: Any, tmp_path: Path) -> None:
    values = {b"8-00000": b"", b"length": b"100002"} | {f"x{n}".encode(): b"" for n in range(100_001)}
    with Database(write(lmdb, tmp_path / "base", values)) as database:
        names = database.names(8)
        assert len(names) == 100_002 and names == sorted(names, key=os.fsencode)
        assert names.index("8-100001") < names.index("8-99999")


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("8-00001", b"no picture", "is neither a JPEG nor a PNG"),
        ("8-00002", b"", "is neither a JPEG nor a PNG"),
        ("8-00003", encoded(picture(0, 8))[:200], "cannot be decoded"),
        ("8-00004", encoded(picture(0, 9)), "is 9x9 and not 8x8"),
        ("8-00005", encoded(Image.new("RGBA", (8, 8)), "PNG"), "is of mode RGBA"),
        ("8-00099", None, "is not in the LMDB"),
    ],
)
def test_entries_that_cannot_be_read(name: str, value: bytes | None, match: str, lmdb: Any, tmp_path: Path) -> None:
    values = entries() | ({} if value is None else {name.encode(): value})
    folder = write(lmdb, tmp_path / "base", values)
    with Database(folder) as database, pytest.raises(ImageError, match=f"{name}: {match}"):
        database.read(name)


def test_a_png_is_read_too(lmdb: Any, tmp_path: Path) -> None:
    folder = write(lmdb, tmp_path / "base", entries() | {b"8-00000": encoded(picture(5, 8), "PNG")})
    with Database(folder) as database:
        assert np.array_equal(np.asarray(database.read("8-00000")), np.asarray(picture(5, 8)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({b"length": None}, "has no key `length`"),
        ({b"length": b"twelve"}, r"as 'twelve', but it has 37 entries"),
        ({b"length": b"0"}, "as '0'"),
        ({b"length": b"37"}, "as '37', but it has 37 entries"),
        ({b"length": b"9" * 400}, "as '9{20}'"),
        ({b"length": b"\xff"}, r"as '\\\\xff'"),
    ],
)
def test_databases_of_another_kind(
    change: dict[bytes, bytes | None], match: str, lmdb: Any, tmp_path: Path, cache: Path
) -> None:
    values = {key: value for key, value in (entries() | change).items() if value is not None}
    with pytest.raises(DataError, match=match):
        pack(write(lmdb, tmp_path / "base", values), 8, cache_dir=cache)


def test_a_database_without_pictures(lmdb: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        Database(write(lmdb, tmp_path / "base", {b"length": b"1", b"a": b"b", b"007-00000": b"x"}))


@pytest.mark.parametrize("left", [0, 100, 4096, 8192, 100_000, -4096, -1])
def test_a_database_that_is_cut_short(left: int, base: Path) -> None:
    whole = (base / "data.mdb").read_bytes()
    assert len(whole) > 110_000
    (base / "data.mdb").write_bytes(whole[:left])
    with pytest.raises(DataError, match="cut short|cannot be opened"):
        Database(base)


def test_a_file_that_is_no_database(tmp_path: Path, lmdb: Any) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x" * 100_000)
    with pytest.raises(DataError, match="cannot be opened"):
        Database(tmp_path)


def test_nothing_is_written_beside_it(base: Path, cache: Path) -> None:
    (base / "lock.mdb").unlink()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in base.iterdir())
    pack(base, 8, cache_dir=cache)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in base.iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(AnifastError, match=r'pip install "anifast\[lmdb\]"'):
        pack(tmp_path, 8, cache_dir=cache)
    with pytest.raises(AnifastError, match=r'pip install "anifast\[lmdb\]"'):
        write_lmdb(tmp_path, tmp_path / "out", [8])


# --- packing


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("workers", [1, 3])
def test_pack(mode: str, workers: int, base: Path, cache: Path) -> None:
    made = pack(base, 16, mode=mode, cache_dir=cache, workers=workers)
    assert made.paths == [f"16-{index:05d}" for index in range(COUNT)] and made.skipped == {}
    for index, image in enumerate(made.images):
        assert np.array_equal(image, expected(index, 16, mode).reshape(image.shape))


def test_pack_of_a_size_that_is_not_there(base: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures of size 64, only of 8, 16, 128\. Take one"):
        pack(base, 64, cache_dir=cache)
    with pytest.raises(DataError, match="holds squares, not 8x16"):
        pack(base, (8, 16), cache_dir=cache)
    assert not list(cache.glob("*.npy")) and not list(cache.glob("*.json"))


def test_pack_leaves_out_what_is_damaged(lmdb: Any, tmp_path: Path, cache: Path) -> None:
    values = entries() | {b"8-00002": b"junk"}
    del values[b"8-00007"]
    made = pack(write(lmdb, tmp_path / "base", values), 8, cache_dir=cache)
    assert made.skipped == {"8-00002": "is neither a JPEG nor a PNG", "8-00007": "is not in the LMDB"}
    assert len(made) == COUNT - 2 and np.array_equal(made.images[2], expected(3, 8))


def test_pack_where_nothing_can_be_read(lmdb: Any, tmp_path: Path, cache: Path) -> None:
    folder = write(lmdb, tmp_path / "base", {b"8-00000": b"junk", b"length": b"1"})
    with pytest.raises(DataError, match="none of its 1 pictures can be read, the first because 8-00000"):
        pack(folder, 8, cache_dir=cache)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def switch_off() -> None:
        def decode(*_: object) -> bytes:
            raise AssertionError("a picture was decoded")

        monkeypatch.setattr(packed, "_decode", decode)

    return switch_off


def test_pack_again_decodes_nothing(base: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    first = pack(base, 8, cache_dir=cache)
    (base / "lock.mdb").write_bytes(b"another reader was here")
    no_decoding()
    second = pack(base, 8, cache_dir=cache)
    assert np.array_equal(first.images, second.images) and first.paths == second.paths


def test_pack_sees_another_database(lmdb: Any, base: Path, cache: Path) -> None:
    pack(base, 8, cache_dir=cache)
    write(lmdb, base, {b"8-00000": encoded(picture(77, 8))})
    assert np.array_equal(pack(base, 8, cache_dir=cache).images[0], expected(77, 8))


def test_a_folder_that_becomes_a_database_is_packed_anew(lmdb: Any, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    picture(0, 8).save(folder / "a.png")
    assert pack(folder, 8, cache_dir=cache).paths == ["a.png"]
    write(lmdb, folder, entries())
    assert len(pack(folder, 8, cache_dir=cache)) == COUNT


# --- decoded when asked for


def test_unpacked_is_what_a_pack_holds(base: Path, cache: Path) -> None:
    held, found = pack(base, 16, cache_dir=cache), unpacked(base, 16)
    assert found.paths == held.paths and found.images.shape == held.images.shape and found.skipped == {}
    for order in ([3, 0, 3, 11], [5], []):
        assert torch.equal(found.batch(order), held.batch(order))
    assert digests(found) == digests(held)
    check_digests(found, digests(held), "faces")
    with pytest.raises(DataError, match="no pictures of size 64, only of 8, 16, 128"):
        unpacked(base, 64)


def test_unpacked_leaves_out_what_is_damaged(lmdb: Any, tmp_path: Path) -> None:
    values = entries() | {b"8-00002": b"junk"}
    del values[b"8-00003"]
    found = unpacked(write(lmdb, tmp_path / "base", values), 8)
    assert found.skipped == {}
    assert np.array_equal(found.batch([2])[0].permute(1, 2, 0).numpy(), expected(4, 8))
    assert found.skipped == {"8-00002": "is neither a JPEG nor a PNG", "8-00003": "is not in the LMDB"}


def test_unpacked_asks_for_the_names_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = unpacked(base, 8)
    wanted = found.batch([1, 2])

    def names(*_: object) -> list[str]:
        raise AssertionError("the names were sorted again")

    monkeypatch.setattr(Database, "names", names)
    assert torch.equal(found.batch([1, 2]), wanted)
    found.ahead([1, 2])
    assert torch.equal(found.batch([1, 2]), wanted)


def test_an_lmdb_may_be_open_several_times(base: Path, cache: Path, tmp_path: Path) -> None:
    """As where the next batch is decoded while other pictures of it are read; it is closed behind the last reader."""
    link = tmp_path / "link"
    link.symlink_to(base)
    found, other = unpacked(base, 8), unpacked(link, 16)
    found.ahead(range(COUNT))
    with Database(base) as one, Database(link) as two:
        one.close()
        one.close()
        assert two.read("8-00001").size == (8, 8)
        assert len(other.batch([0, 1])) == 2 and len(pack(base, 128, cache_dir=cache)) == COUNT
        assert len(found.batch(range(COUNT))) == COUNT
    assert databases._OPEN == {}
    assert np.array_equal(other.images[3], expected(3, 16)) and databases._OPEN == {}


# --- writing


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("b/c.png", (21, 50)), ("d.png", (16, 16))):
        picture(len(name), 64).resize(size).save(folder / name)
    (folder / "b" / "broken.png").write_bytes(encoded(picture(0, 8), "PNG")[:60])
    (folder / "e.png").write_bytes(b"a text")
    return folder


def test_write(lmdb: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "base"
    skipped = write_lmdb(photos, out, [16, 8], progress=False)
    assert skipped.keys() == {"b/broken.png", "e.png"} and "cannot be decoded" in skipped["b/broken.png"]
    assert [path.name for path in out.parent.iterdir()] == ["base"]
    assert [path.name for path in out.iterdir()] == ["data.mdb"]
    with Database(out) as database:
        assert database.count == 3 and database.sizes == [8, 16]
        for index, (name, size, box) in enumerate(
            [("a.png", (21, 16), (2, 0, 18, 16)), ("b/c.png", (16, 38), (0, 11, 16, 27)), ("d.png", (16, 16), None)]
        ):
            whole = Image.open(photos / name).resize(size, Image.Resampling.LANCZOS)
            wanted = Image.open(io.BytesIO(encoded(whole.crop(box) if box else whole)))
            assert np.array_equal(np.asarray(database.read(f"16-{index:05d}")), np.asarray(wanted)), name
    assert pack(out, 8, cache_dir=tmp_path / "cache").skipped == {}


def test_write_many(lmdb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anifast.data.lmdb._GROUP", 3)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(10):
        noise = np.random.default_rng(index).integers(0, 256, (33, 33, 3), dtype=np.uint8)  # JPEG's worst case
        Image.fromarray(noise).save(folder / f"{index}.png")
    assert write_lmdb(folder, tmp_path / "base", [32], progress=False) == {}
    with Database(tmp_path / "base") as database:
        assert database.count == 10 and all(database.read(name).size == (32, 32) for name in database.names(32))


def test_write_over_what_is_there(lmdb: Any, photos: Path, base: Path) -> None:
    before = (base / "data.mdb").read_bytes()
    with pytest.raises(AnifastError, match="is there already"):
        write_lmdb(photos, base, [8])
    assert (base / "data.mdb").read_bytes() == before


def test_write_whole_or_not_at_all(lmdb: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AnifastError, match="cannot write"):
        write_lmdb(photos, tmp_path / "file" / "base", [8])

    def stop(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("anifast.data.lmdb._encoded", stop)
    with pytest.raises(KeyboardInterrupt):
        write_lmdb(photos, tmp_path / "base", [8], progress=False)
    assert not [path for path in tmp_path.iterdir() if "base" in path.name]


def test_write_nothing(lmdb: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(0, 8), "PNG")[:60])
    with pytest.raises(DataError, match="none of its 1 pictures can be read, the first because a.png"):
        write_lmdb(tmp_path, tmp_path / "base", [8], progress=False)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(("sizes", "quality"), [([], 100), ([0], 100), ([8, 8], 100), ([8], 0), ([8], 101)])
def test_write_arguments(sizes: list[int], quality: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_lmdb(tmp_path, tmp_path / "base", sizes, quality=quality)


def test_the_command(lmdb: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it writes is what training reads, and what is left out is told."""
    out = tmp_path / "data" / "faces"
    assert cli.main(command("blendgan", "lmdb", photos, "--out", out, "--sizes", "16,8")) == 0
    told = capsys.readouterr()
    assert f"3 pictures at 8 and 16 px: {out}" in told.out and "2 skipped" in told.out
    assert "skipped: b/broken.png: " in told.err and "skipped: e.png: " in told.err
    for side in (8, 16):
        pictures = pictures_of(tmp_path / "data", "faces", side, packed=False)
        assert pictures.batch([0, 1, 2]).shape == (3, 3, side, side) and pictures.skipped == {}
    assert cli.main(command("blendgan", "lmdb", photos, "--out", out)) == 1
    assert "is there already" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sizes", "0"), "--sizes 0: expected numbers from 1 to 4096, as 256,1024"),
        (("--sizes", "256,"), "--sizes 256,: expected"),
        (("--sizes", "large"), "--sizes large: expected"),
        (("--sizes", "5000"), "--sizes 5000: expected"),
        (("--quality", "0"), "--quality 0: from 1 to 100"),
    ],
)
def test_options_of_the_command(
    words: tuple[str, ...], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command("blendgan", "lmdb", photos, "--out", tmp_path / "out", *words)) == 1
    assert said in the_error(capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_training_from_lmdbs(lmdb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches whether the pictures are packed or not; a run goes on either way, and not with others."""
    monkeypatch.setenv("ANIFAST_CACHE", str(tmp_path / "cache"))
    for first, name in ((0, "faces"), (20, "styles")):
        for index in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            picture(first + index, 64).save(tmp_path / name / f"{index}.png")
        write_lmdb(tmp_path / name, tmp_path / "data" / name, [32, 64], progress=False)
    config, device = tiny_config(style_dim=16), torch.device("cpu")
    table = torch.arange(5 * 2 * 16).view(5, 2, 16).float()
    one, other = (
        Pictures(tmp_path / "data", replace(config, packed=packed), device, codes=table) for packed in (True, False)
    )
    for _ in range(2):
        for mine, theirs in zip(one.next(), other.next(), strict=True):
            assert torch.equal(mine, theirs)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(*pair) for pair in zip(one.next(), other.next(), strict=True))
    views = Views(tmp_path / "data", replace(config, packed=False), 4, device).next()
    assert views.shape == (8, 3, 32, 32)
    shutil.copytree(tmp_path / "data", tmp_path / "new")  # a database that is being read cannot be opened again
    write(lmdb, tmp_path / "new" / "styles", {b"64-00000": encoded(picture(99, 64))})
    changed = Pictures(tmp_path / "new", replace(config, packed=False), device, codes=table)
    with pytest.raises(DataError, match="styles holds other pictures under the same names"):
        changed.load_state_dict(one.state_dict())

"""The packed cache: right pixels, made once, and never garbage, whatever happens to the process or the disk."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anifast.data import packed
from anifast.data.folders import read_image, resize
from anifast.data.packed import PackedImages, check_digests, digests, pack, pixels_digest, unpacked
from anifast.errors import DataError
from anifast.progress import Progress

pytestmark = pytest.mark.filterwarnings("error")

SIZE = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of mixed sizes and formats, in two sub-folders."""
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(12):
        path = root / "ab"[number % 2] / f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(1, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(cache: Path) -> list[str]:
    """What stands in the cache, but for the lock."""
    return sorted(name for name in os.listdir(cache) if not name.endswith(".lock"))


def check(made: PackedImages, root: Path, how: str = "stretch", mode: str = "RGB") -> None:
    """The pack holds what reading and resizing each picture gives."""
    assert len(made) == len(made.paths) == len(made.images) > 0
    assert made.paths == sorted(made.paths, key=os.fsencode)
    for name, image in zip(made.paths, made.images, strict=True):
        expected = np.asarray(resize(read_image(root / name, mode), SIZE, how)).reshape(image.shape)
        assert np.array_equal(image, expected), name


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def switch_off() -> None:
        def decode(*_: object) -> bytes:
            raise AssertionError("a picture was decoded")

        monkeypatch.setattr(packed, "_decode", decode)

    return switch_off


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("how", ["stretch", "crop"])
@pytest.mark.parametrize("workers", [1, 3])
def test_pixels(folder: Path, cache: Path, mode: str, how: str, workers: int) -> None:
    made = pack(folder, SIZE, how=how, mode=mode, cache_dir=cache, workers=workers)
    assert made.images.shape == (12, SIZE, SIZE, len(mode)) and made.images.dtype == np.uint8
    assert made.skipped == {}
    check(made, folder, how, mode)


def test_height_and_width(folder: Path, cache: Path) -> None:
    assert pack(folder, (5, 9), cache_dir=cache).images.shape == (12, 5, 9, 3)


def test_images_are_a_read_only_map_of_a_plain_npy(folder: Path, cache: Path) -> None:
    made = pack(folder, SIZE, cache_dir=cache)
    assert isinstance(made.images, np.memmap) and not made.images.flags.writeable
    pixels, sidecar = sorted(cache.glob("*.npy")), sorted(cache.glob("*.json"))
    assert len(pixels) == len(sidecar) == 1
    assert np.array_equal(np.load(pixels[0]), made.images)


def test_batch(folder: Path, cache: Path) -> None:
    made = pack(folder, SIZE, cache_dir=cache)
    for indices in ([3, 0, 3], np.array([3, 0, 3]), torch.tensor([3, 0, 3])):
        batch = made.batch(indices)
        assert batch.dtype == torch.uint8 and batch.shape == (3, 3, SIZE, SIZE) and batch.is_contiguous()
        assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), made.images[[3, 0, 3]])
    before = made.images[3].copy()
    batch.zero_()  # a copy: what is done to it does not reach the cache
    assert np.array_equal(made.images[3], before)
    assert made.batch([]).shape == (0, 3, SIZE, SIZE)
    for outside in ([12], [0, -1], [-13]):
        with pytest.raises(IndexError):
            made.batch(outside)


def test_second_call_decodes_nothing(folder: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    first = pack(folder, SIZE, cache_dir=cache)
    no_decoding()
    second = pack(folder, SIZE, cache_dir=cache)
    assert np.array_equal(first.images, second.images) and first.paths == second.paths


@pytest.mark.parametrize("inside", ["cache", "a/cache", "."])
def test_a_cache_below_the_folder(folder: Path, inside: str, no_decoding: Callable[[], None]) -> None:
    first = pack(folder, SIZE, cache_dir=folder / inside)
    pack(folder, SIZE + 1, cache_dir=folder / inside)
    no_decoding()
    assert pack(folder, SIZE, cache_dir=folder / inside).paths == first.paths


def test_a_finished_pack_needs_no_writing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(folder, SIZE, cache_dir=cache)

    def refuse(_: Path) -> str:
        raise AssertionError("the cache was written to")

    monkeypatch.setattr(packed, "_not_writable", refuse)
    check(pack(folder, SIZE, cache_dir=cache), folder)


def test_cache_folder_by_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIFAST_CACHE", str(tmp_path / "elsewhere"))
    pack(folder, SIZE)
    assert len(files(tmp_path / "elsewhere")) == 2
    monkeypatch.delenv("ANIFAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pack(folder, SIZE)
    assert len(files(tmp_path / "home/.cache/anifast")) == 2


def test_a_user_without_a_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANIFAST_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does where it finds none
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    pack(folder, SIZE)
    assert len(files(tmp_path / "scratch/anifast-cache")) == 2


def test_names_that_are_no_utf8(folder: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        (folder / "a/0.png").rename(folder / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert pack(folder, SIZE, cache_dir=cache).paths[-1] == name
    no_decoding()
    assert pack(folder, SIZE, cache_dir=cache).paths[-1] == name


def test_one_pack_for_each_setting(folder: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    settings = list(itertools.product((SIZE, 7), ("stretch", "crop"), ("RGB", "L"), (0, 5)))
    for size, how, mode, cut in settings:
        pack(folder, size, how=how, mode=mode, crop_size=cut, cache_dir=cache)
    no_decoding()
    for size, how, mode, cut in settings:
        made = pack(folder, size, how=how, mode=mode, crop_size=cut, cache_dir=cache)
        assert made.images.shape == (12, size, size, len(mode))
        image = resize(read_image(folder / made.paths[0], mode), size, how, crop_size=cut)
        assert np.array_equal(made.images[0], np.asarray(image).reshape(made.images[0].shape))


def touch(root: Path) -> None:
    info = (root / "a/0.png").stat()
    os.utime(root / "a/0.png", ns=(info.st_atime_ns, info.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: Image.new("RGB", (3, 3)).save(root / "new.png"),
        lambda root: (root / "a/0.png").unlink(),
        lambda root: (root / "a/0.png").rename(root / "b/0.png"),
        lambda root: Image.new("RGB", (3, 3)).save(root / "a/0.png"),
        lambda root: (root / "a/0.png").chmod(0o600),
        touch,
    ],
    ids=["added", "removed", "renamed", "replaced", "permissions", "touched"],
)
def test_a_changed_folder_is_packed_anew_in_place(folder: Path, cache: Path, change: Callable[[Path], None]) -> None:
    (folder / "a/0.png").chmod(0o644)
    pack(folder, SIZE, cache_dir=cache)
    before = files(cache)
    change(folder)
    check(pack(folder, SIZE, cache_dir=cache), folder)
    after = files(cache)
    assert len(after) == 2 and after != before  # the old one is gone


def test_a_pack_in_use_outlives_its_replacement(folder: Path, cache: Path) -> None:
    old = pack(folder, SIZE, cache_dir=cache)
    pixels = np.array(old.images)
    touch(folder)
    pack(folder, SIZE, cache_dir=cache)
    assert np.array_equal(old.images, pixels)


def test_bad_pictures_are_skipped_by_name(folder: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    good = (folder / "a/0.png").read_bytes()
    (folder / "a/cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_bytes(b"text")
    made = pack(folder, SIZE, cache_dir=cache)
    assert len(made) == 12
    assert set(made.skipped) == {"a/cut.png", "text.jpg"} and "a text file" in made.skipped["text.jpg"]
    assert made.skipped["a/cut.png"].startswith("the PNG cannot be decoded")
    check(made, folder)
    no_decoding()
    assert pack(folder, SIZE, cache_dir=cache).skipped == made.skipped


def test_pictures_without_a_visible_pixel_are_skipped(
    folder: Path, cache: Path, no_decoding: Callable[[], None]
) -> None:
    Image.new("RGBA", (9, 9), (200, 0, 0, 0)).save(folder / "a/clear.png")
    assert "a/clear.png" in pack(folder, SIZE, cache_dir=cache).paths  # white, if alpha is not asked for
    made = pack(folder, SIZE, mode="RGBA", cache_dir=cache)
    assert len(made) == 12 and made.skipped == {"a/clear.png": "every pixel is transparent"}
    no_decoding()
    assert pack(folder, SIZE, mode="RGBA", cache_dir=cache).skipped == made.skipped


def test_a_crop_beyond_the_limit_for_pictures(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "2500")
    assert len(pack(folder, SIZE, crop_size=50, cache_dir=cache)) == 12
    with pytest.raises(DataError, match=r"crop_size 51: a square of that side .* limit of 2500 pixels"):
        pack(folder, SIZE, crop_size=51, cache_dir=cache)


def test_no_picture_can_be_read(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "bad" / name).write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    with pytest.raises(DataError, match=r"none of its 2 pictures can be read, the first because x\.png: the PNG"):
        pack(tmp_path / "bad", SIZE, cache_dir=cache)
    assert files(cache) == []


def test_bombs_are_skipped_and_the_limit_is_part_of_the_key(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (50, 50)).save(folder / "large.png")
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "2000")
    made = pack(folder, SIZE, cache_dir=cache)
    assert list(made.skipped) == ["large.png"] and "the limit of 2000" in made.skipped["large.png"]
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "2500")
    assert len(pack(folder, SIZE, cache_dir=cache)) == 13


def test_missing_and_empty_folder(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        pack(tmp_path / "nowhere", SIZE, cache_dir=cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no picture found"):
        pack(tmp_path / "empty", SIZE, cache_dir=cache)
    assert not cache.exists() or files(cache) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"how": "squash"}, "how is 'squash'; expected one of stretch, crop"),
        ({"mode": "CMYK"}, "mode is 'CMYK'; expected one of L, RGB, RGBA"),
        ({"crop_size": -1}, "crop_size is -1; expected at least 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_options_out_of_range(folder: Path, cache: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(folder, **{"size": SIZE, "cache_dir": cache, **options})  # type: ignore[arg-type]


# --- killed, damaged, concurrent


KILLED = """
import os, signal, sys, time
from anifast.data import packed
where, root, cache = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "sidecar":
    packed.write_text = die
else:
    decode = packed._decode
    def slow(job, path):
        time.sleep(0.1)
        return decode(job, path)
    packed._decode = slow
packed.pack(root, 12, cache_dir=cache, workers=1, progress=False)
"""


@pytest.mark.parametrize("where", ["pixels", "sidecar"])
@pytest.mark.parametrize("outdated", [False, True])
def test_killed_while_packing(folder: Path, cache: Path, where: str, outdated: bool) -> None:
    """SIGKILL while the pixels are being written, or after them and before the sidecar: packed anew, no leftovers."""
    if outdated:
        pack(folder, SIZE, cache_dir=cache)
        touch(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, where, str(folder), str(cache)], env=environment)
    if where == "pixels":
        while not list(cache.glob(".*.tmp.npy")):  # the pixel file has been begun, and 12 slow pictures are to come
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.25)
        process.kill()
    assert process.wait() == -signal.SIGKILL
    left = [name for name in files(cache) if name.endswith(".npy")]
    assert left, "the process was to be killed in the middle"
    check(pack(folder, SIZE, cache_dir=cache), folder)
    assert sorted(Path(name).suffix for name in files(cache)) == [".json", ".npy"] and not set(left) & set(files(cache))


def cut(cache: Path) -> None:
    path = next(cache.glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-1])


def other_version(cache: Path) -> None:
    path = next(cache.glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "anifast.packed/0"}))


def fewer_names(cache: Path) -> None:
    path = next(cache.glob("*.json"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "paths": record["paths"][1:]}))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        other_version,
        fewer_names,
        lambda cache: next(cache.glob("*.npy")).unlink(),
        lambda cache: next(cache.glob("*.npy")).write_bytes(b""),
        lambda cache: next(cache.glob("*.json")).unlink(),
        lambda cache: next(cache.glob("*.json")).write_bytes(b'{"format": "anifast.pa'),
        lambda cache: next(cache.glob("*.json")).write_bytes(b"[1]"),
        lambda cache: next(cache.glob("*.json")).write_bytes(b"\xff\xfe"),
    ],
    ids=["cut", "version", "names", "no pixels", "empty", "no sidecar", "half sidecar", "odd sidecar", "binary"],
)
def test_a_damaged_cache_is_made_anew(folder: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    pack(folder, SIZE, cache_dir=cache)
    damage(cache)
    check(pack(folder, SIZE, cache_dir=cache), folder)
    assert sorted(Path(name).suffix for name in files(cache)) == [".json", ".npy"]


def test_an_interrupted_pack_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    decode = packed._decode

    def interrupted(job: packed._Job, path: Path) -> bytes:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return decode(job, path)

    monkeypatch.setattr(packed, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, SIZE, cache_dir=cache)
    assert files(cache) == []


@pytest.mark.parametrize("locks", [True, False])
def test_several_at_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """With locks one decodes and the others wait for it; without, each decodes, and still nobody gets garbage."""
    if not locks:
        monkeypatch.setattr(packed, "fcntl", None)
    else:
        pytest.importorskip("fcntl")
    decoded: list[Path] = []
    decode = packed._decode

    def counted(job: packed._Job, path: Path) -> bytes:
        decoded.append(path)
        time.sleep(0.005)
        return decode(job, path)

    monkeypatch.setattr(packed, "_decode", counted)
    made: list[PackedImages] = []
    threads = [
        threading.Thread(target=lambda: made.append(pack(folder, SIZE, cache_dir=cache, workers=1, progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for one in made:
        check(one, folder)
    if locks:
        assert len(decoded) == 12
    check(pack(folder, SIZE, cache_dir=cache), folder)


def test_processes_at_once(folder: Path, cache: Path) -> None:
    code = (
        "import sys; from anifast.data.packed import pack; made = pack(sys.argv[1], 12, cache_dir=sys.argv[2])\n"
        "print(len(made), int(made.images.astype(int).sum()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(folder), str(cache)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in processes]
    made = pack(folder, SIZE, cache_dir=cache)
    check(made, folder)
    assert answers == [f"12 {made.images.astype(int).sum()}\n"] * 2


# --- the disk


def test_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that names the cache and the way out, and the pack in a temporary file that leaves no trace."""
    (tmp_path / "file").write_bytes(b"")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.warns(RuntimeWarning, match=r"file/cache: the cache cannot be written .*Set ANIFAST_CACHE"):
        made = pack(folder, SIZE, cache_dir=tmp_path / "file/cache")
    check(made, folder)
    assert isinstance(made.images, np.memmap) and not made.images.flags.writeable
    assert os.listdir(scratch) == [] and sorted(os.listdir(tmp_path)) == ["file", "pictures", "scratch"]


def test_a_lock_that_cannot_be_opened(folder: Path, cache: Path) -> None:
    pack(folder, SIZE, cache_dir=cache)
    (lock,) = cache.glob("*.lock")
    lock.unlink()
    lock.mkdir()
    (folder / "a" / "0.png").unlink()
    with pytest.warns(RuntimeWarning, match=r"the cache cannot be written \(Is a directory\)"):
        check(pack(folder, SIZE, cache_dir=cache), folder)


def test_read_only_cache_folder(folder: Path) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc, where not even root can make a folder")
    with pytest.warns(RuntimeWarning, match="/proc/self/cache: the cache cannot be written"):
        check(pack(folder, SIZE, cache_dir="/proc/self/cache"), folder)


def test_neither_cache_nor_temporary_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file/scratch"))
    with pytest.raises(DataError, match="no temporary folder can be written either .*Set ANIFAST_CACHE"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pack(folder, SIZE, cache_dir=tmp_path / "file/cache")


def halved(images: np.ndarray) -> np.ndarray:
    """The averages of 2x2 pixels, to the nearest, halves to the even number: numpy rounds so."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, channels).astype(np.float64)
    return np.round(blocks.mean((2, 4))).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", ["stretch", "crop"])
def test_smaller_packs_are_averages(
    folder: Path, cache: Path, no_decoding: Callable[[], None], mode: str, how: str
) -> None:
    top = pack(folder, 4 * SIZE, how=how, mode=mode, top=4 * SIZE, cache_dir=cache)
    assert np.array_equal(top.images, pack(folder, 4 * SIZE, how=how, mode=mode, cache_dir=cache).images)
    assert len(files(cache)) == 2  # with itself as its top a pack is the plain one
    no_decoding()
    made = pack(folder, SIZE, how=how, mode=mode, top=4 * SIZE, cache_dir=cache)
    assert np.array_equal(made.images, halved(halved(top.images)))
    assert made.paths == top.paths and made.images.dtype == np.uint8 and isinstance(made.images, np.memmap)


def test_a_smaller_pack_makes_those_above_it(folder: Path, cache: Path, no_decoding: Callable[[], None]) -> None:
    (folder / "text.jpg").write_bytes(b"text")
    made = pack(folder, SIZE, top=8 * SIZE, cache_dir=cache)
    assert set(made.skipped) == {"text.jpg"} and len(made) == 12
    no_decoding()
    above = pack(folder, 8 * SIZE, cache_dir=cache)
    for side in (4, 2, 1):
        part = pack(folder, side * SIZE, top=8 * SIZE, cache_dir=cache)
        assert np.array_equal(part.images, halved(above.images))
        assert part.skipped == above.skipped == made.skipped
        above = part
    assert np.array_equal(above.images, made.images)
    assert len(files(cache)) == 8  # four sizes, each for itself


def test_averages_of_different_tops_are_different_packs(folder: Path, cache: Path) -> None:
    by_top = [pack(folder, SIZE, top=top, cache_dir=cache) for top in (SIZE, 2 * SIZE, 4 * SIZE)]
    again = [pack(folder, SIZE, top=top, cache_dir=cache) for top in (SIZE, 2 * SIZE, 4 * SIZE)]
    for first, second in itertools.combinations(by_top, 2):
        assert not np.array_equal(first.images, second.images) and digests(first) != digests(second)
    for first, second in zip(by_top, again, strict=True):
        assert digests(first) == digests(second)


def test_averages_do_not_brighten_level_by_level() -> None:
    """Over all sums of four pixels what is rounded up is rounded down elsewhere: a bias would add up over levels."""
    sums = np.arange(1016)  # all remainders by 8 equally often: half of the halves go up
    pixels = np.stack([np.minimum(sums, 255 * (k + 1)) - np.minimum(sums, 255 * k) for k in range(4)], -1)
    images = pixels.astype(np.uint8).reshape(-1, 2, 2, 1)
    errors = packed._averages(images).ravel() - sums / 4
    assert errors.sum() == 0 and np.abs(errors).max() == 0.5
    assert packed._averages(np.full((1, 2, 2, 1), 255, np.uint8)).tolist() == [[[[255]]]]


def test_averages_of_a_changed_folder(folder: Path, cache: Path) -> None:
    pack(folder, SIZE, top=2 * SIZE, cache_dir=cache)
    Image.new("RGB", (3, 3)).save(folder / "new.png")
    made = pack(folder, SIZE, top=2 * SIZE, cache_dir=cache)
    assert made.paths[-1] == "new.png" and not made.images[-1].any()
    assert np.array_equal(made.images, halved(pack(folder, 2 * SIZE, cache_dir=cache).images))
    assert len(files(cache)) == 4  # the old ones are gone


def test_averages_are_made_piece_by_piece(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_AT_ONCE", 5 * (2 * SIZE) ** 2 * 3)  # five pictures: 12 are no multiple
    made = pack(folder, SIZE, top=2 * SIZE, cache_dir=cache)
    assert np.array_equal(made.images, halved(pack(folder, 2 * SIZE, cache_dir=cache).images))


def test_averages_without_a_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="the cache cannot be written"):
        made = pack(folder, SIZE, top=2 * SIZE, cache_dir=tmp_path / "file")
    top = pack(folder, 2 * SIZE, cache_dir=tmp_path / "cache")
    assert np.array_equal(made.images, halved(top.images))


def test_the_disk_fills_up_while_averaging(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(folder, 2 * SIZE, cache_dir=cache)
    before = files(cache)

    def full(_: object) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_averages", full)
    with pytest.raises(DataError, match=r"the pack of .*pictures .*cannot be written \(No space left on device\)"):
        pack(folder, SIZE, top=2 * SIZE, cache_dir=cache)
    assert files(cache) == before


def test_progress_of_averages(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(folder, SIZE, top=2 * SIZE, cache_dir=cache)
    told = capsys.readouterr().err
    assert "packing pictures" in told and f"halving pictures to {SIZE} px" in told
    pack(folder, SIZE, top=2 * SIZE, cache_dir=cache / "other", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (12, {"top": 36}, "top is 36; expected the side of a square, 12x12, or 2, 4, 8"),
        (12, {"top": 6}, "top is 6; expected"),
        ((12, 24), {"top": 24}, "expected the side of a square, 12x24"),
        (12, {"top": 24, "mode": "RGBA"}, "mode is RGBA; colours of transparent pixels"),
    ],
)
def test_tops_that_cannot_be(
    folder: Path, cache: Path, size: int | tuple[int, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack(folder, size, cache_dir=cache, **options)


def test_tf1_is_packed_too(folder: Path, cache: Path) -> None:
    check(pack(folder, SIZE, how="tf1", cache_dir=cache), folder, "tf1")


def test_too_little_space_is_told_before_writing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, no_decoding: Callable[[], None]
) -> None:
    no_decoding()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(DataError, match=r"needs 5\.8 MB, but only 1\.0 MB are free\. Free some space or set ANIFAST_C"):
        pack(folder, 400, cache_dir=cache)
    assert files(cache) == []


def test_the_disk_fills_up_while_packing(folder: Path, cache: Path) -> None:
    """A real write error (the process's own limit on file sizes) in the middle of the pixels."""
    pack(folder, 8, cache_dir=cache)
    before = files(cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match=r"cache: the pack of .*pictures \(1\.4 MB\) cannot be written .*Free some"):
            pack(folder, 200, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(cache) == before
    assert len(pack(folder, 200, cache_dir=cache)) == 12


def test_few_pictures_are_in_memory_at_a_time(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding never runs far ahead of writing."""
    for number in range(60):
        shutil.copy(folder / "a/0.png", folder / f"copy{number}.png")
    started = itertools.count(1)
    ahead = []
    decode, update = packed._decode, Progress.update
    newest = 0

    def counted(job: packed._Job, path: Path) -> bytes:
        nonlocal newest
        newest = next(started)
        return decode(job, path)

    def written(bar: Progress, *args: object, **options: object) -> None:
        update(bar, *args, **options)  # type: ignore[arg-type]
        time.sleep(0.002)
        ahead.append(newest - bar.done)

    monkeypatch.setattr(packed, "_decode", counted)
    monkeypatch.setattr(Progress, "update", written)
    pack(folder, SIZE, cache_dir=cache, workers=2)
    assert len(ahead) == 72 and 0 < max(ahead) <= 4 * 2 + 1


def test_progress(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.jpg").write_bytes(b"text")
    (folder / "cut.png").write_bytes((folder / "a/0.png").read_bytes()[:40])
    pack(folder, SIZE, cache_dir=cache)
    out, err = capsys.readouterr()
    assert out == "" and "packing pictures" in err and "13/13" in err and "2 skipped" in err
    pack(folder, SIZE, cache_dir=cache)
    pack(folder, 7, cache_dir=cache, progress=False)
    assert capsys.readouterr() == ("", "")


def test_real_selfies_have_the_published_statistics(shared: Path, cache: Path) -> None:
    """Channel means and deviations over the whole set, as measured by the data set's users on the original files."""
    made = pack(shared / "data/selfie2anime/128/trainA", 32, cache_dir=cache)
    assert made.skipped == {} and len(made) == 3200
    pixels = made.images.reshape(-1, 3) / 255
    assert np.abs(pixels.mean(axis=0) - [0.5636, 0.4678, 0.4462]).max() < 0.005
    assert np.abs(pixels.std(axis=0) - [0.3005, 0.2868, 0.2490]).max() < 0.02


def test_unpacked_is_the_same_pictures_without_a_cache(folder: Path, cache: Path) -> None:
    """The same names, pixels and digest, for one picture or several in any order."""
    held, found = pack(folder, 8, how="crop", cache_dir=cache, progress=False), unpacked(folder, 8, how="crop")
    assert found.paths == held.paths and found.images.shape == held.images.shape
    order = [1, 0, 1]
    assert torch.equal(found.batch(order), held.batch(order))
    assert found.batch([]).shape == held.batch([]).shape
    assert pixels_digest(found.images) == pixels_digest(held.images)


def test_unpacked_pictures_that_cannot_be_read_give_way_to_the_next(folder: Path) -> None:
    found = unpacked(folder, 8)
    good = found.batch([1])
    path = folder / found.paths[0]
    path.write_bytes(path.read_bytes()[:60])
    assert torch.equal(found.batch([0]), good)
    assert list(found.skipped) == [found.paths[0]]


def test_unpacked_without_any_picture_that_can_be_read(folder: Path) -> None:
    found = unpacked(folder, 8)
    for name in found.paths:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(DataError, match="none of its pictures can be read"):
        found.batch([0])


def test_unpacked_pictures_are_decoded_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other threads and once; what is bad is noted when it is asked for. Another batch than foretold is no harm."""
    plain, found = unpacked(folder, 8), unpacked(folder, 8)
    wanted = [plain.batch(order) for order in ([4, 0], [7, 2], [3])]
    (folder / found.paths[9]).write_bytes(b"no picture")
    decoded: list[str] = []
    done = threading.Event()
    decode = packed._decode

    def seen(job: Any, path: Path) -> bytes:
        decoded.append(path.name)
        if path.name == Path(found.paths[9]).name:
            done.set()
        return decode(job, path)

    monkeypatch.setattr(packed, "_decode", seen)
    found.ahead(np.array([4, 0]))
    assert torch.equal(found.batch([4, 0]), wanted[0]) and len(decoded) == 2
    found.ahead([5, 6])
    assert torch.equal(found.batch([7, 2]), wanted[1]) and torch.equal(found.batch([3]), wanted[2])
    numbers = np.array([9])
    found.ahead(numbers)
    numbers[0] = 1
    assert done.wait(60) and found.skipped == {}
    assert torch.equal(found.batch([9]), plain.batch([10]))
    assert list(found.skipped) == [found.paths[9]]
    found.ahead([0, 99])
    with pytest.raises(IndexError):
        found.batch([0, 99])
    assert torch.equal(found.batch([4, 0]), wanted[0])
    pack(folder, 8, cache_dir=folder.parent / "cache", progress=False).ahead([0])  # which has nothing to decode


def test_pixels_are_looked_at_once_for_digests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of a run decodes nothing anew."""
    found = unpacked(folder, 8)
    state = digests(found)

    def decode(*_: object) -> bytes:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(packed, "_decode", decode)
    assert digests(found) == state
    check_digests(found, state, "faces")
    check_digests(found, {"names": state["names"]}, "faces")
    with pytest.raises(DataError, match="^faces holds other pictures than when this stage began"):
        check_digests(found, state | {"names": ""}, "faces")
    with pytest.raises(DataError, match="^trainA holds other pictures under the same names than when this run began"):
        check_digests(found, state | {"pixels": ""}, "trainA", "this run")

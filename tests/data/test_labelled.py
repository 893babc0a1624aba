"""Pictures by class: what is used in which order, what is left out, and that a resumed run knows its data again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import own_cache, picture
from tiny_disentangle import write_artists, write_digits
from torch import Tensor

from anifast.data import labelled, packed
from anifast.data.digits import load_digits
from anifast.data.folders import read_image, resize, to_tensor
from anifast.data.labelled import Labelled, load_artists, load_digits_by
from anifast.data.packed import names_digest, pixels_digest
from anifast.errors import DataError

pytestmark = pytest.mark.filterwarnings("error")

SIZE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    with own_cache(tmp_path / "cache"):
        yield tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three artists of four pictures, half of these without their upper part."""
    return write_artists(tmp_path / "artists", transparent=True)


def load(folder: Path, **options: object) -> Labelled:
    return load_artists(folder, SIZE, **{"min_images": 2, **options})  # type: ignore[arg-type]


def write_maps(folder: Path, maps: Path, suffix: str = ".png") -> Path:
    """A map for each picture, all of one grey: 1 of the first in the order of paths, 2 of the second, ..."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    for grey, name in enumerate(names, 1):
        (maps / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), grey).save((maps / name).with_suffix(suffix))
    return maps


# --- which pictures, and what they are


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_in_the_order_of_paths(folder: Path, channels: int) -> None:
    data = load(folder, channels=channels)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert data.names == names and len(data) == 12
    assert data.classes == ["artist_00", "artist_01", "artist_02"]
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and data.labels.dtype == torch.int64
    assert data.counts.tolist() == [4, 4, 4] and data.counts.dtype == torch.int64
    assert data.skipped() == {} and data.left_out == {} and data.maps is None
    assert data.about == "12 pictures by 3 artists"
    assert data.images.shape == (channels, SIZE, SIZE) and len(data.images) == 12
    chosen = np.array([7, 0, 7, 11])
    images, labels, maps = data.batch(chosen, "cpu")
    assert images.is_contiguous() and images.dtype == torch.uint8 and maps is None
    assert labels.tolist() == [1, 0, 1, 2]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    for image, i in zip(images, chosen, strict=True):
        assert torch.equal(image, to_tensor(resize(read_image(folder / names[i], mode), SIZE, "crop")))
    # Where the upper part is missing: transparent, or white.
    top = images[0, :, 0]
    assert (top[3] == 0).all() if channels == 4 else (top == 255).all()


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_kinds_of_indices(folder: Path, kind: Callable[[list[int]], Tensor]) -> None:
    data = load(folder)
    images, labels, _ = data.batch(kind([5, 2]))
    assert torch.equal(images, data.images.batch([5, 2])) and labels.tolist() == [1, 0]


def test_no_pictures_asked_for(folder: Path) -> None:
    images, labels, _ = load(folder).batch([])
    assert images.shape == (0, 4, SIZE, SIZE) and labels.shape == (0,)


@pytest.mark.parametrize(("indices", "named"), [([0, -1], -1), ([12, 0], 12)])
def test_index_out_of_range(folder: Path, indices: list[int], named: int) -> None:
    data = load(folder)
    for ask in (data.batch, data.images.batch):
        with pytest.raises(IndexError, match=f"index {named} is out of range for 12 pictures"):
            ask(indices)


def test_artists_with_too_few_pictures_are_left_out(folder: Path) -> None:
    for i in range(3):
        (folder / "artist_01" / f"{i:05d}.png").unlink()  # one in the middle stays
    picture(folder / "zoe" / "0.png", 5)
    data = load(folder)
    assert data.left_out == {"artist_01": 1, "zoe": 1}
    assert data.classes == ["artist_00", "artist_02"] and data.counts.tolist() == [4, 4]
    assert len(data) == 8 and not any(name.startswith(("artist_01", "zoe")) for name in data.names)
    images, labels, _ = data.batch([4])
    expected = resize(read_image(folder / "artist_02" / "00000.png", "RGBA"), SIZE, "crop")
    assert torch.equal(images[0], to_tensor(expected)) and labels.tolist() == [1]
    assert data.about == "8 pictures by 2 artists"


def test_long_lists_are_cut(folder: Path) -> None:
    for i in range(5):
        picture(folder / f"few{i}" / "0.png", i)
    assert load(folder, min_images=1).about.endswith("by few0, few1, few2 and 2 more")


def test_an_artist_with_one_picture_stays_where_that_is_enough(folder: Path) -> None:
    picture(folder / "zoe" / "0.png", 5)
    data = load(folder, min_images=1)
    assert data.counts.tolist() == [4, 4, 4, 1] and data.left_out == {}
    assert "warning: a single picture, which is all that tells the style, by zoe" in data.about


def test_what_cannot_be_used_is_skipped_and_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "artist_00" / "00001.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    (folder / "artist_00" / "text.jpg").write_text("text")
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(folder / "artist_01" / "00002.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "0.png").write_text("text")
    data = load(folder, min_images=3)
    assert data.counts.tolist() == [3, 3, 4] and data.left_out == {"bad": 0}
    assert set(data.skipped()) == {"artist_00/00001.png", "artist_00/text.jpg", "artist_01/00002.png", "bad/0.png"}
    assert data.skipped()["artist_01/00002.png"] == "every pixel is transparent"
    monkeypatch.setattr(packed, "_decode", lambda *_: pytest.fail("decoded again"))
    assert load(folder, min_images=3).skipped() == data.skipped()


def test_a_picture_of_which_one_pixel_is_visible_is_used(folder: Path) -> None:
    image = Image.new("RGBA", (SIZE, SIZE))
    image.putpixel((3, 5), (200, 0, 0, 1))
    image.save(folder / "artist_00" / "00000.png")
    data = load(folder)
    assert data.skipped() == {} and int((data.batch([0])[0][0, 3] > 0).sum()) == 1


def test_crop_size_cuts_pictures_and_maps(folder: Path, tmp_path: Path) -> None:
    name = folder / "artist_00" / "00000.png"
    image = Image.new("RGB", (40, 60), (0, 0, 255))
    image.paste((255, 0, 0), (12, 22, 28, 38))
    image.save(name)
    maps = write_maps(folder, tmp_path / "maps")
    grey = Image.new("L", (40, 60), 0)
    grey.paste(255, (12, 22, 28, 38))
    grey.save(maps / "artist_00" / "00000.png")
    images, _, weights = load(folder, crop_size=16, weight_maps=maps).batch([0])
    assert weights is not None and (weights == 255).all()
    assert (images[0] == torch.tensor([255, 0, 0, 255])[:, None, None]).all()
    images, _, weights = load(folder, weight_maps=maps).batch([0])
    assert weights is not None and weights.min() == 0 and (images[0, 2] == 255).any()


# --- weight maps


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_weight_maps_belong_to_their_pictures(folder: Path, tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        (folder / "artist_01" / f"{i:05d}.png").unlink()
    maps = write_maps(folder, tmp_path / "maps", suffix)  # greys 1 to 9; 5 is that of the artist who is left out
    data = load(folder, weight_maps=maps)
    assert data.maps is not None and len(data.maps) == len(data) == 8
    _, _, found = data.batch([7, 0, 4])
    assert found is not None and found.shape == (3, 1, SIZE, SIZE) and found.is_contiguous()
    assert [int(one.unique()) for one in found] == [9, 1, 6]
    assert torch.equal(found, data.maps.batch([7, 0, 4]))


def test_weight_maps_of_left_out_pictures_may_be_missing(folder: Path, tmp_path: Path) -> None:
    picture(folder / "zoe" / "0.png", 5)
    maps = write_maps(folder, tmp_path / "maps")
    shutil.rmtree(maps / "zoe")
    assert load(folder, weight_maps=maps).maps is not None
    with pytest.raises(DataError, match=r"no weight map of zoe/0\.png"):
        load(folder, weight_maps=maps, min_images=1)


def test_pictures_that_differ_in_the_suffix_only(folder: Path, tmp_path: Path) -> None:
    picture(folder / "artist_00" / "00001.bmp", 3)
    maps = write_maps(folder, tmp_path / "maps")
    with pytest.raises(DataError, match=r"no weight map of artist_00/00001\.bmp \(expected the very same name"):
        load(folder, weight_maps=maps)
    Image.new("L", (9, 9), 77).save(maps / "artist_00" / "00001.bmp")
    data = load(folder, weight_maps=maps)
    _, _, found = data.batch([1, 2])
    assert found is not None and data.names[1:3] == ["artist_00/00001.bmp", "artist_00/00001.png"]
    assert [int(one.unique()) for one in found] == [77, 2]


def missing(maps: Path) -> None:
    (maps / "artist_01" / "00003.png").unlink()
    (maps / "artist_02" / "00000.png").unlink()


def damaged(maps: Path) -> None:
    (maps / "artist_01" / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")


def surplus(maps: Path) -> None:
    for name in ("00004.png", "00005.png"):
        Image.new("L", (9, 9)).save(maps / "artist_01" / name)


def twice(maps: Path) -> None:
    Image.new("L", (9, 9)).save(maps / "artist_01" / "00003.bmp")


def not_one(maps: Path) -> None:
    twice(maps)
    (maps / "artist_01" / "00003.png").rename(maps / "artist_01" / "00003.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"maps: no weight map of artist_01/00003\.png \(expected artist_01/00003 with any suffix\)"),
        (damaged, r"maps: no weight map of artist_01/00003\.png \(artist_01/00003\.png: the PNG cannot be decoded"),
        (surplus, r"maps: artist_01/00004\.png is the weight map of no picture of .*artists"),
        (twice, r"maps: artist_01/00003\.bmp is the weight map of no picture"),
        (not_one, r"no weight map of artist_01/00003\.png \(several files are called so, and none exactly so\)"),
    ],
)
def test_weight_maps_that_do_not_fit(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    maps = write_maps(folder, tmp_path / "maps")
    change(maps)
    with pytest.raises(DataError, match=message):
        load(folder, weight_maps=maps)


def test_no_folder_of_weight_maps(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="maps: no such folder"):
        load(folder, weight_maps=tmp_path / "maps")


# --- bad folders


def test_one_artist_only(folder: Path) -> None:
    shutil.rmtree(folder / "artist_01")
    shutil.rmtree(folder / "artist_02")
    with pytest.raises(
        DataError, match=r"artists: pictures by 1 artist only \(artist_00\), and at least 2 are needed: "
    ):
        load(folder)
    assert load(folder, min_classes=1).counts.tolist() == [4]  # a plain VAE has no styles
    picture(folder / "zoe" / "0.png", 5)
    with pytest.raises(DataError, match=r"1 more have fewer than 2 pictures: zoe.*or lower min_images"):
        load(folder)


def test_no_artist_with_enough_pictures(folder: Path) -> None:
    with pytest.raises(DataError, match=r"artists: no class folder has 50 pictures \(the largest of 3 has 4\)"):
        load(folder, min_images=50)


def test_a_picture_in_no_artists_folder(folder: Path) -> None:
    picture(folder / "lost.png", 1)
    with pytest.raises(DataError, match=r"artists: lost\.png: stands in no class folder"):
        load(folder)


def test_nothing_visible_in_any_picture(tmp_path: Path) -> None:
    for artist in "ab":
        (tmp_path / "none" / artist).mkdir(parents=True)
        Image.new("RGBA", (9, 9)).save(tmp_path / "none" / artist / "0.png")
    with pytest.raises(DataError, match=r"the first because a/0\.png: every pixel is transparent"):
        load(tmp_path / "none")


def test_unknown_channels(folder: Path) -> None:
    with pytest.raises(ValueError, match="channels: expected one of 1, 3, 4, got 2"):
        load(folder, channels=2)


# --- known again


def test_a_copy_elsewhere_is_the_same_data(folder: Path, tmp_path: Path) -> None:
    maps = write_maps(folder, tmp_path / "maps")
    state = load(folder, weight_maps=maps).digests()
    shutil.copytree(folder, tmp_path / "copy")
    load(tmp_path / "copy", weight_maps=maps).check(state)
    assert all(isinstance(value, int | str) for value in state.values())


def add(folder: Path) -> None:
    picture(folder / "artist_00" / "new.png", 1)


def gather(folder: Path) -> None:
    for path in list((folder / "artist_02").iterdir()):
        path.rename(folder / "artist_01" / f"x{path.name}")
    (folder / "artist_02").rmdir()


def rename(folder: Path) -> None:
    (folder / "artist_00" / "00001.png").rename(folder / "artist_00" / "00001b.png")


def repaint(folder: Path) -> None:
    picture(folder / "artist_02" / "00003.png", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add, "13 pictures can be used, and it was 12 when this run began. Put the old pictures back"),
        (gather, "the pictures belong to 2 classes, and it was 3 when"),
        (rename, "the pictures have other names than when"),
        (repaint, "the pictures look different, or are cut or sized differently, than when"),
    ],
)
def test_changed_data_are_told(folder: Path, change: Callable[[Path], None], message: str) -> None:
    state = load(folder).digests()
    change(folder)
    with pytest.raises(DataError, match=f"artists: {message}"):
        load(folder).check(state)


def test_other_settings_are_other_data(folder: Path, tmp_path: Path) -> None:
    data = load(folder)
    with pytest.raises(DataError, match="cut or sized differently"):
        load(folder, crop_size=8).check(data.digests())
    with pytest.raises(DataError, match="weight maps are others than when codes were made. Make them anew"):
        data.check(
            load(folder, weight_maps=write_maps(folder, tmp_path / "maps")).digests(),
            since="codes were made",
            way_out="Make them anew",
        )


def test_labels_are_part_of_what_is_known(tmp_path: Path) -> None:
    """Writers and digits may be as many."""
    write_digits(tmp_path, count=120, writers=10)
    by_writer = load_digits_by(tmp_path, "writer")
    load_digits_by(tmp_path, "writer").check(by_writer.digests())
    with pytest.raises(DataError, match="the pictures belong to other classes than when"):
        load_digits_by(tmp_path, "digit").check(by_writer.digests())


def test_digests_are_those_of_earlier_versions() -> None:
    """Checkpoints hold them."""
    assert names_digest(["b/\udcff", "a"]) == hashlib.sha256(b"b/\xff\na").hexdigest()[:16]
    images = np.arange(100 * 2 * 2 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 2, 2, 3)
    seen = b"".join(images[i * 100 // 64].tobytes() for i in range(64))
    assert pixels_digest(images) == hashlib.sha256(b"(100, 2, 2, 3)" + seen).hexdigest()[:16]
    rows = np.array([4, 2, 90])
    assert pixels_digest(images, rows) == pixels_digest(images[rows])


# --- kept on a GPU


def test_kept_where_there_is_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plays the GPU: batches come from the copy alone, and are the same."""
    data = load(folder, weight_maps=write_maps(folder, tmp_path / "maps"))
    expected = data.batch([3, 11, 3])
    assert not data.to("cpu")  # nothing is copied to where it is
    needed = len(data) * 5 * SIZE * SIZE
    monkeypatch.setattr(labelled, "_free", lambda _: 4 * needed - 1)
    assert not data.to("cpu")
    monkeypatch.setattr(labelled, "_free", lambda _: 4 * needed)
    monkeypatch.setattr(labelled, "_CHUNK", 5 * 4 * SIZE * SIZE)  # in parts of 5, 5 and 2 pictures
    assert data.to("cpu", progress=False)
    monkeypatch.setattr(labelled.Selection, "batch", lambda *_: pytest.fail("not from the copy"))
    for one, other in zip(data.batch(torch.tensor([3, 11, 3])), expected, strict=True):
        assert one is not None and other is not None and torch.equal(one, other) and one.is_contiguous()
    with pytest.raises(IndexError, match="index 12 is out of range"):
        data.batch([12])


def test_long_copies_show_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(folder)
    monkeypatch.setattr(labelled, "_free", lambda _: 1 << 40)
    capsys.readouterr()
    data.to("cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(labelled, "_CHUNK", 1)
    data.to("cpu")
    assert "pictures to cpu [####################] 12/12" in capsys.readouterr().err


# --- digits


def test_digits_by_writer_and_by_digit(tmp_path: Path) -> None:
    write_digits(tmp_path)
    digits = load_digits(tmp_path)
    by_writer, by_digit = load_digits_by(tmp_path), load_digits_by(tmp_path, "digit")
    assert by_writer.classes == [str(7 * i + 3) for i in range(12)]
    assert by_digit.classes == [str(i) for i in range(10)]
    assert torch.equal(by_writer.labels, digits.writer) and torch.equal(by_digit.labels, digits.digit)
    images, labels, maps = by_digit.batch([8, 3])
    assert torch.equal(images, digits.images[[8, 3], None]) and images.shape == (2, 1, 28, 28)
    assert torch.equal(labels, digits.digit[[8, 3]]) and maps is None
    assert by_digit.names[:2] == ["train/000000", "train/000001"] and len(by_digit) == 200
    assert by_writer.about == "MNIST's training digits: 200 by 12 writers, labelled by writer (12 classes)"
    assert by_digit.about.endswith("by 12 writers, labelled by digit (10 classes)")
    assert by_digit.counts.tolist() == [20] * 10


def test_all_of_nist_where_it_is_there(tmp_path: Path) -> None:
    write_digits(tmp_path, count=30)
    write_digits(tmp_path, count=40, split="nist")
    data = load_digits_by(tmp_path, "digit")
    assert len(data) == 40 and data.names[39] == "nist/000039" and data.about.startswith("NIST's digits: 40 by")


def test_digits_that_do_not_occur_are_no_classes(tmp_path: Path) -> None:
    write_digits(tmp_path, count=7)
    data = load_digits_by(tmp_path, "digit")
    assert len(data.classes) == 7 and data.counts.tolist() == [1] * 7
    digits = load_digits(tmp_path).digit
    assert [int(data.classes[label]) for label in data.labels] == digits.tolist()


def test_digits_of_one_class(tmp_path: Path) -> None:
    write_digits(tmp_path, count=20, writers=1)
    assert len(load_digits_by(tmp_path, "digit").classes) == 10
    with pytest.raises(DataError, match="20 digits of 1 writer, and at least 2 are needed"):
        load_digits_by(tmp_path, "writer")


def test_digits_missing_and_wrong_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing"):
        load_digits_by(tmp_path)
    with pytest.raises(ValueError, match="label: expected one of writer, digit, got 'age'"):
        load_digits_by(tmp_path, "age")


def test_real_digits(shared: Path) -> None:
    data = load_digits_by(shared / "data" / "digits")
    assert len(data) == 60_000 and len(data.classes) == 539
    assert data.about.startswith("MNIST's training digits: 60000 by 539 writers")

from __future__ import annotations

import gzip
import hashlib
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from anifast.data.digits import chance_levels, load_digits, read_idx
from anifast.errors import DataError

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_split(folder: Path, split: str, count: int = 6, rows: int | None = None) -> dict[str, np.ndarray]:
    """A small split in the layout of the real one: writers 40, 7, 40, 99, 7, 40, ...; digit i % 10."""
    rng = np.random.default_rng(3)
    rows = count if rows is None else rows
    labels = np.zeros((rows, 8), np.int32)
    labels[:, 0] = np.arange(rows) % 10
    labels[:, 2] = np.resize([40, 7, 40, 99, 7, 40], rows)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    stem = {"train": "train", "test": "t10k", "nist": "xnist"}[split]
    (folder / f"{stem}-images-idx3-ubyte.xz").write_bytes(lzma.compress(idx(images)))
    if split == "nist":
        (folder / "xnist-labels-idx2-int.xz").write_bytes(lzma.compress(idx(labels)))
    else:
        plain = labels[:count, 0].astype(np.uint8)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(plain))
        (folder / f"qmnist-{split}-labels-idx2-int.gz").write_bytes(gzip.compress(idx(labels)))
    return {"images": images, "labels": labels}


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["raw", "gzip", "xz"])
def test_read_idx_gives_back_what_was_written(tmp_path, dtype, pack):
    array = (np.random.default_rng(0).standard_normal((3, 4, 5)) * 100).astype(dtype)
    path = tmp_path / "any-name"
    path.write_bytes(pack(idx(array)))
    got = read_idx(path)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype and got.dtype.isnative and got.flags.writeable


def test_read_idx_empty_array(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    assert read_idx(path).shape == (0, 28, 28)


GOOD = idx(np.arange(24, dtype=np.int32).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes instead of the 4"),
        (GOOD[:3], "3 bytes instead of the 4"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\0", "begins with 00 00 0a 01"),
        (b"\0\0\x08\0", "begins with 00 00 08 00"),
        (GOOD[:11], "3 dimensions need 12 bytes, got 7"),
        (GOOD[:-1], "2x3x4 int32 = 96 bytes, got 95"),
        (GOOD[:4] + b"\xff" * 12 + b"data", "got 4"),
        (GOOD + b"\0", "more data than the 2x3x4 int32"),
        (gzip.compress(GOOD)[:-9], "truncated or damaged archive"),
        (gzip.compress(GOOD)[:12] + b"\xff" * 20, "truncated or damaged archive"),
        (lzma.compress(GOOD)[:-20], "truncated or damaged archive"),
        (lzma.compress(GOOD)[:12] + b"\xff" * 80, "truncated or damaged archive"),
    ],
)
def test_read_idx_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match="bad-idx") as caught:
        read_idx(path)
    assert message in str(caught.value)


def test_read_idx_absent_and_unreadable(tmp_path):
    with pytest.raises(DataError, match=r"absent: no such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)


@pytest.mark.parametrize("split", ["train", "nist"])
def test_load_digits_small(tmp_path, split):
    want = write_split(tmp_path, split)
    digits = load_digits(tmp_path, split)
    assert len(digits) == 6
    assert digits.images.dtype == torch.uint8
    assert torch.equal(digits.images, torch.from_numpy(want["images"]))
    assert digits.digit.tolist() == [0, 1, 2, 3, 4, 5]
    assert digits.writer.tolist() == [1, 0, 1, 2, 0, 1]
    assert digits.writer_ids.tolist() == [7, 40, 99]
    assert digits.writer_ids[digits.writer].tolist() == want["labels"][:, 2].tolist()
    assert {t.dtype for t in (digits.digit, digits.writer, digits.writer_ids)} == {torch.int64}


def test_test_split_ignores_labels_without_images(tmp_path):
    write_split(tmp_path, "test", count=2, rows=6)
    digits = load_digits(tmp_path, "test")
    assert digits.writer_ids.tolist() == [7, 40] and digits.writer.tolist() == [1, 0]


def test_load_digits_bad_folder_and_split(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_digits(tmp_path / "nowhere")
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing"):
        load_digits(tmp_path)
    with pytest.raises(ValueError, match="split: expected one of train, test, nist, got 'valid'"):
        load_digits(tmp_path, "valid")


def test_load_digits_one_file_missing(tmp_path):
    write_split(tmp_path, "train")
    (tmp_path / "qmnist-train-labels-idx2-int.gz").unlink()
    with pytest.raises(DataError, match="qmnist-train-labels-idx2-int is missing"):
        load_digits(tmp_path)


@pytest.mark.parametrize(
    ("split", "name", "array", "message"),
    [
        ("train", "train-images-idx3-ubyte", np.zeros((6, 27, 28), np.uint8), "expected Nx28x28 uint8, got 6x27x28"),
        ("train", "train-images-idx3-ubyte", np.zeros((5, 28, 28), np.uint8), "6 labels do not fit the 5 images"),
        ("train", "train-labels-idx1-ubyte", np.zeros(5, np.uint8), "expected 6 uint8, got 5 uint8"),
        ("train", "train-labels-idx1-ubyte", np.array([0, 1, 7, 3, 4, 0], np.uint8), "2 of 6 digits differ"),
        ("train", "qmnist-train-labels-idx2-int", np.zeros((6, 7), np.int32), "expected Nx8 int32, got 6x7"),
        ("train", "qmnist-train-labels-idx2-int", np.zeros((6, 8), np.int16), "got 6x8 int16"),
        ("nist", "xnist-labels-idx2-int", np.full((6, 8), 11, np.int32), "digits from 11 to 11"),
        ("test", "qmnist-test-labels-idx2-int", np.zeros((5, 8), np.int32), "5 labels do not fit the 6 images"),
    ],
)
def test_load_digits_files_that_do_not_fit(tmp_path, split, name, array, message):
    write_split(tmp_path, split)
    for old in tmp_path.glob(name + "*"):
        old.unlink()
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(DataError) as caught:
        load_digits(tmp_path, split)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", MD5)
def test_real_files_are_the_original_bytes(shared, name):
    with gzip.open(shared / "data" / "digits" / name) as file:
        assert hashlib.md5(file.read(), usedforsecurity=False).hexdigest() == MD5[name]


def test_real_splits(shared):
    train = load_digits(shared / "data" / "digits", "train")
    test = load_digits(shared / "data" / "digits", "test")
    assert train.images.shape == (60000, 28, 28) and test.images.shape == (10000, 28, 28)
    assert train.digit[:5].tolist() == [5, 0, 4, 1, 9] and test.digit[:5].tolist() == [7, 2, 1, 0, 4]
    # Mean and standard deviation of MNIST's training pixels, as everybody normalises by them.
    assert abs(train.images.float().mean() / 255 - 0.1307) < 1e-4
    assert abs(train.images.float().std() / 255 - 0.3081) < 1e-4

    for split, writers, fewest, most in ((train, 539, 19, 131), (test, 297, 8, 130)):
        counts = torch.bincount(split.writer)
        assert len(counts) == len(split.writer_ids) == writers
        assert (int(counts.min()), int(counts.max())) == (fewest, most)
    assert not set(train.writer_ids.tolist()) & set(test.writer_ids.tolist())
    assert int((torch.bincount(train.writer) >= 100).sum()) == 440


def test_one_writer_is_more_alike_than_two(shared):
    """The writer labels belong to these images: same digit, same writer is closer than same digit, other writer."""
    train = load_digits(shared / "data" / "digits", "train")
    pixels = train.images.flatten(1).float()
    order = torch.argsort(train.digit * len(train.writer_ids) + train.writer, stable=True)

    def distance(step: int, same_writer: bool) -> float:
        a, b = order[:-step:7], order[step::7]
        keep = (train.digit[a] == train.digit[b]) & ((train.writer[a] == train.writer[b]) == same_writer)
        assert int(keep.sum()) > 5000
        return float((pixels[a[keep]] - pixels[b[keep]]).norm(dim=1).mean())

    assert distance(1, same_writer=True) < 0.9 * distance(1000, same_writer=False)


def test_chance_levels_of_nist_digits():
    """Against the digit counts of NIST and the levels that follow from them (spec disentangle, 2.3 and 7.1)."""
    counts = [40363, 44704, 40072, 41112, 39154, 36606, 39937, 41893, 39579, 39533]
    chance = chance_levels(torch.repeat_interleave(torch.arange(10), torch.tensor(counts)))
    assert round(chance.probability, 4) == 0.1002
    assert round(chance.top1, 4) == 0.1109


def test_chance_levels_by_hand():
    chance = chance_levels(torch.tensor([4, 4, 4, 0, 0, 9, 9, 2]))  # 3, 2, 2, 1 of 8
    assert chance.probability == pytest.approx((9 + 4 + 4 + 1) / 64)
    assert chance.rank == pytest.approx((3 * 1 + 4 * 2.5 + 1 * 4) / 8)
    assert chance.top1 == pytest.approx(3 / 8)
    equal = chance_levels(torch.arange(3579))
    assert equal.rank == pytest.approx(1790) and equal.probability == pytest.approx(1 / 3579)


def test_chance_levels_of_nist_writers(shared):
    """QMNIST's label files hold all digits of 1,074 writers: a sample of NIST's 3,579 with the published levels."""
    rows = [read_idx(shared / "data" / "digits" / f"qmnist-{s}-labels-idx2-int.gz") for s in ("train", "test")]
    writer = torch.from_numpy(np.concatenate(rows)[:, 2].astype(np.int64))
    share = len(torch.unique(writer)) / 3579
    chance = chance_levels(writer)
    assert chance.probability * share == pytest.approx(0.000285, rel=0.01)
    assert chance.rank / share == pytest.approx(1656, rel=0.01)


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.zeros(3), torch.zeros(2, 2).long()])
def test_chance_levels_refuses(labels):
    with pytest.raises(ValueError, match="labels: expected integers"):
        chance_levels(labels)

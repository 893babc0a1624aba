"""Galleries of Twin-GAN: what their files hold, an exact search in little memory, and one clear error for the rest."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import leftovers, picture
from tiny_twingan import stage_state, tiny_config
from torch import Tensor

from anifast.data.folders import scan
from anifast.errors import AnifastError, DataError
from anifast.systems.twingan import gallery, sheets
from anifast.systems.twingan.gallery import Gallery, Neighbour, embed_folder, search, topk
from anifast.systems.twingan.inference import Model, load

ABOUT: dict[str, Any] = {
    "format": gallery.FORMAT,
    "domain": "t",
    "checkpoint": "abc",
    "size": 16,
    "resize": "stretch",
    "folder": "/pictures",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return load(stage_state(tiny_config(), "16"), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate([(16, 16), (40, 30), (20, 50), (16, 16), (90, 90)]):
        picture(root / ("b" if i % 2 else "a") / f"{i}.png", i, size)
    return root


def write(path: Path, rows: Tensor, names: list[str] | None = None, **about: Any) -> Path:
    names = [f"{i}.png" for i in range(len(rows))] if names is None else names
    gallery.write(path, BytesIO(rows.half().numpy().tobytes()), rows.shape[1], names, ABOUT | about)
    return path


def directions(count: int, dimensions: int = 128, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


# --- files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    names = ["a/0.png", "b/äöü 眼.jpg", "c/\udcff.png"]
    rows = directions(3)
    found = gallery.read(write(tmp_path / "g.npz", rows, names, domain="s", size=64, resize="crop"))
    assert isinstance(found.embeddings, np.memmap) and found.embeddings.dtype == np.float16
    assert np.array_equal(found.embeddings, rows.half().numpy()) and list(found.names) == names and len(found) == 3
    told = (found.domain, found.checkpoint, found.size, found.resize, found.folder)
    assert told == ("s", "abc", 64, "crop", Path("/pictures"))
    with np.load(tmp_path / "g.npz") as archive:  # as anybody reads it
        assert np.array_equal(archive["embeddings"], rows.half().numpy())
        assert archive["names"].tolist() == names and archive["domain"] == "s"
    before = (tmp_path / "g.npz").read_bytes()
    found.embeddings[0] = 0
    assert (tmp_path / "g.npz").read_bytes() == before, "the file is not written to"
    assert leftovers(tmp_path) == []


def test_a_folder_becomes_a_gallery(model: Model, folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for batch in (1, 2, 32):
        count, failed = embed_folder(
            model, scan(folder), "target", tmp_path / "g.npz", batch=batch, on_done=lambda *x: told.append(x)
        )
        assert (count, failed) == (5, {}) and sum(done for done, _ in told) == 5
        told.clear()
        found = gallery.read(tmp_path / "g.npz")
        assert list(found.names) == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png"]
        assert (found.domain, found.size, found.checkpoint) == ("t", 16, model.hash) and found.folder == folder
        found.check(model)
        read = model.reader("stretch")
        expected = model.embed(torch.stack([read(folder / name) for name in found.names]), "t")
        # a rounding to 11 bits, and of results in another batch
        assert np.abs(found.embeddings - expected.numpy()).max() < 2**-11 + 1e-4
    assert leftovers(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["g.npz"]


def test_bad_pictures_are_left_out_by_name(model: Model, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    picture(root / "good.png", 1)
    whole = picture(root / "cut.png", 2).read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("hello")
    count, failed = embed_folder(model, scan(root), "t", tmp_path / "g.npz", batch=2)
    assert count == 1 and set(failed) == {str(root / "cut.png"), str(root / "text.jpg")}
    assert failed[str(root / "text.jpg")] == "not a picture: a text file"
    assert failed[str(root / "cut.png")].startswith("the PNG cannot be decoded")
    assert list(gallery.read(tmp_path / "g.npz").names) == ["good.png"]


def test_a_gallery_is_written_whole_or_not_at_all(model: Model, tmp_path: Path) -> None:
    root, out = tmp_path / "pictures", tmp_path / "out" / "g.npz"
    whole = picture(root / "a.png", 2).read_bytes()
    embed_folder(model, scan(root), "t", out)
    before = out.read_bytes()
    (root / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"none of its pictures can be used \(.*a.png: the PNG cannot be decoded"):
        embed_folder(model, scan(root), "t", out)
    broken = stage_state(tiny_config(), "16")
    broken["ema"]["E"]["norms.beta"][:] = torch.nan
    picture(root / "a.png", 2)
    with pytest.raises(DataError, match=r"a.png: its embedding is not finite"):
        embed_folder(load(broken, torch.device("cpu")), scan(root), "t", out)
    assert out.read_bytes() == before and leftovers(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AnifastError, match="cannot write .*file/g.npz: .*choose another output folder"):
        embed_folder(model, scan(root), "t", tmp_path / "file" / "g.npz")


def test_what_is_no_gallery(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    with pytest.raises(DataError, match=r"g.npz: no such file; anifast twingan embed makes a gallery"):
        gallery.read(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="g.npz: no gallery of Twin-GAN .*anifast twingan embed makes one"):
        gallery.read(path)
    np.savez(path, embeddings=np.zeros((2, 3), np.float16))
    with pytest.raises(DataError, match="g.npz: no gallery of Twin-GAN .*no item named 'format.npy'"):
        gallery.read(path)
    write(path, directions(2), format="anifast.twingan.gallery/9")
    with pytest.raises(DataError, match="format 'anifast.twingan.gallery/9', expected 'anifast.twingan.gallery/1'"):
        gallery.read(path)
    write(path, directions(2), size="large")
    with pytest.raises(DataError, match="no gallery of Twin-GAN .*'large'"):
        gallery.read(path)


def test_damaged_galleries(tmp_path: Path) -> None:
    path = write(tmp_path / "g.npz", directions(3))
    with np.load(path) as archive:
        held = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **held)
    with pytest.raises(
        DataError, match="compressed, so that they cannot be searched in place; make it anew by anifast"
    ):
        gallery.read(path)
    np.savez(path, **held)
    assert len(gallery.read(path)) == 3, "as numpy writes it is as well"
    for change in (
        {"names": held["names"][:2]},
        {"embeddings": held["embeddings"].astype(np.float32)},
        {"embeddings": held["embeddings"][0]},
        {"embeddings": np.asfortranarray(held["embeddings"])},
        {"domain": np.asarray("x")},
    ):
        np.savez(path, **(held | change))
        with pytest.raises(DataError, match="g.npz: damaged"):
            gallery.read(path)
    write(path, directions(0), [])
    with pytest.raises(DataError, match="g.npz: holds no picture; make it anew .* from a folder that does"):
        gallery.read(path)
    write(path, directions(3))
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info.header_offset for info in archive.infolist()}
    data = bytearray(path.read_bytes())
    data[infos["embeddings.npy"] + 64 : infos["embeddings.npy"] + 70] = b"\0" * 6  # the head of the array
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="g.npz: damaged"):
        gallery.read(path)


def test_galleries_of_other_models_are_refused(model: Model, tmp_path: Path) -> None:
    found = gallery.read(write(tmp_path / "g.npz", directions(2), checkpoint=model.hash))
    found.check(model)
    other = load(stage_state(tiny_config(), "16", seed=5), torch.device("cpu"))
    with pytest.raises(
        DataError, match="g.npz: was made by another checkpoint .*make it anew by anifast twingan embed"
    ):
        found.check(other)
    smaller = load(stage_state(tiny_config(), "8"), torch.device("cpu"))
    with pytest.raises(DataError, match="seen at 16x16 and are 128 numbers each, but this model sees them at 8x8"):
        found.check(smaller)
    narrow = load(stage_state(tiny_config(max_channels=4), "16"), torch.device("cpu"))
    with pytest.raises(DataError, match="128 numbers each, but this model sees them at 16x16 and makes 64"):
        found.check(narrow)


# --- search


class Watched:
    """A gallery's array that notes how many rows are looked at together."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.rows, self.ndim, self.shape, self.most = rows, rows.ndim, rows.shape, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray[Any, Any]:
        found = self.rows[part]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("chunk", [1, 3, 50, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 500])
def test_search_is_exact_in_bounded_memory(k: int, chunk: int) -> None:
    rows, queries = directions(150, 32).half().numpy(), directions(7, 32, seed=1)
    watched = Watched(rows)
    scores, numbers = topk(queries, watched, k, chunk=chunk)  # type: ignore[arg-type]
    exact = queries.numpy().astype(np.float64) @ rows.astype(np.float64).T
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    assert watched.most <= chunk
    assert scores.shape == numbers.shape == (7, min(k, 150)) and scores.dtype == torch.float32
    assert np.array_equal(numbers.numpy(), order)
    # 32 products of numbers below 1, summed up in float32
    assert np.abs(scores.numpy() - np.take_along_axis(exact, order, 1)).max() < 32 * 2**-24


def test_equal_pictures_come_in_their_order() -> None:
    row = directions(1, 16)
    rows = torch.cat([directions(3, 16, seed=2), row, -row, row, row]).half()
    for chunk in (1, 2, 4, 7):
        scores, numbers = topk(row, rows, 3, chunk=chunk)
        assert numbers.tolist() == [[3, 5, 6]] and len(set(scores.flatten().tolist())) == 1
        assert topk(row, rows.numpy(), 9, chunk=chunk)[1][0, -1] == 4, "the opposite comes last"
    assert topk(row[:0], rows, 2)[1].shape == (0, 2)
    assert topk(row, rows[:0], 2)[1].shape == (1, 0)


def test_search_checks_what_it_is_given() -> None:
    rows = directions(4, 16)
    with pytest.raises(ValueError, match=r"got \[2, 8\], \[4, 16\]"):
        topk(directions(2, 8), rows, 1)
    for k, chunk in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="k and chunk: expected at least 1"):
            topk(rows, rows, k, chunk=chunk)


def test_several_galleries_are_searched_as_one(tmp_path: Path) -> None:
    rows, queries = directions(20, 32), directions(3, 32, seed=1)
    names = [f"{i:02d}.png" for i in range(20)]
    whole = [gallery.read(write(tmp_path / "all.npz", rows, names))]
    parts = [
        gallery.read(write(tmp_path / f"{i}.npz", part, names[start : start + len(part)]))
        for i, (start, part) in enumerate(((0, rows[:3]), (3, rows[3:4]), (4, rows[4:])))
    ]
    for k in (1, 6, 20, 30):
        found, of_parts = search(queries, whole, k), search(queries, parts, k)
        assert [len(one) for one in found] == [min(k, 20)] * 3
        for one, other in zip(sum(found, []), sum(of_parts, []), strict=True):
            # 32 products in float32, summed up in another order
            assert one.path == other.path and abs(one.distance - other.distance) < 32 * 2**-24
        assert all(one.path.parent == Path("/pictures") and one.resize == "stretch" for one in found[0])
        distances = [near.distance for near in found[0]]
        assert distances == sorted(distances) and min(distances) >= 0
    moved = search(queries, whole, 1, folder=Path("/elsewhere"))
    assert moved[0][0].path == Path("/elsewhere") / search(queries, whole, 1)[0][0].path.name


def test_a_query_that_is_in_the_gallery(tmp_path: Path) -> None:
    rows = directions(6, 32)
    found: Gallery = gallery.read(write(tmp_path / "g.npz", rows, folder=str(tmp_path)))
    first = search(rows[2:3], [found], 2)[0]
    assert first[0].path == tmp_path / "2.png" and first[0].distance < 2**-11, "float16's rounding"
    (tmp_path / "link").symlink_to(tmp_path)
    others = search(rows[2:3], [found], 2, apart_from=[tmp_path / "link" / "2.png"])[0]
    assert len(others) == 2 and others[0] == first[1], "by whatever way it is reached"


# --- sheets


def test_a_sheet_shows_neighbours_and_their_distances(folder: Path) -> None:
    colours = [(200, 40, 40), (40, 200, 40)]
    paths = []
    for i, colour in enumerate(colours):
        Image.new("RGB", (30, 50), colour).save(folder / f"plain{i}.bmp")
        paths.append(folder / f"plain{i}.bmp")
    rows = [[Neighbour(paths[1], 0.25), Neighbour(folder / "gone.png", 0.5)], [Neighbour(paths[0], 0.125)]]
    drawn, lost = sheets.neighbours(sheets.load(paths), [("nearest", rows)], names=["one", "two"])
    assert set(lost) == {str(folder / "gone.png")} and "no such file" in lost[str(folder / "gone.png")]
    pixels = np.asarray(drawn)
    for colour in colours:  # as a query and as a neighbour
        assert (pixels == colour).all(2).sum() == 2 * sheets.TILE**2
    plain, _ = sheets.neighbours(sheets.load(paths), [("nearest", [row[:1] for row in rows])], names=["one", "two"])
    silent = sheets.sheet([sheets.Block("nearest", [("", sheets.load(paths))] * 2)], tile=sheets.TILE)
    assert plain.height == silent.height + 2 * 20, "a line under each row"
    with pytest.raises(AnifastError, match="fewer queries or neighbours"):
        sheets.neighbours(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [("", [[rows[0][0]] * 10_000])])

"""`anifast twingan` and `anifast translate` with a Twin-GAN: what they do, and one clear error for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, leftovers, picture, the_error
from tiny_gnr import own_state
from tiny_gnr import tiny_config as gnr_config
from tiny_twingan import make_data, stage_state, tiny_config, write_run

import anifast
from anifast import cli
from anifast.data.boxes import HUMAN, Box, face_crop
from anifast.data.folders import read_image
from anifast.data.tags import TAGS, parse_tags
from anifast.systems.twingan import gallery, sheets

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), stages=["8to16", "16"])


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("tagged"), tiny_config(tags=True), ["16"])


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("styled"), tiny_config(style=4), ["16"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), tags=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, size in enumerate([(64, 64), (90, 70), (40, 130)]):
        picture(tmp_path / "photos" / f"{i}.png", i, size)
    return tmp_path / "photos"


def twingan(*words: object) -> int:
    return cli.main(command("twingan", *words, "--device", "cpu"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.format == "PNG"
        return np.asarray(image).astype(np.int64)


def assert_is(path: Path, expected: torch.Tensor) -> None:
    """A PNG holds a result: rounded to the nearest of 255 steps, after what float32 does in a batch of another size."""
    assert np.abs(pixels(path) - (expected.permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.51


def refused(capsys: Capture, *words: object) -> str:
    """The one error of a command that gives up."""
    assert twingan(*words) == 1
    return the_error(capsys.readouterr().err)


# --- translate, reconstruct


@pytest.mark.parametrize("to", ["t", "source"])
def test_translate(run: Path, photos: Path, tmp_path: Path, capsys: Capture, to: str) -> None:
    out = tmp_path / "out"
    assert twingan("translate", run, photos, "--out", out, "--to", to, "--batch", 2) == 0
    said = capsys.readouterr()
    word = {"t": "target", "source": "source"}[to]
    assert f"3 pictures -> {word}, averaged weights, phase 16, device cpu" in said.out and "3/3" in said.err
    assert files(out) == ["0.png", "1.png", "2.png"] and leftovers(out) == []
    model = anifast.load(run, "cpu")
    for name in files(out):
        assert_is(out / name, model.translate(model.reader("stretch")(photos / name)[None], to)[0])


def test_translate_as_every_system(run: Path, styled: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    for to in ("A", "B"):
        words = ("translate", run, photos, "--out", tmp_path / to, "--to", to, "--device", "cpu")
        assert cli.main(command(*words)) == 0
        model = anifast.load(run, "cpu")
        for name in files(tmp_path / to):
            assert_is(tmp_path / to / name, model.translate(model.reader("stretch")(photos / name)[None], to)[0])
    words = ("translate", run, photos, "--out", tmp_path / "cut", "--resize", "crop", "--device", "cpu")
    assert cli.main(command(*words)) == 0
    assert_is(tmp_path / "cut" / "1.png", model.translate(model.reader("crop")(photos / "1.png")[None])[0])
    words = ("translate", styled, photos / "2.png", "--out", tmp_path / "s", "--seed", 3, "--device", "cpu")
    assert cli.main(command(*words)) == 0
    assert "1 picture -> B, style of seed 3" in capsys.readouterr().out
    model = anifast.load(styled, "cpu")
    assert_is(tmp_path / "s" / "2.png", model.translate(model.reader("stretch")(photos / "2.png")[None], style=3)[0])
    assert files(tmp_path / "s") == ["2.png"]


def test_pictures_scaled_as_tensorflow_did(photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_config("tg2018"), ["16"])
    model = anifast.load(run, "cpu")
    for i, (verb, options, how) in enumerate(
        (
            (("translate",), (), "stretch"),
            (("translate",), ("--resize", "crop"), "crop"),
            (("twingan", "translate"), (), "stretch"),
            (("twingan", "translate"), ("--resize", "crop"), "crop"),
        )
    ):
        out = tmp_path / str(i)
        assert cli.main(command(*verb, run, photos, "--out", out, *options, "--device", "cpu")) == 0
        for name in files(out):
            assert_is(out / name, model.translate(model.reader(how)(photos / name)[None])[0])


def test_reconstruct(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert twingan("reconstruct", run, photos, "--domain", "A", "--out", tmp_path / "out") == 0
    assert "3 pictures -> source again" in capsys.readouterr().out
    model = anifast.load(run, "cpu")
    for name in files(tmp_path / "out"):
        assert_is(tmp_path / "out" / name, model.reconstruct(model.reader()(photos / name)[None], "s")[0])


def test_statistics_of_the_pictures_at_once(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    model = anifast.load(run, "cpu", norm_mode="batch")
    every = torch.stack([model.reader()(photos / f"{n}.png") for n in range(3)])
    for batch, told, together in (
        (3, "of 3 pictures at once", [[0, 1, 2]]),
        (8, "of 3 pictures at once", [[0, 1, 2]]),
        (2, "of 2 pictures at once, the last ones with some before them", [[0, 1], [2, 0]]),
        (1, "of 1 picture at once, so of each by itself", [[0], [1], [2]]),
    ):
        out = tmp_path / str(batch)
        words = ("translate", run, photos, "--out", out, "--norm-mode", "batch", "--batch", batch)
        assert twingan(*words) == 0
        assert f"statistics of norms: {told}" in capsys.readouterr().out.splitlines()
        for numbers in together:
            painted = model.translate(every[numbers])
            for n, picture_of in zip(numbers, painted, strict=True):
                if [group for group in together if n in group][0] is numbers:  # where it was filled up with, no result
                    assert_is(out / f"{n}.png", picture_of)
    out = tmp_path / "again"
    words = ("reconstruct", run, photos, "--domain", "s", "--out", out, "--norm-mode", "batch", "--batch", 2)
    assert twingan(*words) == 0
    assert_is(out / "2.png", model.reconstruct(every[[2, 0]], "s")[0])
    for norm in ("instance_norm", "none"):
        path = tmp_path / f"{norm}.pt"
        torch.save(stage_state(tiny_config(norm=norm), "16"), path)
        error = refused(capsys, "translate", path, photos, "--out", tmp_path / "none", "--norm-mode", "batch")
        assert f"this model's norm, {norm}, takes no statistics over pictures; leave it out" in error
    assert not (tmp_path / "none").exists()


def test_faces_are_cut_out(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = ["path\tx\ty\tw\th\tscore", "0.png\t20\t30\t12\t10\t0.8", "0.png\t40\t30\t9\t9\t0.95"]
    rows += ["1.png\t10\t20\t30\t30\t0.9", "1.png\t5\t5\t9\t9\t0.69", "2.png\t5\t5\t9\t9\t0.2"]
    boxes = photos / "boxes.tsv"
    boxes.write_text("\n".join([*rows, "elsewhere.png\t1\t1\t5\t5\t1"]))
    out = tmp_path / "out"
    assert twingan("translate", run, photos, "--out", out, "--boxes", boxes) == 0
    said = capsys.readouterr().out
    assert "faces of a score from 0.7: 3 in 2 pictures; 1 without are painted as a whole" in said
    assert "4 pictures in" in said
    assert files(out) == ["0-f0.png", "0-f1.png", "1.png", "2.png"]
    model = anifast.load(run, "cpu")
    for name, source, box in (
        ("0-f0.png", "0.png", Box(40, 30, 9, 9)),
        ("0-f1.png", "0.png", Box(20, 30, 12, 10)),
        ("1.png", "1.png", Box(10, 20, 30, 30)),
        ("2.png", "2.png", None),
    ):
        image = read_image(photos / source)
        part = image if box is None else image.crop(face_crop(box, image.size, HUMAN))
        assert_is(out / name, model.translate(model.prepared(part)[None])[0])
    boxes.write_text("0.png\t500\t30\t12\t10\n1.png\t10\t20\t30\t30")
    assert twingan("translate", run, photos, "--out", out, "--boxes", boxes) == 1
    said = capsys.readouterr().err
    assert f"{photos / '0.png'}: box 500, 30, 12, 10 (x, y, w, h): lies outside its picture of 64x64 pixels" in said
    assert the_error(said) == "1 of 3 pictures could not be painted (named above)"
    boxes.write_text("other.png\t1\t1\t5\t5\t1")
    error = refused(capsys, "translate", run, photos, "--out", out, "--boxes", boxes)
    assert "boxes.tsv: names none of the pictures (the first is other.png); its paths begin where it is" in error
    picture(photos / "0-f1.png", 9)
    boxes.write_text("\n".join(rows))
    error = refused(capsys, "translate", run, photos, "--out", out, "--boxes", boxes)
    assert f"would both become {out / '0-f1.png'}: translate them into different folders" in error


def test_faces_that_count(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    boxes, out = photos / "boxes.tsv", tmp_path / "out"
    # the same file in two ways, of which the better face comes second
    boxes.write_text("0.png\t20\t30\t12\t10\t0.2\n../photos/0.png\t40\t30\t9\t9\t0.4\n1.png\t10\t20\t30\t30\t0")
    words = ("translate", run, photos, "--out", out, "--boxes", boxes)
    assert twingan(*words, "--to", "s") == 0
    assert "faces of a score from 0.9: 0 in 0 pictures; 3 without are painted as a whole" in capsys.readouterr().out
    assert files(out) == ["0.png", "1.png", "2.png"]
    assert twingan(*words, "--least-score", 0) == 0
    assert "faces of a score from 0: 3 in 2 pictures; 1 without are painted as a whole" in capsys.readouterr().out
    assert {"0-f0.png", "0-f1.png"} < set(files(out))
    model, image = anifast.load(run, "cpu"), read_image(photos / "0.png")
    for n, box in enumerate((Box(40, 30, 9, 9), Box(20, 30, 12, 10))):
        part = image.crop(face_crop(box, image.size, HUMAN))
        assert_is(out / f"0-f{n}.png", model.translate(model.prepared(part)[None])[0])
    assert "a finite number" in refused(capsys, *words, "--least-score", "nan")
    error = refused(capsys, "translate", run, photos, "--out", out, "--least-score", 0.5)
    assert error == "--least-score 0.5: is of the boxes of --boxes, which is not given; leave it out"


def test_bad_pictures_are_named_and_the_others_painted(
    run: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (photos / "text.jpg").write_text("hello")
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:200])
    assert twingan("translate", run, photos, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"anifast: failed: {photos / 'text.jpg'}: not a picture: a text file" in said.splitlines()
    assert f"anifast: failed: {photos / '1.png'}: the PNG cannot be decoded" in said
    assert the_error(said) == "2 of 4 pictures could not be painted (named above)"
    assert files(tmp_path / "out") == ["0.png", "2.png"]


# --- conditions


def test_tags(tagged: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    model = anifast.load(tagged, "cpu")
    image = model.reader()(photos / "0.png")[None]
    words = ("translate", tagged, photos / "0.png", "--out", tmp_path / "out")
    assert twingan(*words, "--tags", "green_hair,blue_eyes:0.5") == 0
    assert "1 picture -> target, tags green_hair,blue_eyes:0.5" in capsys.readouterr().out
    expected = model.translate(image, tags=torch.from_numpy(parse_tags("green_hair,blue_eyes:0.5")))
    assert_is(tmp_path / "out" / "0.png", expected[0])
    error = refused(capsys, *words, "--tags", "gren_hair")
    assert "'gren_hair' is unknown; is green_hair or" in error
    assert "leave them out" in refused(capsys, *words, "--tags", "green_hair", "--to", "s")
    with pytest.raises(SystemExit):
        twingan(*words, "--tags", "green_hair", "--reference", photos / "1.png")


def test_tags_of_a_reference(tagged: Path, data: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    model = anifast.load(tagged, "cpu")
    image, reference = model.reader()(photos / "0.png")[None], data / "target" / "train" / "1.png"
    file, words = data / "target" / "tags.tsv", ("translate", tagged, photos / "0.png", "--out", tmp_path / "out")
    hair, eyes = (next(t for t in [name for _, name, g in TAGS if g == group][1:]) for group in (2, 3))
    assert twingan(*words, "--reference", reference, "--tags-file", file) == 0
    said = capsys.readouterr().out
    assert "tags of 1.png: " in said and f"{hair}:0.90" in said and f"{eyes}:0.80" in said
    vector = torch.from_numpy(parse_tags(f"{hair}:0.9,{eyes}:0.8"))
    assert_is(tmp_path / "out" / "0.png", model.translate(image, tags=vector)[0])
    assert twingan(*words, "--reference", reference) == 0, "recognised by the model itself"
    assert "tags of 1.png: " in capsys.readouterr().out
    error = refused(capsys, *words, "--reference", photos / "2.png", "--tags-file", file)
    assert f"tags.tsv: has no tags of {photos / '2.png'}" in error and "say what to paint by --tags" in error
    assert "no such file" in refused(capsys, *words, "--reference", tmp_path / "gone.png")
    assert "--reference, which is not given" in refused(capsys, *words, "--tags-file", file)
    into = ("translate", tagged, photos / "0.png", "--out", tmp_path, "--reference", tmp_path / "0.png")
    before = picture(tmp_path / "0.png", 4).read_bytes()
    assert "would overwrite an input" in refused(capsys, *into)
    assert (tmp_path / "0.png").read_bytes() == before


def test_styles(styled: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    model = anifast.load(styled, "cpu")
    image = model.reader()(photos / "0.png")[None]
    words = ("translate", styled, photos / "0.png", "--out", tmp_path / "out")
    own = model.styles_of(model.reader()(photos / "1.png")[None], "t")
    for options, about, style in (
        ((), "style of seed 0", 0),
        (("--seed", 5), "style of seed 5", 5),
        (("--reference", photos / "1.png"), "style of 1.png", own),
    ):
        assert twingan(*words, *options) == 0
        assert f"-> target, {about}, " in capsys.readouterr().out
        assert_is(tmp_path / "out" / "0.png", model.translate(image, style=style)[0])
    error = refused(capsys, *words, "--tags", "green_hair")
    assert f"{styled} holds a model that follows no tags (it was trained without --tags)" in error


def test_models_without_conditions(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("translate", run, photos / "0.png", "--out", tmp_path / "out")
    for options, part in (
        (("--tags", "green_hair"), "follows no tags (it was trained without --tags); leave it out, or train one"),
        (("--reference", photos / "1.png"), "follows neither tags nor styles"),
        (("--seed", 1), "embeds no styles"),
    ):
        assert part in refused(capsys, *words, *options)
    assert not (tmp_path / "out").exists()


# --- galleries


@pytest.fixture(scope="module")
def anime(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("galleries") / "anime.npz"
    assert twingan("embed", run, data / "target" / "train", "--domain", "t", "--out", path) == 0
    return path


def test_embed(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    (photos / "text.jpg").write_text("hello")
    out = tmp_path / "new" / "people.npz"
    assert twingan("embed", run, photos, "--domain", "source", "--out", out, "--batch", 2) == 1
    said = capsys.readouterr()
    assert "3 pictures of the source" in said.out and f"3 pictures, 128 numbers each, 0.0 MB -> {out}" in said.out
    assert "3/3" in said.err and "text.jpg: not a picture" in said.err
    assert the_error(said.err) == "1 of 4 pictures could not be embedded (named above)"
    found = gallery.read(out)
    assert found.domain == "s" and list(found.names) == ["0.png", "1.png", "2.png"] and leftovers(tmp_path) == []
    assert refused(capsys, "embed", run, photos, "--domain", "s", "--out", tmp_path / "g.npy").endswith(".npz")
    assert "no picture found" in refused(capsys, "embed", run, out.parent, "--domain", "s", "--out", out)


def test_search(run: Path, data: Path, photos: Path, anime: Path, tmp_path: Path, capsys: Capture) -> None:
    people = tmp_path / "people.npz"
    assert twingan("embed", run, photos, "--domain", "s", "--out", people) == 0
    capsys.readouterr()
    out = tmp_path / "sheet.png"
    words = ("search", run, photos, "--query-domain", "s", "--gallery", anime, people, "--topk", 4, "--out", out)
    assert twingan(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("nearest")]
    assert lines[heads[0]] == "nearest in the source, of 3 pictures, which is fewer than 4"
    assert lines[heads[1]] == "nearest in the target, of 6 pictures"
    for i, block in enumerate((lines[heads[0] + 1 : heads[1]], lines[heads[1] + 1 : -1])):
        each = len(block) // 3
        assert each == 1 + (3, 4)[i] and block[::each] == [f"  {photos / f'{n}.png'}" for n in range(3)]
    for n in range(3):  # a query that is in the gallery is its own nearest
        assert lines[heads[0] + 2 + 4 * n].split() == ["1", "0.0000", str(photos / f"{n}.png")]
    model = anifast.load(run, "cpu")
    read = model.reader()
    query = model.embed(read(photos / "1.png")[None], "s")
    targets = [data / "target" / "train" / f"{n}.png" for n in range(6)]
    products = (model.embed(torch.stack([read(path) for path in targets]), "t") @ query[0]).tolist()
    expected = sorted(zip(products, targets, strict=True), key=lambda pair: -pair[0])[:4]
    told = [line.split() for line in lines[heads[1] + 7 : heads[1] + 11]]
    assert [Path(words[2]) for words in told] == [path for _, path in expected]
    for words, (product, _) in zip(told, expected, strict=True):
        # four digits, and 128 products of numbers rounded to 11 bits
        assert abs(float(words[1]) - (1 - product)) < 5e-5 + 2**-11
    assert lines[-1] == str(out)
    sheet = pixels(out)
    pitch = sheets.TILE + 4 + 20
    assert 3 * pitch < sheet.shape[0] < 4 * pitch and sheet.shape[1] > 8 * (sheets.TILE + 4)


def test_search_leaves_the_query_out(run: Path, data: Path, anime: Path, capsys: Capture) -> None:
    query = data / "target" / "train" / "3.png"
    words = ("search", run, query, "--query-domain", "B", "--gallery", anime, "--topk", 9)
    for options, count in (((), 6), (("--not-itself",), 5)):
        assert twingan(*words, *options) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("     ")]
        assert len(rows) == count and (str(query) in [row[2] for row in rows]) == (not options)


def test_galleries_whose_pictures_moved(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, query, out = tmp_path / "old", data / "source" / "val" / "0.png", tmp_path / "sheet.png"
    for n in range(3):
        picture(folder / f"{n}.png", n)
    assert twingan("embed", run, folder, "--domain", "t", "--out", tmp_path / "g.npz") == 0
    folder.rename(tmp_path / "new")
    capsys.readouterr()
    words = ("search", run, query, "--query-domain", "s", "--gallery", tmp_path / "g.npz", "--out", out)
    assert twingan(*words) == 1
    said = capsys.readouterr().err
    assert (
        "3 pictures of the galleries could not be read and stay white on the sheet; if they are no longer in "
        f"{folder}, say where by --images DIR" in the_error(said)
    )
    assert f"not shown: {folder / '0.png'}: no such file" in said and out.is_file(), "the search itself is of use"
    assert twingan(*words, "--images", tmp_path / "new") == 0
    assert "--images" in refused(capsys, *words, "--images", folder)


def test_galleries_made_square_otherwise(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    """The sheet shows each gallery's pictures as it has them, and what was lost is told of by its own folder."""
    cut, wide = tmp_path / "cut.npz", tmp_path / "wide.npz"
    folders = {cut: tmp_path / "cut", wide: tmp_path / "wide"}
    for file, how in ((cut, "crop"), (wide, "stretch")):
        folders[file].mkdir()
        image = Image.new("RGB", (90, 30), (200, 40, 40))  # red, and blue in the middle: all that a square is cut to
        image.paste((40, 40, 200), (30, 0, 60, 30))
        image.save(folders[file] / "0.png")
        assert twingan("embed", run, folders[file], "--domain", "s", "--out", file, "--resize", how) == 0
    out = tmp_path / "sheet.png"
    words = ("search", run, photos / "0.png", "--query-domain", "s", "--gallery", wide, cut, "--out", out)
    capsys.readouterr()
    assert twingan(*words) == 0
    said = capsys.readouterr().err
    assert f"warning: {cut}: its pictures were made square by crop, and queries are by stretch" in said
    assert f"{wide}: its" not in said
    # a whole tile of the one, and of the other a third, whose edges are mixed
    assert 1 < (pixels(out) == (40, 40, 200)).all(2).sum() / sheets.TILE**2 <= 1 + 1 / 3
    folders[cut].rename(tmp_path / "moved")
    assert twingan(*words) == 1
    error = the_error("".join(line for line in capsys.readouterr().err.splitlines(True) if "warning" not in line))
    assert f"no longer in {folders[cut]}, say where" in error


def test_a_sheet_too_large_is_refused_at_once(
    run: Path, anime: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", str(3 * 4 * sheets.TILE**2 - 1))
    out = tmp_path / "new" / "sheet.png"
    words = ("search", run, photos, "--query-domain", "s", "--gallery", anime, "--topk", 3, "--out", out)
    assert twingan(*words) == 1
    said = capsys.readouterr()
    assert "3 rows of 4 pictures make a sheet" in the_error(said.err) and "fewer queries or neighbours" in said.err
    assert "embed" not in said.err and said.out == "" and not out.parent.exists()


def test_search_by_bad_pictures(run: Path, anime: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    (photos / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ("--query-domain", "s", "--gallery", anime, "--out", tmp_path / "sheet.png")
    assert twingan("search", run, photos, *words) == 1
    said = capsys.readouterr()
    assert the_error(said.err) == "1 of 3 pictures could not be searched by (named above)"
    assert "1.png: the PNG cannot be decoded" in said.err and (tmp_path / "sheet.png").is_file()
    assert "0.png" in said.out and "2.png" in said.out
    text = tmp_path / "text.png"
    text.write_text("hello")
    error = refused(capsys, "search", run, text, *words)
    assert f"none of 1 picture to search by can be used ({text}: not a picture: a text file" in error


def test_search_refuses(run: Path, anime: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    query = photos / "0.png"
    words = ("--query-domain", "s", "--gallery", anime)
    other = write_run(tmp_path / "other", stages=["16"], seed=7)
    assert "was made by another checkpoint" in refused(capsys, "search", other, query, *words)
    assert "was made by another checkpoint" in refused(capsys, "search", run / "8to16", query, *words), (
        "of the same size"
    )
    small = write_run(tmp_path / "small", stages=["8"])
    assert "seen at 16x16" in refused(capsys, "search", small, query, *words)
    assert "--topk 0: at least 1" in refused(capsys, "search", run, query, *words, "--topk", 0)
    assert "g.npz: no such file" in refused(capsys, "search", run, query, *words, tmp_path / "g.npz")
    assert "overwrite an input" in refused(capsys, "search", run, query, *words, "--out", query)
    assert "ends with .png" in refused(capsys, "search", run, query, *words, "--out", tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("translate", "RUN", "PHOTO", "--out", "OUT", "--to", "anime"), "--to"),
        (("reconstruct", "RUN", "PHOTO", "--out", "OUT", "--domain", "anime"), "--domain"),
        (("embed", "RUN", "PHOTO", "--out", "OUT.npz", "--domain", "anime"), "--domain"),
        (("search", "RUN", "PHOTO", "--gallery", "G", "--query-domain", "anime"), "--query-domain"),
    ],
)
def test_domains_that_there_are_not(words: tuple[str, ...], option: str, tmp_path: Path, capsys: Capture) -> None:
    error = refused(capsys, *words)
    assert error == f"{option}: domain 'anime': there are source (s, A) and target (t, B)"


def test_what_a_frozen_graph_lacks(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    path, out = tmp_path / "frozen.pt", tmp_path / "out" / "people.npz"
    torch.save(stage_state(tiny_config(), "16") | {"targets": ["B"]}, path)
    part = "takes pictures of the source (s, A) and paints the target (t, B) only, as frozen graphs do; the other"
    assert part in refused(capsys, "embed", path, photos, "--domain", "t", "--out", out)
    assert part in refused(capsys, "translate", path, photos, "--to", "s", "--out", out.parent)
    for domain in ("s", "t"):
        assert part in refused(capsys, "reconstruct", path, photos, "--domain", domain, "--out", out.parent)
    assert not out.parent.exists()
    assert twingan("embed", path, photos, "--domain", "s", "--out", out) == 0
    words = ("search", path, photos, "--gallery", out, "--query-domain")
    assert part in refused(capsys, *words, "t")
    assert twingan(*words, "s") == 0


def test_models_of_other_systems(photos: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.save(own_state(gnr_config()), tmp_path / "gnr.pt")
    for words in (
        ("translate", tmp_path / "gnr.pt", photos, "--out", tmp_path / "out"),
        ("recalibrate", tmp_path / "gnr.pt", "--data", data, "--out", tmp_path / "new.pt"),
    ):
        expected = f"{tmp_path / 'gnr.pt'}: a model of another system; `anifast twingan` takes Twin-GANs"
        assert refused(capsys, *words) == expected


# --- statistics


def test_recalibrate(run: Path, data: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new" / "better.pt"
    error = refused(capsys, "translate", run, photos, "--out", tmp_path / "out", "--norm-mode", "recalibrated")
    assert str(run) in error and "do so by anifast twingan recalibrate" in error
    assert twingan("recalibrate", run, "--data", data, "--out", out, "--batch", 3, "--batches", 9) == 0
    said = capsys.readouterr()
    assert "4/4" in said.err, "6 pictures of each domain are 2 batches"
    for word in ("source", "target"):
        assert f"{word}: 2 batches of 3, not 9, as there are 6 pictures" in said.out.splitlines()
    assert "E: means moved by" in said.out and f"12 pictures -> {out}; all commands use these now" in said.out
    model, before = anifast.load(out, "cpu", norm_mode="running"), anifast.load(run, "cpu")
    assert model.recalibrated and model.hash == before.hash and leftovers(tmp_path) == []
    image = before.reader()(photos / "0.png")[None]
    assert torch.equal(model.translate(image), before.translate(image)), "the originals are there"
    better = anifast.load(out, "cpu", norm_mode="recalibrated").translate(image)
    for options, expected in (
        ((), better),
        (("--norm-mode", "recalibrated"), better),
        (("--norm-mode", "running"), before.translate(image)),
    ):
        assert twingan("translate", out, photos, "--out", tmp_path / "out", *options) == 0
        assert_is(tmp_path / "out" / "0.png", expected[0])
    assert not torch.allclose(better, before.translate(image), atol=0.01)
    for words, part in (
        (("--out", run / "16" / "checkpoint.pt"), "would overwrite an input"),
        (("--out", tmp_path / "a.bin"), "ends with .pt"),
        (("--out", out, "--batches", 0), "--batches 0: at least 1"),
        (("--out", out, "--batch", 1), "--batch 1: at least 2, as statistics are of the pictures of a batch together"),
        (("--out", out, "--data", tmp_path), "no pictures of the source; give the data folder of a training"),
    ):
        assert part in refused(capsys, "recalibrate", run, *(() if "--data" in words else ("--data", data)), *words)


def test_recalibrate_by_one_picture(run: Path, tmp_path: Path, capsys: Capture) -> None:
    for n in range(3):
        picture(tmp_path / "target" / "train" / f"{n}.png", n)
    picture(tmp_path / "source" / "train" / "a.png", 9)
    (tmp_path / "source" / "train" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    error = refused(capsys, "recalibrate", run, "--data", tmp_path, "--out", tmp_path / "new.pt", "--batch", 2)
    assert f"{tmp_path / 'source' / 'train'}: 1 picture that can be read; statistics take at least 2" in error
    assert not (tmp_path / "new.pt").exists()


def test_recalibrate_with_tags(tagged: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    plain = make_data(tmp_path / "plain", count=2)
    results = []
    for folder in (data, plain):
        words = ("recalibrate", tagged, "--data", folder, "--out", tmp_path / "new.pt", "--batch", 2)
        assert twingan(*words) == 0
        results.append("translations without tags" in capsys.readouterr().out)
    assert results == [False, True]


def test_settings_that_norms_have_none_of(data: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.save(stage_state(tiny_config(norm="instance_norm"), "16"), tmp_path / "model.pt")
    error = refused(capsys, "recalibrate", tmp_path / "model.pt", "--data", data, "--out", tmp_path / "new.pt")
    assert "instance_norm: remembers no statistics" in error and not (tmp_path / "new.pt").exists()

"""`anifast translate` and `anifast gnr` with a GANs N' Roses: what they do, and one clear error for what cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import ROOT, command, leftovers, picture, the_error
from tiny_gnr import own_state, tiny_config, weights

import anifast
from anifast import cli
from anifast.systems.cyclegan import checkpoints as cyclegan_files
from anifast.systems.cyclegan import config as cyclegan_config
from anifast.systems.cyclegan.networks import build_generator, initialise
from anifast.systems.gnr import styles
from anifast.systems.gnr.networks import Generator
from anifast.systems.styles import load_pictures

Capture = pytest.CaptureFixture[str]
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """A run's checkpoint whose colours stay within [-1, 1] for the most part."""
    found = own_state(CONFIG)
    for net in found["ema"].values():
        for key in net:
            if key.startswith("to_rgb") and key.endswith("conv.weight"):
                net[key] = net[key] * 0.05
    return found


@pytest.fixture(scope="module")
def run(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gnr")
    torch.save(state, folder / "checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def one_way(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the generator to B alone."""
    path = tmp_path_factory.mktemp("one") / "one.pt"
    torch.save({"G_A2B_ema": state["ema"]["G_A2B"]}, path)
    return path


@pytest.fixture(scope="module")
def cyclegan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the other system."""
    config = cyclegan_config.make(values={"size": 32, "blocks": 1, "width": 8, "d_width": 8})
    nets = {}
    for name in ("G_AB", "G_BA"):
        net = build_generator(config)
        initialise(net, "normal", torch.Generator().manual_seed(0))
        nets[name] = net.state_dict()
    path = tmp_path_factory.mktemp("cyclegan") / "model.pt"
    torch.save(cyclegan_files.header(config) | {"nets": nets}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(64, 64), (90, 70), (40, 130)]):
        picture(folder / f"{i}.png", i, size)
    return folder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("drawings")
    return [picture(folder / f"drawing-{i}.png", 10 + i, size) for i, size in enumerate([(64, 64), (200, 90)])]


def translate(*words: object) -> int:
    return cli.main(command("translate", *words, "--device", "cpu"))


def gnr(*words: object) -> int:
    return cli.main(command("gnr", *words, "--device", "cpu"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.format == "PNG"
        return np.asarray(image).astype(np.int64)


def tiles(path: Path) -> tuple[int, int]:
    """Rows and columns of a sheet of pictures of side 128, told by its size: margins are narrower than one of them."""
    height, width, _ = pixels(path).shape
    return (height - 58) // 132, (width - 64) // 132


def read(path: Path, how: str = "crop") -> torch.Tensor:
    return load_pictures([path], 64, how)


# --- translate


def test_one_style_keeps_the_names(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert translate(run, photos, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "3 pictures -> B, 1 style, averaged weights, device cpu" in said and "3 pictures in" in said
    assert files(tmp_path / "out") == ["0.png", "1.png", "2.png", "styles.json"]
    (style,) = styles.load(tmp_path / "out" / "styles.json", to="B", latent_dim=8)
    model = anifast.load(run, "cpu")
    assert style.name == "seed 0, no. 0" and torch.equal(styles.codes([style]), model.random_styles(1))
    for name in ("0.png", "1.png", "2.png"):
        expected = model.translate(read(photos / name), styles=torch.tensor(style.code))[0].permute(1, 2, 0)
        # rounded to the nearest of 255 steps, and what float32 does in a batch of another size
        assert np.abs(pixels(tmp_path / "out" / name) - (expected.numpy() + 1) * 127.5).max() <= 0.51


def test_every_style_is_one_for_all_pictures(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("--styles", 3, "--seed", 5, "--truncation", 0.8, "--batch", 2)
    assert translate(run, photos, "--out", tmp_path / "out", *words) == 0
    said = capsys.readouterr()
    assert "3 pictures -> B, 3 styles" in said.out and "9 pictures in" in said.out and "9/9" in said.err
    names = [f"{i}-s0{k}.png" for i in range(3) for k in range(3)]
    assert files(tmp_path / "out") == [*names, "styles.json"]
    model = anifast.load(run, "cpu")
    grid = model.grid(
        torch.cat([read(photos / f"{i}.png") for i in range(3)]), model.random_styles(3, 5), truncation=0.8
    )
    for name, expected in zip(names, grid.flatten(0, 1).permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.abs(pixels(tmp_path / "out" / name) - (expected + 1) * 127.5).max() <= 0.51


def test_saved_styles_paint_the_same(run: Path, photos: Path, tmp_path: Path) -> None:
    assert translate(run, photos, "--out", tmp_path / "a", "--styles", 3, "--seed", 2) == 0
    saved = tmp_path / "a" / "styles.json"
    assert translate(run, photos, "--out", tmp_path / "b", "--style", saved) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert translate(run, photos, "--out", tmp_path / "c", "--style", f"{saved}#2") == 0
    assert files(tmp_path / "c") == ["0.png", "1.png", "2.png", "styles.json"]
    difference = np.abs(pixels(tmp_path / "c" / "1.png") - pixels(tmp_path / "a" / "1-s02.png"))
    assert difference.max() <= 1, "in batches of another size a value may be rounded to the neighbour"
    assert translate(run, photos, "--out", tmp_path / "a", "--style", saved) == 0, "into the folder of the file itself"
    assert saved.read_bytes() == (tmp_path / "b" / "styles.json").read_bytes()


def test_styles_of_reference_pictures(run: Path, photos: Path, drawings: list[Path], tmp_path: Path) -> None:
    model = anifast.load(run, "cpu")
    for how in ("crop", "stretch"):
        out = tmp_path / how
        assert translate(run, photos / "0.png", "--out", out, "--style", *drawings, "random", "--resize", how) == 0
        assert files(out) == ["0-s00.png", "0-s01.png", "0-s02.png", "styles.json"]
        saved = styles.load(out / "styles.json")
        assert [style.name for style in saved] == ["drawing-0.png", "drawing-1.png", "seed 0, no. 0"]
        found = model.styles_of(torch.cat([read(path, how) for path in drawings]))
        assert torch.equal(styles.codes(saved[:2]), found)
        expected = model.grid(read(photos / "0.png"), found)[0].permute(0, 2, 3, 1).numpy()
        for k in range(2):
            assert np.abs(pixels(out / f"0-s0{k}.png") - (expected[k] + 1) * 127.5).max() <= 0.51
    assert (tmp_path / "crop" / "0-s01.png").read_bytes() != (tmp_path / "stretch" / "0-s01.png").read_bytes()


@pytest.mark.filterwarnings("always:left out")
def test_styles_of_a_folder(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    paths = [picture(tmp_path / "refs" / f"{name}.png", n) for n, name in enumerate("ab")]
    (tmp_path / "refs" / "note.jpg").write_text("hello")
    assert translate(run, photos / "0.png", "--out", tmp_path / "folder", "--style", tmp_path / "refs") == 0
    warning = f"anifast: warning: left out: {tmp_path / 'refs' / 'note.jpg'}: not a picture: a text file"
    assert warning in capsys.readouterr().err.splitlines()
    assert translate(run, photos / "0.png", "--out", tmp_path / "each", "--style", *paths) == 0
    assert files(tmp_path / "folder") == ["0-s00.png", "0-s01.png", "styles.json"] == files(tmp_path / "each")
    for name in files(tmp_path / "each"):
        assert (tmp_path / "folder" / name).read_bytes() == (tmp_path / "each" / name).read_bytes()


def test_reference_pictures_are_never_replaced(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    before = picture(tmp_path / "0.png", 5).read_bytes()
    assert translate(run, photos, "--out", tmp_path, "--style", tmp_path) == 1
    assert f"{tmp_path / '0.png'}: the result would overwrite an input" in the_error(capsys.readouterr().err)
    assert files(tmp_path) == ["0.png"] and (tmp_path / "0.png").read_bytes() == before


def test_codes_of_earlier_results_are_kept(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    for seed, name, told in ((1, "styles.json", False), (2, "styles-2.json", True), (2, "styles-2.json", True)):
        assert translate(run, photos / f"{seed}.png", "--out", tmp_path, "--seed", seed) == 0
        line = f"{tmp_path / 'styles.json'} holds other styles and is kept; those painted now are in {tmp_path / name}"
        assert (line in capsys.readouterr().out.splitlines()) == told
        assert styles.load(tmp_path / name)[0].name == f"seed {seed}, no. 0"
    assert translate(run, photos / "1.png", "--out", tmp_path, "--seed", 1) == 0
    assert "kept" not in capsys.readouterr().out
    assert files(tmp_path) == ["1.png", "2.png", "styles-2.json", "styles.json"]


def test_the_other_direction(run: Path, photos: Path, drawings: list[Path], tmp_path: Path) -> None:
    assert translate(run, *drawings, "--out", tmp_path / "out", "--to", "A", "--style", photos / "0.png") == 0
    model = anifast.load(run, "cpu")
    code = model.styles_of(read(photos / "0.png"), "A")
    expected = model.translate(read(drawings[0]), "A", styles=code)[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels(tmp_path / "out" / "drawing-0.png") - (expected + 1) * 127.5).max() <= 0.51
    assert json.loads((tmp_path / "out" / "styles.json").read_text())["to"] == "A"


def test_all_of_the_mean_style(run: Path, photos: Path, tmp_path: Path) -> None:
    assert translate(run, photos / "0.png", "--out", tmp_path, "--styles", 2, "--truncation", 0, "--batch", 1) == 0
    assert (tmp_path / "0-s00.png").read_bytes() == (tmp_path / "0-s01.png").read_bytes()


def test_bf16(run: Path, photos: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        assert translate(run, photos, "--out", tmp_path / precision, "--precision", precision, "--styles", 2) == 0
    one, other = (pixels(tmp_path / name / "1-s01.png") for name in ("fp32", "bf16"))
    # some 30 roundings one behind the other, each by at most 2^-9 of what is rounded, which is up to 127.5
    assert 0 < np.abs(one - other).mean() < 30 * 2**-9 * 127.5


def test_its_own_size_may_be_named(run: Path, photos: Path, tmp_path: Path) -> None:
    assert translate(run, photos / "1.png", "--out", tmp_path, "--size", 64) == 0
    assert pixels(tmp_path / "1.png").shape == (64, 64, 3)


def test_a_file_with_one_generator(one_way: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert translate(one_way, photos, "--out", tmp_path / "out", "--styles", 2) == 0
    saved = tmp_path / "out" / "styles.json"
    assert translate(one_way, photos, "--out", tmp_path / "again", "--style", saved) == 0
    capsys.readouterr()
    assert translate(one_way, photos, "--out", tmp_path / "back", "--to", "A") == 1
    assert f"{one_way}: this model translates to B only; G_B2A" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "back").exists()


def test_damaged_pictures_among_the_inputs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    faces = tmp_path / "faces"
    for i in range(4):
        picture(faces / f"{i}.png", i)
    (faces / "1.png").write_bytes((faces / "1.png").read_bytes()[:80])
    (faces / "note.jpg").write_text("hello")
    assert translate(run, faces, "--out", tmp_path / "out", "--styles", 2, "--batch", 2) == 1
    said = capsys.readouterr()
    assert "2 of 5" in the_error(said.err) and "6 pictures in" in said.out and "8/8" in said.err
    assert str(faces / "1.png") in said.err and str(faces / "note.jpg") in said.err
    assert files(tmp_path / "out") == [*(f"{i}-s0{k}.png" for i in (0, 2, 3) for k in (0, 1)), "styles.json"]
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_results_that_are_not_finite(
    run: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    paint = Generator.paint

    def spoilt(self: Generator, content: torch.Tensor, rows: list[torch.Tensor]) -> torch.Tensor:
        result = paint(self, content, rows)
        result[-1, 0, 0, 0] = float(value)
        return result

    monkeypatch.setattr(Generator, "paint", spoilt)
    assert translate(run, photos, "--out", tmp_path / "out", "--styles", 2, "--batch", 4) == 1
    said = capsys.readouterr()
    failed = [line for line in said.err.splitlines() if line.startswith("anifast: failed: ")]
    assert len(failed) == 2 and "2 of 3" in the_error(said.err)
    assert f"{photos / '1.png'} -> 1-s01.png: " in failed[0] and f"{photos / '2.png'} -> 2-s01.png: " in failed[1]
    assert files(tmp_path / "out") == ["0-s00.png", "0-s01.png", "1-s00.png", "2-s00.png", "styles.json"]


def test_too_little_memory(
    run: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Generator, "paint", full)
    assert translate(run, photos, "--out", tmp_path / "out") == 1
    said = the_error(capsys.readouterr().err)
    assert "for 8 pictures at once" in said and said.endswith("take a smaller --batch")


def saved(path: Path, length: int = 8, to: str = "B", count: int = 1) -> Path:
    styles.save(path, [styles.Style("x", (0.5,) * length)] * count, to)
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--styles", "0"), "--styles 0: at least 1"),
        (("--styles", "2", "--style", "{drawing}"), "--styles 2: is the number of random styles"),
        (("--seed", "-1"), "--seed -1"),
        (("--seed", str(2**63)), f"--seed {2**63}"),
        (("--truncation", "-0.5"), "--truncation -0.5"),
        (("--truncation", "nan"), "--truncation nan"),
        (("--keep-size",), "--keep-size: {run} gives pictures of 64x64 pixels"),
        (("--size", "128"), "--size 128: {run} gives pictures of 64x64 pixels"),
        (("--style", "{tmp}/nowhere.png"), "{tmp}/nowhere.png: no such file"),
        (("--style", "{tmp}/nowhere.json"), "{tmp}/nowhere.json: no such file"),
        (("--style", "{empty}"), "{empty}: no picture found"),
        (("--style", "{drawing}", "--seed", "5"), "--seed 5: is the seed of random styles, and --style asks for none"),
        (("--style", "{fine}", "--seed", "0"), "--seed 0: is the seed of random styles"),
        (("--style", "{damaged}"), "{damaged}: the PNG cannot be decoded"),
        (("--style", "{drawing}", "{damaged}"), "{damaged}: the PNG cannot be decoded"),
        (("--style", "{long}"), "{long}: holds style codes of 9 numbers, but this model's have 8 (latent_dim)"),
        (("--style", "{photo styles}"), "{photo styles}: holds styles to paint A with, not B; give --to A"),
        (("--style", "{fine}#1"), "{fine}#1: there is no such style; the file has 0 to 0"),
        (("--style", "{text}"), "{text}: not a file of style codes"),
        (("--batch", "0"), "--batch 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be(
    run: Path,
    photos: Path,
    drawings: list[Path],
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    said: str,
) -> None:
    damaged = picture(tmp_path / "damaged.png", 1)
    damaged.write_bytes(damaged.read_bytes()[:80])
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "empty").mkdir()
    places = {
        "empty": tmp_path / "empty",
        "run": run,
        "tmp": tmp_path,
        "drawing": drawings[0],
        "damaged": damaged,
        "text": tmp_path / "text.json",
        "long": saved(tmp_path / "long.json", 9),
        "photo styles": saved(tmp_path / "photos.json", to="A"),
        "fine": saved(tmp_path / "fine.json"),
    }
    assert translate(run, photos, "--out", tmp_path / "out", *(word.format(**places) for word in words)) == 1
    assert said.format(**places) in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_reference_pictures_with_one_generator(
    one_way: Path, photos: Path, drawings: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    assert translate(one_way, photos, "--out", tmp_path / "out", "--style", drawings[0]) == 1
    error = the_error(capsys.readouterr().err)
    assert error.startswith(f"{one_way}: styles of pictures of B are read by the encoder of G_B2A")
    assert "random styles or saved codes" in error and not (tmp_path / "out").exists()


def test_results_never_replace_inputs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    before = picture(tmp_path / "x.png", 0).read_bytes()
    for words in ((), ("--styles", 2)):
        assert translate(run, tmp_path, "--out", tmp_path, *words) == 1
        assert "overwrite an input" in the_error(capsys.readouterr().err)
    assert files(tmp_path) == ["x.png"] and (tmp_path / "x.png").read_bytes() == before


@pytest.mark.parametrize(
    "words", [("--styles", "2"), ("--style", "x.png"), ("--seed", "1"), ("--truncation", "0.5", "--seed", "1")]
)
def test_a_model_without_styles(
    cyclegan: Path, photos: Path, tmp_path: Path, capsys: Capture, words: tuple[str, ...]
) -> None:
    assert translate(cyclegan, photos, "--out", tmp_path / "out", *words) == 1
    error = the_error(capsys.readouterr().err)
    assert all(word in error for word in words if word.startswith("--")) and f"{cyclegan} holds a model" in error
    assert not (tmp_path / "out").exists()
    assert translate(cyclegan, photos, "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["0.png", "1.png", "2.png"], "no styles.json where there are no styles"


# --- gnr


def test_grid(run: Path, photos: Path, drawings: list[Path], tmp_path: Path, capsys: Capture) -> None:
    assert gnr("grid", run, photos, "--out", tmp_path / "new" / "grid.png", "--style", *drawings) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / "new" / "grid.png") and "6/6" in said.err
    assert gnr("grid", run, photos / "0.png", photos / "1.png", "--out", tmp_path / "five.png") == 0
    assert tiles(tmp_path / "new" / "grid.png") == (4, 3), "two references over three photos"
    assert tiles(tmp_path / "five.png") == (2, 6), "two photos in five random styles"
    assert files(tmp_path) == ["five.png", "new/grid.png"]


def test_grid_has_the_paintings(run: Path, photos: Path, tmp_path: Path) -> None:
    """Every painting stands on the sheet somewhere, doubled, as that is twice its 64 pixels."""
    options = ("--styles", 2, "--seed", 3, "--truncation", 0.7, "--to", "B")
    assert gnr("grid", run, photos / "0.png", "--out", tmp_path / "grid.png", *options) == 0
    assert translate(run, photos / "0.png", "--out", tmp_path, *options) == 0
    sheet = pixels(tmp_path / "grid.png")
    for name in ("0-s00.png", "0-s01.png"):
        part = pixels(tmp_path / name).repeat(2, 0).repeat(2, 1)
        rows, columns = sheet.shape[0] - 127, sheet.shape[1] - 127
        corners = np.argwhere((np.abs(sheet[:rows, :columns] - part[0, 0]) <= 1).all(-1))
        assert any((np.abs(sheet[y : y + 128, x : x + 128] - part) <= 1).all() for y, x in corners), name


def test_interpolate(run: Path, photos: Path, drawings: list[Path], tmp_path: Path) -> None:
    saved_styles = saved(tmp_path / "s.json", count=4)
    for number, words in enumerate(
        [(), ("--between", drawings[0], "random"), ("--between", f"{saved_styles}#3", drawings[1], "--steps", 2)]
    ):
        assert gnr("interpolate", run, photos / "0.png", "--out", tmp_path / f"{number}.png", *words) == 0
    assert [tiles(tmp_path / f"{number}.png") for number in range(3)] == [(1, 6), (2, 6), (2, 3)]


def test_random_is_no_folder(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)
    assert gnr("grid", run, photos / "0.png", "--out", "sheet.png", "--style", "random") == 0
    assert translate(run, photos / "0.png", "--out", "out", "--style", "random") == 0


def test_edit(run: Path, photos: Path, drawings: list[Path], tmp_path: Path, capsys: Capture) -> None:
    words = ("--style", drawings[0], "--directions", 2, "--strength", 3, "--steps", 3, "--to", "B")
    assert gnr("edit", run, photos / "0.png", "--out", tmp_path / "edit.png", *words) == 0
    assert tiles(tmp_path / "edit.png") == (2, 4) and "6/6" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["grid", "interpolate", "edit"])
def test_pictures_that_are_left_out_of_a_sheet(run: Path, tmp_path: Path, capsys: Capture, verb: str) -> None:
    picture(tmp_path / "photos" / "x.png", 1)
    (tmp_path / "photos" / "note.jpg").write_text("hello")
    assert gnr(verb, run, tmp_path / "photos", "--out", tmp_path / "sheet.png") == 1
    said = capsys.readouterr()
    warning, error = said.err.splitlines()[0], said.err.splitlines()[-1]
    assert warning == f"anifast: warning: left out: {tmp_path / 'photos' / 'note.jpg'}: not a picture: a text file"
    assert error.startswith("anifast: error: 1 of 2 pictures could not be painted (named above)")
    assert said.out.splitlines()[-1] == str(tmp_path / "sheet.png") and tiles(tmp_path / "sheet.png")[1] == 6


@pytest.mark.filterwarnings("always:left out")
def test_a_sheet_of_the_styles_of_a_folder(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    """Of 27 pictures, with names that are long or in letters which the font lacks."""
    for n in range(27):
        picture(tmp_path / "refs" / (f"{'long ' * 20}{n}.png" if n % 2 else f"\u6f2b\u753b{n}.png"), n)
    (tmp_path / "refs" / "note.jpg").write_text("hello")
    assert gnr("grid", run, photos / "0.png", "--out", tmp_path / "sheet.png", "--style", tmp_path / "refs") == 0
    assert "warning: left out: " in capsys.readouterr().err
    assert tiles(tmp_path / "sheet.png") == (2, 28)


@pytest.mark.parametrize("verb", ["grid", "interpolate", "edit"])
def test_sheets_in_bf16_of_the_other_direction(run: Path, drawings: list[Path], tmp_path: Path, verb: str) -> None:
    words = ("--to", "A", "--precision", "bf16", "--batch", 2, "--seed", 1, "--truncation", 0.5)
    assert gnr(verb, run, drawings[1], "--out", tmp_path / "sheet.png", *words) == 0
    assert files(tmp_path) == ["sheet.png"]


def test_sheets_from_python_are_those_of_the_commands(run: Path, photos: Path, tmp_path: Path) -> None:
    from anifast.systems.gnr import sheets

    assert gnr("edit", run, photos / "0.png", "--out", tmp_path / "edit.png", "--batch", 8) == 0
    model = anifast.load(run, "cpu")
    title = "a style, moved along directions"
    drawn = sheets.edits(model, read(photos / "0.png"), model.random_styles(1), title=title, batch=8)
    assert np.array_equal(np.asarray(drawn), pixels(tmp_path / "edit.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.jpg"), "{tmp}/x.jpg: give it a name that ends with .png"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/folder.png"), "is a folder"),
        (("grid", "{run}", "{mine}", "--out", "{mine}"), "{mine}: the result would overwrite an input"),
        (("grid", "{run}", "{photo}", "--out", "{mine}", "--style", "{mine}"), "would overwrite an input"),
        (("interpolate", "{run}", "{photo}", "--out", "{mine}", "--between", "{mine}", "random"), "overwrite"),
        (("grid", "{run}", "{tmp}/no.png", "--out", "{tmp}/x.png"), "{tmp}/no.png: no such file"),
        (("grid", "{run}", "{tmp}/folder.png", "--out", "{tmp}/x.png"), "{tmp}/folder.png"),
        (("grid", "{run}", "{damaged}", "--out", "{tmp}/x.png"), "{damaged}: the PNG cannot be decoded"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--style", "{damaged}"), "{damaged}: the PNG"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--styles", "0"), "--styles 0"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--styles", "9999"), "2 rows of 10000 pictures"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--batch", "0"), "--batch 0: at least 1"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--seed", "-2"), "--seed -2"),
        (("grid", "{run}", "{photo}", "--out", "{tmp}/x.png", "--truncation", "inf"), "--truncation inf"),
        (("grid", "{cyclegan}", "{photo}", "--out", "{tmp}/x.png"), "{cyclegan}: a model of another system"),
        (("grid", "{tmp}/nowhere", "{photo}", "--out", "{tmp}/x.png"), "{tmp}/nowhere: no such checkpoint"),
        (("grid", "{one}", "{photo}", "--out", "{tmp}/x.png", "--to", "A"), "{one}: this model translates to B"),
        (("edit", "{one}", "{photo}", "--out", "{tmp}/x.png", "--style", "{photo}"), "{one}: styles of pictures"),
        (("interpolate", "{run}", "{photo}", "--out", "{tmp}/x.png", "--steps", "1"), "--steps 1: at least 2"),
        (
            ("interpolate", "{run}", "{photo}", "--out", "{tmp}/x.png", "--between", "{four}", "random"),
            "--between {four} random: gives 5 styles",
        ),
        (("edit", "{run}", "{photos}", "--out", "{tmp}/x.png"), "{photos}: holds 3 pictures; edit takes one"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--style", "{four}"), "holds 4 styles, and one"),
        (
            ("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--style", "{photo}", "--seed", "1"),
            "--seed 1: is the seed of random styles, and --style asks for none",
        ),
        (
            (
                "interpolate",
                "{run}",
                "{photo}",
                "--out",
                "{tmp}/x.png",
                "--between",
                "{photo}",
                "{mine}",
                "--seed",
                "1",
            ),
            "--seed 1: is the seed of random styles, and --between asks for none",
        ),
        (("grid", "{run}", "{photo}", "--out", "{photos}/0.png", "--style", "{photos}"), "would overwrite an input"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--directions", "0"), "--directions 0: at least 1"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--directions", "999"), "this model has 152"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--strength", "0"), "--strength 0.0: a number above"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--strength", "nan"), "--strength nan"),
        (("edit", "{run}", "{photo}", "--out", "{tmp}/x.png", "--steps", "1"), "--steps 1: at least 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_sheets_that_cannot_be(
    run: Path,
    one_way: Path,
    cyclegan: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    said: str,
) -> None:
    damaged = picture(tmp_path / "damaged.png", 1)
    damaged.write_bytes(damaged.read_bytes()[:80])
    (tmp_path / "folder.png").mkdir()
    places = {
        "run": run,
        "one": one_way,
        "cyclegan": cyclegan,
        "photo": photos / "0.png",
        "photos": photos,
        "tmp": tmp_path,
        "mine": picture(tmp_path / "mine.png", 2),
        "damaged": damaged,
        "four": saved(tmp_path / "four.json", count=4),
    }
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert gnr(*(word.format(**places) for word in words)) == 1
    assert said.format(**places) in the_error(capsys.readouterr().err)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


# --- usage


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("gnr",), "VERB"),
        (("gnr", "fly"), "'fly'"),
        (("gnr", "grid", "run", "--out", "x.png"), "CONTENT"),
        (("gnr", "grid", "run", "x.png"), "--out"),
        (("gnr", "grid", "run", "x.png", "--out", "y.png", "--steps", "3"), "--steps"),
        (("gnr", "interpolate", "run", "x.png", "--out", "y.png", "--between", "random"), "--between"),
        (("gnr", "edit", "run", "x.png", "y.png", "--out", "z.png"), "y.png"),
        (("gnr", "edit", "run", "x.png", "--out", "z.png", "--to", "C"), "'C'"),
        (("gnr", "edit", "run", "x.png", "--out", "z.png", "--dir", "2"), "--dir"),
        (("translate", "run", "x", "--out", "y", "--styles", "many"), "'many'"),
        (("translate", "run", "x", "--out", "y", "--trunc", "0"), "--trunc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(words: tuple[str, ...], named: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and named in said.err.splitlines()[-1]


def test_help_needs_no_torch() -> None:
    code = (
        "import contextlib, sys\n"
        "from anifast.cli import main\n"
        "for words in ('gnr', 'gnr grid', 'gnr interpolate', 'gnr edit', 'gnr video', 'translate'):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*words.split(), '--help'])\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
    for words in ("interpolate", "--directions", "--truncation", "one drawing style for all pictures"):
        assert words in " ".join(said.split())


def test_weights_of_the_networks_in_training_are_used_without_averages(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    torch.save(own_state(CONFIG, ema=False), tmp_path / "live.pt")
    assert translate(tmp_path / "live.pt", photos / "0.png", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1 picture -> B, 1 style, device cpu" in said and "\n1 picture in" in said


def test_networks_of_another_shape(state: dict[str, Any], photos: Path, tmp_path: Path, capsys: Capture) -> None:
    other = weights(tiny_config(latent_dim=4))
    torch.save(state | {"ema": {"G_A2B": other["G_A2B"]}}, tmp_path / "model.pt")
    assert translate(tmp_path / "model.pt", photos, "--out", tmp_path / "out") == 1
    error = the_error(capsys.readouterr().err)
    assert str(tmp_path / "model.pt") in error and "mapping.0.weight" in error
    assert not (tmp_path / "out").exists()

"""`anifast translate` and `anifast disentangle` with a disentangling network: what they do, and errors in one line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import ROOT, command, leftovers, picture, the_error
from tiny_disentangle import run_state, tiny_config, write_artists, write_digits

import anifast
from anifast import cli
from anifast.systems.cyclegan import checkpoints as cyclegan_files
from anifast.systems.cyclegan import config as cyclegan_config
from anifast.systems.cyclegan.networks import build_generator, initialise
from anifast.systems.disentangle import pictures, styles

Capture = pytest.CaptureFixture[str]
CONFIG = tiny_config()


def saved(folder: Path, stage: str, config: Any = CONFIG, **changes: Any) -> Path:
    """A run folder with this stage."""
    (folder / stage).mkdir(parents=True, exist_ok=True)
    torch.save(run_state(config, stage, **changes), folder / stage / "checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    saved(folder, "stage1", seed=1)
    return saved(folder, "stage2")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vae"), "stage1", tiny_config(style_size=0))


@pytest.fixture(scope="module")
def artists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 48 px by three artists; half of them lack a part."""
    return write_artists(tmp_path_factory.mktemp("artists"), 3, 4, 48, transparent=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of digits by writer, and the folder with their files."""
    folder = write_digits(tmp_path_factory.mktemp("digits"), 80, 6)
    model = saved(tmp_path_factory.mktemp("model"), "stage2", tiny_config(dataset="digits"), classes=6)
    state = torch.load(model / "stage2" / "checkpoint.pt", weights_only=True)
    state["classes"] = [str(7 * k + 3) for k in range(6)]
    torch.save(state, model / "stage2" / "checkpoint.pt")
    return model, folder


@pytest.fixture(scope="module")
def cyclegan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another system."""
    config = cyclegan_config.make(values={"size": 32, "blocks": 1, "width": 8, "d_width": 8})
    nets = {}
    for name in ("G_AB", "G_BA"):
        net = build_generator(config)
        initialise(net, "normal", torch.Generator().manual_seed(0))
        nets[name] = net.state_dict()
    path = tmp_path_factory.mktemp("cyclegan") / "model.pt"
    torch.save(cyclegan_files.header(config) | {"nets": nets}, path)
    return path


def translate(*words: object) -> int:
    return cli.main(command("translate", *words, "--device", "cpu"))


def disentangle(*words: object) -> int:
    return cli.main(command("disentangle", *words, *([] if words[0] == "artists" else ["--device", "cpu"])))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path, mode: str = "RGB") -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(path) as image:
        assert image.mode == mode and image.format == "PNG"
        return np.asarray(image).astype(np.int64)


def sheet(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


# --- translate


def test_results_carry_the_artist(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = artists / "artist_01"
    assert translate(run, folder, "--out", tmp_path / "out", "--artist", "artist_02", "neutral", "--batch", 3) == 0
    said = capsys.readouterr()
    assert "4 pictures -> 2 styles, device cpu" in said.out and "8/8" in said.err
    assert files(tmp_path / "out") == [f"{i:05d}-{name}.png" for i in range(4) for name in ("artist_02", "neutral")]
    model = anifast.load(run, "cpu")
    assert model.stage == "stage2"
    read = pictures.read(model, pictures.gather(model, [folder]))
    assert bool((read[:, 3] == 0).any())  # the pictures' alpha is looked at
    expected = {"artist_02": model.translate(read, artist="artist_02"), "neutral": model.translate(read)}
    for name, results in expected.items():
        for i, result in enumerate(results):
            wanted = (result.permute(1, 2, 0).numpy() + 1) * 127.5
            # rounded to the nearest of 255 steps, and what float32 does in a batch of another size
            assert np.abs(pixels(tmp_path / "out" / f"{i:05d}-{name}.png") - wanted).max() <= 0.51


def test_one_artist_and_a_list(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    one = artists / "artist_00" / "00000.png"
    assert translate(run, one, "--out", tmp_path / "a", "--artist", "artist_02") == 0
    assert "1 picture -> style artist_02, device" in capsys.readouterr().out
    assert translate(run, one, "--out", tmp_path / "b", "--artist", "artist_02,artist_00") == 0
    assert files(tmp_path / "a") == ["00000-artist_02.png"]
    assert files(tmp_path / "b") == ["00000-artist_00.png", "00000-artist_02.png"]


def test_random_styles_are_kept_and_paint_the_same_again(run: Path, artists: Path, tmp_path: Path) -> None:
    one = artists / "artist_00" / "00000.png"
    assert translate(run, one, "--out", tmp_path / "a", "--styles", 2, "--seed", 5) == 0
    assert files(tmp_path / "a") == ["00000-random-5-00.png", "00000-random-5-01.png", "styles.json"]
    held = tmp_path / "a" / "styles.json"
    assert torch.equal(styles.codes(styles.load(held, 8)), anifast.load(run, "cpu").random_styles(2, 5))
    assert translate(run, one, "--out", tmp_path / "b", "--artist", held) == 0
    assert files(tmp_path / "b") == ["00000-random-5-00.png", "00000-random-5-01.png"]
    for name in files(tmp_path / "b"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_random_styles_are_never_lost(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    one = artists / "artist_00" / "00000.png"
    for seed in (1, 2, 1):
        assert translate(run, one, "--out", tmp_path, "--artist", "random", "--seed", seed) == 0
    assert "styles-2.json" in capsys.readouterr().out
    assert [name for name in files(tmp_path) if name.endswith("json")] == ["styles-2.json", "styles.json"]


def test_a_vae_reconstructs(vae: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    one = artists / "artist_00" / "00000.png"
    assert translate(vae, one, "--out", tmp_path) == 0
    assert "-> reconstruction, device" in capsys.readouterr().out
    assert files(tmp_path) == ["00000-reconstruction.png"]


def test_grey_pictures(digits: tuple[Path, Path], tmp_path: Path) -> None:
    one = picture(tmp_path / "in" / "a.png", 0)
    assert translate(digits[0], one, "--out", tmp_path / "out", "--artist", "10") == 0
    assert pixels(tmp_path / "out" / "a-10.png", "L").shape == (28, 28)


def test_a_picture_that_cannot_be_read_leaves_the_others(run: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png", 0)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert translate(run, folder, "--out", tmp_path / "out", "--artist", "neutral") == 1
    assert "1 of 2 pictures could not be translated" in the_error(capsys.readouterr().err)
    assert files(tmp_path / "out") == ["good-neutral.png"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "paints in the styles of 3 artists; give --artist"),
        (
            ("--artist", "artist_1"),
            "artist artist_1: none of the 3 that this model knows; close are artist_00, artist_01",
        ),
        (("--artist", ","), "--artist ,: names nobody"),
        (("--artist", "none.json"), "none.json: no such file"),
        (("--styles", str(10**12)), "random styles are more than 10000"),
        (("--artist", "neutral", "--styles", "2"), "--styles 2: is the number of random styles"),
        (("--artist", "neutral", "--seed", "2"), "--seed 2: is that of random styles"),
        (("--artist", "neutral", "--to", "A"), "--to A: "),
        (("--artist", "neutral", "--truncation", "0.5"), "--truncation: "),
        (("--style", "random"), "chosen by --artist, --styles, --seed; leave it out"),
        (("--artist", "neutral", "--size", "64"), "gives pictures of 32x32 pixels"),
        (("--artist", "neutral", "--keep-size"), "--keep-size: "),
    ],
)
def test_options_that_do_not_fit(
    run: Path, artists: Path, tmp_path: Path, capsys: Capture, words: tuple[str, ...], told: str
) -> None:
    assert translate(run, artists, "--out", tmp_path / "out", *words) == 1
    assert told in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_artists_are_no_option_of_other_systems(cyclegan: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    assert translate(cyclegan, artists, "--out", tmp_path / "out", "--artist", "neutral") == 1
    assert "--artist: " in the_error(capsys.readouterr().err)
    one = artists / "artist_00" / "00000.png"
    assert translate(cyclegan, one, "--out", tmp_path / "out") == 0
    assert "1 picture -> B, device" in capsys.readouterr().out


# --- artists


def test_artists_are_listed(run: Path, vae: Path, capsys: Capture) -> None:
    assert disentangle("artists", run) == 0
    assert capsys.readouterr().out.splitlines() == ["4  artist_00", "5  artist_01", "6  artist_02"]
    assert disentangle("artists", vae) == 0
    assert "has no styles" in capsys.readouterr().err


def test_artists_of_a_file_without_numbers_of_pictures(tmp_path: Path, capsys: Capture) -> None:
    state = run_state(CONFIG, "stage2") | {"counts": None}
    torch.save(state, tmp_path / "a.pt")
    assert disentangle("artists", tmp_path / "a.pt") == 0
    assert capsys.readouterr().out.splitlines() == ["artist_00", "artist_01", "artist_02"]
    assert disentangle("export", tmp_path / "a.pt", "--out", tmp_path / "a.csv") == 0
    assert (tmp_path / "a.csv").read_text().startswith("artist,mean0,")


# --- sheets


@pytest.mark.parametrize(
    ("words", "columns", "rows"),
    [
        (("grid", "RUN", "--contents", "4"), 4, 3),
        (("grid", "RUN", "DATA", "random", "--contents", "3", "--artist", "artist_00", "neutral"), 6, 3),
        (("grid", "RUN", "DATA/artist_00", "--contents", "3", "--artist", "all", "--data", "DATA"), 5, 4),
        (("grid", "RUN", "--contents", "2", "--styles", "4", "--seed", "1"), 2, 4),
        (("contents", "RUN", "--artist", "artist_01", "--contents", "9"), 3, 3),
        (("contents", "RUN", "DATA", "--artist", "neutral", "--contents", "2"), 2, 2),
        (("reconstruct", "RUN", "DATA", "--max", "3"), 4, 3),
        (("reconstruct", "RUN", "DATA/artist_00/00000.png", "--artist", "artist_02", "--other", "random"), 4, 1),
        (("reconstruct", "VAE", "DATA", "--max", "2"), 2, 2),
        (("grid", "VAE", "DATA", "--contents", "3"), 3, 2),
    ],
)
def test_sheets(
    run: Path, vae: Path, artists: Path, tmp_path: Path, words: tuple[str, ...], columns: int, rows: int
) -> None:
    places = {"RUN": str(run), "VAE": str(vae), "DATA": str(artists)}
    given = [places.get(word, word.replace("DATA/", f"{artists}/")) for word in words]
    assert disentangle(*given, "--out", tmp_path / "sheet.png") == 0
    image = sheet(tmp_path / "sheet.png")
    # tiles of 96 with gaps of 4, under a border, a title and heads, beside labels narrower than two tiles and a gap
    assert 100 * columns + 28 <= image.width < 100 * columns + 28 + 200
    assert image.height in (100 * rows + 28 + 30, 100 * rows + 28 + 50)
    assert files(tmp_path) == ["sheet.png"] and not leftovers(tmp_path)


def test_one_content_in_many_styles(run: Path, artists: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert disentangle("styles", run, artists / "artist_00" / "00000.png", "--out", out) == 0
    assert sheet(out).size == (28 + 200, 28 + 30 + 2 * 120 + 18)
    assert disentangle("styles", run, "--styles", 9, "--seed", 3, "--out", out) == 0
    assert sheet(out).size == (28 + 300, 28 + 30 + 3 * 120 + 2 * 18)


def test_many_artists_are_thinned_out_and_told_of(tmp_path: Path, capsys: Capture) -> None:
    many = saved(tmp_path / "run", "stage2", classes=40)
    assert disentangle("grid", many, "--contents", 1, "--out", tmp_path / "sheet.png") == 0
    assert "12 of 40 artists, spread over the list" in capsys.readouterr().out
    assert disentangle("grid", many, "--artist", "all", "--contents", 1, "--out", tmp_path / "all.png") == 0
    assert sheet(tmp_path / "all.png").height == 28 + 30 + 40 * 100


def test_the_same_seed_gives_the_same_sheet(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert disentangle("grid", run, "--contents", 3, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_sheets_of_digits(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, folder = digits
    words = (model, folder, "--data", folder, "--contents", 5)
    assert disentangle("grid", *words, "--out", tmp_path / "grid.png") == 0
    assert sheet(tmp_path / "grid.png").height == 28 + 30 + 7 * 116
    assert disentangle("reconstruct", model, f"{folder}#17", "--out", tmp_path / "one.png") == 0
    assert sheet(tmp_path / "one.png").height == 28 + 50 + 116


def test_whose_pictures_are_is_not_known(run: Path, tmp_path: Path, capsys: Capture) -> None:
    one = picture(tmp_path / "in" / "a.png", 0)
    assert disentangle("reconstruct", run, one, "--out", tmp_path / "sheet.png") == 0
    assert "1 of 1 pictures stand in no folder of an artist" in capsys.readouterr().err
    assert 328 <= sheet(tmp_path / "sheet.png").width < 528  # three columns


def test_names_that_the_font_lacks(artists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anifast.engine.sheets import Block
    from anifast.systems.disentangle import sheets

    folder = saved(tmp_path / "run", "stage2")
    state = torch.load(folder / "stage2" / "checkpoint.pt", weights_only=True)
    state["classes"] = ["artist_00", "\u753b\u5bb6", "artist_02"]
    torch.save(state, folder / "stage2" / "checkpoint.pt")
    shown: list[Block] = []
    plain = sheets.sheet
    monkeypatch.setattr(sheets, "sheet", lambda blocks, **how: shown.extend(blocks) or plain(blocks, **how))
    one = artists / "artist_00" / "00000.png"
    assert disentangle("reconstruct", folder, one, "--out", tmp_path / "sheet.png") == 0
    assert shown[0].rows[0][0] == "00000.png\nby artist_00\nother: artist 1"
    assert disentangle("styles", folder, one, "--out", tmp_path / "sheet.png") == 0
    assert list(shown[1].heads) == ["content of", "artist_00"] and list(shown[2].heads) == ["style 1", "artist_02"]


# --- fit


def test_a_fitted_style_stands_in_place_of_a_name(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new.json"
    assert disentangle("fit", run, artists / "artist_01", "--steps", 5, "--name", "Jo", "--out", out) == 0
    said = capsys.readouterr()
    assert "4 pictures, the generator of stage2" in said.out and "5/5" in said.err and "distance" in said.err
    (style,) = styles.load(out, 8)
    model = anifast.load(run, "cpu")
    read = pictures.read(model, pictures.gather(model, [artists / "artist_01"]))
    # in four digits, of which the last may be rounded the other way
    told = re.search(r"distance (\d\.\d{4}) in the neutral style, (\d\.\d{4}) in this one", said.out)
    assert told and float(told[1]) == pytest.approx(model.distance(read, model.neutral()), abs=1.01e-4)
    assert float(told[2]) == pytest.approx(model.distance(read, styles.codes([style])), abs=1.01e-4)
    before = model.distance(read, model.fit_style(read, steps=4, batch=8))
    assert abs(before - float(told[2])) > 2e-4  # that is the distance before the last step
    assert style.name == "Jo" and torch.equal(styles.codes([style])[0], model.fit_style(read, steps=5, batch=8))
    one = artists / "artist_00" / "00000.png"
    assert translate(run, one, "--out", tmp_path / "out", "--artist", out) == 0
    assert files(tmp_path / "out") == ["00000-Jo.png"]
    assert disentangle("grid", run, one, "--artist", "artist_00", out, "--out", tmp_path / "sheet.png") == 0
    assert disentangle("reconstruct", run, one, "--artist", out, "--out", tmp_path / "sheet.png") == 0


def test_fit_leaves_out_what_cannot_be_read(run: Path, tmp_path: Path, capsys: Capture) -> None:
    picture(tmp_path / "in" / "a.png", 0)
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    words = ("fit", run, tmp_path / "in", "--steps", 2, "--out", tmp_path / "a.json")
    assert disentangle(*words) == 1
    assert "1 of 2 pictures could not be read (named above)" in the_error(capsys.readouterr().err)
    assert styles.load(tmp_path / "a.json", 8)
    (tmp_path / "in" / "a.png").unlink()
    assert disentangle(*words[:-1], tmp_path / "b.json") == 1
    assert "none of the pictures can be read" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "b.json").exists()


# --- export


def test_export(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    model = anifast.load(run, "cpu")
    found = pictures.gather(model, [artists])
    read = pictures.read(model, found)
    for suffix in ("npz", "pt"):
        assert disentangle("export", run, artists, "--batch", 12, "--out", tmp_path / f"a.{suffix}") == 0
    assert "codes of 12 pictures and 3 artists" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as held:
        arrays = {key: held[key] for key in held.files}
    plain = torch.load(tmp_path / "a.pt", weights_only=True)
    assert arrays["names"].tolist() == plain["names"] == [p.name for p in found]
    assert arrays["artists"].tolist() == plain["artists"] == [p.artist for p in found]
    assert arrays["classes"].tolist() == plain["classes"] == model.classes
    assert arrays["counts"].tolist() == plain["counts"].tolist() == [4, 5, 6]
    mean, std = model.encode(read)
    expected = {"mean": mean, "std": std, "style_mean": model.styles([0, 1, 2]), "style_std": model.bank.table()[1]}
    for key, value in expected.items():
        assert torch.equal(torch.from_numpy(arrays[key]), value) and torch.equal(plain[key], value)


def test_suffixes_may_be_upper_case(run: Path, tmp_path: Path) -> None:
    for suffix in ("NPZ", "PT", "CSV"):
        assert disentangle("export", run, "--out", tmp_path / f"a.{suffix}") == 0
    assert files(tmp_path) == ["a.CSV", "a.NPZ", "a.PT"] and not leftovers(tmp_path)
    with np.load(tmp_path / "a.NPZ") as held:
        assert held["classes"].tolist() == ["artist_00", "artist_01", "artist_02"]


def test_export_of_tables(run: Path, artists: Path, tmp_path: Path) -> None:
    model = anifast.load(run, "cpu")
    assert disentangle("export", run, "--out", tmp_path / "a.csv") == 0
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["artist"], row["pictures"]) for row in rows] == list(zip(model.classes, "456", strict=True))
    held = torch.tensor([[float(row[f"mean{k}"]) for k in range(8)] for row in rows])
    assert torch.equal(held, model.styles([0, 1, 2])) and "std7" in rows[0] and "mean8" not in rows[0]
    assert disentangle("export", run, artists / "artist_02", "--batch", 4, "--out", tmp_path / "b.csv") == 0
    with open(tmp_path / "b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == [f"{i:05d}.png" for i in range(4)]
    read = pictures.read(model, pictures.gather(model, [artists / "artist_02"]))
    held = torch.tensor([[float(row[f"std{k}"]) for k in range(12)] for row in rows])
    assert torch.equal(held, model.encode(read)[1]) and {row["artist"] for row in rows} == {"artist_02"}


# --- errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("grid", "RUN", "--out", "a.jpg"), "--out a.jpg: give it a name that ends with .png"),
        (("fit", "RUN", "DATA", "--out", "a.png"), "ends with .json"),
        (("export", "RUN", "DATA", "--out", "a.txt"), "ends with .npz or .pt or .csv"),
        (("grid", "RUN", "--out", "OUT.png", "--contents", "0"), "--contents 0: at least 1"),
        (("grid", "RUN", "--out", "OUT.png", "--seed", "-1"), "--seed -1"),
        (("grid", "RUN", "--out", "OUT.png", "--styles", "0"), "--styles 0: at least 1"),
        (("reconstruct", "RUN", "DATA", "--out", "OUT.png", "--max", "0"), "--max 0: at least 1"),
        (("grid", "RUN", "--out", "OUT.png", "--contents", str(10**12)), "make a sheet of"),
        (("grid", "RUN", "random", "random", "--out", "OUT.png", "--contents", "2000"), "3 rows of 4000 pictures"),
        (("contents", "RUN", "--artist", "neutral", "--out", "OUT.png", "--contents", str(10**12)), "make a sheet of"),
        (("styles", "RUN", "--out", "OUT.png", "--styles", str(10**12)), "random styles are more than 10000"),
        (("fit", "RUN", "DATA", "--out", "OUT.json", "--steps", "0"), "--steps 0: at least 1"),
        (("grid", "RUN", "none.png", "--out", "OUT.png"), "none.png: no such file"),
        (
            ("grid", "RUN", "--data", "none", "--out", "OUT.png"),
            "--data none: has no pictures by artist_00 or the others",
        ),
        (("grid", "RUN", "DATA/artist_00/00000.png", "--out", "DATA/artist_00/00000.png"), "would overwrite an input"),
        (("grid", "FIRST", "--out", "OUT.png"), "no statistics of contents"),
        (("contents", "RUN", "--artist", "all", "--out", "OUT.png"), "--artist all: gives 3 styles, and one is needed"),
        (("contents", "RUN", "--artist", "nobody", "--out", "OUT.png"), "artist nobody: none of the 3"),
        (("grid", "RUN", "--artist", ",", "--out", "OUT.png"), "--artist ,: names nobody"),
        (("reconstruct", "RUN", "DATA", "--other", ",", "--out", "OUT.png"), "--other ,: names nobody"),
        (("fit", "VAE", "DATA", "--out", "OUT.json"), "plain VAE"),
        (("export", "VAE", "--out", "OUT.csv"), "plain VAE"),
        (
            ("reconstruct", "VAE", "DATA", "--other", "neutral", "--out", "OUT.png"),
            "--other: this model is a plain VAE",
        ),
        (("styles", "CYCLEGAN", "--out", "OUT.png"), "model of another system"),
    ],
)
def test_errors(
    run: Path,
    vae: Path,
    cyclegan: Path,
    artists: Path,
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    told: str,
) -> None:
    places = {"RUN": run, "FIRST": run / "stage1", "VAE": vae, "CYCLEGAN": cyclegan, "DATA": artists}
    given = [str(places.get(word, word)).replace("DATA/", f"{artists}/") for word in words]
    before = {path: path.read_bytes() for path in artists.rglob("*.png")}
    assert disentangle(*(word.replace("OUT", str(tmp_path / "out" / "a")) for word in given)) == 1
    assert told in the_error(capsys.readouterr().err)
    assert files(tmp_path) == [] and not Path("a.jpg").exists()
    assert {path: path.read_bytes() for path in artists.rglob("*.png")} == before


def test_sheets_that_are_too_large(
    run: Path, artists: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", str(96 * 96 * 10))
    assert disentangle("grid", run, "--out", tmp_path / "a.png") == 1
    assert "make a sheet of" in the_error(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_styles_of_another_system_are_refused(run: Path, artists: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "styles.json"
    path.write_text(json.dumps({"format": "anifast.gnr.styles/1", "latent_dim": 8, "to": "B", "styles": []}))
    assert translate(run, artists, "--out", tmp_path / "out", "--artist", path) == 1
    assert "format 'anifast.gnr.styles/1'" in the_error(capsys.readouterr().err)


def help_of(capsys: Capture, *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_says_how_many_styles_an_option_takes(capsys: Capture) -> None:
    several = "the name of an artist, or several with commas between them; neutral; random; all"
    text = help_of(capsys, "translate")
    assert several in text and "INPUTs stand before it" in text
    grid = help_of(capsys, "disentangle", "grid")
    assert several in grid and "CONTENTs stand before it" in grid and "every artist, a row" not in grid
    assert several in help_of(capsys, "disentangle", "styles")
    for verb in ("contents", "reconstruct"):
        text = help_of(capsys, "disentangle", verb)
        assert "the name of an artist; neutral; random; or one of a file" in text and "several" not in text
    assert "--max N" in text and "--contents" not in text


def test_help_says_whose_generator_a_style_is_fitted_to(capsys: Capture) -> None:
    text = help_of(capsys, "disentangle", "fit")
    assert "extension of ours" in text and "stage 2's generator" in text and "RUN/stage1" in text


@pytest.mark.parametrize("verb", ["grid", "styles"])
def test_an_option_has_one_name(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        disentangle(verb, "run", "--out", "a.png", "--artists", "all")
    assert "unrecognized arguments: --artists" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\nfrom anifast import cli\n"
        "try:\n    cli.main(['disentangle', 'grid', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--artist STYLE" in done.stdout and "--contents N" in done.stdout

"""Painting with a disentangling network from Python: what it computes, and one clear error for what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_disentangle import run_state, tiny_config, write_artists, write_digits
from torch import Tensor

import anifast
from anifast.engine.plots import PAPER
from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.systems.disentangle import codes, pictures, sheets, styles
from anifast.systems.disentangle.inference import Model, load
from anifast.systems.disentangle.networks import networks
from anifast.systems.disentangle.styles import Style

CPU = torch.device("cpu")
CONFIG = tiny_config()
GREY = tiny_config(dataset="digits")
COLOUR = tiny_config(channels=3)
VAE = tiny_config(style_size=0)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return run_state(CONFIG, "stage2")


@pytest.fixture(scope="module")
def model(state: dict[str, Any]) -> Model:
    return load(state, CPU)


@pytest.fixture(scope="module")
def vae() -> Model:
    return load(run_state(VAE, "stage1"), CPU)


@pytest.fixture(scope="module")
def artists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artists(tmp_path_factory.mktemp("artists"), 3, 4, 48, transparent=True)


def images(count: int, channels: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth ones; alpha is 0, 1 and between."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=source) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    if channels == 4:
        smooth[:, 3] = (smooth[:, 3] + 0.5).clamp(0, 1)
    return smooth


def nets(state: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Those of a checkpoint, filled plainly."""
    found = networks(CONFIG, state["counts"] / state["counts"].sum(), "stage2")
    for name, net in found.items():
        net.load_state_dict(state["nets"][name])
        net.to(dtype).requires_grad_(False)
    return found


def exact(state: dict[str, Any], x: Tensor, labels: list[int]) -> tuple[Tensor, Tensor, float]:
    """Contents and pictures by the formula G(mean of E(x), mean of S(a)) in float64, and what float32 may differ by.

    That is twice what the networks' own float32 results differ by, and one rounding of the largest number.
    """

    def computed(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        found = nets(state, dtype)
        seen = x.to(dtype)
        seen = torch.cat([seen[:, :3] * (seen[:, 3:] > 0), seen[:, 3:]], 1)
        content, style = found["E"](seen)[0], found["S"](torch.tensor(labels))[0]
        return content, found["G"](torch.cat([content, style], 1))

    (content, painted), (plain_content, plain_painted) = computed(torch.float64), computed(torch.float32)
    worst = max(float((plain_content - content).abs().max()), float((plain_painted - painted).abs().max()))
    largest = max(float(content.abs().max()), 1.0)
    return content, painted, 2 * worst + largest * torch.finfo(torch.float32).eps


# --- what it computes


def test_translate_is_the_formula(model: Model, state: dict[str, Any]) -> None:
    x, labels = images(5), [2, 0, 1, 1, 0]
    content, painted, room = exact(state, x, labels)
    assert (model.contents(x, batch=2) - content).abs().max() <= room
    found = model.translate(x, artist=labels, batch=2)
    assert found.shape == (5, 3, 32, 32) and found.dtype == torch.float32 and not found.requires_grad
    assert (found - painted).abs().max() <= room
    assert (painted[3] - painted[2]).abs().max() > 1000 * room  # pictures differ by far more
    names = [model.classes[k] for k in labels]
    assert torch.equal(model.translate(x, artist=names, batch=2), found)
    assert torch.equal(model.translate(x, artist=model.styles(names), batch=2), found)
    assert torch.equal(model.reconstruct(x, names, batch=2), found)


def test_one_artist_for_all_and_neutral(model: Model, state: dict[str, Any]) -> None:
    x = images(3)
    _, painted, room = exact(state, x, [1, 1, 1])
    assert (model.translate(x, artist="artist_01") - painted).abs().max() <= room
    assert torch.equal(model.translate(x, artist=1), model.translate(x, artist="artist_01"))
    neutral = model.translate(x)
    assert torch.equal(neutral, model.paint(model.contents(x), torch.zeros(8)))
    assert torch.equal(neutral, model.translate(x, artist=model.neutral()))
    assert (neutral - painted).abs().max() > 1000 * room


def test_stage_two_paints_and_statistics_are_its_own(state: dict[str, Any], tmp_path: Path) -> None:
    for stage, seed in (("stage1", 1), ("stage2", 0)):
        (tmp_path / stage).mkdir()
        torch.save(run_state(CONFIG, stage, seed=seed), tmp_path / stage / "checkpoint.pt")
    model = anifast.load(tmp_path, "cpu")
    assert isinstance(model, Model) and model.stage == "stage2" and not model.averaged
    x = images(2)
    assert torch.equal(model.translate(x, artist=0), load(state, CPU).translate(x, artist=0))
    first = anifast.load(tmp_path / "stage1", "cpu")
    assert first.stage == "stage1" and not torch.equal(first.translate(x, artist=0), model.translate(x, artist=0))


def test_no_alpha_is_opaque(model: Model) -> None:
    x = images(3, channels=3)
    whole = torch.cat([x, torch.ones(3, 1, 32, 32)], 1)
    assert torch.equal(model.contents(x), model.contents(whole))


def test_what_is_transparent_is_not_looked_at(model: Model) -> None:
    x = images(3)
    other = x.clone()
    hidden = (x[:, 3:] == 0).expand(-1, 3, -1, -1)
    assert hidden.any() and not hidden.all()
    other[:, :3][hidden] = 0.7
    assert torch.equal(model.contents(x), model.contents(other))
    other[:, 3] = 1
    assert not torch.equal(model.contents(x), model.contents(other))


@pytest.mark.parametrize(("config", "channels"), [(GREY, 1), (COLOUR, 3)])
def test_grey_and_colour_without_alpha(config: Any, channels: int) -> None:
    model = load(run_state(config, "stage2"), CPU)
    painted = model.translate(images(2, channels, config.size), artist=1)
    assert painted.shape == (2, channels, config.size, config.size)
    with pytest.raises(ValueError, match=rf"expected N,{channels},"):
        model.translate(images(2, 4, config.size), artist=1)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_batch(model: Model, count: int) -> None:
    painted = model.translate(images(count), artist=0, batch=3)
    assert painted.shape == (count, 3, 32, 32)
    assert model.encode(images(count))[1].shape == (count, 12)
    grid = list(model.paint_all(model.contents(images(count)), model.styles([0, 1]), batch=3))
    assert sum(map(len, grid)) == 2 * count and all(len(part) <= 3 for part in grid)


def test_paint_all_paints_the_first_content_in_all_styles_first(model: Model, state: dict[str, Any]) -> None:
    x = images(2)
    room = exact(state, x, [0, 1])[2]
    contents, some = model.contents(x), model.styles([0, 2, 1])
    grid = torch.cat(list(model.paint_all(contents, some, batch=4)))
    for n in range(2):
        for s in range(3):
            assert (grid[3 * n + s] - model.paint(contents[n], some[s])[0]).abs().max() <= room


def test_bf16_stays_near_and_types_are_kept(model: Model, state: dict[str, Any]) -> None:
    half = load(state, CPU, precision="bf16")
    x = images(4)
    found, full = half.translate(x, artist=0), model.translate(x, artist=0)
    assert found.dtype == torch.float32 and not torch.equal(found, full)
    # bf16 has 8 binary digits: each of the 16 layers in a row may round by half of the last, and what it was given too.
    assert (found - full).abs().mean() <= 16 * 2**-8
    assert model.translate(x.double(), artist=0).dtype == torch.float64
    assert half.encode(x)[0].dtype == torch.float32


def test_no_gradient(model: Model) -> None:
    x = images(2).requires_grad_()
    assert not model.translate(x, artist=0).requires_grad
    assert not any(value.requires_grad for net in model._nets.values() for value in net.parameters())


# --- random codes


def test_random_codes_are_those_of_the_statistics(model: Model, state: dict[str, Any]) -> None:
    noise = torch.randn(12, generator=torch.Generator().manual_seed(5)).double()
    expected = codes.random_contents(state["statistics"], noise[None]).float()
    assert torch.equal(model.random_contents(1, seed=5), expected)
    noise = torch.randn(8, generator=torch.Generator().manual_seed(5)).double()
    assert torch.equal(model.random_styles(1, seed=5), codes.random_styles(model.bank, noise[None]).float())


def test_random_codes_do_not_depend_on_how_many(model: Model) -> None:
    for drawn in (model.random_contents, model.random_styles):
        many = drawn(5, seed=1)
        # float64 sums of another order may be rounded to float32 the other way
        assert torch.allclose(drawn(2, seed=1), many[:2], rtol=torch.finfo(torch.float32).eps, atol=1e-12)
        assert not torch.equal(drawn(5, seed=2), many) and drawn(0).shape[0] == 0
        with pytest.raises(ValueError, match="negative"):
            drawn(-1)


def test_random_contents_need_the_stage_encode() -> None:
    model = load(run_state(CONFIG, "stage1"), CPU)
    assert model.random_styles(2).shape == (2, 8)
    with pytest.raises(CheckpointError, match="--stage encode"):
        model.random_contents(1)


# --- the style of an unknown artist


def objective(model: Model, x: Tensor, style: Tensor, weight: float = 1e-3) -> float:
    """The mean of distances, weighted by alpha, and the penalty, written out."""
    painted = model.paint(model.contents(x), style).double()
    distance = ((x[:, :3].double() - painted).square().sum(1) + 1e-8).sqrt()
    alpha = x[:, 3].double()
    return float(((distance * alpha).sum((1, 2)) / alpha.sum((1, 2))).mean()) + weight * float(style.square().mean())


def test_fit_style_finds_the_style_of_what_it_painted_itself(model: Model) -> None:
    # Of opaque pictures whose contents the encoder finds only roughly: what counts is that the objective falls
    x = torch.cat([model.paint(model.contents(images(4)), model.styles([1])), torch.ones(4, 1, 32, 32)], 1)
    told: list[float] = []
    style = model.fit_style(x, steps=60, on_step=told.append)
    assert style.shape == (8,) and not style.requires_grad and len(told) == 60
    neutral = objective(model, x, model.neutral()[0])
    assert told[0] == pytest.approx(neutral, rel=1e-5)
    assert objective(model, x, style) < 0.95 * neutral
    assert objective(model, x, style) <= objective(model, x, model.styles([1])[0])


def test_fit_style_is_adam_on_the_objective(model: Model, state: dict[str, Any]) -> None:
    x = images(5)

    def plainly(dtype: torch.dtype) -> Tensor:
        found, alpha = nets(state, dtype), x[:, 3].to(dtype)
        seen = (x[:, :3] * (x[:, 3:] > 0)).to(dtype)
        content = found["E"](torch.cat([seen, alpha[:, None]], 1))[0]
        style = torch.zeros(8, dtype=dtype, requires_grad=True)
        adam = torch.optim.Adam([style], lr=0.05)
        for _ in range(6):
            adam.zero_grad()
            painted = found["G"](torch.cat([content, style.expand(5, -1)], 1))
            distance = ((seen - painted).square().sum(1) + 1e-8).sqrt()
            loss = ((distance * alpha).sum((1, 2)) / alpha.sum((1, 2))).mean() + 1e-3 * style.square().mean()
            loss.backward()
            adam.step()
        return style.detach()

    expected = plainly(torch.float64)
    # float32's own error, to which the order of sums and the parts of the batch add as much again, and once more
    room = 3 * float((plainly(torch.float32) - expected).abs().max()) + torch.finfo(torch.float32).eps
    for batch in (2, 5):
        assert (model.fit_style(x, steps=6, batch=batch) - expected).abs().max() <= room
    assert room < 1e-3 < expected.abs().min()


def test_distance_is_that_of_the_objective(model: Model) -> None:
    x, style = images(5), model.styles([1])[0]
    assert bool(((x[:, 3] > 0) & (x[:, 3] < 1)).any())
    room = 1024 * torch.finfo(torch.float32).eps  # a rounding for each pixel of a sum, all the same way
    for batch in (2, 5):
        assert model.distance(x, style, batch) == pytest.approx(objective(model, x, style, 0.0), rel=room)
    assert model.distance(x, style[None]) == model.distance(x, style)
    told: list[float] = []
    fitted = model.fit_style(x, steps=3, on_step=told.append)
    again: list[float] = []
    model.fit_style(x, steps=4, on_step=again.append)
    # a fourth step begins from what three steps have found
    assert again[3] == pytest.approx(model.distance(x, fitted), rel=room)
    assert again[3] != pytest.approx(told[-1], rel=room)
    for wrong in ((images(0), style), (x, model.styles([0, 1]))):
        with pytest.raises(ValueError, match="at least one image and one style"):
            model.distance(*wrong)
    with pytest.raises(AnifastError, match="not finite"):
        model.distance(x, torch.full((8,), math.nan))


def test_fit_style_leaves_the_model_as_it_is(model: Model) -> None:
    before = model.translate(images(2), artist=0)
    model.fit_style(images(2), steps=2)
    assert torch.equal(model.translate(images(2), artist=0), before)
    assert all(value.grad is None for net in model._nets.values() for value in net.parameters())


def test_fit_style_refuses_what_cannot_be(model: Model, vae: Model, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        model.fit_style(images(0))
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"weight": -1.0}):
        with pytest.raises(ValueError, match="steps"):
            model.fit_style(images(1), **wrong)  # type: ignore[arg-type]
    with pytest.raises(AnifastError, match="plain VAE"):
        vae.fit_style(images(1))
    clear = images(2)
    clear[:, 3] = 0
    with pytest.raises(AnifastError, match="transparent"):
        model.fit_style(clear)
    broken = {name: dict(net) for name, net in state["nets"].items()}
    broken["G"]["fc.0.bias"] = torch.full_like(broken["G"]["fc.0.bias"], math.nan)
    with pytest.raises(AnifastError, match="not finite"):
        load(state | {"nets": broken}, CPU).fit_style(images(1), steps=2)


# --- errors


def test_unknown_artists(model: Model) -> None:
    with pytest.raises(
        AnifastError, match=r"artist artist_1: none of the 3 .* close are artist_00, artist_01,"
    ) as told:
        model.styles(["artist_1"])
    assert "disentangle artists" in str(told.value)
    with pytest.raises(AnifastError, match="they are artist_00, artist_01, artist_02 "):
        model.styles(["zzz"])
    for number in (-1, 3):
        with pytest.raises(AnifastError, match="knows 3, by number 0 to 2"):
            model.styles([number])
    many = load(run_state(CONFIG, "stage2", classes=40), CPU)
    with pytest.raises(AnifastError, match=r"none of the 40 .*, \.\.\. \("):
        many.styles(["zzz"])
    assert model.styles([]).shape == (0, 8)


def test_wrong_images(model: Model) -> None:
    for wrong, told in (
        (images(2, size=40), "takes 32x32 pixels only, got 40x40"),
        (images(2, channels=1), r"expected N,3 or 4,32,32 \(3 or 4 channels\), got \(2, 1, 32, 32\)"),
        (images(2)[0], "expected N,3 or 4,32,32"),
        ((images(2) * 100).to(torch.uint8), "expected floats"),
    ):
        with pytest.raises(ValueError, match=told):
            model.translate(wrong, artist=0)
    with pytest.raises(ValueError, match="batch: 0"):
        model.encode(images(1), batch=0)


def test_wrong_codes(model: Model) -> None:
    contents = model.contents(images(3))
    with pytest.raises(ValueError, match=r"styles: expected codes \[N, 8\] or \[8\], got \[7\]"):
        model.paint(contents, torch.zeros(7))
    with pytest.raises(ValueError, match=r"contents: expected codes \[N, 12\]"):
        model.paint(torch.zeros(3, 8), torch.zeros(8))
    with pytest.raises(ValueError, match="2 for 3 contents"):
        model.paint(contents, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="floats"):
        model.paint(contents, torch.zeros(8, dtype=torch.int64))


def test_files_that_do_not_paint(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"classifier \(C2\), which does not paint"):
        load(run_state(CONFIG, "classifier"), CPU)
    with pytest.raises(AnifastError, match="precision 'fp8'"):
        load(state, CPU, precision="fp8")
    with pytest.raises(AnifastError, match="no option truncation"):
        load(state, CPU, truncation=1)


def test_a_plain_vae(vae: Model) -> None:
    x = images(2)
    assert vae.style_size == 0 and vae.translate(x).shape == (2, 3, 32, 32)
    assert torch.equal(vae.translate(x), vae.paint(vae.contents(x), vae.neutral()))
    for wrong in (lambda: vae.styles([0]), lambda: vae.random_styles(1), lambda: vae.translate(x, artist=0)):
        with pytest.raises(AnifastError, match="plain VAE"):
            wrong()
    assert [style.code for style in styles.gather(vae, [])] == [()]
    with pytest.raises(AnifastError, match="--artist: this model is a plain VAE"):
        styles.gather(vae, ["artist_00"])


# --- pictures


def test_pictures_are_read_as_training_reads_them(artists: Path) -> None:
    from anifast.data.labelled import load_artists
    from anifast.systems.disentangle.augmentation import prepare

    for crop in (0, 40):
        config = tiny_config(crop_size=crop)
        model = load(run_state(config, "stage2"), CPU)
        data = load_artists(artists, 32, crop_size=crop, channels=4, min_images=1)
        assert (data.batch(range(12))[0][:, 3] == 0).any()
        for row, name in enumerate(data.names):
            assert torch.equal(model.read(artists / name), prepare(data.batch([row])[0])[0])


def test_folders_tell_the_artist(model: Model, artists: Path) -> None:
    found = pictures.gather(model, [artists, artists / "artist_01", artists / "artist_02" / "00001.png"])
    assert [picture.artist for picture in found[:12]] == [f"artist_0{k}" for k in range(3) for _ in range(4)]
    assert [picture.artist for picture in found[12:]] == ["artist_01"] * 4 + ["artist_02"]
    assert [p.name for p in pictures.gather(model, [artists], 3)] == [
        f"artist_0{k}/0000{k and 0}.png" for k in range(3)
    ]
    read = [part for _, part in pictures.batches(model, found, "crop", 5, {})]
    assert [len(part) for part in read] == [5, 5, 5, 2] and torch.equal(torch.cat(read), pictures.read(model, found))


def test_pictures_of_no_known_artist(model: Model, artists: Path, tmp_path: Path) -> None:
    other = tmp_path / "stranger" / "a.png"
    other.parent.mkdir()
    Image.new("RGB", (32, 32), "red").save(other)
    assert [p.artist for p in pictures.gather(model, [other, other.parent, tmp_path])] == [None] * 3
    failed: dict[str, str] = {}
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    broken = [*pictures.gather(model, [tmp_path / "b.png"]), *pictures.gather(model, [other])]
    assert [len(part) for part, _ in pictures.batches(model, broken, "crop", 4, failed)] == [1]
    assert list(failed) == ["b.png"]
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        pictures.read(model, pictures.gather(model, [tmp_path / "none.png"]))


def test_digits_come_from_their_files(tmp_path: Path) -> None:
    from anifast.data.digits import load_digits

    folder = write_digits(tmp_path / "digits", 60, 6)
    state = run_state(GREY, "stage2", classes=6)
    digits = load_digits(folder)
    state["classes"] = [str(number) for number in digits.writer_ids.tolist()]
    model = load(state, CPU)
    found = pictures.gather(model, [folder, f"{folder}#17"])
    assert len(found) == 61 and found[60].name == found[17].name
    expected = digits.images[:, None].float() / 127.5 - 1
    assert torch.equal(pictures.read(model, found[:60]), expected)
    assert [p.artist for p in found[:60]] == [state["classes"][w] for w in digits.writer.tolist()]
    assert len(pictures.gather(model, [folder], 7)) == 7
    real = pictures.of_artists(model, folder, state["classes"], 2, "crop")
    assert real.shape == (6, 2, 1, 28, 28) and any(torch.equal(real[3, 0], one) for one in expected[digits.writer == 3])
    with pytest.raises(DataError, match="there are 0 to 59"):
        pictures.gather(model, [f"{folder}#60"])


def test_real_pictures_of_artists(model: Model, artists: Path, tmp_path: Path) -> None:
    real = pictures.of_artists(model, artists, ["artist_02", "neutral"], 2, "crop")
    own = pictures.read(model, pictures.gather(model, [artists / "artist_02"]))
    assert torch.equal(real[0], own[[0, 2]]) and bool((real[1] == 1).all())
    with pytest.raises(DataError, match="no pictures by nobody"):
        pictures.of_artists(model, artists, ["nobody"], 2, "crop")


# --- styles by words


def test_words_for_styles(model: Model, tmp_path: Path) -> None:
    saved = tmp_path / "x, y.json"
    styles.save(saved, [Style("one", (0.5,) * 8), Style("two", (1.5,) * 8)])
    words = ["artist_02", "artist_00, artist_01", "neutral", "random", str(saved), f"{saved}#1", "all", "random"]
    found = styles.gather(model, words, count=2, seed=4)
    names = ["artist_02", "artist_00", "artist_01", "neutral", "random-4-00", "random-4-01", "one", "two", "two"]
    assert [s.name for s in found] == [*names, "artist_00", "artist_01", "artist_02", "random-4-02", "random-4-03"]
    table = styles.codes(found)
    assert torch.equal(table[:3], model.styles([2, 0, 1])) and not table[3].any() and bool((table[8] == 1.5).all())
    assert torch.equal(table[[4, 5, 12, 13]], model.random_styles(4, 4))
    with pytest.raises(AnifastError, match="--styles 2: is the number of random styles"):
        styles.gather(model, ["neutral"], count=2)
    with pytest.raises(AnifastError, match="--seed -1"):
        styles.gather(model, ["random"], seed=-1)
    with pytest.raises(DataError, match="the file has 0 to 1"):
        styles.gather(model, [f"{saved}#2"])


def test_an_artist_who_is_called_like_a_word_goes_first() -> None:
    state = run_state(CONFIG, "stage2")
    state["classes"] = ["neutral", "all", "a,b"]
    model = load(state, CPU)
    found = styles.gather(model, ["neutral", "all", "a,b"])
    assert torch.equal(styles.codes(found), model.styles([0, 1, 2]))


def test_a_file_may_stand_in_a_list_with_commas(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    styles.save("new.json", [Style("one", (0.5,) * 8), Style("two", (1.5,) * 8)])
    assert [s.name for s in styles.gather(model, ["neutral,new.json"])] == ["neutral", "one", "two"]
    assert [s.name for s in styles.gather(model, ["artist_01, new.json#1"])] == ["artist_01", "two"]
    styles.save("neutral,new.json", [Style("whole", (2.5,) * 8)])  # now there is such a file
    assert [s.name for s in styles.gather(model, ["neutral,new.json"])] == ["whole"]
    assert [s.name for s in styles.gather(model, ["neutral,new.json#0"])] == ["whole"]
    names = ",".join(["artist_00"] * 40)  # longer than a file's name may be
    assert [s.name for s in styles.gather(model, [f"{names},new.json#0"])] == ["artist_00"] * 40 + ["one"]


def test_words_that_name_nobody(model: Model) -> None:
    for words in ([","], [" , ,"], []):
        with pytest.raises(AnifastError, match=r"--other.*: names nobody; .*disentangle artists"):
            styles.gather(model, words, option="--other")


def test_too_many_random_styles_are_refused_before_they_are_drawn(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(styles, "_MOST", 6)
    assert len(styles.gather(model, ["random", "neutral", "random"], count=3)) == 7
    monkeypatch.setattr(Model, "random_styles", lambda *_: pytest.fail("drawn"))
    for words, count in ((["random"], 10**12), (["random", "random"], 4)):
        with pytest.raises(AnifastError, match=f"--styles {count}: {count * len(words)} .* more than 6; take fewer"):
            styles.gather(model, words, count=count)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not a file of styles"),
        ("[]", "format None"),
        ('{"format": "anifast.gnr.styles/1"}', "format 'anifast.gnr.styles/1'"),
        ('{"format": "anifast.disentangle.styles/1", "style_size": 8, "styles": []}', "at least one"),
        (
            '{"format": "anifast.disentangle.styles/1", "style_size": 1, "styles": [{"name": "a", "code": [1]}]}',
            "1 num",
        ),
        ('{"format": "anifast.disentangle.styles/1", "style_size": 8, "styles": [{"name": "a"}]}', "style 0 is not"),
    ],
)
def test_damaged_files_of_styles(model: Model, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        styles.gather(model, [str(path)])


def test_styles_that_are_not_finite_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    styles.save(path, [Style("a", (math.nan,) * 8)])
    with pytest.raises(DataError, match="finite"):
        styles.load(path)
    with pytest.raises(DataError, match="no such file"):
        styles.load(tmp_path / "none.json")


def test_saved_styles_are_exact(model: Model, tmp_path: Path) -> None:
    (style,) = styles.gather(model, ["artist_01"])
    styles.save(tmp_path / "a.json", [style])
    assert styles.load(tmp_path / "a.json", 8) == [style]
    assert json.loads((tmp_path / "a.json").read_text())["format"] == "anifast.disentangle.styles/1"


def test_labels_of_results_fit_file_names(model: Model) -> None:
    words = [
        Style("a b/c", (0.0,) * 8),
        Style("A b\\c", (0.0,) * 8),
        Style("x" * 300, (0.0,) * 8),
        Style("", (0.0,) * 8),
    ]
    assert styles.Painter(model, words).labels == ("-a_b_c", "-A_b_c-2", "-" + "x" * 60, "-style")


# --- sheets


def tiles(image: Image.Image, left: int, top: int, side: int) -> np.ndarray[Any, Any]:
    return np.asarray(image)[top : top + side, left : left + side]


def painted(model: Model, content: Tensor, style: Tensor) -> np.ndarray[Any, Any]:
    """A tile of side 96: each pixel three times."""
    from anifast.data.folders import to_uint8

    return to_uint8(model.paint(content, style))[0].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)


def near(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Alike but for one step of 255, as results in batches of other sizes round differently."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def test_grid_has_artists_in_rows_and_contents_in_columns(model: Model) -> None:
    contents, some = model.random_contents(4), model.styles([0, 1, 2])
    told: list[int] = []
    image = sheets.grid(model, contents, some, names=["", "", ""], batch=5, on_painted=told.append)
    assert sum(told) == 12 and max(told) <= 5
    for row in range(3):
        for column in range(4):
            found = tiles(image, image.width - 14 - 400 + column * 100, 14 + 30 + row * 100, 96)
            assert near(found, painted(model, contents[column], some[row]))


def test_sheets_show_what_they_are_of(model: Model, artists: Path) -> None:
    x = pictures.read(model, pictures.gather(model, [artists], 3))
    contents, some = model.contents(x), model.styles([0, 1])
    real = x[:2, None].expand(-1, 2, -1, -1, -1)
    plain = sheets.grid(model, contents, some, names=["a", "b"])
    first = sheets.grid(model, contents, some, names=["a", "b"], originals=x)
    beside = sheets.grid(model, contents, some, names=["a", "b"], originals=x, real=real)
    assert first.height == plain.height + 100 and beside.height == first.height and beside.width > first.width + 200
    once = sheets.one_content(model, contents[:1], some, names=["a", "b"], original=x[:1])
    assert once.height > 2 * 96
    pairs = sheets.one_style(model, contents, some[:1], name="a", originals=x)
    assert pairs.width == 14 * 2 + 4 * 100  # six pictures in rows of four
    again = sheets.again(model, x, some[[0, 0, 1]], some[[1, 1, 0]], names=["a", "b", "c"], known=[True, False, True])
    unknown = sheets.again(model, x, None, some[[1, 1, 0]], names=["a", "b", "c"])
    assert again.width == unknown.width + 100
    columns = again.width - 14 - 4 * 100
    white = tiles(again, columns + 100, 14 + 50 + 100, 96)
    assert (white == PAPER[0]).all() and near(
        tiles(again, columns + 300, 14 + 50 + 200, 96), painted(model, contents[2], some[0])
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shown(channels: int) -> None:
    x = torch.full((2, channels, 1, 2), -0.2)  # 102 of 255
    if channels == 4:
        x[:, 3] = torch.tensor([1.0, 0.0])  # the second pixel is transparent
    found = sheets.shown(x)
    assert found.shape == (2, 3, 1, 2) and found.dtype == torch.uint8
    assert (found[..., 0] == 102).all() and (found[..., 1] == (255 if channels == 4 else 102)).all()


def test_transparent_parts_are_white_on_sheets(model: Model) -> None:
    x = images(1)
    x[:, 3] = 0
    image = sheets.again(model, x, None, model.styles([0]), names=["a"])
    assert (tiles(image, image.width - 14 - 300, 14 + 50, 96) == 255).all()


def test_sheets_refuse_what_is_too_large_or_broken(
    model: Model, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {name: dict(net) for name, net in state["nets"].items()}
    broken["G"]["fc.0.bias"] = torch.full_like(broken["G"]["fc.0.bias"], math.nan)
    with pytest.raises(AnifastError, match="not finite"):
        sheets.grid(load(state | {"nets": broken}, CPU), torch.zeros(1, 12), torch.zeros(1, 8), names=["a"])
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", str(5 * 96 * 96))
    sheets.check_room(model, 1, 5)
    with pytest.raises(AnifastError, match="take fewer"):
        sheets.grid(model, torch.zeros(3, 12), torch.zeros(2, 8), names=["a", "b"])

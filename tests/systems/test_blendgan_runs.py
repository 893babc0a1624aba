"""Runs of BlendGAN: all stages at once or one by one, interrupted and resumed, adapted, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stepping import assert_same, killed, rows_of, words
from tiny_blendgan import TINY, tiny_config, write_run
from tiny_cyclegan import ROOT, command, leftovers, own_cache, picture, read, the_error
from torch import Tensor

from anifast import cli, systems
from anifast.engine.distributed import Team
from anifast.errors import CheckpointError, DataError, ToldElsewhere
from anifast.nn import perceptual, stylegan2
from anifast.systems.blendgan import checkpoints, codes, contrast, inversion, psp, stages, training
from anifast.systems.blendgan.config import Config
from anifast.systems.blendgan.contrast import Style
from anifast.systems.blendgan.inversion import Inversion
from anifast.systems.blendgan.training import Gan

Capture = pytest.CaptureFixture[str]
STAGES = ("style", "gan")
BATCH = {"style": 4, "gan": 2, "psp": 2}
#: Networks as small as they can be; penalties and a step with neither within four steps.
SMALL: dict[str, Any] = TINY | {"style_dim": 16, "base_channels": 8, "r1_every": 3, "path_every": 2, "ema": 0.9}
#: Odd intervals, so that checkpoints, log lines and sheets do not fall together.
INTERVALS = ("--log-every", 4, "--save-every", 6, "--sheet-every", 5)


@pytest.fixture(scope="module", autouse=True)
def few_gram_matrices() -> Iterator[None]:
    """Of two layers with 64 and 128 channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(perceptual.STYLE_LAYERS, "random", (3, 8))
        yield


def train(data: Path, out: Path, *options: object) -> int:
    """`anifast train blendgan` in this process; the exit code."""
    return cli.main(command("train", "blendgan", "--data", data, "--out", out, "--device", "cpu", *options))


def fresh(data: Path, out: Path, *options: object, **changes: Any) -> int:
    """A new run with the tiny networks. (The later of two equal options counts.)"""
    return train(data, out, *words(SMALL, **changes), *INTERVALS, *options)


def portraits(root: Path, faces: int = 6, styles: int = 5) -> Path:
    """Pictures in faces/ and styles/."""
    for start, (name, count) in enumerate((("faces", faces), ("styles", styles))):
        for i in range(count):
            picture(root / name / f"{i}.png", 100 * start + i, (64 + 8 * (i % 2), 64))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("portraits")
    with own_cache(root / "cache"):
        yield portraits(root / "data")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert fresh(data, out) == 0
    return out


def assert_same_runs(one: Path, other: Path, *settings: str, held: tuple[str, ...] = STAGES) -> None:
    """Bit for bit, but for some settings."""
    if (other / "codes.pt").exists():
        assert_same(read(one / "codes.pt"), read(other / "codes.pt"), "codes")
    for stage in held:
        found, expected = read(one / stage / "checkpoint.pt"), read(other / stage / "checkpoint.pt")
        for name in settings:
            found["config"][name] = expected["config"][name]
        assert_same(found, expected, stage)
        assert rows_of(one / stage) == rows_of(other / stage)
        for sheet in (other / stage / "samples").iterdir():
            assert (one / stage / "samples" / sheet.name).read_bytes() == sheet.read_bytes(), (stage, sheet.name)
    assert not leftovers(one)


# --- what a run writes


def test_a_run_writes_its_files(straight: Path) -> None:
    assert {path.name for path in straight.iterdir()} - {".lock"} == {"config.json", "codes.pt", *STAGES}
    assert json.loads((straight / "config.json").read_text())["system"] == "blendgan"
    for stage in STAGES:
        folder, images = straight / stage, 4 * BATCH[stage]
        files = {"checkpoint.pt", "config.json", "log.txt", "losses.png", "metrics.jsonl", "samples"}
        assert {path.name for path in folder.iterdir()} == files
        sheets = sorted(int(path.stem) for path in (folder / "samples").iterdir())
        assert sheets == ([0, 8, 12, 16] if stage == "style" else [0, 6, 8])
        for path in [*(folder / "samples").iterdir(), folder / "losses.png"]:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 100
        found = read(folder / "checkpoint.pt")
        assert found["format"] == "anifast.blendgan/1" and found["stage"] == stage
        assert found["images"] == images and found["steps"] == 4
        rows = rows_of(folder)
        assert [row["images"] for row in rows] == list(range(4, images + 1, 4))
        assert all(row["skipped"] == 0 and row["lr"] > 0 for row in rows)
        log = (folder / "log.txt").read_text()
        assert f"4 steps of {BATCH[stage]}" in log and "preset paper" in log and "5 pictures" in log
    assert "6 pictures of faces, 5 pictures of art" in (straight / "gan" / "log.txt").read_text()
    assert "memory: about" in (straight / "style" / "log.txt").read_text()


def test_what_is_in_the_checkpoints(straight: Path) -> None:
    """The style encoder is in its own stage alone; codes are in the queue and in the table."""
    style, gan = (read(straight / stage / "checkpoint.pt") for stage in STAGES)
    assert set(style["nets"]) == {"E_style", "projector"} and style["batch"] == 4
    assert set(gan["nets"]) == {"G", "D_face", "D_style", "D_latent"} and set(gan["ema"]) == {"G"}
    assert not any("embedder" in name for name in gan["nets"]["G"])
    assert set(gan["optim"]) == {"G", "D"} and set(gan["paths"]) == {"face", "style"}
    table = read(straight / "codes.pt")
    assert table["codes"].shape == (5, 2, 16) and table["names"] == [f"{i}.png" for i in range(5)]
    known = table["codes"].flatten(0, 1)
    assert gan["queue"]["codes"].shape == (8, 16) and gan["queue"]["next"] == 0  # 4 steps of 2, all of the queue
    assert all(any(torch.equal(row, code) for code in known) for row in gan["queue"]["codes"])
    assert float(gan["nets"]["G"]["add_weight"].max()) <= 1


#: What a line of metrics.jsonl tells beside losses.
OTHERS = {"images", "step", "lr", "skipped", "images_per_second", "data_wait"}


def test_every_loss_is_in_the_figure(straight: Path) -> None:
    panels = systems.module("blendgan", "training").PANELS
    for stage in STAGES:
        losses = {key for row in rows_of(straight / stage) for key in row} - OTHERS
        assert losses <= {key for panel in panels for key in panel.keys}
        assert losses >= (
            {"contrast", "recognised"} if stage == "style" else {"d_face", "g_latent", "r1_face", "path_style"}
        )


# --- interruptions


def test_a_run_that_is_broken_off_again_and_again_is_the_run_uninterrupted(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(Style, "begin", 3, lambda: fresh(data, out))
    assert read(out / "style" / "checkpoint.pt")["images"] == 12
    killed(codes, "encode", 0, lambda: train(data, out, "--resume"))
    assert read(out / "style" / "checkpoint.pt")["images"] == 16 and not (out / "codes.pt").exists()
    killed(Gan, "__init__", 0, lambda: train(data, out, "--resume"))
    assert (out / "codes.pt").exists() and not (out / "gan" / "checkpoint.pt").exists()
    killed(Gan, "begin", 2, lambda: train(data, out, "--resume"))
    assert not (out / "gan" / "checkpoint.pt").exists()  # the first is saved behind the third step
    killed(Gan, "begin", 3, lambda: train(data, out, "--resume"))
    assert read(out / "gan" / "checkpoint.pt")["images"] == 6
    assert train(data, out, "--resume") == 0
    assert_same_runs(out, straight)
    for stage, images in (("style", 12), ("gan", 6)):
        assert f"resumed at image {images}" in (out / stage / "log.txt").read_text()


def test_stages_one_by_one_are_the_run_of_all(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fresh(data, out, "--stage", "style") == 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "style"}
    assert train(data, out, "--resume", "--stage", "codes") == 0
    assert (out / "codes.pt").exists() and not (out / "gan").exists()
    assert train(data, out, "--resume", "--stage", "gan") == 0
    assert_same_runs(out, straight, "stage")


def test_a_longer_run_goes_on_with_the_last_stage(data: Path, straight: Path, tmp_path: Path) -> None:
    """The style encoder stays as it is: codes and generator stand on it."""
    out = tmp_path / "run"
    assert fresh(data, out, iterations=2) == 0
    assert train(data, out, "--resume", "--iterations", 4, "--style-iterations", 9) == 0
    # a row was logged and a sheet drawn at the end of the shorter run, too
    for stage in STAGES:
        found, expected = (read(run / stage / "checkpoint.pt") for run in (out, straight))
        assert_same(found["nets"], expected["nets"], stage)
        assert_same(found["optim"], expected["optim"], stage)
    assert train(data, out, "--resume") == 1  # nothing is left


def test_the_style_encoder_does_not_go_on_below_the_generator(
    data: Path, straight: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    longer = ("--resume", "--stage", "style", "--style-iterations", 6)
    assert train(data, out, *longer) == 1
    error = the_error(capsys.readouterr().err)
    assert "codes.pt and gan stand on it" in error and "--style-encoder and --start-from take" in error
    shutil.rmtree(out / "gan")
    (out / "codes.pt").unlink()
    assert train(data, out, *longer) == 0
    assert read(out / "style" / "checkpoint.pt")["images"] == 24


def test_steps_that_are_not_finite_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad batch: the run goes on and ends with finite weights."""
    original = training.Pictures.next
    calls = []

    def bad(self: Any) -> Any:
        batch = original(self)
        calls.append(1)
        return batch._replace(art=batch.art * float("nan")) if len(calls) == 2 else batch

    monkeypatch.setattr(training.Pictures, "next", bad)
    assert fresh(data, tmp_path / "run") == 0
    found = read(tmp_path / "run" / "gan" / "checkpoint.pt")
    assert found["skipped"] == 1 and rows_of(tmp_path / "run" / "gan")[-1]["skipped"] == 1
    for net in (*found["nets"].values(), *found["ema"].values()):
        assert all(bool(value.isfinite().all()) for value in net.values() if isinstance(value, Tensor))


# --- the batch of stage style


def test_the_batch_of_stage_style_is_what_memory_holds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most as many as there are pictures, in powers of 2; a run that goes on keeps what it began with."""
    c = tiny_config(**{key: value for key, value in SMALL.items() if key != "style_batch"} | {"style_batch": 0})
    fits_two = contrast.memory_estimate(c, 3) / 0.8
    monkeypatch.setattr(stages, "free_memory", lambda _: fits_two * 2**30)
    out = tmp_path / "run"
    assert fresh(data, out, "--stage", "style", style_batch=0, style_iterations=3) == 0
    found = read(out / "style" / "checkpoint.pt")
    assert found["batch"] == 2 and found["images"] == 6
    log = (out / "style" / "log.txt").read_text()
    assert "4 views in a step" in log and "memory: about" in log
    monkeypatch.setattr(stages, "free_memory", lambda _: 1000 * 2**30)
    assert train(data, out, "--resume", "--stage", "style", "--style-iterations", 4) == 0
    assert read(out / "style" / "checkpoint.pt")["images"] == 8
    assert fresh(data, tmp_path / "large", "--stage", "style", style_batch=0, style_iterations=1) == 0
    assert read(tmp_path / "large" / "style" / "checkpoint.pt")["batch"] == 4  # of five pictures


# --- networks that are taken over


def test_a_style_encoder_that_is_taken_over(data: Path, straight: Path, tmp_path: Path) -> None:
    """Folded into a run with whole matrices: the same codes. The run is the one that goes on from it."""
    out = tmp_path / "same"
    assert fresh(data, out, "--style-encoder", straight) == 0
    held = read(out / "style" / "checkpoint.pt")
    assert set(held["nets"]) == {"E_style"} and "optim" not in held and held["stage"] == "style"
    assert_same(held["nets"]["E_style"], read(straight / "style" / "checkpoint.pt")["nets"]["E_style"])
    assert_same_runs(out, straight, "style_encoder", held=("gan",))
    out = tmp_path / "whole"
    assert (
        fresh(data, out, "--style-encoder", straight / "style" / "checkpoint.pt", "--stage", "style", folded=False) == 0
    )
    assert train(data, out, "--resume", "--stage", "codes") == 0
    one, other = (read(run / "codes.pt")["codes"] for run in (out, straight))
    # sums of some 20,000 products in another order
    eps = torch.finfo(torch.float32).eps * float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=64 * eps)


def test_encoding_each_batch_is_the_table(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fresh(data, out, "--style-encoder", straight, "--codes", "encoder", iterations=2) == 0
    assert not (out / "codes.pt").exists()
    assert set(read(out / "gan" / "checkpoint.pt")["nets"]) == {"G", "D_face", "D_style", "D_latent"}
    one, other = (rows_of(run / "gan")[0] for run in (out, straight))
    assert set(one) == set(other)
    for name in ("d_face", "d_style", "r1_face", "norm"):  # the queue is filled from other codes
        assert one[name] == pytest.approx(other[name], rel=1e-3), name


def stylegan2_file(path: Path, lacking: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """rosinality's file of a generator and a discriminator, and what is in it."""
    c = tiny_config(**{key: value for key, value in SMALL.items() if key in TINY} | changes)
    torch.manual_seed(1)
    g = stylegan2.Generator(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, base_channels=c.base_channels)
    d = stylegan2.Discriminator(c.size, c.channel_multiplier, base_channels=c.base_channels)
    held = {
        "g_ema": {key: value for key, value in g.state_dict().items() if not key.startswith(lacking or ("\0",))},
        "d": d.state_dict(),
        "latent_avg": torch.zeros(c.style_dim),
    }
    torch.save(held, path)
    return held


def begun(data: Path, out: Path, *options: object) -> dict[str, Any]:
    """Stage gan before its first step."""
    assert fresh(data, out, *options, style_iterations=1) == 0
    return read(out / "gan" / "checkpoint.pt")


def test_training_begins_with_a_stylegan2(data: Path, straight: Path, tmp_path: Path) -> None:
    """Generator and discriminator of faces; the style's mapping, the shares and the other two are new ones."""
    held = stylegan2_file(tmp_path / "stylegan2.pt")
    options = ("--start-from", tmp_path / "stylegan2.pt", "--style-encoder", straight, "--lr", 0, "--iterations", 1)
    found = begun(data, tmp_path / "run", *options)
    for name, value in held["g_ema"].items():
        assert torch.equal(found["nets"]["G"][name], value), name
        assert torch.equal(found["ema"]["G"][name], value), name
    for name, value in held["d"].items():
        assert torch.equal(found["nets"]["D_face"][name], value), name
        assert not name.endswith("weight") or not torch.equal(found["nets"]["D_style"][name], value)
    assert bool((found["nets"]["G"]["add_weight"] == 1).all())
    other = stylegan2_file(tmp_path / "other.pt")
    del other["d"]
    torch.save(other, tmp_path / "other.pt")
    options = ("--start-from", tmp_path / "other.pt", "--face-discriminator", tmp_path / "stylegan2.pt", *options[2:])
    assert_same(begun(data, tmp_path / "again", *options)["nets"]["D_face"], found["nets"]["D_face"])


def test_training_begins_with_another_run(data: Path, straight: Path, tmp_path: Path) -> None:
    """Its averaged generator and its three discriminators."""
    options = ("--start-from", straight, "--style-encoder", straight, "--lr", 0, "--iterations", 1)
    found, source = begun(data, tmp_path / "run", *options), read(straight / "gan" / "checkpoint.pt")
    assert_same(dict(found["nets"]["G"]), dict(source["ema"]["G"]))
    for name in ("D_face", "D_style", "D_latent"):
        assert_same(dict(found["nets"][name]), dict(source["nets"][name]))


def test_sources_that_do_not_fit(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    stylegan2_file(tmp_path / "part.pt", lacking=("convs.3.",))
    stylegan2_file(tmp_path / "wide.pt", base_channels=16)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--start-from", tmp_path / "part.pt"), r"part\.pt.*convs\.3"),
        (("--start-from", tmp_path / "wide.pt"), r"wide\.pt.*--base-channels 16"),
        (("--start-from", tmp_path / "foreign.pt"), r"foreign\.pt"),
        (("--start-from", tmp_path / "empty"), "empty"),
        (("--start-from", tmp_path / "nowhere.pt"), r"nowhere\.pt: no such"),
        (("--face-discriminator", straight / "style"), "D_face are not in it"),
    ]
    for number, (options, text) in enumerate(cases):
        out = tmp_path / f"run {number}"
        assert fresh(data, out, "--style-encoder", straight, *options) == 1, text
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error), error
        assert not (out / "gan" / "checkpoint.pt").exists()
    encoders: list[tuple[Path, dict[str, Any], str]] = [
        (straight, {"style_dim": 24}, "--style-dim 16"),
        (straight, {"style_mlp": 3}, "--style-mlp 2"),
        (straight, {"style_side": 64}, "--style-side 32"),
        (straight / "gan", {}, "E_style are not in it"),
        (tmp_path / "foreign.pt", {}, r"foreign\.pt"),
    ]
    for number, (source, changes, text) in enumerate(encoders):
        out = tmp_path / f"encoder {number}"
        assert fresh(data, out, "--style-encoder", source, **changes) == 1, text
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error) and str(source) in error, error
        assert not list(out.glob("*/checkpoint.pt"))


# --- one picture


@pytest.fixture
def art(tmp_path: Path) -> Path:
    return picture(tmp_path / "art.png", 7, (90, 64))


def adapt(source: Path, art: Path, data: Path, out: Path, *options: object) -> int:
    """`anifast blendgan finetune`."""
    steps = ("--iterations", 4, "--save-every", 2, "--log-every", 2, "--sheet-every", 2)
    return cli.main(
        command("blendgan", "finetune", source, art, "--data", data, "--out", out, "--device", "cpu", *steps, *options)
    )


def test_one_picture(data: Path, straight: Path, art: Path, tmp_path: Path) -> None:
    """From the run's averaged generator and discriminators, with its style encoder and queue, which stays as it is."""
    faces = tmp_path / "data" / "faces"
    faces.parent.mkdir()
    shutil.copytree(data / "faces", faces)  # other art is not needed
    out = tmp_path / "run"
    assert adapt(straight, art, faces.parent, out) == 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "style", "gan"}
    source, found = (read(run / "gan" / "checkpoint.pt") for run in (straight, out))
    assert found["images"] == found["steps"] == 4
    known = source["queue"]["codes"]
    assert found["queue"]["next"] == 0
    assert all(any(torch.equal(row, code) for code in known) for row in found["queue"]["codes"])
    assert_same(
        read(out / "style" / "checkpoint.pt")["nets"]["E_style"],
        read(straight / "style" / "checkpoint.pt")["nets"]["E_style"],
    )
    moved = [not torch.equal(value, source["ema"]["G"][key]) for key, value in found["nets"]["G"].items()]
    assert sum(moved) > len(moved) / 2
    assert "6 pictures of faces, 1 picture of art" in (out / "gan" / "log.txt").read_text()
    # broken off and resumed it is the same
    again = tmp_path / "again"
    killed(Gan, "begin", 3, lambda: adapt(straight, art, faces.parent, again))
    assert read(again / "gan" / "checkpoint.pt")["images"] == 2
    assert adapt(straight, art, faces.parent, again, "--resume") == 0
    assert_same_runs(again, out, held=("gan",))


def without(source: Path, out: Path, *names: str, part: str = "nets") -> Path:
    """A copy of a run whose generator's checkpoint lacks these networks, as published files do."""
    shutil.copytree(source, out)
    state = read(out / "gan" / "checkpoint.pt")
    for name in names:
        del (state[part] if part else state)[name]
    torch.save(state, out / "gan" / "checkpoint.pt")
    return out


def near(rows: Tensor, known: Tensor) -> Tensor:
    """Which rows are among known ones, up to sums of some 20,000 products in another order."""
    eps = 64 * torch.finfo(torch.float32).eps * float(known.abs().max())
    return (rows[:, None] - known).abs().amax(2).amin(1) <= eps


def test_discriminators_that_are_missing_learn_from_other_art_first(
    data: Path, straight: Path, art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator waits; then it goes on with them from the one picture. Broken off and resumed it is the same."""
    monkeypatch.setattr(stages, "_WARM_UP_STEPS", 4)
    run, out = without(straight, tmp_path / "bare", "D_style", "D_latent"), tmp_path / "out"
    assert adapt(run, art, data, out) == 0
    source, waited, found = (read(path / "checkpoint.pt") for path in (straight / "gan", out / "warm-up", out / "gan"))
    assert waited["images"] == 20 and waited["steps"] == 4, "five pictures of art make a batch"
    assert found["images"] == 4 and found["queue"]["next"] == 0
    assert_same(dict(waited["nets"]["G"]), dict(source["ema"]["G"]))
    assert "ema" not in waited and "g_face" not in rows_of(out / "warm-up")[-1]
    log = (out / "warm-up" / "log.txt").read_text()
    assert "waits for 4 steps" in log and "5 pictures of art" in log
    codes_of = read(straight / "codes.pt")["codes"].flatten(0, 1)
    assert bool(near(found["queue"]["codes"], codes_of).all()), "codes of other art"
    # what stage gan begins with
    again = tmp_path / "begun"
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("gan"))
    config = checkpoints.config_of(waited)
    assert config.one_shot == str(art) and config.warm_up == 0
    made = stages.stages(config, data, again, torch.device("cpu"))
    assert [stage.name for stage in made] == ["style", "warm-up", "gan"] and made[1].done() and not made[2].done()
    assert made[2].assemble is not None
    system, _, _ = made[2].assemble()
    for name in ("G", "D_face", "D_style", "D_latent"):
        assert_same(dict(system.nets[name].state_dict()), dict(waited["nets"][name]))
    assert system.taken == [f"G, D_face, D_style, D_latent from {again / 'warm-up'}"]
    # interrupted in either stage; what it began with is not needed any more
    other = tmp_path / "other"
    killed(Gan, "begin", 3, lambda: adapt(run, art, data, other))
    assert read(other / "warm-up" / "checkpoint.pt")["images"] == 10 and not (other / "gan").exists()
    killed(Gan, "begin", 5, lambda: adapt(run, art, data, other, "--resume"))
    assert read(other / "gan" / "checkpoint.pt")["images"] == 2
    shutil.move(run, tmp_path / "moved")
    assert adapt(run, art, data, other, "--resume") == 0
    assert_same_runs(other, out, held=("warm-up", "gan"))


def test_a_warm_up_needs_other_art(data: Path, straight: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    """The way out that the message tells is one."""
    run, only = without(straight, tmp_path / "bare", "D_style"), tmp_path / "only"
    only.mkdir()
    (only / "faces").symlink_to(data / "faces")
    words = ("--warm-up", 1, "--iterations", 1)
    assert adapt(run, art, only, tmp_path / "out", *words) == 1
    error = the_error(capsys.readouterr().err)
    assert f"D_style is not in {run}" in error and f"Give pictures of art in {only / 'styles'}" in error
    assert not list((tmp_path / "out").glob("*/checkpoint.pt"))
    (only / "styles").symlink_to(data / "styles")
    assert adapt(run, art, only, tmp_path / "out", *words) == 0
    found = read(tmp_path / "out" / "warm-up" / "checkpoint.pt")
    assert found["steps"] == 1 and set(found["nets"]) == {"G", "D_face", "D_style", "D_latent"}


def first_of_gan(data: Path, out: Path, **changes: Any) -> tuple[list[str], Gan]:
    """The names of a run's stages, and stage gan before its first step."""
    config = tiny_config(**{key: value for key, value in SMALL.items() if key in TINY} | changes)
    made = stages.stages(config, data, out, torch.device("cpu"))
    for stage in made:
        if stage.work is not None and not stage.done():
            stage.work()
    last = next(stage for stage in made if stage.name == "gan")
    assert last.assemble is not None
    return [stage.name for stage in made], last.assemble()[0]


def test_where_networks_come_from(data: Path, straight: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    """A discriminator of faces can be given; without one a run of one picture warms up, and others tell that."""
    held, run = tmp_path / "stylegan2.pt", without(straight, tmp_path / "bare", "D_face")
    d = stylegan2_file(held)["d"]
    one: dict[str, Any] = {"start_from": str(run), "one_shot": str(art), "batch": 1}
    names, system = first_of_gan(data, tmp_path / "a", **one, face_discriminator=str(held))
    assert names == ["style", "gan"]
    assert_same(dict(system.nets["D_face"].state_dict()), dict(d))
    assert sorted(system.taken) == sorted([f"G, D_style, D_latent from {run}", f"D_face from {held}"])
    assert adapt(run, art, data, tmp_path / "b", "--face-discriminator", held, "--iterations", 1) == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} - {".lock"} == {"config.json", "style", "gan"}
    names, _ = first_of_gan(data, straight, **one)  # which has begun
    assert names == ["style", "gan"]
    names, _ = first_of_gan(data, tmp_path / "c", **one)
    assert names == ["style", "warm-up", "gan"]
    bare = without(straight, tmp_path / "without codes", "D_latent")
    names, _ = first_of_gan(data, tmp_path / "d", **one | {"start_from": str(bare)}, lambda_latent=0.0)
    assert names == ["style", "gan"], "no discriminator of style codes takes part"
    found = torch.load(held)
    del found["d"]
    torch.save(found, tmp_path / "no d.pt")
    options: dict[str, Any] = {"start_from": str(tmp_path / "no d.pt"), "style_encoder": str(straight)}
    _, system = first_of_gan(data, tmp_path / "e", codes="encoder", **options)
    assert system.taken == [f"G from {tmp_path / 'no d.pt'}", "D_face, D_style, D_latent new"]
    with pytest.raises(CheckpointError, match="no d.pt: this is a StyleGAN2, which knows no styles"):
        first_of_gan(data, tmp_path / "f", one_shot=str(art), **options)


def test_the_one_picture_is_no_other(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Where it is among the art that the run has learnt from, its codes leave the queue, mirrored ones too."""
    table = read(straight / "codes.pt")["codes"]
    own, others = table[3], torch.cat([table[:3], table[4:]]).flatten(0, 1)
    run = tmp_path / "bare"
    shutil.copytree(straight, run)
    state = read(run / "gan" / "checkpoint.pt")
    state["queue"]["codes"] = torch.cat([own, others[:6]])
    torch.save(state, run / "gan" / "checkpoint.pt")
    picture = data / "styles" / "3.png"
    assert adapt(run, picture, data, tmp_path / "one", "--iterations", 1) == 0
    queue = read(tmp_path / "one" / "gan" / "checkpoint.pt")["queue"]["codes"]
    assert len(queue) == 8 and bool(near(queue, others).all()) and not bool(near(queue, own).any())
    state["queue"]["codes"] = own.repeat(4, 1)
    torch.save(state, run / "gan" / "checkpoint.pt")
    assert adapt(run, picture, data, tmp_path / "two") == 1
    error = the_error(capsys.readouterr().err)
    assert str(picture) in error and "give other art" in error
    del state["queue"]
    torch.save(state, run / "gan" / "checkpoint.pt")
    assert adapt(run, picture, data, tmp_path / "three", "--iterations", 1) == 0  # codes of the art that is there
    queue = read(tmp_path / "three" / "gan" / "checkpoint.pt")["queue"]["codes"]
    assert bool(near(queue, others).all()) and not bool(near(queue, own).any())


def test_the_same_code_is_told_from_others() -> None:
    """By distances in relation to how far codes lie apart, whatever they have in common."""
    source = torch.Generator().manual_seed(0)
    codes_of = torch.randn(1000, 32, generator=source)
    for common, scale in ((0.0, 1.0), (100.0, 1.0), (0.0, 1e-3)):
        rows = (codes_of + common) * scale
        own = rows[:2].clone()
        rows[:2] += 0.02 * scale * torch.randn(2, 32, generator=source) / 32**0.5  # decoded by another program
        assert torch.equal(stages._without(rows, own), rows[2:])
        assert len(stages._without(own.repeat(3, 1), own)) == 0


def test_a_queue_of_another_encoder_is_not_taken(
    data: Path, straight: Path, art: Path, tmp_path: Path, capsys: Capture
) -> None:
    small = {key: value for key, value in SMALL.items() if key in TINY}
    encoder = write_run(tmp_path / "encoder", tiny_config(**small), ("style",), seed=5)
    one: dict[str, Any] = {"start_from": str(straight), "one_shot": str(art), "batch": 1}
    own = read(straight / "codes.pt")["codes"].flatten(0, 1)
    _, system = first_of_gan(data, tmp_path / "same", **one, style_encoder=str(straight / "style"), folded=False)
    assert bool(near(system.queue.codes, own).all())
    _, system = first_of_gan(data, tmp_path / "other", **one, style_encoder=str(encoder))
    assert not bool(near(system.queue.codes, own).any())
    run = stages.Run(system.config, data, tmp_path / "other", torch.device("cpu"))
    assert bool(near(system.queue.codes, run._some_codes(run.style_encoder())).all())
    # nor where it cannot be told
    alone = straight / "gan" / "checkpoint.pt"
    _, system = first_of_gan(data, tmp_path / "alone", **one | {"start_from": str(alone)}, style_encoder=str(encoder))
    assert not bool(near(system.queue.codes, own).any())
    only = tmp_path / "only"
    only.mkdir()
    (only / "faces").symlink_to(data / "faces")
    with pytest.raises(DataError, match="has a queue of another encoder's style codes.*give pictures of art in"):
        first_of_gan(only, tmp_path / "none", **one, style_encoder=str(encoder))


def test_one_picture_without_a_queue(data: Path, straight: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    run, only = without(straight, tmp_path / "bare", "queue", part=""), tmp_path / "faces only"
    only.mkdir()
    (only / "faces").symlink_to(data / "faces")
    assert adapt(run, art, only, tmp_path / "one") == 1
    error = the_error(capsys.readouterr().err)
    assert "no folder styles" in error and "holds no queue of style codes" in error
    assert adapt(run, art, data, tmp_path / "two") == 0  # codes of the art that is there
    own = read(straight / "codes.pt")["codes"][:, 0]
    assert bool(near(read(tmp_path / "two" / "gan" / "checkpoint.pt")["queue"]["codes"], own).all())
    assert adapt(straight, tmp_path / "nowhere.png", data, tmp_path / "three") == 1
    assert "nowhere.png" in the_error(capsys.readouterr().err)


def test_a_run_of_one_picture_goes_on_as_it_began(
    data: Path, straight: Path, art: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Not with another model or picture, be it under the same name; without the model, which it does not need."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(straight, source)
    assert adapt(source, art, data, out, "--iterations", 1) == 0
    other = picture(tmp_path / "other.png", 8, (64, 64))
    for model, style in ((straight, art), (source, other)):
        assert adapt(model, style, data, out, "--resume") == 1
        error = the_error(capsys.readouterr().err)
        assert f"the run in {out} was begun with {source if style is art else art}" in error
    assert adapt(straight, art, data, straight, "--resume") == 1
    assert "is no run of one picture; go on with it by anifast train" in the_error(capsys.readouterr().err)
    shutil.move(source, tmp_path / "moved")
    assert adapt(source, art, data, out, "--resume", "--iterations", 2) == 0
    picture(art, 9, (64, 64))
    assert adapt(source, art, data, out, "--resume", "--iterations", 3) == 1
    assert "another picture" in the_error(capsys.readouterr().err)


def test_discriminators_are_warmed_up(data: Path, straight: Path, tmp_path: Path) -> None:
    """The generator waits: its weights and its average stay."""
    out = tmp_path / "run"
    options = ("--start-from", straight, "--style-encoder", straight, "--warm-up", 2, "--iterations", 2)
    assert fresh(data, out, *options) == 0
    found, source = (read(run / "gan" / "checkpoint.pt") for run in (out, straight))
    assert_same(dict(found["nets"]["G"]), dict(source["ema"]["G"]))
    moved = [not torch.equal(v, source["nets"]["D_latent"][k]) for k, v in found["nets"]["D_latent"].items()]
    assert sum(moved) > len(moved) / 2
    assert "g_face" not in rows_of(out / "gan")[-1] and "waits for 2 steps" in (out / "gan" / "log.txt").read_text()


# --- stage psp


@pytest.fixture
def narrow_psp(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder with 16 channels wherever the published one has 64 to 512, which settings do not allow."""
    monkeypatch.setattr(psp, "GROUPS", ((16, 3), (16, 4), (16, 14), (16, 3)))
    monkeypatch.setattr(Config, "__post_init__", lambda self: None)
    mean_code = inversion.mean_code
    monkeypatch.setattr(inversion, "mean_code", lambda g: mean_code(g, 100))


@pytest.mark.usefixtures("narrow_psp")
def test_stage_psp(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Behind the generator, broken off and resumed; the generator then stands still."""
    one, other = tmp_path / "one", tmp_path / "other"
    for out in (one, other):
        shutil.copytree(straight, out)
    longer = ("--resume", "--psp-iterations", 4)
    assert train(data, one, *longer) == 0
    found = read(one / "psp" / "checkpoint.pt")
    assert found["stage"] == "psp" and set(found["nets"]) == {"psp"} and found["images"] == 8
    assert found["nets"]["psp"]["latent_avg"].shape == (10, 16)
    assert {"l2", "lpips", "w_norm"} <= set(rows_of(one / "psp")[0])
    assert "the generator is frozen" in (one / "psp" / "log.txt").read_text()
    killed(Inversion, "begin", 3, lambda: train(data, other, *longer))
    assert read(other / "psp" / "checkpoint.pt")["images"] == 6
    assert train(data, other, "--resume") == 0
    assert_same_runs(other, one, held=("style", "gan", "psp"))
    assert_same(read(one / "gan" / "checkpoint.pt"), read(straight / "gan" / "checkpoint.pt"))
    capsys.readouterr()
    assert train(data, one, "--resume", "--stage", "gan", "--iterations", 9) == 1
    assert "gan cannot go on, as psp stand on it" in the_error(capsys.readouterr().err)
    assert train(data, one, "--resume", "--psp-iterations", 5) == 0


@pytest.mark.usefixtures("narrow_psp")
def test_stage_psp_inverts_any_generator(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Alone: that of --start-from, whose mean code it takes."""
    held = stylegan2_file(tmp_path / "stylegan2.pt")
    torch.save(held | {"latent_avg": torch.arange(16.0)}, tmp_path / "stylegan2.pt")
    alone = ("--stage", "psp", "--psp-iterations", 1)
    assert fresh(data, tmp_path / "run", *alone, "--start-from", tmp_path / "stylegan2.pt") == 0
    found = read(tmp_path / "run" / "psp" / "checkpoint.pt")["nets"]["psp"]["latent_avg"]
    assert torch.equal(found, torch.arange(16.0).expand(10, -1))
    capsys.readouterr()
    large = (*alone, "--start-from", tmp_path / "stylegan2.pt", "--psp-side", 128)
    assert fresh(data, tmp_path / "large", *large) == 1
    error = the_error(capsys.readouterr().err)
    assert "photos of 128 pixels would be compared" in error and "--psp-side 64" in error
    assert fresh(data, tmp_path / "none", *alone) == 1
    assert "no generator to invert; run --stage gan before, or give --start-from" in the_error(capsys.readouterr().err)


# --- other settings

OTHER_RUNS: dict[str, tuple[object, ...]] = {
    "half precision": ("--precision", "bf16"),
    "another loss": ("--latent-loss", "matching", "--normalised", "--checkpointing"),
    "neither average nor penalties": ("--ema", 0, "--r1", 0, "--path-length", 0),
    "one picture in a batch": ("--batch", 1, "--path-shrink", 1, "--iterations", 3),
    "three pictures in a batch": ("--batch", 3, "--no-folded", "--projection", 3),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_settings_run_too(data: Path, tmp_path: Path, name: str) -> None:
    assert fresh(data, tmp_path / "run", *OTHER_RUNS[name], style_iterations=2, iterations=2) == 0
    for stage in STAGES:
        found = read(tmp_path / "run" / stage / "checkpoint.pt")
        for net in found["nets"].values():
            values = [value for value in net.values() if isinstance(value, Tensor)]
            assert all(bool(value.isfinite().all()) for value in values)
        assert rows_of(tmp_path / "run" / stage)[-1]["skipped"] == 0


# --- bad input


def test_stages_without_what_is_before_them(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    for number, stage in enumerate(("codes", "gan")):
        assert fresh(data, tmp_path / str(number), "--stage", stage) == 1
        error = the_error(capsys.readouterr().err)
        assert "needs the style encoder; run --stage style before, with --style-encoder to take one over" in error
    out = tmp_path / "run"
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns("gan", "codes.pt"))
    assert train(data, out, "--resume", "--stage", "gan") == 1
    assert "needs the style codes; make them by --stage codes" in the_error(capsys.readouterr().err)
    assert not (out / "gan" / "checkpoint.pt").exists()


def test_pictures_that_changed(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Codes belong to pictures by their order: with others there the generator does not go on, nor begin."""
    changed, out = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(data, changed)
    shutil.copytree(straight, out)
    Image.new("RGB", (64, 64), (200, 10, 10)).save(changed / "styles" / "3.png")
    assert train(changed, out, "--resume", "--iterations", 9) == 1
    assert "styles holds other pictures under the same names" in the_error(capsys.readouterr().err)
    shutil.rmtree(out / "gan")
    assert train(changed, out, "--resume", "--stage", "gan") == 1
    assert "styles holds other pictures" in the_error(capsys.readouterr().err)
    assert train(changed, out, "--resume", "--stage", "codes") == 0  # made anew
    assert not torch.equal(read(out / "codes.pt")["codes"], read(straight / "codes.pt")["codes"])


def test_damaged_codes(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns("gan"))
    whole = read(out / "codes.pt")
    for state, text in (
        (whole | {"encoder": "0" * 16}, "of another encoder.*--stage codes"),
        (whole | {"format": "anifast.blendgan/1"}, "no table of style codes.*--stage codes"),
    ):
        torch.save(state, out / "codes.pt")
        assert train(data, out, "--resume", "--stage", "gan") == 1
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error) and "codes.pt" in error, error
    (out / "codes.pt").write_bytes(b"no codes")
    assert train(data, out, "--resume", "--stage", "gan") == 1
    assert "codes.pt" in the_error(capsys.readouterr().err)
    assert train(data, out, "--resume") == 0  # all stages: codes that cannot be used are made anew
    assert_same_runs(out, straight)


def test_an_empty_folder_of_a_later_stage_holds_nothing_up(data: Path, straight: Path, tmp_path: Path) -> None:
    """It was killed before its first checkpoint."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    (out / "psp").mkdir()
    (out / "psp" / "log.txt").touch()
    assert train(data, out, "--resume", "--iterations", 5) == 0
    assert read(out / "gan" / "checkpoint.pt")["images"] == 10


def test_the_discriminator_of_style_codes_keeps_its_function(
    data: Path, straight: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Whether it sees codes of one length is not in its weights' shapes."""
    out = tmp_path / "run"
    assert fresh(data, out, "--start-from", straight, "--style-encoder", straight, "--normalised") == 1
    error = the_error(capsys.readouterr().err)
    assert "they need --no-normalised" in error and str(straight) in error
    options = ("--style-encoder", straight, "--normalised")
    assert fresh(data, tmp_path / "other", *options, iterations=1) == 0
    assert fresh(data, tmp_path / "third", "--start-from", tmp_path / "other", *options[:2]) == 1
    assert "they need --normalised" in the_error(capsys.readouterr().err)
    assert cli.main(command("convert", tmp_path / "other", tmp_path / "own.pt")) == 0
    art = picture(tmp_path / "art.png", 7)
    for source in (tmp_path / "other", tmp_path / "own.pt"):
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        assert adapt(source, art, data, tmp_path / "one", "--iterations", 1) == 0
        assert read(tmp_path / "one" / "gan" / "checkpoint.pt")["config"]["normalised"] is True


class Side(Team):
    """One of two processes, which are threads here: each waits for the other where processes would."""

    def __init__(self, rank: int, meeting: threading.Barrier, said: list[int]) -> None:
        super().__init__(torch.device("cpu"), rank, 2)
        self._meeting, self._said = meeting, said

    def largest(self, number: int) -> int:
        self._said[self.rank] = number
        self._meeting.wait(20)
        found = max(self._said)
        self._meeting.wait(20)
        return found


@pytest.mark.parametrize("failing", [False, True])
def test_processes_agree_on_the_batch_of_stage_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """That of the one with the least memory; the first looks at the pictures, and no other waits where it cannot."""
    data = portraits(tmp_path / "data", faces=0, styles=9)
    batch_of = vars(stages.Run)["style_batch"].func  # before Python 3.12 what is cached is locked for all threads
    small = {key: value for key, value in SMALL.items() if key in TINY}
    config = tiny_config(**small | {"style_batch": 0})
    held, said, found = threading.Barrier(2), [0, 0], {}
    original, free = stages.pictures_of, threading.local()

    def some(*args: Any) -> Any:
        if failing or free.rank == 1:
            raise DataError("this disk is gone")
        return original(*args)

    monkeypatch.setattr(stages, "pictures_of", some)
    monkeypatch.setattr(stages, "free_memory", lambda _: (1000 * 2**30, 0)[free.rank])

    def work(rank: int) -> None:
        free.rank = rank
        team = Side(rank, held, said)
        run = stages.Run(config, data, tmp_path, torch.device("cpu"), team)
        try:
            found[rank] = team.together(lambda: batch_of(run))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if not failing:
        assert found == {0: 4, 1: 4}, "two of each process, though one of them could hold four"
    else:
        assert isinstance(found[0], DataError) and "this disk is gone" in str(found[0])
        assert isinstance(found[1], ToldElsewhere)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--style-batch", 1), "style_batch: 1 has no other picture"),
        (("--style-batch", 6), "styles: 5 pictures that can be read, and a batch has 6.*--style-batch 5"),
        (("--size", 96), "size: 96"),
        (("--psp-iterations", 5), "codes of 512 numbers, not 16"),
        (("--channel-multiplier", 0.1), "too few channels at 64 pixels; take at least"),
        (("--one-shot", "art.png"), "give --start-from"),
        (("--backbone", "vgg19", "--backbone-weights", "nowhere.pth"), r"nowhere\.pth"),
        (("--preset", "gnr"), "gnr"),
        (("--latent-loss", "both"), "latent-loss|latent_loss"),
        (("--stage", "stage1"), "stage1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be_used(
    data: Path, tmp_path: Path, capsys: Capture, options: tuple[object, ...], text: str
) -> None:
    """One line, and no checkpoint is left behind."""
    try:
        code = fresh(data, tmp_path / "run", *options)
    except SystemExit as ended:  # what the parser of the command line knows already
        code = int(ended.code or 0)
    errors = capsys.readouterr().err
    assert code != 0 and not list((tmp_path / "run").glob("**/checkpoint.pt"))
    assert "Traceback" not in errors and re.search(text, " ".join(errors.split())), errors


def test_too_few_pictures(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    assert fresh(data, tmp_path / "a", "--style-encoder", straight, "--batch", 7) == 1
    assert "faces: 6 pictures that can be read, and a batch has 7" in the_error(capsys.readouterr().err)
    single = portraits(tmp_path / "single", styles=1)
    for batch in (0, 4):
        assert fresh(single, tmp_path / f"b{batch}", style_batch=batch) == 1
        assert "at least 2 are to be told apart" in the_error(capsys.readouterr().err)
    (tmp_path / "bare").mkdir()
    assert fresh(tmp_path / "bare", tmp_path / "c") == 1
    assert "no folder styles (nor trainB)" in the_error(capsys.readouterr().err)
    assert fresh(tmp_path / "nowhere", tmp_path / "d") == 1
    assert "nowhere" in the_error(capsys.readouterr().err)


def test_resuming_with_what_does_not_fit(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--batch", 4), "batch.*keeps its settings|keeps its settings.*batch"),
        (("--latent-loss", "matching"), "latent_loss"),
        (("--preset", "small"), "preset"),
        ((), "nothing is left to train.*--iterations"),
    ]
    before = {stage: (straight / stage / "checkpoint.pt").read_bytes() for stage in STAGES}
    for options, text in cases:
        assert train(data, straight, "--resume", *options) == 1, text
        assert re.search(text, the_error(capsys.readouterr().err)), text
    assert fresh(data, straight) == 1
    assert "already holds a run (config.json): go on with it by --resume" in the_error(capsys.readouterr().err)
    assert before == {stage: (straight / stage / "checkpoint.pt").read_bytes() for stage in STAGES}


def test_a_run_without_optimisers_cannot_go_on(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Networks alone are what a run begins with, not what one goes on from."""
    out = write_run(tmp_path / "run", tiny_config(**{key: value for key, value in SMALL.items() if key in TINY}))
    shutil.rmtree(out / "style")
    assert train(data, out, "--resume", "--stage", "gan", "--iterations", 9) == 1
    assert "needs the style encoder" in the_error(capsys.readouterr().err)
    out = write_run(tmp_path / "other", tiny_config(**{key: value for key, value in SMALL.items() if key in TINY}))
    state = read(out / "gan" / "checkpoint.pt")
    torch.save({key: value for key, value in state.items() if key != "images"}, out / "gan" / "checkpoint.pt")
    assert train(data, out, "--resume", "--stage", "codes") == 0
    assert train(data, out, "--resume", "--stage", "gan", "--iterations", 9) == 1
    error = the_error(capsys.readouterr().err)
    assert str(out / "gan") in error and "cannot be resumed" in error


# --- several processes


@pytest.mark.heavy
def test_a_run_of_two_processes_goes_on_with_one(data: Path, tmp_path: Path) -> None:
    """All stages; the codes are made by one of them."""
    out = tmp_path / "run"
    options = words(SMALL, style_iterations=1, iterations=2)
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "anifast", "train", "blendgan")
    surroundings = {k: v for k, v in os.environ.items() if k not in ("ANIFAST_BACKEND", "TRITON_INTERPRET")}
    done = subprocess.run(
        command(sys.executable, *run, "--data", data, "--out", out, "--device", "cpu", *options),
        cwd=ROOT,
        env=surroundings | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = read(out / "gan" / "checkpoint.pt")
    assert found["images"] == 4 and "2 processes, 1 of a batch's 2 images each" in (out / "gan" / "log.txt").read_text()
    with pytest.MonkeyPatch.context() as patch:  # all layers, as those two have had them
        patch.setitem(perceptual.STYLE_LAYERS, "random", perceptual._VGG16_LAYERS)
        assert train(data, out, "--resume", "--iterations", 3) == 0
    assert read(out / "gan" / "checkpoint.pt")["images"] == 6

"""Runs of the disentangling network: all stages at once or one by one, killed and resumed, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stepping import assert_same, rows_of
from tiny_cyclegan import ROOT, command, leftovers, own_cache, read, the_error
from tiny_disentangle import TINY, TINY_DIGITS, write_artists, write_digits

from anifast import cli, systems

Capture = pytest.CaptureFixture[str]
STAGES = ("stage1", "classifier", "stage2")
STEPS = {"stage1": 6, "classifier": 4, "stage2": 5}
#: Odd intervals, so that checkpoints, log lines and sheets do not fall together.
INTERVALS = ("--log-every", 12, "--save-every", 8, "--sheet-every", 12)


def words(settings: dict[str, Any], **changes: Any) -> list[object]:
    """Settings as options."""
    found: list[object] = []
    for name, value in (settings | changes).items():
        flag = name.replace("_", "-")
        found += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    return found


def train(data: Path, out: Path, *options: object) -> int:
    """`anifast train disentangle` in this process; the exit code."""
    return cli.main(command("train", "disentangle", "--data", data, "--out", out, "--device", "cpu", *options))


def fresh(data: Path, out: Path, *options: object, **changes: Any) -> int:
    """A new run with the tiny networks. (The later of two equal options counts.)"""
    return train(data, out, *words(TINY, **changes), *INTERVALS, *options)


@pytest.fixture(scope="module")
def artists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("artists")
    with own_cache(root / "cache"):
        yield write_artists(root / "pictures", transparent=True)


@pytest.fixture(scope="module")
def straight(artists: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert fresh(artists, out) == 0
    return out


def assert_same_runs(one: Path, other: Path, *settings: str) -> None:
    """Bit for bit, but for some settings."""
    assert_same(read(one / "codes.pt"), read(other / "codes.pt"), "codes")
    for stage in STAGES:
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
    assert json.loads((straight / "config.json").read_text())["system"] == "disentangle"
    for stage, steps in STEPS.items():
        folder = straight / stage
        images = 4 * steps
        files = {"checkpoint.pt", "config.json", "log.txt", "losses.png", "metrics.jsonl", "samples"}
        assert {path.name for path in folder.iterdir()} == files
        sheets = sorted(path.name for path in (folder / "samples").iterdir())
        assert sheets == [f"{i:07d}.png" for i in sorted({0, images, *range(12, images, 12)})]
        for path in [*(folder / "samples").iterdir(), folder / "losses.png"]:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 100
        found = read(folder / "checkpoint.pt")
        assert found["stage"] == stage and found["images"] == images and found["steps"] == steps
        assert found["classes"] == sorted(found["classes"]) and found["counts"].tolist() == [4, 4, 4]
        rows = rows_of(folder)
        assert [row["images"] for row in rows] == sorted({images, *range(12, images, 12)})
        assert all(row["skipped"] == 0 and row["lr"] > 0 for row in rows)
        log = (folder / "log.txt").read_text()
        assert f"{steps} steps of 4 pictures" in log and "preset paper" in log and "12 pictures by 3 artists" in log


def test_what_the_stages_leave_to_one_another(straight: Path) -> None:
    nets = {stage: read(straight / stage / "checkpoint.pt")["nets"] for stage in STAGES}
    assert {stage: set(found) for stage, found in nets.items()} == {
        "stage1": {"E", "G", "S", "C1"},
        "classifier": {"C2"},
        "stage2": {"E", "G", "S", "C2", "D"},
    }
    assert_same(dict(nets["stage2"]["E"]), dict(nets["stage1"]["E"]))
    for name in ("G", "S"):
        changed = [not torch.equal(nets["stage2"][name][key], value) for key, value in nets["stage1"][name].items()]
        assert sum(changed) >= len(changed) - 1  # all but the artists' frequencies
    codes = read(straight / "codes.pt")
    assert codes["mean"].shape == codes["std"].shape == (12, 12) and bool((codes["std"] > 0).all())
    assert codes["names"] == sorted(codes["names"]) and codes["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert_same(read(straight / "stage2" / "checkpoint.pt")["statistics"], codes["statistics"])


def test_a_stage_begins_with_the_networks_before_it(artists: Path, straight: Path, tmp_path: Path) -> None:
    """Stage 2 before its first step: G and S of stage 1, C2 and D's trunk of the classifier, optimisers anew."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "stage2")
    assert train(artists, out, "--resume", "--stage", "stage2", "--minutes", 0) == 0
    begun = read(out / "stage2" / "checkpoint.pt")
    first, classifier = (read(straight / stage / "checkpoint.pt")["nets"] for stage in ("stage1", "classifier"))
    assert begun["images"] == 0 and not any(part["state"] for part in begun["optim"].values())
    for name in ("E", "G", "S"):
        assert_same(dict(begun["nets"][name]), dict(first[name]))
    assert_same(dict(begun["nets"]["C2"]), dict(classifier["C2"]))
    for key, value in begun["nets"]["D"].items():
        if not key.startswith("dis."):
            assert torch.equal(value, classifier["C2"][key]), key
    assert begun["nets"]["D"]["dis.weight"].shape == (1, 24)


#: What a line of metrics.jsonl tells beside losses.
OTHERS = {"images", "step", "lr", "skipped", "turns", "images_per_second", "data_wait"}


@pytest.mark.parametrize(
    "settings", [{}, {"c1_input": "code", "mlp_width": 8}, {"style_size": 0}], ids=["paper", "codes", "no styles"]
)
def test_every_loss_is_in_the_figure(artists: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Each loss of each stage is in one panel, and that panel has all it adds up."""
    short = {f"{stage}iterations": 2 for stage in ("", "classifier_", "stage2_")}
    assert fresh(artists, tmp_path, "--log-every", 4, **settings, **short) == 0
    panels = systems.module("disentangle", "training").PANELS
    for stage in STAGES[: 1 if settings else 3]:
        losses = set(rows_of(tmp_path / stage)[0]) - OTHERS
        assert losses
        shown = [key for panel in panels if losses.issuperset(panel.keys) for key in panel.keys]
        assert sorted(shown) == sorted(losses), stage


def test_figures_of_a_run(straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Of a stage, of a stage in two runs, and of the whole run: one for each stage."""
    shutil.copytree(straight, tmp_path / "run")
    for stage in STAGES:
        (tmp_path / "run" / stage / "losses.png").unlink()
    assert cli.main(command("plot", tmp_path / "run")) == 0
    drawn = [tmp_path / "run" / stage / "losses.png" for stage in STAGES]
    assert capsys.readouterr().out.split() == [str(path) for path in drawn]
    for path in drawn:
        assert path.read_bytes() == (straight / path.relative_to(tmp_path / "run")).read_bytes()
    both = (straight / "stage1", tmp_path / "run" / "stage1")
    assert cli.main(command("plot", *both, "--out", tmp_path / "both.png")) == 0
    with Image.open(tmp_path / "both.png") as image:
        assert min(image.size) > 200
    for folders in ((straight,), both[:1] + (straight,)):
        assert cli.main(command("plot", *folders, "--out", tmp_path / "none.png")) == 1
        assert f"give one of {straight / 'stage1'}, " in the_error(capsys.readouterr().err)
    assert not (tmp_path / "none.png").exists()


# --- interruptions

#: Ends this very process as nothing can be caught: in a step of a stage, or between stages.
KILLED = """
import os, signal, sys
from anifast import cli
from anifast.systems.disentangle import codes, stages, training

point, count, *words = sys.argv[1:]
left = [int(count)]

def deadly(original):
    def replaced(*args, **named):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*args, **named)
    return replaced

owner, name = {
    "stage1": (training.Stage1, "begin"),
    "encode": (codes, "encode"),
    "codes": (stages.checkpoint, "save"),
    "classifier": (training.Pretraining, "begin"),
    "before stage2": (training.Stage2, "__init__"),
    "stage2": (training.Stage2, "begin"),
}[point]
setattr(owner, name, deadly(getattr(owner, name)))
sys.exit(cli.main(words))
"""


def killed(data: Path, out: Path, point: str, count: int, *options: object) -> None:
    """A run in a process of its own that dies at a point, behind so many passages."""
    train_words = ("train", "disentangle", "--data", data, "--out", out, "--device", "cpu", *options)
    surroundings = {k: v for k, v in os.environ.items() if k not in ("ANIFAST_BACKEND", "TRITON_INTERPRET")}
    done = subprocess.run(
        command(sys.executable, "-c", KILLED, point, count, *train_words),
        cwd=ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.heavy
def test_a_run_that_is_killed_again_and_again_is_the_run_uninterrupted(
    artists: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(artists, out, "stage1", 5, *words(TINY), *INTERVALS)
    assert read(out / "stage1" / "checkpoint.pt")["images"] == 16
    killed(artists, out, "encode", 0, "--resume")
    assert read(out / "stage1" / "checkpoint.pt")["images"] == 24 and not (out / "codes.pt").exists()
    killed(artists, out, "classifier", 3, "--resume")
    assert (out / "codes.pt").exists() and read(out / "classifier" / "checkpoint.pt")["images"] == 8
    killed(artists, out, "before stage2", 0, "--resume")
    assert not (out / "stage2").exists()
    killed(artists, out, "stage2", 3, "--resume")
    assert read(out / "stage2" / "checkpoint.pt")["images"] == 8
    assert train(artists, out, "--resume") == 0
    assert_same_runs(out, straight)
    for stage, images in (("stage1", 16), ("classifier", 8), ("stage2", 8)):
        assert f"resumed at image {images}" in (out / stage / "log.txt").read_text()


def test_stages_one_by_one_are_the_run_of_all(artists: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fresh(artists, out, "--stage", "stage1") == 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "stage1"}
    assert train(artists, out, "--resume", "--stage", "encode") == 0
    assert train(artists, out, "--resume", "--stage", "classifier") == 0
    assert not (out / "stage2").exists()
    assert train(artists, out, "--resume", "--stage", "stage2") == 0
    assert_same_runs(out, straight, "stage")


def test_a_stage_killed_before_its_first_checkpoint_begins_anew(artists: Path, straight: Path, tmp_path: Path) -> None:
    """What it had logged by then is not in metrics.jsonl twice."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "stage2")
    shutil.copytree(straight / "stage2", out / "stage2", ignore=shutil.ignore_patterns("checkpoint.pt"))
    assert train(artists, out, "--resume") == 0
    assert_same_runs(out, straight)


def test_a_longer_run_goes_on_with_the_last_stage(artists: Path, straight: Path, tmp_path: Path) -> None:
    """Stage 1 stays as it is: the codes and stage 2 stand on it."""
    out = tmp_path / "run"
    assert fresh(artists, out, stage2_iterations=2) == 0
    more = ("--stage2-iterations", 5, "--iterations", 50, "--classifier-iterations", 30)
    assert train(artists, out, "--resume", *more) == 0
    assert_same_runs(out, straight, "iterations", "classifier_iterations", "stage2_iterations")


def test_minutes_are_those_of_the_whole_run(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Where they are over in a stage, those behind it, which stand on it, do not begin."""
    out = tmp_path / "run"
    assert fresh(artists, out, "--minutes", 0) == 0
    said = capsys.readouterr().out
    assert "stopped at image 0 of 24" in said and "--resume" in said
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "stage1"}
    assert train(artists, out, "--resume", "--minutes", 60) == 0
    assert_same_runs(out, straight, "minutes")


def test_ctrl_c_ends_all_stages(
    artists: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    training = systems.module("disentangle", "training")
    begin, out = training.Pretraining.begin, tmp_path / "run"

    def pressed(self: Any, batch: Any, images: int) -> None:
        if images == 4:
            signal.raise_signal(signal.SIGINT)
        begin(self, batch, images)

    with monkeypatch.context() as patch:
        patch.setattr(training.Pretraining, "begin", pressed)
        assert fresh(artists, out) == 130
    assert read(out / "classifier" / "checkpoint.pt")["images"] == 8 and not (out / "stage2").exists()
    assert train(artists, out, "--resume") == 0
    assert_same_runs(out, straight)


@pytest.mark.heavy
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_all_stages_by_two_processes(artists: Path, straight: Path, tmp_path: Path) -> None:
    """The first one encodes and writes; another number of processes goes on."""
    out = tmp_path / "run"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "anifast")
    run_words = ("train", "disentangle", "--data", artists, "--out", out, "--device", "cpu", *words(TINY), *INTERVALS)
    done = subprocess.run(
        command(*launcher, *run_words, "--stage2-iterations", 3),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes, 2 of a batch's 4 images each" in (out / "stage2" / "log.txt").read_text()
    assert train(artists, out, "--resume", "--stage2-iterations", 5) == 0
    assert not leftovers(out)
    one, two = read(out / "codes.pt"), read(straight / "codes.pt")
    assert one["names"] == two["names"] and one["encoder"] != two["encoder"]
    for stage in STAGES:
        rows, expected = rows_of(out / stage), rows_of(straight / stage)
        assert [row["images"] for row in rows] == [row["images"] for row in expected]
        # the sums of a batch are added up in another order, and weights move by at most a learning rate a step
        assert rows[0].keys() == expected[0].keys()
        for name, value in expected[0].items():
            assert abs(rows[0][name] - value) <= 1e-3 * max(1.0, abs(value)), (stage, name)


# --- beginning with another run's stage 1


def test_starting_from_a_run(artists: Path, straight: Path, tmp_path: Path) -> None:
    """The ablation of plain classifiers: a second stage 2 on the same stage 1, also when it is interrupted."""
    out = tmp_path / "run"
    assert fresh(artists, out, "--start-from", straight, "--c2-fake", "none") == 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "codes.pt", "classifier", "stage2"}
    assert_same(read(out / "codes.pt"), read(straight / "codes.pt"))
    whole, other = read(out / "stage2" / "checkpoint.pt"), read(straight / "stage2" / "checkpoint.pt")
    assert_same(dict(whole["nets"]["E"]), dict(other["nets"]["E"]))
    assert not torch.equal(whole["nets"]["C2"]["cla.weight"], other["nets"]["C2"]["cla.weight"])
    assert_same(
        read(out / "classifier" / "checkpoint.pt")["nets"], read(straight / "classifier" / "checkpoint.pt")["nets"]
    )

    again = tmp_path / "again"
    cut = ("--start-from", straight, "--c2-fake", "none", "--stage2-iterations", 2)
    assert fresh(artists, again, *cut) == 0
    assert train(artists, again, "--resume", "--stage2-iterations", 5) == 0
    assert not (again / "stage1").exists()
    for name in ("nets", "optim", "images", "meter", "data"):
        assert_same(read(again / "stage2" / "checkpoint.pt")[name], whole[name], name)


def test_starting_from_what_does_not_fit(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    more = write_artists(tmp_path / "more", artists=4)
    renamed = tmp_path / "renamed"
    shutil.copytree(artists, renamed)
    first = sorted(renamed.iterdir())[0]
    first.rename(renamed / "zacharias")
    (tmp_path / "empty").mkdir()
    only = tmp_path / "classifier alone"
    shutil.copytree(straight / "classifier", only / "classifier")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")
    cases: list[tuple[Path, Path, tuple[object, ...], str]] = [
        (artists, straight, ("--features", "8,12,20"), "they need --features 8,12,16"),
        (artists, straight, ("--content-size", 13, "--fc", 20), "--fc 24.*--content-size 12"),
        (artists, straight, ("--style-size", 0), "--style-size 8"),
        (more, straight, (), "other artists.*3 and 4"),
        (renamed, straight, (), "other artists"),
        (artists, tmp_path / "empty", (), "no checkpoint.pt"),
        (artists, tmp_path / "nowhere", (), "no such"),
        (artists, only, (), "only a classifier"),
        (artists, straight / "classifier", (), "E, G, S of stage 1 are not in it"),
        (artists, tmp_path / "foreign.pt", (), "no checkpoint of a known system|no disentangling network"),
        (artists, straight, ("--stage", "stage1"), "stage 1 is taken over"),
    ]
    for number, (data, source, options, text) in enumerate(cases):
        out = tmp_path / f"run {number}"
        assert fresh(data, out, "--start-from", source, *options) == 1, text
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error) and (str(source) in error or "--stage" in options), error
        assert not list(out.glob("*/checkpoint.pt")) and not (out / "codes.pt").exists()


# --- other settings


OTHER_RUNS: dict[str, tuple[object, ...]] = {
    "half precision": ("--precision", "bf16"),
    "the last code's settings": (
        *("--preset", "release", "--blocks", "cc,cbc,cbc", "--gen-blocks", "tc,cbc,cbc"),
        *("--stage2-iterations", 4, "--content-size", 12),
    ),
    "codes and random others": ("--c1-input", "code", "--mlp-width", 8, "--mlp-layers", 3, "--other-artist", "random"),
    "no pre-training": ("--classifier-iterations", 0),
    "colours": ("--channels", 3, "--style-size", 3, "--lambda-match", 0.01),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_settings_run_too(artists: Path, tmp_path: Path, name: str) -> None:
    short = {f"{stage}iterations": 2 for stage in ("", "classifier_", "stage2_")}
    assert fresh(artists, tmp_path / "run", *words(short), *OTHER_RUNS[name]) == 0
    stages = [stage for stage in STAGES if (tmp_path / "run" / stage).exists()]
    assert stages == [stage for stage in STAGES if name != "no pre-training" or stage != "classifier"]
    for stage in stages:
        found = read(tmp_path / "run" / stage / "checkpoint.pt")
        for net in found["nets"].values():
            assert all(value.isfinite().all() and value.dtype == torch.float32 for value in net.values())
        assert rows_of(tmp_path / "run" / stage)[-1]["skipped"] == 0


def test_a_plain_vae_has_two_stages(artists: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert fresh(artists, out, style_size=0) == 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {"config.json", "stage1", "codes.pt"}
    assert set(read(out / "stage1" / "checkpoint.pt")["nets"]) == {"E", "G"}
    capsys.readouterr()
    for stage in ("classifier", "stage2"):
        assert train(artists, out, "--resume", "--stage", stage) == 1
        assert f"a plain VAE (style_size 0) has no {stage}" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize("label", ["writer", "digit"])
def test_digits(tmp_path: Path, label: str) -> None:
    out = tmp_path / "run"
    with own_cache(tmp_path / "cache"):
        data = write_digits(tmp_path / "digits", 60, writers=5)
        assert train(data, out, "--preset", "nist_fast", "--label", label, *words(TINY_DIGITS), *INTERVALS) == 0
    classes = read(out / "stage2" / "checkpoint.pt")["classes"]
    assert classes == [str(i) for i in range(10)] if label == "digit" else len(classes) == 5
    with Image.open(out / "stage2" / "samples" / "0000020.png") as image:
        assert min(image.size) > 200


def test_weight_maps_and_skipped_pictures(artists: Path, tmp_path: Path) -> None:
    """Black maps but for one corner: the reconstruction is that of the corner. What is transparent is not used."""
    pictures, maps = tmp_path / "pictures", tmp_path / "maps"
    shutil.copytree(artists, pictures)
    for path in sorted(pictures.glob("*/*.png")):
        weight = Image.new("L", (32, 32))
        weight.paste(255, (0, 0, 8, 8))
        (maps / path.parent.name).mkdir(parents=True, exist_ok=True)
        weight.save(maps / path.parent.name / path.name)
    Image.new("RGBA", (32, 32)).save(path.parent / "empty.png")
    Image.new("L", (32, 32), 255).save(maps / path.parent.name / "empty.png")
    out = tmp_path / "run"
    assert fresh(pictures, out, "--weight-maps", maps, "--stage", "stage1") == 0
    assert read(out / "stage1" / "checkpoint.pt")["counts"].tolist() == [4, 4, 4]
    log = (out / "stage1" / "log.txt").read_text()
    assert "1 pictures cannot be used" in log and f"{path.parent.name}/empty.png" in log
    Image.new("L", (32, 32), 128).save(maps / path.parent.name / path.name)
    assert train(pictures, out, "--resume", "--iterations", 8) == 1  # another map


# --- bad input


def test_pictures_that_changed_after_encoding(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Codes belong to pictures by their order: with others there stage 2 does not begin, and none goes on."""
    data, out = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(artists, data)
    shutil.copytree(straight, out)
    shutil.rmtree(out / "stage2")
    changed = sorted(data.glob("*/*.png"))[5]
    Image.new("RGB", (32, 32), (200, 10, 10)).save(changed)
    assert train(data, out, "--resume", "--stage", "stage2") == 1
    error = the_error(capsys.readouterr().err)
    assert "codes.pt" in error and "look different" in error and "--stage encode" in error
    assert train(data, out, "--resume") == 1  # nor are the codes made anew for stages that know the old pictures
    assert "look different" in the_error(capsys.readouterr().err)
    assert not (out / "stage2" / "checkpoint.pt").exists()
    shutil.copytree(straight / "stage2", out / "stage2")
    assert train(data, out, "--resume", "--stage2-iterations", 9) == 1
    assert re.search("other pictures|look different", the_error(capsys.readouterr().err))
    changed.unlink()
    assert train(data, out, "--resume", "--stage2-iterations", 9) == 1
    assert "pictures" in the_error(capsys.readouterr().err)
    assert_same_runs(out, straight)


def test_a_run_without_a_checkpoint_yet_is_resumed(
    artists: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 is another run's, given from another folder, and only codes are there yet."""
    out = tmp_path / "run"
    monkeypatch.chdir(straight.parent)
    assert fresh(artists, out, "--start-from", straight.name, "--stage", "encode") == 0
    assert not list(out.glob("**/checkpoint.pt"))
    monkeypatch.chdir(tmp_path)
    assert train(artists, out, "--resume", "--stage", "classifier") == 0
    assert read(out / "classifier" / "checkpoint.pt")["config"]["start_from"] == str(straight)


def test_stages_without_what_is_before_them(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    cases = [
        ("encode", (), "stage 1, which has not begun; run --stage stage1"),
        ("stage2", (), "codes of all pictures; make them by --stage encode"),
        ("stage2", ("codes.pt",), "stage 1, which has not begun"),
        ("stage2", ("stage1", "codes.pt"), "--stage classifier before, or give --classifier-iterations 0"),
        ("stage2", ("stage1", "classifier"), "codes of all pictures; make them by --stage encode"),
    ]
    for number, (stage, held, text) in enumerate(cases):
        out = tmp_path / str(number)
        if held and held[0] != "codes.pt":
            shutil.copytree(straight, out, ignore=shutil.ignore_patterns("stage2", *({*STAGES, "codes.pt"} - {*held})))
            assert train(artists, out, "--resume", "--stage", stage) == 1, text
        else:
            out.mkdir()
            for name in held:
                shutil.copy(straight / name, out / name)
            assert fresh(artists, out, "--stage", stage) == 1, text
        assert text in the_error(capsys.readouterr().err)
        assert not (out / "stage2").exists()


def test_stage_1_does_not_go_on_below_the_others(
    artists: Path, straight: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    longer = ("--resume", "--stage", "stage1", "--iterations", 9)
    assert train(artists, out, *longer) == 1
    error = the_error(capsys.readouterr().err)
    assert "stage2 and codes.pt stand on it" in error and "--start-from" in error
    shutil.rmtree(out / "stage2")
    assert train(artists, out, *longer) == 1
    assert "codes.pt stand" in the_error(capsys.readouterr().err)
    (out / "codes.pt").unlink()
    assert train(artists, out, *longer) == 0
    assert read(out / "stage1" / "checkpoint.pt")["images"] == 36


def test_damaged_codes(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns("stage2"))
    whole = read(out / "codes.pt")
    other = {key: value for key, value in whole.items() if key != "std"}
    for state, text in (
        (whole | {"encoder": "0" * 16}, "of another encoder.*--stage encode"),
        (other, "parts of the codes are missing.*--stage encode"),
        (whole | {"format": "anifast.disentangle/1"}, "no file of codes.*--stage encode"),
    ):
        torch.save(state, out / "codes.pt")
        assert train(artists, out, "--resume", "--stage", "stage2") == 1
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error) and "codes.pt" in error, error
    (out / "codes.pt").write_bytes(b"no codes")
    assert train(artists, out, "--resume", "--stage", "stage2") == 1
    assert "codes.pt" in the_error(capsys.readouterr().err)
    assert train(artists, out, "--resume") == 0  # all stages: codes that cannot be used are made anew
    assert_same_runs(out, straight)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--batch", 1), "batch: 1 has no other artist.*at least 2"),
        (("--stage2-batch", 1), "stage2_batch: 1 has no other artist.*at least 2"),
        (("--regularised", "--classifier-batch", 1), "batches of at least 2"),
        (("--batch", 13), "12 pictures do not fill a batch of 13"),
        (("--min-images", 5), "5|min_images"),
        (("--stage", "stage3"), "stage3"),
        (("--preset", "gnr"), "gnr"),
        (("--features", "8,twelve"), "features.*no list of numbers"),
        (("--features", "8,8,8,8,8,8", "--size", 16), "cannot be halved"),
        (("--channels", 2), "channels: 2"),
        (("--blocks", "tc"), "blocks.*no level"),
        (("--blocks", "cc,cc"), "blocks: 2 levels.*features has 3"),
        (("--dataset", "digits"), "preset nist"),
        (("--weight-maps", "nowhere"), "nowhere"),
        (("--c1-input", "code", "--c1-adv", "nlu"), "c1_adv nll"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be_used(
    artists: Path, tmp_path: Path, capsys: Capture, options: tuple[object, ...], text: str
) -> None:
    """One line, and no checkpoint is left behind."""
    try:
        code = fresh(artists, tmp_path / "run", *options)
    except SystemExit as ended:  # what the parser of the command line knows already
        code = int(ended.code or 0)
    errors = capsys.readouterr().err
    assert code != 0 and not list((tmp_path / "run").glob("**/checkpoint.pt"))
    assert "Traceback" not in errors and re.search(text, " ".join(errors.split())), errors


def test_folders_that_cannot_be_used(artists: Path, tmp_path: Path, capsys: Capture) -> None:
    lonely, empty, single = (tmp_path / name for name in ("a", "b", "c"))
    shutil.copytree(sorted(artists.iterdir())[0], lonely / "only")
    for artist in sorted(artists.iterdir())[:2]:
        for number in range(3):
            (empty / artist.name).mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (32, 32), (200, 30, 30, 0)).save(empty / artist.name / f"{number}.png")
    shutil.copytree(artists, single)
    for path in sorted(sorted(single.iterdir())[0].iterdir())[1:]:
        path.unlink()
    for data, text in ((lonely, "one artist|1 artist"), (empty, "transparent"), (tmp_path / "nowhere", "nowhere")):
        assert fresh(data, tmp_path / "run") == 1
        error = the_error(capsys.readouterr().err)
        assert re.search(text, error) and str(data) in error, error
    assert fresh(artists, tmp_path / "run", "--minutes", 0) == 0  # nothing was left there that is in the way
    # an artist with a single picture is left out, or kept with a word about it
    short = ("--stage", "stage1", "--iterations", 2)
    assert fresh(single, tmp_path / "without", *short) == 0
    assert len(read(tmp_path / "without" / "stage1" / "checkpoint.pt")["classes"]) == 2
    assert "left out: 1 artist" in (tmp_path / "without" / "stage1" / "log.txt").read_text()
    assert fresh(single, tmp_path / "with", *short, "--min-images", 1) == 0
    assert read(tmp_path / "with" / "stage1" / "checkpoint.pt")["counts"].tolist() == [1, 4, 4]
    assert "single picture" in (tmp_path / "with" / "stage1" / "log.txt").read_text()


def test_resuming_with_what_does_not_fit(artists: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    more = write_artists(tmp_path / "more", artists=4)
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path, Path, tuple[object, ...], str]] = [
        (artists, straight, ("--batch", 6), "batch.*keeps its settings|keeps its settings.*batch"),
        (artists, straight, ("--style-size", 4), "style_size"),
        (artists, straight, ("--c2-fake", "none"), "c2_fake"),
        (artists, straight, ("--preset", "release"), "preset"),
        (artists, straight, (), "nothing is left to train.*iterations"),
        (artists, straight, ("--stage", "classifier"), "nothing is left to train"),
        (more, straight, ("--stage2-iterations", 9), "artists|pictures"),
        (artists, tmp_path / "empty", (), "no checkpoint.pt"),
    ]
    before = {stage: (straight / stage / "checkpoint.pt").read_bytes() for stage in STAGES}
    for data, out, options, text in cases:
        assert train(data, out, "--resume", *options) == 1, text
        assert re.search(text, the_error(capsys.readouterr().err)), text
    assert fresh(artists, straight) == 1
    assert "already holds a run (config.json): go on with it by --resume" in the_error(capsys.readouterr().err)
    assert before == {stage: (straight / stage / "checkpoint.pt").read_bytes() for stage in STAGES}

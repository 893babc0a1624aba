"""Training runs: what they write, that a resumed run is the uninterrupted one, and how they end when things fail."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stepping import assert_same
from tiny_cyclegan import TINY, command, data_folder, leftovers, picture, read, resume, start, the_error, train
from torch import Tensor

from anifast import cli, systems
from anifast.engine import lock, loop, plots, state
from anifast.engine.log import Meter
from anifast.engine.loop import Loop
from anifast.errors import AnifastError, CheckpointError
from anifast.systems import runs
from anifast.systems.cyclegan import training

Capture = pytest.CaptureFixture[str]
# Odd intervals, so that checkpoints and log lines do not fall together; a pool that is full after three steps.
INTERVALS = ("--log-every", 3, "--save-every", 5, "--sheet-every", 6, "--pool-size", 3)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 pictures without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    torch.manual_seed(0)
    assert train(data, out, "--images", 16, *INTERVALS) == 0
    return out


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Each run of this file begins where torch's own generator stands in a new process."""
    torch.manual_seed(0)


@pytest.fixture
def eight(data: Path, tmp_path: Path) -> Path:
    """A run that ended as it should after 8 of 8 pictures."""
    assert train(data, tmp_path / "run", "--images", 8, *INTERVALS) == 0
    return tmp_path / "run"


def learnt(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def after(calls: int, original: Callable[..., Any], then: Callable[[Any], Any]) -> Callable[..., Any]:
    """`original`, with `then` put on its results from call number `calls` on, counted from 1."""
    counter = itertools.count(1)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return then(result) if next(counter) >= calls else result

    return replaced


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    def press(batch: Any) -> Any:
        signal.raise_signal(number)
        return batch

    monkeypatch.setattr(training.Pictures, "next", after(step, training.Pictures.next, press))


# --- what a run writes


def test_a_run_writes_its_files(straight: Path) -> None:
    assert {path.name for path in straight.iterdir()} == {
        "checkpoint.pt",
        "config.json",
        "log.txt",
        "losses.png",
        "metrics.jsonl",
        "samples",
    }
    sheets = sorted((straight / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["0000000.png", "0000006.png", "0000012.png", "0000016.png"]
    for path in [*sheets, straight / "losses.png"]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
    assert sheets[0].read_bytes() != sheets[-1].read_bytes()
    assert json.loads((straight / "config.json").read_text())["system"] == "cyclegan"


def test_the_log_begins_with_device_precision_preset_and_backend(straight: Path) -> None:
    lines = (straight / "log.txt").read_text().splitlines()
    assert "train cyclegan" in lines[0] and "preset reference" in lines[0]
    assert "device cpu" in lines[1] and "precision fp32" in lines[1] and torch.__version__ in lines[1]
    assert lines[2].startswith("op bias_lrelu on cpu: ")
    text = "\n".join(lines[:15])
    for words in ("A 5, B 5 pictures", "resized to 36, cropped to 32", "16 images per domain", "pool of 3"):
        assert words in text


def test_metrics_hold_losses_rate_and_learning_rate(straight: Path) -> None:
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [3, 6, 9, 12, 15, 16]
    names = {"gan_ab", "gan_ba", "cycle_a", "cycle_b", "identity_a", "identity_b", "generators", "d_a", "d_b"}
    for row in rows:
        assert set(row) == names | {"images", "epoch", "lr", "skipped", "images_per_second", "data_wait"}
        parts = sum(row[name] for name in names - {"generators", "d_a", "d_b"})
        assert row["generators"] == pytest.approx(parts, rel=1e-4)
        assert row["lr"] == 2e-4 and row["skipped"] == 0 and row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1
    assert [row["epoch"] for row in rows] == [1, 2, 2, 3, 3, 4]


def test_the_checkpoint_is_plain(straight: Path) -> None:
    found = read(straight / "checkpoint.pt")
    assert found["format"] == "anifast.cyclegan/1" and found["images"] == found["steps"] == 16
    assert set(found["nets"]) == {"G_AB", "G_BA", "D_A", "D_B"} and set(found["optim"]) == {"G", "D"}
    assert [found["pools"][side]["count"] for side in "AB"] == [3, 3]
    assert found["config"]["size"] == 32 and found["config"]["pool_size"] == 3
    assert not leftovers(straight)


def test_training_changes_every_trained_weight(data: Path, straight: Path) -> None:
    config = read(straight / "checkpoint.pt")["config"]
    fresh = training.networks(training.Config(**config))
    found = read(straight / "checkpoint.pt")["nets"]
    for name, net in fresh.items():
        for key, value in net.named_parameters():
            assert not torch.equal(found[name][key], value), f"{name}.{key}"
        for key, value in net.named_buffers():
            assert torch.equal(found[name][key], value), f"{name}.{key}"


@pytest.mark.parametrize(
    "options",
    [
        ("--batch", 2, "--no-crop", "--no-flip"),
        ("--precision", "bf16", "--skip"),
        ("--preset", "seed", "--lambda-identity", 0, "--pool-size", 0),
        ("--preset", "seed", "--gan", "vanilla", "--no-sigmoid"),
    ],
    ids=["batch", "bf16", "seed", "vanilla"],
)
def test_other_settings_run_too(data: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    assert train(data, tmp_path / "run", "--images", 4, *options) == 0
    found = read(tmp_path / "run" / "checkpoint.pt")
    assert found["images"] == 4
    for net in found["nets"].values():
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in net.values())


# --- resuming


def test_a_resumed_run_is_the_run_uninterrupted(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert train(data, out, "--images", 16, *INTERVALS) == 130
    halfway = read(out / "checkpoint.pt")
    assert halfway["images"] == 8 and halfway["meter"]["counts"]["d_a"] == 2
    with torch.random.fork_rng():
        torch.manual_seed(12345)  # another process stands elsewhere
        assert resume(data, out) == 0
    assert_same(read(out / "checkpoint.pt"), read(straight / "checkpoint.pt"))
    assert learnt(out) == learnt(straight)
    assert (out / "samples" / "0000016.png").read_bytes() == (straight / "samples" / "0000016.png").read_bytes()
    assert "resumed at image 8" in (out / "log.txt").read_text()


def test_a_finished_run_goes_on_with_more_images(data: Path, straight: Path, eight: Path) -> None:
    assert resume(data, eight, "--images", 16) == 0
    one, other = read(eight / "checkpoint.pt"), read(straight / "checkpoint.pt")
    for part in ("images", "steps", "nets", "optim", "pools", "pool_rng", "data", "meter", "rng"):
        assert_same(one[part], other[part], part)
    assert one["config"] == other["config"]
    assert learnt(eight) == learnt(straight)  # the row of image 8, off the grid of 3, made room for that of image 9


def test_the_rate_is_of_training_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by 2 in reading, by 3 in a step, and by much in saves and sheets."""
    now = [0.0]

    def taking(seconds: float, original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*words: Any) -> Any:
            now[0] += seconds
            return original(*words)

        return replaced

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for name, seconds in (("_write", 100.0), ("_show", 1000.0)):
        monkeypatch.setattr(Loop, name, taking(seconds, getattr(Loop, name)))
    monkeypatch.setattr(training.Pictures, "next", taking(2.0, training.Pictures.next))
    monkeypatch.setattr(training.CycleGAN, "begin", taking(3.0, training.CycleGAN.begin))
    every = ("--log-every", 2, "--save-every", 1, "--sheet-every", 1)
    assert train(data, tmp_path / "run", "--images", 4, *every) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["images"], row["images_per_second"], row["data_wait"]) for row in rows] == [
        (2, 0.2, 0.4),
        (4, 0.2, 0.4),
    ]


def test_a_run_ends_after_its_minutes(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert train(data, out, "--images", 16, "--minutes", 0, *INTERVALS) == 0
    assert "0 of 16" in capsys.readouterr().out
    assert read(out / "checkpoint.pt")["images"] == 0
    assert resume(data, out, "--minutes", 60) == 0
    assert_same(read(out / "checkpoint.pt")["nets"], read(straight / "checkpoint.pt")["nets"])


def test_the_seed_decides(data: Path, straight: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "other", "--images", 2, "--seed", 1) == 0
    assert train(data, tmp_path / "same", "--images", 16, *INTERVALS) == 0
    assert_same(read(tmp_path / "same" / "checkpoint.pt"), read(straight / "checkpoint.pt"))
    one, other = (read(out / "checkpoint.pt")["nets"]["D_A"] for out in (tmp_path / "other", straight))
    assert not torch.equal(one["model.2.weight"], other["model.2.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int
) -> None:
    before = signal.getsignal(number)
    interrupt_at(monkeypatch, 3, number)
    assert train(data, tmp_path / "run", "--images", 50) == 130
    assert signal.getsignal(number) is before
    assert read(tmp_path / "run" / "checkpoint.pt")["images"] == 3
    said = capsys.readouterr()
    assert "3 of 50" in said.out and "--resume" in said.out and "Traceback" not in said.err


def test_ctrl_c_in_the_last_save(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing left to end."""
    write = Loop._write

    def press(*words: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*words)

    monkeypatch.setattr(Loop, "_write", press)
    assert train(data, tmp_path / "run", "--images", 2) == 0
    assert read(tmp_path / "run" / "checkpoint.pt")["images"] == 2


def running(data: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    """A long run in its own process, given back when it has saved its first checkpoint."""
    # As many threads as here: how they share a sum decides its last bits.
    threads = str(torch.get_num_threads())
    process = start("train", "cyclegan", "--data", data, "--out", out, *TINY, *options, OMP_NUM_THREADS=threads)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.02)
    return process


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    words = ("--save-every", 1, "--log-every", 1, "--pool-size", 3)
    process = running(data, out, "--images", 900, *words)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = read(out / "checkpoint.pt")["images"]
    assert 1 <= killed < 900
    # What a process leaves that is killed in the middle of a checkpoint, and in the middle of a line.
    for name in ("checkpoint.01234567.tmp.pt", "losses.89abcdef.tmp.png", "metrics.00000000.tmp.jsonl"):
        (out / f".{name}").write_bytes(b"PK")
    (out / ".config.01234567.tmp.json").touch()
    (out / "samples" / ".0000900.01234567.tmp.png").touch()
    (out / "samples" / ".mine.png").touch()
    with open(out / "metrics.jsonl", "a") as handle:
        handle.write('{"images": 9')
    assert resume(data, out, "--images", killed + 3) == 0
    assert read(out / "checkpoint.pt")["images"] == killed + 3
    assert [row["images"] for row in learnt(out)] == list(range(1, killed + 4))
    assert leftovers(out) == [".mine.png"]
    assert f"resumed at image {killed}" in capsys.readouterr().out
    # Not killed it would have come to the same numbers.
    assert train(data, tmp_path / "straight", "--images", killed + 3, *words) == 0
    one, other = read(out / "checkpoint.pt"), read(tmp_path / "straight" / "checkpoint.pt")
    for part in ("nets", "optim", "pools", "pool_rng", "data", "meter", "rng"):
        assert_same(one[part], other[part], part)
    assert learnt(out) == learnt(tmp_path / "straight")


def test_ctrl_c_in_the_terminal(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = running(data, out, "--images", 900, "--save-every", 1)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "SIGINT: stopped at image" in said and "--resume" in said
    assert read(out / "checkpoint.pt")["images"] < 900


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_run_goes_on_when_nobody_reads_it(data: Path, tmp_path: Path, closed: str) -> None:
    out = tmp_path / "run"
    process = start("train", "cyclegan", "--data", data, "--out", out, *TINY, "--images", 4)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("anifast")
    gone, kept = (process.stdout, process.stderr) if closed == "stdout" else (process.stderr, process.stdout)
    gone.close()
    rest = kept.read()
    kept.close()
    assert process.wait(timeout=120) == 0 and "Traceback" not in rest and "BrokenPipe" not in rest
    assert read(out / "checkpoint.pt")["images"] == 4
    assert "4 images in" in (out / "log.txt").read_text()


# --- past checkpoints, plots


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("*.pt"))


def test_the_last_checkpoints_are_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    words = ("--images", 8, "--save-every", 2, "--keep", 3)
    assert train(data, out, *words) == 0
    assert kept(out) == ["checkpoint-0000004.pt", "checkpoint-0000006.pt", "checkpoint-0000008.pt", "checkpoint.pt"]
    for number in (4, 6, 8):
        assert read(out / f"checkpoint-000000{number}.pt")["images"] == number
    assert (out / "checkpoint.pt").samefile(out / "checkpoint-0000008.pt")  # takes no space of its own
    # A run that goes on from an earlier one leaves those beyond it alone, and what a killed process left is removed.
    shutil.copyfile(out / "checkpoint-0000004.pt", out / "checkpoint.pt")
    (out / ".checkpoint-0000009.01234567.tmp.pt").write_bytes(b"PK")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    assert resume(data, out, "--images", 5, "--keep", 2) == 0
    assert kept(out) == [f"checkpoint-000000{number}.pt" for number in (4, 5, 6, 8)] + ["checkpoint.pt"]
    assert read(out / "checkpoint-0000005.pt")["images"] == read(out / "checkpoint.pt")["images"] == 5
    assert not leftovers(out)
    assert resume(data, out, "--images", 6, "--keep", 1) == 0
    assert kept(out) == [f"checkpoint-000000{number}.pt" for number in (4, 5, 6, 8)] + ["checkpoint.pt"]


def plot(*words: object) -> int:
    return cli.main(command("plot", *words))


def test_plot_draws_the_losses_again(straight: Path, eight: Path, tmp_path: Path, capsys: Capture) -> None:
    before = (eight / "losses.png").read_bytes()
    (eight / "losses.png").unlink()
    with open(eight / "metrics.jsonl", "a") as handle:  # a run that is writing
        handle.write('{"images": 9, "cyc')
    capsys.readouterr()
    with lock.hold(eight):
        assert plot(eight) == 0
    assert capsys.readouterr().out == f"{eight / 'losses.png'}\n"
    assert (eight / "losses.png").read_bytes() == before
    assert plot(straight, eight, "--out", tmp_path / "deep" / "both.png") == 0
    with Image.open(tmp_path / "deep" / "both.png") as both, Image.open(eight / "losses.png") as alone:
        assert both.size == alone.size
        nearest = [
            np.abs(np.asarray(image).astype(int) - plots.COLOURS[1]).sum(axis=2).min() for image in (both, alone)
        ]
    assert nearest[0] < 40 < nearest[1]  # only where there is a second run, there is the second colour


@pytest.mark.parametrize("kind", ["nothing", "no losses", "several", "jpg", "systems"])
def test_what_cannot_be_plotted(eight: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"system": "gan"}' if kind == "systems" else '{"system": "cyclegan"}')
    if kind == "systems":
        shutil.copyfile(eight / "metrics.jsonl", other / "metrics.jsonl")
    cases: dict[str, tuple[tuple[object, ...], str]] = {
        "nothing": ((tmp_path,), "not a run folder"),
        "no losses": ((other,), "no losses yet"),
        "several": ((eight, other), "--out"),
        "jpg": ((eight, "--out", tmp_path / "x.jpg"), ".png"),
        "systems": ((eight, other, "--out", tmp_path / "x.png"), "cyclegan, gan"),
    }
    words, named = cases[kind]
    capsys.readouterr()
    assert plot(*words) == 1
    assert named in the_error(capsys.readouterr().err)
    assert not list(tmp_path.glob("x.*"))


# --- what cannot be resumed or begun


def test_a_folder_with_a_run_is_refused(data: Path, eight: Path, capsys: Capture) -> None:
    before = (eight / "checkpoint.pt").read_bytes()
    assert train(data, eight, "--images", 8) == 1
    error = the_error(capsys.readouterr().err)
    assert str(eight) in error and "--resume" in error and "--out" in error
    assert (eight / "checkpoint.pt").read_bytes() == before


def test_a_run_that_saved_nothing_says_what_to_do(data: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert train(data, tmp_path, "--images", 2) == 1
    error = the_error(capsys.readouterr().err)
    assert "remove the folder" in error and "--resume" not in error


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_resume(data: Path, tmp_path: Path, capsys: Capture, made: bool) -> None:
    out = tmp_path / "run"
    if made:
        out.mkdir()
    assert resume(data, out) == 1
    assert str(out) in the_error(capsys.readouterr().err)
    assert not out.exists() or not list(out.iterdir())


def test_nothing_left_to_train(data: Path, eight: Path, capsys: Capture) -> None:
    assert resume(data, eight) == 1
    error = the_error(capsys.readouterr().err)
    assert "8 of 8" in error and "--images" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--width", "16"), "width (8, not 16)"),
        (("--lr", "0.1", "--images", "16"), "lr (0.0002, not 0.1)"),
        (("--preset", "small"), "--preset"),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    data: Path, eight: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert resume(data, eight, *options) == 1
    assert words in the_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--save-every", "-3"), "setting save_every: -3 is below 1"),
        (("--log-every", "0"), "setting log_every: 0 is below 1"),
    ],
)
def test_a_resumed_run_checks_new_settings(
    data: Path, eight: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert resume(data, eight, "--images", 16, *options) == 1
    assert words in the_error(capsys.readouterr().err)


def test_two_runs_into_one_folder(data: Path, eight: Path, tmp_path: Path, capsys: Capture) -> None:
    before = (eight / "checkpoint.pt").read_bytes()
    with lock.hold(eight):
        assert resume(data, eight, "--images", 16) == 1
        error = the_error(capsys.readouterr().err)
        assert str(eight) in error and "another run is writing here" in error
    assert (eight / "checkpoint.pt").read_bytes() == before and not leftovers(eight)
    with lock.hold(tmp_path / "new" / "run"):
        assert train(data, tmp_path / "new" / "run", "--images", 1) == 1
        assert "another run is writing here" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert resume(data, eight, "--images", 9) == 0


def test_the_run_folder_is_tried_before_the_pictures_are_packed(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assemble(*_: object) -> None:
        raise AssertionError("pictures were packed")

    monkeypatch.setattr(training, "assemble", assemble)
    (tmp_path / "file").write_text("mine")
    assert train(data, tmp_path / "file" / "run") == 1
    assert "cannot write to the run folder" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    "line", ["3", "null", '["images"]', '{"loss": 1}', '{"images": "x"}', '{"images": 3, "lo', "\0"]
)
def test_damaged_metrics_are_left_out(data: Path, eight: Path, line: str) -> None:
    metrics = eight / "metrics.jsonl"
    before = learnt(eight)
    metrics.write_text(line + "\n" + metrics.read_text() + line)
    assert resume(data, eight, "--images", 9) == 0
    after = learnt(eight)
    assert after[:-1] == before[:-1] and [row["images"] for row in before[-1:] + after[-1:]] == [8, 9]


def test_resuming_on_other_pictures_is_refused(data: Path, eight: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    picture(other / "trainB" / "new.png", 7)
    before = (eight / "checkpoint.pt").read_bytes(), (eight / "metrics.jsonl").read_bytes()
    assert resume(other, eight, "--images", 16) == 1
    error = the_error(capsys.readouterr().err)
    assert "trainB holds other pictures" in error and "start a new run" in error
    assert before == ((eight / "checkpoint.pt").read_bytes(), (eight / "metrics.jsonl").read_bytes())
    # The same pictures in another place are the same data.
    (other / "trainB" / "new.png").unlink()
    assert resume(other, eight, "--images", 9) == 0


@pytest.mark.parametrize("count", [5, 70])
def test_resuming_on_pictures_that_were_overwritten_is_refused(
    data: Path, tmp_path: Path, capsys: Capture, count: int
) -> None:
    """Few pictures are all looked at, of many the first one is."""
    faces, out = data_folder(tmp_path / "faces", count), tmp_path / "run"
    assert train(faces, out, "--images", 2) == 0
    before = (out / "checkpoint.pt").read_bytes()
    changed = faces / "trainA" / ("3.png" if count == 5 else "0.png")
    old = changed.read_bytes()
    picture(changed, 12345)
    assert resume(faces, out, "--images", 4) == 1
    error = the_error(capsys.readouterr().err)
    assert "trainA holds other pictures under the same names" in error and "start a new run" in error
    assert (out / "checkpoint.pt").read_bytes() == before
    changed.write_bytes(old)  # at another time
    assert resume(faces, out, "--images", 3) == 0
    # A checkpoint that knows the names only is still resumed from.
    found = read(out / "checkpoint.pt")
    del found["data"]["pixels"]
    torch.save(found, out / "checkpoint.pt")
    picture(changed, 12345)
    assert resume(faces, out, "--images", 4) == 0


@pytest.mark.parametrize("missing", ["images", "data", "optim", "pools", "pool_rng", "rng", "meter", "config"])
def test_a_checkpoint_with_a_part_missing(data: Path, eight: Path, capsys: Capture, missing: str) -> None:
    found = read(eight / "checkpoint.pt")
    del found[missing]
    torch.save(found, eight / "checkpoint.pt")
    assert resume(data, eight, "--images", 16) == 1
    error = the_error(capsys.readouterr().err)
    assert str(eight) in error and (missing in error or "settings" in error)


def test_resuming_a_run_of_another_system(data: Path, eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = SimpleNamespace(recognises=lambda state: state.get("format") == "anifast.stargan/1")
    module = systems.module
    monkeypatch.setitem(systems.SYSTEMS, "stargan", "stargan")
    monkeypatch.setattr(systems, "module", lambda name, part: stub if name == "stargan" else module(name, part))
    torch.save({"format": "anifast.stargan/1", "nets": {}}, eight / "checkpoint.pt")
    with pytest.raises(AnifastError, match=f"{eight} holds a run of stargan, not of cyclegan"):
        runs.train("cyclegan", data, eight, resume=True, device="cpu")
    torch.save({"generator": torch.zeros(1)}, eight / "checkpoint.pt")
    with pytest.raises(AnifastError, match="no checkpoint of a known system"):
        runs.train("cyclegan", data, eight, resume=True, device="cpu")


class Bomb:
    """Pickled code that leaves a file where it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_resuming_from_pickled_code_is_refused(data: Path, eight: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.save(read(eight / "checkpoint.pt") | {"rng": Bomb(tmp_path / "code-was-run")}, eight / "checkpoint.pt")
    assert resume(data, eight, "--images", 16) == 1
    assert "refused" in the_error(capsys.readouterr().err) and not (tmp_path / "code-was-run").exists()


def test_a_truncated_checkpoint(data: Path, eight: Path, capsys: Capture) -> None:
    content = (eight / "checkpoint.pt").read_bytes()
    (eight / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    assert resume(data, eight, "--images", 16) == 1
    error = the_error(capsys.readouterr().err)
    assert str(eight / "checkpoint.pt") in error and "damaged" in error


@pytest.mark.parametrize(
    "error", [TypeError, AttributeError, struct.error, OverflowError, MemoryError, AssertionError, UnicodeError]
)
def test_whatever_a_damaged_checkpoint_raises_is_one_error(
    eight: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match=f"checkpoint.pt: damaged or not a checkpoint .{error.__name__}.$"):
        state.load(eight)


# --- runs that fail


@pytest.mark.parametrize("limit", [1, 5])
def test_losses_that_are_not_finite_end_the_run(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, limit: int
) -> None:
    """Also where a checkpoint would be due among the bad steps: the last good one stays."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "l1", after(4 * 7 + 1, training.l1, lambda loss: loss * float("nan")))  # 4 in a step
        assert train(data, out, "--images", 16, "--bad-steps", limit, *INTERVALS) == 1
    said = capsys.readouterr()
    error = the_error(said.err)
    for words in (f"image {6 + limit}", "generators is nan", "image 5", str(out / "checkpoint.pt"), "--resume"):
        assert words in error
    skipped = "phase generators of this step and what is behind it are skipped"
    assert said.err.count(skipped) == (out / "log.txt").read_text().count(skipped) == limit - 1
    assert read(out / "checkpoint.pt")["images"] == 5
    assert resume(data, out, "--bad-steps", 10) == 0
    one, other = read(out / "checkpoint.pt"), read(straight / "checkpoint.pt")
    assert one.pop("config") == other.pop("config") | {"bad_steps": 10}
    assert_same(one, other)
    assert learnt(out) == learnt(straight)


class Spoilt(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("phase", ["generators", "discriminators"])
def test_a_single_bad_step_is_skipped_and_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, phase: str, what: str
) -> None:
    """The weights of the phase, and what comes behind it in the step, stay as they were.

    The averages follow where the generators had moved before.
    """
    calls, snapshots, original = itertools.count(1), {}, getattr(training.CycleGAN, phase)
    averages: dict[str, Any] = {}

    def spoilt(self: training.CycleGAN, *inputs: Tensor) -> Any:
        loss, values = original(self, *inputs)
        if next(calls) == 3:
            snapshots["before"] = copy.deepcopy(self.state_dict())
            assert self.ema is not None
            averages["before"] = copy.deepcopy(self.ema.nets)
            loss = Spoilt.apply(loss) if what == "gradient" else loss / 0
        return loss, values

    def begun(self: training.CycleGAN, batch: Any, images: int) -> None:
        if images == 3:
            snapshots["after"] = copy.deepcopy(self.state_dict())
            assert self.ema is not None
            averages["after"] = copy.deepcopy(self.ema.nets)
        begin(self, batch, images)

    begin = training.CycleGAN.begin
    monkeypatch.setattr(training.CycleGAN, phase, spoilt)
    monkeypatch.setattr(training.CycleGAN, "begin", begun)
    assert train(data, tmp_path / "run", "--images", 5, "--log-every", 1, "--bad-steps", 2, "--ema", 1) == 0
    assert_same(snapshots["after"], snapshots["before"])
    for name, net in averages["before"].items():
        for key, mean in net.named_parameters():
            weight, now = snapshots["after"]["nets"][name][key], averages["after"][name].get_parameter(key)
            wanted = mean if phase == "generators" else 0.5 * (mean + weight)  # the half-life is one image
            torch.testing.assert_close(now, wanted, msg=f"{name}.{key}")
            assert phase == "generators" or not torch.equal(mean, weight)
    rows = learnt(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1] and "d_a" not in rows[2] and "d_a" in rows[3]
    assert read(tmp_path / "run" / "checkpoint.pt")["skipped"] == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    named = f"a gradient of phase {phase} is not finite" if what == "gradient" else f"the loss of phase {phase} is inf"
    skipped = {"generators": "and what is behind it are skipped", "discriminators": "is skipped"}[phase]
    assert f"image 2: {named}, phase {phase} of this step {skipped}; 2 in a row" in log
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


def test_an_exploding_loss_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """At the same image whether the run was interrupted or not: the rows before count."""
    words = ("--images", 16, "--log-every", 1, "--save-every", 5)

    def exploding(image: int) -> Callable[..., Tensor]:
        """l1, called four times in a step, too large by far from this image on."""
        return after(4 * (image - 1) + 1, training.l1, lambda loss: loss * 1e4)

    def ends(out: Path, code: int) -> None:
        assert code == 1
        error = the_error(capsys.readouterr().err)
        for wanted in ("stopped at image 13", "loss generators is", "more than 20 times", "image 10", "--resume"):
            assert wanted in error
        assert read(out / "checkpoint.pt")["images"] == 10 and len(read(out / "checkpoint.pt")["watched"]) == 10
        assert learnt(out)[-1]["images"] == 13

    with monkeypatch.context() as patch:
        patch.setattr(training, "l1", exploding(13))
        ends(tmp_path / "one", train(data, tmp_path / "one", *words))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert train(data, tmp_path / "other", *words) == 130
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(training, "l1", exploding(13 - 8))
        ends(tmp_path / "other", resume(data, tmp_path / "other"))
    assert learnt(tmp_path / "other") == learnt(tmp_path / "one")
    assert resume(data, tmp_path / "one") == 0  # from the good checkpoint


def test_ctrl_c_after_bad_steps_keeps_the_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(training, "l1", after(4 * 6 + 1, training.l1, lambda loss: loss * float("nan")))
    interrupt_at(monkeypatch, 8)
    assert train(data, out, "--images", 16, *INTERVALS) == 130
    assert read(out / "checkpoint.pt")["images"] == 5
    assert "stopped at image 8 of 16; the checkpoint of image 5" in capsys.readouterr().out


def test_a_run_that_diverges_before_its_first_checkpoint(data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert train(data, out, "--images", 16, "--lr", "1e36") == 1
    error = the_error(capsys.readouterr().err)
    assert (
        "nothing was saved yet" in error
        and "10th step in a row" in error
        and "--lr" in error
        and "--resume" not in error
    )
    assert not (out / "checkpoint.pt").exists()


def test_weights_that_are_not_finite_are_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def spoil(batch: Any) -> Any:
        state = spoilt[0].system.nets["G_BA"].state_dict()
        state["model.1.weight"].fill_(float("inf"))
        return batch

    spoilt: list[Any] = []
    original = Loop.run
    monkeypatch.setattr(Loop, "run", lambda self: spoilt.append(self) or original(self))
    monkeypatch.setattr(training.CycleGAN, "discriminators", after(6, training.CycleGAN.discriminators, spoil))
    assert train(data, tmp_path / "run", "--images", 6, *INTERVALS) == 1
    error = the_error(capsys.readouterr().err)
    assert "weights" in error and "image 5" in error
    assert read(tmp_path / "run" / "checkpoint.pt")["images"] == 5


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write", "torch's writer", "rename"])
def test_a_full_disk_leaves_the_checkpoint_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, where: str
) -> None:
    out = tmp_path / "run"
    assert train(data, out, "--images", 3, *INTERVALS) == 0
    before = (out / "checkpoint.pt").read_bytes()
    rename = os.replace

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        if where == "write":
            full_disk()
        raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file")

    def full(source: Path, target: Path) -> None:
        full_disk() if target.name == "checkpoint.pt" else rename(source, target)

    if where == "rename":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(torch, "save", half)
    assert resume(data, out, "--images", 8) == 1
    monkeypatch.undo()
    error = the_error(capsys.readouterr().err)
    assert str(out / "checkpoint.pt") in error and "space" in error
    assert (out / "checkpoint.pt").read_bytes() == before and not leftovers(out)
    assert resume(data, out, "--images", 8) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_the_log(data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.txt").symlink_to("/dev/full")
    assert train(data, out, "--images", 2) == 1
    error = the_error(capsys.readouterr().err)
    assert str(out / "log.txt") in error and "No space left" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_the_metrics(
    data: Path, eight: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = eight / "metrics.jsonl"

    def fill(batch: Any) -> Any:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
        return batch

    monkeypatch.setattr(training.Pictures, "next", after(1, training.Pictures.next, fill))
    assert resume(data, eight, "--images", 9) == 1
    assert str(path) in the_error(capsys.readouterr().err)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_a_folder_that_cannot_be_written(data: Path, capsys: Capture) -> None:
    """/proc takes no files, not even the superuser's."""
    assert train(data, Path("/proc/self/run"), "--images", 2) == 1
    error = the_error(capsys.readouterr().err)
    assert "cannot write to the run folder /proc/self/run" in error and "--out" in error


@pytest.mark.parametrize("under", [False, True])
def test_the_run_folder_is_a_file(data: Path, tmp_path: Path, capsys: Capture, under: bool) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "run" if under else tmp_path / "file"
    assert train(data, out, "--images", 2) == 1
    error = the_error(capsys.readouterr().err)
    assert str(out) in error and "--out" in error
    assert (tmp_path / "file").read_text() == "mine"


# --- data


def test_pictures_that_are_none_are_skipped_and_named(data: Path, tmp_path: Path, capsys: Capture) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(data, faces)
    (faces / "trainA" / "note.jpg").write_text("not a picture at all\n")
    whole = picture(faces / "trainB" / "cut.png", 1).read_bytes()
    (faces / "trainB" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert train(faces, tmp_path / "run", "--images", 2) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "2 pictures cannot be used" in log
    assert "trainA/note.jpg: not a picture: a text file" in log and "trainB/cut.png: " in log
    assert "A 5, B 5 pictures" in log


def test_testfolders_are_not_needed(data: Path, tmp_path: Path) -> None:
    for name in ("trainA", "trainB"):
        shutil.copytree(data / name, tmp_path / "faces" / name)
    assert train(tmp_path / "faces", tmp_path / "run", "--images", 1) == 0
    assert (tmp_path / "run" / "samples" / "0000001.png").exists()


def test_empty_testfolders_are_as_none(data: Path, tmp_path: Path) -> None:
    for name in ("trainA", "trainB"):
        shutil.copytree(data / name, tmp_path / "faces" / name)
    (tmp_path / "faces" / "testA").mkdir()
    assert train(tmp_path / "faces", tmp_path / "run", "--images", 1) == 0


@pytest.mark.parametrize("kind", ["file", "text", "damaged"])
def test_testfolders_that_cannot_be_used(data: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(data, faces)
    shutil.rmtree(faces / "testB")
    if kind == "file":
        (faces / "testB").write_text("mine")
    else:
        (faces / "testB").mkdir()
        name = "note.txt" if kind == "text" else "0.png"
        (faces / "testB" / name).write_bytes((data / "testB" / "0.png").read_bytes()[:60] if "0" in name else b"text")
    assert train(faces, tmp_path / "run", "--images", 1) == 1
    assert str(faces / "testB") in the_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (("trainA", "trainB", "testA", "testB"), ("no folder trainA and no folder trainB",)),
        (("trainB",), ("no folder trainB", "Expected")),
    ],
)
def test_missing_folders(
    data: Path, tmp_path: Path, capsys: Capture, remove: tuple[str, ...], words: tuple[str, ...]
) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(data, faces)
    for name in remove:
        shutil.rmtree(faces / name)
    assert train(faces, tmp_path / "run") == 1
    error = the_error(capsys.readouterr().err)
    assert str(faces) in error and all(word in error for word in words)
    assert not (tmp_path / "run").exists()


def test_the_data_folder_is_missing(tmp_path: Path, capsys: Capture) -> None:
    assert train(tmp_path / "nowhere", tmp_path / "run") == 1
    assert str(tmp_path / "nowhere") in the_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rubbish", [False, True])
def test_a_training_folder_without_pictures(data: Path, tmp_path: Path, capsys: Capture, rubbish: bool) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(data, faces)
    shutil.rmtree(faces / "trainA")
    (faces / "trainA").mkdir()
    if rubbish:
        (faces / "trainA" / "note.jpg").write_text("text")
    assert train(faces, tmp_path / "run") == 1
    error = the_error(capsys.readouterr().err)
    assert str(faces / "trainA") in error and "Expected pictures" in error and ("note.jpg" in error) is rubbish
    assert not (tmp_path / "run").exists()


def test_pairs_need_equal_numbers(data: Path, tmp_path: Path, capsys: Capture) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(data, faces)
    (faces / "trainA" / "0.png").unlink()
    assert train(faces, tmp_path / "run", "--pairing", "paired") == 1
    error = the_error(capsys.readouterr().err)
    assert "4" in error and "5" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "30"), "below 32"),
        (("--size", "34"), "multiple of 4"),
        (("--images", "0"), "below 1"),
        (("--seed", str(10**30)), "setting seed"),
        (("--device", "tpu"), "tpu"),
        (("--device", "cuda:77"), "--device cpu"),
    ],
)
def test_settings_that_cannot_be_are_one_error(
    data: Path, tmp_path: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert train(data, tmp_path / "run", *options) == 1
    assert words in the_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


# --- parts


def test_the_meter_goes_on_from_its_state() -> None:
    straight, one, other = Meter(), Meter(), Meter()
    for i in range(5):
        if i == 3:
            other.load_state_dict(one.state_dict(), torch.device("cpu"))
        value = {"loss": torch.tensor(float(i) ** 2)}
        for meter in (straight, one if i < 3 else other):
            meter.add(value)
    assert other.take() == straight.take() == {"loss": 6.0}
    assert other.take() == {}


def test_ctrl_c_before_the_first_step_ends_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "assemble", press)
    assert cli.main(["train", "cyclegan", "--data", str(data), "--out", str(tmp_path / "run")]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

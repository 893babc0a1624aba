"""`anifast disentangle digits`: three runs, what is done is left out, tables and figures, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, leftovers, the_error
from tiny_disentangle import write_digits

from anifast import cli
from anifast.data.digits import chance_levels
from anifast.data.labelled import load_digits_by
from anifast.errors import AnifastError
from anifast.metrics.disentanglement import Scores, average_distance
from anifast.systems.disentangle import experiment
from anifast.systems.disentangle.experiment import RUNS

Capture = pytest.CaptureFixture[str]
WRITERS = 6
TINY = (
    "--features",
    "8,12,16",
    "--fc",
    24,
    "--content-size",
    12,
    "--style-size",
    8,
    "--batch",
    8,
    "--precision",
    "fp32",
)
STEPS = ("--iterations", 4, "--save-every", 16, "--keep", 3, "--log-every", 8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "data", 120, WRITERS)


@pytest.fixture(scope="module")
def done(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    # --track sets what checkpoints are kept
    assert run(digits, out, *TINY, "--iterations", 4, "--log-every", 8, "--track", "2,4") == 0
    return out


def run(data: Path, out: Path, *words: object) -> int:
    return cli.main(command("disentangle", "digits", "--data", data, "--out", out, "--device", "cpu", *words))


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*STEPS, "--track", "1,2"), "step 1 is asked for, which is after 8 pictures, and --save-every 16"),
        ((*STEPS, "--track", "2", "--keep", 1), "--keep 1 does not keep its checkpoint until step 4; give at least 2"),
        (("--iterations", 4, "--track", "5"), "step 5 is asked for, and stage 1 has 4"),
        (("--iterations", 1000, "--track", "7,500"), "a checkpoint at every 1 steps would be needed"),
    ],
)
def test_steps_that_no_checkpoint_will_be_of(
    digits: Path, tmp_path: Path, capsys: Capture, words: tuple[object, ...], told: str
) -> None:
    assert run(digits, tmp_path / "out", *TINY, *words) == 1
    assert told in the_error(capsys.readouterr().err)
    assert not any((tmp_path / "out").glob("*"))


def test_three_runs_and_their_tables(digits: Path, done: Path) -> None:
    facts = results(done)
    assert facts["format"] == experiment.FORMAT and list(facts["runs"]) == ["E_w", "E_d", "VAE"]
    configs = {name: one["config"] for name, one in facts["runs"].items()}
    assert [configs[name]["label"] for name in ("E_w", "E_d")] == ["writer", "digit"]
    assert [configs[name]["style_size"] for name in configs] == [8, 8, 0]
    assert all(one["nested"] and one["features"] == "8,12,16" for one in configs.values())
    assert all(one["steps"] == 4 and one["codes_stored"] for one in facts["runs"].values())
    losses = facts["runs"]["E_d"]["last_losses"]["stage1"]
    rows = [json.loads(line) for line in (done / "E_d/stage1/metrics.jsonl").read_text().splitlines()]
    assert losses["c1"] == pytest.approx(rows[-1]["c1"]) and "c1" not in facts["runs"]["VAE"]["last_losses"]["stage1"]

    found = torch.load(done / "E_d/codes.pt", weights_only=True)
    z = found["mean"] + found["std"] * torch.randn(120, 12, generator=torch.Generator().manual_seed(0))
    writer, digit = (load_digits_by(digits, label).labels for label in ("writer", "digit"))
    scores = Scores.from_dict(facts["scores"]["E_d"]["codes"])
    for factor, labels in (("writer", writer), ("digit", digit)):
        assert scores.distance[factor][2] == pytest.approx(average_distance(z[:, :2], labels), rel=1e-12)
        assert scores.bayes[factor][2].chance == chance_levels(labels)
    shuffled = Scores.from_dict(facts["scores"]["E_d"]["shuffled"])
    assert shuffled.distance["whole"] == pytest.approx(scores.distance["whole"], rel=1e-12)
    assert len(facts["orderings"]) == 18 and {"text", "holds"} == set(facts["orderings"][0])

    page = (done / "tables.md").read_text()
    for words in (
        "E_w, ours",
        "VAE, paper",
        "chance, ours",
        "E_d shuffled, ours",
        "features 8,12,16",
        "sample, seed 0",
    ):
        assert words in page
    assert f"| {math.log(WRITERS):.4g} |" in page
    for file in facts["figures"]:
        assert f"]({file})" in page
        with Image.open(done / file) as image:
            image.load()
    assert set(facts["figures"]) == set(experiment._CAPTIONS)
    assert str(done) not in (done / "results.json").read_text()
    assert not leftovers(done)


def test_what_is_done_is_left_out(digits: Path, done: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    shutil.rmtree(out / "VAE")
    (out / "E_d/codes.pt").unlink()  # ended before it was encoded
    times = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")} | {
        out / "E_w/codes.pt": (out / "E_w/codes.pt").stat().st_mtime_ns
    }
    assert run(digits, out, *TINY, *STEPS) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    text = capsys.readouterr().out
    assert "E_w: done already" in text and "E_d: goes on" in text and "VAE: ->" in text
    old, new = results(done), results(out)
    assert new["scores"] == old["scores"]  # encoded and trained again, it is the same
    assert "tracks.png" not in new["figures"]


def test_a_run_that_was_interrupted_goes_on(digits: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(digits, out, *TINY, *STEPS, "--iterations", 2) == 0
    for name in RUNS:  # as after Ctrl-C: stage 1 is not over, and nothing is encoded
        (out / name / "codes.pt").unlink()
    assert run(digits, out, *TINY, *STEPS) == 0
    assert results(out)["scores"] == results(done)["scores"]


def test_other_runs_beside(digits: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    other = tmp_path / "mlp"
    words = command(
        "train", "disentangle", "--data", digits, "--out", other, "--preset", "nist_fast", "--device", "cpu"
    )
    words += command(*TINY, *STEPS, "--c1-input", "code", "--mlp-width", 16, "--stage2-iterations", 0)
    assert cli.main(words) == 0
    assert run(digits, out, "--beside", other, "--track", "4", "--codes", "mean") == 0
    facts = results(out)
    assert list(facts["runs"]) == ["E_w", "E_d", "VAE", "mlp"] and facts["settings"]["codes"] == "mean"
    page = (out / "tables.md").read_text()
    assert facts["runs"]["mlp"]["folder"] == "mlp" and str(tmp_path) not in (out / "results.json").read_text()
    assert "| mlp, ours |" in page and "mlp shuffled" not in page and "mlp differs in: c1_input code" in page


def test_defaults_by_device() -> None:
    cpu, gpu = (experiment.defaults("E_w", {}, None, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert cpu["iterations"] == 3000 and cpu["features"] == "32,64,128" and cpu["fc"] == 256
    assert "iterations" not in gpu and "features" not in gpu
    assert gpu["cuda_graphs"] and "cuda_graphs" not in cpu
    assert gpu["stage2_iterations"] == gpu["classifier_iterations"] == 0 and gpu["label"] == "writer"
    given = experiment.defaults("VAE", {"iterations": 7, "fc": 9}, False, torch.device("cpu"))
    assert given["iterations"] == 7 and given["fc"] == 9 and "features" not in given and given["style_size"] == 0
    steps = {name: experiment.defaults(name, {"stage2_iterations": 800}, None, torch.device("cpu")) for name in RUNS}
    # the paper pre-trains 800,000 steps for 320,000 of stage 2, and an eighth where digits are the label
    assert [steps[name]["classifier_iterations"] for name in ("E_w", "E_d")] == [2000, 250]


def test_tables_are_written_before_figures(
    digits: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    for name in ("results.json", "tables.md"):
        (out / name).unlink()

    def broken(*_: object) -> object:
        raise AnifastError("no figure")

    monkeypatch.setattr(experiment, "_figures", broken)
    assert run(digits, out) == 1
    assert results(out)["scores"] == results(done)["scores"] and results(out)["figures"] == []
    assert "E_w, ours" in (out / "tables.md").read_text()


def test_codes_are_drawn_with_the_seed_of_the_runs(digits: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run(digits, out, *TINY, *STEPS, "--seed", 5) == 0
    assert run(digits, out) == 0
    assert results(out)["settings"]["seed"] == 5
    shutil.rmtree(out / "VAE")
    assert run(digits, out, *TINY, *STEPS) == 1
    assert "VAE would get 0; give --seed 5" in the_error(capsys.readouterr().err)
    assert not (out / "VAE").exists()


def test_stage_2_is_added(digits: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ("--stage2-batch", 8, "--classifier-batch", 8)
    assert run(digits, out, *TINY, *STEPS, *small) == 0
    assert run(digits, out, *TINY, *STEPS, *small, "--stage2-iterations", 3) == 0
    facts = results(out)
    assert [one["stage"] for one in facts["runs"].values()] == ["stage2", "stage2", "stage1"]
    assert (facts["runs"]["E_w"]["steps"], facts["runs"]["E_w"]["stage2_steps"]) == (4, 3)
    assert "| E_w | 4 |" in (out / "tables.md").read_text()
    assert "g_d" in facts["runs"]["E_w"]["last_losses"]["stage2"]
    assert facts["scores"] == results(done)["scores"]  # the encoder is stage 1's


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--track", "1,x"), "--track 1,x: steps"),
        (("--floor", "0"), "floor"),
    ],
)
def test_refusals(digits: Path, tmp_path: Path, capsys: Capture, words: tuple[str, ...], told: str) -> None:
    assert run(digits, tmp_path / "out", *words) == 1
    assert told in the_error(capsys.readouterr().err)
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("words", [("--label", "digit"), ("--start-from", "x"), ("--preset", "small")])
def test_options_that_are_the_experiments(
    digits: Path, tmp_path: Path, capsys: Capture, words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(digits, tmp_path / "out", *words)
    assert stopped.value.code == 2 and words[0] in capsys.readouterr().err


def test_what_a_finished_experiment_refuses(digits: Path, done: Path, capsys: Capture) -> None:
    before = (done / "results.json").read_bytes()
    for words, told in (
        (("--iterations", 9), "stage 1 has ended after 4 steps, and the codes stand on it"),
        (("--lr", 0.1), "a resumed run keeps its settings"),
        (("--preset", "nist"), "classifier_batch (128, not 16)"),
        (("--track", "3"), "no checkpoint of step 3, which --track asks for; there are"),
        (("--beside", digits), "no checkpoint.pt"),
    ):
        assert run(digits, done, *words) == 1
        assert told in the_error(capsys.readouterr().err)
    assert (done / "results.json").read_bytes() == before

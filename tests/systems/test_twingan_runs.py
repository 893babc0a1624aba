"""Runs of Twin-GAN: all phases at once or one by one, interrupted and resumed, grown further, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stepping import assert_same, killed, rows_of, words
from tiny_cyclegan import ROOT, command, leftovers, own_cache, read, the_error
from tiny_twingan import TINY, make_data
from torch import Tensor

from anifast import cli, systems
from anifast.data.tags import TAGS
from anifast.engine.distributed import Team
from anifast.errors import AnifastError
from anifast.systems.twingan import stages, training
from anifast.systems.twingan.config import Config, make
from anifast.systems.twingan.training import TwinGAN

Capture = pytest.CaptureFixture[str]
PHASES = ("4", "4to8", "8")
#: Three steps in each phase; odd intervals, so that checkpoints, log lines and sheets do not fall together.
SMALL: dict[str, Any] = TINY | {"size": 8, "phase_images": 6, "last_images": 6, "ema": 0.9, "lr": 1e-3}
INTERVALS = ("--log-every", 2, "--save-every", 4, "--sheet-every", 5)
#: What a line of metrics.jsonl tells beside losses.
OTHERS = {"images", "step", "lr", "alpha", "skipped", "images_per_second", "data_wait", "generator"}


def train(data: Path, out: Path, *options: object) -> int:
    """`anifast train twingan` in this process; the exit code."""
    return cli.main(command("train", "twingan", "--data", data, "--out", out, "--device", "cpu", *options))


def fresh(data: Path, out: Path, *options: object, **changes: Any) -> int:
    """A new run with the tiny networks. (The later of two equal options counts.)"""
    return train(data, out, *words(SMALL, **changes), *INTERVALS, *options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("faces")
    with own_cache(root / "cache"):
        yield make_data(root / "data", size=20, count=6, tags=True)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases, without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert fresh(data, out) == 0
    return out


def state(run: Path, phase: str) -> dict[str, Any]:
    return read(run / phase / "checkpoint.pt")


def folders(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()} - {".lock", "config.json"}


def assert_same_runs(one: Path, other: Path, *settings: str, held: tuple[str, ...] = PHASES) -> None:
    """Bit for bit, but for some settings."""
    for phase in held:
        found, expected = state(one, phase), state(other, phase)
        for name in settings:
            found["config"][name] = expected["config"][name]
        assert_same(found, expected, phase)
        assert rows_of(one / phase) == rows_of(other / phase)
        for sheet in (other / phase / "samples").iterdir():
            assert (one / phase / "samples" / sheet.name).read_bytes() == sheet.read_bytes(), (phase, sheet.name)
    assert not leftovers(one)


# --- what a run writes


def test_a_run_writes_its_files(straight: Path) -> None:
    assert folders(straight) == set(PHASES)
    assert json.loads((straight / "config.json").read_text())["system"] == "twingan"
    for phase in PHASES:
        folder = straight / phase
        files = {"checkpoint.pt", "config.json", "log.txt", "losses.png", "metrics.jsonl", "samples"}
        assert {path.name for path in folder.iterdir()} == files
        assert sorted(int(path.stem) for path in (folder / "samples").iterdir()) == [0, 6]
        for path in [*(folder / "samples").iterdir(), folder / "losses.png"]:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 100
        assert json.loads((folder / "config.json").read_text())["size"] == 8
        rows = rows_of(folder)
        assert [row["images"] for row in rows] == [2, 4, 6] and [row["step"] for row in rows] == [0, 1, 2]
        assert [row["alpha"] for row in rows] == ([0.0, 0.3333, 0.6667] if "to" in phase else [1.0] * 3)
        assert all(row["skipped"] == 0 and row["lr"] == 1e-3 for row in rows)
        log = (folder / "log.txt").read_text()
        assert "preset fast" in log and f"phase {phase}: " in log and "6 images per domain, 3 steps" in log
        assert ("fade in" in log) == ("to" in phase) and "source 6, target 6 pictures" in log


def test_what_is_in_the_checkpoints(straight: Path) -> None:
    """Moments of optimisers and the position in the data begin anew in each phase."""
    for phase in PHASES:
        found = state(straight, phase)
        assert found["format"] == "anifast.twingan/1" and found["stage"] == phase and found["batch"] == 2
        assert found["images"] == 6 and found["steps"] == 3 and found["data"]["drawn"] == 6
        assert list(found["nets"]) == ["E", "G", "D_s", "D_t"] and set(found["ema"]) == {"E", "G"}
        assert found["alpha"] == pytest.approx(2 / 3 if "to" in phase else 1.0)
        for name in "GD":
            assert {float(slots["step"]) for slots in found["optim"][name]["state"].values()} == {3.0}
        assert "tags" not in found
        # averaged weights, and what norms remember as it is
        for name in "EG":
            live, mean = found["nets"][name], found["ema"][name]
            assert torch.equal(live["norms.running_mean"], mean["norms.running_mean"])
            assert not torch.equal(live["norms.beta"], mean["norms.beta"])


def test_every_loss_is_in_the_figure(straight: Path) -> None:
    panels = systems.module("twingan", "training").PANELS
    for phase in PHASES:
        losses = {key for row in rows_of(straight / phase) for key in row} - OTHERS
        assert losses <= {key for panel in panels for key in panel.keys}
        assert losses >= {"rec_s", "gan_t", "sem_st", "d_s", "gp_t"}


def test_phases_stand_on_one_another(data: Path, tmp_path: Path) -> None:
    """Nothing moves at rate 0: layers are those of the phase before, and norms go on remembering."""
    out = tmp_path / "run"
    assert fresh(data, out, lr=0.0) == 0
    before: dict[str, dict[str, Tensor]] = {}
    for phase in PHASES:
        nets = state(out, phase)["nets"]
        for name, net in nets.items():
            both = [key for key in before.get(name, {}) if key in net and not key.startswith("norms.")]
            assert all(torch.equal(net[key], before[name][key]) for key in both)
            assert phase == "4" or both
        before = nets
    share = [1 - 0.99 ** (2 * 3 * (1 + number)) for number in range(3)]  # how full the memory is, twice a step
    for phase, full in zip(PHASES, share, strict=True):
        weight = state(out, phase)["nets"]["G"]["norms.renorm_weight"]  # of blocks.4.0 first
        torch.testing.assert_close(weight[:, 0], torch.full((2, 2), full), rtol=1e-5, atol=0)
    new = state(out, "8")["nets"]["G"]["norms.renorm_weight"]  # of the layers of 8 px
    torch.testing.assert_close(new[:, 2], torch.full((2, 2), share[1]), rtol=1e-5, atol=0)


# --- interruptions


def test_a_run_that_is_broken_off_again_and_again_is_the_run_uninterrupted(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    """Before the first checkpoint of a phase, within each phase, and between two."""
    out = tmp_path / "run"
    killed(TwinGAN, "begin", 1, lambda: fresh(data, out))
    assert not (out / "4" / "checkpoint.pt").exists()
    killed(TwinGAN, "begin", 2, lambda: train(data, out, "--resume"))
    assert state(out, "4")["images"] == 4
    killed(TwinGAN, "__init__", 1, lambda: train(data, out, "--resume"))
    assert state(out, "4")["images"] == 6 and not (out / "4to8").exists()
    killed(TwinGAN, "begin", 1, lambda: train(data, out, "--resume"))
    assert not (out / "4to8" / "checkpoint.pt").exists()
    killed(TwinGAN, "begin", 2, lambda: train(data, out, "--resume"))
    assert state(out, "4to8")["images"] == 4
    killed(TwinGAN, "begin", 1 + 2, lambda: train(data, out, "--resume"))
    assert state(out, "4to8")["images"] == 6 and state(out, "8")["images"] == 4
    assert train(data, out, "--resume") == 0
    assert_same_runs(out, straight)
    for phase in PHASES:
        assert "resumed at image 4" in (out / phase / "log.txt").read_text()


def test_phases_one_by_one_are_the_run_of_all(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert fresh(data, out, "--stage", "4") == 0
    assert folders(out) == {"4"}
    assert train(data, out, "--resume", "--stage", "8") == 1
    error = the_error(capsys.readouterr().err)
    assert "phase 8 begins with what phase 4to8 has learnt" in error and "--start-from" in error
    assert train(data, out, "--resume", "--stage", "4to8") == 0
    assert train(data, out, "--resume", "--stage", "8") == 0
    assert_same_runs(out, straight, "stage")


def test_phases_that_are_there_are_left_out(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """They stand below later ones, which they would not fit if they went on."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    assert train(data, out, "--resume") == 1
    error = the_error(capsys.readouterr().err)
    assert "nothing is left to train" in error and "--last-images" in error
    before = {phase: (out / phase / "checkpoint.pt").read_bytes() for phase in PHASES}
    assert train(data, out, "--resume", "--phase-images", 20, "--last-images", 8) == 0
    for phase in ("4", "4to8"):
        assert (out / phase / "checkpoint.pt").read_bytes() == before[phase]
    assert state(out, "8")["images"] == 8
    assert train(data, out, "--resume", "--stage", "4to8") == 1
    assert "4to8 cannot go on, as 8 stand on it as it is" in the_error(capsys.readouterr().err)


def test_rates_and_weights_can_be_changed_on_resume(data: Path, tmp_path: Path) -> None:
    """As the author has changed them by hand at the end; what was trained before stays."""
    out, changed = tmp_path / "run", tmp_path / "changed"
    assert fresh(data, out, "--stage", "4", phase_images=4) == 0
    shutil.copytree(out, changed)
    longer = ("--resume", "--stage", "4", "--phase-images", 6)
    assert train(data, out, *longer) == 0
    assert train(data, changed, *longer, "--lr", 0, "--d-lr", 0.01, "--gp-weight", 0, "--rec-weight", 2) == 0
    usual, other = rows_of(out / "4")[-1], rows_of(changed / "4")[-1]
    assert usual["lr"] == 1e-3 and other["lr"] == 0.0
    assert usual["gp_s"] > 0 == other["gp_s"]
    assert other["rec_s"] == pytest.approx(2 * usual["rec_s"], rel=1e-5)
    before = state(out, "4")["nets"]  # of rate 1e-3
    after = state(changed, "4")
    assert after["config"]["lr"] == 0.0 and after["config"]["d_lr"] == 0.01
    assert not torch.equal(after["nets"]["E"]["from_rgb.4.weight"], before["E"]["from_rgb.4.weight"])
    # one step of Adam at 0.01 moves weights further than three at 0.001 have
    moved = (after["nets"]["D_s"]["out.weight"] - before["D_s"]["out.weight"]).abs().max()
    assert float(moved) > 5e-3


def test_steps_that_are_not_finite_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad batch: the run goes on and ends with finite weights and memories."""
    original, calls = training.Pictures.next, []

    def bad(self: Any) -> Any:
        batch = original(self)
        calls.append(1)
        return batch._replace(target=batch.target * float("nan")) if len(calls) == 5 else batch

    monkeypatch.setattr(training.Pictures, "next", bad)
    assert fresh(data, tmp_path / "run") == 0
    assert [state(tmp_path / "run", phase)["skipped"] for phase in PHASES] == [0, 1, 0]
    assert rows_of(tmp_path / "run" / "4to8")[-1]["skipped"] == 1
    assert "loss of phase generator is nan" in (tmp_path / "run" / "4to8" / "log.txt").read_text()
    found = state(tmp_path / "run", "8")
    for net in (*found["nets"].values(), *found["ema"].values()):
        for key, value in net.items():
            assert bool(value.isfinite().all()), key


# --- other settings


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("tg2018", {"ema": 0.0}),
        ("fast", {"style": 4, "share_batch": False}),
        ("fast", {"self_attention": True, "attention_size": 8, "spectral_norm": True, "spectral_norm_g": True}),
        ("fast", {"norm": "instance_norm", "loss": "wgan_gp", "d_steps": 2, "batch": 1}),
        ("fast", {"norm": "layer_norm", "loss": "hinge", "unet": False, "rec_gan_from": 8, "precision": "bf16"}),
    ],
    ids=["tg2018", "styles", "attention and spectral norm", "instance norm", "layer norm"],
)
def test_whole_runs_go_on_bit_for_bit(preset: str, changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """All phases, killed in the one that fades in, with what the settings add in their checkpoints."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert fresh(data, whole, "--preset", preset, **changes) == 0
    steps = 3 if changes.get("batch") != 1 else 6
    killed(TwinGAN, "begin", 2 * steps - 1, lambda: fresh(data, out, "--preset", preset, **changes))
    assert state(out, "4to8")["images"] == 4
    assert train(data, out, "--resume") == 0
    assert_same_runs(out, whole)
    found = state(whole, "8")
    assert ("E_style" in found["nets"]) == bool(changes.get("style"))
    assert ("ema" in found) == (preset != "tg2018")
    own = 1 + changes.get("d_steps", 1) - changes.get("share_batch", preset != "tg2018")
    assert found["data"]["drawn"] == 6 * own  # pictures of the discriminators' own batches


def test_a_run_with_tags(data: Path, tmp_path: Path) -> None:
    """Their list is in the checkpoints, and what the discriminator is told them by is the same in all phases."""
    out = tmp_path / "run"
    assert fresh(data, out, "--tags") == 0
    assert [state(out, phase)["tags"] for phase in PHASES] == [[list(row) for row in TAGS]] * 3
    matrices = [state(out, phase)["nets"]["D_t"]["tag_matrix"] for phase in PHASES]
    assert all(torch.equal(matrix, matrices[0]) for matrix in matrices) and matrices[0].shape == (51, 16)
    assert state(out, "8")["nets"]["D_t"]["tag_head.weight"].shape[0] == 51
    assert "tag_head.weight" not in state(out, "8")["nets"]["D_s"]
    rows = rows_of(out / "8")
    assert all(0 < row["tags_d"] < 2 and 0 < row["tags_g"] < 2 for row in rows)
    assert "51 tags" in (out / "8" / "log.txt").read_text()
    other = tmp_path / "killed"
    killed(TwinGAN, "begin", 5, lambda: fresh(data, other, "--tags"))
    assert train(data, other, "--resume") == 0
    assert_same_runs(other, out)


# --- growing a trained model further


def test_a_trained_model_grows_further(data: Path, straight: Path, tmp_path: Path) -> None:
    """Only with the phases behind its own; at rate 0 its layers stay what they were. Resuming stays with these."""
    out = tmp_path / "run"
    options = ("--start-from", straight)
    killed(TwinGAN, "begin", 2, lambda: fresh(data, out, *options, size=16, lr=0.0))
    assert folders(out) == {"8to16"} and state(out, "8to16")["images"] == 4
    assert train(data, out, "--resume") == 0
    assert folders(out) == {"8to16", "16"}
    before = state(straight, "8")
    for phase in ("8to16", "16"):
        found = state(out, phase)
        for part in ("nets", "ema"):
            for name, net in found[part].items():
                for key, value in before[part][name].items():
                    if key in net and not key.startswith("norms."):
                        equal = torch.equal(value, net[key])
                        assert equal or part == "ema", (phase, part, name, key)
    whole = tmp_path / "whole"
    assert fresh(data, whole, "--start-from", straight / "8", size=16, lr=0.0) == 0
    assert_same_runs(out, whole, held=("8to16", "16"))


def test_averages_begin_with_those_of_the_phase_before(data: Path, straight: Path, tmp_path: Path) -> None:
    """Within a run and where one grows another's; new layers as they are in training."""
    begun: dict[str, dict[str, Any]] = {}
    original = TwinGAN.begin

    def noted(self: TwinGAN, batch: Any, images: int) -> None:
        if images == 0:
            assert self.ema is not None
            begun[self.stage] = copy.deepcopy({"nets": self.state_dict()["nets"], "ema": self.ema.state_dict()})
        original(self, batch, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwinGAN, "begin", noted)
        assert fresh(data, tmp_path / "run") == 0
        assert fresh(data, tmp_path / "grown", "--start-from", straight, size=16) == 0
    for before, after, run in (("4", "4to8", "run"), ("4to8", "8", "run"), ("8", "8to16", "grown")):
        source = state(straight if run == "grown" else tmp_path / run, before)
        for name in "EG":
            taken = 0
            for key, value in begun[after]["ema"][name].items():
                if key.startswith("norms."):
                    continue
                if key in source["ema"][name]:
                    assert torch.equal(value, source["ema"][name][key]), (after, name, key)
                    assert torch.equal(begun[after]["nets"][name][key], source["nets"][name][key]), (after, name, key)
                    taken += not torch.equal(value, source["nets"][name][key])
                else:
                    assert torch.equal(value, begun[after]["nets"][name][key]), (after, name, key)
            assert taken, (after, name)


def test_models_that_cannot_be_grown(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    alone = {key: value for key, value in state(straight, "8").items() if key in ("format", "config", "stage", "alpha")}
    nets = state(straight, "8")["nets"]
    torch.save(alone | {"nets": {name: nets[name] for name in "EG"}}, tmp_path / "painting.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (straight, {}, "start_from: .* is of phase 8, so nothing is left to train up to size 8; take a larger --size"),
        (straight, {"size": 16, "max_channels": 4}, "networks are not those of this run; they need --max-channels 8"),
        (straight, {"size": 16, "norm": "batch_norm"}, "not those of this run; they need --norm batch_renorm$"),
        (straight, {"size": 16, "tags": True}, "not those of this run; they need --no-tags --unet-max 512$"),
        (
            straight,
            {"size": 16, "self_attention": True, "attention_size": 16, "unet": False, "equalized": True},
            "they need --no-equalized .*--unet-max 512 --no-self-attention$",
        ),
        (tmp_path / "painting.pt", {"size": 16}, r"painting\.pt: D_s, D_t are not in it, only E, G: "),
        (tmp_path / "other.pt", {"size": 16}, r"other\.pt"),
        (tmp_path / "nowhere", {"size": 16}, "nowhere"),
    ]
    for number, (source, changes, text) in enumerate(cases):
        out = tmp_path / str(number)
        assert fresh(data, out, "--start-from", source, **changes) == 1, text
        assert re.search(text, the_error(capsys.readouterr().err)), text
        assert not list(out.rglob("checkpoint.pt"))


def test_tags_of_a_model_are_those_of_the_data(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """A phase begins with networks that know the same tags; so does a run that grows them."""
    out, other = tmp_path / "run", tmp_path / "data"
    assert fresh(data, out, "--tags", size=4) == 0
    shutil.copytree(data, other)
    listed = "".join(f"{number}\t{name}\t{group}\n" for number, name, group in reversed(TAGS))
    (other / "target" / "taglist.tsv").write_text(listed)
    assert fresh(other, tmp_path / "grown", "--tags", "--start-from", out) == 1
    error = the_error(capsys.readouterr().err)
    assert f"{out}: its networks know other tags ({TAGS[0][1]}, " in error and "put the taglist.tsv back" in error
    assert fresh(data, tmp_path / "grown", "--tags", "--start-from", out) == 0
    assert state(tmp_path / "grown", "8")["tags"] == [list(row) for row in TAGS]


# --- what is refused


def test_what_cannot_be_changed_on_resume(data: Path, straight: Path, capsys: Capture) -> None:
    before = {phase: (straight / phase / "checkpoint.pt").read_bytes() for phase in PHASES}
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--size", 16), "size"),
        (("--batch", 3), "batch"),
        (("--max-channels", 4), "max.channels"),
        (("--norm", "none"), "norm"),
        (("--preset", "tg2018"), "a resumed run keeps its settings; leave --preset out"),
        (("--stage", "16"), "16 is beyond size 8"),
    ]
    for options, text in cases:
        assert train(data, straight, "--resume", *options) == 1, text
        assert re.search(text, the_error(capsys.readouterr().err)), text
    assert fresh(data, straight) == 1
    assert "already holds a run (config.json): go on with it by --resume" in the_error(capsys.readouterr().err)
    assert before == {phase: (straight / phase / "checkpoint.pt").read_bytes() for phase in PHASES}


def test_a_run_without_the_phase_before(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """A run folder that has lost one."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    for phase in ("4to8", "8"):
        shutil.rmtree(out / phase)
    assert train(data, out, "--resume", "--stage", "8") == 1
    error = the_error(capsys.readouterr().err)
    assert "phase 8 begins with what phase 4to8 has learnt" in error and str(out / "4to8") in error


def test_a_run_that_has_lost_a_phase_in_its_midst(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    """Nothing is trained anew that the phases behind it would not stand on."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "4to8")
    assert train(data, out, "--resume") == 1
    error = the_error(capsys.readouterr().err)
    assert "phase 4to8 is missing, which phase 8 has begun with" in error and "from 8 on to train them anew" in error
    assert not (out / "4to8").exists()


def test_a_phase_begins_where_the_one_before_ends(data: Path, straight: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "8")
    found = state(out, "4to8")
    total = found["config"]["phase_images"]
    torch.save(found | {"images": 2, "alpha": 0.1}, out / "4to8" / "checkpoint.pt")
    assert train(data, out, "--resume", "--stage", "8") == 1
    error = the_error(capsys.readouterr().err)
    assert f"phase 4to8 has seen 2 of {total} images, and phase 8 begins where it ends" in error
    assert fresh(data, tmp_path / "other", "--start-from", out / "4to8", size=16) == 1
    assert "phase 4to8 has not come to its end (10% faded in)" in the_error(capsys.readouterr().err)
    assert not (out / "8").exists()


def test_batches_of_all_phases_are_shared_out_before_the_first(data: Path, tmp_path: Path) -> None:
    """And not when the phase begins that cannot be."""
    team = Team(torch.device("cpu"), 0, 2)
    with pytest.raises(AnifastError, match="batch: 3 cannot be shared out evenly over 2 processes"):
        stages.stages(make("tg2018"), data, tmp_path / "run", team.device, team)
    assert len(stages.stages(make("tg2018", {"size": 128}), data, tmp_path / "run", team.device, team)) == 11


def test_bad_settings_and_folders(data: Path, tmp_path: Path, capsys: Capture) -> None:
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (data, {"size": 24}, "size: 24 is not a power of two; take 16 or 32"),
        (data, {"style": 4, "norm": "instance_norm"}, "instance_norm: leaves nothing of the last maps of the style's"),
        (data, {"batch": 1}, "1 picture has no statistics that batch_renorm could take"),
        (data, {"batch": 7}, "6 pictures that can be read, and a batch has 7"),
        (data / "source", {}, "no folder source/train or trainA"),
    ]
    for number, (root, changes, text) in enumerate(cases):
        assert fresh(root, tmp_path / str(number), **changes) == 1, text
        assert text in the_error(capsys.readouterr().err)
        assert not list((tmp_path / str(number)).rglob("checkpoint.pt"))


def test_too_many_bad_steps_end_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original = training.Pictures.next
    monkeypatch.setattr(
        training.Pictures, "next", lambda self: original(self)._replace(source=torch.full((2, 3, 4, 4), torch.nan))
    )
    assert fresh(data, tmp_path / "run", "--bad-steps", 2) == 1
    assert "the 2th step in a row" in capsys.readouterr().err.replace("2nd", "2th")


# --- several processes


@pytest.mark.heavy
def test_a_run_of_two_processes_goes_on_with_one(data: Path, tmp_path: Path) -> None:
    """All phases, killed by its settings in the last."""
    out = tmp_path / "run"
    options = words(SMALL, batch=4, phase_images=8, last_images=8)
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "anifast", "train", "twingan")
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
    assert state(out, "8")["images"] == 8
    assert "2 processes, 2 of a batch's 4 images each" in (out / "8" / "log.txt").read_text()
    assert train(data, out, "--resume", "--last-images", 12) == 0
    assert state(out, "8")["images"] == 12


def test_stages_name_what_they_take_over() -> None:
    assert stages.Run.TAKING_OVER.startswith("--start-from") and Config().phases[-1] == "256"

"""Files of Twin-GAN: runs and checkpoints are read as what they are, refused when damaged, and written anew."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_gnr
import torch
from tiny_cyclegan import command, leftovers, the_error
from tiny_twingan import make_data, networks, stage_state, tiny_config, weights, write_run
from torch import Tensor

from anifast import cli, systems
from anifast.data.tags import TAGS
from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.twingan.checkpoints import (
    architecture,
    averaged,
    build,
    config_of,
    contents,
    gather,
    hash_of,
    header,
    networks_of,
    recognises,
)
from anifast.systems.twingan.config import Config
from anifast.systems.twingan.convert import convert, hint
from anifast.systems.twingan.networks import Encoder, Generator, Norms

Capture = pytest.CaptureFixture[str]


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same bit for bit, NaN too; the order of keys does not matter."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict):
        return isinstance(other, dict) and set(one) == set(other) and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "t")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A run to be spoilt."""
    return shutil.copytree(run, tmp_path / "copied")


def failure(read: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- which files these are, and what they hold


def test_a_run_is_its_last_phase(run: Path) -> None:
    state = systems.read(run)
    assert systems.recognise(state, run) == "twingan" and config_of(state) == tiny_config() and averaged(state)
    found = contents(state)
    assert (found.origin, found.config, found.stage, found.alpha) == ("anifast", tiny_config(), "16", 1.0)
    assert (found.averaged, found.images, found.tags, found.undecided) == (True, 4, None, ())
    assert list(found.nets) == ["E", "G", "D_s", "D_t"] and found.targets == ("B", "A")
    expected = stage_state(tiny_config(), "16")
    for name, net in found.nets.items():
        assert equal(net, expected["ema" if name in ("E", "G") else "nets"][name]), name
    live = contents(state, live=True)
    assert not live.averaged and equal(live.nets, expected["nets"])


def test_a_phase_of_a_run(run: Path) -> None:
    for one in (run / "8to16", run / "8to16" / files.NAME):
        found = contents(systems.read(one))
        assert (found.stage, found.alpha) == ("8to16", 0.25)
    for stage in ("4", "4to8"):
        assert contents(systems.read(run / stage)).stage == stage


def test_a_run_that_is_not_finished(copied: Path) -> None:
    (copied / "16" / files.NAME).unlink()  # begun, or stopped before it saved
    assert contents(systems.read(copied)).stage == "8to16"
    for stage in ("4", "4to8", "8to16"):  # phases before the last are not needed
        shutil.rmtree(copied / stage)
    assert contents(systems.read(copied)).stage == "8"
    shutil.rmtree(copied / "8")
    error = failure(lambda: systems.read(copied))
    assert error.startswith(str(copied)) and "no checkpoint yet" in error and "--resume" in error


def test_phases_that_are_not_the_runs(copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"size": 8}))
    error = failure(lambda: systems.read(copied))
    assert f"8to16/{files.NAME} is no phase of this run" in error and "8 px" in error and str(copied) in error
    (copied / "config.json").write_text(json.dumps(settings))
    shutil.copyfile(copied / "8" / files.NAME, copied / "16" / files.NAME)
    error = failure(lambda: systems.read(copied))
    assert "a checkpoint of phase '8', and lies in the folder of 16" in error and str(copied / "16") in error
    torch.save({"model": {"weight": torch.zeros(1)}}, copied / "16" / files.NAME)
    assert "no checkpoint of Twin-GAN is in it" in failure(lambda: systems.read(copied))
    data = (copied / "8" / files.NAME).read_bytes()
    (copied / "16" / files.NAME).write_bytes(data[:-100])
    error = failure(lambda: systems.read(copied))
    assert str(copied / "16" / files.NAME) in error and "damaged" in error


def test_what_is_none_of_these_is_left_to_others(run: Path, tmp_path: Path) -> None:
    assert gather(tmp_path) is None and gather(tmp_path / "missing") is None
    assert gather(run / "8") is None and gather(run / "8" / files.NAME) is None
    (tmp_path / "config.json").write_text(json.dumps({"system": "cyclegan"}))
    assert gather(tmp_path) is None
    state = systems.read(run)
    for name in systems.SYSTEMS:
        assert systems.module(name, "checkpoints").recognises(state) == (name == "twingan"), name
    assert not recognises({"nets": {}}) and not recognises({"format": "anifast.gnr/1"})


# --- networks


def painted(encoder: Any, generator: Any, side: int, alpha: float, condition: Tensor | None = None) -> Tensor:
    assert isinstance(encoder, Encoder) and isinstance(generator, Generator)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = encoder.eval()(x, (0,), alpha)
        return generator.eval()(latent.z, latent.skips, (1,), alpha, condition)[0]


@pytest.mark.parametrize("stage", ["4", "8to16", "16"])
def test_networks_compute_what_was_saved(run: Path, stage: str) -> None:
    state, side = systems.read(run / stage), int(stage.rpartition("to")[2])
    nets = build(contents(state), "G", "E")
    assert list(nets) == ["G", "E"] and not any(net.training for net in nets.values())
    source = networks(tiny_config(), stage, seed=1)
    alpha = contents(state).alpha
    expected = painted(source["E"], source["G"], side, alpha)
    assert torch.equal(painted(nets["E"], nets["G"], side, alpha), expected)
    began, live = networks_of(state)
    assert began == stage and list(live) == ["E", "G", "D_s", "D_t"]
    assert equal(weights(live), state["nets"])
    kept = networks_of(state, live=False)[1]
    assert equal(weights(kept), state["nets"] | state["ema"])
    for part in live["E"].train().modules():  # all there for training, what is no part of the weights too
        if isinstance(part, Norms):
            assert torch.equal(part.renorm_limits, torch.tensor([0.9, 1.1, 0.1]))
    x = torch.rand(2, 3, side, side)
    assert live["E"](x, (0, 1), alpha).z.isfinite().all()


def test_building_draws_no_random_numbers() -> None:
    for values in ({}, {"spectral_norm": True, "spectral_norm_g": True}):
        state = stage_state(tiny_config(**values), "8")
        before = torch.get_rng_state()
        build(contents(state))
        assert torch.equal(torch.get_rng_state(), before)


def test_networks_that_are_not_there() -> None:
    state = stage_state(tiny_config(), "8")
    state["nets"] = {"D_s": state["nets"]["D_s"]}
    del state["ema"]
    found = contents(state)
    assert failure(lambda: build(found, "E")) == "there is no E in it, only D_s"
    assert "no encoder E" in failure(lambda: hash_of(found))
    assert list(build(found)) == ["D_s"]


@pytest.mark.parametrize("norm", ["batch_renorm", "batch_norm", "instance_norm"])
def test_styles_and_tags(norm: str) -> None:
    config = tiny_config(norm=norm, style=3)
    state = stage_state(config, "8")
    found = contents(state)
    assert list(found.nets) == ["E", "G", "D_s", "D_t", "E_style"]
    assert equal(found.nets["E_style"], state["ema"]["E_style"])
    config = tiny_config(norm=norm, tags=True)
    state = stage_state(config, "8")
    found = contents(state)
    assert found.tags == TAGS
    nets, source = build(found), networks(config, "8", seed=1)
    condition = torch.rand(2, len(TAGS))
    expected = painted(source["E"], source["G"], 8, 1.0, condition)
    assert torch.equal(painted(nets["E"], nets["G"], 8, 1.0, condition), expected)
    for rows, message in ((None, "list of its tags is none"), ([], "is empty"), ([[1, "smile"]], "rows of number")):
        assert message in failure(lambda rows=rows: contents(state | {"tags": rows}))
    assert "gamma_weight has shape" in failure(lambda: contents(state | {"tags": [[1, "smile", 4]]}))


@pytest.mark.parametrize(
    "values",
    [
        {"norm": "layer_norm"},
        {"norm": "none", "unet": False},
        {"spectral_norm": True, "spectral_norm_g": True, "self_attention": True, "attention_size": 8},
        {"max_channels_d": 4, "base_channels": 16, "equalized": True, "pixel_norm": False},
    ],
)
def test_other_networks(values: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**values)
    path = tmp_path / "own.pt"
    torch.save(stage_state(config, "16"), path)
    found = contents(systems.read(path))
    nets, source = build(found), networks(config, "16", seed=1)
    assert torch.equal(painted(nets["E"], nets["G"], 16, 1.0), painted(source["E"], source["G"], 16, 1.0))


# --- damaged


def spoilt(change: Callable[[dict[str, Any]], Any]) -> str:
    state = stage_state(tiny_config(), "8")
    change(state)
    return failure(lambda: contents(state))


def test_damaged_checkpoints() -> None:
    def less(state: dict[str, Any]) -> None:
        del state["ema"]["E"]["blocks.8.0.weight"]

    def more(state: dict[str, Any]) -> None:
        state["nets"]["D_t"]["blocks.16.0.weight"] = torch.zeros(8, 8, 3, 3)

    def other(state: dict[str, Any]) -> None:
        state["ema"]["G"]["norms.gamma"] = torch.zeros(2, 5)

    def text(state: dict[str, Any]) -> None:
        state["ema"]["G"]["norms.gamma"] = "none"

    assert "ema.E: blocks.8.0.weight is missing" in spoilt(less)
    assert "nets.D_t: unknown key blocks.16.0.weight" in spoilt(more) and "phase 8" in spoilt(more)
    assert "ema.G: norms.gamma has shape [2, 5], expected [2, 35]" in spoilt(other)
    assert "norms.gamma is of type str" in spoilt(text)
    assert "its phase is '32', expected one of 4, 4to8, 8, 8to16, 16" in spoilt(lambda s: s.update(stage="32"))
    assert "its phase is None" in spoilt(lambda s: s.pop("stage"))
    for alpha in (1.5, float("nan"), "half", True):
        assert "alpha is" in spoilt(lambda s, alpha=alpha: s.update(alpha=alpha))
    assert "nets is a list" in spoilt(lambda s: s.update(nets=[1]))
    assert "nets has D_x" in spoilt(lambda s: s["nets"].update(D_x={}))
    assert "ema has D_s" in spoilt(lambda s: s["ema"].update(D_s=s["nets"]["D_s"]))
    assert "holds none of E, G" in spoilt(lambda s: (s.pop("ema"), s.update(nets={})))
    style = stage_state(tiny_config(style=3), "8")["ema"]["E_style"]
    assert "E_style, and the setting style is 0" in spoilt(lambda s: s["ema"].update(E_style=style))
    assert "nets.E is empty" in spoilt(lambda s: (s.pop("ema"), s["nets"].update(E={})))
    assert "expected 'anifast.twingan/1'" in spoilt(lambda s: s.update(format="anifast.twingan/2"))
    assert "settings of the run are missing" in spoilt(lambda s: s.pop("config"))
    assert "unknown setting 'colour'" in spoilt(lambda s: s["config"].update(colour=1))
    assert "not a power of two" in spoilt(lambda s: s["config"].update(size=12))
    state = stage_state(tiny_config(), "8")
    assert "was trained with pixel_norm True" in failure(lambda: contents(state, pixel_norm=False))
    assert contents(state, pixel_norm=True).config.pixel_norm


def test_where_a_run_started_is_not_kept() -> None:
    told = header(tiny_config(start_from="somewhere"))
    assert told["config"]["start_from"] is None and config_of(told) == tiny_config()


# --- what tells networks apart


def test_the_hash_follows_what_embeddings_depend_on(run: Path) -> None:
    state = systems.read(run)
    found = contents(state)
    first = hash_of(found)
    assert first == hash_of(contents(systems.read(run / "16"))) and len(first) == 64
    assert first == hash_of(contents(stage_state(tiny_config(lr=0.5, max_channels_d=4), "16")))
    changed = [contents(state, live=True), contents(systems.read(run / "8"))]
    changed += [dataclasses.replace(found, alpha=0.5)]
    changed += [dataclasses.replace(found, config=dataclasses.replace(found.config, pixel_norm=False))]
    moved = dict(found.nets["E"])
    moved["norms.running_mean"] = moved["norms.running_mean"].clone()
    moved["norms.running_mean"][1, -1] += 1e-6
    changed += [dataclasses.replace(found, nets={"E": moved})]
    assert len({first, *(hash_of(one) for one in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("values", "differ"),
    [
        ({"lr": 0.5, "size": 32, "gp_weight": 10.0, "resize": "tf1", "attention_size": 16}, ""),
        ({"max_channels": 4}, "E G D_s D_t"),
        ({"max_channels": 4, "max_channels_d": 8}, "E G"),
        ({"max_channels_d": 8}, ""),
        ({"max_channels_d": 4}, "D_s D_t"),
        ({"norm": "batch_norm"}, "E G"),
        ({"pixel_norm": False}, "E G"),
        ({"unet_max": 8}, "G"),
        ({"unet": False}, "G"),
        ({"fade_skip": "code"}, "E"),
        ({"equalized": True}, "E G D_s D_t"),
        ({"self_attention": True, "attention_size": 16}, "E G D_s D_t"),
        ({"style": 3}, "G E_style"),
    ],
)
def test_architecture(values: dict[str, Any], differ: str) -> None:
    one, other = tiny_config(), tiny_config(**values)
    names = ("E", "G", "D_s", "D_t")
    found = [name for name in names if architecture(one, name) != architecture(other, name)]
    assert found == [name for name in differ.split() if name in names]
    assert (architecture(one) != architecture(other)) == bool(differ)
    own = {field.name for field in dataclasses.fields(Config)}
    assert set(architecture(other)) <= own  # they are said as options in messages


# --- conversion


def written(state: dict[str, Any], out: str = "out.pt", **options: Any) -> dict[str, Any]:
    found = convert(state, Path("nowhere"), Path(out), **options)
    assert len(found) == 1
    return {"path": str(next(iter(found))), **next(iter(found.values()))}


def test_a_run_becomes_one_file(run: Path) -> None:
    state = systems.read(run)
    whole = written(state)
    assert "optim" not in whole and "rng" not in whole and whole["path"] == "out.pt"
    assert equal(whole["nets"], state["nets"]) and equal(whole["ema"], state["ema"])
    assert contents(whole).stage == "16" and hash_of(contents(whole)) == hash_of(contents(state))
    small = written(state, "folder", what="networks")
    assert small["path"] == str(Path("folder") / files.NAME) and "ema" not in small
    assert equal(small["nets"], state["ema"]) and hash_of(contents(small)) == hash_of(contents(state))
    assert "--what all" in hint(whole, "anifast", None) and "D_s, D_t are not in" in hint(small, "anifast", None)
    fading = written(systems.read(run / "4to8"))
    assert contents(fading).alpha == 0.25
    tagged = written(stage_state(tiny_config(tags=True), "8"))
    assert contents(tagged).tags == TAGS


def test_conversions_that_cannot_be(run: Path, tmp_path: Path, capsys: Capture) -> None:
    def refused(*words: object, model: Path = run, out: Path = tmp_path / "x.pt") -> str:
        assert cli.main(command("convert", model, out, *words)) == 1
        return the_error(capsys.readouterr().err)

    assert "there are anifast, safetensors" in refused("--format", "authors")
    assert "one network translates both ways" in refused("--direction", "AB")
    assert "--epoch 200" in refused("--epoch", 200)
    assert "give a name that ends in .safetensors" in refused("--format", "safetensors")
    assert "is a name for --format safetensors" in refused(out=tmp_path / "x.safetensors")
    assert "--equalized: an own file tells this itself" in refused("--equalized")
    gnr = tmp_path / "gnr.pt"
    torch.save(tiny_gnr.own_state(tiny_gnr.tiny_config()), gnr)
    error = refused("--pixel-norm", "on", model=gnr)
    assert error == f"--pixel-norm: {gnr} is of gnr, which has no such option"
    judge = stage_state(tiny_config(ema=0.0), "8")
    judge["nets"] = {"D_s": judge["nets"]["D_s"]}
    torch.save(judge, tmp_path / "judge.pt")
    assert "there is no E in it, only D_s" in refused("--what", "networks", model=tmp_path / "judge.pt")
    with pytest.raises(AnifastError, match="--what some"):
        convert(systems.read(run), run, tmp_path / "y.pt", what="some")
    (tmp_path / "there.pt").write_text("mine")
    assert "is there already" in refused(out=tmp_path / "there.pt")
    assert (tmp_path / "there.pt").read_text() == "mine" and not leftovers(tmp_path)
    assert not list(tmp_path.glob("x.*"))


# --- runs


def train(*words: object) -> int:
    return cli.main(command("train", "twingan", *words, "--device", "cpu"))


def test_a_run_keeps_its_size(copied: Path, tmp_path: Path, capsys: Capture) -> None:
    data = make_data(tmp_path / "data")
    for size in (8, 32):
        assert train("--data", data, "--out", copied, "--resume", "--size", size) == 1
        error = the_error(capsys.readouterr().err)
        assert f"size (16, not {size})" in error and "start a new run in another folder" in error
    assert train("--data", data, "--out", copied) == 1
    assert "already holds a run" in the_error(capsys.readouterr().err)

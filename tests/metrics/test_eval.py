"""`anifast eval`: the figures it gives, what it writes, and one clear error for whatever cannot be done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, data_folder, leftovers, own_cache, picture, read, the_error, train

import anifast
from anifast import cli
from anifast.data.folders import to_float, to_uint8
from anifast.errors import AnifastError
from anifast.metrics import FeatureSet, extractor, fid, kid
from anifast.nn.backbones import SqueezeNet
from anifast.systems import evals

Capture = pytest.CaptureFixture[str]
COUNT = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        data_folder(root / "faces")
        for start, side in ((500, "A"), (700, "B")):
            for i in range(COUNT):
                picture(root / "faces" / f"test{side}" / f"{i}.png", start + i)
        yield root / "faces"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(data, out, "--images", 4) == 0
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of SqueezeNet: the figures mean nothing, but are figures."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_0_imagenet.npz"
    np.savez(path, **{key: value.numpy() for key, value in SqueezeNet().state_dict().items()})
    return path


@pytest.fixture(autouse=True)
def no_weights_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANIFAST_WEIGHTS", raising=False)
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def evaluate(*words: object) -> int:
    return cli.main(command("eval", *words, "--device", "cpu"))


def pictures(folder: Path) -> torch.Tensor:
    """The pictures of a folder at side 32, N,3,32,32."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(found).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def l1(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() - y.double()).abs().mean())


def test_the_figures(run: Path, data: Path, weights: Path, capsys: Capture) -> None:
    """Each figure is what a few lines by hand give."""
    assert evaluate(run, "--data", data, "--weights", weights, "--batch", 2) == 0
    said = capsys.readouterr()
    facts = json.loads((run / "evaluation.json").read_text())
    model, measure = anifast.load(run, "cpu"), extractor("squeezenet", weights)
    real = {side: pictures(data / f"test{side}") for side in "AB"}
    assert facts["system"] == "cyclegan" and facts["size"] == 32 and facts["images_seen"] == 4
    assert facts["features"]["name"] == "squeezenet" and facts["features"]["dim"] == 512
    sets = {}
    for side, images in real.items():
        sets[side] = FeatureSet(512)
        sets[side].update(measure(images))
    for to, source in (("B", "A"), ("A", "B")):
        found = facts["directions"][f"{source} -> {to}"]
        fakes = model.translate(real[source], to=to)
        assert found["pictures"] == COUNT
        assert found["cycle_l1"] == pytest.approx(l1(model.translate(fakes, to=source), real[source]), rel=1e-5)
        assert found["identity_l1"] == pytest.approx(l1(model.translate(real[to], to=to), real[to]), rel=1e-5)
        made = FeatureSet(512)
        made.update(measure(to_float(to_uint8(fakes))))
        assert found["test"]["pictures"] == COUNT
        assert found["test"]["fid"] == pytest.approx(fid(made.statistics, sets[to].statistics), rel=1e-4)
        want = kid(made.features, sets[to].features, subset_size=2)
        assert found["test"]["kid"]["mean"] == pytest.approx(want.mean, rel=1e-3)
        assert found["test"]["kid"]["subset_size"] == 2 and "train" not in found
    between = fid(sets["A"].statistics, sets["B"].statistics)
    assert facts["untranslated"]["fid"] == pytest.approx(between, rel=1e-4)

    table = said.out.splitlines()
    assert table[0].startswith("features: SqueezeNet 1.0") and measure.weights[:8] in table[0]
    for word in ("pictures", "cycle L1", "identity L1", "FID", "KID x100"):
        assert word in table[1]
    assert table[2].startswith("A -> B (testB)") and table[3].startswith("B -> A (testA)")
    assert f"{facts['directions']['A -> B']['cycle_l1']:.4f}" in table[2]
    assert f"{100 * facts['directions']['A -> B']['test']['kid']['mean']:.3f}" in table[2]
    assert str(run / "evaluation.json") in said.out
    assert "5 pictures are not more than the 512 features: FID is too large" in said.err
    assert "testA [####################] 5/5" in said.err and "ETA" in said.err and "img/s" in said.err
    assert not leftovers(run)


def test_batches_change_nothing(run: Path, data: Path, weights: Path, tmp_path: Path) -> None:
    found = []
    for batch in (1, 8):
        out = tmp_path / f"{batch}.json"
        assert evaluate(run, "--data", data, "--weights", weights, "--batch", batch, "--out", out) == 0
        found.append(json.loads(out.read_text())["directions"]["A -> B"])
    assert found[0]["cycle_l1"] == pytest.approx(found[1]["cycle_l1"], rel=1e-5)
    assert found[0]["test"]["fid"] == pytest.approx(found[1]["test"]["fid"], rel=1e-3)


def test_against_the_training_pictures(run: Path, data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "both.json"
    options = ("--weights", weights, "--features", "squeezenet", "--against", "both", "--max", 3, "--out", out)
    assert evaluate(run / "checkpoint.pt", "--data", data, *options) == 0
    facts = json.loads(out.read_text())
    assert facts["limit"] == 3
    for found in facts["directions"].values():
        assert found["pictures"] == found["train"]["pictures"] == found["test"]["pictures"] == 3
        assert found["train"]["fid"] != found["test"]["fid"]
    assert list(out.parent.iterdir()) == [out]


def test_one_direction(run: Path, data: Path, tmp_path: Path) -> None:
    assert evaluate(run, "--data", data, "--features", "none", "--to", "A", "--out", tmp_path / "a.json") == 0
    facts = json.loads((tmp_path / "a.json").read_text())
    assert list(facts["directions"]) == ["B -> A"] and facts["features"] is None
    found = facts["directions"]["B -> A"]
    assert found["cycle_l1"] > 0 and found["identity_l1"] > 0 and "test" not in found
    options = ("--features", "none", "--precision", "bf16", "--out", tmp_path / "b.json")
    assert evaluate(run, "--data", data, *options) == 0
    half = json.loads((tmp_path / "b.json").read_text())
    assert half["precision"] == "bf16" and list(half["directions"]) == ["A -> B", "B -> A"]
    # Pixels have a bf16 rounding of 2^-9 at 1, and no network of this depth makes more than a few of it.
    assert half["directions"]["B -> A"]["cycle_l1"] == pytest.approx(found["cycle_l1"], abs=8 * 2**-9)


def test_a_file_of_one_generator(run: Path, data: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    """The reference's file does not say its direction: A -> B unless told otherwise, and no cycle."""
    saved = read(run / "checkpoint.pt")
    torch.save(saved["nets"]["G_AB"], tmp_path / "latest_net_G.pth")
    options = ("--data", data, "--weights", weights, "--max", 2, "--out", tmp_path / "f.json")
    assert evaluate(tmp_path / "latest_net_G.pth", *options) == 0
    said = capsys.readouterr()
    assert "holds one generator, taken as A -> B (--to A for the other direction)" in said.err
    facts = json.loads((tmp_path / "f.json").read_text())
    assert list(facts["directions"]) == ["A -> B"]
    found = facts["directions"]["A -> B"]
    assert found["cycle_l1"] is None and found["identity_l1"] > 0 and found["test"]["fid"] > 0
    assert evaluate(tmp_path / "latest_net_G.pth", *options, "--to", "A") == 0
    assert list(json.loads((tmp_path / "f.json").read_text())["directions"]) == ["B -> A"]


def test_files_of_the_reference(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Their folder, or a file of it with those beside it, is evaluated as the run; a file alone says its direction."""

    def figures(*words: object) -> dict[str, Any]:
        options = ("--data", data, "--features", "none", "--out", tmp_path / "f.json")
        assert evaluate(*words, *options) == 0
        return dict(json.loads((tmp_path / "f.json").read_text())["directions"])

    nets, folder = read(run / "checkpoint.pt")["nets"], tmp_path / "faces"
    folder.mkdir()
    for theirs, ours in (("G_A", "G_AB"), ("G_B", "G_BA"), ("D_A", "D_B"), ("D_B", "D_A")):
        torch.save(nets[ours], folder / f"latest_net_{theirs}.pth")
    # The files do not tell the size that the run had; so a run of the same networks at theirs is compared with.
    saved = read(run / "checkpoint.pt")
    saved["config"]["size"] = 256
    torch.save(saved, tmp_path / "own.pt")
    expected = figures(tmp_path / "own.pt")
    assert list(expected) == ["A -> B", "B -> A"] and all(row["cycle_l1"] > 0 for row in expected.values())
    assert expected["A -> B"] != expected["B -> A"]
    assert figures(folder) == expected == figures(folder / "latest_net_G_A.pth")
    assert evaluate(folder, "--data", data, "--features", "none", "--max", 1) == 0
    assert "no file written" in capsys.readouterr().out and not (folder / "evaluation.json").exists()
    alone = tmp_path / "alone" / "latest_net_G_B.pth"
    alone.parent.mkdir()
    torch.save(nets["G_BA"], alone)
    assert figures(alone) == {"B -> A": expected["B -> A"] | {"cycle_l1": None}}
    assert "taken as B -> A; there is no way back" in capsys.readouterr().err


def test_without_any_weights_the_l1s_remain(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(run / "checkpoint.pt", "--data", data) == 0
    said = capsys.readouterr()
    assert "no FID, no KID: no weights to take features with" in said.err and "--weights FILE" in said.err
    assert "features: none" in said.out and "no file written: name one by --out" in said.out
    assert evaluate(run, "--data", data, "--features", "squeezenet") == 1
    assert "no weights to take features with" in the_error(capsys.readouterr().err)


def test_the_features_of_real_pictures_are_taken_once(
    run: Path, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with own_cache(tmp_path / "cache"):
        assert evaluate(run, "--data", data, "--weights", weights) == 0
        assert "squeezenet of testB" in capsys.readouterr().err
        first = json.loads((run / "evaluation.json").read_text())
        assert evaluate(run, "--data", data, "--weights", weights) == 0
        assert "squeezenet of testB" not in capsys.readouterr().err
    second = json.loads((run / "evaluation.json").read_text())
    assert first["directions"] == second["directions"]


def test_damaged_pictures_are_left_out_and_named(run: Path, tmp_path: Path, weights: Path, capsys: Capture) -> None:
    faces = data_folder(tmp_path / "faces")
    whole = (faces / "testA" / "0.png").read_bytes()
    (faces / "testA" / "0.png").write_bytes(whole[: len(whole) // 2])
    with own_cache(tmp_path / "cache"):
        assert evaluate(run, "--data", faces, "--weights", weights) == 0
    said = capsys.readouterr().err
    assert said.count(f"left out: {faces / 'testA' / '0.png'}: ") == 1
    assert "need at least 2 pictures" in said
    facts = json.loads((run / "evaluation.json").read_text())
    assert facts["directions"]["A -> B"]["pictures"] == 1 and facts["directions"]["A -> B"]["test"]["fid"] is None
    assert facts["directions"]["A -> B"]["cycle_l1"] > 0
    (faces / "testA" / "1.png").write_bytes(whole[:40])
    with own_cache(tmp_path / "cache"):
        assert evaluate(run, "--data", faces, "--weights", weights) == 1
    assert "none of its pictures can be read" in the_error(capsys.readouterr().err)


def test_missing_folders(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(run, "--data", tmp_path / "nowhere", "--features", "none") == 1
    assert "no folder testA and no folder testB" in the_error(capsys.readouterr().err)
    for side in "AB":
        picture(tmp_path / "faces" / f"test{side}" / "0.png", 0)
    assert evaluate(run, "--data", tmp_path / "faces", "--features", "none", "--against", "train") == 1
    assert "no folder trainA and no folder trainB" in the_error(capsys.readouterr().err)
    (tmp_path / "faces" / "testB" / "0.png").unlink()
    assert evaluate(run, "--data", tmp_path / "faces", "--features", "none") == 1
    assert "no picture found" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--batch", 0), "--batch 0: at least 1"),
        (("--max", 0), "--max 0: at least 1"),
        (("--kid-subset", 1), "--kid-subset 1: at least 2"),
        (("--device", "tpu"), "'tpu'"),
        (("--weights", "nowhere.pth"), "nowhere.pth: no such file. Give the FID Inception weights"),
        (("--features", "none", "--weights", "x.npz"), "--weights goes with"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_values(run: Path, data: Path, words: tuple[object, ...], named: str, capsys: Capture) -> None:
    assert cli.main(command("eval", run, "--data", data, *words)) == 1
    assert named in the_error(capsys.readouterr().err)


def test_models_that_cannot_be_evaluated(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(tmp_path / "nowhere", "--data", data) == 1
    assert "no such checkpoint" in the_error(capsys.readouterr().err)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    assert evaluate(tmp_path / "other.pt", "--data", data) == 1
    assert "no checkpoint of a known system" in the_error(capsys.readouterr().err)
    saved: dict[str, Any] = read(run / "checkpoint.pt")
    saved["nets"]["G_BA"]["model.1.weight"][0] = torch.nan
    torch.save(saved, tmp_path / "nan.pt")
    assert evaluate(tmp_path / "nan.pt", "--data", data, "--features", "none") == 1
    assert "gives NaN" in the_error(capsys.readouterr().err)


def test_where_nothing_can_be_written(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    assert evaluate(run, "--data", data, "--features", "none", "--out", tmp_path / "file" / "e.json") == 1
    assert str(tmp_path / "file") in the_error(capsys.readouterr().err)
    assert evaluate(run, "--data", data, "--features", "none", "--out", tmp_path) == 1
    assert f"{tmp_path}: is a folder" in the_error(capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_python_face(run: Path, data: Path, tmp_path: Path) -> None:
    report = evals.evaluate(run, data, features="none", device="cpu", out=tmp_path / "e.json")
    assert report.facts == json.loads((tmp_path / "e.json").read_text())
    with pytest.raises(AnifastError, match="unknown set 'all'"):
        evals.evaluate(run, data, against="all")
    with pytest.raises(AnifastError, match="to: 'C' is not one of A, B"):
        evals.evaluate(run, data, features="none", device="cpu", to="C")

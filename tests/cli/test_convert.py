"""`anifast convert`, and what its files are good for: translating, starting a run; written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, leftovers, read, resume, the_error, train

from anifast import cli
from anifast.engine import state

Capture = pytest.CaptureFixture[str]
FILES = [f"latest_net_{net}.pth" for net in ("D_A", "D_B", "G_A", "G_B")]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose networks the reference can have: 6 blocks."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(data, out, "--images", 2, "--blocks", 6) == 0
    return out


def convert(*words: object) -> int:
    return cli.main(command("convert", *words))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_for_the_reference_and_back(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert convert(run, tmp_path / "faces", "--format", "reference") == 0
    said = capsys.readouterr().out
    assert names(tmp_path / "faces") == FILES and all(name in said for name in FILES)
    assert "--model cycle_gan --netG resnet_6blocks --ngf 8 --norm instance --no_dropout --ndf 8" in said
    assert convert(tmp_path / "faces", tmp_path / "own.pt") == 0
    ours, theirs = read(run / "checkpoint.pt")["nets"], read(tmp_path / "own.pt")["nets"]
    assert all(torch.equal(ours[net][key], theirs[net][key]) for net in ours for key in ours[net])
    results = []
    for i, model in enumerate((run, tmp_path / "faces", tmp_path / "own.pt", tmp_path / "faces" / FILES[2])):
        for to in ("A", "B"):
            out = tmp_path / f"{i}{to}"
            words = ("--out", out, "--to", to, "--size", 32, "--device", "cpu")
            assert cli.main(command("translate", model, data / "testA", *words)) == 0
            assert names(out) == ["0.png", "1.png"]
            with Image.open(out / "0.png") as image:
                results.append(image.tobytes())
    assert results[0] != results[1] and results == results[:2] * 4


def test_one_direction_and_a_tag(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "ba"
    assert convert(run, out, "--format", "reference", "--direction", "BA", "--epoch", "200") == 0
    assert names(out) == ["200_net_G.pth"] and "--model test --netG" in capsys.readouterr().out
    assert convert(out, tmp_path / "x") == 1
    error = the_error(capsys.readouterr().err)
    assert str(out) in error and "--direction" in error
    assert convert(out, tmp_path / "x", "--direction", "BA") == 0
    assert names(tmp_path / "x") == ["checkpoint.pt"]
    assert torch.equal(
        read(tmp_path / "x" / "checkpoint.pt")["nets"]["G_BA"]["model.1.weight"],
        read(run / "checkpoint.pt")["nets"]["G_BA"]["model.1.weight"],
    )


def test_the_networks_alone_are_smaller(run: Path, tmp_path: Path) -> None:
    assert convert(run, tmp_path / "small.pt") == 0
    assert (tmp_path / "small.pt").stat().st_size < 0.5 * (run / "checkpoint.pt").stat().st_size
    assert set(read(tmp_path / "small.pt")) == {"format", "config", "nets"}


def test_a_seed_run_for_the_reports_code(data: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train(data, tmp_path / "seed", "--images", 2, "--preset", "seed", "--blocks", 9) == 0
    assert convert(tmp_path / "seed", tmp_path / "ep90.pt", "--format", "seed") == 0
    found = read(tmp_path / "ep90.pt")
    assert found["loss_G"] > 0 and found["G_opt_state_dict"]["state"][0]["exp_avg"].any()
    capsys.readouterr()
    for model, out, form in ((run, "a.pt", "seed"), (tmp_path / "ep90.pt", "a", "reference")):
        assert convert(model, tmp_path / out, "--format", form) == 1
        error = the_error(capsys.readouterr().err)
        assert error.startswith(f"{model}: ") and "compute something else" in error and "--force" in error
        assert not (tmp_path / out).exists()
        assert convert(model, tmp_path / out, "--format", form, "--force") == 0
        assert (tmp_path / out).exists()


def test_nothing_is_replaced(run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "latest_net_G_B.pth").write_text("mine")
    assert convert(run, tmp_path / "faces", "--format", "reference") == 1
    assert "latest_net_G_B.pth: is there already" in the_error(capsys.readouterr().err)
    assert names(tmp_path / "faces") == ["latest_net_G_B.pth"]
    before = (run / "checkpoint.pt").read_bytes()
    assert convert(run, run) == 1
    assert "is there already" in the_error(capsys.readouterr().err)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert convert(run, tmp_path / "faces" / "latest_net_G_B.pth" / "x", "--format", "reference") == 1
    assert "is a file, and a folder is needed" in the_error(capsys.readouterr().err)


def test_a_full_disk_leaves_none_of_the_files(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, []

    def full(content: object, path: Path) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0")
        save(content, path)

    monkeypatch.setattr(state.torch, "save", full)
    assert convert(run, tmp_path / "faces", "--format", "reference") == 1
    error = the_error(capsys.readouterr().err)
    assert f"cannot write {tmp_path / 'faces' / FILES[1]}" in error, error
    assert len(saved) == 3 and names(tmp_path / "faces") == [] and not leftovers(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_no_checkpoint(tmp_path: Path, capsys: Capture, kind: str) -> None:
    if kind == "text":
        (tmp_path / "in.pt").write_text("hello")
    assert convert(tmp_path / "in.pt", tmp_path / "out.pt") == 1
    assert str(tmp_path / "in.pt") in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out.pt").exists()


def test_a_run_starts_from_the_references_files_and_resumes_without_them(
    run: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = tmp_path / "faces", tmp_path / "run"
    assert convert(run, folder, "--format", "reference") == 0
    # With a learning rate of 0 the weights stay what they were.
    assert train(data, out, "--images", 2, "--blocks", 6, "--lr", 0, "--start-from", folder) == 0
    assert f"they start from {folder}" in (out / "log.txt").read_text()
    ours, theirs = read(run / "checkpoint.pt")["nets"], read(out / "checkpoint.pt")["nets"]
    assert all(torch.equal(ours[net][key], theirs[net][key]) for net in ours for key in ours[net])
    for name in FILES:
        (folder / name).unlink()
    assert resume(data, out, "--images", 4) == 0
    assert train(data, tmp_path / "other", "--images", 2, "--start-from", folder) == 1
    assert str(folder) in the_error(capsys.readouterr().err)
    assert not (tmp_path / "other").exists()


def test_a_run_that_cannot_start_from_there(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train(data, tmp_path / "run", "--images", 2, "--blocks", 4, "--start-from", run) == 1
    assert "they need --blocks 6" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_file_without_optimisers_cannot_be_resumed(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert convert(run, tmp_path / "own") == 0
    assert resume(data, tmp_path / "own") == 1
    error = the_error(capsys.readouterr().err)
    assert str(tmp_path / "own") in error and "cannot be resumed" in error

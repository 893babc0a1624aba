"""Averaged weights: the formula, their place in checkpoints, and that sheets and translations use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_cyclegan import command, read, resume, train
from torch import nn

import anifast
from anifast import cli
from anifast.engine.ema import EMA
from anifast.errors import CheckpointError
from anifast.systems.cyclegan import training


def test_the_average_is_the_formula_written_out() -> None:
    net = nn.BatchNorm2d(3).double()
    ema = EMA({"net": net}, half_life=10)
    beta, expected = 0.5 ** (4 / 10), net.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net.weight.copy_(torch.full((3,), float(step)))
            net.running_mean.fill_(step)
        ema.update(4)
        expected = beta * expected + (1 - beta) * step
    mean = ema.nets["net"]
    torch.testing.assert_close(mean.weight, nn.Parameter(expected, requires_grad=False), rtol=1e-14, atol=0)
    assert mean.running_mean.tolist() == [4.0] * 3  # buffers are copied
    assert not mean.weight.requires_grad and not mean.training and net.weight.requires_grad and net.training


def test_after_its_half_life_a_weight_has_half_of_its_share() -> None:
    for batch in (1, 5, 10):
        net = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(net.weight)
        ema = EMA({"net": net}, half_life=10)
        nn.init.zeros_(net.weight)
        for _ in range(10 // batch):
            ema.update(batch)
        assert ema.nets["net"].weight.item() == pytest.approx(0.5, rel=1e-12)


def test_the_state_is_taken_over_or_refused() -> None:
    net = nn.Linear(2, 2)
    ema, other = EMA({"net": net}, 10), EMA({"net": nn.Linear(2, 2)}, 10)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.nets["net"].weight, ema.nets["net"].weight)
    with pytest.raises(CheckpointError, match="averaged weights"):
        EMA({"net": nn.Linear(2, 3)}, 10).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match="half_life is 0"):
        EMA({"net": net}, 0)


def test_a_run_with_averages(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed exactly; sheets and translations are the averages', and say so."""
    torch.manual_seed(0)
    assert train(data, tmp_path / "straight", "--images", 6, "--ema", 8) == 0
    torch.manual_seed(0)
    assert train(data, tmp_path / "run", "--images", 3, "--ema", 8) == 0
    assert resume(data, tmp_path / "run", "--images", 6) == 0
    one, other = (read(tmp_path / name / "checkpoint.pt") for name in ("run", "straight"))
    assert set(one["ema"]) == {"G_AB", "G_BA"}
    for name, net in other["ema"].items():
        for key, value in net.items():
            assert torch.equal(one["ema"][name][key], value)
        assert not torch.equal(net["model.4.weight"], other["nets"][name]["model.4.weight"])
    sheets = [(tmp_path / name / "samples" / "0000006.png").read_bytes() for name in ("run", "straight")]
    assert sheets[0] == sheets[1]
    assert "generators averaged, half-life 8 images" in (tmp_path / "run" / "log.txt").read_text()
    model, x = anifast.load(tmp_path / "run", "cpu"), torch.rand(1, 3, 32, 32) * 2 - 1
    net = training.networks(training.Config(**one["config"]))["G_AB"]
    net.load_state_dict(one["ema"]["G_AB"])
    torch.testing.assert_close(model.translate(x), net(x).detach())
    capsys.readouterr()
    words = command("translate", tmp_path / "run", data / "testA", "--out", tmp_path / "out", "--device", "cpu")
    assert cli.main(words) == 0
    assert "averaged weights" in capsys.readouterr().out


def test_a_damaged_average_is_one_error(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, tmp_path / "run", "--images", 1, "--ema", 8) == 0
    found = read(tmp_path / "run" / "checkpoint.pt")
    del found["ema"]
    torch.save(found, tmp_path / "run" / "checkpoint.pt")
    capsys.readouterr()
    assert resume(data, tmp_path / "run", "--images", 2) == 1
    assert "'ema' is missing" in capsys.readouterr().err

"""TensorBoard where it is installed, played by a stub, and one line where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_cyclegan import resume, the_error, train

ROOT = Path(__file__).resolve().parents[2]


class Writer:
    """What is used of torch.utils.tensorboard.SummaryWriter."""

    made: list[Writer] = []

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: list[tuple[str, int, tuple[int, ...]]] = []
        Writer.made.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert not self.closed
        self.scalars.setdefault(tag, []).append((global_step, scalar_value))

    def add_image(self, tag: str, img_tensor: Any, global_step: int, dataformats: str) -> None:
        assert not self.closed and dataformats == "HWC" and img_tensor.dtype == "uint8"
        self.images.append((tag, global_step, img_tensor.shape))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    Writer.made.clear()
    return Writer


def test_losses_and_sheets_go_to_tensorboard(data: Path, tmp_path: Path, installed: type[Writer]) -> None:
    assert train(data, tmp_path / "run", "--images", 4, "--log-every", 2, "--sheet-every", 3) == 0
    writer = installed.made[0]
    assert writer.log_dir == str(tmp_path / "run" / "tensorboard") and writer.purge_step == 0 and writer.closed
    assert [step for step, _ in writer.scalars["cycle_a"]] == [2, 4]
    assert {"images_per_second", "lr", "epoch", "skipped", "generators"} <= set(writer.scalars)
    assert "images" not in writer.scalars
    assert [(tag, step) for tag, step, _ in writer.images] == [("samples", 0), ("samples", 3), ("samples", 4)]
    assert resume(data, tmp_path / "run", "--images", 5) == 0
    assert installed.made[1].purge_step == 4
    assert "TensorBoard" not in (tmp_path / "run" / "log.txt").read_text()


def test_a_full_disk_under_tensorboard(
    data: Path, tmp_path: Path, installed: type[Writer], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installed, "add_scalar", full)
    assert train(data, tmp_path / "run", "--images", 2) == 1
    error = the_error(capsys.readouterr().err)
    assert str(tmp_path / "run" / "tensorboard") in error and "No space left" in error


@pytest.mark.parametrize("broken", [False, True])
def test_without_tensorboard_one_line_says_how_to_get_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    stub = ModuleType("torch.utils.tensorboard")  # importing a name that it has not is an ImportError
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    if broken:
        stub.__getattr__ = lambda name: 1 / 0  # type: ignore[assignment,method-assign]
    assert train(data, tmp_path / "run", "--images", 1) == 0
    lines = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "TensorBoard" in line]
    assert len(lines) == 1 and "pip install anifast[train]" in lines[0] and ("division" in lines[0]) is broken
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_extra_that_the_line_names_holds_tensorboard() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert any(line.startswith("train = [") and "tensorboard" in line for line in lines)

"""What the commands of systems share: where results may go, and how much memory there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anifast.errors import AnifastError
from anifast.systems.commands import check_out, free_memory, not_an_input


def test_where_results_may_go(tmp_path: Path) -> None:
    check_out(tmp_path / "a.PNG", (".png",))
    check_out(tmp_path / "a")
    with pytest.raises(AnifastError, match=r"^--out .*a.jpg: give it a name that ends with .npz or .pt$"):
        check_out(tmp_path / "a.jpg", (".npz", ".pt"))
    with pytest.raises(AnifastError, match=f"^{tmp_path}: is a folder; name the file$"):
        check_out(tmp_path, flag="")


def test_inputs_are_spared(tmp_path: Path) -> None:
    """By whatever name they are called."""
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    not_an_input(tmp_path / "c.png", [tmp_path / "a.png", None, "d.png"])
    with pytest.raises(AnifastError, match=r"^.*b.png: the result would overwrite an input"):
        not_an_input(tmp_path / "b.png", [None, str(tmp_path / "a.png")])


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    told = "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:  30 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: told)
    assert free_memory(cpu) == 30 * 1024
    for nothing in ("", "MemAvailable:", "MemAvailable: much kB"):
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, text=nothing: text)
        assert free_memory(cpu) == 8 * 2**30

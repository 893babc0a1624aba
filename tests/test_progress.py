"""The progress line: its figures stay in bounds, and it stays one line."""

from __future__ import annotations

import io

import pytest

from anifast.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_more_than_the_total() -> None:
    bar = Progress(4, "train", stream=io.StringIO())
    bar.update(10)
    line = bar.line()
    assert f"[{'#' * 20}] 10/4 " in line and "ETA 0:00" in line


@pytest.mark.parametrize("columns", [10, 40, 200])
def test_a_terminal_gets_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress(8, "train", stream=stream) as bar:
        bar.update(2, "a note that is longer than the rest of the line and says little for its length")
        bar._draw()
        monkeypatch.setenv("COLUMNS", str(columns))  # the window changes its size
    lines = stream.getvalue().split("\r")
    assert len(lines[1]) == 99 and lines[-1].endswith("\n")
    assert lines[-1].startswith("train [#"[: columns - 1]) and len(lines[-1].rstrip("\n")) <= columns - 1


def test_elsewhere_lines_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    stream = io.StringIO()
    with Progress(8, "train", stream=stream) as bar:
        bar.update(2, "the note")
    assert stream.getvalue().endswith("the note\n")

"""The progress line: its figures stay in bounds, and it stays one line."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from anifast.progress import Progress, lasting_output


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


class Broken(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "gone")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_output_that_nobody_reads(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(number))
    with pytest.raises(OSError, match="gone"), Progress(8, "train"):  # elsewhere it ends the work
        pass
    with lasting_output():
        print("lost", flush=True)
        with Progress(8, "train") as bar:
            bar.print("lost")
    with pytest.raises(OSError, match="gone"):
        print("lost")


def test_a_full_disk_under_the_output_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    with lasting_output(), pytest.raises(OSError, match="gone"):
        print("lost")


def test_a_process_without_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with Progress(8, "train") as bar:
        bar.update()
    with lasting_output(), Progress(8, "train") as bar:
        bar.print("nowhere")

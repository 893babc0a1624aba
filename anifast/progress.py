"""A progress bar with rate and ETA for long work."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import TextIO


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    whole = int(round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Nowhere(io.StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        """Forget it."""
        return len(text)


class _Lasting(Nowhere):
    """Hands on to another stream for as long as somebody reads that."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._target = stream

    def write(self, text: str) -> int:
        """Hand on, or forget."""
        with self._giving_up():
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on, or forget."""
        with self._giving_up():
            self._target.flush()

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self._target.isatty()

    def fileno(self) -> int:
        """Of the other stream."""
        return self._target.fileno()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe without a reader, a terminal that was closed
                raise
            to_nowhere(self._target)


def to_nowhere(stream: TextIO) -> None:
    """Forget what is written to a stream of the process from now on, also what waits in it to be written at exit."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def lasting_output() -> Iterator[None]:
    """Work in here does not end because nobody reads its output any more (`anifast train ... | head`)."""
    streams = [_Lasting(stream) if stream is not None else Nowhere() for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield


class Progress:
    """Draws `label [#####     ] 120/800  41.2 img/s  ETA 0:16  note` on a terminal, or a line every 10 s elsewhere.

    Args:
        total: how many units the work has.
        label: what is going on, in a word or two.
        unit: what is counted.
        done: units that were finished before (a resumed run); they do not count towards the rate.
        stream: where to draw; standard error by default, so that standard output stays machine-readable. A process
            without one (2>&-) draws nowhere.
    """

    def __init__(
        self, total: int, label: str, *, unit: str = "img", done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self._first = done
        self._stream = stream or sys.stderr or Nowhere()
        self._terminal = self._stream.isatty()
        self._every = 0.1 if self._terminal else 10.0
        self._start = time.perf_counter()
        self._drawn = self._start
        self._width = 0
        self._note = ""

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._first) / max(time.perf_counter() - self._start, 1e-9)

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Count `count` more units; `note` is shown behind the figures until the next note."""
        self.done += count
        if note is not None:
            self._note = note
        now = time.perf_counter()
        if now - self._drawn >= self._every:
            self._drawn = now
            self._draw()

    def line(self) -> str:
        """The line as it stands."""
        rate = self.rate
        left = max(0, self.total - self.done) / rate if rate > 0 else float("inf")
        filled = min(20, 20 * self.done // self.total) if self.total else 20
        eta = duration(left) if left != float("inf") else "-"
        parts = [
            f"{self.label} [{'#' * filled}{' ' * (20 - filled)}] {self.done}/{self.total}",
            f"{rate:.1f} {self.unit}/s",
            f"ETA {eta}",
        ]
        return "  ".join(parts + ([self._note] if self._note else []))

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
        self._stream.write(text + "\n")
        self._stream.flush()

    def _draw(self, end: str = "") -> None:
        text = self.line()
        if self._terminal:
            room = max(1, shutil.get_terminal_size().columns - 1)  # a line that wraps could not be drawn over
            text = text[:room]
            self._stream.write("\r" + text.ljust(min(self._width, room)) + end)
        else:
            self._stream.write(text + "\n")
        self._width = len(text)
        self._stream.flush()

    def close(self) -> None:
        """Draw the last state and end the line."""
        self._draw(end="\n")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""What a run tells: lines on the terminal and in log.txt, losses in metrics.jsonl, both and pictures in TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anifast.engine.distributed import Team
from anifast.errors import AnifastError
from anifast.files import write_text
from anifast.progress import Progress


class RunLog:
    """Lines for people: printed, above the progress bar while there is one, and kept in RUN/log.txt.

    Args:
        folder: the run folder, made if missing; None: nothing is told (a process that is not the first).

    Raises:
        AnifastError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.bar: Progress | None = None
        self._file = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / "log.txt", "a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise AnifastError(
                f"cannot write to the run folder {folder}: {error.strerror or error}; choose another --out"
            ) from error

    def say(self, text: str) -> None:
        """Tell one line (or several).

        Raises:
            AnifastError: log.txt cannot be written.
        """
        if self._file is None:
            return
        with _writing(self._file.name):
            self._file.write(text + "\n")
        if self.bar is not None:
            self.bar.print(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is None:
            return
        with suppress(OSError):  # what could not be written has been told
            self._file.close()


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AnifastError(
            f"cannot write {path}: {error.strerror or error}. Free some space; --resume goes on from the checkpoint"
        ) from error


class Meter:
    """Sums of named scalars that stay on the device, so that a step never waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add detached scalars."""
        for name, value in values.items():
            known = self._sums.get(name)
            self._sums[name] = value.clone() if known is None else known.add_(value)
            self._counts[name] = self._counts.get(name, 0) + 1

    @property
    def empty(self) -> bool:
        """Whether nothing has been added since the last `take`."""
        return not self._counts

    def means(self, team: Team | None = None) -> dict[str, float]:
        """The means since the last `take`; this is where the host waits for the device, once. Collective."""
        return {name: float(value) / self._counts[name] for name, value in self._joined(team).items()}

    def take(self, team: Team | None = None) -> dict[str, float]:
        """`means`, and begin anew."""
        means = self.means(team)
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self, team: Team | None = None) -> dict[str, Any]:
        """What has been added since the last `take`; collective."""
        sums = {name: value.to(self._sums[name].dtype) for name, value in self._joined(team).items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def _joined(self, team: Team | None) -> dict[str, Tensor]:
        """The sums in float64 on the CPU, averaged over the processes."""
        if not self._sums:
            return {}
        sums = torch.stack([value.double() for value in self._sums.values()]).cpu()
        if team is not None:
            team.average([sums])
        return dict(zip(self._sums, sums.unbind(), strict=True))

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state_dict`."""
        self._sums = {name: value.to(device).clone() for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class Metrics:
    """RUN/metrics.jsonl: one JSON object a line, oldest first, each with `images`, the pictures seen per domain."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        """Append one line; figures are rounded to six significant digits.

        Raises:
            AnifastError: the file cannot be written.
        """
        rounded = {key: float(f"{v:.6g}") if isinstance(v, float) and math.isfinite(v) else v for key, v in row.items()}
        with _writing(self.path), open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(rounded) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines but damaged ones, such as a last one that was cut off by a killed process."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and isinstance(row.get("images"), int):
                rows.append(row)
        return rows

    def cut(self, images: int) -> None:
        """Drop what was written after picture `images`, where a resumed run takes over."""
        rows = [row for row in self.read() if row["images"] <= images]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


class Board:
    """The same figures and the sample sheets for TensorBoard, in RUN/tensorboard, where it is installed.

    Args:
        folder: the run folder.
        images: pictures seen so far; what an interrupted run wrote beyond is hidden.
        log: told, once, where TensorBoard is missing.
    """

    def __init__(self, folder: Path, images: int, log: RunLog) -> None:
        self._path = folder / "tensorboard"
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # a broken installation must not end a run that can do without
            why = "is not installed" if isinstance(error, ImportError) else f"cannot be used ({error})"
            log.say(f"TensorBoard {why}; pip install anifast[train] for it. metrics.jsonl and losses.png are written")
            return
        with _writing(self._path):
            self._writer = SummaryWriter(str(self._path), purge_step=images)

    def scalars(self, row: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl.

        Raises:
            AnifastError: the files cannot be written.
        """
        if self._writer is not None:
            with _writing(self._path):
                for name, value in row.items():
                    if name != "images" and isinstance(value, int | float):
                        self._writer.add_scalar(name, value, row["images"])

    def picture(self, image: Image.Image, images: int) -> None:
        """Show a sample sheet.

        Raises:
            AnifastError: the files cannot be written.
        """
        if self._writer is not None:
            with _writing(self._path):
                self._writer.add_image("samples", np.asarray(image.convert("RGB")), images, dataformats="HWC")
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with _writing(self._path):
                self._writer.close()

"""The training loop. It owns data, precision, logs, sheets and checkpoints, and knows no system.

A step is a list of named phases, each with its loss, its optimiser and the networks it trains. Progress is counted in
images; everything that decides the next step is in the checkpoint, so a resumed run is the run uninterrupted.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from anifast.engine import state as checkpoint
from anifast.engine.log import Meter, Metrics, RunLog
from anifast.engine.plots import Panel, plot_losses
from anifast.engine.precision import autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.files import atomic_path
from anifast.progress import Progress


@dataclass
class Phase:
    """One part of a step.

    Attributes:
        name: for messages.
        loss: gives the loss and detached scalars for the log; called with this phase's networks trainable only.
        optimizer: its step ends the phase.
        nets: the networks that `optimizer` holds.
        interval: the phase runs in every so manieth step.
        gain: factor on the loss.
    """

    name: str
    loss: Callable[[], tuple[Tensor, dict[str, Tensor]]]
    optimizer: torch.optim.Optimizer
    nets: Sequence[nn.Module]
    interval: int = 1
    gain: float = 1.0


class System(Protocol):
    """What the loop asks of a system."""

    phases: Sequence[Phase]
    panels: Sequence[Panel]

    def begin(self, batch: Any, images: int) -> None:
        """Take the batch of the next step; `images` were seen before it (sets learning rates)."""

    def row(self, images: int) -> dict[str, Any]:
        """What else belongs into a line of metrics.jsonl: epoch, learning rate."""

    def note(self, means: dict[str, float]) -> str:
        """The losses in a few words, for the progress line."""

    def sheet(self) -> Image.Image:
        """A picture of what the networks do now."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class Batches(Protocol):
    """What the loop asks of the data."""

    def next(self) -> Any:
        """The next batch, on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


@dataclass(frozen=True)
class Plan:
    """How long and how often.

    Attributes:
        total: images per domain at which the run ends.
        batch: images per domain and step.
        log_every: images between two lines of metrics.jsonl.
        sheet_every: images between two sample sheets.
        save_every: images between two checkpoints.
        precision: "fp32" or "bf16".
        minutes: end after this time, wherever the images stand; None: no limit.
    """

    total: int
    batch: int
    log_every: int
    sheet_every: int
    save_every: int
    precision: str = "fp32"
    minutes: float | None = None


def run_step(phases: Sequence[Phase], index: int, device: torch.device, precision: str = "fp32") -> dict[str, Tensor]:
    """Step number `index`: each phase that is due, in order, and its scalars for the log.

    Raises:
        FloatingPointError: on the CPU, where looking costs nothing, a loss that is not finite; no weight has changed
            in that phase. On a GPU the loop finds it when it next reads the losses.
    """
    scalars: dict[str, Tensor] = {}
    for phase in phases:
        if index % phase.interval:
            continue
        for other in phases:
            for net in other.nets:
                net.requires_grad_(other is phase)
        with autocast(device, precision):
            loss, values = phase.loss()
        scalars.update(values)
        if device.type == "cpu" and not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of phase {phase.name} is {loss.item()}")
        phase.optimizer.zero_grad(set_to_none=True)
        (loss if phase.gain == 1.0 else loss * phase.gain).backward()
        phase.optimizer.step()
    return scalars


class Loop:
    """Runs a system on its data until `plan.total`, Ctrl-C or a loss that is not finite.

    Args:
        system: networks, losses and optimisers.
        data: batches.
        plan: how long and how often.
        folder: run folder; holds checkpoint.pt, metrics.jsonl, losses.png, samples/, log.txt.
        device: where the system lives.
        log: tells people.
        header: what else goes into each checkpoint (format, config).
    """

    def __init__(
        self,
        system: System,
        data: Batches,
        plan: Plan,
        folder: Path,
        device: torch.device,
        log: RunLog,
        header: dict[str, Any],
    ) -> None:
        self.system, self.data, self.plan, self.folder, self.device = system, data, plan, folder, device
        self.log, self.header = log, header
        self.images = 0
        self.steps = 0
        self.meter = Meter()
        self.metrics = Metrics(folder / "metrics.jsonl")
        self._saved = -1
        self._stop = ""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of this system and data.

        Raises:
            CheckpointError: it does not fit the system, or parts of it are missing.
            DataError: the data are other ones.
        """
        try:
            self.images = self._saved = int(state["images"])
            self.steps = int(state["steps"])
            self.system.load_state_dict(state)
            self.data.load_state_dict(state["data"])
            self.meter.load_state_dict(state["meter"], self.device)
            checkpoint.set_random_state(state["rng"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise CheckpointError(f"the checkpoint cannot be resumed from: {reason}") from error
        self.metrics.cut(self.images)

    def save(self) -> None:
        """Write the checkpoint, unless the networks are no longer finite."""
        for phase in self.system.phases:
            for net in phase.nets:
                if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
                    raise FloatingPointError(f"weights trained in phase {phase.name} are not finite")
        state = {
            **self.header,
            "images": self.images,
            "steps": self.steps,
            **self.system.state_dict(),
            "data": self.data.state_dict(),
            "meter": self.meter.state_dict(),
            "rng": checkpoint.random_state(),
        }
        checkpoint.save(self.folder / checkpoint.NAME, state)
        self._saved = self.images

    def run(self) -> bool:
        """Train.

        Returns:
            True when `plan.total` or `plan.minutes` was reached, False when Ctrl-C (or SIGTERM) ended the run; the
            state is saved either way.

        Raises:
            AnifastError: a loss or weight is no longer finite; the last checkpoint is intact.
        """
        if self.images == 0:
            self._draw()
        bar = Progress(self.plan.total, "train", done=self.images)
        self.log.bar = bar
        try:
            with self._signals():
                self._train(bar)
            if self._saved != self.images:
                self.save()
        except FloatingPointError as error:
            raise AnifastError(self._not_finite(str(error))) from None
        finally:
            bar.close()
            self.log.bar = None
        if self.images < self.plan.total:
            why = self._stop or f"the {self.plan.minutes:g} minutes are over"
            self.log.say(f"{why}: stopped at image {self.images} of {self.plan.total}; saved, go on with --resume")
        self._draw()
        self._plot()
        return not self._stop

    def _train(self, bar: Progress) -> None:
        plan, wait, since, counted = self.plan, 0.0, time.perf_counter(), 0
        deadline = since + 60.0 * plan.minutes if plan.minutes is not None else math.inf
        while self.images < plan.total and not self._stop:
            before = time.perf_counter()
            if before >= deadline:
                break
            batch = self.data.next()
            wait += time.perf_counter() - before
            self.system.begin(batch, self.images)
            self.meter.add(run_step(self.system.phases, self.steps, self.device, plan.precision))
            previous, self.images, self.steps = self.images, self.images + plan.batch, self.steps + 1
            counted += plan.batch
            note = None
            if self._due(plan.log_every, previous) or self.images >= plan.total:
                means = self.meter.take()
                bad = [name for name, value in means.items() if not math.isfinite(value)]
                if bad:
                    raise FloatingPointError(f"the loss {bad[0]} is {means[bad[0]]}")
                seconds = time.perf_counter() - since
                speed = {"images_per_second": counted / seconds, "data_wait": wait / seconds}
                self.metrics.write({"images": self.images, **self.system.row(previous), **means, **speed})
                note = f"{self.system.note(means)}  data wait {100 * wait / seconds:.0f}%"
                wait, since, counted = 0.0, time.perf_counter(), 0
            if self._due(plan.save_every, previous) and self.images < plan.total:
                self.save()
            if self._due(plan.sheet_every, previous) and self.images < plan.total:
                pause = time.perf_counter()
                self._draw()
                self._plot()
                since += time.perf_counter() - pause
            bar.update(plan.batch, note)

    def _due(self, every: int, previous: int) -> bool:
        return self.images // every != previous // every

    def _draw(self) -> None:
        path = self.folder / "samples" / f"{self.images:07d}.png"
        with atomic_path(path) as temporary:
            self.system.sheet().save(temporary)

    def _plot(self) -> None:
        rows = self.metrics.read()
        if rows:
            with atomic_path(self.folder / "losses.png") as temporary:
                plot_losses(rows, self.system.panels).save(temporary)

    def _not_finite(self, what: str) -> str:
        path = self.folder / checkpoint.NAME
        kept = "nothing was saved yet"
        if self._saved >= 0:
            kept = f"the checkpoint of image {self._saved} ({path}) is intact and --resume goes on from it"
        return (
            f"training stopped at image {self.images}: {what}; {kept}. A lower --lr, --precision fp32 or other "
            "pictures may help in a new run"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the step at hand; the second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = signal.Signals(number).name
            for known, handler in handlers.items():
                signal.signal(known, handler)

        for number in handlers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

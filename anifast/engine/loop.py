"""The training loop. It owns data, precision, processes, logs, sheets and checkpoints, and knows no system.

A step is a list of named phases, each with its loss, its optimiser and the networks it trains. Progress is counted in
images; everything that decides the next step is in the checkpoint, so a resumed run is the run uninterrupted. All
processes of a run go through this loop side by side; the first one alone writes and talks.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from anifast.engine import state as checkpoint
from anifast.engine.acceleration import Graphs, compile_nets, compiling
from anifast.engine.distributed import Team, alone, state_tensors
from anifast.engine.ema import EMA
from anifast.engine.log import Board, Meter, Metrics, RunLog
from anifast.engine.plots import Panel, plot_losses
from anifast.engine.precision import autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.files import atomic_path
from anifast.progress import Nowhere, Progress


class Joint:
    """Several optimisers that step together.

    Args:
        optimizers: they.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Of all."""
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass
class Phase:
    """One part of a step.

    Attributes:
        name: for messages.
        loss: gives the loss, a mean over images, and detached scalars for the log; called with the phase's inputs and
            with this phase's networks trainable only. It may be recorded as a CUDA graph, so it neither makes random
            choices on the host nor waits for the device.
        optimizer: its step ends the phase; None: there is neither backward nor step, and the system keeps what was
            computed, with its graph, for a later phase of the step. The loss then only tells whether it was finite.
        nets: the networks that `optimizer` holds, or whose gradients are asked for later.
        inputs: tensors of constant shapes, without gradient, that the loss starts from; whatever depends on random
            choices or on other processes happens here.
        interval: the phase runs in every so manieth step.
        between: the phase runs in all steps but those instead.
        gain: factor on the loss.
        ready: asked when its turn has come, behind the phases before it; False leaves it out of this step. It answers
            the same in all processes. None: always.
    """

    name: str
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    optimizer: torch.optim.Optimizer | Joint | None
    nets: Sequence[nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]] = tuple
    interval: int = 1
    between: bool = False
    gain: float = 1.0
    ready: Callable[[], bool] | None = None

    def due(self, index: int) -> bool:
        """Whether it is a part of step number `index`."""
        return (index % self.interval == 0) != self.between


class System(Protocol):
    """What the loop asks of a system.

    Attributes:
        phases: of a step, in order.
        panels: of the figure of losses.
        ema: averages of networks, if any.
        watched: the scalar, positive in health, whose explosion ends the run, if any.
    """

    phases: Sequence[Phase]
    panels: Sequence[Panel]
    ema: EMA | None
    watched: str | None

    def begin(self, batch: Any, images: int) -> None:
        """Take the batch of the next step; `images` were seen before it (sets learning rates)."""

    def row(self, images: int) -> dict[str, Any]:
        """What else belongs into a line of metrics.jsonl: epoch, learning rate."""

    def note(self, means: dict[str, float]) -> str:
        """The losses in a few words, for the progress line."""

    def sheet(self) -> Image.Image:
        """A picture of what the networks do now."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; the same in all processes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class Batches(Protocol):
    """What the loop asks of the data."""

    def next(self) -> Any:
        """This process's part of the next batch, on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands; the same in all processes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


@dataclass(frozen=True)
class Plan:
    """How long and how often.

    Attributes:
        total: images per domain at which the run ends.
        batch: images per domain and step, over all processes.
        log_every: images between two lines of metrics.jsonl.
        sheet_every: images between two sample sheets.
        save_every: images between two checkpoints.
        precision: "fp32" or "bf16".
        minutes: end after this time, wherever the images stand; None: no limit.
        keep: how many checkpoints to keep.
        bad_steps: the run ends after so many steps in a row whose loss or gradient is not finite.
        compile: let torch.compile translate the networks.
        cuda_graphs: record phases as CUDA graphs.
    """

    total: int
    batch: int
    log_every: int
    sheet_every: int
    save_every: int
    precision: str = "fp32"
    minutes: float | None = None
    keep: int = 1
    bad_steps: int = 10
    compile: bool = False
    cuda_graphs: bool = False

    @classmethod
    def of(cls, config: Any, total: int) -> Plan:
        """The plan in a system's settings, which have fields of these names, for a run of `total` images at most."""
        same = (field.name for field in dataclasses.fields(cls) if field.name != "total")
        images = total if config.images is None else min(config.images, total)
        return cls(total=images, **{name: getattr(config, name) for name in same})


class NotFinite(FloatingPointError):
    """A loss or gradient is not finite.

    Attributes:
        phase: the phase at fault; it has changed no weight.
        done: the phases with an optimiser before it in the step, which have run as always.
        last: whether no phase is behind it.
    """

    def __init__(self, message: str, phase: Phase, done: Sequence[Phase], last: bool) -> None:
        super().__init__(message)
        self.phase, self.done, self.last = phase, tuple(done), last


def run_step(
    phases: Sequence[Phase],
    index: int,
    device: torch.device,
    precision: str = "fp32",
    team: Team | None = None,
    graphs: Graphs | None = None,
) -> dict[str, Tensor]:
    """Step number `index`: each phase that is due, in order, and its scalars for the log.

    Args:
        phases: of the system.
        index: number of the step, from 0.
        device: where the system lives.
        precision: "fp32" or "bf16".
        team: the processes of the run, over which gradients are averaged; None: one.
        graphs: records and repeats phases; None: they run as they are.

    Raises:
        NotFinite: a loss or gradient is not finite, in any process; the weights of that phase have not changed and
            the phases behind it have not run, those before it have. Looking costs a GPU a wait of some microseconds
            in a phase of milliseconds; without it a bad step would already be in the weights and in what outlives it.
    """
    scalars: dict[str, Tensor] = {}
    due = [phase for phase in phases if phase.due(index)]
    nets = dict.fromkeys(net for phase in phases for net in phase.nets)
    done: list[Phase] = []
    waited = False
    for phase in due:
        if phase.ready is not None and not phase.ready():
            waited = True
            continue
        for net in nets:
            net.requires_grad_(net in phase.nets)
        work = partial(_forward_backward, phase, device, precision)
        inputs = phase.inputs()
        trained = phase.nets if phase.optimizer is not None else ()
        parameters = [p for net in trained for p in net.parameters()]
        loss, values = graphs.run(phase.name, work, inputs, parameters) if graphs else work(*inputs)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if team is not None and team.world > 1:
            loss = loss.clone()
            team.average([loss, *gradients])  # also tells every process that one of them has a bad loss
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(loss + norm)):
            wrong = f"a gradient of phase {phase.name} is not finite"
            if not bool(torch.isfinite(loss)):
                wrong = f"the loss of phase {phase.name} is {loss.item()}"
            raise NotFinite(wrong, phase, done, phase is due[-1])
        if phase.optimizer is not None:
            phase.optimizer.step()
            done.append(phase)
        scalars.update(values)
    if graphs and not waited:  # behind a phase that waits, others must not be recorded before it is warm too
        graphs.finished += 1
    return scalars


def _forward_backward(
    phase: Phase, device: torch.device, precision: str, *inputs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and scalars of a phase; its gradients are made anew."""
    with autocast(device, precision):
        loss, values = phase.loss(*inputs)
    if phase.optimizer is None:
        return loss.detach(), values
    phase.optimizer.zero_grad(set_to_none=True)
    (loss if phase.gain == 1.0 else loss * phase.gain).backward()
    return loss.detach(), values


class Loop:
    """Runs a system on its data until `plan.total`, Ctrl-C, or too many steps in a row that are not finite.

    Args:
        system: networks, losses and optimisers.
        data: batches.
        plan: how long and how often.
        folder: run folder; holds checkpoint.pt, metrics.jsonl, losses.png, samples/, log.txt.
        device: where the system lives.
        log: tells people.
        header: what else goes into each checkpoint (format, config).
        team: the processes of the run; None: one.

    Raises:
        AnifastError: torch.compile or CUDA graphs are asked for and cannot be had.
    """

    #: So many steps that are not finite are told one by one; metrics.jsonl counts them all.
    SAID = 10
    #: The run ends where the mean of the watched scalar in a row of metrics.jsonl is above so many times the median of
    #: the last `ROWS` rows, once there are `LEAST` (the guard of the CycleGAN specification, proposed there).
    TOO_LARGE = 20.0
    ROWS, LEAST = 100, 10

    def __init__(
        self,
        system: System,
        data: Batches,
        plan: Plan,
        folder: Path,
        device: torch.device,
        log: RunLog,
        header: dict[str, Any],
        team: Team | None = None,
    ) -> None:
        self.system, self.data, self.plan, self.folder, self.device = system, data, plan, folder, device
        self.log, self.header, self.team = log, header, team or alone(device)
        self.images = 0
        self.steps = 0
        self.skipped = 0  # steps that were not finite, and how many of them are the latest
        self.in_a_row = 0
        self.meter = Meter()
        self._past: list[float] = []  # of the watched scalar, the last rows
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.board: Board | None = None
        self.graphs = Graphs(device) if plan.cuda_graphs else None
        self._saved = -1
        self._told = 0  # the signal that this process got
        self._stop = ""  # why all of them stop
        self._nets = list(dict.fromkeys(net for phase in system.phases for net in phase.nets))
        if plan.compile:
            compile_nets(self._nets, device)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of this system and data.

        Raises:
            CheckpointError: it does not fit the system, or parts of it are missing.
            DataError: the data are other ones.
        """
        if "images" not in state and "optim" not in state:
            raise CheckpointError(
                "this file cannot be resumed: it holds networks alone, without optimisers and data; begin a run with "
                "its weights by --start-from"
            )
        try:
            self.images = self._saved = int(state["images"])
            self.steps = int(state["steps"])
            self.skipped = int(state.get("skipped", 0))
            self.system.load_state_dict(state)
            if self.system.ema is not None:
                self.system.ema.load_state_dict(state["ema"])
            self.data.load_state_dict(state["data"])
            self.meter.load_state_dict(state["meter"], self.device)
            self._past = state["watched"].tolist() if "watched" in state else []
            checkpoint.set_random_state(state["rng"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise CheckpointError(f"the checkpoint cannot be resumed from: {reason}") from error
        if self.team.first:
            # A row of these very images that left its sums in the meter was the last of a shorter run.
            self.metrics.cut(self.images if self.meter.empty else self.images - 1)

    def begin(self) -> None:
        """Let all processes start from the same weights and random state; collective.

        Both are the same already where they come from the same seed or checkpoint on machines of one kind.

        Raises:
            AnifastError: the networks differ in more than their values.
        """
        tensors = state_tensors(self._nets)
        self.team.check_same([(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors], "its networks")
        self.team.broadcast(tensors)
        random = torch.get_rng_state()
        self.team.broadcast([random])
        torch.set_rng_state(random)
        if self.device.type == "cuda":
            random = torch.cuda.get_rng_state(self.device)
            self.team.broadcast([random])
            torch.cuda.set_rng_state(random, self.device)
        if self.system.ema is not None:
            self.team.broadcast(state_tensors(list(self.system.ema.nets.values())))

    def save(self) -> None:
        """Write the checkpoint, unless the networks are no longer finite; collective.

        In a row of steps that were not finite the last good checkpoint stays as it is.
        """
        phases = [
            phase for phase in reversed(self.system.phases) if phase.optimizer is not None
        ]  # the first one's name
        trained = {net: phase.name for phase in phases for net in phase.nets}
        for net, name in trained.items():
            if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
                raise FloatingPointError(f"weights trained in phase {name} are not finite")
        if self.in_a_row:
            self.log.say(f"image {self.images}: not saved, the last steps were not finite; {self._kept()}")
            return
        meter = self.meter.state_dict(self.team)
        self.team.lead(lambda: self._write(meter))
        self._saved = self.images

    def _write(self, meter: dict[str, Any]) -> None:
        state = {
            **self.header,
            "images": self.images,
            "steps": self.steps,
            "skipped": self.skipped,
            **self.system.state_dict(),
            **({} if self.system.ema is None else {"ema": self.system.ema.state_dict()}),
            "data": self.data.state_dict(),
            "meter": meter,
            "watched": torch.tensor(self._past, dtype=torch.float64),
            "rng": checkpoint.random_state(),
        }
        checkpoint.save(self.folder / checkpoint.NAME, state)
        checkpoint.keep_last(self.folder, self.images, self.plan.keep)

    def run(self) -> bool:
        """Train.

        Returns:
            True when `plan.total` or `plan.minutes` was reached, False when Ctrl-C (or SIGTERM), in any of the
            processes, ended the run; the state is saved either way.

        Raises:
            AnifastError: losses, gradients or weights are no longer finite, or the watched loss explodes; the last
                checkpoint is intact.
        """
        try:
            return self._run()
        finally:
            if self.board is not None:
                self.board.close()

    def _run(self) -> bool:
        self.team.lead(self._begin)
        bar = Progress(self.plan.total, "train", done=self.images, stream=None if self.team.first else Nowhere())
        self.log.bar = bar
        try:
            with self._signals(), compiling(self.plan.compile):
                self._train(bar)
                if self._saved != self.images:
                    self.save()  # under torchrun a second signal must not end it
            if self.in_a_row and not self._stop:
                raise FloatingPointError(f"the last {self.in_a_row} steps were not finite")
        except FloatingPointError as error:
            raise self.team.told(AnifastError(self._not_finite(str(error)))) from None
        finally:
            bar.close()
            self.log.bar = None
        self.team.lead(self._end)
        return not self._stop

    def _begin(self) -> None:
        self.board = Board(self.folder, self.images, self.log)
        if self.images == 0:
            self._draw()

    def _end(self) -> None:
        if self.images < self.plan.total:
            why = self._stop or f"the {self.plan.minutes:g} minutes are over"
            saved = "saved" if self._saved == self.images else self._kept()
            further = ", go on with --resume" if self._saved >= 0 else ""
            self.log.say(f"{why}: stopped at image {self.images} of {self.plan.total}; {saved}{further}")
        self._draw()
        self._plot()

    def _train(self, bar: Progress) -> None:
        plan, wait, since, counted = self.plan, 0.0, time.perf_counter(), 0
        deadline = since + 60.0 * plan.minutes if plan.minutes is not None else math.inf
        while self.images < plan.total and not self._must_stop(deadline):
            before = time.perf_counter()
            batch = self.data.next()
            wait += time.perf_counter() - before
            self.system.begin(batch, self.images)
            try:
                scalars = run_step(self.system.phases, self.steps, self.device, plan.precision, self.team, self.graphs)
            except NotFinite as error:
                self._skip(error)
                moved = [net for phase in error.done for net in phase.nets]
            else:
                self.in_a_row = 0
                self.meter.add(scalars)
                moved = self._nets
            if self.system.ema is not None and self.system.ema.averages(moved):
                self.system.ema.update(plan.batch)
            previous, self.images, self.steps = self.images, self.images + plan.batch, self.steps + 1
            counted += plan.batch
            note = None
            whole = self._due(plan.log_every, previous)
            if whole or self.images >= plan.total:
                # The last row may be one of a part: its sums are kept for the row of a run that goes on from here.
                means = self.meter.take(self.team) if whole else self.meter.means(self.team)
                seconds = time.perf_counter() - since
                speed = {"images_per_second": counted / seconds, "data_wait": wait / seconds}
                row = {"images": self.images, **self.system.row(previous), **means, "skipped": self.skipped, **speed}
                self.team.lead(partial(self._tell, row))
                note = f"{self.system.note(means)}  " if means else "no finite step  "
                note += f"data wait {100 * wait / seconds:.0f}%" + (f"  {self.skipped} skipped" if self.skipped else "")
                wait, since, counted = 0.0, time.perf_counter(), 0
                if whole:
                    self._watch(means)
            pause = time.perf_counter()  # neither saves nor sheets count as time of training
            if self._due(plan.save_every, previous) and self.images < plan.total:
                self.save()
            if self._due(plan.sheet_every, previous) and self.images < plan.total:
                self.team.lead(self._show)
            since += time.perf_counter() - pause
            bar.update(plan.batch, note)

    def _watch(self, means: dict[str, float]) -> None:
        """Look whether the watched scalar explodes; the same in all processes.

        Raises:
            FloatingPointError: it does.
        """
        name = self.system.watched
        if name is None or name not in means:
            return
        value = means[name]
        if len(self._past) >= self.LEAST and value > self.TOO_LARGE * (usual := statistics.median(self._past)):
            raise FloatingPointError(
                f"the loss {name} is {value:.4g}, more than {self.TOO_LARGE:g} times its median of late, {usual:.4g}"
            )
        self._past = [*self._past, value][-self.ROWS :]

    def _must_stop(self, deadline: float) -> bool:
        """Whether any process was told to stop, or the time is over: all of them end at the same step; collective."""
        wish = self.team.largest(2 * self._told + (time.perf_counter() >= deadline))
        if wish > 1:
            self._stop = signal.Signals(wish // 2).name
        return wish > 0

    def _skip(self, error: NotFinite) -> None:
        self.skipped, self.in_a_row, limit = self.skipped + 1, self.in_a_row + 1, self.plan.bad_steps
        if self.in_a_row >= limit:
            many = f", the {limit}th step in a row that is not finite" if limit > 1 else ""
            raise FloatingPointError(f"{error}{many}")
        if self.skipped <= self.SAID:
            behind = "is" if error.last else "and what is behind it are"
            more = "; more are only counted, in metrics.jsonl" if self.skipped == self.SAID else ""
            self.log.say(
                f"image {self.images}: {error}, phase {error.phase.name} of this step {behind} skipped; "
                f"{limit} in a row end the run ({self.in_a_row} so far){more}"
            )

    def _due(self, every: int, previous: int) -> bool:
        return self.images // every != previous // every

    def _tell(self, row: dict[str, Any]) -> None:
        self.metrics.write(row)
        if self.board is not None:
            self.board.scalars(row)

    def _show(self) -> None:
        self._draw()
        self._plot()

    def _draw(self) -> None:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            picture = self.system.sheet()  # only one process draws it, and no step may depend on that
        with atomic_path(self.folder / "samples" / f"{self.images:07d}.png") as temporary:
            picture.save(temporary)
        if self.board is not None:
            self.board.picture(picture, self.images)

    def _plot(self) -> None:
        rows = self.metrics.read()
        if rows:
            with atomic_path(self.folder / "losses.png") as temporary:
                plot_losses({"": rows}, self.system.panels).save(temporary)

    def _kept(self) -> str:
        if self._saved < 0:
            return "nothing was saved yet"
        return f"the checkpoint of image {self._saved} ({self.folder / checkpoint.NAME}) is intact"

    def _not_finite(self, what: str) -> str:
        further = " and --resume goes on from it" if self._saved >= 0 else ""
        return (
            f"training stopped at image {self.images}: {what}; {self._kept()}{further}. A lower --lr, --precision fp32 "
            "or other pictures may help in a new run"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the step at hand; the second one ends the process as usual.

        With torchrun one Ctrl-C can come twice, from the terminal and from torchrun, which also ends by force what
        does not end in time: there further ones do nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: FrameType | None) -> None:
            self._told = number
            if self.team.world == 1:
                for known, handler in handlers.items():
                    signal.signal(known, handler)

        for number in handlers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

"""What systems share whose training has stages: what a stage is, and how far each of a run has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anifast.engine import state as checkpoint
from anifast.engine.distributed import Team
from anifast.engine.loop import Plan
from anifast.errors import AnifastError


@dataclass(frozen=True)
class Stage:
    """One stage of a run, which has a folder of its name.

    Attributes:
        name: one of the system's `config.STAGES`.
        done: whether nothing is left of it.
        assemble: gives the system, its data and the plan that the training loop needs; None: the stage is no training.
        work: the stage instead.
    """

    name: str
    done: Callable[[], bool]
    assemble: Callable[[], tuple[Any, Any, Plan]] | None = None
    work: Callable[[], None] | None = None


class StagedRun:
    """The stages of a run and what they take from one another; base of a system's own.

    Args:
        config: all settings, with a `stage`.
        data: the data folder.
        out: the run folder.
        device: where everything lives.
        team: the processes that share the work; None: one.
    """

    #: How another run takes a stage over, for people.
    TAKING_OVER: str

    def __init__(self, config: Any, data: Path, out: Path, device: torch.device, team: Team | None = None) -> None:
        self.config, self.data, self.out, self.device, self.team = config, data, out, device, team

    def plan(self, batch: int, iterations: int) -> Plan:
        """Of a stage."""
        return dataclasses.replace(Plan.of(self.config, batch * iterations), batch=batch)

    def begun(self, stage: str) -> bool:
        """Whether a stage has a checkpoint."""
        return (self.out / stage / checkpoint.NAME).exists()

    def reached(self, stage: str, plan: Plan) -> bool:
        """Whether a stage's checkpoint stands at the end of its plan."""
        if not self.begun(stage):
            return False
        return int(checkpoint.load(self.out / stage, mmap=True).get("images", 0)) >= plan.total

    def is_over(self, stage: str, plan: Plan, standing_on_it: tuple[str, ...]) -> bool:
        """Whether a stage has reached its end, or may not go on since others (files or folders) stand on it as it is.

        Raises:
            AnifastError: it is asked for alone, and may not go on.
        """
        if self.reached(stage, plan):
            return True
        later = [name for name in standing_on_it if (self.out / name).is_file() or self.begun(name)]
        if not later or not self.begun(stage):
            return False
        if self.config.stage == stage:
            raise AnifastError(
                f"{self.out}: {stage} cannot go on, as {' and '.join(later)} stand on it as it is; remove them, or "
                f"begin another run ({self.TAKING_OVER})"
            )
        return True

"""The phases of a Twin-GAN run: what each takes from the one before, and whether it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from anifast import systems
from anifast.engine import state as checkpoint
from anifast.engine.distributed import Team
from anifast.engine.loop import Plan
from anifast.engine.state import about
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.staging import Stage, StagedRun
from anifast.systems.twingan import checkpoints
from anifast.systems.twingan.config import STAGES, Config, sides
from anifast.systems.twingan.networks import adopt, build
from anifast.systems.twingan.pictures import Pictures
from anifast.systems.twingan.training import GRAPHS_UP_TO, SHOWN, Steps, TwinGAN

#: Networks by name, in training and averaged.
Nets = tuple[dict[str, nn.Module], dict[str, nn.Module]]


class Run(StagedRun):
    """The phases of a run."""

    TAKING_OVER = "--start-from takes its networks over"
    config: Config

    def stages(self) -> list[Stage]:
        """Those that the settings ask for, in order.

        Raises:
            AnifastError: `config.start_from` cannot be used.
        """
        c = self.config
        names = [name for name in c.phases if c.stage in ("all", name)]
        if c.start_from is not None:
            taken = STAGES.index(self._source[0])
            names = [name for name in names if STAGES.index(name) > taken]
            if not names:
                raise AnifastError(
                    f"setting start_from: {c.start_from} is of phase {self._source[0]}, so nothing is left to train up "
                    f"to size {c.size}; take a larger --size"
                )
        return [self._stage(name) for name in names]

    def _stage(self, name: str) -> Stage:
        def done() -> bool:
            return self.is_over(name, self._plan(name), STAGES[STAGES.index(name) + 1 :])

        return Stage(name, done, partial(self._assemble, name))

    def _plan(self, name: str) -> Plan:
        c, (side, _) = self.config, sides(name)
        batch = c.batch_of(side)
        images = c.last_images if name == str(c.size) else c.phase_images
        plan = self.plan(batch, -(-images // batch))
        return dataclasses.replace(plan, cuda_graphs=plan.cuda_graphs and side <= GRAPHS_UP_TO)

    def _assemble(self, name: str) -> tuple[TwinGAN, Steps, Plan]:
        c, (side, _) = self.config, sides(name)
        plan = self._plan(name)
        data = Pictures(self.data, c, side, self.device, self.team, stage=name)
        torch.manual_seed(c.seed + STAGES.index(name))
        start: Mapping[str, nn.Module] | None = None
        averaged: Mapping[str, nn.Module] = {}
        if not self.begun(name):
            start, averaged = self._grown(name, len(data.tags.names) if data.tags else 0)
        system = TwinGAN(c, name, self.device, plan.total, data.tags, data.shown(SHOWN), self.team, start, averaged)
        return system, Steps(data, system.batches), plan

    def _grown(self, name: str, tags: int) -> Nets:
        """The networks that a phase begins with: those of the phase before, with its new layers.

        Raises:
            AnifastError: the phase before has no checkpoint.
        """
        c = self.config
        nets = build(c, name, tags)
        place = STAGES.index(name)
        if c.start_from is not None and STAGES.index(self._source[0]) == place - 1:
            before = self._source[1]
        elif place == 0:
            return nets, {}
        else:
            earlier = STAGES[place - 1]
            if not self.begun(earlier):
                raise AnifastError(
                    f"{self.out}: phase {name} begins with what phase {earlier} has learnt, and {self.out / earlier} "
                    f"has no {checkpoint.NAME}; train that first, or begin with another run's by --start-from"
                )
            with about(self.out / earlier):
                before = _read(checkpoint.load(self.out / earlier))
        live, old = before
        for key, net in nets.items():
            adopt(net, live[key])
        averaged = {}
        for key in old if c.ema else ():
            averaged[key] = build(c, name, tags)[key]
            averaged[key].load_state_dict(nets[key].state_dict())
            adopt(averaged[key], old[key])
        return nets, averaged

    @cached_property
    def _source(self) -> tuple[str, Nets]:
        """The phase and the networks of `config.start_from`.

        Raises:
            CheckpointError: they are not this run's.
        """
        path = self.config.start_from
        assert path is not None
        with about(path):
            state = systems.read(path)
            if not checkpoints.recognises(state):
                raise CheckpointError("no Twin-GAN is in it")
            found = checkpoints.contents(state)
            theirs, ours = checkpoints.architecture(found.config), checkpoints.architecture(self.config)
            other = [f"--{name.replace('_', '-')} {theirs[name]}" for name in ours if theirs[name] != ours[name]]
            if other:
                raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
            return found.stage, _read(state)


def _read(state: Mapping[str, object]) -> Nets:
    """The networks in a checkpoint, in training and averaged."""
    live = checkpoints.networks_of(state, live=True)[1]
    averaged = checkpoints.networks_of(state, live=False)[1] if checkpoints.averaged(state) else {}
    return live, {name: averaged[name] for name in averaged if name in ("E", "G", "E_style")}


def stages(config: Config, data: Path, out: Path, device: torch.device, team: Team | None = None) -> list[Stage]:
    """The phases that the settings ask for, in order."""
    return Run(config, data, out, device, team).stages()

"""The phases of a Twin-GAN run: what each takes from the one before, and whether it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anifast import systems
from anifast.data.tags import TagList
from anifast.engine import state as checkpoint
from anifast.engine.config import as_option
from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Plan
from anifast.engine.state import about
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.staging import Stage, StagedRun
from anifast.systems.twingan import checkpoints
from anifast.systems.twingan.config import STAGES, Config, sides
from anifast.systems.twingan.networks import adopt, build
from anifast.systems.twingan.pictures import Pictures, share_of
from anifast.systems.twingan.training import GRAPHS_UP_TO, MEASURED, SHOWN, Steps, TwinGAN

#: Networks by name, in training and averaged.
Nets = tuple[dict[str, nn.Module], dict[str, nn.Module]]


class Run(StagedRun):
    """The phases of a run."""

    TAKING_OVER = "--start-from takes its networks over"
    config: Config

    def stages(self) -> list[Stage]:
        """Those that the settings ask for, in order.

        Raises:
            AnifastError: `config.start_from` cannot be used, or the settings cannot be trained.
        """
        c = self.config
        if c.style and c.norm == "instance_norm":
            raise AnifastError(
                "setting norm instance_norm: leaves nothing of the last maps of the style's encoder, which have a "
                "single pixel; take batch_renorm"
            )
        names = [name for name in c.phases if c.stage in ("all", name)]
        begun = [name for name in STAGES if self.begun(name)]
        for name in begun[1:]:
            earlier = STAGES[STAGES.index(name) - 1]
            if earlier not in begun:
                raise AnifastError(
                    f"{self.out}: phase {earlier} is missing, which phase {name} has begun with; put "
                    f"{self.out / earlier} back, or remove the phases from {name} on to train them anew"
                )
        if begun:  # a run that has begun with another's networks goes on without the phases before
            names = [name for name in names if STAGES.index(name) >= STAGES.index(begun[0])]
        elif c.start_from is not None:
            taken = STAGES.index(self._source[0])
            names = [name for name in names if STAGES.index(name) > taken]
            if not names:
                raise AnifastError(
                    f"setting start_from: {c.start_from} is of phase {self._source[0]}, so nothing is left to train up "
                    f"to size {c.size}; take a larger --size"
                )
        for name in names:  # told now, and not when the phase begins, days from here
            share_of(c, sides(name)[0], self.team or alone(self.device))
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
            start, averaged = self._grown(name, data.tags)
        measured = data.measured(MEASURED * c.batch_of(side)) if c.ema and c.recalibrate else None
        system = TwinGAN(
            c, name, self.device, plan.total, data.tags, data.shown(SHOWN), self.team, start, averaged, measured
        )
        return system, Steps(data, system.batches), plan

    def _grown(self, name: str, tags: TagList | None) -> Nets:
        """The networks that a phase begins with: those of the phase before, with its new layers.

        Raises:
            AnifastError: the phase before has no checkpoint, or other tags.
        """
        c, count = self.config, len(tags.names) if tags else 0
        nets = build(c, name, count)
        place = STAGES.index(name)
        if c.start_from is not None and STAGES.index(self._source[0]) == place - 1:
            with about(c.start_from):
                _check_tags(self._source[2], tags)
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
                state = checkpoint.load(self.out / earlier)
                seen, whole = int(state["images"]), self._plan(earlier).total
                if seen < whole:
                    raise CheckpointError(
                        f"phase {earlier} has seen {seen} of {whole} images, and phase {name} begins where it ends; "
                        "train it to its end first, or take fewer --phase-images"
                    )
                _check_tags(state.get("tags"), tags)
                before = _read(state)
        live, old = before
        for key, net in nets.items():
            adopt(net, live[key])
        averaged = {}
        for key in old if c.ema else ():
            averaged[key] = build(c, name, count)[key]
            averaged[key].load_state_dict(nets[key].state_dict())
            adopt(averaged[key], old[key])
        return nets, averaged

    @cached_property
    def _source(self) -> tuple[str, Nets, Any]:
        """The phase, the networks and the tags of `config.start_from`.

        Raises:
            CheckpointError: they are not this run's.
        """
        path = self.config.start_from
        assert path is not None
        with about(path):
            state = systems.read(path)
            if not checkpoints.recognises(state):
                raise CheckpointError("no Twin-GAN is in it")
            untold = {} if "format" in state else {name: getattr(self.config, name) for name in checkpoints.UNTOLD}
            found = checkpoints.contents(state, **untold)
            theirs, ours = checkpoints.architecture(found.config), checkpoints.architecture(self.config)
            other = [as_option(name, value) for name, value in theirs.items() if ours.get(name) != value]
            if other:
                raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
            missing = [name for name in build(self.config, found.stage) if name not in found.nets]
            if missing:
                raise CheckpointError(
                    f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in it, only "
                    f"{', '.join(found.nets)}: a run goes on with all of its networks"
                )
            if _unfinished(found):
                raise CheckpointError(
                    f"phase {found.stage} has not come to its end ({found.alpha:.0%} faded in), and a run begins where "
                    "a phase ends; go on with that one first"
                )
            if untold and (self.team is None or self.team.first):
                options = " ".join(as_option(name, value) for name, value in untold.items())
                print(
                    f"{path}: does not tell how its networks were trained; as the settings say: {options}", flush=True
                )
            return found.stage, _read(state, **untold), found.tags


def _unfinished(found: checkpoints.Contents) -> bool:
    """Whether the layers of a phase are still fading in."""
    if not sides(found.stage)[1]:
        return False
    if found.origin == "anifast" and found.images is not None:
        return found.images < found.config.phase_images
    return found.alpha < 0.99


def _read(state: Mapping[str, object], **untold: bool) -> Nets:
    """The networks in a checkpoint, in training and averaged; `untold` are the settings that it does not tell."""
    live = checkpoints.networks_of(state, live=True, **untold)[1]
    averaged = checkpoints.networks_of(state, live=False)[1] if checkpoints.averaged(state) else {}
    return live, {name: averaged[name] for name in averaged if name in ("E", "G", "E_style")}


def _check_tags(theirs: Iterable[Sequence[Any]] | None, ours: TagList | None) -> None:
    """Compare the tags of networks with those of the data.

    Raises:
        CheckpointError: they are others.
    """
    if ours is None or theirs is None:
        return
    names = [str(name) for _, name, _ in theirs]
    if names != list(ours.names):
        raise CheckpointError(
            f"its networks know other tags ({', '.join(names[:3])}, ...: {len(names)}) than the data "
            f"({', '.join(ours.names[:3])}, ...: {len(ours.names)}); put the taglist.tsv back that it was trained with"
        )


def stages(config: Config, data: Path, out: Path, device: torch.device, team: Team | None = None) -> list[Stage]:
    """The phases that the settings ask for, in order."""
    return Run(config, data, out, device, team).stages()

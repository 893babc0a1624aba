"""Starting and resuming a training run of any system."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import anifast
from anifast import backends, systems
from anifast.engine import config as settings
from anifast.engine import distributed, lock, precision, state
from anifast.engine.distributed import Team
from anifast.engine.log import Metrics, RunLog
from anifast.engine.loop import Loop, Plan
from anifast.engine.plots import plot_losses
from anifast.errors import AnifastError
from anifast.files import atomic_path, write_text
from anifast.progress import duration, lasting_output

# Files that only a run leaves behind.
_MARKS = (state.NAME, "config.json", "metrics.jsonl")


def train(
    system: str,
    data: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> bool:
    """Train a system into a run folder; started by torchrun, as one of several processes (engine/distributed.py).

    Where nobody reads standard output or error any more, the run goes on without them; log.txt has all lines.

    Args:
        system: its name.
        data: the data folder, in the system's layout.
        out: the run folder; made if missing.
        preset: named settings, by default the system's first.
        values: settings put over the preset's.
        resume: go on with the run in `out`, with its settings; `values` may only hold those that steer the run.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one; with torchrun one for each process.

    Returns:
        True when the run reached its end, False when Ctrl-C ended it.

    Raises:
        AnifastError: data, settings, folder or checkpoint cannot be used; the message says why and what to do.
    """
    with lasting_output(), distributed.team(device) as team, ExitStack() as held:
        team.lead(lambda: held.enter_context(lock.hold(Path(out))))
        return _train(team, system, Path(data), Path(out), preset, dict(values or {}), resume)


def _newest(config_module: Any, out: Path) -> Path:
    """The folder with the checkpoint to go on from: that of the last stage that has one, where a system has stages."""
    stages = [out / name for name in getattr(config_module, "STAGES", ()) if (out / name / state.NAME).exists()]
    return stages[-1] if stages else out


def _written(config: type[Any], system: str, path: Path) -> Any:
    """The settings in a run's config.json.

    Raises:
        AnifastError: the file is damaged, or another system's.
    """
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AnifastError(f"{path}: cannot be read ({error}); remove the folder, or choose another --out") from error
    if found.pop("system", None) != system:
        raise AnifastError(f"{path}: is not of a run of {system}")
    return settings.build(config, found)


def _settings(
    system: str, out: Path, preset: str | None, values: dict[str, Any], resume: bool
) -> tuple[Any, dict[str, Any] | None]:
    """The config of a run and, if it is resumed, its checkpoint."""
    config_module = systems.module(system, "config")
    newest = _newest(config_module, out)
    if resume:
        if preset is not None:
            raise AnifastError("a resumed run keeps its settings; leave --preset out")
        if not (newest / state.NAME).exists() and hasattr(config_module, "STAGES") and (out / "config.json").exists():
            old = _written(config_module.Config, system, out / "config.json")  # killed before its first checkpoint
            return settings.build(type(old), {**old.as_dict(), **settings.changed(old, values)}), None
        found = state.load(newest)
        if systems.recognise(found, newest) != system:
            raise AnifastError(f"{out} holds a run of {systems.recognise(found, newest)}, not of {system}")
        with state.about(newest):
            old = systems.module(system, "checkpoints").config_of(found)
        return settings.build(type(old), {**old.as_dict(), **settings.changed(old, values)}), found
    config = config_module.make(preset, values)
    held = [name for name in _MARKS if (out / name).exists()]
    if (newest / state.NAME).exists():
        held = held or [newest.name]
        raise AnifastError(
            f"{out} already holds a run ({', '.join(held)}): go on with it by --resume, or choose another --out"
        )
    if held:
        raise AnifastError(
            f"{out} already holds a run that ended before its first checkpoint ({', '.join(held)}): "
            "remove the folder, or choose another --out"
        )
    return config, None


@dataclass(frozen=True)
class _Job:
    """What the training of a run, or of a stage of it, is told.

    Attributes:
        system: its name.
        config: all settings.
        data: the data folder.
        out: the folder of the run or stage.
        named: where the settings come from, for the log.
        stage: its name, or "".
    """

    system: str
    config: Any
    data: Path
    out: Path
    named: str
    stage: str = ""


def _train(
    team: Team, system: str, data: Path, out: Path, preset: str | None, values: dict[str, Any], resume: bool
) -> bool:
    """`train` in a folder that is held."""
    config, found = team.together(lambda: _settings(system, out, preset, values, resume))
    team.check_same(config.as_dict(), "its settings")
    presets = systems.module(system, "config").PRESETS
    job = _Job(system, config, data, out, "resumed" if resume else f"preset {preset or next(iter(presets))}")
    training = systems.module(system, "training")
    if hasattr(systems.module(system, "config"), "STAGES"):
        return _train_stages(team, job)
    return _train_one(team, job, partial(training.assemble, config, data, team.device, team), found)


def _train_stages(team: Team, job: _Job) -> bool:
    """The stages of a run, one after the other; those that are done already are left out."""
    module = systems.module(job.system, "stages")
    stages = team.together(lambda: module.stages(job.config, job.data, job.out, team.device, team))
    left, begun = False, time.perf_counter()
    for stage in stages:
        if team.together(stage.done):
            continue
        left = True
        if stage.assemble is None:
            team.lead(lambda: job.out.mkdir(parents=True, exist_ok=True))
            team.lead(stage.work)
            team.lead(lambda: write_text(job.out / "config.json", _as_json(job)))
            continue
        folder = job.out / stage.name
        found = team.together(lambda: state.load(folder) if (folder / state.NAME).exists() else None)  # noqa: B023
        part = dataclasses.replace(job, out=folder, stage=stage.name)
        if not _train_one(team, part, stage.assemble, found, spent=time.perf_counter() - begun):
            return False
        if not team.together(stage.done):  # its time is over, and those behind it stand on it
            return True
    if not left:
        longer = systems.module(job.system, "config").LONGER
        raise team.told(AnifastError(f"{job.out}: nothing is left to train; {longer} goes on"))
    return True


def _as_json(job: _Job) -> str:
    about = {"system": job.system, **({"stage": job.stage} if job.stage else {}), **job.config.as_dict()}
    return json.dumps(about, indent=1) + "\n"


def _train_one(
    team: Team,
    job: _Job,
    assemble: Callable[[], tuple[Any, Any, Plan]],
    found: dict[str, Any] | None,
    spent: float = 0.0,
) -> bool:
    """A run, or one stage of it, from its checkpoint `found` or from the beginning; `spent`: seconds of its minutes."""
    config, out, resumed = job.config, job.out, found is not None
    training = systems.module(job.system, "training")
    if found is None:
        torch.manual_seed(config.seed)  # torch seeds itself by chance
    model, batches, plan = team.in_turn(assemble)
    if plan.minutes is not None:
        plan = dataclasses.replace(plan, minutes=max(0.0, plan.minutes - spent / 60))
    team.check_same(batches.state_dict(), "its pictures")
    if found is not None and int(found.get("images", 0)) >= plan.total:
        raise team.told(
            AnifastError(
                f"{out}: nothing is left to train, the run has seen {found['images']} of {plan.total} images; "
                f"{systems.module(job.system, 'config').LONGER} goes on"
            )
        )
    # A backend that was asked for and is not there ends the run here.
    ops = team.together(lambda: backends.lines(team.device.type))
    log = team.together(lambda: RunLog(out if team.first else None))
    try:
        header = systems.module(job.system, "checkpoints").header(config)
        loop = team.together(lambda: Loop(model, batches, plan, out, team.device, log, header, team))
        if found is not None:
            with state.about(out):
                team.together(partial(loop.restore, found))
        else:  # what a stage has logged that was killed before its first checkpoint
            team.lead(lambda: loop.metrics.cut(0) if loop.metrics.path.exists() else None)
        loop.begin()

        def introduce() -> None:
            state.remove_leftovers(out)
            write_text(out / "config.json", _as_json(job))
            if job.stage:
                write_text(out.parent / "config.json", _as_json(dataclasses.replace(job, stage="")))
            log.say(f"anifast {anifast.__version__}  train {job.system}  {job.named}  {job.data} -> {out}")
            log.say(precision.describe(team.device, config.precision))
            if team.world > 1:
                log.say(f"{team.world} processes, {team.portion(plan.batch)} of a batch's {plan.batch} images each")
            for line in ops:
                log.say(f"op {line}")
            for line in training.summary(model, batches, plan):
                log.say(line)
            skipped = batches.skipped()
            if skipped:
                log.say(f"{len(skipped)} pictures cannot be used and are skipped:")
                for name, reason in skipped.items():
                    log.say(f"  {name}: {reason}")
            if resumed:
                log.say(f"resumed at image {loop.images}")

        team.lead(introduce)
        found = None  # its tensors are in use or copied by now
        started, first = time.perf_counter(), loop.images
        finished = loop.run()
        seconds = time.perf_counter() - started
        rate = (loop.images - first) / max(seconds, 1e-9)
        log.say(f"{loop.images - first} images in {duration(seconds)}, {rate:.2f} images/s with all sheets and saves")
        log.say(f"{out}: {state.NAME}, samples/, losses.png, metrics.jsonl, log.txt")
        return finished
    finally:
        log.close()


def plot(runs: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Draw the losses of one or several runs of a system, also while they go on.

    Args:
        runs: run folders, or folders of stages of runs.
        out: the PNG; None: losses.png in the run folder, or in each of its stages, if there is one run only.

    Returns:
        The PNG, or those of all stages.

    Raises:
        AnifastError: not a run folder, no losses yet, different systems, or the PNG cannot be written.
    """
    folders = [Path(run) for run in runs]
    if out is None and len(folders) > 1:
        raise AnifastError("several runs go into one figure: say where by --out PNG")
    for folder in folders:
        held = _with_losses(folder)
        if held and out is None:
            return [path for stage in held for path in plot([stage])]
        if held:
            named = ", ".join(str(stage) for stage in held)
            raise AnifastError(f"{folder}: a run with stages; one figure is of one stage: give one of {named}")
    target = Path(out) if out is not None else folders[0] / "losses.png"
    if target.suffix.lower() != ".png":
        raise AnifastError(f"--out {target}: the figure is a PNG, so its name ends in .png")
    found: dict[str, list[dict[str, Any]]] = {}
    kinds = []
    for folder in folders:
        try:
            kinds.append(str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["system"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AnifastError(f"{folder}: not a run folder, it has no config.json of a run") from error
        rows = Metrics(folder / "metrics.jsonl").read()
        if not rows:
            raise AnifastError(f"{folder}: no losses yet in metrics.jsonl")
        name = folder.resolve().name
        found[name if name not in found else str(folder)] = rows
    if len(set(kinds)) > 1:
        raise AnifastError(f"runs of one system can be compared, these are of {', '.join(sorted(set(kinds)))}")
    figure = plot_losses(found, systems.module(kinds[0], "training").PANELS)
    with atomic_path(target) as temporary:
        figure.save(temporary)
    return [target]


def _with_losses(folder: Path) -> list[Path]:
    """The folders of a run's stages that have losses, in order; none if the system has no stages."""
    try:
        system = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["system"])
        names = getattr(systems.module(system, "config"), "STAGES", ())
    except (OSError, ValueError, TypeError, KeyError, AnifastError):
        return []
    return [folder / name for name in names if Metrics(folder / name / "metrics.jsonl").read()]

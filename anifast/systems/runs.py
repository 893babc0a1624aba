"""Starting and resuming a training run of any system."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anifast
from anifast import backends, systems
from anifast.engine import config as settings
from anifast.engine import lock, precision, state
from anifast.engine.log import RunLog
from anifast.engine.loop import Loop
from anifast.errors import AnifastError
from anifast.files import write_text
from anifast.progress import duration

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
    """Train a system into a run folder.

    Args:
        system: its name.
        data: the data folder, in the system's layout.
        out: the run folder; made if missing.
        preset: named settings, by default the system's first.
        values: settings put over the preset's.
        resume: go on with the run in `out`, with its settings; `values` may only hold those that steer the run.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.

    Returns:
        True when the run reached its end, False when Ctrl-C ended it.

    Raises:
        AnifastError: data, settings, folder or checkpoint cannot be used; the message says why and what to do.
    """
    with lock.hold(Path(out)):
        return _train(system, Path(data), Path(out), preset, dict(values or {}), resume, device)


def _train(
    system: str, data: Path, out: Path, preset: str | None, values: dict[str, Any], resume: bool, device: str | None
) -> bool:
    """`train` in a folder that is held."""
    config_module = systems.module(system, "config")
    chosen = precision.pick_device(device)
    found: dict[str, Any] | None = None
    if resume:
        if preset is not None:
            raise AnifastError("a resumed run keeps its settings; leave --preset out")
        found = state.load(out)
        if systems.recognise(found, out) != system:
            raise AnifastError(f"{out} holds a run of {systems.recognise(found, out)}, not of {system}")
        with state.about(out):
            old = systems.module(system, "checkpoints").config_of(found)
        config = settings.build(type(old), {**old.as_dict(), **settings.changed(old, values)})
    else:
        config = config_module.make(preset, values)
        held = [name for name in _MARKS if (out / name).exists()]
        if state.NAME in held:
            raise AnifastError(
                f"{out} already holds a run ({', '.join(held)}): go on with it by --resume, or choose another --out"
            )
        if held:
            raise AnifastError(
                f"{out} already holds a run that ended before its first checkpoint ({', '.join(held)}): "
                "remove the folder, or choose another --out"
            )
    training = systems.module(system, "training")
    model, batches, plan = training.assemble(config, data, chosen)
    if found is not None and int(found.get("images", 0)) >= plan.total:
        raise AnifastError(
            f"{out}: nothing is left to train, the run has seen {found['images']} of {plan.total} images; "
            "a larger --images (within the epochs) goes on"
        )
    ops = backends.lines(chosen.type)  # a backend that was asked for and is not there ends the run here
    log = RunLog(out)
    header = systems.module(system, "checkpoints").header(config)
    loop = Loop(model, batches, plan, out, chosen, log, header)
    try:
        if found is not None:
            with state.about(out):
                loop.restore(found)
            state.remove_leftovers(out)
        write_text(out / "config.json", json.dumps({"system": system, **config.as_dict()}, indent=1) + "\n")
        named = "resumed" if resume else f"preset {preset or next(iter(config_module.PRESETS))}"
        log.say(f"anifast {anifast.__version__}  train {system}  {named}  {data} -> {out}")
        log.say(precision.describe(chosen, config.precision))
        for line in ops:
            log.say(f"op {line}")
        for line in training.summary(model, batches, plan):
            log.say(line)
        skipped = batches.skipped()
        if skipped:
            log.say(f"{len(skipped)} pictures cannot be used and are skipped:")
            for name, reason in skipped.items():
                log.say(f"  {name}: {reason}")
        if found is not None:
            log.say(f"resumed at image {loop.images}")
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

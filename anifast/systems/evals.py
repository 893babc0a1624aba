"""Evaluating a trained model of any system."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import anifast
from anifast import systems
from anifast.engine import config, state
from anifast.engine import precision as numbers
from anifast.engine.translate import check_writable
from anifast.errors import AnifastError
from anifast.files import write_text
from anifast.metrics.features import Extractor, extractor
from anifast.metrics.report import Options, Report

#: Version of the file that an evaluation writes.
FORMAT = "anifast.evaluation/1"
#: Its name in a run folder.
NAME = "evaluation.json"
#: The sets of real pictures that translations can be compared with.
AGAINST = {"test": ("test",), "train": ("train",), "both": ("test", "train")}


def evaluate(
    path: str | Path,
    data: str | Path,
    *,
    features: str = "auto",
    weights: str | Path | None = None,
    against: str | None = None,
    to: str | None = None,
    batch: int = 8,
    limit: int | None = None,
    subset_size: int = 50,
    device: str | None = None,
    precision: str = "fp32",
    out: str | Path | None = None,
    **settings: Any,
) -> Report:
    """Evaluate a trained model on a data folder and write the figures as JSON.

    Args:
        path: a run folder, a checkpoint of one, or a file or folder of an author's own code.
        data: the data folder, in the system's layout.
        features: what FID and KID are taken with: "inception", "squeezenet", "auto" (see `anifast.metrics.extractor`;
            without any weights FID and KID are left out, with a note) or "none". Systems without domains of pictures
            have no FID and KID.
        weights: the file with the extractor's weights.
        against: compare with the pictures of "test", "train" or "both"; None: what is usual for the system.
        to: evaluate the translation to this domain only.
        batch: pictures at once.
        limit: take the first so many pictures of each folder only.
        subset_size: pictures in a subset of KID.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.
        precision: the model's; features are always taken in fp32.
        out: the file; None: evaluation.json in the run folder, or no file where `path` is no run folder.
        settings: of this system only, the fields of its `evaluation.Settings`.

    Returns:
        The report; its `facts` are what the file holds.

    Raises:
        AnifastError: model, data, weights or folder cannot be used; the message says why and what to do.
    """
    started = time.perf_counter()
    for name, value, least in (("batch", batch, 1), ("max", limit, 1), ("kid-subset", subset_size, 2)):
        if value is not None and value < least:
            raise AnifastError(f"--{name} {value}: at least {least}")
    if against is not None and against not in AGAINST:
        raise AnifastError(f"unknown set {against!r}; there are {', '.join(AGAINST)}")
    chosen = numbers.pick_device(device)
    found = systems.read(path)
    system = systems.recognise(found, path)
    file = Path(out) if out is not None else Path(path) / NAME if _is_run(system, Path(path)) else None
    if file is not None and file.is_dir():
        raise AnifastError(f"{file}: is a folder; --out names the file")
    evaluation = systems.module(system, "evaluation")
    own = _own(system, evaluation, settings)
    # Without domains there are no pictures that translations could be compared with.
    domains: bool = getattr(evaluation, "DOMAINS", True)
    if not domains:
        subsets = None if subset_size == Options.subset_size else subset_size
        _no_domains(system, features=features, weights=weights, against=against, to=to, kid_subset=subsets)
        if limit is not None:
            raise AnifastError(f"--max {limit}: a model of {system} is evaluated on all pictures; leave it out")
    loading = {name: getattr(own, name) for name in getattr(evaluation, "LOADING", ())}
    with state.about(path):
        model = systems.module(system, "inference").load(found, chosen, precision=precision, **loading)
    measure, missing = _extractor(features, weights, chosen) if domains else (None, "")
    if file is not None:
        check_writable(file.parent)  # said before the work and not after it
    usual: str = getattr(evaluation, "AGAINST", "test")
    options = Options(measure, batch, limit, AGAINST[against or usual], subset_size, to, own, Path(path))
    with state.about(path):
        report: Report = evaluation.evaluate(model, Path(data), options)
    if missing:
        report.note(missing)
    report.facts = {
        "format": FORMAT,
        "system": system,
        "model": str(path),
        "images_seen": found.get("images"),
        "data": str(data),
        "features": None if measure is None else {
            "name": measure.name, "dim": measure.dim, "weights_sha256": measure.weights, "about": measure.about,
        },
        **report.facts,
        "limit": limit,
        "notes": report.notes,
        "device": str(chosen),
        "torch": torch.__version__,
        "anifast": anifast.__version__,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    if file is not None:
        write_text(file, json.dumps(report.facts, indent=1) + "\n")
    report.file = file
    return report


def _own(system: str, evaluation: ModuleType, values: Mapping[str, Any]) -> Any:
    """The system's own settings with these values, or None for one that has none.

    Raises:
        AnifastError: a value that cannot be, or one of another system.
    """
    own: type | None = getattr(evaluation, "Settings", None)
    names = [field.name for field in dataclasses.fields(own)] if own is not None else []
    unknown = [_flag(name) for name in values if name not in names]
    if unknown:
        there_are = f"; its own are {', '.join(map(_flag, names))}" if names else ", which has none of its own"
        raise AnifastError(f"{', '.join(unknown)}: no option for {system}, the system of this model{there_are}")
    if own is None:
        return None
    for name, value in values.items():
        try:
            config.build(own, {name: value})
        except AnifastError as error:
            what = str(error).removeprefix(f"setting {name}: ")
            raise AnifastError(f"{_flag(name)}: {what}") from None
    return config.build(own, values)


def _is_run(system: str, path: Path) -> bool:
    """Whether a folder is that of a run, or of one whose stages have folders in it."""
    stages: tuple[str, ...] = getattr(systems.module(system, "config"), "STAGES", ())
    return any((path / stage / state.NAME).exists() for stage in ("", *stages))


def _no_domains(system: str, **given: Any) -> None:
    """Refuse what is asked for about domains.

    Raises:
        AnifastError: one of them is given.
    """
    asked = [f"{_flag(name)} {value}" for name, value in given.items() if value not in (None, "auto", "none")]
    if asked:
        raise AnifastError(
            f"{', '.join(asked)}: a model of {system} translates between no two domains whose pictures could be "
            f"compared; leave {'it' if len(asked) == 1 else 'them'} out"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _extractor(name: str, weights: str | Path | None, device: torch.device) -> tuple[Extractor | None, str]:
    """The extractor, or None with the reason where none was insisted on."""
    if name == "none":
        if weights is not None:
            raise AnifastError("--weights goes with --features inception or squeezenet, not with none")
        return None, ""
    try:
        return extractor(name, weights, device), ""
    except AnifastError as error:
        if name != "auto" or weights is not None:
            raise
        return None, f"no FID, no KID: {error}"

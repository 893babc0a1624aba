"""`anifast disentangle digits`: the paper's digit experiment (appendix B) from the digits' files to its tables.

Three runs in one folder: E_w is trained with the writer as label, E_d with the digit, VAE with none. Their content
codes are then asked for both, which gives tables 4 to 7, and drawn. What is done already is left out: the same command
goes on where it was interrupted, and with more options draws more.

Settings are those of `anifast train disentangle`, unless told otherwise: on a CPU 3000 steps of networks of half the
width, in bf16 where it has a matrix unit; on a GPU CUDA graphs; no stage 2 (--stage2-iterations, for sharper figures),
and as many steps of pre-training to those of stage 2 as in the preset. --minutes ends each run after so long.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifast.engine import config as settings
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.disentangle.config import PRESETS, Config, make

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from anifast.data.labelled import Labelled
    from anifast.systems.disentangle.evaluation import Settings
    from anifast.systems.disentangle.inference import Model

#: Version of results.json.
FORMAT = "anifast.disentangle.digits/1"
#: The runs and what sets them apart.
RUNS: dict[str, dict[str, Any]] = {"E_w": {"label": "writer"}, "E_d": {"label": "digit"}, "VAE": {"style_size": 0}}
#: Settings that the experiment gives.
_GIVEN = ("stage", "dataset", "label", "start_from", "size", "channels")
_HALF = {"features": "32,64,128", "fc": 256}
#: Steps of stage 1 on a CPU.
_STEPS = 3000
#: Settings by which the presets of digits differ and that a run keeps.
_BATCHES = ("batch", "classifier_batch", "stage2_batch")
#: Settings that are paths: files that are passed on hold their last part only.
_PATHS = ("start_from", "weight_maps")
#: Checkpoints of a run that --track may keep.
_MOST_KEPT = 100
#: Codes in a plot of figure 11.
_TRACKED = 10_000
#: Numbers of metrics.jsonl that results.json keeps.
_LOSSES = (
    "rec", "rec_other", "kl_content", "kl_style", "c1", "d_real", "d_fake", "g_d", "c2_real", "c2_fake", "g_c2",
    "content",
)  # fmt: skip
#: Settings that the page tells for each run or that change no weight.
_TOLD = {
    "label", "content_size", "style_size", "stage", "iterations", "classifier_iterations", "stage2_iterations",
    *(field.name for field in dataclasses.fields(settings.Steering) if field.name not in ("seed", "precision")),
}  # fmt: skip
_CAPTIONS = {
    "scatter.png": "the first two numbers of the codes in the colours of digits (the paper's figure 6)",
    "scatter_by_digit.png": "the same, each digit over all (figure 9)",
    "digits_by_writers.png": "E_w: mean content of each digit in the style of each writer (figure 5)",
    "one_writer.png": "E_w: real digits of a writer beside painted ones (figure 8)",
    "writers_by_digits.png": "E_d: mean content of each writer in the style of each digit (figure 7)",
    "reconstructions.png": "digits painted again, in their own style and in none (figure 10)",
    "tracks.png": "codes during stage 1 (figure 11)",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command: its own and those of training."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with MNIST's or NIST's files")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets the runs, tables.md, results.json and figures"
    )
    parser.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="networks of half the width [on a CPU]",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="RUN", help="other runs on these digits, for all tables"
    )
    parser.add_argument(
        "--track",
        metavar="STEPS",
        help="steps of stage 1, as in 1000,2000,3000, at which codes are drawn (figure 11; for digits only, by this "
        "command); new runs keep their checkpoints of these, and runs that have ended need to have them",
    )
    parser.add_argument(
        "--codes",
        choices=("sample", "mean"),
        default="sample",
        help="content codes: drawn from the encoders' distributions, or their means [sample]",
    )
    parser.add_argument(
        "--prior", choices=("frequency", "uniform"), default="frequency", help="of naive Bayes' classes [frequency]"
    )
    parser.add_argument("--floor", type=float, default=1e-6, metavar="X", help="naive Bayes' least variance [1e-6]")
    digits = {name: PRESETS[name] for name in ("nist_fast", "nist")}
    settings.add_options(parser, Config, digits, leave_out=_GIVEN)


def main(args: argparse.Namespace) -> int:
    """Train what is not trained yet, then evaluate; the exit code."""
    from anifast.engine.precision import pick_device
    from anifast.engine.translate import check_writable
    from anifast.systems.disentangle.evaluation import Settings

    values = settings.given(args, Config)
    track = _steps(args.track)
    device = pick_device(args.device)
    check_writable(args.out)
    own = settings.build(Settings, {"codes": args.codes, "prior": args.prior, "floor": args.floor})
    # All that can be refused is, before anything is trained.
    jobs = [_job(args, name, values, device, track) for name in RUNS]
    old = [job.config.seed for job in jobs if not job.new]
    for job in jobs:
        if job.new and old and job.config.seed != old[0]:
            raise AnifastError(
                f"{args.out}: the runs that are there have seed {old[0]}, and {job.name} would get {job.config.seed}; "
                f"give --seed {old[0]}"
            )
    own = dataclasses.replace(own, seed=jobs[0].config.seed % 2**31)
    for path in args.beside if track else ():
        _check_beside(path, track)
    for job in jobs:
        if not _train(args, job, device):
            return 130
    report(args.data, args.out, own, device, beside=args.beside, track=track)
    return 0


def _steps(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise AnifastError(f"--track {text}: steps from 1 with commas between them, as in 1000,2000,3000")
    return found


def defaults(
    name: str, given: Mapping[str, Any], half: bool | None, device: torch.device, preset: str = "nist_fast"
) -> dict[str, Any]:
    """The settings of a new run: those that were given over what is usual on the device.

    Args:
        name: of the run.
        given: settings of the user.
        half: networks of half the width; None: on a CPU.
        device: where it is trained.
        preset: of digits.
    """
    from anifast.engine.precision import matrix_unit

    cpu = device.type == "cpu"
    usual: dict[str, Any] = {"stage2_iterations": 0}
    if half or (half is None and cpu):
        usual |= _HALF
    if cpu:
        usual["iterations"] = _STEPS
        if matrix_unit():
            usual["precision"] = "bf16"
    elif device.type == "cuda":
        usual["cuda_graphs"] = True
    found = {**usual, **given, **RUNS[name]}
    return {"classifier_iterations": _pretraining(name, preset, found["stage2_iterations"]), **found}


def _pretraining(name: str, preset: str, steps: int) -> int:
    """Steps of pre-training that are to those of stage 2 as in the preset."""
    usual = make(preset, RUNS[name])
    return steps * usual.classifier_iterations // usual.stage2_iterations


@dataclass(frozen=True)
class _Job:
    """What is to be trained of one run.

    Attributes:
        name: of the run.
        out: its folder.
        config: all its settings.
        values: those that a new run is given, or that change in one that goes on.
        new: whether nothing is there yet.
    """

    name: str
    out: Path
    config: Config
    values: dict[str, Any]
    new: bool


def _job(
    args: argparse.Namespace, name: str, values: dict[str, Any], device: torch.device, track: Sequence[int]
) -> _Job:
    """Settle what is to be trained of one run, from wherever it stands.

    Raises:
        AnifastError: it cannot go on with these settings, or has no checkpoints of the steps to track.
    """
    from anifast.engine import state
    from anifast.systems.disentangle import checkpoints, codes

    out, preset = args.out / name, args.preset or "nist_fast"
    known = checkpoints.stages(out)
    if not known:
        new = defaults(name, values, args.half, device, preset)
        config = make(preset, new)
        new |= _kept(track, config, values)
        config = make(preset, new)
        _check_future(track, config)
        return _Job(name, out, config, new, True)
    newest = next(known[stage] for stage in ("stage2", "classifier", "stage1") if stage in known)
    with state.about(newest):
        old = checkpoints.config_of(state.load(newest))
    with state.about(out):
        batches = {} if args.preset is None else {key: getattr(make(args.preset), key) for key in _BATCHES}
        wanted = {**batches, **values, **(_HALF if args.half else {}), **RUNS[name]}
        differing = settings.changed(old, wanted)
        if differing.get("iterations", 0) > old.iterations and (out / codes.NAME).exists():
            raise AnifastError(
                f"stage 1 has ended after {old.iterations} steps, and the codes stand on it; for more steps give "
                "another --out"
            )
        if not old.stage2_iterations and (steps := differing.get("stage2_iterations")):
            differing = {"classifier_iterations": _pretraining(name, preset, steps), **differing}
    config = settings.build(Config, {**old.as_dict(), **differing})
    if track:
        past = _past(out / "stage1")
        steps = max(past, default=0) // config.batch
        over = steps >= config.iterations or (out / codes.NAME).exists()
        _check_past([step for step in track if over or step <= steps], past, config.batch, out / "stage1")
        if not over:
            differing |= _kept(track, config, values)
            config = settings.build(Config, {**old.as_dict(), **differing})
            _check_future([step for step in track if step > steps], config)
    return _Job(name, out, config, differing, False)


def _kept(track: Sequence[int], config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make stage 1 keep its checkpoints of these steps, where the user gives none of his own.

    Raises:
        AnifastError: too many would have to be kept.
    """
    if not track or {"save_every", "keep"} & given.keys():
        return {}
    apart = math.gcd(*track)
    count = max(2, -(-config.iterations // apart) - min(track) // apart + 1)
    if count > _MOST_KEPT:
        raise AnifastError(
            f"--track {','.join(map(str, track))}: a checkpoint at every {apart:,} steps would be needed for these, "
            f"{count:,} of {config.iterations:,} steps; choose steps that are multiples of a larger number, or give "
            "--save-every and --keep"
        )
    return {"save_every": apart * config.batch, "keep": count}


def _check_future(track: Sequence[int], config: Config) -> None:
    """Check that training will leave checkpoints of these steps.

    Raises:
        AnifastError: it will not.
    """
    for step in track:
        if step > config.iterations:
            raise AnifastError(f"--track: step {step:,} is asked for, and stage 1 has {config.iterations:,}")
        # One is saved with the first step that reaches a multiple of save_every, and with the last step.
        seen = step * config.batch
        if step < config.iterations and seen // config.save_every == (seen - config.batch) // config.save_every:
            raise AnifastError(
                f"--track: step {step:,} is asked for, which is after {seen:,} pictures, and --save-every "
                f"{config.save_every} saves no checkpoint there; leave --save-every and --keep out"
            )
        multiples = (config.iterations * config.batch - 1) // config.save_every - seen // config.save_every
        later = min(multiples + 1, config.iterations - step)
        if later >= config.keep and later:
            raise AnifastError(
                f"--track: step {step:,} is asked for, and --keep {config.keep} does not keep its checkpoint until "
                f"step {config.iterations:,}; give at least {later + 1}, or leave --save-every and --keep out"
            )


def _past(folder: Path) -> dict[int, Path]:
    """Pictures seen -> checkpoint, of a stage's folder, oldest first."""
    from anifast.engine import state

    past = state.numbered(folder)
    if (folder / state.NAME).exists():
        past |= {int(state.load(folder).get("images", 0)): folder / state.NAME}
    return dict(sorted(past.items()))


def _check_past(track: Sequence[int], past: Mapping[int, Path], batch: int, folder: Path) -> None:
    """Check that there are checkpoints of these steps.

    Raises:
        CheckpointError: one is missing.
    """
    missing = [step for step in track if step * batch not in past]
    if missing:
        there = ", ".join(f"{images // batch}" for images in sorted(past)) or "none"
        raise CheckpointError(
            f"{folder}: no checkpoint of step {missing[0]}, which --track asks for; there are {there} "
            "(a new run that is begun with --track keeps them)"
        )


def _check_beside(path: Path, track: Sequence[int]) -> None:
    """Check that a run beside has the checkpoints of these steps.

    Raises:
        CheckpointError: one is missing, or there is no run.
    """
    from anifast import systems
    from anifast.engine import state
    from anifast.systems.disentangle import checkpoints

    found = systems.read(path)
    with state.about(path):
        if not checkpoints.recognises(found):
            raise CheckpointError("no disentangling network is in it")
        batch = checkpoints.contents(found).config.batch
    _check_past(track, _past(path / "stage1"), batch, path / "stage1")


def _train(args: argparse.Namespace, job: _Job, device: torch.device) -> bool:
    """Train one run to its end; False when Ctrl-C ended it."""
    from anifast.systems import runs
    from anifast.systems.disentangle.stages import stages

    if job.new:
        print(f"{job.name}: -> {job.out}", flush=True)
        preset = args.preset or "nist_fast"
        return runs.train("disentangle", args.data, job.out, preset=preset, values=job.values, device=args.device)
    if all(stage.done() for stage in stages(job.config, args.data, job.out, device)):
        print(f"{job.name}: done already in {job.out}", flush=True)
        return True
    print(f"{job.name}: goes on in {job.out}", flush=True)
    return runs.train("disentangle", args.data, job.out, values=job.values, resume=True, device=args.device)


# --- the report


@dataclass
class _Run:
    """An evaluated run: its model and codes."""

    name: str
    path: Path
    model: Model
    found: dict[str, Any]


def report(
    data: Path,
    out: Path,
    own: Settings,
    device: torch.device,
    *,
    beside: Sequence[Path] = (),
    track: Sequence[int] = (),
) -> dict[str, Any]:
    """Evaluate the runs of the experiment on all digits; prints the tables and writes all of it into `out`.

    Args:
        data: the digits' files.
        out: holds the runs E_w, E_d and VAE.
        own: codes, prior, floor, seed.
        device: where.
        beside: other runs on the same digits.
        track: steps of stage 1 at which codes are drawn too.

    Returns:
        What results.json holds.

    Raises:
        AnifastError: a run or its digits cannot be used.
    """
    import torch

    import anifast
    from anifast.engine.precision import describe
    from anifast.files import atomic_path, write_text
    from anifast.metrics.disentanglement import bayes_tables, orderings
    from anifast.systems.disentangle import evaluation

    started = time.perf_counter()
    paths = {name: out / name for name in RUNS}
    for path in beside:
        whole = path.resolve()
        names = [whole.name, f"{whole.parent.name}/{whole.name}"]
        names += [f"{whole.name} ({number})" for number in range(2, len(beside) + 3)]
        paths[next(name for name in names if name not in paths)] = path
    digits = evaluation.digit_sets(data, device)
    factors = {label: one.labels for label, one in digits.items()}
    held = {name: _Run(name, path, *_read(path, digits, device)) for name, path in paths.items()}
    scores = {name: evaluation.score(run.found, factors, own, name) for name, run in held.items()}
    found = orderings({name: one["codes"] for name, one in scores.items()})
    # Of runs with other settings than the paper's the names tell so, and no published row stands below theirs.
    names_ = {name: evaluation.name_of(run.model.config) if name in RUNS else name for name, run in held.items()}
    shown = {names_[name]: one["codes"] for name, one in scores.items()}
    shown |= {f"{names_[name]} shuffled": one["shuffled"] for name, one in scores.items() if name in RUNS}
    drawn: list[str] = []
    about = {name: _about(run, out) for name, run in held.items()}
    facts = {
        "format": FORMAT,
        "data": digits["writer"].about,
        "digests": {label: one.digests() for label, one in digits.items()},
        "settings": dataclasses.asdict(own),
        "runs": about,
        "scores": {name: {key: value.as_dict() for key, value in one.items()} for name, one in scores.items()},
        "orderings": [{"text": text, "holds": holds} for text, holds in found],
        "figures": drawn,
        "device": describe(device, next(iter(held.values())).model.precision),
        "torch": torch.__version__,
        "anifast": anifast.__version__,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(bayes_tables(shown))
    print("the paper's orderings in 2 dimensions:", *_verdicts(found), sep="\n")

    def write() -> None:
        write_text(out / "results.json", json.dumps(facts, indent=1) + "\n")
        write_text(out / "tables.md", _page(facts, bayes_tables(shown, markdown=True), found))

    write()  # what was measured is not to be lost where a figure fails
    for file, image in _figures(held, digits, own, track):
        with atomic_path(out / file) as temporary:
            image.save(temporary)
        drawn.append(file)
    facts["seconds"] = round(time.perf_counter() - started, 1)
    write()
    print(f"-> {out}: tables.md, results.json, {', '.join(drawn)}")
    return facts


def _read(path: Path, digits: Mapping[str, Labelled], device: torch.device) -> tuple[Model, dict[str, Any]]:
    """A run's model and the codes of all digits."""
    from anifast import systems
    from anifast.engine import state
    from anifast.systems.disentangle import checkpoints, evaluation
    from anifast.systems.disentangle.inference import Model

    state_ = systems.read(path)
    with state.about(path):
        if not checkpoints.recognises(state_):
            raise CheckpointError("no disentangling network is in it")
        precision = checkpoints.contents(state_).config.precision
        model = Model(state_, device, precision)
        if model.config.dataset != "digits":
            raise CheckpointError("is no model of digits")
        found = evaluation.coded(model, digits[model.config.label], path, evaluation.at_once(model, 16))
    return model, found


def _figures(
    held: Mapping[str, _Run], digits: Mapping[str, Labelled], own: Settings, track: Sequence[int]
) -> Iterator[tuple[str, Image.Image]]:
    from anifast.systems.disentangle import evaluation

    found = {name: run.found for name, run in held.items()}
    yield from evaluation.scatter_figures(found, digits["digit"].labels, own)
    for name in ("E_w", "E_d"):
        yield from evaluation.painted_figures(held[name].model, digits, held[name].found, own.seed, 64)
    yield "reconstructions.png", evaluation.reconstructions({name: run.model for name, run in held.items()}, digits)
    if track:
        yield "tracks.png", _tracks(held, digits, track)


def _tracks(held: Mapping[str, _Run], digits: Mapping[str, Labelled], track: Sequence[int]) -> Image.Image:
    """Figure 11: the first two numbers of some digits' mean codes at steps of stage 1, a row for each run.

    Raises:
        CheckpointError: a run has no checkpoint of such a step.
    """
    import torch

    from anifast.data.packed import spread
    from anifast.engine import state
    from anifast.systems.disentangle import checkpoints, figures
    from anifast.systems.disentangle.augmentation import prepare
    from anifast.systems.disentangle.inference import Model

    chosen = torch.tensor(spread(len(digits["writer"]), _TRACKED))
    labels = digits["digit"].labels[chosen]
    rows = []
    for name, run in held.items():
        folder = run.path / "stage1"
        past, batch = _past(folder), run.model.config.batch
        _check_past(track, past, batch, folder)
        row = []
        for step in track:
            found = state.load(past[step * batch])
            with state.about(past[step * batch]):
                if not checkpoints.recognises(found):
                    raise CheckpointError("no disentangling network is in it")
                model = Model(found, run.model.device, run.model.precision)
            parts = []
            for part in chosen.split(1024):
                images, _, _ = digits["writer"].batch(part, model.device)
                parts.append(model.contents(prepare(images), 1024)[:, :2].cpu())
            row.append(figures.Cloud(f"{name}, step {step:,}", torch.cat(parts), labels))
        rows.append(row)
    caption = f"the first two numbers of the mean codes of {len(chosen):,} digits during stage 1"
    return figures.matrix(rows, digits["digit"].classes, caption=caption)


# --- the page


def _about(run: _Run, out: Path) -> dict[str, Any]:
    """What a run is and how far it has come."""
    from anifast.engine.log import Metrics
    from anifast.systems.disentangle import checkpoints

    losses: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for stage, folder in checkpoints.stages(run.path).items():
        rows = Metrics(folder / "metrics.jsonl").read()
        last = rows[-max(1, len(rows) // 20) :]
        losses[stage] = {
            key: sum(row[key] for row in last) / len(last)
            for key in _LOSSES
            if last and all(isinstance(row.get(key), int | float) for row in last)
        }
        ends = [0, *(row["images"] for row in rows)]
        speeds = [row["images_per_second"] for row in rows]
        seconds[stage] = round(sum((b - a) / v for a, b, v in zip(ends, ends[1:], speeds, strict=False)), 1)
    return {
        "folder": str(run.path.relative_to(out)) if run.path.is_relative_to(out) else run.path.resolve().name,
        "stage": run.model.stage,
        "steps": _first_steps(run),
        "stage2_steps": run.model.steps if run.model.stage == "stage2" else None,
        "classes": len(run.model.classes),
        "codes_stored": run.found["stored"],
        "last_losses": losses,
        "training_seconds": seconds,
        "config": {
            key: Path(value).name if key in _PATHS and value else value
            for key, value in run.model.config.as_dict().items()
        },
    }


def _first_steps(run: _Run) -> int | None:
    """Steps of stage 1, also where stage 2 has been since; None: not told."""
    from anifast.engine import state

    folder = run.path / "stage1"
    if (folder / state.NAME).is_file():
        return int(state.load(folder).get("images", 0)) // run.model.config.batch
    return run.model.steps if run.model.stage == "stage1" else None


def _verdicts(found: Sequence[tuple[str, bool]]) -> list[str]:
    """The paper's orderings, and whether they were found."""
    return [f"  {'yes' if holds else 'no '}  {text}" for text, holds in found]


def _page(facts: Mapping[str, Any], tables: str, found: Sequence[tuple[str, bool]]) -> str:
    """What tables.md holds."""
    runs: Mapping[str, Any] = facts["runs"]
    own = facts["settings"]
    first = next(iter(runs.values()))["config"]
    lines = [
        "# The digit experiment",
        "",
        f"Data: {facts['data']}. Codes: {own['codes']}, seed {own['seed']}; prior {own['prior']}, variance floor "
        f"{own['floor']:g}. E_w was trained with the writer as label, E_d with the digit, VAE with none.",
        "",
        f"Networks: features {first['features']}, fc {first['fc']}; stage 1 in batches of {first['batch']}, lr "
        f"{first['lr']:g}, weights rec {first['lambda_rec']:g}, C1 {first['lambda_c1']:g}, KL content "
        f"{first['lambda_kl_content']:g}, KL style {first['lambda_kl_style']:g}; precision {first['precision']}. "
        f"Evaluated on {facts['device']}, anifast {facts['anifast']}.",
        "",
        "Last losses: means over the last twentieth of stage 1. A C1 that cannot tell the classes has log(classes).",
        "",
        "| run | steps | minutes | content | style | classes | reconstruction | KL of contents | C1 | log(classes) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, run in runs.items():
        losses, config = run["last_losses"].get("stage1", {}), run["config"]
        style = config["style_size"]
        cells = [
            name,
            "-" if run["steps"] is None else f"{run['steps']:,}",
            f"{run['training_seconds'].get('stage1', math.nan) / 60:.1f}",
            str(config["content_size"]),
            str(style),
            "-" if style == 0 else str(run["classes"]),
            *(f"{losses[key]:.4g}" if key in losses else "-" for key in ("rec", "kl_content", "c1")),
            "-" if style == 0 else f"{math.log(run['classes']):.4g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    differing = {
        name: {k: v for k, v in run["config"].items() if v != first[k] and k not in _TOLD} for name, run in runs.items()
    }
    for name, settings_ in differing.items():
        if settings_:
            words = ", ".join(f"{key} {value}" for key, value in settings_.items())
            lines += ["", f"{name} differs in: {words}."]
    lines += ["", "## Tables 4 to 7", "", tables.rstrip("\n"), ""]
    lines += ["## The paper's orderings in 2 dimensions", "", "| found | ordering |", "| --- | --- |"]
    lines += [f"| {'yes' if holds else '**no**'} | {text} |" for text, holds in found]
    lines += ["", f"{sum(holds for _, holds in found)} of {len(found)} are found.", "", "## Figures", ""]
    lines += [f"- [{file}]({file}): {_CAPTIONS[file]}" for file in facts["figures"]]
    return "\n".join(lines) + "\n"

"""What a trained disentangling network's codes tell of artists and of all else, and whose its paintings look.

The paper's tables 4 to 8, beside the published figures, and linear probes for portraits whose factors are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from anifast import systems
from anifast.data import portraits
from anifast.data.folders import printable
from anifast.data.labelled import LABELS, Labelled, load_digits_by
from anifast.data.packed import spread
from anifast.engine import state
from anifast.engine.config import option
from anifast.engine.precision import autocast, enough_memory
from anifast.engine.translate import check_writable
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.files import atomic_path
from anifast.metrics.disentanglement import (
    Scores,
    average_distance,
    bayes_tables,
    decode,
    generated_table,
    naive_bayes,
    score_codes,
)
from anifast.metrics.report import Options, Report, table
from anifast.progress import Progress
from anifast.systems.disentangle import checkpoints, codes, figures, sheets
from anifast.systems.disentangle.augmentation import prepare, seen
from anifast.systems.disentangle.config import Config
from anifast.systems.disentangle.inference import Model
from anifast.systems.disentangle.networks import Encoder, StyleBank, networks
from anifast.systems.disentangle.pictures import of_artists
from anifast.systems.disentangle.stages import Run

#: There are no domains whose pictures translations could be compared with: no FID, no KID.
DOMAINS = False
#: Numbers of a code that tables 4 to 7 look at.
DIMENSIONS = (2, 8)
#: Standard deviation of what is added to a digit's mean content in figure 8 (ours, the paper does not tell it).
NOISE = 0.5
#: Contents that are drawn at once, whatever the batch, so that this does not change them.
_DRAWN = 1024
#: Pixels in a batch of one picture of 128 px: smaller pictures go in larger batches.
_SIDE = 128


@dataclass(frozen=True)
class Settings:
    """How to evaluate this system, beyond `anifast.metrics.report.Options`."""

    codes: str = option(
        "sample", "content codes: drawn from the encoder's distributions, or their means", choices=("sample", "mean")
    )
    prior: str = option(
        "frequency", "naive Bayes: prior of classes, their frequency or the same", choices=("frequency", "uniform")
    )
    floor: float = option(1e-6, "naive Bayes: least variance", low=1e-30, high=1e30)
    samples: int | None = option(
        None, "pictures painted for table 8; 0: no such table", low=0, none="as many as were trained on"
    )
    plain: str | None = option(
        None, "a run of other c2_fake, for the other row and column of table 8", none="one row and column"
    )
    figures: str | None = option(None, "folder for scatter plots and sheets", none="none are drawn")
    seed: int = option(0, "of codes, contents and probes", low=0, high=2**31 - 1)


# --- codes


def load_pictures(model: Model, data: Path) -> Labelled:
    """The pictures of a data folder as the model's run takes them, without weight maps, which no code depends on."""
    config = dataclasses.replace(model.config, weight_maps=None)
    return Run(config, data, data, model.device).pictures


def at_once(model: Model, batch: int) -> int:
    """Pictures at once where `batch` is for 128 px or more: as many times that as they are smaller."""
    return batch * max(1, (_SIDE // model.size) ** 2)


def coded(model: Model, pictures: Labelled, run: Path | None, batch: int) -> dict[str, Any]:
    """The codes of all pictures as `codes.encode` gives them: the stored ones of a run if they fit, else new ones.

    Args:
        model: the encoder.
        pictures: all.
        run: where the model is from; None: codes are computed.
        batch: pictures at once.

    Returns:
        Also "stored": whether they were read.

    Raises:
        CheckpointError: the encoder gives codes that are not finite.
    """
    place = None if run is None else run / codes.NAME if (run / codes.NAME).is_file() else run.parent / codes.NAME
    if place is not None and place.is_file():
        found = codes.read(place)
        same = all(
            found.get("data", {}).get(key) == value for key, value in pictures.digests().items() if key != "maps"
        )
        if same and found.get("encoder") == codes.digest(model.encoder):
            return {**found, "stored": True}
    made = codes.encode(model.encoder, pictures, model.device, batch, model.precision)
    return {**made, "stored": False}


def chosen(mean: Tensor, std: Tensor, how: str, seed: int) -> Tensor:
    """Codes N,d by which contents are judged: "mean", or "sample": mean + std * noise of this seed."""
    if how == "mean":
        return mean
    return mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))


def described(how: str, seed: int) -> str:
    """The same in words, for tables."""
    return how if how == "mean" else f"sample, seed {seed}"


def name_of(config: Config) -> str:
    """What the paper calls an encoder of digits, with what sets it apart from the paper's, and E for others."""
    if config.dataset != "digits":
        return "E" if config.style_size != 0 else "VAE of artists"
    plain = config.style_size == 0
    name = "VAE" if plain else {"writer": "E_w", "digit": "E_d"}[config.label]
    unusual = [] if config.nested else ["not nested"]
    if not plain and config.lambda_c1 == 0:
        unusual.insert(0, "lambda_c1 0")
    elif not plain and config.c1_input != "image":
        unusual.insert(0, f"c1_input {config.c1_input}")
    return f"{name} ({', '.join(unusual)})" if unusual else name


def digit_sets(data: Path, device: torch.device) -> dict[str, Labelled]:
    """All digits by writer and by digit, with their pixels on the device where it has room."""
    found = {label: load_digits_by(data, label) for label in LABELS}
    for one in found.values():
        one.to(device)
    return found


def score(found: Mapping[str, Any], factors: Mapping[str, Tensor], own: Settings, label: str) -> dict[str, Scores]:
    """Tables 4 to 7 of some codes, and of the same codes with shuffled labels.

    Args:
        found: mean and std, N,d.
        factors: name -> labels, int64 [N].
        own: codes, prior, floor and seed.
        label: of the progress bars.

    Returns:
        "codes" and "shuffled": what the classifier gets by being scored on what it was fitted to.
    """
    z = chosen(found["mean"], found["std"], own.codes, own.seed)[:, : max(DIMENSIONS)]
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(own.seed + 1))
    dimensions = sorted({min(k, z.shape[1]) for k in DIMENSIONS})
    return {
        name: score_codes(
            codes_,
            factors,
            drawn=described(own.codes, own.seed),
            dimensions=dimensions,
            prior=own.prior,
            floor=own.floor,
            label=label if name == "codes" else f"{label}, shuffled",
        )
        for name, codes_ in (("codes", z), ("shuffled", z[order]))
    }


# --- the evaluation


def evaluate(model: Model, data: Path, options: Options) -> Report:
    """Evaluate the content codes of a data folder's pictures and, after stage 2, what is painted of random contents.

    Tables 4 to 7: average distance of the codes to the mean of their class and a naive Bayes classifier, in the first 2
    and 8 numbers, by the artist (digits: by writer and by digit). Table 8: contents from the Gaussian of all codes, as
    many as training pictures unless told otherwise, each artist as often as in training and in his mean style, judged
    by the classifier of stage 2; without augmentation, and with alpha 1. Portraits whose factors are known: how well
    linear probes read the factors from the codes of this encoder and of an untrained one of the same seed.

    Args:
        model: of either stage.
        data: folder with a folder for each artist, or with the digits' files.
        options: see there; `own` is a `Settings`, `model` where codes.pt and C2 are looked for.

    Returns:
        Tables as text, and all figures as facts.

    Raises:
        DataError: the pictures cannot be used.
        CheckpointError: the run of `plain` does not fit.
        AnifastError: codes or paintings are not finite, or the memory does not suffice.
    """
    own: Settings = options.own or Settings()
    other = _other(model, own)
    if own.figures is not None:
        check_writable(Path(own.figures))
    batch = at_once(model, options.batch)
    report = Report(())
    digits = digit_sets(data, model.device) if model.config.dataset == "digits" else None
    pictures = digits[model.config.label] if digits else load_pictures(model, data)
    sets = digits or {"artist": pictures}
    factors = {label: one.labels for label, one in sets.items()}
    for name, why in pictures.skipped().items():
        report.note(f"left out: {printable(name)}: {why}")
    if not model.config.nested:
        report.note("codes were trained without nested dropout: their first numbers are no more than any others")
    with enough_memory(batch, f" of side {model.size}", "--batch"):
        found = coded(model, pictures, options.model, batch)
        name = name_of(model.config)
        scores = score(found, factors, own, "naive Bayes")
        report.above.append(f"data: {pictures.about}")
        report.above.append(f"codes: {'codes.pt' if found['stored'] else 'encoded now'}, {model.content_size} numbers")
        text = bayes_tables({name: scores["codes"], "shuffled labels": scores["shuffled"]})
        report.below += ["", *text.rstrip("\n").splitlines()]
        report.facts = {
            "size": model.size,
            "precision": model.precision,
            "stage": model.stage,
            "pictures": len(pictures),
            "data": pictures.about,
            "settings": dataclasses.asdict(own),
            "codes_stored": found["stored"],
            "encoder": name,
            "scores": {key: value.as_dict() for key, value in scores.items()},
            "generated": None,
            "decoded": None,
            "figures": [],
        }
        known = None if digits else _portraits(pictures, data, report)
        if known is not None:
            _decode(model, pictures, found, known, own, batch, report)
        _generated(model, pictures, found, other, options, own, batch, report)
        if own.figures is not None:
            folder = Path(own.figures)
            drawn = (
                digit_figures(model, digits, found, own, batch)
                if digits
                else artist_figures(model, pictures, found, data, own, batch, other)
            )
            for file, image in drawn:
                with atomic_path(folder / file) as temporary:
                    image.save(temporary)
                report.facts["figures"].append(str(folder / file))
            report.below += ["", f"figures: {', '.join(report.facts['figures'])}"]
    return report


# --- table 8


@dataclass(frozen=True)
class _Judged:
    """A model that paints and the classifier that was trained beside it.

    Attributes:
        kind: "adversarial", or "plain": of a classifier that learnt from real pictures only.
    """

    model: Model
    classifier: nn.Module
    kind: str


def _judged(model: Model, path: Path) -> _Judged | None:
    """The model with its run's C2; None where stage 2 has not been."""
    if model.stage != "stage2":
        return None
    with state.about(path):
        held = checkpoints.contents(systems.read(path))
    if "C2" not in held.nets:
        return None
    net = checkpoints.build("C2", held.config, len(held.classes))
    net.load_state_dict(held.nets["C2"], assign=True)
    kind = "plain" if held.config.c2_fake == "none" else "adversarial"
    return _Judged(model, net.to(model.device, torch.float32).eval().requires_grad_(False), kind)


def _other(model: Model, own: Settings) -> _Judged | None:
    """The run of `plain`, which has to be one of the same artists and sizes with the other kind of C2.

    Raises:
        CheckpointError: it is none.
    """
    if own.plain is None:
        return None
    path = Path(own.plain)
    found = systems.read(path)
    if not checkpoints.recognises(found):
        raise CheckpointError(f"--plain {path}: no disentangling network is in it")
    with state.about(path):
        second = Model(found, model.device, model.precision)
    judged = _judged(second, path)
    if judged is None or model.stage != "stage2":
        raise CheckpointError(
            f"--plain {path}: table 8 compares two runs of stage 2, and {'it' if judged is None else 'the first'} "
            "holds none; train it by --stage stage2"
        )
    if second.statistics is None:
        raise CheckpointError(
            f"--plain {path}: there are no statistics of contents, which random ones are drawn from; make them by "
            "--stage encode"
        )
    if second.classes != model.classes or (second.size, second.channels) != (model.size, model.channels):
        raise CheckpointError(f"--plain {path}: is of other artists or another size than the model that is evaluated")
    kinds = {"plain" if one.config.c2_fake == "none" else "adversarial" for one in (model, second)}
    if len(kinds) == 1:
        raise CheckpointError(
            f"--plain {path}: both runs' classifiers are {kinds.pop()}; train one with --c2-fake none --start-from RUN"
        )
    return judged


@torch.no_grad()
def _generated(
    model: Model,
    pictures: Labelled,
    found: Mapping[str, Any],
    other: _Judged | None,
    options: Options,
    own: Settings,
    batch: int,
    report: Report,
) -> None:
    """Table 8, into the report."""
    if own.samples == 0:
        return
    first = None if options.model is None else _judged(model, options.model)
    if first is None:
        report.note("no table 8: it needs the generator and the classifier of stage 2")
        return
    counts = pictures.counts if model.counts is None else model.counts
    if len(counts) != len(model.classes):
        report.note("no table 8: how many pictures each artist has is not told, and these are of other artists")
        return
    runs = [first] if other is None else [first, other]
    total = int(counts.sum()) if own.samples is None else own.samples
    right: dict[tuple[str, str], Tensor] = {
        (painted.kind, scorer.kind): torch.zeros((), dtype=torch.int64, device=model.device)
        for painted in runs
        for scorer in runs
    }
    with Progress(total * len(runs), "table 8") as bar:
        for painted in runs:
            statistics = found["statistics"] if painted is first else None
            for contents, labels in _random(painted.model, statistics, counts, total, own.seed):
                for rows in torch.arange(len(labels)).split(batch):
                    artists = labels[rows].tolist()
                    made = painted.model.paint(contents[rows], painted.model.styles(artists), batch)
                    if not bool(made.isfinite().all()):
                        raise AnifastError("a painting is not finite (NaN); the model's weights may be damaged")
                    wanted = labels[rows].to(model.device)
                    for scorer in runs:
                        with autocast(model.device, model.precision):
                            logits = scorer.classifier(seen(made, None, model.channels))
                        right[painted.kind, scorer.kind] += (logits.argmax(1) == wanted).sum()
                    bar.update(len(rows))
    results = {kinds: int(value) / total for kinds, value in right.items()}
    steps = " and ".join(f"{_kind(one)} {_steps(one.model)}" for one in runs)
    about = f"{total:,} pictures, {len(model.classes):,} artists; stage 2: {steps}; seed {own.seed}"
    report.below += [
        "",
        *generated_table(results, about, faces=model.config.dataset != "digits").rstrip("\n").splitlines(),
    ]
    report.facts["generated"] = {
        "pictures": total,
        "artists": len(model.classes),
        "c2_fake": {one.kind: one.model.config.c2_fake for one in runs},
        "top1": [{"generator": a, "scored_by": b, "top1": value} for (a, b), value in results.items()],
        "protocol": "contents from the Gaussian of all codes, artists as often as in training, their mean styles, "
        "alpha 1, no augmentation",
    }


def _kind(one: _Judged) -> str:
    """The kind of a classifier, with its loss where that is not the paper's."""
    form = one.model.config.c2_fake
    return f"{one.kind} (c2_fake {form})" if form == "neg_nll" else one.kind


def _steps(model: Model) -> str:
    return f"{model.steps:,} steps" if model.steps is not None else "steps not told"


def _random(
    model: Model, statistics: Mapping[str, Tensor] | None, counts: Tensor, total: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random contents and artists, a part at a time: each artist as often, in proportion, as in `counts`.

    Args:
        model: whose own statistics are used if it has some.
        statistics: of contents, where it has none.
        counts: pictures of each artist.
        total: how many.
        seed: of contents.
    """
    ends = counts.cumsum(0)
    for number, start in enumerate(range(0, total, _DRAWN)):
        count = min(_DRAWN, total - start)
        source = torch.Generator().manual_seed(seed * 2**31 + number)
        noise = torch.randn(count, model.content_size, generator=source, dtype=torch.float64)
        # The middles of `total` even parts of all training pictures, which stand by artist.
        places = (2 * torch.arange(start, start + count) + 1) * int(ends[-1]) // (2 * total)
        labels = torch.searchsorted(ends, places, right=True)
        known = model.statistics or statistics
        if known is None:
            raise CheckpointError("there are no statistics of contents; make them by --stage encode")
        yield codes.random_contents(known, noise).float(), labels


# --- probes


@dataclass(frozen=True)
class _Known:
    """Pictures whose factors are known: their rows, and content factor -> values."""

    rows: Tensor
    factors: dict[str, Tensor]


def _portraits(pictures: Labelled, data: Path, report: Report) -> _Known | None:
    """The content factors of procedural portraits; None where there is no file of them."""
    if not (data / portraits.LABELS).is_file():
        return None
    labels = portraits.read_labels(data)
    rows = [row for row, name in enumerate(pictures.names) if name in labels]
    if len(rows) < len(pictures):
        report.note(f"{portraits.LABELS} tells the factors of {len(rows)} of {len(pictures)} pictures")
    if len(rows) < 20:
        report.note("no probes: they need at least 20 pictures whose factors are known")
        return None
    factors: dict[str, Tensor] = {}
    for field in dataclasses.fields(portraits.Content):
        if field.name == "detail":  # a seed
            continue
        values = [getattr(labels[pictures.names[row]].content, field.name) for row in rows]
        if isinstance(values[0], float):
            column = torch.tensor(values, dtype=torch.float64)
        else:
            kinds = sorted(set(values))
            column = torch.tensor([kinds.index(value) for value in values])
        if bool((column == column[0]).all()):
            continue  # nothing to be told apart
        factors[field.name] = column
    return _Known(torch.tensor(rows), factors)


def _decode(
    model: Model,
    pictures: Labelled,
    found: Mapping[str, Any],
    known: _Known,
    own: Settings,
    batch: int,
    report: Report,
) -> None:
    """What is read from the codes of this encoder and of one that nobody trained, into the report."""
    frequency = (pictures.counts / pictures.counts.sum()).float()
    fresh = networks(model.config, frequency, "stage1")
    first = fresh["E"].to(model.device).requires_grad_(False)
    assert isinstance(first, Encoder)
    before = codes.encode(first, pictures, model.device, batch, model.precision)
    banks: dict[str, StyleBank | None] = {"untrained": None, "trained": None}
    same = model.style_size > 0 and model.classes == pictures.classes
    if same:
        bank = fresh["S"].to(model.device).requires_grad_(False)
        assert isinstance(bank, StyleBank)
        banks = {"untrained": bank, "trained": model.bank}
    elif model.style_size:
        report.note("these are pictures of other artists than the model knows: no probes of styles")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    left: list[str] = []
    count = 2 * (len(known.factors) + 1 + same)
    artists = pictures.labels[known.rows]
    with Progress(count, "probes", unit="probe") as bar:
        for when, held in (("untrained", before), ("trained", found)):
            z = chosen(held["mean"], held["std"], own.codes, own.seed)[known.rows]
            probes = [("content", name, z, values) for name, values in known.factors.items()]
            probes.append(("content", "artist", z, artists))
            style = banks[when]
            if style is not None:
                mean, std = (part.cpu() for part in style(artists.to(model.device)))
                probes.append(("style", "artist", chosen(mean, std, own.codes, own.seed + 2), artists))
            for code, name, values, target in probes:
                try:
                    result = decode(values, target, seed=own.seed)
                except DataError:  # all the same in one of the halves
                    left.append(name)
                else:
                    rows.setdefault((code, name), {})[when] = dataclasses.asdict(result)
                bar.update(1)
    if left:
        report.note(f"not to be decoded, as all but a few are alike: {', '.join(dict.fromkeys(left))}")
    classes = {name: values for name, values in known.factors.items() if not values.is_floating_point()}
    z = chosen(found["mean"], found["std"], own.codes, own.seed)[known.rows]
    dimensions = sorted({min(k, z.shape[1]) for k in DIMENSIONS})
    bayes = {
        name: {
            str(k): {
                "bayes": dataclasses.asdict(naive_bayes(z[:, :k], values, prior=own.prior, floor=own.floor)),
                "distance": average_distance(z[:, :k], values),
            }
            for k in dimensions
        }
        for name, values in classes.items()
    }
    _decoded_table(rows, dimensions, bayes, known, own, report)
    report.facts["decoded"] = {
        "pictures": len(known.rows),
        "probes": [{"code": code, "factor": name, **one} for (code, name), one in rows.items()],
        "naive_bayes": bayes,
    }


def _decoded_table(
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
    dimensions: Sequence[int],
    bayes: Mapping[str, Mapping[str, Any]],
    known: _Known,
    own: Settings,
    report: Report,
) -> None:
    def cell(one: Mapping[str, Any] | None, key: str = "score") -> str:
        return "-" if one is None else f"{one[key]:.3f}"

    for measure, title in (("r2", "numbers: R^2"), ("accuracy", "choices: accuracy")):
        lines = []
        for (code, name), one in rows.items():
            some = one.get("trained") or one["untrained"]
            if some["measure"] != measure:
                continue
            lines.append(
                (f"{name} from {code}", [cell(some, "chance"), cell(one.get("untrained")), cell(one.get("trained"))])
            )
        if lines:
            report.below += ["", *table(title, ("chance", "untrained", "trained"), lines)]
    halves = f"half of {len(known.rows)} pictures, scored on the other; codes: {described(own.codes, own.seed)}"
    report.below.append(f"linear probes, fitted to {halves}; untrained: the same networks as the run's seed draws them")
    if ("style", "artist") in rows:
        report.below.append(
            "artist from style: styles are looked up by the artist, so this tells only how far apart they lie"
        )
    if bayes:
        heads = ["chance", *(f"{k}d" for k in dimensions)]
        lines = [
            (
                name,
                [
                    cell(by[str(dimensions[0])]["bayes"]["chance"], "top1"),
                    *(cell(by[str(k)]["bayes"], "top1") for k in dimensions),
                ],
            )
            for name, by in bayes.items()
        ]
        report.below += ["", *table("naive Bayes by true factors: top-1", heads, lines)]


# --- figures


def artist_figures(
    model: Model,
    pictures: Labelled,
    found: Mapping[str, Any],
    data: Path,
    own: Settings,
    batch: int,
    other: _Judged | None = None,
) -> Iterator[tuple[str, Image.Image]]:
    """Where codes lie, and the paper's sheets of what is painted.

    Figure 2: the same random contents by 12 artists, beside real pictures; 12: the same by the run of `plain`; 3: the
    content of a picture by 35 artists; 4: the contents of several pictures by several artists; 13: those of many by one
    artist; 10: pictures painted again. A plain VAE paints the last only.
    """
    z = chosen(found["mean"], found["std"], own.codes, own.seed)
    if z.shape[1] > 1:
        numbers, shown = figures.colours_of(pictures.labels, pictures.classes)
        told = "" if len(shown) == len(pictures.classes) else "; all others grey"
        caption = f"content codes ({described(own.codes, own.seed)}): the first two numbers{told}"
        yield "codes.png", figures.scatter([figures.Cloud("by artist", z[:, :2], numbers)], shown, caption=caption)
    if model.style_size:
        artists = [model.classes[k] for k in spread(len(model.classes), 12)]
        try:
            real = of_artists(model, data, artists, 2, "crop")
        except DataError:  # pictures of others than the model knows
            real = None
        painters: list[tuple[str, Model, Mapping[str, Tensor]]] = [("artists.png", model, found["statistics"])]
        if other is not None and other.model.statistics is not None:
            painters.append((f"artists_{other.kind}.png", other.model, other.model.statistics))
        for file, painter, statistics in painters:
            source = torch.Generator().manual_seed(own.seed)
            noise = torch.randn(12, painter.content_size, generator=source, dtype=torch.float64)
            contents = codes.random_contents(statistics, noise).float()
            styles = painter.styles(artists)
            yield file, sheets.grid(painter, contents, styles, names=artists, real=real, batch=batch)
        yield from _transfers(model, pictures, batch)
    yield "reconstructions.png", _again(model, pictures, batch)


def _some(pictures: Labelled, count: int) -> tuple[list[int], Tensor]:
    """Pictures evenly spread over all, which stand by artist: their rows, and how networks see them."""
    rows = list(spread(len(pictures), count))
    return rows, prepare(pictures.batch(rows)[0])


def _transfers(model: Model, pictures: Labelled, batch: int) -> Iterator[tuple[str, Image.Image]]:
    """Figures 3, 4 and 13: the contents of pictures by artists."""
    _, images = _some(pictures, 18)
    contents = model.contents(images, batch)
    many, several = ([model.classes[k] for k in spread(len(model.classes), count)] for count in (35, 8))
    middle = len(images) // 2
    one = slice(middle, middle + 1)
    yield (
        "styles.png",
        sheets.one_content(model, contents[one], model.styles(many), names=many, original=images[one], batch=batch),
    )
    few = list(spread(len(images), 8))
    yield (
        "transfer.png",
        sheets.grid(model, contents[few], model.styles(several), names=several, originals=images[few], batch=batch),
    )
    artist = model.classes[len(model.classes) // 2]
    yield (
        "contents.png",
        sheets.one_style(model, contents, model.styles([artist]), name=artist, originals=images, batch=batch),
    )


def _again(model: Model, pictures: Labelled, batch: int) -> Image.Image:
    """Figure 10: pictures painted again in their own style, in none, and in another artist's."""
    rows, images = _some(pictures, 8)
    artists = [pictures.classes[k] for k in pictures.labels[rows].tolist()]
    if not model.style_size:
        return sheets.again(model, images, None, model.neutral(len(rows)), names=artists, batch=batch)
    known = [model.knows(name) for name in artists]
    first = model.classes[0]
    own = model.styles([name if is_known else first for name, is_known in zip(artists, known, strict=True)])
    others = []
    for name in artists:
        place = model.classes.index(name) if model.knows(name) else 0
        others.append(model.classes[(place + max(1, len(model.classes) // 2)) % len(model.classes)])
    names = [f"{name}\nother: {another}" for name, another in zip(artists, others, strict=True)]
    return sheets.again(
        model, images, own if any(known) else None, model.styles(others), names=names, known=known, batch=batch
    )


def digit_figures(
    model: Model, digits: Mapping[str, Labelled], found: Mapping[str, Any], own: Settings, batch: int
) -> Iterator[tuple[str, Image.Image]]:
    """Figures 5 to 10, of one model of digits; those that it can paint."""
    name = name_of(model.config)
    yield from scatter_figures({name: found}, digits["digit"].labels, own)
    yield from painted_figures(model, digits, found, own.seed, batch)
    yield "reconstructions.png", reconstructions({name: model}, digits)


def scatter_figures(
    found: Mapping[str, Mapping[str, Any]], digit: Tensor, own: Settings
) -> Iterator[tuple[str, Image.Image]]:
    """Figures 6 and 9: the first two numbers of the codes of models by name, coloured by digit and split by it."""
    names = [str(k) for k in range(10)]
    how = described(own.codes, own.seed)
    clouds = [
        figures.Cloud(name, chosen(one["mean"], one["std"], own.codes, own.seed)[:, :2], digit)
        for name, one in found.items()
        if one["mean"].shape[1] > 1
    ]
    if clouds:
        told = f"the first two numbers of content codes ({how})"
        yield "scatter.png", figures.scatter(clouds, names, caption=f"{told} in the colours of digits")
        yield "scatter_by_digit.png", figures.split(clouds, names, caption=f"{told}: each digit over all")


def class_means(codes_: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The mean code of each of some classes, which have members: len(classes),d."""
    return torch.stack([codes_[labels == number].mean(0) for number in classes])


def painted_figures(
    model: Model, digits: Mapping[str, Labelled], found: Mapping[str, Any], seed: int, batch: int
) -> Iterator[tuple[str, Image.Image]]:
    """Figures 5 and 8 of a model that knows writers, 7 of one that knows digits, none of a plain VAE."""
    if not model.style_size or model.classes != digits[model.config.label].classes:
        return
    writer, digit = digits["writer"].labels, digits["digit"].labels
    ids, counts = digits["writer"].classes, digits["writer"].counts
    shown = [int(name) for name in digits["digit"].classes]
    columns = spread(len(counts), 14)
    heads = [ids[k] for k in columns]
    if model.config.label == "digit":
        contents = class_means(found["mean"], writer, columns)
        yield "writers_by_digits.png", figures.crossed(model, contents, shown, heads, batch=batch)
        return
    contents = class_means(found["mean"], digit, range(len(shown)))
    yield "digits_by_writers.png", figures.crossed(model, contents, shown, heads, batch=batch)
    both = torch.bincount(writer * len(shown) + digit, minlength=len(counts) * len(shown)).view(len(counts), -1)
    fewest = both.amin(1)
    who = int(((fewest == fewest.max()) * counts).argmax())  # who has written the most of what he has least of
    real = {
        name: digits["writer"].images.batch(torch.nonzero((writer == who) & (digit == k))[:5, 0])
        for k, name in enumerate(shown)
    }
    sheet = figures.one_writer(model, real, contents, ids[who], noise=NOISE, seed=seed, batch=batch)
    yield "one_writer.png", sheet


def reconstructions(models: Mapping[str, Model], digits: Mapping[str, Labelled]) -> Image.Image:
    """Figure 10: digits of different writers, and what each model makes of their contents in own style and in none."""
    writer, digit = digits["writer"].labels, digits["digit"].labels
    writers, kinds = len(digits["writer"].classes), len(digits["digit"].classes)
    rows: list[int] = []
    for k in range(kinds):  # each by another writer, as far as there are so many
        members = torch.nonzero(digit == k)[:, 0]
        rows.append(int(members[((writer[members] - k * writers // kinds) % writers).argmin()]))
    images, _, _ = digits["writer"].batch(rows)
    labels = {}
    for name, model in models.items():
        own = digits[model.config.label]
        labels[name] = [own.classes[k] for k in own.labels[rows].tolist()]
    return figures.reconstructions(models, prepare(images), labels)

"""Figures of a trained Twin-GAN on pictures it has not seen: its losses, FID, KID and SWD both ways, and its search.

Nobody has published figures of this system; the report tells how these are taken.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anifast.data import portraits
from anifast.data.folders import counted, printable, to_float, to_uint8
from anifast.data.packed import spread
from anifast.data.tags import chosen, read_tags
from anifast.engine.config import option
from anifast.engine.precision import enough_memory
from anifast.engine.sheets import Block, sheet
from anifast.engine.translate import check_writable
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.files import atomic_path
from anifast.metrics.report import DISTANCES, Options, Report, distance_cells, distances, table
from anifast.metrics.sets import FeatureSet
from anifast.metrics.swd import PICTURES, levels, swd
from anifast.systems.measures import figure, opened, read_batches, real_features
from anifast.systems.twingan import sheets
from anifast.systems.twingan.config import DOMAINS, LETTERS, WORDS, domain_of
from anifast.systems.twingan.gallery import Neighbour, topk
from anifast.systems.twingan.inference import Model, of_length_1
from anifast.systems.twingan.networks import Norms, normalised_by
from anifast.systems.twingan.pictures import find, tags_file

#: The real pictures that translations are compared with unless told otherwise: held-out ones are few.
AGAINST = "train"
#: Fields of `Settings` that the model is loaded with.
LOADING = ("norm_mode",)
_SPLITS = {"test": "val", "train": "train"}
#: Neighbours of a picture that count.
NEAREST = 5
#: Pictures of each domain on the sheet of translations, and queries on those of neighbours.
_SHOWN, _QUERIES = 8, 10
#: Batches of training's size that batch statistics are compared over.
_GAP_BATCHES = 32
#: What has a colour: names of these tags end so.
_COLOURS = ("hair", "eyes")
#: Factors of procedural portraits that two characters share or do not, and those that lie in one third or do not.
_SAME = ("hair_color", "hair_cut", "bangs", "skin", "eye_color", "glasses")
_THIRDS = ("turn", "nod", "tilt", "scale", "offset_x", "offset_y", "smile")


@dataclass(frozen=True)
class Settings:
    """How to evaluate this system, beyond `anifast.metrics.report.Options`."""

    figures: str | None = option(None, "folder for sheets of translations and of neighbours", none="none are drawn")
    permutations: int = option(
        1000, "permutations of the queries that intervals of shared factors are taken from", low=1
    )
    seed: int = option(0, "of styles, permutations, and patches of SWD", low=0, high=2**31 - 1)
    norm_mode: str | None = option(
        None,
        "statistics that norms normalise by: those that training remembers, or those of what is deployed alone",
        choices=("running", "recalibrated"),
        none="recalibrated where the file has them",
    )


class _Means:
    """Mean absolute differences by name, over all values of all pictures."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        self._sums[name] += float((x.float() - y.float()).abs().sum(dtype=torch.float64))
        self._counts[name] += x.numel()

    def get(self, name: str) -> float | None:
        return self._sums[name] / self._counts[name] if self._counts[name] else None


class _Kept:
    """Pictures that wait for SWD in a file without a name, which is gone with this process whatever happens to it.

    Those of a set may be 1.6 GB at 256 px, and five sets are there at once.

    Args:
        side: of the pictures.
    """

    def __init__(self, side: int) -> None:
        self._shape, self._count = (3, side, side), 0
        with _room_for_temporary_files():
            self._file = tempfile.TemporaryFile()

    def add(self, images: Tensor) -> None:
        """Take in uint8 N,3,side,side.

        Raises:
            AnifastError: they cannot be written.
        """
        with _room_for_temporary_files():
            self._file.write(images.cpu().contiguous().numpy().tobytes())
        self._count += len(images)

    def images(self) -> Tensor:
        """All of them, uint8 N,3,side,side, memory-mapped; nothing can be added any more."""
        with _room_for_temporary_files(), self._file as file:
            file.flush()
            if not self._count:
                return torch.empty(0, *self._shape, dtype=torch.uint8)
            # "c": torch wants memory that may be written to; what would be written never reaches the file
            return torch.from_numpy(np.memmap(file, np.uint8, "c", 0, (self._count, *self._shape)))


@contextmanager
def _room_for_temporary_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AnifastError(
            f"cannot keep pictures for SWD in {printable(tempfile.gettempdir())}: {error.strerror or error}. Free some "
            "space, let TMPDIR name another folder, or take fewer pictures (--max)"
        ) from error


@dataclass
class _Side:
    """What one pass over a domain's held-out pictures gives.

    Attributes:
        domain: its index.
        folder: of the pictures.
        translates: whether its pictures are translated.
        label: the folder as tables name it.
        names: of the pictures, in the order of all that follows.
        means: rec, sem and cycle, as the losses have them.
        own: embeddings of the pictures, float16 [N, D].
        back: embeddings of their translations by the other domain's encoder.
        fakes: features of the translations.
        real: the pictures at the model's side, uint8, as many as SWD takes, memory-mapped.
        painted: their translations.
        asked: tags that pictures of the source are translated with, and that those of the target have, [N, tags].
        found: tags recognised in these translations, and in these pictures.
        shown: rows of the sheet of translations.
        facts: figures as plain values.
    """

    domain: int
    folder: Path
    translates: bool
    label: str
    names: list[str] = field(default_factory=list)
    means: _Means = field(default_factory=_Means)
    own: Tensor = field(default_factory=lambda: torch.empty(0))
    back: Tensor = field(default_factory=lambda: torch.empty(0))
    fakes: FeatureSet | None = None
    real: Tensor | None = None
    painted: Tensor | None = None
    asked: Tensor | None = None
    found: Tensor | None = None
    shown: list[tuple[str, Tensor]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        return WORDS[self.domain]

    @property
    def name(self) -> str:
        """Of the direction that its pictures are translated in."""
        return f"{LETTERS[self.domain]} -> {LETTERS[1 - self.domain]}"

    @property
    def letters(self) -> str:
        """Of the direction, in the spec's names of losses."""
        return f"{DOMAINS[self.domain]}{DOMAINS[1 - self.domain]}"


def evaluate(model: Model, data: Path, options: Options) -> Report:
    """Evaluate translations of source/val to the target and of target/val to the source (testA and testB).

    Pictures are scaled as in training, without crop and jitter. Losses are means over [0, 1] pixels and over latents,
    unweighted: rec = L1(x, G_own(E(x))), sem = L1(E(x), E(translation)), and cycle = L1(x, the way there and back),
    which training does not know. Translations are rounded to 8 bits, as they would be saved, for FID, KID and, from
    16 px on, SWD.

    Search: embeddings of the held-out pictures are the galleries. retrieval@k: x is among the k of its own domain
    nearest to its translation's embedding. nn_agree@5: what part of the 5 of the other domain nearest to x are among
    those nearest to its translation. mutual_nn: x is the nearest to the picture of the other domain nearest to it.

    Pictures for SWD, of which it takes at most 8192 of a set, wait in the folder for temporary files.

    Models that follow tags translate picture i with the tags of target picture i (in turn), as in training, and tags of
    translations are those that D_t's own head recognises, from which the generator has learnt: an optimistic judge.

    Args:
        model: as it translates, with the statistics of its own `norm_mode`.
        data: folder with source/val and target/val, and source/train and target/train to compare with; or as other
            systems have them.
        options: see there; `own` is a `Settings`.

    Returns:
        One row a direction and set of real pictures, and tables below; the last line is the checkpoint's figures as
        JSON.

    Raises:
        DataError: a folder is missing or holds no picture that can be read.
        CheckpointError: the model lacks encoder or generator.
        AnifastError: the model gives NaN, or the memory does not suffice.
    """
    own: Settings = options.own or Settings()
    ways = [domain_of(options.to)] if options.to else [1, 0]
    folders = _check(model, data, ways, options, own)
    report = Report(("pictures", "rec L1", "sem L1", "cycle L1", *DISTANCES))
    asked = _tags(model, data, folders["test", 1], options, report)
    labels = {key: printable(folder.relative_to(data)) for key, folder in folders.items()}
    sides = [_Side(domain, folders["test", domain], 1 - domain in ways, labels["test", domain]) for domain in (0, 1)]
    source, target = sides
    directions = [sides[1 - to] for to in ways]
    with enough_memory(options.batch, f" of side {model.size}", "--batch"):
        for side in sides:
            _pass(model, side, asked, own, options, report)
        for side in directions:
            _searched(side, sides[1 - side.domain])
            _distances(model, side, folders, options, report)
            _patches(model, side, sides[1 - side.domain], folders, own, options, report)
            side.facts["train_eval_gap"] = _gap(model, side, asked, own, options, report)
    if source.translates and model.tags is not None:
        _recognised(model, source, target, report)
    factors = _factors(data, sides, report)
    if factors is not None:
        for side in directions:
            side.facts["factors"] = _shared(side, sides[1 - side.domain], factors, own)
    _tell(model, sides, directions, labels, options, report)
    if own.figures is not None:
        _draw(model, sides, Path(own.figures), report)
    report.below += ["", json.dumps(_line(model, sides, directions, options))]
    return report


def _check(
    model: Model, data: Path, ways: Sequence[int], options: Options, own: Settings
) -> dict[tuple[str, int], Path]:
    """That the model and the folders have what is asked for.

    Returns:
        ("test" or "train", domain) -> folder.
    """
    for to in ways:
        model.require(LETTERS[to])
    found: dict[tuple[str, int], Path] = {}
    wanted = {("test", 0), ("test", 1)}
    if options.extractor is not None or levels(model.size):
        wanted |= {(which, to) for which in options.against for to in ways}
    for which, domain in sorted(wanted):
        folder = find(data, WORDS[domain], _SPLITS[which])
        if folder is None:
            raise DataError(
                f"{printable(data)}: no pictures in {WORDS[domain]}/{_SPLITS[which]} or {which}{LETTERS[domain]}. "
                "Expected source/val and target/val (or testA, testB) with pictures that the model was not trained on, "
                "and source/train, target/train (trainA, trainB) to compare with (--against test: those held out)"
            )
        found[which, domain] = folder
    if own.figures is not None:
        check_writable(Path(own.figures))
    return found


def _tags(model: Model, data: Path, folder: Path, options: Options, report: Report) -> Tensor | None:
    """Tags of the target's held-out pictures, [pictures, tags], zero for those without; None: the model has none."""
    if model.tags is None:
        return None
    file = tags_file(data)
    with opened(folder) as pictures:
        names = pictures.names[: options.limit]
    found = torch.zeros(len(names), len(model.tags))
    if file is None:
        report.note(f"{printable(data)}: no tags.tsv: pictures are translated without tags")
        return found
    told = read_tags(file, model.tags)
    base = folder.relative_to(file.parent).as_posix()
    untagged = 0
    for row, name in enumerate(names):
        vector = told.get(f"{base}/{name}")
        untagged += vector is None
        if vector is not None:
            found[row] = torch.from_numpy(chosen(vector, model.tags, model.config.tag_threshold))
    if untagged:
        report.note(f"{printable(file)}: has no row for {counted(untagged)} of {printable(folder)}, which have no tags")
    return found


def _read(
    model: Model, folder: Path, places: Sequence[int] | None, batch: int, options: Options, label: str, report: Report
) -> Iterator[tuple[Tensor, list[int], list[str]]]:
    """Pictures of a folder as the model takes them, [-1, 1] on its device, their places and names.

    Args:
        places: which; None: all, or the first `options.limit`.
    """
    with opened(folder) as pictures:
        chosen_ones = range(len(pictures.names))[: options.limit] if places is None else places
        for images, numbers in read_batches(pictures, chosen_ones, model.prepared, batch, label, report):
            yield images.to(model.device), numbers, [pictures.names[k] for k in numbers]


def _follows(
    model: Model, numbers: Sequence[int], to: int, asked: Tensor | None, seed: int
) -> tuple[Tensor | None, Tensor | None]:
    """Tags and styles that pictures with these numbers are translated with."""
    tags = asked[torch.tensor(numbers) % len(asked)] if asked is not None and to == 1 else None
    if not model.config.style:
        return tags, None
    # a style follows from a picture's number alone, so that batches change nothing
    return tags, torch.cat([model.random_styles(1, seed * 2**31 + number) for number in numbers])


def _pass(model: Model, side: _Side, asked: Tensor | None, own: Settings, options: Options, report: Report) -> None:
    """Encode, repaint and translate the pictures of a domain."""
    here, there = LETTERS[side.domain], LETTERS[1 - side.domain]
    with opened(side.folder) as pictures:
        count = len(pictures.names[: options.limit])
    compared = set(spread(count, PICTURES)) if levels(model.size) else set()
    shown = set(spread(count, _SHOWN))
    real = _Kept(model.size) if compared else None
    translations = _Kept(model.size) if compared and side.translates else None
    extractor = options.extractor if side.translates else None
    side.fakes = None if extractor is None else FeatureSet(extractor.dim)
    kept: defaultdict[str, list[Tensor]] = defaultdict(list)
    recognises = model.tags is not None and _has_tagger(model)
    label = f"{side.word}, held out"
    for images, numbers, names in _read(model, side.folder, None, options.batch, options, label, report):
        x = (images + 1) / 2
        latent = model.encode(x, here)
        repaint: dict[str, Tensor] = {}
        if model.config.style:
            repaint["style"] = model.styles_of(images, here)
        elif asked is not None and side.domain == 1:
            repaint["tags"] = asked[numbers]
        same = model.paint(latent, here, tags=repaint.get("tags"), style=repaint.get("style"), same=True)
        _finite(model, side.folder, latent.z, same)
        side.means.add("rec", same, x)
        kept["own"].append(of_length_1(latent.z).half().cpu())
        side.names += names
        rows = {"real": images, "repainted": same * 2 - 1}
        chosen_rows = [row for row, number in enumerate(numbers) if number in compared]
        if recognises and side.domain == 1:
            kept["found"].append(model.recognise(images).cpu())
            kept["asked"].append(repaint["tags"])
        if side.translates:
            tags, styles = _follows(model, numbers, 1 - side.domain, asked, own.seed)
            painted = model.paint(latent, there, tags=tags, style=styles)
            again = model.encode(painted, there, painted=True)
            _finite(model, side.folder, painted, again.z)
            side.means.add("sem", again.z, latent.z)
            side.means.add("cycle", model.paint(again, here, style=repaint.get("style")), x)
            kept["back"].append(of_length_1(again.z).half().cpu())
            saved = to_uint8((painted * 2 - 1).clamp(-1, 1))
            rows["translated"] = to_float(saved)
            if extractor is not None and side.fakes is not None:
                side.fakes.update(extractor(to_float(saved)))
            if recognises and side.domain == 0:
                kept["found"].append(model.recognise(to_float(saved)).cpu())
            if tags is not None:
                kept["asked"].append(tags)
            if translations is not None:
                translations.add(saved[chosen_rows])
        if real is not None:
            real.add(to_uint8(images[chosen_rows]))
        on_sheet = [row for row, number in enumerate(numbers) if number in shown]
        for name, pictures_of in rows.items():
            kept[f"shown {name}"].append(to_uint8(pictures_of[on_sheet].clamp(-1, 1)).cpu())
    side.own = torch.cat(kept["own"])
    side.real = None if real is None else real.images()
    side.shown = [
        (name, torch.cat(kept[f"shown {name}"]))
        for name in ("real", "translated", "repainted")
        if f"shown {name}" in kept
    ]
    side.facts["rec_l1"] = side.means.get("rec")
    side.facts["pictures"] = len(side.names)
    side.found = torch.cat(kept["found"]) if kept["found"] else None
    side.asked = torch.cat(kept["asked"]) if kept["asked"] else None
    if not side.translates:
        return
    side.back = torch.cat(kept["back"])
    side.painted = None if translations is None else translations.images()
    side.facts |= {"sem_l1": side.means.get("sem"), "cycle_l1": side.means.get("cycle")}


def _finite(model: Model, folder: Path, *values: Tensor) -> None:
    """Refuse NaN and infinity among what a model makes of a folder's pictures.

    Raises:
        AnifastError: there is some.
    """
    if all(bool(value.isfinite().all()) for value in values):
        return
    why = "its weights are damaged" if model.precision == "fp32" else "try --precision fp32; its weights may be damaged"
    raise AnifastError(f"the model gives NaN for pictures of {printable(folder)}: {why}")


def _has_tagger(model: Model) -> bool:
    try:
        model.net("D_t")
    except CheckpointError:
        return False
    return True


# --- search


def _searched(side: _Side, other: _Side) -> None:
    """Whether a picture is found again by its translation, and whether both have the same neighbours."""
    count, others = len(side.own), len(other.own)
    own, back = side.own.float(), side.back.float()
    found = topk(back, side.own, min(NEAREST, count))[1]
    hit = found == torch.arange(count)[:, None]
    near = topk(own, other.own, min(NEAREST, others))[1]
    again = topk(back, other.own, min(NEAREST, others))[1]
    common = (near[:, :, None] == again[:, None, :]).any(2).double().mean(1)
    returned = topk(other.own.float(), side.own, 1)[1][:, 0]
    side.facts["search"] = {
        "gallery": count,
        "other_gallery": others,
        "retrieval@1": float(hit[:, 0].double().mean()),
        "retrieval@5": float(hit.any(1).double().mean()),
        "nn_agree@5": float(common.mean()),
        "mutual_nn": float((returned[near[:, 0]] == torch.arange(count)).double().mean()),
        # of pictures drawn at random instead of the nearest
        "chance": {
            "retrieval@1": 1 / count,
            "retrieval@5": min(1.0, NEAREST / count),
            "nn_agree@5": min(1.0, NEAREST / others),
            "mutual_nn": 1 / count,
        },
    }


# --- FID, KID and SWD


def _distances(
    model: Model,
    side: _Side,
    folders: Mapping[tuple[str, int], Path],
    options: Options,
    report: Report,
) -> None:
    """FID and KID of a direction, and of its pictures before translation."""
    if side.fakes is None:
        return
    to = 1 - side.domain
    before = _features(model, side.folder, options, report)
    for which in options.against:
        real = _features(model, folders[which, to], options, report)
        side.facts[which] = distances(side.fakes, real, options, report)
        side.facts[which]["untranslated"] = distances(before, real, options, report)


def _features(model: Model, folder: Path, options: Options, report: Report) -> FeatureSet:
    """Features of real pictures, scaled as all else here is: by the model's own way, and rounded as saved ones are."""
    if model.config.resize != "tf1":
        return real_features(folder, model.size, options, report)
    assert options.extractor is not None
    found = FeatureSet(options.extractor.dim)
    label = f"{options.extractor.name} of {printable(folder.name)}"
    for images, _, _ in _read(model, folder, None, options.batch, options, label, report):
        found.update(options.extractor(to_float(to_uint8(images))))
    return found


def _patches(
    model: Model,
    side: _Side,
    other: _Side,
    folders: Mapping[tuple[str, int], Path],
    own: Settings,
    options: Options,
    report: Report,
) -> None:
    """SWD of a direction, level by level, beside that of its pictures before translation and of real ones held out."""
    if side.painted is None or side.real is None or other.real is None:
        return
    which = options.against[0]
    if which == "test":
        real = other.real
    else:
        folder = folders[which, other.domain]
        with opened(folder) as pictures:
            places = spread(len(pictures.names[: options.limit]), PICTURES)
        kept = _Kept(model.size)
        for images, _, _ in _read(
            model, folder, places, options.batch, options, f"{printable(folder.name)} for SWD", report
        ):
            kept.add(to_uint8(images))
        real = kept.images()
    taken = partial(swd, y=real, seed=own.seed)
    result = {
        "against": which,
        "pictures": len(side.painted),
        "real_pictures": len(real),
        "levels": taken(side.painted, label=f"SWD {side.name}"),
        "untranslated": taken(side.real, label=f"SWD {side.name}, untranslated"),
    }
    if which != "test":  # what two sets of real pictures are apart
        result["held_out"] = taken(other.real, label=f"SWD {other.word} held out")
    for key in ("levels", "untranslated", "held_out"):
        if key in result:
            values = cast(dict[int, float], result[key])
            result[key] = {str(level): value for level, value in values.items()}
            result[f"{key}_mean"] = sum(values.values()) / len(values)
    side.facts["swd"] = result


def _gap(
    model: Model, side: _Side, asked: Tensor | None, own: Settings, options: Options, report: Report
) -> dict[str, Any] | None:
    """How far translations with the statistics of training's batches are from those with the remembered ones.

    L1 over pixels cut to [0, 1], over batches of training's size; and from those with recalibrated ones, if there are.
    """
    norms = [cast(Norms, model.net(name).norms) for name in ("E", "G")]
    if not norms[0].remembers:
        return None
    here, there = LETTERS[side.domain], LETTERS[1 - side.domain]
    batch = min(model.config.batch_of(model.size), len(side.names))
    if batch < 2:
        report.note("train_eval_gap: one picture has no statistics; left out")
        return None
    with opened(side.folder) as pictures:
        places = range(len(pictures.names[: options.limit]))[: _GAP_BATCHES * batch]
    sources = ["running", *(["recalibrated"] if model.recalibrated else [])]
    means, seen = _Means(), 0
    for images, numbers, _ in _read(model, side.folder, places, batch, options, f"train_eval_gap {side.name}", report):
        if len(numbers) < batch:
            break  # its statistics would be those of another batch size
        tags, styles = _follows(model, numbers, 1 - side.domain, asked, own.seed)
        painted = {}
        for source in ("batch", *sources):
            with normalised_by(norms, source):
                latent = model.encode((images + 1) / 2, here)
                painted[source] = model.paint(latent, there, tags=tags, style=styles).clamp(0, 1)
        for source in sources:
            means.add(source, painted[source], painted["batch"])
        seen += batch
    if not seen:
        report.note(f"train_eval_gap: fewer than {batch} pictures of {printable(side.folder)} can be read; left out")
        return None
    result: dict[str, Any] = {"batch": batch, "pictures": seen, "running": means.get("running"), "recalibrated": None}
    if "recalibrated" in sources:
        result["recalibrated"] = means.get("recalibrated")
    return result


# --- tags and factors


def _groups(model: Model) -> dict[str, list[int]]:
    """The places of colours of hair and of eyes among the model's tags."""
    assert model.tags is not None
    found = {}
    for word in _COLOURS:
        places = [
            group
            for group in model.tags.colours
            if any(model.tags.names[place].endswith(f"_{word}") for place in group)
        ]
        if places:
            found[word] = places[0]
    return found


def _best(scores: Tensor, group: Sequence[int]) -> Tensor:
    """Which of a group's tags scores the most, by its place in the group; -1 where all are zero."""
    part = scores[:, list(group)]
    return torch.where(part.amax(1) > 0, part.argmax(1), -1)


def _recognised(model: Model, source: _Side, target: _Side, report: Report) -> None:
    """Whether colours that were asked for are recognised, and whether hair is that of the nearest drawn picture."""
    if source.found is None:
        report.note("no figures of tags: the file has no discriminator of the target, which recognises them")
        return
    groups, found = _groups(model), source.found
    facts: dict[str, Any] = {"tagger": "D_t's own head", "requested": {}, "real": {}, "tag_agree": None}
    for key, side in (("requested", source), ("real", target)):
        for word, group in groups.items():
            wanted, seen = _best(cast(Tensor, side.asked), group), _best(cast(Tensor, side.found), group)
            facts[key][word] = _agreement(wanted, seen, group)
    if "hair" in groups:
        # by the translation's own embedding, among the target's held-out pictures
        near = topk(source.back.float(), target.own, 1)[1][:, 0]
        hair = _best(cast(Tensor, target.asked), groups["hair"])[near]
        facts["tag_agree"] = _agreement(hair, _best(found, groups["hair"]), groups["hair"])
    source.facts["tags"] = facts


def _agreement(wanted: Tensor, seen: Tensor, group: Sequence[int]) -> dict[str, Any] | None:
    """Of the pictures that have a tag of the group: the share where both are one, and what it would be by chance."""
    known = wanted >= 0
    if not bool(known.any()):
        return None
    wanted, seen = wanted[known], seen[known]
    shares = [torch.bincount(one, minlength=len(group)).double() / len(one) for one in (wanted, seen)]
    return {
        "share": float((wanted == seen).double().mean()),
        "chance": float((shares[0] * shares[1]).sum()),
        "pictures": len(wanted),
    }


def _factors(data: Path, sides: Sequence[_Side], report: Report) -> list[dict[str, NDArray[np.int64]]] | None:
    """Of procedural portraits, factor -> class of each held-out picture, for both domains; None: other pictures."""
    if not (data / portraits.LABELS).is_file():
        return None
    labels = portraits.read_labels(data)
    rows = []
    for side in sides:
        base = side.folder.relative_to(data).as_posix()
        names = [f"{base}/{name}" for name in side.names]
        if not set(names) <= labels.keys():
            report.note(f"{portraits.LABELS} does not have all pictures of {printable(side.folder)}: no shared factors")
            return None
        rows.append([labels[name].content for name in names])
    found: list[dict[str, NDArray[np.int64]]] = [{}, {}]
    for name in (*_SAME, *_THIRDS):
        values = [np.array([getattr(content, name) for content in contents]) for contents in rows]
        both = np.concatenate(values)
        if name in _THIRDS:
            ends = np.quantile(both, [1 / 3, 2 / 3])
            classes = np.searchsorted(ends, both)
        else:
            classes = np.unique(both, return_inverse=True)[1]
        for domain, part in enumerate(np.split(classes.astype(np.int64), [len(rows[0])])):
            found[domain][name] = part
    return found


def _shared(
    side: _Side, other: _Side, factors: Sequence[dict[str, NDArray[np.int64]]], own: Settings
) -> dict[str, dict[str, Any]]:
    """Factor -> how many of the 5 nearest of the other domain share it with a picture, and with queries permuted.

    Chance is the mean over all permutations of the queries: what neighbours give that have nothing to do with them.
    """
    near = topk(side.own.float(), other.own, min(NEAREST, len(other.own)))[1].numpy()
    source = np.random.default_rng(own.seed)
    orders = [source.permutation(len(near)) for _ in range(own.permutations)]
    result: dict[str, dict[str, Any]] = {}
    shuffled_all = np.zeros(own.permutations)
    for name in (*_SAME, *_THIRDS):
        mine, theirs = factors[side.domain][name], factors[other.domain][name]
        found = theirs[near]
        shuffled = np.array([(mine[order, None] == found).mean() for order in orders])
        shuffled_all += shuffled
        classes = int(max(mine.max(), theirs.max())) + 1
        parts = [np.bincount(one, minlength=classes) / len(one) for one in (mine, found.ravel())]
        result[name] = {
            "share": float((mine[:, None] == found).mean()),
            "chance": float(parts[0] @ parts[1]),
            "shuffled": np.quantile(shuffled, [0.025, 0.975]).tolist(),
        }
    count = len(result)
    result["mean"] = {
        "share": sum(one["share"] for one in result.values()) / count,
        "chance": sum(one["chance"] for one in result.values()) / count,
        "shuffled": np.quantile(shuffled_all / count, [0.025, 0.975]).tolist(),
    }
    return result


# --- what is told


def _tell(
    model: Model,
    sides: Sequence[_Side],
    directions: Sequence[_Side],
    labels: Mapping[tuple[str, int], str],
    options: Options,
    report: Report,
) -> None:
    """The tables, and the facts."""
    for side in directions:
        cells = [str(len(side.names)), *(figure(side.facts[key], 4) for key in ("rec_l1", "sem_l1", "cycle_l1"))]
        if side.fakes is None:
            report.rows.append((side.name, [*cells, *distance_cells(None)]))
            continue
        for which in options.against:
            name = labels[which, 1 - side.domain]
            report.rows.append((f"{side.name} ({name})", [*cells, *distance_cells(side.facts[which])]))
            untouched = distance_cells(side.facts[which]["untranslated"])
            report.rows.append((f"{side.label} untranslated ({name})", [str(len(side.names)), "", "", "", *untouched]))
    weights = "averaged weights" if model.averaged else "weights as trained"
    norms = "" if _normalises(model) is None else f", norms by {model.norm_mode} statistics"
    report.above.append(
        f"phase {model.stage}, {model.size} px, {weights}{norms}; A is the source, B the target; L1 over [0, 1], "
        "unweighted; cycle: there and back, which is not trained"
    )
    report.below += _told_of_search(directions) + _told_of_patches(directions, labels) + _told_of_gaps(directions)
    report.below += _told_of_tags(directions) + _told_of_factors(directions)
    report.facts = {
        "stage": model.stage,
        "size": model.size,
        "precision": model.precision,
        "averaged": model.averaged,
        "norm_mode": _normalises(model),
        "against": list(options.against),
        "pictures": {side.word: len(side.names) for side in sides},
        "batch": options.batch,
        "settings": dataclasses.asdict(options.own or Settings()),
        "rec_l1": {side.word: side.facts["rec_l1"] for side in sides},
        "directions": {side.name: side.facts for side in directions},
        "figures": [],
    }


def _normalises(model: Model) -> str | None:
    """By which statistics the norms normalise; None: they remember none, so that each picture has its own."""
    return model.norm_mode if cast(Norms, model.net("E").norms).remembers else None


def _told_of_search(directions: Sequence[_Side]) -> list[str]:
    names = ("retrieval@1", "retrieval@5", "nn_agree@5", "mutual_nn")
    rows = []
    for side in directions:
        found = side.facts["search"]
        rows += [
            (side.name, [f"{100 * found[name]:.1f}" for name in names]),
            ("  by chance", [f"{100 * found['chance'][name]:.1f}" for name in names]),
        ]
    first = directions[0]
    found = first.facts["search"]["gallery"], first.facts["search"]["other_gallery"]
    source, target = found if first.domain == 0 else found[::-1]
    return ["", *table(f"search among {source} of the source, {target} of the target, %", names, rows)]


def _told_of_patches(directions: Sequence[_Side], labels: Mapping[tuple[str, int], str]) -> list[str]:
    rows = []
    for side in directions:
        if "swd" not in side.facts:
            return []
        found, to = side.facts["swd"], 1 - side.domain
        real = f"{found['real_pictures']} of {labels[found['against'], to]}"
        shown = {
            "levels": f"{side.name}, {found['pictures']} to {real}",
            "untranslated": f"  {side.label} untranslated",
            "held_out": f"  {labels['test', to]}, real",
        }
        rows += [
            (label, [*(f"{value:.2f}" for value in found[key].values()), f"{found[f'{key}_mean']:.2f}"])
            for key, label in shown.items()
            if key in found
        ]
    sides = directions[0].facts["swd"]["levels"]
    return ["", *table("SWD x1000", (*(f"{level} px" for level in sides), "mean"), rows)]


def _told_of_gaps(directions: Sequence[_Side]) -> list[str]:
    rows = []
    for side in directions:
        gap = side.facts["train_eval_gap"]
        if gap is not None:
            rows.append((side.name, [figure(gap["running"], 4), figure(gap["recalibrated"], 4), str(gap["batch"])]))
    if not rows:
        return []
    return ["", *table("train_eval_gap (L1 to batch statistics)", ("running", "recalibrated", "batch"), rows)]


def _told_of_tags(directions: Sequence[_Side]) -> list[str]:
    facts = next((side.facts["tags"] for side in directions if "tags" in side.facts), None)
    if facts is None:
        return []
    named = {f"{word} of real pictures recognised": found for word, found in facts["real"].items()}
    named |= {f"requested {word} recognised": found for word, found in facts["requested"].items()}
    named["tag_agree: hair as of the nearest"] = facts["tag_agree"]
    rows = [
        (name, [f"{100 * found['share']:.1f}", f"{100 * found['chance']:.1f}", str(found["pictures"])])
        for name, found in named.items()
        if found is not None
    ]
    if not rows:
        return []
    about = "tags of translations, % (told by D_t's own head, which the generator has learnt from)"
    return ["", *table(about, ("share", "chance", "pictures"), rows)]


def _told_of_factors(directions: Sequence[_Side]) -> list[str]:
    told = []
    for side in directions:
        rows = [
            (
                f"{name}{' (third)' if name in _THIRDS else ''}",
                [
                    f"{100 * found['share']:.1f}",
                    f"{100 * found['chance']:.1f}",
                    " to ".join(f"{100 * end:.1f}" for end in found["shuffled"]),
                ],
            )
            for name, found in side.facts.get("factors", {}).items()
        ]
        if rows:
            heads = ("shared", "chance", "95% of permuted queries")
            told += ["", *table(f"true factors of the {NEAREST} nearest, {side.name}, %", heads, rows)]
    return told


def _line(model: Model, sides: Sequence[_Side], directions: Sequence[_Side], options: Options) -> dict[str, Any]:
    """The checkpoint's figures in one row, with what must be the same in rows that are compared."""
    line: dict[str, Any] = {
        "checkpoint": str(options.model),
        "phase": model.stage,
        "norm_mode": _normalises(model),
        "features": options.extractor and options.extractor.name,
        "against": options.against[0],
    }
    for side in sides:
        line[f"pictures_{DOMAINS[side.domain]}"] = len(side.names)
    for side in sides:
        line[f"rec_l1_{DOMAINS[side.domain]}"] = side.facts["rec_l1"]
    for side in directions:
        to, facts = DOMAINS[1 - side.domain], side.facts
        line |= {f"sem_l1_{side.letters}": facts["sem_l1"], f"cycle_l1_{DOMAINS[side.domain]}": facts["cycle_l1"]}
        found = facts.get(options.against[0])
        line |= {f"fid_{to}": found and found["fid"], f"kid_{to}": found and found["kid"] and found["kid"]["mean"]}
        patches = facts.get("swd")
        line[f"swd_{to}"] = patches and patches["levels"]
        # which set it is against, and how many of its pictures: of few the distance is larger
        line[f"swd_against_{to}"] = patches and f"{patches['real_pictures']} of {patches['against']}"
        for name in ("retrieval@1", "retrieval@5", "nn_agree@5", "mutual_nn"):
            line[f"{name}_{side.letters}"] = facts["search"][name]
        gap = facts["train_eval_gap"]
        line[f"train_eval_gap_{side.letters}"] = gap and gap["running"]
        line[f"train_eval_gap_recalibrated_{side.letters}"] = gap and gap["recalibrated"]
        if "tags" in facts:
            agree = facts["tags"]["tag_agree"]
            line["tag_agree"] = agree and agree["share"]
            for word, asked in facts["tags"]["requested"].items():
                line[f"requested_{word}"] = asked and asked["share"]
        if "factors" in facts:
            found = facts["factors"]["mean"]
            line |= {f"factors_{side.letters}": found["share"], f"factors_chance_{side.letters}": found["chance"]}
    return {key: _short(value) for key, value in line.items()}


def _short(value: Any) -> Any:
    """Numbers of 5 figures."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- sheets


def _draw(model: Model, sides: Sequence[_Side], folder: Path, report: Report) -> None:
    """The sheets of translations and of neighbours, as PNG."""
    titles = ("source to target", "target to source")
    blocks = [Block(titles[side.domain], side.shown) for side in sides]
    caption = f"held-out pictures, phase {model.stage}, {model.size} px"
    drawn = {"translations.png": sheet(blocks, caption=caption, tile=max(96, min(256, model.size)))}
    for side in sides:
        other = sides[1 - side.domain]
        queries = spread(len(side.names), _QUERIES)
        scores, near = topk(side.own[queries].float(), other.own, min(NEAREST, len(other.own)))
        rows = [
            [
                Neighbour(other.folder / other.names[place], max(0.0, 1 - score))
                for score, place in zip(values, places, strict=True)
            ]
            for values, places in zip(scores.tolist(), near.tolist(), strict=True)
        ]
        names = [side.names[k] for k in queries]
        shown = sheets.load([side.folder / name for name in names])
        title = f"nearest of {counted(len(other.names))} of the {other.word} (1 - cosine)"
        found, _ = sheets.neighbours(shown, [(title, rows)], names=names, title=side.word, caption=caption)
        drawn[f"neighbours_{side.letters}.png"] = found
    for name, image in drawn.items():
        with atomic_path(folder / name) as temporary:
            image.save(temporary)
        report.facts["figures"].append(str(folder / name))
        report.below.append(f"-> {folder / name}")

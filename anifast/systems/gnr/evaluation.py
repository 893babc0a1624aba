"""Figures of a trained GANs N' Roses: FID, KID, LPIPS diversity, DFID and style stability, in each direction.

How the published figures were taken is not known in full (numbers of pictures, DFID's protocol); the report tells what
is done here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.data.folders import printable, scan, to_float, to_uint8
from anifast.data.stream import image_batches
from anifast.engine.config import option
from anifast.engine.precision import enough_memory
from anifast.errors import AnifastError, DataError
from anifast.metrics.diversity import (
    LPIPS_NETS,
    STANDARD,
    average_fids,
    content_fids,
    load_lpips,
    lpips_diversity,
    pairwise_lpips,
    style_stability,
)
from anifast.metrics.report import DISTANCES, Options, Report, distance_cells, distances, table
from anifast.metrics.sets import FeatureSet
from anifast.nn.perceptual import LPIPS
from anifast.progress import Progress, duration
from anifast.systems.gnr.augmentation import augment
from anifast.systems.gnr.inference import OTHER, Translator
from anifast.systems.measures import OTHER_NETWORK, figure, is_standard, real_features

#: The real pictures that translations are compared with unless told otherwise.
AGAINST = "train"
#: Augmentations of a picture for style stability.
AUGMENTATIONS = 7

#: Papers With Code's rows of arXiv 2106.06561, photo -> anime and cat -> dog: (method, DFID, FID, LPIPS).
PUBLISHED: dict[str, tuple[tuple[str, float, float, float | None], ...]] = {
    "selfie2anime": (
        ("GNR", 35.6, 34.4, 0.505),
        ("CouncilGAN", 56.2, 38.1, 0.430),
        ("StarGAN v2", 83.0, 59.8, 0.427),
        ("DRIT++", 94.6, 63.8, 0.201),
    ),
    "cat2dog": (
        ("GNR", 26.1, 26.9, None),
        ("StarGAN v2", 53.6, 44.2, None),
        ("DRIT++", 160.1, 91.5, None),
        ("CouncilGAN", 172.5, 90.8, None),
    ),
}


@dataclass(frozen=True)
class Settings:
    """How to evaluate this system, beyond `anifast.metrics.report.Options`."""

    styles: int = option(10, "styles of each picture for FID, KID and LPIPS diversity; 1: no diversity", low=1)
    style: str = option(
        "random",
        "styles from N(0, 1), or of random test pictures of the painted domain",
        choices=("random", "reference"),
    )
    lpips: str = option("auto", "network of the LPIPS diversity", choices=LPIPS_NETS)
    dfid_contents: int = option(20, "pictures whose styles DFID is taken of", low=1)
    dfid_styles: int = option(1000, "styles of each of them; 0: no DFID", low=0)
    published: str = option("selfie2anime", "published figures to show beside", choices=(*PUBLISHED, "none"))
    seed: int = option(0, "of styles and augmentations", low=0, high=2**63 - 1)


@dataclass
class _Way:
    """One direction under evaluation: what is kept between its parts.

    Attributes:
        to: the domain that is painted.
        codes: style codes of reference pictures, [n, latent_dim]; None: styles are random.
        fakes: features of what was painted.
        contents: pictures painted from.
        painted: pictures painted.
        seconds: spent on painting.
        measuring: spent on their features.
    """

    to: str
    codes: Tensor | None = None
    fakes: FeatureSet | None = None
    contents: int = 0
    painted: int = 0
    seconds: float = 0.0
    measuring: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return OTHER[self.to]

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.to}"


def evaluate(model: Translator, data: Path, options: Options) -> Report:
    """Evaluate the translations of testA to B and of testB to A.

    Test pictures are cut to the largest centred square and brought to the model's size. Each is painted in `styles`
    styles of its own, and rounded to 8 bits, as it would be saved; FID and KID compare all of these with the real
    pictures (KID's error takes them for independent, which the styles of one content are not). LPIPS diversity is the
    mean LPIPS of all pairs of one content's styles, averaged over contents. DFID is the FID of one content in
    `dfid_styles` styles, averaged over the first `dfid_contents` test pictures. Style stability is the variance of a
    test picture's style code over 7 augmentations, those of training.

    Args:
        model: the generators; where the file holds one only, it is taken as A -> B unless `options.to` says A.
        data: folder with testA and testB, and trainA and trainB to compare with.
        options: see there; `own` is a `Settings`.

    Returns:
        One row a direction and set of real pictures, and one of the pictures as they are before translation.

    Raises:
        DataError: a folder is missing or holds no picture that can be read.
        CheckpointError: the file lacks the generator that was asked for, or the encoder that reads reference styles.
        AnifastError: a setting that cannot be, the model gives NaN, or the memory does not suffice.
    """
    own: Settings = options.own or Settings()
    if own.dfid_styles == 1:
        raise AnifastError("--dfid-styles 1: at least 2, or 0 for no DFID")
    if own.styles == 1 and own.lpips not in ("auto", "none"):
        raise AnifastError(f"--lpips {own.lpips} with --styles 1: diversity needs at least 2 styles")
    ways = [_Way(to) for to in ([options.to] if options.to else ["B", "A"] if model.both else [model.held[0]])]
    _check(model, data, ways, options, own)
    lpips, told = load_lpips(own.lpips, model.device) if own.styles > 1 else (None, "")
    report = Report(("pictures", *DISTANCES, "diversity", "DFID", "var of poses", "var of pictures", "images/s"))
    if told:
        report.note(told)
    if own.styles == 1 and own.lpips == "auto":
        report.note("one style of each picture: no diversity, which compares two and more")
    if not model.both:
        report.note(
            f"the file holds one generator, taken as {ways[0].name}"
            + (f" (--to {ways[0].source} for the other direction)" if len(model.held) == 2 else "")
            + "; styles of pictures are read by the other one's encoder, so there is no style stability"
        )
    for way in ways:
        if model.both:
            _look_at_styles(model, data / f"test{way.to}", way, own, options, report)
        _paint(model, data / f"test{way.source}", way, own, options, lpips, report)
    real: dict[str, FeatureSet] = {}
    if options.extractor is not None:
        names = {name for way in ways for name in (*_sets(way, options), f"test{way.source}")}
        real = {name: real_features(data / name, model.size, options, report) for name in sorted(names)}
    for way in ways:
        for name in _sets(way, options) if way.fakes is not None else ():
            assert way.fakes is not None
            way.facts[name] = distances(way.fakes, real[name], options, report)
    _dfid(model, data, ways, real, own, options, report)
    for way in ways:
        _add_rows(way, real, options, report)
    _tell(model, ways, own, options, lpips, report)
    return report


def _sets(way: _Way, options: Options) -> list[str]:
    """The folders of real pictures that a direction is compared with."""
    return [f"{which}{way.to}" for which in options.against]


def _check(model: Translator, data: Path, ways: list[_Way], options: Options, own: Settings) -> None:
    """That the model and the folders have what is asked for."""
    for way in ways:
        model.require(way.to)
        if own.style == "reference":
            model.require_styles(way.to)
    folders = {"testA", "testB"}
    if options.extractor is not None:
        folders |= {name for way in ways for name in _sets(way, options)}
    if missing := sorted(name for name in folders if not (data / name).is_dir()):
        raise DataError(
            f"{printable(data)}: no folder {' and no folder '.join(missing)}. Expected {printable(data)}/testA and "
            "testB with pictures that the model was not trained on, and trainA, trainB to compare with (--against "
            "test: those of testA, testB)"
        )


class _Pictures:
    """The pictures of a folder as batches of floats; those that cannot be read are left out and noted.

    Args:
        folder: it.
        model: gives their size and device.
        batch: pictures at once.
        limit: the first so many only.
        report: gets the notes.
    """

    def __init__(self, folder: Path, model: Translator, batch: int, limit: int | None, report: Report) -> None:
        self.folder, self._model, self._batch, self._report = folder, model, batch, report
        self._found = scan(folder)
        if limit is not None:
            del self._found.paths[limit:], self._found.names[limit:]
        self.failed = dict(self._found.rejected)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Tensor]:
        """n,3,size,size in [-1, 1] on the model's device.

        Raises:
            DataError: none can be read.
        """
        any_read = False
        with enough_memory(self._batch, f" of side {self._model.size}", "--batch or --styles"):
            for pixels in image_batches(self._found, self._model.size, self._batch, self.failed, how="crop"):
                any_read = True
                yield to_float(pixels.to(self._model.device))
        if not any_read:
            first = min(self.failed)
            raise DataError(
                f"{printable(self.folder)}: none of its pictures can be read, the first because {printable(first)}: "
                f"{self.failed[first]}"
            )
        for name, why in self.failed.items():
            self._report.note(f"left out: {printable(self.folder / name)}: {why}")


def _look_at_styles(
    model: Translator, folder: Path, way: _Way, own: Settings, options: Options, report: Report
) -> None:
    """Style stability of the pictures of the painted domain, and their codes where they are what is painted with."""
    pictures = _Pictures(folder, model, options.batch, options.limit, report)
    codes: list[Tensor] = []

    def read(images: Tensor) -> Tensor:
        found = model.styles_of(images, to=way.to)
        if not bool(found.isfinite().all()):
            raise AnifastError(f"the model gives NaN for styles of {printable(folder)}: its weights are damaged")
        return found

    def seen() -> Iterator[Tensor]:
        for images in pictures:
            if own.style == "reference":
                codes.append(read(images).cpu())
            yield images
            bar.update(len(images))

    with Progress(len(pictures), f"styles of {folder.name}") as bar:
        stability = style_stability(
            read,
            partial(augment, config=model.config),
            seen(),
            augmentations=AUGMENTATIONS,
            seed=own.seed,
            batch=options.batch,
        )
    way.facts["stability"] = stability.as_dict()
    if codes:
        way.codes = torch.cat(codes)


def _styles(model: Translator, way: _Way, contents: int, each: int, seed: int) -> Tensor:
    """[contents, each, latent_dim]: content n has styles of its own, which follow from the seed and n alone."""
    if way.codes is None:
        return model.random_styles(contents * each, seed).unflatten(0, (contents, each))
    source = torch.Generator().manual_seed(seed)
    return torch.stack([way.codes[torch.randperm(len(way.codes), generator=source)[:each]] for _ in range(contents)])


def _fitting(way: _Way, wanted: int, flag: str, report: Report) -> int:
    """The number of styles that there are: random ones without end, one for each reference picture."""
    if way.codes is None or len(way.codes) >= wanted:
        return wanted
    report.note(f"{way.name}: {len(way.codes)} reference styles and not {wanted} ({flag}): test{way.to} has no more")
    return len(way.codes)


def _saved(images: Tensor, folder: Path) -> Tensor:
    """Pictures as they would be saved and read again."""
    if not bool(images.isfinite().all()):
        raise AnifastError(f"the model gives NaN for pictures of {printable(folder)}: its weights are damaged")
    return to_float(to_uint8(images))


def _paint(
    model: Translator,
    folder: Path,
    way: _Way,
    own: Settings,
    options: Options,
    lpips: LPIPS | None,
    report: Report,
) -> None:
    """Paint each picture of the source domain in its styles; features, diversity and time."""
    pictures = _Pictures(folder, model, options.batch, options.limit, report)
    each = _fitting(way, own.styles, "--styles", report)
    codes = _styles(model, way, len(pictures), each, own.seed)
    extractor = options.extractor
    way.fakes = None if extractor is None else FeatureSet(extractor.dim)

    def painted() -> Iterator[Tensor]:
        """n,each,3,size,size."""
        for images in pictures:
            if not way.contents:  # what happens once, such as building the network, is not timed
                model.paint(model.contents(images[:1], way.to), model.latents(codes[0, :1], way.to), way.to)
            started = time.perf_counter()
            content = model.contents(images, way.to)
            w = model.latents(codes[way.contents : way.contents + len(images)].flatten(0, 1), way.to)
            parts = []
            for rows in torch.arange(len(w), device=model.device).split(options.batch):
                parts.append(_saved(model.paint(content[rows // each], w[rows], way.to), folder))
                bar.update(len(rows))
            way.seconds += time.perf_counter() - started
            for part in parts if extractor is not None else ():
                assert extractor is not None and way.fakes is not None
                started = time.perf_counter()
                way.fakes.update(extractor(part))
                way.measuring += time.perf_counter() - started
            way.contents += len(images)
            way.painted += len(w)
            yield torch.cat(parts).unflatten(0, (len(images), each))

    with Progress(len(pictures) * each, f"{way.name}, {each} styles") as bar:
        if lpips is not None and each > 1:
            way.facts["lpips"] = lpips_diversity(painted(), partial(pairwise_lpips, lpips)).as_dict()
        else:
            for _ in painted():
                pass
    way.facts |= {
        "contents": way.contents,
        "styles": each,
        "pictures": way.painted,
        "images_per_second": way.painted / max(way.seconds, 1e-9),
    }


def _dfid(
    model: Translator,
    data: Path,
    ways: list[_Way],
    real: dict[str, FeatureSet],
    own: Settings,
    options: Options,
    report: Report,
) -> None:
    """DFID of all directions. Ctrl-C ends it and leaves the other figures as they are."""
    if options.extractor is None or not own.dfid_styles:
        return
    if any(len(real[name]) < 2 for way in ways for name in _sets(way, options)):
        return  # that has been noted for FID
    plans = []
    for way in ways:
        each = _fitting(way, own.dfid_styles, "--dfid-styles", report)
        if each < 2:
            report.note(f"{way.name}: DFID needs at least 2 styles")
            continue
        contents = min(own.dfid_contents, way.contents)
        if contents < own.dfid_contents:
            report.note(f"{way.name}: DFID of {contents} pictures and not {own.dfid_contents}: there are no more")
        if each <= options.extractor.dim:
            report.note(
                f"DFID of {each} styles, not more than the {options.extractor.dim} features, is too large, and "
                "comparable for equal numbers of styles only"
            )
        plans.append((way, contents, each))
    total = sum(contents * each for _, contents, each in plans)
    expected = sum(
        contents * each * (way.seconds + way.measuring) / max(1, way.painted) for way, contents, each in plans
    )
    if not total:
        return
    with Progress(total, "DFID") as bar:
        bar.print(
            f"DFID: {' and '.join(f'{contents} x {each} pictures {way.name}' for way, contents, each in plans)}, about "
            f"{duration(expected)} (--dfid-styles 0 leaves it out; Ctrl-C ends it and keeps the other figures)"
        )
        try:
            for way, contents, each in plans:
                _dfid_of(model, data / f"test{way.source}", way, contents, each, real, own, options, report, bar)
        except KeyboardInterrupt:
            report.interrupted = True
            report.note("DFID was interrupted, and is of fewer pictures than asked for or left out")


def _dfid_of(
    model: Translator,
    folder: Path,
    way: _Way,
    contents: int,
    each: int,
    real: dict[str, FeatureSet],
    own: Settings,
    options: Options,
    report: Report,
    bar: Progress,
) -> None:
    """DFID of one direction; what is done is in `way.facts` after each content."""
    assert options.extractor is not None
    pictures = _Pictures(folder, model, min(options.batch, contents), options.limit, report)
    codes = _styles(model, way, contents, each, own.seed)

    def one(image: Tensor, styles: Tensor) -> Iterator[Tensor]:
        content, w = model.contents(image, way.to), model.latents(styles, way.to)
        for part in model.paint_all(content, w, way.to, options.batch):
            yield _saved(part, folder)
            bar.update(len(part))

    def all_contents() -> Iterator[Iterator[Tensor]]:
        done = 0
        for images in pictures:
            for image in images.split(1):
                if done == contents:
                    return
                yield one(image, codes[done])
                done += 1

    names = _sets(way, options)
    counts: list[int] = []
    values: dict[str, list[float]] = {name: [] for name in names}
    for count, fids in content_fids(all_contents(), options.extractor, [real[name].statistics for name in names]):
        counts.append(count)
        for name, value in zip(names, fids, strict=True):
            values[name].append(value)
            way.facts[name]["dfid"] = average_fids(counts, values[name]).as_dict()


def _add_rows(way: _Way, real: dict[str, FeatureSet], options: Options, report: Report) -> None:
    lpips, stability = way.facts.get("lpips"), way.facts.get("stability")
    shared = [
        *(figure(stability[key] if stability else None, 4) for key in ("variance", "between")),
        figure(way.facts["images_per_second"], 1),
    ]
    diversity = figure(lpips["mean"] if lpips else None, 4)
    if not real:
        report.rows.append((way.name, [str(way.painted), *distance_cells(None), diversity, "-", *shared]))
        return
    for name in _sets(way, options):
        found = way.facts[name]
        dfid = figure(found["dfid"]["mean"] if "dfid" in found else None, 2)
        report.rows.append(
            (f"{way.name} ({name})", [str(way.painted), *distance_cells(found), diversity, dfid, *shared])
        )
    for name in _sets(way, options):
        untouched = real[f"test{way.source}"]
        found = distances(untouched, real[name], options, report)
        way.facts[name]["untranslated"] = found
        report.rows.append(
            (f"test{way.source} untranslated ({name})", [str(len(untouched)), *distance_cells(found), *[""] * 5])
        )


def _tell(
    model: Translator, ways: list[_Way], own: Settings, options: Options, lpips: LPIPS | None, report: Report
) -> None:
    """The lines above and below the table, and the facts."""
    name = None if lpips is None else lpips.report_name
    if name is not None:
        pairs = sorted({way.facts["lpips"]["pairs"] for way in ways if "lpips" in way.facts})
        report.above.append(
            f"diversity: mean {name} of {' or '.join(map(str, pairs))} pairs of a content's styles, over contents"
        )
    if own.style == "reference":
        report.above.append("styles: of random test pictures of the painted domain")
    else:
        report.above.append("styles: from N(0, 1)")
    measured = dict.fromkeys(
        (found["contents"], found["styles"])
        for way in ways
        for name in _sets(way, options)
        if (found := way.facts.get(name, {}).get("dfid"))
    )
    if measured:
        of = " or ".join(f"{contents} pictures of the FID of each in {styles} styles" for contents, styles in measured)
        report.above.append(f"DFID: mean over {of}")
    if any("stability" in way.facts for way in ways):
        report.above.append(
            f"var of poses: variance of a picture's style code over {AUGMENTATIONS} augmentations, to be seen beside "
            "that of pictures"
        )
    report.facts = {
        "size": model.size,
        "precision": model.precision,
        "averaged": model.averaged,
        "batch": options.batch,
        "seed": own.seed,
        "style": own.style,
        "styles": own.styles,
        "lpips": None if lpips is None else {"net": lpips.net_name, "name": name},
        "protocols": {
            "fid": "all test pictures x styles, 8-bit, against all real pictures of the set",
            "lpips": "mean of all pairs of a content's styles, mean over contents",
            "dfid": "FID of one content in dfid_styles styles against the set, mean over the first dfid_contents",
            "stability": f"variance of style codes over {AUGMENTATIONS} augmentations of training, mean of dimensions "
            "and pictures; between: variance of pictures' mean codes",
        },
        "dfid_contents": own.dfid_contents,
        "dfid_styles": own.dfid_styles,
        "interrupted": report.interrupted,
        "directions": {way.name: way.facts for way in ways},
        "published": None,
    }
    published = next((way for way in ways if way.to == "B"), None)
    if own.published != "none" and published is not None:
        _compare(published, own.published, name, options, report)


def _compare(way: _Way, data: str, distance: str | None, options: Options, report: Report) -> None:
    """Published figures, and ours in the same columns."""
    columns = ("DFID", "FID", "LPIPS")
    rows = [
        (method, [figure(dfid, 1), figure(fid, 1), figure(diversity, 3)])
        for method, dfid, fid, diversity in PUBLISHED[data]
    ]
    extractor = options.extractor
    other = extractor is not None and not is_standard(extractor)
    marks = ("*" if other else "", "*" if other else "", "*" if distance not in (None, STANDARD) else "")
    diversity = way.facts["lpips"]["mean"] if "lpips" in way.facts else None
    for name in _sets(way, options) if extractor is not None else [None]:  # LPIPS alone compares with no set
        found = {} if name is None else way.facts[name]
        dfid = found.get("dfid")
        ours = (dfid["mean"] if dfid else None, found.get("fid"), diversity)
        if ours == (None, None, None):
            continue
        label = f"this model, {'' if name is None else f'{name}, '}n = {way.painted}"
        label += f" (DFID {dfid['contents']} x {dfid['styles']})" if dfid else ""
        cells = [
            figure(value, digits) + (mark if value is not None else "")
            for value, digits, mark in zip(ours, (1, 1, 3), marks, strict=True)
        ]
        rows.append((label, cells))
    report.below += ["", *table(f"published for {data}, A -> B", columns, rows)]
    ours_are = [cell for _, cells in rows[len(PUBLISHED[data]) :] for cell in cells]
    if any(cell.endswith("*") for cell in ours_are):
        report.below.append(OTHER_NETWORK)
    if ours_are:
        by = [] if extractor is None else [f"FID and DFID by {extractor.about}"]
        by += [] if diversity is None else [f"diversity by {distance}"]
        report.below.append(f"this model: {'; '.join(by)}")
    report.below.append(
        "published: arXiv 2106.06561 (Papers With Code); its numbers of pictures and DFID's protocol are not known"
    )
    report.facts["published"] = {
        "data": data,
        "source": "arXiv 2106.06561, Papers With Code",
        "rows": [
            {"method": method, "dfid": dfid, "fid": fid, "lpips": lpips} for method, dfid, fid, lpips in PUBLISHED[data]
        ],
    }

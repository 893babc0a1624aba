"""Figures of a trained BlendGAN: FID and LPIPS diversity by indicator, and whether style codes know whose a picture is.

The paper tells neither how many pictures its FIDs are of, nor the extractor, the side or the truncation; the report
tells what is done here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.data.folders import class_labels, counted, printable, resize, to_float, to_tensor, to_uint8
from anifast.data.packed import spread
from anifast.engine.config import option
from anifast.engine.precision import enough_memory
from anifast.engine.sheets import Block, sheet
from anifast.engine.translate import check_writable
from anifast.errors import AnifastError, DataError
from anifast.files import atomic_path
from anifast.metrics.cosines import INTERVAL, Closeness, class_cosines, closeness, nearest
from anifast.metrics.diversity import LPIPS_NETS, STANDARD, load_lpips, lpips_diversity, pairwise_lpips
from anifast.metrics.report import DISTANCES, Options, Report, distance_cells, distances, table
from anifast.metrics.sets import FeatureSet
from anifast.nn.perceptual import LPIPS
from anifast.progress import Progress
from anifast.systems.blendgan import figures
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.pictures import FOLDERS, find, held_out
from anifast.systems.blendgan.styles import pool_image
from anifast.systems.measures import (
    OTHER_NETWORK,
    Pictures,
    figure,
    is_standard,
    opened,
    read_batches,
    real_features,
)

#: The style pictures that paintings are compared with unless told otherwise.
AGAINST = "train"
#: Where style codes come from -> what the paper calls paintings in them.
GUIDED = {"random": "latent-guided", "reference": "reference-guided"}
#: L of the published figures.
PUBLISHED_L = 18
#: Table 1 of arXiv 2110.11728: where style codes come from -> indicator -> (FID, LPIPS).
PUBLISHED: dict[str, dict[int, tuple[float, float]]] = {
    style: {2 * k: pair for k, pair in enumerate(zip(fids, diversities, strict=True))}
    for style, fids, diversities in (
        (
            "random",
            (8.97, 12.45, 12.75, 23.17, 42.45, 57.34, 68.31, 76.91, 78.25, 76.73),
            (0.581, 0.571, 0.568, 0.515, 0.459, 0.367, 0.304, 0.207, 0.145, 0.159),
        ),
        (
            "reference",
            (3.79, 6.39, 6.82, 15.08, 34.33, 51.49, 63.73, 76.00, 77.11, 76.97),
            (0.661, 0.651, 0.650, 0.599, 0.540, 0.450, 0.377, 0.237, 0.191, 0.160),
        ),
    )
}
#: Tables 2 and 3: where style codes come from -> (method, FID, LPIPS).
OTHERS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "random": (
        ("MUNIT", 29.69, 0.394),
        ("FUNIT", 176.96, 0.500),
        ("DRIT++", 22.53, 0.448),
        ("StarGAN v2", 50.20, 0.312),
    ),
    "reference": (
        ("AdaIN", 37.23, 0.345),
        ("MUNIT", 103.61, 0.192),
        ("FUNIT", 87.71, 0.327),
        ("DRIT++", 31.71, 0.241),
        ("StarGAN v2", 50.03, 0.307),
    ),
}
#: What stands below published figures.
_SOURCE = (
    "published: arXiv 2110.11728, 1024 px; its LPIPS is of 1000 faces x 10 styles, AlexNet's; its FIDs' number of "
    "pictures, extractor, side and truncation are not known"
)
#: For what is compared with no set.
_NO_SET: list[str | None] = [None]
#: Faces, and styles of each, on the sheets of paintings.
_FACES, _STYLES = 4, 4
#: Pictures with their nearest ones on the sheet of style codes, and how many of these.
_ROWS, _NEAREST = 12, 7


@dataclass(frozen=True)
class Settings:
    """How to evaluate this system, beyond `anifast.metrics.report.Options`."""

    indices: str = option(
        "0,6,L", "blending indicators: numbers, L for all slots (no style), or even: all even ones, as in table 1"
    )
    style: str = option(
        "both", "styles from N(0, 1) (random), of random style pictures (reference), or both", choices=(*GUIDED, "both")
    )
    faces: int = option(1000, "random faces; 0: nothing is painted", low=0)
    styles: int = option(10, "styles that each face is painted in; 1: no diversity", low=1)
    side: int = option(256, "side at which pictures are compared, at most the generator's", low=16, high=1024)
    truncation: float = option(1.0, "of faces; 1: none", low=0, high=1)
    lpips: str = option("auto", "network of the LPIPS diversity", choices=LPIPS_NETS)
    classes: str | None = option(
        None, "folder of folders by artist, year or the like: are style codes of one closer to each other?", none="none"
    )
    permutations: int = option(1000, "permutations of the classes' labels that chance is taken from", low=1)
    figures: str | None = option(None, "folder for sheets of paintings and of style codes", none="none are drawn")
    seed: int = option(0, "of faces, styles, noise and permutations", low=0, high=2**31 - 1)


@dataclass
class _Row:
    """What is painted with one indicator and one kind of style codes.

    Attributes:
        style: where style codes come from, "random" or "reference".
        index: the blending indicator.
        fakes: features of the paintings.
        facts: figures as plain values.
        shown: paintings for the sheet, by face.
    """

    style: str
    index: int
    fakes: FeatureSet | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    shown: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.style}, i = {self.index}"


@dataclass(frozen=True)
class _Codes:
    """Style codes of pictures.

    Attributes:
        values: [N, style_dim], on the CPU.
        folder: of the N pictures.
        places: their numbers in the folder.
        names: their names in it.
    """

    values: Tensor
    folder: Path
    places: list[int]
    names: list[str]

    def thumbnails(self, groups: Sequence[Sequence[int]], side: int = 128) -> list[Tensor]:
        """uint8 n,3,side,side of some pictures, for each group of them."""
        with opened(self.folder, side) as pictures:
            return [
                torch.stack([to_tensor(resize(pictures.read(self.places[k]), side, "crop")) for k in group])
                for group in groups
            ]


def evaluate(model: Model, data: Path, options: Options) -> Report:
    """Evaluate what is painted of random faces in styles, and the style codes of pictures whose class is known.

    Each of `faces` random faces is painted in `styles` styles of its own with every indicator, each time with other
    random noise, and rounded to 8 bits, as it would be saved. At `side` pixels (bicubic, antialiased), FID and KID
    compare all of these with the style pictures, and LPIPS diversity is the mean LPIPS of all pairs of a face's
    paintings, averaged over faces. Faces, styles and noise are the same for every indicator. With i = L no style takes
    part: paintings of a face differ in their noise only, and their diversity is the floor of the others.

    Style codes of `classes`: cosines with those of the same and of other classes, and whether the nearest code is of
    the same class, beside what permuted labels give.

    Args:
        model: with a generator, and, for references and classes, a style encoder.
        data: folder with the style pictures in styles or trainB, and those held out in testB where paintings are
            compared with these; see `find` and `held_out` of anifast/systems/blendgan/pictures.py.
        options: see there; `own` is a `Settings`.

    Returns:
        One row for each kind of style codes, indicator and set of style pictures, beside the paper's.

    Raises:
        DataError: a folder is missing or holds no picture that can be read.
        CheckpointError: the model lacks a network.
        AnifastError: a setting that cannot be, the model gives NaN, or the memory does not suffice.
    """
    own: Settings = options.own or Settings()
    indices = parse_indices(own.indices, model.n_latent)
    sources = [style for style in GUIDED if own.style in (style, "both")] if own.faces else []
    folders = _check(model, data, sources, options, own)
    sets = [folder.name for folder in folders] if options.extractor is not None else []
    side = min(own.side, model.size)
    report = Report(())
    report.facts = {
        "size": model.size,
        "n_latent": model.n_latent,
        "precision": model.precision,
        "averaged": model.averaged,
        "batch": options.batch,
        "settings": dataclasses.asdict(own),
        "side": side,
        "lpips": None,
        "style_codes": None,
        "rows": [],
        "published": None,
        "figures": [],
        "interrupted": False,
    }
    if own.classes is not None:
        _classes(model, Path(own.classes), options, own, report)
    if not sources:
        return report
    references = _references(model, folders[-1], options, own, report) if "reference" in sources else None
    model.release("E_style", "psp")
    lpips, told = load_lpips(own.lpips, model.device) if own.styles > 1 else (None, "")
    if told:
        report.note(told)
    if own.styles == 1 and own.lpips == "auto":
        report.note("one style of each face: no diversity, which compares two and more")
    rows = _paint_all(model, sources, indices, references, side, lpips, own, options, report)
    real: dict[str, FeatureSet] = {}
    if options.extractor is not None:
        real = {folder.name: real_features(folder, side, options, report) for folder in folders}
    for row in rows:
        for name, features in real.items():
            assert row.fakes is not None
            row.facts[name] = distances(row.fakes, features, options, report)
    distance = None if lpips is None else lpips.report_name
    report.facts["lpips"] = None if lpips is None else {"net": lpips.net_name, "name": distance}
    _tell(model, rows, sets, side, distance, references, own, options, report)
    if own.figures is not None:
        _sheets(model, rows, references, own, report)
    return report


def parse_indices(text: str, slots: int) -> list[int]:
    """Indicators from "0,6,L" or "even", each once, in rising order.

    Args:
        text: whole numbers and "L" with commas between them, or "even".
        slots: L.

    Raises:
        AnifastError: something else, or a number that is none of 0 to L.
    """
    words = [str(k) for k in range(0, slots + 1, 2)] if text.strip() == "even" else text.split(",")
    found = set()
    for word in map(str.strip, words):
        number = slots if word == "L" else int(word) if word.isdecimal() else -1
        if not 0 <= number <= slots:
            raise AnifastError(
                f"--indices {text}: {word!r} is no indicator; give numbers from 0 (all of the style) to {slots} (none "
                f"of it), L for {slots}, with commas between them, or even"
            )
        found.add(number)
    return sorted(found)


def _check(model: Model, data: Path, sources: list[str], options: Options, own: Settings) -> list[Path]:
    """That the model and the folders have what is asked for.

    Returns:
        The folders of style pictures; none where none is read.
    """
    if options.to is not None:
        raise AnifastError(f"--to {options.to}: a model of blendgan translates between no two domains; leave it out")
    if own.styles == 1 and own.lpips not in ("auto", "none"):
        raise AnifastError(f"--lpips {own.lpips} with --styles 1: diversity needs at least 2 styles")
    if not sources and own.classes is None:
        raise AnifastError("--faces 0 leaves nothing to evaluate; give --classes DIR for style codes, or more faces")
    if own.classes is not None:
        model.require("E_style")
    if own.figures is not None:
        check_writable(Path(own.figures))
    if not sources:
        return []
    model.require("G")
    if "reference" in sources:
        model.require("E_style")
    elif options.extractor is None:
        return []
    wanted = options.against if options.extractor is not None else options.against[-1:]
    return [_folder(data, name) for name in wanted]


def _folder(data: Path, name: str) -> Path:
    """The folder, or LMDB, of the style pictures of "train" or "test"."""
    why = "paintings are compared with them (unless --features none) and have their styles (unless --style random)"
    if name == "train":
        try:
            return find(data, "styles")
        except DataError as error:
            raise DataError(f"{error}; {why}") from None
    found = held_out(data, "styles")
    if found is None:
        raise DataError(
            f"{printable(data)}: no folder testB. Expected {printable(data / 'testB')} with pictures of art that were "
            f"held out, or an LMDB of them; {why}; --against train takes {' or '.join(FOLDERS['styles'])}"
        )
    return found


# --- style codes of pictures


def _encoded(model: Model, pictures: Pictures, places: Sequence[int], batch: int, label: str, report: Report) -> _Codes:
    """Style codes of some pictures of a folder; those that cannot be read are left out and noted.

    Pictures go in as `anifast translate` reads styles: their largest centred square, pooled to the encoder's side.
    """
    side = model.sides["E_style"]
    kept: list[int] = []
    values: list[Tensor] = []
    with enough_memory(batch, f" of side {side}", "--batch"):
        for images, numbers in read_batches(
            pictures, places, partial(pool_image, side=side, how="crop"), batch, label, report
        ):
            codes = model.encode_styles(images.to(model.device), batch=batch).cpu()
            if not bool(codes.isfinite().all()):
                raise AnifastError("the model gives NaN for style codes of pictures: its weights are damaged")
            values.append(codes)
            kept += numbers
    return _Codes(torch.cat(values), pictures.folder, kept, [pictures.names[k] for k in kept])


def _references(model: Model, folder: Path, options: Options, own: Settings, report: Report) -> _Codes:
    """Codes of random style pictures, no more than are painted in."""
    source = torch.Generator().manual_seed(own.seed)
    with opened(folder, model.sides["E_style"]) as pictures:
        count = len(pictures.names[: options.limit])
        places = torch.randperm(count, generator=source)[: own.faces * own.styles].sort().values.tolist()
        codes = _encoded(model, pictures, places, options.batch, f"styles of {folder.name}", report)
    if len(codes.values) < own.styles:
        report.note(
            f"{counted(len(codes.values))} in {folder.name} for {own.styles} styles of each face: some are taken twice"
        )
    return codes


def _classes(model: Model, folder: Path, options: Options, own: Settings, report: Report) -> None:
    """Whether style codes know the class of a picture, into the report."""
    with opened(folder) as pictures:
        try:
            names, owners = class_labels(pictures.names, 2)
        except DataError as error:
            raise DataError(f"{printable(folder)}: {error}") from error
        places: list[int] = []
        for number in range(len(names)):
            places += np.flatnonzero(owners == number)[: options.limit].tolist()
        codes = _encoded(model, pictures, places, options.batch, f"style codes of {printable(folder.name)}", report)
    # pictures that could not be read may have left a class with one
    classes, again = class_labels(codes.names, 2)
    rows = torch.from_numpy(again >= 0).nonzero()[:, 0]
    alone = sorted({name.partition("/")[0] for name in pictures.names} - set(classes))
    if alone:
        report.note(f"left out: classes of fewer than 2 pictures: {', '.join(map(printable, alone))}")
    if len(classes) < 2:
        raise DataError(f"{printable(folder)}: pictures of one class only; expected a folder for each of several")
    values, labels = codes.values[rows], torch.from_numpy(again)[rows]
    result = closeness(values, labels, permutations=own.permutations, seed=own.seed)
    report.facts["style_codes"] = {
        "folder": str(folder),
        "names": classes,
        "counts": labels.bincount().tolist(),
        **result.as_dict(),
    }
    report.below += _told_of_codes(result, folder, own)
    if own.figures is None:
        return
    title = f"style codes: mean cosine of {result.classes} classes"
    about = f"{counted(result.pictures)} of {printable(folder.name)}; on the diagonal other pictures of the class"
    drawn = {"style_codes.png": figures.matrix(class_cosines(values, labels), classes, title=title, about=about)}
    shown = min(_NEAREST, len(values) - 1)
    near = nearest(values, shown)
    members = [[query, *near[query].tolist()] for query in spread(len(values), _ROWS)]
    shown_pictures = codes.thumbnails([rows[group].tolist() for group in members])
    heads = [[classes[int(labels[k])] for k in group] for group in members]
    caption = "pictures (left), and those with the nearest style codes"
    drawn["style_neighbours.png"] = figures.neighbours(shown_pictures, heads, caption=caption)
    for name, image in drawn.items():
        _draw(image, name, own, report)


def _told_of_codes(found: Closeness, folder: Path, own: Settings) -> list[str]:
    """The table of style codes."""

    def between(ends: tuple[float, float], digits: int, factor: float = 1.0) -> str:
        return " to ".join(f"{factor * end:.{digits}f}" for end in ends)

    rows = [
        ("distance to the same class / to others", [f"{found.ratio:.4f}", "1", between(found.ratio_shuffled, 4)]),
        (
            "nearest code is of the same class, %",
            [f"{100 * found.nearest:.2f}", f"{100 * found.chance:.2f}", between(found.nearest_shuffled, 2, 100)],
        ),
    ]
    return [
        "",
        *table(f"style codes of {printable(folder)}", ("", "chance", f"{INTERVAL:.0%} of permuted labels"), rows),
        f"distance: 1 - cosine; mean cosine with the same class {found.within:.4f}, with others {found.between:.4f}",
        f"{counted(found.pictures)}, {found.classes} classes, {found.permutations} permutations, seed {own.seed}",
    ]


# --- paintings


def at_side(images: Tensor, side: int) -> Tensor:
    """Pictures as they would be saved, made smaller, and saved again.

    Args:
        images: N,3,H,W in [-1, 1].
        side: at most H and W.

    Returns:
        N,3,side,side in [-1, 1], rounded to 8 bits: within a level of what Pillow's bicubic makes of them, but where it
        overshoots black and white.
    """
    saved = to_float(to_uint8(images))
    if saved.shape[2:] == (side, side):
        return saved
    return to_float(to_uint8(F.interpolate(saved, (side, side), mode="bicubic", antialias=True)))


def _paint_all(
    model: Model,
    sources: list[str],
    indices: list[int],
    references: _Codes | None,
    side: int,
    lpips: LPIPS | None,
    own: Settings,
    options: Options,
    report: Report,
) -> list[_Row]:
    """All paintings of all rows. Ctrl-C ends it and leaves the rows that are done."""
    last = model.n_latent
    w = model.faces(model.random_faces(own.faces, own.seed), own.truncation)
    plans = [_Row(style, index) for style in sources for index in indices]
    done: list[_Row] = []
    # With i = L styles take no part: those of both kinds would give the same pictures.
    total = sum(1 for row in plans if row.index < last) + (last in indices)
    model.paint(w[:1], None, last)  # what happens once, such as building the network, is not timed
    with (
        Progress(total * own.faces * own.styles, "painting") as bar,
        enough_memory(options.batch, f" of side {model.size}", "--batch"),
    ):
        bar.print(
            f"painting: {own.faces} faces x {own.styles} styles, {total} times (--faces and --styles make it less; "
            "Ctrl-C ends it and keeps the figures of whole rows)"
        )
        try:
            for row in plans:
                twin = next((other for other in done if other.index == row.index == last), None)
                if twin is not None:
                    row.fakes, row.shown, row.facts = twin.fakes, twin.shown, dict(twin.facts)
                else:
                    _paint(model, row, w, _styles(model, row, references, own), side, lpips, own, options, bar)
                done.append(row)
        except KeyboardInterrupt:
            report.interrupted = report.facts["interrupted"] = True
            report.note(f"interrupted: figures of {len(done)} of {len(plans)} rows")
    return done


def _styles(model: Model, row: _Row, references: _Codes | None, own: Settings) -> Tensor:
    """[faces, styles, style_dim]: style codes of each face."""
    if row.style == "random":
        return model.random_styles(own.faces * own.styles, own.seed).unflatten(0, (own.faces, own.styles))
    assert references is not None
    return references.values[_chosen(references, own)]


def _chosen(references: _Codes, own: Settings) -> Tensor:
    """[faces, styles]: which references' styles each face is painted in, different ones as far as there are so many."""
    source = torch.Generator().manual_seed(own.seed)
    count, turns = len(references.values), -(-own.styles // len(references.values))
    drawn = [
        torch.cat([torch.randperm(count, generator=source) for _ in range(turns)])[: own.styles]
        for _ in range(own.faces)
    ]
    return torch.stack(drawn)


def _paint(
    model: Model,
    row: _Row,
    w: Tensor,
    styles: Tensor,
    side: int,
    lpips: LPIPS | None,
    own: Settings,
    options: Options,
    bar: Progress,
) -> None:
    """The paintings of one row: their features, diversity and time."""
    extractor = options.extractor
    row.fakes = None if extractor is None else FeatureSet(extractor.dim)
    codes, each, seconds, count = styles.flatten(0, 1), own.styles, 0.0, 0

    def painted() -> Iterator[Tensor]:
        """n,each,3,side,side: the faces that are whole after a batch, which may begin and end amid those of one."""
        nonlocal seconds, count
        begun: list[Tensor] = []  # paintings of a face that the next batches go on with
        for rows in torch.arange(own.faces * each).split(options.batch):
            started = time.perf_counter()
            (images,) = model.paintings(
                w[(rows // each).to(w.device)], codes[rows], row.index, noise=own.seed, first=count, batch=len(rows)
            )
            if not bool(images.isfinite().all()):
                raise AnifastError("the model gives NaN for paintings: its weights are damaged")
            images = at_side(images, side)
            seconds += time.perf_counter() - started
            count += len(images)
            bar.update(len(images))
            if extractor is not None and row.fakes is not None:
                row.fakes.update(extractor(images))
            begun.append(images)
            ready = count // each - (count - len(rows)) // each
            if not ready:
                continue
            whole, rest = torch.cat(begun).tensor_split([ready * each])
            begun = [rest]
            whole = whole.unflatten(0, (ready, each))
            for face in whole[: max(0, _FACES - len(row.shown))]:
                row.shown.append(to_uint8(face[:_STYLES]).cpu())
            yield whole

    if lpips is not None:
        row.facts["lpips"] = lpips_diversity(painted(), partial(pairwise_lpips, lpips)).as_dict()
    else:
        for _ in painted():
            pass
    row.facts["pictures"] = count
    row.facts["images_per_second"] = count / max(seconds, 1e-9)


# --- what is told


def published(style: str, index: int, slots: int) -> tuple[float, float] | None:
    """The paper's FID and LPIPS for an indicator, or None.

    The same indicator stands for the same resolution whatever the size; i = L, no style, is the paper's i = 18.
    """
    return PUBLISHED[style].get(PUBLISHED_L if index == slots else index if index < PUBLISHED_L else -1)


def _tell(
    model: Model,
    rows: list[_Row],
    sets: list[str],
    side: int,
    distance: str | None,
    references: _Codes | None,
    own: Settings,
    options: Options,
    report: Report,
) -> None:
    """The tables, and the facts."""
    report.columns = ("n", *DISTANCES, "LPIPS", "paper: FID", "paper: LPIPS", "images/s")
    stars = _stars(distance, options)
    beside = False  # whether a published figure is
    for row in rows:
        theirs = published(row.style, row.index, model.n_latent) or (None, None)
        beside |= theirs[0] is not None
        lpips = row.facts.get("lpips")
        for name in sets or _NO_SET:
            fid, *kid = distance_cells(None if name is None else row.facts[name])
            cells = [
                str(row.facts["pictures"]),
                _starred(fid, stars[0]),
                *kid,
                _starred(figure(lpips["mean"] if lpips else None, 4), stars[1]),
                figure(theirs[0], 2),
                figure(theirs[1], 3),
                figure(row.facts["images_per_second"], 1),
            ]
            report.rows.append((row.name if name is None else f"{row.name} ({name})", cells))
    report.above += [
        f"paintings: {own.faces} random faces (truncation {own.truncation:g}) in {own.styles} styles, with random "
        f"noise; compared at {side} px; i = {model.n_latent} paints no style: noise alone",
    ]
    if distance is not None and rows:
        report.above.append(f"LPIPS: mean {distance} of all pairs of a face's paintings, over faces")
    about = {"random": "from N(0, 1)"}
    if references is not None:
        about["reference"] = f"of random pictures of {printable(references.folder.name)}"
    painted = [style for style in GUIDED if style in {row.style for row in rows}]
    report.above += [f"{style}: styles {about[style]}" for style in painted]
    compared = [_compare(model, style, rows, sets, distance, options) for style in painted]
    lines = [line for block in compared for line in block]
    told = [*(cell for _, cells in report.rows for cell in cells), *lines]
    footnotes = _footnotes(told, bool(lines) or beside, distance, options) if rows else []
    report.below = [*lines, *footnotes, *report.below]
    report.facts["rows"] = [{"style": row.style, "index": row.index, **row.facts} for row in rows]
    report.facts["protocols"] = {
        "fid": "all faces x styles, 8-bit, at `side` px, against all style pictures of the set",
        "lpips": "mean of all pairs of a face's paintings, mean over faces; random noise for each",
        "noise floor": f"i = {model.n_latent}",
    }
    report.facts["published"] = {
        "source": "arXiv 2110.11728, tables 1 to 3",
        "n_latent": PUBLISHED_L,
        "table1": [
            {"style": style, "index": index, "fid": fid, "lpips": lpips}
            for style, by in PUBLISHED.items()
            for index, (fid, lpips) in by.items()
        ],
        "others": [
            {"style": style, "method": method, "fid": fid, "lpips": lpips}
            for style, methods in OTHERS.items()
            for method, fid, lpips in methods
        ],
    }


def _stars(distance: str | None, options: Options) -> tuple[str, str]:
    """What stands behind our FID and LPIPS where other networks than the paper's took them."""
    return (
        "*" if options.extractor is not None and not is_standard(options.extractor) else "",
        "*" if distance not in (None, STANDARD) else "",
    )


def _starred(cell: str, star: str) -> str:
    return cell if cell == figure(None, 0) else cell + star


def _compare(
    model: Model, style: str, rows: list[_Row], sets: list[str], distance: str | None, options: Options
) -> list[str]:
    """Table 2 or 3, and ours in the same columns; nothing where there are none."""
    if not sets and distance is None:
        return []
    lines = [(method, [figure(fid, 2), figure(lpips, 3)]) for method, fid, lpips in OTHERS[style]]
    for index in (6, 0):
        fid, lpips = PUBLISHED[style][index]
        lines.append((f"BlendGAN, i = {index}, paper", [figure(fid, 2), figure(lpips, 3)]))
    for row in (row for row in rows if row.style == style):
        for name in sets or _NO_SET:
            ours = (
                None if name is None else row.facts[name]["fid"],
                row.facts["lpips"]["mean"] if "lpips" in row.facts else None,
            )
            cells = [
                _starred(figure(value, digits), star)
                for value, digits, star in zip(ours, (2, 3), _stars(distance, options), strict=True)
            ]
            told = f"this model, i = {row.index}, {'' if name is None else f'{name}, '}n = {row.facts['pictures']}"
            lines.append((told, cells))
    number = 2 + list(GUIDED).index(style)
    return ["", *table(f"{GUIDED[style]} (table {number} of the paper)", ("FID", "LPIPS"), lines)]


def _footnotes(told: list[str], theirs: bool, distance: str | None, options: Options) -> list[str]:
    """What stands below the tables; `theirs`: published figures are in them."""
    by = [] if options.extractor is None else [f"FID by {options.extractor.about}"]
    by += [] if distance is None else [f"LPIPS by {distance}"]
    return [
        *([OTHER_NETWORK] if any("*" in text for text in told) else []),
        *([f"this model: {'; '.join(by)}"] if by else []),
        *([_SOURCE] if theirs else []),
    ]


def _sheets(model: Model, rows: list[_Row], references: _Codes | None, own: Settings, report: Report) -> None:
    """The first faces in their first styles, a sheet for each kind of style codes."""
    for style, guided in GUIDED.items():
        mine = [row for row in rows if row.style == style]
        if not mine:
            continue
        labels = [f"face {number}" for number in range(len(mine[0].shown))]
        blocks = []
        if style == "reference":
            assert references is not None
            chosen = _chosen(references, own)[: len(labels), :_STYLES].tolist()
            read = references.thumbnails(chosen)
            blocks.append(Block("styles of", list(zip(labels, read, strict=True))))
        for row in mine:
            none = ": no style" if row.index == model.n_latent else ""
            rest = [""] * len(labels) if blocks else labels
            blocks.append(Block(f"i = {row.index}{none}", list(zip(rest, row.shown, strict=True))))
        caption = f"{guided}: random faces in styles of their own, by indicator"
        many = len(blocks) > 4  # side by side they would be too wide to look at
        _draw(sheet(blocks, caption=caption, tile=128, beside=not many), f"{style}.png", own, report)


def _draw(image: Any, name: str, own: Settings, report: Report) -> None:
    assert own.figures is not None
    path = Path(own.figures) / name
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
    report.facts["figures"].append(str(path))

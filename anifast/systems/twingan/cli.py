"""`anifast twingan`: translations, galleries, search and statistics of a trained Twin-GAN.

    anifast twingan translate RUN photos --out anime                      photos (source) as the target's pictures
    anifast twingan translate RUN photos --out anime --boxes boxes.tsv    their faces alone, cut as in training
    anifast twingan translate RUN drawings --out people --to s            the other way
    anifast twingan translate RUN photos --out anime --tags green_hair,blue_eyes       a model trained with --tags
    anifast twingan translate RUN photos --out anime --reference her.png               as a character is drawn
    anifast twingan reconstruct RUN photos --domain s --out again         painted again in their own domain
    anifast twingan embed RUN drawings --domain t --out anime.npz         a gallery of a folder
    anifast twingan search RUN me.png --query-domain s --gallery anime.npz --out near.png    whom one looks like
    anifast twingan recalibrate RUN --data faces --out better.pt          statistics of norms taken anew

Domains are s (source, A) and t (target, B). Pictures have any size; those of a folder are found recursively.
`anifast twingan VERB --help` lists the options.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.systems import options
from anifast.systems.twingan.config import DOMAINS, WORDS, domain_of

if TYPE_CHECKING:
    from torch import Tensor

    from anifast.data.boxes import Box, Margins
    from anifast.engine.translate import Job
    from anifast.systems.twingan.gallery import Gallery
    from anifast.systems.twingan.inference import Model, Painter

_NEITHER = (
    "a model that follows neither tags nor styles (it was trained without --tags and --style), so no reference can "
    "steer it"
)


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast twingan`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    sub = _verb(
        verbs,
        "translate",
        "paint pictures of one domain in the other",
        "Pictures of one domain in the other: one PNG each, names kept. Known of these models: the background's colour "
        "may become that of the hair, a face may turn to the other side, men may be drawn as women, and who it is does "
        "not really stay.",
    )
    _inputs(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the PNGs go, names kept")
    sub.add_argument("--to", default="t", metavar="DOMAIN", help="the domain wanted, s or t [t]")
    sub.add_argument(
        "--boxes",
        type=Path,
        metavar="TSV",
        help="boxes of faces by any detector (path, x, y, w, h, score in each row, parted by tabs): at most 4 faces of "
        "a picture are painted, NAME-f0.png, NAME-f1.png, ...; a picture without one as a whole",
    )
    sub.add_argument(
        "--least-score",
        type=float,
        metavar="S",
        help="of a box that counts as a face, where detectors differ; 0: all [in photos 0.7, in drawings 0.9]",
    )
    steering = sub.add_argument_group("conditions", "For models trained with --tags or --style.")
    which = steering.add_mutually_exclusive_group()
    which.add_argument("--tags", metavar="TAGS", help="what to paint, as in green_hair,blue_eyes or green_hair:0.8")
    which.add_argument(
        "--reference",
        type=Path,
        metavar="PICTURE",
        help="a picture of the wanted domain: its tags, or its style, are followed",
    )
    which.add_argument("--seed", type=int, metavar="N", help="of the random style of all pictures [0]")
    steering.add_argument(
        "--tags-file",
        type=Path,
        metavar="TSV",
        help="a tags.tsv that has the tags of --reference [they are recognised by the model's own discriminator]",
    )
    _norm_mode(sub, ("running", "batch", "recalibrated"))
    options.add_resize(sub, usual="stretch")
    options.add_computing(sub)

    sub = _verb(
        verbs, "reconstruct", "paint pictures again in their own domain", "Pictures painted again in their own domain."
    )
    _inputs(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the PNGs go, names kept")
    sub.add_argument("--domain", required=True, metavar="DOMAIN", help="of the pictures, s or t")
    _norm_mode(sub, ("running", "batch", "recalibrated"))
    options.add_resize(sub, usual="stretch")
    options.add_computing(sub)

    sub = _verb(
        verbs,
        "embed",
        "make the gallery of a folder, for search",
        "A gallery: where the encoder places each picture of a folder, as float16, with their names (8 kB a picture "
        "with 256 channels). numpy.load reads it too.",
    )
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, searched recursively")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the gallery")
    sub.add_argument("--domain", required=True, metavar="DOMAIN", help="of the pictures, s or t")
    _norm_mode(sub, ("running", "recalibrated"))
    options.add_resize(sub, usual="stretch")
    options.add_computing(sub)

    sub = _verb(
        verbs,
        "search",
        "the nearest pictures of galleries",
        "The pictures of galleries that lie nearest to others, of the same domain or the other. Galleries of one "
        "domain are searched as one. The distance is 1 - cosine: 0 is the same picture.",
    )
    sub.add_argument("queries", type=Path, nargs="+", metavar="QUERY", help="pictures, and folders of such")
    sub.add_argument("--query-domain", required=True, metavar="DOMAIN", help="of the queries, s or t")
    sub.add_argument("--gallery", type=Path, nargs="+", required=True, metavar="FILE.npz", help="from twingan embed")
    sub.add_argument("--topk", type=int, default=5, metavar="K", help="how many of each query [5]")
    sub.add_argument("--out", type=Path, metavar="PNG", help="a sheet: each query, then its nearest [no sheet]")
    sub.add_argument("--images", type=Path, metavar="DIR", help="where a gallery's pictures are now [where they were]")
    sub.add_argument("--not-itself", action="store_true", help="leave out the query's own file where a gallery has it")
    _norm_mode(sub, ("running", "recalibrated"))
    options.add_resize(sub, "queries", usual="stretch")
    options.add_computing(sub)

    sub = _verb(
        verbs,
        "recalibrate",
        "take the statistics of norms anew",
        "Take the statistics of norms anew, on the very way that translation takes, and write a checkpoint that has "
        "them beside those of training, and that all commands then use. Of help where results are worse than the "
        "samples of the training.",
    )
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data folder of the training")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="the checkpoint")
    sub.add_argument("--batches", type=int, default=200, metavar="N", help="of each domain [200]")
    sub.add_argument("--batch", type=int, default=16, metavar="N", help="pictures in a batch [16]")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of pictures [0]")
    sub.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def _verb(verbs: Any, name: str, about: str, description: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = verbs.add_parser(name, help=about, description=description, allow_abbrev=False)
    sub.add_argument(
        "model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or the author's TensorFlow files"
    )
    return sub


def _inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT", help="folders (searched recursively) and files"
    )


def _norm_mode(parser: argparse.ArgumentParser, modes: Sequence[str]) -> None:
    parser.add_argument(
        "--norm-mode",
        choices=modes,
        help="statistics of norms: those that training remembers"
        + (", those of the pictures at once (--batch)" if "batch" in modes else "")
        + ", or those of deployment alone [the last where there are such]",
    )


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    from anifast.engine import precision, state
    from anifast.systems.styles import check_seed

    for name in ("batch", "topk", "batches"):
        value = getattr(args, name, 1)
        if value < 1:
            raise AnifastError(f"--{name} {value}: at least 1")
    if args.verb == "recalibrate" and args.batch < 2:
        raise AnifastError(f"--batch {args.batch}: at least 2, as statistics are of the pictures of a batch together")
    check_seed(getattr(args, "seed", None))
    for name in ("to", "domain", "query_domain"):
        if hasattr(args, name):
            _domain(args, name)
    run = {
        "translate": _translate,
        "reconstruct": _translate,
        "embed": _embed,
        "search": _search,
        "recalibrate": _recalibrate,
    }[args.verb]
    with state.about(args.model), precision.enough_memory(args.batch, "", "--batch"):
        return run(args)


def _domain(args: argparse.Namespace, name: str) -> None:
    """Put a domain's index where its name was."""
    try:
        setattr(args, name, domain_of(getattr(args, name)))
    except AnifastError as error:
        raise AnifastError(f"--{name.replace('_', '-')}: {error}") from None


def load_model(args: argparse.Namespace) -> Model:
    """The trained Twin-GAN that a command names.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    from anifast.systems.commands import load_as
    from anifast.systems.twingan.inference import Model

    # models of other systems, which have no norm_mode, are told by what they are
    mode = {} if args.norm_mode is None else {"norm_mode": args.norm_mode}
    return load_as(Model, "`anifast twingan` takes Twin-GANs", args.model, args.device, args.precision, **mode)


def _ended(failed: Mapping[str, str], count: int, what: str) -> int:
    """Tell of pictures that could not be used; the exit code."""
    from anifast.data.folders import counted

    for path, why in failed.items():
        print(f"anifast: failed: {why if why.startswith(path) else f'{path}: {why}'}", file=sys.stderr)
    if failed:
        raise AnifastError(f"{len(failed)} of {counted(count)} could not be {what} (named above)")
    return 0


# --- translate and reconstruct


def _translate(args: argparse.Namespace) -> int:
    from anifast.data.folders import counted
    from anifast.engine import precision, translate
    from anifast.systems.twingan.inference import Filled

    jobs, rejected = translate.collect(args.inputs, args.out)
    again = args.verb == "reconstruct"
    to = args.domain if again else args.to
    if not again:
        _check_score(args)
    model = load_model(args)
    model.require(DOMAINS[to])
    model.require_encoder(DOMAINS[to if again else 1 - to])
    painter = _painter(args, model, to)

    def repainted(images: Tensor) -> Tensor:
        return model.reconstruct(images, DOMAINS[to])

    paint: Callable[[Tensor], Tensor] = repainted if again else painter
    if args.norm_mode == "batch":
        paint = Filled(paint, args.batch)
    crops = None
    if not again and args.boxes is not None:
        crops = _Faces(painter, paint, _boxes_of(args, jobs), to, args.batch, args.least_score)
        jobs = crops.spread(jobs)
    translate.check_targets(jobs, painter.pictures)
    translate.check_writable(args.out)
    told = ", ".join(
        filter(
            None,
            [
                f"{WORDS[to]} again" if again else WORDS[to],
                painter.about,
                "averaged weights" if model.averaged else None,
                f"phase {model.stage}",
            ],
        )
    )
    print(f"{counted(len(jobs))} -> {told}, {precision.describe(model.device, args.precision)}")
    if args.norm_mode == "batch":
        total = sum(len(job.targets) for job in jobs)
        some = min(args.batch, total)
        more = ", so of each by itself" if some == 1 else ", the last ones with some before them" * (total % some > 0)
        print(f"statistics of norms: of {counted(some)} at once{more}")
    outcome = translate.translate_files(
        crops or paint,
        jobs,
        read=painter.read if crops is None else crops.read,
        multiple=model.multiple,
        batch=args.batch,
        label=args.verb,
        smaller="--batch",
    )
    done = len(outcome.written)
    print(f"{counted(done)} in {outcome.seconds:.1f} s, {done / max(outcome.seconds, 1e-9):.1f} images/s -> {args.out}")
    return _ended(outcome.failed | rejected, len(jobs) + len(rejected), "painted")


def _painter(args: argparse.Namespace, model: Model, to: int) -> Painter:
    """What paints under the condition that options ask for.

    Raises:
        AnifastError: a condition that the model does not follow, or that cannot be.
    """
    from anifast.systems.twingan.inference import Painter

    letter, how = DOMAINS[to], args.resize
    tags, reference = getattr(args, "tags", None), getattr(args, "reference", None)
    seed, file = getattr(args, "seed", None), getattr(args, "tags_file", None)
    if file is not None and reference is None:
        raise AnifastError(f"--tags-file {file}: is for the tags of --reference, which is not given; leave it out")
    steered = tags is not None or (reference is not None and model.tags is not None)
    if steered and not to:
        raise AnifastError("--tags and --reference: tags are of the target's pictures; with --to s leave them out")
    if tags is not None:
        return Painter(model, letter, tags=_asked(args, model, tags), about=f"tags {tags}", how=how)
    if reference is not None:
        if model.tags is not None:
            vector = _reference_tags(args, model)
            about = f"tags of {reference.name}: {_named(model, vector)}"
            return Painter(model, letter, tags=vector, about=about, how=how, pictures=[reference])
        if not model.config.style:
            raise AnifastError(f"--reference {reference}: {args.model} holds {_NEITHER}; leave it out")
        if file is not None:
            raise AnifastError(f"--tags-file {file}: {args.model} holds a model that follows styles, not tags")
        style = model.styles_of(model.reader(how)(reference)[None], letter)
        return Painter(model, letter, style=style, about=f"style of {reference.name}", how=how, pictures=[reference])
    if model.config.style and args.verb == "translate":
        number = seed or 0
        style = model.random_styles(1, number)
        return Painter(model, letter, style=style, about=f"style of seed {number}", how=how)
    if seed is not None:
        raise AnifastError(
            f"--seed {seed}: {args.model} holds a model that embeds no styles (it was trained without --style); "
            "leave it out"
        )
    return Painter(model, letter, how=how)


def _asked(args: argparse.Namespace, model: Model, text: str) -> Tensor:
    """The vector of tags that are written out."""
    import torch

    from anifast.data.tags import parse_tags

    if model.tags is None:
        raise AnifastError(
            f"--tags {text}: {args.model} holds a model that follows no tags (it was trained without --tags); leave it "
            "out, or train one: anifast train twingan --tags"
        )
    return torch.from_numpy(parse_tags(text, model.tags))


def _reference_tags(args: argparse.Namespace, model: Model) -> Tensor:
    """The tags of the reference picture, from a file or recognised."""
    import torch

    from anifast.data.folders import printable
    from anifast.data.tags import chosen, read_tags

    reference, file = args.reference, args.tags_file
    taglist = model.require_tags()
    picture = model.reader(args.resize)(reference)[None]  # one that cannot be read is refused in any case
    if file is None:
        scores = model.recognise(picture)[0].cpu().numpy()
    else:
        told = read_tags(file, taglist)
        own = os.path.realpath(reference)
        here = [name for name in told if os.path.realpath(file.parent / name) == own]
        here = here or [name for name in told if name in (reference.as_posix(), reference.name)]
        if not here:
            first = ", ".join(list(told)[:3])
            raise DataError(
                f"{printable(file)}: has no tags of {printable(reference)}; its paths begin where it is ({first}, "
                "...). Add a row, leave --tags-file out, or say what to paint by --tags"
            )
        scores = told[here[0]]
    return torch.from_numpy(chosen(scores, taglist, model.config.tag_threshold))


def _named(model: Model, vector: Tensor) -> str:
    """The tags of a vector, for people."""
    names = model.require_tags().names
    found = [
        names[place] if score == 1 else f"{names[place]}:{score:.2f}"
        for place, score in enumerate(vector.tolist())
        if score > 0
    ]
    # a vector that does not tell the colours counts as none
    return ", ".join(found) or f"none that is sure (below {model.config.tag_threshold:g})"


def _boxes_of(args: argparse.Namespace, jobs: Sequence[Job]) -> dict[Path, list[Box]]:
    """The boxes of each picture that the file of boxes names.

    Raises:
        DataError: the file cannot be used, or names none of the pictures.
    """
    from anifast.data.boxes import read_boxes
    from anifast.data.folders import printable

    told = read_boxes(args.boxes)
    there: dict[str, list[Path]] = {}
    for job in jobs:
        there.setdefault(os.path.realpath(job.source), []).append(job.source)
    roots = [args.boxes.parent, *(path if path.is_dir() else path.parent for path in args.inputs)]
    found: dict[Path, list[Box]] = {}
    for name, boxes in told.items():
        files = (os.path.realpath(root / name) for root in roots)
        for source in next((there[file] for file in files if file in there), []):
            found.setdefault(source, []).extend(boxes)  # a file may be written in several ways
    if not found:
        first = f"the first is {next(iter(told))}" if told else "it is empty"
        raise DataError(
            f"{printable(args.boxes)}: names none of the pictures ({first}); its paths begin where it is, or in an "
            "INPUT"
        )
    for boxes in found.values():
        boxes.sort(key=lambda box: -box.score)
    return found


def _check_score(args: argparse.Namespace) -> None:
    """Refuse a --least-score that cannot be, or that no boxes are there for."""
    score = args.least_score
    if score is not None and args.boxes is None:
        raise AnifastError(f"--least-score {score:g}: is of the boxes of --boxes, which is not given; leave it out")
    if score is not None and not math.isfinite(score):
        raise AnifastError(f"--least-score {score:g}: a finite number")


class _Faces:
    """Cuts the faces out of pictures and paints each.

    Args:
        painter: how pictures are read.
        paint: N,3,size,size -> the same.
        boxes: of pictures; those of others are painted as a whole.
        to: the domain that is painted: of the other one are the pictures.
        batch: faces at once.
        least: score of a box that counts; None: what is usual in such pictures.
    """

    def __init__(
        self,
        painter: Painter,
        paint: Callable[[Tensor], Tensor],
        boxes: Mapping[Path, Sequence[Box]],
        to: int,
        batch: int,
        least: float | None = None,
    ) -> None:
        from anifast.data import boxes as faces

        self.painter, self.paint, self.boxes, self.batch = painter, paint, boxes, batch
        self.margins: Margins = faces.HUMAN if to else faces.ANIME
        usual: float = faces.HUMAN_THRESHOLD if to else faces.ANIME_THRESHOLD
        self.least = usual if least is None else least

    def spread(self, jobs: Sequence[Job]) -> list[Job]:
        """The same jobs with a result for each face: face.png, or face-f0.png, face-f1.png, ... Tells how many."""
        from anifast.data.boxes import FACES
        from anifast.data.folders import counted
        from anifast.engine.translate import several

        found: list[Job] = []
        without = 0
        for job in jobs:
            sure = sum(box.score >= self.least for box in self.boxes.get(job.source, ()))
            without += not sure
            endings = [f"-f{number}" for number in range(min(FACES, sure))] if sure > 1 else [""]
            found += several([job], endings)
        faces = sum(len(job.targets) for job in found) - without
        print(
            f"faces of a score from {self.least:g}: {faces} in {counted(len(jobs) - without)}; {without} without are "
            "painted as a whole"
        )
        return found

    def read(self, path: Path) -> Tensor:
        """The faces of a picture, F,3,size,size in [-1, 1]; the whole picture where there is none."""
        import torch

        from anifast.data.boxes import face_crops
        from anifast.data.folders import printable, read_image

        image = read_image(path)
        try:
            parts = face_crops(self.boxes.get(path, ()), image.size, self.margins, self.least)
        except DataError as error:
            raise ImageError(f"{printable(path)}: {error}") from error
        return torch.stack([self.painter.prepared(image.crop(part)) for part in parts])

    def __call__(self, faces: Tensor) -> Iterator[Tensor]:
        """N,F,3,size,size -> all faces of the first picture, those of the second, ..., `batch` at once."""
        for part in faces.flatten(0, 1).split(self.batch):
            yield self.paint(part)


# --- galleries


def _embed(args: argparse.Namespace) -> int:
    from anifast.data.folders import counted, printable, scan
    from anifast.engine import precision, translate
    from anifast.progress import Progress
    from anifast.systems.commands import check_out, not_an_input
    from anifast.systems.twingan.gallery import embed_folder

    check_out(args.out, (".npz",))
    folder = scan(args.folder)
    not_an_input(args.out, folder.paths, "--out ")
    model = load_model(args)
    model.require_encoder(DOMAINS[args.domain])
    translate.check_writable(args.out.parent)
    print(f"{counted(len(folder))} of the {WORDS[args.domain]}, {precision.describe(model.device, args.precision)}")
    with Progress(len(folder), "embed") as bar:

        def told(count: int, failed: int) -> None:
            bar.update(count, f"{failed} failed" if failed else None)

        count, failed = embed_folder(
            model, folder, DOMAINS[args.domain], args.out, how=args.resize, batch=args.batch, on_done=told
        )
    size = args.out.stat().st_size
    print(f"{counted(count)}, {model.dimensions} numbers each, {size / 1e6:.1f} MB -> {printable(args.out)}")
    return _ended(failed, len(folder) + len(folder.rejected), "embedded")


def _search(args: argparse.Namespace) -> int:
    from anifast.data.folders import counted, printable
    from anifast.engine import precision, translate
    from anifast.files import atomic_path
    from anifast.systems.commands import check_out, not_an_input
    from anifast.systems.styles import pictures_in
    from anifast.systems.twingan import gallery, sheets

    if args.out is not None:
        check_out(args.out, (".png",))
    paths: list[Path] = []
    failed: dict[str, str] = {}
    for source in args.queries:
        inside, rejected = pictures_in(source)
        paths += inside
        failed |= rejected
    total = len(paths) + len(failed)
    if args.out is not None:
        not_an_input(args.out, [*paths, *args.gallery], "--out ")
    if args.images is not None and not args.images.is_dir():
        raise DataError(f"--images {printable(args.images)}: no such folder")
    galleries = [gallery.read(path) for path in args.gallery]
    parts = {letter: [opened for opened in galleries if opened.domain == letter] for letter in DOMAINS}
    if args.out is not None:
        sheets.check(len(paths), [min(args.topk, sum(map(len, of_it))) for of_it in parts.values()])
    model = load_model(args)
    model.require_encoder(DOMAINS[args.query_domain])
    for opened in galleries:
        opened.check(model)
        if opened.resize != args.resize:
            print(
                f"anifast: warning: {printable(opened.path)}: its pictures were made square by {opened.resize}, and "
                f"queries are by {args.resize}; --resize {opened.resize} makes them alike",
                file=sys.stderr,
            )
    if args.out is not None:
        translate.check_writable(args.out.parent)
    print(precision.describe(model.device, args.precision))
    queries, paths = _embedded(args, model, paths, failed)
    if not paths:
        first, why = next(iter(failed.items()))
        raise DataError(f"none of {counted(total)} to search by can be used ({first}: {why})")
    found = []
    for letter, of_it in parts.items():
        if of_it:
            near = gallery.search(
                queries, of_it, args.topk, folder=args.images, apart_from=paths if args.not_itself else None
            )
            found.append((_title(letter, of_it, args.topk), near))
    for title, rows in found:
        print(title)
        for path, row in zip(paths, rows, strict=True):
            print(f"  {printable(path)}")
            for rank, one in enumerate(row, 1):
                print(f"  {rank:4d}  {one.distance:.4f}  {printable(one.path)}")
    if args.out is not None:
        pictures = sheets.load(paths, args.resize)
        names = [path.name for path in paths]
        title = f"query ({WORDS[args.query_domain]})"
        drawn, lost = sheets.neighbours(pictures, found, names=names, title=title)
        with atomic_path(args.out) as temporary:
            drawn.save(temporary)
        print(args.out)
        for why in lost.values():
            print(f"anifast: warning: not shown: {why}", file=sys.stderr)
        if lost:
            roots = {args.images or opened.folder: None for opened in galleries}
            where = [printable(root) for root in roots if any(Path(path).is_relative_to(root) for path in lost)]
            raise DataError(
                f"{counted(len(lost))} of the galleries could not be read and stay white on the sheet; if they are no "
                f"longer in {' or '.join(where)}, say where by --images DIR"
            )
    return _ended(failed, total, "searched by")


def _title(letter: str, galleries: Sequence[Gallery], wanted: int) -> str:
    from anifast.data.folders import counted

    count = sum(map(len, galleries))
    which = f"nearest in the {WORDS[domain_of(letter)]}, of {counted(count)}"
    return which if wanted <= count else f"{which}, which is fewer than {wanted}"


def _embedded(
    args: argparse.Namespace, model: Model, paths: Sequence[Path], failed: dict[str, str]
) -> tuple[Tensor, list[Path]]:
    """Where the queries lie, and which could be read; `failed` gets the others."""
    import torch

    from anifast.progress import Progress
    from anifast.systems.twingan.gallery import embedded

    found = [torch.empty(0, model.dimensions)]
    good: list[Path] = []
    letter = DOMAINS[args.query_domain]
    with Progress(len(paths), "embed") as bar:
        for part in embedded(model, paths, letter, failed, how=args.resize, batch=args.batch):
            found.append(part.embeddings)
            good += [paths[number] for number in part.numbers]
            bar.update(part.done - bar.done, f"{len(failed)} failed" if failed else None)
        bar.update(len(paths) - bar.done)
    return torch.cat(found).to(model.device), good


# --- statistics


def _recalibrate(args: argparse.Namespace) -> int:
    import numpy as np

    from anifast import systems
    from anifast.data.folders import counted, printable, scan
    from anifast.data.stream import read_batches
    from anifast.engine import precision, state, translate
    from anifast.progress import Progress
    from anifast.systems.commands import check_out, not_an_input
    from anifast.systems.twingan import checkpoints, inference
    from anifast.systems.twingan.pictures import find

    check_out(args.out, (".pt",))
    not_an_input(args.out, [args.model, args.model / state.NAME, *args.model.glob(f"*/{state.NAME}")], "--out ")
    folders = []
    for domain in WORDS:
        folder = find(args.data, domain)
        if folder is None:
            raise DataError(
                f"{printable(args.data)}: no pictures of the {domain}; give the data folder of a training, with "
                "source/train and target/train (or trainA and trainB)"
            )
        folders.append(scan(folder))
    found = systems.read(args.model)
    if not checkpoints.recognises(found):
        raise CheckpointError(f"{args.model}: a model of another system; `anifast twingan` takes Twin-GANs")
    model = inference.load(found, precision.pick_device(args.device))
    translate.check_writable(args.out.parent)
    print(precision.describe(model.device, model.precision))
    random = np.random.default_rng(args.seed)
    chosen = [[folder.paths[i] for i in random.permutation(len(folder))] for folder in folders]
    counts = [max(1, min(args.batches, len(paths) // args.batch)) for paths in chosen]
    for word, paths, count in zip(WORDS, chosen, counts, strict=True):
        if count < args.batches:
            some = f"{count} batch{'es' * (count > 1)} of {min(args.batch, len(paths))}"
            print(f"{word}: {some}, not {args.batches}, as there are {counted(len(paths))}")
    failed: dict[str, str] = {}

    def unreadable(path: Path, error: ImageError) -> None:
        failed[printable(path)] = str(error).removeprefix(f"{printable(path)}: ")

    def batches(domain: int) -> Iterator[Tensor]:
        import torch

        given = 0
        for group in read_batches(chosen[domain], model.reader(), args.batch, unreadable):
            # what is left at the end is fewer than a batch, whose own statistics would lead the others astray
            if given and len(group) < args.batch:
                return
            if len(group) < 2:
                raise DataError(
                    f"{printable(folders[domain].root)}: 1 picture that can be read; statistics take at least 2"
                )
            given += 1
            yield torch.stack([pixels for _, pixels in group])
            if given == counts[domain]:
                return
        if not given:
            raise DataError(f"{printable(folders[domain].root)}: none of its pictures can be read")

    tags = _training_tags(args, model)
    with Progress(sum(counts), "recalibrate", unit="batches") as bar:
        seen = model.recalibrate(batches(0), batches(1), tags=tags, seed=args.seed, on_batch=bar.update)
    state.save(args.out, model.recalibrated_state(found))
    for name in ("E", "G"):
        moved, wider = model.drift(name)
        print(f"{name}: means moved by {moved:.3f} standard deviations, these by {100 * wider:.1f} %, on average")
    print(f"{counted(seen)} -> {printable(args.out)}; all commands use these now")
    if failed:
        path, why = next(iter(failed.items()))
        print(f"anifast: warning: {counted(len(failed))} left out, such as {path}: {why}", file=sys.stderr)
    return 0


def _training_tags(args: argparse.Namespace, model: Model) -> Tensor | None:
    """The tags of training pictures, for a model that follows them."""
    import numpy as np
    import torch

    from anifast.data.tags import chosen, read_tags
    from anifast.systems.twingan.pictures import tags_file

    if model.tags is None:
        return None
    file = tags_file(args.data)
    if file is None:
        print(f"no tags.tsv in {args.data}: statistics are of translations without tags")
        return None
    scores = np.stack(list(read_tags(file, model.tags).values()))
    return torch.from_numpy(chosen(scores, model.tags, model.config.tag_threshold))

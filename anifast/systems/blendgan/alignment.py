"""`anifast blendgan align`: pictures of faces cut and turned as FFHQ's are, which is what the networks have learned on.

    anifast blendgan align photos --out faces                                 the largest face of each picture
    anifast blendgan align raw --out aahq --json AAHQ-dataset.json            the faces that AAHQ's list names
    anifast blendgan align photos --out faces --landmarks points.json         faces whose landmarks are known

A picture without a face, or one that cannot be read, is left out and told by name, also in skipped.txt of the folder.
Finding faces needs the extra `align`; known landmarks need nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from anifast.errors import AnifastError, DataError, ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from anifast.data.align import Points

    Find = Callable[[NDArray[np.uint8]], list[Points]]

#: What is left out, a line each: the picture, a tab, the reason.
SKIPPED = "skipped.txt"
#: Sides of squares that --skip-square takes for aligned ones.
_ALIGNED = (256, 512, 1024)
_LARGEST_SIZE = 4096
#: Skipped pictures that are told on the screen too; lists on the web lose pictures by the thousand.
_TOLD = 20


@dataclass(frozen=True)
class _Job:
    """A picture, where its result goes, and the face's landmarks, or why there are none; None and "": to be found."""

    name: str
    source: Path
    target: Path
    points: Points | None = None
    why: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("inputs", type=Path, nargs="+", metavar="PICTURE", help="pictures and folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a PNG for each face")
    parser.add_argument("--size", type=int, default=1024, metavar="N", help="side of the results [1024]")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--detect", action="store_true", help="find the faces, and take the largest of each picture (the default)"
    )
    source.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="AAHQ's list: a result for each entry, under its name; PICTURE is the folder of the original pictures",
    )
    source.add_argument(
        "--landmarks",
        type=Path,
        metavar="FILE",
        help="JSON {name: landmarks}; a name is the file's in its folder, and landmarks are 68 or 5 pairs x, y, or "
        "{eye_left, eye_right, mouth_left, mouth_right}, in pixels of the upright picture, left as one sees it",
    )
    parser.add_argument(
        "--skip-square",
        action="store_true",
        help="square pictures of side 256, 512 or 1024 are taken for aligned and kept as they are",
    )
    parser.add_argument("--resume", action="store_true", help="leave the results that are there, and go on")


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code: 0 where at least one picture was written.

    Raises:
        AnifastError: nothing could be aligned, an option or file is wrong, or a result cannot be written.
    """
    from anifast.data.folders import counted, printable
    from anifast.data.stream import in_order
    from anifast.engine import translate
    from anifast.files import write_text
    from anifast.progress import Progress

    if not 1 <= args.size <= _LARGEST_SIZE:
        raise AnifastError(f"--size {args.size}: from 1 to {_LARGEST_SIZE}")
    jobs, skipped = _listed(args) if args.json else _collected(args)
    find: Find | None = None
    if any(job.points is None and not job.why for job in jobs):
        from anifast.data.mtcnn import FaceLandmarks

        find = FaceLandmarks().find
    translate.check_writable(args.out)
    written, kept, several = 0, 0, 0

    def work(job: _Job) -> int:
        return _align(job, args.size, find, args.skip_square)

    workers = max(1, min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="align")
    try:
        todo = [job for job in jobs if not (args.resume and job.target.is_file())]
        kept = len(jobs) - len(todo)
        with Progress(len(jobs), "align", done=kept) as bar:
            for job, future in in_order(todo, work, pool, 2 * workers):
                try:
                    several += future.result() > 1
                    written += 1
                    bar.update()
                except DataError as error:
                    skipped[job.name] = str(error).removeprefix(f"{printable(job.source)}: ")
                    bar.update(note=f"{len(skipped)} skipped")
    finally:
        pool.shutdown(cancel_futures=True)
    report = args.out / SKIPPED
    if skipped:
        write_text(report, "".join(f"{_line(name)}\t{_line(why)}\n" for name, why in skipped.items()))
        for name, why in islice(skipped.items(), _TOLD):
            print(f"anifast: skipped: {name}: {why}", file=sys.stderr)
        if len(skipped) > _TOLD:
            print(f"anifast: skipped: {len(skipped) - _TOLD} more, see {report}", file=sys.stderr)
    else:
        report.unlink(missing_ok=True)
    if not written + kept:
        name, why = next(iter(skipped.items()))
        raise AnifastError(f"nothing could be aligned ({counted(len(skipped))}), the first because {name}: {why}")
    print(f"{counted(written)} aligned" + (f", {kept} were there" if kept else "") + f": {args.out}")
    if several:
        print(f"{counted(several)} with several faces: the largest of each was taken")
    if skipped:
        print(f"{len(skipped)} skipped: {report}")
    return 0


def _line(text: str) -> str:
    """Text as a part of one line."""
    return " ".join(text.split())


def _collected(args: argparse.Namespace) -> tuple[list[_Job], dict[str, str]]:
    """The pictures of the inputs, with landmarks where a file has them, and name -> reason for what is no picture."""
    from anifast.data.align import read_landmarks
    from anifast.data.folders import printable
    from anifast.engine import translate

    found, rejected = translate.collect(args.inputs, args.out)
    if args.landmarks is None:
        return [_Job(printable(job.source), job.source, job.targets[0]) for job in found], rejected
    known = read_landmarks(args.landmarks)
    jobs = []
    for job in found:
        points = next((known[key] for key in _keys(job.source, args.inputs) if key in known), None)
        why = "" if points else f"no landmarks of it in {printable(args.landmarks)}"
        jobs.append(_Job(printable(job.source), job.source, job.targets[0], points, why))
    if not any(job.points for job in jobs):
        raise DataError(
            f"{printable(args.landmarks)}: has landmarks of none of these pictures. Expected the names of files in "
            f"their folder, as {jobs[0].source.name!r}; the first one there is {next(iter(known))!r}"
        )
    return jobs, rejected


def _keys(source: Path, inputs: Sequence[Path]) -> list[str]:
    """The names under which landmarks of a picture may stand: in the folders that were given, and the file's alone."""
    folders = [folder.expanduser().absolute() for folder in inputs]
    inside = [source.relative_to(folder).as_posix() for folder in folders if source.is_relative_to(folder)]
    return [*inside, source.name]


def _listed(args: argparse.Namespace) -> tuple[list[_Job], dict[str, str]]:
    """The entries of AAHQ's list."""
    from anifast.data.align import read_aahq
    from anifast.data.folders import printable

    if len(args.inputs) != 1 or not args.inputs[0].is_dir():
        raise AnifastError(
            f"{printable(args.inputs[0])}: with --json, give one folder: that of the pictures in the list"
        )
    root: Path = args.inputs[0]
    entries, skipped = read_aahq(args.json)
    jobs = []
    inputs = {os.path.realpath(root / entry.raw) for entry in entries}
    for entry in entries:
        target = args.out / PurePosixPath(entry.name).with_suffix(".png")
        if os.path.realpath(target) in inputs:
            raise DataError(f"{printable(target)}: the result would overwrite a picture; choose another --out")
        jobs.append(_Job(f"{entry.name} ({entry.raw})", root / entry.raw, target, entry.points))
    return jobs, skipped


def _align(job: _Job, size: int, find: Find | None, skip_square: bool) -> int:
    """Write one result; how many faces the picture has, 0 where nobody looked.

    Raises:
        DataError: it cannot be aligned.
    """
    import numpy as np

    from anifast.data.align import align
    from anifast.data.folders import printable, read_image

    image = read_image(job.source)
    if skip_square and image.width == image.height and image.width in _ALIGNED:
        _save(image, job.target)
        return 0
    if job.why:
        raise ImageError(job.why)
    points, faces = job.points, 0
    if points is None:
        assert find is not None
        found = find(np.asarray(image))
        if not found:
            raise ImageError("no face found; it may be too small, turned away or drawn. Give --landmarks, or leave it")
        points, faces = found[0], len(found)
    try:
        _save(align(image, points, size), job.target)
    except DataError as error:
        raise ImageError(f"{printable(job.source)}: {error}") from error
    return faces


def _save(image: Image.Image, target: Path) -> None:
    from anifast.files import atomic_path

    with atomic_path(target, sync=False) as temporary:
        image.save(temporary, format="PNG", compress_level=1)

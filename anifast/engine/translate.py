"""Running a model over folders of pictures: read ahead, batched, in order, one PNG or several per input."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.data.folders import printable, read_image, resize, save_png, scan, to_float, to_tensor
from anifast.engine.precision import enough_memory
from anifast.errors import AnifastError, DataError, ImageError
from anifast.files import write_text
from anifast.progress import Progress

_NOT_FINITE = "the model's result is not finite (NaN); its weights may be damaged, or try --precision fp32"


@dataclass(frozen=True)
class Job:
    """One picture to translate: where it is and where the results go, of which there are several with some models."""

    source: Path
    targets: tuple[Path, ...]


@dataclass
class Outcome:
    """What became of a run over folders.

    Attributes:
        written: the results, in the order of the inputs.
        failed: input -> reason.
        seconds: reading, computing and writing.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def collect(inputs: Sequence[str | Path], out: Path) -> tuple[list[Job], dict[str, str]]:
    """List the pictures of folders and files, and name their results.

    A result keeps its input's path relative to the folder that was given, with the suffix .png. Where two inputs
    differ in the suffix only, results keep the old suffix too (a.jpg.png). With several folders each gets a sub-folder
    of its own name.

    Returns:
        The jobs, and path -> reason for files that promise a picture and hold none.

    Raises:
        DataError: an input is missing or empty, or results would collide with each other or overwrite an input.
    """
    found: list[tuple[Path, PurePosixPath]] = []
    rejected: dict[str, str] = {}
    folders = sum(Path(source).is_dir() for source in inputs)
    for source in map(Path, inputs):
        if source.is_file():
            found.append((source, PurePosixPath(source.name)))
            continue
        folder = scan(source)
        prefix = PurePosixPath(os.path.basename(os.path.abspath(source))) if folders > 1 else PurePosixPath()
        found += [(path, prefix / name) for path, name in zip(folder.paths, folder.names, strict=True)]
        rejected |= {printable(folder.root / name): why for name, why in folder.rejected.items()}
    stems: dict[PurePosixPath, int] = {}
    for _, name in found:
        stems[name.with_suffix("")] = stems.get(name.with_suffix(""), 0) + 1
    jobs: list[Job] = []
    for path, name in found:
        alone = stems[name.with_suffix("")] == 1
        jobs.append(Job(path, (out / (name.with_suffix(".png") if alone else name.with_name(name.name + ".png")),)))
    check_targets(jobs)
    return jobs, rejected


def several(jobs: Sequence[Job], labels: Sequence[str], also: Iterable[Path] = ()) -> list[Job]:
    """The same jobs with a result for each label, which stands at the end of its name: face.png, face-s00.png.

    Args:
        jobs: from `collect`.
        labels: one for each result of a picture.
        also: further files that are read and must not be overwritten.

    Raises:
        DataError: results would collide with each other or overwrite an input.
    """
    spread = [
        Job(
            job.source,
            tuple(target.with_name(f"{target.stem}{label}.png") for target in job.targets for label in labels),
        )
        for job in jobs
    ]
    check_targets(spread, also)
    return spread


def check_targets(jobs: Sequence[Job], also: Iterable[Path] = ()) -> None:
    """Refuse jobs whose results would collide with each other or overwrite an input.

    Args:
        jobs: all that belong together.
        also: further files that are read and must not be overwritten.

    Raises:
        DataError: that is so.
    """
    taken: dict[Path, Path] = {}
    sources = {os.path.realpath(path) for path in [*(job.source for job in jobs), *also]}
    for job in jobs:
        for target in job.targets:
            if target in taken:
                raise DataError(
                    f"{printable(taken[target])} and {printable(job.source)} would both become {printable(target)}: "
                    "translate them into different folders"
                )
            if os.path.realpath(target) in sources:
                raise DataError(f"{printable(target)}: the result would overwrite an input; choose another --out")
            taken[target] = job.source


def check_writable(out: Path) -> None:
    """Make the output folder and try to write in it.

    Raises:
        AnifastError: that does not work.
    """
    if out.exists() and not out.is_dir():
        raise AnifastError(f"{printable(out)}: the output folder is a file; choose another --out")
    probe = out / ".anifast-probe"
    write_text(probe, "")
    probe.unlink(missing_ok=True)


def _prepare(path: Path, size: int, how: str, multiple: int) -> tuple[Tensor, tuple[int, int] | None]:
    """A picture as float 3,H,W, and the height and width that the result is cut to."""
    image = read_image(path)
    if size:
        image = resize(image, size, how)
        return to_float(to_tensor(image)), (size, size)
    pixels = to_float(to_tensor(image))
    height, width = pixels.shape[1:]
    down, right = (max(-length % multiple, 8 - length) for length in (height, width))
    if min(height, width) < 2 or down >= height or right >= width:
        raise ImageError(f"{printable(path)}: {width}x{height} is too small to be translated at its own size")
    return F.pad(pixels, (0, right, 0, down), mode="reflect"), (height, width)


def _batches(
    jobs: Sequence[Job],
    read: Callable[[Job], Future[tuple[Tensor, tuple[int, int] | None]]],
    batch: int,
    ahead: int,
    unreadable: Callable[[Job, ImageError], None],
) -> Iterator[list[tuple[Job, Tensor, tuple[int, int] | None]]]:
    """Pictures of one size, up to `batch` at a time, in order; what cannot be read is told to `unreadable`."""
    waiting: deque[tuple[Job, Future[tuple[Tensor, tuple[int, int] | None]]]] = deque()
    upcoming = iter(jobs)
    group: list[tuple[Job, Tensor, tuple[int, int] | None]] = []
    while True:
        while len(waiting) < ahead and (job := next(upcoming, None)) is not None:
            waiting.append((job, read(job)))
        if not waiting:
            break
        job, future = waiting.popleft()
        try:
            pixels, shape = future.result()
        except ImageError as error:
            unreadable(job, error)
            continue
        if group and (len(group) == batch or group[0][1].shape != pixels.shape):
            yield group
            group = []
        group.append((job, pixels, shape))
    if group:
        yield group


def _each(results: Tensor | Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Single results 3,H,W of one tensor N,3,H,W or several, and whether they are finite."""
    for part in [results] if isinstance(results, Tensor) else results:
        yield from zip(part, torch.isfinite(part).flatten(1).all(1).tolist(), strict=True)


def translate_files(
    translate: Callable[[Tensor], Tensor | Iterable[Tensor]],
    jobs: Sequence[Job],
    *,
    read: Callable[[Path], Tensor] | None = None,
    size: int = 0,
    how: str = "crop",
    multiple: int = 1,
    batch: int = 8,
    label: str = "translate",
    smaller: str = "--batch or --size",
) -> Outcome:
    """Translate pictures and write the results; a picture that cannot be read is noted and the others go on.

    So is one whose result is not finite.

    Args:
        translate: N,3,H,W in [-1, 1], or what `read` gives -> the results, each of the same height and width: one
            tensor of all, or several that are asked for one after the other, so that no more of them than one are in
            the memory. First come those of the first picture, as many as its job has targets, then those of the second.
        jobs: from `collect` or `several`.
        read: gives what `translate` takes of a picture, in place of how one is read otherwise; results are not cut.
        size: side to which each picture is brought; 0 keeps its own size: reflected on the right and at the bottom up
            to a multiple of `multiple`, and cut back.
        how: "crop" (largest centred square) or "stretch".
        multiple: of which sides must be.
        batch: pictures of one size at once.
        label: of the progress bar, which counts results.
        smaller: what takes less memory, for the message where it does not suffice.

    Raises:
        AnifastError: a result cannot be written, or the memory does not suffice.
    """
    outcome = Outcome()
    workers = max(1, min(4, os.cpu_count() or 1))
    total = sum(len(job.targets) for job in jobs)
    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool, Progress(total, label) as bar:
        writing: deque[tuple[Path, Future[None]]] = deque()

        def prepared(path: Path) -> tuple[Tensor, tuple[int, int] | None]:
            return _prepare(path, size, how, multiple) if read is None else (read(path), None)

        def reading(job: Job) -> Future[tuple[Tensor, tuple[int, int] | None]]:
            return pool.submit(prepared, job.source)

        def written(leave: int) -> None:
            while len(writing) > leave:
                path, future = writing.popleft()
                future.result()
                outcome.written.append(path)

        def failed(job: Job, why: str, results: int) -> None:
            outcome.failed.setdefault(printable(job.source), why)
            bar.update(results, f"{len(outcome.failed)} failed")

        def unreadable(job: Job, error: ImageError) -> None:
            failed(job, str(error), len(job.targets))

        started = time.perf_counter()
        try:
            with enough_memory(batch, f" of side {size}" if size else "", smaller):
                for group in _batches(jobs, reading, batch, 2 * batch + workers, unreadable):
                    places = [(job, target, shape) for job, _, shape in group for target in job.targets]
                    results = _each(translate(torch.stack([pixels for _, pixels, _ in group])))
                    for (job, target, shape), (result, finite) in zip(places, results, strict=True):
                        if finite:
                            whole = result if shape is None else result[:, : shape[0], : shape[1]]
                            writing.append((target, pool.submit(save_png, whole, target)))
                            written(2 * batch)
                            bar.update()
                        else:
                            which = f" -> {printable(target.name)}" if len(job.targets) > 1 else ""
                            failed(job, f"{printable(job.source)}{which}: {_NOT_FINITE}", 1)
                written(0)
        finally:
            pool.shutdown(cancel_futures=True)
        outcome.seconds = time.perf_counter() - started
    return outcome

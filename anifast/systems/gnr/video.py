"""Painting a video with a trained GANs N' Roses: `anifast gnr video RUN IN OUT`.

The part of the frames that a face is in is found once and painted frame by frame. Every frame's content is read once;
its styles stay (fixed), drift (blend) or jump along the style's main directions (eig).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anifast.data.faces import Box, FaceDetector, around, middle
from anifast.errors import AnifastError, DataError
from anifast.systems import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anifast.data.video import Frame, VideoInfo

MODES = ("fixed", "blend", "eig")
GRID_STYLES = 8
"""Styles of --grid unless others are asked for: with the source in the middle they make a sheet of 3 x 3."""

BLEND_SECONDS = 0.7
"""Standard deviation, in time, of the Gaussian that smooths the noise of mode blend."""

EIG_STRENGTH = 3.0
"""How far mode eig moves w along a direction."""

WITHIN = 5.0
"""Seconds from the beginning in which a face is looked for."""

_TRY_EVERY = 0.1  # seconds between the frames that are looked at, as neighbours look the same
# A box found again replaces the one before if it differs by this part of the side; less would only tremble.
_MOVED = 0.15
_LARGEST_SIDE = 8192  # of a sheet; encoders and players end soon after


class Model(Protocol):
    """What is needed of a `Translator`."""

    @property
    def size(self) -> int:
        """The side of its pictures."""

    @property
    def latent_dim(self) -> int:
        """Length of a style code."""

    def contents(self, images: Tensor, to: str = "B") -> Tensor:
        """Content maps of pictures."""

    def latents(self, styles: Tensor, to: str = "B", truncation: float = 1.0) -> Tensor:
        """The w of style codes."""

    def paint(self, content: Tensor, w: Tensor, to: str = "B") -> Tensor:
        """Pictures."""

    def directions(self, to: str = "B", count: int | None = None) -> Tensor:
        """Directions in w."""


Styling = Callable[[Sequence[int], Sequence[float]], "Tensor"]
"""Numbers and seconds of n frames -> w [n, S, 512] that they are painted with."""


# --- styles over time ------------------------------------------------------------------------------------------------


def smooth_noise(frames: int, styles: int, latent_dim: int, sigma: float, seed: int = 0) -> Tensor:
    """Style codes that drift: noise, smoothed by a Gaussian along time, which is a ring; its RMS is 1.

    What is kept is the result alone, 4 bytes a number; it is smoothed in float64, one style after the other.

    Args:
        frames: at least 1.
        styles: how many drift side by side.
        latent_dim: length of a code.
        sigma: standard deviation of the Gaussian in frames, above 0.
        seed: of the noise.

    Returns:
        float32 [frames, styles, latent_dim]; the last frame goes over into the first.
    """
    import torch

    codes = torch.randn(frames, styles, latent_dim, generator=torch.Generator().manual_seed(seed))
    # The Gaussian's own transform: exact on a ring of any length, and no kernel has to be cut off.
    transfer = torch.exp(-2 * (math.pi * sigma * torch.fft.rfftfreq(frames, dtype=torch.float64)) ** 2)
    squares = torch.zeros((), dtype=torch.float64)
    for style in codes.unbind(1):
        smooth = torch.fft.irfft(torch.fft.rfft(style.double(), dim=0) * transfer[:, None], n=frames, dim=0)
        squares += smooth.square().sum()
        style.copy_(smooth)
    return codes.mul_(float((codes.numel() / squares).sqrt()))


def fixed(model: Model, styles: Tensor, to: str = "B", truncation: float = 1.0) -> Styling:
    """Every frame in the same styles [S, latent_dim]."""
    w = model.latents(styles, to, truncation)
    return lambda numbers, seconds: w.expand(len(numbers), *w.shape)


def blend(model: Model, codes: Tensor, to: str = "B", truncation: float = 1.0) -> Styling:
    """Frame n in the styles `codes[n]`, of [frames, S, latent_dim]; they begin again where a video has more frames."""

    def styling(numbers: Sequence[int], seconds: Sequence[float]) -> Tensor:
        chosen = codes[[number % len(codes) for number in numbers]]
        return model.latents(chosen.flatten(0, 1), to, truncation).unflatten(0, chosen.shape[:2])

    return styling


def eig(model: Model, styles: Tensor, beat: float, to: str = "B", truncation: float = 1.0) -> Styling:
    """Styles [S, latent_dim] that are moved along another direction at each beat.

    Up to the first beat they are as they are; then w + 3 x the second direction (the first one is skipped, as the
    authors do), then w + 3 x the third, and so on; after the last comes the second again.

    Args:
        model: gives w and the directions.
        styles: the styles that are moved.
        beat: seconds between two beats.
        to: the domain that is painted.
        truncation: of the styles.
    """
    import torch

    w, directions = model.latents(styles, to, truncation), model.directions(to)

    def styling(numbers: Sequence[int], seconds: Sequence[float]) -> Tensor:
        moves = [torch.zeros_like(directions[0])]
        moves += [EIG_STRENGTH * directions[k] for k in range(1, len(directions))]
        # a frame on the beat belongs to it, however its time is rounded
        beats = [max(0, math.floor(second / beat + 1e-6)) for second in seconds]
        chosen = [0 if b == 0 else 1 + (b - 1) % (len(moves) - 1) for b in beats]
        return w + torch.stack([moves[k] for k in chosen])[:, None]

    return styling


# --- the face --------------------------------------------------------------------------------------------------------


def first_face(frames: Iterator[Frame], detector: FaceDetector, name: str = "the video") -> tuple[Box, float]:
    """The box around the face in the first frame where one is found, and that frame's seconds.

    Args:
        frames: from the beginning; they are taken for `WITHIN` seconds at most.
        detector: finds faces.
        name: of the video, for the message.

    Raises:
        DataError: there is none.
    """
    tried: float | None = None
    begin: float | None = None
    for frame in frames:
        begin = frame.seconds if begin is None else begin
        if frame.seconds - begin > WITHIN:
            break
        if tried is not None and frame.seconds - tried < _TRY_EVERY:
            continue
        tried = frame.seconds
        face = detector.find(frame.pixels)
        if face is not None:
            height, width = frame.pixels.shape[:2]
            return around(face, width, height), frame.seconds
    raise DataError(
        f"{name}: no face found in its first {WITHIN:g} seconds (faces are found that look into the camera; drawn ones "
        "mostly not). Say where it is by --box X,Y,SIDE, or take the middle of the frames by --box none"
    )


class FaceBox:
    """Which part of each frame is painted: always the same, or looked for again every few seconds.

    Args:
        box: the first one.
        detector: finds faces, where they are looked for again.
        every: seconds after which they are; None: never.
    """

    def __init__(self, box: Box, detector: FaceDetector | None = None, every: float | None = None) -> None:
        self.box = box
        self._detector, self._every = detector, every
        self._next = every or 0.0
        #: How often the box has moved.
        self.moves = 0

    def __call__(self, frame: Frame) -> Box:
        """The box of a frame; frames come in their order."""
        if self._detector is not None and self._every is not None and frame.seconds >= self._next:
            self._next = (math.floor(frame.seconds / self._every) + 1) * self._every
            face = self._detector.find(frame.pixels)
            if face is not None:
                height, width = frame.pixels.shape[:2]
                found, old = around(face, width, height), self.box
                apart = max(
                    abs(found.x + found.side / 2 - old.x - old.side / 2),
                    abs(found.y + found.side / 2 - old.y - old.side / 2),
                    abs(found.side - old.side),
                )
                if apart > _MOVED * old.side:
                    self.box = found
                    self.moves += 1
        return self.box


# --- painting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """Where the pictures of a frame stand: `styles` of them, and the source with `grid`.

    The sheet is as square as it can be. The source is in the middle where a middle is, else it comes first.
    """

    styles: int
    grid: bool
    size: int

    @property
    def columns(self) -> int:
        """Pictures in a row."""
        return math.ceil(math.sqrt(self.styles + self.grid))

    @property
    def rows(self) -> int:
        """Rows of pictures."""
        return math.ceil((self.styles + self.grid) / self.columns)

    @property
    def source(self) -> int:
        """The number of the source's place, counted row by row."""
        return self.rows * self.columns // 2 if self.rows % 2 and self.columns % 2 else 0

    def compose(self, source: NDArray[np.uint8], painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """size,size,3 and styles,size,size,3 -> rows * size, columns * size, 3; places left over are black."""
        import numpy as np

        if not self.grid:
            return painted[0]
        places = np.zeros((self.rows * self.columns, self.size, self.size, 3), np.uint8)
        pictures = [*painted[: self.source], source, *painted[self.source :]]
        places[: len(pictures)] = pictures
        shape = (self.rows, self.columns, self.size, self.size, 3)
        return places.reshape(shape).swapaxes(1, 2).reshape(self.rows * self.size, self.columns * self.size, 3)


@dataclass(frozen=True)
class _Cut:
    """A frame's part that is painted, and when it is shown."""

    number: int
    pts: int
    seconds: float
    pixels: NDArray[np.uint8]


@dataclass
class Outcome:
    """What became of a video.

    Attributes:
        frames: that were written.
        damaged: pieces of the source that could not be decoded; their frames are left out.
        notes: what became of the sound.
        seconds: reading, computing and writing.
    """

    frames: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _cuts(frames: Iterator[Frame], where: Callable[[Frame], Box], size: int, group: int) -> Iterator[list[_Cut]]:
    """The parts of frames, brought to the model's size, `group` at a time."""
    import numpy as np
    from PIL import Image

    from anifast.data.folders import resize

    cuts: list[_Cut] = []
    for number, frame in enumerate(frames):
        part = Image.fromarray(np.ascontiguousarray(where(frame).cut(frame.pixels)))
        cuts.append(_Cut(number, frame.pts, frame.seconds, np.asarray(resize(part, size))))
        if len(cuts) == group:
            yield cuts
            cuts = []
    if cuts:
        yield cuts


def translate_video(
    model: Model,
    info: VideoInfo,
    out: Path,
    styling: Styling,
    where: Callable[[Frame], Box],
    *,
    styles: int = 1,
    grid: bool = False,
    to: str = "B",
    batch: int = 8,
) -> Outcome:
    """Paint a video and write the result, whole or not at all.

    Memory does not depend on its length, but for some bytes a frame in blend (the codes of `smooth_noise`).

    Args:
        model: paints.
        info: the source.
        out: the new video.
        styling: gives the styles of frames; called for frames in their order.
        where: the part of a frame that is painted; called for frames in their order, in another thread.
        styles: how many styles `styling` gives; one without `grid`.
        grid: all styles on one sheet with the source.
        to: the domain that is painted.
        batch: pictures to paint at once.

    Raises:
        AnifastError: the video cannot be read or written, the memory does not suffice, or a result is not finite.
    """
    import numpy as np
    import torch

    from anifast.data.folders import to_float, to_uint8
    from anifast.data.video import VideoReader, VideoWriter, read_ahead, writing
    from anifast.engine.precision import enough_memory
    from anifast.progress import Progress

    sheet, outcome, reader = Sheet(styles, grid, model.size), Outcome(), VideoReader(info)
    width, height = (sheet.columns * model.size, sheet.rows * model.size) if grid else (model.size, model.size)
    cuts = _cuts(iter(reader), where, model.size, max(1, batch // styles))

    def paint(group: list[_Cut]) -> Tensor:
        images = to_float(torch.from_numpy(np.stack([cut.pixels for cut in group])).permute(0, 3, 1, 2))
        w = styling([cut.number for cut in group], [cut.seconds for cut in group]).flatten(0, 1)
        content = model.contents(images, to).repeat_interleave(styles, 0)
        painted = [model.paint(*part, to) for part in zip(content.split(batch), w.split(batch), strict=True)]
        result = torch.cat(painted)
        if not torch.isfinite(result).all():
            raise AnifastError(
                f"{group[0].seconds:.1f} s into the video the model's result is not finite (NaN); its weights may be "
                "damaged, or try --precision fp32"
            )
        return to_uint8(result).cpu().unflatten(0, (len(group), styles)).permute(0, 1, 3, 4, 2)

    def write(writer: VideoWriter, group: list[_Cut], painted: Tensor) -> None:
        for cut, pictures in zip(group, painted.numpy(), strict=True):
            writer.write(sheet.compose(cut.pixels, pictures), cut.pts)

    started = time.perf_counter()
    with (
        enough_memory(batch, f" of side {model.size}", "--batch"),
        writing(out, info, width, height) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="writing") as pool,
        Progress(info.frames, "video", unit="frame") as bar,
        closing(read_ahead(cuts, 2)) as groups,
    ):
        outcome.notes = list(writer.notes)
        waiting: deque[Future[None]] = deque()
        for group in groups:
            waiting.append(pool.submit(write, writer, group, paint(group)))
            while len(waiting) > 2:
                waiting.popleft().result()
            outcome.frames += len(group)
            bar.update(len(group))
        while waiting:
            waiting.popleft().result()
    outcome.damaged = reader.damaged
    outcome.seconds = time.perf_counter() - started
    return outcome


# --- command line ----------------------------------------------------------------------------------------------------


def _box(text: str) -> Box | None:
    """X,Y,SIDE, or none; nothing where the word behind --box begins with -, which is taken for another option."""
    if text == "none":
        return None
    try:
        x, y, side = (int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{f'{text!r}: ' if text else ''}expected X,Y,SIDE in whole pixels from 0, as in 120,40,256, or none"
        ) from None
    return Box(x, y, side)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `anifast gnr video`."""
    parser.description = (
        "Paint the face of a video frame by frame. The result shows the painted box only, at the model's size (with "
        "--grid a sheet of such pictures), and not the frame around it. The sound, the frame rate and the timing are "
        "kept. Frames that are too damaged to be read are left out; the video is written all the same, and the exit "
        "code is 1."
    )
    parser.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or an author's file")
    parser.add_argument("input", type=Path, metavar="IN", help="a video of any kind that FFmpeg reads")
    parser.add_argument("out", type=Path, metavar="OUT", help="the result: .mp4, .m4v, .mov, .mkv (H.264), .webm (VP9)")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="fixed",
        help="fixed: the same styles all the time; blend: they drift; eig: they jump along the main directions of "
        "style, one after the other [fixed]",
    )
    parser.add_argument(
        "--style",
        nargs="+",
        metavar="STYLE",
        help=f"not with blend: {options.STYLE_SOURCES} [random]",
    )
    parser.add_argument(
        "--styles", type=int, metavar="N", help=f"how many random styles, several with --grid [1; {GRID_STYLES}]"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of random styles [0]")
    parser.add_argument("--grid", action="store_true", help="all styles on one sheet, with the source in the middle")
    parser.add_argument(
        "--box",
        type=_box,
        nargs="?",  # so that _box and not argparse tells what --box -1,0,50 is
        const="",
        default=argparse.SUPPRESS,
        metavar="X,Y,SIDE",
        help="the square that is painted: left, top, side in pixels of the upright frame; none: the largest in the "
        'middle [around the first face found, which needs pip install "anifast[faces]"]',
    )
    parser.add_argument(
        "--redetect", type=float, metavar="SECONDS", help="look for the face again so often and follow it [never]"
    )
    parser.add_argument("--beat", type=float, metavar="SECONDS", help="between two jumps of eig [0.5]")
    options.add_to(parser)
    options.add_truncation(parser)
    options.add_resize(parser, "pictures of --style")
    options.add_computing(parser)


def _check(args: argparse.Namespace) -> None:
    """What can be told before anything is opened.

    Raises:
        AnifastError: options that cannot be, or not together.
    """
    if args.batch < 1:
        raise AnifastError(f"--batch {args.batch}: at least 1")
    for name in ("redetect", "beat"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise AnifastError(f"--{name} {value:g}: a number of seconds above 0")
    if args.beat is not None and args.mode != "eig":
        raise AnifastError(f"--beat {args.beat:g}: belongs to --mode eig, and this is {args.mode}")
    if args.redetect is not None and "box" in args:
        raise AnifastError("--redetect looks for the face again and --box says where it is; give one of them")
    if args.style and args.mode == "blend":
        raise AnifastError("--style: --mode blend drifts through random styles; leave it out, or take fixed or eig")


def _find_box(args: argparse.Namespace, info: VideoInfo) -> tuple[FaceBox, str]:
    """Which part of the frames is painted, and that in words.

    Raises:
        AnifastError: --box is outside the frame, there is no face, or no detector.
    """
    from anifast.data.folders import printable
    from anifast.data.video import VideoReader

    if "box" in args:
        box = args.box or middle(info.width, info.height)
        if not box.within(info.width, info.height):
            raise AnifastError(
                f"--box {box}: is not inside the frames of {printable(args.input)}, which are "
                f"{info.width}x{info.height} (X + SIDE at most the width, Y + SIDE at most the height)"
            )
        return FaceBox(box), f"box {box}"
    try:
        detector = FaceDetector()
    except AnifastError as error:
        raise AnifastError(
            f"{error}. Or say where the face is by --box X,Y,SIDE, or take the middle of the frames by --box none"
        ) from error
    box, seconds = first_face(iter(VideoReader(info)), detector, printable(args.input))
    return FaceBox(box, detector, args.redetect), f"face at {seconds:.1f} s, box {box}"


def main(args: argparse.Namespace) -> int:
    """Run `anifast gnr video`; the exit code.

    Raises:
        AnifastError: the video cannot be painted; or, once the result is written, that frames are missing in it.
    """
    _check(args)
    from anifast.data import video
    from anifast.data.folders import printable
    from anifast.engine import precision, state
    from anifast.engine.translate import check_writable
    from anifast.progress import duration
    from anifast.systems.commands import check_out, not_an_input
    from anifast.systems.gnr.cli import load_model
    from anifast.systems.gnr.styles import codes, gather
    from anifast.systems.styles import check_truncation

    truncation = check_truncation(args.truncation)
    video.check_suffix(args.out)
    check_out(args.out, flag="")
    not_an_input(args.out, [args.input, args.model, *(args.style or ())])
    check_writable(args.out.parent)
    info = video.probe(args.input)
    where, told = _find_box(args, info)
    model = load_model(args.model, args.device, args.precision)
    count = GRID_STYLES if args.grid and args.styles is None and not args.style else args.styles
    with state.about(args.model):
        model.require(args.to)
        styles = gather(
            model, args.style or (), to=args.to, count=count, seed=args.seed, how=args.resize, batch=args.batch
        )
    if len(styles) > 1 and not args.grid:
        raise AnifastError(f"{len(styles)} styles and one picture a frame: add --grid, or ask for one style")
    sheet = Sheet(len(styles), args.grid, model.size)
    if sheet.columns * model.size > _LARGEST_SIDE:
        raise AnifastError(f"{len(styles)} styles: a sheet of {sheet.columns * model.size} pixels; ask for fewer")
    for note in info.notes:
        print(f"anifast: warning: {printable(args.input)}: {note}", file=sys.stderr)
    rate = f"{float(info.rate):.2f}".rstrip("0").rstrip(".")
    print(f"{info.frames} frames of {info.width}x{info.height}, {rate} a second, {duration(info.seconds)}; {told}")
    average = ", averaged weights" if model.averaged else ""
    amount = "1 style" if len(styles) == 1 else f"{len(styles)} styles"
    print(f"{args.mode}, {amount} -> {args.to}{average}, {precision.describe(model.device, args.precision)}")
    if args.mode == "blend":
        sigma = BLEND_SECONDS * float(info.rate)
        noise = smooth_noise(info.frames, len(styles), model.latent_dim, sigma, args.seed or 0)
        styling = blend(model, noise, args.to, truncation)
    elif args.mode == "eig":
        styling = eig(model, codes(styles), args.beat or 0.5, args.to, truncation)
    else:
        styling = fixed(model, codes(styles), args.to, truncation)
    outcome = translate_video(
        model, info, args.out, styling, where, styles=len(styles), grid=args.grid, to=args.to, batch=args.batch
    )
    moved = [f"the box moved {where.moves}x"] if args.redetect is not None else []
    extra = "".join(f"; {note}" for note in [*outcome.notes, *moved])
    speed = outcome.frames / max(outcome.seconds, 1e-9)
    print(f"{outcome.frames} frames in {outcome.seconds:.1f} s, {speed:.1f} frames/s{extra} -> {args.out}")
    if outcome.damaged:
        raise AnifastError(
            f"{printable(args.input)}: damaged pieces that could not be decoded: {outcome.damaged}; their frames are "
            f"left out of {printable(args.out)}, which is whole otherwise"
        )
    return 0

"""Videos: reading frames and writing them again with the sound as it was. Needs PyAV, the extra `video`.

However long a video is, a few frames of it are in memory at a time. Frames keep the moments they are shown at, so that
variable frame rates stay what they are and the sound stays in step.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anifast.data.folders import printable, sniff
from anifast.errors import AnifastError, DataError
from anifast.files import atomic_path

Item = TypeVar("Item")

FORMATS: dict[str, str] = {
    ".mp4": "libx264",
    ".m4v": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
}
"""Suffixes of the videos that can be written, and the encoder of each."""

# Near what the eye can tell from the original; faces of 256 pixels take some 1 MB a minute per second of rate 30.
_QUALITY = {
    "libx264": {"crf": "18", "preset": "medium"},
    "libvpx-vp9": {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
}
_BT709 = 1  # the number of this standard's matrix, primaries and transfer function in FFmpeg
_TV_RANGE = 1
_HDR = (16, 18)  # transfer functions PQ and HLG
_REMUX = "copy it into a new file, as in: ffmpeg -i IN -c copy OUT.mp4"


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, from `probe`.

    Attributes:
        path: the file.
        width: of a frame as it is shown: turned upright, with square pixels; `height` likewise.
        frames: how many there are, counted.
        rate: frames per second, the mean where it varies.
        time_base: seconds of the unit that `Frame.pts` counts in.
        start: where the file's clock stands when the first of picture and sound begins, in seconds, at least 0.
        seconds: how long it is.
        notes: what a user should know of this file.
    """

    path: Path
    width: int
    height: int
    frames: int
    rate: Fraction
    time_base: Fraction
    start: Fraction
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        pixels: uint8 H,W,3, upright RGB.
        pts: when it is shown, in units of `VideoInfo.time_base` from the video's beginning.
        seconds: `pts` in seconds.
    """

    pixels: NDArray[np.uint8]
    pts: int
    seconds: float


def need_av() -> Any:
    """PyAV.

    Raises:
        AnifastError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise AnifastError(f'videos need PyAV ({error}): pip install "anifast[video]"') from None
    return av


# --- reading ---------------------------------------------------------------------------------------------------------


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Look a video through without decoding it, apart from its first frame.

    Raises:
        DataError: it is missing, no video, damaged or cut off; the message tells which and the way out.
        AnifastError: PyAV is not installed.
    """
    av = need_av()
    shown = printable(path)
    with _opened(path) as container:
        stream = _pictures(container, shown)
        first: Any = None
        frames, end = 0, Fraction(0)
        try:
            for packet in container.demux():
                ours = packet.stream.index == stream.index
                if ours and first is None:
                    with suppress(av.error.InvalidDataError):  # what is behind may be whole
                        first = next(iter(packet.decode()), None)
                if packet.size:
                    frames += ours and not packet.is_discard
                    end = max(end, _end(packet))
        except av.error.FFmpegError as error:
            raise DataError(f"{shown}: is damaged behind frame {frames} ({error.strerror}). {_mend()}") from error
        if first is None or not frames:
            raise DataError(
                f"{shown}: not one of its frames can be decoded; the file is damaged, or of a kind that this PyAV lacks"
            )
        start = _start(container, stream)
        announced = Fraction(container.duration or 0, av.time_base)
        # An index stands before or behind the frames, so a file that was cut off can promise more than it has.
        if announced - (end - start) > max(Fraction(1, 2), announced / 50):
            raise DataError(
                f"{shown}: is cut off: it ends after {float(end - start):.1f} of {float(announced):.1f} seconds. "
                f"Get it anew; or, to use what there is, {_REMUX}"
            )
        if container.format.name == "gif" and frames == 1:
            raise DataError(f"{shown}: is a picture; use `anifast translate` for pictures")
        height, width = _upright(first, stream).shape[:2]
        rate = _exact(stream.average_rate) or _exact(stream.guessed_rate) or Fraction(25)
        return VideoInfo(
            Path(path),
            width,
            height,
            frames,
            rate,
            _exact(stream.time_base),
            start,
            float(end - start),
            tuple(_notes(container, stream, first)),
        )


def _mend() -> str:
    return f"Get it anew, or try to mend it: {_REMUX}"


def _exact(ratio: Any) -> Fraction:
    """A ratio of PyAV as Python's own; 0 where there is none."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(0)


def _end(packet: Any) -> Fraction:
    at = packet.pts if packet.pts is not None else packet.dts
    return Fraction(0) if at is None else (at + (packet.duration or 0)) * _exact(packet.time_base)


def _notes(container: Any, stream: Any, first: Any) -> Iterator[str]:
    if first.color_trc in _HDR:
        yield "its colours are of high dynamic range (HDR) and are taken as they are, which looks dull"
    others = len([s for s in container.streams.video if s.index != stream.index and not _cover(s)])
    subtitles = len(container.streams.subtitles)
    for count, what in ((others, "further video stream"), (subtitles, "subtitle stream")):
        if count:
            yield f"left out: {count} {what}{'s' if count > 1 else ''}"


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file as an input of PyAV."""
    av = need_av()
    shown = printable(path)
    try:
        with open(path, "rb") as handle:
            head = handle.read(32)
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{shown}: is a folder; give a video, or use `anifast translate` for pictures") from None
    except OSError as error:
        raise DataError(f"{shown}: the file cannot be read ({error.strerror}). Check its permissions") from error
    if not head:
        raise DataError(f"{shown}: the file is empty")
    kind = sniff(head)
    if kind not in (None, "GIF"):
        raise DataError(f"{shown}: is a picture ({kind}); use `anifast translate` for pictures")
    try:
        # The prefix keeps FFmpeg from taking what stands before a colon in a name for a protocol.
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise DataError(f"{shown}: is no video, or a damaged one ({error.strerror}). Get it anew") from error
    with container:
        yield container


def _cover(stream: Any) -> bool:
    """Whether it is the cover picture of a piece of music."""
    return bool(stream.disposition & need_av().stream.Disposition.attached_pic)


def _pictures(container: Any, shown: str) -> Any:
    """The stream of frames."""
    streams = [stream for stream in container.streams.video if not _cover(stream)]
    if not streams:
        what = "sound only" if container.streams.audio else f"{container.format.long_name or container.format.name}"
        raise DataError(f"{shown}: has no moving pictures in it ({what}); give a video")
    if streams[0].codec_context is None:
        raise DataError(f"{shown}: its frames are of a kind that this PyAV cannot decode; convert it to H.264")
    return streams[0]


def _sounds(container: Any) -> list[Any]:
    return list(container.streams.audio)


def _start(container: Any, stream: Any) -> Fraction:
    """When the first of picture and sound begins; what lies before 0 is lead-in that players skip."""
    streams = [stream, *_sounds(container)]
    starts = [s.start_time * _exact(s.time_base) for s in streams if s.start_time is not None]
    return max(Fraction(0), min(starts, default=Fraction(0)))


def _upright(frame: Any, stream: Any) -> NDArray[np.uint8]:
    """A decoded frame as uint8 H,W,3 the way it is shown: square pixels, turned and mirrored as the file demands."""
    width = max(1, round(frame.width * (_exact(stream.sample_aspect_ratio) or 1)))
    pixels: NDArray[np.uint8] = frame.reformat(width=width, height=frame.height, format="rgb24").to_ndarray()
    data = next((item for item in frame.side_data if item.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return pixels
    # x' = a x + c y, y' = b x + d y, all but translation; only quarter turns and mirrors are meant by it
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        pixels, (down, right) = pixels.transpose(1, 0, 2), (b, c)
    else:
        down, right = d, a
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


class VideoReader:
    """The frames of a video, one after the other; each loop over it begins anew.

    Args:
        info: from `probe`.
    """

    def __init__(self, info: VideoInfo) -> None:
        self.info = info
        #: Packets that could not be decoded in the last loop; their frames are left out.
        self.damaged = 0

    def __iter__(self) -> Generator[Frame, None, None]:
        """Give the frames in the order in which they are shown.

        Raises:
            DataError: the file can no longer be read, or frames change in size.
        """
        av = need_av()
        info, shown = self.info, printable(self.info.path)
        self.damaged = 0
        shift = round(info.start / info.time_base)
        step = max(1, round(1 / (info.rate * info.time_base)))
        last: int | None = None
        count = 0
        with _opened(info.path) as container:
            stream = _pictures(container, shown)
            stream.thread_type = "AUTO"
            try:
                for packet in container.demux(stream):
                    for frame in self._decoded(packet):
                        pixels = _upright(frame, stream)
                        count += 1
                        if pixels.shape[:2] != (info.height, info.width):
                            height, width = pixels.shape[:2]
                            raise DataError(
                                f"{shown}: frame {count} is {width}x{height} and those before {info.width}x"
                                f"{info.height}. Bring them to one size first, as in: "
                                f"ffmpeg -i IN -vf scale={info.width}:{info.height} OUT.mp4"
                            )
                        pts = frame.pts - shift if frame.pts is not None else (0 if last is None else last + step)
                        if last is not None and pts <= last:  # no two frames at once, as encoders demand
                            pts = last + 1
                        last = pts
                        yield Frame(pixels, pts, float(pts * info.time_base))
            except av.error.FFmpegError as error:
                raise DataError(f"{shown}: is damaged behind frame {count} ({error.strerror}). {_mend()}") from error

    def _decoded(self, packet: Any) -> list[Any]:
        """The frames that a packet completes; the last packet, which is empty, gives all that wait in the decoder."""
        while True:
            try:
                return list(packet.decode())
            except need_av().error.InvalidDataError:
                self.damaged += 1
                if packet.size or self.damaged > self.info.frames:
                    return []


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Give items that a thread of its own takes ahead; at most `depth` of them wait.

    Close it where not all items are taken (`contextlib.closing`), which ends the thread. An error among the items is
    raised in their place.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(more: bool, what: Any) -> bool:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put((more, what), timeout=0.1)
                return True
        return False

    def work() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                if not put(True, item):
                    break
        except BaseException as error:
            end = error
        finally:
            if isinstance(items, Generator):
                items.close()  # here, as its files were opened in this thread
        put(False, end)

    thread = threading.Thread(target=work, name="frames", daemon=True)
    thread.start()
    try:
        while True:
            more, what = waiting.get()
            if not more:
                if what is not None:
                    raise what
                return
            yield what
    finally:
        stopped.set()
        thread.join()


# --- writing ---------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Takes frames; made by `writing`."""

    def __init__(
        self, container: Any, source: Any, suffix: str, like: VideoInfo, width: int, height: int, shown: str
    ) -> None:
        av = need_av()
        self._container, self._shown, self._like = container, shown, like
        codec = FORMATS[suffix]
        if codec not in av.codecs_available:
            raise AnifastError(
                f"{shown}: this PyAV has no encoder {codec}; install its wheel: pip install --force-reinstall "
                "--only-binary av av"
            )
        self._size = (height, width)
        stream = container.add_stream(codec, rate=like.rate, options=dict(_QUALITY[codec]))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = like.time_base
        context.thread_count = 0
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _TV_RANGE
        self._stream = stream
        self._sound = _Sound(container, source, suffix, like.start)
        #: What became of the sound, in words.
        self.notes = tuple(self._sound.notes)

    def write(self, pixels: NDArray[np.uint8], pts: int) -> None:
        """Add a frame.

        Args:
            pixels: uint8 H,W,3 RGB of the size that was announced; an odd side gets one more row or column, its last.
            pts: when it is shown, in the source's time base; later than the frame before.

        Raises:
            ValueError: another size.
            AnifastError: the file cannot be written.
        """
        av = need_av()
        height, width = self._size
        if pixels.shape != (height, width, 3):
            raise ValueError(f"pixels: expected {height},{width},3, got {pixels.shape}")
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = pts, self._like.time_base
        with self._told():
            self._container.mux(self._stream.encode(frame))
            self._sound.until(pts * self._like.time_base)

    def finish(self) -> None:
        """Write what waits in the encoder and the rest of the sound."""
        with self._told():
            self._container.mux(self._stream.encode(None))
            self._sound.until(None)
            self._container.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except need_av().error.FFmpegError as error:
            disk = isinstance(error, OSError)
            out = "Free some space or choose another folder" if disk else "Try another container, as by a name in .mkv"
            raise AnifastError(f"cannot write {self._shown}: {error.strerror}. {out}") from error


class _Sound:
    """The audio streams of a video, taken over into another: copied, or encoded anew where the container demands it."""

    def __init__(self, out: Any, source: Any, suffix: str, start: Fraction) -> None:
        self._out, self._start = out, start
        self.notes: list[str] = []
        # of each stream: where it goes, and whether it is encoded
        self._targets: dict[int, tuple[Any, bool]] = {}
        streams = []
        held = [] if source is None else _sounds(source)
        for number, stream in enumerate(held, start=1):
            name = f"sound {number}" if len(held) > 1 else "sound"
            context = stream.codec_context
            if context is None:
                self.notes.append(f"{name} left out: of a kind that this PyAV does not know")
                continue
            if context.name in out.supported_codecs:
                target, encoded = out.add_stream_from_template(stream), False
                self.notes.append(f"{name} ({context.name}) copied")
            else:
                target, encoded = self._encoder(stream, "libopus" if suffix == ".webm" else "aac"), True
                self.notes.append(f"{name} encoded anew ({context.name} to {target.codec_context.name}) for {suffix}")
            self._targets[stream.index] = target, encoded
            streams.append(stream)
        self._packets: Iterator[Any] = source.demux(streams) if streams else iter(())
        self._next = next(self._packets, None)

    def _encoder(self, stream: Any, codec: str) -> Any:
        rates = need_av().Codec(codec, "w").audio_rates
        rate = stream.codec_context.sample_rate
        target = self._out.add_stream(codec, rate=rate if rates is None or rate in rates else 48000)
        target.codec_context.layout = stream.codec_context.layout.name
        return target

    def until(self, seconds: Fraction | None) -> None:
        """Take over what is heard until `seconds`, or all."""
        while self._next is not None:
            packet = self._next
            at = packet.dts if packet.dts is not None else packet.pts
            if seconds is not None and at is not None and at * _exact(packet.time_base) - self._start > seconds:
                return
            self._take(packet)
            self._next = next(self._packets, None)

    def _take(self, packet: Any) -> None:
        target, encoded = self._targets[packet.stream.index]
        shift = round(self._start / _exact(packet.time_base)) if packet.time_base else 0
        if not encoded:
            if packet.size:
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = target
                self._out.mux(packet)
            return
        last = not packet.size
        with suppress(need_av().error.InvalidDataError):  # a damaged piece is a moment of silence
            for frame in packet.decode():
                frame.pts = None if frame.pts is None else frame.pts - shift
                self._out.mux(target.encode(frame))
        if last:
            self._out.mux(target.encode(None))


def check_suffix(out: Path) -> None:
    """That a video can be written under this name.

    Raises:
        AnifastError: it cannot.
    """
    if out.suffix.lower() not in FORMATS:
        raise AnifastError(f"{printable(out)}: give a name that ends in {', '.join(FORMATS)}")


@contextmanager
def writing(out: str | os.PathLike[str], like: VideoInfo | int, width: int, height: int) -> Iterator[VideoWriter]:
    """Write a video with the sound, the time base and the rate of another, or one without sound, whole or not at all.

    H.264 in 4:2:0, which everything plays, or VP9 for .webm. Sound is copied as it is; where the container cannot hold
    its kind it is encoded anew, as `notes` of the writer tells.

    Args:
        out: the new file; its suffix is one of `FORMATS`.
        like: the video whose sound and clock it gets; or frames a second, and frames are shown at their numbers.
        width: of the frames; `height` likewise.

    Raises:
        AnifastError: the file cannot be written, or not under this name.
    """
    av = need_av()
    out = Path(out)
    check_suffix(out)
    suffix = out.suffix.lower()
    options = {"movflags": "+faststart"} if suffix in (".mp4", ".m4v", ".mov") else {}
    with atomic_path(out) as temporary, ExitStack() as held:
        if isinstance(like, VideoInfo):
            source = held.enter_context(_opened(like.path))
        else:
            source, like = None, VideoInfo(out, width, height, 0, Fraction(like), Fraction(1, like), Fraction(0), 0.0)
        try:
            container = av.open(f"file:{temporary}", "w", options=options)
        except av.error.FFmpegError as error:
            raise AnifastError(f"cannot write {printable(out)}: {error.strerror}; choose another name") from error
        try:
            writer = VideoWriter(container, source, suffix, like, width, height, printable(out))
            yield writer
            writer.finish()
        finally:
            with suppress(av.error.FFmpegError):  # told already, if it was not Ctrl-C
                container.close()

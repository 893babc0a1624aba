"""Small videos with sound, for the tests of reading, writing and painting them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anifast.data.portraits import sample_factors

SOUND_RATE = 48000
#: The tone of `make_video` begins here, in seconds: where it is heard tells whether the sound is in step.
ONSET = 0.5
Picture = NDArray[np.uint8]


def need_av() -> Any:
    return pytest.importorskip("av", reason='PyAV is not installed: pip install "anifast[video]"')


def need_cv2() -> Any:
    cv2 = pytest.importorskip("cv2", reason='OpenCV is not installed: pip install "anifast[faces]"')
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip(f'OpenCV {cv2.__version__} has no cascades: pip install "anifast[faces]" takes one that has')
    return cv2


@cache
def portrait(side: int) -> Picture:
    return np.asarray(sample_factors(3, "photo").draw(side))


def moving_face(number: int, width: int = 96, height: int = 64) -> Picture:
    """A drawn face that wanders over a slanting ground; every number gives another picture."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    ground = np.stack([across * 160 // width + 40, down * 160 // height + 40, (across + number) % 64 + 60], -1)
    picture = ground.astype(np.uint8)
    side = min(width, height) // 2
    left = (3 * number) % (width - side)
    picture[height // 4 : height // 4 + side, left : left + side] = portrait(side)
    return picture


def corners(number: int = 0, width: int = 48, height: int = 32) -> Picture:
    """Four quarters: red, green / blue, white."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = (220, 20, 20), (20, 220, 20)
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = (20, 20, 220), (235, 235, 235)
    return picture


def tone(seconds: float, pitch: float = 440.0) -> NDArray[np.float32]:
    """Silence until `ONSET`, then a tone."""
    t = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    return np.where(t < ONSET, 0.0, 0.3 * np.sin(2 * np.pi * pitch * t)).astype(np.float32)


def make_video(
    path: Path,
    *,
    frames: int = 24,
    rate: int = 24,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    draw: Callable[[int, int, int], Picture] = moving_face,
    time_base: Fraction | None = None,
    pts: Sequence[int] | None = None,
    sounds: Sequence[str] = ("aac",),
    sound_seconds: float | None = None,
    prepare: Callable[[Any], None] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of frames of width, height = `size`; "png" with rgb24 keeps every pixel as it was.

    Args:
        time_base: of `pts`, which stand for the even steps of `rate`.
        sounds: the codec of each stream of sound.
        prepare: gets the stream of pictures before the first one.
        options: of the container.
    """
    av = need_av()
    width, height = size
    unit = time_base or Fraction(1, rate)
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = stream.time_base = unit
        if prepare is not None:
            prepare(stream)
        tracks = [out.add_stream(name, rate=SOUND_RATE) for name in sounds]
        for track in tracks:
            track.codec_context.layout = "mono"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            frame.pts, frame.time_base = number if pts is None else pts[number], unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        wave = tone(frames / rate if sound_seconds is None else sound_seconds)[None]
        for track in tracks:
            for start in range(0, wave.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start : start + 1024]), "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
    return path


def moments(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds."""
    with need_av().open(str(path)) as container:
        return [Fraction(frame.pts) * Fraction(frame.time_base) for frame in container.decode(video=0)]


def packets(path: Path, stream: int = 0) -> list[tuple[bytes, Fraction]]:
    """The bytes and the seconds of every packet of a stream of sound."""
    with need_av().open(str(path)) as container:
        found = [packet for packet in container.demux(audio=stream) if packet.size]
        return [(bytes(packet), Fraction(packet.pts) * Fraction(packet.time_base)) for packet in found]


def onset(path: Path, stream: int = 0) -> float:
    """When the tone begins to be heard, in seconds."""
    with need_av().open(str(path)) as container:
        for frame in container.decode(audio=stream):
            wave = np.abs(frame.to_ndarray().astype(np.float64))
            if frame.format.name.startswith("s16"):
                wave /= 32768
            loud = np.flatnonzero(wave.reshape(-1) > 0.1)
            if len(loud):
                return float(Fraction(frame.pts) * Fraction(frame.time_base)) + loud[0] / frame.sample_rate
    raise AssertionError(f"{path}: no tone")


def pictures(path: Path) -> list[Picture]:
    """The frames as they are stored, RGB."""
    with need_av().open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

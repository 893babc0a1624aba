"""Videos: what is read is what is there, what is written keeps time and sound, and bad files give one clear error."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_videos import corners, make_video, moments, moving_face, need_av, onset, packets, pictures

from anifast.data import video
from anifast.data.video import VideoInfo, VideoReader, probe, read_ahead, writing
from anifast.errors import AnifastError, DataError

av = need_av()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of 24 frames with sound."""
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def rewrite(info: VideoInfo, out: Path) -> tuple[str, ...]:
    """The video once more, frame by frame; what became of its sound."""
    with writing(out, info, info.width, info.height) as writer:
        for frame in VideoReader(info):
            writer.write(frame.pixels, frame.pts)
    return writer.notes


def the_error(path: Path, kind: type[AnifastError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        probe(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# --- reading


def test_facts(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.frames, info.rate) == (96, 64, 24, 24)
    assert info.start == 0 and info.notes == ()
    # the sound's last packet, of 1024 samples, may reach over the picture's end
    assert 1.0 <= info.seconds <= 1.0 + 1024 / 48000


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts", ".webm"])
def test_every_frame_comes_in_its_order(suffix: str, tmp_path: Path) -> None:
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
    path = make_video(tmp_path / f"clip{suffix}", codec=codec, sounds=["libopus" if suffix == ".webm" else "aac"])
    info = probe(path)
    frames = list(VideoReader(info))
    assert info.frames == len(frames) == 24
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times)) and times[0] >= 0
    # the clock's unit is up to 1/24 s in .avi, which also counts a frame that delays the others
    assert all(abs(frame.seconds - number / 24) < 0.1 for number, frame in enumerate(frames))
    for number in (0, 11, 23):  # the face wanders by 3 pixels a frame, so a wrong frame differs clearly
        errors = [np.abs(frames[number].pixels.astype(int) - moving_face(n)).mean() for n in range(24)]
        assert int(np.argmin(errors)) == number


def test_pixels_are_exactly_those_of_a_lossless_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "odd.mov", codec="png", pixel_format="rgb24", size=(97, 65), frames=3)
    info = probe(path)
    assert (info.width, info.height) == (97, 65)
    for number, frame in enumerate(VideoReader(info)):
        assert frame.pixels.dtype == np.uint8
        assert np.array_equal(frame.pixels, moving_face(number, 97, 65))


def test_a_reader_begins_anew(clip: Path) -> None:
    reader = VideoReader(probe(clip))
    first = next(iter(reader))
    assert np.array_equal(first.pixels, next(iter(reader)).pixels)


def test_no_two_frames_at_once(tmp_path: Path) -> None:
    """Matroska counts milliseconds, which brings frames of 4000 a second together; encoders would refuse that."""
    unit = Fraction(1, 4000)
    path = make_video(tmp_path / "fast.mkv", frames=8, codec="ffv1", time_base=unit, pts=range(8), sounds=())
    assert len(set(moments(path))) < 8
    assert [frame.pts for frame in VideoReader(probe(path))] == list(range(8))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_frames_are_turned_upright(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "turned.mov",
        frames=2,
        size=(48, 32),
        codec="png",
        pixel_format="rgb24",
        draw=corners,
        sounds=(),
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    info = probe(path)
    # FFmpeg's matrix turns against the clock, then mirrors
    expected = np.rot90(corners(), degrees // 90)[:, :: -1 if mirrored else 1]
    (first, *_) = VideoReader(info)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.array_equal(first.pixels, expected)


def test_pixels_that_are_not_square_become_so(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = make_video(tmp_path / "wide.mkv", frames=2, size=(48, 64), draw=corners, prepare=wide)
    info = probe(path)
    assert (info.width, info.height) == (96, 64)
    assert next(iter(VideoReader(info))).pixels.shape == (64, 96, 3)


def test_damaged_pieces_are_counted_and_left_out(tmp_path: Path) -> None:
    # many frames, as decoders work on as many as there are cores at once
    path = make_video(tmp_path / "holes.mov", codec="png", pixel_format="rgb24", frames=100, size=(48, 32), sounds=())
    data = bytearray(path.read_bytes())
    marks = [i for i in range(len(data)) if data[i : i + 8] == b"\x89PNG\r\n\x1a\n"]
    assert len(marks) == 100
    for number in (2, 4):
        data[marks[number] : marks[number] + 8] = bytes(8)
    path.write_bytes(data)
    reader = VideoReader(probe(path))
    whole = [number for number in range(100) if number not in (2, 4)]
    for _ in range(2):
        frames = list(reader)
        assert reader.damaged == 2
        for number, frame in zip(whole, frames, strict=True):
            assert np.array_equal(frame.pixels, moving_face(number, 48, 32)), number
            assert frame.seconds == pytest.approx(number / 24)


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    images = [Image.fromarray(moving_face(n)) for n in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    info = probe(tmp_path / "a.gif")
    assert info.frames == 5 and info.rate == 10
    assert [frame.seconds for frame in VideoReader(info)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    def hdr(stream: Any) -> None:
        stream.codec_context.color_trc = 16

    path = make_video(tmp_path / "hdr.mkv", frames=2, prepare=hdr)
    (note,) = probe(path).notes
    assert "HDR" in note
    both = tmp_path / "both.mkv"
    with av.open(str(path)) as source, av.open(str(both), "w") as out:
        for number in (0, 0):
            out.add_stream_from_template(source.streams.video[number])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = out.streams[0]
                out.mux(packet)
    assert "left out: 1 further video stream" in probe(both).notes


# --- what cannot be read


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    assert "no such file" in the_error(tmp_path / "missing.mp4")
    assert "is a folder" in the_error(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "empty" in the_error(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video at all, " * 50)
    said = the_error(tmp_path / "text.mp4")
    assert "is no video, or a damaged one" in said and said.endswith("). Get it anew")
    for suffix in ("png", "jpg", "gif", "webp"):  # of whatever name
        Image.fromarray(moving_face(0)).save(tmp_path / "still.img", format={"jpg": "JPEG"}.get(suffix, suffix.upper()))
        said = the_error(tmp_path / "still.img")
        assert "is a picture" in said and "anifast translate" in said


def test_sound_alone_is_no_video(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        target = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    assert "no moving pictures in it (sound only)" in the_error(path)


def test_a_songs_cover_is_no_video(tmp_path: Path) -> None:
    wave = np.zeros((1, 1152), np.float32)
    with av.open(str(tmp_path / "song.mp3"), "w") as out:
        sound = out.add_stream("libmp3lame", rate=48000)
        sound.codec_context.layout = "mono"
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(corners(0, 32, 32), format="rgb24")))
        out.mux(cover.encode(None))
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 1152 * number, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    with av.open(str(tmp_path / "song.mp3")) as made:
        assert len(made.streams.video) == 1  # the cover is there
    assert "no moving pictures" in the_error(tmp_path / "song.mp3")


def test_a_video_that_was_cut_off(tmp_path: Path) -> None:
    ahead = make_video(tmp_path / "ahead.mp4", frames=72, options={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "ahead.mp4").write_bytes(ahead[: len(ahead) // 2])
    assert "is cut off: it ends after" in the_error(tmp_path / "ahead.mp4")
    behind = make_video(tmp_path / "behind.mp4", frames=72).read_bytes()
    (tmp_path / "behind.mp4").write_bytes(behind[: len(behind) // 2])
    assert "damaged" in the_error(tmp_path / "behind.mp4")
    matroska = make_video(tmp_path / "half.mkv", frames=72).read_bytes()
    (tmp_path / "half.mkv").write_bytes(matroska[: len(matroska) // 2])
    said = the_error(tmp_path / "half.mkv")
    assert "of 3.0 seconds" in said and "copy it into a new file, as in: ffmpeg -i IN -c copy OUT.mp4" in said


def test_no_frame_can_be_decoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "holes.mov", codec="png", pixel_format="rgb24", frames=3, sounds=())
    path.write_bytes(path.read_bytes().replace(b"\x89PNG\r\n\x1a\n", bytes(8)))
    assert "not one of its frames can be decoded" in the_error(path)


def test_frames_that_change_in_size(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.ts", frames=5, sounds=()).read_bytes()
    large = make_video(tmp_path / "large.ts", frames=5, size=(128, 96), sounds=()).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(small + large)
    seen = []
    with pytest.raises(DataError, match=r"frame 6 is 128x96 and those before 96x64\. Bring them to one size"):
        seen.extend(VideoReader(probe(path)))
    assert len(seen) == 5


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AnifastError, match=r'pip install "anifast\[video\]"'):
        probe(clip)


# --- writing


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov"])
def test_moments_and_sound_are_kept_exactly(suffix: str, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    assert rewrite(probe(clip), out) == ("sound (aac) copied",)
    assert moments(out) == moments(clip) == [Fraction(n, 24) for n in range(24)]
    assert packets(out) == packets(clip) and len(packets(out)) > 40
    info = probe(out)
    assert (info.frames, info.rate, info.width, info.height) == (24, 24, 96, 64)
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # players can begin before they have the whole file
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_varying_rate_is_kept(suffix: str, tmp_path: Path) -> None:
    unit = Fraction(1, 11988)
    pts = list(itertools.accumulate([400, 417, 800, 399, 1201] * 4, initial=0))
    source = make_video(tmp_path / "vfr.mp4", frames=21, time_base=unit, pts=pts, rate=24)
    out = tmp_path / f"out{suffix}"
    rewrite(probe(source), out)
    assert moments(source) == [n * unit for n in pts]
    if suffix == ".mp4":
        assert moments(out) == moments(source)
        return
    # Matroska counts milliseconds and begins no earlier than 0, where the sound's lead-in is put
    apart = [b - a for a, b in zip(moments(source), moments(out), strict=True)]
    assert max(apart) - min(apart) <= Fraction(1, 1000)
    assert abs(onset(out) - onset(source) - float(apart[0])) <= 0.002


def test_the_last_frame_stays_as_long_as_the_others(tmp_path: Path) -> None:
    source = make_video(tmp_path / "slow.mp4", frames=3, rate=2, sounds=())
    rewrite(probe(source), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == 1_500_000


@pytest.mark.parametrize(
    ("suffix", "sound", "note"),
    [
        (".mkv", "aac", "sound (aac) copied"),
        (".webm", "aac", "sound encoded anew (aac to libopus) for .webm"),
        (".mp4", "wavpack", "sound encoded anew (wavpack to aac) for .mp4"),
    ],
)
def test_sound_that_does_not_fit_is_encoded_anew(suffix: str, sound: str, note: str, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", sounds=[sound])
    out = tmp_path / f"out{suffix}"
    assert rewrite(probe(source), out) == (note,)
    shift = float(moments(out)[0] - moments(source)[0])
    # codecs smear the tone's beginning over a block, of at most 2048 samples here
    assert abs(onset(out) - onset(source) - shift) < 2048 / 48000


def test_all_streams_of_sound_and_a_clock_that_begins_late(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.ts", sounds=["aac", "mp2"])
    info = probe(source)
    assert info.start > 0
    out = tmp_path / "out.mp4"
    assert rewrite(info, out) == ("sound 1 (aac) copied", "sound 2 (mp2) copied")
    times = moments(out)
    assert [b - a for a, b in itertools.pairwise(times)] == [Fraction(1, 24)] * 23
    late = float(moments(source)[0] - times[0])
    assert late == pytest.approx(float(info.start), abs=0.03)  # the sound of .ts begins up to a packet earlier
    for stream in (0, 1):  # where a stream of .mp4 begins late, this is written in milliseconds
        assert abs(onset(source, stream) - late - onset(out, stream)) <= 0.001
    assert [data for data, _ in packets(out, 1)] == [data for data, _ in packets(source, 1)]


def test_sound_longer_than_the_picture_is_kept_whole(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=6, sound_seconds=3.0)
    rewrite(probe(source), tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4") == packets(source)
    assert packets(source)[-1][1] > Fraction(29, 10)


def test_a_video_without_sound(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", sounds=())
    assert rewrite(probe(source), tmp_path / "out.mp4") == ()
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams) == 1


def test_odd_sides_get_one_more(clip: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "out.mp4", probe(clip), 33, 47) as writer:
        writer.write(np.full((47, 33, 3), 90, np.uint8), 0)
    (picture,) = pictures(tmp_path / "out.mp4")
    assert (
        picture.shape == (48, 34, 3) and np.ptp(picture) <= 2
    )  # grey has no colour to lose; its value is rounded once


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_survive(suffix: str, clip: Path, tmp_path: Path) -> None:
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [120, 120, 120]], np.uint8)
    info = probe(clip)
    out = tmp_path / f"out{suffix}"
    with writing(out, info, 64, 64) as writer:
        for number, colour in enumerate(colours):
            writer.write(np.broadcast_to(colour, (64, 64, 3)), number * 512)
    found = [frame.pixels[32, 32] for frame in VideoReader(probe(out))]
    # Read by the older standard's matrix (BT.601) a colour would be off by this much; half of it tells the two apart.
    new, old = matrix(0.2126, 0.0722), matrix(0.299, 0.114)
    off = np.abs(colours @ new.T @ np.linalg.inv(old).T - colours).max(1)
    errors = np.abs(np.array(found, float) - colours).max(1)
    assert (errors[:4] < off[:4] / 2).all(), (off, errors)
    assert np.ptp(found[4]) <= 2  # one step of a colour difference
    with av.open(str(out)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)  # so that players choose the same


def matrix(red: float, blue: float) -> NDArray[np.float64]:
    """RGB -> Y, Cb, Cr of a standard with these weights of luma."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * blue), (np.array([1, 0, 0]) - luma) / (2 - 2 * red)])


def test_wrong_sizes_and_names(clip: Path, tmp_path: Path) -> None:
    info = probe(clip)
    with pytest.raises(ValueError, match="expected 64,96,3"), writing(tmp_path / "o.mp4", info, 96, 64) as writer:
        writer.write(np.zeros((96, 64, 3), np.uint8), 0)
    for name in ("out.avi", "out", "out.png"):
        with pytest.raises(AnifastError, match=r"give a name that ends in \.mp4"), writing(tmp_path / name, info, 8, 8):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_written_whole_or_not_at_all(error: type[BaseException], clip: Path, tmp_path: Path) -> None:
    info = probe(clip)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"what was there")
    with pytest.raises(error), writing(out, info, info.width, info.height) as writer:
        for frame in itertools.islice(VideoReader(info), 10):
            writer.write(frame.pixels, frame.pts)
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert out.read_bytes() == b"what was there"


def test_a_place_that_cannot_be_written(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnifastError, match="cannot write"), writing(tmp_path / "file" / "o.mp4", probe(clip), 8, 8):
        pass


def test_an_encoder_that_this_pyav_lacks(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(clip)
    monkeypatch.setitem(video.FORMATS, ".mp4", "nothing264")
    with pytest.raises(AnifastError, match="no encoder nothing264"), writing(tmp_path / "out.mp4", info, 8, 8):
        pass
    assert list(tmp_path.iterdir()) == []


# --- reading ahead


def test_reading_ahead_keeps_order_and_goes_no_further_than_told() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with closing(read_ahead(items(), 3)) as ahead:
        assert next(ahead) == 0
        end = time.monotonic() + 30
        while len(taken) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        # one is out, three wait, and one is in the thread's hand
        assert taken == list(range(5))
        assert list(ahead) == list(range(1, 20))


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise DataError("the second is damaged")

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(DataError, match="the second is damaged"):
        next(ahead)


def test_closing_ends_the_thread_and_what_it_reads() -> None:
    ended = []

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.append(True)

    ahead = read_ahead(items(), 2)
    next(ahead)
    ahead.close()
    assert ended == [True]
    assert not any(thread.name == "frames" for thread in threading.enumerate())

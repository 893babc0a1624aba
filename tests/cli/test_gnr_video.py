"""`anifast gnr video`: styles over time, the face box, what is written, and one clear error for what cannot be done."""

from __future__ import annotations

import math
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, leftovers, picture, the_error
from tiny_gnr import own_state, tiny_config
from tiny_videos import Picture, make_video, moments, need_av, need_cv2, packets
from torch import Tensor

from anifast import cli
from anifast.data.faces import Box, FaceDetector, middle
from anifast.data.folders import resize, to_float, to_uint8
from anifast.data.video import Frame, VideoReader, VideoWriter, probe
from anifast.errors import AnifastError, DataError
from anifast.systems.gnr import styles, video
from anifast.systems.gnr.styles import Style, save

need_av()
Capture = pytest.CaptureFixture[str]


class Fake:
    """A model that can be seen through: content is the picture, w begins with the style, painting adds its start."""

    size, latent_dim = 64, 8

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.on_paint: Callable[[Tensor], None] = lambda painted: None

    def contents(self, images: Tensor, to: str = "B") -> Tensor:
        assert images.shape[1:] == (3, 64, 64) and images.abs().max() <= 1
        return images

    def latents(self, styles: Tensor, to: str = "B", truncation: float = 1.0) -> Tensor:
        return torch.nn.functional.pad(styles * truncation, (0, 504))

    def directions(self, to: str = "B", count: int | None = None) -> Tensor:
        return torch.eye(512)[:6]

    def paint(self, content: Tensor, w: Tensor, to: str = "B") -> Tensor:
        self.batches.append(len(content))
        painted = (content + 0.25 * w[:, :3, None, None]).clamp(-1, 1)
        self.on_paint(painted)
        return painted


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of 24 frames with sound."""
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nobody trained."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(own_state(tiny_config()), path)
    return path


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """Gets the pictures that are given to a video's writer."""
    found: list[Picture] = []
    real = VideoWriter.write

    def write(self: VideoWriter, pixels: Picture, pts: int) -> None:
        found.append(pixels.copy())
        real(self, pixels, pts)

    monkeypatch.setattr(VideoWriter, "write", write)
    return found


def run(*words: object) -> int:
    return cli.main(command("gnr", "video", *words, "--device", "cpu"))


def cut(clip: Path, size: int = 64) -> list[Picture]:
    """The middle of every frame, as it goes to the model."""
    info = probe(clip)
    box = middle(info.width, info.height)
    return [np.asarray(resize(Image.fromarray(box.cut(f.pixels).copy()), size)) for f in VideoReader(info)]


def paint(
    fake: Fake,
    clip: Path,
    out: Path,
    styling: video.Styling,
    where: Callable[[Frame], Box] | None = None,
    **options: Any,
) -> video.Outcome:
    info = probe(clip)
    box = middle(info.width, info.height)
    return video.translate_video(fake, info, out, styling, where or (lambda frame: box), **options)


# --- styles over time


def test_noise_is_smoothed_by_a_gaussian_on_a_ring() -> None:
    frames, sigma = 60, 4.0
    found = video.smooth_noise(frames, 3, 8, sigma, seed=5)
    assert found.shape == (60, 3, 8) and found.dtype == torch.float32
    assert found.double().square().mean().item() == pytest.approx(1.0, abs=1e-6)
    noise = torch.randn(60, 3, 8, generator=torch.Generator().manual_seed(5)).double().numpy()
    lags = np.arange(-300, 301)  # five times round: nothing of the Gaussian is left beyond
    kernel = np.exp(-0.5 * (lags / sigma) ** 2)
    direct = sum(weight * np.roll(noise, lag, 0) for weight, lag in zip(kernel, lags, strict=True))
    direct /= np.sqrt(np.square(direct).mean())
    # A sampled Gaussian's spectrum is the true one's but for what folds over: 2 exp(-2 (pi sigma / 2)^2) at the most.
    assert 2 * math.exp(-2 * (math.pi * sigma / 2) ** 2) < 1e-12
    np.testing.assert_allclose(found.numpy(), direct, atol=4 * np.finfo(np.float32).eps * np.abs(direct).max())


def test_noise_changes_slowly_and_goes_round() -> None:
    sigma = 0.7 * 30
    z = video.smooth_noise(900, 8, 8, sigma)
    steps = (z.roll(-1, 0) - z).square().mean((1, 2)).sqrt()
    # neighbours of smoothed noise correlate by exp(-1 / (4 sigma^2)), so steps have this RMS times sqrt 2
    assert steps.square().mean().sqrt().item() == pytest.approx(1 / (math.sqrt(2) * sigma), rel=0.05)
    assert steps[-1] < steps[:-1].max()  # from the last frame to the first


def test_noise_is_of_its_seed_and_of_any_length() -> None:
    assert torch.equal(video.smooth_noise(20, 2, 8, 5.0, 3), video.smooth_noise(20, 2, 8, 5.0, 3))
    assert not torch.equal(video.smooth_noise(20, 2, 8, 5.0, 3), video.smooth_noise(20, 2, 8, 5.0, 4))
    for frames in (1, 2, 7):
        z = video.smooth_noise(frames, 1, 8, 21.0)
        assert z.shape == (frames, 1, 8) and z.double().square().mean().item() == pytest.approx(1.0, abs=1e-6)


def test_fixed_styles_stay() -> None:
    styles = torch.randn(3, 8)
    w = video.fixed(Fake(), styles, truncation=0.5)([4, 9], [0.1, 7.0])
    assert w.shape == (2, 3, 512)
    assert torch.equal(w[0, :, :8], styles * 0.5) and torch.equal(w[0], w[1])


def test_blend_takes_each_frames_styles_and_begins_again() -> None:
    codes = torch.randn(10, 2, 8)
    w = video.blend(Fake(), codes)([3, 4, 12], [0.0, 0.0, 0.0])
    assert torch.equal(w[..., :8], codes[[3, 4, 2]])


def test_eig_moves_by_three_at_each_beat_and_skips_the_first_direction() -> None:
    styles = torch.randn(2, 8)
    fake = Fake()
    still, directions = fake.latents(styles), fake.directions()
    seconds = [0.0, 0.49, 0.5, 0.99, 1.0, 2.4, 2.5, 3.0]
    expected = [None, None, 1, 1, 2, 4, 5, 1]  # there are six directions; behind the last comes the second again
    w = video.eig(fake, styles, 0.5)(range(8), seconds)
    assert w.shape == (8, 2, 512)
    for found, direction in zip(w, expected, strict=True):
        assert torch.equal(found, still if direction is None else still + 3 * directions[direction])


def test_a_frame_on_the_beat_belongs_to_it() -> None:
    beats = [k / 10 for k in range(1, 40)]  # floats: 0.3 / 0.1 is less than 3
    assert any(second / 0.1 < k for k, second in enumerate(beats, start=1))
    w = video.eig(Fake(), torch.zeros(1, 8), 0.1)(range(39), beats)
    for k, found in enumerate(w):
        assert found[0].argmax() == 1 + k % 5


# --- the face


@dataclass
class Eyes:
    """A detector that finds what it is told to: by the value of the left upper pixel."""

    faces: dict[int, tuple[int, int, int, int]]
    looked: int = 0

    def find(self, pixels: Picture) -> tuple[int, int, int, int] | None:
        self.looked += 1
        return self.faces.get(int(pixels[0, 0, 0]))


def numbered(times: Sequence[float], height: int = 100, width: int = 160) -> Iterator[Frame]:
    for number, seconds in enumerate(times):
        yield Frame(np.full((height, width, 3), number, np.uint8), number, seconds)


def test_the_first_frame_with_a_face_counts() -> None:
    eyes: Any = Eyes({6: (40, 30, 20, 20), 7: (0, 0, 50, 50)})
    box, seconds = video.first_face(numbered([k / 10 for k in range(20)]), eyes)
    assert (box, seconds) == (Box(37, 27, 26), 0.6)


def test_frames_that_follow_at_once_are_not_looked_at() -> None:
    eyes: Any = Eyes({})
    with pytest.raises(DataError, match="no face found in its first 5 seconds"):
        video.first_face(numbered([k / 30 for k in range(250)]), eyes, "clip.mp4")
    assert eyes.looked <= 51


def test_no_face() -> None:
    eyes: Any = Eyes({200: (40, 30, 20, 20)})
    frames = numbered([k / 20 for k in range(250)])
    with pytest.raises(DataError, match=r"clip\.mp4: no face found .*--box X,Y,SIDE.*--box none"):
        video.first_face(frames, eyes, "clip.mp4")
    assert next(frames).pts <= 103  # the rest was not read


def test_a_box_that_is_found_again_moves_only_if_it_must() -> None:
    faces = {10: (44, 30, 20, 20), 20: (100, 30, 20, 20), 25: (0, 0, 50, 50), 40: (98, 31, 21, 20)}
    eyes: Any = Eyes(faces)
    where = video.FaceBox(Box(37, 27, 26), eyes, 1.0)
    boxes = [where(frame) for frame in numbered([k / 10 for k in range(50)])]
    assert eyes.looked == 4 and where.moves == 2
    assert boxes[:10] == [Box(37, 27, 26)] * 10
    assert boxes[10:20] == [Box(41, 27, 26)] * 10  # by 4 of 26 pixels, more than 15 %
    assert boxes[20:] == [Box(97, 27, 26)] * 30  # frame 30 shows none; that of frame 40 is almost the same
    still = video.FaceBox(Box(1, 2, 3))
    assert {still(frame) for frame in numbered([0.0, 5.0, 50.0])} == {Box(1, 2, 3)}


# --- sheets


@pytest.mark.parametrize(
    ("styles", "rows", "columns", "source"),
    [(8, 3, 3, 4), (1, 1, 2, 0), (3, 2, 2, 0), (24, 5, 5, 12), (2, 2, 2, 0), (5, 2, 3, 0)],
)
def test_the_source_is_in_the_middle_of_a_sheet(styles: int, rows: int, columns: int, source: int) -> None:
    sheet = video.Sheet(styles, True, 2)
    assert (sheet.rows, sheet.columns, sheet.source) == (rows, columns, source)
    painted = np.arange(1, styles + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    whole = sheet.compose(np.full((2, 2, 3), 99, np.uint8), painted)
    assert whole.shape == (rows * 2, columns * 2, 3)
    assert np.array_equal(whole[::2, ::2], whole[1::2, 1::2])  # every place is of one colour
    places = whole[::2, ::2, 0].reshape(-1).tolist()
    expected = list(range(1, styles + 1))
    expected.insert(source, 99)
    assert places == expected + [0] * (rows * columns - styles - 1)


def test_one_picture_alone() -> None:
    painted = np.full((1, 2, 2, 3), 7, np.uint8)
    assert np.array_equal(video.Sheet(1, False, 2).compose(np.zeros((2, 2, 3), np.uint8), painted), painted[0])


# --- painting


def test_every_frame_is_painted_with_its_own_style(clip: Path, tmp_path: Path, written: list[Picture]) -> None:
    codes = video.smooth_noise(24, 1, 8, 3.0)
    outcome = paint(Fake(), clip, tmp_path / "out.mp4", video.blend(Fake(), codes))
    assert outcome.frames == len(written) == 24 and outcome.notes == ["sound (aac) copied"] and outcome.damaged == 0
    for number, source in enumerate(cut(clip)):
        image = to_float(torch.from_numpy(source.copy())) + 0.25 * codes[number, 0, :3]
        assert np.array_equal(written[number], to_uint8(image).numpy()), number
    assert moments(tmp_path / "out.mp4") == moments(clip)
    assert packets(tmp_path / "out.mp4") == packets(clip)


@pytest.mark.parametrize("batch", [5, 30])  # less than one frame's pictures, and those of several frames
@pytest.mark.parametrize("mode", ["fixed", "blend", "eig"])
def test_a_grid_holds_all_styles_and_the_source(
    mode: str, batch: int, clip: Path, tmp_path: Path, written: list[Picture]
) -> None:
    fake, styles = Fake(), torch.linspace(-3, 3, 64).reshape(8, 8)
    codes = video.smooth_noise(24, 8, 8, 3.0)
    styling = {
        "fixed": video.fixed(fake, styles),
        "blend": video.blend(fake, codes),
        "eig": video.eig(fake, styles, 0.25),
    }
    paint(fake, clip, tmp_path / "out.mp4", styling[mode], styles=8, grid=True, batch=batch)
    assert max(fake.batches) <= batch and sum(fake.batches) == 24 * 8
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.frames) == (192, 192, 24)
    for number, source in enumerate(cut(clip)):
        w = styling[mode]([number], [number / 24])[0]
        image = to_float(torch.from_numpy(source.copy()))
        places = [to_uint8((image + 0.25 * w[s, :3]).clamp(-1, 1)).numpy() for s in range(8)]
        places.insert(4, source)
        for place, expected in enumerate(places):
            top, left = 64 * (place // 3), 64 * (place % 3)
            assert np.array_equal(written[number][top : top + 64, left : left + 64], expected), (number, place)


def test_the_batch_changes_nothing(clip: Path, tmp_path: Path, written: list[Picture]) -> None:
    styling = video.blend(Fake(), video.smooth_noise(24, 1, 8, 3.0))
    results = []
    for batch in (1, 5, 64):
        paint(Fake(), clip, tmp_path / "out.mp4", styling, batch=batch)
        results.append(np.stack(written))
        written.clear()
    assert len(results[0]) == 24
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a few frames, parts of frames and painted pictures live at once, whatever the number of frames."""
    alive = {"frame": 0, "cut": 0, "painted": 0}
    most = dict(alive)

    def track(kind: str, what: Any) -> None:
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(what, lambda: alive.__setitem__(kind, alive[kind] - 1))

    real = video._Cut

    def tracked(*values: Any) -> Any:
        found = real(*values)
        track("cut", found)
        return found

    monkeypatch.setattr(video, "_Cut", tracked)
    found: list[dict[str, int]] = []
    for frames in (60, 180):
        path = make_video(tmp_path / f"{frames}.mp4", frames=frames, sounds=())
        fake = Fake()
        fake.on_paint = lambda painted: track("painted", painted)
        box = Box(0, 0, 64)

        def where(frame: Frame, box: Box = box) -> Box:
            track("frame", frame.pixels)
            return box

        paint(fake, path, tmp_path / "out.mp4", video.fixed(fake, torch.zeros(1, 8)), where, batch=4)
        found.append(dict(most))
        assert alive == {"frame": 0, "cut": 0, "painted": 0}
        most.update(dict.fromkeys(most, 0))
    # groups of 4: one is collected, one handed over, two wait, one is painted, and three are written
    for counts in found:
        assert counts["frame"] <= 2 and counts["cut"] <= 8 * 4 and counts["painted"] <= 3, counts


def test_a_result_that_is_not_finite(clip: Path, tmp_path: Path) -> None:
    fake = Fake()
    fake.on_paint = lambda painted: painted.view(-1)[5:6].fill_(math.nan if len(fake.batches) == 3 else 0.0)
    with pytest.raises(AnifastError, match=r"0\.3 s into the video the model's result is not finite"):
        paint(fake, clip, tmp_path / "out.mp4", video.fixed(fake, torch.zeros(1, 8)), batch=4)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_breaks_off_on_the_way(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.ts", frames=30, sounds=()).read_bytes()
    (tmp_path / "in.ts").write_bytes(
        small + make_video(tmp_path / "large.ts", frames=5, size=(128, 96), sounds=()).read_bytes()
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"frame 31 is 128x96"):
        paint(Fake(), tmp_path / "in.ts", tmp_path / "out" / "o.mp4", video.fixed(Fake(), torch.zeros(1, 8)))
    assert list((tmp_path / "out").iterdir()) == []


# --- the command


def test_a_video_from_end_to_end(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, written: list[Picture]
) -> None:
    out = tmp_path / "new" / "out.mp4"
    assert run(model, clip, out, "--box", "none", "--seed", 3) == 0
    said = capsys.readouterr()
    assert "24 frames of 96x64, 24 a second, 0:01; box 16,0,64" in said.out
    assert "fixed, 1 style -> B, averaged weights" in said.out and "sound (aac) copied" in said.out
    assert moments(out) == moments(clip) and packets(out) == packets(clip)
    import anifast

    translator = anifast.load(model, "cpu")
    images = torch.stack([to_float(torch.from_numpy(p.copy())).permute(2, 0, 1) for p in cut(clip)])
    expected = to_uint8(translator.translate(images, styles=translator.random_styles(1, 3))).permute(0, 2, 3, 1).numpy()
    # sums in another order may turn a rounding
    assert np.abs(np.stack(written).astype(int) - expected).max() <= 1
    assert leftovers(out.parent) == []


def test_blend_smooths_over_seven_tenths_of_a_second(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    real = video.smooth_noise
    monkeypatch.setattr(video, "smooth_noise", lambda *values: asked.append(values) or real(*values))
    assert run(model, clip, tmp_path / "out.mp4", "--box", "none", "--mode", "blend", "--seed", 9) == 0
    assert asked == [(24, 1, 8, pytest.approx(0.7 * 24), 9)]


@pytest.mark.parametrize("mode", ["blend", "eig"])
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_modes_and_containers(mode: str, suffix: str, model: Path, clip: Path, tmp_path: Path, capsys: Capture) -> None:
    beat = ("--beat", 0.2) if mode == "eig" else ()
    words = ("--box", "10,0,64", "--mode", mode, "--grid", "--styles", 2, "--to", "A", "--truncation", 0.7, *beat)
    assert run(model, clip, tmp_path / f"out{suffix}", *words) == 0
    assert f"{mode}, 2 styles -> A" in capsys.readouterr().out
    info = probe(tmp_path / f"out{suffix}")
    assert (info.width, info.height, info.frames) == (128, 128, 24)


def test_styles_of_pictures_and_files(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, written: list[Picture]
) -> None:
    drawing = picture(tmp_path / "drawing.png", 4)
    save(tmp_path / "styles.json", [Style("one", (0.5,) * 8), Style("two", (-0.5,) * 8)], "B")
    words = ("--box", "none", "--grid", "--style", drawing, tmp_path / "styles.json")
    assert run(model, clip, tmp_path / "out.mp4", *words) == 0
    assert "fixed, 3 styles -> B" in capsys.readouterr().out
    assert len(written) == 24 and written[0].shape == (128, 128, 3)
    one = tmp_path / "one.mp4"
    assert run(model, clip, one, "--box", "none", "--style", f"{tmp_path / 'styles.json'}#1") == 0
    # the last place of the sheet holds the same style
    assert np.abs(written[24].astype(int) - written[0][64:, 64:]).max() <= 1


def test_pictures_of_styles_are_cut_or_squeezed(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(styles, "gather", lambda *_, how, **__: asked.append(how) or [Style("one", (0.5,) * 8)])
    for words in ((), ("--resize", "stretch")):
        assert run(model, clip, tmp_path / "out.mp4", "--box", "none", "--style", "drawing.png", *words) == 0
    assert asked == ["crop", "stretch"]


def test_help_says_what_the_result_shows(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "shows the painted box only, at the model's size" in text and "the exit code is 1" in text


def test_the_face_is_found(model: Path, tmp_path: Path, shared: Path, capsys: Capture, written: list[Picture]) -> None:
    need_cv2()
    portrait = Image.open(shared / "data" / "faces" / "blendgan_256" / "000026.png").convert("RGB").resize((160, 160))

    def draw(number: int, width: int, height: int) -> Picture:
        frame = Image.new("RGB", (width, height), (90, 110, 100))
        if number >= 6:
            frame.paste(portrait, (130 if number < 30 else 20, 40))
        return np.asarray(frame)

    path = make_video(tmp_path / "in.mp4", frames=48, size=(320, 240), draw=draw)
    assert run(model, path, tmp_path / "still.mp4", "--grid", "--styles", 1) == 0
    said = capsys.readouterr().out
    assert "; face at 0.2 s, box " in said or "; face at 0.3 s, box " in said
    still = list(written)
    written.clear()
    assert run(model, path, tmp_path / "moving.mp4", "--grid", "--styles", 1, "--redetect", 0.5) == 0
    assert "; the box moved 1x" in capsys.readouterr().out
    # the source stands left; the face is there before it has moved, and afterwards only where it was looked for again
    face = still[20][:, :64].astype(int)
    assert np.abs(still[47][:, :64] - face).mean() > 4 * np.abs(written[47][:, :64] - face).mean()


def test_without_opencv(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert run(model, clip, tmp_path / "out.mp4") == 1
    said = the_error(capsys.readouterr().err)
    assert 'pip install "anifast[faces]"' in said and "--box X,Y,SIDE" in said and "--box none" in said


def test_without_pyav(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(model, clip, tmp_path / "out.mp4", "--box", "none") == 1
    assert 'pip install "anifast[video]"' in the_error(capsys.readouterr().err)


def test_no_face_in_a_video(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = ModuleType("cv2")
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    monkeypatch.setattr(FaceDetector, "__init__", lambda self: None)
    monkeypatch.setattr(FaceDetector, "find", lambda self, pixels: None)
    assert run(model, clip, tmp_path / "out.mp4") == 1
    said = the_error(capsys.readouterr().err)
    assert said.startswith(str(clip)) and "no face found" in said and "--box" in said


def test_ctrl_c_leaves_what_was_there(
    model: Path, clip: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"an older video")
    written = []
    real = VideoWriter.write

    def write(self: VideoWriter, *values: Any) -> None:
        real(self, *values)
        written.append(values)
        if len(written) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(VideoWriter, "write", write)
    assert run(model, clip, out, "--box", "none", "--batch", 2) == 130
    assert "anifast: interrupted" in capsys.readouterr().err
    assert out.read_bytes() == b"an older video" and [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_file_that_only_paints_the_other_way(model: Path, clip: Path, tmp_path: Path, capsys: Capture) -> None:
    state = own_state(tiny_config(), ema=False)
    state["nets"] = {"G_A2B": state["nets"]["G_A2B"]}
    torch.save(state, tmp_path / "half.pt")
    assert run(tmp_path / "half.pt", clip, tmp_path / "out.mp4", "--box", "none", "--to", "A") == 1
    said = the_error(capsys.readouterr().err)
    assert "half.pt" in said and "out.mp4" not in [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--batch", 0), "--batch 0: at least 1"),
        (("--beat", 0.5), "belongs to --mode eig"),
        (("--mode", "eig", "--beat", 0), "--beat 0: a number of seconds above 0"),
        (("--mode", "eig", "--beat", "inf"), "--beat inf"),
        (("--redetect", -1, "--mode", "fixed"), "--redetect -1"),
        (("--redetect", 1, "--box", "none"), "give one of them"),
        (("--mode", "blend", "--style", "random"), "blend drifts through random styles"),
        (("--box", "40,0,64"), "--box 40,0,64: is not inside the frames of"),
        (("--box", "0,0,0"), "which are 96x64"),
        (("--box=-4,0,16",), "--box -4,0,16"),
        (("--box", "none", "--styles", 3), "add --grid"),
        (("--box", "none", "--styles", 0), "--styles 0: at least 1"),
        (("--box", "none", "--styles", 20000, "--grid"), "ask for fewer"),
        (("--box", "none", "--truncation", -1), "--truncation -1"),
        (("--box", "none", "--seed", -1), "--seed -1"),
        (("--box", "none", "--style", "missing.png"), "missing.png: no such file"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be(
    words: tuple[object, ...], told: str, model: Path, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(model, clip, tmp_path / "out.mp4", *words) == 1
    assert told in the_error(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--mode", "beat"), "'beat'"),
        (("--box", "1,2"), "expected X,Y,SIDE"),
        (("--box", "face"), "expected X,Y,SIDE"),
        (("--box", "-1,0,50"), "argument --box: expected X,Y,SIDE in whole pixels from 0"),
        (("--to", "C"), "'C'"),
        (("--colour", "red"), "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(words: tuple[str, ...], named: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        run("model.pt", "in.mp4", "out.mp4", *words)
    assert end.value.code == 2 and named in capsys.readouterr().err


def test_results_that_cannot_be_written(model: Path, clip: Path, tmp_path: Path, capsys: Capture) -> None:
    def error(out: Path, source: Path = clip) -> str:
        assert run(model, source, out, "--box", "none") == 1
        return the_error(capsys.readouterr().err)

    assert "give a name that ends in .mp4" in error(tmp_path / "out.avi")
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in error(tmp_path / "folder.mp4")
    (tmp_path / "file").write_text("")
    assert "is a file" in error(tmp_path / "file" / "out.mp4")
    before = clip.read_bytes()
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    for out, source in ((clip, clip), (link, clip), (clip, link)):
        assert "would overwrite an input" in error(out, source)
    assert clip.read_bytes() == before


def test_inputs_that_are_no_videos(model: Path, tmp_path: Path, capsys: Capture) -> None:
    def error(path: Path, *options: object) -> str:
        assert run(model, path, tmp_path / "out.mp4", "--box", "none", *options) == 1
        return the_error(capsys.readouterr().err)

    assert "no such file" in error(tmp_path / "missing.mp4")
    assert "is a picture" in error(picture(tmp_path / "still.png", 1))
    (tmp_path / "text.mp4").write_text("no video " * 100)
    assert "is no video" in error(tmp_path / "text.mp4")
    whole = make_video(tmp_path / "cut.mp4", frames=72, options={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "is cut off" in error(tmp_path / "cut.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_model_of_another_kind(clip: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    assert run(tmp_path / "other.pt", clip, tmp_path / "out.mp4", "--box", "none") == 1
    assert "other.pt" in the_error(capsys.readouterr().err)


def test_damage_is_told(model: Path, tmp_path: Path, capsys: Capture) -> None:
    path = make_video(tmp_path / "holes.mov", codec="png", pixel_format="rgb24", frames=40, sounds=())
    data = path.read_bytes()
    mark = [i for i in range(len(data)) if data[i : i + 8] == b"\x89PNG\r\n\x1a\n"][3]
    path.write_bytes(data[:mark] + bytes(8) + data[mark + 8 :])
    assert run(model, path, tmp_path / "out.mp4", "--box", "none") == 1
    said = capsys.readouterr()
    told = the_error(said.err)
    assert told.startswith(f"{path}: damaged pieces that could not be decoded: 1; their frames are left out of ")
    assert "out.mp4, which is whole otherwise" in told
    assert said.out.splitlines()[-1].startswith("39 frames in ")
    assert moments(tmp_path / "out.mp4") == [Fraction(n, 24) for n in range(40) if n != 3]

"""Aligning faces: FFHQ's geometry, lists of landmarks, the detector, and the command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import need_shared

from anifast.data import mtcnn
from anifast.data.align import Points, align, gaussian_blur, quad, read_aahq, read_landmarks
from anifast.data.mtcnn import FaceLandmarks
from anifast.errors import AnifastError, DataError
from anifast.systems.blendgan import alignment

FACE = Points((40, 50), (60, 50), (43, 75), (57, 75))
BY_NAME = {"eye_left": [40, 50], "eye_right": [60, 50], "mouth_left": [43, 75], "mouth_right": [57, 75]}
NAMES = tuple(BY_NAME)


def moved(points: Points, degrees: float = 0, scale: float = 1, shift: tuple[float, float] = (0, 0)) -> Points:
    """Turned (clockwise, as y goes down), scaled and shifted about the origin."""
    turn = scale * np.exp(1j * math.radians(degrees))
    there = [complex(*getattr(points, name)) * turn + complex(*shift) for name in NAMES]
    return Points(*((p.real, p.imag) for p in there))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with large and small shapes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), fine, 0.3)


# --- geometry


def test_the_square_of_a_level_face() -> None:
    # v = (20, 0), u = (0, 25): max(2 * 20, 1.8 * 25) = 45 around c = (50, 50 + 2.5)
    assert np.allclose(quad(FACE), [(5, 7.5), (5, 97.5), (95, 97.5), (95, 7.5)], rtol=0, atol=1e-12)


def test_the_square_of_a_wide_face() -> None:
    # v = (40, 0), u = (0, 20): max(2 * 40, 1.8 * 20) = 80 around c = (50, 52)
    wide = Points((30, 50), (70, 50), (40, 70), (60, 70))
    assert np.allclose(quad(wide), [(-30, -28), (-30, 132), (130, 132), (130, -28)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees", [17, 90, 180, -64])
def test_the_square_turns_and_grows_with_the_face(degrees: float) -> None:
    level, turned = (quad(points) @ [1, 1j] for points in (FACE, moved(FACE, degrees, scale=3, shift=(11, -7))))
    expected = level * 3 * np.exp(1j * math.radians(degrees)) + (11 - 7j)
    assert np.abs(turned - expected).max() < 1e-11


@pytest.mark.parametrize(
    "points",
    [
        Points((60, 50), (40, 50), (43, 75), (57, 75)),  # eyes the other way round
        Points((40, 50), (60, 50), (43, 25), (57, 25)),  # the mouth above them
        Points((40, 50), (40, 50), (40, 50), (40, 50)),
        Points((40, 50), (60, 50), (45, 50), (55, 50)),  # all in a line
    ],
)
def test_points_that_are_none_of_a_face(points: Points) -> None:
    with pytest.raises(DataError, match="none of a face"):
        align(noise(100, 100), points, 16)


@pytest.mark.parametrize("size", [16, 45])
@pytest.mark.parametrize("degrees", [0, 20, 90, 180])
def test_what_lands_where(size: int, degrees: float) -> None:
    """A picture whose colours are its coordinates tells where each pixel of the result comes from."""
    y, x = np.mgrid[:200, :220]
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    points = moved(FACE, degrees, shift={0: (50, 40), 20: (70, 30), 90: (160, 50), 180: (160, 150)}[degrees])
    corners = quad(points)
    assert corners.min() > 10 and (corners.max(0) < (210, 190)).all()  # nothing has to be filled up
    result = np.asarray(align(picture, points, size)).astype(float)
    along = (np.arange(size) + 0.5) / size
    right, down = corners[3] - corners[0], corners[1] - corners[0]
    expected = corners[0] + along[None, :, None] * right + along[:, None, None] * down
    inside = slice(1, -1)  # scaling down mirrors nothing at the edge
    # two roundings to 8 bits, one of which may cut off
    assert np.abs(result[..., :2] - expected)[inside, inside].max() <= 1.5


def slow_blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """The direct sum over mirrored rows, then columns."""
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        length = plane.shape[axis]
        total = np.zeros(plane.shape)
        for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
            at = (np.arange(length) + offset) % (2 * length)
            total += tap * np.take(plane.astype(np.float64), np.minimum(at, 2 * length - 1 - at), axis)
        plane = total.astype(np.float32)
    return plane


@pytest.mark.parametrize(("shape", "sigma"), [((9, 7), 0.2), ((50, 31), 3.3), ((9, 40), 20.0), ((1, 3), 1.0)])
def test_blur(shape: tuple[int, int], sigma: float) -> None:
    plane = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    # sums in float64 in another order may fall to the other side of a rounding to float32
    assert np.abs(gaussian_blur(plane, sigma) - slow_blur(plane, sigma)).max() <= 2 * np.spacing(np.float32(255))


def test_blur_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed; the direct sum is compared as well")
    plane = np.random.default_rng(0).uniform(0, 255, (60, 45)).astype(np.float32)
    expected = ndimage.gaussian_filter(plane, 7.0)
    assert np.abs(gaussian_blur(plane, 7.0) - expected).max() <= 2 * np.spacing(np.float32(255))


def slow_align(image: Image.Image, points: Points, size: int) -> np.ndarray:
    """The steps of FFHQ's preparation one by one, for a picture that need not be cropped."""
    corners = quad(points)
    side = math.dist(corners[0], corners[3])
    shrink = int(0.5 * side / size)
    if shrink > 1:
        image = image.resize((round(image.width / shrink), round(image.height / shrink)), Image.Resampling.LANCZOS)
        corners, side = corners / shrink, side / shrink
    border = max(round(0.1 * side), 3)
    over = [math.ceil(-corners[:, 0].min()), math.ceil(-corners[:, 1].min())]
    over += [math.ceil(corners[:, 0].max()) - image.width, math.ceil(corners[:, 1].max()) - image.height]
    assert max(over) > -4  # it is filled up
    left, top, right, bottom = (max(pad + border, 0, round(0.3 * side)) for pad in over)
    pixels = np.asarray(image).astype(np.float64)
    pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = pixels.shape[:2]
    for channel in range(3):
        plane = pixels[..., channel]
        blurred = slow_blur(plane, 0.02 * side)
        mask = np.empty(plane.shape)
        for y in range(height):
            for x in range(width):
                mask[y, x] = max(
                    1 - min(x / left, (width - 1 - x) / right), 1 - min(y / top, (height - 1 - y) / bottom)
                )
        plane += (blurred - plane) * np.clip(3 * mask + 1, 0, 1)
        plane += (np.median(plane) - plane) * np.clip(mask, 0, 1)
    filled = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    where = (corners + (left, top) + 0.5).flatten().tolist()
    large = filled.transform((4 * size, 4 * size), Image.Transform.QUAD, where, Image.Resampling.BILINEAR)
    return np.asarray(large.resize((size, size), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(
    ("points", "size"),
    [
        (FACE, 64),
        (moved(FACE, 15, shift=(20, -12)), 40),
        (moved(FACE, -30, scale=1.2, shift=(-25, 20)), 32),  # over the left edge
        (moved(FACE, 5, scale=1.8, shift=(-35, -40)), 24),  # larger than the picture, which shrinks
    ],
)
def test_filled_up_step_by_step(points: Points, size: int) -> None:
    image = noise(98, 110)
    corners = quad(points)
    border = round(0.1 * math.dist(corners[0], corners[3]))
    grown = [*(corners.min(0) - border), *(image.size - (corners.max(0) + border))]
    if max(grown) > 0:  # what is far from the face is cut off first: begin with a picture that is cut
        left, top = (max(math.floor(low) - border, 0) for low in corners.min(0))
        right, bottom = (math.ceil(high) + border for high in corners.max(0))
        image = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
        points = moved(points, shift=(-left, -top))
    result, expected = np.asarray(align(image, points, size)), slow_align(image, points, size)
    # float32 against float64 rounds one in 10,000 levels to the other side, as 255 * 2^-24 * some operations is so near
    # to a half; each pixel of the result is a mean over at most 100 of them
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_filling_up_leaves_the_face_and_has_no_black() -> None:
    picture = Image.new("RGB", (100, 100), (200, 120, 60))
    result = np.asarray(align(picture, moved(FACE, 20, shift=(-30, -30)), 32))
    assert (np.abs(result.astype(int) - (200, 120, 60)) <= 1).all()


@pytest.mark.parametrize(
    ("points", "match"),
    [
        (moved(FACE, shift=(1000, 0)), "do not fit a picture of 100x100"),
        (moved(FACE, scale=40), "do not fit a picture of 100x100"),
        (moved(FACE, scale=0.05), "too small"),
    ],
)
def test_points_of_another_picture(points: Points, match: str) -> None:
    with pytest.raises(DataError, match=match):
        align(noise(100, 100), points, 16)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="expected mode RGB, got L"):
        align(Image.new("L", (100, 100)), FACE)
    with pytest.raises(ValueError, match="size is 0"):
        align(noise(100, 100), FACE, 0)


coordinate = st.floats(-150, 250, allow_nan=False)
pair = st.tuples(coordinate, coordinate)


@settings(max_examples=60, deadline=None)
@given(st.builds(Points, pair, pair, pair, pair), st.integers(1, 90), st.integers(1, 90), st.integers(1, 20))
def test_any_points_in_any_picture(points: Points, width: int, height: int, size: int) -> None:
    try:
        result = align(noise(width, height), points, size)
    except DataError:
        return
    assert result.mode == "RGB" and result.size == (size, size)


# --- landmarks from lists


def test_points_from_68_landmarks() -> None:
    marks = np.random.default_rng(0).uniform(0, 100, (68, 2))
    points = Points.of_68(marks)
    assert np.allclose(points.eye_left, marks[36:42].mean(0)) and np.allclose(points.eye_right, marks[42:48].mean(0))
    assert points.mouth_left == tuple(marks[48]) and points.mouth_right == tuple(marks[54])
    assert Points.of(marks.tolist()) == points


def test_points_from_5_landmarks() -> None:
    five = [[40, 50], [60, 50], [50, 60], [43, 75], [57, 75]]
    assert Points.of(five) == Points.of_5(five) == Points.of(BY_NAME) == FACE


@pytest.mark.parametrize(
    "found",
    [
        [[1, 2]] * 6,
        [[1, 2, 3]] * 5,
        [[1, 2]] * 4 + [[1]],
        [[1, 2]] * 4 + [[1, float("nan")]],
        ["ab"] * 5,
        "abcde",
        7,
        {**BY_NAME, "mouth_left": None},
        {"eye_left": [1, 2]},
    ],
)
def test_what_is_no_landmarks(found: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        Points.of(found)
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"good.png": BY_NAME, "bad.png": found}))
    with pytest.raises(DataError, match=r"points\.json: bad\.png: expected"):
        read_landmarks(path)


def test_landmarks_that_are_null_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"a/b.png": BY_NAME, "c.png": None}))
    assert read_landmarks(path) == {"a/b.png": FACE}
    path.write_text(json.dumps({"c.png": None}))
    with pytest.raises(DataError, match="holds no landmarks"):
        read_landmarks(path)


@pytest.mark.parametrize("read", [read_landmarks, read_aahq])
def test_files_that_are_no_list(read: object, tmp_path: Path) -> None:
    assert callable(read)
    path = tmp_path / "list.json"
    with pytest.raises(DataError, match="no such file"):
        read(path)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)
    for text, match in (("{", "is not JSON"), ("[]", "expected a JSON object"), ("\udcff", "is not JSON")):
        path.write_text(text, errors="surrogateescape")
        with pytest.raises(DataError, match=match):
            read(path)


def test_aahq(tmp_path: Path) -> None:
    path = tmp_path / "AAHQ-dataset.json"
    path.write_text(
        json.dumps(
            {
                "1.png": {"image_url": "x", "raw_name": "a_b.jpg", "landmarks": BY_NAME},
                "2.png": {"raw_name": "a_b.jpg", "landmarks": BY_NAME},
                "3.png": {"landmarks": BY_NAME},
                "4.png": {"raw_name": "c.jpg", "landmarks": {"eye_left": [1, 2]}},
                "../5.png": {"raw_name": "c.jpg", "landmarks": BY_NAME},
                "6.png": {"raw_name": "/etc/c.jpg", "landmarks": BY_NAME},
                "1.jpg": {"raw_name": "c.jpg", "landmarks": BY_NAME},
                "": {"raw_name": "c.jpg", "landmarks": BY_NAME},
                "8.png": None,
            }
        )
    )
    entries, wrong = read_aahq(path)
    assert [(entry.name, entry.raw, entry.points) for entry in entries] == [
        ("1.png", "a_b.jpg", FACE),
        ("2.png", "a_b.jpg", FACE),
    ]
    assert {name: why.split()[0] for name, why in wrong.items()} == {
        "3.png": "the", "4.png": "its", "../5.png": "it,", "6.png": "it,", "1.jpg": "would", "": "it,", "8.png": "the",
    }  # fmt: skip
    path.write_text(json.dumps({"a.png": BY_NAME}))
    with pytest.raises(DataError, match="no entry of AAHQ's list"):
        read_aahq(path)


# --- the detector


def need_mtcnn() -> None:
    for package in ("mtcnn", "joblib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed (pip install "anifast[align]")')


@pytest.fixture(scope="module")
def detector() -> FaceLandmarks:
    need_mtcnn()
    return FaceLandmarks()


def portraits() -> list[Path]:
    paths = sorted(need_shared("data", "faces", "blendgan_256").iterdir())
    assert len(paths) == 8
    return paths


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_aligning_what_is_aligned_changes_little(detector: FaceLandmarks) -> None:
    """These portraits are FFHQ's kind of squares, so the square found in one is the picture itself.

    The networks' published mean error is 7 % of the distance between the eyes, which is a quarter of the side here. The
    corners are 2.8 such distances away from the middle: 0.07 / 4 * 2.8 = 5 % of the side.
    """
    off = []
    for path in portraits():
        found = detector.find(read(path))
        assert len(found) == 1, path
        off.append(quad(found[0]) / 256 - [(0, 0), (0, 1), (1, 1), (1, 0)])
    distances = np.hypot(*np.moveaxis(np.array(off), -1, 0))
    assert distances.mean() < 0.05
    assert np.abs(np.mean(off, axis=(0, 1))).max() < 0.02  # no drift


def test_a_face_that_leans_comes_out_level(detector: FaceLandmarks) -> None:
    portrait = Image.open(portraits()[4]).convert("RGB")
    frame = Image.new("RGB", (640, 400), (90, 110, 100))
    frame.paste(portrait, (200, 80))
    leaning = frame.rotate(20, Image.Resampling.BICUBIC, center=(328, 208))
    (points,) = detector.find(np.asarray(leaning))
    right = quad(points)[3] - quad(points)[0]
    assert abs(math.degrees(math.atan2(right[1], right[0])) + 20) < 5
    (again,) = detector.find(np.asarray(align(leaning, points, 256)))
    right = quad(again)[3] - quad(again)[0]
    assert abs(math.degrees(math.atan2(right[1], right[0]))) < 5


def test_portraits_and_selfies(detector: FaceLandmarks) -> None:
    stars = sorted(need_shared("data", "faces", "celebahq_1024").rglob("*.jpg"))[::8]
    assert len(stars) == 7
    for path in stars:
        assert detector.find(read(path)), path
    selfies = sorted(need_shared("data", "selfie2anime", "256", "testA").iterdir())[::4]
    assert len(selfies) == 25 and sum(bool(detector.find(read(path))) for path in selfies) >= 23  # 96 of all 100


def test_the_largest_face_comes_first(detector: FaceLandmarks) -> None:
    portrait = Image.open(portraits()[4]).convert("RGB")
    frame = Image.new("RGB", (640, 360), (90, 110, 100))
    frame.paste(portrait.resize((140, 140)), (20, 20))
    frame.paste(portrait, (360, 60))
    large, small = detector.find(np.asarray(frame))
    assert large.eye_left[0] > 360 and small.eye_left[0] < 160


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (700, 20)])
def test_no_face_in_a_plain_picture(size: tuple[int, int], detector: FaceLandmarks) -> None:
    assert detector.find(np.full((size[1], size[0], 3), 128, np.uint8)) == []


def test_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtcnn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AnifastError, match=r'pip install "anifast\[align\]". Or give the faces\' landmarks'):
        FaceLandmarks()


def test_other_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason='joblib is not installed (pip install "anifast[align]")')
    (tmp_path / "__init__.py").write_text("")
    spec = importlib.util.spec_from_file_location("mtcnn", tmp_path / "__init__.py")
    monkeypatch.setattr(mtcnn.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(AnifastError, match=r"pnet\.lz4 cannot be read \(No such file"):
        FaceLandmarks()
    folder = tmp_path / "assets" / "weights"
    folder.mkdir(parents=True)
    joblib.dump([np.zeros((3, 3))], folder / "pnet.lz4")
    with pytest.raises(AnifastError, match="holds other weights"):
        FaceLandmarks()


# --- the command


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    alignment.add_options(parser)
    return alignment.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    noise(120, 100).save(folder / "a.png")
    noise(150, 130, 1).save(folder / "more" / "b.jpg")
    return folder


def listed(path: Path, found: object) -> Path:
    path.write_text(json.dumps(found))
    return path


def test_command_with_landmarks(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(90, 90).save(photos / "c.png")
    (photos / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "e.png").write_bytes(b"a text")
    points = listed(tmp_path / "points.json", {"a.png": BY_NAME, "more/b.jpg": BY_NAME, "d.png": BY_NAME})
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--landmarks", points, "--size", 32) == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == {"a.png", "more/b.png", "skipped.txt"}
    with Image.open(photos / "a.png") as image:
        assert np.array_equal(read(out / "a.png"), align(image.convert("RGB"), FACE, 32))
    skipped = dict(line.split("\t") for line in (out / "skipped.txt").read_text().splitlines())
    reasons = {Path(name).name: why for name, why in skipped.items()}
    assert reasons.keys() == {"c.png", "d.png", "e.png"}
    assert reasons["c.png"].startswith("no landmarks of it in") and "cannot be decoded" in reasons["d.png"]
    told = capsys.readouterr()
    assert "2 pictures aligned" in told.out and f"3 skipped: {out}/skipped.txt" in told.out
    assert told.err.count("anifast: skipped: ") == 3


def test_command_keeps_no_old_list_of_skipped(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, "--out", out, "--size", 16, "--landmarks", listed(tmp_path / "one.json", {"a.png": BY_NAME}))
    assert (out / "skipped.txt").exists()
    both = listed(tmp_path / "both.json", {"a.png": BY_NAME, "b.jpg": BY_NAME})  # the file's name alone
    run(photos, "--out", out, "--size", 16, "--landmarks", both)
    assert not (out / "skipped.txt").exists() and (out / "more" / "b.png").exists()


def test_command_from_a_folder_beside(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    points = listed(tmp_path / "points.json", {"more/b.jpg": BY_NAME})
    assert run("../photos", "--out", "../out", "--landmarks", points, "--size", 16) == 0
    assert (tmp_path / "out" / "more" / "b.png").exists()


def test_command_with_landmarks_of_other_pictures(photos: Path, tmp_path: Path) -> None:
    points = listed(tmp_path / "points.json", {"x.png": BY_NAME})
    with pytest.raises(DataError, match=r"none of these pictures.*'a\.png'; the first one there is 'x\.png'"):
        run(photos, "--out", tmp_path / "out", "--landmarks", points)


def test_command_with_aahqs_list(photos: Path, tmp_path: Path) -> None:
    entry = {"raw_name": "a.png", "landmarks": BY_NAME}
    mirrored = {"raw_name": "a.png", "landmarks": {**BY_NAME, "eye_left": [60, 50], "eye_right": [40, 50]}}
    gone = {"raw_name": "gone.jpg", "landmarks": BY_NAME}
    listing = {"0001.png": entry, "0002.jpg": entry, "0003.png": gone, "0004.png": mirrored}
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--size", 16, "--json", listed(tmp_path / "list.json", listing)) == 0
    assert {path.name for path in out.iterdir()} == {"0001.png", "0002.png", "skipped.txt"}
    lines = (out / "skipped.txt").read_text().splitlines()
    assert lines[0] == "0003.png (gone.jpg)\tno such file" and lines[1].startswith("0004.png (a.png)\tits landmarks")


def test_command_with_aahqs_list_never_overwrites(photos: Path, tmp_path: Path) -> None:
    before = (photos / "a.png").read_bytes()
    listing = listed(tmp_path / "list.json", {"a.png": {"raw_name": "a.png", "landmarks": BY_NAME}})
    with pytest.raises(DataError, match="would overwrite a picture"):
        run(photos, "--out", photos, "--json", listing)
    assert (photos / "a.png").read_bytes() == before
    with pytest.raises(AnifastError, match="with --json, give one folder"):
        run(photos / "a.png", "--out", tmp_path / "out", "--json", listing)


def test_command_where_nothing_can_be_aligned(photos: Path, tmp_path: Path) -> None:
    points = listed(tmp_path / "points.json", {"a.png": [[0, 0]] * 5})
    with pytest.raises(AnifastError, match=r"nothing could be aligned \(2 pictures\), the first because .*a\.png: its"):
        run(photos, "--out", tmp_path / "out", "--landmarks", points)
    assert len((tmp_path / "out" / "skipped.txt").read_text().splitlines()) == 2


def test_command_tells_the_first_of_many_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        (photos / f"x{number:02d}.png").write_bytes(b"")
    points = listed(tmp_path / "points.json", {"a.png": BY_NAME})
    assert run(photos, "--out", tmp_path / "out", "--landmarks", points, "--size", 16) == 0
    told = capsys.readouterr().err
    assert told.count("anifast: skipped: /") == 20 and "anifast: skipped: 11 more, see" in told
    assert len((tmp_path / "out" / "skipped.txt").read_text().splitlines()) == 31


def test_command_goes_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    points = listed(tmp_path / "points.json", {"a.png": BY_NAME, "b.jpg": BY_NAME})
    run(photos, "--out", out, "--landmarks", points, "--size", 16)
    (out / "a.png").write_bytes(b"what is there")
    (out / "more" / "b.png").unlink()
    capsys.readouterr()
    assert run(photos, "--out", out, "--landmarks", points, "--size", 16, "--resume") == 0
    assert (out / "a.png").read_bytes() == b"what is there" and (out / "more" / "b.png").exists()
    assert "1 picture aligned, 1 were there" in capsys.readouterr().out


def test_command_keeps_aligned_squares(photos: Path, tmp_path: Path) -> None:
    noise(256, 256, 3).save(photos / "square.png")
    points = listed(tmp_path / "points.json", {"a.png": BY_NAME, "b.jpg": BY_NAME})
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--landmarks", points, "--size", 16, "--skip-square") == 0
    assert np.array_equal(read(out / "square.png"), read(photos / "square.png")) and not (out / "skipped.txt").exists()
    with Image.open(out / "a.png") as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_command_sizes(size: int, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(AnifastError, match="--size"):
        run(photos, "--out", tmp_path / "out", "--size", size)


def test_command_finds_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_mtcnn()
    portrait = Image.open(portraits()[4]).convert("RGB")
    folder = tmp_path / "photos"
    folder.mkdir()
    frame = Image.new("RGB", (640, 360), (90, 110, 100))
    frame.paste(portrait.resize((140, 140)), (20, 20))
    frame.paste(portrait, (360, 60))
    frame.save(folder / "two.png")
    portrait.convert("L").save(folder / "grey.jpg")
    Image.new("RGB", (80, 80)).save(folder / "none.png")
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--size", 64) == 0
    told = capsys.readouterr()
    assert "2 pictures aligned" in told.out and "1 picture with several faces" in told.out
    assert "none.png: no face found" in told.err
    wanted = np.asarray(portrait.resize((64, 64), Image.Resampling.LANCZOS)).astype(float)
    found = read(out / "two.png").astype(float)
    assert np.corrcoef(wanted[8:56, 8:56].ravel(), found[8:56, 8:56].ravel())[0, 1] > 0.8

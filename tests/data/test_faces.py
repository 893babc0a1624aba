"""Face boxes: their geometry, and what the detector finds in real pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from shared_data import need_shared
from tiny_videos import need_cv2

from anifast.data.faces import Box, FaceDetector, around, middle
from anifast.errors import AnifastError


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# --- geometry


def test_a_box_has_1_3_times_the_longer_side_and_the_same_centre() -> None:
    assert around((100, 80, 100, 80), 640, 480) == Box(85, 55, 130)
    assert around((100, 80, 60, 100), 640, 480) == Box(65, 65, 130)
    assert around((100, 80, 100, 100), 640, 480, scale=2.0) == Box(50, 30, 200)


@pytest.mark.parametrize(
    ("face", "box"),
    [
        ((-20, 200, 100, 100), Box(0, 185, 130)),  # reaches over the left edge
        ((570, 200, 100, 100), Box(510, 185, 130)),  # right
        ((300, -40, 100, 100), Box(285, 0, 130)),  # top
        ((300, 420, 100, 100), Box(285, 350, 130)),  # bottom
        ((100, 100, 400, 400), Box(60, 0, 480)),  # larger than the picture is high
    ],
)
def test_a_box_stays_square_and_inside(face: tuple[int, int, int, int], box: Box) -> None:
    assert around(face, 640, 480) == box and box.within(640, 480)


def test_every_box_is_inside_and_holds_the_middle_of_its_face() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(n) for n in draw.integers(8, 500, 2))
        across, down = (int(n) for n in draw.integers(2, min(width, height) + 1, 2))
        x, y = int(draw.integers(0, width - across + 1)), int(draw.integers(0, height - down + 1))
        box = around((x, y, across, down), width, height)
        assert box.within(width, height)
        assert box.side == min(round(1.3 * max(across, down)), width, height)
        assert box.x <= x + across / 2 <= box.x + box.side and box.y <= y + down / 2 <= box.y + box.side


@pytest.mark.parametrize(
    ("size", "box"), [((640, 480), Box(80, 0, 480)), ((48, 81), Box(0, 16, 48)), ((9, 9), Box(0, 0, 9))]
)
def test_the_middle_is_the_largest_centred_square(size: tuple[int, int], box: Box) -> None:
    assert middle(*size) == box and box.within(*size)


def test_within() -> None:
    assert Box(0, 0, 10).within(10, 10)
    for box in (Box(1, 0, 10), Box(0, 1, 10), Box(-1, 0, 5), Box(0, -1, 5), Box(0, 0, 0), Box(0, 0, -3)):
        assert not box.within(10, 10)


def test_cut() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert np.array_equal(Box(2, 1, 4).cut(pixels), pixels[1:5, 2:6])
    assert str(Box(2, 1, 4)) == "2,1,4"


# --- without OpenCV


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(AnifastError, match=r'pip install "anifast\[faces\]"'):
        FaceDetector()


def test_an_opencv_without_cascades(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = ModuleType("cv2")
    cv2.__version__ = "5.0.0"
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    with pytest.raises(AnifastError, match=r'up to version 4 and 5\.0\.0 has not: pip install "anifast\[faces\]"'):
        FaceDetector()


def test_an_opencv_without_the_files_of_cascades(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = ModuleType("cv2")
    cv2.__version__, cv2.data = "4.9.0", SimpleNamespace(haarcascades="/nowhere/")
    cv2.CascadeClassifier = lambda path: SimpleNamespace(empty=lambda: True)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    with pytest.raises(AnifastError, match="without haarcascade_frontalface_alt2.xml: pip install"):
        FaceDetector()


# --- finding faces


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    need_cv2()
    return FaceDetector()


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (700, 20)])
def test_no_face_in_a_plain_picture(size: tuple[int, int], detector: FaceDetector) -> None:
    assert detector.find(np.full((size[1], size[0], 3), 128, np.uint8)) is None


def test_portraits_of_celebrities(detector: FaceDetector) -> None:
    paths = sorted(need_shared("data", "faces", "celebahq_1024").rglob("*.jpg"))[::4]
    assert len(paths) == 14
    for path in paths:
        face = detector.find(read(path))
        assert face is not None, path
        x, y, across, down = face
        # pictures of this set are cut so that the middle lies between the eyes and the mouth
        assert x < 512 < x + across and y < 512 < y + down, path
        assert 0.35 * 1024 < max(across, down) < 1024, path


def test_selfies(detector: FaceDetector) -> None:
    """The faces fill these pictures or hang over their edges, which is the hardest that a video shows."""
    paths = sorted(need_shared("data", "selfie2anime", "256", "testA").iterdir())[::4]
    found = [detector.find(read(path)) for path in paths]
    hits = [face for face in found if face is not None]
    assert len(paths) == 25 and len(hits) >= 24  # 97 of all 100
    for x, y, across, down in hits:
        assert abs(x + across / 2 - 128) < 64 and abs(y + down / 2 - 128) < 64 and across > 64


@pytest.mark.parametrize("degrees", [-20, 20])
def test_heads_that_lean(degrees: int, detector: FaceDetector) -> None:
    portrait = Image.open(need_shared("data", "faces", "blendgan_256") / "000026.png").convert("RGB")
    frame = Image.new("RGB", (640, 360), (90, 110, 100))
    frame.paste(portrait, (300, 50))
    level = detector.find(np.asarray(frame))
    leaning = detector.find(np.asarray(frame.rotate(degrees, Image.Resampling.BICUBIC, center=(428, 178))))
    assert level is not None and leaning is not None
    middles = [np.array([x + w / 2, y + h / 2]) for x, y, w, h in (level, leaning)]
    assert np.abs(middles[0] - middles[1]).max() < level[2] / 4


def test_a_face_is_found_where_it_is_and_in_every_size(detector: FaceDetector) -> None:
    portrait = Image.open(need_shared("data", "faces", "blendgan_256") / "000026.png").convert("RGB")
    alone = detector.find(np.asarray(portrait))
    assert alone is not None
    frame = Image.new("RGB", (1280, 720), (90, 110, 100))
    frame.paste(portrait, (800, 300))
    for factor in (1, 2):
        found = detector.find(np.asarray(frame.resize((1280 * factor, 720 * factor))))
        assert found is not None
        expected = np.array([alone[0] + 800, alone[1] + 300, alone[2], alone[3]])
        # windows grow by steps of 1.1, so a side may be two steps off, and the place with it
        assert np.abs(np.array(found) / factor - expected).max() < 0.21 * alone[2]


def test_the_largest_face_is_taken(detector: FaceDetector) -> None:
    portrait = Image.open(need_shared("data", "faces", "blendgan_256") / "000026.png").convert("RGB")
    frame = Image.new("RGB", (640, 360), (90, 110, 100))
    frame.paste(portrait.resize((140, 140)), (20, 20))
    frame.paste(portrait, (360, 60))
    found = detector.find(np.asarray(frame))
    assert found is not None and found[0] > 360
